//! Tiers: what is not read much gives way on hot volumes when room gets short, and comes back when it is read much. docs/format.md §Bucket.
//! What most of is waste comes back too, to be cleaned.
//!
//! What is in the bucket too gives way without a copy: a manifest names the place there instead of the one here. Without a bucket it moves to a
//! cold volume. Segments and packs do; the open segment,
//! the index and manifests are always here.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::clean::Container;
use crate::extent::Codec;
use crate::heal::write_anew;
use crate::maintain::{Progress, State};
use crate::moving::Move;
use crate::pack::Packed;
use crate::reading::damaged_blocks;
use crate::segment::{Segment, sealed};
use crate::store::{Store, Usage};
use crate::volume::{BucketVolume, For, Region, RegionRef, Tier};
use crate::{Error, Result};

/// With less than 1/n free, something gives way, until 1/n is.
const LOW: u64 = 8;
const HIGH: u64 = 5;
/// A region of which 1/n was fetched comes back, if more than 1/HIGH stays free.
const HOT: u64 = 2;
/// Less waste in the bucket is not worth fetching it.
const WASTED: u64 = 256 << 10;

/// When segments were read last, by callers' clocks, and how many bytes since the open.
#[derive(Default)]
pub(crate) struct Heat(HashMap<u64, (u64, u64)>);

impl Heat {
    /// When anything in a region was read last, and how many bytes.
    fn of(&self, segments: &[Segment], container: u64) -> (u64, u64) {
        let of = segments.iter().filter(|s| s.container() == container).filter_map(|s| self.0.get(&s.at.id));
        of.fold((0, 0), |(last, sum), (at, bytes)| (last.max(*at), sum + bytes))
    }
}

impl Store {
    /// Takes note that a segment is read.
    pub(crate) fn note_read(&self, segment: u64, bytes: u64) {
        if self.volumes.has_tiers() {
            let now = self.clock();
            let mut heat = self.heat.lock();
            let (last, sum) = heat.0.entry(segment).or_default();
            (*last, *sum) = (now, *sum + bytes);
        }
    }

    /// Whether there is more than one tier.
    pub fn has_tiers(&self) -> bool {
        self.volumes.has_tiers()
    }

    /// Lets something give way that is in the bucket, or brings something back, where that is due.
    pub fn step_tier(&self) -> Result<Progress> {
        if self.read_only {
            return Ok(Progress::Idle);
        }
        let Some(bucket) = self.volumes.bucket() else { return self.step_local_tier() };
        let u = self.usage()?;
        if u.free < u.size / LOW {
            return Ok(if self.give_way(u.size / HIGH - u.free)? { Progress::Worked } else { Progress::Idle });
        }
        let (fetched, _) = bucket.fetched();
        let is_hot = |id: &u64| {
            let at = bucket.place_of(*id);
            at.is_some_and(|at| fetched[id] >= (at.size / HOT).max(1) && u.free > u.size / HIGH + at.size)
        };
        let hot = fetched.keys().copied().find(is_hot);
        let Some(id) = hot.or_else(|| self.mostly_waste(u.free.saturating_sub(u.size / HIGH))) else {
            return Ok(Progress::Idle);
        };
        self.bring_back(id)?;
        Ok(Progress::Worked)
    }

    /// What is in the bucket only, is no longer than `room`, and is waste for the most part: here it can be cleaned.
    fn mostly_waste(&self, room: u64) -> Option<u64> {
        let cold = self.cold_regions();
        if cold.is_empty() {
            return None;
        }
        let state = self.maintenance.lock();
        let all = self.containers_of(&state, &|id| cold.contains(&id)).into_iter();
        let worth = all.filter(|c| c.kept <= room && c.waste() >= WASTED.max(c.kept / 2));
        worth.max_by_key(Container::waste).map(|c| c.id)
    }

    /// Moves a region to the cold volume or back, if that is due.
    fn step_local_tier(&self) -> Result<Progress> {
        let u = self.usage()?;
        self.move_between_tiers(&u, u.free < u.size / LOW)
    }

    /// Moves what has not been read for longest to the cold volume; says whether anything did. (Each region does so once.)
    pub(crate) fn give_way_to_cold(&self) -> Result<bool> {
        if self.volumes.cold_volume().is_none() {
            return Ok(false);
        }
        let mut moved = self.move_between_tiers(&self.usage()?, true);
        if let Ok(Progress::Idle) = moved {
            // What a replay would begin with does not move.
            self.flush_locked(&mut self.maintenance.lock())?;
            moved = self.move_between_tiers(&self.usage()?, true);
        }
        match moved {
            Err(Error::NoSpace { .. }) => Ok(false),
            moved => Ok(moved? == Progress::Worked),
        }
    }

    /// `away`: to the cold volume.
    fn move_between_tiers(&self, u: &Usage, away: bool) -> Result<Progress> {
        let Some(cold) = self.volumes.cold_volume() else { return Ok(Progress::Idle) };
        let chosen = {
            let state = self.maintenance.lock();
            let all = self.regions_now(&state);
            let segments = self.segments.lock();
            let heat = self.heat.lock();
            let open = sealed(&segments, state.log.region);
            let may_move = |what: &For, at: &RegionRef| {
                what.is_data() && !state.waits(at.id) && segments[open..].iter().all(|s| s.at.id != at.id)
            };
            let here =
                all.iter().filter(|(what, at)| may_move(what, at)).map(|(_, at)| (heat.of(&segments, at.id), *at));
            let is_hot = |at: &RegionRef| self.volumes.tier(at.volume) == Tier::Hot;
            match away {
                true => {
                    // With two copies, what is free on one volume only is of no use: they are to be equally full.
                    let fullest = match self.volumes.copies_of(For::Log) {
                        0 | 1 => None,
                        _ => self.volumes.fullest_hot(),
                    };
                    let can_wait = |at: &RegionRef| fullest.is_some_and(|n| n != at.volume);
                    // One copy of each at most.
                    let hot = here.filter(|(_, at)| at.on(cold).is_none());
                    let hot = hot.flat_map(|(heat, at)| at.places().map(move |place| (heat, place)));
                    let hot = hot.filter(|(_, at)| is_hot(at));
                    hot.min_by_key(|((last, _), at)| (can_wait(at), *last, at.id)).map(|(_, at)| (at, Some(cold)))
                }
                false => {
                    let fits = |at: &RegionRef| u.free > u.size / HIGH + at.size;
                    let mut back = here.filter(|(_, at)| at.second.is_none() && !is_hot(at) && fits(at));
                    back.find(|((_, sum), at)| *sum >= (at.size / HOT).max(1)).map(|(_, at)| (at, None))
                }
            }
        };
        let Some((at, to)) = chosen else { return Ok(Progress::Idle) };
        // From now on it counts anew.
        for s in self.segments.lock().iter().filter(|s| s.container() == at.id) {
            self.heat.lock().0.remove(&s.at.id);
        }
        let wanted = Move { from: at.volume, to, only: Some(at.id), below: u64::MAX };
        while self.step_move(&wanted, 16 << 20)? == Progress::Worked {}
        // (Another may have taken its place meanwhile.)
        let state = self.maintenance.lock();
        let has_moved = self.regions_now(&state).iter().any(|(_, now)| now.id == at.id && now.on(at.volume).is_none());
        Ok(if has_moved { Progress::Worked } else { Progress::Idle })
    }

    /// Segments and packs that are in the bucket only.
    pub(crate) fn cold_regions(&self) -> HashSet<u64> {
        match self.volumes.has_bucket() {
            true => self.regions_where(&|at| self.volumes.is_cold(at)),
            false => HashSet::new(),
        }
    }

    /// The numbers of those segments and packs.
    pub(crate) fn regions_where(&self, is_one: &dyn Fn(RegionRef) -> bool) -> HashSet<u64> {
        let segments = self.segments.lock().iter().filter(|s| s.pack.is_none()).map(|s| s.at).collect::<Vec<_>>();
        let packs = self.packs.lock().iter().map(|p| p.place()).collect::<Vec<_>>();
        segments.into_iter().chain(packs).filter(|at| is_one(*at)).map(|at| at.id).collect()
    }

    /// Brings a region back from the bucket.
    pub(crate) fn bring_back(&self, id: u64) -> Result<()> {
        let Some(bucket) = self.volumes.bucket() else { return Ok(()) };
        bucket.cool(id);
        let back = Move { only: Some(id), ..Move::emptying(bucket.number()) };
        while self.step_move(&back, 16 << 20)? == Progress::Worked {}
        Ok(())
    }

    /// A segment, or what is left of it, as the bucket has it, if it is here too.
    pub(crate) fn also_in_bucket(&self, id: u64) -> Option<Arc<dyn Region>> {
        let bucket = self.volumes.bucket()?;
        let s = self.segments.lock().iter().find(|s| s.at.id == id).copied()?;
        let place = bucket.place_of(s.container()).filter(|_| !self.cold_regions().contains(&s.container()))?;
        let there = self.volumes.open(place).ok()?;
        Some(match s.pack {
            Some(_) => Arc::new(Packed::unread(there, s.at, self.uuid)),
            None => there,
        })
    }

    /// Reads the blocks of stored bytes that are damaged here from the bucket, as far as they are there too, and whole, and writes them
    /// anew; says whether the bucket was asked. `len`: as for [`damaged_blocks`].
    pub(crate) fn heal_from_bucket(
        &self,
        here: &dyn Region,
        at: u64,
        stored: &mut [u8],
        (codec, len): (Codec, usize),
    ) -> Result<bool> {
        let Some(there) = self.also_in_bucket(here.place().id) else { return Ok(false) };
        let mut found = vec![0; stored.len()];
        there.read_at(&mut found, at)?;
        let lost: Vec<_> = damaged_blocks(here, at, &found, codec, len).collect();
        if !lost.is_empty() {
            // (It may be as it was by the next time.)
            there.drop_cached(at, found.len() as u64);
        }
        let bad: Vec<_> = damaged_blocks(here, at, stored, codec, len).collect();
        for part in bad.into_iter().filter(|part| !lost.contains(part)) {
            write_anew(here, here, &found[part.clone()], at + part.start as u64);
            stored[part.clone()].copy_from_slice(&found[part]);
        }
        Ok(true)
    }

    /// Lets what has not been read for longest give way until so many bytes more are free here; says whether anything did. Waits for
    /// nothing: only what is in the bucket already can.
    pub(crate) fn give_way(&self, bytes: u64) -> Result<bool> {
        let Some(bucket) = self.volumes.bucket().filter(|_| !self.is_fenced()) else { return Ok(false) };
        let mut state = self.maintenance.lock();
        if state.deriving || self.wiping.load(Ordering::Relaxed) {
            return Ok(false);
        }
        self.trim_segments()?;
        let mut all: Vec<(u64, RegionRef)> = {
            let now = self
                .regions_now(&state)
                .into_iter()
                .filter(|(what, at)| what.is_data() && bucket.place_of(at.id).is_some() && !self.volumes.is_cold(*at));
            let due: Vec<_> = now.collect();
            let segments = self.segments.lock();
            let heat = self.heat.lock();
            due.into_iter().map(|(_, at)| (heat.of(&segments, at.id).0, at)).collect()
        };
        // (Of those that were never read, the oldest.)
        all.sort_by_key(|(read, at)| (*read, at.id));
        let mut sum = 0;
        for (_, at) in all {
            if sum >= bytes {
                break;
            }
            if self.to_bucket(&mut state, &bucket, at)? {
                sum += at.size;
            }
        }
        if sum > 0 {
            let levels = self.index.read().levels.clone();
            self.write_manifest(&mut state, &levels)?;
            self.bury(&mut state)?;
        }
        Ok(sum > 0)
    }

    /// Has a region that is in the bucket be there only, from the next manifest on; says whether it is.
    fn to_bucket(&self, state: &mut State, bucket: &BucketVolume, from: RegionRef) -> Result<bool> {
        let Some(to) = bucket.place_of(from.id).filter(|_| !state.waits(from.id)) else { return Ok(false) };
        let is_open = {
            let segments = self.segments.lock();
            segments[sealed(&segments, state.log.region)..].iter().any(|s| s.at.id == from.id)
        };
        if is_open {
            return Ok(false);
        }
        let old = match self.switch_segment(from, to)? {
            None => self.switch_pack(from, to)?,
            old => old,
        };
        let Some(old) = old else { return Ok(false) };
        state.outdated.push((old, from));
        Ok(true)
    }

    /// Moves a region to the bucket, some of it at a time. [`Progress::Idle`]: all are there.
    pub(crate) fn step_to_bucket(&self, wanted: &Move) -> Result<Progress> {
        let Some(bucket) = self.volumes.bucket() else {
            return Err(Error::Refused("the bucket is no volume any more".into()));
        };
        if !self.own(&bucket)? {
            return Err(Error::Refused(format!("{} was taken over by somebody else", bucket.objects().name())));
        }
        let (region, len) = {
            let mut state = self.maintenance.lock();
            self.trim_segments()?;
            self.bury(&mut state)?;
            let due = |(what, at): &(For, RegionRef)| self.is_due(wanted, *what, *at) && !state.waits(at.id);
            let Some((_, at)) = self.regions_now(&state).into_iter().find(due) else { return Ok(Progress::Idle) };
            let segments = self.segments.lock().clone();
            let open = sealed(&segments, state.log.region);
            if segments[open..].iter().any(|s| s.at.id == at.id) {
                self.seal_open(&mut state, &|at| wanted.wants(at))?;
                return Ok(Progress::Worked);
            }
            if self.to_bucket(&mut state, &bucket, at)? {
                let levels = self.index.read().levels.clone();
                self.write_manifest(&mut state, &levels)?;
                self.bury(&mut state)?;
                return Ok(Progress::Worked);
            }
            let segment = segments.iter().find(|s| s.at.id == at.id && s.pack.is_none());
            let region = match segment {
                Some(_) => self.regions.read().get(&at.id).cloned(),
                None => self.packs.lock().iter().find(|p| p.place().id == at.id).cloned(),
            };
            let Some(region) = region else { return Ok(Progress::Worked) };
            let len = segment.map_or(region.place().size, |s| s.end);
            (region, len)
        };
        self.put_first(&bucket, Arc::clone(&region), len)?;
        Ok(Progress::Worked)
    }

    /// Whether a region is to be moved.
    pub(crate) fn is_due(&self, wanted: &Move, what: For, at: RegionRef) -> bool {
        let to_bucket = self.volumes.bucket().is_some_and(|b| wanted.to == Some(b.number()));
        wanted.wants(at) && (!to_bucket || what.is_data() && !self.volumes.is_cold(at))
    }
}
