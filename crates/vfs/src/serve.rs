//! The plug-in's side: commands become calls of a [`Vfs`].

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use darner_syslink::engine::Hello;
use darner_syslink::unix::Ends;
use darner_syslink::{Code, ConnectError, Link, Message, Peer, Reason, Refusal, Reply, Service, Who, unix};
use parking_lot::{Condvar, Mutex};

use crate::arena::{Mapping, SLOT};
use crate::listing::Listing;
use crate::protocol as p;
use crate::vfs::{New, Vfs};

/// The variable with the number of the link's descriptor in a plug-in's process.
pub const LINK: &str = "DARNER_LINK_FD";
/// The same of the arena.
pub const ARENA: &str = "DARNER_ARENA_FD";
/// The same of the files that were handed over, with commas between.
pub const FILES: &str = "DARNER_FILE_FDS";

/// Serves on the descriptors that a plug-in's process is started with, until the host hangs up.
pub fn serve(vfs: impl Vfs + 'static) -> Result<(), ConnectError> {
    serve_over(inherited(LINK)?, inherited(ARENA)?, vfs)
}

/// Tells the host why there will be nothing to serve.
pub fn refuse(why: &str) -> Result<(), ConnectError> {
    let over = Arc::new(Over::default());
    let _link = accept(inherited(LINK)?, Arc::new(Refuse { why: why.into(), over: over.clone() }))?;
    over.wait();
    Ok(())
}

struct Refuse {
    why: String,
    over: Arc<Over>,
}

impl Service for Refuse {
    fn call(&self, _: &Peer, _: Message, reply: Reply) {
        reply.refuse(Refusal::new(Code::Failed, &self.why));
    }

    fn closed(&self, _: &Peer, _: &Reason) {
        self.over.say();
    }
}

/// The same, on others.
pub fn serve_over(link: OwnedFd, arena: OwnedFd, vfs: impl Vfs + 'static) -> Result<(), ConnectError> {
    serve_with(link, arena, true, vfs)
}

/// `ring`: whether messages may wait in the arena.
pub(crate) fn serve_with(
    link: OwnedFd,
    arena: OwnedFd,
    ring: bool,
    vfs: impl Vfs + 'static,
) -> Result<(), ConnectError> {
    let over = Arc::new(Over::default());
    let mapping = Mapping::of_plugin(&arena)?;
    let ends = Ends { socket: link, ring: ring.then(|| (arena, mapping.end())) };
    let server = Server { vfs, arena: mapping, over: over.clone(), one: Mutex::new(()) };
    let _link = accept(ends, Arc::new(server))?;
    over.wait();
    Ok(())
}

fn accept(ends: impl Into<Ends>, service: Arc<dyn Service>) -> Result<Link, ConnectError> {
    let admission = |_: &Who, hello: &Hello, _: u64| match hello.service.as_str() {
        p::SERVICE => Ok(()),
        other => Err(format!("this is {}, not {other}", p::SERVICE)),
    };
    unix::accept_over(ends, &p::link_config(), &admission, service)
}

/// Told when the link ends.
#[derive(Default)]
struct Over {
    is: Mutex<bool>,
    changed: Condvar,
}

impl Over {
    fn say(&self) {
        *self.is.lock() = true;
        self.changed.notify_all();
    }

    fn wait(&self) {
        self.changed.wait_while(&mut self.is.lock(), |is| !*is);
    }
}

struct Server<V> {
    vfs: V,
    arena: Mapping,
    over: Arc<Over>,
    /// One command at a time uses the arena.
    one: Mutex<()>,
}

impl<V: Vfs> Service for Server<V> {
    fn call(&self, _: &Peer, command: Message, reply: Reply) {
        let _one = self.one.lock();
        if reply.is_cancelled() {
            return reply.refuse(Refusal::new(Code::Cancelled, ""));
        }
        reply.finish(self.answer(&command));
    }

    fn closed(&self, _: &Peer, _: &Reason) {
        self.over.say();
    }
}

impl<V: Vfs> Server<V> {
    fn answer(&self, command: &Message) -> Result<Message, Refusal> {
        let c = command.root();
        let mut reply = Message::new(command.tag());
        let node = || c.uint(p::NODE);
        let name = || c.bytes(p::NAME);
        match command.tag() {
            p::START => p::put_info(&mut reply, &self.vfs.info()),
            p::LOOKUP => p::put_attr(&mut reply, &self.vfs.lookup(node()?, name()?)?),
            p::GETATTR => p::put_attr(&mut reply, &self.vfs.getattr(node()?)?),
            p::READDIR => {
                let mut listing = Listing::new(c.number(p::LEN)?);
                self.vfs.readdir(node()?, c.uint(p::COOKIE)?, &mut listing)?;
                reply = listing.into_reply();
            }
            p::READ => {
                let buffer = self.piece(&c)?;
                let n = self.vfs.read(node()?, c.uint(p::OFFSET)?, buffer)?;
                reply.uint(p::LEN, n as u64);
            }
            p::READLINK => drop(reply.bytes(p::TARGET, &self.vfs.readlink(node()?)?)),
            p::STATFS => p::put_space(&mut reply, &self.vfs.statfs()?),
            p::CREATE => {
                let attr = p::attr(&c.group(p::ENTRY)?)?;
                let target = c.bytes_opt(p::TARGET)?.unwrap_or_default();
                let new = New { mode: attr.mode, uid: attr.uid, gid: attr.gid, rdev: attr.rdev, target };
                p::put_attr(&mut reply, &self.vfs.create(node()?, name()?, &new)?);
            }
            p::WRITE => self.vfs.write(node()?, c.uint(p::OFFSET)?, self.piece(&c)?)?,
            p::SETATTR => {
                let wanted = p::wanted(&c.group(p::ENTRY)?)?;
                p::put_attr(&mut reply, &self.vfs.setattr(node()?, &wanted)?);
            }
            p::UNLINK => self.vfs.unlink(node()?, name()?)?,
            p::RMDIR => self.vfs.rmdir(node()?, name()?)?,
            p::RENAME => {
                let keep = c.uint_opt(p::KEEP)?.unwrap_or(0) != 0;
                self.vfs.rename(node()?, name()?, c.uint(p::NEW_DIR)?, c.bytes(p::NEW_NAME)?, keep)?;
            }
            p::SYNC => self.vfs.sync()?,
            other => return Err(Refusal::new(Code::Unknown, format!("no command {}", other.0))),
        }
        Ok(reply)
    }

    /// The part of the arena that a command names.
    #[allow(clippy::mut_from_ref, reason = "shared memory, of which one command at a time is handed a part")]
    fn piece(&self, c: &darner_syslink::Element<'_>) -> Result<&mut [u8], Refusal> {
        let len: usize = c.number(p::LEN)?;
        // SAFETY: commands run one at a time, and each asks once.
        let piece = unsafe { self.arena.piece(c.uint(p::PLACE)?, len.min(SLOT)) };
        piece.ok_or_else(|| Refusal::new(Code::BadRequest, "outside of the arena"))
    }
}

/// The files that were handed over, in order. To be called once.
pub fn files() -> io::Result<Vec<File>> {
    let text = std::env::var(FILES).unwrap_or_default();
    text.split(',').filter(|n| !n.is_empty()).map(|n| own(FILES, n).map(File::from)).collect()
}

/// The descriptor whose number is in a variable.
fn inherited(variable: &str) -> io::Result<OwnedFd> {
    own(variable, &std::env::var(variable).unwrap_or_default())
}

/// Takes a descriptor that this process was started with, once; programs that it starts do not get it.
fn own(variable: &str, number: &str) -> io::Result<OwnedFd> {
    static TAKEN: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());
    let missing = || io::Error::other(format!("no descriptor in {variable}: plug-ins are started by `darner attach`"));
    let fd: RawFd = number.parse().map_err(|_| missing())?;
    let mut taken = TAKEN.lock();
    // SAFETY: a plain system call.
    if taken.contains(&fd) || unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(missing());
    }
    taken.push(fd);
    // SAFETY: it is open, was made for this process, and nobody took it before.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
