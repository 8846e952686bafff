//! Image files that become shorter while the store is in use: what was at the end moves first, every moment stays, whatever fails.

mod common;

use std::sync::Arc;

use common::disks::{self, copy_all};
use common::{FS, Run, create, new_disk};
use darner_store::volume::sim::{Fault, SimDisk};
use darner_store::volume::{Copies, Disk, RawVolume, Volume};
use darner_store::{Error, ObjectId, OpenOptions, Progress, Store, Tid, reclaim};

const SIZE: u64 = 192 << 20;
const LESS: u64 = (80 << 20) + 4321;
const BUDGET: u64 = 200 << 10;

fn volume(disk: &SimDisk) -> Arc<dyn Volume> {
    Arc::new(RawVolume::new(Arc::new(disk.clone())))
}

fn open(disk: &SimDisk) -> Store {
    Store::open(volume(disk), &OpenOptions::small()).unwrap()
}

fn len(disk: &SimDisk) -> u64 {
    disk.len().unwrap()
}

fn finish_cutting(store: &Store) -> Result<(), Error> {
    while store.too_long().is_some() {
        assert_eq!(store.step_cut(1 << 20)?, Progress::Worked, "nobody reads anything");
    }
    Ok(())
}

/// A disk that is filled from its end, with segments, packs and tables there.
fn at_the_end(seed: u64, run: &mut Run) -> SimDisk {
    let disk = new_disk(SIZE, seed).from_the_end();
    create(&disk);
    let store = open(&disk);
    for i in 0..40 {
        run.transaction(&store).unwrap();
        match i % 20 {
            9 => store.checkpoint().unwrap(),
            17 => drop(store.clean(run.now, &mut |_| ()).unwrap()),
            _ => {}
        }
    }
    store.close().unwrap();
    disk
}

#[test]
fn a_volume_becomes_shorter_and_longer_in_use_and_every_moment_stays() {
    for seed in 0..4 {
        let mut run = Run::new(seed + 60);
        let disk = at_the_end(seed, &mut run);
        let store = open(&disk);
        let said = store.resize_volume(0, 1 << 20).unwrap_err().to_string();
        assert!(said.contains("too few"), "{said}");
        store.resize_volume(0, LESS).unwrap();
        assert!(store.left_to_cut(0).0 > 0);
        while store.too_long().is_some() {
            run.transaction(&store).unwrap();
            store.step_cut(BUDGET).unwrap();
        }
        assert_eq!(len(&disk), LESS);
        run.compare_some(&store, 20);
        store.sync().unwrap();
        assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
        store.close().unwrap();
        drop(store);
        // The label is where the end is now.
        disk.write_at(&vec![7; 1 << 20], 0).unwrap();
        reclaim(&*volume(&disk), None).unwrap();
        let store = open(&disk);
        run.compare_some(&store, 20);
        store.resize_volume(0, SIZE).unwrap();
        assert_eq!((len(&disk), store.too_long()), (SIZE, None));
        for _ in 0..20 {
            run.transaction(&store).unwrap();
        }
        store.close().unwrap();
        drop(store);
        disk.write_at(&vec![7; 1 << 20], 0).unwrap();
        reclaim(&*volume(&disk), None).unwrap();
        run.compare_some(&open(&disk), 20);
    }
}

#[test]
fn a_power_failure_at_any_event_of_it_changes_nothing_and_the_next_open_goes_on() {
    for seed in 0..2 {
        let mut run = Run::new(seed + 90);
        let base = at_the_end(seed, &mut run);
        let disk = base.fork();
        let store = open(&disk);
        let mut synced = vec![(0, store.tid())];
        disk.record();
        store.resize_volume(0, LESS).unwrap();
        while store.too_long().is_some() {
            run.transaction(&store).unwrap();
            store.step_cut(BUDGET).unwrap();
            if run.rng.u8(0..4) == 0 {
                let tid = store.sync().unwrap();
                synced.push((disk.events(), tid));
            }
        }
        println!("seed {seed}: {} events", disk.events());
        let full = run.model.clone();
        for n in 0..=disk.events() {
            for mode in 0..3 {
                let mut rng = fastrand::Rng::with_seed(n as u64);
                let mut keep = |_| if mode == 2 { rng.bool() } else { mode == 1 };
                let crashed = SimDisk::crashed(&base, &disk, n, &mut keep);
                let store = open(&crashed);
                let must = synced.iter().rev().find(|(at, _)| *at <= n).expect("the first").1;
                assert!(store.tid() >= must, "seed {seed}, event {n}, mode {mode}");
                run.model = full.clone();
                run.model.cut(store.tid());
                run.compare_some(&store, 1);
                if n % 4 == 0 {
                    let was_asked = store.too_long().is_some() || len(&crashed) == LESS;
                    finish_cutting(&store).unwrap();
                    assert!(!was_asked || len(&crashed) == LESS);
                    run.compare_some(&store, 1);
                    drop(store);
                    run.compare_some(&open(&crashed), 1);
                }
            }
        }
    }
}

#[test]
fn when_the_nth_operation_of_it_fails_nothing_visible_changes() {
    let mut run = Run::new(33);
    let base = at_the_end(0, &mut run);
    for fault in [Fault::Io, Fault::NoSpace] {
        for n in 1.. {
            let disk = base.fork();
            let store = open(&disk);
            let before = disk.operations();
            disk.fail_nth(n, fault);
            let change = |store: &Store| store.resize_volume(0, LESS).and_then(|()| finish_cutting(store));
            let outcome = change(&store);
            let over = disk.operations() - before < n;
            disk.fail_nth(u64::MAX / 2, fault);
            run.compare_some(&store, 2);
            drop(store);
            let store = open(&disk);
            run.compare_some(&store, 2);
            change(&store).unwrap_or_else(|e| panic!("operation {n}, {fault:?}: {e}"));
            assert_eq!(len(&disk), LESS);
            run.compare(&store, Tid::MAX);
            if over {
                outcome.unwrap();
                println!("{n} operations for {fault:?}");
                break;
            }
        }
    }
}

/// It began, could not end, and nothing could be written until it was taken back.
#[test]
fn a_volume_with_copies_of_what_the_others_have_becomes_no_shorter_than_they_need() {
    let disks = [new_disk(SIZE, 1), new_disk(SIZE, 2), new_disk(SIZE, 3)];
    create(&disks[0]);
    let store = open(&disks[0]);
    store.add_volume(volume(&disks[1]), 0).unwrap();
    store.set_copies(Copies::Two).unwrap();
    let mut rng = fastrand::Rng::with_seed(4);
    for n in 0..90 {
        let mut bytes = vec![0; 1 << 20];
        rng.fill(&mut bytes);
        let mut tx = store.begin(FS, 1000 + n).unwrap();
        tx.write(ObjectId(10 + n), 0, &bytes).unwrap();
        tx.commit().unwrap();
    }
    copy_all(&store);
    store.checkpoint().unwrap();
    let used = store.volumes().unwrap()[1].used;
    let said = store.resize_volume(1, used - (8 << 20)).unwrap_err().to_string();
    assert!(said.contains("too few for volume 1") && said.contains("two copies"), "{said}");
    assert_eq!((store.too_long(), store.usage().unwrap().free > 0), (None, true));
    store.add_volume(volume(&disks[2]), 0).unwrap();
    store.resize_volume(1, used - (8 << 20)).unwrap();
    finish_cutting(&store).unwrap();
    assert_eq!(len(&disks[1]), used - (8 << 20));
    store.close().unwrap();
    drop(store);
    let store = disks::open(&disks);
    assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
}
