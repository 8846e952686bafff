//! Adding, emptying, resizing and listing the volumes of an open store. docs/format.md §Volumes.
//!
//! Every change is one superblock, written to all its homes: a new volume is told of the store first, so that whoever finds it named
//! finds it whole. A volume that is leaving says so durably, and whoever opens the store goes on emptying it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::maintain::Progress;
use crate::moving::{Aim, Move};
use crate::recover::{SIZE_MIN, clear_supers, entry};
use crate::store::{Store, reserve_of};
use crate::superblock::{HOMES, Superblock};
use crate::volume::{Copies, For, RegionRef, Tier, Usage, Volume, VolumeEntry, VolumeKind, number_of};
use crate::{Error, Result};

/// A volume of an open store.
#[derive(Clone, Debug)]
pub struct VolumeUsage {
    /// What the store knows of it.
    pub entry: VolumeEntry,
    /// Bytes there are.
    pub size: u64,
    /// Bytes in use.
    pub used: u64,
    /// It is not there: nothing can be read of it.
    pub missing: bool,
    /// It has failed since the store was opened, and is not used any more.
    pub failed: bool,
}

impl Store {
    /// The volumes, by number.
    pub fn volumes(&self) -> Result<Vec<VolumeUsage>> {
        let all = self.volumes.superblock().volumes;
        all.iter().filter_map(|entry| self.usage_of(entry.clone()).transpose()).collect()
    }

    /// One of them, if there is one of that number.
    pub fn volume(&self, number: u16) -> Result<Option<VolumeUsage>> {
        self.volumes.superblock().entry(number).map_or(Ok(None), |entry| self.usage_of(entry.clone()))
    }

    /// Whether there is one of that number.
    pub fn has_volume(&self, number: u16) -> bool {
        self.volumes.superblock().entry(number).is_some()
    }

    /// Those that have superblocks: all where they are few.
    pub fn homes(&self) -> Vec<u16> {
        self.volumes.superblock().homes
    }

    /// Paths of those of them that are there to stay: from each the store is found.
    pub fn homes_at(&self) -> Vec<PathBuf> {
        let sb = self.volumes.superblock();
        let entries = sb.homes.iter().filter_map(|number| sb.entry(*number));
        let stays = entries.filter(|entry| !entry.leaving && self.volumes.is_there(entry.number));
        stays.map(|entry| PathBuf::from(OsStr::from_bytes(&entry.hint))).filter(|path| path.is_absolute()).collect()
    }

    /// `None`: it has left since its entry was read.
    fn usage_of(&self, entry: VolumeEntry) -> Result<Option<VolumeUsage>> {
        let usage = |used, size, missing, failed| VolumeUsage { entry: entry.clone(), size, used, missing, failed };
        Ok(match self.volumes.usage_of(entry.number)? {
            Usage::Missing if !self.has_volume(entry.number) => None,
            Usage::Missing => Some(usage(0, 0, true, false)),
            Usage::Failed => Some(usage(0, 0, false, true)),
            Usage::Known { used, size } => Some(usage(used, size, false, false)),
        })
    }

    fn volume_entry(&self, number: u16) -> Result<VolumeEntry> {
        let sb = self.volumes.superblock();
        sb.entry(number).cloned().ok_or_else(|| Error::Refused(format!("there is no volume {number}")))
    }

    pub(crate) fn must_be_writable(&self) -> Result<()> {
        match self.read_only {
            true => Err(Error::Refused("the store is open for reading only".into())),
            false => Ok(()),
        }
    }

    /// Makes an empty volume part of the store, durably; what was there is lost. `size_limit`: bytes that may be used of it, 0
    /// for all. Returns its number.
    pub fn add_volume(&self, volume: Arc<dyn Volume>, size_limit: u64) -> Result<u16> {
        self.add_volume_for(volume, size_limit, Tier::Hot)
    }

    /// As [`Store::add_volume`], of a tier.
    pub fn add_volume_for(&self, volume: Arc<dyn Volume>, size_limit: u64, tier: Tier) -> Result<u16> {
        self.must_be_writable()?;
        let (_, size) = volume.usage(size_limit)?;
        if size < SIZE_MIN {
            return Err(Error::Refused(format!(
                "{} has {size} bytes; a volume needs {SIZE_MIN} at least",
                volume.name()
            )));
        }
        let _one_at_a_time = self.moving.lock();
        let sb = self.volumes.superblock();
        let next = sb.next_volume;
        let number = number_of(next)?;
        volume.numbered(number);
        clear_supers(&*volume)?;
        volume.keep_only(&[], false)?;
        let mark = if sb.volumes.len() >= HOMES { draw()? } else { 0 };
        let entry = VolumeEntry { mark, ..entry(&*volume, number, size_limit, tier) };
        self.volumes.join(&entry, volume, |sb| {
            sb.next_volume = next + 1;
            sb.volumes.put(entry.clone());
        })?;
        self.allowance.store(0, Ordering::Relaxed);
        if self.volumes.is_wanted_as_home(number)
            && let Err(e) = self.volumes.choose_homes_anew()
        {
            tracing::warn!("volume {number} gets no superblock yet: {e}");
        }
        Ok(number)
    }

    /// Has a volume emptied, by [`Store::step_leave`] from now on, also after the next open. Refused where the others have too
    /// little room for what is on it.
    pub fn leave_volume(&self, number: u16) -> Result<()> {
        self.must_be_writable()?;
        let entry = self.volume_entry(number)?;
        if entry.leaving {
            return Ok(());
        }
        let (regions, bytes) = self.left_to_move(&Move::emptying(number));
        let is_hot = |v: &&VolumeEntry| v.tier == Tier::Hot;
        let all = self.volumes.superblock().volumes;
        let staying = all.iter().filter(|v| !v.leaving && v.number != number && is_hot(v)).count();
        let wanted = self.volumes.wanted();
        if staying == 0 {
            return Err(Error::Refused(format!("volume {number} is the only one for what is new: add another first")));
        }
        let is_last_but_one = staying < 2 && is_hot(&&entry) && wanted.number(For::Index) == 2;
        // The index alone is kept twice where that can be; nobody need have asked for it.
        let gives_up = is_last_but_one && wanted.number(For::Log) == 1;
        if is_last_but_one && !gives_up {
            return Err(Error::Refused(format!(
                "without volume {number} two copies have no place: add another first, or have one copy of everything"
            )));
        }
        let (_, free_now, _) = self.volumes.bytes_without(None)?;
        let (used, free, _) = self.volumes.bytes_without(Some(number))?;
        let reserve = reserve_of(used + free);
        // (What moves within a filesystem takes nothing of the reserve.)
        if bytes + reserve > free && bytes.saturating_add(free_now) > free {
            return Err(Error::Refused(format!(
                "volume {number} holds {bytes} bytes in {regions} regions; the others have {free} bytes free, of which {reserve} are \
                 in reserve: {} more are needed",
                (bytes + reserve).saturating_sub(free)
            )));
        }
        self.change(VolumeEntry { leaving: true, ..entry }, |sb| {
            if gives_up {
                sb.copies = Copies::One;
            }
        })
    }

    /// Changes how much of a volume may be used; 0: all there is. An image file is made longer at once; what is beyond the new end of
    /// one, or of a device, moves by [`Store::step_cut`], and then the file is cut.
    pub fn resize_volume(&self, number: u16, size_limit: u64) -> Result<()> {
        self.must_be_writable()?;
        let entry = self.volume_entry(number)?;
        match entry.kind {
            VolumeKind::Directory => {}
            VolumeKind::Raw => return self.resize_raw(entry, size_limit),
            VolumeKind::Bucket => return Err(Error::Refused(format!("volume {number} is a bucket: it has no size"))),
        }
        let (used, _) = self.usage_now(number)?;
        if size_limit > 0 && size_limit < used.max(SIZE_MIN) {
            return Err(Error::Refused(format!(
                "{size_limit} bytes are too few for volume {number}: {used} are in use, and {SIZE_MIN} is the least"
            )));
        }
        self.change_entry(VolumeEntry { size_limit, ..entry })
    }

    fn usage_now(&self, number: u16) -> Result<(u64, u64)> {
        match self.volumes.usage_of(number)? {
            Usage::Known { used, size } => Ok((used, size)),
            Usage::Failed => Err(Error::Refused(format!("volume {number} has failed, and is not used any more"))),
            Usage::Missing => Err(Error::NotAStore(format!("volume {number} is not there"))),
        }
    }

    fn resize_raw(&self, entry: VolumeEntry, size: u64) -> Result<()> {
        let volume = self.volumes.get(entry.number)?;
        let (number, bytes) = (entry.number, volume.bytes()?);
        if size > bytes {
            volume.resize(size)?;
        }
        if size == 0 || size >= bytes {
            return self.change_entry(VolumeEntry { size_limit: 0, ..entry });
        }
        let (used, free, _) = self.volumes.bytes_without(None)?;
        let (here, now) = self.usage_now(number)?;
        let left = (used + free).saturating_sub(now.saturating_sub(size));
        let reserve = reserve_of(left);
        if size < SIZE_MIN || used + reserve > left {
            return Err(Error::Refused(format!(
                "{size} bytes are too few for volume {number}: then there would be {left} in all, of which {used} are in use and {reserve} \
                 in reserve; and {SIZE_MIN} is the least for a volume"
            )));
        }
        // What is written needs room on two.
        let reserve = if self.volumes.copies_of(For::Log) == 2 { reserve } else { 0 };
        let (to_others, together) = (self.room_for_what_is_on(number)?, size.saturating_sub(reserve));
        if here > together.saturating_add(to_others) {
            return Err(Error::Refused(format!(
                "{size} bytes are too few for volume {number}: {here} are in use there, {reserve} are in reserve, and other volumes can \
                 have {to_others} of them, as what has two copies has them on two volumes"
            )));
        }
        self.change_entry(VolumeEntry { size_limit: size, ..entry })
    }

    /// Bytes of what is on a volume for which there is room on others that do not have it yet, at most.
    fn room_for_what_is_on(&self, number: u16) -> Result<u64> {
        let regions: Vec<RegionRef> = {
            let state = self.maintenance.lock();
            let all = self.regions_now(&state).into_iter().map(|(_, at)| at);
            all.filter(|at| at.on(number).is_some()).collect()
        };
        let others: Vec<u16> = self.volumes.taking_new().into_iter().filter(|other| *other != number).collect();
        let has_place = |at: &&RegionRef| others.iter().any(|other| at.on(*other).is_none());
        let movable = regions.iter().filter(has_place).map(|at| at.size).sum::<u64>();
        let mut room = 0u64;
        for other in others.iter().copied() {
            let fits = regions.iter().filter(|at| at.on(other).is_none()).map(|at| at.size).sum::<u64>();
            room = room.saturating_add(fits.min(self.volumes.room_on(other, number)?));
        }
        Ok(room.min(movable))
    }

    /// A volume that is longer than it is to be.
    pub fn too_long(&self) -> Option<u16> {
        let is_it = |v: &&VolumeEntry| {
            let volume =
                self.volumes.get(v.number).ok().filter(|_| v.size_limit > 0 && self.volumes.is_sound(v.number));
            volume.is_some_and(|volume| volume.is_too_long().unwrap_or(false))
        };
        self.volumes.superblock().volumes.iter().find(|v| is_it(v)).map(|v| v.number)
    }

    /// Regions that are beyond the end that a volume is to have, and their bytes.
    pub fn left_to_cut(&self, number: u16) -> (u64, u64) {
        self.left(Aim::Cut(number))
    }

    /// Goes on with making volumes shorter, `budget` bytes at most at a time. [`Progress::Idle`]: all are as long as they should be, or
    /// what is in the way still has readers.
    pub fn step_cut(&self, budget: u64) -> Result<Progress> {
        let Some(number) = self.too_long().filter(|_| !self.read_only) else { return Ok(Progress::Idle) };
        if self.step_towards(Aim::Cut(number), budget)? == Progress::Worked {
            return Ok(Progress::Worked);
        }
        let volume = self.volumes.get(number)?;
        if self.volumes.roster_on(number).is_some_and(|at| volume.is_beyond(at).unwrap_or(false)) {
            self.volumes.renew_roster();
            self.write_manifest_now()?;
        }
        self.bury(&mut self.maintenance.lock())?;
        if !volume.cut()? {
            return Ok(Progress::Idle);
        }
        let entry = self.volume_entry(number)?;
        self.change_entry(VolumeEntry { size_limit: 0, ..entry }).map(|()| Progress::Worked)
    }

    fn change_entry(&self, entry: VolumeEntry) -> Result<()> {
        self.change(entry, |_| ())
    }

    /// Changes an entry, and something else with it.
    fn change(&self, entry: VolumeEntry, also: impl Fn(&mut Superblock)) -> Result<()> {
        self.volumes.write_super(|sb| {
            if sb.entry(entry.number).is_some() {
                sb.volumes.put(entry.clone());
            }
            also(sb);
        })?;
        self.volumes.change(&entry);
        self.allowance.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// Gives up a volume that is missing or has failed: it is no volume of the store any more, whatever comes of it. Returns how many
    /// regions, of how many bytes, were on it only, and are lost.
    pub fn lose_volume(&self, number: u16) -> Result<(u64, u64)> {
        self.must_be_writable()?;
        self.volume_entry(number)?;
        let unreachable = || self.volumes.bucket().filter(|b| b.number() == number).and_then(|b| b.objects().trouble());
        if self.volumes.is_sound(number) && unreachable().is_none() {
            return Err(Error::Refused(format!("volume {number} is there: it can be emptied, and nothing is lost")));
        }
        if let Err(e) = self.end_copy(&mut self.maintenance.lock()) {
            tracing::warn!("what was being cleaned stays as it was: {e}");
        }
        let lost = self.only_on(number);
        self.volumes.leave(number)?;
        self.allowance.store(0, Ordering::Relaxed);
        Ok(lost)
    }

    /// Regions that are on a volume only, and their bytes.
    pub fn only_on(&self, number: u16) -> (u64, u64) {
        let state = self.maintenance.lock();
        let is_it = |at: &RegionRef| at.places().all(|at| at.volume == number);
        let only = self.regions_now(&state).into_iter().map(|(_, at)| at).filter(is_it);
        only.fold((0, 0), |(n, bytes), at| (n + 1, bytes + at.size))
    }

    /// The first of the volumes that are leaving.
    pub fn leaving(&self) -> Option<Move> {
        let sb = self.volumes.superblock();
        sb.volumes.iter().find(|v| v.leaving).map(|v| Move::emptying(v.number))
    }

    /// Goes on emptying the volumes that are leaving, `budget` bytes at most at a time; one that is empty is let go of.
    pub fn step_leave(&self, budget: u64) -> Result<Progress> {
        let Some(wanted) = self.leaving().filter(|_| !self.read_only) else { return Ok(Progress::Idle) };
        // Where it was one of two, what had two copies has no place for the other.
        if self.give_up_copies()? == Progress::Worked {
            return Ok(Progress::Worked);
        }
        // A pack that was begun before it had to leave may be on its way to it, and is named from here on. (Later ones go elsewhere.)
        self.end_copy(&mut self.maintenance.lock())?;
        match self.step_move(&wanted, budget)? {
            Progress::Idle if self.let_go(wanted.from)? => Ok(Progress::Worked),
            progress => Ok(progress),
        }
    }

    /// Lets go of a volume that holds nothing any more; says whether it did.
    fn let_go(&self, number: u16) -> Result<bool> {
        let moving = self.moving.lock();
        let mut state = self.maintenance.lock();
        self.bury(&mut state)?;
        // Who makes a segment now has found it leaving.
        let tail = self.log.tail();
        let is_here = |at: &RegionRef| at.on(number).is_some();
        let named = self.regions_now(&state).iter().any(|(_, at)| is_here(at))
            || is_here(&tail.segment.place())
            || self.volumes.roster_on(number).is_some();
        let waits =
            state.waiting().any(|at| is_here(&at)) || self.spare.lock().as_ref().is_some_and(|r| is_here(&r.place()));
        if named || waits || !moving.is_empty() {
            return Ok(false);
        }
        drop(tail);
        let volume = self.volumes.get(number);
        let bucket = self.volumes.bucket().filter(|b| b.number() == number);
        self.volumes.leave(number)?;
        if let Some(bucket) = bucket {
            drop((state, moving));
            if let Err(e) = self.clear_bucket(&bucket) {
                tracing::warn!("{} is no volume any more, but can't be cleared: {e}", bucket.name());
            }
            return Ok(true);
        }
        // (One that is missing can't be cleared.)
        if let Ok(volume) = volume
            && let Err(e) = volume.keep_only(&[], false).and_then(|()| volume.wipe_super())
        {
            tracing::warn!("{} is no volume any more, but can't be cleared: {e}", volume.name());
        }
        Ok(true)
    }
}

/// A number that nobody else has drawn, not 0.
fn draw() -> Result<u32> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).map_err(|e| Error::Refused(format!("no random numbers: {e}")))?;
    Ok(u32::from_le_bytes(bytes).max(1))
}
