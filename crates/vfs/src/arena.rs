//! Memory that host and plug-in both see: bytes that are read or written never pass through the socket, and are not copied
//! on the way between kernel and plug-in.
//!
//! The host makes it, sealed, so that the plug-in can't have anybody die of SIGBUS; a plug-in that changes bytes while
//! they are on their way spoils what it was to deliver, nothing else. It is cut in slots, one for each call that moves bytes,
//! which keeps it until the plug-in has replied. Each start of a plug-in has an arena of its own.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use darner_syslink::RING;
use parking_lot::Mutex;

/// Bytes of a slot: the largest read or write.
pub const SLOT: usize = 1 << 20;

/// A mapping of the memory, of either side.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: plain memory; who may touch what, the protocol says.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes, which exist.
    fn new(fd: &impl AsRawFd, len: usize) -> io::Result<Mapping> {
        let how = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping of memory that is that long and sealed against being made shorter.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, how, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
        match NonNull::new(start.cast()).filter(|_| start != libc::MAP_FAILED) {
            Some(start) => Ok(Mapping { start, len }),
            None => Err(io::Error::last_os_error()),
        }
    }

    /// The plug-in's, of what it was given.
    pub(crate) fn of_plugin(fd: &OwnedFd) -> io::Result<Mapping> {
        let len = (File::from(fd.try_clone()?).metadata()?.len() as usize).saturating_sub(RING);
        Mapping::new(fd, len)
    }

    /// Where the ring begins.
    pub(crate) fn end(&self) -> u64 {
        self.len as u64
    }

    /// Where a piece lies; `None` if it does not lie within.
    fn at(&self, place: u64, len: usize) -> Option<NonNull<u8>> {
        let place = usize::try_from(place).ok()?;
        let end = place.checked_add(len)?;
        // SAFETY: within the mapping.
        (end <= self.len).then(|| unsafe { self.start.add(place) })
    }

    /// A piece, to be filled or read by the plug-in: as long as it has not replied, nobody else touches it.
    ///
    /// # Safety
    /// No other piece that this call returned and that overlaps is in use.
    #[allow(clippy::mut_from_ref, reason = "shared memory: what is aliased is for the caller to see to")]
    pub(crate) unsafe fn piece(&self, place: u64, len: usize) -> Option<&mut [u8]> {
        // SAFETY: within the mapping; not aliased in this process, says the caller.
        self.at(place, len).map(|at| unsafe { std::slice::from_raw_parts_mut(at.as_ptr(), len) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// The host's side.
pub struct Arena {
    file: File,
    mapping: Mapping,
    free: Mutex<Vec<u16>>,
}

impl Arena {
    /// Of so many slots. What was never touched takes no room.
    pub fn new(slots: u16) -> io::Result<Arena> {
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        // SAFETY: a valid C string.
        let fd = unsafe { libc::memfd_create(c"darner-arena".as_ptr(), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and ours.
        let file = unsafe { File::from_raw_fd(fd) };
        let len = usize::from(slots) * SLOT;
        file.set_len((len + RING) as u64)?;
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: a plain system call.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let mapping = Mapping::new(&file, len)?;
        Ok(Arena { file, mapping, free: Mutex::new((0..slots).rev().collect()) })
    }

    /// The memory, and where in it the ring of the link begins.
    pub(crate) fn ring(&self) -> io::Result<(OwnedFd, u64)> {
        Ok((self.file.try_clone()?.into(), self.mapping.end()))
    }

    /// A slot of one's own; `None`: all are taken.
    pub(crate) fn take(self: &Arc<Arena>) -> Option<Slot> {
        // The last one given back is the likeliest to be in the CPU's cache.
        let n = self.free.lock().pop()?;
        Some(Slot { arena: self.clone(), n })
    }
}

impl AsFd for Arena {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A part of the arena, for one call.
pub(crate) struct Slot {
    arena: Arc<Arena>,
    n: u16,
}

impl Slot {
    /// Where it begins.
    pub fn place(&self) -> u64 {
        u64::from(self.n) * SLOT as u64
    }

    /// Puts bytes in.
    pub fn fill(&mut self, data: &[u8]) {
        let at = self.arena.mapping.at(self.place(), data.len()).expect("no more than a slot");
        // SAFETY: the slot is ours, and as long as that; the source is other memory.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), at.as_ptr(), data.len()) };
    }

    /// What the plug-in put in, to be handed to the kernel and looked at by nobody: the plug-in may be changing it.
    pub fn bytes(&self, len: usize) -> &[u8] {
        let at = self.arena.mapping.at(self.place(), len.min(SLOT)).expect("a slot lies within");
        // SAFETY: within the mapping. Another process may write meanwhile; only system calls read it.
        unsafe { std::slice::from_raw_parts(at.as_ptr(), len.min(SLOT)) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.arena.free.lock().push(self.n);
    }
}
