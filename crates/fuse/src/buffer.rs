//! A thread's request buffer: one message of the largest size, kept for the thread's life.
//!
//! A message starts 80 bytes (header and WRITE's arguments) before a page boundary, so that written data begins *on* the
//! boundary: the kernel then copies page to page, and the data may go on to an O_DIRECT write as it is.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    ptr::NonNull,
};

use crate::abi;

const PAGE: usize = 4096;
const BEFORE_DATA: usize = size_of::<abi::InHeader>() + size_of::<abi::WriteIn>();

/// Memory for one request.
pub(crate) struct Buffer {
    memory: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the memory is owned by the buffer alone.
unsafe impl Send for Buffer {}

impl Buffer {
    /// Room for writes of `max_write` bytes, and for xattrs (64 KiB and a name) in any case.
    pub(crate) fn new(max_write: u32) -> Self {
        let data = (max_write as usize).max(128 << 10).next_multiple_of(PAGE);
        let layout = Layout::from_size_align(PAGE + data, PAGE).expect("a size below 5 GiB");
        // SAFETY: the layout's size isn't 0.
        let memory = unsafe { alloc_zeroed(layout) };
        let memory = NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout));
        // A page that is not there when the process is killed while it reads would cost the request.
        for at in (0..layout.size()).step_by(PAGE) {
            // SAFETY: within the allocation.
            unsafe { memory.as_ptr().add(at).write_volatile(0) };
        }
        Self { memory, layout }
    }

    /// Where a message goes.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        let start = PAGE - BEFORE_DATA;
        // SAFETY: inside the allocation, initialised (zeroed), and borrowed with the buffer.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr().add(start), self.layout.size() - start) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `new`.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_data_starts_on_a_page() {
        let mut buffer = Buffer::new(1 << 20);
        let space = buffer.space();
        assert_eq!(space[BEFORE_DATA..].as_ptr() as usize % PAGE, 0);
        assert!(space.len() >= (1 << 20) + BEFORE_DATA);
    }
}
