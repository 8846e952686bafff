//! Full volumes: before a write fails, what nobody needs gives way, and where a fileset says so, its oldest history too.
//!
//! Whoever is refused room helps the cleaner. A collapse that gave nothing is not tried again for a while: refusing must
//! stay cheap.

use std::collections::BTreeMap;

use crate::clean::Effort;
use crate::maintain::State;
use crate::retain::WhenFull;
use crate::store::Store;
use crate::{Error, Result, Tid};

/// A gap of this size is good enough for a segment.
const GAP_ENOUGH: u64 = 4 << 20;
/// Regions moved in one go.
const MOVES_MAX: usize = 16;

/// How long after a fruitless collapse the next one is tried, nanoseconds.
const PAUSE: u64 = 10_000_000_000;

impl Store {
    /// Tries to have `bytes` free; says whether they are.
    pub(crate) fn make_room(&self, bytes: u64) -> Result<bool> {
        if self.read_only {
            return Ok(false);
        }
        let mut not_before = self.making_room.lock();
        loop {
            // Somebody else may have made it meanwhile.
            if self.usage()?.free >= bytes {
                return Ok(true);
            }
            if self.reclaim(Effort::Steady)? {
                continue;
            }
            let now = self.clock();
            // A collapse may find what pays better than the dregs.
            if now >= *not_before && self.collapse_all(now)? && self.reclaim(Effort::Steady)?
                || self.reclaim(Effort::Full)?
            {
                continue;
            }
            if now < *not_before {
                return Ok(false);
            }
            let made = self.make_gap().and_then(|made| Ok(made || self.collapse_oldest(now, bytes)?));
            // Damage in the index is told where it is met; here it only means that there is no more room.
            if !made.inspect_err(|e| tracing::error!("no room can be made: {e}")).unwrap_or(false) {
                *not_before = now + PAUSE;
                return Ok(false);
            }
        }
    }

    /// On a volume whose room lies in many small gaps, moves segments out of the way, so that a larger one comes about; says
    /// whether it did.
    pub(crate) fn make_gap(&self) -> Result<bool> {
        if self.read_only {
            return Ok(false);
        }
        let mut state = self.maintenance.lock();
        for n in 0..MOVES_MAX {
            let Some(gaps) = self.volume.gaps()? else { return Ok(false) };
            let largest = gaps.iter().map(|g| g.1).max().unwrap_or(0);
            let all: u64 = gaps.iter().map(|g| g.1).sum();
            if largest >= GAP_ENOUGH || all < 2 * GAP_ENOUGH || !self.move_one(&mut state, &gaps)? {
                return Ok(n > 0 && largest >= GAP_ENOUGH);
            }
        }
        Ok(false)
    }

    /// Moves the region that has most room around it to another gap; false if none fits.
    fn move_one(&self, state: &mut State, gaps: &[(u64, u64)]) -> Result<bool> {
        let mut best: Option<(u64, Vec<usize>)> = None;
        for (at, segments, needed) in self.movable(state) {
            let before = gaps.iter().find(|g| g.0 + g.1 == at.start).map_or(0, |g| g.1);
            let after = gaps.iter().find(|g| g.0 == at.start + at.size).map_or(0, |g| g.1);
            let beside = |g: &(u64, u64)| g.0 + g.1 == at.start || g.0 == at.start + at.size;
            let fits = gaps.iter().any(|g| !beside(g) && g.1 >= needed);
            let makes = before + at.size + after;
            if fits && before + after > 0 && best.as_ref().is_none_or(|(most, _)| makes > *most) {
                best = Some((makes, segments));
            }
        }
        let Some((_, segments)) = best else { return Ok(false) };
        match self.clean_segments(state, &segments) {
            Ok(_) => Ok(true),
            Err(Error::NoSpace { .. } | Error::Corrupt { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Goes on with a collapse or cleans a batch; says whether there was anything to do.
    fn reclaim(&self, effort: Effort) -> Result<bool> {
        let mut state = self.maintenance.lock();
        if state.pass.is_some() {
            self.step_pass(&mut state)?;
            return Ok(true);
        }
        let before = self.usage()?.free;
        while self.clean_batch(&mut state, effort)?.is_some() {
            if self.usage()?.free > before {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Collapses what the grids don't keep; says whether there was anything.
    fn collapse_all(&self, now_ns: u64) -> Result<bool> {
        let mut gives_up = !self.maintenance.lock().lapses.is_empty();
        for (fileset, _) in self.filesets() {
            gives_up |= !self.retention(fileset)?.keeps_all();
        }
        if !gives_up {
            return Ok(false);
        }
        self.advance_retentions(now_ns)?;
        self.whole_pass(now_ns)
    }

    /// Where filesets let it, gives up the oldest history that comes to `bytes` and a little more; says whether there was any.
    fn collapse_oldest(&self, now_ns: u64, bytes: u64) -> Result<bool> {
        let mut willing = Vec::new();
        for (fileset, _) in self.filesets() {
            if self.retention(fileset)?.when_full == WhenFull::CollapseOldest {
                willing.push(fileset);
            }
        }
        if willing.is_empty() {
            return Ok(false);
        }
        let account = self.account(now_ns, None)?;
        let wanted = (2 * bytes).max(self.usage()?.size / 32);
        let mut yielding: BTreeMap<u64, u64> = BTreeMap::new();
        for (until, bytes) in willing.iter().filter_map(|f| account.yielding.get(f)).flatten() {
            *yielding.entry(*until).or_default() += bytes;
        }
        let Some(floor) = floor(&yielding, wanted) else { return Ok(false) };
        tracing::warn!(floor = %Tid(floor), "the volume is full: history up to this tid is given up");
        for fileset in willing {
            self.retain(fileset, now_ns, |r| r.raised(Tid(floor)))?;
        }
        self.sync()?;
        self.whole_pass(now_ns)
    }

    /// Goes through the whole index; says whether anything lapsed.
    fn whole_pass(&self, now_ns: u64) -> Result<bool> {
        let mut state = self.maintenance.lock();
        self.flush_locked(&mut state)?;
        self.begin_pass(&mut state, now_ns)?;
        while self.step_pass(&mut state)?.is_some() {
            parking_lot::MutexGuard::bump(&mut state);
        }
        Ok(state.account.as_ref().is_some_and(|a| a.lapsed_versions > 0))
    }
}

/// Up to which tid history must go for so many bytes, or for all there are; `None`: there are none.
pub(crate) fn floor(yielding: &BTreeMap<u64, u64>, wanted: u64) -> Option<u64> {
    let mut sum = 0;
    let enough = yielding.iter().find_map(|(until, bytes)| {
        sum += bytes;
        (sum >= wanted).then_some(*until)
    });
    enough.or(yielding.keys().next_back().copied())
}
