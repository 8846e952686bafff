//! A raw volume: one flat disk with two superblock slots and regions. docs/format.md §Raw volume.
//!
//! A region is contiguous where a gap is large enough for it; else it is *scattered*: pieces in several gaps, and a map
//! that tells them. So a volume is only full when it is full, however its gaps lie, and nothing ever has to be moved to make
//! larger ones (tried and dropped: that took most of the cleaner's work on a nearly full volume, and often failed).
//!
//! Invariants: regions never overlap; the bytes before [`DATA_START`] belong to the superblocks, and so do the last ones, where they are
//! once more (the *label*), so that whatever overwrites the beginning does not take the volume along. Which regions exist
//! is said by the manifest (and by seals after it); the allocator is derived. A map is durable once its region is flushed.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::space::Space;
use super::{Disk, Region, RegionRef, SLOT_SIZE, Volume, VolumeKind, disk};
use crate::codec::{Reader, crc_at};
use crate::{Error, Result};

/// Where superblock slot 1 is (slot 0 is at 0): far enough that one bad stretch does not take both.
const SUPER_SPACING: u64 = 64 << 10;
/// First byte of the first region.
const DATA_START: u64 = 1 << 20;
/// Bytes at the end (rounded down to a multiple of [`SUPER_SPACING`]) that the label has: its slots are the first of them, farther
/// from the end than what others keep there (the copy of a partition table, for instance).
const LABEL_SPACE: u64 = 1 << 20;
/// Regions and their pieces start and end on multiples of this, and so does a map, which has so many bytes.
pub const UNIT: u64 = 16 << 10;
/// Set in [`RegionRef::start`] of a scattered region; the rest of it says where the map is.
const SCATTERED: u64 = 1;
const MAP_MAGIC: &[u8; 8] = b"DARNMAP1";
/// Bytes that are overwritten in one go, and who has them meanwhile.
const WIPE_STEP: u64 = 4 << 20;
const WIPING: u64 = u64::MAX;
/// Pieces that a map has room for.
const PIECES_MAX: usize = 1000;

/// A volume on one [`Disk`].
pub struct RawVolume {
    disk: Arc<dyn Disk>,
    number: AtomicU16,
    /// Nothing new goes beyond so many bytes. (Changed with the space locked.)
    limit: AtomicU64,
    space: Mutex<Space>,
    /// What was given back since the open, and may be somebody's again.
    given_back: Mutex<Space>,
    /// The pieces of the scattered regions that there are, in order, by what refers to them.
    scattered: Mutex<HashMap<u64, Vec<Range<u64>>>>,
}

impl RawVolume {
    /// A volume on `disk`, whatever is on it.
    pub fn new(disk: Arc<dyn Disk>) -> RawVolume {
        RawVolume {
            disk,
            number: AtomicU16::new(0),
            limit: AtomicU64::new(u64::MAX),
            space: Mutex::default(),
            given_back: Mutex::default(),
            scattered: Mutex::default(),
        }
    }

    fn number(&self) -> u16 {
        self.number.load(Ordering::Relaxed)
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

    /// Where regions end.
    fn data_end(&self) -> Result<u64> {
        Ok(label(self.len()?.min(self.limit.load(Ordering::Relaxed))).start)
    }

    /// Whether regions have bytes that are to be given up.
    fn has_beyond(&self) -> Result<bool> {
        let space = self.space.lock();
        let end = self.data_end()?;
        Ok(self.limit.load(Ordering::Relaxed) < u64::MAX && space.end() > end)
    }

    /// Where copies of a slot are: at the end, and as long as the volume is larger than it is to be, at that end too. Not where a region
    /// that was made before there were labels has its place.
    fn label_slots(&self, slot: usize) -> Result<Vec<u64>> {
        let len = self.len()?;
        let space = self.space.lock();
        let labels = [len, len.min(self.limit.load(Ordering::Relaxed))].map(label);
        let is_free =
            |l: &&Range<u64>| l.end - l.start == LABEL_SPACE && space.gaps(l.start, l.end).next().as_ref() == Some(*l);
        let mut found: Vec<u64> =
            labels.iter().filter(is_free).map(|l| l.start + slot as u64 * SUPER_SPACING).collect();
        found.dedup();
        Ok(found)
    }

    /// Where the bytes of a region are, in order; together as many as it has. (Some may be behind the end of a disk that became shorter.)
    fn pieces(&self, at: RegionRef) -> Result<Vec<Range<u64>>> {
        if at.start & SCATTERED == 0 {
            let whole = at.start..at.start.saturating_add(at.size);
            self.verify(at, &whole)?;
            return Ok(vec![whole]);
        }
        let known = self.scattered.lock().get(&at.start).cloned();
        let mut pieces = match known {
            Some(pieces) => pieces,
            None => self.read_map(at)?,
        };
        // Where it was shrunk, the map tells more than there is.
        let mut left = at.size;
        for p in &mut pieces {
            p.end = p.end.min(p.start.saturating_add(left));
            left -= p.end - p.start;
        }
        pieces.retain(|p| !p.is_empty());
        match left {
            0 => Ok(pieces),
            _ => Err(self.not_there(at)),
        }
    }

    fn read_map(&self, at: RegionRef) -> Result<Vec<Range<u64>>> {
        let map = map_of(at).expect("it has one");
        self.verify(at, &map)?;
        self.verify_end(at, std::slice::from_ref(&map))?;
        let start = map.start;
        let mut bytes = vec![0; UNIT as usize];
        self.io("read", start, self.disk.read_at(&mut bytes, start))?;
        let pieces = decode_map(&bytes, at.id).ok_or_else(|| Error::Corrupt {
            place: self.place(start),
            what: "map of a scattered region",
            expected: format!("that of region {:x}, with a valid checksum", at.id),
            found: "something else".into(),
        })?;
        pieces.iter().try_for_each(|p| self.verify(at, p))?;
        self.scattered.lock().insert(at.start, pieces.clone());
        Ok(pieces)
    }

    /// Whether a piece of a region is where it could be.
    fn verify(&self, at: RegionRef, piece: &Range<u64>) -> Result<()> {
        match piece.start >= DATA_START && piece.start <= piece.end && piece.end < u64::MAX {
            true => Ok(()),
            false => Err(self.not_there(at)),
        }
    }

    /// Whether a region's pieces are all there.
    fn verify_end(&self, at: RegionRef, pieces: &[Range<u64>]) -> Result<()> {
        let (end, len) = (pieces.iter().map(|p| p.end).max().unwrap_or(0), self.len()?);
        match end <= len {
            true => Ok(()),
            false => Err(Error::Corrupt {
                place: self.disk.name(),
                what: "end of the volume",
                expected: format!("region {:x} up to byte {end}", at.id),
                found: format!("{len} bytes"),
            }),
        }
    }

    /// As [`RawVolume::pieces`]; where its map is damaged or gone, nothing is known of them.
    fn known_pieces(&self, at: RegionRef) -> Result<Vec<Range<u64>>> {
        match self.pieces(at) {
            Err(e) if e.is_lost() => Ok(Vec::new()),
            pieces => pieces,
        }
    }

    fn not_there(&self, at: RegionRef) -> Error {
        Error::Corrupt {
            place: self.place(at.start & !SCATTERED),
            what: "region reference",
            expected: format!("bytes between {DATA_START} and the end"),
            found: format!("{at:?}"),
        }
    }

    /// All that belongs to a region, as far as that is known: its pieces, and its map.
    fn all_of(&self, at: RegionRef) -> Result<Vec<Range<u64>>> {
        let mut all = self.known_pieces(at)?;
        all.extend(map_of(at).filter(|map| self.verify(at, map).is_ok()));
        Ok(all)
    }

    /// `end`: where on the disk nothing is any more.
    fn region(&self, at: RegionRef, pieces: &[Range<u64>], end: u64) -> Arc<dyn Region> {
        let mut offset = 0;
        let piece = |p: &Range<u64>| {
            let piece = Piece { offset, start: p.start, end: p.end.min(end) };
            offset += p.end - p.start;
            (piece.start < piece.end).then_some(piece)
        };
        let left: Vec<Piece> = pieces.iter().filter_map(piece).collect();
        let is_whole = left.iter().map(|p| p.end - p.start).sum::<u64>() >= at.size;
        Arc::new(RawRegion { disk: self.disk.clone(), at, pieces: left, is_whole })
    }

    /// Has a region's bytes be its own, all of them or none.
    fn take(&self, space: &mut Space, id: u64, pieces: &[Range<u64>], end: u64) -> Result<()> {
        let taken = pieces.iter().try_for_each(|p| match self.disk.take(p.start, p.end - p.start) {
            Err(e) if disk::is_full(&e) => Err(full(space, end)),
            taken => self.io("reserve", p.start, taken),
        });
        match taken {
            Ok(()) => pieces.iter().for_each(|p| space.claim(p.clone(), id)),
            Err(_) => pieces.iter().for_each(|p| self.disk.discard(p.start, p.end - p.start)),
        }
        taken
    }

    /// Makes a region of what gaps there are, the largest first, and writes its map.
    fn create_scattered(&self, space: &mut Space, id: u64, size: u64, end: u64) -> Result<Arc<dyn Region>> {
        let mut gaps: Vec<_> = space.gaps(DATA_START, end).map(|g| g.start..g.end - (g.end - g.start) % UNIT).collect();
        gaps.sort_by_key(|g| std::cmp::Reverse(g.end - g.start));
        let map = gaps.first().filter(|g| !g.is_empty()).map(|g| g.start).ok_or_else(|| full(space, end))?;
        gaps[0].start += UNIT;
        let mut left = size;
        let mut pieces = Vec::new();
        for mut gap in gaps {
            while left > 0 && gap.start < gap.end {
                let len = left.min(gap.end - gap.start).min(self.disk.piece_max());
                left -= len;
                // Pieces of a gap, in a simulation, don't touch.
                if self.disk.fills_from_the_end() {
                    pieces.push(gap.end - len..gap.end);
                    gap.end = gap.end.saturating_sub(len + UNIT);
                } else {
                    pieces.push(gap.start..gap.start + len);
                    gap.start += len + UNIT;
                }
            }
        }
        if left > 0 || pieces.len() > PIECES_MAX {
            return Err(full(space, end));
        }
        self.take(space, id, &[&pieces[..], std::slice::from_ref(&(map..map + UNIT))].concat(), end)?;
        self.io("write", map, self.disk.write_at(&encode_map(id, &pieces), map))?;
        self.scattered.lock().insert(map | SCATTERED, pieces.clone());
        let at = RegionRef { id, start: map | SCATTERED, size, volume: self.number(), second: None };
        Ok(self.region(at, &pieces, end))
    }

    /// Overwrites what of `range` belongs to no region.
    fn wipe_gaps(&self, range: Range<u64>) -> Result<()> {
        let mut at = range.start;
        loop {
            let step = {
                let mut space = self.space.lock();
                let Some(gap) = space.gaps(at, range.end).next() else { return Ok(()) };
                let step = gap.start..gap.end.min(gap.start + WIPE_STEP);
                // Nobody gets it as long as it is being overwritten.
                space.claim(step.clone(), WIPING);
                step
            };
            let wiped = self.disk.wipe(step.start, step.end - step.start);
            self.space.lock().release(&step, WIPING);
            self.io("wipe", step.start, wiped)?;
            at = step.end;
        }
    }

    /// Gives back what of `ranges` belongs to a region.
    fn release(&self, ranges: &[Range<u64>], id: u64) {
        // Discarded first, as long as nobody else can be given this space and have written to it. But not where it will be
        // needed again at once: it costs, and so does having it allocated anew.
        let (owned, used): (Vec<_>, _) = {
            let space = self.space.lock();
            (ranges.iter().flat_map(|range| space.owned(range, id)).collect(), space.sum())
        };
        if self.len().is_ok_and(|len| used < len - len / 8) {
            owned.iter().for_each(|r| self.disk.discard(r.start, r.end - r.start));
        }
        let mut given_back = self.given_back.lock();
        owned.into_iter().for_each(|range| given_back.claim(range, id));
        drop(given_back);
        let mut space = self.space.lock();
        ranges.iter().for_each(|range| space.release(range, id));
    }
}

fn full(space: &Space, size: u64) -> Error {
    Error::NoSpace { used: space.sum() + DATA_START, size }
}

/// The bytes that the label of a volume of `len` bytes has.
fn label(len: u64) -> Range<u64> {
    let end = len / SUPER_SPACING * SUPER_SPACING;
    end.saturating_sub(LABEL_SPACE).max(DATA_START)..end.max(DATA_START)
}

/// Where the map of a scattered region is.
fn map_of(at: RegionRef) -> Option<Range<u64>> {
    let map = at.start & !SCATTERED;
    (at.start != map).then(|| map..map.saturating_add(UNIT))
}

fn encode_map(id: u64, pieces: &[Range<u64>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(UNIT as usize);
    out.extend_from_slice(MAP_MAGIC);
    let fields = [id, pieces.len() as u64];
    for v in fields.into_iter().chain(pieces.iter().flat_map(|p| [p.start, p.end - p.start])) {
        out.extend_from_slice(&v.to_le_bytes());
    }
    out.resize(UNIT as usize - 4, 0);
    let crc = crc_at(id, 0, &out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

fn decode_map(bytes: &[u8], id: u64) -> Option<Vec<Range<u64>>> {
    let (body, crc) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
    if crc_at(id, 0, body).to_le_bytes() != crc {
        return None;
    }
    let mut r = Reader::new(body);
    if r.take(8)? != MAP_MAGIC || r.u64()? != id {
        return None;
    }
    let n = r.u64()?;
    let mut piece = || {
        let (start, len) = (r.u64()?, r.u64()?);
        Some(start..start.checked_add(len)?)
    };
    (0..n).map(|_| piece()).collect()
}

/// The smallest gap of at least `size` bytes: large ones are for what needs them.
fn best_fit(space: &Space, size: u64, end: u64) -> Option<Range<u64>> {
    let fits = space.gaps(DATA_START, end).filter(|gap| gap.end - gap.start >= size);
    fits.min_by_key(|gap| gap.end - gap.start)
}

impl Volume for RawVolume {
    fn name(&self) -> String {
        self.disk.name()
    }

    fn kind(&self) -> VolumeKind {
        VolumeKind::Raw
    }

    fn hint(&self) -> Vec<u8> {
        self.disk.hint()
    }

    fn numbered(&self, number: u16) {
        self.number.store(number, Ordering::Relaxed);
    }

    fn read_super(&self, slot: usize) -> Result<Vec<u8>> {
        let mut buf = vec![0; SLOT_SIZE];
        let at = slot as u64 * SUPER_SPACING;
        if self.len()? >= at + SLOT_SIZE as u64 {
            self.io("read", at, self.disk.read_at(&mut buf, at))?;
        }
        Ok(buf)
    }

    fn write_super(&self, slot: usize, bytes: &[u8]) -> Result<()> {
        assert!(bytes.len() <= SLOT_SIZE, "a slot has {SLOT_SIZE} bytes, not {}", bytes.len());
        let at = slot as u64 * SUPER_SPACING;
        for at in std::iter::once(at).chain(self.label_slots(slot)?) {
            self.io("write", at, self.disk.write_at(bytes, at))?;
        }
        self.io("flush", at, self.disk.flush())
    }

    fn read_label(&self, slot: usize) -> Result<Option<Vec<u8>>> {
        let Some(at) = self.label_slots(slot)?.first().copied() else { return Ok(None) };
        let mut buf = vec![0; SLOT_SIZE];
        self.io("read", at, self.disk.read_at(&mut buf, at))?;
        Ok(Some(buf))
    }

    fn wipe_super(&self) -> Result<()> {
        (0..2).try_for_each(|slot| self.write_super(slot, &[0; SLOT_SIZE]))
    }

    fn create(&self, id: u64, size: u64) -> Result<Arc<dyn Region>> {
        let size = size.next_multiple_of(UNIT);
        let mut space = self.space.lock();
        let end = self.data_end()?;
        let Some(gap) = best_fit(&space, size, end).filter(|_| size <= self.disk.piece_max()) else {
            return self.create_scattered(&mut space, id, size, end);
        };
        let start = if self.disk.fills_from_the_end() { (gap.end - size) / UNIT * UNIT } else { gap.start };
        let whole = start..start + size;
        self.take(&mut space, id, std::slice::from_ref(&whole), end)?;
        let at = RegionRef { id, start, size, volume: self.number(), second: None };
        Ok(self.region(at, std::slice::from_ref(&whole), end))
    }

    fn open(&self, at: RegionRef) -> Result<Arc<dyn Region>> {
        let pieces = self.pieces(at)?;
        self.verify_end(at, &pieces)?;
        let mut space = self.space.lock();
        pieces.iter().cloned().chain(map_of(at)).for_each(|range| space.claim(range, at.id));
        Ok(self.region(at, &pieces, u64::MAX))
    }

    fn open_emptied(&self, at: RegionRef) -> Result<Arc<dyn Region>> {
        let (all, len) = (self.all_of(at)?, self.len()?);
        let mut space = self.space.lock();
        all.into_iter().for_each(|range| space.claim(range, at.id));
        Ok(self.region(at, &self.known_pieces(at)?, len))
    }

    fn shrink(&self, at: RegionRef, size: u64) -> Result<RegionRef> {
        let size = size.max(1).next_multiple_of(UNIT).min(at.size);
        if size < at.size {
            let before = self.known_pieces(at)?;
            let after = self.known_pieces(RegionRef { size, ..at })?;
            let kept = |p: &Range<u64>| after.iter().find(|a| a.start == p.start).map_or(p.start, |a| a.end);
            let gone: Vec<_> = before.iter().map(|p| kept(p)..p.end).collect();
            self.release(&gone, at.id);
        }
        Ok(RegionRef { size, ..at })
    }

    fn remove(&self, at: RegionRef) -> Result<()> {
        self.release(&self.all_of(at)?, at.id);
        self.scattered.lock().remove(&at.start);
        Ok(())
    }

    fn keep_only(&self, regions: &[RegionRef], wipe: bool) -> Result<()> {
        let mut space = Space::default();
        for at in regions {
            self.all_of(*at)?.into_iter().for_each(|range| space.claim(range, at.id));
        }
        self.scattered.lock().retain(|start, _| regions.iter().any(|r| r.start == *start));
        *self.space.lock() = space;
        if wipe {
            self.wipe_gaps(DATA_START..self.data_end()?)?;
            self.io("flush", 0, self.disk.flush())?;
        }
        Ok(())
    }

    fn wipe_given_back(&self) -> Result<()> {
        let ranges: Vec<_> = self.given_back.lock().ranges().collect();
        let end = self.data_end()?;
        for range in ranges {
            self.wipe_gaps(range.start..range.end.min(end))?;
        }
        self.io("flush", 0, self.disk.flush())
    }

    /// The map of a scattered region.
    fn heal_place(&self, at: RegionRef) -> Result<bool> {
        let known = self.scattered.lock().get(&at.start).cloned();
        let Some((map, pieces)) = map_of(at).zip(known) else { return Ok(false) };
        let (good, mut bytes) = (encode_map(at.id, &pieces), vec![0; UNIT as usize]);
        self.disk.drop_cached(map.start, UNIT);
        self.io("read", map.start, self.disk.read_at(&mut bytes, map.start))?;
        if bytes == good {
            return Ok(false);
        }
        self.io("write", map.start, self.disk.write_at(&good, map.start))?;
        self.io("flush", map.start, self.disk.flush()).map(|()| true)
    }

    fn limit_to(&self, bytes: u64) {
        let _space = self.space.lock();
        self.limit.store(if bytes == 0 { u64::MAX } else { bytes }, Ordering::Relaxed);
    }

    fn is_beyond(&self, at: RegionRef) -> Result<bool> {
        let end = self.data_end()?;
        Ok(self.limit.load(Ordering::Relaxed) < u64::MAX && self.all_of(at)?.iter().any(|r| r.end > end))
    }

    fn is_too_long(&self) -> Result<bool> {
        let limit = self.limit.load(Ordering::Relaxed);
        Ok(limit < u64::MAX && (self.has_beyond()? || self.disk.can_resize() || self.len()? <= limit))
    }

    fn cut(&self) -> Result<bool> {
        let limit = self.limit.load(Ordering::Relaxed);
        if self.has_beyond()? {
            return Ok(false);
        }
        if self.len()? > limit && self.disk.can_resize() {
            self.resize(limit)?;
        }
        Ok(self.len()? <= limit)
    }

    fn resize(&self, len: u64) -> Result<()> {
        if !self.disk.can_resize() {
            return Err(Error::Refused(format!("{} is as large as its device or partition", self.disk.name())));
        }
        self.io("resize", len, self.disk.set_len(len))?;
        self.io("flush", 0, self.disk.flush())
    }

    fn bytes(&self) -> Result<u64> {
        self.len()
    }

    fn usage(&self, _limit: u64) -> Result<(u64, u64)> {
        let len = self.len()?.min(self.limit.load(Ordering::Relaxed));
        let space = self.space.lock();
        let label = self.data_end()?;
        // (But for what regions have there.)
        let unused = space.gaps(label, len.max(label)).map(|gap| gap.end - gap.start).sum::<u64>();
        let used = space.sum() - space.sum_behind(self.len()?) + DATA_START.min(len) + unused;
        let missing = self.io("size", 0, self.disk.missing())?;
        Ok((used, len.saturating_sub(missing).max(used.min(len))))
    }
}

/// Some bytes of a region: where in it they begin, and where on the disk they are.
struct Piece {
    offset: u64,
    start: u64,
    end: u64,
}

struct RawRegion {
    disk: Arc<dyn Disk>,
    at: RegionRef,
    /// In order.
    pieces: Vec<Piece>,
    /// Where the disk became shorter, what the pieces do not have reads as zeroes.
    is_whole: bool,
}

impl RawRegion {
    fn io(
        &self,
        action: &'static str,
        offset: u64,
        len: u64,
        mut io: impl FnMut(u64, Range<usize>) -> std::io::Result<()>,
    ) -> Result<()> {
        let within = offset.checked_add(len).is_some_and(|end| end <= self.at.size);
        let r = match within {
            true => self.parts(offset, len).try_for_each(|(at, part)| io(at, part)),
            false => Err(std::io::ErrorKind::UnexpectedEof.into()),
        };
        self.error(action, offset, r)
    }

    fn error(&self, action: &'static str, offset: u64, r: std::io::Result<()>) -> Result<()> {
        r.map_err(|e| Error::Io {
            place: format!("{}, region {:x} at byte {offset}", self.disk.name(), self.at.id),
            action,
            source: Arc::new(e),
        })
    }

    /// Where a range of the region is on the disk: for each piece the first byte, and which of the range's bytes it has.
    fn parts(&self, offset: u64, len: u64) -> impl Iterator<Item = (u64, Range<usize>)> {
        let first = self.pieces.partition_point(|p| p.offset <= offset).max(1) - 1;
        let end = offset + len;
        self.pieces[first..].iter().take_while(move |p| p.offset < end).filter_map(move |p| {
            let from = offset.max(p.offset);
            let to = end.min(p.offset + (p.end - p.start));
            // (Whoever reads ahead may ask for what lies behind the end.)
            (from < to).then(|| (p.start + (from - p.offset), (from - offset) as usize..(to - offset) as usize))
        })
    }
}

impl Region for RawRegion {
    fn place(&self) -> RegionRef {
        self.at
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        if !self.is_whole {
            buf.fill(0);
        }
        self.io("read", offset, buf.len() as u64, |at, part| self.disk.read_at(&mut buf[part], at))
    }

    fn read_new(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        if !self.is_whole {
            let mut bytes = vec![0; len];
            return self.read_at(&mut bytes, offset).map(|()| bytes);
        }
        let mut bytes = Vec::new();
        self.io("read", offset, len as u64, |at, part| {
            let piece = self.disk.read_new(at, part.len())?;
            // (Seldom there are several.)
            if bytes.is_empty() {
                bytes = piece
            } else {
                bytes.extend_from_slice(&piece)
            }
            Ok(())
        })?;
        Ok(bytes)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let there = || self.parts(offset, bytes.len() as u64).map(|(_, part)| part.len()).sum::<usize>();
        if !self.is_whole && there() < bytes.len() {
            return self.error("write", offset, Err(std::io::ErrorKind::UnexpectedEof.into()));
        }
        self.io("write", offset, bytes.len() as u64, |at, part| self.disk.write_at(&bytes[part], at))
    }

    fn is_cut(&self) -> bool {
        !self.is_whole
    }

    fn flush(&self) -> Result<()> {
        self.error("flush", 0, self.disk.flush())
    }

    fn flush_place(&self) -> Result<()> {
        if map_of(self.at).is_some() { self.flush() } else { Ok(()) }
    }

    fn device(&self) -> Option<usize> {
        Some(Arc::as_ptr(&self.disk).addr())
    }

    fn write_back(&self, offset: u64, len: u64) {
        self.parts(offset, len).for_each(|(at, part)| self.disk.write_back(at, part.len() as u64));
    }

    fn read_fresh(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        if !self.is_whole {
            buf.fill(0);
        }
        self.io("read", offset, buf.len() as u64, |at, part| self.disk.read_fresh(&mut buf[part], at))
    }

    fn will_need(&self, offset: u64, len: u64) {
        self.parts(offset, len).for_each(|(at, part)| self.disk.will_need(at, part.len() as u64));
    }

    fn drop_cached(&self, offset: u64, len: u64) {
        self.parts(offset, len).for_each(|(at, part)| self.disk.drop_cached(at, part.len() as u64));
    }

    fn gains_from_zeroes_ahead(&self) -> bool {
        self.disk.gains_from_zeroes_ahead()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::sim::SimDisk;

    #[test]
    fn no_bytes_make_opening_a_scattered_region_panic() {
        let disk = SimDisk::new(8 << 20).in_pieces(64 << 10);
        let at = RawVolume::new(Arc::new(disk.clone())).create(7, 1 << 20).unwrap().place();
        let map = at.start & !SCATTERED;
        let mut good = vec![0; UNIT as usize];
        disk.read_at(&mut good, map).unwrap();
        let mut rng = fastrand::Rng::with_seed(9);
        let mut opened = 0;
        for _ in 0..20_000 {
            let mut bytes = good.clone();
            for _ in 0..rng.usize(..4) {
                bytes[rng.usize(..300)] = rng.u8(..);
            }
            let n = bytes.len() - 4;
            let crc = crc_at(7, 0, &bytes[..n]);
            bytes[n..].copy_from_slice(&crc.to_le_bytes());
            disk.write_at(&bytes, map).unwrap();
            let at = RegionRef { size: rng.u64(..2 << 20), ..at };
            if let Ok(region) = RawVolume::new(Arc::new(disk.clone())).open(at) {
                opened += 1;
                let mut buf = vec![0; rng.usize(..100_000)];
                let _ = region.read_at(&mut buf, rng.u64(..1 << 20));
            }
        }
        assert!(opened > 100);
    }

    #[test]
    fn what_lies_behind_a_region_s_end_is_nowhere_on_the_disk() {
        let piece = |offset, start| Piece { offset, start, end: start + 4096 };
        let at = RegionRef { id: 7, start: 8192, size: 8192, volume: 0, second: None };
        let region = RawRegion {
            disk: Arc::new(SimDisk::new(1 << 20)),
            at,
            pieces: vec![piece(0, 8192), piece(4096, 65536)],
            is_whole: true,
        };
        let parts = |offset, len| region.parts(offset, len).collect::<Vec<_>>();
        assert_eq!(parts(4000, 200), [(12192, 0..96), (65536, 96..200)]);
        for (offset, len) in [(8192, 0), (8192, 100), (10_000, 0), (10_000, 100), (100, 0)] {
            assert_eq!(parts(offset, len), [], "{len} bytes at {offset}");
        }
        assert_eq!(parts(8000, 1000), [(65536 + 8000 - 4096, 0..192)]);
    }

    #[test]
    fn a_region_for_which_no_gap_is_large_enough_is_put_into_several() {
        let disk = SimDisk::new(64 << 20);
        let new = || RawVolume::new(Arc::new(disk.clone()));
        let volume = new();
        let mut small = Vec::new();
        while let Ok(region) = volume.create(small.len() as u64, 1 << 20) {
            small.push(region.place());
        }
        for at in small.iter().step_by(2) {
            volume.remove(*at).unwrap();
        }
        let bytes: Vec<u8> = (0..5u32 << 20).map(|i| (i / 7) as u8).collect();
        let large = volume.create(1000, bytes.len() as u64).unwrap();
        // Across the ends of pieces, too.
        for at in (0..bytes.len()).step_by(300_000) {
            large.write_at(&bytes[at..(at + 300_000).min(bytes.len())], at as u64).unwrap();
        }
        let at = large.place();
        let reads_back = |region: &dyn Region, size: usize| {
            let mut found = vec![0; size];
            region.read_at(&mut found, 0).unwrap();
            assert!(found == bytes[..size]);
            found.truncate(70_000);
            region.read_at(&mut found, (1 << 20) - 50_000).unwrap();
            assert!(found == bytes[(1 << 20) - 50_000..][..70_000]);
        };
        reads_back(&*large, bytes.len());
        let kept: Vec<_> = small.iter().skip(1).step_by(2).copied().chain([at]).collect();
        // As after an open.
        let volume = new();
        volume.keep_only(&kept, false).unwrap();
        reads_back(&*volume.open(at).unwrap(), bytes.len());
        let before = volume.usage(0).unwrap().0;
        let at = volume.shrink(at, 3 << 20).unwrap();
        assert_eq!(volume.usage(0).unwrap().0, before - (2 << 20));
        let volume = new();
        volume.keep_only(&[at], false).unwrap();
        // What a trim gave back goes to others.
        while let Ok(other) = volume.create(2000, 1 << 20) {
            other.write_at(&[9; 1 << 20], 0).unwrap();
        }
        reads_back(&*volume.open(at).unwrap(), 3 << 20);
        volume.remove(at).unwrap();
        // Its map is somebody else's by now.
        volume.keep_only(&[], false).unwrap();
        volume.create(3000, 62 << 20).unwrap().write_at(&vec![7; 62 << 20], 0).unwrap();
        assert!(matches!(new().open(at), Err(Error::Corrupt { .. })));
    }
}
