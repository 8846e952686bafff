//! The volumes of a store, as one: a region is made on one of them, or on two, and found again by the numbers of its volumes.
//! And the superblock (`supers.rs`).
//!
//! Invariants: a number means one volume for the whole life of a store; the copies of a region are on different ones; nothing new goes
//! to one that is leaving or has failed.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::raw::UNIT;
use super::twice::{Absent, Health, Side, Twice};
use super::{BucketVolume, Copies, Region, RegionRef, Tier, Volume, VolumeEntry, VolumeKind, Wanted};
use crate::codec::mix;
use crate::superblock::Superblock;
use crate::{Error, Result};

/// What a region is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    /// The segment that the log is appended to, and the next one.
    Log,
    /// Sealed segments and packs.
    Kept {
        /// They hold something of a fileset that is kept twice.
        twice: bool,
    },
    /// Tables, without which nothing goes on, whatever the limits of volumes.
    Index,
    /// The manifest, which likewise must have room.
    Manifest,
}

impl For {
    /// Whether it is made only where volumes stay within their limits.
    pub fn is_data(self) -> bool {
        !matches!(self, For::Index | For::Manifest)
    }
}

/// What is in use of a volume, in bytes, and how many there are.
pub enum Usage {
    Known { used: u64, size: u64 },
    Failed,
    Missing,
}

#[derive(Clone)]
pub struct Member {
    pub number: u16,
    pub volume: Arc<dyn Volume>,
    /// Bytes that may be used of it; 0: all there are.
    limit: u64,
    leaving: bool,
    tier: Tier,
    pub health: Arc<Health>,
    /// As [`Volume::pool`].
    pub pool: Option<u64>,
    /// The generation of what it says of the homes, if it is none; 0: it may have a superblock that counts, or nothing.
    pub sign: Arc<AtomicU64>,
}

impl Member {
    /// Whether something new may go there.
    fn is_open(&self) -> bool {
        !self.leaving && !self.health.has_failed() && !self.is_bucket()
    }

    /// Whether what is new goes there by itself.
    fn takes_new(&self) -> bool {
        self.is_open() && self.tier == Tier::Hot
    }

    /// What is in one is there besides, or because it is not needed here: its room is none of the store's.
    pub fn is_bucket(&self) -> bool {
        self.volume.kind() == VolumeKind::Bucket
    }

    /// (bytes in use, bytes there are for us).
    fn usage(&self) -> Result<(u64, u64)> {
        let (used, size) = self.volume.usage(self.limit)?;
        Ok((used, if self.is_open() { size.max(used) } else { used }))
    }

    fn free(&self) -> u64 {
        self.usage().map_or(0, |(used, size)| size - used)
    }
}

/// Where there are more volumes, a new region goes to one of a few, chosen by its number: to look at all takes too long.
const LOOKED_AT: usize = 16;
/// Of so many volumes at most, each holds some room.
const HELD_BY: usize = 8;

/// See the module.
pub struct Volumes(pub(super) Arc<Inner>);

pub struct Inner {
    pub(super) members: RwLock<BTreeMap<u16, Member>>,
    pub(super) bucket: RwLock<Option<Arc<BucketVolume>>>,
    pub(super) superblock: Mutex<Superblock>,
    /// Attempts at the next superblock that failed.
    pub(super) attempts: AtomicU32,
    /// Volumes that may have got a superblock in these attempts, or have the one before.
    pub(super) tried: Mutex<BTreeSet<u16>>,
    /// Others may be better homes by now.
    pub(super) reconsider: AtomicBool,
    /// The table of volumes is to be written anew.
    pub(super) renew_roster: AtomicBool,
    /// The generation by which this opening began.
    begun: AtomicU64,
    /// Whether a home from before that could be taken for one that has missed the last superblock only.
    pub(super) opening_is_untold: AtomicBool,
    /// Volumes that are no homes are to be told which are.
    pub(super) signs_are_due: AtomicBool,
    pub(super) signing: Mutex<()>,
    /// The number that the next region gets.
    pub(super) next_region: Arc<AtomicU64>,
    /// Bytes of regions that have one copy only, and are to have two.
    lacking: AtomicU64,
    healed: AtomicU64,
}

impl Volumes {
    /// Those of a superblock's volumes that are there.
    pub fn new(sb: &Superblock, there: &HashMap<u16, There>, bucket: Option<Arc<BucketVolume>>) -> Volumes {
        let of_bucket = |e: &VolumeEntry| {
            let bucket = bucket.clone().filter(|b| b.number() == e.number)?;
            Some(Arc::new(bucket) as Arc<dyn Volume>)
        };
        let found = |e: &VolumeEntry| {
            let of_bucket = || Some(There { volume: of_bucket(e)?, sign: 0 });
            there.get(&e.number).cloned().or_else(of_bucket)
        };
        let member = |e: &VolumeEntry| found(e).map(|there| (e.number, member(e, there)));
        Volumes(Arc::new(Inner {
            members: RwLock::new(sb.volumes.iter().filter_map(member).collect()),
            bucket: RwLock::new(bucket.clone()),
            superblock: Mutex::new(sb.clone()),
            attempts: 0.into(),
            tried: Mutex::default(),
            reconsider: true.into(),
            renew_roster: false.into(),
            signs_are_due: false.into(),
            begun: 0.into(),
            opening_is_untold: false.into(),
            signing: Mutex::default(),
            next_region: Arc::new(AtomicU64::new(sb.roster.as_ref().map_or(0, |r| r.at.id + 1))),
            lacking: 0.into(),
            healed: 0.into(),
        }))
    }

    /// What users call the first of them.
    pub fn name(&self) -> String {
        self.0.members.read().values().find(|m| !m.is_bucket()).map_or_else(String::new, |m| m.volume.name())
    }

    /// The number that the next region gets.
    pub fn next_region(&self) -> Arc<AtomicU64> {
        self.0.next_region.clone()
    }

    /// The bucket, if the store has one.
    pub fn bucket(&self) -> Option<Arc<BucketVolume>> {
        self.0.bucket.read().clone()
    }

    /// The volume of the cold tier with the most room that is no bucket, if there is one.
    pub fn cold_volume(&self) -> Option<u16> {
        let members = self.0.members.read();
        let cold = members.values().filter(|m| m.is_open() && m.tier == Tier::Cold);
        cold.max_by_key(|m| m.free()).map(|m| m.number)
    }

    /// The volume for what is new that has the least room.
    pub fn fullest_hot(&self) -> Option<u16> {
        let members = self.0.members.read();
        members.values().filter(|m| m.takes_new()).min_by_key(|m| m.free()).map(|m| m.number)
    }

    /// The same region; that of two copies first which is not on a cold volume, since the first one is read.
    pub fn hot_first(&self, at: RegionRef) -> RegionRef {
        let mut places = at.places();
        match (self.tier(at.volume), places.next(), places.next()) {
            (Tier::Cold, first, Some(other)) => other.and(first),
            _ => at,
        }
    }

    /// Of what tier a volume is.
    pub fn tier(&self, number: u16) -> Tier {
        self.0.members.read().get(&number).map_or(Tier::Hot, |m| m.tier)
    }

    /// Whether something is for what is not read much.
    pub fn has_tiers(&self) -> bool {
        self.has_bucket() || self.0.members.read().values().any(|m| m.tier == Tier::Cold)
    }

    /// Whether the store has a bucket.
    pub fn has_bucket(&self) -> bool {
        self.0.bucket.read().is_some()
    }

    /// Whether a volume is not to be emptied.
    pub fn takes(&self, number: u16) -> bool {
        self.0.members.read().get(&number).is_some_and(|m| !m.leaving)
    }

    /// Whether a region's only place is in the bucket.
    pub fn is_cold(&self, at: RegionRef) -> bool {
        at.second.is_none() && self.bucket().is_some_and(|b| b.number() == at.volume)
    }

    /// Whether a region can't be read, or not without fetching it: it is on missing volumes, or in the bucket only.
    pub fn is_out_of_reach(&self, at: RegionRef) -> bool {
        self.is_cold(at) || at.places().all(|at| !self.is_there(at.volume))
    }

    /// A volume by its number.
    pub fn get(&self, number: u16) -> Result<Arc<dyn Volume>> {
        let found = self.0.members.read().get(&number).map(|m| m.volume.clone());
        found.ok_or_else(|| Error::NotAStore(format!("volume {number} is not there")))
    }

    /// Whether a volume is there.
    pub fn is_there(&self, number: u16) -> bool {
        self.0.members.read().contains_key(&number)
    }

    /// Whether a volume is there, and has all that it should.
    pub fn is_sound(&self, number: u16) -> bool {
        self.0.members.read().get(&number).is_some_and(|m| !m.health.has_failed())
    }

    /// Whether new regions may go where one is.
    pub fn accept(&self, at: RegionRef) -> bool {
        let members = self.0.members.read();
        at.places().all(|at| members.get(&at.volume).is_some_and(Member::is_open))
    }

    /// Takes note of what has changed of a volume. Once this has returned, nothing is being made on one that is leaving.
    pub fn change(&self, entry: &VolumeEntry) {
        if let Some(m) = self.0.members.write().get_mut(&entry.number) {
            (m.limit, m.leaving) = (entry.size_limit, entry.leaving);
            m.volume.limit_to(entry.size_limit);
        }
    }

    /// What is written from now on is of another opening.
    pub fn begin(&self, opening: u64) {
        let mut sb = self.0.superblock.lock();
        let generation = sb.generation;
        sb.openings.begin(opening, generation);
        self.0.begun.store(generation, Ordering::Relaxed);
        self.0.note_told(&sb);
    }

    /// The newest superblock.
    pub fn superblock(&self) -> Superblock {
        self.0.superblock.lock().clone()
    }

    /// Whether what a volume has (if it is there) may be older than what its copy has.
    pub fn is_outdated(&self, number: u16) -> bool {
        !self.is_there(number) || self.0.superblock.lock().entry(number).is_none_or(|e| e.away.is_some())
    }

    /// Of what there are to be two copies.
    pub fn wanted(&self) -> Wanted {
        self.0.superblock.lock().wanted()
    }

    /// How many copies of such regions there are to be, as far as there are volumes for them.
    pub fn copies_of(&self, what: For) -> usize {
        let wanted = self.wanted().number(what);
        self.0.members.read().values().filter(|m| m.takes_new()).take(wanted).count()
    }

    /// The volumes that what is new goes to.
    pub fn taking_new(&self) -> Vec<u16> {
        self.0.members.read().values().filter(|m| m.takes_new()).map(|m| m.number).collect()
    }

    /// Reserves a region of `size` bytes somewhere, and again elsewhere if there are to be two copies; [`Error::NoSpace`] if no
    /// volume has the room. Where only one has, there is one copy, unless that must not be (`strict`).
    pub fn create(&self, id: u64, size: u64, what: For, strict: bool) -> Result<Arc<dyn Region>> {
        match self.copies_of(what) {
            2 => self.create_twice(id, size, what, strict),
            _ => self.create_one(id, size, what, None),
        }
    }

    /// As [`Volumes::create`], of two copies in any case.
    pub fn create_twice(&self, id: u64, size: u64, what: For, strict: bool) -> Result<Arc<dyn Region>> {
        // One size for both, wherever they are.
        let size = size.next_multiple_of(UNIT);
        let first = self.create_one(id, size, what, None)?;
        let at = first.place();
        match self.create_one(id, size, what, Some(at)) {
            Ok(second) => Ok(self.twice(first, second)),
            Err(e @ Error::NoSpace { .. }) if strict => {
                drop(first);
                self.remove(at)?;
                Err(e)
            }
            Err(e) => {
                tracing::warn!("region {id:x} has one copy for now: {e}");
                Ok(first)
            }
        }
    }

    /// Reserves a place for another copy of a region, on a volume that has none.
    pub fn create_beside(&self, at: RegionRef, size: u64, what: For) -> Result<Arc<dyn Region>> {
        self.create_one(at.id, size, what, Some(at))
    }

    /// `beside`: where it must not be.
    fn create_one(&self, id: u64, size: u64, what: For, beside: Option<RegionRef>) -> Result<Arc<dyn Region>> {
        loop {
            let region = self.reserve_one(id, size, what, beside)?;
            // A seal names a segment before anything in it is flushed.
            if what != For::Log {
                return Ok(region);
            }
            let Err(e) = region.flush_place() else { return Ok(region) };
            drop(self.remove(region.place()));
            let can_fail = self.can_fail();
            let members = self.0.members.read();
            match members.get(&region.place().volume) {
                Some(m) => unless_it_fails(can_fail.then_some(&*members), m, Err::<(), _>(e))?,
                None => return Err(e),
            };
        }
    }

    fn reserve_one(&self, id: u64, size: u64, what: For, beside: Option<RegionRef>) -> Result<Arc<dyn Region>> {
        let twice = beside.is_none() && self.copies_of(what) == 2;
        let can_fail = self.can_fail();
        let seed = mix(if beside.is_some() { !id } else { id });
        let homes = if what == For::Manifest { self.0.superblock.lock().homes.clone() } else { Vec::new() };
        let members = self.0.members.read();
        let is_free = |m: &&Member| m.takes_new() && beside.is_none_or(|at| at.on(m.number).is_none());
        let all: Vec<&Member> = members.values().filter(is_free).collect();
        let some: Vec<&Member> = match what {
            // What opens the store is where the superblock is.
            For::Manifest => all.iter().copied().filter(|m| homes.contains(&m.number)).collect(),
            _ if all.len() > 2 * LOOKED_AT => {
                let chosen: BTreeSet<usize> =
                    (0..LOOKED_AT as u64).map(|i| (mix(seed ^ i) % all.len() as u64) as usize).collect();
                chosen.into_iter().map(|i| all[i]).collect()
            }
            _ => all.clone(),
        };
        let is_some = some.len() < all.len();
        let among = |some| create_among(some, can_fail, id, size, what, seed, twice);
        let mut outcome = among(some);
        if is_some && matches!(outcome, Err(Error::NoSpace { .. })) {
            outcome = among(all);
        }
        drop(members);
        outcome.map_err(|e| match e {
            Error::NoSpace { .. } => self.no_space(),
            e => e,
        })
    }

    fn no_space(&self) -> Error {
        let (used, size) = self.usage().unwrap_or_default();
        Error::NoSpace { used, size }
    }

    /// Reserves a region on one volume.
    pub fn create_on(&self, number: u16, id: u64, size: u64) -> Result<Arc<dyn Region>> {
        let members = self.0.members.read();
        match members.get(&number).filter(|m| m.is_open()) {
            Some(m) if m.limit > 0 && size > m.free() => {
                let (used, size) = m.usage()?;
                Err(Error::NoSpace { used, size })
            }
            Some(m) => m.volume.create(id, size),
            None => Err(Error::NotAStore(format!("volume {number} is not there, or leaving"))),
        }
    }

    fn twice(&self, one: Arc<dyn Region>, other: Arc<dyn Region>) -> Arc<dyn Region> {
        let side = |region: Arc<dyn Region>| {
            let number = region.place().volume;
            let health = self.0.members.read().get(&number).map(|m| m.health.clone());
            Side { region, health: health.unwrap_or_default() }
        };
        Arc::new(Twice::new([side(one), side(other)], self.0.clone()))
    }

    /// Opens a region that a manifest or a seal names: of two copies, those that can be had. Where its only volume is missing,
    /// it opens, and nothing can be read of it.
    pub fn open(&self, at: RegionRef) -> Result<Arc<dyn Region>> {
        let there: Vec<RegionRef> = at.places().filter(|at| self.is_there(at.volume)).collect();
        match there[..] {
            [] => Ok(self.absent(at, "which is missing")),
            [one] => self.get(one.volume)?.open(one),
            _ => {
                let [one, other] = [0, 1].map(|i| self.get(there[i].volume).and_then(|v| v.open(there[i])));
                match (one, other) {
                    (Ok(one), Ok(other)) => Ok(self.twice(one, other)),
                    (Ok(left), Err(e)) | (Err(e), Ok(left)) => {
                        tracing::error!("of region {:x} one copy is left: {e}", at.id);
                        Ok(left)
                    }
                    (Err(e), Err(_)) => Err(e),
                }
            }
        }
    }

    /// A region of which nothing can be read.
    pub fn absent(&self, at: RegionRef, why: &str) -> Arc<dyn Region> {
        Arc::new(Absent { at, volume: format!("{}, {why}", self.0.name_of(at.volume)) })
    }

    /// As [`Volumes::open`], of one that is in no place where it should be.
    pub fn open_emptied(&self, at: RegionRef) -> Result<Arc<dyn Region>> {
        let first = at.places().find(|at| self.is_there(at.volume)).unwrap_or(at);
        self.get(first.volume)?.open_emptied(RegionRef { second: None, ..first })
    }

    /// Does something with each place of a region that is there. Of one whose volume has failed, failure is of no account; it has failed
    /// (if it can) where this fails, and not elsewhere.
    fn at_each(&self, at: RegionRef, each: impl Fn(&dyn Volume, RegionRef) -> Result<()>) -> Result<()> {
        let mut done = false;
        let mut failed = Vec::new();
        for place in at.places().filter(|at| self.is_there(at.volume)) {
            match each(&*self.get(place.volume)?, place) {
                Ok(()) => done = true,
                Err(e) if self.is_sound(place.volume) => failed.push((place.volume, e)),
                Err(_) => {}
            }
        }
        let Some((number, e)) = failed.pop() else { return Ok(()) };
        let health = self.0.members.read().get(&number).map(|m| m.health.clone());
        match health.filter(|_| done && self.can_fail()) {
            Some(health) => health.fail(&self.0.name_of(number), &e),
            None => return Err(e),
        }
        Ok(())
    }

    /// Gives back what lies beyond `size` bytes.
    pub fn shrink(&self, at: RegionRef, size: u64) -> Result<RegionRef> {
        if at.second.is_none() && self.is_there(at.volume) {
            return self.get(at.volume)?.shrink(at, size);
        }
        let size = size.next_multiple_of(UNIT).min(at.size);
        self.at_each(at, |volume, at| volume.shrink(at, size).map(drop))?;
        Ok(RegionRef { size, ..at })
    }

    /// Gives a region's space back.
    pub fn remove(&self, at: RegionRef) -> Result<()> {
        self.at_each(at, |volume, at| volume.remove(at))
    }

    /// Tells which regions exist besides the roster (after open); all others are gone. `wipe`: what they held is overwritten.
    pub fn keep_only(&self, regions: &[RegionRef], wipe: bool) -> Result<()> {
        let roster = self.0.superblock.lock().roster.as_ref().map(|r| r.at);
        let mut here: HashMap<u16, Vec<RegionRef>> = HashMap::new();
        for place in regions.iter().chain(&roster).flat_map(RegionRef::places) {
            here.entry(place.volume).or_default().push(place);
        }
        let can_fail = self.can_fail();
        let members = self.0.members.read().clone();
        let others = can_fail.then_some(&members);
        members.values().filter(|m| !m.health.has_failed()).try_for_each(|m| {
            let here = here.remove(&m.number).unwrap_or_default();
            unless_it_fails(others, m, m.volume.keep_only(&here, wipe)).map(drop)
        })
    }

    /// The regions that there are, if all volumes know.
    pub fn list(&self) -> Result<Option<Vec<RegionRef>>> {
        let lists: Option<Vec<Vec<RegionRef>>> =
            self.0.with_super().iter().map(|m| m.volume.list()).collect::<Result<_>>()?;
        Ok(lists.map(|lists| lists.concat()))
    }

    /// The regions on one of them, if it knows.
    pub fn list_of(&self, number: u16) -> Result<Option<Vec<RegionRef>>> {
        self.get(number)?.list()
    }

    /// Has volumes verify what they have of their own of a region; returns of how many places it was damaged, and is written anew.
    pub fn heal_places(&self, at: RegionRef) -> Result<u64> {
        let mut healed = 0;
        for place in at.places().filter(|at| self.is_sound(at.volume)) {
            healed += u64::from(self.get(place.volume)?.heal_place(place)?);
        }
        Ok(healed)
    }

    /// Has directories keep some room for what gives room back. (Not where there are very many: it would be much in all.)
    pub fn hold(&self, bytes: u64) {
        let members: Vec<Member> = match &*self.0.members.read() {
            few if few.len() <= HELD_BY => few.values().cloned().collect(),
            _ => return,
        };
        for m in members.iter().filter(|m| m.takes_new()) {
            if let Err(e) = m.volume.hold(bytes) {
                tracing::debug!("nothing is held at {}: {e}", m.volume.name());
            }
        }
    }

    /// Overwrites what was given back since the open.
    pub fn wipe_given_back(&self) -> Result<()> {
        let members: Vec<Member> = self.0.members.read().values().cloned().collect();
        members.iter().filter(|m| !m.health.has_failed()).try_for_each(|m| m.volume.wipe_given_back())
    }

    /// (bytes in use, bytes there are) of all. What is free counts once where it is written twice; where everything has two copies, what
    /// is in use does too.
    pub fn usage(&self) -> Result<(u64, u64)> {
        let (used, free, beside) = self.bytes_without(None)?;
        if self.copies_of(For::Log) < 2 {
            return Ok((used, used + free));
        }
        let lacking = self.0.lacking.load(Ordering::Relaxed);
        let free = (free / 2).min(beside).saturating_sub(lacking / 2);
        let used = if self.wanted().copies == Copies::Two { used.saturating_add(lacking) / 2 } else { used };
        Ok((used, used + free))
    }

    /// (bytes in use, bytes free, bytes for which there is room beside the volume that has the most of it), as if a volume were not there:
    /// others of its pool have what it gives back.
    pub fn bytes_without(&self, without: Option<u16>) -> Result<(u64, u64, u64)> {
        let can_fail = self.can_fail();
        let members = self.0.members.read();
        let others = can_fail.then_some(&*members);
        let leaving = without.and_then(|number| members.get(&number));
        let returned = match leaving.and_then(|m| Some((m, m.pool?))) {
            Some((m, pool)) => Some((pool, m.usage()?.0)),
            None => None,
        };
        let (mut used, mut free) = (0, 0);
        // (Two directories of one pool may each have a copy.)
        let (mut rooms, mut most) = (0u64, 0);
        // (free bytes as the volumes of a pool count them, the most that one of them sees)
        let mut pools: HashMap<u64, (u64, u64)> = HashMap::new();
        // What is free in a pool is asked for once.
        let mut free_in: HashMap<u64, u64> = HashMap::new();
        for m in members.values().filter(|m| Some(m.number) != without && !m.health.has_failed() && m.tier == Tier::Hot)
        {
            match m.pool.filter(|_| members.len() > 1 && m.is_open()) {
                Some(pool) => {
                    let free = match free_in.entry(pool) {
                        Entry::Occupied(free) => *free.get(),
                        Entry::Vacant(none) => {
                            let Some((here, there)) = unless_it_fails(others, m, m.volume.usage(0))? else { continue };
                            *none.insert(there - here.min(there))
                        }
                    };
                    let Some(here) = unless_it_fails(others, m, m.volume.used())? else { continue };
                    used += here;
                    let (sum, seen) = pools.entry(pool).or_default();
                    let more = returned.filter(|r| r.0 == pool).map_or(0, |r| r.1);
                    let room = if m.limit == 0 { free + more } else { m.limit.max(here) - here };
                    (*sum, *seen) = (*sum + room, (*seen).max(free + more));
                    (rooms, most) = (rooms + room, most.max(room));
                }
                None => {
                    let Some((here, size)) = unless_it_fails(others, m, m.usage())? else { continue };
                    used += here;
                    free += size - here;
                    (rooms, most) = (rooms + size - here, most.max(size - here));
                }
            }
        }
        free += pools.into_values().map(|(sum, seen)| sum.min(seen)).sum::<u64>();
        Ok((used, free, rooms - most))
    }

    /// Bytes of another volume that one has room for.
    pub fn room_on(&self, number: u16, from: u16) -> Result<u64> {
        let members = self.0.members.read();
        let Some(m) = members.get(&number) else { return Ok(0) };
        if m.is_bucket() {
            return Ok(u64::MAX);
        }
        let given_back = m.pool.is_some() && members.get(&from).is_some_and(|o| o.pool == m.pool);
        let (used, size) = m.usage()?;
        Ok(if m.limit == 0 && given_back { u64::MAX } else { size - used })
    }

    /// Whether a volume that fails is left behind, as long as there is another: what the store needs to go on is on two.
    fn can_fail(&self) -> bool {
        self.wanted().number(For::Index) == 2
    }

    /// What is in use of one.
    pub fn usage_of(&self, number: u16) -> Result<Usage> {
        let can_fail = self.can_fail();
        let members = self.0.members.read();
        let others = can_fail.then_some(&*members);
        let usage = match members.get(&number) {
            None => return Ok(Usage::Missing),
            Some(m) if m.health.has_failed() => None,
            Some(m) => unless_it_fails(others, m, m.volume.usage(m.limit))?,
        };
        Ok(usage.map_or(Usage::Failed, |(used, size)| Usage::Known { used, size }))
    }

    /// So many bytes have one copy and are to have two.
    pub fn set_lacking(&self, bytes: u64) {
        self.0.lacking.store(bytes, Ordering::Relaxed);
    }

    /// Damaged places of copies that were written anew from the others since the open.
    pub fn healed(&self) -> u64 {
        self.0.healed.load(Ordering::Relaxed)
    }
}

impl Inner {
    pub(super) fn note_told(&self, sb: &Superblock) {
        let is_untold = sb.homes.len() > 1 && sb.generation < self.begun.load(Ordering::Relaxed) + 2;
        self.opening_is_untold.store(is_untold, Ordering::Relaxed);
    }

    /// All that may have superblocks.
    pub fn with_super(&self) -> Vec<Member> {
        self.members.read().values().filter(|m| !m.is_bucket()).cloned().collect()
    }

    pub fn note_healed(&self) {
        self.healed.fetch_add(1, Ordering::Relaxed);
    }

    /// What users call a volume.
    pub fn name_of(&self, number: u16) -> String {
        let entry = self.superblock.lock().entry(number).map(VolumeEntry::name);
        format!("volume {number} ({})", entry.unwrap_or_else(|| "of which nothing is known".into()))
    }
}

/// What a volume says or does. One that can't do it (its directory is gone) has failed, if one of the others takes what is new.
fn unless_it_fails<T>(others: Option<&BTreeMap<u16, Member>>, m: &Member, said: Result<T>) -> Result<Option<T>> {
    match said {
        Err(e) if others.is_some_and(|all| all.values().any(|o| o.number != m.number && o.takes_new())) => {
            m.health.fail(&m.volume.name(), &e);
            Ok(None)
        }
        said => said.map(Some),
    }
}

/// Makes a region on one of these. Those where that fails, but for want of room, have failed (if they can) once it is made on another.
fn create_among(
    all: Vec<&Member>,
    can_fail: bool,
    id: u64,
    size: u64,
    what: For,
    seed: u64,
    twice: bool,
) -> Result<Arc<dyn Region>> {
    let mut order: Vec<(&Member, u64)> = all.into_iter().map(|m| (m, m.free())).collect();
    order.sort_by_key(|(_, free)| std::cmp::Reverse(*free));
    let sum = order.iter().map(|(_, free)| free).sum::<u64>();
    // In proportion to what is free, so that all get full at the same time; the number decides, so that it is the same
    // whenever a test is repeated. Where one has as much as all others, it has a copy of everything.
    let must = twice && order.first().is_some_and(|(_, most)| *most >= sum / 2);
    let mut at = if must { 0 } else { seed % sum.max(1) };
    let chosen = order.iter().position(|(_, free)| {
        let here = at < *free;
        at = at.saturating_sub(*free);
        here
    });
    if let Some(chosen) = chosen {
        order[..=chosen].rotate_right(1);
    }
    let mut failed = Vec::new();
    for (m, free) in order {
        if what.is_data() && m.limit > 0 && size > free {
            continue;
        }
        match m.volume.create(id, size) {
            Ok(region) => {
                failed.iter().for_each(|(m, e): &(&Member, Error)| m.health.fail(&m.volume.name(), e));
                return Ok(region);
            }
            Err(Error::NoSpace { .. }) => {}
            Err(e) if can_fail => failed.push((m, e)),
            Err(e) => return Err(e),
        }
    }
    Err(failed.pop().map_or(Error::NoSpace { used: 0, size: 0 }, |(_, e)| e))
}

/// A volume that was found.
#[derive(Clone)]
pub struct There {
    pub volume: Arc<dyn Volume>,
    /// As [`Member::sign`].
    pub sign: u64,
}

pub(super) fn member(e: &VolumeEntry, there: There) -> Member {
    let There { volume, sign } = there;
    volume.numbered(e.number);
    volume.limit_to(e.size_limit);
    Member {
        number: e.number,
        limit: e.size_limit,
        leaving: e.leaving,
        tier: e.tier,
        health: Arc::default(),
        pool: volume.pool(),
        sign: Arc::new(sign.into()),
        volume,
    }
}
