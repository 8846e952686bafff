//! The processes behind attachments: replaced by other programs, given up and taken up again, killed all at once, and those of
//! ordinary users.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::attached::{attach, status};
use common::{DARNER, World, eventually};

const HELLO: &str = "Hello from a process of its own.\n";

fn signal(pids: &[i64], signal: i32) {
    pids.iter().for_each(|pid| common::signal(*pid as i32, signal));
}

/// A program that fails at once.
fn broken(at: &Path) {
    fs::write(at, "#!/bin/sh\nexit 3\n").unwrap();
    fs::set_permissions(at, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Makes, renames, reads and removes files until told to stop; nothing may fail.
fn use_it(dir: &Path, stop: &AtomicBool) -> (usize, Duration) {
    let (mut n, mut longest) = (0, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        let (one, two) = (dir.join(format!("one {}", n % 7)), dir.join("two"));
        fs::create_dir(dir.join("dir")).unwrap();
        fs::write(&one, n.to_string().repeat(100)).unwrap();
        assert_eq!(fs::read_to_string(&one).unwrap(), n.to_string().repeat(100));
        // (To the next process, one that is open and was renamed is another file: FAT has no numbers for them.)
        fs::rename(&one, &two).unwrap();
        assert_eq!(fs::metadata(&two).unwrap().len(), n.to_string().len() as u64 * 100);
        fs::remove_file(&two).unwrap();
        fs::remove_dir(dir.join("dir")).unwrap();
        (n, longest) = (n + 1, longest.max(start.elapsed()));
    }
    (n, longest)
}

#[test]
fn an_upgrade_reaches_attachments_in_use_and_nothing_fails() {
    let Some(world) = World::new() else { return };
    if !common::has("mkfs.fat") {
        return;
    }
    let other = world.dir.join("darner-new");
    fs::copy(DARNER, &other).unwrap();
    let image = world.path("fat.img");
    world.sh_outside(&format!("truncate -s 8M {0}; mkfs.fat {0} >/dev/null", image.display()));
    let fat = attach(&world, "fat", &["--writable", "msdosfs", image.to_str().unwrap()]);
    let hello = attach(&world, "hi", &["hello"]).join("hello.txt");
    let (stop, mnt) = (AtomicBool::new(false), world.mnt.to_str().unwrap());
    let all_run = |program: &Path| {
        for dir in ["fat", "hi"] {
            let pid = status(&world, dir)["host_pid"].as_i64().unwrap();
            assert_eq!(fs::read_link(format!("/proc/{pid}/exe")).unwrap(), program, "{dir}");
        }
    };
    thread::scope(|s| {
        let (stop, fat) = (&stop, &fat);
        let load = s.spawn(move || use_it(fat, stop));
        let stopping = StopOnDrop(stop);
        for _ in 0..if common::long() { 100 } else { 2 } {
            let said = world.darner(&["upgrade", mnt, "--program", other.to_str().unwrap()]);
            assert!(said.contains("/fat: process ") && said.contains("/hi: process "), "{said}");
            all_run(&other);
            assert_eq!(fs::read_to_string(&hello).unwrap(), HELLO);
            world.darner(&["upgrade", mnt]);
            all_run(Path::new(DARNER));
        }
        drop(stopping);
        let (n, longest) = load.join().unwrap();
        eprintln!("{n} rounds of use, the longest took {longest:?}");
        assert!(n > 5);
    });
    for dir in ["fat", "hi"] {
        world.darner(&["detach", world.path(dir).to_str().unwrap()]);
    }
    world.sh_outside(&format!("fsck.fat -n {}", image.display()));
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_host_that_fails_at_every_start_is_given_up_and_an_upgrade_takes_it_up_again() {
    let Some(world) = World::new() else { return };
    let own = world.dir.join("darner-own");
    fs::copy(DARNER, &own).unwrap();
    let at = world.path("hi");
    fs::create_dir(&at).unwrap();
    let log = world.dir.join("host.log");
    let out = Command::new(&own).args(["attach", "--log"]).arg(&log).arg(&at).arg("hello").output().unwrap();
    assert!(out.status.success(), "{out:?}");
    assert_eq!(fs::read_to_string(at.join("hello.txt")).unwrap(), HELLO);
    fs::remove_file(&own).unwrap();
    broken(&own);
    signal(&[status(&world, "hi")["host_pid"].as_i64().unwrap()], libc::SIGKILL);
    // Whoever asks is told in the end, and commands are, too.
    assert_eq!(fs::metadata(at.join("none")).unwrap_err().raw_os_error(), Some(libc::EIO));
    let names = [format!("the host of {} ", at.display()), format!("`darner upgrade {}`", world.mnt.display())];
    eventually("it says so", || {
        let said = status(&world, "hi")["state"].as_str().unwrap().to_string();
        names.iter().all(|name| said.contains(name))
    });
    assert!(fs::read_to_string(&log).unwrap().contains("given up"));
    world.darner(&["upgrade", world.mnt.to_str().unwrap()]);
    assert_eq!(status(&world, "hi")["state"], "runs");
    assert_eq!(fs::metadata(at.join("none")).unwrap_err().raw_os_error(), Some(libc::ENOENT));
    assert_eq!(fs::read_to_string(at.join("hello.txt")).unwrap(), HELLO);
    world.darner(&["detach", at.to_str().unwrap()]);
}

#[test]
fn an_attachment_outside_of_every_mount_is_looked_at_and_upgraded_by_its_directory() {
    let Some(world) = World::new() else { return };
    let (other, at) = (world.dir.join("darner-new"), world.dir.join("outside"));
    fs::copy(DARNER, &other).unwrap();
    fs::create_dir(&at).unwrap();
    let dir = at.to_str().unwrap();
    world.darner(&["attach", "--log", world.dir.join("host.log").to_str().unwrap(), dir, "hello"]);
    let file = at.join("hello.txt");
    let status = || -> serde_json::Value {
        let all: serde_json::Value = serde_json::from_str(&world.darner(&["status", "--json", dir])).unwrap();
        let all = all["attachments"].as_array().unwrap();
        assert_eq!(all.len(), 1);
        all[0].clone()
    };
    assert!(world.darner(&["status", file.to_str().unwrap()]).contains("outside (hello, read-only): runs, process "));
    let before = status();
    assert_eq!((before["program"].as_str(), before["directory"].as_str()), (Some(DARNER), Some(dir)));
    let said = world.darner(&["upgrade", dir, "--program", other.to_str().unwrap()]);
    let (after, pid) = (status(), before["host_pid"].as_i64().unwrap());
    assert!(said.contains(&format!("outside: process {pid}, version ")), "{said}");
    assert_eq!(after["program"].as_str(), other.to_str());
    assert!(after["started"].as_str().unwrap() > before["started"].as_str().unwrap());
    // A program that does not serve is not taken for one that does, because a process of another number does.
    let out = Command::new(DARNER).args(["upgrade", dir, "--program", "/bin/false"]).output().unwrap();
    let said = String::from_utf8(out.stderr).unwrap();
    let named = ["/bin/false did not come to serve as the host of", "exit status: 1", "darner-new serves again"];
    assert!(!out.status.success() && named.iter().all(|n| said.contains(n)), "{said}");
    assert_eq!(fs::read_to_string(&file).unwrap(), HELLO);
    world.darner(&["detach", dir]);
    let out = Command::new(DARNER).args(["status", dir]).output().unwrap();
    assert!(!out.status.success() && String::from_utf8_lossy(&out.stderr).contains("not in a darner mount"));
}

#[test]
fn an_attachment_whose_processes_are_all_killed_at_once_goes_away_by_itself() {
    let Some(world) = World::new() else { return };
    let outer = attach(&world, "hi", &["hello"]);
    attach(&world, "other", &["hello"]);
    let s = status(&world, "hi");
    let pids = ["supervisor_pid", "host_pid"].map(|who| s[who].as_i64().unwrap());
    // Stopped first: neither is to start the other.
    signal(&pids, libc::SIGSTOP);
    signal(&pids, libc::SIGKILL);
    eventually("it is not mounted any more", || {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        !mounts.contains(&format!(" {} ", outer.display()))
    });
    assert_eq!(fs::read_dir(&outer).unwrap().count(), 0);
    eventually("its plug-in ends", || !PathBuf::from(format!("/proc/{}", s["plugin_pid"])).exists());
    assert_eq!(fs::read_to_string(world.path("other/hello.txt")).unwrap(), HELLO);
    // And can be attached again.
    attach(&world, "hi", &["hello"]);
    assert_eq!(fs::read_to_string(outer.join("hello.txt")).unwrap(), HELLO);
}

/// An ordinary user with a name.
const NOBODY: u32 = 65534;

/// A directory of an ordinary user, who may use FUSE, in a mount namespace of its own: on the machine they may not everywhere.
struct Ordinary {
    dir: tempfile::TempDir,
    holder: Child,
}

impl Ordinary {
    fn new() -> Option<Ordinary> {
        let needed = ["setpriv", "fusermount3", "unshare", "nsenter"];
        if !common::can_mount() || !needed.iter().all(|p| common::has(p)) {
            return None;
        }
        let dir = tempfile::Builder::new().prefix("darner-user-").tempdir().unwrap();
        fs::copy(DARNER, dir.path().join("darner")).unwrap();
        std::os::unix::fs::chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        // (What other tests have mounted is not to be kept here.)
        let script = "for at in $(awk '$3 ~ /^fuse/ {print $2}' /proc/self/mounts | tac); do umount -l $at; done
            mknod -m 666 fuse c 10 229 && mount --bind fuse /dev/fuse && echo user_allow_other > conf && touch /etc/fuse.conf
            mount --bind conf /etc/fuse.conf && touch ready && exec sleep 600";
        let mut command = Command::new("unshare");
        let holder = command.args(["-m", "bash", "-c", script]).current_dir(dir.path()).spawn().unwrap();
        eventually("there is a namespace", || dir.path().join("ready").exists());
        Some(Ordinary { dir, holder })
    }

    fn try_sh(&self, script: &str) -> Output {
        let mut command = Command::new("timeout");
        command.args(["60", "nsenter", "-m", "-t", &self.holder.id().to_string(), "setpriv", "--reuid", "nobody"]);
        command.args(["--regid", "nogroup", "--clear-groups", "bash", "-euc"]);
        command.arg(format!("cd {}; {script}", self.dir.path().display())).output().unwrap()
    }

    fn sh(&self, script: &str) -> String {
        let out = self.try_sh(script);
        assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    fn attachment(&self) -> serde_json::Value {
        let all: serde_json::Value = serde_json::from_str(&self.sh("./darner status --json ./mnt")).unwrap();
        all["attachments"][0].clone()
    }
}

impl Drop for Ordinary {
    fn drop(&mut self) {
        common::clean_up(self.dir.path());
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

#[test]
fn an_ordinary_user_attaches_through_fusermount_and_what_is_killed_goes_on() {
    let Some(user) = Ordinary::new() else { return };
    // A user's mount is closed to others, of which fusermount3 is one.
    user.sh("mkdir mnt plain; ./darner mount --create ./store ./mnt; mkdir mnt/hi");
    let said = user.try_sh("./darner attach ./mnt/hi hello").stderr;
    assert!(String::from_utf8_lossy(&said).contains("-o allow_other"), "{}", String::from_utf8_lossy(&said));
    user.sh("./darner attach ./plain hello; cat plain/hello.txt; ./darner detach ./plain; ./darner unmount ./mnt");
    user.sh(
        "./darner mount --log daemon.log -o allow_other ./store ./mnt; ./darner attach --log host.log ./mnt/hi hello",
    );
    assert_eq!(user.sh("cat mnt/hi/hello.txt"), HELLO);
    let a = user.attachment();
    assert_eq!((a["state"].as_str(), a["sandbox_lacks"].as_array().map(Vec::len)), (Some("runs"), Some(0)));
    let owner = |pid: &serde_json::Value| {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        text.lines().find_map(|l| l.strip_prefix("Uid:")).unwrap().split_whitespace().next().unwrap().to_string()
    };
    for who in ["plugin_pid", "host_pid", "supervisor_pid"] {
        let before = user.attachment()[who].clone();
        assert_eq!(owner(&before), NOBODY.to_string());
        signal(&[before.as_i64().unwrap()], libc::SIGKILL);
        assert_eq!(user.sh("cat < mnt/hi/hello.txt; stat mnt/hi/none 2>/dev/null || true"), HELLO);
        eventually("there is another one", || {
            let now = user.attachment()[who].clone();
            !now.is_null() && now != before
        });
    }
    user.sh("./darner upgrade ./mnt");
    assert_eq!(user.sh("cat mnt/hi/hello.txt"), HELLO);
    // Both killed at once: the daemon that sees to that is an ordinary user's, too.
    let pids = ["supervisor_pid", "host_pid"].map(|who| user.attachment()[who].as_i64().unwrap());
    signal(&pids, libc::SIGSTOP);
    signal(&pids, libc::SIGKILL);
    eventually("the dead mount goes away", || user.try_sh("! grep -q $PWD/mnt/hi /proc/self/mounts").status.success());
    user.sh("./darner attach ./mnt/hi hello; cat mnt/hi/hello.txt; ./darner detach ./mnt/hi; test -z \"$(ls mnt/hi)\"");
    user.sh("./darner attach ./mnt/hi hello; ./darner unmount ./mnt");
}

#[test]
fn nothing_that_stays_in_the_background_holds_what_the_shell_had_open() {
    let Some(world) = World::unmounted() else { return };
    let open = "exec 9<secret 60>>lock; flock -n 60; ";
    world.sh_outside("echo secret > secret; mkdir mnt");
    world.sh_outside(&format!("{open} $DARNER mount --create store mnt; exec 60>&-; flock -n lock true"));
    world.sh_outside(&format!("{open} mkdir mnt/hi; $DARNER attach mnt/hi hello; exec 60>&-; flock -n lock true"));
    let (mount, hi) = (world.status(), status(&world, "hi"));
    let pids = ["daemon_pid", "supervisor_pid"].map(|name| mount[name].as_i64().unwrap()).into_iter();
    for pid in pids.chain(["plugin_pid", "host_pid", "supervisor_pid"].map(|name| hi[name].as_i64().unwrap())) {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let open: Vec<PathBuf> = fds.map(|fd| fs::read_link(fd.unwrap().path()).unwrap_or_default()).collect();
        assert!(open.len() > 2, "{pid}: {open:?}");
        assert!(!open.iter().any(|path| path.starts_with(world.dir.join("secret"))), "{pid}: {open:?}");
    }
}
