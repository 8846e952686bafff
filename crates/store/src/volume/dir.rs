//! A directory volume: every region is a file. The embedded default. docs/format.md §Directory volume.
//!
//! `super.0`, `super.1` are the superblock slots, `region-<16 hex digits>` the regions. `held` takes room that regions get when other files
//! have filled the disk, so that what gives room back has some to begin with. What root makes belongs to the directory's owner, who
//! may be the one that opens it next.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::disk::{self, Direct};
use super::{Region, RegionRef, SLOT_SIZE, SUPER_SIZE, Volume, VolumeKind};
use crate::{Error, Result};

const HELD: &str = "held";

/// A volume in a directory of some other filesystem.
pub struct DirVolume {
    path: PathBuf,
    write: bool,
    number: AtomicU16,
    /// The bytes that each region has here, and their sum. (Of one with two copies, others are told the larger size.)
    sizes: Mutex<HashMap<u64, u64>>,
    used: AtomicU64,
    /// The bytes that `held` has.
    held: Mutex<u64>,
    /// It is no volume, or there is nothing like that here: nothing is held.
    holds_nothing: AtomicBool,
}

/// Of what is left, what is held is one part in so many at most.
const LEFT_FOR_OTHERS: u64 = 4;
/// It grows by so many bytes.
const HOLD_STEP: u64 = 1 << 20;

impl DirVolume {
    /// The volume in an existing directory.
    pub fn open(path: &Path, write: bool) -> DirVolume {
        DirVolume {
            path: path.to_owned(),
            write,
            number: AtomicU16::new(0),
            sizes: Mutex::default(),
            used: AtomicU64::new(0),
            held: Mutex::new(fs::metadata(path.join(HELD)).map_or(0, |held| held.len())),
            holds_nothing: AtomicBool::new(!write),
        }
    }

    /// Bytes that are left of the disk that it is on.
    fn left(&self) -> Result<u64> {
        let path = std::ffi::CString::new(self.path.as_os_str().as_encoded_bytes()).expect("paths have no NUL");
        // SAFETY: zeroes are a valid statvfs; the call fills it.
        let mut st: libc::statvfs = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are valid for the call.
        if unsafe { libc::statvfs(path.as_ptr(), &mut st) } != 0 {
            return io("statfs", &self.path, Err(std::io::Error::last_os_error()));
        }
        Ok(st.f_bavail * st.f_frsize)
    }

    /// Gives up so many held bytes; says whether there were any.
    fn let_go(&self, bytes: u64) -> bool {
        let mut held = self.held.lock();
        if *held == 0 {
            return false;
        }
        let path = self.path.join(HELD);
        *held = held.saturating_sub(bytes);
        let done = OpenOptions::new().write(true).open(&path).and_then(|f| f.set_len(*held));
        if *held == 0 {
            let _ = fs::remove_file(&path);
        }
        tracing::info!(left = *held, "{} is full: room that was held is used", self.path.display());
        done.is_ok()
    }

    /// Opens a file, which is made if it is not there.
    fn make(&self, path: &Path) -> std::io::Result<File> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
        let file = match file {
            // (Not made here, it may be a link to anything: it stays whose it is.)
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                return OpenOptions::new().read(true).write(true).open(path);
            }
            file => file?,
        };
        let dir = fs::metadata(&self.path)?;
        if file.metadata()?.uid() != dir.uid() {
            // Others than root can't, and need not.
            let _ = fchown(&file, Some(dir.uid()), Some(dir.gid()));
        }
        Ok(file)
    }

    fn file_path(&self, id: u64) -> PathBuf {
        self.path.join(format!("region-{id:016x}"))
    }

    /// The regions' numbers and files.
    fn files(&self) -> Result<Vec<(u64, fs::DirEntry)>> {
        let mut all = Vec::new();
        for entry in io("list", &self.path, fs::read_dir(&self.path))? {
            let entry = io("list", &self.path, entry)?;
            let name = entry.file_name();
            let id = name.to_str().and_then(|n| u64::from_str_radix(n.strip_prefix("region-")?, 16).ok());
            all.extend(id.map(|id| (id, entry)));
        }
        Ok(all)
    }

    /// Takes note of what a region has now; 0: nothing.
    fn note_size(&self, id: u64, size: u64) {
        let mut sizes = self.sizes.lock();
        let had = if size == 0 { sizes.remove(&id) } else { sizes.insert(id, size) };
        let used = self.used.load(Ordering::Relaxed) + size - had.unwrap_or(0);
        self.used.store(used, Ordering::Relaxed);
    }

    fn sync_dir(&self) -> Result<()> {
        let r = File::open(&self.path).and_then(|d| d.sync_all());
        io("flush", &self.path, r)
    }
}

fn wipe_file(path: &Path) -> std::io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    super::wipe(file.metadata()?.len(), |zeroes, at| file.write_all_at(zeroes, at))?;
    file.sync_data()
}

fn io<T>(action: &'static str, path: &Path, r: std::io::Result<T>) -> Result<T> {
    r.map_err(|e| Error::Io { place: path.display().to_string(), action, source: Arc::new(e) })
}

impl Volume for DirVolume {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn kind(&self) -> VolumeKind {
        VolumeKind::Directory
    }

    fn hint(&self) -> Vec<u8> {
        self.path.as_os_str().as_encoded_bytes().to_vec()
    }

    fn numbered(&self, number: u16) {
        self.number.store(number, Ordering::Relaxed);
    }

    fn read_super(&self, slot: usize) -> Result<Vec<u8>> {
        let path = self.path.join(format!("super.{slot}"));
        let mut bytes = match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            read => io("read", &path, read)?,
        };
        bytes.resize(SLOT_SIZE, 0);
        Ok(bytes)
    }

    fn write_super(&self, slot: usize, bytes: &[u8]) -> Result<()> {
        let path = self.path.join(format!("super.{slot}"));
        let is_new = !path.exists();
        let r = self.make(&path).and_then(|f| {
            f.write_all_at(bytes, 0)?;
            f.sync_data()
        });
        io("write", &path, r)?;
        self.holds_nothing.store(!self.write, Ordering::Relaxed);
        if is_new { self.sync_dir() } else { Ok(()) }
    }

    fn wipe_super(&self) -> Result<()> {
        self.holds_nothing.store(true, Ordering::Relaxed);
        *self.held.lock() = 0;
        for name in ["super.0", "super.1", HELD] {
            let path = self.path.join(name);
            match fs::remove_file(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                removed => io("remove", &path, removed)?,
            }
        }
        self.sync_dir()
    }

    fn create(&self, id: u64, size: u64) -> Result<Arc<dyn Region>> {
        let path = self.file_path(id);
        let file = self.make(&path).and_then(|f| f.set_len(0).map(|()| f));
        let file = io("create", &path, file)?;
        let mut taken = disk::take(&file, 0, size);
        while taken.as_ref().is_err_and(disk::is_full) && self.let_go(size) {
            taken = disk::take(&file, 0, size);
        }
        if let Err(e) = taken {
            let _ = fs::remove_file(&path);
            if disk::is_full(&e) {
                let (used, size) = self.usage(0)?;
                return Err(Error::NoSpace { used, size });
            }
            return io("create", &path, Err(e));
        }
        self.sync_dir()?;
        self.note_size(id, size);
        Ok(Arc::new(FileRegion {
            file,
            direct: Direct::default(),
            path,
            at: RegionRef { id, start: 0, size, volume: self.number.load(Ordering::Relaxed), second: None },
        }))
    }

    fn open(&self, at: RegionRef) -> Result<Arc<dyn Region>> {
        let path = self.file_path(at.id);
        let file = io("open", &path, OpenOptions::new().read(true).write(self.write).open(&path))?;
        Ok(Arc::new(FileRegion { file, direct: Direct::default(), path, at }))
    }

    fn open_emptied(&self, at: RegionRef) -> Result<Arc<dyn Region>> {
        let path = self.file_path(at.id);
        // (What is behind a file's end reads as zeroes.)
        let file = match self.write {
            true => self.make(&path),
            false => File::open("/dev/null"),
        };
        Ok(Arc::new(FileRegion { file: io("open", &path, file)?, direct: Direct::default(), path, at }))
    }

    fn shrink(&self, at: RegionRef, size: u64) -> Result<RegionRef> {
        if size < at.size {
            let path = self.file_path(at.id);
            let file = io("open", &path, OpenOptions::new().write(true).open(&path))?;
            io("shrink", &path, file.set_len(size))?;
            self.note_size(at.id, size);
        }
        Ok(RegionRef { size: size.min(at.size), ..at })
    }

    fn remove(&self, at: RegionRef) -> Result<()> {
        let path = self.file_path(at.id);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => io("remove", &path, Err(e)),
            _ => {
                self.note_size(at.id, 0);
                Ok(())
            }
        }
    }

    fn keep_only(&self, regions: &[RegionRef], wipe: bool) -> Result<()> {
        *self.sizes.lock() = regions.iter().map(|r| (r.id, r.size)).collect();
        self.used.store(regions.iter().map(|r| r.size).sum(), Ordering::Relaxed);
        if !self.write {
            return Ok(());
        }
        for (id, entry) in self.files()? {
            if regions.iter().all(|r| r.id != id) {
                if wipe {
                    io("wipe", &entry.path(), wipe_file(&entry.path()))?;
                }
                io("remove", &entry.path(), fs::remove_file(entry.path()))?;
            }
        }
        Ok(())
    }

    fn list(&self) -> Result<Option<Vec<RegionRef>>> {
        let volume = self.number.load(Ordering::Relaxed);
        let region = |(id, entry): (u64, fs::DirEntry)| {
            let size = io("look at", &entry.path(), entry.metadata())?.len();
            Ok(RegionRef { id, start: 0, size, volume, second: None })
        };
        self.files()?.into_iter().map(region).collect::<Result<_>>().map(Some)
    }

    fn usage(&self, limit: u64) -> Result<(u64, u64)> {
        let used = self.used()?;
        let most = used + self.left()? + *self.held.lock();
        Ok((used, if limit > 0 { limit.min(most) } else { most }))
    }

    fn hold(&self, bytes: u64) -> Result<()> {
        let mut held = self.held.lock();
        if *held >= bytes || self.holds_nothing.load(Ordering::Relaxed) {
            return Ok(());
        }
        // On a disk that is nearly full, a share: without any, a store that was closed when others had filled it could not be opened.
        let bytes = bytes.min((self.left()? + *held) / LEFT_FOR_OTHERS / HOLD_STEP * HOLD_STEP);
        if *held >= bytes {
            return Ok(());
        }
        let path = self.path.join(HELD);
        let file = self.make(&path);
        // SAFETY: a plain system call on an open descriptor.
        let rc = unsafe { libc::fallocate(io("create", &path, file)?.as_raw_fd(), 0, 0, bytes as i64) };
        match rc {
            0 => *held = bytes,
            _ => {
                let e = std::io::Error::last_os_error();
                tracing::debug!("nothing is held at {}: {e}", self.path.display());
                self.holds_nothing.store(true, Ordering::Relaxed);
                let _ = fs::remove_file(&path);
            }
        }
        Ok(())
    }

    fn used(&self) -> Result<u64> {
        Ok(self.used.load(Ordering::Relaxed) + 2 * SUPER_SIZE as u64)
    }

    fn pool(&self) -> Option<u64> {
        Some(fs::metadata(&self.path).ok()?.dev())
    }
}

struct FileRegion {
    file: File,
    direct: Direct,
    path: PathBuf,
    at: RegionRef,
}

impl FileRegion {
    fn io<T>(&self, action: &'static str, offset: u64, r: std::io::Result<T>) -> Result<T> {
        r.map_err(|e| Error::Io {
            place: format!("{} at byte {offset}", self.path.display()),
            action,
            source: Arc::new(e),
        })
    }
}

impl Region for FileRegion {
    fn place(&self) -> RegionRef {
        self.at
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        // A file is as long as what was written to it; the rest of its region reads as zeroes, as on a raw volume.
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return self.io("read", offset, Err(e)),
            }
        }
        buf[done..].fill(0);
        Ok(())
    }

    fn read_new(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = self.io("read", offset, disk::read_new(&self.file, offset, len))?;
        bytes.resize(len, 0);
        Ok(bytes)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.io("write", offset, self.file.write_all_at(bytes, offset))
    }

    fn flush(&self) -> Result<()> {
        self.io("flush", 0, self.file.sync_data())
    }

    fn write_back(&self, offset: u64, len: u64) {
        disk::write_back(&self.file, offset, len);
    }

    fn read_fresh(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let n = self.io("read", offset, self.direct.read(&self.file, buf, offset))?;
        buf[n..].fill(0);
        Ok(())
    }

    fn will_need(&self, offset: u64, len: u64) {
        disk::will_need(&self.file, offset, len);
    }

    fn drop_cached(&self, offset: u64, len: u64) {
        disk::drop_cached(&self.file, offset, len);
    }

    fn gains_from_zeroes_ahead(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `volume list` said that nothing was in use once everything had two copies.
    #[test]
    fn what_is_in_use_does_not_depend_on_the_size_that_others_know() {
        let dir = tempfile::tempdir().unwrap();
        let volume = DirVolume::open(dir.path(), true);
        let used = || volume.usage(1 << 40).unwrap().0 - 2 * SUPER_SIZE as u64;
        let small = volume.create(1, 100).unwrap().place();
        let large = volume.create(2, 1 << 20).unwrap().place();
        assert_eq!(used(), 100 + (1 << 20));
        // It got a second copy, for which its size was rounded up.
        volume.remove(RegionRef { size: 16 << 10, ..small }).unwrap();
        assert_eq!(used(), 1 << 20);
        volume.shrink(RegionRef { size: 2 << 20, ..large }, 1 << 19).unwrap();
        assert_eq!(used(), 1 << 19);
        volume.remove(large).unwrap();
        assert_eq!(used(), 0);
    }
    /// After one mount by root the owner could not open his store any more.
    #[test]
    fn what_root_makes_belongs_to_the_owner_of_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        if std::os::unix::fs::chown(dir.path(), Some(12_345), Some(54_321)).is_err() {
            return println!("SKIPPED: needs root");
        }
        let volume = DirVolume::open(dir.path(), true);
        volume.write_super(0, &[1; SLOT_SIZE]).unwrap();
        volume.create(1, 4096).unwrap();
        volume.hold(4096).unwrap();
        let owners =
            || fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap()).map(|m| (m.uid(), m.gid()));
        assert!(
            owners().count() >= 2 && owners().all(|owner| owner == (12_345, 54_321)),
            "{:?}",
            owners().collect::<Vec<_>>()
        );
        // What is there already stays whose it is.
        let other = dir.path().join("other");
        fs::write(&other, "").unwrap();
        std::os::unix::fs::symlink(&other, volume.file_path(2)).unwrap();
        volume.create(2, 4096).unwrap();
        assert_eq!(fs::metadata(&other).unwrap().uid(), 0);
    }
}
