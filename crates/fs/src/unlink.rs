//! Taking names away: unlink and rmdir.
//!
//! An object whose last name goes becomes an orphan (`orphan.rs`): it stays whole until nobody has it open.

use crate::change::Plan;
use crate::dirent::Dirent;
use crate::error::{FsError, Result, refuse};
use crate::fs::Fs;
use crate::name;
use crate::node::{Inode, Node};

impl Fs {
    /// Removes a name of anything but a directory.
    pub fn unlink(&self, now_ns: u64, dir: Node, name: &[u8]) -> Result<()> {
        let dir = dir.writable()?;
        let mut plan = self.plan(dir.fileset, 0)?;
        name::check(name, libc::EISDIR)?;
        let found = self.victim(&mut plan, dir, name, now_ns)?;
        if found.is_dir() {
            return refuse(libc::EISDIR, "the name is a directory");
        }
        plan.attr(found.ino)?;
        let mut change = plan.begin(now_ns)?;
        change.delete_name(dir, name);
        change.mend_dir(dir, -1, 0)?;
        change.drop_link(found.ino)?;
        change.commit()?;
        Ok(())
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, now_ns: u64, dir: Node, name: &[u8]) -> Result<()> {
        let dir = dir.writable()?;
        let mut plan = self.plan(dir.fileset, 0)?;
        name::check(name, if name == b"." { libc::EINVAL } else { libc::ENOTEMPTY })?;
        let found = self.victim(&mut plan, dir, name, now_ns)?;
        if !found.is_dir() {
            return refuse(libc::ENOTDIR, "the name is not a directory");
        }
        if plan.attr(found.ino)?.size != 0 {
            return refuse(libc::ENOTEMPTY, "the directory is not empty");
        }
        let mut change = plan.begin(now_ns)?;
        change.delete_name(dir, name);
        change.mend_dir(dir, -1, -1)?;
        change.drop_link(found.ino)?;
        change.commit()?;
        Ok(())
    }

    /// What a name that is to go leads to; EBUSY for a fileset.
    pub(crate) fn victim(&self, plan: &mut Plan<'_>, dir: Inode, name: &[u8], now_ns: u64) -> Result<Dirent> {
        plan.dir(dir)?;
        if let Some(found) = plan.dirent(dir, name)? {
            found.check_not_fileset(dir)?;
            return Ok(found);
        }
        plan.not_in_the_past(dir, name, now_ns, FsError::new(libc::EROFS, "the past can't be changed"))?;
        refuse(libc::ENOENT, "no such file or directory")
    }
}
