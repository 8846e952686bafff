//! Stores on several disks, of which any may be lost.

use std::sync::Arc;

use darner_store::volume::sim::SimDisk;
use darner_store::volume::{RawVolume, Volume};
use darner_store::{Error, OpenOptions, Progress, Store, Tid};

use super::{Run, new_disk};

pub const SIZE: u64 = 128 << 20;

pub fn volume(disk: &SimDisk) -> Arc<dyn Volume> {
    Arc::new(RawVolume::new(Arc::new(disk.clone())))
}

pub fn open_as(disks: &[SimDisk], options: &OpenOptions) -> Result<Store, Error> {
    let volumes: Vec<_> = disks.iter().map(volume).collect();
    Store::open_volumes(&volumes, options)
}

pub fn open(disks: &[SimDisk]) -> Store {
    open_as(disks, &OpenOptions::small()).unwrap()
}

pub fn degraded() -> OpenOptions {
    OpenOptions { degraded: true, ..OpenOptions::small() }
}

/// Two new disks in one machine.
pub fn two(seed: u64) -> [SimDisk; 2] {
    let first = new_disk(SIZE, seed);
    [first.clone(), first.beside(SIZE)]
}

pub fn fork(disks: &[SimDisk]) -> Vec<SimDisk> {
    disks.iter().map(SimDisk::fork).collect()
}

pub fn copy_all(store: &Store) {
    while store.step_copies(1 << 20).unwrap() == Progress::Worked {}
    assert_eq!(store.left_to_copy(), (0, 0));
}

/// What a test of power failures does with its store.
pub struct Acts<'a> {
    /// One of 70 steps.
    pub step: &'a dyn Fn(&mut Run, &Store, usize),
    /// After a power failure, before all that lacks a copy gets one.
    pub after: &'a dyn Fn(&Store),
    /// At every so many of the events that are tried each disk is looked at alone, if both have all.
    pub alone: usize,
}

/// Cuts the power of two disks that are one store, closed, at events all over what `acts` does: all that was synced is there, and the
/// model's content on either disk alone whenever no copy was lacking.
pub fn cut_both(seed: u64, disks: &[SimDisk; 2], run: &mut Run, acts: &Acts<'_>) {
    let bases = fork(disks);
    let store = open(disks);
    disks[0].record();
    let mut synced = vec![];
    // After which event whether no copy was lacking.
    let mut whole = vec![];
    for i in 0..70 {
        let mut note = || whole.push((disks[0].events(), store.left_to_copy().0 == 0));
        note();
        (acts.step)(run, &store, i);
        if run.rng.u8(0..6) == 0 {
            let tid = store.sync().unwrap();
            synced.push((disks[0].events(), tid));
        }
        note();
    }
    let events = disks[0].events();
    println!("seed {seed}: {events} events");
    let full = run.model.clone();
    for n in (0..=events).step_by(1 + events / 90) {
        for mode in 0..3 {
            let mut rng = fastrand::Rng::with_seed(seed * 1000 + n as u64);
            let mut keep = |_| if mode == 2 { rng.bool() } else { mode == 1 };
            let crashed: Vec<SimDisk> =
                bases.iter().zip(disks).map(|(base, log)| SimDisk::crashed(base, log, n, &mut keep)).collect();
            let must = synced.iter().rev().find(|(at, _)| *at <= n).map_or(Tid(0), |(_, tid)| *tid);
            let mut check = |disks: &[SimDisk], options: &OpenOptions| {
                let store =
                    open_as(disks, options).unwrap_or_else(|e| panic!("seed {seed}, event {n}, mode {mode}: {e}"));
                let last = store.tid();
                assert!(last >= must, "seed {seed}, event {n}, mode {mode}: {must} was synced, the log ends at {last}");
                run.model = full.clone();
                run.model.cut(last);
                run.compare_some(&store, 1);
                store
            };
            let before = whole.iter().rev().find(|(at, _)| *at <= n).is_none_or(|(_, whole)| *whole);
            let after = whole.iter().find(|(at, _)| *at > n).is_none_or(|(_, whole)| *whole);
            if before && after && n % acts.alone == 0 {
                crashed.iter().for_each(|disk| drop(check(&fork(std::slice::from_ref(disk)), &degraded())));
            }
            let store = check(&crashed, &OpenOptions::small());
            if n % 5 == 0 {
                (acts.after)(&store);
                copy_all(&store);
                assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
                store.sync().unwrap();
                drop(store);
                // What one copy lacked it has now.
                drop(check(&crashed[n / 5 % 2..][..1], &degraded()));
            }
        }
    }
}
