//! A plain tree in memory, and operations that change it and a directory alike.

#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use darner::xattr::{self, Xattrs};
use fastrand::Rng;

/// Files are small enough for many moments, and large enough for several chunks.
const FILE_MAX: usize = 3 << 20;
/// What a tree has at most, about.
const BYTES_MAX: usize = 8 << 20;
const FILES_MAX: usize = 60;

#[derive(Clone, PartialEq)]
enum Content {
    File(Arc<Vec<u8>>),
    Dir,
    Link(String),
}

#[derive(Clone, PartialEq)]
struct Object {
    content: Content,
    mode: u32,
    xattrs: Xattrs,
}

/// What a directory must be like. Names are paths without a slash at the beginning; several of one number are one file.
#[derive(Clone, Default)]
pub struct Tree {
    names: BTreeMap<String, u64>,
    objects: BTreeMap<u64, Object>,
    next: u64,
}

/// One operation, as data.
#[derive(Clone)]
pub enum Op {
    /// Makes the file where there is none.
    Write {
        name: String,
        at: usize,
        data: Vec<u8>,
    },
    Truncate {
        name: String,
        len: usize,
    },
    Punch {
        name: String,
        at: usize,
        len: usize,
    },
    /// Makes a file of one that is anywhere, as of any moment.
    Copy {
        from: PathBuf,
        data: Arc<Vec<u8>>,
        name: String,
    },
    Unlink {
        name: String,
    },
    /// Of a file, also onto another one, or of a directory.
    Rename {
        name: String,
        to: String,
    },
    Link {
        name: String,
        to: String,
    },
    Mkdir {
        name: String,
    },
    Symlink {
        name: String,
        to: String,
    },
    SetXattr {
        name: String,
        xattrs: Xattrs,
    },
    Chmod {
        name: String,
        mode: u32,
    },
    RemoveAll {
        name: String,
    },
}

impl Op {
    /// Does it to a directory.
    pub fn act(&self, root: &Path) -> io::Result<()> {
        match self {
            Op::Write { name, at, data } => {
                let file =
                    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(root.join(name))?;
                file.write_all_at(data, *at as u64)
            }
            Op::Truncate { name, len } => OpenOptions::new().write(true).open(root.join(name))?.set_len(*len as u64),
            Op::Punch { name, at, len } => {
                let file = OpenOptions::new().write(true).open(root.join(name))?;
                let how = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                // SAFETY: a plain system call.
                match unsafe { libc::fallocate(file.as_raw_fd(), how, *at as i64, *len as i64) } {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                }
            }
            // (By copy_file_range.)
            Op::Copy { from, name, .. } => {
                let mut to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(root.join(name))?;
                io::copy(&mut File::open(from)?, &mut to).map(drop)
            }
            Op::Unlink { name } => fs::remove_file(root.join(name)),
            Op::Rename { name, to } => fs::rename(root.join(name), root.join(to)),
            Op::Link { name, to } => fs::hard_link(root.join(name), root.join(to)),
            Op::Mkdir { name } => fs::DirBuilder::new().mode(0o700).create(root.join(name)),
            Op::Symlink { name, to } => std::os::unix::fs::symlink(to, root.join(name)),
            Op::SetXattr { name, xattrs } => xattr::set_all(&root.join(name), xattrs),
            Op::Chmod { name, mode } => fs::set_permissions(root.join(name), Permissions::from_mode(*mode)),
            Op::RemoveAll { name } => fs::remove_dir_all(root.join(name)),
        }
    }
}

impl std::fmt::Display for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Op::Write { name, at, data } => write!(f, "write {name} {at}+{}", data.len()),
            Op::Truncate { name, len } => write!(f, "truncate {name} {len}"),
            Op::Punch { name, at, len } => write!(f, "punch {name} {at}+{len}"),
            Op::Copy { from, name, .. } => write!(f, "copy {} {name}", from.display()),
            Op::Unlink { name } => write!(f, "unlink {name}"),
            Op::Rename { name, to } => write!(f, "rename {name} {to}"),
            Op::Link { name, to } => write!(f, "link {name} {to}"),
            Op::Mkdir { name } => write!(f, "mkdir {name}"),
            Op::Symlink { name, .. } => write!(f, "symlink {name}"),
            Op::SetXattr { name, xattrs } => write!(f, "setxattr {name} {}", xattrs.len()),
            Op::Chmod { name, mode } => write!(f, "chmod {name} {mode:o}"),
            Op::RemoveAll { name } => write!(f, "rm -r {name}"),
        }
    }
}

/// Random bytes, text, zeros, or something short again and again.
fn data(rng: &mut Rng) -> Vec<u8> {
    let len = match rng.u8(..20) {
        0..6 => rng.usize(..300),
        6..12 => rng.usize(..20_000),
        12..19 => rng.usize(..200_000),
        _ => rng.usize(..FILE_MAX / 2),
    };
    let mut unit = vec![0; if rng.bool() { len.max(1) } else { 64 }];
    if rng.u8(..8) > 0 {
        rng.fill(&mut unit);
    }
    unit.into_iter().cycle().take(len).collect()
}

impl Tree {
    fn add(&mut self, name: &str, content: Content, mode: u32) {
        self.next += 1;
        self.objects.insert(self.next, Object { content, mode, xattrs: Xattrs::new() });
        self.take_name(name);
        self.names.insert(name.into(), self.next);
    }

    fn object(&mut self, name: &str) -> &mut Object {
        self.objects.get_mut(&self.names[name]).expect("every name leads to one")
    }

    fn bytes(&mut self, name: &str) -> &mut Vec<u8> {
        match &mut self.object(name).content {
            Content::File(bytes) => Arc::make_mut(bytes),
            _ => unreachable!("{name} is a file"),
        }
    }

    fn take_name(&mut self, name: &str) {
        let Some(number) = self.names.remove(name) else { return };
        if !self.names.values().any(|n| *n == number) {
            self.objects.remove(&number);
        }
    }

    fn below(&self, name: &str) -> Vec<String> {
        let within = format!("{name}/");
        self.names.range(within.clone()..).map(|(n, _)| n.clone()).take_while(|n| n.starts_with(&within)).collect()
    }

    /// Does it to the tree.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Write { name, at, data } => {
                if !self.names.contains_key(name) {
                    self.add(name, Content::File(Arc::default()), 0o600);
                }
                // (Nothing at all makes no file longer.)
                let bytes = self.bytes(name);
                let end = if data.is_empty() { 0 } else { at + data.len() };
                bytes.resize(bytes.len().max(end), 0);
                if !data.is_empty() {
                    bytes[*at..end].copy_from_slice(data);
                }
            }
            Op::Truncate { name, len } => self.bytes(name).resize(*len, 0),
            Op::Punch { name, at, len } => {
                let bytes = self.bytes(name);
                let end = bytes.len().min(at + len);
                bytes[(*at).min(end)..end].fill(0);
            }
            Op::Copy { data, name, .. } => self.add(name, Content::File(data.clone()), 0o600),
            Op::Unlink { name } => self.take_name(name),
            Op::Rename { name, to } => {
                let number = self.names[name];
                // Onto another name of the same file nothing happens.
                if self.names.get(to) == Some(&number) {
                    return;
                }
                self.take_name(to);
                for old in self.below(name) {
                    let number = self.names.remove(&old).expect("just listed");
                    self.names.insert(format!("{to}{}", &old[name.len()..]), number);
                }
                self.names.remove(name);
                self.names.insert(to.clone(), number);
            }
            Op::Link { name, to } => drop(self.names.insert(to.clone(), self.names[name])),
            Op::Mkdir { name } => self.add(name, Content::Dir, 0o700),
            Op::Symlink { name, to } => self.add(name, Content::Link(to.clone()), 0o777),
            Op::SetXattr { name, xattrs } => self.object(name).xattrs = xattrs.clone(),
            Op::Chmod { name, mode } => self.object(name).mode = *mode,
            Op::RemoveAll { name } => {
                self.below(name).iter().for_each(|name| self.take_name(name));
                self.take_name(name);
            }
        }
    }

    /// What another tree has there becomes what this one has there, as new objects.
    pub fn restore(&mut self, name: &str, from: &Tree, to: &str) {
        self.apply(&Op::RemoveAll { name: to.into() });
        let mut numbers = HashMap::new();
        for old in [vec![name.to_string()], from.below(name)].concat() {
            let number = *numbers.entry(from.names[&old]).or_insert_with(|| {
                self.next += 1;
                self.objects.insert(self.next, from.objects[&from.names[&old]].clone());
                self.next
            });
            self.names.insert(format!("{to}{}", &old[name.len()..]), number);
        }
    }

    /// Some name of it.
    pub fn any_name(&self, rng: &mut Rng) -> Option<String> {
        rng.choice(self.names.keys()).cloned()
    }

    /// Whether something can be put there.
    pub fn has_dir_of(&self, name: &str) -> bool {
        name.rsplit_once('/').is_none_or(|(dir, _)| {
            self.names.get(dir).is_some_and(|number| self.objects[number].content == Content::Dir)
        })
    }

    /// The regular files, with what is in them.
    pub fn files(&self) -> Vec<(&String, &Arc<Vec<u8>>)> {
        let file = |(name, number)| match &self.objects[number].content {
            Content::File(bytes) => Some((name, bytes)),
            _ => None,
        };
        self.names.iter().filter_map(file).collect()
    }

    /// Those of a name.
    pub fn xattrs(&self, name: &str) -> &Xattrs {
        &self.objects[&self.names[name]].xattrs
    }

    /// Files with one name.
    pub fn single_files(&self) -> Vec<(&String, &Arc<Vec<u8>>)> {
        let mut files = self.files();
        files.retain(|(name, _)| self.links(self.names[*name]) == 1);
        files
    }

    fn links(&self, number: u64) -> usize {
        self.names.values().filter(|n| **n == number).count()
    }

    fn dirs(&self) -> Vec<&String> {
        let names = self.names.iter();
        names.filter(|(_, number)| self.objects[number].content == Content::Dir).map(|(name, _)| name).collect()
    }

    fn new_name(&self, rng: &mut Rng) -> String {
        let number = rng.u32(..);
        match rng.choice(self.dirs()).filter(|_| rng.u8(..4) > 0) {
            Some(dir) => format!("{dir}/{number:x}"),
            None => format!("{number:x}"),
        }
    }

    /// Something that can be done to it. `others`: files that can be copied, with what is in them.
    pub fn any_op(&self, rng: &mut Rng, others: &[(PathBuf, Arc<Vec<u8>>)]) -> Op {
        let files = self.files();
        let to = self.new_name(rng);
        let Some((name, bytes)) = rng.choice(&files).map(|(name, bytes)| ((*name).clone(), *bytes)) else {
            return Op::Write { name: to, at: 0, data: data(rng) };
        };
        if files.len() > FILES_MAX || files.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() > BYTES_MAX {
            return Op::Unlink { name };
        }
        let len = bytes.len();
        match rng.u8(..100) {
            0..20 => Op::Write { name: to, at: 0, data: data(rng) },
            20..42 => Op::Write { name, at: rng.usize(..=(len + 5000).min(FILE_MAX)), data: data(rng) },
            42..47 => Op::Truncate { name, len: rng.usize(..=(2 * len).min(FILE_MAX)) },
            47..53 => Op::Punch { name, at: rng.usize(..=len), len: rng.usize(1..=len + 1) },
            53..60 => match rng.choice(others) {
                Some((from, data)) => Op::Copy { from: from.clone(), data: data.clone(), name: to },
                None => Op::Mkdir { name: to },
            },
            60..68 => Op::Unlink { name },
            68..75 => Op::Rename { name, to },
            75..77 => Op::Rename { name, to: (*rng.choice(&files).expect("some").0).clone() },
            77..81 => Op::Link { name, to },
            81..86 => Op::Mkdir { name: to },
            86..88 => Op::Symlink { name: to, to: format!("../{name}") },
            88..92 => {
                let value = (0..rng.usize(..300)).map(|_| rng.u8(..)).collect();
                let key = [c"user.a", c"user.b"][rng.usize(..2)].to_owned();
                Op::SetXattr { name, xattrs: Xattrs::from([(key, value)]) }
            }
            92..95 => Op::Chmod { name, mode: [0o600, 0o644, 0o755][rng.usize(..3)] },
            _ => match rng.choice(self.dirs()).cloned() {
                Some(name) if rng.bool() => Op::RemoveAll { name },
                Some(name) if to != name && !to.starts_with(&format!("{name}/")) => Op::Rename { name, to },
                _ => Op::Mkdir { name: to },
            },
        }
    }

    /// That a directory is like it. `skip`: names there that are not looked at.
    #[track_caller]
    pub fn must_be_at(&self, root: &Path, skip: &BTreeSet<String>) {
        let found = self.differences(root, skip);
        let listed = found[..found.len().min(20)].join("\n");
        assert!(found.is_empty(), "{}: {} differences\n{listed}", root.display(), found.len());
    }

    /// That another one is the same.
    #[track_caller]
    pub fn must_be(&self, other: &Tree) {
        let objects = |tree: &Tree| -> Vec<(String, Object, usize)> {
            let of =
                |(name, number): (&String, &u64)| (name.clone(), tree.objects[number].clone(), tree.links(*number));
            tree.names.iter().map(of).collect()
        };
        assert!(objects(self) == objects(other), "they differ");
    }

    /// Whether it is.
    pub fn is_at(&self, root: &Path, skip: &BTreeSet<String>) -> bool {
        self.differences(root, skip).is_empty()
    }

    /// What is not like it there, one sentence each.
    fn differences(&self, root: &Path, skip: &BTreeSet<String>) -> Vec<String> {
        let mut walk = Walk { tree: self, root, found: Vec::new(), left: self.names.clone(), numbers: HashMap::new() };
        walk.dir("", skip).unwrap_or_else(|e| walk.found.push(e));
        let missing: Vec<String> = walk.left.keys().map(|name| format!("{name} is missing")).collect();
        walk.found.into_iter().chain(missing).collect()
    }
}

/// A comparison under way.
struct Walk<'t> {
    tree: &'t Tree,
    root: &'t Path,
    found: Vec<String>,
    /// Names that were not met yet.
    left: BTreeMap<String, u64>,
    /// Inode numbers there, and which of the tree's objects those are.
    numbers: HashMap<u64, u64>,
}

impl Walk<'_> {
    fn dir(&mut self, dir: &str, skip: &BTreeSet<String>) -> Result<(), String> {
        let path = self.root.join(dir);
        let fails = |e: io::Error| format!("{}: {e}", path.display());
        for entry in fs::read_dir(&path).map_err(fails)? {
            let name = entry.map_err(fails)?.file_name().into_string().map_err(|name| format!("{name:?}"))?;
            if skip.contains(&name) {
                continue;
            }
            let name = if dir.is_empty() { name } else { format!("{dir}/{name}") };
            match self.left.remove(&name) {
                Some(number) => self.entry(&name, number).unwrap_or_else(|e| self.found.push(e)),
                None => self.found.push(format!("{name} is there, and should not")),
            }
        }
        Ok(())
    }

    fn entry(&mut self, name: &str, number: u64) -> Result<(), String> {
        let (tree, path) = (self.tree, self.root.join(name));
        let object = &tree.objects[&number];
        let fails = |e: io::Error| format!("{name}: {e}");
        let meta = fs::symlink_metadata(&path).map_err(fails)?;
        let links = tree.links(number) as u64;
        if object.content != Content::Dir && meta.nlink() != links {
            self.found.push(format!("{name} has {} links instead of {links}", meta.nlink()));
        }
        if *self.numbers.entry(meta.ino()).or_insert(number) != number {
            self.found.push(format!("{name} is the same file as another one"));
        }
        if meta.mode() & 0o7777 != object.mode {
            self.found.push(format!("{name} has mode {:o} instead of {:o}", meta.mode() & 0o7777, object.mode));
        }
        let mut xattrs = xattr::all(&path).map_err(fails)?;
        xattrs.retain(|key, _| key.to_bytes().starts_with(b"user."));
        if xattrs != object.xattrs {
            self.found.push(format!("{name} has other xattrs: {:?}", xattrs.keys()));
        }
        match &object.content {
            Content::Dir => self.dir(name, &BTreeSet::new()),
            Content::Link(to) if fs::read_link(&path).map_err(fails)? == Path::new(to) => Ok(()),
            Content::Link(to) => Err(format!("{name} does not lead to {to}")),
            Content::File(bytes) => match first_difference(&fs::read(&path).map_err(fails)?, bytes) {
                Some(at) => Err(format!("{name} of {} bytes is another from byte {at} on", bytes.len())),
                None => Ok(()),
            },
        }
    }
}

/// The first byte at which two differ.
pub fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    match a.iter().zip(b).position(|(a, b)| a != b) {
        None if a.len() == b.len() => None,
        at => Some(at.unwrap_or(a.len().min(b.len()))),
    }
}
