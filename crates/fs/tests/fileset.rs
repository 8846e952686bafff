//! Filesets and clones, one sentence per test.

mod common;

use common::{World, check};
use darner_fs::{Inode, MAIN, Node};

#[test]
fn a_fileset_is_a_directory_in_the_main_root_with_a_life_of_its_own() {
    check(
        "
        as 1000 100
        create-fileset home
        stat home => 40755 1000:100 links=2 size=0
        stat / => 40755 0:0 links=3 size=1
        ls / => home
        ls /home =>
        create home/a
        write home/a 'hello'
        mkdir home/d
        create home/d/deep
        same home/d/.. home => true
        same home/.. / => true
        path home/d/deep => /home/d/deep
        filesets => main:1:0 home:4:5
        create b
        filesets => main:2:0 home:4:5
        remount
        filesets => main:2:0 home:4:5
        read home/a => hello
        stat home => 40755 1000:100 links=3 size=2
        ",
    );
}

#[test]
fn the_past_goes_through_filesets_as_they_were_then() {
    check(
        "
        t=10 create-fileset home
        t=20 create home/a
        t=21 write home/a 'one'
        t=30 write home/a 'two'
        t=40 read @@2026-11-22T00:00:25Z/home/a => one
        t=41 read home@@2026-11-22T00:00:25Z/a => one
        t=42 read home/a@@2026-11-22T00:00:25Z => one
        t=43 read home/@@2026-11-22T00:00:25Z/a => one
        t=44 ls home@@2026-11-22T00:00:15Z =>
        t=45 find home@@2026-11-22T00:00:05Z => ENOENT
        t=46 find home/@@2026-11-22T00:00:05Z => ENOENT
        t=47 ls @@2026-11-22T00:00:05Z =>
        t=48 same @@2026-11-22T00:00:25Z/home/.. @@2026-11-22T00:00:25Z => true
        t=50 remove-fileset home force
        t=60 find home => ENOENT
        t=61 read home@@2026-11-22T00:00:25Z/a => one
        t=62 read @@2026-11-22T00:00:35Z/home/a => two
        t=63 log home/a => 20:Created:0 21:Written:3 30:Written:3 50:Removed:3
        ",
    );
}

#[test]
fn a_filesets_root_is_busy_to_everybody_but_its_commands() {
    check(
        "
        create-fileset home
        create-fileset other
        mkdir d
        create f
        rmdir home => EBUSY
        unlink home => EBUSY
        rename home x => EBUSY
        rename d home => EBUSY
        rename d home exchange => EBUSY
        rename home d exchange => EBUSY
        rename home other => EBUSY
        rename home other/x => EBUSY
        rename d other/x => EXDEV
        rename d home noreplace => EEXIST
        link home x => EXDEV
        create home => EEXIST
        open-create home => EISDIR
        chmod home 700
        mode home => 700
        rename-fileset home house
        ls / => d f house other
        mode house => 700
        rename-fileset house other => EEXIST
        rename-fileset house d => EEXIST
        rename-fileset home x => ENOENT
        rename-fileset main x => EBUSY
        remove-fileset main force => EBUSY
        ",
    );
}

#[test]
fn names_and_renames_stay_within_a_fileset_and_copies_share_across() {
    check(
        "
        create-fileset home
        create a
        write a x*100000
        mkdir d
        create home/b
        rename a home/a => EXDEV
        rename d home/d => EXDEV
        rename home/b b => EXDEV
        link a home/a => EXDEV
        link home/b b => EXDEV
        copy a 0 home/b 10 100000 => 100000
        size home/b => 100010
        bytes home/b => 100000
        read home/b 8 4 => 0*2 xx
        unlink a
        remount
        read home/b 100000 10 => x*10
        ",
    );
}

#[test]
fn what_goes_beyond_a_limit_is_refused_and_deleting_goes_on() {
    check(
        "
        create-fileset home
        limit home 100000 4
        create home/a
        write home/a x*90000
        write home/a y*90000
        append home/a z*10001 => EDQUOT
        append home/a z*10000
        append home/a z => EDQUOT
        truncate home/a 1000000
        write home/a z @999999 => EDQUOT
        write home/a z @0
        create home/b
        create home/c
        mkdir home/d => EDQUOT
        symlink x home/d => EDQUOT
        link home/a home/d
        unlink home/c
        remount
        mkdir home/d => EEXIST
        mkdir home/e => EDQUOT
        reap => 1
        mkdir home/e
        mkdir home/g => EDQUOT
        punch home/a 0 50000
        rename home/b home/c
        append home/a z*50000
        append home/a z => EDQUOT
        create elsewhere
        limit home 10 1
        read home/c =>
        unlink home/c
        unlink home/d
        create home/c => EDQUOT
        limit home 0 0
        create home/c
        limit main 5 0
        write elsewhere 123456 => EDQUOT
        write elsewhere 12345
        remount
        append elsewhere 6 => EDQUOT
        reap => 1
        filesets => main:2:5 home:4:100000
        ",
    );
}

#[test]
fn statfs_of_a_fileset_with_limits_shows_those() {
    let mut world = World::new();
    for line in ["create-fileset home", "limit home 1048576 100", "create home/a", "write home/a x*409600"] {
        world.line(line);
    }
    let home = world.fs.statfs(world.node("home/a").unwrap()).unwrap();
    assert_eq!((home.blocks, home.free), (256, 156));
    assert_eq!((home.files, home.files_free), (100, 98));
    let main = world.fs.statfs(world.fs.root()).unwrap();
    assert!(main.blocks > 256 && main.files > 100);
}

#[test]
fn numbers_of_filesets_are_never_given_again() {
    let mut world = World::new();
    let mut seen = std::collections::HashSet::from([MAIN]);
    for round in 0..6 {
        world.line("create-fileset x");
        assert!(seen.insert(world.node("x").unwrap().inode().fileset), "round {round}");
        world.line("remove-fileset x");
        if round % 2 == 0 {
            world.line("remount");
        }
    }
    world.check_counts();
}

#[test]
fn a_removed_fileset_is_stale_to_whoever_has_it_open() {
    check(
        "
        create-fileset home
        create home/a
        write home/a text
        create home/b
        hold a home/a
        hold b home/b
        hold home home
        unlink home/b
        remove-fileset home => ENOTEMPTY
        remove-fileset home force
        remove-fileset home => ENOENT
        find #a => ESTALE
        read #a => ESTALE
        write #a more => ESTALE
        create #home/c => ESTALE
        ls #home => ESTALE
        forget #b
        create-fileset home
        ls home =>
        remount
        reap => 0
        filesets => main:1:0 home:1:0
        ",
    );
}

#[test]
fn orphans_and_labels_are_each_filesets_own() {
    check(
        "
        create-fileset home
        create home/a
        write home/a text
        hold a home/a
        unlink home/a
        create b
        hold b b
        unlink b
        filesets => main:2:0 home:2:4
        forget #a
        forget #b
        filesets => main:1:0 home:1:0
        tmpfile t home
        remount
        reap => 1
        create home/f
        write home/f one
        label here home
        write home/f two
        labels =>
        labels home => here@17
        read home/f@@here => one
        read home@@here/f => one
        find @@here => ENOENT
        label here
        ls @@here => home
        read home@@here/f => two
        ",
    );
}

#[test]
fn a_clone_begins_as_its_base_was_and_both_go_their_own_ways() {
    check(
        "
        create-fileset home
        mkdir home/d
        create home/d/a
        write home/d/a x*200000
        setx home/d user.a one
        symlink d home/l
        clone home copy
        filesets => main:1:0 home:4:200000 copy:4:200000
        ls / => copy home
        ls copy => d l
        same copy/.. / => true
        same copy home => false
        write copy/d/a Y @100000
        read copy/d/a 99999 3 => xYx
        read home/d/a 99999 3 => xxx
        write home/d/a Z @100001
        read copy/d/a 99999 4 => xYxx
        getx copy/d user.a => one
        setx copy/d user.a two
        getx home/d user.a => one
        readlink copy/l => d
        unlink copy/l
        ls copy => d
        ls home => d l
        rename copy/d/a copy/b
        ls copy/d =>
        ls home/d => a
        truncate copy/b 10
        create copy/c
        unlink copy/c
        remount
        size copy/b => 10
        read copy/b => x*10
        size home/d/a => 200000
        reap => 2
        filesets => main:1:0 home:4:200000 copy:3:10
        ",
    );
}

#[test]
fn a_clone_of_a_moment_shows_that_and_is_not_there_before_it_was_made() {
    check(
        "
        t=10 create-fileset home
        t=11 create home/a
        t=12 write home/a one
        t=13 create home/b
        t=14 link home/b home/c
        t=20 write home/a three
        t=21 unlink home/b
        t=30 clone home@@2026-11-22T00:00:15Z copy
        t=31 ls copy => a b c
        t=32 read copy/a => one
        t=33 filesets => main:1:0 home:3:5 copy:3:3
        t=40 write copy/a two
        t=50 read copy/a@@2026-11-22T00:00:35Z => one
        t=51 find copy/a@@2026-11-22T00:00:29Z => ENOENT
        t=52 find copy@@2026-11-22T00:00:29Z => ENOENT
        t=53 find copy/@@2026-11-22T00:00:29Z => ENOENT
        t=54 log copy/a => 12@30:Written:3 40:Written:3
        t=55 clone home@@2026-11-22T00:00:05Z early => ENOENT
        t=60 clone copy@@2026-11-22T00:00:35Z again
        t=61 read again/a => one
        t=62 create again/new
        t=63 remove-fileset copy force => EBUSY
        t=64 remove-fileset home force => EBUSY
        t=65 remove-fileset again force
        t=66 remove-fileset copy force
        t=67 remove-fileset home force
        t=70 read again@@2026-11-22T00:01:04Z/a => one
        t=71 ls again@@2026-11-22T00:01:04Z => a b c new
        t=72 clone home@@2026-11-22T00:00:15Z home
        t=73 read home/a => one
        t=74 remount
        t=75 ls home => a b c
        ",
    );
}

#[test]
fn the_log_of_what_is_in_a_clone_tells_only_moments_at_which_the_clone_is_there() {
    check(
        "
        t=10 create-fileset home
        t=11 create home/a
        t=12 write home/a one
        t=20 write home/a three
        t=30 clone home@@2026-11-22T00:00:15Z copy
        t=31 log copy/a => 12@30:Written:3
        t=32 write copy/a again
        t=33 log copy/a => 12@30:Written:3 32:Written:5
        t=34 clone copy third
        t=35 log third/a => 32@34:Written:5
        t=40 remove-fileset third force
        t=41 log third/a => 34:RenamedHere:5 40:Removed:5
        t=42 remove-fileset copy force
        t=43 remove-fileset home force
        t=50 clone home@@2026-11-22T00:00:25Z home
        t=51 log home/a => 11:Created:0 12:Written:3 20:Written:5 20@50:Written:5 43:Removed:5
        t=52 read home/a@@2026-11-22T00:00:50Z => three
        ",
    );
}

#[test]
fn a_clone_of_the_whole_leaves_the_other_filesets_out() {
    check(
        "
        create-fileset home
        create home/a
        create b
        mkdir d
        clone / copy
        ls copy => b d
        stat copy => 40755 0:0 links=3 size=2
        ls / => b copy d home
        clone /@@now again
        ls again => b d
        clone copy third
        create third/home
        ls third => b d home
        ",
    );
}

#[test]
fn what_is_open_without_a_name_is_not_cloned() {
    check(
        "
        create-fileset home
        create home/a
        write home/a text
        hold a home/a
        unlink home/a
        clone home copy
        filesets => main:1:0 home:2:4 copy:1:0
        forget #a
        filesets => main:1:0 home:1:0 copy:1:0
        ",
    );
}

#[test]
fn names_that_a_fileset_can_not_have_are_refused() {
    check(
        "
        create f
        create-fileset f => EEXIST
        create-fileset main => EEXIST
        create-fileset a/b => EINVAL
        create-fileset . => EINVAL
        create-fileset a@@b => EINVAL
        create-fileset x
        clone x x => EEXIST
        clone x main => EEXIST
        mkdir x/d
        clone x/d y => EINVAL
        ",
    );
}

#[test]
fn one_object_of_a_clone_and_its_base_is_not_a_hard_link() {
    let mut world = World::new();
    for line in ["create-fileset home", "create home/a", "clone home copy"] {
        world.line(line);
    }
    let (a, b) = (world.node("home/a").unwrap(), world.node("copy/a").unwrap());
    assert_eq!(a.inode().object, b.inode().object);
    let tid = world.fs.store().tid();
    let nodes = [a, b, Node::AsOf(a.inode(), tid), Node::AsOf(b.inode(), tid), Node::Points(a.inode())];
    let shown: std::collections::HashSet<u64> = nodes.iter().map(|node| node.shown_ino(false)).collect();
    assert_eq!(shown.len(), nodes.len());
    assert_eq!(Node::Live(Inode::main(7)).shown_ino(false), 7, "the main fileset's numbers are plain");
    assert_eq!(world.fs.check().unwrap().findings, Vec::<String>::new());
}
