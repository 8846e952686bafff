//! A source of which an older copy was put back is no source of its mirrors any more: nothing of it is mixed with what they have.

#[path = "../../fs/tests/common/mod.rs"]
mod common;

use std::sync::Arc;

use common::{SECOND, START, new_disk, open_store};
use darner_fs::{Caller, Fs, MAIN, Node, ROOT, Was};
use darner_mirror::{Failure, Pulled, Puller, Source, Which};
use darner_store::volume::RawVolume;
use darner_store::volume::sim::SimDisk;
use darner_store::{CreateOptions, Store};
use darner_syslink::sim::{Pair, Side};
use darner_syslink::{CallError, Code, Refuse};

fn open(disk: &SimDisk) -> Arc<Fs> {
    Arc::new(Fs::open(open_store(disk)).unwrap())
}

fn pull(copy: &Arc<Fs>, of: &Arc<Fs>) -> Result<Pulled, Failure> {
    let pair = Pair::perfect(Arc::new(Refuse), Arc::new(Source::new(of.clone())));
    Puller::new(copy.clone(), pair.caller(Side::A), 9).pull()
}

fn was(of: &Arc<Fs>) -> Was {
    let pair = Pair::perfect(Arc::new(Refuse), Arc::new(Source::new(of.clone())));
    Puller::look(&*pair.caller(Side::A), Which::Named("main"), None).unwrap().was.unwrap()
}

fn names(fs: &Fs) -> Vec<String> {
    let node = fs.head().map_or(Node::Live(ROOT), |head| Node::AsOf(ROOT, head));
    let entries = fs.readdir(node, 0, 4000, 24, false, 0).unwrap().into_iter();
    let names = entries.map(|e| String::from_utf8(e.name).unwrap()).filter(|name| name != "." && name != "..");
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// Makes a directory `at` seconds after the beginning.
fn make(fs: &Fs, name: &str, at: u64) {
    fs.mkdir(&Caller::default(), START + at * SECOND, fs.root(), name.as_bytes(), 0o755).unwrap();
    fs.sync().unwrap();
}

#[test]
fn an_older_copy_of_a_source_that_was_put_back_is_refused_and_mixed_with_nothing() {
    let never = Code::Other(259);
    for open_when_copied in [false, true] {
        let disk = new_disk();
        let source = Arc::new(Fs::create(open_store(&disk), 0, 0, 0o755, START + 1).unwrap());
        let mirror_disk = SimDisk::new(1 << 30);
        let options =
            CreateOptions { now_ns: START, hash_key: Some(source.store().hash_key()), ..CreateOptions::default() };
        Store::create(&RawVolume::new(Arc::new(mirror_disk.clone())), &options).unwrap();
        let copy = Arc::new(Fs::create(open_store(&mirror_disk), 0, 0, 0o755, START + 1).unwrap());
        copy.follow(source.store().uuid(), MAIN, "main", "", START + 2).unwrap();
        make(&source, "one", 10);
        pull(&copy, &source).unwrap();
        // It is opened again and again, with and without anything done, and with nobody who asks.
        let mut source = source;
        for n in 0..4 {
            if n == 3 && !open_when_copied {
                source.store().close().unwrap();
            }
            drop(source);
            source = open(&disk);
            if n != 1 {
                make(&source, &format!("again {n}"), 20 + n);
            }
            if n != 2 {
                pull(&copy, &source).unwrap();
                assert_eq!(names(&copy), names(&source));
            }
        }
        if !open_when_copied {
            source.store().close().unwrap();
            drop(source);
        }
        let older = disk.fork();
        let source = open(&disk);
        make(&source, "lost", 40);
        assert!(pull(&copy, &source).unwrap().complete);
        let had = names(&copy);
        assert!(had.contains(&"lost".into()));
        drop(source);
        let back = open(&older);
        for round in 0..2 {
            let refused = pull(&copy, &back).unwrap_err();
            assert!(
                matches!(&refused, Failure::Source(CallError::Refused(no)) if no.code == never)
                    && !refused.is_passing(),
                "{open_when_copied}, {round}: {refused}"
            );
            assert_eq!(names(&copy), had);
            make(&back, &format!("other {round}"), 50 + round);
        }
        // Nor does it follow a mirror that has what it never had.
        copy.promote(START + 60 * SECOND).unwrap();
        let e = back.turn_back(copy.store().uuid(), &was(&copy), "", "alone", START + 70 * SECOND).unwrap_err();
        assert!(e.errno() == libc::ESTALE && e.to_string().contains("older copy"), "{e}");
        // The one that was lost does.
        let source = open(&disk);
        source.turn_back(copy.store().uuid(), &was(&copy), "", "alone", START + 70 * SECOND).unwrap();
        pull(&source, &copy).unwrap();
        assert_eq!(names(&source), had);
    }
}
