//! Clones: filesets that begin as another one was at a moment, and share all of it.
//!
//! Making one writes a catalogue record with a base and an entry in the main root; from then on the store shows the base as
//! of that moment wherever the clone has nothing of its own. Object numbers are the base's, the root's too. What does not
//! come along: labels, objects without a name, and the other filesets in the main root, whose names a clone of that takes
//! away (a directory can be in one place only).
//!
//! Of what is keepless (`keepless.rs`) the past has nothing: in a clone of a past moment its directories are new and empty,
//! and its files are not there.
//!
//! What the clone holds is counted when it is made: for the newest moment that is what the store counts, else the tree as
//! of then is walked, before anybody has to wait for it. Where the index is made anew, its live tree is walked
//! ([`count_clone`]): what of the base's records did not come along no record says.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;

use darner_store::{CATALOGUE, Count, FilesetId, Key, Kind, ObjectId, Store, Tid, Tx};

use crate::attr::Attr;
use crate::change::SMALL;
use crate::dirent::{Dirent, malformed};
use crate::error::{Result, refuse};
use crate::fileset::{Fileset, Limits, put_new_record};
use crate::fs::Fs;
use crate::node::{Inode, MAIN};

/// What a walk of the past found.
struct Walked {
    count: Count,
    left_out: Vec<LeftOut>,
}

/// An entry that leads to something keepless.
struct LeftOut {
    dir: Inode,
    suffix: Vec<u8>,
    found: Dirent,
}

/// What a clone has of its own in the place of that.
#[derive(Default)]
struct Emptied {
    /// Directories in which something was left out.
    dirs: BTreeMap<ObjectId, Attr>,
    /// New, empty directories: where, by key suffix, and as what.
    fresh: Vec<(ObjectId, Vec<u8>, ObjectId, Attr)>,
    /// Names that go.
    gone: Vec<(ObjectId, Vec<u8>)>,
}

impl Emptied {
    /// Writes it; from the root `away` names of other filesets go besides.
    fn put(&self, tx: &mut Tx<'_>, fileset: FilesetId, root: ObjectId, away: usize) {
        let tid = tx.tid();
        for (dir, attr) in &self.dirs {
            let away = if *dir == root { away } else { 0 };
            tx.put(*dir, Kind::ATTR, &[], &attr.without(away).encode(tid));
        }
        for (dir, suffix, object, attr) in &self.fresh {
            let entry = Dirent { ino: Inode { fileset, object: *object }, d_type: libc::DT_DIR };
            tx.put(*dir, Kind::DIRENT, suffix, &entry.encode(fileset));
            tx.put(*object, Kind::KEEPLESS, &[], &[]);
            tx.put(*object, Kind::ATTR, &[], &attr.encode(tid));
        }
        self.gone.iter().for_each(|(dir, suffix)| tx.delete(*dir, Kind::DIRENT, suffix));
    }
}

impl Fs {
    /// Makes a fileset of what is, or `at` was, below another one's root. ENOENT if that did not exist then.
    pub fn clone_fileset(&self, now_ns: u64, of: Inode, at: Option<Tid>, name: &str) -> Result<Fileset> {
        let marked = self.live.read().marked;
        let walked = match at {
            Some(at) if at < self.store.tid() => Some(self.walk(of, at)?),
            _ => None,
        };
        let mut plan = self.plan(MAIN, SMALL)?;
        plan.check_fileset_name(name, now_ns)?;
        if at.is_some_and(|at| !self.store.has_reached(at)) {
            return refuse(libc::EINVAL, "a clone needs a moment that has been");
        }
        let at = at.map_or(plan.newest, |at| at.min(plan.newest));
        let root = self.root_at(of, at)?;
        let walked = match walked.filter(|_| plan.live.marked == marked) {
            Some(walked) => walked,
            None if at == plan.newest => Walked { count: self.count_live(of)?, left_out: Vec::new() },
            None => self.walk(of, at)?,
        };
        let away = self.fileset_names(of, at)?;
        let root = root.without(away.len());
        let id = plan.live.fresh()?;
        let emptied = self.emptied(&walked, at)?;
        let count = Count { objects: walked.count.objects + emptied.fresh.len() as u64, ..walked.count };
        // From the look on, the moment is pinned by the clone.
        self.store.while_retained(|| {
            if self.shown(of.fileset, at)? != Some(at) {
                return refuse(libc::ENOENT, "this moment is not kept any more");
            }
            let mut change = plan.begin_large(now_ns)?;
            let tid = change.tx.tid();
            let (base, limits) = (Some((of.fileset, at)), Limits::default());
            let fileset = Fileset { id, name: name.into(), root: of.object, created: tid, base, limits };
            change.show(&fileset)?;
            change.commit_catalogue(
                |tx| {
                    put_new_record(tx, &fileset);
                    tx.turn(id, count.objects as i64, count.live as i64);
                    for suffix in &away {
                        tx.delete(of.object, Kind::DIRENT, suffix);
                    }
                    if !away.is_empty() && !emptied.dirs.contains_key(&of.object) {
                        tx.put(of.object, Kind::ATTR, &[], &root.encode(tid));
                    }
                    emptied.put(tx, id, of.object, away.len());
                },
                |live| live.insert(fileset.clone()),
            )?;
            Ok(fileset)
        })
    }

    pub(crate) fn root_at(&self, root: Inode, at: Tid) -> Result<Attr> {
        match self.attr_at(root, at)? {
            Some(attr) if attr.is_dir() && attr.parent == root.object => Ok(attr),
            Some(_) => refuse(libc::EINVAL, "only a fileset can be cloned, from its root down"),
            None => refuse(libc::ENOENT, "the fileset did not exist then"),
        }
    }

    /// What a fileset holds now, but for what has no name.
    fn count_live(&self, root: Inode) -> Result<Count> {
        let mut count = self.store.counted(root.fileset);
        for orphan in self.orphans.lock().iter().filter(|orphan| orphan.fileset == root.fileset) {
            if let Some(attr) = self.attr_at(*orphan, Tid::MAX)?.filter(|attr| attr.nlink == 0) {
                count.objects = count.objects.saturating_sub(1);
                count.live = count.live.saturating_sub(attr.bytes);
            }
        }
        Ok(count)
    }

    /// What a fileset's tree held as of a moment.
    fn walk(&self, root: Inode, at: Tid) -> Result<Walked> {
        self.root_at(root, at)?;
        let ino = |object| Inode { fileset: root.fileset, object };
        let mut left_out = Vec::new();
        let below = |object, todo: &mut Vec<ObjectId>| {
            let dir = ino(object);
            for (suffix, found) in self.entries(dir, at)? {
                if found.ino.fileset != root.fileset {
                    continue;
                }
                match self.is_left_out(found.ino, at)? {
                    true => left_out.push(LeftOut { dir, suffix, found }),
                    false => todo.push(found.ino.object),
                }
            }
            Ok(())
        };
        let count = count_tree(root.object, |object| self.attr_at(ino(object), at), below)?;
        Ok(Walked { count, left_out })
    }

    /// What takes the place of what was left out.
    fn emptied(&self, walked: &Walked, at: Tid) -> Result<Emptied> {
        let mut emptied = Emptied::default();
        for out in &walked.left_out {
            let dir = match emptied.dirs.entry(out.dir.object) {
                Entry::Occupied(dir) => dir.into_mut(),
                Entry::Vacant(dir) => match self.attr_at(out.dir, at)? {
                    Some(attr) => dir.insert(attr),
                    None => continue,
                },
            };
            match self.attr_shown(out.found.ino, at)? {
                Some(attr) => {
                    let attr = Attr { parent: out.dir.object, bytes: 0, flags: Attr::KEEPLESS, ..attr };
                    emptied.fresh.push((out.dir.object, out.suffix.clone(), self.store.new_object(), attr));
                }
                None => {
                    dir.size = dir.size.saturating_sub(1);
                    dir.nlink = dir.nlink.saturating_sub(u32::from(out.found.is_dir()));
                    emptied.gone.push((out.dir.object, out.suffix.clone()));
                }
            }
        }
        Ok(emptied)
    }

    pub(crate) fn children(&self, dir: Inode, at: Tid) -> Result<Vec<Inode>> {
        Ok(self.entries(dir, at)?.into_iter().map(|(_, found)| found.ino).collect())
    }

    /// A directory's records as of a moment, by key suffix.
    pub(crate) fn entries(&self, dir: Inode, at: Tid) -> Result<Vec<(Vec<u8>, Dirent)>> {
        let mut entries = Ok(Vec::new());
        self.each(dir, Kind::DIRENT, &[], at, |suffix, tid, value| {
            match (Dirent::decode(value, dir.fileset), &mut entries) {
                (Some(found), Ok(entries)) => entries.push((suffix.to_vec(), found)),
                _ => entries = Err(malformed(dir, suffix, tid)),
            }
            if entries.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        entries
    }
}

/// What a clone holds, by its tree and what is open in it without a name: for [`darner_store::OpenOptions`].
pub fn count_clone(store: &Store, clone: FilesetId) -> darner_store::Result<Count> {
    let id = clone.0.to_be_bytes();
    let catalogued = store.get(&Key::new(CATALOGUE, ObjectId(0), Kind::FILESET, &id), Tid::MAX)?;
    let Some(fileset) = catalogued.and_then(|found| Fileset::decode(clone, &found.value)) else {
        return Ok(Count::default());
    };
    let mut nameless = Vec::new();
    store.scan(clone, ObjectId(0), Kind::ORPHAN, &[], Tid::MAX, &mut |suffix, _, _| {
        nameless.extend(suffix.try_into().ok().map(|bytes| ObjectId(u64::from_be_bytes(bytes))));
        ControlFlow::Continue(())
    })?;
    let attr_of = |object| -> darner_store::Result<Option<Attr>> {
        let found = store.get(&Key::new(clone, object, Kind::ATTR, &[]), Tid::MAX)?;
        Ok(found.and_then(|found| Attr::decode(&found.value, found.tid)))
    };
    let below = |dir, todo: &mut Vec<ObjectId>| {
        store.scan(clone, dir, Kind::DIRENT, &[], Tid::MAX, &mut |_, _, value| {
            let found = Dirent::decode(value, clone).filter(|found| found.ino.fileset == clone);
            todo.extend(found.map(|found| found.ino.object));
            ControlFlow::Continue(())
        })
    };
    let mut count = count_tree(fileset.root, attr_of, below)?;
    for object in nameless {
        if let Some(attr) = attr_of(object)?.filter(|attr| attr.nlink == 0) {
            (count.objects, count.live) = (count.objects + 1, count.live + attr.bytes);
        }
    }
    Ok(count)
}

/// What is in a tree: each file once, however many names it has. `below` appends what a directory leads to in the same fileset.
fn count_tree<E>(
    root: ObjectId,
    attr_of: impl Fn(ObjectId) -> std::result::Result<Option<Attr>, E>,
    mut below: impl FnMut(ObjectId, &mut Vec<ObjectId>) -> std::result::Result<(), E>,
) -> std::result::Result<Count, E> {
    let mut count = Count::default();
    let (mut linked, mut todo) = (HashSet::new(), vec![root]);
    while let Some(object) = todo.pop() {
        let Some(attr) = attr_of(object)? else { continue };
        if !attr.is_dir() && attr.nlink > 1 && !linked.insert(object) {
            continue;
        }
        (count.objects, count.live) = (count.objects + 1, count.live + attr.bytes);
        if attr.is_dir() {
            below(object, &mut todo)?;
        }
    }
    Ok(count)
}
