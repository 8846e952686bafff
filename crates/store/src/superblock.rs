//! The superblock: who the store is, which volumes it has, and where its manifest lies. docs/format.md §Superblock.
//!
//! Two slots on each volume, written in turn (generation modulo 2), each checksummed: a torn write leaves the other one valid. The newest
//! one on any volume holds for all: what a crash has kept from the others is written again at the next open.
//!
//! Where the volumes are many, some of them are its *homes*, and only on those it is written and does it count. What is on another is a
//! *sign*: a superblock of some moment, which says where the homes are. Invariant: what a sign calls homes have had superblocks of its
//! generation, or newer ones. So one that is newer than all superblocks that were found tells that the newest is missing.

use std::collections::BTreeSet;

use crate::codec::{Reader, crc_at, put_varint};
use crate::opening::Openings;
use crate::volume::{
    Copies, RegionRef, Roster, SLOT_SIZE, SUPER_SIZE, Spot, Table, Volume, VolumeEntry, VolumeKind, Wanted,
};
use crate::{Error, FilesetId, Result, Tid};

const MAGIC: &[u8; 8] = b"DARNER\r\n";
/// The version of the whole format, as it is written.
pub const VERSION: u32 = 9;
/// The oldest version that can be read; opening for writing makes it the newest.
const VERSION_MIN: u32 = 1;
/// More than any store gets to; up to there sums don't overflow.
const GENERATIONS: u64 = 1 << 62;
/// Where there are more volumes, superblocks are on so many of them.
pub const HOMES: usize = 8;
/// Where the openings are.
const OPENINGS: usize = 180;
/// Longer than any table of 65536 volumes.
const ROSTER_MAX: u64 = 1 << 28;

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
    /// The store's volumes. As it is read from a volume, of a store of many only those that it names itself.
    pub volumes: Table,
    /// Where the table of all is, in a store of many.
    pub roster: Option<Roster>,
    /// The volumes that it is on, ascending.
    pub homes: Vec<u16>,
    /// Of a store of many: the generation since which these are the homes.
    pub homes_since: u64,
    /// Who has written it and those before it.
    pub openings: Openings,
}

/// A superblock, and the number of the volume that it is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnVolume {
    pub number: u16,
    pub superblock: Superblock,
}

impl Superblock {
    pub(crate) fn encode(&self, number: u16) -> Vec<u8> {
        let mut table = Vec::new();
        let named = self.named(number);
        named.iter().for_each(|v| v.put(&mut table));
        put_numbers(&mut table, self.kept_twice.iter().map(|fileset| fileset.0));
        if let Some(roster) = &self.roster {
            put_numbers(&mut table, self.homes.iter().map(|n| u32::from(*n)));
            let gone: Vec<u32> =
                roster.changed.iter().filter(|n| self.entry(**n).is_none()).map(|n| (*n).into()).collect();
            put_numbers(&mut table, gone.into_iter());
            put_varint(&mut table, self.homes_since);
        }
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
        for v in [self.next_volume, named.len() as u32, table.len() as u32, table_crc] {
            out.extend_from_slice(&v.to_le_bytes());
        }
        out.extend_from_slice(&[self.copies.to_byte(), m.second.is_some().into()]);
        let second = m.second.unwrap_or(Spot { start: 0, volume: 0 });
        out.extend_from_slice(&second.volume.to_le_bytes());
        out.extend_from_slice(&second.start.to_le_bytes());
        if let Some(Roster { at, len, .. }) = &self.roster {
            for v in [at.id, at.start, at.size, *len] {
                out.extend_from_slice(&v.to_le_bytes());
            }
            let second = at.second.unwrap_or(Spot { start: 0, volume: at.volume });
            out.extend_from_slice(&at.volume.to_le_bytes());
            out.extend_from_slice(&second.volume.to_le_bytes());
            out.extend_from_slice(&second.start.to_le_bytes());
        }
        out.resize(OPENINGS, 0);
        self.openings.encode(&mut out);
        out.resize(SUPER_SIZE - 4, 0);
        let crc = crc_at(0, 0, &out);
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&table);
        out
    }

    /// The volumes that it names itself, on one of them: where a roster has the others, the homes, this one, and what is said to have
    /// changed since that was written, as a bucket always is.
    fn named(&self, number: u16) -> Vec<&VolumeEntry> {
        let Some(roster) = &self.roster else { return self.volumes.iter().collect() };
        let numbers = roster.changed.iter().chain(&self.homes).copied().chain([number]);
        let numbers: BTreeSet<u16> = numbers.collect();
        numbers.into_iter().filter_map(|n| self.entry(n)).collect()
    }

    /// Whether a slot has room for it.
    pub fn fits(&self) -> bool {
        // (Another number may take more bytes, or have its volume's path named besides.)
        self.encode(self.homes.last().copied().unwrap_or(0)).len()
            <= SLOT_SIZE - if self.roster.is_some() { SUPER_SIZE } else { 0 }
    }

    /// Whether another one of the store is what this one's store has been, and not what a copy of it has become.
    pub fn knows(&self, other: &Superblock) -> bool {
        self.openings.agree(other.openings.at(other.generation), other.generation)
    }

    /// Whether it counts on a volume, or is only a sign there.
    pub fn is_home(&self, number: u16) -> bool {
        self.homes.binary_search(&number).is_ok()
    }

    /// The volume that is a bucket.
    pub fn bucket(&self) -> Option<&VolumeEntry> {
        self.volumes.iter().find(|e| e.kind == VolumeKind::Bucket)
    }

    /// Takes over what the roster says of volumes that it does not name itself.
    pub fn complete(&mut self, all: Table) {
        let Some(roster) = &self.roster else { return };
        let of_roster = all.iter().filter(|e| !roster.changed.contains(&e.number));
        let mut all: Vec<VolumeEntry> = of_roster.chain(self.volumes.iter()).cloned().collect();
        all.sort_by_key(|e| e.number);
        all.dedup_by_key(|e| e.number);
        self.volumes = all.into_iter().collect();
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
        let only = VolumeEntry { size_limit, ..VolumeEntry::new(number, kind) };
        let mut behind_it = Behind { volumes: [only].into_iter().collect(), homes: vec![number], ..Behind::default() };
        let (mut copies, mut roster) = (Copies::One, None);
        if version >= 3 {
            let mut short = || Some(u16::from_le_bytes(r.take(2)?.try_into().ok()?));
            (manifest.volume, number) = (short()?, short()?);
            let (next, n, len, crc) = (r.u32()?, r.u32()?, r.u32()?, r.u32()?);
            next_volume = next;
            // (What that holds depends on whether there is a roster.)
            let has_roster = version >= 8 && block[136..144] != [0; 8];
            behind_it = Behind::decode(behind.get(..len as usize)?, n, crc, version, has_roster)?;
        }
        if version >= 5 {
            copies = Copies::of_byte(r.u8()?)?;
            let is_twice = r.u8()? != 0;
            let volume = u16::from_le_bytes(r.take(2)?.try_into().ok()?);
            manifest.second = Some(Spot { volume, start: r.u64()? }).filter(|_| is_twice);
        }
        let Behind { volumes, kept_twice, homes, gone, homes_since } = behind_it;
        if version >= 8 {
            let (id, start, size, len) = (r.u64()?, r.u64()?, r.u64()?, r.u64()?);
            let mut short = || Some(u16::from_le_bytes(r.take(2)?.try_into().ok()?));
            let (volume, other) = (short()?, short()?);
            let second = Some(Spot { start: r.u64()?, volume: other }).filter(|_| other != volume);
            let changed = volumes.iter().map(|e| e.number).chain(gone).collect();
            let at = RegionRef { id, start, size, volume, second };
            roster = (id > 0 && len <= size.min(ROSTER_MAX)).then_some(Roster { at, len, changed });
            if (id > 0) != roster.is_some() {
                return None;
            }
        }
        let openings = match version {
            ..9 => Openings::default(),
            _ => Openings::decode(&mut Reader::new(&body[OPENINGS..]))?,
        };
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
            roster,
            homes,
            homes_since,
            openings,
        };
        let sense = superblock.volumes.iter().all(|v| v.away.is_none_or(|since| since <= generation))
            && superblock.homes.iter().all(|home| superblock.entry(*home).is_some());
        (sense && superblock.entry(number).is_some()).then_some(Ok(OnVolume { number, superblock }))
    }

    /// Whether bytes begin as a superblock does.
    pub fn may_begin_with(bytes: &[u8]) -> bool {
        bytes.starts_with(MAGIC)
    }

    /// That of a slot, if it is whole and of a version that is known.
    pub fn of_slot(slot: &[u8], kind: VolumeKind) -> Option<OnVolume> {
        Superblock::decode(slot, kind)?.ok()
    }

    /// Of what there are to be two copies.
    pub fn wanted(&self) -> Wanted {
        Wanted { copies: self.copies, of_filesets: !self.kept_twice.is_empty() }
    }

    /// What the store knows of a volume.
    pub fn entry(&self, number: u16) -> Option<&VolumeEntry> {
        self.volumes.get(number)
    }

    /// Writes it to its slot on a home; durable on return.
    pub fn write(&self, volume: &dyn Volume, number: u16) -> Result<()> {
        volume.write_super((self.generation % 2) as usize, &self.encode(number))
    }

    /// Writes it to its slot on several of its homes, one after the other, until one fails; durable on return.
    pub fn write_to_homes<'v>(
        &self,
        homes: impl IntoIterator<Item = (u16, &'v dyn Volume)>,
    ) -> std::result::Result<(), (u16, Error)> {
        let mut bytes = self.encode(self.homes.first().copied().unwrap_or(0));
        for (number, volume) in homes {
            bytes[106..108].copy_from_slice(&number.to_le_bytes());
            let crc = crc_at(0, 0, &bytes[..SUPER_SIZE - 4]);
            bytes[SUPER_SIZE - 4..SUPER_SIZE].copy_from_slice(&crc.to_le_bytes());
            volume.write_super((self.generation % 2) as usize, &bytes).map_err(|e| (number, e))?;
        }
        Ok(())
    }

    /// Writes it to both slots of a volume that is no home, one after the other: whatever is torn, one is a sign. Durable on return.
    pub fn write_sign(&self, volume: &dyn Volume, number: u16) -> Result<()> {
        let bytes = self.encode(number);
        [0, 1].into_iter().try_for_each(|slot| volume.write_super(slot, &bytes))
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
            None if was_volume(volume)? => format!(
                "{name} was a volume of a store, and has no valid superblock: darner volume reclaim {name} takes it back"
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

/// Of what has no valid superblock: whether it is a directory, which has no label, and has regions, or damaged superblocks, all the same.
pub fn was_volume(volume: &dyn Volume) -> Result<bool> {
    let has_some = |slot| Ok::<_, Error>(volume.read_super(slot)?.iter().any(|b| *b != 0));
    let has_regions = || Ok::<_, Error>(volume.list()?.is_some_and(|regions| !regions.is_empty()));
    Ok(volume.kind() == VolumeKind::Directory && (has_some(0)? || has_some(1)? || has_regions()?))
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

/// What is in a slot behind the superblock itself.
#[derive(Default)]
struct Behind {
    volumes: Table,
    kept_twice: BTreeSet<FilesetId>,
    homes: Vec<u16>,
    /// Volumes that the roster has and that have left since.
    gone: Vec<u16>,
    homes_since: u64,
}

impl Behind {
    fn decode(bytes: &[u8], n: u32, crc: u32, version: u32, has_roster: bool) -> Option<Behind> {
        if crc_at(0, SUPER_SIZE as u64, bytes) != crc {
            return None;
        }
        let mut r = Reader::new(bytes);
        let entries: Option<Vec<VolumeEntry>> = (0..n).map(|_| VolumeEntry::get(&mut r, version)).collect();
        let entries = entries.filter(|all| all.is_sorted_by(|a, b| a.number < b.number))?;
        let mut b = Behind { volumes: entries.into_iter().collect(), ..Behind::default() };
        if version >= 7 {
            b.kept_twice = get_numbers(&mut r)?.into_iter().map(FilesetId).collect();
        }
        if has_roster {
            let mut volumes =
                || get_numbers(&mut r)?.into_iter().map(|n| u16::try_from(n).ok()).collect::<Option<Vec<u16>>>();
            (b.homes, b.gone) = (volumes().filter(|homes| homes.is_sorted_by(|a, b| a < b))?, volumes()?);
            b.homes_since = r.varint()?;
        } else {
            b.homes = with_supers(&b.volumes);
        }
        r.is_empty().then_some(b)
    }
}

/// The volumes that are no buckets.
pub fn with_supers(volumes: &Table) -> Vec<u16> {
    volumes.iter().filter(|e| e.kind != VolumeKind::Bucket).map(|e| e.number).collect()
}

fn put_numbers(out: &mut Vec<u8>, numbers: impl ExactSizeIterator<Item = u32>) {
    put_varint(out, numbers.len() as u64);
    numbers.for_each(|n| put_varint(out, n.into()));
}

fn get_numbers(r: &mut Reader) -> Option<Vec<u32>> {
    let n = r.varint()?;
    (0..n).map(|_| u32::try_from(r.varint()?).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u16) -> VolumeEntry {
        let hint = format!("/dev/disk/{number:010}").into_bytes();
        VolumeEntry { hint, mark: 7, ..VolumeEntry::new(number, VolumeKind::Raw) }
    }

    fn of(volumes: Table) -> Superblock {
        Superblock {
            version: VERSION,
            generation: 7,
            attempt: 0,
            uuid: [1; 16],
            hash_key: [2; 16],
            birth: Tid(5),
            manifest: RegionRef { id: 2, start: 1 << 20, size: 4096, volume: 0, second: None },
            manifest_len: 100,
            copies: Copies::One,
            kept_twice: [FilesetId(1), FilesetId(70_000)].into(),
            next_volume: 65536,
            homes: with_supers(&volumes),
            volumes,
            roster: None,
            homes_since: 0,
            openings: Openings::default(),
        }
    }

    fn read_back(sb: &Superblock, number: u16) -> Superblock {
        let on = Superblock::decode(&sb.encode(number), VolumeKind::Raw).unwrap().unwrap();
        assert_eq!(on.number, number);
        on.superblock
    }

    #[test]
    fn what_is_written_is_read() {
        let mut sb = of((0..8).map(entry).collect());
        (0..70).for_each(|n| sb.openings.begin(u64::MAX - n, n));
        assert_eq!(read_back(&sb, 3), sb);
    }

    #[test]
    fn of_65536_volumes_it_names_the_homes_and_what_has_changed_and_the_roster_has_the_others() {
        let all: Table = (0..=u16::MAX).map(entry).collect();
        let bytes = Roster::encode(&all, 9);
        assert_eq!(Roster::decode(&bytes, 9, VERSION).as_ref(), Some(&all));
        assert_eq!(Roster::decode(&bytes, 8, VERSION), None);
        let second = Some(Spot { start: 3 << 20, volume: 5 });
        let at = RegionRef { id: 9, start: 2 << 20, size: 8 << 20, volume: 1, second };
        let mut now = all.clone();
        now.remove(60_000);
        now.put(VolumeEntry { leaving: true, ..entry(400) });
        let changed: BTreeSet<u16> = now.changed(&all).into_iter().collect();
        assert_eq!(changed, [400, 60_000].into());
        let sb = Superblock {
            homes: vec![0, 1, 5, 65_535],
            homes_since: 6,
            roster: Some(Roster { at, len: bytes.len() as u64, changed }),
            ..of(now.clone())
        };
        assert!(sb.fits() && !Superblock { roster: None, ..sb.clone() }.fits());
        for number in [5, 400, 500] {
            let mut read = read_back(&sb, number);
            assert_eq!(read.is_home(number), number == 5);
            assert!(read.entry(number).is_some() && read.volumes.len() <= 6);
            read.complete(all.clone());
            assert_eq!(read.volumes, now);
            let roster = read.roster.as_mut().unwrap();
            assert!(roster.changed.is_superset(&sb.roster.as_ref().unwrap().changed));
            roster.changed = sb.roster.as_ref().unwrap().changed.clone();
            assert_eq!(read, sb);
        }
    }
}
