//! Two copies of everything, or of the index: made when they are missing, given up when they are too many. docs/format.md §Copies.
//!
//! New regions are made twice. What there was before, or lost a copy, gets one region by region, as regions move (`moving.rs`): it
//! may be interrupted at any time.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::maintain::{Progress, State};
use crate::manifest::Manifest;
use crate::moving::Aim;
use crate::segment;
use crate::store::{SEGMENT_MIN, Store, reserve_of};
use crate::volume::{Copies, For, Region, RegionRef, Tier, VolumeEntry, Wanted};
use crate::{Error, Result};

/// With more bytes of which a copy is to be given up once no replay would read there, the index is flushed.
const LATER_MAX: u64 = 64 << 20;

/// How the copies of a store are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyState {
    /// Of what there are to be two.
    pub wanted: Copies,
    /// Bytes of which there is one, and are to be two.
    pub lacking: u64,
    /// Damaged places that were healed from the other copy since the open.
    pub healed: u64,
}

impl Store {
    /// How the copies are.
    pub fn copies(&self) -> CopyState {
        CopyState { wanted: self.wanted_copies(), lacking: self.left_to_copy().1, healed: self.volumes.healed() }
    }

    /// Of what there are to be two, whosever it is.
    pub fn wanted_copies(&self) -> Copies {
        self.volumes.wanted().copies
    }

    /// From now on so many copies are made; those that are missing by [`Store::step_copies`]. Refused where there are not two volumes,
    /// or too little room for what is missing.
    pub fn set_copies(&self, copies: Copies) -> Result<()> {
        self.must_be_writable()?;
        if copies != Copies::One {
            self.must_have_two_volumes()?;
        }
        let wanted = Wanted { copies, ..self.volumes.wanted() };
        let lacking = self.lacking_of(wanted, &self.maintenance.lock()).1;
        self.must_have_room_to_copy(lacking)?;
        self.volumes.write_super(|sb| sb.copies = copies)?;
        self.copies_changed(wanted, lacking);
        Ok(())
    }

    pub(crate) fn copies_changed(&self, wanted: Wanted, lacking: u64) {
        self.volumes.set_lacking(if wanted.number(For::Log) == 2 { lacking } else { 0 });
        self.allowance.store(0, Ordering::Relaxed);
    }

    pub(crate) fn must_have_two_volumes(&self) -> Result<()> {
        match self.could_keep_twice() {
            false => Err(Error::Refused("two copies need two volumes: add another first".into())),
            true => Ok(()),
        }
    }

    /// Whether there are two volumes for two copies.
    pub fn could_keep_twice(&self) -> bool {
        let entries = self.volumes.superblock().volumes;
        let is_open = |e: &&VolumeEntry| !e.leaving && self.volumes.is_sound(e.number) && e.tier == Tier::Hot;
        entries.iter().filter(is_open).count() > 1
    }

    pub(crate) fn must_have_room_to_copy(&self, lacking: u64) -> Result<()> {
        let (_, free, _) = self.volumes.bytes_without(None)?;
        let reserve = reserve_of(self.volume_usage()?.1);
        if lacking + reserve > free {
            return Err(Error::Refused(format!(
                "{lacking} bytes would have to be copied; {free} are free, of which {reserve} are in reserve: {} more are needed",
                lacking + reserve - free
            )));
        }
        Ok(())
    }

    /// Regions of which a copy is missing, and their bytes.
    pub fn left_to_copy(&self) -> (u64, u64) {
        self.lacking_of(self.volumes.wanted(), &self.maintenance.lock())
    }

    pub(crate) fn lacking_of(&self, wanted: Wanted, state: &State) -> (u64, u64) {
        // (What is on missing volumes only can't be copied.)
        let lacks = |(what, at): &(For, RegionRef)| (1..wanted.number(*what)).contains(&self.sound_places(*at));
        let left = self.regions_now(state).into_iter().filter(lacks);
        left.fold((0, 0), |(n, bytes), (_, at)| (n + 1, bytes + at.size))
    }

    /// Bytes of data that a manifest names once where it should twice.
    pub(crate) fn lacking(&self, m: &Manifest) -> u64 {
        let wanted = self.volumes.wanted();
        if wanted.number(For::Log) < 2 {
            return 0;
        }
        let tables = m.tables().map(|at| (For::Index, at));
        let all = segment::uses(&m.segments, &m.packs).into_iter().chain(tables);
        let lacks = |(what, at): &(For, RegionRef)| {
            wanted.number(*what) == 2 && at.second.is_none() && !self.volumes.is_cold(*at)
        };
        all.filter(lacks).map(|(_, at)| at.size).sum()
    }

    fn sound_places(&self, at: RegionRef) -> usize {
        // What is in the bucket need not be here, let alone twice.
        if self.volumes.is_cold(at) {
            return 2;
        }
        at.places().filter(|at| self.volumes.is_sound(at.volume)).count()
    }

    /// Whether a region is to be copied for this.
    pub(crate) fn wants(&self, aim: Aim<'_>, what: For, at: RegionRef) -> bool {
        match aim {
            Aim::Move(wanted) => self.is_due(wanted, what, at),
            // (Of what can't be told where it is, the copying says why.)
            Aim::Cut(number) => at
                .on(number)
                .is_some_and(|at| self.volumes.get(number).is_ok_and(|volume| volume.is_beyond(at).unwrap_or(true))),
            // What is on a missing volume can't be copied.
            Aim::Copies => self.volumes.copies_of(what) > self.sound_places(at) && self.volumes.is_there(at.volume),
        }
    }

    /// Goes on with making copies that are missing, or giving up those that are too many, `budget` bytes at most at a time.
    /// [`Progress::Idle`]: all are as they should be, or that can't be now.
    pub fn step_copies(&self, budget: u64) -> Result<Progress> {
        // (Who moves something may wait for a bucket; upkeep does not wait for him.)
        if self.read_only || self.moving.is_locked() {
            return Ok(Progress::Idle);
        }
        match self.give_up_copies()? {
            Progress::Idle => self.step_towards(Aim::Copies, budget),
            worked => Ok(worked),
        }
    }

    /// A segment of all copies, for whoever begins the next one; [`Error::NoSpace`] where there is no room for that.
    pub(crate) fn make_spare_of_all_copies(&self) -> Result<()> {
        let id = self.next_region.fetch_add(1, Ordering::Relaxed);
        let region = self.volumes.create(id, 16 * SEGMENT_MIN, For::Log, true)?;
        self.replace_spare(region)
    }

    /// Has the next segment be this one.
    fn replace_spare(&self, region: Arc<dyn Region>) -> Result<()> {
        let old = self.spare.lock().replace(region);
        old.map_or(Ok(()), |old| self.volumes.remove(old.place()))
    }

    /// Ends the log in a segment of two copies where the index has two, so that the store can be written to without either volume:
    /// what one of them doesn't have of the log is nothing then. (The next open gives the copy up as soon as both are there.)
    pub(crate) fn end_log_twice(&self) -> Result<()> {
        let wanted = self.volumes.wanted();
        if wanted.number(For::Index) < 2 || wanted.number(For::Log) == 2 || !self.could_keep_twice() {
            return Ok(());
        }
        let mut state = self.maintenance.lock();
        let open = {
            let tail = self.log.tail();
            (tail.segment.place(), tail.end())
        };
        if open.1 == segment::HEADER && self.sound_places(open.0) == 2 {
            return Ok(());
        }
        let id = self.next_region.fetch_add(1, Ordering::Relaxed);
        let region = match self.volumes.create_twice(id, SEGMENT_MIN, For::Log, true) {
            // Then it ends where it is.
            Err(Error::NoSpace { .. }) => return Ok(()),
            region => region?,
        };
        self.replace_spare(region)?;
        self.seal_open(&mut state, &|_| true)?;
        self.trim_segments()
    }

    /// Gives up the second copies of what is to have one.
    pub(crate) fn give_up_copies(&self) -> Result<Progress> {
        let wanted = self.volumes.wanted();
        let moving = self.moving.lock();
        let mut state = self.maintenance.lock();
        // (Where one has failed, the other is all there is.)
        let too_many = |what: For, at: RegionRef| at.second.is_some() && self.sound_places(at) > wanted.number(what);
        // Those that can be given up, and those that a replay would read: there they stay as the seals name them.
        let surplus = |state: &State| -> (Vec<RegionRef>, Vec<RegionRef>) {
            let mut all = self.regions_now(state);
            all.retain(|(what, at)| too_many(*what, *at) && !state.waits(at.id));
            let segments = self.segments.lock();
            let replayed = &segments[segment::sealed(&segments, state.log.region)..];
            let is_later =
                |(what, at): &(For, RegionRef)| *what != For::Log && replayed.iter().any(|s| s.at.id == at.id);
            let (later, now): (Vec<_>, Vec<_>) = all.into_iter().partition(is_later);
            let places = |all: Vec<(For, RegionRef)>| all.into_iter().map(|(_, at)| at).collect();
            (places(now), places(later))
        };
        let (due, later) = surplus(&state);
        if !moving.is_empty() || due.is_empty() && later.is_empty() {
            return Ok(Progress::Idle);
        }
        let later: u64 = later.iter().map(|at| at.size).sum();
        if later >= LATER_MAX || later > 0 && self.is_short_of_room() {
            self.flush_locked(&mut state)?;
        } else if due.is_empty() {
            return Ok(Progress::Idle);
        }
        if let Some(spare) = self.spare.lock().take_if(|r| too_many(For::Log, r.place())) {
            self.volumes.remove(spare.place())?;
        }
        if state.pass.is_some() {
            // It knows runs by their tables.
            self.step_pass(&mut state)?;
            return Ok(Progress::Worked);
        }
        if too_many(For::Log, self.log.tail().segment.place()) {
            let mut tail = self.log.tail();
            tail.check()?;
            self.next_segment(&mut tail, SEGMENT_MIN)?;
            drop(tail);
            self.flush_locked(&mut state)?;
        }
        self.trim_segments()?;
        let mut left = 0;
        for at in surplus(&state).0 {
            left += u64::from(self.give_up_copy(&mut state, at)?);
        }
        let levels = self.index.read().levels.clone();
        self.write_manifest(&mut state, &levels)?;
        self.bury(&mut state)?;
        Ok(if left > 0 { Progress::Worked } else { Progress::Idle })
    }

    /// Says whether there was one.
    fn give_up_copy(&self, state: &mut State, at: RegionRef) -> Result<bool> {
        let mut places = at.places();
        let (first, second) = (places.next().expect("it has one"), places.next());
        let table = self.index.read().levels.tables().find(|t| t.reference().region.is(at)).map(|t| t.len());
        let open = self.log.tail().segment.place();
        let old: Option<Arc<dyn Region>> = match table {
            Some(len) => self.switch_table(at, first, len)?,
            None if at.is(open) => None,
            None => match self.switch_segment(at, first)? {
                None => self.switch_pack(at, first)?,
                switched => switched,
            },
        };
        let gave_up = old.is_some();
        state.outdated.extend(old.zip(second));
        Ok(gave_up)
    }
}
