//! The process that outlives the one that serves: it keeps descriptors (of /dev/fuse, of memory, of locks, of the sockets where
//! commands arrive) and starts the next worker when one dies. It opens no store and reads no request: one loop, and one thread as long as there is a worker.
//!
//! A worker that crashes again and again is given up: then all that is asked of its mounts is answered with EIO rather than never,
//! until `darner upgrade` asks for another try or the mounts are taken away.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

use darner_syslink::unix;
use parking_lot::Mutex;

use crate::control::{self, Answers, Request, Response, Tell};
use crate::error::{Context, Failure, Result};
use crate::keeper::{self, FailedUpgrade, Hear, Item, Items, Role, Say, Stats};
use crate::{mounts, systemd};

/// What the names of things that are kept begin with: a mount's connection, and a socket where commands arrive.
pub const MOUNT: &str = "mount ";
/// See [`MOUNT`].
pub const LISTENER: &str = "listener ";

/// Pauses before a worker that has crashed is started again; then it is given up.
const PAUSES_MS: [u64; 5] = [0, 100, 500, 1000, 2000];
/// A worker asks for what is kept before it does anything else: one that says nothing for so long never will. (Opening a store may
/// then take as long as it takes.)
const SILENCE: Duration = Duration::from_secs(20);
/// The same, where there is a program to fall back to.
const SILENCE_OF_THE_NEXT: Duration = Duration::from_secs(5);
/// A worker none of whose threads has run for so long, and that does not serve yet, waits for what will never come.
const STANDSTILL: Duration = Duration::from_secs(120);
/// The same, where there is a program to fall back to.
const STANDSTILL_OF_THE_NEXT: Duration = Duration::from_secs(10);
/// How often to look.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// One that was killed is not at fault: that many times in a row before it served.
const KILLS_MAX: u32 = 100;
/// A worker that has served so long did not crash at its start.
const WELL: Duration = Duration::from_secs(30);

enum Worker {
    Child(Child),
    /// Another supervisor started it.
    Other,
}

struct Running {
    worker: Worker,
    /// Readable when it has ended.
    pidfd: OwnedFd,
    socket: OwnedFd,
    socket_open: bool,
    /// Since when it runs without a word.
    silent: Option<Instant>,
    /// Since when its threads have run so often and no more.
    still: (Instant, u64),
    /// It was killed for either.
    hung: Option<String>,
    serving: Option<Instant>,
    /// It said that it would end, and whether another is to follow.
    next: Option<Option<PathBuf>>,
}

impl Running {
    fn new(worker: Worker, pid: u32, socket: OwnedFd) -> Result<Running> {
        let silent = matches!(worker, Worker::Child(_)).then(Instant::now);
        let pidfd = pidfd(pid)?;
        Ok(Running {
            worker,
            pidfd,
            socket,
            socket_open: true,
            silent,
            still: (Instant::now(), 0),
            hung: None,
            serving: None,
            next: None,
        })
    }

    /// How long it may still go on without a sign of life; `None`: it serves, and is not looked after, or it was ended.
    fn left(&mut self, silence: Duration, standstill: Duration) -> Option<(Duration, String)> {
        let Worker::Child(child) = &self.worker else { return None };
        if self.serving.is_some() || self.hung.is_some() {
            return None;
        }
        if let Some(since) = self.silent {
            let how = format!("said nothing for {} seconds", silence.as_secs());
            return Some((silence.saturating_sub(since.elapsed()), how));
        }
        match runs(child.id()) {
            Some(n) if n == self.still.1 => {}
            n => self.still = (Instant::now(), n.unwrap_or(0)),
        }
        let how = format!("stood still for {} seconds before it served", standstill.as_secs());
        Some((standstill.saturating_sub(self.still.0.elapsed()), how))
    }

    /// Ends it, with all that it has started.
    fn end(&mut self, why: String) {
        self.hung = Some(why);
        if let Worker::Child(child) = &self.worker {
            // SAFETY: a plain system call; it leads a session (`keeper::start`), and nobody has waited for it yet.
            unsafe { libc::kill(-(child.id() as i32), libc::SIGKILL) };
        }
    }
}

struct Supervisor {
    role: Role,
    program: PathBuf,
    /// The one before an upgrade that has not proved itself yet.
    fallback: Option<PathBuf>,
    failed: Option<FailedUpgrade>,
    arguments: Vec<OsString>,
    items: Items,
    systemd: systemd::Store,
    stats: Stats,
    crashes: usize,
    kills: u32,
    died: Option<Instant>,
    ever_served: bool,
    signals: OwnedFd,
}

/// Starts a worker with these arguments (or watches the one whose supervisor died) and sees to it that there is one, until one ends
/// in order. `ready`: where the first one tells how it went. Returns how the last one ended.
pub fn run(role: Role, arguments: Vec<OsString>, ready: Option<OwnedFd>) -> Result<i32> {
    let (systemd, items) = systemd::Store::find();
    let ever_served = !items.is_empty();
    let mut supervisor = Supervisor {
        role,
        program: keeper::program()?,
        fallback: None,
        failed: None,
        arguments,
        items,
        systemd,
        stats: Stats::default(),
        crashes: 0,
        kills: 0,
        died: None,
        ever_served,
        signals: signals()?,
    };
    let mut running = match std::env::var(keeper::WORKER).ok().and_then(|v| v.parse().ok()) {
        Some(pid) => supervisor.take_over(pid)?,
        None => supervisor.start(ready)?,
    };
    loop {
        let status = supervisor.watch(&mut running)?;
        if let Some(code) = supervisor.is_over(&running, status) {
            if !supervisor.ever_served {
                supervisor.end_mounts();
            }
            return Ok(code);
        }
        // (Since the last one that served.)
        supervisor.died.get_or_insert_with(Instant::now);
        supervisor.learn(&running, status);
        drop(running);
        running = loop {
            if !supervisor.may_start() {
                tracing::error!("{}; until then, what is asked fails with EIO", supervisor.how_to_go_on());
                match supervisor.refuse()? {
                    true => (supervisor.crashes, supervisor.kills) = (0, 0),
                    false => return Ok(1),
                }
            }
            match supervisor.start(None) {
                Ok(running) => break running,
                Err(e) => {
                    tracing::error!("{e}");
                    supervisor.crashes += 1;
                    supervisor.fall_back(&e.to_string());
                }
            }
        };
    }
}

impl Supervisor {
    fn start(&mut self, ready: Option<OwnedFd>) -> Result<Running> {
        let (socket, theirs) = keeper::pair()?;
        let child = keeper::start(&self.program, self.role.worker, &self.arguments, |command| {
            keeper::pass(command, keeper::SOCKET, &theirs);
            if let Some(ready) = &ready {
                keeper::pass(command, crate::cmd::daemon::READY, ready);
            }
        })?;
        let pid = child.id();
        Running::new(Worker::Child(child), pid, socket)
    }

    fn take_over(&mut self, pid: u32) -> Result<Running> {
        let socket = keeper::inherited(keeper::SOCKET).ok_or_else(|| Failure::new("there is no worker to watch"))?;
        self.ever_served = true;
        Running::new(Worker::Other, pid, socket)
    }

    /// Serves the worker until it has ended; `None`: how, is not known.
    fn watch(&mut self, r: &mut Running) -> Result<Option<ExitStatus>> {
        loop {
            let socket = if r.socket_open { r.socket.as_raw_fd() } else { -1 };
            let (silence, standstill) = self.patience();
            let left = r.left(silence, standstill);
            let most = left.as_ref().map(|(left, _)| (*left).min(LOOK_EVERY));
            let [said, ended, signalled] = poll([socket, r.pidfd.as_raw_fd(), self.signals.as_raw_fd()], most)?;
            if signalled {
                self.forward(r);
            }
            // Its last words are heard before its end is.
            if said {
                r.socket_open = self.hear(r);
                r.silent = r.silent.filter(|_| !r.socket_open);
            } else if ended {
                return Ok(match &mut r.worker {
                    Worker::Child(child) => Some(child.wait()?),
                    Worker::Other => None,
                });
            } else if let Some((Duration::ZERO, how)) = left {
                r.end(how);
            }
        }
    }

    fn patience(&self) -> (Duration, Duration) {
        match self.fallback {
            Some(_) => (SILENCE_OF_THE_NEXT, STANDSTILL_OF_THE_NEXT),
            None => (SILENCE, STANDSTILL),
        }
    }

    /// A message of the worker; `false`: there will be no more.
    fn hear(&mut self, r: &mut Running) -> bool {
        match keeper::receive::<Say>(&r.socket) {
            Ok(Some((said, fd))) => {
                if let Err(e) = self.heed(r, said, fd) {
                    tracing::warn!("worker: {e}");
                }
                true
            }
            Ok(None) => false,
            Err(e) => {
                tracing::warn!("worker: {e}");
                false
            }
        }
    }

    fn heed(&mut self, r: &mut Running, said: Say, fd: Option<OwnedFd>) -> Result<()> {
        match (said, fd) {
            (Say::List, _) => {
                for (key, item) in &self.items {
                    let out = Hear::Item { key: key.clone(), text: item.text.clone() };
                    keeper::send(&r.socket, &out, Some(item.fd.as_fd()))?;
                }
                let end = Hear::End {
                    stats: self.stats,
                    pid: std::process::id(),
                    gone_ms: self.died.map(|since| since.elapsed().as_millis() as u64),
                    failed: self.failed.clone(),
                };
                keeper::send(&r.socket, &end, None)?;
            }
            (Say::Keep { key, text }, Some(fd)) => {
                let item = Item { text, fd };
                self.systemd.keep(&key, &item);
                self.items.insert(key, item);
            }
            (Say::Keep { key, .. }, None) => return Err(Failure::new(format!("{key} came without a descriptor"))),
            (Say::Drop { key }, _) => {
                self.systemd.drop(&key);
                self.items.remove(&key);
            }
            (Say::Serving { stats }, _) => {
                self.stats.restarts = self.stats.restarts.max(stats.restarts);
                self.stats.longest_pause_ms = self.stats.longest_pause_ms.max(stats.longest_pause_ms);
                if let Some(died) = self.died.take() {
                    let pause = died.elapsed().as_millis() as u64;
                    self.stats.longest_pause_ms = self.stats.longest_pause_ms.max(pause);
                    tracing::info!(pause_ms = pause, "served again");
                }
                (self.ever_served, self.kills, self.fallback) = (true, 0, None);
                self.systemd.ready();
                r.serving = Some(Instant::now());
            }
            (Say::Next { program }, _) => r.next = Some(Some(program)),
            (Say::Bye, _) => r.next = Some(None),
        }
        Ok(())
    }

    /// Whoever ends us means the worker.
    fn forward(&self, r: &Running) {
        // SAFETY: signalfd_siginfo is plain data; the read fills it.
        let info = unsafe {
            let mut info: libc::signalfd_siginfo = std::mem::zeroed();
            let n = libc::read(self.signals.as_raw_fd(), (&raw mut info).cast(), size_of_val(&info));
            if n < size_of_val(&info) as isize { None } else { Some(info) }
        };
        if info.is_some() {
            let signal = libc::SIGTERM;
            // SAFETY: plain system call; the pidfd is the worker's, whatever its number is by now.
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, r.pidfd.as_raw_fd(), signal, 0, 0) };
        }
    }

    /// The exit code, if the worker's end is that of all.
    fn is_over(&self, r: &Running, status: Option<ExitStatus>) -> Option<i32> {
        let code = status.and_then(|s| s.code()).unwrap_or(1);
        let over = matches!(r.next, Some(None)) || !self.ever_served || self.items.is_empty();
        over.then_some(code)
    }

    /// Takes away what a worker mounted that never came to serve.
    fn end_mounts(&mut self) {
        for (mountpoint, item) in keeper::take(&mut self.items, MOUNT) {
            drop(item);
            if let Err(e) = darner_fuse::unmount(Path::new(&mountpoint), true) {
                tracing::warn!("{e}");
            }
        }
    }

    fn learn(&mut self, r: &Running, status: Option<ExitStatus>) {
        use std::os::unix::process::ExitStatusExt;
        self.stats.restarts += 1;
        if let Some(Some(program)) = &r.next {
            tracing::info!(program = %program.display(), "the worker makes way for the next one");
            self.fallback = Some(std::mem::replace(&mut self.program, program.clone())).filter(|old| old != program);
            (self.crashes, self.kills, self.failed) = (0, 0, None);
            return;
        }
        let well = r.serving.is_some_and(|since| since.elapsed() >= WELL);
        let killed = r.hung.is_none() && status.is_none_or(|s| s.signal() == Some(libc::SIGKILL));
        let how = match (&r.hung, status) {
            (Some(why), _) => format!("{why}, and was killed"),
            (None, Some(status)) => format!("ended ({status})"),
            (None, None) => "ended".into(),
        };
        tracing::warn!("the worker {how}; another one is started");
        if well {
            (self.crashes, self.kills) = (0, 0);
        }
        match killed {
            true => self.kills += u32::from(r.serving.is_none()),
            false => self.crashes += 1,
        }
        if r.serving.is_none() {
            self.fall_back(&format!("it {how} before it served"));
        }
    }

    /// The program that an upgrade brought never served.
    fn fall_back(&mut self, why: &str) {
        if let Some(old) = self.fallback.take() {
            tracing::warn!("the program before is tried again: {}", old.display());
            let program = std::mem::replace(&mut self.program, old);
            self.failed = Some(FailedUpgrade { program, why: why.into() });
        }
    }

    /// Waits as long as is fit after the last crash; `false`: there were too many.
    fn may_start(&self) -> bool {
        if self.kills >= KILLS_MAX {
            return false;
        }
        if self.crashes == 0 {
            return true;
        }
        let Some(pause) = PAUSES_MS.get(self.crashes - 1) else { return false };
        std::thread::sleep(Duration::from_millis(*pause));
        true
    }

    /// What is said of a worker that was given up.
    fn how_to_go_on(&self) -> String {
        let mounts: Vec<&str> = self.items.keys().filter_map(|key| key.strip_prefix(MOUNT)).collect();
        // (Attachments are upgraded with the mount that they are in, if it is one of ours.)
        let within =
            |m: &mounts::Mounted| m.is_ours() && mounts.iter().any(|at| Path::new(at).starts_with(&m.mountpoint));
        let found = mounts::all().ok().and_then(|all| all.into_iter().rev().find(within));
        let of = found.map_or_else(
            || mounts.first().map_or("MNT".into(), |at| at.to_string()),
            |m| m.mountpoint.display().to_string(),
        );
        format!(
            "the {} of {} crashed again and again, and was given up (its log says why): `darner upgrade {of}` starts it again",
            self.role.what,
            mounts.join(", ")
        )
    }

    /// Answers what is asked of mounts with an error, until the other end of `asked` is closed (`true`) or no mount is left.
    fn refuse_until(&mut self, asked: &OwnedFd) -> Result<bool> {
        loop {
            let waits = |(key, item): (&String, &Item)| (key.clone(), item.fd.as_raw_fd());
            let mounts = self.items.iter().filter(|(key, _)| key.starts_with(MOUNT)).map(waits);
            let (mounts, mut fds): (Vec<String>, Vec<RawFd>) = mounts.unzip();
            if mounts.is_empty() {
                return Ok(false);
            }
            fds.extend([asked.as_raw_fd(), self.signals.as_raw_fd()]);
            let ready = poll_all(&fds, None)?;
            match ready[mounts.len()..] {
                [_, true] => return Ok(false),
                [true, _] => return Ok(true),
                _ => {}
            }
            for (key, _) in mounts.iter().zip(&ready).filter(|(_, ready)| **ready) {
                match darner_fuse::refuse_all(&self.items[key].fd, libc::EIO) {
                    Ok(true) => {}
                    Ok(false) => drop(self.items.remove(key)),
                    Err(e) => {
                        tracing::error!("{key}: {e}");
                        self.items.remove(key);
                    }
                }
            }
        }
    }

    /// Answers everything with an error, until another try is asked for (`true`) or no mount is left.
    fn refuse(&mut self) -> Result<bool> {
        for (_, item) in self.items.iter().filter(|(key, _)| key.starts_with(MOUNT)) {
            // What the worker had read is asked again.
            if let Err(e) = darner_fuse::resend(&item.fd) {
                tracing::warn!("{e}");
            }
        }
        let (asked, asking) = keeper::pair()?;
        let told = self.how_to_go_on();
        let given_up = Arc::new(GivenUp { told, program: Mutex::default(), asked: Mutex::new(Some(asking)) });
        let mut listeners = Vec::new();
        for (key, item) in self.items.iter().filter(|(key, _)| key.starts_with(LISTENER)) {
            match control::listen_over(item.fd.try_clone()?, given_up.clone()) {
                Ok(listener) => listeners.push(listener),
                Err(e) => tracing::error!("{key}: {e}"),
            }
        }
        let goes_on = self.refuse_until(&asked);
        // (The next worker listens there.)
        listeners.into_iter().for_each(unix::Listener::leave);
        self.program = given_up.program.lock().take().unwrap_or_else(|| self.program.clone());
        self.failed = None;
        goes_on
    }
}

/// Answers commands while there is no worker; notes the program to try next, if one asks for that.
struct GivenUp {
    told: String,
    program: Mutex<Option<PathBuf>>,
    /// Is closed then.
    asked: Mutex<Option<OwnedFd>>,
}

impl Answers for Arc<GivenUp> {
    fn answer(&self, request: Request, _: &mut Tell<'_>) -> Result<Response> {
        Ok(match request {
            Request::Upgrade { .. } => Response::Closing,
            _ => Response::GivenUp(self.told.clone()),
        })
    }

    fn answered(&self, request: &Request) {
        if let Request::Upgrade { program } = request {
            *self.program.lock() = Some(program.clone());
            *self.asked.lock() = None;
        }
    }
}

/// Grows while threads of a process run: how often one has given up a CPU or lost it, and ticks of CPU time; `None`: it is
/// stopped, or not to be seen.
fn runs(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // (Behind its name, which may be any.)
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    let mut sum = ticks() + ticks();
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        // (A thread may end meanwhile.)
        let status = std::fs::read_to_string(task.ok()?.path().join("status")).unwrap_or_default();
        for line in status.lines() {
            match line.split_once(':').map(|(name, value)| (name, value.trim())) {
                Some(("State", value)) if value.starts_with(['T', 't']) => return None,
                Some(("voluntary_ctxt_switches" | "nonvoluntary_ctxt_switches", n)) => sum += n.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
    Some(sum)
}

/// Whether a process ends in that time, or has. (Somebody else may have to see to what is left of it.)
pub(crate) fn ends_within(pid: u32, time: Duration) -> bool {
    let Ok(pidfd) = pidfd(pid) else { return true };
    let mut wait = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd.
    unsafe { libc::poll(&mut wait, 1, time.as_millis() as i32) > 0 }
}

fn pidfd(pid: u32) -> Result<OwnedFd> {
    // SAFETY: a plain system call.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error()).cant(|| format!("watch process {pid}"));
    }
    // SAFETY: the descriptor is new and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Blocks the signals that mean *end* in this thread and those it starts.
pub(crate) fn block_end_signals() -> libc::sigset_t {
    // SAFETY: the set is initialised by sigemptyset; the calls can't fail for valid signals.
    unsafe {
        let mut signals = std::mem::zeroed();
        libc::sigemptyset(&mut signals);
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            libc::sigaddset(&mut signals, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &signals, std::ptr::null_mut());
        signals
    }
}

/// They, as something to read.
fn signals() -> Result<OwnedFd> {
    let set = block_end_signals();
    // SAFETY: a valid set; the descriptor is new and ours.
    unsafe {
        match libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(std::io::Error::last_os_error().into()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

fn poll<const N: usize>(fds: [RawFd; N], most: Option<Duration>) -> Result<[bool; N]> {
    let ready = poll_all(&fds, most)?;
    Ok(std::array::from_fn(|n| ready[n]))
}

/// Waits until there is something to read from one of them, or for so long; negative ones are passed over.
fn poll_all(fds: &[RawFd], most: Option<Duration>) -> Result<Vec<bool>> {
    // (A wait that ends early comes back with nothing left of a millisecond, over and over.)
    let most = most.map_or(-1, |most| i32::try_from(most.as_millis() + 1).unwrap_or(i32::MAX));
    let mut waits: Vec<libc::pollfd> =
        fds.iter().map(|fd| libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 }).collect();
    loop {
        // SAFETY: an array of pollfds, ours for the call.
        match unsafe { libc::poll(waits.as_mut_ptr(), waits.len() as libc::nfds_t, most) } {
            -1 if std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted => {}
            -1 => return Err(std::io::Error::last_os_error().into()),
            _ => return Ok(waits.iter().map(|w| w.revents != 0).collect()),
        }
    }
}
