//! Bugs that were found, each by its story.

use darner_store::{Key, Kind, ObjectId, Store, Tid};

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
