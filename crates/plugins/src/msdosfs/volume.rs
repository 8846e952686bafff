//! The crate's filesystem with the files that were used last kept open, so that reading on needs no way from the root and from
//! a file's first cluster. Open files borrow the filesystem; here both are kept, files going first.

use std::collections::HashMap;
use std::fs::File as Image;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Error, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use darner_vfs::{Errno, Result, Space};
use fatfs::{Date, DateTime, Dir, DirEntry, File, FileAttributes, FileSystem, FsOptions, Time, TimeProvider};

use super::disk::{self, Disk, Shared};

/// The attributes of an entry that is part of a long name.
const LONG_NAME: u8 = 0xf;
/// Those of a directory's entry.
const DIRECTORY: u8 = 0x10;
const OPEN_MAX: usize = 16;
const SECOND: i64 = 1_000_000_000;
const DAY: i64 = 86_400;
/// 1980 and 2107: what FAT can tell.
const FIRST: i64 = 315_532_800;
const LAST: i64 = 4_354_819_198;

/// What a directory entry tells.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    /// See the module above.
    pub number: u64,
    pub name: String,
    pub is_dir: bool,
    pub read_only: bool,
    pub size: u64,
    /// Nanoseconds since 1970.
    pub modified: i64,
    /// Where its entry is in the image.
    pub at: u64,
}

/// See the module.
pub(super) struct Volume {
    image: Image,
    mounted: Option<Mounted>,
}

struct Mounted {
    files: HashMap<u64, File<'static, Disk>>,
    fs: *mut FileSystem<Disk>,
    shared: Arc<Shared>,
}

// SAFETY: all of it moves together, and is used through one exclusive reference.
unsafe impl Send for Mounted {}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.files.clear();
        // SAFETY: made by Box::into_raw, and nothing borrows from it any more. (Its end writes what it has counted.)
        drop(unsafe { Box::from_raw(self.fs) });
    }
}

#[derive(Debug)]
struct Utc;

static UTC: Utc = Utc;

impl TimeProvider for Utc {
    fn get_current_date(&self) -> Date {
        self.get_current_date_time().date
    }

    fn get_current_date_time(&self) -> DateTime {
        date_time(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64))
    }
}

/// Civil time of seconds since 1970, as far as FAT can tell it.
fn date_time(seconds: i64) -> DateTime {
    let seconds = seconds.clamp(FIRST, LAST);
    let (days, rest) = (seconds / DAY + 719_468, seconds % DAY);
    // Years that begin in March, in eras of 400 of them.
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let m = (5 * of_year + 2) / 153;
    let (day, month) = (of_year - (153 * m + 2) / 5 + 1, if m < 10 { m + 3 } else { m - 9 });
    let date = Date { year: (year + era * 400 + i64::from(month <= 2)) as u16, month: month as u16, day: day as u16 };
    let time = Time { hour: (rest / 3600) as u16, min: (rest / 60 % 60) as u16, sec: (rest % 60) as u16, millis: 0 };
    DateTime { date, time }
}

fn nanos(t: &DateTime) -> i64 {
    let d = [t.date.year.saturating_sub(1900), t.date.month, t.date.day, t.time.hour, t.time.min, t.time.sec];
    let d = d.map(|n| u8::try_from(n).unwrap_or(0));
    crate::iso9660::date(&[d[0], d[1], d[2], d[3], d[4], d[5], 0])
}

fn errno(e: Error) -> Errno {
    let says = |what: &str| e.to_string().contains(what);
    Errno(match (e.raw_os_error(), e.kind()) {
        (Some(errno), _) => errno,
        (_, ErrorKind::NotFound) => libc::ENOENT,
        (_, ErrorKind::AlreadyExists) => libc::EEXIST,
        (_, ErrorKind::WriteZero) => libc::ENOSPC,
        _ if says("not empty") => libc::ENOTEMPTY,
        _ if says("space") => libc::ENOSPC,
        _ if says("too long") => libc::ENAMETOOLONG,
        _ if says("characters") || says("name is empty") => libc::EINVAL,
        _ => {
            eprintln!("msdosfs: {e}");
            libc::EIO
        }
    })
}

impl Volume {
    pub fn open(image: Image) -> io::Result<Volume> {
        let mut volume = Volume { image, mounted: None };
        volume.mounted().map_err(|e| Error::other(e.to_string()))?;
        Ok(volume)
    }

    pub fn title(&self) -> String {
        let kind = self.mounted.as_ref().map(|m| m.fs().fat_type());
        kind.map_or(String::new(), |kind| format!("{kind:?}").to_uppercase())
    }

    fn mounted(&mut self) -> Result<&mut Mounted> {
        if self.mounted.is_none() {
            let disk = Disk::new(self.image.try_clone()?)?;
            let shared = disk.shared();
            let fs = Box::new(FileSystem::new(disk, FsOptions::new().time_provider(&UTC)).map_err(errno)?);
            self.mounted = Some(Mounted { files: HashMap::new(), fs: Box::into_raw(fs), shared });
        }
        let m = self.mounted.as_mut().expect("just made");
        m.shared.begin();
        Ok(m)
    }

    pub fn list(&mut self, dir: &str) -> Result<Vec<Found>> {
        let m = self.mounted()?;
        let dir = m.dir(dir)?;
        let all = dir.iter().map(|e| e.map(|e| m.found(&e)).map_err(errno)).collect::<Result<Vec<_>>>()?;
        Ok(all.into_iter().filter(|f| f.name != "." && f.name != "..").collect())
    }

    pub fn find(&mut self, dir: &str, name: &str) -> Result<Option<Found>> {
        let m = self.mounted()?;
        let dir = m.dir(dir)?;
        let wanted = name.to_uppercase();
        for e in dir.iter() {
            let e = e.map_err(errno)?;
            if e.file_name().to_uppercase() == wanted || e.short_file_name().to_uppercase() == wanted {
                return Ok(Some(m.found(&e)));
            }
        }
        Ok(None)
    }

    pub fn create_file(&mut self, path: &str) -> Result<()> {
        self.mounted()?.fs().root_dir().create_file(path).map(drop).map_err(errno)
    }

    pub fn create_dir(&mut self, path: &str) -> Result<()> {
        self.mounted()?.fs().root_dir().create_dir(path).map_err(errno)?;
        self.tidy(path)
    }

    /// A file, or an empty directory. First its entry leads nowhere, then it goes, then its clusters are free: at no moment does a name
    /// lead to clusters that others may get. (The crate begins with the clusters.)
    pub fn remove(&mut self, path: &str) -> Result<()> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let found = self.find(dir, name)?.ok_or(Errno(libc::ENOENT))?;
        if found.is_dir && !self.list(path)?.is_empty() {
            return Err(Errno(libc::ENOTEMPTY));
        }
        let mut entry = [0; 32];
        self.image.read_exact_at(&mut entry, found.at)?;
        if found.is_dir {
            entry[11] &= !DIRECTORY;
            self.put(&entry, found.at)?;
        }
        let mut file = self.mounted()?.fs().root_dir().open_file(path).map_err(errno)?;
        for field in [20..22, 26..32] {
            entry[field].fill(0);
        }
        let outcome = self.put(&entry, found.at);
        let outcome = outcome.and_then(|()| self.mounted()?.fs().root_dir().remove(path).map_err(errno));
        let outcome = outcome.and_then(|()| file.truncate().map_err(errno));
        // It would write its entry again.
        std::mem::forget(file);
        outcome
    }

    /// Writes an entry past the crate.
    fn put(&mut self, entry: &[u8; 32], at: u64) -> Result<()> {
        disk::write(&self.image, entry, at)?;
        self.mounted()?.shared.stale.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Gives what is at `from` the name `to`; a file or empty directory that has it is replaced. `moved`: a directory into another
    /// directory.
    ///
    /// The two entries exchange what they lead to, then `from` is removed. So whatever is done when the process is killed, both
    /// names are there or only `to` is, each with the contents of before or those of after.
    pub fn rename(&mut self, from: &str, to: &str, moved: bool) -> Result<()> {
        // Open files remember where their entry is.
        self.mounted()?.files.clear();
        if self.at(to)?.is_none() {
            self.create_file(to)?;
        }
        let gone = Errno(libc::EIO);
        let (old, new) = (self.at(from)?.ok_or(gone)?, self.at(to)?.ok_or(gone)?);
        if old == new {
            // It differs in capitals only.
            return Ok(());
        }
        self.exchange(old, new)?;
        if moved {
            self.set_parent(to)?;
        }
        self.remove(from)
    }

    /// Where the entry of a path is in the image.
    fn at(&mut self, path: &str) -> Result<Option<u64>> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok(self.find(dir, name)?.map(|found| found.at))
    }

    /// Has two entries lead to what the other one does; the second one is written first.
    fn exchange(&mut self, first: u64, second: u64) -> Result<()> {
        let (mut a, mut b) = ([0; 32], [0; 32]);
        self.image.read_exact_at(&mut a, first)?;
        self.image.read_exact_at(&mut b, second)?;
        // All but the name, of which byte 12 tells whether it is in small letters.
        a[11..12].swap_with_slice(&mut b[11..12]);
        a[13..].swap_with_slice(&mut b[13..]);
        self.put(&b, second)?;
        self.put(&a, first)
    }

    /// Puts `.` and `..` of a new directory where they belong: the crate gives each a long name before it, which other
    /// systems take for damage.
    fn tidy(&mut self, path: &str) -> Result<()> {
        let dot = self.first_entry(path)?;
        let mut entries = [0; 4 * 32];
        self.image.read_exact_at(&mut entries, dot - 32)?;
        let is_long = |n: usize| entries[n * 32 + 11] == LONG_NAME;
        if is_long(0) && is_long(2) && dot % 512 == 32 {
            entries.copy_within(32..64, 0);
            entries.copy_within(96..128, 32);
            entries[64..].fill(0);
            if !path.contains('/') {
                // The root has no cluster to those who ask so, even where it has one.
                entries[32 + 20..32 + 22].fill(0);
                entries[32 + 26..32 + 28].fill(0);
            }
            disk::write(&self.image, &entries, dot - 32)?;
            self.mounted()?.shared.stale.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Has `..` of a directory that was moved lead to where it is now: the crate leaves it as it was.
    fn set_parent(&mut self, path: &str) -> Result<()> {
        let above = path.rsplit_once('/').map_or("", |(above, _)| above);
        let mut cluster = [0; 6];
        if !above.is_empty() {
            // The first entry of a directory is about itself: bytes 20 and 26 have its first cluster.
            let own = self.first_entry(above)?;
            let mut entry = [0; 32];
            self.image.read_exact_at(&mut entry, own)?;
            cluster = [entry[20], entry[21], entry[26], entry[27], 0, 0];
        }
        let dots = self.first_entry(path)? + 32;
        let mut name = [0; 11];
        self.image.read_exact_at(&mut name, dots)?;
        if name != *b"..         " {
            return Err(Errno(libc::EIO));
        }
        disk::write(&self.image, &cluster[..2], dots + 20)?;
        disk::write(&self.image, &cluster[2..4], dots + 26)?;
        self.mounted()?.shared.stale.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Where a directory's first entry is in the image: where the crate reads it.
    fn first_entry(&mut self, dir: &str) -> Result<u64> {
        let m = self.mounted()?;
        let first = m.dir(dir)?.iter().next().ok_or(Errno(libc::EIO))?.map_err(errno)?;
        let at = m.shared.last.load(Ordering::Relaxed);
        if first.file_name() == "." { Ok(at - at % 32) } else { Err(Errno(libc::EIO)) }
    }

    pub fn read(&mut self, node: u64, path: &str, at: u64, buffer: &mut [u8]) -> Result<()> {
        let file = self.mounted()?.file(node, path)?;
        file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(buffer)).map_err(errno)
    }

    pub fn write(&mut self, node: u64, path: &str, at: u64, data: &[u8]) -> Result<()> {
        let file = self.mounted()?.file(node, path)?;
        let written = file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(data));
        // Its length, too, is to survive this process.
        written.and_then(|()| file.flush()).map_err(errno)
    }

    pub fn truncate(&mut self, node: u64, path: &str, to: u64) -> Result<()> {
        let file = self.mounted()?.file(node, path)?;
        file.seek(SeekFrom::Start(to)).and_then(|_| file.truncate()).and_then(|()| file.flush()).map_err(errno)
    }

    /// Returns what is kept of the time.
    pub fn set_modified(&mut self, node: u64, path: &str, ns: i64) -> Result<i64> {
        let mut time = date_time(ns.div_euclid(SECOND));
        time.time.sec &= !1;
        let file = self.mounted()?.file(node, path)?;
        // (The crate would rather set it by itself.)
        #[allow(deprecated)]
        file.set_modified(time);
        file.flush().map_err(errno)?;
        Ok(nanos(&time))
    }

    /// Forgets an open file.
    pub fn close(&mut self, node: u64) {
        if let Some(m) = &mut self.mounted {
            m.files.remove(&node);
        }
    }

    pub fn space(&mut self) -> Result<Space> {
        let stats = self.mounted()?.fs().stats().map_err(errno)?;
        let (blocks, free) = (stats.total_clusters().into(), stats.free_clusters().into());
        Ok(Space { block: stats.cluster_size(), blocks, free, name_max: 255, ..Space::default() })
    }

    /// Everything is in the image, on the disk, and as if it were not in use.
    pub fn sync(&mut self) -> Result<()> {
        self.mounted = None;
        Ok(self.image.sync_all()?)
    }
}

impl Mounted {
    fn fs(&self) -> &'static FileSystem<Disk> {
        // SAFETY: it lives as long as `self`; what borrows from it does not leave this module, and ends before it.
        unsafe { &*self.fs }
    }

    fn dir(&self, path: &str) -> Result<Dir<'static, Disk>> {
        let root = self.fs().root_dir();
        if path.is_empty() { Ok(root) } else { root.open_dir(path).map_err(errno) }
    }

    fn file(&mut self, node: u64, path: &str) -> Result<&mut File<'static, Disk>> {
        if !self.files.contains_key(&node) {
            if self.files.len() >= OPEN_MAX {
                self.files.clear();
            }
            let file = self.fs().root_dir().open_file(path).map_err(errno)?;
            self.files.insert(node, file);
        }
        Ok(self.files.get_mut(&node).expect("just put"))
    }

    /// Of an entry that was read just now.
    fn found(&self, e: &DirEntry<'_, Disk>) -> Found {
        let at = self.shared.last.load(Ordering::Relaxed) / 32;
        let made = e.created();
        let mut hash = DefaultHasher::new();
        (e.file_name(), nanos(&made), made.time.millis).hash(&mut hash);
        Found {
            // Above the root's, and below what the protocol allows.
            number: 1 << 61 | (at & 0x7fff_ffff) << 30 | hash.finish() & 0x3fff_ffff,
            name: e.file_name(),
            is_dir: e.is_dir(),
            read_only: e.attributes().contains(FileAttributes::READ_ONLY),
            size: if e.is_dir() { 0 } else { e.len() },
            modified: nanos(&e.modified()),
            at: at * 32,
        }
    }
}
