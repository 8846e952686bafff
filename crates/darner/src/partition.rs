//! A partition table of our own: GPT, with one partition of a type that says what it is, so that nobody takes a device with a store
//! for an empty one.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use gpt::GptConfig;
use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::partition_types::{OperatingSystem, Type};

use crate::error::{Context, Failure, Result};

/// What partitions with a volume have as their type.
pub const TYPE: &str = "4441524e-4552-4d8e-9b1d-6f1c2a5e7d03";
/// As it is on disk: of the first three fields the bytes are the other way round.
const TYPE_BYTES: [u8; 16] =
    [0x4e, 0x52, 0x41, 0x44, 0x52, 0x45, 0x8e, 0x4d, 0x9b, 0x1d, 0x6f, 0x1c, 0x2a, 0x5e, 0x7d, 0x03];
/// Entries of a table that are looked at; usually there are 128.
const ENTRIES_MAX: usize = 1024;
/// The partition begins and ends at multiples of so many bytes.
const ALIGNMENT: u64 = 1 << 20;
/// Have the kernel look at the partition table anew; ask for the bytes of a sector.
const BLKRRPART: libc::Ioctl = 0x125f;
const BLKSSZGET: libc::Ioctl = 0x1268;
/// How long the kernel and udev may take to make the partition's node.
const NODE_WAIT: Duration = Duration::from_secs(3);

/// Writes a table with one partition to a device or image file; what was there is lost. `claim`: of the device.
pub fn make(path: &Path, claim: Option<&File>) -> Result<()> {
    let meta = fs::metadata(path).cant(|| format!("look at {}", path.display()))?;
    let is_device = meta.file_type().is_block_device();
    if !is_device && !meta.is_file() {
        return Err(Failure::new(format!("{}: only a device or an image file has partitions", path.display())));
    }
    let file = OpenOptions::new().read(true).write(true).open(path);
    let mut file = file.cant(|| format!("open {}", path.display()))?;
    let len = file.seek(SeekFrom::End(0)).cant(|| format!("look at {}", path.display()))?;
    let (sector, size) = sector(&file, is_device)?;
    let bytes = ALIGNMENT..(len / ALIGNMENT * ALIGNMENT).saturating_sub(ALIGNMENT);
    if bytes.is_empty() {
        return Err(Failure::new(format!("{} has {len} bytes: too few for a partition", path.display())));
    }
    let cant = || format!("write a partition table to {}", path.display());
    let mbr = ProtectiveMBR::with_lb_size(u32::try_from(len / size - 1).unwrap_or(u32::MAX));
    mbr.overwrite_lba0(&mut file).cant(cant)?;
    let config = GptConfig::new().writable(true).logical_block_size(sector);
    let mut table = config.create_from_device(file, None).cant(cant)?;
    let count = (bytes.end - bytes.start) / size;
    table.add_partition_at("darner", 1, bytes.start / size, count, kind(), 0).cant(cant)?;
    let file = table.write().cant(cant)?;
    file.sync_all().cant(cant)?;
    // (The kernel lets nobody else do that.)
    if is_device { tell_kernel(claim.unwrap_or(&file), path, bytes.start) } else { Ok(()) }
}

fn kind() -> Type {
    Type { guid: TYPE.parse().expect("it is a GUID"), os: OperatingSystem::Custom("Darner".into()) }
}

/// The size of a device's sectors; of an image file, what most devices have.
fn sector(file: &File, is_device: bool) -> Result<(LogicalBlockSize, u64)> {
    let mut size: libc::c_int = 512;
    // SAFETY: the kernel writes an int to where the pointer leads.
    if is_device && unsafe { libc::ioctl(file.as_raw_fd(), BLKSSZGET, &raw mut size) } != 0 {
        return Err(std::io::Error::last_os_error()).cant(|| "ask for the size of sectors".into());
    }
    match size {
        4096 => Ok((LogicalBlockSize::Lb4096, 4096)),
        _ => Ok((LogicalBlockSize::Lb512, 512)),
    }
}

fn tell_kernel(file: &File, path: &Path, start: u64) -> Result<()> {
    // SAFETY: a plain system call on an open descriptor.
    if unsafe { libc::ioctl(file.as_raw_fd(), BLKRRPART) } != 0 {
        let e = std::io::Error::last_os_error();
        // Of a loop device, for instance, that is not to have partitions: then the store knows where its bytes are.
        return match e.raw_os_error() {
            Some(libc::EINVAL) => Ok(()),
            _ => Err(e).cant(|| format!("have the kernel find the partition on {}", path.display())),
        };
    }
    let begun = Instant::now();
    while node(path, start).is_none_or(|node| !node.exists()) && begun.elapsed() < NODE_WAIT {
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Where on a device or image file our partition is, if it has one.
///
/// (Not by the crate that wrote it: that panics on tables that make no sense.)
pub fn find(path: &Path) -> Option<Range<u64>> {
    let file = File::open(path).ok()?;
    let is_device = file.metadata().ok()?.file_type().is_block_device();
    let (_, size) = sector(&file, is_device).ok()?;
    let len = (&file).seek(SeekFrom::End(0)).ok()?;
    // (Most have none: no more is read of those.)
    let headers = [size, (len / size).checked_sub(1)? * size];
    let bytes = headers.into_iter().find_map(|at| ours(&file, at, size))?;
    // (What lost its end has what is left of it.)
    (!bytes.is_empty() && bytes.start < len).then(|| bytes.start..bytes.end.min(len))
}

/// The partition of our type in the table whose header is at this byte.
fn ours(file: &File, at: u64, sector: u64) -> Option<Range<u64>> {
    let mut header = [0; 512];
    file.read_exact_at(&mut header, at).ok()?;
    let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
    let long = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    if !header.starts_with(b"EFI PART") {
        return None;
    }
    let (crc, n) = (number(16), number(12) as usize);
    let (count, entry_len, table) = (number(80) as usize, number(84) as usize, long(&header, 72));
    header[16..20].fill(0);
    if crc32fast::hash(header.get(..n)?) != crc || count > ENTRIES_MAX || !(128..=4096).contains(&entry_len) {
        return None;
    }
    let mut entries = vec![0; count * entry_len];
    file.read_exact_at(&mut entries, table.checked_mul(sector)?).ok()?;
    let entry = entries.chunks(entry_len).find(|entry| entry.starts_with(&TYPE_BYTES))?;
    let end = long(entry, 40).checked_add(1)?.checked_mul(sector)?;
    Some(long(entry, 32).checked_mul(sector)?..end)
}

/// Where sysfs tells of a device.
pub fn sys(device: &Metadata) -> PathBuf {
    let number = device.rdev();
    format!("/sys/dev/block/{}:{}", libc::major(number), libc::minor(number)).into()
}

/// The device that the kernel has for a device's partition which begins there.
pub fn node(device: &Path, start: u64) -> Option<PathBuf> {
    let sys = sys(&fs::metadata(device).ok()?);
    let is_it = |dir: &PathBuf| {
        let first = fs::read_to_string(dir.join("start")).ok().and_then(|s| s.trim().parse::<u64>().ok());
        dir.join("partition").exists() && first == Some(start / 512)
    };
    let found = fs::read_dir(sys).ok()?.filter_map(|e| Some(e.ok()?.path())).find(is_it)?;
    Some(Path::new("/dev").join(found.file_name()?)).filter(|node| node.exists())
}

/// The file behind a loop device, or behind a partition of one.
pub fn behind(device: &Path) -> Option<PathBuf> {
    let sys = sys(&fs::metadata(device).ok().filter(|meta| meta.file_type().is_block_device())?);
    let told = ["loop", "../loop"].iter().find_map(|dir| fs::read(sys.join(dir).join("backing_file")).ok())?;
    Some(PathBuf::from(OsStr::from_bytes(told.trim_ascii_end())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bytes_of_a_partition_table_make_looking_at_it_panic() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        File::create(&path).unwrap().set_len(8 << 20).unwrap();
        assert_eq!(find(&path), None);
        make(&path, None).unwrap();
        assert_eq!(find(&path), Some(1 << 20..7 << 20));
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let mut good = vec![0; 4096];
        file.read_exact_at(&mut good, 0).unwrap();
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..2000 {
            let mut bytes = good.clone();
            for _ in 0..rng.usize(1..6) {
                bytes[rng.usize(512..1200)] = rng.u8(..);
            }
            // As if it had been meant.
            let n = u32::from_le_bytes(bytes[524..528].try_into().unwrap()).min(512) as usize;
            bytes[528..532].fill(0);
            let crc = crc32fast::hash(&bytes[512..512 + n]);
            bytes[528..532].copy_from_slice(&crc.to_le_bytes());
            file.write_all_at(&bytes, 0).unwrap();
            let _ = find(&path);
        }
        file.write_all_at(&good, 0).unwrap();
        file.set_len(5 << 20).unwrap();
        assert_eq!(find(&path), Some(1 << 20..5 << 20));
        file.set_len(1 << 20).unwrap();
        assert_eq!(find(&path), None);
        file.set_len(8 << 20).unwrap();
        make(&path, None).unwrap();
        // The copy at the end is as good.
        file.write_all_at(&[0; 4096], 0).unwrap();
        assert_eq!(find(&path), Some(1 << 20..7 << 20));
    }
}
