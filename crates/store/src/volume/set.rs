//! The volumes of a store, as one: a region is made on one of them, and found again by the number of its volume.
//!
//! Invariants: a number means one volume for the whole life of a store; nothing new goes to one that is leaving.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;

use super::{Region, RegionRef, Volume, VolumeEntry};
use crate::codec::mix;
use crate::superblock::Superblock;
use crate::{Error, Result};

#[derive(Clone)]
struct Member {
    number: u16,
    volume: Arc<dyn Volume>,
    /// Bytes that may be used of it; 0: all there are.
    limit: u64,
    leaving: bool,
}

impl Member {
    /// (bytes in use, bytes there are for us).
    fn usage(&self) -> Result<(u64, u64)> {
        let (used, size) = self.volume.usage(self.limit)?;
        Ok((used, if self.leaving { used } else { size.max(used) }))
    }

    fn free(&self) -> u64 {
        self.usage().map_or(0, |(used, size)| size - used)
    }
}

/// See the module.
pub struct Volumes(RwLock<Vec<Member>>);

impl Volumes {
    /// Those of a superblock's volumes that are there.
    pub fn new(sb: &Superblock, there: &HashMap<u16, Arc<dyn Volume>>) -> Volumes {
        let member = |e: &VolumeEntry| there.get(&e.number).map(|volume| member(e, volume.clone()));
        Volumes(RwLock::new(sb.volumes.iter().filter_map(member).collect()))
    }

    /// What users call the first of them.
    pub fn name(&self) -> String {
        self.0.read().first().map_or_else(String::new, |m| m.volume.name())
    }

    /// A volume by its number.
    pub fn get(&self, number: u16) -> Result<Arc<dyn Volume>> {
        let found = self.0.read().iter().find(|m| m.number == number).map(|m| m.volume.clone());
        found.ok_or_else(|| Error::NotAStore(format!("volume {number} is not there")))
    }

    /// Whether new regions may go to a volume.
    pub fn accepts(&self, number: u16) -> bool {
        self.0.read().iter().any(|m| m.number == number && !m.leaving)
    }

    /// Adds a volume.
    pub fn add(&self, entry: &VolumeEntry, volume: Arc<dyn Volume>) {
        self.0.write().push(member(entry, volume));
    }

    /// Takes note of what has changed of a volume. Once this has returned, nothing is being made on one that is leaving.
    pub fn change(&self, entry: &VolumeEntry) {
        for m in self.0.write().iter_mut().filter(|m| m.number == entry.number) {
            (m.limit, m.leaving) = (entry.size_limit, entry.leaving);
        }
    }

    /// Lets go of a volume that holds nothing any more.
    pub fn forget(&self, number: u16) {
        self.0.write().retain(|m| m.number != number);
    }

    /// Writes a superblock to every volume; durable on return.
    pub fn write_super(&self, sb: &Superblock) -> Result<()> {
        let members = self.0.read().clone();
        members.iter().filter(|m| sb.entry(m.number).is_some()).try_for_each(|m| sb.write(&*m.volume, m.number))
    }

    /// How many volumes don't have this superblock as they should.
    pub fn without_super(&self, sb: &Superblock) -> Result<u64> {
        let members = self.0.read().clone();
        let mut without = 0;
        for m in members.iter().filter(|m| sb.entry(m.number).is_some()) {
            let newest = match Superblock::read(&*m.volume) {
                Err(Error::NotAStore(_)) => None,
                read => read?.into_iter().next(),
            };
            without += u64::from(newest.is_none_or(|n| n.superblock.generation != sb.generation));
        }
        Ok(without)
    }

    /// The entries with where the volumes are now.
    pub fn found_at(&self, entries: &[VolumeEntry]) -> Vec<VolumeEntry> {
        let members = self.0.read();
        let now = |e: &VolumeEntry| {
            let here = members.iter().find(|m| m.number == e.number);
            here.map_or_else(
                || e.clone(),
                |m| VolumeEntry { hint: m.volume.hint(), kind: m.volume.kind(), ..e.clone() },
            )
        };
        entries.iter().map(now).collect()
    }

    /// Reserves a region of `size` bytes somewhere; [`Error::NoSpace`] if no volume has the room. `limited`: only where
    /// volumes stay within their limits.
    pub fn create(&self, id: u64, size: u64, limited: bool) -> Result<Arc<dyn Region>> {
        let members = self.0.read();
        let mut order: Vec<(&Member, u64)> = members.iter().filter(|m| !m.leaving).map(|m| (m, m.free())).collect();
        order.sort_by_key(|(_, free)| std::cmp::Reverse(*free));
        // In proportion to what is free, so that all get full at the same time; the number decides, so that it is the same
        // whenever a test is repeated.
        let mut at = mix(id) % order.iter().map(|(_, free)| free).sum::<u64>().max(1);
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
            if limited && m.limit > 0 && size > free {
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
        let members = self.0.read();
        match members.iter().find(|m| m.number == number && !m.leaving) {
            Some(m) if m.limit > 0 && size > m.free() => {
                let (used, size) = m.usage()?;
                Err(Error::NoSpace { used, size })
            }
            Some(m) => m.volume.create(id, size),
            None => Err(Error::NotAStore(format!("volume {number} is not there, or leaving"))),
        }
    }

    /// Opens a region that a manifest or a seal names.
    pub fn open(&self, at: RegionRef) -> Result<Arc<dyn Region>> {
        self.get(at.volume)?.open(at)
    }

    /// Gives back what lies beyond `size` bytes.
    pub fn shrink(&self, at: RegionRef, size: u64) -> Result<RegionRef> {
        self.get(at.volume)?.shrink(at, size)
    }

    /// Gives a region's space back.
    pub fn remove(&self, at: RegionRef) -> Result<()> {
        self.get(at.volume)?.remove(at)
    }

    /// Tells which regions exist (after open); all others are gone. `wipe`: what they held is overwritten.
    pub fn keep_only(&self, regions: &[RegionRef], wipe: bool) -> Result<()> {
        let members = self.0.read().clone();
        members.iter().try_for_each(|m| {
            let here: Vec<RegionRef> = regions.iter().filter(|r| r.volume == m.number).copied().collect();
            m.volume.keep_only(&here, wipe)
        })
    }

    /// The regions that there are, if all volumes know.
    pub fn list(&self) -> Result<Option<Vec<RegionRef>>> {
        let members = self.0.read().clone();
        let lists: Option<Vec<Vec<RegionRef>>> = members.iter().map(|m| m.volume.list()).collect::<Result<_>>()?;
        Ok(lists.map(|lists| lists.concat()))
    }

    /// Overwrites what was given back since the open.
    pub fn wipe_given_back(&self) -> Result<()> {
        let members = self.0.read().clone();
        members.iter().try_for_each(|m| m.volume.wipe_given_back())
    }

    /// (bytes in use, bytes there are) of all.
    pub fn usage(&self) -> Result<(u64, u64)> {
        self.usage_without(None)
    }

    /// As [`Volumes::usage`], as if one were not there.
    pub fn usage_without(&self, without: Option<u16>) -> Result<(u64, u64)> {
        let members = self.0.read();
        let (mut used, mut free) = (0, 0);
        // (free bytes as the volumes of a pool count them, the most that one of them sees)
        let mut pools: HashMap<u64, (u64, u64)> = HashMap::new();
        for m in members.iter().filter(|m| Some(m.number) != without) {
            let (here, size) = m.usage()?;
            used += here;
            match m.volume.pool().filter(|_| members.len() > 1 && !m.leaving) {
                Some(pool) => {
                    let (sum, most) = pools.entry(pool).or_default();
                    let (_, there) = m.volume.usage(0)?;
                    (*sum, *most) = (*sum + (size - here), (*most).max(there - here.min(there)));
                }
                None => free += size - here,
            }
        }
        free += pools.values().map(|(sum, most)| sum.min(most)).sum::<u64>();
        Ok((used, used + free))
    }

    /// Whether what one gives back others can use.
    pub fn shares_a_pool(&self, number: u16) -> bool {
        let members = self.0.read();
        let pool = |m: &Member| m.volume.pool();
        let here = members.iter().find(|m| m.number == number).and_then(pool);
        here.is_some() && members.iter().any(|m| m.number != number && !m.leaving && pool(m) == here)
    }

    /// (bytes in use, bytes there are) of one.
    pub fn usage_of(&self, number: u16) -> Result<(u64, u64)> {
        let members = self.0.read();
        let found = members.iter().find(|m| m.number == number);
        found
            .map_or_else(|| Err(Error::NotAStore(format!("volume {number} is not there"))), |m| m.volume.usage(m.limit))
    }
}

fn member(e: &VolumeEntry, volume: Arc<dyn Volume>) -> Member {
    volume.numbered(e.number);
    Member { number: e.number, volume, limit: e.size_limit, leaving: e.leaving }
}
