//! The header before every message, the table of bulk lengths after it, and how large things may be.
//! docs/syslink.md §Messages.

use crate::error::{Reason, Why};

/// Bytes of a header.
pub(crate) const HEADER: usize = 40;

/// The version of what this crate speaks.
pub(crate) const VERSION: u8 = 1;

const MAGIC: [u8; 2] = *b"SL";

/// What a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Hello = 1,
    Command = 2,
    Reply = 3,
    Cancel = 4,
    Bye = 5,
    Ping = 6,
    Pong = 7,
}

impl Kind {
    fn of(n: u8) -> Option<Kind> {
        use Kind::*;
        [Hello, Command, Reply, Cancel, Bye, Ping, Pong].into_iter().find(|k| *k as u8 == n)
    }

    fn has_body(self) -> bool {
        !matches!(self, Kind::Cancel | Kind::Ping | Kind::Pong)
    }
}

/// What one side accepts; each tells the other in its hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a message without its bulk.
    pub message: u32,
    /// How deep groups may be nested.
    pub depth: u32,
    /// Elements in a message.
    pub elements: u32,
    /// Bulk buffers of a message.
    pub bulks: u32,
    /// Bytes of them together.
    pub bulk: u32,
    /// Commands in flight: not replied to.
    pub calls: u32,
    /// Bytes of those commands, bulk included.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { message: 64 << 10, depth: 16, elements: 4096, bulks: 16, bulk: 4 << 20, calls: 64, bytes: 16 << 20 }
    }
}

impl Limits {
    /// Before anybody is admitted.
    pub(crate) fn of_strangers() -> Limits {
        Limits { message: 4 << 10, depth: 3, elements: 32, bulks: 0, bulk: 0, ..Limits::default() }
    }

    /// Whether a peer that accepts no more can be talked to at all: its refusals and its hello would fit.
    pub(crate) fn suffice(&self) -> bool {
        let least = Limits::of_strangers();
        self.message >= least.message && self.depth >= least.depth && self.elements >= least.elements
    }
}

/// A header and its table, verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub kind: Kind,
    pub version: u8,
    pub seq: u64,
    pub call: u64,
    pub arg: u32,
    /// The last message of the peer that was taken in, bulk and all.
    pub seen: u64,
    /// Lengths of the bulk buffers.
    pub bulks: Vec<u32>,
    /// Length of header and body.
    pub end: usize,
}

impl Head {
    pub(crate) fn new(kind: Kind, seq: u64) -> Head {
        Head { kind, version: VERSION, seq, call: 0, arg: 0, seen: 0, bulks: Vec::new(), end: 0 }
    }

    /// Bytes of the bulk.
    pub(crate) fn bulk_len(&self) -> u64 {
        self.bulks.iter().map(|n| u64::from(*n)).sum()
    }

    /// Fills the header at the start of `bytes` in and appends the table.
    pub(crate) fn seal(&self, bytes: &mut Vec<u8>) {
        for n in &self.bulks {
            bytes.extend_from_slice(&n.to_le_bytes());
        }
        let len = bytes.len() as u32;
        bytes[..2].copy_from_slice(&MAGIC);
        bytes[2] = self.version;
        bytes[3] = self.kind as u8;
        bytes[4..8].copy_from_slice(&len.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.seq.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.call.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.arg.to_le_bytes());
        bytes[28..30].copy_from_slice(&(self.bulks.len() as u16).to_le_bytes());
        bytes[30..32].fill(0);
        bytes[32..40].copy_from_slice(&self.seen.to_le_bytes());
    }

    /// Verifies a whole message but for its bulk.
    pub(crate) fn parse(bytes: &[u8], limits: &Limits) -> Result<Head, Reason> {
        let malformed = |what: &str| Reason::new(Why::Malformed, what);
        let len = length(bytes, limits)?.ok_or_else(|| malformed("a message is shorter than a header"))?;
        if len != bytes.len() {
            return Err(malformed("a message is not as long as it says"));
        }
        let kind = Kind::of(bytes[3]).ok_or_else(|| malformed("a message is of an unknown kind"))?;
        let count = usize::from(u16::from_le_bytes([bytes[28], bytes[29]]));
        if bytes[30..32] != [0, 0] {
            return Err(malformed("a header has bits set that mean nothing"));
        }
        if count > limits.bulks as usize {
            return Err(malformed("too many bulk buffers"));
        }
        let end = len.checked_sub(4 * count).filter(|end| *end >= HEADER);
        let end = end.ok_or_else(|| malformed("a message is shorter than its table"))?;
        let bulks: Vec<u32> = bytes[end..].chunks_exact(4).map(|n| u32_at(n, 0)).collect();
        let head = Head {
            kind,
            version: bytes[2],
            seq: u64_at(bytes, 8),
            call: u64_at(bytes, 16),
            arg: u32_at(bytes, 24),
            seen: u64_at(bytes, 32),
            bulks,
            end,
        };
        if head.bulk_len() > u64::from(limits.bulk) {
            return Err(malformed("bulk is too large"));
        }
        match kind.has_body() {
            true => crate::element::verify(&bytes[HEADER..end], count, limits).map_err(malformed)?,
            false if end > HEADER || count > 0 => return Err(malformed("a message has a body that should have none")),
            false => {}
        }
        Ok(head)
    }
}

/// The length of the message that begins here, once enough has come to tell.
pub(crate) fn length(bytes: &[u8], limits: &Limits) -> Result<Option<usize>, Reason> {
    if !MAGIC.starts_with(&bytes[..bytes.len().min(2)]) {
        return Err(Reason::new(Why::Malformed, "this is no message of syslink"));
    }
    if bytes.len() < HEADER {
        return Ok(None);
    }
    let len = u32_at(bytes, 4);
    if (len as usize) < HEADER || len > limits.message {
        return Err(Reason::new(Why::Malformed, format!("a message says it has {len} bytes")));
    }
    Ok(Some(len as usize))
}

/// The number of a message that is sealed.
pub(crate) fn seq(bytes: &[u8]) -> u64 {
    u64_at(bytes, 8)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}
