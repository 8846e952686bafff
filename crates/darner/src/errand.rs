//! What a daemon must have another process do, because the kernel may wait meanwhile for requests that only this daemon, or the
//! one after it, answers: dropping what a mount has cached, and unmounting. That wait can't be interrupted, not even by death: a
//! daemon that is killed in it does not end before it is over, the next one is not started before this one has ended, and so it
//! never is. The process that waits in its place ends with its daemon as soon as nothing holds it up.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use darner_fuse::Notifier;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::error::{Failure, Result};
use crate::keeper;

/// At most so many nodes in one message, for it to fit.
const NODES_MAX: usize = 2000;
const NAMES_MAX: usize = 100;

/// What is to be done; the connection of the mount comes along.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Errand {
    /// [`Notifier::inval_inode`], all bytes.
    Invalidate(Vec<u64>),
    /// The same of some bytes of a node.
    WriteBack(u64, Range<u64>),
    /// [`Notifier::holds`].
    Holds(Vec<u64>),
    /// [`Notifier::inval_entry`] of a name.
    InvalidateEntry(u64, Vec<u8>),
    /// [`Notifier::expire_entry`] of names.
    ExpireEntries(Vec<(u64, Vec<u8>)>),
    /// [`darner_fuse::unmount`], lazily or not.
    Unmount(PathBuf, bool),
    /// The same, lazily, of a mount that nobody serves any more: else the outcome is 0, and it stays.
    UnmountDead(PathBuf),
}

#[derive(Serialize, Deserialize)]
struct Request {
    id: u64,
    errand: Errand,
}

/// The outcome of each node or name: an errno, or 0.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    id: u64,
    codes: Vec<i32>,
    /// What went wrong, in words, where there are more than a number.
    failed: Option<String>,
}

/// The way to the process that runs errands, which is started when it is needed first.
#[derive(Clone)]
pub struct Errands(Arc<Inner>);

struct Inner {
    program: PathBuf,
    runner: Mutex<Option<Arc<Runner>>>,
}

struct Runner {
    socket: OwnedFd,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    last: u64,
    by_id: HashMap<u64, Sender<Answer>>,
    /// There will be no more answers.
    over: bool,
}

impl Default for Errands {
    fn default() -> Errands {
        // (What is at the path of this program may be another version by now.)
        Errands::with(keeper::OURS.into())
    }
}

impl Errands {
    /// Has errands run by this program.
    pub fn with(program: PathBuf) -> Errands {
        Errands(Arc::new(Inner { program, runner: Mutex::default() }))
    }

    /// Ends a mount.
    pub fn unmount(&self, mountpoint: &Path, lazy: bool) -> Result<()> {
        let answer = self.run(&Errand::Unmount(mountpoint.into(), lazy), None)?;
        answer.failed.map_or(Ok(()), |why| Err(Failure::new(why)))
    }

    /// Ends a mount if nobody serves it any more; says whether that was so.
    pub fn unmount_dead(&self, mountpoint: &Path) -> Result<bool> {
        let answer = self.run(&Errand::UnmountDead(mountpoint.into()), None)?;
        answer.failed.map_or(Ok(answer.codes == [libc::ENOTCONN]), |why| Err(Failure::new(why)))
    }

    fn run(&self, errand: &Errand, fd: Option<&OwnedFd>) -> io::Result<Answer> {
        // One that was killed is replaced: all errands may be run twice.
        self.try_once(errand, fd).or_else(|_| self.try_once(errand, fd))
    }

    fn try_once(&self, errand: &Errand, fd: Option<&OwnedFd>) -> io::Result<Answer> {
        self.begin(errand, fd)?.recv().map_err(|_| gone())
    }

    /// Has one run; the answer comes, or never.
    fn begin(&self, errand: &Errand, fd: Option<&OwnedFd>) -> io::Result<Receiver<Answer>> {
        let runner = self.runner()?;
        let (answer, answered) = channel();
        let id = {
            let mut waiting = runner.waiting.lock();
            if waiting.over {
                return Err(gone());
            }
            waiting.last += 1;
            let id = waiting.last;
            waiting.by_id.insert(id, answer);
            id
        };
        let request = Request { id, errand: errand.clone() };
        if let Err(e) = keeper::send(&runner.socket, &request, fd.map(AsFd::as_fd)) {
            runner.waiting.lock().by_id.remove(&id);
            return Err(io::Error::other(e));
        }
        Ok(answered)
    }

    fn runner(&self) -> io::Result<Arc<Runner>> {
        let mut there = self.0.runner.lock();
        if let Some(runner) = there.as_ref().filter(|r| !r.waiting.lock().over) {
            return Ok(runner.clone());
        }
        let (ours, theirs) = keeper::pair()?;
        let child = keeper::start(&self.0.program, "errands", &[], |command| {
            keeper::pass(command, keeper::SOCKET, &theirs);
            command.stderr(Stdio::null());
        })
        .map_err(io::Error::other)?;
        let runner = Arc::new(Runner { socket: ours, waiting: Mutex::default() });
        let listening = runner.clone();
        thread::Builder::new().name("errands".into()).spawn(move || listen(&listening, child))?;
        Ok(there.insert(runner).clone())
    }
}

fn gone() -> io::Error {
    io::Error::other("the process that runs errands ended")
}

/// Hands answers to those who wait for them.
fn listen(runner: &Runner, mut child: Child) {
    while let Ok(Some((answer, _))) = keeper::receive::<Answer>(&runner.socket) {
        let waits = runner.waiting.lock().by_id.remove(&answer.id);
        if let Some(waits) = waits {
            // (Nobody may wait any more.)
            let _ = waits.send(answer);
        }
    }
    {
        let mut waiting = runner.waiting.lock();
        waiting.over = true;
        waiting.by_id.clear();
    }
    let _ = child.wait();
}

/// A [`Notifier`] that may be called from any thread, with any lock held that serving does not need. That the kernel does not
/// know a node is success.
#[derive(Clone)]
pub struct Invalidator {
    errands: Errands,
    fd: Arc<OwnedFd>,
    can_expire: bool,
}

impl Invalidator {
    /// For the mount of this connection. `can_expire`: its kernel has names expire.
    pub fn new(errands: &Errands, fd: Arc<OwnedFd>, can_expire: bool) -> Invalidator {
        Invalidator { errands: errands.clone(), fd, can_expire }
    }

    /// Drops the cached attributes and bytes of nodes. Dirty pages are written first.
    pub fn inval_inodes(&self, nodes: &[u64]) {
        self.start_inval_inodes(nodes).into_iter().for_each(Underway::wait);
    }

    /// The same, without waiting.
    pub fn start_inval_inodes(&self, nodes: &[u64]) -> Vec<Underway> {
        nodes.chunks(NODES_MAX).map(|some| self.start(Errand::Invalidate(some.to_vec()))).collect()
    }

    /// Has names, each in a directory, looked up again at their next use, without waiting. (Where the kernel can't, they go stale.)
    pub fn start_expiring_entries(&self, names: &[(u64, Vec<u8>)]) -> Vec<Underway> {
        let names = if self.can_expire { names } else { &[] };
        names.chunks(NAMES_MAX).map(|some| self.start(Errand::ExpireEntries(some.to_vec()))).collect()
    }

    fn start(&self, errand: Errand) -> Underway {
        let answered = self.errands.begin(&errand, Some(&self.fd)).ok();
        Underway { invalidator: self.clone(), errand, answered }
    }

    /// Has some bytes of a node written that are dirty in the cache, and dropped; says whether that was done.
    pub fn write_back(&self, node: u64, bytes: Range<u64>) -> bool {
        self.tell(Errand::WriteBack(node, bytes))
    }

    /// Drops a cached name.
    pub fn inval_entry(&self, parent: u64, name: &[u8]) {
        self.tell(Errand::InvalidateEntry(parent, name.to_vec()));
    }

    fn tell(&self, errand: Errand) -> bool {
        self.told(&errand, self.errands.run(&errand, Some(&self.fd)))
    }

    fn told(&self, errand: &Errand, outcome: io::Result<Answer>) -> bool {
        match outcome {
            Ok(answer) if answer.codes.iter().all(|code| *code == 0) => return true,
            Ok(answer) => tracing::debug!("{errand:?}: {:?}", answer.codes),
            Err(e) => tracing::warn!("the kernel was not told what changed: {e}"),
        }
        false
    }

    /// Which of the nodes the kernel holds; where it can't be told, it does.
    pub fn holds(&self, nodes: &[u64]) -> Vec<bool> {
        let ask = |some: &[u64]| match self.errands.run(&Errand::Holds(some.to_vec()), Some(&self.fd)) {
            Ok(answer) => answer.codes.into_iter().map(holds).collect(),
            Err(e) => {
                tracing::warn!("what the kernel holds is not known: {e}");
                vec![true; some.len()]
            }
        };
        nodes.chunks(NODES_MAX).flat_map(ask).collect()
    }
}

/// What the kernel is being told.
pub struct Underway {
    invalidator: Invalidator,
    errand: Errand,
    answered: Option<Receiver<Answer>>,
}

impl Underway {
    /// Returns when it knows.
    pub fn wait(self) {
        let Underway { invalidator, errand, answered } = self;
        match answered.and_then(|answered| answered.recv().ok()) {
            Some(answer) => invalidator.told(&errand, Ok(answer)),
            // One that was killed is replaced.
            None => invalidator.tell(errand),
        };
    }
}

/// A mount that has ended holds nothing.
fn holds(code: i32) -> bool {
    !matches!(code, libc::ENOENT | libc::ENODEV | libc::ENOTCONN | libc::ECONNABORTED)
}

/// Runs errands until the daemon ends: the hidden command `errands`.
pub fn serve() -> Result<()> {
    let socket = keeper::inherited(keeper::SOCKET).ok_or_else(|| Failure::new("this command is darner's own"))?;
    let socket = Arc::new(socket);
    while let Some((request, fd)) = keeper::receive::<Request>(&socket)? {
        let socket = socket.clone();
        // Each may take its time.
        thread::Builder::new().spawn(move || {
            let (codes, failed) = carry_out(&request.errand, fd);
            let answer = Answer { id: request.id, codes, failed };
            // (Its daemon may be gone.)
            let _ = keeper::send(&socket, &answer, None);
        })?;
    }
    std::process::exit(0);
}

fn carry_out(errand: &Errand, fd: Option<OwnedFd>) -> (Vec<i32>, Option<String>) {
    let unmount = |at: &Path, lazy| darner_fuse::unmount(at, lazy).err().map(|e| e.to_string());
    match errand {
        Errand::Unmount(mountpoint, lazy) => return (Vec::new(), unmount(mountpoint, *lazy)),
        Errand::UnmountDead(mountpoint) => {
            // (The answer of one that is served takes no longer than its deadline.)
            let code = std::fs::read_dir(mountpoint).err().and_then(|e| e.raw_os_error()).unwrap_or(0);
            return (vec![code], if code == libc::ENOTCONN { unmount(mountpoint, true) } else { None });
        }
        _ => {}
    }
    let Some(notifier) = fd.map(Notifier::over) else {
        return (vec![libc::EBADF], Some("it came without a connection".into()));
    };
    let code = |outcome: io::Result<()>| outcome.err().map_or(0, |e| e.raw_os_error().unwrap_or(libc::EIO));
    let codes = match errand {
        Errand::Invalidate(nodes) => nodes.iter().map(|node| code(notifier.inval_inode(*node, 0, 0))).collect(),
        Errand::WriteBack(node, bytes) => {
            let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
            // (To the end of all files: to the end of this one.)
            let len = if bytes.end > i64::MAX as u64 { 0 } else { signed(bytes.end.saturating_sub(bytes.start)) };
            vec![code(notifier.inval_inode(*node, signed(bytes.start), len))]
        }
        Errand::Holds(nodes) => {
            let ask = |node: &u64| match notifier.holds(*node) {
                Ok(true) => 0,
                Ok(false) => libc::ENOENT,
                Err(e) => code(Err(e)),
            };
            nodes.iter().map(ask).collect()
        }
        Errand::InvalidateEntry(parent, name) => vec![code(notifier.inval_entry(*parent, name))],
        Errand::ExpireEntries(names) => {
            names.iter().map(|(parent, name)| code(notifier.expire_entry(*parent, name))).collect()
        }
        Errand::Unmount(..) | Errand::UnmountDead(_) => Vec::new(),
    };
    (codes, None)
}
