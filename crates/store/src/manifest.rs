//! The manifest: everything needed to open, but the tail of the log. docs/format.md §Manifest.
//!
//! Written whole to a fresh region at each checkpoint; the superblock then points to it. So a checkpoint is atomic.

use crate::codec::{Reader, crc_at, is_sealed, put_bytes, put_varint};
use crate::counts::{Count, Counts};
use crate::heal::read_good;
use crate::index::levels::RunRef;
use crate::index::table::TableRef;
use crate::segment::Segment;
use crate::superblock::Superblock;
use crate::volume::{Region, RegionRef, SLOT_SIZE, VolumeKind};
use crate::{Error, FilesetId, Result, Tid};

const MAGIC: &[u8; 8] = b"DARNMAN5";
/// As versions 5 and 6 of the format had it: no filesets that are kept twice.
const MAGIC_4: &[u8; 8] = b"DARNMAN4";
/// As versions 3 and 4 of the format had it: one copy of everything.
const MAGIC_3: &[u8; 8] = b"DARNMAN3";
/// As version 2 of the format had it: one volume.
const MAGIC_2: &[u8; 8] = b"DARNMAN2";
/// As version 1 had it: no packs, no clipped runs either.
const MAGIC_1: &[u8; 8] = b"DARNMAN1";

/// The copy begins on a multiple of this, so that one bad sector does not take both.
const COPY_UNIT: u64 = 4096;

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
    /// Where the remains of cleaned segments are.
    pub packs: Vec<RegionRef>,
    /// Live runs, newest first.
    pub live: Vec<RunRef>,
    /// History runs.
    pub history: Vec<RunRef>,
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
            // Plus one: 0 is none, or unknown.
            put_varint(&mut out, s.live.wrapping_add(1));
            put_varint(&mut out, s.slack);
            put_varint(&mut out, s.tombstones);
            put_varint(&mut out, s.pack.map_or(0, |id| id + 1));
            out.push(s.twice.into());
        }
        put_varint(&mut out, self.packs.len() as u64);
        self.packs.iter().for_each(|at| at.put(&mut out));
        for runs in [&self.live, &self.history] {
            put_varint(&mut out, runs.len() as u64);
            for run in runs {
                put_bytes(&mut out, &run.above);
                put_varint(&mut out, run.tables.len() as u64);
                for t in &run.tables {
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

    /// The regions that it names.
    pub fn regions(&self) -> impl Iterator<Item = RegionRef> {
        let own = self.segments.iter().filter(|s| s.pack.is_none()).map(|s| s.at);
        own.chain(self.packs.iter().copied()).chain(self.tables())
    }

    /// Those of its tables.
    pub fn tables(&self) -> impl Iterator<Item = RegionRef> {
        self.live.iter().chain(&self.history).flat_map(|run| run.tables.iter().map(|t| t.region))
    }

    /// Forgets the places that `gone` says, but of what is in none else.
    pub fn drop_places(&mut self, gone: &dyn Fn(u16) -> bool) {
        self.place(&|at| at.without(gone));
    }

    /// Puts each region that it names where `place` says.
    pub fn place(&mut self, place: &dyn Fn(RegionRef) -> RegionRef) {
        let segments = self.segments.iter_mut().filter(|s| s.pack.is_none()).map(|s| &mut s.at);
        let runs = self.live.iter_mut().chain(&mut self.history);
        let tables = runs.flat_map(|run| run.tables.iter_mut().map(|t| &mut t.region));
        segments.chain(&mut self.packs).chain(tables).for_each(|at| *at = place(*at));
    }

    /// Bytes of a manifest of `len` bytes and its copy.
    pub fn room(len: u64) -> u64 {
        copy_at(len) + len
    }

    /// Bytes of the region for that, and for the superblock behind it.
    pub fn room_with(len: u64, sb: &Superblock) -> u64 {
        copy_at(Manifest::room(len)) + sb.encode(sb.manifest.volume).len() as u64
    }

    /// Writes an encoded one, its copy, and the superblock that will name it: where all superblocks are lost, it is found there. Durable
    /// once the region is flushed.
    pub fn write(region: &dyn Region, bytes: &[u8], sb: &Superblock) -> Result<()> {
        region.write_at(bytes, 0)?;
        region.write_at(bytes, copy_at(bytes.len() as u64))?;
        region.write_at(&sb.encode(region.place().volume), copy_at(Manifest::room(bytes.len() as u64)))
    }

    /// The superblock that is behind a manifest, if the region is that of one, and it is whole.
    pub fn superblock(region: &dyn Region, kind: VolumeKind) -> Result<Option<Superblock>> {
        let at = region.place();
        let mut magic = [0; 8];
        region.read_at(&mut magic, 0)?;
        if magic != *MAGIC {
            return Ok(None);
        }
        for start in (COPY_UNIT..at.size).step_by(COPY_UNIT as usize) {
            region.read_at(&mut magic, start)?;
            if !Superblock::may_begin_with(&magic) {
                continue;
            }
            let mut slot = vec![0; SLOT_SIZE.min((at.size - start) as usize)];
            region.read_at(&mut slot, start)?;
            slot.resize(SLOT_SIZE, 0);
            let found = Superblock::of_slot(&slot, kind).map(|on| on.superblock);
            if let Some(sb) = found.filter(|sb| sb.manifest.id == at.id) {
                return Ok(Some(sb));
            }
        }
        Ok(None)
    }

    /// Reads it back from its region; where it is damaged, its copy.
    pub fn read(region: &dyn Region, len: u64) -> Result<Manifest> {
        let first = Manifest::read_at(region, 0, len);
        match &first {
            Err(Error::Corrupt { .. } | Error::Io { .. }) if Manifest::has_copy(region, len) => {
                Manifest::read_at(region, copy_at(len), len).or(first)
            }
            _ => first,
        }
    }

    /// Earlier darners wrote none. (A length that makes no sense has none either.)
    fn has_copy(region: &dyn Region, len: u64) -> bool {
        let size = region.place().size;
        len <= size && Manifest::room(len) <= size
    }

    /// Whether it and its copy can be read. (Before version 4 there was no copy.)
    pub fn both_read(region: &dyn Region, len: u64) -> Result<bool> {
        let copy = Manifest::has_copy(region, len).then(|| copy_at(len));
        for at in [Some(0), copy].into_iter().flatten() {
            match Manifest::read_at(region, at, len) {
                Err(Error::Corrupt { .. }) => return Ok(false),
                read => drop(read?),
            }
        }
        Ok(true)
    }

    fn read_at(region: &dyn Region, at: u64, len: u64) -> Result<Manifest> {
        let corrupt = |found: &str| Error::Corrupt {
            place: format!("region {:x} at byte {at}", region.place().id),
            what: "manifest",
            expected: format!("{len} bytes with a valid checksum"),
            found: found.into(),
        };
        if len < 12 || len > region.place().size {
            return Err(corrupt("another length"));
        }
        let mut bytes = vec![0; len as usize];
        if !read_good(region, &mut bytes, at, &|bytes| is_sealed(bytes, region.place().id, 0))? {
            return Err(corrupt("another checksum"));
        }
        Manifest::decode(&bytes[..bytes.len() - 4]).ok_or_else(|| corrupt("fields that make no sense"))
    }

    /// Of bytes that [`Manifest::encode`] made for this region.
    pub fn of_bytes(bytes: &[u8], region: u64) -> Option<Manifest> {
        is_sealed(bytes, region, 0).then(|| Manifest::decode(&bytes[..bytes.len() - 4])).flatten()
    }

    fn decode(body: &[u8]) -> Option<Manifest> {
        let mut r = Reader::new(body);
        let (packs_and_clips, reference): (bool, fn(&mut Reader) -> Option<RegionRef>) = match r.take(8)? {
            magic if magic == MAGIC || magic == MAGIC_4 => (true, RegionRef::get),
            magic if magic == MAGIC_3 => (true, RegionRef::get_of_one_copy),
            magic if magic == MAGIC_2 => (true, RegionRef::get_without_volume),
            magic if magic == MAGIC_1 => (false, RegionRef::get_without_volume),
            _ => return None,
        };
        let (tid, next_region, next_object) = (Tid(r.varint()?), r.varint()?, r.varint()?);
        let total = Count { objects: r.varint()?, live: r.varint()? };
        let log = Position { region: r.varint()?, offset: r.varint()?, chain: u32::try_from(r.varint()?).ok()? };
        let mut segments = Vec::new();
        for _ in 0..r.varint()? {
            let (at, end, after) = (reference(&mut r)?, r.varint()?, Tid(r.varint()?));
            let mut segment = Segment { end, ..Segment::open(at, after) };
            if packs_and_clips {
                segment.live = r.varint()?.wrapping_sub(1);
                (segment.slack, segment.tombstones) = (r.varint()?, r.varint()?);
                segment.pack = r.varint()?.checked_sub(1);
                segment.twice = body.starts_with(MAGIC) && r.u8()? != 0;
            }
            segments.push(segment);
        }
        let mut packs = Vec::new();
        if packs_and_clips {
            for _ in 0..r.varint()? {
                packs.push(reference(&mut r)?);
            }
        }
        let live = runs(&mut r, packs_and_clips, reference)?;
        let history = runs(&mut r, packs_and_clips, reference)?;
        let counts = match packs_and_clips {
            // Version 1 had one fileset.
            false => Counts::of_one(FilesetId(1), total),
            true => Counts::read(&mut r).filter(|counts| counts.total() == total)?,
        };
        let all = Manifest { tid, next_region, next_object, counts, log, segments, packs, live, history };
        r.is_empty().then_some(all)
    }
}

/// Where in its region the copy of a manifest of so many bytes is.
fn copy_at(len: u64) -> u64 {
    len.next_multiple_of(COPY_UNIT)
}

fn runs(r: &mut Reader, clipped: bool, reference: fn(&mut Reader) -> Option<RegionRef>) -> Option<Vec<RunRef>> {
    let mut runs = Vec::new();
    for _ in 0..r.varint()? {
        let above = if clipped { r.bytes()?.to_vec() } else { Vec::new() };
        let mut tables = Vec::new();
        for _ in 0..r.varint()? {
            tables.push(TableRef { region: reference(r)?, len: r.varint()? });
        }
        runs.push(RunRef { above, tables });
    }
    Some(runs)
}
