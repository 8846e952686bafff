//! Segments: the regions of the log. docs/format.md §Segment.
//!
//! A header of [`HEADER`] bytes that says whose segment it is, then frames up to a seal or the end of the log.

use std::collections::HashSet;

use crate::codec::{Reader, crc_at};
use crate::heal::read_good;
use crate::volume::{For, Region, RegionRef};
use crate::{Error, Result, Tid};

/// Bytes of a segment header; frames begin behind it.
pub const HEADER: u64 = 4096;
const MAGIC: &[u8; 8] = b"DARNSEG1";

/// What the manifest knows of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub at: RegionRef,
    /// End of its last valid frame; 0 while frames are appended.
    pub end: u64,
    /// Tid of the newest transaction before it.
    pub after: Tid,
    /// In memory only: what it did not use was given back.
    pub trimmed: bool,
    /// Bytes of it that somebody needs, as the last collapse found; [`LIVE_UNKNOWN`].
    pub live: u64,
    /// Bytes that were left when it was cleaned beyond what was thought to be needed.
    pub slack: u64,
    /// Of those, tombstones that hide nothing in the index, but perhaps something in older segments.
    pub tombstones: u64,
    /// It holds something of a fileset that is kept twice.
    pub twice: bool,
    /// The pack that its remains are in, if it was cleaned (then `at` is only its number and size).
    pub pack: Option<u64>,
    /// In memory only: the bytes that are in it, if it was cleaned since the open; else 0.
    pub packed: u64,
}

/// See [`Segment::live`].
pub const LIVE_UNKNOWN: u64 = u64::MAX;

impl Segment {
    /// The number of the region that it is in.
    pub fn container(&self) -> u64 {
        self.pack.unwrap_or(self.at.id)
    }

    /// A segment to be appended to.
    pub fn open(at: RegionRef, after: Tid) -> Segment {
        let (live, slack, tombstones) = (LIVE_UNKNOWN, 0, 0);
        Segment { at, end: 0, after, trimmed: false, live, slack, tombstones, twice: false, pack: None, packed: 0 }
    }
}

/// Where the transactions of each segment begin, oldest first: the tid that they come after, and the segment.
#[derive(Clone, Default)]
pub struct Starts(Vec<(Tid, u64)>);

impl Starts {
    pub fn of(segments: &[Segment]) -> Starts {
        Starts(segments.iter().map(|s| (s.after, s.at.id)).collect())
    }

    /// The segment that a transaction is in. (There is one at least.)
    pub fn segment_of(&self, tid: Tid) -> u64 {
        self.0[self.0.partition_point(|(after, _)| *after < tid).max(1) - 1].1
    }
}

/// What the regions of segments (the last one is the open one) and of packs are for.
pub fn uses(segments: &[Segment], packs: &[RegionRef]) -> Vec<(For, RegionRef)> {
    let (mut all, mut twice) = (Vec::new(), HashSet::new());
    for (i, s) in segments.iter().enumerate() {
        match s.pack {
            Some(pack) if s.twice => drop(twice.insert(pack)),
            Some(_) => {}
            None if i + 1 == segments.len() => all.push((For::Log, s.at)),
            None => all.push((For::Kept { twice: s.twice }, s.at)),
        }
    }
    all.extend(packs.iter().map(|at| (For::Kept { twice: twice.contains(&at.id) }, *at)));
    all
}

/// How many of them, from the first on, are behind the one that a replay begins in, and so are never written again.
pub fn sealed(segments: &[Segment], log: u64) -> usize {
    segments.iter().position(|s| s.at.id == log).unwrap_or(segments.len())
}

/// The header of a new segment.
pub fn header(store: &[u8; 16], at: RegionRef, after: Tid) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER as usize);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(store);
    for v in [at.id, at.size, after.0] {
        out.extend_from_slice(&v.to_le_bytes());
    }
    out.resize(HEADER as usize - 4, 0);
    let crc = crc_at(at.id, 0, &out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

/// A segment's header, as it is on the volume; that of a good copy, if there is one.
pub fn read(region: &dyn Region, store: &[u8; 16]) -> Result<Vec<u8>> {
    let mut header = vec![0; HEADER as usize];
    let at = region.place();
    read_good(region, &mut header, 0, &|bytes| verify(bytes, store, at).is_ok())?;
    Ok(header)
}

/// Verifies a header; returns the tid that it starts after.
pub fn verify(bytes: &[u8], store: &[u8; 16], at: RegionRef) -> Result<Tid> {
    let corrupt = |expected: String, found: String| Error::Corrupt {
        place: format!("region {:x} at byte 0", at.id),
        what: "segment header",
        expected,
        found,
    };
    let (body, crc) = bytes.split_at(bytes.len() - 4);
    let expected = u32::from_le_bytes(crc.try_into().expect("4 bytes"));
    let found = crc_at(at.id, 0, body);
    if found != expected {
        return Err(corrupt(format!("crc {expected:08x}"), format!("crc {found:08x}")));
    }
    let mut r = Reader::new(body);
    let mut parse = || Some((r.take(8)?, r.take(16)?, r.u64()?, r.u64()?, r.u64()?));
    match parse() {
        Some((magic, uuid, id, _, after)) if magic == MAGIC && uuid == store && id == at.id => Ok(Tid(after)),
        _ => Err(corrupt("a segment of this store".into(), "something else".into())),
    }
}
