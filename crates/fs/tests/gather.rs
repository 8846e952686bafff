//! Files that were written here and there come together when they are read.

mod common;

use common::{SECOND, World};
use darner_fs::{MAIN, Tid};
use darner_store::{Piece, strays};

const BLOCK: usize = 4096;
const LEN: usize = 1 << 20;

struct Scattered {
    world: World,
    content: Vec<u8>,
    rng: fastrand::Rng,
}

impl Scattered {
    fn new() -> Scattered {
        let mut s = Scattered::whole();
        (0..600).for_each(|_| s.overwrite());
        s
    }

    fn whole() -> Scattered {
        let mut world = World::new();
        world.line("t=1 create f");
        let mut s = Scattered { world, content: Vec::new(), rng: fastrand::Rng::with_seed(1) };
        let data: Vec<u8> = (0..LEN).map(|_| s.rng.u8(..)).collect();
        s.write(0, &data);
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

    fn map(&self) -> Vec<Piece> {
        let object = self.world.node("f").unwrap().inode().object;
        self.world.fs.store().map(MAIN, object, 0, LEN as u64, Tid::MAX).unwrap()
    }

    /// In how many pieces the file is.
    fn pieces(&self) -> usize {
        self.map().len()
    }

    /// Gathers; returns how many bytes were written anew.
    fn gathered(&mut self) -> u64 {
        let before = self.world.fs.store().tid();
        self.gather();
        self.map().iter().filter(|p| p.tid() > Some(before)).map(|p| p.len).sum()
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

#[test]
fn of_what_was_overwritten_here_and_there_the_strays_alone_are_written_anew() {
    let mut s = Scattered::whole();
    let first = s.world.fs.store().tid();
    (0..60).for_each(|_| s.overwrite());
    let strays_of = |s: &Scattered| s.map().iter().filter(|p| p.tid() > Some(first)).map(|p| p.len).sum::<u64>();
    let overwritten = strays_of(&s);
    let anew = s.gathered();
    assert!(anew > overwritten / 2 && anew <= overwritten, "{anew} of {overwritten}");
    assert_eq!(strays_of(&s), overwritten, "what was in order stays where it was");
    assert!(!strays(&s.map()).contains(&true));
    assert!(s.read("f") == s.content);
    assert_eq!(s.gathered(), 0);
}

#[test]
fn a_file_that_is_overwritten_and_read_every_night_is_not_rewritten_every_night() {
    let mut s = Scattered::whole();
    let (mut written, mut anew) = (0, 0);
    for _ in 0..100 {
        (0..20).for_each(|_| s.overwrite());
        written += 20 * BLOCK as u64;
        anew += s.gathered();
        assert!(s.read("f") == s.content);
    }
    assert!(anew > written / 2 && anew < 3 * written, "{anew} for {written}");
}
