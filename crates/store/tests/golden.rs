//! A store written by an earlier version of this code opens and shows what it did, and today's code writes the same
//! bytes. A change that makes this fail needs a new format version (docs/format.md §Versions). Images of earlier versions
//! stay and open.

use std::sync::Arc;

use darner_store::volume::sim::SimDisk;
use darner_store::volume::{Copies, Disk, RawVolume, Volume};
use darner_store::{
    CATALOGUE, Count, CreateOptions, FilesetId, Key, Kind, Lineage, ObjectId, OpenOptions, Progress, Store, Tid,
};

const FS: FilesetId = FilesetId(1);
/// A clone, since version 2.
const OTHER: FilesetId = FilesetId(2);
const SIZE: u64 = 64 << 20;
const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v9.bin");
/// Its second volume, on which regions are scattered.
const SECOND: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v9-second.bin");
const VERSION_8: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v8.bin");
const VERSION_8_SECOND: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v8-second.bin");
const VERSION_1: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v1.bin");
const VERSION_7: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v7.bin");
const VERSION_7_SECOND: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v7-second.bin");
const VERSION_6: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v6.bin");
const VERSION_6_SECOND: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v6-second.bin");
const VERSION_5: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v5.bin");
const VERSION_5_SECOND: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v5-second.bin");
const VERSION_4: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v4.bin");
const VERSION_4_SECOND: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v4-second.bin");
const VERSION_3: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v3.bin");
const VERSION_3_SECOND: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v3-second.bin");
const VERSION_2: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v2.bin");

fn volume(disk: &SimDisk) -> Arc<dyn Volume> {
    Arc::new(RawVolume::new(Arc::new(disk.clone())))
}

fn open(disks: &[SimDisk]) -> Store {
    let volumes: Vec<_> = disks.iter().map(volume).collect();
    Store::open_volumes(&volumes, &OpenOptions { opening: Some(77), ..OpenOptions::default() }).unwrap()
}

fn text(n: usize) -> Vec<u8> {
    (0..).flat_map(|i: u32| format!("line {i}\n").into_bytes()).take(n).collect()
}

/// Every structure of the format, from fixed input.
fn written() -> [SimDisk; 2] {
    let disk = SimDisk::new(SIZE);
    let second = SimDisk::new(SIZE).in_pieces(32 << 10);
    let options = CreateOptions { now_ns: 1_000, seed: Some([5; 32]), ..CreateOptions::default() };
    Store::create(&*volume(&disk), &options).unwrap();
    let store = open(std::slice::from_ref(&disk));
    let (a, b) = (store.new_object(), store.new_object());
    let mut tx = store.begin(FS, 2_000).unwrap();
    tx.put(a, Kind::ATTR, b"", b"attributes of a");
    tx.put(a, Kind::DIRENT, b"name", b"leads to b");
    tx.write(b, 0, &text(100_000)).unwrap();
    tx.write(b, 200_000, &[1, 2, 3]).unwrap();
    tx.count(2, 100_003);
    tx.commit().unwrap();
    store.checkpoint().unwrap();
    let mut tx = store.begin(FS, 3_000).unwrap();
    tx.delete(a, Kind::DIRENT, b"name");
    tx.write(b, 10, b"changed").unwrap();
    tx.punch(b, 60_000, 10_000).unwrap();
    tx.commit().unwrap();
    let mut tx = store.begin(FS, 3_500).unwrap();
    tx.turn(CATALOGUE, 0, 0);
    let mut value = Vec::new();
    Lineage { created: tx.tid(), base: Some((FS, Tid(2_000))) }.encode(&mut value);
    tx.put(ObjectId(0), Kind::FILESET, &OTHER.0.to_be_bytes(), &value);
    tx.turn(OTHER, 2, 100_003);
    tx.put(b, Kind::ATTR, b"", b"attributes in the clone");
    tx.commit().unwrap();
    let mut tx = store.begin(OTHER, 3_600).unwrap();
    tx.write(b, 0, b"clone").unwrap();
    tx.commit().unwrap();
    store.checkpoint().unwrap();
    assert_eq!(store.add_volume(volume(&second), 0).unwrap(), 1);
    let first = store.region_to(1, 1).unwrap();
    while store.step_move(&first, 1 << 20).unwrap() == Progress::Worked {}
    store.set_copies(Copies::Index).unwrap();
    store.keep_twice(OTHER, true).unwrap();
    while store.step_copies(1 << 20).unwrap() == Progress::Worked {}
    assert_eq!(store.left_to_copy(), (0, 0));
    let mut tx = store.begin(FS, 4_000).unwrap();
    let pieces = tx.map(b, 0, 50_000).unwrap();
    tx.share(a, 5, &pieces).unwrap();
    tx.commit().unwrap();
    // Left as a crash leaves it: the last transaction is in the log only.
    store.sync().unwrap();
    [disk, second]
}

fn pages(disk: &SimDisk) -> Vec<u8> {
    let mut out = Vec::new();
    for at in disk.written_pages() {
        let mut page = [0; 4096];
        disk.read_at(&mut page, at).unwrap();
        if page.iter().any(|b| *b != 0) {
            out.extend_from_slice(&at.to_le_bytes());
            out.extend_from_slice(&page);
        }
    }
    lz4_flex::compress_prepend_size(&out)
}

fn fixture(path: &str) -> SimDisk {
    let disk = SimDisk::new(SIZE);
    let bytes = lz4_flex::decompress_size_prepended(&std::fs::read(path).unwrap()).unwrap();
    for page in bytes.chunks(8 + 4096) {
        disk.write_at(&page[8..], u64::from_le_bytes(page[..8].try_into().unwrap())).unwrap();
    }
    disk
}

#[test]
fn todays_code_writes_the_bytes_of_the_golden_image() {
    for (disk, path) in written().iter().zip([FIXTURE, SECOND]) {
        let pages = pages(disk);
        if std::env::var_os("DARNER_BLESS").is_some() {
            std::fs::write(path, &pages).unwrap();
        }
        assert!(pages == std::fs::read(path).unwrap(), "the bytes on disk changed: this needs a new format version");
    }
}

#[test]
fn the_golden_images_open_and_show_every_moment() {
    for (paths, filesets) in [
        (vec![VERSION_1], 1),
        (vec![VERSION_2], 2),
        (vec![VERSION_3, VERSION_3_SECOND], 2),
        (vec![VERSION_4, VERSION_4_SECOND], 2),
        (vec![VERSION_5, VERSION_5_SECOND], 2),
        (vec![VERSION_6, VERSION_6_SECOND], 2),
        (vec![VERSION_7, VERSION_7_SECOND], 2),
        (vec![VERSION_8, VERSION_8_SECOND], 2),
        (vec![FIXTURE, SECOND], 2),
        (vec![SECOND, FIXTURE], 2),
    ] {
        let disks: Vec<SimDisk> = paths.into_iter().map(fixture).collect();
        for _ in 0..2 {
            // The version is today's from the first time on.
            let store = open(&disks);
            shows_every_moment(&store);
            let count = Count { objects: 2, live: 100_003 };
            assert_eq!(store.counted(FS), count);
            assert_eq!(
                (store.usage().unwrap().objects, store.usage().unwrap().live),
                (filesets * 2, filesets * 100_003)
            );
            if filesets == 2 {
                assert_eq!(store.counted(OTHER), count);
                shows_the_clone(&store);
            }
        }
    }
}

fn shows_the_clone(store: &Store) {
    let read = |at| {
        let mut buf = vec![0; 200_003];
        store.read(&store.map(OTHER, ObjectId(3), 0, 200_003, at).unwrap(), &mut buf).unwrap();
        buf
    };
    assert!(read(Tid::MAX)[5..100_000] == text(100_000)[5..] && read(Tid::MAX).starts_with(b"clone"));
    assert_eq!(read(Tid(3_499)), vec![0; 200_003]);
    assert_eq!(store.beneath(OTHER), Some((FS, Tid(2_000))));
}

fn shows_every_moment(store: &Store) {
    assert_eq!((store.tid(), store.birth()), (Tid(4_000), Tid(1_000)));
    let (a, b) = (ObjectId(2), ObjectId(3));
    let name = Key::new(FS, a, Kind::DIRENT, b"name");
    assert_eq!(store.get(&name, Tid(1_999)).unwrap(), None);
    assert_eq!(&*store.get(&name, Tid(2_999)).unwrap().unwrap().value, b"leads to b");
    assert_eq!(store.get(&name, Tid::MAX).unwrap(), None);
    let read = |object, at| {
        let mut buf = vec![0; 200_003];
        store.read(&store.map(FS, object, 0, 200_003, at).unwrap(), &mut buf).unwrap();
        buf
    };
    let mut first = text(100_000);
    first.resize(200_000, 0);
    first.extend([1, 2, 3]);
    assert!(read(b, Tid(2_000)) == first);
    let mut second = first.clone();
    second[10..17].copy_from_slice(b"changed");
    second[60_000..70_000].fill(0);
    assert!(read(b, Tid(3_000)) == second && read(b, Tid::MAX) == second);
    assert!(read(a, Tid::MAX)[5..50_005] == second[..50_000] && read(a, Tid(3_999)).iter().all(|b| *b == 0));
    assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
}
