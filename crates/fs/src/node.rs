//! Nodes: what a path leads to.
//!
//! Invariant: inode numbers shown for the past have bit 63 set and differ between moments, so that the same file at
//! two moments never looks like two links of one file; live ones ([`Inode::number`]) stay below 2^62.

use std::fmt;

use darner_store::{FilesetId, Key, Kind, ObjectId, Tid};

use crate::error::{Result, refuse};

/// The fileset that a store is created with.
pub const MAIN: FilesetId = FilesetId(1);
/// The root directory of the whole.
pub const ROOT: Inode = Inode { fileset: MAIN, object: ObjectId(1) };

/// Object numbers stay below 2^44: at a million a second that lasts half a year of nothing else.
const OBJECT_BITS: u32 = 44;
/// Fileset numbers stay below this, so that fileset and object fit one number.
pub(crate) const FILESETS_MAX: u32 = 1 << 18;

/// An object of a fileset.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Inode {
    /// Whose.
    pub fileset: FilesetId,
    /// Which.
    pub object: ObjectId,
}

impl Inode {
    /// An object of the main fileset.
    pub fn main(object: u64) -> Inode {
        Inode { fileset: MAIN, object: ObjectId(object) }
    }

    /// The fileset itself: its labels and orphans are records of this object.
    pub(crate) fn meta(fileset: FilesetId) -> Inode {
        Inode { fileset, object: ObjectId(0) }
    }

    /// Another object of the same fileset.
    pub(crate) fn sibling(self, object: ObjectId) -> Inode {
        Inode { object, ..self }
    }

    /// The key of one of its records.
    pub(crate) fn key(self, kind: Kind, suffix: &[u8]) -> Key {
        Key::new(self.fileset, self.object, kind, suffix)
    }

    /// Both in one number that no other has: `fileset << 44 | object`, in the main fileset just the object (so that it is
    /// what it was before there were others).
    pub fn number(self) -> u64 {
        let fileset = if self.fileset == MAIN { 0 } else { u64::from(self.fileset.0) };
        fileset << OBJECT_BITS | self.object.0
    }

    /// What a number stands for.
    pub fn from_number(number: u64) -> Inode {
        let fileset = match (number >> OBJECT_BITS) as u32 & (FILESETS_MAX - 1) {
            0 => MAIN,
            other => FilesetId(other),
        };
        Inode { fileset, object: ObjectId(number & ((1 << OBJECT_BITS) - 1)) }
    }
}

impl fmt::Display for Inode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fileset {
            MAIN => write!(f, "{}", self.object),
            other => write!(f, "{} of fileset {}", self.object, other.0),
        }
    }
}

impl fmt::Debug for Inode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.fileset.0, self.object)
    }
}

/// An object, live or as of a moment.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Node {
    /// The object as it is now.
    Live(Inode),
    /// The object as it was right after the newest transaction ≤ the tid. Read-only.
    AsOf(Inode, Tid),
    /// The virtual directory `@@` of a directory: its labels and points in time. Read-only.
    Points(Inode),
}

impl Node {
    /// The object it is about.
    pub fn inode(self) -> Inode {
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
    pub(crate) fn beside(self, ino: Inode) -> Node {
        match self {
            Node::AsOf(_, tid) => Node::AsOf(ino, tid),
            Node::Live(_) | Node::Points(_) => Node::Live(ino),
        }
    }

    /// The live object, to be changed; the past is EROFS.
    pub fn writable(self) -> Result<Inode> {
        match self {
            Node::Live(ino) => Ok(ino),
            Node::AsOf(..) | Node::Points(_) => refuse(libc::EROFS, "the past can't be changed"),
        }
    }

    /// The inode number to show. `own_device`: the view has a device number of its own (a mount as of a moment), so
    /// plain numbers can't be mistaken for live ones.
    pub fn shown_ino(self, own_device: bool) -> u64 {
        match self {
            Node::Live(ino) => ino.number(),
            Node::AsOf(ino, _) if own_device => ino.number(),
            Node::AsOf(ino, tid) => mix(ino.number(), tid.0),
            Node::Points(ino) => mix(ino.number(), u64::MAX),
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
                let shown = Node::AsOf(Inode::main(ino), Tid(1 << 60 | tid)).shown_ino(false);
                assert!(shown >> 63 == 1 && seen.insert(shown));
            }
        }
    }

    #[test]
    fn a_mount_of_its_own_shows_plain_numbers() {
        assert_eq!(Node::AsOf(Inode::main(7), Tid(9)).shown_ino(true), 7);
        assert_eq!(Node::Live(Inode::main(7)).shown_ino(false), 7);
    }

    #[test]
    fn one_object_number_in_two_filesets_is_two_inode_numbers() {
        let inodes = [1, 2, 77, FILESETS_MAX - 1].map(|n| Inode { fileset: FilesetId(n), object: ObjectId(7) });
        for inode in inodes {
            assert_eq!(Inode::from_number(inode.number()), inode);
            assert!(inode.number() < 1 << 62);
        }
        let shown = inodes.map(|inode| Node::AsOf(inode, Tid(9)).shown_ino(false));
        assert_eq!(std::collections::HashSet::from(shown).len(), inodes.len());
    }
}
