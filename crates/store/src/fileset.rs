//! What the store knows of its filesets: when each was made, what it is a clone of, whether it is gone.
//! docs/format.md §Filesets.
//!
//! Derived from the catalogue (the FILESET records of fileset 0, object 0), whose values begin with a [`Lineage`]; the
//! rest of them is the filesystem's. It is part of the index: a transaction that changes the catalogue changes it at the
//! same moment, at commit as in replay, since what later records of a clone mean depends on it.

use std::collections::{BTreeMap, BTreeSet};

use crate::codec::{Reader, put_varint};
use crate::key::parse;
use crate::store::Value;
use crate::{FilesetId, Key, Kind, ObjectId, Tid};

/// The fileset of the catalogue itself.
pub const CATALOGUE: FilesetId = FilesetId(0);
/// The fileset that always exists.
pub(crate) const MAIN: FilesetId = FilesetId(1);

const VERSION: u8 = 1;

/// Where a fileset comes from: the head of its catalogue record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lineage {
    /// The transaction that made it.
    pub created: Tid,
    /// Of a clone: the fileset that it shows wherever it has nothing of its own, as of a tid.
    pub base: Option<(FilesetId, Tid)>,
}

impl Lineage {
    /// Begins a catalogue record's value.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        put_varint(out, self.created.0);
        put_varint(out, self.base.map_or(0, |(fileset, _)| fileset.0.into()));
        if let Some((_, tid)) = self.base {
            put_varint(out, tid.0);
        }
    }

    /// Reads it off a catalogue record's value, and what follows; `None` if it isn't one.
    pub fn decode(value: &[u8]) -> Option<(Lineage, &[u8])> {
        let mut r = Reader::new(value);
        if r.u8()? != VERSION {
            return None;
        }
        let created = Tid(r.varint()?);
        let base = match u32::try_from(r.varint()?).ok()? {
            0 => None,
            fileset => Some((FilesetId(fileset), Tid(r.varint()?))),
        };
        // Going from a clone to its base always goes back in time, so it ends.
        let sound = base.is_none_or(|(_, tid)| tid < created);
        sound.then_some((Lineage { created, base }, r.rest()))
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// `None`: it is removed, and what it was is forgotten.
    lineage: Option<Lineage>,
    removed: Option<Tid>,
}

impl Known {
    fn base(&self) -> Option<(FilesetId, Tid)> {
        self.lineage?.base
    }
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Filesets(BTreeMap<FilesetId, Known>);

impl Filesets {
    /// Takes note of a version of a catalogue record (of others it is none). Versions of one come oldest first.
    pub fn note(&mut self, key: &Key, tid: Tid, value: Option<&Value>) {
        let Some(fileset) = subject(key) else { return };
        let known = self.0.entry(fileset).or_default();
        match value {
            Some(value) => known.lineage = Lineage::decode(value).map(|(lineage, _)| lineage),
            None => known.removed = Some(tid),
        }
    }

    /// All that there ever were (but for the main one and the catalogue), and when they were removed.
    pub fn all(&self) -> impl Iterator<Item = (FilesetId, Option<Tid>)> {
        self.0.iter().map(|(fileset, known)| (*fileset, known.removed))
    }

    /// Whether a fileset can be seen as of a moment: a removed one only from before.
    pub fn is_there(&self, fileset: FilesetId, at: Tid) -> bool {
        let removed = self.0.get(&fileset).and_then(|known| known.removed);
        removed.is_none_or(|removed| at < removed)
    }

    /// From when to when one was there that was removed, as far as that is known.
    pub fn past_life(&self, fileset: FilesetId) -> Option<(Tid, Tid)> {
        let known = self.0.get(&fileset)?;
        Some((known.lineage?.created, known.removed?))
    }

    /// When a fileset was made, before which it shows nothing, though it be a clone; the main one was always there.
    pub fn made(&self, fileset: FilesetId) -> Tid {
        self.0.get(&fileset).and_then(|known| known.lineage).map_or(Tid::ZERO, |lineage| lineage.created)
    }

    /// What shows through a fileset as of a moment where it has nothing of its own.
    pub fn beneath(&self, fileset: FilesetId, at: Tid) -> Option<(FilesetId, Tid)> {
        let lineage = self.0.get(&fileset)?.lineage?;
        lineage.base.filter(|_| at >= lineage.created)
    }

    /// Those through which something shows: their tombstones hide it.
    pub fn clones(&self) -> BTreeSet<FilesetId> {
        self.0.iter().filter(|(_, known)| known.base().is_some()).map(|(fileset, _)| *fileset).collect()
    }

    /// What the clones show that are there now, and what shows through that.
    pub fn shown(&self) -> BTreeSet<(FilesetId, Tid)> {
        let present = self.0.iter().filter(|(_, known)| known.removed.is_none()).map(|(fileset, _)| *fileset);
        present.flat_map(|clone| self.layers(clone)).collect()
    }

    /// What shows through a fileset, and through that.
    fn layers(&self, fileset: FilesetId) -> impl Iterator<Item = (FilesetId, Tid)> {
        std::iter::successors(self.beneath(fileset, Tid::MAX), |(f, at)| self.beneath(*f, *at))
    }

    /// What clones show that are there, or that were removed and whose past can be looked at: somebody does (`is_held`), or a moment of the
    /// main fileset leads there, one of its own (`leads`: from the first to before the second) or one that a clone holds.
    pub fn bases(
        &self,
        is_held: impl Fn(FilesetId) -> bool,
        leads: impl Fn(Tid, Tid) -> bool,
    ) -> BTreeSet<(FilesetId, Tid)> {
        let mut bases = self.shown();
        let past = |(fileset, known): (&FilesetId, &Known)| Some((known.lineage?.created, known.removed?, *fileset));
        let mut gone: Vec<_> = self.0.iter().filter_map(past).collect();
        // What a clone shows is older than itself, and so leads to older ones only.
        gone.sort_unstable_by(|a, b| b.cmp(a));
        for (created, removed, fileset) in gone {
            let by_clone = bases.range((MAIN, created)..(MAIN, removed)).next().is_some();
            if by_clone || leads(created, removed) || is_held(fileset) {
                bases.extend(self.layers(fileset));
            }
        }
        bases
    }
}

/// The fileset that a catalogue record is about. (The main one has no lineage, and number 0 is the counter.)
fn subject(key: &Key) -> Option<FilesetId> {
    match parse(key.as_bytes())? {
        (CATALOGUE, ObjectId(0), Kind::FILESET, suffix) => {
            Some(FilesetId(u32::from_be_bytes(suffix.try_into().ok()?))).filter(|fileset| *fileset > MAIN)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lineage_comes_back_and_no_bytes_make_decoding_panic() {
        for base in [None, Some((FilesetId(7), Tid(1 << 60)))] {
            let lineage = Lineage { created: Tid(1 << 61), base };
            let mut bytes = Vec::new();
            lineage.encode(&mut bytes);
            for cut in 0..bytes.len() {
                assert_eq!(Lineage::decode(&bytes[..cut]), None);
            }
            bytes.extend(b"more");
            assert_eq!(Lineage::decode(&bytes), Some((lineage, &b"more"[..])));
        }
        let mut bytes = Vec::new();
        Lineage { created: Tid(5), base: Some((FilesetId(2), Tid(5))) }.encode(&mut bytes);
        assert_eq!(Lineage::decode(&bytes), None, "a base is older than its clone");
    }
}
