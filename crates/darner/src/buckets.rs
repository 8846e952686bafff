//! What the daemon does about a bucket: has what was sealed reach it, lets what is there give way, brings it back. All in a thread of
//! its own, which alone waits for it.

use std::thread;
use std::time::{Duration, Instant};

use darner_store::{BucketState, Progress};

use crate::control::{BucketLine, Response, Tell};
use crate::daemon::Daemon;
use crate::error::{Failure, Result};
use crate::frontend::now_ns;
use crate::s3::{self, Variables};
use crate::when::local;

/// How often a checkpoint is put where something has changed; in seconds, this variable says otherwise.
const EVERY: Duration = Duration::from_secs(300);
const EVERY_VARIABLE: &str = "DARNER_BUCKET_SECONDS";
/// How often to look whether something is due.
const LOOK: Duration = Duration::from_millis(200);
/// The same while there is neither a bucket nor any tier.
const LOOK_FOR_ONE: Duration = Duration::from_secs(1);
/// After a failure.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a command waits for a bucket that can't be reached.
const PATIENCE: Duration = Duration::from_secs(15);

impl Daemon {
    /// Keeps the bucket, until the daemon ends.
    pub(crate) fn keep_bucket(&self) {
        let seconds = std::env::var(EVERY_VARIABLE).ok().and_then(|v| v.parse().ok());
        let every = seconds.map_or(EVERY, Duration::from_secs).as_nanos() as u64;
        self.store().attend_push(true);
        let mut said = String::new();
        while !self.is_closing() {
            let pause = match self.step_bucket(every) {
                Ok(Some(true)) => {
                    said.clear();
                    Duration::ZERO
                }
                Ok(None) => LOOK_FOR_ONE,
                Ok(Some(false)) => LOOK,
                Err(e) => {
                    let e = e.to_string();
                    if e != said && !self.is_closing() {
                        tracing::warn!("the bucket: {e}");
                    }
                    said = e;
                    PAUSE
                }
            };
            self.pause(pause);
        }
        self.store().attend_push(false);
    }

    /// Says whether there was anything to do; `None`: there is neither a bucket nor a tier.
    fn step_bucket(&self, every: u64) -> Result<Option<bool>> {
        let store = self.store();
        if store.bucket().is_none() {
            return store.has_tiers().then(|| Ok(store.step_tier()? == Progress::Worked)).transpose();
        }
        if self.go_on_leaving(true)? {
            return Ok(Some(true));
        }
        // What gives way waits for nothing, and goes first.
        let tier = store.step_tier();
        let pushed = store.step_push(now_ns(), every)?;
        Ok(Some(tier? == Progress::Worked || pushed == Progress::Worked))
    }

    /// Adds one, or reaches the one that there is anew.
    pub(crate) fn add_bucket(&self, name: &str, variables: Variables) -> Result<u16> {
        s3::reach_by(variables);
        s3::keep(&self.keeper)?;
        let store = self.store();
        let found = store.volumes()?.into_iter().find(|v| v.entry.name() == name);
        match found {
            Some(v) => Ok(v.entry.number),
            None => Ok(store.add_bucket(name, &crate::place::options())?),
        }
    }

    /// Returns when all that is there now has reached it.
    pub(crate) fn push(&self, tell: &mut Tell<'_>) -> Result<Response> {
        let store = self.store();
        let wanted = store.tid();
        let mut total = 0;
        let mut troubled: Option<Instant> = None;
        store.want_push();
        while !self.is_closing() {
            let Some(bucket) = store.bucket() else { return Err(Failure::new("the store has no bucket")) };
            if let Some(who) = bucket.fenced {
                return Err(Failure::new(format!(
                    "the store was taken over by {who}: nothing goes to the bucket any more"
                )));
            }
            let mut failed = bucket.failed;
            if bucket.reached.is_some_and(|tid| tid >= wanted) {
                match store.find_gaps() {
                    Ok(found) if found.is_wanting => {}
                    Ok(found) if found.lost.is_empty() => return Ok(Response::Volumes(self.volume_lines()?)),
                    Ok(found) => {
                        return Err(Failure::new(format!(
                            "all else is there, but {} objects of what is in the bucket only are gone, or have become shorter: \
                             darner scrub tells what was in them",
                            found.lost.len()
                        )));
                    }
                    Err(e) => failed = Some(e.to_string()),
                }
            }
            if store.volume(bucket.number)?.is_some_and(|v| v.entry.leaving) {
                return Err(Failure::new("the bucket is leaving the store: nothing more goes there"));
            }
            let why = match (bucket.trouble, failed) {
                (Some(why), _) => Some(format!("the bucket can't be reached, and it goes on when it can be: {why}")),
                (None, why) => why.map(|why| format!("not all has reached the bucket: {why}")),
            };
            match why {
                Some(why) if troubled.get_or_insert_with(Instant::now).elapsed() > PATIENCE => {
                    return Err(Failure::new(why));
                }
                Some(_) => {}
                None => troubled = None,
            }
            total = total.max(bucket.left);
            tell(total - bucket.left, total);
            thread::sleep(LOOK / 4);
        }
        Err(Failure::new("the filesystem was unmounted meanwhile"))
    }

    /// What somebody should know of it.
    pub(crate) fn bucket_warnings(&self) -> Option<String> {
        let bucket = self.store().bucket()?;
        let only = bucket.cold >> 20;
        match (bucket.fenced, bucket.trouble) {
            (Some(who), _) => Some(format!(
                "the store was taken over by {who}: nothing that is written here goes to the bucket any more; {only} MiB are there only"
            )),
            (None, Some(why)) => Some(format!(
                "the bucket can't be reached: {why}; reading the {only} MiB that are there only fails meanwhile"
            )),
            (None, None) => match (bucket.failed, bucket.known && bucket.reached.is_none()) {
                (Some(why), _) => Some(format!("nothing more reaches the bucket: {why}")),
                (None, true) => Some("nothing that is in the bucket could be opened elsewhere yet".into()),
                (None, false) => None,
            },
        }
    }
}

/// How a bucket is, for people.
pub(crate) fn line(b: &BucketState) -> BucketLine {
    BucketLine {
        reached: b.reached.map(|tid| tid.to_string()),
        reached_when: b.reached.map(local),
        known: b.known,
        left_bytes: b.left,
        only_there_bytes: b.cold,
        fetched_bytes: b.fetched,
        trouble: match &b.fenced {
            Some(who) => Some(format!("taken over by {who}")),
            None => b.trouble.clone().or_else(|| b.failed.clone()),
        },
    }
}

/// What others are told of this machine.
pub fn who() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{} (process {})", host.trim(), std::process::id())
}
