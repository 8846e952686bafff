//! Nodes: what a path leads to.
//!
//! Invariant: inode numbers shown for the past have bit 63 set and differ between moments, so that the same file at
//! two moments never looks like two links of one file; live ones are the object numbers, which stay below 2^63.

use darner_store::{ObjectId, Tid};

use crate::error::{Result, refuse};

/// An object, live or as of a moment.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Node {
    /// The object as it is now.
    Live(ObjectId),
    /// The object as it was right after the newest transaction ≤ the tid. Read-only.
    AsOf(ObjectId, Tid),
    /// The virtual directory `@@` of a directory: its labels and points in time. Read-only.
    Points(ObjectId),
}

impl Node {
    /// The object it is about.
    pub fn object(self) -> ObjectId {
        match self {
            Node::Live(ino) | Node::AsOf(ino, _) | Node::Points(ino) => ino,
        }
    }

    /// As of when records are read for it.
    pub(crate) fn at(self) -> Tid {
        match self {
            Node::AsOf(_, tid) => tid,
            Node::Live(_) | Node::Points(_) => Tid::MAX,
        }
    }

    /// Another object at the same moment.
    pub(crate) fn beside(self, ino: ObjectId) -> Node {
        match self {
            Node::AsOf(_, tid) => Node::AsOf(ino, tid),
            Node::Live(_) | Node::Points(_) => Node::Live(ino),
        }
    }

    /// The live object, to be changed; the past is EROFS.
    pub fn writable(self) -> Result<ObjectId> {
        match self {
            Node::Live(ino) => Ok(ino),
            Node::AsOf(..) | Node::Points(_) => refuse(libc::EROFS, "the past can't be changed"),
        }
    }

    /// The inode number to show. `own_device`: the view has a device number of its own (a mount as of a moment), so
    /// plain numbers can't be mistaken for live ones.
    pub fn shown_ino(self, own_device: bool) -> u64 {
        match self {
            Node::Live(ino) => ino.0,
            Node::AsOf(ino, _) if own_device => ino.0,
            Node::AsOf(ino, tid) => mix(ino.0, tid.0),
            Node::Points(ino) => mix(ino.0, u64::MAX),
        }
    }
}

const LOW: u64 = u64::MAX >> 1;

/// A bijection of 63-bit numbers for each tid, with bit 63 set. (Rounds of splitmix64, each invertible modulo 2^63.)
fn mix(ino: u64, tid: u64) -> u64 {
    let scatter = |mut x: u64| {
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9) & LOW;
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) & LOW;
        x ^ (x >> 31)
    };
    scatter((ino ^ scatter(tid.wrapping_mul(0x9e37_79b9_7f4a_7c15) & LOW)) & LOW) | !LOW
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_file_at_two_moments_has_two_numbers_and_two_files_at_one_moment_too() {
        let mut seen = std::collections::HashSet::new();
        for ino in 1..200 {
            for tid in 0..200 {
                let shown = Node::AsOf(ObjectId(ino), Tid(1 << 60 | tid)).shown_ino(false);
                assert!(shown >> 63 == 1 && seen.insert(shown));
            }
        }
    }

    #[test]
    fn a_mount_of_its_own_shows_plain_numbers() {
        assert_eq!(Node::AsOf(ObjectId(7), Tid(9)).shown_ino(true), 7);
        assert_eq!(Node::Live(ObjectId(7)).shown_ino(false), 7);
    }
}
