//! Making stores, and volumes for them: what may be made where, and over what.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use darner_store::volume::Copies;
use darner_store::{Advance, CreateOptions, OpenOptions, Progress, SIZE_MIN, Store};

use crate::claims::{self, Use};
use crate::error::{Context, Failure, Result};
use crate::mounts::{self, Mounted};
use crate::partition;
use crate::place::{Lock, Place, options};

/// How to make a store, or a volume for one.
#[derive(Clone, Debug, Default)]
pub struct Make {
    /// Bytes it may use; for an image file, its size.
    pub size: Option<u64>,
    /// Make an image file rather than a directory.
    pub image: bool,
    /// Overwrite what is on the device or file.
    pub force: bool,
    /// With a partition table, and the volume in its only partition.
    pub gpt: bool,
    /// Harmless where a store exists.
    pub existing_is_fine: bool,
    /// The key of the directory hash, of a mirror that of its source.
    pub hash_key: Option<[u8; 16]>,
    /// When its history begins, if not now: of a mirror, by its source's clock.
    pub born_ns: Option<u64>,
    /// Its other volumes, made like the first.
    pub beside: Vec<PathBuf>,
    /// Of what it has two copies.
    pub copies: Copies,
}

impl Place {
    /// Takes it to make a volume of it, if nothing is on it; returns how many bytes may be used of it (0: all).
    pub fn take(&self, make: &Make, exists: bool) -> Result<(Lock, u64)> {
        let lock = self.lock_to_make(make)?;
        if exists && !make.force {
            refuse_to_overwrite(self)?;
        }
        Ok((lock, if self.is_dir() { make.size.unwrap_or(0) } else { 0 }))
    }

    /// Locks what something is to be written to, whatever is on it. (Of an image that is mounted as something else by a loop device, the
    /// lock is free.)
    fn lock_to_make(&self, make: &Make) -> Result<Lock> {
        let mut lock = self.lock(true)?;
        if make.force
            && let Some(Use::Other(what)) = claims::used(&self.path)
        {
            lock.end();
            return Err(claims::in_use(&self.path, &what));
        }
        Ok(lock)
    }

    /// Takes it to make a volume there; a directory that was there is as empty again if that fails.
    fn fill(&self, make: &Make, exists: bool, then: impl FnOnce(u64) -> Result<()>) -> Result<()> {
        let (mut lock, size_limit) = self.take(make, exists)?;
        let made = then(size_limit);
        if made.is_err() && exists && self.is_dir() && !make.force {
            // (What others put there meanwhile stays.)
            let volume = self.volume(true)?;
            let _ = volume.keep_only(&[], false).and_then(|()| volume.wipe_super());
        }
        lock.end();
        made
    }

    /// Whether nothing else is in a directory.
    fn has_only_regions(&self) -> Result<bool> {
        let mut entries = fs::read_dir(&self.path).cant(|| format!("list {}", self.path.display()))?;
        let is_region = |e: fs::DirEntry| e.file_name().as_bytes().starts_with(b"region-");
        Ok(entries.all(|e| e.is_ok_and(is_region)))
    }
}

/// Makes an empty store with a root directory owned by the caller.
pub fn create(path: &Path, make: &Make) -> Result<Place> {
    if make.existing_is_fine && path.exists() {
        let place = Place::at(path)?;
        if place.holds_store()? {
            return Ok(place);
        }
    }
    refuse_twice(path, make)?;
    prepare(path, make, create_at)
}

/// Makes room for a volume: a directory, an image file, or what is there if nothing is on it; `then` is told whether it was
/// there. Nothing is left of it if that fails.
pub fn prepare<T>(path: &Path, make: &Make, then: impl FnOnce(&Path, &Make, bool) -> Result<T>) -> Result<T> {
    if make.size == Some(0) {
        return Err(Failure::new("a size of 0 has room for nothing (without --size: all the room there is)"));
    }
    let exists = path.exists();
    if !exists {
        refuse_where_nothing_is_kept(path)?;
    }
    if !exists && make.image {
        let size = make.size.ok_or_else(|| Failure::new("an image file needs --size"))?;
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = file.cant(|| format!("make {}", path.display()))?;
        if let Err(e) = file.set_len(size) {
            let _ = fs::remove_file(path);
            return Err(Failure::from(e)).cant(|| format!("make {}", path.display()));
        }
    } else if !exists {
        fs::DirBuilder::new().mode(0o700).create(path).cant(|| format!("make {}", path.display()))?;
    }
    let shaped = if make.gpt || exists && make.image { shape(path, make, exists) } else { Ok(()) };
    // (What was there, it has looked at.)
    let made = shaped.and_then(|()| then(path, make, exists && !make.gpt));
    if made.is_err() && !exists {
        let _ = if make.image { fs::remove_file(path) } else { fs::remove_dir_all(path) };
    }
    made
}

/// Has an image be as long as is wanted, and a device or image have its partition.
fn shape(path: &Path, make: &Make, exists: bool) -> Result<()> {
    if exists && !make.force {
        refuse_to_overwrite(&Place::at(path)?)?;
    }
    let whole = Place::whole(path)?;
    let mut lock = whole.lock_to_make(make)?;
    let cut = match make.size.filter(|_| make.image && whole.path.is_file()) {
        Some(size) if size < SIZE_MIN => {
            Err(Failure::new(format!("{size} bytes are too few: {SIZE_MIN} is the least")))
        }
        Some(size) => fs::OpenOptions::new().write(true).open(&whole.path)?.set_len(size).map_err(Failure::from),
        None => Ok(()),
    };
    let cut = cut.cant(|| format!("have {} be so long", path.display()));
    let claim = lock.claims.device.as_ref();
    let made = cut.and_then(|()| if make.gpt { partition::make(&whole.path, claim) } else { Ok(()) });
    lock.end();
    made
}

/// Refuses to make something where there is no device, or where nothing is kept.
fn refuse_where_nothing_is_kept(path: &Path) -> Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let dir = fs::canonicalize(parent.unwrap_or(Path::new("."))).cant(|| format!("make {}", path.display()))?;
    let of = fs::metadata(&dir)?.dev();
    // (Where that is a filesystem of another kind, too.)
    let is_for_devices = dir.starts_with("/dev") && fs::metadata("/dev").is_ok_and(|dev| dev.dev() == of);
    let number = format!("{}:{}", libc::major(of), libc::minor(of));
    let is_kept = |m: &Mounted| !["devtmpfs", "sysfs", "proc"].contains(&m.kind.as_str());
    if is_for_devices || mounts::all()?.iter().any(|m| m.device == number && !is_kept(m)) {
        let (path, dir) = (path.display(), dir.display());
        return Err(Failure::new(format!(
            "there is no device {path}, and in {dir} nothing else is made: it would not be kept"
        )));
    }
    Ok(())
}

fn create_at(path: &Path, make: &Make, exists: bool) -> Result<Place> {
    let place = Place::at(path)?;
    place.fill(make, exists, |size_limit| {
        let now_ns = make.born_ns.unwrap_or_else(crate::frontend::now_ns);
        let volume = place.volume(true)?;
        Store::create(
            &*volume,
            &CreateOptions { now_ns, size_limit, hash_key: make.hash_key, ..CreateOptions::default() },
        )?;
        let store = Arc::new(Store::open(volume, &options())?);
        with_volumes(&store, &make.beside, make)
    })?;
    Ok(place)
}

/// Each of a new store's volumes is to be another one.
fn refuse_twice(path: &Path, make: &Make) -> Result<()> {
    let mut seen = BTreeSet::new();
    for path in std::iter::once(path).chain(make.beside.iter().map(PathBuf::as_path)) {
        if !seen.insert(to_be(path)?) {
            return Err(Failure::new(format!("{} is named twice: each volume has a place of its own", path.display())));
        }
    }
    Ok(())
}

/// Where a path leads, or will when something is made there.
pub fn to_be(path: &Path) -> Result<PathBuf> {
    let real = fs::canonicalize(path).or_else(|_| {
        let parent = std::path::absolute(path)?.parent().map(fs::canonicalize).transpose()?.unwrap_or_default();
        Ok::<_, std::io::Error>(parent.join(path.file_name().unwrap_or_default()))
    });
    real.cant(|| format!("find {}", path.display()))
}

/// Makes the root directory, and ends what was opened for that.
fn begin_tree(store: &Arc<Store>) -> Result<()> {
    // SAFETY: these calls can't fail.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    let fs = darner_fs::Fs::create(store.clone(), uid, gid, 0o755, store.birth().0)?;
    crate::serving::identity(&fs, store.birth().0)?;
    Ok(store.close()?)
}

/// Goes on making a store on several volumes; what was made of them goes where it can't be ended.
fn with_volumes(store: &Arc<Store>, paths: &[PathBuf], make: &Make) -> Result<()> {
    let Some((path, others)) = paths.split_first() else {
        if make.copies != Copies::One {
            store.set_copies(make.copies)?;
            while store.step_copies(u64::MAX)? == Progress::Worked {}
        }
        return begin_tree(store);
    };
    prepare(path, make, |path, make, exists| {
        let place = Place::at(path)?;
        place.fill(make, exists, |size_limit| {
            store.add_volume(place.volume(true)?, size_limit)?;
            with_volumes(store, others, make)
        })
    })
}

/// Makes a store in a new or empty directory (or whatever is there, if that is empty) of what has reached a bucket.
pub fn take_over(name: &str, local: &Path, memory: u64, each: &mut dyn FnMut(Advance)) -> Result<()> {
    let options = OpenOptions { memory, ..options() };
    prepare(local, &Make::default(), |path, make, exists| {
        let place = Place::at(path)?;
        // (Regions without a superblock are what an interrupted try has left.)
        let mut lock = match exists && place.is_dir() && !place.holds_store()? && place.has_only_regions()? {
            true => place.lock(true)?,
            false => place.take(make, exists)?.0,
        };
        Store::take_over(name, place.volume(true)?, &options, each)?.close()?;
        lock.end();
        Ok(())
    })
}

fn refuse_to_overwrite(place: &Place) -> Result<()> {
    let path = place.path.display();
    // (A damaged or newer one holds something, in any case.)
    if place.is_volume() {
        return Err(Failure::new(format!("{path} holds a store already; --force would destroy it")));
    }
    if place.is_dir() {
        let mut entries = fs::read_dir(&place.path).cant(|| format!("list {path}"))?;
        if entries.next().is_some() {
            return Err(Failure::new(format!("{path} is not empty; a store needs a directory of its own")));
        }
        return Ok(());
    }
    let mut file = File::open(&place.path).cant(|| format!("open {path}"))?;
    let len = file.seek(SeekFrom::End(0)).cant(|| format!("look at {path}"))?;
    let read = |at: u64| {
        let mut bytes = vec![0; 1 << 20];
        let n = std::os::unix::fs::FileExt::read_at(&file, &mut bytes, at).cant(|| format!("read {path}"))?;
        bytes.truncate(n);
        Ok::<_, Failure>(bytes)
    };
    if read(0)?.iter().any(|b| *b != 0) {
        return Err(Failure::new(format!(
            "{path} holds something (its first MiB is not empty); --force overwrites it"
        )));
    }
    // (What else is there may be left of a volume that was emptied.)
    let mut end = read((len - len % 512).saturating_sub(2 << 20))?;
    end.extend(read((len - len % 512).saturating_sub(1 << 20))?);
    if let Some(what) = signature(&end) {
        return Err(Failure::new(format!("{path} holds {what}; --force overwrites it")));
    }
    Ok(())
}

/// What has its signature at the end of a device, in its last sectors.
fn signature(end: &[u8]) -> Option<&'static str> {
    let known: [(&[u8], &str); 4] = [
        (b"DARNER\r\n", "a volume of a store, whose beginning was overwritten (darner volume reclaim takes it back)"),
        (b"EFI PART", "a partition table"),
        (&0xa92b_4efc_u32.to_le_bytes(), "a member of a RAID"),
        (&0x00ba_b10c_u64.to_le_bytes(), "a ZFS volume"),
    ];
    let sectors = || (0..end.len()).step_by(512);
    known.into_iter().find(|(magic, _)| sectors().any(|at| end[at..].starts_with(magic))).map(|(_, what)| what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_its_signature_at_the_end_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        for (magic, from_end) in
            [(&b"EFI PART"[..], 512), (&0xa92b_4efc_u32.to_le_bytes(), 65536), (b"some bytes", 512)]
        {
            let mut bytes = vec![0; 3 << 20];
            let at = bytes.len() - from_end;
            bytes[at..at + magic.len()].copy_from_slice(magic);
            fs::write(&path, bytes).unwrap();
            let refused = refuse_to_overwrite(&Place::at(&path).unwrap());
            assert_eq!(refused.is_err(), magic != b"some bytes");
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_not_made_a_directory_nor_anything_where_nothing_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev", dir.path().join("link")).unwrap();
        let through_a_link = dir.path().join("link/no-such-device");
        let not_kept = ["/dev/no-such-device", "/dev/../dev/no-such-device", "/proc/store", "/sys/kernel/store"];
        for path in not_kept.map(Path::new).into_iter().chain([&*through_a_link]) {
            for image in [false, true] {
                let make = Make { image, size: Some(64 << 20), existing_is_fine: true, ..Make::default() };
                let refused = create(path, &make).unwrap_err().to_string();
                assert!(refused.starts_with("there is no device "), "{refused}");
                assert!(!path.exists());
            }
        }
        let beside = vec!["/dev/no-such-device".into()];
        let make = Make { beside, ..Make::default() };
        assert!(create(&dir.path().join("store"), &make).unwrap_err().to_string().contains("there is no device"));
        assert!(!dir.path().join("store").exists());
        create(&dir.path().join("store"), &Make::default()).unwrap();
    }

    #[test]
    fn a_volume_that_is_named_twice_is_told_and_nothing_made() {
        let dir = tempfile::tempdir().unwrap();
        let (store, other, again) = (dir.path().join("store"), dir.path().join("other"), dir.path().join("./other"));
        for beside in [vec![other.clone(), again], vec![other.clone(), store.clone()]] {
            let refused = create(&store, &Make { beside, ..Make::default() }).unwrap_err();
            assert!(refused.to_string().contains("is named twice"), "{refused}");
            assert!(!store.exists() && !other.exists());
        }
    }

    #[test]
    fn an_image_that_is_overwritten_is_as_long_as_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let make = |mib: u64, gpt| {
            let make = Make { size: Some(mib << 20), image: true, force: true, gpt, ..Make::default() };
            create(&path, &make).map(|_| fs::metadata(&path).unwrap().len() >> 20)
        };
        for (mib, gpt) in [(300, false), (100, false), (200, true), (90, true), (300, false)] {
            assert_eq!(make(mib, gpt).unwrap(), mib);
            assert!(Place::at(&path).unwrap().is_volume());
        }
        assert!(make(1, false).is_err() && make(0, false).is_err());
        assert_eq!(fs::metadata(&path).unwrap().len() >> 20, 300);
        assert!(Place::at(&path).unwrap().is_volume());
    }
}
