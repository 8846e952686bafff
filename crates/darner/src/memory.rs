//! Memory that outlives the process, because another one holds its descriptor as well (`keeper.rs`).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

use darner_store::Memory;

/// An empty file in memory, under no name in any directory.
pub fn file(name: &std::ffi::CStr) -> io::Result<File> {
    // SAFETY: a valid C string.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and ours.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Anonymous memory with a descriptor, mapped.
pub struct SharedMemory {
    file: File,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it is plain memory; who may touch what is the users' matter.
unsafe impl Send for SharedMemory {}
// SAFETY: as above.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// Zeroes; what is not touched takes no room.
    pub fn new(name: &std::ffi::CStr, len: usize) -> io::Result<SharedMemory> {
        let file = file(name)?;
        file.set_len(len as u64)?;
        SharedMemory::map(file, len)
    }

    /// That of an earlier process; `None` if it is not of this length.
    pub fn adopt(fd: OwnedFd, len: usize) -> io::Result<Option<SharedMemory>> {
        let file = File::from(fd);
        match file.metadata()?.len() == len as u64 {
            true => SharedMemory::map(file, len).map(Some),
            false => Ok(None),
        }
    }

    fn map(file: File, len: usize) -> io::Result<SharedMemory> {
        let how = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping of our own file, which is that long and never made shorter.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, how, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        match NonNull::new(start.cast()).filter(|_| start != libc::MAP_FAILED) {
            Some(start) => Ok(SharedMemory { file, start, len }),
            None => Err(io::Error::last_os_error()),
        }
    }

    /// The value at byte `at`.
    ///
    /// # Safety
    /// `T` must be made of atomics only, and all its bytes, zeroes too, be valid ones.
    pub unsafe fn at<T>(&self, at: usize) -> &T {
        assert!(at + size_of::<T>() <= self.len && at.is_multiple_of(align_of::<T>()));
        // SAFETY: within the mapping (which is aligned to a page); the caller answers for the type.
        unsafe { self.start.add(at).cast().as_ref() }
    }
}

impl AsFd for SharedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nothing borrows any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

// SAFETY: the mapping lives as long as the value; a store's shelter has it to itself.
unsafe impl Memory for SharedMemory {
    fn bytes(&self) -> (NonNull<u8>, usize) {
        (self.start, self.len)
    }

    fn discard(&self, at: usize, len: usize) {
        let how = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: a plain system call; that it may fail costs memory only.
        unsafe { libc::fallocate(self.file.as_raw_fd(), how, at as i64, len as i64) };
    }
}
