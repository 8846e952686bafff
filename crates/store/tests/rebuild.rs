//! The index derived anew from the segments: because it is lost, because it is rotten, or because somebody asks.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use common::{FS, Run, Threads, create, new_disk, open};
use darner_store::volume::sim::{Fault, SimDisk};
use darner_store::volume::{DirVolume, Disk, RawVolume, Volume};
use darner_store::{
    CATALOGUE, Count, CreateOptions, Error, FilesetId, Grid, IndexFrom, Key, Kind, Lineage, ObjectId, OpenOptions,
    Progress, ScrubReport, Store, Tid, Workers,
};

const TABLE: &[u8] = b"DARNTBL";
const MANIFEST: &[u8] = b"DARNMAN";

fn open_from(disk: &SimDisk, index: IndexFrom, memory: u64) -> Result<Store, Error> {
    let volume = RawVolume::new(Arc::new(disk.clone()));
    Store::open(Arc::new(volume), &OpenOptions { index, memory, table_size: 256 << 10, ..OpenOptions::small() })
}

/// Where on a disk some bytes are.
fn places(disk: &SimDisk, bytes: &[u8]) -> Vec<u64> {
    let mut found = Vec::new();
    for at in disk.written_pages() {
        // They may go on in the next page.
        let more = if at + 8192 <= disk.len().unwrap() { bytes.len() - 1 } else { 0 };
        let mut page = vec![0; 4096 + more];
        disk.read_at(&mut page, at).unwrap();
        found.extend((0..4096).filter(|i| page[*i..].starts_with(bytes)).map(|i| at + i as u64));
    }
    found
}

/// A life with everything in it; returns the store, ended in order.
fn live(disk: &SimDisk, run: &mut Run, lossy: bool) -> Tid {
    create(disk);
    let mut store = open(disk).unwrap();
    for step in 0..300 {
        run.transaction(&store).unwrap();
        match run.rng.u8(0..40) {
            0..=2 => store.checkpoint().unwrap(),
            3..=6 => drop(store.step().unwrap()),
            7 => drop(store.clean(run.now, &mut |_| ()).unwrap()),
            8 => {
                store.close().unwrap();
                drop(store);
                store = open(disk).unwrap();
            }
            9 => {
                store.sync().unwrap();
                drop(store);
                store = open(disk).unwrap();
            }
            _ => {}
        }
        if lossy && step == 150 {
            store.retain(FS, run.now, |r| r.with_grid(Grid::default())).unwrap();
        }
    }
    store.checkpoint().unwrap();
    run.transaction(&store).unwrap();
    store.sync().unwrap();
    store.tid()
}

fn equal(a: &Store, b: &Store) {
    assert_eq!(a.tid(), b.tid());
    assert_eq!(a.counted(FS), b.counted(FS));
    assert_eq!(a.usage().unwrap().live, b.usage().unwrap().live);
}

#[test]
fn a_rotten_index_is_noticed_and_derived_anew_and_every_moment_is_as_it_was() {
    let mut rot = BTreeMap::new();
    for seed in 0..8 {
        let disk = new_disk(1 << 30, seed);
        let mut run = Run::new(seed);
        live(&disk, &mut run, false);
        let tables = places(&disk, TABLE);
        assert!(!tables.is_empty());
        let whole = open(&disk.fork()).unwrap();
        // What is verified when a table is opened; and its blocks, some of which are read before the store is open.
        let places = tables.iter().flat_map(|at| [at + 10, at - 100, at - 200, at - 300, at - 400]);
        for at in places {
            let rotten = disk.fork();
            rotten.flip(at, 3);
            // (What lies there may be a table that is none any more.)
            let Err(e) = open_from(&rotten, IndexFrom::Tables, 0) else { continue };
            let Error::Corrupt { what, .. } = e else { panic!("{e}") };
            if !what.starts_with("table") {
                continue;
            }
            *rot.entry(what).or_insert(0) += 1;
            let store = open(&rotten).unwrap();
            run.compare_some(&store, 3);
            equal(&store, &whole);
            assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
            // It goes on, and is whole from now on.
            let mut on = Run { model: run.model.clone(), now: run.now, ..Run::new(seed) };
            on.transaction(&store).unwrap();
            store.close().unwrap();
            drop(store);
            let store = open_from(&rotten, IndexFrom::Tables, 0).unwrap();
            on.compare_some(&store, 3);
        }
    }
    println!("{rot:?}");
    assert!(rot["table block"] > 5 && rot["table footer"] > 5, "{rot:?}");
}

#[test]
fn rot_that_a_read_meets_is_healed_by_the_next_open() {
    let disk = new_disk(256 << 20, 0);
    large(&disk, 40);
    // In the middle of a table: what is verified when it is opened is whole.
    let table = *places(&disk, TABLE).last().unwrap();
    disk.flip(table - (512 << 10), 2);
    let store = open_from(&disk, IndexFrom::Tables, 0).unwrap();
    let read = |store: &Store| {
        let get = |n| store.get(&Key::new(FS, ObjectId(1000 + n), Kind::ATTR, &[]), Tid::MAX);
        (0..OBJECTS).find_map(|n| get(n).err())
    };
    let e = read(&store).expect("a block is rotten");
    assert!(matches!(e, Error::Corrupt { what: "table block", .. }), "{e}");
    while store.step().is_ok_and(|p| p == Progress::Worked) {}
    drop(store);
    assert!(open_from(&disk.fork(), IndexFrom::Tables, 0).is_err());
    let store = open_from(&disk, IndexFrom::TablesOrSegments, 0).unwrap();
    assert!(read(&store).is_none());
    is_large(&store, 40);
}

#[test]
fn one_that_is_asked_for_shows_the_same_where_history_was_given_up() {
    for seed in 20..26 {
        let disk = new_disk(1 << 30, seed);
        let mut run = Run::new(seed);
        live(&disk, &mut run, true);
        let whole = open(&disk.fork()).unwrap();
        let store = open_from(&disk, IndexFrom::Segments, 0).unwrap();
        equal(&store, &whole);
        run.compare(&store, Tid::MAX);
        store.clean(run.now, &mut |_| ()).unwrap();
        run.compare(&store, Tid::MAX);
        store.close().unwrap();
    }
}

#[test]
fn what_is_in_removed_filesets_is_not_counted_as_live() {
    let disk = new_disk(256 << 20, 0);
    create(&disk);
    let store = open(&disk).unwrap();
    store.retain(FS, 10, |r| r.with_grid(Grid::default())).unwrap();
    let one = Count { objects: 1, live: 5000 };
    let filesets = [(FilesetId(2), false), (FilesetId(3), true), (FilesetId(4), false), (FilesetId(5), true)];
    for (fileset, is_clone) in filesets {
        let mut tx = store.begin(fileset, 100).unwrap();
        let mut value = Vec::new();
        Lineage { created: tx.tid(), base: is_clone.then_some((FS, Tid(10))) }.encode(&mut value);
        tx.put(ObjectId(9), Kind::ATTR, &[], b"attributes");
        tx.write(ObjectId(9), 0, &[7; 5000]).unwrap();
        tx.count(1, 5000);
        tx.turn(CATALOGUE, 0, 0);
        tx.put(ObjectId(0), Kind::FILESET, &fileset.0.to_be_bytes(), &value);
        tx.commit().unwrap();
    }
    for gone in [FilesetId(2), FilesetId(3)] {
        let mut tx = store.begin(CATALOGUE, 200).unwrap();
        tx.delete(ObjectId(0), Kind::FILESET, &gone.0.to_be_bytes());
        tx.turn(gone, -1, -5000);
        tx.commit().unwrap();
    }
    let count_clone = Some((|_, _| Ok(Count { objects: 1, live: 5000 })) as darner_store::CountClone);
    let counts = |store: &Store| filesets.map(|(fileset, _)| store.counted(fileset));
    let there = [Count::default(), Count::default(), one, one];
    assert_eq!(counts(&store), there);
    store.close().unwrap();
    drop(store);
    let options = OpenOptions { index: IndexFrom::Segments, count_clone, ..OpenOptions::small() };
    let store = Store::open(raw(&disk), &options).unwrap();
    assert_eq!(counts(&store), there);
    assert_eq!(store.usage().unwrap().live, 10_000);
}

#[test]
fn a_manifest_has_a_copy_and_without_both_nothing_is_guessed() {
    let disk = new_disk(1 << 30, 2);
    let mut run = Run::new(2);
    live(&disk, &mut run, false);
    let found = places(&disk, MANIFEST);
    assert!(found.len() >= 2);
    for at in &found {
        let rotten = disk.fork();
        rotten.flip(at + 20, 1);
        run.compare_some(&open(&rotten).unwrap(), 3);
    }
    let lost = disk.fork();
    found.iter().for_each(|at| lost.flip(at + 20, 1));
    let e = open(&lost).err().unwrap();
    assert!(matches!(e, Error::Corrupt { what: "manifest", .. }), "{e}");
}

const OBJECTS: u64 = 60_000;

/// Attributes of an object, of so many bytes, that can't be compressed.
fn value(object: u64, len: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(object);
    std::iter::repeat_with(|| rng.u8(..)).take(len).collect()
}

/// A store with attributes of so many bytes in each of its objects: its index is larger than the memory it gets.
fn large(disk: &SimDisk, len: usize) {
    create(disk);
    let store = open_from(disk, IndexFrom::TablesOrSegments, 0).unwrap();
    write_large(&store, len);
    store.close().unwrap();
}

fn write_large(store: &Store, len: usize) {
    for first in (0..OBJECTS).step_by(500) {
        store.admit(500 * len as u64).unwrap();
        let mut tx = store.begin(FS, 100 + first).unwrap();
        (first..first + 500).for_each(|n| tx.put(ObjectId(1000 + n), Kind::ATTR, &[], &value(n, len)));
        tx.count(500, 0);
        tx.commit().unwrap();
        store.step().unwrap();
    }
}

fn is_large(store: &Store, len: usize) {
    assert_eq!(store.counted(FS).objects, OBJECTS);
    for n in (0..OBJECTS).step_by(977) {
        let key = Key::new(FS, ObjectId(1000 + n), Kind::ATTR, &[]);
        assert_eq!(store.get(&key, Tid::MAX).unwrap().unwrap().value.to_vec(), value(n, len));
    }
}

#[test]
fn an_index_larger_than_the_memory_is_derived_by_way_of_tables_and_a_crash_at_any_event_costs_nothing() {
    let base = new_disk(256 << 20, 1);
    large(&base, 40);
    places(&base, TABLE).iter().for_each(|at| base.flip(at + 10, 3));
    let disk = base.fork();
    disk.record();
    let store = open_from(&disk, IndexFrom::TablesOrSegments, 0).unwrap();
    is_large(&store, 40);
    assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
    drop(store);
    let events = disk.events();
    println!("{events} events");
    for n in 0..=events {
        for keeps in [false, true] {
            let crashed = SimDisk::crashed(&base, &disk, n, &mut |_| keeps);
            let store = open_from(&crashed, IndexFrom::TablesOrSegments, 0).unwrap();
            is_large(&store, 40);
        }
    }
}

/// Derives the index with threads beside, or without.
fn derive(volume: Arc<dyn Volume>, threads: bool) -> Result<Store, Error> {
    let workers = threads.then(|| Arc::new(Threads) as Arc<dyn Workers>);
    let options = OpenOptions { index: IndexFrom::Segments, memory: 0, workers, ..OpenOptions::small() };
    Store::open(volume, &options)
}

fn raw(disk: &SimDisk) -> Arc<dyn Volume> {
    Arc::new(RawVolume::new(Arc::new(disk.clone())))
}

/// The regions of a directory volume, and what is in them.
fn regions(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let all = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap());
    let named = all.map(|e| (e.file_name().into_string().unwrap(), e.path()));
    named
        .filter(|(name, _)| name.starts_with("region"))
        .map(|(name, path)| {
            let mut bytes = std::fs::read(path).unwrap();
            // (The superblock behind a manifest says where each of them is.)
            let sb = bytes.chunks(4096).position(|page| page.starts_with(b"DARNER\r\n"));
            bytes.truncate(sb.map_or(bytes.len(), |page| page * 4096));
            (name, bytes)
        })
        .collect()
}

#[test]
fn with_workers_every_byte_of_the_index_is_the_same() {
    for seed in 0..3 {
        let dirs = [0, 1].map(|_| tempfile::tempdir().unwrap());
        let volume = |i: usize| -> Arc<dyn Volume> { Arc::new(DirVolume::open(dirs[i].path(), true)) };
        let options = CreateOptions { now_ns: 1, seed: Some([3; 32]), size_limit: 1 << 30, ..CreateOptions::default() };
        Store::create(&*volume(0), &options).unwrap();
        let store = Store::open(volume(0), &OpenOptions::default()).unwrap();
        if seed == 0 {
            write_large(&store, 40);
        } else {
            let mut run = Run::new(seed);
            for i in 0..200 {
                run.transaction(&store).unwrap();
                if i % 60 == 59 {
                    store.clean(run.now, &mut |_| ()).unwrap();
                }
            }
        }
        store.close().unwrap();
        drop(store);
        for entry in std::fs::read_dir(dirs[0].path()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), dirs[1].path().join(entry.file_name())).unwrap();
        }
        for threads in [false, true] {
            let volume = || volume(usize::from(threads));
            derive(volume(), threads).unwrap().close().unwrap();
            // (What was in use may be given back later.)
            drop(Store::open(volume(), &OpenOptions::default()).unwrap());
        }
        let found = [0, 1].map(|i| regions(dirs[i].path()));
        assert!(found[0].keys().eq(found[1].keys()), "seed {seed}");
        assert!(found[0].len() > 3 && found[0] == found[1], "seed {seed}");
    }
}

#[test]
fn when_the_nth_operation_fails_workers_end_and_the_next_open_has_all() {
    let base = new_disk(256 << 20, 1);
    large(&base, 40);
    let step = if std::env::var_os("DARNER_VOLUME_ROUNDS").is_some() { 1 } else { 23 };
    for n in (1..).step_by(step) {
        let disk = base.fork();
        disk.fail_nth(n, if n % 2 == 0 { Fault::Io } else { Fault::NoSpace });
        let before = disk.operations();
        let outcome = derive(raw(&disk), true).map(drop);
        if disk.operations() - before < n {
            outcome.unwrap();
            break;
        }
        disk.fail_nth(u64::MAX / 2, Fault::Io);
        is_large(&derive(raw(&disk), true).unwrap(), 40);
    }
}

#[test]
fn a_full_volume_has_room_for_an_index_in_the_place_of_the_rotten_one() {
    // The index takes more than the reserve.
    let (disk, len) = (new_disk(192 << 20, 0), 600);
    large(&disk, len);
    let store = open(&disk).unwrap();
    let mut offset = 0;
    let bytes = value(0, 256 << 10);
    let full = loop {
        let outcome = store.admit(bytes.len() as u64).and_then(|()| {
            let mut tx = store.begin(FS, 1 << 40)?;
            tx.write(ObjectId(5), offset, &bytes)?;
            tx.commit()
        });
        match outcome {
            Ok(_) => offset += bytes.len() as u64,
            Err(e) => break e,
        }
        store.step().unwrap();
    };
    assert!(matches!(full, Error::NoSpace { .. }), "{full}");
    store.close().unwrap();
    drop(store);
    places(&disk, TABLE).iter().for_each(|at| disk.flip(at + 10, 3));
    let store = open_from(&disk, IndexFrom::TablesOrSegments, 0).unwrap();
    is_large(&store, len);
}

/// The files of a directory that hold a table or a manifest.
fn files(dir: &Path, what: &[u8]) -> Vec<std::path::PathBuf> {
    let all = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let holds = |path: &std::path::PathBuf| {
        let bytes = std::fs::read(path).unwrap();
        path.file_name().unwrap().to_str().unwrap().starts_with("region")
            && bytes.windows(what.len()).any(|w| w == what)
    };
    all.filter(holds).collect()
}

#[test]
fn a_directory_without_its_index_files_opens_and_shows_every_moment() {
    for (seed, lost) in [(0, vec![TABLE]), (1, vec![MANIFEST]), (2, vec![TABLE, MANIFEST]), (3, vec![TABLE, MANIFEST])]
    {
        println!("seed {seed}");
        let dir = tempfile::tempdir().unwrap();
        let volume = || -> Arc<dyn Volume> { Arc::new(DirVolume::open(dir.path(), true)) };
        let options = CreateOptions { now_ns: 1, seed: Some([3; 32]), size_limit: 1 << 30, ..CreateOptions::default() };
        Store::create(&*volume(), &options).unwrap();
        let mut run = Run::new(seed);
        let store = Store::open(volume(), &OpenOptions::default()).unwrap();
        for step in 0..300 {
            run.transaction(&store).unwrap();
            match step % 60 {
                20 => store.checkpoint().unwrap(),
                40 => drop(store.clean(run.now, &mut |_| ()).unwrap()),
                50 => drop(store.step().unwrap()),
                _ => {}
            }
        }
        store.sync().unwrap();
        let (tid, counts) = (store.tid(), store.counted(FS));
        drop(store);
        for what in &lost {
            let gone = files(dir.path(), what);
            assert!(!gone.is_empty());
            gone.iter().for_each(|path| std::fs::remove_file(path).unwrap());
        }
        let store = Store::open(volume(), &OpenOptions::default()).unwrap();
        assert_eq!((store.tid(), store.counted(FS)), (tid, counts));
        run.compare_some(&store, 5);
        assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
        run.transaction(&store).unwrap();
        store.close().unwrap();
        drop(store);
        let tables = OpenOptions { index: IndexFrom::Tables, ..OpenOptions::default() };
        run.compare_some(&Store::open(volume(), &tables).unwrap(), 5);
    }
}

#[test]
fn where_a_segment_is_damaged_too_what_is_left_of_the_index_is_served() {
    let disk = new_disk(256 << 20, 0);
    large(&disk, 40);
    let table = *places(&disk, TABLE).last().unwrap();
    disk.flip(table - (512 << 10), 2);
    let read = |store: &Store, n: u64| store.get(&Key::new(FS, ObjectId(1000 + n), Kind::ATTR, &[]), Tid::MAX);
    let store = open_from(&disk, IndexFrom::Tables, 0).unwrap();
    assert!((0..OBJECTS).any(|n| read(&store, n).is_err()), "a block is rotten");
    // The next open is told of it.
    while store.step().is_ok_and(|p| p == Progress::Worked) {}
    drop(store);
    disk.flip(places(&disk, b"DTX1")[0] + 8, 1);
    assert!(open_from(&disk.fork(), IndexFrom::Segments, 0).is_err());
    for _ in 0..2 {
        let store = open_from(&disk, IndexFrom::TablesOrSegments, 0).unwrap();
        let lost = (0..OBJECTS).filter(|n| read(&store, *n).is_err()).count() as u64;
        assert!(lost > 0 && lost < OBJECTS / 10, "{lost}");
        let right = |n: &u64| read(&store, *n).is_ok_and(|found| found.unwrap().value[..] == value(*n, 40));
        assert_eq!((0..OBJECTS).filter(right).count() as u64, OBJECTS - lost);
        let mut tx = store.begin(FS, 1 << 40).unwrap();
        tx.put(ObjectId(7), Kind::ATTR, &[], b"new");
        tx.commit().unwrap();
        store.close().unwrap();
    }
}

#[test]
fn a_damaged_end_of_the_log_can_be_looked_at_as_it_was_before_and_is_not_written_over() {
    let disk = new_disk(256 << 20, 0);
    create(&disk);
    let store = open(&disk).unwrap();
    store.checkpoint().unwrap();
    let put = |n: u64| {
        let mut tx = store.begin(FS, 1000 + n).unwrap();
        tx.put(ObjectId(10 + n), Kind::ATTR, &[], &n.to_le_bytes());
        tx.commit().unwrap();
        store.sync().unwrap();
    };
    (0..10).for_each(put);
    drop(store);
    let frames = places(&disk, b"DTX1");
    disk.flip(frames[frames.len() - 5] + 8, 1);
    let before = disk.fork();
    let said = open(&disk).map(drop).unwrap_err().to_string();
    assert!(said.contains("frame of the log") && said.contains("--degraded"), "{said}");
    let volume = Arc::new(RawVolume::new(Arc::new(disk.clone())));
    let store = Store::open(volume, &OpenOptions { degraded: true, ..OpenOptions::small() }).unwrap();
    assert!(store.is_cut() && store.is_read_only());
    let there = |n: u64| store.get(&Key::new(FS, ObjectId(10 + n), Kind::ATTR, &[]), Tid::MAX).unwrap().is_some();
    assert_eq!((0..10).filter(|n| there(*n)).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    store.close().unwrap();
    let page = |disk: &SimDisk, at: u64| {
        let mut page = vec![0; 4096];
        disk.read_at(&mut page, at).unwrap();
        page
    };
    assert_eq!(disk.written_pages(), before.written_pages());
    assert!(disk.written_pages().iter().all(|at| page(&disk, *at) == page(&before, *at)));
}

#[test]
fn a_segment_or_pack_whose_file_is_gone_costs_what_was_in_it_only() {
    let dir = tempfile::tempdir().unwrap();
    let volume = |dir: &Path| -> Arc<dyn Volume> { Arc::new(DirVolume::open(dir, true)) };
    let options = CreateOptions { now_ns: 1, seed: Some([3; 32]), size_limit: 1 << 30, ..CreateOptions::default() };
    Store::create(&*volume(dir.path()), &options).unwrap();
    let store = Store::open(volume(dir.path()), &OpenOptions::default()).unwrap();
    store.retain(FS, 10, |r| r.with_grid(Grid::default())).unwrap();
    let mut written = BTreeMap::new();
    for n in 0..240u64 {
        let mut tx = store.begin(FS, 100 + n).unwrap();
        // Half of them are overwritten.
        let (object, bytes) = (ObjectId(if n % 2 == 0 { 50 } else { 100 + n }), value(n, 200_000));
        tx.write(object, 0, &bytes).unwrap();
        tx.commit().unwrap();
        written.insert(object, bytes);
        if n < 120 && n % 30 == 29 {
            store.clean(100 + n, &mut |_| ()).unwrap();
            store.checkpoint().unwrap();
        }
    }
    store.close().unwrap();
    drop(store);
    let readable = |store: &Store| {
        let read = |(object, bytes): (&ObjectId, &Vec<u8>)| {
            let mut found = vec![0; bytes.len()];
            let pieces = store.map(FS, *object, 0, bytes.len() as u64, Tid::MAX).unwrap();
            let outcome = store.read(&pieces, &mut found);
            outcome.is_ok_and(|()| {
                assert!(found == *bytes);
                true
            })
        };
        written.iter().filter(|(object, bytes)| read((object, bytes))).count()
    };
    let mut kinds = BTreeMap::new();
    for kind in [&b"DARNSEG"[..], b"DARNPAK"] {
        for path in files(dir.path(), kind) {
            let copy = tempfile::tempdir().unwrap();
            for entry in std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap()) {
                std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
            }
            let gone = copy.path().join(path.file_name().unwrap());
            std::fs::remove_file(&gone).unwrap();
            match Store::open(volume(copy.path()), &OpenOptions::default()) {
                Ok(store) => {
                    let n = readable(&store);
                    assert!(!store.check(&mut |_, _| ()).all().is_empty());
                    let mut tx = store.begin(FS, 1 << 40).unwrap();
                    tx.write(ObjectId(7), 0, b"new").unwrap();
                    tx.commit().unwrap();
                    let mut report = ScrubReport::default();
                    while store.step_scrub(&mut report, 1 << 40).unwrap() {}
                    assert!(!report.damages.is_empty());
                    store.close().unwrap();
                    kinds.entry(kind).or_insert_with(Vec::new).push(n);
                }
                // What the log ends in.
                Err(e) => {
                    assert!(e.to_string().contains("No such file"), "{e}");
                    let options = OpenOptions { degraded: true, ..OpenOptions::default() };
                    let store = Store::open(volume(copy.path()), &options).unwrap();
                    assert!(store.is_cut() && readable(&store) > 0);
                }
            }
        }
    }
    println!("{kinds:?}");
    let some = |n: &usize| *n < written.len();
    assert!(kinds.len() == 2 && kinds.values().all(|all| all.iter().any(some)), "{kinds:?}");
}

/// Many objects, some of which are overwritten; returns what they hold.
fn write_objects(store: &Store) -> BTreeMap<ObjectId, Vec<u8>> {
    let mut written = BTreeMap::new();
    for n in 0..160u64 {
        let mut tx = store.begin(FS, 100 + n).unwrap();
        let (object, bytes) = (ObjectId(if n % 4 == 0 { 50 } else { 100 + n }), value(n, 200_000));
        tx.write(object, 0, &bytes).unwrap();
        tx.commit().unwrap();
        written.insert(object, bytes);
    }
    written
}

/// A device or image of which the end is gone was refused where any region had been there, by every command.
#[test]
fn a_volume_that_lost_its_end_shows_what_is_left_and_costs_what_was_there_only() {
    let new = || SimDisk::new(96 << 20);
    // How many objects are left where so much is: of a store that opens, and of one that `--degraded` shows.
    let mut found = Vec::new();
    for disk in [new(), new().in_pieces(300 << 10), new().from_the_end()] {
        let (mut opened, mut shown) = (Vec::new(), Vec::new());
        create(&disk);
        let store = open(&disk).unwrap();
        let written = write_objects(&store);
        store.close().unwrap();
        drop(store);
        let written = &written;
        let readable = |store: &Store| {
            let read = |(object, bytes): (&ObjectId, &Vec<u8>)| {
                let mut found = vec![0; bytes.len()];
                let Ok(pieces) = store.map(FS, *object, 0, bytes.len() as u64, Tid::MAX) else { return false };
                let whole = pieces.iter().map(|p| p.len).sum::<u64>() == bytes.len() as u64;
                let outcome = store.read(&pieces, &mut found);
                // (Of what was overwritten, an earlier state may be all that there is of a prefix.)
                whole && outcome.is_ok() && (found == *bytes || store.is_cut() && *object == ObjectId(50))
            };
            written.iter().filter(|(object, bytes)| read((object, bytes))).count()
        };
        for len in (1..96).step_by(5).map(|n| n << 20) {
            let cut = disk.fork();
            cut.set_len(len).unwrap();
            let options = OpenOptions { degraded: true, ..OpenOptions::small() };
            let volume = || Arc::new(RawVolume::new(Arc::new(cut.clone())));
            let of_degraded = Store::open(volume(), &options).map(|store| readable(&store));
            match Store::open(volume(), &OpenOptions::small()) {
                Ok(store) => {
                    let n = readable(&store);
                    assert!(n >= of_degraded.unwrap());
                    assert!(n == written.len() || !store.check(&mut |_, _| ()).all().is_empty());
                    let mut tx = store.begin(FS, 1 << 40).unwrap();
                    tx.write(ObjectId(7), 0, b"new").unwrap();
                    tx.commit().unwrap();
                    let mut report = ScrubReport::default();
                    while store.step_scrub(&mut report, 1 << 40).unwrap() {}
                    store.close().unwrap();
                    drop(store);
                    assert_eq!(readable(&open(&cut).unwrap()), n);
                    opened.push(n);
                }
                // What the log ends in is not whole, or the list of segments is gone.
                Err(e) => {
                    assert!(e.to_string().contains("end of the volume"), "{e}");
                    assert_eq!(e.to_string().contains("--degraded"), of_degraded.is_ok(), "{e}");
                    shown.extend(of_degraded);
                }
            }
        }
        assert!(shown.is_sorted() && opened.is_sorted() && opened.last() == Some(&written.len()));
        found.push((opened[0], shown.len()));
    }
    let all = found[0].0;
    assert!(found[1].1 > 10 && found[2].0 > 0 && found[2].0 < all / 4, "{found:?}");
}
