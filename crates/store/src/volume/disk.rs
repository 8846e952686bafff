//! A flat run of bytes that can be read, written and flushed: a block device, an image file, or the simulator's.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::PAGE;

/// What a raw volume needs of the world.
pub trait Disk: Send + Sync {
    /// What users call it.
    fn name(&self) -> String;
    /// As [`super::Volume::hint`].
    fn hint(&self) -> Vec<u8> {
        self.name().into_bytes()
    }
    /// Its size in bytes.
    fn len(&self) -> std::io::Result<u64>;
    /// How many of them there is no room for: those of a file with holes, on a disk that has less left.
    fn missing(&self) -> std::io::Result<u64> {
        Ok(0)
    }
    /// Has room made for these bytes where there may be none yet, so that writing them can't fail for want of it.
    fn take(&self, _offset: u64, _len: u64) -> std::io::Result<()> {
        Ok(())
    }
    /// Whether it has no bytes.
    fn is_empty(&self) -> std::io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Fills `buf` from `offset`.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()>;
    /// As [`super::Region::read_new`].
    fn read_new(&self, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.read_at(&mut bytes, offset)?;
        Ok(bytes)
    }
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<()>;
    /// Makes what was written durable.
    fn flush(&self) -> std::io::Result<()>;
    /// As [`super::Region::write_back`].
    fn write_back(&self, _offset: u64, _len: u64) {}
    /// As [`super::Region::read_fresh`].
    fn read_fresh(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.drop_cached(offset, buf.len() as u64);
        self.read_at(buf, offset)
    }
    /// Hints that these bytes will be read soon.
    fn will_need(&self, _offset: u64, _len: u64) {}
    /// As [`super::Region::drop_cached`].
    fn drop_cached(&self, _offset: u64, _len: u64) {}
    /// Hints that these bytes hold nothing.
    fn discard(&self, _offset: u64, _len: u64) {}
    /// Overwrites whatever these bytes hold.
    fn wipe(&self, offset: u64, len: u64) -> std::io::Result<()> {
        super::wipe(len, |zeroes, at| self.write_at(zeroes, offset + at))
    }
    /// As [`super::Region::gains_from_zeroes_ahead`].
    fn gains_from_zeroes_ahead(&self) -> bool {
        false
    }
    /// Whether regions go to the end of where there is room: in the simulator, so that something is there.
    fn fills_from_the_end(&self) -> bool {
        false
    }
    /// Whether it can be made longer and shorter.
    fn can_resize(&self) -> bool {
        false
    }
    /// Makes it so long; durable after a flush.
    fn set_len(&self, _len: u64) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
    /// Bytes of the longest piece that a region may have: the simulator scatters what elsewhere seldom is.
    fn piece_max(&self) -> u64 {
        u64::MAX
    }
}

/// A block device or image file.
pub struct FileDisk {
    file: File,
    direct: Direct,
    path: PathBuf,
    is_device: bool,
}

impl FileDisk {
    /// Opens an existing device or file; `write` false opens it for reading only.
    pub fn open(path: &Path, write: bool) -> std::io::Result<FileDisk> {
        let file = OpenOptions::new().read(true).write(write).open(path)?;
        let is_device = file.metadata()?.file_type().is_block_device();
        Ok(FileDisk { file, direct: Direct::default(), path: path.to_owned(), is_device })
    }

    /// The open file, for locks.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Disk for FileDisk {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn hint(&self) -> Vec<u8> {
        self.path.as_os_str().as_encoded_bytes().to_vec()
    }

    fn len(&self) -> std::io::Result<u64> {
        use std::io::{Seek, SeekFrom};
        (&self.file).seek(SeekFrom::End(0))
    }

    fn missing(&self) -> std::io::Result<u64> {
        let holes = self.len()?.saturating_sub(self.file.metadata()?.blocks() * 512);
        Ok(if self.is_device || holes == 0 { 0 } else { holes.saturating_sub(left(&self.file)?) })
    }

    fn take(&self, offset: u64, len: u64) -> std::io::Result<()> {
        if self.is_device { Ok(()) } else { take(&self.file, offset, len) }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn read_new(&self, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
        let bytes = read_new(&self.file, offset, len)?;
        if bytes.len() < len {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(bytes)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn flush(&self) -> std::io::Result<()> {
        self.file.sync_data()
    }

    fn write_back(&self, offset: u64, len: u64) {
        write_back(&self.file, offset, len);
    }

    fn read_fresh(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        match self.direct.read(&self.file, buf, offset)? {
            n if n == buf.len() => Ok(()),
            _ => Err(std::io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn will_need(&self, offset: u64, len: u64) {
        will_need(&self.file, offset, len);
    }

    fn drop_cached(&self, offset: u64, len: u64) {
        drop_cached(&self.file, offset, len);
    }

    fn gains_from_zeroes_ahead(&self) -> bool {
        !self.is_device
    }

    fn can_resize(&self) -> bool {
        !self.is_device
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.file.set_len(len)
    }

    fn wipe(&self, offset: u64, len: u64) -> std::io::Result<()> {
        if self.is_device {
            return super::wipe(len, |zeroes, at| self.write_at(zeroes, offset + at));
        }
        // A hole holds nothing, and stays one.
        let end = offset + len;
        let mut at = offset;
        while let Some((from, to)) = next_data(&self.file, at)?.filter(|(from, _)| *from < end) {
            at = to.min(end);
            super::wipe(at - from, |zeroes, within| self.write_at(zeroes, from + within))?;
        }
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) {
        if !self.is_device {
            // A sparse image gives its space back to the filesystem that holds it; only a hint, so failure is fine.
            punch(&self.file, offset, len);
        }
    }
}

/// Some bytes of a disk, as one.
pub struct Part {
    disk: Arc<dyn Disk>,
    bytes: Range<u64>,
}

impl Part {
    /// These bytes of it.
    pub fn new(disk: Arc<dyn Disk>, bytes: Range<u64>) -> Part {
        Part { disk, bytes }
    }

    /// Where on the disk something is.
    fn at(&self, offset: u64, len: usize) -> std::io::Result<u64> {
        let end = offset.checked_add(len as u64).filter(|end| *end <= self.bytes.end - self.bytes.start);
        end.map(|_| self.bytes.start + offset).ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
    }
}

impl Disk for Part {
    fn name(&self) -> String {
        self.disk.name()
    }

    fn hint(&self) -> Vec<u8> {
        self.disk.hint()
    }

    fn len(&self) -> std::io::Result<u64> {
        Ok(self.bytes.end - self.bytes.start)
    }

    fn missing(&self) -> std::io::Result<u64> {
        self.disk.missing()
    }

    fn take(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.disk.take(self.at(offset, len as usize)?, len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.disk.read_at(buf, self.at(offset, buf.len())?)
    }

    fn read_new(&self, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
        self.disk.read_new(self.at(offset, len)?, len)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        self.disk.write_at(bytes, self.at(offset, bytes.len())?)
    }

    fn flush(&self) -> std::io::Result<()> {
        self.disk.flush()
    }

    fn write_back(&self, offset: u64, len: u64) {
        self.disk.write_back(self.bytes.start + offset, len);
    }

    fn read_fresh(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.disk.read_fresh(buf, self.at(offset, buf.len())?)
    }

    fn will_need(&self, offset: u64, len: u64) {
        self.disk.will_need(self.bytes.start + offset, len);
    }

    fn drop_cached(&self, offset: u64, len: u64) {
        self.disk.drop_cached(self.bytes.start + offset, len);
    }

    fn discard(&self, offset: u64, len: u64) {
        self.disk.discard(self.bytes.start + offset, len);
    }

    fn wipe(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.disk.wipe(self.at(offset, len as usize)?, len)
    }

    fn gains_from_zeroes_ahead(&self) -> bool {
        self.disk.gains_from_zeroes_ahead()
    }
}

/// The same file opened once more, for reading past the kernel's cache, where its filesystem can do that.
#[derive(Default)]
pub(super) struct Direct(OnceLock<Option<File>>);

impl Direct {
    /// Reads up to the end of the file; returns how many bytes.
    pub fn read(&self, file: &File, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let aligned = buf.as_ptr().addr().is_multiple_of(PAGE) && offset.is_multiple_of(PAGE as u64);
        let direct = self.0.get_or_init(|| open_direct(file)).as_ref().filter(|_| aligned);
        let mut done = 0;
        if let Some(direct) = direct {
            let whole = buf.len() - buf.len() % PAGE;
            // (What it refuses is read the other way, and so is what is left behind whole pages.)
            while done < whole && done.is_multiple_of(PAGE) {
                match direct.read_at(&mut buf[done..whole], offset + done as u64) {
                    Ok(n) if n > 0 => done += n,
                    _ => break,
                }
            }
        }
        if done < buf.len() {
            drop_cached(file, offset + done as u64, (buf.len() - done) as u64);
        }
        while done < buf.len() {
            match file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }
}

fn open_direct(file: &File) -> Option<File> {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;
    // (Not by its path: it may be another's by now.)
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).ok()
}

/// Reads up to the end of the file, into memory that is made no zeroes first.
pub(super) fn read_new(file: &File, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
    use std::os::fd::AsRawFd;
    let mut bytes: Vec<u8> = Vec::with_capacity(len);
    while bytes.len() < len {
        let (rest, at) = (len - bytes.len(), offset + bytes.len() as u64);
        let room = bytes.spare_capacity_mut();
        // SAFETY: the kernel writes no more than `rest` bytes, and there is room for them.
        match unsafe { libc::pread(file.as_raw_fd(), room.as_mut_ptr().cast(), rest, at as i64) } {
            0 => break,
            // SAFETY: so many bytes behind the others were just written.
            n if n > 0 => unsafe { bytes.set_len(bytes.len() + n as usize) },
            _ => match std::io::Error::last_os_error() {
                e if e.kind() == std::io::ErrorKind::Interrupted => {}
                e => return Err(e),
            },
        }
    }
    Ok(bytes)
}

/// Bytes that are left of the disk that a file is on.
pub(super) fn left(file: &File) -> std::io::Result<u64> {
    use std::os::fd::AsRawFd;
    // SAFETY: zeroes are a valid statvfs; the call fills it.
    let mut st: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, the pointer valid for the call.
    match unsafe { libc::fstatvfs(file.as_raw_fd(), &mut st) } {
        0 => Ok(st.f_bavail * st.f_frsize),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Has the file's disk set room apart for these bytes.
pub(super) fn take(file: &File, offset: u64, len: u64) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: a plain system call on an open descriptor.
    match unsafe { libc::fallocate(file.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, offset as i64, len as i64) } {
        0 => Ok(()),
        _ => match std::io::Error::last_os_error() {
            // Filesystems without preallocation: space shows as missing when it is written.
            e if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) => Ok(()),
            e => Err(e),
        },
    }
}

pub(super) fn is_full(e: &std::io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

/// Has the kernel begin to write.
pub(super) fn write_back(file: &File, offset: u64, len: u64) {
    use std::os::fd::AsRawFd;
    // SAFETY: a plain system call on an open descriptor. (Only a hint: whoever flushes is told of failure.)
    unsafe {
        libc::sync_file_range(file.as_raw_fd(), offset as i64, len as i64, libc::SYNC_FILE_RANGE_WRITE);
    }
}

/// Asks the kernel to read ahead.
pub(super) fn will_need(file: &File, offset: u64, len: u64) {
    advise(file, offset, len, libc::POSIX_FADV_WILLNEED);
}

/// Asks the kernel to forget what it has read; what is not written yet stays.
pub(super) fn drop_cached(file: &File, offset: u64, len: u64) {
    advise(file, offset, len, libc::POSIX_FADV_DONTNEED);
}

fn advise(file: &File, offset: u64, len: u64, advice: i32) {
    use std::os::fd::AsRawFd;
    // To the kernel, no length is all there is.
    if len == 0 {
        return;
    }
    // SAFETY: a plain system call on an open descriptor.
    unsafe {
        libc::posix_fadvise(file.as_raw_fd(), offset as i64, len as i64, advice);
    }
}

/// The first run of bytes from `at` on that the file has blocks for.
fn next_data(file: &File, at: u64) -> std::io::Result<Option<(u64, u64)>> {
    use std::os::fd::AsRawFd;
    let seek = |at: i64, whence| {
        // SAFETY: a plain system call on an open descriptor, whose position nobody uses.
        match unsafe { libc::lseek(file.as_raw_fd(), at, whence) } {
            -1 => Err(std::io::Error::last_os_error()),
            found => Ok(found),
        }
    };
    let from = match seek(at as i64, libc::SEEK_DATA) {
        Err(e) if e.raw_os_error() == Some(libc::ENXIO) => return Ok(None),
        found => found?,
    };
    Ok(Some((from as u64, seek(from, libc::SEEK_HOLE)? as u64)))
}

fn punch(file: &File, offset: u64, len: u64) {
    use std::os::fd::AsRawFd;
    // SAFETY: a plain system call on an open descriptor.
    unsafe {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        libc::fallocate(file.as_raw_fd(), mode, offset as i64, len as i64);
    }
}
