//! Copying one region to another volume, and verifying it on the way: what is written is what was found good, from the same memory.
//!
//! Damage is copied along as it is, where no other copy of the region has better: checksums depend on a region's number, not on its
//! volume, so it stays noticed. Tried and dropped: reading the copy back once it is written. It came from the kernel's cache, said
//! nothing of the medium, and took as long as the writing.

use std::ops::Range;
use std::sync::Arc;

use crate::codec::is_sealed;
use crate::frame::{self, Shape};
use crate::pack::{self, Packed};
use crate::reading::{Window, each_copy, is_whole, region_start};
use crate::segment;
use crate::volume::{Region, RegionRef};
use crate::{Error, Result};

/// Bytes that are read and written in one go: so few that the processor's cache has them in between.
const CHUNK: u64 = 1 << 20;

/// What a region is.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum What {
    Segment,
    Pack,
    /// With the parts of it that have a checksum each.
    Table(Vec<Range<u64>>),
}

/// A region on its way.
pub(crate) struct Copying {
    pub what: What,
    pub from: RegionRef,
    /// Which place of it this is instead of; `None`: of none.
    pub instead: Option<RegionRef>,
    source: Arc<dyn Region>,
    pub target: Arc<dyn Region>,
    /// Bytes that it has, and those that were copied.
    pub len: u64,
    copied: u64,
    window: Window,
    /// Behind this no frame can be told from another.
    is_lost: bool,
}

impl Copying {
    pub fn new(
        what: What,
        instead: Option<RegionRef>,
        source: Arc<dyn Region>,
        target: Arc<dyn Region>,
        len: u64,
    ) -> Copying {
        let window = Window::of_size(source.clone(), 0, CHUNK);
        Copying { what, from: source.place(), instead, source, target, len, copied: 0, window, is_lost: false }
    }

    /// The region with the copy.
    pub fn now(&self) -> RegionRef {
        let target = self.target.place();
        match (self.instead, self.stays()) {
            // Of the copy's size: it may have been reserved for more.
            (None, Some(first)) => RegionRef { size: target.size, ..first.and(Some(target)) },
            (_, other) => target.and(other),
        }
    }

    /// The place of the region that stays.
    pub fn stays(&self) -> Option<RegionRef> {
        self.from.places().find(|at| self.instead.is_none_or(|i| i.volume != at.volume))
    }

    /// Goes on, for about so many bytes; says whether all was written. `store`: its uuid.
    pub fn copy_some(&mut self, budget: u64, store: &[u8; 16]) -> Result<bool> {
        let until = self.copied.saturating_add(budget).min(self.len);
        if self.what != What::Segment {
            self.copy_at_once(store)?;
        }
        if self.copied < self.len {
            self.source.will_need(until, budget.min(self.len - until));
        }
        while self.copied < until {
            match self.copied < segment::HEADER || self.is_lost {
                true => self.copy_bytes(if self.is_lost { CHUNK } else { segment::HEADER })?,
                false => self.copy_frames()?,
            }
        }
        Ok(self.copied >= self.len)
    }

    /// Copies frames: those that are read at once.
    fn copy_frames(&mut self) -> Result<()> {
        let start = self.copied;
        self.window.fill_frame(start)?;
        let mut end = start;
        while end < self.len {
            let bytes = self.window.bytes(end);
            let fits = |s: &Shape| s.len <= bytes.len() && end + s.len as u64 <= self.len;
            let Some(shape) = frame::shape(bytes).filter(fits) else { break };
            if !is_whole(&*self.source, bytes, end) {
                // One that is not the first may have a copy, which the window finds when it is.
                if end > start || frame::parse(bytes, self.from.id, end).is_none() {
                    break;
                }
                self.is_damaged(end);
            }
            end += shape.len as u64;
        }
        if end == start {
            self.is_damaged(end);
            self.is_lost = true;
            return Ok(());
        }
        let bytes = &self.window.bytes(start)[..(end - start) as usize];
        self.target.write_at(bytes, start)?;
        self.target.write_back(start, end - start);
        self.copied = end;
        Ok(())
    }

    /// Copies so many bytes, whatever they are.
    fn copy_bytes(&mut self, n: u64) -> Result<()> {
        let mut bytes = vec![0; n.min(self.len - self.copied) as usize];
        self.source.read_at(&mut bytes, self.copied)?;
        self.target.write_at(&bytes, self.copied)?;
        self.copied += bytes.len() as u64;
        Ok(())
    }

    /// Copies what is small: the first of its copies that is whole, else the first that can be read.
    fn copy_at_once(&mut self, store: &[u8; 16]) -> Result<()> {
        let mut best = None;
        let mut failed = None;
        for copy in each_copy(&self.source) {
            let mut bytes = vec![0; self.len as usize];
            if let Err(e) = copy.read_at(&mut bytes, 0) {
                failed = Some(e);
                continue;
            }
            let bytes = Arc::new(bytes);
            if is_sound(&self.what, &copy, &bytes, store)? {
                best = Some((bytes, true));
                break;
            }
            best = best.or(Some((bytes, false)));
        }
        let Some((bytes, is_sound)) = best else { return Err(failed.expect("a region has one copy at least")) };
        if !is_sound {
            self.is_damaged(0);
        }
        self.target.write_at(&bytes, 0)?;
        self.target.write_back(0, self.len);
        self.copied = self.len;
        Ok(())
    }

    fn is_damaged(&self, at: u64) {
        tracing::error!("region {:x} is damaged at byte {at}, and is moved as it is", self.from.id);
    }
}

/// Whether the first `len` bytes of a region are as they were written. `store`: its uuid.
pub(crate) fn is_as_written(what: &What, region: &Arc<dyn Region>, len: u64, store: &[u8; 16]) -> Result<bool> {
    if *what == What::Segment {
        let header = segment::read(&**region, store)?;
        let is_ours = segment::verify(&header, store, region.place()).is_ok();
        return Ok(is_ours && frames_are_whole(region, Window::new(region.clone(), 0), len)?);
    }
    let mut bytes = vec![0; len as usize];
    region.read_at(&mut bytes, 0)?;
    is_sound(what, region, &Arc::new(bytes), store)
}

/// Whether all bytes of a pack or table are as they were written.
fn is_sound(what: &What, copy: &Arc<dyn Region>, bytes: &Arc<Vec<u8>>, store: &[u8; 16]) -> Result<bool> {
    if let What::Table(parts) = what {
        let is_good = |part: &Range<u64>| {
            let bytes = bytes.get(part.start as usize..part.end as usize);
            bytes.is_some_and(|bytes| is_sealed(bytes, copy.place().id, part.start))
        };
        return Ok(parts.iter().all(is_good));
    }
    let whole = pack::of_bytes(copy.clone(), bytes.clone());
    let parts = match pack::read(&*whole, store) {
        Err(Error::Corrupt { .. }) => return Ok(false),
        parts => parts?,
    };
    for part in parts {
        let end = part.end;
        let region: Arc<dyn Region> = Arc::new(Packed::new(whole.clone(), part));
        if !frames_are_whole(&region, Window::of_few(region.clone(), 0), end)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn frames_are_whole(region: &Arc<dyn Region>, mut window: Window, end: u64) -> Result<bool> {
    let mut at = region_start(&**region);
    while at < end {
        window.fill_frame(at)?;
        let bytes = window.bytes(at);
        if !is_whole(&**region, bytes, at) {
            return Ok(false);
        }
        at = region.next_kept(at + frame::shape(bytes).expect("it is whole").len as u64);
    }
    Ok(true)
}
