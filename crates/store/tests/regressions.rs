//! Bugs that were found, each by its story.

use std::ops::ControlFlow;

use darner_store::{Key, Kind, ObjectId, Progress, Store, Tid};

const FS: darner_store::FilesetId = darner_store::FilesetId(1);

/// Found by the model test of the fs crate (seed 2): the newest version of a dead object's key went to history while an older
/// run still had an older one, which then hid it.
#[test]
fn the_last_version_of_a_removed_object_is_not_hidden_by_an_older_one_in_an_older_run() {
    let store = Store::in_memory();
    let object = ObjectId(9);
    let key = Key::new(FS, object, Kind::XATTR, b"x");
    let commit = |now, f: &dyn Fn(&mut darner_store::Tx<'_>)| {
        let mut tx = store.begin(FS, now).unwrap();
        f(&mut tx);
        tx.commit().unwrap()
    };
    commit(10, &|tx| {
        tx.put(object, Kind::ATTR, b"", b"alive");
        tx.put(object, Kind::XATTR, b"x", b"old");
    });
    store.checkpoint().unwrap();
    commit(20, &|tx| tx.put(object, Kind::XATTR, b"x", b"new"));
    commit(30, &|tx| tx.delete(object, Kind::ATTR, b""));
    store.checkpoint().unwrap();
    assert_eq!(&*store.get(&key, Tid(10)).unwrap().unwrap().value, b"old");
    assert_eq!(&*store.get(&key, Tid(20)).unwrap().unwrap().value, b"new");
    assert_eq!(&*store.get(&key, Tid::MAX).unwrap().unwrap().value, b"new");
}

/// A scan as of a moment took the first version of the next table, which was newer than that moment, where those of one key
/// lay in several tables: large reads of the past of a file that was overwritten 10^6 times showed, in some chunks, what was written later.
#[test]
fn a_scan_finds_the_version_of_its_moment_in_whichever_table_of_a_run_it_is() {
    let store = Store::in_memory();
    let object = ObjectId(9);
    let value = |n: u64| -> Vec<u8> {
        let mut rng = fastrand::Rng::with_seed(n);
        std::iter::repeat_with(|| rng.u8(..)).take(16 << 10).collect()
    };
    let mut tids = Vec::new();
    for n in 0..2000 {
        let mut tx = store.begin(FS, 10 + n).unwrap();
        if n == 0 {
            tx.put(object, Kind::ATTR, b"", b"alive");
            tx.put(object, Kind::XATTR, b"a", b"before");
            tx.put(object, Kind::XATTR, b"z", b"behind");
        }
        tx.put(object, Kind::XATTR, b"x", &value(n));
        tids.push(tx.commit().unwrap());
    }
    store.checkpoint().unwrap();
    while store.step().unwrap() == Progress::Worked {}
    assert!(store.check(&mut |_, _| ()).tables >= 4, "one key's versions are in several tables");
    for (n, tid) in tids.iter().enumerate().step_by(23) {
        let mut found = Vec::new();
        let mut visit = |suffix: &[u8], at, bytes: &[u8]| {
            found.push((suffix.to_vec(), at, bytes.to_vec()));
            ControlFlow::Continue(())
        };
        store.scan(FS, object, Kind::XATTR, b"", *tid, &mut visit).unwrap();
        let names: Vec<_> = found.iter().map(|f| f.0.as_slice()).collect();
        assert_eq!(names, [b"a", b"x", b"z"]);
        assert!(found[1].1 == *tid && found[1].2 == value(n as u64), "version {n} as of {tid}: one of {}", found[1].1);
    }
}
