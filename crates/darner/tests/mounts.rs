//! Mounting and unmounting: the contract that scripts rely on.

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, FromRawFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{DARNER, World, c_string, eventually, has, sys};
use serde_json::Value;

/// Type and options of what is mounted there.
fn mounted(at: &std::path::Path) -> Option<(String, String)> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = table.lines().find(|l| l.split(' ').nth(1) == at.to_str())?;
    let mut fields = line.split(' ').skip(2).map(str::to_string);
    Some((fields.next()?, fields.next()?))
}

#[test]
fn one_command_makes_a_store_and_mounts_it_and_doing_it_again_harms_nothing() {
    let Some(w) = World::unmounted() else { return };
    w.mount();
    fs::write(w.path("f"), "kept").unwrap();
    let again = w.mount_at("mnt", &["--create"]).unwrap_err();
    assert!(again.contains("already"), "{again}");
    assert_eq!(again.lines().count(), 1, "one clear message: {again}");
    w.remount();
    assert_eq!(fs::read(w.path("f")).unwrap(), b"kept");
    assert_eq!(mounted(&w.mnt).unwrap().0, "fuse.darner");
    let status = w.status();
    for field in ["tid", "size_bytes", "used_bytes", "history_bytes", "free_bytes", "daemon_pid"] {
        assert!(!status[field].is_null(), "{field}");
    }
    let volume = &status["volumes"][0];
    assert!(!volume["id"].is_null() && volume["size_bytes"].is_u64() && volume["used_bytes"].is_u64());
    assert_eq!(volume["path"].as_str().unwrap(), w.store.to_str().unwrap());
}

#[test]
fn a_mount_that_fails_says_why_once_and_leaves_nothing_mounted() {
    let Some(w) = World::unmounted() else { return };
    let cases: [(&[&str], &str); 3] = [
        (&[], "store"),
        (&["--create", "--as-of", "2001-01-01"], "no moment"),
        (&["--create", "-o", "nonsense"], "nonsense"),
    ];
    for (options, says) in cases {
        let said = w.mount_at("mnt", options).unwrap_err();
        assert!(said.contains(says) && said.lines().count() == 1, "{options:?}: {said}");
        assert_eq!(mounted(&w.mnt), None);
    }
    w.mount();
}

/// Sets a limit of a process.
fn limit(pid: i32, what: libc::__rlimit_resource_t, most: u64) {
    // SAFETY: zeroes are a valid limit; the call fills and reads it.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        sys(i64::from(libc::prlimit(pid, what, std::ptr::null(), &mut limit))).unwrap();
        limit.rlim_cur = most;
        sys(i64::from(libc::prlimit(pid, what, &limit, std::ptr::null_mut()))).unwrap();
    }
}

#[test]
fn a_mount_that_would_leave_too_few_descriptors_is_refused_and_everything_else_goes_on() {
    let Some(w) = World::new() else { return };
    let pid = w.daemon_pid();
    let open = || fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64;
    limit(pid, libc::RLIMIT_NOFILE, open() + 160);
    let mut mounts = Vec::new();
    let said = loop {
        match w.mount_at(&format!("further{}", mounts.len()), &["--as-of", "now"]) {
            Ok(at) => mounts.push(at),
            Err(said) => break said,
        }
    };
    assert!(said.contains("ulimit -n") && said.lines().count() == 1 && (1..9).contains(&mounts.len()), "{said}");
    assert_eq!(mounted(&w.dir.join(format!("further{}", mounts.len()))), None);
    w.sh("head -c 40M /dev/urandom > f; sync f; $DARNER snapshot . label; $DARNER log f");
    mounts.iter().for_each(|at| drop(w.darner(&["unmount", at.to_str().unwrap()])));
    w.mount_at("further0", &["--as-of", "now"]).unwrap();
    assert_eq!(w.daemon_pid(), pid);
}

#[test]
fn a_mount_for_which_memory_or_threads_do_not_suffice_says_so_and_leaves_nothing_mounted() {
    let Some(w) = World::new() else { return };
    fs::write(w.path("f"), "x").unwrap();
    let (pid, second) = (w.daemon_pid(), w.dir.join("second"));
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let in_use = status.lines().find_map(|l| l.strip_prefix("VmSize:")?.split_whitespace().next()?.parse::<u64>().ok());
    // Each thread needs more than 1 MiB.
    limit(pid, libc::RLIMIT_AS, (in_use.unwrap() << 10) + (30 << 20));
    let said = w.mount_at("second", &["-o", "threads=64", "--read-only"]).unwrap_err();
    let of_it = mounted(&second);
    limit(pid, libc::RLIMIT_AS, libc::RLIM_INFINITY);
    assert!(said.contains("ulimit") && said.lines().count() == 1, "{said}");
    assert_eq!((of_it, w.daemon_pid()), (None, pid));
    assert_eq!(fs::read(w.mount_at("second", &["--read-only"]).unwrap().join("f")).unwrap(), b"x");
    w.darner(&["unmount", second.to_str().unwrap()]);
    w.unmount();
    for most in [150, 250, 350, 450, 550, 650, 750, 850] {
        let command = format!("ulimit -v {}; exec $DARNER mount -o threads=64 $DIR/store $DIR/mnt", most << 10);
        let out =
            Command::new("bash").args(["-c", &command]).env("DIR", &w.dir).env("DARNER", DARNER).output().unwrap();
        if out.status.success() {
            common::clean_up(&w.dir);
        }
        assert_eq!(mounted(&w.mnt), None, "with {most} MiB: {out:?}");
    }
    w.forgive_errors();
}

#[test]
fn a_further_mount_costs_few_threads_and_descriptors_and_little_memory() {
    let Some(w) = World::new() else { return };
    fs::write(w.path("f"), vec![7; 3 << 20]).unwrap();
    let pid = w.daemon_pid();
    let count = |of: &str| fs::read_dir(format!("/proc/{pid}/{of}")).unwrap().count();
    let resident = || w.status()["resident_bytes"].as_u64().unwrap() as usize;
    let costs = || [count("task"), count("fd"), resident() >> 10];
    let further = |n: u32| w.mount_at(&format!("further{n}"), &["--as-of", "now"]).unwrap();
    further(0);
    let before = costs();
    let mounts: Vec<_> = (1..=10).map(further).collect();
    let each: Vec<usize> =
        before.iter().zip(costs()).map(|(before, after)| after.saturating_sub(*before) / 10).collect();
    assert!(each[0] <= 6 && each[1] <= 11 && each[2] <= 1500, "threads, descriptors, KiB: {each:?}");
    mounts.iter().for_each(|at| assert_eq!(fs::read(at.join("f")).unwrap(), vec![7; 3 << 20]));
}

#[test]
fn the_limit_of_a_file_s_size_is_told_and_nothing_is_left_half_made() {
    let Some(w) = World::unmounted() else { return };
    let limited = |kib: u32, command: &str| {
        let script = format!("ulimit -f {kib}; exec $DARNER {command}");
        let out =
            Command::new("bash").args(["-c", &script]).env("DARNER", DARNER).current_dir(&w.dir).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(
            out.status.code() == Some(1) && said.contains("ulimit -f") && said.lines().count() == 1,
            "{command}: {out:?}"
        );
    };
    fs::create_dir(w.dir.join("empty")).unwrap();
    limited(256, "create new");
    limited(256, "create --image --size 100M image");
    limited(256, "create empty");
    limited(256, "mount --create store mnt");
    assert!(["new", "image", "store"].iter().all(|name| !w.dir.join(name).exists()));
    assert_eq!(fs::read_dir(w.dir.join("empty")).unwrap().count(), 0);
    w.mount();
    fs::write(w.path("f"), "x").unwrap();
    w.unmount();
    limited(50 << 10, "mount store mnt");
    assert_eq!(mounted(&w.mnt), None);
    w.mount();
    assert_eq!(fs::read(w.path("f")).unwrap(), b"x");
}

#[test]
fn the_subtype_can_be_left_away() {
    let Some(w) = World::unmounted() else { return };
    w.mount_at("mnt", &["--create", "-o", "subtype="]).unwrap();
    assert_eq!(mounted(&w.mnt).unwrap().0, "fuse");
    assert_eq!(w.status()["mounts"][0]["mountpoint"], w.mnt.to_str().unwrap());
    fs::write(w.path("f"), "x").unwrap();
    w.unmount();
}

#[test]
fn what_another_program_has_mounted_is_left_alone() {
    let Some(w) = World::new() else { return };
    let other = w.dir.join("other");
    fs::create_dir(&other).unwrap();
    if !w.try_sh("mount -t tmpfs none $DIR/other").status.success() {
        return println!("SKIPPED: needs root");
    }
    let said = w.try_sh("$DARNER unmount $DIR/other");
    let stays = mounted(&other).is_some();
    w.sh("umount $DIR/other");
    let why = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(stays && !said.status.success() && why.contains("not a darner mount but one of type tmpfs"), "{why}");
    if has("bindfs") {
        w.sh("mkdir $DIR/src; bindfs $DIR/src $DIR/other");
        let said = w.try_sh("$DARNER unmount $DIR/other || $DARNER status $DIR/other");
        let stays = mounted(&other).is_some();
        w.sh("umount $DIR/other");
        let why = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(stays && why.contains("not a darner mount but") && why.contains("is not in a darner mount"), "{why}");
    }
}

#[test]
fn a_second_writable_mount_is_refused_and_told_where_the_first_is() {
    let Some(w) = World::new() else { return };
    let said = w.mount_at("second", &[]).unwrap_err();
    assert!(said.contains(w.mnt.to_str().unwrap()), "{said}");
    assert_eq!(mounted(&w.dir.join("second")), None);
    // Also where no daemon of ours answers but somebody has the store.
    w.unmount();
    let lock = fs::File::open(&w.store).unwrap();
    // SAFETY: a plain system call.
    sys(i64::from(unsafe { libc::flock(std::os::fd::AsRawFd::as_raw_fd(&lock), libc::LOCK_EX) })).unwrap();
    let said = w.mount_at("mnt", &[]).unwrap_err();
    assert!(said.contains(&format!("process {}", std::process::id())), "{said}");
}

#[test]
fn a_read_only_mount_sees_the_live_one_and_changes_nothing() {
    let Some(w) = World::new() else { return };
    fs::write(w.path("f"), "one").unwrap();
    let other = w.mount_at("other", &["--read-only"]).unwrap();
    assert_eq!(fs::read(other.join("f")).unwrap(), b"one");
    fs::write(w.path("f"), "two, longer").unwrap();
    fs::write(w.path("g"), "new").unwrap();
    eventually("the change is seen", || {
        fs::read(other.join("f")).unwrap() == b"two, longer" && other.join("g").exists()
    });
    let refused = fs::write(other.join("g"), "x").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    // The live one may end and come back meanwhile.
    w.unmount();
    assert_eq!(fs::read(other.join("g")).unwrap(), b"new");
    w.mount();
    fs::write(w.path("h"), "more").unwrap();
    eventually("the new mount's change is seen", || other.join("h").exists());
    // The read-only one may have come first, and the writable one is still the only one.
    assert!(w.mount_at("third", &[]).unwrap_err().contains("already"));
    // Alone, it does not even move time.
    w.unmount();
    w.darner(&["unmount", other.to_str().unwrap()]);
    w.mount();
    let then = w.now();
    w.unmount();
    let alone = w.mount_at("other", &["--read-only"]).unwrap();
    assert_eq!(fs::read(alone.join("h")).unwrap(), b"more");
    assert_eq!(fs::remove_file(alone.join("h")).unwrap_err().raw_os_error(), Some(libc::EROFS));
    assert_eq!(w.now(), then);
    let said = w.mount_at("mnt", &[]).unwrap_err();
    assert!(said.contains("read-only"), "a writable mount does not silently become another: {said}");
    w.darner(&["unmount", alone.to_str().unwrap()]);
    w.mount();
}

#[test]
fn every_way_to_unmount_ends_with_everything_durable() {
    let Some(w) = World::new() else { return };
    for (n, how) in ["umount $MNT", "fusermount3 -u $MNT", "$DARNER unmount $MNT"].into_iter().enumerate() {
        fs::write(w.path(&format!("f{n}")), format!("{n}")).unwrap();
        w.sh_outside(how);
        assert_eq!(mounted(&w.mnt), None);
        w.mount();
        for m in 0..=n {
            assert_eq!(fs::read_to_string(w.path(&format!("f{m}"))).unwrap(), m.to_string(), "after {how}");
        }
    }
}

#[test]
fn unmounted_means_that_it_can_be_mounted_again_at_once() {
    let Some(w) = World::unmounted() else { return };
    for n in 0..30 {
        w.mount();
        fs::write(w.path("count"), format!("{n}")).unwrap();
        w.unmount();
        let lock = fs::File::open(&w.store).unwrap();
        // SAFETY: a plain system call.
        let free = unsafe { libc::flock(std::os::fd::AsRawFd::as_raw_fd(&lock), libc::LOCK_EX | libc::LOCK_NB) };
        assert_eq!(free, 0, "round {n}: the store is closed when unmount returns");
    }
    // umount(8) can't wait for the daemon, but the next mount does.
    for n in 0..10 {
        w.mount();
        fs::write(w.path("count"), format!("{n}")).unwrap();
        w.sh_outside("umount $MNT");
    }
}

#[test]
fn unmounted_means_that_the_disk_below_can_be_unmounted_at_once() {
    let Some(w) = World::unmounted() else { return };
    w.sh_outside("mkdir disk; mount -t tmpfs -o size=100M none disk");
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for _ in 0..10 {
            w.sh_outside(
                "$DARNER mount --create disk/store $MNT; echo words > $MNT/a; $DARNER unmount $MNT; umount disk; \
                 mount -t tmpfs -o size=100M none disk",
            );
        }
    }));
    w.sh_outside("umount -l disk");
    done.unwrap();
}

#[test]
fn where_the_last_writes_may_be_lost_unmounting_fails_and_status_says_so_before() {
    let Some(w) = World::unmounted() else { return };
    w.sh_outside("mkdir disk; mount -t tmpfs -o size=100M none disk; truncate -s 1G disk/image");
    let device = w.sh_outside("losetup -f --show disk/image").trim().to_string();
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        w.sh_outside(&format!(
            "mkdir $MNT; $DARNER create {device}; $DARNER mount {device} $MNT; echo words > $MNT/a; sync $MNT/a"
        ));
        w.sh_outside("head -c 200M /dev/zero > disk/hog || true; head -c 20M /dev/urandom > $MNT/b || true");
        w.sh_outside("sync $MNT/b && exit 9 || true");
        let status = w.sh_outside("$DARNER status $MNT");
        assert!(status.contains("may be lost: the store stopped accepting writes after"), "{status}");
        let json: Value = serde_json::from_str(&w.sh_outside("$DARNER status --json $MNT")).unwrap();
        assert_eq!(json["free_bytes"], 0, "{json}");
        let said = w.sh_outside("$DARNER unmount $MNT 2>&1 && exit 9 || true");
        assert!(said.contains("is unmounted, but the last writes"), "{said}");
        assert_eq!(mounted(&w.mnt), None);
        w.forgive_errors();
        w.sh_outside(&format!("rm disk/hog; $DARNER mount {device} $MNT; cat $MNT/a; $DARNER unmount $MNT"));
    }));
    w.sh_outside(&format!("$DARNER unmount $MNT 2>/dev/null || true; losetup -d {device}; umount -l disk"));
    done.unwrap();
}

#[test]
fn what_is_mounted_in_another_namespace_is_told_and_nothing_is_mounted_over_it() {
    if !has("unshare") || !has("nsenter") {
        return;
    }
    let Some(w) = World::unmounted() else { return };
    w.sh_outside("unshare -m sh -c '$DARNER mount --create store $MNT; echo one > $MNT/a'");
    let pid = w.sh_outside("$DARNER status store --json | jq .daemon_pid").trim().to_string();
    let said = w.sh_outside("$DARNER mount --read-only store $MNT 2>&1 && exit 9 || true");
    assert!(said.contains("is in another mount namespace") && said.contains(&format!("nsenter -t {pid} -m")), "{said}");
    w.sh_outside(&format!(
        "test -z \"$(ls $MNT)\"; nsenter -t {pid} -m sh -ec 'cd $DIR; echo two > $MNT/a; mkdir other; $DARNER mount --read-only store other; cat other/a; \
         $DARNER unmount other; $DARNER unmount $MNT'; $DARNER check store"
    ));
}

#[test]
fn that_dev_null_is_missing_is_told() {
    if !has("unshare") {
        return;
    }
    let Some(w) = World::unmounted() else { return };
    let mounts = "mount -t tmpfs none /dev; exec $DARNER mount --create store $MNT";
    let said = w.sh_outside(&format!("unshare -m --propagation private sh -c '{mounts}' 2>&1 && exit 9 || true"));
    assert!(said.contains("can't open /dev/null"), "{said}");
}

#[test]
fn a_mount_whose_daemon_is_in_another_network_namespace_is_not_called_dead_nor_taken_away() {
    if !has("unshare") || !has("nsenter") || !has("flock") {
        return;
    }
    let Some(w) = World::unmounted() else { return };
    w.sh_outside("mkdir other; unshare -n $DARNER mount --create store $MNT; echo one > $MNT/a");
    let holder = w.sh_outside("$DARNER check store 2>&1 && exit 9 || true");
    let pid = holder.split("process ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().to_string();
    for command in [
        "status $MNT",
        "status store",
        "snapshot $MNT l",
        "upgrade $MNT",
        "mount --read-only store other",
        "unmount $MNT",
    ] {
        let said = w.sh_outside(&format!("$DARNER {command} 2>&1 && exit 9 || true"));
        let names = said.contains(&format!("process {pid} (darner) is in another network namespace"));
        assert!(names && said.contains(&format!("nsenter -t {pid} -n darner")), "{command}: {said}");
    }
    w.sh_outside(&format!("cat $MNT/a; nsenter -t {pid} -n $DARNER unmount $MNT; $DARNER check store"));
    let said = w.sh_outside("flock -s store $DARNER status store 2>&1 && exit 9 || true");
    assert!(said.contains("is not mounted; process ") && said.contains("(flock) has it open"), "{said}");
}

#[test]
fn who_waits_for_a_daemon_that_is_stopped_says_so_and_goes_on_waiting() {
    let Some(w) = World::new() else { return };
    let pid = w.daemon_pid();
    let signal = |signal| {
        // SAFETY: a plain system call.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    };
    for command in [&["status"][..], &["snapshot", "l"]] {
        signal(libc::SIGSTOP);
        let start = Instant::now();
        let mut darner = Command::new("timeout");
        darner.args(["60", DARNER, command[0]]).arg(&w.mnt).args(&command[1..]);
        let mut darner = darner.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(darner.stderr.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert!(start.elapsed() > Duration::from_secs(2), "{line}");
        let stopped = format!("process {pid} (darner), which is stopped: kill -CONT {pid}");
        assert!(line.contains(w.store.to_str().unwrap()) && line.contains(&stopped), "{line}");
        assert!(darner.try_wait().unwrap().is_none());
        signal(libc::SIGCONT);
        assert!(darner.wait().unwrap().success());
        line.clear();
        assert_eq!(said.read_line(&mut line).unwrap(), 0, "{line}");
    }
    w.sh("ls @@l");
}

#[test]
fn what_gets_a_store_s_name_while_that_is_mounted_is_left_alone_also_by_the_next_daemon() {
    for image in ["", "--image --size 100M"] {
        let Some(w) = World::unmounted() else { return };
        w.sh_outside(&format!(
            "mkdir -p $MNT other-mnt; for s in store other; do $DARNER create {image} $s; done
             $DARNER mount other other-mnt; echo precious > other-mnt/a; $DARNER unmount other-mnt
             $DARNER mount store $MNT; echo mine > $MNT/b; sync $MNT/b; mv store moved; mv other store
             head -c 9M /dev/urandom > $MNT/c; sync $MNT/c; md5sum $MNT/c > sum
             kill -9 $($DARNER status $MNT --json | jq .daemon_pid)
             md5sum --quiet -c sum; test \"$(ls $MNT)\" = \"b
c\"; echo more > $MNT/d; sync $MNT/d; $DARNER unmount $MNT
             $DARNER check store; $DARNER check moved
             $DARNER mount store other-mnt; test $(ls other-mnt) = a; $DARNER unmount other-mnt
             $DARNER mount moved $MNT; md5sum --quiet -c sum; test $(cat $MNT/d) = more; $DARNER unmount $MNT",
        ));
    }
}

#[test]
fn a_daemon_does_not_begin_anew_with_what_is_mounted_over_its_store() {
    let Some(w) = World::unmounted() else { return };
    w.sh_outside("$DARNER mount --create store $MNT; echo mine > $MNT/a; sync $MNT/a");
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        w.sh_outside(
            "pid=$($DARNER status $MNT --json | jq .daemon_pid); mount -t tmpfs none store; $DARNER create --force store/x; mv store/x/* store
             rmdir store/x; head -c 9M /dev/urandom > $MNT/b; sync $MNT/b; md5sum $MNT/b > sum; ls store > before
             kill -9 $pid; ls $MNT && exit 9; ls store | diff before -",
        );
    }));
    w.sh_outside("umount store; umount -l $MNT");
    done.unwrap();
    w.forgive_errors();
    w.sh_outside("$DARNER mount store $MNT; md5sum --quiet -c sum; test $(cat $MNT/a) = mine; $DARNER unmount $MNT");
}

#[test]
fn an_image_larger_than_its_disk_has_room_for_fills_up_and_loses_nothing() {
    let Some(w) = World::unmounted() else { return };
    w.sh_outside("mkdir disk; mount -t tmpfs -o size=150M none disk");
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        w.sh_outside(
            "mkdir $MNT; $DARNER create --image --size 1G disk/image; $DARNER mount disk/image $MNT
             test $(df --output=size -B1M $MNT | tail -1) -le 150
             for i in $(seq 100); do head -c 3M /dev/urandom > $MNT/f$i || break; sha256sum $MNT/f$i >> sums; done 2>/dev/null
             n=$(wc -l < sums); test $n -gt 35; test $n -lt 50; sha256sum --quiet -c sums
             rm $MNT/f1 $MNT/f2; $DARNER unmount $MNT",
        );
        // What others leave is as much as there is.
        w.sh_outside(
            "$DARNER mount disk/image $MNT; test ! -e $MNT/f1; tail -n +3 sums | sha256sum --quiet -c
             head -c 150M /dev/zero > disk/hog && exit 9; rm $MNT/f3 $MNT/f4; sync $MNT/f5; $DARNER unmount $MNT
             $DARNER mount disk/image $MNT; test ! -e $MNT/f3; rm $MNT/f5 $MNT/f6; $DARNER unmount $MNT
             $DARNER check disk/image; rm disk/hog; $DARNER mount disk/image $MNT; $DARNER retain $MNT none
             $DARNER clean --wait $MNT; head -c 10M /dev/urandom > $MNT/more; tail -n +7 sums | sha256sum --quiet -c
             $DARNER unmount $MNT; $DARNER check disk/image",
        );
    }));
    w.sh_outside("$DARNER unmount $MNT 2>/dev/null || true; umount -l disk");
    done.unwrap();
}

#[test]
fn a_disk_that_others_fill_has_room_for_what_gives_room_back() {
    let Some(w) = World::unmounted() else { return };
    w.sh_outside("mkdir disk; mount -t tmpfs -o size=300M none disk");
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        w.sh_outside(
            "$DARNER mount --create disk/store $MNT; head -c 40M /dev/urandom > $MNT/a; echo words > $MNT/b; sync $MNT/b",
        );
        eventually("room is held", || w.dir.join("disk/store/held").exists());
        w.sh_outside("head -c 400M /dev/zero > disk/hog && exit 9; test $(df --output=avail disk | tail -1) = 0");
        // Nobody uses that up.
        w.sh_outside("head -c 120M /dev/urandom > $MNT/c && exit 9; rm $MNT/c $MNT/a");
        w.sh_outside("$DARNER forget $MNT/b; $DARNER unmount $MNT; $DARNER check disk/store");
        w.sh_outside("$DARNER mount disk/store $MNT; $DARNER retain $MNT none");
        w.sh_outside("$DARNER clean --wait $MNT; head -c 20M /dev/urandom > $MNT/e; $DARNER unmount $MNT");
        w.sh_outside("$DARNER check disk/store; rm disk/hog; $DARNER mount disk/store $MNT; echo more > $MNT/f");
        eventually("room is held again", || {
            fs::metadata(w.dir.join("disk/store/held")).is_ok_and(|m| m.len() > 20 << 20)
        });
        w.sh_outside("$DARNER unmount $MNT");
    }));
    w.sh_outside("$DARNER unmount $MNT 2>/dev/null || true; umount -l disk");
    done.unwrap();
}

#[test]
fn a_disk_on_which_no_more_files_can_be_made_has_some_for_what_gives_room_back() {
    let Some(w) = World::unmounted() else { return };
    w.sh_outside("mkdir disk; mount -t tmpfs -o size=300M,nr_inodes=200 none disk");
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        w.sh_outside("$DARNER mount --create disk/store $MNT; for i in $(seq 500); do seq $i 2000 > $MNT/f$i; done; sync $MNT/f1");
        eventually("files are held", || w.dir.join("disk/store/held.15").exists());
        w.sh_outside(
            "i=0; while touch disk/hog$i; do i=$((i + 1)); done 2>/dev/null; test $(df --output=iavail disk | tail -1) = 0
             for i in $(seq 250); do sha256sum $MNT/f$i >> sums; rm $MNT/f$((i + 250)); done
             $DARNER retain $MNT none; $DARNER clean --wait $MNT; $DARNER forget $MNT/f1; $DARNER unmount $MNT; $DARNER check disk/store
             $DARNER mount disk/store $MNT; tail -n +2 sums | sha256sum --quiet -c; rm $MNT/f2; $DARNER unmount $MNT",
        );
        // So it is after a crash.
        w.sh_outside("$DARNER mount disk/store $MNT; rm $MNT/f3; sync $MNT/f4");
        w.kill_all();
        w.sh_outside(
            "umount -l $MNT; $DARNER mount disk/store $MNT; test ! -e $MNT/f3; rm $MNT/f4; $DARNER unmount $MNT",
        );
        w.sh_outside("rm disk/hog*; $DARNER mount disk/store $MNT; tail -n +5 sums | sha256sum --quiet -c; echo more > $MNT/more");
        eventually("files are held again", || w.dir.join("disk/store/held.15").exists());
        w.sh_outside("$DARNER unmount $MNT; $DARNER check disk/store");
    }));
    w.sh_outside("$DARNER unmount $MNT 2>/dev/null || true; umount -l disk");
    done.unwrap();
}

/// `rm` succeeded, was lost, and the store could not be mounted: what was held was no room for what was written before.
#[test]
fn a_quota_below_or_a_full_disk_that_copies_on_write_leaves_room_for_what_gives_room_back() {
    if !has("mkfs.btrfs") {
        return;
    }
    let fill = "head -c 2G /dev/zero > disk/v/hog && exit 9; sync -f disk";
    for (size, before, after) in [
        ("1G", format!("n=20; many; {fill}"), "rm disk/v/hog; sync -f disk"),
        (
            "2G",
            "btrfs quota enable disk; btrfs qgroup limit 200M disk/v; n=60; many && exit 9; test $(df --output=avail $MNT | tail -1) = 0".into(),
            "btrfs qgroup limit none disk/v",
        ),
    ] {
        let Some(w) = World::unmounted() else { return };
        w.sh_outside(&format!(
            "truncate -s {size} image; mkfs.btrfs -q image; mkdir disk; mount -o loop image disk; btrfs subvolume create disk/v"
        ));
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let many = "many() { for i in $(seq $n); do head -c 5M /dev/urandom > $MNT/f$i && sync $MNT/f$i || { rm $MNT/f$i; return 1; }; \
                        sha256sum $MNT/f$i >> sums; done; }";
            w.sh_outside(&format!(
                "$DARNER mount --create disk/v/store $MNT; {many}; {before}
                 rm $MNT/f1 $MNT/f2; $DARNER retain $MNT none; $DARNER clean --wait $MNT; rm $MNT/f3; $DARNER unmount $MNT
                 $DARNER check disk/v/store; $DARNER mount disk/v/store $MNT; tail -n +4 sums | sha256sum --quiet -c
                 rm $MNT/f4; $DARNER clean --wait $MNT; $DARNER unmount $MNT
                 {after}; $DARNER mount disk/v/store $MNT; tail -n +5 sums | sha256sum --quiet -c; test $(ls $MNT | head -1) = f10"
            ));
            let status = || serde_json::from_str::<Value>(&w.sh_outside("$DARNER status --json $MNT")).unwrap();
            eventually("there is room again", || status()["free_bytes"].as_u64() > Some(400 << 20));
            w.sh_outside("head -c 20M /dev/urandom > $MNT/more; $DARNER unmount $MNT; $DARNER check disk/v/store");
        }));
        w.sh_outside("$DARNER unmount $MNT 2>/dev/null || true; umount -l disk");
        done.unwrap();
    }
}

#[test]
fn a_store_that_others_left_no_room_when_it_was_closed_is_mounted_and_deletes() {
    let Some(w) = World::unmounted() else { return };
    // Too little for all that is held else.
    w.sh_outside("mkdir disk; mount -t tmpfs -o size=90M none disk");
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let held = w.dir.join("disk/store/held");
        let fill = || {
            w.sh_outside("head -c 200M /dev/zero > disk/hog && exit 9; test $(df --output=avail disk | tail -1) = 0")
        };
        w.sh_outside("$DARNER mount --create disk/store $MNT; head -c 10M /dev/urandom > $MNT/a; echo words > $MNT/b");
        eventually("room is held", || held.exists());
        w.sh_outside("for i in $(seq 500); do echo $i > $MNT/f$i; done");
        fill();
        w.sh_outside("$DARNER unmount $MNT; $DARNER mount disk/store $MNT; rm $MNT/a; $DARNER unmount $MNT");
        // So it is where nothing is held, and what is only in the log is much.
        w.sh_outside("$DARNER mount disk/store $MNT; for i in $(seq 500); do rm $MNT/f$i; done; sync $MNT/b");
        w.kill_all();
        let _ = fs::remove_file(held);
        fill();
        w.sh_outside(
            "$DARNER unmount $MNT; $DARNER mount --log $DIR/daemon.log disk/store $MNT; test $(ls $MNT) = b; rm $MNT/b; \
             $DARNER unmount $MNT",
        );
        assert!(w.log().contains("the log goes on in the one that there is"), "{}", w.log());
        // (It has no room for a checkpoint either, and says so.)
        w.forgive_errors();
        w.sh_outside(
            "$DARNER check disk/store; $DARNER mount disk/store $MNT; test -z $(ls $MNT); $DARNER unmount $MNT",
        );
    }));
    w.sh_outside("$DARNER unmount $MNT 2>/dev/null || true; umount -l disk");
    done.unwrap();
}

#[test]
fn a_clock_that_was_ahead_is_told_of() {
    if !has("faketime") {
        return;
    }
    let Some(w) = World::unmounted() else { return };
    w.sh_outside("faketime -f +400d $DARNER mount --create store $MNT; echo one > $MNT/a; $DARNER unmount $MNT");
    let said = w.sh_outside("$DARNER mount store $MNT 2>&1");
    assert!(said.contains("and this machine's clock says"), "{said}");
    let status = w.status();
    assert!(status["warnings"][0].as_str().is_some_and(|w| w.starts_with("the newest change is dated 2")), "{status}");
}

#[test]
fn told_to_end_the_daemon_unmounts_and_loses_nothing() {
    let Some(w) = World::new() else { return };
    w.mount_at("past", &["--as-of", &w.now()]).unwrap();
    let pid = w.daemon_pid();
    let gone = || !std::path::Path::new(&format!("/proc/{pid}")).exists();
    let open = fs::File::create(w.path("f")).unwrap();
    // SAFETY: a plain system call.
    unsafe { libc::kill(pid, libc::SIGTERM) };
    eventually("the mounts are gone", || mounted(&w.mnt).is_none() && mounted(&w.dir.join("past")).is_none());
    // Who has a file open may finish with it.
    std::io::Write::write_all(&mut &open, b"the last words").unwrap();
    drop(open);
    eventually("the daemon ends", gone);
    w.mount();
    assert_eq!(fs::read(w.path("f")).unwrap(), b"the last words");
    // Told twice, it waits for nobody.
    let open = fs::File::create(w.path("g")).unwrap();
    std::io::Write::write_all(&mut &open, b"kept").unwrap();
    let pid = w.daemon_pid();
    for _ in 0..2 {
        // SAFETY: a plain system call.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        eventually("it heeds", || mounted(&w.mnt).is_none());
    }
    eventually("the daemon ends", || !std::path::Path::new(&format!("/proc/{pid}")).exists());
    w.mount();
    assert_eq!(fs::read(w.path("g")).unwrap(), b"kept");
}

#[test]
fn a_mount_in_use_stays_unless_it_is_unmounted_lazily() {
    let Some(w) = World::new() else { return };
    let open = fs::File::create(w.path("f")).unwrap();
    let said = Command::new(DARNER).arg("unmount").arg(&w.mnt).output().unwrap();
    assert!(!said.status.success() && String::from_utf8_lossy(&said.stderr).contains("in use"), "{said:?}");
    let user = format!("process {} ", std::process::id());
    assert!(String::from_utf8_lossy(&said.stderr).contains(&user), "{said:?}");
    std::io::Write::write_all(&mut &open, b"still works").unwrap();
    let pid = w.daemon_pid();
    let lazily = Command::new("timeout").args(["5", DARNER, "unmount", "--lazy"]).arg(&w.mnt).output().unwrap();
    assert!(lazily.status.success(), "{lazily:?}");
    assert_eq!(mounted(&w.mnt), None);
    std::io::Write::write_all(&mut &open, b", and now too").unwrap();
    drop(open);
    eventually("the daemon ends", || !std::path::Path::new(&format!("/proc/{pid}")).exists());
    w.mount();
    assert_eq!(fs::read(w.path("f")).unwrap(), b"still works, and now too");
}

#[test]
fn what_keeps_a_mount_in_use_is_named_where_it_is_no_process_too() {
    let Some(w) = World::new() else { return };
    let refused = || w.sh_outside("$DARNER unmount $MNT 2>&1 && exit 9 || true");
    w.sh_outside("mkdir $MNT/dir; mount -t tmpfs none $MNT/dir");
    let said = refused();
    w.sh_outside("umount $MNT/dir");
    assert!(said.contains(&format!("something is mounted on {}", w.path("dir").display())), "{said}");
    let device = w.sh_outside("truncate -s 1M $MNT/image; losetup -f --show $MNT/image 2>/dev/null || true");
    if device.is_empty() {
        return eprintln!("SKIPPED: no loop devices here");
    }
    let said = refused();
    w.sh_outside(&format!("losetup -d {device}"));
    let has = format!("the loop device {device}, which losetup -d {device} ends, has {}", w.path("image").display());
    assert!(said.contains(&has), "{said}");
    eventually("it is free", || Command::new(DARNER).arg("unmount").arg(&w.mnt).output().unwrap().status.success());
}

#[test]
fn where_another_mount_namespace_keeps_a_copy_commands_name_who_is_in_it_within_seconds() {
    let Some(w) = World::new() else { return };
    fs::write(w.path("f"), "kept").unwrap();
    // (Of the mounts of other tests it has none for long.)
    let script =
        "awk -v m=\"$0\" '$3 ~ /^fuse/ && $2 != m { print $2 }' /proc/mounts | xargs -rn1 umount -l; exec sleep 100";
    let args = ["-m", "--propagation", "private", "bash", "-c", script];
    let mut other = Command::new("unshare").args(args).arg(&w.mnt).spawn().unwrap();
    let comm = format!("/proc/{}/comm", other.id());
    eventually("it has a namespace of its own", || fs::read_to_string(&comm).unwrap() == "sleep\n");
    let named = format!("process {} (sleep)", other.id());
    let store = w.store.to_str().unwrap();
    for command in
        [&["unmount", w.mnt.to_str().unwrap()][..], &["mount", store, w.mnt.to_str().unwrap()], &["check", store]]
    {
        let out = Command::new("timeout").args(["20", DARNER]).args(command).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(
            out.status.code() == Some(1) && said.contains("another mount namespace") && said.contains(&named),
            "{command:?}: {out:?}"
        );
        assert_eq!(mounted(&w.mnt), None);
    }
    other.kill().unwrap();
    other.wait().unwrap();
    w.mount();
    assert_eq!(fs::read(w.path("f")).unwrap(), b"kept");
}

#[test]
fn after_the_daemons_death_the_mount_is_removed_like_any_and_mounted_again() {
    let Some(w) = World::new() else { return };
    for how in ["umount $MNT", "fusermount3 -u $MNT", "$DARNER unmount $MNT"] {
        fs::write(w.path("f"), how).unwrap();
        fs::File::open(w.path("f")).unwrap().sync_all().unwrap();
        w.kill_all();
        // (What the kernel has cached goes on being answered.)
        eventually("it is dead", || fs::write(w.path("new"), "").is_err());
        // Whoever asks is told what to do.
        for command in ["mount", "status", "upgrade"] {
            let said = w.at_dead(command);
            let names = said.contains(&format!("the mount on {} is dead", w.mnt.display()));
            assert!(names && said.contains(&format!("`darner unmount {}`", w.mnt.display())), "{command}: {said}");
        }
        w.sh_outside(how);
        let start = Instant::now();
        w.mount();
        assert!(start.elapsed() < Duration::from_secs(3));
        assert_eq!(fs::read_to_string(w.path("f")).unwrap(), how);
    }
}

/// Its threads end one after another: the mount may be dead before nobody can connect.
#[test]
fn a_daemon_that_dies_while_it_is_greeted_is_dead() {
    let Some(w) = World::new() else { return };
    w.kill_all();
    eventually("it is dead", || fs::write(w.path("new"), "").is_err());
    for command in ["mount", "status", "upgrade"] {
        let dying = w.listen_once();
        let said = w.at_dead(command);
        dying.join().unwrap();
        assert!(said.contains(&format!("the mount on {} is dead", w.mnt.display())), "{command}: {said}");
    }
    let dying = w.listen_once();
    w.darner(&["unmount", w.mnt.to_str().unwrap()]);
    dying.join().unwrap();
    assert_eq!(mounted(&w.mnt), None);
    w.mount();
}

/// Anybody may take an abstract name: to wait in the daemon's place, to say nothing there or to hang up keeps nobody.
#[test]
fn a_stranger_in_the_daemons_place_is_named_at_once_and_the_daemon_is_found_at_its_other_places() {
    let Some(w) = World::unmounted() else { return };
    if !is_root() {
        return;
    }
    w.darner(&["create", w.store.to_str().unwrap()]);
    let at_once = |command: &str, at: &std::path::Path| {
        let out = Command::new("timeout").args(["5", DARNER, command]).arg(at).output().unwrap();
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    for hangs_up in [false, true] {
        let stranger = Stranger::listening_at(&w.socket(), hangs_up);
        let named = format!("process {} of user {NOBODY} listens in the place of the daemon of", stranger.0);
        let (code, said) = at_once("status", &w.store);
        assert!(code == Some(1) && said.contains(&named), "{code:?}: {said}");
        let said = w.mount_at("mnt", &[]).unwrap_err();
        assert!(said.contains(&named), "{said}");
    }
    let before = sockets_of_mounts();
    w.mount();
    let of_mount = sockets_of_mounts().into_iter().find(|name| !before.contains(name)).unwrap();
    w.unmount();
    // (The next mount has the same number, or one of the next ones.)
    let (_, hash) = of_mount.rsplit_once('/').unwrap();
    let guessed: Vec<String> = (1..200).map(|n| format!("\0darner/mount/0:{n}/{hash}")).collect();
    let _strangers: Vec<Stranger> = guessed.iter().map(|name| Stranger::listening_at(name, false)).collect();
    w.mount();
    // (Who waits at the stranger's address lets nobody else in there.)
    for command in ["status", "status", "status", "unmount"] {
        assert_eq!(at_once(command, &w.mnt), (Some(0), String::new()), "{command}");
    }
    w.forgive_errors();
}

const NOBODY: u32 = 65534;

fn is_root() -> bool {
    // SAFETY: this call can't fail.
    unsafe { libc::geteuid() == 0 }
}

/// The addresses at which daemons take commands for their mounts.
fn sockets_of_mounts() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/net/unix").unwrap();
    let names = table.lines().filter_map(|line| line.split_once(" @darner/mount/")).map(|(_, name)| name.to_string());
    names.filter(|name| !name.ends_with("/mirror")).collect()
}

/// A process of another user's that listens somewhere until this is dropped.
struct Stranger(libc::pid_t);

impl Stranger {
    /// It accepts nobody, or hangs up on everybody.
    fn listening_at(name: &str, hangs_up: bool) -> Stranger {
        let listener = listener_at(name);
        let fd = listener.as_raw_fd();
        let (mut listens, tells) = std::io::pipe().unwrap();
        // SAFETY: the child makes system calls only.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: as above. The kernel has it that who calls listen(2) listens.
            unsafe {
                if libc::setresuid(NOBODY, NOBODY, NOBODY) != 0 || libc::listen(fd, 1) != 0 {
                    libc::_exit(1);
                }
                libc::write(tells.as_raw_fd(), c"!".as_ptr().cast(), 1);
                loop {
                    match hangs_up {
                        true => libc::close(libc::accept(fd, std::ptr::null_mut(), std::ptr::null_mut())),
                        false => libc::pause(),
                    };
                }
            }
        }
        assert!(pid > 0);
        drop((listener, tells));
        std::io::Read::read_exact(&mut listens, &mut [0]).unwrap();
        Stranger(pid)
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        // SAFETY: plain system calls on our own child.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

/// A socket at an abstract address, at which nobody listens yet.
fn listener_at(name: &str) -> std::os::fd::OwnedFd {
    // SAFETY: plain system calls; the address is as long as is said.
    unsafe {
        let fd = libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0);
        assert!(fd >= 0);
        let mut address: libc::sockaddr_un = std::mem::zeroed();
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        for (to, from) in address.sun_path.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        let length = (std::mem::offset_of!(libc::sockaddr_un, sun_path) + name.len()) as libc::socklen_t;
        eventually("the address is free", || libc::bind(fd, (&raw const address).cast(), length) == 0);
        std::os::fd::OwnedFd::from_raw_fd(fd)
    }
}

impl World {
    /// Where the daemon listens.
    fn socket(&self) -> String {
        use std::os::unix::fs::MetadataExt;
        let meta = fs::metadata(&self.store).unwrap();
        format!("\0darner/{:x}/{:x}", meta.dev(), meta.ino())
    }

    /// Listens where the daemon does, and ends when somebody has connected.
    fn listen_once(&self) -> std::thread::JoinHandle<()> {
        let listener = listener_at(&self.socket());
        // SAFETY: a plain system call.
        assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 1) }, 0);
        std::thread::spawn(move || {
            // SAFETY: a plain system call.
            let greeted = unsafe { libc::accept(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut()) };
            drop(listener);
            // SAFETY: nobody else has it.
            assert_eq!(unsafe { libc::close(greeted) }, 0);
        })
    }

    /// What a command says of a dead mount.
    fn at_dead(&self, command: &str) -> String {
        let store = (command == "mount").then_some(&self.store);
        let out = Command::new("timeout").args(["20", DARNER, command]).args(store).arg(&self.mnt).output().unwrap();
        assert!(!out.status.success());
        String::from_utf8_lossy(&out.stderr).into_owned()
    }
}

#[test]
fn mount_8_finds_its_helper_and_changes_flags_later() {
    let Some(w) = World::unmounted() else { return };
    let helper = w.dir.join("mount.fuse.darner");
    std::os::unix::fs::symlink(DARNER, &helper).unwrap();
    fs::create_dir(&w.mnt).unwrap();
    w.darner(&["create", w.store.to_str().unwrap()]);
    let run = |options: &str| {
        let out =
            Command::new("timeout").arg("20").arg(&helper).args([&w.store, &w.mnt]).args(["-o", options]).output();
        let out = out.unwrap();
        assert!(out.status.success(), "{options}: {out:?}");
    };
    run("rw,noatime,nosuid,_netdev,x-systemd.automount");
    assert!(mounted(&w.mnt).unwrap().1.contains("nosuid"));
    fs::write(w.path("f"), "x").unwrap();
    run("ro,remount,nosuid,relatime,user_id=0,group_id=0,default_permissions,allow_other");
    assert_eq!(fs::write(w.path("f"), "y").unwrap_err().raw_os_error(), Some(libc::EROFS));
    run("rw,remount,nosuid,relatime,user_id=0,group_id=0");
    fs::write(w.path("f"), "y").unwrap();
    w.unmount();
}

#[test]
fn of_several_who_mount_in_one_place_at_once_one_does() {
    let Some(w) = World::new() else { return };
    w.darner(&["snapshot", w.mnt.to_str().unwrap(), "then"]);
    let other = w.dir.join("other");
    w.darner(&["create", other.to_str().unwrap()]);
    let at = w.dir.join("at");
    fs::create_dir(&at).unwrap();
    for _ in 0..5 {
        let mount = |args: &[&std::ffi::OsStr]| Command::new(DARNER).arg("mount").args(args).arg(&at).spawn().unwrap();
        let past: [&std::ffi::OsStr; 3] = ["--as-of".as_ref(), "then".as_ref(), w.store.as_os_str()];
        let mut all: Vec<_> = (0..4).map(|_| mount(&past)).collect();
        all.push(mount(&[other.as_os_str()]));
        let done = all.iter_mut().filter_map(|child| child.wait().unwrap().success().then_some(())).count();
        let table = fs::read_to_string("/proc/self/mounts").unwrap();
        let there = table.lines().filter(|l| l.split(' ').nth(1) == at.to_str()).count();
        assert_eq!((done, there), (1, 1));
        w.darner(&["unmount", at.to_str().unwrap()]);
    }
}

#[test]
fn an_ordinary_user_mounts_through_fusermount3() {
    if !(has("fusermount3") && has("setpriv")) {
        return;
    }
    let Some(w) = World::unmounted() else { return };
    let (home, as_user) = (w.dir.join("home"), "setpriv --reuid nobody --regid nogroup --clear-groups");
    fs::create_dir_all(home.join("mnt")).unwrap();
    fs::copy(DARNER, w.dir.join("darner")).unwrap();
    // Where only root may open the device (no udev), one for everybody, in a namespace of the test's.
    let script = format!(
        "umount -lat fuse.darner || true; mknod -m 666 {dir}/fuse c 10 229; mount --bind {dir}/fuse /dev/fuse; chown -R nobody:nogroup {home}; cd {home}; {as_user} {dir}/darner mount --create {home}/store {home}/mnt
        {as_user} sh -c 'cd mnt; echo mine > f; cat f@@-0s; mkdir d; chmod 700 d'
        ls mnt 2>/dev/null && echo root may look || echo root may not look
        {as_user} {dir}/darner status --json mnt | grep daemon_pid > /dev/null
        {as_user} {dir}/darner unmount mnt; {as_user} {dir}/darner mount store mnt; {as_user} cat mnt/f
        {as_user} sh -c 'cd mnt; pid() {{ {dir}/darner status --json . | sed -n \"s/.*daemon_pid[^0-9]*//p\" | tr -d ,; }}
            for i in 1 2 3 4 5; do echo $i >> log; kill -9 $(pid); mkdir d$i; echo x >> log; done; cat log | tr -d \"\\n\"; echo'
        {as_user} fusermount3 -u mnt",
        home = home.display(),
        dir = w.dir.display()
    );
    let mut command = Command::new("timeout");
    let out =
        command.args(["60", "unshare", "-m", "--propagation", "private", "bash", "-euc", &script]).output().unwrap();
    assert!(out.status.success(), "{out:?}");
    assert_eq!(String::from_utf8_lossy(&out.stdout), "mine\nroot may not look\nmine\n1x2x3x4x5x\n");
}

#[test]
fn the_size_of_a_store_is_a_limit_and_full_is_only_full() {
    let Some(w) = World::unmounted() else { return };
    w.mount_at("mnt", &["--create", "--size", "64M"]).unwrap();
    let path = c_string(&w.mnt);
    // SAFETY: a valid path and a buffer of the right type.
    let total = unsafe {
        let mut s: libc::statvfs = std::mem::zeroed();
        assert_eq!(libc::statvfs(path.as_ptr(), &mut s), 0);
        s.f_blocks * s.f_frsize
    };
    assert!(total <= 64 << 20, "{total}");
    let out = w.try_sh("head -c 200M /dev/urandom > big");
    assert!(String::from_utf8_lossy(&out.stderr).contains("No space left"), "{out:?}");
    // Names still go, and all is well after a remount.
    w.sh("rm big; ls");
    w.remount();
    assert!(!w.path("big").exists());
}
