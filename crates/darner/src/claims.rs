//! What besides its lock keeps others from a volume's bytes, by whichever way they come to them.
//!
//! A block device is opened with `O_EXCL`: so the kernel keeps it from mkfs, from mounts, and from stores by another node, on a partition of it or on the disk that
//! it is part of. Of an image file, and of the file behind a loop device, the volume's bytes are locked. Both belong to the open
//! file, as does the lock: they are handed on with it from daemon to daemon.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::Failure;
use crate::partition;
use crate::place::{devices, file_id, holder};
use crate::{mounts, users};

/// For how long a claim that was given up may be others' yet: of those who keep it for us, and of processes that are being started.
pub const LINGERS: Duration = Duration::from_secs(2);

/// What is claimed of a volume.
#[derive(Default)]
pub struct Claims {
    /// Of a device: the device.
    pub device: Option<File>,
    /// The file in which bytes are locked.
    pub file: Option<File>,
}

impl Claims {
    /// Claims what is at a path, a device only to write, as far as it is not claimed yet; what can't be claimed is done without.
    /// `false`: somebody else has it.
    pub fn complete(&mut self, path: &Path, write: bool) -> bool {
        if self.device.is_none() && write && is_device(path) {
            match open_device(path) {
                Err(e) if is_busy(&e) => return false,
                opened => self.device = opened.ok(),
            }
        }
        let bytes = if self.file.is_none() { Bytes::at(path) } else { None };
        let Some((range, file)) = bytes.and_then(|b| Some((b.range, b.file?))) else { return true };
        let Ok(file) = File::options().read(true).write(write).open(file) else { return true };
        match lock(&file, if write { libc::F_WRLCK } else { libc::F_RDLCK }, &range) {
            Err(e) if is_taken(&e) => return false,
            locked => self.file = locked.ok().map(|()| file),
        }
        true
    }

    /// Ends them as far as can be before all who have the descriptors have closed them.
    pub fn end(&mut self) {
        if let Some(file) = self.file.take() {
            let _ = lock(&file, libc::F_UNLCK, &(0..u64::MAX));
        }
        self.device = None;
    }
}

/// Opens a device so that nobody else can.
pub fn open_device(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_EXCL).open(path)
}

/// Returns when somebody else can claim a device that was claimed, unless that takes too long.
pub fn wait_until_free(path: &Path) {
    let began = Instant::now();
    while is_device(path) && open_device(path).is_err_and(|e| is_busy(&e)) && began.elapsed() < LINGERS {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a block device is there.
pub fn is_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device())
}

/// Whether an error is that somebody else has claimed a device.
pub fn is_busy(e: &io::Error) -> bool {
    e.raw_os_error() == Some(libc::EBUSY)
}

fn is_taken(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES))
}

/// Locks bytes for the open file, or unlocks them.
fn lock(file: &File, how: libc::c_int, bytes: &Range<u64>) -> io::Result<()> {
    // SAFETY: zeroes are a valid flock.
    let mut wanted: libc::flock = unsafe { std::mem::zeroed() };
    wanted.l_type = how as libc::c_short;
    wanted.l_whence = libc::SEEK_SET as libc::c_short;
    wanted.l_start = bytes.start as i64;
    // (To the kernel, no length is all there may ever be.)
    wanted.l_len = i64::try_from(bytes.end).map_or(0, |end| end - bytes.start as i64);
    // SAFETY: a plain system call on an open descriptor; the structure is valid.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const wanted) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Where the bytes of a device or file are in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bytes {
    /// Which disk or file.
    of: (u64, u64),
    range: Range<u64>,
    /// The path of it, where its bytes can be reached in several ways of which the kernel knows nothing.
    file: Option<PathBuf>,
}

impl Bytes {
    fn at(path: &Path) -> Option<Bytes> {
        let meta = fs::metadata(path).ok()?;
        let whole = |of| Bytes { of, range: 0..u64::MAX, file: None };
        if meta.is_file() {
            return Some(Bytes { file: Some(path.into()), ..whole(file_id(&meta)) });
        }
        if !meta.file_type().is_block_device() {
            return None;
        }
        let sys = fs::canonicalize(partition::sys(&meta)).ok()?;
        let sectors = |name| Some(fs::read_to_string(sys.join(name)).ok()?.trim().parse::<u64>().ok()? * 512);
        let (disk, within) = match sys.join("partition").exists() {
            true => (sys.parent()?, sectors("start")?..sectors("start")? + sectors("size")?),
            false => (&*sys, 0..u64::MAX),
        };
        let node = Path::new("/dev").join(disk.file_name()?);
        let disk = match partition::behind(&node).and_then(|file| looped(&node, &file)) {
            Some(bytes) => bytes,
            None => whole(file_id(&fs::metadata(node).ok()?)),
        };
        Some(Bytes { range: part(&disk.range, &within), ..disk })
    }

    fn has_some_of(&self, other: &Bytes) -> bool {
        self.of == other.of && self.range.start < other.range.end && other.range.start < self.range.end
    }
}

/// What a loop device shows of the file behind it, if that is what is at its path.
fn looped(device: &Path, file: &Path) -> Option<Bytes> {
    /// `struct loop_info64`: device and inode of the file are first, then (behind one more) offset and length.
    type Info = [u64; 29];
    const LOOP_GET_STATUS64: libc::Ioctl = 0x4c05;
    let mut info: Info = [0; 29];
    let open = File::open(device).ok()?;
    // SAFETY: the kernel fills the structure, which has the length it is to have.
    if unsafe { libc::ioctl(open.as_raw_fd(), LOOP_GET_STATUS64, info.as_mut_ptr()) } != 0 {
        return None;
    }
    let meta = fs::metadata(file).ok().filter(|meta| (meta.dev(), meta.ino()) == (info[0], info[1]))?;
    let bytes = Bytes::at(file)?;
    let end = if info[4] == 0 { u64::MAX } else { info[3].saturating_add(info[4]) };
    let reached = if meta.is_file() { bytes.file } else { Some(bytes.file.unwrap_or_else(|| file.into())) };
    Some(Bytes { range: part(&bytes.range, &(info[3]..end)), file: reached, of: bytes.of })
}

fn part(whole: &Range<u64>, within: &Range<u64>) -> Range<u64> {
    let at = |offset: u64| whole.start.saturating_add(offset).min(whole.end);
    at(within.start)..at(within.end)
}

/// Why what is at a path can't be claimed.
pub enum Use {
    /// A process has it open as a volume: for people, who, and by which other path.
    Open(String),
    /// Something else is done with it, or a part of it, for people.
    Other(String),
}

/// What is told of what somebody has for themselves, of whom nothing else is known.
pub const ITSELF: &str = "something else has it, or a part of it, for itself";

/// What is told of what can't be taken.
pub fn in_use(path: &Path, why: &str) -> Failure {
    Failure::new(format!("{} is in use: {why}", path.display()))
}

/// Who else has bytes of what is at a path, as far as that is known.
pub fn used(path: &Path) -> Option<Use> {
    let wanted = Bytes::at(path)?;
    let ways = wanted.file.iter().cloned().chain(devices()).filter(|way| way != path);
    let others: Vec<PathBuf> =
        ways.filter(|way| Bytes::at(way).is_some_and(|bytes| bytes.has_some_of(&wanted))).collect();
    let open = |way: &PathBuf| Some(format!("{}, as {}", holder(&fs::metadata(way).ok()?)?, way.display()));
    if let Some(who) = others.iter().find_map(open) {
        return Some(Use::Open(who));
    }
    let own = std::iter::once(path).filter(|path| is_device(path));
    own.chain(others.iter().map(PathBuf::as_path)).find_map(kernel_uses).map(Use::Other)
}

/// What the kernel does with a device, for people.
fn kernel_uses(device: &Path) -> Option<String> {
    let meta = fs::metadata(device).ok().filter(|meta| meta.file_type().is_block_device())?;
    let number = format!("{}:{}", libc::major(meta.rdev()), libc::minor(meta.rdev()));
    let is_it = |path: &Path| fs::metadata(path).is_ok_and(|there| file_id(&there) == file_id(&meta));
    let device = device.display();
    // (Some filesystems have a number of their own.)
    let mounted = mounts::all().ok()?.into_iter().find(|m| {
        m.device == number || m.source.starts_with("/dev") && !m.kind.starts_with("fuse") && is_it(&m.source)
    });
    let mounted = mounted.map(|m| format!("{device} is mounted on {}", m.mountpoint.display()));
    let swaps = || users::swaps().into_iter().any(|file| is_it(&file)).then(|| format!("{device} is for swapping"));
    let holders = || fs::read_dir(partition::sys(&meta).join("holders")).ok()?.flatten().next();
    mounted.or_else(swaps).or_else(|| {
        let by = holders()?.file_name();
        Some(format!("{device} is part of /dev/{}", Path::new(&by).display()))
    })
}
