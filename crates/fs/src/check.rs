//! Verifying the live trees: names lead to objects, link counts are right, sizes and counts add up. Changes nothing. Of a mirror amid a
//! pull, what it shows is looked at.

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

/// The walk of one fileset, as of a moment.
struct Walk<'f> {
    fs: &'f Fs,
    at: Tid,
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
        let pulled = self.following().filter(|f| root.fileset == MAIN && !f.is_whole());
        let at = pulled.as_ref().map_or(Tid::MAX, |f| f.shown);
        let seen = HashMap::from([(root, root_seen)]);
        let mut walk = Walk { fs: self, at, seen, dirs: vec![root], findings: Vec::new() };
        while let Some(dir) = walk.dirs.pop() {
            walk.dir(dir)?;
        }
        let bytes = walk.objects()?;
        let objects = walk.seen.len() as u64;
        // (What is counted includes what has been pulled.)
        if pulled.is_some() {
            return Ok(Checked { objects, findings: walk.findings });
        }
        let mut orphans = 0;
        self.each(Inode::meta(root.fileset), Kind::ORPHAN, &[], Tid::MAX, |suffix, _, _| {
            let orphan = root.sibling(ObjectId(suffix.try_into().map_or(0, u64::from_be_bytes)));
            orphans += u64::from(!walk.seen.contains_key(&orphan));
            ControlFlow::Continue(())
        })?;
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
        self.fs.each(dir, Kind::DIRENT, &[], self.at, |suffix, tid, value| {
            children.push((suffix.to_vec(), Dirent::decode(value, dir.fileset), tid));
            ControlFlow::Continue(())
        })?;
        for (suffix, child, tid) in children {
            let name = suffix.get(8..).unwrap_or_default().escape_ascii().to_string();
            let Some(child) = child else {
                self.findings.push(format!("name {name:?} in directory {dir} (tid {tid}) is in no known form"));
                continue;
            };
            match self.fs.attr_at(child.ino, self.at)? {
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
            let Some(attr) = self.fs.attr_at(*ino, self.at)? else { continue };
            let links = if s.is_dir { 2 + s.subdirs } else { s.names };
            if attr.nlink != links {
                self.findings.push(format!("object {ino} says it has {} links, but has {links}", attr.nlink));
            }
            bytes += attr.bytes;
            if attr.is_file() {
                let (data, beyond) = self.data_of(*ino, attr.size)?;
                if data != attr.bytes {
                    self.findings.push(format!("file {ino} says it has {} bytes of data, but has {data}", attr.bytes));
                }
                if let Some(beyond) = beyond {
                    let size = attr.size;
                    self.findings
                        .push(format!("file {ino} has {size} bytes, and data beyond its end, from {beyond} on"));
                }
            }
        }
        Ok(bytes)
    }

    /// How many bytes of a file hold data, and where any begins that lies beyond its size.
    fn data_of(&self, ino: Inode, size: u64) -> Result<(u64, Option<u64>)> {
        let pieces = self.fs.store.map(ino.fileset, ino.object, 0, size, self.at)?;
        let beyond = self.fs.store.next_data(ino.fileset, ino.object, size, self.at)?;
        Ok((pieces.iter().filter(|p| p.is_data()).map(|p| p.len).sum(), beyond.map(|(from, _)| from)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use darner_store::Store;

    use super::*;
    use crate::op::Caller;

    #[test]
    fn data_beyond_the_end_of_a_file_is_told_as_that() {
        let fs = Fs::create(Arc::new(Store::in_memory()), 0, 0, 0o755, 2).unwrap();
        let made = fs.mknod(&Caller::default(), 3, fs.root(), b"file", libc::S_IFREG | 0o644, 0).unwrap();
        fs.write(4, made.node, Some(0), b"some", false).unwrap();
        assert_eq!(fs.check().unwrap().findings, Vec::<String>::new());
        let ino = made.node.inode();
        let mut tx = fs.store.begin(MAIN, 5).unwrap();
        tx.write(ino.object, 70_000, b"more").unwrap();
        tx.commit().unwrap();
        let said = format!("file {ino} has 4 bytes, and data beyond its end, from 70000 on");
        assert_eq!(fs.check().unwrap().findings, [said]);
    }
}
