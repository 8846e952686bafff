//! File data: read, write, append, seek.
//!
//! A read resolves where its bytes are under the lock and reads them without. The end of an append is chosen here, at
//! commit time. Reading does not change atime. Invariant: no data lies beyond a file's size.

use std::ops::Range;

use darner_store::{Kind, Piece};

use crate::attr::Attr;
use crate::change::{Change, SMALL};
use crate::error::{Result, refuse};
use crate::fs::Fs;
use crate::node::{Inode, Node};
use crate::xattr::CAPABILITY;

/// Where a file must end at the latest.
pub(crate) const FILE_MAX: u64 = i64::MAX as u64;

/// Most bytes that one write takes: what fits one transaction.
const WRITE_MAX: usize = 1 << 20;

/// What is tried where that much has no room.
const WRITE_SMALL: usize = 48 << 10;

/// What a write did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Written {
    /// Where it went (the end, for an append).
    pub offset: u64,
    /// Bytes.
    pub len: usize,
    /// The file's size since.
    pub size: u64,
}

/// What to seek.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seek {
    /// SEEK_DATA.
    Data,
    /// SEEK_HOLE (the end of the file is one).
    Hole,
}

impl Fs {
    /// Reads up to `len` bytes; fewer only at the end.
    pub fn read(&self, node: Node, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut data = vec![0; len];
        let len = self.read_into(node, offset, &mut data)?;
        data.truncate(len);
        Ok(data)
    }

    /// Reads into `buf` and returns how many bytes there were; fewer than asked for only at the end.
    pub fn read_into(&self, node: Node, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.read_unexplained(node, offset, buf).map_err(|error| self.explain(node, error))
    }

    /// The same for who can do something about damage: nothing is said of it yet.
    pub fn read_unexplained(&self, node: Node, offset: u64, buf: &mut [u8]) -> Result<usize> {
        // Between the look and the read the bytes may have been superseded, collapsed and cleaned away: then a second look
        // finds others. Damage is there the second time too.
        match self.try_read(node, offset, buf) {
            Err(error) if error.cold().is_some() => Err(error),
            Err(error) if error.errno() == libc::EIO => self.try_read(node, offset, buf),
            read => read,
        }
    }

    /// Fetches from elsewhere (`Store::heal_from`) what of a range is damaged; says whether any of it was, and is not any more. May wait long.
    pub fn heal(&self, node: Node, offset: u64, len: usize) -> Result<bool> {
        let (pieces, _) = self.locate(node, offset, len)?;
        Ok(self.store.heal_pieces(node.inode().fileset, &pieces)?)
    }

    fn try_read(&self, node: Node, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let (pieces, len) = self.locate(node, offset, buf.len())?;
        if len > 0 {
            self.store.read(&pieces, &mut buf[..len])?;
        }
        // It may have been given up meanwhile: then it was a mixture.
        self.check_kept(node)?;
        Ok(len)
    }

    fn locate(&self, node: Node, offset: u64, len: usize) -> Result<(Vec<Piece>, usize)> {
        let _live = self.look(node)?;
        let size = self.readable(node)?.size;
        let len = size.saturating_sub(offset).min(len as u64);
        if len == 0 {
            return Ok((Vec::new(), 0));
        }
        let Inode { fileset, object } = node.inode();
        let pieces = self.store.map(fileset, object, offset, len, node.at())?;
        if let Node::Live(_) = node {
            self.store.note_scattered(fileset, &pieces);
        }
        Ok((pieces, len as usize))
    }

    /// Attributes of a node whose data can be read.
    pub(crate) fn readable(&self, node: Node) -> Result<Attr> {
        let attr = self.attr(node)?;
        attr.check_file()?;
        Ok(attr)
    }

    /// Whether a node may be opened: the past not for writing.
    pub fn open_node(&self, node: Node, write: bool) -> Result<Attr> {
        if write {
            node.writable()?;
        }
        self.attr(node)
    }

    /// Writes at `offset`, or (`None`) at the end as it is then; at most 1 MiB of it, less on a volume that is nearly full
    /// (see [`Written::len`]). `kill_suidgid`: the caller may not keep set-id bits.
    pub fn write(
        &self,
        now_ns: u64,
        node: Node,
        offset: Option<u64>,
        data: &[u8],
        kill_suidgid: bool,
    ) -> Result<Written> {
        let data = &data[..data.len().min(WRITE_MAX)];
        match self.write_whole(now_ns, node, offset, data, kill_suidgid) {
            // No gap may be left for so large a transaction, but for a small one.
            Err(e) if e.errno() == libc::ENOSPC && data.len() > WRITE_SMALL => {
                self.write_whole(now_ns, node, offset, &data[..WRITE_SMALL], kill_suidgid)
            }
            outcome => outcome,
        }
    }

    fn write_whole(
        &self,
        now_ns: u64,
        node: Node,
        offset: Option<u64>,
        data: &[u8],
        kill_suidgid: bool,
    ) -> Result<Written> {
        let ino = node.writable()?;
        let mut plan = self.plan(ino.fileset, data.len() as u64 + SMALL)?;
        let size = plan.file(ino)?.size;
        let offset = offset.unwrap_or(size);
        if data.is_empty() {
            return Ok(Written { offset, len: 0, size });
        }
        let end = end_of(offset, data.len() as u64)?;
        let mut change = plan.begin(now_ns)?;
        let grown = change.tx.write(ino.object, offset, data)?;
        change.grew(ino, grown)?;
        let size = change.wrote(ino, end, kill_suidgid)?;
        change.result = data.len() as u64;
        change.commit()?;
        Ok(Written { offset, len: data.len(), size })
    }

    /// The hole by which [`Fs::seek`] answers, if it does by one: bytes that were never written, as far as is known here.
    /// `beyond`: what is beyond the end counts too.
    pub fn hole(&self, node: Node, offset: u64, what: Seek, beyond: bool) -> Result<Option<Range<u64>>> {
        let _live = self.look(node)?;
        let size = self.readable(node)?.size;
        let next = |from| self.store.next_data(node.inode().fileset, node.inode().object, from, node.at());
        let data = if offset < size { next(offset)? } else { None };
        let start = match (what, data) {
            (Seek::Hole, Some((start, end))) if start <= offset => end,
            _ => offset,
        };
        let end = match data {
            Some((first, _)) if first >= start => first,
            Some(_) if start < size => next(start)?.map_or(u64::MAX, |(first, _)| first),
            _ => u64::MAX,
        };
        let end = if end >= size { u64::MAX } else { end };
        Ok(Some(start..end).filter(|hole| !hole.is_empty() && (beyond || start < size)))
    }

    /// Start of the next data or hole at or after `offset`. ENXIO beyond the end, or if no data follows.
    pub fn seek(&self, node: Node, offset: u64, what: Seek) -> Result<u64> {
        let _live = self.look(node)?;
        let size = self.readable(node)?.size;
        if offset >= size {
            return refuse(libc::ENXIO, "the offset is beyond the end");
        }
        let data = self.store.next_data(node.inode().fileset, node.inode().object, offset, node.at())?;
        match (what, data) {
            (Seek::Data, Some((start, _))) if start < size => Ok(start.max(offset)),
            (Seek::Data, _) => refuse(libc::ENXIO, "no data follows"),
            (Seek::Hole, Some((start, end))) if start <= offset => Ok(end.min(size)),
            (Seek::Hole, _) => Ok(offset),
        }
    }
}

/// Where `len` bytes at `offset` end; EFBIG beyond what a file can have.
pub(crate) fn end_of(offset: u64, len: u64) -> Result<u64> {
    match offset.checked_add(len) {
        Some(end) if end <= FILE_MAX => Ok(end),
        _ => refuse(libc::EFBIG, "a file ends at 2^63-1 bytes at the latest"),
    }
}

/// A mode without set-user-id, and without set-group-id where the group may execute.
pub(crate) fn without_set_ids(mode: u32) -> u32 {
    match mode & libc::S_IXGRP {
        0 => mode & !libc::S_ISUID,
        _ => mode & !(libc::S_ISUID | libc::S_ISGID),
    }
}

impl Change<'_> {
    /// Data changed, up to `end`: size, times, privileges. Returns the size.
    pub(crate) fn wrote(&mut self, ino: Inode, end: u64, kill_suidgid: bool) -> Result<u64> {
        self.kill_privileges(ino, kill_suidgid)?;
        let time = self.time;
        let attr = self.edit(ino)?;
        attr.size = attr.size.max(end);
        attr.mtime = time;
        Ok(attr.size)
    }

    /// Drops file capabilities and, if asked to, set-id bits.
    pub(crate) fn kill_privileges(&mut self, ino: Inode, set_ids: bool) -> Result<()> {
        let attr = self.edit(ino)?;
        if set_ids {
            attr.mode = without_set_ids(attr.mode);
        }
        if attr.flags & Attr::CAPS != 0 {
            attr.flags &= !Attr::CAPS;
            self.delete(ino, Kind::XATTR, CAPABILITY);
        }
        Ok(())
    }
}
