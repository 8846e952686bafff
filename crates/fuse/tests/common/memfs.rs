//! A filesystem in memory, just large enough to try the protocol on, with a log of what the kernel asked.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use darner_fuse::{abi::opcode, *};
use parking_lot::{Condvar, Mutex};

/// How the filesystem answers where the protocol leaves a choice.
#[derive(Clone, Copy, Debug)]
pub struct Manners {
    /// Decline OPEN, OPENDIR and FLUSH.
    pub no_open: bool,
    /// Flags of the reply to CREATE.
    pub create_flags: u32,
    /// How long the kernel may cache names and attributes.
    pub valid: Duration,
    /// Remember each request.
    pub log: bool,
    /// Serve STATX.
    pub statx: bool,
    /// Hand-over before each request, as if all blocked.
    pub always_block: bool,
}

impl Default for Manners {
    fn default() -> Self {
        let valid = Duration::from_secs(3600);
        Self { no_open: true, create_flags: 0, valid, log: false, statx: true, always_block: false }
    }
}

#[derive(Default)]
struct Node {
    attr: Attr,
    names: BTreeMap<Vec<u8>, u64>,
    data: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

struct Nodes {
    nodes: HashMap<u64, Node>,
    last: u64,
}

/// The filesystem.
pub struct MemFs {
    manners: Manners,
    nodes: Mutex<Nodes>,
    log: Mutex<Vec<String>>,
    gate: Mutex<bool>,
    opened: Condvar,
}

type Answer<T> = Result<T, i32>;

impl Nodes {
    fn get(&mut self, id: u64) -> Answer<&mut Node> {
        self.nodes.get_mut(&id).ok_or(libc::ENOENT)
    }

    fn child(&mut self, parent: u64, name: &[u8]) -> Answer<u64> {
        self.get(parent)?.names.get(name).copied().ok_or(libc::ENOENT)
    }

    fn make(&mut self, mode: u32) -> u64 {
        self.last += 1;
        // SAFETY: always succeed.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        let attr = Attr { ino: self.last, mode, nlink: 1, uid, gid, blksize: 4096, ..Default::default() };
        self.nodes.insert(self.last, Node { attr, ..Default::default() });
        self.last
    }

    fn make_named(&mut self, parent: u64, name: &[u8], mode: u32) -> Answer<u64> {
        if self.get(parent)?.names.contains_key(name) {
            return Err(libc::EEXIST);
        }
        let id = self.make(mode);
        self.get(parent)?.names.insert(name.to_vec(), id);
        Ok(id)
    }

    fn remove(&mut self, parent: u64, name: &[u8]) -> Answer<()> {
        let id = self.child(parent, name)?;
        if !self.get(id)?.names.is_empty() {
            return Err(libc::ENOTEMPTY);
        }
        self.get(parent)?.names.remove(name);
        self.get(id)?.attr.nlink = 0;
        Ok(())
    }
}

impl MemFs {
    pub fn new(manners: Manners) -> Self {
        let mut nodes = Nodes { nodes: HashMap::new(), last: 0 };
        nodes.make(libc::S_IFDIR | 0o755);
        Self {
            manners,
            nodes: Mutex::new(nodes),
            log: Mutex::default(),
            gate: Mutex::new(true),
            opened: Condvar::new(),
        }
    }

    /// What the kernel asked since the last call.
    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock())
    }

    /// Holds requests on names that start with "gated" until the gate is opened.
    pub fn close_gate(&self) {
        *self.gate.lock() = false;
    }

    pub fn open_gate(&self) {
        *self.gate.lock() = true;
        self.opened.notify_all();
    }

    fn entry(&self, nodes: &mut Nodes, id: u64) -> Answer<Entry> {
        let valid = self.manners.valid;
        Ok(Entry { nodeid: id, generation: 0, entry_valid: valid, attr_valid: valid, attr: nodes.get(id)?.attr })
    }

    fn lookup(&self, parent: u64, name: &[u8]) -> Answer<Entry> {
        let mut nodes = self.nodes.lock();
        match nodes.child(parent, name) {
            Ok(id) => self.entry(&mut nodes, id),
            Err(libc::ENOENT) => Ok(Entry { entry_valid: self.manners.valid, ..Default::default() }),
            Err(errno) => Err(errno),
        }
    }

    fn make(&self, parent: u64, name: &[u8], mode: u32) -> Answer<Entry> {
        let mut nodes = self.nodes.lock();
        let id = nodes.make_named(parent, name, mode)?;
        self.entry(&mut nodes, id)
    }

    fn setattr(&self, id: u64, set: &Setattr) -> Answer<Attr> {
        let mut nodes = self.nodes.lock();
        let node = nodes.get(id)?;
        if let Some(size) = set.size {
            node.data.resize(size as usize, 0);
            node.attr.size = size;
        }
        if let Some(mode) = set.mode {
            node.attr.mode = node.attr.mode & libc::S_IFMT | mode & 0o7777;
        }
        node.attr.uid = set.uid.unwrap_or(node.attr.uid);
        node.attr.gid = set.gid.unwrap_or(node.attr.gid);
        for (now, time) in [(&mut node.attr.atime, set.atime), (&mut node.attr.mtime, set.mtime)] {
            match time {
                Some(SetTime::At(at)) => *now = at,
                Some(SetTime::Now) => now.secs += 1,
                None => {}
            }
        }
        Ok(node.attr)
    }

    fn rename(&self, parent: u64, name: &[u8], newdir: u64, newname: &[u8], flags: u32) -> Answer<()> {
        let mut nodes = self.nodes.lock();
        let id = nodes.child(parent, name)?;
        if flags & libc::RENAME_NOREPLACE != 0 && nodes.child(newdir, newname).is_ok() {
            return Err(libc::EEXIST);
        }
        nodes.get(parent)?.names.remove(name);
        nodes.get(newdir)?.names.insert(newname.to_vec(), id);
        Ok(())
    }

    fn write(&self, id: u64, offset: u64, data: &[u8]) -> Answer<u32> {
        let mut nodes = self.nodes.lock();
        let node = nodes.get(id)?;
        let (start, end) = (offset as usize, offset as usize + data.len());
        if node.data.len() < end {
            node.data.resize(end, 0);
        }
        node.data[start..end].copy_from_slice(data);
        node.attr.size = node.data.len() as u64;
        Ok(data.len() as u32)
    }

    fn readdir(&self, id: u64, offset: u64, size: u32, plus: bool) -> Answer<DirBuffer> {
        let mut nodes = self.nodes.lock();
        let names: Vec<_> = nodes.get(id)?.names.iter().map(|(name, id)| (name.clone(), *id)).collect();
        let mut dir = DirBuffer::new(size);
        let all = [(b".".to_vec(), id), (b"..".to_vec(), 1)].into_iter().chain(names);
        for (index, (name, id)) in all.enumerate().skip(offset as usize) {
            let mut entry = self.entry(&mut nodes, id)?;
            if index < 2 {
                entry.nodeid = 0;
            }
            let next = index as u64 + 1;
            let fits = match plus {
                true => dir.add_plus(&entry, next, &name),
                false => dir.add(id, next, entry.attr.mode, &name),
            };
            if !fits {
                break;
            }
        }
        Ok(dir)
    }

    fn note(&self, request: &Request<'_>) {
        let name = match request.op {
            Operation::Lookup { name } | Operation::Create { name, .. } | Operation::Mkdir { name, .. } => name,
            Operation::Getxattr { name, .. } | Operation::Setxattr { name, .. } => name,
            _ => b"",
        };
        let fh = match request.op {
            Operation::Release { fh, .. } | Operation::Read { fh, .. } | Operation::Write { fh, .. } => {
                format!("fh={fh}")
            }
            Operation::Flush { fh, .. } | Operation::Fsync { fh, .. } => format!("fh={fh}"),
            _ => String::new(),
        };
        let (name, resent) = (String::from_utf8_lossy(name), if request.resent { " (resent)" } else { "" });
        let opcode = opcode::name(request.opcode);
        self.log.lock().push(format!("{opcode} {name}{fh}{resent}").trim().replace("  ", " "));
    }

    fn wait_at_gate(&self, request: &Request<'_>, ctx: &Ctx<'_>) {
        if let Operation::Mkdir { name, .. } = request.op
            && name.starts_with(b"gated")
        {
            ctx.will_block();
            self.opened.wait_while(&mut self.gate.lock(), |open| !*open);
        }
    }
}

fn xattr_reply(reply: Reply<'_>, size: u32, value: &[u8]) {
    match size as usize {
        0 => reply.xattr_size(value.len() as u32),
        room if room < value.len() => reply.error(libc::ERANGE),
        _ => reply.data(value),
    }
}

impl Handler for MemFs {
    fn handle(&self, request: Request<'_>, reply: Reply<'_>, ctx: &Ctx<'_>) {
        if self.manners.log {
            self.note(&request);
        }
        if self.manners.always_block {
            ctx.will_block();
        }
        self.wait_at_gate(&request, ctx);
        let node = request.nodeid;
        let opened = Opened { fh: 77, flags: self.manners.create_flags };
        macro_rules! answer {
            ($result:expr, $ok:pat => $send:expr) => {
                match $result {
                    Ok($ok) => $send,
                    Err(errno) => reply.error(errno),
                }
            };
        }
        match request.op {
            Operation::Lookup { name } => {
                answer!(self.lookup(node, name), entry => reply.entry(&entry))
            }
            Operation::Forget { .. } | Operation::BatchForget(_) | Operation::Interrupt { .. } => {}
            Operation::Getattr { .. } => {
                answer!(self.nodes.lock().get(node), found => reply.attr(&found.attr, self.manners.valid))
            }
            Operation::Statx { .. } if self.manners.statx => {
                answer!(self.nodes.lock().get(node), found => {
                    let btime = Time { secs: 1_000_000_000, nsec: 5 };
                    let statx = Statx { attr: found.attr, btime, mask: libc::STATX_BTIME, ..Default::default() };
                    reply.statx(&statx, self.manners.valid)
                })
            }
            Operation::Setattr(set) => {
                answer!(self.setattr(node, &set), attr => reply.attr(&attr, self.manners.valid))
            }
            Operation::Mkdir { name, mode, umask } => {
                answer!(self.make(node, name, libc::S_IFDIR | mode & !umask), entry => reply.entry(&entry))
            }
            Operation::Mknod { name, mode, umask, .. } => {
                answer!(self.make(node, name, mode & !umask), entry => reply.entry(&entry))
            }
            Operation::Symlink { name, target } => {
                answer!(self.make(node, name, libc::S_IFLNK | 0o777), entry => {
                    self.write(entry.nodeid, 0, target).expect("just made");
                    reply.entry(&entry)
                })
            }
            Operation::Readlink => {
                answer!(self.nodes.lock().get(node), found => reply.data(&found.data))
            }
            Operation::Create { name, mode, umask, .. } => {
                answer!(self.make(node, name, libc::S_IFREG | mode & 0o7777 & !umask), entry => {
                    reply.created(&entry, opened)
                })
            }
            Operation::Tmpfile { mode, umask, .. } => {
                let mut nodes = self.nodes.lock();
                let id = nodes.make(libc::S_IFREG | mode & 0o7777 & !umask);
                answer!(self.entry(&mut nodes, id), entry => reply.created(&entry, opened))
            }
            Operation::Link { oldnode, name } => {
                let mut nodes = self.nodes.lock();
                nodes.get(node).expect("directory").names.insert(name.to_vec(), oldnode);
                answer!(self.entry(&mut nodes, oldnode), entry => reply.entry(&entry))
            }
            Operation::Unlink { name } | Operation::Rmdir { name } => {
                answer!(self.nodes.lock().remove(node, name), () => reply.empty())
            }
            Operation::Rename { name, newdir, newname, flags } => {
                answer!(self.rename(node, name, newdir, newname, flags), () => reply.empty())
            }
            Operation::Open { .. } | Operation::Opendir { .. } | Operation::Flush { .. } if self.manners.no_open => {
                reply.error(libc::ENOSYS)
            }
            Operation::Open { .. } | Operation::Opendir { .. } => reply.opened(Opened { fh: 78, flags: 0 }),
            Operation::Flush { .. } | Operation::Release { .. } | Operation::Releasedir { .. } => reply.empty(),
            Operation::Fsync { .. } | Operation::Fsyncdir { .. } | Operation::Syncfs => reply.empty(),
            Operation::Read { offset, size, .. } => answer!(self.nodes.lock().get(node), found => {
                let end = found.data.len().min(offset as usize + size as usize);
                reply.data(found.data.get(offset as usize..end).unwrap_or(&[]))
            }),
            Operation::Write { offset, data, .. } => {
                answer!(self.write(node, offset, data), written => reply.written(written))
            }
            Operation::Readdir { offset, size, .. } => {
                answer!(self.readdir(node, offset, size, false), dir => reply.dir(&dir))
            }
            Operation::Readdirplus { offset, size, .. } => {
                answer!(self.readdir(node, offset, size, true), dir => reply.dir(&dir))
            }
            Operation::Statfs => {
                reply.statfs(&Statfs { blocks: 1000, bsize: 4096, frsize: 4096, namelen: 255, ..Default::default() })
            }
            Operation::Setxattr { name, value, .. } => {
                answer!(self.nodes.lock().get(node), found => {
                    found.xattrs.insert(name.to_vec(), value.to_vec());
                    reply.empty()
                })
            }
            Operation::Getxattr { name, size } => answer!(self.nodes.lock().get(node), found => {
                match found.xattrs.get(name) {
                    Some(value) => xattr_reply(reply, size, value),
                    None => reply.error(libc::ENODATA),
                }
            }),
            Operation::Listxattr { size } => answer!(self.nodes.lock().get(node), found => {
                let names: Vec<u8> = found.xattrs.keys().flat_map(|name| [name.as_slice(), b"\0"].concat()).collect();
                xattr_reply(reply, size, &names)
            }),
            Operation::Removexattr { name } => answer!(self.nodes.lock().get(node), found => {
                match found.xattrs.remove(name) {
                    Some(_) => reply.empty(),
                    None => reply.error(libc::ENODATA),
                }
            }),
            _ => reply.error(libc::ENOSYS),
        }
    }
}
