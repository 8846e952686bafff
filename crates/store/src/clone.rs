//! Clones: filesets that show another one, as of a tid, wherever they have nothing of their own.
//!
//! A look-up in a clone goes through *layers*: its own records, then those of its base as of the base's tid, then those of
//! the base's base. The topmost layer that has any version of a key, a tombstone too, decides. So a clone costs one record,
//! whatever it shows; what is written in it hides what is beneath. Invariants: object 0 (labels, orphans) is a fileset's
//! own and never shows through; as of a moment before a clone was made, nothing does; the tombstones of a clone stay in the
//! live runs (`index/merge.rs`), since there is always something that they may hide.
//!
//! The base shows through from the commit of the transaction that makes the clone on, not within it: that one must not
//! write file bytes into it.
//!
//! Everything that reads records by key comes through here, the chunk maps that a write begins from and replay included.

use std::collections::VecDeque;

use crate::fileset::CATALOGUE;
use crate::index::Entry;
use crate::index::memtable::Found;
use crate::index::scan::{Item, Range};
use crate::key::{KEY_HEAD, parse};
use crate::store::{Store, Version, VisitValue};
use crate::{FilesetId, Key, Kind, ObjectId, Result, Tid};

/// A batch of a layer's scan.
const BATCH: usize = 128;

impl Store {
    /// When a fileset was made, before which it shows nothing, though it be a clone; the main one was always there.
    pub fn made(&self, fileset: FilesetId) -> Tid {
        self.index.read().filesets.made(fileset)
    }

    /// What shows through a fileset now, and as of when.
    pub fn beneath(&self, fileset: FilesetId) -> Option<(FilesetId, Tid)> {
        self.index.read().filesets.beneath(fileset, Tid::MAX)
    }

    /// The filesets, removed ones too, through which another one shows, at whatever depth, each with as of when.
    pub fn shown_through(&self, base: FilesetId) -> Vec<(FilesetId, Tid)> {
        let filesets = self.index.read().filesets.clone();
        let moment = |clone: FilesetId| {
            let mut layers =
                std::iter::successors(filesets.beneath(clone, Tid::MAX), |(f, at)| filesets.beneath(*f, *at));
            layers.find(|(fileset, _)| *fileset == base).map(|(_, at)| (clone, at))
        };
        filesets.all().filter_map(|(clone, _)| moment(clone)).collect()
    }

    /// Reads what the index says of the filesets.
    pub(crate) fn load_filesets(&self) -> Result<()> {
        let mut versions = self.all_versions(&Key::new(CATALOGUE, ObjectId(0), Kind::FILESET, &[]))?;
        versions.sort_by_key(|e| e.tid);
        let mut index = self.index.write();
        for e in versions {
            if let Some((fileset, object, kind, suffix)) = parse(&e.key) {
                index.filesets.note(&Key::new(fileset, object, kind, suffix), e.tid, e.value.as_ref());
            }
        }
        Ok(())
    }

    fn is_there(&self, fileset: FilesetId, at: Tid) -> bool {
        self.index.read().filesets.is_there(fileset, at)
    }

    /// The layers of an object, topmost first.
    fn layers(&self, fileset: FilesetId, object: ObjectId, at: Tid) -> impl Iterator<Item = (FilesetId, Tid)> {
        std::iter::successors(Some((fileset, at)), move |(fileset, at)| match object {
            ObjectId(0) => None,
            _ => self.index.read().filesets.beneath(*fileset, *at),
        })
    }

    /// As [`Store::get`], through all layers.
    pub(crate) fn get_through(&self, key: &Key, at: Tid) -> Result<Option<Version>> {
        let Some((fileset, object, kind, suffix)) = parse(key.as_bytes()) else { return Ok(None) };
        if !self.is_there(fileset, at) {
            return Ok(None);
        }
        for (fileset, at) in self.layers(fileset, object, at) {
            if let Some(found @ Found::Version(..)) = self.find(&Key::new(fileset, object, kind, suffix), at)? {
                return Ok(found.into_version());
            }
        }
        Ok(None)
    }

    /// As [`Store::scan`], through all layers.
    pub(crate) fn scan_through(
        &self,
        fileset: FilesetId,
        object: ObjectId,
        kind: Kind,
        from: &[u8],
        at: Tid,
        visit: &mut VisitValue<'_>,
    ) -> Result<()> {
        if !self.is_there(fileset, at) {
            return Ok(());
        }
        let layer = |(fileset, at)| Layer::new(self, fileset, object, kind, from, at);
        let mut layers: Vec<Layer> = self.layers(fileset, object, at).map(layer).collect();
        while let Some((suffix, tid, value)) = next(&mut layers)? {
            if let Some(value) = value
                && visit(&suffix, tid, &value).is_break()
            {
                break;
            }
        }
        Ok(())
    }

    /// The versions of an object's keys of one kind whose suffix starts with `prefix`, through all layers (of a removed
    /// fileset too): by suffix, newest first.
    pub(crate) fn versions_through(
        &self,
        fileset: FilesetId,
        object: ObjectId,
        kind: Kind,
        prefix: &[u8],
    ) -> Result<Vec<Entry>> {
        let mut all = Vec::new();
        for (fileset, at) in self.layers(fileset, object, Tid::MAX) {
            let versions = self.all_versions(&Key::new(fileset, object, kind, prefix))?;
            all.extend(versions.into_iter().filter(|e| e.tid <= at));
        }
        // What shows through is older than the clone, so its own versions come first by themselves.
        all.sort_by(|a, b| a.key[KEY_HEAD..].cmp(&b.key[KEY_HEAD..]).then(b.tid.cmp(&a.tid)));
        Ok(all)
    }
}

/// What of a scan is left in one layer.
struct Layer<'s> {
    store: &'s Store,
    prefix: Key,
    at: Tid,
    /// Found, tombstones included.
    items: VecDeque<Item>,
    /// Where to go on; `None`: at the end.
    next: Option<Vec<u8>>,
}

impl<'s> Layer<'s> {
    fn new(store: &'s Store, fileset: FilesetId, object: ObjectId, kind: Kind, from: &[u8], at: Tid) -> Layer<'s> {
        let next = Some(Key::new(fileset, object, kind, from).as_bytes().to_vec());
        Layer { store, prefix: Key::new(fileset, object, kind, &[]), at, items: VecDeque::new(), next }
    }

    /// The first suffix that is left.
    fn suffix(&mut self) -> Result<Option<&[u8]>> {
        while self.items.is_empty() {
            let Some(from) = self.next.take() else { break };
            let (items, next) = self.store.scan_batch(Range {
                prefix: self.prefix.as_bytes(),
                from: &from,
                at: self.at,
                tombstones: true,
                limit: BATCH,
            })?;
            (self.items, self.next) = (items.into(), next);
        }
        Ok(self.items.front().map(|(key, ..)| &key[KEY_HEAD..]))
    }
}

/// The next suffix of all layers (in place of the key), with what the topmost one that has it says.
fn next(layers: &mut [Layer<'_>]) -> Result<Option<Item>> {
    let mut first: Option<Vec<u8>> = None;
    for layer in &mut *layers {
        if let Some(suffix) = layer.suffix()?
            && first.as_deref().is_none_or(|first| suffix < first)
        {
            first = Some(suffix.to_vec());
        }
    }
    let Some(first) = first else { return Ok(None) };
    let mut found = None;
    for layer in &mut *layers {
        if layer.suffix()? == Some(&first) {
            let item = layer.items.pop_front();
            found = found.or(item.map(|(_, tid, value)| (tid, value)));
        }
    }
    Ok(found.map(|(tid, value)| (first, tid, value)))
}
