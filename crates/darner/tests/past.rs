//! The past through the usual programs: it reads like any tree, and nothing changes it.

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{World, c_string, eventually, has, rename, sys};

/// Everything about everything below, but the sizes of directories.
const LIST: &str = r"find . -mindepth 1 \( -type d -printf '%P %y %m %U %G %n %T@\n' -o -printf '%P %y %m %U %G %s %n %l %T@\n' \) | sort";

/// A tree with some of everything, and the moment at which it is complete.
fn with_tree() -> Option<(World, String)> {
    let w = World::new()?;
    w.sh(
        "mkdir -p src/deep/er src/empty; cd src
        for i in $(seq 200); do echo text $i > deep/f$i; done
        head -c 3000000 /dev/urandom > big; ln big big-too; ln -s deep/f1 soft; ln -s nowhere dangling
        mkfifo fifo; mknod null c 1 3; truncate -s 32M sparse; echo end >> sparse
        printf '#!/bin/sh\\necho ran' > run; chmod 4755 run; chown 12:34 deep/f7; touch -d 2001-02-03 deep/f8; chmod 1777 empty
        echo x > \"$(printf 'odd \\n name')\"",
    );
    w.sh("cp -a src $DIR/wanted");
    let then = w.now();
    Some((w, then))
}

/// Makes the live tree another one.
fn spoil(w: &World) {
    w.sh("cd src; rm -r deep/f1?; mv deep/f2 deep/er/; echo more >> deep/f3; echo short > big; chmod 700 run; mkdir deep/new; echo n > deep/new/n; rm soft; ln -s other soft");
}

fn same_as_wanted(w: &World, past: &str) {
    w.sh(&format!("diff -r --no-dereference {past} $DIR/wanted -x null -x fifo"));
    w.sh(&format!("diff <(cd {past}; {LIST}) <(cd $DIR/wanted; {LIST})"));
}

#[test]
fn a_tree_of_the_past_reads_like_any_tree() {
    let Some((w, then)) = with_tree() else { return };
    spoil(&w);
    for past in [format!("src@@{then}"), format!("@@{then}/src"), format!("src/deep/../../src@@{then}")] {
        same_as_wanted(&w, &past);
    }
    let past = format!("src@@{then}");
    assert_eq!(w.sh(&format!("grep -r 'text 17' {past} | wc -l")), "11");
    assert_eq!(w.sh(&format!("{past}/run")), "ran");
    assert_eq!(w.sh(&format!("cat {past}/soft")), "text 1");
    w.sh(&format!("cp -a {past} $DIR/copy; rm -rf src; cp -a $DIR/copy src2"));
    w.sh(&format!("diff <(cd $DIR/copy; {LIST}) <(cd $DIR/wanted; {LIST}); cmp src2/big $DIR/wanted/big"));
    // And after a remount.
    w.remount();
    same_as_wanted(&w, &format!("@@{then}/src"));
}

#[test]
fn tar_packs_the_past_with_its_hard_links() {
    let Some((w, then)) = with_tree() else { return };
    spoil(&w);
    w.sh(&format!("mkdir $DIR/out; tar -C @@{then} --sparse -cf - src 2>$DIR/said | tar -C $DIR/out -xf -"));
    assert_eq!(fs::read_to_string(w.dir.join("said")).unwrap(), "");
    let list = format!("{LIST} | sed 's/\\.[0-9]*$//'");
    w.sh(&format!("diff <(cd $DIR/out/src; {list}) <(cd $DIR/wanted; {list})"));
    assert_eq!(w.sh("stat -c %i $DIR/out/src/big"), w.sh("stat -c %i $DIR/out/src/big-too"));
}

#[test]
fn one_file_at_two_moments_is_not_a_hard_link() {
    let Some(w) = World::new() else { return };
    w.sh("echo one > f; ln f g");
    let first = w.now();
    w.sh("echo two, longer > f");
    let second = w.now();
    w.sh("echo three > f");
    let names = format!("f@@{first} f@@{second} f g");
    let inodes = w.sh(&format!("stat -c %d:%i {names}"));
    let inodes: Vec<&str> = inodes.lines().collect();
    assert!(inodes[0] != inodes[1] && inodes[0] != inodes[2] && inodes[1] != inodes[2] && inodes[2] == inodes[3]);
    w.sh(&format!("mkdir $DIR/out $DIR/cp; tar cf - {names} | tar -C $DIR/out -xf -; cp -a {names} $DIR/cp"));
    for out in ["out", "cp"] {
        let read = |name: &str| fs::read_to_string(w.dir.join(out).join(name)).unwrap();
        assert_eq!(read(&format!("f@@{first}")), "one\n");
        assert_eq!(read(&format!("f@@{second}")), "two, longer\n");
        assert_eq!((read("f"), read("g")), ("three\n".into(), "three\n".into()));
    }
    // Within one moment it is one.
    w.sh(&format!("test @@{first}/f -ef @@{first}/g; test f@@{first} -ef @@{first}/g; ! test f -ef f@@{first}"));
    // find does not think that it walks in circles.
    let walked = w.sh(&format!("mkdir -p d/d; touch d/d/x; find -L @@{first} d 2>&1"));
    assert!(!walked.contains("loop"), "{walked}");
}

#[test]
fn the_past_stands_still_while_the_present_runs() {
    let Some((w, then)) = with_tree() else { return };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut rng = fastrand::Rng::with_seed(2);
            while !stop.load(Ordering::Relaxed) {
                let (a, b) = (rng.u32(1..=200), rng.u32(1..=200));
                let at = |n: u32| w.path(&format!("src/deep/f{n}"));
                let _ = fs::write(at(a), format!("new text {b}"));
                let _ = fs::rename(at(a), at(b));
                let _ = fs::remove_file(at(rng.u32(1..=200)));
                let _ = OpenOptions::new()
                    .write(true)
                    .open(w.path("src/big"))
                    .and_then(|f| f.set_len(rng.u64(..4_000_000)));
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..5 {
                same_as_wanted(&w, &format!("src@@{then}"));
                w.sh(&format!(
                    "tar -C @@{then} -cf - src/deep src/big | tar -C $DIR/wanted/.. -df - --transform s/src/wanted/ "
                ));
            }
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(e) = result {
            std::panic::resume_unwind(e);
        }
    });
}

#[test]
fn nothing_changes_the_past() {
    let Some((w, then)) = with_tree() else { return };
    w.sh("echo later > later");
    let dir = w.path(&format!("@@{then}"));
    let (file, live) = (dir.join("src/deep/f1"), w.path("later"));
    let errno = |r: std::io::Result<()>| r.err().and_then(|e| e.raw_os_error());
    let rofs = Some(libc::EROFS);
    let open = |o: &mut OpenOptions| errno(o.open(&file).map(|_| ()));
    assert_eq!(errno(fs::write(dir.join("new"), "x")), rofs);
    assert_eq!(errno(fs::create_dir(dir.join("new"))), rofs);
    assert_eq!(errno(symlink("x", dir.join("new"))), rofs);
    assert_eq!(errno(fs::hard_link(&file, dir.join("new"))), rofs);
    assert_eq!(errno(fs::remove_file(&file)), rofs);
    assert_eq!(errno(fs::remove_dir(dir.join("src/empty"))), rofs);
    assert_eq!(errno(fs::rename(&file, dir.join("src/f"))), rofs);
    assert_eq!(errno(fs::set_permissions(&file, PermissionsExt::from_mode(0o600))), rofs);
    assert_eq!(errno(std::os::unix::fs::chown(&file, Some(1), None)), rofs);
    assert_eq!(errno(OpenOptions::new().write(true).create_new(true).open(dir.join("new")).map(|_| ())), rofs);
    assert_eq!(rename(&live, &dir.join("src/f"), 0).err(), rofs);
    assert_eq!(rename(&file, &w.path("stolen"), 0).err(), rofs);
    assert_eq!(rename(&live, &file, libc::RENAME_EXCHANGE).err(), rofs);
    let path = c_string(&file);
    // SAFETY: NUL-terminated strings that outlive the calls.
    unsafe {
        assert_eq!(sys(libc::truncate(path.as_ptr(), 1).into()).err(), rofs);
        let xattr = libc::setxattr(path.as_ptr(), c"user.x".as_ptr(), c"1".as_ptr().cast(), 1, 0);
        assert_eq!(sys(xattr.into()).err(), rofs);
        assert_eq!(sys(libc::utimensat(libc::AT_FDCWD, path.as_ptr(), std::ptr::null(), 0).into()).err(), rofs);
        assert_eq!(sys(libc::access(path.as_ptr(), libc::R_OK).into()), Ok(0));
    }
    // The kernel does not ask us at open(2), so what fails is the write.
    let mut writable = OpenOptions::new().read(true).write(true).open(&file).unwrap();
    assert_eq!(errno(writable.write_all(b"x")), rofs);
    assert_eq!(open(OpenOptions::new().write(true).truncate(true)), rofs, "open with O_TRUNC");
    spoil(&w);
    same_as_wanted(&w, &format!("@@{then}/src"));
}

#[test]
fn a_store_through_a_map_of_a_past_file_changes_nothing_that_others_see() {
    let Some((w, then)) = with_tree() else { return };
    let path = w.path(&format!("@@{then}/src/deep/f1"));
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    // SAFETY: a fresh mapping of one page of an open file, written within its bounds and unmapped once.
    unsafe {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let map = libc::mmap(std::ptr::null_mut(), 4096, prot, libc::MAP_SHARED, file.as_raw_fd(), 0);
        if map != libc::MAP_FAILED {
            *map.cast::<u8>() = b'T';
            libc::msync(map, 4096, libc::MS_SYNC);
            libc::munmap(map, 4096);
        }
    }
    drop(file);
    eventually("the map's page is dropped", || fs::read(&path).unwrap() == b"text 1\n");
}

#[test]
fn a_mount_of_the_past_stands_beside_the_live_one() {
    let Some((w, then)) = with_tree() else { return };
    spoil(&w);
    let past = w.mount_at("past", &["--as-of", &then]).unwrap();
    let more = w.mount_at("more", &[&format!("--as-of={then}")]).unwrap();
    for at in [&past, &more] {
        same_as_wanted(&w, at.join("src").to_str().unwrap());
    }
    let refused = fs::write(past.join("x"), "x").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    // Another filesystem to those who ask, with the same inode numbers as then.
    assert_ne!(fs::metadata(&past).unwrap().dev(), fs::metadata(&w.mnt).unwrap().dev());
    // It outlives the live mount, and keeps the daemon.
    w.unmount();
    same_as_wanted_in(&w, &past);
    w.mount();
    w.darner(&["unmount", past.to_str().unwrap()]);
    w.darner(&["unmount", more.to_str().unwrap()]);
    // Alone as well.
    w.unmount();
    let past = w.mount_at("past", &["--as-of", &then]).unwrap();
    same_as_wanted_in(&w, &past);
}

fn same_as_wanted_in(w: &World, past: &std::path::Path) {
    let script = format!("diff -r --no-dereference {}/src {}/wanted -x null -x fifo", past.display(), w.dir.display());
    let out = Command::new("timeout").args(["60", "bash", "-c", &script]).output().unwrap();
    assert!(out.status.success(), "{out:?}");
}

#[test]
fn a_moment_that_never_was_is_no_name() {
    let Some((w, then)) = with_tree() else { return };
    let absent = |name: &str| fs::symlink_metadata(w.path(name)).unwrap_err().raw_os_error() == Some(libc::ENOENT);
    assert!(absent("src@@2001-01-01") && absent("src@@2101-01-01") && absent("src@@0x1"));
    assert!(absent("src@@no-such-label") && absent("nothing@@-0s") && absent("src@@") && absent("@@-10y"));
    // A name that exists literally wins.
    let name = format!("src@@{then}");
    assert!(w.path(&name).is_dir());
    // (The as-of name itself exists, so a new one is not made over it.)
    fs::write(w.path("a@@2001-01-01"), "literal").unwrap();
    assert_eq!(fs::read(w.path("a@@2001-01-01")).unwrap(), b"literal");
    fs::remove_file(w.path("a@@2001-01-01")).unwrap();
    assert!(absent("a@@2001-01-01"));
    // As-of names are not listed; the directory of moments lists labels and resolves them.
    w.darner(&["snapshot", w.mnt.to_str().unwrap(), "before"]);
    assert!(!w.sh("ls").contains("@@"));
    assert!(w.sh("ls @@").lines().any(|l| l == "before"), "{}", w.sh("ls @@"));
    spoil(&w);
    same_as_wanted(&w, "@@/before/src");
    same_as_wanted(&w, "src@@before");
    assert!(absent("@@/no-such-label"));
}

#[test]
fn an_open_file_of_the_past_and_a_working_directory_in_it_stay_what_they_are() {
    let Some((w, then)) = with_tree() else { return };
    let open = File::open(w.path(&format!("src@@{then}/deep/f5"))).unwrap();
    spoil(&w);
    w.sh("rm -rf src; echo 2 > /proc/sys/vm/drop_caches");
    assert_eq!(std::io::read_to_string(&open).unwrap(), "text 5\n");
    w.sh(&format!("cd @@{then}/src/deep; rm -rf $MNT/src; cat f9; cd ..; cat deep/f9; ls .. | grep src; test -d deep/er/../../deep"));
    // The mount does not go while it is in use, and says so.
    let busy = Command::new(common::DARNER).arg("unmount").arg(&w.mnt).output().unwrap();
    assert!(!busy.status.success() && String::from_utf8_lossy(&busy.stderr).contains("in use"));
    assert_eq!(w.sh(&format!("cat src@@{then}/deep/f5")), "text 5");
}

#[test]
fn git_reads_a_repository_as_of() {
    if !has("git") {
        return;
    }
    let Some(w) = World::new() else { return };
    w.sh("git init -q r; cd r; git config user.email a@b; git config user.name a; echo 1 > f; git add f; git commit -qm one");
    let then = w.now();
    w.sh("cd r; echo 2 > f; git commit -qam two; git gc -q --prune=now; git fsck --full");
    let git = format!("git -c safe.directory='*' -C r@@{then}");
    assert_eq!(w.sh(&format!("{git} log --format=%s")), "one");
    w.sh(&format!(
        "{git} fsck --full; git -c safe.directory='*' clone -q r@@{then} $DIR/clone; cmp <(echo 1) $DIR/clone/f"
    ));
    assert_eq!(w.sh("git -C r log -1 --format=%s"), "two");
}

#[test]
fn a_database_that_was_in_use_is_read_as_of_then_in_a_mount_of_the_past_or_a_copy() {
    let Some(w) = World::new() else { return };
    if !has("sqlite3") {
        return println!("SKIPPED: needs sqlite3");
    }
    w.sh("sqlite3 plain.db 'create table t(a); insert into t values (5)'");
    let wal = "pragma journal_mode=wal; create table t(a); insert into t values (7);";
    w.sh(&format!(
        "printf '%s\\n' '{wal}' \".shell $DARNER snapshot $MNT used\" | sqlite3 wal.db; rm *.db; ls @@used/wal.db-wal"
    ));
    let then = w.mount_at("then", &["--as-of", "used"]).unwrap();
    let read = |dir: &str| w.sh(&format!("for db in plain wal; do sqlite3 {dir}/$db.db 'select a from t'; done"));
    assert_eq!(read(then.to_str().unwrap()), "5\n7");
    w.sh("cp -a @@used $DIR/copy");
    assert_eq!(read("$DIR/copy"), "5\n7");
    assert_eq!(w.sh("sqlite3 @@used/plain.db 'select a from t'"), "5");
}

#[test]
fn a_samba_share_lists_previous_versions_and_opens_each() {
    let Some(w) = World::unmounted() else { return };
    if !["smbd", "smbclient", "faketime"].into_iter().all(has) || w.sh_outside("id -u") != "0" {
        return println!("SKIPPED: needs smbd, smbclient, faketime and root");
    }
    let mount = "$DARNER mount --create -o allow_other store mnt";
    for (ago, text) in [("-70h", "first"), ("-30h", "second"), ("-4h", "third")] {
        w.sh_outside(&format!(
            "faketime -f {ago} {mount}; mkdir -p mnt/share; echo {text} > mnt/share/f; $DARNER unmount mnt"
        ));
    }
    w.sh_outside(&format!("{mount}; chmod a+rx . mnt/share; echo now > mnt/share/f; mkdir smb"));
    let port = common::free_port();
    let dirs = ["private dir", "lock directory", "state directory", "cache directory", "pid directory"];
    let dirs: String = dirs.iter().map(|name| format!("{name} = {}\n", w.dir.join("smb").display())).collect();
    let readme = include_str!("../../../README.md").lines();
    let lines: Vec<&str> = readme.skip_while(|l| !l.starts_with("vfs objects")).take_while(|l| *l != "```").collect();
    let conf = format!(
        "[global]\nsmb ports = {port}\nbind interfaces only = yes\ninterfaces = lo\n{dirs}log file = {}/log\n\
         map to guest = Bad User\nserver role = standalone server\ndisable netbios = yes\n\
         [s]\npath = {}/share\nguest ok = yes\n{}\n",
        w.dir.display(),
        w.mnt.display(),
        lines.join("\n")
    );
    fs::write(w.dir.join("smb.conf"), conf).unwrap();
    let mut server = Command::new("smbd").args(["-F", "-s"]).arg(w.dir.join("smb.conf")).spawn().unwrap();
    let client = format!("smbclient -p {port} -N //127.0.0.1/s -c");
    eventually("the share is served", || w.try_sh(&format!("{client} ls")).status.success());
    let told = w.sh(&format!("{client} 'allinfo f'"));
    let mut versions: Vec<&str> = told.lines().filter(|line| line.starts_with("@GMT-")).collect();
    versions.sort_unstable();
    let read = |version: &&str| {
        let got = w.dir.join("got");
        let got = got.display();
        let get = w.try_sh(&format!("rm -f {got}; {client} 'get {version}\\f {got}' > $DIR/said && cat {got}"));
        String::from_utf8_lossy(&get.stdout).trim_end().to_string()
    };
    let mut seen: Vec<String> = versions.iter().map(read).collect();
    seen.dedup();
    // SAFETY: a signal to a process that was started here.
    unsafe { libc::kill(server.id() as i32, libc::SIGTERM) };
    server.wait().unwrap();
    assert_eq!(seen, ["first", "second", "third"], "{told}\n{versions:?}");
}
