//! Folding: what a transaction's records make of the index. The same code serves commit, replay and rebuild, so the
//! index is the same whichever way it came about.

use std::collections::BTreeMap;
use std::collections::btree_map::Range;

use crate::extent::{CHUNK, ChunkMap, Place};
use crate::frame::{Body, Record};
use crate::store::{Store, Value};
use crate::{FilesetId, Key, Kind, ObjectId, Result, Tid};

/// The index entries of one transaction, being made.
pub struct Fold {
    /// Whose records come.
    pub fileset: FilesetId,
    pub tid: Tid,
    chunks: BTreeMap<(FilesetId, ObjectId, u64), ChunkMap>,
    entries: Vec<(Key, Option<Value>)>,
}

impl Fold {
    /// An empty transaction.
    pub fn new(fileset: FilesetId, tid: Tid) -> Fold {
        Fold { fileset, tid, chunks: BTreeMap::new(), entries: Vec::new() }
    }

    /// Sets or (`None`) deletes a key.
    pub fn put(&mut self, object: ObjectId, kind: Kind, suffix: &[u8], value: Option<&[u8]>) {
        let key = Key::new(self.fileset, object, kind, suffix);
        let value = value.map(Value::from);
        match self.entries.iter_mut().find(|(k, _)| *k == key) {
            Some(entry) => entry.1 = value,
            None => self.entries.push((key, value)),
        }
    }

    /// The chunk's map with this transaction's changes.
    pub fn chunk(&mut self, store: &Store, object: ObjectId, chunk: u64) -> Result<&mut ChunkMap> {
        use std::collections::btree_map::Entry;
        match self.chunks.entry((self.fileset, object, chunk)) {
            Entry::Occupied(e) => Ok(e.into_mut()),
            Entry::Vacant(e) => Ok(e.insert(store.chunk_map(self.fileset, object, chunk, Tid::MAX)?)),
        }
    }

    fn range(&self, object: ObjectId, first: u64, last: u64) -> Range<'_, (FilesetId, ObjectId, u64), ChunkMap> {
        self.chunks.range((self.fileset, object, first)..(self.fileset, object, last))
    }

    /// The maps that this transaction changed, of an object's chunks `first..last`.
    pub fn changed_in(&self, object: ObjectId, first: u64, last: u64) -> impl Iterator<Item = (u64, &ChunkMap)> {
        self.range(object, first, last).map(|((.., c), map)| (*c, map))
    }

    /// Bytes `offset .. offset+len` (within one chunk) come from `place`, or are a hole. Returns by how much the data grew.
    pub fn overlay(
        &mut self,
        store: &Store,
        object: ObjectId,
        offset: u64,
        len: u32,
        place: Option<Place>,
    ) -> Result<i64> {
        let map = self.chunk(store, object, offset / CHUNK)?;
        let before = map.data_len();
        map.overlay((offset % CHUNK) as u32, len, place);
        Ok(map.data_len() - before)
    }

    /// Makes any range a hole. Returns by how much the data grew.
    pub fn punch(&mut self, store: &Store, object: ObjectId, offset: u64, len: u64) -> Result<i64> {
        let end = offset.saturating_add(len);
        let (first, last) = (offset / CHUNK, end.div_ceil(CHUNK));
        let mut chunks: Vec<u64> = self.range(object, first, last).map(|((.., c), _)| *c).collect();
        if last - first <= 2 {
            chunks.extend(first..last);
        } else {
            chunks.extend(store.chunks_with_data(self.fileset, object, first, last)?);
        }
        chunks.sort_unstable();
        chunks.dedup();
        let mut grown = 0;
        for c in chunks {
            let from = offset.max(c * CHUNK);
            let to = end.min((c + 1).saturating_mul(CHUNK));
            if self.chunk(store, object, c)?.spans.is_empty() && !store.has_chunk(self.fileset, object, c)? {
                self.chunks.remove(&(self.fileset, object, c));
                continue;
            }
            grown += self.overlay(store, object, from, (to - from) as u32, None)?;
        }
        Ok(grown)
    }

    /// Folds a record of the frame at byte `at` of a region.
    pub fn record(&mut self, store: &Store, region: u64, at: u64, r: &Record) -> Result<()> {
        self.fileset = r.fileset;
        match r.body {
            Body::Fileset { .. } => {}
            Body::Put { suffix, value } => self.put(r.object, r.kind, suffix, Some(value)),
            Body::Tombstone { suffix } => self.put(r.object, r.kind, suffix, None),
            Body::Hole { offset, len } => {
                self.punch(store, r.object, offset, len)?;
            }
            Body::Shared { offset, len, place } => {
                self.overlay(store, r.object, offset, len, Some(place))?;
            }
            Body::Extent { offset, len, codec, data_at, stored } => {
                let offset_in_region = at + u64::from(data_at);
                let tid = self.tid;
                let place = Place { region, offset: offset_in_region, stored, extent_len: len, skip: 0, codec, tid };
                self.overlay(store, r.object, offset, len, Some(place))?;
            }
        }
        Ok(())
    }

    /// The entries, for the memtable.
    pub fn finish(mut self) -> Vec<(Key, Option<Value>)> {
        for ((fileset, object, chunk), map) in self.chunks {
            let key = Key::new(fileset, object, Kind::EXTENT, &chunk.to_be_bytes());
            let value = (!map.spans.is_empty()).then(|| Value::from(map.encode(self.tid)));
            self.entries.push((key, value));
        }
        self.entries
    }
}
