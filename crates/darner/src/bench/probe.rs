//! What a serving process does while a workload runs, so that a slow line can be explained.
//!
//! Requests are counted by the kernel at its tracepoint `fuse:fuse_request_send`, one counter per kind of request and
//! CPU, filtered by the mount's device number; without root or tracefs there is only the process's own accounting. FORGET
//! passes the tracepoint too, but nobody waits for it: it is left out.
//!
//! Bytes to and from the disk are the disk's own, so those of everybody. Tried and dropped: `write_bytes` of the process,
//! which counts a whole large folio for each write of 4 KiB into it, 350 KB where the disk got 13.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::FromRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use darner_fuse::abi::opcode;

const TRACING: &str = "/sys/kernel/tracing";
const OPCODES: std::ops::RangeInclusive<u32> = 1..=53;

/// Looks into one process, and the disk it works on.
pub struct Probe {
    pid: u32,
    disk: PathBuf,
    tracepoint: Option<u64>,
}

/// Mounts tracefs for as long as it lives, where it is not mounted.
pub struct Tracing {
    ours: bool,
}

impl Tracing {
    /// Does nothing without root.
    pub fn new() -> Tracing {
        let there = Path::new(TRACING).join("events").exists();
        let ours = !there && super::shell::run("mount", ["-t", "tracefs", "nodev", TRACING]).is_ok();
        Tracing { ours }
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        if self.ours {
            super::system::unmount(Path::new(TRACING));
        }
    }
}

/// What happened between start and stop.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Counts {
    /// FUSE requests that await a reply, by name, most frequent first; `None` where they can't be counted.
    pub requests: Option<Vec<(String, u64)>>,
    /// What the disk did; `None` where it is no block device.
    pub disk: Option<Disk>,
    /// Times a thread of it went to sleep.
    pub sleeps: u64,
    /// Its CPU time.
    pub cpu_seconds: f64,
}

/// What a disk did.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Disk {
    /// Write requests.
    pub writes: u64,
    /// Flushes of its cache.
    pub flushes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Bytes read.
    pub read_bytes: u64,
}

/// Counting, until it is stopped.
pub struct Counting<'a> {
    probe: &'a Probe,
    before: Counts,
    requests: Option<Vec<(u32, File)>>,
}

impl Probe {
    /// Of a process that serves a mount, with its store on the disk that `place` is on.
    pub fn new(pid: u32, place: &Path) -> Probe {
        let id = fs::read_to_string(format!("{TRACING}/events/fuse/fuse_request_send/id"));
        let dev = fs::metadata(place).map_or(0, |m| m.dev());
        let disk = format!("/sys/dev/block/{}:{}/stat", libc::major(dev), libc::minor(dev)).into();
        Probe { pid, disk, tracepoint: id.ok().and_then(|id| id.trim().parse().ok()) }
    }

    /// Counts from now on, requests of the filesystem that `dir` is on.
    pub fn start(&self, dir: &Path) -> Counting<'_> {
        let minor = fs::metadata(dir).map_or(0, |m| libc::minor(m.dev()));
        let requests = self.tracepoint.and_then(|id| counters(id, minor));
        Counting { probe: self, before: self.account(), requests }
    }

    fn account(&self) -> Counts {
        let proc = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", self.pid)).unwrap_or_default();
        let stat = proc("stat");
        // After the name in parentheses: state is field 3, user and system ticks are 14 and 15.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
        Counts {
            requests: None,
            disk: self.disk(),
            sleeps: self.sleeps(),
            // SAFETY: can't fail for this name.
            cpu_seconds: (ticks(11) + ticks(12)) / unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64,
        }
    }

    /// Fields as in Documentation/block/stat.rst; sectors are 512 bytes.
    fn disk(&self) -> Option<Disk> {
        let text = fs::read_to_string(&self.disk).ok()?;
        let fields: Vec<u64> = text.split_whitespace().map_while(|f| f.parse().ok()).collect();
        let field = |i: usize| fields.get(i).copied().unwrap_or(0);
        Some(Disk { writes: field(4), flushes: field(15), write_bytes: field(6) * 512, read_bytes: field(2) * 512 })
    }

    fn sleeps(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten().flatten();
        let status = tasks.map(|t| fs::read_to_string(t.path().join("status")).unwrap_or_default());
        status.map(|s| field(&s, "voluntary_ctxt_switches:")).sum()
    }
}

impl Counting<'_> {
    /// What happened since the start.
    pub fn stop(self) -> Counts {
        let after = self.probe.account();
        let requests = self.requests.map(|counters| {
            let mut by_name: Vec<(String, u64)> = Vec::new();
            for (code, mut file) in counters {
                let mut value = [0; 8];
                let n = file.read(&mut value).map_or(0, |_| u64::from_ne_bytes(value));
                let name = opcode::name(code);
                match by_name.iter_mut().find(|(known, _)| known == name) {
                    Some((_, sum)) => *sum += n,
                    None => by_name.push((name.into(), n)),
                }
            }
            by_name.retain(|(_, n)| *n > 0);
            by_name.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
            by_name
        });
        Counts {
            requests,
            disk: after.disk.zip(self.before.disk).map(|(after, before)| Disk {
                writes: after.writes.saturating_sub(before.writes),
                flushes: after.flushes.saturating_sub(before.flushes),
                write_bytes: after.write_bytes.saturating_sub(before.write_bytes),
                read_bytes: after.read_bytes.saturating_sub(before.read_bytes),
            }),
            sleeps: after.sleeps.saturating_sub(self.before.sleeps),
            cpu_seconds: after.cpu_seconds - self.before.cpu_seconds,
        }
    }
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find(|l| l.starts_with(name));
    line.and_then(|l| l[name.len()..].trim().parse().ok()).unwrap_or(0)
}

/// `struct perf_event_attr`, its first version, as perf_event_open(2) has it.
#[repr(C)]
#[derive(Default)]
struct EventAttr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    config1: u64,
}

fn counters(tracepoint: u64, minor: u32) -> Option<Vec<(u32, File)>> {
    // SAFETY: can't fail for this name.
    let cpus = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) } as i32;
    let codes = OPCODES.filter(|c| ![opcode::FORGET, opcode::BATCH_FORGET].contains(c) && opcode::name(*c) != "?");
    codes.flat_map(|code| (0..cpus).map(move |cpu| Some((code, counter(tracepoint, minor, code, cpu)?)))).collect()
}

fn counter(tracepoint: u64, minor: u32, code: u32, cpu: i32) -> Option<File> {
    const PERF_TYPE_TRACEPOINT: u32 = 2;
    const PERF_EVENT_IOC_SET_FILTER: libc::c_ulong = 0x4008_2406;
    const PERF_EVENT_IOC_ENABLE: libc::c_ulong = 0x2400;
    const CLOSE_ON_EXEC: libc::c_ulong = 8;
    const DISABLED: u64 = 1;
    let size = size_of::<EventAttr>() as u32;
    let attr =
        EventAttr { kind: PERF_TYPE_TRACEPOINT, size, config: tracepoint, flags: DISABLED, ..EventAttr::default() };
    let filter = std::ffi::CString::new(format!("connection == {minor} && opcode == {code}")).ok()?;
    // SAFETY: attr outlives the call and says its own size; all processes (-1) on one CPU, no group (-1).
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attr, -1, cpu, -1, CLOSE_ON_EXEC) };
    if fd < 0 {
        return None;
    }
    // SAFETY: the kernel just gave us this descriptor.
    let file = unsafe { File::from_raw_fd(fd as i32) };
    // Counting starts with the filter in place: other mounts may be busy.
    // SAFETY: the filter is a C string that outlives the call; the other takes no argument.
    let set = unsafe {
        libc::ioctl(fd as i32, PERF_EVENT_IOC_SET_FILTER as _, filter.as_ptr())
            | libc::ioctl(fd as i32, PERF_EVENT_IOC_ENABLE as _, 0)
    };
    (set == 0).then_some(file)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_field_is_found_by_its_whole_name_at_the_start_of_a_line() {
        let text = "nonvoluntary_ctxt_switches:\t7\nvoluntary_ctxt_switches:\t12\n";
        assert_eq!(super::field(text, "voluntary_ctxt_switches:"), 12);
        assert_eq!(super::field(text, "missing:"), 0);
    }
}
