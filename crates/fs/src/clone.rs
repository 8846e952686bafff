//! Clones: filesets that begin as another one was at a moment, and share all of it.
//!
//! Making one writes a catalogue record with a base and an entry in the main root; from then on the store shows the base as
//! of that moment wherever the clone has nothing of its own. Object numbers are the base's, the root's too. What does not
//! come along: labels, objects without a name, and the other filesets in the main root, whose names a clone of that takes
//! away (a directory can be in one place only).
//!
//! What the clone holds is counted when it is made: for the newest moment that is what the store counts, else the tree as
//! of then is walked, before anybody has to wait for it.

use std::collections::HashSet;
use std::ops::ControlFlow;

use darner_store::{Count, Kind, Tid};

use crate::attr::Attr;
use crate::change::{Plan, SMALL};
use crate::dirent::{Dirent, malformed};
use crate::error::{Result, refuse};
use crate::fileset::{Fileset, Limits, put_new_record};
use crate::fs::Fs;
use crate::node::{Inode, MAIN, ROOT};

impl Fs {
    /// Makes a fileset of what is, or `at` was, below another one's root. ENOENT if that did not exist then.
    pub fn clone_fileset(&self, now_ns: u64, of: Inode, at: Option<Tid>, name: &str) -> Result<Fileset> {
        let walked = match at {
            Some(at) if at != self.store.tid() => Some(self.count_tree(of, at)?),
            _ => None,
        };
        let mut plan = self.plan(MAIN, SMALL)?;
        plan.check_fileset_name(name, now_ns)?;
        let at = at.unwrap_or(plan.newest);
        if at > plan.newest {
            return refuse(libc::EINVAL, "a clone needs a moment that has been");
        }
        let mut root = self.root_at(of, at)?;
        let count = match walked {
            Some(count) => count,
            None if at == plan.newest => self.count_live(of)?,
            None => self.count_tree(of, at)?,
        };
        let away = plan.fileset_names(of, at)?;
        root.size = root.size.saturating_sub(away.len() as u64);
        root.nlink = root.nlink.saturating_sub(away.len() as u32);
        let id = plan.live.fresh()?;
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
                    if !away.is_empty() {
                        tx.put(of.object, Kind::ATTR, &[], &root.encode(tid));
                    }
                },
                |live| live.insert(fileset.clone()),
            )?;
            Ok(fileset)
        })
    }

    fn root_at(&self, root: Inode, at: Tid) -> Result<Attr> {
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
    fn count_tree(&self, root: Inode, at: Tid) -> Result<Count> {
        self.root_at(root, at)?;
        let (mut count, mut linked, mut todo) = (Count::default(), HashSet::new(), vec![root]);
        while let Some(ino) = todo.pop() {
            let Some(attr) = self.attr_at(ino, at)? else { continue };
            if !attr.is_dir() && attr.nlink > 1 && !linked.insert(ino) {
                continue;
            }
            count.objects += 1;
            count.live += attr.bytes;
            if attr.is_dir() {
                todo.extend(self.children(ino, at)?.into_iter().filter(|child| child.fileset == root.fileset));
            }
        }
        Ok(count)
    }

    fn children(&self, dir: Inode, at: Tid) -> Result<Vec<Inode>> {
        let mut children = Ok(Vec::new());
        self.each(dir, Kind::DIRENT, &[], at, |suffix, tid, value| {
            match (Dirent::decode(value, dir.fileset), &mut children) {
                (Some(found), Ok(children)) => children.push(found.ino),
                _ => children = Err(malformed(dir, suffix, tid)),
            }
            if children.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        children
    }
}

impl Plan<'_> {
    /// The names (as key suffixes) by which a root led to other filesets as of a moment.
    fn fileset_names(&self, root: Inode, at: Tid) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        if root != ROOT {
            return Ok(names);
        }
        for fileset in self.fs.filesets_at(at)? {
            let found = self.fs.dirent(ROOT, fileset.name.as_bytes(), at)?;
            if found.is_some_and(|found| found.ino.fileset != MAIN) {
                names.push(self.fs.suffix(fileset.name.as_bytes()));
            }
        }
        Ok(names)
    }
}
