//! What the daemon does so that a mirror is one: compares it with its source, on request and slowly by itself, and fetches from the other side what a scrub
//! finds damaged here.

use std::collections::HashMap;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use darner_fs::{Compared, FilesetId, MAIN, Tid};
use darner_mirror::{Failure as Cut, Puller, Verified, Walk, ask_for_bytes};
use darner_store::{Elsewhere, Lost};
use darner_syslink::{Caller, Link};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::control::{ComparedLine, Request, Response, Tell};
use crate::daemon::Daemon;
use crate::error::{Failure, Result};
use crate::frontend::now_ns;
use crate::mirroring::why;
use crate::when::local;
use crate::whereabouts;

/// How long to wait for the source to be there.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often to tell who waits that it goes on.
const TELL_EVERY: Duration = Duration::from_millis(500);
/// Pulls that a comparison begins anew after, because the source gave up the moment.
const ATTEMPTS: usize = 5;
/// Answers that are tried for one damaged place.
const ANSWERS: u64 = 32;
/// Digests of a step of comparing by itself.
const STEP: u64 = 4;
/// After a step the comparison rests for so many times as long as that took, and at least for so long.
const SHARE: u32 = 20;
const PAUSE: Duration = Duration::from_millis(200);
/// Differences that are kept by name.
const NAMED: usize = 20;
/// How long all that are asked for one damaged place have.
const ANSWER: Duration = Duration::from_secs(10);
/// After a side could not be reached, it is not tried again for so long.
const AWAY: Duration = Duration::from_secs(10);

/// What comparing a mirror with its source found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VerifyReport {
    /// The source's moment, `0x…`.
    pub at_tid: String,
    /// The same, RFC 3339, local.
    pub at: String,
    /// Keys that were compared.
    pub keys: u64,
    /// Places that differed.
    pub differing: u64,
    /// How many of them are the same now.
    pub mended: u64,
    /// What differed, by path; a thousand at most.
    pub differences: Vec<String>,
    /// Places that were damaged at the source.
    #[serde(default)]
    pub source_damaged: u64,
    /// How many of them are healed.
    #[serde(default)]
    pub source_healed: u64,
    /// Which, by path; a thousand at most.
    #[serde(default)]
    pub healed: Vec<String>,
    /// What could not be compared or mended, and what is wrong with an index.
    pub failed: Vec<String>,
    /// Versions in both indexes that were proven to be found by who asks what changed.
    pub proven_versions: u64,
}

/// A comparison that somebody waits for.
pub(crate) struct Asked {
    data: bool,
    mend: bool,
    answer: Sender<std::result::Result<VerifyReport, String>>,
}

impl Daemon {
    /// Has the one who follows compare, and waits for that.
    pub(crate) fn verify_mirror(&self, request: &Request, tell: &mut Tell<'_>) -> Result<Response> {
        let Request::VerifyMirror { data, mend } = *request else {
            return Err(Failure::new("this daemon does not know the request: it is of another version"));
        };
        let (answer, answered) = channel();
        self.follow_line()?;
        *self.follows.verify.lock() = Some(Asked { data, mend, answer });
        self.follows.wake(false);
        let start = Instant::now();
        loop {
            match answered.recv_timeout(TELL_EVERY) {
                Ok(found) => return Ok(Response::Verified(Box::new(found.map_err(Failure::new)?))),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Failure::new("it was not compared: another comparison was asked for, or it ends"));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            tell(0, 0);
            let line = self.follow_line()?;
            let waits = self.follows.verify.lock().is_some();
            let in_vain = line.state == "paused" || self.follows.is_in_vain(start) || start.elapsed() > PATIENCE;
            if waits && in_vain {
                *self.follows.verify.lock() = None;
                return Err(Failure::new(format!("it was not compared: {}", why(&line))));
            }
        }
    }

    /// Compares, if somebody waits for that.
    pub(crate) fn verify_if_asked(&self, link: &Arc<Link>, session: u64) {
        let Some(asked) = self.follows.verify.lock().take() else { return };
        let found = self.compare(link, session, &asked);
        if let Ok(found) = &found {
            self.tell_kernels_of(&found.changed);
            if let Err(e) = self.keep_compared(found) {
                tracing::warn!("what comparing found is not kept: {e}");
            }
        }
        let report = found.map(|v| VerifyReport {
            at_tid: format!("{:#x}", v.at.0),
            at: local(v.at),
            keys: v.keys,
            differing: v.differing,
            mended: v.mended,
            differences: v.differences,
            source_damaged: v.source_damaged,
            source_healed: v.source_healed,
            healed: v.healed,
            failed: v.failed,
            proven_versions: v.proven,
        });
        // (Who asked may be gone.)
        let _ = asked.answer.send(report.map_err(|e| e.to_string()));
    }

    fn compare(&self, link: &Arc<Link>, session: u64, asked: &Asked) -> std::result::Result<Verified, Cut> {
        let follows = self.follows.clone();
        let puller = Puller::new(self.fs.clone(), link.clone(), session)
            .with_pause(Box::new(move |_| !follows.ends.load(std::sync::atomic::Ordering::Relaxed)));
        for _ in 1..ATTEMPTS {
            match puller.verify(asked.data, asked.mend) {
                Err(e) if e.is_not_kept() => drop(puller.pull()?),
                done => return done,
            }
        }
        puller.verify(asked.data, asked.mend)
    }
}

/// A comparison by itself, and when it goes on.
#[derive(Default)]
pub(crate) struct Comparing {
    walk: Option<Walk>,
    not_before: Option<Instant>,
}

impl Daemon {
    /// Goes on comparing, if it is time; says after what time there is more of that to do.
    pub(crate) fn verify_by_itself(&self, link: &Arc<Link>, session: u64, comparing: &mut Comparing) -> Duration {
        if let Some(rest) = comparing.not_before.and_then(|at| at.checked_duration_since(Instant::now())) {
            return rest;
        }
        let begun = Instant::now();
        let due = self.compare_some(link, session, comparing).unwrap_or_else(|e| {
            // The moment may be given up by now: the next pull leads to another one.
            tracing::info!("comparing with the source goes on later: {e}");
            Duration::ZERO
        });
        let pause = (SHARE * begun.elapsed()).max(PAUSE);
        comparing.not_before = Some(Instant::now() + pause);
        due.max(pause)
    }

    fn compare_some(&self, link: &Arc<Link>, session: u64, comparing: &mut Comparing) -> Result<Duration> {
        if comparing.walk.is_none() {
            let due = self.comparing_due_in()?;
            if !due.is_zero() {
                return Ok(due);
            }
        }
        let walk = comparing.walk.get_or_insert_default();
        let puller = Puller::new(self.fs.clone(), link.clone(), session);
        let more = puller.verify_some(walk, STEP).map_err(Failure::new)?;
        self.tell_kernels_of(&std::mem::take(&mut walk.found.changed));
        if !more && let Some(walk) = comparing.walk.take() {
            self.keep_compared(&walk.found)?;
        }
        Ok(Duration::ZERO)
    }

    fn comparing_due_in(&self) -> Result<Duration> {
        let every = self.fs.compares_every()?.saturating_mul(1_000_000_000);
        let last = self.fs.compared()?.ended.max(self.store().birth().0);
        // (A clock that was set back must not put it off for long.)
        let left = every.saturating_sub(now_ns().abs_diff(last));
        Ok(if every == 0 { Duration::MAX } else { Duration::from_nanos(left) })
    }

    /// Keeps what comparing found, for those who ask how the mirror is.
    fn keep_compared(&self, v: &Verified) -> Result<()> {
        let named = v.differences.iter().chain(&v.failed).take(NAMED).cloned().collect();
        if v.differing > 0 || !v.failed.is_empty() {
            tracing::warn!(differing = v.differing, mended = v.mended, ?named, "the mirror differed from its source");
        }
        let found =
            Compared { ended: now_ns(), at: v.at, keys: v.keys, differing: v.differing, mended: v.mended, named };
        Ok(self.fs.set_compared(&found, now_ns())?)
    }

    /// What comparing found last; `None`: it was never compared.
    pub(crate) fn compared_line(&self) -> Result<Option<ComparedLine>> {
        let c = self.fs.compared()?;
        Ok((c.ended != 0).then(|| ComparedLine {
            ended: local(Tid(c.ended)),
            at_tid: format!("{:#x}", c.at.0),
            at: local(c.at),
            keys: c.keys,
            differing: c.differing,
            mended: c.mended,
            named: c.named,
        }))
    }
}

/// A link, if there was one, and since when that is known.
type Way = (Option<Arc<Link>>, Instant);

/// Those who may have what is damaged here: the source of a mirror, and mirrors that have names here.
pub(crate) struct Others {
    daemon: Weak<Daemon>,
    /// Ways to them, by where they are; `None`: there was none then.
    links: Mutex<HashMap<String, Way>>,
}

impl Others {
    pub fn new(daemon: &Arc<Daemon>) -> Others {
        Others { daemon: Arc::downgrade(daemon), links: Mutex::default() }
    }

    fn link(&self, at: &str, connect: impl FnOnce() -> Result<Link>) -> Option<Arc<Link>> {
        let mut links = self.links.lock();
        if let Some((link, since)) = links.get(at) {
            match link {
                Some(link) if link.closed().is_none() => return Some(link.clone()),
                None if since.elapsed() < AWAY => return None,
                _ => {}
            }
        }
        let link = connect().inspect_err(|e| tracing::info!("{at} is not asked for what is damaged: {e}")).ok();
        let link = link.map(Arc::new);
        links.insert(at.into(), (link.clone(), Instant::now()));
        link
    }

    /// Everybody who may know, with the fileset and the moment to ask for; who is not asked is not connected to.
    fn all<'a>(
        &'a self,
        daemon: &'a Daemon,
        lost: &Lost,
    ) -> impl Iterator<Item = (Arc<dyn Caller>, FilesetId, Tid)> + 'a {
        let tid = lost.tid;
        // Those who follow are there already, wherever they are.
        let followers = daemon.source.followers(lost.fileset).into_iter().map(move |follower| (follower, MAIN, tid));
        let mirrors = daemon.fs.mirrors().unwrap_or_default().into_iter().filter_map(move |mirror| {
            let find = || whereabouts::find(&mirror.places(), mirror.store().as_ref());
            let link = self.link(&mirror.name, || whereabouts::connect(&find()?))?;
            Some((link as Arc<dyn Caller>, MAIN, tid))
        });
        let source = daemon.fs.following().filter(|_| lost.fileset == MAIN).into_iter().filter_map(move |f| {
            let then = daemon.fs.pulled_from(tid).unwrap_or(tid);
            let link = self.link(&f.origin, || Ok(daemon.connect_to(&f)?))?;
            Some((link as Arc<dyn Caller>, f.fileset, then))
        });
        followers.chain(source).chain(mirrors)
    }
}

impl Elsewhere for Others {
    fn bytes(&self, lost: &Lost, is_it: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        let Some(daemon) = self.daemon.upgrade() else { return false };
        let place = (lost.object.0, lost.offset, lost.len as u64);
        let until = Instant::now() + ANSWER;
        self.all(&daemon, lost).any(|(caller, fileset, then)| {
            let answer = |n| {
                let left = until.saturating_duration_since(Instant::now());
                ask_for_bytes(&*caller, fileset, place, then, n, left).ok().flatten()
            };
            (0..ANSWERS).map_while(answer).any(|bytes| is_it(&bytes))
        })
    }
}
