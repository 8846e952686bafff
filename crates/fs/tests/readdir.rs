//! Listing directories while they change, and many threads at once.

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{START, World};
use darner_fs::{Caller, Node, Seek};

#[test]
fn every_name_that_stays_is_listed_once_whatever_happens_to_the_others() {
    let mut world = World::new();
    let mut rng = fastrand::Rng::with_seed(5);
    for n in 0..500 {
        world.line(&format!("create kept{n}"));
        world.line(&format!("create doomed{n}"));
    }
    for room in [64, 300, 4096] {
        let (mut after, mut seen) = (0, BTreeMap::<Vec<u8>, u32>::new());
        loop {
            let entries = world.fs.readdir(world.fs.root(), after, room, 24, false, world.now).unwrap();
            let Some(last) = entries.last() else { break };
            after = last.cookie;
            entries.into_iter().for_each(|entry| *seen.entry(entry.name).or_default() += 1);
            world.answer(&format!("unlink doomed{}", rng.u32(0..500)));
            world.answer(&format!("create new{}-{room}", rng.u32(..)));
            world.answer(&format!("rename doomed{} other{}", rng.u32(0..500), rng.u32(..)));
        }
        assert!((0..500).all(|n| seen.get(format!("kept{n}").as_bytes()) == Some(&1)), "room {room}");
        assert!(seen.values().all(|times| *times == 1));
    }
}

#[test]
fn a_listing_goes_on_after_any_cookie_and_ends_empty() {
    let mut world = World::new();
    for n in 0..50 {
        world.line(&format!("create f{n}"));
    }
    let list = |after, room| world.fs.readdir(world.fs.root(), after, room, 24, false, world.now).unwrap();
    let all = list(0, 1 << 20);
    assert_eq!(all.len(), 52);
    assert_eq!((all[0].name.as_slice(), all[0].cookie), (b".".as_slice(), 1));
    assert_eq!((all[1].name.as_slice(), all[1].cookie), (b"..".as_slice(), 2));
    for (at, entry) in all.iter().enumerate() {
        assert_eq!(list(entry.cookie, 1 << 20), all[at + 1..]);
        assert!(entry.cookie <= i64::MAX as u64, "the kernel's offsets are signed");
    }
    assert_eq!(list(0, 32).len(), 1);
    assert_eq!(list(0, 8).len(), 0, "no room for one");
    assert_eq!(list(u64::MAX, 4096).len(), 0);
    world.line("unlink f7");
    let file = world.node("f8").unwrap();
    let refused = world.fs.readdir(file, 0, 4096, 24, false, world.now).unwrap_err();
    assert_eq!(refused.errno(), libc::ENOTDIR);
}

#[test]
fn a_listing_with_attributes_has_them_for_all_but_the_dots() {
    let mut world = World::new();
    world.line("mkdir d");
    world.line("create d/a");
    world.line("symlink x d/l");
    let entries = world.fs.readdir(world.node("d").unwrap(), 0, 4096, 152, true, world.now).unwrap();
    for entry in entries {
        let dots = entry.name == b"." || entry.name == b"..";
        assert_eq!(entry.attr.is_none(), dots);
        if let Some(attr) = entry.attr {
            assert_eq!((attr.d_type(), attr), (entry.d_type, world.fs.getattr(entry.node).unwrap()));
        }
    }
}

/// Readers never see half of a rename, and as-of names are resolved while others commit.
#[test]
fn many_threads_at_once_see_whole_changes_and_never_wait_for_ever() {
    let mut world = World::new();
    world.line("mkdir d");
    world.line("mkdir e");
    world.line("create d/moving");
    world.line("create data");
    let (fs, root) = (&world.fs, world.fs.root());
    let (d, e, data) = (world.node("d").unwrap(), world.node("e").unwrap(), world.node("data").unwrap());
    let stop = AtomicBool::new(false);
    let clock = AtomicU64::new(world.now);
    let now = || clock.fetch_add(1000, Ordering::Relaxed);
    std::thread::scope(|scope| {
        let until_stop = |work: &dyn Fn(u64)| (0..).take_while(|_| !stop.load(Ordering::Relaxed)).for_each(work);
        scope.spawn(move || {
            until_stop(&|_| {
                fs.rename(&Caller::default(), now(), (d, b"moving"), (e, b"moved"), Default::default()).unwrap();
                fs.rename(&Caller::default(), now(), (e, b"moved"), (d, b"moving"), Default::default()).unwrap();
            });
        });
        scope.spawn(move || {
            until_stop(&|n| {
                let block = [n as u8; 8192];
                assert_eq!(fs.write(now(), data, Some(0), &block, false).unwrap().len, 8192);
            });
        });
        scope.spawn(move || {
            until_stop(&|n| {
                let caller = Caller::default();
                let name = format!("f{n}@@-1h");
                fs.create_file(&caller, now(), root, name.as_bytes(), 0o600, true).unwrap();
                fs.unlink(now(), root, name.as_bytes()).unwrap();
                fs.reap_orphans(now()).unwrap();
            });
        });
        scope.spawn(move || {
            until_stop(&|_| {
                let bytes = fs.read(data, 0, 8192).unwrap();
                assert!(bytes.iter().all(|byte| *byte == bytes[0]), "half of a write");
            });
        });
        scope.spawn(move || {
            until_stop(&|_| {
                let tid = fs.store().tid();
                let there =
                    |dir: Node, name: &[u8]| fs.lookup(Node::AsOf(dir.inode(), tid), name, tid.0).is_ok() as u32;
                assert_eq!(there(d, b"moving") + there(e, b"moved"), 1, "half of a rename");
                fs.lookup(root, b"data@@now", now()).unwrap();
                fs.lookup(root, b"data@@-0s", now()).unwrap();
                fs.statfs(fs.root()).unwrap();
                let _ = fs.seek(data, 0, Seek::Data);
                fs.sync().unwrap();
            });
        });
        std::thread::sleep(std::time::Duration::from_millis(1500));
        stop.store(true, Ordering::Relaxed);
    });
    assert!(clock.load(Ordering::Relaxed) > START);
    world.check_counts();
}
