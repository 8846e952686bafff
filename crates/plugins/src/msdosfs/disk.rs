//! The image as the crate wants it, with what was read last kept: it asks for a few bytes at a time. Writes go through.
//!
//! What the crate follows through an image has no end where a chain of clusters bites its tail. So each operation may read so
//! often and no oftener: more than any operation on a sound image of that size takes.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Error, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const BLOCK: u64 = 32 << 10;
const BLOCKS_MAX: usize = 512;

#[derive(Default)]
pub(super) struct Shared {
    /// Bytes of the image.
    len: u64,
    /// Where the last read began.
    pub last: AtomicU64,
    /// Somebody else has written to the image.
    pub stale: AtomicBool,
    /// How often the operation that is under way may read yet.
    allowance: AtomicU64,
}

pub(super) struct Disk {
    image: File,
    len: u64,
    at: u64,
    shared: Arc<Shared>,
    blocks: HashMap<u64, Vec<u8>>,
    order: VecDeque<u64>,
}

/// Reads that one operation may take. An entry of a directory takes 13 of them, an operation goes through five directories of
/// 65,536 entries at most (fewer if the image is small), and through all clusters a few times.
fn allowance(len: u64) -> u64 {
    (len * 2).min(16 << 20) + len / 64 + 1000
}

/// Writes to an image.
pub(super) fn write(image: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    #[cfg(test)]
    super::tests::may_write()?;
    image.write_all_at(bytes, at)
}

impl Shared {
    /// Another operation begins.
    pub fn begin(&self) {
        self.allowance.store(allowance(self.len), Ordering::Relaxed);
    }
}

impl Disk {
    pub fn new(image: File) -> io::Result<Disk> {
        let len = crate::len_of(&image)?;
        let shared = Arc::new(Shared { len, ..Shared::default() });
        shared.begin();
        Ok(Disk { image, len, at: 0, shared, blocks: HashMap::new(), order: VecDeque::new() })
    }

    /// What can be asked and told when the disk is somebody else's.
    pub fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    fn block(&mut self, n: u64) -> io::Result<&[u8]> {
        if self.shared.stale.swap(false, Ordering::Relaxed) {
            self.blocks.clear();
            self.order.clear();
        }
        if !self.blocks.contains_key(&n) {
            let mut block = vec![0; BLOCK.min(self.len - n * BLOCK) as usize];
            self.image.read_exact_at(&mut block, n * BLOCK)?;
            if self.order.len() >= BLOCKS_MAX
                && let Some(old) = self.order.pop_front()
            {
                self.blocks.remove(&old);
            }
            self.order.push_back(n);
            self.blocks.insert(n, block);
        }
        Ok(&self.blocks[&n])
    }
}

impl Read for Disk {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let at = self.at;
        let left = self.shared.allowance.load(Ordering::Relaxed);
        self.shared.allowance.store(left.saturating_sub(1), Ordering::Relaxed);
        if left == 0 {
            return Err(Error::new(ErrorKind::InvalidData, "the image is damaged: something in it has no end"));
        }
        self.shared.last.store(at, Ordering::Relaxed);
        if at >= self.len {
            return Ok(0);
        }
        let block = self.block(at / BLOCK)?;
        let rest = &block[(at % BLOCK) as usize..];
        let n = rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        self.at += n as u64;
        Ok(n)
    }
}

impl Write for Disk {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let within = (self.at % BLOCK) as usize;
        let n = buffer.len().min(BLOCK as usize - within);
        if self.at + n as u64 > self.len {
            return Err(Error::new(ErrorKind::InvalidData, "the image is shorter than its filesystem"));
        }
        write(&self.image, &buffer[..n], self.at)?;
        if let Some(block) = self.blocks.get_mut(&(self.at / BLOCK)) {
            block[within..within + n].copy_from_slice(&buffer[..n]);
        }
        self.at += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Disk {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let to = match to {
            SeekFrom::Start(n) => Some(n),
            SeekFrom::Current(n) => self.at.checked_add_signed(n),
            SeekFrom::End(n) => self.len.checked_add_signed(n),
        };
        self.at = to.ok_or_else(|| Error::from(ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}
