//! Reading segments: frame by frame through a window, and which of what is read is damaged. docs/format.md §Frame.

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

use crate::ahead::Ahead;
use crate::codec::crc_at;
use crate::extent::{BLOCK, Codec};
use crate::frame::{self, Body, Content, Record};
use crate::heal::Sides;
use crate::segment::{self, Segment};
use crate::store::FRAME_MAX;
use crate::volume::{PAGE, Region};
use crate::{Error, Result, Tid};

/// Gets where a frame is, its bytes, and what they say.
pub(crate) type VisitFrame<'v> = dyn FnMut(u64, &[u8], frame::Frame<'_>) -> Result<()> + 'v;

/// Visits the frames in what is left of a segment; `within`: where that is, for people.
pub(crate) fn each_frame(
    region: &Arc<dyn Region>,
    s: &Segment,
    within: &str,
    visit: &mut VisitFrame<'_>,
) -> Result<()> {
    // Where little is left, a window would be holes for the most part.
    let (region, mut window) = match region.in_memory()? {
        Some(copy) => (copy.clone(), Window::of_few(copy, segment::HEADER)),
        None => (region.clone(), Window::of_size(region.clone(), segment::HEADER, Window::FEW).of_many()),
    };
    // Where there are copies, the window mends what is damaged.
    let has_copies = !region.copies().is_empty();
    let mut at = region_start(&*region);
    while at < s.end {
        let mut bytes = if has_copies { &[] } else { region.bytes(at) };
        if frame::shape(bytes).is_none_or(|shape| shape.len > bytes.len()) {
            window.fill_frame(at)?;
            bytes = window.bytes(at);
        }
        let Some(frame) = frame::parse(bytes, s.at.id, at) else {
            return Err(Error::Corrupt {
                place: format!("{within}, region {:x} at byte {at}", s.at.id),
                what: "frame of the log",
                expected: format!("frames up to byte {}", s.end),
                found: "damaged bytes".into(),
            });
        };
        let len = frame::shape(bytes).expect("just parsed").len;
        visit(at, &bytes[..len], frame)?;
        at = region.next_kept(at + len as u64);
    }
    Ok(())
}

/// The copies of a region, or itself where there is one.
pub(crate) fn each_copy(region: &Arc<dyn Region>) -> Vec<Arc<dyn Region>> {
    let copies = region.copies();
    if copies.is_empty() { vec![region.clone()] } else { copies }
}

/// Whether what is at a byte might be taken for a frame.
pub(crate) fn may_hold_frame(region: &Arc<dyn Region>, at: u64) -> Result<bool> {
    let mut head = [0; frame::HEADER];
    let mut may = false;
    let copies = each_copy(region);
    for copy in copies.iter().filter(|r| at + (frame::HEADER as u64) <= r.place().size) {
        may |= match copy.read_at(&mut head, at) {
            Ok(()) => frame::shape(&head).is_some(),
            // (One that can't be read may have it when it can again.)
            Err(_) if copies.len() > 1 => true,
            Err(e) => return Err(e),
        };
    }
    Ok(may)
}

/// Looks for a later frame that says that something after `last` had been durable; returns that tid.
pub(crate) fn durable_beyond(region: &Arc<dyn Region>, from: u64, last: Tid) -> Result<Option<Tid>> {
    // (What one copy that can be read does not have was never durable.)
    let found: Vec<Result<Option<Tid>>> =
        each_copy(region).iter().map(|copy| durable_in_copy(copy, from, last)).collect();
    match found.iter().any(Result::is_ok) {
        true => Ok(found.into_iter().flatten().max().flatten()),
        false => found.into_iter().next().unwrap_or(Ok(None)),
    }
}

fn durable_in_copy(region: &Arc<dyn Region>, from: u64, last: Tid) -> Result<Option<Tid>> {
    const STEP: u64 = 4 << 20;
    let at = region.place();
    let mut start = from;
    while start + (frame::HEADER as u64) < at.size {
        let len = (STEP + FRAME_MAX as u64).min(at.size - start) as usize;
        let mut bytes = vec![0; len];
        region.read_at(&mut bytes, start)?;
        if is_zero(&bytes) {
            break;
        }
        for i in (0..len.min(STEP as usize)).step_by(8) {
            if frame::shape(&bytes[i..]).is_none() {
                continue;
            }
            if let Some(f) = frame::parse(&bytes[i..], at.id, start + i as u64)
                && f.header.durable > last
                && f.header.tid > last
            {
                return Ok(Some(f.header.durable));
            }
        }
        start += STEP;
    }
    Ok(None)
}

/// (Page by page, each without a branch: a byte at a time takes longer than the reading.)
fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(4096).all(|page| page.iter().fold(0, |any, b| any | b) == 0)
}

/// Where the first frame of a segment is.
pub(crate) fn region_start(region: &dyn Region) -> u64 {
    region.next_kept(segment::HEADER)
}

/// Whether the bytes of a frame's extents are as they were written (but for blocks that were cleaned away).
pub(crate) fn data_is_valid(region: &dyn Region, frame: &[u8], at: u64, records: &[Record]) -> bool {
    records.iter().all(|r| match r.body {
        Body::Extent { len, codec, data_at, stored, .. } => {
            let bytes = &frame[data_at as usize..(data_at + stored) as usize];
            extent_is_valid(region, at + u64::from(data_at), bytes, codec, len as usize)
        }
        _ => true,
    })
}

/// Whether stored bytes carry their own checksums.
pub(crate) fn extent_is_valid(region: &dyn Region, at: u64, stored: &[u8], codec: Codec, len: usize) -> bool {
    damaged_blocks(region, at, stored, codec, len).next().is_none()
}

/// The parts of stored bytes, which are from byte `at` of a region on, that are not as they were written (but for those that
/// were cleaned away): blocks, or all where that is one. `len`: what they are, unpacked.
pub(crate) fn damaged_blocks<'b>(
    region: &'b dyn Region,
    at: u64,
    stored: &'b [u8],
    codec: Codec,
    len: usize,
) -> impl Iterator<Item = Range<usize>> + 'b {
    let id = region.place().id;
    let fits = codec == Codec::Lz4 || stored.len() == crate::extent::raw_size(len);
    let block = if codec == Codec::Raw && fits { BLOCK + 4 } else { stored.len().max(1) };
    let sealed = move |at: u64, bytes: &[u8]| match bytes.split_last_chunk::<4>() {
        Some((data, crc)) => region.next_kept(at) != at || crc_at(id, at, data).to_le_bytes() == *crc,
        None => false,
    };
    let n = if codec == Codec::Lz4 { 1 } else { stored.len().div_ceil(block) };
    let parts = (0..n).map(move |i| i * block..((i + 1) * block).min(stored.len()));
    parts.filter(move |part| !fits || !sealed(at + part.start as u64, &stored[part.clone()]))
}

/// A part of a segment in memory, read ahead while frames are taken from it.
pub(crate) struct Window {
    region: Arc<dyn Region>,
    start: u64,
    buf: Buf,
    /// Bytes that are read at a time, if not more are asked for.
    size: u64,
    /// Whether what is read comes from the volume, whatever caches have.
    fresh: bool,
    /// Whether there are copies to heal from, and they are to be made the same on the way.
    twice: bool,
    evens: bool,
    sides: Option<Box<Sides>>,
    /// What comes from a thread that is ahead.
    ahead: Option<Ahead>,
    /// Whether its memory goes to the next one of this thread.
    is_of_many: bool,
}

impl Window {
    const SIZE: u64 = 8 << 20;
    /// What of it is looked at while it is read stays in the CPU's caches.
    const FEW: u64 = 1 << 20;

    pub fn new(region: Arc<dyn Region>, start: u64) -> Window {
        Window::of_size(region, start, Window::SIZE)
    }

    /// One that reads so many bytes at a time, if not more are asked for.
    pub fn of_size(region: Arc<dyn Region>, start: u64, size: u64) -> Window {
        let twice = !region.copies().is_empty();
        Window {
            region,
            start,
            buf: Buf::default(),
            size,
            fresh: false,
            twice,
            evens: false,
            sides: None,
            ahead: None,
            is_of_many: false,
        }
    }

    /// The same, for a thread that takes one after the other: memory is used again.
    fn of_many(mut self) -> Window {
        (self.is_of_many, self.buf.room) = (true, ROOM.take());
        self
    }

    /// One that reads no more than it must.
    pub fn of_few(region: Arc<dyn Region>, start: u64) -> Window {
        Window::of_size(region, start, 0)
    }

    /// One whose bytes come from the volume, not from a cache.
    pub fn of_the_volume(region: Arc<dyn Region>, start: u64) -> Window {
        let mut window = Window::new(region, start).of_many();
        window.fresh = true;
        window
    }

    /// One whose bytes come from a thread that reads them past the caches.
    pub fn of_ahead(region: Arc<dyn Region>, start: u64, ahead: Ahead) -> Window {
        let mut window = Window::of_few(region, start);
        window.ahead = Some(ahead);
        window
    }

    /// One that makes all copies of each frame the same.
    pub fn evening_out(region: Arc<dyn Region>, start: u64) -> Window {
        let mut window = Window::new(region, start);
        window.evens = true;
        window
    }

    /// From now on no more is read than must be.
    pub fn read_few(&mut self) {
        self.size = 0;
    }

    /// What is read from byte `at` on.
    pub fn bytes(&self, at: u64) -> &[u8] {
        at.checked_sub(self.start).and_then(|i| self.buf.filled().get(i as usize..)).unwrap_or_default()
    }

    /// Makes the frame at byte `at` available to [`Window::bytes`], if there is one, in whichever copy.
    pub fn fill_frame(&mut self, at: u64) -> Result<()> {
        self.fill(at, frame::HEADER as u64)?;
        match frame::shape(self.bytes(at)) {
            // A longer one was never written.
            Some(shape) if shape.len <= FRAME_MAX => self.fill(at, shape.len as u64)?,
            _ => {}
        }
        if self.twice { self.mend(at) } else { Ok(()) }
    }

    fn mend(&mut self, at: u64) -> Result<()> {
        let is_whole = is_whole(&*self.region, self.bytes(at), at);
        if is_whole && !self.evens {
            return Ok(());
        }
        if self.sides.is_none() {
            self.sides = Sides::of(&self.region, at, false)?.map(Box::new);
        }
        let Some(sides) = &mut self.sides else { return Ok(()) };
        let (good, _) = sides.even_out(at)?;
        if !is_whole && !good.is_empty() {
            self.start = at;
            self.buf.set(&good);
        }
        Ok(())
    }

    fn fill(&mut self, at: u64, len: u64) -> Result<()> {
        let size = self.region.place().size;
        if (self.bytes(at).len() as u64) >= len || at.checked_add(len).is_none_or(|end| end > size) {
            return Ok(());
        }
        if let Some(mut ahead) = self.ahead.take() {
            let taken = self.take_pieces(&mut ahead, at, len);
            self.ahead = Some(ahead);
            return taken;
        }
        // In whole pages, where that makes reading past the caches possible.
        let from = if self.fresh { at - at % PAGE as u64 } else { at };
        let end = (at + self.size.max(len)).min(size);
        let end = if self.fresh { end.next_multiple_of(PAGE as u64).min(size) } else { end };
        let had = self.bytes(from).len();
        self.buf.keep_last(had);
        self.start = from;
        let rest = self.buf.grow((end - from) as usize);
        let at = from + had as u64;
        let read = if self.fresh { self.region.read_fresh(rest, at) } else { self.region.read_at(rest, at) };
        read.inspect_err(|_| self.buf.keep_last(0))
    }
}

impl Window {
    /// Takes pieces until the bytes are there, or no more come.
    fn take_pieces(&mut self, ahead: &mut Ahead, at: u64, len: u64) -> Result<()> {
        while (self.bytes(at).len() as u64) < len
            && let Some((from, mut piece)) = ahead.next()?
        {
            let rest = self.bytes(at);
            if at + rest.len() as u64 == from {
                piece.put_before(rest);
                self.start = at;
            } else {
                self.start = from;
            }
            let done = std::mem::replace(&mut self.buf, piece);
            // (The first one is our own, without room for the end of another.)
            if done.head > 0 {
                ahead.give_back(done);
            }
        }
        Ok(())
    }
}

thread_local! {
    /// Memory for the next window: who scrubs, or reads all segments, takes one after the other.
    static ROOM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

impl Drop for Window {
    fn drop(&mut self) {
        if self.is_of_many {
            ROOM.set(std::mem::take(&mut self.buf.room));
        }
    }
}

/// Whether a frame is there, and all that is in it as it was written.
pub(crate) fn is_whole(region: &dyn Region, bytes: &[u8], at: u64) -> bool {
    match frame::parse(bytes, region.place().id, at).map(|f| f.content) {
        Some(Content::Transaction(records)) => data_is_valid(region, bytes, at, &records),
        Some(Content::Seal(_)) => true,
        None => false,
    }
}

/// Bytes in memory that begin at a multiple of [`PAGE`], but for some before them. (What there is room for is not made zero again and
/// again.)
#[derive(Default)]
pub(crate) struct Buf {
    room: Vec<u8>,
    /// Bytes that there may be before the others, and those that there are.
    head: usize,
    before: usize,
    len: usize,
}

impl Buf {
    /// An empty one in front of which up to `head` bytes can be put.
    pub fn with_head(head: usize) -> Buf {
        Buf { head: head.next_multiple_of(PAGE), ..Buf::default() }
    }

    /// Where the bytes begin that are at a multiple of a page.
    fn base(&self) -> usize {
        (self.room.as_ptr().align_offset(PAGE) + self.head).min(self.room.len())
    }

    fn filled(&self) -> &[u8] {
        &self.room[self.base() - self.before..][..self.before + self.len]
    }

    pub fn clear(&mut self) {
        (self.before, self.len) = (0, 0);
    }

    /// Puts bytes before the first one.
    fn put_before(&mut self, bytes: &[u8]) {
        let end = self.base() - self.before;
        self.room[end - bytes.len()..end].copy_from_slice(bytes);
        self.before += bytes.len();
    }

    /// The last `n` bytes become the first and only ones.
    fn keep_last(&mut self, n: usize) {
        let (to, end) = (self.base(), self.base() + self.len);
        self.room.copy_within(end - n..end, to);
        (self.before, self.len) = (0, n);
    }

    fn set(&mut self, bytes: &[u8]) {
        self.clear();
        self.grow(bytes.len()).copy_from_slice(bytes);
    }

    /// Makes it so many bytes, those before the first one aside; returns those that are new.
    pub fn grow(&mut self, len: usize) -> &mut [u8] {
        if self.room.len() < self.head + len + PAGE {
            let mut larger =
                Buf { room: vec![0; self.head + len + PAGE], head: self.head, before: self.before, len: self.len };
            let start = larger.base() - self.before;
            larger.room[start..start + self.before + self.len].copy_from_slice(self.filled());
            *self = larger;
        }
        let (base, had) = (self.base(), self.len);
        self.len = len;
        &mut self.room[base + had..base + len]
    }
}
