//! A mirror and its source tell each other where they are.

#[path = "../../fs/tests/common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use common::{START, new_disk, open_store};
use darner_fs::{Fs, ROOT, Whereabouts};
use darner_mirror::{Places, Puller, Source};
use darner_store::volume::RawVolume;
use darner_store::volume::sim::SimDisk;
use darner_store::{CreateOptions, Store};
use darner_syslink::sim::{Pair, Side};
use darner_syslink::{Fingerprint, Message, Refuse, Tag, Who};
use parking_lot::Mutex;

const LOOK: Tag = Tag(1);
const UUID: Tag = Tag(2);
const FILESET: Tag = Tag(3);
const PLACE: Tag = Tag(32);

/// What is at which path of a machine, and a source there.
struct Machine {
    fs: Arc<Fs>,
    /// Where the source is.
    own: Mutex<Vec<PathBuf>>,
    /// Where volumes of the mirror's store are, or of copies of it.
    there: Mutex<Vec<PathBuf>>,
}

impl Places for Machine {
    fn own(&self) -> Vec<PathBuf> {
        self.own.lock().clone()
    }

    fn follower(&self, store: [u8; 16], at: Vec<PathBuf>) {
        let there = self.there.lock().clone();
        self.fs.keep_mirror_at(store, &at, &|path| there.contains(&path.to_owned()), START + 9).unwrap();
    }
}

fn paths(all: &[&str]) -> Vec<PathBuf> {
    all.iter().map(PathBuf::from).collect()
}

/// A source on a machine, which answers, and a store that follows it.
fn two() -> (Arc<Machine>, Arc<Source>, Arc<Fs>) {
    let fs = Arc::new(Fs::create(open_store(&new_disk()), 0, 0, 0o755, START + 1).unwrap());
    let disk = SimDisk::new(1 << 30);
    let (hash_key, seed) = (Some(fs.store().hash_key()), Some([9; 32]));
    let options = CreateOptions { now_ns: START, seed, hash_key, ..CreateOptions::default() };
    Store::create(&RawVolume::new(Arc::new(disk.clone())), &options).unwrap();
    let copy = Arc::new(Fs::create(open_store(&disk), 0, 0, 0o755, START + 1).unwrap());
    copy.follow(fs.store().uuid(), ROOT.fileset, "main", "/a", START + 2).unwrap();
    let machine = Arc::new(Machine { fs: fs.clone(), own: Mutex::default(), there: Mutex::default() });
    let source = Arc::new(Source::new(fs));
    let as_dyn: Arc<dyn Places> = machine.clone();
    source.tell_places(Arc::downgrade(&as_dyn) as Weak<dyn Places>);
    (machine, source, copy)
}

#[test]
fn each_side_keeps_where_the_other_is_and_a_copy_takes_nobodys_place() {
    let (machine, source, copy) = two();
    machine.fs.name_mirror("copy", Some(Path::new("/m")), START + 3).unwrap();
    let pair = Pair::perfect(Arc::new(Refuse), source);
    // The mirror, at these paths, looks; the source is at those.
    let look = |at: &[&str], source: &[&str]| {
        *machine.own.lock() = paths(source);
        let (fs, knows) = (copy.clone(), paths(at));
        let told = move |there: &[PathBuf]| fs.keep_source_at(there, &knows, START + 9).unwrap();
        let puller = Puller::new(copy.clone(), pair.caller(Side::A), 1).with_places(paths(at), Box::new(told));
        puller.meet().unwrap();
        let known = copy.source_at().unwrap().unwrap();
        assert_eq!((known.at, known.knows), (paths(source), paths(at)));
    };
    let known = || machine.fs.mirrors().unwrap().swap_remove(0).places();
    assert_eq!(known(), paths(&["/m"]));
    *machine.there.lock() = paths(&["/m"]);
    look(&["/m"], &["/a"]);
    assert_eq!(machine.fs.mirrors().unwrap()[0].store(), Some(copy.store().uuid()));
    // What is known is not written again.
    let before = (copy.store().tid(), machine.fs.store().tid());
    look(&["/m"], &["/a"]);
    assert_eq!((copy.store().tid(), machine.fs.store().tid()), before);
    // Volumes come and go on either side. (Where the mirror was made is tried last.)
    look(&["/m", "/n"], &["/a", "/b"]);
    look(&["/n"], &["/b"]);
    assert_eq!(known(), paths(&["/n", "/m"]));
    // A copy of the mirror says where it is; the mirror is where it was.
    *machine.there.lock() = paths(&["/n", "/x"]);
    look(&["/x"], &["/b"]);
    assert_eq!(known(), paths(&["/n", "/m"]));
    // It moved while the source was away.
    *machine.there.lock() = paths(&["/x"]);
    look(&["/x"], &["/b"]);
    assert_eq!(known(), paths(&["/x", "/m"]));
    // Another store says that it is there.
    let other = [5; 16];
    machine.follower(other, paths(&["/x"]));
    assert_eq!(machine.fs.mirrors().unwrap()[0].store(), Some(copy.store().uuid()));
    // Nothing of a name stays when it goes.
    machine.fs.name_mirror("copy", None, START + 10).unwrap();
    machine.fs.name_mirror("copy", Some(Path::new("/new")), START + 11).unwrap();
    assert_eq!((known(), machine.fs.mirrors().unwrap()[0].known.clone()), (paths(&["/new"]), None::<Whereabouts>));
}

#[test]
fn from_another_machine_nobody_is_told_of_paths_nor_heard_about_them() {
    let (machine, source, copy) = two();
    machine.fs.name_mirror("copy", Some(Path::new("/m")), START + 3).unwrap();
    *machine.own.lock() = paths(&["/a"]);
    let mut ask = Message::new(LOOK);
    ask.uint(FILESET, ROOT.fileset.0.into()).bytes(UUID, &copy.store().uuid()).bytes(PLACE, b"/m");
    let far = source.answer_to(&Who::Key(Fingerprint([1; 32])), &ask, None).unwrap();
    assert!(far.root().find(PLACE).is_none() && machine.fs.mirrors().unwrap()[0].known.is_none());
    let near = source.answer_to(&Who::Process { pid: 1, uid: 0, gid: 0 }, &ask, None).unwrap();
    assert_eq!(near.root().bytes(PLACE), Ok(&b"/a"[..]));
    assert_eq!(machine.fs.mirrors().unwrap()[0].store(), Some(copy.store().uuid()));
}

#[test]
fn of_what_a_peer_calls_its_paths_only_a_few_that_can_be_some_are_heard() {
    let (machine, source, copy) = two();
    machine.fs.name_mirror("copy", Some(Path::new("/0")), START + 3).unwrap();
    let look = |fill: &dyn Fn(&mut Message)| {
        let mut ask = Message::new(LOOK);
        ask.uint(FILESET, ROOT.fileset.0.into());
        fill(&mut ask);
        source.answer(&ask).map(drop)
    };
    let uuid = copy.store().uuid();
    assert!(look(&|ask| _ = ask.uint(PLACE, 1).bytes(UUID, &uuid)).is_err());
    assert!(look(&|ask| _ = ask.bytes(PLACE, b"/0")).is_err(), "it does not say which store is there");
    assert!(look(&|ask| _ = ask.bytes(PLACE, b"/0").bytes(UUID, b"short")).is_err());
    assert!(machine.fs.mirrors().unwrap()[0].known.is_none());
    let long = [b"/", &[b'x'; 5000][..]].concat();
    look(&|ask| {
        ask.bytes(UUID, &uuid).bytes(PLACE, b"relative").bytes(PLACE, b"").bytes(PLACE, &long).bytes(PLACE, b"/a\0b");
        (0..20).for_each(|n| _ = ask.bytes(PLACE, format!("/{n}").as_bytes()));
    })
    .unwrap();
    let known = machine.fs.mirrors().unwrap()[0].known.clone().unwrap();
    assert_eq!(known.at, (0..8).map(|n| PathBuf::from(format!("/{n}"))).collect::<Vec<_>>());
}
