//! Rot in the index that reads have met: the next open is told of it, and derives the index anew (docs/decisions/22).

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::Result;
use crate::store::Store;

/// Bytes of segments that are read in a second, and versions that are put in order, about (docs/decisions/22).
const BYTES_A_SECOND: u64 = 500 << 20;
const VERSIONS_A_SECOND: u64 = 1_000_000;

/// What is known of rot in the index.
#[derive(Clone, Copy, Debug)]
pub struct IndexRot {
    /// Tables of which a block is damaged.
    pub tables: usize,
    /// How long the next open takes to derive the index anew, about. `None`: it can't, or has to fetch segments from the bucket for it.
    pub derive: Option<Duration>,
}

impl Store {
    /// Sees to it that an index in which rot was found is derived anew by the next open.
    pub(crate) fn tell_of_rot(&self) -> Result<()> {
        let _one = self.maintenance.lock();
        let levels = self.index.read().levels.clone();
        for t in levels.tables() {
            if t.tell_of_rot()? {
                self.rot_told.store(true, Ordering::Release);
                let id = t.reference().region.id;
                tracing::error!(
                    "region {id:x}, a table of the index, is damaged: the next mount derives the index anew from the segments"
                );
            }
        }
        Ok(())
    }

    /// Whether, since this was asked last, the next open was told to derive the index anew.
    pub fn take_told_of_rot(&self) -> bool {
        self.rot_told.swap(false, Ordering::AcqRel)
    }

    /// What is known of rot in the index; `None` if there is none.
    pub fn index_rot(&self) -> Result<Option<IndexRot>> {
        let levels = self.index.read().levels.clone();
        let tables = levels.tables().filter(|t| t.is_rotten()).count();
        if tables == 0 {
            return Ok(None);
        }
        let is_cold = self.bucket().is_some_and(|b| b.cold > 0);
        let can = !self.read_only && !self.degraded && !is_cold && !levels.tables().any(|t| t.was_marked());
        let bytes = self.usage()?.used;
        let versions: u64 = levels.tables().map(|t| t.entries()).sum();
        let seconds = bytes.div_ceil(BYTES_A_SECOND) + versions.div_ceil(VERSIONS_A_SECOND);
        Ok(Some(IndexRot { tables, derive: can.then(|| Duration::from_secs(seconds)) }))
    }
}
