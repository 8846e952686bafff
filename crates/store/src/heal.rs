//! Healing: where a region has two copies, what is damaged in one is read from the other, and written anew. docs/format.md §Copies.
//!
//! Whoever reads says what is good: everything stored has a checksum. A reader that meets damage looks at the other copy, and heals
//! on the way; a scrub looks at both. What is damaged in both stays as it is, and noticed.

use std::ops::Range;
use std::sync::Arc;

use crate::extent::{BLOCK, Codec};
use crate::frame::{self, Body, Content, Record};
use crate::reading::{Window, damaged_blocks, each_copy};
use crate::volume::Region;
use crate::{Error, FilesetId, ObjectId, Result, Tid};

/// Bytes of an object that can't be read here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Whose they are.
    pub fileset: FilesetId,
    /// And of which object.
    pub object: ObjectId,
    /// The first of them.
    pub offset: u64,
    /// How many.
    pub len: usize,
    /// The transaction that wrote them.
    pub tid: Tid,
}

/// Who may have bytes that are damaged here: a mirror, for instance.
pub trait Elsewhere: Send + Sync {
    /// Offers what is lost, as its transaction wrote it, one possibility after the other until one is taken; says whether one was. It is
    /// not believed: `is_it` takes only what has the checksum that is stored here.
    fn bytes(&self, lost: &Lost, is_it: &mut dyn FnMut(&[u8]) -> bool) -> bool;
}

/// Fills `buf` from the copy of which `is_good` holds, and heals the others; says whether there is one.
pub(crate) fn read_good(
    region: &dyn Region,
    buf: &mut [u8],
    offset: u64,
    is_good: &dyn Fn(&[u8]) -> bool,
) -> Result<bool> {
    let read = region.read_at(buf, offset);
    if read.is_ok() && is_good(buf) {
        return Ok(true);
    }
    match heal(region, buf, offset, is_good)? {
        Some(_) => Ok(true),
        None => read.map(|()| false),
    }
}

/// As [`read_good`], but looks at all copies; returns how many were healed, `None` if none is good (or there is one only).
pub(crate) fn heal(
    region: &dyn Region,
    buf: &mut [u8],
    offset: u64,
    is_good: &dyn Fn(&[u8]) -> bool,
) -> Result<Option<u64>> {
    let mut bad = Vec::new();
    let mut good = None;
    for copy in region.copies() {
        let mut bytes = vec![0; buf.len()];
        match copy.read_at(&mut bytes, offset) {
            Ok(()) if is_good(&bytes) => good = Some(bytes),
            _ => bad.push(copy),
        }
    }
    let Some(good) = good else { return Ok(None) };
    buf.copy_from_slice(&good);
    bad.iter().for_each(|copy| write_anew(region, &**copy, &good, offset));
    Ok(Some(bad.len() as u64))
}

/// Where it can't be written (the store may be read-only), it stays damaged, and is healed another time.
pub(crate) fn write_anew(region: &dyn Region, copy: &dyn Region, bytes: &[u8], offset: u64) {
    let place = copy.place();
    match copy.mend(bytes, offset) {
        Ok(()) => {
            region.note_healed();
            let (volume, id, len) = (place.volume, place.id, bytes.len());
            tracing::warn!(volume, region = format!("{id:x}"), offset, len, "damaged, and healed from the other copy");
        }
        Err(e) => {
            tracing::warn!("region {:x} at byte {offset} is damaged in one copy, and can't be written: {e}", place.id)
        }
    }
}

/// Heals stored bytes, which are in `stored` as one copy has them, block by block.
pub(crate) fn mend_stored(region: &dyn Region, at: u64, stored: &mut [u8], codec: Codec, len: usize) -> Result<()> {
    let bad: Vec<Range<usize>> = damaged_blocks(region, at, stored, codec, len).collect();
    for part in bad {
        let start = at + part.start as u64;
        let (codec_of, n) = (codec, part.len());
        let len = if codec == Codec::Raw { n.saturating_sub(4) } else { len };
        let is_good = |bytes: &[u8]| damaged_blocks(region, start, bytes, codec_of, len).next().is_none();
        heal(region, &mut stored[part], start, &is_good)?;
    }
    Ok(())
}

/// The frame at byte `at` of a region, of whichever copy has it, with whichever data is good; `None` if none has one.
pub(crate) fn mended_frame(region: &Arc<dyn Region>, at: u64, copies: &[&[u8]]) -> Option<Vec<u8>> {
    let id = region.place().id;
    let whole = |bytes: &&[u8]| frame::parse(bytes, id, at).is_some();
    let (i, first) = copies.iter().enumerate().find(|(_, bytes)| whole(bytes))?;
    let len = frame::shape(first)?.len;
    let mut good = first.get(..len)?.to_vec();
    let blocks = data_blocks(&**region, first, at);
    for (part, codec, n) in blocks {
        let is_bad = |bytes: &[u8]| damaged_blocks(&**region, at + part.start as u64, bytes, codec, n).next().is_some();
        if !is_bad(&good[part.clone()]) {
            continue;
        }
        let others = copies.iter().enumerate().filter(|(other, _)| *other != i);
        let better = others.filter_map(|(_, bytes)| bytes.get(part.clone())).find(|bytes| !is_bad(bytes));
        better.into_iter().for_each(|bytes| good[part.clone()].copy_from_slice(bytes));
    }
    Some(good)
}

/// The blocks of a frame's data that have a checksum each: where in the frame, and what of. `len`: what they hold, unpacked.
fn data_blocks(region: &dyn Region, bytes: &[u8], at: u64) -> Vec<(Range<usize>, Codec, usize)> {
    let Some(frame) = frame::parse(bytes, region.place().id, at) else { return Vec::new() };
    let Content::Transaction(records) = &frame.content else { return Vec::new() };
    let of_record = |r: &Record<'_>| -> Vec<(Range<usize>, Codec, usize)> {
        let Body::Extent { len, codec, data_at, stored, .. } = r.body else { return Vec::new() };
        let (from, to) = (data_at as usize, (data_at + stored) as usize);
        match codec {
            Codec::Lz4 => vec![(from..to, codec, len as usize)],
            Codec::Raw => (from..to)
                .step_by(BLOCK + 4)
                .map(|from| (from..(from + BLOCK + 4).min(to), codec, ((to - from).min(BLOCK + 4)).saturating_sub(4)))
                .collect(),
        }
    };
    records.iter().flat_map(of_record).collect()
}

/// The copies of a region side by side.
pub(crate) struct Sides {
    region: Arc<dyn Region>,
    windows: Vec<(Arc<dyn Region>, Window)>,
}

impl Sides {
    /// `None`: it has one copy. `fresh`: what is read comes from the volumes, not from caches.
    pub fn of(region: &Arc<dyn Region>, at: u64, fresh: bool) -> Result<Option<Sides>> {
        let mut windows = Vec::new();
        for copy in region.copies() {
            // (What can't be read is as if it were damaged.)
            let window = match copy.in_memory().unwrap_or_default() {
                Some(in_memory) => Window::of_few(in_memory, at),
                None if fresh => Window::of_the_volume(copy.clone(), at),
                None => Window::new(copy.clone(), at),
            };
            windows.push((copy, window));
        }
        Ok((!windows.is_empty()).then(|| Sides { region: region.clone(), windows }))
    }

    /// Those of a region, and one more.
    pub fn and(region: &Arc<dyn Region>, other: Arc<dyn Region>, at: u64) -> Sides {
        let copies = each_copy(region).into_iter().chain([other]);
        let windows = copies.map(|copy| (copy.clone(), Window::of_few(copy, at))).collect();
        Sides { region: region.clone(), windows }
    }

    /// Makes the frame at a byte the same in all copies, as far as any has it; returns it, and how many places were healed.
    pub fn even_out(&mut self, at: u64) -> Result<(Vec<u8>, u64)> {
        for (_, window) in &mut self.windows {
            if window.fill_frame(at).is_ok() {
                continue;
            }
            // Perhaps not here, but farther on.
            window.read_few();
            match window.fill_frame(at) {
                // As if it were damaged.
                Err(Error::Io { .. }) => {}
                filled => filled?,
            }
        }
        let id = self.region.place().id;
        let copies: Vec<&[u8]> = self.windows.iter().map(|(_, w)| w.bytes(at)).collect();
        let len = frame::shape(copies[0]).map_or(0, |s| s.len);
        let first = copies[0].get(..len).unwrap_or_default();
        if len > 0 && copies.iter().all(|c| c.get(..len) == Some(first)) {
            return Ok((first.to_vec(), 0));
        }
        let Some(good) = mended_frame(&self.region, at, &copies) else { return Ok((first.to_vec(), 0)) };
        let blocks = data_blocks(&*self.region, &good, at);
        let shape = frame::shape(&good).expect("it is a frame");
        let mut healed = 0;
        for ((copy, _), bytes) in self.windows.iter().zip(&copies) {
            let mut write = |part: Range<usize>| {
                write_anew(&*self.region, &**copy, &good[part.clone()], at + part.start as u64);
                healed += 1;
            };
            if frame::parse(bytes, id, at).is_none() {
                write(0..frame::HEADER);
                write(shape.heads_at()..shape.len);
            }
            for (part, codec, n) in &blocks {
                let bad = |bytes: &[u8]| {
                    damaged_blocks(&*self.region, at + part.start as u64, bytes, *codec, *n).next().is_some()
                };
                if bytes.get(part.clone()).is_none_or(bad) && !bad(&good[part.clone()]) {
                    write(part.clone());
                }
            }
        }
        Ok((good, healed))
    }
}
