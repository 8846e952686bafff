//! Answers. Each goes out in one writev(2), straight from the caller's memory.
//!
//! Invariants:
//! * A [`Reply`] is consumed by answering. Dropped unanswered it answers EIO and logs that as a bug; dropped by a panic it
//!   answers nothing, so that the worker after us gets the request again (resend).
//! * The kernel gets exactly one answer to each request that wants one, none to FORGET.
//! * An answer that nobody waits for any more (interrupted, aborted, unmounted) isn't an error.

use std::{
    io::{self, IoSlice},
    mem::ManuallyDrop,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use zerocopy::{Immutable, IntoBytes};

use crate::{
    abi::{self, OutHeader, opcode as op},
    dir::DirBuffer,
    types::{Attr, Entry, FileLock, Opened, Statfs, Statx},
};

/// The duty to answer one request.
#[must_use = "dropping a reply answers EIO"]
#[derive(Debug)]
pub struct Reply<'a> {
    fd: &'a Arc<OwnedFd>,
    unique: u64,
    opcode: u32,
}

/// A [`Reply`] that owns what it needs: answer later, from any thread.
#[derive(Debug)]
pub struct DeferredReply {
    fd: Arc<OwnedFd>,
    unique: u64,
    opcode: u32,
    answered: bool,
}

impl<'a> Reply<'a> {
    pub(crate) fn new(fd: &'a Arc<OwnedFd>, unique: u64, opcode: u32) -> Self {
        Self { fd, unique, opcode }
    }

    /// For answering later, when the request buffer is long in other use.
    pub fn defer(self) -> DeferredReply {
        let this = ManuallyDrop::new(self);
        DeferredReply { fd: Arc::clone(this.fd), unique: this.unique, opcode: this.opcode, answered: false }
    }

    /// Fails with a (positive) errno.
    pub fn error(self, errno: i32) {
        self.send(errno, &[]);
    }

    /// Success, nothing to say.
    pub fn empty(self) {
        self.send(0, &[]);
    }

    /// A node: LOOKUP, MKNOD, MKDIR, SYMLINK, LINK.
    pub fn entry(self, entry: &Entry) {
        self.wire(&entry.to_wire());
    }

    /// Attributes, and for how long they may be cached: GETATTR, SETATTR.
    pub fn attr(self, attr: &Attr, valid: Duration) {
        let (attr_valid, attr_valid_nsec) = (valid.as_secs(), valid.subsec_nanos());
        self.wire(&abi::AttrOut { attr_valid, attr_valid_nsec, dummy: 0, attr: attr.to_wire() });
    }

    /// As [`attr`](Self::attr), for STATX.
    pub fn statx(self, statx: &Statx, valid: Duration) {
        let (attr_valid, attr_valid_nsec) = (valid.as_secs(), valid.subsec_nanos());
        let stat = statx.to_wire();
        self.wire(&abi::StatxOut { attr_valid, attr_valid_nsec, flags: 0, spare: [0; 2], stat });
    }

    /// An open file or directory.
    pub fn opened(self, opened: Opened) {
        self.wire(&opened.to_wire());
    }

    /// A new node and its open file: CREATE, TMPFILE.
    pub fn created(self, entry: &Entry, opened: Opened) {
        self.wire(&abi::CreateOut { entry: entry.to_wire(), open: opened.to_wire() });
    }

    /// How many bytes were written.
    pub fn written(self, size: u32) {
        self.wire(&abi::WriteOut { size, padding: 0 });
    }

    /// How many bytes COPY_FILE_RANGE copied; the old form of the request is told at most 4 GiB − 1.
    pub fn copied(self, bytes_copied: u64) {
        match self.opcode {
            op::COPY_FILE_RANGE_64 => self.wire(&abi::CopyFileRangeOut { bytes_copied }),
            _ => self.written(u32::try_from(bytes_copied).unwrap_or(u32::MAX)),
        }
    }

    /// Bytes: READ, READLINK, GETXATTR, LISTXATTR.
    pub fn data(self, data: &[u8]) {
        self.send(0, &[IoSlice::new(data)]);
    }

    /// Bytes from several places. Up to 15 pieces need no memory.
    pub fn data_pieces(self, pieces: &[IoSlice<'_>]) {
        self.send(0, pieces);
    }

    /// Directory entries: READDIR, READDIRPLUS. An empty buffer is the end of the directory.
    pub fn dir(self, entries: &DirBuffer) {
        self.data(entries.bytes());
    }

    /// The size of an xattr or of the list, for a request with size 0.
    pub fn xattr_size(self, size: u32) {
        self.wire(&abi::GetxattrOut { size, padding: 0 });
    }

    /// Figures of the filesystem.
    pub fn statfs(self, statfs: &Statfs) {
        self.wire(&statfs.to_wire());
    }

    /// The offset found.
    pub fn lseek(self, offset: u64) {
        self.wire(&abi::LseekOut { offset });
    }

    /// The lock in the way, or one of kind `F_UNLCK`: GETLK.
    pub fn lock(self, lock: FileLock) {
        self.wire(&abi::LockWire { start: lock.start, end: lock.end, kind: lock.kind, pid: lock.pid });
    }

    /// The block's number on the device.
    pub fn bmap(self, block: u64) {
        self.wire(&abi::BmapOut { block });
    }

    /// The ioctl's result and output.
    pub fn ioctl(self, result: i32, data: &[u8]) {
        let out = abi::IoctlOut { result, flags: 0, in_iovs: 0, out_iovs: 0 };
        self.data_pieces(&[IoSlice::new(out.as_bytes()), IoSlice::new(data)]);
    }

    /// `POLLIN`, `POLLOUT`….
    pub fn poll(self, revents: u32) {
        self.wire(&abi::PollOut { revents, padding: 0 });
    }

    fn wire(self, value: &(impl IntoBytes + Immutable)) {
        self.send(0, &[IoSlice::new(value.as_bytes())]);
    }

    fn send(self, errno: i32, pieces: &[IoSlice<'_>]) {
        debug_assert!((0..1000).contains(&errno), "errno {errno}");
        let this = ManuallyDrop::new(self);
        if !answerable(this.opcode, errno) {
            return;
        }
        let len = size_of::<OutHeader>() + pieces.iter().map(|piece| piece.len()).sum::<usize>();
        let header = OutHeader { len: len as u32, error: -errno, unique: this.unique };
        let header = IoSlice::new(header.as_bytes());
        let mut few = [header; 16];
        let written = if let Some(room) = few.get_mut(1..=pieces.len()) {
            room.copy_from_slice(pieces);
            write_message(this.fd, &few[..=pieces.len()])
        } else if pieces.len() < libc::UIO_MAXIOV as usize {
            write_message(this.fd, &[&[header], pieces].concat())
        } else {
            let joined: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
            write_message(this.fd, &[header, IoSlice::new(&joined)])
        };
        if let Err(error) = written
            && !nobody_waits(&error)
        {
            let operation = op::name(this.opcode);
            tracing::error!(operation, errno, len, %error, "the kernel refused a FUSE reply; its caller goes on waiting");
        }
    }
}

/// FORGETs are never answered; an INTERRUPT only with "again" or "no such thing".
fn answerable(opcode: u32, errno: i32) -> bool {
    match opcode {
        op::FORGET | op::BATCH_FORGET | op::NOTIFY_REPLY => false,
        op::INTERRUPT => matches!(errno, libc::EAGAIN | libc::ENOSYS),
        _ => true,
    }
}

/// ENOENT: the request was interrupted or aborted; the others: the mount is gone.
fn nobody_waits(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENOTCONN | libc::ECONNABORTED))
}

/// Writes one message, whole or not at all.
pub(crate) fn write_message(fd: &OwnedFd, message: &[IoSlice<'_>]) -> io::Result<()> {
    loop {
        // SAFETY: IoSlice has the layout of iovec; the slices outlive the call.
        let written = unsafe { libc::writev(fd.as_raw_fd(), message.as_ptr().cast(), message.len() as libc::c_int) };
        if written >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

impl Drop for Reply<'_> {
    fn drop(&mut self) {
        let Self { fd, unique, opcode } = *self;
        if std::thread::panicking() || !answerable(opcode, 0) {
            return;
        }
        tracing::error!(operation = op::name(opcode), unique, "a FUSE request was dropped unanswered; answering EIO");
        Reply { fd, unique, opcode }.error(libc::EIO);
    }
}

impl DeferredReply {
    /// Answers: `deferred.answer(|reply| reply.empty())`.
    pub fn answer(mut self, how: impl FnOnce(Reply<'_>)) {
        self.answered = true;
        how(Reply::new(&self.fd, self.unique, self.opcode));
    }
}

impl Drop for DeferredReply {
    fn drop(&mut self) {
        if !self.answered {
            drop(Reply::new(&self.fd, self.unique, self.opcode));
        }
    }
}

#[cfg(test)]
#[path = "reply_tests.rs"]
mod tests;
