//! From bytes to [`Request`], without copying names or data.
//!
//! Invariants: no byte sequence makes this panic or read outside its slice; whatever is short, unterminated or
//! contradicts its own lengths is [`Malformed`], which still says whom to answer if the header could be read.

use zerocopy::FromBytes;

use crate::{
    abi::{self, InHeader, opcode as op},
    decode,
    operation::Operation,
};

/// One request of the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Its id, without the resend bit: the same before and after a resend, and not reused during a mount.
    pub unique: u64,
    /// A worker before us was sent this request already, and may have carried it out.
    pub resent: bool,
    /// The node that it is about.
    pub nodeid: u64,
    /// The caller's user (its fsuid).
    pub uid: u32,
    /// The caller's group (its fsgid).
    pub gid: u32,
    /// The caller's process; 0 if it is the kernel itself (readahead, writeback).
    pub pid: u32,
    /// The raw [`abi::opcode`].
    pub opcode: u32,
    /// What is asked.
    pub op: Operation<'a>,
}

/// What was negotiated and changes how bytes read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dialect {
    /// SETXATTR carries flags of its own ([`abi::init::SETXATTR_EXT`]).
    pub setxattr_ext: bool,
}

/// Bytes that are no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed FUSE request ({}): {what}", op::name(self.opcode))]
pub struct Malformed {
    /// The id to answer with, resend bit and all, if there was one and an answer is expected.
    pub unique: Option<u64>,
    /// The operation, 0 if not known.
    pub opcode: u32,
    /// What is wrong.
    pub what: &'static str,
}

impl<'a> Request<'a> {
    /// Reads one request, as read(2) on /dev/fuse delivers it.
    pub fn decode(bytes: &'a [u8], dialect: Dialect) -> Result<Self, Malformed> {
        let (header, _) =
            InHeader::read_from_prefix(bytes).map_err(|_| Malformed::nobody("shorter than its header"))?;
        let malformed = |what| Malformed::from_header(&header, what);
        if header.len as usize != bytes.len() {
            return Err(malformed("its length is not that of the message"));
        }
        let args_end = bytes.len().checked_sub(usize::from(header.total_extlen) * 8);
        let args = args_end.and_then(|end| bytes.get(size_of::<InHeader>()..end));
        let args = args.ok_or(malformed("extensions longer than the message"))?;
        Ok(Self {
            unique: header.unique & !abi::UNIQUE_RESEND,
            resent: header.unique & abi::UNIQUE_RESEND != 0,
            nodeid: header.nodeid,
            uid: header.uid,
            gid: header.gid,
            pid: header.pid,
            opcode: header.opcode,
            op: decode::operation(header.opcode, args, dialect).map_err(malformed)?,
        })
    }

    /// Whether the kernel waits for an answer.
    pub fn wants_reply(&self) -> bool {
        wants_reply(self.opcode)
    }

    /// The id as the kernel wants it back.
    pub(crate) fn raw_unique(&self) -> u64 {
        self.unique | if self.resent { abi::UNIQUE_RESEND } else { 0 }
    }
}

impl Malformed {
    fn nobody(what: &'static str) -> Self {
        Self { unique: None, opcode: 0, what }
    }

    fn from_header(header: &InHeader, what: &'static str) -> Self {
        let unique = wants_reply(header.opcode).then_some(header.unique);
        Self { unique, opcode: header.opcode, what }
    }
}

fn wants_reply(opcode: u32) -> bool {
    !matches!(opcode, op::FORGET | op::BATCH_FORGET | op::INTERRUPT | op::NOTIFY_REPLY)
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
