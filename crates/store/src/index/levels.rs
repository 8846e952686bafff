//! The tables of the index, in runs. docs/format.md §Manifest.

use std::sync::Arc;

use super::ghost::Ghost;
use super::memtable::Found;
use super::table::{BlockCache, Cursor, Table, TableRef};
use crate::{Result, Tid};

/// Tables that follow one another in order.
#[derive(Clone, Default)]
pub struct Run {
    pub tables: Vec<Arc<Table>>,
    /// Only what comes after this key counts: the rest was rewritten by a collapse on its way (empty: all counts).
    pub above: Arc<[u8]>,
}

impl Run {
    /// Bytes on the volume.
    pub fn len(&self) -> u64 {
        self.tables.iter().map(|t| t.len()).sum()
    }

    /// Number of the first table that may hold (key, at) or what follows it.
    pub fn table_for(&self, key: &[u8]) -> usize {
        self.tables.partition_point(|t| t.last_key() < key)
    }

    /// The least key that counts, if `key` does not.
    pub fn clip(&self, key: &[u8]) -> Option<Vec<u8>> {
        (!self.above.is_empty() && *key <= *self.above).then(|| [&self.above, [0].as_slice()].concat())
    }

    /// The run without what is not after `key`.
    pub fn above(&self, key: &[u8]) -> Run {
        // A collapse that was cut short may have come further: what it has rewritten must not count again.
        let key = key.max(&self.above);
        let tables = self.tables[self.tables.partition_point(|t| t.last_key() <= key)..].to_vec();
        Run { tables, above: key.into() }
    }

    /// The newest version of `key` with tid ≤ `at`.
    pub fn get(&self, key: &[u8], at: Tid, cache: &BlockCache) -> Result<Option<Found>> {
        if self.clip(key).is_some() {
            return Ok(None);
        }
        for table in &self.tables[self.table_for(key)..] {
            if !table.may_contain(key) {
                return Ok(None);
            }
            let c = Cursor::seek(table.clone(), key, at, Some(cache))?;
            match c.key() {
                Some(k) if k == key => return Ok(Some(Found::Version(c.tid(), c.value()))),
                Some(_) => return Ok(None),
                // The versions of one key may go on in the next table.
                None => {}
            }
        }
        Ok(None)
    }

    /// The ghosts that count, of what was newer than `since`.
    pub fn ghosts(&self, since: Tid) -> impl Iterator<Item = Ghost> {
        let least = self.clip(&self.above).unwrap_or_default();
        let newer = self.tables.iter().flat_map(|t| t.ghosts()).filter(move |g| g.tid > since);
        newer.filter_map(move |g| g.clip(&least))
    }

    /// How the manifest names it.
    pub fn reference(&self) -> RunRef {
        RunRef { above: self.above.to_vec(), tables: self.tables.iter().map(|t| t.reference()).collect() }
    }

    /// Whether the regions are those of `other`.
    pub fn is(&self, other: &Run) -> bool {
        self.tables.len() == other.tables.len() && self.tables.iter().zip(&other.tables).all(|(a, b)| Arc::ptr_eq(a, b))
    }
}

/// A run as the manifest names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunRef {
    /// As [`Run::above`].
    pub above: Vec<u8>,
    pub tables: Vec<TableRef>,
}

/// All runs.
#[derive(Clone, Default)]
pub struct Levels {
    /// Newest first.
    pub live: Vec<Run>,
    /// In no particular order.
    pub history: Vec<Run>,
}

impl Levels {
    /// All tables.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<Table>> {
        self.live.iter().chain(&self.history).flat_map(|r| &r.tables)
    }

    /// The newest version with tid ≤ `at`. `newer`: whether a layer above has the key (then only with newer tids).
    pub fn get(&self, key: &[u8], at: Tid, mut newer: bool, cache: &BlockCache) -> Result<Option<Found>> {
        let mut best: Option<Found> = None;
        for run in &self.live {
            let Some(Found::Version(tid, value)) = run.get(key, Tid::MAX, cache)? else { continue };
            if tid > at {
                newer = true;
            } else if newer {
                keep_newest(&mut best, Found::Version(tid, value));
            } else {
                return Ok(Some(Found::Version(tid, value)));
            }
        }
        // A key that is in no live run may still have a past; so may one whose live version is too new.
        if at != Tid::MAX {
            for run in &self.history {
                if let Some(found) = run.get(key, at, cache)? {
                    keep_newest(&mut best, found);
                }
            }
        }
        Ok(best)
    }
}

fn keep_newest(best: &mut Option<Found>, found: Found) {
    let tid = |f: &Found| if let Found::Version(tid, _) = f { *tid } else { Tid::ZERO };
    if best.as_ref().is_none_or(|b| tid(b) < tid(&found)) {
        *best = Some(found);
    }
}
