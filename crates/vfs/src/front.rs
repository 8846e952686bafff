//! The kernel's requests become calls of a plug-in. Node ids are the plug-in's own numbers, so that nothing needs to be
//! remembered here, and a host that was killed leaves nothing behind that another one would lack.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use darner_fuse::{self as fuse, Ctx, DirBuffer, Handler, Operation, Reply, Request, Time};

use crate::host::Host;
use crate::running::Entry;
use crate::vfs::{Attr, Errno, New, ROOT, Result, Wanted};

/// `.` and `..` come first.
const DOTS: u64 = 2;
/// Bytes of a directory entry besides its name, without and with attributes.
const HEAD: usize = 24;
const PLUS_HEAD: usize = 152;

/// Serves a mount from a plug-in.
pub struct Front {
    host: Host,
    valid: Duration,
    writable: bool,
}

impl Front {
    /// `read_only`: nothing is changed, whatever the plug-in can do.
    pub fn new(host: Host, read_only: bool) -> Front {
        let (valid, writable) = (host.info().valid, host.info().writable && !read_only);
        Front { host, valid, writable }
    }

    /// The plug-in.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Whether anything can be changed.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    fn entry(&self, a: &Attr) -> fuse::Entry {
        fuse::Entry { nodeid: a.node, generation: 0, entry_valid: self.valid, attr_valid: self.valid, attr: shown(a) }
    }

    fn give_entry(&self, found: Result<Attr>, reply: Reply<'_>) {
        match found {
            Ok(a) => reply.entry(&self.entry(&a)),
            Err(e) => reply.error(e.0),
        }
    }

    fn give_attr(&self, found: Result<Attr>, reply: Reply<'_>) {
        match found {
            Ok(a) => reply.attr(&shown(&a), self.valid),
            Err(e) => reply.error(e.0),
        }
    }

    fn list(&self, dir: u64, r: &List, still: &mut dyn FnMut() -> bool, reply: Reply<'_>) {
        let mut out = DirBuffer::new(r.size);
        if r.after < DOTS {
            for (n, name) in [(1, &b"."[..]), (2, b"..")].into_iter().filter(|(n, _)| *n > r.after) {
                let ino = if n == 1 { dir } else { ROOT };
                if !add(&mut out, r.plus, &dot(ino), n, name) {
                    return reply.dir(&out);
                }
            }
        }
        let after = r.after.saturating_sub(DOTS);
        let most = r.size as usize / if r.plus { PLUS_HEAD } else { HEAD };
        let page = self.host.ask(true, still, |p, t| p.readdir(dir, after, most, t));
        match page {
            Err(e) if out.is_empty() => reply.error(e.0),
            // The next call fails.
            Err(_) => reply.dir(&out),
            Ok(entries) => {
                for Entry { name, cookie, attr } in &entries {
                    if !add(&mut out, r.plus, &self.entry(attr), cookie + DOTS, name) {
                        break;
                    }
                }
                reply.dir(&out);
            }
        }
    }
}

struct List {
    after: u64,
    size: u32,
    plus: bool,
}

/// Known by number only.
fn dot(ino: u64) -> fuse::Entry {
    fuse::Entry { attr: fuse::Attr { ino, mode: libc::S_IFDIR, ..fuse::Attr::default() }, ..fuse::Entry::default() }
}

fn add(out: &mut DirBuffer, plus: bool, e: &fuse::Entry, next: u64, name: &[u8]) -> bool {
    if plus { out.add_plus(e, next, name) } else { out.add(e.attr.ino, next, e.attr.mode, name) }
}

const SECOND: i64 = 1_000_000_000;

fn time(ns: i64) -> Time {
    Time { secs: ns.div_euclid(SECOND), nsec: ns.rem_euclid(SECOND) as u32 }
}

fn shown(a: &Attr) -> fuse::Attr {
    fuse::Attr {
        ino: a.node,
        size: a.size,
        blocks: a.size.div_ceil(512),
        atime: time(a.atime),
        mtime: time(a.mtime),
        ctime: time(a.ctime),
        mode: a.mode,
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        rdev: a.rdev,
        blksize: 64 << 10,
    }
}

fn wanted(s: &fuse::Setattr) -> Wanted {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64);
    let ns = |t: fuse::SetTime| match t {
        fuse::SetTime::Now => now,
        fuse::SetTime::At(t) => t.secs.saturating_mul(SECOND).saturating_add(t.nsec.into()),
    };
    Wanted {
        mode: s.mode.map(|m| m & 0o7777),
        uid: s.uid,
        gid: s.gid,
        size: s.size,
        atime: s.atime.map(ns),
        mtime: s.mtime.map(ns),
    }
}

/// Whether the operation would change something, and whether doing it twice does no harm.
fn changes(op: &Operation<'_>) -> Option<bool> {
    use Operation as O;
    match op {
        O::Setattr(_) | O::Write { .. } => Some(true),
        O::Symlink { .. }
        | O::Mknod { .. }
        | O::Mkdir { .. }
        | O::Unlink { .. }
        | O::Rmdir { .. }
        | O::Rename { .. }
        | O::Link { .. } => Some(false),
        _ => None,
    }
}

/// Lets other requests be read, and says whether the one who asked still waits for this one. Only death interrupts: a
/// program that catches a signal, be it every millisecond, sees no `EINTR` where a file on a disk has none. That is looked up
/// instead of heeding the kernel's INTERRUPT: that one comes for the first signal only, whichever it is, and waits unread while
/// all threads are at calls.
fn is_wanted(request: &Request<'_>, ctx: &Ctx<'_>) -> bool {
    ctx.will_block();
    !fuse::is_dying(request.pid)
}

fn done(outcome: Result<()>, reply: Reply<'_>) {
    match outcome {
        Ok(()) => reply.empty(),
        Err(e) => reply.error(e.0),
    }
}

impl Handler for Front {
    fn handle(&self, request: Request<'_>, reply: Reply<'_>, ctx: &Ctx<'_>) {
        use Operation as O;
        let node = request.nodeid;
        match changes(&request.op) {
            Some(_) if !self.writable => return reply.error(libc::EROFS),
            // A host before this one may have had it done.
            Some(false) if request.resent => return reply.error(libc::EIO),
            _ => {}
        }
        let still = &mut || is_wanted(&request, ctx);
        let host = &self.host;
        let (uid, gid) = (request.uid, request.gid);
        match request.op {
            O::Lookup { name } => match host.ask(true, still, |p, t| p.lookup(node, name, t)) {
                Err(Errno(libc::ENOENT)) => {
                    reply.entry(&fuse::Entry { entry_valid: self.valid, ..fuse::Entry::default() });
                }
                found => self.give_entry(found, reply),
            },
            O::Getattr { .. } => self.give_attr(host.ask(true, still, |p, t| p.getattr(node, t)), reply),
            O::Readlink => match host.ask(true, still, |p, t| p.readlink(node, t)) {
                Ok(target) => reply.data(&target),
                Err(e) => reply.error(e.0),
            },
            O::Read { offset, size, .. } => {
                match host.ask(true, still, |p, t| p.read(node, offset, size as usize, t)) {
                    Ok((slot, n)) => reply.data(slot.bytes(n)),
                    Err(e) => reply.error(e.0),
                }
            }
            O::Readdir { offset, size, .. } => {
                self.list(node, &List { after: offset, size, plus: false }, still, reply)
            }
            O::Readdirplus { offset, size, .. } => {
                self.list(node, &List { after: offset, size, plus: true }, still, reply);
            }
            O::Statfs => match host.ask(true, still, |p, t| p.statfs(t)) {
                Ok(s) => reply.statfs(&fuse::Statfs {
                    blocks: s.blocks,
                    bfree: s.free,
                    bavail: s.free,
                    files: s.files,
                    ffree: s.files_free,
                    bsize: s.block,
                    namelen: s.name_max,
                    frsize: s.block,
                }),
                Err(e) => reply.error(e.0),
            },
            O::Setattr(s) => {
                let wanted = wanted(&s);
                self.give_attr(host.ask(true, still, |p, t| p.setattr(node, &wanted, t)), reply);
            }
            O::Write { offset, data, .. } => match host.ask(true, still, |p, t| p.write(node, offset, data, t)) {
                Ok(()) => reply.written(data.len() as u32),
                Err(e) => reply.error(e.0),
            },
            O::Mknod { name, mode, rdev, umask } => {
                let new = New { mode: mode & !umask, uid, gid, rdev, target: b"" };
                self.give_entry(host.ask(false, still, |p, t| p.create(node, name, &new, t)), reply);
            }
            O::Mkdir { name, mode, umask } => {
                let new = New { mode: libc::S_IFDIR | mode & 0o7777 & !umask, uid, gid, ..New::default() };
                self.give_entry(host.ask(false, still, |p, t| p.create(node, name, &new, t)), reply);
            }
            O::Symlink { name, target } => {
                let new = New { mode: libc::S_IFLNK | 0o777, uid, gid, rdev: 0, target };
                self.give_entry(host.ask(false, still, |p, t| p.create(node, name, &new, t)), reply);
            }
            O::Unlink { name } => done(host.ask(false, still, |p, t| p.remove(node, name, false, t)), reply),
            O::Rmdir { name } => done(host.ask(false, still, |p, t| p.remove(node, name, true, t)), reply),
            O::Rename { name, newdir, newname, flags } => {
                if flags & !libc::RENAME_NOREPLACE != 0 {
                    return reply.error(libc::EINVAL);
                }
                let (from, to) = ((node, name), (newdir, newname));
                done(host.ask(false, still, |p, t| p.rename(from, to, flags != 0, t)), reply);
            }
            O::Fsync { .. } | O::Fsyncdir { .. } | O::Syncfs => done(host.ask(true, still, |p, t| p.sync(t)), reply),
            O::Forget { .. } | O::BatchForget(_) => {}
            O::Link { .. } => reply.error(libc::EPERM),
            O::Release { .. } | O::Releasedir { .. } | O::Destroy | O::Interrupt { .. } => reply.empty(),
            O::Ioctl(_) => reply.error(libc::ENOTTY),
            // Open and the like are declined: nothing depends on them, and each is a round trip.
            _ => reply.error(libc::ENOSYS),
        }
    }
}
