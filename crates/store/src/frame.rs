//! Frames: transactions as they stand in a segment. docs/format.md §Frame.
//!
//! `header (48) | data area | record heads | padding to 8`. The header's checksum covers header and heads, and holds that
//! of the frame before (the chain), so a stale frame never continues a log. Extent data carries its own checksums.

use crate::buffer::Buffer;
use crate::codec::{Reader, crc_at, put_bytes, put_signed, put_varint};
use crate::extent::{Codec, Place};
use crate::volume::RegionRef;
use crate::{FilesetId, Kind, ObjectId, Tid};

/// Bytes of a frame header.
pub const HEADER: usize = 48;
const TX_MAGIC: u32 = u32::from_le_bytes(*b"DTX1");
const SEAL_MAGIC: u32 = u32::from_le_bytes(*b"DSL1");

/// Encodes record heads.
#[derive(Default)]
pub struct Heads {
    bytes: Vec<u8>,
    records: u64,
}

/// What a record does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    Put {
        suffix: &'a [u8],
        value: &'a [u8],
    },
    Tombstone {
        suffix: &'a [u8],
    },
    /// File bytes in this frame's data area.
    Extent {
        offset: u64,
        len: u32,
        codec: Codec,
        data_at: u32,
        stored: u32,
    },
    Hole {
        offset: u64,
        len: u64,
    },
    /// File bytes of an extent elsewhere.
    Shared {
        offset: u64,
        len: u32,
        place: Place,
    },
    /// The records from here on are of another fileset; by how much its counts change.
    Fileset {
        objects: i64,
        live: i64,
    },
}

/// A decoded record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// That of the frame, or of the last [`Body::Fileset`] before.
    pub fileset: FilesetId,
    pub object: ObjectId,
    pub kind: Kind,
    pub body: Body<'a>,
}

impl<'a> Record<'a> {
    /// A [`Body::Fileset`], which is about no object.
    pub fn turn(fileset: FilesetId, body: Body<'a>) -> Record<'a> {
        Record { fileset, object: ObjectId(0), kind: Kind(0), body }
    }
}

impl Heads {
    /// Adds a record of the transaction `tid`.
    pub fn add(&mut self, tid: Tid, r: &Record) {
        self.records += 1;
        let out = &mut self.bytes;
        out.push(r.kind.0);
        out.push(match r.body {
            Body::Put { .. } => 0,
            Body::Tombstone { .. } => 1,
            Body::Extent { .. } => 2,
            Body::Hole { .. } => 3,
            Body::Shared { .. } => 4,
            Body::Fileset { .. } => 5,
        });
        put_varint(out, if let Body::Fileset { .. } = r.body { r.fileset.0.into() } else { r.object.0 });
        match r.body {
            Body::Put { suffix, value } => {
                put_bytes(out, suffix);
                put_bytes(out, value);
            }
            Body::Tombstone { suffix } => put_bytes(out, suffix),
            Body::Extent { offset, len, codec, data_at, stored } => {
                put_varint(out, offset);
                put_varint(out, len.into());
                out.push(codec as u8);
                put_varint(out, data_at.into());
                put_varint(out, stored.into());
            }
            Body::Hole { offset, len } => {
                put_varint(out, offset);
                put_varint(out, len);
            }
            Body::Shared { offset, len, ref place } => {
                put_varint(out, offset);
                put_varint(out, len.into());
                place.put(len, tid, out);
            }
            Body::Fileset { objects, live } => {
                put_signed(out, objects);
                put_signed(out, live);
            }
        }
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }
}

/// Reads a record head; `fileset` is that of the record before.
fn record<'a>(r: &mut Reader<'a>, tid: Tid, fileset: FilesetId) -> Option<Record<'a>> {
    let kind = Kind(r.u8()?);
    let how = r.u8()?;
    let object = ObjectId(r.varint()?);
    let short = |v: u64| u32::try_from(v).ok();
    let body = match how {
        0 => Body::Put { suffix: r.bytes()?, value: r.bytes()? },
        1 => Body::Tombstone { suffix: r.bytes()? },
        2 => Body::Extent {
            offset: r.varint()?,
            len: short(r.varint()?)?,
            codec: match r.u8()? {
                0 => Codec::Raw,
                1 => Codec::Lz4,
                _ => return None,
            },
            data_at: short(r.varint()?)?,
            stored: short(r.varint()?)?,
        },
        3 => Body::Hole { offset: r.varint()?, len: r.varint()? },
        4 => {
            let (offset, len) = (r.varint()?, short(r.varint()?)?);
            Body::Shared { offset, len, place: Place::get(r, len, tid)? }
        }
        5 => {
            let fileset = FilesetId(u32::try_from(object.0).ok()?);
            return Some(Record::turn(fileset, Body::Fileset { objects: r.signed()?, live: r.signed()? }));
        }
        _ => return None,
    };
    Some(Record { fileset, object, kind, body })
}

/// What a frame says besides its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub tid: Tid,
    pub fileset: FilesetId,
    /// Checksum of the frame before.
    pub chain: u32,
    /// All up to this tid was durable when the frame was written.
    pub durable: Tid,
    /// The next object number to hand out.
    pub next_object: u64,
    /// By how much the transaction changed the counts of objects and live bytes.
    pub objects: i64,
    pub live: i64,
}

/// Completes the transaction frame that starts at `out[start]`: header room and data area are there already.
/// `out[0]` is byte `base` of the region. Returns the frame's checksum, the next one's chain.
pub fn finish(out: &mut Buffer, start: usize, region: u64, base: u64, h: &Header, heads: &Heads) -> u32 {
    let heads_at = out.len();
    let mut counts = Vec::with_capacity(32);
    put_signed(&mut counts, h.objects);
    put_signed(&mut counts, h.live);
    put_varint(&mut counts, heads.records);
    out.extend_from_slice(&counts);
    out.extend_from_slice(&heads.bytes);
    close(out, start, heads_at, region, base, TX_MAGIC, h)
}

/// Appends the frame that seals a segment and names the next.
pub fn seal(out: &mut Buffer, region: u64, base: u64, h: &Header, next: RegionRef) -> u32 {
    let start = out.len();
    out.resize(start + HEADER);
    let heads_at = out.len();
    let mut heads = Vec::new();
    next.put(&mut heads);
    out.extend_from_slice(&heads);
    close(out, start, heads_at, region, base, SEAL_MAGIC, h)
}

fn close(out: &mut Buffer, start: usize, heads_at: usize, region: u64, base: u64, magic: u32, h: &Header) -> u32 {
    let data_len = (heads_at - start - HEADER) as u32;
    let head_len = (out.len() - heads_at) as u32;
    let header = &mut out[start..start + HEADER];
    header[0..4].copy_from_slice(&magic.to_le_bytes());
    header[4..8].fill(0);
    header[8..16].copy_from_slice(&h.tid.0.to_le_bytes());
    header[16..20].copy_from_slice(&data_len.to_le_bytes());
    header[20..24].copy_from_slice(&head_len.to_le_bytes());
    header[24..28].copy_from_slice(&h.chain.to_le_bytes());
    header[28..32].copy_from_slice(&h.fileset.0.to_le_bytes());
    header[32..40].copy_from_slice(&h.durable.0.to_le_bytes());
    header[40..48].copy_from_slice(&h.next_object.to_le_bytes());
    let crc = checksum(region, base + start as u64, &out[start..start + HEADER], &out[heads_at..]);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    let end = start + (out.len() - start).next_multiple_of(8);
    out.resize(end);
    crc
}

/// The frame with some of its records only, its data area where it was: header, heads (padded), and where the heads begin in
/// the frame.
pub fn rewrite(frame: &[u8], region: u64, at: u64, h: &Header, records: &[&Record]) -> ([u8; HEADER], Vec<u8>, usize) {
    let data = u32::from_le_bytes(frame[16..20].try_into().expect("4 bytes")) as usize;
    let heads_at = HEADER + data;
    let mut kept = Heads::default();
    records.iter().for_each(|r| kept.add(h.tid, r));
    let mut heads = Vec::with_capacity(kept.len() + 32);
    put_signed(&mut heads, h.objects);
    put_signed(&mut heads, h.live);
    put_varint(&mut heads, kept.records);
    heads.extend_from_slice(&kept.bytes);
    let mut header: [u8; HEADER] = frame[..HEADER].try_into().expect("a header");
    header[4..8].fill(0);
    header[20..24].copy_from_slice(&(heads.len() as u32).to_le_bytes());
    let crc = checksum(region, at, &header, &heads);
    header[4..8].copy_from_slice(&crc.to_le_bytes());
    let padded = (heads_at + heads.len()).next_multiple_of(8) - heads_at;
    heads.resize(padded, 0);
    (header, heads, heads_at)
}

fn checksum(region: u64, at: u64, header: &[u8], heads: &[u8]) -> u32 {
    crc32c::crc32c_append(crc_at(region, at, header), heads)
}

/// The lengths that a frame header claims; checked only for sense.
pub struct Shape {
    /// Whole frame.
    pub len: usize,
    data: usize,
    heads: usize,
}

impl Shape {
    /// Where in the frame the heads begin.
    pub fn heads_at(&self) -> usize {
        HEADER + self.data
    }
}

/// Reads a frame's length off its header; `None` if there is no frame.
pub fn shape(header: &[u8]) -> Option<Shape> {
    let magic = u32::from_le_bytes(header.get(..4)?.try_into().ok()?);
    if magic != TX_MAGIC && magic != SEAL_MAGIC || header.len() < HEADER {
        return None;
    }
    let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes")) as usize;
    let (data, heads) = (number(16), number(20));
    let len = HEADER.checked_add(data)?.checked_add(heads)?.checked_next_multiple_of(8)?;
    Some(Shape { len, data, heads })
}

/// Makes a changed frame's checksum right.
#[cfg(any(test, fuzzing))]
pub fn reseal(bytes: &mut [u8], s: &Shape, region: u64, at: u64) {
    bytes[4..8].fill(0);
    let heads = HEADER + s.data..HEADER + s.data + s.heads;
    let crc = checksum(region, at, &bytes[..HEADER], &bytes[heads]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// A decoded frame.
pub struct Frame<'a> {
    pub header: Header,
    pub crc: u32,
    pub content: Content<'a>,
}

/// What is in it.
pub enum Content<'a> {
    Transaction(Vec<Record<'a>>),
    Seal(RegionRef),
}

/// Decodes the frame at byte `at` of a region; `None` if its bytes are not as they were written.
/// The data of extents is not verified here.
pub fn parse(bytes: &[u8], region: u64, at: u64) -> Option<Frame<'_>> {
    let s = shape(bytes)?;
    let frame = bytes.get(..s.len)?;
    let heads = &frame[HEADER + s.data..HEADER + s.data + s.heads];
    let mut header = [0; HEADER];
    header.copy_from_slice(&frame[..HEADER]);
    header[4..8].fill(0);
    let crc = checksum(region, at, &header, heads);
    let mut r = Reader::new(frame);
    let magic = r.u32()?;
    if r.u32()? != crc {
        return None;
    }
    let tid = Tid(r.u64()?);
    r.take(8)?;
    let (chain, fileset) = (r.u32()?, FilesetId(r.u32()?));
    let (durable, next_object) = (Tid(r.u64()?), r.u64()?);
    let mut h = Header { tid, fileset, chain, durable, next_object, objects: 0, live: 0 };
    let mut r = Reader::new(heads);
    if magic == SEAL_MAGIC {
        // Those of versions 1 and 2 end before the volume, those of 3 and 4 before the second copy: there was one.
        let mut forms = [RegionRef::get_without_volume, RegionRef::get_of_one_copy, RegionRef::get].into_iter();
        let next = forms.find_map(|get| {
            let mut r = Reader::new(heads);
            get(&mut r).filter(|_| r.is_empty())
        });
        return Some(Frame { header: h, crc, content: Content::Seal(next?) });
    }
    (h.objects, h.live) = (r.signed()?, r.signed()?);
    let n = r.varint()?;
    let mut records = Vec::with_capacity(n.min(1024) as usize);
    let mut fileset = h.fileset;
    for _ in 0..n {
        let rec = record(&mut r, tid, fileset)?;
        fileset = rec.fileset;
        if let Body::Extent { data_at, stored, len, .. } = rec.body {
            let end = u64::from(data_at) + u64::from(stored);
            let ok = u64::from(len) <= crate::extent::CHUNK && end <= (HEADER + s.data) as u64;
            if !ok || (data_at as usize) < HEADER {
                return None;
            }
        }
        records.push(rec);
    }
    Some(Frame { header: h, crc, content: Content::Transaction(records) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_reads_back_and_any_flipped_bit_of_it_is_noticed() {
        let mut heads = Heads::default();
        let tid = Tid(77);
        let record = |fileset, object, kind, body| Record { fileset: FilesetId(fileset), object, kind, body };
        let records = [
            record(1, ObjectId(1), Kind::ATTR, Body::Put { suffix: b"", value: b"attr" }),
            record(1, ObjectId(9), Kind::DIRENT, Body::Tombstone { suffix: b"name" }),
            Record::turn(FilesetId(8), Body::Fileset { objects: 1, live: -7 }),
            record(8, ObjectId(9), Kind::EXTENT, Body::Hole { offset: 5, len: u64::MAX - 5 }),
        ];
        for r in &records {
            heads.add(tid, r);
        }
        let h =
            Header { tid, fileset: FilesetId(1), chain: 5, durable: Tid(70), next_object: 10, objects: 1, live: -9 };
        let mut out = vec![1, 2, 3, 4, 5, 6, 7, 8];
        out.resize(8 + HEADER, 0);
        let mut out = Buffer::Own(out);
        let crc = finish(&mut out, 8, 3, 4096, &h, &heads);
        let frame = parse(&out[8..], 3, 4104).unwrap();
        assert_eq!((frame.header, frame.crc), (h, crc));
        let Content::Transaction(found) = frame.content else { panic!("a transaction") };
        assert_eq!(found, records);
        assert!(parse(&out[8..], 3, 4112).is_none(), "elsewhere it is no frame");
        let len = HEADER + heads.len();
        for bit in 0..len * 8 {
            let mut bad = out[8..].to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&bad, 3, 4104).is_none(), "bit {bit}");
        }
        for cut in 0..len {
            assert!(parse(&out[8..8 + cut], 3, 4104).is_none());
        }
    }
}
