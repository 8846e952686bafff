//! Messages to the kernel that answer nothing: dropping what it caches, and sending lost requests again.

use std::{
    io::{self, IoSlice},
    os::fd::OwnedFd,
    sync::Arc,
};

use zerocopy::{Immutable, IntoBytes};

use crate::{
    abi::{self, OutHeader, notify},
    reply::write_message,
};

/// Tells the kernel what changed behind its back. Cheap to clone, usable from any thread but a serving one.
///
/// **Never call it from a thread that serves requests, nor with a lock held that serving needs**: the kernel takes the
/// inode's and directory's locks and writes out dirty pages *during the call*, through requests that somebody has to
/// answer; a server that waits for itself can't even be killed.
///
/// That the kernel doesn't know the node or name (ENOENT) is success: there was nothing to drop.
#[derive(Clone, Debug)]
pub struct Notifier {
    fd: Arc<OwnedFd>,
}

impl Notifier {
    pub(crate) fn new(fd: Arc<OwnedFd>) -> Self {
        Self { fd }
    }

    /// For another process: over a duplicate of a session's descriptor ([`Session::duplicate`](crate::Session::duplicate)).
    pub fn over(fd: OwnedFd) -> Self {
        Self { fd: Arc::new(fd) }
    }

    /// Drops the cached attributes of `node`, and its cached bytes from `off` on: `len` of them, all that follow if `len`
    /// is 0, none if `off` is negative. Dirty pages are written first.
    pub fn inval_inode(&self, node: u64, off: i64, len: i64) -> io::Result<()> {
        self.send(notify::INVAL_INODE, &abi::InvalInodeOut { ino: node, off, len }, &[&[]])
    }

    /// Whether the kernel holds the node: somebody has it open, or it is cached. Its attributes are asked for anew if so.
    pub fn holds(&self, node: u64) -> io::Result<bool> {
        let out = abi::InvalInodeOut { ino: node, off: -1, len: 0 };
        match self.write(notify::INVAL_INODE, &out, &[]) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Drops the cached name, positive or negative, and what hangs on it. ENOTEMPTY, EBUSY: something is in use there.
    pub fn inval_entry(&self, parent: u64, name: &[u8]) -> io::Result<()> {
        let out = abi::InvalEntryOut { parent, namelen: name.len() as u32, flags: 0 };
        self.send(notify::INVAL_ENTRY, &out, &[name, b"\0"])
    }

    /// Has the name looked up again at its next use, without dropping it. Needs [`abi::init::HAS_EXPIRE_ONLY`].
    pub fn expire_entry(&self, parent: u64, name: &[u8]) -> io::Result<()> {
        let out = abi::InvalEntryOut { parent, namelen: name.len() as u32, flags: notify::EXPIRE_ONLY };
        self.send(notify::INVAL_ENTRY, &out, &[name, b"\0"])
    }

    /// The name was removed elsewhere, and with it `child`: as `inval_entry`, and watchers (inotify) are told.
    pub fn delete(&self, parent: u64, child: u64, name: &[u8]) -> io::Result<()> {
        let out = abi::DeleteOut { parent, child, namelen: name.len() as u32, padding: 0 };
        self.send(notify::DELETE, &out, &[name, b"\0"])
    }

    /// Puts `data` into the page cache of `node`, as if it had been read.
    pub fn store(&self, node: u64, offset: u64, data: &[u8]) -> io::Result<()> {
        let out = abi::StoreOut { nodeid: node, offset, size: data.len() as u32, padding: 0 };
        self.send(notify::STORE, &out, &[data])
    }

    /// Has the kernel send all requests again that were read and not answered, marked as
    /// [`resent`](crate::Request::resent). Only for a worker that has taken over: what another thread is still at comes
    /// a second time as well. Needs [`abi::init::HAS_RESEND`]. This one may be called from a serving thread.
    pub fn resend(&self) -> io::Result<()> {
        self.send(notify::RESEND, &(), &[])
    }

    fn send(&self, code: i32, out: &(impl IntoBytes + Immutable), tail: &[&[u8]]) -> io::Result<()> {
        match self.write(code, out, tail) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            result => result,
        }
    }

    fn write(&self, code: i32, out: &(impl IntoBytes + Immutable), tail: &[&[u8]]) -> io::Result<()> {
        let out = out.as_bytes();
        let len = size_of::<OutHeader>() + out.len() + tail.iter().map(|part| part.len()).sum::<usize>();
        let header = OutHeader { len: len as u32, error: code, unique: 0 };
        let mut message = [IoSlice::new(&[]); 4];
        message[0] = IoSlice::new(header.as_bytes());
        message[1] = IoSlice::new(out);
        for (slot, part) in message[2..].iter_mut().zip(tail) {
            *slot = IoSlice::new(part);
        }
        write_message(&self.fd, &message)
    }
}
