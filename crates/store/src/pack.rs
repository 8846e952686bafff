//! Packs: what is left of cleaned segments. docs/format.md §Pack.
//!
//! A pack is one region that holds *parts*, each the remains of a segment: runs of its bytes, one behind the other, and a
//! directory that says where they were. Through [`Packed`] a part is read by the offsets that its segment had. So places,
//! checksums and frames stay as they are: cleaning changes no chunk map, no shared extent ever leads nowhere, and the
//! segments in their order are still the truth from which an index can be made.
//!
//! Tried and dropped: new places for moved extents. Every chunk map of every moment that leads to one would have to be
//! rewritten, and records of shared extents in other segments would name what is no more.

use std::sync::{Arc, OnceLock};

use crate::codec::{Reader, crc_at, is_sealed, put_varint};
use crate::heal::{heal, read_good};
use crate::segment::Segment;
use crate::volume::{Region, RegionRef};
use crate::{Error, Result, Tid};

/// Bytes of a pack's header; parts begin behind it.
pub const HEADER: u64 = 4096;
const MAGIC: &[u8; 8] = b"DARNPAK1";
/// What has more bytes is not taken into memory as a whole.
const IN_MEMORY_MAX: u64 = if cfg!(test) { 2 << 20 } else { 32 << 20 };

/// Which bytes of a segment are left, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// First byte of each run: (in the segment, in the part).
    starts: Vec<(u32, u32)>,
    /// Bytes of all.
    len: u32,
}

impl Runs {
    /// Adds bytes behind all others.
    pub fn push(&mut self, offset: u64, len: usize) {
        if len == 0 {
            return;
        }
        let joins =
            self.starts.last().is_some_and(|(at, within)| u64::from(*at) + u64::from(self.len - within) == offset);
        if !joins {
            self.starts.push((offset as u32, self.len));
        }
        self.len += len as u32;
    }

    /// Bytes that are left.
    pub fn len(&self) -> u64 {
        self.len.into()
    }

    fn run_len(&self, i: usize) -> u32 {
        self.starts.get(i + 1).map_or(self.len, |next| next.1) - self.starts[i].1
    }

    /// The first byte at or after `offset` that is left.
    fn next(&self, offset: u64) -> Option<u64> {
        let after = self.starts.partition_point(|(at, _)| u64::from(*at) <= offset);
        if after > 0 && offset < u64::from(self.starts[after - 1].0) + u64::from(self.run_len(after - 1)) {
            return Some(offset);
        }
        self.starts.get(after).map(|(at, _)| (*at).into())
    }

    /// What is left of a range: (in the segment, in the part, bytes) for each run.
    fn within(&self, offset: u64, len: u64) -> impl Iterator<Item = (u64, u64, u64)> {
        let end = offset + len;
        let first = self.starts.partition_point(|(at, _)| u64::from(*at) <= offset).saturating_sub(1);
        let runs = (first..self.starts.len()).map_while(move |i| {
            let (at, within) = (u64::from(self.starts[i].0), u64::from(self.starts[i].1));
            let (from, to) = (at.max(offset), (at + u64::from(self.run_len(i))).min(end));
            (at < end).then_some((from, within + (from - at), to.saturating_sub(from)))
        });
        // The first may end before the range.
        runs.filter(|(.., len)| *len > 0)
    }

    fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.starts.len() as u64);
        let mut end = 0;
        for (i, (at, _)) in self.starts.iter().enumerate() {
            put_varint(out, u64::from(*at) - end);
            put_varint(out, self.run_len(i).into());
            end = u64::from(*at) + u64::from(self.run_len(i));
        }
    }

    fn get(r: &mut Reader, size: u64) -> Option<Runs> {
        let mut runs = Runs::default();
        let mut end = 0u64;
        for _ in 0..r.varint()? {
            let at = end.checked_add(r.varint()?)?;
            let len = r.varint()?;
            end = at.checked_add(len).filter(|e| len > 0 && *e <= size && size <= u64::from(u32::MAX))?;
            runs.push(at, usize::try_from(len).ok()?);
        }
        Some(runs)
    }
}

/// Bytes of a pack that are written at a time.
const PIECE: usize = 1 << 20;

/// What is left of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The segment; its size, and where it ended.
    pub number: u64,
    pub end: u64,
    /// As [`Segment::after`].
    pub after: Tid,
    /// First byte of its runs in the pack.
    pub base: u64,
    pub runs: Runs,
}

impl Part {
    fn put(&self, out: &mut Vec<u8>) {
        for v in [self.number, self.end, self.after.0, self.base] {
            put_varint(out, v);
        }
        self.runs.put(out);
    }

    fn get(r: &mut Reader, pack_size: u64) -> Option<Part> {
        let (number, end, after, base) = (r.varint()?, r.varint()?, Tid(r.varint()?), r.varint()?);
        let runs = Runs::get(r, end)?;
        base.checked_add(runs.len()).filter(|e| *e <= pack_size)?;
        Some(Part { number, end, after, base, runs })
    }
}

/// Makes a pack, part by part, in memory: only when it is whole is known which gap of a volume it fits.
pub struct Writer {
    /// What is behind the header.
    buf: Vec<u8>,
    parts: Vec<Part>,
}

impl Writer {
    /// `guess`: bytes that it will about come to.
    pub fn new(guess: usize) -> Writer {
        Writer { buf: Vec::with_capacity(guess), parts: Vec::new() }
    }

    /// Begins the remains of a segment.
    pub fn begin(&mut self, s: &Segment) {
        let base = HEADER + self.buf.len() as u64;
        let (number, end, after) = (s.at.id, s.end, s.after);
        self.parts.push(Part { number, end, after, base, runs: Runs::default() });
    }

    /// Adds bytes that are at `offset` of the segment.
    pub fn add(&mut self, offset: u64, bytes: &[u8]) {
        self.parts.last_mut().expect("begun").runs.push(offset, bytes.len());
        self.buf.extend_from_slice(bytes);
    }

    /// Writes it to a region that `create` makes, of so many bytes; durable once that is flushed. Returns the region and the
    /// parts (of some nothing may be left: those are not in the directory).
    pub fn finish(
        mut self,
        store: &[u8; 16],
        create: impl FnOnce(u64) -> Result<Arc<dyn Region>>,
    ) -> Result<(Arc<dyn Region>, Vec<Part>)> {
        let at = HEADER + self.buf.len() as u64;
        let mut directory = Vec::new();
        let left: Vec<&Part> = self.parts.iter().filter(|p| p.runs.len() > 0).collect();
        put_varint(&mut directory, left.len() as u64);
        left.iter().for_each(|p| p.put(&mut directory));
        let len = directory.len() as u64 + 4;
        let region = create(at + len)?;
        let id = region.place().id;
        let crc = crc_at(id, at, &directory);
        directory.extend_from_slice(&crc.to_le_bytes());
        self.buf.extend_from_slice(&directory);
        // The medium begins at once: the flush waits the less.
        for (n, piece) in self.buf.chunks(PIECE).enumerate() {
            let at = HEADER + (n * PIECE) as u64;
            region.write_at(piece, at)?;
            region.write_back(at, piece.len() as u64);
        }
        region.write_at(&header(store, id, at, len), 0)?;
        region.write_back(0, HEADER);
        Ok((region, self.parts))
    }
}

fn header(store: &[u8; 16], id: u64, directory: u64, len: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER as usize);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(store);
    for v in [id, directory, len] {
        out.extend_from_slice(&v.to_le_bytes());
    }
    out.resize(HEADER as usize - 4, 0);
    let crc = crc_at(id, 0, &out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

/// The parts of a pack.
pub fn read(region: &dyn Region, store: &[u8; 16]) -> Result<Vec<Part>> {
    let at = region.place();
    let corrupt = |byte: u64, what, found: &str| Error::Corrupt {
        place: format!("region {:x} at byte {byte}", at.id),
        what,
        expected: "one of this store, with a valid checksum".into(),
        found: found.into(),
    };
    let mut head = vec![0; HEADER as usize];
    if !read_good(region, &mut head, 0, &|bytes| is_sealed(bytes, at.id, 0))? {
        return Err(corrupt(0, "pack header", "another checksum"));
    }
    let mut r = Reader::new(&head);
    let mut fields = || Some((r.take(8)?, r.take(16)?, r.u64()?, r.u64()?, r.u64()?));
    let (magic, uuid, id, start, len) = fields().expect("the header has them");
    let fits = start.checked_add(len).is_some_and(|end| end <= at.size) && len > 4;
    if magic != MAGIC || uuid != store || id != at.id || !fits {
        return Err(corrupt(0, "pack header", "something else"));
    }
    let mut directory = vec![0; len as usize];
    if !read_good(region, &mut directory, start, &|bytes| is_sealed(bytes, at.id, start))? {
        return Err(corrupt(start, "pack directory", "another checksum"));
    }
    parts(&directory[..directory.len() - 4], start)
        .ok_or_else(|| corrupt(start, "pack directory", "fields that make no sense"))
}

/// Heals header and directory where a copy of them is damaged; returns how many were.
pub fn heal_heads(region: &dyn Region, store: &[u8; 16]) -> Result<u64> {
    if region.copies().is_empty() || read(region, store).is_err() {
        return Ok(0);
    }
    let id = region.place().id;
    let mut head = vec![0; HEADER as usize];
    let mut healed = heal(region, &mut head, 0, &|bytes| is_sealed(bytes, id, 0))?.unwrap_or(0);
    let mut r = Reader::new(&head[32..]);
    if let Some((start, len)) = r.u64().zip(r.u64()) {
        let mut directory = vec![0; len as usize];
        healed += heal(region, &mut directory, start, &|bytes| is_sealed(bytes, id, start))?.unwrap_or(0);
    }
    Ok(healed)
}

fn parts(directory: &[u8], end: u64) -> Option<Vec<Part>> {
    let mut r = Reader::new(directory);
    let mut parts = Vec::new();
    for _ in 0..r.varint()? {
        parts.push(Part::get(&mut r, end)?);
    }
    r.is_empty().then_some(parts)
}

/// Some of a region, in memory.
struct Copied {
    /// What they are of.
    of: Arc<dyn Region>,
    bytes: Arc<Vec<u8>>,
    at: RegionRef,
    base: u64,
}

/// A region of which all bytes are in memory.
pub fn of_bytes(of: Arc<dyn Region>, bytes: Arc<Vec<u8>>) -> Arc<dyn Region> {
    let at = RegionRef { size: bytes.len() as u64, ..of.place() };
    Arc::new(Copied { of, bytes, at, base: 0 })
}

impl Region for Copied {
    fn place(&self) -> RegionRef {
        self.at
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let from = (offset - self.base) as usize;
        buf.copy_from_slice(&self.bytes[from..from + buf.len()]);
        Ok(())
    }

    fn write_at(&self, _: &[u8], offset: u64) -> Result<()> {
        Err(not_writable(self.at.id, offset))
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn copies(&self) -> Vec<Arc<dyn Region>> {
        self.of.copies()
    }

    fn note_healed(&self) {
        self.of.note_healed();
    }

    fn bytes(&self, offset: u64) -> &[u8] {
        let from = offset.checked_sub(self.base).and_then(|from| usize::try_from(from).ok());
        from.and_then(|from| self.bytes.get(from..)).unwrap_or_default()
    }
}

fn not_writable(region: u64, offset: u64) -> Error {
    Error::Io {
        place: format!("region {region:x} at byte {offset}"),
        action: "write",
        source: Arc::new(std::io::ErrorKind::ReadOnlyFilesystem.into()),
    }
}

/// A cleaned segment: reads as it was, but for what was dropped, which reads as zeroes.
pub struct Packed {
    pack: Arc<dyn Region>,
    /// The segment.
    at: RegionRef,
    /// Of a pack whose directory was not read yet, whose it is.
    unread: Option<[u8; 16]>,
    part: OnceLock<Arc<Part>>,
}

impl Packed {
    pub fn new(pack: Arc<dyn Region>, part: Part) -> Packed {
        let at = RegionRef { id: part.number, start: 0, size: part.end, volume: 0, second: None };
        Packed { pack, at, unread: None, part: Arc::new(part).into() }
    }

    /// One of a pack whose directory is read when somebody reads of it: what is in a bucket opens without.
    pub fn unread(pack: Arc<dyn Region>, at: RegionRef, store: [u8; 16]) -> Packed {
        Packed { pack, at, unread: Some(store), part: OnceLock::new() }
    }

    fn part(&self) -> Result<&Arc<Part>> {
        if let (Some(store), None) = (&self.unread, self.part.get()) {
            let parts = read(&*self.pack, store);
            if parts.as_ref().is_err_and(Error::is_lost) {
                // (It may be as it was by the next time.)
                self.pack.drop_cached(0, self.pack.place().size);
            }
            let mut all = parts?.into_iter();
            let part = all.find(|part| part.number == self.at.id).ok_or_else(|| Error::Corrupt {
                place: format!("region {:x}", self.pack.place().id),
                what: "pack",
                expected: format!("what is left of segment {:x}", self.at.id),
                found: "other segments".into(),
            })?;
            self.part.get_or_init(|| Arc::new(part));
        }
        Ok(self.part.get().expect("just read"))
    }

    /// Where in the pack what is left of a range is, and how many bytes; `None` if nothing is, or that is not known yet.
    fn stored(&self, offset: u64, len: u64) -> Option<(u64, u64)> {
        stored(self.part.get()?, offset, len)
    }
}

fn stored(part: &Part, offset: u64, len: u64) -> Option<(u64, u64)> {
    let runs = || part.runs.within(offset, len);
    let (first, last) = (runs().next()?, runs().last()?);
    Some((part.base + first.1, last.1 + last.2 - first.1))
}

impl Region for Packed {
    fn place(&self) -> RegionRef {
        self.at
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let (part, len) = (self.part()?, buf.len() as u64);
        let Some((start, bytes)) = stored(part, offset, len) else {
            buf.fill(0);
            return Ok(());
        };
        if bytes == len {
            return self.pack.read_at(buf, start);
        }
        // Runs that follow one another in the segment lie side by side in the pack: one read for all, to the end of the
        // buffer, from where each is moved down to its place.
        let mut from = buf.len() - bytes as usize;
        self.pack.read_at(&mut buf[from..], start)?;
        let mut done = 0;
        for (at, _, n) in part.runs.within(offset, len) {
            let (to, n) = ((at - offset) as usize, n as usize);
            buf.copy_within(from..from + n, to);
            buf[done..to].fill(0);
            (done, from) = (to + n, from + n);
        }
        buf[done..].fill(0);
        Ok(())
    }

    /// Nothing but what was damaged is ever written to it.
    fn write_at(&self, _: &[u8], offset: u64) -> Result<()> {
        Err(not_writable(self.at.id, offset))
    }

    fn flush(&self) -> Result<()> {
        self.pack.flush()
    }

    /// What was dropped stays so.
    fn mend(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let part = self.part()?;
        part.runs.within(offset, bytes.len() as u64).try_for_each(|(at, within, n)| {
            let from = (at - offset) as usize;
            self.pack.mend(&bytes[from..from + n as usize], part.base + within)
        })
    }

    fn copies(&self) -> Vec<Arc<dyn Region>> {
        let of = |pack| -> Arc<dyn Region> {
            Arc::new(Packed { pack, at: self.at, unread: self.unread, part: self.part.clone() })
        };
        self.pack.copies().into_iter().map(of).collect()
    }

    fn note_healed(&self) {
        self.pack.note_healed();
    }

    fn drop_cached(&self, offset: u64, len: u64) {
        if let Some((start, bytes)) = self.stored(offset, len) {
            self.pack.drop_cached(start, bytes);
        }
    }

    fn in_memory(&self) -> Result<Option<Arc<dyn Region>>> {
        let part = self.part()?;
        if part.runs.len() > IN_MEMORY_MAX {
            return Ok(None);
        }
        let bytes = self.pack.read_new(part.base, part.runs.len() as usize)?;
        let (of, place) = (self.pack.clone(), self.pack.place());
        let pack = Arc::new(Copied { of, bytes: Arc::new(bytes), at: place, base: part.base });
        Ok(Some(Arc::new(Packed { pack, at: self.at, unread: None, part: self.part.clone() })))
    }

    fn will_need(&self, offset: u64, len: u64) {
        if let Some((start, bytes)) = self.stored(offset, len) {
            self.pack.will_need(start, bytes);
        }
    }

    fn bytes(&self, offset: u64) -> &[u8] {
        let Some(part) = self.part.get() else { return &[] };
        match part.runs.within(offset, u64::from(u32::MAX)).next() {
            Some((at, within, len)) if at == offset => {
                let bytes = self.pack.bytes(part.base + within);
                &bytes[..bytes.len().min(len as usize)]
            }
            _ => &[],
        }
    }

    fn bytes_kept(&self) -> u64 {
        self.part.get().map_or(self.at.size, |part| part.runs.len())
    }

    fn kept_within(&self, offset: u64, len: u64) -> u64 {
        self.stored(offset, len).map_or(0, |(_, bytes)| bytes)
    }

    /// (Where that can't be read, whoever reads there is told.)
    fn next_kept(&self, offset: u64) -> u64 {
        self.part().map_or(offset, |part| part.runs.next(offset).unwrap_or(part.end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::sim::SimDisk;
    use crate::volume::{RawVolume, Volume};

    #[test]
    fn a_packed_segment_reads_as_it_was_but_for_what_was_dropped() {
        let volume = RawVolume::new(Arc::new(SimDisk::new(1 << 30)));
        let mut rng = fastrand::Rng::with_seed(1);
        for round in 1..60u64 {
            let mut w = Writer::new(0);
            let mut models = Vec::new();
            for number in 0..rng.u64(1..4) {
                let end = rng.u64(1..200_000);
                let at = RegionRef { id: 100 + number, start: 0, size: end, volume: 0, second: None };
                w.begin(&Segment { end, ..Segment::open(at, Tid(number)) });
                let mut model = vec![None; end as usize];
                let mut offset = 0;
                while offset < end {
                    let n = rng.u64(1..5000).min(end - offset);
                    if rng.bool() {
                        let bytes: Vec<u8> = (0..n).map(|_| rng.u8(1..)).collect();
                        w.add(offset, &bytes);
                        for (i, b) in bytes.iter().enumerate() {
                            model[offset as usize + i] = Some(*b);
                        }
                    }
                    offset += n;
                }
                models.push(model);
            }
            let (region, parts) = w.finish(&[7; 16], |size| volume.create(round, size)).unwrap();
            let left: Vec<Part> = parts.iter().filter(|p| p.runs.len() > 0).cloned().collect();
            assert_eq!(read(&*region, &[7; 16]).unwrap(), left);
            assert!(read(&*region, &[8; 16]).is_err());
            for (part, model) in parts.into_iter().zip(&models) {
                let packed = Packed::new(region.clone(), part);
                for _ in 0..100 {
                    let from = rng.usize(..model.len());
                    let n = rng.usize(1..=model.len() - from);
                    let mut buf = vec![9; n];
                    packed.read_at(&mut buf, from as u64).unwrap();
                    let expected: Vec<u8> = model[from..from + n].iter().map(|b| b.unwrap_or(0)).collect();
                    assert!(buf == expected);
                    let kept = model[from..from + n].iter().flatten().count();
                    assert_eq!(packed.kept_within(from as u64, n as u64), kept as u64);
                    let next = (from..model.len()).find(|i| model[*i].is_some()).unwrap_or(model.len());
                    assert_eq!(packed.next_kept(from as u64), next as u64);
                }
            }
        }
    }

    #[test]
    fn no_bytes_make_reading_a_directory_panic() {
        let mut out = Vec::new();
        let mut runs = Runs::default();
        runs.push(4096, 100);
        runs.push(5000, 1);
        put_varint(&mut out, 1);
        Part { number: 3, end: 9000, after: Tid(8), base: 4096, runs }.put(&mut out);
        assert!(parts(&out, 1 << 20).is_some());
        let mut rng = fastrand::Rng::with_seed(5);
        for _ in 0..50_000 {
            let mut bytes = out.clone();
            let at = rng.usize(..bytes.len());
            bytes[at] = rng.u8(..);
            bytes.truncate(rng.usize(..=bytes.len()));
            parts(&bytes, 1 << 20);
        }
    }
}
