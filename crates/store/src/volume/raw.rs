//! A raw volume: one flat disk with two superblock slots and contiguous regions. docs/format.md §Raw volume.
//!
//! Invariants: regions never overlap; the bytes before [`DATA_START`] belong to the superblocks. Which regions exist
//! is said by the manifest (and by seals after it); the allocator is derived.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Disk, Region, RegionRef, SUPER_SIZE, Volume};
use crate::{Error, Result};

/// Where superblock slot 1 is (slot 0 is at 0): far enough that one bad stretch does not take both.
const SUPER_SPACING: u64 = 64 << 10;
/// First byte of the first region.
const DATA_START: u64 = 1 << 20;
/// Regions start and end on multiples of this.
pub(crate) const UNIT: u64 = 16 << 10;

/// A volume on one [`Disk`].
pub struct RawVolume {
    disk: Arc<dyn Disk>,
    /// start → size of every region.
    used: Mutex<BTreeMap<u64, u64>>,
}

impl RawVolume {
    /// A volume on `disk`, whatever is on it.
    pub fn new(disk: Arc<dyn Disk>) -> RawVolume {
        RawVolume { disk, used: Mutex::new(BTreeMap::new()) }
    }

    fn place(&self, offset: u64) -> String {
        format!("{} at byte {offset}", self.disk.name())
    }

    fn io<T>(&self, action: &'static str, offset: u64, r: std::io::Result<T>) -> Result<T> {
        r.map_err(|e| Error::Io { place: self.place(offset), action, source: Arc::new(e) })
    }

    fn len(&self) -> Result<u64> {
        self.io("size", 0, self.disk.len())
    }

    fn region(&self, at: RegionRef) -> Arc<dyn Region> {
        Arc::new(RawRegion { disk: self.disk.clone(), at })
    }
}

/// What lies between regions: (start, bytes), by start.
fn gaps(used: &BTreeMap<u64, u64>, end: u64) -> impl Iterator<Item = (u64, u64)> {
    let mut at = DATA_START;
    used.iter().map(|(s, l)| (*s, *l)).chain([(end, 0)]).filter_map(move |(start, len)| {
        let gap = (at, start.saturating_sub(at));
        at = at.max(start + len);
        (gap.1 > 0).then_some(gap)
    })
}

/// The smallest gap of at least `size` bytes between regions: large ones are for what needs them.
fn best_fit(used: &BTreeMap<u64, u64>, size: u64, end: u64) -> Option<u64> {
    gaps(used, end).filter(|(_, len)| *len >= size).min_by_key(|(_, len)| *len).map(|(start, _)| start)
}

/// Where a region ends at the latest: after a recovery another one may already have some of it (docs/format.md §Recovery).
fn end_of(used: &BTreeMap<u64, u64>, at: RegionRef) -> u64 {
    let next = used.range(at.start + 1..).next().map_or(u64::MAX, |(start, _)| *start);
    next.min(at.start + at.size)
}

impl Volume for RawVolume {
    fn name(&self) -> String {
        self.disk.name()
    }

    fn read_super(&self, slot: usize) -> Result<[u8; SUPER_SIZE]> {
        let mut buf = [0; SUPER_SIZE];
        let at = slot as u64 * SUPER_SPACING;
        if self.len()? >= at + SUPER_SIZE as u64 {
            self.io("read", at, self.disk.read_at(&mut buf, at))?;
        }
        Ok(buf)
    }

    fn write_super(&self, slot: usize, bytes: &[u8; SUPER_SIZE]) -> Result<()> {
        let at = slot as u64 * SUPER_SPACING;
        self.io("write", at, self.disk.write_at(bytes, at))?;
        self.io("flush", at, self.disk.flush())
    }

    fn create(&self, id: u64, size: u64) -> Result<Arc<dyn Region>> {
        let size = size.next_multiple_of(UNIT);
        let end = self.len()?;
        let mut used = self.used.lock();
        let start = best_fit(&used, size, end)
            .ok_or_else(|| Error::NoSpace { used: used.values().sum::<u64>() + DATA_START, size: end })?;
        used.insert(start, size);
        Ok(self.region(RegionRef { id, start, size }))
    }

    fn open(&self, at: RegionRef) -> Result<Arc<dyn Region>> {
        let end = self.len()?;
        let bad = at.start < DATA_START || at.start.checked_add(at.size).is_none_or(|e| e > end);
        if bad {
            return Err(Error::Corrupt {
                place: self.place(at.start),
                what: "region reference",
                expected: format!("within {DATA_START}..{end}"),
                found: format!("{at:?}"),
            });
        }
        self.used.lock().insert(at.start, at.size);
        Ok(self.region(at))
    }

    fn shrink(&self, at: RegionRef, size: u64) -> Result<RegionRef> {
        let size = size.max(1).next_multiple_of(UNIT).min(at.size);
        if size < at.size {
            let mut used = self.used.lock();
            used.insert(at.start, size);
            let end = end_of(&used, at);
            self.disk.discard(at.start + size, end.saturating_sub(at.start + size));
        }
        Ok(RegionRef { size, ..at })
    }

    fn remove(&self, at: RegionRef) -> Result<()> {
        // First, as long as nobody else can be given this space and have written to it.
        let end = end_of(&self.used.lock(), at);
        self.disk.discard(at.start, end - at.start);
        self.used.lock().remove(&at.start);
        Ok(())
    }

    fn keep_only(&self, regions: &[RegionRef], wipe: bool) -> Result<()> {
        *self.used.lock() = regions.iter().map(|r| (r.start, r.size)).collect();
        if wipe {
            let unused: Vec<_> = gaps(&self.used.lock(), self.len()?).collect();
            for (start, len) in unused {
                self.io("wipe", start, super::wipe(len, |zeroes, at| self.disk.write_at(zeroes, start + at)))?;
            }
            self.io("flush", 0, self.disk.flush())?;
        }
        Ok(())
    }

    fn gaps(&self) -> Result<Option<Vec<(u64, u64)>>> {
        Ok(Some(gaps(&self.used.lock(), self.len()?).collect()))
    }

    fn usage(&self, _limit: u64) -> Result<(u64, u64)> {
        Ok((self.used.lock().values().sum::<u64>() + DATA_START, self.len()?))
    }
}

struct RawRegion {
    disk: Arc<dyn Disk>,
    at: RegionRef,
}

impl RawRegion {
    fn io<T>(
        &self,
        action: &'static str,
        offset: u64,
        len: usize,
        io: impl FnOnce(u64) -> std::io::Result<T>,
    ) -> Result<T> {
        let within = offset.checked_add(len as u64).is_some_and(|end| end <= self.at.size);
        let r = if within { io(self.at.start + offset) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) };
        r.map_err(|e| Error::Io {
            place: format!("{}, region {:x} at byte {offset}", self.disk.name(), self.at.id),
            action,
            source: Arc::new(e),
        })
    }
}

impl Region for RawRegion {
    fn place(&self) -> RegionRef {
        self.at
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.io("read", offset, buf.len(), |at| self.disk.read_at(buf, at))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.io("write", offset, bytes.len(), |at| self.disk.write_at(bytes, at))
    }

    fn flush(&self) -> Result<()> {
        self.io("flush", 0, 0, |_| self.disk.flush())
    }

    fn will_need(&self, offset: u64, len: u64) {
        self.disk.will_need(self.at.start + offset, len);
    }

    fn gains_from_zeroes_ahead(&self) -> bool {
        self.disk.gains_from_zeroes_ahead()
    }
}
