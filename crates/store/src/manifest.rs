//! The manifest: everything needed to open, but the tail of the log. docs/format.md §Manifest.
//!
//! Written whole to a fresh region at each checkpoint; the superblock then points to it. So a checkpoint is atomic.

use crate::codec::{Reader, crc_at, put_varint};
use crate::counts::{Count, Counts};
use crate::index::table::TableRef;
use crate::segment::Segment;
use crate::volume::{Region, RegionRef};
use crate::{Error, FilesetId, Result, Tid};

const MAGIC: &[u8; 8] = b"DARNMAN1";

/// A place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Segment.
    pub region: u64,
    /// Where the next frame starts.
    pub offset: u64,
    /// Checksum of the frame before it.
    pub chain: u32,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Newest transaction that the tables hold.
    pub tid: Tid,
    /// Next region number.
    pub next_region: u64,
    /// Next object number.
    pub next_object: u64,
    /// Live objects and bytes.
    pub counts: Counts,
    /// Where replay starts.
    pub log: Position,
    /// All segments, oldest first.
    pub segments: Vec<Segment>,
    /// Live runs, newest first.
    pub live: Vec<Vec<TableRef>>,
    /// History runs.
    pub history: Vec<Vec<TableRef>>,
}

impl Manifest {
    /// Encodes it for region `region`.
    pub fn encode(&self, region: u64) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let total = self.counts.total();
        for v in [self.tid.0, self.next_region, self.next_object, total.objects, total.live] {
            put_varint(&mut out, v);
        }
        for v in [self.log.region, self.log.offset, self.log.chain.into()] {
            put_varint(&mut out, v);
        }
        put_varint(&mut out, self.segments.len() as u64);
        for s in &self.segments {
            s.at.put(&mut out);
            put_varint(&mut out, s.end);
            put_varint(&mut out, s.after.0);
        }
        for runs in [&self.live, &self.history] {
            put_varint(&mut out, runs.len() as u64);
            for run in runs {
                put_varint(&mut out, run.len() as u64);
                for t in run {
                    t.region.put(&mut out);
                    put_varint(&mut out, t.len);
                }
            }
        }
        self.counts.put(&mut out);
        let crc = crc_at(region, 0, &out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads it back from its region.
    pub fn read(region: &dyn Region, len: u64) -> Result<Manifest> {
        let corrupt = |found: &str| Error::Corrupt {
            place: format!("region {:x} at byte 0", region.place().id),
            what: "manifest",
            expected: format!("{len} bytes with a valid checksum"),
            found: found.into(),
        };
        if len < 12 || len > region.place().size {
            return Err(corrupt("another length"));
        }
        let mut bytes = vec![0; len as usize];
        region.read_at(&mut bytes, 0)?;
        let (body, crc) = bytes.split_at(bytes.len() - 4);
        if crc_at(region.place().id, 0, body).to_le_bytes() != crc {
            return Err(corrupt("another checksum"));
        }
        Manifest::decode(body).ok_or_else(|| corrupt("fields that make no sense"))
    }

    fn decode(body: &[u8]) -> Option<Manifest> {
        let mut r = Reader::new(body);
        if r.take(8)? != MAGIC {
            return None;
        }
        let (tid, next_region, next_object) = (Tid(r.varint()?), r.varint()?, r.varint()?);
        let total = Count { objects: r.varint()?, live: r.varint()? };
        let log = Position { region: r.varint()?, offset: r.varint()?, chain: u32::try_from(r.varint()?).ok()? };
        let mut segments = Vec::new();
        for _ in 0..r.varint()? {
            segments.push(Segment {
                at: RegionRef::get(&mut r)?,
                end: r.varint()?,
                after: Tid(r.varint()?),
                trimmed: false,
            });
        }
        let live = runs(&mut r)?;
        let history = runs(&mut r)?;
        let counts = match r.is_empty() {
            // Version 1 had one fileset.
            true => Counts::of_one(FilesetId(1), total),
            false => Counts::read(&mut r).filter(|counts| counts.total() == total)?,
        };
        let all = Manifest { tid, next_region, next_object, counts, log, segments, live, history };
        r.is_empty().then_some(all)
    }
}

fn runs(r: &mut Reader) -> Option<Vec<Vec<TableRef>>> {
    let mut runs = Vec::new();
    for _ in 0..r.varint()? {
        let mut run = Vec::new();
        for _ in 0..r.varint()? {
            run.push(TableRef { region: RegionRef::get(r)?, len: r.varint()? });
        }
        runs.push(run);
    }
    Some(runs)
}
