//! Volumes that come, are emptied and go, against the model by tid: every moment shows what it did, whichever volumes it is on;
//! across reopening by any of them, power failures at every write, and failing operations.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use common::{FS, Run, new_disk};
use darner_store::volume::sim::{Fault, SimDisk};
use darner_store::volume::{DirVolume, RawVolume, Volume};
use darner_store::{
    CreateOptions, Error, Grid, IndexFrom, Move, ObjectId, OpenOptions, Progress, Store, Tid, identify,
};

const SIZE: u64 = 128 << 20;
const BUDGET: u64 = 100 << 10;

fn volume(disk: &SimDisk) -> Arc<dyn Volume> {
    Arc::new(RawVolume::new(Arc::new(disk.clone())))
}

/// Opens by one disk; the others are there.
fn open_by(disks: &[SimDisk], first: usize) -> Result<Store, Error> {
    let order = (first..disks.len()).chain(0..first);
    let volumes: Vec<_> = order.map(|i| volume(&disks[i])).collect();
    Store::open_volumes(&volumes, &OpenOptions::small())
}

/// Opens by whichever disk the store is on.
fn open(disks: &[SimDisk]) -> Store {
    let mut failed = Vec::new();
    for i in 0..disks.len() {
        match open_by(disks, i) {
            Ok(store) => return store,
            Err(e) => failed.push(e.to_string()),
        }
    }
    panic!("{failed:?}")
}

fn create(disk: &SimDisk) {
    let options = CreateOptions { now_ns: 5, seed: Some([3; 32]), ..CreateOptions::default() };
    Store::create(&*volume(disk), &options).unwrap();
}

fn numbers(store: &Store) -> Vec<u16> {
    store.volumes().unwrap().iter().map(|v| v.entry.number).collect()
}

/// Disks that are no volume at the moment.
fn unused(store: &Store, disks: &[SimDisk]) -> Vec<usize> {
    let mine = |i: &usize| identify(&*volume(&disks[*i])).is_ok_and(|id| numbers(store).contains(&id.number));
    (0..disks.len()).filter(|i| !mine(i)).collect()
}

/// Empties what is leaving to the end.
fn finish_leaving(store: &Store) -> Result<(), Error> {
    while store.leaving().is_some() {
        assert_eq!(store.step_leave(1 << 20)?, Progress::Worked, "nobody reads anything");
    }
    Ok(())
}

fn move_all(store: &Store, wanted: &Move) -> Result<(), Error> {
    while store.step_move(wanted, 1 << 20)? == Progress::Worked {}
    assert_eq!(store.left_to_move(wanted).0, 0);
    Ok(())
}

/// One step of whatever there is.
fn act(run: &mut Run, store: &Store, disks: &[SimDisk]) -> Result<(), Error> {
    let pick = |run: &mut Run, from: &[u16]| from[run.rng.usize(..from.len())];
    let volumes = numbers(store);
    match run.rng.u8(0..48) {
        0 => drop(store.sync()?),
        1 => store.write_out()?,
        2..=3 => store.checkpoint()?,
        4..=5 => drop(store.step()?),
        6..=7 => drop(store.step_clean(run.now)?),
        8 => drop(store.clean(run.now, &mut |_| ())?),
        9..=10 => {
            let unused = unused(store, disks);
            if !unused.is_empty() {
                store.add_volume(volume(&disks[unused[run.rng.usize(..unused.len())]]), 0)?;
            }
        }
        11..=12 => match store.leave_volume(pick(run, &volumes)) {
            Err(Error::Refused(_)) => {}
            outcome => outcome?,
        },
        13..=22 => {
            let budget = run.rng.u64(1 << 10..200 << 10);
            store.step_leave(budget)?;
        }
        23 => finish_leaving(store)?,
        24 => {
            let (from, to) = (pick(run, &volumes), pick(run, &volumes));
            if from != to && store.leaving().is_none() {
                move_all(store, &store.all_on(from, Some(to)))?;
            }
        }
        25 => run.kill(store)?,
        26..=28 => {
            store.want_collapse();
            store.step_clean(run.now)?;
        }
        _ => run.transaction(store)?,
    }
    Ok(())
}

#[test]
fn volumes_come_and_go_and_every_moment_shows_what_it_did() {
    let rounds: u64 = std::env::var("DARNER_VOLUME_ROUNDS").ok().and_then(|v| v.parse().ok()).unwrap_or(6);
    for seed in 0..rounds {
        println!("seed {seed}");
        let disks: Vec<SimDisk> = (0..4).map(|i| new_disk(SIZE + (i << 20), seed + i)).collect();
        create(&disks[0]);
        let mut run = Run::new(seed + 500);
        let mut store = open(&disks);
        for step in 0..500 {
            act(&mut run, &store, &disks).unwrap();
            if run.rng.u8(0..50) == 0 {
                if run.rng.bool() {
                    store.close().unwrap();
                } else {
                    store.sync().unwrap();
                }
                let unused = unused(&store, &disks);
                drop(store);
                // Any of them leads to all.
                let by = run.rng.usize(..disks.len());
                store = match open_by(&disks, by) {
                    Ok(store) => store,
                    Err(e) => {
                        assert!(unused.contains(&by), "{e}");
                        open(&disks)
                    }
                };
            }
            if step % 25 == 0 {
                run.compare_some(&store, 3);
            }
        }
        finish_leaving(&store).unwrap();
        run.compare_some(&store, 30);
        store.sync().unwrap();
        assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
        store.close().unwrap();
    }
}

#[test]
fn a_store_that_swaps_its_only_volume_for_another_three_times_stays_as_it_was() {
    for directories in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let new = |i: u64| -> Arc<dyn Volume> {
            if !directories {
                return volume(&new_disk(SIZE, i));
            }
            let path = dir.path().join(i.to_string());
            std::fs::create_dir(&path).unwrap();
            Arc::new(DirVolume::open(&path, true))
        };
        let first = new(0);
        let options = CreateOptions { now_ns: 5, seed: Some([3; 32]), ..CreateOptions::default() };
        Store::create(&*first, &options).unwrap();
        let mut run = Run::new(900);
        let mut held = first;
        for i in 1..=3 {
            let store = Store::open(held.clone(), &OpenOptions::default()).unwrap();
            for step in 0..120 {
                run.transaction(&store).unwrap();
                if step % 30 == 7 {
                    store.checkpoint().unwrap();
                }
                if step % 40 == 9 {
                    store.clean(run.now, &mut |_| ()).unwrap();
                }
            }
            let next = new(i);
            let number = store.add_volume(next.clone(), 0).unwrap();
            store.leave_volume(number - 1).unwrap();
            while store.leaving().is_some() {
                run.transaction(&store).unwrap();
                store.step_leave(BUDGET).unwrap();
            }
            assert_eq!(numbers(&store), [number]);
            run.compare_some(&store, 20);
            store.sync().unwrap();
            assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
            store.close().unwrap();
            drop(store);
            let gone = Store::open(held, &OpenOptions::default()).map(drop).unwrap_err();
            assert!(matches!(gone, Error::NotAStore(_)), "{gone}");
            held = next;
        }
        let options = OpenOptions { read_only: true, index: IndexFrom::Segments, ..OpenOptions::default() };
        run.compare_some(&Store::open(held.clone(), &options).unwrap(), 20);
        run.compare_some(&Store::open(held, &OpenOptions::default()).unwrap(), 20);
    }
}

#[test]
fn a_power_failure_while_volumes_come_and_go_changes_nothing_that_is_visible() {
    let seeds: u64 = std::env::var("DARNER_CRASH_SEEDS").ok().and_then(|v| v.parse().ok()).unwrap_or(2);
    for seed in 0..seeds {
        let bases: Vec<SimDisk> = (0..3).map(|i| new_disk(SIZE, seed + i)).collect();
        create(&bases[0]);
        let first = bases[0].fork();
        let disks: Vec<SimDisk> = [first.clone()].into_iter().chain((1..3).map(|_| first.beside(SIZE))).collect();
        let mut run = Run::new(seed + 170);
        let store = open(&disks);
        first.record();
        let mut synced = vec![];
        for i in 0..60 {
            run.transaction(&store).unwrap();
            match i % 20 {
                3 => {
                    let unused = unused(&store, &disks);
                    store.add_volume(volume(&disks[unused[0]]), 0).unwrap();
                }
                8 => store.leave_volume(numbers(&store)[0]).unwrap(),
                9..=13 => drop(store.step_leave(BUDGET).unwrap()),
                14 => finish_leaving(&store).unwrap(),
                16 if i > 20 => store.checkpoint().unwrap(),
                17 => drop(store.clean(run.now, &mut |_| ()).unwrap()),
                5 => {
                    let all = numbers(&store);
                    move_all(&store, &store.all_on(all[0], Some(all[1]))).unwrap();
                }
                _ => {}
            }
            if run.rng.u8(0..8) == 0 {
                let tid = store.sync().unwrap();
                synced.push((first.events(), tid));
            }
        }
        println!("seed {seed}: {} events", first.events());
        let step = 1 + first.events() / 300;
        let full = run.model.clone();
        for n in (0..=first.events()).step_by(step) {
            for mode in 0..3 {
                let mut rng = fastrand::Rng::with_seed(seed * 1000 + n as u64);
                let mut keep = |_| if mode == 2 { rng.bool() } else { mode == 1 };
                let crashed: Vec<SimDisk> =
                    bases.iter().zip(&disks).map(|(base, log)| SimDisk::crashed(base, log, n, &mut keep)).collect();
                let store = open(&crashed);
                let must = synced.iter().rev().find(|(at, _)| *at <= n).map_or(Tid(0), |(_, t)| *t);
                let last = store.tid();
                assert!(last >= must, "seed {seed}, event {n}, mode {mode}: {must} was synced, the log ends at {last}");
                run.model = full.clone();
                run.model.cut(last);
                run.compare_some(&store, 2);
                // And it goes on from there.
                if n % 5 == 0 {
                    finish_leaving(&store).unwrap();
                    run.compare_some(&store, 2);
                    assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
                    drop(store);
                    run.compare_some(&open(&crashed), 1);
                }
            }
        }
    }
}

#[test]
fn when_the_nth_operation_of_a_change_of_volumes_fails_nothing_visible_changes() {
    for (fault, seed) in [(Fault::Io, 0), (Fault::Io, 1), (Fault::NoSpace, 1)] {
        for n in 1.. {
            let first = new_disk(SIZE, seed);
            let disks = [first.clone(), first.beside(SIZE), first.beside(SIZE)];
            create(&first);
            let mut run = Run::new(11);
            let store = open(&disks);
            for _ in 0..25 {
                run.transaction(&store).unwrap();
            }
            store.checkpoint().unwrap();
            store.clean(run.now, &mut |_| ()).unwrap();
            run.transaction(&store).unwrap();
            let change = |store: &Store| -> Result<(), Error> {
                if numbers(store).len() == 1 && store.leaving().is_none() && numbers(store) == [0] {
                    store.add_volume(volume(&disks[1]), 0)?;
                }
                if numbers(store).contains(&0) {
                    store.leave_volume(0)?;
                }
                finish_leaving(store)
            };
            let before = first.operations();
            first.fail_nth(n, fault);
            let outcome = change(&store);
            let over = first.operations() - before < n;
            first.fail_nth(u64::MAX / 2, fault);
            run.compare(&store, Tid::MAX);
            // It goes on where that is safe, and the next open finds all.
            let again = change(&store);
            if outcome.is_ok() {
                again.unwrap();
            }
            run.compare(&store, Tid::MAX);
            drop(store);
            let store = open(&disks);
            run.model.cut(store.tid());
            run.compare(&store, Tid::MAX);
            change(&store).unwrap_or_else(|e| panic!("operation {n}, {fault:?}: {e}"));
            assert!(!numbers(&store).contains(&0), "operation {n}, {fault:?}");
            run.compare_some(&store, 3);
            assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
            if over {
                println!("{n} operations for {fault:?}");
                break;
            }
        }
    }
}

/// A store with something on two volumes.
fn on_two(run: &mut Run) -> [SimDisk; 2] {
    let disks = [SimDisk::new(SIZE), SimDisk::new(SIZE)];
    create(&disks[0]);
    let store = open(&disks);
    store.add_volume(volume(&disks[1]), 0).unwrap();
    for i in 0..60 {
        run.transaction(&store).unwrap();
        if i % 10 == 9 {
            store.checkpoint().unwrap();
        }
    }
    store.close().unwrap();
    drop(store);
    disks
}

#[test]
fn a_missing_outdated_or_foreign_volume_is_named_and_refused() {
    let disks = on_two(&mut Run::new(3));
    let options = OpenOptions::default();
    for (disk, other) in disks.iter().zip([1, 0]) {
        let said = Store::open(volume(disk), &options).map(drop).unwrap_err().to_string();
        assert!(said.contains(&format!("volume {other} of the store")), "{said}");
    }
    let other = SimDisk::new(SIZE);
    Store::create(&*volume(&other), &CreateOptions { now_ns: 5, ..CreateOptions::default() }).unwrap();
    let said = Store::open_volumes(&[volume(&disks[0]), volume(&other)], &options).map(drop).unwrap_err();
    assert!(matches!(said, Error::Missing { number: 1, .. }), "{said}");
    let old = disks[1].fork();
    let store = open(&disks);
    for _ in 0..3 {
        let mut tx = store.begin(FS, 1 << 40).unwrap();
        tx.put(darner_store::ObjectId(70), darner_store::Kind::ATTR, b"", b"x");
        tx.commit().unwrap();
        store.checkpoint().unwrap();
    }
    drop(store);
    let said = Store::open_volumes(&[volume(&disks[0]), volume(&old)], &options).map(drop).unwrap_err().to_string();
    assert!(said.contains("at another time"), "{said}");
}

#[test]
fn a_volume_from_before_an_opening_that_crashed_is_refused_once_something_new_was_durable() {
    for (old, commits, checkpoints) in (0..2).flat_map(|old| [(old, 1, 0), (old, 1, 1), (old, 5, 0), (old, 5, 2)]) {
        let disks = [SimDisk::new(SIZE), SimDisk::new(SIZE)];
        create(&disks[0]);
        let store = open(&disks);
        store.add_volume(volume(&disks[1]), 0).unwrap();
        let commit = |store: &Store, n: u64| {
            let mut tx = store.begin(FS, 100 + n).unwrap();
            tx.put(ObjectId(70), darner_store::Kind::ATTR, &n.to_be_bytes(), b"x");
            tx.commit().unwrap();
        };
        commit(&store, 0);
        store.close().unwrap();
        drop(store);
        // Looking at it changes nothing.
        let before = [0, 1].map(|i: usize| disks[i].fork());
        let store = open(&disks);
        store.sync().unwrap();
        store.close().unwrap();
        drop(store);
        let mixed = |before: &[SimDisk; 2]| {
            let mut mixed = disks.clone();
            mixed[old] = before[old].fork();
            let volumes = mixed.each_ref().map(volume);
            Store::open_volumes(&volumes, &OpenOptions::small())
        };
        drop(mixed(&before).unwrap());
        let before = [0, 1].map(|i: usize| disks[i].fork());
        let store = open(&disks);
        (1..=commits).for_each(|n| commit(&store, n));
        store.sync().unwrap();
        (0..checkpoints).for_each(|_| store.checkpoint().unwrap());
        drop(store);
        let said = mixed(&before).map(drop).unwrap_err().to_string();
        assert!(said.contains("at another time"), "{said}");
        // And what is there is whole.
        let store = open(&disks);
        assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
    }
}

#[test]
fn a_volume_leaves_only_where_the_others_have_the_room_and_says_how_much_is_needed() {
    let (large, small) = (SimDisk::new(512 << 20), SimDisk::new(64 << 20));
    create(&large);
    let store = open(&[large.clone(), small.clone()]);
    let said = store.leave_volume(0).unwrap_err().to_string();
    assert!(said.contains("the only one"), "{said}");
    let mut data = vec![0; 1 << 20];
    fastrand::Rng::with_seed(1).fill(&mut data);
    for i in 0..80 {
        let mut tx = store.begin(FS, 100).unwrap();
        tx.write(darner_store::ObjectId(5), i << 20, &data).unwrap();
        tx.commit().unwrap();
    }
    store.sync().unwrap();
    store.add_volume(volume(&small), 0).unwrap();
    let said = store.leave_volume(0).unwrap_err().to_string();
    assert!(said.contains("more are needed"), "{said}");
    assert!(store.leaving().is_none());
    assert_eq!(numbers(&store), [0, 1]);
    store.leave_volume(1).unwrap();
    finish_leaving(&store).unwrap();
    assert_eq!(numbers(&store), [0]);
    assert!(matches!(store.add_volume(volume(&SimDisk::new(32 << 20)), 0), Err(Error::Refused(_))));
}

#[test]
fn whoever_lists_volumes_while_they_come_and_go_finds_each_there_or_not_at_all() {
    let disks = [SimDisk::new(SIZE), SimDisk::new(SIZE)];
    create(&disks[0]);
    let store = open(&disks);
    let is_over = AtomicBool::new(false);
    // How often there were one and two.
    let seen = [const { AtomicU32::new(0) }; 2];
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let volumes = store.volumes().unwrap();
                assert!(volumes.iter().all(|v| !v.missing && !v.failed), "{volumes:?}");
                seen[volumes.len() - 1].fetch_add(1, Ordering::Relaxed);
                for v in &volumes {
                    assert!(store.volume(v.entry.number).unwrap().is_none_or(|v| !v.missing));
                }
            }
        });
        for _ in 0..300 {
            let number = store.add_volume(volume(&disks[1]), 0).unwrap();
            thread::sleep(Duration::from_micros(fastrand::u64(..500)));
            store.leave_volume(number).unwrap();
            finish_leaving(&store).unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert!(seen.iter().all(|n| n.load(Ordering::Relaxed) > 100), "{seen:?}");
}

#[test]
fn a_volume_that_leaves_while_a_pack_is_on_its_way_to_it_takes_nothing_along() {
    // After however many steps of the cleaner, on whichever volume it is.
    for (steps, number) in (1..12).flat_map(|steps| [(steps, 0), (steps, 1)]) {
        let disks = [SimDisk::new(SIZE), SimDisk::new(SIZE)];
        create(&disks[0]);
        let store = open(&disks);
        store.add_volume(volume(&disks[1]), 0).unwrap();
        let mut file = vec![0; 30 << 20];
        fastrand::Rng::with_seed(31).fill(&mut file);
        let write = |from: usize, to: usize| {
            for at in (from..to).step_by(1 << 20) {
                let mut tx = store.begin(FS, 100).unwrap();
                tx.write(ObjectId(5), at as u64, &file[at..at + (1 << 20)]).unwrap();
                tx.commit().unwrap();
            }
        };
        write(0, 30 << 20);
        // Every other one is written anew, so that each segment keeps something.
        for at in (0..30 << 20).step_by(2 << 20) {
            write(at, at + (1 << 20));
        }
        store.retain(FS, 1000, |r| r.with_grid(Grid::default())).unwrap();
        store.checkpoint().unwrap();
        store.want_collapse();
        for _ in 0..steps {
            store.step_clean(2000).unwrap();
        }
        store.leave_volume(number).unwrap();
        finish_leaving(&store).unwrap();
        assert_eq!(numbers(&store), [1 - number]);
        while store.step_clean(3000).unwrap() == Progress::Worked {}
        let is_whole = |store: &Store| {
            let mut found = vec![0; file.len()];
            let pieces = store.map(FS, ObjectId(5), 0, file.len() as u64, Tid::MAX).unwrap();
            store.read(&pieces, &mut found).unwrap();
            assert!(found == file);
            assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
        };
        is_whole(&store);
        let used = store.usage().unwrap().used;
        store.close().unwrap();
        drop(store);
        let store = open(&disks);
        is_whole(&store);
        assert!(store.usage().unwrap().used <= used, "all that nothing names was given back");
    }
}

#[test]
fn damage_moves_along_and_stays_noticed() {
    let mut run = Run::new(21);
    let disk = SimDisk::new(SIZE);
    create(&disk);
    let store = open(std::slice::from_ref(&disk));
    let mut data = vec![0; 1 << 20];
    run.rng.fill(&mut data);
    let mut tx = store.begin(FS, 100).unwrap();
    tx.write(darner_store::ObjectId(5), 0, &data).unwrap();
    tx.commit().unwrap();
    store.checkpoint().unwrap();
    let at = disk.written_pages().into_iter().filter(|p| *p > 1 << 20).nth(100).unwrap();
    disk.flip(at + 77, 3);
    let other = SimDisk::new(SIZE);
    store.add_volume(volume(&other), 0).unwrap();
    store.leave_volume(0).unwrap();
    finish_leaving(&store).unwrap();
    assert_eq!(numbers(&store), [1]);
    let pieces = store.map(FS, darner_store::ObjectId(5), 0, 1 << 20, Tid::MAX).unwrap();
    assert!(store.read(&pieces, &mut vec![0; 1 << 20]).is_err());
    assert_eq!(store.check(&mut |_, _| ()).all().len(), 1);
}

/// A seal tells how much was reserved for the next segment. What that did not use was given back, and may be an older region's, which
/// was moved there.
#[test]
fn what_was_moved_behind_the_end_of_a_segment_survives_the_replay_of_that_segment() {
    const MIB: u64 = 1 << 20;
    let disk = SimDisk::new(64 * MIB);
    let disks = [disk.clone(), disk.beside(64 * MIB)];
    create(&disks[0]);
    let mut store = open_by(&disks[..1], 0).unwrap();
    let mut rng = fastrand::Rng::with_seed(7);
    let mut files: Vec<Vec<u8>> = Vec::new();
    let mut write = |store: &Store, len: u64| {
        let bytes: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(len as usize).collect();
        let n = files.len() as u64;
        let mut tx = store.begin(FS, 10 + n).unwrap();
        tx.write(ObjectId(10 + n), 0, &bytes).unwrap();
        tx.commit().unwrap();
        store.sync().unwrap();
        files.push(bytes);
    };
    // Small segments, each of them ended by what a crash does.
    for _ in 0..8 {
        write(&store, 300 << 10);
        std::mem::forget(store);
        store = open_by(&disks[..1], 0).unwrap();
    }
    store.add_volume(volume(&disks[1]), 0).unwrap();
    store.checkpoint().unwrap();
    let small = store.all_on(0, None).below;
    // Segments that a replay finds one by another; none of them is used to its end.
    (0..12).for_each(|_| write(&store, 3 * MIB / 2));
    let mut moves: Vec<Move> = (0..small).filter_map(|id| store.region_to(id, 1).ok()).collect();
    // (Not the one that the replay begins in: that would make it begin later.)
    moves.retain(|wanted| wanted.from == 0);
    moves.truncate(7);
    moves.iter().for_each(|wanted| move_all(&store, wanted).unwrap());
    let read_all = |store: &Store| {
        for (n, bytes) in files.iter().enumerate() {
            let pieces = store.map(FS, ObjectId(10 + n as u64), 0, bytes.len() as u64, Tid::MAX).unwrap();
            let mut read = vec![0; bytes.len()];
            store.read(&pieces, &mut read).unwrap_or_else(|e| panic!("file {n}: {e}"));
            assert!(read == *bytes, "file {n}");
        }
    };
    read_all(&store);
    std::mem::forget(store);
    let store = open(&disks);
    // What the segments did not use is given back once more.
    while store.step().unwrap() == Progress::Worked {}
    store.checkpoint().unwrap();
    read_all(&store);
    store.close().unwrap();
    drop(store);
    let store = open(&disks);
    read_all(&store);
    assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
}
