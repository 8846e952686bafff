//! Numbers of objects that are given twice: two mirrors of a store that were promoted count on from the same one, and the store may follow
//! one after the other.

#[path = "../../fs/tests/common/mod.rs"]
mod common;

use std::ops::ControlFlow;
use std::sync::Arc;

use common::{SECOND, START, new_disk, open_store};
use darner_fs::{Caller, Fs, Inode, Node, ROOT, Sent, SetXattr, Tid, Wanted};
use darner_mirror::{Puller, Source};
use darner_store::volume::RawVolume;
use darner_store::volume::sim::SimDisk;
use darner_store::{CreateOptions, IndexFrom, Kind, OpenOptions, Store};
use darner_syslink::Refuse;
use darner_syslink::sim::{Pair, Side};

fn mirror(of: &Fs) -> (SimDisk, Arc<Fs>) {
    let disk = SimDisk::new(1 << 30);
    let options = CreateOptions { now_ns: START, hash_key: Some(of.store().hash_key()), ..CreateOptions::default() };
    Store::create(&RawVolume::new(Arc::new(disk.clone())), &options).unwrap();
    let fs = Arc::new(Fs::create(open_store(&disk), 0, 0, 0o755, START + 1).unwrap());
    fs.follow(of.store().uuid(), ROOT.fileset, "main", "", START + 2).unwrap();
    (disk, fs)
}

fn pull(fs: &Arc<Fs>, of: &Arc<Fs>) {
    let pair = Pair::perfect(Arc::new(Refuse), Arc::new(Source::new(of.clone())));
    assert!(Puller::new(fs.clone(), pair.caller(Side::A), fastrand::u64(1..)).pull().unwrap().complete);
}

fn make(fs: &Fs, n: u64, name: &str, bytes: &[u8]) -> Inode {
    let now = START + n * SECOND;
    let node = fs.mknod(&Caller::default(), now, fs.root(), name.as_bytes(), libc::S_IFREG | 0o644, 0).unwrap().node;
    fs.write(now + 1, node, Some(0), bytes, false).unwrap();
    node.inode()
}

/// What was of the one file showed in the other: behind its end, once it grew; and its attributes.
#[test]
fn a_file_has_nothing_of_another_one_that_had_its_number_before() {
    let disk = new_disk();
    let old = Arc::new(Fs::create(open_store(&disk), 0, 0, 0o755, START + 1).unwrap());
    make(&old, 1, "both", b"words");
    let (_, one) = mirror(&old);
    let (_, other) = mirror(&old);
    // One that follows the old source all the time, and one that is away while the file is another one.
    let (_, near) = mirror(&old);
    let (away_disk, away) = mirror(&old);
    for fs in [&one, &other, &near, &away] {
        pull(fs, &old);
    }
    one.promote(START + 10 * SECOND).unwrap();
    other.promote(START + 10 * SECOND).unwrap();
    let noise: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8 | 1).collect();
    let first = make(&one, 20, "first", &noise);
    one.setxattr(START + 21 * SECOND, Node::Live(first), b"user.first", b"value", SetXattr::default()).unwrap();
    let second = make(&other, 20, "second", b"short");
    assert_eq!(first, second, "they count on alike");

    let turn = |to: &Arc<Fs>, n: u64| {
        let was = to.was().unwrap().expect("it was promoted");
        old.turn_back(to.store().uuid(), &was, "", &format!("alone {n}"), START + n * SECOND).unwrap();
        pull(&old, to);
    };
    turn(&one, 30);
    assert_eq!(old.read(Node::Live(first), 0, 1 << 20).unwrap(), noise);
    pull(&near, &old);
    pull(&away, &old);
    old.promote(START + 40 * SECOND).unwrap();
    turn(&other, 50);
    pull(&near, &old);
    let has_nothing_else = |fs: &Fs| {
        let at = fs.store().tid();
        let map = fs.store().map(second.fileset, second.object, 0, 1 << 20, at).unwrap();
        let data: u64 = map.iter().filter(|p| p.is_data()).map(|p| p.len).sum();
        assert_eq!((fs.read(Node::Live(second), 0, 1 << 20).unwrap(), data), (b"short".to_vec(), 5));
        let mut xattrs = 0;
        let count = &mut |_: &[u8], _: Tid, _: &[u8]| {
            xattrs += 1;
            ControlFlow::Continue(())
        };
        fs.store().scan(second.fileset, second.object, Kind::XATTR, &[], at, count).unwrap();
        assert_eq!(xattrs, 0);
        assert_eq!(fs.check().unwrap().findings, Vec::<String>::new());
    };
    has_nothing_else(&old);
    has_nothing_else(&near);
    pull(&away, &old);
    has_nothing_else(&away);
    // Nor has it with an index that knows of all that ever was.
    for (disk, fs) in [(disk, old), (away_disk, away)] {
        fs.store().close().unwrap();
        drop(fs);
        let options = OpenOptions { index: IndexFrom::Segments, ..OpenOptions::default() };
        let store = Store::open(Arc::new(RawVolume::new(Arc::new(disk))), &options).unwrap();
        let fs = Fs::open(Arc::new(store)).unwrap();
        has_nothing_else(&fs);
        assert_eq!(fs.following().map(|f| f.at != Tid::ZERO), Some(true));
    }
}

/// A source that has cleaned tells of no deletions of what it has forgotten.
#[test]
fn a_file_that_came_in_the_place_of_another_one_is_that_though_nobody_says_what_the_other_had() {
    let old = Arc::new(Fs::create(open_store(&new_disk()), 0, 0, 0o755, START + 1).unwrap());
    let [one, other, near] = [(); 3].map(|()| mirror(&old).1);
    for fs in [&one, &other, &near] {
        pull(fs, &old);
    }
    one.promote(START + 10 * SECOND).unwrap();
    other.promote(START + 10 * SECOND).unwrap();
    let first = make(&one, 20, "file", &[7; 200_000]);
    let second = make(&other, 30, "file", b"short");
    assert_eq!(first, second, "they count on alike");
    for (of, bytes) in [(&one, &[7; 200_000][..]), (&other, b"short")] {
        let at = of.followable();
        let wanted = near.begin_pull(at).unwrap().wanted().unwrap();
        let since = of.was().unwrap().expect("it was promoted").shown;
        let ask = Wanted { since, room: 1 << 20, ..wanted.clone() };
        let part = of.changes(of.root().inode(), &ask, &mut Sent::default()).unwrap();
        near.apply(&wanted, &part).unwrap();
        near.finish_pull().unwrap();
        assert!(near.read(Node::Live(first), 0, 1 << 20).unwrap() == bytes);
        assert_eq!(near.check().unwrap().findings, Vec::<String>::new());
    }
}
