//! What is kept of the past, and how moments that are not kept round down.

mod common;

use common::{SECOND, START, World, check};
use darner_fs::{FsError, MAIN, Op, Reply};
use darner_store::Grid;

#[test]
fn a_time_between_retained_points_rounds_down_and_says_so() {
    check(
        "
        t=1 create a
        t=11 write a 'one'
        t=12 write a 'two'
        t=21 write a 'three'
        t=22 create b
        t=25 unlink b
        t=41 write a 'fourth'
        t=95 retain all:10s 10s:1d
        t=100 clean
        read a@@2026-11-22T00:00:19
        read a@@2026-11-22T00:00:20 => two
        read a@@2026-11-22T00:00:11
        read a@@2026-11-22T00:00:39 => three
        read a@@2026-11-22T00:00:45 => three
        read a@@2026-11-22T00:00:50 => fourth
        find b@@2026-11-22T00:00:23 => ENOENT
        find b@@2026-11-22T00:00:24 => ENOENT
        getx a@@2026-11-22T00:00:45 user.darner.as-of => 0x18ea34f7b7749000 2026-11-22T00:00:40 (a retained point: what is asked for between it and the next one rounds down to it)
        log a => 1@10:Created:0 12@20:Written:3 21@30:Written:5 41@50:Written:6
        t=120 write a 'fifths'
        t=121 write a 'sixths'
        read a@@2026-11-22T00:02:00 => fifths
        read a => sixths
        getx a@@2026-11-22T00:02:00 user.darner.as-of => 0x18ea350a57d3b000 2026-11-22T00:02 (exact)
        ",
    );
}

#[test]
fn without_being_told_nothing_is_given_up() {
    check(
        "
        t=1 create a
        t=2 write a 'one'
        t=3 write a 'two'
        t=40000000 clean
        read a@@2026-11-22T00:00:02 => one
        t=40000010 retain forever
        clean
        read a@@2026-11-22T00:00:02 => one
        ",
    );
}

#[test]
fn with_none_only_the_present_stays_and_a_label_pins_its_moment() {
    check(
        "
        t=1 create a
        t=2 write a 'one'
        t=3 label first
        t=4 write a 'two'
        t=5 create b
        t=6 unlink b
        t=7 retain none
        t=8 clean
        read a => two
        read a@@first => one
        read a@@2026-11-22T00:00:05 => one
        find b@@2026-11-22T00:00:05 => ENOENT
        find a@@2026-11-22T00:00:01 => ENOENT
        log a => 2:Created:3 4@8:Written:3
        unlabel first
        clean
        find a@@first => ENOENT
        find a@@2026-11-22T00:00:05 => ENOENT
        read a => two
        ",
    );
}

#[test]
fn beyond_the_last_step_history_is_dropped_and_years_pass_in_a_second() {
    check(
        "
        t=1 create a
        t=2 write a 'first'
        t=3 retain 1d:1w 1w:forever
        t=100000 write a 'second day'
        t=2000000 write a 'fourth week'
        t=2000001 clean
        read a@@2026-11-23 => first
        read a@@2026-11-24 => first
        t=200000000 write a 'years later'
        clean
        read a@@2026-11-23 => first
        read a@@2026-11-26 => first
        read a@@2026-12-01 => second day
        read a@@-1y => fourth week
        t=200000100 retain 1d:1w
        clean
        find a@@2026-12-01 => ENOENT
        read a@@-1d => fourth week
        ",
    );
}

#[test]
fn what_was_looked_up_before_its_moment_was_given_up_is_stale_and_never_mixed() {
    check(
        "
        t=1 mkdir d
        t=2 create d/a
        t=3 write d/a 'one'
        hold old d@@2026-11-22T00:00:03
        t=10 write d/a 'two'
        read #old/a => one
        t=20 retain none
        clean
        read #old/a => ESTALE
        ls #old => ESTALE
        find #old => ESTALE
        ",
    );
}

#[test]
fn a_pinned_moment_stays_until_the_pin_is_gone() {
    let mut world = World::new();
    for line in ["t=1 create a", "t=2 write a 'one'", "t=3 write a 'two'"] {
        world.line(line);
    }
    let node = world.node("a@@2026-11-22T00:00:02").unwrap();
    let pin = world.fs.pin(node).unwrap();
    assert!(pin.is_some());
    world.line("t=10 retain none");
    world.line("clean");
    let read = |world: &World| world.fs.read(node, 0, 100);
    assert_eq!(read(&world).unwrap(), b"one");
    world.line("read a@@2026-11-22T00:00:02 => one");
    drop(pin);
    world.line("clean");
    assert_eq!(read(&world).map_err(|e| e.errno()), Err(libc::ESTALE));
    assert!(world.fs.pin(node).is_err(), "what is given up can't be pinned");
}

#[test]
fn a_pinned_moment_of_a_removed_clone_keeps_what_it_shows_of_its_base() {
    let mut world = World::new();
    for line in [
        "t=1 create-fileset home",
        "t=2 create home/a",
        "t=3 write home/a 'one*2000'",
        "t=4 clone home c",
        "t=5 create c/b",
    ] {
        world.line(line);
    }
    let node = world.node("c@@2026-11-22T00:00:05/a").unwrap();
    let pin = world.fs.pin(node).unwrap();
    for line in ["remove-fileset c force", "write home/a 'two*2000'", "t=10 retain none"] {
        world.line(line);
    }
    let home = world.node("home").unwrap().inode().fileset;
    world.fs.retain(home, Some(Grid::default()), None, world.now).unwrap();
    world.line("clean");
    assert_eq!(world.fs.read(node, 0, 10_000).unwrap(), b"one".repeat(2000));
    let live = |world: &World| world.fs.store().account(world.now, None).unwrap();
    assert!(live(&world).history > 6000, "{:?}", live(&world));
    drop(pin);
    world.line("clean");
    assert_eq!(world.fs.read(node, 0, 100).map_err(|e| e.errno()), Err(libc::ESTALE));
    assert!(live(&world).history < 1000, "{:?}", live(&world));
}

#[test]
fn a_label_needs_a_moment_that_is_kept() {
    let mut world = World::new();
    for line in ["t=1 create a", "t=2 write a 'one'", "t=3 write a 'two'", "t=9 retain none", "clean"] {
        world.line(line);
    }
    let at = darner_fs::Tid(START + 2 * SECOND);
    let refused = world.fs.add_label(MAIN, "too-late", Some(at), world.now);
    assert_eq!(refused.map_err(|e: FsError| e.errno()).map(|_| ()), Err(libc::EINVAL));
}

#[test]
fn the_list_of_moments_has_the_points_that_are_kept() {
    let mut world = World::new();
    for line in
        ["t=1 create a", "t=9000 write a 'x'", "t=90000 write a 'y'", "t=90100 retain 1h:2h 1d:forever", "clean"]
    {
        world.line(line);
    }
    let names = world.names("@@", 1 << 20).unwrap();
    assert!(names.contains(&"2026-11-23T00:00".to_string()) || names.contains(&"2026-11-23".to_string()), "{names:?}");
    let asked: Vec<_> = names.iter().map(|name| world.node(&format!("@@/{name}")).unwrap()).collect();
    for (name, node) in names.iter().zip(asked) {
        let shown = world.fs.resolve_when(MAIN, name, world.now).unwrap().unwrap();
        assert!(matches!(node, darner_fs::Node::AsOf(_, tid) if tid == shown), "{name}");
    }
}

#[test]
fn what_is_destroyed_is_gone_from_every_moment_and_all_else_stays() {
    check(
        "
        t=1 mkdir d
        t=2 create d/secret
        t=3 write d/secret 'password'
        t=4 create d/other
        t=5 write d/other 'harmless'
        t=6 label pinned
        hold s d/secret
        t=7 write d/secret 'password two'
        t=8 destroy d/secret => EEXIST
        t=9 unlink d/secret
        t=10 destroy d/secret => EBUSY
        forget #s
        destroy d/secret => 1
        find d/secret@@pinned => ENOENT
        find d/secret@@2026-11-22T00:00:03 => ENOENT
        ls d@@pinned => other
        read d/other@@pinned => harmless
        log d/secret => ENOENT
        destroy d/secret => ENOENT
        t=20 mkdir e
        t=21 create e/x
        t=22 link e/x kept
        hold x e/x
        hold e e
        t=23 create e/y
        hold y e/y
        t=24 unlink e/x
        t=25 unlink e/y
        t=26 rmdir e
        forget #y
        forget #e
        destroy e => 2 /kept lives on there, and its past with it
        find e@@2026-11-22T00:00:23 => ENOENT
        t=30 mkdir g
        hold g g
        t=31 link kept g/y
        t=32 unlink g/y
        t=33 rmdir g
        forget #g
        destroy g => 1 /kept lives on there, and its past with it
        find kept => there
        remount
        find kept => there
        read d/other@@pinned => harmless
        ",
    );
}

#[test]
fn what_the_retention_gave_up_is_forgotten_too() {
    check(
        "
        t=1 mkdir d
        t=2 create d/secret
        t=3 write d/secret 'correct horse battery staple'
        t=4 create d/other
        t=5 mkdir d/sub
        t=6 create d/sub/key
        t=7 write d/sub/key 'tr0ub4dor'
        t=8 unlink d/secret
        t=9 unlink d/sub/key
        t=10 rmdir d/sub
        t=11 create elsewhere
        t=12 retain none
        destroy d/never => ENOENT
        t=13 clean
        log d/secret => ENOENT
        destroy d/secret => 0
        destroy d/secret => ENOENT
        destroy d/sub/key => ENOENT
        destroy d/elsewhere => ENOENT
        find d/other => there
        find elsewhere => there
        remount
        find d/other => there
        ",
    );
}

#[test]
fn a_day_of_points_over_an_unchanged_filesystem_costs_nothing() {
    let mut world = World::new();
    for line in ["t=1 create a", "t=2 write a 'one'", "t=3 retain 30s:1d", "t=4 clean"] {
        world.line(line);
    }
    let store = world.fs.store().clone();
    store.close().unwrap();
    let before = (store.tid(), store.usage().unwrap().used);
    for i in 0..2880u64 {
        let now = START + (100 + 30 * i) * SECOND;
        while store.step().unwrap() == darner_store::Progress::Worked {}
        while store.step_clean(now).unwrap() == darner_store::Progress::Worked {}
    }
    let used = store.usage().unwrap().used;
    assert!(used <= before.1, "{used} bytes, {} before", before.1);
    assert!(store.tid().0 - before.0.0 <= 2, "a collapse is noted, a point is not");
    let op = Op::Lookup { dir: world.fs.root(), name: b"a@@2026-11-22T18:00" };
    assert!(matches!(world.fs.run(&world.caller, START + 80_000 * SECOND, op), Ok(Reply::Entry(_))));
}

#[test]
fn what_had_the_name_in_another_fileset_is_not_destroyed_by_its_number_in_this_one() {
    check(
        "
        t=1 create kept
        write kept 'data'
        create x
        hold x x
        unlink x
        forget #x
        clone / x
        remove-fileset x force
        destroy x => 1 fileset 2 is another one
        find kept => there
        read kept => data
        find kept@@2026-11-22T00:00:03 => there
        ",
    );
}

#[test]
fn what_a_clone_shows_of_its_base_is_not_destroyed_in_the_clone() {
    // Its own tombstones only hide the base's records: destroyed, they would let them show again.
    check(
        "
        t=1 create a
        t=2 write a 'of the base'
        t=3 clone . c
        hold a c/a
        t=4 unlink c/a
        forget #a
        t=5 destroy c/a => EBUSY
        find c/a => ENOENT
        t=6 create c/b
        hold b c/b
        t=7 unlink c/b
        forget #b
        destroy c/b => 1
        find c/a => ENOENT
        read a => of the base
        ",
    );
}

#[test]
fn what_a_clone_has_deleted_does_not_come_back_from_its_base_when_it_is_destroyed() {
    check(
        "
        t=1 create secret
        write secret 'password'
        clone / c
        hold s c/secret
        unlink c/secret
        forget #s
        destroy c/secret => EBUSY
        find c/secret => ENOENT
        ls c
        create c/own
        write c/own 'x'
        hold o c/own
        unlink c/own
        forget #o
        destroy c/own => 1
        find c/own => ENOENT
        read secret => password
        ",
    );
}

#[test]
fn what_is_destroyed_is_gone_from_the_past_of_removed_clones_too() {
    check(
        "
        t=1 create a
        t=2 write a 'secret'
        t=3 create b
        t=4 clone . c
        t=5 append c/a ' of the clone'
        t=6 remove-fileset c force
        read c@@2026-11-22T00:00:05/a => secret of the clone
        hold a a
        t=8 unlink a
        forget #a
        t=9 clone c@@2026-11-22T00:00:05 back
        t=10 destroy a => EBUSY
        read back/a => secret of the clone
        remove-fileset back force
        t=12 destroy a => 1
        find c@@2026-11-22T00:00:05/a => ENOENT
        find back@@2026-11-22T00:00:10/a => ENOENT
        find c@@2026-11-22T00:00:05/b => there
        ",
    );
}

#[test]
fn a_moment_of_the_whole_does_not_list_a_fileset_that_keeps_nothing_of_then() {
    let mut world = World::new();
    for line in ["create-fileset F", "create F/f", "create x", "label L", "ls @@L => F x"] {
        world.line(line);
    }
    let fileset = world.node("F").unwrap().inode().fileset;
    let nothing = darner_fs::retain::parse_grid("none").unwrap();
    world.fs.retain(fileset, Some(nothing), None, world.now).unwrap();
    world.line("unlink F/f");
    world.line("clean");
    world.line("ls @@L => x");
    world.line("find @@L/F => ENOENT");
    // Where it rounds down to another moment, it is listed with the attributes that it had then.
    let mut world = World::new();
    for line in ["create-fileset F", "t=10 create F/f", "t=15 create F/g", "t=17 label L"] {
        world.line(line);
    }
    let fileset = world.node("F").unwrap().inode().fileset;
    let coarse = darner_fs::retain::parse_grid("10s:forever").unwrap();
    world.fs.retain(fileset, Some(coarse), None, world.now).unwrap();
    world.line("t=30 create F/h");
    world.line("clean");
    world.line("ls @@L/F => f");
    let dir = world.node("@@L").unwrap();
    let listed = world.fs.readdir(dir, 0, 1 << 20, 24, true, world.now).unwrap();
    let listed = listed.iter().find(|entry| entry.name == b"F").unwrap();
    assert_eq!((listed.node, listed.attr.unwrap().size), (world.node("@@L/F").unwrap(), 1));
}
