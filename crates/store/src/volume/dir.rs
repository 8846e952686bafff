//! A directory volume: every region is a file. The embedded default. docs/format.md §Directory volume.
//!
//! `super.0`, `super.1` are the superblock slots, `region-<16 hex digits>` the regions. `held` takes room that regions get when other files
//! have filled the disk, and `held.0` and so on become regions where no more files can be made, so that what gives room back has some to begin with. What root makes belongs to the directory's owner, who
//! may be the one that opens it next. The directory is the one that was opened, whatever its path leads to later: another disk may be mounted
//! over it. And as its owner may have made them, symbolic links in it are not followed.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::disk::{self, Direct};
use super::held::{self, HELD, Held};
use super::{Region, RegionRef, SLOT_SIZE, SUPER_SIZE, Volume, VolumeKind};
use crate::{Error, Result};

/// A directory that is open: the one that was opened, whatever its path leads to later.
pub(super) struct Files {
    /// What users call it.
    pub path: PathBuf,
    /// Its path for as long as it is open.
    base: PathBuf,
    dir: Option<File>,
    /// Whether all files that are held are there.
    pub spares: AtomicBool,
}

impl Files {
    fn of(path: &Path) -> Files {
        // (Where it can't be opened, that shows when something in it is.)
        let dir = File::open(path).ok();
        let base = dir.as_ref().map_or_else(|| path.to_owned(), |d| format!("/proc/self/fd/{}", d.as_raw_fd()).into());
        Files { path: path.to_owned(), base, dir, spares: false.into() }
    }

    /// What system calls find a file by.
    pub fn at(&self, name: &str) -> PathBuf {
        self.base.join(name)
    }

    /// Attributes of a file.
    pub fn look(&self, name: &str) -> std::io::Result<fs::Metadata> {
        fs::symlink_metadata(self.at(name))
    }

    /// Opens a file.
    pub fn open(&self, name: &str, write: bool) -> std::io::Result<File> {
        OpenOptions::new().read(true).write(write).custom_flags(libc::O_NOFOLLOW).open(self.at(name))
    }

    /// Opens a file, which is made if it is not there, of one that is held if need be.
    pub fn make(&self, name: &str) -> std::io::Result<File> {
        match self.make_or_open(name) {
            Err(e) if disk::is_full(&e) => self.take_spare(name).ok_or(e),
            made => made,
        }
    }

    /// The same, but of none that is held.
    pub fn make_or_open(&self, name: &str) -> std::io::Result<File> {
        match self.make_new(name) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => self.open(name, true),
            made => made,
        }
    }

    /// Makes a file that is not there.
    pub fn make_new(&self, name: &str) -> std::io::Result<File> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(self.at(name))?;
        let dir = fs::metadata(&self.base)?;
        if file.metadata()?.uid() != dir.uid() {
            // Others than root can't, and need not.
            let _ = fchown(&file, Some(dir.uid()), Some(dir.gid()));
        }
        Ok(file)
    }

    /// An error that names a file.
    pub fn io<T>(&self, action: &'static str, name: &str, r: std::io::Result<T>) -> Result<T> {
        io(action, &self.path.join(name), r)
    }

    fn sync(&self) -> Result<()> {
        io("flush", &self.path, File::open(&self.base).and_then(|d| d.sync_all()))
    }

    /// The regions' numbers and files.
    fn regions(&self) -> Result<Vec<(u64, fs::DirEntry)>> {
        let mut all = Vec::new();
        for entry in io("list", &self.path, fs::read_dir(&self.base))? {
            let entry = io("list", &self.path, entry)?;
            let name = entry.file_name();
            let id = name.to_str().and_then(|n| u64::from_str_radix(n.strip_prefix("region-")?, 16).ok());
            all.extend(id.map(|id| (id, entry)));
        }
        Ok(all)
    }
}

/// A volume in a directory of some other filesystem.
pub struct DirVolume {
    files: Arc<Files>,
    held: Arc<Held>,
    write: bool,
    number: AtomicU16,
    /// The bytes that each region has here, and their sum. (Of one with two copies, others are told the larger size.)
    sizes: Mutex<HashMap<u64, u64>>,
    used: AtomicU64,
}

impl DirVolume {
    /// The volume in an existing directory.
    pub fn open(path: &Path, write: bool) -> DirVolume {
        let files = Files::of(path);
        DirVolume {
            held: Arc::new(Held::of(&files, write)),
            files: Arc::new(files),
            write,
            number: AtomicU16::new(0),
            sizes: Mutex::default(),
            used: AtomicU64::new(0),
        }
    }

    /// Bytes that are left of the disk that it is on.
    fn left(&self) -> Result<u64> {
        let left = match &self.files.dir {
            Some(dir) => disk::left(dir),
            None => File::open(&self.files.path).and_then(|dir| disk::left(&dir)),
        };
        io("statfs", &self.files.path, left)
    }

    fn region(&self, file: File, at: RegionRef) -> Arc<dyn Region> {
        let (files, held) = (self.files.clone(), self.held.clone());
        Arc::new(FileRegion { file, direct: Direct::default(), files, held, at })
    }

    /// Takes note of what a region has now; 0: nothing.
    fn note_size(&self, id: u64, size: u64) {
        let mut sizes = self.sizes.lock();
        let had = if size == 0 { sizes.remove(&id) } else { sizes.insert(id, size) };
        let used = self.used.load(Ordering::Relaxed) + size - had.unwrap_or(0);
        self.used.store(used, Ordering::Relaxed);
    }
}

fn region_name(id: u64) -> String {
    format!("region-{id:016x}")
}

fn wipe_file(file: &File) -> std::io::Result<()> {
    super::wipe(file.metadata()?.len(), |zeroes, at| file.write_all_at(zeroes, at))?;
    file.sync_data()
}

fn io<T>(action: &'static str, path: &Path, r: std::io::Result<T>) -> Result<T> {
    r.map_err(|e| Error::Io { place: path.display().to_string(), action, source: Arc::new(e) })
}

impl Volume for DirVolume {
    fn name(&self) -> String {
        self.files.path.display().to_string()
    }

    fn kind(&self) -> VolumeKind {
        VolumeKind::Directory
    }

    fn hint(&self) -> Vec<u8> {
        self.files.path.as_os_str().as_encoded_bytes().to_vec()
    }

    fn numbered(&self, number: u16) {
        self.number.store(number, Ordering::Relaxed);
    }

    fn read_super(&self, slot: usize) -> Result<Vec<u8>> {
        let name = format!("super.{slot}");
        let mut bytes = Vec::with_capacity(SLOT_SIZE);
        match self.files.open(&name, false).and_then(|f| f.take(SLOT_SIZE as u64).read_to_end(&mut bytes)) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            read => self.files.io("read", &name, read).map(drop)?,
        }
        bytes.resize(SLOT_SIZE, 0);
        Ok(bytes)
    }

    fn write_super(&self, slot: usize, bytes: &[u8]) -> Result<()> {
        let name = format!("super.{slot}");
        let is_new = self.files.look(&name).is_err();
        let r = self.held.with_room(&self.files, None, bytes.len() as u64, || {
            let file = self.files.make(&name)?;
            file.write_all_at(bytes, 0)?;
            file.sync_data()
        });
        self.files.io("write", &name, r)?;
        self.held.may(self.write);
        if is_new { self.files.sync() } else { Ok(()) }
    }

    fn wipe_super(&self) -> Result<()> {
        self.held.may(false);
        let names = ["super.0", "super.1", HELD].map(String::from);
        for name in names.into_iter().chain(held::spares()) {
            match fs::remove_file(self.files.at(&name)) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                removed => self.files.io("remove", &name, removed)?,
            }
        }
        self.files.sync()
    }

    fn create(&self, id: u64, size: u64) -> Result<Arc<dyn Region>> {
        let name = region_name(id);
        let made = self.held.with_room(&self.files, Some(self.used()?), size, || {
            let file = self.files.make(&name)?;
            file.set_len(0)?;
            disk::take(&file, 0, size).map(|()| file)
        });
        let file = made.or_else(|e| {
            let _ = fs::remove_file(self.files.at(&name));
            if disk::is_full(&e) {
                let (used, size) = self.usage(0)?;
                return Err(Error::NoSpace { used, size });
            }
            self.files.io("create", &name, Err(e))
        })?;
        self.files.sync()?;
        self.note_size(id, size);
        let volume = self.number.load(Ordering::Relaxed);
        Ok(self.region(file, RegionRef { id, start: 0, size, volume, second: None }))
    }

    fn open(&self, at: RegionRef) -> Result<Arc<dyn Region>> {
        let name = region_name(at.id);
        Ok(self.region(self.files.io("open", &name, self.files.open(&name, self.write))?, at))
    }

    fn open_emptied(&self, at: RegionRef) -> Result<Arc<dyn Region>> {
        let name = region_name(at.id);
        // (What is behind a file's end reads as zeroes.)
        let file = match self.write {
            true => self.files.make(&name),
            false => File::open("/dev/null"),
        };
        Ok(self.region(self.files.io("open", &name, file)?, at))
    }

    fn shrink(&self, at: RegionRef, size: u64) -> Result<RegionRef> {
        if size < at.size {
            let name = region_name(at.id);
            let file = self.files.io("open", &name, self.files.open(&name, true))?;
            self.files.io("shrink", &name, file.set_len(size))?;
            self.note_size(at.id, size);
        }
        Ok(RegionRef { size: size.min(at.size), ..at })
    }

    fn remove(&self, at: RegionRef) -> Result<()> {
        let name = region_name(at.id);
        match fs::remove_file(self.files.at(&name)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => self.files.io("remove", &name, Err(e)),
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
        for (id, entry) in self.files.regions()? {
            if regions.iter().all(|r| r.id != id) {
                let name = region_name(id);
                if wipe {
                    self.files.io("wipe", &name, self.files.open(&name, true).and_then(|f| wipe_file(&f)))?;
                }
                self.files.io("remove", &name, fs::remove_file(entry.path()))?;
            }
        }
        Ok(())
    }

    fn list(&self) -> Result<Option<Vec<RegionRef>>> {
        let volume = self.number.load(Ordering::Relaxed);
        let region = |(id, entry): (u64, fs::DirEntry)| {
            let size = self.files.io("look at", &region_name(id), entry.metadata())?.len();
            Ok(RegionRef { id, start: 0, size, volume, second: None })
        };
        self.files.regions()?.into_iter().map(region).collect::<Result<_>>().map(Some)
    }

    fn usage(&self, limit: u64) -> Result<(u64, u64)> {
        let used = self.used()?;
        let most = (used + self.left()? + self.held.bytes()).min(self.held.most());
        Ok((used, if limit > 0 { limit.min(most) } else { most }))
    }

    fn hold(&self, bytes: u64) -> Result<()> {
        self.held.keep(&self.files, bytes, || self.left())
    }

    fn used(&self) -> Result<u64> {
        Ok(self.used.load(Ordering::Relaxed) + 2 * SUPER_SIZE as u64)
    }

    fn pool(&self) -> Option<u64> {
        Some(fs::metadata(&self.files.base).ok()?.dev())
    }
}

struct FileRegion {
    file: File,
    direct: Direct,
    files: Arc<Files>,
    held: Arc<Held>,
    at: RegionRef,
}

impl FileRegion {
    fn io<T>(&self, action: &'static str, offset: u64, r: std::io::Result<T>) -> Result<T> {
        r.map_err(|e| Error::Io {
            place: format!("{} at byte {offset}", self.files.path.join(region_name(self.at.id)).display()),
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
        // (On a copy-on-write filesystem even what was written before needs new room.)
        let done = self.held.with_room(&self.files, None, bytes.len() as u64, || self.file.write_all_at(bytes, offset));
        self.io("write", offset, done)
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
    }

    /// Root's own files were overwritten by links that the directory's owner had put there.
    #[test]
    fn links_in_the_directory_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let volume = DirVolume::open(dir.path(), true);
        let other = dir.path().join("other");
        fs::write(&other, "mine").unwrap();
        for name in ["super.0", "held", "region-0000000000000002"] {
            std::os::unix::fs::symlink(&other, dir.path().join(name)).unwrap();
        }
        let at = RegionRef { id: 2, start: 0, size: 4096, volume: 0, second: None };
        assert!(volume.write_super(0, &[1; SLOT_SIZE]).is_err());
        assert!(volume.read_super(0).is_err());
        assert!(volume.keep_only(&[], true).is_err());
        assert!(volume.open(at).is_err());
        assert!(volume.shrink(at, 0).is_err());
        assert!(volume.create(2, 4096).is_err());
        assert!(volume.hold(4096).is_err());
        assert_eq!(fs::read(&other).unwrap(), b"mine");
        assert!(fs::metadata(&other).unwrap().len() == 4);
    }

    /// What was mounted over the directory of an open store was overwritten by it.
    #[test]
    fn a_volume_is_the_directory_that_was_opened_whatever_its_path_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let [path, moved] = ["store", "moved"].map(|name| dir.path().join(name));
        fs::create_dir(&path).unwrap();
        let volume = DirVolume::open(&path, true);
        volume.write_super(0, &[1; SLOT_SIZE]).unwrap();
        fs::rename(&path, &moved).unwrap();
        fs::create_dir(&path).unwrap();
        fs::write(path.join("super.0"), "another's").unwrap();
        volume.write_super(0, &[2; SLOT_SIZE]).unwrap();
        volume.create(1, 4096).unwrap();
        volume.hold(4096).unwrap();
        assert_eq!(fs::read(path.join("super.0")).unwrap(), b"another's");
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
        assert_eq!(fs::read(moved.join("super.0")).unwrap()[0], 2);
        assert!(moved.join("region-0000000000000001").exists());
    }
}
