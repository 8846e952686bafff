//! The process behind an attachment: it has a mount of its own, whose requests it passes to a plug-in. It outlives the daemon of the
//! store around it and needs nothing of it; killed, its supervisor starts the next one, which goes on with the mount.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use darner_fuse::{Config, MountOptions, Session, abi};
use darner_syslink::engine::{self, Hello};
use darner_syslink::{Answering, Caller, Code, Message, Peer, Refusal, Refuse, Tag, Who, unix};
use darner_vfs::{Arena, Front, Host, Launch, Launched, Options, Process};
use serde::{Deserialize, Serialize};

use crate::cli::Attach;
use crate::control;
use crate::error::{Context, Failure, Result};
use crate::keeper::{self, Items, Keeper};
use crate::mounts::{self, Mounted};
use crate::supervisor::{MOUNT, block_end_signals};

/// What /proc/mounts says of attachments.
pub const KIND: &str = "fuse.darner-vfs";
/// What the name of a file that is kept begins with.
const FILE: &str = "file ";
/// Calls that move bytes at a time.
const SLOTS: u16 = 24;
/// Requests that are worked on at a time; as many may wait for a slow plug-in before the others do.
const THREADS: usize = 8;
/// The kernel's readahead, bytes.
const READAHEAD: u32 = 1 << 20;
/// How long a process may take to end by itself when its link has.
const GRACE: Duration = Duration::from_millis(300);

/// How long `detach` waits for the host to end.
const PATIENCE: Duration = Duration::from_secs(20);

const SERVICE: &str = "darner.attachment/1";
const STATUS: Tag = Tag(1);

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
}

/// Serves until the mount ends. `ready` is called when it answers.
pub fn run(c: &Attach, ready: &dyn Fn()) -> Result<()> {
    // Before there is any other thread.
    let signals = block_end_signals();
    let (keeper, mut items) = Keeper::find(keeper::ATTACHMENT)?;
    let files = files(c, &keeper, &mut items)?;
    let lacks = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let launcher = Launcher { attach: c.clone(), files, lacks: lacks.clone() };
    let options = Options { deadline: c.deadline, restart: !c.no_restart };
    let host = Host::start(launcher, options).map_err(Failure::new)?;
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
    let _listener = listen(c, &front, &keeper, lacks)?;
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
    keeper.drop(&key);
    keeper.bye();
    served?;
    tracing::info!(directory = %c.directory.display(), "detached");
    Ok(())
}

/// Told to end, takes the mount away; who uses it may finish. Told again, ends at once.
fn heed(signals: &libc::sigset_t, keeper: &Keeper, directory: &Path) {
    for _ in 0..2 {
        let mut signal = 0;
        // SAFETY: valid pointers; the signals are blocked in all threads.
        unsafe { libc::sigwait(signals, &mut signal) };
        // In a process of its own: the kernel may wait meanwhile for what only this one can answer.
        let program = keeper::program().map(Command::new);
        let detached = program.and_then(|mut p| Ok(p.args(["detach", "--lazy"]).arg(directory).status()?));
        if !detached.as_ref().is_ok_and(|status| status.success()) {
            tracing::warn!("detaching: {detached:?}");
        }
    }
    keeper.bye();
    std::process::exit(0);
}

/// The files that are handed over: opened once, so that what they name may change meanwhile.
fn files(c: &Attach, keeper: &Keeper, items: &mut Items) -> Result<Vec<File>> {
    let paths: Vec<&PathBuf> = c.files.iter().chain(&c.of).collect();
    let open = |(n, path): (usize, &&PathBuf)| {
        let key = format!("{FILE}{n}");
        if let Some(item) = items.remove(&key) {
            return Ok(File::from(item.fd));
        }
        let file =
            File::options().read(true).write(c.writable).open(path).cant(|| format!("open {}", path.display()))?;
        keeper.keep(&key, "", &file)?;
        Ok(file)
    };
    paths.iter().enumerate().map(open).collect()
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
    let fd = darner_fuse::mount(&c.directory, &options)?;
    let config = Config { max_write: darner_vfs::SLOT as u32, ..Config::default() };
    // The contents of what is not remembered for long may change with its times.
    let config = match front.host().info().valid < Duration::from_secs(60) {
        true => config.without(abi::init::EXPLICIT_INVAL_DATA).with(abi::init::AUTO_INVAL_DATA),
        false => config,
    };
    let session = Session::init(fd, config.without(abi::init::POSIX_ACL)).inspect_err(|_| {
        let _ = darner_fuse::unmount(&c.directory, true);
    })?;
    let kept = Kept { read_only, negotiated: session.negotiated().to_string() };
    if session.negotiated().flags & abi::init::HAS_RESEND == 0 {
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
    lacks: Arc<parking_lot::Mutex<Vec<String>>>,
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

    fn start(&self) -> Result<Launched> {
        let (ours, theirs) = keeper::pair()?;
        let arena = Arena::new(SLOTS)?;
        let (report, for_report) = std::io::pipe()?;
        let log =
            self.attach.log.as_ref().map(|path| File::options().append(true).create(true).open(path)).transpose()?;
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
            command.stdout(for_report).stderr(log.map_or_else(Stdio::inherit, Stdio::from));
            // SAFETY: a plain system call between fork and exec.
            unsafe {
                command.pre_exec(|| {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    Ok(())
                })
            };
        })?;
        let mut process = Plugin { pid: child.id(), child };
        let (mut lacks, mut failed) = (None, None);
        for line in BufReader::new(report).lines() {
            match serde_json::from_str(&line?)? {
                Told::Pid(pid) => process.pid = pid,
                Told::Lacks(told) => lacks = Some(told),
                Told::Failed(why) => failed = Some(why),
            }
        }
        let (None, Some(lacks)) = (&failed, lacks) else {
            let how = process.end().1;
            return Err(Failure::new(failed.unwrap_or_else(|| format!("no sandbox was made ({how})"))));
        };
        for lack in &lacks {
            tracing::warn!("the sandbox is incomplete: {lack}");
        }
        *self.lacks.lock() = lacks;
        Ok(Launched { socket: ours, arena, process: Box::new(process) })
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
    fn launch(&self) -> std::result::Result<Launched, String> {
        self.start().map_err(|e| e.to_string())
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
            Ok(status) => (by_itself && status.signal() == Some(libc::SIGKILL), status.to_string()),
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

/// Whether a process ends in that time, or has. (Somebody else may have to see to what is left of it.)
fn ends_within(pid: u32, time: Duration) -> bool {
    // SAFETY: a plain system call; the descriptor is new and ours.
    let pidfd = unsafe {
        match libc::syscall(libc::SYS_pidfd_open, pid, 0) {
            fd if fd >= 0 => OwnedFd::from_raw_fd(fd as i32),
            _ => return true,
        }
    };
    let mut wait = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd.
    unsafe { libc::poll(&mut wait, 1, time.as_millis() as i32) > 0 }
}

fn address(mount: &Mounted) -> Result<SocketAddr> {
    Ok(SocketAddr::from_abstract_name(format!("darner/attachment/{}", mount.device))?)
}

fn mounted(directory: &Path) -> Result<Mounted> {
    let mount = mounts::all()?.into_iter().rev().find(|m| m.mountpoint == directory && m.kind == KIND);
    mount.ok_or_else(|| Failure::new(format!("nothing is attached to {}", directory.display())))
}

/// Tells how it is, whoever of those who may asks.
fn listen(
    c: &Attach,
    front: &Arc<Front>,
    keeper: &Keeper,
    lacks: Arc<parking_lot::Mutex<Vec<String>>>,
) -> Result<unix::Listener> {
    let (front, keeper, directory) = (front.clone(), keeper.clone(), c.directory.clone());
    let at = address(&mounted(&c.directory)?)?;
    let service = Answering(move |_: &Peer, _: Message| {
        let health = front.host().health();
        let status = Attachment {
            directory: directory.clone(),
            name: front.host().info().name.clone(),
            read_only: !front.is_writable(),
            state: health.state,
            plugin_pid: health.pid,
            host_pid: std::process::id(),
            supervisor_pid: keeper.stats().map(|(_, pid)| pid),
            restarts: health.restarts,
            late_calls: health.late,
            last_end: health.last_end,
            sandbox_lacks: lacks.lock().clone(),
        };
        control::encode(STATUS, &status).map_err(|e| Refusal::new(Code::Failed, e.to_string()))
    });
    let admission = |who: &Who, _: &Hello, _: u64| match control::is_trusted(who) {
        true => Ok(()),
        false => Err("only root and who attached it may ask".into()),
    };
    let listener = unix::Listener::bind(&at, engine::Config::default(), Arc::new(admission), Arc::new(service));
    listener.cant(|| "listen for commands".into())
}

/// All attachments at and below a directory, those within others last. One that can't be asked says so in its state.
pub fn below(directory: &Path) -> Result<Vec<Attachment>> {
    let here = mounts::all()?.into_iter().filter(|m| m.kind == KIND && m.mountpoint.starts_with(directory));
    Ok(here.map(|m| ask(&m).unwrap_or_else(|e| silent(&m, &e))).collect())
}

fn ask(mount: &Mounted) -> Result<Attachment> {
    let timeout = Duration::from_secs(5);
    let config = engine::Config { handshake_ns: timeout.as_nanos() as u64, ..engine::Config::default() };
    let link = unix::connect(&address(mount)?, SERVICE, &config, Arc::new(Refuse)).map_err(Failure::new)?;
    let reply = link.call(Message::new(STATUS), Some(timeout)).map_err(Failure::new)?;
    control::decode(&reply)
}

fn silent(mount: &Mounted, why: &Failure) -> Attachment {
    Attachment {
        directory: mount.mountpoint.clone(),
        name: mount.source.display().to_string(),
        read_only: true,
        state: format!("can't be asked: {why}"),
        plugin_pid: None,
        host_pid: 0,
        supervisor_pid: None,
        restarts: 0,
        late_calls: 0,
        last_end: None,
        sandbox_lacks: Vec::new(),
    }
}

/// Ends one, and returns when its process has ended (unless lazily).
pub fn detach(directory: &Path, lazy: bool) -> Result<()> {
    let mount = mounted(directory)?;
    let host = ask(&mount).ok().map(|a| a.host_pid);
    darner_fuse::unmount(directory, lazy)?;
    if let Some(pid) = host.filter(|_| !lazy) {
        ends_within(pid, PATIENCE);
    }
    Ok(())
}
