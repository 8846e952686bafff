//! Which stretches of files were found scattered over the log when they were read, and which of their pieces to write anew.
//!
//! Reading in the file's order follows a few *streams* of the log at a time: runs of pieces of which each lies a little
//! behind the one before. A piece that goes on with none of the last few is a jump; where there are several in a chunk, its stretch is
//! scattered, and worth gathering: of their streams the small ones become one, the large ones stay. A stream is written anew with others
//! that come to as much together, so that a byte is written anew about as often as the size of its stream can double
//! (as in a log-structured merge tree), and what was overwritten here and there costs little more than once again.
//! Only what is read matters. (The filesystem does it, when there is time: what it writes is a version like any other, with
//! the same bytes.)

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;

use crate::extent::{self, CHUNK, Piece, Place};
use crate::index::memtable::Found;
use crate::store::Store;
use crate::{FilesetId, Key, Kind, ObjectId, Result, Tid};

/// A chunk with so many jumps is scattered.
const JUMPS: usize = 2;
/// How far a stream may skip.
const NEAR: u64 = 64 << 10;
/// Streams that a reader may have to follow for a stretch of a file.
const STREAMS: usize = 4;
/// Streams that are known again when the reader comes back to them.
const OPEN: usize = 8;
/// Most stretches to remember: 16 GiB of files.
const MOST: usize = 16 << 10;
/// Bytes of a file that are gathered together.
pub const STRETCH: u64 = 16 * CHUNK;

/// Stretch `.2` of object `.1`: [`STRETCH`] bytes.
pub type Stretch = (FilesetId, ObjectId, u64);

/// See the module.
#[derive(Default)]
pub(crate) struct Scattered {
    /// With each stretch the transaction that it was found to be of when it was last looked at.
    stretches: BTreeMap<Stretch, Option<Tid>>,
    /// The last one that was taken: one that is not ready does not keep those behind it waiting.
    last: Option<Stretch>,
}

/// The streams that a reader follows.
#[derive(Default)]
struct Streams {
    /// Number of each of the last few, the latest first, and what was last read of it: region, first byte, end.
    open: [(usize, u64, u64, u64); OPEN],
    count: usize,
}

impl Streams {
    /// Says to which stream `len` bytes at a place belong, and whether they begin it.
    fn follow(&mut self, place: &Place, len: u64) -> (usize, bool) {
        let (at, n) = extent::needed(place, len as usize);
        // Two pieces of one LZ4 extent begin at the same byte.
        let goes_on = |s: &(usize, u64, u64, u64)| s.1 == place.region && at >= s.2 && at <= s.3 + NEAR;
        let open = &self.open[..self.count.min(OPEN)];
        let known = open.iter().position(goes_on);
        let number = known.map_or(self.count, |i| open[i].0);
        self.count = self.count.max(number + 1);
        let i = known.unwrap_or(self.count.min(OPEN) - 1);
        self.open[..=i].rotate_right(1);
        self.open[0] = (number, place.region, at, at + n as u64);
        (number, known.is_none())
    }
}

/// Of pieces in the order of their file, which to write anew for it to lie in a few streams (see the module); none where
/// nothing is gained.
pub fn strays(pieces: &[Piece]) -> Vec<bool> {
    let mut streams = Streams::default();
    let of: Vec<_> = pieces.iter().map(|p| p.place.map(|place| streams.follow(&place, p.len).0)).collect();
    // Bytes and number of each.
    let mut sizes: Vec<_> = (0..streams.count).map(|n| (0, n)).collect();
    for (p, n) in pieces.iter().zip(&of) {
        if let Some(n) = n {
            sizes[*n].0 += p.len;
        }
    }
    let total: u64 = sizes.iter().map(|s| s.0).sum();
    sizes.sort_unstable();
    if sizes.len() <= STREAMS {
        return vec![false; pieces.len()];
    }
    let (mut taken, mut sum) = (0, 0);
    while let Some((size, _)) = sizes.get(taken)
        && (*size <= sum || sizes.len() - taken >= STREAMS)
    {
        sum += size;
        taken += 1;
    }
    let mut anew = vec![sum > total / 2; streams.count];
    sizes[..taken].iter().for_each(|(_, n)| anew[*n] = true);
    of.into_iter().map(|n| n.is_some_and(|n| anew[n])).collect()
}

impl Store {
    /// Notes the scattered stretches of what is about to be read of a live file.
    pub fn note_scattered(&self, fileset: FilesetId, pieces: &[Piece]) {
        if pieces.len() < STREAMS + JUMPS || self.read_only {
            return;
        }
        let (mut streams, mut jumps, mut found) = (Streams::default(), (0, 0), Vec::new());
        for p in pieces {
            let Some(place) = p.place else { continue };
            let chunk = p.offset / CHUNK;
            if jumps.0 != chunk {
                jumps = (chunk, 0);
            }
            // The first few are where the reader comes in.
            let (number, is_new) = streams.follow(&place, p.len);
            jumps.1 += usize::from(is_new && number >= STREAMS);
            if jumps.1 == JUMPS {
                found.push((fileset, ObjectId(p.object), p.offset / STRETCH));
            }
        }
        if !found.is_empty() {
            let mut all = self.scattered.lock();
            for stretch in found {
                if all.stretches.len() < MOST {
                    all.stretches.entry(stretch).or_default();
                }
            }
        }
    }

    /// Takes a stretch that was found scattered, and of which transaction it was when it was looked at before.
    pub fn take_scattered(&self) -> Option<(Stretch, Option<Tid>)> {
        let mut all = self.scattered.lock();
        let after = all.last.map_or(Bound::Unbounded, Bound::Excluded);
        let next = all.stretches.range((after, Bound::Unbounded)).next();
        let stretch = *next.or_else(|| all.stretches.first_key_value())?.0;
        all.last = Some(stretch);
        let seen = all.stretches.remove(&stretch).expect("it was just seen");
        Some((stretch, seen))
    }

    /// Remembers one that was taken and is still being written: it was of transaction `tid`.
    pub fn put_back_scattered(&self, stretch: Stretch, tid: Tid) {
        if let Entry::Vacant(e) = self.scattered.lock().stretches.entry(stretch) {
            e.insert(Some(tid));
        }
    }

    /// The transaction that the live version of an object's chunk is of; `None` if there is none, or it is that of a clone's base.
    pub fn chunk_tid(&self, fileset: FilesetId, object: ObjectId, chunk: u64) -> Result<Option<Tid>> {
        let key = Key::new(fileset, object, Kind::EXTENT, &chunk.to_be_bytes());
        Ok(self.find(&key, Tid::MAX)?.and_then(Found::into_version).map(|v| v.tid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::Codec;

    /// Blocks that lie at these blocks of a region.
    fn pieces(at: &[u64]) -> Vec<Piece> {
        let place = |n: u64| Place {
            region: 1,
            offset: n * 4100,
            stored: 4100,
            extent_len: 4096,
            skip: 0,
            codec: Codec::Raw,
            tid: Tid(1),
        };
        let piece =
            |(i, n): (usize, &u64)| Piece { object: 1, offset: i as u64 * 4096, len: 4096, place: Some(place(*n)) };
        at.iter().enumerate().map(piece).collect()
    }

    #[test]
    fn what_lies_in_a_few_streams_stays_and_of_more_the_small_ones_are_written_anew() {
        let none = |at: &[u64]| !strays(&pieces(at)).contains(&true);
        assert!(none(&[]) && none(&[5]) && none(&[1, 2, 3, 4, 5, 6]));
        assert!(none(&[1, 1000, 2, 1001, 5, 1003, 6, 1010]), "two streams");
        assert!(none(&[1, 1000, 2, 2000, 3, 3000, 4, 5]), "strays that can be followed");
        let some = [1, 1000, 2, 2000, 3, 3000, 4, 4000, 5, 6, 7];
        let anew = [false, true, false, true, false, true, false, true, false, false, false];
        assert_eq!(strays(&pieces(&some)), anew);
        assert_eq!(strays(&pieces(&[9000, 1000, 5000, 3000, 7000, 2000])), [true; 6], "nothing is in order");
    }

    #[test]
    fn parts_of_one_extent_are_one_stream() {
        let mut all = pieces(&[1; 8]);
        for (i, p) in all.iter_mut().enumerate() {
            let place = p.place.as_mut().unwrap();
            (place.extent_len, place.stored, place.skip) = (65536, 65600, 8192 * i as u32);
        }
        assert!(!strays(&all).contains(&true));
        all.iter_mut().for_each(|p| p.place.as_mut().unwrap().codec = Codec::Lz4);
        assert!(!strays(&all).contains(&true));
    }
}
