//! Collapsing: versions that no visible moment sees leave the index. docs/format.md §Retention.
//!
//! A *pass* goes through all runs in key order, in steps that end between objects. Each step writes the survivors of its
//! range to new runs and clips the old ones to what comes after it, so space comes back on the way and a crash in between
//! leaves a valid index; the next pass begins anew. Because a pass sees all versions of a key together and an object's
//! ATTR before its other keys, it knows until when each version was visible.
//!
//! Invariants: a pass uses a retention that is durable; what it drops is invisible by it and by every later one. A
//! tombstone stays while an older version of its key does. Whatever is in no table (memtable) is newer and untouched.
//!
//! Of a *keepless* object (it has a KEEPLESS record, which comes first of its keys) only the newest versions count, whatever the
//! grid and the labels say, and those that a clone shows as part of what it is now.
//!
//! Tried and dropped: dropping versions in ordinary merges (a merge of some runs can't know until when a version was
//! visible, nor what a tombstone still hides).

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::MutexGuard;

use crate::clean::Effort;
use crate::index::levels::{Levels, Run};
use crate::index::merge::{Merged, Source, run_source};
use crate::maintain::{RunWriter, State, ghosts_of};
use crate::retain::Retention;
use crate::segment::Starts;
use crate::sharing::Sharing;
use crate::sieve::{Account, Fate, Keep, Lapses, Sieve, Tally};
use crate::store::Store;
use crate::{FilesetId, Result, Tid};

/// Bytes of tables that one step writes, about.
const STEP: u64 = 16 << 20;

/// A pass under way.
pub(crate) struct Pass {
    keep: Keep,
    /// What of the runs is still to be gone through.
    live: Vec<Run>,
    history: Vec<Run>,
    /// What it has made.
    made: [Run; 2],
    /// The segment that was written to when it began: from there on it does not see all that is needed.
    newest: u64,
    tally: Tally,
    read: u64,
    total: u64,
}

impl Pass {
    /// How many runs are part of it.
    fn runs(&self) -> usize {
        self.live.iter().chain(&self.history).chain(&self.made).filter(|r| !r.tables.is_empty()).count()
    }

    /// Whether a run is part of it.
    pub fn has(&self, run: &Run) -> bool {
        self.live.iter().chain(&self.history).chain(&self.made).any(|r| r.is(run))
    }
}

/// How far the cleaner is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Advance {
    /// Bytes done.
    pub done: u64,
    /// Bytes there are to do.
    pub total: u64,
}

impl Store {
    /// What may be seen of the past now. `instead`: as if a fileset had this retention.
    pub(crate) fn keep(&self, now_ns: u64, instead: Option<(FilesetId, &Retention)>) -> Result<Keep> {
        let mut keep = Keep { now_ns, ..Keep::default() };
        let filesets = self.index.read().filesets.clone();
        keep.clones = filesets.clones();
        for (moments, shown) in keep.cloned.iter_mut().zip([filesets.shown(), self.bases()?]) {
            for (base, at) in shown {
                moments.entry(base).or_default().push(at);
            }
        }
        for (fileset, removed) in self.filesets() {
            let mut retention = self.retention(fileset)?;
            if let Some((_, other)) = instead.filter(|(f, _)| *f == fileset) {
                retention = Arc::new(other.clone());
            }
            keep.retentions.insert(fileset, (retention, removed));
        }
        keep.forgotten = self.forgotten()?;
        keep.starts = Starts::of(&self.segments.lock());
        Ok(keep)
    }

    /// What is needed for what, as if a fileset had another retention, if one is given. Changes nothing but for a
    /// checkpoint; reads the whole index.
    pub fn account(&self, now_ns: u64, instead: Option<(FilesetId, &Retention)>) -> Result<Account> {
        if !self.read_only {
            self.checkpoint()?;
        }
        self.look_up_account(&self.keep(now_ns, instead)?)
    }

    /// Bytes that only the visible past needs; `None` where the index, all of which is read, has more than `index_max`.
    pub fn history_bytes(&self, now_ns: u64, index_max: u64) -> Result<Option<u64>> {
        let levels = self.index.read().levels.clone();
        if levels.tables().map(|t| t.len()).sum::<u64>() > index_max {
            return Ok(None);
        }
        Ok(Some(self.look_up_account(&self.keep(now_ns, None)?)?.history))
    }

    fn look_up_account(&self, keep: &Keep) -> Result<Account> {
        let (levels, active, frozen) = {
            let index = self.index.read();
            (index.levels.clone(), index.active.entries().collect::<Vec<_>>(), index.frozen.clone())
        };
        let through = |sharing| -> Result<(Account, Option<Sharing>)> {
            let mut sources: Vec<Source> = levels.live.iter().chain(&levels.history).map(run_source).collect();
            sources.push(Box::new(active.iter().cloned().map(Ok)));
            sources.extend(frozen.iter().map(|f| Box::new(f.entries().map(Ok)) as Source));
            let mut merged = Merged::new(sources)?;
            let mut sieve = Sieve::telling(keep, sharing);
            while let Some(e) = merged.next()? {
                sieve.pass(e, &mut |_, _| Ok(()))?;
                sieve.ghosts.clear();
            }
            let (account, sharing) = sieve.account();
            Ok((account, sharing.and_then(Sharing::found)))
        };
        let versions = levels.tables().map(|t| t.entries()).sum::<u64>() + active.len() as u64;
        let (account, shared) = through(Sharing::find(versions))?;
        let Some(shared) = shared else { return Ok(account) };
        let (mut account, shared) = through(shared)?;
        shared.into_iter().for_each(|shared| shared.count(&mut account));
        Ok(account)
    }

    /// Gives up, durably, what the filesets' grids don't keep at `now_ns`. Nothing is dropped yet.
    pub(crate) fn advance_retentions(&self, now_ns: u64) -> Result<()> {
        let mut changed = false;
        for (fileset, _) in self.filesets() {
            let before = self.retention(fileset)?;
            if !before.grid.keeps_all() {
                changed |= self.retain(fileset, now_ns, |r| r.advanced(Tid(now_ns)))? != before;
            }
        }
        if changed {
            self.sync()?;
        }
        Ok(())
    }

    /// Begins a pass over all there is, the memtable included.
    pub(crate) fn begin_pass(&self, state: &mut State, now_ns: u64) -> Result<()> {
        self.end_copy(state)?;
        self.flush_locked(state)?;
        let keep = self.keep(now_ns, None)?;
        // A label or a fileset that was taken away must not be back after a crash when what it kept is gone.
        self.sync()?;
        let levels = self.index.read().levels.clone();
        let total = levels.tables().map(|t| t.entries()).sum();
        let (live, history) = (levels.live.clone(), levels.history.clone());
        state.lapses = Lapses::default();
        state.grown.clear();
        state.passes += 1;
        // What it is to find changes what pays. What is chosen now needs no look of its own: the pass finds what is needed.
        state.batch = None;
        let tally = Tally { batch: self.next_batch(state, Effort::Steady)?, ..Tally::default() };
        let (newest, made) = (state.log.region, Default::default());
        state.pass = Some(Pass { keep, live, history, made, newest, tally, read: 0, total });
        Ok(())
    }

    /// Does a whole pass; `each` is told how far it is, while others get on.
    pub(crate) fn whole_pass(
        &self,
        state: &mut MutexGuard<'_, State>,
        now_ns: u64,
        each: &mut dyn FnMut(Advance),
    ) -> Result<()> {
        self.begin_pass(state, now_ns)?;
        while let Some(advance) = self.step_pass(state)? {
            // Whoever is told may take his time: nobody else waits for that.
            MutexGuard::unlocked_fair(state, || each(advance));
        }
        Ok(())
    }

    /// Does a step of the pass under way; says how far it is, `None` once it is over.
    pub(crate) fn step_pass(&self, state: &mut State) -> Result<Option<Advance>> {
        let Some(mut pass) = state.pass.take() else { return Ok(None) };
        let outcome = self.collapse_range(state, &mut pass);
        match outcome {
            Ok(true) => {
                let advance = Advance { done: pass.read, total: pass.total };
                state.pass = Some(pass);
                Ok(Some(advance))
            }
            Ok(false) => {
                self.end_pass(state, pass);
                self.drop_lost(state)?;
                Ok(None)
            }
            // The next one begins anew, after a while: what failed may fail again, and the cleaner has other work.
            Err(e) => {
                state.look_later(self.clock());
                Err(e)
            }
        }
    }

    fn end_pass(&self, state: &mut State, pass: Pass) {
        let Tally { account, segments, mut lapses, batch, .. } = pass.tally;
        tracing::debug!(versions = account.versions, lapsed = account.lapsed_versions, "a pass has ended");
        for s in self.segments.lock().iter_mut().take_while(|s| s.at.id != pass.newest) {
            s.live = segments.get(&s.at.id).copied().unwrap_or(0).min(s.end);
        }
        lapses.join(std::mem::take(&mut state.lapses));
        state.lapses = lapses;
        state.account = Some(account);
        state.batch = batch;
    }

    /// Collapses the next range; false at the end.
    fn collapse_range(&self, state: &mut State, pass: &mut Pass) -> Result<bool> {
        let sources = pass.live.iter().chain(&pass.history).map(run_source).collect();
        let mut merged = Merged::new(sources)?;
        let mut ghosts = ghosts_of(pass.live.iter().chain(&pass.history)).into_iter().peekable();
        let mut sieve = Sieve::new(&pass.keep, std::mem::take(&mut pass.tally));
        let mut made = Vec::new();
        let mut outputs = [(); 2].map(|()| RunWriter::new(self.table_size));
        let (mut written, mut read) = (0, 0u64);
        let mut last: Vec<u8> = Vec::new();
        let mut with_attr: Vec<u8> = Vec::new();
        let mut more = false;
        let outcome = (|| {
            while let Some(e) = merged.next()? {
                if written >= STEP && sieve.is_between_objects(&e) {
                    more = true;
                    break;
                }
                read += 1;
                if read.is_multiple_of(4096) && self.flush_is_due(state) {
                    // One object may take long.
                    self.flush_locked(state)?;
                }
                last.clear();
                last.extend_from_slice(&e.key);
                if state.deriving && self.is_left_over(&mut with_attr, &e) {
                    continue;
                }
                while let Some(g) = ghosts.next_if(|g| *g.from <= *e.key) {
                    outputs[0].ghost(g);
                }
                written += (e.key.len() + 16) as u64;
                sieve.pass(e, &mut |e, fate| {
                    written += e.value.as_ref().map_or(0, |v| v.len()) as u64;
                    outputs[usize::from(fate == Fate::History)].add(self, &e, &mut made)
                })?;
                sieve.ghosts.drain(..).for_each(|g| outputs[0].ghost(g));
            }
            sieve.end();
            sieve.ghosts.drain(..).for_each(|g| outputs[0].ghost(g));
            if !more {
                ghosts.by_ref().for_each(|g| outputs[0].ghost(g));
            }
            let [live, history] = outputs;
            Ok([live.finish(self, &mut made)?, history.finish(self, &mut made)?])
        })();
        let runs = match outcome {
            Ok(runs) => runs,
            Err(e) => {
                made.into_iter().for_each(|at| drop(self.volumes.remove(at)));
                return Err(e);
            }
        };
        let mut tally = sieve.finish();
        self.replace_range(state, pass, runs, &last)?;
        // At once: should the pass be cut short, the next one does not meet any more what this step dropped.
        let forgotten = std::mem::take(&mut tally.forgotten);
        let segments = self.segments.lock();
        state.forgotten.extend(segments.iter().map(|s| s.at.id).filter(|id| forgotten.contains(id)));
        drop(segments);
        pass.tally = tally;
        pass.read += read;
        Ok(more)
    }

    /// Puts what a step made in the place of all up to `last`.
    fn replace_range(&self, state: &mut State, pass: &mut Pass, runs: [Option<Run>; 2], last: &[u8]) -> Result<()> {
        let mut next = Levels::clone(&self.index.read().levels);
        let count = |levels: &Levels| levels.live.len() + levels.history.len();
        let before = count(&next);
        next.live.retain(|r| !pass.has(r));
        next.history.retain(|r| !pass.has(r));
        assert_eq!(before - count(&next), pass.runs(), "nobody else replaces the runs of a pass");
        let clip = |runs: &[Run]| -> Vec<Run> {
            runs.iter().map(|r| r.above(last)).filter(|r| !r.tables.is_empty()).collect()
        };
        let (live, history) = (clip(&pass.live), clip(&pass.history));
        // What was cleaned on the way (for a gap) may still hold what this step drops.
        state.passes += 1;
        let mut made = pass.made.clone();
        for (made, run) in made.iter_mut().zip(runs) {
            made.tables.extend(run.into_iter().flat_map(|r| r.tables));
        }
        next.live.extend(live.iter().cloned());
        next.history.extend(history.iter().cloned());
        next.live.extend(Some(made[0].clone()).filter(|r| !r.tables.is_empty()));
        next.history.extend(Some(made[1].clone()).filter(|r| !r.tables.is_empty()));
        let kept: HashSet<*const _> = live.iter().chain(&history).flat_map(|r| &r.tables).map(Arc::as_ptr).collect();
        self.commit_levels(state, next, false)?;
        let before = pass.live.iter().chain(&pass.history).flat_map(|r| &r.tables);
        state.doomed.extend(before.filter(|t| !kept.contains(&Arc::as_ptr(t))).cloned());
        (pass.live, pass.history, pass.made) = (live, history, made);
        self.bury(state)
    }
}
