//! The table of a store's volumes: in each superblock where they are few, else in a region of its own, the roster. docs/format.md
//! §Superblock, §Roster.

use std::sync::Arc;

use super::RegionRef;
use super::set::For;
use crate::codec::{Reader, crc_at, is_sealed, put_bytes, put_varint};
use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"DARNVOL1";

/// What a volume is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeKind {
    /// A directory of files.
    Directory,
    /// An image file or block device.
    Raw,
    /// Objects in a bucket.
    Bucket,
}

/// Of what a store has two copies, on two volumes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Copies {
    /// Of nothing.
    #[default]
    One,
    /// Of the index: tables and manifests.
    Index,
    /// Of everything.
    Two,
}

/// Of what there are to be two copies, filesets considered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Whosever it is.
    pub copies: Copies,
    /// Some filesets are kept twice.
    pub of_filesets: bool,
}

impl Wanted {
    /// How many there are to be of such regions.
    pub(crate) fn number(self, what: For) -> usize {
        let twice = match (self.copies, what) {
            (Copies::Two, _) | (Copies::Index, For::Index | For::Manifest) => true,
            (_, For::Kept { twice: false }) => false,
            // The log is everybody's, and without the index nothing could be found.
            (_, For::Index | For::Manifest | For::Log | For::Kept { twice: true }) => self.of_filesets,
        };
        1 + usize::from(twice)
    }
}

impl Copies {
    pub(crate) fn to_byte(self) -> u8 {
        match self {
            Copies::One => 0,
            Copies::Index => 1,
            Copies::Two => 2,
        }
    }

    pub(crate) fn of_byte(byte: u8) -> Option<Copies> {
        [Copies::One, Copies::Index, Copies::Two].into_iter().find(|c| c.to_byte() == byte)
    }
}

/// What a volume is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tier {
    /// For all that is new.
    #[default]
    Hot,
    /// For what is not read much and gives way when room gets short on the others. Buckets always are.
    Cold,
}

/// The number of the next volume, if one is left.
pub(crate) fn number_of(next_volume: u32) -> Result<u16> {
    u16::try_from(next_volume)
        .map_err(|_| Error::Refused("all 65536 numbers of volumes have been given in this store's life".into()))
}

/// What a store knows of one of its volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeEntry {
    /// Its number, never given to another.
    pub number: u16,
    /// What it is made of.
    pub kind: VolumeKind,
    /// It is being emptied: nothing new goes there.
    pub leaving: bool,
    /// Bytes that the store may use of it; 0: all there are.
    pub size_limit: u64,
    /// Where it was last (see [`super::Volume::hint`]).
    pub hint: Vec<u8>,
    /// The store was written to without it, from this generation of its superblock on: where what is on it has a copy
    /// elsewhere, only that counts.
    pub away: Option<u64>,
    /// What it is for.
    pub tier: Tier,
    /// Of a bucket: what the store puts there is put under this epoch; who takes the store over begins the next one. Else 0.
    pub epoch: u32,
    /// Drawn when it joined a store of many: what was to become that volume in an earlier try, and did not, has another. Else 0.
    pub mark: u32,
}

impl VolumeEntry {
    /// One of which nothing more is known.
    pub(crate) fn new(number: u16, kind: VolumeKind) -> VolumeEntry {
        let (hint, away, tier) = (Vec::new(), None, Tier::Hot);
        VolumeEntry { number, kind, leaving: false, size_limit: 0, hint, away, tier, epoch: 0, mark: 0 }
    }

    /// A bucket's.
    pub(crate) fn of_bucket(number: u16, name: &str, epoch: u32) -> VolumeEntry {
        let hint = name.as_bytes().to_vec();
        VolumeEntry { hint, tier: Tier::Cold, epoch, ..VolumeEntry::new(number, VolumeKind::Bucket) }
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.number.into());
        out.push(match self.kind {
            VolumeKind::Directory => 0,
            VolumeKind::Raw => 1,
            VolumeKind::Bucket => 2,
        });
        out.push(self.leaving.into());
        put_varint(out, self.size_limit);
        put_bytes(out, &self.hint);
        put_varint(out, self.away.map_or(0, |generation| generation.wrapping_add(1)));
        out.push(u8::from(self.tier == Tier::Cold));
        if self.kind == VolumeKind::Bucket {
            put_varint(out, self.epoch.into());
        }
        put_varint(out, self.mark.into());
    }

    /// `version`: that of the format.
    pub(crate) fn get(r: &mut Reader, version: u32) -> Option<VolumeEntry> {
        let number = u16::try_from(r.varint()?).ok()?;
        let kind = match r.take(1)?[0] {
            0 => VolumeKind::Directory,
            1 => VolumeKind::Raw,
            2 if version >= 6 => VolumeKind::Bucket,
            _ => return None,
        };
        let leaving = match r.take(1)?[0] {
            0 => false,
            1 => true,
            _ => return None,
        };
        let (size_limit, hint) = (r.varint()?, r.bytes()?.to_vec());
        let away = if version >= 5 { r.varint()?.checked_sub(1) } else { None };
        let tier = match version {
            ..6 => Tier::Hot,
            _ => [Tier::Hot, Tier::Cold].get(usize::from(r.take(1)?[0])).copied()?,
        };
        let epoch = if kind == VolumeKind::Bucket { u32::try_from(r.varint()?).ok()? } else { 0 };
        let mark = if version >= 8 { u32::try_from(r.varint()?).ok()? } else { 0 };
        Some(VolumeEntry { number, kind, leaving, size_limit, hint, away, tier, epoch, mark })
    }

    /// What users call it.
    pub fn name(&self) -> String {
        match self.hint.is_empty() {
            true => format!("volume {}", self.number),
            false => String::from_utf8_lossy(&self.hint).into_owned(),
        }
    }
}

/// The volumes of a store, by number. Clones share what did not change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Table(Arc<Vec<Arc<VolumeEntry>>>);

impl Table {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = &VolumeEntry> + Clone {
        self.0.iter().map(|e| &**e)
    }

    pub fn get(&self, number: u16) -> Option<&VolumeEntry> {
        self.place(number).ok().map(|i| &*self.0[i])
    }

    fn place(&self, number: u16) -> std::result::Result<usize, usize> {
        self.0.binary_search_by_key(&number, |e| e.number)
    }

    /// Adds a volume, or takes note of what has changed of it.
    pub fn put(&mut self, entry: VolumeEntry) {
        let place = self.place(entry.number);
        let all = Arc::make_mut(&mut self.0);
        match place {
            Ok(i) => all[i] = Arc::new(entry),
            Err(i) => all.insert(i, Arc::new(entry)),
        }
    }

    pub fn remove(&mut self, number: u16) {
        if let Ok(i) = self.place(number) {
            Arc::make_mut(&mut self.0).remove(i);
        }
    }

    /// Whether it is the same, as far as that can be told at once.
    pub fn is(&self, other: &Table) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The volumes of which something has changed since it was `before`: that are new, gone or not as they were.
    pub fn changed(&self, before: &Table) -> Vec<u16> {
        // (What is shared is the same, and most is.)
        let same = self.0.iter().zip(&*before.0).take_while(|(e, o)| Arc::ptr_eq(e, o)).count();
        let (mut now, mut then) = (self.0[same..].iter().peekable(), before.0[same..].iter().peekable());
        let mut changed = Vec::new();
        loop {
            let number = match (now.peek(), then.peek()) {
                (None, None) => return changed,
                (Some(e), None) | (None, Some(e)) => e.number,
                (Some(e), Some(o)) => e.number.min(o.number),
            };
            let (e, o) = (now.next_if(|e| e.number == number), then.next_if(|e| e.number == number));
            let same = e.zip(o).is_some_and(|(e, o)| Arc::ptr_eq(e, o) || e == o);
            changed.extend((!same).then_some(number));
        }
    }
}

impl FromIterator<VolumeEntry> for Table {
    /// They come ascending by number.
    fn from_iter<I: IntoIterator<Item = VolumeEntry>>(entries: I) -> Table {
        Table(Arc::new(entries.into_iter().map(Arc::new).collect()))
    }
}

/// Where the table of all volumes is, in a store of many, and what has changed since it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Roster {
    pub at: RegionRef,
    pub len: u64,
    /// What superblocks say of these, even if that is nothing, counts.
    pub changed: std::collections::BTreeSet<u16>,
}

impl Roster {
    /// The bytes of a roster that is to be in region `id`.
    pub fn encode(table: &Table, id: u64) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        put_varint(&mut out, table.len() as u64);
        table.iter().for_each(|e| e.put(&mut out));
        let crc = crc_at(id, 0, &out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// `version`: of the format.
    pub fn decode(bytes: &[u8], id: u64, version: u32) -> Option<Table> {
        let body = is_sealed(bytes, id, 0).then(|| &bytes[..bytes.len() - 4])?;
        let mut r = Reader::new(body);
        if r.take(8)? != MAGIC {
            return None;
        }
        let n = r.varint()?;
        let entries: Option<Vec<VolumeEntry>> = (0..n).map(|_| VolumeEntry::get(&mut r, version)).collect();
        let entries = entries.filter(|all| r.is_empty() && all.is_sorted_by(|a, b| a.number < b.number))?;
        Some(entries.into_iter().collect())
    }
}
