//! Copying a range between files by sharing its bytes: costs records, not data. The source may be in the past.

use darner_store::{CHUNK, Piece};

use crate::change::SMALL;
use crate::error::{Result, refuse};
use crate::file::end_of;
use crate::fs::Fs;
use crate::node::Node;

/// Most bytes that one copy moves (what FUSE's reply can say is twice as much).
const COPY_MAX: u64 = 1 << 30;
/// Most shared runs that one copy makes: each takes up to 64 bytes of the transaction.
const RUNS_MAX: u64 = 16 << 10;

impl Fs {
    /// Copies up to `len` bytes and returns how many: fewer at the source's end, and no more than one transaction
    /// takes.
    pub fn copy_range(&self, now_ns: u64, from: Node, offset: u64, to: Node, to_offset: u64, len: u64) -> Result<u64> {
        let ino = to.writable()?;
        // What is shared must not be given up meanwhile.
        let _pin = self.pin(from)?;
        let mut plan = self.plan(ino.fileset, SMALL)?;
        plan.file(ino)?;
        let source = self.readable(from)?;
        let overlap = from == to && offset < to_offset.saturating_add(len) && to_offset < offset.saturating_add(len);
        if overlap {
            return refuse(libc::EINVAL, "the ranges overlap");
        }
        let len = source.size.saturating_sub(offset).min(len).min(COPY_MAX);
        end_of(to_offset, len)?;
        if len == 0 {
            return Ok(0);
        }
        let mut pieces = self.store.map(from.inode().fileset, from.inode().object, offset, len, from.at())?;
        fit(&mut pieces);
        let copied = pieces.iter().map(|piece| piece.len).sum();
        let mut change = plan.begin_large(now_ns)?;
        let grown = change.tx.share(ino.object, to_offset, &pieces)?;
        change.grew(ino, grown)?;
        change.wrote(ino, to_offset + copied, true)?;
        change.result = copied;
        change.commit()?;
        Ok(copied)
    }
}

/// Leaves as many pieces as one transaction takes.
fn fit(pieces: &mut Vec<Piece>) {
    let mut runs = 0;
    let fitting = pieces.iter().take_while(|piece| {
        runs += if piece.is_data() { piece.len / CHUNK + 2 } else { 1 };
        runs <= RUNS_MAX
    });
    let count = fitting.count().max(1);
    pieces.truncate(count);
}
