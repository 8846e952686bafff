//! The superblock: who the store is, which volumes it has, and where its manifest lies. docs/format.md §Superblock.
//!
//! Every volume has one, which differs only in the number of the volume that it is on. Two slots, written in turn (generation
//! modulo 2), each checksummed: a torn write leaves the other one valid. The newest one on any volume holds for all: what a
//! crash has kept from the others is written again at the next open.

use std::collections::BTreeSet;

use crate::codec::{Reader, crc_at, put_varint};
use crate::volume::{Copies, RegionRef, SLOT_SIZE, SUPER_SIZE, Spot, Volume, VolumeEntry, VolumeKind, Wanted};
use crate::{Error, FilesetId, Result, Tid};

const MAGIC: &[u8; 8] = b"DARNER\r\n";
/// The version of the whole format, as it is written.
pub const VERSION: u32 = 7;
/// The oldest version that can be read; opening for writing makes it the newest.
const VERSION_MIN: u32 = 1;
/// More than any store gets to; up to there sums don't overflow.
const GENERATIONS: u64 = 1 << 62;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// As it was read.
    pub version: u32,
    /// Grows by one with every change.
    pub generation: u64,
    /// Of two of one generation the one with the higher number counts: the other was not written everywhere.
    pub attempt: u32,
    /// The store's identity.
    pub uuid: [u8; 16],
    /// Key of the directory hash.
    pub hash_key: [u8; 16],
    /// When the store was made.
    pub birth: Tid,
    /// The manifest's region.
    pub manifest: RegionRef,
    /// The manifest's bytes.
    pub manifest_len: u64,
    /// Of what there are to be two copies.
    pub copies: Copies,
    /// Filesets that are kept twice besides.
    pub kept_twice: BTreeSet<FilesetId>,
    /// The number that the next volume gets; beyond those of 16 bits there is none.
    pub next_volume: u32,
    /// The store's volumes, by number.
    pub volumes: Vec<VolumeEntry>,
}

/// A superblock, and the number of the volume that it is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnVolume {
    pub number: u16,
    pub superblock: Superblock,
}

impl Superblock {
    fn encode(&self, number: u16) -> Vec<u8> {
        let mut table = Vec::new();
        self.volumes.iter().for_each(|v| v.put(&mut table));
        put_varint(&mut table, self.kept_twice.len() as u64);
        self.kept_twice.iter().for_each(|fileset| put_varint(&mut table, fileset.0.into()));
        let mut out = Vec::with_capacity(SUPER_SIZE + table.len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.attempt.to_le_bytes());
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&self.uuid);
        out.extend_from_slice(&self.hash_key);
        let m = &self.manifest;
        for v in [self.birth.0, 0, m.id, m.start, m.size, self.manifest_len] {
            out.extend_from_slice(&v.to_le_bytes());
        }
        out.extend_from_slice(&m.volume.to_le_bytes());
        out.extend_from_slice(&number.to_le_bytes());
        let table_crc = crc_at(0, SUPER_SIZE as u64, &table);
        for v in [self.next_volume, self.volumes.len() as u32, table.len() as u32, table_crc] {
            out.extend_from_slice(&v.to_le_bytes());
        }
        out.extend_from_slice(&[self.copies.to_byte(), m.second.is_some().into()]);
        let second = m.second.unwrap_or(Spot { start: 0, volume: 0 });
        out.extend_from_slice(&second.volume.to_le_bytes());
        out.extend_from_slice(&second.start.to_le_bytes());
        out.resize(SUPER_SIZE - 4, 0);
        let crc = crc_at(0, 0, &out);
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&table);
        out
    }

    /// Whether a slot has room for it.
    pub fn fits(&self) -> bool {
        self.encode(0).len() <= SLOT_SIZE
    }

    fn decode(slot: &[u8], kind: VolumeKind) -> Option<Result<OnVolume, u32>> {
        let (block, behind) = slot.split_at_checked(SUPER_SIZE)?;
        let (body, crc) = block.split_at(SUPER_SIZE - 4);
        if crc_at(0, 0, body).to_le_bytes() != crc {
            return None;
        }
        let mut r = Reader::new(body);
        if r.take(8)? != MAGIC {
            return None;
        }
        let version = r.u32()?;
        if !(VERSION_MIN..=VERSION).contains(&version) {
            return Some(Err(version));
        }
        let attempt = r.u32()?;
        let generation = r.u64().filter(|g| *g < GENERATIONS)?;
        let uuid = r.take(16)?.try_into().ok()?;
        let hash_key = r.take(16)?.try_into().ok()?;
        let (birth, size_limit) = (Tid(r.u64()?), r.u64()?);
        let mut manifest = RegionRef { id: r.u64()?, start: r.u64()?, size: r.u64()?, volume: 0, second: None };
        let manifest_len = r.u64()?;
        let (mut number, mut next_volume) = (0, 1);
        let mut volumes = vec![VolumeEntry { size_limit, ..VolumeEntry::new(number, kind) }];
        let (mut copies, mut kept_twice) = (Copies::One, BTreeSet::new());
        if version >= 3 {
            let mut short = || Some(u16::from_le_bytes(r.take(2)?.try_into().ok()?));
            (manifest.volume, number) = (short()?, short()?);
            let (next, n, len, crc) = (r.u32()?, r.u32()?, r.u32()?, r.u32()?);
            next_volume = next;
            (volumes, kept_twice) = table(behind.get(..len as usize)?, n, crc, version)?;
        }
        if version >= 5 {
            copies = Copies::of_byte(r.u8()?)?;
            let is_twice = r.u8()? != 0;
            let volume = u16::from_le_bytes(r.take(2)?.try_into().ok()?);
            manifest.second = Some(Spot { volume, start: r.u64()? }).filter(|_| is_twice);
        }
        let superblock = Superblock {
            version,
            generation,
            attempt,
            uuid,
            hash_key,
            birth,
            manifest,
            manifest_len,
            copies,
            kept_twice,
            next_volume,
            volumes,
        };
        let sense = superblock.volumes.iter().all(|v| v.away.is_none_or(|since| since <= generation));
        (sense && superblock.entry(number).is_some()).then_some(Ok(OnVolume { number, superblock }))
    }

    /// Of what there are to be two copies.
    pub fn wanted(&self) -> Wanted {
        Wanted { copies: self.copies, of_filesets: !self.kept_twice.is_empty() }
    }

    /// What the store knows of a volume.
    pub fn entry(&self, number: u16) -> Option<&VolumeEntry> {
        self.volumes.iter().find(|v| v.number == number)
    }

    /// Writes it to its slot on a volume; durable on return.
    pub fn write(&self, volume: &dyn Volume, number: u16) -> Result<()> {
        volume.write_super((self.generation % 2) as usize, &self.encode(number))
    }

    /// The valid superblocks at the beginning of a volume, newest first.
    pub fn read_beginning(volume: &dyn Volume) -> Result<Vec<OnVolume>> {
        valid(volume, &[volume.read_super(0)?, volume.read_super(1)?])
    }

    /// The valid superblocks of a volume, newest first; an error that says why if there is none.
    pub fn read(volume: &dyn Volume) -> Result<Vec<OnVolume>> {
        let slots = [volume.read_super(0)?, volume.read_super(1)?];
        let mut found = valid(volume, &slots)?;
        if let [only] = &found[..]
            && slots.iter().filter(|slot| slot.iter().any(|b| *b != 0)).count() > 1
        {
            // The newest one may be the one that is damaged; what the older one leads to may have been given back.
            let is_newer = |f: &OnVolume| {
                (f.number, f.superblock.uuid) == (only.number, only.superblock.uuid)
                    && f.superblock.generation > only.superblock.generation
            };
            let newer = Superblock::read_label(volume)?.into_iter().find(is_newer);
            if let Some(newer) = newer {
                tracing::warn!("{}: its newest superblock is damaged; the label at its end has it", volume.name());
                found.insert(0, newer);
            }
        }
        if !found.is_empty() {
            return Ok(found);
        }
        let name = volume.name();
        Err(Error::NotAStore(match Superblock::read_label(volume)?.first() {
            Some(label) => format!(
                "{name} was volume {} of a store, as the label at its end says, and its beginning was overwritten: \
                 darner volume reclaim {name} takes it back",
                label.number
            ),
            None => format!("{name} holds no darner store (no valid superblock)"),
        }))
    }

    /// The valid superblocks in a volume's label, newest first; none if it has none.
    pub fn read_label(volume: &dyn Volume) -> Result<Vec<OnVolume>> {
        let slots: Option<Vec<Vec<u8>>> = (0..2).map(|slot| volume.read_label(slot)).collect::<Result<_>>()?;
        slots.map_or(Ok(Vec::new()), |slots| valid(volume, &slots))
    }
}

fn valid(volume: &dyn Volume, slots: &[Vec<u8>]) -> Result<Vec<OnVolume>> {
    let mut found: Vec<OnVolume> = Vec::new();
    for slot in slots {
        match Superblock::decode(slot, volume.kind()) {
            Some(Ok(sb)) => found.push(sb),
            Some(Err(version)) => {
                return Err(Error::NotAStore(format!(
                    "{} has format version {version}; this darner reads versions {VERSION_MIN} to {VERSION}: use a newer one",
                    volume.name()
                )));
            }
            None => {}
        }
    }
    found.sort_by_key(|f| std::cmp::Reverse(f.superblock.generation));
    Ok(found)
}

fn table(bytes: &[u8], n: u32, crc: u32, version: u32) -> Option<(Vec<VolumeEntry>, BTreeSet<FilesetId>)> {
    if crc_at(0, SUPER_SIZE as u64, bytes) != crc {
        return None;
    }
    let mut r = Reader::new(bytes);
    let entries: Option<Vec<VolumeEntry>> = (0..n).map(|_| VolumeEntry::get(&mut r, version)).collect();
    let entries = entries.filter(|all| all.is_sorted_by(|a, b| a.number < b.number))?;
    let mut kept_twice = BTreeSet::new();
    if version >= 7 {
        for _ in 0..r.varint()? {
            kept_twice.insert(FilesetId(u32::try_from(r.varint()?).ok()?));
        }
    }
    r.is_empty().then_some((entries, kept_twice))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_has_room_for_two_thousand_volumes_and_it_is_told_when_there_are_too_many() {
        let entry = |number: u16| VolumeEntry {
            hint: format!("/dev/disk/{number:010}").into_bytes(),
            ..VolumeEntry::new(number, VolumeKind::Raw)
        };
        let manifest = RegionRef { id: 2, start: 1 << 20, size: 4096, volume: 0, second: None };
        let with = |n: u16| Superblock {
            version: VERSION,
            generation: 7,
            attempt: 0,
            uuid: [1; 16],
            hash_key: [2; 16],
            birth: Tid(5),
            manifest,
            manifest_len: 100,
            copies: Copies::One,
            kept_twice: [FilesetId(1), FilesetId(70_000)].into(),
            next_volume: n.into(),
            volumes: (0..n).map(entry).collect(),
        };
        let sb = with(2000);
        assert!(sb.fits());
        let read = Superblock::decode(&sb.encode(1999), VolumeKind::Raw).unwrap().unwrap();
        assert_eq!(read, OnVolume { number: 1999, superblock: sb });
        assert!(!with(3000).fits());
    }
}
