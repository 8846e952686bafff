//! Merging: sorted inputs become new runs; what is superseded moves from live to history.
//!
//! Rules: of a key's versions the newest is live, the others history. A tombstone that nothing live lies beneath
//! (`bottom`) is history too, unless it hides something of a clone's base. An object whose ATTR is a tombstone is dead: the
//! values of its other keys are history.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

use super::Entry;
use super::table::Cursor;
use crate::key::{KEY_HEAD, parse};
use crate::{FilesetId, Kind, Result, Tid};

/// A sorted input.
pub type Source<'a> = Box<dyn Iterator<Item = Result<Entry>> + 'a>;

/// The entries of a run that count, one table after the other, read without filling the cache.
pub fn run_source(run: &super::levels::Run) -> Source<'static> {
    let from = run.clip(&run.above).unwrap_or_default();
    let tables = run.tables.clone();
    Box::new(tables.into_iter().flat_map(move |t| TableSource { cursor: None, table: Some(t), from: from.clone() }))
}

struct TableSource {
    table: Option<std::sync::Arc<super::table::Table>>,
    cursor: Option<Cursor<'static>>,
    from: Vec<u8>,
}

impl Iterator for TableSource {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Result<Entry>> {
        if let Some(table) = self.table.take() {
            match Cursor::seek(table, &self.from, Tid::MAX, None) {
                Ok(c) => self.cursor = Some(c),
                Err(e) => return Some(Err(e)),
            }
        }
        let cursor = self.cursor.as_mut()?;
        let entry = cursor.entry()?;
        if let Err(e) = cursor.step() {
            self.cursor = None;
            return Some(Err(e));
        }
        Some(Ok(entry))
    }
}

struct Head {
    entry: Entry,
    source: usize,
}

impl PartialEq for Head {
    fn eq(&self, other: &Head) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Head {}
impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Head) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Head {
    fn cmp(&self, other: &Head) -> std::cmp::Ordering {
        self.entry.order(&other.entry).then(self.source.cmp(&other.source))
    }
}

/// All entries of the sources in table order.
pub struct Merged<'a> {
    sources: Vec<Source<'a>>,
    heads: BinaryHeap<Reverse<Head>>,
}

impl<'a> Merged<'a> {
    /// Starts merging.
    pub fn new(mut sources: Vec<Source<'a>>) -> Result<Merged<'a>> {
        let mut heads = BinaryHeap::new();
        for (i, s) in sources.iter_mut().enumerate() {
            if let Some(entry) = s.next().transpose()? {
                heads.push(Reverse(Head { entry, source: i }));
            }
        }
        Ok(Merged { sources, heads })
    }

    /// The next entry.
    pub fn next(&mut self) -> Result<Option<Entry>> {
        let Some(mut top) = self.heads.peek_mut() else { return Ok(None) };
        let source = top.0.source;
        match self.sources[source].next().transpose()? {
            Some(entry) => Ok(Some(std::mem::replace(&mut top.0.entry, entry))),
            None => Ok(Some(std::collections::binary_heap::PeekMut::pop(top).0.entry)),
        }
    }
}

/// Tells live entries from history while they pass in table order.
pub struct Divider {
    bottom: bool,
    clones: BTreeSet<FilesetId>,
    last_key: Vec<u8>,
    /// Tid of the entry before, if it has the same key.
    newer: Tid,
    /// The object whose ATTR was a tombstone, and when it died.
    dead: Option<(Vec<u8>, Tid)>,
}

impl Divider {
    /// `bottom`: no live run lies beneath the merged ones. `clones`: filesets whose tombstones hide what shows through.
    pub fn new(bottom: bool, clones: BTreeSet<FilesetId>) -> Divider {
        Divider { bottom, clones, last_key: Vec::new(), newer: Tid::MAX, dead: None }
    }

    fn is_of_a_clone(&self, e: &Entry) -> bool {
        !self.clones.is_empty() && parse(&e.key).is_some_and(|(fileset, ..)| self.clones.contains(&fileset))
    }

    /// Until when this entry was the newest of its key, if that is over: then it is history.
    pub fn superseded(&mut self, e: &Entry) -> Option<Tid> {
        let newer = std::mem::replace(&mut self.newer, e.tid);
        if *self.last_key == *e.key {
            return Some(newer);
        }
        self.last_key.clear();
        self.last_key.extend_from_slice(&e.key);
        let object = &e.key[..KEY_HEAD - 1];
        if e.value.is_none() {
            if e.key.len() == KEY_HEAD && e.key[KEY_HEAD - 1] == Kind::ATTR.0 {
                self.dead = Some((object.to_vec(), e.tid));
            }
            return (self.bottom && !self.is_of_a_clone(e)).then_some(Tid::MAX);
        }
        // Above the bottom an older live version may lie beneath: then it must stay hidden by this one.
        let died = self.dead.as_ref().filter(|(dead, _)| self.bottom && dead == object);
        died.map(|(_, tid)| *tid)
    }
}
