//! Full volumes: before a write fails, what nobody needs gives way, and where a fileset says so, its oldest history too.
//!
//! Whoever is refused room helps the cleaner. A collapse that gave nothing is not tried again for a while, unless there is more that
//! might give way since: refusing must stay cheap.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use crate::clean::Effort;
use crate::retain::WhenFull;
use crate::store::Store;
use crate::volume::may_wait;
use crate::{Result, Tid};

/// How long after a fruitless collapse the next one is tried, nanoseconds.
const PAUSE: u64 = 10_000_000_000;

/// The last collapse that gave nothing.
#[derive(Default)]
pub(crate) struct Fruitless {
    /// When to try again in any case.
    not_before: u64,
    /// Bytes that had been superseded or deleted when it began, as [`Store::superseded`] counts them.
    superseded: i64,
    /// How often retentions had changed by then.
    changes: u64,
}

impl Store {
    /// Tries to have `bytes` free; says whether they are.
    pub(crate) fn make_room(&self, bytes: u64) -> Result<bool> {
        if self.read_only {
            return Ok(false);
        }
        let waits = may_wait();
        let Some(mut fruitless) = (if waits { Some(self.making_room.lock()) } else { self.making_room.try_lock() })
        else {
            return Ok(false);
        };
        loop {
            // Somebody else may have made it meanwhile.
            if self.usage()?.free >= bytes {
                return Ok(true);
            }
            if self.give_way(bytes.saturating_sub(self.usage()?.free))? || self.reclaim(Effort::Steady)? {
                continue;
            }
            if self.give_way_to_cold()? {
                continue;
            }
            if self.may_gain_room() && (!waits || self.outwait_push()) {
                match waits {
                    true => continue,
                    false => return Ok(false),
                }
            }
            // Before the look: what is given up while it goes on, it may have passed.
            let superseded = self.superseded();
            let now = self.clock();
            let tries = now >= fruitless.not_before || self.is_promising(&fruitless, bytes)?;
            // A collapse may find what pays better than the dregs.
            if tries && self.collapse_all(now)? && self.reclaim(Effort::Steady)? || self.reclaim(Effort::Full)? {
                continue;
            }
            if !tries {
                return Ok(false);
            }
            let made = self.collapse_oldest(now, bytes);
            // Damage in the index is told where it is met; here it only means that there is no more room.
            if !made.inspect_err(|e| tracing::error!("no room can be made: {e}")).unwrap_or(false) {
                *fruitless = Fruitless {
                    not_before: now + PAUSE,
                    superseded,
                    changes: self.retention_changes.load(Ordering::Relaxed),
                };
                return Ok(false);
            }
        }
    }

    /// Whether there might be room for so many bytes: free, or where something may give way, in all. Makes none.
    pub fn may_fit(&self, bytes: u64) -> Result<bool> {
        let u = self.usage()?;
        if bytes <= u.free {
            return Ok(true);
        }
        let gives_way = self.may_gain_room() || self.volumes.cold_volume().is_some() || self.gives_up()?;
        Ok(bytes <= if gives_way { u.size } else { u.free + self.dead_bytes() })
    }

    /// Whether any history may be given up, now or when there is no room.
    fn gives_up(&self) -> Result<bool> {
        let mut gives_up = !self.maintenance.lock().lapses.is_empty();
        for (fileset, _) in self.filesets() {
            let retention = self.retention(fileset)?;
            gives_up |= !retention.keeps_all() || retention.when_full == WhenFull::CollapseOldest;
        }
        Ok(gives_up)
    }

    /// Whether there is more that might give way than when a collapse gave nothing: enough for `bytes`, and worth a look at the whole index.
    fn is_promising(&self, fruitless: &Fruitless, bytes: u64) -> Result<bool> {
        let more = self.superseded().saturating_sub(fruitless.superseded).try_into().unwrap_or(0);
        let changed = self.retention_changes.load(Ordering::Relaxed) != fruitless.changes;
        Ok(changed || bytes.max(self.usage()?.size / 1024) <= more)
    }

    /// Bytes that are live no more, or never were, of what was appended; by how much this grows counts.
    fn superseded(&self) -> i64 {
        let tail = self.log.tail();
        (tail.appended as i64).saturating_sub(tail.counts.total().live as i64)
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
        self.collapse_whole(now_ns)
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
        self.collapse_whole(now_ns)
    }

    /// Goes through the whole index; says whether anything lapsed.
    fn collapse_whole(&self, now_ns: u64) -> Result<bool> {
        let mut state = self.maintenance.lock();
        self.whole_pass(&mut state, now_ns, &mut |_| ())?;
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
