//! Bulk between processes of a machine: shared memory whose descriptor travels with the message.
//!
//! The receiver copies with pread instead of mapping: a peer that shrinks or changes the memory meanwhile can then make
//! a read short or its own bytes wrong, but can't make us die by SIGBUS, and what was checked can't change afterwards.
//! (Mapping costs more, too: a page fault per 4 KiB and an unmapping that other CPUs must be told of.) The seal is asked for
//! nevertheless: only shared memory has seals, so a file that blocks for ever is refused.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::error::{Reason, Why};
use crate::poll::check;

/// Shared memory that can't shrink, used again when the peer has taken in what was in it: making and filling new memory
/// costs several times the copying.
///
/// Our own side of it is mapped, which the peer can't harm: it can't shrink.
pub(crate) struct Shared {
    file: File,
    map: *mut u8,
    len: usize,
}

// SAFETY: the mapping is the structure's own, and written to only through a mutable reference.
unsafe impl Send for Shared {}

impl Shared {
    pub fn new() -> io::Result<Shared> {
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        // SAFETY: a valid C string; the descriptor is ours.
        let file = unsafe { File::from_raw_fd(check(libc::memfd_create(c"darner-bulk".as_ptr(), flags))?) };
        // SAFETY: a plain system call.
        check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) })?;
        Ok(Shared { file, map: std::ptr::null_mut(), len: 0 })
    }

    /// Puts the buffers in, one behind the other.
    pub fn fill(&mut self, buffers: &[Vec<u8>]) -> io::Result<()> {
        self.grow(buffers.iter().map(Vec::len).sum())?;
        let mut at = 0;
        for b in buffers {
            // SAFETY: the mapping is as long as all buffers together.
            unsafe { std::ptr::copy_nonoverlapping(b.as_ptr(), self.map.add(at), b.len()) };
            at += b.len();
        }
        Ok(())
    }

    fn grow(&mut self, len: usize) -> io::Result<()> {
        if len <= self.len {
            return Ok(());
        }
        let len = len.next_multiple_of(PAGE);
        // (Allocated, so that no write to the mapping can fail.)
        // SAFETY: a plain system call.
        check(unsafe { libc::fallocate(self.file.as_raw_fd(), 0, 0, len as libc::off_t) })?;
        self.unmap();
        let (rights, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
        // SAFETY: a new mapping of memory of that length.
        let map = unsafe { libc::mmap(std::ptr::null_mut(), len, rights, kind, self.file.as_raw_fd(), 0) };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        (self.map, self.len) = (map.cast(), len);
        Ok(())
    }

    fn unmap(&mut self) {
        if self.len > 0 {
            // SAFETY: our own mapping of that length.
            unsafe { libc::munmap(self.map.cast(), self.len) };
            self.len = 0;
        }
    }

    pub fn fd(&self) -> i32 {
        self.file.as_raw_fd()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.unmap();
    }
}

/// The shared memory of a link: what is under way, by the number of its message, and what is free.
#[derive(Default)]
pub(crate) struct Stock {
    under_way: VecDeque<(u64, Shared)>,
    free: Vec<Shared>,
}

const PAGE: usize = 4096;

/// Pieces that are kept though nobody needs them now, of which none is larger than this.
const FREE_MAX: usize = 4;
const FREE_LEN: usize = 1 << 20;

impl Stock {
    /// Memory with these buffers in it.
    pub fn filled(&mut self, buffers: &[Vec<u8>]) -> io::Result<Shared> {
        let mut shared = self.free.pop().map_or_else(Shared::new, Ok)?;
        shared.fill(buffers)?;
        Ok(shared)
    }

    /// It went with message `seq`.
    pub fn sent(&mut self, seq: u64, shared: Shared, len: usize) {
        // What is large is not kept, so that a link holds little memory; the peer has its own descriptor.
        if len <= FREE_LEN {
            self.under_way.push_back((seq, shared));
        }
    }

    /// The peer has taken in everything up to message `seq`.
    pub fn seen(&mut self, seq: u64) {
        while self.under_way.front().is_some_and(|(n, _)| *n <= seq) {
            let shared = self.under_way.pop_front().map(|(_, shared)| shared);
            self.free.extend(shared.filter(|_| self.free.len() < FREE_MAX));
        }
    }
}

/// Copies buffers of these lengths out of what a peer passed.
pub(crate) fn copy_out(fd: OwnedFd, lengths: &[u32]) -> Result<Vec<Vec<u8>>, Reason> {
    // SAFETY: a plain system call.
    let seals = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
    if seals < 0 || seals & libc::F_SEAL_SHRINK == 0 {
        return Err(Reason::new(Why::Malformed, "bulk is not in memory sealed against shrinking"));
    }
    let mut at = 0;
    let mut buffers = Vec::with_capacity(lengths.len());
    for len in lengths {
        buffers.push(read_at(&fd, *len as usize, at)?);
        at += i64::from(*len);
    }
    Ok(buffers)
}

fn read_at(fd: &OwnedFd, len: usize, at: i64) -> Result<Vec<u8>, Reason> {
    let mut buffer = Vec::<u8>::with_capacity(len);
    let mut have = 0;
    while have < len {
        // SAFETY: the buffer has room for `len` bytes, of which `have` are filled.
        let n =
            unsafe { libc::pread(fd.as_raw_fd(), buffer.as_mut_ptr().add(have).cast(), len - have, at + have as i64) };
        match n {
            0 => return Err(Reason::new(Why::Malformed, "bulk is shorter than announced")),
            n if n > 0 => have += n as usize,
            _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            _ => return Err(Reason::lost(&io::Error::last_os_error())),
        }
    }
    // SAFETY: the kernel has filled `len` bytes.
    unsafe { buffer.set_len(len) };
    Ok(buffer)
}
