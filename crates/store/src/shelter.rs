//! Memory that outlives the process: what is committed and not yet written to a volume is gathered there, so that killing the
//! process loses nothing. The caller provides it and hands it to the next process. docs/format.md §Shelter.
//!
//! It holds slots, each of which takes one buffer of the log's tail. A slot's descriptor says to which bytes of which segment
//! it belongs; where the frames in it end needs no saying: each carries its checksum, its position and the chain. So a commit
//! costs nothing, and whatever else is in the memory (a stale slot, a frame that was being made, another store's, garbage) is
//! refused as it would be on a disk. Replay asks for a frame here where the volume does not have it.
//!
//! Invariants: a slot is described anew only after all that was in it went to the volume; nothing is described before replay has
//! taken out what is left.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, compiler_fence};

use parking_lot::Mutex;

use crate::log::BUFFER;
use crate::store::FRAME_MAX;

const MAGIC: &[u8; 8] = b"DARNSHL1";
const PAGE: usize = 4096;
const HEAD: usize = 32;
const DESCRIPTOR: usize = 32;
/// Descriptors end at the first slot.
const TABLE: usize = PAGE;
const SLOTS_MAX: usize = (TABLE - HEAD) / DESCRIPTOR;
/// A buffer that is not full yet, one more frame, and what compression may need meanwhile.
const SLOT: usize = BUFFER + FRAME_MAX + (128 << 10);
/// So many free slots keep their memory when nothing goes on.
const WARM: usize = 12;

/// Memory for a [`Shelter`].
///
/// # Safety
/// The bytes stay where they are and valid, for reading and writing, as long as the value lives, and nobody else touches them.
pub unsafe trait Memory: Send + Sync {
    /// Where it is, 8-aligned, and how long.
    fn bytes(&self) -> (NonNull<u8>, usize);

    /// These bytes are not needed for now: the memory may be given back. They read as anything afterwards.
    fn discard(&self, _at: usize, _len: usize) {}
}

/// See the module. Clones are the same.
#[derive(Clone)]
pub struct Shelter(Arc<Inner>);

struct Inner {
    memory: Box<dyn Memory>,
    slots: usize,
    /// The slots that are free; none is until [`Shelter::begin`].
    free: Mutex<Free>,
    free_count: AtomicUsize,
}

#[derive(Default)]
struct Free {
    /// Used before: to touch memory for the first time costs more than to fill it.
    warm: Vec<usize>,
    cold: Vec<usize>,
}

/// A slot in use. Dropped, it is free.
pub struct Slot {
    inner: Arc<Inner>,
    number: usize,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a slot's memory is reached through its owner alone.
unsafe impl Send for Slot {}
// SAFETY: as above; shared references only read.
unsafe impl Sync for Slot {}

impl std::fmt::Debug for Shelter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shelter({} slots)", self.0.slots)
    }
}

impl Shelter {
    /// A good length for its memory; only what is used takes room.
    pub const LEN: usize = Shelter::len(64);

    /// The length of one with so many slots, at most 127.
    pub const fn len(slots: usize) -> usize {
        TABLE + slots * SLOT
    }

    /// In this memory, whatever is in it.
    pub fn over(memory: Box<dyn Memory>) -> Shelter {
        let slots = (memory.bytes().1.saturating_sub(TABLE) / SLOT).min(SLOTS_MAX);
        Shelter(Arc::new(Inner { memory, slots, free: Mutex::default(), free_count: AtomicUsize::new(0) }))
    }

    /// What is left of a store's frame at byte `at` of a region, and whatever follows it there.
    pub(crate) fn left_at(&self, store: &[u8; 16], region: u64, at: u64) -> Option<&[u8]> {
        if self.0.slots == 0 || self.0.part(0, HEAD) != header(store) {
            return None;
        }
        let described = (0..self.0.slots).filter_map(|n| Some((n, self.0.described(store, n)?)));
        let near = described.filter(|(_, (r, base))| *r == region && *base <= at);
        let (n, (_, base)) = near.max_by_key(|(_, (_, base))| *base)?;
        let skip = usize::try_from(at - base).ok()?;
        self.0.part(TABLE + n * SLOT, SLOT).get(skip..)
    }

    /// Nothing that is in it is needed any more: from now on it is for this store.
    pub(crate) fn begin(&self, store: &[u8; 16]) {
        let inner = &self.0;
        if inner.slots == 0 {
            return;
        }
        inner.write(0, &[0; TABLE]);
        inner.write(0, &header(store));
        *inner.free.lock() = Free { warm: Vec::new(), cold: (0..inner.slots).rev().collect() };
        inner.free_count.store(inner.slots, Ordering::Relaxed);
    }

    /// A slot for what will be at byte `base` of a region; `None` if all are in use.
    pub(crate) fn slot(&self, store: &[u8; 16], region: u64, base: u64) -> Option<Slot> {
        let number = {
            let mut free = self.0.free.lock();
            free.warm.pop().or_else(|| free.cold.pop())?
        };
        self.0.free_count.fetch_sub(1, Ordering::Relaxed);
        let start = TABLE + number * SLOT;
        assert!(start + SLOT <= self.0.memory.bytes().1);
        // SAFETY: within the memory, as just checked.
        let start = unsafe { self.0.memory.bytes().0.add(start) };
        let mut slot = Slot { inner: self.0.clone(), number, start, len: 0 };
        slot.describe(store, region, base);
        Some(slot)
    }

    /// Gives back the memory of most slots that are free.
    pub(crate) fn cool(&self) {
        let mut free = self.0.free.lock();
        while free.warm.len() > WARM {
            // (The others are warmer.)
            let number = free.warm.remove(0);
            self.0.memory.discard(TABLE + number * SLOT, SLOT);
            free.cold.push(number);
        }
    }

    /// Slots that are free.
    pub(crate) fn room(&self) -> usize {
        self.0.free_count.load(Ordering::Relaxed)
    }
}

fn header(store: &[u8; 16]) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..8].copy_from_slice(MAGIC);
    head[8..24].copy_from_slice(store);
    head
}

fn descriptor(store: &[u8; 16], number: usize, region: u64, base: u64) -> [u8; DESCRIPTOR] {
    let mut d = [0; DESCRIPTOR];
    d[..8].copy_from_slice(&region.to_le_bytes());
    d[8..16].copy_from_slice(&base.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c_append(number as u32, store), &d[..16]);
    d[16..20].copy_from_slice(&crc.to_le_bytes());
    d
}

impl Inner {
    /// Only for parts that nobody writes now.
    fn part(&self, at: usize, len: usize) -> &[u8] {
        let (start, all) = self.memory.bytes();
        assert!(at + len <= all);
        // SAFETY: within the memory; written by its slot's owner only, and none has it (see the callers).
        unsafe { std::slice::from_raw_parts(start.as_ptr().add(at), len) }
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        let (start, all) = self.memory.bytes();
        assert!(at + bytes.len() <= all);
        // SAFETY: within the memory; the table's parts are written by the one who has the slot.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), start.as_ptr().add(at), bytes.len()) };
        // The process may end after any store; none is to be put off.
        compiler_fence(Ordering::SeqCst);
    }

    /// Where the bytes in a slot belong: (region, offset).
    fn described(&self, store: &[u8; 16], number: usize) -> Option<(u64, u64)> {
        let d = self.part(HEAD + number * DESCRIPTOR, DESCRIPTOR);
        let word = |at: usize| u64::from_le_bytes(d[at..at + 8].try_into().expect("8 bytes"));
        let (region, base) = (word(0), word(8));
        (d == descriptor(store, number, region, base)).then_some((region, base))
    }
}

impl Slot {
    /// What will be in it belongs there.
    pub fn describe(&mut self, store: &[u8; 16], region: u64, base: u64) {
        assert_eq!(self.len, 0, "a slot is described before it is filled");
        let at = HEAD + self.number * DESCRIPTOR;
        self.inner.write(at, &[0; DESCRIPTOR]);
        self.inner.write(at, &descriptor(store, self.number, region, base));
    }

    /// Room for so many bytes more, to be filled at once.
    pub fn append(&mut self, n: usize) -> &mut [u8] {
        let from = self.len;
        assert!(from + n <= SLOT, "a frame of the log is longer than the longest");
        self.len += n;
        &mut self[from..]
    }

    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

impl Deref for Slot {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` bytes of the slot have been written (memory that outlives a process is initialised from the start).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Slot {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed with the slot.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.inner.free.lock().warm.push(self.number);
        self.inner.free_count.fetch_add(1, Ordering::Relaxed);
    }
}
