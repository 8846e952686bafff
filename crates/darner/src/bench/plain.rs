//! The peer that is a plain directory beside the others: what the disk's own filesystem does.

use std::path::{Path, PathBuf};

use super::system::{Room, System};
use crate::error::Result;

/// See the module.
pub struct Plain {
    name: String,
    dir: PathBuf,
}

impl Plain {
    /// A directory in the room.
    pub fn set_up(name: &str, room: &Room) -> Result<Plain> {
        Ok(Plain { name: name.into(), dir: room.dir("plain")? })
    }
}

/// The type of the filesystem that a path is on.
pub fn kind_of(path: &Path) -> String {
    let mounts = crate::mounts::all().unwrap_or_default();
    let deepest = mounts.iter().filter(|m| path.starts_with(&m.mountpoint));
    deepest.max_by_key(|m| m.mountpoint.as_os_str().len()).map_or("?".into(), |m| m.kind.clone())
}

impl System for Plain {
    fn name(&self) -> &str {
        &self.name
    }

    fn about(&self) -> String {
        format!("a directory on the disk's own {}", kind_of(&self.dir))
    }

    fn dir(&self) -> &Path {
        &self.dir
    }

    fn is_mounted(&self) -> bool {
        true
    }

    fn remount(&mut self) -> Result<()> {
        Ok(())
    }
}
