//! Cleaning: what no version in the index needs leaves the segments, and their space comes back. docs/format.md §Pack.
//!
//! A batch of victims (whole segments, or packs) is marked by one look at the index: that of the collapse before it, or, where
//! none is due, one of its own. Then, portion by portion, what is needed
//! is copied to a pack, a manifest switches over, and the victims' regions are given back: a portion needs little room, and
//! holds up nobody for long. Victims are chosen by benefit and cost as in Rosenblum & Ousterhout 1992:
//! (1 − u) · age / (1 + u), with u the share that is needed, as the last collapse found it. The age is that of the region,
//! not of what is in it: a pack that was made just now has had no time to lose anything, however old its bytes are, and
//! what loses as fast as all others is worth most where most is lost (after Lomet & Luo 2019, "Efficiently reclaiming
//! space in a log structured store").
//!
//! Invariants: only segments before the checkpoint's log position are cleaned, so replay never meets a pack. Chunk maps
//! that come about after the look lead only to extents that it found needed, because each is made of earlier ones; so a look
//! says at worst too much, however long it is ago.
//! A tombstone (or hole) that is in no index any more stays in its segment unless all older segments were cleaned since the
//! last collapse: else an index made anew from the segments would find again what it hid.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use parking_lot::MutexGuard;

use crate::collapse::Advance;
use crate::forget::Forgotten;
use crate::maintain::{Named, Progress, State};
use crate::mark::Needed;
use crate::pack::{self, Packed, Writer};
use crate::remains::is_forgotten;
use crate::segment::{LIVE_UNKNOWN, Segment};
use crate::store::{SEGMENT_MIN, Store, Usage};
use crate::volume::{Region, RegionRef};
use crate::{Error, Result, Tid};

/// Needed bytes that one portion copies, at most about; on small volumes less ([`Store::portion_max`]).
const PORTION: u64 = 32 << 20;
const PORTION_MIN: u64 = 4 << 20;
/// The cleaner keeps off while less than 1/n of what is in use is waste.
const WASTE: u64 = 14;
/// So much waste at least, where there is no hurry.
const WASTE_MIN: u64 = 8 << 20;
/// A collapse is due when 1/n of the versions or bytes have lapsed, and so many at least.
const LAPSED: u64 = 16;
const LAPSED_BYTES_MIN: u64 = 8 << 20;
const LAPSED_VERSIONS_MIN: u64 = 20_000;

/// How hard to try.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effort {
    /// What pays.
    Steady,
    /// All that gives anything back.
    Full,
}

/// What a cleaning did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Bytes in use before it.
    pub before: u64,
    /// Bytes in use since.
    pub after: u64,
    /// Bytes copied to give them back.
    pub copied: u64,
}

/// A region whose bytes are one segment's, or what is left of several.
pub(crate) struct Container {
    /// The region.
    pub(crate) id: u64,
    /// Which segments, by their place in the list.
    segments: Vec<usize>,
    /// Bytes that it holds, those needed, and tombstones that may be stuck.
    pub(crate) kept: u64,
    needed: u64,
    tombstones: u64,
    /// Since when it loses what it holds.
    since: Tid,
    /// It holds something of a fileset that is kept twice.
    twice: bool,
}

impl Container {
    pub(crate) fn waste(&self) -> u64 {
        self.kept.saturating_sub(self.needed)
    }

    fn score(&self, now: u64) -> f64 {
        let used = self.needed.min(self.kept) as f64 / self.kept.max(1) as f64;
        // Young waste grows by itself if one waits.
        let age = (now.saturating_sub(self.since.0) as f64 / 1e9).clamp(1.0, 1e7).sqrt();
        (1.0 - used) * age / (1.0 + used)
    }
}

/// Victims, and what is needed of them as far as is known, that are still to be copied.
pub(crate) struct Batch {
    pub needed: Needed,
    /// Their segments, and in which order they are to go.
    ranks: HashMap<u64, usize>,
}

/// Whether room is short, with so many bytes of waste to be had.
fn is_pressed(u: &Usage, waste: u64) -> bool {
    u.is_short() && u.free < waste / 2
}

impl Store {
    /// Does a step of collapsing or cleaning, if one pays. `now_ns`: the wall clock.
    pub fn step_clean(&self, now_ns: u64) -> Result<Progress> {
        if self.read_only {
            return Ok(Progress::Idle);
        }
        self.clock.fetch_max(now_ns, std::sync::atomic::Ordering::Relaxed);
        let mut state = self.maintenance.lock();
        if state.pass.is_some() {
            self.step_pass(&mut state)?;
            return Ok(Progress::Worked);
        }
        if self.clean_on(&mut state)?.is_some() {
            return Ok(Progress::Worked);
        }
        if self.collapse_is_due(&mut state, now_ns)? {
            // Whoever changes a retention may wait for upkeep.
            drop(state);
            self.advance_retentions(now_ns)?;
            self.begin_pass(&mut self.maintenance.lock(), now_ns)?;
            return Ok(Progress::Worked);
        }
        match self.clean_batch(&mut state, Effort::Steady)? {
            Some(_) => Ok(Progress::Worked),
            None => Ok(Progress::Idle),
        }
    }

    /// Collapses and cleans all there is; returns what that gave. `each` is told how far it is.
    pub fn clean(&self, now_ns: u64, each: &mut dyn FnMut(Advance)) -> Result<Cleaned> {
        let before = self.usage()?.used;
        self.advance_retentions(now_ns)?;
        self.end_segment()?;
        let mut state = self.maintenance.lock();
        self.trim_segments()?;
        self.whole_pass(&mut state, now_ns, each)?;
        let mut copied = 0;
        while let Some(n) = self.clean_batch(&mut state, Effort::Full)? {
            copied += n;
            MutexGuard::unlocked_fair(&mut state, || each(Advance { done: copied.min(before), total: before }));
        }
        self.bury(&mut state)?;
        drop(state);
        Ok(Cleaned { before, after: self.usage()?.used, copied })
    }

    /// Begins a new segment, so that changes since the last one was begun are cleaned too.
    pub(crate) fn end_segment(&self) -> Result<()> {
        let mut tail = self.log.tail();
        tail.check()?;
        match tail.end() > crate::segment::HEADER {
            true => self.next_segment(&mut tail, SEGMENT_MIN),
            false => Ok(()),
        }
    }

    /// Has the next [`Store::step_clean`] begin a collapse.
    pub fn want_collapse(&self) {
        *self.collapse_wanted.lock() = true;
    }

    /// Whether those who write will soon wait for the cleaner.
    pub fn is_short_of_room(&self) -> bool {
        self.usage().is_ok_and(|u| u.is_short())
    }

    /// Bytes in segments that nobody needs, as far as is known.
    pub fn dead_bytes(&self) -> u64 {
        let state = self.maintenance.lock();
        self.containers(&state).iter().map(Container::waste).sum()
    }

    fn collapse_is_due(&self, state: &mut State, now_ns: u64) -> Result<bool> {
        if std::mem::take(&mut *self.collapse_wanted.lock()) {
            return Ok(true);
        }
        let mut gives_up = false;
        for (fileset, _) in self.filesets() {
            gives_up |= !self.retention(fileset)?.grid.keeps_all();
        }
        // Keepless objects lapse whatever the grids say.
        if !gives_up && state.lapses.is_empty() {
            return Ok(false);
        }
        let Some(account) = &state.account else {
            return Ok(state.first_look_is_due(now_ns));
        };
        let (mut bytes, versions) = state.lapses.lapsed(now_ns);
        // What the memtable has superseded is not counted yet: what was written and is not growth.
        let tail = self.log.tail();
        let grown = tail.counts.total().live.saturating_sub(state.counts.total().live);
        bytes += (tail.appended - state.appended).saturating_sub(grown);
        drop(tail);
        let u = self.usage()?;
        let waste: u64 = self.containers(state).iter().map(Container::waste).sum();
        let levels = self.index.read().levels.clone();
        let index: u64 = levels.tables().map(|t| t.len()).sum();
        // The less room there is, the sooner; but no pass for less than it costs.
        let of_bytes = (u.used / LAPSED).min((u.free + waste + bytes) / 8).max(LAPSED_BYTES_MIN).max(index / 2);
        Ok(bytes >= of_bytes || versions >= (account.versions / LAPSED).max(LAPSED_VERSIONS_MIN))
    }

    /// What the cleaner may take. (What is in the bucket would have to be fetched first, and what is missing can't be.)
    fn containers(&self, state: &State) -> Vec<Container> {
        let out_of_reach = self.regions_where(&|at| self.volumes.is_out_of_reach(at));
        self.containers_of(state, &|id| !out_of_reach.contains(&id))
    }

    pub(crate) fn containers_of(&self, state: &State, chosen: &dyn Fn(u64) -> bool) -> Vec<Container> {
        let segments = self.segments.lock();
        let regions = self.regions.read();
        let mut by_region: HashMap<u64, Container> = HashMap::new();
        let sealed = segments.iter().enumerate().take_while(|(_, s)| s.at.id != state.log.region);
        for (i, s) in sealed.filter(|(_, s)| chosen(s.container())) {
            // (Where there are thousands, to ask each region takes longer than all the rest.)
            let kept = match s.pack {
                None => s.end,
                Some(_) if s.packed > 0 => s.packed,
                Some(_) => regions[&s.at.id].bytes_kept(),
            };
            let needed = if s.live == LIVE_UNKNOWN { kept } else { (s.live + s.slack).min(kept) };
            let c = by_region.entry(s.container()).or_insert_with(|| Container {
                id: s.container(),
                segments: Vec::new(),
                kept: 0,
                needed: 0,
                tombstones: 0,
                since: Tid::ZERO,
                twice: false,
            });
            c.segments.push(i);
            c.kept += kept;
            c.needed += needed;
            c.tombstones += s.tombstones;
            c.twice |= s.twice;
            // Regions are numbered about as they are made: the first segment with a higher number came after a pack.
            let next = match s.pack {
                Some(pack) => segments.get(segments.partition_point(|s| s.at.id < pack)),
                None => segments.get(i + 1),
            };
            c.since = c.since.max(next.map_or(Tid::MAX, |next| next.after));
        }
        let damaged = |c: &Container| c.segments.iter().any(|i| state.damaged.contains(&segments[*i].at.id));
        by_region.into_values().filter(|c| !damaged(c)).collect()
    }

    /// What to clean next, in this order; nothing if it does not pay.
    fn victims(&self, state: &State, effort: Effort) -> Result<Vec<Container>> {
        let mut all = self.containers(state);
        let u = self.usage()?;
        let waste: u64 = all.iter().map(Container::waste).sum();
        let room = self.room()?;
        let segments = self.segments.lock().clone();
        let must = |c: &Container| c.segments.iter().any(|i| state.forgotten.contains(&segments[*i].at.id));
        let wiping = self.wiping.load(std::sync::atomic::Ordering::Relaxed);
        // What has been swept since the last collapse is done with.
        let done = |i: &usize| state.cleaned.get(&segments[*i].at.id) == Some(&state.passes);
        let to_sweep = |c: &Container| c.needed <= room && !c.segments.iter().all(done);
        // Where some can't be, what is stuck behind it stays so: then the others are still cleaned for their waste.
        let stuck = all.iter().map(|c| c.tombstones).sum::<u64>() > u.used / WASTE;
        let sweep = stuck && all.iter().any(to_sweep);
        // What is written meanwhile makes more waste, which the next collapse finds: who is pressed is about as far by then.
        let (enough, each, at_once) = match effort {
            Effort::Full => (1, 64, waste),
            Effort::Steady if is_pressed(&u, waste) => (1 << 20, 32, waste / 5),
            Effort::Steady => ((u.used / WASTE).min(u.free).max(WASTE_MIN), 10, waste / 2),
        };
        if wiping || all.iter().any(must) {
            // Nothing of it may be left, nor any waste that might be of earlier versions.
            all.retain(|c| must(c) || wiping && c.waste() > 0);
        } else if sweep {
            // Oldest first: then what is stuck comes free.
            all.retain(to_sweep);
            all.sort_by_key(|c| c.segments.iter().min().copied());
        } else {
            if waste < enough {
                return Ok(Vec::new());
            }
            all.retain(|c| c.waste() > c.kept / each && c.waste() > 16 << 10);
            let now = self.clock();
            all.sort_by(|a, b| b.score(now).total_cmp(&a.score(now)));
        }
        all.retain(|c| c.needed <= room);
        // The look takes memory in proportion. And what pays least now will pay more later.
        let (mut sum, mut gained) = (0, 0);
        let most = self.memory.max(PORTION);
        let within = all.iter().take_while(|c| {
            let wanted = sweep || gained <= at_once;
            sum += c.needed;
            gained += c.waste();
            wanted && sum <= most
        });
        let n = within.count().max(1).min(all.len());
        all.truncate(n);
        Ok(all)
    }

    /// What a copy may take: some room is for the index meanwhile.
    fn room(&self) -> Result<u64> {
        Ok(self.usage()?.free.max(self.room_left()?) / 2)
    }

    /// Needed bytes that a portion copies: so few that the reserve has room for several.
    fn portion_max(&self) -> Result<u64> {
        Ok((self.reserve()? / 3).clamp(PORTION_MIN, PORTION))
    }

    /// Bytes of the volume that are not in use, the reserve included.
    fn room_left(&self) -> Result<u64> {
        let (used, size) = self.volume_usage()?;
        Ok(size.saturating_sub(used))
    }

    /// Cleans the next portion; returns how many bytes were copied, `None` if nothing is due or fits.
    pub(crate) fn clean_batch(&self, state: &mut State, effort: Effort) -> Result<Option<u64>> {
        // What is left of an earlier look goes first; a fresh one shows what pays then.
        let mut copied = self.clean_on(state)?;
        if copied.is_none() {
            state.batch = self.look(state, effort)?;
            copied = self.clean_on(state)?;
        }
        if copied.is_none() {
            self.bury(state)?;
        }
        Ok(copied)
    }

    /// Cleans the next portion of the batch under way; `None` if there is none, or nothing is left of it that pays and fits.
    fn clean_on(&self, state: &mut State) -> Result<Option<u64>> {
        // After a crash the sizes may be those from before a trim, and what lies behind the ends somebody else's: it must
        // not be overwritten when a victim is given back.
        self.trim_segments()?;
        let Some(mut batch) = state.batch.take() else { return Ok(self.end_copy(state)?.then_some(0)) };
        let copied = self.clean_portion(state, &mut batch)?;
        state.batch = copied.map(|_| batch);
        Ok(copied)
    }

    /// Chooses victims and looks up what is needed of them; `None` if it does not pay.
    fn look(&self, state: &mut State, effort: Effort) -> Result<Option<Batch>> {
        let Some(mut batch) = self.next_batch(state, effort)? else { return Ok(None) };
        let start = std::time::Instant::now();
        self.mark(state, &mut batch.needed)?;
        tracing::debug!(took_ms = start.elapsed().as_millis() as u64, "looked at what they need");
        Ok(Some(batch))
    }

    /// Chooses victims; `None` if it does not pay.
    pub(crate) fn next_batch(&self, state: &State, effort: Effort) -> Result<Option<Batch>> {
        let chosen = self.victims(state, effort)?;
        if chosen.is_empty() {
            return Ok(None);
        }
        let segments = self.segments.lock().clone();
        let victims: Vec<&Segment> = chosen.iter().flat_map(|c| &c.segments).map(|i| &segments[*i]).collect();
        let ranks = victims.iter().enumerate().map(|(rank, s)| (s.at.id, rank)).collect();
        let needed = Needed::of(&victims, &segments, self.forgotten()?);
        let sum = |of: fn(&Container) -> u64| chosen.iter().map(of).sum::<u64>() >> 10;
        tracing::debug!(
            containers = chosen.len(),
            kept_kib = sum(|c| c.kept),
            waste_kib = sum(Container::waste),
            "chose what to clean"
        );
        Ok(Some(Batch { needed, ranks }))
    }

    /// Cleans a portion of a batch; returns how many bytes were copied, `None` if nothing is left of it that pays and fits.
    ///
    /// The pack that is written is switched to by the next call, after that has copied its own portion: meanwhile the
    /// medium takes it, and the flush has little left to wait for.
    fn clean_portion(&self, state: &mut State, batch: &mut Batch) -> Result<Option<u64>> {
        let start = std::time::Instant::now();
        let mut most = self.portion_max()?;
        loop {
            let chosen = self.portion(state, batch, most)?;
            if chosen.is_empty() {
                return Ok(self.end_copy(state)?.then_some(0));
            }
            let segments = self.segments.lock().clone();
            let ids: Vec<u64> = chosen.iter().map(|i| segments[*i].at.id).collect();
            let gathered = self.gather(state, &batch.needed, &segments, &chosen);
            let switched = self.end_copy(state)?;
            match gathered.and_then(|g| self.write(g)) {
                // A volume that is full may still have room for small packs, and these make more.
                Err(Error::NoSpace { .. }) if most > 64 << 10 => most /= 4,
                Err(Error::NoSpace { .. }) => return Ok(switched.then_some(0)),
                Err(Error::Corrupt { .. }) => {
                    batch.ranks.retain(|id, _| !ids.contains(id));
                    return self.clean_apart(state, &batch.needed, &ids).map(Some);
                }
                Err(e) => return Err(e),
                Ok(written) => {
                    let bytes = written.region.place().size;
                    tracing::debug!(
                        bytes,
                        free_kib = self.usage()?.free >> 10,
                        took_ms = start.elapsed().as_millis() as u64,
                        "copied a portion"
                    );
                    batch.ranks.retain(|id, _| !ids.contains(id));
                    state.written = Some(written);
                    return Ok(Some(bytes));
                }
            }
        }
    }

    /// Switches to the pack that is on its way to the medium; says whether there was one.
    pub(crate) fn end_copy(&self, state: &mut State) -> Result<bool> {
        match state.written.take() {
            Some(written) => self.switch(state, written).map(|()| true),
            None => Ok(false),
        }
    }

    /// Cleans a portion region by region, because some of it is damaged: that stays as it is, for somebody to heal.
    fn clean_apart(&self, state: &mut State, needed: &Needed, portion: &[u64]) -> Result<u64> {
        let mut by_region: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        {
            let segments = self.segments.lock();
            for s in segments.iter().filter(|s| portion.contains(&s.at.id)) {
                by_region.entry(s.pack.unwrap_or(s.at.id)).or_default().push(s.at.id);
            }
        }
        let mut copied = 0;
        for ids in by_region.into_values() {
            // Those before may be gone by now.
            let segments = self.segments.lock().clone();
            let places: Vec<usize> = (0..segments.len()).filter(|i| ids.contains(&segments[*i].at.id)).collect();
            match self.copy_segments(state, needed, &segments, &places) {
                Ok(n) => copied += n,
                Err(Error::NoSpace { .. }) => {}
                Err(e @ Error::Corrupt { .. }) => {
                    tracing::error!("not cleaned: {e}");
                    state.damaged.extend(ids);
                }
                Err(e) => return Err(e),
            }
        }
        Ok(copied)
    }

    /// Which segments of a batch to copy next, by their places in the list, ascending. `most`: needed bytes.
    fn portion(&self, state: &State, batch: &Batch, most: u64) -> Result<Vec<usize>> {
        let segments = self.segments.lock().clone();
        let rank = |i: &usize| batch.ranks.get(&segments[*i].at.id);
        let mut all = self.containers(state);
        all.retain(|c| c.segments.iter().all(|i| rank(i).is_some()));
        all.sort_by_key(|c| c.segments.iter().filter_map(rank).min());
        // A pack has copies as a whole.
        let sort = all.first().is_some_and(|c| c.twice);
        let room = self.room()?;
        let mut chosen = Vec::new();
        let mut sum = 0;
        for c in all.into_iter().filter(|c| c.twice == sort) {
            // A large one is a portion by itself.
            let alone = chosen.is_empty() && most == self.portion_max()?;
            if c.needed > room.saturating_sub(sum) || !alone && sum + c.needed > most {
                continue;
            }
            sum += c.needed;
            chosen.extend(c.segments);
        }
        chosen.sort_unstable();
        Ok(chosen)
    }

    /// Copies what is needed of some segments, given by their places in the list, ascending, to a pack and switches over;
    /// returns its bytes.
    pub(crate) fn copy_segments(
        &self,
        state: &mut State,
        needed: &Needed,
        segments: &[Segment],
        chosen: &[usize],
    ) -> Result<u64> {
        let written = self.write(self.gather(state, needed, segments, chosen)?)?;
        let bytes = written.region.place().size;
        self.switch(state, written)?;
        Ok(bytes)
    }

    /// Takes what is needed of the victims into memory. A pack that is on its way is to be switched to first.
    fn gather(&self, state: &mut State, needed: &Needed, segments: &[Segment], chosen: &[usize]) -> Result<Gathered> {
        let going: HashSet<u64> = state.written.iter().flat_map(|w| &w.parts).map(|part| part.number).collect();
        let is_clean = |(i, s): (usize, &Segment)| {
            state.cleaned.get(&s.at.id) == Some(&state.passes)
                || chosen.binary_search(&i).is_ok()
                || going.contains(&s.at.id)
        };
        // Up to here nothing older is left that a tombstone might hide.
        let unclean = segments.iter().enumerate().position(|s| !is_clean(s)).unwrap_or(segments.len());
        let victims = || chosen.iter().map(|i| &segments[*i]);
        let guess: u64 = victims().map(|s| if s.live == LIVE_UNKNOWN { s.end } else { s.live + s.slack }).sum();
        let mut writer = Writer::new((guess + guess / 16) as usize);
        let mut tombstones = Vec::new();
        for &i in chosen {
            tombstones.push(self.copy_segment(state, &mut writer, &segments[i], needed, i < unclean)?);
        }
        Ok(Gathered { writer, tombstones, twice: victims().any(|s| s.twice) })
    }

    /// Writes a pack, which is on its way to the medium then.
    fn write(&self, gathered: Gathered) -> Result<Written> {
        let Gathered { writer, tombstones, twice } = gathered;
        let mut made = None;
        let written = writer.finish(&self.uuid, |size| {
            let region = self.create_pack(size, twice)?;
            made = Some(region.place());
            Ok(region)
        });
        match written {
            Ok((region, parts)) => Ok(Written { region, parts, tombstones }),
            Err(e) => {
                // Nothing names it.
                if let Some(at) = made {
                    self.volumes.remove(at)?;
                }
                Err(e)
            }
        }
    }

    /// Readers find the parts from now on, and so does the next open; the victims' regions are given back.
    fn switch(&self, state: &mut State, written: Written) -> Result<()> {
        let Written { region: pack, parts, tombstones } = written;
        let parts: Vec<(pack::Part, u64)> = parts.into_iter().zip(tombstones).collect();
        let id = pack.place().id;
        let mut segments = self.segments.lock().clone();
        let mut packs = self.packs.lock().clone();
        packs.push(pack.clone());
        for (part, tombstones) in &parts {
            enter(&mut segments, part, *tombstones, id);
        }
        drop_unused(&mut packs, &segments);
        let levels = self.index.read().levels.clone();
        self.write_manifest_of(state, &levels, Named { segments, packs }, Some(&pack))?;
        let mut segments = self.segments.lock();
        let mut regions = self.regions.write();
        let mut packs = self.packs.lock();
        packs.push(pack.clone());
        for (part, tombstones) in parts {
            state.forgotten.remove(&part.number);
            state.cleaned.insert(part.number, state.passes);
            let was = enter(&mut segments, &part, tombstones, id);
            let before = match part.runs.len() {
                0 => regions.remove(&part.number),
                _ => regions.insert(part.number, Arc::new(Packed::new(pack.clone(), part))),
            };
            // What lay in another pack has no region of its own.
            state.doomed_regions.extend(before.zip(was));
        }
        state.doomed_regions.extend(drop_unused(&mut packs, &segments).into_iter().map(|p| (p.clone(), p.place())));
        drop((segments, regions, packs));
        self.bury(state)
    }

    /// Whether a segment holds records of what is to be forgotten, or that no index has any more.
    fn holds_forgotten(&self, s: &Segment, forgotten: &Forgotten) -> Result<bool> {
        let mut holds = false;
        let searched = self.each_transaction(s, &mut |frame| {
            let tid = frame.frame.header.tid;
            for r in frame.records {
                holds = holds || is_forgotten(forgotten, r, tid) || self.has_lapsed(r, tid)?;
            }
            Ok(())
        });
        match searched {
            // What can't be read may hold some of it: whoever forgets is told.
            Err(Error::Corrupt { .. }) => Ok(true),
            searched => searched.map(|()| holds),
        }
    }

    /// Cleans the segments that still hold records of what is to be forgotten, or that no index has any more: whose they
    /// were, nobody knows. (What a segment holds beside what is needed is only estimated.)
    pub(crate) fn clean_remains(&self) -> Result<()> {
        let forgotten = self.forgotten()?;
        // What holds some of it comes back from the bucket first, with no lock held.
        let cold = self.cold_regions();
        let segments = self.segments.lock().clone();
        for s in segments.iter().filter(|s| cold.contains(&s.container())) {
            if self.holds_forgotten(s, &forgotten)? {
                self.bring_back(s.container())?;
            }
        }
        let cold = self.cold_regions();
        let mut state = self.maintenance.lock();
        // What is on its way is as old as the look that it goes by.
        self.end_copy(&mut state)?;
        let segments = self.segments.lock().clone();
        let newest = state.log.region;
        let sealed = segments.iter().take_while(|s| s.at.id != newest);
        for s in sealed.filter(|s| !cold.contains(&s.container())) {
            if self.holds_forgotten(s, &forgotten)? {
                state.forgotten.insert(s.at.id);
            }
        }
        while self.clean_batch(&mut state, Effort::Full)?.is_some() {
            MutexGuard::bump(&mut state);
        }
        self.bury(&mut state)
    }
}

/// In the list, what is left of a segment lies in a pack from now on, or nothing is left; returns its own region, if it had one.
fn enter(segments: &mut Vec<Segment>, part: &pack::Part, tombstones: u64, pack: u64) -> Option<RegionRef> {
    let i = segments.iter().position(|s| s.at.id == part.number).expect("segments go only here");
    let kept = part.runs.len();
    let s = &mut segments[i];
    let own = Some(s.at).filter(|_| s.pack.is_none());
    if kept == 0 {
        segments.remove(i);
        return own;
    }
    let known = if s.live == LIVE_UNKNOWN { kept } else { s.live.min(kept) };
    (s.live, s.slack, s.tombstones, s.packed) = (known, kept - known, tombstones, kept);
    s.at = RegionRef { id: part.number, start: 0, size: part.end, volume: 0, second: None };
    s.pack = Some(pack);
    own
}

/// Takes away the packs in which nothing of any segment lies, and returns them.
fn drop_unused(packs: &mut Vec<Arc<dyn Region>>, segments: &[Segment]) -> Vec<Arc<dyn Region>> {
    let named: HashSet<u64> = segments.iter().filter_map(|s| s.pack).collect();
    let (used, unused) = packs.drain(..).partition(|p| named.contains(&p.place().id));
    *packs = used;
    unused
}

/// What is needed of some segments, in memory.
struct Gathered {
    writer: Writer,
    tombstones: Vec<u64>,
    twice: bool,
}

/// A pack on its way to the medium; nothing names it yet.
pub(crate) struct Written {
    region: Arc<dyn Region>,
    parts: Vec<pack::Part>,
    /// Bytes of tombstones in each that may be stuck.
    tombstones: Vec<u64>,
}
