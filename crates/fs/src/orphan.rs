//! Orphans: objects without a name that may still be open.
//!
//! An ORPHAN record (object 0 of its fileset, suffix: the object, 8 bytes big-endian; no value) says that an object is to go
//! as soon as nobody has it open: when the kernel forgets it, or, after a crash, at the next mount. Going costs one
//! tombstone.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use darner_store::{FilesetId, Kind, ObjectId, Tid};

use crate::error::Result;
use crate::fs::Fs;
use crate::node::Inode;

/// Most objects that one transaction reaps.
const BATCH: usize = 128;

impl Fs {
    pub(crate) fn load_orphans(&self, fileset: FilesetId) -> Result<()> {
        let mut orphans = self.orphans.lock();
        let meta = Inode::meta(fileset);
        self.each(meta, Kind::ORPHAN, &[], Tid::MAX, |suffix, _, _| {
            orphans.extend(suffix.try_into().ok().map(|bytes| meta.sibling(ObjectId(u64::from_be_bytes(bytes)))));
            ControlFlow::Continue(())
        })
    }

    /// Objects without a name, in use or not.
    pub fn orphans(&self) -> Vec<Inode> {
        self.orphans.lock().iter().copied().collect()
    }

    /// Whether an object has no name.
    pub fn is_orphan(&self, ino: Inode) -> bool {
        self.orphans.lock().contains(&ino)
    }

    /// Nobody has these objects open any more: those without a name go for good. Costs nothing for others.
    pub fn forget(&self, now_ns: u64, objects: &[Inode]) -> Result<()> {
        let mut doomed: Vec<Inode> = {
            let orphans = self.orphans.lock();
            objects.iter().copied().filter(|ino| orphans.contains(ino)).collect()
        };
        doomed.sort_unstable();
        let of_one_fileset = doomed.chunk_by(|a, b| a.fileset == b.fileset);
        of_one_fileset.flat_map(|all| all.chunks(BATCH)).try_for_each(|batch| self.reap(now_ns, batch))
    }

    /// Reaps what a crash left: before anybody has anything open. Returns how many objects that were.
    pub fn reap_orphans(&self, now_ns: u64) -> Result<usize> {
        let all = self.orphans();
        self.forget(now_ns, &all)?;
        Ok(all.len())
    }

    fn reap(&self, now_ns: u64, batch: &[Inode]) -> Result<()> {
        let plan = self.plan(batch[0].fileset, 0)?;
        let mut doomed = BTreeMap::new();
        for &ino in batch {
            doomed.insert(ino, self.attr_at(ino, Tid::MAX)?.is_some_and(|attr| attr.nlink == 0));
        }
        let mut change = plan.begin(now_ns)?;
        for (ino, dies) in doomed {
            match dies {
                true => change.kill(ino)?,
                false => change.adopt(ino),
            }
        }
        change.commit()?;
        Ok(())
    }
}
