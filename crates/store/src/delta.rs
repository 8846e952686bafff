//! What changed in a fileset from one moment to another, found at a cost in proportion to the changes.
//!
//! Each block of a table tells its highest tid, so what did not change is not read. A deletion whose tombstone a collapse
//! dropped has left a ghost (`index/ghost.rs`): of its range every key that exists is listed, changed or not, and whoever
//! follows drops what else it has there. So nothing is kept for those who follow, and none comes too late.
//!
//! A *tail* is an encoded key without its fileset: object, kind, suffix.

use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::extent::{self, CHUNK, Piece};
use crate::index::Entry;
use crate::index::ghost::Ghost;
use crate::index::levels::{Levels, Run};
use crate::index::memtable::Memtable;
use crate::index::scan::{self, Range};
use crate::index::table::{BlockCache, Newer, Table};
use crate::key::parse;
use crate::pieces::damage;
use crate::store::{Store, Value};
use crate::{FilesetId, Kind, ObjectId, Result, Tid};

/// Bytes of a fileset in a key.
const FILESET: usize = 4;
/// Most keys looked at in one go: the index is locked meanwhile.
const LOOK: usize = 4096;

/// What a key is at the later moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// It was set since the earlier one.
    Set(Tid, Value),
    /// It was deleted since.
    Deleted,
    /// It is what it was then: told in stated ranges only.
    Same,
}

/// A key that changed, or is in a stated range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Object, kind and suffix, encoded.
    pub tail: Vec<u8>,
    /// What it is.
    pub what: What,
}

impl Change {
    /// The parts of its key.
    pub fn parts(&self) -> Option<(ObjectId, Kind, &[u8])> {
        split_tail(&self.tail)
    }
}

/// The parts of a tail.
pub fn split_tail(tail: &[u8]) -> Option<(ObjectId, Kind, &[u8])> {
    let (object, rest) = tail.split_first_chunk()?;
    let (kind, suffix) = rest.split_first()?;
    Some((ObjectId(u64::from_be_bytes(*object)), Kind(*kind), suffix))
}

/// Part of what changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// In order.
    pub changes: Vec<Change>,
    /// Ranges of tails, in order, of which all keys that exist are told: from, and to before which (empty: the end).
    pub stated: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where to go on; `None`: that was all.
    pub next: Option<Vec<u8>>,
}

impl Store {
    /// What became of the keys with tails from `from` on to before `to` (empty: to the end) after `since` and up to `at`, which
    /// must be a moment that is kept as long as this goes on. About `limit` keys at a time.
    pub fn delta(
        &self,
        fileset: FilesetId,
        from: &[u8],
        to: &[u8],
        since: Tid,
        at: Tid,
        limit: usize,
    ) -> Result<Delta> {
        let prefix = fileset.0.to_be_bytes();
        let key = |tail: &[u8]| [&prefix, tail].concat();
        let end = match to {
            [] => (fileset.0 + 1).to_be_bytes().to_vec(),
            to => key(to),
        };
        let index = self.index.read();
        let mems: Vec<&Memtable> = index.memtables().collect();
        let look = Look { mems, levels: &index.levels, cache: &self.cache, since, at };
        let mut delta = Delta::default();
        let mut pos = key(from);
        let mut ghosts = look.ghosts(&pos, &end).into_iter();
        let mut budget = limit.clamp(1, LOOK);
        loop {
            let ghost = ghosts.next();
            let until = ghost.as_ref().map_or(&end, |g| &g.from);
            if let Some(next) = look.changed(&pos, until, &mut budget, &mut delta.changes)? {
                delta.next = Some(next[FILESET..].to_vec());
                return Ok(delta);
            }
            let Some(g) = ghost else { return Ok(delta) };
            let range = Range { prefix: &prefix, from: &g.from, at, tombstones: false, limit: budget };
            let (items, next) = scan::scan(&look.mems, look.levels, &self.cache, range)?;
            budget = budget.saturating_sub(items.len());
            let tail = |key: &[u8]| if *key == *end && to.is_empty() { Vec::new() } else { key[FILESET..].to_vec() };
            let next = next.filter(|next| *next < g.to);
            delta.stated.push((tail(&g.from), tail(next.as_ref().unwrap_or(&g.to))));
            for (key, tid, value) in items.into_iter().take_while(|(key, ..)| *key < g.to) {
                let set = value.filter(|_| tid > since).map(|value| What::Set(tid, value));
                delta.changes.push(Change { tail: tail(&key), what: set.unwrap_or(What::Same) });
            }
            if next.is_some() || budget == 0 {
                // (Where those end that are told may be where all ends.)
                delta.next = Some(next.unwrap_or(g.to)).filter(|next| *next < end).map(|next| tail(&next));
                return Ok(delta);
            }
            pos = g.to;
        }
    }
}

impl Store {
    /// Proves what finding changes relies on, by reading the whole index: that no version is newer than its block says. Returns how
    /// many versions there are, and what is wrong.
    pub fn prove_newest(&self) -> Result<(u64, Vec<String>)> {
        let tables: Vec<Arc<Table>> = self.index.read().levels.tables().cloned().collect();
        let (mut versions, mut wrong) = (0, Vec::new());
        for table in tables {
            let (n, hidden) = match table.first_hidden() {
                // It was merged with others meanwhile, and its place is used again.
                Err(_) if !self.has_table(&table) => continue,
                found => found?,
            };
            versions += n;
            if let Some(Entry { key, tid, .. }) = hidden {
                let (id, key) = (table.reference().region.id, key.escape_ascii());
                wrong.push(format!(
                    "region {id:x}: the block of key {key} says that it has nothing as new as tid {tid}"
                ));
            }
        }
        Ok((versions, wrong))
    }

    fn has_table(&self, table: &Arc<Table>) -> bool {
        self.index.read().levels.tables().any(|t| Arc::ptr_eq(t, table))
    }

    /// The tails of the keys that a fileset has as of `at`, from `from` on to before `to` (empty: to the end), about `limit` of
    /// them, and where to go on.
    pub fn tails(&self, fileset: FilesetId, from: &[u8], to: &[u8], at: Tid, limit: usize) -> Result<Tails> {
        let prefix = fileset.0.to_be_bytes();
        let from = [&prefix, from].concat();
        let range = Range { prefix: &prefix, from: &from, at, tombstones: false, limit: limit.clamp(1, LOOK) };
        let (items, next) = self.scan_batch(range)?;
        let before = |tail: &[u8]| to.is_empty() || tail < to;
        let tails: Vec<Vec<u8>> = items.into_iter().map(|(key, ..)| key[FILESET..].to_vec()).collect();
        let next = next.map(|key| key[FILESET..].to_vec()).filter(|tail| before(tail));
        Ok((tails.into_iter().filter(|tail| before(tail)).collect(), next))
    }

    /// What the bytes of a chunk are made of, by a version of it: data pieces only.
    pub fn pieces_of(&self, object: ObjectId, chunk: u64, tid: Tid, value: &[u8]) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        let base = chunk.saturating_mul(CHUNK);
        self.decode_map(object.0, chunk, tid, value)?.pieces(object.0, base, 0, CHUNK as u32, &mut pieces);
        pieces.retain(Piece::is_data);
        Ok(pieces)
    }

    /// Appends the LZ4 block that a piece is ([`Piece::packed_len`]), verified.
    pub fn read_packed(&self, piece: &Piece, out: &mut Vec<u8>) -> Result<()> {
        let place = piece.place.filter(|_| piece.packed_len().is_some()).expect("a piece that is a whole LZ4 block");
        let start = out.len();
        out.resize(start + place.stored as usize, 0);
        self.read_stored(None, place.region, place.offset, true, &mut out[start..])?;
        let n = extent::packed(&place, &out[start..]).map_err(|e| damage(piece, e))?.len();
        out.truncate(start + n);
        Ok(())
    }

    /// No object gets a number below this any more.
    pub fn raise_objects(&self, least: ObjectId) {
        self.next_object.fetch_max(least.0, Ordering::Relaxed);
    }

    /// The number that the next object gets.
    pub fn objects_end(&self) -> ObjectId {
        ObjectId(self.next_object())
    }
}

/// Tails, and where to go on.
pub type Tails = (Vec<Vec<u8>>, Option<Vec<u8>>);

struct Look<'s> {
    mems: Vec<&'s Memtable>,
    levels: &'s Arc<Levels>,
    cache: &'s BlockCache,
    since: Tid,
    at: Tid,
}

impl Look<'_> {
    fn runs(&self) -> impl Iterator<Item = &Run> {
        self.levels.live.iter().chain(&self.levels.history)
    }

    /// Where deletions may be that nothing else tells of: ranges that do not touch one another.
    fn ghosts(&self, from: &[u8], to: &[u8]) -> Vec<Ghost> {
        let newer = self.runs().flat_map(|run| run.ghosts(self.since)).filter(|g| *g.from < *to);
        let mut all: Vec<Ghost> = newer.filter_map(|g| g.clip(from)).collect();
        all.sort();
        let mut joined: Vec<Ghost> = Vec::new();
        for mut g in all {
            if *g.to > *to {
                g.to = to.to_vec();
            }
            match joined.last_mut().filter(|last| last.to >= g.from) {
                Some(last) => last.join(&g),
                None => joined.push(g),
            }
        }
        joined
    }

    /// What changed from `from` on to before `to`; returns where to go on if the budget was used up before that.
    fn changed(&self, from: &[u8], to: &[u8], budget: &mut usize, out: &mut Vec<Change>) -> Result<Option<Vec<u8>>> {
        let mut runs = Vec::new();
        for run in self.runs() {
            runs.push(NewerInRun::seek(run, from, self.since, self.cache)?);
        }
        let mut mems: Vec<_> = self.mems.iter().map(|m| m.range(Bound::Included(from)).peekable()).collect();
        loop {
            let in_runs = runs.iter().filter_map(NewerInRun::key).min();
            let in_mems = mems.iter_mut().filter_map(|m| m.peek().map(|(key, _)| *key)).min();
            let Some(key) = in_runs.into_iter().chain(in_mems).min().filter(|key| *key < to) else { return Ok(None) };
            let key = key.to_vec();
            if *budget == 0 {
                return Ok(Some(key));
            }
            *budget -= 1;
            let mut best: Option<(Tid, Option<Value>)> = None;
            let mut offer = |tid: Tid, value: Option<Value>| {
                if tid > self.since && tid <= self.at && best.as_ref().is_none_or(|(best, _)| *best < tid) {
                    best = Some((tid, value));
                }
            };
            for m in &mut mems {
                if let Some((_, slot)) = m.next_if(|(k, _)| *k == key.as_slice())
                    && let Some((tid, value)) = slot.at(self.at)
                {
                    offer(tid, value.cloned());
                }
            }
            for run in &mut runs {
                while run.key() == Some(&key) {
                    let (tid, value) = run.version();
                    offer(tid, value);
                    run.step()?;
                }
            }
            if let Some((tid, value)) = best.filter(|_| parse(&key).is_some()) {
                let what = value.map_or(What::Deleted, |value| What::Set(tid, value));
                out.push(Change { tail: key[FILESET..].to_vec(), what });
            }
        }
    }
}

/// Walks what is newer in a run.
struct NewerInRun<'c> {
    run: &'c Run,
    cache: &'c BlockCache,
    since: Tid,
    table: usize,
    cursor: Option<Newer<'c>>,
}

impl<'c> NewerInRun<'c> {
    fn seek(run: &'c Run, key: &[u8], since: Tid, cache: &'c BlockCache) -> Result<NewerInRun<'c>> {
        let clipped = run.clip(key);
        let key = clipped.as_deref().unwrap_or(key);
        let mut c = NewerInRun { run, cache, since, table: run.table_for(key), cursor: None };
        c.open(key)?;
        Ok(c)
    }

    /// Goes to the first table from here on that has something.
    fn open(&mut self, key: &[u8]) -> Result<()> {
        while let Some(table) = self.run.tables.get(self.table) {
            if table.tids().1 > self.since {
                let cursor = Newer::seek(table.clone(), key, self.since, self.cache)?;
                if cursor.key().is_some() {
                    self.cursor = Some(cursor);
                    return Ok(());
                }
            }
            self.table += 1;
        }
        self.cursor = None;
        Ok(())
    }

    fn key(&self) -> Option<&[u8]> {
        self.cursor.as_ref()?.key()
    }

    fn version(&self) -> (Tid, Option<Value>) {
        self.cursor.as_ref().map_or((Tid::ZERO, None), Newer::version)
    }

    fn step(&mut self) -> Result<()> {
        if let Some(c) = &mut self.cursor {
            c.step()?;
            if c.key().is_none() {
                self.table += 1;
                return self.open(&[]);
            }
        }
        Ok(())
    }
}
