//! Bugs that a review found, each by its story; they need the store's inside or a disk with a hook.

use crate::volume::sim::SimDisk;
use crate::volume::{Copies, DirVolume, Disk, RawVolume, Volume};
use crate::*;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const FS: FilesetId = FilesetId(1);

/// A simulated disk that does as an image file does (zeroes ahead, discards) and calls a hook before a write.
struct Hooked {
    inner: SimDisk,
    zeroes: bool,
    discards: bool,
    armed: AtomicBool,
    hook: Mutex<Option<Box<dyn Fn() + Send + Sync>>>,
    fail_flush_in: AtomicU64,
}
impl Hooked {
    fn new(inner: SimDisk, zeroes: bool, discards: bool) -> Arc<Hooked> {
        Arc::new(Hooked {
            inner,
            zeroes,
            discards,
            armed: false.into(),
            hook: Mutex::new(None),
            fail_flush_in: 0.into(),
        })
    }
}
impl Disk for Hooked {
    fn name(&self) -> String {
        "hooked".into()
    }
    fn len(&self) -> std::io::Result<u64> {
        self.inner.len()
    }
    fn read_at(&self, b: &mut [u8], o: u64) -> std::io::Result<()> {
        self.inner.read_at(b, o)
    }
    fn write_at(&self, b: &[u8], o: u64) -> std::io::Result<()> {
        if self.armed.swap(false, Ordering::SeqCst) {
            let h = self.hook.lock().take();
            if let Some(h) = h {
                h()
            }
        }
        self.inner.write_at(b, o)
    }
    fn flush(&self) -> std::io::Result<()> {
        if self.fail_flush_in.load(Ordering::SeqCst) > 0 && self.fail_flush_in.fetch_sub(1, Ordering::SeqCst) == 1 {
            return Err(std::io::Error::from_raw_os_error(libc::EIO));
        }
        self.inner.flush()
    }
    fn discard(&self, o: u64, n: u64) {
        if self.discards {
            self.inner.write_at(&vec![0; n as usize], o).unwrap();
        }
    }
    fn gains_from_zeroes_ahead(&self) -> bool {
        self.zeroes
    }
}

fn garbage(len: u64) -> SimDisk {
    let d = SimDisk::new(len);
    let mut rng = fastrand::Rng::with_seed(1);
    let block: Vec<u8> = std::iter::repeat_with(|| rng.u8(1..)).take(1 << 20).collect();
    for i in 0..len >> 20 {
        d.write_at(&block, i << 20).unwrap();
    }
    d
}
fn create(v: &dyn Volume) {
    Store::create(v, &CreateOptions { now_ns: 5, seed: Some([3; 32]), ..Default::default() }).unwrap();
}
fn opts() -> OpenOptions {
    OpenOptions::small()
}
fn open(d: Arc<dyn Disk>) -> Result<Store> {
    Store::open(Arc::new(RawVolume::new(d)), &opts())
}
fn put(s: &Store, name: &str) -> Tid {
    let mut tx = s.begin(FS, 10).unwrap();
    tx.put(ObjectId(2), Kind::DIRENT, name.as_bytes(), b"v");
    tx.commit().unwrap()
}
fn has(s: &Store, name: &str) -> bool {
    s.get(&Key::new(FS, ObjectId(2), Kind::DIRENT, name.as_bytes()), Tid::MAX).unwrap().is_some()
}
/// Fills the open segment until the next begin would roll.
fn fill(s: &Store) {
    let mut rng = fastrand::Rng::with_seed(2);
    let data: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(60000).collect();
    let mut n = 0u64;
    loop {
        {
            let t = s.log.tail();
            if t.room() < 4 << 20 {
                break;
            }
        }
        let mut tx = s.begin(FS, 10).unwrap();
        tx.write(ObjectId(3), n * 65536, &data).unwrap();
        tx.commit().unwrap();
        n += 1;
    }
}

#[test]
fn a_sync_during_a_roll_does_not_zero_the_seal() {
    let base = SimDisk::new(1 << 30);
    create(&RawVolume::new(Arc::new(base.clone())));
    let d = Hooked::new(base.clone(), true, true);
    let s = Arc::new(open(d.clone()).unwrap());
    fill(&s);
    s.sync().unwrap();
    let room = s.log.tail().room();
    assert!(room < 4 << 20);
    // begin() would roll now; take what is left for one commit by hand: a small transaction that does not roll
    // is what another thread made just before. Here: put it directly.
    {
        let tail = s.log.tail();
        let tid = Tid(tail.last.0 + 1);
        let mut tx = crate::tx::Tx::new(&s, tail, FS, tid);
        tx.put(ObjectId(2), Kind::DIRENT, b"before", b"v");
        tx.commit().unwrap();
    }
    let s2 = s.clone();
    *d.hook.lock() = Some(Box::new(move || {
        put(&s2, "rolled");
    }));
    d.armed.store(true, Ordering::SeqCst);
    s.sync().unwrap();
    put(&s, "after");
    let synced = s.sync().unwrap();
    assert!(has(&s, "after"));
    drop(d.hook.lock().take());
    drop(s);
    let s = open(Arc::new(base)).unwrap();
    println!("synced {synced}, found {}", s.tid());
    assert!(has(&s, "before"));
    assert!(has(&s, "after"), "synced {synced}, found {}", s.tid());
}

#[test]
fn the_segment_after_a_crash_has_its_header_before_a_manifest_names_it() {
    let base = garbage(192 << 20);
    create(&RawVolume::new(Arc::new(base.clone())));
    let s = open(Arc::new(base.clone())).unwrap();
    put(&s, "a");
    s.checkpoint().unwrap();
    // a torn frame: magic only
    let p = s.log.tail().position();
    let at = s.log.tail().segment.place().start + p.offset;
    drop(s);
    base.write_at(b"DTX1", at).unwrap();
    let s = open(Arc::new(base.clone())).unwrap();
    assert!(has(&s, "a"));
    s.close().unwrap();
    drop(s);
    let s = open(Arc::new(base.clone())).unwrap();
    assert!(has(&s, "a"));
}

#[test]
fn a_roll_without_a_transaction_is_written_at_close() {
    let base = garbage(192 << 20);
    create(&RawVolume::new(Arc::new(base.clone())));
    let s = open(Arc::new(base.clone())).unwrap();
    fill(&s);
    s.sync().unwrap();
    drop(s.begin(FS, 10).unwrap());
    s.close().unwrap();
    drop(s);
    open(Arc::new(base.clone())).unwrap();
}

#[test]
fn a_crash_between_a_seal_and_the_next_header_ends_the_log_at_the_seal_whatever_was_there_before() {
    let base = garbage(192 << 20);
    create(&RawVolume::new(Arc::new(base.clone())));
    let d = base.fork();
    let s = open(Arc::new(d.clone())).unwrap();
    fill(&s);
    s.sync().unwrap();
    let from = d.fork();
    d.record();
    put(&s, "x");
    s.sync().unwrap();
    let mut bad = 0;
    for n in 0..=d.events() {
        let c = SimDisk::crashed(&from, &d, n, &mut |_| true);
        if let Err(e) = open(Arc::new(c)) {
            println!("event {n}: {e}");
            bad += 1;
        }
    }
    assert_eq!(bad, 0);
}

#[test]
fn a_manifest_names_a_next_region_beyond_its_own_number() {
    let dir = tempfile::tempdir().unwrap();
    let v = || Arc::new(DirVolume::open(dir.path(), true));
    create(&*v());
    let s = Arc::new(Store::open(v(), &opts()).unwrap());
    put(&s, "a");
    s.sync().unwrap();
    // write_manifest stops at segments_for while another thread takes a region number (prepare_segment, begin).
    let guard = s.segments.lock();
    let s2 = s.clone();
    let t = std::thread::spawn(move || s2.checkpoint().unwrap());
    std::thread::sleep(std::time::Duration::from_millis(500));
    let spare = s.create_segment(crate::store::SEGMENT_MIN).unwrap();
    *s.spare.lock() = Some(spare);
    drop(guard);
    t.join().unwrap();
    put(&s, "b");
    s.sync().unwrap();
    drop(s); // kill -9
    let s = Store::open(v(), &opts()).unwrap();
    assert!(has(&s, "b"));
    put(&s, "c");
    s.sync().unwrap();
    drop(s);
    let s = Store::open(v(), &opts()).unwrap();
    assert!(has(&s, "c"));
}

#[test]
fn a_merge_after_a_failed_checkpoint_claims_nothing_that_is_in_memory_only() {
    for k in 1..8 {
        let base = SimDisk::new(1 << 30);
        create(&RawVolume::new(Arc::new(base.clone())));
        let d = Hooked::new(base.clone(), false, false);
        let s = open(d.clone()).unwrap();
        for i in 0..3 {
            put(&s, &format!("n{i}"));
            s.checkpoint().unwrap();
        }
        put(&s, "lost?");
        s.sync().unwrap();
        d.fail_flush_in.store(k, Ordering::SeqCst);
        let r = s.checkpoint();
        d.fail_flush_in.store(0, Ordering::SeqCst);
        let p = s.step();
        drop(s);
        let s = open(Arc::new(base)).unwrap();
        println!("flush {k} fails: checkpoint {:?}, step {:?}, found {}", r.is_ok(), p, has(&s, "lost?"));
        assert!(has(&s, "lost?"));
    }
}

#[test]
fn trimming_after_a_recovery_spares_what_was_put_into_the_freed_part() {
    let base = SimDisk::new(1 << 30);
    create(&RawVolume::new(Arc::new(base.clone())));
    let d = Hooked::new(base.clone(), false, true);
    let s = open(d.clone()).unwrap();
    for _ in 0..3 {
        put(&s, "n0");
        put(&s, "n0");
        s.checkpoint().unwrap();
    }
    fill(&s); // segment 1
    put(&s, "b0"); // rolls to B
    let b = s.log.tail().segment.place();
    s.step().unwrap(); // trims segment 1, merges the live runs
    // Something (tables) takes what segment 1 gave back.
    loop {
        let r = s.create_pack(16 << 10, false).unwrap().place();
        if r.start > b.start {
            s.volumes.remove(r).unwrap();
            break;
        }
    }
    fill(&s);
    put(&s, "b1"); // rolls to C: B is sealed
    s.sync().unwrap();
    s.step().unwrap(); // trims B, merges history: the manifest names only segment 1
    put(&s, "b2");
    s.sync().unwrap();
    drop(s); // kill -9
    let s = open(d.clone()).unwrap();
    for r in s.index.read().levels.tables() {
        println!("table {:?}", r.reference());
    }
    for r in s.segments.lock().iter() {
        println!("segment {:?}", r);
    }
    assert!(has(&s, "b2") && has(&s, "n0"));
    let _ = s.step().unwrap();
    drop(s);
    let s = open(d.clone()).unwrap();
    assert!(has(&s, "b2") && has(&s, "n0"));
    let r = s.check(&mut |_, _| {});
    assert_eq!(r.all(), Vec::<String>::new());
}

#[test]
fn a_store_made_over_an_older_one_is_the_new_one() {
    let base = SimDisk::new(192 << 20);
    create(&RawVolume::new(Arc::new(base.clone())));
    let s = open(Arc::new(base.clone())).unwrap();
    for i in 0..9 {
        put(&s, &format!("old{i}"));
        s.checkpoint().unwrap();
    }
    s.close().unwrap();
    drop(s);
    Store::create(
        &RawVolume::new(Arc::new(base.clone())),
        &CreateOptions { now_ns: 99, seed: Some([9; 32]), ..Default::default() },
    )
    .unwrap();
    let s = open(Arc::new(base.clone())).unwrap();
    assert_eq!(s.uuid(), [9; 16], "the new store");
    assert!(!has(&s, "old0"));
}

#[test]
fn a_merge_that_fails_gives_its_space_back() {
    let base = SimDisk::new(1 << 30);
    create(&RawVolume::new(Arc::new(base.clone())));
    let d = Hooked::new(base.clone(), false, false);
    let s = open(d.clone()).unwrap();
    let mut rng = fastrand::Rng::with_seed(1);
    for i in 0..3 {
        let mut n = 0;
        for _ in 0..12 {
            let mut tx = s.begin(FS, 10).unwrap();
            for _ in 0..1000 {
                let v: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(100).collect();
                tx.put(ObjectId(100 + i), Kind::DIRENT, format!("{n}").as_bytes(), &v);
                n += 1;
            }
            tx.commit().unwrap();
        }
        s.checkpoint().unwrap();
    }
    let before = s.usage().unwrap().used;
    let mut worst = 0;
    for n in 1..6 {
        let live = s.index.read().levels.live.len();
        if live < 3 {
            break;
        }
        d.fail_flush_in.store(1, Ordering::SeqCst);
        let failed = s.step().is_err();
        let used = s.usage().unwrap().used as i64 - before as i64;
        if failed {
            println!("operation {n} failed, used {used:+}");
            worst = worst.max(used)
        }
    }
    assert!(worst <= 64 << 10, "leaked {worst}");
}

#[test]
fn space_given_back_is_not_discarded_once_it_is_somebody_elses() {
    /// A disk on which somebody makes a region while another one's space is discarded.
    struct Racing(SimDisk, Mutex<Option<Arc<RawVolume>>>, Mutex<Option<u64>>);
    impl Disk for Racing {
        fn name(&self) -> String {
            "racing".into()
        }
        fn len(&self) -> std::io::Result<u64> {
            self.0.len()
        }
        fn read_at(&self, b: &mut [u8], o: u64) -> std::io::Result<()> {
            self.0.read_at(b, o)
        }
        fn write_at(&self, b: &[u8], o: u64) -> std::io::Result<()> {
            self.0.write_at(b, o)
        }
        fn flush(&self) -> std::io::Result<()> {
            self.0.flush()
        }
        fn discard(&self, o: u64, n: u64) {
            if let Some(volume) = self.1.lock().take() {
                let made = volume.create(9, n).unwrap();
                made.write_at(b"newer", 0).unwrap();
                *self.2.lock() = Some(made.place().start);
            }
            self.0.write_at(&vec![0; n as usize], o).unwrap();
        }
    }
    let disk = Arc::new(Racing(SimDisk::new(64 << 20), Mutex::default(), Mutex::default()));
    let volume = Arc::new(RawVolume::new(disk.clone()));
    let old = volume.create(1, 1 << 20).unwrap().place();
    *disk.1.lock() = Some(volume.clone());
    volume.remove(old).unwrap();
    let start = disk.2.lock().expect("one was made");
    let mut found = [0; 5];
    disk.0.read_at(&mut found, start).unwrap();
    assert_eq!(&found, b"newer");
}

#[test]
fn what_lies_behind_the_end_of_a_segment_that_was_trimmed_before_a_crash_is_left_alone() {
    let disk = SimDisk::new(64 << 20);
    let volume = RawVolume::new(Arc::new(disk.clone()));
    let old = volume.create(1, 1 << 20).unwrap().place();
    // Trimmed, and what it gave back used by another segment, to which a seal leads; the manifest still says the old size.
    volume.shrink(old, 512 << 10).unwrap();
    let other = volume.create(2, 512 << 10).unwrap();
    assert_eq!(other.place().start, old.start + (512 << 10));
    other.write_at(b"synced", 0).unwrap();
    let volume = RawVolume::new(Arc::new(disk));
    volume.open(old).unwrap();
    let other = volume.open(other.place()).unwrap();
    volume.remove(old).unwrap();
    let mut found = [0; 6];
    other.read_at(&mut found, 0).unwrap();
    assert_eq!(&found, b"synced");
}

/// Values that don't compress, so that an index of them takes several steps of a collapse.
fn put_large(s: &Store, object: u64, n: u64, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let value: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(60_000).collect();
    for i in 0..n {
        let mut tx = s.begin(FS, 10).unwrap();
        tx.put(ObjectId(object + i), Kind::ATTR, b"", &value);
        tx.commit().unwrap();
    }
}

#[test]
fn a_collapse_that_begins_anew_does_not_bring_back_what_the_one_before_had_rewritten() {
    let disk = SimDisk::new(1 << 30);
    create(&RawVolume::new(Arc::new(disk.clone())));
    let s = open(Arc::new(disk.clone())).unwrap();
    // Two versions of everything; the first step of a collapse comes to a third of them.
    for round in 0..2 {
        put_large(&s, 100, 900, round);
    }
    s.checkpoint().unwrap();
    s.retain(FS, 10, |r| r.with_grid(Grid::default())).unwrap();
    let versions = |s: &Store| {
        let all = |i| s.all_versions(&Key::new(FS, ObjectId(i), Kind::ATTR, &[])).unwrap().len();
        (100..1000).map(all).max().unwrap()
    };
    s.want_collapse();
    // It begins, and goes nearly to the end.
    for _ in 0..3 {
        s.step_clean(20).unwrap();
    }
    let at = |s: &Store| s.index.read().levels.live.iter().map(|r| r.above.to_vec()).max().unwrap();
    let far = at(&s);
    drop(s);
    let s = open(Arc::new(disk)).unwrap();
    assert_eq!(at(&s), far);
    s.want_collapse();
    // Another begins from the start; its first step ends before that.
    for _ in 0..2 {
        s.step_clean(30).unwrap();
    }
    let again = at(&s);
    assert!(again >= far, "what had been rewritten counts again");
    assert!(versions(&s) <= 2);
}

fn key_of(name: &str) -> Key {
    Key::new(FS, ObjectId(2), Kind::DIRENT, name.as_bytes())
}

#[test]
fn a_label_whose_end_is_not_durable_still_shows_its_moment_after_a_crash() {
    let base = SimDisk::new(1 << 30);
    create(&RawVolume::new(Arc::new(base.clone())));
    let disk = base.fork();
    disk.record();
    let s = open(Arc::new(disk.clone())).unwrap();
    let at = put(&s, "name");
    let mut value = Vec::new();
    crate::codec::put_varint(&mut value, at.0);
    let mut tx = s.begin(FS, 20).unwrap();
    tx.put(ObjectId(0), Kind::LABEL, b"label", &value);
    tx.delete(ObjectId(2), Kind::DIRENT, b"name");
    tx.commit().unwrap();
    s.checkpoint().unwrap();
    s.retain(FS, 100, |r| r.with_grid(Grid::default()).advanced(Tid(100))).unwrap();
    s.sync().unwrap();
    let mut tx = s.begin(FS, 100).unwrap();
    tx.delete(ObjectId(0), Kind::LABEL, b"label");
    tx.commit().unwrap();
    s.want_collapse();
    for _ in 0..2 {
        s.step_clean(100).unwrap();
    }
    let crashed = SimDisk::crashed(&base, &disk, disk.events(), &mut |_| false);
    let s = open(Arc::new(crashed)).unwrap();
    if s.retention(FS).unwrap().round(at) == Some(at) {
        assert!(s.get(&key_of("name"), at).unwrap().is_some(), "it is said to be kept");
    }
}

#[test]
fn what_a_collapse_drops_after_a_segment_was_moved_does_not_come_back_from_it() {
    let disk = SimDisk::new(1 << 30);
    create(&RawVolume::new(Arc::new(disk.clone())));
    let s = open(Arc::new(disk.clone())).unwrap();
    let roll = |s: &Store| s.next_segment(&mut s.log.tail(), crate::store::SEGMENT_MIN).unwrap();
    put(&s, "name");
    roll(&s);
    let mut tx = s.begin(FS, 20).unwrap();
    tx.delete(ObjectId(2), Kind::DIRENT, b"name");
    tx.commit().unwrap();
    put(&s, "other");
    roll(&s);
    put(&s, "third");
    s.checkpoint().unwrap();
    s.retain(FS, 100, |r| r.with_grid(Grid::default())).unwrap();
    s.want_collapse();
    s.step_clean(100).unwrap();
    // A pass has begun. Whoever makes room on a full volume moves a segment meanwhile.
    {
        let mut state = s.maintenance.lock();
        assert!(state.pass.is_some());
        clean_one(&s, &mut state, 0).unwrap();
    }
    s.step_clean(100).unwrap();
    {
        let mut state = s.maintenance.lock();
        assert!(state.pass.is_none());
        clean_one(&s, &mut state, 1).unwrap();
    }
    assert!(!has(&s, "name"));
    s.close().unwrap();
    drop(s);
    let options = OpenOptions { read_only: true, index: crate::IndexFrom::Segments, ..opts() };
    let rebuilt = Store::open(Arc::new(RawVolume::new(Arc::new(disk))), &options).unwrap();
    assert!(has(&rebuilt, "other"));
    assert!(!has(&rebuilt, "name"), "it was deleted");
}

#[test]
fn whoever_is_told_how_far_the_cleaner_is_holds_nobody_up() {
    let disk = SimDisk::new(1 << 30);
    create(&RawVolume::new(Arc::new(disk.clone())));
    let s = open(Arc::new(disk)).unwrap();
    for round in 0..2 {
        put_large(&s, 100, 400, round);
    }
    s.retain(FS, 10, |r| r.with_grid(Grid::default())).unwrap();
    let mut told = 0;
    s.clean(20, &mut |_| {
        told += 1;
        assert!(s.maintenance.try_lock().is_some(), "upkeep could go on meanwhile");
    })
    .unwrap();
    assert!(told > 1);
}

#[test]
fn segments_begun_during_a_collapse_are_not_taken_for_waste() {
    let disk = SimDisk::new(1 << 30);
    create(&RawVolume::new(Arc::new(disk.clone())));
    let s = open(Arc::new(disk)).unwrap();
    for round in 0..2 {
        put_large(&s, 100, 400, round);
    }
    s.checkpoint().unwrap();
    s.retain(FS, 10, |r| r.with_grid(Grid::default())).unwrap();
    s.want_collapse();
    s.step_clean(20).unwrap();
    put_large(&s, 2000, 600, 7);
    s.checkpoint().unwrap();
    while s.maintenance.lock().pass.is_some() {
        s.step_clean(20).unwrap();
    }
    let fresh = s.keep(20, None).unwrap().starts.segment_of(s.tid());
    let segments = s.segments.lock().clone();
    let n = segments.iter().position(|x| x.at.id == fresh).unwrap();
    let dead: Vec<_> = segments[n - 1..n].iter().map(|x| x.live).collect();
    assert!(dead.iter().all(|live| *live != 0), "all of it is live");
}

#[test]
fn a_name_given_anew_while_its_past_is_being_forgotten_stays() {
    let disk = SimDisk::new(1 << 30);
    create(&RawVolume::new(Arc::new(disk.clone())));
    let s = open(Arc::new(disk)).unwrap();
    let key = Key::new(FS, ObjectId(2), Kind::DIRENT, b"name");
    put(&s, "name");
    let mut tx = s.begin(FS, 10).unwrap();
    tx.delete(ObjectId(2), Kind::DIRENT, b"name");
    tx.commit().unwrap();
    let again = std::sync::atomic::AtomicBool::new(false);
    s.forget(&[], &[key], s.tid(), 20, &mut |_| {
        if !again.swap(true, Ordering::SeqCst) {
            put(&s, "name");
        }
    })
    .unwrap();
    assert!(has(&s, "name"));
    // The same, where the name is in the tables before the collapse begins.
    let mut tx = s.begin(FS, 30).unwrap();
    tx.delete(ObjectId(2), Kind::DIRENT, b"name");
    tx.commit().unwrap();
    let suffix = [&2u64.to_be_bytes()[..], &crate::codec::hash_key(key_of("name").as_bytes()).to_be_bytes()].concat();
    let mut tx = s.begin(FS, 30).unwrap();
    tx.put(ObjectId(0), Kind::FORGET, &suffix, &[]);
    tx.commit().unwrap();
    put(&s, "name");
    s.clean(40, &mut |_| ()).unwrap();
    assert!(has(&s, "name"));
    assert_eq!(s.all_versions(&key_of("name")).unwrap().len(), 1, "what was before is gone");
}

/// Whether bytes are anywhere on a disk, within a page.
fn is_on(disk: &SimDisk, bytes: &[u8]) -> bool {
    disk.written_pages().into_iter().any(|at| {
        let mut page = [0; 4096];
        disk.read_at(&mut page, at).unwrap();
        page.windows(bytes.len()).any(|w| w == bytes)
    })
}

#[test]
fn what_somebody_reads_while_it_is_forgotten_is_overwritten_before_that_is_said_to_be_done() {
    let disk = SimDisk::new(1 << 30);
    create(&RawVolume::new(Arc::new(disk.clone())));
    let s = open(Arc::new(disk.clone())).unwrap();
    let secret = b"correct horse battery staple";
    let mut tx = s.begin(FS, 10).unwrap();
    tx.put(ObjectId(9), Kind::ATTR, b"", secret);
    tx.commit().unwrap();
    let mut tx = s.begin(FS, 10).unwrap();
    tx.delete(ObjectId(9), Kind::ATTR, b"");
    tx.commit().unwrap();
    s.checkpoint().unwrap();
    let read = s.index.read().levels.clone();
    let reader = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        drop(read);
    });
    s.forget(&[(FS, ObjectId(9))], &[], s.tid(), 20, &mut |_| ()).unwrap();
    assert!(!is_on(&disk, secret));
    reader.join().unwrap();
}

#[test]
fn a_cleaning_whose_manifest_fails_gives_the_space_back_later() {
    let base = SimDisk::new(1 << 30);
    create(&RawVolume::new(Arc::new(base.clone())));
    let d = Hooked::new(base, false, false);
    let s = open(d.clone()).unwrap();
    for round in 0..2 {
        put_large(&s, 100, 200, round);
    }
    s.retain(FS, 10, |r| r.with_grid(Grid::default())).unwrap();
    s.next_segment(&mut s.log.tail(), crate::store::SEGMENT_MIN).unwrap();
    s.checkpoint().unwrap();
    s.advance_retentions(20).unwrap();
    let mut state = s.maintenance.lock();
    s.begin_pass(&mut state, 20).unwrap();
    while s.step_pass(&mut state).unwrap().is_some() {}
    s.bury(&mut state).unwrap();
    let victim = s.segments.lock()[0];
    let before = s.usage().unwrap().used;
    // The pack is flushed, and its manifest is not.
    d.fail_flush_in.store(2, Ordering::SeqCst);
    clean_one(&s, &mut state, 0).unwrap_err();
    drop(state);
    put(&s, "more");
    s.checkpoint().unwrap();
    while s.step().unwrap() == Progress::Worked {}
    let after = s.usage().unwrap().used;
    assert!(after + victim.end / 3 < before, "{} MiB, then {} MiB", before >> 20, after >> 20);
}

#[test]
fn a_collapse_that_fails_keeps_neither_the_cleaner_away_nor_the_disk_busy() {
    let base = SimDisk::new(1 << 30);
    create(&RawVolume::new(Arc::new(base.clone())));
    let d = Hooked::new(base, false, false);
    let s = open(d.clone()).unwrap();
    put(&s, "name");
    s.retain(FS, 10, |r| r.with_grid(Grid::default())).unwrap();
    s.checkpoint().unwrap();
    let mut now = 10;
    s.step_clean(now).unwrap();
    now += 31_000_000_000;
    // The first look, which fails at its first table.
    s.step_clean(now).unwrap();
    assert!(s.maintenance.lock().pass.is_some());
    d.fail_flush_in.store(1, Ordering::SeqCst);
    s.step_clean(now).unwrap_err();
    now += 1_000_000_000;
    s.step_clean(now).unwrap();
    assert!(s.maintenance.lock().pass.is_none(), "it is not tried again at once");
    now += 31_000_000_000;
    s.step_clean(now).unwrap();
    assert!(s.maintenance.lock().pass.is_some());
}

#[test]
fn tombstones_that_are_stuck_keep_the_cleaner_from_nothing_else() {
    let disk = SimDisk::new(1 << 30);
    create(&RawVolume::new(Arc::new(disk.clone())));
    let s = open(Arc::new(disk)).unwrap();
    for round in 0..2 {
        put_large(&s, 100, 200, round);
    }
    s.checkpoint().unwrap();
    let mut state = s.maintenance.lock();
    let mut segments = s.segments.lock();
    assert!(segments.len() > 1);
    let passes = state.passes;
    // All have been swept, and the oldest is mere waste since.
    for x in segments.iter_mut() {
        state.cleaned.insert(x.at.id, passes);
    }
    segments[0].live = 0;
    segments[0].tombstones = s.volumes.usage().unwrap().0;
    drop(segments);
    assert!(s.clean_batch(&mut state, crate::clean::Effort::Full).unwrap().is_some());
}

#[test]
fn what_a_pass_finds_needed_of_the_victims_is_what_a_look_finds() {
    let disk = SimDisk::new(1 << 30);
    create(&RawVolume::new(Arc::new(disk.clone())));
    let s = open(Arc::new(disk)).unwrap();
    s.retain(FS, 10, |r| r.with_grid(Grid::default())).unwrap();
    let mut rng = fastrand::Rng::with_seed(9);
    let mut write = |n: u64| {
        for _ in 0..n {
            let mut tx = s.begin(FS, 10).unwrap();
            let bytes: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(20_000).collect();
            tx.write(ObjectId(9), rng.u64(..4000) * 4096, &bytes).unwrap();
            tx.put(ObjectId(100 + rng.u64(..50)), Kind::ATTR, b"", &bytes[..500]);
            tx.commit().unwrap();
        }
    };
    let pass = |now| {
        s.advance_retentions(now).unwrap();
        let mut state = s.maintenance.lock();
        s.whole_pass(&mut state, now, &mut |_| ()).unwrap();
        state
    };
    write(1500);
    drop(pass(1_000_000));
    write(200);
    let mut state = pass(2_000_000);
    let found = state.batch.take().expect("a pass chooses victims where there is waste").needed;
    assert!(found.blocks.len() > 20);
    let mut again = found.with_nothing_known();
    s.mark(&mut state, &mut again).unwrap();
    assert!(found.is(&again));
}

#[test]
fn a_damaged_segment_stays_as_it_is_and_the_others_are_cleaned() {
    let disk = SimDisk::new(1 << 30);
    create(&RawVolume::new(Arc::new(disk.clone())));
    let s = open(Arc::new(disk.clone())).unwrap();
    for round in 0..2 {
        // Each in a segment of its own.
        for segment in 0..4 {
            put_large(&s, 100 + 20 * segment, 20, round);
            s.next_segment(&mut s.log.tail(), crate::store::SEGMENT_MIN).unwrap();
        }
    }
    s.checkpoint().unwrap();
    let second = s.segments.lock()[1];
    disk.flip(second.at.start + segment::HEADER + 20, 3);
    s.retain(FS, 10, |r| r.with_grid(Grid::default())).unwrap();
    let before = s.usage().unwrap().used;
    s.clean(20, &mut |_| ()).unwrap();
    let ids: Vec<u64> = s.segments.lock().iter().map(|s| s.at.id).collect();
    assert!(ids.contains(&second.at.id), "what is damaged is left for somebody to heal");
    let freed = before - s.usage().unwrap().used;
    assert!(freed > 3 * 20 * 60_000 * 9 / 10, "{freed} bytes came back");
    let key = Key::new(FS, ObjectId(105), Kind::ATTR, b"");
    let found = s.forget(&[(FS, ObjectId(9))], &[key], s.tid(), 30, &mut |_| ());
    assert!(matches!(found, Err(crate::Error::Unreached { .. })), "it says that it could not look everywhere");
}

/// Cleans the segment at a place in the list.
fn clean_one(s: &Store, state: &mut crate::maintain::State, i: usize) -> crate::Result<u64> {
    s.trim_segments()?;
    let segments = s.segments.lock().clone();
    let mut needed = crate::mark::Needed::of(&[&segments[i]], &segments, s.forgotten()?);
    s.mark(state, &mut needed)?;
    s.copy_segments(state, &needed, &segments, &[i])
}

/// What the cleaner has dropped is passed over without being counted as read: the thread that is ahead ended before a step did, and
/// all from there on was called damaged.
#[test]
fn a_scrub_whose_steps_end_in_a_cleaned_segment_calls_nothing_damaged() {
    #[derive(Debug)]
    struct Threads;
    impl Workers for Threads {
        fn beside(&self, jobs: Vec<Job<'_>>, here: &mut dyn FnMut()) {
            std::thread::scope(|scope| {
                jobs.into_iter().for_each(|job| drop(scope.spawn(job)));
                here();
            });
        }
    }
    let disk = Arc::new(SimDisk::new(1 << 30));
    create(&RawVolume::new(disk.clone()));
    let options = OpenOptions { workers: Some(Arc::new(Threads)), ..opts() };
    let s = Store::open(Arc::new(RawVolume::new(disk)), &options).unwrap();
    s.retain(FS, 10, |r| r.with_grid(Grid::default())).unwrap();
    let mut rng = fastrand::Rng::with_seed(3);
    let mut data = vec![0; 60_000];
    let mut n = 0;
    while s.log.tail().room() >= 4 << 20 {
        rng.fill(&mut data);
        let mut tx = s.begin(FS, 100).unwrap();
        tx.put(ObjectId(10 + n), Kind::ATTR, &[], b"attributes");
        tx.write(ObjectId(10 + n), 0, &data).unwrap();
        tx.commit().unwrap();
        n += 1;
    }
    for gone in (10..10 + n).step_by(2).map(ObjectId) {
        let mut tx = s.begin(FS, 10_000).unwrap();
        tx.punch(gone, 0, u64::MAX).unwrap();
        tx.delete(gone, Kind::ATTR, &[]);
        tx.commit().unwrap();
    }
    s.next_segment(&mut s.log.tail(), crate::store::SEGMENT_MIN).unwrap();
    s.clean(1_000_000, &mut |_| ()).unwrap();
    clean_one(&s, &mut s.maintenance.lock(), 0).unwrap();
    let (id, end) = s.segments.lock().first().map(|s| (s.at.id, s.end)).unwrap();
    let kept = s.regions.read()[&id].bytes_kept();
    assert!(kept > 5 << 20 && kept < end * 2 / 3, "{kept} of {end}");
    for budget in [4 << 20, 5 << 20, 1 << 30] {
        let mut report = s.begin_scrub(7, false).unwrap();
        while s.step_scrub(&mut report, budget).unwrap() {}
        assert_eq!(report.damages, [], "in steps of {budget}");
    }
}

/// What a cleaning had dropped of a version that no moment shows, and a rebuild derived again, the next cleaning kept as zeroes, and
/// they were called damaged.
#[test]
fn what_was_dropped_of_versions_that_a_rebuild_derives_again_is_not_called_damaged() {
    for forgets in [false, true] {
        let disk = Arc::new(SimDisk::new(1 << 30));
        create(&RawVolume::new(disk.clone()));
        let s = open(disk.clone()).unwrap();
        s.retain(FS, 10, |r| r.with_grid(Grid::default())).unwrap();
        let (gone, heir) = (ObjectId(10), ObjectId(11));
        let mut data = vec![0; 64 << 10];
        fastrand::Rng::with_seed(3).fill(&mut data);
        let mut tx = s.begin(FS, 100).unwrap();
        tx.put(gone, Kind::ATTR, &[], b"attributes");
        tx.put(heir, Kind::ATTR, &[], b"attributes");
        tx.write(gone, 0, &data).unwrap();
        tx.commit().unwrap();
        let shared = [0, 60 << 10];
        for (i, at) in shared.into_iter().enumerate() {
            let pieces = s.map(FS, gone, at, 4096, Tid::MAX).unwrap();
            let mut tx = s.begin(FS, 200).unwrap();
            tx.share(heir, i as u64 * 4096, &pieces).unwrap();
            tx.commit().unwrap();
        }
        s.next_segment(&mut s.log.tail(), crate::store::SEGMENT_MIN).unwrap();
        s.checkpoint().unwrap();
        match forgets {
            true => s.forget(&[(FS, gone)], &[], s.tid(), 500, &mut |_| ()).unwrap(),
            false => {
                let mut tx = s.begin(FS, 300).unwrap();
                tx.punch(gone, 0, u64::MAX).unwrap();
                tx.delete(gone, Kind::ATTR, &[]);
                tx.commit().unwrap();
                s.clean(500, &mut |_| ()).unwrap();
                clean_one(&s, &mut s.maintenance.lock(), 0).unwrap();
            }
        }
        s.close().unwrap();
        drop(s);
        for round in 0..3 {
            let options = OpenOptions { index: IndexFrom::Segments, ..opts() };
            let s = Store::open(Arc::new(RawVolume::new(disk.clone())), &options).unwrap();
            s.checkpoint().unwrap();
            let is_sound = |when: &str| {
                let mut buf = vec![0; 8192];
                s.read(&s.map(FS, heir, 0, 8192, Tid::MAX).unwrap(), &mut buf).unwrap();
                assert!(shared.iter().zip(buf.chunks(4096)).all(|(at, found)| *found == data[*at as usize..][..4096]));
                let found = s.check(&mut |_, _| ()).all();
                assert_eq!(found, Vec::<String>::new(), "forgets: {forgets}, round {round}, {when}");
                let mut report = s.begin_scrub(7, false).unwrap();
                while s.step_scrub(&mut report, 64 << 20).unwrap() {}
                assert_eq!(report.damages.len(), 0, "forgets: {forgets}, round {round}, {when}");
            };
            is_sound("after a rebuild");
            let sealed = s.segments.lock().len() - 1;
            for i in 0..sealed {
                clean_one(&s, &mut s.maintenance.lock(), i).unwrap();
            }
            is_sound("after a cleaning");
            s.close().unwrap();
        }
    }
}

#[test]
fn what_is_forgotten_is_overwritten_where_it_was_before_it_was_moved_too() {
    for image in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::File::create(&path).unwrap().set_len(256 << 20).unwrap();
        let sim = SimDisk::new(256 << 20);
        let disk = || -> Arc<dyn Disk> {
            match image {
                true => Arc::new(crate::volume::FileDisk::open(&path, true).unwrap()),
                // As a device does, it keeps what it is told to discard.
                false => Hooked::new(sim.clone(), false, false),
            }
        };
        create(&RawVolume::new(disk()));
        let s = Store::open(Arc::new(RawVolume::new(disk())), &opts()).unwrap();
        let secret = b"the secret that was moved once, and then given up";
        // At many places: some of where it was will have been given to others.
        let mut rng = fastrand::Rng::with_seed(1);
        for at in (0..3u64 << 20).step_by(64 << 10) {
            let mut bytes: Vec<u8> = (0..64 << 10).map(|_| rng.u8(..)).collect();
            bytes[1000..1000 + secret.len()].copy_from_slice(secret);
            let mut tx = s.begin(FS, 10).unwrap();
            tx.write(ObjectId(9), at, &bytes).unwrap();
            tx.commit().unwrap();
        }
        s.next_segment(&mut s.log.tail(), crate::store::SEGMENT_MIN).unwrap();
        s.checkpoint().unwrap();
        clean_one(&s, &mut s.maintenance.lock(), 0).unwrap();
        let holds = || {
            let (disk, mut n, mut buf) = (disk(), 0, vec![0; 1 << 20]);
            for at in (0..256u64 << 20).step_by(1 << 20) {
                disk.read_at(&mut buf, at).unwrap();
                n += buf.windows(secret.len()).filter(|w| w == secret).count();
            }
            n
        };
        assert!(holds() >= 1);
        s.forget(&[(FS, ObjectId(9))], &[], s.tid(), 20, &mut |_| ()).unwrap();
        assert_eq!(holds(), 0);
    }
}

/// Each mount and unmount of a store on two volumes left two segments with nothing in them.
#[test]
fn segments_to_which_nothing_was_written_do_not_pile_up() {
    let disks = [SimDisk::new(1 << 30), SimDisk::new(1 << 30)];
    let volumes = || -> Vec<Arc<dyn Volume>> {
        disks.iter().map(|d| Arc::new(RawVolume::new(Arc::new(d.clone()))) as Arc<dyn Volume>).collect()
    };
    Store::create(&*volumes()[0], &CreateOptions { now_ns: 1, seed: Some([6; 32]), ..CreateOptions::default() })
        .unwrap();
    let s = Store::open_volumes(&volumes()[..1], &OpenOptions::default()).unwrap();
    s.add_volume(volumes()[1].clone(), 0).unwrap();
    s.set_copies(Copies::Index).unwrap();
    drop(s);
    let put = |s: &Store, n: u64| {
        let mut tx = s.begin(FS, 100 + n).unwrap();
        tx.write(ObjectId(100 + n), 0, &n.to_le_bytes()).unwrap();
        tx.commit().unwrap();
    };
    let mut most = 0;
    for n in 0..60 {
        let s = Store::open_volumes(&volumes(), &OpenOptions::default()).unwrap();
        while s.step_copies(u64::MAX).unwrap() == Progress::Worked {}
        if n % 20 == 7 {
            put(&s, n);
        }
        s.close().unwrap();
        most = most.max(s.segments.lock().len());
        drop(s);
        if n % 20 == 10 {
            // The power fails.
            let s = Store::open_volumes(&volumes(), &OpenOptions::default()).unwrap();
            put(&s, n);
            s.sync().unwrap();
        }
    }
    assert!(most < 30, "{most}");
    for index in [IndexFrom::Tables, IndexFrom::Segments] {
        let s = Store::open_volumes(&volumes(), &OpenOptions { index, ..OpenOptions::default() }).unwrap();
        for n in (0..60).filter(|n| [7, 10].contains(&(n % 20))) {
            let mut found = [0; 8];
            s.read(&s.map(FS, ObjectId(100 + n), 0, 8, Tid::MAX).unwrap(), &mut found).unwrap();
            assert_eq!(found, n.to_le_bytes());
        }
        assert_eq!(s.check(&mut |_, _| ()).all(), Vec::<String>::new());
    }
}

/// A write had failed for want of room; what was deleted right after gave way for nobody for ten seconds.
#[test]
fn what_may_give_way_since_a_write_failed_gives_way_for_the_next() {
    let size = 96 << 20;
    let volume: Arc<dyn Volume> = Arc::new(RawVolume::new(Arc::new(SimDisk::new(size))));
    Store::create(&*volume, &CreateOptions { now_ns: 1, seed: Some([5; 32]), ..CreateOptions::default() }).unwrap();
    let s = Arc::new(Store::open(volume, &OpenOptions::default()).unwrap());
    let bytes: Vec<u8> = {
        let mut rng = fastrand::Rng::with_seed(1);
        std::iter::repeat_with(|| rng.u8(..)).take(1 << 20).collect()
    };
    let clock = std::cell::Cell::new(1000);
    let now = || {
        clock.set(clock.get() + 1000);
        clock.get()
    };
    let write = |object: u64, at: u64| {
        s.admit(bytes.len() as u64).and_then(|()| {
            let mut tx = s.begin(FS, now())?;
            let live = tx.write(ObjectId(object), at, &bytes)?;
            tx.count(0, live);
            tx.commit()
        })
    };
    // Until several in a row are refused.
    let fill = |object: u64| {
        let (mut n, mut refused) = (0, 0);
        while refused < 4 {
            match write(object, n << 20) {
                Ok(_) => (n, refused) = (n + 1, 0),
                Err(e) => {
                    assert!(matches!(e, Error::NoSpace { .. }), "{e}");
                    refused += 1;
                }
            }
        }
        n
    };
    let n = fill(10);
    assert!(n > 40, "{n}");
    // All is kept: nothing gives way. Then the grid lets it.
    let mut tx = s.begin(FS, now()).unwrap();
    let freed = tx.punch(ObjectId(10), 0, n << 20).unwrap();
    tx.count(0, -freed.abs());
    tx.commit().unwrap();
    assert!(matches!(write(11, 0), Err(Error::NoSpace { .. })));
    s.retain(FS, now(), |r| r.with_grid(Grid { steps: Vec::new() })).unwrap();
    write(11, 0).unwrap();
    // And once it does, what is deleted.
    let n = fill(12);
    let mut tx = s.begin(FS, now()).unwrap();
    let freed = tx.punch(ObjectId(12), 0, n << 20).unwrap();
    tx.count(0, -freed.abs());
    tx.commit().unwrap();
    write(13, 0).unwrap();
}
