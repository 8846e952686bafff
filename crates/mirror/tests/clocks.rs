//! A mirror whose clock is wrong.

#[path = "../../fs/tests/common/mod.rs"]
mod common;

use std::sync::Arc;

use common::{SECOND, START};
use darner_fs::{Caller, Fs, MAIN, Node, ROOT, Tid};
use darner_mirror::{Puller, Source};
use darner_store::volume::RawVolume;
use darner_store::volume::sim::SimDisk;
use darner_store::{CreateOptions, Store};
use darner_syslink::Refuse;
use darner_syslink::sim::{Pair, Side};
use jiff::tz::TimeZone;

const YEAR: i64 = 365 * 86_400 * SECOND as i64;

fn mirror(of: &Fs) -> Arc<Fs> {
    let volume = RawVolume::new(Arc::new(SimDisk::new(1 << 30)));
    let options = CreateOptions { now_ns: START, hash_key: Some(of.store().hash_key()), ..CreateOptions::default() };
    Store::create(&volume, &options).unwrap();
    let store = Arc::new(Store::open(Arc::new(volume), &darner_store::OpenOptions::default()).unwrap());
    let fs = Fs::create(store, 0, 0, 0o755, START + 1).unwrap().in_zone(TimeZone::UTC);
    fs.follow(of.store().uuid(), ROOT.fileset, "main", "", START + 2).unwrap();
    Arc::new(fs)
}

fn file(fs: &Fs, at: Tid) -> Vec<u8> {
    let found = fs.lookup(Node::AsOf(ROOT, at), b"a", 0).unwrap();
    fs.read(found.node, 0, 100).unwrap()
}

/// All that a mirror changes of its own, it does by its own clock; between two pulls.
fn own(fs: &Fs, n: u64, now: u64) {
    fs.pause(true, now).unwrap();
    fs.pause(false, now + 1).unwrap();
    fs.add_label(MAIN, &format!("label {n}"), None, now + 2).unwrap();
    fs.limit_pulls(n, now + 3).unwrap();
    fs.set_identity(&[n as u8; 32], now + 4).unwrap();
    fs.name_mirror(&format!("mirror {n}"), Some(std::path::Path::new("/elsewhere")), now + 5).unwrap();
}

#[test]
fn a_mirror_whose_clock_is_wrong_by_a_year_dates_what_it_pulls_by_its_source() {
    for skew in [-YEAR, YEAR] {
        let of = Fs::create(common::open_store(&common::new_disk()), 0, 0, 0o755, START + 1).unwrap();
        let of = Arc::new(of.in_zone(TimeZone::UTC));
        let a = of.mknod(&Caller::default(), START + SECOND, of.root(), b"a", libc::S_IFREG | 0o644, 0).unwrap().node;
        let copy = mirror(&of);
        for n in 1..10u64 {
            let now = START + n * 60 * SECOND;
            of.write(now, a, Some(0), n.to_string().as_bytes(), false).unwrap();
            let pair = Pair::perfect(Arc::new(Refuse), Arc::new(Source::new(of.clone())));
            Puller::new(copy.clone(), pair.caller(Side::A), 1).pull().unwrap();
            own(&copy, n, now.saturating_add_signed(skew));
            assert_eq!(file(&copy, copy.head().unwrap()), n.to_string().as_bytes());
        }
        let now = START + 3600 * SECOND;
        for n in 1..10u64 {
            let when = format!("2026-11-22T00:{n:02}:30");
            let at = copy.resolve_when(MAIN, &when, now).unwrap().expect("it is kept");
            assert_eq!(file(&copy, at), n.to_string().as_bytes(), "with a clock off by {skew} ns, as of {when}");
            let label = copy.resolve_when(MAIN, &format!("label {n}"), now).unwrap().expect("it is kept");
            assert_eq!(file(&copy, label), n.to_string().as_bytes(), "with a clock off by {skew} ns, label {n}");
        }
        let log = copy.log(ROOT, &[b"a"], Tid::MAX, 1, false).unwrap();
        assert_eq!(log.len(), 9);
        for (n, entry) in (1..).zip(log) {
            let at = copy.resolve_when(MAIN, &format!("{:#x}", entry.tid.0), now).unwrap().expect("it is kept");
            assert_eq!(
                (at, file(&copy, at)),
                (entry.shown, n.to_string().into_bytes()),
                "the times of the log lead to what it lists"
            );
        }
        // From then on it is its own master, with a clock of its own.
        copy.promote(now).unwrap();
        copy.write(now + SECOND, Node::Live(a.inode()), Some(0), b"mine", false).unwrap();
        assert!(copy.store().tid().0 >= now + SECOND);
        assert_eq!(copy.check().unwrap().findings, Vec::<String>::new());
    }
}
