//! Compressed bytes, read from anywhere: the state of the decompressor is kept every so many bytes, and reading begins at the
//! last one before. There are at most [`POINTS_MAX`] of them, of 43 KiB each; when there are more, every other one goes.
//!
//! A checksum is compared when a reader gets to the end; a wrong one is an error then, and every time.

use std::fs::File;
use std::io::{self, Error, ErrorKind, Read};
use std::os::unix::fs::FileExt;

use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZError, MZFlush, MZStatus};
use parking_lot::Mutex;

const POINTS_MAX: usize = 1024;
const SPACING: u64 = 1 << 20;
/// Readers that go on where they were.
const READERS_MAX: usize = 4;
const CHUNK: usize = 64 << 10;

/// See the module.
pub(super) struct Inflated {
    file: File,
    /// Of the compressed bytes in it.
    end: u64,
    format: Format,
    state: Mutex<State>,
}

#[derive(Clone, Copy)]
enum Format {
    /// Members one behind the other, each with its checksum.
    Gzip,
    /// With this checksum.
    Raw(u32),
}

struct State {
    points: Vec<Reader>,
    readers: Vec<Reader>,
    spacing: u64,
}

#[derive(Clone)]
struct Reader {
    /// Of the bytes that come next, unpacked.
    at: u64,
    /// Of the compressed bytes that come next, in the file.
    input: u64,
    inflate: Box<InflateState>,
    sum: crc32fast::Hasher,
    /// At the beginning of a member.
    fresh: bool,
    ended: bool,
}

fn damaged(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

impl Inflated {
    /// A whole gzip file.
    pub fn gzip(file: File) -> io::Result<Inflated> {
        let end = crate::len_of(&file)?;
        Ok(Inflated::new(file, 0, end, Format::Gzip))
    }

    /// A run of deflated bytes.
    pub fn raw(file: File, start: u64, len: u64, sum: u32) -> Inflated {
        Inflated::new(file, start, start.saturating_add(len), Format::Raw(sum))
    }

    fn new(file: File, start: u64, end: u64, format: Format) -> Inflated {
        let inflate = InflateState::new_boxed(DataFormat::Raw);
        let fresh = matches!(format, Format::Gzip);
        let first = Reader { at: 0, input: start, inflate, sum: crc32fast::Hasher::new(), fresh, ended: false };
        let state = State { points: vec![first], readers: Vec::new(), spacing: SPACING };
        Inflated { file, end, format, state: Mutex::new(state) }
    }

    /// From the first byte on.
    pub fn reader(&self) -> impl Read {
        Sequential { of: self, at: 0 }
    }

    /// As many as the buffer takes, or an error.
    pub fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        match self.read_at(buffer, at)? {
            n if n == buffer.len() => Ok(()),
            _ => Err(damaged("the archive ends too early")),
        }
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let mut state = self.state.lock();
        let mut reader = state.nearest(at);
        let mut waste = Vec::new();
        while reader.at < at && !reader.ended {
            waste.resize(CHUNK.min((at - reader.at) as usize), 0);
            self.fill(&mut reader, &mut waste, &mut state)?;
        }
        let mut done = 0;
        while done < buffer.len() && !reader.ended {
            let most = buffer.len().min(done + CHUNK);
            done += self.fill(&mut reader, &mut buffer[done..most], &mut state)?;
        }
        state.readers.push(reader);
        Ok(done)
    }

    fn fill(&self, reader: &mut Reader, out: &mut [u8], state: &mut State) -> io::Result<usize> {
        if state.points.last().is_some_and(|p| p.at + state.spacing <= reader.at) {
            state.keep(reader.clone());
        }
        self.advance(reader, out)
    }

    /// Unpacks into `out` until it is full, or all is unpacked.
    fn advance(&self, r: &mut Reader, out: &mut [u8]) -> io::Result<usize> {
        let (mut done, mut input) = (0, vec![0; CHUNK]);
        while done < out.len() && !r.ended {
            if r.fresh && !self.begin(r)? {
                break;
            }
            let most = CHUNK.min(self.end.saturating_sub(r.input) as usize);
            let n = self.file.read_at(&mut input[..most], r.input)?;
            let step = inflate(&mut r.inflate, &input[..n], &mut out[done..], MZFlush::None);
            r.sum.update(&out[done..done + step.bytes_written]);
            (r.input, done) = (r.input + step.bytes_consumed as u64, done + step.bytes_written);
            r.at += step.bytes_written as u64;
            match step.status {
                Ok(MZStatus::StreamEnd) => self.finish(r)?,
                Ok(_) | Err(MZError::Buf) if step.bytes_consumed + step.bytes_written > 0 => {}
                Ok(_) | Err(MZError::Buf) => return Err(damaged("the archive ends too early")),
                Err(_) => return Err(damaged("what is compressed is damaged")),
            }
        }
        Ok(done)
    }

    /// Reads the head of a gzip member; false: there is none, and all is unpacked.
    fn begin(&self, r: &mut Reader) -> io::Result<bool> {
        let mut head = vec![0; CHUNK.min(self.end.saturating_sub(r.input) as usize)];
        let n = self.file.read_at(&mut head, r.input)?;
        let head = &head[..n];
        r.fresh = false;
        if r.at > 0 && !head.starts_with(&[0x1f, 0x8b]) {
            // (Archives are padded with zeroes.)
            r.ended = true;
            return Ok(false);
        }
        r.input += gzip_head(head).ok_or_else(|| damaged("the head of the gzip file is damaged"))? as u64;
        r.inflate.reset(DataFormat::Raw);
        r.sum = crc32fast::Hasher::new();
        Ok(true)
    }

    fn finish(&self, r: &mut Reader) -> io::Result<()> {
        let found = std::mem::take(&mut r.sum).finalize();
        let expected = match self.format {
            Format::Raw(sum) => {
                r.ended = true;
                sum
            }
            Format::Gzip => {
                let mut tail = [0; 8];
                self.file.read_exact_at(&mut tail, r.input)?;
                (r.input, r.fresh) = (r.input + 8, true);
                u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]])
            }
        };
        if found == expected { Ok(()) } else { Err(damaged("a checksum in the archive is wrong")) }
    }
}

impl State {
    /// One that is before `at`, or there.
    fn nearest(&mut self, at: u64) -> Reader {
        let point = self.points.partition_point(|p| p.at <= at) - 1;
        let mut best: Option<usize> = None;
        for (n, r) in self.readers.iter().enumerate() {
            if r.at <= at && best.is_none_or(|b| self.readers[b].at < r.at) {
                best = Some(n);
            }
        }
        if let Some(n) = best.filter(|n| self.readers[*n].at >= self.points[point].at) {
            return self.readers.remove(n);
        }
        if self.readers.len() >= READERS_MAX {
            self.readers.remove(0);
        }
        self.points[point].clone()
    }

    fn keep(&mut self, reader: Reader) {
        self.points.push(reader);
        if self.points.len() > POINTS_MAX {
            let mut n = 0;
            self.points.retain(|_| {
                n += 1;
                n % 2 == 1
            });
            self.spacing *= 2;
        }
    }
}

/// Bytes of a gzip member's head: RFC 1952.
fn gzip_head(h: &[u8]) -> Option<usize> {
    let flags = *h.get(3).filter(|_| h.starts_with(&[0x1f, 0x8b, 8]))?;
    let mut at = 10;
    if flags & 4 != 0 {
        at += 2 + usize::from(u16::from_le_bytes([*h.get(10)?, *h.get(11)?]));
    }
    // A name, a comment.
    for bit in [8, 16] {
        if flags & bit != 0 {
            at += h.get(at..)?.iter().position(|b| *b == 0)? + 1;
        }
    }
    Some(at + if flags & 2 != 0 { 2 } else { 0 }).filter(|at| *at <= h.len())
}

struct Sequential<'a> {
    of: &'a Inflated,
    at: u64,
}

impl Read for Sequential<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.of.read_at(buffer, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gzip_of(data: &[u8]) -> Vec<u8> {
        let mut out = vec![0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 3];
        out.extend_from_slice(b"name\0");
        out.extend(miniz_oxide::deflate::compress_to_vec(data, 6));
        out.extend(crc32fast::hash(data).to_le_bytes());
        out.extend((data.len() as u32).to_le_bytes());
        out
    }

    fn file_of(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, bytes).unwrap();
        file
    }

    #[test]
    fn any_part_reads_as_the_whole_does_across_members_and_points() {
        let mut random = fastrand::Rng::with_seed(7);
        let data: Vec<u8> = (0..5 << 20).map(|n| if n % 3 == 0 { random.u8(..) } else { (n >> 8) as u8 }).collect();
        let (one, two) = data.split_at(3 << 20);
        let packed = [gzip_of(one), gzip_of(two), vec![0; 512]].concat();
        let inflated = Inflated::gzip(file_of(&packed)).unwrap();
        for _ in 0..60 {
            let at = random.usize(..data.len());
            let len = random.usize(..300_000).min(data.len() - at);
            let mut got = vec![0; len];
            inflated.read_exact_at(&mut got, at as u64).unwrap();
            assert!(got == data[at..at + len], "{at} {len}");
        }
        assert!(inflated.state.lock().points.len() >= 4, "points were kept on the way");
        assert!(inflated.read_exact_at(&mut [0; 2], data.len() as u64 - 1).is_err());
        let mut all = Vec::new();
        inflated.reader().read_to_end(&mut all).unwrap();
        assert!(all == data);
    }

    #[test]
    fn damage_is_an_error_every_time_and_never_a_panic() {
        let data: Vec<u8> = (0..200_000u32).flat_map(|n| (n / 3).to_le_bytes()).collect();
        let packed = gzip_of(&data);
        let mut random = fastrand::Rng::with_seed(8);
        for _ in 0..200 {
            let mut bad = packed.clone();
            match random.bool() {
                true => bad.truncate(random.usize(..bad.len())),
                false => bad[random.usize(15..packed.len() - 4)] ^= 1 << random.u8(..8),
            }
            let inflated = Inflated::gzip(file_of(&bad)).unwrap();
            for _ in 0..2 {
                let mut all = Vec::new();
                assert!(inflated.reader().read_to_end(&mut all).is_err());
            }
        }
    }
}
