//! The arguments of each operation, from bytes to [`Operation`]; grouped as system calls are.
//!
//! Fixed parts are copied out (no alignment needed), names and data stay borrowed.

use zerocopy::FromBytes;

use crate::{
    abi::{self, opcode as op},
    operation::{Forgets, Ioctl, Operation, Setattr},
    request::Dialect,
    types::FileLock,
};

/// What is left of a request's arguments; each call takes from the front.
struct Args<'a>(&'a [u8]);

type Parsed<T> = Result<T, &'static str>;

impl<'a> Args<'a> {
    fn take<T: FromBytes>(&mut self) -> Parsed<T> {
        let (value, rest) = T::read_from_prefix(self.0).map_err(|_| "arguments cut short")?;
        self.0 = rest;
        Ok(value)
    }

    /// A string up to its NUL.
    fn string(&mut self) -> Parsed<&'a [u8]> {
        let end = self.0.iter().position(|&byte| byte == 0).ok_or("string without an end")?;
        let (string, rest) = self.0.split_at(end);
        self.0 = &rest[1..];
        Ok(string)
    }

    fn name(&mut self) -> Parsed<&'a [u8]> {
        match self.string()? {
            [] => Err("empty name"),
            name => Ok(name),
        }
    }

    fn bytes(&mut self, len: u32) -> Parsed<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len as usize).ok_or("data cut short")?;
        self.0 = rest;
        Ok(bytes)
    }
}

/// Reads the arguments of an operation.
pub(crate) fn operation<'a>(opcode: u32, args: &'a [u8], dialect: Dialect) -> Parsed<Operation<'a>> {
    let mut args = Args(args);
    match opcode {
        op::LOOKUP..=op::LINK => naming(opcode, &mut args),
        op::CREATE | op::TMPFILE | op::RENAME2 => naming(opcode, &mut args),
        op::SETXATTR..=op::REMOVEXATTR => xattr(opcode, &mut args, dialect),
        op::OPENDIR..=op::FSYNCDIR | op::READDIRPLUS => directory(opcode, &mut args),
        op::OPEN..=op::FSYNC | op::FLUSH => file(opcode, &mut args),
        op::GETLK | op::SETLK | op::SETLKW => lock(opcode, &mut args),
        op::IOCTL | op::POLL | op::FALLOCATE | op::LSEEK | op::COPY_FILE_RANGE | op::COPY_FILE_RANGE_64 => {
            file_extra(opcode, &mut args)
        }
        _ => whole(opcode, &mut args),
    }
}

/// Nodes, their attributes and their names.
fn naming<'a>(opcode: u32, args: &mut Args<'a>) -> Parsed<Operation<'a>> {
    Ok(match opcode {
        op::LOOKUP => Operation::Lookup { name: args.name()? },
        op::FORGET => Operation::Forget { nlookup: args.take::<abi::ForgetIn>()?.nlookup },
        op::GETATTR => {
            let get: abi::GetattrIn = args.take()?;
            Operation::Getattr { fh: (get.getattr_flags & 1 != 0).then_some(get.fh) }
        }
        op::SETATTR => Operation::Setattr(Setattr::from_wire(&args.take()?)),
        op::READLINK => Operation::Readlink,
        op::SYMLINK => Operation::Symlink { name: args.name()?, target: args.string()? },
        op::MKNOD => {
            let abi::MknodIn { mode, rdev, umask, .. } = args.take()?;
            Operation::Mknod { name: args.name()?, mode, rdev, umask }
        }
        op::MKDIR => {
            let abi::MkdirIn { mode, umask } = args.take()?;
            Operation::Mkdir { name: args.name()?, mode, umask }
        }
        op::UNLINK => Operation::Unlink { name: args.name()? },
        op::RMDIR => Operation::Rmdir { name: args.name()? },
        op::RENAME => {
            let newdir = args.take::<abi::RenameIn>()?.newdir;
            Operation::Rename { name: args.name()?, newdir, newname: args.name()?, flags: 0 }
        }
        op::RENAME2 => {
            let abi::Rename2In { newdir, flags, .. } = args.take()?;
            Operation::Rename { name: args.name()?, newdir, newname: args.name()?, flags }
        }
        op::LINK => {
            let oldnode = args.take::<abi::LinkIn>()?.oldnodeid;
            Operation::Link { oldnode, name: args.name()? }
        }
        op::CREATE => {
            let abi::CreateIn { flags, mode, umask, open_flags } = args.take()?;
            Operation::Create { name: args.name()?, flags, mode, umask, open_flags }
        }
        op::TMPFILE => {
            let abi::CreateIn { flags, mode, umask, open_flags } = args.take()?;
            Operation::Tmpfile { flags, mode, umask, open_flags }
        }
        other => Operation::Unknown(other),
    })
}

/// Open files (and STATFS, whose number lies among them).
fn file<'a>(opcode: u32, args: &mut Args<'a>) -> Parsed<Operation<'a>> {
    Ok(match opcode {
        op::OPEN => {
            let abi::OpenIn { flags, open_flags } = args.take()?;
            Operation::Open { flags, open_flags }
        }
        op::READ => {
            let read: abi::ReadIn = args.take()?;
            let abi::ReadIn { fh, offset, size, flags, .. } = read;
            let lock_owner = (read.read_flags & abi::flags::WRITE_LOCKOWNER != 0).then_some(read.lock_owner);
            Operation::Read { fh, offset, size, flags, lock_owner }
        }
        op::WRITE => {
            let write: abi::WriteIn = args.take()?;
            let abi::WriteIn { fh, offset, write_flags, flags, .. } = write;
            let lock_owner = (write_flags & abi::flags::WRITE_LOCKOWNER != 0).then_some(write.lock_owner);
            Operation::Write { fh, offset, data: args.bytes(write.size)?, write_flags, flags, lock_owner }
        }
        op::STATFS => Operation::Statfs,
        op::RELEASE => {
            let abi::ReleaseIn { fh, flags, release_flags, lock_owner } = args.take()?;
            Operation::Release { fh, flags, release_flags, lock_owner }
        }
        op::FSYNC => {
            let abi::FsyncIn { fh, fsync_flags, .. } = args.take()?;
            Operation::Fsync { fh, datasync: fsync_flags & 1 != 0 }
        }
        op::FLUSH => {
            let abi::FlushIn { fh, lock_owner, .. } = args.take()?;
            Operation::Flush { fh, lock_owner }
        }
        other => Operation::Unknown(other),
    })
}

fn directory<'a>(opcode: u32, args: &mut Args<'a>) -> Parsed<Operation<'a>> {
    Ok(match opcode {
        op::OPENDIR => Operation::Opendir { flags: args.take::<abi::OpenIn>()?.flags },
        op::READDIR => {
            let abi::ReadIn { fh, offset, size, .. } = args.take()?;
            Operation::Readdir { fh, offset, size }
        }
        op::READDIRPLUS => {
            let abi::ReadIn { fh, offset, size, .. } = args.take()?;
            Operation::Readdirplus { fh, offset, size }
        }
        op::RELEASEDIR => {
            let abi::ReleaseIn { fh, flags, .. } = args.take()?;
            Operation::Releasedir { fh, flags }
        }
        op::FSYNCDIR => {
            let abi::FsyncIn { fh, fsync_flags, .. } = args.take()?;
            Operation::Fsyncdir { fh, datasync: fsync_flags & 1 != 0 }
        }
        other => Operation::Unknown(other),
    })
}

fn xattr<'a>(opcode: u32, args: &mut Args<'a>, dialect: Dialect) -> Parsed<Operation<'a>> {
    Ok(match opcode {
        op::SETXATTR => {
            let abi::SetxattrIn { size, flags } = args.take()?;
            let setxattr_flags = match dialect.setxattr_ext {
                true => args.take::<abi::SetxattrExt>()?.setxattr_flags,
                false => 0,
            };
            Operation::Setxattr { name: args.name()?, value: args.bytes(size)?, flags, setxattr_flags }
        }
        op::GETXATTR => {
            let size = args.take::<abi::GetxattrIn>()?.size;
            Operation::Getxattr { name: args.name()?, size }
        }
        op::LISTXATTR => Operation::Listxattr { size: args.take::<abi::GetxattrIn>()?.size },
        op::REMOVEXATTR => Operation::Removexattr { name: args.name()? },
        other => Operation::Unknown(other),
    })
}

fn lock<'a>(opcode: u32, args: &mut Args<'a>) -> Parsed<Operation<'a>> {
    let abi::LkIn { fh, owner, lk, lk_flags, .. } = args.take()?;
    let lock = FileLock { start: lk.start, end: lk.end, kind: lk.kind, pid: lk.pid };
    Ok(match opcode {
        op::GETLK => Operation::Getlk { fh, owner, lock, lk_flags },
        op::SETLK => Operation::Setlk { fh, owner, lock, lk_flags },
        op::SETLKW => Operation::Setlkw { fh, owner, lock, lk_flags },
        other => Operation::Unknown(other),
    })
}

fn file_extra<'a>(opcode: u32, args: &mut Args<'a>) -> Parsed<Operation<'a>> {
    Ok(match opcode {
        op::IOCTL => {
            let abi::IoctlIn { fh, flags, cmd, arg, in_size, out_size } = args.take()?;
            Operation::Ioctl(Ioctl { fh, flags, cmd, arg, data: args.bytes(in_size)?, out_size })
        }
        op::POLL => {
            let abi::PollIn { fh, kh, flags, events } = args.take()?;
            Operation::Poll { fh, kh, flags, events }
        }
        op::FALLOCATE => {
            let abi::FallocateIn { fh, offset, length, mode, .. } = args.take()?;
            Operation::Fallocate { fh, offset, length, mode }
        }
        op::LSEEK => {
            let abi::LseekIn { fh, offset, whence, .. } = args.take()?;
            Operation::Lseek { fh, offset, whence }
        }
        op::COPY_FILE_RANGE | op::COPY_FILE_RANGE_64 => {
            let abi::CopyFileRangeIn { fh_in, off_in, nodeid_out, fh_out, off_out, len, flags } = args.take()?;
            Operation::CopyFileRange { fh_in, off_in, nodeid_out, fh_out, off_out, len, flags }
        }
        other => Operation::Unknown(other),
    })
}

/// The session, the filesystem as a whole, and the rest.
fn whole<'a>(opcode: u32, args: &mut Args<'a>) -> Parsed<Operation<'a>> {
    Ok(match opcode {
        op::INIT => {
            let abi::InitIn { major, minor, max_readahead, flags } = args.take()?;
            let extended = u64::from(flags) & abi::init::INIT_EXT != 0;
            let flags2 = if extended { args.take::<abi::InitInExt>()?.flags2 } else { 0 };
            Operation::Init { major, minor, max_readahead, flags: u64::from(flags) | u64::from(flags2) << 32 }
        }
        op::BATCH_FORGET => {
            let count = args.take::<abi::BatchForgetIn>()?.count;
            let len = count.checked_mul(16).ok_or("more forgets than a message can hold")?;
            Operation::BatchForget(Forgets { bytes: args.bytes(len)? })
        }
        op::ACCESS => Operation::Access { mask: args.take::<abi::AccessIn>()?.mask },
        op::INTERRUPT => Operation::Interrupt { unique: args.take::<abi::InterruptIn>()?.unique & !abi::UNIQUE_RESEND },
        op::BMAP => {
            let abi::BmapIn { block, blocksize, .. } = args.take()?;
            Operation::Bmap { block, blocksize }
        }
        op::DESTROY => Operation::Destroy,
        op::SYNCFS => Operation::Syncfs,
        op::STATX => {
            let abi::StatxIn { getattr_flags, fh, sx_flags, sx_mask, .. } = args.take()?;
            Operation::Statx { fh: (getattr_flags & 1 != 0).then_some(fh), sx_flags, sx_mask }
        }
        other => Operation::Unknown(other),
    })
}
