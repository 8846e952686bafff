//! Volumes leave the store of a mirror, and that of its source, through the real program and the real kernel.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{DARNER, World, eventually, signal};
use serde_json::Value;

struct Pair {
    w: World,
    copy: PathBuf,
}

impl Pair {
    /// A store, and a mirror of it in the directory `target`, which has been there once.
    fn new() -> Option<Pair> {
        let w = World::new()?;
        let copy = w.dir.join("copy");
        fs::create_dir(&copy).unwrap();
        let p = Pair { w, copy };
        p.darner("mirror add MNT copy target");
        p.follows("begun");
        Some(p)
    }

    /// A command, with its paths.
    fn words(&self, line: &str) -> Vec<String> {
        let word = |word: &str| match word {
            "MNT" => self.w.mnt.to_string_lossy().into_owned(),
            "COPY" => self.copy.to_string_lossy().into_owned(),
            word => word.into(),
        };
        line.split(' ').map(word).collect()
    }

    fn run(&self, line: &str) -> std::process::Output {
        let mut command = Command::new("timeout");
        command.args(["60", DARNER]).args(self.words(line)).current_dir(&self.w.dir).output().unwrap()
    }

    #[track_caller]
    fn darner(&self, line: &str) -> String {
        let out = self.run(line);
        assert!(out.status.success(), "darner {line}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    #[track_caller]
    fn refused(&self, line: &str) -> String {
        let out = self.run(line);
        assert!(!out.status.success(), "darner {line} did not fail");
        String::from_utf8_lossy(&out.stderr).into_owned()
    }

    #[track_caller]
    fn line(&self) -> Value {
        serde_json::from_str::<Value>(&self.darner("mirror list --json MNT")).unwrap()[0].clone()
    }

    /// What is written is in the mirror after a command that names it.
    #[track_caller]
    fn follows(&self, what: &str) {
        fs::write(self.w.path("a"), what).unwrap();
        let status: Value = serde_json::from_str(&self.darner("status --json MNT")).unwrap();
        self.darner("mirror sync --wait MNT copy");
        let line = self.line();
        let number = |tid: &Value| u64::from_str_radix(&tid.as_str().unwrap()[2..], 16).unwrap();
        assert!(number(&line["at_tid"]) >= number(&status["tid"]), "{line}");
    }

    /// The only volume of the store that is mounted there is another one from now on, and what was there is gone.
    #[track_caller]
    fn swap(&self, mnt: &str, from: &str, to: &str) {
        self.darner(&format!("volume add {mnt} {to}"));
        let volumes: Value = serde_json::from_str(&self.darner(&format!("volume list {mnt} --json"))).unwrap();
        let is_it = |v: &&Value| v["path"].as_str().is_some_and(|path| Path::new(path).ends_with(from));
        let id = volumes.as_array().unwrap().iter().find(is_it).unwrap()["id"].as_u64().unwrap();
        self.darner(&format!("volume remove {mnt} {id}"));
        fs::remove_dir_all(self.w.dir.join(from)).unwrap();
    }

    /// Nobody serves the mirror any more, which is not mounted.
    fn end_mirror(&self, store: &str) {
        let status: Value = serde_json::from_str(&self.darner(&format!("status --json {store}"))).unwrap();
        let pids = ["daemon_pid", "supervisor_pid"].map(|name| status[name].as_i64().unwrap() as i32);
        [libc::SIGSTOP, libc::SIGKILL].iter().for_each(|s| pids.iter().for_each(|pid| signal(*pid, *s)));
        eventually("it has ended", || !self.run(&format!("status {store}")).status.success());
    }

    fn is_at(&self, line: &Value, which: &str, name: &str) -> bool {
        line[which].as_str() == self.w.dir.join(name).to_str()
    }
}

#[test]
fn a_mirror_finds_its_source_whichever_volumes_have_left_it() {
    let Some(p) = Pair::new() else { return };
    // It follows on over the link that it has, and over a new one.
    p.swap("MNT", "store", "s1");
    p.follows("one");
    assert!(p.is_at(&p.line(), "source", "s1"));
    p.end_mirror("target");
    p.darner("mirror sync --wait target");
    // One after the other, and then it has a daemon anew, which was told nothing.
    p.swap("MNT", "s1", "s2");
    p.follows("two");
    p.swap("MNT", "s2", "s3");
    p.follows("three");
    p.darner("unmount MNT");
    p.end_mirror("target");
    p.darner("mount s3 MNT");
    eventually("the source has it follow", || p.line()["state"] == "follows");
    p.follows("four");
    // While it is away: by the command that names it.
    p.darner("mirror pause MNT copy");
    p.swap("MNT", "s3", "s4");
    p.swap("MNT", "s4", "s5");
    fs::write(p.w.path("a"), "five").unwrap();
    let why = p.refused("mirror sync --wait target");
    assert!(why.contains("s3"), "{why}");
    p.darner("mirror sync --wait MNT copy");
    assert_eq!(p.line()["state"], "stopped");
    p.darner("mirror sync --wait target");
    p.swap("MNT", "s5", "s6");
    p.darner("mirror resume MNT copy");
    p.follows("six");
    // And by the source's next mount.
    p.end_mirror("target");
    p.swap("MNT", "s6", "s7");
    p.darner("unmount MNT");
    p.darner("mount s7 MNT");
    eventually("the source has it follow", || p.line()["state"] == "follows");
    p.darner("mirror sync --wait target");
    p.follows("seven");
    // What a mount that is named by a volume which has left leads to, can be followed, too.
    p.swap("MNT", "s7", "s8");
    p.darner("mirror export MNT --output stream");
    p.follows("eight");
    p.darner("mount target COPY");
    assert_eq!(fs::read(p.copy.join("a")).unwrap(), b"eight");
    p.darner("mirror verify MNT copy");
    p.darner("unmount COPY");
    p.darner("mirror remove MNT copy");
    p.darner("check target");
}

#[test]
fn a_mirror_is_found_by_its_name_whichever_volumes_have_left_it() {
    let Some(p) = Pair::new() else { return };
    p.darner("mount target COPY");
    p.swap("COPY", "target", "m1");
    // (Its next look tells where it is.)
    p.darner("mirror sync --wait COPY");
    p.follows("one");
    assert!(p.is_at(&p.line(), "target", "m1"));
    p.darner("unmount MNT");
    p.darner("unmount COPY");
    p.end_mirror("m1");
    p.darner("mount store MNT");
    p.follows("two");
    p.darner("mount m1 COPY");
    p.follows("three");
    assert_eq!(fs::read(p.copy.join("a")).unwrap(), b"three");
    // One that is paused, and mounted, tells all the same; it is found when it is not mounted.
    p.darner("mirror pause MNT copy");
    p.swap("COPY", "m1", "m2");
    p.swap("COPY", "m2", "m3");
    eventually("the source knows", || p.is_at(&p.line(), "target", "m3"));
    assert_eq!(p.line()["state"], "paused");
    p.darner("unmount COPY");
    fs::write(p.w.path("a"), "four").unwrap();
    p.darner("mirror sync --wait MNT copy");
    assert_eq!(p.line()["state"], "stopped");
    p.darner("mirror resume MNT copy");
    p.follows("five");
    p.end_mirror("m3");
    p.follows("six");
    // Another store is where it was, which is no business of ours.
    p.darner("create m1");
    p.darner("create target");
    p.darner("mount m3 COPY");
    p.swap("COPY", "m3", "m4");
    p.darner("mirror sync --wait COPY");
    p.darner("create m3");
    p.darner("mirror pause MNT copy");
    assert_eq!(p.line()["state"], "paused");
    p.darner("mirror resume MNT copy");
    p.follows("seven");
    // The source is away meanwhile, and learns of it when it is back; before it can, it says so.
    p.darner("unmount MNT");
    p.swap("COPY", "m4", "m5");
    p.darner("mount store MNT");
    eventually("the source knows", || p.is_at(&p.line(), "target", "m5"));
    p.follows("eight");
    assert_eq!(fs::read(p.copy.join("a")).unwrap(), b"eight");
    p.darner("unmount COPY");
    p.darner("mirror pause MNT copy");
    fs::rename(p.w.dir.join("m5"), p.w.dir.join("moved")).unwrap();
    assert_eq!(p.line()["state"], "missing");
    let why = p.refused("mirror sync --wait MNT copy");
    assert!(why.contains("is not where it was") && why.contains("m5"), "{why}");
    p.darner("mirror sync --wait moved");
    p.darner("mirror resume MNT copy");
    p.follows("nine");
    assert!(p.is_at(&p.line(), "target", "moved"));
    p.darner("mirror remove MNT copy");
    p.darner("check moved");
}

#[test]
fn copies_of_a_mirror_and_of_its_source_are_not_taken_for_them() {
    let Some(p) = Pair::new() else { return };
    p.darner("mirror pause MNT copy");
    p.darner("unmount MNT");
    p.w.sh_outside("cp -a store store2; cp -a target target2; mkdir mnt2");
    p.darner("mount store MNT");
    // A copy of the mirror follows as well, and does not get its name.
    p.darner("mirror resume target2");
    p.darner("mirror sync --wait target2");
    p.darner("mirror pause target2");
    assert!(p.is_at(&p.line(), "target", "target"));
    p.darner("mirror resume MNT copy");
    p.follows("the source's");
    // A copy of the source knows the mirror by its name, which follows the source, though that is not mounted.
    p.darner("mount store2 mnt2");
    fs::write(p.w.dir.join("mnt2/a"), "the copy's").unwrap();
    p.darner("mirror sync --wait mnt2 copy");
    p.darner("unmount MNT");
    // (A daemon that ends answers over the links that there are until it has ended.)
    let of_mirror = || serde_json::from_str::<Value>(&p.darner("mirror list --json target")).unwrap()[0].clone();
    eventually("it waits for its source", || of_mirror()["state"] == "waits");
    let why = p.refused("mirror sync --wait mnt2 copy");
    assert!(why.contains("is not mounted") || why.contains("the link broke"), "{why}");
    p.darner("unmount mnt2");
    // Where the source is nowhere else, what is like it is taken for it.
    fs::rename(p.w.dir.join("store"), p.w.dir.join("moved")).unwrap();
    p.darner("mount moved MNT");
    p.follows("the source's, moved");
    p.darner("mirror remove MNT copy");
    p.darner("mount target COPY");
    assert_eq!(fs::read(p.copy.join("a")).unwrap(), b"the source's, moved");
    p.darner("unmount COPY");
}
