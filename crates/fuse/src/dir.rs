//! The body of a READDIR or READDIRPLUS reply.
//!
//! Invariants: never longer than the request's size; each entry starts on 8 bytes; an entry's offset is where the *next*
//! call goes on, so it must stay valid while the directory changes.

use zerocopy::IntoBytes;

use crate::{abi::Dirent, types::Entry};

/// Directory entries in the kernel's form. Keep it and [`reset`](Self::reset) it: then it doesn't allocate.
#[derive(Debug, Default)]
pub struct DirBuffer {
    bytes: Vec<u8>,
    size: usize,
}

impl DirBuffer {
    /// Empty, for a request of `size` bytes.
    pub fn new(size: u32) -> Self {
        let mut new = Self::default();
        new.reset(size);
        new
    }

    /// Empties it for the next request.
    pub fn reset(&mut self, size: u32) {
        self.size = size as usize;
        self.bytes.clear();
        self.bytes.reserve(self.size.min(1 << 20));
    }

    /// Adds an entry of READDIR; `false` if it doesn't fit: reply with what is there. Of `mode` only the type counts.
    #[must_use]
    pub fn add(&mut self, ino: u64, offset: u64, mode: u32, name: &[u8]) -> bool {
        self.push(&[], ino, offset, mode, name)
    }

    /// Adds an entry of READDIRPLUS; `false` if it doesn't fit, and then it doesn't count as a lookup.
    ///
    /// With `entry.nodeid` 0 only number and type are told (`.`, `..`, or a node that shan't be remembered).
    #[must_use]
    pub fn add_plus(&mut self, entry: &Entry, offset: u64, name: &[u8]) -> bool {
        self.push(entry.to_wire().as_bytes(), entry.attr.ino, offset, entry.attr.mode, name)
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn push(&mut self, before: &[u8], ino: u64, off: u64, mode: u32, name: &[u8]) -> bool {
        let len = (before.len() + size_of::<Dirent>() + name.len()).next_multiple_of(8);
        if self.bytes.len() + len > self.size {
            return false;
        }
        let end = self.bytes.len() + len;
        let dirent = Dirent { ino, off, namelen: name.len() as u32, kind: (mode & libc::S_IFMT) >> 12 };
        self.bytes.extend_from_slice(before);
        self.bytes.extend_from_slice(dirent.as_bytes());
        self.bytes.extend_from_slice(name);
        self.bytes.resize(end, 0);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_stop_at_the_size() {
        let mut dir = DirBuffer::new(64);
        assert!(dir.add(7, 1, libc::S_IFREG | 0o644, b"abc"));
        assert_eq!(dir.bytes().len(), 32);
        assert_eq!(&dir.bytes()[20..24], &8u32.to_ne_bytes(), "DT_REG");
        assert!(dir.add(8, 2, libc::S_IFDIR, b"12345678"));
        assert!(!dir.add(9, 3, libc::S_IFREG, b"x"));
        assert_eq!(dir.bytes().len(), 64);
    }

    #[test]
    fn a_plus_entry_holds_the_entry_first() {
        let mut dir = DirBuffer::new(160);
        assert!(dir.add_plus(&Entry { nodeid: 5, ..Default::default() }, 1, b"name"));
        assert_eq!(dir.bytes().len(), 128 + 32);
        assert_eq!(dir.bytes()[0], 5);
        assert!(!dir.add_plus(&Entry::default(), 2, b"x"));
    }
}
