//! How often a mirror asks.

#[path = "../../fs/tests/common/mod.rs"]
mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{SECOND, START, open_store};
use darner_fs::{Caller as User, Fs, Node, ROOT};
use darner_mirror::{Puller, Source};
use darner_store::volume::RawVolume;
use darner_store::volume::sim::SimDisk;
use darner_store::{CreateOptions, Store};
use darner_syslink::sim::{Pair, Side};
use darner_syslink::{Awaited, CallError, Caller, Message, Refuse};

struct Counting {
    caller: Arc<dyn Caller>,
    calls: AtomicUsize,
}

impl Caller for Counting {
    fn call(&self, command: Message, timeout: Option<Duration>) -> Result<Message, CallError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.caller.call(command, timeout)
    }

    fn start(&self, command: Message, timeout: Option<Duration>) -> Result<Box<dyn Awaited>, CallError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.caller.start(command, timeout)
    }
}

#[test]
fn what_fits_a_part_comes_with_the_answer_to_the_look_and_what_does_not_is_asked_for() {
    let of = Arc::new(Fs::create(open_store(&common::new_disk()), 0, 0, 0o755, START + 1).unwrap());
    let new = |name: &str| {
        let made = of.mknod(&User::default(), START + SECOND, of.root(), name.as_bytes(), libc::S_IFREG | 0o644, 0);
        made.unwrap().node
    };
    let files = ["a", "b", "c"].map(new);
    let volume = RawVolume::new(Arc::new(SimDisk::new(1 << 30)));
    let options = CreateOptions { now_ns: START, hash_key: Some(of.store().hash_key()), ..CreateOptions::default() };
    Store::create(&volume, &options).unwrap();
    let store = Store::open(Arc::new(volume), &darner_store::OpenOptions::default()).unwrap();
    let copy = Arc::new(Fs::create(Arc::new(store), 0, 0, 0o755, START + 1).unwrap());
    copy.follow(of.store().uuid(), ROOT.fileset, "main", "", START + 2).unwrap();
    let pair = Pair::perfect(Arc::new(Refuse), Arc::new(Source::new(of.clone())));
    let counting = Arc::new(Counting { caller: pair.caller(Side::A), calls: AtomicUsize::new(0) });
    let write = |now: u64, n: u8| {
        let mut rng = fastrand::Rng::with_seed(n.into());
        let noise: Vec<u8> = (0..5000).map(|_| rng.u8(..)).collect();
        files.iter().for_each(|file| _ = of.write(now, *file, Some(0), &noise, false).unwrap());
        noise
    };
    // How many calls a pull with so much room a part takes; it has then what there is.
    let calls = |room: u64, bytes: &[u8]| {
        counting.calls.store(0, Ordering::Relaxed);
        let done = Puller::new(copy.clone(), counting.clone(), 1).with_room(room).with_ahead(0).pull().unwrap();
        assert!(done.complete && done.at == of.followable());
        for name in [b"a", b"b", b"c"] {
            let file = copy.lookup(Node::AsOf(ROOT, copy.head().unwrap()), name, 0).unwrap().node;
            assert!(copy.read(file, 0, 1 << 20).unwrap() == bytes);
        }
        counting.calls.load(Ordering::Relaxed)
    };
    let first = write(START + 10 * SECOND, 1);
    assert_eq!(calls(1 << 20, &first), 2, "of a first copy there is nothing to say since when it is");
    let second = write(START + 20 * SECOND, 2);
    assert_eq!(calls(1 << 20, &second), 1);
    assert_eq!(calls(1 << 20, &second), 1, "nothing new");
    let third = write(START + 30 * SECOND, 3);
    assert_eq!(calls(1000, &third), 3, "each file is a part");
    // The moments between are pulled one after the other.
    let fourth = write(START + 100 * SECOND, 4);
    assert!(calls(1 << 20, &fourth) > 1);
}
