//! What nobody can read at the source any more keeps no mirror from having all the rest, and is no bytes there.

#[path = "../../fs/tests/common/mod.rs"]
mod common;

use std::sync::Arc;

use common::{SECOND, START, new_disk, open_store};
use darner_fs::{Caller, Fs, Node, ROOT};
use darner_mirror::{Puller, Source};
use darner_store::volume::sim::SimDisk;
use darner_store::volume::{Disk, RawVolume};
use darner_store::{CreateOptions, Grid, IndexFrom, OpenOptions, Store};
use darner_syslink::Refuse;
use darner_syslink::sim::{Pair, Side};

const LEN: usize = 300_000;
/// What is damaged of files that don't pack: blocks of 4096 bytes.
const ROTTEN: std::ops::Range<usize> = 200 << 10..204 << 10;

struct Machine {
    disk: SimDisk,
    fs: Arc<Fs>,
}

impl Machine {
    fn mirror_of(source: &Fs) -> Machine {
        let disk = SimDisk::new(1 << 30);
        let hash_key = Some(source.store().hash_key());
        let options = CreateOptions { now_ns: START, hash_key, ..CreateOptions::default() };
        Store::create(&RawVolume::new(Arc::new(disk.clone())), &options).unwrap();
        let fs = Arc::new(Fs::create(open_store(&disk), 0, 0, 0o755, START + 1).unwrap());
        fs.follow(source.store().uuid(), ROOT.fileset, "main", "", START + 2).unwrap();
        fs.sync().unwrap();
        Machine { disk, fs }
    }

    fn puller(&self, source: &Arc<Fs>) -> Puller {
        let pair = Pair::perfect(Arc::new(Refuse), Arc::new(Source::new(source.clone())));
        Puller::new(self.fs.clone(), pair.caller(Side::A), fastrand::u64(1..))
    }

    fn pull(&self, source: &Arc<Fs>) -> Result<(), String> {
        self.puller(source).pull_durably(&mut |_| ()).map(drop).map_err(|e| e.to_string())
    }

    /// A file's bytes; those that can't be read as 4096 of `None`.
    fn read(&self, name: &str) -> Vec<Option<Vec<u8>>> {
        let root = self.fs.head().map_or(Node::Live(ROOT), |at| Node::AsOf(ROOT, at));
        let entry = self.fs.lookup(root, name.as_bytes(), 0).unwrap();
        let blocks = (0..entry.attr.size).step_by(4096);
        blocks
            .map(|at| {
                let read = self.fs.read(entry.node, at, 4096);
                if let Err(e) = &read {
                    let is_told = e.errno() == libc::EIO && e.to_string().starts_with(&format!("/{name}"));
                    assert!(is_told, "{name} at {at}: {e}");
                }
                read.ok()
            })
            .collect()
    }

    /// Opens it as a power failure left it, which had everything.
    fn reopened(&self) -> Machine {
        let disk = self.disk.fork();
        Machine { fs: Arc::new(Fs::open(open_store(&disk)).unwrap()), disk }
    }

    /// Opens it with its index made anew, once the cleaner has been there.
    fn rebuilt(&self) -> Machine {
        let disk = self.disk.fork();
        let volume = Arc::new(RawVolume::new(Arc::new(disk.clone())));
        let store = open_store(&disk);
        store.retain(ROOT.fileset, START << 1, |r| r.with_grid(Grid::default())).unwrap();
        store.want_collapse();
        store.clean(START << 1, &mut |_| ()).unwrap();
        store.close().unwrap();
        drop(store);
        let options = OpenOptions { index: IndexFrom::Segments, ..OpenOptions::small() };
        Machine { disk, fs: Arc::new(Fs::open(Arc::new(Store::open(volume, &options).unwrap())).unwrap()) }
    }

    /// What a scrub says is damaged: how many places.
    fn scrubbed(&self) -> usize {
        let store = self.fs.store();
        let mut report = store.begin_scrub(START, false).unwrap();
        while store.step_scrub(&mut report, 1 << 20).unwrap() {}
        report.damages.len()
    }
}

fn blocks(bytes: &[u8], is_there: impl Fn(usize) -> bool) -> Vec<Option<Vec<u8>>> {
    bytes.chunks(4096).enumerate().map(|(n, block)| is_there(n * 4096).then(|| block.to_vec())).collect()
}

/// Where bytes are on a disk.
fn position(disk: &SimDisk, bytes: &[u8]) -> u64 {
    let mut page_and_next = vec![0; 8192];
    let found = disk.written_pages().into_iter().find_map(|page| {
        disk.read_at(&mut page_and_next, page).unwrap();
        Some(page + page_and_next.windows(bytes.len()).position(|window| window == bytes)? as u64)
    });
    found.expect("they are on the disk")
}

#[test]
fn a_mirror_gets_all_that_can_be_read_and_says_of_the_rest_that_it_cannot() {
    let disk = new_disk();
    let fs = Fs::create(open_store(&disk), 0, 0, 0o755, START + 1).unwrap();
    let mut rng = fastrand::Rng::with_seed(7);
    let noise: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(LEN).collect();
    // (What packs well is stored as blocks of 64 KiB.)
    let text: Vec<u8> = (0..).flat_map(|n| format!("{n} lines of a text\n").into_bytes()).take(LEN).collect();
    let make = |n: u64, name: &str, bytes: &[u8]| {
        let now = START + n * SECOND;
        let file =
            fs.mknod(&Caller::default(), now, fs.root(), name.as_bytes(), libc::S_IFREG | 0o644, 0).unwrap().node;
        // (What is written in large portions is not packed.)
        for (part, at) in bytes.chunks(64 << 10).zip((0..).step_by(64 << 10)) {
            fs.write(now + 1 + at, file, Some(at), part, false).unwrap();
        }
        file
    };
    let file = make(10, "noise", &noise);
    make(11, "text", &text);
    make(12, "whole", b"words");
    let shares = make(13, "shares", b"");
    fs.copy_range(START + 14 * SECOND, file, 0, shares, 0, LEN as u64).unwrap();
    fs.store().close().unwrap();
    drop(fs);
    let rotten = [position(&disk, &noise[ROTTEN][..100]), position(&disk, &text[..12])];
    rotten.iter().for_each(|at| disk.flip(*at, 3));
    let of = Machine { fs: Arc::new(Fs::open(open_store(&disk)).unwrap()), disk };

    let is_sound = |at: usize| !ROTTEN.contains(&at);
    let expected = [
        ("noise", blocks(&noise, is_sound)),
        ("shares", blocks(&noise, is_sound)),
        ("text", blocks(&text, |at| at >= 64 << 10)),
        ("whole", vec![Some(b"words".to_vec())]),
    ];
    let mirror = Machine::mirror_of(&of.fs);
    mirror.pull(&of.fs).unwrap();
    let onward = Machine::mirror_of(&mirror.fs);
    onward.pull(&mirror.fs).unwrap();
    for side in [&of, &mirror, &onward, &mirror.reopened(), &mirror.rebuilt()] {
        for (name, blocks) in &expected {
            let read = side.read(name);
            let differs: Vec<usize> = (0..blocks.len()).filter(|n| read.get(*n) != blocks.get(*n)).collect();
            assert!(differs.is_empty() && read.len() == blocks.len(), "{name}: blocks {differs:?}");
        }
    }
    assert_eq!((mirror.scrubbed(), onward.scrubbed()), (2, 2));
    assert_eq!(mirror.fs.store().check(&mut |_, _| ()).all().len(), 2);

    // Once the source has them, comparing brings them.
    rotten.iter().for_each(|at| of.disk.flip(*at, 3));
    let found = mirror.puller(&of.fs).verify(true, true).unwrap();
    assert!(found.failed.is_empty() && found.mended > 0, "{found:?}");
    for (name, bytes) in [("noise", &noise), ("shares", &noise), ("text", &text)] {
        assert!(mirror.read(name) == blocks(bytes, |_| true), "{name}");
    }
}

#[test]
fn what_a_mirror_has_does_not_give_way_to_what_its_source_can_read_no_more() {
    let disk = new_disk();
    let fs = Fs::create(open_store(&disk), 0, 0, 0o755, START + 1).unwrap();
    let mut rng = fastrand::Rng::with_seed(8);
    let noise: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(64 << 10).collect();
    let file = fs.mknod(&Caller::default(), START + SECOND, fs.root(), b"file", libc::S_IFREG | 0o644, 0).unwrap().node;
    fs.write(START + 2 * SECOND, file, Some(0), &noise, false).unwrap();
    let fs = Arc::new(fs);
    let mirror = Machine::mirror_of(&fs);
    mirror.pull(&fs).unwrap();
    // The rest of the chunk rots, and nobody asks the mirror for it.
    fs.write(START + 3 * SECOND, file, Some(0), b"new", false).unwrap();
    fs.sync().unwrap();
    let at = position(&disk, &noise[40_000..40_100]);
    disk.flip(at, 2);
    let said = mirror.pull(&fs).unwrap_err();
    assert!(said.contains("/file: ") && said.contains("damaged at the source"), "{said}");
    assert!(mirror.read("file") == blocks(&noise, |_| true));
    // A pull that was cut does not take the file for its own.
    assert!(mirror.pull(&fs).is_err() && mirror.reopened().pull(&fs).is_err());
    assert!(mirror.read("file") == blocks(&noise, |_| true));
    // Whatever makes an end of it at the source lets the mirror go on.
    fs.write(START + 4 * SECOND, file, Some(0), &noise, false).unwrap();
    mirror.pull(&fs).unwrap();
    assert!(mirror.read("file") == blocks(&noise, |_| true));
}
