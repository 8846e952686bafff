//! A thread's request buffer: one message of the largest size, kept for the thread's life.
//!
//! A message starts 80 bytes (header and WRITE's arguments) before a page boundary, so that written data begins *on* the
//! boundary: the kernel then copies page to page, and the data may go on to an O_DIRECT write as it is.

use std::io;
use std::ptr::NonNull;

use crate::abi;

const PAGE: usize = 4096;
const BEFORE_DATA: usize = size_of::<abi::InHeader>() + size_of::<abi::WriteIn>();

/// Memory for one request: a mapping of its own.
///
/// Its pages are there, and may be written, whatever else the process does. If it is killed while it reads a request, the kernel
/// takes no page fault for it any more: a page that was missing, or was write-protected by a fork, would cost whoever waits for
/// the answer an EIO.
pub(crate) struct Buffer {
    memory: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is owned by the buffer alone.
unsafe impl Send for Buffer {}

impl Buffer {
    /// Room for writes of `max_write` bytes, and for xattrs (64 KiB and a name) in any case.
    pub(crate) fn new(max_write: u32) -> io::Result<Self> {
        let data = (max_write as usize).max(128 << 10).next_multiple_of(PAGE);
        let len = PAGE + data;
        let (rights, kind) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE);
        // SAFETY: a new mapping, wherever the kernel likes.
        let memory = unsafe { libc::mmap(std::ptr::null_mut(), len, rights, kind, -1, 0) };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the mapping just made. (Kernels that know no such advice have no huge pages, or nothing that forks.)
        unsafe {
            libc::madvise(memory, len, libc::MADV_DONTFORK);
            libc::madvise(memory, len, libc::MADV_NOHUGEPAGE);
        }
        let memory = NonNull::new(memory.cast()).expect("a mapping is not at 0");
        Ok(Self { memory, len })
    }

    /// Where a message goes.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        let start = PAGE - BEFORE_DATA;
        // SAFETY: inside the allocation, initialised (zeroed), and borrowed with the buffer.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr().add(start), self.len - start) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: mapped with this length in `new`.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A daemon that had just started another process and was killed once cost a WRITE its answer.
    #[test]
    fn a_fork_leaves_its_pages_writable() {
        let mut buffer = Buffer::new(1 << 20).unwrap();
        let at = buffer.space().as_ptr() as usize;
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines().skip_while(|line| {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            let ends =
                range.and_then(|(a, b)| Some((usize::from_str_radix(a, 16).ok()?, usize::from_str_radix(b, 16).ok()?)));
            ends.is_none_or(|(from, to)| !(from..to).contains(&at))
        });
        let flags = lines.find(|line| line.starts_with("VmFlags:")).expect("it is mapped");
        assert!(flags.split(' ').any(|flag| flag == "dc"), "{flags}");
    }

    #[test]
    fn written_data_starts_on_a_page() {
        let mut buffer = Buffer::new(1 << 20).unwrap();
        let space = buffer.space();
        assert_eq!(space[BEFORE_DATA..].as_ptr() as usize % PAGE, 0);
        assert!(space.len() >= (1 << 20) + BEFORE_DATA);
    }
}
