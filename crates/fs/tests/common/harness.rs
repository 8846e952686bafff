//! A plain model of the filesystem that keeps a whole tree per fileset and tid, and a harness that does random operations
//! on both: errno and effect must agree. `model.rs` keeps everything and compares any moment; `past.rs` gives up moments
//! and compares those that are left.

#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use darner_fs::{
    Attr, Caller, FallocateMode, FilesetId, Found, Fs, FsError, Inode, MAIN, Node, ObjectId, RenameMode, Seek, SetAttr,
    SetTime, SetXattr, Tid, Time,
};
use darner_store::Store;

use crate::common::START;

/// A byte that is a hole.
const HOLE: u16 = 256;
const SIZE_MAX: u64 = 200 << 10;
const NAMES: [&str; 10] = ["a", "b", "c", "d", "e", "f", "g@@x", "h", "longer name", "ü"];
const ROOT: u64 = 1;

#[derive(Clone, Default)]
pub struct Object {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    pub data: Rc<Vec<u16>>,
    pub bytes: u64,
    pub target: Vec<u8>,
    pub entries: BTreeMap<Vec<u8>, u64>,
    pub parent: u64,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
    pub btime: Time,
}

impl Object {
    fn kind(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    pub fn is_dir(&self) -> bool {
        self.kind() == libc::S_IFDIR
    }

    fn is_file(&self) -> bool {
        self.kind() == libc::S_IFREG
    }

    fn size(&self) -> u64 {
        match self.kind() {
            libc::S_IFDIR => self.entries.len() as u64,
            libc::S_IFLNK => self.target.len() as u64,
            _ => self.data.len() as u64,
        }
    }

    /// Changes the data and counts it anew.
    fn edit(&mut self, change: impl FnOnce(&mut Vec<u16>)) {
        change(Rc::make_mut(&mut self.data));
        self.bytes = self.data.iter().filter(|cell| **cell != HOLE).count() as u64;
    }

    fn content(&self) -> Vec<u8> {
        self.data.iter().map(|&cell| if cell == HOLE { 0 } else { cell as u8 }).collect()
    }
}

pub type Tree = BTreeMap<u64, Rc<Object>>;

/// All filesets at a moment.
#[derive(Clone, Default)]
pub struct Forest {
    pub trees: BTreeMap<FilesetId, Rc<Tree>>,
    pub roots: BTreeMap<FilesetId, u64>,
    /// Those in the main root.
    pub names: BTreeMap<String, FilesetId>,
    pub bases: BTreeMap<FilesetId, FilesetId>,
}

impl Forest {
    pub fn root(&self, fileset: FilesetId) -> Inode {
        Inode { fileset, object: ObjectId(self.roots[&fileset]) }
    }

    fn insert(&mut self, name: &str, root: Inode, tree: Tree) {
        self.names.insert(name.to_string(), root.fileset);
        self.roots.insert(root.fileset, root.object.0);
        self.trees.insert(root.fileset, Rc::new(tree));
    }

    fn remove(&mut self, name: &str) {
        let fileset = self.names.remove(name).expect("a fileset");
        self.roots.remove(&fileset);
        self.trees.remove(&fileset);
        self.bases.remove(&fileset);
    }

    pub fn objects(&self) -> impl Iterator<Item = (Inode, &Rc<Object>)> {
        self.trees.iter().flat_map(|(fileset, tree)| {
            tree.iter().map(|(ino, object)| (Inode { fileset: *fileset, object: ObjectId(*ino) }, object))
        })
    }
}

pub type Outcome<T = ()> = Result<T, i32>;

pub struct Harness<'r> {
    pub rng: fastrand::Rng,
    pub fs: Option<Fs>,
    pub reopen: &'r mut dyn FnMut(Arc<Store>) -> Arc<Store>,
    pub now: u64,
    /// The fileset that is being changed.
    pub fileset: FilesetId,
    /// Its live tree, open objects without a name included.
    pub tree: Tree,
    /// All filesets; what it has of the current one may be behind.
    pub forest: Forest,
    /// The newest forests, each with its tid, without a gap.
    pub recent: VecDeque<(Tid, Forest)>,
    /// A sample of the older ones.
    pub older: Vec<(Tid, Forest)>,
    pub compared: u64,
    /// Objects, names, xattrs and files' bytes that were compared as of moments of the past.
    pub keys: u64,
    /// What each clone that there ever was shows.
    pub bases: BTreeMap<FilesetId, (FilesetId, Tid)>,
    pub destroyed: Destroyed,
}

/// What was destroyed in all moments.
#[derive(Default)]
pub struct Destroyed {
    pub objects: BTreeSet<Inode>,
    pub names: Vec<GoneName>,
}

/// A name that a destruction took out of the past.
pub struct GoneName {
    pub dir: Inode,
    pub name: Vec<u8>,
    /// Moments since this have it again, if somebody gave it.
    pub before: Tid,
    /// False: it may be there still, since whether the directory belonged to the path depends on what was cleaned by then.
    pub surely: bool,
}

const RECENT: usize = 4096;
const OLDER: usize = 1024;

impl Destroyed {
    fn is_empty_in(&self, forest: &Forest) -> bool {
        self.names.is_empty() && forest.objects().all(|(ino, _)| !self.objects.contains(&ino))
    }
}

impl<'r> Harness<'r> {
    pub fn new(seed: u64, store: Arc<Store>, reopen: &'r mut dyn FnMut(Arc<Store>) -> Arc<Store>) -> Harness<'r> {
        let fs = Fs::create(store, 0, 0, 0o755, START + 1).unwrap();
        let tid = fs.store().tid();
        let time = Time::from(tid);
        let root = Object {
            mode: libc::S_IFDIR | 0o755,
            nlink: 2,
            parent: ROOT,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            ..Object::default()
        };
        let tree = Tree::from([(ROOT, Rc::new(root))]);
        let forest = Forest {
            trees: BTreeMap::from([(MAIN, Rc::new(tree.clone()))]),
            roots: BTreeMap::from([(MAIN, ROOT)]),
            ..Forest::default()
        };
        Harness {
            rng: fastrand::Rng::with_seed(seed),
            fs: Some(fs),
            reopen,
            now: START + 2,
            recent: VecDeque::from([(tid, forest.clone())]),
            fileset: MAIN,
            tree,
            forest,
            older: Vec::new(),
            compared: 0,
            keys: 0,
            bases: BTreeMap::new(),
            destroyed: Destroyed::default(),
        }
    }

    pub fn run(&mut self, ops: u64) {
        for _ in 0..ops {
            self.step();
            self.remember();
            let filesets: Vec<FilesetId> = self.forest.trees.keys().copied().collect();
            for fileset in [self.fileset, self.rng.choice(filesets).expect("the main one")] {
                self.compare(Node::Live(self.forest.root(fileset)), &self.forest.clone());
            }
            for _ in 0..2 {
                self.compare_past();
            }
            let usage = self.fs().store().usage().unwrap();
            let bytes = self.forest.objects().map(|(_, object)| object.bytes).sum();
            let count = self.forest.objects().count() as u64;
            assert_eq!((usage.objects, usage.live), (count, bytes), "objects and live bytes");
            let bytes = self.tree.values().map(|object| object.bytes).sum();
            let held = self.fs().store().counted(self.fileset);
            assert_eq!((held.objects, held.live), (self.tree.len() as u64, bytes), "of {:?}", self.fileset);
        }
    }

    pub fn fs(&self) -> &Fs {
        self.fs.as_ref().expect("open")
    }

    pub fn inode(&self, ino: u64) -> Inode {
        Inode { fileset: self.fileset, object: ObjectId(ino) }
    }

    pub fn live(&self, ino: u64) -> Node {
        Node::Live(self.inode(ino))
    }

    pub fn root(&self) -> u64 {
        self.forest.roots[&self.fileset]
    }

    /// Brings the forest up to date.
    pub fn settle(&mut self) {
        self.forest.trees.insert(self.fileset, Rc::new(self.tree.clone()));
    }

    /// Goes on with another fileset.
    pub fn switch(&mut self, to: FilesetId) {
        self.settle();
        self.fileset = to;
        self.tree = (*self.forest.trees[&to]).clone();
    }

    pub fn remember(&mut self) {
        self.settle();
        let tid = self.fs().store().tid();
        if self.recent.back().is_some_and(|(newest, _)| *newest == tid) {
            self.recent.pop_back();
        }
        self.recent.push_back((tid, self.forest.clone()));
        if self.recent.len() > RECENT {
            let old = self.recent.pop_front().expect("many");
            if self.older.len() < OLDER {
                self.older.push(old);
            } else if self.rng.u8(0..4) == 0 {
                let at = self.rng.usize(..OLDER);
                self.older[at] = old;
            }
        }
    }

    // What to do.

    pub fn step(&mut self) {
        match self.rng.u8(0..20) {
            0 => self.now = self.now.saturating_sub(self.rng.u64(0..1_000_000_000)).max(START + 2),
            1..=3 => {}
            _ => self.now += self.rng.u64(0..20_000_000),
        }
        if self.rng.u8(0..3) == 0 {
            let filesets: Vec<FilesetId> = self.forest.trees.keys().copied().collect();
            let to = self.rng.choice(filesets).expect("the main one");
            self.switch(to);
        }
        match self.rng.u32(0..1000) {
            0..5 => return self.remount(),
            15..40 => return self.change_filesets(),
            5..15 => return self.upkeep(),
            _ => {}
        }
        match self.rng.u8(0..26) {
            0..4 => self.make(),
            4 => self.link(),
            5..7 => self.unlink(),
            7 => self.rmdir(),
            8..11 => self.rename(),
            11..15 => self.write(),
            15 => self.truncate(),
            16..18 => self.fallocate(),
            18..20 => self.copy(),
            20 => self.set_attr(),
            21..23 => self.xattr(),
            23 => self.tmpfile(),
            24 => self.forget(),
            _ => self.look(),
        }
    }

    fn upkeep(&mut self) {
        match self.rng.bool() {
            true => self.fs().store().checkpoint().unwrap(),
            false => while self.fs().store().step().unwrap() == darner_store::Progress::Worked {},
        }
    }

    pub fn remount(&mut self) {
        let store = self.fs.take().expect("open").store().clone();
        let store = (self.reopen)(store);
        let tid = store.tid();
        self.recent.retain(|(at, _)| *at <= tid);
        self.older.retain(|(at, _)| *at <= tid);
        let (newest, forest) = self.recent.back().expect("no more than the newest trees may be lost");
        assert_eq!(*newest, tid, "the store goes on at a transaction that was");
        self.forest = forest.clone();
        self.fs = Some(Fs::open(store).unwrap());
        let orphans = self.forest.objects().filter(|(_, object)| object.nlink == 0).count();
        assert_eq!(self.fs().reap_orphans(self.now).unwrap(), orphans);
        for tree in self.forest.trees.values_mut() {
            Rc::make_mut(tree).retain(|_, object| object.nlink > 0);
        }
        self.fileset = MAIN;
        self.tree = (*self.forest.trees[&MAIN]).clone();
    }

    // Filesets.

    fn change_filesets(&mut self) {
        self.switch(MAIN);
        let name = self.rng.choice(["fs1", "fs2", "fs3"]).expect("one");
        match self.rng.u8(0..10) {
            0..3 => self.create_fileset(name),
            3..7 => self.clone_fileset(name),
            7..9 => self.remove_fileset(name),
            _ => self.rename_fileset(name),
        }
    }

    fn check_fileset_free(&self, name: &str) -> Outcome {
        if self.forest.names.contains_key(name) { Err(libc::EEXIST) } else { Ok(()) }
    }

    fn create_fileset(&mut self, name: &str) {
        let caller = Caller { uid: self.rng.u32(0..3), gid: 7, pid: 0, umask: 0o077 };
        let made = self.fs().create_fileset(&caller, self.now, name);
        let Some(made) = agree(self.check_fileset_free(name), made) else { return };
        let time = self.time();
        let root = Object {
            mode: libc::S_IFDIR | 0o755,
            uid: caller.uid,
            gid: caller.gid,
            nlink: 2,
            parent: made.root.0,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            ..Object::default()
        };
        self.forest.insert(name, made.inode(), Tree::from([(made.root.0, Rc::new(root))]));
        self.touch_dir(ROOT);
    }

    fn clone_fileset(&mut self, name: &str) {
        let past = if self.rng.bool() { None } else { self.visible_past() };
        let (at, forest) = match past {
            // What was destroyed can't be brought back, and leaves names that lead nowhere.
            Some((_, forest)) if !self.destroyed.is_empty_in(&forest) => return,
            Some((tid, forest)) => (Some(tid), forest),
            None => (None, self.forest.clone()),
        };
        let filesets: Vec<FilesetId> = forest.trees.keys().copied().collect();
        let base = self.rng.choice(filesets).expect("the main one");
        let made = self.fs().clone_fileset(self.now, forest.root(base), at, name);
        let Some(made) = agree(self.check_fileset_free(name), made) else { return };
        let mut tree = (*forest.trees[&base]).clone();
        tree.retain(|_, object| object.nlink > 0);
        self.forest.insert(name, made.inode(), tree);
        self.forest.bases.insert(made.id, base);
        self.bases.insert(made.id, made.base.expect("a clone has one"));
        self.touch_dir(ROOT);
    }

    fn remove_fileset(&mut self, name: &str) {
        let force = self.rng.bool();
        let expected = match self.forest.names.get(name) {
            None => Err(libc::ENOENT),
            Some(fileset) if self.forest.bases.values().any(|base| base == fileset) => Err(libc::EBUSY),
            Some(fileset) => {
                let root = &self.forest.trees[fileset][&self.forest.roots[fileset]];
                if force || root.entries.is_empty() { Ok(()) } else { Err(libc::ENOTEMPTY) }
            }
        };
        if agree(expected, self.fs().remove_fileset(self.now, name, force)).is_some() {
            let root = self.forest.root(self.forest.names[name]);
            self.forest.remove(name);
            self.touch_dir(ROOT);
            assert_eq!(self.fs().getattr(Node::Live(root)).unwrap_err().errno(), libc::ESTALE);
        }
    }

    fn rename_fileset(&mut self, name: &str) {
        let new = self.rng.choice(["fs1", "fs2", "fs3"]).expect("one");
        let expected = match self.forest.names.get(name) {
            None => Err(libc::ENOENT),
            Some(_) => self.check_fileset_free(new),
        };
        if agree(expected, self.fs().rename_fileset(self.now, name, new)).is_some() {
            let fileset = self.forest.names.remove(name).expect("it was there");
            self.forest.names.insert(new.to_string(), fileset);
            self.touch_dir(ROOT);
        }
    }

    // Choices.

    fn pick(&mut self, fits: impl Fn(&Object) -> bool) -> Option<u64> {
        let all: Vec<u64> = self.tree.iter().filter(|(_, object)| fits(object)).map(|(ino, _)| *ino).collect();
        self.rng.choice(all)
    }

    /// A directory: mostly one of the first, seldom a removed one.
    fn dir(&mut self) -> u64 {
        let removed = self.rng.u8(0..30) == 0;
        self.pick(|object| object.is_dir() && (removed || object.nlink > 0)).expect("the root")
    }

    fn file(&mut self) -> Option<u64> {
        let any = self.rng.u8(0..20) == 0;
        self.pick(|object| any || object.is_file())
    }

    fn name(&mut self) -> Vec<u8> {
        self.rng.choice(NAMES).expect("names").as_bytes().to_vec()
    }

    /// A name in a directory, rather one that is there.
    fn used_name(&mut self, dir: u64) -> Vec<u8> {
        let used: Vec<Vec<u8>> = self.tree[&dir].entries.keys().cloned().collect();
        match self.rng.u8(0..5) {
            0 => self.name(),
            _ => self.rng.choice(used).unwrap_or_else(|| NAMES[0].into()),
        }
    }

    fn range(&mut self, size: u64) -> (u64, u64) {
        let near = [0, 1, 4096, 65536, 131072, size];
        let mut point = || match self.rng.u8(0..3) {
            0 => self.rng.choice(near).expect("some"),
            _ => self.rng.u64(0..SIZE_MAX.min(size + 20_000)),
        };
        let (a, b) = (point(), point());
        (a.min(b), a.abs_diff(b).min(SIZE_MAX - a.min(b)).max(1))
    }

    // Effects.

    pub fn object(&mut self, ino: u64) -> &mut Object {
        Rc::make_mut(self.tree.get_mut(&ino).expect("an object"))
    }

    /// The time of the transaction just done.
    pub fn time(&self) -> Time {
        self.fs().store().tid().into()
    }

    pub fn touch_dir(&mut self, ino: u64) {
        let time = self.time();
        let dir = self.object(ino);
        (dir.mtime, dir.ctime) = (time, time);
    }

    pub fn drop_link(&mut self, ino: u64) {
        let time = self.time();
        let object = self.object(ino);
        object.nlink = if object.is_dir() { 0 } else { object.nlink - 1 };
        object.ctime = time;
    }

    fn wrote(&mut self, ino: u64, kill: bool) {
        let time = self.time();
        let object = self.object(ino);
        (object.mtime, object.ctime) = (time, time);
        if kill {
            object.mode = without_set_ids(object.mode);
        }
        object.xattrs.remove(b"security.capability".as_slice());
    }

    fn born(&mut self, dir: u64, ino: u64, mode: u32, caller: &Caller) {
        let time = self.time();
        let parent = self.tree[&dir].clone();
        let inherits = parent.mode & libc::S_ISGID != 0;
        let mut object = Object {
            mode,
            uid: caller.uid,
            gid: if inherits { parent.gid } else { caller.gid },
            nlink: 1,
            parent: dir,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            ..Object::default()
        };
        if object.is_dir() {
            object.nlink = 2;
            object.mode |= parent.mode & libc::S_ISGID;
        }
        self.tree.insert(ino, Rc::new(object));
    }

    fn add_entry(&mut self, dir: u64, name: &[u8], ino: u64) {
        let subdir = u32::from(self.tree[&ino].is_dir());
        self.touch_dir(dir);
        let dir = self.object(dir);
        dir.entries.insert(name.to_vec(), ino);
        dir.nlink += subdir;
    }

    pub fn remove_entry(&mut self, dir: u64, name: &[u8]) -> u64 {
        self.touch_dir(dir);
        let ino = self.object(dir).entries.remove(name).expect("an entry");
        let subdir = u32::from(self.tree[&ino].is_dir());
        self.object(dir).nlink -= subdir;
        ino
    }

    // Operations, each with the refusals that are due.

    fn check_dir(&self, dir: u64) -> Outcome {
        if self.tree[&dir].nlink == 0 { Err(libc::ENOENT) } else { Ok(()) }
    }

    fn check_free(&self, dir: u64, name: &[u8]) -> Outcome {
        self.check_dir(dir)?;
        if self.tree[&dir].entries.contains_key(name) { Err(libc::EEXIST) } else { Ok(()) }
    }

    fn check_there(&self, dir: u64, name: &[u8]) -> Outcome<u64> {
        self.check_dir(dir)?;
        self.tree[&dir].entries.get(name).copied().ok_or(libc::ENOENT)
    }

    fn check_file(&self, ino: u64) -> Outcome {
        match self.tree[&ino].kind() {
            libc::S_IFREG => Ok(()),
            libc::S_IFDIR => Err(libc::EISDIR),
            _ => Err(libc::EINVAL),
        }
    }

    fn make(&mut self) {
        let dir = if self.tree.len() > 60 { return self.unlink() } else { self.dir() };
        let (name, uid, gid) = (self.name(), self.rng.u32(0..3), self.rng.u32(0..3));
        let caller = Caller { uid, gid, pid: 0, umask: 0o022 };
        let node = self.live(dir);
        let expected = self.check_free(dir, &name);
        let kind = self.rng.u8(0..8);
        let (fs, now) = (self.fs(), self.now);
        let (mode, made) = match kind {
            0..2 => (libc::S_IFDIR | 0o755, fs.mkdir(&caller, now, node, &name, 0o777)),
            2 => (libc::S_IFLNK | 0o777, fs.symlink(&caller, now, node, &name, b"some/where")),
            3 => (libc::S_IFIFO | 0o644, fs.mknod(&caller, now, node, &name, libc::S_IFIFO | 0o666, 7)),
            _ => {
                let made = fs.create_file(&caller, now, node, &name, 0o6666, true);
                (libc::S_IFREG | 0o6644, made.map(|created| created.entry))
            }
        };
        if let Some(entry) = agree(expected, made) {
            let ino = entry.node.inode().object.0;
            self.born(dir, ino, mode, &caller);
            if mode & libc::S_IFMT == libc::S_IFLNK {
                self.object(ino).target = b"some/where".to_vec();
            }
            self.add_entry(dir, &name, ino);
        }
    }

    fn tmpfile(&mut self) {
        let dir = self.dir();
        let made = self.fs().tmpfile(&Caller::default(), self.now, self.live(dir), 0o600);
        if let Some(entry) = agree(self.check_dir(dir), made) {
            let ino = entry.node.inode().object.0;
            self.born(dir, ino, libc::S_IFREG | 0o600, &Caller::default());
            self.object(ino).nlink = 0;
        }
    }

    fn link(&mut self) {
        let ino = self.pick(|_| true).expect("the root");
        let (dir, name) = (self.dir(), self.name());
        let expected = if self.tree[&ino].is_dir() { Err(libc::EPERM) } else { self.check_free(dir, &name) };
        let done = self.fs().link(self.now, self.live(ino), self.live(dir), &name);
        if agree(expected, done).is_some() {
            self.add_entry(dir, &name, ino);
            let time = self.time();
            let object = self.object(ino);
            object.nlink += 1;
            object.ctime = time;
            object.parent = dir;
        }
    }

    pub fn unlink(&mut self) {
        let dir = self.dir();
        let name = self.used_name(dir);
        let expected = self.check_there(dir, &name).and_then(|ino| match self.tree[&ino].is_dir() {
            true => Err(libc::EISDIR),
            false => Ok(()),
        });
        let done = self.fs().unlink(self.now, self.live(dir), &name);
        if agree(expected, done).is_some() {
            let ino = self.remove_entry(dir, &name);
            self.drop_link(ino);
        }
    }

    fn rmdir(&mut self) {
        let dir = self.dir();
        let name = self.used_name(dir);
        let expected = self.check_there(dir, &name).and_then(|ino| match &self.tree[&ino] {
            object if !object.is_dir() => Err(libc::ENOTDIR),
            object if !object.entries.is_empty() => Err(libc::ENOTEMPTY),
            _ => Ok(()),
        });
        let done = self.fs().rmdir(self.now, self.live(dir), &name);
        if agree(expected, done).is_some() {
            let ino = self.remove_entry(dir, &name);
            self.drop_link(ino);
        }
    }

    fn rename(&mut self) {
        let (dir, new_dir) = (self.dir(), self.dir());
        let name = self.used_name(dir);
        let new_name = if self.rng.bool() { self.name() } else { self.used_name(new_dir) };
        let mode =
            self.rng.choice([RenameMode::Replace, RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange]);
        let mode = mode.expect("one");
        let expected = self.check_rename(dir, &name, new_dir, &new_name, mode);
        let (from, to) = (self.live(dir), self.live(new_dir));
        let before = self.fs().store().tid();
        let done = self.fs().rename(&Caller::default(), self.now, (from, &name), (to, &new_name), mode);
        if agree(expected, done).is_none() || self.fs().store().tid() == before {
            return;
        }
        let time = self.time();
        let ino = self.remove_entry(dir, &name);
        let there = self.tree[&new_dir].entries.contains_key(&new_name);
        let old = if there { Some(self.remove_entry(new_dir, &new_name)) } else { None };
        self.add_entry(new_dir, &new_name, ino);
        let moved = self.object(ino);
        (moved.ctime, moved.parent) = (time, new_dir);
        match old {
            Some(old) if mode == RenameMode::Exchange => {
                self.add_entry(dir, &name, old);
                let moved = self.object(old);
                (moved.ctime, moved.parent) = (time, dir);
            }
            Some(old) => self.drop_link(old),
            None => {}
        }
    }

    fn check_rename(&self, dir: u64, name: &[u8], new_dir: u64, new_name: &[u8], mode: RenameMode) -> Outcome {
        let from = self.check_there(dir, name)?;
        self.check_dir(new_dir)?;
        let is_dir = |ino: u64| self.tree[&ino].is_dir();
        let into_itself = |ino: u64, dir: u64| is_dir(ino) && self.ancestors(dir).contains(&ino);
        let Some(&to) = self.tree[&new_dir].entries.get(new_name) else {
            return match mode {
                RenameMode::Exchange => Err(libc::ENOENT),
                _ if into_itself(from, new_dir) => Err(libc::EINVAL),
                _ => Ok(()),
            };
        };
        if mode == RenameMode::NoReplace {
            return Err(libc::EEXIST);
        }
        if from == to {
            return Ok(());
        }
        if into_itself(from, new_dir) || mode == RenameMode::Exchange && into_itself(to, dir) {
            return Err(libc::EINVAL);
        }
        match (is_dir(from), is_dir(to)) {
            _ if mode == RenameMode::Exchange => Ok(()),
            (false, true) => Err(libc::EISDIR),
            (true, false) => Err(libc::ENOTDIR),
            (true, true) if !self.tree[&to].entries.is_empty() => Err(libc::ENOTEMPTY),
            _ => Ok(()),
        }
    }

    /// A directory and all above it.
    fn ancestors(&self, mut dir: u64) -> BTreeSet<u64> {
        let mut all = BTreeSet::from([dir]);
        while dir != self.root() {
            dir = self.tree[&dir].parent;
            all.insert(dir);
        }
        all
    }

    fn write(&mut self) {
        let Some(ino) = self.file() else { return };
        let size = self.tree[&ino].size();
        let (offset, len) = self.range(size);
        let len = if self.rng.bool() { len.min(self.rng.u64(0..5000)) } else { len };
        let data: Vec<u8> = match self.rng.bool() {
            true => std::iter::repeat_with(|| self.rng.u8(..)).take(len as usize).collect(),
            false => vec![self.rng.u8(..); len as usize],
        };
        let append = size + len <= SIZE_MAX && self.rng.bool();
        let kill = self.rng.bool();
        let expected = self.check_file(ino);
        let at = if append { None } else { Some(offset) };
        let done = self.fs().write(self.now, self.live(ino), at, &data, kill);
        if let Some(written) = agree(expected, done) {
            let offset = if append { size } else { offset };
            assert_eq!((written.offset, written.len), (offset, data.len()));
            if data.is_empty() {
                return;
            }
            self.object(ino).edit(|cells| {
                let (from, to) = (offset as usize, offset as usize + data.len());
                cells.resize(cells.len().max(to), HOLE);
                cells[from..to].iter_mut().zip(&data).for_each(|(cell, byte)| *cell = u16::from(*byte));
            });
            assert_eq!(written.size, self.tree[&ino].size());
            self.wrote(ino, kill);
        }
    }

    fn truncate(&mut self) {
        let Some(ino) = self.file() else { return };
        let (size, _) = self.range(self.tree[&ino].size());
        let kill = self.rng.bool();
        let set = SetAttr { size: Some(size), kill_suidgid: kill, ..SetAttr::default() };
        let expected = self.check_file(ino);
        let done = self.fs().setattr(self.now, self.live(ino), &set);
        if agree(expected, done).is_some() {
            self.object(ino).edit(|cells| cells.resize(size as usize, HOLE));
            self.wrote(ino, kill);
        }
    }

    fn fallocate(&mut self) {
        let Some(ino) = self.pick(Object::is_file) else { return };
        let size = self.tree[&ino].size();
        let (mut offset, mut len) = self.range(size);
        let keep_size = self.rng.bool();
        let mode = match self.rng.u8(0..6) {
            0 => FallocateMode::Allocate { keep_size },
            1 | 2 => FallocateMode::PunchHole,
            3 => FallocateMode::ZeroRange { keep_size },
            4 => FallocateMode::CollapseRange,
            _ => FallocateMode::InsertRange,
        };
        let in_blocks = matches!(mode, FallocateMode::CollapseRange | FallocateMode::InsertRange);
        if in_blocks && self.rng.u8(0..10) > 0 {
            (offset, len) = (offset & !4095, (len & !4095).max(4096));
        }
        if mode == FallocateMode::InsertRange {
            len = len.min((SIZE_MAX.saturating_sub(size) & !4095).max(4096));
        }
        let unaligned = (offset | len) % 4096 != 0;
        let expected = match mode {
            FallocateMode::CollapseRange if unaligned || offset + len >= size => Err(libc::EINVAL),
            FallocateMode::InsertRange if unaligned || offset >= size => Err(libc::EINVAL),
            _ => Ok(()),
        };
        let done = self.fs().fallocate(self.now, self.live(ino), offset, len, mode);
        if agree(expected, done).is_none() {
            return;
        }
        let (from, to) = (offset as usize, (offset + len) as usize);
        let grow = to > size as usize && !keep_size;
        let time = self.time();
        if let FallocateMode::Allocate { .. } = mode {
            match grow {
                true => self.wrote(ino, false),
                false => self.object(ino).ctime = time,
            }
        } else {
            self.wrote(ino, false);
        }
        self.object(ino).edit(|cells| match mode {
            FallocateMode::Allocate { .. } if grow => cells.resize(to, HOLE),
            FallocateMode::Allocate { .. } => {}
            FallocateMode::PunchHole | FallocateMode::ZeroRange { .. } => {
                if grow && mode != FallocateMode::PunchHole {
                    cells.resize(to, HOLE);
                }
                let (from, to) = (from.min(cells.len()), to.min(cells.len()));
                cells[from..to].fill(HOLE);
            }
            FallocateMode::CollapseRange => drop(cells.drain(from..to)),
            FallocateMode::InsertRange => drop(cells.splice(from..from, std::iter::repeat_n(HOLE, to - from))),
        });
    }

    fn copy(&mut self) {
        let Some(to) = self.file() else { return };
        self.settle();
        let past = if self.rng.bool() { None } else { self.visible_past() };
        let (tid, forest) = past.map_or((None, self.forest.clone()), |(tid, forest)| (Some(tid), forest));
        // Of any fileset.
        let files = forest.objects().filter(|(ino, object)| object.is_file() && !self.is_gone(*ino));
        let files: Vec<Inode> = files.map(|(ino, _)| ino).collect();
        let Some(ino) = self.rng.choice(files) else { return };
        let source = forest.trees[&ino.fileset][&ino.object.0].clone();
        let from = tid.map_or(Node::Live(ino), |tid| Node::AsOf(ino, tid));
        let (offset, len) = self.range(source.size());
        let (to_offset, _) = self.range(self.tree[&to].size());
        let len = len.min(SIZE_MAX - to_offset);
        let copied = source.size().saturating_sub(offset).min(len);
        let same = from == self.live(to);
        let overlap = same && offset < to_offset + len && to_offset < offset + len;
        let expected = self.check_file(to).and(if overlap { Err(libc::EINVAL) } else { Ok(()) });
        let done = self.fs().copy_range(self.now, from, offset, self.live(to), to_offset, len);
        if let Some(count) = agree(expected, done) {
            assert_eq!(count, copied);
            if count == 0 {
                return;
            }
            self.object(to).edit(|cells| {
                let (at, end) = (to_offset as usize, (to_offset + copied) as usize);
                cells.resize(cells.len().max(end), HOLE);
                cells[at..end].copy_from_slice(&source.data[offset as usize..(offset + copied) as usize]);
            });
            self.wrote(to, true);
        }
    }

    fn set_attr(&mut self) {
        let ino = self.pick(|_| true).expect("the root");
        let maybe = |rng: &mut fastrand::Rng, most: u32| rng.bool().then(|| rng.u32(0..most));
        let some_time = |rng: &mut fastrand::Rng| match rng.u8(0..4) {
            0 => Some(SetTime::Now),
            1 => Some(SetTime::To(Time { secs: rng.i64(-(1 << 40)..1 << 40), nanos: rng.u32(0..1_000_000_000) })),
            _ => None,
        };
        let set = SetAttr {
            mode: maybe(&mut self.rng, 0o10000),
            uid: maybe(&mut self.rng, 5),
            gid: maybe(&mut self.rng, 5),
            atime: some_time(&mut self.rng),
            mtime: some_time(&mut self.rng),
            ..SetAttr::default()
        };
        self.fs().setattr(self.now, self.live(ino), &set).unwrap();
        let now = self.time();
        let object = self.object(ino);
        if (set.uid.is_some() || set.gid.is_some() || set == SetAttr::default()) && !object.is_dir() {
            object.mode = without_set_ids(object.mode);
            object.xattrs.remove(b"security.capability".as_slice());
        }
        object.mode = set.mode.map_or(object.mode, |mode| object.kind() | mode & 0o7777);
        object.uid = set.uid.unwrap_or(object.uid);
        object.gid = set.gid.unwrap_or(object.gid);
        let value = |set| match set {
            SetTime::Now => now,
            SetTime::To(time) => time,
        };
        object.atime = set.atime.map_or(object.atime, value);
        object.mtime = set.mtime.map_or(object.mtime, value);
        object.ctime = now;
    }

    fn xattr(&mut self) {
        let ino = self.pick(|object| object.is_file() || object.is_dir()).expect("the root");
        let name = self.rng.choice(["user.a", "user.b", "trusted.c", "security.capability"]).expect("one").as_bytes();
        let node = self.live(ino);
        let there = self.tree[&ino].xattrs.contains_key(name);
        let applied = if self.rng.u8(0..3) == 0 {
            let expected = if there { Ok(()) } else { Err(libc::ENODATA) };
            let done = agree(expected, self.fs().removexattr(self.now, node, name)).is_some();
            done.then(|| self.object(ino).xattrs.remove(name)).is_some()
        } else {
            let how = SetXattr { create: self.rng.u8(0..4) == 0, replace: self.rng.u8(0..4) == 0, kill_sgid: false };
            let value = vec![b'v'; self.rng.usize(0..300)];
            let expected = match there {
                true if how.create => Err(libc::EEXIST),
                false if how.replace => Err(libc::ENODATA),
                _ => Ok(()),
            };
            let done = agree(expected, self.fs().setxattr(self.now, node, name, &value, how)).is_some();
            done.then(|| self.object(ino).xattrs.insert(name.to_vec(), value)).is_some()
        };
        let time = self.time();
        if applied {
            self.object(ino).ctime = time;
        }
    }

    fn forget(&mut self) {
        let ino = self.pick(|object| object.nlink == 0).unwrap_or(self.root());
        self.fs().forget(self.now, &[self.inode(ino)]).unwrap();
        if self.tree[&ino].nlink == 0 {
            self.tree.remove(&ino);
        }
    }

    /// Seeks, and reads a part.
    fn look(&mut self) {
        let Some(ino) = self.pick(Object::is_file) else { return };
        let object = self.tree[&ino].clone();
        let (offset, len) = self.range(object.size());
        let node = self.live(ino);
        let content = object.content();
        let (from, to) = ((offset as usize).min(content.len()), ((offset + len) as usize).min(content.len()));
        assert!(self.fs().read(node, offset, len as usize).unwrap() == content[from..to], "part of {ino}");
        let seek = |what: Seek, wanted: bool| {
            let end = if what == Seek::Hole { Ok(object.size()) } else { Err(libc::ENXIO) };
            let found = object.data.iter().skip(offset as usize).position(|cell| (*cell != HOLE) == wanted);
            let expected =
                if offset >= object.size() { Err(libc::ENXIO) } else { found.map_or(end, |at| Ok(offset + at as u64)) };
            let answer = self.fs().seek(node, offset, what).map_err(|error| error.errno());
            assert_eq!(answer, expected, "{what:?} from {offset} in {ino}");
        };
        seek(Seek::Data, true);
        seek(Seek::Hole, false);
    }

    // Comparisons.

    fn past(&mut self) -> (Tid, Forest) {
        let at = self.rng.usize(..self.recent.len() + self.older.len());
        match at.checked_sub(self.older.len()) {
            Some(at) => self.recent[at].clone(),
            None => self.older[at].clone(),
        }
    }

    /// A visible moment of one fileset, and that alone.
    fn visible_past(&mut self) -> Option<(Tid, Forest)> {
        let (tid, forest) = self.past();
        let filesets: Vec<FilesetId> = forest.trees.keys().copied().collect();
        let fileset = self.rng.choice(filesets).expect("the main one");
        let shown = self.fs().retention(fileset).unwrap().round(tid)?;
        let mut forest = self.forest_at(shown)?.clone();
        forest.trees.retain(|id, _| *id == fileset);
        (!forest.trees.is_empty()).then_some((shown, forest))
    }

    /// What there was as of a moment that is remembered.
    pub fn forest_at(&self, at: Tid) -> Option<&Forest> {
        let newer = self.recent.partition_point(|(tid, _)| *tid <= at);
        match newer.checked_sub(1) {
            Some(i) => Some(&self.recent[i].1),
            None => {
                self.older.iter().filter(|(tid, _)| *tid <= at).max_by_key(|(tid, _)| *tid).map(|(_, forest)| forest)
            }
        }
    }

    /// Whether an object was destroyed: in its fileset, or in one that shows through a clone that was removed before.
    pub fn is_gone(&self, ino: Inode) -> bool {
        let mut fileset = Some(ino.fileset);
        while let Some(of) = fileset {
            if self.destroyed.objects.contains(&Inode { fileset: of, ..ino }) {
                return true;
            }
            fileset = self.bases.get(&of).map(|(base, _)| *base);
        }
        false
    }

    /// Whether a name of a directory was destroyed as of a moment; `None`: perhaps.
    fn is_gone_name(&self, dir: Inode, name: &[u8], at: Tid) -> Option<bool> {
        let dir_of = dir.fileset;
        let mut fileset = Some(dir_of);
        let mut found = Some(false);
        while let Some(of) = fileset {
            let dir = Inode { fileset: of, ..dir };
            for gone in self.destroyed.names.iter().filter(|n| n.dir == dir && n.name == name && at <= n.before) {
                // A clone may have given the name itself.
                let surely = gone.surely && of == dir_of;
                found = if surely || found == Some(true) { Some(true) } else { None };
            }
            fileset = self.bases.get(&of).map(|(base, _)| *base);
        }
        found
    }

    fn compare_past(&mut self) {
        let (tid, forest) = self.past();
        let filesets: Vec<FilesetId> = forest.trees.keys().copied().collect();
        let fileset = self.rng.choice(filesets).expect("the main one");
        self.compare(Node::AsOf(forest.root(fileset), tid), &forest);
        self.compared += 1;
        self.compare_name(tid, &forest);
        if !forest.trees.contains_key(&self.fileset) {
            let before = self.fs().getattr(Node::AsOf(self.inode(self.root()), tid));
            assert_eq!(before.unwrap_err().errno(), libc::ESTALE, "{:?} before it was made", self.fileset);
        }
    }

    /// A name as of a tid, looked up in a live directory.
    fn compare_name(&mut self, tid: Tid, forest: &Forest) {
        let dir = self.dir();
        let name = self.name();
        let as_of = [name.as_slice(), b"@@", tid.to_string().as_bytes()].concat();
        let now = self.now.max(tid.0);
        let found = self.fs().lookup(self.live(dir), &as_of, now).map(|entry| entry.node);
        let then = forest.trees.get(&self.fileset).and_then(|tree| tree.get(&dir));
        let expected = then.and_then(|dir| dir.entries.get(&name)).map(|ino| Node::AsOf(self.inode(*ino), tid));
        assert_eq!(found.ok(), expected, "{} in {dir}", as_of.escape_ascii());
    }

    pub fn compare(&mut self, root: Node, forest: &Forest) {
        let fileset = root.inode().fileset;
        let tree = &*forest.trees[&fileset];
        let inode = |ino: u64| Inode { fileset, object: ObjectId(ino) };
        let foreign = if fileset == MAIN { forest.names.len() } else { 0 };
        let mut seen = BTreeSet::new();
        let mut todo = vec![root];
        if let Node::Live(_) = root {
            todo.extend(tree.iter().filter(|(_, object)| object.nlink == 0).map(|(ino, _)| Node::Live(inode(*ino))));
        }
        while let Some(node) = todo.pop() {
            let ino = node.inode().object.0;
            if !seen.insert(ino) {
                continue;
            }
            if self.is_gone(node.inode()) {
                assert_eq!(self.fs().getattr(node).unwrap_err().errno(), libc::ESTALE, "{node:?} was destroyed");
                self.keys += 1;
                continue;
            }
            let object = &tree[&ino];
            let mut attr = self.fs().getattr(node).unwrap();
            if node == root {
                attr.size -= foreign as u64;
                attr.nlink -= foreign as u32;
            }
            same_attr(node, &attr, object);
            if let Node::AsOf(..) = node {
                self.keys += 2 + (object.entries.len() + object.xattrs.len()) as u64;
            }
            match object.kind() {
                libc::S_IFDIR => self.compare_dir(node, object, forest, &mut todo),
                libc::S_IFREG => {
                    let data = self.fs().read(node, 0, 1 << 20).unwrap();
                    assert!(data == object.content(), "data of {node:?}");
                }
                libc::S_IFLNK => assert_eq!(self.fs().readlink(node).unwrap(), object.target),
                _ => {}
            }
            self.compare_xattrs(node, object);
        }
        let named = tree.values().filter(|object| object.nlink > 0).count();
        let due = if let Node::Live(_) = root { tree.len() } else { named };
        if self.destroyed.names.is_empty() {
            assert_eq!(seen.len(), due, "objects");
        }
    }

    fn compare_dir(&mut self, node: Node, object: &Object, forest: &Forest, todo: &mut Vec<Node>) {
        let fileset = node.inode().fileset;
        let tree = &*forest.trees[&fileset];
        let (room, plus) = (self.rng.usize(64..600), self.rng.bool());
        let (mut after, mut listed, mut foreign) = (0, BTreeMap::new(), 0);
        loop {
            let entries = self.fs().readdir(node, after, room, 24, plus, self.now).unwrap();
            let Some(last) = entries.last() else { break };
            after = last.cookie;
            for entry in entries {
                let ino = entry.node.inode();
                if ino.fileset != fileset && entry.name != b".." {
                    let name = String::from_utf8(entry.name).expect("a fileset's name");
                    assert_eq!(Some(ino), forest.names.get(&name).map(|fileset| forest.root(*fileset)), "{name}");
                    foreign += 1;
                    continue;
                }
                if let Some(attr) = &entry.attr {
                    same_attr(entry.node, attr, &tree[&ino.object.0]);
                }
                let again = listed.insert(entry.name, (entry.node.inode().object.0, entry.d_type));
                assert_eq!(again, None, "listed twice in {node:?}");
            }
        }
        let is_root = node.inode() == forest.root(fileset);
        let parent = if is_root { ROOT } else { object.parent };
        assert_eq!(listed.remove(b".".as_slice()).map(|(ino, _)| ino), Some(node.inode().object.0));
        assert_eq!(listed.remove(b"..".as_slice()).map(|(ino, _)| ino), Some(parent));
        // Those of which nothing is kept from then are not listed.
        let is_kept = |of: &&FilesetId| match node {
            Node::AsOf(_, tid) => self
                .fs()
                .shown(**of, tid)
                .unwrap()
                .is_some_and(|shown| self.fs().getattr(Node::AsOf(forest.root(**of), shown)).is_ok()),
            _ => true,
        };
        let is_main = node.inode() == forest.root(MAIN);
        let due = forest.names.values().filter(is_kept).filter(|_| is_main).count();
        assert_eq!(foreign, due, "filesets in {node:?}");
        let at = if let Node::AsOf(_, tid) = node { tid } else { Tid::MAX };
        let is_there = |name: &Vec<u8>| match self.is_gone_name(node.inode(), name, at) {
            Some(gone) => !gone,
            None => listed.contains_key(name),
        };
        let inode = |ino: u64| Inode { fileset, object: ObjectId(ino) };
        let expected = object.entries.iter().filter(|(name, ino)| is_there(name) && !self.is_gone(inode(**ino)));
        let expected = expected.map(|(name, ino)| (name.clone(), (*ino, (tree[ino].kind() >> 12) as u8)));
        assert_eq!(listed, expected.collect(), "entries of {node:?}");
        todo.extend(listed.values().map(|(ino, _)| match node {
            Node::AsOf(_, tid) => Node::AsOf(Inode { fileset, object: ObjectId(*ino) }, tid),
            _ => Node::Live(Inode { fileset, object: ObjectId(*ino) }),
        }));
    }

    fn compare_xattrs(&self, node: Node, object: &Object) {
        let bytes = |found| match found {
            Found::Bytes(bytes) => bytes,
            Found::Size(size) => panic!("only a size: {size}"),
        };
        let list = bytes(self.fs().listxattr(&Caller::default(), node, 65536).unwrap());
        let names: BTreeSet<&[u8]> = list.split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
        assert_eq!(names, object.xattrs.keys().map(Vec::as_slice).collect(), "xattrs of {node:?}");
        for (name, value) in &object.xattrs {
            assert_eq!(&bytes(self.fs().getxattr(node, name, 65536).unwrap()), value);
        }
    }
}

fn without_set_ids(mode: u32) -> u32 {
    let sgid = if mode & libc::S_IXGRP != 0 { libc::S_ISGID } else { 0 };
    mode & !(libc::S_ISUID | sgid)
}

/// Both succeeded: the answer; both refused for the same reason: nothing.
#[track_caller]
pub fn agree<T: std::fmt::Debug>(expected: Outcome, done: Result<T, FsError>) -> Option<T> {
    match (expected, done) {
        (Ok(()), Ok(answer)) => Some(answer),
        (Err(errno), Err(error)) if error.errno() == errno => None,
        (expected, done) => panic!("the model says {expected:?}, the filesystem {done:?}"),
    }
}

#[track_caller]
fn same_attr(node: Node, attr: &Attr, object: &Object) {
    let found = (attr.mode, attr.uid, attr.gid, attr.nlink, attr.size, attr.bytes, attr.parent.0);
    let due = (object.mode, object.uid, object.gid, object.nlink, object.size(), object.bytes, object.parent);
    assert_eq!(found, due, "attributes of {node:?}");
    let found = (attr.atime, attr.mtime, attr.ctime, attr.btime);
    assert_eq!(found, (object.atime, object.mtime, object.ctime, object.btime), "times of {node:?}");
}
