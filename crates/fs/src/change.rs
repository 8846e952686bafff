//! A change: one operation, one transaction, one tid.
//!
//! Two stages. A [`Plan`] holds the write lock and looks at what is there: all checks, and reads that may wait for a
//! disk. A [`Change`] has the transaction as well, so it holds up the log: it only writes. The attributes touched are
//! written back once each by `commit`; dropped before that, nothing happened. Invariant: whatever `edit` hands out
//! gets ctime = the tid.
//!
//! While a transaction runs, `Store::tid`, `usage` and `read` would wait for it for ever: nothing here calls them
//! then.

use std::ops::{Deref, DerefMut};

use darner_store::{FilesetId, Kind, Tid, Tx};
use parking_lot::RwLockWriteGuard;

use crate::attr::{Attr, Time};
use crate::dirent::Dirent;
use crate::error::{Result, refuse};
use crate::fileset::Catalogue;
use crate::fs::Fs;
use crate::node::{Inode, Node};

/// Most names a file, or subdirectories a directory, may have.
pub(crate) const LINKS_MAX: u32 = i32::MAX as u32;

/// What an operation that adds records without file data takes in the store, generously.
pub(crate) const SMALL: u64 = 4096;

/// An operation that may change things, still looking.
pub(crate) struct Plan<'f> {
    pub(crate) fs: &'f Fs,
    /// The one whose objects it may change.
    pub(crate) fileset: FilesetId,
    /// The newest transaction before this.
    pub(crate) newest: Tid,
    touched: Vec<Touched>,
    /// About how many bytes it adds.
    grows: u64,
    pub(crate) live: RwLockWriteGuard<'f, Catalogue>,
}

struct Touched {
    ino: Inode,
    attr: Attr,
    edited: bool,
}

/// An operation that changes things.
pub(crate) struct Change<'f> {
    pub(crate) tx: Tx<'f>,
    pub(crate) time: Time,
    objects: i64,
    bytes: i64,
    /// What a repeated answer needs: the store's `Receipt` keeps it.
    pub(crate) result: u64,
    orphaned: Vec<Inode>,
    adopted: Vec<Inode>,
    /// Last: the transaction ends before the lock is let go.
    plan: Plan<'f>,
}

impl Fs {
    /// Starts a change of a fileset that takes about `grows` bytes (0 for what gives space back); waits for the one before.
    pub(crate) fn plan(&self, fileset: FilesetId, grows: u64) -> Result<Plan<'_>> {
        self.check_not_following(fileset)?;
        self.note_doing()?;
        self.plan_own(fileset, grows)
    }

    /// As [`Fs::plan`], of what a mirror has of its own, labels.
    pub(crate) fn plan_own(&self, fileset: FilesetId, grows: u64) -> Result<Plan<'_>> {
        if self.store.is_read_only() {
            return refuse(libc::EROFS, "the store is open for reading only");
        }
        self.store.admit(grows)?;
        let live = self.live.write();
        if live.get(fileset).is_none() {
            return refuse(libc::ESTALE, "the fileset has been removed");
        }
        Ok(Plan { fs: self, fileset, newest: self.store.tid(), touched: Vec::with_capacity(4), grows, live })
    }
}

impl<'f> Plan<'f> {
    fn touch(&mut self, ino: Inode) -> Result<&mut Touched> {
        assert_eq!(ino.fileset, self.fileset, "a change is of one fileset");
        let at = match self.touched.iter().position(|held| held.ino == ino) {
            Some(at) => at,
            None => {
                let attr = self.fs.attr(Node::Live(ino))?;
                self.touched.push(Touched { ino, attr, edited: false });
                self.touched.len() - 1
            }
        };
        Ok(&mut self.touched[at])
    }

    /// An object's attributes, as this change has left them so far.
    pub(crate) fn attr(&mut self, ino: Inode) -> Result<Attr> {
        Ok(self.touch(ino)?.attr)
    }

    /// A directory in which names are to be changed.
    pub(crate) fn dir(&mut self, ino: Inode) -> Result<Attr> {
        let attr = self.attr(ino)?;
        if !attr.is_dir() {
            return refuse(libc::ENOTDIR, "not a directory");
        }
        if attr.nlink == 0 {
            return refuse(libc::ENOENT, "the directory has been removed");
        }
        Ok(attr)
    }

    /// A regular file whose data is to be changed.
    pub(crate) fn file(&mut self, ino: Inode) -> Result<Attr> {
        let attr = self.attr(ino)?;
        attr.check_file()?;
        Ok(attr)
    }

    /// What a name leads to before this change.
    pub(crate) fn dirent(&self, dir: Inode, name: &[u8]) -> Result<Option<Dirent>> {
        self.fs.dirent(dir, name, Tid::MAX)
    }

    /// Goes on to change things, at `now_ns` or just after the newest transaction.
    pub(crate) fn begin(self, now_ns: u64) -> Result<Change<'f>> {
        let bytes = Some(self.grows);
        self.begin_for(now_ns, bytes)
    }

    /// As [`Plan::begin`], for any number of records.
    pub(crate) fn begin_large(self, now_ns: u64) -> Result<Change<'f>> {
        self.begin_for(now_ns, None)
    }

    fn begin_for(self, now_ns: u64, bytes: Option<u64>) -> Result<Change<'f>> {
        let tx = self.fs.store.begin_for(self.fileset, self.fs.dated(now_ns), bytes)?;
        let time = tx.tid().into();
        Ok(Change { tx, time, objects: 0, bytes: 0, result: 0, orphaned: Vec::new(), adopted: Vec::new(), plan: self })
    }
}

impl<'f> Deref for Change<'f> {
    type Target = Plan<'f>;

    fn deref(&self) -> &Plan<'f> {
        &self.plan
    }
}

impl DerefMut for Change<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.plan
    }
}

impl<'f> Change<'f> {
    /// An object's attributes, to be changed.
    pub(crate) fn edit(&mut self, ino: Inode) -> Result<&mut Attr> {
        let time = self.time;
        let held = self.plan.touch(ino)?;
        held.edited = true;
        held.attr.ctime = time;
        Ok(&mut held.attr)
    }

    /// Changes an object's flags, and no time: nothing that programs know of changes.
    pub(crate) fn edit_flags(&mut self, ino: Inode, change: impl FnOnce(u32) -> u32) -> Result<()> {
        let held = self.plan.touch(ino)?;
        held.edited = true;
        held.attr.flags = change(held.attr.flags);
        Ok(())
    }

    /// Sets a record of an object.
    pub(crate) fn put(&mut self, ino: Inode, kind: Kind, suffix: &[u8], value: &[u8]) {
        assert_eq!(ino.fileset, self.fileset, "a change is of one fileset");
        self.tx.put(ino.object, kind, suffix, value);
    }

    /// Removes a record of an object.
    pub(crate) fn delete(&mut self, ino: Inode, kind: Kind, suffix: &[u8]) {
        assert_eq!(ino.fileset, self.fileset, "a change is of one fileset");
        self.tx.delete(ino.object, kind, suffix);
    }

    /// Adds an object.
    pub(crate) fn add(&mut self, ino: Inode, attr: Attr) {
        self.touched.push(Touched { ino, attr, edited: true });
        self.objects += 1;
    }

    /// Removes an object for good.
    pub(crate) fn kill(&mut self, ino: Inode) -> Result<()> {
        let attr = self.attr(ino)?;
        self.touched.retain(|held| held.ino != ino);
        self.delete(ino, Kind::ATTR, &[]);
        if attr.flags & (Attr::KEEPLESS | Attr::ONCE_KEEPLESS) != 0 {
            self.delete(ino, Kind::KEEPLESS, &[]);
        }
        self.objects -= 1;
        self.bytes -= attr.bytes as i64;
        self.adopt(ino);
        Ok(())
    }

    /// Makes a name lead to an object. The directory's `size` is the caller's to mend.
    pub(crate) fn put_name(&mut self, dir: Inode, name: &[u8], entry: Dirent) {
        let suffix = self.fs.suffix(name);
        self.put(dir, Kind::DIRENT, &suffix, &entry.encode(dir.fileset));
    }

    /// Takes a name away. The directory's `size` is the caller's to mend.
    pub(crate) fn delete_name(&mut self, dir: Inode, name: &[u8]) {
        let suffix = self.fs.suffix(name);
        self.delete(dir, Kind::DIRENT, &suffix);
    }

    /// Mends a directory that gained or lost names: entries and subdirectories by difference, mtime and ctime.
    pub(crate) fn mend_dir(&mut self, dir: Inode, entries: i64, subdirs: i32) -> Result<()> {
        let time = self.time;
        let attr = self.edit(dir)?;
        attr.size = attr.size.saturating_add_signed(entries);
        attr.nlink = attr.nlink.saturating_add_signed(subdirs);
        attr.mtime = time;
        match attr.nlink > LINKS_MAX {
            true => refuse(libc::EMLINK, "the directory has too many subdirectories"),
            false => Ok(()),
        }
    }

    /// Accounts for data that an object gained (or lost).
    pub(crate) fn grew(&mut self, ino: Inode, bytes: i64) -> Result<()> {
        self.bytes += bytes;
        let attr = self.edit(ino)?;
        attr.bytes = attr.bytes.saturating_add_signed(bytes);
        Ok(())
    }

    /// Takes one name's worth of links from an object; the last makes it an orphan.
    pub(crate) fn drop_link(&mut self, ino: Inode) -> Result<()> {
        let attr = self.edit(ino)?;
        attr.nlink = if attr.is_dir() { 0 } else { attr.nlink.saturating_sub(1) };
        if attr.nlink == 0 {
            self.orphan(ino);
        }
        Ok(())
    }

    /// Notes that an object has no name but may be open.
    pub(crate) fn orphan(&mut self, ino: Inode) {
        self.put(Inode::meta(ino.fileset), Kind::ORPHAN, &ino.object.0.to_be_bytes(), &[]);
        self.orphaned.push(ino);
    }

    /// Takes such a note back.
    pub(crate) fn adopt(&mut self, ino: Inode) {
        self.delete(Inode::meta(ino.fileset), Kind::ORPHAN, &ino.object.0.to_be_bytes());
        self.adopted.push(ino);
    }

    /// Makes it all visible at once. EDQUOT if the fileset would grow beyond its limits.
    pub(crate) fn commit(self) -> Result<Tid> {
        self.commit_catalogue(|_| (), |_| ())
    }

    /// The same, with changes of the catalogue and of other filesets, which turn the transaction to those; `learn`: what
    /// the catalogue in memory is to know from then on.
    pub(crate) fn commit_catalogue(
        mut self,
        write: impl FnOnce(&mut Tx<'f>),
        learn: impl FnOnce(&mut Catalogue),
    ) -> Result<Tid> {
        let tid = self.tx.tid();
        self.check_limits(self.objects, self.bytes)?;
        let is_clone = self.live.get(self.fileset).is_some_and(|fileset| fileset.base.is_some());
        for held in self.plan.touched.iter().filter(|held| held.edited) {
            if is_clone && held.attr.flags & Attr::KEEPLESS != 0 {
                // What says so may be the base's, which the collapse of the clone's own records does not look at.
                self.tx.put(held.ino.object, Kind::KEEPLESS, &[], &[]);
            }
            self.tx.put(held.ino.object, Kind::ATTR, &[], &held.attr.encode(tid));
        }
        if self.objects != 0 || self.bytes != 0 {
            self.tx.count(self.objects, self.bytes);
        }
        write(&mut self.tx);
        self.tx.sign(self.result);
        self.tx.commit()?;
        learn(&mut self.plan.live);
        if !self.orphaned.is_empty() || !self.adopted.is_empty() {
            let mut orphans = self.plan.fs.orphans.lock();
            orphans.extend(self.orphaned);
            for ino in &self.adopted {
                orphans.remove(ino);
            }
        }
        Ok(tid)
    }
}
