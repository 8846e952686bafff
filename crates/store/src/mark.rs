//! What the index needs of some segments, found by one look through all of it. docs/format.md §Pack.
//!
//! Versions are kept as hashes (a collision keeps a record that nobody needs), bytes as blocks of stored extents.

use std::ops::Bound;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::codec::{hash_key, mix};
use crate::extent::Span;
use crate::forget::Forgotten;
use crate::index::table::{Cursor, Table};
use crate::maintain::State;
use crate::segment::{Segment, Starts};
use crate::sieve::{blocks_of, each_span};
use crate::store::Store;
use crate::{Result, Tid};

/// Gets a version: key, tid, value.
pub(crate) type VisitVersions<'v> = dyn FnMut(&[u8], Tid, Option<&[u8]>) + 'v;

/// What the index needs of the victims.
pub(crate) struct Needed {
    /// Hashes of key and tid of versions.
    versions: FxHashSet<u64>,
    /// Blocks of stored extents, by (region, offset).
    pub blocks: FxHashMap<(u64, u64), u32>,
    victims: FxHashSet<u64>,
    /// All that is in them is newer.
    oldest: Tid,
    pub forgotten: Forgotten,
    starts: Starts,
}

fn version_hash(key: &[u8], tid: Tid) -> u64 {
    mix(hash_key(key) ^ mix(tid.0))
}

impl Needed {
    /// Whether a version is in the index.
    pub fn has(&self, key: &[u8], tid: Tid) -> bool {
        self.versions.contains(&version_hash(key, tid))
    }

    /// Of these nothing, as far as is known yet.
    pub fn of(victims: &[&Segment], segments: &[Segment], forgotten: Forgotten) -> Needed {
        Needed {
            versions: FxHashSet::default(),
            blocks: FxHashMap::default(),
            victims: victims.iter().map(|s| s.at.id).collect(),
            oldest: victims.iter().map(|s| s.after).min().unwrap_or_default(),
            forgotten,
            starts: Starts::of(segments),
        }
    }

    /// The same victims before a look.
    #[cfg(test)]
    pub fn with_nothing_known(&self) -> Needed {
        let Needed { victims, oldest, forgotten, starts, .. } = self;
        let (versions, blocks) = Default::default();
        let (victims, forgotten, starts) = (victims.clone(), forgotten.clone(), starts.clone());
        Needed { versions, blocks, victims, oldest: *oldest, forgotten, starts }
    }

    /// Whether the same is known to be needed.
    #[cfg(test)]
    pub fn is(&self, other: &Needed) -> bool {
        self.versions == other.versions && self.blocks == other.blocks
    }

    /// A version is in the index.
    pub fn note_version(&mut self, key: &[u8], tid: Tid) {
        if self.victims.contains(&self.starts.segment_of(tid)) {
            self.versions.insert(version_hash(key, tid));
        }
    }

    /// One of its spans.
    pub fn note_span(&mut self, s: &Span) {
        if self.victims.contains(&s.place.region) {
            *self.blocks.entry((s.place.region, s.place.offset)).or_default() |= blocks_of(s);
        }
    }
}

impl Store {
    /// Looks through the index for what it needs of the victims.
    pub(crate) fn mark(&self, state: &mut State, needed: &mut Needed) -> Result<()> {
        let oldest = needed.oldest;
        self.each_version(state, &|t| t.tids().1 > oldest, &mut |key, tid, value| {
            needed.note_version(key, tid);
            each_span(key, tid, value, |s| needed.note_span(&s));
        })
    }

    /// Visits all versions in memory, and those of the tables that are `due`; what is committed meanwhile may be among them.
    pub(crate) fn each_version(
        &self,
        state: &mut State,
        due: &dyn Fn(&Table) -> bool,
        visit: &mut VisitVersions<'_>,
    ) -> Result<()> {
        // The memtable first: what is flushed from then on has been seen.
        self.each_in_memory(visit);
        let levels = self.index.read().levels.clone();
        let mut n = 0u64;
        for run in levels.live.iter().chain(&levels.history) {
            let from = run.clip(&run.above).unwrap_or_default();
            for table in run.tables.iter().filter(|t| due(t)) {
                let mut c = Cursor::seek(table.clone(), &from, Tid::MAX, None)?;
                while let Some(key) = c.key() {
                    visit(key, c.tid(), c.bytes());
                    c.step()?;
                    n += 1;
                    if n.is_multiple_of(4096) && self.flush_is_due(state) {
                        self.flush_locked(state)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn each_in_memory(&self, visit: &mut VisitVersions<'_>) {
        // In small portions: whoever commits waits meanwhile.
        const PORTION: usize = 512;
        for frozen in [true, false] {
            let mut last: Option<Vec<u8>> = None;
            loop {
                let index = self.index.read();
                let table = match frozen {
                    true => index.frozen.as_deref(),
                    false => Some(&index.active),
                };
                let Some(table) = table else { break };
                let from = last.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
                let mut end = None;
                for (key, slot) in table.range(from).take(PORTION) {
                    for (tid, value) in slot.versions() {
                        visit(key, tid, value.map(|v| &**v));
                    }
                    end = Some(key.to_vec());
                }
                drop(index);
                match end {
                    Some(key) => last = Some(key),
                    None => break,
                }
            }
        }
    }
}
