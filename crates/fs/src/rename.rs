//! Rename: plain, without replacing, exchanging, and leaving a whiteout.
//!
//! Two names of one file: nothing happens. What is replaced loses a link. The renamed object's ctime changes, and
//! both directories' times. A whiteout (a character device 0:0) is how overlayfs marks what is gone from the layer below.

use crate::change::{Change, Plan, SMALL};
use crate::create::WHITEOUT;
use crate::dirent::Dirent;
use crate::error::{FsError, Result, refuse};
use crate::fs::Fs;
use crate::name;
use crate::node::{Inode, Node};
use crate::op::Caller;

/// What a rename does about a target that exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RenameMode {
    /// Replaces it.
    #[default]
    Replace,
    /// EEXIST.
    NoReplace,
    /// Swaps the two; ENOENT if there is none.
    Exchange,
    /// Replaces it, and leaves a whiteout at the old name.
    Whiteout,
}

impl RenameMode {
    /// From the flags of renameat2(2).
    pub fn from_bits(flags: u32) -> Result<RenameMode> {
        match flags {
            0 => Ok(RenameMode::Replace),
            libc::RENAME_NOREPLACE => Ok(RenameMode::NoReplace),
            libc::RENAME_EXCHANGE => Ok(RenameMode::Exchange),
            libc::RENAME_WHITEOUT => Ok(RenameMode::Whiteout),
            _ => refuse(libc::EINVAL, "this kind of rename is not offered"),
        }
    }
}

/// One end of a rename: a name and what it leads to.
#[derive(Clone, Copy)]
struct End<'n> {
    dir: Inode,
    name: &'n [u8],
    found: Dirent,
}

impl Fs {
    /// Renames what is called `from`, a directory and a name in it, to `to`. A whiteout is the caller's.
    pub fn rename(
        &self,
        caller: &Caller,
        now_ns: u64,
        from: (Node, &[u8]),
        to: (Node, &[u8]),
        mode: RenameMode,
    ) -> Result<()> {
        let ((dir, name), (new_dir, new_name)) = (from, to);
        let (dir, new_dir) = (dir.writable()?, new_dir.writable()?);
        if dir.fileset != new_dir.fileset {
            // (What can't be moved at all is not to be copied and removed instead.)
            self.victim(&mut self.plan(dir.fileset, SMALL)?, dir, name, now_ns)?;
            return refuse(libc::EXDEV, "nothing is renamed from one fileset to another");
        }
        let mut plan = self.plan(dir.fileset, SMALL)?;
        name::check(name, libc::EBUSY)?;
        name::check(new_name, libc::EBUSY)?;
        let from = End { dir, name, found: self.victim(&mut plan, dir, name, now_ns)? };
        let leaving = (mode == RenameMode::Whiteout).then_some(caller);
        plan.dir(new_dir)?;
        let Some(found) = plan.dirent(new_dir, new_name)? else {
            if mode == RenameMode::Exchange {
                return refuse(libc::ENOENT, "there is nothing to exchange with");
            }
            let errno = if mode == RenameMode::NoReplace { libc::EEXIST } else { libc::EROFS };
            plan.not_in_the_past(new_dir, new_name, now_ns, FsError::new(errno, "the new name leads into the past"))?;
            plan.check_not_within(new_dir, from)?;
            plan.attr(from.found.ino)?;
            return plan.begin(now_ns)?.move_entry(from, new_dir, new_name, None, leaving);
        };
        let to = End { dir: new_dir, name: new_name, found };
        if mode == RenameMode::NoReplace {
            return refuse(libc::EEXIST, "the new name exists");
        }
        if to.found.ino == from.found.ino {
            return Ok(());
        }
        to.found.check_not_fileset(new_dir)?;
        plan.check_not_within(new_dir, from)?;
        plan.attr(from.found.ino)?;
        plan.attr(to.found.ino)?;
        if mode == RenameMode::Exchange {
            plan.check_not_within(dir, to)?;
            return plan.begin(now_ns)?.exchange(from, to);
        }
        plan.check_replaceable(from, to)?;
        plan.begin(now_ns)?.move_entry(from, new_dir, new_name, Some(to.found), leaving)
    }
}

impl Plan<'_> {
    /// A directory can't move into itself or below.
    fn check_not_within(&mut self, dir: Inode, moved: End<'_>) -> Result<()> {
        if !moved.found.is_dir() || dir == moved.dir {
            return Ok(());
        }
        let mut at = dir;
        while at != moved.found.ino {
            let parent = at.sibling(self.attr(at)?.parent);
            if parent == at {
                return Ok(());
            }
            at = parent;
        }
        refuse(libc::EINVAL, "a directory can't be moved into itself")
    }

    fn check_replaceable(&mut self, from: End<'_>, to: End<'_>) -> Result<()> {
        match (from.found.is_dir(), to.found.is_dir()) {
            (false, true) => refuse(libc::EISDIR, "the new name is a directory"),
            (true, false) => refuse(libc::ENOTDIR, "the new name is not a directory"),
            (true, true) if self.attr(to.found.ino)?.size != 0 => {
                refuse(libc::ENOTEMPTY, "the directory to be replaced is not empty")
            }
            _ => Ok(()),
        }
    }
}

impl Change<'_> {
    /// `leaving`: whose a whiteout at the old name is.
    fn move_entry(
        mut self,
        from: End<'_>,
        new_dir: Inode,
        new_name: &[u8],
        replaced: Option<Dirent>,
        leaving: Option<&Caller>,
    ) -> Result<()> {
        let subdirs = i32::from(from.found.is_dir());
        match leaving {
            Some(caller) => {
                let ino = self.bear(caller, from.dir, WHITEOUT)?;
                self.put_name(from.dir, from.name, Dirent { ino, d_type: libc::DT_CHR });
                self.mend_dir(from.dir, 0, -subdirs)?;
            }
            None => {
                self.delete_name(from.dir, from.name);
                self.mend_dir(from.dir, -1, -subdirs)?;
            }
        }
        self.put_name(new_dir, new_name, from.found);
        match replaced {
            Some(old) => {
                self.mend_dir(new_dir, 0, subdirs - i32::from(old.is_dir()))?;
                self.drop_link(old.ino)?;
            }
            None => self.mend_dir(new_dir, 1, subdirs)?,
        }
        self.edit(from.found.ino)?.parent = new_dir.object;
        self.commit()?;
        Ok(())
    }

    fn exchange(mut self, from: End<'_>, to: End<'_>) -> Result<()> {
        self.put_name(from.dir, from.name, to.found);
        self.put_name(to.dir, to.name, from.found);
        let gained = i32::from(to.found.is_dir()) - i32::from(from.found.is_dir());
        self.mend_dir(from.dir, 0, gained)?;
        self.mend_dir(to.dir, 0, -gained)?;
        self.edit(from.found.ino)?.parent = to.dir.object;
        self.edit(to.found.ino)?.parent = from.dir.object;
        self.commit()?;
        Ok(())
    }
}
