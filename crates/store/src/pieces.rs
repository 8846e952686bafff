//! Reading file bytes: mapped pieces from the places where they are stored. docs/format.md §Extents.
//!
//! What lies near one another is read in one go, in the order of the log whatever that of the file is: a file that was
//! overwritten here and there lies in a few runs, each in order, between which its pieces alternate.

use std::cell::RefCell;
use std::sync::Arc;

use crate::extent::{self, BLOCK, Codec, Piece, Place};
use crate::heal::mend_stored;
use crate::log::Tail;
use crate::store::Store;
use crate::{Error, Result};

/// Stored extents this near to one another are read in one go.
const GAP: u64 = 16 << 10;
const MOST: u64 = 2 << 20;
/// A read from this many places is worth asking for all of them first.
const SCATTERED: usize = 4;
/// So much that nobody wants is then asked for rather than twice as many requests.
const SKIP: u64 = 64 << 10;

thread_local! {
    /// Stored bytes on their way to a reader; grows to the largest read and stays.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A data piece that is to be read.
struct Part<'p> {
    piece: &'p Piece,
    place: Place,
    /// Stored bytes that are needed: the first one in the region, and how many.
    at: u64,
    n: usize,
    /// Where they go in the reader's buffer.
    to: usize,
}

impl Part<'_> {
    fn end(&self) -> u64 {
        self.at + self.n as u64
    }
}

/// An LZ4 extent that was unpacked for one of its pieces, and serves the next ones: its region, first byte, and length.
#[derive(Default)]
struct Unpacked {
    of: Option<(u64, u64, u32)>,
    bytes: Vec<u8>,
}

impl Store {
    /// Reads mapped pieces into `buf` (as long as they together); holes read as zeroes. Every byte is verified. Needs no
    /// lock of the caller's: pieces stay readable whatever is written later.
    pub fn read(&self, pieces: &[Piece], buf: &mut [u8]) -> Result<()> {
        if let [piece] = pieces {
            assert_eq!(buf.len() as u64, piece.len, "the buffer is as long as the piece");
            return self.read_piece(None, piece, buf);
        }
        let mut parts = Vec::with_capacity(pieces.len());
        let mut to = 0;
        for piece in pieces {
            let len = piece.len as usize;
            match piece.place {
                None => buf[to..to + len].fill(0),
                Some(place) => {
                    let (at, n) = extent::needed(&place, len);
                    parts.push(Part { piece, place, at, n, to });
                }
            }
            to += len;
        }
        assert_eq!(to, buf.len(), "the buffer is as long as the pieces");
        // (Linear where they are in order.)
        parts.sort_by_key(|p| (p.place.region, p.at));
        let scattered = parts.len() >= SCATTERED && parts.chunk_by(|a, b| near(a, b, GAP)).nth(SCATTERED - 1).is_some();
        if scattered {
            self.fetch_scattered(&parts);
        }
        let mut rest = &parts[..];
        while !rest.is_empty() {
            let (group, after) = rest.split_at(group(rest));
            self.read_group(group, !scattered, buf)?;
            rest = after;
        }
        Ok(())
    }

    /// Lets the volume fetch pieces from many places at a time, where reading them would wait for one after the other.
    fn fetch_scattered(&self, parts: &[Part<'_>]) {
        let mut wanted = Vec::new();
        let tail = self.log.tail();
        for run in parts.chunk_by(|a, b| near(a, b, SKIP)) {
            let (region, at) = (run[0].place.region, run[0].at);
            let n = run.iter().map(Part::end).max().expect("runs are not empty") - at;
            if !tail.unwritten(region, at, n) {
                wanted.push((region, at, n));
            }
        }
        drop(tail);
        let regions = self.regions.read();
        for (region, at, n) in wanted {
            if let Some(r) = regions.get(&region) {
                r.will_need(at, n);
            }
        }
    }

    /// Reads parts that lie near one another with one request. `follow`: as [`Store::read_stored`].
    fn read_group(&self, parts: &[Part<'_>], follow: bool, buf: &mut [u8]) -> Result<()> {
        let (region, from) = (parts[0].place.region, parts[0].at);
        if let [p] = parts {
            let out = &mut buf[p.to..p.to + p.piece.len as usize];
            return SCRATCH.with_borrow_mut(|scratch| self.read_piece_into(None, p.piece, follow, out, scratch));
        }
        let end = parts.iter().map(Part::end).max().expect("parts");
        let mut unpacked = Unpacked::default();
        SCRATCH.with_borrow_mut(|scratch| {
            let scratch = room(scratch, (end - from) as usize);
            let whole = self.read_stored(None, region, from, follow, scratch);
            for p in parts {
                let out = &mut buf[p.to..p.to + p.piece.len as usize];
                let stored = (p.at - from) as usize..(p.end() - from) as usize;
                // Some of the group may still be in memory: then each piece is fetched by itself.
                match &whole {
                    Ok(()) => {
                        let loaded = self.load_part(&p.place, &mut scratch[stored], out, &mut unpacked);
                        loaded.map_err(|e| damage(p.piece, e))?;
                    }
                    Err(_) => self.read_piece_into(None, p.piece, follow, out, &mut Vec::new())?,
                }
            }
            Ok(())
        })
    }

    /// As [`Store::load`], unpacking an extent of which several parts are wanted only once.
    fn load_part(&self, place: &Place, stored: &mut [u8], out: &mut [u8], unpacked: &mut Unpacked) -> Result<()> {
        if place.codec == Codec::Raw || out.len() == place.extent_len as usize {
            return self.load(place, stored, out);
        }
        let of = Some((place.region, place.offset, place.extent_len));
        if unpacked.of != of {
            unpacked.of = None;
            unpacked.bytes.resize(place.extent_len as usize, 0);
            self.load(&Place { skip: 0, ..*place }, stored, &mut unpacked.bytes)?;
            unpacked.of = of;
        }
        // (That pieces lie within their extents was checked when the map was decoded.)
        out.copy_from_slice(&unpacked.bytes[place.skip as usize..][..out.len()]);
        Ok(())
    }

    /// Appends the bytes of a piece. On failure `out` is as it was.
    pub fn read_onto(&self, piece: &Piece, out: &mut Vec<u8>) -> Result<()> {
        let (start, len) = (out.len(), piece.len as usize);
        if let Some(place) = piece.place.filter(|p| p.codec == Codec::Raw) {
            let appended = SCRATCH.with_borrow_mut(|scratch| {
                let (at, n) = extent::needed(&place, len);
                let stored = room(scratch, n);
                self.read_stored(None, place.region, at, true, stored)?;
                extent::append_raw(&place, stored, len, out)
            });
            if !matches!(appended, Err(Error::Corrupt { .. })) {
                return appended;
            }
            out.truncate(start);
        }
        out.resize(start + len, 0);
        self.read_piece(None, piece, &mut out[start..]).inspect_err(|_| out.truncate(start))
    }

    /// Data pieces by what of them can be read and what is damaged (true), each as long as can be. What can't be read now is an error.
    pub fn sound_and_damaged(&self, pieces: &[Piece]) -> Result<Vec<(Piece, bool)>> {
        let mut found: Vec<(Piece, bool)> = Vec::new();
        let mut bytes = Vec::new();
        for piece in pieces {
            let first = found.len();
            for part in piece.parts() {
                bytes.resize(part.len as usize, 0);
                let is_damaged = match self.read_piece(None, &part, &mut bytes) {
                    Ok(()) => false,
                    Err(Error::Data { .. }) => true,
                    Err(e) => return Err(e),
                };
                match found[first..].last_mut() {
                    Some((last, was)) if *was == is_damaged => last.len += part.len,
                    _ => found.push((part, is_damaged)),
                }
            }
        }
        Ok(found)
    }

    /// Reads one data piece. `tail`: the log's tail, where the caller holds it.
    pub(crate) fn read_piece(&self, tail: Option<&Tail>, piece: &Piece, out: &mut [u8]) -> Result<()> {
        SCRATCH.with_borrow_mut(|scratch| self.read_piece_into(tail, piece, true, out, scratch))
    }

    /// Reads one data piece that is in the bucket only. What was fetched, damaged or not, stays for those beside it.
    pub(crate) fn read_cold(&self, piece: &Piece, out: &mut [u8]) -> Result<()> {
        let Some(place) = piece.place else { return Ok(()) };
        let (at, n) = extent::needed(&place, out.len());
        let mut stored = vec![0; n];
        self.read_stored(None, place.region, at, false, &mut stored)?;
        extent::load(&place, &stored, out)
    }

    fn read_piece_into(
        &self,
        tail: Option<&Tail>,
        piece: &Piece,
        follow: bool,
        out: &mut [u8],
        scratch: &mut Vec<u8>,
    ) -> Result<()> {
        let Some(place) = piece.place else {
            out.fill(0);
            return Ok(());
        };
        let (at, n) = extent::needed(&place, out.len());
        let stored = room(scratch, n);
        self.read_stored(tail, place.region, at, follow, stored)?;
        self.load(&place, stored, out).map_err(|e| damage(piece, e))
    }

    /// Verifies and unpacks stored bytes; what is damaged comes from the other copy, if there is one.
    fn load(&self, place: &Place, stored: &mut [u8], out: &mut [u8]) -> Result<()> {
        let loaded = extent::load(place, stored, out);
        if !matches!(loaded, Err(Error::Corrupt { .. })) {
            return loaded;
        }
        let Some(region) = self.regions.read().get(&place.region).cloned() else { return loaded };
        let (at, n) = extent::needed(place, out.len());
        let len = match place.codec {
            Codec::Raw => n - 4 * n.div_ceil(BLOCK + 4),
            Codec::Lz4 => place.extent_len as usize,
        };
        // (It may be as it was by the next time.)
        region.drop_cached(at, n as u64);
        mend_stored(&*region, at, stored, place.codec, len)?;
        match extent::load(place, stored, out) {
            Err(e @ Error::Corrupt { .. }) => match self.heal_from_bucket(&*region, at, stored, (place.codec, len))? {
                true => extent::load(place, stored, out),
                false => Err(e),
            },
            loaded => loaded,
        }
    }

    /// Bytes of a segment, from memory if they are not written yet. Fails where only some of them are. `follow`: the log may be
    /// read ahead. (Not where the volume was asked for all that is needed: pieces that happen to lie in order are no stream.)
    pub(crate) fn read_stored(
        &self,
        tail: Option<&Tail>,
        region: u64,
        at: u64,
        follow: bool,
        out: &mut [u8],
    ) -> Result<()> {
        let in_memory = match tail {
            Some(t) => t.read(region, at, out),
            None => {
                let t = self.log.tail();
                let found = t.read(region, at, out);
                let unwritten = t.unwritten(region, at, out.len() as u64);
                drop(t);
                if found.is_none() && unwritten {
                    return Err(Error::Io {
                        place: format!("region {region:x} at byte {at}"),
                        action: "read",
                        source: Arc::new(std::io::ErrorKind::WouldBlock.into()),
                    });
                }
                found
            }
        };
        if in_memory.is_some() {
            return Ok(());
        }
        let open = self.regions.read().get(&region).cloned();
        match open {
            Some(r) => {
                self.note_read(region, out.len() as u64);
                if follow {
                    self.readahead.note(&*r, at, out.len() as u64);
                }
                r.read_at(out, at)
            }
            None => Err(Error::Corrupt {
                place: format!("region {region:x}"),
                what: "reference to a segment",
                expected: "one of this store".into(),
                found: "none of that number".into(),
            }),
        }
    }
}

/// The first `n` bytes of what grows to the largest need and stays.
fn room(scratch: &mut Vec<u8>, n: usize) -> &mut [u8] {
    if scratch.len() < n {
        scratch.resize(n, 0);
    }
    &mut scratch[..n]
}

pub(crate) fn damage(p: &Piece, e: Error) -> Error {
    let tid = p.tid().unwrap_or_default();
    Error::Data { object: p.object, offset: p.offset, tid, source: Box::new(e) }
}

/// Whether the second part lies at most so far behind the first one.
fn near(a: &Part<'_>, b: &Part<'_>, gap: u64) -> bool {
    a.place.region == b.place.region && b.at <= a.end() + gap
}

/// How many of the first parts one request may fetch.
fn group(parts: &[Part<'_>]) -> usize {
    let start = parts[0].at;
    let more = parts.windows(2).take_while(|p| near(&p[0], &p[1], GAP) && p[1].end() - start <= MOST);
    1 + more.count()
}
