//! What the daemon does about mirrors: lets others follow its store, and follows another one if its own is a mirror.
//!
//! A mirror's daemon pulls as soon as its source has something new, and after whatever went wrong tries again; nothing of that is kept but
//! in the mirror's own records. How the two find each other: `whereabouts.rs`.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use darner_fs::{Changed, Following, Fs, Tid, Was, Whereabouts};
use darner_mirror::{Failure as Cut, Memory, Pulled, Puller, ROOM_WANTED, Source, Which};
use darner_store::OpenOptions;
use darner_syslink::{CallError, Link, Pool, Service, now_ns as clock};
use parking_lot::{Condvar, Mutex};

use crate::control::{self, FollowLine, MirrorLine, Request, Response};
use crate::daemon::Daemon;
use crate::errand::{Invalidator, Underway};
use crate::error::{Failure, Result};
use crate::far::{self, Far, Hitch, Unreached};
use crate::frontend::now_ns;
use crate::making::{self, Make};
use crate::nodes::Nodes;
use crate::place::{self, Place};
use crate::serving::{self, Followed};
use crate::verifying::{Asked, Comparing};
use crate::when::local;
use crate::whereabouts::{self, connect_to, has_origin};

/// What a mirror without a way to its source waits for.
pub(crate) const NEXT_STREAM: &str =
    "the next stream: `darner mirror export MNT --since TID` there, `darner mirror import` here";
/// And one that has no daemon.
const RESUME: &str = "`darner mirror resume`: it is paused, or was ended";
/// How long somebody may have a mirror open that has no daemon.
const WHILE_LOOKED_AT: Duration = Duration::from_secs(1);
/// The state of a mirror that was promoted, and goes its own way.
pub(crate) const PROMOTED: &str = "promoted";
/// And of one that this store followed after that, until it was promoted itself.
pub(crate) const LEFT: &str = "left behind";
/// How often a mirror looks for something new, at most.
const EVERY: Duration = Duration::from_millis(200);
/// And at least, while its source is to tell when there is something.
const UNTOLD: Duration = Duration::from_secs(60);
/// And after something went wrong.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// And of a source that is far away, at most, after it went wrong again and again.
const AFTER_FAILURES: Duration = Duration::from_secs(60);
/// And of room in its own store, at most.
const FOR_ROOM: Duration = Duration::from_secs(8);
/// Bytes that are asked for at a time at least.
const ROOM_MIN: u64 = 32 << 10;
/// Threads that answer those who follow.
const THREADS: usize = 2;
/// How long a command waits for a pull.
const PATIENCE: Duration = Duration::from_secs(110);
/// And for a source that can't be reached: a daemon that was killed is back within this,
const UNTIL_BACK: Duration = Duration::from_secs(3);
/// and a link over which one of many attempts comes through. (Whoever answers nothing has had ten seconds for that.)
const WHILE_CUT: Duration = Duration::from_secs(20);
/// Of how many objects and names that a pull changed the kernel is told at most; of others it learns a second later.
const TOLD_MAX: usize = 10_000;

/// What the daemon of a mirror knows of that.
pub(crate) struct Follows {
    line: Mutex<FollowLine>,
    changed: Condvar,
    /// Bytes that are asked for at a time.
    room: AtomicU64,
    /// How many pulls have begun, and which of them was the last to come to its end.
    pulls: Mutex<(u64, u64)>,
    /// Up to this one, pulls were asked for: they are made though the mirror is paused.
    asked: AtomicU64,
    woken: Mutex<Woken>,
    wake: Condvar,
    /// The link over which the source is to tell when there is something new.
    told_over: Mutex<Weak<Link>>,
    /// The source can't tell.
    is_untold: AtomicBool,
    /// A comparison that somebody waits for.
    pub(crate) verify: Mutex<Option<Asked>>,
    /// The daemon is about to end: a pull is cut where it is.
    pub(crate) ends: AtomicBool,
    /// Answers what sources ask.
    memory: Mutex<Option<Arc<dyn Service>>>,
    /// Why nothing comes of following, since when, and when that was last tried.
    unreached: Mutex<Option<(Hitch, Instant, Instant)>>,
    /// Commands that wait for a pull.
    waiting: AtomicU64,
    /// Where the source is, as somebody else says.
    pub(crate) hint: Mutex<Option<PathBuf>>,
}

/// Why to look.
#[derive(Default)]
struct Woken {
    /// Somebody here wants that, at once.
    now: bool,
    /// There may be something new.
    news: bool,
}

impl Default for Follows {
    fn default() -> Follows {
        Follows {
            line: Mutex::default(),
            changed: Condvar::new(),
            room: AtomicU64::new(ROOM_WANTED),
            pulls: Mutex::default(),
            asked: AtomicU64::new(0),
            woken: Mutex::default(),
            wake: Condvar::new(),
            told_over: Mutex::default(),
            is_untold: AtomicBool::new(false),
            verify: Mutex::default(),
            ends: AtomicBool::new(false),
            memory: Mutex::default(),
            unreached: Mutex::default(),
            waiting: AtomicU64::new(0),
            hint: Mutex::default(),
        }
    }
}

impl Follows {
    /// Whether a pull was asked for that has not begun.
    fn is_asked(&self) -> bool {
        self.pulls.lock().0 < self.asked.load(Ordering::Relaxed)
    }

    /// An attempt failed that began then.
    fn failed(&self, hitch: Hitch, began: Instant) {
        let mut unreached = self.unreached.lock();
        let since = unreached.map_or(began, |(_, since, _)| since);
        *unreached = Some((hitch, since, Instant::now()));
    }

    /// Whether to wait for the source, as somebody does since `then`, is in vain.
    pub(crate) fn is_in_vain(&self, then: Instant) -> bool {
        let tried = *self.unreached.lock();
        tried.is_some_and(|(hitch, since, last)| match hitch {
            _ if last < then => false,
            Hitch::Silent => true,
            Hitch::Nobody | Hitch::Refused => last - since >= UNTIL_BACK,
            Hitch::Dropped | Hitch::Cut => last - since.max(then) >= WHILE_CUT,
        })
    }

    /// Has the one who follows look, or see that it is over.
    pub(crate) fn wake(&self, ends: bool) {
        self.ends.fetch_or(ends, Ordering::Relaxed);
        self.woken.lock().now = true;
        self.wake.notify_all();
    }

    /// What the source says when it is asked to tell of something new.
    fn told(&self, answer: &std::result::Result<darner_syslink::Message, CallError>) {
        *self.told_over.lock() = Weak::new();
        // (What it refuses otherwise, it tells whoever looks.)
        self.is_untold.fetch_or(matches!(answer, Err(CallError::Refused(_))), Ordering::Relaxed);
        self.woken.lock().news = true;
        self.wake.notify_all();
    }

    /// Waits for a reason to look. What is new waits for a while, too: more may follow.
    fn rest(&self, pause: Duration) {
        let begun = Instant::now();
        let mut woken = self.woken.lock();
        loop {
            let whole = if woken.news { pause.min(EVERY) } else { pause };
            let left = whole.saturating_sub(begun.elapsed());
            if woken.now || left.is_zero() {
                break;
            }
            self.wake.wait_for(&mut woken, left);
        }
        *woken = Woken::default();
    }

    /// When (ns since 1970) the source was there last and had nothing new, as far as it tells.
    fn nothing_new_at(&self) -> Option<u64> {
        let link = self.told_over.lock().clone().upgrade().filter(|link| link.closed().is_none())?;
        Some(now_ns().saturating_sub(clock().saturating_sub(link.was_there())))
    }
}

fn no_mirror() -> Failure {
    Failure::new("this store is no mirror")
}

/// A number that no other mirror of a source draws.
pub(crate) fn session() -> u64 {
    u64::from(std::process::id()) << 32 ^ now_ns()
}

/// Answers those who follow.
pub(crate) fn answering(source: Arc<Source>) -> Result<Followed> {
    Ok(Arc::new(Pool::new(THREADS, "mirrors", source)?))
}

/// Answers what a source asks those who follow it.
fn remembering(fs: &Arc<Fs>) -> Result<Arc<dyn Service>> {
    Ok(Arc::new(Pool::new(1, "memory", Memory::new(fs.clone()))?))
}

impl Daemon {
    /// Follows as long as the store is a mirror.
    pub(crate) fn follow(&self) {
        let mut link: Option<Arc<Link>> = None;
        let session = session();
        let mut after_failure = AFTER_FAILURE;
        let mut comparing = Comparing::default();
        let mut for_room = AFTER_FAILURE;
        let mut met_as = Vec::new();
        while !self.is_closing() {
            let Some(f) = self.fs.following() else { break };
            let mut pause = EVERY;
            if f.origin.is_empty() {
                self.tell(|line| (line.state, line.waits_for) = ("waits".into(), Some(NEXT_STREAM.into())));
                pause = AFTER_FAILURES;
            } else if f.paused && !self.follows.is_asked() {
                self.tell(|line| (line.state, line.waits_for) = ("paused".into(), None));
                if let Err(e) = self.meet_source(&f, &mut met_as) {
                    tracing::debug!("the source does not know where this is: {}", e.failure);
                    pause = after_failure;
                    after_failure = (2 * after_failure).min(AFTER_FAILURES);
                }
            } else {
                if f.paused {
                    self.tell(|line| line.state = "pulls".into());
                }
                let began = Instant::now();
                let outcome = match link.clone().filter(|link| link.closed().is_none()) {
                    Some(link) => Ok(link),
                    None => {
                        self.follows.is_untold.store(false, Ordering::Relaxed);
                        self.connect_to(&f).map(Arc::new)
                    }
                };
                match outcome {
                    Ok(connected) => {
                        link = Some(connected.clone());
                        let pulled = self.pull(connected.clone(), session);
                        if pulled.is_none() {
                            // Whether whoever is there still lets us in, and why not, a new one tells.
                            link = None;
                        }
                        pause = match &pulled {
                            Some(_) if f.paused => EVERY,
                            Some(done) => {
                                self.verify_if_asked(&connected, session);
                                let due = self.verify_by_itself(&connected, session, &mut comparing);
                                if done.moments == 0 { due.clamp(EVERY, self.have_it_tell(&connected)) } else { EVERY }
                            }
                            // (What is asked for in vain is not asked for all the time.)
                            None if self.follows.line.lock().is_full => {
                                for_room = (2 * for_room).min(FOR_ROOM);
                                for_room
                            }
                            None => AFTER_FAILURE,
                        };
                        if pulled.is_some() {
                            for_room = AFTER_FAILURE;
                        }
                        after_failure = AFTER_FAILURE;
                    }
                    Err(e) => {
                        // (Of a mirror that is paused, it was tried.)
                        self.follows.asked.store(0, Ordering::Relaxed);
                        self.follows.failed(e.hitch, began);
                        pause = after_failure;
                        if self.follows.waiting.load(Ordering::Relaxed) > 0 {
                            pause = EVERY;
                        } else if Far::is_meant(&f.origin) {
                            after_failure = (2 * after_failure).min(AFTER_FAILURES);
                        }
                        self.tell(|line| {
                            (line.state, line.waits_for) = ("waits".into(), Some("its source".into()));
                            line.last_error = Some(e.failure.to_string());
                        });
                    }
                }
            }
            self.follows.rest(pause);
        }
    }

    /// Has the source tell when there is something new; says after what time to look unless it does.
    fn have_it_tell(&self, link: &Arc<Link>) -> Duration {
        let (follows, Some(f)) = (self.follows.clone(), self.fs.following()) else { return EVERY };
        if follows.is_untold.load(Ordering::Relaxed) {
            return EVERY;
        }
        let over = Arc::downgrade(link);
        let before = std::mem::replace(&mut *follows.told_over.lock(), over.clone());
        if !before.ptr_eq(&over) {
            let told = move |answer| follows.told(&answer);
            // (If it can't be asked, the link is over: the next look tells.)
            if link.call_then(Puller::wait(f.fileset, f.at), Some(UNTOLD), told).is_err() {
                return EVERY;
            }
        }
        UNTOLD
    }

    /// Connects to a source, which may ask for what it lost.
    pub(crate) fn connect_to(&self, f: &Following) -> std::result::Result<Link, Unreached> {
        let own = {
            let mut memory = self.follows.memory.lock();
            match &*memory {
                Some(memory) => memory.clone(),
                None => memory.insert(remembering(&self.fs)?).clone(),
            }
        };
        let hint = self.follows.hint.lock().clone();
        connect_to(&self.fs, f, hint.as_deref(), own)
    }

    /// Tells the source of a mirror that does not pull where that is, if that is new. `met_as`: where this was when the source was told last.
    fn meet_source(&self, f: &Following, met_as: &mut Vec<PathBuf>) -> std::result::Result<(), Unreached> {
        let own = self.store().homes_at();
        let is_known = *met_as == own || self.fs.source_at().is_ok_and(|known| known.is_some_and(|k| k.knows == own));
        if is_known || Far::is_meant(&f.origin) {
            return Ok(());
        }
        let link = Arc::new(self.connect_to(f)?);
        let puller = whereabouts::telling(Puller::new(self.fs.clone(), link, session()), &self.fs, f);
        puller.meet().map_err(Failure::new)?;
        *met_as = own;
        Ok(())
    }

    /// Pulls; `None`: that did not go well.
    fn pull(&self, link: Arc<Link>, session: u64) -> Option<Pulled> {
        let f = self.fs.following()?;
        let at = f.at;
        let (begun, started) = (now_ns(), Instant::now());
        let number = {
            let mut pulls = self.follows.pulls.lock();
            pulls.0 += 1;
            pulls.0
        };
        let (fs, follows) = (self.fs.clone(), self.follows.clone());
        let limit = fs.pull_limit().unwrap_or_else(|e| {
            tracing::warn!("{e}");
            0
        });
        let go_on = move |bytes: u64| {
            *follows.unreached.lock() = None;
            {
                let mut line = follows.line.lock();
                line.received_bytes += bytes;
                (line.state, line.waits_for) = ("pulls".into(), None);
            }
            let until = Instant::now() + Duration::from_secs_f64(bytes as f64 / limit.max(1) as f64);
            while limit > 0 && Instant::now() < until && !follows.ends.load(Ordering::Relaxed) {
                thread::sleep(EVERY.min(until - Instant::now()));
            }
            let goes_on = |f: Following| !f.paused || number <= follows.asked.load(Ordering::Relaxed);
            fs.following().is_some_and(goes_on) && !follows.ends.load(Ordering::Relaxed)
        };
        let room = self.follows.room.load(Ordering::Relaxed);
        let puller = Puller::new(self.fs.clone(), link, session).with_room(room).with_pause(Box::new(go_on));
        let puller = whereabouts::telling(puller, &self.fs, &f);
        // (What was asked for ahead is under way, limit or not.)
        let puller = if limit > 0 { puller.with_ahead(0) } else { puller };
        let mut told = Vec::new();
        // The kernel learns meanwhile what changed.
        let mut tell = |done: &Pulled| {
            if done.at != at {
                told = self.start_telling_kernels_of(&done.changed);
            }
        };
        let outcome = match number <= self.follows.asked.load(Ordering::Relaxed) {
            true => puller.pull_durably(&mut tell),
            // (Of what nobody waits for, the log's writer sees to it soon.)
            false => puller.pull().inspect(tell),
        };
        told.into_iter().for_each(Underway::wait);
        // What does not arrive whole is asked for again: on a link that breaks often, less at a time gets further.
        let room = if outcome.is_ok() { (2 * room).min(ROOM_WANTED) } else { (room / 2).max(ROOM_MIN) };
        self.follows.room.store(room, Ordering::Relaxed);
        match outcome {
            Ok(done) => {
                *self.follows.unreached.lock() = None;
                if done.complete {
                    self.follows.pulls.lock().1 = number;
                }
                self.tell(|line| {
                    if done.complete {
                        line.up_to_date = begun;
                    }
                    if done.moments > 0 {
                        line.pull_seconds = Some(started.elapsed().as_secs_f64());
                    }
                    line.at = done.at.0;
                    (line.state, line.waits_for, line.last_error) = ("follows".into(), None, None);
                    line.is_full = false;
                    if let Some((theirs, then)) = done.clock {
                        let ahead = theirs.saturating_add(then.elapsed().as_nanos() as u64) as f64 - now_ns() as f64;
                        line.clock_ahead_seconds = Some(ahead / 1e9);
                    }
                });
                Some(done)
            }
            Err(e) => {
                tracing::warn!("the pull was cut: {e}");
                // (A moment that is not kept is followed by another one.)
                let may_pass = e.is_passing() || e.is_not_kept();
                let hitch = match &e {
                    Cut::Source(e) if may_pass => Hitch::of_call(e),
                    _ if may_pass => Hitch::Cut,
                    _ => Hitch::Refused,
                };
                self.follows.failed(hitch, Instant::now());
                self.tell(|line| {
                    line.is_full = e.is_full();
                    let waits = match &e {
                        _ if line.is_full => {
                            "room: its own store is full (darner volume add or resize, darner retain), and it goes on when there is some"
                        }
                        Cut::Source(_) if e.is_passing() => "its source",
                        Cut::Here(_) => "its own store",
                        _ => "somebody who sees to it",
                    };
                    (line.state, line.waits_for) = ("waits".into(), Some(waits.into()));
                    line.last_error = Some(e.to_string());
                });
                None
            }
        }
    }

    fn tell(&self, change: impl FnOnce(&mut FollowLine)) {
        change(&mut self.follows.line.lock());
        self.follows.changed.notify_all();
    }

    /// What a pull changed, the kernel is to ask for anew.
    pub(crate) fn tell_kernels_of(&self, changed: &Changed) {
        self.start_telling_kernels_of(changed).into_iter().for_each(Underway::wait);
    }

    fn start_telling_kernels_of(&self, changed: &Changed) -> Vec<Underway> {
        let mounts: Vec<_> = {
            let state = self.state.lock();
            let following = state.mounts.values().filter(|m| m.nodes.is_following());
            following.map(|m| (m.invalidator.clone(), m.nodes.clone())).collect()
        };
        let tell = |(invalidator, nodes): (Invalidator, Arc<Nodes>)| {
            // (It knows few of them, and does not find the others.)
            let known = |ino| Some(nodes.id(ino)).filter(|id| nodes.may_be_known(*id));
            let ids: Vec<u64> = changed.objects.iter().filter_map(|ino| known(*ino)).take(TOLD_MAX).collect();
            let names = changed.names.iter().filter_map(|(dir, name)| Some((known(*dir)?, name.clone())));
            let mut underway = invalidator.start_inval_inodes(&ids);
            underway.extend(invalidator.start_expiring_entries(&names.take(TOLD_MAX).collect::<Vec<_>>()));
            underway
        };
        mounts.into_iter().flat_map(tell).collect()
    }

    pub(crate) fn follow_line(&self) -> Result<FollowLine> {
        let f = self.fs.following().ok_or_else(no_mirror)?;
        let line = self.follows.line.lock().clone();
        let up_to_date = self.follows.nothing_new_at().map_or(line.up_to_date, |at| at.max(line.up_to_date));
        Ok(FollowLine {
            up_to_date,
            origin: whereabouts::origin(&self.fs, &f),
            at: f.at.0,
            compared: self.compared_line()?,
            ..line
        })
    }

    /// Serves the requests about mirrors.
    pub(crate) fn serve_mirrors(self: &Arc<Daemon>, request: Request) -> Result<Response> {
        match request {
            Request::AddMirror { at, name, target } => {
                let fileset = self.fileset_of(&at)?;
                let found = self.fs.filesets().into_iter().find(|(f, _)| f.id == fileset).map(|(f, _)| f);
                let found = found.ok_or_else(|| Failure::new("the fileset has been removed"))?;
                if found.base.is_some() {
                    return Err(Failure::new("a clone can't be mirrored: it shows what another fileset has"));
                }
                self.fs.name_mirror(&name, Some(&target), now_ns())?;
                let made = self.make_mirror(&target, &found);
                if let Err(e) = made.and_then(|made| Ok(self.fs.place_mirror(&name, &made, now_ns())?)) {
                    self.fs.name_mirror(&name, None, now_ns())?;
                    return Err(e);
                }
                self.fs.sync()?;
                Ok(Response::Done)
            }
            Request::RemoveMirror { name } => {
                self.fs.name_mirror(&name, None, now_ns())?;
                self.fs.sync()?;
                Ok(Response::Done)
            }
            Request::FollowAt { address, ticket } => {
                follow_at(&self.fs, &address, ticket.as_deref())?;
                self.follows.wake(false);
                Ok(Response::Done)
            }
            Request::SourceIsAt { path } => {
                *self.follows.hint.lock() = Some(path);
                Ok(Response::Done)
            }
            Request::Following => Ok(Response::Following(self.follow_line()?)),
            Request::Follow { wait, source } => {
                if source.is_some() {
                    *self.follows.hint.lock() = source;
                }
                has_origin(&self.fs.following().ok_or_else(no_mirror)?.origin)?;
                // One that is under way does not know what is there now.
                let wanted = self.follows.pulls.lock().0 + 1;
                self.follows.asked.fetch_max(wanted, Ordering::Relaxed);
                self.follows.wake(false);
                let start = Instant::now();
                self.follows.waiting.fetch_add(1, Ordering::Relaxed);
                let mut line = self.follows.line.lock();
                let mut outcome = Ok(());
                while outcome.is_ok() && wait && self.follows.pulls.lock().1 < wanted {
                    let over = line.state == "paused" && !self.follows.is_asked() || start.elapsed() > PATIENCE;
                    if self.fs.following().is_none() {
                        outcome = Err(no_mirror());
                    } else if over || self.follows.is_in_vain(start) {
                        outcome = Err(Failure::new(format!("it has not come so far: {}", why(&line))));
                    } else {
                        self.follows.changed.wait_for(&mut line, EVERY);
                    }
                }
                drop(line);
                self.follows.waiting.fetch_sub(1, Ordering::Relaxed);
                outcome?;
                Ok(Response::Following(self.follow_line()?))
            }
            Request::PauseMirror { paused, limit } => {
                if let Some(limit) = limit {
                    self.fs.limit_pulls(limit, now_ns())?;
                }
                self.fs.pause(paused, now_ns())?;
                self.fs.sync()?;
                self.follows.wake(false);
                let line = self.follow_line()?;
                self.end_if_over();
                Ok(Response::Following(line))
            }
            Request::Promote => {
                let line = self.follow_line()?;
                let f = self.fs.promote(now_ns())?;
                self.follows.wake(false);
                self.end_if_over();
                Ok(Response::Following(FollowLine { at: f.at.0, state: PROMOTED.into(), ..line }))
            }
            Request::MirrorAt { name } => {
                let mirror = self.fs.mirrors()?.into_iter().find(|mirror| mirror.name == name);
                let mirror = mirror.ok_or_else(|| Failure::new(format!("there is no mirror {name:?} here")))?;
                let place = whereabouts::find(&mirror.places(), mirror.store().as_ref());
                let place = place.map_err(|e| Failure::new(format!("mirror {name:?}: {e}")))?;
                Ok(Response::MirrorAt { target: place.path, source: self.path() })
            }
            _ => Ok(Response::Mirrors(self.mirror_lines()?)),
        }
    }

    fn make_mirror(&self, target: &Path, of: &darner_fs::Fileset) -> Result<Whereabouts> {
        let origin = std::fs::canonicalize(self.path())?;
        // (Each pull would be a change to be pulled.)
        self.outside(target)?;
        if Place::at(target).is_ok_and(|place| place.is_volume()) {
            let at = target.display();
            return Err(Failure::new(format!(
                "{at} holds a store already: a mirror is made anew, in a place of its own"
            )));
        }
        let make = Make { hash_key: Some(self.store().hash_key()), ..Make::default() };
        let place = making::create(target, &make)?;
        let (store, _held) = place.open(&[], &place::options(), &mut |_| ())?;
        let fs = Fs::open(store.clone())?;
        fs.follow(self.store().uuid(), of.id, &of.name, &origin.to_string_lossy(), now_ns())?;
        let made = Whereabouts { store: store.uuid(), at: vec![place.path], knows: Vec::new() };
        store.close()?;
        Ok(made)
    }

    fn mirror_lines(&self) -> Result<Vec<MirrorLine>> {
        let newest = self.store().tid();
        let mut lines = Vec::new();
        for mirror in self.fs.mirrors()? {
            let uuid = mirror.store();
            let place = whereabouts::find(&mirror.places(), uuid.as_ref());
            let target = place.as_ref().map_or_else(|_| mirror.places().swap_remove(0), |place| place.path.clone());
            let mut line = MirrorLine {
                name: mirror.name,
                target,
                source: Some(self.path().to_string_lossy().into_owned()),
                state: "stopped".into(),
                is_known: false,
                at_tid: None,
                at: None,
                lag_seconds: None,
                received_bytes: 0,
                pull_seconds: None,
                waits_for: Some(RESUME.into()),
                last_error: None,
                clock_ahead_seconds: None,
                compared: None,
            };
            let place = match place {
                Ok(place) => place,
                Err(e) => {
                    (line.state, line.waits_for) =
                        ("missing".into(), Some("its store, to be mounted where it is now".into()));
                    line.last_error = Some(e.to_string());
                    lines.push(line);
                    continue;
                }
            };
            let shows = |line: &mut MirrorLine, at: u64| {
                line.is_known = true;
                if at != 0 {
                    line.at_tid = Some(format!("{at:#x}"));
                    line.at = Some(local(Tid(at)));
                    let behind = if at >= newest.0 { 0 } else { now_ns().saturating_sub(at) };
                    line.lag_seconds = Some(behind as f64 / 1e9);
                }
            };
            match control::call(&place, &Request::Following) {
                Ok(Some(Response::Following(f))) => {
                    line.state = f.state;
                    shows(&mut line, f.at);
                    (line.received_bytes, line.pull_seconds) = (f.received_bytes, f.pull_seconds);
                    (line.waits_for, line.last_error) = (f.waits_for, f.last_error);
                    (line.clock_ahead_seconds, line.compared) = (f.clock_ahead_seconds, f.compared);
                }
                Ok(Some(_)) => {}
                Ok(None) => match place::once_closed(WHILE_LOOKED_AT, || followed_by(&place)) {
                    Ok((Some(f), _)) => shows(&mut line, f.at.0),
                    Ok((None, was)) => (line.state, line.waits_for) = (self.state_of_promoted(uuid, was), None),
                    Err(e) => tracing::debug!("what {} shows is not known: {e}", place.path.display()),
                },
                Err(e) if e.to_string().contains("no mirror") => {
                    let link = whereabouts::connect(&place).ok();
                    let looked = link.and_then(|link| Puller::look(&link, Which::Named("main"), None).ok());
                    let was = looked.and_then(|looked| looked.was);
                    (line.state, line.waits_for) = (self.state_of_promoted(uuid, was), None);
                }
                Err(e) => line.last_error = Some(e.to_string()),
            }
            lines.push(line);
        }
        lines.extend(self.own_line());
        Ok(lines)
    }

    /// The state of a mirror that follows nobody any more, by what it says that it was.
    fn state_of_promoted(&self, store: Option<[u8; 16]>, was: Option<Was>) -> String {
        let is_left = store.zip(was).is_some_and(|(store, was)| {
            self.fs.went_on_after(store, &was).unwrap_or_else(|e| {
                tracing::warn!("what this store followed is not known: {e}");
                false
            })
        });
        if is_left { LEFT.into() } else { PROMOTED.into() }
    }

    /// How this store follows another one, if it does.
    fn own_line(&self) -> Option<MirrorLine> {
        Some(line_of_itself(self.path(), self.follow_line().ok()?))
    }
}

/// What a mirror says of itself.
fn line_of_itself(target: PathBuf, f: FollowLine) -> MirrorLine {
    let known = f.at != 0;
    let lag = (f.up_to_date != 0).then(|| now_ns().saturating_sub(f.up_to_date) as f64 / 1e9);
    MirrorLine {
        name: String::new(),
        target,
        source: (!f.origin.is_empty()).then_some(f.origin),
        state: f.state,
        is_known: true,
        at_tid: known.then(|| format!("{:#x}", f.at)),
        at: known.then(|| local(Tid(f.at))),
        lag_seconds: lag,
        received_bytes: f.received_bytes,
        pull_seconds: f.pull_seconds,
        waits_for: f.waits_for,
        last_error: f.last_error,
        clock_ahead_seconds: f.clock_ahead_seconds,
        compared: f.compared,
    }
}

/// What a mirror that no daemon has would say of itself; `None` if it is none.
pub(crate) fn line_of_stopped(place: &Place) -> Result<Option<MirrorLine>> {
    place::once_closed(WHILE_LOOKED_AT, || {
        looking_at(place, |fs| {
            let Some(f) = fs.following() else { return Ok(None) };
            let origin = whereabouts::origin(fs, &f);
            let (state, waits_for) = match f.paused {
                true => ("paused", None),
                false if origin.is_empty() => ("stopped", Some(NEXT_STREAM)),
                false => ("stopped", Some(RESUME)),
            };
            let (state, waits_for) = (state.into(), waits_for.map(String::from));
            let line = FollowLine { origin, state, waits_for, at: f.at.0, ..FollowLine::default() };
            Ok(Some(line_of_itself(place.path.clone(), line)))
        })
    })
}

/// Has a mirror reach what it follows at another address, if that is there.
pub(crate) fn follow_at(fs: &Arc<Fs>, address: &str, ticket: Option<&str>) -> Result<()> {
    let f = fs.following().ok_or_else(no_mirror)?;
    let (far, ticket) = far::expecting(address.parse()?, ticket, f.origin.parse::<Far>().ok().and_then(|was| was.key))?;
    let link = far.connect(&serving::identity(fs, now_ns())?, ticket.map(|t| t.secret))?;
    let which = far.fileset.as_deref().map_or(Which::Number(f.fileset), Which::Named);
    let looked = Puller::look(&link, which, None).map_err(|e| Failure::new(format!("{}: {e}", far.host)))?;
    if (looked.uuid, looked.fileset) != (f.source, f.fileset) {
        return Err(Failure::new(format!(
            "this store is a mirror of {:?} of another store than what {} has: what it follows can't be changed",
            f.name, far.host
        )));
    }
    let far = Far { fileset: (f.name != "main").then(|| looked.name.clone()), ..far };
    fs.follow_at(&far.to_string(), now_ns())?;
    Ok(fs.sync().map(drop)?)
}

/// How a store that no daemon has follows another one, or did until it was promoted.
fn followed_by(place: &Place) -> Result<(Option<Following>, Option<Was>)> {
    looking_at(place, |fs| Ok((fs.following(), fs.was()?)))
}

/// Looks at a store that no daemon has.
fn looking_at<T>(place: &Place, look: impl FnOnce(&Fs) -> Result<T>) -> Result<T> {
    let options = OpenOptions { read_only: true, ..place::options() };
    let (store, _held) = place.open(&[], &options, &mut |_| ())?;
    look(&Fs::open(store)?)
}

pub(crate) fn why(line: &FollowLine) -> String {
    let known = line.last_error.clone().or(line.waits_for.clone());
    known.unwrap_or_else(|| format!("it {}", if line.state.is_empty() { "begins" } else { &line.state }))
}

/// Has a mirror that no daemon has pull what there is. `hint`: where the source is, as somebody else says.
pub(crate) fn pull_once(fs: &Arc<Fs>, f: &Following, hint: Option<&Path>) -> Result<()> {
    let (link, limit) = (Arc::new(connect_to(fs, f, hint, remembering(fs)?)?), fs.pull_limit()?);
    let mut puller = whereabouts::telling(Puller::new(fs.clone(), link, session()), fs, f);
    if limit > 0 {
        let wait = move |bytes: u64| {
            thread::sleep(Duration::from_secs_f64(bytes as f64 / limit as f64));
            true
        };
        puller = puller.with_ahead(0).with_pause(Box::new(wait));
    }
    puller.pull().map(drop).map_err(Failure::new)
}
