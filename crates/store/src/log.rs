//! The tail of the log: frames in memory, on their way to the open segment. docs/format.md §Log.
//!
//! Invariants: frames reach the volume in order; a buffer ends at a frame's end, so a stored extent is wholly in one
//! buffer or wholly written; after a failed write nothing more is accepted, so what is durable stays a prefix.
//!
//! `fsync` is one append and one flush, shared: whoever holds `io` writes and flushes for all that wait behind it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};

use crate::buffer::Buffer;
use crate::counts::Counts;
use crate::kept::Kept;
use crate::manifest::Position;
use crate::store::FRAME_MAX;
use crate::volume::{Region, flush_all};
use crate::{Error, Result, Shelter, Tid};

/// A buffer this full goes to the volume.
pub(crate) const BUFFER: usize = 1 << 20;
/// Committers help writing when this much waits.
const QUEUE_MAX: usize = 48 << 20;
/// With more than this waiting, the volume is the bottleneck.
const BEHIND: usize = 8 << 20;
/// After a small sync, this much is zeroed ahead where that makes the next ones cheaper.
const ZEROES: u64 = 1 << 20;
const SMALL_SYNC: u64 = 128 << 10;

/// With more than this since the last sync, bytes go to the medium before the next, so many at a time.
const STREAM: u64 = 32 << 20;
const STREAM_STEP: u64 = 4 << 20;
const PAGE: u64 = 4096;

const UNUSED_MAX: usize = 4;
/// With fewer free slots of a shelter, what is in the others is written first.
const SLOTS_MIN: usize = 4;

fn fresh() -> Vec<u8> {
    Vec::with_capacity(BUFFER + FRAME_MAX)
}

/// A full buffer.
struct Full {
    region: Arc<dyn Region>,
    offset: u64,
    bytes: Arc<Buffer>,
}

/// Where frames are appended.
pub struct Tail {
    /// The open segment.
    pub segment: Arc<dyn Region>,
    /// Byte of the segment that `buf[0]` will be.
    pub base: u64,
    /// Frames not yet queued.
    pub buf: Buffer,
    /// Checksum of the last frame.
    pub chain: u32,
    /// The newest transaction.
    pub last: Tid,
    /// No transaction to come is at this moment or before.
    pub reached: Tid,
    /// Live objects and bytes.
    pub counts: Counts,
    /// Bytes appended since the store was opened.
    pub appended: u64,
    queue: VecDeque<Full>,
    queued: usize,
    /// Written buffers, to be used again: fresh memory would be faulted in page by page.
    unused: Vec<Vec<u8>>,
    /// Where buffers are, and whose.
    shelter: Option<(Shelter, [u8; 16])>,
    /// Which filesets are kept twice.
    pub kept: Kept,
    stopped: Option<Error>,
}

impl Tail {
    /// An empty tail at a position.
    pub fn new(segment: Arc<dyn Region>, at: Position, last: Tid, counts: Counts) -> Tail {
        Tail {
            segment,
            base: at.offset,
            buf: Buffer::Own(fresh()),
            chain: at.chain,
            last,
            reached: last,
            counts,
            appended: 0,
            queue: VecDeque::new(),
            queued: 0,
            unused: Vec::new(),
            shelter: None,
            kept: Kept::default(),
            stopped: None,
        }
    }

    /// Where the next frame starts.
    pub fn position(&self) -> Position {
        Position { region: self.segment.place().id, offset: self.end(), chain: self.chain }
    }

    /// Byte of the segment at which the next frame starts.
    pub fn end(&self) -> u64 {
        self.base + self.buf.len() as u64
    }

    /// Bytes left in the segment.
    pub fn room(&self) -> u64 {
        self.segment.place().size.saturating_sub(self.end())
    }

    /// Fails if an earlier write did.
    pub fn check(&self) -> Result<()> {
        match &self.stopped {
            Some(e) => Err(Error::Stopped(Box::new(e.clone()))),
            None => Ok(()),
        }
    }

    /// Hands the buffer to the writer when it is full; says whether it did.
    pub fn committed(&mut self) -> bool {
        let full = self.buf.len() >= BUFFER;
        if full {
            self.queue_buffer();
        }
        full
    }

    fn queue_buffer(&mut self) {
        if self.buf.is_empty() {
            return;
        }
        let (region, offset) = (self.segment.clone(), self.base);
        self.base += self.buf.len() as u64;
        let next = self.buffer();
        let bytes = std::mem::replace(&mut self.buf, next);
        self.queued += bytes.len();
        self.queue.push_back(Full { region, offset, bytes: Arc::new(bytes) });
    }

    /// An empty buffer for what comes at `base`. Without a free slot (see [`Tail::is_crowded`]) it is this process's own.
    fn buffer(&mut self) -> Buffer {
        let slot = self.shelter.as_ref().and_then(|(s, store)| s.slot(store, self.segment.place().id, self.base));
        slot.map_or_else(|| Buffer::Own(self.unused.pop().unwrap_or_else(fresh)), Buffer::Slot)
    }

    /// From now on buffers are in a shelter; nothing may be in memory.
    pub fn move_to(&mut self, shelter: Shelter, store: [u8; 16]) {
        assert!(self.buf.is_empty() && self.queue.is_empty(), "the tail is empty when the log begins");
        shelter.begin(&store);
        self.shelter = Some((shelter, store));
        self.buf = self.buffer();
    }

    /// Whether nothing may be appended before buffers are written: those to come would be lost with the process.
    pub fn is_crowded(&self) -> bool {
        !self.queue.is_empty() && self.shelter.as_ref().is_some_and(|(s, _)| s.room() < SLOTS_MIN)
    }

    /// Nothing has been appended for a while: gives memory back.
    pub fn cool(&mut self) {
        if let Some((shelter, _)) = &self.shelter {
            shelter.cool();
        }
        self.unused.clear();
    }

    /// Whether the volume does not keep up with what is appended.
    pub fn is_behind(&self) -> bool {
        self.queued > BEHIND
    }

    /// Goes on in another segment (whose header is `header`); the old one's frames, seal included, are queued.
    pub fn switch(&mut self, segment: Arc<dyn Region>, header: Vec<u8>) {
        self.queue_buffer();
        self.segment = segment;
        self.base = 0;
        self.buf = self.buffer();
        self.buf.extend_from_slice(&header);
    }

    /// Copies bytes that are still in memory. `None`: some of them are elsewhere.
    pub fn read(&self, region: u64, offset: u64, out: &mut [u8]) -> Option<()> {
        let copy = |base: u64, bytes: &[u8], out: &mut [u8]| {
            let at = usize::try_from(offset.checked_sub(base)?).ok()?;
            out.copy_from_slice(bytes.get(at..at.checked_add(out.len())?)?);
            Some(())
        };
        if self.segment.place().id == region && copy(self.base, &self.buf, out).is_some() {
            return Some(());
        }
        let mut queued = self.queue.iter().filter(|b| b.region.place().id == region);
        queued.find_map(|b| copy(b.offset, &b.bytes, out))
    }

    /// Whether any of these bytes is not on the volume yet.
    pub fn unwritten(&self, region: u64, offset: u64, len: u64) -> bool {
        let overlaps = |base: u64, n: usize| offset < base + n as u64 && base < offset + len;
        self.segment.place().id == region && overlaps(self.base, self.buf.len())
            || self.queue.iter().any(|b| b.region.place().id == region && overlaps(b.offset, b.bytes.len()))
    }
}

#[derive(Default)]
struct Io {
    dirty: Vec<Arc<dyn Region>>,
    since_sync: u64,
    /// Up to where the open segment's bytes were written before: (region, offset).
    zeroed: (u64, u64),
    /// End of what was last written: (region, offset).
    written: (u64, u64),
    /// From where on the volume was not told yet to begin writing it to the medium: (region, offset).
    held: (u64, u64),
}

impl Io {
    /// Of a stream, has the volume begin with what is whole: else the next sync waits for all of it, and writers for that.
    fn stream(&mut self, region: &dyn Region) {
        let (id, end) = self.written;
        if self.held.0 != id || self.held.1 > end {
            self.held = (id, end);
        }
        // The page that the end is in is written again.
        let whole = end / PAGE * PAGE;
        if self.since_sync >= STREAM && whole >= self.held.1 + STREAM_STEP {
            region.write_back(self.held.1, whole - self.held.1);
            self.held.1 = whole;
        }
    }
}

/// See the module.
pub struct Log {
    tail: Mutex<Tail>,
    io: Mutex<Io>,
    durable: AtomicU64,
}

impl Log {
    /// A log whose transactions so far are durable.
    pub fn new(tail: Tail) -> Log {
        let durable = AtomicU64::new(tail.last.0);
        Log { tail: Mutex::new(tail), io: Mutex::default(), durable }
    }

    /// The tail, locked.
    pub fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock()
    }

    /// All up to here survives a power failure.
    pub fn durable(&self) -> Tid {
        Tid(self.durable.load(Ordering::Acquire))
    }

    /// Waits (by helping) while too much is in memory. Call it with no lock held.
    pub fn admit(&self) -> Result<()> {
        while self.tail.lock().queued > QUEUE_MAX {
            self.write_out()?;
        }
        Ok(())
    }

    /// Writes the full buffers.
    pub fn write_out(&self) -> Result<()> {
        self.drain(&mut self.io.lock())
    }

    /// Hands everything committed to the volume, so that it survives this process (not yet a power failure).
    pub fn write_all(&self) -> Result<()> {
        let mut io = self.io.lock();
        self.tail.lock().queue_buffer();
        self.drain(&mut io)
    }

    fn drain(&self, io: &mut Io) -> Result<()> {
        loop {
            let next = {
                let t = self.tail.lock();
                t.check()?;
                t.queue.front().map(|b| (b.region.clone(), b.offset, b.bytes.clone()))
            };
            let Some((region, offset, bytes)) = next else { return Ok(()) };
            let written = region.write_at(&bytes, offset);
            let mut t = self.tail.lock();
            if let Err(e) = written {
                t.stopped = Some(e.clone());
                return Err(e);
            }
            t.queue.pop_front();
            t.queued -= bytes.len();
            io.since_sync += bytes.len() as u64;
            io.written = (region.place().id, offset + bytes.len() as u64);
            let used = Arc::into_inner(bytes).filter(|_| t.unused.len() < UNUSED_MAX);
            if let Some(Buffer::Own(mut used)) = used {
                used.clear();
                t.unused.push(used);
            }
            drop(t);
            io.stream(&*region);
            if io.dirty.last().is_none_or(|r| r.place().id != region.place().id) {
                io.dirty.push(region);
            }
        }
    }

    /// Returns once all that is committed now is durable.
    pub fn sync(&self) -> Result<Tid> {
        let want = self.tail.lock().last;
        if self.durable() >= want {
            return Ok(want);
        }
        let mut io = self.io.lock();
        if self.durable() >= want {
            return Ok(want);
        }
        self.flush(&mut io)
    }

    /// As [`Log::sync`], seals and segment headers without a transaction behind them included: what a manifest names.
    pub fn sync_all(&self) -> Result<Tid> {
        self.flush(&mut self.io.lock())
    }

    /// The next sync flushes these too, which another process wrote.
    pub fn flush_later(&self, regions: Vec<Arc<dyn Region>>) {
        self.io.lock().dirty.splice(0..0, regions);
    }

    /// Runs `f` while nothing is being written.
    pub fn quiet<T>(&self, f: impl FnOnce() -> T) -> T {
        let _io = self.io.lock();
        f()
    }

    fn flush(&self, io: &mut Io) -> Result<Tid> {
        let (covers, segment, end) = {
            let mut t = self.tail.lock();
            t.check()?;
            t.queue_buffer();
            (t.last, t.segment.clone(), t.end())
        };
        self.drain(io)?;
        let flushed = self.zero_ahead(io, segment, end).and_then(|()| {
            let dirty = std::mem::take(&mut io.dirty);
            flush_all(&dirty)
        });
        if let Err(e) = flushed {
            // What a failed flush left behind is unknown: it must never be taken for durable later.
            self.tail.lock().stopped = Some(e.clone());
            return Err(e);
        }
        io.since_sync = 0;
        self.durable.fetch_max(covers.0, Ordering::AcqRel);
        Ok(covers)
    }

    /// Overwriting bytes that the file already has makes its flush one device operation instead of a journal commit.
    fn zero_ahead(&self, io: &mut Io, segment: Arc<dyn Region>, end: u64) -> Result<()> {
        let at = segment.place();
        let covered = io.zeroed.0 == at.id && end <= io.zeroed.1;
        // Draining may have written what came after `end` meanwhile, a seal for instance.
        if covered || io.written != (at.id, end) || io.since_sync > SMALL_SYNC || !segment.gains_from_zeroes_ahead() {
            return Ok(());
        }
        let to = (end + ZEROES).min(at.size);
        segment.write_at(&vec![0; (to - end) as usize], end)?;
        io.zeroed = (at.id, to);
        if io.dirty.last().is_none_or(|r| r.place().id != at.id) {
            io.dirty.push(segment);
        }
        Ok(())
    }
}
