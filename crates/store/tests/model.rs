//! The store against a plain model by tid: random transactions, flushes, merges, clean and unclean reopening, and a power
//! failure after every write and flush.

use std::collections::BTreeMap;
use std::sync::Arc;

use darner_store::volume::RawVolume;
use darner_store::volume::sim::{Fault, SimDisk};
use darner_store::{CreateOptions, Error, FilesetId, Key, Kind, ObjectId, OpenOptions, Store, Tid};

const FS: FilesetId = FilesetId(1);
const FILE_MAX: u64 = 300 << 10;

type Content = BTreeMap<u64, Vec<u8>>;

/// Everything, at every tid.
#[derive(Default)]
struct Model {
    keys: BTreeMap<Vec<u8>, BTreeMap<Tid, Option<Vec<u8>>>>,
    files: BTreeMap<u64, BTreeMap<Tid, Arc<Vec<u8>>>>,
    tids: Vec<Tid>,
}

impl Model {
    fn key(&self, key: &[u8], at: Tid) -> Option<&Vec<u8>> {
        self.keys.get(key)?.range(..=at).next_back()?.1.as_ref()
    }

    fn file(&self, object: u64, at: Tid) -> Arc<Vec<u8>> {
        let versions = self.files.get(&object);
        versions.and_then(|v| v.range(..=at).next_back()).map(|(_, c)| c.clone()).unwrap_or_default()
    }

    /// Forgets what is newer than `last`.
    fn cut(&mut self, last: Tid) {
        self.tids.retain(|t| *t <= last);
        self.keys.values_mut().for_each(|v| v.retain(|t, _| *t <= last));
        self.files.values_mut().for_each(|v| v.retain(|t, _| *t <= last));
    }
}

struct Run {
    rng: fastrand::Rng,
    model: Model,
    now: u64,
}

fn open(disk: &SimDisk) -> Result<Store, Error> {
    let options = OpenOptions { memory: 16 << 20, ..OpenOptions::default() };
    Store::open(Arc::new(RawVolume::new(Arc::new(disk.clone()))), &options)
}

fn create(disk: &SimDisk) {
    let volume = RawVolume::new(Arc::new(disk.clone()));
    let options = CreateOptions { now_ns: 5, seed: Some([3; 32]), ..CreateOptions::default() };
    Store::create(&volume, &options).unwrap();
}

impl Run {
    fn new(seed: u64) -> Run {
        Run { rng: fastrand::Rng::with_seed(seed), model: Model::default(), now: 10 }
    }

    fn data(&mut self, len: usize) -> Vec<u8> {
        match self.rng.u8(0..3) {
            0 => std::iter::repeat_with(|| self.rng.u8(..)).take(len).collect(),
            1 => vec![self.rng.u8(1..); len],
            _ => format!("{} ", self.rng.u32(..)).into_bytes().into_iter().cycle().take(len).collect(),
        }
    }

    /// One random transaction, in the store and in the model.
    fn transaction(&mut self, store: &Store) -> Result<(), Error> {
        self.now += self.rng.u64(0..50);
        let mut tx = store.begin(FS, self.now)?;
        let tid = tx.tid();
        let mut keys: Vec<(Vec<u8>, Option<Vec<u8>>)> = Vec::new();
        let mut files: Content = BTreeMap::new();
        for _ in 0..self.rng.usize(1..4) {
            let object = self.rng.u64(1..6);
            let now = files.get(&object).cloned().unwrap_or_else(|| self.model.file(object, Tid::MAX).to_vec());
            match self.rng.u8(0..8) {
                0..=2 => {
                    let name = format!("n{}", self.rng.u32(0..40)).into_bytes();
                    let key = Key::new(FS, ObjectId(object), Kind::DIRENT, &name).as_bytes().to_vec();
                    if self.rng.u8(0..4) == 0 {
                        tx.delete(ObjectId(object), Kind::DIRENT, &name);
                        keys.push((key, None));
                    } else {
                        let value = self.data(12);
                        tx.put(ObjectId(object), Kind::DIRENT, &name, &value);
                        keys.push((key, Some(value)));
                    }
                }
                3..=5 => {
                    let offset = self.rng.u64(0..FILE_MAX);
                    let most = if self.rng.bool() { 300 } else { FILE_MAX - offset };
                    let len = self.rng.u64(0..=most.min(FILE_MAX - offset));
                    let data = self.data(len as usize);
                    let grown = tx.write(ObjectId(object), offset, &data)?;
                    assert!(grown >= 0 && grown <= len as i64);
                    files.insert(object, overlay(now, offset, &data));
                }
                6 => {
                    let offset = self.rng.u64(0..FILE_MAX);
                    let len = if self.rng.bool() { u64::MAX - offset } else { self.rng.u64(0..FILE_MAX - offset) };
                    tx.punch(ObjectId(object), offset, len)?;
                    let n = len.min((now.len() as u64).saturating_sub(offset));
                    files.insert(object, overlay(now, offset, &vec![0; n as usize]));
                }
                _ => {
                    let (from, len) = (self.rng.u64(0..FILE_MAX / 2), self.rng.u64(0..FILE_MAX / 2));
                    let to = self.rng.u64(0..FILE_MAX / 2);
                    let source = self.rng.u64(1..6);
                    let pieces = tx.map(ObjectId(source), from, len)?;
                    let mut bytes = vec![0; len as usize];
                    let whole =
                        files.get(&source).cloned().unwrap_or_else(|| self.model.file(source, Tid::MAX).to_vec());
                    read_model(&whole, from, &mut bytes);
                    tx.share(ObjectId(object), to, &pieces)?;
                    files.insert(object, overlay(now, to, &bytes));
                }
            }
        }
        if self.rng.u8(0..10) == 0 {
            return Ok(()); // dropped: it never was
        }
        tx.commit()?;
        for (key, value) in keys {
            self.model.keys.entry(key).or_default().insert(tid, value);
        }
        for (object, content) in files {
            self.model.files.entry(object).or_default().insert(tid, Arc::new(content));
        }
        self.model.tids.push(tid);
        Ok(())
    }

    /// Compares everything as of `at`.
    fn compare(&self, store: &Store, at: Tid) {
        for object in 1..6 {
            let mut found = BTreeMap::new();
            store
                .scan(FS, ObjectId(object), Kind::DIRENT, b"", at, &mut |suffix, _, value| {
                    found.insert(
                        Key::new(FS, ObjectId(object), Kind::DIRENT, suffix).as_bytes().to_vec(),
                        value.to_vec(),
                    );
                    std::ops::ControlFlow::Continue(())
                })
                .unwrap();
            let prefix = Key::new(FS, ObjectId(object), Kind::DIRENT, b"").as_bytes().to_vec();
            let expected: BTreeMap<_, _> = (self.model.keys.keys().filter(|k| k.starts_with(&prefix)))
                .filter_map(|k| Some((k.clone(), self.model.key(k, at)?.clone())))
                .collect();
            assert_eq!(found, expected, "names of {object} as of {at}");
            for n in 0..40 {
                let key = Key::new(FS, ObjectId(object), Kind::DIRENT, format!("n{n}").as_bytes());
                let found = store.get(&key, at).unwrap().map(|v| v.value.to_vec());
                assert_eq!(found.as_ref(), self.model.key(key.as_bytes(), at), "{key:?} as of {at}");
            }
            let expected = self.model.file(object, at);
            let pieces = store.map(FS, ObjectId(object), 0, FILE_MAX, at).unwrap();
            let mut found = vec![0; FILE_MAX as usize];
            store.read(&pieces, &mut found).unwrap();
            let mut whole = vec![0; FILE_MAX as usize];
            read_model(&expected, 0, &mut whole);
            assert!(
                found == whole,
                "bytes of {object} as of {at}: first difference at {:?}",
                found.iter().zip(&whole).position(|(a, b)| a != b)
            );
            let data = store.next_data(FS, ObjectId(object), 0, at).unwrap();
            if let Some((from, _)) = data {
                assert!(whole[..from as usize].iter().all(|b| *b == 0));
            } else {
                assert!(whole.iter().all(|b| *b == 0));
            }
        }
    }

    fn compare_some(&mut self, store: &Store, n: usize) {
        self.compare(store, Tid::MAX);
        for _ in 0..n {
            let at = match self.rng.u8(0..4) {
                0 => Tid(self.rng.u64(0..self.now + 10)),
                _ if self.model.tids.is_empty() => Tid(1),
                _ => self.model.tids[self.rng.usize(..self.model.tids.len())],
            };
            self.compare(store, at);
        }
    }
}

fn overlay(mut content: Vec<u8>, offset: u64, data: &[u8]) -> Vec<u8> {
    let end = offset as usize + data.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset as usize..end].copy_from_slice(data);
    content
}

fn read_model(content: &[u8], from: u64, out: &mut [u8]) {
    let from = (from as usize).min(content.len());
    let n = out.len().min(content.len() - from);
    out[..n].copy_from_slice(&content[from..from + n]);
}

#[test]
fn random_transactions_equal_the_model_at_every_tid_across_reopening() {
    let rounds: u64 = std::env::var("DARNER_MODEL_ROUNDS").ok().and_then(|v| v.parse().ok()).unwrap_or(6);
    for seed in 0..rounds {
        println!("seed {seed}");
        let disk = SimDisk::new(4 << 30);
        create(&disk);
        let mut run = Run::new(seed);
        let mut store = open(&disk).unwrap();
        for step in 0..400 {
            run.transaction(&store).unwrap();
            match run.rng.u8(0..60) {
                0 => {
                    store.sync().unwrap();
                }
                1 => store.write_out().unwrap(),
                2..=4 => store.checkpoint().unwrap(),
                5..=8 => {
                    store.step().unwrap();
                }
                9 => {
                    store.close().unwrap();
                    drop(store);
                    let options = OpenOptions { read_only: true, from_segments: true, ..OpenOptions::default() };
                    let volume = RawVolume::new(Arc::new(disk.clone()));
                    let rebuilt = Store::open(Arc::new(volume), &options).unwrap();
                    run.compare_some(&rebuilt, 2);
                    store = open(&disk).unwrap();
                    assert_eq!(
                        (rebuilt.tid(), rebuilt.usage().unwrap().live),
                        (store.tid(), store.usage().unwrap().live)
                    );
                }
                10 => {
                    // kill -9 after a sync: all is there.
                    store.sync().unwrap();
                    drop(store);
                    store = open(&disk).unwrap();
                }
                _ => {}
            }
            if step % 10 == 0 {
                run.compare_some(&store, 2);
            }
        }
        run.compare_some(&store, 40);
    }
}

/// Runs transactions with syncs on a recorded disk; returns (base, log, model, after which event what was synced).
fn recorded(seed: u64, steps: usize) -> (SimDisk, SimDisk, Run, Vec<(usize, Tid)>) {
    // Small, so that segments are small and the log goes from one to the next.
    let base = SimDisk::new(192 << 20);
    create(&base);
    let disk = base.fork();
    let mut run = Run::new(seed);
    let store = open(&disk).unwrap();
    disk.record();
    let mut synced = vec![];
    for _ in 0..steps {
        run.transaction(&store).unwrap();
        match run.rng.u8(0..10) {
            0..=2 => {
                let tid = store.sync().unwrap();
                synced.push((disk.events(), tid));
            }
            3 => store.checkpoint().unwrap(),
            4 => {
                store.step().unwrap();
            }
            _ => {}
        }
    }
    (base, disk, run, synced)
}

#[test]
fn a_power_failure_at_any_write_or_flush_leaves_a_prefix_with_all_that_was_synced() {
    let seeds: u64 = std::env::var("DARNER_CRASH_SEEDS").ok().and_then(|v| v.parse().ok()).unwrap_or(3);
    for seed in 100..100 + seeds {
        let (base, log, mut run, synced) = recorded(seed, 60);
        for n in 0..=log.events() {
            for mode in 0..3 {
                let mut rng = fastrand::Rng::with_seed(seed * 1000 + n as u64);
                let mut keep = |_| match mode {
                    0 => false,
                    1 => true,
                    _ => rng.bool(),
                };
                let disk = SimDisk::crashed(&base, &log, n, &mut keep);
                let store = open(&disk).unwrap_or_else(|e| panic!("seed {seed}, event {n}, mode {mode}: {e}"));
                let must = synced.iter().rev().find(|(at, _)| *at <= n).map_or(Tid(0), |(_, t)| *t);
                let last = store.tid();
                assert!(last >= must, "seed {seed}, event {n}, mode {mode}: {must} was synced, the log ends at {last}");
                let full = std::mem::take(&mut run.model);
                run.model = clone_until(&full, last);
                run.compare(&store, Tid::MAX);
                run.compare_some(&store, 1);
                // It goes on, and what it says now survives the next failure.
                let mut again =
                    Run { rng: fastrand::Rng::with_seed(n as u64), model: clone_until(&run.model, last), now: run.now };
                if n % 7 == 0 {
                    again.transaction(&store).unwrap();
                    store.sync().unwrap();
                    drop(store);
                    let store = open(&disk).unwrap();
                    again.compare(&store, Tid::MAX);
                }
                run.model = full;
            }
        }
    }
}

fn clone_until(m: &Model, last: Tid) -> Model {
    let mut c = Model { keys: m.keys.clone(), files: m.files.clone(), tids: m.tids.clone() };
    c.cut(last);
    c
}

#[test]
fn when_the_nth_disk_operation_fails_there_is_an_error_and_never_a_wrong_answer() {
    for fault in [Fault::Io, Fault::NoSpace] {
        for n in 1.. {
            let disk = SimDisk::new(1 << 30);
            create(&disk);
            let mut run = Run::new(42);
            let before = disk.operations();
            disk.fail_nth(n, fault);
            let mut synced = Tid(0);
            let outcome = (|| {
                let store = open(&disk)?;
                for _ in 0..25 {
                    run.transaction(&store)?;
                    match run.rng.u8(0..8) {
                        0 | 1 => synced = store.sync()?,
                        2 => store.checkpoint()?,
                        3 => drop(store.step()?),
                        _ => {}
                    }
                }
                store.close()
            })();
            if outcome.is_ok() && disk.operations() - before < n {
                println!("{n} operations for {fault:?}");
                break;
            }
            let store = open(&disk).unwrap_or_else(|e| panic!("operation {n}, {fault:?}: {e}"));
            assert!(store.tid() >= synced, "operation {n}: synced {synced}, found {}", store.tid());
            run.model.cut(store.tid());
            run.compare(&store, Tid::MAX);
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_never_becomes_data() {
    let disk = SimDisk::new(1 << 30);
    create(&disk);
    let mut run = Run::new(9);
    let store = open(&disk).unwrap();
    // What the last sync made durable is attested only by the frames after it.
    let mut attested = Tid(0);
    for i in 0..60 {
        run.transaction(&store).unwrap();
        attested = store.durable();
        if i == 30 {
            store.checkpoint().unwrap();
        }
        if i % 4 == 0 {
            store.sync().unwrap();
        }
    }
    store.sync().unwrap();
    drop(store);
    let mut rng = fastrand::Rng::with_seed(1);
    let (mut refused, mut failed) = (0, 0);
    for page in disk.written_pages() {
        let disk = disk.fork();
        disk.flip(page + rng.u64(0..4096), rng.u8(0..8));
        let Ok(store) = open(&disk) else {
            refused += 1;
            continue;
        };
        let last = store.tid();
        assert!(last >= attested, "nothing synced is lost in silence: {attested} was, {last} is the end");
        for object in 1..6 {
            for n in 0..40 {
                let key = Key::new(FS, ObjectId(object), Kind::DIRENT, format!("n{n}").as_bytes());
                match store.get(&key, Tid::MAX) {
                    Ok(found) => {
                        assert_eq!(found.map(|v| v.value.to_vec()).as_ref(), run.model.key(key.as_bytes(), last))
                    }
                    Err(_) => failed += 1,
                }
            }
            let expected = run.model.file(object, last);
            for at in (0..expected.len() as u64).step_by(4096) {
                let len = 4096.min(expected.len() as u64 - at);
                let mut found = vec![0; len as usize];
                let read = store.map(FS, ObjectId(object), at, len, Tid::MAX).and_then(|p| store.read(&p, &mut found));
                match read {
                    Ok(()) => assert_eq!(found, expected[at as usize..(at + len) as usize]),
                    Err(_) => failed += 1,
                }
            }
        }
    }
    println!("{refused} opens refused, {failed} reads failed");
    assert!(failed > 0);
}
