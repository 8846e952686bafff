//! Every decoder of bytes from disk against bytes that were never written so: random ones, and valid ones with some
//! changed and the checksum made right again, so that the checksum does not hide the decoder behind it.

use std::sync::Arc;

use crate::codec::crc_at;
use crate::extent::ChunkMap;
use crate::index::Entry;
use crate::index::levels::RunRef;
use crate::index::table::TableRef;
use crate::index::table::{Builder, Cursor, Table};
use crate::manifest::{Manifest, Position};
use crate::segment::Segment;
use crate::superblock::Superblock;
use crate::volume::sim::SimDisk;
use crate::volume::{RawVolume, RegionRef, Volume};
use crate::{FilesetId, Key, Kind, ObjectId, Tid, frame};

const ROUNDS: u64 = 20_000;

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
fn no_bytes_make_a_chunk_map_panic() {
    let mut rng = fastrand::Rng::with_seed(1);
    for _ in 0..ROUNDS {
        let mut bytes = vec![0; rng.usize(0..60)];
        rng.fill(&mut bytes);
        if let Some(mut map) = ChunkMap::decode(&bytes, Tid(9)) {
            map.overlay(5, 100, None);
            map.pieces(1, 0, 0, 65536, &mut Vec::new());
            ChunkMap::decode(&map.encode(Tid(9)), Tid(9)).expect("what we encode");
        }
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
    let volume = RawVolume::new(Arc::new(SimDisk::new(8 << 20)));
    let region = volume.create(3, 1 << 20).unwrap();
    let mut good = crate::buffer::Buffer::Own(vec![0; frame::HEADER + 8]);
    frame::finish(&mut good, 0, 3, 4096, &h, &heads);
    for _ in 0..ROUNDS {
        let mut bytes = good.to_vec();
        mangle(&mut rng, &mut bytes);
        // Make the checksum right, so that the record heads are decoded.
        if let Some(shape) = frame::shape(&bytes).filter(|s| s.len <= bytes.len()) {
            frame::reseal(&mut bytes, &shape, 3, 4096);
        }
        if let Some(frame::Frame { content: frame::Content::Transaction(records), .. }) = frame::parse(&bytes, 3, 4096)
        {
            crate::reading::data_is_valid(&*region, &bytes, 4096, &records);
        }
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
    let mut volume_rng = fastrand::Rng::with_seed(4);
    for _ in 0..ROUNDS / 10 {
        let volume = RawVolume::new(Arc::new(SimDisk::new(8 << 20)));
        let mut bytes = m.encode(1);
        bytes.truncate(bytes.len() - 4);
        mangle(&mut rng, &mut bytes);
        let crc = crc_at(1, 0, &bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        let region = volume.create(1, 16384).unwrap();
        region.write_at(&bytes, 0).unwrap();
        let _ = Manifest::read(&*region, bytes.len() as u64);

        let mut sb: Vec<u8> = std::iter::repeat_with(|| volume_rng.u8(..)).take(4092).collect();
        sb[..8].copy_from_slice(b"DARNER\r\n");
        sb[8..12].copy_from_slice(&1u32.to_le_bytes());
        let crc = crc_at(0, 0, &sb);
        sb.extend_from_slice(&crc.to_le_bytes());
        volume.write_super(0, &sb).unwrap();
        let read = Superblock::read(&volume).expect("its checksum is right");
        // Where it leads makes no sense, and must be refused.
        assert!(crate::Store::open(Arc::new(volume), &crate::OpenOptions::default()).is_err(), "{read:?}");
    }
}

#[test]
fn no_bytes_make_a_table_panic() {
    let mut rng = fastrand::Rng::with_seed(5);
    let mut builder = Builder::new(1);
    for i in 0..2000u64 {
        let key = Key::new(FilesetId(1), ObjectId(i / 3), Kind::DIRENT, &i.to_be_bytes());
        let value = (i % 5 != 0).then(|| Arc::from(i.to_le_bytes().as_slice()));
        builder.add(&Entry { key: key.as_bytes().to_vec(), tid: Tid(i + 1), value });
    }
    let good = builder.finish().unwrap();
    for _ in 0..ROUNDS / 20 {
        let mut bytes = good.clone();
        let at = rng.usize(..bytes.len());
        bytes[at] ^= 1 << rng.u8(0..8);
        // Reseal the parts that a change may hide behind: list and footer (blocks keep their checksum errors).
        crate::index::table::reseal(&mut bytes, 1);
        let volume = RawVolume::new(Arc::new(SimDisk::new(8 << 20)));
        let region = volume.create(1, bytes.len() as u64).unwrap();
        region.write_at(&bytes, 0).unwrap();
        let Ok(table) = Table::open(region, bytes.len() as u64) else { continue };
        let table = Arc::new(table);
        let Ok(mut cursor) = Cursor::first(table.clone(), None) else { continue };
        while cursor.key().is_some() && cursor.step().is_ok() {}
        let key = Key::new(FilesetId(1), ObjectId(100), Kind::DIRENT, &300u64.to_be_bytes());
        let _ = Cursor::seek(table, key.as_bytes(), Tid::MAX, None);
    }
}
