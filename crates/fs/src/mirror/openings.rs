//! Between which openings a store's moments came to be, by which those who follow it notice that an older copy of it was put back: its
//! transactions have other tids than those that were lost, and so nothing else tells. docs/format.md §Peers.

use std::sync::atomic::Ordering;

use darner_store::Tid;

use crate::codec::{Reader, put_varint};
use crate::error::{FsError, Result};
use crate::fs::Fs;
use crate::peer::OPENINGS;

/// Openings that are remembered, at most; who was away for more is believed.
const OPENINGS_MAX: usize = 64;

/// A number for an opening of which nothing is known.
pub const UNKNOWN: u64 = 0;

/// An opening by which something was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Opening {
    /// Drawn at random.
    id: u64,
    /// The store's last transaction before it.
    after: Tid,
}

fn decode(value: &[u8]) -> Option<Vec<Opening>> {
    let (mut from, mut all) = (Reader(value), Vec::new());
    while from.end().is_none() {
        let id = u64::from_le_bytes(from.take(8)?.try_into().ok()?);
        all.push(Opening { id, after: Tid(from.varint()?) });
    }
    Some(all)
}

impl Fs {
    fn openings(&self) -> Result<Vec<Opening>> {
        let found = self.peer_record(&[OPENINGS])?.unwrap_or_default();
        decode(&found).ok_or_else(|| FsError::malformed("the record of openings is in no known form"))
    }

    fn opened_at(&self) -> Tid {
        Tid(self.mirror.opened.load(Ordering::Acquire))
    }

    /// Sees to it that what was done since the store was opened can be told from what another copy of it did: before somebody who follows
    /// is told of a moment.
    pub fn note_opening(&self, now_ns: u64) -> Result<()> {
        if self.mirror.is_noted.load(Ordering::Acquire) || self.store.is_read_only() {
            return Ok(());
        }
        let mut all = self.openings()?;
        if !all.is_empty() && self.store.tid() == self.opened_at() {
            return Ok(());
        }
        let random = getrandom::u64().map_err(|e| FsError::told(libc::EIO, format!("no random numbers: {e}")))?;
        all.push(Opening { id: random.max(UNKNOWN + 1), after: self.opened_at() });
        let mut value = Vec::new();
        for opening in &all[all.len().saturating_sub(OPENINGS_MAX)..] {
            value.extend_from_slice(&opening.id.to_le_bytes());
            put_varint(&mut value, opening.after.0);
        }
        // (Two at once note two: the later record has both, or the first is unknown to who asks for it again.)
        if self.mirror.is_noted.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let put = self.put_peer(&[OPENINGS], Some(&value), self.dated(now_ns));
        put.inspect_err(|_| self.mirror.is_noted.store(false, Ordering::Release))
    }

    /// By which opening a moment came to be; [`UNKNOWN`].
    pub(super) fn opening_of(&self, at: Tid) -> Result<u64> {
        if at > self.opened_at() && !self.mirror.is_noted.load(Ordering::Acquire) {
            return Ok(UNKNOWN);
        }
        let all = self.openings()?;
        Ok(all.iter().rev().find(|opening| at > opening.after).map_or(UNKNOWN, |opening| opening.id))
    }

    /// Whether a moment that somebody has is one of this store, if that can be told: it came to be by `opening`.
    pub fn has_been(&self, at: Tid, opening: u64) -> Result<bool> {
        if opening == UNKNOWN {
            return Ok(true);
        }
        let all = self.openings()?;
        let Some(i) = all.iter().position(|o| o.id == opening) else {
            return Ok(all.len() == OPENINGS_MAX && at <= all[0].after);
        };
        let is_noted = self.mirror.is_noted.load(Ordering::Acquire);
        let end = all.get(i + 1).map(|next| next.after);
        let end = end.unwrap_or_else(|| if is_noted { self.store.tid() } else { self.opened_at() });
        Ok(at > all[i].after && at <= end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bytes_make_decoding_panic() {
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..10_000 {
            let bytes: Vec<u8> = (0..rng.usize(..40)).map(|_| rng.u8(..)).collect();
            decode(&bytes);
        }
    }
}
