//! Peers that send anything: neither side panics, does what it should not, or waits for ever.

#[path = "../../fs/tests/common/mod.rs"]
mod common;

use std::sync::Arc;
use std::time::Duration;

use common::START;
use darner_fs::{Caller, FilesetId, Fs, MAIN, Node, ROOT, Tid};
use darner_mirror::{Failure, Header, Memory, Puller, Source, Which, ask_for_bytes, export, import};
use darner_store::volume::RawVolume;
use darner_store::volume::sim::SimDisk;
use darner_store::{CreateOptions, Store};
use darner_syslink::sim::{Pair, Side};
use darner_syslink::{CallError, Code, Message, Peer, Refuse, Reply, Service, Tag, Who};
use parking_lot::Mutex;

fn source() -> Arc<Fs> {
    let fs = Fs::create(common::open_store(&common::new_disk()), 0, 0, 0o755, START + 1).unwrap();
    let caller = Caller::default();
    for n in 0..20u64 {
        let name = format!("file {n}");
        let made = fs.mknod(&caller, START + 10 + n, fs.root(), name.as_bytes(), libc::S_IFREG | 0o644, 0).unwrap();
        let data: Vec<u8> =
            (0..n * 5000).map(|i| if n % 2 == 0 { (i % 7) as u8 } else { (i * i % 251) as u8 }).collect();
        fs.write(START + 40 + n, made.node, Some(0), &data, false).unwrap();
    }
    Arc::new(fs)
}

fn mirror(of: &Fs) -> Arc<Fs> {
    let disk = SimDisk::new(1 << 30);
    let options = CreateOptions {
        now_ns: START,
        seed: Some([9; 32]),
        hash_key: Some(of.store().hash_key()),
        ..CreateOptions::default()
    };
    Store::create(&RawVolume::new(Arc::new(disk.clone())), &options).unwrap();
    let fs = Fs::create(common::open_store(&disk), 0, 0, 0o755, START + 1).unwrap();
    fs.follow(of.store().uuid(), ROOT.fileset, "main", "", START + 2).unwrap();
    Arc::new(fs)
}

/// Answers like a source, but changes bytes of what it sends.
struct Liar {
    honest: Source,
    rng: Mutex<fastrand::Rng>,
}

impl Service for Liar {
    fn call(&self, _: &Peer, command: Message, reply: Reply) {
        let answer = self.honest.answer(&command);
        let Ok(mut message) = answer else { return reply.finish(answer) };
        if command.tag() == Tag(2) {
            let mut rng = self.rng.lock();
            let mut items = message.take_buffer(Tag(15)).unwrap();
            for _ in 0..rng.usize(0..3) {
                if !items.is_empty() {
                    let at = rng.usize(..items.len());
                    items[at] = rng.u8(..);
                }
            }
            if rng.u8(0..10) == 0 {
                items.truncate(rng.usize(..=items.len()));
            }
            let mut lie = Message::new(Tag(2));
            match rng.u8(0..20) {
                0 => drop(lie.bytes(Tag(11), &(0..rng.usize(0..30)).map(|_| rng.u8(..)).collect::<Vec<u8>>())),
                _ => drop(lie.bytes(Tag(11), message.root().bytes(Tag(11)).unwrap())),
            }
            match rng.u8(0..6) {
                0 => drop(lie.bytes(Tag(16), &(0..rng.usize(0..30)).map(|_| rng.u8(..)).collect::<Vec<u8>>())),
                _ => {
                    if let Ok(Some(next)) = message.root().bytes_opt(Tag(16)) {
                        lie.bytes(Tag(16), next);
                    }
                }
            }
            lie.attach(Tag(15), items);
            message = lie;
        }
        reply.send(message);
    }
}

#[test]
fn a_source_that_lies_is_refused_or_leaves_a_mirror_that_goes_on() {
    let fs = source();
    let (mut refused, mut done) = (0, 0);
    for seed in 0..300 {
        let copy = mirror(&fs);
        let liar = Liar { honest: Source::new(fs.clone()), rng: Mutex::new(fastrand::Rng::with_seed(seed)) };
        let pair = Pair::perfect(Arc::new(Refuse), Arc::new(liar));
        let puller = Puller::new(copy.clone(), pair.caller(Side::A), seed).with_room(10_000);
        // A lie may make it ask for ever: it is no worse than a source that is slow.
        let parts = std::sync::atomic::AtomicU64::new(200);
        let puller = puller.with_pause(Box::new(move |_| parts.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) > 1));
        match puller.pull() {
            Ok(_) => done += 1,
            Err(Failure::Here(_) | Failure::Answer(_) | Failure::Source(_)) => refused += 1,
            Err(e) => panic!("{e}"),
        }
        // The honest one is believed again.
        let pair = Pair::perfect(Arc::new(Refuse), Arc::new(Source::new(fs.clone())));
        let _ = Puller::new(copy.clone(), pair.caller(Side::A), seed).pull();
        copy.getattr(Node::AsOf(ROOT, copy.head().unwrap())).unwrap();
        copy.store().sync().unwrap();
        assert_eq!(copy.store().check(&mut |_, _| ()).all(), Vec::<String>::new(), "seed {seed}");
    }
    assert!(refused > 50 && done > 10, "{refused} refused, {done} done");
}

#[test]
fn whatever_a_source_is_asked_it_answers_once_and_goes_on() {
    let fs = source();
    let mut rng = fastrand::Rng::with_seed(3);
    let service = Arc::new(Source::new(fs.clone()));
    let mut answered = 0;
    for _ in 0..3000 {
        let pair = Pair::perfect(Arc::new(Refuse), service.clone());
        let caller = pair.caller(Side::A);
        let mut ask = Message::new(Tag(rng.u16(0..5)));
        let newest = fs.store().tid().0;
        for _ in 0..rng.usize(0..9) {
            let tag = Tag(rng.u16(1..17));
            match rng.u8(0..4) {
                0 => ask.uint(tag, rng.u64(..)),
                1 => ask.uint(tag, if rng.bool() { newest } else { rng.u64(0..3) }),
                2 => ask.text(tag, if rng.bool() { "main" } else { "other" }),
                _ => {
                    let n = rng.usize(0..20);
                    ask.bytes(tag, &(0..n).map(|_| rng.u8(0..4)).collect::<Vec<u8>>())
                }
            };
        }
        if rng.bool() {
            ask = Message::new(Tag(2));
            ask.uint(Tag(10), rng.u64(0..100))
                .uint(Tag(3), rng.u64(0..3))
                .uint(Tag(13), newest - rng.u64(0..2) * rng.u64(0..90));
            ask.bytes(Tag(11), &(0..rng.usize(0..14)).map(|_| rng.u8(0..3)).collect::<Vec<u8>>());
            ask.bytes(Tag(12), &(0..rng.usize(0..14)).map(|_| rng.u8(..)).collect::<Vec<u8>>());
            ask.uint(Tag(8), rng.u64(0..newest)).uint(Tag(14), rng.u64(..));
        }
        answered += u64::from(caller.call(ask, None).is_ok());
    }
    assert!(answered > 100, "{answered}");
    let pair = Pair::perfect(Arc::new(Refuse), service);
    assert_eq!(Puller::look(&*pair.caller(Side::A), Which::Named("main"), None).unwrap().newest, fs.store().tid());
    assert!(fs.store().tid() > Tid::ZERO);
}

fn stream(fs: &Arc<Fs>, since: Tid) -> Vec<u8> {
    let pair = Pair::perfect(Arc::new(Refuse), Arc::new(Source::new(fs.clone())));
    let mut out = Vec::new();
    export(&*pair.caller(Side::A), Which::Named("main"), since, 1, &mut out).unwrap();
    out
}

fn read_in(fs: &Fs, bytes: &[u8]) -> Result<bool, Failure> {
    let mut from = bytes;
    let header = Header::read(&mut from)?;
    import(fs, &header, &mut from)
}

fn file(fs: &Fs, n: u64) -> Option<Vec<u8>> {
    let found = fs.lookup(Node::AsOf(ROOT, fs.head().unwrap()), format!("file {n}").as_bytes(), 0).ok()?;
    Some(fs.read(found.node, 0, 1 << 20).unwrap())
}

#[test]
fn a_stream_brings_what_changed_wherever_it_is_cut_and_damage_is_refused() {
    let fs = source();
    let first = stream(&fs, Tid::ZERO);
    let at = fs.store().tid();
    let copy = mirror(&fs);
    // Cut anywhere, it goes on when the whole is read again.
    for cut in (0..first.len()).step_by(first.len() / 23) {
        read_in(&copy, &first[..cut]).unwrap_err();
        assert_eq!(file(&copy, 3), None, "nothing is shown before all is there");
    }
    let mut rng = fastrand::Rng::with_seed(1);
    for _ in 0..200 {
        let mut bytes = first.clone();
        let n = rng.usize(..bytes.len());
        bytes[n] ^= 1 << rng.u8(0..8);
        let _ = read_in(&mirror(&fs), &bytes).unwrap_err();
    }
    assert!(read_in(&copy, &first).unwrap());
    assert_eq!(file(&copy, 3).unwrap().len(), 15_000);
    assert!(!read_in(&copy, &first).unwrap(), "there is nothing new in it");
    let live = |n: u64| fs.lookup(fs.root(), format!("file {n}").as_bytes(), 0).unwrap().node;
    fs.write(START + 1000, live(1), Some(0), b"changed", false).unwrap();
    fs.unlink(START + 1001, fs.root(), b"file 5").unwrap();
    let second = stream(&fs, at);
    assert!(second.len() < first.len() / 2, "{} of {} bytes", second.len(), first.len());
    assert!(read_in(&mirror(&fs), &second).unwrap_err().to_string().contains("export --since"));
    assert!(read_in(&copy, &second).unwrap());
    assert!(file(&copy, 1).unwrap().starts_with(b"changed") && file(&copy, 5).is_none());
    assert_eq!(copy.check().unwrap().findings, Vec::<String>::new());
}

#[test]
fn a_newer_stream_takes_the_place_of_one_that_ended_early() {
    let fs = source();
    let copy = mirror(&fs);
    let live = |n: u64| fs.lookup(fs.root(), format!("file {n}").as_bytes(), 0).unwrap().node;
    assert!(read_in(&copy, &stream(&fs, Tid::ZERO)).unwrap());
    let (at, caller) = (fs.store().tid(), Caller::default());
    let mut now = START + 1000;
    for round in 0..5 {
        let name = format!("new {round}");
        let made = fs.mknod(&caller, now, fs.root(), name.as_bytes(), libc::S_IFREG | 0o644, 0).unwrap();
        fs.write(now + 1, made.node, Some(0), &[round; 70_000], false).unwrap();
        if round > 0 {
            fs.unlink(now + 2, fs.root(), format!("new {}", round - 1).as_bytes()).unwrap();
        }
        fs.write(now + 3, live(9), Some(5000 * u64::from(round)), b"changed", false).unwrap();
        fs.unlink(now + 4, fs.root(), format!("file {}", 10 + round).as_bytes()).unwrap();
        now += 10;
        let some = stream(&fs, at);
        read_in(&copy, &some[..some.len() * (5 - usize::from(round)) / 6]).unwrap_err();
        assert!(copy.following().unwrap().at == at && file(&copy, 10).is_some(), "what it had is shown");
        assert_eq!(copy.check().unwrap().findings, Vec::<String>::new(), "a pull under way is no damage");
    }
    let older = stream(&fs, at);
    fs.write(now, live(3), Some(0), b"changed", false).unwrap();
    let newest = stream(&fs, at);
    read_in(&copy, &newest[..newest.len() - 1]).unwrap_err();
    let said = read_in(&copy, &older).unwrap_err().to_string();
    assert!(said.contains("export anew"), "{said}");
    assert!(read_in(&copy, &newest).unwrap());
    for n in 0..20 {
        let there = fs.lookup(fs.root(), format!("file {n}").as_bytes(), 0).ok();
        assert_eq!(file(&copy, n), there.map(|found| fs.read(found.node, 0, 1 << 20).unwrap()), "file {n}");
    }
    let names = |fs: &Fs| fs.readdir(fs.root(), 0, 4000, 24, false, 0).unwrap().into_iter().map(|e| e.name).collect();
    let (there, here): (Vec<Vec<u8>>, Vec<_>) = (names(&fs), names(&copy));
    assert_eq!(here, there);
    assert_eq!(copy.check().unwrap().findings, Vec::<String>::new());
}

/// As somebody who may see one fileset gets answers.
struct Restricted(Arc<Source>, u32);

impl Service for Restricted {
    fn call(&self, peer: &Peer, command: Message, reply: Reply) {
        self.0.serve(peer, &command, reply, Some(&[self.1]));
    }
}

#[test]
fn who_may_see_one_fileset_finds_no_other_whatever_is_asked() {
    let fs = source();
    let docs = fs.create_fileset(&Caller::default(), START + 100, "docs").unwrap();
    let secret = fs.create_fileset(&Caller::default(), START + 101, "secret").unwrap();
    let service = Arc::new(Source::new(fs.clone()));
    let pair = Pair::perfect(Arc::new(Refuse), Arc::new(Restricted(service.clone(), docs.id.0)));
    let caller = pair.caller(Side::A);
    let is_hidden = |ask: Message| match caller.call(ask, None) {
        Err(CallError::Refused(no)) => no.code == Code::Other(257) && no.why.contains("no such fileset"),
        _ => false,
    };
    assert_eq!(Puller::look(&*caller, Which::Named("docs"), None).unwrap().fileset, docs.id);
    let other = Puller::look(&*caller, Which::Named("nothing"), None).unwrap_err().to_string();
    for name in ["secret", "main"] {
        assert_eq!(Puller::look(&*caller, Which::Named(name), None).unwrap_err().to_string(), other);
    }
    let newest = fs.store().tid().0;
    for fileset in [1, secret.id.0, 99] {
        assert!(is_hidden(Message::new(Tag(1)).uint(Tag(3), fileset.into()).text(Tag(1), "docs").clone()));
        for tag in [2, 4, 5] {
            let mut ask = Message::new(Tag(tag));
            ask.uint(Tag(3), fileset.into()).uint(Tag(10), 1).bytes(Tag(11), &[]).bytes(Tag(12), &[]);
            ask.uint(Tag(8), 0).uint(Tag(13), newest).uint(Tag(14), 1000).uint(Tag(17), 1).uint(Tag(18), 1);
            ask.uint(Tag(19), 0).uint(Tag(20), 1).uint(Tag(21), 0).uint(Tag(22), 1).uint(Tag(23), 0).uint(Tag(24), 0);
            assert!(is_hidden(ask), "command {tag} of fileset {fileset}");
        }
    }
    // Another's pull is not in reach.
    let pull = |who: &Who, fileset: u32, from: Option<&[u8]>| {
        let mut ask = Message::new(Tag(2));
        ask.uint(Tag(3), fileset.into()).uint(Tag(10), 7).bytes(Tag(12), &[]);
        ask.uint(Tag(8), 0).uint(Tag(13), newest).uint(Tag(14), 1);
        if let Some(from) = from {
            ask.bytes(Tag(11), from);
        }
        service.answer_to(who, &ask, None)
    };
    let first = pull(&Who::Memory, 1, Some(&[])).unwrap();
    assert!(first.root().find(Tag(16)).is_some(), "there is more");
    let stranger = Who::Process { pid: 1, uid: 1, gid: 1 };
    let mut end = Message::new(Tag(3));
    end.uint(Tag(10), 7);
    service.answer_to(&stranger, &end, None).unwrap();
    assert_eq!(pull(&stranger, 1, None).unwrap_err().code, Code::Other(258));
    assert!(pull(&Who::Memory, 1, None).is_ok());
}

#[test]
fn a_mirror_answers_its_source_with_bytes_of_what_it_follows_and_nothing_else() {
    let fs = source();
    let copy = mirror(&fs);
    let pair = Pair::perfect(Arc::new(Memory::new(copy.clone())), Arc::new(Source::new(fs.clone())));
    assert!(Puller::new(copy.clone(), pair.caller(Side::A), 1).pull().unwrap().complete);
    let source = pair.caller(Side::B);
    let node = fs.lookup(fs.root(), b"file 3", 0).unwrap().node;
    let (object, newest, patience) = (node.inode().object.0, fs.store().tid(), Duration::from_secs(1));
    let ask = |fileset, place| ask_for_bytes(&*source, fileset, place, newest, 0, patience);
    assert_eq!(ask(MAIN, (object, 100, 900)).unwrap(), Some(fs.read(node, 100, 900).unwrap()));
    assert!(ask(FilesetId(2), (object, 100, 900)).is_err());
    let mut rng = fastrand::Rng::with_seed(5);
    for _ in 0..2000 {
        let any = |rng: &mut fastrand::Rng| if rng.bool() { rng.u64(..) } else { rng.u64(0..100_000) };
        let place = (rng.u64(0..30), any(&mut rng), any(&mut rng));
        if let Ok(Some(bytes)) = ask(MAIN, place) {
            assert_eq!(bytes.len() as u64, place.2);
        }
    }
    for tag in [0, 1, 2, 3, 4, 6, 7, 99] {
        let mut ask = Message::new(Tag(tag));
        ask.uint(Tag(3), 1).uint(Tag(10), 1).text(Tag(1), "main");
        assert!(matches!(source.call(ask, None), Err(CallError::Refused(no)) if no.code == Code::Unknown), "{tag}");
    }
    copy.promote(START + 1000).unwrap();
    assert!(ask(MAIN, (object, 100, 900)).is_err(), "it follows no more");
}
