//! Scrubbing: whatever is damaged is found, told with the file it belongs to, and nothing else is.

mod common;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use common::{FS, Remembers, Run, create, new_disk, open, open_with_threads, overwrite};
use darner_store::volume::Disk;
use darner_store::{Error, Grid, Kind, ObjectId, Rot, ScrubReport, Store, Tid};

fn scrub(store: &Store, budget: u64) -> ScrubReport {
    let mut report = store.begin_scrub(7, false).unwrap();
    while store.step_scrub(&mut report, budget).unwrap() {}
    report
}

#[test]
fn a_flipped_bit_in_any_block_is_found_or_of_no_account() {
    let disk = new_disk(1 << 30, 1);
    create(&disk);
    let mut run = Run::new(5);
    let store = open(&disk).unwrap();
    for i in 0..80 {
        run.transaction(&store).unwrap();
        if i % 20 == 10 {
            store.checkpoint().unwrap();
        }
        if i == 50 {
            store.clean(run.now, &mut |_| ()).unwrap();
        }
    }
    store.close().unwrap();
    assert_eq!(scrub(&store, 1 << 30).damages, []);
    store.close().unwrap();
    drop(store);
    let mut rng = fastrand::Rng::with_seed(1);
    let (mut refused, mut found, mut healed, mut nothing) = (0, 0, 0, 0);
    for page in disk.written_pages() {
        let disk = disk.fork();
        disk.flip(page + rng.u64(0..4096), rng.u8(0..8));
        let Ok(store) = open(&disk) else {
            refused += 1;
            continue;
        };
        let report = scrub(&store, rng.u64(1..1 << 20));
        if report.damages.is_empty() {
            *(if report.healed > 0 { &mut healed } else { &mut nothing }) += 1;
            run.compare_some(&store, 3);
            store.close().unwrap();
            drop(store);
            let store = open(&disk).unwrap();
            assert_eq!(scrub(&store, 1 << 30).healed, 0, "what was healed stays so");
            continue;
        }
        found += 1;
        for d in &report.damages {
            if let Rot::Data { fileset, object, tid, .. } = d.rot {
                assert_eq!(fileset, FS);
                assert!(run.model.tids.contains(&tid) && run.objects.contains(&object.0), "{d:?}");
            }
        }
    }
    println!("{refused} opens refused, {found} found, {healed} healed, {nothing} of no account");
    assert!(found > 20, "{found}");
}

#[test]
fn damaged_manifests_and_superblocks_are_written_anew() {
    let disk = new_disk(1 << 30, 0);
    create(&disk);
    let mut run = Run::new(5);
    let store = open(&disk).unwrap();
    (0..20).for_each(|_| run.transaction(&store).unwrap());
    store.close().unwrap();
    drop(store);
    let mut manifests = Vec::new();
    for page in disk.written_pages() {
        let mut magic = [0; 8];
        disk.read_at(&mut magic, page).unwrap();
        manifests.extend((&magic == b"DARNMAN5").then_some(page));
    }
    let mut healed = 0;
    // Either superblock slot, too: only one is the newest.
    for at in manifests.into_iter().chain([0, 64 << 10]) {
        let disk = disk.fork();
        let store = open(&disk).unwrap();
        disk.flip(at + 10, 1);
        let found = scrub(&store, 1 << 30);
        assert_eq!(found.damages, []);
        healed += found.healed;
        assert_eq!(scrub(&store, 1 << 30).healed, 0);
        drop(store);
        run.compare(&open(&disk).unwrap(), Tid::MAX);
    }
    assert_eq!(healed, 3, "manifest, its copy, and the newest superblock");
}

#[test]
fn of_many_damaged_blocks_exactly_those_are_told_each_with_its_file_and_range() {
    const BLOCKS: u64 = 8192;
    let disk = new_disk(1 << 30, 0);
    create(&disk);
    let store = open(&disk).unwrap();
    let mut rng = fastrand::Rng::with_seed(4);
    // Of each block the first bytes, to find it again on the disk; incompressible, so stored block by block.
    let mut blocks: HashMap<[u8; 16], (ObjectId, u64)> = HashMap::new();
    for i in 0..BLOCKS / 16 {
        let (object, offset) = (ObjectId(10 + i % 7), (i / 7) << 16);
        let bytes: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(1 << 16).collect();
        for (n, block) in bytes.chunks(4096).enumerate() {
            blocks.insert(block[..16].try_into().unwrap(), (object, offset + n as u64 * 4096));
        }
        let mut tx = store.begin(FS, 100 + i).unwrap();
        tx.put(object, Kind::ATTR, b"", b"attributes");
        tx.write(object, offset, &bytes).unwrap();
        tx.commit().unwrap();
    }
    // Some of them in packs.
    store.retain(FS, 1 << 20, |r| r.with_grid(Grid::default())).unwrap();
    let mut tx = store.begin(FS, 1 << 20).unwrap();
    tx.write(ObjectId(10), 0, &[1; 1 << 16]).unwrap();
    tx.commit().unwrap();
    store.clean(1 << 21, &mut |_| ()).unwrap();
    store.close().unwrap();
    drop(store);
    let mut flipped = BTreeSet::new();
    for page in disk.written_pages() {
        let mut bytes = vec![0; 4096 + 16];
        disk.read_at(&mut bytes, page).unwrap();
        for i in 0..4096 {
            let Some(block) = blocks.get(&bytes[i..i + 16]) else { continue };
            if rng.u8(0..12) == 0 {
                disk.flip(page + i as u64 + rng.u64(0..4096), rng.u8(0..8));
                flipped.insert(*block);
            }
        }
    }
    let store = open(&disk).unwrap();
    let report = scrub(&store, 3 << 20);
    let told = report.damages.iter().map(|d| match d.rot {
        Rot::Data { object, offset, len: 4096, .. } => (object, offset),
        _ => panic!("{d:?}"),
    });
    let told: BTreeSet<_> = told.collect();
    // What was overwritten may still be there, or not.
    let live = |all: &BTreeSet<(ObjectId, u64)>| -> BTreeSet<_> {
        all.iter().filter(|(object, offset)| *object != ObjectId(10) || *offset >= 1 << 16).copied().collect()
    };
    println!("{} flipped, {} told", flipped.len(), told.len());
    assert_eq!(live(&told), live(&flipped));
    assert!(told.len() > 400 && report.more == 0);
    drop(store);
    for budget in [17 << 20, 1 << 30] {
        let store = open_with_threads(&disk).unwrap();
        let beside = scrub(&store, budget);
        assert_eq!(
            (&beside.damages, beside.bytes),
            (&report.damages, report.bytes),
            "a thread that is ahead finds the same"
        );
    }
    // Heads of transactions, too.
    for _ in 0..5 {
        let disk = disk.fork();
        let pages = disk.written_pages();
        (0..200).for_each(|_| disk.flip(pages[rng.usize(..pages.len())] + rng.u64(0..4096), rng.u8(0..8)));
        let Ok(store) = open(&disk) else { continue };
        let found = scrub(&store, 1 << 20).damages;
        drop(store);
        let beside = scrub(&open_with_threads(&disk).unwrap(), 1 << 30).damages;
        assert_eq!(beside, found);
    }
    let store = open(&disk).unwrap();
    // No wrong byte is ever returned.
    for (object, offset) in live(&told) {
        let pieces = store.map(FS, object, offset, 4096, Tid::MAX).unwrap();
        assert!(store.read(&pieces, &mut [0; 4096]).is_err());
    }
}

#[test]
fn a_report_is_kept_and_a_scrub_goes_on_after_an_open_while_the_cleaner_works() {
    let disk = new_disk(1 << 30, 3);
    create(&disk);
    let mut run = Run::new(9);
    let mut store = open(&disk).unwrap();
    assert_eq!(store.scrub_report().unwrap(), ScrubReport::default());
    for _ in 0..120 {
        run.transaction(&store).unwrap();
    }
    let mut report = store.begin_scrub(5, false).unwrap();
    let mut steps = 0;
    while store.step_scrub(&mut report, 8 << 10).unwrap() {
        steps += 1;
        run.transaction(&store).unwrap();
        match steps % 7 {
            1 => store.checkpoint().unwrap(),
            3 => drop(store.clean(run.now, &mut |_| ()).unwrap()),
            5 => {
                store.keep_scrub_report(&report, run.now).unwrap();
                drop(store);
                store = open(&disk).unwrap();
                assert_eq!(store.scrub_report().unwrap(), report);
                // Its record is a transaction that the model does not know.
                run.now = run.now.max(store.tid().0);
            }
            _ => {}
        }
        assert!(steps < 2000);
    }
    assert!(steps > 10);
    assert_eq!((report.damages, report.healed), (vec![], 0));
}

#[test]
fn a_check_reads_on_behind_a_damaged_frame() {
    let disk = new_disk(1 << 30, 3);
    create(&disk);
    let mut run = Run::new(3);
    let store = open(&disk).unwrap();
    for _ in 0..60 {
        run.transaction(&store).unwrap();
    }
    store.close().unwrap();
    drop(store);
    let check = |places: &[u64]| {
        let rotten = disk.fork();
        places.iter().for_each(|at| rotten.flip(*at, 1));
        open(&rotten).ok().map(|store| store.check(&mut |_, _| ()))
    };
    let is_frame = |finding: &String| finding.contains("no valid frame before byte");
    let (mut frames, mut data) = (Vec::new(), Vec::new());
    for at in disk.written_pages().into_iter().map(|page| page + 1000) {
        match check(&[at]) {
            Some(r) if r.findings.iter().any(is_frame) => frames.push(at),
            Some(r) if !r.damages.is_empty() => data.push(at),
            _ => {}
        }
    }
    let pairs = frames.iter().flat_map(|frame| data.iter().filter(move |at| *at > frame).map(move |at| [*frame, *at]));
    let pairs: Vec<[u64; 2]> = pairs.collect();
    assert!(pairs.len() > 3, "{frames:?} and {data:?}");
    for pair in pairs.iter().step_by(1 + pairs.len() / 20) {
        let found = check(pair).unwrap();
        assert!(found.findings.iter().any(is_frame) && found.damages.len() == 1, "{pair:?}: {found:?}");
    }
}

#[test]
fn what_a_read_finds_damaged_comes_from_whoever_remembers_it_wherever_pieces_begin() {
    const LEN: usize = 256 << 10;
    let disk = new_disk(1 << 30, 0);
    create(&disk);
    let store = open(&disk).unwrap();
    let mut rng = fastrand::Rng::with_seed(8);
    let mut now = vec![0; LEN];
    let mut all = Vec::new();
    for n in 0..60 {
        all.push((overwrite(&store, &mut rng, n, &mut now), now.clone()));
    }
    store.close().unwrap();
    drop(store);
    let remembers = Arc::new(Remembers(all));
    let mut healed = 0;
    for page in disk.written_pages() {
        let disk = disk.fork();
        disk.flip(page + rng.u64(0..4096), rng.u8(0..8));
        let Ok(store) = open(&disk) else { continue };
        let Ok(pieces) = store.map(FS, ObjectId(10), 0, LEN as u64, Tid::MAX) else { continue };
        let mut read = vec![0; LEN];
        let Err(Error::Data { .. }) = store.read(&pieces, &mut read) else { continue };
        assert!(!store.heal_pieces(FS, &pieces).unwrap(), "there is nobody to ask yet");
        store.heal_from(remembers.clone());
        assert!(store.heal_pieces(FS, &pieces).unwrap());
        store.read(&pieces, &mut read).unwrap();
        assert!(read == now, "page {page}");
        assert!(!store.heal_pieces(FS, &pieces).unwrap(), "it stays so");
        healed += 1;
    }
    assert!(healed > 40, "{healed}");
}

/// A chunk in many pieces is written anew as few when it is written to: this once failed where a piece was damaged that the write
/// had nothing to do with.
#[test]
fn a_write_beside_rotten_bytes_is_done_and_these_are_noticed_and_heal_afterwards() {
    const PIECES: usize = 48;
    const EACH: usize = 1000;
    let disk = new_disk(1 << 30, 0);
    create(&disk);
    let store = open(&disk).unwrap();
    let mut rng = fastrand::Rng::with_seed(9);
    let mut now = vec![0; PIECES * EACH];
    let mut all = Vec::new();
    let mut write = |store: &Store, now: &mut Vec<u8>, at: usize, len: usize| {
        let bytes: Vec<u8> = (0..len).map(|_| rng.u8(..)).collect();
        let mut tx = store.begin(FS, 100).unwrap();
        tx.put(ObjectId(10), Kind::ATTR, b"", b"attributes");
        tx.write(ObjectId(10), at as u64, &bytes).unwrap();
        now[at..at + len].copy_from_slice(&bytes);
        tx.commit().unwrap()
    };
    for n in 0..PIECES {
        let tid = write(&store, &mut now, n * EACH, EACH);
        all.push((tid, now.clone()));
    }
    store.close().unwrap();
    drop(store);
    let remembers = Arc::new(Remembers(all));
    let map = |store: &Store| store.map(FS, ObjectId(10), 0, now.len() as u64, Tid::MAX).unwrap();
    let mut healed = 0;
    for page in disk.written_pages() {
        let disk = disk.fork();
        disk.flip(page + 2000, 3);
        let Ok(store) = open(&disk) else { continue };
        let Err(Error::Data { offset, .. }) = store.read(&map(&store), &mut now.clone()) else { continue };
        let mut now = now.clone();
        let elsewhere = (offset as usize + 10 * EACH) % now.len() / EACH * EACH + 100;
        write(&store, &mut now, elsewhere, 500);
        let pieces = map(&store);
        let rotten =
            pieces.iter().filter(|p| store.read(std::slice::from_ref(p), &mut vec![0; p.len as usize]).is_err());
        let rotten: Vec<_> = rotten.map(|p| (p.offset, p.len)).collect();
        assert_eq!(rotten, [(offset, EACH as u64)], "what is good was written anew, and nothing else");
        assert!(pieces.len() <= 3, "{} pieces", pieces.len());
        store.heal_from(remembers.clone());
        // (Where the checksum itself rots, nothing tells what the bytes were.)
        if !store.heal_pieces(FS, &pieces).unwrap() {
            continue;
        }
        let mut read = vec![0; now.len()];
        store.read(&map(&store), &mut read).unwrap();
        assert!(read == now, "page {page}");
        healed += 1;
    }
    assert!(healed > 5, "{healed}");
}
