//! What is left of the past against the plain model (`common/harness.rs`): whatever is retained, labelled, cloned, removed,
//! destroyed, collapsed and cleaned, and however the store is opened, a moment that is shown is what it was.
//!
//! Which moments are visible is computed here once more, from the grids in the order in which they were applied: a moment
//! is visible if each of them kept it then, or a label or a clone holds it. `DARNER_PAST_ROUNDS` sets how many stores live
//! through 1,000 operations each, `DARNER_PAST_SEED` replays one of them.

mod common;
#[path = "common/harness.rs"]
mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::{SECOND, START, new_disk, open_anew, open_store};
use darner_fs::{FilesetId, Fs, Inode, MAIN, Node, ObjectId, Tid};
use darner_store::retain::FOREVER;
use darner_store::volume::sim::SimDisk;
use darner_store::{Grid, Progress, Step, Store};
use harness::{GoneName, Harness, Tree};

const OPS: u64 = 1000;
const HOUR: u64 = 3600 * SECOND;
const DAY: u64 = 24 * HOUR;
const WEEK: u64 = 7 * DAY;
const YEAR: u64 = 365 * DAY;
/// Multiples of a step's quantum that are looked at, of those that could be a moment nearer than the one shown.
const POINTS_MAX: u64 = 300;

#[test]
fn whatever_is_given_up_the_moments_that_are_left_show_what_was() {
    let rounds: u64 = std::env::var("DARNER_PAST_ROUNDS").map_or(6, |rounds| rounds.parse().expect("a number"));
    let seeds = match std::env::var("DARNER_PAST_SEED") {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => (1..rounds).chain([fastrand::u64(..)]).collect::<Vec<u64>>(),
    };
    let mut total = 0;
    for seed in seeds {
        let round = std::panic::AssertUnwindSafe(|| live_through(seed));
        match std::panic::catch_unwind(round) {
            Ok(told) => {
                total += told.0;
                println!("seed {seed}: {} keys compared; {}", told.0, told.1);
            }
            Err(panic) => {
                eprintln!("failed with DARNER_PAST_SEED={seed}, after {total} comparisons in others");
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{total} keys compared as of moments of the past");
}

/// One store's life; returns how many keys were compared and what else happened.
fn live_through(seed: u64) -> (u64, String) {
    let disk = new_disk();
    let mut kill = false;
    let mut reopen = |store: Arc<Store>| {
        kill = !kill;
        match kill {
            true => store.sync().map(drop).unwrap(),
            false => store.close().unwrap(),
        }
        drop(store);
        open_store(&disk)
    };
    let harness = Harness::new(seed, open_store(&disk), &mut reopen);
    let mut past = Past {
        rng: fastrand::Rng::with_seed(seed ^ 0x5eed),
        h: harness,
        disk: disk.clone(),
        books: BTreeMap::new(),
        labels: BTreeMap::new(),
        roots: BTreeMap::from([(MAIN, ObjectId(1))]),
        counts: Counts::default(),
    };
    for _ in 0..OPS {
        past.h.step();
        past.h.remember();
        past.note_filesets();
        past.step();
        past.h.remember();
        past.compare();
    }
    past.check();
    (past.h.keys, format!("{:?}", past.counts))
}

/// What a fileset's retention came to, as this test has it.
struct Book {
    grid: Grid,
    /// The grids that were applied, and when.
    applied: Vec<(Grid, u64)>,
}

impl Default for Book {
    fn default() -> Book {
        Book { grid: Grid::forever(), applied: Vec::new() }
    }
}

impl Book {
    fn apply(&mut self, now: u64) {
        let clock = self.applied.last().map_or(now, |(_, clock)| now.max(*clock));
        self.applied.push((self.grid.clone(), clock));
    }

    fn keeps(&self, at: Tid) -> bool {
        self.applied.iter().all(|(grid, clock)| at.0 >= *clock || grid.steps.iter().any(|s| keeps(s, at.0, *clock)))
    }
}

/// Whether a step of a grid keeps a moment when it is `clock`.
fn keeps(s: &Step, at: u64, clock: u64) -> bool {
    let is_point = s.every == 0 || at % s.every == offset(s);
    is_point && (s.lasts == FOREVER || clock - at <= s.lasts)
}

/// Where a step's points lie: weeks begin on Mondays, and 1970-01-05 was one.
fn offset(s: &Step) -> u64 {
    if s.every.is_multiple_of(WEEK) { 4 * DAY } else { 0 }
}

#[derive(Debug, Default)]
struct Counts {
    exact: u64,
    rounded: u64,
    given_up: u64,
    collapses: u64,
    labels: u64,
    destroyed: u64,
    rebuilt: u64,
}

struct Past<'r> {
    rng: fastrand::Rng,
    h: Harness<'r>,
    disk: SimDisk,
    books: BTreeMap<FilesetId, Book>,
    labels: BTreeMap<(FilesetId, String), Tid>,
    /// Of all filesets that there ever were.
    roots: BTreeMap<FilesetId, ObjectId>,
    counts: Counts,
}

impl Past<'_> {
    fn note_filesets(&mut self) {
        for (fileset, root) in &self.h.forest.roots {
            self.roots.insert(*fileset, ObjectId(*root));
        }
    }

    /// One of all filesets that there ever were.
    fn any_fileset(&mut self) -> FilesetId {
        self.rng.choice(self.roots.keys().copied().collect::<Vec<_>>()).expect("the main one")
    }

    fn live_fileset(&mut self) -> FilesetId {
        self.rng.choice(self.h.forest.trees.keys().copied().collect::<Vec<_>>()).expect("the main one")
    }

    // What happens to the past.

    fn step(&mut self) {
        match self.rng.u8(0..100) {
            0..12 => self.jump(),
            12..17 => self.retain(),
            17..25 => self.clean(),
            25..32 => self.keep_up(),
            32..38 => self.label(),
            38..41 => self.unlabel(),
            41..44 => self.destroy(),
            44 if self.rng.bool() => self.rebuild(),
            45 => self.check(),
            _ => {}
        }
    }

    fn jump(&mut self) {
        self.h.now += match self.rng.u8(0..20) {
            0..9 => self.rng.u64(0..20 * SECOND),
            9..13 => self.rng.u64(0..600 * SECOND),
            13..16 => self.rng.u64(0..48 * HOUR),
            16..19 => self.rng.u64(0..40 * DAY),
            _ => self.rng.u64(0..3 * YEAR),
        };
    }

    fn retain(&mut self) {
        let fileset = self.live_fileset();
        let grid = self.grid();
        self.h.fs().retain(fileset, Some(grid.clone()), None, self.h.now).unwrap();
        self.books.entry(fileset).or_default().grid = grid;
    }

    fn grid(&mut self) -> Grid {
        let steps = match self.rng.u8(0..8) {
            0 => return Grid::default(),
            1 => return Grid::forever(),
            n => 1 + n as usize / 3,
        };
        Grid { steps: (0..steps).map(|_| self.grid_step()).collect() }
    }

    fn grid_step(&mut self) -> Step {
        let every = match self.rng.u8(0..8) {
            0..2 => 0,
            2..5 => self.rng.u64(1..30) * SECOND,
            5 => self.rng.choice([60, 420, 660]).expect("one") * SECOND,
            6 => self.rng.choice([HOUR, 6 * HOUR, DAY, 3 * DAY]).expect("one"),
            _ => self.rng.choice([WEEK, 2 * WEEK]).expect("one"),
        };
        let lasts = match self.rng.u8(0..8) {
            0..3 => self.rng.u64(1..600) * SECOND,
            3 => self.rng.u64(1..48) * HOUR,
            4 => self.rng.u64(1..60) * DAY,
            5 => YEAR,
            _ => FOREVER,
        };
        Step { every, lasts }
    }

    fn clean(&mut self) {
        let now = self.h.now;
        self.collapse(|fs| fs.store().clean(now, &mut |_| ()).unwrap());
    }

    fn keep_up(&mut self) {
        let (now, want) = (self.h.now, self.rng.bool());
        self.collapse(|fs| {
            let store = fs.store();
            if want {
                store.want_collapse();
            }
            while store.step().unwrap() == Progress::Worked {}
            while store.step_clean(now).unwrap() == Progress::Worked {}
        });
    }

    /// Does what may apply the grids, and notes which were.
    fn collapse<T>(&mut self, work: impl FnOnce(&Fs) -> T) -> T {
        let fs = self.h.fs();
        let retention = |fileset: FilesetId| fs.retention(fileset).unwrap();
        let before: Vec<_> = self.roots.keys().map(|fileset| (*fileset, retention(*fileset))).collect();
        let outcome = work(fs);
        for (fileset, before) in before {
            if self.h.fs().retention(fileset).unwrap() != before {
                self.books.entry(fileset).or_default().apply(self.h.now);
                self.counts.collapses += 1;
            }
        }
        outcome
    }

    fn label(&mut self) {
        let fileset = self.live_fileset();
        let at = if self.rng.u8(0..4) == 0 { self.h.fs().store().tid() } else { self.moment() };
        let Some(shown) = self.h.fs().retention(fileset).unwrap().round(at) else { return };
        let name = format!("label{}", self.rng.u8(0..6));
        let taken = self.labels.contains_key(&(fileset, name.clone()));
        let added = self.h.fs().add_label(fileset, &name, Some(shown), self.h.now);
        let refused = if shown < self.h.fs().store().birth() { libc::EINVAL } else { libc::EEXIST };
        match added {
            Ok(label) => {
                assert!(!taken && label.tid == shown);
                self.labels.insert((fileset, name), shown);
                self.counts.labels += 1;
            }
            Err(error) => assert!(error.errno() == refused && (taken || refused == libc::EINVAL), "{error}"),
        }
    }

    fn unlabel(&mut self) {
        let fileset = self.live_fileset();
        let names: Vec<String> = self.labels.keys().filter(|(f, _)| *f == fileset).map(|(_, n)| n.clone()).collect();
        let Some(name) = self.rng.choice(names) else { return };
        self.h.fs().remove_label(fileset, &name, self.h.now).unwrap();
        self.labels.remove(&(fileset, name));
    }

    /// Makes the index anew from the segments, for one who only looks, and compares that.
    fn rebuild(&mut self) {
        self.h.fs().sync().unwrap();
        let anew = open_anew(&self.disk);
        assert_eq!(anew.check().unwrap().findings, Vec::<String>::new());
        let fs = self.h.fs.replace(anew);
        (0..10).for_each(|_| self.compare());
        self.h.fs = fs;
        self.counts.rebuilt += 1;
    }

    fn check(&mut self) {
        self.h.fs().sync().unwrap();
        assert_eq!(self.h.fs().check().unwrap().findings, Vec::<String>::new());
        assert_eq!(self.h.fs().store().check(&mut |_, _| ()).all(), Vec::<String>::new());
    }

    // Destroying.

    fn destroy(&mut self) {
        let fileset = self.live_fileset();
        let Some(path) = self.some_path(fileset) else { return };
        self.h.switch(fileset);
        self.remove_live(&path);
        let names: Vec<&[u8]> = path.iter().map(Vec::as_slice).collect();
        let (root, now) = (self.h.forest.root(fileset), self.h.now);
        let surely = self.ever(fileset, &path, true);
        let perhaps = self.ever(fileset, &path, false);
        let outcome = self.collapse(|fs| fs.destroy(root, &names, now, &mut |_| ()));
        match outcome {
            Ok(done) => {
                let is_live = |o: &u64| self.h.tree.contains_key(o);
                let objects: BTreeSet<u64> = done.objects.iter().map(|ino| ino.object.0).collect();
                assert!(surely.objects.iter().all(|o| objects.contains(o) || is_live(o)), "not all was destroyed");
                if !self.h.bases.contains_key(&fileset) {
                    assert!(objects.is_subset(&perhaps.objects), "more than that was destroyed");
                }
                self.counts.destroyed += objects.len() as u64;
                let before = self.h.fs().store().tid();
                self.h.destroyed.objects.extend(done.objects);
                let name = path.last().expect("a name");
                let gone = |dir: &u64| GoneName {
                    dir: Inode { fileset, object: ObjectId(*dir) },
                    name: name.clone(),
                    before,
                    surely: surely.dirs.contains(dir),
                };
                self.h.destroyed.names.extend(perhaps.dirs.iter().map(gone));
            }
            Err(error) => assert!([libc::EEXIST, libc::EBUSY, libc::ENOENT].contains(&error.errno()), "{error}"),
        }
        self.h.remember();
        let root = self.h.forest.root(self.h.fileset);
        self.h.compare(Node::Live(root), &self.h.forest.clone());
    }

    /// A path that a fileset had at some moment.
    fn some_path(&mut self, fileset: FilesetId) -> Option<Vec<Vec<u8>>> {
        let at = self.rng.usize(..self.h.recent.len());
        let tree = self.h.recent[at].1.trees.get(&fileset)?.clone();
        let mut dir = self.roots[&fileset].0;
        let mut path = Vec::new();
        loop {
            let entries: Vec<_> = tree.get(&dir)?.entries.iter().collect();
            let Some((name, ino)) = self.rng.choice(entries) else { break };
            path.push(name.clone());
            dir = *ino;
            if self.rng.bool() {
                break;
            }
        }
        (!path.is_empty()).then_some(path)
    }

    /// Removes what is at a path now, if that is simple, and closes what is open.
    fn remove_live(&mut self, path: &[Vec<u8>]) {
        let (name, dirs) = path.split_last().expect("a name");
        let down = |at: Option<u64>, name: &Vec<u8>| self.h.tree.get(&at?)?.entries.get(name).copied();
        let dir = dirs.iter().fold(Some(self.roots[&self.h.fileset].0), down);
        if let (Some(dir), Some(ino)) = (dir, down(dir, name)) {
            let (parent, object) = (self.h.live(dir), self.h.tree[&ino].clone());
            if object.is_dir() && !object.entries.is_empty() {
                return;
            }
            match object.is_dir() {
                true => self.h.fs().rmdir(self.h.now, parent, name).unwrap(),
                false => self.h.fs().unlink(self.h.now, parent, name).unwrap(),
            }
            self.h.remove_entry(dir, name);
            self.h.drop_link(ino);
            self.h.remember();
        }
        if self.rng.u8(0..4) > 0 {
            let open: Vec<u64> = self.h.tree.iter().filter(|(_, o)| o.nlink == 0).map(|(ino, _)| *ino).collect();
            let inodes: Vec<Inode> = open.iter().map(|ino| self.h.inode(*ino)).collect();
            self.h.fs().forget(self.h.now, &inodes).unwrap();
            self.h.tree.retain(|_, object| object.nlink > 0);
        }
        self.h.remember();
    }

    /// What ever was at a path and below it, in moments that are visible or in all.
    fn ever(&self, fileset: FilesetId, path: &[Vec<u8>], visible: bool) -> Ever {
        let retention = self.h.fs().retention(fileset).unwrap();
        let ends = self.h.recent.iter().skip(1).map(|(tid, _)| *tid).chain([Tid::MAX]);
        let moments = self.h.recent.iter().zip(ends);
        let trees: Vec<&Tree> = moments
            .filter(|((tid, _), end)| !visible || retention.round(Tid(end.0 - 1)).is_some_and(|p| p >= *tid))
            .filter_map(|((_, forest), _)| forest.trees.get(&fileset).map(|tree| &**tree))
            .collect();
        let leads = |dir: u64, name: &Vec<u8>| {
            let dir = Inode { fileset, object: ObjectId(dir) };
            !visible || !self.h.is_gone(dir) && self.h.destroyed.names.iter().all(|n| n.dir != dir || n.name != *name)
        };
        let children = |dirs: &BTreeSet<u64>, name: Option<&Vec<u8>>| -> BTreeSet<u64> {
            let found = trees.iter().flat_map(|tree| dirs.iter().filter_map(|dir| Some((*dir, tree.get(dir)?))));
            let entries =
                found.flat_map(|(dir, object)| object.entries.iter().map(move |(name, ino)| (dir, name, *ino)));
            let fit = entries.filter(|(dir, n, _)| name.is_none_or(|name| name == *n) && leads(*dir, n));
            fit.map(|(.., ino)| ino).collect()
        };
        let (name, above) = path.split_last().expect("a name");
        let root = BTreeSet::from([self.roots[&fileset].0]);
        let dirs = above.iter().fold(root, |dirs, name| children(&dirs, Some(name)));
        let mut objects = children(&dirs, Some(name));
        loop {
            let n = objects.len();
            // What lives on keeps what ever was below it.
            let dead = |o: &&u64| !visible || !self.h.tree.contains_key(*o);
            objects.append(&mut children(&objects.iter().filter(dead).copied().collect(), None));
            if objects.len() == n {
                return Ever { dirs, objects };
            }
        }
    }

    // Comparisons.

    /// Any moment between the store's birth and now, mostly near a transaction.
    fn moment(&mut self) -> Tid {
        let newest = self.h.fs().store().tid();
        let i = self.rng.usize(..self.h.recent.len());
        let tid = self.h.recent[i].0;
        match self.rng.u8(0..6) {
            0 => Tid(self.rng.u64(START..=newest.0)),
            1 => Tid(tid.0 + self.rng.u64(0..20 * SECOND)).min(newest),
            2 => self.rng.choice(self.labels.values().copied().collect::<Vec<_>>()).unwrap_or(tid),
            _ => Tid(tid.0 + self.rng.u64(0..3)).min(newest),
        }
    }

    fn compare(&mut self) {
        let live = self.live_fileset();
        self.h.compare(Node::Live(self.h.forest.root(live)), &self.h.forest.clone());
        for _ in 0..3 {
            let (fileset, at) = (self.any_fileset(), self.moment());
            let shown = self.h.fs().retention(fileset).unwrap().round(at);
            self.check_shown(fileset, at, shown);
            let root = Inode { fileset, object: self.roots[&fileset] };
            if shown != Some(at) {
                let stale = self.h.fs().getattr(Node::AsOf(root, at)).unwrap_err();
                assert_eq!(stale.errno(), libc::ESTALE, "{at} is not visible");
            }
            let Some(shown) = shown else { continue };
            match self.h.forest_at(shown).filter(|forest| forest.trees.contains_key(&fileset)).cloned() {
                Some(forest) => self.h.compare(Node::AsOf(root, shown), &forest),
                None => {
                    let absent = self.h.fs().getattr(Node::AsOf(root, shown)).unwrap_err();
                    assert_eq!(absent.errno(), libc::ESTALE, "{fileset:?} as of {shown}");
                    self.h.keys += 1;
                }
            }
        }
    }

    /// Moments of a fileset that somebody holds.
    fn pins(&self, fileset: FilesetId, labels: bool) -> BTreeSet<Tid> {
        let labels = self.labels.iter().filter(|((of, _), _)| labels && *of == fileset).map(|(_, tid)| *tid);
        let bases = self.h.bases.iter().filter(|(clone, (of, _))| *of == fileset && self.is_shown(**clone));
        labels.chain(bases.map(|(_, (_, tid))| *tid)).collect()
    }

    /// From when to when a fileset was there that was removed and to which no moment of the main one leads any more.
    fn lost(&self, fileset: FilesetId) -> Option<(Tid, Tid)> {
        let store = self.h.fs().store();
        store.past_life(fileset).filter(|(from, to)| !store.retention(MAIN).unwrap().sees(*from, *to))
    }

    /// Whether a clone, or one of it, can be looked at.
    fn is_shown(&self, clone: FilesetId) -> bool {
        let mut of_it = self.h.bases.iter().filter(|(_, (of, _))| *of == clone);
        self.lost(clone).is_none() || of_it.any(|(other, _)| self.is_shown(*other))
    }

    /// Whether the moment shown is the newest visible one not after the one asked for.
    fn check_shown(&mut self, fileset: FilesetId, at: Tid, shown: Option<Tid>) {
        // Of a removed one that no moment of the main one leads to only what clones show is left.
        let lost = self.lost(fileset).map(|(_, removed)| removed);
        let pins = self.pins(fileset, lost.is_none());
        let book = self.books.entry(fileset).or_default();
        let visible = |t: Tid| pins.contains(&t) || book.keeps(t) && lost.is_none_or(|removed| t >= removed);
        let what = format!("{fileset:?} as of {at}, shown as of {shown:?}, {:?}", book.applied);
        match shown {
            Some(shown) if shown == at => self.counts.exact += 1,
            Some(_) => self.counts.rounded += 1,
            None => self.counts.given_up += 1,
        }
        assert!(shown.is_none_or(|p| p <= at && visible(p)), "{what}: it is not visible");
        if shown == Some(at) {
            return;
        }
        // A visible moment whose successor is not is a point of some grid, or held.
        let after = shown.map_or(0, |p| p.0 + 1);
        let nearer = |t: u64| assert!(!visible(Tid(t)), "{what}: {} is nearer", Tid(t));
        nearer(at.0);
        pins.iter().filter(|p| (after..=at.0).contains(&p.0)).for_each(|p| nearer(p.0));
        let steps: BTreeSet<(u64, u64)> = book
            .applied
            .iter()
            .flat_map(|(grid, _)| &grid.steps)
            .filter(|s| s.every != 0)
            .map(|s| (s.every, offset(s)))
            .collect();
        for (every, offset) in steps {
            let newest = at.0 - (at.0 - offset) % every;
            let points = newest.saturating_sub(after) / every + 1;
            for n in 0..points.min(POINTS_MAX) {
                let t = newest - every * if n < POINTS_MAX / 2 { n } else { self.rng.u64(0..points) };
                if t >= after {
                    nearer(t);
                }
            }
        }
    }
}

struct Ever {
    dirs: BTreeSet<u64>,
    objects: BTreeSet<u64>,
}
