//! The kernel's side of the wire: `include/uapi/linux/fuse.h`, protocol 7.45, in the machine's own byte order.
//!
//! Constants are public, since handlers test and set them; structures stay inside the crate. Sizes are checked at compile
//! time against the kernel's. Every structure is a multiple of 8 bytes, so that a 32-bit server fits a 64-bit kernel.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Major protocol version.
pub const MAJOR: u32 = 7;
/// Minor protocol version of this file.
pub const MINOR: u32 = 45;
/// Oldest minor version served (Linux 5.4).
pub const MINOR_MIN: u32 = 31;
/// Node id of the root.
pub const ROOT_ID: u64 = 1;
/// Bit of a request's id that says: sent again, after [`notify::RESEND`].
pub const UNIQUE_RESEND: u64 = 1 << 63;
/// The smallest buffer with which the kernel lets itself be read.
pub const MIN_READ_BUFFER: usize = 8192;

macro_rules! constants {
    ($ty:ty; $($name:ident = $value:expr, $doc:literal;)*) => {
        $(#[doc = $doc] pub const $name: $ty = $value;)*
        /// Each constant with its name.
        pub const NAMES: &[($ty, &str)] = &[$(($name, stringify!($name))),*];
    };
}

/// Operation codes.
pub mod opcode {
    constants! { u32;
        LOOKUP = 1, "Find a name.";
        FORGET = 2, "The kernel drops references; no reply.";
        GETATTR = 3, "stat(2).";
        SETATTR = 4, "chmod, chown, truncate, utimens.";
        READLINK = 5, "readlink(2).";
        SYMLINK = 6, "symlink(2).";
        MKNOD = 8, "mknod(2).";
        MKDIR = 9, "mkdir(2).";
        UNLINK = 10, "unlink(2).";
        RMDIR = 11, "rmdir(2).";
        RENAME = 12, "rename(2).";
        LINK = 13, "link(2).";
        OPEN = 14, "open(2).";
        READ = 15, "read(2), readahead.";
        WRITE = 16, "write(2), writeback.";
        STATFS = 17, "statfs(2).";
        RELEASE = 18, "The last close.";
        FSYNC = 20, "fsync(2).";
        SETXATTR = 21, "setxattr(2).";
        GETXATTR = 22, "getxattr(2).";
        LISTXATTR = 23, "listxattr(2).";
        REMOVEXATTR = 24, "removexattr(2).";
        FLUSH = 25, "Every close(2).";
        INIT = 26, "The handshake.";
        OPENDIR = 27, "opendir(3).";
        READDIR = 28, "readdir(3).";
        RELEASEDIR = 29, "closedir(3).";
        FSYNCDIR = 30, "fsync(2) of a directory.";
        GETLK = 31, "fcntl(F_GETLK).";
        SETLK = 32, "fcntl(F_SETLK), flock(2).";
        SETLKW = 33, "fcntl(F_SETLKW), flock(2).";
        ACCESS = 34, "access(2).";
        CREATE = 35, "open(2) with O_CREAT.";
        INTERRUPT = 36, "A signal for a waiting request; no reply needed.";
        BMAP = 37, "Block mapping.";
        DESTROY = 38, "The end.";
        IOCTL = 39, "ioctl(2).";
        POLL = 40, "poll(2).";
        NOTIFY_REPLY = 41, "Answer to notify RETRIEVE.";
        BATCH_FORGET = 42, "Many FORGETs; no reply.";
        FALLOCATE = 43, "fallocate(2).";
        READDIRPLUS = 44, "READDIR and LOOKUP in one.";
        RENAME2 = 45, "renameat2(2) with flags.";
        LSEEK = 46, "lseek(2) SEEK_HOLE, SEEK_DATA.";
        COPY_FILE_RANGE = 47, "copy_file_range(2).";
        SETUPMAPPING = 48, "DAX, virtiofs only.";
        REMOVEMAPPING = 49, "DAX, virtiofs only.";
        SYNCFS = 50, "syncfs(2).";
        TMPFILE = 51, "open(2) with O_TMPFILE.";
        STATX = 52, "statx(2).";
        COPY_FILE_RANGE_64 = 53, "copy_file_range(2) with a 64-bit reply.";
    }

    /// The operation's name, for logs.
    pub fn name(opcode: u32) -> &'static str {
        NAMES.iter().find(|(code, _)| *code == opcode).map_or("?", |(_, name)| name)
    }
}

/// What the kernel offers, and the server takes, at INIT. Bits from 32 on travel in `flags2`.
pub mod init {
    constants! { u64;
        ASYNC_READ = 1 << 0, "Several reads of one file at a time.";
        POSIX_LOCKS = 1 << 1, "fcntl locks are the server's.";
        FILE_OPS = 1 << 2, "Unused.";
        ATOMIC_O_TRUNC = 1 << 3, "OPEN truncates.";
        EXPORT_SUPPORT = 1 << 4, "LOOKUP of `.` and `..` works (NFS export).";
        BIG_WRITES = 1 << 5, "Writes above 4 KiB.";
        DONT_MASK = 1 << 6, "The umask is the server's to apply.";
        SPLICE_WRITE = 1 << 7, "splice to the device.";
        SPLICE_MOVE = 1 << 8, "splice may move pages.";
        SPLICE_READ = 1 << 9, "splice from the device.";
        FLOCK_LOCKS = 1 << 10, "flock locks are the server's.";
        HAS_IOCTL_DIR = 1 << 11, "ioctl on directories.";
        AUTO_INVAL_DATA = 1 << 12, "Cached pages are dropped when mtime or size change.";
        DO_READDIRPLUS = 1 << 13, "READDIRPLUS is served.";
        READDIRPLUS_AUTO = 1 << 14, "The kernel picks READDIR or READDIRPLUS.";
        ASYNC_DIO = 1 << 15, "Direct I/O in parallel pieces.";
        WRITEBACK_CACHE = 1 << 16, "The kernel delays writes and owns size and mtime.";
        NO_OPEN_SUPPORT = 1 << 17, "ENOSYS to OPEN means: no OPEN and RELEASE any more.";
        PARALLEL_DIROPS = 1 << 18, "Lookups and readdirs of one directory in parallel.";
        HANDLE_KILLPRIV = 1 << 19, "The server clears suid, sgid, capabilities (first version).";
        POSIX_ACL = 1 << 20, "ACLs are kept in xattrs, and checked by the kernel.";
        ABORT_ERROR = 1 << 21, "read(2) says ECONNABORTED after an abort.";
        MAX_PAGES = 1 << 22, "Requests above 32 pages.";
        CACHE_SYMLINKS = 1 << 23, "Link targets are cached.";
        NO_OPENDIR_SUPPORT = 1 << 24, "ENOSYS to OPENDIR means: no OPENDIR and RELEASEDIR any more.";
        EXPLICIT_INVAL_DATA = 1 << 25, "Cached pages are dropped only when the server says so.";
        MAP_ALIGNMENT = 1 << 26, "DAX.";
        SUBMOUNTS = 1 << 27, "Directories announced as submounts.";
        HANDLE_KILLPRIV_V2 = 1 << 28, "The server clears suid, sgid, capabilities when told to.";
        SETXATTR_EXT = 1 << 29, "SETXATTR carries flags of its own.";
        INIT_EXT = 1 << 30, "`flags2` exists.";
        SECURITY_CTX = 1 << 32, "Security context at creation.";
        HAS_INODE_DAX = 1 << 33, "DAX by inode.";
        CREATE_SUPP_GROUP = 1 << 34, "The supplementary group that matches the parent's, at creation.";
        HAS_EXPIRE_ONLY = 1 << 35, "Entries can be expired instead of dropped.";
        DIRECT_IO_ALLOW_MMAP = 1 << 36, "Shared mmap of files opened for direct I/O.";
        PASSTHROUGH = 1 << 37, "Backing files.";
        NO_EXPORT_SUPPORT = 1 << 38, "No NFS export at all.";
        HAS_RESEND = 1 << 39, "Unanswered requests can be sent again.";
        ALLOW_IDMAP = 1 << 40, "Mounts with mapped ids.";
        OVER_IO_URING = 1 << 41, "io_uring transport.";
        REQUEST_TIMEOUT = 1 << 42, "The kernel ends requests that take too long.";
    }

    /// The names of the flags, for people; bits unknown here show as `bit N`.
    pub fn names(flags: u64) -> String {
        let name = |bit: u32| {
            let found = NAMES.iter().find(|(flag, _)| *flag == 1 << bit);
            found.map_or_else(|| format!("bit {bit}"), |(_, name)| name.to_string())
        };
        (0..64).filter(|bit| flags & (1 << bit) != 0).map(name).collect::<Vec<_>>().join(" ")
    }
}

/// Which attributes a SETATTR sets.
pub mod fattr {
    constants! { u32;
        MODE = 1 << 0, "Permissions.";
        UID = 1 << 1, "Owner.";
        GID = 1 << 2, "Group.";
        SIZE = 1 << 3, "Truncate or extend.";
        ATIME = 1 << 4, "Access time.";
        MTIME = 1 << 5, "Modification time.";
        FH = 1 << 6, "The file handle is valid.";
        ATIME_NOW = 1 << 7, "Access time is the server's now.";
        MTIME_NOW = 1 << 8, "Modification time is the server's now.";
        LOCKOWNER = 1 << 9, "The lock owner is valid.";
        CTIME = 1 << 10, "Change time (writeback cache only).";
        KILL_SUIDGID = 1 << 11, "Clear suid and sgid, with the size.";
    }
}

/// Flags in the reply to an open.
pub mod fopen {
    constants! { u32;
        DIRECT_IO = 1 << 0, "No page cache.";
        KEEP_CACHE = 1 << 1, "Keep what the page cache has of an earlier open.";
        NONSEEKABLE = 1 << 2, "No seeking.";
        CACHE_DIR = 1 << 3, "Cache the directory's listing.";
        STREAM = 1 << 4, "No file position.";
        NOFLUSH = 1 << 5, "No FLUSH on close.";
        PARALLEL_DIRECT_WRITES = 1 << 6, "Several direct writes of one file at a time.";
        PASSTHROUGH = 1 << 7, "Backed by another file.";
    }
}

/// Flags of several requests.
pub mod flags {
    constants! { u32;
        OPEN_KILL_SUIDGID = 1 << 0, "OPEN, CREATE `open_flags`: clear suid and sgid (O_TRUNC by a caller without CAP_FSETID).";
        WRITE_CACHE = 1 << 0, "WRITE: delayed write from the page cache; the handle is a guess.";
        WRITE_LOCKOWNER = 1 << 1, "WRITE: the lock owner is valid.";
        WRITE_KILL_SUIDGID = 1 << 2, "WRITE: clear suid and sgid.";
        SETXATTR_ACL_KILL_SGID = 1 << 0, "SETXATTR: clear sgid with system.posix_acl_access.";
        RELEASE_FLUSH = 1 << 0, "RELEASE: flush first.";
        RELEASE_FLOCK_UNLOCK = 1 << 1, "RELEASE: drop the flock lock.";
        LK_FLOCK = 1 << 0, "SETLK: flock(2), not fcntl(2).";
    }
}

/// Messages that the server sends unasked.
pub mod notify {
    constants! { i32;
        POLL = 1, "A polled file is ready.";
        INVAL_INODE = 2, "Drop attributes and pages.";
        INVAL_ENTRY = 3, "Drop a name.";
        STORE = 4, "Put data into the page cache.";
        RETRIEVE = 5, "Get data from the page cache.";
        DELETE = 6, "A name was removed elsewhere.";
        RESEND = 7, "Send all unanswered requests again.";
        PRUNE = 9, "Forget unused inodes.";
    }
    /// Flag of INVAL_ENTRY: let the name be looked up again, instead of dropping it.
    pub const EXPIRE_ONLY: u32 = 1;
}

macro_rules! wire {
    ($($name:ident $size:literal { $($field:ident: $ty:ty),* $(,)? })*) => {$(
        #[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub(crate) struct $name { $(pub $field: $ty),* }
        const _: () = assert!(size_of::<$name>() == $size);
    )*};
}

wire! {
    InHeader 40 { len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32, total_extlen: u16, padding: u16 }
    OutHeader 16 { len: u32, error: i32, unique: u64 }

    InitIn 16 { major: u32, minor: u32, max_readahead: u32, flags: u32 }
    InitInExt 48 { flags2: u32, unused: [u32; 11] }
    InitOut 64 {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16, congestion_threshold: u16,
        max_write: u32, time_gran: u32, max_pages: u16, map_alignment: u16, flags2: u32, max_stack_depth: u32,
        request_timeout: u16, unused: [u16; 11],
    }

    ForgetIn 8 { nlookup: u64 }
    ForgetOne 16 { nodeid: u64, nlookup: u64 }
    BatchForgetIn 8 { count: u32, dummy: u32 }
    GetattrIn 16 { getattr_flags: u32, dummy: u32, fh: u64 }
    SetattrIn 88 {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    MknodIn 16 { mode: u32, rdev: u32, umask: u32, padding: u32 }
    MkdirIn 8 { mode: u32, umask: u32 }
    RenameIn 8 { newdir: u64 }
    Rename2In 16 { newdir: u64, flags: u32, padding: u32 }
    LinkIn 8 { oldnodeid: u64 }
    OpenIn 8 { flags: u32, open_flags: u32 }
    CreateIn 16 { flags: u32, mode: u32, umask: u32, open_flags: u32 }
    ReadIn 40 { fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    WriteIn 40 { fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    ReleaseIn 24 { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    FlushIn 24 { fh: u64, unused: u32, padding: u32, lock_owner: u64 }
    FsyncIn 16 { fh: u64, fsync_flags: u32, padding: u32 }
    SetxattrIn 8 { size: u32, flags: u32 }
    SetxattrExt 8 { setxattr_flags: u32, padding: u32 }
    GetxattrIn 8 { size: u32, padding: u32 }
    LockWire 24 { start: u64, end: u64, kind: u32, pid: u32 }
    LkIn 48 { fh: u64, owner: u64, lk: LockWire, lk_flags: u32, padding: u32 }
    AccessIn 8 { mask: u32, padding: u32 }
    InterruptIn 8 { unique: u64 }
    BmapIn 16 { block: u64, blocksize: u32, padding: u32 }
    IoctlIn 32 { fh: u64, flags: u32, cmd: u32, arg: u64, in_size: u32, out_size: u32 }
    PollIn 24 { fh: u64, kh: u64, flags: u32, events: u32 }
    FallocateIn 32 { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    LseekIn 24 { fh: u64, offset: u64, whence: u32, padding: u32 }
    CopyFileRangeIn 56 { fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64 }
    StatxIn 24 { getattr_flags: u32, reserved: u32, fh: u64, sx_flags: u32, sx_mask: u32 }

    AttrWire 88 {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32, mtimensec: u32,
        ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
    }
    EntryOut 128 {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32, attr_valid_nsec: u32,
        attr: AttrWire,
    }
    AttrOut 104 { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: AttrWire }
    OpenOut 16 { fh: u64, open_flags: u32, padding: u32 }
    CreateOut 144 { entry: EntryOut, open: OpenOut }
    WriteOut 8 { size: u32, padding: u32 }
    CopyFileRangeOut 8 { bytes_copied: u64 }
    StatfsOut 80 {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32, frsize: u32,
        padding: u32, spare: [u32; 6],
    }
    GetxattrOut 8 { size: u32, padding: u32 }
    LseekOut 8 { offset: u64 }
    BmapOut 8 { block: u64 }
    PollOut 8 { revents: u32, padding: u32 }
    IoctlOut 16 { result: i32, flags: u32, in_iovs: u32, out_iovs: u32 }
    SxTime 16 { tv_sec: i64, tv_nsec: u32, reserved: i32 }
    StatxWire 256 {
        mask: u32, blksize: u32, attributes: u64, nlink: u32, uid: u32, gid: u32, mode: u16, spare0: u16, ino: u64,
        size: u64, blocks: u64, attributes_mask: u64, atime: SxTime, btime: SxTime, ctime: SxTime, mtime: SxTime,
        rdev_major: u32, rdev_minor: u32, dev_major: u32, dev_minor: u32, spare2: [u64; 14],
    }
    StatxOut 288 { attr_valid: u64, attr_valid_nsec: u32, flags: u32, spare: [u64; 2], stat: StatxWire }
    Dirent 24 { ino: u64, off: u64, namelen: u32, kind: u32 }

    InvalInodeOut 24 { ino: u64, off: i64, len: i64 }
    InvalEntryOut 16 { parent: u64, namelen: u32, flags: u32 }
    DeleteOut 24 { parent: u64, child: u64, namelen: u32, padding: u32 }
    StoreOut 24 { nodeid: u64, offset: u64, size: u32, padding: u32 }
}
