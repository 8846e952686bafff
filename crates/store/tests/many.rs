//! Stores of more volumes than have superblocks: from any one all others are found, nothing old is ever taken for the present, and
//! a change of one volume writes to a few.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::disks::{copy_all, volume};
use common::{FS, Run, create, new_disk};
use darner_store::volume::sim::{Fault, SimDisk};
use darner_store::volume::{Copies, DirVolume, Volume};
use darner_store::{
    CreateOptions, Error, ObjectId, OpenOptions, Progress, ScrubReport, Store, Tid, find, identify, members,
};

/// Volumes that have superblocks.
const HOMES: usize = 8;
const SIZE: u64 = 64 << 20;

/// The volumes that are found from one of these disks.
fn found_from(disks: &[SimDisk], by: usize) -> Result<Vec<Arc<dyn Volume>>, Error> {
    let volumes: Vec<_> = disks.iter().map(volume).collect();
    // As they call themselves: there is no other way to find a simulated disk.
    let all: Vec<_> = volumes.iter().map(|v| identify(&**v).ok()).collect();
    let mut by_number: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
    all.iter()
        .enumerate()
        .for_each(|(i, id)| by_number.entry(id.as_ref().map_or(0, |id| id.number)).or_default().push(i));
    let found = find((by, volumes[by].clone()), Vec::new(), &mut |entry, says, _| {
        let named = by_number.get(&entry.number)?;
        let i = named.iter().find(|i| all[**i].as_ref().is_some_and(|id| id.is(&says.uuid, entry)))?;
        Some((*i, volumes[*i].clone()))
    });
    Ok(found?.into_iter().map(|f| f.volume).collect())
}

fn open_from(disks: &[SimDisk], by: usize, options: &OpenOptions) -> Result<Store, Error> {
    Store::open_volumes(&found_from(disks, by)?, options)
}

/// Opens by whichever disk the store is on.
fn open(disks: &[SimDisk]) -> Store {
    let mut failed = Vec::new();
    for i in 0..disks.len() {
        match open_from(disks, i, &OpenOptions::small()) {
            Ok(store) => return store,
            Err(e) => failed.push(e.to_string()),
        }
    }
    panic!("{failed:?}")
}

fn degraded() -> OpenOptions {
    OpenOptions { degraded: true, ..OpenOptions::small() }
}

fn numbers(store: &Store) -> Vec<u16> {
    store.volumes().unwrap().iter().map(|v| v.entry.number).collect()
}

fn remove(store: &Store, number: u16) -> Result<(), Error> {
    store.leave_volume(number)?;
    while store.leaving().is_some() {
        assert_eq!(store.step_leave(1 << 20)?, Progress::Worked, "nobody reads anything");
    }
    Ok(())
}

/// The homes, by what any volume of the store says that has a superblock.
fn homes(disks: &[SimDisk]) -> Vec<u16> {
    let all = disks.iter().filter_map(|d| identify(&*volume(d)).ok());
    all.max_by_key(|id| id.generation).unwrap().homes
}

/// Disks in one machine, that of volume 0 first.
fn disks(n: usize, seed: u64) -> Vec<SimDisk> {
    let first = new_disk(SIZE, seed);
    let others = (1..n).map(|i| if i % 3 == 1 { first.beside(SIZE).in_pieces(192 << 10) } else { first.beside(SIZE) });
    std::iter::once(first.clone()).chain(others).collect()
}

/// A store on the first `n` of some disks, with something in it.
fn store_on(disks: &[SimDisk], n: usize, run: &mut Run) -> Store {
    create(&disks[0]);
    let store = open(&disks[..1]);
    for (i, disk) in disks[1..n].iter().enumerate() {
        assert_eq!(usize::from(store.add_volume(volume(disk), 0).unwrap()), i + 1);
    }
    for i in 0..40 {
        run.transaction(&store).unwrap();
        if i % 10 == 9 {
            store.checkpoint().unwrap();
        }
    }
    store
}

#[test]
fn from_any_of_many_volumes_all_are_found_and_everything_is_there() {
    let mut run = Run::new(1);
    let disks = disks(40, 2);
    let store = store_on(&disks, 40, &mut run);
    run.compare_some(&store, 3);
    assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
    store.close().unwrap();
    drop(store);
    assert_eq!(homes(&disks), (0..HOMES as u16).collect::<Vec<_>>());
    for by in 0..40 {
        let store = open_from(&disks, by, &OpenOptions::small()).unwrap();
        assert_eq!(numbers(&store).len(), 40);
        run.compare(&store, Tid::MAX);
    }
    // Homes that leave are replaced; volumes that hold something leave too, until so few are left that all are homes.
    let mut store = open(&disks);
    let mut left: Vec<u16> = (0..40).collect();
    for (i, number) in [3, 0, 39, 7, 20, 8, 1].into_iter().chain(21..39).chain(9..16).enumerate() {
        run.transaction(&store).unwrap();
        remove(&store, number).unwrap();
        left.retain(|n| *n != number);
        assert_eq!(numbers(&store), left);
        if i % 5 == 4 || left.len() < 12 {
            store.sync().unwrap();
            drop(store);
            assert!(homes(&disks).iter().all(|home| left.contains(home)));
            assert_eq!(homes(&disks).len(), HOMES.min(left.len()));
            let by = left[run.rng.usize(..left.len())];
            store = open_from(&disks, by.into(), &OpenOptions::small()).unwrap();
            run.compare_some(&store, 2);
        }
    }
    assert_eq!(left.len(), 8);
    assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
    // And it grows again.
    for disk in &disks[20..26] {
        store.add_volume(volume(disk), 0).unwrap();
    }
    store.close().unwrap();
    drop(store);
    run.compare_some(&open_from(&disks, 25, &OpenOptions::small()).unwrap(), 3);
    let said = open_from(&disks, 30, &OpenOptions::small()).map(drop).unwrap_err().to_string();
    assert!(said.contains("no darner store"), "{said}");
}

#[test]
fn a_checkpoint_and_a_new_volume_write_to_a_few_volumes_however_many_there_are() {
    let mut run = Run::new(5);
    let disks = disks(120, 0);
    let store = store_on(&disks, 100, &mut run);
    disks.iter().for_each(SimDisk::record);
    run.transaction(&store).unwrap();
    store.checkpoint().unwrap();
    let touched = |n: usize| disks[..n].iter().filter(|d| d.flushes(disks[0].events()) > 0).count();
    // The homes; and those that got the log, the manifest and tables.
    assert!(touched(100) <= HOMES + 6, "{}", touched(100));
    disks.iter().for_each(SimDisk::record);
    for disk in &disks[100..] {
        store.add_volume(volume(disk), 0).unwrap();
    }
    assert_eq!(touched(100), HOMES);
    assert_eq!(touched(120), HOMES + 20);
}

#[test]
fn without_any_home_nothing_is_opened_and_the_homes_are_named_and_with_one_all_that_is_there_is_served() {
    let mut run = Run::new(7);
    let disks = disks(14, 4);
    let store = store_on(&disks, 14, &mut run);
    store.set_copies(Copies::Two).unwrap();
    copy_all(&store);
    run.transaction(&store).unwrap();
    store.close().unwrap();
    drop(store);
    for by in 8..14 {
        let forks: Vec<SimDisk> = disks[8..].iter().map(SimDisk::fork).collect();
        let said = open_from(&forks, by - 8, &degraded()).map(drop).unwrap_err().to_string();
        assert!(said.contains("0 (volume 0), 1 (volume 1)") && said.contains("none of them is there"), "{said}");
    }
    // Any home may be lost, or any other; another home takes the place of one, and all know.
    let full = run.model.clone();
    for lost in 0..14 {
        run.model = full.clone();
        let mut forks: Vec<SimDisk> = disks.iter().map(SimDisk::fork).collect();
        let away = std::mem::replace(&mut forks[lost], SimDisk::new(SIZE));
        let by = if lost == 13 { 2 } else { 13 };
        let said = open_from(&forks, by, &OpenOptions::small()).map(drop).unwrap_err();
        assert!(matches!(said, Error::Missing { number, .. } if usize::from(number) == lost), "{said}");
        let store = open_from(&forks, by, &degraded()).unwrap();
        run.compare(&store, Tid::MAX);
        run.transaction(&store).unwrap();
        store.close().unwrap();
        let now = homes(&forks);
        assert!(now.len() == HOMES && !now.contains(&(lost as u16)), "{now:?}");
        for (i, disk) in forks.iter().enumerate().filter(|(i, _)| *i != lost) {
            assert_eq!(identify(&*volume(disk)).unwrap().homes, now, "volume {i}");
        }
        drop(store);
        // It is back: what it says is of no account.
        forks[lost] = away;
        for by in [lost, 3] {
            let store = open_from(&forks, by, &OpenOptions::small()).unwrap();
            run.compare(&store, Tid::MAX);
            copy_all(&store);
            store.close().unwrap();
        }
    }
}

#[test]
fn two_halves_of_many_volumes_that_both_went_on_are_refused() {
    let mut run = Run::new(8);
    let disks = disks(12, 0);
    create(&disks[0]);
    let store = open(&disks[..1]);
    disks[1..].iter().for_each(|disk| assert!(store.add_volume(volume(disk), 0).unwrap() > 0));
    store.set_copies(Copies::Two).unwrap();
    copy_all(&store);
    run.transaction(&store).unwrap();
    store.close().unwrap();
    drop(store);
    let half = |mine: u32| -> Vec<SimDisk> {
        (0..12).map(|i| if mine & 1 << i > 0 { disks[i].fork() } else { SimDisk::new(SIZE) }).collect()
    };
    let first = |mine: u32| mine.trailing_zeros() as usize;
    let is_whole = |mine: u32| {
        let store = open_from(&half(mine), first(mine), &degraded());
        store.is_ok_and(|store| !store.is_read_only())
    };
    // Halves of which each has a copy of everything that is needed to go on.
    let mut halves = (1..1u32 << 12).filter(|mine| mine.count_ones() == 6 && mine & 1 == 1);
    let one = halves.find(|mine| is_whole(*mine) && is_whole(!mine & 0xfff)).expect("there are such halves");
    let goes_on = |mine: u32, steps: u64| {
        let forks = half(mine);
        let store = open_from(&forks, first(mine), &degraded()).unwrap();
        for i in 0..steps {
            let mut tx = store.begin(FS, (1 << 40) + i).unwrap();
            tx.put(ObjectId(70), darner_store::Kind::ATTR, b"", b"x");
            tx.commit().unwrap();
            store.checkpoint().unwrap();
        }
        forks
    };
    for (steps, others) in [(0, 0), (0, 1), (1, 0), (1, 1), (3, 0), (3, 2), (2, 7)] {
        let (mine, theirs) = (goes_on(one, steps), goes_on(!one & 0xfff, others));
        let all: Vec<SimDisk> =
            (0..12).map(|i| if one & 1 << i > 0 { mine[i].clone() } else { theirs[i].clone() }).collect();
        for by in 0..12 {
            let said = open_from(&all, by, &OpenOptions::small()).map(drop).unwrap_err().to_string();
            assert!(said.contains("both written to"), "{steps} and {others} steps, from {by}: {said}");
        }
    }
}

/// What changes the volumes of a store of 10 on 14 disks, step by step, and homes among them.
fn change(store: &Store, disks: &[SimDisk], step: usize) -> Result<(), Error> {
    let all = numbers(store);
    let unused = disks.iter().find(|d| identify(&*volume(d)).is_err());
    match step {
        0 | 1 | 5 | 9 => drop(store.add_volume(volume(unused.unwrap()), 0)?),
        // A home, the newest, another home with what is on it, and so on until all are homes, and no more.
        2 | 7 => remove(store, all[0])?,
        3 => remove(store, all[all.len() - 1])?,
        4 => store.resize_volume(all[1], 0)?,
        6 | 8 | 10..=13 => remove(store, all[1])?,
        _ => store.checkpoint()?,
    }
    Ok(())
}

#[test]
fn a_power_failure_while_many_volumes_change_leaves_a_whole_store_that_any_of_them_leads_to() {
    let rounds: u64 = std::env::var("DARNER_VOLUME_ROUNDS").ok().and_then(|v| v.parse().ok()).unwrap_or(1);
    for seed in 0..rounds {
        let disks = disks(14, seed);
        let mut run = Run::new(seed + 60);
        let store = store_on(&disks, 10, &mut run);
        if seed % 2 == 1 {
            store.set_copies(Copies::Two).unwrap();
            copy_all(&store);
        }
        store.close().unwrap();
        let bases: Vec<SimDisk> = disks.iter().map(SimDisk::fork).collect();
        disks[0].record();
        let mut synced = vec![(0, store.tid())];
        for step in 0..16 {
            run.transaction(&store).unwrap();
            change(&store, &disks, step).unwrap();
            if step % 3 == 0 {
                let tid = store.sync().unwrap();
                synced.push((disks[0].events(), tid));
            }
        }
        let events = disks[0].events();
        println!("seed {seed}: {events} events");
        let most: usize = std::env::var("DARNER_CRASH_POINTS").ok().and_then(|v| v.parse().ok()).unwrap_or(16);
        let full = run.model.clone();
        for n in (0..=events).step_by(1 + events / most) {
            for mode in 0..3 {
                let mut rng = fastrand::Rng::with_seed(seed * 1000 + n as u64);
                let mut keep = |_| if mode == 2 { rng.bool() } else { mode == 1 };
                let crashed: Vec<SimDisk> =
                    bases.iter().zip(&disks).map(|(base, log)| SimDisk::crashed(base, log, n, &mut keep)).collect();
                let must = synced.iter().rev().find(|(at, _)| *at <= n).map_or(Tid(0), |(_, t)| *t);
                let context = format!("seed {seed}, event {n}, mode {mode}");
                // Every volume leads to the same store, or is none of its volumes.
                let mut last = None;
                let mut belong = Vec::new();
                let are_all = (n + mode) % 3 == 0;
                for by in (0..crashed.len()).filter(|by| are_all || by % 5 == n % 5) {
                    let forks: Vec<SimDisk> = crashed.iter().map(SimDisk::fork).collect();
                    let store = match open_from(&forks, by, &OpenOptions::small()) {
                        Ok(store) => store,
                        Err(Error::NotAStore(_)) => continue,
                        Err(e) => panic!("{context}, from {by}: {e}"),
                    };
                    let id = identify(&*volume(&forks[by])).unwrap();
                    assert!(numbers(&store).contains(&id.number), "{context}, from {by}");
                    belong.push(id.number);
                    assert!(store.tid() >= must && last.is_none_or(|t| t == store.tid()), "{context}, from {by}");
                    last = Some(store.tid());
                    if by % 7 == n % 7 {
                        run.model = full.clone();
                        run.model.cut(store.tid());
                        run.compare_some(&store, 1);
                    }
                }
                let store = open(&crashed);
                belong.sort_unstable();
                assert!(!are_all || belong == numbers(&store), "{context}");
                run.model = full.clone();
                run.model.cut(store.tid());
                run.compare_some(&store, 1);
                // And it goes on from there.
                while store.leaving().is_some() {
                    store.step_leave(1 << 20).unwrap();
                }
                if let Some(unused) = crashed.iter().find(|d| identify(&*volume(d)).is_err()) {
                    store.add_volume(volume(unused), 0).unwrap();
                }
                let there = numbers(&store);
                remove(&store, there[n % there.len()]).unwrap();
                assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new(), "{context}");
                drop(store);
                run.compare(&open(&crashed), Tid::MAX);
            }
        }
    }
}

#[test]
fn when_the_nth_operation_of_a_change_of_many_volumes_fails_nothing_visible_changes() {
    for (fault, copies) in [(Fault::Io, Copies::One), (Fault::NoSpace, Copies::One), (Fault::Io, Copies::Two)] {
        let mut n = 1;
        loop {
            let disks = disks(18, 0);
            let mut run = Run::new(11);
            let store = store_on(&disks, 9, &mut run);
            store.set_copies(copies).unwrap();
            copy_all(&store);
            let mut unused = disks[9..].iter();
            let mut act = |store: &Store| -> Result<(), Error> {
                while numbers(store).len() < 11 && store.leaving().is_none() && numbers(store)[0] == 0 {
                    store.add_volume(volume(unused.next().expect("one is left")), 0)?;
                }
                for number in [0, 4] {
                    if numbers(store).contains(&number) {
                        remove(store, number)?;
                    }
                }
                Ok(())
            };
            let before = disks[0].operations();
            disks[0].fail_nth(n, fault);
            let outcome = act(&store);
            let over = disks[0].operations() - before < n;
            disks[0].fail_nth(u64::MAX / 2, fault);
            run.compare(&store, Tid::MAX);
            let again = act(&store);
            if outcome.is_ok() {
                again.unwrap();
            }
            run.compare(&store, Tid::MAX);
            drop(store);
            let store = open(&disks);
            run.model.cut(store.tid());
            run.compare(&store, Tid::MAX);
            act(&store).unwrap_or_else(|e| panic!("operation {n}, {fault:?}: {e}"));
            copy_all(&store);
            run.compare_some(&store, 1);
            assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
            if over {
                println!("{n} operations for {fault:?}");
                break;
            }
            n += 1 + n / 12;
        }
    }
}

#[test]
fn a_damaged_table_of_volumes_or_sign_is_noticed_and_written_anew() {
    let mut run = Run::new(12);
    let disks = disks(12, 0);
    let store = store_on(&disks, 12, &mut run);
    store.close().unwrap();
    drop(store);
    let magic = |disk: &SimDisk, what: &[u8]| {
        use darner_store::volume::Disk;
        let starts = |at: &u64| {
            let mut page = [0; 8];
            disk.read_at(&mut page, *at).unwrap();
            page == *what
        };
        disk.written_pages().into_iter().filter(starts).collect::<Vec<u64>>()
    };
    let rosters: Vec<(usize, u64)> =
        (0..12).flat_map(|i| magic(&disks[i], b"DARNVOL1").into_iter().map(move |at| (i, at))).collect();
    let damage = |disk: &SimDisk, at: u64| disk.flip(at + 20, 1);
    // (Space that was given back may hold older ones.)
    rosters.iter().filter(|(i, _)| *i == rosters[0].0).for_each(|(i, at)| damage(&disks[*i], *at));
    magic(&disks[11], b"DARNER\r\n").into_iter().filter(|at| *at < 1 << 20).for_each(|at| damage(&disks[11], at));
    let store = {
        let volumes: Vec<_> = disks.iter().map(volume).collect();
        let said = Store::open_volumes(&volumes, &OpenOptions::small()).map(drop).unwrap_err();
        assert!(matches!(said, Error::Missing { number: 11, .. }), "{said}");
        darner_store::reclaim(&*volume(&disks[11]), None).unwrap();
        Store::open_volumes(&volumes, &OpenOptions::small()).unwrap()
    };
    magic(&disks[10], b"DARNER\r\n").into_iter().filter(|at| *at < 1 << 20).for_each(|at| damage(&disks[10], at));
    run.compare(&store, Tid::MAX);
    let mut report = ScrubReport::default();
    while store.step_scrub(&mut report, 1 << 20).unwrap() {}
    assert!(report.healed >= 2 && report.damages.is_empty(), "{report:?}");
    store.close().unwrap();
    drop(store);
    // Each copy of the table alone will do now.
    let all = members(&disks.iter().map(volume).collect::<Vec<_>>()).unwrap();
    assert_eq!(all.len(), 12);
    let store = open_from(&disks, 10, &OpenOptions::small()).unwrap();
    run.compare(&store, Tid::MAX);
}

#[test]
fn thousands_of_volumes_are_added_found_and_removed() {
    let n: usize = std::env::var("DARNER_VOLUMES").ok().and_then(|v| v.parse().ok()).unwrap_or(2500);
    let time = std::time::Instant::now();
    let mut run = Run::new(3);
    let disks = disks(n, 0);
    let store = store_on(&disks, n, &mut run);
    println!("{n} added: {:?}", time.elapsed());
    for number in [0, 5, n as u16 - 1] {
        remove(&store, number).unwrap();
    }
    store.close().unwrap();
    drop(store);
    println!("3 removed: {:?}", time.elapsed());
    let store = open_from(&disks, n / 2, &OpenOptions::small()).unwrap();
    println!("opened: {:?}", time.elapsed());
    assert_eq!(numbers(&store).len(), n - 3);
    run.compare_some(&store, 2);
    for _ in 0..10 {
        run.transaction(&store).unwrap();
        store.checkpoint().unwrap();
    }
    println!("10 checkpoints: {:?}", time.elapsed());
    let said = store.add_volume(volume(&SimDisk::new(1 << 20)), 0).unwrap_err().to_string();
    assert!(said.contains("at least"), "{said}");
    assert_eq!(store.check(&mut |_, _| ()).all(), Vec::<String>::new());
    store.close().unwrap();
}

/// A store of 12 volumes that version 7 wrote: each has a superblock.
const VERSION_7: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v7-many.bin");
/// Those that later versions made of one.
const VERSION_8: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v8-many.bin");
const VERSION_9: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v9-many.bin");

fn image(path: &str) -> Vec<SimDisk> {
    use darner_store::volume::Disk;
    let bytes = std::fs::read(path).unwrap();
    let mut rest = &bytes[..];
    let first = SimDisk::new(SIZE);
    let mut disks = Vec::new();
    while let Some((len, more)) = rest.split_first_chunk() {
        let (pages, more) = more.split_at(u64::from_le_bytes(*len) as usize);
        let disk = if disks.is_empty() { first.clone() } else { first.beside(SIZE) };
        for page in lz4_flex::decompress_size_prepended(pages).unwrap().chunks(8 + 4096) {
            disk.write_at(&page[8..], u64::from_le_bytes(page[..8].try_into().unwrap())).unwrap();
        }
        disks.push(disk);
        rest = more;
    }
    disks
}

/// Writes today's image: the older one, one of whose volumes has left and come back.
fn bless() {
    use darner_store::volume::Disk;
    let disks = image(VERSION_7);
    let store = open(&disks);
    remove(&store, 11).unwrap();
    store.add_volume(volume(&disks[11]), 0).unwrap();
    store.sync().unwrap();
    let mut out = Vec::new();
    for disk in &disks {
        let mut pages = Vec::new();
        for at in disk.written_pages() {
            let mut page = [0; 4096];
            disk.read_at(&mut page, at).unwrap();
            pages.extend_from_slice(&at.to_le_bytes());
            pages.extend_from_slice(&page);
        }
        let pages = lz4_flex::compress_prepend_size(&pages);
        out.extend_from_slice(&(pages.len() as u64).to_le_bytes());
        out.extend_from_slice(&pages);
    }
    std::fs::write(VERSION_9, out).unwrap();
}

/// The file that those stores have, as of a moment.
fn file(store: &Store, at: u64) -> Vec<u8> {
    let mut bytes = vec![0; 300_000];
    store.read(&store.map(FS, ObjectId(3), 0, 300_000, Tid(at)).unwrap(), &mut bytes).unwrap();
    bytes
}

#[test]
fn stores_of_many_volumes_that_earlier_versions_wrote_open_and_become_todays_whenever_the_power_fails() {
    let text: Vec<u8> = (0..).flat_map(|i: u32| format!("line {i}\n").into_bytes()).take(100_000).collect();
    let is_it = |store: &Store| {
        let mut now = text.repeat(3);
        assert!(file(store, 3_000) == now);
        now[5..9].copy_from_slice(b"last");
        assert!(file(store, 5_000) == now && file(store, 2_000)[..100_000] == text);
        assert_eq!(numbers(store).len(), 12);
    };
    if std::env::var_os("DARNER_BLESS").is_some() {
        bless();
    }
    for path in [VERSION_7, VERSION_8, VERSION_9] {
        let bases = image(path);
        let disks: Vec<SimDisk> = image(path);
        disks[0].record();
        let store = open(&disks);
        is_it(&store);
        store.close().unwrap();
        drop(store);
        assert!(disks.iter().all(|d| identify(&*volume(d)).unwrap().homes == (0..8).collect::<Vec<u16>>()));
        let events = disks[0].events();
        for n in (0..=events).step_by(1 + events / 60) {
            let mut rng = fastrand::Rng::with_seed(n as u64);
            let mut keep = |_| if n % 3 == 2 { rng.bool() } else { n % 3 == 1 };
            let crashed: Vec<SimDisk> =
                bases.iter().zip(&disks).map(|(base, log)| SimDisk::crashed(base, log, n, &mut keep)).collect();
            for by in [n % 12, (n + 5) % 12] {
                let forks: Vec<SimDisk> = crashed.iter().map(SimDisk::fork).collect();
                is_it(&open_from(&forks, by, &OpenOptions::small()).unwrap());
            }
        }
    }
}

#[test]
fn directories_on_several_filesystems_have_homes_on_each() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm"));
    // (Where there is no second filesystem, there is nothing to see.)
    let Ok(other) = other else { return };
    let dir = |base: &tempfile::TempDir, i: usize| -> Arc<dyn Volume> {
        let path = base.path().join(i.to_string());
        std::fs::create_dir(&path).unwrap();
        Arc::new(DirVolume::open(&path, true))
    };
    let first = dir(&one, 0);
    Store::create(&*first, &CreateOptions { now_ns: 5, ..CreateOptions::default() }).unwrap();
    let store = Store::open(first.clone(), &OpenOptions::small()).unwrap();
    for i in 1..12 {
        store.add_volume(dir(&one, i), 0).unwrap();
    }
    let is_alone = dir(&one, 50).pool() == dir(&other, 50).pool();
    let number = store.add_volume(dir(&other, 12), 64 << 20).unwrap();
    store.checkpoint().unwrap();
    let homes = identify(&*first).unwrap().homes;
    assert_eq!(homes.contains(&number), !is_alone, "{homes:?}");
    assert_eq!(homes.len(), HOMES);
    store.close().unwrap();
}
