//! Time travel: what as-of names mean and promise.

mod common;

use std::collections::HashSet;

use common::{SECOND, START, World, check, tid};
use darner_fs::{Inode, MAIN, Node, ROOT};

#[test]
fn any_name_can_be_looked_at_as_of_any_moment() {
    check(
        "
        t=1 mkdir d
        t=10 create d/a
        t=20 write d/a 'one'
        t=30 write d/a 'two and more'
        t=40 read d/a@@-15s => one
        read d/a@@2026-11-22T00:00:29.999999999 => one
        read d/a@@2026-11-22T00:00:30 => two and more
        read d/a@@2026-11-22T00:00:30Z => two and more
        read d/a@@2026-11-22T01:00:20+01:00 => one
        read 'd/a@@2026-11-22 00:00:20' => one
        read d/a@@2026-11-22T00:00:19 =>
        read d@@2026-11-22T00:00:20/a => one
        read d/@@2026-11-22T00:00:20/a => one
        read @@2026-11-22T00:00:20/d/a => one
        ls @@2026-11-22T00:00:05/d =>
        ls @@2026-11-22T00:00:00.5 =>
        find d/a@@2026-11-22T00:00:09 => ENOENT
        read d/a@@now => two and more
        read d/a@@0x18ea6f8f61dac800 => ENOENT
        ",
    );
}

#[test]
fn a_tid_is_exact() {
    let mut world = World::new();
    world.line("t=10 create a");
    world.line("t=20 write a 'one'");
    world.line("t=30 write a 'two'");
    world.line(&format!("read a@@{} => one", tid(29)));
    world.line(&format!("read a@@{} => two", tid(30)));
    world.line(&format!("find a@@{} => ENOENT", tid(9)));
    assert_eq!(world.fs.resolve_when(MAIN, &tid(20).to_string(), world.now).unwrap(), Some(tid(20)));
}

#[test]
fn what_is_deleted_is_found_in_the_past_under_the_name_it_had() {
    check(
        "
        t=1 mkdir d
        t=2 create d/a
        t=3 write d/a 'precious'
        t=10 unlink d/a
        t=11 rmdir d
        find d => ENOENT
        read d@@2026-11-22T00:00:05/a => precious
        ls @@2026-11-22T00:00:05 => d
        ls @@2026-11-22T00:00:10 => d
        ls @@2026-11-22T00:00:10/d =>
        ls @@2026-11-22T00:00:11 =>
        t=20 create x
        t=21 write x 'moved'
        t=30 rename x y
        read x@@2026-11-22T00:00:25 => moved
        find y@@2026-11-22T00:00:25 => ENOENT
        t=40 create y2
        t=41 rename y2 y
        read y@@2026-11-22T00:00:35 => moved
        read y =>
        ",
    );
}

#[test]
fn reaped_files_stay_in_the_past() {
    check(
        "
        t=1 create a
        t=2 write a 'gone'
        t=3 setx a user.x kept
        t=4 symlink target l
        hold h a
        hold l l
        t=10 unlink a
        unlink l
        t=20 forget #h
        forget #l
        remount
        read a@@2026-11-22T00:00:05 => gone
        getx a@@2026-11-22T00:00:05 user.x => kept
        readlink l@@2026-11-22T00:00:05 => target
        find a => ENOENT
        ",
    );
}

#[test]
fn the_past_is_read_only() {
    check(
        "
        t=1 mkdir d
        t=2 create d/a
        t=3 write d/a 'x'
        t=10 hold p @@2026-11-22T00:00:05
        write #p/d/a 'y' => EROFS
        append #p/d/a 'y' => EROFS
        truncate #p/d/a 0 => EROFS
        chmod #p/d/a 777 => EROFS
        utime #p/d/a now now => EROFS
        create #p/d/b => EROFS
        open-create #p/d/a => EROFS
        mkdir #p/d/b => EROFS
        mknod #p/d/b fifo => EROFS
        symlink x #p/d/b => EROFS
        tmpfile t #p/d => EROFS
        link #p/d/a d/b => EROFS
        link d/a #p/d/b => EROFS
        unlink #p/d/a => EROFS
        rmdir #p/d => EROFS
        rename #p/d/a d/b => EROFS
        rename d/a #p/d/b => EROFS
        punch #p/d/a 0 1 => EROFS
        copy d/a 0 #p/d/a 0 1 => EROFS
        open #p/d/a write => EROFS
        open #p/d/a read
        create @@/b => EROFS
        read #p/d/a => x
        ",
    );
}

#[test]
fn names_that_lead_into_the_past_cannot_be_made_or_removed() {
    check(
        "
        t=1 create a
        t=2 mkdir d
        t=10 create a@@-5s => EEXIST
        open-create a@@-5s => EROFS
        mkdir a@@-5s => EEXIST
        symlink x a@@-5s => EEXIST
        create b
        link b a@@-5s => EEXIST
        rename b a@@-5s => EROFS
        rename b a@@-5s noreplace => EEXIST
        rename a@@-5s c => EROFS
        unlink a@@-5s => EROFS
        rmdir d@@-5s => EROFS
        mkdir @@ => EEXIST
        mkdir @@-5s => EEXIST
        rmdir @@ => EROFS
        ",
    );
}

#[test]
fn a_name_that_exists_literally_wins_and_one_that_leads_nowhere_is_ordinary() {
    check(
        "
        t=1 create nothing@@-5s
        t=2 write nothing@@-5s 'literal'
        read nothing@@-5s => literal
        create x@@y
        create x@@2999-01-01
        find x@@2999-01-01 => there
        mkdir mail@@2026-11-01
        find mail@@2026-11-01 => there
        t=20 read nothing@@-5s@@2026-11-22T00:00:10 => literal
        unlink nothing@@-5s
        rename x@@y x@@z
        ls / => mail@@2026-11-01 x@@2999-01-01 x@@z
        ",
    );
}

#[test]
fn a_name_splits_at_the_last_mark_that_leaves_a_time() {
    check(
        "
        t=1 create a@@b
        t=2 write a@@b 'marked'
        t=3 create a@
        t=4 write a@ 'at'
        t=10 read a@@b@@-1s => marked
        read a@@@-1s => at
        find a@@b@@c => ENOENT
        find @@-1s@@ => ENOENT
        ",
    );
}

#[test]
fn moments_before_the_birth_or_in_the_future_do_not_exist() {
    check(
        "
        t=10 create a
        find a@@2026-11-21 => ENOENT
        find @@2026-11-21 => ENOENT
        find @@-1d => ENOENT
        find @@-500y => ENOENT
        find @@1960-01-01 => ENOENT
        find @@2026-11-22T00:01 => ENOENT
        find @@2999-01-01 => ENOENT
        find @@0xffffffffffffffff => ENOENT
        t=20 find @@2026-11-22T00:00:20 => there
        find @@2026-11-22T00:00:21 => there
        find @@2026-11-22T00:00:24 => ENOENT
        find @@0x0 => ENOENT
        ",
    );
}

#[test]
fn nested_times_are_relative_to_the_same_object() {
    check(
        "
        t=1 create a
        t=10 write a 'old'
        t=20 write a 'new'
        t=30 unlink a
        read @@2026-11-22T00:00:25/a@@2026-11-22T00:00:15 => old
        read @@2026-11-22T00:00:05/@@2026-11-22T00:00:25/a => new
        same @@2026-11-22T00:00:25/.. / => true
        t=40 mkdir d
        t=41 mkdir e
        t=50 rename d e/d
        t=60 same e/d@@2026-11-22T00:00:55/.. e => true
        same e@@2026-11-22T00:00:55/d/@@2026-11-22T00:00:45/.. / => true
        ",
    );
}

#[test]
fn dotdot_in_the_past_stays_in_the_same_moment() {
    let mut world = World::new();
    world.line("t=1 mkdir d");
    world.line("t=2 mkdir d/e");
    world.line("t=10 mkdir x");
    let d = world.node("d").unwrap().inode();
    let node = world.node("@@2026-11-22T00:00:05/d/e/..").unwrap();
    assert_eq!(node, Node::AsOf(d, tid(5)));
    let root = world.node("@@2026-11-22T00:00:05/d/e/../..").unwrap();
    assert_eq!(root, Node::AsOf(Inode::main(1), tid(5)));
    let entries = world.fs.readdir(root, 0, 4096, 24, false, world.now).unwrap();
    assert_eq!(entries[0].node, root);
    assert_eq!(entries[1].node, root);
    assert_eq!(entries.len(), 3);
    let points = world.node("d/@@/..").unwrap();
    assert_eq!(points, Node::Live(d));
}

#[test]
fn sambas_names_work_alone_and_after_a_name() {
    check(
        "
        t=1 mkdir d
        t=2 create d/a
        t=10 write d/a 'one'
        t=20 write d/a 'two'
        read @GMT-2026.11.22-00.00.15/d/a => one
        read d/@GMT-2026.11.22-00.00.15/a => one
        read d/a@@@GMT-2026.11.22-00.00.15 => one
        find @GMT-2026.11.21-00.00.15 => ENOENT
        create @GMT-x
        find @GMT-x => there
        ",
    );
}

#[test]
fn labels_name_moments_for_good() {
    check(
        "
        t=1 create a
        t=2 write a 'one'
        t=10 label before
        t=20 write a 'two'
        read a@@before => one
        ls @@before => a
        labels => before@2
        label before => EEXIST
        t=30 label 'after that'
        read 'a@@after that' => two
        labels => after that@20 before@2
        remount
        read a@@before => one
        unlabel before
        read a@@before => ENOENT
        unlabel before => ENOENT
        label yesterday => EINVAL
        label -5m => EINVAL
        label 2026-11-22 => EINVAL
        label 0x5 => EINVAL
        label a/b => EINVAL
        label a@@b => EINVAL
        label '' => EINVAL
        label @GMT => EINVAL
        label .. => EINVAL
        ",
    );
}

#[test]
fn today_and_yesterday_are_local() {
    let mut world = World::new();
    world.line("t=1 create a");
    world.line("t=100000 write a 'x'");
    world.line("t=100001 size a@@yesterday => 0");
    world.line("find @@today => there");
    world.line("size a@@today => 0");
    assert_eq!(world.fs.resolve_when(MAIN, "yesterday", START + 100000 * SECOND).unwrap(), Some(tid(100000 - 86400)));
    assert_eq!(world.fs.resolve_when(MAIN, "today", START + 100000 * SECOND).unwrap(), Some(tid(86400)));
}

#[test]
fn a_relative_time_means_one_moment_for_up_to_a_second() {
    let world = World::new();
    world.fs.add_label(MAIN, "x", None, START + 1000 * SECOND).unwrap();
    let at = |ns: u64| world.fs.resolve_when(MAIN, "-10s", START + 100 * SECOND + ns).unwrap().unwrap().0 - START;
    assert_eq!(at(0), 90 * SECOND);
    assert_eq!(at(999_999_999), 90 * SECOND);
    assert_eq!(at(SECOND), 91 * SECOND);
    assert_eq!(at(0), 90 * SECOND, "a clock that went back");
}

#[test]
fn what_a_moment_shows_never_changes_even_if_the_clock_goes_back() {
    let mut world = World::new();
    world.line("t=10 create a");
    world.line("t=100 hold p @@2026-11-22T00:01");
    world.line("t=20 create b");
    world.line("ls #p => a");
    // What comes after a look is after the moment that was looked at.
    world.line("t=200 ls @@2026-11-22T00:00:50 => a");
    world.line("ls @@2026-11-22T00:01:00.1 => a b");
}

#[test]
fn the_virtual_directory_lists_moments_and_takes_any() {
    let mut world = World::new();
    let hour = 3600;
    world.line("t=10 mkdir d");
    world.line("create d/a");
    assert_eq!(world.names("d/@@", 1 << 20).unwrap(), ["2026-11-22T00:00:10"], "the minute is not over");
    world.line("label first");
    world.line(&format!("t={} write d/a 'x'", 50 * hour));
    let names = world.names("d/@@", 1 << 20).unwrap();
    for name in
        ["first", "2026-11-22T00:01", "2026-11-23T00:00", "2026-11-24T00:00", "2026-11-24T01:00", "2026-11-23T03:00"]
    {
        assert!(names.iter().any(|n| n == name), "{name} in {names:?}");
    }
    for name in ["2026-11-22T00:00", "2026-11-23T02:00", "2026-11-24T03:00"] {
        assert!(!names.iter().any(|n| n == name), "{name} in {names:?}");
    }
    assert_eq!(world.names("d/@@", 64).unwrap(), names, "in small replies");
    let mut tids = HashSet::new();
    for name in &names {
        let node = world.node(&format!("d/@@/{name}")).unwrap();
        let Node::AsOf(object, tid) = node else { panic!("{node:?}") };
        assert_eq!(object, world.node("d").unwrap().inode());
        tids.insert(tid);
    }
    assert!(tids.len() >= names.len() - 1);
    world.line("ls d/@@/first => a");
    world.line("ls d/@@/-49h => a");
    world.line("find d/@@/nonsense => ENOENT");
    world.line("stat d/@@ => 40555 0:0 links=2 size=0");
    world.line("ls d => a");
}

#[test]
fn numbers_shown_never_make_two_moments_look_like_one_file() {
    let mut world = World::new();
    world.line("t=1 create a");
    world.line("t=10 create b");
    let mut shown = HashSet::new();
    for path in ["a", "b", "a@@2026-11-22T00:00:05", "a@@2026-11-22T00:00:06", "b@@2026-11-22T00:00:10", "@@"] {
        assert!(shown.insert(world.node(path).unwrap().shown_ino(false)), "{path}");
    }
    let number = world.node("a").unwrap().inode().object.0;
    assert_eq!(world.node("a@@2026-11-22T00:00:05").unwrap().shown_ino(true), number);
}

#[test]
fn only_texts_that_stay_may_be_cached_for_long() {
    let mut world = World::new();
    world.line("t=1 create a");
    world.line("t=5 label l");
    world.line("t=100 create b");
    let steady = |name: &str| world.fs.lookup(world.fs.root(), name.as_bytes(), world.now).unwrap().steady;
    assert!(steady("a") && steady("a@@2026-11-22T00:00:05") && steady("@@"));
    assert!(!steady("a@@-5s") && !steady("a@@l") && !steady("a@@now"));
    let later = world.now + 100 * SECOND;
    assert_eq!(world.fs.resolve_when(MAIN, "now", later).unwrap(), Some(tid(100)));
}

#[test]
fn a_time_since_which_nothing_was_written_is_the_same_moment_when_something_is() {
    let mut world = World::new();
    world.line("t=1 create a");
    world.line("t=2 write a 'one'");
    let time = b"a@@2026-11-22T00:02:30";
    let look = |world: &World| world.fs.lookup(world.fs.root(), time, START + 200 * SECOND).unwrap();
    let before = look(&world);
    assert_eq!((before.node, before.steady), (Node::AsOf(world.node("a").unwrap().inode(), tid(150)), true));
    // A clock that lags behind that of whoever has looked.
    world.line("t=149 write a 'two'");
    let after = look(&world);
    assert_eq!((after.node, after.steady), (before.node, true));
    assert!(world.fs.store().tid() > tid(150));
    world.line("read a@@2026-11-22T00:02:30 => one");
    world.line("read a => two");
}

#[test]
fn the_log_tells_every_version_of_a_path_its_removals_too() {
    check(
        "
        t=1 mkdir d
        t=10 create d/a
        t=11 write d/a 'one'
        t=12 append d/a 'two'
        t=13 chmod d/a 600
        t=14 setx d/a user.x y
        t=20 unlink d/a
        t=30 create d/b
        t=31 rename d/b d/a
        t=32 write d/a 'three'
        t=40 link d/a d/c
        t=50 unlink d/c
        t=60 rename d/a e
        t=70 create d/a
        t=80 create d/z
        t=81 rename d/z d/a
        log d/a => 10:Created:0 11:Written:3 12:Written:6 13:Attributes:6 14:Attributes:6 20:Removed:6 31:RenamedHere:0 32:Written:5 40:Attributes:5 50:Attributes:5 60:RenamedAway:5 70:Created:0 81:Replaced:0 81:RenamedHere:0
        log d/c => 40:Linked:5 50:Removed:5
        log d/a coalesce => 10:Created:0 12:Written:6 13:Attributes:6 14:Attributes:6 20:Removed:6 31:RenamedHere:0 32:Written:5 40:Attributes:5 50:Attributes:5 60:RenamedAway:5 70:Created:0 81:Replaced:0 81:RenamedHere:0
        log d/nothing => ENOENT
        log nothing/a => ENOENT
        log e => 60:RenamedHere:5
        ",
    );
}

#[test]
fn the_log_of_a_path_ends_where_a_directory_around_it_goes_elsewhere() {
    check(
        "
        t=1 mkdir q
        t=2 mkdir q/sub
        t=10 create q/sub/f
        t=11 write q/sub/f 'one'
        t=20 rename q r
        t=21 write r/sub/f 'three'
        log q/sub/f => 10:Created:0 11:Written:3 20:RenamedAway:3
        log r/sub/f => 10:Created:0 11:Written:3 21:Written:5
        read r/sub/f@@2026-11-22T00:00:12 => one
        t=30 mkdir q
        t=31 mkdir q/sub
        t=32 create q/sub/f
        t=40 rename r old
        log q/sub/f => 10:Created:0 11:Written:3 20:RenamedAway:3 32:Created:0
        log r/sub/f => 20:RenamedHere:3 21:Written:5 40:RenamedAway:5
        ",
    );
}

#[test]
fn the_log_tells_once_what_is_in_a_directory_that_went_elsewhere_and_came_back() {
    check(
        "
        t=1 mkdir d
        t=2 mkdir d/sub
        t=10 create d/c
        t=11 create d/sub/c
        t=20 rename d e
        t=25 create e/new
        t=30 rename e d
        t=31 write d/c 'one'
        log d/c => 10:Created:0 31:Written:3
        log d/sub/c => 11:Created:0
        log d/new => 25:Created:0
        size d/new@@2026-11-22T00:00:26 => 0
        // Another one meanwhile.
        t=40 rename d e
        t=41 mkdir d
        t=42 create d/c
        t=50 rename d other
        t=51 rename e d
        log d/c => 10:Created:0 31:Written:3 42:Created:0 50:RenamedAway:0
        // What is gone is told for each of the times that it was there.
        t=60 unlink d/c
        t=61 unlink d/new
        t=62 unlink d/sub/c
        t=63 rmdir d/sub
        t=64 rmdir d
        log d/c => 10:Created:0 20:RenamedAway:0 30:RenamedHere:0 31:Written:3 40:RenamedAway:3 42:Created:0 50:RenamedAway:0 51:RenamedHere:3 60:Removed:3
        ",
    );
}

#[test]
fn the_log_finds_what_is_in_deleted_directories() {
    check(
        "
        t=1 mkdir d
        t=2 create d/a
        t=3 write d/a 'x'
        hold h d/a
        hold d d
        t=10 unlink d/a
        forget #h
        t=20 rmdir d
        forget #d
        log d/a => 2:Created:0 3:Written:1 10:Removed:1
        log d => 1:Created:0 2:Written:1 10:Written:0 20:Removed:0
        ",
    );
}

#[test]
fn the_log_of_a_path_in_the_past_is_of_what_it_led_to_then() {
    let mut world = World::new();
    for line in [
        "t=1 mkdir a",
        "t=2 mkdir b",
        "t=3 create a/f",
        "t=4 write a/f 'what was there'",
        "t=5 create b/f",
        "t=20 rename a c",
        "t=21 rename b a",
        "t=22 write a/f 'another'",
        "t=23 write c/f 'more'",
    ] {
        world.line(line);
    }
    let log = |path: &[&[u8]], to, present| {
        let entries = world.fs.log(ROOT, path, tid(to), present, false).unwrap();
        entries.into_iter().map(|e| (e.tid, e.attr.size)).collect::<Vec<_>>()
    };
    let then = vec![(tid(3), 0), (tid(4), 14)];
    assert_eq!(log(&[b"a", b"f"], 10, 0), then);
    assert_eq!(log(&[b"c", b"f"], 10, 1), then, "c is a directory of now, whose past is looked into");
    assert!(world.fs.log(ROOT, &[b"c", b"f"], tid(10), 0, false).is_err(), "nothing had that name then");
    assert_eq!(log(&[b"a", b"f"], 10, 1), [(tid(5), 0)]);
    assert_eq!(log(&[b"a", b"f"], 22, 0).last(), Some(&(tid(22), 7)));
}
