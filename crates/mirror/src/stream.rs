//! What changed as a stream, for a file, a pipe, or the way across an air gap. docs/format.md §Export.
//!
//! It is what a pull would have brought, in one piece. A stream that was read in part can be read again from its beginning, and a newer
//! one takes its place: it tells anew what that had told.

use std::io::{ErrorKind, Read, Write};

use darner_fs::{FilesetId, Fs, FsError, ObjectId, Opening, Part, Tid, Wanted};
use darner_syslink::Caller;

use crate::parts::Parts;
use crate::protocol::{OPENINGS_SINCE, OTHER_PAST, decode_openings, encode_openings};
use crate::pull::{AHEAD, Failure, Puller, ROOM_WANTED, Which, question};

const MAGIC: &[u8; 8] = b"DARNSTR2";
/// Tells nothing of openings.
const MAGIC_1: &[u8; 8] = b"DARNSTR1";
/// Bytes of a piece at most.
const PIECE_MAX: u32 = 16 << 20;
/// Of what is read, no more bytes than about so many have to be read again after a kill.
const SYNC_EVERY: usize = 64 << 20;

/// What a stream is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The source's store.
    pub uuid: [u8; 16],
    /// The key of its directory hash.
    pub hash_key: [u8; 16],
    /// The fileset.
    pub fileset: FilesetId,
    /// Its name.
    pub name: String,
    /// It has what changed since this moment.
    pub since: Tid,
    /// And up to this one.
    pub at: Tid,
    /// The number that the source's next object gets.
    pub objects: ObjectId,
    /// By which openings of the source its moments from `since` to `at` came to be, ascending; `None`: it does not tell.
    pub openings: Option<Vec<Opening>>,
}

fn broken(e: std::io::Error) -> Failure {
    Failure::Other(match e.kind() {
        ErrorKind::UnexpectedEof => {
            "the stream ended early: it can be read again, from its beginning, or a newer one".into()
        }
        _ => format!("the stream: {e}"),
    })
}

fn put(out: &mut dyn Write, piece: &[u8]) -> Result<(), Failure> {
    let crc = crc32c::crc32c(piece);
    let parts = [&(piece.len() as u32).to_le_bytes()[..], &crc.to_le_bytes(), piece];
    parts.into_iter().try_for_each(|bytes| out.write_all(bytes)).map_err(broken)
}

fn take(from: &mut dyn Read) -> Result<Vec<u8>, Failure> {
    let mut head = [0; 8];
    from.read_exact(&mut head).map_err(broken)?;
    let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let (len, crc) = (number(0), number(4));
    if len > PIECE_MAX {
        return Err(Failure::Answer("a piece of the stream is larger than any".into()));
    }
    let mut piece = vec![0; len as usize];
    from.read_exact(&mut piece).map_err(broken)?;
    match crc32c::crc32c(&piece) == crc {
        true => Ok(piece),
        false => Err(Failure::Answer("a piece of the stream is damaged".into())),
    }
}

impl Header {
    fn encode(&self) -> Vec<u8> {
        let mut out = [self.uuid, self.hash_key].concat();
        for n in [u64::from(self.fileset.0), self.since.0, self.at.0, self.objects.0] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        out.extend_from_slice(&(self.name.len() as u32).to_le_bytes());
        out.extend_from_slice(self.name.as_bytes());
        out.extend(encode_openings(self.openings.as_deref().unwrap_or_default()));
        out
    }

    /// Reads the beginning of a stream.
    pub fn read(from: &mut dyn Read) -> Result<Header, Failure> {
        Header::read_next(from)?.ok_or_else(|| broken(ErrorKind::UnexpectedEof.into()))
    }

    /// The same of one that may follow another; `None`: none does.
    pub fn read_next(from: &mut dyn Read) -> Result<Option<Header>, Failure> {
        let mut magic = Vec::new();
        from.take(8).read_to_end(&mut magic).map_err(broken)?;
        if magic.is_empty() {
            return Ok(None);
        }
        if magic.len() < MAGIC.len() {
            return Err(broken(ErrorKind::UnexpectedEof.into()));
        }
        if magic != MAGIC && magic != MAGIC_1 {
            return Err(Failure::Answer("this is no stream of darner mirror export (of this version)".into()));
        }
        let piece = take(from)?;
        let bad = || Failure::Answer("the stream's header is in no known form".into());
        let (fixed, rest) = piece.split_at_checked(64).ok_or_else(bad)?;
        let (name, openings) = match magic == MAGIC {
            true => {
                let (len, rest) = rest.split_first_chunk::<4>().ok_or_else(bad)?;
                let (name, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize).ok_or_else(bad)?;
                (name, Some(decode_openings(rest).ok_or_else(bad)?))
            }
            false => (rest, None),
        };
        let number = |i: usize| u64::from_le_bytes(fixed[32 + 8 * i..40 + 8 * i].try_into().expect("8 bytes"));
        Ok(Some(Header {
            uuid: fixed[..16].try_into().expect("16 bytes"),
            hash_key: fixed[16..32].try_into().expect("16 bytes"),
            fileset: FilesetId(u32::try_from(number(0)).map_err(|_| bad())?),
            name: String::from_utf8(name.to_vec()).map_err(|_| bad())?,
            since: Tid(number(1)),
            at: Tid(number(2)),
            objects: ObjectId(number(3)),
            openings,
        }))
    }
}

/// Writes what changed in a fileset since a moment (zero: all there is).
pub fn export(
    source: &dyn Caller,
    which: Which<'_>,
    since: Tid,
    session: u64,
    out: &mut dyn Write,
) -> Result<Header, Failure> {
    let mut ask = question(which, None);
    ask.uint(OPENINGS_SINCE, since.0);
    let looked = Puller::ask(source, ask)?;
    if since > looked.newest {
        return Err(Failure::Other(format!("{since} has not been yet: the newest moment is {}", looked.newest)));
    }
    let header = Header {
        uuid: looked.uuid,
        hash_key: looked.hash_key,
        fileset: looked.fileset,
        name: looked.name,
        since,
        at: looked.newest,
        objects: looked.objects,
        openings: Some(looked.openings.ok_or_else(|| {
            Failure::Other(
                "the daemon of the store is of an older version, which can't make this stream: darner upgrade".into(),
            )
        })?),
    };
    out.write_all(MAGIC).map_err(broken)?;
    put(out, &header.encode())?;
    let all = Wanted { from: Vec::new(), to: Vec::new(), since, at: header.at, room: ROOM_WANTED as usize };
    let mut parts = Parts::new(source, session, header.fileset, all, AHEAD);
    while let Some((_, part)) = parts.next()? {
        let next = part.next.unwrap_or_default();
        put(out, &[&(next.len() as u32).to_le_bytes()[..], &next, &part.items].concat())?;
    }
    out.flush().map_err(broken)?;
    Ok(header)
}

/// Does what a stream says, of which the header was read, and reads it to its end; returns whether there was anything to do.
pub fn import(fs: &Fs, header: &Header, from: &mut dyn Read) -> Result<bool, Failure> {
    let f = fs.following().ok_or_else(|| Failure::Other("this is no mirror".into()))?;
    if (f.source, f.fileset) != (header.uuid, header.fileset) {
        return Err(Failure::Other(format!("it is a mirror of another fileset than the stream's, {:?}", header.name)));
    }
    let (newest, opening) = f.newest();
    if let Some(openings) = &header.openings
        && (header.since..=header.at).contains(&newest)
        && !Opening::is_of(newest, opening, openings)
    {
        return Err(Failure::Other(OTHER_PAST.into()));
    }
    let mut pieces = Pieces { from, is_over: false };
    if f.is_whole() && f.at >= header.at {
        pieces.pass_over()?;
        return Ok(false);
    }
    if header.since > f.at {
        let why = format!("it has moment {}, the stream begins at {}: export --since {}", f.at, header.since, f.at);
        return Err(Failure::Other(why));
    }
    if header.at < f.target {
        let why = format!("it has some of moment {} already, the stream leads to {}: export anew", f.target, header.at);
        return Err(Failure::Other(why));
    }
    let mut f = fs.begin_pull(header.at)?;
    let mut unsynced = 0;
    while let Some(wanted) = f.wanted() {
        // What other pulls have begun is told anew.
        let wanted = Wanted { to: Vec::new(), since: header.since, ..wanted };
        let part = pieces.next()?;
        if part.next.as_ref().is_some_and(|next| *next <= wanted.from) {
            // It was done before.
            continue;
        }
        fs.apply(&wanted, &part)?;
        unsynced += part.items.len();
        if unsynced > SYNC_EVERY {
            unsynced = 0;
            fs.store().sync().map_err(FsError::from)?;
        }
        f = fs.following().ok_or_else(bad_piece)?;
    }
    pieces.pass_over()?;
    fs.store().raise_objects(ObjectId(header.objects.0.min(1 << 44)));
    fs.finish_pull()?;
    Ok(true)
}

fn bad_piece() -> Failure {
    Failure::Answer("a piece of the stream is in no known form".into())
}

/// The parts of a stream.
struct Pieces<'r> {
    from: &'r mut dyn Read,
    is_over: bool,
}

impl Pieces<'_> {
    fn next(&mut self) -> Result<Part, Failure> {
        let piece = take(self.from)?;
        let (len, rest) = piece.split_first_chunk::<4>().ok_or_else(bad_piece)?;
        let (next, items) = rest.split_at_checked(u32::from_le_bytes(*len) as usize).ok_or_else(bad_piece)?;
        self.is_over = next.is_empty();
        Ok(Part { items: items.to_vec(), next: Some(next.to_vec()).filter(|next| !next.is_empty()) })
    }

    /// Reads what is left.
    fn pass_over(&mut self) -> Result<(), Failure> {
        while !self.is_over {
            self.next()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_and_those_of_the_version_before_tell_of_no_openings() {
        let header = Header {
            uuid: [1; 16],
            hash_key: [2; 16],
            fileset: FilesetId(3),
            name: "näme".into(),
            since: Tid(4),
            at: Tid(5),
            objects: ObjectId(6),
            openings: Some(vec![Opening { id: 7, after: Tid(8) }, Opening { id: u64::MAX, after: Tid(9) }]),
        };
        let read = |magic: &[u8], piece: &[u8]| {
            let mut bytes = magic.to_vec();
            put(&mut bytes, piece).unwrap();
            Header::read(&mut &bytes[..])
        };
        assert_eq!(read(MAGIC, &header.encode()).unwrap(), header);
        let before = [&header.encode()[..64], "näme".as_bytes()].concat();
        assert_eq!(read(MAGIC_1, &before).unwrap(), Header { openings: None, ..header });
        read(MAGIC, &before).unwrap_err();
    }
}
