//! Two copies of everything, on disks that fail singly: what one loses the other has, and the store goes on.

mod common;

use std::sync::Arc;

use common::disks::{Acts, SIZE, copy_all, cut_both, degraded, fork, open, open_as, two, volume};
use common::{FS, Run, create, new_disk};
use darner_store::volume::sim::{Fault, SimDisk};
use darner_store::volume::{Copies, DirVolume, Volume};
use darner_store::{CreateOptions, Error, Grid, IndexFrom, ObjectId, OpenOptions, Progress, Store, Tid};

/// A store on some disks, with two copies of everything to come.
fn twice(disks: &[SimDisk]) -> Store {
    create(&disks[0]);
    let store = open(disks);
    disks[1..].iter().for_each(|d| assert!(store.add_volume(volume(d), 0).unwrap() > 0));
    store.set_copies(Copies::Two).unwrap();
    store
}

/// What happens in a store.
fn act(run: &mut Run, store: &Store) -> Result<(), Error> {
    match run.rng.u8(0..40) {
        0..=2 => assert!(store.sync()? <= store.tid()),
        3..=4 => store.checkpoint()?,
        5..=6 => drop(store.step()?),
        7..=8 => drop(store.step_clean(run.now)?),
        9 => drop(store.clean(run.now, &mut |_| ())?),
        10..=14 => drop(store.step_copies(run.rng.u64(1 << 10..200 << 10))?),
        15 => run.kill(store)?,
        _ => run.transaction(store)?,
    }
    Ok(())
}

#[test]
fn copies_come_and_go_and_any_one_volume_may_be_lost() {
    let rounds: u64 = std::env::var("DARNER_VOLUME_ROUNDS").ok().and_then(|v| v.parse().ok()).unwrap_or(2);
    for seed in 0..rounds {
        println!("seed {seed}");
        let first = new_disk(2 * SIZE, seed);
        let disks = [first.clone(), new_disk(2 * SIZE + (3 << 20), seed + 1), new_disk(SIZE, seed)];
        create(&disks[0]);
        let mut run = Run::new(seed + 40);
        let mut store = open(&disks);
        disks[1..].iter().for_each(|d| assert!(store.add_volume(volume(d), 0).unwrap() > 0));
        for step in 0..300 {
            match run.rng.u8(0..30) {
                0 => {
                    let all = [Copies::One, Copies::Index, Copies::Two, Copies::Two];
                    store.set_copies(all[run.rng.usize(..4)]).unwrap();
                }
                1 => copy_all(&store),
                2 => {
                    let (from, to) = (run.rng.u16(0..3), run.rng.u16(0..3));
                    let wanted = store.all_on(from, Some(to));
                    let mut outcome = Ok(Progress::Worked);
                    while from != to && matches!(outcome, Ok(Progress::Worked)) {
                        outcome = store.step_move(&wanted, 1 << 20);
                    }
                    assert!(matches!(outcome, Ok(_) | Err(Error::Refused(_))), "{outcome:?}");
                }
                _ => act(&mut run, &store).unwrap(),
            }
            if step % 30 == 29 {
                let used = |store: &Store| store.volumes().unwrap().iter().map(|v| v.used).collect::<Vec<u64>>();
                if run.rng.bool() {
                    // (Nothing is on its way, nor in use.)
                    copy_all(&store);
                    store.clean(run.now, &mut |_| ()).unwrap();
                    copy_all(&store);
                    store.close().unwrap();
                    let before = used(&store);
                    drop(store);
                    store = open(&disks);
                    assert_eq!(used(&store), before, "{step} what is given back is free");
                } else {
                    store.sync().unwrap();
                    drop(store);
                    store = open(&disks);
                }
                run.compare_some(&store, 3);
            }
        }
        store.set_copies(Copies::Two).unwrap();
        copy_all(&store);
        assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
        run.compare_some(&store, 5);
        store.sync().unwrap();
        drop(store);
        for lost in 0..3 {
            let mut left = fork(&disks);
            left.remove(lost);
            let refused = open_as(&left, &OpenOptions::default()).map(drop).unwrap_err();
            assert!(matches!(refused, Error::Missing { number, .. } if usize::from(number) == lost), "{refused}");
            let store = open_as(&left, &degraded()).unwrap();
            assert!(!store.is_read_only());
            run.compare_some(&store, 5);
            // Two are left, and so there are two copies again.
            copy_all(&store);
            store.close().unwrap();
            drop(store);
            let store = open_as(&left[..1], &degraded()).unwrap();
            run.compare_some(&store, 5);
        }
    }
}

#[test]
fn a_power_failure_at_any_write_leaves_what_was_synced_on_either_disk_alone() {
    let seeds: u64 = std::env::var("DARNER_CRASH_SEEDS").ok().and_then(|v| v.parse().ok()).unwrap_or(2);
    for seed in 0..seeds {
        let disks = two(seed);
        let store = twice(&disks);
        copy_all(&store);
        store.close().unwrap();
        drop(store);
        let step = |run: &mut Run, store: &Store, i: usize| {
            run.transaction(store).unwrap();
            match i % 20 {
                3 => store.checkpoint().unwrap(),
                9 => drop(store.clean(run.now, &mut |_| ()).unwrap()),
                12 => {
                    store.set_copies(if i > 30 { Copies::Index } else { Copies::One }).unwrap();
                    copy_all(store);
                    store.set_copies(Copies::Two).unwrap();
                }
                13..=18 => drop(store.step_copies(300 << 10).unwrap()),
                19 => copy_all(store),
                _ => {}
            }
        };
        let after = |store: &Store| store.set_copies(Copies::Two).unwrap();
        cut_both(seed, &disks, &mut Run::new(seed + 77), &Acts { step: &step, after: &after, alone: 3 });
    }
}

#[test]
fn when_any_operation_fails_on_one_disk_nothing_is_lost_and_the_store_goes_on() {
    let step: u64 = std::env::var("DARNER_VOLUME_ROUNDS").map_or(3, |_| 1);
    for (fault, seed) in [(Fault::Io, 0), (Fault::NoSpace, 1)] {
        let mut over = false;
        let mut n = 0;
        while !over {
            n += step;
            let disks = two(seed);
            let store = twice(&disks);
            let mut run = Run::new(11);
            copy_all(&store);
            let before = disks[0].operations();
            disks[0].fail_nth(n, fault);
            // What fails is tried again, as a daemon does: only writing goes on at once.
            for i in 0..12 {
                run.transaction(&store).unwrap();
                match i % 4 {
                    1 => assert!(Tid(0) < store.sync().unwrap_or_else(|e| panic!("operation {n}, {fault:?}: {e}"))),
                    2 => drop(store.checkpoint()),
                    3 => drop(store.clean(run.now, &mut |_| ())),
                    _ => {}
                }
            }
            over = disks[0].operations() - before < n;
            disks[0].fail_nth(u64::MAX / 2, fault);
            run.compare(&store, Tid::MAX);
            store.sync().unwrap();
            drop(store);
            let store = open(&disks);
            run.compare(&store, Tid::MAX);
            copy_all(&store);
            store.sync().unwrap();
            drop(store);
            for disk in &disks {
                let alone = open_as(&[disk.fork()], &degraded()).unwrap();
                run.compare(&alone, Tid::MAX);
            }
        }
        println!("{n} operations for {fault:?}");
    }
}

#[test]
fn a_disk_that_is_lost_at_any_moment_loses_nothing_and_is_brought_up_to_date_when_it_returns() {
    let step: u64 = std::env::var("DARNER_VOLUME_ROUNDS").map_or(23, |_| 1);
    for lost in 0..2 {
        let mut n = 1;
        loop {
            let disks = two(n % 2);
            let store = twice(&disks);
            let mut run = Run::new(31);
            (0..5).for_each(|_| run.transaction(&store).unwrap());
            copy_all(&store);
            let before = disks[0].operations();
            disks[lost].die_at(n);
            for i in 0..24 {
                run.transaction(&store).unwrap();
                match i % 6 {
                    1 | 4 => assert!(Tid(0) < store.sync().unwrap_or_else(|e| panic!("operation {n}: {e}"))),
                    // These may fail once, and are tried again.
                    2 => drop(store.checkpoint()),
                    3 => drop(store.clean(run.now, &mut |_| ())),
                    5 => drop(store.step_copies(1 << 20)),
                    _ => {}
                }
                if i % 8 == 7 {
                    run.compare(&store, Tid::MAX);
                }
            }
            let over = disks[0].operations() - before < n;
            store.sync().unwrap();
            let failed = store.volumes().unwrap().iter().filter(|v| v.failed).count();
            drop(store);
            let disks = fork(&disks);
            // Without it.
            let left = &disks[1 - lost..][..1];
            let store = open_as(left, &degraded()).unwrap();
            run.compare_some(&store, 2);
            for _ in 0..3 {
                run.transaction(&store).unwrap();
            }
            store.clean(run.now, &mut |_| ()).unwrap();
            store.sync().unwrap();
            drop(store);
            // It is back, as old as it is; opened by either.
            let mut order = disks.clone();
            order.rotate_left((n % 2) as usize);
            let store = open(&order);
            run.compare_some(&store, 2);
            run.transaction(&store).unwrap();
            store.sync().unwrap();
            drop(store);
            let store = open(&order);
            copy_all(&store);
            run.compare(&store, Tid::MAX);
            assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
            store.sync().unwrap();
            drop(store);
            let alone = open_as(&disks[lost..][..1], &degraded()).unwrap();
            run.compare_some(&alone, 2);
            if over {
                println!("disk {lost}: {n} operations, {failed} failed at last");
                break;
            }
            n += step;
        }
    }
}

#[test]
fn a_disk_that_fails_while_the_store_is_opened_is_left_behind_like_any_other() {
    for (lost, closes) in [(0, true), (1, true), (0, false), (1, false)] {
        let mut run = Run::new(51);
        let disks = two(1);
        let store = twice(&disks);
        (0..30).for_each(|_| run.transaction(&store).unwrap());
        copy_all(&store);
        match closes {
            true => store.close().unwrap(),
            false => drop(store.sync().unwrap()),
        }
        drop(store);
        let model = run.model.clone();
        // `None`: it can be read, and takes no writes; else it is dead from its n-th operation on.
        let mut goes_on = true;
        for n in std::iter::once(None).chain((1..).map(Some)) {
            if !goes_on {
                println!("disk {lost}, closed {closes}: {n:?} operations");
                break;
            }
            run.model = model.clone();
            let disks = fork(&disks);
            let failing = &disks[lost];
            n.map_or_else(|| failing.refuse_writes(), |n| failing.die_at(n));
            // (By the other one: it may be dead from the beginning.)
            let mut order = disks.clone();
            order.swap(0, 1 - lost);
            let options = OpenOptions { degraded: n.is_some(), ..OpenOptions::small() };
            let store = open_as(&order, &options).unwrap_or_else(|e| panic!("disk {lost}, {closes}, {n:?}: {e}"));
            goes_on = n.is_none_or(|n| failing.operations() >= n);
            run.compare_some(&store, 2);
            (0..3).for_each(|_| run.transaction(&store).unwrap());
            store.sync().unwrap();
            let _ = store.checkpoint();
            drop(store);
            if n.is_some_and(|n| n % 7 != 0) {
                continue;
            }
            // Opened again, as the next daemon does, and then with it, as good as new.
            let store = open_as(&order, &options).unwrap_or_else(|e| panic!("disk {lost}, {closes}, {n:?}: {e}"));
            run.transaction(&store).unwrap();
            store.sync().unwrap();
            drop(store);
            let disks = fork(&disks);
            let store = open(&disks);
            copy_all(&store);
            run.compare(&store, Tid::MAX);
            store.close().unwrap();
            drop(store);
            run.compare_some(&open_as(&[disks[lost].fork()], &degraded()).unwrap(), 2);
        }
    }
}

#[test]
fn a_disk_that_fails_again_before_it_is_up_to_date_comes_back_all_the_same() {
    for (lost, closes) in [(0, true), (1, true), (0, false), (1, false)] {
        let mut run = Run::new(53);
        let disks = two(1);
        let store = twice(&disks);
        (0..20).for_each(|_| run.transaction(&store).unwrap());
        copy_all(&store);
        disks[lost].die_at(1);
        let goes_on = |run: &mut Run, store: &Store| {
            (0..3).for_each(|_| run.transaction(store).unwrap());
            store.sync().unwrap();
            match closes {
                true => store.close().unwrap(),
                false => drop(store.checkpoint()),
            }
        };
        goes_on(&mut run, &store);
        drop(store);
        let model = run.model.clone();
        for n in 1.. {
            run.model = model.clone();
            let disks = fork(&disks);
            disks[lost].die_at(n);
            let mut order = disks.clone();
            order.swap(0, 1 - lost);
            let store = open_as(&order, &degraded()).unwrap_or_else(|e| panic!("disk {lost}, {closes}, {n}: {e}"));
            goes_on(&mut run, &store);
            let over = disks[lost].operations() < n;
            drop(store);
            for order in [[0, 1], [1, 0]] {
                let disks = order.map(|i| disks[i].fork());
                let store = open_as(&disks, &OpenOptions::small());
                let store = store.unwrap_or_else(|e| panic!("disk {lost}, {closes}, {n}: {e}"));
                run.compare_some(&store, 2);
                copy_all(&store);
                run.compare(&store, Tid::MAX);
                store.close().unwrap();
                drop(store);
                for disk in &disks {
                    run.compare_some(&open_as(&[disk.fork()], &degraded()).unwrap(), 2);
                }
            }
            if over {
                println!("disk {lost}, closed {closes}: {n} operations");
                break;
            }
        }
    }
}

#[test]
fn what_is_free_is_what_fits_twice_also_where_directories_share_a_disk_and_one_is_limited() {
    let dir = tempfile::tempdir().unwrap();
    let paths = [dir.path().join("a"), dir.path().join("b")];
    paths.iter().for_each(|p| std::fs::create_dir(p).unwrap());
    let volume = |i: usize| -> Arc<dyn Volume> { Arc::new(DirVolume::open(&paths[i], true)) };
    let options = CreateOptions { now_ns: 5, seed: Some([3; 32]), ..CreateOptions::default() };
    Store::create(&*volume(0), &options).unwrap();
    let store = Store::open_volumes(&[volume(0)], &OpenOptions::small()).unwrap();
    let limit = 128 << 20;
    store.add_volume(volume(1), limit).unwrap();
    store.set_copies(Copies::Two).unwrap();
    copy_all(&store);
    assert!((1..=limit).contains(&store.usage().unwrap().free), "{:?}", store.usage());
    let mut data = vec![0; 1 << 20];
    fastrand::Rng::with_seed(1).fill(&mut data);
    let full = (0..).find(|n| {
        let mut tx = match store.admit(2 << 20).and_then(|_| store.begin(FS, 100 + n)) {
            Ok(tx) => tx,
            Err(e) => {
                assert!(matches!(e, Error::NoSpace { .. }), "{e}");
                return true;
            }
        };
        tx.write(ObjectId(10 + n), 0, &data).unwrap();
        tx.commit().unwrap();
        store.sync().unwrap();
        assert!(*n < 128, "more than fits twice: {:?}", store.usage());
        false
    });
    assert!(full.is_some_and(|n| n > 20), "{full:?}");
    assert_eq!(store.left_to_copy(), (0, 0));
}

/// Whoever has the directory open has nothing any more; what was in it is elsewhere.
fn vanish(dir: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        std::fs::rename(entry.path(), to.join(entry.file_name())).unwrap();
    }
    std::fs::remove_dir(dir).unwrap();
}

#[test]
fn a_directory_that_goes_away_is_left_behind_and_brought_up_to_date_when_it_returns() {
    for gone in 0..2 {
        let dir = tempfile::tempdir().unwrap();
        let paths = [dir.path().join("a"), dir.path().join("b")];
        paths.iter().for_each(|p| std::fs::create_dir(p).unwrap());
        let dirs = |of: &[usize]| -> Vec<Arc<dyn Volume>> {
            of.iter().map(|i| Arc::new(DirVolume::open(&paths[*i], true)) as _).collect()
        };
        let options = CreateOptions { now_ns: 5, seed: Some([3; 32]), ..CreateOptions::default() };
        Store::create(&*dirs(&[0])[0], &options).unwrap();
        let store = Store::open_volumes(&dirs(&[0, 1])[..1], &OpenOptions::small()).unwrap();
        store.add_volume(dirs(&[1]).remove(0), 0).unwrap();
        store.set_copies(Copies::Two).unwrap();
        let mut run = Run::new(61 + gone as u64);
        (0..5).for_each(|_| run.transaction(&store).unwrap());
        copy_all(&store);
        vanish(&paths[gone], &dir.path().join("away"));
        // Whoever asks first how much room there is is not told an error, and what is made anew is made on the other one.
        assert!(store.usage().unwrap().free > 0);
        for _ in 0..20 {
            run.transaction(&store).unwrap();
            store.sync().unwrap();
        }
        store.clean(run.now, &mut |_| ()).unwrap();
        store.checkpoint().unwrap();
        let volumes = store.volumes().unwrap();
        assert_eq!([0, 1].map(|i| volumes[i].failed), [gone == 0, gone == 1]);
        run.compare(&store, Tid::MAX);
        store.close().unwrap();
        drop(store);
        let store = Store::open_volumes(&dirs(&[1 - gone]), &degraded()).unwrap();
        run.transaction(&store).unwrap();
        store.close().unwrap();
        drop(store);
        std::fs::rename(dir.path().join("away"), &paths[gone]).unwrap();
        let store = Store::open_volumes(&dirs(&[0, 1]), &OpenOptions::small()).unwrap();
        copy_all(&store);
        run.compare(&store, Tid::MAX);
        store.close().unwrap();
        drop(store);
        run.compare(&Store::open_volumes(&dirs(&[gone]), &degraded()).unwrap(), Tid::MAX);
    }
}

#[test]
fn an_old_copy_of_one_volume_is_refused_however_little_older_it_is() {
    for (old, closes, copies) in
        [(0, true, Copies::One), (1, true, Copies::One), (0, true, Copies::Two), (0, false, Copies::One)]
    {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["a", "b", "older"].map(|name| dir.path().join(name));
        paths.iter().for_each(|p| std::fs::create_dir(p).unwrap());
        let dirs = |of: &[usize]| -> Vec<Arc<dyn Volume>> {
            of.iter().map(|i| Arc::new(DirVolume::open(&paths[*i], true)) as _).collect()
        };
        // What is new goes to the one of which there is an old copy: it has most room.
        let limit = |number: usize| if number == old { 0 } else { 128 << 20 };
        let options =
            CreateOptions { now_ns: 5, seed: Some([3; 32]), size_limit: limit(0), ..CreateOptions::default() };
        Store::create(&*dirs(&[0])[0], &options).unwrap();
        let store = Store::open_volumes(&dirs(&[0]), &OpenOptions::small()).unwrap();
        store.add_volume(dirs(&[1]).remove(0), limit(1)).unwrap();
        store.set_copies(copies).unwrap();
        let mut run = Run::new(71);
        let mut some = |store: &Store| (0..40).for_each(|_| run.transaction(store).unwrap());
        some(&store);
        store.close().unwrap();
        drop(store);
        for entry in std::fs::read_dir(&paths[old]).unwrap().map(|e| e.unwrap()) {
            std::fs::copy(entry.path(), paths[2].join(entry.file_name())).unwrap();
        }
        // One checkpoint later, and not more.
        let store = Store::open_volumes(&dirs(&[0, 1]), &OpenOptions::small()).unwrap();
        some(&store);
        match closes {
            true => store.close().unwrap(),
            false => store.checkpoint().unwrap(),
        }
        drop(store);
        let both = if old == 0 { [2, 1] } else { [0, 2] };
        for of in [both, [both[1], both[0]]] {
            let said = Store::open_volumes(&dirs(&of), &OpenOptions::small()).map(drop).unwrap_err().to_string();
            assert!(said.contains("at another time"), "{old} {closes} {copies:?}: {said}");
        }
        let store = Store::open_volumes(&dirs(&[0, 1]), &OpenOptions::small()).unwrap();
        run.compare(&store, Tid::MAX);
    }
}

#[test]
fn two_disks_that_went_on_one_without_the_other_are_refused_together() {
    let disks = two(0);
    let mut run = Run::new(3);
    let store = twice(&disks);
    run.transaction(&store).unwrap();
    copy_all(&store);
    store.close().unwrap();
    drop(store);
    for disk in &disks {
        let store = open_as(std::slice::from_ref(disk), &degraded()).unwrap();
        let mut tx = store.begin(FS, 1 << 40).unwrap();
        tx.put(ObjectId(70), darner_store::Kind::ATTR, b"", b"x");
        tx.commit().unwrap();
        store.close().unwrap();
    }
    for first in 0..2 {
        let order = [disks[first].clone(), disks[1 - first].clone()];
        let said = open_as(&order, &degraded()).map(drop).unwrap_err().to_string();
        assert!(said.contains("both written to"), "{said}");
    }
    // One of them is given up, and then it is nobody's.
    let store = open_as(&disks[..1], &degraded()).unwrap();
    store.lose_volume(1).unwrap();
    drop(store);
    drop(open_as(&disks, &OpenOptions::default()).unwrap());
}

#[test]
fn of_what_a_lost_volume_had_nothing_is_left_once_nobody_needs_it() {
    let disks = two(0);
    create(&disks[0]);
    let store = open(&disks[..1]);
    store.add_volume(volume(&disks[1]), 0).unwrap();
    let write = |store: &Store, objects: std::ops::Range<u64>| {
        for object in objects {
            let mut tx = store.begin(FS, 100 + object).unwrap();
            let bytes: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(100_000).collect();
            tx.put(ObjectId(object), darner_store::Kind::ATTR, b"", b"x");
            tx.write(ObjectId(object), 0, &bytes).unwrap();
            tx.commit().unwrap();
        }
    };
    write(&store, 100..140);
    store.set_copies(Copies::Index).unwrap();
    copy_all(&store);
    let to_other = store.all_on(0, Some(1));
    while store.step_move(&to_other, 64 << 20).unwrap() == Progress::Worked {}
    write(&store, 140..150);
    store.close().unwrap();
    drop(store);
    let store = open_as(&disks[..1], &degraded()).unwrap();
    let (regions, _) = store.lose_volume(1).unwrap();
    assert!(regions > 0);
    store.retain(FS, 1 << 19, |r| r.with_grid(Grid::default())).unwrap();
    let findings = |store: &Store| store.check(&mut |_, _| ()).all().len();
    let remove = |objects: std::ops::Range<u64>, now: u64| {
        for object in objects {
            let mut tx = store.begin(FS, now).unwrap();
            tx.punch(ObjectId(object), 0, u64::MAX).unwrap();
            tx.delete(ObjectId(object), darner_store::Kind::ATTR, b"");
            tx.commit().unwrap();
        }
        store.clean(2 * now, &mut |_| ()).unwrap();
    };
    assert!(findings(&store) > 0);
    // What somebody still needs is told, and not taken for anything else.
    remove(100..139, 1 << 20);
    let pieces = store.map(FS, ObjectId(139), 0, 100_000, Tid::MAX).unwrap();
    assert!(findings(&store) > 0 && store.read(&pieces, &mut vec![0; 100_000]).is_err());
    remove(139..140, 1 << 22);
    assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
    store.close().unwrap();
    drop(store);
    let store = open(&disks[..1]);
    assert_eq!(findings(&store), 0);
    let pieces = store.map(FS, ObjectId(145), 0, 100_000, Tid::MAX).unwrap();
    store.read(&pieces, &mut vec![0; 100_000]).unwrap();
}

#[test]
fn without_copies_a_missing_volume_costs_what_is_on_it_and_the_rest_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let paths = [dir.path().join("a"), dir.path().join("b")];
    paths.iter().for_each(|p| std::fs::create_dir(p).unwrap());
    let dirs = || -> Vec<Arc<dyn Volume>> { paths.iter().map(|p| Arc::new(DirVolume::open(p, true)) as _).collect() };
    let options = CreateOptions { now_ns: 5, seed: Some([3; 32]), ..CreateOptions::default() };
    Store::create(&*dirs()[0], &options).unwrap();
    let store = Store::open_volumes(&dirs(), &OpenOptions::default()).unwrap();
    let mut data = vec![0; 1 << 20];
    fastrand::Rng::with_seed(1).fill(&mut data);
    let write = |store: &Store, object: u64| {
        let mut tx = store.begin(FS, 100 + object).unwrap();
        tx.write(ObjectId(object), 0, &data).unwrap();
        tx.commit().unwrap();
        store.sync().unwrap();
    };
    let read = |store: &Store, object: u64| {
        let pieces = store.map(FS, ObjectId(object), 0, 1 << 20, Tid::MAX).unwrap();
        let mut buf = vec![0; 1 << 20];
        store.read(&pieces, &mut buf).map(|()| assert!(buf == data))
    };
    write(&store, 5);
    store.checkpoint().unwrap();
    let second = store.add_volume(dirs()[1].clone(), 0).unwrap();
    let first_segment = store.region_to(1, second).unwrap();
    while store.step_move(&first_segment, 1 << 20).unwrap() == Progress::Worked {}
    store.set_copies(Copies::Index).unwrap();
    copy_all(&store);
    write(&store, 7);
    store.checkpoint().unwrap();
    store.close().unwrap();
    drop(store);
    let mut written = vec![5, 7];
    // Now without the one, then without the other.
    for (missing, object) in [(1, 8), (0, 9)] {
        let alone = |options: &OpenOptions| Store::open_volumes(&[dirs()[1 - missing].clone()], options);
        let said = alone(&OpenOptions::default()).map(drop).unwrap_err().to_string();
        assert!(said.contains(&format!("volume {missing} of the store")) && said.contains("on it only"), "{said}");
        let store = alone(&degraded()).unwrap();
        assert!(!store.is_read_only() && store.volumes().unwrap()[missing].missing);
        if missing == 1 {
            let said = read(&store, 5).unwrap_err().to_string();
            assert!(said.contains("missing"), "{said}");
        }
        write(&store, object);
        read(&store, object).unwrap();
        written.push(object);
        store.close().unwrap();
        drop(store);
        let store = Store::open_volumes(&dirs(), &OpenOptions::default()).unwrap();
        written.iter().for_each(|object| read(&store, *object).unwrap());
        copy_all(&store);
        // What is there only because a store was closed goes again.
        let (mut last, mut rounds) = (store.volumes().unwrap(), 0);
        while store.step_copies(1 << 20).unwrap() == Progress::Worked {
            rounds += 1;
            assert!(rounds < 100, "{last:?}");
            last = store.volumes().unwrap();
        }
        store.close().unwrap();
    }
    // Cut off without a word, it was written to where nobody knows: then it can be read as it was.
    let store = Store::open_volumes(&dirs(), &OpenOptions::default()).unwrap();
    while store.step_copies(1 << 20).unwrap() == Progress::Worked {}
    store.checkpoint().unwrap();
    write(&store, 10);
    drop(store);
    let cut: Vec<Store> =
        dirs().iter().map(|v| Store::open_volumes(std::slice::from_ref(v), &degraded()).unwrap()).collect();
    let is_cut: Vec<bool> = cut.iter().map(Store::is_cut).collect();
    assert_eq!(is_cut.iter().filter(|cut| **cut).count(), 1, "{is_cut:?}");
    drop(cut);
    let options = OpenOptions { index: IndexFrom::Segments, ..OpenOptions::default() };
    let store = Store::open_volumes(&dirs(), &options).unwrap();
    written.iter().for_each(|object| read(&store, *object).unwrap());
}

#[test]
fn no_copy_is_given_up_where_the_other_is_on_a_volume_that_failed() {
    for lost in 0..2 {
        let disks = two(0);
        let store = twice(&disks);
        let mut run = Run::new(13);
        for _ in 0..8 {
            (0..6).for_each(|_| run.transaction(&store).unwrap());
            store.clean(run.now, &mut |_| ()).unwrap();
        }
        copy_all(&store);
        store.sync().unwrap();
        disks[lost].die_at(1);
        run.transaction(&store).unwrap();
        store.sync().unwrap();
        store.set_copies(Copies::One).unwrap();
        for _ in 0..100 {
            drop(store.step_copies(1 << 20));
        }
        run.compare_some(&store, 5);
        store.sync().unwrap();
        drop(store);
        let store = open_as(&[disks[1 - lost].fork()], &degraded()).unwrap();
        run.compare_some(&store, 5);
    }
}

#[test]
fn a_pack_on_a_missing_volume_does_not_keep_the_rest_from_being_opened() {
    let disks = two(0);
    create(&disks[0]);
    let store = open(&disks);
    store.add_volume(volume(&disks[1]), 0).unwrap();
    store.set_copies(Copies::Index).unwrap();
    store.retain(FS, 10, |r| r.with_grid(Grid::default())).unwrap();
    let mut run = Run::new(12);
    let mut written = Vec::new();
    for now in 100..140 {
        let mut tx = store.begin(FS, now).unwrap();
        let bytes = run.data(100_000);
        // Half of them are overwritten.
        let object = ObjectId(if now % 2 == 0 { 7 } else { now });
        tx.write(object, 0, &bytes).unwrap();
        tx.commit().unwrap();
        written.push((object, bytes));
        if now % 10 == 9 {
            store.clean(now, &mut |_| ()).unwrap();
            // Packs here and there.
            let elsewhere = store.all_on(now as u16 / 10 % 2, Some(1 - now as u16 / 10 % 2));
            while store.step_move(&elsewhere, 1 << 20).is_ok_and(|p| p == Progress::Worked) {}
        }
    }
    written.retain(|(object, _)| *object != ObjectId(7));
    copy_all(&store);
    store.close().unwrap();
    drop(store);
    let mut could_read = 0;
    for disk in &disks {
        let store = open_as(&[disk.fork()], &degraded()).unwrap();
        for (object, bytes) in &written {
            let mut found = vec![0; bytes.len()];
            let pieces = store.map(FS, *object, 0, bytes.len() as u64, Tid::MAX).unwrap();
            match store.read(&pieces, &mut found) {
                Ok(()) => assert!(found == *bytes),
                Err(e) => assert!(e.to_string().contains("missing"), "{e}"),
            }
            could_read += usize::from(found == *bytes);
        }
        if !store.is_read_only() {
            store.clean(200, &mut |_| ()).unwrap();
        }
    }
    assert_eq!(could_read, written.len(), "each is on one of them");
}

/// Flips a bit in some places of one copy, reads, scrubs, and scrubs again.
fn rots(run: &mut Run, disks: &[SimDisk], flips: &[(u64, u8)], rotten: usize) -> u64 {
    let disks = fork(disks);
    for (at, bit) in flips {
        disks[rotten].flip(*at, *bit);
    }
    let store = open(&disks);
    run.compare_some(&store, 1);
    let scrub = || {
        let mut report = store.begin_scrub(7, false).unwrap();
        while store.step_scrub(&mut report, 1 << 20).unwrap() {}
        assert_eq!(report.damages, [], "{flips:?}");
        report.healed
    };
    let healed = scrub();
    copy_all(&store);
    assert_eq!(scrub(), 0, "what was healed stays so");
    store.sync().unwrap();
    drop(store);
    // Not a byte of the one that was spared is needed.
    let alone = open_as(&disks[rotten..=rotten], &degraded()).unwrap();
    run.compare_some(&alone, 1);
    healed
}

#[test]
fn whichever_block_of_one_copy_rots_all_reads_are_right_and_it_is_healed() {
    let step = if std::env::var_os("DARNER_VOLUME_ROUNDS").is_some() { 1 } else { 4 };
    for seed in 0..2 {
        let disks = two(seed);
        let store = twice(&disks);
        let mut run = Run::new(5);
        for i in 0..40 {
            run.transaction(&store).unwrap();
            match i {
                15 | 30 => store.checkpoint().unwrap(),
                25 => drop(store.clean(run.now, &mut |_| ()).unwrap()),
                _ => {}
            }
        }
        copy_all(&store);
        store.close().unwrap();
        drop(store);
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut healed = 0;
        for (i, page) in disks[0].written_pages().into_iter().enumerate() {
            if i % step == 0 {
                healed += rots(&mut run, &disks, &[(page + rng.u64(0..4096), rng.u8(0..8))], i / step % 2);
            }
        }
        // And every block at once.
        let pages = disks[1].written_pages();
        let all: Vec<(u64, u8)> = pages.iter().skip_while(|at| **at < 1 << 20).map(|at| (at + 5, 1)).collect();
        rots(&mut run, &disks, &all, 1);
        println!("{} blocks, {} flipped singly, {healed} places healed by scrubs", pages.len(), pages.len() / step);
        assert!(healed > 0);
    }
}

#[test]
fn of_many_flips_in_two_copies_none_is_returned_and_all_are_healed_that_have_a_good_copy() {
    let flips: usize = std::env::var("DARNER_FLIPS").ok().and_then(|v| v.parse().ok()).unwrap_or(3000);
    let files = (flips as u64 / 120).max(8);
    let size = (files << 21) + (512 << 20);
    let first = SimDisk::new(size);
    let disks = [first.clone(), first.beside(size)];
    let store = twice(&disks);
    let mut rng = fastrand::Rng::with_seed(9);
    let content = |file: u64| {
        let mut bytes = vec![0; 1 << 20];
        fastrand::Rng::with_seed(file).fill(&mut bytes);
        bytes
    };
    for file in 0..files {
        let mut tx = store.begin(FS, 100 + file).unwrap();
        tx.write(ObjectId(10 + file), 0, &content(file)).unwrap();
        tx.commit().unwrap();
    }
    copy_all(&store);
    store.close().unwrap();
    drop(store);
    let mut all = (0, 0);
    for rotten in [1, 0] {
        let pages: Vec<u64> = disks[rotten].written_pages().into_iter().filter(|at| *at >= 1 << 20).collect();
        for _ in 0..flips / 2 {
            disks[rotten].flip(pages[rng.usize(..pages.len())] + rng.u64(0..4096), rng.u8(0..8));
        }
        let store = open(&disks);
        let read_all = || {
            for file in 0..files {
                let pieces = store.map(FS, ObjectId(10 + file), 0, 1 << 20, Tid::MAX).unwrap();
                let mut buf = vec![0; 1 << 20];
                store.read(&pieces, &mut buf).unwrap();
                assert!(buf == content(file), "file {file}");
            }
        };
        read_all();
        let on_reading = store.copies().healed;
        let scrub = || {
            let mut report = store.begin_scrub(7, false).unwrap();
            while store.step_scrub(&mut report, 64 << 20).unwrap() {}
            assert_eq!((report.damages.len(), report.more), (0, 0));
            report.healed
        };
        let by_scrub = scrub();
        assert_eq!(scrub(), 0);
        read_all();
        all = (all.0 + on_reading, all.1 + by_scrub);
        copy_all(&store);
        store.close().unwrap();
        drop(store);
        drop(open_as(&disks[rotten..=rotten], &OpenOptions { read_only: true, ..degraded() }).unwrap());
    }
    println!("{flips} flips, {files} MiB of files: {} places healed on reading, {} by scrubs", all.0, all.1);
    assert!(all.0 > 0 && all.1 > 0);
}

#[test]
fn halves_of_two_copies_of_a_store_are_never_taken_for_one() {
    for (twice_written, checkpoints) in (0..2).flat_map(|twice| (0..6).map(move |n| (twice == 1, n))) {
        let disks = two(0);
        let store = match twice_written {
            true => twice(&disks),
            false => {
                create(&disks[0]);
                let store = open(&disks[..1]);
                store.add_volume(volume(&disks[1]), 0).unwrap();
                store
            }
        };
        let mut run = Run::new(22);
        (0..10).for_each(|_| run.transaction(&store).unwrap());
        store.close().unwrap();
        drop(store);
        let copy = fork(&disks);
        let goes_on = |disks: &[SimDisk], seed: u64, checkpoints: usize| {
            let store = open(disks);
            let mut run = Run::new(seed);
            run.now = 1 << 40;
            for _ in 0..checkpoints {
                (0..5).for_each(|_| run.transaction(&store).unwrap());
                store.checkpoint().unwrap();
            }
            store.close().unwrap();
        };
        goes_on(&disks, 23, 2);
        goes_on(&copy, 24, checkpoints);
        for (a, b) in [(&disks[0], &copy[1]), (&copy[1], &disks[0]), (&copy[0], &disks[1]), (&disks[1], &copy[0])] {
            let mixed = [a.fork(), b.fork()];
            let said = open_as(&mixed, &OpenOptions::small()).map(drop).unwrap_err().to_string();
            let is_said = ["another copy", "both written to", "at another time"].iter().any(|s| said.contains(s));
            assert!(is_said, "{checkpoints}: {said}");
        }
        drop((open(&disks), open(&copy)));
    }
}

#[test]
fn an_old_copy_of_one_disk_is_told_left_behind_and_brought_up_to_date() {
    for old in 0..2 {
        let disks = two(0);
        let store = twice(&disks);
        let mut run = Run::new(21);
        let mut some = |store: &Store| {
            (0..10).for_each(|_| run.transaction(store).unwrap());
            store.checkpoint().unwrap();
        };
        some(&store);
        copy_all(&store);
        store.close().unwrap();
        let mut now = disks.to_vec();
        now[old] = disks[old].fork();
        (0..4).for_each(|_| some(&store));
        store.close().unwrap();
        drop(store);
        // The one as it was, the other as it is, whichever is named first.
        for order in [[0, 1], [1, 0]] {
            let said =
                open_as(&order.map(|n| now[n].fork()), &OpenOptions::default()).map(drop).unwrap_err().to_string();
            assert!(said.contains("at another time") && said.contains("--degraded"), "{said}");
        }
        let store = open_as(&now, &degraded()).unwrap();
        assert!(!store.is_read_only());
        some(&store);
        store.close().unwrap();
        drop(store);
        let store = open(&now);
        some(&store);
        copy_all(&store);
        assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
        store.close().unwrap();
        drop(store);
        for disk in &now {
            run.compare_some(&open_as(&[disk.fork()], &degraded()).unwrap(), 5);
        }
    }
}
