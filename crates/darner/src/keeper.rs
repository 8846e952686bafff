//! Between the process that serves (the *worker*) and the one that keeps what must outlive it (the *supervisor*): one JSON message
//! a datagram over a socket pair, with at most one descriptor.
//!
//! The supervisor knows nothing of what it keeps but names. A worker that starts asks for all of it; one that loses its supervisor
//! starts another and hands over everything again, so either may be killed at any moment.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Failure, Result};
use crate::frontend::now_ns;
use crate::systemd;

/// The variable with the number of our end of the socket.
pub const SOCKET: &str = "DARNER_KEEPER_FD";
/// The variable with the process that a supervisor is to watch, where one runs already.
pub const WORKER: &str = "DARNER_WORKER_PID";
/// The program that either starts the other from.
pub const PROGRAM: &str = "DARNER_PROGRAM";

/// The hidden commands of a pair of processes.
#[derive(Clone, Copy, Debug)]
pub struct Role {
    /// Of the one that keeps.
    pub supervisor: &'static str,
    /// Of the one that serves.
    pub worker: &'static str,
    /// The same, for people.
    pub what: &'static str,
}

/// Those behind the mounts of a store.
pub const STORE: Role = Role { supervisor: "daemon", worker: "worker", what: "daemon" };
/// Those behind an attachment.
pub const ATTACHMENT: Role = Role { supervisor: "attachment", worker: "host", what: "host" };

/// Longest message.
const MESSAGE_MAX: usize = 64 << 10;
/// When to try again to start a supervisor.
const RETRY: Duration = Duration::from_millis(500);

/// What happened to a worker's predecessors.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Stats {
    /// How often a worker was started anew.
    pub restarts: u32,
    /// The longest that nobody served, milliseconds.
    pub longest_pause_ms: u64,
}

/// A program that an upgrade brought and that did not come to serve.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FailedUpgrade {
    /// Its path.
    pub program: PathBuf,
    /// What became of it.
    pub why: String,
}

/// What a worker says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Say {
    /// What is kept, please.
    List,
    /// Keep the descriptor that comes along.
    Keep {
        /// Its name; what had it is dropped.
        key: String,
        /// Whatever the next worker is to know of it.
        text: String,
    },
    /// It is not needed any more.
    Drop {
        /// Its name.
        key: String,
    },
    /// All that was kept is served (again).
    Serving {
        /// What an earlier supervisor counted.
        stats: Stats,
    },
    /// About to end: start the next one, from this program.
    Next {
        /// Its path.
        program: PathBuf,
    },
    /// About to end; there shall be no other.
    Bye,
}

/// What the supervisor says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hear {
    /// The descriptor that comes along is kept.
    Item {
        /// As [`Say::Keep`].
        key: String,
        /// The same.
        text: String,
    },
    /// That was all.
    End {
        /// Of before.
        stats: Stats,
        /// The supervisor's process.
        pid: u32,
        /// For how long nobody has served, milliseconds.
        #[serde(default)]
        gone_ms: Option<u64>,
        /// Why the last upgrade came to nothing.
        #[serde(default)]
        failed: Option<FailedUpgrade>,
    },
}

/// What is kept, by name.
pub type Items = BTreeMap<String, Item>;

/// Takes out those whose names begin with `kind`; their names are told without that.
pub fn take(items: &mut Items, kind: &str) -> Vec<(String, Item)> {
    let keys: Vec<String> = items.keys().filter(|key| key.starts_with(kind)).cloned().collect();
    keys.into_iter().filter_map(|key| Some((key[kind.len()..].to_string(), items.remove(&key)?))).collect()
}

/// One thing that is kept.
#[derive(Debug)]
pub struct Item {
    /// See [`Say::Keep`].
    pub text: String,
    /// The same.
    pub fd: OwnedFd,
}

/// Sends a message.
pub fn send(socket: &OwnedFd, message: &impl Serialize, fd: Option<BorrowedFd<'_>>) -> Result<()> {
    send_bytes(socket, &serde_json::to_vec(message)?, fd, None)
}

/// Sends a datagram, to an address if the socket is not connected.
pub fn send_bytes(
    socket: &impl AsRawFd,
    bytes: &[u8],
    fd: Option<BorrowedFd<'_>>,
    to: Option<&SocketAddr>,
) -> Result<()> {
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut address = to.map(systemd::raw_address);
    let mut control = [0u64; 4];
    // SAFETY: msghdr is plain data, for which zero is valid.
    let mut out: libc::msghdr = unsafe { std::mem::zeroed() };
    (out.msg_iov, out.msg_iovlen) = (&raw mut part, 1);
    if let Some((address, len)) = &mut address {
        (out.msg_name, out.msg_namelen) = ((&raw mut *address).cast(), *len);
    }
    if let Some(fd) = fd {
        // SAFETY: computes a size.
        out.msg_controllen = unsafe { libc::CMSG_SPACE(size_of::<RawFd>() as u32) } as usize;
        out.msg_control = control.as_mut_ptr().cast();
        // SAFETY: the control buffer is large enough for one header and descriptor.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const out);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as usize;
            libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(fd.as_raw_fd());
        }
    }
    loop {
        // SAFETY: all pointers lead to locals with the lengths given.
        if unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const out, libc::MSG_NOSIGNAL) } >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error).cant(|| "reach the other process".into());
        }
    }
}

/// Receives a message; `None`: the other end is closed.
pub fn receive<T: for<'a> Deserialize<'a>>(socket: &OwnedFd) -> Result<Option<(T, Option<OwnedFd>)>> {
    let mut bytes = vec![0u8; MESSAGE_MAX];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut control = [0u64; 4];
    // SAFETY: msghdr is plain data, for which zero is valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
    (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), size_of_val(&control));
    let n = loop {
        // SAFETY: all pointers lead to locals with the lengths given.
        let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        let error = io::Error::last_os_error();
        match n {
            0 => return Ok(None),
            n if n > 0 => break n as usize,
            _ if error.kind() == io::ErrorKind::Interrupted => {}
            _ if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            _ => return Err(error.into()),
        }
    };
    // SAFETY: the kernel filled the control buffer in; a descriptor in it is new and ours.
    let fd = unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        let there = !header.is_null() && (*header).cmsg_type == libc::SCM_RIGHTS;
        there.then(|| OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned()))
    };
    Ok(Some((serde_json::from_slice(&bytes[..n])?, fd)))
}

/// Two ends of a connection.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: an array of two.
    if unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both are new and ours.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

/// Takes the descriptor whose number is in a variable, which only this process was given.
pub fn inherited(variable: &str) -> Option<OwnedFd> {
    let fd: RawFd = std::env::var(variable).ok()?.parse().ok().filter(|fd| *fd > 2)?;
    // SAFETY: whoever started us made this descriptor for us alone.
    unsafe { own(fd) }
}

/// A descriptor that was passed to this process, if it was; programs that we start do not hold it.
///
/// # Safety
/// It is nobody else's in this process.
pub unsafe fn own(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: plain system call; what is open and nobody else's is ours, as the caller says.
    unsafe { (libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) >= 0).then(|| OwnedFd::from_raw_fd(fd)) }
}

/// Has a program find a descriptor under its number, in a variable.
pub fn pass(command: &mut Command, variable: &str, fd: &impl AsRawFd) {
    let fd = fd.as_raw_fd();
    command.env(variable, fd.to_string());
    // SAFETY: fcntl is async-signal-safe; the descriptor is open until after the spawn.
    unsafe {
        command.pre_exec(move || match libc::fcntl(fd, libc::F_SETFD, 0) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
}

/// The program to start the other process from: that at the path where ours was, whatever is there now.
pub fn program() -> Result<PathBuf> {
    match std::env::var_os(PROGRAM) {
        Some(path) => Ok(path.into()),
        None => std::env::current_exe().cant(|| "find this program".into()),
    }
}

/// Has the next program find no descriptor above 2: whoever started us may have left some open (a shell's `9<FILE`), which would stay so for
/// as long as what is started here lives, and would be a plug-in's to use.
fn keep_to_ourselves() -> io::Result<()> {
    // SAFETY: plain system calls, async-signal-safe.
    unsafe {
        if libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) == 0 {
            return Ok(());
        }
        // (Before Linux 5.11.)
        let mut limit: libc::rlimit = std::mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) != 0 {
            return Err(io::Error::last_os_error());
        }
        for fd in 3..RawFd::try_from(limit.rlim_cur).unwrap_or(RawFd::MAX) {
            libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
        }
    }
    Ok(())
}

/// This program, whatever has become of its file.
pub const OURS: &str = "/proc/self/exe";

/// Starts the program under a hidden name, in a session of its own, with no descriptors but the standard ones and those that are passed.
/// Where its file is gone, this program goes on in its place, and looks there again the next time.
pub fn start(
    program: &Path,
    command: &str,
    arguments: &[OsString],
    prepare: impl FnOnce(&mut Command),
) -> Result<Child> {
    let mut process = Command::new(if program.exists() { program } else { Path::new(OURS) });
    process.arg(command).args(arguments).current_dir("/").env(PROGRAM, program);
    let systemds = ["NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];
    for variable in [SOCKET, WORKER, crate::cmd::daemon::READY].iter().chain(&systemds) {
        process.env_remove(variable);
    }
    let null = File::options().read(true).write(true).open("/dev/null").cant(|| "open /dev/null".into())?;
    process.stdin(null.try_clone()?).stdout(null);
    // First: what `prepare` passes is taken out of it.
    // SAFETY: only async-signal-safe calls between fork and exec.
    unsafe { process.pre_exec(keep_to_ourselves) };
    prepare(&mut process);
    // SAFETY: the same.
    unsafe {
        process.pre_exec(|| {
            libc::setsid();
            let mut none = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
            Ok(())
        });
    }
    process.spawn().cant(|| format!("start {}", program.display()))
}

/// A worker's way to its supervisor; without one it does nothing.
#[derive(Clone, Default)]
pub struct Keeper(Option<Arc<Mutex<Kept>>>);

struct Kept {
    role: Role,
    socket: OwnedFd,
    /// The supervisor's process.
    pid: u32,
    items: Items,
    serving: bool,
    stats: Stats,
    /// When this process began.
    started: u64,
    /// Since when nobody has served, if that was so and still is.
    gone: Option<Instant>,
    failed: Option<FailedUpgrade>,
}

impl Keeper {
    /// Finds the supervisor, if there is one, and what it kept.
    pub fn find(role: Role) -> Result<(Keeper, Items)> {
        let Some(socket) = inherited(SOCKET) else { return Ok(Default::default()) };
        send(&socket, &Say::List, None)?;
        let mut items = Items::new();
        let (stats, pid, gone_ms, failed) = loop {
            match receive::<Hear>(&socket)? {
                Some((Hear::Item { key, text }, Some(fd))) => drop(items.insert(key, Item { text, fd })),
                Some((Hear::End { stats, pid, gone_ms, failed }, _)) => break (stats, pid, gone_ms, failed),
                Some((Hear::Item { .. }, None)) => {}
                None => return Err(Failure::new("the supervisor went away")),
            }
        };
        let mut own = Items::new();
        for (key, item) in &items {
            own.insert(key.clone(), Item { text: item.text.clone(), fd: item.fd.try_clone()? });
        }
        let gone = gone_ms.and_then(|ms| Instant::now().checked_sub(Duration::from_millis(ms)));
        let kept = Kept { role, socket, pid, items: own, serving: false, stats, started: now_ns(), gone, failed };
        let kept = Arc::new(Mutex::new(kept));
        let watched = kept.clone();
        thread::Builder::new().name("keeper".into()).spawn(move || watch(&watched))?;
        Ok((Keeper(Some(kept)), items))
    }

    /// Whether there is a supervisor.
    pub fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// What happened before (also the pause that is just about to end), and who the supervisor is.
    pub fn stats(&self) -> Option<(Stats, u32)> {
        let kept = self.0.as_ref()?.lock();
        Some((kept.stats_by_now(), kept.pid))
    }

    /// When this process began, nanoseconds since 1970: with its number that tells it from any other.
    pub fn started(&self) -> Option<u64> {
        Some(self.0.as_ref()?.lock().started)
    }

    /// The last upgrade, if it came to nothing.
    pub fn failed_upgrade(&self) -> Option<FailedUpgrade> {
        self.0.as_ref()?.lock().failed.clone()
    }

    /// Has a descriptor outlive this process.
    pub fn keep(&self, key: &str, text: &str, fd: &impl AsFd) -> Result<()> {
        let Some(kept) = &self.0 else { return Ok(()) };
        let mut kept = kept.lock();
        let fd = fd.as_fd().try_clone_to_owned()?;
        kept.say(&Say::Keep { key: key.into(), text: text.into() }, Some(fd.as_fd()));
        kept.items.insert(key.into(), Item { text: text.into(), fd });
        Ok(())
    }

    /// It is to end with this process.
    pub fn drop(&self, key: &str) {
        let Some(kept) = &self.0 else { return };
        let mut kept = kept.lock();
        if kept.items.remove(key).is_some() {
            kept.say(&Say::Drop { key: key.into() }, None);
        }
    }

    /// Everything that was kept is served.
    pub fn serving(&self) {
        let Some(kept) = &self.0 else { return };
        let mut kept = kept.lock();
        kept.serving = true;
        kept.stats = kept.stats_by_now();
        kept.gone = None;
        kept.say_serving();
    }

    /// This process is about to end, and no other shall follow.
    pub fn bye(&self) {
        let Some(kept) = &self.0 else { return };
        kept.lock().say(&Say::Bye, None);
    }

    /// Ends this process; the next one is of this program.
    pub fn next(&self, program: PathBuf) -> Result<std::convert::Infallible> {
        let kept = self.0.as_ref().ok_or_else(|| Failure::new("this daemon has no supervisor"))?;
        let kept = kept.lock();
        send(&kept.socket, &Say::Next { program }, None)?;
        // As if killed: the next one goes on where this was.
        // SAFETY: ends the process.
        unsafe { libc::_exit(0) }
    }
}

impl Kept {
    /// (If it can't be reached, it is gone: the next one is told everything.)
    fn say(&self, message: &Say, fd: Option<BorrowedFd<'_>>) {
        if let Err(e) = send(&self.socket, message, fd) {
            tracing::debug!("supervisor: {e}");
        }
    }

    fn stats_by_now(&self) -> Stats {
        let pause = self.gone.map_or(0, |since| since.elapsed().as_millis() as u64);
        Stats { longest_pause_ms: self.stats.longest_pause_ms.max(pause), ..self.stats }
    }

    fn say_serving(&self) {
        self.say(&Say::Serving { stats: self.stats }, None);
    }
}

/// Waits for the supervisor to die, and starts another.
fn watch(kept: &Mutex<Kept>) {
    let mut child: Option<Child> = None;
    loop {
        let socket = kept.lock().socket.try_clone();
        let gone = socket.map_err(Failure::from).and_then(|socket| {
            while receive::<Hear>(&socket)?.is_some() {}
            Ok(())
        });
        if let Err(e) = gone {
            tracing::warn!("supervisor: {e}");
        }
        if let Some(mut child) = child.take() {
            let _ = child.wait();
        }
        tracing::warn!("the supervisor is gone; another one is started");
        loop {
            match replace(kept) {
                Ok(started) => {
                    child = Some(started);
                    break;
                }
                Err(e) => tracing::error!("no supervisor: {e}"),
            }
            thread::sleep(RETRY);
        }
    }
}

fn replace(kept: &Mutex<Kept>) -> Result<Child> {
    let (ours, theirs) = pair()?;
    let arguments: Vec<OsString> = std::env::args_os().skip(2).collect();
    let role = kept.lock().role;
    let child = start(&program()?, role.supervisor, &arguments, |command| {
        pass(command, SOCKET, &theirs);
        command.env(WORKER, std::process::id().to_string()).stderr(Stdio::null());
    })?;
    let mut kept = kept.lock();
    (kept.socket, kept.pid) = (ours, child.id());
    for (key, item) in &kept.items {
        let message = Say::Keep { key: key.clone(), text: item.text.clone() };
        kept.say(&message, Some(item.fd.as_fd()));
    }
    if kept.serving {
        kept.say_serving();
    }
    Ok(child)
}
