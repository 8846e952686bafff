//! The volumes of a store, as one: a region is made on one of them, or on two, and found again by the numbers of its volumes.
//! And the superblock, of which each has a copy.
//!
//! Invariants: a number means one volume for the whole life of a store; the copies of a region are on different ones; nothing new goes
//! to one that is leaving or has failed.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::raw::UNIT;
use super::twice::{Absent, Health, Side, Twice};
use super::{BucketVolume, Copies, Region, RegionRef, Tier, Volume, VolumeEntry, VolumeKind, Wanted};
use crate::codec::mix;
use crate::superblock::{OnVolume, Superblock};
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
    /// Tables and manifests, without which nothing goes on, whatever the limits of volumes.
    Index,
}

impl For {
    /// Whether it is made only where volumes stay within their limits.
    pub fn is_data(self) -> bool {
        self != For::Index
    }
}

#[derive(Clone)]
struct Member {
    number: u16,
    volume: Arc<dyn Volume>,
    /// Bytes that may be used of it; 0: all there are.
    limit: u64,
    leaving: bool,
    tier: Tier,
    health: Arc<Health>,
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
    fn is_bucket(&self) -> bool {
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

/// Added to the attempt of a superblock that says of a volume that it is left behind.
const LEFT_BEHIND: u32 = 1 << 20;

/// See the module.
pub struct Volumes(Arc<Inner>);

pub struct Inner {
    members: RwLock<Vec<Member>>,
    bucket: RwLock<Option<Arc<BucketVolume>>>,
    superblock: Mutex<Superblock>,
    /// Attempts at the next superblock that failed.
    attempts: AtomicU32,
    /// Bytes of regions that have one copy only, and are to have two.
    lacking: AtomicU64,
    healed: AtomicU64,
}

impl Volumes {
    /// Those of a superblock's volumes that are there.
    pub fn new(sb: &Superblock, there: &HashMap<u16, Arc<dyn Volume>>, bucket: Option<Arc<BucketVolume>>) -> Volumes {
        let of_bucket = |e: &VolumeEntry| {
            let bucket = bucket.clone().filter(|b| b.number() == e.number)?;
            Some(Arc::new(bucket) as Arc<dyn Volume>)
        };
        let volume = |e: &VolumeEntry| there.get(&e.number).cloned().or_else(|| of_bucket(e));
        let member = |e: &VolumeEntry| volume(e).map(|volume| member(e, volume));
        Volumes(Arc::new(Inner {
            members: RwLock::new(sb.volumes.iter().filter_map(member).collect()),
            bucket: RwLock::new(bucket.clone()),
            superblock: Mutex::new(sb.clone()),
            attempts: 0.into(),
            lacking: 0.into(),
            healed: 0.into(),
        }))
    }

    /// What users call the first of them.
    pub fn name(&self) -> String {
        self.0.members.read().iter().find(|m| !m.is_bucket()).map_or_else(String::new, |m| m.volume.name())
    }

    fn members(&self) -> Vec<Member> {
        self.0.members.read().clone()
    }

    /// All that have superblocks.
    fn with_super(&self) -> Vec<Member> {
        self.members().into_iter().filter(|m| !m.is_bucket()).collect()
    }

    /// The bucket, if the store has one.
    pub fn bucket(&self) -> Option<Arc<BucketVolume>> {
        self.0.bucket.read().clone()
    }

    /// Makes a bucket, which is in the newest superblock, part of this.
    pub fn add_bucket(&self, entry: &VolumeEntry, bucket: Arc<BucketVolume>) {
        self.add(entry, Arc::new(bucket.clone()));
        *self.0.bucket.write() = Some(bucket);
    }

    /// The volume of the cold tier with the most room that is no bucket, if there is one.
    pub fn cold_volume(&self) -> Option<u16> {
        let members = self.0.members.read();
        let cold = members.iter().filter(|m| m.is_open() && m.tier == Tier::Cold);
        cold.max_by_key(|m| m.free()).map(|m| m.number)
    }

    /// The volume for what is new that has the least room.
    pub fn fullest_hot(&self) -> Option<u16> {
        let members = self.0.members.read();
        members.iter().filter(|m| m.takes_new()).min_by_key(|m| m.free()).map(|m| m.number)
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
        self.0.members.read().iter().find(|m| m.number == number).map_or(Tier::Hot, |m| m.tier)
    }

    /// Whether something is for what is not read much.
    pub fn has_tiers(&self) -> bool {
        self.has_bucket() || self.0.members.read().iter().any(|m| m.tier == Tier::Cold)
    }

    /// Whether the store has a bucket.
    pub fn has_bucket(&self) -> bool {
        self.0.bucket.read().is_some()
    }

    /// Whether a volume is not to be emptied.
    pub fn takes(&self, number: u16) -> bool {
        self.0.members.read().iter().any(|m| m.number == number && !m.leaving)
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
        let found = self.0.members.read().iter().find(|m| m.number == number).map(|m| m.volume.clone());
        found.ok_or_else(|| Error::NotAStore(format!("volume {number} is not there")))
    }

    /// Whether a volume is there.
    pub fn is_there(&self, number: u16) -> bool {
        self.0.members.read().iter().any(|m| m.number == number)
    }

    /// Whether a volume is there, and has all that it should.
    pub fn is_sound(&self, number: u16) -> bool {
        self.0.members.read().iter().any(|m| m.number == number && !m.health.has_failed())
    }

    /// Whether new regions may go where one is.
    pub fn accept(&self, at: RegionRef) -> bool {
        let members = self.0.members.read();
        at.places().all(|at| members.iter().any(|m| m.number == at.volume && m.is_open()))
    }

    /// Adds a volume.
    pub fn add(&self, entry: &VolumeEntry, volume: Arc<dyn Volume>) {
        self.0.members.write().push(member(entry, volume));
    }

    /// Takes note of what has changed of a volume. Once this has returned, nothing is being made on one that is leaving.
    pub fn change(&self, entry: &VolumeEntry) {
        for m in self.0.members.write().iter_mut().filter(|m| m.number == entry.number) {
            (m.limit, m.leaving) = (entry.size_limit, entry.leaving);
            m.volume.limit_to(entry.size_limit);
        }
    }

    /// Lets go of a volume that holds nothing any more.
    pub fn forget(&self, number: u16) {
        self.0.members.write().retain(|m| m.number != number);
        self.0.bucket.write().take_if(|b| b.number() == number);
    }

    /// The newest superblock.
    pub fn superblock(&self) -> Superblock {
        self.0.superblock.lock().clone()
    }

    /// Writes the superblock as it is to every volume once more; durable on return.
    pub fn rewrite_super(&self) -> Result<()> {
        let sb = self.0.superblock.lock();
        self.with_super()
            .iter()
            .filter(|m| sb.entry(m.number).is_some())
            .try_for_each(|m| sb.write(&*m.volume, m.number))
    }

    /// Writes the next superblock, with a change, to all volumes; `first` gets it before all others. On failure nothing has
    /// changed here, and the next attempt takes the same slot (the other one stays whole), but counts more.
    pub fn write_super(&self, first: Option<(&dyn Volume, u16)>, change: impl FnOnce(&mut Superblock)) -> Result<()> {
        self.0.write_super(first, change)
    }

    /// How many volumes don't have this superblock as they should.
    pub fn without_super(&self, sb: &Superblock) -> Result<u64> {
        let mut without = 0;
        for m in self.with_super().iter().filter(|m| sb.entry(m.number).is_some() && !m.health.has_failed()) {
            let newest = match Superblock::read_beginning(&*m.volume) {
                Err(Error::NotAStore(_)) => None,
                read => read?.into_iter().next(),
            };
            let label = Superblock::read_label(&*m.volume)?.into_iter().next();
            let is_it = |found: Option<OnVolume>| found.is_some_and(|n| n.superblock.generation == sb.generation);
            let has_label = m.volume.read_label(0)?.is_some();
            without += u64::from(!is_it(newest)) + u64::from(has_label && !is_it(label));
        }
        Ok(without)
    }

    /// A superblock's entries with where the volumes are now, if they are there.
    pub fn found_at(&self, sb: &Superblock) -> Vec<VolumeEntry> {
        let members = self.0.members.read();
        let now = |e: &VolumeEntry| match members.iter().find(|m| m.number == e.number) {
            Some(m) => VolumeEntry { hint: m.volume.hint(), kind: m.volume.kind(), ..e.clone() },
            None => VolumeEntry { away: e.away.or(Some(sb.generation)), ..e.clone() },
        };
        sb.volumes.iter().map(now).collect()
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
        self.wanted().number(what).min(self.0.members.read().iter().filter(|m| m.takes_new()).count())
    }

    /// Reserves a region of `size` bytes somewhere, and again elsewhere if there are to be two copies; [`Error::NoSpace`] if no
    /// volume has the room. Where only one has, there is one copy, unless that must not be (`strict`).
    pub fn create(&self, id: u64, size: u64, what: For, strict: bool) -> Result<Arc<dyn Region>> {
        if self.copies_of(what) < 2 {
            return self.create_one(id, size, what, None);
        }
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
        let twice = beside.is_none() && self.copies_of(what) == 2;
        let members = self.0.members.read();
        let is_free = |m: &&Member| m.takes_new() && beside.is_none_or(|at| at.on(m.number).is_none());
        let mut order: Vec<(&Member, u64)> = members.iter().filter(is_free).map(|m| (m, m.free())).collect();
        order.sort_by_key(|(_, free)| std::cmp::Reverse(*free));
        let sum = order.iter().map(|(_, free)| free).sum::<u64>();
        // In proportion to what is free, so that all get full at the same time; the number decides, so that it is the same
        // whenever a test is repeated. Where one has as much as all others, it has a copy of everything.
        let must = twice && order.first().is_some_and(|(_, most)| *most >= sum / 2);
        let mut at = if must { 0 } else { mix(if beside.is_some() { !id } else { id }) % sum.max(1) };
        let chosen = order.iter().position(|(_, free)| {
            let here = at < *free;
            at = at.saturating_sub(*free);
            here
        });
        if let Some(chosen) = chosen {
            order[..=chosen].rotate_right(1);
        }
        let mut outcome = Err(Error::NoSpace { used: 0, size: 0 });
        for (m, free) in order {
            if what.is_data() && m.limit > 0 && size > free {
                continue;
            }
            outcome = m.volume.create(id, size);
            if !matches!(outcome, Err(Error::NoSpace { .. })) {
                return outcome;
            }
        }
        drop(members);
        outcome.map_err(|_| self.no_space())
    }

    fn no_space(&self) -> Error {
        let (used, size) = self.usage().unwrap_or_default();
        Error::NoSpace { used, size }
    }

    /// Reserves a region on one volume.
    pub fn create_on(&self, number: u16, id: u64, size: u64) -> Result<Arc<dyn Region>> {
        let members = self.0.members.read();
        match members.iter().find(|m| m.number == number && m.is_open()) {
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
            let health = self.0.members.read().iter().find(|m| m.number == number).map(|m| m.health.clone());
            Side { region, health: health.unwrap_or_default() }
        };
        Arc::new(Twice::new([side(one), side(other)], self.0.clone()))
    }

    /// Opens a region that a manifest or a seal names: of two copies, those that can be had. Where its only volume is missing,
    /// it opens, and nothing can be read of it.
    pub fn open(&self, at: RegionRef) -> Result<Arc<dyn Region>> {
        let there: Vec<RegionRef> = at.places().filter(|at| self.is_there(at.volume)).collect();
        match there[..] {
            [] => Ok(Arc::new(Absent { at, volume: self.0.name_of(at.volume) })),
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

    /// Does something with each place of a region that is there. Of one whose volume has failed, failure is of no account.
    fn at_each(&self, at: RegionRef, each: impl Fn(&dyn Volume, RegionRef) -> Result<()>) -> Result<()> {
        let mut outcome = Ok(());
        for place in at.places().filter(|at| self.is_there(at.volume)) {
            match each(&*self.get(place.volume)?, place) {
                Err(e) if self.is_sound(place.volume) => outcome = Err(e),
                _ => {}
            }
        }
        outcome
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

    /// Tells which regions exist (after open); all others are gone. `wipe`: what they held is overwritten.
    pub fn keep_only(&self, regions: &[RegionRef], wipe: bool) -> Result<()> {
        self.members().iter().try_for_each(|m| {
            let here: Vec<RegionRef> = regions.iter().filter_map(|r| r.on(m.number)).collect();
            m.volume.keep_only(&here, wipe)
        })
    }

    /// The regions that there are, if all volumes know.
    pub fn list(&self) -> Result<Option<Vec<RegionRef>>> {
        let lists: Option<Vec<Vec<RegionRef>>> =
            self.with_super().iter().map(|m| m.volume.list()).collect::<Result<_>>()?;
        Ok(lists.map(|lists| lists.concat()))
    }

    /// Has volumes verify what they have of their own of a region; returns of how many places it was damaged, and is written anew.
    pub fn heal_places(&self, at: RegionRef) -> Result<u64> {
        let mut healed = 0;
        for place in at.places().filter(|at| self.is_sound(at.volume)) {
            healed += u64::from(self.get(place.volume)?.heal_place(place)?);
        }
        Ok(healed)
    }

    /// Overwrites what was given back since the open.
    pub fn wipe_given_back(&self) -> Result<()> {
        self.members().iter().filter(|m| !m.health.has_failed()).try_for_each(|m| m.volume.wipe_given_back())
    }

    /// (bytes in use, bytes there are) of all. What is free counts once where it is written twice; where everything has two copies, what
    /// is in use does too.
    pub fn usage(&self) -> Result<(u64, u64)> {
        let (used, free, most) = self.bytes_without(None)?;
        if self.copies_of(For::Log) < 2 {
            return Ok((used, used + free));
        }
        let lacking = self.0.lacking.load(Ordering::Relaxed);
        let free = (free / 2).min(free.saturating_sub(most)).saturating_sub(lacking / 2);
        let used = if self.wanted().copies == Copies::Two { used.saturating_add(lacking) / 2 } else { used };
        Ok((used, used + free))
    }

    /// (bytes in use, bytes free, the most that are free on one), as if a volume were not there: others of its pool have what it
    /// gives back.
    pub fn bytes_without(&self, without: Option<u16>) -> Result<(u64, u64, u64)> {
        let members = self.0.members.read();
        let leaving = members.iter().find(|m| Some(m.number) == without);
        let returned = match leaving.and_then(|m| Some((m, m.volume.pool()?))) {
            Some((m, pool)) => Some((pool, m.usage()?.0)),
            None => None,
        };
        let (mut used, mut free, mut most) = (0, 0, 0);
        // (free bytes as the volumes of a pool count them, the most that one of them sees, how many there are)
        let mut pools: HashMap<u64, (u64, u64, u64)> = HashMap::new();
        for m in members.iter().filter(|m| Some(m.number) != without && !m.health.has_failed() && m.tier == Tier::Hot) {
            let (here, size) = m.usage()?;
            used += here;
            match m.volume.pool().filter(|_| members.len() > 1 && m.is_open()) {
                Some(pool) => {
                    let (sum, most, n) = pools.entry(pool).or_default();
                    let more = returned.filter(|r| r.0 == pool).map_or(0, |r| r.1);
                    let (_, there) = m.volume.usage(0)?;
                    let room = size - here + if m.limit == 0 { more } else { 0 };
                    (*sum, *most, *n) = (*sum + room, (*most).max(there - here.min(there) + more), *n + 1);
                }
                None => {
                    free += size - here;
                    most = most.max(size - here);
                }
            }
        }
        for (sum, seen, n) in pools.into_values() {
            free += sum.min(seen);
            // (Two directories of one pool may each have a copy.)
            most = if n == 1 { most.max(sum.min(seen)) } else { most };
        }
        Ok((used, free, most))
    }

    /// Bytes of another volume that one has room for.
    pub fn room_on(&self, number: u16, from: u16) -> Result<u64> {
        let members = self.0.members.read();
        let pool = |m: &Member| m.volume.pool();
        let Some(m) = members.iter().find(|m| m.number == number) else { return Ok(0) };
        if m.is_bucket() {
            return Ok(u64::MAX);
        }
        let given_back = pool(m).is_some() && members.iter().any(|o| o.number == from && pool(o) == pool(m));
        let (used, size) = m.usage()?;
        Ok(if m.limit == 0 && given_back { u64::MAX } else { size - used })
    }

    /// (bytes in use, bytes there are) of one.
    pub fn usage_of(&self, number: u16) -> Result<(u64, u64)> {
        let members = self.0.members.read();
        let found = members.iter().find(|m| m.number == number);
        found
            .map_or_else(|| Err(Error::NotAStore(format!("volume {number} is not there"))), |m| m.volume.usage(m.limit))
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
    fn write_super(&self, first: Option<(&dyn Volume, u16)>, change: impl FnOnce(&mut Superblock)) -> Result<()> {
        let mut sb = self.superblock.lock();
        let mut next = Superblock { generation: sb.generation + 1, ..sb.clone() };
        change(&mut next);
        loop {
            let mut members = self.members.read().clone();
            members.retain(|m| !m.is_bucket());
            let has_failed = |number| members.iter().any(|m| m.number == number && m.health.has_failed());
            for e in next.volumes.iter_mut().filter(|e| has_failed(e.number)) {
                e.away.get_or_insert(sb.generation);
            }
            let is_away = |sb: &Superblock, number| sb.entry(number).is_some_and(|e| e.away.is_some());
            let leaves = next.volumes.iter().any(|e| e.away.is_some() && !is_away(&sb, e.number));
            // One that came to a volume that was not there any more counts less.
            let base = if leaves { LEFT_BEHIND } else { 0 };
            next.attempt = base + self.attempts.fetch_add(1, Ordering::Relaxed);
            if !next.fits() {
                return Err(Error::Refused(format!(
                    "the table of volumes is full: {} with their paths are too many; remove one, or use shorter paths",
                    next.volumes.len()
                )));
            }
            first.map_or(Ok(()), |(volume, number)| next.write(volume, number))?;
            let mut sound = members.iter().filter(|m| next.entry(m.number).is_some() && !m.health.has_failed());
            let others = sound.clone().count() > 1 && next.wanted().number(For::Index) == 2;
            let failed = sound.find_map(|m| next.write(&*m.volume, m.number).err().map(|e| (m, e)));
            match failed {
                None => break,
                // The others can do without it, once they say so.
                Some((m, e)) if others => m.health.fail(&m.volume.name(), &e),
                Some((_, e)) => return Err(e),
            }
        }
        self.attempts.store(0, Ordering::Relaxed);
        *sb = next;
        Ok(())
    }

    /// Has a superblock say which volumes have failed, if none does yet; durable on return.
    pub fn note_failures(&self) -> Result<()> {
        let is_known = |m: &Member, sb: &Superblock| sb.entry(m.number).is_none_or(|e| e.away.is_some());
        let sb = self.superblock.lock().clone();
        let all_known = self.members.read().iter().filter(|m| m.health.has_failed()).all(|m| is_known(m, &sb));
        if all_known { Ok(()) } else { self.write_super(None, |_| ()) }
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

fn member(e: &VolumeEntry, volume: Arc<dyn Volume>) -> Member {
    volume.numbered(e.number);
    volume.limit_to(e.size_limit);
    Member { number: e.number, volume, limit: e.size_limit, leaving: e.leaving, tier: e.tier, health: Arc::default() }
}
