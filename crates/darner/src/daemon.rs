//! The daemon: one process that has one store open, and serves all of its mounts.
//!
//! Threads: per mount the serving ones; one writes the log and syncs it every second; one does the store's upkeep; one
//! answers commands (at each volume and mount). It ends when its last mount does, with everything durable; not while the store
//! has something to do without a mount: it follows another one, or is followed from other machines.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use darner_fs::{FilesetId, Fs, Inode, NoMoment, ROOT, Tid};
use darner_store::{OpenOptions, Pin, Progress, Shelter, Store};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::attachments;
use crate::control::{Answers, LabelLine, Listener, LogLine, MountLine, MountRequest, Request, Response, Status, Tell};
use crate::errand::{Errands, Invalidator};
use crate::error::{Failure, Result};
use crate::frontend::now_ns;
use crate::keeper::{self, Items, Keeper};
use crate::memory::SharedMemory;
use crate::mirroring::{self, Follows};
use crate::mounts::{self, Mounted};
use crate::namespaces::Namespace;
use crate::nodes::Nodes;
use crate::place::{self, KEPT, Place};
use crate::reaper::Reaper;
use crate::retention::{History, Wanted};
use crate::s3;
use crate::scrub::Scrubbing;
use crate::serving::{Door, Followed};
use crate::supervisor::{LISTENER, block_end_signals};
use crate::verifying::Others;
use crate::volumes::{self, Member};
use crate::when::local;
use crate::whereabouts::Doors;

/// After this long at the latest, what was written survives a power failure without fsync too.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// What was to be forgotten and can't be reached is tried again after so long.
const FORGET_AGAIN: Duration = Duration::from_secs(20);

/// After this long, what was written survives the death of the daemon.
const WRITE_EVERY: Duration = Duration::from_millis(20);
/// How often upkeep looks for work while there is none: at first, and when nothing has been written for a while (a write ends that).
const IDLE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// What the memory for the log's tail is kept as.
const SHELTER: &str = "shelter";
/// Clocks are corrected by less than this all the time.
const AHEAD_MAX: Duration = Duration::from_secs(60);

pub(crate) struct Mount {
    pub line: MountLine,
    pub live: bool,
    pub root: Inode,
    pub invalidator: Invalidator,
    pub nodes: Arc<Nodes>,
    /// What the kernel was told is mounted: the path of a volume.
    pub(crate) source: PathBuf,
    pub(crate) listener: Option<Listener>,
    /// The kernel asks nothing more of it.
    pub(crate) ended: bool,
    /// Keeps what a mount of the past shows.
    pub(crate) _pins: Vec<Pin>,
}

impl Mount {
    /// Where commands are taken.
    pub(crate) fn listens_at(&self) -> Option<SocketAddr> {
        self.listener.as_ref().and_then(Listener::address)
    }

    pub(crate) fn writes(&self) -> bool {
        self.live && !self.line.read_only
    }

    /// Whether what is below `root` is, in part or in whole, seen through this mount.
    pub(crate) fn shows(&self, root: Inode) -> bool {
        [root, ROOT].contains(&self.root) || root == ROOT
    }
}

#[derive(Default)]
pub(crate) struct State {
    pub mounts: HashMap<PathBuf, Mount>,
    pub(crate) closing: bool,
    closed: bool,
    /// It was told to end.
    told: bool,
    /// Why the last writes of a mount that ended may be lost, if they may.
    pub(crate) lost: Option<String>,
    /// Its mounts are there: those to begin with, or those of the daemon before.
    begun: bool,
}

/// See the module.
pub struct Daemon {
    /// The store's volumes, the one that it was opened by first.
    pub(crate) volumes: Mutex<Vec<Member>>,
    /// Held while volumes are changed or something is moved between them.
    pub(crate) moving: Mutex<()>,
    /// Emptying a volume failed: not before then again.
    pub(crate) leave_not_before: Mutex<Option<Instant>>,
    /// From when on what was to be forgotten, and perhaps is still there in part, is looked for again.
    pub(crate) forget_again: Mutex<Option<Instant>>,
    pub(crate) fs: Arc<Fs>,
    pub(crate) reaper: Arc<Reaper>,
    /// What was found last of the bytes that only the past needs.
    pub(crate) history: Mutex<Option<History>>,
    /// Whoever keeps what is to outlive this process.
    pub(crate) keeper: Keeper,
    /// Whoever does what must not hold this process up.
    pub(crate) errands: Errands,
    /// Sockets of before on which commands may wait.
    pub(crate) listeners: Mutex<HashMap<String, OwnedFd>>,
    /// Held while a mount is made: one at a time, and none while the daemon decides to end or a fileset is changed.
    pub(crate) mounting: Mutex<()>,
    pub(crate) scrubbing: Scrubbing,
    pub(crate) state: Mutex<State>,
    pub(crate) changed: Condvar,
    /// Upkeep has had nothing to do for a while.
    dozes: AtomicBool,
    /// How it follows another store, if it is a mirror.
    pub(crate) follows: Arc<Follows>,
    /// How others follow it, who they are, and from where.
    pub(crate) source: Arc<darner_mirror::Source>,
    pub(crate) followed: Followed,
    pub(crate) doors: Doors,
    pub(crate) door: Door,
}

/// Opens the store, mounts (unless the store has something to do without), calls `ready`, and serves until the last mount ends.
/// If another process did so before and was killed, goes on where it was instead: with its mounts.
pub fn run(
    place: impl FnOnce() -> Result<Place>,
    others: &[PathBuf],
    options: &OpenOptions,
    first: Option<&MountRequest>,
    ready: impl FnOnce(),
) -> Result<()> {
    // A thread that panics must not leave a mount without an answer: better no daemon, which is noticed at once.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        tracing::error!("{info}");
        if std::thread::current().name() == Some(s3::THREAD) {
            // What others' code makes of a bucket is a call that failed.
            return;
        }
        hook(info);
        std::process::abort();
    }));
    // Before there is any other thread.
    let signals = block_end_signals();
    let (keeper, mut items) = Keeper::find(keeper::STORE)?;
    let goes_on = !items.is_empty();
    let (place, others) = match take_locks(&mut items)? {
        Some(found) => found,
        None => (place()?, others.to_vec()),
    };
    s3::go_on(&mut items)?;
    s3::keep(&keeper)?;
    let shelter = shelter(&keeper, &mut items, options.read_only)?;
    let listeners = take_listeners(&mut items);
    let mut told = Instant::now();
    // (What it had had to do without, the one that goes on can do without.)
    let options = OpenOptions { shelter, degraded: options.degraded || goes_on, ..options.clone() };
    let (store, held) = place.open(&others, &options, &mut |a| {
        if told.elapsed() > Duration::from_secs(2) {
            told = Instant::now();
            tracing::info!(done = a.done, total = a.total, "deriving the index");
        }
    })?;
    let fs = Arc::new(Fs::open(store.clone())?);
    if !store.is_read_only() && !goes_on {
        let n = fs.reap_orphans(now_ns())?;
        tracing::info!(orphans = n, tid = %store.tid(), "store open");
    }
    let source = Arc::new(darner_mirror::Source::new(fs.clone()).with_clock(now_ns));
    let followed = mirroring::answering(source.clone())?;
    let daemon = Arc::new(Daemon {
        volumes: Mutex::default(),
        moving: Mutex::default(),
        leave_not_before: Mutex::default(),
        forget_again: Mutex::new(Some(Instant::now())),
        fs,
        reaper: Arc::default(),
        history: Mutex::default(),
        keeper: keeper.clone(),
        errands: Errands::default(),
        listeners: Mutex::new(listeners),
        mounting: Mutex::default(),
        scrubbing: Scrubbing::default(),
        state: Mutex::default(),
        changed: Condvar::new(),
        dozes: AtomicBool::new(false),
        follows: Arc::default(),
        source,
        followed,
        doors: Doors::default(),
        door: Door::default(),
    });
    let as_dyn: Arc<dyn darner_mirror::Places> = daemon.clone();
    daemon.source.tell_places(Arc::downgrade(&as_dyn));
    daemon.learn_whether_to_serve()?;
    store.heal_from(Arc::new(Others::new(&daemon)));
    for (i, held) in held.into_iter().enumerate() {
        let member = Member::new(&daemon, held, i == 0)?;
        daemon.volumes.lock().push(member);
    }
    let outcome = {
        let _one_at_a_time = daemon.mounting.lock();
        // (Before there can be any new transaction.)
        let outcome = if goes_on { daemon.go_on(items) } else { daemon.begin(first) };
        daemon.close_what_nobody_listens_at();
        let mut state = daemon.state.lock();
        (state.begun, state.closing) = (true, state.closing || outcome.is_err());
        daemon.changed.notify_all();
        outcome
    };
    let mut workers = daemon.start_workers()?;
    let burying = daemon.clone();
    workers.push(thread::Builder::new().name("attachments".into()).spawn(move || attachments::bury(&burying))?);
    daemon.listen_for_mirrors();
    if daemon.fs.following().is_some() && !store.is_read_only() {
        let follower = daemon.clone();
        workers.push(thread::Builder::new().name("follower".into()).spawn(move || follower.follow())?);
    }
    if outcome.is_ok() {
        let watcher = daemon.clone();
        thread::Builder::new().name("signals".into()).spawn(move || watcher.heed(&signals))?;
        keeper.serving();
        ready();
        // (Also after a crash: they may have missed where this is since.)
        daemon.start_followers();
        daemon.wait_for_the_end();
    }
    daemon.state.lock().closing = true;
    s3::give_up();
    for worker in workers {
        store.wake();
        daemon.reaper.wake();
        daemon.follows.wake(true);
        daemon.source.end();
        daemon.changed.notify_all();
        if worker.join().is_err() {
            tracing::error!("a worker thread panicked");
        }
    }
    daemon.doors.lock().clear();
    let closed = store.close();
    keeper.bye();
    daemon.release();
    outcome?;
    Ok(closed?)
}

/// Where the volumes are of which a process before this had the locks, if there was one; the locks are ours then.
fn take_locks(items: &mut Items) -> Result<Option<(Place, Vec<PathBuf>)>> {
    let mut found = Vec::new();
    let locks = volumes::take_locks(items);
    let Some((first, _)) = locks.first() else { return Ok(None) };
    let gone = Failure::new(format!("{} is no longer the volume that was opened there", first.display()));
    for (path, lock) in locks {
        // One that has failed meanwhile must not keep the others.
        match place::path_now(&lock.file, &path).filter(|now| Place::at(now).is_ok_and(|p| p.is_volume())) {
            Some(now) => found.push(now),
            // (Whether it is missed, the store tells that is opened now.)
            None => tracing::warn!("{} is no volume any more: it was about to leave, or has failed", path.display()),
        }
        place::inherit(lock);
    }
    if found.is_empty() {
        return Err(gone);
    }
    let first = Place::at(&found.remove(0))?;
    Ok(Some((first, found)))
}

fn shelter(keeper: &Keeper, items: &mut Items, read_only: bool) -> Result<Option<Shelter>> {
    let kept = items.remove(SHELTER);
    if read_only || !keeper.is_there() {
        return Ok(None);
    }
    let found = kept.map(|item| SharedMemory::adopt(item.fd, Shelter::LEN)).transpose()?.flatten();
    let memory = match found {
        Some(memory) => memory,
        None => SharedMemory::new(c"darner-shelter", Shelter::LEN)?,
    };
    keeper.keep(SHELTER, "", &memory)?;
    Ok(Some(Shelter::over(Box::new(memory))))
}

fn take_listeners(items: &mut Items) -> HashMap<String, OwnedFd> {
    keeper::take(items, LISTENER).into_iter().map(|(name, item)| (name, item.fd)).collect()
}

impl Daemon {
    /// Told to end (a shutdown, Ctrl-C), takes the mounts away; those who use them may finish. Told again, ends at once.
    fn heed(&self, signals: &libc::sigset_t) {
        for again in [false, true] {
            let mut signal = 0;
            // SAFETY: valid pointers; the signals are blocked in all threads.
            unsafe { libc::sigwait(signals, &mut signal) };
            tracing::info!(signal, again, "told to end");
            self.state.lock().told = true;
            self.changed.notify_all();
            if !self.store().is_read_only()
                && let Err(e) = self.fs.sync()
            {
                tracing::error!("the last writes may be lost: {e}");
            }
            let mountpoints: Vec<PathBuf> = self.state.lock().mounts.keys().cloned().collect();
            for mountpoint in mountpoints {
                if let Err(e) = self.errands.unmount(&mountpoint, true) {
                    tracing::warn!("{e}");
                }
            }
        }
        self.keeper.bye();
        std::process::exit(0);
    }

    fn begin(self: &Arc<Daemon>, first: Option<&MountRequest>) -> Result<()> {
        match first {
            Some(mount) => self.mount(mount),
            None if self.stays() => Ok(()),
            None if self.fs.following().is_some_and(|f| f.paused) => {
                Err(Failure::new("this mirror is paused: `darner mirror resume` has it go on"))
            }
            None => Err(Failure::new("this store has nothing to do without a mount")),
        }
    }

    /// Whether there is something to do without a mount.
    pub(crate) fn stays(&self) -> bool {
        let follows = self.fs.following().is_some_and(|f| !f.paused && !f.origin.is_empty());
        (follows || self.serves()) && !self.store().is_read_only()
    }

    fn is_over(&self, state: &State) -> bool {
        state.mounts.is_empty() && (state.told || !self.stays())
    }

    /// Returns when no mount is left, nothing is to be done without, and no further mount will be.
    fn wait_for_the_end(&self) {
        loop {
            let mut state = self.state.lock();
            while !self.is_over(&state) {
                self.changed.wait(&mut state);
            }
            drop(state);
            let _no_mount_begins = self.mounting.lock();
            let mut state = self.state.lock();
            if self.is_over(&state) {
                state.closing = true;
                return;
            }
        }
    }

    /// After a change of what is to be done without a mount; returns when the store is closed, if nothing is left to do.
    pub(crate) fn end_if_over(&self) {
        let mut state = self.state.lock();
        self.changed.notify_all();
        while self.is_over(&state) && !state.closed {
            self.changed.wait(&mut state);
        }
    }

    /// Gives the store back, then tells those who wait for that.
    fn release(&self) {
        self.volumes.lock().clear();
        self.state.lock().closed = true;
        self.changed.notify_all();
        // Those who asked for the unmount are answered by their own threads.
        thread::sleep(Duration::from_millis(20));
    }

    pub(crate) fn store(&self) -> &Arc<Store> {
        self.fs.store()
    }

    /// The path of the first volume.
    pub(crate) fn path(&self) -> PathBuf {
        self.volumes.lock().first().map(|m| m.place().path.clone()).unwrap_or_default()
    }

    /// Waits for so long, or until something changes.
    pub(crate) fn pause(&self, time: Duration) {
        let mut state = self.state.lock();
        if !state.closing {
            self.changed.wait_for(&mut state, time);
        }
    }

    /// The same, whatever changes, until the daemon ends.
    pub(crate) fn rest(&self, time: Duration) {
        self.changed.wait_while_for(&mut self.state.lock(), |state| !state.closing, time);
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.state.lock().closing
    }

    fn start_workers(self: &Arc<Daemon>) -> Result<Vec<thread::JoinHandle<()>>> {
        if self.store().is_read_only() {
            return Ok(Vec::new());
        }
        let (writer, upkeep, reaper, scrubber) = (self.clone(), self.clone(), self.clone(), self.clone());
        let (door, bucket, source) = (self.clone(), self.clone(), self.source.clone());
        Ok(vec![
            thread::Builder::new().name("reaper".into()).spawn(move || reaper.reap())?,
            thread::Builder::new().name("log-writer".into()).spawn(move || writer.write_log())?,
            thread::Builder::new().name("upkeep".into()).spawn(move || upkeep.keep_up())?,
            thread::Builder::new().name("scrubber".into()).spawn(move || scrubber.scrub_by_itself())?,
            thread::Builder::new().name("bucket".into()).spawn(move || bucket.keep_bucket())?,
            thread::Builder::new().name("door".into()).spawn(move || door.keep_the_door())?,
            thread::Builder::new().name("news".into()).spawn(move || source.tell_news())?,
        ])
    }

    fn write_log(&self) {
        let (mut seen, mut synced) = (self.store().tid(), Instant::now());
        let mut complained = false;
        while !self.state.lock().closing {
            let last = self.store().wait_for_work(seen, SYNC_EVERY);
            let mut outcome = self.store().write_out();
            if last != seen {
                if self.dozes.swap(false, Ordering::Relaxed) {
                    self.changed.notify_all();
                }
                // Full buffers go at once: those in memory that was used lately are filled at half the cost.
                let until = Instant::now() + WRITE_EVERY;
                while outcome.is_ok() && self.store().wait_for_full(until.saturating_duration_since(Instant::now())) {
                    outcome = self.store().write_out();
                }
                outcome = outcome.and_then(|()| self.store().write_all());
                self.source.changed(false);
            } else {
                self.store().cool();
            }
            seen = last;
            if outcome.is_ok() && synced.elapsed() >= SYNC_EVERY {
                outcome = self.store().sync().map(|_| ());
                synced = Instant::now();
            }
            if let Err(e) = outcome {
                if !std::mem::replace(&mut complained, true) {
                    tracing::error!("the log can't be written: {e}");
                }
                self.pause(SYNC_EVERY);
            }
        }
    }

    fn keep_up(self: &Arc<Daemon>) {
        let mut seen = self.store().tid();
        let mut idle = IDLE.0;
        while !self.state.lock().closing {
            if let Err(e) = self.finish_forgetting() {
                tracing::error!("what was to be forgotten is still there in part: {e}");
            }
            let start = Instant::now();
            let pause = match self.store().step().map_err(Failure::from).and_then(|p| self.then_clean(p)) {
                // What the store needs goes first, and at once.
                Ok((Progress::Worked, false)) => Duration::ZERO,
                // The cleaner leaves those who work at least as much time as it takes, unless they will need the room.
                Ok((Progress::Worked, true)) if self.store().tid() != seen && !self.store().is_short_of_room() => {
                    start.elapsed()
                }
                Ok((Progress::Worked, true)) => Duration::ZERO,
                Ok((Progress::Idle, _)) => match self.fs.gather(now_ns()) {
                    Ok(true) => start.elapsed(),
                    Ok(false) => {
                        idle = if self.store().tid() == seen { IDLE.1.min(2 * idle) } else { IDLE.0 };
                        self.dozes.store(idle > IDLE.0, Ordering::Relaxed);
                        idle
                    }
                    Err(e) => {
                        tracing::warn!("a scattered file stays as it is: {e}");
                        Duration::from_secs(1)
                    }
                },
                Err(e) => {
                    tracing::error!("upkeep failed: {e}");
                    Duration::from_secs(1)
                }
            };
            if self.store().take_told_of_rot()
                && let Err(e) = self.heal_index()
            {
                tracing::error!("the damaged index is not derived anew by itself: {e}");
            }
            seen = self.store().tid();
            self.pause(pause);
        }
    }

    /// Collapses and cleans where nothing else is due; says whether that was it.
    fn then_clean(self: &Arc<Daemon>, upkeep: Progress) -> Result<(Progress, bool)> {
        match upkeep {
            Progress::Worked => Ok((upkeep, false)),
            Progress::Idle => {
                self.listen_at_homes();
                if self.go_on_leaving(false)? || self.go_on_cutting()? || self.go_on_copying()? {
                    return Ok((Progress::Worked, true));
                }
                self.fs.limit_history(now_ns())?;
                Ok((self.store().step_clean(now_ns())?, true))
            }
        }
    }

    /// Goes on with what a crash, or a bucket out of reach, interrupted.
    fn finish_forgetting(&self) -> Result<()> {
        let is_due = self.forget_again.lock().is_some_and(|at| at <= Instant::now());
        if !is_due || self.store().bucket().is_some_and(|b| b.trouble.is_some()) {
            return Ok(());
        }
        *self.forget_again.lock() = None;
        if !self.store().is_forgetting()? {
            return Ok(());
        }
        match self.store().forget(&[], &[], Tid::ZERO, now_ns(), &mut |_| ()) {
            Err(e @ darner_store::Error::Remains(_)) => {
                tracing::warn!("what was to be forgotten: {e}");
                *self.forget_again.lock() = Some(Instant::now() + FORGET_AGAIN);
                Ok(())
            }
            done => Ok(done?),
        }
    }

    pub(crate) fn moment(&self, fileset: FilesetId, when: &str) -> Result<Tid> {
        let why = match self.fs.moment_or_why(fileset, when, now_ns())? {
            Ok(moment) => return Ok(moment.tid),
            Err(NoMoment::NotAWhen) => "it is no time, label or tid".into(),
            Err(NoMoment::BeforeBirth) => {
                format!("it is before the filesystem was made, {}", local(self.store().birth()))
            }
            Err(NoMoment::InTheFuture) => "it lies in the future".into(),
            Err(NoMoment::GivenUp(asked)) => match self.fs.first_kept_since(fileset, asked)? {
                Some(kept) => format!("it is not kept any more; the oldest that is, is {kept}, {}", local(kept)),
                None => "it is not kept any more".into(),
            },
        };
        Err(Failure::new(format!("{when:?} is no moment of this filesystem: {why}")))
    }

    fn serve(self: &Arc<Daemon>, request: Request, tell: &mut Tell<'_>) -> Result<Response> {
        {
            let mut state = self.state.lock();
            self.changed.wait_while(&mut state, |state| !state.begun && !state.closing);
            if state.closing {
                return Ok(Response::Closing);
            }
        }
        Ok(match request {
            Request::Mount(m) => {
                if m.seen_in.zip(Namespace::Mount.of("self")).is_some_and(|(wanted, ours)| wanted != ours) {
                    let pid = std::process::id();
                    let who = format!("the store's daemon, process {pid},");
                    let so = "what it mounts would not be seen here; to mount there";
                    return Err(Failure::new(Namespace::Mount.is_another(&who, pid, so, "mount …")));
                }
                let _one_at_a_time = self.mounting.lock();
                if self.state.lock().closing || self.one_is_leaving(&m)? {
                    return Ok(Response::Closing);
                }
                self.mount(&m)?;
                self.listen_for_mirrors();
                Response::Done
            }
            Request::Unmount { mountpoint, lazy } => {
                self.unmount(&mountpoint, lazy)?;
                let (closed, lost) = {
                    let state = self.state.lock();
                    (state.closed, state.lost.clone())
                };
                let supervisor = self.keeper.stats().map(|(_, pid)| pid);
                let ends = supervisor.into_iter().chain([std::process::id()]);
                Response::Unmounted { ending: if closed { ends.collect() } else { Vec::new() }, lost }
            }
            Request::Upgrade { .. } => {
                if !self.keeper.is_there() {
                    return Err(Failure::new("it was started without a supervisor: unmount, and mount again"));
                }
                if !self.store().is_read_only() {
                    self.fs.sync()?;
                }
                // (Once this is answered.)
                Response::Done
            }
            Request::Status => Response::Status(Box::new(self.status()?)),
            Request::Sync => {
                self.fs.sync()?;
                Response::Done
            }
            Request::Log { at, to, present, coalesce } => {
                let to = to.map_or(Tid::MAX, Tid);
                let entries = self.fs.log(self.root_of(&at), &at.names(), to, present, coalesce)?;
                Response::Log(entries.iter().map(log_line).collect())
            }
            Request::AddLabel { at, name, when } => {
                let fileset = self.fileset_of(&at)?;
                let at = when.or_else(|| self.as_of(&at)).map(|w| self.moment(fileset, &w)).transpose()?;
                let label = self.fs.add_label(fileset, &name, at, now_ns())?;
                self.fs.sync()?;
                Response::Labels(vec![label_line(&label)])
            }
            Request::RemoveLabel { at, name } => {
                self.fs.remove_label(self.fileset_of(&at)?, &name, now_ns())?;
                self.fs.sync()?;
                Response::Done
            }
            Request::Labels { at } => {
                Response::Labels(self.fs.labels(self.fileset_of(&at)?)?.iter().map(label_line).collect())
            }
            Request::Resolve { at, when, must } => {
                let fileset = self.fileset_of(&at)?;
                if must {
                    return Ok(Response::Tid(Some(self.moment(fileset, &when)?.0)));
                }
                Response::Tid(self.fs.resolve_when(fileset, &when, now_ns())?.map(|t| t.0))
            }
            Request::Retain { at, grid, when_full, dry_run, nothing_here } => {
                let wanted = Wanted { grid, when_full, dry_run, nothing_here };
                Response::Retention(self.retain(&at, &wanted, tell)?)
            }
            Request::Clean { wait } => self.clean(wait, tell)?,
            Request::MayForget { at } => {
                self.fs.check_destroyable(self.root_of(&at), &at.names())?;
                Response::Done
            }
            Request::Keepless { at } => Response::Keepless(self.fs.keepless_below(self.root_of(&at), &at.names())?),
            Request::Forget { at } => self.destroy(&at, tell)?,
            Request::Scrub { wait, bucket } => self.scrub(wait, bucket, tell)?,
            Request::ScrubReport => self.scrub_report()?,
            Request::Usage => Response::Usage(self.usage()?),
            request @ (Request::Volumes
            | Request::AddVolume { .. }
            | Request::AddBucket { .. }
            | Request::Push
            | Request::MoveSegments { .. }
            | Request::RemoveVolume { .. }
            | Request::LoseVolume { .. }
            | Request::Copies { .. }
            | Request::ResizeVolume { .. }) => self.serve_volumes(request, tell)?,
            request @ (Request::Mirrors
            | Request::MirrorAt { .. }
            | Request::AddMirror { .. }
            | Request::RemoveMirror { .. }
            | Request::FollowAt { .. }
            | Request::SourceIsAt { .. }
            | Request::Following
            | Request::Follow { .. }
            | Request::PauseMirror { .. }
            | Request::Promote) => self.serve_mirrors(request)?,
            request @ Request::VerifyMirror { .. } => self.verify_mirror(&request, tell)?,
            Request::CompareEvery { seconds } => {
                self.follow_line()?;
                self.fs.compare_every(seconds, now_ns())?;
                self.fs.sync()?;
                self.follows.wake(false);
                Response::Done
            }
            request @ Request::Serve { .. } => self.serve_others(request)?,
            Request::End => {
                self.end()?;
                Response::Done
            }
            request => Response::Filesets(self.serve_filesets(request)?),
        })
    }

    /// Ends a mount; returns when it is gone, and if it was the last, when the store is closed. An error where another mount namespace
    /// has a copy of it.
    fn unmount(&self, mountpoint: &Path, lazy: bool) -> Result<()> {
        let mut state = self.state.lock();
        if !state.mounts.contains_key(mountpoint) {
            return Err(Failure::new(format!("{} is not mounted", mountpoint.display())));
        }
        drop(state);
        let device = mounts::fuse_at(mountpoint)?.map(|m| m.device);
        self.errands.unmount(mountpoint, lazy)?;
        let start = Instant::now();
        state = self.state.lock();
        while state.mounts.contains_key(mountpoint) && !lazy {
            let timed_out = self.changed.wait_for(&mut state, KEPT).timed_out();
            if timed_out && state.mounts.get(mountpoint).is_some_and(|m| !m.ended) {
                let is_late = start.elapsed() > 3 * KEPT;
                MutexGuard::unlocked(&mut state, || self.refuse_if_kept(mountpoint, device.as_ref(), is_late))?;
            }
        }
        drop(state);
        self.end_if_over();
        Ok(())
    }

    /// Says why the kernel still has a mount that was taken away. `is_late`: so long that it must be something, seen or not.
    fn refuse_if_kept(&self, mountpoint: &Path, device: Option<&String>, is_late: bool) -> Result<()> {
        let is_it = |m: &Mounted| Some(&m.device) == device;
        let why = match mounts::all()?.into_iter().find(is_it) {
            Some(copy) => Some(format!("it is mounted on {} too", copy.mountpoint.display())),
            None => mounts::kept_elsewhere(is_it),
        };
        let unseen = || is_late.then(|| "another mount namespace, which can't be looked at, seems to have it".into());
        let Some(why) = why.or_else(unseen) else { return Ok(()) };
        if !self.store().is_read_only() {
            self.fs.sync()?;
        }
        let (at, store) = (mountpoint.display(), self.path());
        Err(Failure::new(format!("{at} is unmounted, but {} stays open: {why}", store.display())))
    }

    fn end(&self) -> Result<()> {
        {
            let mut state = self.state.lock();
            if !state.mounts.is_empty() {
                let mut at: Vec<String> = state.mounts.keys().map(|at| at.display().to_string()).collect();
                at.sort();
                let store = self.path();
                return Err(Failure::new(format!(
                    "{} is mounted at {}: `darner unmount` first",
                    store.display(),
                    at.join(", ")
                )));
            }
            state.told = true;
        }
        self.follows.wake(false);
        self.end_if_over();
        Ok(())
    }

    fn status(&self) -> Result<Status> {
        let store = self.store();
        let usage = store.usage()?;
        let dead = store.dead_bytes();
        let stopped = store.stopped();
        let mut warnings: Vec<String> = stopped.iter().map(|e| lost(e, store.durable())).collect();
        warnings.extend(self::warnings(&usage));
        warnings.extend(clock_warning(store.tid()));
        warnings.extend(self.volume_warnings()?);
        warnings.extend(self.rot_warning()?);
        let scrubbed = self.store().scrub_report()?;
        let damaged = scrubbed.damages.len() as u64 + scrubbed.more;
        if damaged > 0 {
            warnings
                .push(format!("the last scrub found {damaged} damaged places: `darner scrub --report` tells which"));
        }
        let state = self.state.lock();
        let mut mounts: Vec<MountLine> = state.mounts.values().map(|m| m.line.clone()).collect();
        let (stats, supervisor_pid) = self.keeper.stats().unzip();
        let stats = stats.unwrap_or_default();
        mounts.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
        Ok(Status {
            store: self.path(),
            uuid: store.uuid().iter().map(|b| format!("{b:02x}")).collect(),
            tid: store.tid().to_string(),
            durable_tid: store.durable().to_string(),
            created: local(store.birth()),
            size_bytes: usage.size,
            used_bytes: usage.used,
            live_bytes: usage.live,
            history_bytes: self.history_bytes(&usage, dead),
            dead_bytes: dead,
            free_bytes: if stopped.is_some() { 0 } else { usage.free },
            objects: usage.objects,
            daemon_pid: std::process::id(),
            started: self.keeper.started().map(|ns| local(Tid(ns))),
            version: env!("CARGO_PKG_VERSION").into(),
            program: keeper::program().ok(),
            failed_upgrade: self.keeper.failed_upgrade(),
            supervisor_pid,
            restarts: stats.restarts,
            longest_pause_ms: stats.longest_pause_ms,
            resident_bytes: resident_bytes(),
            volumes: self.volume_lines()?,
            copies: self.copy_line(),
            mounts,
            retention: self.retentions()?,
            warnings,
        })
    }
}

impl Answers for Arc<Daemon> {
    fn answer(&self, request: Request, tell: &mut Tell<'_>) -> Result<Response> {
        self.serve(request, tell)
    }

    fn answered(&self, request: &Request) {
        if let Request::Upgrade { program } = request
            && let Err(e) = self.keeper.next(program.clone())
        {
            tracing::error!("no other daemon is started: {e}");
        }
    }
}

/// That what was written after a moment may be lost.
pub(crate) fn lost(why: &dyn std::fmt::Display, durable: Tid) -> String {
    format!("the last writes, after {}, may be lost: {why}", local(durable))
}

fn warnings(usage: &darner_store::Usage) -> Vec<String> {
    let mut all = Vec::new();
    if usage.free < usage.size / 20 {
        all.push(format!(
            "less than 5 % of the volume is free ({} MiB): when it is full, writes fail. `darner retain` says what is kept of \
             the past, and can give some of it up",
            usage.free >> 20
        ));
    }
    all
}

/// What to tell people whose newest change is later than now.
pub(crate) fn clock_warning(newest: Tid) -> Option<String> {
    let now = Tid(now_ns());
    (newest.0.saturating_sub(now.0) > AHEAD_MAX.as_nanos() as u64).then(|| {
        format!(
            "the newest change is dated {}, and this machine's clock says {}: until it gets there, all changes are dated right \
             after the newest one, and moments like @@-10m are before it",
            local(newest),
            local(now)
        )
    })
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    // SAFETY: this call can't fail for this name.
    pages * unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as u64
}

fn log_line(e: &darner_fs::LogEntry) -> LogLine {
    LogLine {
        tid: e.tid.to_string(),
        shown: e.shown.to_string(),
        when: local(e.tid),
        what: what(e.what).into(),
        inode: e.ino.number(),
        size: e.attr.size,
    }
}

fn what(w: darner_fs::What) -> &'static str {
    use darner_fs::What;
    match w {
        What::Created => "created",
        What::Written => "written",
        What::Attributes => "attributes",
        What::RenamedHere => "renamed here",
        What::Linked => "linked",
        What::RenamedAway => "renamed away",
        What::Removed => "removed",
        What::Replaced => "replaced",
    }
}

fn label_line(l: &darner_fs::Label) -> LabelLine {
    LabelLine { label: l.name.clone(), tid: l.tid.to_string(), when: local(l.tid) }
}
