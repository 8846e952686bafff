//! A source of which an older copy was put back is no source of its mirrors any more: nothing of it is mixed with what they have.

#[path = "../../fs/tests/common/mod.rs"]
mod common;

use std::sync::Arc;

use common::{SECOND, START, new_disk, open_store};
use darner_fs::{Caller, Fs, MAIN, Node, ROOT, Tid, Was};
use darner_mirror::{Failure, Header, Pulled, Puller, Source, Which, export, import};
use darner_store::volume::RawVolume;
use darner_store::volume::sim::SimDisk;
use darner_store::{CATALOGUE, CreateOptions, Kind, ObjectId, Store};
use darner_syslink::sim::{Pair, Side};
use darner_syslink::{CallError, Code, Refuse};

fn open(disk: &SimDisk) -> Arc<Fs> {
    Arc::new(Fs::open(open_store(disk)).unwrap())
}

fn mirror(of: &Fs) -> Arc<Fs> {
    let disk = SimDisk::new(1 << 30);
    let options = CreateOptions { now_ns: START, hash_key: Some(of.store().hash_key()), ..CreateOptions::default() };
    Store::create(&RawVolume::new(Arc::new(disk.clone())), &options).unwrap();
    let copy = Arc::new(Fs::create(open_store(&disk), 0, 0, 0o755, START + 1).unwrap());
    copy.follow(of.store().uuid(), MAIN, "main", "", START + 2).unwrap();
    copy
}

fn stream(of: &Arc<Fs>, since: Tid) -> Vec<u8> {
    let pair = Pair::perfect(Arc::new(Refuse), Arc::new(Source::new(of.clone())));
    let mut out = Vec::new();
    export(&*pair.caller(Side::A), Which::Named("main"), since, 1, &mut out).unwrap();
    out
}

fn read_in(copy: &Fs, mut stream: &[u8]) -> Result<bool, Failure> {
    let header = Header::read(&mut stream)?;
    import(copy, &header, &mut stream)
}

fn is_refused(outcome: Result<Pulled, Failure>) -> bool {
    matches!(outcome, Err(Failure::Source(CallError::Refused(no))) if no.code == Code::Other(259))
}

/// Opens a source, does something, and closes it: nobody looks.
fn open_alone(disk: &SimDisk, name: &str, at: u64) {
    let source = open(disk);
    make(&source, name, at);
    source.store().close().unwrap();
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
        let copy = mirror(&source);
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

#[test]
fn a_stream_of_an_older_copy_that_was_put_back_is_refused_whatever_it_is_since() {
    let disk = new_disk();
    let source = Arc::new(Fs::create(open_store(&disk), 0, 0, 0o755, START + 1).unwrap());
    let copy = mirror(&source);
    make(&source, "one", 10);
    let before = source.store().tid();
    assert!(read_in(&copy, &stream(&source, Tid::ZERO)).unwrap());
    // With it open, and with nobody who looks at what is lost, nor at what is there in its place.
    let older = disk.fork();
    make(&source, "lost", 20);
    source.store().close().unwrap();
    drop(source);
    open_alone(&disk, "lost too", 30);
    let source = open(&disk);
    let at = copy.following().unwrap().at;
    let newer = stream(&source, at);
    assert!(read_in(&copy, &newer).unwrap() && !read_in(&copy, &newer).unwrap());
    let (had, at) = (names(&copy), copy.following().unwrap().at);
    assert_eq!(had, names(&source));
    open_alone(&older, "other", 40);
    open_alone(&older, "another", 50);
    let back = open(&older);
    for round in 0..2 {
        for since in [Tid::ZERO, before, at] {
            let refused = read_in(&copy, &stream(&back, since)).unwrap_err().to_string();
            assert!(refused.contains("an older copy of its source was put back"), "since {since}: {refused}");
        }
        assert!(is_refused(pull(&copy, &back)));
        assert_eq!(names(&copy), had);
        make(&back, &format!("other {round}"), 60 + round);
    }
    // So is one that leads on from where another one ended early.
    let copy = mirror(&source);
    let caller = Caller::default();
    let large = source.mknod(&caller, START + 70 * SECOND, source.root(), b"large", libc::S_IFREG | 0o644, 0).unwrap();
    let mut noise = vec![0; 3 << 20];
    fastrand::Rng::with_seed(1).fill(&mut noise);
    source.write(START + 71 * SECOND, large.node, Some(0), &noise, false).unwrap();
    let cut = stream(&source, Tid::ZERO);
    read_in(&copy, &cut[..cut.len() - 1000]).unwrap_err();
    make(&back, "the last one", 80);
    let refused = read_in(&copy, &stream(&back, Tid::ZERO)).unwrap_err().to_string();
    assert!(refused.contains("an older copy of its source was put back"), "{refused}");
    assert!(read_in(&copy, &cut).unwrap());
    assert_eq!(names(&copy), names(&source));
}

#[test]
fn however_often_a_source_was_opened_since_what_was_lost_is_missed_and_what_was_not_is_followed_on() {
    let disk = new_disk();
    let source = Arc::new(Fs::create(open_store(&disk), 0, 0, 0o755, START + 1).unwrap());
    let (away, with_lost, always) = (mirror(&source), mirror(&source), mirror(&source));
    make(&source, "one", 10);
    pull(&away, &source).unwrap();
    let older = disk.fork();
    make(&source, "lost", 20);
    pull(&with_lost, &source).unwrap();
    drop(source);
    for at in 30..230 {
        let back = open(&older);
        make(&back, &format!("at {at}"), at);
        pull(&always, &back).unwrap();
    }
    let back = open(&older);
    assert!(is_refused(pull(&with_lost, &back)));
    let refused = read_in(&with_lost, &stream(&back, Tid::ZERO)).unwrap_err().to_string();
    assert!(refused.contains("an older copy of its source was put back"), "{refused}");
    pull(&away, &back).unwrap();
    assert_eq!(names(&away), names(&back));
}

#[test]
fn what_former_versions_noted_of_openings_counts() {
    let disk = new_disk();
    let source = Arc::new(Fs::create(open_store(&disk), 0, 0, 0o755, START + 1).unwrap());
    let (of_first, of_second) = (mirror(&source), mirror(&source));
    let opened = Tid::ZERO;
    make(&source, "one", 10);
    pull(&of_first, &source).unwrap();
    let id = of_first.following().unwrap().newest().1;
    source.store().close().unwrap();
    drop(source);
    let source = open(&disk);
    make(&source, "two", 20);
    pull(&of_second, &source).unwrap();
    // As they would have: with the first opening in the record of all.
    let lists = |of: &[(u64, Tid)]| {
        let mut tx = source.store().begin(MAIN, START + 30 * SECOND).unwrap();
        tx.turn(CATALOGUE, 0, 0);
        let mut value = Vec::new();
        for (id, after) in of {
            value.extend_from_slice(&id.to_le_bytes());
            let mut left = after.0;
            while left > 127 {
                value.push(left as u8 | 128);
                left >>= 7;
            }
            value.push(left as u8);
        }
        tx.put(ObjectId(0), Kind::PEER, &[8], &value);
        let first = [&[9], &(!opened.0).to_be_bytes()[..]].concat();
        tx.delete(ObjectId(0), Kind::PEER, &first);
        tx.commit().unwrap();
    };
    lists(&[]);
    assert!(is_refused(pull(&of_first, &source)), "nothing is known of the first any more");
    lists(&[(id, opened)]);
    pull(&of_first, &source).unwrap();
    pull(&of_second, &source).unwrap();
    assert_eq!(names(&of_first), names(&source));
    assert_eq!(names(&of_second), names(&source));
}
