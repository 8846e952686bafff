//! Forgetting on purpose: every version of a path is destroyed, in all moments, labelled ones too.
//!
//! What is destroyed: the objects that ever had this name here and all that ever was below them, and the name itself. What
//! lives on under another name is left and told; what is open must be closed first. The live name must be gone before: whoever asks removes it the
//! ordinary way, so that the kernel knows.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use darner_store::{Advance, FilesetId, Key, Kind, ObjectId, Tid};

use crate::dirent::Dirent;
use crate::error::{FsError, Result, refuse};
use crate::fs::Fs;
use crate::node::{Inode, Node, ROOT};

/// What a destruction came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Destroyed {
    /// Objects of which nothing is left.
    pub objects: Vec<Inode>,
    /// What could not be reached, a sentence each.
    pub left: Vec<String>,
}

impl Fs {
    /// Destroys every version of a path (names from `root` down) and of all below it. EEXIST while it exists, EBUSY while
    /// any of it is open or shown by a clone, ENOENT if nothing ever had the name.
    pub fn destroy(
        &self,
        root: Inode,
        path: &[&[u8]],
        now_ns: u64,
        each: &mut dyn FnMut(Advance),
    ) -> Result<Destroyed> {
        let Some((name, dirs)) = path.split_last() else {
            return refuse(libc::EINVAL, "a fileset is removed as a whole, not forgotten");
        };
        let within = self.ever_at(root, dirs)?;
        let roots = self.ever_in(&within, name)?;
        let Some(fileset) = roots.first().map(|ino| ino.fileset) else {
            return refuse(libc::ENOENT, "nothing ever had this name");
        };
        self.check_gone(&within, name)?;
        let mut out = Destroyed::default();
        // One at a time: clones have object numbers in common with their bases, so a number alone says nothing.
        let (roots, mut others): (Vec<Inode>, Vec<Inode>) = roots.into_iter().partition(|ino| ino.fileset == fileset);
        others.dedup_by_key(|ino| ino.fileset);
        out.left.extend(others.iter().map(is_another));
        let all = self.ever_below(roots, &mut out.left)?;
        self.check_not_cloned(fileset, &all)?;
        self.check_not_from_base(fileset, &all)?;
        for ino in all {
            match self.attr_at(ino, Tid::MAX)? {
                Some(attr) if attr.nlink > 0 => {
                    out.left.push(format!("{} lives on there, and its past with it", self.path_of(Node::Live(ino))));
                }
                Some(_) => {
                    return Err(FsError::told(
                        libc::EBUSY,
                        format!("object {ino} of it is still open: close it first"),
                    ));
                }
                None => out.objects.push(ino),
            }
        }
        let suffix = self.suffix(name);
        let keys: Vec<Key> = within.iter().map(|dir| dir.key(Kind::DIRENT, &suffix)).collect();
        let objects: Vec<ObjectId> = out.objects.iter().map(|ino| ino.object).collect();
        let newest = {
            // A file that gets the name from here on is another one, and stays.
            let _live = self.live.read();
            self.check_gone(&within, name)?;
            self.store.tid()
        };
        self.store.forget(fileset, &objects, &keys, newest, now_ns, each)?;
        Ok(out)
    }

    fn check_gone(&self, dirs: &[Inode], name: &[u8]) -> Result<()> {
        for dir in dirs {
            if self.dirent(*dir, name, Tid::MAX)?.is_some() {
                return refuse(libc::EEXIST, "it exists: remove it first");
            }
        }
        Ok(())
    }

    /// Fails if a clone shows any of these objects.
    fn check_not_cloned(&self, fileset: FilesetId, all: &BTreeSet<Inode>) -> Result<()> {
        for (clone, _) in self.filesets() {
            let Some((_, at)) = clone.base.filter(|(base, _)| *base == fileset) else { continue };
            for ino in all {
                if self.attr_at(*ino, at)?.is_some() {
                    let why = format!("the fileset {:?} is a clone that shows it: remove that first", clone.name);
                    return Err(FsError::told(libc::EBUSY, why));
                }
            }
        }
        Ok(())
    }

    /// Fails if it is a clone whose base shows any of these objects: what has hidden them would be forgotten too.
    fn check_not_from_base(&self, fileset: FilesetId, all: &BTreeSet<Inode>) -> Result<()> {
        let clone = self.filesets().into_iter().map(|(clone, _)| clone).find(|clone| clone.id == fileset);
        let Some((base, at)) = clone.and_then(|clone| clone.base) else { return Ok(()) };
        for ino in all {
            if self.attr_at(Inode { fileset: base, ..*ino }, at)?.is_some() {
                return refuse(libc::EBUSY, "it came with the clone from its base: only both together could be forgotten");
            }
        }
        Ok(())
    }

    /// The directories that ever were at a path.
    pub(crate) fn ever_at(&self, root: Inode, path: &[&[u8]]) -> Result<Vec<Inode>> {
        let mut within = vec![root];
        for name in path {
            within = self.ever_in(&within, name)?;
        }
        Ok(within)
    }

    /// What ever had a name in any of some directories.
    fn ever_in(&self, dirs: &[Inode], name: &[u8]) -> Result<Vec<Inode>> {
        let mut found: Vec<Inode> = self.tenures_in(dirs, name)?.iter().map(|t| t.ino).collect();
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Some objects and all that ever was below them, in their fileset.
    fn ever_below(&self, roots: Vec<Inode>, left: &mut Vec<String>) -> Result<BTreeSet<Inode>> {
        let mut all = BTreeSet::new();
        let mut todo = roots;
        while let Some(ino) = todo.pop() {
            if ino == ROOT || !all.insert(ino) {
                continue;
            }
            self.store.versions(ino.fileset, ino.object, Kind::DIRENT, &[], &mut |_, _, value| {
                match value.and_then(|value| Dirent::decode(value, ino.fileset)) {
                    Some(child) if child.ino.fileset == ino.fileset => todo.push(child.ino),
                    Some(child) => left.push(is_another(&child.ino)),
                    None => {}
                }
                ControlFlow::Continue(())
            })?;
        }
        Ok(all)
    }
}

fn is_another(ino: &Inode) -> String {
    format!("fileset {} is another one", ino.fileset.0)
}
