//! A store and its mounts for one test: the real program, the real kernel. Whatever the test does, they are gone afterwards.
//!
//! A watchdog kills the daemons and detaches the mounts if a test takes too long: then its system calls fail rather than hang.

#![allow(dead_code)]

pub mod attached;

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;

pub const DARNER: &str = env!("CARGO_BIN_EXE_darner");

/// Takes the index away from a store in a directory; a script for [`World::sh_outside`].
pub const LOSE_INDEX: &str = "for f in store/region-*; do if grep -q DARNTBL $f; then rm $f; fi; done";

/// No test may take longer.
const PATIENCE: Duration = Duration::from_secs(150);
const LONG_PATIENCE: Duration = Duration::from_secs(1500);

pub struct World {
    pub dir: PathBuf,
    /// Mount point of the live tree.
    pub mnt: PathBuf,
    pub store: PathBuf,
    watchdog: Option<(Sender<()>, JoinHandle<()>)>,
}

/// Whether this machine can mount; says so loudly if not.
pub fn can_mount() -> bool {
    // SAFETY: this call can't fail.
    let root = unsafe { libc::geteuid() } == 0;
    let device = std::fs::File::options().read(true).write(true).open("/dev/fuse");
    if root && device.is_ok() {
        return true;
    }
    eprintln!("SKIPPED: {} needs root and /dev/fuse", thread::current().name().unwrap_or("a test"));
    false
}

/// Whether a program is there; says so loudly if not.
pub fn has(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program} >/dev/null")]).status();
    let found = found.is_ok_and(|s| s.success());
    if !found {
        eprintln!("SKIPPED: {} needs {program}", thread::current().name().unwrap_or("a test"));
    }
    found
}

/// Whether the long forms are wanted.
pub fn long() -> bool {
    std::env::var_os("DARNER_LONG").is_some()
}

/// Runs one seed, so many in the long form, or the one that the environment variable names.
pub fn each_seed(variable: &str, in_long: u64, live: impl Fn(u64)) {
    if !can_mount() {
        return;
    }
    let seeds = match std::env::var(variable) {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => (1..=if long() { in_long } else { 1 }).collect::<Vec<u64>>(),
    };
    for seed in seeds {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| live(seed))) {
            eprintln!("failed with {variable}={seed}");
            resume_unwind(panic);
        }
    }
}

impl World {
    /// A new store, not mounted; `None` where nothing can be mounted.
    pub fn unmounted() -> Option<World> {
        if !can_mount() {
            return None;
        }
        let dir = tempfile::Builder::new().prefix("darner-").tempdir().unwrap().keep();
        // Other users walk through it.
        std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let (stop, stopped) = channel();
        let guarded = dir.clone();
        let watchdog = thread::spawn(move || {
            let patience = if long() { LONG_PATIENCE } else { PATIENCE };
            if stopped.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
                eprintln!("a test took longer than {patience:?}: its daemons are killed");
                clean_up(&guarded);
            }
        });
        let world = World { mnt: dir.join("mnt"), store: dir.join("store"), dir, watchdog: Some((stop, watchdog)) };
        Some(world)
    }

    /// A new store, mounted on `mnt`.
    pub fn new() -> Option<World> {
        let world = World::unmounted()?;
        world.mount();
        Some(world)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.mnt.join(name)
    }

    /// Mounts the live tree on `mnt`.
    #[track_caller]
    pub fn mount(&self) {
        self.mount_at("mnt", &["--create"]).unwrap();
    }

    /// Mounts with options on a directory of the test's; the error is what the command said.
    pub fn mount_at(&self, name: &str, options: &[&str]) -> Result<PathBuf, String> {
        let mountpoint = self.dir.join(name);
        std::fs::create_dir_all(&mountpoint).map_err(|e| e.to_string())?;
        let log = self.dir.join("daemon.log");
        let mut command = Command::new("timeout");
        command.args(["60", DARNER, "mount"]).args(options).arg("--log").arg(log).arg(&self.store).arg(&mountpoint);
        let out = command.output().unwrap();
        match out.status.success() {
            true => Ok(mountpoint),
            false => Err(String::from_utf8_lossy(&out.stderr).into_owned()),
        }
    }

    /// `darner unmount`.
    #[track_caller]
    pub fn unmount(&self) {
        self.darner(&["unmount", self.mnt.to_str().unwrap()]);
    }

    #[track_caller]
    pub fn remount(&self) {
        self.unmount();
        self.mount();
    }

    /// Kills the daemon and its supervisor without warning, and takes the dead mount away.
    pub fn kill(&self) {
        self.kill_all();
        self.detach();
    }

    /// Kills both, neither of which can start the other any more. What uses the mount fails then.
    pub fn kill_all(&self) {
        let pids = self.pids();
        for signal in [libc::SIGSTOP, libc::SIGKILL] {
            // SAFETY: plain system calls.
            pids.iter().for_each(|pid| assert_eq!(unsafe { libc::kill(*pid, signal) }, 0));
        }
        // (Until then they have the store's locks.)
        let is_gone =
            |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "));
        eventually("who was killed is gone", || pids.iter().all(is_gone));
    }

    /// Of the daemon and of the supervisor that have what is mounted.
    pub fn pids(&self) -> [i32; 2] {
        // (A volume may have left the store.)
        let s: Value = serde_json::from_str(&self.darner(&["status", "--json", self.mnt.to_str().unwrap()])).unwrap();
        ["daemon_pid", "supervisor_pid"].map(|name| s[name].as_i64().expect("there are both") as i32)
    }

    pub fn supervisor_pid(&self) -> i32 {
        self.status()["supervisor_pid"].as_i64().unwrap() as i32
    }

    /// Takes a dead mount away.
    pub fn detach(&self) {
        detach(&self.mnt);
    }

    pub fn daemon_pid(&self) -> i32 {
        self.status()["daemon_pid"].as_i64().unwrap() as i32
    }

    #[track_caller]
    pub fn status(&self) -> Value {
        serde_json::from_str(&self.darner(&["status", "--json", self.store.to_str().unwrap()])).unwrap()
    }

    /// The newest moment, as a name takes it: `0x…`.
    #[track_caller]
    pub fn now(&self) -> String {
        self.status()["tid"].as_str().unwrap().to_string()
    }

    /// Live objects.
    #[track_caller]
    pub fn objects(&self) -> u64 {
        self.status()["objects"].as_u64().unwrap()
    }

    /// Runs darner; returns what it printed.
    #[track_caller]
    pub fn darner(&self, args: &[&str]) -> String {
        let out = Command::new("timeout").args(["60", DARNER]).args(args).output().unwrap();
        assert!(out.status.success(), "darner {args:?}: {}", said(&out));
        String::from_utf8(out.stdout).unwrap()
    }

    /// Runs a bash script in the mount (`$MNT`; `$DIR` is outside); returns what it printed.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        let out = self.try_sh(script);
        assert!(out.status.success(), "{script}\n{}", said(&out));
        String::from_utf8_lossy(&out.stdout).trim_end().to_string()
    }

    /// The same, failing or not.
    pub fn try_sh(&self, script: &str) -> Output {
        self.bash(script, &self.mnt)
    }

    /// Runs a bash script beside the mount, which it does not keep busy.
    #[track_caller]
    pub fn sh_outside(&self, script: &str) -> String {
        let out = self.bash(script, &self.dir);
        assert!(out.status.success(), "{script}\n{}", said(&out));
        String::from_utf8_lossy(&out.stdout).trim_end().to_string()
    }

    fn bash(&self, script: &str, within: &Path) -> Output {
        let mut command = Command::new("timeout");
        command.args(["-k", "5", if long() { "900" } else { "120" }, "bash", "-euo", "pipefail", "-c", script]);
        command.current_dir(within).env("MNT", &self.mnt).env("DIR", &self.dir).env("DARNER", DARNER);
        command.output().unwrap()
    }

    /// That the daemons complained is what the test wanted.
    pub fn forgive_errors(&self) {
        let _ = std::fs::remove_file(self.dir.join("daemon.log"));
    }

    /// What the daemons wrote to their log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("daemon.log")).unwrap_or_default()
    }
}

fn said(out: &Output) -> String {
    format!("{}{}({})", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr), out.status)
}

fn detach(mountpoint: &Path) {
    let path = c_string(mountpoint);
    // SAFETY: a NUL-terminated string that outlives the call.
    while unsafe { libc::umount2(path.as_ptr(), libc::MNT_FORCE | libc::MNT_DETACH) } == 0 {}
}

/// Kills the daemons whose command line names the directory, and detaches all that is mounted in it.
pub fn clean_up(dir: &Path) {
    // Stopped first: none is to start another.
    signal_daemons(dir, libc::SIGSTOP);
    signal_daemons(dir, libc::SIGKILL);
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mounts = table.lines().filter_map(|l| l.split(' ').nth(1)).map(PathBuf::from);
    mounts.filter(|m| m.starts_with(dir)).for_each(|m| detach(&m));
}

fn signal_daemons(dir: &Path, signal: i32) {
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|b| *b == 0).collect();
        let names = [&b"daemon"[..], b"worker", b"attachment", b"host"];
        let ours = names.iter().any(|name| words.get(1) == Some(name))
            && words.iter().any(|w| w.starts_with(dir.as_os_str().as_bytes()));
        if ours {
            // SAFETY: a plain system call.
            unsafe { libc::kill(pid, signal) };
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- log of the daemon ---\n{}", self.log());
        }
        clean_up(&self.dir);
        let log = self.log();
        if let Some((stop, watchdog)) = self.watchdog.take() {
            drop(stop);
            let _ = watchdog.join();
        }
        let busy = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        // Never delete through a mount that would not go.
        if !busy.contains(self.dir.to_str().unwrap()) {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
        if !thread::panicking() {
            assert!(!log.contains("panicked") && !log.contains(" ERROR "), "the daemon complained:\n{log}");
        }
    }
}

/// Waits until something holds.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}: not within 20 s");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Whether the kernel has names expire that it is told of (Linux 6.2).
pub fn names_expire() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|n| n.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(2))
}

/// A port of this machine that nobody listens at.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Sends a signal to a process that is there.
pub fn signal(pid: i32, signal: i32) {
    // SAFETY: a plain system call.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

/// Flips a bit of bytes that are stored once in a store, which nobody has open.
pub fn rot(store: &Path, stored: &[u8]) {
    let mut flipped = 0;
    for entry in std::fs::read_dir(store).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(stored.len()).position(|b| b == stored) {
            bytes[at + 5] ^= 4;
            std::fs::write(&path, bytes).unwrap();
            flipped += 1;
        }
    }
    assert_eq!(flipped, 1);
}

pub fn c_string(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// A system call's result, or its errno.
pub fn sys(result: i64) -> Result<i64, i32> {
    match result {
        -1 => Err(io::Error::last_os_error().raw_os_error().unwrap()),
        n => Ok(n),
    }
}

/// lseek(2)
pub fn seek(file: &impl AsRawFd, offset: i64, whence: i32) -> Result<i64, i32> {
    // SAFETY: a plain system call.
    sys(unsafe { libc::lseek(file.as_raw_fd(), offset, whence) })
}

/// renameat2(2)
pub fn rename(from: &Path, to: &Path, flags: u32) -> Result<i64, i32> {
    let (from, to) = (c_string(from), c_string(to));
    // SAFETY: NUL-terminated strings that outlive the call.
    sys(i64::from(unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) }))
}

/// Runs a check in a forked child, which shares no locks with this process; the child's answer is its exit code.
///
/// The child may only make system calls: other threads of this process do not exist in it.
pub fn in_child(check: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child makes system calls only and leaves by _exit.
    unsafe {
        match libc::fork() {
            -1 => panic!("fork: {}", io::Error::last_os_error()),
            0 => libc::_exit(check()),
            child => {
                let mut status = 0;
                libc::waitpid(child, &mut status, 0);
                libc::WEXITSTATUS(status)
            }
        }
    }
}

/// Loop devices of an image, each with options; they end with it.
pub struct Loops(pub Vec<String>);

impl Loops {
    pub fn of(w: &World, image: &str, options: &[&str]) -> Option<Loops> {
        let script = |options: &str| format!("losetup -f --show {options} {image} 2>/dev/null || true");
        let attached = options.iter().map(|options| w.sh_outside(&script(options)).trim().to_string());
        let loops = Loops(attached.filter(|device| !device.is_empty()).collect());
        if loops.0.len() == options.len() {
            return Some(loops);
        }
        println!("SKIPPED: no loop devices");
        None
    }
}

impl Drop for Loops {
    fn drop(&mut self) {
        for device in &self.0 {
            let _ = Command::new("losetup").args(["-d", device]).status();
        }
    }
}

/// Opens a device as mkfs does, or a mount.
pub fn is_in_use(device: &str) -> bool {
    let opened = File::options().read(true).custom_flags(libc::O_EXCL).open(device);
    opened.is_err_and(|e| e.raw_os_error() == Some(libc::EBUSY))
}
