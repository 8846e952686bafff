//! CD images: ISO 9660 (ECMA-119) with Rock Ridge (SUSP 1.12, RRIP 1.12) or Joliet, read-only.
//!
//! A node is a file's first directory record, and its number that record's offset in the image: nothing is remembered.
//! Rock Ridge counts if it is there, else Joliet, else plain names, in lower case and without versions.
//! Tried and dropped: the crates there are read only plain names and directories that fit in memory, or are young.

mod record;
mod susp;

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use darner_vfs::{Attr, Errno, Info, Listing, ROOT, Result, Space, Vfs};
use parking_lot::Mutex;

pub(crate) use record::date;
use record::{Record, SECTOR};
use susp::Extra;

/// A directory larger than this is damage, bytes.
const DIRECTORY_MAX: u64 = 64 << 20;
/// Pieces of a file, of up to 4 GiB each.
const PIECES_MAX: usize = 1 << 12;
/// Directories that are kept as they were last read.
const KEPT_MAX: usize = 64;
const DESCRIPTORS: u64 = 16;
const DESCRIPTORS_MAX: u64 = 64;

const EIO: Errno = Errno(libc::EIO);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Names {
    Plain,
    Joliet,
    /// What to skip at the beginning of each record's system use area.
    RockRidge(usize),
}

/// An image.
pub struct Iso9660 {
    image: File,
    names: Names,
    root: Record,
    title: String,
    blocks: u64,
    kept: Mutex<HashMap<u64, Arc<Dir>>>,
}

struct Dir {
    entries: Vec<(Vec<u8>, Attr)>,
    by_name: HashMap<Vec<u8>, usize>,
}

/// A record, what Rock Ridge says of it, and where it is.
struct Node {
    number: u64,
    record: Record,
    extra: Extra,
    /// Where its bytes are: offset in the image, length.
    pieces: Vec<(u64, u64)>,
}

impl Iso9660 {
    /// Looks for a filesystem in it.
    pub fn open(image: File) -> std::result::Result<Iso9660, String> {
        let mut found: Option<(Names, Record, String, u64)> = None;
        for n in DESCRIPTORS..DESCRIPTORS + DESCRIPTORS_MAX {
            let mut d = [0; SECTOR as usize];
            let whole = image.read_exact_at(&mut d, n * SECTOR).is_ok() && d[1..6] == *b"CD001";
            if !whole || d[0] == 255 {
                break;
            }
            let joliet = d[0] == 2 && d[88] == b'%' && d[89] == b'/' && [b'@', b'C', b'E'].contains(&d[90]);
            let Some(root) = Record::parse(&d[156..190]).filter(|_| d[0] == 1 || joliet) else { continue };
            let names = if joliet { Names::Joliet } else { Names::Plain };
            let title = String::from_utf8_lossy(&d[40..72]).trim_end_matches([' ', '\0']).to_string();
            let blocks = u32::from_le_bytes([d[80], d[81], d[82], d[83]]).into();
            if d[0] == 1 && found.is_none() {
                if let Some(skip) = rock_ridge(&image, &root) {
                    found = Some((Names::RockRidge(skip), root, title, blocks));
                    break;
                }
                found = Some((names, root, title, blocks));
            } else if joliet {
                found = Some((names, root, found.map_or(title, |f| f.2), blocks));
            }
        }
        let (names, root, title, blocks) = found.ok_or("this is no CD image (ISO 9660)")?;
        Ok(Iso9660 { image, names, root, title, blocks, kept: Mutex::default() })
    }

    fn bytes(&self, at: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.image.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    /// What Rock Ridge says in a record's system use area, and where that leads.
    fn extra(&self, area: &[u8]) -> Result<Extra> {
        match self.names {
            Names::RockRidge(skip) => Extra::read(area.get(skip..).unwrap_or_default(), |at, len| self.bytes(at, len)),
            _ => Ok(Extra::default()),
        }
    }

    fn node(&self, number: u64) -> Result<Node> {
        if number == ROOT {
            return self.directory_at(ROOT, self.root.clone());
        }
        if number < DESCRIPTORS * SECTOR {
            return Err(Errno(libc::ESTALE));
        }
        // Up to where the next sector begins: no record crosses that.
        let within = SECTOR - number % SECTOR;
        let bytes = self.bytes(number, within as usize)?;
        let record = Record::parse(&bytes).ok_or(Errno(libc::ESTALE))?;
        self.whole(number, record, &bytes)
    }

    /// `rest`: from the record to the end of its sector.
    fn whole(&self, number: u64, record: Record, rest: &[u8]) -> Result<Node> {
        let extra = self.extra(record.system_use(rest))?;
        if let Some(block) = extra.child {
            // A directory that lies elsewhere because it would be too deep.
            let at = u64::from(block) * SECTOR;
            let dot = Record::parse(&self.bytes(at, SECTOR as usize)?).ok_or(EIO)?;
            let name = record.name.clone();
            return self
                .directory_at(number, Record { name, ..dot })
                .map(|n| Node { extra: Extra { name: extra.name, ..n.extra }, ..n });
        }
        let mut pieces = vec![(record.place()?, record.len)];
        let (mut at, mut more) = (number, record.goes_on);
        while more {
            let (next, piece) = self.record_after(at)?.ok_or(EIO)?;
            pieces.push((piece.place()?, piece.len));
            (at, more) = (next, piece.goes_on);
            if pieces.len() > PIECES_MAX {
                return Err(EIO);
            }
        }
        Ok(Node { number, record, extra, pieces })
    }

    /// A directory, of which its own first record tells more than its parent's.
    fn directory_at(&self, number: u64, record: Record) -> Result<Node> {
        let at = record.place()?;
        let bytes = self.bytes(at, SECTOR as usize)?;
        let dot = Record::parse(&bytes).ok_or(EIO)?;
        let extra = self.extra(dot.system_use(&bytes))?;
        let pieces = vec![(at, dot.len)];
        Ok(Node {
            number,
            record: Record { len: dot.len, ..record },
            extra: Extra { child: None, moved: false, ..extra },
            pieces,
        })
    }

    fn record_after(&self, at: u64) -> Result<Option<(u64, Record)>> {
        let sector = at - at % SECTOR;
        let bytes = self.bytes(sector, 2 * SECTOR as usize)?;
        let here = (at - sector) as usize;
        let next = here + usize::from(bytes[here]);
        let next = if next >= SECTOR as usize || bytes[next] == 0 { SECTOR as usize } else { next };
        Ok(Record::parse(&bytes[next..]).map(|r| (sector + next as u64, r)))
    }

    fn dir(&self, number: u64) -> Result<Arc<Dir>> {
        if let Some(dir) = self.kept.lock().get(&number) {
            return Ok(dir.clone());
        }
        let node = self.node(number)?;
        if !node.is_dir() {
            return Err(Errno(libc::ENOTDIR));
        }
        let dir = Arc::new(self.read_dir(&node)?);
        let mut kept = self.kept.lock();
        if kept.len() >= KEPT_MAX {
            kept.clear();
        }
        kept.insert(number, dir.clone());
        Ok(dir)
    }

    fn read_dir(&self, node: &Node) -> Result<Dir> {
        let (start, len) = node.pieces[0];
        if len > DIRECTORY_MAX {
            return Err(EIO);
        }
        let bytes = self.bytes(start, len as usize)?;
        let mut dir = Dir { entries: Vec::new(), by_name: HashMap::new() };
        let (mut at, mut goes_on) = (0, false);
        while at < bytes.len() {
            let sector_end = (at - at % SECTOR as usize + SECTOR as usize).min(bytes.len());
            let rest = &bytes[at..sector_end];
            if rest[0] == 0 {
                at = sector_end;
                continue;
            }
            let record = Record::parse(rest).ok_or(EIO)?;
            let (number, next) = (start + at as u64, at + usize::from(rest[0]));
            at = next;
            // Further pieces of the file before.
            let continues = std::mem::replace(&mut goes_on, record.goes_on);
            if continues || record.is_dot() {
                continue;
            }
            let node = self.whole(number, record, rest)?;
            if node.extra.moved {
                continue;
            }
            let name = self.name(&node);
            let bad = name.is_empty()
                || name.len() > 255
                || name == b"."
                || name == b".."
                || name.iter().any(|b| [0, b'/'].contains(b));
            if bad || dir.by_name.contains_key(&name) {
                continue;
            }
            dir.by_name.insert(name.clone(), dir.entries.len());
            dir.entries.push((name, node.attr()));
        }
        Ok(dir)
    }

    fn name(&self, node: &Node) -> Vec<u8> {
        match self.names {
            Names::RockRidge(_) if !node.extra.name.is_empty() => node.extra.name.clone(),
            Names::Joliet => node.record.joliet_name(),
            _ => node.record.plain_name(),
        }
    }
}

/// Whether the root says that there is Rock Ridge, and what to skip in each record.
fn rock_ridge(image: &File, root: &Record) -> Option<usize> {
    let mut bytes = [0; SECTOR as usize];
    image.read_exact_at(&mut bytes, root.place().ok()?).ok()?;
    let dot = Record::parse(&bytes)?;
    let area = dot.system_use(&bytes);
    let skip = susp::begins(area)?;
    let extra = Extra::read(area, |at, len| {
        let mut bytes = vec![0; len];
        image.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    });
    extra.is_ok_and(|e| e.mode.is_some()).then_some(skip)
}

impl Node {
    fn is_dir(&self) -> bool {
        self.record.is_dir
    }

    fn attr(&self) -> Attr {
        let (e, kind) = (&self.extra, if self.is_dir() { libc::S_IFDIR | 0o555 } else { libc::S_IFREG | 0o444 });
        let mode = e.mode.filter(|m| (m & libc::S_IFMT == libc::S_IFDIR) == self.is_dir()).unwrap_or(kind);
        let size = match mode & libc::S_IFMT {
            libc::S_IFLNK => e.target.len() as u64,
            libc::S_IFREG | libc::S_IFDIR => self.pieces.iter().map(|p| p.1).sum(),
            _ => 0,
        };
        let mtime = e.mtime.unwrap_or(self.record.time);
        let (atime, ctime) = (e.atime.unwrap_or(mtime), e.ctime.unwrap_or(mtime));
        Attr {
            node: self.number,
            mode,
            size,
            nlink: e.nlink,
            uid: e.uid,
            gid: e.gid,
            rdev: e.rdev,
            atime,
            mtime,
            ctime,
        }
    }
}

impl Vfs for Iso9660 {
    fn info(&self) -> Info {
        let kind = match self.names {
            Names::Plain => "plain",
            Names::Joliet => "Joliet",
            Names::RockRidge(_) => "Rock Ridge",
        };
        let name = format!("iso9660 {} ({kind})", self.title);
        Info { name, writable: false, valid: Duration::from_secs(24 * 3600) }
    }

    fn lookup(&self, dir: u64, name: &[u8]) -> Result<Attr> {
        let dir = self.dir(dir)?;
        let n = dir.by_name.get(name).ok_or(Errno(libc::ENOENT))?;
        Ok(dir.entries[*n].1)
    }

    fn getattr(&self, node: u64) -> Result<Attr> {
        Ok(self.node(node)?.attr())
    }

    fn readdir(&self, dir: u64, after: u64, listing: &mut Listing) -> Result<()> {
        let dir = self.dir(dir)?;
        for (n, (name, attr)) in dir.entries.iter().enumerate().skip(after as usize) {
            if !listing.add(name, n as u64 + 1, attr) {
                break;
            }
        }
        Ok(())
    }

    fn read(&self, node: u64, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let node = self.node(node)?;
        if node.attr().mode & libc::S_IFMT != libc::S_IFREG {
            return Err(Errno(if node.is_dir() { libc::EISDIR } else { libc::EINVAL }));
        }
        let (mut skip, mut done) = (offset, 0);
        for (at, len) in &node.pieces {
            if skip >= *len {
                skip -= len;
                continue;
            }
            let n = (buffer.len() - done).min((len - skip) as usize);
            self.image.read_exact_at(&mut buffer[done..done + n], at + skip)?;
            (done, skip) = (done + n, 0);
            if done == buffer.len() {
                break;
            }
        }
        Ok(done)
    }

    fn readlink(&self, node: u64) -> Result<Vec<u8>> {
        let node = self.node(node)?;
        let is_link = node.attr().mode & libc::S_IFMT == libc::S_IFLNK;
        if is_link { Ok(node.extra.target) } else { Err(Errno(libc::EINVAL)) }
    }

    fn statfs(&self) -> Result<Space> {
        Ok(Space { block: SECTOR as u32, blocks: self.blocks, name_max: 255, ..Space::default() })
    }
}
