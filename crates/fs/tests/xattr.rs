//! Extended attributes and access control lists.

mod common;

use common::{World, check};

#[test]
fn attributes_are_set_listed_and_removed() {
    check(
        "
        t=1 create a
        getx a user.x => ENODATA
        listx a =>
        t=10 setx a user.x 'one'
        times a => a1 m1 c10 b1
        getx a user.x => one
        getx a user.x 0 => 3
        getx a user.x 2 => ERANGE
        setx a user.x 'two' create => EEXIST
        setx a user.y 'two' replace => ENODATA
        setx a user.x 'two' replace
        setx a user.y '' create
        getx a user.y =>
        getx a user.y 0 => 0
        listx a => user.x user.y
        listx a 0 => 14
        listx a 13 => ERANGE
        rmx a user.x
        rmx a user.x => ENODATA
        getx a user.x => ENODATA
        listx a => user.y
        remount
        listx a => user.y
        ",
    );
}

#[test]
fn each_kind_of_attribute_has_its_rules() {
    check(
        "
        create a
        setx a user. x => EINVAL
        setx a other.x x => EOPNOTSUPP
        setx a system.x u::r => EOPNOTSUPP
        getx a btrfs.x => EOPNOTSUPP
        setx a trusted.t x
        setx a security.s x
        listx a => security.s trusted.t
        as 1000 1000
        listx a => security.s
        symlink x l
        setx l user.x x => EPERM
        setx l trusted.x x
        mknod p fifo
        setx p user.x x => EPERM
        mkdir d
        setx d user.x x
        ",
    );
}

#[test]
fn the_limits_are_the_kernels() {
    let mut world = World::new();
    world.line("create a");
    let name = format!("user.{}", "n".repeat(250));
    world.line(&format!("setx a {name} x"));
    world.line(&format!("setx a {name}n x => ERANGE"));
    world.line(&format!("setx a user.big {}", "v".repeat(65536)));
    world.line(&format!("setx a user.big {} => E2BIG", "v".repeat(65537)));
    for n in 0..254 {
        world.line(&format!("setx a user.{n:0250} x"));
    }
    world.line(&format!("setx a user.{:0250} x => ENOSPC", 999));
    world.line(&format!("setx a user.{:0250} y", 99));
}

#[test]
fn file_capabilities_go_with_a_write() {
    check(
        "
        create a
        setx a security.capability caps
        getx a security.capability => caps
        write a 'x'
        getx a security.capability => ENODATA
        listx a =>
        setx a security.capability caps
        truncate a 0
        getx a security.capability => ENODATA
        setx a security.capability caps
        chown a 5 5
        getx a security.capability => ENODATA
        setx a security.capability caps
        chmod a 700
        getx a security.capability => caps
        rmx a security.capability
        getx a security.capability => ENODATA
        ",
    );
}

/// tar, among others, takes away what is not there, and complains where that fails.
#[test]
fn to_take_away_an_access_control_list_that_is_not_there_is_no_error() {
    check(
        "
        t=1 mkdir d
        t=2 create a
        t=10 rmx d system.posix_acl_default
        rmx d system.posix_acl_access
        rmx a system.posix_acl_default
        rmx a user.x => ENODATA
        times d => a1 m1 c1 b1
        setx d system.posix_acl_default u::rwx,g::rx,o::
        rmx d system.posix_acl_default
        rmx d system.posix_acl_default
        listx d =>
        ",
    );
}

#[test]
fn an_access_list_and_the_mode_follow_each_other() {
    check(
        "
        create a 640
        setx a system.posix_acl_access u::rwx,u:5:rw,g::r,m::rw,o::
        mode a => 760
        listx a => system.posix_acl_access
        chmod a 741
        getx a system.posix_acl_access => u::rwx,u:5:rw,g::r,m::r,o::x
        mode a => 741
        setx a system.posix_acl_access u::rw,g::r,o::r
        mode a => 644
        getx a system.posix_acl_access => ENODATA
        listx a =>
        setx a system.posix_acl_access u::rwx,u:5:rw,g::r,o:: => EINVAL
        setx a system.posix_acl_access u::rwx,u:5:rw,g::r,m::rwx,o::
        mode a => 770
        rmx a system.posix_acl_access
        mode a => 770
        chmod a 2755
        setx a system.posix_acl_access u::rwx,g::r,m::r,o:: kill
        mode a => 740
        setx a system.posix_acl_default u::rwx,g::rx,o:: => EACCES
        symlink x l
        setx l system.posix_acl_access u::rwx,g::rx,o:: => EOPNOTSUPP
        ",
    );
}

#[test]
fn new_files_inherit_the_default_list_and_then_the_umask_does_not_count() {
    check(
        "
        umask 077
        mkdir d
        setx d system.posix_acl_default u::rwx,u:5:rwx,g::rx,m::rwx,o::rx
        listx d => system.posix_acl_default
        create d/f 664
        mode d/f => 664
        getx d/f system.posix_acl_access => u::rw,u:5:rwx,g::rx,m::rw,o::r
        mkdir d/sub 755
        mode d/sub => 755
        getx d/sub system.posix_acl_access => u::rwx,u:5:rwx,g::rx,m::rx,o::rx
        getx d/sub system.posix_acl_default => u::rwx,u:5:rwx,g::rx,m::rwx,o::rx
        symlink x d/l
        mode d/l => 777
        listx d/l =>
        create plain 666
        mode plain => 600
        setx d system.posix_acl_default u::rwx,g::rx,o::
        create d/g 666
        mode d/g => 640
        listx d/g =>
        rmx d system.posix_acl_default
        create d/h 666
        mode d/h => 600
        remount
        getx d/sub/.. system.posix_acl_default => ENODATA
        mode d/sub => 755
        ",
    );
}

#[test]
fn the_past_keeps_its_attributes() {
    check(
        "
        t=1 create a
        t=2 setx a user.x old
        t=3 setx a system.posix_acl_access u::rw,u:5:rw,g::r,m::rw,o::
        t=10 setx a user.x new
        t=11 rmx a system.posix_acl_access
        getx a@@2026-11-22T00:00:05 user.x => old
        getx a@@2026-11-22T00:00:05 system.posix_acl_access => u::rw,u:5:rw,g::r,m::rw,o::
        listx a@@2026-11-22T00:00:01 =>
        setx a@@2026-11-22T00:00:05 user.x z => EROFS
        rmx a@@2026-11-22T00:00:05 user.x => EROFS
        ",
    );
}
