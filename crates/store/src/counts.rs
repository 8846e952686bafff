//! What each fileset's live tree holds, kept through commit, replay and checkpoint. docs/format.md §Manifest.
//!
//! A fileset that holds nothing is not in the list.

use std::collections::BTreeMap;

use crate::FilesetId;
use crate::codec::{Reader, put_varint};

/// What a live tree holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Live objects.
    pub objects: u64,
    /// Live bytes of file data.
    pub live: u64,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts(BTreeMap<FilesetId, Count>);

impl Counts {
    /// All in one fileset.
    pub fn of_one(fileset: FilesetId, count: Count) -> Counts {
        let mut counts = Counts::default();
        counts.set(fileset, count);
        counts
    }

    /// Changes a fileset's count.
    pub fn add(&mut self, fileset: FilesetId, objects: i64, live: i64) {
        let Count { objects: had, live: held } = self.get(fileset);
        let count = Count { objects: had.saturating_add_signed(objects), live: held.saturating_add_signed(live) };
        self.set(fileset, count);
    }

    /// Says what a fileset holds.
    pub fn set(&mut self, fileset: FilesetId, count: Count) {
        match count == Count::default() {
            true => self.0.remove(&fileset),
            false => self.0.insert(fileset, count),
        };
    }

    /// A fileset's count.
    pub fn get(&self, fileset: FilesetId) -> Count {
        self.0.get(&fileset).copied().unwrap_or_default()
    }

    /// All together.
    pub fn total(&self) -> Count {
        self.0.values().fold(Count::default(), |sum, count| Count {
            objects: sum.objects.saturating_add(count.objects),
            live: sum.live.saturating_add(count.live),
        })
    }

    /// Appends the list.
    pub fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.0.len() as u64);
        for (fileset, count) in &self.0 {
            for n in [fileset.0.into(), count.objects, count.live] {
                put_varint(out, n);
            }
        }
    }

    /// Reads the list.
    pub fn read(r: &mut Reader) -> Option<Counts> {
        let mut counts = Counts::default();
        for _ in 0..r.varint()? {
            let fileset = FilesetId(u32::try_from(r.varint()?).ok()?);
            counts.set(fileset, Count { objects: r.varint()?, live: r.varint()? });
        }
        Some(counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_come_back_and_those_of_nothing_are_dropped() {
        let (a, b) = (FilesetId(1), FilesetId(70_000));
        let mut counts = Counts::of_one(a, Count { objects: 3, live: 900 });
        counts.add(b, 2, 5);
        assert_eq!(counts.total(), Count { objects: 5, live: 905 });
        let mut bytes = Vec::new();
        counts.put(&mut bytes);
        let mut r = Reader::new(&bytes);
        assert_eq!(Counts::read(&mut r), Some(counts.clone()));
        assert!(r.is_empty());
        counts.add(b, -2, -5);
        assert_eq!(counts, Counts::of_one(a, Count { objects: 3, live: 900 }));
        for cut in 0..bytes.len() {
            assert_eq!(Counts::read(&mut Reader::new(&bytes[..cut])), None);
        }
    }
}
