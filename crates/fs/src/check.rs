//! Verifying the live trees: names lead to objects, link counts are right, sizes and counts add up. Changes nothing.

use std::collections::HashMap;
use std::ops::ControlFlow;

use darner_store::{Count, Kind, ObjectId, Tid};

use crate::attr::Attr;
use crate::dirent::Dirent;
use crate::error::Result;
use crate::fs::Fs;
use crate::node::{Inode, MAIN};

/// What a check of the live trees found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Objects reached, the roots included.
    pub objects: u64,
    /// One sentence for each thing that is not as it should be.
    pub findings: Vec<String>,
}

#[derive(Default)]
struct Seen {
    names: u32,
    subdirs: u32,
    is_dir: bool,
}

/// The walk of one fileset.
struct Walk<'f> {
    fs: &'f Fs,
    seen: HashMap<Inode, Seen>,
    dirs: Vec<Inode>,
    findings: Vec<String>,
}

impl Fs {
    /// Walks the live trees from their roots.
    pub fn check(&self) -> Result<Checked> {
        let mut all = Checked::default();
        for (fileset, count) in self.filesets() {
            let found = self.check_fileset(fileset.inode(), count)?;
            all.objects += found.objects;
            let within = if fileset.id == MAIN { String::new() } else { format!("fileset {:?}: ", fileset.name) };
            all.findings.extend(found.findings.into_iter().map(|finding| format!("{within}{finding}")));
            if self.is_apart(&fileset)? && self.head().is_none() {
                all.findings.push(format!("fileset {:?} is not in the main root", fileset.name));
            }
        }
        Ok(all)
    }

    fn check_fileset(&self, root: Inode, count: Count) -> Result<Checked> {
        let root_seen = Seen { names: 0, subdirs: 0, is_dir: true };
        let mut walk =
            Walk { fs: self, seen: HashMap::from([(root, root_seen)]), dirs: vec![root], findings: Vec::new() };
        while let Some(dir) = walk.dirs.pop() {
            walk.dir(dir)?;
        }
        let bytes = walk.objects()?;
        let mut orphans = 0;
        self.each(Inode::meta(root.fileset), Kind::ORPHAN, &[], Tid::MAX, |suffix, _, _| {
            let orphan = root.sibling(ObjectId(suffix.try_into().map_or(0, u64::from_be_bytes)));
            orphans += u64::from(!walk.seen.contains_key(&orphan));
            ControlFlow::Continue(())
        })?;
        let objects = walk.seen.len() as u64;
        if count.objects != objects + orphans {
            walk.findings
                .push(format!("{} objects are counted, but there are {objects} and {orphans} orphans", count.objects));
        }
        if orphans == 0 && count.live != bytes {
            walk.findings.push(format!("{} live bytes are counted, but there are {bytes}", count.live));
        }
        Ok(Checked { objects, findings: walk.findings })
    }
}

impl Walk<'_> {
    fn dir(&mut self, dir: Inode) -> Result<()> {
        let mut children = Vec::new();
        self.fs.each(dir, Kind::DIRENT, &[], Tid::MAX, |suffix, tid, value| {
            children.push((suffix.to_vec(), Dirent::decode(value, dir.fileset), tid));
            ControlFlow::Continue(())
        })?;
        for (suffix, child, tid) in children {
            let name = suffix.get(8..).unwrap_or_default().escape_ascii().to_string();
            let Some(child) = child else {
                self.findings.push(format!("name {name:?} in directory {dir} (tid {tid}) is in no known form"));
                continue;
            };
            match self.fs.attr_at(child.ino, Tid::MAX)? {
                Some(attr) => self.child(dir, child.ino, &attr),
                None => self.findings.push(format!(
                    "name {name:?} in directory {dir} leads to object {}, which is not there",
                    child.ino
                )),
            }
        }
        Ok(())
    }

    fn child(&mut self, dir: Inode, child: Inode, attr: &Attr) {
        if child.fileset != dir.fileset {
            // The root of another fileset, which has a walk of its own.
            self.seen.entry(dir).or_default().subdirs += 1;
            return;
        }
        let entry = self.seen.entry(child).or_default();
        entry.names += 1;
        entry.is_dir = attr.is_dir();
        if !attr.is_dir() {
            return;
        }
        if entry.names == 1 {
            self.dirs.push(child);
        }
        self.seen.entry(dir).or_default().subdirs += 1;
        if attr.parent != dir.object {
            self.findings.push(format!("directory {child} says its parent is {}, but is in {dir}", attr.parent));
        }
    }

    /// Looks at all objects that were seen; returns what their data comes to.
    fn objects(&mut self) -> Result<u64> {
        let mut bytes = 0;
        for (ino, s) in &self.seen {
            let Some(attr) = self.fs.attr_at(*ino, Tid::MAX)? else { continue };
            let links = if s.is_dir { 2 + s.subdirs } else { s.names };
            if attr.nlink != links {
                self.findings.push(format!("object {ino} says it has {} links, but has {links}", attr.nlink));
            }
            bytes += attr.bytes;
            if attr.is_file() {
                let (data, beyond) = self.fs.data_of(*ino, attr.size)?;
                if data != attr.bytes || beyond {
                    self.findings.push(format!("file {ino} says it has {} bytes of data, but has {data}", attr.bytes));
                }
            }
        }
        Ok(bytes)
    }
}

impl Fs {
    /// How many bytes of a file hold data, and whether any lies beyond its size.
    fn data_of(&self, ino: Inode, size: u64) -> Result<(u64, bool)> {
        let pieces = self.store.map(ino.fileset, ino.object, 0, size, Tid::MAX)?;
        let beyond = self.store.next_data(ino.fileset, ino.object, size, Tid::MAX)?;
        Ok((pieces.iter().filter(|p| p.is_data()).map(|p| p.len).sum(), beyond.is_some()))
    }
}
