//! What whoever waited for a pull was told is there, is there after a power failure.

#[path = "../../fs/tests/common/mod.rs"]
mod common;

use std::sync::Arc;

use common::{SECOND, START, open_store};
use darner_fs::{Caller, Fs, Node, ROOT};
use darner_mirror::{Puller, Source};
use darner_store::volume::RawVolume;
use darner_store::volume::sim::SimDisk;
use darner_store::{CreateOptions, Store};
use darner_syslink::Refuse;
use darner_syslink::sim::{Pair, Side};

/// What the mirror on a disk has in the file, when the power has come back.
fn found(disk: &SimDisk) -> Vec<u8> {
    let fs = Fs::open(open_store(disk)).unwrap();
    let file = fs.lookup(Node::AsOf(ROOT, fs.head().unwrap()), b"a", 0).unwrap();
    fs.read(file.node, 0, 1 << 20).unwrap()
}

#[test]
fn a_pull_that_somebody_waited_for_outlives_a_power_failure_right_after_it() {
    let of = Arc::new(Fs::create(open_store(&common::new_disk()), 0, 0, 0o755, START + 1).unwrap());
    let file = of.mknod(&Caller::default(), START + SECOND, of.root(), b"a", libc::S_IFREG | 0o644, 0).unwrap().node;
    let disk = SimDisk::new(1 << 30);
    let options = CreateOptions { now_ns: START, hash_key: Some(of.store().hash_key()), ..CreateOptions::default() };
    Store::create(&RawVolume::new(Arc::new(disk.clone())), &options).unwrap();
    let copy = Arc::new(Fs::create(open_store(&disk), 0, 0, 0o755, START + 1).unwrap());
    copy.follow(of.store().uuid(), ROOT.fileset, "main", "", START + 2).unwrap();
    copy.sync().unwrap();
    for n in 1..20u64 {
        let now = START + n * 10 * SECOND;
        let bytes = vec![n as u8; [10, 1000, 300_000][n as usize % 3]];
        of.write(now, file, Some(0), &bytes, false).unwrap();
        let base = disk.fork();
        disk.record();
        let pair = Pair::perfect(Arc::new(Refuse), Arc::new(Source::new(of.clone())));
        let puller = Puller::new(copy.clone(), pair.caller(Side::A), n);
        // Perhaps there is nothing left to pull for the one that is waited for: one before it may not be durable yet.
        if n % 2 == 0 {
            assert_eq!(puller.pull().unwrap().moments, 1);
        }
        let mut shown = 0;
        let done = puller.pull_durably(&mut |done| shown += usize::from(done.complete)).unwrap();
        assert_eq!((shown, done.at), (1, of.followable()));
        let after = SimDisk::crashed(&base, &disk, disk.events(), &mut |_| false);
        let there = found(&after);
        assert!(there.starts_with(&bytes), "round {n}: it has {:?}, of {}", &there[..there.len().min(3)], there.len());
    }
}
