//! The filesystem: a root, and the locks around changes.
//!
//! One change at a time (`live`, for writing); looking at the live tree takes it for reading, so that nobody sees one
//! half of a change; reading file data resolves where it is under the lock and reads it without. The past needs no
//! lock at all.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use darner_store::{Kind, ObjectId, Store, Tid};
use jiff::tz::TimeZone;
use parking_lot::{Mutex, RwLock};

use crate::attr::{Attr, Time};
use crate::change::SMALL;
use crate::error::{FsError, Result, refuse};
use crate::fileset::{Catalogue, root_attr};
use crate::mirror::Mirror;
use crate::node::{Inode, MAIN, Node, ROOT};
use crate::view::Recent;

/// A filesystem in a store.
pub struct Fs {
    pub(crate) store: Arc<Store>,
    pub(crate) hash_key: [u8; 16],
    pub(crate) zone: TimeZone,
    /// Held for what is looked at and changed live; what it guards besides are the filesets that there are.
    pub(crate) live: RwLock<Catalogue>,
    /// Objects without a name that may still be open; mirrors the ORPHAN records.
    pub(crate) orphans: Mutex<HashSet<Inode>>,
    /// What relative times meant within the last second.
    pub(crate) recent: Mutex<Recent>,
    /// What it follows.
    pub(crate) mirror: Mirror,
}

impl Fs {
    /// Makes the root directory in a fresh store, owned by `uid` and `gid`.
    pub fn create(store: Arc<Store>, uid: u32, gid: u32, mode: u32, now_ns: u64) -> Result<Fs> {
        let fs = Fs::over(store);
        if fs.attr_at(ROOT, Tid::MAX)?.is_some() {
            return refuse(libc::EEXIST, "the store has a filesystem already");
        }
        fs.store.admit(SMALL)?;
        let mut tx = fs.store.begin(MAIN, now_ns)?;
        let time = Time::from(tx.tid());
        let root = root_attr(ROOT.object, uid, gid, mode, time);
        let value = root.encode(tx.tid());
        tx.put(ROOT.object, Kind::ATTR, &[], &value);
        tx.count(1, 0);
        tx.commit()?;
        Ok(fs)
    }

    /// Opens the filesystem of a store. Call [`Fs::reap_orphans`] before it is served to anybody.
    pub fn open(store: Arc<Store>) -> Result<Fs> {
        let fs = Fs::over(store);
        if fs.attr_at(ROOT, Tid::MAX)?.is_none() {
            return refuse(libc::ENODEV, "the store has no filesystem");
        }
        fs.load_filesets()?;
        fs.load_mirror()?;
        // A mirror's are its source's business.
        for (fileset, _) in fs.filesets().into_iter().filter(|(f, _)| f.id != MAIN || fs.head().is_none()) {
            fs.load_orphans(fileset.id)?;
        }
        Ok(fs)
    }

    fn over(store: Arc<Store>) -> Fs {
        Fs {
            hash_key: store.hash_key(),
            store,
            zone: TimeZone::system(),
            live: RwLock::default(),
            orphans: Mutex::default(),
            recent: Mutex::default(),
            mirror: Mirror::default(),
        }
    }

    /// Reads local times in `zone` instead of the system's.
    pub fn in_zone(self, zone: TimeZone) -> Fs {
        Fs { zone, ..self }
    }

    /// The store beneath.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The root of the whole, live.
    pub fn root(&self) -> Node {
        Node::Live(ROOT)
    }

    /// Returns once all that was done is durable.
    pub fn sync(&self) -> Result<Tid> {
        Ok(self.store.sync()?)
    }

    /// An object's attributes as of `at`, if it existed.
    pub(crate) fn attr_at(&self, ino: Inode, at: Tid) -> Result<Option<Attr>> {
        let Some(found) = self.store.get(&ino.key(Kind::ATTR, &[]), at)? else { return Ok(None) };
        match Attr::decode(&found.value, found.tid) {
            Some(attr) => Ok(Some(attr)),
            None => Err(FsError::malformed(format!(
                "the attributes of object {ino}, written at tid {}, are in no known form",
                found.tid
            ))),
        }
    }

    /// A node's attributes; ESTALE for what is no more.
    pub(crate) fn attr(&self, node: Node) -> Result<Attr> {
        if let Node::Points(ino) = node {
            return Ok(self.points_attr(ino));
        }
        self.check_kept(node)?;
        match self.attr_shown(node.inode(), node.at())? {
            Some(attr) => Ok(attr),
            None => refuse(libc::ESTALE, "the file does not exist any more"),
        }
    }

    /// Attributes of a node.
    pub fn getattr(&self, node: Node) -> Result<Attr> {
        self.attr(node)
    }

    /// Where a symbolic link leads.
    pub fn readlink(&self, node: Node) -> Result<Vec<u8>> {
        let _live = self.live.read();
        if !self.attr(node)?.is_symlink() {
            return refuse(libc::EINVAL, "not a symbolic link");
        }
        let key = node.inode().key(Kind::TARGET, &[]);
        match self.store.get(&key, node.at())? {
            Some(target) => Ok(target.value.to_vec()),
            None => Err(FsError::malformed(format!("symbolic link {} has no target", node.inode()))),
        }
    }

    /// A path for messages: names from the root down to `node`, as far as they can be found.
    pub fn path_of(&self, node: Node) -> String {
        let (mut ino, at) = (node.inode(), node.at());
        let mut names = Vec::new();
        while ino != ROOT && names.len() < 4096 {
            let Ok(Some((dir, name))) = self.a_name_of(ino, at) else { break };
            names.push(String::from_utf8_lossy(&name).into_owned());
            ino = dir;
        }
        names.reverse();
        let path = names.join("/");
        let start = if ino == ROOT { "/".to_string() } else { format!("object {ino}/") };
        match node {
            Node::AsOf(_, tid) => format!("{start}{path} (as of {tid})"),
            _ => format!("{start}{path}"),
        }
    }

    /// A directory in which an object has a name, and that: the one where it got its newest name or, where it has lost that, one of
    /// those before.
    fn a_name_of(&self, ino: Inode, at: Tid) -> Result<Option<(Inode, Vec<u8>)>> {
        let name_in = |attr: Attr| {
            let dir = above(ino, attr.parent);
            Ok(self.name_in(dir, ino, at)?.map(|name| (dir, name)))
        };
        let Some(newest) = self.attr_at(ino, at)? else { return Ok(None) };
        if let Some(found) = name_in(newest)? {
            return Ok(Some(found));
        }
        let mut earlier = self.attr_versions(ino)?;
        earlier.dedup_by_key(|(_, attr)| attr.parent);
        earlier.into_iter().rev().find_map(|(_, attr)| name_in(attr).transpose()).transpose()
    }

    /// Adds the file's path to an error that comes from damaged or unreadable bytes, and logs it.
    pub(crate) fn explain(&self, node: Node, error: FsError) -> FsError {
        if error.errno() != libc::EIO {
            return error;
        }
        let error = error.in_file(&self.path_of(node));
        tracing::error!("{error}");
        error
    }

    /// Visits an object's records of one kind as of `at`, from the first suffix ≥ `from`.
    pub(crate) fn each(
        &self,
        object: Inode,
        kind: Kind,
        from: &[u8],
        at: Tid,
        mut visit: impl FnMut(&[u8], Tid, &[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        Ok(self.store.scan(object.fileset, object.object, kind, from, at, &mut visit)?)
    }
}

/// The directory above one whose attributes name this parent. A fileset's root names itself: above it is the main root.
pub(crate) fn above(ino: Inode, parent: ObjectId) -> Inode {
    if parent == ino.object { ROOT } else { ino.sibling(parent) }
}
