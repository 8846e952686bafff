//! Room that a directory keeps for itself on the disk that it shares with others: the file `held`, which is made shorter when what
//! gives room back finds no other, and empty files, which get other names where no more can be made.
//!
//! Whether that disk is full can't be asked for: a quota, a limit of files or a copy-on-write filesystem below may refuse what `statfs`
//! promises. So once it has refused, the volume counts as full, until all that is to be held is held again.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::dir::Files;
use super::disk;

/// Its file.
pub(super) const HELD: &str = "held";
/// Empty files that are held: a checkpoint makes three or four, and then removes as many. A crash may come amid some of them, and the mount
/// after it makes more.
const SPARES: usize = 16;
/// Of what is left, what is held is one part in so many at most.
const LEFT_FOR_OTHERS: u64 = 4;
/// It grows by so many bytes, and what is made durable gets so many at once.
const STEP: u64 = 1 << 20;

/// Names of the empty files.
pub(super) fn spares() -> impl Iterator<Item = String> {
    (0..SPARES).map(|n| format!("{HELD}.{n}"))
}

impl Files {
    /// Gives a file that was held another name.
    pub fn take_spare(&self, name: &str) -> Option<File> {
        for spare in spares() {
            let Ok(file) = self.open(&spare, true) else { continue };
            // (Who owns the directory may have linked another file there.)
            let is_ours = file.metadata().is_ok_and(|meta| meta.is_file() && meta.len() == 0 && meta.nlink() == 1);
            if is_ours && fs::rename(self.at(&spare), self.at(name)).is_ok() {
                self.spares.store(false, Ordering::Relaxed);
                tracing::info!("no more files can be made in {}: one that was held is used", self.path.display());
                return Some(file);
            }
        }
        None
    }

    fn keep_spares(&self) {
        let is_there = |name: &String| match self.make_new(name) {
            Ok(_) => true,
            Err(e) => e.kind() == std::io::ErrorKind::AlreadyExists,
        };
        if !self.spares.load(Ordering::Relaxed) && spares().all(|name| is_there(&name)) {
            self.spares.store(true, Ordering::Relaxed);
        }
    }
}

/// The held room of a directory.
pub(super) struct Held {
    bytes: Mutex<u64>,
    /// The directory is no volume, or there is nothing like that here.
    none: AtomicBool,
    /// Bytes that the volume can have, as the disk has shown.
    most: AtomicU64,
}

impl Held {
    /// What a directory holds.
    pub fn of(files: &Files, write: bool) -> Held {
        Held {
            bytes: Mutex::new(files.look(HELD).map_or(0, |meta| meta.len())),
            none: AtomicBool::new(!write),
            most: AtomicU64::new(u64::MAX),
        }
    }

    /// Bytes that are held.
    pub fn bytes(&self) -> u64 {
        *self.bytes.lock()
    }

    /// Bytes that the volume can have at most.
    pub fn most(&self) -> u64 {
        self.most.load(Ordering::Relaxed)
    }

    /// From now on something may be held, as the directory is a volume; or nothing is any more.
    pub fn may(&self, may: bool) {
        self.none.store(!may, Ordering::Relaxed);
        if !may {
            *self.bytes.lock() = 0;
        }
    }

    /// Does what the disk may refuse, with held room if need be. `used`: bytes that the volume has.
    pub fn with_room<T>(
        &self,
        files: &Files,
        used: Option<u64>,
        bytes: u64,
        mut act: impl FnMut() -> std::io::Result<T>,
    ) -> std::io::Result<T> {
        loop {
            let done = act();
            if !done.as_ref().is_err_and(disk::is_full) {
                return done;
            }
            if let Some(used) = used.filter(|_| !self.none.load(Ordering::Relaxed)) {
                self.most.fetch_min(used + self.bytes(), Ordering::Relaxed);
            }
            if !self.let_go(files, bytes.max(STEP)) {
                return done;
            }
        }
    }

    /// Gives up so many held bytes; says whether there were any.
    fn let_go(&self, files: &Files, bytes: u64) -> bool {
        let mut held = self.bytes.lock();
        if *held == 0 {
            return false;
        }
        *held = held.saturating_sub(bytes);
        let done = files.open(HELD, true).and_then(|f| f.set_len(*held));
        if *held == 0 {
            let _ = fs::remove_file(files.at(HELD));
        }
        tracing::info!(left = *held, "{} is full: room that was held is used", files.path.display());
        done.is_ok()
    }

    /// Holds so many bytes, or of a disk that is nearly full a share: without any, a store that was closed when others had filled it
    /// could not be opened. `left`: bytes that are left of it, as it says.
    pub fn keep(&self, files: &Files, bytes: u64, left: impl FnOnce() -> crate::Result<u64>) -> crate::Result<()> {
        let mut held = self.bytes.lock();
        if self.none.load(Ordering::Relaxed) {
            return Ok(());
        }
        files.keep_spares();
        if *held >= bytes && self.most() == u64::MAX {
            return Ok(());
        }
        let bytes = bytes.min((left()? + *held) / LEFT_FOR_OTHERS / STEP * STEP);
        if *held < bytes {
            let file = match files.make_or_open(HELD) {
                Err(e) if disk::is_full(&e) => return Ok(()),
                file => files.io("create", HELD, file)?,
            };
            match allocate(&file, bytes) {
                Ok(()) => *held = bytes,
                // (Of what it got on the way nothing stays.)
                Err(e) if disk::is_full(&e) => return files.io("shrink", HELD, file.set_len(*held)),
                Err(e) => {
                    tracing::debug!("nothing is held at {}: {e}", files.path.display());
                    self.none.store(true, Ordering::Relaxed);
                    let _ = fs::remove_file(files.at(HELD));
                }
            }
        }
        self.most.store(u64::MAX, Ordering::Relaxed);
        Ok(())
    }
}

fn allocate(file: &File, bytes: u64) -> std::io::Result<()> {
    // SAFETY: a plain system call on an open descriptor.
    match unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, bytes as i64) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
