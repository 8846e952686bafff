//! Who keeps a mount from being taken away, as far as /proc tells. (It tells an ordinary user nothing of others' processes.)

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::mounts::{Mounted, unescape};

/// A process that uses something.
#[derive(Debug)]
pub struct User {
    pub pid: u32,
    /// Of its program.
    pub name: String,
    /// What of the mount it has open or works in.
    pub path: PathBuf,
}

/// One that has something of one of these mounts open or works in it, other than `but` and those that they started.
pub fn user(mounts: &[Mounted], but: &[u32]) -> Option<User> {
    processes().filter(|pid| !descends(*pid, but)).find_map(|pid| {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let open = fs::read_dir(process.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path());
        let links = ["cwd", "root", "exe"].map(|name| process.join(name)).into_iter().chain(open);
        let path = links.into_iter().find_map(|link| leads_to(&link, mounts))?;
        Some(User { pid, name: name(pid), path })
    })
}

/// What the kernel itself has open below a path: the file of a loop device or for swapping, for people.
pub fn kernel_has(below: &Path) -> Option<String> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let loops = devices.filter_map(|device| {
        let file = fs::read(device.path().join("loop/backing_file")).ok()?;
        let file = Path::new(OsStr::from_bytes(file.trim_ascii_end())).to_owned();
        let name = Path::new("/dev").join(device.file_name());
        Some((file, format!("the loop device {0}, which losetup -d {0} ends,", name.display())))
    });
    let swaps = swaps().into_iter().map(|file| (file, "the swap, which swapoff ends,".into()));
    let (file, what) = loops.chain(swaps).find(|(file, _)| file.starts_with(below))?;
    Some(format!("{what} has {}", file.display()))
}

/// The files and devices for swapping.
pub fn swaps() -> Vec<PathBuf> {
    let swaps = fs::read("/proc/swaps").unwrap_or_default();
    let lines = swaps.split(|b| *b == b'\n').skip(1).filter(|line| !line.is_empty());
    let file = |line: &[u8]| line.split(|b| *b == b' ').next().map(unescape);
    lines.filter_map(file).map(|file| PathBuf::from(OsString::from_vec(file))).collect()
}

/// All processes.
pub fn processes() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// A process, for people.
pub fn named(pid: u32) -> String {
    format!("process {pid} ({})", name(pid))
}

/// Whether a process does nothing until it is told to go on.
pub fn is_stopped(pid: u32) -> bool {
    stat(pid, 0).is_some_and(|state| ["T", "t"].contains(&&*state))
}

fn name(pid: u32) -> String {
    darner_syslink::plain(fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end())
}

/// What one of /proc's links leads to, if that is in one of the mounts. Nothing is asked of these.
fn leads_to(link: &Path, mounts: &[Mounted]) -> Option<PathBuf> {
    let path = fs::read_link(link).ok()?;
    mounts.iter().find(|m| path.starts_with(&m.mountpoint))?;
    // (The same path may be another one, where another directory is the root.)
    let file = File::options().read(true).custom_flags(libc::O_PATH).open(link).ok()?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse::<u64>().ok()?;
    mounts.iter().any(|m| m.id == id).then_some(path)
}

fn descends(mut pid: u32, from: &[u32]) -> bool {
    while !from.contains(&pid) {
        match parent(pid) {
            Some(parent) if parent != 0 => pid = parent,
            _ => return false,
        }
    }
    true
}

fn parent(pid: u32) -> Option<u32> {
    stat(pid, 1)?.parse().ok()
}

/// The nth field behind the name of a process: its state, its parent, …
fn stat(pid: u32, n: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // (The name may have anything in it.)
    stat[stat.rfind(')')? + 1..].split_whitespace().nth(n).map(str::to_owned)
}
