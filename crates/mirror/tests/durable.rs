//! What whoever waited for a pull was told is there, is there after a power failure; and promoting, where the power fails or the mirror is full.

#[path = "../../fs/tests/common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{SECOND, START, open_store};
use darner_fs::{Caller, Fs, Node, ROOT, RenameMode, Time};
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

fn mirror_on(disk: &SimDisk, of: &Fs) -> Arc<Fs> {
    let options = CreateOptions { now_ns: START, hash_key: Some(of.store().hash_key()), ..CreateOptions::default() };
    Store::create(&RawVolume::new(Arc::new(disk.clone())), &options).unwrap();
    let copy = Arc::new(Fs::create(open_store(disk), 0, 0, 0o755, START + 1).unwrap());
    copy.follow(of.store().uuid(), ROOT.fileset, "main", "", START + 2).unwrap();
    copy
}

fn puller(of: &Arc<Fs>, copy: &Arc<Fs>) -> Puller {
    let pair = Pair::perfect(Arc::new(Refuse), Arc::new(Source::new(of.clone())));
    Puller::new(copy.clone(), pair.caller(Side::A), 1)
}

fn make(of: &Fs, now: u64, name: &str) -> Node {
    of.mknod(&Caller::default(), now, of.root(), name.as_bytes(), libc::S_IFREG | 0o644, 0).unwrap().node
}

/// Names in the root, and the sizes and times of what they lead to.
fn tree(fs: &Fs, root: Node) -> BTreeMap<Vec<u8>, (u64, Time)> {
    let (mut all, mut after) = (BTreeMap::new(), 0);
    loop {
        let entries = fs.readdir(root, after, 1 << 20, 24, false, 0).unwrap();
        let Some(last) = entries.last() else { return all };
        after = last.cookie;
        for e in entries {
            let attr = fs.getattr(e.node).unwrap();
            all.insert(e.name, (attr.size, attr.mtime));
        }
    }
}

#[test]
fn a_promotion_that_a_power_failure_ended_leaves_a_mirror_that_goes_on_or_what_it_showed() {
    let of = Arc::new(Fs::create(open_store(&common::new_disk()), 0, 0, 0o755, START + 1).unwrap());
    let disk = SimDisk::new(1 << 30);
    let copy = mirror_on(&disk, &of);
    let name = |n: u64, what: &str| format!("{n:0>100}{what:-<100}");
    let mut now = START + SECOND;
    for n in 0..4000 {
        make(&of, now + n, &name(n, "old"));
    }
    puller(&of, &copy).pull().unwrap();
    let shown = tree(&copy, Node::AsOf(ROOT, copy.head().unwrap()));
    now += SECOND;
    for n in 0..4000 {
        let (old, new) = (name(n, "old"), name(n, "new"));
        let (from, to) = ((of.root(), old.as_bytes()), (of.root(), new.as_bytes()));
        of.rename(&Caller::default(), now + 2 * n, from, to, RenameMode::Replace).unwrap();
        make(&of, now + 2 * n + 1, &name(n, "more"));
    }
    let left = AtomicU64::new(5);
    let between = move |_| left.fetch_sub(1, Ordering::SeqCst) > 1;
    puller(&of, &copy).with_room(400_000).with_pause(Box::new(between)).pull().unwrap();
    assert!(!copy.following().unwrap().is_whole());
    copy.sync().unwrap();
    let base = disk.fork();
    disk.record();
    copy.promote(now + SECOND).unwrap();
    let (mut went_on, mut promoted) = (0, 0);
    let events = disk.events();
    for n in (0..events).step_by((events / 5).max(1)).chain([events]) {
        let after = SimDisk::crashed(&base, &disk, n, &mut |_| true);
        let fs = Arc::new(Fs::open(open_store(&after)).unwrap());
        match fs.head() {
            None => {
                assert!(tree(&fs, fs.root()) == shown, "event {n}");
                promoted += 1;
            }
            Some(head) => {
                assert!(tree(&fs, Node::AsOf(ROOT, head)) == shown, "event {n}");
                assert!(puller(&of, &fs).pull().unwrap().complete);
                assert!(tree(&fs, Node::AsOf(ROOT, fs.head().unwrap())) == tree(&of, of.root()), "event {n}");
                went_on += 1;
            }
        }
        assert_eq!(fs.check().unwrap().findings, Vec::<String>::new(), "event {n}");
    }
    assert!(went_on > 1 && promoted > 0, "{went_on} went on, {promoted} were promoted");
}

#[test]
fn a_mirror_that_got_full_amid_a_pull_is_promoted_in_the_room_that_is_left() {
    let of = Arc::new(Fs::create(open_store(&common::new_disk()), 0, 0, 0o755, START + 1).unwrap());
    let disk = SimDisk::new(160 << 20);
    let copy = mirror_on(&disk, &of);
    let mut rng = fastrand::Rng::with_seed(3);
    let mut write = |now: u64, node: Node| {
        let bytes: Vec<u8> = (0..1 << 20).map(|_| rng.u8(..)).collect();
        of.write(now, node, Some(0), &bytes, false).unwrap();
    };
    for n in 0..20 {
        let now = START + SECOND + 2 * n;
        write(now + 1, make(&of, now, &format!("file {n}")));
    }
    puller(&of, &copy).pull().unwrap();
    let shown = tree(&copy, Node::AsOf(ROOT, copy.head().unwrap()));
    for n in 0..200 {
        let now = START + 2 * SECOND + 4 * n;
        let old = of.lookup(of.root(), format!("file {}", n % 20).as_bytes(), now).unwrap().node;
        write(now + 1, old);
        write(now + 3, make(&of, now + 2, &format!("new {n}")));
    }
    assert!(puller(&of, &copy).pull().unwrap_err().is_full());
    assert_eq!(copy.check().unwrap().findings, Vec::<String>::new());
    copy.promote(START + 3 * SECOND).unwrap();
    assert!(tree(&copy, copy.root()) == shown);
    copy.unlink(START + 4 * SECOND, copy.root(), b"file 3").unwrap();
    copy.store().close().unwrap();
    drop(copy);
    let copy = Fs::open(open_store(&disk)).unwrap();
    assert_eq!((tree(&copy, copy.root()).len(), shown.len()), (21, 22));
    assert_eq!(copy.check().unwrap().findings, Vec::<String>::new());
    assert_eq!(copy.store().check(&mut |_, _| ()).all(), Vec::<String>::new());
}

#[test]
fn a_pull_that_somebody_waited_for_outlives_a_power_failure_right_after_it() {
    let of = Arc::new(Fs::create(open_store(&common::new_disk()), 0, 0, 0o755, START + 1).unwrap());
    let file = make(&of, START + SECOND, "a");
    let disk = SimDisk::new(1 << 30);
    let copy = mirror_on(&disk, &of);
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
