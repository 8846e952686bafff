//! One process of a plug-in that runs: its link, its arena, and the calls.

use std::sync::Arc;
use std::time::Duration;

use darner_syslink::{CallError, CallId, Code, Element, Link, Message, Refusal, Tag, now_ns};
use parking_lot::Mutex;

use crate::arena::{Arena, SLOT, Slot};
use crate::protocol as p;
use crate::vfs::{Attr, Info, New, ROOT, Space, Wanted};

/// A call that takes longer gives way to others.
const PATIENCE: Duration = Duration::from_millis(1);
/// How often who waits looks whether that is still wanted.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often to look for a slot.
const SLOT_EVERY: Duration = Duration::from_millis(10);
/// What stat(2) can tell.
const SIZE_MAX: u64 = i64::MAX as u64;
/// What a symbolic link may hold, without its end.
const TARGET_MAX: usize = 4095;

type Result<T> = std::result::Result<T, CallError>;

/// How long a call may take, and what to do when it is not quick.
pub(crate) struct Terms<'a> {
    /// When it is given up, on syslink's clock.
    pub until: u64,
    /// Called when the call gives way to others, and then every [`LOOK_EVERY`]: whether its outcome is still wanted.
    pub wanted: &'a mut dyn FnMut() -> bool,
}

impl Terms<'_> {
    pub fn left(&self) -> Duration {
        Duration::from_nanos(self.until.saturating_sub(now_ns()))
    }
}

pub(crate) struct Running {
    /// Counts starts.
    pub epoch: u64,
    pub info: Info,
    link: Link,
    arena: Arc<Arena>,
    /// Calls that nobody waits for any more, and that were not replied to.
    owed: Mutex<Vec<Owed>>,
    began: u64,
}

struct Owed {
    call: CallId,
    /// Its deadline, on syslink's clock.
    until: u64,
    /// The plug-in may still write there, until it has replied.
    _slot: Option<Slot>,
}

/// An entry of a directory.
pub(crate) struct Entry {
    pub name: Vec<u8>,
    pub cookie: u64,
    pub attr: Attr,
}

/// A reply that breaks the rules.
fn wrong(what: &str) -> CallError {
    CallError::Refused(Refusal::new(Code::Failed, format!("the plug-in's answer is wrong: {what}")))
}

impl Running {
    /// Asks what it is, which also tells whether it is there.
    pub fn open(epoch: u64, link: Link, arena: Arc<Arena>, timeout: Duration) -> Result<Running> {
        let info = Info { name: String::new(), writable: false, valid: Duration::ZERO };
        let new = Running { epoch, info, link, arena, owed: Mutex::default(), began: now_ns() };
        let mut terms = Terms { until: now_ns() + timeout.as_nanos() as u64, wanted: &mut || true };
        let reply = new.call(Message::new(p::START), &mut terms)?;
        Ok(Running { info: p::info(&reply.root())?, ..new })
    }

    /// Ends the link; calls are answered.
    pub fn close(&self) {
        self.link.close();
    }

    /// When it answered last, be it too late, on syslink's clock.
    pub fn heard(&self) -> u64 {
        self.link.replied_at().max(self.began)
    }

    /// The earliest deadline of the calls that were given up and are not replied to, on syslink's clock.
    pub fn owes_since(&self) -> Option<u64> {
        let mut owed = self.owed.lock();
        self.forget_settled(&mut owed);
        owed.iter().map(|o| o.until).min()
    }

    fn forget_settled(&self, owed: &mut Vec<Owed>) {
        owed.retain(|o| self.link.owes(o.call));
    }

    fn call(&self, command: Message, terms: &mut Terms<'_>) -> Result<Message> {
        self.call_with(None, command, terms).map(|(reply, _)| reply)
    }

    /// A call that may have a slot, which it gives back with the reply.
    fn call_with<S: Into<Option<Slot>>>(
        &self,
        slot: S,
        command: Message,
        terms: &mut Terms<'_>,
    ) -> Result<(Message, S)> {
        let (left, tag, wanted) = (terms.left(), command.tag(), &mut *terms.wanted);
        match self.link.call_patiently(command, Some(left), PATIENCE, &mut || wanted().then_some(LOOK_EVERY)) {
            Ok(reply) if reply.tag() == tag => Ok((reply, slot)),
            Ok(_) => Err(wrong("it belongs to another command")),
            Err((error, call)) => {
                if let Some(call) = call {
                    let mut owed = self.owed.lock();
                    self.forget_settled(&mut owed);
                    owed.push(Owed { call, until: terms.until, _slot: slot.into() });
                }
                Err(error)
            }
        }
    }

    pub fn lookup(&self, dir: u64, name: &[u8], terms: &mut Terms<'_>) -> Result<Attr> {
        let reply = self.call(command(p::LOOKUP, dir).bytes(p::NAME, name).clone(), terms)?;
        attr(&reply.root())
    }

    pub fn getattr(&self, node: u64, terms: &mut Terms<'_>) -> Result<Attr> {
        same(node, attr(&self.call(command(p::GETATTR, node), terms)?.root())?)
    }

    pub fn readdir(&self, dir: u64, after: u64, most: usize, terms: &mut Terms<'_>) -> Result<Vec<Entry>> {
        let command = command(p::READDIR, dir).uint(p::COOKIE, after).uint(p::LEN, most as u64).clone();
        let reply = self.call(command, terms)?;
        let root = reply.root();
        root.all(p::ENTRY).map(|e| entry(&e)).collect()
    }

    /// Where the bytes are, and how many.
    pub fn read(&self, node: u64, offset: u64, size: usize, terms: &mut Terms<'_>) -> Result<(Slot, usize)> {
        let slot = self.slot(terms)?;
        let size = size.min(SLOT);
        let mut m = command(p::READ, node);
        m.uint(p::OFFSET, offset).uint(p::LEN, size as u64).uint(p::PLACE, slot.place());
        let (reply, slot) = self.call_with(slot, m, terms)?;
        let n: usize = reply.root().number(p::LEN)?;
        if n <= size { Ok((slot, n)) } else { Err(wrong("it has more bytes than were asked for")) }
    }

    pub fn write(&self, node: u64, offset: u64, data: &[u8], terms: &mut Terms<'_>) -> Result<()> {
        let mut slot = self.slot(terms)?;
        slot.fill(data);
        let mut m = command(p::WRITE, node);
        m.uint(p::OFFSET, offset).uint(p::LEN, data.len() as u64).uint(p::PLACE, slot.place());
        self.call_with(slot, m, terms).map(drop)
    }

    /// A slot; waits for one while the plug-in owes replies to so many calls that there is none.
    fn slot(&self, terms: &mut Terms<'_>) -> Result<Slot> {
        loop {
            if let Some(slot) = self.arena.take() {
                return Ok(slot);
            }
            self.forget_settled(&mut self.owed.lock());
            if let Some(slot) = self.arena.take() {
                return Ok(slot);
            }
            match terms.left() {
                Duration::ZERO => return Err(CallError::TooLate),
                _ if !(terms.wanted)() => return Err(CallError::Cancelled),
                left => std::thread::sleep(left.min(SLOT_EVERY)),
            }
        }
    }

    pub fn readlink(&self, node: u64, terms: &mut Terms<'_>) -> Result<Vec<u8>> {
        let reply = self.call(command(p::READLINK, node), terms)?;
        let target = reply.root().bytes(p::TARGET)?;
        match !target.is_empty() && target.len() <= TARGET_MAX && !target.contains(&0) {
            true => Ok(target.to_vec()),
            false => Err(wrong("a symbolic link leads nowhere")),
        }
    }

    pub fn statfs(&self, terms: &mut Terms<'_>) -> Result<Space> {
        Ok(p::space(&self.call(Message::new(p::STATFS), terms)?.root())?)
    }

    pub fn create(&self, dir: u64, name: &[u8], new: &New<'_>, terms: &mut Terms<'_>) -> Result<Attr> {
        let mut m = command(p::CREATE, dir);
        let what = Attr { mode: new.mode, uid: new.uid, gid: new.gid, rdev: new.rdev, ..Attr::default() };
        m.bytes(p::NAME, name).bytes(p::TARGET, new.target).group(p::ENTRY, |m| p::put_attr(m, &what));
        attr(&self.call(m, terms)?.root())
    }

    pub fn setattr(&self, node: u64, wanted: &Wanted, terms: &mut Terms<'_>) -> Result<Attr> {
        let mut m = command(p::SETATTR, node);
        m.group(p::ENTRY, |m| p::put_wanted(m, wanted));
        same(node, attr(&self.call(m, terms)?.root())?)
    }

    pub fn remove(&self, dir: u64, name: &[u8], is_dir: bool, terms: &mut Terms<'_>) -> Result<()> {
        let tag = if is_dir { p::RMDIR } else { p::UNLINK };
        self.call(command(tag, dir).bytes(p::NAME, name).clone(), terms).map(drop)
    }

    pub fn rename(&self, from: (u64, &[u8]), to: (u64, &[u8]), keep: bool, terms: &mut Terms<'_>) -> Result<()> {
        let mut m = command(p::RENAME, from.0);
        m.bytes(p::NAME, from.1).uint(p::NEW_DIR, to.0).bytes(p::NEW_NAME, to.1).uint(p::KEEP, keep.into());
        self.call(m, terms).map(drop)
    }

    pub fn sync(&self, terms: &mut Terms<'_>) -> Result<()> {
        self.call(Message::new(p::SYNC), terms).map(drop)
    }
}

fn command(tag: Tag, node: u64) -> Message {
    let mut m = Message::new(tag);
    m.uint(p::NODE, node);
    m
}

fn attr(e: &Element<'_>) -> Result<Attr> {
    let attr = p::attr(e)?;
    let known =
        [libc::S_IFREG, libc::S_IFDIR, libc::S_IFLNK, libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFCHR, libc::S_IFBLK];
    match attr {
        a if !known.contains(&(a.mode & libc::S_IFMT)) => Err(wrong("a node of no type")),
        a if a.node == 0 || a.node >= 1 << 62 => Err(wrong("a node number out of range")),
        a if a.size > SIZE_MAX => Err(wrong("a size out of range")),
        a if a.node == ROOT && a.mode & libc::S_IFMT != libc::S_IFDIR => Err(wrong("a root that is no directory")),
        a => Ok(Attr { nlink: a.nlink.max(1), mode: a.mode & (libc::S_IFMT | 0o7777), ..a }),
    }
}

fn same(node: u64, attr: Attr) -> Result<Attr> {
    if attr.node == node { Ok(attr) } else { Err(wrong("it is about another node")) }
}

fn entry(e: &Element<'_>) -> Result<Entry> {
    let (name, cookie) = (e.bytes(p::NAME)?.to_vec(), e.uint(p::COOKIE)?);
    let bad = name.is_empty()
        || name.len() > 255
        || name == b"."
        || name == b".."
        || name.iter().any(|b| [0, b'/'].contains(b));
    match (bad, cookie) {
        (true, _) => Err(wrong("a name that is none")),
        (_, 0) => Err(wrong("a cookie of 0")),
        (_, c) if c >= 1 << 62 => Err(wrong("a cookie out of range")),
        _ => Ok(Entry { name, cookie, attr: attr(e)? }),
    }
}
