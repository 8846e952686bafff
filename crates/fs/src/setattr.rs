//! chmod, chown, truncate, utimensat: one request may do several.
//!
//! The kernel has checked who may. A chown takes set-id bits and file capabilities from whatever isn't a directory;
//! so does one that changes neither owner nor group, which reaches us as a request that asks for nothing. ctime
//! always changes; other times only as asked for, and mtime on truncation.

use crate::attr::{Attr, Time};
use crate::change::Change;
use crate::error::{Result, refuse};
use crate::file::end_of;
use crate::fs::Fs;
use crate::node::{Inode, Node};

/// A time to be set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetTime {
    /// The transaction's time.
    Now,
    /// This time.
    To(Time),
}

/// What is to change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SetAttr {
    /// Permission bits (type bits are ignored).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size: truncates or extends with a hole.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change.
    pub mtime: Option<SetTime>,
    /// With `size`: the caller may not keep set-id bits.
    pub kill_suidgid: bool,
}

impl SetAttr {
    fn check_times(&self) -> Result<()> {
        let bad = |set| matches!(set, Some(SetTime::To(time)) if time.nanos >= 1_000_000_000);
        match bad(self.atime) || bad(self.mtime) {
            true => refuse(libc::EINVAL, "a time has fewer than 10^9 nanoseconds"),
            false => Ok(()),
        }
    }
}

impl Fs {
    /// Changes attributes and returns them as they are then.
    pub fn setattr(&self, now_ns: u64, node: Node, set: &SetAttr) -> Result<Attr> {
        let ino = node.writable()?;
        let mut plan = self.plan(ino.fileset, 0)?;
        let attr = plan.attr(ino)?;
        if let Some(size) = set.size {
            attr.check_file()?;
            end_of(0, size)?;
        }
        set.check_times()?;
        let mut change = plan.begin(now_ns)?;
        if let Some(size) = set.size {
            change.truncate(ino, size, set.kill_suidgid)?;
        }
        change.set_owner(ino, set)?;
        if let Some(mode) = set.mode {
            change.chmod_acl(ino, mode)?;
            let attr = change.edit(ino)?;
            attr.mode = attr.mode & libc::S_IFMT | mode & 0o7777;
        }
        change.set_times(ino, set)?;
        let attr = change.attr(ino)?;
        change.commit()?;
        Ok(attr)
    }
}

impl Change<'_> {
    fn truncate(&mut self, ino: Inode, size: u64, kill_suidgid: bool) -> Result<()> {
        let attr = self.attr(ino)?;
        if size < attr.size && attr.bytes != 0 {
            let grown = self.tx.punch(ino.object, size, u64::MAX - size)?;
            self.grew(ino, grown)?;
        }
        self.wrote(ino, 0, kill_suidgid)?;
        self.edit(ino)?.size = size;
        Ok(())
    }

    fn set_owner(&mut self, ino: Inode, set: &SetAttr) -> Result<()> {
        let asks_nothing = SetAttr { kill_suidgid: false, ..*set } == SetAttr::default();
        let chown = set.uid.is_some() || set.gid.is_some();
        if (chown || asks_nothing) && !self.attr(ino)?.is_dir() {
            self.kill_privileges(ino, true)?;
        }
        let attr = self.edit(ino)?;
        attr.uid = set.uid.unwrap_or(attr.uid);
        attr.gid = set.gid.unwrap_or(attr.gid);
        Ok(())
    }

    fn set_times(&mut self, ino: Inode, set: &SetAttr) -> Result<()> {
        let now = self.time;
        let time = |set| match set {
            SetTime::Now => now,
            SetTime::To(time) => time,
        };
        let attr = self.edit(ino)?;
        attr.atime = set.atime.map_or(attr.atime, time);
        attr.mtime = set.mtime.map_or(attr.mtime, time);
        Ok(())
    }
}
