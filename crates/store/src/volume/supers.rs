//! The superblock on the volumes of a store: on all of them, or, where they are many, on a few that are its homes. docs/format.md §Superblock.
//!
//! Invariants: nothing of an older superblock is given back before the newer one is on all homes, and no former home has one that counts;
//! a sign is not written before what it says holds; the roster is on homes, durable before a superblock names it. A home may be one
//! generation behind (a power failure): so with the first change of an opening that is acknowledged the homes are two ahead, and the copy of
//! one from before is found out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::raw::UNIT;
use super::set::{For, Inner, Member, There, Volumes, member};
use super::{BucketVolume, Region, RegionRef, Roster, Table, Tier, Volume, VolumeEntry};
use crate::superblock::{HOMES, OnVolume, Superblock, with_supers};
use crate::{Error, Result};

/// Added to the attempt of a superblock that says of a volume that it is left behind.
pub(crate) const LEFT_BEHIND: u32 = 1 << 20;
/// With more changes since the roster was written, it is written anew.
const CHANGED_MAX: usize = 64;

impl Volumes {
    /// Writes the superblock as it is to every home once more; durable on return.
    pub fn rewrite_super(&self) -> Result<()> {
        let outcome = {
            let sb = self.0.superblock.lock();
            let homes = self.0.some(&sb.homes);
            let others = can_do_with_less(&sb, &homes);
            let written = sb.write_to_homes(homes.iter().map(|m| (m.number, &*m.volume)));
            written.map_err(|(number, e)| (number, e, others))
        };
        match outcome {
            Ok(()) => Ok(()),
            // The others can do without it, once they say so.
            Err((number, e, true)) => {
                self.0.fail(number, &e);
                self.0.reconsider.store(true, Ordering::Relaxed);
                self.write_super(|_| ())
            }
            Err((_, e, false)) => Err(e),
        }
    }

    /// Writes the next superblock, with a change, to all homes; durable on return. On failure nothing has changed here, and the next
    /// attempt takes the same slot (the other one stays whole), but counts more.
    pub fn write_super(&self, change: impl FnOnce(&mut Superblock)) -> Result<()> {
        self.write_super_and(None, change, |_| ())
    }

    /// Writes a superblock that names a volume more, which is told of the store before all others. Whoever reads it finds the volume
    /// here.
    pub fn join(
        &self,
        entry: &VolumeEntry,
        volume: Arc<dyn Volume>,
        change: impl FnOnce(&mut Superblock),
    ) -> Result<()> {
        let first = volume.clone();
        self.write_super_and(Some((&*first, entry.number)), change, |sb| self.0.add(sb, entry, volume))
    }

    /// As [`Volumes::join`], of a bucket.
    pub fn join_bucket(
        &self,
        entry: &VolumeEntry,
        bucket: Arc<BucketVolume>,
        change: impl FnOnce(&mut Superblock),
    ) -> Result<()> {
        self.write_super_and(None, change, |sb| {
            self.0.add(sb, entry, Arc::new(bucket.clone()));
            *self.0.bucket.write() = Some(bucket);
        })
    }

    /// Writes a superblock that names a volume no more; whoever reads it finds the volume here no more.
    pub fn leave(&self, number: u16) -> Result<()> {
        let change = |sb: &mut Superblock| sb.volumes.remove(number);
        self.write_super_and(None, change, |_| {
            self.0.members.write().remove(&number);
            self.0.bucket.write().take_if(|b| b.number() == number);
        })
    }

    /// Whether a home from before this opening could still be taken for one of now: see the invariants.
    pub fn is_opening_untold(&self) -> bool {
        self.0.opening_is_untold.load(Ordering::Relaxed)
    }

    /// Writes superblocks until it could not.
    pub fn tell_opening(&self) -> Result<()> {
        while self.is_opening_untold() {
            self.write_super(|_| ())?;
        }
        Ok(())
    }

    fn write_super_and(
        &self,
        first: Option<(&dyn Volume, u16)>,
        change: impl FnOnce(&mut Superblock),
        then: impl FnOnce(&Superblock),
    ) -> Result<()> {
        self.0.write_super(first, change, then)?;
        if self.0.signs_are_due.swap(false, Ordering::Relaxed) {
            // (The former homes know; from the others they can be reached.)
            self.post_signs()
                .unwrap_or_else(|e| tracing::warn!("a volume does not know where superblocks are now: {e}"));
        }
        Ok(())
    }

    /// Tells all other volumes which are the homes, as far as they don't know; durable on return. Goes on where one fails.
    pub fn post_signs(&self) -> Result<()> {
        let _one_at_a_time = self.0.signing.lock();
        let sb = self.superblock();
        let mut outcome = Ok(());
        for m in self.0.with_super() {
            let is_due =
                m.sign.load(Ordering::Relaxed) < sb.homes_since && !sb.is_home(m.number) && !m.health.has_failed();
            if sb.roster.is_none() || !is_due || sb.entry(m.number).is_none() {
                continue;
            }
            match sb.write_sign(&*m.volume, m.number) {
                Ok(()) => m.sign.store(sb.generation, Ordering::Relaxed),
                Err(e) => outcome = Err(e),
            }
        }
        outcome
    }

    /// How many volumes don't have this superblock, or the roster, or their sign, as they should; they get it with the next one.
    pub fn without_super(&self, sb: &Superblock) -> Result<u64> {
        let mut without = 0;
        for m in self.0.with_super().iter().filter(|m| sb.entry(m.number).is_some() && !m.health.has_failed()) {
            let newest = match Superblock::read_beginning(&*m.volume) {
                Err(Error::NotAStore(_)) => None,
                read => read?.into_iter().next(),
            };
            let label = Superblock::read_label(&*m.volume)?.into_iter().next();
            let is_home = sb.is_home(m.number);
            let is_it = |found: Option<OnVolume>| {
                found.is_some_and(|n| match is_home {
                    true => n.superblock.generation == sb.generation,
                    false => n.number == m.number && n.superblock.uuid == sb.uuid,
                })
            };
            let has_label = m.volume.read_label(0)?.is_some();
            let here = u64::from(!is_it(newest)) + u64::from(has_label && !is_it(label));
            if here > 0 && !is_home {
                m.sign.store(0, Ordering::Relaxed);
                self.0.signs_are_due.store(true, Ordering::Relaxed);
            }
            without += here;
        }
        let Some(roster) = &sb.roster else { return Ok(without) };
        let is_bad = |place: &RegionRef| {
            let region = self.get(place.volume).and_then(|volume| volume.open(*place));
            region.inspect(|r| r.drop_cached(0, roster.len)).and_then(|r| read_roster(&*r, roster, sb.version)).is_err()
        };
        let bad = roster.at.places().filter(|at| self.is_sound(at.volume)).filter(is_bad).count() as u64;
        if bad > 0 {
            self.0.renew_roster.store(true, Ordering::Relaxed);
        }
        Ok(without + bad)
    }

    /// Has the table of volumes written anew with the next superblock.
    pub fn renew_roster(&self) {
        self.0.renew_roster.store(true, Ordering::Relaxed);
    }

    /// Whether a volume that has just been added would be a better home than one that is.
    pub fn is_wanted_as_home(&self, number: u16) -> bool {
        let sb = self.superblock();
        let pool = self.0.some(&[number]).first().and_then(|m| m.pool);
        let homes = self.0.some(&sb.homes);
        let is_other = pool.is_some() && homes.iter().all(|m| m.pool != pool);
        let is_cold = |number: u16| sb.entry(number).is_some_and(|e| e.tier == Tier::Cold);
        let is_better = !is_cold(number) && homes.iter().any(|m| is_cold(m.number));
        !sb.is_home(number) && (is_other || is_better || homes.len() < HOMES)
    }

    /// Writes a superblock for which homes are chosen anew.
    pub fn choose_homes_anew(&self) -> Result<()> {
        self.0.reconsider.store(true, Ordering::Relaxed);
        self.write_super(|_| ())
    }

    /// The place of the roster on a volume, if it is there.
    pub fn roster_on(&self, number: u16) -> Option<RegionRef> {
        self.0.superblock.lock().roster.as_ref().and_then(|r| r.at.on(number))
    }

    /// A superblock's entries with where the volumes are now, if they are there. Signs that say otherwise are due.
    pub fn found_at(&self, sb: &Superblock) -> Table {
        let members = self.0.members.read();
        let now = |e: &VolumeEntry| match members.get(&e.number) {
            Some(m) => {
                let hint = m.volume.hint();
                if hint != e.hint {
                    m.sign.store(0, Ordering::Relaxed);
                }
                VolumeEntry { hint, kind: m.volume.kind(), ..e.clone() }
            }
            None => VolumeEntry { away: e.away.or(Some(sb.generation)), ..e.clone() },
        };
        sb.volumes.iter().map(now).collect()
    }
}

/// The table that is in a roster.
pub(crate) fn read_roster(region: &dyn Region, roster: &Roster, version: u32) -> Result<Table> {
    let mut bytes = vec![0; usize::try_from(roster.len).unwrap_or(0)];
    region.read_at(&mut bytes, 0)?;
    Roster::decode(&bytes, roster.at.id, version).ok_or_else(|| Error::Corrupt {
        place: format!("region {:x} on volume {}", roster.at.id, region.place().volume),
        what: "table of volumes",
        expected: "entries with a valid checksum".into(),
        found: "other bytes".into(),
    })
}

/// Whether one of these homes may fail: what the others need to go on is on two.
fn can_do_with_less(sb: &Superblock, homes: &[Member]) -> bool {
    homes.len() > 1 && sb.wanted().number(For::Index) == 2
}

impl Inner {
    /// Those of some volumes that are there and have not failed.
    fn some(&self, numbers: &[u16]) -> Vec<Member> {
        let members = self.members.read();
        numbers.iter().filter_map(|n| members.get(n)).filter(|m| !m.health.has_failed()).cloned().collect()
    }

    fn fail(&self, number: u16, e: &Error) {
        self.some(&[number]).iter().for_each(|m| m.health.fail(&m.volume.name(), e));
    }

    /// `first` is told of the store before all others; `then` is done before anybody can read the new superblock.
    fn write_super(
        &self,
        first: Option<(&dyn Volume, u16)>,
        change: impl FnOnce(&mut Superblock),
        then: impl FnOnce(&Superblock),
    ) -> Result<()> {
        let mut sb = self.superblock.lock();
        let mut next = Superblock { generation: sb.generation + 1, ..sb.clone() };
        change(&mut next);
        let reconsider = self.reconsider.swap(false, Ordering::Relaxed);
        if let Err(e) = self.write_next(&sb, &mut next, reconsider, first) {
            self.reconsider.store(true, Ordering::Relaxed);
            return Err(e);
        }
        self.attempts.store(0, Ordering::Relaxed);
        self.tried.lock().clear();
        if next.homes_since != sb.homes_since {
            self.signs_are_due.store(true, Ordering::Relaxed);
        }
        let old = std::mem::replace(&mut *sb, next).roster.map(|r| r.at);
        if let Some(old) = old.filter(|old| sb.roster.as_ref().is_none_or(|r| r.at != *old)) {
            self.remove(old);
        }
        self.note_told(&sb);
        then(&sb);
        Ok(())
    }

    /// Adds a volume, which is in a new superblock.
    fn add(&self, sb: &Superblock, entry: &VolumeEntry, volume: Arc<dyn Volume>) {
        // (Before that one, it was told of the homes.)
        let sign = sb.generation - 1;
        if sign < sb.homes_since {
            self.signs_are_due.store(true, Ordering::Relaxed);
        }
        self.members.write().insert(entry.number, member(entry, There { volume, sign }));
    }

    fn write_next(
        &self,
        sb: &Superblock,
        next: &mut Superblock,
        mut reconsider: bool,
        first: Option<(&dyn Volume, u16)>,
    ) -> Result<()> {
        loop {
            let failed: Vec<u16> = {
                let members = self.members.read();
                members.values().filter(|m| m.health.has_failed() && !m.is_bucket()).map(|m| m.number).collect()
            };
            for number in failed {
                if let Some(e) = next.entry(number).filter(|e| e.away.is_none()) {
                    next.volumes.put(VolumeEntry { away: Some(sb.generation), ..e.clone() });
                }
            }
            let changed = if next.volumes.is(&sb.volumes) { Vec::new() } else { next.volumes.changed(&sb.volumes) };
            if reconsider || !changed.is_empty() {
                self.settle_homes(sb, next, &changed, reconsider)?;
            }
            let away = |sb: &Superblock, number| sb.entry(number).and_then(|e| e.away);
            let leaves = changed.iter().any(|n| away(next, *n) > away(sb, *n));
            // One that came to a volume that was not there any more counts less.
            let base = if leaves { LEFT_BEHIND } else { 0 };
            next.attempt = base + self.attempts.fetch_add(1, Ordering::Relaxed);
            if !next.fits() {
                return Err(Error::Refused(
                    "the paths of volumes are too long for a superblock: remove one, or use shorter paths".into(),
                ));
            }
            match first {
                Some((volume, number)) if next.is_home(number) => next.write(volume, number)?,
                // What it says holds already: the homes have superblocks of that generation.
                Some((volume, number)) => {
                    let homes = if sb.roster.is_some() { &sb.homes } else { &next.homes };
                    let sign = Superblock { generation: sb.generation, homes: homes.clone(), ..next.clone() };
                    sign.write_sign(volume, number)?;
                }
                None => {}
            }
            let homes = self.some(&next.homes);
            let others = can_do_with_less(next, &homes);
            let written = next.write_to_homes(homes.iter().map(|m| (m.number, &*m.volume)));
            let former: Vec<u16> = {
                let mut tried = self.tried.lock();
                tried.extend(sb.homes.iter().chain(&next.homes));
                tried.iter().copied().filter(|n| !next.is_home(*n)).collect()
            };
            let former = self.some(&former).into_iter().filter(|m| next.entry(m.number).is_some());
            let written = written.and_then(|()| {
                former.into_iter().try_for_each(|m| {
                    next.write_sign(&*m.volume, m.number).map_err(|e| (m.number, e))?;
                    m.sign.store(next.generation, Ordering::Relaxed);
                    Ok(())
                })
            });
            match written {
                Ok(()) => return Ok(()),
                // The others can do without it, once they say so.
                Err((number, e)) if others => {
                    self.fail(number, &e);
                    reconsider = true;
                }
                Err((_, e)) => return Err(e),
            }
        }
    }

    /// Chooses the homes, and writes the roster if it is needed and due.
    fn settle_homes(&self, sb: &Superblock, next: &mut Superblock, changed: &[u16], reconsider: bool) -> Result<()> {
        // (One is a bucket, perhaps.)
        if next.volumes.len() <= HOMES + 1 {
            let all = with_supers(&next.volumes);
            if all.len() <= HOMES {
                (next.homes, next.roster) = (all, None);
                return Ok(());
            }
        }
        let serves = |m: &Member| next.entry(m.number).is_some_and(|e| !e.leaving && e.away.is_none());
        if reconsider || sb.roster.is_none() || self.some(&next.homes).iter().filter(|m| serves(m)).count() < HOMES {
            next.homes = self.choose(next);
        }
        if next.homes.is_empty() {
            return Err(Error::Refused("no volume is left that could take a superblock".into()));
        }
        let has_moved = |n: &u16| next.entry(*n).map(|e| &e.hint) != sb.entry(*n).map(|e| &e.hint);
        if next.homes != sb.homes || sb.roster.is_none() || next.homes.iter().any(has_moved) {
            next.homes_since = next.generation;
        }
        if let Some(roster) = &mut next.roster {
            roster.changed.extend(changed);
        }
        let is_asked_for = self.renew_roster.swap(false, Ordering::Relaxed);
        let places = self.places_for_roster(next);
        let is_fine = |r: &Roster| {
            let here = r.at.places().filter(|at| places.iter().any(|m| m.number == at.volume)).count();
            here >= places.len().min(2) && r.changed.len() <= CHANGED_MAX
        };
        if !is_asked_for && next.roster.as_ref().is_some_and(is_fine) && next.fits() {
            return Ok(());
        }
        match self.write_roster(next, &places) {
            Ok(roster) => next.roster = Some(roster),
            // The one that there is will do.
            Err(e)
                if next
                    .roster
                    .as_ref()
                    .is_some_and(|r| r.at.places().any(|at| !self.some(&[at.volume]).is_empty())) =>
            {
                tracing::warn!("the table of volumes can't be written anew: {e}");
                self.renew_roster.store(true, Ordering::Relaxed);
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// The homes: those that are, as long as they serve; on different filesystems, where there are several.
    fn choose(&self, next: &Superblock) -> Vec<u16> {
        let members = self.members.read();
        let mut left: Vec<(&Member, &VolumeEntry)> = members
            .values()
            .filter(|m| !m.is_bucket() && !m.health.has_failed())
            .filter_map(|m| Some((m, next.entry(m.number)?)))
            .collect();
        let mut pools = BTreeSet::new();
        let mut homes = BTreeSet::new();
        while homes.len() < HOMES {
            let rank = |(m, e): &(&Member, &VolumeEntry)| {
                let is_seen = m.pool.is_some_and(|pool| pools.contains(&pool));
                (e.leaving, e.tier == Tier::Cold, e.away.is_some(), is_seen, !next.is_home(e.number), e.number)
            };
            let Some(best) = (0..left.len()).min_by_key(|i| rank(&left[*i])) else { break };
            let (m, _) = left.swap_remove(best);
            pools.extend(m.pool);
            homes.insert(m.number);
        }
        homes.into_iter().collect()
    }

    /// Homes on which a roster may be, best first.
    fn places_for_roster(&self, next: &Superblock) -> Vec<Member> {
        let mut homes = self.some(&next.homes);
        homes.retain(|m| next.entry(m.number).is_some_and(|e| !e.leaving));
        let first = homes.first().and_then(|m| m.pool);
        // The second copy is on another filesystem, if there is one.
        if let Some(other) = homes.iter().skip(1).position(|m| m.pool.is_none() || m.pool != first) {
            homes[1..=1 + other].rotate_right(1);
        }
        homes
    }

    fn write_roster(&self, next: &Superblock, places: &[Member]) -> Result<Roster> {
        let id = self.next_region.fetch_add(1, Ordering::Relaxed);
        let bytes = Roster::encode(&next.volumes, id);
        let size = (bytes.len() as u64).next_multiple_of(UNIT);
        let mut outcome = Err(Error::NoSpace { used: 0, size: 0 });
        let mut made: Vec<RegionRef> = Vec::new();
        for m in places {
            let written = m.volume.create(id, size).and_then(|region: Arc<dyn Region>| {
                region.write_at(&bytes, 0)?;
                region.flush()?;
                Ok(region.place())
            });
            match written {
                Ok(at) => made.push(at),
                Err(e) => outcome = Err(e),
            }
            if made.len() == 2 {
                break;
            }
        }
        match made[..] {
            [] => outcome,
            [at, ..] => {
                let at = at.and(made.get(1).copied());
                let changed = next.bucket().map(|e| e.number).into_iter().collect();
                Ok(Roster { at, len: bytes.len() as u64, changed })
            }
        }
    }

    /// Gives a roster's space back that nothing names any more; where that fails, the next open does it.
    fn remove(&self, at: RegionRef) {
        for place in at.places() {
            for m in self.some(&[place.volume]) {
                m.volume.remove(place).unwrap_or_else(|e| {
                    tracing::warn!("region {:x} takes its space until the next mount: {e}", at.id);
                });
            }
        }
    }

    /// Has a superblock say which volumes have failed, if none does yet; durable on return.
    pub fn note_failures(&self) -> Result<()> {
        let sb = self.superblock.lock().clone();
        let is_known = |m: &Member| sb.entry(m.number).is_none_or(|e| e.away.is_some());
        let all_known = self.members.read().values().filter(|m| m.health.has_failed()).all(is_known);
        if all_known { Ok(()) } else { self.write_super(None, |_| (), |_| ()) }
    }
}
