//! Those who follow by deltas have, after each, exactly what the store had at that moment, whatever was collapsed, cleaned,
//! merged and reopened meanwhile, and however long they were away.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{FS, Run, create, new_disk, open};
use darner_store::volume::RawVolume;
use darner_store::{Grid, IndexFrom, Kind, ObjectId, OpenOptions, Step, Store, Tid, What, split_tail};

/// What one has that follows: tails, and the versions of them.
#[derive(Clone, Default)]
struct Follower {
    at: Tid,
    keys: BTreeMap<Vec<u8>, (Tid, Vec<u8>)>,
}

fn attr_of(tail: &[u8]) -> Vec<u8> {
    [&tail[..8], &[Kind::ATTR.0]].concat()
}

impl Follower {
    fn drop_key(&mut self, tail: &[u8]) {
        self.keys.remove(tail);
        if tail == attr_of(tail) {
            self.keys.retain(|other, _| other[..8] != tail[..8]);
        }
    }

    /// Goes on to a moment; `between` is called between the parts.
    fn follow(&mut self, store: &Store, to: Tid, limit: usize, between: &mut dyn FnMut()) -> usize {
        let mut from = Some(Vec::new());
        let mut told = 0;
        while let Some(pos) = from {
            let delta = store.delta(FS, &pos, &[], self.at, to, limit).unwrap();
            told += delta.changes.len();
            assert!(delta.changes.windows(2).all(|pair| pair[0].tail < pair[1].tail), "in order");
            for (from, to) in &delta.stated {
                let stated = |tail: &[u8]| tail >= &from[..] && (to.is_empty() || tail < &to[..]);
                let listed = |tail: &Vec<u8>| delta.changes.iter().any(|c| c.tail == *tail);
                let gone: Vec<_> = self.keys.keys().filter(|t| stated(t) && !listed(t)).cloned().collect();
                gone.iter().for_each(|tail| self.drop_key(tail));
            }
            for c in delta.changes {
                let of_nothing =
                    |s: &Self| split_tail(&c.tail).unwrap().0.0 != 0 && !s.keys.contains_key(&attr_of(&c.tail));
                match c.what {
                    What::Set(..) if c.tail != attr_of(&c.tail) && of_nothing(self) => {}
                    What::Set(tid, value) => drop(self.keys.insert(c.tail, (tid, value.to_vec()))),
                    What::Deleted => self.drop_key(&c.tail),
                    What::Same => {}
                }
            }
            from = delta.next;
            between();
        }
        // Of the fileset itself only the newest records are kept: it is not part of what it was at a moment.
        self.keys.retain(|tail, _| tail[..8] != [0; 8]);
        self.at = to;
        told
    }
}

/// Every object has attributes, as in a filesystem.
fn give_attributes(run: &mut Run, store: &Store) {
    for object in run.objects.clone() {
        let key = darner_store::Key::new(FS, ObjectId(object), Kind::ATTR, b"");
        if store.get(&key, Tid::MAX).unwrap().is_none() {
            run.now += 1;
            let mut tx = store.begin(FS, run.now).unwrap();
            tx.put(ObjectId(object), Kind::ATTR, b"", b"attributes");
            run.model.tids.push(tx.commit().unwrap());
        }
    }
}

fn act(run: &mut Run, store: &Store) {
    match run.rng.u8(0..40) {
        0 => drop(store.sync().unwrap()),
        1..=3 => store.checkpoint().unwrap(),
        4..=6 => drop(store.step().unwrap()),
        7..=11 => drop(store.step_clean(run.now).unwrap()),
        12 => drop(store.clean(run.now, &mut |_| ()).unwrap()),
        13 => {
            let every = run.rng.u64(1..3000);
            let steps = match run.rng.u8(0..3) {
                0 => vec![],
                1 => vec![Step { every, lasts: run.rng.u64(0..20_000) }],
                _ => vec![Step { every: 0, lasts: run.rng.u64(0..3_000) }, Step { every, lasts: u64::MAX }],
            };
            store.retain(FS, run.now, |r| r.with_grid(Grid { steps })).unwrap();
        }
        14..=15 => {
            run.kill(store).unwrap();
            give_attributes(run, store);
        }
        16 => run.now += run.rng.u64(0..5000),
        _ => run.transaction(store).unwrap(),
    }
}

/// Everything there is at a moment, by a delta from the beginning, which is held against the model.
fn all(run: &Run, store: &Store, at: Tid) -> Follower {
    let mut all = Follower::default();
    all.follow(store, at, 4096, &mut || ());
    let names = |object: u64| move |tail: &[u8]| tail[..8] == object.to_be_bytes() && tail[8] == Kind::DIRENT.0;
    for object in (1..run.next).filter(|o| !run.model.is_dead(*o, at)) {
        let found: BTreeMap<_, _> =
            all.keys.iter().filter(|(t, _)| names(object)(t)).map(|(t, v)| (t.clone(), v.1.clone())).collect();
        let expected: BTreeMap<_, _> = (run.model.keys.keys().filter(|key| names(object)(&key[4..])))
            .filter_map(|key| Some((key[4..].to_vec(), run.model.key(key, at)?.clone())))
            .collect();
        assert_eq!(found, expected, "names of {object} as of {at}");
    }
    all
}

#[test]
fn who_follows_has_what_was_there_however_long_he_was_away() {
    let rounds: u64 = std::env::var("DARNER_DELTA_ROUNDS").ok().and_then(|v| v.parse().ok()).unwrap_or(24);
    let mut stated = 0;
    for seed in 0..rounds {
        println!("seed {seed}");
        let disk = new_disk(1 << 30, seed);
        create(&disk);
        let mut run = Run::new(seed + 500);
        let mut store = Arc::new(open(&disk).unwrap());
        give_attributes(&mut run, &store);
        let mut followers = vec![Follower::default(); 4];
        for _ in 0..400 {
            act(&mut run, &store);
            if run.rng.u8(0..60) == 0 {
                store.close().unwrap();
                drop(store);
                // An index that was derived anew has forgotten what was dropped from the one before.
                let index = if run.rng.u8(0..4) == 0 { IndexFrom::Segments } else { IndexFrom::Tables };
                let volume = Arc::new(RawVolume::new(Arc::new(disk.clone())));
                store = Arc::new(Store::open(volume, &OpenOptions { index, ..OpenOptions::default() }).unwrap());
            }
            // The first one often, the others seldom.
            let n = run.rng.usize(..40);
            let Some(follower) = followers.get_mut(n.saturating_sub(3)) else { continue };
            let retention = store.retention(FS).unwrap();
            let wanted =
                if run.rng.bool() { store.tid() } else { Tid(run.rng.u64(follower.at.0..=run.now.max(follower.at.0))) };
            let Some(to) = retention.round(wanted.min(store.tid())).filter(|to| *to >= follower.at) else { continue };
            let _pin = store.pin(FS, to).unwrap().expect("it was just shown");
            let expected = all(&run, &store, to);
            let limit = if run.rng.bool() { run.rng.usize(1..20) } else { 4096 };
            let busy = run.rng.bool();
            stated += usize::from(!store.delta(FS, &[], &[], follower.at, to, 4096).unwrap().stated.is_empty());
            follower.follow(&store, to, limit, &mut || {
                if busy && run.rng.u8(0..4) == 0 {
                    act(&mut run, &store);
                }
            });
            let differs = |a: &Follower, b: &Follower| -> Vec<_> {
                a.keys.iter().filter(|(k, v)| b.keys.get(*k) != Some(v)).map(|(k, v)| (k.clone(), v.0)).collect()
            };
            let (more, less) = (differs(follower, &expected), differs(&expected, follower));
            assert!(more.is_empty() && less.is_empty(), "seed {seed}: to {to}: has {more:?} instead of {less:?}");
        }
        store.sync().unwrap();
        assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
    }
    assert!(stated > 0, "no deletion was dropped: nothing was tested");
}

/// A part said that it goes on at the very end of the range that was asked for: who follows took that for a lie, and asked again
/// for the same, for ever.
#[test]
fn a_range_that_ends_where_dropped_keys_ended_has_nothing_behind_it() {
    let mut ranges = 0;
    for seed in 0..8 {
        let disk = new_disk(1 << 30, seed);
        create(&disk);
        let (mut run, store) = (Run::new(seed + 500), Arc::new(open(&disk).unwrap()));
        give_attributes(&mut run, &store);
        for _ in 0..300 {
            act(&mut run, &store);
        }
        let at = store.tid();
        for since in run.model.tids.iter().step_by(5).filter(|since| **since < at) {
            let stated = store.delta(FS, &[], &[], *since, at, 4096).unwrap().stated;
            for (from, to) in stated.iter().filter(|(_, to)| !to.is_empty()) {
                for limit in 1..12 {
                    let mut pos = from.clone();
                    while let Some(next) = store.delta(FS, &pos, to, *since, at, limit).unwrap().next {
                        assert!(
                            next > pos && next < *to,
                            "seed {seed}: {next:?} of {pos:?} to {to:?}, {limit} at a time"
                        );
                        pos = next;
                    }
                    ranges += 1;
                }
            }
        }
    }
    assert!(ranges > 0, "no deletion was dropped: nothing was tested");
}

#[test]
fn what_did_not_change_is_not_read() {
    let disk = new_disk(1 << 30, 0);
    create(&disk);
    let (objects, per_tx) = (200_000u64, 200);
    {
        let store = open(&disk).unwrap();
        for first in (1..=objects).step_by(per_tx) {
            let mut tx = store.begin(FS, 1000 + first).unwrap();
            for object in first..first + per_tx as u64 {
                tx.put(ObjectId(object), Kind::ATTR, b"", &[7; 30]);
                tx.put(ObjectId(object), Kind::DIRENT, b"name", &object.to_le_bytes());
            }
            tx.commit().unwrap();
            while store.step().unwrap() == darner_store::Progress::Worked {}
        }
        store.close().unwrap();
    }
    let store = open(&disk).unwrap();
    let since = store.tid();
    for n in 0..10 {
        let mut tx = store.begin(FS, since.0 + 5000 + n).unwrap();
        tx.put(ObjectId(1 + n * (objects / 10)), Kind::ATTR, b"", &[8; 30]);
        tx.commit().unwrap();
    }
    // Merged with all there is, and nothing of it in memory.
    store.clean(since.0 + 10_000, &mut |_| ()).unwrap();
    store.close().unwrap();
    drop(store);
    let store = open(&disk).unwrap();
    let before = disk.bytes_read();
    let delta = store.delta(FS, &[], &[], since, store.tid(), 4096).unwrap();
    let read = disk.bytes_read() - before;
    assert_eq!((delta.changes.len(), delta.next), (10, None));
    assert!(read < 10 * (32 << 10), "{read} bytes were read for ten changes");
}
