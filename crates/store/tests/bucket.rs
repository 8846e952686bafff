//! A bucket as a volume, against the model by tid: what is there, comes back and gives way, and what can be opened from it alone,
//! across reopening, power failures at every write, failing operations, and other owners.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{FS, Remembers, Run, new_disk, overwrite};
use darner_store::volume::sim::{Fault, SimDisk};
use darner_store::volume::{Bucket, Buckets, Copies, Disk, RawVolume, SimBucket, Tier, Volume, without_waiting};
use darner_store::{
    CreateOptions, Damage, Error, Gaps, Grid, Key, Kind, Move, ObjectId, OpenOptions, Progress, Rot, ScrubReport, Step,
    Store, Tid,
};

const SIZE: u64 = 128 << 20;
/// Nothing is due by itself.
const NEVER: u64 = u64::MAX;

fn volume(disk: &SimDisk) -> Arc<dyn Volume> {
    Arc::new(RawVolume::new(Arc::new(disk.clone())))
}

fn options(bucket: &SimBucket) -> OpenOptions {
    let bucket = bucket.clone();
    let buckets = Buckets(Arc::new(move |_| -> Arc<dyn Bucket> { Arc::new(bucket.clone()) }));
    OpenOptions { buckets: Some(buckets), ..OpenOptions::small() }
}

fn open(disk: &SimDisk, bucket: &SimBucket) -> Result<Store, Error> {
    Store::open(volume(disk), &options(bucket))
}

fn create(disk: &SimDisk) {
    let options = CreateOptions { now_ns: 5, seed: Some([3; 32]), ..CreateOptions::default() };
    Store::create(&*volume(disk), &options).unwrap();
}

/// A store with a bucket.
fn with_bucket(disk: &SimDisk) -> (Store, SimBucket) {
    let bucket = SimBucket::beside(disk);
    create(disk);
    let store = open(disk, &bucket).unwrap();
    store.add_bucket("s3://simulated", &options(&bucket)).unwrap();
    (store, bucket)
}

fn number(store: &Store) -> u16 {
    store.bucket().expect("it has one").number
}

/// Opens what has reached the bucket, on an empty disk.
fn take_over(bucket: &SimBucket, disk: &SimDisk) -> Result<Store, Error> {
    let options = OpenOptions { who: "another".into(), ..options(bucket) };
    Store::take_over("s3://simulated", volume(disk), &options, &mut |_| ())
}

/// Everything that is there now reaches the bucket.
fn push(store: &Store, now: u64) -> Result<(), Error> {
    store.want_push();
    while store.step_push(now, NEVER)? == Progress::Worked {}
    Ok(())
}

/// Nothing but what must be stays here.
fn to_bucket(store: &Store) -> Result<(), Error> {
    let wanted = store.all_on(0, Some(number(store)));
    while store.step_move(&wanted, 1 << 20)? == Progress::Worked {}
    assert_eq!(store.left_to_move(&wanted), (0, 0));
    Ok(())
}

fn to_here(store: &Store) -> Result<(), Error> {
    let wanted = Move { to: None, ..store.all_on(number(store), None) };
    while store.step_move(&wanted, 1 << 20)? == Progress::Worked {}
    assert_eq!(store.bucket().unwrap().cold, 0);
    Ok(())
}

/// One step of whatever there is.
fn act(run: &mut Run, store: &Store) -> Result<(), Error> {
    match run.rng.u8(0..40) {
        0 => drop(store.sync()?),
        1..=2 => store.checkpoint()?,
        3..=4 => drop(store.step()?),
        5..=6 => drop(store.step_clean(run.now)?),
        7 => drop(store.clean(run.now, &mut |_| ())?),
        8 => push(store, run.now)?,
        9 => store.want_push(),
        10..=16 => drop(store.step_push(run.now, NEVER)?),
        17 => to_bucket(store)?,
        18 => to_here(store)?,
        19..=20 => drop(store.step_tier()?),
        21 => run.kill(store)?,
        22 => {
            store.want_collapse();
            store.step_clean(run.now)?;
        }
        _ => run.transaction(store)?,
    }
    Ok(())
}

/// What the bucket alone has is what was, up to a moment; and that goes on.
fn check_alone(run: &Run, bucket: &SimBucket, reached: Option<Tid>, seed: u64) {
    let disk = SimDisk::new(SIZE);
    let bucket = bucket.fork(&disk);
    let store = match take_over(&bucket, &disk) {
        Ok(store) => store,
        Err(e) => return assert!(reached.is_none(), "{e}"),
    };
    let last = store.tid();
    assert!(reached.is_none_or(|r| last >= r), "{reached:?} had reached it, {last} is there");
    let mut there = Run::new(seed);
    (there.model, there.now, there.next) = (run.model.clone(), run.now + 1, run.next);
    there.objects.clone_from(&run.objects);
    there.model.cut(last);
    there.compare_some(&store, 3);
    for _ in 0..5 {
        there.transaction(&store).unwrap();
    }
    push(&store, there.now).unwrap();
    there.compare_some(&store, 1);
    assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
    store.close().unwrap();
    drop(store);
    there.compare_some(&open(&disk, &bucket).unwrap(), 1);
}

#[test]
fn what_comes_and_goes_between_here_and_a_bucket_stays_as_it_was_and_a_prefix_of_it_is_in_the_bucket_alone() {
    let rounds: u64 = std::env::var("DARNER_VOLUME_ROUNDS").ok().and_then(|v| v.parse().ok()).unwrap_or(3);
    for seed in 0..rounds {
        println!("seed {seed}");
        let disk = new_disk(SIZE, seed);
        let (mut store, bucket) = with_bucket(&disk);
        let mut run = Run::new(seed + 600);
        for step in 0..400 {
            act(&mut run, &store).unwrap();
            if run.rng.u8(0..60) == 0 {
                if run.rng.bool() {
                    store.close().unwrap();
                } else {
                    store.sync().unwrap();
                }
                drop(store);
                store = open(&disk, &bucket).unwrap();
            }
            if step % 40 == 0 {
                run.compare_some(&store, 2);
                check_alone(&run, &bucket, store.bucket().unwrap().reached, seed);
            }
        }
        push(&store, run.now).unwrap();
        assert_eq!(store.bucket().unwrap().reached, Some(store.tid()));
        check_alone(&run, &bucket, Some(store.tid()), seed);
        assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
        // Nothing is there that nobody needs.
        store.clean(run.now, &mut |_| ()).unwrap();
        push(&store, run.now).unwrap();
        let before = bucket.objects();
        store.close().unwrap();
        drop(store);
        let store = open(&disk, &bucket).unwrap();
        push(&store, run.now).unwrap();
        let left = bucket.objects();
        assert!(left.len() <= before.len() + 1, "{} objects, then {}", before.len(), left.len());
        // And it can leave.
        store.leave_volume(number(&store)).unwrap();
        while store.leaving().is_some() {
            assert_eq!(store.step_leave(1 << 20).unwrap(), Progress::Worked);
        }
        assert!(bucket.objects().is_empty(), "{:?}", bucket.objects().keys());
        run.compare_some(&store, 10);
        store.close().unwrap();
        drop(store);
        run.compare_some(&Store::open(volume(&disk), &OpenOptions::default()).unwrap(), 3);
    }
}

#[test]
fn a_power_failure_at_any_event_leaves_all_that_was_synced_here_and_a_whole_prefix_in_the_bucket() {
    let seeds: u64 = std::env::var("DARNER_CRASH_SEEDS").ok().and_then(|v| v.parse().ok()).unwrap_or(2);
    for seed in 0..seeds {
        let base = new_disk(SIZE, seed);
        create(&base);
        let disk = base.fork();
        let bucket = SimBucket::beside(&disk);
        let store = open(&disk, &bucket).unwrap();
        let mut run = Run::new(seed + 40);
        disk.record();
        let (mut synced, mut reached) = (vec![], vec![]);
        for i in 0..70 {
            run.transaction(&store).unwrap();
            match i {
                2 => drop(store.add_bucket("s3://simulated", &options(&bucket)).unwrap()),
                3.. => match i % 20 {
                    5 | 15 => push(&store, run.now).unwrap(),
                    8 => to_bucket(&store).unwrap(),
                    11 => drop(store.clean(run.now, &mut |_| ()).unwrap()),
                    12 => to_here(&store).unwrap(),
                    17 => store.checkpoint().unwrap(),
                    _ => {}
                },
                _ => {}
            }
            if run.rng.u8(0..8) == 0 {
                let tid = store.sync().unwrap();
                synced.push((disk.events(), tid));
            }
            reached.push((disk.events(), store.bucket().and_then(|b| b.reached)));
        }
        println!("seed {seed}: {} events", disk.events());
        let full = run.model.clone();
        let step = if seeds > 2 { 1 } else { 1 + disk.events() / 100 };
        for n in (0..=disk.events()).step_by(step) {
            let mode = (n / step + seed as usize) % 3;
            let mut rng = fastrand::Rng::with_seed(seed * 1000 + n as u64);
            let mut keep = |_| if mode == 2 { rng.bool() } else { mode == 1 };
            let crashed = SimDisk::crashed(&base, &disk, n, &mut keep);
            let there = bucket.crashed(n, &crashed);
            let must = |of: &[(usize, Tid)]| of.iter().rev().find(|(at, _)| *at <= n).map_or(Tid(0), |(_, t)| *t);
            run.model = full.clone();
            let had = reached.iter().rev().find(|(at, _)| *at <= n).and_then(|(_, tid)| *tid);
            check_alone(&run, &there, had, seed);
            let store = open(&crashed, &there).unwrap_or_else(|e| panic!("seed {seed}, event {n}, mode {mode}: {e}"));
            let last = store.tid();
            assert!(last >= must(&synced), "seed {seed}, event {n}: the log ends at {last}");
            run.model.cut(last);
            run.compare_some(&store, 1);
            if n % 5 == 0 && store.bucket().is_some() {
                // It goes on, and what the crash left there goes.
                push(&store, run.now).unwrap();
                push(&store, run.now).unwrap();
                run.compare_some(&store, 1);
                assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
                let parts = there.objects().keys().filter(|name| name.starts_with("c/")).count();
                assert_eq!(parts, 1);
            }
        }
        run.model = full;
    }
}

#[test]
fn when_the_nth_operation_fails_nothing_visible_changes_and_it_goes_on() {
    for seed in 0..2 {
        for n in 1.. {
            let disk = new_disk(SIZE, seed);
            create(&disk);
            let bucket = SimBucket::beside(&disk);
            let store = open(&disk, &bucket).unwrap();
            let mut run = Run::new(11);
            for _ in 0..25 {
                run.transaction(&store).unwrap();
            }
            store.checkpoint().unwrap();
            store.clean(run.now, &mut |_| ()).unwrap();
            run.transaction(&store).unwrap();
            let change = |store: &Store, now: u64| -> Result<(), Error> {
                if store.bucket().is_none() {
                    store.add_bucket("s3://simulated", &options(&bucket))?;
                }
                push(store, now)?;
                to_bucket(store)?;
                push(store, now)?;
                to_here(store)?;
                push(store, now)
            };
            let before = disk.operations();
            disk.fail_nth(n, Fault::Io);
            let outcome = change(&store, run.now);
            let over = disk.operations() - before < n;
            disk.fail_nth(u64::MAX / 2, Fault::Io);
            run.compare(&store, Tid::MAX);
            let again = change(&store, run.now);
            if outcome.is_ok() {
                again.unwrap();
            }
            run.compare(&store, Tid::MAX);
            drop(store);
            let store = open(&disk, &bucket).unwrap();
            run.model.cut(store.tid());
            run.compare(&store, Tid::MAX);
            change(&store, run.now).unwrap_or_else(|e| panic!("operation {n}: {e}"));
            run.compare_some(&store, 2);
            assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
            if n % 7 == 0 {
                check_alone(&run, &bucket, Some(store.tid()), seed);
            }
            if over {
                println!("{n} operations");
                break;
            }
        }
    }
}

#[test]
fn a_bucket_out_of_reach_fails_only_reads_of_what_is_there_alone() {
    let disk = SimDisk::new(SIZE);
    let (store, bucket) = with_bucket(&disk);
    let mut run = Run::new(5);
    for _ in 0..40 {
        run.transaction(&store).unwrap();
    }
    push(&store, run.now).unwrap();
    to_bucket(&store).unwrap();
    let cold = store.bucket().unwrap().cold;
    assert!(cold > 0);
    bucket.set_reachable(false);
    let write = |store: &Store, now: u64, bytes: &[u8]| {
        let mut tx = store.begin(FS, now).unwrap();
        tx.write(ObjectId(77), 0, bytes).unwrap();
        tx.put(ObjectId(77), Kind::DIRENT, b"hot", bytes);
        tx.commit().unwrap()
    };
    let read = |store: &Store, object: u64| -> Result<Vec<u8>, Error> {
        let pieces = store.map(FS, ObjectId(object), 0, common::FILE_MAX, Tid::MAX)?;
        let mut bytes = vec![0; common::FILE_MAX as usize];
        store.read(&pieces, &mut bytes)?;
        Ok(bytes)
    };
    let object =
        *run.model.files.iter().find(|(_, v)| v.values().next_back().is_some_and(|c| c.len() > 5000)).unwrap().0;
    let all_but_cold = |store: &Store, now: u64| {
        write(store, now, b"written while it is away");
        store.sync().unwrap();
        store.checkpoint().unwrap();
        store.step().unwrap();
        store.step_tier().unwrap();
        assert!(read(store, 77).unwrap().starts_with(b"written while it is away"));
        let key = Key::new(FS, ObjectId(77), Kind::DIRENT, b"hot");
        assert_eq!(store.get(&key, Tid::MAX).unwrap().unwrap().value[..], b"written while it is away"[..]);
        let failed = read(store, object).unwrap_err();
        assert!(matches!(failed, Error::Io { .. }), "{failed}");
        assert!(matches!(without_waiting(|| read(store, object)).unwrap_err(), Error::Cold(_)));
        assert!(matches!(store.step_push(now, 0), Err(Error::Io { .. })), "it says so");
    };
    // (What was verified may be in the cache.)
    store.close().unwrap();
    drop(store);
    let store = open(&disk, &bucket).unwrap();
    all_but_cold(&store, run.now + 100);
    store.close().unwrap();
    drop(store);
    let store = open(&disk, &bucket).unwrap();
    all_but_cold(&store, run.now + 200);
    // It heals by itself.
    bucket.set_reachable(true);
    push(&store, run.now + 300).unwrap();
    run.compare_some(&store, 5);
    assert_eq!(store.bucket().unwrap().reached, Some(store.tid()));
    // Who does not wait fetches, and asks again.
    drop(store);
    let store = open(&disk, &bucket).unwrap();
    let mut tries = 0;
    let bytes = loop {
        match without_waiting(|| read(&store, object)) {
            Err(Error::Cold(cold)) => cold.fetch().unwrap(),
            read => break read.unwrap(),
        }
        tries += 1;
        assert!(tries < 100);
    };
    assert!(tries > 0);
    assert!(bytes == read(&store, object).unwrap());
}

#[test]
fn one_of_two_owners_is_fenced_says_so_and_harms_nothing() {
    let disk = SimDisk::new(SIZE);
    let (old, bucket) = with_bucket(&disk);
    let mut run = Run::new(6);
    for _ in 0..30 {
        run.transaction(&old).unwrap();
    }
    push(&old, run.now).unwrap();
    to_bucket(&old).unwrap();
    let other_disk = SimDisk::new(SIZE);
    for round in 0..20 {
        // The old one may be anywhere in a push.
        run.transaction(&old).unwrap();
        old.want_push();
        for _ in 0..round % 5 {
            old.step_push(run.now, NEVER).unwrap();
        }
        if round == 10 {
            break;
        }
    }
    let new = take_over(&bucket, &other_disk).unwrap();
    let mut there = Run::new(7);
    (there.model, there.now, there.next) = (run.model.clone(), run.now + 1, run.next);
    there.model.cut(new.tid());
    for i in 0..40 {
        run.transaction(&old).unwrap();
        there.transaction(&new).unwrap();
        old.want_push();
        for _ in 0..5 {
            old.step_push(run.now, NEVER).unwrap();
        }
        if i % 10 == 3 {
            push(&new, there.now).unwrap();
            new.clean(there.now, &mut |_| ()).unwrap();
            old.clean(run.now, &mut |_| ()).unwrap();
            to_bucket(&new).unwrap();
        }
        there.compare_some(&new, 1);
    }
    assert_eq!(old.bucket().unwrap().fenced.as_deref(), Some("another"));
    assert_eq!(new.bucket().unwrap().fenced, None);
    assert!(matches!(to_bucket(&old).unwrap_err(), Error::Refused(_)));
    push(&new, there.now).unwrap();
    // What the old one does when it leaves harms nobody either.
    drop(new);
    old.checkpoint().unwrap();
    let new = open(&other_disk, &bucket).unwrap();
    there.compare_some(&new, 10);
    check_alone(&there, &bucket, Some(new.tid()), 1);
}

/// The objects of a bucket, and what is in them.
fn objects(bucket: &SimBucket) -> Vec<(String, Vec<u8>)> {
    let names = bucket.list("", "").unwrap();
    names.into_iter().map(|(name, _)| (name.clone(), bucket.get(&name, None).unwrap())).collect()
}

#[test]
fn of_copies_of_a_store_one_has_the_bucket_and_the_others_change_nothing_there() {
    let disk = SimDisk::new(SIZE);
    let (store, bucket) = with_bucket(&disk);
    let mut run = Run::new(16);
    let some = |run: &mut Run, store: &Store, pushes: bool| {
        (0..20).for_each(|_| run.transaction(store).unwrap());
        store.checkpoint().unwrap();
        if pushes {
            push(store, run.now).unwrap();
        }
    };
    some(&mut run, &store, true);
    // Copies as it was when it was open, when it had been closed, and later.
    let mut copies = vec![disk.fork()];
    store.close().unwrap();
    drop(store);
    copies.push(disk.fork());
    let store = open(&disk, &bucket).unwrap();
    some(&mut run, &store, false);
    copies.push(disk.fork());
    some(&mut run, &store, true);
    to_bucket(&store).unwrap();
    some(&mut run, &store, true);
    let is_owner = |store: &Store, run: &Run| {
        let reached = store.bucket().unwrap().reached;
        assert_eq!(store.bucket().unwrap().fenced, None);
        check_alone(run, &bucket, reached, 1);
    };
    is_owner(&store, &run);
    let before = objects(&bucket);
    for (i, disk) in copies.iter().enumerate() {
        for _ in 0..2 {
            // Whatever it does, also after another opening.
            let copy = open(disk, &bucket).unwrap();
            let mut other = Run::new(17 + i as u64);
            (other.now, other.objects) = (run.now, vec![900, 901, 902, 903, 904]);
            some(&mut other, &copy, true);
            assert!(matches!(to_bucket(&copy), Err(Error::Refused(_))));
            copy.lose_volume(number(&copy)).map(drop).unwrap_or_default();
            assert!(copy.bucket().is_none_or(|b| b.fenced.is_some()), "copy {i}");
            assert!(objects(&bucket) == before, "copy {i} changed something");
        }
    }
    some(&mut run, &store, true);
    is_owner(&store, &run);
    // Killed between any two steps of taking it, the store goes on.
    store.close().unwrap();
    drop(store);
    let base = disk.fork();
    let twins = [disk.fork(), disk.fork()];
    let common = bucket.fork(&twins[0]);
    disk.record();
    let events = disk.events();
    let store = open(&disk, &bucket).unwrap();
    let before = run.model.clone();
    some(&mut run, &store, true);
    for n in events..=disk.events() {
        let crashed = SimDisk::crashed(&base, &disk, n, &mut |_| true);
        let bucket = bucket.crashed(n, &crashed);
        let store = open(&crashed, &bucket).unwrap();
        let mut after = Run::new(n as u64);
        (after.model, after.now, after.next) = (before.clone(), run.now, run.next);
        let mut full = run.model.clone();
        full.cut(store.tid());
        after.model = full;
        after.now = run.now;
        some(&mut after, &store, true);
        assert_eq!(store.bucket().unwrap().fenced, None, "event {n}");
        check_alone(&after, &bucket, store.bucket().unwrap().reached, 2);
    }
    // Of two that look at it at the same moment one has it.
    let [one, other] = twins.map(|disk| open(&disk, &common).unwrap());
    let [mut ours, mut theirs] = [1, 2].map(|seed| {
        let mut run = Run::new(seed);
        (run.model, run.now, run.next) = (before.clone(), 1 << 40, 1000 * seed);
        run
    });
    one.step_push(1, NEVER).unwrap();
    other.step_push(1, NEVER).unwrap();
    for _ in 0..5 {
        some(&mut ours, &one, true);
        some(&mut theirs, &other, true);
    }
    assert_eq!((one.bucket().unwrap().fenced, other.bucket().unwrap().fenced.is_some()), (None, true));
    check_alone(&ours, &common, one.bucket().unwrap().reached, 3);
    ours.compare_some(&one, 5);
    theirs.compare_some(&other, 5);
}

#[test]
fn a_full_volume_gives_way_to_what_is_written_and_what_is_read_much_comes_back() {
    let disk = SimDisk::new(SIZE);
    let (store, _bucket) = with_bucket(&disk);
    let mut now = 10;
    let block: Vec<u8> = {
        let mut rng = fastrand::Rng::with_seed(1);
        std::iter::repeat_with(|| rng.u8(..)).take(1 << 20).collect()
    };
    let files = 400;
    for i in 0..files {
        now += 1;
        store.admit(1 << 20).unwrap();
        let mut tx = store.begin(FS, now).unwrap();
        let bytes: Vec<u8> = block.iter().map(|b| b ^ i as u8).collect();
        tx.write(ObjectId(10 + i), 0, &bytes).unwrap();
        tx.commit().unwrap();
        store.step().unwrap();
        store.want_push();
        while store.step_push(now, NEVER).unwrap() == Progress::Worked {}
        store.step_tier().unwrap();
    }
    let state = store.bucket().unwrap();
    assert!(state.cold > 2 * SIZE, "{} bytes are in the bucket only", state.cold);
    let read = |i: u64| {
        let pieces = store.map(FS, ObjectId(10 + i), 0, 1 << 20, Tid::MAX).unwrap();
        let mut bytes = vec![0; 1 << 20];
        store.read(&pieces, &mut bytes).unwrap();
        assert!(bytes.iter().zip(&block).all(|(b, a)| *b == a ^ i as u8), "file {i}");
    };
    (0..files).for_each(read);
    // One is read, and then it is here: reading it once more fetches nothing.
    let before = store.bucket().unwrap().cold;
    while store.step_tier().unwrap() == Progress::Worked {}
    let back = store.bucket().unwrap().cold;
    assert!(back < before, "{before} bytes, then {back}");
    store.close().unwrap();
}

#[test]
fn what_is_not_read_moves_to_a_cold_volume_when_room_gets_short_and_back_when_it_is() {
    let disk = SimDisk::new(SIZE);
    let cold_disk = disk.beside(4 * SIZE);
    create(&disk);
    let store = Store::open(volume(&disk), &OpenOptions::default()).unwrap();
    let cold = store.add_volume_for(volume(&cold_disk), 0, Tier::Cold).unwrap();
    let mut rng = fastrand::Rng::with_seed(2);
    let mut now = 10;
    let used = |store: &Store| store.volumes().unwrap()[usize::from(cold)].used;
    let files: Vec<Vec<u8>> = (0..200).map(|_| std::iter::repeat_with(|| rng.u8(..)).take(1 << 20).collect()).collect();
    assert!(store.usage().unwrap().size <= SIZE, "its room is none for what is new");
    for (i, bytes) in files.iter().enumerate() {
        now += 1;
        if i == 50 {
            assert!(used(&store) <= 2 << 20, "nothing goes there by itself");
        }
        store.admit(1 << 20).unwrap();
        let mut tx = store.begin(FS, now).unwrap();
        tx.write(ObjectId(10 + i as u64), 0, bytes).unwrap();
        tx.commit().unwrap();
        store.step().unwrap();
        if i % 10 == 0 {
            store.checkpoint().unwrap();
        }
        while store.step_tier().unwrap() == Progress::Worked {}
    }
    assert!(used(&store) > 80 << 20, "{}", used(&store));
    let read = |store: &Store, i: usize| {
        let pieces = store.map(FS, ObjectId(10 + i as u64), 0, 1 << 20, Tid::MAX).unwrap();
        let mut bytes = vec![0; 1 << 20];
        store.read(&pieces, &mut bytes).unwrap();
        assert!(bytes == files[i], "file {i}");
    };
    (0..files.len()).for_each(|i| read(&store, i));
    store.close().unwrap();
    drop(store);
    let store = Store::open_volumes(&[volume(&cold_disk), volume(&disk)], &OpenOptions::default()).unwrap();
    // Room comes.
    let extra = store.add_volume(volume(&disk.beside(SIZE)), 0).unwrap();
    assert!(extra > cold);
    let before = used(&store);
    (0..8).for_each(|i| read(&store, i));
    while store.step_tier().unwrap() == Progress::Worked {}
    assert!(used(&store) < before, "{before} bytes, then {}", used(&store));
    (0..files.len()).for_each(|i| read(&store, i));
    assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
}

/// Nobody but who writes sees to the room.
#[test]
fn who_is_short_of_room_moves_what_is_not_read_to_the_cold_volume_one_copy_of_it_where_there_are_two() {
    for (copies, many) in [(Copies::One, 250), (Copies::Two, 115)] {
        let disk = SimDisk::new(SIZE / 2);
        create(&disk);
        let store = Store::open(volume(&disk), &OpenOptions::small()).unwrap();
        // Of the two for what is new, one gets full long before the other.
        let (larger, slow) = (disk.beside(SIZE), disk.beside(4 * SIZE));
        store.add_volume(volume(&larger), 0).unwrap();
        let cold = store.add_volume_for(volume(&slow), 0, Tier::Cold).unwrap();
        store.set_copies(copies).unwrap();
        let mut rng = fastrand::Rng::with_seed(3);
        let files: Vec<Vec<u8>> =
            (0..many).map(|_| std::iter::repeat_with(|| rng.u8(..)).take(1 << 20).collect()).collect();
        for (i, bytes) in files.iter().enumerate() {
            store.admit(1 << 20).unwrap_or_else(|e| {
                let volumes = store.volumes().unwrap();
                let of: Vec<_> = volumes.iter().map(|v| (v.used >> 20, v.size >> 20)).collect();
                panic!("{copies:?}, file {i}: {e}; MiB on the volumes: {of:?}")
            });
            let mut tx = store.begin(FS, 10 + i as u64).unwrap();
            tx.write(ObjectId(10 + i as u64), 0, bytes).unwrap();
            tx.commit().unwrap();
            store.step().unwrap();
        }
        let on = |store: &Store, n: u16| store.volumes().unwrap()[usize::from(n)].used;
        assert!(on(&store, cold) > 60 << 20, "{copies:?}: {}", on(&store, cold));
        store.close().unwrap();
        drop(store);
        let disks = [disk, larger, slow].map(|disk| volume(&disk));
        let store = Store::open_volumes(&disks, &OpenOptions::default()).unwrap();
        for (i, bytes) in files.iter().enumerate() {
            let pieces = store.map(FS, ObjectId(10 + i as u64), 0, 1 << 20, Tid::MAX).unwrap();
            let mut read = vec![0; 1 << 20];
            store.read(&pieces, &mut read).unwrap();
            assert!(read == *bytes, "{copies:?}, file {i}");
        }
        assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
    }
}

#[test]
fn what_is_forgotten_leaves_the_bucket_with_the_next_checkpoint() {
    let disk = SimDisk::new(SIZE);
    let (store, bucket) = with_bucket(&disk);
    let mut run = Run::new(9);
    let mut rng = fastrand::Rng::with_seed(4);
    let data: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(200_000).collect();
    let secret = ObjectId(900);
    for _ in 0..10 {
        run.transaction(&store).unwrap();
    }
    let mut tx = store.begin(FS, run.now).unwrap();
    tx.put(secret, Kind::ATTR, &[], b"attributes");
    tx.write(secret, 0, &data).unwrap();
    tx.commit().unwrap();
    push(&store, run.now).unwrap();
    to_bucket(&store).unwrap();
    let is_there = || {
        let holds = |bytes: &[u8]| bytes.windows(400).step_by(1).any(|w| w == &data[2000..2400]);
        bucket.objects().values().any(|bytes| holds(bytes))
    };
    assert!(is_there());
    let mut tx = store.begin(FS, run.now).unwrap();
    tx.delete(secret, Kind::ATTR, &[]);
    tx.commit().unwrap();
    store.forget(&[(FS, secret)], &[], store.tid(), run.now, &mut |_| ()).unwrap();
    while store.step_push(run.now, NEVER).unwrap() == Progress::Worked {}
    assert!(!is_there());
    run.compare_some(&store, 5);
    assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
}

#[test]
fn what_is_forgotten_with_the_bucket_out_of_reach_is_told_and_goes_once_it_is_back() {
    let disk = SimDisk::new(SIZE);
    let (store, bucket) = with_bucket(&disk);
    let mut run = Run::new(9);
    let mut rng = fastrand::Rng::with_seed(4);
    let data: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(200_000).collect();
    let secret = ObjectId(900);
    for _ in 0..10 {
        run.transaction(&store).unwrap();
    }
    let mut tx = store.begin(FS, run.now).unwrap();
    tx.put(secret, Kind::ATTR, &[], b"attributes");
    tx.write(secret, 0, &data).unwrap();
    tx.commit().unwrap();
    push(&store, run.now).unwrap();
    to_bucket(&store).unwrap();
    let is_there = || bucket.objects().values().any(|bytes| bytes.windows(400).any(|w| w == &data[2000..2400]));
    let mut tx = store.begin(FS, run.now).unwrap();
    tx.delete(secret, Kind::ATTR, &[]);
    tx.commit().unwrap();
    bucket.set_reachable(false);
    let said = store.forget(&[(FS, secret)], &[], store.tid(), run.now, &mut |_| ());
    assert!(matches!(said, Err(Error::Remains(_))), "{said:?}");
    assert!(store.is_forgetting().unwrap() && is_there());
    let (pieces, mut read) = (store.map(FS, secret, 0, 4096, Tid::MAX).unwrap(), vec![1; 4096]);
    store.read(&pieces, &mut read).unwrap();
    assert!(read == [0; 4096], "no moment has it");
    bucket.set_reachable(true);
    store.forget(&[], &[], Tid::ZERO, run.now, &mut |_| ()).unwrap();
    while store.step_push(run.now, NEVER).unwrap() == Progress::Worked {}
    assert!(!store.is_forgetting().unwrap() && !is_there());
    run.compare_some(&store, 5);
}

#[test]
fn waste_in_the_bucket_is_cleaned_when_there_is_room_here() {
    let disk = SimDisk::new(SIZE);
    let (store, bucket) = with_bucket(&disk);
    store.retain(FS, 5, |r| r.with_grid(Grid { steps: vec![Step { every: 1, lasts: 1 }] })).unwrap();
    let mut rng = fastrand::Rng::with_seed(6);
    let mut now = 10;
    let files: Vec<Vec<u8>> = (0..40).map(|_| std::iter::repeat_with(|| rng.u8(..)).take(1 << 20).collect()).collect();
    for (i, bytes) in files.iter().enumerate() {
        now += 1;
        let mut tx = store.begin(FS, now).unwrap();
        tx.put(ObjectId(10 + i as u64), Kind::ATTR, &[], b"attributes");
        tx.write(ObjectId(10 + i as u64), 0, bytes).unwrap();
        tx.commit().unwrap();
        while store.step().unwrap() == Progress::Worked {}
    }
    push(&store, now).unwrap();
    to_bucket(&store).unwrap();
    let there = || bucket.objects().values().map(|o| o.len() as u64).sum::<u64>();
    assert!(there() > 40 << 20);
    let kept = |i: usize| i.is_multiple_of(8);
    for i in (0..files.len()).filter(|i| !kept(*i)) {
        now += 1;
        let mut tx = store.begin(FS, now).unwrap();
        tx.delete(ObjectId(10 + i as u64), Kind::ATTR, &[]);
        tx.punch(ObjectId(10 + i as u64), 0, 1 << 20).unwrap();
        tx.commit().unwrap();
    }
    for _ in 0..400 {
        now += 1_000_000_000;
        store.want_collapse();
        while store.step_clean(now).unwrap() == Progress::Worked {}
        while store.step_tier().unwrap() == Progress::Worked {}
        while store.step().unwrap() == Progress::Worked {}
    }
    push(&store, now).unwrap();
    println!("{} MiB are left there", there() >> 20);
    assert!(there() < 12 << 20, "{} bytes are there", there());
    for i in (0..files.len()).filter(|i| kept(*i)) {
        let pieces = store.map(FS, ObjectId(10 + i as u64), 0, 1 << 20, Tid::MAX).unwrap();
        let mut bytes = vec![0; 1 << 20];
        store.read(&pieces, &mut bytes).unwrap();
        assert!(bytes == files[i], "file {i}");
    }
    assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
}

#[test]
fn what_is_damaged_here_heals_from_the_bucket() {
    let disk = SimDisk::new(SIZE);
    let (store, bucket) = with_bucket(&disk);
    let mut run = Run::new(12);
    for _ in 0..40 {
        run.transaction(&store).unwrap();
    }
    store.want_collapse();
    store.clean(run.now, &mut |_| ()).unwrap();
    for _ in 0..20 {
        run.transaction(&store).unwrap();
    }
    push(&store, run.now).unwrap();
    let mut rng = fastrand::Rng::with_seed(1);
    let read = |store: &Store, object: u64| -> Result<Vec<u8>, Error> {
        let pieces = store.map(FS, ObjectId(object), 0, common::FILE_MAX, Tid::MAX)?;
        let mut bytes = vec![0; common::FILE_MAX as usize];
        store.read(&pieces, &mut bytes)?;
        Ok(bytes)
    };
    let whole: Vec<Vec<u8>> = run.objects.iter().map(|o| read(&store, *o).unwrap()).collect();
    let reads = |store: &Store| run.objects.iter().map(|o| read(store, *o)).collect::<Vec<_>>();
    let mut healed = 0;
    for _ in 0..400 {
        let pages = disk.written_pages();
        let at = pages[rng.usize(..pages.len())];
        // (Superblocks are not read now.)
        if at < 1 << 20 {
            continue;
        }
        let (at, bit) = (at + rng.u64(..4096), rng.u8(..));
        disk.flip(at, bit);
        let before = bucket.objects();
        let mut bytes = [0];
        Disk::read_at(&disk, &mut bytes, at).unwrap();
        assert!(reads(&store).into_iter().zip(&whole).all(|(r, w)| r.unwrap() == *w));
        let mut now = [0];
        Disk::read_at(&disk, &mut now, at).unwrap();
        match now == bytes {
            // It was in nothing that is read.
            true => disk.flip(at, bit),
            false => healed += 1,
        }
        assert_eq!(bucket.objects(), before);
    }
    println!("{healed} healed");
    assert!(healed > 50, "{healed}");
    assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
}

/// A whole one, in steps of so many bytes.
fn scrub(store: &Store, all: bool, budget: u64) -> ScrubReport {
    let mut report = store.begin_scrub(7, all).unwrap();
    while store.step_scrub(&mut report, budget).unwrap() {}
    report
}

/// A store with some packs, all of which is here and in the bucket.
fn here_and_there(disk: &SimDisk, seed: u64) -> (Store, SimBucket, Run) {
    let (store, bucket) = with_bucket(disk);
    let mut run = Run::new(seed);
    for i in 0..60 {
        run.transaction(&store).unwrap();
        if i == 40 {
            store.want_collapse();
            store.clean(run.now, &mut |_| ()).unwrap();
        }
    }
    push(&store, run.now).unwrap();
    (store, bucket, run)
}

#[test]
fn what_is_damaged_here_heals_from_the_bucket_by_any_scrub() {
    let disk = SimDisk::new(SIZE);
    let (store, bucket, _) = here_and_there(&disk, 22);
    let mut rng = fastrand::Rng::with_seed(2);
    let (mut healed, mut tables) = (0, 0);
    for n in 0..600 {
        let pages = disk.written_pages();
        let (at, bit) = (pages[rng.usize(..pages.len())] + rng.u64(..4096), rng.u8(..));
        // (Superblocks heal from each other.)
        if at < 1 << 20 {
            continue;
        }
        let byte = || {
            let mut bytes = [0];
            Disk::read_at(&disk, &mut bytes, at).unwrap();
            bytes
        };
        let before = (byte(), bucket.objects());
        disk.flip(at, bit);
        let report = scrub(&store, n % 2 == 0, if n % 3 == 0 { 64 << 10 } else { 1 << 30 });
        assert_eq!(bucket.objects(), before.1);
        match &report.damages[..] {
            [] if report.healed > 0 => {
                // (A manifest is written elsewhere; the heads of a frame are two places.)
                assert!(report.healed <= 2, "{}", report.healed);
                healed += u32::from(byte() == before.0);
            }
            // In nothing that is read; or it is derived again.
            [] => {}
            [Damage { rot: Rot::Table, .. }] => tables += 1,
            damages => panic!("{damages:?}"),
        }
        if byte()[0] == before.0[0] ^ (1 << (bit & 7)) {
            disk.flip(at, bit);
        }
    }
    println!("{healed} healed, {tables} in tables");
    assert!(healed > 50, "{healed}");
    assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
    // Out of reach, it is told, and heals another time.
    let sound = disk.fork();
    bucket.set_reachable(false);
    for at in disk.written_pages().into_iter().filter(|at| *at >= 1 << 20) {
        disk.flip(at + 100, 1);
    }
    assert!(!scrub(&store, false, 1 << 30).damages.is_empty());
    bucket.set_reachable(true);
    let report = scrub(&store, false, 1 << 30);
    assert!(report.damages.iter().all(|d| d.rot == Rot::Table), "{:?}", report.damages);
    for at in sound.written_pages().into_iter().filter(|at| *at >= 1 << 20) {
        let (mut is, mut was) = ([0], [0]);
        Disk::read_at(&disk, &mut is, at + 100).unwrap();
        Disk::read_at(&sound, &mut was, at + 100).unwrap();
        if is != was {
            disk.flip(at + 100, 1);
        }
    }
    assert_eq!(scrub(&store, true, 1 << 30).damages, []);
}

#[test]
fn what_is_damaged_in_the_bucket_and_sound_here_is_put_there_anew_by_a_scrub_that_reads_it() {
    let disk = SimDisk::new(SIZE);
    let (store, bucket, run) = here_and_there(&disk, 23);
    let mut rng = fastrand::Rng::with_seed(3);
    let mut anew = 0;
    let names: Vec<String> = bucket.objects().into_keys().filter(|name| name.starts_with("r/")).collect();
    for (n, name) in names.iter().cycle().take(names.len() * 8).enumerate() {
        // (It may have been for an older checkpoint only.)
        let Some(sound) = bucket.objects().get(name).cloned() else { continue };
        bucket.flip(name, rng.usize(..sound.len()), 1 << rng.u32(..8));
        assert_eq!(scrub(&store, false, 1 << 30).healed, 0);
        let report = scrub(&store, true, if n % 3 == 0 { 64 << 10 } else { 1 << 30 });
        assert_eq!(report.damages, []);
        assert_eq!(report.healed, 1, "{name}");
        push(&store, run.now).unwrap();
        if let Some(now) = bucket.objects().get(name) {
            assert!(*now == sound, "{name} is as it was");
        }
        assert_eq!(store.find_gaps().unwrap(), Gaps::default());
        assert_eq!(scrub(&store, true, 1 << 30).healed, 0);
        anew += 1;
    }
    println!("{anew} of {} put anew", names.len());
    assert!(anew > 20, "{anew}");
    check_alone(&run, &bucket, Some(store.tid()), 23);
    // What is damaged here as well, another bit of it, is put nowhere until it is sound.
    let (at, name) = {
        let bytes = bucket.objects();
        let (name, bytes) =
            bytes.iter().filter(|(name, _)| name.starts_with("r/")).max_by_key(|(_, b)| b.len()).unwrap();
        let here = disk.written_pages().into_iter().find(|at| {
            let mut page = vec![0; 4096];
            Disk::read_at(&disk, &mut page, *at).unwrap();
            page == bytes[8192..12288]
        });
        (here.expect("it is here, too"), name.clone())
    };
    let sound = bucket.objects()[&name].clone();
    disk.flip(at + 5, 1);
    bucket.flip(&name, 8192 + 5, 2);
    let report = scrub(&store, true, 1 << 30);
    assert_eq!((report.damages.is_empty(), report.healed), (false, 0));
    push(&store, run.now).unwrap();
    assert!(bucket.objects()[&name] != sound);
    disk.flip(at + 5, 1);
    let report = scrub(&store, true, 1 << 30);
    assert_eq!((report.damages, report.healed), (vec![], 1));
    push(&store, run.now).unwrap();
    assert!(bucket.objects()[&name] == sound);
}

#[test]
fn a_scrub_reads_what_is_in_the_bucket_only_if_it_is_told_to() {
    let disk = SimDisk::new(SIZE);
    let (store, bucket, run) = here_and_there(&disk, 21);
    to_bucket(&store).unwrap();
    let cold = store.bucket().unwrap().cold;
    let scrub = |all: bool, budget: u64| {
        let mut report = store.begin_scrub(7, all).unwrap();
        while store.step_scrub(&mut report, budget).unwrap() {
            // It is gone on with as it was, also after the next open.
            store.keep_scrub_report(&report, run.now).unwrap();
            assert_eq!(store.scrub_report().unwrap(), report);
            while store.step_tier().unwrap() == Progress::Worked {}
        }
        report
    };
    for budget in [64 << 10, 1 << 30] {
        let (without, with) = (scrub(false, budget), scrub(true, budget));
        assert_eq!((&without.damages[..], &with.damages[..]), (&[][..], &[][..]));
        // (A region has room behind what it holds.)
        assert!(with.bytes - without.bytes > cold / 2, "{} and {} of {cold}", without.bytes, with.bytes);
    }
    // None of it came back, and none is counted as read.
    assert_eq!(store.bucket().unwrap().cold, cold);
    assert!(store.scrub_total(true) > store.scrub_total(false) + cold / 2);
    // What is damaged there is found.
    let parts = || bucket.objects().into_iter().filter(|(name, _)| name.starts_with("r/"));
    let (mut found, mut flipped) = (0, 0);
    for (name, bytes) in parts().filter(|(_, bytes)| bytes.len() > 4096) {
        bucket.flip(&name, bytes.len() / 3, 4);
        assert_eq!(scrub(false, 1 << 30).damages, []);
        found += u32::from(!scrub(true, 1 << 30).damages.is_empty());
        flipped += 1;
        bucket.put(vec![(name, bytes.to_vec())]).unwrap();
    }
    println!("{found} of {flipped}");
    // (Some are copies of what is here, or old.)
    assert!(found > 0 && found * 2 >= flipped, "{found} of {flipped}");
    assert_eq!(scrub(true, 1 << 30).damages, []);
    // Out of reach it is no scrub.
    bucket.set_reachable(false);
    let mut report = store.begin_scrub(7, true).unwrap();
    let outcome =
        std::iter::repeat_with(|| store.step_scrub(&mut report, 1 << 30)).find(|more| !matches!(more, Ok(true)));
    assert!(matches!(outcome, Some(Err(_))), "{outcome:?}");
}

#[test]
fn what_is_damaged_in_the_bucket_is_put_there_anew_by_a_scrub_and_after_a_read() {
    const LEN: usize = 256 << 10;
    let disk = SimDisk::new(SIZE);
    let (store, bucket) = with_bucket(&disk);
    let mut rng = fastrand::Rng::with_seed(10);
    let mut now = vec![0; LEN];
    let mut all = Vec::new();
    for n in 0..80 {
        all.push((overwrite(&store, &mut rng, n, &mut now), now.clone()));
        if n == 50 {
            // Some of it lies in packs.
            store.retain(FS, 1000, |r| r.with_grid(Grid { steps: vec![Step { every: 1, lasts: 1 }] })).unwrap();
            store.want_collapse();
            store.clean(1000, &mut |_| ()).unwrap();
        }
    }
    push(&store, 2000).unwrap();
    to_bucket(&store).unwrap();
    drop(store);
    let open = || open(&disk, &bucket).unwrap();
    let remembers = Arc::new(Remembers(all));
    let (mut scrubbed, mut read_anew, mut lost) = (0, 0, 0);
    for (name, sound) in bucket.objects().into_iter().filter(|(name, _)| name.starts_with("r/")) {
        for n in 0..24 {
            if !bucket.objects().contains_key(&name) {
                break;
            }
            bucket.flip(&name, rng.usize(..sound.len()), 1 << rng.u32(..8));
            let store = open();
            let pieces = store.map(FS, ObjectId(10), 0, LEN as u64, Tid::MAX).unwrap();
            let mut read = vec![0; LEN];
            let is_read = !matches!(store.read(&pieces, &mut read), Err(Error::Data { .. }));
            let scrub = || {
                let mut report = store.begin_scrub(3000, true).unwrap();
                while store.step_scrub(&mut report, 1 << 30).unwrap() {}
                report
            };
            assert!(is_read || n % 2 == 0 || scrub().damages.len() == 1, "there is nobody to ask yet");
            store.heal_from(remembers.clone());
            let by_scrub = is_read || n % 3 == 0;
            let healed = match by_scrub {
                true => scrub().healed,
                // By what a read found; what it had fetched is not believed any more.
                false => u64::from(store.heal_pieces(FS, &pieces).unwrap()),
            };
            match healed {
                0 => {
                    // The checksum itself; or what is no data.
                    bucket.put(vec![(name.clone(), sound.to_vec())]).unwrap();
                    lost += 1;
                    assert_eq!(scrub().damages, [], "{name}");
                }
                healed => {
                    assert_eq!(healed, 1);
                    if bucket.objects()[&name] != sound {
                        // A table, which is here, too, goes there with the next step, if it is still one.
                        push(&store, 3000).unwrap();
                    }
                    assert!(bucket.objects().get(&name).is_none_or(|now| *now == sound), "{name} is as it was");
                    assert_eq!((scrub().damages, scrub().healed), (vec![], 0));
                    store.read(&pieces, &mut read).unwrap();
                    assert!(read == now);
                    *if by_scrub { &mut scrubbed } else { &mut read_anew } += 1;
                }
            }
        }
    }
    println!("{scrubbed} by a scrub, {read_anew} after a read, {lost} not");
    assert!(scrubbed > 10 && read_anew > 10, "{scrubbed}, {read_anew}, {lost}");
}

#[test]
fn an_object_that_is_gone_or_shorter_costs_only_what_was_in_it_is_named_by_a_scrub_and_holds_up_no_leaving() {
    const LEN: usize = 256 << 10;
    let base = SimDisk::new(SIZE);
    let (store, bucket) = with_bucket(&base);
    store.retain(FS, 5, |r| r.with_grid(Grid { steps: vec![Step { every: 1, lasts: 1 }] })).unwrap();
    let mut rng = fastrand::Rng::with_seed(10);
    let mut files: BTreeMap<u64, Vec<u8>> =
        (20..44).map(|object| (object, std::iter::repeat_with(|| rng.u8(..)).take(1 << 20).collect())).collect();
    for (object, bytes) in &files {
        let mut tx = store.begin(FS, 10 + object).unwrap();
        tx.put(ObjectId(*object), Kind::ATTR, &[], b"attributes");
        tx.write(ObjectId(*object), 0, bytes).unwrap();
        tx.commit().unwrap();
    }
    // What is left of some lies in packs.
    for object in (20..44).filter(|object| object % 4 > 0) {
        let mut tx = store.begin(FS, 100 + object).unwrap();
        tx.delete(ObjectId(object), Kind::ATTR, &[]);
        tx.punch(ObjectId(object), 0, 1 << 20).unwrap();
        tx.commit().unwrap();
    }
    files.retain(|object, _| object % 4 == 0);
    push(&store, 200).unwrap();
    for i in 1..20 {
        store.want_collapse();
        while store.step_clean(i * 1_000_000_000).unwrap() == Progress::Worked {}
        while store.step().unwrap() == Progress::Worked {}
    }
    let mut now = vec![0; LEN];
    for n in 0..40 {
        overwrite(&store, &mut rng, n, &mut now);
    }
    files.insert(10, now);
    push(&store, 20_000_000_000).unwrap();
    to_bucket(&store).unwrap();
    store.close().unwrap();
    drop(store);
    let scrub = |store: &Store| {
        let mut report = store.begin_scrub(3000, true).unwrap();
        while store.step_scrub(&mut report, 1 << 30).unwrap() {}
        report.damages
    };
    let read = |store: &Store, object: u64, at: u64| {
        let pieces = store.map(FS, ObjectId(object), at, 4096, Tid::MAX).unwrap();
        let mut bytes = vec![0; 4096];
        store.read(&pieces, &mut bytes).map(|()| bytes)
    };
    // What of the files can't be read, by blocks.
    let lost = |store: &Store| -> Vec<(u64, u64)> {
        let blocks = files.iter().flat_map(|(object, bytes)| bytes.chunks(4096).map(move |block| (*object, block)));
        let mut all = Vec::new();
        let mut at = (0, 0);
        for (object, block) in blocks {
            at = if at.0 == object { (object, at.1 + 4096) } else { (object, 0) };
            match read(store, object, at.1) {
                Ok(bytes) => assert!(bytes == block),
                Err(e) => {
                    assert!(matches!(e, Error::Data { .. } | Error::Corrupt { .. }), "{e}");
                    all.push(at);
                }
            }
        }
        all
    };
    let (mut named, mut unnamed) = (0, 0);
    assert!(bucket.objects().values().any(|bytes| bytes.starts_with(b"DARNPAK1")));
    for (name, sound) in bucket.objects().into_iter().filter(|(name, _)| name.starts_with("r/")) {
        for left in [None, Some(0), Some(sound.len() / 2)] {
            let disk = base.fork();
            let bucket = bucket.fork(&disk);
            let store = open(&disk, &bucket).unwrap();
            match left {
                None => bucket.lose(&name),
                Some(left) => bucket.shorten(&name, left),
            }
            let gone = lost(&store);
            let damages = scrub(&store);
            let is_named = |(of, at): &(u64, u64)| {
                damages.iter().any(|d| match d.rot {
                    Rot::Data { object, offset, len, .. } => {
                        object.0 == *of && offset < at + 4096 && *at < offset + len
                    }
                    _ => false,
                })
            };
            assert!(gone.iter().all(is_named), "{name}, {left:?}: {gone:?} of {damages:?}");
            let checked = store.check(&mut |_, _| ()).damages;
            assert!(damages.iter().all(|d| d.rot == Rot::Frame || checked.contains(d)), "{name}, {left:?}");
            *if gone.is_empty() { &mut unnamed } else { &mut named } += 1;
            // Elsewhere nothing is lost, whatever is not there.
            let claim = bucket.objects()["e/00000001"].clone();
            bucket.lose("e/00000001");
            for (object, at) in &gone {
                let read = read(&store, *object, *at).map(|_| ());
                assert!(left.is_some() || matches!(read, Err(Error::Io { .. })), "{read:?}");
            }
            bucket.put(vec![("e/00000001".into(), claim.to_vec())]).unwrap();
            match named % 2 {
                // Put back, it is there.
                0 => {
                    bucket.put(vec![(name.clone(), sound.to_vec())]).unwrap();
                    assert_eq!((lost(&store), scrub(&store)), (vec![], vec![]));
                }
                // The rest of it leaves.
                _ => {
                    store.leave_volume(number(&store)).unwrap();
                    while store.leaving().is_some() {
                        assert_eq!(store.step_leave(1 << 20).unwrap(), Progress::Worked);
                    }
                    assert_eq!(lost(&store), gone, "{name}, {left:?}");
                    store.close().unwrap();
                    drop(store);
                    let store = Store::open(volume(&disk), &OpenOptions::default()).unwrap();
                    assert_eq!(lost(&store), gone, "{name}, {left:?}");
                }
            }
        }
    }
    println!("{named} cost bytes of the file, {unnamed} none");
    assert!(named > 5, "{named}");
}

#[test]
fn what_is_sound_here_stays_so_where_the_bucket_has_lost_it_and_what_is_damaged_here_heals_once_it_has_it_again() {
    let disk = SimDisk::new(SIZE);
    let (store, bucket) = with_bucket(&disk);
    let mut rng = fastrand::Rng::with_seed(4);
    let bytes: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(64 << 10).collect();
    let mut tx = store.begin(FS, 10).unwrap();
    tx.write(ObjectId(10), 0, &bytes).unwrap();
    tx.commit().unwrap();
    push(&store, 20).unwrap();
    let of_a_block = bytes[3 * 4096..][..16].to_vec();
    for page in disk.written_pages() {
        let mut there = [0; 4096 + 16];
        Disk::read_at(&disk, &mut there, page).unwrap();
        for i in (0..4096).filter(|i| there[*i..][..16] == of_a_block[..]) {
            disk.flip(page + i as u64, 1);
        }
    }
    let read = |at: usize, len: usize| {
        let pieces = store.map(FS, ObjectId(10), at as u64, len as u64, Tid::MAX).unwrap();
        let mut out = vec![0; len];
        store.read(&pieces, &mut out).map(|()| assert!(out == bytes[at..at + len]))
    };
    let parts: Vec<_> = bucket.objects().into_iter().filter(|(name, _)| name.starts_with("r/")).collect();
    parts.iter().for_each(|(name, _)| bucket.lose(name));
    for _ in 0..2 {
        assert!(matches!(read(0, bytes.len()), Err(Error::Data { .. })));
        let lost: Vec<usize> = (0..16).filter(|n| read(n * 4096, 4096).is_err()).collect();
        assert_eq!(lost, [3]);
    }
    parts.into_iter().for_each(|(name, bytes)| bucket.put(vec![(name, bytes.to_vec())]).unwrap());
    read(0, bytes.len()).unwrap();
    assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
}

#[test]
fn whose_a_bucket_is_is_put_there_again_with_the_next_checkpoint_where_somebody_deleted_it() {
    let disk = SimDisk::new(SIZE);
    let (store, bucket) = with_bucket(&disk);
    let mut run = Run::new(22);
    run.transaction(&store).unwrap();
    push(&store, run.now).unwrap();
    bucket.lose("e/00000001");
    let elsewhere = SimDisk::new(SIZE);
    assert!(matches!(take_over(&bucket.fork(&elsewhere), &elsewhere), Err(Error::NotAStore(_))));
    run.transaction(&store).unwrap();
    push(&store, run.now).unwrap();
    check_alone(&run, &bucket, Some(store.tid()), 22);
    // Where it is another store's by now, nothing more goes there.
    bucket.lose("e/00000001");
    bucket.put(vec![("e/00000001".into(), vec![7; 40])]).unwrap();
    run.transaction(&store).unwrap();
    assert!(matches!(push(&store, run.now), Err(Error::Refused(_))));
}

#[test]
fn a_stream_from_the_bucket_is_fetched_once_in_few_large_pieces() {
    let disk = SimDisk::new(SIZE);
    let (store, bucket) = with_bucket(&disk);
    let mut rng = fastrand::Rng::with_seed(3);
    let data: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(1 << 20).collect();
    for i in 0..24 {
        let mut tx = store.begin(FS, 10 + i).unwrap();
        tx.write(ObjectId(5), i << 20, &data).unwrap();
        tx.commit().unwrap();
    }
    push(&store, 50).unwrap();
    to_bucket(&store).unwrap();
    store.close().unwrap();
    drop(store);
    let store = open(&disk, &bucket).unwrap();
    let before = disk.operations();
    for at in 0..24 << 2 {
        let pieces = store.map(FS, ObjectId(5), at << 18, 1 << 18, Tid::MAX).unwrap();
        let mut bytes = vec![0; 1 << 18];
        store.read(&pieces, &mut bytes).unwrap();
        let from = (at as usize % 4) << 18;
        assert!(bytes == data[from..from + (1 << 18)]);
    }
    let (asked, fetched) = (disk.operations() - before, store.bucket().unwrap().fetched);
    assert!(asked < 24, "{asked} requests");
    assert!(fetched < 26 << 20, "{fetched} bytes");
}

#[test]
fn a_damaged_checkpoint_is_put_anew_by_the_store_and_keeps_copies_of_it_away_as_a_sound_one_does() {
    let base = SimDisk::new(SIZE);
    let (store, first) = with_bucket(&base);
    let mut run = Run::new(23);
    let some = |run: &mut Run, store: &Store| {
        (0..10).for_each(|_| run.transaction(store).unwrap());
        store.checkpoint().unwrap();
        push(store, run.now)
    };
    some(&mut run, &store).unwrap();
    let older = base.fork();
    some(&mut run, &store).unwrap();
    store.close().unwrap();
    drop(store);
    let name = first.objects().into_keys().find(|name| name.starts_with("c/")).unwrap();
    for shorter in [false, true] {
        let disk = base.fork();
        let bucket = first.fork(&disk);
        match shorter {
            true => bucket.shorten(&name, 100),
            false => bucket.flip(&name, 60, 1),
        }
        let elsewhere = SimDisk::new(SIZE);
        match take_over(&bucket.fork(&elsewhere), &elsewhere).map(drop) {
            Err(Error::Refused(why)) => assert!(why.contains("the checkpoint is damaged"), "{why}"),
            other => panic!("{other:?}"),
        }
        // What it was earlier, however far that has gone on since.
        let before = objects(&bucket);
        let copy = open(&older.fork(), &bucket).unwrap();
        let mut other = Run::new(24);
        (other.now, other.objects) = (run.now, vec![900, 901, 902, 903, 904]);
        for _ in 0..40 {
            other.transaction(&copy).unwrap();
            copy.checkpoint().unwrap();
        }
        some(&mut other, &copy).unwrap();
        assert!(copy.bucket().unwrap().fenced.is_some());
        assert!(objects(&bucket) == before, "it changed something");
        // Without the object that tells whose it is, nobody knows.
        let unknown = bucket.fork(&disk);
        unknown.lose("e/00000001");
        let store = open(&disk.fork(), &unknown).unwrap();
        assert!(matches!(push(&store, run.now), Err(Error::Refused(_))));
        assert!(store.bucket().unwrap().failed.unwrap().contains("the checkpoint is damaged"));
        // Interrupted or not.
        for steps in 0..4 {
            let disk = disk.fork();
            let bucket = bucket.fork(&disk);
            let store = open(&disk, &bucket).unwrap();
            for _ in 0..steps {
                store.step_push(run.now, NEVER).unwrap();
            }
            drop(store);
            let store = open(&disk, &bucket).unwrap();
            while store.step_push(run.now, NEVER).unwrap() == Progress::Worked {}
            let state = store.bucket().unwrap();
            assert_eq!((state.reached, state.fenced, state.failed), (Some(store.tid()), None, None), "{steps}");
            assert!(!bucket.objects().contains_key(&name));
            check_alone(&run, &bucket, Some(store.tid()), 23);
        }
        // And it can leave.
        let store = open(&disk, &bucket).unwrap();
        store.leave_volume(number(&store)).unwrap();
        while store.leaving().is_some() {
            assert_eq!(store.step_leave(1 << 20).unwrap(), Progress::Worked);
        }
        assert!(bucket.objects().is_empty(), "{:?}", bucket.objects().keys());
    }
}

/// The objects of a bucket below a prefix.
struct Below(SimBucket, String);

impl Bucket for Below {
    fn name(&self) -> String {
        format!("s3://simulated/{}", self.1).trim_end_matches('/').into()
    }

    fn put(&self, objects: Vec<(String, Vec<u8>)>) -> Result<(), Error> {
        self.0.put(objects.into_iter().map(|(name, bytes)| (format!("{}{name}", self.1), bytes)).collect())
    }

    fn put_new(&self, name: &str, bytes: Vec<u8>) -> Result<bool, Error> {
        self.0.put_new(&format!("{}{name}", self.1), bytes)
    }

    fn get(&self, name: &str, range: Option<std::ops::Range<u64>>) -> Result<Vec<u8>, Error> {
        self.0.get(&format!("{}{name}", self.1), range)
    }

    fn list(&self, prefix: &str, after: &str) -> Result<Vec<(String, u64)>, Error> {
        let found = self.0.list(&format!("{}{prefix}", self.1), &format!("{}{after}", self.1))?;
        Ok(found.into_iter().map(|(name, len)| (name[self.1.len()..].to_owned(), len)).collect())
    }

    fn delete(&self, names: &[String]) -> Result<(), Error> {
        self.0.delete(&names.iter().map(|name| format!("{}{name}", self.1)).collect::<Vec<_>>())
    }
}

#[test]
fn a_store_below_another_one_s_prefix_is_refused_and_where_there_is_one_they_leave_each_other_alone() {
    let prefix = |name: &str| name.strip_prefix("s3://simulated/").map_or(String::new(), |prefix| format!("{prefix}/"));
    let reach = move |bucket: &SimBucket, hides: bool| {
        let (bucket, empty) = (bucket.clone(), SimBucket::beside(&SimDisk::new(SIZE)));
        let buckets = Buckets(Arc::new(move |name| -> Arc<dyn Bucket> {
            // (What is above those of the store below may be hidden.)
            let hidden = hides && name.matches('/').count() < 4;
            Arc::new(Below(if hidden { empty.clone() } else { bucket.clone() }, prefix(name)))
        }));
        OpenOptions { buckets: Some(buckets), ..OpenOptions::small() }
    };
    let new = |options: &OpenOptions| {
        let disk = SimDisk::new(SIZE);
        create(&disk);
        Store::open(volume(&disk), options).unwrap()
    };
    let fill = |store: &Store, run: &mut Run| {
        (0..20).for_each(|_| run.transaction(store).unwrap());
        push(store, run.now).unwrap();
        to_bucket(store).unwrap();
    };
    for below in ["x/e", "x/c", "x/r", "x/e/00000002"] {
        let bucket = SimBucket::beside(&SimDisk::new(SIZE));
        // Much else is there.
        (0..20).for_each(|i| bucket.put(vec![(format!("a{i}/some"), vec![1]), (format!("z{i}"), vec![2])]).unwrap());
        let options = reach(&bucket, false);
        let (store, mut run) = (new(&options), Run::new(31));
        store.add_bucket("s3://simulated/x", &options).unwrap();
        fill(&store, &mut run);
        let another = new(&options);
        for within in ["s3://simulated/x/e", "s3://simulated/x/some/where", "s3://simulated"] {
            match another.add_bucket(within, &options) {
                Err(Error::Refused(why)) => assert!(why.contains("s3://simulated/x"), "{why}"),
                other => panic!("{within}: {other:?}"),
            }
        }
        another.add_bucket("s3://simulated/xy", &options).unwrap();
        let options = reach(&bucket, true);
        let (other, mut there) = (new(&options), Run::new(32));
        other.add_bucket(&format!("s3://simulated/{below}"), &options).unwrap();
        for _ in 0..2 {
            fill(&other, &mut there);
            fill(&store, &mut run);
        }
        assert_eq!(store.bucket().unwrap().fenced, None);
        store.leave_volume(number(&store)).unwrap();
        while store.leaving().is_some() {
            assert_eq!(store.step_leave(1 << 20).unwrap(), Progress::Worked);
        }
        run.compare_some(&store, 3);
        there.compare_some(&other, 3);
        fill(&other, &mut there);
        let of_either = |name: &&String| name.starts_with("x/") && !name.starts_with(&format!("{below}/"));
        let objects = bucket.objects();
        assert_eq!(objects.keys().filter(of_either).collect::<Vec<_>>(), Vec::<&String>::new());
    }
}

#[test]
fn what_is_gone_from_the_bucket_and_is_here_is_put_there_anew_and_what_was_there_only_is_told() {
    let base = SimDisk::new(SIZE);
    let (store, first) = with_bucket(&base);
    let mut run = Run::new(41);
    let some = |run: &mut Run, store: &Store| {
        (0..30).for_each(|_| run.transaction(store).unwrap());
        store.checkpoint().unwrap();
        push(store, run.now).unwrap();
    };
    some(&mut run, &store);
    store.want_collapse();
    store.clean(run.now, &mut |_| ()).unwrap();
    to_bucket(&store).unwrap();
    (0..3).for_each(|_| some(&mut run, &store));
    store.close().unwrap();
    drop(store);
    let scrub = |store: &Store, all: bool| {
        let mut report = store.begin_scrub(7, all).unwrap();
        while store.step_scrub(&mut report, 1 << 30).unwrap() {}
        report
    };
    let data = |damages: Vec<Damage>| damages.into_iter().filter(|d| d.rot != Rot::Frame).collect::<Vec<_>>();
    let (mut anew, mut lost) = (0, 0);
    for n in 0..first.objects().len() {
        for (shorter, asked, scrubbed) in [(false, true, n % 2 == 0), (true, true, n % 2 == 1), (false, false, false)] {
            let disk = base.fork();
            let bucket = first.fork(&disk);
            let store = open(&disk, &bucket).unwrap();
            if asked {
                // It was known to be there.
                push(&store, run.now).unwrap();
                assert_eq!(store.find_gaps().unwrap(), Gaps::default());
            }
            let (name, sound) = bucket.objects().into_iter().nth(n).unwrap();
            match shorter {
                true => bucket.shorten(&name, sound.len() / 2),
                false => bucket.lose(&name),
            }
            let found = match scrubbed {
                true => {
                    let report = scrub(&store, false);
                    let found = store.find_gaps().unwrap();
                    assert_eq!(report.damages.is_empty(), found.lost.is_empty(), "{name}");
                    assert_eq!(data(report.damages), data(scrub(&store, true).damages), "{name}");
                    found
                }
                false => store.find_gaps().unwrap(),
            };
            push(&store, run.now).unwrap();
            let again = store.find_gaps().unwrap();
            assert_eq!(again, Gaps { lost: found.lost.clone(), ..Gaps::default() }, "{name}");
            assert_eq!(store.bucket().unwrap().reached, Some(store.tid()));
            lost += found.lost.len();
            if found.lost.is_empty() {
                anew += 1;
                check_alone(&run, &bucket, Some(store.tid()), 41);
            }
        }
    }
    println!("{anew} were put anew, {lost} are lost");
    assert!(anew > 10 && lost > 2, "{anew}, {lost}");
}

#[test]
fn a_scrub_of_a_damaged_object_fetches_it_a_few_times_however_many_pieces_are_damaged() {
    let disk = SimDisk::new(SIZE);
    let (store, bucket) = with_bucket(&disk);
    let mut rng = fastrand::Rng::with_seed(3);
    let data: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(8 << 10).collect();
    for i in 0..512 {
        let mut tx = store.begin(FS, 10 + i).unwrap();
        tx.write(ObjectId(5), i << 13, &data).unwrap();
        tx.commit().unwrap();
    }
    push(&store, 1000).unwrap();
    to_bucket(&store).unwrap();
    let largest = bucket.objects().into_iter().max_by_key(|(_, bytes)| bytes.len()).unwrap().0;
    let sound = bucket.objects()[&largest].to_vec();
    bucket.shorten(&largest, 4096);
    let before = disk.operations();
    let mut report = store.begin_scrub(7, true).unwrap();
    while store.step_scrub(&mut report, 1 << 30).unwrap() {}
    let asked = disk.operations() - before;
    assert!(report.damages.len() > 500, "{}", report.damages.len());
    assert!(asked < 400, "{asked} operations");
    // Put back, it is read again.
    bucket.put(vec![(largest, sound)]).unwrap();
    let pieces = store.map(FS, ObjectId(5), 0, 4 << 20, Tid::MAX).unwrap();
    store.read(&pieces, &mut vec![0; 4 << 20]).unwrap();
}
