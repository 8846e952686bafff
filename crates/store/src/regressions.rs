//! Bugs that a review found, each by its story; they need the store's inside or a disk with a hook.

use crate::volume::sim::SimDisk;
use crate::volume::{DirVolume, Disk, RawVolume, Volume};
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
    OpenOptions { memory: 16 << 20, ..Default::default() }
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
        let r = s.create_region(16 << 10).unwrap().place();
        if r.start > b.start {
            s.volume.remove(r).unwrap();
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
    assert!(r.findings.is_empty(), "{:?}", r.findings);
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
