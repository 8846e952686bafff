//! Which chunks of files were found scattered over the log when they were read: worth writing anew, in one piece.
//!
//! Only what is read matters, and only what is scattered over so many places that most of it must have been written
//! since it was last in one piece: so rewriting costs at most about as much as was written. (The filesystem does it, when
//! there is time: what it writes is a version like any other, with the same bytes.)

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;

use crate::extent::{CHUNK, Piece};
use crate::index::memtable::Found;
use crate::store::Store;
use crate::{FilesetId, Key, Kind, ObjectId, Result, Tid};

/// A chunk in this many places is scattered.
const PLACES: usize = 8;
/// Places this near to one another are one.
const NEAR: u64 = 64 << 10;
/// Most chunks to remember: 1 GiB of files.
const MOST: usize = 16 << 10;

/// Chunk `.2` of object `.1`.
pub type Chunk = (FilesetId, ObjectId, u64);

/// See the module.
#[derive(Default)]
pub(crate) struct Scattered {
    /// With each chunk the transaction that it was found to be of when it was last looked at.
    chunks: BTreeMap<Chunk, Option<Tid>>,
    /// The last one that was taken: one that is not ready does not keep those behind it waiting.
    last: Option<Chunk>,
}

impl Scattered {
    fn next(&self) -> Option<Chunk> {
        let after = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.chunks.range((after, Bound::Unbounded)).next();
        next.or_else(|| self.chunks.first_key_value()).map(|(chunk, _)| *chunk)
    }
}

impl Store {
    /// Notes the scattered chunks among what is about to be read of a live file.
    pub fn note_scattered(&self, fileset: FilesetId, pieces: &[Piece]) {
        if pieces.len() < PLACES || self.read_only {
            return;
        }
        let mut of_chunk = (None, 0, (0, 0));
        let mut found = Vec::new();
        for p in pieces {
            let Some(place) = p.place else { continue };
            let chunk = Some((fileset, ObjectId(p.object), p.offset / CHUNK));
            let (current, places, end) = &mut of_chunk;
            if *current != chunk {
                (*current, *places, *end) = (chunk, 0, (0, 0));
            }
            let near = place.region == end.0 && place.offset >= end.1 && place.offset - end.1 <= NEAR;
            *places += usize::from(!near);
            *end = (place.region, place.offset + u64::from(place.stored));
            if *places == PLACES {
                found.extend(chunk);
            }
        }
        if !found.is_empty() {
            let mut all = self.scattered.lock();
            for chunk in found {
                if all.chunks.len() < MOST {
                    all.chunks.entry(chunk).or_default();
                }
            }
        }
    }

    /// Takes up to `most` neighbouring chunks that were found scattered.
    pub fn take_scattered(&self, most: usize) -> Vec<(Chunk, Option<Tid>)> {
        let mut all = self.scattered.lock();
        let Some(first) = all.next() else { return Vec::new() };
        let of_it = |c: &Chunk| (c.0, c.1) == (first.0, first.1);
        let run: Vec<_> =
            all.chunks.range(first..).take(most).take_while(|(c, _)| of_it(c)).map(|(c, t)| (*c, *t)).collect();
        all.last = run.last().map(|(c, _)| *c);
        run.iter().for_each(|(c, _)| assert!(all.chunks.remove(c).is_some(), "it was just seen"));
        run
    }

    /// Remembers one that was taken and is still being written: it was of transaction `tid`.
    pub fn put_back_scattered(&self, chunk: Chunk, tid: Tid) {
        if let Entry::Vacant(e) = self.scattered.lock().chunks.entry(chunk) {
            e.insert(Some(tid));
        }
    }

    /// The transaction that a chunk's live version is of; `None` if there is none, or it is that of a clone's base.
    pub fn chunk_tid(&self, (fileset, object, chunk): Chunk) -> Result<Option<Tid>> {
        let key = Key::new(fileset, object, Kind::EXTENT, &chunk.to_be_bytes());
        Ok(self.find(&key, Tid::MAX)?.and_then(Found::into_version).map(|v| v.tid))
    }
}
