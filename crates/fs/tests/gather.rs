//! Files that were written here and there come together when they are read.

mod common;

use common::{SECOND, World};
use darner_fs::{MAIN, Tid};

const BLOCK: usize = 4096;
const LEN: usize = 1 << 20;

struct Scattered {
    world: World,
    content: Vec<u8>,
    rng: fastrand::Rng,
}

impl Scattered {
    fn new() -> Scattered {
        let mut world = World::new();
        world.line("t=1 create f");
        let mut s = Scattered { world, content: Vec::new(), rng: fastrand::Rng::with_seed(1) };
        let data: Vec<u8> = (0..LEN).map(|_| s.rng.u8(..)).collect();
        s.write(0, &data);
        for _ in 0..600 {
            s.overwrite();
        }
        s
    }

    fn write(&mut self, offset: usize, data: &[u8]) {
        self.content.resize(self.content.len().max(offset + data.len()), 0);
        self.content[offset..offset + data.len()].copy_from_slice(data);
        self.world.now += SECOND / 1000;
        let node = self.world.node("f").unwrap();
        self.world.fs.write(self.world.now, node, Some(offset as u64), data, false).unwrap();
    }

    fn overwrite(&mut self) {
        let data: Vec<u8> = (0..BLOCK).map(|_| self.rng.u8(..)).collect();
        let at = self.rng.usize(..LEN / BLOCK) * BLOCK;
        self.write(at, &data);
    }

    fn read(&self, path: &str) -> Vec<u8> {
        self.world.fs.read(self.world.node(path).unwrap(), 0, LEN + 1).unwrap()
    }

    /// In how many pieces the file is.
    fn pieces(&self) -> usize {
        let object = self.world.node("f").unwrap().inode().object;
        self.world.fs.store().map(MAIN, object, 0, LEN as u64, Tid::MAX).unwrap().len()
    }

    fn gather(&mut self) {
        self.read("f");
        self.world.now += 10 * SECOND;
        while self.world.fs.gather(self.world.now).unwrap() {}
    }
}

#[test]
fn a_scattered_file_that_is_read_comes_together_and_nothing_visible_changes() {
    let mut s = Scattered::new();
    let (before, attr) = (s.world.fs.store().tid(), s.world.attr("f").unwrap());
    assert!(s.pieces() > 150, "{}", s.pieces());
    s.gather();
    assert!(s.pieces() <= LEN / (64 << 10), "{} pieces", s.pieces());
    assert!(s.read("f") == s.content && s.world.attr("f").unwrap() == attr);
    assert!(s.read(&format!("f@@{before}")) == s.content);
    s.world.check_counts();
    let tid = s.world.fs.store().tid();
    s.gather();
    assert_eq!(s.world.fs.store().tid(), tid, "what lies together is left alone");
    s.world.line("t=100000 retain none");
    s.world.line("clean");
    let used = s.world.fs.store().usage().unwrap().used;
    // (A raw volume begins and ends with 1 MiB of its own.)
    assert!(used < LEN as u64 * 3 / 2 + (2 << 20), "{used}: what it was made of is gone");
    assert!(s.read("f") == s.content);
    s.world.line("remount");
    assert!(s.read("f") == s.content);
}

#[test]
fn what_changes_or_dies_meanwhile_is_left_as_it_is() {
    let mut s = Scattered::new();
    s.read("f");
    let tid = s.world.fs.store().tid();
    while s.world.fs.gather(s.world.now).unwrap() {}
    assert_eq!(s.world.fs.store().tid(), tid, "what has just changed may change again");
    s.read("f");
    s.world.line("hold h f");
    s.world.line("unlink f");
    s.world.line("forget #h");
    s.world.now += 10 * SECOND;
    let tid = s.world.fs.store().tid();
    while s.world.fs.gather(s.world.now).unwrap() {}
    assert_eq!(s.world.fs.store().tid(), tid, "nothing is written to what is dead");
}

#[test]
fn what_was_read_right_after_it_was_written_is_gathered_when_it_is_old_enough() {
    let mut s = Scattered::new();
    s.read("f");
    for _ in 0..100 {
        s.world.fs.gather(s.world.now).unwrap();
    }
    assert!(s.pieces() > 150, "{}", s.pieces());
    s.world.now += 10 * SECOND;
    while s.world.fs.gather(s.world.now).unwrap() {}
    assert!(s.pieces() <= LEN / (64 << 10), "{} pieces", s.pieces());
}

#[test]
fn what_is_written_all_the_time_is_forgotten_until_it_is_read_again() {
    let mut s = Scattered::new();
    s.read("f");
    for _ in 0..4 {
        for _ in 0..100 {
            s.world.fs.gather(s.world.now).unwrap();
        }
        (0..LEN / BLOCK).for_each(|n| s.write(n * BLOCK, &[n as u8; BLOCK]));
    }
    s.world.now += 10 * SECOND;
    let tid = s.world.fs.store().tid();
    while s.world.fs.gather(s.world.now).unwrap() {}
    assert_eq!(s.world.fs.store().tid(), tid);
}
