//! Directories of which no history is kept: build trees, caches.

mod common;

use common::{SECOND, START, World, check};
use darner_fs::{MAIN, Node};
use darner_store::Progress;

#[test]
fn the_past_shows_such_a_directory_empty_and_its_files_nowhere() {
    check(
        "
        t=1 mkdir target
        t=2 create target/old
        t=3 write target/old 'before'
        t=4 create kept
        t=5 label pinned
        t=6 nothing-here target => 2
        nothing-here target => 0
        t=8 create target/new
        t=9 write target/new 'one'
        t=10 write target/new 'two'
        t=11 mkdir target/sub
        t=12 create target/sub/x
        ls target@@2026-11-22T00:00:10 =>
        ls target@@pinned =>
        ls @@pinned => kept target
        ls target@@now =>
        find target@@pinned/old => ENOENT
        find target/old@@pinned => ENOENT
        find target/new@@2026-11-22T00:00:10 => ENOENT
        find target/sub@@2026-11-22T00:00:12 => ENOENT
        find target@@2026-11-22T00:00:00 => ENOENT
        ls target => new old sub
        read target/new => two
        log target/new => 10:Written:3
        log target/old => 6:Written:6
        clean
        read target/new => two
        read target/old => before
        ls @@pinned => kept target
        ls target@@pinned =>
        ",
    );
}

#[test]
fn what_is_made_there_inherits_it_and_keeps_it_wherever_it_goes() {
    check(
        "
        t=1 mkdir target
        t=2 nothing-here target => 1
        t=3 mkdir target/release
        t=4 create target/release/app
        t=5 write target/release/app 'built'
        t=6 mkdir bin
        t=7 rename target/release/app bin/app
        t=8 create bin/script
        t=9 write bin/script 'one'
        t=10 rename bin/script target/script
        t=11 write target/script 'two'
        t=12 rename target/script bin/script
        t=13 write bin/script 'three'
        read bin/app => built
        ls bin => app script
        ls bin@@2026-11-22T00:00:13 => script
        find bin/app@@2026-11-22T00:00:08 => ENOENT
        read bin@@2026-11-22T00:00:09/script => one
        find bin/script@@2026-11-22T00:00:11 => ENOENT
        ls target@@2026-11-22T00:00:11 =>
        tmpfile t target
        link #t bin/linked
        write bin/linked 'x'
        ls bin@@now => script
        t=40 unlink bin/app
        ls bin@@2026-11-22T00:00:13 => script
        clean
        ls bin@@2026-11-22T00:00:13 => script
        ls bin => linked script
        ",
    );
}

#[test]
fn a_file_that_has_a_name_elsewhere_keeps_its_past() {
    check(
        "
        t=1 mkdir docs
        t=2 mkdir bt
        t=3 create docs/thesis
        t=4 write docs/thesis 'one'
        t=5 link docs/thesis bt/t
        t=6 create bt/x
        t=7 link bt/x bt/y
        t=8 mkdir bt/sub
        t=9 link bt/x bt/sub/z
        t=10 label L
        t=11 write docs/thesis 'two'
        t=12 nothing-here bt => 3 /bt/t
        nothing-here bt => 0 /bt/t
        read docs@@L/thesis => one
        ls bt@@L =>
        unlink bt/t
        t=40 write docs/thesis '333'
        t=41 write docs/thesis '444'
        clean
        read docs@@L/thesis => one
        read docs@@2026-11-22T00:00:40/thesis => 333
        link docs/thesis bt/t
        mkdir around
        rename docs around/docs
        rename bt around/bt
        nothing-here around => 3
        find around/docs@@L/thesis => ENOENT
        as-elsewhere around/docs => 2
        ",
    );
}

#[test]
fn where_history_is_kept_again_the_past_shows_what_has_been_since() {
    check(
        "
        t=1 mkdir d
        t=2 create d/a
        t=3 write d/a 'one'
        t=4 nothing-here d => 2
        t=5 write d/a 'two'
        t=6 as-elsewhere d => 2
        t=7 write d/a 'three'
        t=8 create d/b
        t=9 write d/a 'four'
        ls d@@2026-11-22T00:00:03 =>
        ls d@@2026-11-22T00:00:05 =>
        read d@@2026-11-22T00:00:06.5/a => two
        read d@@2026-11-22T00:00:07/a => three
        ls d@@2026-11-22T00:00:09 => a b
        hold a d/a
        t=20 unlink d/a
        forget #a
        clean
        read d@@2026-11-22T00:00:07/a => three
        read d@@2026-11-22T00:00:06.5/a => two
        find d@@2026-11-22T00:00:05/a => ENOENT
        log d/a => 6:Created:3 7:Written:5 9:Written:5 20:Removed:5
        ",
    );
}

#[test]
fn a_clone_has_what_is_there_now_and_of_the_past_empty_directories() {
    check(
        "
        t=1 mkdir d
        t=2 mkdir d/target
        t=3 nothing-here d/target => 1
        t=4 create d/target/x
        t=5 write d/target/x 'one'
        t=6 create d/kept
        t=7 clone . now
        t=8 write d/target/x 'two'
        t=9 write now/d/target/x 'mine'
        t=10 write now/d/target/x 'mine again'
        t=12 rename d/target/x d/x
        clean
        clean
        read now/d/target/x => mine again
        read d/x => two
        t=20 clone @@2026-11-22T00:00:06 then
        ls then/d => kept target
        ls then/d/target =>
        t=22 create then/d/target/y
        ls then/d@@now/target =>
        rename d/x d/target/x
        clone @@2026-11-22T00:00:13 later
        ls later/d => kept target
        clean
        ls then/d/target => y
        rmdir d/target => ENOTEMPTY
        unlink then/d/target/y
        rmdir then/d/target
        ls then/d => kept
        rmdir later/d/target
        ",
    );
}

#[test]
fn a_clone_holds_what_it_shares_as_long_as_it_is_there() {
    let mut world = World::new();
    for line in [
        "t=1 mkdir target",
        "t=2 nothing-here target => 1",
        "t=3 create target/x",
        "t=4 write target/x 'one*2000'",
        "t=5 clone . c",
        "t=6 write target/x 'two*2000'",
        "t=7 clean",
        "remount",
    ] {
        world.line(line);
    }
    let shared = world.node("c/target/x").unwrap();
    assert_eq!(world.fs.read(shared, 0, 10_000).unwrap(), b"one".repeat(2000));
    let history = |world: &World| world.fs.store().account(world.now, None).unwrap().by_fileset.get(&MAIN).copied();
    let held = history(&world);
    for line in ["remove-fileset c force", "clean", "ls c@@2026-11-22T00:00:06 =>"] {
        world.line(line);
    }
    assert!(held > Some(6000) && history(&world) < Some(6000), "{held:?} before");
    world.line("find c@@2026-11-22T00:00:06/target/x => ENOENT");
}

#[test]
fn the_past_of_a_removed_clone_shows_what_became_keepless_in_its_base_later() {
    check(
        "
        t=1 mkdir d
        t=2 create d/a
        t=3 write d/a 'of the base'
        t=4 clone . c
        t=5 append c/d/a ' and the clone'
        t=6 remove-fileset c force
        t=7 nothing-here d => 2
        t=8 write d/a 'OF THE BASE'
        clean
        read c@@2026-11-22T00:00:05/d/a => of the base and the clone
        ls d@@2026-11-22T00:00:05 =>
        read d/a => OF THE BASE
        hold a d/a
        unlink d/a
        forget #a
        clean
        clean
        read c@@2026-11-22T00:00:05/d/a => of the base and the clone
        ",
    );
}

#[test]
fn a_whole_fileset_has_a_grid_for_that() {
    check(
        "
        t=1 create-fileset home
        t=2 create a
        nothing-here home => EINVAL
        nothing-here a => ENOTDIR
        nothing-here b => ENOENT
        ",
    );
}

#[test]
fn rewriting_it_costs_no_history_though_all_else_is_kept_for_ever() {
    let mut world = World::new();
    world.line("t=1 mkdir target");
    world.line("t=2 nothing-here target => 1");
    world.line("t=3 create source");
    let mut data = vec![0; 64 << 10];
    let mut rng = fastrand::Rng::with_seed(1);
    let mut now = START + 10 * SECOND;
    let mut write = |world: &World, node: Node, now: u64| {
        rng.fill(&mut data);
        world.fs.write(now, node, Some(0), &data, false).unwrap();
    };
    for round in 0..60 {
        for n in 0..20 {
            now += SECOND / 10;
            let dir = world.node("target").unwrap();
            let name = format!("o{n}");
            if round > 0 {
                let old = world.node(&format!("target/{name}")).unwrap();
                world.fs.unlink(now, dir, name.as_bytes()).unwrap();
                world.fs.forget(now, &[old.inode()]).unwrap();
            }
            let made = world.fs.create_file(&world.caller, now, dir, name.as_bytes(), 0o644, true).unwrap();
            write(&world, made.entry.node, now);
        }
        write(&world, world.node("source").unwrap(), now);
        now += 10 * SECOND;
        let store = world.fs.store();
        store.checkpoint().unwrap();
        while store.step().unwrap() == Progress::Worked {}
        while store.step_clean(now).unwrap() == Progress::Worked {}
    }
    let used = world.fs.store().usage().unwrap().used;
    // 20 files there now and 60 versions of the source come to 5 MiB; what was written, to 80.
    assert!(used < 40 << 20, "{used} bytes are in use");
    let cleaned = world.fs.store().clean(now, &mut |_| ()).unwrap();
    // (A raw volume begins and ends with 1 MiB of its own.)
    assert!(cleaned.after < 8 << 20, "{cleaned:?}");
    let account = world.fs.store().account(now, None).unwrap();
    assert!(account.lapsed_versions == 0 && account.versions < 400, "nothing is left of the dead: {account:?}");
}
