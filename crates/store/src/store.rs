//! The store's interface (bodies being written).
#![allow(unused_variables, missing_docs)]

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::{Error, FilesetId, Key, Kind, ObjectId, Piece, Result, Tid};

/// Bytes of a record, shared with the index's memory.
pub type Value = Arc<[u8]>;

/// A record as found: its tid and value.
#[derive(Clone, Debug)]
pub struct Version {
    pub tid: Tid,
    pub value: Value,
}

/// How full the store is. All in bytes but `objects`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// The volumes' capacity.
    pub size: u64,
    /// In use: segments and index.
    pub used: u64,
    /// Free for new data (size − used − reserve).
    pub free: u64,
    /// Of `used`: what the live trees hold (as counted by `Tx::count`).
    pub live: u64,
    /// Live objects (as counted by `Tx::count`).
    pub objects: u64,
}

/// A store, open. `Sync`: reads run in parallel; one `Tx` at a time (begin waits for the other to end).
pub struct Store {}

impl Store {
    /// A store in memory, for tests and models.
    pub fn in_memory() -> Store {
        todo!()
    }
    /// The newest committed tid.
    pub fn tid(&self) -> Tid {
        todo!()
    }
    /// When the store was made: no transaction is older.
    pub fn birth(&self) -> Tid {
        todo!()
    }
    /// 16 random bytes for keyed hashes, chosen at creation (docs/format.md §Superblock).
    pub fn hash_key(&self) -> [u8; 16] {
        todo!()
    }
    /// A fresh object number, never handed out before. (Object 1 is the root of fileset 1.)
    pub fn new_object(&self) -> ObjectId {
        todo!()
    }
    /// Starts a transaction at `max(newest + 1, now_ns)`. Waits for a running one to end.
    pub fn begin(&self, fileset: FilesetId, now_ns: u64) -> Tx<'_> {
        todo!()
    }
    /// The newest version of `key` with a tid ≤ `at` (`Tid::MAX`: the live one); `None` if there is none or it is a tombstone.
    pub fn get(&self, key: &Key, at: Tid) -> Result<Option<Version>> {
        todo!()
    }
    /// Visits what an object has of one kind as of `at`, in suffix order from the first suffix ≥ `from`: `(suffix, tid, value)`.
    pub fn scan(
        &self,
        fileset: FilesetId,
        object: ObjectId,
        kind: Kind,
        from: &[u8],
        at: Tid,
        visit: &mut dyn FnMut(&[u8], Tid, &[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        todo!()
    }
    /// Visits every version (tombstones: `None`) of an object's keys of one kind whose suffix starts with `prefix`,
    /// by suffix, newest first within one.
    pub fn versions(
        &self,
        fileset: FilesetId,
        object: ObjectId,
        kind: Kind,
        prefix: &[u8],
        visit: &mut dyn FnMut(&[u8], Tid, Option<&[u8]>) -> ControlFlow<()>,
    ) -> Result<()> {
        todo!()
    }
    /// What the byte range `offset .. offset+len` of an object is made of as of `at`: data pieces and holes, in order,
    /// without gaps. Cheap: no data is read.
    pub fn map(&self, fileset: FilesetId, object: ObjectId, offset: u64, len: u64, at: Tid) -> Result<Vec<Piece>> {
        todo!()
    }
    /// Start of the first byte ≥ `offset` that is in a data piece, and where that run of data ends; `None`: no data from there on.
    /// (For SEEK_DATA and SEEK_HOLE; finds it without visiting the hole.)
    pub fn next_data(&self, fileset: FilesetId, object: ObjectId, offset: u64, at: Tid) -> Result<Option<(u64, u64)>> {
        todo!()
    }
    /// Reads mapped pieces into `buf` (whose length is the sum of theirs); holes read as zeroes. Every byte is verified.
    /// No lock of the caller's is needed: pieces stay readable whatever is written later.
    pub fn read(&self, pieces: &[Piece], buf: &mut [u8]) -> Result<()> {
        todo!()
    }
    /// Returns once all that is committed now is durable; those that wait at the same time share one flush.
    pub fn sync(&self) -> Result<Tid> {
        todo!()
    }
    pub fn usage(&self) -> Usage {
        todo!()
    }
}

/// A transaction: nothing of it is visible until `commit`; dropped, it never was.
/// Reads through the store while it runs see the state before it; `Tx::map` sees its own writes.
pub struct Tx<'s> {
    store: &'s Store,
}

impl Tx<'_> {
    /// The tid that all of this will carry (nanoseconds: use it for mtime and ctime).
    pub fn tid(&self) -> Tid {
        todo!()
    }
    /// Sets a record. A second put of the same key in one transaction replaces the first.
    pub fn put(&mut self, object: ObjectId, kind: Kind, suffix: &[u8], value: &[u8]) {
        todo!()
    }
    /// Writes a tombstone. A tombstone for an object's ATTR kills the whole object (extents, xattrs and all), O(1).
    pub fn delete(&mut self, object: ObjectId, kind: Kind, suffix: &[u8]) {
        todo!()
    }
    /// Writes file bytes. Returns by how many bytes the object's data (not holes) grew.
    pub fn write(&mut self, object: ObjectId, offset: u64, data: &[u8]) -> Result<i64> {
        todo!()
    }
    /// Makes a range a hole (truncate: `len` up to `u64::MAX - offset`). Returns by how much the data grew (≤ 0).
    /// Costs in proportion to the chunks that have data there.
    pub fn punch(&mut self, object: ObjectId, offset: u64, len: u64) -> Result<i64> {
        todo!()
    }
    /// Puts pieces mapped from any object (same store) at `offset`, sharing their bytes. Holes punch. Returns the growth as `write`.
    pub fn share(&mut self, object: ObjectId, offset: u64, pieces: &[Piece]) -> Result<i64> {
        todo!()
    }
    /// Adjusts the counts of [`Usage::objects`] and [`Usage::live`]; kept with the transaction.
    pub fn count(&mut self, objects: i64, live_bytes: i64) {
        todo!()
    }
    /// Makes it visible, all at once. Durable after a later [`Store::sync`].
    pub fn commit(self) -> Result<Tid> {
        todo!()
    }
}
