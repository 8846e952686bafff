//! Extents: how file bytes are stored, and the map from an object's bytes to them. docs/format.md §Extents.
//!
//! A write is cut at chunk boundaries ([`CHUNK`]) into extents. The index keeps, for every chunk that has data, a
//! *chunk map*: which bytes are in which stored extent. A chunk map is a value like any other, so a file's bytes as of a
//! moment are found the way a name is: newest version with tid ≤ T. Maps are derived from the extent records.
//!
//! Tried and dropped: byte-granular interval entries in the index (a read as of T had to walk every version between).

use crate::buffer::Buffer;
use crate::codec::{Reader, crc_at, put_varint};
use crate::{Error, Tid};

/// Bytes of an object that share a chunk map.
pub const CHUNK: u64 = 64 << 10;
/// Bytes under one checksum in a raw extent.
pub const BLOCK: usize = 4096;
/// A chunk map with more pieces than this is written anew as few extents.
pub const PIECES_MAX: usize = 48;
/// Extents shorter than this are not worth compressing.
const COMPRESS_MIN: usize = 2 * BLOCK;

/// How an extent's bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// Blocks of [`BLOCK`] bytes, each followed by its checksum.
    Raw = 0,
    /// One LZ4 block followed by its checksum.
    Lz4 = 1,
}

/// Where bytes are: within a stored extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Region (segment) of the stored extent.
    pub region: u64,
    /// Its first byte there.
    pub offset: u64,
    /// Bytes that it takes there.
    pub stored: u32,
    /// Bytes that it holds.
    pub extent_len: u32,
    /// How many of them come before ours.
    pub skip: u32,
    /// How it is stored.
    pub codec: Codec,
    /// Who wrote it.
    pub tid: Tid,
}

impl Place {
    /// Whether nobody had the bytes when they were to be stored here ([`Stored::Lost`]): no LZ4 block is empty.
    pub(crate) fn is_lost(&self) -> bool {
        is_lost(self.codec, self.stored)
    }

    pub(crate) fn put(&self, len: u32, base: Tid, out: &mut Vec<u8>) {
        let whole = self.skip == 0 && self.extent_len == len;
        out.push(self.codec as u8 | if whole { 2 } else { 0 });
        put_varint(out, self.region);
        put_varint(out, self.offset);
        put_varint(out, base.0.wrapping_sub(self.tid.0));
        if self.codec == Codec::Lz4 {
            put_varint(out, self.stored.into());
        }
        if !whole {
            put_varint(out, self.skip.into());
            put_varint(out, self.extent_len.into());
        }
    }

    pub(crate) fn get(r: &mut Reader, len: u32, base: Tid) -> Option<Place> {
        let flags = r.u8()?;
        let codec = if flags & 1 == 0 { Codec::Raw } else { Codec::Lz4 };
        let (region, offset) = (r.varint()?, r.varint()?);
        let tid = Tid(base.0.wrapping_sub(r.varint()?));
        let lz4 = if codec == Codec::Lz4 { Some(u32::try_from(r.varint()?).ok()?) } else { None };
        let (skip, extent_len) = if flags & 2 != 0 {
            (0, len)
        } else {
            (u32::try_from(r.varint()?).ok()?, u32::try_from(r.varint()?).ok()?)
        };
        let fits = u64::from(skip) + u64::from(len) <= u64::from(extent_len) && u64::from(extent_len) <= CHUNK;
        let stored = lz4.unwrap_or_else(|| raw_size(extent_len as usize) as u32);
        (fits && flags < 4).then_some(Place { region, offset, stored, extent_len, skip, codec, tid })
    }
}

/// A run of an object's bytes that comes from one place, or is a hole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The object mapped (for messages).
    pub(crate) object: u64,
    /// First byte in the object.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// `None`: a hole, which reads as zeroes.
    pub(crate) place: Option<Place>,
}

impl Piece {
    /// Whether it holds data (else it is a hole).
    pub fn is_data(&self) -> bool {
        self.place.is_some()
    }

    /// What tells whether two pieces are the same stored bytes: region, offset, and where in it; `None` for a hole.
    pub fn identity(&self) -> Option<(u64, u64, u32, u64)> {
        self.place.map(|p| (p.region, p.offset, p.skip, self.len))
    }

    /// Whether nobody had the bytes when they were to be stored here ([`Stored::Lost`]): they can't be read.
    pub fn is_lost(&self) -> bool {
        self.place.is_some_and(|p| p.is_lost())
    }

    /// The parts that have a checksum each, in order.
    pub(crate) fn parts(&self) -> impl Iterator<Item = Piece> {
        let unit = self.place.filter(|p| p.codec == Codec::Raw).map_or(u64::from(u32::MAX), |_| BLOCK as u64);
        let skip = self.place.map_or(0, |p| p.skip);
        let mut from = 0;
        std::iter::from_fn(move || {
            let to = self.len.min((u64::from(skip) + from) / unit * unit + unit - u64::from(skip));
            let place = self.place.map(|p| Place { skip: p.skip + from as u32, ..p });
            let part = Piece { offset: self.offset + from, len: to - from, place, ..*self };
            from = to;
            (part.len > 0).then_some(part)
        })
    }

    /// If it is all of an extent that is stored as an LZ4 block: bytes of that.
    pub fn packed_len(&self) -> Option<usize> {
        let whole =
            |p: &Place| p.codec == Codec::Lz4 && p.skip == 0 && u64::from(p.extent_len) == self.len && !p.is_lost();
        self.place.filter(whole).and_then(|p| (p.stored as usize).checked_sub(4))
    }

    /// The transaction that wrote the bytes; `None` for a hole.
    pub fn tid(&self) -> Option<Tid> {
        self.place.map(|p| p.tid)
    }
}

/// What a span takes in an encoded map, about.
const SPAN_BYTES: usize = 10;

/// Bytes `at .. at+len` of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub at: u32,
    pub len: u32,
    pub place: Place,
}

impl Span {
    pub(crate) fn end(&self) -> u32 {
        self.at + self.len
    }

    fn cut(&self, from: u32, to: u32) -> Span {
        let skip = from - self.at;
        let place = Place { skip: self.place.skip + skip, ..self.place };
        Span { at: from, len: to - from, place }
    }
}

/// Which bytes of a chunk are where. Spans are in order and do not overlap; the rest is hole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChunkMap {
    pub spans: Vec<Span>,
}

impl ChunkMap {
    /// Decodes a map that was stored with version `tid`; `None` if it is none.
    pub fn decode(bytes: &[u8], tid: Tid) -> Option<ChunkMap> {
        // About as many as there are.
        let mut spans = Vec::with_capacity(bytes.len() / SPAN_BYTES + 1);
        ChunkMap::each_span(bytes, tid, |s| spans.push(s))?;
        Some(ChunkMap { spans })
    }

    /// As [`ChunkMap::decode`], without a list; some may have been visited where it is none.
    pub fn each_span(bytes: &[u8], tid: Tid, mut visit: impl FnMut(Span)) -> Option<()> {
        let mut r = Reader::new(bytes);
        let mut end = 0u32;
        while !r.is_empty() {
            let at = end.checked_add(u32::try_from(r.varint()?).ok()?)?;
            let len = u32::try_from(r.varint()?).ok()?;
            end = at.checked_add(len).filter(|&e| len > 0 && u64::from(e) <= CHUNK)?;
            visit(Span { at, len, place: Place::get(&mut r, len, tid)? });
        }
        Some(())
    }

    /// Encodes it for a version with this tid.
    pub fn encode(&self, tid: Tid) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.spans.len() * 16);
        let mut end = 0;
        for s in &self.spans {
            put_varint(&mut out, (s.at - end).into());
            put_varint(&mut out, s.len.into());
            s.place.put(s.len, tid, &mut out);
            end = s.end();
        }
        out
    }

    /// Bytes that are data.
    pub fn data_len(&self) -> i64 {
        self.spans.iter().map(|s| i64::from(s.len)).sum()
    }

    /// Makes `at .. at+len` come from `place`, or a hole.
    pub fn overlay(&mut self, at: u32, len: u32, place: Option<Place>) {
        let end = at + len;
        if let (Some(place), Some(last)) = (place, self.spans.last())
            && last.end() <= at
        {
            self.spans.push(Span { at, len, place });
            return;
        }
        let mut out = Vec::with_capacity(self.spans.len() + 2);
        let mut new = place.map(|place| Span { at, len, place });
        for s in &self.spans {
            if s.at < at {
                out.push(s.cut(s.at, s.end().min(at)));
            }
            if s.end() > at {
                out.extend(new.take());
            }
            if s.end() > end {
                out.push(s.cut(s.at.max(end), s.end()));
            }
        }
        out.extend(new);
        self.spans = out;
    }

    /// Appends the pieces of bytes `from .. to` of the chunk that starts at `base`, holes included.
    pub fn pieces(&self, object: u64, base: u64, from: u32, to: u32, out: &mut Vec<Piece>) {
        let mut at = from;
        let mut push = |from: u32, to: u32, place: Option<Place>| {
            if from < to {
                push_piece(out, Piece { object, offset: base + u64::from(from), len: (to - from).into(), place });
            }
        };
        for s in &self.spans {
            let (lo, hi) = (s.at.max(from), s.end().min(to));
            if lo < hi {
                push(at, lo, None);
                push(lo, hi, Some(s.cut(lo, hi).place));
                at = hi;
            }
        }
        push(at, to, None);
    }
}

/// Appends a piece, joined to the last one where both are holes.
pub fn push_piece(out: &mut Vec<Piece>, piece: Piece) {
    match out.last_mut() {
        Some(last) if last.place.is_none() && piece.place.is_none() => last.len += piece.len,
        _ => out.push(piece),
    }
}

/// Stored bytes of a raw extent.
pub fn raw_size(len: usize) -> usize {
    len + 4 * len.div_ceil(BLOCK)
}

/// Stores `data` (at most a chunk) at the end of `out`, whose byte 0 is `base` of region `region`. Returns the codec.
/// `compress`: whether the time for that may be spent.
pub fn store(data: &[u8], region: u64, base: u64, compress: bool, out: &mut Buffer) -> Codec {
    let start = out.len();
    if compress && data.len() >= COMPRESS_MIN && looks_compressible(data) {
        let most = lz4_flex::block::get_maximum_output_size(data.len());
        out.resize(start + most);
        if let Ok(n) = lz4_flex::block::compress_into(data, &mut out[start..])
            && n + n / 8 < data.len()
        {
            out.truncate(start + n);
            let crc = crc_at(region, base + start as u64, &out[start..]);
            out.extend_from_slice(&crc.to_le_bytes());
            return Codec::Lz4;
        }
        out.truncate(start);
    }
    for block in data.chunks(BLOCK) {
        let crc = crc_at(region, base + out.len() as u64, block);
        out.extend_from_slice(block);
        out.extend_from_slice(&crc.to_le_bytes());
    }
    Codec::Raw
}

/// As [`store`], of bytes whose form is decided: LZ4 ones (with which length they have, unpacked) are taken as they are.
pub fn store_as(form: &Stored<'_>, region: u64, base: u64, out: &mut Buffer) -> Codec {
    match form {
        Stored::Raw(data) => store(data, region, base, false, out),
        Stored::Lz4(packed, _) => {
            let crc = crc_at(region, base + out.len() as u64, packed);
            out.extend_from_slice(packed);
            out.extend_from_slice(&crc.to_le_bytes());
            Codec::Lz4
        }
        Stored::Lost(len) => store_as(&Stored::Lz4(&[], *len), region, base, out),
    }
}

/// As [`Place::is_lost`].
pub(crate) fn is_lost(codec: Codec, stored: u32) -> bool {
    codec == Codec::Lz4 && stored == 4
}

/// File bytes in the form in which they are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored<'b> {
    /// As they are.
    Raw(&'b [u8]),
    /// One LZ4 block, and how many bytes it holds.
    Lz4(&'b [u8], u32),
    /// So many, which nobody has: whoever reads them is told.
    Lost(u32),
}

impl Stored<'_> {
    /// Bytes that it holds; `None` if it is no LZ4 block of what it says.
    pub fn verified_len(&self) -> Option<u32> {
        match self {
            Stored::Raw(data) => u32::try_from(data.len()).ok(),
            Stored::Lz4(packed, len) if u64::from(*len) <= CHUNK => {
                let mut out = vec![0; *len as usize];
                let n = lz4_flex::block::decompress_into(packed, &mut out).ok()?;
                (n == out.len()).then_some(*len)
            }
            Stored::Lost(len) if u64::from(*len) <= CHUNK => Some(*len),
            Stored::Lz4(..) | Stored::Lost(_) => None,
        }
    }
}

/// The LZ4 block in the stored bytes of an extent that is one, verified by its checksum.
pub fn packed<'a>(place: &Place, stored: &'a [u8]) -> Result<&'a [u8], Error> {
    let Some((data, crc)) = stored.split_last_chunk::<4>() else {
        return Err(damaged(place, place.offset, 0, 0));
    };
    check(place, place.offset, data, crc)?;
    Ok(data)
}

/// Early give-up: random-looking bytes in a sample from the middle mean that LZ4 would work in vain.
fn looks_compressible(data: &[u8]) -> bool {
    let mut seen = [0u8; 256];
    let middle = data.len() / 2;
    let sample = &data[middle..data.len().min(middle + 1024)];
    for &b in sample {
        seen[usize::from(b)] = seen[usize::from(b)].saturating_add(1);
    }
    // Collisions of equal bytes: 1024 random ones over 256 values give Σn² ≈ 5100; text gives three times that and more.
    let sum: u32 = seen.iter().map(|&n| u32::from(n) * u32::from(n)).sum();
    sum > 8 * sample.len() as u32
}

/// The blocks (`first..last`) of a stored extent that a read of `len` bytes at `place` needs; an LZ4 extent is one.
pub fn blocks_needed(place: &Place, len: usize) -> (usize, usize) {
    match place.codec {
        Codec::Lz4 => (0, 1),
        Codec::Raw => (place.skip as usize / BLOCK, (place.skip as usize + len).div_ceil(BLOCK)),
    }
}

/// The stored bytes that a read of `len` bytes at `place` needs: (offset in the region, length).
pub fn needed(place: &Place, len: usize) -> (u64, usize) {
    match place.codec {
        Codec::Lz4 => (place.offset, place.stored as usize),
        Codec::Raw => {
            let (first, last) = blocks_needed(place, len);
            let end = raw_size((last * BLOCK).min(place.extent_len as usize));
            let start = first * (BLOCK + 4);
            (place.offset + start as u64, end - start)
        }
    }
}

/// Verifies what [`needed`] named and copies the bytes at `place` out of it.
pub fn load(place: &Place, stored: &[u8], out: &mut [u8]) -> Result<(), Error> {
    if place.is_lost() {
        return Err(Error::Corrupt {
            place: format!("region {:x} at byte {}", place.region, place.offset),
            what: "extent",
            expected: format!("{} bytes", place.extent_len),
            found: "a note that nobody had them when they were to come here".into(),
        });
    }
    match place.codec {
        Codec::Lz4 => load_lz4(place, stored, out),
        Codec::Raw => load_raw(place, stored, out),
    }
}

fn damaged(place: &Place, at: u64, expected: u32, found: u32) -> Error {
    Error::Corrupt {
        place: format!("region {:x} at byte {at}", place.region),
        what: "extent",
        expected: format!("crc {expected:08x}"),
        found: format!("crc {found:08x}"),
    }
}

fn check(place: &Place, at: u64, block: &[u8], crc: &[u8]) -> Result<(), Error> {
    let found = crc_at(place.region, at, block);
    let expected = u32::from_le_bytes(crc.try_into().expect("4 bytes"));
    if found == expected { Ok(()) } else { Err(damaged(place, at, expected, found)) }
}

fn load_raw(place: &Place, stored: &[u8], out: &mut [u8]) -> Result<(), Error> {
    let (len, mut done) = (out.len(), 0);
    each_raw(place, stored, len, |part| {
        out[done..done + part.len()].copy_from_slice(part);
        done += part.len();
    })
}

/// As [`load`], of `len` bytes of a raw extent to the end of `out`; some may be there already where one is damaged.
pub fn append_raw(place: &Place, stored: &[u8], len: usize, out: &mut Vec<u8>) -> Result<(), Error> {
    each_raw(place, stored, len, |part| out.extend_from_slice(part))
}

/// Visits the bytes at `place`, each block verified before.
fn each_raw(place: &Place, stored: &[u8], len: usize, mut visit: impl FnMut(&[u8])) -> Result<(), Error> {
    let first = place.skip as usize / BLOCK;
    let mut at = place.offset + (first * (BLOCK + 4)) as u64;
    let mut skip = place.skip as usize % BLOCK;
    let mut left = len;
    for block in stored.chunks(BLOCK + 4) {
        let (data, crc) = block.split_at(block.len() - 4);
        check(place, at, data, crc)?;
        let n = (data.len() - skip).min(left);
        visit(&data[skip..skip + n]);
        left -= n;
        skip = 0;
        at += block.len() as u64;
    }
    assert_eq!(left, 0, "needed() named too little for {place:?}");
    Ok(())
}

fn load_lz4(place: &Place, stored: &[u8], out: &mut [u8]) -> Result<(), Error> {
    let data = packed(place, stored)?;
    let bad = |_| Error::Corrupt {
        place: format!("region {:x} at byte {}", place.region, place.offset),
        what: "LZ4 extent",
        expected: format!("{} bytes", place.extent_len),
        found: "another length".into(),
    };
    let whole = place.skip == 0 && out.len() == place.extent_len as usize;
    if whole {
        let n = lz4_flex::block::decompress_into(data, out).map_err(bad)?;
        return if n == out.len() { Ok(()) } else { Err(bad(lz4_flex::block::DecompressError::LiteralOutOfBounds)) };
    }
    let all = lz4_flex::block::decompress(data, place.extent_len as usize).map_err(bad)?;
    let skip = place.skip as usize;
    match all.get(skip..skip + out.len()) {
        Some(part) => {
            out.copy_from_slice(part);
            Ok(())
        }
        None => Err(bad(lz4_flex::block::DecompressError::LiteralOutOfBounds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(tid: u64) -> Place {
        Place {
            region: 3,
            offset: 4096,
            stored: raw_size(65536) as u32,
            extent_len: 65536,
            skip: 0,
            codec: Codec::Raw,
            tid: Tid(tid),
        }
    }

    #[test]
    fn overlays_equal_a_byte_array() {
        let mut rng = 7u64;
        let mut next = |n: u64| {
            rng = crate::codec::mix(rng.wrapping_add(0x9e37_79b9_7f4a_7c15));
            rng % n
        };
        for _ in 0..300 {
            let mut map = ChunkMap::default();
            let mut model = vec![None; 256];
            for tid in 1..20 {
                let at = next(255);
                let len = 1 + next(256 - at);
                let p = (next(4) > 0).then(|| Place { skip: at as u32, ..place(tid) });
                map.overlay(at as u32, len as u32, p);
                for i in at..at + len {
                    model[i as usize] = p.map(|p| (p.tid, i));
                }
                let again = ChunkMap::decode(&map.encode(Tid(100)), Tid(100)).unwrap();
                assert_eq!(again, map);
            }
            let mut flat = vec![None; 256];
            for s in &map.spans {
                for i in 0..s.len {
                    flat[(s.at + i) as usize] = Some((s.place.tid, u64::from(s.place.skip + i)));
                }
            }
            assert_eq!(flat, model);
            let mut pieces = Vec::new();
            map.pieces(1, 0, 0, 256, &mut pieces);
            assert_eq!(pieces.iter().map(|p| p.len).sum::<u64>(), 256);
        }
    }

    #[test]
    fn any_range_of_a_stored_extent_reads_back_and_any_flipped_bit_is_noticed() {
        let text: Vec<u8> = (0..20_000u32).flat_map(|i| format!("{i} ").into_bytes()).take(20_000).collect();
        let noise: Vec<u8> = (0..20_000u64).map(|i| crate::codec::mix(i) as u8).collect();
        for (data, codec) in [(text, Codec::Lz4), (noise, Codec::Raw)] {
            let mut out = Buffer::Own(vec![9; 77]);
            assert_eq!(store(&data, 5, 1000, true, &mut out), codec);
            let p = Place {
                region: 5,
                offset: 1077,
                stored: (out.len() - 77) as u32,
                extent_len: 20_000,
                skip: 0,
                codec,
                tid: Tid(1),
            };
            for (skip, len) in [(0, 20_000), (1, 1), (4095, 2), (4096, 4096), (19_999, 1), (8000, 9000)] {
                let p = Place { skip, ..p };
                let (at, n) = needed(&p, len);
                let from = (at - 1000) as usize;
                let mut buf = vec![0; len];
                load(&p, &out[from..from + n], &mut buf).unwrap();
                assert_eq!(buf, data[skip as usize..skip as usize + len]);
                let mut bad = out[from..from + n].to_vec();
                bad[n / 2] ^= 4;
                assert!(load(&p, &bad, &mut buf).is_err());
            }
        }
    }
}
