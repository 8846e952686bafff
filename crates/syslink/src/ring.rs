//! Memory that both processes of a link see, in which messages wait instead of in the socket: who polls for them needs no system
//! call, and who sends makes one only if the other one sleeps. docs/syslink.md §Ring.
//!
//! The peer may write anything anywhere, at any time. So each side keeps its own place in memory of its own, believes the
//! other's only as far as it is possible, and copies a message out before it is verified.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use crate::error::{Reason, Why};
use crate::header::HEADER;

/// Bytes of the memory: a page with places and 32 KiB of messages each way.
pub const RING: usize = 2 * HALF;
const HALF: usize = PAGE + ROOM as usize;
const PAGE: usize = 4096;
/// Bytes of messages that wait, a power of two.
const ROOM: u64 = 32 << 10;
/// Before each message, its length.
const LEN: u64 = 4;
/// Where the places are: how far it is written, how far it is read, and whether the reader wants to be woken.
const WRITTEN: usize = 0;
const READ: usize = 64;
const SLEEPS: usize = 128;

struct Mapping(NonNull<u8>);

// SAFETY: plain memory, touched through atomics and copies only.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone.
        unsafe { libc::munmap(self.0.as_ptr().cast(), RING) };
    }
}

/// One direction.
#[derive(Clone)]
struct Lane {
    map: Arc<Mapping>,
    at: usize,
}

impl Lane {
    fn word(&self, at: usize) -> &AtomicU64 {
        // SAFETY: within the mapping, aligned, and only ever used as an atomic.
        unsafe { AtomicU64::from_ptr(self.map.0.as_ptr().add(self.at + at).cast()) }
    }

    fn sleeps(&self) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(self.map.0.as_ptr().add(self.at + SLEEPS).cast()) }
    }

    /// Copies between `bytes` (whose length is at most [`ROOM`]) and the messages from `place` on.
    fn copy(&self, place: u64, bytes: *mut u8, len: usize, put: bool) {
        let from = (place % ROOM) as usize;
        let first = len.min(ROOM as usize - from);
        for (from, done, len) in [(from, 0, first), (0, first, len - first)] {
            // SAFETY: within the mapping, and within the caller's bytes, which are other memory.
            unsafe {
                let (there, here) = (self.map.0.as_ptr().add(self.at + PAGE + from), bytes.add(done));
                match put {
                    true => std::ptr::copy_nonoverlapping(here, there, len),
                    false => std::ptr::copy_nonoverlapping(there, here, len),
                }
            }
        }
    }
}

/// The sending end.
pub(crate) struct Writer {
    lane: Lane,
    written: u64,
}

/// The receiving end.
pub(crate) struct Reader {
    lane: Lane,
    read: u64,
}

/// Both ends of the side that connects, or of the other. The memory behind `fd` has [`RING`] bytes from `offset` on, all zero, and
/// can't shrink.
pub(crate) fn open(fd: &impl AsRawFd, offset: u64, connects: bool) -> io::Result<(Writer, Reader)> {
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    let offset = offset as libc::off_t;
    // SAFETY: a new mapping of memory that is that long.
    let map = unsafe { libc::mmap(std::ptr::null_mut(), RING, rights, libc::MAP_SHARED, fd.as_raw_fd(), offset) };
    let map = NonNull::new(map.cast()).filter(|_| map != libc::MAP_FAILED).ok_or_else(io::Error::last_os_error)?;
    let there = Lane { map: Arc::new(Mapping(map)), at: 0 };
    let back = Lane { at: HALF, ..there.clone() };
    let (out, back) = if connects { (there, back) } else { (back, there) };
    Ok((Writer { lane: out, written: 0 }, Reader { lane: back, read: 0 }))
}

impl Writer {
    /// Puts a message in; false: there is no room, now or ever.
    pub fn put(&mut self, message: &[u8]) -> bool {
        let waits = self.written.wrapping_sub(self.lane.word(READ).load(Ordering::Acquire));
        let len = LEN + message.len() as u64;
        if waits > ROOM || len > ROOM - waits {
            return false;
        }
        let mut head = (message.len() as u32).to_le_bytes();
        self.lane.copy(self.written, head.as_mut_ptr(), head.len(), true);
        self.lane.copy(self.written + LEN, message.as_ptr().cast_mut(), message.len(), true);
        self.written += len;
        self.lane.word(WRITTEN).store(self.written, Ordering::Release);
        true
    }

    /// Whether the reader is to be woken.
    pub fn is_to_wake(&self) -> bool {
        // What was put in is seen by a reader that this does not see asleep.
        fence(Ordering::SeqCst);
        self.lane.sleeps().load(Ordering::Relaxed) != 0 && self.lane.sleeps().swap(0, Ordering::Relaxed) != 0
    }
}

impl Reader {
    /// Whether there is a message.
    pub fn has(&self) -> bool {
        self.lane.word(WRITTEN).load(Ordering::Acquire) != self.read
    }

    /// Takes the next message out; `most`: its bytes at most.
    pub fn take(&mut self, most: usize) -> Result<Option<Vec<u8>>, Reason> {
        let waits = self.lane.word(WRITTEN).load(Ordering::Acquire).wrapping_sub(self.read);
        if waits == 0 {
            return Ok(None);
        }
        let malformed = |what| Err(Reason::new(Why::Malformed, what));
        let mut head = [0; LEN as usize];
        if !(LEN + HEADER as u64..=ROOM).contains(&waits) {
            return malformed("the ring says that it holds what it can't");
        }
        self.lane.copy(self.read, head.as_mut_ptr(), head.len(), false);
        let len = u32::from_le_bytes(head) as usize;
        if len > most || len < HEADER || LEN + len as u64 > waits {
            return malformed("a message in the ring is longer or shorter than it can be");
        }
        let mut message = vec![0; len];
        self.lane.copy(self.read + LEN, message.as_mut_ptr(), len, false);
        self.read += LEN + len as u64;
        self.lane.word(READ).store(self.read, Ordering::Release);
        Ok(Some(message))
    }

    /// From now on the writer wakes us by the socket. False: there is a message already.
    pub fn sleep(&self) -> bool {
        self.lane.sleeps().store(1, Ordering::Relaxed);
        // Either this sees what was put in, or who put it in sees that we sleep.
        fence(Ordering::SeqCst);
        let sleeps = !self.has();
        if !sleeps {
            self.wake();
        }
        sleeps
    }

    /// Not any more.
    pub fn wake(&self) {
        if self.lane.sleeps().load(Ordering::Relaxed) != 0 {
            self.lane.sleeps().store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
