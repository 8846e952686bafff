//! Openings: each process that opens a store for writing draws a number, and what it writes of superblocks and checkpoints says so. Two
//! copies of a store count generations alike; by this they are told apart. docs/format.md §Superblock.

use crate::codec::Reader;
use crate::{Error, Result};

/// So many are remembered; of older ones nothing is known.
const KEPT: usize = 64;

/// One opening, and the first generation of a superblock that could be of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Opening {
    id: u64,
    since: u64,
}

/// The last openings of a store, ascending by generation; the last one is going on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Openings(Vec<Opening>);

impl Openings {
    /// Begins one at a superblock of this generation.
    pub(crate) fn begin(&mut self, id: u64, generation: u64) {
        // (One that has written none is of no account.)
        self.0.retain(|o| o.since <= generation);
        self.0.push(Opening { id, since: generation + 1 });
        let surplus = self.0.len().saturating_sub(KEPT);
        self.0.drain(..surplus);
    }

    /// Whose a superblock of a generation is.
    pub(crate) fn at(&self, generation: u64) -> Option<u64> {
        self.0.iter().rev().find(|o| o.since <= generation).map(|o| o.id)
    }

    /// Whether that which these are of has been what `other` calls itself at a generation; true where that is too long ago to tell.
    pub(crate) fn agree(&self, other: Option<u64>, generation: u64) -> bool {
        self.0.first().is_none_or(|first| generation < first.since) || self.at(generation) == other
    }

    /// Whether it is among them.
    pub fn has(&self, id: u64) -> bool {
        self.0.iter().any(|o| o.id == id)
    }

    /// That which is going on.
    pub(crate) fn last(&self) -> Option<u64> {
        self.0.last().map(|o| o.id)
    }

    /// Appends `u32` n and n pairs of `u64`, id and generation.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.0.len() as u32).to_le_bytes());
        for v in self.0.iter().flat_map(|o| [o.id, o.since]) {
            out.extend_from_slice(&v.to_le_bytes());
        }
    }

    pub(crate) fn decode(r: &mut Reader) -> Option<Openings> {
        let n = r.u32().map(|n| n as usize).filter(|n| *n <= KEPT)?;
        (0..n).map(|_| Some(Opening { id: r.u64()?, since: r.u64()? })).collect::<Option<_>>().map(Openings)
    }
}

/// A number for an opening.
pub(crate) fn draw() -> Result<u64> {
    let mut id = [0; 8];
    getrandom::fill(&mut id).map_err(|e| Error::NotAStore(format!("no random numbers: {e}")))?;
    Ok(u64::from_le_bytes(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_has_been_is_told_from_what_a_copy_of_it_became() {
        let mut one = Openings::default();
        assert!(one.agree(None, 7));
        one.begin(10, 7);
        let mut copy = one.clone();
        one.begin(11, 9);
        copy.begin(12, 9);
        assert!(one.agree(None, 7) && one.agree(Some(10), 9) && one.agree(Some(11), 10));
        assert!(!one.agree(Some(12), 10) && !one.agree(Some(10), 10) && !one.agree(None, 8));
        assert!(!copy.agree(one.at(12), 12) && copy.has(10) && !copy.has(11));
        // One that never wrote anything leaves nothing behind.
        one.begin(13, 9);
        assert_eq!((one.at(10), one.has(11), one.last()), (Some(13), false, Some(13)));
    }

    #[test]
    fn the_last_64_are_remembered_and_read_as_they_were_written() {
        let mut all = Openings::default();
        (0..100).for_each(|n| all.begin(1000 + n, n));
        assert!(all.agree(Some(5), 36) && !all.agree(Some(5), 37) && all.agree(Some(1036), 37));
        let mut bytes = Vec::new();
        all.encode(&mut bytes);
        assert_eq!(Openings::decode(&mut Reader::new(&bytes)), Some(all));
        bytes[0] += 1;
        assert_eq!(Openings::decode(&mut Reader::new(&bytes)), None);
    }
}
