//! A filesystem to be measured, and the room on the disk in which all are set up.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{btrfs::Btrfs, darner::Darner, plain::Plain, shell, zfs::ZfsFuse};
use crate::error::{Context, Failure, Result};

/// A filesystem, set up, mounted and empty; dropping it takes everything down.
pub trait System {
    /// As in the report's columns.
    fn name(&self) -> &str;
    /// What it is, for the report's head.
    fn about(&self) -> String;
    /// Where workloads may work.
    fn dir(&self) -> &Path;
    /// Empties the caches that only a new mount empties; those of the kernel are the caller's.
    fn remount(&mut self) -> Result<()>;
    /// Whether [`dir`](System::dir) is this filesystem and not the directory below.
    fn is_mounted(&self) -> bool {
        crate::mounts::all().is_ok_and(|all| all.iter().any(|m| m.mountpoint == self.dir()))
    }
    /// The process that serves it, if it is ours to look into.
    fn daemon(&self) -> Option<u32> {
        None
    }
}

/// Sets up one by its name: `btrfs`, `zfs-fuse`, `ext4`, or another darner.
///
/// `darner+writeback+poll=0` is this program with mount options; `/path/to/darner` (and `+options`) another build of it.
pub fn set_up(name: &str, room: &Room, image_bytes: u64) -> Result<Box<dyn System>> {
    let (program, options) = name.split_once('+').unwrap_or((name, ""));
    Ok(match program {
        "darner" => Box::new(Darner::set_up(name, None, options, room)?),
        "btrfs" => Box::new(Btrfs::set_up(room, image_bytes)?),
        "zfs-fuse" => Box::new(ZfsFuse::set_up(room, image_bytes)?),
        "ext4" | "plain" => Box::new(Plain::set_up(name, room)?),
        path if path.contains('/') => Box::new(Darner::set_up(name, Some(Path::new(path)), options, room)?),
        _ => {
            return Err(Failure::new("no such peer: there are btrfs, zfs-fuse, ext4, darner+OPTIONS, /path/to/darner"));
        }
    })
}

/// A directory of our own on the disk; it goes with everything in it.
pub struct Room {
    path: PathBuf,
}

impl Room {
    /// A new directory within `parent`.
    pub fn new(parent: &Path) -> Result<Room> {
        let parent = std::fs::canonicalize(parent).cant(|| format!("find {}", parent.display()))?;
        let path = parent.join(format!("darner-bench.{}", std::process::id()));
        std::fs::create_dir(&path).cant(|| format!("make {}", path.display()))?;
        Ok(Room { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A new directory in it.
    pub fn dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name.replace('/', "_"));
        std::fs::create_dir(&path).cant(|| format!("make {}", path.display()))?;
        Ok(path)
    }

    /// A file in it with so many bytes really written: a loop device on it then behaves like a partition, and pays for
    /// no allocation below it.
    pub fn image(&self, name: &str, bytes: u64) -> Result<PathBuf> {
        use std::io::Write;
        let path = self.path.join(name);
        let mut file = std::fs::File::create(&path).cant(|| format!("make {}", path.display()))?;
        let zeros = vec![0; 4 << 20];
        let mut left = bytes;
        while left > 0 {
            super::stage::go_on()?;
            let n = left.min(zeros.len() as u64);
            file.write_all(&zeros[..n as usize]).cant(|| format!("fill {}", path.display()))?;
            left -= n;
        }
        file.sync_all()?;
        Ok(path)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // Something still mounted in it must not be emptied: then we leave it and say so.
        let mounted = crate::mounts::all().unwrap_or_default();
        if let Some(m) = mounted.iter().find(|m| m.mountpoint.starts_with(&self.path)) {
            eprintln!("darner: {} is still mounted; remove {} by hand", m.mountpoint.display(), self.path.display());
        } else if let Err(e) = std::fs::remove_dir_all(&self.path) {
            eprintln!("darner: can't remove {}: {e}", self.path.display());
        }
    }
}

/// Unmounts, if need be by force; complains rather than fails, as it is called when things are taken down.
pub fn unmount(dir: &Path) {
    for attempt in 0..20 {
        match shell::run("umount", [dir]) {
            Ok(_) => return,
            Err(e) if e.to_string().contains("not mounted") => return,
            Err(e) if attempt == 19 => eprintln!("darner: {e}"),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
    let _ = shell::run("umount", [Path::new("-l"), dir]);
}
