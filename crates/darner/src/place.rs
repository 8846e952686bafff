//! Where a store is: a directory, an image file or a block device; and who may have it open.
//!
//! One store is open in one process: the lock is on the directory or file itself (flock), so it ends with its holder.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use darner_store::volume::{DirVolume, FileDisk, RawVolume, Volume};
use darner_store::{CreateOptions, OpenOptions, Store};

use crate::error::{Context, Failure, Result};

/// A store's place.
#[derive(Clone, Debug)]
pub struct Place {
    /// Absolute.
    pub path: PathBuf,
    is_dir: bool,
}

impl Place {
    /// An existing directory, file or device.
    pub fn at(path: &Path) -> Result<Place> {
        let path = fs::canonicalize(path).cant(|| format!("find the store {}", path.display()))?;
        let meta = fs::metadata(&path).cant(|| format!("look at {}", path.display()))?;
        let kind = meta.file_type();
        if !(kind.is_dir() || kind.is_file() || kind.is_block_device()) {
            return Err(Failure::new(format!("{} is no directory, image file or block device", path.display())));
        }
        Ok(Place { is_dir: kind.is_dir(), path })
    }

    /// Its volume.
    pub fn volume(&self, write: bool) -> Result<Arc<dyn Volume>> {
        if self.is_dir {
            return Ok(Arc::new(DirVolume::open(&self.path, write)));
        }
        let disk = FileDisk::open(&self.path, write).cant(|| format!("open {}", self.path.display()))?;
        Ok(Arc::new(RawVolume::new(Arc::new(disk))))
    }

    /// Opens the store; the lock lasts as long as the file.
    pub fn open(&self, options: &OpenOptions) -> Result<(Arc<Store>, File)> {
        let lock = self.lock(!options.read_only)?;
        let store = Store::open(self.volume(!options.read_only)?, options)?;
        Ok((Arc::new(store), lock))
    }

    /// Whether a store is there.
    pub fn holds_store(&self) -> Result<bool> {
        let volume = self.volume(false)?;
        for slot in 0..2 {
            if volume.read_super(slot)?.iter().any(|b| *b != 0) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes the store for this process, or says who has it.
    pub fn lock(&self, exclusive: bool) -> Result<File> {
        let file = File::open(&self.path).cant(|| format!("open {}", self.path.display()))?;
        let how = if exclusive { libc::LOCK_EX } else { libc::LOCK_SH };
        // SAFETY: a plain system call on an open descriptor.
        if unsafe { libc::flock(file.as_raw_fd(), how | libc::LOCK_NB) } == 0 {
            return Ok(file);
        }
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::WouldBlock {
            return Err(error).cant(|| format!("lock {}", self.path.display()));
        }
        Err(Failure::new(darner_store::Error::Busy { store: self.path.display().to_string(), holder: self.holder() }))
    }

    /// Who holds the lock, as the kernel tells.
    fn holder(&self) -> Option<String> {
        let meta = fs::metadata(&self.path).ok()?;
        let dev = meta.dev();
        let wanted = format!("{:02x}:{:02x}:{}", libc::major(dev), libc::minor(dev), meta.ino());
        let locks = fs::read_to_string("/proc/locks").ok()?;
        let line = locks.lines().find(|l| l.contains("FLOCK") && l.split_whitespace().any(|w| w == wanted))?;
        let pid = line.split_whitespace().nth(4)?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Some(format!("process {pid} ({})", name.trim()))
    }

    /// The address at which the daemon that has the store listens; the kernel forgets it with the daemon.
    pub fn socket(&self) -> Result<SocketAddr> {
        let meta = fs::metadata(&self.path)?;
        let (a, b) = if meta.file_type().is_block_device() { (0, meta.rdev()) } else { (meta.dev(), meta.ino()) };
        Ok(SocketAddr::from_abstract_name(format!("darner/{a:x}/{b:x}"))?)
    }
}

/// How to make a store.
#[derive(Clone, Debug, Default)]
pub struct Make {
    /// Bytes it may use; for an image file, its size.
    pub size: Option<u64>,
    /// Make an image file rather than a directory.
    pub image: bool,
    /// Overwrite what is on the device or file.
    pub force: bool,
    /// Harmless where a store exists.
    pub existing_is_fine: bool,
}

/// Makes an empty store with a root directory owned by the caller.
pub fn create(path: &Path, make: &Make) -> Result<Place> {
    let exists = path.exists();
    if !exists && make.image {
        let size = make.size.ok_or_else(|| Failure::new("an image file needs --size"))?;
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        file.and_then(|f| f.set_len(size)).cant(|| format!("make {}", path.display()))?;
    } else if !exists {
        fs::DirBuilder::new().mode(0o700).create(path).cant(|| format!("make {}", path.display()))?;
    }
    let made = create_at(path, make, exists);
    if made.is_err() && !exists {
        let _ = if make.image { fs::remove_file(path) } else { fs::remove_dir_all(path) };
    }
    made
}

fn create_at(path: &Path, make: &Make, exists: bool) -> Result<Place> {
    let place = Place::at(path)?;
    if exists && make.existing_is_fine && place.holds_store()? {
        return Ok(place);
    }
    let _lock = place.lock(true)?;
    if exists && !make.force {
        refuse_to_overwrite(&place)?;
    }
    let size_limit = if place.is_dir { make.size.unwrap_or(0) } else { 0 };
    let now_ns = crate::frontend::now_ns();
    let volume = place.volume(true)?;
    Store::create(&*volume, &CreateOptions { now_ns, size_limit, seed: None })?;
    let store = Arc::new(Store::open(volume, &OpenOptions::default())?);
    // SAFETY: these calls can't fail.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    darner_fs::Fs::create(store.clone(), uid, gid, 0o755, crate::frontend::now_ns())?;
    store.close()?;
    Ok(place)
}

fn refuse_to_overwrite(place: &Place) -> Result<()> {
    let path = place.path.display();
    if place.holds_store()? {
        return Err(Failure::new(format!("{path} holds a store already; --force would destroy it")));
    }
    if place.is_dir {
        let mut entries = fs::read_dir(&place.path).cant(|| format!("list {path}"))?;
        if entries.next().is_some() {
            return Err(Failure::new(format!("{path} is not empty; a store needs a directory of its own")));
        }
        return Ok(());
    }
    let mut head = vec![0; 1 << 20];
    let file = File::open(&place.path).cant(|| format!("open {path}"))?;
    let n = std::os::unix::fs::FileExt::read_at(&file, &mut head, 0).cant(|| format!("read {path}"))?;
    if head[..n].iter().any(|b| *b != 0) {
        return Err(Failure::new(format!(
            "{path} holds something (its first MiB is not empty); --force overwrites it"
        )));
    }
    Ok(())
}
