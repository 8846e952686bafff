//! What the log's tail is gathered in: memory of this process, or a slot of a [`Shelter`](crate::Shelter).
//!
//! Invariant: a slot never grows beyond its size; whoever appends has asked for room before.

use std::ops::{Deref, DerefMut};

use crate::shelter::Slot;

/// Bytes that are appended to.
pub enum Buffer {
    Own(Vec<u8>),
    Slot(Slot),
}

impl Buffer {
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        match self {
            Buffer::Own(v) => v.extend_from_slice(bytes),
            Buffer::Slot(s) => s.append(bytes.len()).copy_from_slice(bytes),
        }
    }

    /// Zeroes are appended, or the end is cut off.
    pub fn resize(&mut self, len: usize) {
        match self {
            Buffer::Own(v) => v.resize(len, 0),
            Buffer::Slot(s) if len > s.len() => s.append(len - s.len()).fill(0),
            Buffer::Slot(s) => s.truncate(len),
        }
    }

    pub fn truncate(&mut self, len: usize) {
        match self {
            Buffer::Own(v) => v.truncate(len),
            Buffer::Slot(s) => s.truncate(len),
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Buffer::Own(v) => v,
            Buffer::Slot(s) => s,
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Buffer::Own(v) => v,
            Buffer::Slot(s) => s,
        }
    }
}
