//! Mirrors through the real program and the real kernel.

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{World, eventually, rot, signal};
use serde_json::Value;

/// What a command that fails says.
#[track_caller]
fn refused(args: &[&str]) -> String {
    let out = Command::new("timeout").args(["60", common::DARNER]).args(args).output().unwrap();
    assert!(!out.status.success(), "darner {args:?} did not fail");
    String::from_utf8_lossy(&out.stderr).into_owned()
}

struct Pair {
    w: World,
    target: PathBuf,
    copy: PathBuf,
}

impl Pair {
    /// A store, and a mirror of it, both mounted.
    fn new() -> Option<Pair> {
        let w = World::new()?;
        let target = w.dir.join("store of the mirror");
        w.darner(&["mirror", "add", w.mnt.to_str().unwrap(), "copy", target.to_str().unwrap()]);
        let copy = w.dir.join("copy");
        let pair = Pair { w, target, copy };
        pair.mount_copy();
        Some(pair)
    }

    fn mount_copy(&self) {
        fs::create_dir_all(&self.copy).unwrap();
        let log = self.w.dir.join("mirror.log");
        let (log, target, copy) = (log.to_str().unwrap(), self.target.to_str().unwrap(), self.copy.to_str().unwrap());
        self.w.darner(&["mount", "--log", log, target, copy]);
    }

    fn mirror(&self, action: &str, more: &[&str]) -> String {
        let mut args = vec!["mirror", action, self.w.mnt.to_str().unwrap(), "copy"];
        args.extend(more);
        self.w.darner(&args)
    }

    fn sync(&self) {
        self.mirror("sync", &["--wait"]);
    }

    fn line(&self) -> Value {
        let lines = self.w.darner(&["mirror", "list", "--json", self.w.mnt.to_str().unwrap()]);
        serde_json::from_str::<Value>(&lines).unwrap()[0].clone()
    }
}

#[test]
fn a_mirror_follows_and_shows_files_links_holes_and_xattrs_as_they_are() {
    let Some(p) = Pair::new() else { return };
    let at = |name: &str| p.w.mnt.join(name);
    fs::create_dir(at("dir")).unwrap();
    fs::write(at("dir/file"), vec![7; 300_000]).unwrap();
    fs::hard_link(at("dir/file"), at("second name")).unwrap();
    std::os::unix::fs::symlink("dir/file", at("link")).unwrap();
    let hole = fs::File::create(at("hole")).unwrap();
    std::os::unix::fs::FileExt::write_at(&hole, b"end", 10 << 20).unwrap();
    drop(hole);
    p.w.sh(&format!("setfattr -n user.colour -v green {}", at("dir/file").display()));
    p.sync();
    let there = |name: &str| p.copy.join(name);
    assert_eq!(fs::read(there("dir/file")).unwrap(), vec![7; 300_000]);
    let same = |name: &str| {
        let (a, b) = (fs::symlink_metadata(at(name)).unwrap(), fs::symlink_metadata(there(name)).unwrap());
        let of =
            |m: &fs::Metadata| (m.ino(), m.mode(), m.nlink(), m.size(), m.blocks(), m.mtime_nsec(), m.ctime_nsec());
        assert_eq!(of(&a), of(&b), "{name}");
    };
    ["dir", "dir/file", "second name", "link", "hole"].iter().for_each(|name| same(name));
    assert_eq!(fs::read_link(there("link")).unwrap(), Path::new("dir/file"));
    let colour = p.w.sh(&format!("getfattr -n user.colour --only-values {}", there("dir/file").display()));
    assert_eq!(colour, "green");
    assert_eq!(fs::write(there("new"), "x").unwrap_err().raw_os_error(), Some(libc::EROFS));
    // Without being asked to, it goes on; what the kernel had of it is no hindrance.
    fs::write(at("dir/file"), "changed").unwrap();
    fs::rename(at("link"), at("dir/link")).unwrap();
    eventually("the change is there", || {
        fs::read(there("dir/file")).unwrap() == b"changed" && there("dir/link").is_symlink()
    });
    eventually("the old name is gone", || fs::symlink_metadata(there("link")).is_err());
    assert_eq!(p.line()["state"], "follows");
    // Its own past.
    let tid = p.line()["at_tid"].as_str().unwrap().to_string();
    fs::remove_file(at("dir/file")).unwrap();
    p.sync();
    eventually("the file is gone", || !there("dir/file").exists());
    assert_eq!(fs::read(there(&format!("dir/file@@{tid}"))).unwrap(), b"changed");
}

#[test]
fn the_log_of_a_mirror_tells_moments_that_show_what_it_lists() {
    let Some(p) = Pair::new() else { return };
    let texts = ["one", "two", "second time", "third time"];
    for text in texts {
        fs::write(p.w.path("a"), text).unwrap();
        p.sync();
        // (Writes that follow one another within a second are told as one.)
        std::thread::sleep(Duration::from_millis(1100));
    }
    let log = p.w.darner(&["log", "--json", p.copy.join("a").to_str().unwrap()]);
    let log: Value = serde_json::from_str(&log).unwrap();
    let log = log.as_array().unwrap();
    let what = |n: usize| if n == 0 { "created" } else { "written" };
    let expected: Vec<_> = texts.iter().enumerate().map(|(n, text)| (what(n).to_string(), text.to_string())).collect();
    for when in ["shown", "tid", "when"] {
        let shown = |line: &Value| {
            let at = p.copy.join(format!("a@@{}", line[when].as_str().unwrap()));
            (line["what"].as_str().unwrap().to_string(), fs::read_to_string(at).unwrap())
        };
        assert_eq!(log.iter().map(shown).collect::<Vec<_>>(), expected, "{when}");
    }
}

#[test]
fn commands_see_the_moment_in_a_name_in_a_mirrors_mount() {
    let Some(p) = Pair::new() else { return };
    fs::write(p.w.path("a"), "one").unwrap();
    p.sync();
    let (copy, then) = (p.copy.to_str().unwrap(), p.copy.join("a@@then"));
    p.w.darner(&["snapshot", copy, "then"]);
    fs::write(p.w.path("a"), "second").unwrap();
    p.sync();
    let ino = |path: &Path| fs::metadata(path).unwrap().ino();
    assert_ne!(ino(&p.copy.join("a")), ino(&then), "a file at two moments is no hard link");
    let then = then.to_str().unwrap();
    let log: Value = serde_json::from_str(&p.w.darner(&["log", "--json", then])).unwrap();
    assert_eq!(log.as_array().unwrap().iter().map(|l| l["size"].as_u64().unwrap()).collect::<Vec<_>>(), [3]);
    let no = refused(&["restore", then]);
    assert!(no.contains("mirror") && !no.contains("as of when"), "{no}");
}

#[test]
fn a_mirror_within_its_own_source_is_refused() {
    let Some(w) = World::new() else { return };
    let said = refused(&["mirror", "add", w.mnt.to_str().unwrap(), "copy", w.path("copy").to_str().unwrap()]);
    assert!(said.contains("a mount of the store itself"), "{said}");
    assert!(!w.path("copy").exists());
    assert_eq!(w.darner(&["mirror", "list", "--json", w.mnt.to_str().unwrap()]).trim(), "[]");
}

#[test]
fn it_pauses_waits_and_goes_on_when_either_daemon_was_killed() {
    let Some(p) = Pair::new() else { return };
    fs::write(p.w.path("a"), "one").unwrap();
    p.sync();
    p.mirror("pause", &[]);
    fs::write(p.w.path("a"), "two").unwrap();
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(fs::read(p.copy.join("a")).unwrap(), b"one");
    assert_eq!(p.line()["state"], "paused");
    p.mirror("resume", &[]);
    eventually("it goes on", || fs::read(p.copy.join("a")).unwrap() == b"two");
    // Both have supervisors; the mirror's daemon begins where it was, the source's answers anew.
    let kill = |mnt: &Path| {
        let status = p.w.darner(&["status", "--json", mnt.to_str().unwrap()]);
        let pid = serde_json::from_str::<Value>(&status).unwrap()["daemon_pid"].as_i64().unwrap() as i32;
        // SAFETY: a plain system call.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
    };
    for n in 0..6 {
        fs::write(p.w.path(&format!("file {n}")), vec![n; 3 << 20]).unwrap();
        kill(if n % 2 == 0 { &p.w.mnt } else { &p.copy });
        fs::write(p.w.path("a"), format!("{n}")).unwrap();
        eventually("it goes on", || fs::read(p.copy.join("a")).is_ok_and(|a| a == format!("{n}").as_bytes()));
        assert_eq!(fs::read(p.copy.join(format!("file {n}"))).unwrap(), vec![n; 3 << 20]);
    }
}

/// Processes of the daemon that has a store.
fn pids(w: &World, store: &Path) -> [i32; 2] {
    let status: Value = serde_json::from_str(&w.darner(&["status", "--json", store.to_str().unwrap()])).unwrap();
    ["daemon_pid", "supervisor_pid"].map(|name| status[name].as_i64().unwrap() as i32)
}

#[test]
fn a_mirror_follows_without_a_mount_until_it_is_paused_removed_or_promoted() {
    let Some(w) = World::new() else { return };
    let (mnt, target) = (w.mnt.to_str().unwrap().to_string(), w.dir.join("target"));
    let store = target.to_str().unwrap();
    fs::write(w.path("a"), "one").unwrap();
    w.darner(&["mirror", "add", &mnt, "copy", store]);
    let line = || serde_json::from_str::<Value>(&w.darner(&["mirror", "list", "--json", &mnt])).unwrap()[0].clone();
    w.darner(&["mirror", "sync", "--wait", &mnt, "copy"]);
    assert_eq!(line()["state"], "follows");
    // Its daemon is killed; and then its supervisor too: whatever needs it starts another, the source's next mount among that.
    signal(pids(&w, &target)[0], libc::SIGKILL);
    fs::write(w.path("a"), "two").unwrap();
    w.darner(&["mirror", "sync", "--wait", &mnt, "copy"]);
    let both = pids(&w, &target);
    [libc::SIGSTOP, libc::SIGKILL].iter().for_each(|s| both.iter().for_each(|pid| signal(*pid, *s)));
    eventually("it has ended", || line()["state"] == "stopped");
    w.remount();
    eventually("it follows", || line()["state"] == "follows");
    // A mount comes and goes.
    let copy = w.dir.join("copy");
    fs::create_dir(&copy).unwrap();
    w.darner(&["mount", store, copy.to_str().unwrap()]);
    eventually("it is there", || fs::read(copy.join("a")).is_ok_and(|a| a == b"two"));
    w.darner(&["unmount", copy.to_str().unwrap()]);
    fs::write(w.path("a"), "three").unwrap();
    w.darner(&["mirror", "sync", "--wait", &mnt, "copy"]);
    // Paused, its store is free, and a mount of the source does not change that.
    w.darner(&["mirror", "pause", &mnt, "copy"]);
    w.darner(&["check", store]);
    w.remount();
    // (The mount has somebody look at it, who would be in the way of those who look later.)
    eventually("it has been looked at", || w.log().contains("this mirror is paused"));
    fs::write(w.path("a"), "four").unwrap();
    assert_eq!(line()["state"], "stopped");
    w.darner(&["mirror", "resume", &mnt, "copy"]);
    w.darner(&["mirror", "sync", "--wait", &mnt, "copy"]);
    // By its own store as well.
    w.darner(&["mirror", "pause", store]);
    w.darner(&["mirror", "resume", store]);
    w.darner(&["mirror", "remove", &mnt, "copy"]);
    w.darner(&["check", store]);
    w.darner(&["mirror", "resume", store]);
    w.darner(&["mirror", "promote", store]);
    w.darner(&["check", store]);
    w.darner(&["mount", store, copy.to_str().unwrap()]);
    assert_eq!(fs::read(copy.join("a")).unwrap(), b"four");
    fs::write(copy.join("a"), "five").unwrap();
    w.darner(&["unmount", copy.to_str().unwrap()]);
    w.darner(&["check", store]);
}

#[test]
fn a_mount_of_a_mirror_shows_each_name_as_it_is_once_a_pull_is_over() {
    let Some(p) = Pair::new() else { return };
    if !common::names_expire() {
        eprintln!("SKIPPED: this kernel has names that changed go stale within a second");
        return;
    }
    fs::create_dir(p.w.path("dir")).unwrap();
    for n in 0..20 {
        let names = ["dir/a", "dir/b", "dir/c"].map(|name| (p.w.path(name), p.copy.join(name)));
        let looks = || names.each_ref().map(|(_, copy)| fs::read_to_string(copy).ok());
        let [a, b, c] = names.each_ref().map(|(name, _)| name);
        fs::write(a, format!("a {n}")).unwrap();
        p.sync();
        // (What is not there is remembered, too.)
        assert_eq!(looks(), [Some(format!("a {n}")), None, None]);
        fs::rename(a, b).unwrap();
        fs::write(c, format!("c {n}")).unwrap();
        p.sync();
        assert_eq!(looks(), [None, Some(format!("a {n}")), Some(format!("c {n}"))]);
        fs::remove_file(b).unwrap();
        fs::rename(c, a).unwrap();
        p.sync();
        assert_eq!(looks(), [Some(format!("c {n}")), None, None]);
        fs::remove_file(a).unwrap();
    }
}

#[test]
fn who_waits_for_what_was_promoted_is_told_at_once() {
    let Some(p) = Pair::new() else { return };
    p.sync();
    p.w.darner(&["mirror", "promote", p.target.to_str().unwrap()]);
    for at in [&[p.w.mnt.to_str().unwrap(), "copy"][..], &[p.target.to_str().unwrap()]] {
        let start = Instant::now();
        let said = refused(&[&["mirror", "sync", "--wait"], at].concat());
        assert!(said.contains("this store is no mirror") && start.elapsed() < Duration::from_secs(5), "{said}");
    }
}

#[test]
fn streams_and_logs_are_made_readable_to_their_owner_only() {
    let Some(w) = World::unmounted() else { return };
    w.sh_outside(
        "umask 022; $DARNER mount --create --log log store mnt; $DARNER mirror export mnt --output stream 2>/dev/null",
    );
    for made in ["log", "stream"] {
        assert_eq!(fs::metadata(w.dir.join(made)).unwrap().mode() & 0o777, 0o600, "{made}");
    }
    w.unmount();
}

#[test]
fn who_waits_for_a_comparison_is_told_within_seconds_that_the_source_or_its_fileset_is_gone() {
    let Some(w) = World::new() else { return };
    let (mnt, target) = (w.mnt.to_str().unwrap(), w.dir.join("mirror"));
    let target = target.to_str().unwrap();
    w.darner(&["fileset", "create", mnt, "home"]);
    let home = w.path("home");
    w.darner(&["mirror", "add", home.to_str().unwrap(), "copy", target]);
    w.darner(&["mirror", "verify", mnt, "copy"]);
    let told = |why: &str| {
        let start = Instant::now();
        let said = refused(&["mirror", "verify", target]);
        assert!(said.contains("it was not compared") && said.contains(why), "{said}");
        assert!(start.elapsed() < Duration::from_secs(12), "it took {:?}", start.elapsed());
    };
    w.darner(&["fileset", "remove", mnt, "home", "--force"]);
    told("there is no such fileset");
    w.unmount();
    told("is not mounted");
    w.darner(&["mirror", "pause", target]);
}

#[test]
fn a_mirror_that_is_paused_pulls_once_when_it_is_told_to_and_stays_paused() {
    let Some(p) = Pair::new() else { return };
    let (a, target) = (p.w.path("a"), p.target.to_str().unwrap());
    p.mirror("pause", &[]);
    for n in 0..5 {
        fs::write(&a, format!("{n}")).unwrap();
        p.sync();
        assert_eq!(fs::read(p.copy.join("a")).unwrap(), format!("{n}").as_bytes());
    }
    fs::write(&a, "later").unwrap();
    eventually("it is paused again", || p.line()["state"] == "paused");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(fs::read(p.copy.join("a")).unwrap(), b"4");
    // Nor does it try for ever if its source is not there.
    p.w.kill();
    let why = refused(&["mirror", "sync", "--wait", target]);
    // (As the link that there was ends, or as there is none.)
    assert!(why.contains("is not mounted") || why.contains("the link broke"), "{why}");
    eventually("it is paused again", || {
        let lines: Value = serde_json::from_str(&p.w.darner(&["mirror", "list", "--json", target])).unwrap();
        lines[0]["state"] == "paused"
    });
    p.w.mount();
    // (Its source looks whether it has a daemon, and might find that it has none any more.)
    eventually("its source has looked", || p.w.log().contains("the mirror"));
    // Without a mount it has no daemon, before and after.
    p.w.darner(&["unmount", p.copy.to_str().unwrap()]);
    p.sync();
    assert_eq!(p.line()["state"], "stopped");
    p.w.darner(&["check", target]);
    p.mount_copy();
    assert_eq!(fs::read(p.copy.join("a")).unwrap(), b"later");
}

/// A mirror whose clock is a year ahead, or behind.
#[test]
fn what_a_command_waited_for_is_there_after_all_processes_of_the_mirror_were_killed() {
    let Some(p) = Pair::new() else { return };
    let target = p.target.to_str().unwrap();
    for n in 0..4u8 {
        fs::write(p.w.path("a"), vec![n; 100_000]).unwrap();
        p.sync();
        let pids = pids(&p.w, &p.target);
        for signal in [libc::SIGSTOP, libc::SIGKILL] {
            // SAFETY: plain system calls.
            pids.iter().for_each(|pid| assert_eq!(unsafe { libc::kill(*pid, signal) }, 0));
        }
        p.w.darner(&["unmount", p.copy.to_str().unwrap()]);
        // (Nobody follows while this is looked at.)
        p.w.darner(&["mirror", "pause", target]);
        p.mount_copy();
        assert!(fs::read(p.copy.join("a")).unwrap() == vec![n; 100_000], "round {n}");
        p.w.darner(&["mirror", "resume", target]);
    }
}

#[test]
fn a_mirror_whose_clock_is_wrong_by_a_year_follows_and_its_past_has_the_times_of_its_source() {
    if !common::has("faketime") {
        return;
    }
    for (by, seconds) in [("+365d", 31_536_000.0), ("-365d", -31_536_000.0)] {
        let Some(w) = World::new() else { return };
        let (mnt, target, copy) = (w.mnt.to_str().unwrap(), w.dir.join("target"), w.dir.join("copy"));
        let (store, copy_at) = (target.to_str().unwrap(), copy.to_str().unwrap());
        fs::write(w.path("a"), "one").unwrap();
        w.darner(&["mirror", "add", mnt, "copy", store]);
        w.darner(&["mirror", "sync", "--wait", store]);
        w.darner(&["mirror", "pause", store]);
        // From here on its daemon lives in another year.
        fs::create_dir(&copy).unwrap();
        let faked =
            "LD_PRELOAD=$(faketime -f +0 sh -c 'echo $LD_PRELOAD') NO_FAKE_STAT=1 FAKETIME_DONT_FAKE_MONOTONIC=1";
        w.sh_outside(&format!("{faked} FAKETIME={by} $DARNER mount {store} {copy_at}"));
        w.darner(&["mirror", "resume", store]);
        let (mut moments, names) = (Vec::new(), ["two", "three", "four"]);
        for name in names {
            fs::write(w.path("a"), name).unwrap();
            w.darner(&["mirror", "sync", "--wait", store]);
            assert_eq!(fs::read_to_string(copy.join("a")).unwrap(), name);
            moments.push((w.now(), w.sh_outside("date +%FT%T.%NZ -u")));
            std::thread::sleep(Duration::from_millis(50));
        }
        // (What is newer than all that it has, is the future to a clock that is behind.)
        fs::write(w.path("b"), "later").unwrap();
        w.darner(&["mirror", "sync", "--wait", store]);
        let lines: Value = serde_json::from_str(&w.darner(&["mirror", "list", "--json", store])).unwrap();
        let ahead = -lines[0]["clock_ahead_seconds"].as_f64().unwrap();
        assert!((ahead - seconds).abs() < 60.0, "its clock is {ahead} s ahead of its source's, not {seconds}");
        assert_eq!((&lines[0]["state"], &lines[0]["last_error"]), (&Value::from("follows"), &Value::Null));
        for ((tid, date), name) in moments.iter().zip(names) {
            for when in [tid, date] {
                assert_eq!(fs::read_to_string(copy.join(format!("a@@{when}"))).unwrap(), name, "{by}: as of {when}");
            }
        }
        w.darner(&["unmount", copy_at]);
        w.darner(&["mirror", "pause", store]);
        w.darner(&["check", store]);
        // One that is made by such a clock.
        let import = "$DARNER mirror import made";
        w.sh_outside(&format!(
            "$DARNER mirror export {mnt} | {faked} FAKETIME={by} {import}; $DARNER mount made {copy_at}"
        ));
        let four = w.sh_outside("date +%FT%T.%NZ -u");
        fs::write(w.path("a"), "five").unwrap();
        let since = lines[0]["at_tid"].as_str().unwrap();
        w.darner(&["unmount", copy_at]);
        w.sh_outside(&format!("$DARNER mirror export {mnt} --since {since} | {import}; $DARNER mount made {copy_at}"));
        assert_eq!(fs::read_to_string(copy.join("a")).unwrap(), "five");
        assert_eq!(fs::read_to_string(copy.join(format!("a@@{four}"))).unwrap(), "four", "{by}: as of {four}");
        w.darner(&["unmount", copy_at]);
    }
}

#[test]
fn the_day_the_disk_dies_the_mirror_becomes_the_filesystem() {
    let Some(p) = Pair::new() else { return };
    fs::create_dir(p.w.path("home")).unwrap();
    fs::write(p.w.path("home/letter"), "dear").unwrap();
    p.sync();
    p.w.kill();
    fs::remove_dir_all(&p.w.store).unwrap();
    assert!(refused(&["mirror", "promote", p.w.dir.join("nothing").to_str().unwrap()]).contains("nothing"));
    p.w.darner(&["mirror", "promote", p.target.to_str().unwrap()]);
    p.w.darner(&["unmount", p.copy.to_str().unwrap()]);
    p.mount_copy();
    assert_eq!(fs::read(p.copy.join("home/letter")).unwrap(), b"dear");
    fs::write(p.copy.join("home/letter"), "dear friend").unwrap();
    p.w.darner(&["unmount", p.copy.to_str().unwrap()]);
    p.mount_copy();
    assert_eq!(fs::read(p.copy.join("home/letter")).unwrap(), b"dear friend");
    p.w.darner(&["unmount", p.copy.to_str().unwrap()]);
    p.w.darner(&["check", p.target.to_str().unwrap()]);
}

#[test]
fn a_fileset_has_mirrors_and_a_mirror_has_one_too() {
    let Some(w) = World::new() else { return };
    let mnt = w.mnt.to_str().unwrap();
    w.darner(&["fileset", "create", mnt, "docs"]);
    fs::write(w.path("docs/a"), "text").unwrap();
    let dir = |name: &str| w.dir.join(name).to_str().unwrap().to_string();
    let mount = |store: &str, at: &str| {
        fs::create_dir_all(dir(at)).unwrap();
        w.darner(&["mount", "--log", &dir("log"), &dir(store), &dir(at)]);
    };
    w.darner(&["mirror", "add", &format!("{mnt}/docs"), "docs", &dir("store 1")]);
    assert!(refused(&["mirror", "add", mnt, "docs", &dir("store 9")]).contains("there is a mirror"));
    mount("store 1", "c1");
    w.darner(&["mirror", "sync", "--wait", mnt, "docs"]);
    w.darner(&["mirror", "add", &dir("c1"), "next", &dir("store 2")]);
    mount("store 2", "c2");
    eventually("it comes through both", || fs::read(dir("c2/a")).is_ok_and(|a| a == b"text"));
    fs::write(w.path("docs/a"), "other").unwrap();
    eventually("it comes through both", || fs::read(dir("c2/a")).is_ok_and(|a| a == b"other"));
    w.darner(&["mirror", "remove", mnt, "docs"]);
    assert_eq!(w.darner(&["mirror", "list", "--json", mnt]).trim(), "[]");
    w.darner(&["unmount", &dir("c2")]);
    w.darner(&["unmount", &dir("c1")]);
}

#[test]
fn a_stream_through_a_pipe_makes_a_mirror_and_brings_it_on() {
    let Some(w) = World::new() else { return };
    fs::create_dir(w.path("dir")).unwrap();
    fs::write(w.path("dir/a"), vec![5; 500_000]).unwrap();
    w.sh_outside("$DARNER mirror export $MNT --output $DIR/all 2>/dev/null; head -c -10 $DIR/all > $DIR/part");
    let said = w.sh_outside("$DARNER mirror export $MNT 2>said >&- && exit 9; cat said");
    assert!(said.contains("standard output is closed"), "{said}");
    let store = w.dir.join("again").to_str().unwrap().to_string();
    for cut in ["/dev/null", w.dir.join("part").to_str().unwrap()] {
        let said = refused(&["mirror", "import", &store, "--input", cut]);
        assert!(said.contains("the stream ended early: it can be read again"), "{said}");
    }
    w.sh_outside("$DARNER mirror import $DIR/again --input $DIR/all");
    let said = w.sh_outside("$DARNER mirror export $MNT | $DARNER mirror import \"$DIR/store far away\"");
    let at = said.split_whitespace().find(|word| word.starts_with("0x")).unwrap().to_string();
    // By the mirror's own time.
    std::thread::sleep(Duration::from_millis(20));
    let then = darner::frontend::now_ns();
    fs::remove_file(w.path("dir/a")).unwrap();
    fs::write(w.path("dir/b"), "new").unwrap();
    w.sh_outside(&format!("$DARNER mirror export $MNT --since {at} --output $DIR/file 2>/dev/null"));
    assert!(fs::metadata(w.dir.join("file")).unwrap().len() < 5000);
    w.sh_outside("$DARNER mirror import \"$DIR/store far away\" --input $DIR/file");
    let again = w.sh_outside("$DARNER mirror import \"$DIR/store far away\" --input $DIR/file");
    assert!(again.contains("which it did before"), "{again}");
    w.sh_outside("mkdir $DIR/copy; $DARNER mount --log $DIR/log \"$DIR/store far away\" $DIR/copy");
    assert_eq!(fs::read(w.dir.join("copy/dir/b")).unwrap(), b"new");
    assert!(!w.dir.join("copy/dir/a").exists());
    assert_eq!(fs::read(w.dir.join(format!("copy/dir/a@@{then:#x}"))).unwrap(), vec![5; 500_000]);
    // Nothing is to be had but by another stream, which is said at once.
    let store = w.dir.join("store far away").to_str().unwrap().to_string();
    assert!(refused(&["mirror", "sync", "--wait", &store]).contains("the next stream"));
    eventually("it is said in the list", || {
        w.darner(&["mirror", "list", &store]).contains("waits for: the next stream")
    });
    w.sh_outside("$DARNER unmount $DIR/copy");
}

#[test]
fn streams_behind_one_another_are_all_read_and_one_that_begins_later_makes_no_mirror() {
    let Some(w) = World::new() else { return };
    let dir = |name: &str| w.dir.join(name).to_str().unwrap().to_string();
    let mut since = String::from("0x0");
    for n in 1..4 {
        fs::write(w.path(&n.to_string()), "new").unwrap();
        w.sh_outside(&format!("$DARNER mirror export $MNT --since {since} --output $DIR/{n} 2>/dev/null"));
        let said = w.sh_outside(&format!("$DARNER mirror import $DIR/first --input $DIR/{n}"));
        since = said.split_whitespace().find(|word| word.starts_with("0x")).unwrap().into();
    }
    let said = refused(&["mirror", "import", &dir("second"), "--input", &dir("2")]);
    assert!(said.contains("export without --since") && !w.dir.join("second").exists(), "{said}");
    let said =
        w.sh_outside("cd $DIR; cat 1 2 3 | $DARNER mirror import second; cat 1 2 3 | $DARNER mirror import second");
    assert_eq!((said.lines().count(), said.matches("which it did before").count()), (6, 3), "{said}");
    w.sh_outside("mkdir $DIR/copy; $DARNER mount --log $DIR/log $DIR/second $DIR/copy");
    assert!((1..4).all(|n| w.dir.join(format!("copy/{n}")).exists()));
    w.sh_outside("$DARNER unmount $DIR/copy");
    // What follows and is none is told, and what came before it stays.
    let said = w.sh_outside("cd $DIR; (cat 1; echo what is this) | $DARNER mirror import third 2>&1 || true");
    assert!(said.contains("shows moment") && said.contains("this is no stream"), "{said}");
}

#[test]
fn an_import_that_is_killed_leaves_a_mirror_that_the_next_one_takes() {
    let Some(w) = World::new() else { return };
    fs::write(w.path("a"), "one").unwrap();
    w.sh_outside("$DARNER mirror export $MNT --output $DIR/all 2>/dev/null");
    w.sh_outside(
        "(head -c 150 $DIR/all; sleep 5) | timeout -s KILL 4 $DARNER mirror import $DIR/mirror || test -d $DIR/mirror",
    );
    w.sh_outside("$DARNER mirror import $DIR/mirror --input $DIR/all");
    w.sh_outside("mkdir $DIR/copy; $DARNER mount --log $DIR/log $DIR/mirror $DIR/copy");
    assert_eq!(fs::read(w.dir.join("copy/a")).unwrap(), b"one");
    w.sh_outside("$DARNER unmount $DIR/copy");
}

#[test]
fn what_rots_on_either_side_heals_from_the_other_and_comparing_finds_what_differs() {
    let Some(w) = World::new() else { return };
    let (mnt, target) = (w.mnt.to_str().unwrap().to_string(), w.dir.join("target"));
    let store = target.to_str().unwrap();
    let json = |args: &[&str]| -> Value { serde_json::from_str(&w.darner(args)).unwrap() };
    let mut rng = fastrand::Rng::with_seed(3);
    let mut random = || -> Vec<u8> { (0..300_000).map(|_| rng.u8(..)).collect() };
    let (first, second) = (random(), random());
    fs::write(w.path("victim"), &first).unwrap();
    w.darner(&["mirror", "add", &mnt, "copy", store]);
    w.darner(&["mirror", "sync", "--wait", &mnt, "copy"]);
    let same = json(&["mirror", "verify", "--data", "--json", &mnt, "copy"]);
    assert_eq!((&same["differing"], &same["failed"]), (&Value::from(0), &serde_json::json!([])), "{same}");
    assert!(
        same["keys"].as_u64() > Some(5) && same["at_tid"].as_str().is_some_and(|at| at.starts_with("0x")),
        "{same}"
    );
    let rot_mirror = |bytes: &[u8]| {
        w.darner(&["mirror", "pause", &mnt, "copy"]);
        rot(&target, bytes);
        w.darner(&["mirror", "resume", &mnt, "copy"]);
    };
    let healed = |at: &str| {
        let report = json(&["scrub", "--json", at]);
        assert_eq!((&report["damaged"], &report["healed"]), (&Value::from(0), &Value::from(1)), "{report}");
    };
    // A scrub of the mirror asks the source.
    rot_mirror(&first[8192..8208]);
    healed(store);
    // So does comparing, for what is shown; what is left of it in the past is for the scrub.
    rot_mirror(&first[200_000..200_016]);
    let dry = refused_json(&["mirror", "verify", "--data", "--dry-run", "--json", store]);
    assert_eq!((&dry["differing"], &dry["mended"]), (&Value::from(1), &Value::from(0)), "{dry}");
    let mended = json(&["mirror", "verify", "--data", "--json", store]);
    assert_eq!((&mended["differing"], &mended["mended"]), (&Value::from(1), &Value::from(1)), "{mended}");
    assert!(mended["differences"][0].as_str().unwrap().starts_with("/victim: bytes from "), "{mended}");
    healed(store);
    // Bytes of the past, which the source has in its own past.
    fs::write(w.path("victim"), &second).unwrap();
    w.darner(&["mirror", "sync", "--wait", &mnt, "copy"]);
    rot_mirror(&first[100_000..100_016]);
    healed(store);
    // And the source's from the mirror.
    w.darner(&["mirror", "sync", "--wait", &mnt, "copy"]);
    w.unmount();
    rot(&w.store, &second[4096..4112]);
    w.mount();
    healed(&mnt);
    assert!(fs::read(w.path("victim")).unwrap() == second);
    w.darner(&["mirror", "pause", &mnt, "copy"]);
    w.darner(&["check", store]);
}

#[test]
fn comparing_goes_on_where_the_source_is_damaged_and_heals_it_from_the_mirror() {
    let Some(w) = World::new() else { return };
    let (mnt, target) = (w.mnt.to_str().unwrap().to_string(), w.dir.join("target"));
    let store = target.to_str().unwrap();
    let mut rng = fastrand::Rng::with_seed(9);
    let files = ["healed", "lost", "mended"].map(|name| {
        let bytes: Vec<u8> = (0..100_000).map(|_| rng.u8(..)).collect();
        fs::write(w.path(name), &bytes).unwrap();
        bytes
    });
    w.darner(&["mirror", "add", &mnt, "copy", store]);
    w.darner(&["mirror", "sync", "--wait", &mnt, "copy"]);
    w.darner(&["mirror", "pause", &mnt, "copy"]);
    w.unmount();
    let part = |n: usize| &files[n][50_000..50_016];
    for (store, n) in [(&w.store, 0), (&w.store, 1), (&target, 1), (&target, 2)] {
        rot(store, part(n));
    }
    w.mount();
    w.darner(&["mirror", "resume", &mnt, "copy"]);
    for (damaged, healed, differing) in [(2, 1, 1), (1, 0, 0)] {
        let found = refused_json(&["mirror", "verify", "--data", "--json", &mnt, "copy"]);
        let counts = ["source_damaged", "source_healed", "differing", "mended"].map(|key| found[key].as_u64());
        assert_eq!(counts, [damaged, healed, differing, differing].map(Some), "{found}");
        let named = |list: &str, name: &str| {
            let list = found[list].as_array().unwrap();
            list.len() == 1 && list[0].as_str().unwrap().starts_with(name)
        };
        assert!(named("failed", "/lost: bytes from 0 on: damaged at the source"), "{found}");
        assert_eq!(named("healed", "/healed: bytes from "), healed > 0, "{found}");
        assert_eq!(named("differences", "/mended: bytes from "), differing > 0, "{found}");
    }
    w.darner(&["mirror", "pause", &mnt, "copy"]);
    assert!(fs::read(w.path("healed")).unwrap() == files[0]);
    w.forgive_errors();
}

#[test]
fn a_read_that_meets_damage_gets_the_bytes_from_the_other_side_and_holds_up_nobody() {
    let Some(w) = World::new() else { return };
    let (mnt, target) = (w.mnt.to_str().unwrap().to_string(), w.dir.join("target"));
    let store = target.to_str().unwrap();
    let mut rng = fastrand::Rng::with_seed(5);
    let victim: Vec<u8> = (0..300_000).map(|_| rng.u8(..)).collect();
    // (What packs well is stored as one block.)
    let text: Vec<u8> = (0..9000u32).flat_map(|n| format!("{n} ").into_bytes()).collect();
    fs::write(w.path("victim"), &victim).unwrap();
    fs::write(w.path("text"), &text[..30_000]).unwrap();
    fs::write(w.path("other"), "words").unwrap();
    w.darner(&["mirror", "add", &mnt, "copy", store]);
    w.darner(&["mirror", "sync", "--wait", &mnt, "copy"]);
    // The mirror's, from its source.
    w.darner(&["mirror", "pause", &mnt, "copy"]);
    rot(&target, &victim[8192..8208]);
    w.darner(&["mirror", "resume", &mnt, "copy"]);
    let copy = w.dir.join("copy");
    fs::create_dir(&copy).unwrap();
    w.darner(&["mount", store, copy.to_str().unwrap()]);
    assert!(fs::read(copy.join("victim")).unwrap() == victim);
    w.darner(&["unmount", copy.to_str().unwrap()]);
    // The source's, from its mirror, whose daemon stands still for a while.
    w.unmount();
    rot(&w.store, &victim[100_000..100_016]);
    rot(&w.store, &text[..13]);
    w.mount();
    w.darner(&["mirror", "sync", "--wait", &mnt, "copy"]);
    let pid = pids(&w, &target)[0];
    signal(pid, libc::SIGSTOP);
    let path = w.path("victim");
    let reader = std::thread::spawn(move || fs::read(path));
    std::thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    for n in 0..8 {
        fs::write(w.path(&format!("new {n}")), "text").unwrap();
    }
    assert_eq!(fs::read(w.path("other")).unwrap(), b"words");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert!(!reader.is_finished(), "nothing had to be asked for");
    signal(pid, libc::SIGCONT);
    assert!(reader.join().unwrap().unwrap() == victim);
    assert!(fs::read(w.path("text")).unwrap() == text[..30_000]);
    w.unmount();
    w.darner(&["mirror", "pause", store]);
    w.darner(&["check", w.store.to_str().unwrap()]);
    w.darner(&["check", store]);
}

/// What a command printed that had an exit code of 1.
#[track_caller]
fn refused_json(args: &[&str]) -> Value {
    let out = Command::new("timeout").args(["60", common::DARNER]).args(args).output().unwrap();
    assert_eq!(out.status.code(), Some(1), "darner {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

#[test]
fn the_list_tells_what_a_mirror_without_a_daemon_shows_or_that_it_is_not_known() {
    let Some(w) = World::new() else { return };
    let (mnt, target) = (w.mnt.to_str().unwrap().to_string(), w.dir.join("target"));
    let store = target.to_str().unwrap();
    fs::write(w.path("a"), "words").unwrap();
    w.darner(&["mirror", "add", &mnt, "copy", store]);
    w.darner(&["mirror", "sync", "--wait", &mnt, "copy"]);
    let line = || -> Value {
        let lines = w.darner(&["mirror", "list", "--json", &mnt]);
        serde_json::from_str::<Value>(&lines).unwrap()[0].clone()
    };
    let at = line()["at_tid"].clone();
    assert!(at.is_string());
    w.unmount();
    w.darner(&["mirror", "pause", store]);
    let own: Value = serde_json::from_str(&w.darner(&["mirror", "list", "--json", store])).unwrap();
    assert_eq!((&own[0]["at_tid"], &own[0]["state"]), (&at, &Value::from("paused")));
    assert!(w.darner(&["mirror", "list", store]).contains(&format!("moment: {}", at.as_str().unwrap())));
    w.mount();
    // (The mount has somebody look at it; meanwhile the list can't.)
    eventually("it has been looked at", || w.log().contains("this mirror is paused"));
    assert_eq!(line()["at_tid"], at);
    assert_eq!((&line()["state"], &line()["is_known"]), (&Value::from("stopped"), &Value::from(true)));
    let away = w.dir.join("away");
    fs::rename(&target, &away).unwrap();
    let told = w.darner(&["mirror", "list", &mnt]);
    assert!(told.contains("missing") && told.contains("not known") && !told.contains("nothing yet"), "{told}");
    fs::rename(&away, &target).unwrap();
    w.darner(&["mirror", "promote", store]);
    eventually("it was promoted", || line()["state"] == "promoted");
}

#[test]
fn a_mirror_with_a_limit_pulls_no_faster() {
    let Some(w) = World::new() else { return };
    let (mnt, target) = (w.mnt.to_str().unwrap().to_string(), w.dir.join("target"));
    let store = target.to_str().unwrap();
    let mut rng = fastrand::Rng::with_seed(4);
    fs::write(w.path("file"), (0..3 << 20).map(|_| rng.u8(..)).collect::<Vec<u8>>()).unwrap();
    let start = Instant::now();
    w.darner(&["mirror", "add", "--limit", "1M", &mnt, "copy", store]);
    w.darner(&["mirror", "sync", "--wait", &mnt, "copy"]);
    assert!(start.elapsed() > Duration::from_secs(2), "{:?}", start.elapsed());
    w.darner(&["mirror", "resume", "--limit", "none", &mnt, "copy"]);
    fs::write(w.path("file"), (0..3 << 20).map(|_| rng.u8(..)).collect::<Vec<u8>>()).unwrap();
    let start = Instant::now();
    w.darner(&["mirror", "sync", "--wait", &mnt, "copy"]);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn an_old_source_that_returns_is_told_and_follows_and_what_it_had_alone_is_kept() {
    let Some(p) = Pair::new() else { return };
    fs::write(p.w.path("both"), "one").unwrap();
    p.sync();
    p.w.unmount();
    p.w.darner(&["mirror", "promote", p.target.to_str().unwrap()]);
    p.w.darner(&["unmount", p.copy.to_str().unwrap()]);
    p.mount_copy();
    fs::write(p.copy.join("both"), "two").unwrap();
    fs::write(p.copy.join("there"), "new").unwrap();
    // It comes back, and knows nothing of that; somebody writes to it.
    let (store, target) = (p.w.store.to_str().unwrap(), p.target.to_str().unwrap());
    let out = Command::new(common::DARNER).args(["mount", store, p.w.mnt.to_str().unwrap()]).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success() && said.contains("was promoted") && said.contains("mirror return"), "{said}");
    fs::write(p.w.path("both"), "alone").unwrap();
    fs::write(p.w.path("orphaned"), "words").unwrap();
    assert!(refused(&["mirror", "return", store, target]).contains("is mounted at"));
    p.w.unmount();
    assert!(refused(&["mirror", "return", target, store]).contains("not mounted"));
    let told = p.w.darner(&["mirror", "return", store, target]);
    let name = told.split([' ', ':']).find(|word| word.starts_with("before-return-")).unwrap().to_string();
    p.w.darner(&["mirror", "sync", "--wait", store]);
    p.w.mount();
    assert_eq!(fs::read(p.w.path("both")).unwrap(), b"two");
    assert_eq!(fs::read(p.w.path("there")).unwrap(), b"new");
    assert!(!p.w.path("orphaned").exists());
    let alone = p.w.dir.join("alone");
    fs::create_dir(&alone).unwrap();
    p.w.darner(&["mount", "--fileset", &name, store, alone.to_str().unwrap()]);
    assert_eq!(fs::read(alone.join("orphaned")).unwrap(), b"words");
    assert_eq!(fs::read(alone.join("both")).unwrap(), b"alone");
    fs::write(alone.join("both"), "mine").unwrap();
    fs::write(p.copy.join("both"), "three").unwrap();
    eventually("it follows", || fs::read(p.w.path("both")).is_ok_and(|b| b == b"three"));
    assert_eq!(fs::read(alone.join("both")).unwrap(), b"mine");
    p.w.darner(&["unmount", alone.to_str().unwrap()]);
    let list = p.w.darner(&["fileset", "list", p.w.mnt.to_str().unwrap()]);
    assert!(list.contains(&name), "{list}");
    p.w.darner(&["fileset", "remove", "--force", p.w.mnt.to_str().unwrap(), &name]);
    p.w.darner(&["mirror", "pause", store]);
    p.w.unmount();
    p.w.darner(&["check", store]);
}

#[test]
fn two_stores_with_filesets_of_their_own_take_turns_and_each_follows_the_other_again_and_again() {
    let Some(p) = Pair::new() else { return };
    // What is there before, one fileset that goes, one that gets another name, and one that is made later.
    let darner = |args: &[&str]| p.w.darner(args);
    let root = p.w.mnt.to_str().unwrap();
    ["goes", "stays", "old"].iter().for_each(|name| drop(darner(&["fileset", "create", root, name])));
    fs::write(p.w.path("stays/inside"), "kept").unwrap();
    fs::write(p.w.path("file"), "0").unwrap();
    p.sync();
    darner(&["fileset", "remove", root, "goes"]);
    darner(&["fileset", "rename", root, "old", "new"]);
    darner(&["fileset", "create", root, "later"]);
    let mut stores = [(p.w.store.clone(), p.w.mnt.clone()), (p.target.clone(), p.copy.clone())];
    for round in 1..=4 {
        let [(old, old_mnt), (new, new_mnt)] = &stores;
        let (old, old_mnt, new, new_mnt) =
            (old.to_str().unwrap(), old_mnt.to_str().unwrap(), new.to_str().unwrap(), new_mnt.to_str().unwrap());
        // What only one has in the third round is all that is to be kept apart.
        let alone = Path::new(old_mnt).join("alone");
        if round == 3 {
            darner(&["mirror", "pause", new]);
            fs::write(&alone, "words").unwrap();
        }
        darner(&["unmount", old_mnt]);
        darner(&["mirror", "promote", new]);
        darner(&["unmount", new_mnt]);
        let out = Command::new(common::DARNER).args(["mount", new, new_mnt]).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success() && !said.contains(&format!("return {new} {old}")), "round {round}: {said}");
        if round % 2 == 0 {
            // (The mirror has its name in the first one.)
            assert!(said.contains(&format!("return {old} {new}")), "round {round}: {said}");
            // (Whoever has just been started for it may still look at it.)
            eventually("it is left behind", || darner(&["mirror", "list", new_mnt]).contains("left behind"));
        }
        fs::write(Path::new(new_mnt).join("file"), round.to_string()).unwrap();
        let told = darner(&["mirror", "return", old, new]);
        assert_eq!(told.contains("before-return-"), round == 3, "round {round}: {told}");
        darner(&["mirror", "sync", "--wait", old]);
        darner(&["mount", old, old_mnt]);
        let shown = fs::read_to_string(Path::new(old_mnt).join("file")).unwrap();
        assert_eq!((shown, alone.exists()), (round.to_string(), false), "round {round}");
        let names = |at: &str| {
            let mut names: Vec<_> = fs::read_dir(at).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            let apart = names.len();
            names.retain(|name| !name.to_string_lossy().starts_with("before-return-"));
            (apart - names.len(), names)
        };
        let others = if round % 2 == 1 { vec![] } else { vec!["later", "new", "stays"] };
        let mut all = [vec!["file"], others].concat();
        all.sort();
        let all: Vec<_> = all.into_iter().map(std::ffi::OsString::from).collect();
        assert_eq!(names(new_mnt), (usize::from(round == 4), all), "round {round}");
        assert_eq!(names(old_mnt), (0, vec!["file".into()]), "round {round}");
        let compared = darner(&["mirror", "verify", "--data", old_mnt]);
        assert!(compared.contains(" 0 differ"), "round {round}: {compared}");
        stores.swap(0, 1);
    }
    assert_eq!(fs::read_to_string(p.w.path("stays/inside")).unwrap(), "kept");
    let list = darner(&["fileset", "list", root]);
    assert!(list.contains("later") && list.contains("new") && !list.contains("goes"), "{list}");
    darner(&["unmount", root]);
    darner(&["mirror", "pause", p.target.to_str().unwrap()]);
    darner(&["unmount", p.copy.to_str().unwrap()]);
    [&p.w.store, &p.target].iter().for_each(|store| drop(darner(&["check", store.to_str().unwrap()])));
}

#[test]
fn a_mirror_compares_itself_with_its_source_and_its_list_tells_what_came_of_it() {
    let Some(p) = Pair::new() else { return };
    fs::write(p.w.path("a"), "text").unwrap();
    p.sync();
    assert_eq!(p.line()["compared"], Value::Null);
    p.mirror("verify", &["--every", "1s"]);
    eventually("it was compared", || !p.line()["compared"].is_null());
    let first = p.line()["compared"].clone();
    assert_eq!((first["differing"].as_u64(), &first["named"]), (Some(0), &serde_json::json!([])), "{first}");
    assert!(first["keys"].as_u64() > Some(3) && first["at_tid"].as_str() <= p.line()["at_tid"].as_str(), "{first}");
    fs::write(p.w.path("b"), "text").unwrap();
    eventually("it goes on", || p.line()["compared"]["at_tid"].as_str() > first["at_tid"].as_str());
    p.mirror("verify", &["--every", "never"]);
    // What was found is kept with the store, and shown to people.
    p.w.darner(&["unmount", p.copy.to_str().unwrap()]);
    p.mirror("pause", &[]);
    p.mirror("resume", &[]);
    let list = p.w.darner(&["mirror", "list", p.w.mnt.to_str().unwrap()]);
    assert!(list.contains("compared: ") && list.contains(" 0 differed"), "{list}");
    let clock = p.line()["clock_ahead_seconds"].as_f64();
    assert!(clock.is_none_or(|ahead| ahead.abs() < 2.0) && !list.contains("clock:"), "{clock:?}");
}

#[test]
fn a_mirror_whose_store_is_full_says_so_and_goes_on_when_there_is_room() {
    let Some(p) = Pair::new() else { return };
    let mut rng = fastrand::Rng::with_seed(6);
    let mut random = |len: usize| -> Vec<u8> { (0..len).map(|_| rng.u8(..)).collect() };
    fs::write(p.w.path("before"), "here").unwrap();
    p.sync();
    let copy = p.copy.to_str().unwrap();
    p.w.darner(&["volume", "resize", copy, "0", "64M"]);
    let large = random(100 << 20);
    fs::write(p.w.path("large"), &large).unwrap();
    eventually("it is full", || {
        let line = p.line();
        let room = line["waits_for"].as_str().is_some_and(|why| why.starts_with("room"));
        room && line["state"] == "waits" && line["last_error"].is_string()
    });
    // What it had, it shows: a moment at which the large file was not there, or not whole yet.
    assert_eq!(fs::read(p.copy.join("before")).unwrap(), b"here");
    let there = fs::read(p.copy.join("large")).unwrap_or_default();
    assert!(there.len() < large.len() && large.starts_with(&there), "{} bytes", there.len());
    p.w.darner(&["volume", "resize", copy, "0", "1G"]);
    eventually("it goes on", || fs::read(p.copy.join("large")).is_ok_and(|there| there == large));
    assert_eq!(p.line()["state"], "follows");
    p.w.darner(&["unmount", copy]);
    p.mirror("pause", &[]);
    p.w.darner(&["check", p.target.to_str().unwrap()]);
}

#[test]
fn a_mount_in_the_foreground_of_a_store_that_follows_stays_until_it_is_unmounted() {
    let Some(w) = World::new() else { return };
    let (mnt, target) = (w.mnt.to_str().unwrap().to_string(), w.dir.join("target"));
    fs::write(w.path("a"), "text").unwrap();
    w.darner(&["mirror", "add", &mnt, "copy", target.to_str().unwrap()]);
    w.darner(&["mirror", "sync", "--wait", &mnt, "copy"]);
    let copy = w.dir.join("copy");
    fs::create_dir(&copy).unwrap();
    let stays = || {
        let args = ["mount", "--foreground", target.to_str().unwrap(), copy.to_str().unwrap()];
        let child = Command::new(common::DARNER).args(args).spawn().unwrap();
        eventually("it is mounted", || copy.join("a").exists());
        child
    };
    let mut child = stays();
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "it returned");
    w.darner(&["unmount", copy.to_str().unwrap()]);
    assert!(child.wait().unwrap().success());
    // Told to end, it takes the mount away; the store goes on following.
    let mut child = stays();
    signal(child.id() as i32, libc::SIGTERM);
    assert!(child.wait().unwrap().success());
    assert!(!copy.join("a").exists());
    fs::write(w.path("a"), "more").unwrap();
    w.darner(&["mirror", "sync", "--wait", &mnt, "copy"]);
    w.darner(&["mirror", "pause", &mnt, "copy"]);
}
