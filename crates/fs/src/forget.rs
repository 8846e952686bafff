//! Forgetting on purpose: every version of a path is destroyed, in all moments, labelled ones too.
//!
//! What is destroyed: the objects that ever had this name here and all that ever was below them, and the name itself. What
//! lives on under another name is left and told; what is open must be closed first. The live name must be gone before: whoever asks removes it the
//! ordinary way, so that the kernel knows.
//!
//! Clones share: what a live one shows of the fileset stays, and so does what a clone shows of its base, since a clone's
//! own records only hide that. In removed clones, which only their past shows, it goes as well.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use darner_store::{Advance, Error, FilesetId, Key, Kind, ObjectId, Tid};

use crate::dirent::Dirent;
use crate::error::{FsError, Result, refuse};
use crate::fs::Fs;
use crate::node::{Inode, Node, ROOT};

/// What a destruction came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Destroyed {
    /// Objects of which nothing is left.
    pub objects: Vec<Inode>,
    /// No moment showed any of it before: it went with all else that had lapsed.
    pub lapsed: bool,
    /// What could not be reached, a sentence each.
    pub left: Vec<String>,
}

impl Fs {
    /// Destroys every version of a path (names from `root` down) and of all below it. EEXIST while it exists, EBUSY while
    /// any of it is open or shown by a clone, ENOENT if nothing of which anything is left ever had the name.
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
        let mut out = Destroyed::default();
        let Some((fileset, all)) = self.doomed(&within, name, &mut out.left)? else {
            return self.destroy_lapsed(&within, name, now_ns, each);
        };
        self.check_gone(&within, name)?;
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
        let removed = self.removed_clones(fileset);
        let everywhere = |ino: &Inode| -> Vec<Inode> {
            removed.iter().chain([&fileset]).map(|of| Inode { fileset: *of, ..*ino }).collect()
        };
        // (What a removed clone itself called so was something else.)
        let keys: Vec<Key> = within.iter().map(|dir| dir.key(Kind::DIRENT, &suffix)).collect();
        let objects: Vec<_> = out.objects.iter().flat_map(everywhere).map(|ino| (ino.fileset, ino.object)).collect();
        let newest = {
            // A file that gets the name from here on is another one, and stays.
            let _live = self.live.read();
            self.check_gone(&within, name)?;
            self.store.tid()
        };
        self.forget_versions(&objects, &keys, newest, now_ns, each, &mut out.left)?;
        Ok(out)
    }

    fn forget_versions(
        &self,
        objects: &[(FilesetId, ObjectId)],
        keys: &[Key],
        newest: Tid,
        now_ns: u64,
        each: &mut dyn FnMut(Advance),
        left: &mut Vec<String>,
    ) -> Result<()> {
        match self.store.forget(objects, keys, newest, now_ns, each) {
            Err(e @ Error::Remains(_)) => left.push(e.to_string()),
            done => done?,
        }
        Ok(())
    }

    /// Fails where [`Fs::destroy`] would for the sake of a clone: to be asked while it still exists.
    pub fn check_destroyable(&self, root: Inode, path: &[&[u8]]) -> Result<()> {
        let Some((name, dirs)) = path.split_last() else { return Ok(()) };
        self.doomed(&self.ever_at(root, dirs)?, name, &mut Vec::new()).map(drop)
    }

    /// What ever had a name in some directories, and all that ever was below it, in the first one's fileset; `None` if nothing did.
    /// EBUSY if a clone needs any of it.
    fn doomed(
        &self,
        within: &[Inode],
        name: &[u8],
        left: &mut Vec<String>,
    ) -> Result<Option<(FilesetId, BTreeSet<Inode>)>> {
        let roots = self.ever_in(within, name)?;
        let Some(fileset) = roots.first().map(|ino| ino.fileset) else { return Ok(None) };
        // One at a time: clones have object numbers in common with their bases, so a number alone says nothing.
        let (roots, mut others): (Vec<Inode>, Vec<Inode>) = roots.into_iter().partition(|ino| ino.fileset == fileset);
        others.dedup_by_key(|ino| ino.fileset);
        left.extend(others.iter().map(is_another));
        let all = self.ever_below(roots, left)?;
        self.check_not_cloned(fileset, &all)?;
        self.check_not_from_base(fileset, &all)?;
        Ok(Some((fileset, all)))
    }

    /// Destroys what had a name in the past that was given up: no moment shows it, but its bytes may still be there, with those
    /// of all else that lapsed. ENOENT if nothing that is left ever had the name.
    fn destroy_lapsed(
        &self,
        within: &[Inode],
        name: &[u8],
        now_ns: u64,
        each: &mut dyn FnMut(Advance),
    ) -> Result<Destroyed> {
        let suffix = self.suffix(name);
        let mut keys = Vec::new();
        for (fileset, dir) in self.store.ever_had(Kind::DIRENT, &suffix)? {
            // Of a directory that lapsed itself nobody knows the path.
            let dir = Inode { fileset, object: dir };
            if within.contains(&dir) || !self.store.has_object(dir.fileset, dir.object)? {
                keys.push(dir.key(Kind::DIRENT, &suffix));
            }
        }
        if keys.is_empty() {
            return refuse(libc::ENOENT, "nothing that is left ever had this name");
        }
        let mut out = Destroyed { lapsed: true, ..Destroyed::default() };
        self.forget_versions(&[], &keys, self.store.tid(), now_ns, each, &mut out.left)?;
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

    /// Fails if a clone, or a clone of one, shows any of these objects.
    fn check_not_cloned(&self, fileset: FilesetId, all: &BTreeSet<Inode>) -> Result<()> {
        let live = self.filesets();
        for (clone, at) in self.store.shown_through(fileset) {
            let Some((clone, _)) = live.iter().find(|(f, _)| f.id == clone) else { continue };
            for ino in all {
                if self.attr_at(*ino, at)?.is_some() {
                    let why = format!("the fileset {:?} is a clone that shows it: remove that first", clone.name);
                    return Err(FsError::told(libc::EBUSY, why));
                }
            }
        }
        Ok(())
    }

    /// Fails if any of these objects is a clone's base's: were what hides it destroyed, it would be there again.
    fn check_not_from_base(&self, fileset: FilesetId, all: &BTreeSet<Inode>) -> Result<()> {
        let Some((base, at)) = self.store.beneath(fileset) else { return Ok(()) };
        for ino in all {
            if self.attr_at(Inode { fileset: base, ..*ino }, at)?.is_some() {
                return refuse(
                    libc::EBUSY,
                    "it came with the clone from its base, and can't be destroyed in the clone alone",
                );
            }
        }
        Ok(())
    }

    /// Clones that are no more, but in whose past a fileset shows.
    fn removed_clones(&self, fileset: FilesetId) -> Vec<FilesetId> {
        let live = self.filesets();
        let clones = self.store.shown_through(fileset).into_iter().map(|(clone, _)| clone);
        clones.filter(|clone| live.iter().all(|(f, _)| f.id != *clone)).collect()
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
            // What lives on under another name keeps what ever was below it.
            if self.attr_at(ino, Tid::MAX)?.is_some_and(|attr| attr.nlink > 0) {
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
