//! What the kernel asks, typed. Names and data are borrowed from the thread's request buffer: what must outlive the call
//! has to be copied. Bit sets keep the kernel's values (`abi`, `libc`); nothing is interpreted here.

use zerocopy::FromBytes;

use crate::{
    abi,
    types::{FileLock, Time},
};

/// One operation on the node that [`Request::nodeid`](crate::Request::nodeid) names (for names: their directory).
///
/// `name`s are never empty and hold no NUL.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // the fields carry the names of fuse.h and of the system call's arguments
pub enum Operation<'a> {
    /// Answer: entry. ENOENT, or an entry with node id 0 to have the absence cached.
    Lookup { name: &'a [u8] },
    /// `nlookup` of the entries given out are gone. No answer.
    Forget { nlookup: u64 },
    /// Many of them. No answer.
    BatchForget(Forgets<'a>),
    /// Answer: attr.
    Getattr { fh: Option<u64> },
    /// Answer: attr.
    Setattr(Setattr),
    /// Answer: data.
    Readlink,
    /// Answer: entry.
    Symlink { name: &'a [u8], target: &'a [u8] },
    /// Answer: entry. `mode` with type; `umask` is still to be applied if DONT_MASK was negotiated.
    Mknod { name: &'a [u8], mode: u32, rdev: u32, umask: u32 },
    /// Answer: entry.
    Mkdir { name: &'a [u8], mode: u32, umask: u32 },
    /// Answer: empty.
    Unlink { name: &'a [u8] },
    /// Answer: empty.
    Rmdir { name: &'a [u8] },
    /// Answer: empty. `flags`: `RENAME_NOREPLACE`, `RENAME_EXCHANGE`, `RENAME_WHITEOUT`.
    Rename { name: &'a [u8], newdir: u64, newname: &'a [u8], flags: u32 },
    /// A new name, in the request's directory, for `oldnode`. Answer: entry (of `oldnode`).
    Link { oldnode: u64, name: &'a [u8] },
    /// Answer: opened; ENOSYS declines OPEN and RELEASE for good, if NO_OPEN_SUPPORT was negotiated.
    Open { flags: u32, open_flags: u32 },
    /// Answer: data, shorter than `size` only at the end of the file. `flags`: those of the open file.
    Read { fh: u64, offset: u64, size: u32, flags: u32, lock_owner: Option<u64> },
    /// Answer: written. `data` is aligned to a page in memory. O_APPEND in `flags`: the server picks the offset.
    Write { fh: u64, offset: u64, data: &'a [u8], write_flags: u32, flags: u32, lock_owner: Option<u64> },
    /// Answer: statfs.
    Statfs,
    /// Answer: empty.
    Release { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 },
    /// Answer: empty. ENOSYS means "always succeeds" from now on.
    Fsync { fh: u64, datasync: bool },
    /// Answer: empty. `flags`: `XATTR_CREATE`, `XATTR_REPLACE`.
    Setxattr { name: &'a [u8], value: &'a [u8], flags: u32, setxattr_flags: u32 },
    /// Answer: `xattr_size` if `size` is 0, else data, or ERANGE. ENOSYS: EOPNOTSUPP for ever.
    Getxattr { name: &'a [u8], size: u32 },
    /// Answer: as for getxattr; the names, each ended by NUL.
    Listxattr { size: u32 },
    /// Answer: empty.
    Removexattr { name: &'a [u8] },
    /// Answer: empty. ENOSYS: no FLUSH from now on.
    Flush { fh: u64, lock_owner: u64 },
    /// The handshake; the session answers it, no handler sees it.
    Init { major: u32, minor: u32, max_readahead: u32, flags: u64 },
    /// Answer: opened; ENOSYS as for open.
    Opendir { flags: u32 },
    /// Answer: dir. `offset` is that of the last entry taken, 0 at first.
    Readdir { fh: u64, offset: u64, size: u32 },
    /// Answer: dir, with entries; each but `.` and `..` counts as a lookup.
    Readdirplus { fh: u64, offset: u64, size: u32 },
    /// Answer: empty.
    Releasedir { fh: u64, flags: u32 },
    /// Answer: empty.
    Fsyncdir { fh: u64, datasync: bool },
    /// Answer: lock.
    Getlk { fh: u64, owner: u64, lock: FileLock, lk_flags: u32 },
    /// Answer: empty, or EAGAIN.
    Setlk { fh: u64, owner: u64, lock: FileLock, lk_flags: u32 },
    /// Answer: empty, when the lock is there. Must not hold a serving thread: defer the reply.
    Setlkw { fh: u64, owner: u64, lock: FileLock, lk_flags: u32 },
    /// Answer: empty or EACCES; ENOSYS: not asked again.
    Access { mask: u32 },
    /// Answer: create (entry and opened).
    Create { name: &'a [u8], flags: u32, mode: u32, umask: u32, open_flags: u32 },
    /// The caller of request `unique` got a signal. No answer needed; EAGAIN asks to be told again.
    Interrupt { unique: u64 },
    /// Answer: bmap.
    Bmap { block: u64, blocksize: u32 },
    /// The mount ends. Answer: empty. Not sent on a plain mount.
    Destroy,
    /// Answer: ioctl, or ENOTTY.
    Ioctl(Ioctl<'a>),
    /// Answer: poll; ENOSYS: always ready.
    Poll { fh: u64, kh: u64, flags: u32, events: u32 },
    /// Answer: empty. EOPNOTSUPP for a mode that isn't served; ENOSYS: none is.
    Fallocate { fh: u64, offset: u64, length: u64, mode: u32 },
    /// Answer: lseek. `SEEK_DATA`, `SEEK_HOLE` only.
    Lseek { fh: u64, offset: u64, whence: u32 },
    /// Answer: copied, which knows whether the request was the 32- or the 64-bit one.
    CopyFileRange { fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64 },
    /// Answer: create (entry and opened); the request's node is the directory.
    Tmpfile { flags: u32, mode: u32, umask: u32, open_flags: u32 },
    /// Answer: statx; ENOSYS: GETATTR only.
    Statx { fh: Option<u64>, sx_flags: u32, sx_mask: u32 },
    /// Answer: empty.
    Syncfs,
    /// A kernel newer than us, or DAX. Answer: ENOSYS.
    Unknown(u32),
}

/// What SETATTR sets; `None` is left alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Setattr {
    /// The raw [`abi::fattr`] bits.
    pub valid: u32,
    /// The open file through which it came.
    pub fh: Option<u64>,
    /// Permissions.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Truncate or extend.
    pub size: Option<u64>,
    /// For mandatory locks.
    pub lock_owner: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
    /// Change time (writeback cache only).
    pub ctime: Option<Time>,
    /// Clear suid and sgid on the way.
    pub kill_suidgid: bool,
}

/// A time to be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The server's own clock.
    Now,
    /// As given.
    At(Time),
}

/// An ioctl(2).
#[derive(Clone, Copy, Debug)]
pub struct Ioctl<'a> {
    /// The open file.
    pub fh: u64,
    /// `FUSE_IOCTL_…` bits.
    pub flags: u32,
    /// The command.
    pub cmd: u32,
    /// Its argument, an address in the caller.
    pub arg: u64,
    /// Bytes fetched from the caller.
    pub data: &'a [u8],
    /// Bytes that the caller has room for.
    pub out_size: u32,
}

/// The (node id, lookups) pairs of a BATCH_FORGET.
#[derive(Clone, Copy, Debug)]
pub struct Forgets<'a> {
    pub(crate) bytes: &'a [u8],
}

impl Iterator for Forgets<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<Self::Item> {
        let (one, rest) = abi::ForgetOne::read_from_prefix(self.bytes).ok()?;
        self.bytes = rest;
        Some((one.nodeid, one.nlookup))
    }
}

impl Setattr {
    pub(crate) fn from_wire(wire: &abi::SetattrIn) -> Self {
        let has = |bit| wire.valid & bit != 0;
        let time = |set, now, secs: u64, nsec| {
            let at = SetTime::At(Time { secs: secs as i64, nsec });
            has(set).then_some(if has(now) { SetTime::Now } else { at })
        };
        use abi::fattr as f;
        Self {
            valid: wire.valid,
            fh: has(f::FH).then_some(wire.fh),
            mode: has(f::MODE).then_some(wire.mode),
            uid: has(f::UID).then_some(wire.uid),
            gid: has(f::GID).then_some(wire.gid),
            size: has(f::SIZE).then_some(wire.size),
            lock_owner: has(f::LOCKOWNER).then_some(wire.lock_owner),
            atime: time(f::ATIME, f::ATIME_NOW, wire.atime, wire.atimensec),
            mtime: time(f::MTIME, f::MTIME_NOW, wire.mtime, wire.mtimensec),
            ctime: has(f::CTIME).then_some(Time { secs: wire.ctime as i64, nsec: wire.ctimensec }),
            kill_suidgid: has(f::KILL_SUIDGID),
        }
    }
}
