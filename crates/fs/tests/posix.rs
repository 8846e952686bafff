//! What POSIX and Linux promise, one sentence per test.

mod common;

use common::{World, check};

#[test]
fn a_new_file_is_empty_and_belongs_to_its_maker() {
    check(
        "
        as 1000 100
        umask 022
        t=5 create a
        stat a => 100644 1000:100 links=1 size=0
        times a => a5 m5 c5 b5
        read a =>
        create a => EEXIST
        open-create a => there
        mkdir d
        stat d => 40755 1000:100 links=2 size=0
        open-create d => EISDIR
        mknod p fifo
        stat p => 10644 1000:100 links=1 size=0
        mknod c char 259
        mknod x dir => EINVAL
        open-create p => EEXIST
        symlink a l
        stat l => 120777 1000:100 links=1 size=1
        readlink l => a
        readlink a => EINVAL
        ls / => a c d l p
        ",
    );
}

#[test]
fn making_removing_and_renaming_changes_the_times_of_directories_and_nothing_else_does() {
    check(
        "
        t=1 mkdir d
        t=10 create d/a
        times d => a1 m10 c10 b1
        t=11 write d/a 'x'
        times d => a1 m10 c10 b1
        times d/a => a10 m11 c11 b10
        t=20 link d/a d/b
        times d => a1 m20 c20 b1
        times d/a => a10 m11 c20 b10
        t=30 unlink d/b
        times d => a1 m30 c30 b1
        times d/a => a10 m11 c30 b10
        t=40 mkdir e
        t=41 rename d/a e/a
        times d => a1 m41 c41 b1
        times e => a40 m41 c41 b40
        times e/a => a10 m11 c41 b10
        t=50 rmdir d
        times / => a0 m50 c50 b0
        t=60 unlink nothing => ENOENT
        t=61 mkdir e => EEXIST
        times / => a0 m50 c50 b0
        t=70 chmod e/a 600
        times e/a => a10 m11 c70 b10
        times e => a40 m41 c41 b40
        t=80 read e/a => x
        times e/a => a10 m11 c70 b10
        ",
    );
}

#[test]
fn hard_links_are_one_file() {
    check(
        "
        create a
        link a b
        nlink b => 2
        write b 'both'
        read a => both
        same a b => true
        link a b => EEXIST
        unlink a
        nlink b => 1
        mkdir d
        link d e => EPERM
        link b d/b
        nlink d/b => 2
        symlink b s
        link s s2
        readlink s2 => b
        ",
    );
}

#[test]
fn an_unlinked_file_lives_as_long_as_it_is_open() {
    check(
        "
        create a
        write a 'still here'
        hold h a
        t=50 unlink a
        find a => ENOENT
        read #h => still here
        stat #h => 100666 0:0 links=0 size=10
        times #h => a1 m2 c50 b1
        append #h '!'
        read #h => still here!
        forget #h
        read #h => ESTALE
        find #h => ESTALE
        ",
    );
}

#[test]
fn a_crash_leaves_no_orphan_behind() {
    check(
        "
        create a
        write a 'x*100'
        mkdir d
        hold h a
        unlink a
        rmdir d
        tmpfile t /
        create kept
        remount
        reap => 3
        find #h => ESTALE
        find #t => ESTALE
        find kept => there
        reap => 0
        ",
    );
}

#[test]
fn forgetting_a_file_with_a_name_changes_nothing() {
    check(
        "
        create a
        hold h a
        link a b
        unlink a
        forget #h
        find b => there
        ",
    );
}

#[test]
fn a_file_without_a_name_can_get_one() {
    check(
        "
        mkdir d
        tmpfile t d
        nlink #t => 0
        write #t 'found'
        ls d =>
        link #t d/named
        nlink d/named => 1
        read d/named => found
        forget #t
        remount
        reap => 0
        read d/named => found
        ",
    );
}

#[test]
fn only_empty_directories_can_be_removed_and_nothing_is_made_in_removed_ones() {
    check(
        "
        mkdir d
        nlink / => 3
        create d/a
        rmdir d => ENOTEMPTY
        unlink d => EISDIR
        rmdir d/a => ENOTDIR
        rmdir d/. => EINVAL
        rmdir d/.. => ENOTEMPTY
        unlink d/a
        hold h d
        t=90 rmdir d
        nlink / => 2
        nlink #h => 0
        times #h => a1 m9 c90 b1
        create #h/a => ENOENT
        mkdir #h/a => ENOENT
        unlink #h/a => ENOENT
        tmpfile t #h => ENOENT
        create b
        link b #h/b => ENOENT
        rename b #h/b => ENOENT
        forget #h
        create #h/a => ESTALE
        ",
    );
}

#[test]
fn names_have_255_bytes_at_most() {
    let mut world = World::new();
    let (long, longer) = ("n".repeat(255), "n".repeat(256));
    world.line(&format!("create {long}"));
    world.line(&format!("find {long} => there"));
    for command in ["create", "mkdir", "unlink", "rmdir", "find", "symlink x", "rename a", "link / "] {
        let expected = if command == "link / " { "EPERM" } else { "ENAMETOOLONG" };
        world.line(&format!("{command} {longer} => {expected}"));
    }
    world.line(&format!("rename {long} {longer} => ENAMETOOLONG"));
    world.line(&format!("symlink {} s => ENAMETOOLONG", "t".repeat(4096)));
    world.line(&format!("symlink {} s", "t".repeat(4095)));
    world.line("symlink '' e => ENOENT");
    world.line("create . => EEXIST");
    world.line("mkdir .. => EEXIST");
}

#[test]
fn rename_replaces_what_is_there_if_it_is_of_the_same_kind() {
    check(
        "
        create a
        write a 'a'
        create b
        link b b2
        t=20 rename a b
        read b => a
        find a => ENOENT
        nlink b2 => 1
        times b2 => a3 m3 c20 b3
        mkdir d
        mkdir e
        create e/x
        rename b d => EISDIR
        rename d b => ENOTDIR
        rename d e => ENOTEMPTY
        unlink e/x
        nlink / => 4
        rename d e
        nlink / => 3
        rename nothing b => ENOENT
        rename b b
        read b => a
        link b c
        rename b c
        read b => a
        nlink c => 2
        rename . x => EBUSY
        rename b .. => EBUSY
        ",
    );
}

#[test]
fn rename_without_replacing_and_exchanging() {
    check(
        "
        create a
        write a 'a'
        mkdir d
        create d/b
        write d/b 'b'
        rename a d/b noreplace => EEXIST
        rename a d/c noreplace
        read d/c => a
        rename d/c a
        rename a nothing exchange => ENOENT
        t=40 rename a d/b exchange
        read a => b
        read d/b => a
        times / => a0 m40 c40 b0
        times d => a3 m40 c40 b3
        times a => a4 m5 c40 b4
        times d/b => a1 m2 c40 b1
        mkdir e
        mkdir e/sub
        nlink / => 4
        rename a e exchange
        nlink / => 4
        ls a => sub
        read e => b
        rename a/sub e exchange
        nlink / => 5
        nlink a => 2
        same e/.. / => true
        read a/sub => b
        ",
    );
}

#[test]
fn a_rename_may_leave_a_whiteout_at_the_old_name() {
    check(
        "
        create a
        write a 'a'
        mkdir d
        mkdir e
        create e/old
        rename a d/a whiteout
        read d/a => a
        ls / => a d e
        mode a => 0
        t=40 rename d/a e/old whiteout
        read e/old => a
        ls d => a
        ls e => old
        times d => a3 m40 c40 b3
        rename e d/e whiteout
        nlink / => 3
        nlink d => 3
        ls / => a d e
        ls d/e => old
        read @@2026-11-22T00:00:39/d/a => a
        unlink a
        unlink e
        rename nothing x whiteout => ENOENT
        rename d/e d/e whiteout
        ls d/e => old
        ",
    );
}

#[test]
fn a_directory_takes_its_dotdot_along_and_never_moves_into_itself() {
    check(
        "
        mkdir a
        mkdir a/b
        mkdir a/b/c
        mkdir z
        rename a a/x => EINVAL
        rename a a/b/c/x => EINVAL
        rename a a/b exchange => EINVAL
        rename a/b a exchange => EINVAL
        rename a/b/c a => ENOTEMPTY
        rename a/b z/b
        same z/b/.. z => true
        nlink a => 2
        nlink z => 3
        same z/b/c/.. z/b => true
        rename z/b/c a exchange
        same a/.. / => true
        same z/b/c/.. z/b => true
        same ./.. / => true
        ",
    );
}

#[test]
fn a_set_group_id_directory_hands_its_group_down() {
    check(
        "
        as 1000 100
        mkdir d
        chown d omit 555
        chmod d 2775
        create d/f
        stat d/f => 100666 1000:555 links=1 size=0
        mkdir d/sub
        stat d/sub => 42777 1000:555 links=2 size=0
        symlink x d/l
        stat d/l => 120777 1000:555 links=1 size=1
        tmpfile t d
        stat #t => 100666 1000:555 links=0 size=0
        ",
    );
}

#[test]
fn set_id_bits_go_with_a_chown_a_write_or_a_truncation_of_somebody_unprivileged() {
    check(
        "
        create a
        write a '12345'
        chmod a 6755
        write a 'x'
        mode a => 6755
        write a 'x' kill
        mode a => 755
        chmod a 6644
        write a 'x' kill
        mode a => 2644
        chmod a 6755
        chown a 5 omit
        mode a => 755
        chmod a 6755
        chown a omit 5
        mode a => 755
        chmod a 6755
        t=50 chown a omit omit
        mode a => 755
        times a => a1 m9 c50 b1
        mkdir d
        chmod d 6755
        chown d 5 5
        mode d => 6755
        chmod a 101777
        stat a => 101777 5:5 links=1 size=5
        ",
    );
}

#[test]
fn times_are_set_as_asked_for_before_1970_and_far_ahead() {
    check(
        "
        t=1 create a
        t=10 utime a 5 6
        times a => a5 m6 c10 b1
        t=11 utime a omit -9000000000
        times a => a5 m-9000000000 c11 b1
        t=12 utime a 900000000000 omit
        times a => a900000000000 m-9000000000 c12 b1
        t=13 utime a now now
        times a => a13 m13 c13 b1
        remount
        times a => a13 m13 c13 b1
        ",
    );
}

#[test]
fn reads_end_at_the_end_and_holes_are_zeroes() {
    check(
        "
        create a
        write a 'hello'
        read a 1 3 => ell
        read a 3 100 => lo
        read a 5 1 =>
        read a 100 1 =>
        write a 'x' @10
        read a => hello0*5 x
        bytes a => 6
        truncate a 3
        read a => hel
        bytes a => 3
        truncate a 8
        read a => hel0*5
        truncate a 0
        bytes a => 0
        mkdir d
        read d => EISDIR
        write d 'x' => EISDIR
        truncate d 0 => EISDIR
        mknod p fifo
        truncate p 0 => EINVAL
        ",
    );
}

#[test]
fn an_append_goes_to_the_end_as_it_is_then() {
    check(
        "
        create a
        append a 'one ' where => 0 4
        append a 'two ' where => 4 8
        truncate a 4
        append a 'three' where => 4 9
        read a => one three
        ",
    );
}

#[test]
fn truncation_changes_both_times_even_to_the_same_size() {
    check(
        "
        t=1 create a
        t=2 write a 'x'
        t=10 truncate a 1
        times a => a1 m10 c10 b1
        t=11 write a ''
        times a => a1 m10 c10 b1
        ",
    );
}

#[test]
fn a_file_ends_at_two_to_the_63_minus_1() {
    check(
        "
        create a
        write a 'x' @9223372036854775806
        size a => 9223372036854775807
        write a 'x' @9223372036854775807 => EFBIG
        append a 'x' => EFBIG
        write a 'xy' @9223372036854775806 => EFBIG
        truncate a 9223372036854775808 => EFBIG
        read a 9223372036854775800 100 => 0*6 x
        seek data a 0 => 9223372036854775806
        bytes a => 1
        allocate a 9223372036854775807 1 => EFBIG
        insert a 0 4k => EFBIG
        truncate a 5
        bytes a => 0
        truncate a max
        size a => 9223372036854775807
        copy a 0 a 100 18446744073709551615 => EINVAL
        ",
    );
}

#[test]
fn fallocate_does_what_each_mode_says() {
    check(
        "
        create a
        t=10 allocate a 0 100
        times a => a1 m10 c10 b1
        read a => 0*100
        bytes a => 0
        t=11 allocate-keep a 50 100
        size a => 100
        times a => a1 m10 c11 b1
        write a 'x*100'
        punch a 10 80
        read a => x*10 0*80 x*10
        bytes a => 20
        punch a 95 1000
        read a => x*10 0*80 xxxxx0*5
        zero a 0 5
        read a => 0*5 xxxxx0*80 xxxxx0*5
        zero-keep a 5 200
        read a => 0*100
        zero a 50 100
        size a => 150
        punch a 0 0 => EINVAL
        mkdir d
        punch d 0 1 => EISDIR
        mknod p fifo
        punch p 0 1 => ESPIPE
        mknod c char
        punch c 0 1 => ENODEV
        ",
    );
}

#[test]
fn collapse_and_insert_move_the_rest_of_a_file() {
    check(
        "
        create a
        write a 'a*4096' @0
        write a 'b*4096' @4096
        write a 'c*5000' @8192
        collapse a 4096 4096
        read a => a*4096 c*5000
        size a => 9096
        bytes a => 9096
        insert a 4096 8192
        read a => a*4096 0*8192 c*5000
        size a => 17288
        bytes a => 9096
        collapse a 0 100 => EINVAL
        insert a 100 4096 => EINVAL
        collapse a 16384 4096 => EINVAL
        insert a 20480 4096 => EINVAL
        insert a 0 4096
        read a 0 8192 => 0*4096 a*4096
        bytes a => 9096
        ",
    );
}

#[test]
fn seeking_finds_data_and_holes() {
    check(
        "
        create a
        truncate a 300k
        write a 'x' @100k
        write a 'y*1000' @200k
        seek data a 0 => 102400
        seek hole a 0 => 0
        seek hole a 102400 => 102401
        seek data a 102401 => 204800
        seek data a 204900 => 204900
        seek hole a 204900 => 205800
        seek data a 205800 => ENXIO
        seek hole a 205800 => 205800
        seek hole a 300k => ENXIO
        seek data a 300k => ENXIO
        write a 'z*1000' @306200
        seek hole a 306200 => 307200
        ",
    );
}

#[test]
fn copying_a_range_shares_it_and_clips_it_at_the_end() {
    check(
        "
        create a
        write a 'abcdefghij'
        create b
        copy a 2 b 5 4 => 4
        read b => 0*5 cdef
        bytes b => 4
        copy a 8 b 0 100 => 2
        read b => ij0*3 cdef
        write a 'XXXXXXXXXX'
        read b => ij0*3 cdef
        copy a 10 b 0 5 => 0
        copy a 0 a 5 6 => EINVAL
        copy b 5 b 0 4 => 4
        read b => cdef0*1 cdef
        unlink a
        mkdir d
        copy d 0 b 0 1 => EISDIR
        copy b 0 d 0 1 => EISDIR
        ",
    );
}

#[test]
fn a_copy_from_the_past_brings_it_back() {
    check(
        "
        t=1 create a
        t=2 write a 'the old text'
        t=10 write a 'NEW'
        t=20 copy a@@-15s 0 a 0 100 => 12
        read a => the old text
        read a@@2026-11-22T00:00:10Z => NEW old text
        ",
    );
}

#[test]
fn unknown_objects_are_stale_and_handles_can_be_looked_up_by_dot() {
    check(
        "
        mkdir d
        create d/a
        hold h d
        find #h/. => there
        same #h/.. / => true
        hold f d/a
        find #f/. => there
        unlink d/a
        rmdir d
        forget #h
        forget #f
        find #h/. => ESTALE
        find #f/. => ESTALE
        ",
    );
}

#[test]
fn a_path_can_be_told_for_messages() {
    check(
        "
        mkdir a
        mkdir a/b
        create a/b/c
        path a/b/c => /a/b/c
        path / => /
        hold h a/b/c
        unlink a/b/c
        path #h => object 4/
        ",
    );
}

#[test]
fn a_store_has_one_filesystem() {
    let world = World::new();
    let again = darner_fs::Fs::create(world.fs.store().clone(), 0, 0, 0o755, common::START);
    assert_eq!(again.err().map(|error| error.errno()), Some(libc::EEXIST));
    let empty = darner_fs::Fs::open(common::open_store(&common::new_disk()));
    assert_eq!(empty.err().map(|error| error.errno()), Some(libc::ENODEV));
}

#[test]
fn statfs_counts_objects() {
    let mut world = World::new();
    let before = world.fs.statfs(world.fs.root()).unwrap();
    world.line("create a");
    let after = world.fs.statfs(world.fs.root()).unwrap();
    assert_eq!(after.files - after.files_free, before.files - before.files_free + 1);
    assert!(after.free <= after.blocks && after.block == 4096 && after.name_max == 255);
}
