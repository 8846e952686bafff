//! Upkeep: flushing the memtable, merging runs, checkpoints. docs/format.md §Checkpoint.
//!
//! A checkpoint is: log durable up to P → tables and manifest durable → superblock durable. A crash in between
//! leaves the older superblock valid, whose manifest names none of the new regions. Space of replaced regions is given
//! back only after the superblock that no longer names them is durable, and when their last reader is gone.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use parking_lot::MutexGuard;

use crate::ageing::Ageing;
use crate::clean::{Batch, Written};
use crate::collapse::Pass;
use crate::counts::Counts;
use crate::frame::{self, Content};
use crate::index::Entry;
use crate::index::ghost::Ghost;
use crate::index::levels::{Levels, Run};
use crate::index::merge::{Divider, Merged, Source, run_source};
use crate::index::table::{Builder, Table};
use crate::log::Tail;
use crate::manifest::{Manifest, Position};
use crate::reading::Window;
use crate::segment::{self, Segment};
use crate::sieve::{Account, Lapses};
use crate::store::{RESERVE_MIN, SEGMENT_MIN, Store};
use crate::superblock::Superblock;
use crate::volume::{For, Region, RegionRef, VolumeEntry, flush_all};
use crate::{FilesetId, Result, Tid};

/// After an open nothing is known of what has lapsed: then a look, after so long (nanoseconds).
const FIRST_LOOK: u64 = 30_000_000_000;
/// Replay after a crash reads no more of the log than about this.
pub(crate) const LOG_MAX: u64 = 256 << 20;
/// Newer runs together at least this share (1/n) of the next one: merge them.
const MERGE_RATIO: u64 = 3;
const RUNS_MIN: usize = 3;
/// While the index is derived, few look anything up: what is merged seldom is written seldom.
const RUNS_MIN_DERIVING: usize = 12;
/// With less free space than this, no segment is made ahead.
const SPARE_MIN: u64 = 64 << 20;
/// A seal alone has no more bytes; and so many segments without anything else are given back.
const EMPTY_MAX: u64 = 256;
const EMPTY_MANY: usize = 16;

/// What the last checkpoint said.
pub(crate) struct State {
    /// Where replay would start.
    pub log: Position,
    /// Newest transaction in the tables.
    pub tid: Tid,
    pub counts: Counts,
    pub next_object: u64,
    /// [`crate::log::Tail::appended`] then.
    pub appended: u64,
    /// The manifest's region.
    pub manifest: Option<RegionRef>,
    /// Position and counts that belong to the frozen memtable.
    pub pending: Option<Pending>,
    /// Regions whose space is to be given back once nobody reads them.
    pub doomed: Vec<Arc<Table>>,
    /// The same, of segments and packs that were cleaned.
    pub doomed_regions: Vec<(Arc<dyn Region>, RegionRef)>,
    /// The same, as long as the last manifest still names them.
    pub outdated: Vec<(Arc<dyn Region>, RegionRef)>,
    /// The collapse under way.
    pub pass: Option<Pass>,
    /// What the cleaner is at, and the pack that it has written last.
    pub batch: Option<Batch>,
    pub written: Option<Written>,
    /// When what is superseded by now lapses.
    pub lapses: Lapses,
    /// What became history since the last pass began, by fileset.
    pub grown: BTreeMap<FilesetId, u64>,
    /// What the last pass found.
    pub account: Option<Account>,
    /// When to look for the first time.
    pub first_look: Option<u64>,
    /// How many passes were begun and steps of them done, and after which of those segments were cleaned.
    pub passes: u64,
    pub cleaned: HashMap<u64, u64>,
    /// Segments that can't be cleaned, because they can't be read.
    pub damaged: HashSet<u64>,
    /// Segments that held what is to be forgotten, as passes found, and were not cleaned since.
    pub forgotten: HashSet<u64>,
    /// Of what was dropped, and is in no table: they go with the next flush.
    pub ghosts: Vec<Ghost>,
    /// The index is being derived: nothing names its tables before it is whole.
    pub deriving: bool,
}

impl State {
    /// Whether it is time for a look at what has lapsed, of which nothing is known yet.
    pub fn first_look_is_due(&mut self, now_ns: u64) -> bool {
        now_ns >= *self.first_look.get_or_insert(now_ns.saturating_add(FIRST_LOOK))
    }

    /// Puts that look off.
    pub fn look_later(&mut self, now_ns: u64) {
        self.first_look = Some(now_ns.saturating_add(FIRST_LOOK));
    }

    /// Old regions that wait for their last reader, or for the next manifest.
    pub fn waiting(&self) -> impl Iterator<Item = RegionRef> {
        let tables = self.doomed.iter().map(|t| t.reference().region);
        tables.chain(self.doomed_regions.iter().chain(&self.outdated).map(|(_, at)| *at))
    }

    /// Whether there is one of this number among them.
    pub fn waits(&self, id: u64) -> bool {
        self.waiting().any(|at| at.id == id)
    }

    fn saved(&self) -> Pending {
        let State { log, tid, appended, next_object, .. } = *self;
        Pending { log, tid, counts: self.counts.clone(), appended, next_object }
    }

    fn set(&mut self, p: Pending) {
        (self.log, self.tid, self.appended) = (p.log, p.tid, p.appended);
        (self.counts, self.next_object) = (p.counts, p.next_object);
    }
}

/// The state of the log when a memtable was frozen.
#[derive(Clone)]
pub(crate) struct Pending {
    pub log: Position,
    pub tid: Tid,
    pub counts: Counts,
    pub appended: u64,
    pub next_object: u64,
}

/// Whether a step found something to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// Nothing is due.
    Idle,
    /// Something was done; there may be more.
    Worked,
}

/// Which family a merge is in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Live,
    History,
}

/// Segments, and the packs that they may be in, as a manifest is to name them.
pub(crate) struct Named {
    pub segments: Vec<Segment>,
    pub packs: Vec<Arc<dyn Region>>,
}

impl Named {
    /// The segments up to a position; later ones are found by following the seals.
    fn up_to(mut self, log: Position) -> Named {
        if let Some(i) = self.segments.iter().position(|s| s.at.id == log.region) {
            self.segments.truncate(i + 1);
        }
        if let Some(last) = self.segments.last_mut() {
            last.end = 0;
        }
        self
    }
}

impl Store {
    /// Does the most urgent piece of upkeep, if any is due: flush, merge, prepare the next segment.
    pub fn step(&self) -> Result<Progress> {
        if self.read_only {
            return Ok(Progress::Idle);
        }
        let outcome = self.step_urgent();
        if !matches!(outcome, Ok(Progress::Worked)) {
            self.tell_of_rot()?;
            self.volumes.hold(RESERVE_MIN);
        }
        outcome
    }

    fn step_urgent(&self) -> Result<Progress> {
        self.prepare_segment()?;
        let mut state = self.maintenance.lock();
        self.trim_segments()?;
        if self.flush_is_due(&state) {
            self.flush_locked(&mut state)?;
            return Ok(Progress::Worked);
        }
        if self.step_merge(&mut state)? {
            return Ok(Progress::Worked);
        }
        self.bury(&mut state)?;
        Ok(Progress::Idle)
    }

    /// Merges runs, if that is due; says whether it was.
    pub(crate) fn step_merge(&self, state: &mut State) -> Result<bool> {
        let levels = self.index.read().levels.clone();
        let least = if state.deriving { RUNS_MIN_DERIVING } else { RUNS_MIN };
        let in_pass = |r: &Run| state.pass.as_ref().is_some_and(|p| p.has(r));
        // A pass has all runs behind those that were flushed since it began.
        let free = levels.live.iter().position(in_pass).unwrap_or(levels.live.len());
        if let Some(n) = merge_choice(&levels.live[..free], least) {
            self.merge(state, Family::Live, levels.live[..n].to_vec())?;
            return Ok(true);
        }
        let mut by_size: Vec<Run> = levels.history.iter().filter(|r| !in_pass(r)).cloned().collect();
        by_size.sort_by_key(Run::len);
        if let Some(n) = merge_choice(&by_size, least) {
            self.merge(state, Family::History, by_size[..n].to_vec())?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Flushes the index so that the next open replays nothing.
    pub fn checkpoint(&self) -> Result<()> {
        self.tell_opening()?;
        let mut state = self.maintenance.lock();
        self.flush_locked(&mut state)
    }

    /// Ends everything durable and gives back what was reserved ahead.
    pub fn close(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.end_copy(&mut self.maintenance.lock())?;
        self.end_log_twice()?;
        self.checkpoint()?;
        self.drop_empty_segments()?;
        if let Some(spare) = self.spare.lock().take() {
            self.volumes.remove(spare.place())?;
        }
        Ok(())
    }

    /// Gives back sealed segments to which nothing was written, where they are many: each open and close may leave some.
    fn drop_empty_segments(&self) -> Result<()> {
        let mut state = self.maintenance.lock();
        let mut segments = self.segments.lock().clone();
        let sealed = segment::sealed(&segments, state.log.region);
        let may_be = |s: &&Segment| s.pack.is_none() && s.end <= segment::HEADER + EMPTY_MAX;
        let small: Vec<Segment> = segments[..sealed].iter().filter(may_be).copied().collect();
        if small.len() < EMPTY_MANY {
            return Ok(());
        }
        // (What can't be read stays.)
        let empty: HashSet<u64> = small.iter().filter(|s| self.is_empty(s).unwrap_or(false)).map(|s| s.at.id).collect();
        if empty.len() < EMPTY_MANY {
            return Ok(());
        }
        segments.retain(|s| !empty.contains(&s.at.id));
        let packs = self.packs.lock().clone();
        let gone = self.name_only(&mut state, Named { segments, packs })?;
        state.doomed_regions.extend(gone.into_iter().map(|region| (region.clone(), region.place())));
        self.bury(&mut state)
    }

    /// Has the manifest name these segments and packs only; returns the regions of the other segments.
    fn name_only(&self, state: &mut State, named: Named) -> Result<Vec<Arc<dyn Region>>> {
        let stays: HashSet<u64> = named.segments.iter().map(|s| s.at.id).collect();
        let packs: HashSet<u64> = named.packs.iter().map(|p| p.place().id).collect();
        let levels = self.index.read().levels.clone();
        self.write_manifest_of(state, &levels, named, None)?;
        let mut gone: Vec<u64> = Vec::new();
        self.segments.lock().retain(|s| {
            let is_gone = !stays.contains(&s.at.id);
            gone.extend(Some(s.at.id).filter(|_| is_gone));
            !is_gone
        });
        self.packs.lock().retain(|p| packs.contains(&p.place().id));
        let mut regions = self.regions.write();
        Ok(gone.iter().filter_map(|id| regions.remove(id)).collect())
    }

    /// Lets go of what was on volumes that are no more, once nobody needs any of it, as the last pass has found.
    pub(crate) fn drop_lost(&self, state: &mut State) -> Result<()> {
        let sb = self.volumes.superblock();
        let lost = self.regions_where(&|at| at.places().all(|at| sb.entry(at.volume).is_none()));
        if lost.is_empty() {
            return Ok(());
        }
        let segments = self.segments.lock().clone();
        let needed: HashSet<u64> = segments.iter().filter(|s| s.live > 0).map(Segment::container).collect();
        let is_gone = |id: u64| lost.contains(&id) && !needed.contains(&id);
        let (ended, newer) = segments.split_at(segment::sealed(&segments, state.log.region));
        if !ended.iter().any(|s| is_gone(s.container())) {
            return Ok(());
        }
        let stays = ended.iter().filter(|s| !is_gone(s.container())).chain(newer).copied().collect();
        let packs = self.packs.lock().iter().filter(|p| !is_gone(p.place().id)).cloned().collect();
        self.name_only(state, Named { segments: stays, packs }).map(drop)
    }

    /// Whether a segment has nothing but its seal.
    fn is_empty(&self, s: &Segment) -> Result<bool> {
        let mut window = Window::new(self.regions.read()[&s.at.id].clone(), segment::HEADER);
        window.fill_frame(segment::HEADER)?;
        let first = frame::parse(window.bytes(segment::HEADER), s.at.id, segment::HEADER);
        Ok(first.is_some_and(|first| matches!(first.content, Content::Seal(_))))
    }

    pub(crate) fn flush_is_due(&self, state: &State) -> bool {
        let appended = self.log.tail().appended;
        let index = self.index.read();
        index.active.bytes() as u64 > self.memtable_max() || appended - state.appended > LOG_MAX
    }

    /// Memory for the memtable before it is flushed (a frozen one may exist besides).
    pub(crate) fn memtable_max(&self) -> u64 {
        self.memory / 8
    }

    /// Makes the next segment before it is needed.
    fn prepare_segment(&self) -> Result<()> {
        let half_full = {
            let t = self.log.tail();
            t.room() < t.segment.place().size / 2
        };
        // On a nearly full volume the reserve is for those who delete, when they need it.
        if !half_full || self.spare.lock().is_some() || self.usage()?.free < SPARE_MIN {
            return Ok(());
        }
        match self.create_segment(SEGMENT_MIN) {
            Ok(region) => {
                let mut spare = self.spare.lock();
                match &*spare {
                    // Somebody else was faster; or its volume is to be emptied, perhaps gone already.
                    None if !self.volumes.accept(region.place()) => drop(self.volumes.remove(region.place())),
                    Some(_) => self.volumes.remove(region.place())?,
                    None => *spare = Some(region),
                }
            }
            // Then the writer that needs it is told.
            Err(crate::Error::NoSpace { .. }) => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// Gives back what sealed segments did not use.
    pub(crate) fn trim_segments(&self) -> Result<()> {
        let due = |s: &crate::segment::Segment| s.end != 0 && !s.trimmed;
        if !self.segments.lock().iter().rev().nth(1).is_some_and(due) {
            return Ok(());
        }
        // Zeroes may be on their way behind the end of one that was just sealed.
        self.log.quiet(|| {
            for s in self.segments.lock().iter_mut().rev().skip(1).take_while(|s| due(s)) {
                if s.pack.is_none() {
                    s.at = self.volumes.shrink(s.at, s.end)?;
                }
                s.trimmed = true;
            }
            Ok(())
        })
    }

    pub(crate) fn flush_locked(&self, state: &mut State) -> Result<()> {
        self.flush_from(state, self.log.tail())
    }

    /// As [`Store::flush_locked`], for who holds the log's tail.
    pub(crate) fn flush_from(&self, state: &mut State, tail: MutexGuard<'_, Tail>) -> Result<()> {
        let (log, tid) = (tail.position(), tail.last);
        if (log, tid) == (state.log, state.tid) && self.index.read().frozen.is_none() {
            return Ok(());
        }
        let (counts, appended) = (tail.counts.clone(), tail.appended);
        let next_object = self.next_object();
        let frozen = {
            let mut index = self.index.write();
            // An earlier flush that failed left its memtable: it goes first, alone, with the old position.
            match &index.frozen {
                Some(f) => f.clone(),
                None => {
                    let f = Arc::new(std::mem::take(&mut index.active));
                    index.frozen = Some(f.clone());
                    state.pending = Some(Pending { log, tid, counts, appended, next_object });
                    f
                }
            }
        };
        drop(tail);
        self.log.sync_all()?;
        let levels = self.index.read().levels.clone();
        let entries = vec![Box::new(frozen.entries().map(Ok)) as Source];
        let input = Input { entries, ghosts: state.ghosts.clone() };
        let (new_live, new_history) = self.write_tables(input, Family::Live, levels.live.is_empty(), state, false)?;
        let mut next = (*levels).clone();
        next.live.splice(0..0, new_live);
        next.history.extend(new_history);
        let before = state.saved();
        let pending = state.pending.take();
        if let Some(p) = pending.clone() {
            state.set(p);
        }
        let outcome = self.commit_levels(state, next, true);
        if outcome.is_err() {
            // A manifest that a merge writes must not claim what only the frozen memtable holds.
            state.set(before);
            state.pending = pending;
        } else {
            state.ghosts.clear();
        }
        outcome
    }

    /// Writes the manifest that names `levels`, points the superblock to it, and switches readers over.
    pub(crate) fn commit_levels(&self, state: &mut State, levels: Levels, flushed: bool) -> Result<()> {
        self.write_manifest(state, &levels)?;
        let mut index = self.index.write();
        index.levels = Arc::new(levels);
        if flushed {
            index.frozen = None;
        }
        Ok(())
    }

    /// Writes a manifest of what there is, and of the index as `levels` say, and points the superblock to it.
    pub(crate) fn write_manifest(&self, state: &mut State, levels: &Levels) -> Result<()> {
        self.write_manifest_of(state, levels, self.named(), None)
    }

    /// What there is now.
    pub(crate) fn named(&self) -> Named {
        Named { segments: self.segments.lock().clone(), packs: self.packs.lock().clone() }
    }

    /// Writes a manifest that names these, and points the superblock to it. Tables, and a `pack`, that are not durable yet become
    /// so with the manifest: they share its flush. If that fails, they are given back.
    pub(crate) fn write_manifest_of(
        &self,
        state: &mut State,
        levels: &Levels,
        named: Named,
        pack: Option<&Arc<dyn Region>>,
    ) -> Result<()> {
        if state.deriving {
            flush_all(pack)?;
            state.doomed_regions.append(&mut state.outdated);
            return Ok(());
        }
        // First its own number: others are handed out meanwhile, and all that it names are below the next one.
        let id = self.next_region.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let manifest = self.manifest_of(state, levels, named);
        let bytes = manifest.encode(id);
        let fresh: Vec<_> = levels.tables().filter(|t| !t.is_durable()).collect();
        let mut made = None;
        let written = (|| {
            let sb = self.volumes.superblock();
            let mut sb = Superblock { generation: sb.generation + 1, manifest_len: bytes.len() as u64, ..sb };
            let room = Manifest::room_with(sb.manifest_len, &sb);
            let region = made.insert(self.volumes.create(id, room, For::Manifest, false)?);
            sb.manifest = region.place();
            Manifest::write(&**region, &bytes, &sb)?;
            flush_all(std::iter::once(&*region).chain(pack).chain(fresh.iter().map(|t| t.region())))?;
            Ok(region.clone())
        })();
        let region = match written {
            Ok(region) => region,
            Err(e) => {
                // No superblock names any of it; what was derived is read already.
                let read = self.index.read().levels.clone();
                let unread = fresh.into_iter().filter(|t| !read.tables().any(|r| Arc::ptr_eq(r, t)));
                made.iter().chain(pack).for_each(|region| self.give_back_or_leave(region.place()));
                unread.for_each(|t| self.give_back_or_leave(t.reference().region));
                return Err(e);
            }
        };
        fresh.iter().for_each(|t| t.note_durable());
        self.volumes.write_super(|sb| {
            sb.manifest = region.place();
            sb.manifest_len = bytes.len() as u64;
            // Nothing is named any more where it was missed.
            let is_back = |e: &&VolumeEntry| e.away.is_some() && self.volumes.is_sound(e.number);
            let back: Vec<VolumeEntry> = sb.volumes.iter().filter(is_back).cloned().collect();
            back.into_iter().for_each(|e| sb.volumes.put(VolumeEntry { away: None, ..e }));
        })?;
        self.volumes.set_lacking(self.lacking(&manifest));
        state.doomed_regions.append(&mut state.outdated);
        if let Some(old) = state.manifest.replace(region.place()) {
            self.give_back_or_leave(old);
        }
        Ok(())
    }

    /// What is to be told of the store as it is.
    pub(crate) fn manifest_of(&self, state: &State, levels: &Levels, named: Named) -> Manifest {
        let Named { segments, packs } = named.up_to(state.log);
        let name = |runs: &[Run]| runs.iter().map(Run::reference).collect();
        Manifest {
            tid: state.tid,
            next_region: self.next_region.load(std::sync::atomic::Ordering::Relaxed),
            next_object: state.next_object,
            counts: state.counts.clone(),
            log: state.log,
            segments,
            packs: packs.iter().map(|p| p.place()).collect(),
            live: name(&levels.live),
            history: name(&levels.history),
        }
    }

    /// Writes the manifest of what there is.
    pub(crate) fn write_manifest_now(&self) -> Result<()> {
        let mut state = self.maintenance.lock();
        let levels = self.index.read().levels.clone();
        self.write_manifest(&mut state, &levels)
    }

    /// Merges the runs; a flush that falls due meanwhile goes first.
    fn merge(&self, state: &mut State, family: Family, runs: Vec<Run>) -> Result<()> {
        let levels = self.index.read().levels.clone();
        let bottom = family == Family::Live && levels.live.len() == runs.len();
        let input = Input { entries: runs.iter().map(run_source).collect(), ghosts: ghosts_of(&runs) };
        let (live, history) = self.write_tables(input, family, bottom, state, true)?;
        // A flush may have added runs meanwhile: put ours in the place of those that were merged.
        let mut next = Levels::clone(&self.index.read().levels);
        let merged = |r: &Run| runs.iter().any(|m| m.is(r));
        if family == Family::Live {
            let at = next.live.iter().position(merged).expect("merged runs are in the levels");
            next.live.splice(at..at + runs.len(), live);
        } else {
            next.history.retain(|r| !merged(r));
        }
        next.history.extend(history);
        self.commit_levels(state, next, false)?;
        state.doomed.extend(runs.into_iter().flat_map(|r| r.tables));
        self.bury(state)
    }

    /// Nothing names it any more: where it can't be given back now, the next open does it.
    pub(crate) fn give_back_or_leave(&self, at: RegionRef) {
        if let Err(e) = self.give_back(at) {
            self.not_given_back.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            tracing::warn!("region {:x} takes its space until the next mount: {e}", at.id);
        }
    }

    /// Gives back the space of replaced tables and segments that nobody reads any more.
    pub(crate) fn bury(&self, state: &mut State) -> Result<()> {
        let (free, read): (Vec<_>, Vec<_>) = state.doomed.drain(..).partition(|t| Arc::strong_count(t) == 1);
        state.doomed = read;
        free.into_iter().for_each(|t| self.give_back_or_leave(t.reference().region));
        let (free, read): (Vec<_>, Vec<_>) =
            state.doomed_regions.drain(..).partition(|(r, _)| Arc::strong_count(r) == 1);
        state.doomed_regions = read;
        free.into_iter().for_each(|(_, at)| self.give_back_or_leave(at));
        Ok(())
    }

    /// Writes the entries as a live and a history run (either may be absent). `flush`: the memtable, when that
    /// falls due meanwhile.
    fn write_tables(
        &self,
        input: Input<'_>,
        family: Family,
        bottom: bool,
        state: &mut State,
        flush: bool,
    ) -> Result<(Option<Run>, Option<Run>)> {
        let mut made = Vec::new();
        let outcome = self.write_runs(input, family, bottom, state, flush, &mut made);
        if outcome.is_err() {
            // Nothing names them; what can't be removed goes at the next open.
            made.into_iter().for_each(|at| drop(self.volumes.remove(at)));
        }
        outcome
    }

    /// As [`Store::write_tables`]; `made` gets the regions.
    fn write_runs(
        &self,
        input: Input<'_>,
        family: Family,
        bottom: bool,
        state: &mut State,
        flush: bool,
        made: &mut Vec<RegionRef>,
    ) -> Result<(Option<Run>, Option<Run>)> {
        let mut merged = Merged::new(input.entries)?;
        let mut divider = Divider::new(bottom, self.index.read().filesets.clones());
        let mut ageing = Ageing::new(self.clock());
        let mut outputs = [(); 2].map(|()| RunWriter::new(self.table_size));
        let mut n = 0u64;
        let mut ghosts = input.ghosts.into_iter().peekable();
        while let Some(entry) = merged.next()? {
            while let Some(g) = ghosts.next_if(|g| *g.from <= *entry.key) {
                outputs[usize::from(family == Family::History)].ghost(g);
            }
            let until = match family {
                Family::Live => divider.superseded(&entry),
                Family::History => Some(Tid::MAX),
            };
            // (An open knows nothing of that either.)
            if family == Family::Live && !state.deriving {
                ageing.note(self, &entry, until, &mut state.lapses, &mut state.grown)?;
            }
            outputs[usize::from(until.is_some())].add(self, &entry, made)?;
            n += 1;
            if flush && !state.deriving && n.is_multiple_of(4096) && self.flush_is_due(state) {
                self.flush_locked(state)?;
            }
        }
        ghosts.for_each(|g| outputs[usize::from(family == Family::History)].ghost(g));
        let [live, history] = outputs;
        Ok((live.finish(self, made)?, history.finish(self, made)?))
    }
}

/// What tables are made of.
struct Input<'i> {
    entries: Vec<Source<'i>>,
    /// In order.
    ghosts: Vec<Ghost>,
}

/// The ghosts of some runs, in order.
pub(crate) fn ghosts_of<'r>(runs: impl IntoIterator<Item = &'r Run>) -> Vec<Ghost> {
    let mut all: Vec<Ghost> = runs.into_iter().flat_map(|r| r.ghosts(Tid::ZERO)).collect();
    all.sort();
    all.dedup();
    all
}

/// Writes entries as the tables of a run.
pub(crate) struct RunWriter {
    /// A table that grows beyond this is ended and the next begun.
    table_size: usize,
    builder: Option<Builder>,
    region: u64,
    run: Run,
    /// Of a table that is not begun.
    ghosts: Vec<Ghost>,
}

impl RunWriter {
    pub fn new(table_size: usize) -> RunWriter {
        RunWriter { table_size, builder: None, region: 0, run: Run::default(), ghosts: Vec::new() }
    }

    pub fn add(&mut self, store: &Store, entry: &Entry, made: &mut Vec<RegionRef>) -> Result<()> {
        if self.builder.as_ref().is_some_and(|b| b.len() >= self.table_size) {
            self.end_table(store, made)?;
        }
        self.begin_table(store).add(entry);
        Ok(())
    }

    /// Notes what was dropped about here; it goes into the table that comes next.
    pub fn ghost(&mut self, g: Ghost) {
        // In a full table no key follows: it would seem to have the first one of the next.
        match &mut self.builder {
            Some(builder) if builder.len() < self.table_size => builder.ghost(g),
            _ => self.ghosts.push(g),
        }
    }

    fn begin_table(&mut self, store: &Store) -> &mut Builder {
        let RunWriter { builder, region, ghosts, .. } = self;
        builder.get_or_insert_with(|| {
            *region = store.next_region.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let mut builder = Builder::new(*region);
            ghosts.drain(..).for_each(|g| builder.ghost(g));
            builder
        })
    }

    fn end_table(&mut self, store: &Store, made: &mut Vec<RegionRef>) -> Result<()> {
        let Some(bytes) = self.builder.take().and_then(Builder::finish) else { return Ok(()) };
        let region = store.volumes.create(self.region, bytes.len() as u64, For::Index, false)?;
        made.push(region.place());
        region.write_at(&bytes, 0)?;
        region.write_back(0, bytes.len() as u64);
        self.run.tables.push(Arc::new(Table::written(region, bytes.len() as u64)?));
        Ok(())
    }

    pub fn finish(mut self, store: &Store, made: &mut Vec<RegionRef>) -> Result<Option<Run>> {
        self.end_table(store, made)?;
        if !self.ghosts.is_empty() {
            self.begin_table(store);
            self.end_table(store, made)?;
        }
        Ok((!self.run.tables.is_empty()).then_some(self.run))
    }
}

/// How many of the first runs to merge, `least` or more: the longest stretch of which each is not much larger than all before it.
fn merge_choice(runs: &[Run], least: usize) -> Option<usize> {
    let mut n = 1;
    let mut sum = runs.first()?.len();
    while n < runs.len() && runs[n].len() <= MERGE_RATIO * sum {
        sum += runs[n].len();
        n += 1;
    }
    (n >= least).then_some(n)
}
