//! FUSE requests become operations, replies become answers. Decides nothing but how long the kernel may remember.
//!
//! OPEN, OPENDIR, FLUSH and CREATE are declined (ENOSYS): on one machine nothing depends on them, and each is a round
//! trip. The kernel then makes files by MKNOD, which also spares the RELEASE. Locks are the kernel's own.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use darner_fs::{
    Attr, Caller, Entry, FallocateMode, Found, Fs, FsError, Inode, NAMELESS, Node, Op, RenameMode, Reply as Answer,
    Seek, SetAttr, SetTime, SetXattr, Time,
};
use darner_fuse::{self as fuse, Ctx, DirBuffer, Handler, Operation, Reply, Request, abi};
use darner_store::volume::without_waiting;

use parking_lot::Mutex;

use crate::cold;
use crate::healing::Healer;
use crate::listing::Listing;
use crate::mortal::MortalReply;
use crate::nodes::Nodes;
use crate::reaper::Reaper;
use crate::receipts::Receipts;
use crate::seek::{self, KernelCache, Sought, Uncached};

/// How long the kernel may believe what it was told: only it changes the live tree, and the past never changes.
const LONG: Duration = Duration::from_secs(24 * 3600);
/// A second mount of the live tree sees the first one's changes this late.
const SHORT: Duration = Duration::from_secs(1);

/// Bytes of a directory entry besides its name, without and with attributes.
const HEAD: usize = 24;
const PLUS_HEAD: usize = 152;

/// Serves one mount.
pub struct Frontend {
    fs: Arc<Fs>,
    nodes: Arc<Nodes>,
    receipts: Receipts,
    /// Told of live objects that the kernel forgot.
    reaper: Arc<Reaper>,
    valid: Duration,
    read_only: bool,
    listing: Listing,
    healer: Healer,
    /// Directories of the past that are being listed, with entries that may go: the kernel is to forget them afterwards.
    passing: Mutex<HashSet<u64>>,
    kernel: KernelCache,
    uncached: Arc<Uncached>,
}

thread_local! {
    static DATA: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

type Outcome = Result<Answer, FsError>;

/// Nanoseconds since 1970.
pub fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

impl Frontend {
    /// `shared`: another mount may change the same live tree.
    pub fn new(
        fs: Arc<Fs>,
        nodes: Arc<Nodes>,
        receipts: Receipts,
        reaper: Arc<Reaper>,
        shared: bool,
        read_only: bool,
        kernel: KernelCache,
    ) -> Frontend {
        let valid = if shared { SHORT } else { LONG };
        let healer = Healer::new(fs.clone());
        Frontend {
            fs,
            nodes,
            receipts,
            reaper,
            valid,
            read_only,
            listing: Listing::default(),
            healer,
            passing: Mutex::default(),
            kernel,
            uncached: Arc::default(),
        }
    }

    fn attr(&self, id: u64, node: Node, a: &Attr) -> fuse::Attr {
        let time = |t: Time| fuse::Time { secs: t.secs, nsec: t.nanos };
        // A file of no blocks counts as one hole (tar does not even look); what is in the kernel's cache only is none.
        let is_written_to = a.is_file() && !self.read_only && matches!(node, Node::Live(_));
        let may_have = is_written_to && (a.size > 0 || self.kernel.beyond_the_end);
        // The list of moments is made anew whenever it is asked for. The kernel keeps what it has of a directory as long as its time is the same.
        let now = matches!(node, Node::Points(_)).then(|| Time::from(darner_fs::Tid(now_ns())));
        fuse::Attr {
            ino: self.nodes.shown_ino(node, id),
            size: a.size,
            blocks: if may_have { a.blocks().max(1) } else { a.blocks() },
            atime: time(a.atime),
            mtime: time(now.unwrap_or(a.mtime)),
            ctime: time(now.unwrap_or(a.ctime)),
            mode: a.mode,
            nlink: a.nlink,
            uid: a.uid,
            gid: a.gid,
            rdev: a.rdev,
            blksize: 64 << 10,
        }
    }

    /// A name's entry, counted as a lookup.
    fn entry(&self, e: &Entry, dir: u64, through_time: bool) -> Option<fuse::Entry> {
        let nodeid = self.nodes.looked_up(e.node, e.attr.is_dir(), dir, through_time)?;
        let entry_valid = if e.steady { self.valid } else { Duration::ZERO };
        let attr = self.attr(nodeid, e.node, &e.attr);
        let generation = self.nodes.generation(nodeid);
        Some(fuse::Entry { nodeid, generation, entry_valid, attr_valid: self.attr_valid(e.node), attr })
    }

    fn attr_valid(&self, node: Node) -> Duration {
        match node {
            Node::Live(_) => self.valid,
            Node::AsOf(..) if self.nodes.is_following() => self.valid,
            Node::AsOf(..) => LONG,
            Node::Points(_) => Duration::ZERO,
        }
    }

    fn lookup(&self, id: u64, dir: Node, name: &[u8], caller: &Caller, reply: Reply<'_>) {
        self.listing.looked_up(id);
        match self.run(caller, Op::Lookup { dir, name }) {
            // The absence of an ordinary name may be remembered; what an as-of name leads to depends on the clock.
            Err(e) if e.errno() == libc::ENOENT && !name.contains(&b'@') && !matches!(dir, Node::Points(_)) => {
                reply.entry(&fuse::Entry { entry_valid: self.valid, ..fuse::Entry::default() });
            }
            Ok(Answer::Entry(e)) => self.give_entry(self.entry(&e, id, name.contains(&b'@')), reply),
            outcome => self.answer_entry(outcome, reply),
        }
    }

    /// Answers a request that an earlier process carried out: as it would have, from what is there now.
    fn answer_again(&self, request: &Request<'_>, node: Node, result: u64, reply: Reply<'_>) {
        use Operation as O;
        let caller = Caller::default();
        match request.op {
            O::Symlink { name, .. } | O::Mknod { name, .. } | O::Mkdir { name, .. } | O::Link { name, .. } => {
                self.answer_entry(self.run(&caller, Op::Lookup { dir: node, name }), reply);
            }
            O::Tmpfile { .. } => {
                let node = Node::Live(Inode::from_number(result & !NAMELESS));
                let found = self.run(&caller, Op::GetAttr { node });
                self.answer_tmpfile(
                    found.map(|answer| match answer {
                        Answer::Attr(attr) => Answer::Entry(Entry { node, attr, steady: true }),
                        other => other,
                    }),
                    reply,
                );
            }
            O::Setattr(_) => {
                self.answer_attr(request.nodeid, node, self.run(&caller, Op::GetAttr { node }), reply);
            }
            O::Write { .. } => {
                reply.written(result as u32);
                // It may have gone elsewhere than the kernel thought.
                (self.kernel.stale)(request.nodeid);
            }
            O::CopyFileRange { .. } => reply.copied(result),
            _ => reply.empty(),
        }
    }

    fn answer_tmpfile(&self, outcome: Outcome, reply: Reply<'_>) {
        match outcome {
            Ok(Answer::Entry(e)) => match self.entry(&e, abi::ROOT_ID, false) {
                Some(entry) => {
                    let flags = abi::fopen::KEEP_CACHE | abi::fopen::NOFLUSH;
                    reply.created(&entry, fuse::Opened { fh: 0, flags });
                }
                None => reply.error(libc::ENFILE),
            },
            Ok(other) => unexpected(&other, reply),
            Err(e) => reply.error(e.errno()),
        }
    }

    fn run(&self, caller: &Caller, op: Op<'_>) -> Outcome {
        match self.fs.run(caller, now_ns(), op) {
            // What nobody has open any more may be about to make room.
            Err(e) if matches!(e.errno(), libc::ENOSPC | libc::EDQUOT) && self.reaper.finish() => {
                self.fs.run(caller, now_ns(), op)
            }
            outcome => outcome,
        }
    }

    fn answer_entry(&self, outcome: Outcome, reply: Reply<'_>) {
        match outcome {
            Ok(Answer::Entry(e)) => self.give_entry(self.entry(&e, abi::ROOT_ID, false), reply),
            Ok(other) => unexpected(&other, reply),
            Err(e) => reply.error(e.errno()),
        }
    }

    fn give_entry(&self, entry: Option<fuse::Entry>, reply: Reply<'_>) {
        match entry {
            Some(entry) => reply.entry(&entry),
            None => reply.error(libc::ENFILE),
        }
    }

    fn answer_attr(&self, id: u64, node: Node, outcome: Outcome, reply: Reply<'_>) {
        match outcome {
            Ok(Answer::Attr(a)) => reply.attr(&self.attr(id, node, &a), self.attr_valid(node)),
            Ok(other) => unexpected(&other, reply),
            Err(e) => reply.error(e.errno()),
        }
    }

    fn read(&self, pid: u32, node: Node, offset: u64, size: u32, reply: Reply<'_>, ctx: &Ctx<'_>) {
        DATA.with_borrow_mut(|buf| {
            let size = size as usize;
            if buf.len() < size {
                buf.resize(size, 0);
            }
            match without_waiting(|| self.fs.read_unexplained(node, offset, &mut buf[..size])) {
                Ok(n) => reply.data(&buf[..n]),
                Err(e) if e.cold().is_some() => {
                    cold::read(&self.fs, node, offset, size, MortalReply::new(pid, reply), ctx);
                }
                Err(e) if e.errno() == libc::EIO => {
                    self.healer.take(node, offset, size, MortalReply::new(pid, reply));
                }
                Err(e) => reply.error(e.errno()),
            }
        });
    }

    fn seek(&self, pid: u32, sought: Sought, reply: Reply<'_>) {
        if self.read_only || !matches!(sought.node, Node::Live(_)) {
            return seek::say(&self.fs, &sought, reply);
        }
        match self.fs.hole(sought.node, sought.offset, sought.what, self.kernel.beyond_the_end) {
            Ok(None) => seek::say(&self.fs, &sought, reply),
            Ok(Some(hole)) => seek::answer(&self.fs, sought, hole, &self.kernel, &self.uncached, pid, reply),
            Err(e) => reply.error(e.errno()),
        }
    }

    fn readdir(&self, id: u64, dir: Node, r: &ListRequest, caller: &Caller, reply: Reply<'_>) {
        let ListRequest { after, size, plus } = *r;
        let head = if plus { PLUS_HEAD } else { HEAD };
        let attributes = plus && self.listing.wants_attributes(id, after != 0);
        let op = Op::ReadDir { dir, after, room: size as usize, head, plus: attributes };
        let entries = match self.run(caller, op) {
            Ok(Answer::Entries(entries)) => entries,
            Ok(other) => return unexpected(&other, reply),
            Err(e) => return reply.error(e.errno()),
        };
        if entries.iter().any(|e| !e.steady) {
            self.passing.lock().insert(id);
        } else if entries.is_empty() && self.passing.lock().remove(&id) {
            // (It has all of the listing by now.)
            (self.kernel.stale)(id);
        }
        let mut out = DirBuffer::new(size);
        for e in &entries {
            let ino = self.nodes.listed_ino(e.node, id);
            let mode = u32::from(e.d_type) << 12;
            let added = match &e.attr {
                Some(attr) if plus && e.name != b"." && e.name != b".." => {
                    let found = Entry { node: e.node, attr: *attr, steady: e.steady && !e.name.contains(&b'@') };
                    let Some(entry) = self.entry(&found, id, false) else { break };
                    let added = out.add_plus(&entry, e.cookie, &e.name);
                    if !added {
                        self.forget(entry.nodeid, 1);
                    }
                    added
                }
                // Node id 0: a name without a lookup.
                _ if plus => {
                    let attr = fuse::Attr { ino, mode, ..fuse::Attr::default() };
                    out.add_plus(&fuse::Entry { attr, ..fuse::Entry::default() }, e.cookie, &e.name)
                }
                _ => out.add(ino, e.cookie, mode, &e.name),
            };
            if !added {
                break;
            }
        }
        reply.dir(&out);
    }

    fn forget(&self, id: u64, n: u64) {
        if let Some(object) = self.nodes.forget(id, n).filter(|o| self.fs.is_orphan(*o)) {
            self.reaper.look_at([object]);
        }
    }

    fn write(&self, id: u64, node: Node, w: &WriteRequest<'_>, caller: &Caller, reply: Reply<'_>, ctx: &Ctx<'_>) {
        let WriteRequest { offset, data, flags, write_flags } = *w;
        if matches!(node, Node::AsOf(..)) {
            // A mapped page, or one gathered by the kernel, is not to be shown as the past.
            (self.kernel.stale)(id);
            return reply.error(libc::EROFS);
        }
        // Write-back of mapped pages goes where the pages are, whatever the flags of the file.
        let append = flags & libc::O_APPEND as u32 != 0 && write_flags & abi::flags::WRITE_CACHE == 0;
        let kill_suidgid = write_flags & abi::flags::WRITE_KILL_SUIDGID != 0;
        let at = if append { None } else { Some(offset) };
        let op = Op::Write { node, offset: at, data, kill_suidgid };
        let outcome = match without_waiting(|| self.run(caller, op)) {
            // What reaches the bucket makes room: that takes a while.
            Err(e) if e.errno() == libc::ENOSPC && self.fs.store().may_gain_room() => {
                ctx.will_block();
                self.run(caller, op)
            }
            outcome => outcome,
        };
        match outcome {
            Ok(Answer::Written(w)) => {
                reply.written(w.len as u32);
                if w.offset != offset {
                    (self.kernel.stale)(id);
                }
            }
            Ok(other) => unexpected(&other, reply),
            Err(e) => reply.error(e.errno()),
        }
    }
}

fn unexpected(answer: &Answer, reply: Reply<'_>) {
    tracing::error!("the filesystem answered with {answer:?}");
    reply.error(libc::EIO);
}

fn answer_done(outcome: Outcome, reply: Reply<'_>) {
    match outcome {
        Ok(_) => reply.empty(),
        Err(e) => reply.error(e.errno()),
    }
}

fn answer_found(outcome: Outcome, reply: Reply<'_>) {
    match outcome {
        Ok(Answer::Found(Found::Size(n))) => reply.xattr_size(n),
        Ok(Answer::Found(Found::Bytes(b))) => reply.data(&b),
        Ok(other) => unexpected(&other, reply),
        Err(e) => reply.error(e.errno()),
    }
}

fn set_time(t: fuse::SetTime) -> SetTime {
    match t {
        fuse::SetTime::Now => SetTime::Now,
        fuse::SetTime::At(t) => SetTime::To(Time { secs: t.secs, nanos: t.nsec }),
    }
}

fn set_attr(s: &fuse::Setattr) -> SetAttr {
    SetAttr {
        mode: s.mode,
        uid: s.uid,
        gid: s.gid,
        size: s.size,
        atime: s.atime.map(set_time),
        mtime: s.mtime.map(set_time),
        kill_suidgid: s.kill_suidgid,
    }
}

/// A READDIR or READDIRPLUS.
#[derive(Clone, Copy)]
struct ListRequest {
    after: u64,
    size: u32,
    plus: bool,
}

/// A WRITE.
#[derive(Clone, Copy)]
struct WriteRequest<'a> {
    offset: u64,
    data: &'a [u8],
    /// Of the open file.
    flags: u32,
    write_flags: u32,
}

/// Whether the operation would change something.
fn changes(op: &Operation<'_>) -> bool {
    use Operation as O;
    matches!(
        op,
        O::Setattr(_)
            | O::Symlink { .. }
            | O::Mknod { .. }
            | O::Mkdir { .. }
            | O::Unlink { .. }
            | O::Rmdir { .. }
            | O::Rename { .. }
            | O::Link { .. }
            | O::Write { .. }
            | O::Setxattr { .. }
            | O::Removexattr { .. }
            | O::Fallocate { .. }
            | O::CopyFileRange { .. }
            | O::Tmpfile { .. }
    )
}

impl Handler for Frontend {
    fn handle(&self, request: Request<'_>, reply: Reply<'_>, ctx: &Ctx<'_>) {
        match request.op {
            Operation::Read { offset, size, .. } => {
                self.uncached.asked(request.nodeid, offset..offset.saturating_add(size.into()));
            }
            Operation::CopyFileRange { nodeid_out, .. } => self.uncached.changed(nodeid_out),
            ref op if changes(op) => self.uncached.changed(request.nodeid),
            _ => {}
        }
        if request.resent {
            return self.receipts.again(|| self.handle_once(request, reply, ctx));
        }
        if request.wants_reply() && self.receipts.settles() {
            // What was made without a name is known to the kernel now, or was forgotten before.
            let made = self.receipts.results().into_iter().filter_map(nameless);
            self.reaper.look_at(made.filter(|ino| self.fs.is_orphan(*ino)));
        }
        self.handle_once(request, reply, ctx);
    }
}

/// What a receipt says of an object that was made without a name.
pub(crate) fn nameless(result: u64) -> Option<Inode> {
    (result & NAMELESS != 0).then(|| Inode::from_number(result & !NAMELESS))
}

impl Frontend {
    fn handle_once(&self, request: Request<'_>, reply: Reply<'_>, ctx: &Ctx<'_>) {
        if !changes(&request.op) {
            return self.carry_out(request, reply, ctx);
        }
        let outcome = if request.resent { self.receipts.outcome(request.unique) } else { None };
        match (outcome, self.nodes.node(request.nodeid)) {
            (Some(result), Some(node)) => {
                tracing::info!(opcode = request.opcode, "answers what was done before");
                self.answer_again(&request, node, result, reply);
                self.receipts.answered(request.unique);
            }
            _ => {
                let receipt = self.receipts.of(ctx.thread());
                receipt.during(request.unique, || self.carry_out(request, reply, ctx));
            }
        }
    }

    fn carry_out(&self, request: Request<'_>, reply: Reply<'_>, ctx: &Ctx<'_>) {
        use Operation as O;
        let id = request.nodeid;
        let mut caller = Caller { uid: request.uid, gid: request.gid, pid: request.pid, umask: 0 };
        match request.op {
            O::Forget { nlookup } => return self.forget(id, nlookup),
            O::BatchForget(all) => return all.for_each(|(id, n)| self.forget(id, n)),
            _ => {}
        }
        let Some(node) = self.nodes.node(id) else { return reply.error(libc::ESTALE) };
        if self.read_only && changes(&request.op) {
            return reply.error(libc::EROFS);
        }
        match request.op {
            O::Statfs => match self.run(&caller, Op::StatFs { node }) {
                Ok(Answer::StatFs(s)) => reply.statfs(&fuse::Statfs {
                    blocks: s.blocks,
                    bfree: s.free,
                    bavail: s.free,
                    files: s.files,
                    ffree: s.files_free,
                    bsize: s.block,
                    namelen: s.name_max,
                    frsize: s.block,
                }),
                Ok(other) => unexpected(&other, reply),
                Err(e) => reply.error(e.errno()),
            },
            O::Lookup { name } => self.lookup(id, node, name, &caller, reply),
            O::Getattr { .. } => self.answer_attr(id, node, self.run(&caller, Op::GetAttr { node }), reply),
            O::Setattr(s) => {
                self.answer_attr(id, node, self.run(&caller, Op::SetAttr { node, set: set_attr(&s) }), reply)
            }
            O::Statx { .. } => match self.run(&caller, Op::GetAttr { node }) {
                Ok(Answer::Attr(a)) => {
                    let btime = fuse::Time { secs: a.btime.secs, nsec: a.btime.nanos };
                    let attr = self.attr(id, node, &a);
                    let statx = fuse::Statx { attr, btime, mask: libc::STATX_BTIME, ..fuse::Statx::default() };
                    reply.statx(&statx, self.attr_valid(node));
                }
                Ok(other) => unexpected(&other, reply),
                Err(e) => reply.error(e.errno()),
            },
            O::Readlink => match self.run(&caller, Op::ReadLink { node }) {
                Ok(Answer::Bytes(target)) => reply.data(&target),
                Ok(other) => unexpected(&other, reply),
                Err(e) => reply.error(e.errno()),
            },
            O::Symlink { name, target } => {
                self.answer_entry(self.run(&caller, Op::Symlink { dir: node, name, target }), reply)
            }
            O::Mknod { name, mode, rdev, umask } => {
                caller.umask = umask;
                self.answer_entry(self.run(&caller, Op::MkNod { dir: node, name, mode, rdev }), reply);
            }
            O::Mkdir { name, mode, umask } => {
                caller.umask = umask;
                self.answer_entry(self.run(&caller, Op::MkDir { dir: node, name, mode }), reply);
            }
            O::Unlink { name } => answer_done(self.run(&caller, Op::Unlink { dir: node, name }), reply),
            O::Rmdir { name } => answer_done(self.run(&caller, Op::RmDir { dir: node, name }), reply),
            O::Rename { name, newdir, newname, flags } => {
                let Some(new_dir) = self.nodes.node(newdir) else { return reply.error(libc::ESTALE) };
                let rename = RenameMode::from_bits(flags).and_then(|mode| {
                    self.run(&caller, Op::Rename { dir: node, name, new_dir, new_name: newname, mode })
                });
                answer_done(rename, reply);
            }
            O::Link { oldnode, name } => {
                let Some(old) = self.nodes.node(oldnode) else { return reply.error(libc::ESTALE) };
                self.answer_entry(self.run(&caller, Op::Link { node: old, dir: node, name }), reply);
            }
            O::Read { offset, size, .. } => self.read(request.pid, node, offset, size, reply, ctx),
            O::Write { offset, data, write_flags, flags, .. } => {
                self.write(id, node, &WriteRequest { offset, data, flags, write_flags }, &caller, reply, ctx);
            }
            O::Fsync { .. } | O::Fsyncdir { .. } | O::Syncfs => {
                ctx.will_block();
                answer_done(self.run(&caller, Op::Sync), reply);
            }
            O::Setxattr { name, value, flags, setxattr_flags } => {
                let how = SetXattr {
                    create: flags & libc::XATTR_CREATE as u32 != 0,
                    replace: flags & libc::XATTR_REPLACE as u32 != 0,
                    kill_sgid: setxattr_flags & abi::flags::SETXATTR_ACL_KILL_SGID != 0,
                };
                answer_done(self.run(&caller, Op::SetXattr { node, name, value, how }), reply);
            }
            O::Getxattr { name, size } => {
                answer_found(self.run(&caller, Op::GetXattr { node, name, room: size as usize }), reply);
            }
            O::Listxattr { size } => {
                answer_found(self.run(&caller, Op::ListXattr { node, room: size as usize }), reply)
            }
            O::Removexattr { name } => answer_done(self.run(&caller, Op::RemoveXattr { node, name }), reply),
            O::Readdir { offset, size, .. } => {
                self.readdir(id, node, &ListRequest { after: offset, size, plus: false }, &caller, reply)
            }
            O::Readdirplus { offset, size, .. } => {
                self.readdir(id, node, &ListRequest { after: offset, size, plus: true }, &caller, reply)
            }
            O::Fallocate { offset, length, mode, .. } => {
                let fallocate = FallocateMode::from_bits(mode)
                    .and_then(|mode| self.run(&caller, Op::Fallocate { node, offset, len: length, mode }));
                answer_done(fallocate, reply);
            }
            O::Lseek { offset, whence, .. } => {
                let what = match whence as i32 {
                    libc::SEEK_DATA => Seek::Data,
                    libc::SEEK_HOLE => Seek::Hole,
                    _ => return reply.error(libc::EINVAL),
                };
                self.seek(request.pid, Sought { id, node, offset, what }, reply);
            }
            O::CopyFileRange { off_in, nodeid_out, off_out, len, .. } => {
                let Some(to) = self.nodes.node(nodeid_out) else { return reply.error(libc::ESTALE) };
                match self.run(&caller, Op::CopyRange { from: node, offset: off_in, to, to_offset: off_out, len }) {
                    Ok(Answer::Copied(n)) => reply.copied(n),
                    Ok(other) => unexpected(&other, reply),
                    Err(e) => reply.error(e.errno()),
                }
            }
            O::Tmpfile { mode, umask, .. } => {
                caller.umask = umask;
                self.answer_tmpfile(self.run(&caller, Op::TmpFile { dir: node, mode }), reply);
            }
            O::Release { .. } | O::Releasedir { .. } | O::Destroy | O::Interrupt { .. } => reply.empty(),
            O::Ioctl(_) => reply.error(libc::ENOTTY),
            _ => reply.error(libc::ENOSYS),
        }
    }
}
