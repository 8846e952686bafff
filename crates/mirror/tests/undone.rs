//! What a pull that never came to its end had done leaves nothing behind in a mirror that is promoted.

#[path = "../../fs/tests/common/mod.rs"]
mod common;

use std::sync::Arc;

use common::{SECOND, START, new_disk, open_store};
use darner_fs::{Caller, Fs, ROOT, SetAttr, Tid};
use darner_mirror::{Puller, Source};
use darner_store::volume::RawVolume;
use darner_store::volume::sim::SimDisk;
use darner_store::{CreateOptions, Grid, Key, Kind, Store};
use darner_syslink::Refuse;
use darner_syslink::sim::{Pair, Side};

/// The keys that a file got in that pull before it was removed there showed again, once the cleaner had gone through the index.
#[test]
fn a_file_that_an_undone_pull_let_grow_and_then_removed_is_as_short_as_it_was() {
    let of = Arc::new(Fs::create(open_store(&new_disk()), 0, 0, 0o755, START + 1).unwrap());
    let disk = SimDisk::new(1 << 30);
    let options = CreateOptions { now_ns: START, hash_key: Some(of.store().hash_key()), ..CreateOptions::default() };
    Store::create(&RawVolume::new(Arc::new(disk.clone())), &options).unwrap();
    let copy = Arc::new(Fs::create(open_store(&disk), 0, 0, 0o755, START + 1).unwrap());
    copy.follow(of.store().uuid(), ROOT.fileset, "main", "", START + 2).unwrap();
    copy.sync().unwrap();
    let caller = Caller::default();
    let make = |n: u64, name: &str| {
        of.mknod(&caller, START + n * SECOND, of.root(), name.as_bytes(), libc::S_IFREG | 0o644, 0).unwrap().node
    };
    let (file, other) = (make(1, "file"), make(2, "other"));
    of.write(START + 3 * SECOND, file, Some(0), b"short", false).unwrap();
    let pull = |parts: usize| {
        let pair = Pair::perfect(Arc::new(Refuse), Arc::new(Source::new(of.clone())));
        let done = std::sync::atomic::AtomicUsize::new(0);
        let between = move |_| done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1 < parts;
        let puller = Puller::new(copy.clone(), pair.caller(Side::A), fastrand::u64(1..)).with_ahead(1);
        puller.with_room(300_000).with_pause(Box::new(between)).pull()
    };
    assert!(pull(usize::MAX).unwrap().complete);

    let mut noise = vec![0; 1 << 20];
    fastrand::Rng::with_seed(2).fill(&mut noise);
    of.write(START + 4 * SECOND, file, Some(0), &noise[..200_000], false).unwrap();
    let write_other = |n: u64| {
        for at in (0..8).map(|mib| mib << 20) {
            of.write(START + n * SECOND + at, other, Some(at), &noise, false).unwrap();
        }
    };
    write_other(4);
    assert!(!pull(4).unwrap().complete, "it was told to stop");
    of.unlink(START + 5 * SECOND, of.root(), b"file").unwrap();
    of.forget(START + 5 * SECOND, &[file.inode()]).unwrap();
    write_other(6);
    let ino = file.inode();
    let attr = Key::new(ino.fileset, ino.object, Kind::ATTR, &[]);
    while copy.store().get(&attr, Tid::MAX).unwrap().is_some() {
        assert!(!pull(1).unwrap().complete, "it was told to stop");
    }
    let chunks =
        |at| copy.store().map(ino.fileset, ino.object, 0, 1 << 20, at).unwrap().iter().filter(|p| p.is_data()).count();
    let last = copy.store().tid();
    assert!(chunks(last) > 1, "it has grown, and was removed: {}", chunks(last));
    copy.store().clean(START + 9 * SECOND, &mut |_| ()).unwrap();

    copy.promote(START + 10 * SECOND).unwrap();
    let is_short = || {
        assert_eq!(copy.read(file, 0, 1 << 20).unwrap(), b"short");
        assert_eq!(copy.check().unwrap().findings, Vec::<String>::new());
    };
    is_short();
    copy.store().retain(ROOT.fileset, START + 20 * SECOND, |r| r.with_grid(Grid::default())).unwrap();
    for n in 0..2 {
        copy.store().clean(START + (100 + n) * SECOND, &mut |_| ()).unwrap();
        is_short();
    }
    copy.setattr(START + 200 * SECOND, file, &SetAttr { size: Some(1 << 20), ..SetAttr::default() }).unwrap();
    let read = copy.read(file, 0, 1 << 20).unwrap();
    assert!(read.starts_with(b"short") && read[5..].iter().all(|b| *b == 0));
}
