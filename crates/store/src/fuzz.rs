//! Every decoder of bytes from disk against bytes that were never written so. Checksums are made right before, so that they do not hide
//! the decoder behind them. The bytes come from a fuzzer that is guided by coverage (fuzz/), and in tests from seeds: random ones,
//! and valid ones with some changed.

use std::sync::Arc;

use crate::codec::crc_at;
use crate::extent::ChunkMap;
use crate::index::table::{Cursor, Table};
use crate::manifest::Manifest;
use crate::superblock::{Superblock, VERSION};
use crate::volume::sim::SimDisk;
use crate::volume::{RawVolume, Region, SUPER_SIZE, Volume};
use crate::{FilesetId, Key, Kind, ObjectId, Tid, frame};

fn volume() -> RawVolume {
    RawVolume::new(Arc::new(SimDisk::new(8 << 20)))
}

fn region_of(bytes: &[u8]) -> Arc<dyn Region> {
    let region = volume().create(1, bytes.len().max(4096) as u64).unwrap();
    region.write_at(bytes, 0).unwrap();
    region
}

/// A chunk map: what is made of it is encoded, too.
pub fn chunk_map(bytes: &[u8]) {
    if let Some(mut map) = ChunkMap::decode(bytes, Tid(9)) {
        map.overlay(5, 100, None);
        map.pieces(1, 0, 0, 65536, &mut Vec::new());
        ChunkMap::decode(&map.encode(Tid(9)), Tid(9)).expect("what we encode");
    }
}

/// A frame at byte 4096 of region 1.
pub fn a_frame(mut bytes: Vec<u8>) {
    if let Some(shape) = frame::shape(&bytes).filter(|s| s.len <= bytes.len()) {
        frame::reseal(&mut bytes, &shape, 1, 4096);
    }
    if let Some(frame::Frame { content: frame::Content::Transaction(records), .. }) = frame::parse(&bytes, 1, 4096) {
        crate::reading::data_is_valid(&*region_of(&[]), &bytes, 4096, &records);
    }
}

/// A manifest, without its checksum.
pub fn manifest(mut bytes: Vec<u8>) {
    let crc = crc_at(1, 0, &bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    let _ = Manifest::read(&*region_of(&bytes), bytes.len() as u64);
}

/// A superblock, but for its magic bytes and checksums; opens what it leads to, which is nothing. The first byte says of which version,
/// what is behind 176 is the table of volumes.
pub fn superblock(bytes: &[u8]) {
    let Some((version, bytes)) = bytes.split_first() else { return };
    let (fields, table) = bytes.split_at(bytes.len().min(176));
    let mut sb = b"DARNER\r\n".to_vec();
    sb.extend_from_slice(&(1 + u32::from(*version) % VERSION).to_le_bytes());
    sb.extend_from_slice(fields);
    sb.resize(SUPER_SIZE - 4, 0);
    sb[116..120].copy_from_slice(&(table.len() as u32).to_le_bytes());
    sb[120..124].copy_from_slice(&crc_at(0, SUPER_SIZE as u64, table).to_le_bytes());
    let crc = crc_at(0, 0, &sb);
    sb.extend_from_slice(&crc.to_le_bytes());
    sb.extend_from_slice(table);
    let volume = volume();
    volume.write_super(0, &sb).unwrap();
    if let Ok(read) = Superblock::read(&volume) {
        assert!(crate::Store::open(Arc::new(volume), &crate::OpenOptions::default()).is_err(), "{read:?}");
    }
}

/// A table of the index.
pub fn table(mut bytes: Vec<u8>) {
    crate::index::table::reseal(&mut bytes, 1);
    let Ok(table) = Table::open(region_of(&bytes), bytes.len() as u64) else { return };
    let table = Arc::new(table);
    let Ok(mut cursor) = Cursor::first(table.clone(), None) else { return };
    while cursor.key().is_some() && cursor.step().is_ok() {}
    let key = Key::new(FilesetId(1), ObjectId(100), Kind::DIRENT, &300u64.to_be_bytes());
    let _ = Cursor::seek(table, key.as_bytes(), Tid::MAX, None);
}

/// A list of ghosts, a scrub's report, a retention, a fileset's lineage, a table of volumes.
pub fn values(bytes: &[u8]) {
    let mut roster = [b"DARNVOL1", bytes].concat();
    roster.extend_from_slice(&crc_at(1, 0, &roster).to_le_bytes());
    let _ = crate::volume::Roster::decode(&roster, 1, VERSION);
    let _ = crate::index::ghost::decode(bytes);
    let _ = crate::scrub::ScrubReport::decode(bytes);
    let _ = crate::retain::Retention::decode(bytes);
    let _ = crate::Lineage::decode(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Entry;
    use crate::index::levels::RunRef;
    use crate::index::table::{Builder, TableRef};
    use crate::manifest::Position;
    use crate::segment::Segment;
    use crate::volume::{RegionRef, Roster, VolumeEntry, VolumeKind};

    const ROUNDS: u64 = 20_000;

    /// Gives the fuzzer something to start from, where `DARNER_FUZZ_CORPUS` says.
    fn seed(which: u8, bytes: &[u8]) {
        if let Some(dir) = std::env::var_os("DARNER_FUZZ_CORPUS") {
            std::fs::write(std::path::Path::new(&dir).join(format!("seed-{which}")), [&[which], bytes].concat())
                .unwrap();
        }
    }

    fn mangle(rng: &mut fastrand::Rng, bytes: &mut Vec<u8>) {
        for _ in 0..rng.usize(1..4) {
            if bytes.is_empty() {
                return;
            }
            let at = rng.usize(..bytes.len());
            match rng.u8(0..5) {
                0 => bytes[at] = rng.u8(..),
                1 => bytes[at] ^= 1 << rng.u8(0..8),
                2 => bytes[at] = [0, 0x7f, 0x80, 0xff][rng.usize(0..4)],
                3 => bytes.truncate(at),
                _ => bytes.insert(at, 0xff),
            }
        }
    }

    #[test]
    fn no_bytes_make_a_chunk_map_or_a_value_panic() {
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..ROUNDS {
            let mut bytes = vec![0; rng.usize(0..60)];
            rng.fill(&mut bytes);
            chunk_map(&bytes);
            values(&bytes);
        }
    }

    #[test]
    fn no_bytes_make_a_frame_panic() {
        let mut rng = fastrand::Rng::with_seed(2);
        let mut heads = frame::Heads::default();
        let record = |kind, body| frame::Record { fileset: FilesetId(1), object: ObjectId(300), kind, body };
        heads.add(Tid(5), &record(Kind::ATTR, frame::Body::Put { suffix: b"x", value: b"value" }));
        heads.add(Tid(5), &record(Kind::EXTENT, frame::Body::Hole { offset: 1, len: 1 << 40 }));
        let turn = frame::Body::Fileset { objects: -1, live: 1 << 40 };
        heads.add(Tid(5), &frame::Record::turn(FilesetId(700), turn));
        let codec = crate::extent::Codec::Raw;
        let body = frame::Body::Extent { offset: 70_000, len: 4, codec, data_at: 48, stored: 8 };
        heads.add(Tid(5), &record(Kind::EXTENT, body));
        let h = frame::Header {
            tid: Tid(5),
            fileset: FilesetId(1),
            chain: 1,
            durable: Tid(4),
            next_object: 9,
            objects: 1,
            live: 4,
        };
        let mut good = crate::buffer::Buffer::Own(vec![0; frame::HEADER + 8]);
        frame::finish(&mut good, 0, 1, 4096, &h, &heads);
        seed(1, &good);
        for _ in 0..ROUNDS {
            let mut bytes = good.to_vec();
            mangle(&mut rng, &mut bytes);
            a_frame(bytes);
        }
    }

    #[test]
    fn no_bytes_make_a_manifest_or_superblock_panic() {
        let mut rng = fastrand::Rng::with_seed(3);
        let at = RegionRef { id: 7, start: 1 << 20, size: 16384, volume: 0, second: None };
        let m = Manifest {
            tid: Tid(1 << 60),
            next_region: 9,
            next_object: 5,
            counts: crate::counts::Counts::of_one(FilesetId(1), crate::Count { objects: 4, live: 77 }),
            log: Position { region: 7, offset: 4096, chain: 8 },
            segments: vec![Segment::open(at, Tid(3)), Segment { pack: Some(7), live: 5, ..Segment::open(at, Tid(4)) }],
            packs: vec![at],
            live: vec![RunRef { above: b"key".to_vec(), tables: vec![TableRef { region: at, len: 99 }] }],
            history: vec![],
        };
        let mut good = m.encode(1);
        good.truncate(good.len() - 4);
        seed(2, &good);
        for _ in 0..ROUNDS / 10 {
            let mut bytes = good.clone();
            mangle(&mut rng, &mut bytes);
            manifest(bytes);
            let random: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(SUPER_SIZE).collect();
            superblock(&random);
        }
    }

    #[test]
    fn no_bytes_make_a_superblock_of_many_volumes_or_a_roster_panic() {
        let mut rng = fastrand::Rng::with_seed(6);
        let entry =
            |number| VolumeEntry { hint: b"/a/path".to_vec(), mark: 9, ..VolumeEntry::new(number, VolumeKind::Raw) };
        let volumes: crate::volume::Table = [0, 1, 2, 300, 65_535].into_iter().map(entry).collect();
        let at = RegionRef { id: 7, start: 1 << 20, size: 16384, volume: 0, second: None };
        let sb = Superblock {
            version: VERSION,
            generation: 1 << 40,
            attempt: 3,
            uuid: [1; 16],
            hash_key: [2; 16],
            birth: Tid(4),
            manifest: at,
            manifest_len: 99,
            copies: crate::volume::Copies::One,
            kept_twice: Default::default(),
            next_volume: 65_536,
            roster: Some(Roster { at, len: 99, changed: [300, 400].into() }),
            homes: vec![0, 1, 2],
            homes_since: 70,
            openings: Default::default(),
            volumes: volumes.clone(),
        };
        let roster = Roster::encode(&volumes, 1);
        for number in [0, 300] {
            let good = sb.encode(number);
            let good = [&[VERSION as u8 - 1][..], &good[12..188], &good[SUPER_SIZE..]].concat();
            seed(3, &good);
            superblock(&good);
            for _ in 0..ROUNDS / 10 {
                let mut bytes = good.clone();
                mangle(&mut rng, &mut bytes);
                superblock(&bytes);
                let mut bytes = roster[8..roster.len() - 4].to_vec();
                mangle(&mut rng, &mut bytes);
                values(&bytes);
            }
        }
    }

    /// Both made sums overflow.
    #[test]
    fn a_generation_or_a_length_of_a_manifest_without_measure_is_refused() {
        // Of version 1: its attempt, its generation.
        superblock(&[&[0, 0, 0, 0, 0][..], &[0xff; 8]].concat());
        // Other fields, then the manifest's number, where it is, its size, its length.
        let fields = [1, 1 << 20, 0, u64::MAX].map(u64::to_le_bytes).concat();
        superblock(&[&[0; 1 + 60][..], &fields].concat());
    }

    #[test]
    fn no_bytes_make_a_table_panic() {
        let mut rng = fastrand::Rng::with_seed(5);
        let built = |entries: u64| {
            let mut builder = Builder::new(1);
            for i in 0..entries {
                let key = Key::new(FilesetId(1), ObjectId(i / 3), Kind::DIRENT, &i.to_be_bytes());
                let value = (i % 5 != 0).then(|| Arc::from(i.to_le_bytes().as_slice()));
                builder.add(&Entry { key: key.as_bytes().into(), tid: Tid(i + 1), value });
            }
            builder.finish().unwrap()
        };
        seed(4, &built(20));
        let good = built(2000);
        for _ in 0..ROUNDS / 20 {
            let mut bytes = good.clone();
            let at = rng.usize(..bytes.len());
            bytes[at] ^= 1 << rng.u8(0..8);
            table(bytes);
        }
    }
}
