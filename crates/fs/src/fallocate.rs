//! fallocate: making and removing holes, moving the rest of a file.
//!
//! Space is never reserved, so plain allocation only extends the size: a later write can still meet ENOSPC. What could
//! never be written is refused at once. Moving data (collapse, insert) shares it and copies nothing.

use darner_store::Tid;

use crate::change::{Change, SMALL};
use crate::error::{Result, refuse};
use crate::file::{FILE_MAX, end_of};
use crate::fs::Fs;
use crate::node::{Inode, Node};

/// What fallocate(2) does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FallocateMode {
    /// Extends the file (unless `keep_size`). Unsharing comes to the same.
    Allocate {
        /// Leaves the size alone.
        keep_size: bool,
    },
    /// Makes a hole; the size stays.
    PunchHole,
    /// Zeroes a range, extending the file (unless `keep_size`).
    ZeroRange {
        /// Leaves the size alone.
        keep_size: bool,
    },
    /// Takes a range of whole blocks out; what follows moves up.
    CollapseRange,
    /// Puts a hole of whole blocks in; what follows moves down.
    InsertRange,
}

const KEEP_SIZE: u32 = libc::FALLOC_FL_KEEP_SIZE as u32;
const PUNCH_HOLE: u32 = libc::FALLOC_FL_PUNCH_HOLE as u32;
const COLLAPSE_RANGE: u32 = libc::FALLOC_FL_COLLAPSE_RANGE as u32;
const ZERO_RANGE: u32 = libc::FALLOC_FL_ZERO_RANGE as u32;
const INSERT_RANGE: u32 = libc::FALLOC_FL_INSERT_RANGE as u32;
const UNSHARE_RANGE: u32 = libc::FALLOC_FL_UNSHARE_RANGE as u32;
const BLOCK: u64 = 4096;

impl FallocateMode {
    /// From the flags of fallocate(2).
    pub fn from_bits(flags: u32) -> Result<FallocateMode> {
        let keep_size = flags & KEEP_SIZE != 0;
        match flags & !KEEP_SIZE {
            0 | UNSHARE_RANGE => Ok(FallocateMode::Allocate { keep_size }),
            ZERO_RANGE => Ok(FallocateMode::ZeroRange { keep_size }),
            PUNCH_HOLE if keep_size => Ok(FallocateMode::PunchHole),
            COLLAPSE_RANGE if !keep_size => Ok(FallocateMode::CollapseRange),
            INSERT_RANGE if !keep_size => Ok(FallocateMode::InsertRange),
            _ => refuse(libc::EOPNOTSUPP, "no such combination of fallocate's flags"),
        }
    }
}

impl Fs {
    /// Changes what a range of a file is made of. ENOSPC, EDQUOT where what is to be allocated is larger than all room that
    /// there might be, or than the fileset may come to.
    pub fn fallocate(&self, now_ns: u64, node: Node, offset: u64, len: u64, mode: FallocateMode) -> Result<()> {
        let ino = node.writable()?;
        let grows = match mode {
            FallocateMode::PunchHole => 0,
            _ => SMALL,
        };
        let mut plan = self.plan(ino.fileset, grows)?;
        let attr = plan.attr(ino)?;
        match attr.file_type() {
            libc::S_IFREG => {}
            libc::S_IFDIR => return refuse(libc::EISDIR, "a directory has no data"),
            libc::S_IFIFO => return refuse(libc::ESPIPE, "a pipe has no offsets"),
            _ => return refuse(libc::ENODEV, "not a regular file"),
        }
        if len == 0 {
            return refuse(libc::EINVAL, "the range is empty");
        }
        let end = end_of(offset, len)?;
        match mode {
            FallocateMode::CollapseRange => check_collapse(attr.size, offset, len)?,
            FallocateMode::InsertRange => check_insert(attr.size, offset, len)?,
            _ => {}
        }
        // (What the file has already may all lie in the range.)
        let wanted = match mode {
            FallocateMode::Allocate { .. } | FallocateMode::ZeroRange { .. } => len.saturating_sub(attr.bytes),
            _ => 0,
        };
        if !self.store.may_fit(wanted)? {
            return refuse(libc::ENOSPC, "there is not so much room");
        }
        let mut change = plan.begin_large(now_ns)?;
        change.check_limits(0, wanted as i64)?;
        match mode {
            FallocateMode::Allocate { keep_size } => change.extend(ino, attr.size, if keep_size { 0 } else { end })?,
            FallocateMode::PunchHole => change.zero(ino, attr.size, offset, end, 0)?,
            FallocateMode::ZeroRange { keep_size } => {
                change.zero(ino, attr.size, offset, end, if keep_size { 0 } else { end })?
            }
            FallocateMode::CollapseRange => change.collapse(ino, attr.size, offset, len)?,
            FallocateMode::InsertRange => change.insert(ino, attr.size, offset, len)?,
        }
        change.commit()?;
        Ok(())
    }
}

impl Change<'_> {
    /// Only ctime changes if the file doesn't grow.
    fn extend(&mut self, ino: Inode, size: u64, end: u64) -> Result<()> {
        if end > size {
            self.wrote(ino, end, false)?;
        }
        self.edit(ino).map(|_| ())
    }

    fn zero(&mut self, ino: Inode, size: u64, offset: u64, end: u64, grow_to: u64) -> Result<()> {
        if offset < size {
            let grown = self.tx.punch(ino.object, offset, end.min(size) - offset)?;
            self.grew(ino, grown)?;
        }
        self.wrote(ino, grow_to, false).map(|_| ())
    }

    fn collapse(&mut self, ino: Inode, size: u64, offset: u64, len: u64) -> Result<()> {
        let end = offset + len;
        let rest = self.fs.store.map(ino.fileset, ino.object, end, size - end, Tid::MAX)?;
        let grown = self.tx.share(ino.object, offset, &rest)? + self.tx.punch(ino.object, size - len, len)?;
        self.grew(ino, grown)?;
        self.wrote(ino, 0, false)?;
        self.edit(ino)?.size = size - len;
        Ok(())
    }

    fn insert(&mut self, ino: Inode, size: u64, offset: u64, len: u64) -> Result<()> {
        let rest = self.fs.store.map(ino.fileset, ino.object, offset, size - offset, Tid::MAX)?;
        let grown = self.tx.share(ino.object, offset + len, &rest)? + self.tx.punch(ino.object, offset, len)?;
        self.grew(ino, grown)?;
        self.wrote(ino, size + len, false).map(|_| ())
    }
}

fn check_collapse(size: u64, offset: u64, len: u64) -> Result<()> {
    check_blocks(offset, len)?;
    match offset + len >= size {
        true => refuse(libc::EINVAL, "the range reaches the end; truncate instead"),
        false => Ok(()),
    }
}

fn check_insert(size: u64, offset: u64, len: u64) -> Result<()> {
    check_blocks(offset, len)?;
    if offset >= size {
        return refuse(libc::EINVAL, "the offset is beyond the end");
    }
    match size > FILE_MAX - len {
        true => refuse(libc::EFBIG, "a file ends at 2^63-1 bytes at the latest"),
        false => Ok(()),
    }
}

fn check_blocks(offset: u64, len: u64) -> Result<()> {
    match (offset | len) % BLOCK {
        0 => Ok(()),
        _ => refuse(libc::EINVAL, "the range is not made of whole blocks of 4096 bytes"),
    }
}
