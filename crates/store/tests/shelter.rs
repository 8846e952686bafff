//! The process is killed: what was written to the disk is there (it needs no flush for that), and so is the shelter, as both were
//! at that moment. Nothing that was committed is lost, at whatever moment, and no other bytes in the shelter are ever believed.

mod common;

use std::cell::RefCell;
use std::io::Result;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{FS, Run, create, new_disk};
use darner_store::volume::sim::SimDisk;
use darner_store::volume::{Disk, RawVolume};
use darner_store::{Error, Kind, Memory, ObjectId, OpenOptions, Shelter, Store, Tid};

/// Memory that a test holds beside the store that uses it.
#[derive(Clone)]
struct Kept(Arc<Words>);

/// Where, how many, and how often some were given back.
struct Words(NonNull<u64>, usize, AtomicU64);

// SAFETY: plain memory; the tests copy it only while the store is at rest, or calls them.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

// SAFETY: the words live as long as the last clone.
unsafe impl Memory for Kept {
    fn bytes(&self) -> (NonNull<u8>, usize) {
        (self.0.0.cast(), self.0.1 * 8)
    }

    fn discard(&self, _at: usize, _len: usize) {
        self.0.2.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: made so in `Kept::new`.
        drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(self.0.as_ptr(), self.1)) });
    }
}

impl Kept {
    fn new(slots: usize) -> Kept {
        let words = vec![0u64; Shelter::len(slots) / 8].into_boxed_slice();
        let len = words.len();
        // SAFETY: a box is not null.
        Kept(Arc::new(Words(unsafe { NonNull::new_unchecked(Box::into_raw(words).cast()) }, len, AtomicU64::new(0))))
    }

    #[allow(clippy::mut_from_ref)]
    fn words(&self) -> &mut [u64] {
        // SAFETY: see Words.
        unsafe { std::slice::from_raw_parts_mut(self.0.0.as_ptr(), self.0.1) }
    }

    /// As the next process finds it.
    fn copy(&self) -> Kept {
        let copy = Kept(Arc::new({
            let words = vec![0u64; self.0.1].into_boxed_slice();
            // SAFETY: a box is not null.
            Words(unsafe { NonNull::new_unchecked(Box::into_raw(words).cast()) }, self.0.1, AtomicU64::new(0))
        }));
        // Most was never touched.
        for (to, from) in copy.words().chunks_mut(512).zip(self.words().chunks(512)) {
            if from.iter().any(|w| *w != 0) {
                to.copy_from_slice(from);
            }
        }
        copy
    }
}

fn open(disk: Arc<dyn Disk>, kept: &Kept) -> std::result::Result<Store, Error> {
    let shelter = Some(Shelter::over(Box::new(kept.clone())));
    let options = OpenOptions { shelter, ..OpenOptions::small() };
    Store::open(Arc::new(RawVolume::new(disk)), &options)
}

fn committed(run: &Run) -> Tid {
    run.model.tids.last().copied().unwrap_or(Tid(5))
}

/// The store's upkeep, now and then.
fn keep_up(run: &mut Run, store: &Store) {
    match run.rng.u8(0..40) {
        0 => drop(store.sync().unwrap()),
        1 => store.write_out().unwrap(),
        2 => store.write_all().unwrap(),
        3 => store.checkpoint().unwrap(),
        4..=6 => drop(store.step().unwrap()),
        _ => {}
    }
}

#[test]
fn a_killed_process_loses_nothing_that_it_had_committed() {
    for seed in 0..6 {
        let mut disk = new_disk(2 << 30, seed);
        create(&disk);
        let mut kept = Kept::new(7);
        let mut run = Run::new(seed);
        let mut store = open(Arc::new(disk.clone()), &kept).unwrap();
        let mut kills = 0;
        for _ in 0..250 {
            run.transaction(&store).unwrap();
            keep_up(&mut run, &store);
            if run.rng.u8(0..6) == 0 {
                // Also in the middle of a transaction, which then never was.
                let unfinished = (run.rng.u8(0..3) == 0).then(|| {
                    let mut tx = store.begin(FS, run.now).unwrap();
                    tx.put(ObjectId(1), Kind::DIRENT, b"n1", b"never");
                    tx.write(ObjectId(2), 0, &[1; 5000]).unwrap();
                    tx
                });
                (disk, kept) = (disk.fork(), kept.copy());
                drop(unfinished);
                drop(store);
                store = open(Arc::new(disk.clone()), &kept).unwrap();
                assert_eq!(store.tid(), committed(&run), "seed {seed}, kill {kills}");
                run.compare_some(&store, 1);
                kills += 1;
            }
        }
        run.compare_some(&store, 20);
        assert!(kills > 20);
    }
}

/// Calls back before and in the middle of each write, and before each flush.
struct Watched {
    disk: SimDisk,
    tell: Box<dyn Fn(&SimDisk) + Send + Sync>,
}

impl Disk for Watched {
    fn name(&self) -> String {
        self.disk.name()
    }
    fn hint(&self) -> Vec<u8> {
        self.disk.hint()
    }
    fn len(&self) -> Result<u64> {
        self.disk.len()
    }
    fn piece_max(&self) -> u64 {
        self.disk.piece_max()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.disk.read_at(buf, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        (self.tell)(&self.disk);
        self.disk.write_at(&bytes[..bytes.len() / 2], offset)?;
        (self.tell)(&self.disk);
        self.disk.write_at(bytes, offset)
    }
    fn flush(&self) -> Result<()> {
        (self.tell)(&self.disk);
        self.disk.flush()
    }
}

#[test]
fn killed_within_any_write_or_flush_of_the_disk_it_loses_nothing_either() {
    for seed in 0..2 {
        let disk = new_disk(192 << 20, seed);
        create(&disk);
        let kept = Kept::new(6);
        let done = Arc::new(AtomicU64::new(5));
        let moments = Arc::new(AtomicU64::new(0));
        let watched = {
            let (kept, done, moments) = (kept.clone(), done.clone(), moments.clone());
            let tell = move |disk: &SimDisk| {
                let n = moments.fetch_add(1, Ordering::SeqCst);
                if n % 3 != 0 {
                    return;
                }
                let (disk, kept) = (disk.fork(), kept.copy());
                // The next process may be killed while it takes over, too.
                let again = RefCell::new(Some((disk.fork(), kept.copy())));
                let store = open(Arc::new(disk.clone()), &kept).unwrap_or_else(|e| panic!("seed {seed}, {n}: {e}"));
                let must = Tid(done.load(Ordering::SeqCst));
                assert!(store.tid() >= must, "seed {seed}, moment {n}: {must} was committed, found {}", store.tid());
                drop(store);
                if n % 12 == 0 {
                    let (first, kept) = again.take().unwrap();
                    takeover_killed_at_every_write(&first, &kept, must);
                }
            };
            Watched { disk: disk.clone(), tell: Box::new(tell) }
        };
        let mut run = Run::new(seed);
        let store = open(Arc::new(watched), &kept).unwrap();
        for _ in 0..100 {
            run.transaction(&store).unwrap();
            done.store(committed(&run).0, Ordering::SeqCst);
            keep_up(&mut run, &store);
            if run.rng.u8(0..10) == 0 {
                store.write_all().unwrap();
            }
        }
        run.compare_some(&store, 5);
        assert!(moments.load(Ordering::SeqCst) > 60, "{moments:?}");
    }
}

#[test]
fn a_power_failure_after_takeovers_leaves_a_prefix_with_all_that_was_synced() {
    for seed in 200..203 {
        let base = new_disk(192 << 20, seed);
        create(&base);
        let disk = base.fork();
        let mut kept = Kept::new(6);
        let mut run = Run::new(seed);
        let mut store = open(Arc::new(disk.clone()), &kept).unwrap();
        disk.record();
        let mut synced = vec![];
        for _ in 0..60 {
            run.transaction(&store).unwrap();
            match run.rng.u8(0..14) {
                0 | 1 => {
                    let tid = store.sync().unwrap();
                    synced.push((disk.events(), tid));
                }
                2 => store.checkpoint().unwrap(),
                3 => drop(store.step().unwrap()),
                4 => store.write_all().unwrap(),
                5..=7 => {
                    kept = kept.copy();
                    drop(store);
                    store = open(Arc::new(disk.clone()), &kept).unwrap();
                    assert_eq!(store.tid(), committed(&run), "seed {seed}");
                    if run.rng.bool() {
                        // What the process before had committed becomes durable by this one's sync.
                        synced.push((0, store.sync().unwrap()));
                        synced.last_mut().unwrap().0 = disk.events();
                    }
                }
                _ => {}
            }
        }
        drop(store);
        common::cut_at_every_event((&base, &disk), &synced, &mut run, (seed, 1), &mut |_, store, _, run| {
            run.compare(&store, Tid::MAX);
            run.compare_some(&store, 1);
        });
    }
}

/// Opens it with a kill at each moment of that, and opens what is left.
fn takeover_killed_at_every_write(disk: &SimDisk, kept: &Kept, must: Tid) {
    let kept = kept.copy();
    let watched = {
        let kept = kept.clone();
        let tell = move |disk: &SimDisk| {
            let store = open(Arc::new(disk.fork()), &kept.copy()).unwrap();
            assert!(store.tid() >= must, "killed while taking over: {must} was committed, found {}", store.tid());
        };
        Watched { disk: disk.fork(), tell: Box::new(tell) }
    };
    assert!(open(Arc::new(watched), &kept).unwrap().tid() >= must);
}

#[test]
fn with_few_slots_those_who_commit_write_rather_than_leave_the_shelter() {
    let disk = new_disk(2 << 30, 0);
    create(&disk);
    let kept = Kept::new(6);
    let store = open(Arc::new(disk.clone()), &kept).unwrap();
    for n in 0..40u64 {
        let mut tx = store.begin(FS, 10 + n).unwrap();
        let data: Vec<u8> = (0..1 << 20).map(|i: u64| (i * i + n) as u8 ^ (i >> 9) as u8).collect();
        tx.write(ObjectId(n + 1), 0, &data).unwrap();
        let tid = tx.commit().unwrap();
        let next = open(Arc::new(disk.fork()), &kept.copy()).unwrap();
        assert_eq!(next.tid(), tid);
        let mut found = vec![0; data.len()];
        next.read(&next.map(FS, ObjectId(n + 1), 0, 1 << 20, Tid::MAX).unwrap(), &mut found).unwrap();
        assert!(found == data, "write {n}");
    }
}

#[test]
fn another_stores_shelter_garbage_and_any_damage_to_it_are_refused() {
    let mut rng = fastrand::Rng::with_seed(9);
    let disk = new_disk(2 << 30, 0);
    create(&disk);
    let kept = Kept::new(6);
    let mut run = Run::new(9);
    let store = open(Arc::new(disk.clone()), &kept).unwrap();
    for _ in 0..10 {
        run.transaction(&store).unwrap();
    }
    let written = store.sync().unwrap();
    let cut = disk.fork();
    for _ in 0..10 {
        run.transaction(&store).unwrap();
    }
    let check = |kept: Kept, what: &str| {
        let store = open(Arc::new(cut.fork()), &kept).unwrap_or_else(|e| panic!("{what}: {e}"));
        let last = store.tid();
        assert!(last >= written && last <= committed(&run), "{what}");
        let mut shown = Run { model: run.model.clone(), now: run.now, ..Run::new(1) };
        (shown.objects, shown.next) = (run.objects.clone(), run.next);
        shown.model.cut(last);
        shown.compare(&store, Tid::MAX);
        last
    };
    assert_eq!(check(kept.copy(), "as it is"), committed(&run));
    assert_eq!(check(Kept::new(6), "an empty one"), written);
    assert_eq!(check(Kept::new(0), "one without slots"), written);
    let used: Vec<usize> = (0..kept.words().len()).filter(|i| kept.words()[*i] != 0).collect();
    let mut lost = 0;
    for round in 0..150 {
        let bad = kept.copy();
        for _ in 0..rng.usize(1..4) {
            bad.words()[used[rng.usize(..used.len())]] ^= 1 << rng.u8(..64);
        }
        lost += u32::from(check(bad, &format!("damage {round}")) < committed(&run));
    }
    assert!(lost > 20, "{lost}: damage was noticed");
    let garbage = kept.copy();
    garbage.words().iter_mut().for_each(|w| *w = rng.u64(..));
    assert_eq!(check(garbage, "garbage"), written);
    // One that another store left, whose log has the same segments.
    let other = new_disk(2 << 30, 0);
    let volume = RawVolume::new(Arc::new(other.clone()));
    let options = darner_store::CreateOptions { now_ns: 5, seed: Some([4; 32]), ..Default::default() };
    Store::create(&volume, &options).unwrap();
    let theirs = Kept::new(6);
    let mut their_run = Run::new(9);
    let their_store = open(Arc::new(other.clone()), &theirs).unwrap();
    for _ in 0..20 {
        their_run.transaction(&their_store).unwrap();
    }
    assert_eq!(check(theirs.copy(), "another store's"), written);
    // And an old one of this store.
    let old = kept.copy();
    let next = open(Arc::new(cut.fork()), &kept.copy()).unwrap();
    drop(next);
    let moved_on = cut.fork();
    let empty = Kept::new(6);
    let next = open(Arc::new(moved_on.clone()), &empty).unwrap();
    let mut tx = next.begin(FS, run.now + 100).unwrap();
    tx.put(ObjectId(1), Kind::DIRENT, b"n1", b"since");
    let since = tx.commit().unwrap();
    next.sync().unwrap();
    drop(next);
    assert_eq!(open(Arc::new(moved_on), &old).unwrap().tid(), since, "a stale one is of no account");
}

#[test]
fn slots_that_were_used_are_used_again_before_fresh_ones() {
    let disk = new_disk(2 << 30, 0);
    create(&disk);
    let kept = Kept::new(40);
    let store = open(Arc::new(disk.clone()), &kept).unwrap();
    for n in 0..200u64 {
        let mut tx = store.begin(FS, 10 + n).unwrap();
        tx.write(ObjectId(1), 0, &[n as u8; 3000]).unwrap();
        tx.commit().unwrap();
        store.sync().unwrap();
    }
    assert_eq!(kept.0.2.load(Ordering::SeqCst), 0, "memory is given back and faulted in anew");
}
