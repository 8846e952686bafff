//! Workloads on one large file: in sequence, at random places, with an fsync each, mapped.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::data::{self, Rng};
use super::stage::{Sample, Stage, go_on};

const PAGE: u64 = 4096;
const MIB: usize = 1 << 20;

fn large(s: &Stage) -> PathBuf {
    s.dir.join("large")
}

fn mapped(s: &Stage) -> PathBuf {
    s.dir.join("mapped")
}

fn rng(s: &Stage, salt: u64) -> Rng {
    Rng::new(s.round << 32 | salt)
}

/// A new file in writes of 1 MiB, and one fsync.
pub fn seq_write(s: &Stage) -> io::Result<Sample> {
    let blocks: Vec<Vec<u8>> = (0..16).map(|n| block(MIB, s.round << 8 | n)).collect();
    let _ = std::fs::remove_file(large(s));
    let n = s.scale.file_bytes / MIB as u64;
    s.time(n, s.scale.file_bytes, || {
        let mut file = File::create(large(s))?;
        for i in 0..n as usize {
            file.write_all(&blocks[i % blocks.len()])?;
            go_on()?;
        }
        file.sync_all()
    })
}

fn block(len: usize, seed: u64) -> Vec<u8> {
    let mut block = vec![0; len];
    data::mixed(seed, &mut block);
    block
}

/// All of it in reads of 1 MiB.
pub fn seq_read(s: &Stage) -> io::Result<Sample> {
    let file = File::open(large(s))?;
    let mut buf = vec![0; MIB];
    let n = s.scale.file_bytes / MIB as u64;
    s.time(n, s.scale.file_bytes, || {
        for i in 0..n {
            file.read_exact_at(&mut buf, i * MIB as u64)?;
            go_on()?;
        }
        Ok(())
    })
}

/// 4 KiB each, the kernel told not to read ahead.
pub fn rand_read(s: &Stage) -> io::Result<Sample> {
    let file = File::open(large(s))?;
    // SAFETY: a plain system call on an open descriptor.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM) };
    let (mut rng, mut buf) = (rng(s, 1), [0; PAGE as usize]);
    s.time_each(s.scale.random_ops, |_| file.read_exact_at(&mut buf, rng.below(s.scale.file_bytes / PAGE) * PAGE))
}

/// 4 KiB each into the page cache, and one fsync.
pub fn rand_write(s: &Stage) -> io::Result<Sample> {
    let file = OpenOptions::new().write(true).open(large(s))?;
    let (mut rng, mut buf) = (rng(s, 2), block(PAGE as usize, s.round));
    s.time(s.scale.random_ops, 0, || {
        for n in 0..s.scale.random_ops {
            buf[..8].copy_from_slice(&n.to_le_bytes());
            file.write_all_at(&buf, rng.below(s.scale.file_bytes / PAGE) * PAGE)?;
            go_on()?;
        }
        file.sync_all()
    })
}

/// 4 KiB at the end of a file, then fsync, each.
pub fn append_fsync(s: &Stage) -> io::Result<Sample> {
    let mut file = OpenOptions::new().append(true).create(true).open(s.dir.join("appended"))?;
    file.set_len(0)?;
    let buf = block(PAGE as usize, s.round);
    s.time_each(s.scale.sync_ops, |_| {
        file.write_all(&buf)?;
        file.sync_all()
    })
}

/// 4 KiB anywhere in the large file, then fsync, each.
pub fn overwrite_fsync(s: &Stage) -> io::Result<Sample> {
    let file = OpenOptions::new().write(true).open(large(s))?;
    let (mut rng, buf) = (rng(s, 3), block(PAGE as usize, s.round + 1));
    s.time_each(s.scale.sync_ops, |_| {
        file.write_all_at(&buf, rng.below(s.scale.file_bytes / PAGE) * PAGE)?;
        file.sync_all()
    })
}

/// A shared mapping of a whole file.
struct Map {
    at: *mut u8,
    len: usize,
}

impl Map {
    fn new(file: &File, len: u64) -> io::Result<Map> {
        let (len, rw) = (len as usize, libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: a new mapping of an open file, at a place of the kernel's choice.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, rw, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Map { at: at.cast(), len }) }
    }

    fn store(&self, at: u64, value: u8) {
        assert!((at as usize) < self.len);
        // SAFETY: within the mapping; nobody else uses the file. Volatile: it is to happen.
        unsafe { self.at.add(at as usize).write_volatile(value) };
    }

    fn load(&self, at: u64) -> u8 {
        assert!((at as usize) < self.len);
        // SAFETY: as above.
        unsafe { self.at.add(at as usize).read_volatile() }
    }

    fn sync(&self) -> io::Result<()> {
        // SAFETY: the whole mapping.
        if unsafe { libc::msync(self.at.cast(), self.len, libc::MS_SYNC) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the whole mapping, which nothing refers to any more.
        unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}

/// A byte in random pages of a mapped file, and one msync.
pub fn mmap_write(s: &Stage) -> io::Result<Sample> {
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(mapped(s))?;
    let block = block(MIB, s.round);
    for _ in 0..s.scale.map_bytes / MIB as u64 {
        file.write_all(&block)?;
    }
    file.sync_all()?;
    let (map, mut rng) = (Map::new(&file, s.scale.map_bytes)?, rng(s, 4));
    s.time(s.scale.random_ops, 0, || {
        for n in 0..s.scale.random_ops {
            map.store(rng.below(s.scale.map_bytes), n as u8);
        }
        map.sync()
    })
}

/// A byte of each page of a mapped file, in sequence.
pub fn mmap_read(s: &Stage) -> io::Result<Sample> {
    let file = OpenOptions::new().read(true).write(true).open(mapped(s))?;
    let map = Map::new(&file, s.scale.map_bytes)?;
    s.time(s.scale.map_bytes / PAGE, s.scale.map_bytes, || {
        let mut sum = 0u64;
        for page in 0..s.scale.map_bytes / PAGE {
            sum += u64::from(map.load(page * PAGE));
        }
        std::hint::black_box(sum);
        Ok(())
    })
}
