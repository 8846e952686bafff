//! Filesets and clones of them, at any moment and of one another, against plain maps by tid: after commits, flushes, merges,
//! a replay of the log, and with the index made anew from the segments.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use darner_store::volume::RawVolume;
use darner_store::volume::sim::SimDisk;
use darner_store::{
    CATALOGUE, Count, CreateOptions, FilesetId, IndexFrom, Key, Kind, Lineage, ObjectId, OpenOptions, Progress, Store,
    Tid,
};

const MAIN: FilesetId = FilesetId(1);
const SIZE: usize = 200_000;

/// What a fileset holds: entries of two directories, bytes of two files.
#[derive(Clone, Default)]
struct State {
    entries: BTreeMap<(u64, Vec<u8>), Vec<u8>>,
    files: BTreeMap<u64, Arc<Vec<u8>>>,
}

/// A fileset's states, oldest first; `None` once it is removed.
type History = Vec<(Tid, Option<State>)>;

struct World {
    rng: fastrand::Rng,
    disk: SimDisk,
    store: Option<Store>,
    model: BTreeMap<FilesetId, History>,
    last: u32,
    now: u64,
}

fn open(disk: &SimDisk, options: &OpenOptions) -> Store {
    Store::open(Arc::new(RawVolume::new(Arc::new(disk.clone()))), options).unwrap()
}

fn catalogue(tx: &mut darner_store::Tx<'_>, fileset: FilesetId, lineage: &Lineage) {
    let mut value = Vec::new();
    lineage.encode(&mut value);
    value.extend(b"what the filesystem says of it");
    tx.turn(CATALOGUE, 0, 0);
    tx.put(ObjectId(0), Kind::FILESET, &fileset.0.to_be_bytes(), &value);
}

impl World {
    fn new(seed: u64) -> World {
        let disk = SimDisk::new(1 << 30);
        let options = CreateOptions { now_ns: 1_000, seed: Some([5; 32]), ..CreateOptions::default() };
        Store::create(&RawVolume::new(Arc::new(disk.clone())), &options).unwrap();
        let store = open(&disk, &OpenOptions { memory: 1, ..OpenOptions::small() });
        let model = BTreeMap::from([(MAIN, vec![(Tid(1_000), Some(State::default()))])]);
        World { rng: fastrand::Rng::with_seed(seed), disk, store: Some(store), model, last: 1, now: 2_000 }
    }

    fn store(&self) -> &Store {
        self.store.as_ref().expect("open")
    }

    fn live(&self) -> Vec<FilesetId> {
        self.model.iter().filter(|(_, h)| h.last().is_some_and(|(_, s)| s.is_some())).map(|(f, _)| *f).collect()
    }

    fn state(&self, fileset: FilesetId, at: Tid) -> Option<State> {
        let history = &self.model[&fileset];
        history[..history.partition_point(|(tid, _)| *tid <= at)].last()?.1.clone()
    }

    fn change(&mut self) {
        let live = self.live();
        let fileset = self.rng.choice(live).expect("the main one");
        let mut state = self.state(fileset, Tid::MAX).expect("live");
        let (rng, store) = (&mut self.rng, self.store.as_ref().expect("open"));
        let mut tx = store.begin(fileset, self.now).unwrap();
        for _ in 0..rng.u8(1..5) {
            let (dir, file) = (ObjectId(rng.u64(10..12)), ObjectId(rng.u64(20..22)));
            let name = vec![b'a' + rng.u8(0..20); rng.usize(1..3)];
            let offset = rng.usize(0..SIZE - 1);
            let len = rng.usize(1..70_000).min(SIZE - offset);
            let bytes = Arc::make_mut(state.files.entry(file.0).or_insert_with(|| Arc::new(vec![0; SIZE])));
            match rng.u8(0..6) {
                0..2 => {
                    let value = vec![rng.u8(..); rng.usize(0..9)];
                    tx.put(dir, Kind::DIRENT, &name, &value);
                    state.entries.insert((dir.0, name), value);
                }
                2 => {
                    tx.delete(dir, Kind::DIRENT, &name);
                    state.entries.remove(&(dir.0, name));
                }
                3 => {
                    let data = vec![rng.u8(1..); len];
                    tx.write(file, offset as u64, &data).unwrap();
                    bytes[offset..offset + len].copy_from_slice(&data);
                }
                4 => {
                    let end = if rng.bool() { offset + len } else { SIZE };
                    let upto = if end == SIZE { u64::MAX } else { end as u64 };
                    tx.punch(file, offset as u64, upto - offset as u64).unwrap();
                    bytes[offset..end].fill(0);
                }
                _ => {
                    let pieces = tx.map(file, offset as u64, len as u64).unwrap();
                    let to = rng.usize(0..SIZE - len);
                    tx.share(file, to as u64, &pieces).unwrap();
                    bytes.copy_within(offset..offset + len, to);
                }
            }
        }
        tx.count(1, 10);
        let tid = tx.commit().unwrap();
        self.model.get_mut(&fileset).expect("it").push((tid, Some(state)));
    }

    fn clone(&mut self) {
        let live = self.live();
        let base = self.rng.choice(live).expect("the main one");
        let history = &self.model[&base];
        let (at, state) = history[self.rng.usize(..history.len())].clone();
        self.last += 1;
        let made = FilesetId(self.last);
        let mut tx = self.store().begin(MAIN, self.now).unwrap();
        let created = tx.tid();
        catalogue(&mut tx, made, &Lineage { created, base: Some((base, at)) });
        tx.commit().unwrap();
        assert!(self.store().bases().unwrap().contains(&(base, at)));
        self.model.insert(made, vec![(created, state)]);
    }

    fn remove(&mut self) {
        let live: Vec<FilesetId> = self.live().into_iter().filter(|f| *f != MAIN).collect();
        let Some(gone) = self.rng.choice(live) else { return };
        let count = self.store().counted(gone);
        let mut tx = self.store().begin(CATALOGUE, self.now).unwrap();
        tx.delete(ObjectId(0), Kind::FILESET, &gone.0.to_be_bytes());
        tx.turn(gone, -(count.objects as i64), -(count.live as i64));
        let tid = tx.commit().unwrap();
        self.model.get_mut(&gone).expect("it").push((tid, None));
    }

    fn reopen(&mut self) {
        let store = self.store.take().expect("open");
        match self.rng.bool() {
            true => store.close().unwrap(),
            // As a crash leaves it: replayed at the next open.
            false => drop(store.sync().unwrap()),
        }
        drop(store);
        self.store = Some(open(&self.disk, &OpenOptions { memory: 1, ..OpenOptions::small() }));
    }

    fn step(&mut self) {
        self.now += self.rng.u64(0..50);
        match self.rng.u8(0..40) {
            0 => self.clone(),
            1 if self.rng.u8(0..3) == 0 => self.remove(),
            2 => self.store().checkpoint().unwrap(),
            3 => while self.store().step().unwrap() == Progress::Worked {},
            4 => self.reopen(),
            _ => self.change(),
        }
    }

    /// Compares a fileset as of a moment.
    fn compare(&self, store: &Store, fileset: FilesetId, at: Tid) {
        let state = self.state(fileset, at).unwrap_or_default();
        for dir in 10..12 {
            let mut found = BTreeMap::new();
            let mut names = Vec::new();
            store
                .scan(fileset, ObjectId(dir), Kind::DIRENT, b"c", at, &mut |name, _, value| {
                    names.push(name.to_vec());
                    found.insert((dir, name.to_vec()), value.to_vec());
                    ControlFlow::Continue(())
                })
                .unwrap();
            assert!(names.is_sorted(), "in order");
            let from = (dir, b"c".to_vec());
            let due = state.entries.range(from..).filter(|((d, _), _)| *d == dir).map(|(k, v)| (k.clone(), v.clone()));
            assert_eq!(found, due.collect(), "directory {dir} of {fileset:?} at {at}");
            for name in [&b"a"[..], b"bb", b"e"] {
                let found = store.get(&Key::new(fileset, ObjectId(dir), Kind::DIRENT, name), at).unwrap();
                let due = state.entries.get(&(dir, name.to_vec()));
                assert_eq!(found.map(|v| v.value.to_vec()).as_ref(), due, "{dir}/{name:?} of {fileset:?} at {at}");
            }
        }
        for file in 20..22 {
            let mut bytes = vec![0; SIZE];
            store.read(&store.map(fileset, ObjectId(file), 0, SIZE as u64, at).unwrap(), &mut bytes).unwrap();
            let due = state.files.get(&file).map_or_else(|| vec![0; SIZE], |bytes| bytes.to_vec());
            assert!(bytes == due, "file {file} of {fileset:?} at {at}");
            let first = store.next_data(fileset, ObjectId(file), 0, at).unwrap().map(|(start, _)| start);
            assert_eq!(first, due.iter().position(|b| *b != 0).map(|at| at as u64), "data of {file}");
        }
    }

    fn compare_any(&mut self, store: &Store) {
        let filesets: Vec<FilesetId> = self.model.keys().copied().collect();
        for _ in 0..3 {
            let fileset = self.rng.choice(&filesets).copied().expect("one");
            let newest = store.tid().0;
            let moments = [newest, newest.saturating_sub(self.rng.u64(0..2_000)), self.rng.u64(1_000..=newest)];
            for at in moments {
                self.compare(store, fileset, Tid(at));
            }
            self.compare(store, fileset, Tid::MAX);
        }
    }

    fn compare_everywhere(&mut self) {
        let store = self.store.take().expect("open");
        self.compare_any(&store);
        if self.rng.u8(0..20) == 0 {
            store.sync().unwrap();
            let options =
                OpenOptions { read_only: true, index: IndexFrom::Segments, memory: 1, ..OpenOptions::small() };
            let anew = open(&self.disk, &options);
            self.compare_any(&anew);
            for fileset in self.model.keys() {
                assert_eq!(anew.counted(*fileset), store.counted(*fileset));
            }
            assert_eq!(anew.bases().unwrap(), store.bases().unwrap());
        }
        self.store = Some(store);
    }
}

#[test]
fn clones_equal_plain_maps_at_every_moment_across_crashes_and_rebuilds() {
    for seed in [1, 2, fastrand::u64(..)] {
        let failed = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for _ in 0..300 {
                world.step();
                world.compare_everywhere();
            }
            // (Of any seed it can't be said.)
            assert!(seed > 2 || world.model.len() > 3, "there were clones");
            world.store().sync().unwrap();
            let findings = world.store().check(&mut |_, _| ()).all();
            assert_eq!(findings, Vec::<String>::new());
        });
        if let Err(panic) = failed {
            eprintln!("failed with seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn a_power_failure_leaves_filesets_and_clones_as_they_were_at_some_transaction() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut world = World::new(seed);
    let base = world.disk.fork();
    world.disk.record();
    for _ in 0..150 {
        world.step();
        if world.rng.u8(0..4) == 0 {
            world.store().sync().unwrap();
        }
    }
    let events = world.disk.events();
    for _ in 0..40 {
        let n = world.rng.usize(..=events);
        let mut luck = fastrand::Rng::with_seed(n as u64);
        let disk = SimDisk::crashed(&base, &world.disk, n, &mut |_| luck.bool());
        let found = open(&disk, &OpenOptions { memory: 1, ..OpenOptions::small() });
        let tid = found.tid();
        let all: Vec<FilesetId> = world.model.keys().copied().collect();
        for fileset in world.rng.choose_multiple(&all, 3) {
            world.compare(&found, *fileset, tid);
            let at = Tid(world.rng.u64(1_000..=tid.0));
            world.compare(&found, *fileset, at);
        }
    }
}

#[test]
fn a_transaction_over_several_filesets_is_visible_all_at_once_and_counts_in_each() {
    let mut world = World::new(1);
    let other = FilesetId(2);
    let mut tx = world.store().begin(MAIN, 2_000).unwrap();
    tx.put(ObjectId(10), Kind::DIRENT, b"x", b"main");
    tx.count(1, 5);
    tx.turn(other, 3, 70);
    tx.put(ObjectId(10), Kind::DIRENT, b"x", b"other");
    assert_eq!(tx.write(ObjectId(20), 0, b"bytes").unwrap(), 5);
    assert_eq!(tx.counted(), Count::default());
    let tid = tx.commit().unwrap();
    for turn in 0..3 {
        let get = |fileset| {
            let found = world.store().get(&Key::new(fileset, ObjectId(10), Kind::DIRENT, b"x"), Tid::MAX).unwrap();
            found.map(|v| (v.tid, v.value.to_vec()))
        };
        assert_eq!((get(MAIN), get(other)), (Some((tid, b"main".to_vec())), Some((tid, b"other".to_vec()))));
        assert_eq!(world.store().counted(MAIN), Count { objects: 1, live: 5 });
        assert_eq!(world.store().counted(other), Count { objects: 3, live: 70 });
        let usage = world.store().usage().unwrap();
        assert_eq!((usage.objects, usage.live), (4, 75));
        if turn == 1 {
            world.store().checkpoint().unwrap();
        }
        let store = world.store.take().unwrap();
        store.sync().unwrap();
        drop(store);
        world.store = Some(open(&world.disk, &OpenOptions::default()));
    }
}

/// A merge that reaches the bottom drops tombstones into history, where reads of the present do not look.
#[test]
fn what_is_deleted_in_a_clone_stays_deleted_when_all_its_runs_are_merged() {
    let mut world = World::new(1);
    let mut tx = world.store().begin(MAIN, 2_000).unwrap();
    tx.put(ObjectId(10), Kind::DIRENT, b"x", b"there");
    tx.write(ObjectId(20), 0, &[7; 1000]).unwrap();
    let at = tx.commit().unwrap();
    let made = FilesetId(2);
    let mut tx = world.store().begin(MAIN, 3_000).unwrap();
    let created = tx.tid();
    catalogue(&mut tx, made, &Lineage { created, base: Some((MAIN, at)) });
    tx.commit().unwrap();
    for n in 0..12u64 {
        let mut tx = world.store().begin(made, 4_000 + n).unwrap();
        match n {
            0 => {
                tx.delete(ObjectId(10), Kind::DIRENT, b"x");
                tx.punch(ObjectId(20), 0, 1000).unwrap();
            }
            _ => tx.put(ObjectId(11), Kind::DIRENT, &n.to_be_bytes(), b"more"),
        }
        tx.commit().unwrap();
        world.store().checkpoint().unwrap();
        while world.store().step().unwrap() == Progress::Worked {}
    }
    for _ in 0..2 {
        let store = world.store();
        let x = |fileset, at| store.get(&Key::new(fileset, ObjectId(10), Kind::DIRENT, b"x"), at).unwrap().is_some();
        assert!(!x(made, Tid::MAX) && x(made, created) && x(MAIN, Tid::MAX));
        assert!(!x(made, Tid(created.0 - 1)), "before it was made a clone shows nothing");
        assert_eq!(store.next_data(made, ObjectId(20), 0, Tid::MAX).unwrap(), None);
        assert_eq!(store.next_data(made, ObjectId(20), 0, created).unwrap(), Some((0, 1000)));
        let mut versions = Vec::new();
        let mut note = |_: &[u8], tid: Tid, value: Option<&[u8]>| {
            versions.push((tid, value.is_some()));
            ControlFlow::Continue(())
        };
        store.versions(made, ObjectId(10), Kind::DIRENT, b"x", &mut note).unwrap();
        assert_eq!(versions, [(Tid(4_000), false), (at, true)]);
        world.reopen();
    }
}

#[test]
fn labels_and_orphans_do_not_show_through() {
    let world = World::new(1);
    let mut tx = world.store().begin(MAIN, 2_000).unwrap();
    tx.put(ObjectId(0), Kind::LABEL, b"l", b"");
    let at = tx.commit().unwrap();
    let mut tx = world.store().begin(MAIN, 3_000).unwrap();
    let created = tx.tid();
    catalogue(&mut tx, FilesetId(2), &Lineage { created, base: Some((MAIN, at)) });
    tx.commit().unwrap();
    let label = |fileset| world.store().get(&Key::new(fileset, ObjectId(0), Kind::LABEL, b"l"), Tid::MAX).unwrap();
    assert!(label(MAIN).is_some() && label(FilesetId(2)).is_none());
    let mut any = false;
    let mut visit = |_: &[u8], _: Tid, _: &[u8]| {
        any = true;
        ControlFlow::Break(())
    };
    world.store().scan(FilesetId(2), ObjectId(0), Kind::LABEL, b"", Tid::MAX, &mut visit).unwrap();
    assert!(!any);
}

#[test]
fn a_scan_of_a_fileset_or_clone_finds_all_however_many_they_are() {
    let world = World::new(1);
    let names = |n: u32| n.to_be_bytes();
    let mut tx = world.store().begin(MAIN, 2_000).unwrap();
    (0..1000).for_each(|n| tx.put(ObjectId(10), Kind::DIRENT, &names(3 * n), b"of main"));
    let at = tx.commit().unwrap();
    for (fileset, base) in [(FilesetId(2), None), (FilesetId(3), Some((MAIN, at)))] {
        let mut tx = world.store().begin(MAIN, 3_000 + u64::from(fileset.0)).unwrap();
        let created = tx.tid();
        catalogue(&mut tx, fileset, &Lineage { created, base });
        tx.turn(fileset, 0, 0);
        (0..1000).for_each(|n| tx.put(ObjectId(10), Kind::DIRENT, &names(3 * n + 1), b"its own"));
        (0..500).for_each(|n| tx.delete(ObjectId(10), Kind::DIRENT, &names(3 * n)));
        tx.write(ObjectId(20), 0, &vec![7; 1 << 20]).unwrap();
        tx.commit().unwrap();
        let mut found = Vec::new();
        let mut visit = |suffix: &[u8], _: Tid, _: &[u8]| {
            found.push(u32::from_be_bytes(suffix.try_into().unwrap()));
            ControlFlow::Continue(())
        };
        world.store().scan(fileset, ObjectId(10), Kind::DIRENT, b"", Tid::MAX, &mut visit).unwrap();
        let shown = |n: &u32| n % 3 == 1 || n.is_multiple_of(3) && base.is_some() && *n >= 1500;
        assert_eq!(found, (0..3000).filter(shown).collect::<Vec<_>>());
    }
}

/// A scan ended after 128 records: what a file had beyond 8 MiB survived its truncation, and was there again when it grew.
#[test]
fn nothing_is_left_of_a_file_of_a_fileset_that_is_truncated_however_long_it_was() {
    let world = World::new(1);
    let fileset = FilesetId(2);
    let mut tx = world.store().begin(MAIN, 3_000).unwrap();
    let created = tx.tid();
    catalogue(&mut tx, fileset, &Lineage { created, base: None });
    tx.commit().unwrap();
    let len = 20 << 20;
    for n in 0..20 {
        let mut tx = world.store().begin(fileset, 4_000 + n).unwrap();
        tx.write(ObjectId(20), n << 20, &vec![7; 1 << 20]).unwrap();
        tx.commit().unwrap();
    }
    let mut tx = world.store().begin(fileset, 5_000).unwrap();
    assert_eq!(tx.punch(ObjectId(20), 0, u64::MAX).unwrap(), -(len as i64));
    tx.commit().unwrap();
    assert_eq!(world.store().next_data(fileset, ObjectId(20), 0, Tid::MAX).unwrap(), None);
    let pieces = world.store().map(fileset, ObjectId(20), 0, len, Tid::MAX).unwrap();
    let mut found = vec![1; len as usize];
    world.store().read(&pieces, &mut found).unwrap();
    assert!(found.iter().all(|b| *b == 0));
}
