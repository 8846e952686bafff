//! What the daemon does about the past: shows and changes what is kept of it, hurries the cleaner, and forgets on purpose.

use std::time::{Duration, Instant};

use darner_fs::{FilesetId, Inode, MAIN, Marked, Node, retain};
use darner_store::{AGES, Account, Advance, Retention, Step, Tid, WhenFull, retain::FOREVER};

use crate::control::{AgeLine, Response, RetentionLine, RetentionReport, Spot, StepLine, Tell, Usage};
use crate::daemon::Daemon;
use crate::error::{Failure, Result};
use crate::frontend::now_ns;
use crate::when::local;

/// How long to wait for the kernel to let go of what was just removed.
const PATIENCE: Duration = Duration::from_secs(3);
/// The same, where some may be open for long.
const MOMENT: Duration = Duration::from_millis(500);
/// At most so many nodes of the past are made stale one by one.
const STALE_MAX: usize = 1 << 16;
const AGE_NAMES: [&str; AGES.len()] = ["hour", "day", "week", "month", "quarter", "year", "older"];

/// `status` reads an index of so many bytes at most, and is at that for one part in so many of the time.
const INDEX_MAX: u64 = 16 << 20;
const REST: u32 = 20;

/// What was found of the bytes that only the past needs.
#[derive(Clone, Copy)]
pub(crate) struct History {
    bytes: u64,
    /// What was in use then and no file held.
    loose: u64,
    at: Instant,
    took: Duration,
}

/// What `darner retain` asks for.
pub(crate) struct Wanted {
    pub grid: Option<String>,
    pub when_full: Option<String>,
    pub dry_run: bool,
    pub nothing_here: Option<bool>,
}

/// Gets interim answers.
fn progress(tell: &mut Tell<'_>, a: Advance) {
    tell(a.done, a.total);
}

impl Daemon {
    /// Shows what is kept of a fileset's past or, if anything is wanted, changes it (or only shows what that would do).
    pub(crate) fn retain(&self, at: &Spot, wanted: &Wanted, tell: &mut Tell<'_>) -> Result<RetentionReport> {
        let fileset = self.fileset_of(at)?;
        let now = now_ns();
        let grid = wanted.grid.as_deref().map(retain::parse_grid).transpose()?;
        let when_full = match wanted.when_full.as_deref() {
            None => None,
            Some("keep") => Some(WhenFull::Keep),
            Some("collapse-oldest") => Some(WhenFull::CollapseOldest),
            Some(other) => return Err(Failure::new(format!("{other:?} is neither keep nor collapse-oldest"))),
        };
        let changes = grid.is_some() || when_full.is_some();
        let path = at.names();
        let is_root = match path[..] {
            [] => true,
            [_] => fileset != self.root_of(at).fileset,
            _ => false,
        };
        if changes && !is_root {
            return Err(Failure::new(format!(
                "it is a directory of the fileset {:?}, and that has one grid for all that is in it: name its root \
                 (or --nothing-here: no history of this directory alone)",
                self.name_of(fileset)
            )));
        }
        if changes && !wanted.dry_run {
            self.fs.retain(fileset, grid.clone(), when_full, now)?;
            self.fs.sync()?;
            self.store().want_collapse();
        }
        let marked = match wanted.nothing_here {
            Some(nothing) => self.keep_nothing(at, fileset, !nothing, tell)?,
            None => Marked::default(),
        };
        let before = self.fs.retention(fileset)?;
        let shown = before.with_grid(grid.unwrap_or_else(|| before.grid.clone())).advanced(Tid(now));
        let account = self.store().account(now, Some((fileset, &shown)))?;
        let mut report = self.report(fileset, &before, &shown, &account, now);
        report.marked = marked.changed.len() as u64;
        report.left = marked.left.iter().map(|ino| self.fs.path_of(Node::Live(*ino))).collect();
        report.nothing_here = self.fs.keeps_nothing_at(self.root_of(at), &at.names()).unwrap_or(false);
        Ok(report)
    }

    /// Keeps no history of a directory, or (`keep`) some again.
    fn keep_nothing(&self, at: &Spot, fileset: FilesetId, keep: bool, tell: &mut Tell<'_>) -> Result<Marked> {
        if self.store().is_read_only() {
            return Err(Failure::new("the store is open for reading only"));
        }
        let total = self.store().counted(fileset).objects;
        let mut each = |done: u64| tell(done.min(total), total);
        let marked = self.fs.keep_nothing(self.root_of(at), &at.names(), keep, now_ns(), &mut each)?;
        self.fs.sync()?;
        // What was listed around it may go from there when it is removed.
        let around = marked.changed.first().and_then(|top| {
            let parent = self.fs.getattr(Node::Live(*top)).ok()?.parent;
            Some(Inode { object: parent, ..*top })
        });
        self.make_stale(&[marked.changed.as_slice(), around.as_slice()].concat());
        if !keep {
            self.store().want_collapse();
        }
        Ok(marked)
    }

    fn report(
        &self,
        fileset: FilesetId,
        before: &Retention,
        shown: &Retention,
        account: &Account,
        now: u64,
    ) -> RetentionReport {
        let costs = account.by_step.get(&fileset).cloned().unwrap_or_default();
        let cost = |i: usize| costs.get(i).copied().unwrap_or(0);
        let born = self.store().birth().0;
        let step = |(i, s): (usize, &Step)| StepLine {
            step: retain::step_text(s),
            points: points(s, shown, born, now),
            history_bytes: cost(i),
        };
        let (lapsed_versions, lapsed_bytes) = account.lapsed_by_fileset.get(&fileset).copied().unwrap_or_default();
        RetentionReport {
            fileset: self.name_of(fileset),
            grid: retain::grid_text(&shown.grid),
            offered: retain::OFFERED.into(),
            when_full: when_full_name(before.when_full).into(),
            horizon_tid: before.horizon().to_string(),
            horizon: exact_since(before),
            steps: shown.grid.steps.iter().enumerate().map(step).collect(),
            pinned_bytes: cost(shown.grid.steps.len()),
            history_bytes: account.by_fileset.get(&fileset).copied().unwrap_or(0),
            lapsed_versions,
            lapsed_bytes,
            nothing_here: false,
            marked: 0,
            left: Vec::new(),
        }
    }

    /// Collapses and cleans all there is, now.
    pub(crate) fn clean(&self, wait: bool, tell: &mut Tell<'_>) -> Result<Response> {
        if self.store().is_read_only() {
            return Err(Failure::new("the store is open for reading only"));
        }
        if !wait {
            self.store().want_collapse();
            return Ok(Response::Done);
        }
        self.reap_now();
        let done = self.store().clean(now_ns(), &mut |a| progress(tell, a))?;
        Ok(Response::Cleaned { before: done.before, after: done.after, copied: done.copied })
    }

    /// Ends what was removed right before: the kernel tells a little later that nobody has it open.
    fn reap_now(&self) {
        let start = Instant::now();
        loop {
            self.reaper.look_at(self.fs.orphans());
            while self.reaper.finish() && start.elapsed() < MOMENT {}
            if self.fs.orphans().is_empty() || start.elapsed() >= MOMENT {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Destroys every version of what is, or ever was, at a path.
    pub(crate) fn destroy(&self, at: &Spot, tell: &mut Tell<'_>) -> Result<Response> {
        let path = at.names();
        let start = Instant::now();
        let done = loop {
            let outcome = self.fs.destroy(self.root_of(at), &path, now_ns(), &mut |a| progress(tell, a));
            match outcome {
                // The kernel tells a little later that nobody holds what was removed.
                Err(e) if e.errno() == libc::EBUSY && start.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                outcome => break outcome?,
            }
        };
        self.make_stale(&done.objects);
        *self.forget_again.lock() = Some(Instant::now());
        Ok(Response::Forgotten { objects: done.objects.len() as u64, lapsed: done.lapsed, left: done.left })
    }

    /// Makes the kernels drop what they have cached of the past of some objects.
    fn make_stale(&self, objects: &[Inode]) {
        let state = self.state.lock();
        let mounts: Vec<_> = state.mounts.values().map(|m| (m.nodes.clone(), m.invalidator.clone())).collect();
        // The kernel may wait for requests meanwhile.
        drop(state);
        for (nodes, invalidator) in mounts {
            let ids: Vec<u64> = objects.iter().flat_map(|o| nodes.past_ids(*o)).take(STALE_MAX).collect();
            invalidator.inval_inodes(&ids);
        }
    }

    /// What only the past needs. Where it would take long to find out, as it was found last, here or by `status --by-time`, and as much more or
    /// less as is by now in use and held by no file; which is all that is known where it never was. (So too where a part of the index can't be
    /// read: a status tells of that by itself.)
    pub(crate) fn history_bytes(&self, usage: &darner_store::Usage, dead: u64) -> u64 {
        let loose = usage.used.saturating_sub(usage.live + dead);
        let mut known = self.history.lock();
        let is_fresh = known.is_some_and(|k| k.at.elapsed() < REST * k.took);
        if !is_fresh {
            let start = Instant::now();
            if let Ok(Some(bytes)) = self.store().history_bytes(now_ns(), INDEX_MAX) {
                *known = Some(History { bytes, loose, at: Instant::now(), took: start.elapsed() });
            }
        }
        known.map_or(loose, |k| (k.bytes + loose).saturating_sub(k.loose).min(usage.used))
    }

    /// What is needed for what, by age.
    pub(crate) fn usage(&self) -> Result<Usage> {
        let start = Instant::now();
        let a = self.store().account(now_ns(), None)?;
        let (usage, dead) = (self.store().usage()?, self.store().dead_bytes());
        let loose = usage.used.saturating_sub(usage.live + dead);
        *self.history.lock() = Some(History { bytes: a.history, loose, at: Instant::now(), took: start.elapsed() });
        let ages = AGE_NAMES.iter().zip(a.by_age);
        Ok(Usage {
            live_bytes: a.live,
            history_bytes: a.history,
            versions: a.versions,
            lapsed_bytes: a.lapsed,
            lapsed_versions: a.lapsed_versions,
            by_age: ages.map(|(name, bytes)| AgeLine { age: (*name).into(), history_bytes: bytes }).collect(),
        })
    }

    /// What is kept of each fileset's past, in short.
    pub(crate) fn retentions(&self) -> Result<Vec<RetentionLine>> {
        let line = |(fileset, _): &(darner_fs::Fileset, darner_fs::Count)| {
            let r = self.fs.retention(fileset.id)?;
            Ok(RetentionLine {
                fileset: fileset.name.clone(),
                grid: retain::grid_text(&r.grid),
                when_full: when_full_name(r.when_full).into(),
                horizon: exact_since(&r),
                main: fileset.id == MAIN,
            })
        };
        self.fs.filesets().iter().map(line).collect()
    }
}

/// Since when every commit is visible, local time; `None`: since ever.
fn exact_since(r: &Retention) -> Option<String> {
    Some(r.horizon()).filter(|h| *h > Tid::ZERO).map(local)
}

fn when_full_name(w: WhenFull) -> &'static str {
    match w {
        WhenFull::Keep => "keep",
        WhenFull::CollapseOldest => "collapse-oldest",
    }
}

/// How many points of a step there are; `None`: every commit.
fn points(s: &Step, retention: &Retention, born: u64, now: u64) -> Option<u64> {
    let lasts = if s.lasts == FOREVER { u64::MAX } else { s.lasts };
    (s.every != 0).then(|| s.points_kept(retention, Tid(born.max(now.saturating_sub(lasts))), Tid(now)))
}
