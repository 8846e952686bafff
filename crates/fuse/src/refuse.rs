//! A mount that nobody serves any more, but that is still held: everything that is asked gets an error at once, instead of waiting
//! for ever.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;

use zerocopy::{FromBytes, IntoBytes};

use crate::abi::{self, InHeader, OutHeader, opcode as op};
use crate::buffer::Buffer;
use crate::reply::write_message;
use crate::session::read;

/// As [`Notifier::resend`](crate::Notifier::resend), on a descriptor that has no session.
pub fn resend(fd: &OwnedFd) -> io::Result<()> {
    let header = OutHeader { len: size_of::<OutHeader>() as u32, error: abi::notify::RESEND, unique: 0 };
    write_message(fd, &[IoSlice::new(header.as_bytes())])
}

/// Answers all that waits on a (non-blocking) descriptor with a (positive) errno; `false`: the mount is gone.
pub fn refuse_all(fd: &OwnedFd, errno: i32) -> io::Result<bool> {
    let mut buffer = Buffer::new(1 << 20)?;
    loop {
        let len = match read(fd, buffer.space()) {
            Ok(len) => len,
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) => return Ok(true),
                Some(libc::EINTR | libc::ENOENT) => continue,
                Some(libc::ENODEV | libc::ECONNABORTED) => return Ok(false),
                _ => return Err(error),
            },
        };
        let Ok((header, _)) = InHeader::read_from_prefix(&buffer.space()[..len]) else { continue };
        if matches!(header.opcode, op::FORGET | op::BATCH_FORGET | op::INTERRUPT | op::NOTIFY_REPLY) {
            continue;
        }
        let out = OutHeader { len: size_of::<OutHeader>() as u32, error: -errno, unique: header.unique };
        // Whoever asked may have gone meanwhile.
        let _ = write_message(fd, &[IoSlice::new(out.as_bytes())]);
    }
}
