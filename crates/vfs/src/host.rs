//! Keeps a plug-in running: starts it, notices its end or its silence, starts it again, or gives it up.
//!
//! Invariants: there is at most one process of it; a call takes no longer than the deadline, whatever the plug-in does; no
//! process is at work on a call for much longer than twice that; what was under way when the process ended is asked again
//! only if asking twice does no harm.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use darner_syslink::engine::Config;
use darner_syslink::unix::Ends;
use darner_syslink::{CallError, ConnectError, Message, Peer, Reason, Refusal, Reply, Service, now_ns, unix};
use parking_lot::{Condvar, Mutex};

use crate::arena::Arena;
use crate::protocol::{self as p, SERVICE};
use crate::running::{LOOK_EVERY, Running, Terms};
use crate::vfs::{Errno, Info};

/// Pauses before a plug-in that has failed is started again; then it is given up.
const PAUSES_MS: [u64; 5] = [0, 100, 500, 1000, 2000];
/// One that was killed is not at fault: that many times in a row without an answer in between.
const KILLS_MAX: u32 = 100;
/// So many times it is started again at once before the pace of [`Options`] counts.
const STARTS_AT_ONCE: u32 = 4;
/// What was given up is waited for as long again as its deadline, and no shorter than this.
const GRACE: Duration = Duration::from_secs(1);
/// One that has run so long did not fail at its start.
const WELL: Duration = Duration::from_secs(30);
/// How often a call is asked that ended the process that had it.
const ASKED_MAX: u32 = 2;

/// How an attachment is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long a call may take.
    pub deadline: Duration,
    /// Whether a plug-in that has ended is started again.
    pub restart: bool,
    /// At what pace it is started again that is killed again and again: what a start takes is taken from all others.
    pub start_every: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options { deadline: Duration::from_secs(10), restart: true, start_every: Duration::from_millis(500) }
    }
}

/// Starts plug-ins.
pub trait Launch: Send + Sync {
    /// A new process; or how it ended already, as [`Process::end`] has it. It is called from one thread, which lives as long as the host.
    fn launch(&self) -> Result<Launched, (bool, String)>;
}

/// A plug-in's process just started.
pub struct Launched {
    /// Our end of its link.
    pub socket: OwnedFd,
    /// Its arena.
    pub arena: Arena,
    /// Itself.
    pub process: Box<dyn Process>,
    /// The program that was started, if it may be none that is a plug-in.
    pub program: Option<PathBuf>,
}

/// A plug-in's process. It is gone when this is dropped.
pub trait Process: Send {
    /// Its number.
    fn id(&self) -> u32;
    /// Ends it, if it has not ended, and tells how it did: whether somebody else killed it, and in words.
    fn end(&mut self) -> (bool, String);
}

/// How it is, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// `runs`, `starts`, or why it is given up.
    pub state: String,
    /// Its process.
    pub pid: Option<u32>,
    /// How often it was started anew.
    pub restarts: u32,
    /// Calls that were not answered in time.
    pub late: u64,
    /// How its last process ended.
    pub last_end: Option<String>,
}

enum Phase {
    Starts,
    Runs(Arc<Running>, u32),
    Over(String),
}

struct State {
    phase: Phase,
    /// The last process that ended, and whether it was killed by others.
    ended: Option<(u64, bool)>,
    /// The host found that it hangs, and how.
    hung: Option<&'static str>,
    stop: bool,
    restarts: u32,
    late: u64,
    last_end: Option<String>,
}

struct Shared {
    options: Options,
    state: Mutex<State>,
    changed: Condvar,
}

/// A plug-in that is kept running. Dropping it ends it.
pub struct Host {
    shared: Arc<Shared>,
    info: Info,
    thread: Option<JoinHandle<()>>,
}

/// Wakes who waits for the link's end.
struct Watch(Arc<Shared>);

impl Service for Watch {
    fn call(&self, _: &Peer, _: Message, reply: Reply) {
        reply.refuse(Refusal::new(darner_syslink::Code::Unknown, "a host answers nothing"));
    }

    fn closed(&self, _: &Peer, _: &Reason) {
        // With the lock: the one who looks must not miss it.
        let _state = self.0.state.lock();
        self.0.changed.notify_all();
    }
}

impl Host {
    /// Starts a plug-in, and returns when it has said what it is; an error if that does not work the first time.
    pub fn start(launch: impl Launch + 'static, options: Options) -> Result<Host, String> {
        let state =
            State { phase: Phase::Starts, ended: None, hung: None, stop: false, restarts: 0, late: 0, last_end: None };
        let shared = Arc::new(Shared { options, state: Mutex::new(state), changed: Condvar::new() });
        let (tell, told) = channel();
        let for_thread = shared.clone();
        let thread = thread::Builder::new().name("plug-in".into()).spawn(move || {
            let (launch, paced, tell) = (Box::new(launch), Instant::now(), Some(tell));
            Keeper { shared: for_thread, launch, epoch: 0, failures: 0, kills: 0, paced, tell }.run();
        });
        let thread = Some(thread.map_err(|e| e.to_string())?);
        let info = told.recv().map_err(|e| e.to_string()).and_then(|info| info);
        match info {
            Ok(info) => Ok(Host { shared, info, thread }),
            Err(why) => {
                drop(thread.map(JoinHandle::join));
                Err(why)
            }
        }
    }

    /// What the plug-in said of itself when it was first started.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// How it is.
    pub fn health(&self) -> Health {
        let s = self.shared.state.lock();
        let (state, pid) = match &s.phase {
            Phase::Starts => ("starts".into(), None),
            Phase::Runs(_, pid) => ("runs".into(), Some(*pid)),
            Phase::Over(why) => (why.clone(), None),
        };
        Health { state, pid, restarts: s.restarts, late: s.late, last_end: s.last_end.clone() }
    }

    /// Returns when everything is durable.
    pub fn sync(&self) -> Result<(), Errno> {
        self.ask(true, &mut || true, |plugin, terms| plugin.sync(terms))
    }

    /// Makes a call, waiting for the plug-in to be there. `repeatable`: it may be carried out twice. `wanted`: see
    /// [`Terms::wanted`]; when it says no, the call is taken back, and the outcome is `EINTR`.
    pub(crate) fn ask<T>(
        &self,
        repeatable: bool,
        wanted: &mut dyn FnMut() -> bool,
        mut call: impl FnMut(&Running, &mut Terms<'_>) -> Result<T, CallError>,
    ) -> Result<T, Errno> {
        let begun = now_ns();
        let until = begun + self.shared.options.deadline.as_nanos() as u64;
        let mut terms = Terms { until, wanted };
        let mut asked = 0;
        loop {
            let running = self.running(&mut terms)?;
            let error = match call(&running, &mut terms) {
                Ok(found) => return Ok(found),
                Err(e) => e,
            };
            match error {
                CallError::Refused(no) => {
                    if !no.why.is_empty() {
                        tracing::warn!("{no}");
                    }
                    return Err(p::errno(&no));
                }
                CallError::TooLate => {
                    self.late(&running, begun);
                    return Err(Errno(libc::ETIMEDOUT));
                }
                CallError::Cancelled => {
                    self.given_up();
                    return Err(Errno(libc::EINTR));
                }
                CallError::Broken(_) => {
                    let killed = self.wait_for_end(&running, &mut terms);
                    asked += u32::from(!killed);
                    if !repeatable || asked >= ASKED_MAX {
                        return Err(Errno(libc::EIO));
                    }
                }
                other => {
                    tracing::warn!("{other}");
                    return Err(Errno(libc::EIO));
                }
            }
        }
    }

    fn running(&self, terms: &mut Terms<'_>) -> Result<Arc<Running>, Errno> {
        let mut state = self.shared.state.lock();
        loop {
            match &state.phase {
                Phase::Runs(running, _) => return Ok(running.clone()),
                Phase::Over(_) => return Err(Errno(libc::EIO)),
                Phase::Starts => {}
            }
            if now_ns() >= terms.until {
                state.late += 1;
                return Err(Errno(libc::ETIMEDOUT));
            }
            if !(terms.wanted)() {
                return Err(Errno(libc::EINTR));
            }
            self.shared.changed.wait_for(&mut state, terms.left().min(LOOK_EVERY));
        }
    }

    /// Waits until it is known how a process ended whose link broke; says whether somebody else killed it.
    fn wait_for_end(&self, running: &Running, terms: &mut Terms<'_>) -> bool {
        let mut state = self.shared.state.lock();
        loop {
            match state.ended {
                Some((epoch, killed)) if epoch >= running.epoch => return killed && epoch == running.epoch,
                _ if now_ns() >= terms.until || state.stop || !(terms.wanted)() => return false,
                _ => {}
            }
            self.shared.changed.wait_for(&mut state, terms.left().min(LOOK_EVERY));
        }
    }

    /// A call was not answered in time. If nothing was since it began, the plug-in hangs, and is ended.
    fn late(&self, running: &Running, begun: u64) {
        let mut state = self.shared.state.lock();
        state.late += 1;
        let current = matches!(&state.phase, Phase::Runs(r, _) if r.epoch == running.epoch);
        if current && running.heard() < begun {
            state.hung = Some("it did not answer in time");
        }
        self.shared.changed.notify_all();
    }

    /// Has the keeper look when a call is to be answered that nobody waits for.
    fn given_up(&self) {
        let _state = self.shared.state.lock();
        self.shared.changed.notify_all();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.shared.state.lock().stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The thread that starts processes and sees them end.
struct Keeper {
    shared: Arc<Shared>,
    launch: Box<dyn Launch>,
    epoch: u64,
    failures: usize,
    kills: u32,
    /// When all starts so far would have been due at that pace.
    paced: Instant,
    tell: Option<Sender<Result<Info, String>>>,
}

impl Keeper {
    fn run(mut self) {
        loop {
            let begun = Instant::now();
            self.epoch += 1;
            let (served, killed, how) = self.once();
            let mut state = self.shared.state.lock();
            if begun.elapsed() >= WELL {
                (self.failures, self.kills) = (0, 0);
            }
            let hung = state.hung.take();
            let killed = killed && hung.is_none();
            match killed {
                true if served => self.kills = 0,
                true => self.kills += 1,
                false => self.failures += 1,
            }
            state.ended = Some((self.epoch, killed));
            let pause = PAUSES_MS.get(self.failures.saturating_sub(1)).filter(|_| self.kills < KILLS_MAX);
            let over = match pause {
                _ if state.stop => Some("it is detached".into()),
                _ if self.tell.is_some() => Some(how.clone()),
                _ if !self.shared.options.restart => Some(format!("it has ended: {how}")),
                None => Some(format!("given up: it failed again and again, at last: {how}")),
                Some(_) => None,
            };
            state.last_end = Some(how.clone());
            state.phase = over.clone().map_or(Phase::Starts, Phase::Over);
            self.shared.changed.notify_all();
            if let Some(why) = over {
                if let Some(tell) = self.tell.take() {
                    let _ = tell.send(Err(how));
                } else if !state.stop {
                    tracing::error!("the plug-in is not started again; {why}");
                }
                return;
            }
            tracing::warn!("the plug-in has ended ({how}); it is started again");
            state.restarts += 1;
            let every = self.shared.options.start_every;
            self.paced = self.paced.max(begun) + every;
            let pause = Instant::now() + Duration::from_millis(pause.copied().unwrap_or(0));
            let pause = pause.max(self.paced - every * STARTS_AT_ONCE);
            while !state.stop && Instant::now() < pause {
                self.shared.changed.wait_until(&mut state, pause);
            }
        }
    }

    /// One life of the plug-in: whether it served, whether it was killed, how it ended.
    fn once(&mut self) -> (bool, bool, String) {
        let Launched { socket, arena, mut process, program } = match self.launch.launch() {
            Ok(launched) => launched,
            Err((killed, how)) => return (false, killed, how),
        };
        let watch = Arc::new(Watch(self.shared.clone()));
        let opened = arena
            .ring()
            .map_err(ConnectError::Io)
            .map(|ring| Ends { socket, ring: Some(ring) })
            .and_then(|ends| unix::connect_over(ends, SERVICE, &config(&self.shared.options), watch))
            .map_err(|e| (true, e.to_string()))
            .and_then(|link| {
                match Running::open(self.epoch, link.clone(), Arc::new(arena), self.shared.options.deadline) {
                    Ok(running) => Ok((link, running)),
                    Err(CallError::Refused(no)) => Err((false, no.why)),
                    Err(e) => Err((true, e.to_string())),
                }
            });
        let (link, running) = match opened {
            Ok(opened) => opened,
            Err((silent, why)) => {
                let (killed, how) = process.end();
                let why = match (silent, program) {
                    (false, _) => why,
                    (true, None) => format!("no plug-in answers: {why} ({how})"),
                    (true, Some(program)) => {
                        let program = program.display();
                        format!(
                            "no plug-in answers: {why}; {program} may be no plug-in (docs/vfs.md); how it ended: {how}"
                        )
                    }
                };
                return (false, killed, why);
            }
        };
        let running = Arc::new(running);
        let mut state = self.shared.state.lock();
        state.phase = Phase::Runs(running.clone(), process.id());
        if let Some(tell) = self.tell.take() {
            let _ = tell.send(Ok(running.info.clone()));
        }
        self.shared.changed.notify_all();
        let grace = self.shared.options.deadline.max(GRACE).as_nanos() as u64;
        while !state.stop && state.hung.is_none() && link.closed().is_none() {
            match running.owes_since().map(|until| until.saturating_add(grace).saturating_sub(now_ns())) {
                None => self.shared.changed.wait(&mut state),
                Some(0) => state.hung = Some("it left a call unanswered long after its deadline"),
                Some(left) => drop(self.shared.changed.wait_for(&mut state, Duration::from_nanos(left))),
            }
        }
        let hung = state.hung;
        state.phase = Phase::Starts;
        drop(state);
        let why = link.closed();
        running.close();
        let (killed, how) = process.end();
        let how = match (hung, why) {
            (Some(hung), _) => format!("{hung}, and was killed"),
            (None, Some(reason)) if reason.why != darner_syslink::Why::Lost => format!("{reason}; {how}"),
            _ => how,
        };
        (true, killed, how)
    }
}

fn config(options: &Options) -> Config {
    Config { handshake_ns: options.deadline.as_nanos() as u64, ..p::link_config() }
}
