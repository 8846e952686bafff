//! A volume that is full again and again: deleting, truncating, retaining and unmounting always work, nothing that was
//! written is lost, and space comes back without a repair.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::{SECOND, START};
use darner_fs::{Caller, FallocateMode, Fs, FsError, Limits, MAIN, Node, SetAttr, retain::parse_grid};
use darner_store::volume::RawVolume;
use darner_store::volume::sim::SimDisk;
use darner_store::{CreateOptions, OpenOptions, Store, WhenFull};

const SIZE: u64 = 160 << 20;

struct Full {
    disk: SimDisk,
    fs: Fs,
    rng: fastrand::Rng,
    now: u64,
    /// name → seed and length of its bytes.
    files: BTreeMap<String, (u64, usize)>,
    made: u64,
}

fn open(disk: &SimDisk) -> Arc<Store> {
    let options = OpenOptions::small();
    Arc::new(Store::open(Arc::new(RawVolume::new(Arc::new(disk.clone()))), &options).unwrap())
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut data);
    data
}

impl Full {
    fn new(seed: u64) -> Full {
        let disk = SimDisk::new(SIZE);
        let options = CreateOptions { now_ns: START, seed: Some([7; 32]), ..CreateOptions::default() };
        Store::create(&RawVolume::new(Arc::new(disk.clone())), &options).unwrap();
        let fs = Fs::create(open(&disk), 0, 0, 0o755, START + 1).unwrap();
        let rng = fastrand::Rng::with_seed(seed);
        Full { disk, fs, rng, now: START + SECOND, files: BTreeMap::new(), made: 0 }
    }

    fn node(&self, name: &str) -> Node {
        self.fs.lookup(self.fs.root(), name.as_bytes(), self.now).unwrap().node
    }

    /// What the daemon's upkeep does.
    fn keep_up(&self) {
        while self.fs.store().step().unwrap() == darner_store::Progress::Worked {}
        while self.fs.store().step_clean(self.now).unwrap() == darner_store::Progress::Worked {}
    }

    fn tick(&mut self) -> u64 {
        self.now += SECOND / 10;
        self.now
    }

    fn write_one(&mut self) -> Result<(), FsError> {
        let (now, seed) = (self.tick(), self.rng.u64(..));
        let len = if self.rng.bool() { self.rng.usize(0..8000) } else { self.rng.usize(0..1 << 20) };
        let caller = Caller::default();
        self.made += 1;
        let name = format!("f{}", self.made);
        let entry = self.fs.create_file(&caller, now, self.fs.root(), name.as_bytes(), 0o644, true)?.entry;
        self.files.insert(name.clone(), (seed, 0));
        let data = bytes(seed, len);
        let mut done = 0;
        while done < len {
            done += self.fs.write(now, entry.node, Some(done as u64), &data[done..], false)?.len;
            self.files.insert(name.clone(), (seed, done));
        }
        Ok(())
    }

    fn fill(&mut self) {
        for _ in 0..10_000 {
            match self.write_one() {
                Ok(()) => {}
                Err(e) => {
                    assert_eq!(e.errno(), libc::ENOSPC, "{e}");
                    return;
                }
            }
        }
        panic!("it is never full");
    }

    fn delete_some(&mut self) {
        let share = self.rng.f64();
        let names: Vec<String> = self.files.keys().cloned().collect();
        for name in names {
            let now = self.tick();
            if self.rng.f64() > share {
                continue;
            }
            let node = self.node(&name);
            if self.rng.u8(0..4) == 0 {
                let size = self.files[&name].1 / 2;
                let set = SetAttr { size: Some(size as u64), ..SetAttr::default() };
                self.fs.setattr(now, node, &set).unwrap_or_else(|e| panic!("truncate: {e}"));
                self.files.get_mut(&name).unwrap().1 = size;
                continue;
            }
            self.fs.unlink(now, self.fs.root(), name.as_bytes()).unwrap_or_else(|e| panic!("unlink: {e}"));
            self.fs.forget(now, &[node.inode()]).unwrap_or_else(|e| panic!("forget: {e}"));
            self.files.remove(&name);
        }
    }

    fn remount(&mut self) {
        match self.rng.bool() {
            true => self.fs.store().close().unwrap(),
            // As kill -9 leaves it.
            false => drop(self.fs.sync().unwrap()),
        }
        self.fs = Fs::open(open(&self.disk)).unwrap();
        self.fs.reap_orphans(self.now).unwrap();
    }

    fn verify(&self) {
        self.fs.sync().unwrap();
        for (name, (seed, len)) in &self.files {
            let found = self.fs.read(self.node(name), 0, len + 10).unwrap();
            assert!(found == bytes(*seed, 1 << 20)[..*len], "{name}");
        }
        assert_eq!(self.fs.check().unwrap().findings, Vec::<String>::new());
        assert_eq!(self.fs.store().check(&mut |_, _| ()).all(), Vec::<String>::new());
    }

    fn retain(&mut self, grid: &str) {
        let now = self.tick();
        self.fs.retain(MAIN, Some(parse_grid(grid).unwrap()), None, now).unwrap_or_else(|e| panic!("retain: {e}"));
    }
}

#[test]
fn a_volume_that_is_full_again_and_again_loses_nothing_and_needs_no_repair() {
    let rounds: u64 = std::env::var("DARNER_FULL_ROUNDS").ok().and_then(|v| v.parse().ok()).unwrap_or(12);
    let mut full = Full::new(1);
    let mut filled = 0;
    for round in 0..rounds {
        let grid = ["none", "none", "1s:20s", "all:5s 10s:1m"][full.rng.usize(..4)];
        full.retain(grid);
        let before = full.files.len();
        full.fill();
        filled += full.files.len() - before;
        full.delete_some();
        full.now += full.rng.u64(0..200) * SECOND;
        full.keep_up();
        if full.rng.u8(0..3) == 0 {
            full.remount();
        }
        if round % 4 == 3 {
            full.verify();
        }
    }
    println!("{filled} files in {rounds} rounds");
    assert!(filled as u64 > 4 * rounds, "space came back: {filled} files in {rounds} rounds");
}

#[test]
fn with_everything_kept_a_full_volume_refuses_writes_and_a_grid_gives_its_space_back() {
    let mut full = Full::new(2);
    full.fill();
    full.delete_some();
    full.fill();
    full.verify();
    let node = full.node(&full.files.keys().next().unwrap().clone());
    let refused = full.fs.write(full.now, node, Some(0), &bytes(1, 1 << 20), false);
    assert_eq!(refused.map_err(|e| e.errno()).map(|_| ()), Err(libc::ENOSPC));
    let names: Vec<String> = full.files.keys().cloned().collect();
    for name in names {
        let (now, node) = (full.tick(), full.node(&name));
        full.fs.unlink(now, full.fs.root(), name.as_bytes()).unwrap();
        full.fs.forget(now, &[node.inode()]).unwrap();
    }
    full.files.clear();
    let used = full.fs.store().usage().unwrap().used;
    full.retain("none");
    full.now += SECOND;
    full.fs.store().clean(full.now, &mut |_| ()).unwrap();
    let after = full.fs.store().usage().unwrap().used;
    assert!(after < used / 10, "{used} bytes in use before, {after} after");
    full.fill();
    full.verify();
}

#[test]
fn where_the_oldest_history_may_give_way_a_full_volume_goes_on() {
    let mut full = Full::new(3);
    full.fs.retain(MAIN, None, Some(WhenFull::CollapseOldest), full.now).unwrap();
    let first = full.now;
    for _ in 0..1200 {
        full.write_one().unwrap_or_else(|e| panic!("it is never full: {e}"));
        while full.files.len() > 60 {
            let (name, _) = full.files.iter().next().map(|(n, f)| (n.clone(), *f)).unwrap();
            let (now, node) = (full.tick(), full.node(&name));
            full.fs.unlink(now, full.fs.root(), name.as_bytes()).unwrap();
            full.fs.forget(now, &[node.inode()]).unwrap();
            full.files.remove(&name);
        }
        full.keep_up();
    }
    full.verify();
    let retention = full.fs.retention(MAIN).unwrap();
    assert_eq!(retention.round(darner_fs::Tid(first)), None, "the oldest is gone");
    let recent = darner_fs::Tid(full.now - 5 * SECOND);
    assert_eq!(retention.round(recent), Some(recent), "the newest is exact");
}

#[test]
fn what_is_let_go_of_while_room_is_looked_for_in_vain_is_found_by_the_next_look() {
    let mut full = Full::new(4);
    full.retain("none");
    full.fill();
    for round in 0..40 {
        // So that the look for room is a thorough one.
        full.now += 20 * SECOND;
        let (now, mut gone, mut bytes_gone) = (full.now, Vec::new(), 0);
        while bytes_gone < 12 << 20 {
            let (name, (_, len)) = full.files.pop_last().unwrap();
            gone.push(full.node(&name).inode());
            full.fs.unlink(now, full.fs.root(), name.as_bytes()).unwrap();
            bytes_gone += len;
        }
        let (name, node) = full.files.keys().next().map(|name| (name.clone(), full.node(name))).unwrap();
        let data = bytes(round, 1 << 20);
        let write = |now| full.fs.write(now, node, Some(0), &data, false).map(drop).map_err(|e| e.errno());
        let delay = Duration::from_micros(round * 100);
        std::thread::scope(|s| {
            let other = s.spawn(|| {
                std::thread::sleep(delay);
                full.fs.forget(now + 1000, &gone).unwrap();
                let set = SetAttr { mode: Some(0o600), ..SetAttr::default() };
                full.fs.setattr(now + 2000, node, &set).unwrap();
            });
            let _ = write(now + 3000);
            other.join().unwrap();
        });
        assert_eq!(write(now + 4000), Ok(()), "round {round}");
        full.files.insert(name, (round, data.len()));
        full.fill();
    }
    full.verify();
}

#[test]
fn what_could_never_be_written_is_not_allocated() {
    let mut full = Full::new(5);
    full.write_one().unwrap();
    let node = full.node("f1");
    let allocate = |full: &Full, node, offset, len| {
        let mode = FallocateMode::Allocate { keep_size: false };
        full.fs.fallocate(full.now, node, offset, len, mode).map_err(|e| e.errno())
    };
    assert_eq!(allocate(&full, node, 0, 10 << 30), Err(libc::ENOSPC));
    let free = full.fs.store().usage().unwrap().free;
    assert_eq!(allocate(&full, node, 0, free + (2 << 20)), Err(libc::ENOSPC));
    assert_eq!(allocate(&full, node, 10 << 30, free), Ok(()), "where in the file does not matter");
    // Where history may give way, nobody knows how much room there will be.
    full.retain("none");
    assert_eq!(allocate(&full, node, 0, free + (2 << 20)), Ok(()));
    assert_eq!(allocate(&full, node, 0, 10 << 30), Err(libc::ENOSPC));
    let now = full.tick();
    full.fs.create_fileset(&Caller::default(), now, "small").unwrap();
    full.fs.limit_fileset(now, "small", Limits { bytes: 10 << 20, ..Limits::default() }).unwrap();
    let file = full.fs.create_file(&Caller::default(), now, full.node("small"), b"f", 0o644, true).unwrap();
    assert_eq!(allocate(&full, file.entry.node, 0, 50 << 20), Err(libc::EDQUOT));
    assert_eq!(allocate(&full, file.entry.node, 0, 10 << 20), Ok(()));
}
