//! Who sent a request.

use std::fs;

/// Whether this task (a request's `pid`) has been killed: by SIGKILL, or by a signal that it does not catch and that leaves
/// no core. The kernel calls the same *fatal signal pending*. False if /proc does not show the task: it has ended, it is of
/// a process namespace that is not below ours, or the request (`pid` 0) is the kernel's own.
pub fn is_dying(pid: u32) -> bool {
    // In such a group each task is sent a SIGKILL of its own, which stays pending until it leaves the kernel.
    let pending = |status: String| {
        let line = status.lines().find_map(|line| line.strip_prefix("SigPnd:"))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    let status = || fs::read_to_string(format!("/proc/{pid}/status")).ok();
    pid != 0 && status().and_then(pending).is_some_and(|set| set & 1 << (libc::SIGKILL - 1) != 0)
}
