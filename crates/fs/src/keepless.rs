//! Directories of which no history is kept: build trees, caches. docs/format.md §Keepless objects.
//!
//! An object that is *keepless* has a flag in its attributes and a KEEPLESS record, by which a collapse knows it. Whatever
//! is made in a keepless directory is keepless (the flag is handed down); renames and links change nothing about it. The
//! past shows nothing of what is keepless *now*, or was when it died: not because it is gone at once, but because it goes
//! object by object, and a mixture of moments must not be seen. A directory that is still there is shown, empty; all else
//! of it is not. Where history is kept again, the past shows what has been since.
//!
//! A file that has a name elsewhere as well is not marked with a directory that it is linked into: nobody who names one place
//! means to destroy the past of another.

use std::collections::HashMap;
use std::ops::ControlFlow;

use darner_store::{Kind, Tid, kept_since};

use crate::attr::{Attr, Time};
use crate::change::{Change, SMALL};
use crate::dirent::parse_dirent_suffix;
use crate::error::{Result, refuse};
use crate::fs::Fs;
use crate::node::{Inode, ROOT};

/// Most objects that one transaction marks.
const BATCH: usize = 256;
/// What a directory was marked with, and what was not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marked {
    /// Objects of which it was changed whether history is kept.
    pub changed: Vec<Inode>,
    /// Files of which history is kept on, since they have names elsewhere.
    pub left: Vec<Inode>,
}

/// The record's value where history is kept again since it was written.
const KEPT_SINCE: &[u8] = &[0];

impl Fs {
    /// An object's attributes as a view as of `at` shows them; [`Tid::MAX`]: now.
    pub(crate) fn attr_shown(&self, ino: Inode, at: Tid) -> Result<Option<Attr>> {
        if !self.is_left_out(ino, at)? {
            return self.attr_at(ino, at);
        }
        let now = self.attr_at(ino, Tid::MAX)?;
        let there = |attr: &Attr| attr.is_dir() && attr.nlink > 0 && attr.btime <= Time::from(at);
        Ok(now.filter(there).map(|attr| Attr { size: 0, nlink: 2, ..attr }))
    }

    /// Whether the past as of `at` shows nothing of an object (or, of a directory, nothing in it).
    pub(crate) fn is_left_out(&self, ino: Inode, at: Tid) -> Result<bool> {
        Ok(at != Tid::MAX && ino != ROOT && at < self.kept_since(ino)?)
    }

    /// The first moment whose view shows an object, as far as this goes; [`Tid::MAX`]: none does.
    pub(crate) fn kept_since(&self, ino: Inode) -> Result<Tid> {
        if let Some(found) = self.store.get(&ino.key(Kind::KEEPLESS, &[]), Tid::MAX)? {
            return Ok(kept_since(found.tid, Some(&found.value)));
        }
        if self.attr_at(ino, Tid::MAX)?.is_some() {
            return Ok(Tid::ZERO);
        }
        // Of what is dead, the last word is in its history.
        let mut last = Tid::ZERO;
        self.store.versions(ino.fileset, ino.object, Kind::KEEPLESS, &[], &mut |_, tid, value| match value {
            Some(value) => {
                last = kept_since(tid, Some(value));
                ControlFlow::Break(())
            }
            None => ControlFlow::Continue(()),
        })?;
        Ok(last)
    }

    /// Whether no history is kept of what is at a live path (names from `root` down).
    pub fn keeps_nothing_at(&self, root: Inode, path: &[&[u8]]) -> Result<bool> {
        let ino = self.live_at(root, path)?;
        Ok(self.attr_at(ino, Tid::MAX)?.is_some_and(|attr| attr.flags & Attr::KEEPLESS != 0))
    }

    /// Paths below a live path (which may not be there), as bytes, of what no history is kept of, but not of what is in those. Looks
    /// at every object there.
    pub fn keepless_below(&self, root: Inode, path: &[&[u8]]) -> Result<Vec<Vec<u8>>> {
        let mut found = Vec::new();
        let Ok(top) = self.live_at(root, path) else { return Ok(found) };
        let mut todo = vec![(top, Vec::new())];
        while let Some((ino, path)) = todo.pop() {
            let Some(attr) = self.attr_at(ino, Tid::MAX)? else { continue };
            if attr.flags & Attr::KEEPLESS != 0 {
                found.push(path);
                continue;
            }
            if !attr.is_dir() {
                continue;
            }
            for (suffix, entry) in self.entries(ino, Tid::MAX)? {
                if let Some((_, name)) = parse_dirent_suffix(&suffix).filter(|_| entry.ino.fileset == ino.fileset) {
                    let gap: &[u8] = if path.is_empty() { b"" } else { b"/" };
                    todo.push((entry.ino, [&path, gap, name].concat()));
                }
            }
        }
        Ok(found)
    }

    /// The object at a live path.
    fn live_at(&self, root: Inode, path: &[&[u8]]) -> Result<Inode> {
        let mut ino = root;
        for name in path {
            match self.dirent(ino, name, Tid::MAX)? {
                Some(found) => ino = found.ino,
                None => return refuse(libc::ENOENT, "no such directory"),
            }
        }
        Ok(ino)
    }

    /// Keeps no history of a directory and all below it from now on, nor what there is (`keep`: keeps it again). Files that
    /// have names elsewhere are left as they are. `each` is told how many objects were looked at. EINVAL for a fileset's root,
    /// ENOTDIR for a file.
    pub fn keep_nothing(
        &self,
        root: Inode,
        path: &[&[u8]],
        keep: bool,
        now_ns: u64,
        each: &mut dyn FnMut(u64),
    ) -> Result<Marked> {
        let dir = self.live_at(root, path)?;
        match self.attr_at(dir, Tid::MAX)? {
            Some(attr) if attr.is_dir() && attr.parent != dir.object => {}
            Some(attr) if attr.is_dir() => return refuse(libc::EINVAL, "a whole fileset has a grid instead: none"),
            _ => return refuse(libc::ENOTDIR, "not a directory"),
        }
        // A directory before what is in it: what is made meanwhile inherits.
        let (mut names, mut todo) = (HashMap::from([(dir, 1)]), vec![dir]);
        let (mut changed, mut later, mut left) = (Vec::new(), Vec::new(), Vec::new());
        let mut looked = 0;
        while !todo.is_empty() {
            let batch = todo.split_off(todo.len().saturating_sub(BATCH));
            looked += batch.len() as u64;
            changed.extend(self.mark_batch(&batch, &names, keep, now_ns, &mut later)?);
            for ino in batch {
                for child in self.children(ino, Tid::MAX)?.into_iter().filter(|child| child.fileset == ino.fileset) {
                    let found = names.entry(child).or_default();
                    *found += 1;
                    if *found == 1 {
                        todo.push(child);
                    }
                }
            }
            each(looked);
        }
        // Now all names below are known.
        for batch in later.chunks(BATCH) {
            changed.extend(self.mark_batch(batch, &names, keep, now_ns, &mut left)?);
        }
        Ok(Marked { changed, left })
    }

    /// Marks those of which all names are among those found, and tells the others.
    fn mark_batch(
        &self,
        batch: &[Inode],
        names: &HashMap<Inode, u32>,
        keep: bool,
        now_ns: u64,
        others: &mut Vec<Inode>,
    ) -> Result<Vec<Inode>> {
        let plan = self.plan(batch[0].fileset, SMALL)?;
        let mut due = Vec::new();
        for ino in batch {
            match self.attr_at(*ino, Tid::MAX)? {
                Some(attr) if (attr.flags & Attr::KEEPLESS != 0) != keep => {}
                Some(attr) if !keep && !attr.is_dir() && attr.nlink > names[ino] => others.push(*ino),
                Some(_) => due.push(*ino),
                None => {}
            }
        }
        if due.is_empty() {
            return Ok(due);
        }
        let mut change = plan.begin(now_ns)?;
        for ino in &due {
            change.mark_keepless(*ino, !keep)?;
        }
        change.live.marked += 1;
        change.commit()?;
        Ok(due)
    }
}

impl Change<'_> {
    /// Has no history kept of an object, or some again from now on.
    pub(crate) fn mark_keepless(&mut self, ino: Inode, keepless: bool) -> Result<()> {
        self.put(ino, Kind::KEEPLESS, &[], if keepless { &[] } else { KEPT_SINCE });
        self.edit_flags(ino, |flags| match keepless {
            true => flags & !Attr::ONCE_KEEPLESS | Attr::KEEPLESS,
            false => flags & !Attr::KEEPLESS | Attr::ONCE_KEEPLESS,
        })
    }
}
