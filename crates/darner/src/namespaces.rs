//! Namespaces of the kernel's: what a process sees of mounts, and whom it reaches by a socket's name, is not what all others do.

use std::fmt::Display;
use std::os::unix::fs::MetadataExt;

/// A kind of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace {
    Mount,
    Network,
}

impl Namespace {
    /// That of a process (or `self`), by the kernel's number, as far as it may be looked at.
    pub fn of(self, pid: impl Display) -> Option<u64> {
        let kind = if self == Namespace::Mount { "mnt" } else { "net" };
        std::fs::metadata(format!("/proc/{pid}/ns/{kind}")).ok().map(|meta| meta.ino())
    }

    /// That a process is in another one than who asks, what that leads to, and the command with which it is otherwise.
    pub fn is_another(self, who: &str, pid: u32, so: &str, command: &str) -> String {
        let (name, what, option) = match self {
            Namespace::Mount => ("mount", "mounts", "-m"),
            Namespace::Network => ("network", "a network", "-n"),
        };
        format!(
            "{who} is in another {name} namespace (that of a container, or of a service with {what} of its own), and {so}: \
             nsenter -t {pid} {option} darner {command}"
        )
    }
}
