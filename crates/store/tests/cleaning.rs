//! Retention, collapsing and cleaning against the model by tid: whatever was given up, every moment that is still visible
//! shows what it always did, and every other one rounds down to such a moment; across reopening, crashes at every write, and
//! indexes made anew.

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;

use common::{FS, Run, create, cut_at_every_event, new_disk, open};
use darner_store::volume::sim::{Fault, SimDisk};
use darner_store::volume::{Disk, RawVolume};
use darner_store::{Error, Grid, IndexFrom, Kind, ObjectId, OpenOptions, Step, Store, Tid};

/// The model of what is visible: asked after each change of it.
#[derive(Default)]
struct Visible {
    /// Moments that were once given up never come back.
    gone: BTreeSet<Tid>,
}

fn random_grid(run: &mut Run) -> Grid {
    let mut steps = Vec::new();
    for _ in 0..run.rng.usize(0..4) {
        let every = if run.rng.u8(0..4) == 0 { 0 } else { run.rng.u64(1..3000) };
        let lasts = if run.rng.u8(0..3) == 0 { u64::MAX } else { run.rng.u64(0..20_000) };
        steps.push(Step { every, lasts: if every == 0 { lasts.min(15_000) } else { lasts } });
    }
    Grid { steps }
}

/// What a grid says of a moment, by the book: some step has a point there that is young enough.
fn by_the_book(grid: &Grid, at: Tid, clock: u64) -> bool {
    grid.steps.iter().any(|s| match s.every {
        0 => at.0 >= clock.saturating_sub(s.lasts),
        every => at.0.is_multiple_of(every) && (s.lasts == u64::MAX || clock - at.0 <= s.lasts),
    })
}

impl Visible {
    /// Compares the store with the model at moments of all kinds.
    fn compare(&mut self, run: &mut Run, store: &Store, n: usize) {
        run.compare(store, Tid::MAX);
        let retention = store.retention(FS).unwrap();
        for _ in 0..n {
            let at = match run.rng.u8(0..3) {
                0 => Tid(run.rng.u64(0..run.now + 10)),
                _ if run.model.tids.is_empty() => Tid(1),
                _ => run.model.tids[run.rng.usize(..run.model.tids.len())],
            };
            match retention.round(at) {
                Some(shown) => {
                    assert!(shown <= at);
                    assert!(!self.gone.contains(&shown), "{shown} was given up, and is back");
                    assert_eq!(retention.round(shown), Some(shown));
                    run.compare(store, shown);
                    if shown < at {
                        self.gone.insert(at);
                    }
                }
                None => {
                    self.gone.insert(at);
                }
            }
        }
    }
}

fn label(run: &mut Run, store: &Store) -> Result<(), Error> {
    let at = Tid(run.rng.u64(0..run.now + 1));
    let Some(tid) = store.retention(FS)?.round(at) else { return Ok(()) };
    run.now += 1;
    let mut tx = store.begin(FS, run.now)?;
    let name = format!("label {}", run.rng.u8(0..5));
    match run.rng.u8(0..4) {
        0 => tx.delete(ObjectId(0), Kind::LABEL, name.as_bytes()),
        _ => {
            let mut value = Vec::new();
            let mut v = tid.0;
            while v >= 0x80 {
                value.push(v as u8 | 0x80);
                v >>= 7;
            }
            value.push(v as u8);
            tx.put(ObjectId(0), Kind::LABEL, name.as_bytes(), &value);
        }
    }
    tx.commit()?;
    Ok(())
}

/// One step of whatever there is.
fn act(run: &mut Run, store: &Store) -> Result<(), Error> {
    match run.rng.u8(0..40) {
        0 => drop(store.sync()?),
        1 => store.write_out()?,
        2..=3 => store.checkpoint()?,
        4..=6 => drop(store.step()?),
        7..=9 => drop(store.step_clean(run.now)?),
        10 => drop(store.clean(run.now, &mut |_| ())?),
        11 => label(run, store)?,
        12 => {
            let grid = random_grid(run);
            store.retain(FS, run.now, |r| r.with_grid(grid))?;
        }
        13 => run.kill(store)?,
        // Time passes.
        14 => run.now += run.rng.u64(0..5000),
        _ => run.transaction(store)?,
    }
    Ok(())
}

#[test]
fn every_moment_that_is_visible_shows_what_it_did_whatever_was_given_up() {
    let rounds: u64 = std::env::var("DARNER_CLEAN_ROUNDS").ok().and_then(|v| v.parse().ok()).unwrap_or(8);
    for seed in 0..rounds {
        println!("seed {seed}");
        let disk = new_disk(1 << 30, seed);
        create(&disk);
        let mut run = Run::new(seed);
        let mut visible = Visible::default();
        let mut store = open(&disk).unwrap();
        for step in 0..600 {
            act(&mut run, &store).unwrap();
            if run.rng.u8(0..60) == 0 {
                if run.rng.bool() {
                    store.close().unwrap();
                } else {
                    store.sync().unwrap();
                }
                drop(store);
                store = open(&disk).unwrap();
            }
            if step % 20 == 0 {
                visible.compare(&mut run, &store, 4);
            }
        }
        store.clean(run.now, &mut |_| ()).unwrap();
        visible.compare(&mut run, &store, 40);
        assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
        store.close().unwrap();
        drop(store);
        let options = OpenOptions { read_only: true, index: IndexFrom::Segments, ..OpenOptions::default() };
        let rebuilt = Store::open(Arc::new(RawVolume::new(Arc::new(disk.clone()))), &options).unwrap();
        visible.compare(&mut run, &rebuilt, 40);
    }
}

#[test]
fn a_grid_shows_its_points_by_the_book() {
    let disk = SimDisk::new(1 << 30);
    create(&disk);
    let store = open(&disk).unwrap();
    let mut run = Run::new(5);
    for _ in 0..300 {
        run.transaction(&store).unwrap();
        run.now += run.rng.u64(0..100);
    }
    let grid = Grid {
        steps: vec![
            Step { every: 0, lasts: 500 },
            Step { every: 70, lasts: 3000 },
            Step { every: 900, lasts: u64::MAX },
        ],
    };
    store.retain(FS, run.now, |r| r.with_grid(grid.clone())).unwrap();
    let clock = run.now;
    store.clean(clock, &mut |_| ()).unwrap();
    let retention = store.retention(FS).unwrap();
    for at in 0..clock {
        let expected = (0..=at).rev().find(|t| by_the_book(&grid, Tid(*t), clock)).map(Tid);
        assert_eq!(retention.round(Tid(at)), expected, "{at}");
    }
    for at in (0..clock).filter(|t| by_the_book(&grid, Tid(*t), clock)).step_by(17) {
        run.compare(&store, Tid(at));
    }
}

#[test]
fn a_power_failure_at_any_write_of_the_cleaner_changes_nothing_that_is_visible() {
    let seeds: u64 = std::env::var("DARNER_CRASH_SEEDS").ok().and_then(|v| v.parse().ok()).unwrap_or(2);
    for seed in 0..seeds {
        let base = new_disk(192 << 20, seed);
        create(&base);
        let disk = base.fork();
        let mut run = Run::new(seed + 70);
        let store = open(&disk).unwrap();
        disk.record();
        let mut synced = vec![];
        for i in 0..70 {
            run.transaction(&store).unwrap();
            match run.rng.u8(0..12) {
                0 => {
                    let tid = store.sync().unwrap();
                    synced.push((disk.events(), tid));
                }
                1 => store.checkpoint().unwrap(),
                2 => run.kill(&store).unwrap(),
                3 => label(&mut run, &store).unwrap(),
                _ => {}
            }
            if i % 20 == 15 {
                let grid = random_grid(&mut run);
                store.retain(FS, run.now, |r| r.with_grid(grid)).unwrap();
                store.clean(run.now, &mut |_| ()).unwrap();
                let tid = store.sync().unwrap();
                synced.push((disk.events(), tid));
            }
        }
        println!("seed {seed}: {} events", disk.events());
        cut_at_every_event((&base, &disk), &synced, &mut run, (seed, 1), &mut |n, store, _, run| {
            Visible::default().compare(run, &store, 3);
            // And it can still be cleaned.
            if n % 5 == 0 {
                store.clean(run.now, &mut |_| ()).unwrap();
                Visible::default().compare(run, &store, 3);
                assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
            }
        });
    }
}

#[test]
fn when_the_nth_disk_operation_of_the_cleaner_fails_nothing_visible_changes() {
    for (fault, seed) in [(Fault::Io, 0), (Fault::Io, 1), (Fault::NoSpace, 0), (Fault::NoSpace, 1)] {
        for n in 1.. {
            let disk = new_disk(192 << 20, seed);
            create(&disk);
            let mut run = Run::new(11);
            let store = open(&disk).unwrap();
            for _ in 0..40 {
                run.transaction(&store).unwrap();
            }
            run.kill(&store).unwrap();
            store.checkpoint().unwrap();
            store.retain(FS, run.now, |r| r.with_grid(Grid::default())).unwrap();
            let before = disk.operations();
            disk.fail_nth(n, fault);
            let outcome = store.clean(run.now, &mut |_| ());
            let over = disk.operations() - before < n;
            disk.fail_nth(u64::MAX / 2, fault);
            run.compare(&store, Tid::MAX);
            // It goes on where that is safe, and the next open finds all.
            let again = store.clean(run.now, &mut |_| ());
            if outcome.is_ok() {
                again.unwrap();
            }
            run.compare(&store, Tid::MAX);
            drop(store);
            let store = open(&disk).unwrap_or_else(|e| panic!("operation {n}, {fault:?}: {e}"));
            run.model.cut(store.tid());
            run.compare(&store, Tid::MAX);
            assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
            if over {
                println!("{n} operations for {fault:?}");
                break;
            }
        }
    }
}

/// Whether bytes are anywhere on a disk.
fn is_on(disk: &SimDisk, bytes: &[u8]) -> bool {
    let mut before: Vec<u8> = Vec::new();
    let mut end = u64::MAX;
    for at in disk.written_pages() {
        let mut page = vec![0; 4096];
        disk.read_at(&mut page, at).unwrap();
        let mut window = if at == end { before.split_off(before.len() - bytes.len()) } else { Vec::new() };
        window.extend_from_slice(&page);
        if window.windows(bytes.len()).any(|w| w == bytes) {
            return true;
        }
        (before, end) = (page, at + 4096);
    }
    false
}

#[test]
fn what_is_forgotten_is_nowhere_on_the_disk_and_all_else_is_as_it_was() {
    for seed in 0..6 {
        let disk = new_disk(1 << 30, seed);
        create(&disk);
        let mut run = Run::new(seed + 300);
        let store = open(&disk).unwrap();
        let (secret, shared) = (ObjectId(900), ObjectId(901));
        let mut random = vec![0; 20_000];
        run.rng.fill(&mut random);
        let (data, name, value) = (&random[..10_000], &random[15_000..15_060], &random[16_000..16_060]);
        for i in 0..80 {
            run.transaction(&store).unwrap();
            if i % 9 == 3 {
                run.now += 1;
                let mut tx = store.begin(FS, run.now).unwrap();
                tx.put(secret, Kind::ATTR, &[], value);
                tx.put(ObjectId(1), Kind::DIRENT, name, b"secret");
                tx.write(secret, i * 100, data).unwrap();
                tx.commit().unwrap();
            }
            match run.rng.u8(0..10) {
                0 => store.checkpoint().unwrap(),
                1 => drop(store.clean(run.now, &mut |_| ()).unwrap()),
                2 if seed % 2 == 0 => {
                    let grid = random_grid(&mut run);
                    store.retain(FS, run.now, |r| r.with_grid(grid)).unwrap();
                }
                _ => {}
            }
        }
        run.now += 1;
        let mut tx = store.begin(FS, run.now).unwrap();
        if seed == 5 {
            let pieces = tx.map(secret, 300, 5000).unwrap();
            tx.share(shared, 0, &pieces).unwrap();
        }
        tx.delete(ObjectId(1), Kind::DIRENT, name);
        tx.delete(secret, Kind::ATTR, &[]);
        tx.commit().unwrap();
        store.sync().unwrap();
        assert!(is_on(&disk, &data[2000..2400]) && is_on(&disk, name));
        let retention = store.retention(FS).unwrap();
        let key = darner_store::Key::new(FS, ObjectId(1), Kind::DIRENT, name);
        store.forget(&[(FS, secret)], &[key], store.tid(), run.now, &mut |_| ()).unwrap();
        assert!(!store.is_forgetting().unwrap());
        assert!(!is_on(&disk, name) && !is_on(&disk, value), "seed {seed}");
        assert_eq!(is_on(&disk, &data[2000..2400]), seed == 5, "only what another object shares is left");
        assert!(!is_on(&disk, &data[8000..8400]) || seed == 5);
        let mut gone = Visible::default();
        for at in run.model.tids.clone().into_iter().step_by(5) {
            if retention.round(at) == Some(at) {
                assert_eq!(store.get(&darner_store::Key::new(FS, secret, Kind::ATTR, &[]), at).unwrap(), None);
            }
        }
        gone.compare(&mut run, &store, 20);
        assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
    }
}

#[test]
fn space_comes_back_by_itself_in_a_bounded_number_of_steps() {
    let disk = SimDisk::new(4 << 30);
    create(&disk);
    let store = open(&disk).unwrap();
    let mut rng = fastrand::Rng::with_seed(1);
    let file = ObjectId(store.new_object().0);
    let mut now = 1_000_000_000u64;
    let mut write = |offset: u64, len: usize, now: u64| {
        let mut data = vec![0; len];
        rng.fill(&mut data);
        let mut tx = store.begin(FS, now).unwrap();
        let grown = tx.write(file, offset, &data).unwrap();
        tx.count(0, grown);
        tx.commit().unwrap();
    };
    for i in 0..128 {
        write(i << 20, 1 << 20, now + i);
    }
    // Once a second 512 blocks are overwritten; kept are ten points, ten seconds apart.
    let grid = Grid { steps: vec![Step { every: 10_000_000_000, lasts: 100_000_000_000 }] };
    store.retain(FS, now, |r| r.with_grid(grid)).unwrap();
    let mut steps = 0;
    for second in 0..240u64 {
        now += 1_000_000_000;
        for i in 0..512 {
            write((second * 7919 + i * 31) % 32_768 * 4096, 4096, now + i);
        }
        while store.step().unwrap() == darner_store::Progress::Worked {}
        while store.step_clean(now).unwrap() == darner_store::Progress::Worked {
            steps += 1;
        }
    }
    let account = store.account(now, None).unwrap();
    let used = store.usage().unwrap().used;
    let needed = account.live + account.history;
    println!("{steps} steps; in use {used}, needed {needed} ({} live, {} history)", account.live, account.history);
    // What has just been written, and is not needed any more, is on its way: a segment and what a collapse waits for.
    let on_its_way = 32 << 20;
    assert!(used <= needed * 115 / 100 + on_its_way, "in use {used}, needed {needed}");
    assert!(steps < 2_000, "{steps} steps");
    let cleaned = store.clean(now, &mut |_| ()).unwrap();
    assert!(cleaned.after <= needed * 115 / 100, "{cleaned:?}, needed {needed}");
}

/// Of frames of which all that was left was needed, what lay between was taken along, and took room for ever.
#[test]
fn what_was_dropped_of_a_frame_takes_no_room_when_its_remains_are_moved_again() {
    let store = Store::in_memory();
    store.retain(FS, 10, |r| r.with_grid(Grid::default())).unwrap();
    let mut rng = fastrand::Rng::with_seed(3);
    let mut bytes = vec![0; 1 << 20];
    for n in 0..80 {
        rng.fill(&mut bytes);
        let mut tx = store.begin(FS, 100 + n).unwrap();
        // (A hole stays as long as its object does.)
        tx.punch(ObjectId(5), 0, bytes.len() as u64).unwrap();
        tx.write(ObjectId(5), 0, &bytes).unwrap();
        tx.commit().unwrap();
        let mut tx = store.begin(FS, 100 + n).unwrap();
        tx.write(ObjectId(100 + n), 0, &bytes[..64 << 10]).unwrap();
        tx.commit().unwrap();
    }
    store.clean(1000, &mut |_| ()).unwrap();
    let used = store.usage().unwrap().used;
    assert!((6 << 20..10 << 20).contains(&used), "{used}");
    for n in 0..80 {
        let mut tx = store.begin(FS, 2000).unwrap();
        tx.punch(ObjectId(100 + n), 0, 64 << 10).unwrap();
        tx.commit().unwrap();
    }
    store.clean(3000, &mut |_| ()).unwrap();
    let used = store.usage().unwrap().used;
    assert!(used < 4 << 20, "{used}");
    assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
}

#[test]
fn what_is_alone_in_its_segment_is_forgotten_with_the_segment() {
    let disk = SimDisk::new(1 << 30);
    create(&disk);
    let store = open(&disk).unwrap();
    let secret = ObjectId(900);
    for _ in 0..2 {
        let mut tx = store.begin(FS, 100).unwrap();
        tx.put(secret, Kind::ATTR, &[], b"attributes");
        tx.commit().unwrap();
        let mut tx = store.begin(FS, 100).unwrap();
        tx.delete(secret, Kind::ATTR, &[]);
        tx.commit().unwrap();
        store.forget(&[(FS, secret)], &[], store.tid(), 200, &mut |_| ()).unwrap();
    }
}

#[test]
fn a_forgetting_that_a_crash_interrupted_is_brought_to_its_end() {
    let disk = SimDisk::new(1 << 30);
    create(&disk);
    let store = open(&disk).unwrap();
    let secret = ObjectId(900);
    let password = b"correct horse battery staple";
    // Beside so much that is needed that its absence is hardly noticed.
    let mut tx = store.begin(FS, 100).unwrap();
    tx.put(secret, Kind::ATTR, &[], password);
    for i in 0..500 {
        tx.put(ObjectId(1000 + i), Kind::ATTR, &[], b"x");
    }
    tx.commit().unwrap();
    let mut tx = store.begin(FS, 100).unwrap();
    tx.delete(secret, Kind::ATTR, &[]);
    tx.commit().unwrap();
    let mut tx = store.begin(FS, 100).unwrap();
    tx.put(ObjectId(0), Kind::FORGET, &secret.0.to_be_bytes(), &[]);
    tx.commit().unwrap();
    store.checkpoint().unwrap();
    // A pass drops it from the index; then the power fails.
    store.want_collapse();
    for _ in 0..2 {
        store.step_clean(200).unwrap();
    }
    drop(store);
    let store = open(&disk).unwrap();
    assert!(store.is_forgetting().unwrap());
    store.forget(&[], &[], Tid::ZERO, 300, &mut |_| ()).unwrap();
    assert!(!store.is_forgetting().unwrap());
    assert!(!is_on(&disk, password));
}

#[test]
fn versions_that_were_collapsed_long_before_are_destroyed_in_the_segments_too() {
    let disk = SimDisk::new(1 << 30);
    create(&disk);
    let store = open(&disk).unwrap();
    let (dir, name) = (ObjectId(900), b"a name that nobody may read");
    store.retain(FS, 100, |r| r.with_grid(Grid::default())).unwrap();
    // Among so many small records the one that is not needed is less than the error of the estimate.
    let mut tx = store.begin(FS, 100).unwrap();
    tx.put(dir, Kind::DIRENT, name, b"1");
    (1000..3000).for_each(|object| tx.put(ObjectId(object), Kind::ATTR, &[], b"x"));
    tx.commit().unwrap();
    let mut tx = store.begin(FS, 200).unwrap();
    tx.delete(dir, Kind::DIRENT, name);
    tx.commit().unwrap();
    store.clean(300, &mut |_| ()).unwrap();
    assert!(is_on(&disk, name));
    let key = darner_store::Key::new(FS, dir, Kind::DIRENT, name);
    store.forget(&[], &[key], Tid::MAX, 400, &mut |_| ()).unwrap();
    assert!(!is_on(&disk, name));
    assert!(store.get(&darner_store::Key::new(FS, ObjectId(1500), Kind::ATTR, &[]), Tid::MAX).unwrap().is_some());
    assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
}

#[test]
fn forgetting_takes_all_with_it_that_had_lapsed() {
    let disk = SimDisk::new(1 << 30);
    create(&disk);
    let store = open(&disk).unwrap();
    let (secret, small, value) = (ObjectId(900), b"correct horse battery staple", b"the value of a record");
    store.retain(FS, 100, |r| r.with_grid(Grid::default())).unwrap();
    // Beside so much that is needed that its absence is hardly noticed.
    let mut tx = store.begin(FS, 100).unwrap();
    tx.put(secret, Kind::ATTR, &[], value);
    tx.write(secret, 0, small).unwrap();
    (1000..3000).for_each(|object| tx.put(ObjectId(object), Kind::ATTR, &[], b"x"));
    tx.commit().unwrap();
    let mut tx = store.begin(FS, 200).unwrap();
    tx.delete(secret, Kind::ATTR, &[]);
    tx.commit().unwrap();
    store.clean(300, &mut |_| ()).unwrap();
    let names = |kind| store.ever_had(kind, &[]).unwrap().len();
    assert!(is_on(&disk, small) && is_on(&disk, value));
    assert_eq!(names(Kind::ATTR), 2001);
    store.forget(&[], &[], Tid::MAX, 400, &mut |_| ()).unwrap();
    assert!(!is_on(&disk, small) && !is_on(&disk, value));
    assert_eq!(names(Kind::ATTR), 2000);
    assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
}

#[test]
fn a_forgetting_cut_at_any_write_leaves_nothing_once_it_is_resumed() {
    let base = SimDisk::new(192 << 20);
    create(&base);
    let disk = base.fork();
    let mut run = Run::new(77);
    let store = open(&disk).unwrap();
    let (secret, password) = (ObjectId(900), b"correct horse battery staple".as_slice());
    let mut noise = vec![0; 9000];
    run.rng.fill(&mut noise);
    for _ in 0..20 {
        run.transaction(&store).unwrap();
    }
    let mut tx = store.begin(FS, run.now).unwrap();
    tx.put(secret, Kind::ATTR, &[], password);
    tx.write(secret, 0, &noise).unwrap();
    tx.commit().unwrap();
    let mut tx = store.begin(FS, run.now).unwrap();
    tx.delete(secret, Kind::ATTR, &[]);
    tx.commit().unwrap();
    store.close().unwrap();
    let base = disk.fork();
    disk.record();
    store.forget(&[(FS, secret)], &[], store.tid(), run.now, &mut |_| ()).unwrap();
    println!("{} events", disk.events());
    for n in 0..=disk.events() {
        for keeps in [false, true] {
            let crashed = SimDisk::crashed(&base, &disk, n, &mut |_| keeps);
            let store = open(&crashed).unwrap();
            let begun = store.is_forgetting().unwrap();
            store.forget(&[], &[], Tid::MAX, run.now, &mut |_| ()).unwrap();
            if begun {
                assert!(!is_on(&crashed, password), "event {n}");
                assert!(!is_on(&crashed, &noise[1000..1400]), "event {n}");
            }
            assert!(!store.is_forgetting().unwrap());
            run.compare(&store, Tid::MAX);
        }
    }
}
