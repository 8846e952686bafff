//! The process behind an attachment: it has a mount of its own, whose requests it passes to a plug-in. It outlives the daemon of the
//! store around it and needs nothing of it; killed, its supervisor starts the next one, which goes on with the mount.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use darner_fs::Tid;
use darner_fuse::{Config, Ended, MountOptions, Session, Stopper, abi};
use darner_vfs::{Arena, Front, Host, Launch, Launched, Options, Process};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::chatter;
use crate::cli::Attach;
use crate::control::{self, Answers, At, Callee, Listener, Request, Response, Tell};
use crate::daemon::Daemon;
use crate::errand::Errands;
use crate::error::{Context, Failure, Result};
use crate::handed::{self, Handed};
use crate::keeper::{self, FailedUpgrade, Keeper};
use crate::mounts::{self, Mounted};
use crate::place::Place;
use crate::supervisor::{LISTENER, MOUNT, block_end_signals, ends_within};
use crate::when::local;

/// What /proc/mounts says of attachments.
pub const KIND: &str = "fuse.darner-vfs";
/// Calls that move bytes at a time.
const SLOTS: u16 = 24;
/// Requests that are worked on at a time; as many may wait for a slow plug-in before the others do.
const THREADS: usize = 8;
/// The kernel's readahead, bytes.
const READAHEAD: u32 = 4 << 20;
/// How long a process may take to end by itself when its link has.
const GRACE: Duration = Duration::from_millis(300);

/// How long `detach` waits for the host to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a host may take to answer: it asks nobody for that.
const ANSWER: Duration = Duration::from_secs(5);
/// How often to look for attachments whose processes were all killed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What the next process is to know of the mount.
#[derive(Serialize, Deserialize)]
struct Kept {
    read_only: bool,
    negotiated: String,
}

/// An attachment, as `darner status` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Attachment {
    /// Where.
    pub directory: PathBuf,
    /// What the plug-in calls itself.
    pub name: String,
    /// Whether it can be changed.
    pub read_only: bool,
    /// `runs`, `starts`, or why it is given up.
    pub state: String,
    /// The plug-in's process.
    pub plugin_pid: Option<u32>,
    /// The process that serves the mount.
    pub host_pid: u32,
    /// When that began, RFC 3339, local.
    #[serde(default)]
    pub started: Option<String>,
    /// Its version.
    pub version: String,
    /// The program that it was started from.
    #[serde(default)]
    pub program: Option<PathBuf>,
    /// The last upgrade, if it came to nothing.
    #[serde(default)]
    pub failed_upgrade: Option<FailedUpgrade>,
    /// The one that would start another.
    pub supervisor_pid: Option<u32>,
    /// How often the plug-in was started anew.
    pub restarts: u32,
    /// Calls that it did not answer in time.
    pub late_calls: u64,
    /// How its last process ended.
    pub last_end: Option<String>,
    /// What of the sandbox this machine lacks.
    pub sandbox_lacks: Vec<String>,
    /// What was handed over to it.
    #[serde(default)]
    pub files: Vec<Handed>,
}

/// Serves until the mount ends. `ready` is called when it answers.
pub fn run(c: &Attach, ready: &dyn Fn()) -> Result<()> {
    // Before there is any other thread.
    let signals = block_end_signals();
    let (keeper, mut items) = Keeper::find(keeper::ATTACHMENT)?;
    let (files, handed) = handed::open(c, &keeper, &mut items)?;
    let lacks = Arc::new(Mutex::new(Vec::new()));
    let launcher = Launcher { attach: c.clone(), files, lacks: lacks.clone() };
    let options = Options { deadline: c.deadline, restart: !c.no_restart, ..Options::default() };
    let host = Host::start(launcher, options).map_err(|why| no_plugin(c, &why))?;
    let front = Arc::new(Front::new(host, !c.writable));
    let key = format!("{MOUNT}{}", c.directory.display());
    let session = match items.remove(&key) {
        Some(item) => {
            let kept: Kept = serde_json::from_str(&item.text)?;
            let session = Session::adopt(item.fd, kept.negotiated.parse()?)?;
            session.resend()?;
            session
        }
        None => mount(c, &front, &keeper, &key)?,
    };
    let commands = Commands(Arc::new(Inner {
        front: front.clone(),
        keeper: keeper.clone(),
        directory: c.directory.clone(),
        lacks,
        handed,
        goes_on: keeper.is_there() && goes_on(&session),
        stopper: session.stopper(),
        next: Mutex::default(),
    }));
    let kept = |name: &str| items.remove(&format!("{LISTENER}{name}")).map(|item| item.fd);
    let _listener = Listener::new(&keeper, kept, &address(&mounted(&c.directory)?)?, commands.clone())?;
    let (ending, at) = (keeper.clone(), c.directory.clone());
    std::thread::Builder::new().name("signals".into()).spawn(move || heed(&signals, &ending, &at))?;
    keeper.serving();
    ready();
    let served = session.run(THREADS, Duration::from_micros(50), &*front);
    if front.is_writable()
        && let Err(e) = front.host().sync()
    {
        tracing::error!("the last writes may be lost: {e}");
    }
    if let (Ok(Ended::Stopped), Some(program)) = (&served, commands.0.next.lock().take()) {
        // (If that fails, another one of this program follows.)
        keeper.next(program)?;
    }
    keeper.drop(&key);
    keeper.bye();
    served?;
    tracing::info!(directory = %c.directory.display(), "detached");
    Ok(())
}

fn no_plugin(c: &Attach, why: &str) -> Failure {
    match (&c.plugin, &c.of) {
        (Some(name), Some(file)) => Failure::new(format!("{name} can't show {}: {why}", file.display())),
        _ => Failure::new(why),
    }
}

/// Whether another process can go on with the mount.
fn goes_on(session: &Session) -> bool {
    session.negotiated().flags & abi::init::HAS_RESEND != 0
}

/// Told to end, takes the mount away; who uses it may finish. Told again, ends at once.
fn heed(signals: &libc::sigset_t, keeper: &Keeper, directory: &Path) {
    for _ in 0..2 {
        let mut signal = 0;
        // SAFETY: valid pointers; the signals are blocked in all threads.
        unsafe { libc::sigwait(signals, &mut signal) };
        if let Err(e) = Errands::default().unmount(directory, true) {
            tracing::warn!("{e}");
        }
    }
    keeper.bye();
    std::process::exit(0);
}

fn mount(c: &Attach, front: &Front, keeper: &Keeper, key: &str) -> Result<Session> {
    let read_only = !front.is_writable();
    let options = MountOptions {
        source: front.host().info().name.clone(),
        subtype: KIND.strip_prefix("fuse.").map(String::from),
        read_only,
        // What a plug-in says of owners is worth nothing.
        nosuid: true,
        nodev: true,
        max_read: darner_vfs::SLOT as u32,
        ..MountOptions::default()
    };
    let claimed = mounts::claim(&c.directory, |there| there.kind == KIND)?;
    let fd = darner_fuse::mount(&c.directory, &options)?;
    drop(claimed);
    let slot = darner_vfs::SLOT as u32;
    let config = Config { max_write: slot, max_read: slot, ..Config::default() };
    // The contents of what is not remembered for long may change with its times.
    let config = match front.host().info().valid < Duration::from_secs(60) {
        true => config.without(abi::init::EXPLICIT_INVAL_DATA).with(abi::init::AUTO_INVAL_DATA),
        false => config,
    };
    let session = Session::init(fd, config.without(abi::init::POSIX_ACL)).inspect_err(|_| {
        let _ = darner_fuse::unmount(&c.directory, true);
    })?;
    let kept = Kept { read_only, negotiated: session.negotiated().to_string() };
    if !goes_on(&session) {
        tracing::warn!("this kernel (before 6.9) sends no request again: the attachment ends with this process");
    } else {
        keeper.keep(key, &serde_json::to_string(&kept)?, &session.duplicate()?)?;
    }
    // SAFETY: this call can't fail.
    if unsafe { libc::geteuid() } == 0
        && let Err(e) = darner_fuse::set_readahead(&c.directory, READAHEAD)
    {
        tracing::debug!("readahead stays as it is: {e}");
    }
    Ok(session)
}

/// Starts the plug-in's process.
struct Launcher {
    attach: Attach,
    files: Vec<File>,
    lacks: Arc<Mutex<Vec<String>>>,
}

impl Launcher {
    fn arguments(&self) -> Vec<OsString> {
        let c = &self.attach;
        let mut args: Vec<OsString> = vec![format!("--memory={}", c.memory).into()];
        args.push(format!("--processes={}", c.processes).into());
        args.extend(c.writable.then(|| "--writable".into()));
        args.extend(c.plugin.as_ref().map(|name| format!("--name={name}").into()));
        if !c.program.is_empty() {
            args.push("--".into());
            args.extend(c.program.iter().cloned());
        }
        args
    }

    /// `killed`: whether somebody killed it before it was there.
    fn start(&self, killed: &mut bool) -> Result<Launched> {
        let (ours, theirs) = keeper::pair()?;
        let arena = Arena::new(SLOTS)?;
        let (report, for_report) = std::io::pipe()?;
        // Never the log itself, which it could fill and truncate.
        let (printed, prints) = match self.attach.log {
            Some(_) => std::io::pipe().map(|(from, to)| (Some(from), Stdio::from(to)))?,
            None => (None, Stdio::inherit()),
        };
        let child = keeper::start(&keeper::program()?, "plugin", &self.arguments(), |command| {
            command.env_clear();
            for variable in ["PATH", "LANG", "TZ", "RUST_BACKTRACE"] {
                command.envs(std::env::var_os(variable).map(|value| (variable, value)));
            }
            keeper::pass(command, darner_vfs::LINK, &theirs);
            keeper::pass(command, darner_vfs::ARENA, &std::os::fd::AsFd::as_fd(&arena));
            let mut numbers = Vec::new();
            for file in &self.files {
                keeper::pass(command, darner_vfs::FILES, file);
                numbers.push(file.as_raw_fd().to_string());
            }
            command.env(darner_vfs::FILES, numbers.join(","));
            command.stdout(for_report).stderr(prints);
            // SAFETY: plain system calls between fork and exec.
            unsafe {
                command.pre_exec(|| {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    darner_vfs::leave_a_cpu();
                    Ok(())
                })
            };
        })?;
        let mut process = Plugin { pid: child.id(), child };
        printed.map_or(Ok(()), chatter::log)?;
        let (mut lacks, mut failed) = (None, None);
        for line in BufReader::new(report).lines() {
            match serde_json::from_str(&line?)? {
                Told::Pid(pid) => process.pid = pid,
                Told::Lacks(told) => lacks = Some(told),
                Told::Failed(why) => failed = Some(why),
            }
        }
        let (None, Some(lacks)) = (&failed, lacks) else {
            let how;
            (*killed, how) = process.end();
            return Err(Failure::new(failed.unwrap_or_else(|| format!("no sandbox was made ({how})"))));
        };
        for lack in &lacks {
            tracing::warn!("the sandbox is incomplete: {lack}");
        }
        *self.lacks.lock() = lacks;
        let program = self.attach.program.first().map(PathBuf::from);
        Ok(Launched { socket: ours, arena, process: Box::new(process), program })
    }
}

/// What the sandbox tells the host before the plug-in begins, a line of JSON each.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Told {
    /// The plug-in's process.
    Pid(u32),
    /// What the kernel refused.
    Lacks(Vec<String>),
    /// Why there will be no plug-in.
    Failed(String),
}

impl Launch for Launcher {
    fn launch(&self) -> std::result::Result<Launched, (bool, String)> {
        let mut killed = false;
        self.start(&mut killed).map_err(|e| (killed, e.to_string()))
    }
}

struct Plugin {
    /// The sandbox, which ends with the plug-in, and the plug-in with it.
    child: Child,
    pid: u32,
}

impl Process for Plugin {
    fn id(&self) -> u32 {
        self.pid
    }

    fn end(&mut self) -> (bool, String) {
        let by_itself = ends_within(self.child.id(), GRACE);
        if !by_itself {
            let _ = self.child.kill();
        }
        match self.child.wait() {
            Ok(_) if !by_itself => (false, "it was ended, as it did not end with its link".into()),
            Ok(status) => (status.signal() == Some(libc::SIGKILL), status.to_string()),
            Err(e) => (false, e.to_string()),
        }
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn name(mount: &Mounted) -> String {
    format!("darner/attachment/{}", mount.device)
}

fn address(mount: &Mounted) -> Result<SocketAddr> {
    Ok(SocketAddr::from_abstract_name(name(mount))?)
}

fn mounted(directory: &Path) -> Result<Mounted> {
    let mount = mounts::all()?.into_iter().rev().find(|m| m.mountpoint == directory && m.kind == KIND);
    mount.ok_or_else(|| Failure::new(format!("nothing is attached to {}", directory.display())))
}

/// Answers commands.
#[derive(Clone)]
struct Commands(Arc<Inner>);

struct Inner {
    front: Arc<Front>,
    keeper: Keeper,
    directory: PathBuf,
    lacks: Arc<Mutex<Vec<String>>>,
    handed: Vec<Handed>,
    goes_on: bool,
    stopper: Stopper,
    /// The program that is to go on from here.
    next: Mutex<Option<PathBuf>>,
}

impl Answers for Commands {
    fn answer(&self, request: Request, _: &mut Tell<'_>) -> Result<Response> {
        match request {
            Request::Attachment => Ok(Response::Attachment(Box::new(self.0.status()))),
            // (Once this is answered.)
            Request::Upgrade { .. } if self.0.goes_on => Ok(Response::Done),
            Request::Upgrade { .. } => Err(Failure::new("no other process can go on here: detach, and attach again")),
            _ => Err(Failure::new("this is an attachment, which does not know the request")),
        }
    }

    /// Requests that were read are answered, the others wait for the next process: nothing fails.
    fn answered(&self, request: &Request) {
        if let Request::Upgrade { program } = request {
            *self.0.next.lock() = Some(program.clone());
            self.0.stopper.stop();
        }
    }
}

impl Inner {
    fn status(&self) -> Attachment {
        let health = self.front.host().health();
        Attachment {
            directory: self.directory.clone(),
            name: self.front.host().info().name.clone(),
            read_only: !self.front.is_writable(),
            state: health.state,
            plugin_pid: health.pid,
            host_pid: std::process::id(),
            started: self.keeper.started().map(|ns| local(Tid(ns))),
            version: env!("CARGO_PKG_VERSION").into(),
            program: keeper::program().ok(),
            failed_upgrade: self.keeper.failed_upgrade(),
            supervisor_pid: self.keeper.stats().map(|(_, pid)| pid),
            restarts: health.restarts,
            late_calls: health.late,
            last_end: health.last_end,
            sandbox_lacks: self.lacks.lock().clone(),
            files: self.handed.clone(),
        }
    }
}

/// All attachments at and below a directory, those within others last. One that can't be asked says so in its state.
pub fn below(directory: &Path) -> Result<Vec<Attachment>> {
    let here = mounts::all()?.into_iter().filter(|m| m.kind == KIND && m.mountpoint.starts_with(directory));
    Ok(here.map(|m| ask(&m).unwrap_or_else(|e| silent(&m, &e))).collect())
}

fn callee(mount: &Mounted) -> Result<Callee<'static>> {
    let what = format!("the host of {}", mount.mountpoint.display());
    Ok(Callee { at: At::Socket(address(mount)?), what, owners: mount.user.into_iter().collect(), patience: ANSWER })
}

fn ask(mount: &Mounted) -> Result<Attachment> {
    match control::call_at(&callee(mount)?, &Request::Attachment)? {
        Some(Response::Attachment(a)) => Ok(*a),
        Some(_) => Err(Failure::new("its host is of another version")),
        None => Err(Failure::new("its processes are gone")),
    }
}

/// How the attachment to this directory is.
pub fn at(directory: &Path) -> Result<Attachment> {
    ask(&mounted(directory)?)
}

/// What a user means by a path.
pub enum Meant {
    /// A store, as [`mounts::store_of`] finds it.
    Store(Place),
    /// An attachment outside of every mount: its directory.
    Attachment(PathBuf),
}

/// Finds out what a path means; an error if it is neither.
pub fn meant(path: &Path) -> Result<Meant> {
    mounts::store_of(path).map(Meant::Store).or_else(|no| around(path).map(Meant::Attachment).ok_or(no))
}

/// The directory of the innermost attachment that a path is in.
fn around(path: &Path) -> Option<PathBuf> {
    let (path, all) = (mounts::absolute(path).ok()?, mounts::all().ok()?);
    let within = all.into_iter().filter(|m| path.starts_with(&m.mountpoint));
    within.max_by_key(|m| m.mountpoint.as_os_str().len()).filter(|m| m.kind == KIND).map(|m| m.mountpoint)
}

/// Has the host make way for one of this program, also after it was given up.
pub fn replace(directory: &Path, program: &Path) -> Result<()> {
    match control::call_at(&callee(&mounted(directory)?)?, &Request::Upgrade { program: program.into() })? {
        Some(_) => Ok(()),
        None => Err(Failure::new(format!("the processes of {} are gone", directory.display()))),
    }
}

fn silent(mount: &Mounted, why: &Failure) -> Attachment {
    Attachment {
        directory: mount.mountpoint.clone(),
        name: mount.source.display().to_string(),
        read_only: true,
        state: format!("can't be asked: {why}"),
        plugin_pid: None,
        host_pid: 0,
        started: None,
        version: String::new(),
        program: None,
        failed_upgrade: None,
        supervisor_pid: None,
        restarts: 0,
        late_calls: 0,
        last_end: None,
        sandbox_lacks: Vec::new(),
        files: Vec::new(),
    }
}

/// Ends one, and returns when its processes have ended (unless lazily): each has the files that it was handed.
pub fn detach(directory: &Path, lazy: bool) -> Result<()> {
    end(directory, lazy, !lazy)
}

/// Ends one that has just been attached and does not answer, whoever looks at it meanwhile.
pub fn take_back(directory: &Path) -> Result<()> {
    end(directory, true, true)
}

fn end(directory: &Path, lazy: bool, wait: bool) -> Result<()> {
    let mount = mounted(directory)?;
    let processes = ask(&mount).ok().map(|a| [Some(a.host_pid), a.supervisor_pid, a.plugin_pid]);
    darner_fuse::unmount(directory, lazy)?;
    for pid in processes.into_iter().flatten().flatten().filter(|_| wait) {
        ends_within(pid, PATIENCE);
    }
    Ok(())
}

/// Takes away attachments in the daemon's mounts of which host and supervisor were killed at once: nothing else would.
pub(crate) fn bury(daemon: &Daemon) {
    // Not at the first sight: one that is being attached is mounted before it answers.
    let mut seen: Vec<PathBuf> = Vec::new();
    while !daemon.is_closing() {
        let silent = silent_ones(daemon).unwrap_or_else(|e| {
            tracing::warn!("looking for attachments: {e}");
            Vec::new()
        });
        for directory in silent.iter().filter(|d| seen.contains(d)) {
            match daemon.errands.unmount_dead(directory) {
                Ok(true) => {
                    tracing::warn!(directory = %directory.display(), "the processes of an attachment were killed; it is detached");
                }
                Ok(false) => {}
                Err(e) => tracing::warn!("{}: {e}", directory.display()),
            }
        }
        seen = silent;
        daemon.pause(LOOK_EVERY);
    }
}

/// Those at whose address nobody listens, the innermost first.
fn silent_ones(daemon: &Daemon) -> Result<Vec<PathBuf>> {
    let around: Vec<PathBuf> = daemon.state.lock().mounts.keys().cloned().collect();
    let is_within = |m: &Mounted| m.kind == KIND && around.iter().any(|at| m.mountpoint.starts_with(at));
    let mut all: Vec<Mounted> = mounts::all()?.into_iter().filter(is_within).collect();
    if all.is_empty() {
        return Ok(Vec::new());
    }
    let sockets = std::fs::read_to_string("/proc/self/net/unix").cant(|| "read /proc/self/net/unix".into())?;
    all.retain(|m| !sockets.lines().any(|line| line.ends_with(&format!(" @{}", name(m)))));
    Ok(all.into_iter().rev().map(|m| m.mountpoint).collect())
}
