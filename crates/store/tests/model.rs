//! The store against a plain model by tid: random transactions, flushes, merges, clean and unclean reopening, and a power
//! failure after every write and flush.

mod common;

use std::sync::Arc;

use common::{FS, Run, create, cut_at_every_event, new_disk, open};
use darner_store::volume::RawVolume;
use darner_store::volume::sim::{Fault, SimDisk};
use darner_store::{IndexFrom, Key, Kind, ObjectId, OpenOptions, Store, Tid};

#[test]
fn random_transactions_equal_the_model_at_every_tid_across_reopening() {
    let rounds: u64 = std::env::var("DARNER_MODEL_ROUNDS").ok().and_then(|v| v.parse().ok()).unwrap_or(6);
    for seed in 0..rounds {
        println!("seed {seed}");
        let disk = new_disk(4 << 30, seed);
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
                    let options = OpenOptions { read_only: true, index: IndexFrom::Segments, ..OpenOptions::default() };
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
    let base = new_disk(192 << 20, seed);
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
        cut_at_every_event((&base, &log), &synced, &mut run, (seed, 1), &mut |n, store, disk, run| {
            run.compare(&store, Tid::MAX);
            run.compare_some(&store, 1);
            // It goes on, and what it says now survives the next failure.
            let mut again = Run { model: run.model.clone(), now: run.now, ..Run::new(n as u64) };
            if n % 7 == 0 {
                again.transaction(&store).unwrap();
                store.sync().unwrap();
                drop(store);
                let store = open(disk).unwrap();
                again.compare(&store, Tid::MAX);
            }
        });
    }
}

#[test]
fn when_the_nth_disk_operation_fails_there_is_an_error_and_never_a_wrong_answer() {
    for (fault, seed) in [(Fault::Io, 0), (Fault::Io, 1), (Fault::NoSpace, 0), (Fault::NoSpace, 1)] {
        for n in 1.. {
            let disk = new_disk(1 << 30, seed);
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
    let pages = disk.written_pages();
    for page in pages.iter().cycle().take(20 * pages.len()) {
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
    println!("{} bits flipped, {refused} opens refused, {failed} reads failed", 20 * pages.len());
    assert!(failed > 0);
}
