//! The part of the index that is not yet in tables: every version since the last flush.
//!
//! Superseded versions stay beside their key, so that the live view is one lookup and a version costs no tree node.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::Entry;
use crate::key::KeyBytes;
use crate::store::{Value, Version};
use crate::{Key, Tid};

/// The versions of one key, since this memtable began. (So small that a node of the tree is not what the C library calls large:
/// those take it several times as long.)
#[derive(Debug)]
pub struct Slot {
    tid: Tid,
    value: Option<Value>,
    /// Those before, oldest first.
    older: Vec<(Tid, Option<Value>)>,
}

impl Slot {
    /// The newest version with tid ≤ `at`; the outer `None`: none that old here.
    pub fn at(&self, at: Tid) -> Option<(Tid, Option<&Value>)> {
        if self.tid <= at {
            return Some((self.tid, self.value.as_ref()));
        }
        let n = self.older.partition_point(|(tid, _)| *tid <= at);
        let (tid, value) = self.older[..n].last()?;
        Some((*tid, value.as_ref()))
    }

    /// All versions, newest first.
    pub fn versions(&self) -> impl Iterator<Item = (Tid, Option<&Value>)> {
        let older = self.older.iter().rev().map(|(t, v)| (*t, v.as_ref()));
        std::iter::once((self.tid, self.value.as_ref())).chain(older)
    }

    /// Adds a newer one.
    fn push(&mut self, tid: Tid, value: Option<Value>) {
        assert!(tid > self.tid, "versions of a key come in order: {tid} after {}", self.tid);
        let was = (std::mem::replace(&mut self.tid, tid), std::mem::replace(&mut self.value, value));
        if self.older.is_empty() {
            // Of most keys that is all.
            self.older.reserve_exact(1);
        }
        self.older.push(was);
    }
}

/// See the module.
#[derive(Default, Debug)]
pub struct Memtable {
    slots: BTreeMap<KeyBytes, Slot>,
    bytes: usize,
}

/// Estimated bytes of a tree node and its allocations, by measurement of resident memory.
const SLOT_COST: usize = 170;
const VERSION_COST: usize = 40;
/// Of a value's allocation.
const VALUE_COST: usize = 24;

impl Memtable {
    /// Adds a version, newer than those the key has.
    pub fn put(&mut self, key: Key, tid: Tid, value: Option<Value>) {
        self.bytes += value.as_ref().map_or(0, |v| v.len() + VALUE_COST);
        match self.slots.entry(key.into_bytes()) {
            std::collections::btree_map::Entry::Vacant(e) => {
                self.bytes += SLOT_COST + e.key().allocated();
                e.insert(Slot { tid, value, older: Vec::new() });
            }
            std::collections::btree_map::Entry::Occupied(mut e) => {
                e.get_mut().push(tid, value);
                self.bytes += VERSION_COST;
            }
        }
    }

    /// The newest version with tid ≤ `at` and the newest of all here; `None` if the key is not here.
    /// A version's value `None` is a tombstone.
    pub fn get(&self, key: &Key, at: Tid) -> Option<Found> {
        let slot = self.slots.get(key.bytes())?;
        Some(match slot.at(at) {
            Some((tid, value)) => Found::Version(tid, value.cloned()),
            None => Found::OnlyNewer,
        })
    }

    /// Slots from `from` on, in key order.
    pub fn range(&self, from: Bound<&[u8]>) -> impl Iterator<Item = (&[u8], &Slot)> {
        self.slots.range::<[u8], _>((from, Bound::Unbounded)).map(|(k, s)| (&**k, s))
    }

    /// All entries in table order.
    pub fn entries(&self) -> impl Iterator<Item = Entry> {
        self.slots.iter().flat_map(|(key, slot)| {
            slot.versions().map(|(tid, value)| Entry { key: key.clone(), tid, value: value.cloned() })
        })
    }

    /// Estimated memory in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// What a layer of the index knows of a key.
#[derive(Debug)]
pub enum Found {
    /// This is the newest version with tid ≤ T in this layer.
    Version(Tid, Option<Value>),
    /// The key is here, but only with newer tids.
    OnlyNewer,
}

impl Found {
    /// As users of the store see it.
    pub fn into_version(self) -> Option<Version> {
        match self {
            Found::Version(tid, Some(value)) => Some(Version { tid, value }),
            _ => None,
        }
    }
}
