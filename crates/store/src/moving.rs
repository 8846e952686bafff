//! Moving regions between volumes while the store is in use. docs/format.md §Volumes.
//!
//! A region is copied under its number (`copying.rs`), the copy is flushed, one manifest switches over, and the space of the old
//! one is given back when its last reader is gone. Regions that are small wait for others: flushes and manifests would take longer
//! than the copying. Only what is never written again is copied: an open segment is sealed first. A crash before the manifest is
//! durable leaves copies that nothing names; one after it, old ones that nothing names.
//!
//! Copying holds no lock that anybody else waits for. What became of the region meanwhile (the cleaner may have taken it) is
//! looked at before the switch. As long as an old copy of a region has readers it does not move again: it might meet itself.

use std::collections::HashSet;
use std::sync::Arc;

use crate::copying::{Copying, What};
use crate::index::levels::{Levels, Run};
use crate::index::table::Table;
use crate::maintain::{Progress, State};
use crate::pack::{self, Packed};
use crate::segment;
use crate::store::{SEGMENT_MIN, Store};
use crate::volume::{For, Region, RegionRef, UNIT, flush_all};
use crate::{Error, Result};

/// Copies wait for one another until they have so many bytes, or are so many.
const TOGETHER_BYTES: u64 = 128 << 20;
const TOGETHER: usize = 64;

/// What is to be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// From this volume.
    pub from: u16,
    /// To this one; `None`: to any that has room.
    pub to: Option<u16>,
    /// Only this region.
    pub only: Option<u64>,
    /// Only regions with lower numbers: what is made while others move is no part of it.
    pub below: u64,
}

impl Move {
    /// All that is or will be on a volume, to any other.
    pub fn emptying(from: u16) -> Move {
        Move { from, to: None, only: None, below: u64::MAX }
    }

    pub(crate) fn wants(&self, at: RegionRef) -> bool {
        // (Of what is moved with all the rest, one copy may be where it is to go: then the other stays. Of one by itself that is told.)
        let has_copy = self.only.is_none() && self.to.is_some_and(|to| at.on(to).is_some());
        at.on(self.from).is_some() && at.id < self.below && self.only.is_none_or(|id| id == at.id) && !has_copy
    }
}

/// What regions are copied for.
#[derive(Clone, Copy)]
pub(crate) enum Aim<'m> {
    /// To leave a volume.
    Move(&'m Move),
    /// To have so many copies as there are to be.
    Copies,
    /// To leave the end of this volume, which is to be cut off.
    Cut(u16),
}

/// Regions on their way.
#[derive(Default)]
pub(crate) struct Moving {
    /// Being copied.
    current: Option<Box<Copying>>,
    /// Copied, and not yet switched over to.
    whole: Vec<Copying>,
}

impl Moving {
    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.current.is_none() && self.whole.is_empty()
    }

    fn is_enough(&self) -> bool {
        self.whole.len() >= TOGETHER || self.whole.iter().map(|c| c.len).sum::<u64>() >= TOGETHER_BYTES
    }

    fn has(&self, at: RegionRef) -> bool {
        self.whole.iter().any(|c| c.from.id == at.id)
    }
}

enum Next {
    Copy(Box<Copying>),
    /// Something was done first.
    Worked,
    Idle,
}

impl Store {
    /// All that is on a volume now.
    pub fn all_on(&self, from: u16, to: Option<u16>) -> Move {
        let below = self.next_region.load(std::sync::atomic::Ordering::Relaxed);
        Move { from, to, only: None, below }
    }

    /// One region; an error if there is none of that number that could be moved.
    pub fn region_to(&self, id: u64, to: u16) -> Result<Move> {
        let state = self.maintenance.lock();
        let found = self.regions_now(&state).into_iter().map(|(_, at)| at).find(|at| at.id == id);
        let packed = || self.segments.lock().iter().find(|s| s.at.id == id).and_then(|s| s.pack);
        match (found, packed()) {
            (Some(at), _) => Ok(Move { from: at.volume, to: Some(to), only: Some(id), below: u64::MAX }),
            (None, Some(pack)) => {
                Err(Error::Refused(format!("what is left of segment {id:x} is in pack {pack:x}: move that")))
            }
            (None, None) => Err(Error::Refused(format!("there is no segment, pack or table {id:x}"))),
        }
    }

    /// As [`Store::left_to_move`]; refuses a move to a volume that can't hold it.
    pub fn must_fit(&self, wanted: &Move) -> Result<(u64, u64)> {
        let (regions, bytes) = self.left_to_move(wanted);
        let Some(to) = wanted.to else { return Ok((regions, bytes)) };
        let free = self.volumes.room_on(to, wanted.from)?;
        if bytes <= free {
            return Ok((regions, bytes));
        }
        Err(Error::Refused(format!(
            "{bytes} bytes in {regions} regions are to be moved, volume {to} has {free} bytes free: {} more are needed",
            bytes - free
        )))
    }

    /// Regions that are still to be moved, and their bytes.
    pub fn left_to_move(&self, wanted: &Move) -> (u64, u64) {
        self.left(Aim::Move(wanted))
    }

    pub(crate) fn left(&self, aim: Aim<'_>) -> (u64, u64) {
        let state = self.maintenance.lock();
        let left = self.regions_now(&state).into_iter().filter(|(what, at)| self.wants(aim, *what, *at));
        left.fold((0, 0), |(n, bytes), (_, at)| (n + 1, bytes + at.size))
    }

    /// Copies, or switches over, `budget` bytes at most at a time. [`Progress::Idle`]: nothing is left, or only what still has readers
    /// elsewhere.
    pub fn step_move(&self, wanted: &Move, budget: u64) -> Result<Progress> {
        if self.volumes.bucket().is_some_and(|b| wanted.to == Some(b.number())) {
            return self.step_to_bucket(wanted);
        }
        self.step_towards(Aim::Move(wanted), budget)
    }

    pub(crate) fn step_towards(&self, wanted: Aim<'_>, budget: u64) -> Result<Progress> {
        let mut moving = self.moving.lock();
        if moving.current.is_none() {
            let next = if moving.is_enough() { Ok(Next::Idle) } else { self.next_to_move(wanted, &moving) };
            match next {
                Ok(Next::Copy(c)) => moving.current = Some(c),
                Ok(Next::Worked) => return Ok(Progress::Worked),
                // There may be room once what has moved is given back.
                Ok(Next::Idle) | Err(Error::NoSpace { .. }) if !moving.whole.is_empty() => {
                    return self.switch_over(&mut moving).map(|()| Progress::Worked);
                }
                Ok(Next::Idle) => return Ok(Progress::Idle),
                Err(e) => return Err(e),
            }
        }
        let mut c = moving.current.take().expect("just made");
        match c.copy_some(budget, &self.uuid) {
            Ok(false) => moving.current = Some(c),
            Ok(true) => moving.whole.push(*c),
            Err(e) => {
                self.drop_copy(*c)?;
                return Err(e);
            }
        }
        Ok(Progress::Worked)
    }

    fn drop_copy(&self, c: Copying) -> Result<()> {
        let at = c.target.place();
        drop(c);
        self.volumes.remove(at)
    }

    /// The regions that there are, but for those that only wait for their last reader.
    pub(crate) fn regions_now(&self, state: &State) -> Vec<(For, RegionRef)> {
        let levels = self.index.read().levels.clone();
        let tables = levels.tables().map(|t| t.reference().region);
        let mut all: Vec<_> = tables.map(|at| (For::Index, at)).collect();
        all.extend(state.manifest.map(|at| (For::Manifest, at)));
        let segments = self.segments.lock();
        let packs: Vec<RegionRef> = self.packs.lock().iter().map(|p| p.place()).collect();
        all.extend(segment::uses(&segments, &packs));
        all
    }

    /// Chooses what to copy next.
    fn next_to_move(&self, aim: Aim<'_>, moving: &Moving) -> Result<Next> {
        let mut state = self.maintenance.lock();
        self.trim_segments()?;
        self.bury(&mut state)?;
        let wants = |what, at| self.wants(aim, what, at) && !moving.has(at);
        if let Some(spare) = self.spare.lock().take_if(|r| wants(For::Log, r.place())) {
            self.volumes.remove(spare.place())?;
            return Ok(Next::Worked);
        }
        let is_free = |id: u64| !state.waits(id);
        let wanted = self.regions_now(&state).into_iter().filter(|(what, at)| wants(*what, *at));
        let wanted: HashSet<u64> = wanted.map(|(_, at)| at.id).collect();
        let segments = self.segments.lock().clone();
        let open = segment::sealed(&segments, state.log.region);
        let is_due = |s: &segment::Segment| s.pack.is_none() && wanted.contains(&s.at.id);
        if let Some(s) = segments[..open].iter().find(|s| is_due(s) && is_free(s.at.id)) {
            let source = self.regions.read()[&s.at.id].clone();
            return self.begin_copy(What::Segment, aim, source, s.end).map(Next::Copy);
        }
        if segments[open..].iter().any(is_due) {
            if matches!(aim, Aim::Copies) {
                self.make_spare_of_all_copies()?;
            }
            self.seal_open(&mut state, &|at| self.wants(aim, For::Log, at))?;
            return Ok(Next::Worked);
        }
        let packs = self.packs.lock().clone();
        if let Some(p) = packs.into_iter().find(|p| wanted.contains(&p.place().id) && is_free(p.place().id)) {
            let len = p.place().size;
            return self.begin_copy(What::Pack, aim, p, len).map(Next::Copy);
        }
        let levels = self.index.read().levels.clone();
        if let Some(t) = levels.tables().find(|t| wanted.contains(&t.reference().region.id)) {
            if state.pass.is_some() {
                // It knows runs by their tables.
                self.step_pass(&mut state)?;
                return Ok(Next::Worked);
            }
            if is_free(t.reference().region.id) {
                return self.begin_copy(What::Table(t.parts()), aim, t.region().clone(), t.len()).map(Next::Copy);
            }
        }
        if !moving.whole.is_empty() {
            return Ok(Next::Idle);
        }
        // (Where an earlier manifest could not be written, the last one still names what has moved.)
        let named = state.outdated.iter().map(|(_, at)| *at).chain(state.manifest);
        if named.into_iter().any(|at| wants(For::Manifest, at)) {
            self.write_manifest(&mut state, &levels)?;
            // Where there was no room for another copy, there may be later.
            let in_vain = matches!(aim, Aim::Copies) && state.manifest.is_some_and(|at| wants(For::Manifest, at));
            return Ok(if in_vain { Next::Idle } else { Next::Worked });
        }
        Ok(Next::Idle)
    }

    /// The log goes on in a new segment, if `due` says so of the open one, and no replay begins before it.
    pub(crate) fn seal_open(&self, state: &mut State, due: &dyn Fn(RegionRef) -> bool) -> Result<()> {
        let mut tail = self.log.tail();
        tail.check()?;
        if due(tail.segment.place()) {
            self.next_segment(&mut tail, SEGMENT_MIN)?;
        }
        drop(tail);
        self.flush_locked(state)
    }

    fn begin_copy(&self, what: What, aim: Aim<'_>, source: Arc<dyn Region>, len: u64) -> Result<Box<Copying>> {
        let from = source.place();
        // Copies have one size, wherever they are.
        let twice = from.second.is_some() || matches!(aim, Aim::Copies);
        let size = if twice { len.next_multiple_of(UNIT) } else { len };
        let target = match aim {
            Aim::Move(Move { to: Some(to), .. }) if from.on(*to).is_some() => {
                return Err(Error::Refused(format!("volume {to} has the other copy of region {:x}", from.id)));
            }
            Aim::Move(Move { to: Some(to), .. }) => self.volumes.create_on(*to, from.id, size),
            Aim::Cut(number) => match self.volumes.get(number)?.create(from.id, size) {
                Err(Error::NoSpace { .. }) => self.volumes.create_beside(from, size, For::Log),
                outcome => outcome,
            },
            // (Whatever it is, volumes stay within their limits.)
            _ => self.volumes.create_beside(from, size, For::Log),
        };
        let instead = match aim {
            Aim::Move(wanted) => from.on(wanted.from),
            Aim::Copies => from.places().find(|at| !self.volumes.is_sound(at.volume)),
            Aim::Cut(number) => from.on(number),
        };
        Ok(Box::new(Copying::new(what, instead, source, target?, len)))
    }

    /// Readers find the copies from now on, and so does the next open.
    fn switch_over(&self, moving: &mut Moving) -> Result<()> {
        if let Err(e) = flush_all(moving.whole.iter().map(|c| &c.target)) {
            let dropped: Result<()> = moving.whole.drain(..).try_for_each(|c| self.drop_copy(c));
            return dropped.and(Err(e));
        }
        let mut state = self.maintenance.lock();
        if state.pass.is_some() && moving.whole.iter().any(|c| matches!(c.what, What::Table(_))) {
            // A collapse that began meanwhile knows runs by their tables.
            return self.step_pass(&mut state).map(drop);
        }
        let mut outcome = Ok(());
        for c in moving.whole.drain(..) {
            outcome = outcome.and(self.switch_to(&mut state, c));
        }
        let levels = self.index.read().levels.clone();
        self.write_manifest(&mut state, &levels)?;
        self.bury(&mut state).and(outcome)
    }

    fn switch_to(&self, state: &mut State, c: Copying) -> Result<()> {
        let at = c.target.place();
        let is_there = self.volumes.is_sound(at.volume);
        let now = self.volumes.hot_first(c.now());
        let old = match c.what {
            _ if !is_there => Ok(None),
            What::Segment => self.switch_segment(c.from, now),
            What::Pack => self.switch_pack(c.from, now),
            What::Table(_) => self.switch_table(c.from, now, c.len),
        };
        match old {
            Ok(Some(old)) => state.outdated.extend(c.instead.map(|place| (old, place))),
            // Somebody has replaced it meanwhile.
            Ok(None) => return self.drop_copy(c),
            Err(e) => return self.drop_copy(c).and(Err(e)),
        }
        match c.stays() {
            Some(other) => self.volumes.shrink(other, at.size).map(drop),
            None => Ok(()),
        }
    }

    /// From now on a segment is in other places; returns what it was in, if it was.
    pub(crate) fn switch_segment(&self, from: RegionRef, to: RegionRef) -> Result<Option<Arc<dyn Region>>> {
        let mut segments = self.segments.lock();
        let mut regions = self.regions.write();
        let Some(s) = segments.iter_mut().find(|s| s.pack.is_none() && s.at.is(from)) else { return Ok(None) };
        // (Opening claims the space: not that of one that has gone meanwhile.)
        let region = self.volumes.open(to)?;
        (s.at, s.trimmed) = (region.place(), true);
        Ok(regions.insert(to.id, region))
    }

    pub(crate) fn switch_pack(&self, from: RegionRef, to: RegionRef) -> Result<Option<Arc<dyn Region>>> {
        if !self.packs.lock().iter().any(|p| p.place().is(from)) {
            return Ok(None);
        }
        let target = self.volumes.open(to)?;
        let parts = match self.volumes.is_cold(to) {
            true => None,
            false => match pack::read(&*target, &self.uuid) {
                // It is moved as it is.
                Err(e) if e.is_lost() => None,
                parts => Some(parts?),
            },
        };
        let segments = self.segments.lock();
        let mut regions = self.regions.write();
        let mut packs = self.packs.lock();
        let Some(p) = packs.iter_mut().find(|p| p.place().is(from)) else { return Ok(None) };
        let old = std::mem::replace(p, target.clone());
        for s in segments.iter().filter(|s| parts.is_none() && s.pack == Some(from.id)) {
            regions.insert(s.at.id, Arc::new(Packed::unread(target.clone(), s.at, self.uuid)));
        }
        for part in parts.into_iter().flatten() {
            if segments.iter().any(|s| s.at.id == part.number && s.pack == Some(from.id)) {
                regions.insert(part.number, Arc::new(Packed::new(target.clone(), part)));
            }
        }
        Ok(Some(old))
    }

    pub(crate) fn switch_table(&self, from: RegionRef, to: RegionRef, len: u64) -> Result<Option<Arc<dyn Region>>> {
        let is_it = |t: &Arc<Table>| t.reference().region.is(from);
        if !self.index.read().levels.tables().any(is_it) {
            return Ok(None);
        }
        let table = Arc::new(Table::open(self.volumes.open(to)?, len)?);
        let mut index = self.index.write();
        let mut levels = Levels::clone(&index.levels);
        let runs = levels.live.iter_mut().chain(&mut levels.history).flat_map(|run: &mut Run| &mut run.tables);
        let Some(place) = runs.into_iter().find(|t| is_it(t)) else { return Ok(None) };
        let old = std::mem::replace(place, table);
        index.levels = Arc::new(levels);
        Ok(Some(old.region().clone()))
    }
}
