//! The index: key → versions, newest first. Derived from the log; an LSM of two families. docs/format.md §Index.
//!
//! *Live* runs hold the newest version of each key when they were made, *history* runs what was superseded: so reading
//! the live tree costs the same however many versions there are. Invariants: a live run's version of a key is newer than
//! that of any live run behind it; a version is in exactly one place; within a table, order is (key, tid descending).

pub mod bloom;
pub mod ghost;
pub mod levels;
pub mod memtable;
pub mod merge;
pub mod scan;
pub mod table;

use crate::Tid;
use crate::key::KeyBytes;
use crate::store::Value;

/// A version as the index keeps it; `value` `None` is a tombstone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: KeyBytes,
    pub tid: Tid,
    pub value: Option<Value>,
}

impl Entry {
    /// Order in tables: by key, then newest first.
    pub fn order(&self, other: &Entry) -> std::cmp::Ordering {
        self.key.cmp(&other.key).then(other.tid.cmp(&self.tid))
    }
}
