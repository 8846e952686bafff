//! Orphans: objects without a name that may still be open.
//!
//! An ORPHAN record (object [`META`], suffix: the object, 8 bytes big-endian; no value) says that an object is to go
//! as soon as nobody has it open: when the kernel forgets it, or, after a crash, at the next mount. Going costs one
//! tombstone.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use darner_store::{Kind, ObjectId, Tid};

use crate::error::Result;
use crate::fs::{Fs, META};

/// Most objects that one transaction reaps.
const BATCH: usize = 128;

impl Fs {
    pub(crate) fn load_orphans(&self) -> Result<()> {
        let mut orphans = self.orphans.lock();
        self.each(META, Kind::ORPHAN, &[], Tid::MAX, |suffix, _, _| {
            orphans.extend(suffix.try_into().ok().map(|bytes| ObjectId(u64::from_be_bytes(bytes))));
            ControlFlow::Continue(())
        })
    }

    /// Nobody has these objects open any more: those without a name go for good. Costs nothing for others.
    pub fn forget(&self, now_ns: u64, objects: &[ObjectId]) -> Result<()> {
        let doomed: Vec<ObjectId> = {
            let orphans = self.orphans.lock();
            objects.iter().copied().filter(|ino| orphans.contains(ino)).collect()
        };
        doomed.chunks(BATCH).try_for_each(|batch| self.reap(now_ns, batch))
    }

    /// Reaps what a crash left: before anybody has anything open. Returns how many objects that were.
    pub fn reap_orphans(&self, now_ns: u64) -> Result<usize> {
        let mut all: Vec<ObjectId> = self.orphans.lock().iter().copied().collect();
        all.sort_unstable();
        self.forget(now_ns, &all)?;
        Ok(all.len())
    }

    fn reap(&self, now_ns: u64, batch: &[ObjectId]) -> Result<()> {
        let plan = self.plan(0)?;
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
