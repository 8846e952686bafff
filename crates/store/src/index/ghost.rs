//! Ghosts: what is left of tombstones that a collapse dropped, so that those who follow learn of the deletion.
//!
//! A ghost says: the newest version of some key in this range was a tombstone, with at most this tid, and is in the index no
//! more. Whoever knows the filesystem as it was before that tid must look which keys of the range there are. Ghosts are
//! kept beside the entries in their tables, a few for each block: where there are more, neighbours become one that covers
//! both and what is between them. So they say too much at times, never too little.
//!
//! A ghost outlives what is destroyed by `forget`, so it has no names: of a directory entry it says three bytes of the hash,
//! of what begins with a name only that it is one of the object's.

use crate::codec::{Reader, put_bytes, put_varint};
use crate::key::KEY_HEAD;
use crate::{FilesetId, Kind, Tid};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ghost {
    /// The first key that it is about.
    pub from: Vec<u8>,
    /// The first one behind those.
    pub to: Vec<u8>,
    /// The highest tid of what was dropped.
    pub tid: Tid,
}

impl Ghost {
    /// Of one key, and perhaps some beside it.
    pub fn of(key: &[u8], tid: Tid) -> Ghost {
        let known = match key.get(KEY_HEAD - 1).copied().map(Kind) {
            Some(Kind::DIRENT) => KEY_HEAD + 3,
            Some(Kind::XATTR | Kind::LABEL) => KEY_HEAD,
            _ => key.len(),
        };
        let from = key[..known.min(key.len())].to_vec();
        let mut to = from.clone();
        match from.len() == key.len() {
            true => to.push(0),
            // The first key that does not begin so. (A fileset's number is not the highest there is.)
            false => {
                while to.pop_if(|last| *last == u8::MAX).is_some() {}
                if let Some(last) = to.last_mut() {
                    *last += 1;
                }
            }
        }
        Ghost { from, to, tid }
    }

    /// Of anything in a fileset.
    pub fn of_fileset(fileset: FilesetId, tid: Tid) -> Ghost {
        Ghost { from: fileset.0.to_be_bytes().to_vec(), to: (fileset.0 + 1).to_be_bytes().to_vec(), tid }
    }

    /// Covers another one as well, and all between.
    pub fn join(&mut self, other: &Ghost) {
        if other.from < self.from {
            self.from.clone_from(&other.from);
        }
        if other.to > self.to {
            self.to.clone_from(&other.to);
        }
        self.tid = self.tid.max(other.tid);
    }

    /// Of it what is not before `key`.
    pub fn clip(&self, key: &[u8]) -> Option<Ghost> {
        (*self.to > *key).then(|| Ghost { from: key.max(&self.from).to_vec(), ..self.clone() })
    }

    /// Memory that it takes.
    pub fn bytes(&self) -> usize {
        self.from.len() + self.to.len() + std::mem::size_of::<Ghost>()
    }
}

/// docs/format.md §Table.
pub fn encode(ghosts: &[Ghost], out: &mut Vec<u8>) {
    put_varint(out, ghosts.len() as u64);
    for g in ghosts {
        put_bytes(out, &g.from);
        put_bytes(out, &g.to);
        put_varint(out, g.tid.0);
    }
}

/// `None`: they are none.
pub fn decode(bytes: &[u8]) -> Option<Vec<Ghost>> {
    let mut r = Reader::new(bytes);
    let n = r.varint()?;
    let mut ghosts = Vec::new();
    for _ in 0..n {
        let (from, to) = (r.bytes()?.to_vec(), r.bytes()?.to_vec());
        ghosts.push(Ghost { from, to, tid: Tid(r.varint()?) });
    }
    r.is_empty().then_some(ghosts)
}
