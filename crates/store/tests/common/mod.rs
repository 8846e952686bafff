//! A plain model of a store by tid, and random transactions on both.
#![allow(dead_code)] // Each test file uses a part.

pub mod disks;

use std::collections::BTreeMap;
use std::sync::Arc;

use darner_store::volume::RawVolume;
use darner_store::volume::sim::SimDisk;
use darner_store::{
    CreateOptions, Elsewhere, Error, FilesetId, Job, Key, Kind, Lost, ObjectId, OpenOptions, Store, Tid, Workers,
};

pub const FS: FilesetId = FilesetId(1);
pub const FILE_MAX: u64 = 300 << 10;

type Content = BTreeMap<u64, Vec<u8>>;

/// Everything, at every tid.
#[derive(Clone, Default)]
pub struct Model {
    pub keys: BTreeMap<Vec<u8>, BTreeMap<Tid, Option<Vec<u8>>>>,
    pub files: BTreeMap<u64, BTreeMap<Tid, Arc<Vec<u8>>>>,
    /// Objects that were killed, and when: what they had is then of no account.
    pub deaths: BTreeMap<u64, Tid>,
    pub tids: Vec<Tid>,
}

impl Model {
    pub fn key(&self, key: &[u8], at: Tid) -> Option<&Vec<u8>> {
        self.keys.get(key)?.range(..=at).next_back()?.1.as_ref()
    }

    pub fn file(&self, object: u64, at: Tid) -> Arc<Vec<u8>> {
        let versions = self.files.get(&object);
        versions.and_then(|v| v.range(..=at).next_back()).map(|(_, c)| c.clone()).unwrap_or_default()
    }

    /// Whether an object was dead as of a moment.
    pub fn is_dead(&self, object: u64, at: Tid) -> bool {
        self.deaths.get(&object).is_some_and(|died| *died <= at)
    }

    /// Forgets what is newer than `last`.
    pub fn cut(&mut self, last: Tid) {
        self.deaths.retain(|_, t| *t <= last);
        self.tids.retain(|t| *t <= last);
        self.keys.values_mut().for_each(|v| v.retain(|t, _| *t <= last));
        self.files.values_mut().for_each(|v| v.retain(|t, _| *t <= last));
    }
}

pub struct Run {
    pub rng: fastrand::Rng,
    pub model: Model,
    pub now: u64,
    /// The objects in use, and the next one's number.
    pub objects: Vec<u64>,
    pub next: u64,
}

pub fn open(disk: &SimDisk) -> Result<Store, Error> {
    let options = OpenOptions::small();
    Store::open(Arc::new(RawVolume::new(Arc::new(disk.clone()))), &options)
}

/// The same, with threads lent to it.
pub fn open_with_threads(disk: &SimDisk) -> Result<Store, Error> {
    let options = OpenOptions { workers: Some(Arc::new(Threads)), ..OpenOptions::small() };
    Store::open(Arc::new(RawVolume::new(Arc::new(disk.clone()))), &options)
}

/// Lends threads.
#[derive(Debug)]
pub struct Threads;

impl Workers for Threads {
    fn beside(&self, jobs: Vec<Job<'_>>, here: &mut dyn FnMut()) {
        std::thread::scope(|scope| {
            jobs.into_iter().for_each(|job| drop(scope.spawn(job)));
            here();
        });
    }
}

/// A disk on which, with odd seeds, nothing of any size is in one piece.
pub fn new_disk(len: u64, seed: u64) -> SimDisk {
    let disk = SimDisk::new(len);
    if seed % 2 == 1 { disk.in_pieces(192 << 10) } else { disk }
}

pub fn create(disk: &SimDisk) {
    let volume = RawVolume::new(Arc::new(disk.clone()));
    let options = CreateOptions { now_ns: 5, seed: Some([3; 32]), ..CreateOptions::default() };
    Store::create(&volume, &options).unwrap();
}

impl Run {
    pub fn new(seed: u64) -> Run {
        Run {
            rng: fastrand::Rng::with_seed(seed),
            model: Model::default(),
            now: 10,
            objects: vec![1, 2, 3, 4, 5],
            next: 6,
        }
    }

    pub fn data(&mut self, len: usize) -> Vec<u8> {
        match self.rng.u8(0..3) {
            0 => std::iter::repeat_with(|| self.rng.u8(..)).take(len).collect(),
            1 => vec![self.rng.u8(1..); len],
            _ => format!("{} ", self.rng.u32(..)).into_bytes().into_iter().cycle().take(len).collect(),
        }
    }

    /// One random transaction, in the store and in the model.
    pub fn transaction(&mut self, store: &Store) -> Result<(), Error> {
        self.now += self.rng.u64(0..50);
        let mut tx = store.begin(FS, self.now)?;
        let tid = tx.tid();
        let mut keys: Vec<(Vec<u8>, Option<Vec<u8>>)> = Vec::new();
        let mut files: Content = BTreeMap::new();
        for _ in 0..self.rng.usize(1..4) {
            let object = self.objects[self.rng.usize(..5)];
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
                    let source = self.objects[self.rng.usize(..5)];
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

    /// Kills an object; another takes its place.
    pub fn kill(&mut self, store: &Store) -> Result<(), Error> {
        let slot = self.rng.usize(..5);
        let object = self.objects[slot];
        self.now += 1;
        let mut tx = store.begin(FS, self.now)?;
        tx.delete(ObjectId(object), Kind::ATTR, &[]);
        let tid = tx.commit()?;
        self.model.deaths.insert(object, tid);
        self.model.tids.push(tid);
        self.objects[slot] = self.next;
        self.next += 1;
        Ok(())
    }

    /// Compares everything as of `at`.
    pub fn compare(&self, store: &Store, at: Tid) {
        for object in 1..self.next {
            if self.model.is_dead(object, at) {
                let attr = Key::new(FS, ObjectId(object), Kind::ATTR, &[]);
                assert_eq!(store.get(&attr, at).unwrap(), None, "object {object} died before {at}");
                continue;
            }
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

    pub fn compare_some(&mut self, store: &Store, n: usize) {
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

pub fn overlay(mut content: Vec<u8>, offset: u64, data: &[u8]) -> Vec<u8> {
    let end = offset as usize + data.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset as usize..end].copy_from_slice(data);
    content
}

pub fn read_model(content: &[u8], from: u64, out: &mut [u8]) {
    let from = (from as usize).min(content.len());
    let n = out.len().min(content.len() - from);
    out[..n].copy_from_slice(&content[from..from + n]);
}

/// Cuts the power at every `step`th event of a log, with none, all and some of what was not flushed kept: all that was synced
/// (after which event, up to which tid) must be there. `check` gets the event, the store as it is opened then, its disk, and
/// the run with a model that is cut to what the store has.
pub fn cut_at_every_event(
    (base, log): (&SimDisk, &SimDisk),
    synced: &[(usize, Tid)],
    run: &mut Run,
    (seed, step): (u64, usize),
    check: &mut dyn FnMut(usize, Store, &SimDisk, &mut Run),
) {
    for n in (0..=log.events()).step_by(step) {
        for mode in 0..3 {
            let mut rng = fastrand::Rng::with_seed(seed * 1000 + n as u64);
            let mut keep = |_| match mode {
                0 => false,
                1 => true,
                _ => rng.bool(),
            };
            let disk = SimDisk::crashed(base, log, n, &mut keep);
            let store = open(&disk).unwrap_or_else(|e| panic!("seed {seed}, event {n}, mode {mode}: {e}"));
            let must = synced.iter().rev().find(|(at, _)| *at <= n).map_or(Tid(0), |(_, t)| *t);
            let last = store.tid();
            assert!(last >= must, "seed {seed}, event {n}, mode {mode}: {must} was synced, the log ends at {last}");
            let full = std::mem::take(&mut run.model);
            run.model = clone_until(&full, last);
            check(n, store, &disk, run);
            run.model = full;
        }
    }
}

fn clone_until(m: &Model, last: Tid) -> Model {
    let mut c = m.clone();
    c.cut(last);
    c
}

/// Overwrites some of the object that [`Remembers`] knows, which is `now`; of every other one it packs.
pub fn overwrite(store: &Store, rng: &mut fastrand::Rng, n: usize, now: &mut [u8]) -> Tid {
    let at = rng.usize(..now.len());
    let most = 1 << rng.u32(4..18);
    let len = rng.usize(1..=(now.len() - at).min(most));
    let bytes: Vec<u8> = (0..len).map(|i| if n.is_multiple_of(2) { rng.u8(..) } else { (i / 40 + n) as u8 }).collect();
    let mut tx = store.begin(FS, 100 + n as u64).unwrap();
    tx.put(ObjectId(10), Kind::ATTR, b"", b"attributes");
    tx.write(ObjectId(10), at as u64, &bytes).unwrap();
    now[at..at + len].copy_from_slice(&bytes);
    tx.commit().unwrap()
}

/// Has what each transaction left, and offers something else first.
pub struct Remembers(pub Vec<(Tid, Vec<u8>)>);

impl Elsewhere for Remembers {
    fn bytes(&self, lost: &Lost, is_it: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        assert_eq!((lost.fileset, lost.object), (FS, ObjectId(10)));
        let (_, then) = self.0.iter().rev().find(|(at, _)| *at <= lost.tid).expect("a transaction of ours");
        let mut bytes = then.get(lost.offset as usize..).unwrap_or_default().to_vec();
        bytes.resize(lost.len, 0);
        assert!(!is_it(&vec![7; lost.len]) && !is_it(&bytes[1..]), "anything is believed");
        is_it(&bytes)
    }
}
