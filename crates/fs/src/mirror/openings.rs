//! Between which openings a store's moments came to be, by which those who follow it notice that an older copy of it was put back: its
//! transactions have other tids than those that were lost, and so nothing else tells. docs/format.md §Peers.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use darner_store::{CATALOGUE, Kind, ObjectId, Tid};

use crate::codec::Reader;
use crate::error::{FsError, Result};
use crate::fs::Fs;
use crate::node::Inode;
use crate::peer::{OPENING, OPENINGS};

/// A number for an opening of which nothing is known.
pub const UNKNOWN: u64 = 0;

/// An opening by which something was done, once somebody had looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Drawn at random.
    pub id: u64,
    /// The store's last transaction before it.
    pub after: Tid,
}

impl Opening {
    /// By which of these (ascending) a moment came to be; [`UNKNOWN`].
    fn of(at: Tid, all: &[Opening]) -> u64 {
        all.iter().rev().find(|opening| at > opening.after).map_or(UNKNOWN, |opening| opening.id)
    }

    /// Whether a moment that somebody has, by `opening`, is of a store with these, as far as he knows by which it is.
    pub fn is_of(at: Tid, opening: u64, all: &[Opening]) -> bool {
        opening == UNKNOWN || Opening::of(at, all) == opening
    }
}

/// The key's suffix: the newest come first.
fn suffix_of(after: Tid) -> [u8; 9] {
    let mut suffix = [OPENING; 9];
    suffix[1..].copy_from_slice(&(!after.0).to_be_bytes());
    suffix
}

fn decode_one(suffix: &[u8], value: &[u8]) -> Option<Opening> {
    let after = Tid(!u64::from_be_bytes(suffix.get(1..)?.try_into().ok()?));
    Some(Opening { id: u64::from_le_bytes(value.try_into().ok()?), after })
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
    /// By which openings the moments from `since` to `at` came to be, ascending.
    pub fn openings(&self, since: Tid, at: Tid) -> Result<Vec<Opening>> {
        let malformed = || FsError::malformed("the record of an opening is in no known form");
        let Some(before) = at.0.checked_sub(1) else { return Ok(Vec::new()) };
        // Former versions kept the last ones in one record.
        let former = decode(&self.peer_record(&[OPENINGS])?.unwrap_or_default()).ok_or_else(malformed)?;
        let mut all: Vec<Opening> = former.into_iter().filter(|opening| opening.after < at).collect();
        let mut is_known = true;
        self.each(Inode::meta(CATALOGUE), Kind::PEER, &suffix_of(Tid(before)), Tid::MAX, |suffix, _, value| {
            if suffix.first() != Some(&OPENING) {
                return ControlFlow::Break(());
            }
            let found = decode_one(suffix, value);
            is_known &= found.is_some();
            all.extend(found);
            match found {
                Some(found) if found.after >= since => ControlFlow::Continue(()),
                _ => ControlFlow::Break(()),
            }
        })?;
        if !is_known {
            return Err(malformed());
        }
        all.sort_by_key(|opening| opening.after);
        let first = all.iter().rposition(|opening| opening.after < since).unwrap_or(0);
        Ok(all.split_off(first))
    }

    fn opened_at(&self) -> Tid {
        Tid(self.mirror.opened.load(Ordering::Acquire))
    }

    /// Reads whether anything was noted, when the store was opened.
    pub(super) fn load_openings(&self) {
        let opened = self.store.tid();
        self.mirror.opened.store(opened.0, Ordering::Release);
        // (A damaged record keeps nobody from opening the store.)
        let is_looked_at = || self.openings(opened, Tid::MAX).map_or(true, |all| !all.is_empty());
        let due = !self.store.is_read_only() && is_looked_at();
        self.mirror.is_due.store(due, Ordering::Release);
    }

    /// Sees to it that what is done since the store was opened can be told from what another copy of it does: before somebody who follows
    /// is told of a moment.
    pub fn note_opening(&self) -> Result<()> {
        let nothing_done = || self.store.tid() == self.opened_at();
        if self.store.is_read_only() || self.mirror.is_due.load(Ordering::Acquire) && nothing_done() {
            return Ok(());
        }
        self.note()
    }

    /// The same before something is done, where somebody has looked before.
    pub(crate) fn note_doing(&self) -> Result<()> {
        match self.mirror.is_due.load(Ordering::Acquire) {
            true => self.note(),
            false => Ok(()),
        }
    }

    fn note(&self) -> Result<()> {
        let mut is_noted = self.mirror.is_noted.lock();
        if *is_noted {
            return Ok(());
        }
        let random = getrandom::u64().map_err(|e| FsError::told(libc::EIO, format!("no random numbers: {e}")))?;
        let id = random.max(UNKNOWN + 1).to_le_bytes();
        // (In what room there is: what gives room back may be waiting for it. And no receipt names it: it is not what was asked for.)
        self.store.admit(0)?;
        let _live = self.live.write();
        let mut tx = self.store.begin_for(CATALOGUE, 0, Some(0))?;
        tx.put(ObjectId(0), Kind::PEER, &suffix_of(self.opened_at()), &id);
        tx.commit()?;
        *is_noted = true;
        self.mirror.is_due.store(false, Ordering::Release);
        Ok(())
    }

    /// By which opening a moment came to be; [`UNKNOWN`].
    pub(super) fn opening_of(&self, at: Tid) -> Result<u64> {
        Ok(Opening::of(at, &self.openings(at, at)?))
    }

    /// Whether a moment that somebody has is one of this store: it came to be by `opening`.
    pub fn has_been(&self, at: Tid, opening: u64) -> Result<bool> {
        Ok(opening == UNKNOWN || at <= self.store.tid() && Opening::is_of(at, opening, &self.openings(at, at)?))
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
            decode_one(&bytes, &bytes[bytes.len().min(9)..]);
        }
    }
}
