//! Making objects and names: create, mknod, mkdir, symlink, tmpfile, link.
//!
//! A new object belongs to its caller; in a set-group-id directory it gets the directory's group, and a new directory
//! the bit as well. The umask applies unless the directory has a default ACL. What is made where no history is kept has none either.

use darner_store::Kind;

use crate::attr::Attr;
use crate::change::{Change, LINKS_MAX, Plan, SMALL};
use crate::dirent::Dirent;
use crate::error::{FsError, Result, refuse};
use crate::fs::Fs;
use crate::lookup::Entry;
use crate::name;
use crate::node::{Inode, Node, ROOT};
use crate::op::Caller;

const TARGET_MAX: usize = 4095;
const EXISTS: FsError = FsError::new(libc::EEXIST, "the name exists");

/// In the result of a transaction that a receipt keeps: the rest is the number of an object that was made without a name.
pub const NAMELESS: u64 = 1 << 63;

/// What [`Fs::create_file`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Created {
    /// The file.
    pub entry: Entry,
    /// Whether it was made now; false: it was there before.
    pub new: bool,
}

/// What overlayfs takes for a name that is gone.
pub(crate) const WHITEOUT: Nature<'_> = Nature { mode: libc::S_IFCHR, rdev: 0, target: None };

/// A new object's nature.
#[derive(Clone, Copy)]
pub(crate) struct Nature<'a> {
    mode: u32,
    rdev: u32,
    target: Option<&'a [u8]>,
}

impl Fs {
    /// Makes a regular file. If the name is there: EEXIST with `exclusive`, otherwise the file that is there.
    pub fn create_file(
        &self,
        caller: &Caller,
        now_ns: u64,
        dir: Node,
        name: &[u8],
        mode: u32,
        exclusive: bool,
    ) -> Result<Created> {
        let dir = dir.writable()?;
        let mut plan = self.plan(dir.fileset, SMALL)?;
        plan.dir(dir)?;
        if !exclusive && let Some(found) = plan.dirent(dir, name)? {
            if found.is_dir() {
                return refuse(libc::EISDIR, "the name is a directory");
            }
            let attr = plan.attr(found.ino)?;
            if !attr.is_file() {
                return Err(EXISTS);
            }
            return Ok(Created { entry: Entry { node: Node::Live(found.ino), attr, steady: true }, new: false });
        }
        let past = if exclusive { EXISTS } else { FsError::new(libc::EROFS, "the past can't be changed") };
        plan.check_free(dir, name, now_ns, past)?;
        let nature = Nature { mode: mode & 0o7777 | libc::S_IFREG, rdev: 0, target: None };
        Ok(Created { entry: self.born(plan.begin(now_ns)?, caller, dir, name, nature)?, new: true })
    }

    /// Makes a regular file, FIFO, socket or device file.
    pub fn mknod(&self, caller: &Caller, now_ns: u64, dir: Node, name: &[u8], mode: u32, rdev: u32) -> Result<Entry> {
        let mode = match mode & libc::S_IFMT {
            0 => mode | libc::S_IFREG,
            libc::S_IFREG | libc::S_IFIFO | libc::S_IFSOCK | libc::S_IFCHR | libc::S_IFBLK => mode,
            _ => return refuse(libc::EINVAL, "no such type of file can be made"),
        };
        let is_device = matches!(mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK);
        self.make(caller, now_ns, dir, name, Nature { mode, rdev: if is_device { rdev } else { 0 }, target: None })
    }

    /// Makes a directory.
    pub fn mkdir(&self, caller: &Caller, now_ns: u64, dir: Node, name: &[u8], mode: u32) -> Result<Entry> {
        self.make(caller, now_ns, dir, name, Nature { mode: mode & 0o7777 | libc::S_IFDIR, rdev: 0, target: None })
    }

    /// Makes a symbolic link.
    pub fn symlink(&self, caller: &Caller, now_ns: u64, dir: Node, name: &[u8], target: &[u8]) -> Result<Entry> {
        if target.is_empty() || target.contains(&0) {
            return refuse(libc::ENOENT, "a symbolic link needs a target");
        }
        if target.len() > TARGET_MAX {
            return refuse(libc::ENAMETOOLONG, "the target is longer than 4095 bytes");
        }
        self.make(caller, now_ns, dir, name, Nature { mode: libc::S_IFLNK | 0o777, rdev: 0, target: Some(target) })
    }

    /// Makes a regular file without a name; [`Fs::link`] can give it one, [`Fs::forget`] ends it otherwise.
    pub fn tmpfile(&self, caller: &Caller, now_ns: u64, dir: Node, mode: u32) -> Result<Entry> {
        let dir = dir.writable()?;
        let mut plan = self.plan(dir.fileset, SMALL)?;
        plan.dir(dir)?;
        let mut change = plan.begin(now_ns)?;
        let nature = Nature { mode: mode & 0o7777 | libc::S_IFREG, rdev: 0, target: None };
        let ino = change.bear(caller, dir, nature)?;
        change.edit(ino)?.nlink = 0;
        change.orphan(ino);
        change.result = NAMELESS | ino.number();
        finish(change, ino)
    }

    /// Gives an object another name.
    pub fn link(&self, now_ns: u64, node: Node, dir: Node, name: &[u8]) -> Result<Entry> {
        let (ino, dir) = (node.writable()?, dir.writable()?);
        if ino.fileset != dir.fileset {
            return refuse(libc::EXDEV, "a file's names are all in one fileset");
        }
        let mut plan = self.plan(dir.fileset, SMALL)?;
        let attr = plan.attr(ino)?;
        if attr.is_dir() {
            return refuse(libc::EPERM, "a directory can have only one name");
        }
        plan.dir(dir)?;
        plan.check_free(dir, name, now_ns, EXISTS)?;
        if attr.nlink >= LINKS_MAX {
            return refuse(libc::EMLINK, "the file has too many names");
        }
        let mut change = plan.begin(now_ns)?;
        if attr.nlink == 0 {
            change.adopt(ino);
        }
        let linked = change.edit(ino)?;
        linked.nlink += 1;
        linked.parent = dir.object;
        change.put_name(dir, name, Dirent { ino, d_type: attr.d_type() });
        change.mend_dir(dir, 1, 0)?;
        finish(change, ino)
    }

    fn make(&self, caller: &Caller, now_ns: u64, dir: Node, name: &[u8], nature: Nature<'_>) -> Result<Entry> {
        let dir = dir.writable()?;
        let mut plan = self.plan(dir.fileset, SMALL)?;
        plan.dir(dir)?;
        plan.check_free(dir, name, now_ns, EXISTS)?;
        self.born(plan.begin(now_ns)?, caller, dir, name, nature)
    }

    fn born(
        &self,
        mut change: Change<'_>,
        caller: &Caller,
        dir: Inode,
        name: &[u8],
        nature: Nature<'_>,
    ) -> Result<Entry> {
        let ino = change.bear(caller, dir, nature)?;
        let attr = change.attr(ino)?;
        change.put_name(dir, name, Dirent { ino, d_type: attr.d_type() });
        change.mend_dir(dir, 1, attr.is_dir().into())?;
        finish(change, ino)
    }
}

impl Change<'_> {
    /// Makes an object itself, without a name.
    pub(crate) fn bear(&mut self, caller: &Caller, dir: Inode, nature: Nature<'_>) -> Result<Inode> {
        let parent = self.attr(dir)?;
        let ino = dir.sibling(self.fs.store.new_object());
        assert!(ino.object > ROOT.object, "the store hands out the root's number");
        let time = self.time;
        let mut attr = Attr {
            mode: nature.mode,
            uid: caller.uid,
            gid: caller.gid,
            nlink: 1,
            size: 0,
            bytes: 0,
            rdev: nature.rdev,
            parent: dir.object,
            flags: 0,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
        };
        if let Some(target) = nature.target {
            attr.size = target.len() as u64;
            self.put(ino, Kind::TARGET, &[], target);
        } else {
            (attr.mode, attr.flags) = self.inherit_acl(ino, dir, parent.flags, nature.mode, caller.umask)?;
        }
        if parent.mode & libc::S_ISGID != 0 {
            attr.gid = parent.gid;
        }
        if attr.is_dir() {
            attr.nlink = 2;
            attr.mode |= parent.mode & libc::S_ISGID;
        }
        self.add(ino, attr);
        if parent.flags & Attr::KEEPLESS != 0 {
            self.mark_keepless(ino, true)?;
        }
        Ok(ino)
    }
}

impl Plan<'_> {
    /// Checks that a name may be given and is free; `past`: what to say if it leads into the past.
    pub(crate) fn check_free(&self, dir: Inode, name: &[u8], now_ns: u64, past: FsError) -> Result<()> {
        name::check(name, libc::EEXIST)?;
        if self.dirent(dir, name)?.is_some() {
            return Err(EXISTS);
        }
        self.not_in_the_past(dir, name, now_ns, past)
    }
}

/// Commits, and answers with the object as it is then.
fn finish(mut change: Change<'_>, ino: Inode) -> Result<Entry> {
    let attr = change.attr(ino)?;
    change.commit()?;
    Ok(Entry { node: Node::Live(ino), attr, steady: true })
}
