//! Verifying the live tree: names lead to objects, link counts are right, sizes and counts add up. Changes nothing.

use std::collections::HashMap;
use std::ops::ControlFlow;

use darner_store::{Kind, ObjectId, Tid};

use crate::dirent::Dirent;
use crate::error::Result;
use crate::fs::{FILESET, Fs, META, ROOT};

/// What a check of the live tree found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Objects reached, the root included.
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

impl Fs {
    /// Walks the live tree from the root.
    pub fn check(&self) -> Result<Checked> {
        let mut out = Checked::default();
        let mut seen: HashMap<ObjectId, Seen> = HashMap::from([(ROOT, Seen { names: 0, subdirs: 0, is_dir: true })]);
        let mut dirs = vec![ROOT];
        while let Some(dir) = dirs.pop() {
            let mut children = Vec::new();
            self.each(dir, Kind::DIRENT, &[], Tid::MAX, |suffix, tid, value| {
                children.push((suffix.to_vec(), Dirent::decode(value), tid));
                ControlFlow::Continue(())
            })?;
            for (suffix, child, tid) in children {
                let name = suffix.get(8..).unwrap_or_default().escape_ascii().to_string();
                let Some(child) = child else {
                    out.findings.push(format!("name {name:?} in directory {dir} (tid {tid}) is in no known form"));
                    continue;
                };
                let Some(attr) = self.attr_at(child.ino, Tid::MAX)? else {
                    out.findings.push(format!(
                        "name {name:?} in directory {dir} leads to object {}, which is not there",
                        child.ino
                    ));
                    continue;
                };
                let is_dir = attr.is_dir();
                let entry = seen.entry(child.ino).or_default();
                entry.names += 1;
                entry.is_dir = is_dir;
                if is_dir {
                    if entry.names == 1 {
                        dirs.push(child.ino);
                    }
                    seen.entry(dir).or_default().subdirs += 1;
                    if attr.parent != dir {
                        out.findings.push(format!(
                            "directory {} says its parent is {}, but is in {dir}",
                            child.ino, attr.parent
                        ));
                    }
                }
            }
        }
        let mut bytes = 0;
        for (ino, s) in &seen {
            out.objects += 1;
            let Some(attr) = self.attr_at(*ino, Tid::MAX)? else { continue };
            let links = if s.is_dir { 2 + s.subdirs } else { s.names };
            if attr.nlink != links {
                out.findings.push(format!("object {ino} says it has {} links, but has {links}", attr.nlink));
            }
            bytes += attr.bytes;
            if attr.is_file() {
                let pieces = self.store.map(FILESET, *ino, 0, attr.size, Tid::MAX)?;
                let data: u64 = pieces.iter().filter(|p| p.is_data()).map(|p| p.len).sum();
                let beyond = self.store.next_data(FILESET, *ino, attr.size, Tid::MAX)?;
                if data != attr.bytes || beyond.is_some() {
                    out.findings.push(format!("file {ino} says it has {} bytes of data, but has {data}", attr.bytes));
                }
            }
        }
        let mut orphans = 0;
        self.each(META, Kind::ORPHAN, &[], Tid::MAX, |suffix, _, _| {
            orphans += u64::from(!seen.contains_key(&ObjectId(suffix.try_into().map_or(0, u64::from_be_bytes))));
            ControlFlow::Continue(())
        })?;
        let usage = self.store.usage()?;
        if usage.objects != out.objects + orphans {
            out.findings.push(format!(
                "{} objects are counted, but there are {} and {orphans} orphans",
                usage.objects, out.objects
            ));
        }
        if orphans == 0 && usage.live != bytes {
            out.findings.push(format!("{} live bytes are counted, but there are {bytes}", usage.live));
        }
        Ok(out)
    }
}
