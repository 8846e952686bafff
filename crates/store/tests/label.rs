//! The label at the end of a raw volume: whatever overwrites the beginning, the volume can be had back, as it was, after any crash.

mod common;

use std::sync::Arc;

use common::{FS, Run, new_disk};
use darner_store::volume::sim::SimDisk;
use darner_store::volume::{Disk, RawVolume, Volume};
use darner_store::{
    CreateOptions, Error, Kind, ObjectId, OpenOptions, Store, Tid, identify, identify_by_label, reclaim,
};

const SIZE: u64 = 128 << 20;
const BUDGET: u64 = 100 << 10;

fn volume(disk: &SimDisk) -> Arc<dyn Volume> {
    Arc::new(RawVolume::new(Arc::new(disk.clone())))
}

fn open(disks: &[SimDisk]) -> Result<Store, Error> {
    let volumes: Vec<_> = disks.iter().map(volume).collect();
    Store::open_volumes(&volumes, &OpenOptions::small())
}

fn create(disk: &SimDisk) {
    let options = CreateOptions { now_ns: 5, seed: Some([3; 32]), ..CreateOptions::default() };
    Store::create(&*volume(disk), &options).unwrap();
}

/// As mkfs or dd does.
fn overwrite_beginning(disk: &SimDisk) {
    disk.write_at(&vec![0xa5; 1 << 20], 0).unwrap();
}

#[test]
fn a_volume_whose_beginning_was_overwritten_is_told_and_taken_back() {
    let mut run = Run::new(1);
    let disks = [SimDisk::new(SIZE), SimDisk::new(SIZE + 12345)];
    create(&disks[0]);
    let store = open(&disks).unwrap();
    store.add_volume(volume(&disks[1]), 0).unwrap();
    for i in 0..40 {
        run.transaction(&store).unwrap();
        if i % 10 == 9 {
            store.checkpoint().unwrap();
        }
    }
    store.close().unwrap();
    drop(store);
    let said = reclaim(&*volume(&disks[1]), None).unwrap_err();
    assert!(matches!(&said, Error::Refused(_)), "{said}");
    for (number, disk) in disks.iter().enumerate() {
        overwrite_beginning(disk);
        let said = identify(&*volume(disk)).unwrap_err().to_string();
        assert!(said.contains("volume reclaim") && said.contains(&format!("was volume {number} ")), "{said}");
        assert_eq!(usize::from(identify_by_label(&*volume(disk)).unwrap().unwrap().number), number);
        assert!(open(&disks).is_err());
        assert_eq!(usize::from(reclaim(&*volume(disk), None).unwrap().number), number);
        let store = open(&disks).unwrap();
        run.compare_some(&store, 10);
        assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
        store.close().unwrap();
    }
    // One that has left leaves no label.
    let store = open(&disks).unwrap();
    store.leave_volume(0).unwrap();
    while store.leaving().is_some() {
        store.step_leave(1 << 20).unwrap();
    }
    assert!(identify_by_label(&*volume(&disks[0])).unwrap().is_none());
    assert!(matches!(reclaim(&*volume(&disks[0]), None), Err(Error::NotAStore(_))));
}

#[test]
fn of_a_damaged_newest_superblock_the_label_has_another() {
    let mut run = Run::new(9);
    let disk = SimDisk::new(SIZE);
    create(&disk);
    for round in 0..8 {
        let store = open(std::slice::from_ref(&disk)).unwrap();
        (0..10).for_each(|_| run.transaction(&store).unwrap());
        store.close().unwrap();
        drop(store);
        for slot in [0, 64 << 10] {
            let rotten = disk.fork();
            rotten.flip(slot + 100, 3);
            let store =
                open(std::slice::from_ref(&rotten)).unwrap_or_else(|e| panic!("round {round}, slot {slot}: {e}"));
            run.compare_some(&store, 10);
            let mut report = store.begin_scrub(7, false).unwrap();
            while store.step_scrub(&mut report, 1 << 30).unwrap() {}
            assert!(report.damages.is_empty());
            store.close().unwrap();
            drop(store);
            run.compare_some(&open(std::slice::from_ref(&rotten)).unwrap(), 10);
        }
    }
}

#[test]
fn after_a_power_failure_at_any_event_the_label_leads_to_all_that_was_synced() {
    let base = new_disk(SIZE, 4);
    create(&base);
    let disk = base.fork();
    let mut run = Run::new(77);
    let store = open(std::slice::from_ref(&disk)).unwrap();
    disk.record();
    let mut synced = vec![];
    for i in 0..40 {
        run.transaction(&store).unwrap();
        match i % 10 {
            3 | 7 => store.checkpoint().unwrap(),
            5 => drop(store.clean(run.now, &mut |_| ()).unwrap()),
            9 => synced.push((store.sync().unwrap(), disk.events())),
            _ => {}
        }
    }
    let full = run.model.clone();
    println!("{} events", disk.events());
    for n in 0..=disk.events() {
        for mode in 0..3 {
            let mut rng = fastrand::Rng::with_seed(n as u64);
            let mut keep = |_| if mode == 2 { rng.bool() } else { mode == 1 };
            let crashed = SimDisk::crashed(&base, &disk, n, &mut keep);
            overwrite_beginning(&crashed);
            reclaim(&*volume(&crashed), None).unwrap();
            let store = open(std::slice::from_ref(&crashed)).unwrap_or_else(|e| panic!("event {n}, mode {mode}: {e}"));
            let must = synced.iter().rev().find(|(_, at)| *at <= n).map_or(Tid(0), |(tid, _)| *tid);
            assert!(store.tid() >= must, "event {n}, mode {mode}");
            run.model = full.clone();
            run.model.cut(store.tid());
            run.compare_some(&store, 1);
        }
    }
}

#[test]
fn a_scrub_writes_a_damaged_label_anew() {
    let disk = SimDisk::new(SIZE);
    create(&disk);
    let store = open(std::slice::from_ref(&disk)).unwrap();
    let mut tx = store.begin(FS, 100).unwrap();
    tx.put(ObjectId(5), Kind::ATTR, b"", b"x");
    tx.commit().unwrap();
    store.checkpoint().unwrap();
    (0..2).for_each(|slot| disk.flip(SIZE - (1 << 20) + slot * (64 << 10) + 100, 1));
    assert!(identify_by_label(&*volume(&disk)).unwrap().is_none());
    let mut report = store.begin_scrub(100, false).unwrap();
    while store.step_scrub(&mut report, BUDGET).unwrap() {}
    assert_eq!((report.healed, report.damages.len()), (1, 0));
    assert!(identify_by_label(&*volume(&disk)).unwrap().is_some());
}
