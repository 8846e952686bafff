//! The values that replies carry, in memory's terms; `abi.rs` has the wire's. Nothing here checks sense: an [`Attr`] whose
//! type differs from what the kernel remembers makes it mark the inode bad (EIO), and that is the handler's fault.

use std::time::Duration;

use crate::abi;

/// A moment: seconds since 1970 (negative before) and nanoseconds (0..1 000 000 000).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub secs: i64,
    /// Nanoseconds past `secs`.
    pub nsec: u32,
}

/// The attributes of an inode, as stat(2) shows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attr {
    /// Inode number shown to users; the kernel addresses the inode by its node id instead.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Space taken, in units of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of contents.
    pub mtime: Time,
    /// Last change of contents or attributes.
    pub ctime: Time,
    /// Type (`S_IFMT`) and permissions.
    pub mode: u32,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device, in the kernel's 32-bit encoding (that of MKNOD).
    pub rdev: u32,
    /// Preferred I/O size in bytes; it must be a power of two ≥ 512 or 0.
    pub blksize: u32,
}

/// The answer to "what is behind this name": a node, and for how long the kernel may believe it.
///
/// `nodeid` 0 is a *negative* entry: the name doesn't exist, and the kernel may remember that for `entry_valid`.
/// Every positive entry (also in readdirplus) counts as one lookup, to be balanced by FORGET.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// By which the kernel addresses the node from now on; 1 is the root.
    pub nodeid: u64,
    /// With `nodeid` unique for ever (NFS handles).
    pub generation: u64,
    /// How long the name may be cached.
    pub entry_valid: Duration,
    /// How long the attributes may be cached.
    pub attr_valid: Duration,
    /// The attributes.
    pub attr: Attr,
}

/// The answer to an open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Comes back in each request on the open file.
    pub fh: u64,
    /// [`abi::fopen`] bits.
    pub flags: u32,
}

/// The answer to statfs(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statfs {
    /// Total blocks, in units of `frsize`.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Free blocks for ordinary users.
    pub bavail: u64,
    /// Total inodes.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Preferred I/O size in bytes.
    pub bsize: u32,
    /// Longest name in bytes.
    pub namelen: u32,
    /// Fragment size in bytes.
    pub frsize: u32,
}

/// The answer to statx(2): attributes, birth time, and which of them are meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statx {
    /// The ordinary attributes.
    pub attr: Attr,
    /// Time of creation.
    pub btime: Time,
    /// `STATX_…` bits that are filled in; `STATX_BASIC_STATS` is added by the reply.
    pub mask: u32,
    /// `STATX_ATTR_…` bits.
    pub attributes: u64,
    /// Which `attributes` bits are supported.
    pub attributes_mask: u64,
}

/// A POSIX byte-range lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileLock {
    /// First byte.
    pub start: u64,
    /// Last byte, inclusive.
    pub end: u64,
    /// `F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
    pub kind: u32,
    /// Process that holds it.
    pub pid: u32,
}

impl Attr {
    pub(crate) fn to_wire(self) -> abi::AttrWire {
        abi::AttrWire {
            ino: self.ino,
            size: self.size,
            blocks: self.blocks,
            atime: self.atime.secs as u64,
            mtime: self.mtime.secs as u64,
            ctime: self.ctime.secs as u64,
            atimensec: self.atime.nsec,
            mtimensec: self.mtime.nsec,
            ctimensec: self.ctime.nsec,
            mode: self.mode,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            blksize: self.blksize,
            flags: 0,
        }
    }
}

impl Entry {
    pub(crate) fn to_wire(self) -> abi::EntryOut {
        abi::EntryOut {
            nodeid: self.nodeid,
            generation: self.generation,
            entry_valid: self.entry_valid.as_secs(),
            attr_valid: self.attr_valid.as_secs(),
            entry_valid_nsec: self.entry_valid.subsec_nanos(),
            attr_valid_nsec: self.attr_valid.subsec_nanos(),
            attr: self.attr.to_wire(),
        }
    }
}

impl Opened {
    pub(crate) fn to_wire(self) -> abi::OpenOut {
        abi::OpenOut { fh: self.fh, open_flags: self.flags, padding: 0 }
    }
}

impl Time {
    fn to_wire(self) -> abi::SxTime {
        abi::SxTime { tv_sec: self.secs, tv_nsec: self.nsec, reserved: 0 }
    }
}

impl Statx {
    /// The kernel takes the answer only if all of `STATX_BASIC_STATS` (0x7ff) is in it.
    pub(crate) fn to_wire(self) -> abi::StatxWire {
        let attr = self.attr;
        abi::StatxWire {
            mask: self.mask | libc::STATX_BASIC_STATS,
            blksize: attr.blksize,
            attributes: self.attributes,
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            mode: attr.mode as u16,
            ino: attr.ino,
            size: attr.size,
            blocks: attr.blocks,
            attributes_mask: self.attributes_mask,
            atime: attr.atime.to_wire(),
            btime: self.btime.to_wire(),
            ctime: attr.ctime.to_wire(),
            mtime: attr.mtime.to_wire(),
            rdev_major: (attr.rdev >> 8) & 0xfff,
            rdev_minor: (attr.rdev & 0xff) | ((attr.rdev >> 12) & 0xfff00),
            ..Default::default()
        }
    }
}

impl Statfs {
    pub(crate) fn to_wire(self) -> abi::StatfsOut {
        abi::StatfsOut {
            blocks: self.blocks,
            bfree: self.bfree,
            bavail: self.bavail,
            files: self.files,
            ffree: self.ffree,
            bsize: self.bsize,
            namelen: self.namelen,
            frsize: self.frsize,
            ..Default::default()
        }
    }
}
