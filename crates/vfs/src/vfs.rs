//! What a filesystem is to a plug-in that implements one.

use std::time::Duration;

use crate::listing::Listing;

/// The number of the root directory.
pub const ROOT: u64 = 1;

/// Why an operation failed: a number of `errno.h`, as Linux has them on x86-64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

/// Result of an operation.
pub type Result<T> = std::result::Result<T, Errno>;

impl From<std::io::Error> for Errno {
    fn from(e: std::io::Error) -> Errno {
        Errno(e.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

/// What stat(2) tells of a node. Times are nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attr {
    /// Its number. One number means one node for ever, also after the plug-in was started again.
    pub node: u64,
    /// Type and permissions.
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// Names; 0 is shown as 1.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device, for special files.
    pub rdev: u32,
    /// Last access.
    pub atime: i64,
    /// Last change of contents.
    pub mtime: i64,
    /// Last change of anything.
    pub ctime: i64,
}

/// What a plug-in says of itself when it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// For people.
    pub name: String,
    /// Whether anything can be changed.
    pub writable: bool,
    /// How long names, attributes and contents may be remembered. What nobody but the kernel changes, for long.
    pub valid: Duration,
}

/// What is to be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct New<'a> {
    /// Type and permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device, for special files.
    pub rdev: u32,
    /// What a symbolic link leads to.
    pub target: &'a [u8],
}

/// What is to be changed; `None` stays. Times are nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Permissions.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length; what is added reads as zeroes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<i64>,
    /// Last change of contents.
    pub mtime: Option<i64>,
}

/// What statfs(2) tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Bytes of a block.
    pub block: u32,
    /// Blocks.
    pub blocks: u64,
    /// Free ones.
    pub free: u64,
    /// Nodes.
    pub files: u64,
    /// That could be made.
    pub files_free: u64,
    /// Longest name, bytes.
    pub name_max: u32,
}

const NO: Errno = Errno(libc::ENOSYS);
const READ_ONLY: Errno = Errno(libc::EROFS);

/// A filesystem. Operations come one after the other, on one thread. A node that does not exist (any more) is ESTALE, a
/// name that does not, ENOENT. Names are 1 to 255 bytes without `/` and NUL, and never `.` or `..`.
pub trait Vfs: Send + Sync {
    /// What this is.
    fn info(&self) -> Info;

    /// What has a name in a directory.
    fn lookup(&self, dir: u64, name: &[u8]) -> Result<Attr>;

    /// What a node is.
    fn getattr(&self, node: u64) -> Result<Attr>;

    /// What a directory holds, without `.` and `..`, from behind the entry with this cookie (0: from the first) until the
    /// listing is full. What is neither made nor removed meanwhile must come up exactly once.
    fn readdir(&self, dir: u64, after: u64, listing: &mut Listing) -> Result<()>;

    /// Bytes of a file, as many as there are and `buffer` takes. The buffer is memory that the host sees: nothing
    /// is copied after this.
    fn read(&self, node: u64, offset: u64, buffer: &mut [u8]) -> Result<usize>;

    /// What a symbolic link leads to.
    fn readlink(&self, _node: u64) -> Result<Vec<u8>> {
        Err(NO)
    }

    /// How full it is.
    fn statfs(&self) -> Result<Space> {
        Ok(Space { block: 4096, name_max: 255, ..Space::default() })
    }

    /// Makes a file, a directory, a symbolic link or a special file.
    fn create(&self, _dir: u64, _name: &[u8], _new: &New<'_>) -> Result<Attr> {
        Err(READ_ONLY)
    }

    /// Writes all of `data`, or fails.
    fn write(&self, _node: u64, _offset: u64, _data: &[u8]) -> Result<()> {
        Err(READ_ONLY)
    }

    /// Changes attributes; what can't be kept may be passed over.
    fn setattr(&self, _node: u64, _wanted: &Wanted) -> Result<Attr> {
        Err(READ_ONLY)
    }

    /// Takes away the name of what is no directory.
    fn unlink(&self, _dir: u64, _name: &[u8]) -> Result<()> {
        Err(READ_ONLY)
    }

    /// Takes away an empty directory.
    fn rmdir(&self, _dir: u64, _name: &[u8]) -> Result<()> {
        Err(READ_ONLY)
    }

    /// Gives another name; what has it is replaced, or with `keep` that is EEXIST.
    fn rename(&self, _dir: u64, _name: &[u8], _new_dir: u64, _new_name: &[u8], _keep: bool) -> Result<()> {
        Err(READ_ONLY)
    }

    /// Returns when everything is durable.
    fn sync(&self) -> Result<()> {
        Ok(())
    }
}
