//! Filesets that are kept twice in a store that has one copy of the rest: whichever disk is lost, they are whole.

mod common;

use std::sync::Arc;

use common::disks::{self, Acts, SIZE, copy_all, cut_both, degraded, fork, open, open_as, volume};
use common::{FS, Run, create, new_disk, overlay};
use darner_store::volume::Copies;
use darner_store::volume::sim::{Fault, SimDisk};
use darner_store::{CATALOGUE, Error, FilesetId, Grid, Kind, Lineage, ObjectId, Store, Tid};

/// One that is not kept twice.
const OTHER: FilesetId = FilesetId(2);
const CLONE: FilesetId = FilesetId(3);

/// A store on two new disks.
fn two(seed: u64) -> ([SimDisk; 2], Store) {
    let disks = disks::two(seed);
    create(&disks[0]);
    let store = open(&disks);
    store.add_volume(volume(&disks[1]), 0).unwrap();
    make_fileset(&store, 6, OTHER, None);
    (disks, store)
}

fn make_fileset(store: &Store, now: u64, fileset: FilesetId, base: Option<FilesetId>) {
    let mut tx = store.begin(FS, now).unwrap();
    tx.turn(CATALOGUE, 0, 0);
    let mut value = Vec::new();
    Lineage { created: tx.tid(), base: base.map(|base| (base, Tid(tx.tid().0 - 1))) }.encode(&mut value);
    tx.put(ObjectId(0), Kind::FILESET, &fileset.0.to_be_bytes(), &value);
    tx.commit().unwrap();
}

/// Writes a file of the other fileset.
fn write_other(run: &mut Run, store: &Store, len: usize) -> Result<(), Error> {
    let bytes: Vec<u8> = std::iter::repeat_with(|| run.rng.u8(..)).take(len).collect();
    run.now += 1;
    for (n, part) in bytes.chunks(1 << 20).enumerate() {
        let mut tx = store.begin_for(OTHER, run.now, Some(part.len() as u64))?;
        tx.write(ObjectId(7), (n as u64) << 20, part)?;
        run.model.tids.push(tx.commit()?);
    }
    Ok(())
}

/// A file of FS gets bytes that the other fileset has: they are shared.
fn share_other(run: &mut Run, store: &Store) -> Result<(), Error> {
    let (object, len) = (run.objects[run.rng.usize(..5)], 30_000);
    let pieces = store.map(OTHER, ObjectId(7), 0, len, Tid::MAX)?;
    let mut bytes = vec![0; len as usize];
    store.read(&pieces, &mut bytes)?;
    run.now += 1;
    let mut tx = store.begin(FS, run.now)?;
    tx.share(ObjectId(object), 0, &pieces)?;
    let tid = tx.commit()?;
    let now = overlay(run.model.file(object, Tid::MAX).to_vec(), 0, &bytes);
    run.model.files.entry(object).or_default().insert(tid, Arc::new(now));
    run.model.tids.push(tid);
    Ok(())
}

fn act(run: &mut Run, store: &Store) -> Result<(), Error> {
    match run.rng.u8(0..40) {
        0..=2 => assert!(store.sync()? <= store.tid()),
        3..=4 => store.checkpoint()?,
        5 => drop(store.step()?),
        6..=7 => drop(store.step_clean(run.now)?),
        8..=9 => drop(store.clean(run.now, &mut |_| ())?),
        10..=14 => drop(store.step_copies(run.rng.u64(1 << 10..200 << 10))?),
        15 => run.kill(store)?,
        16..=20 => {
            let len = run.rng.usize(..300_000);
            write_other(run, store, len)?;
        }
        21..=22 => share_other(run, store)?,
        _ => run.transaction(store)?,
    }
    Ok(())
}

/// FS is as the model says with either disk alone.
fn is_whole_on_each(disks: &[SimDisk], run: &mut Run) {
    for disk in disks {
        let store = open_as(&fork(std::slice::from_ref(disk)), &degraded()).unwrap();
        run.compare_some(&store, 4);
    }
}

#[test]
fn a_fileset_that_is_kept_twice_survives_any_one_disk() {
    let rounds: u64 = std::env::var("DARNER_VOLUME_ROUNDS").ok().and_then(|v| v.parse().ok()).unwrap_or(3);
    for seed in 0..rounds {
        let (disks, mut store) = two(seed);
        let mut run = Run::new(seed + 900);
        for step in 0..260 {
            match run.rng.u8(0..24) {
                0 => store.keep_twice(FS, run.rng.u8(0..4) > 0).unwrap(),
                1 => store.keep_twice(OTHER, run.rng.u8(0..4) == 0).unwrap(),
                2 => copy_all(&store),
                3 => store.set_copies([Copies::One, Copies::Index, Copies::Two][run.rng.usize(..3)]).unwrap(),
                _ => act(&mut run, &store).unwrap(),
            }
            if step % 26 == 25 {
                store.sync().unwrap();
                drop(store);
                store = open(&disks);
                run.compare_some(&store, 2);
                if run.rng.bool() {
                    store.keep_twice(FS, true).unwrap();
                    copy_all(&store);
                    store.sync().unwrap();
                    is_whole_on_each(&disks, &mut run);
                }
            }
        }
        store.keep_twice(FS, true).unwrap();
        store.keep_twice(OTHER, false).unwrap();
        store.set_copies(Copies::One).unwrap();
        copy_all(&store);
        assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
        store.close().unwrap();
        drop(store);
        is_whole_on_each(&disks, &mut run);
        // A cleaner that works with one disk, and an index that is derived, keep what there is.
        let store = open(&disks);
        assert_eq!(store.kept_twice(), [FS].into());
        store.clean(run.now, &mut |_| ()).unwrap();
        copy_all(&store);
        store.close().unwrap();
        drop(store);
        is_whole_on_each(&disks, &mut run);
    }
}

#[test]
fn what_is_not_kept_twice_takes_its_room_once() {
    let (disks, store) = two(0);
    let mut run = Run::new(7);
    store.keep_twice(FS, true).unwrap();
    let used = |store: &Store| store.volumes().unwrap().iter().map(|v| v.used).sum::<u64>();
    (0..20).for_each(|_| run.transaction(&store).unwrap());
    // (A cleaning begins a new segment.)
    store.clean(run.now, &mut |_| ()).unwrap();
    let before = used(&store);
    write_other(&mut run, &store, 20 << 20).unwrap();
    store.clean(run.now, &mut |_| ()).unwrap();
    store.checkpoint().unwrap();
    copy_all(&store);
    store.checkpoint().unwrap();
    let once = used(&store) - before;
    assert!((20 << 20..26 << 20).contains(&once), "{once} bytes more are in use");
    store.keep_twice(OTHER, true).unwrap();
    let lacking = store.left_to_copy().1;
    assert!(lacking > 18 << 20, "{lacking} bytes are lacking");
    copy_all(&store);
    store.checkpoint().unwrap();
    let twice = used(&store) - before;
    assert!(twice > 38 << 20, "{twice} bytes more are in use");
    for fileset in [OTHER, FS] {
        store.keep_twice(fileset, false).unwrap();
        copy_all(&store);
    }
    store.clean(run.now, &mut |_| ()).unwrap();
    copy_all(&store);
    store.close().unwrap();
    assert!(used(&store) - before < 26 << 20, "{} bytes are in use at last, {before} before", used(&store));
    run.compare_some(&store, 5);
    drop(store);
    run.compare_some(&open(&disks), 5);
}

#[test]
fn bytes_that_a_file_shares_with_another_fileset_are_kept_twice() {
    let (disks, store) = two(0);
    let mut run = Run::new(9);
    store.keep_twice(FS, true).unwrap();
    store.clean(run.now, &mut |_| ()).unwrap();
    write_other(&mut run, &store, 2 << 20).unwrap();
    store.clean(run.now, &mut |_| ()).unwrap();
    store.checkpoint().unwrap();
    copy_all(&store);
    share_other(&mut run, &store).unwrap();
    assert!(store.left_to_copy().1 > 2 << 20, "{:?}", store.left_to_copy());
    // As a crash leaves it: in the log only.
    store.sync().unwrap();
    for store in [open(&fork(&disks)), store] {
        assert!(store.left_to_copy().1 > 2 << 20, "{:?}", store.left_to_copy());
        copy_all(&store);
        store.checkpoint().unwrap();
    }
    is_whole_on_each(&disks, &mut run);
}

#[test]
fn the_cleaner_packs_what_is_kept_twice_apart_and_twice() {
    let (disks, store) = two(0);
    let mut run = Run::new(10);
    store.keep_twice(FS, true).unwrap();
    copy_all(&store);
    for fileset in [FS, OTHER] {
        store.retain(fileset, run.now, |r| r.with_grid(Grid::default())).unwrap();
    }
    store.clean(run.now, &mut |_| ()).unwrap();
    copy_all(&store);
    store.checkpoint().unwrap();
    let before = store.usage().unwrap().used;
    for fileset in [FS, OTHER, FS, OTHER] {
        // Of each segment half is needed, in the end.
        for n in 0..24 {
            run.now += 1;
            let mut tx = store.begin(fileset, run.now).unwrap();
            let bytes: Vec<u8> = std::iter::repeat_with(|| run.rng.u8(..)).take(200_000).collect();
            let object = [900, 901 + n][n as usize % 2];
            tx.write(ObjectId(object), 0, &bytes).unwrap();
            tx.commit().unwrap();
        }
        store.clean(run.now, &mut |_| ()).unwrap();
    }
    store.checkpoint().unwrap();
    assert_eq!(store.left_to_copy(), (0, 0));
    copy_all(&store);
    store.checkpoint().unwrap();
    // Of the needed bytes those of one fileset are there twice (both: 5.4 times and more).
    let used = store.usage().unwrap().used - before;
    let needed = 13 * 200_000;
    assert!((3 * needed..5 * needed).contains(&used), "{used} bytes for {needed} of each");
    drop(store);
    for disk in &disks {
        let store = open_as(&[disk.fork()], &degraded()).unwrap();
        for n in 0..12 {
            let pieces = store.map(FS, ObjectId([900, 901 + n][n as usize % 2]), 0, 200_000, Tid::MAX).unwrap();
            store.read(&pieces, &mut vec![0; 200_000]).unwrap();
        }
        // What is missing is not cleaned; the rest is.
        store.clean(run.now, &mut |_| ()).unwrap();
    }
}

#[test]
fn what_a_clone_shows_is_kept_twice_with_it() {
    let (disks, store) = two(1);
    let mut run = Run::new(8);
    (0..40).for_each(|_| run.transaction(&store).unwrap());
    store.clean(run.now, &mut |_| ()).unwrap();
    run.now += 1;
    make_fileset(&store, run.now, CLONE, Some(FS));
    store.keep_twice(CLONE, true).unwrap();
    // As a crash leaves it: that there is a clone is in the log only.
    copy_all(&store);
    (0..10).for_each(|_| run.transaction(&store).unwrap());
    store.sync().unwrap();
    is_whole_on_each(&disks, &mut run);
    drop(store);
    let store = open(&disks);
    copy_all(&store);
    (0..10).for_each(|_| run.transaction(&store).unwrap());
    store.clean(run.now, &mut |_| ()).unwrap();
    copy_all(&store);
    store.close().unwrap();
    is_whole_on_each(&disks, &mut run);
}

#[test]
fn a_power_failure_at_any_write_leaves_what_is_kept_twice_on_either_disk_alone() {
    let seeds: u64 = std::env::var("DARNER_CRASH_SEEDS").ok().and_then(|v| v.parse().ok()).unwrap_or(2);
    for seed in 0..seeds {
        let (disks, store) = two(seed);
        store.keep_twice(FS, true).unwrap();
        copy_all(&store);
        store.close().unwrap();
        drop(store);
        let step = |run: &mut Run, store: &Store, i: usize| {
            act(run, store).unwrap();
            match i % 20 {
                3 => store.checkpoint().unwrap(),
                9 => drop(store.clean(run.now, &mut |_| ()).unwrap()),
                12 => store.keep_twice(OTHER, i > 30).unwrap(),
                13..=18 => drop(store.step_copies(300 << 10).unwrap()),
                19 => copy_all(store),
                _ => {}
            }
        };
        cut_both(seed, &disks, &mut Run::new(seed + 177), &Acts { step: &step, after: &|_| (), alone: 2 });
    }
}

#[test]
fn where_a_fileset_can_not_be_kept_twice_nothing_has_changed() {
    let (disks, store) = two(0);
    let mut run = Run::new(21);
    for _ in 0..6 {
        (0..20).for_each(|_| act(&mut run, &store).unwrap());
        store.clean(run.now, &mut |_| ()).unwrap();
    }
    store.close().unwrap();
    drop(store);
    for n in 1.. {
        let disks = fork(&disks);
        let store = open(&disks);
        let before = disks[0].operations();
        disks[0].fail_nth(n, Fault::Io);
        let outcome = store.keep_twice(FS, true);
        let over = disks[0].operations() - before < n;
        disks[0].fail_nth(u64::MAX / 2, Fault::Io);
        assert_eq!(store.kept_twice().contains(&FS), outcome.is_ok(), "operation {n}: {outcome:?}");
        if over {
            println!("{n} operations");
            break;
        }
        drop(store);
        let store = open(&disks);
        store.keep_twice(FS, true).unwrap();
        copy_all(&store);
        store.sync().unwrap();
        is_whole_on_each(&disks, &mut run);
    }
}

#[test]
fn one_disk_is_not_enough_nor_is_too_little_room() {
    let disk = new_disk(SIZE, 0);
    create(&disk);
    let store = open(std::slice::from_ref(&disk));
    let refused = store.keep_twice(FS, true).unwrap_err();
    assert!(matches!(&refused, Error::Refused(why) if why.contains("two volumes")), "{refused}");
    let mut run = Run::new(3);
    write_other(&mut run, &store, 90 << 20).unwrap();
    store.add_volume(volume(&disk.beside(64 << 20)), 0).unwrap();
    let refused = store.keep_twice(OTHER, true).unwrap_err();
    assert!(matches!(&refused, Error::Refused(why) if why.contains("more are needed")), "{refused}");
    assert_eq!(store.kept_twice(), [].into());
    // What takes less has room.
    run.transaction(&store).unwrap();
    store.keep_twice(FS, true).unwrap_or_else(|e| panic!("{e}"));
}
