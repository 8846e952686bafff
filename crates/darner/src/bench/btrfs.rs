//! Native Btrfs on a loop device on a file on the same disk.
//!
//! The file is filled beforehand and never punched (`-K`, `nodiscard`): the peer gets what it would have on a partition.

use std::path::{Path, PathBuf};

use super::shell;
use super::system::{Room, System, unmount};
use crate::error::{Failure, Result};

const OPTIONS: &str = "loop,compress=none,noatime,nodiscard";

/// See the module.
pub struct Btrfs {
    image: PathBuf,
    dir: PathBuf,
}

impl Btrfs {
    /// Makes and mounts it.
    pub fn set_up(room: &Room, bytes: u64) -> Result<Btrfs> {
        let mkfs = shell::need("mkfs.btrfs", "btrfs-progs")?;
        if !shell::is_root() {
            return Err(Failure::new("only root can mount it"));
        }
        let btrfs = Btrfs { image: room.image("btrfs.img", bytes)?, dir: room.dir("btrfs")? };
        shell::run(mkfs, ["-q".as_ref(), "-K".as_ref(), btrfs.image.as_os_str()])?;
        btrfs.mount()?;
        Ok(btrfs)
    }

    fn mount(&self) -> Result<()> {
        // umount detaches a loop device that mount attached.
        let (image, dir) = (self.image.as_os_str(), self.dir.as_os_str());
        shell::run("mount", ["-t".as_ref(), "btrfs".as_ref(), "-o".as_ref(), OPTIONS.as_ref(), image, dir]).map(drop)
    }
}

impl System for Btrfs {
    fn name(&self) -> &str {
        "btrfs"
    }

    fn about(&self) -> String {
        format!("native, {OPTIONS}, on a filled file on the same disk")
    }

    fn dir(&self) -> &Path {
        &self.dir
    }

    fn remount(&mut self) -> Result<()> {
        shell::run("umount", [&self.dir])?;
        self.mount()
    }
}

impl Drop for Btrfs {
    fn drop(&mut self) {
        unmount(&self.dir);
        let _ = std::fs::remove_file(&self.image);
    }
}
