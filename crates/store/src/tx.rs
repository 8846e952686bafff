//! A transaction being made. docs/format.md §Frame.

use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;

use crate::extent::{self, CHUNK, PIECES_MAX, Piece, Place, Stored};
use crate::fold::Fold;
use crate::frame::{self, Body, Heads, Record};
use crate::log::Tail;
use crate::store::{FRAME_MAX, SEAL_ROOM, Store};
use crate::volume::without_waiting;
use crate::{Count, Error, FilesetId, Kind, ObjectId, Result, Tid};

/// Writes of this size are a stream: their bytes are compressed only while the volume is slower than the processor.
const BULK: usize = 256 << 10;

/// A transaction: nothing of it is visible until [`Tx::commit`]; dropped, it never was.
/// Reads through the store meanwhile see the state before it; [`Tx::map`] sees its own writes.
pub struct Tx<'s> {
    store: &'s Store,
    tail: MutexGuard<'s, Tail>,
    start: usize,
    heads: Heads,
    /// The one that the frame names.
    fileset: FilesetId,
    fold: Fold,
    objects: i64,
    live: i64,
    /// Changes of other filesets' counts.
    turns: Vec<(FilesetId, i64, i64)>,
    /// Whether a large write is under way.
    bulk: bool,
    /// Filesets of which it changes what may be seen of the past.
    retains: Vec<FilesetId>,
    /// What is to be on the caller's receipt.
    result: Option<u64>,
}

impl<'s> Tx<'s> {
    pub(crate) fn new(store: &'s Store, mut tail: MutexGuard<'s, Tail>, fileset: FilesetId, tid: Tid) -> Tx<'s> {
        let start = tail.buf.len();
        tail.buf.resize(start + frame::HEADER);
        Tx {
            store,
            tail,
            start,
            heads: Heads::default(),
            fileset,
            fold: Fold::new(fileset, tid),
            objects: 0,
            live: 0,
            turns: Vec::new(),
            bulk: false,
            retains: Vec::new(),
            result: None,
        }
    }

    /// The tid that all of this will carry (nanoseconds: fit for mtime and ctime).
    pub fn tid(&self) -> Tid {
        self.fold.tid
    }

    /// Sets a record. A second put of the same key in one transaction replaces the first.
    pub fn put(&mut self, object: ObjectId, kind: Kind, suffix: &[u8], value: &[u8]) {
        self.fold.put(object, kind, suffix, Some(value));
        self.add(object, kind, Body::Put { suffix, value });
    }

    /// Writes a tombstone. One for an object's [`Kind::ATTR`] kills the whole object, extents and all, in O(1).
    pub fn delete(&mut self, object: ObjectId, kind: Kind, suffix: &[u8]) {
        self.fold.put(object, kind, suffix, None);
        self.add(object, kind, Body::Tombstone { suffix });
    }

    fn add(&mut self, object: ObjectId, kind: Kind, body: Body) {
        if matches!(kind, Kind::LABEL | Kind::RETAIN | Kind::FILESET) {
            self.retains.push(self.fold.fileset);
        }
        self.heads.add(self.fold.tid, &Record { fileset: self.fold.fileset, object, kind, body });
    }

    /// What comes from here on is of another fileset, whose counts change by this.
    pub fn turn(&mut self, fileset: FilesetId, objects: i64, live_bytes: i64) {
        self.fold.fileset = fileset;
        self.turns.push((fileset, objects, live_bytes));
        let body = Body::Fileset { objects, live: live_bytes };
        self.heads.add(self.fold.tid, &Record::turn(fileset, body));
    }

    /// Writes file bytes. Returns by how many bytes the object's data (not its holes) grew.
    pub fn write(&mut self, object: ObjectId, mut offset: u64, mut data: &[u8]) -> Result<i64> {
        let mut grown = 0;
        self.bulk = data.len() >= BULK;
        while !data.is_empty() {
            let n = data.len().min((CHUNK - offset % CHUNK) as usize);
            let (part, rest) = data.split_at(n);
            grown += self.write_extent(object, offset, part)?;
            let chunk = offset / CHUNK;
            if self.fold.chunk(self.store, object, chunk)?.spans.len() > PIECES_MAX {
                self.consolidate(object, chunk)?;
            }
            (offset, data) = (offset + n as u64, rest);
        }
        Ok(grown)
    }

    /// `data` lies within one chunk.
    fn write_extent(&mut self, object: ObjectId, offset: u64, data: &[u8]) -> Result<i64> {
        self.fits(extent::raw_size(data.len()))?;
        let tail = &mut *self.tail;
        let region = tail.segment.place().id;
        let at = tail.buf.len();
        let compress = !self.bulk || tail.is_behind();
        let codec = extent::store(data, region, tail.base, compress, &mut tail.buf);
        self.add_extent(object, offset, data.len() as u32, codec, at)
    }

    /// Writes bytes in the form that they have, `len` of them once unpacked ([`Stored::verified_len`]); they lie within one chunk.
    pub fn write_stored(&mut self, object: ObjectId, offset: u64, len: u32, stored: &Stored<'_>) -> Result<i64> {
        let size = match stored {
            Stored::Raw(data) => extent::raw_size(data.len()),
            Stored::Lz4(packed, _) => packed.len() + 4,
            Stored::Lost(_) => 4,
        };
        self.fits(size)?;
        let tail = &mut *self.tail;
        let region = tail.segment.place().id;
        let at = tail.buf.len();
        let codec = extent::store_as(stored, region, tail.base, &mut tail.buf);
        self.add_extent(object, offset, len, codec, at)
    }

    /// Of what was just stored at `at` of the buffer.
    fn add_extent(&mut self, object: ObjectId, offset: u64, len: u32, codec: extent::Codec, at: usize) -> Result<i64> {
        let tail = &mut *self.tail;
        let region = tail.segment.place().id;
        let place = Place {
            region,
            offset: tail.base + at as u64,
            stored: (tail.buf.len() - at) as u32,
            extent_len: len,
            skip: 0,
            codec,
            tid: self.fold.tid,
        };
        let data_at = (at - self.start) as u32;
        let body = Body::Extent { offset, len, codec, data_at, stored: place.stored };
        self.add(object, Kind::EXTENT, body);
        self.fold.overlay(self.store, object, offset, len, Some(place))
    }

    /// Writes a chunk of many small pieces anew: one extent per run of data. What is damaged stays where it is: who reads it
    /// is told, or has it healed.
    fn consolidate(&mut self, object: ObjectId, chunk: u64) -> Result<()> {
        let mut pieces = Vec::new();
        self.fold.chunk(self.store, object, chunk)?.pieces(object.0, chunk * CHUNK, 0, CHUNK as u32, &mut pieces);
        // Where the run begins, how many pieces it has, and their bytes.
        let (mut start, mut n, mut data) = (0, 0, Vec::new());
        for p in pieces {
            let mut ends = !p.is_data();
            if !ends {
                let at = data.len();
                data.resize(at + p.len as usize, 0);
                match without_waiting(|| self.store.read_piece(Some(&self.tail), &p, &mut data[at..])) {
                    Ok(()) => {
                        start = if n == 0 { p.offset } else { start };
                        n += 1;
                    }
                    // Commits wait for us: it stays in pieces.
                    Err(Error::Cold(_)) => return Ok(()),
                    Err(Error::Data { .. } | Error::Io { .. }) => {
                        data.truncate(at);
                        ends = true;
                    }
                    Err(e) => return Err(e),
                }
            }
            if ends {
                self.write_run(object, start, n, &data)?;
                (n, data) = (0, Vec::new());
            }
        }
        self.write_run(object, start, n, &data)
    }

    /// Writes what `n` pieces held as one.
    fn write_run(&mut self, object: ObjectId, offset: u64, n: usize, data: &[u8]) -> Result<()> {
        if n > 1 {
            self.write_extent(object, offset, data)?;
        }
        Ok(())
    }

    /// Makes a range a hole (truncation: `len` up to `u64::MAX - offset`). Returns by how much the data grew (≤ 0).
    /// Costs in proportion to the chunks that have data there.
    pub fn punch(&mut self, object: ObjectId, offset: u64, len: u64) -> Result<i64> {
        if len == 0 {
            return Ok(0);
        }
        self.add(object, Kind::EXTENT, Body::Hole { offset, len });
        self.fold.punch(self.store, object, offset, len)
    }

    /// Puts pieces mapped from any object of this store at `offset`, sharing their bytes; holes punch.
    /// Returns the growth as [`Tx::write`] does.
    pub fn share(&mut self, object: ObjectId, mut offset: u64, pieces: &[Piece]) -> Result<i64> {
        let mut grown = 0;
        for p in pieces {
            let Some(mut place) = p.place else {
                grown += self.punch(object, offset, p.len)?;
                offset += p.len;
                continue;
            };
            let mut left = p.len;
            while left > 0 {
                let len = left.min(CHUNK - offset % CHUNK) as u32;
                self.fits(0)?;
                self.add(object, Kind::EXTENT, Body::Shared { offset, len, place });
                grown += self.fold.overlay(self.store, object, offset, len, Some(place))?;
                place.skip += len;
                offset += u64::from(len);
                left -= u64::from(len);
            }
        }
        Ok(grown)
    }

    /// As [`Store::map`] of the live tree, this transaction's own changes included.
    pub fn map(&self, object: ObjectId, offset: u64, len: u64) -> Result<Vec<Piece>> {
        self.store.map_with(Some(&self.fold), self.fold.fileset, object, offset, len, Tid::MAX)
    }

    /// What the transaction's own fileset held before it, as [`Store::counted`] tells.
    pub fn counted(&self) -> Count {
        self.tail.counts.get(self.fileset)
    }

    /// Bytes of it so far, about.
    pub fn size(&self) -> usize {
        self.tail.buf.len() - self.start + self.heads.len()
    }

    /// Adjusts the counts of the fileset that the transaction began with; kept with it.
    pub fn count(&mut self, objects: i64, live_bytes: i64) {
        self.objects += objects;
        self.live += live_bytes;
    }

    fn fits(&self, more: usize) -> Result<()> {
        let len = self.tail.buf.len() - self.start + self.heads.len() + more + 1024;
        if len > FRAME_MAX {
            return Err(Error::TooLarge);
        }
        let segment = self.tail.segment.place();
        if self.tail.base + (self.start + len) as u64 + SEAL_ROOM > segment.size {
            return Err(self.store.no_space());
        }
        Ok(())
    }

    /// Has the caller's [`crate::Receipt`], if there is one, name this transaction, and what was its outcome: if and only if it is committed,
    /// a later process finds that.
    pub fn sign(&mut self, result: u64) {
        self.result = Some(result);
    }

    /// Makes it visible, all at once. Durable after a later [`Store::sync`].
    pub fn commit(mut self) -> Result<Tid> {
        self.tail.check()?;
        self.fits(0)?;
        let tid = self.fold.tid;
        let header = frame::Header {
            tid,
            fileset: self.fileset,
            chain: self.tail.chain,
            durable: self.store.durable(),
            next_object: self.store.next_object(),
            objects: self.objects,
            live: self.live,
        };
        if let Some(result) = self.result {
            // Before the frame is whole: what has a tid up to the last one of the log was committed.
            crate::receipt::sign(tid, result);
        }
        let region = self.tail.segment.place().id;
        let (start, tail) = (self.start, &mut *self.tail);
        let crc = frame::finish(&mut tail.buf, start, region, tail.base, &header, &self.heads);
        tail.chain = crc;
        tail.last = tid;
        tail.appended += (tail.buf.len() - start) as u64;
        tail.counts.add(self.fileset, self.objects, self.live);
        for (fileset, objects, live) in self.turns.drain(..) {
            tail.counts.add(fileset, objects, live);
        }
        let fold = std::mem::replace(&mut self.fold, Fold::new(FilesetId(0), tid));
        self.store.insert(tail, region, tid, fold.finish());
        for fileset in self.retains.drain(..) {
            self.store.retention_changed(fileset);
            self.store.retention_changes.fetch_add(1, Ordering::Relaxed);
        }
        let full = self.tail.committed();
        // From here on the frame is part of the log; Drop must not take it back.
        self.start = usize::MAX;
        let store = self.store;
        drop(self);
        store.committed(full);
        Ok(tid)
    }
}

impl Drop for Tx<'_> {
    fn drop(&mut self) {
        if self.start != usize::MAX {
            self.tail.buf.truncate(self.start);
        }
    }
}
