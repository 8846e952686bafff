//! What a scrub's finding means to people: which file, and whether it is the present that is damaged or the past.

use darner_store::{FilesetId, ObjectId, Tid};

use crate::fs::Fs;
use crate::node::{Inode, Node};

impl Fs {
    /// The path of a file of which bytes are damaged that the transaction `tid` wrote, and whether the live file has them.
    pub fn damaged(&self, fileset: FilesetId, object: ObjectId, offset: u64, len: u64, tid: Tid) -> (String, bool) {
        let ino = Inode { fileset, object };
        let is_there = |at| matches!(self.attr_at(ino, at), Ok(Some(_)));
        let pieces = || self.store.map(fileset, object, offset, len, Tid::MAX).unwrap_or_default();
        if is_there(Tid::MAX) && pieces().iter().any(|p| p.tid() == Some(tid)) {
            return (self.path_of(Node::Live(ino)), true);
        }
        match is_there(tid) {
            true => (self.path_of(Node::AsOf(ino, tid)), false),
            false => (format!("object {ino}, of which no moment is left"), false),
        }
    }
}
