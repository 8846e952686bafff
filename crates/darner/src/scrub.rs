//! Scrubbing: at once when somebody asks, and by itself, slowly, every thirty days.

use std::time::{Duration, Instant};

use darner_fs::Fs;
use darner_store::{Damage, Rot, ScrubReport, Tid};
use parking_lot::Mutex;

use crate::control::{DamageLine, Response, ScrubLine, Tell};
use crate::daemon::Daemon;
use crate::error::{Failure, Result};
use crate::frontend::now_ns;
use crate::when::local;

/// A scrub begins so long after the last one, or after the store was made.
const EVERY: Duration = Duration::from_secs(30 * 86_400);
/// Bytes of a step, and of one that somebody waits for.
const STEP: u64 = 8 << 20;
const LONG_STEP: u64 = 256 << 20;
/// Bytes a second, at least, when nobody waits; more where a scrub would not come round in a third of [`EVERY`].
const RATE: u64 = 4 << 20;
/// How far it is, is kept this often.
const KEEP_EVERY: Duration = Duration::from_secs(600);

/// What a daemon knows of scrubbing.
#[derive(Default)]
pub(crate) struct Scrubbing {
    /// Held by whoever does it.
    one: Mutex<()>,
    /// Somebody wants one now, of what is in the bucket, too, or not.
    wanted: Mutex<Option<bool>>,
}

impl Daemon {
    /// Scrubs all there is, what is in the `bucket` too or not; with `wait` false, has it done in the background.
    pub(crate) fn scrub(&self, wait: bool, bucket: bool, tell: &mut Tell<'_>) -> Result<Response> {
        if self.store().is_read_only() {
            return Err(Failure::new("the store is open for reading only"));
        }
        if !wait {
            *self.scrubbing.wanted.lock() = Some(bucket);
            return Ok(Response::Done);
        }
        let _one = self.scrubbing.one.lock();
        let mut report = self.store().begin_scrub(now_ns(), bucket)?;
        let total = self.store().scrub_total(bucket);
        while self.step_scrub(&mut report, LONG_STEP)? {
            tell(report.bytes.min(total), total);
        }
        Ok(Response::Scrub(Box::new(self.scrub_line(&report))))
    }

    /// What the last one found, or has found so far.
    pub(crate) fn scrub_report(&self) -> Result<Response> {
        Ok(Response::Scrub(Box::new(self.scrub_line(&self.store().scrub_report()?))))
    }

    /// Goes on, keeps the report when there is news, and tells the log; says whether there is more.
    fn step_scrub(&self, report: &mut ScrubReport, budget: u64) -> Result<bool> {
        let before = report.damages.len();
        let more = self.store().step_scrub(report, budget)?;
        for d in &report.damages[before..] {
            let line = damage_line(&self.fs, d);
            tracing::error!(
                path = line.path,
                offset = line.offset,
                len = line.len,
                tid = line.tid,
                region = line.region,
                byte = line.region_offset,
                "damaged: {}",
                line.what
            );
        }
        if !more {
            report.ended = now_ns();
        }
        if !more || report.damages.len() > before {
            self.store().keep_scrub_report(report, now_ns())?;
        }
        Ok(more)
    }

    /// Does what is due until the daemon ends.
    pub(crate) fn scrub_by_itself(&self) {
        let mut complained = false;
        while !self.is_closing() {
            self.rest(Duration::from_secs(1));
            let Some(_one) = self.scrubbing.one.try_lock() else { continue };
            if let Err(e) = self.scrub_if_due()
                && !std::mem::replace(&mut complained, true)
            {
                tracing::error!("scrubbing failed: {e}");
            }
        }
    }

    fn scrub_if_due(&self) -> Result<()> {
        let last = self.store().scrub_report()?;
        let asked = self.scrubbing.wanted.lock().take();
        let wanted = asked.is_some();
        let is_under_way = last.begun > 0 && last.ended == 0;
        let due = last.ended.max(self.store().birth().0).saturating_add(EVERY.as_nanos() as u64);
        if !wanted && !is_under_way && now_ns() < due {
            return Ok(());
        }
        let mut report = match is_under_way && !wanted {
            true => last,
            false => self.store().begin_scrub(now_ns(), asked == Some(true))?,
        };
        let rate = RATE.max(self.store().scrub_total(report.bucket) / (EVERY.as_secs() / 3));
        let mut kept = Instant::now();
        let step = if wanted { LONG_STEP } else { STEP.max(rate) };
        while !self.is_closing() && self.step_scrub(&mut report, step)? {
            if kept.elapsed() > KEEP_EVERY {
                kept = Instant::now();
                self.store().keep_scrub_report(&report, now_ns())?;
            }
            // Whoever asked gets it soon.
            if !wanted {
                self.rest(Duration::from_secs(step.div_ceil(rate)));
            }
        }
        match report.ended {
            0 => Ok(self.store().keep_scrub_report(&report, now_ns())?),
            _ => Ok(()),
        }
    }

    fn scrub_line(&self, report: &ScrubReport) -> ScrubLine {
        let time = |ns: u64| (ns > 0).then(|| local(Tid(ns)));
        // (There may be less by now than was read.)
        let total_bytes = self.store().scrub_total(report.bucket).max(report.bytes);
        ScrubLine {
            begun: time(report.begun),
            ended: time(report.ended),
            bytes: report.bytes,
            total_bytes,
            left_to_the_bucket: if report.bucket { 0 } else { self.store().cold_total() },
            damaged: report.damages.len() as u64 + report.more,
            healed: report.healed,
            damages: report.damages.iter().map(|d| damage_line(&self.fs, d)).collect(),
        }
    }
}

/// What a finding means to people.
pub(crate) fn damage_line(fs: &Fs, d: &Damage) -> DamageLine {
    let mut line = DamageLine {
        region: format!("{:x}", d.region),
        region_offset: d.offset,
        region_len: d.len,
        ..DamageLine::default()
    };
    match d.rot {
        Rot::Frame => {
            line.what = "a transaction's heads: what they say is in the index, and lost only with that".into()
        }
        Rot::Table => line.what = "a table of the index: `darner upgrade` or the next mount derives it anew".into(),
        Rot::Data { fileset, object, offset, len, tid } => {
            let (path, live) = fs.damaged(fileset, object, offset, len, tid);
            line.what = if live { "bytes of a file" } else { "bytes of a file's past" }.into();
            (line.path, line.live) = (Some(path), live);
            (line.offset, line.len, line.tid) = (Some(offset), Some(len), Some(tid.to_string()));
        }
    }
    line
}
