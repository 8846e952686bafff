//! Retention: which moments of the past stay. docs/format.md §Retention.
//!
//! A *grid* says "every so often, for so long". Its points are the multiples of each step's quantum (weeks begin on
//! Mondays, all in UTC), each for as long as the step says; so points only ever leave the set. Newer than the *horizon*
//! every commit is visible; before it, a moment rounds down to a retained point: of the grid, or pinned by a label.
//!
//! Invariants: horizon and clock of a fileset never go back, and are durable before anything that they give up is
//! dropped; so what a retained point shows never changes, however far the cleaner has come. A grid that replaces another
//! can't bring back what that one gave up: a moment must have been kept by the grid of every *era*, as a point or since that
//! era's own horizon (a later grid may keep every commit of a time of which an earlier one left only points: those stay).
//!
//! Tried and dropped: aligning record tids to points (HAMMER did; it broke every mirror), and a stored list of all points
//! (a minute's grid kept for ever has half a million a year).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::codec::{Reader, put_varint};
use crate::fileset::{CATALOGUE, MAIN};
use crate::index::Entry;
use crate::store::Store;
use crate::{Error, FilesetId, Key, Kind, ObjectId, Result, Tid};

const SECOND: u64 = 1_000_000_000;
const DAY: u64 = 86_400 * SECOND;
const WEEK: u64 = 7 * DAY;
/// 1970-01-05 was a Monday.
const MONDAY: u64 = 4 * DAY;
/// So many points are looked at singly.
const COUNTED_MAX: u64 = 100_000;
/// For ever, as a length of time.
pub const FOREVER: u64 = u64::MAX;

/// One step of a grid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// Nanoseconds between points; 0: every commit.
    pub every: u64,
    /// How long they stay, nanoseconds; [`FOREVER`].
    pub lasts: u64,
}

impl Step {
    /// The newest multiple of the quantum that is not after `at`.
    fn point(&self, at: Tid) -> Option<Tid> {
        let offset = if self.every.is_multiple_of(WEEK) { MONDAY } else { 0 };
        let since = at.0.checked_sub(offset)?;
        Some(Tid(since - since % self.every + offset))
    }

    /// How many of its points in `from ..= to` there are, where it has a quantum: those that grids before gave up are not. (Of very many,
    /// how many there can be.)
    pub fn points_kept(&self, retention: &Retention, from: Tid, to: Tid) -> u64 {
        let Some(newest) = self.point(to).filter(|newest| *newest >= from) else { return 0 };
        let most = (newest.0 - from.0) / self.every + 1;
        if most > COUNTED_MAX {
            return most;
        }
        (0..most).map(|n| Tid(newest.0 - n * self.every)).filter(|p| retention.round(*p) == Some(*p)).count() as u64
    }

    /// The first multiple of the quantum not before `from` that is young enough.
    fn next(&self, from: Tid, clock: Tid) -> Option<Tid> {
        let oldest = Tid(if self.lasts == FOREVER { 0 } else { clock.0.saturating_sub(self.lasts) });
        let from = from.max(oldest);
        match self.point(from) {
            Some(p) if p == from => Some(p),
            Some(p) => p.0.checked_add(self.every).map(Tid),
            None => Some(Tid(MONDAY)),
        }
    }

    fn outlives(&self, point: Tid, clock: Tid) -> bool {
        self.lasts == FOREVER || clock.0.saturating_sub(point.0) <= self.lasts
    }
}

/// Which moments stay: those of any of its steps. Without steps, none but the present.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Grid {
    /// In the order given.
    pub steps: Vec<Step>,
}

impl Grid {
    /// Keeps every commit for ever.
    pub fn forever() -> Grid {
        Grid { steps: vec![Step { every: 0, lasts: FOREVER }] }
    }

    /// Whether nothing is ever given up.
    pub fn keeps_all(&self) -> bool {
        self.every_commit() == Some(FOREVER)
    }

    /// How long every commit stays.
    fn every_commit(&self) -> Option<u64> {
        self.steps.iter().filter(|s| s.every == 0).map(|s| s.lasts).max()
    }

    fn spaced(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(|s| s.every != 0)
    }

    /// Since when every commit is visible, when it is `clock`.
    fn horizon(&self, clock: Tid) -> Tid {
        Tid(clock.0.saturating_sub(self.every_commit().unwrap_or(0)))
    }

    /// The newest point not after `at` that is retained when it is `clock`.
    fn round(&self, at: Tid, clock: Tid) -> Option<Tid> {
        self.spaced().filter_map(|s| s.point(at).filter(|p| s.outlives(*p, clock))).max()
    }

    /// The first point not before `from` that is retained when it is `clock`.
    fn next(&self, from: Tid, clock: Tid) -> Option<Tid> {
        self.spaced().filter_map(|s| s.next(from, clock)).min()
    }

    /// Until when some point sees what was visible from `tid` until `until`, by the clock in nanoseconds.
    fn expiry(&self, tid: Tid, until: Tid) -> u64 {
        let last = Tid(until.0.saturating_sub(1));
        let spaced =
            self.spaced().filter_map(|s| s.point(last).filter(|p| *p >= tid).map(|p| p.0.saturating_add(s.lasts)));
        let all = self.every_commit().map(|lasts| last.0.saturating_add(lasts));
        spaced.chain(all).max().unwrap_or(0)
    }
}

/// What to do when the volume is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum WhenFull {
    /// Writes fail; history stays.
    #[default]
    Keep,
    /// The oldest history gives way.
    CollapseOldest,
}

/// What a grid gave up while it was in force.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Era {
    grid: Grid,
    /// The latest time at which it was applied.
    clock: Tid,
    /// Moments before this were given up but for its points; not later ones, whatever other eras gave up.
    horizon: Tid,
}

impl Era {
    /// The first moment not before `from` that it kept.
    fn next(&self, from: Tid) -> Tid {
        match self.grid.next(from, self.clock) {
            _ if from >= self.horizon => from,
            Some(point) => point.min(self.horizon),
            None => self.horizon,
        }
    }
}

/// The retention of a fileset: the grid in force, and what is visible of the past.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Retention {
    /// The grid in force.
    pub grid: Grid,
    /// What to do when the volume is full.
    pub when_full: WhenFull,
    /// Oldest first.
    eras: Vec<Era>,
    /// Points before this are gone, but for pinned ones.
    floor: Tid,
    /// Pinned moments (labels, mounts, clones), ascending.
    pins: Vec<Tid>,
}

impl Default for Retention {
    /// Everything, for ever: nothing is destroyed unless somebody says so.
    fn default() -> Retention {
        Retention {
            grid: Grid::forever(),
            when_full: WhenFull::Keep,
            eras: Vec::new(),
            floor: Tid::ZERO,
            pins: Vec::new(),
        }
    }
}

impl Retention {
    /// With another grid from now on.
    pub fn with_grid(&self, grid: Grid) -> Retention {
        Retention { grid, ..self.clone() }
    }

    /// Since when every commit is visible; [`Tid::ZERO`]: since ever.
    pub fn horizon(&self) -> Tid {
        self.eras.iter().map(|e| e.horizon).max().unwrap_or(Tid::ZERO)
    }

    /// The moment that is shown when `at` is asked for: `at` itself since the horizon, else the newest retained point not
    /// after it; `None` if there is none.
    pub fn round(&self, at: Tid) -> Option<Tid> {
        if at >= self.horizon() {
            return Some(at);
        }
        let pinned = self.pins[..self.pins.partition_point(|p| *p <= at)].last().copied();
        self.round_by_grid(at).max(pinned)
    }

    fn round_by_grid(&self, at: Tid) -> Option<Tid> {
        let mut point = at;
        loop {
            let before = point;
            for era in self.eras.iter().filter(|e| before < e.horizon) {
                point = era.grid.round(point, era.clock)?;
            }
            if point == before {
                return (point >= self.floor).then_some(point);
            }
        }
    }

    /// Whether any visible moment lies in `tid .. until`.
    pub fn sees(&self, tid: Tid, until: Tid) -> bool {
        tid < until && (until > self.horizon() || self.round(Tid(until.0.saturating_sub(1))).is_some_and(|p| p >= tid))
    }

    /// The first visible moment in `tid .. until`: how to look at what was there then.
    pub fn first_seen(&self, tid: Tid, until: Tid) -> Option<Tid> {
        let pinned = self.pins.get(self.pins.partition_point(|p| *p < tid)).copied();
        let seen = pinned.map_or(until, |p| p.min(until));
        let first = self.next_by_grid(tid, seen).or(pinned);
        first.filter(|first| *first < until)
    }

    /// The first moment in `from .. until` that every era kept.
    fn next_by_grid(&self, from: Tid, until: Tid) -> Option<Tid> {
        let mut at = from.max(self.floor);
        while at < until {
            let next = self.eras.iter().map(|e| e.next(at)).max().unwrap_or(at);
            if next == at {
                return Some(at);
            }
            at = next;
        }
        None
    }

    /// Whether a pinned moment lies in `tid .. until`.
    pub fn is_pinned(&self, tid: Tid, until: Tid) -> bool {
        self.pins.partition_point(|p| *p < until) > self.pins.partition_point(|p| *p < tid)
    }

    /// Which step of the grid (the first) sees what was visible in `tid .. until`, when it is `clock`; behind the last: none.
    pub(crate) fn step_that_sees(&self, tid: Tid, until: Tid, clock: Tid) -> usize {
        let last = Tid(until.0.saturating_sub(1));
        let sees = |s: &Step| match s.every {
            0 => s.lasts == FOREVER || clock.0.saturating_sub(s.lasts) < until.0,
            _ => s.point(last).is_some_and(|p| p >= tid && s.outlives(p, clock)),
        };
        self.grid.steps.iter().position(sees).unwrap_or(self.grid.steps.len())
    }

    /// Until when, by the clock in nanoseconds, some visible moment lies in `tid .. until`; [`FOREVER`].
    pub(crate) fn expiry(&self, tid: Tid, until: Tid) -> u64 {
        if self.is_pinned(tid, until) { FOREVER } else { self.grid.expiry(tid, until) }
    }

    /// With the grid applied at `clock`: what is given up by then is given up.
    pub fn advanced(&self, clock: Tid) -> Retention {
        let mut next = self.clone();
        if self.grid.keeps_all() {
            return next;
        }
        let clock = clock.max(self.eras.last().map_or(Tid::ZERO, |e| e.clock));
        let era = Era { grid: self.grid.clone(), clock, horizon: self.grid.horizon(clock) };
        match next.eras.last_mut() {
            Some(last) if last.grid == self.grid => *last = era,
            _ => next.eras.push(era),
        }
        next
    }

    /// With all points before `floor` given up too, but for pinned ones.
    pub fn raised(&self, floor: Tid) -> Retention {
        let mut next = self.clone();
        next.floor = self.floor.max(floor);
        // What they gave up is before the floor.
        next.eras.retain(|e| e.horizon > floor);
        if next.horizon() < floor {
            next.eras.push(Era { grid: Grid::default(), clock: floor, horizon: floor });
        }
        next
    }

    /// Whether nothing has been given up and nothing will be.
    pub fn keeps_all(&self) -> bool {
        self.grid.keeps_all() && self.eras.is_empty()
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = vec![1, self.when_full as u8];
        put_varint(&mut out, self.floor.0);
        put_grid(&mut out, &self.grid);
        put_varint(&mut out, self.eras.len() as u64);
        for era in &self.eras {
            put_grid(&mut out, &era.grid);
            put_varint(&mut out, era.clock.0);
            put_varint(&mut out, era.horizon.0);
        }
        out
    }

    pub(crate) fn decode(value: &[u8]) -> Option<Retention> {
        let mut r = Reader::new(value);
        let (1, full) = (r.u8()?, r.u8()?) else { return None };
        let when_full = match full {
            0 => WhenFull::Keep,
            1 => WhenFull::CollapseOldest,
            _ => return None,
        };
        let floor = Tid(r.varint()?);
        let grid = grid(&mut r)?;
        let mut eras = Vec::new();
        for _ in 0..r.varint()? {
            eras.push(Era { grid: self::grid(&mut r)?, clock: Tid(r.varint()?), horizon: Tid(r.varint()?) });
        }
        r.is_empty().then_some(Retention { grid, when_full, eras, floor, pins: Vec::new() })
    }
}

fn put_grid(out: &mut Vec<u8>, grid: &Grid) {
    put_varint(out, grid.steps.len() as u64);
    for s in &grid.steps {
        put_varint(out, s.every);
        put_varint(out, s.lasts);
    }
}

fn grid(r: &mut Reader) -> Option<Grid> {
    let mut steps = Vec::new();
    for _ in 0..r.varint()? {
        steps.push(Step { every: r.varint()?, lasts: r.varint()? });
    }
    Some(Grid { steps })
}

/// Moments that somebody looks at for long: (fileset, tid) → how many.
pub(crate) type Pins = BTreeMap<(FilesetId, Tid), usize>;

/// Keeps a moment visible while it exists.
pub struct Pin {
    store: Arc<Store>,
    fileset: FilesetId,
    tid: Tid,
}

impl Pin {
    /// The moment of which fileset that is.
    pub fn moment(&self) -> (FilesetId, Tid) {
        (self.fileset, self.tid)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.store.pins.lock();
        if let Some(n) = pins.get_mut(&(self.fileset, self.tid)) {
            *n -= 1;
            if *n == 0 {
                pins.remove(&(self.fileset, self.tid));
            }
        }
        drop(pins);
        self.store.retention_changed(self.fileset);
    }
}

/// What is about the fileset, not about an object in it.
const META: ObjectId = ObjectId(0);

impl Store {
    /// The retention of a fileset as it is now.
    pub fn retention(&self, fileset: FilesetId) -> Result<Arc<Retention>> {
        if let Some(known) = self.retentions.read().get(&fileset) {
            return Ok(known.clone());
        }
        // Whoever changes what this reads takes it out of the map afterwards: so it is put there under the lock.
        let mut all = self.retentions.write();
        let found = Arc::new(self.load_retention(fileset)?);
        all.insert(fileset, found.clone());
        Ok(found)
    }

    fn load_retention(&self, fileset: FilesetId) -> Result<Retention> {
        // To one that was removed only moments of the main one lead: where none is left, its own are given up, labelled ones too, and what
        // it showed of others.
        let main = self.own_retention(MAIN, None)?;
        let bases = self.bases_beside(&main);
        let past_life = self.past_life(fileset);
        let shown = |of, from, until| bases.range((of, from)..(of, until)).map(|(_, tid)| *tid);
        let is_lost =
            |(from, until): &(Tid, Tid)| !main.sees(*from, *until) && shown(MAIN, *from, *until).next().is_none();
        let lost = past_life.filter(is_lost).map(|(_, removed)| removed);
        let mut retention = if fileset == MAIN { main } else { self.own_retention(fileset, lost)? };
        retention.pins.extend(shown(fileset, Tid::ZERO, Tid::MAX));
        retention.pins.sort_unstable();
        retention.pins.dedup();
        Ok(retention)
    }

    /// What clones show, as (fileset, tid): these moments must stay whole as long as the clones do, and, where the past of a removed clone
    /// can still be looked at, longer.
    pub fn bases(&self) -> Result<BTreeSet<(FilesetId, Tid)>> {
        Ok(self.bases_beside(&self.own_retention(MAIN, None)?))
    }

    fn bases_beside(&self, main: &Retention) -> BTreeSet<(FilesetId, Tid)> {
        let held: BTreeSet<FilesetId> = self.pins.lock().keys().map(|(fileset, _)| *fileset).collect();
        let filesets = &self.index.read().filesets;
        filesets.bases(|fileset| held.contains(&fileset), |from, until| main.sees(from, until))
    }

    /// The retention of a fileset, but for what clones show of it. `lost`: since when it is removed, if nothing leads there any more.
    fn own_retention(&self, fileset: FilesetId, lost: Option<Tid>) -> Result<Retention> {
        let corrupt = |what| Error::Corrupt {
            place: format!("fileset {}", fileset.0),
            what,
            expected: "its form in docs/format.md".into(),
            found: "bytes that are none".into(),
        };
        // Past the view that users have: of a removed fileset the past can still be looked at.
        let newest = |kind| -> Result<Vec<Entry>> {
            let mut versions = self.all_versions(&Key::new(fileset, META, kind, &[]))?;
            versions.dedup_by(|older, newer| older.key == newer.key);
            Ok(versions)
        };
        let mut retention = match newest(Kind::RETAIN)?.into_iter().find_map(|e| e.value) {
            Some(value) => Retention::decode(&value).ok_or_else(|| corrupt("retention"))?,
            None => Retention::default(),
        };
        if let Some(removed) = lost {
            retention = retention.raised(removed);
        }
        let pins = &mut retention.pins;
        for label in newest(Kind::LABEL)?.into_iter().filter_map(|e| e.value).filter(|_| lost.is_none()) {
            pins.push(Reader::new(&label).varint().map(Tid).ok_or_else(|| corrupt("label"))?);
        }
        let held = self.pins.lock();
        pins.extend(held.range((fileset, Tid::ZERO)..=(fileset, Tid::MAX)).map(|((_, tid), _)| *tid));
        drop(held);
        pins.sort_unstable();
        pins.dedup();
        Ok(retention)
    }

    /// From when to when a fileset was there that was removed; `None`: it is there, never was, or nobody knows any more.
    pub fn past_life(&self, fileset: FilesetId) -> Option<(Tid, Tid)> {
        self.index.read().filesets.past_life(fileset)
    }

    /// Labels, pins or the retention itself have changed.
    pub(crate) fn retention_changed(&self, fileset: FilesetId) {
        let mut all = self.retentions.write();
        // A clone pins a moment of another fileset; and to removed ones the main one leads.
        match matches!(fileset, CATALOGUE | MAIN) || self.beneath(fileset).is_some() {
            true => all.clear(),
            false => drop(all.remove(&fileset)),
        }
    }

    /// Keeps what a moment shows as long as the pin lives; `None` if it is no visible moment (any more).
    pub fn pin(self: &Arc<Store>, fileset: FilesetId, tid: Tid) -> Result<Option<Pin>> {
        // In this order: a state that gives the moment up is made before the look, or sees the pin.
        let _one = self.retaining.lock();
        if self.retention(fileset)?.round(tid) != Some(tid) {
            return Ok(None);
        }
        *self.pins.lock().entry((fileset, tid)).or_insert(0) += 1;
        self.retention_changed(fileset);
        Ok(Some(Pin { store: self.clone(), fileset, tid }))
    }

    /// Pins a moment that was pinned until the store was closed, and of which nothing can have been dropped since.
    pub fn hold(self: &Arc<Store>, fileset: FilesetId, tid: Tid) -> Pin {
        let _one = self.retaining.lock();
        *self.pins.lock().entry((fileset, tid)).or_insert(0) += 1;
        self.retention_changed(fileset);
        Pin { store: self.clone(), fileset, tid }
    }

    /// Changes a fileset's retention: `change` gets what is in force. Nothing is given up before the cleaner comes by.
    pub fn retain(
        &self,
        fileset: FilesetId,
        now_ns: u64,
        change: impl FnOnce(&Retention) -> Retention,
    ) -> Result<Arc<Retention>> {
        let _one = self.retaining.lock();
        let before = self.retention(fileset)?;
        let after = change(&before);
        if after != *before {
            let mut tx = self.begin(fileset, now_ns)?;
            tx.put(META, Kind::RETAIN, &[], &after.encode());
            tx.commit()?;
        }
        self.retention(fileset)
    }

    /// Runs `f` while no moment can be given up, for those who check that one is visible and then pin it by a record.
    pub fn while_retained<T>(&self, f: impl FnOnce() -> T) -> T {
        let _one = self.retaining.lock();
        f()
    }

    /// The filesets that there ever were, and when they were removed.
    pub(crate) fn filesets(&self) -> Vec<(FilesetId, Option<Tid>)> {
        let others: Vec<_> = self.index.read().filesets.all().collect();
        [(CATALOGUE, None), (MAIN, None)].into_iter().chain(others).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(steps: &[(u64, u64)]) -> Grid {
        Grid { steps: steps.iter().map(|(every, lasts)| Step { every: *every, lasts: *lasts }).collect() }
    }

    fn retention(grid: Grid) -> Retention {
        Retention { grid, ..Retention::default() }
    }

    #[test]
    fn a_time_between_retained_points_rounds_down_and_newer_ones_are_exact() {
        let r = retention(grid(&[(0, 50), (10, 200), (100, FOREVER)])).advanced(Tid(1000));
        assert_eq!(r.horizon(), Tid(950));
        assert_eq!(r.round(Tid(953)), Some(Tid(953)));
        assert_eq!(r.round(Tid(949)), Some(Tid(940)));
        assert_eq!(r.round(Tid(805)), Some(Tid(800)));
        assert_eq!(r.round(Tid(799)), Some(Tid(700)), "the step of 10 ends at 800");
        assert_eq!(r.round(Tid(99)), Some(Tid(0)));
        assert!(r.sees(Tid(699), Tid(701)) && !r.sees(Tid(701), Tid(790)) && r.sees(Tid(1), Tid(951)));
    }

    #[test]
    fn points_only_ever_leave_the_set_and_a_finer_grid_brings_none_back() {
        let coarse = retention(grid(&[(100, FOREVER)])).advanced(Tid(1000));
        let fine = Retention { grid: grid(&[(10, FOREVER)]), ..coarse.clone() }.advanced(Tid(2000));
        assert_eq!(fine.round(Tid(999)), Some(Tid(900)));
        assert_eq!(fine.round(Tid(1019)), Some(Tid(1010)));
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..300 {
            let mut r = Retention::default();
            let mut clock = 0;
            for _ in 0..6 {
                let steps: Vec<_> = (0..rng.u64(0..4)).map(|_| (rng.u64(0..30), rng.u64(0..400))).collect();
                let next = Retention { grid: grid(&steps), ..r.clone() }.advanced(Tid(clock));
                for at in 0..clock {
                    let (then, now) = (r.round(Tid(at)), next.round(Tid(at)));
                    assert!(now <= then, "{at}: {then:?}, then {now:?}");
                    assert!(now.is_none_or(|p| r.round(p) == Some(p)), "{at}: {now:?} was given up before");
                    assert!(now.is_none_or(|p| next.round(p) == Some(p)), "a point rounds to itself");
                }
                r = next;
                let (from, until) = (rng.u64(0..=clock), rng.u64(0..=clock + 10));
                let first = (from..until).find(|t| r.round(Tid(*t)) == Some(Tid(*t))).map(Tid);
                assert_eq!(r.first_seen(Tid(from), Tid(until)), first, "{r:?} {from}..{until}");
                assert_eq!(r.sees(Tid(from), Tid(until)), first.is_some(), "{r:?} {from}..{until}");
                clock += rng.u64(1..200);
            }
            assert_eq!(Retention::decode(&r.encode()).as_ref(), Some(&r));
        }
    }

    #[test]
    fn a_grid_that_keeps_every_commit_keeps_the_points_that_an_earlier_one_left() {
        let points = retention(grid(&[(100, FOREVER)])).advanced(Tid(1000));
        let all = points.with_grid(grid(&[(0, 500), (400, FOREVER)])).advanced(Tid(1200));
        assert_eq!(all.round(Tid(950)), Some(Tid(900)));
        assert_eq!(all.round(Tid(799)), Some(Tid(700)));
        assert_eq!(all.round(Tid(699)), Some(Tid(400)));
        assert_eq!((all.horizon(), all.round(Tid(1001))), (Tid(1000), Some(Tid(1001))));
        assert_eq!(all.first_seen(Tid(701), Tid(1000)), Some(Tid(800)));
    }

    #[test]
    fn what_is_seen_and_until_when_agrees_with_a_look_at_every_moment() {
        let mut rng = fastrand::Rng::with_seed(2);
        for _ in 0..500 {
            let steps: Vec<_> = (0..rng.u64(0..4)).map(|_| (rng.u64(0..20), rng.u64(0..90))).collect();
            let base = retention(grid(&steps));
            let clock = rng.u64(1..120);
            let r = base.advanced(Tid(clock));
            let (tid, until) = (Tid(rng.u64(1..100)), Tid(rng.u64(100..120)));
            let seen = |r: &Retention| (tid.0..until.0).any(|t| r.round(Tid(t)) == Some(Tid(t)));
            assert_eq!(r.sees(tid, until), seen(&r), "{r:?} {tid:?} {until:?}");
            let first = (tid.0..until.0).find(|t| r.round(Tid(*t)) == Some(Tid(*t)));
            assert_eq!(r.first_seen(tid, until), first.map(Tid));
            let expiry = base.expiry(tid, until);
            if clock > until.0 {
                assert_eq!(seen(&r), clock <= expiry && expiry > 0, "{base:?} {tid:?}..{until:?} at {clock}: {expiry}");
            }
        }
    }

    #[test]
    fn a_label_pins_its_moment_and_a_floor_takes_the_others() {
        let r = Retention { pins: vec![Tid(33)], ..retention(grid(&[(10, FOREVER)])) }.advanced(Tid(100));
        assert_eq!(r.round(Tid(35)), Some(Tid(33)));
        assert_eq!(r.round(Tid(41)), Some(Tid(40)));
        let r = r.raised(Tid(60));
        assert_eq!(r.round(Tid(59)), Some(Tid(33)));
        assert_eq!(r.round(Tid(32)), None);
        assert_eq!(r.round(Tid(61)), Some(Tid(60)));
        let all = Retention::default().raised(Tid(50));
        assert_eq!((all.round(Tid(49)), all.round(Tid(51))), (None, Some(Tid(51))));
    }

    #[test]
    fn weeks_begin_on_mondays_and_days_at_midnight() {
        let r = retention(grid(&[(DAY, FOREVER), (WEEK, FOREVER)])).advanced(Tid(1000 * DAY));
        assert_eq!(r.round(Tid(20 * DAY + 5)), Some(Tid(20 * DAY)));
        let r = retention(grid(&[(WEEK, FOREVER)])).advanced(Tid(1000 * DAY));
        assert_eq!(r.round(Tid(20 * DAY)), Some(Tid(18 * DAY)));
    }

    #[test]
    fn no_bytes_make_decoding_panic() {
        let good = retention(grid(&[(0, 50), (10, 200)])).advanced(Tid(1000)).encode();
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..20_000 {
            let mut bytes = good.clone();
            let at = rng.usize(..bytes.len());
            bytes[at] = rng.u8(..);
            bytes.truncate(rng.usize(..=bytes.len()));
            let _ = Retention::decode(&bytes);
        }
    }
}
