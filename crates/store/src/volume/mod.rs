//! Volumes: places to keep regions. docs/format.md §Volumes.
//!
//! A *region* is a numbered run of bytes: a segment of the log, a table of the index, or a manifest. Region numbers are
//! never reused; a region that moves to another volume keeps its number. A volume has two superblock slots besides. All
//! I/O of the store passes through these traits; nothing is mapped into memory.

mod bucket;
mod dir;
mod disk;
mod held;
mod raw;
mod set;
pub mod sim;
mod simbucket;
mod space;
mod supers;
mod table;
mod twice;

use std::sync::Arc;

pub use bucket::{Bucket, BucketVolume, Buckets, Cold, OpenBucket, PART, without_waiting};
pub(crate) use bucket::{Kept, REGIONS, list_all, may_wait, of_part, part_name, part_names, store_below};
pub use dir::DirVolume;
pub use disk::{Disk, FileDisk, Part};
pub use raw::RawVolume;
pub(crate) use raw::UNIT;
pub(crate) use set::{For, There, Usage, Volumes};
pub use simbucket::SimBucket;
pub(crate) use supers::{LEFT_BEHIND, read_roster};
pub use table::{Copies, Tier, VolumeEntry, VolumeKind, Wanted};
pub(crate) use table::{Roster, Table, number_of};

use crate::Result;
use crate::codec::{Reader, put_varint};

/// What must be aligned to be read past the caches is so to this.
pub const PAGE: usize = 4096;
/// Bytes of a superblock.
pub const SUPER_SIZE: usize = 4096;
/// Bytes of a superblock slot: the superblock, and the table of volumes behind it.
pub const SLOT_SIZE: usize = 64 << 10;

/// Where a region is: its number, and on volumes without names where its bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionRef {
    /// Its number.
    pub id: u64,
    /// In a bucket, the epoch under which it was put. On a raw volume, the first byte; of a scattered region
    /// (docs/format.md §Raw volume), that of its map, plus 1. In a directory 0.
    pub start: u64,
    /// Bytes reserved for it.
    pub size: u64,
    /// The number of its volume.
    pub volume: u16,
    /// Where the same bytes are once more, if they are.
    pub second: Option<Spot>,
}

/// Where the second copy of a region is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    /// As [`RegionRef::start`].
    pub start: u64,
    /// The number of its volume.
    pub volume: u16,
}

impl RegionRef {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.id);
        put_varint(out, self.start);
        put_varint(out, self.size);
        put_varint(out, self.volume.into());
        put_varint(out, self.second.map_or(0, |s| u64::from(s.volume) + 1));
        self.second.iter().for_each(|s| put_varint(out, s.start));
    }

    pub(crate) fn get(r: &mut Reader) -> Option<RegionRef> {
        let at = RegionRef::get_of_one_copy(r)?;
        let second = match r.varint()?.checked_sub(1) {
            None => None,
            Some(volume) => Some(Spot { volume: u16::try_from(volume).ok()?, start: r.varint()? }),
        };
        Some(RegionRef { second, ..at })
    }

    /// As versions 3 and 4 have it: there is one copy.
    pub(crate) fn get_of_one_copy(r: &mut Reader) -> Option<RegionRef> {
        let at = RegionRef::get_without_volume(r)?;
        Some(RegionRef { volume: u16::try_from(r.varint()?).ok()?, ..at })
    }

    /// As versions 1 and 2 of the format have it: there is one volume.
    pub(crate) fn get_without_volume(r: &mut Reader) -> Option<RegionRef> {
        Some(RegionRef { id: r.varint()?, start: r.varint()?, size: r.varint()?, volume: 0, second: None })
    }

    /// Each place of it, as if it were the only one.
    pub fn places(&self) -> impl Iterator<Item = RegionRef> + use<> {
        let one = RegionRef { second: None, ..*self };
        let other = self.second.map(|s| RegionRef { start: s.start, volume: s.volume, ..one });
        [Some(one), other].into_iter().flatten()
    }

    /// Its place on a volume.
    pub fn on(&self, volume: u16) -> Option<RegionRef> {
        self.places().find(|at| at.volume == volume)
    }

    /// Without the places that `gone` says, but never without any.
    pub fn without(&self, gone: impl Fn(u16) -> bool) -> RegionRef {
        let mut left = self.places().filter(|at| !gone(at.volume));
        match left.next() {
            Some(first) => first.and(left.next()),
            None => *self,
        }
    }

    /// Of one place: with another one, if there is one.
    pub fn and(&self, other: Option<RegionRef>) -> RegionRef {
        RegionRef { second: other.map(|o| Spot { start: o.start, volume: o.volume }), ..*self }
    }

    /// Whether it is the same region in the same places.
    pub fn is(&self, other: RegionRef) -> bool {
        let volumes = |at: &RegionRef| (at.id, at.volume, at.second.map(|s| s.volume));
        volumes(self) == volumes(&other)
    }
}

/// An open region. Offsets are relative to its start.
pub trait Region: Send + Sync {
    /// Where it is.
    fn place(&self) -> RegionRef;
    /// Fills `buf`; a short read is an error.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;
    /// As [`Region::read_at`], into memory of its own, which is made no zeroes first where that can be spared.
    fn read_new(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.read_at(&mut bytes, offset)?;
        Ok(bytes)
    }
    /// Writes all of `bytes`; durable after [`Region::flush`].
    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()>;
    /// Makes what was written durable.
    fn flush(&self) -> Result<()>;
    /// Makes durable what the volume has of its own of it beside its bytes: for who names it before its first flush.
    fn flush_place(&self) -> Result<()> {
        Ok(())
    }
    /// A flush of one makes all regions durable for which this is the same; `None`: only itself.
    fn device(&self) -> Option<usize> {
        None
    }
    /// Its copies, each by itself, where there are several that can be read.
    fn copies(&self) -> Vec<Arc<dyn Region>> {
        Vec::new()
    }
    /// Writes anew what was damaged, durable on return: where nothing else is ever written again, too.
    fn mend(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.write_at(bytes, offset)?;
        self.flush()
    }
    /// Takes note that bytes of a copy were damaged, and are written anew.
    fn note_healed(&self) {}
    /// Hints that these bytes were written for good, and may go to the medium while others are written.
    fn write_back(&self, _offset: u64, _len: u64) {}
    /// Hints that bytes from `offset` on will be read soon.
    fn will_need(&self, _offset: u64, _len: u64) {}
    /// Has the next read of these bytes come from the medium, not from a cache, as far as that can be seen to.
    fn drop_cached(&self, _offset: u64, _len: u64) {}
    /// As [`Region::read_at`], but from the medium, as far as that can be seen to. Where memory and offset begin at multiples of
    /// [`PAGE`] that costs nobody what is in caches.
    fn read_fresh(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.drop_cached(offset, buf.len() as u64);
        self.read_at(buf, offset)
    }
    /// The first offset at or after this one whose bytes were not dropped by the cleaner.
    fn next_kept(&self, offset: u64) -> u64 {
        offset
    }
    /// The same with its bytes in memory, for somebody who will read all that was not dropped, where much was and the rest
    /// is not too much.
    fn in_memory(&self) -> Result<Option<Arc<dyn Region>>> {
        Ok(None)
    }
    /// Of one in memory, the bytes from `offset` on that lie there together.
    fn bytes(&self, _offset: u64) -> &[u8] {
        &[]
    }
    /// Bytes that were not dropped.
    fn bytes_kept(&self) -> u64 {
        self.place().size
    }
    /// Of so many bytes, how many were not dropped.
    fn kept_within(&self, _offset: u64, len: u64) -> u64 {
        len
    }
    /// Whether it is only named: its volume is missing, or it is gone.
    fn is_absent(&self) -> bool {
        false
    }
    /// Whether some of its bytes are behind the end of a volume that became shorter: they read as zeroes.
    fn is_cut(&self) -> bool {
        false
    }
    /// Whether overwriting already written bytes makes [`Region::flush`] cheaper here (files: no journal commit).
    fn gains_from_zeroes_ahead(&self) -> bool {
        false
    }
}

/// Makes durable what was written to all of them.
pub(crate) fn flush_all<'r>(regions: impl IntoIterator<Item = &'r Arc<dyn Region>>) -> Result<()> {
    let mut devices = Vec::new();
    for region in regions {
        match region.device() {
            Some(device) if devices.contains(&device) => {}
            device => {
                region.flush()?;
                devices.extend(device);
            }
        }
    }
    Ok(())
}

/// Writes zeroes over so many bytes: `write` gets some, and where they go.
pub(crate) fn wipe<E>(len: u64, mut write: impl FnMut(&[u8], u64) -> Result<(), E>) -> Result<(), E> {
    const STEP: u64 = 4 << 20;
    let zeroes = vec![0; STEP.min(len) as usize];
    (0..len).step_by(STEP as usize).try_for_each(|from| write(&zeroes[..STEP.min(len - from) as usize], from))
}

/// A place that keeps regions.
pub trait Volume: Send + Sync {
    /// What users call it.
    fn name(&self) -> String;
    /// What it is made of.
    fn kind(&self) -> VolumeKind;
    /// Where it may be found again: bytes that whoever opens volumes understands.
    fn hint(&self) -> Vec<u8> {
        self.name().into_bytes()
    }
    /// Tells it its number in its store, which the regions that it makes name.
    fn numbered(&self, number: u16);
    /// Reads a superblock slot (0 or 1): [`SLOT_SIZE`] bytes, zeroes where there are none.
    fn read_super(&self, slot: usize) -> Result<Vec<u8>>;
    /// Writes the first bytes of a superblock slot; durable on return.
    fn write_super(&self, slot: usize, bytes: &[u8]) -> Result<()>;
    /// Reads what a slot holds according to the label, a second copy of the slots far from the first, where there is one.
    fn read_label(&self, _slot: usize) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }
    /// Makes both slots empty, in the label too, so that it is nobody's volume any more; durable on return.
    fn wipe_super(&self) -> Result<()>;
    /// Reserves a region of `size` bytes; its space is guaranteed on return, [`crate::Error::NoSpace`] if there is none.
    fn create(&self, id: u64, size: u64) -> Result<Arc<dyn Region>>;
    /// Opens a region that a manifest or a seal names.
    fn open(&self, at: RegionRef) -> Result<Arc<dyn Region>>;
    /// Opens one that is not there any more, or not all of it, though a manifest names it: as if what is gone had been overwritten with
    /// zeroes.
    fn open_emptied(&self, at: RegionRef) -> Result<Arc<dyn Region>> {
        self.open(at)
    }
    /// Gives back what lies beyond `size` bytes.
    fn shrink(&self, at: RegionRef, size: u64) -> Result<RegionRef>;
    /// Gives a region's space back. Open handles may still read it on a directory; not on a raw volume.
    fn remove(&self, at: RegionRef) -> Result<()>;
    /// Tells which regions exist (after open); all others are gone. `wipe`: what they held is overwritten.
    fn keep_only(&self, regions: &[RegionRef], wipe: bool) -> Result<()>;
    /// Overwrites what was given back since the open and no region occupies, where that is the volume's to do; durable on
    /// return. (All that is free would take hours on a large device.)
    fn wipe_given_back(&self) -> Result<()> {
        Ok(())
    }
    /// The regions that it has, where it knows that without being told (a directory does): each of the size of its bytes.
    fn list(&self) -> Result<Option<Vec<RegionRef>>> {
        Ok(None)
    }
    /// Verifies what it has of its own of a region beside its bytes, and writes it anew if it is damaged; says whether it was.
    fn heal_place(&self, _at: RegionRef) -> Result<bool> {
        Ok(false)
    }
    /// (bytes in use, bytes there are). `limit`: the size that it was made with, 0 for none.
    fn usage(&self, limit: u64) -> Result<(u64, u64)>;
    /// Nothing new goes beyond so many bytes, where that is the volume's to do; 0: there is no limit.
    fn limit_to(&self, _bytes: u64) {}
    /// Whether something of a region is beyond that.
    fn is_beyond(&self, _at: RegionRef) -> Result<bool> {
        Ok(false)
    }
    /// Whether it is longer than its limit says, and that can be changed.
    fn is_too_long(&self) -> Result<bool> {
        Ok(false)
    }
    /// Gives up what is beyond the limit, if nothing is there any more; durable on return. Says whether nothing is beyond now.
    fn cut(&self) -> Result<bool> {
        Ok(false)
    }
    /// Changes how long it is, where it can; durable on return.
    fn resize(&self, _len: u64) -> Result<()> {
        Ok(())
    }
    /// How long it is, whatever its limit.
    fn bytes(&self) -> Result<u64> {
        self.usage(0).map(|(_, size)| size)
    }
    /// Bytes in use, without a look at anything outside.
    fn used(&self) -> Result<u64> {
        self.usage(0).map(|(used, _)| used)
    }
    /// Keeps so many bytes of what it is on for itself, for when others have filled the rest: where it shares that with them, and where
    /// enough is left.
    fn hold(&self, _bytes: u64) -> Result<()> {
        Ok(())
    }
    /// Volumes that name the same pool take their free bytes from one and the same place.
    fn pool(&self) -> Option<u64> {
        None
    }
}
