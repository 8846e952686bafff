//! A small script language for tests of the filesystem: one command per line, answers after `=>`.
//!
//! Time is in seconds since 2026-11-22T00:00:00Z (the store is born at 0, the zone is UTC); each command is one
//! second after the one before unless it starts with `t=SECONDS`. Paths may contain as-of names; `#h` is a node kept
//! by `hold h PATH`. A command that fails answers with the errno's name; one that has nothing to say with nothing.

#![allow(dead_code)]

use std::collections::HashMap;
use std::sync::Arc;

use darner_fs::{
    Attr, Caller, Created, FallocateMode, Found, Fs, FsError, Limits, MAIN, Node, Op, ROOT, RenameMode, Reply, Seek,
    SetAttr, SetTime, SetXattr, Tid, Time,
};
use darner_store::volume::RawVolume;
use darner_store::volume::sim::SimDisk;
use darner_store::{CreateOptions, IndexFrom, OpenOptions, Store};
use jiff::tz::TimeZone;

pub const SECOND: u64 = 1_000_000_000;
/// 2026-11-22T00:00:00Z.
pub const START: u64 = 1_795_305_600 * SECOND;

/// A disk with an empty store on it.
pub fn new_disk() -> SimDisk {
    let disk = SimDisk::new(16 << 30);
    let volume = RawVolume::new(Arc::new(disk.clone()));
    let options = CreateOptions { now_ns: START, seed: Some([7; 32]), ..CreateOptions::default() };
    Store::create(&volume, &options).unwrap();
    disk
}

pub fn open_store(disk: &SimDisk) -> Arc<Store> {
    let volume = Arc::new(RawVolume::new(Arc::new(disk.clone())));
    Arc::new(Store::open(volume, &OpenOptions::small()).unwrap())
}

/// What whoever makes the index anew from the segments, and only looks, finds on a disk.
pub fn open_anew(disk: &SimDisk) -> Fs {
    let options = OpenOptions {
        read_only: true,
        index: IndexFrom::Segments,
        count_clone: Some(darner_fs::count_clone),
        ..OpenOptions::default()
    };
    let volume = Arc::new(RawVolume::new(Arc::new(disk.clone())));
    Fs::open(Arc::new(Store::open(volume, &options).unwrap())).unwrap()
}

/// Runs a script and compares each answer.
#[track_caller]
pub fn check(script: &str) {
    let mut world = World::new();
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")) {
        world.line(line);
    }
    world.check_counts();
}

pub struct World {
    disk: SimDisk,
    pub fs: Fs,
    pub now: u64,
    pub caller: Caller,
    held: HashMap<String, Node>,
}

type Answer = Result<String, FsError>;

impl World {
    pub fn new() -> World {
        let disk = new_disk();
        let fs = Fs::create(open_store(&disk), 0, 0, 0o755, START + 1).unwrap().in_zone(TimeZone::UTC);
        World { disk, fs, now: START, caller: Caller::default(), held: HashMap::new() }
    }

    #[track_caller]
    pub fn line(&mut self, line: &str) {
        let (command, expected) = match line.split_once("=>") {
            Some((command, expected)) => (command.trim(), expected.trim()),
            None => (line, ""),
        };
        let answer = self.answer(command);
        assert_eq!(answer, expected, "{line}");
    }

    /// What a command answers.
    pub fn answer(&mut self, command: &str) -> String {
        let mut words = words(command);
        self.now += SECOND;
        if let Some(t) = words[0].strip_prefix("t=") {
            self.now = START + t.parse::<u64>().unwrap() * SECOND;
            words.remove(0);
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match self.command(&words) {
            Ok(answer) => answer,
            Err(error) => errno_name(error.errno()).to_string(),
        }
    }

    fn run(&self, op: Op<'_>) -> Result<Reply, FsError> {
        self.fs.run(&self.caller, self.now, op)
    }

    fn done(&self, op: Op<'_>) -> Answer {
        self.run(op).map(|_| String::new())
    }

    /// The node at a path, symbolic links not followed.
    pub fn node(&self, path: &str) -> Result<Node, FsError> {
        let mut node = self.fs.root();
        for name in path.split('/').filter(|name| !name.is_empty()) {
            node = match name.strip_prefix('#') {
                Some(held) => self.held[held],
                None => match self.run(Op::Lookup { dir: node, name: name.as_bytes() })? {
                    Reply::Entry(entry) => entry.node,
                    other => panic!("{other:?}"),
                },
            };
        }
        Ok(node)
    }

    /// Directory and last name of a path.
    fn place<'p>(&self, path: &'p str) -> Result<(Node, &'p [u8]), FsError> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.node(dir)?, name.as_bytes()))
    }

    fn command(&mut self, words: &[&str]) -> Answer {
        match *words {
            ["as", uid, gid] => {
                (self.caller.uid, self.caller.gid) = (number(uid) as u32, number(gid) as u32);
                Ok(String::new())
            }
            ["umask", mask] => {
                self.caller.umask = octal(mask);
                Ok(String::new())
            }
            ["hold", name, path] => {
                let node = self.node(path)?;
                self.held.insert(name.to_string(), node);
                Ok(String::new())
            }
            ["forget", name] => self.done(Op::Forget { objects: &[self.held[&name[1..]].inode()] }),
            ["remount"] => self.remount(),
            ["retain", ref grid @ ..] => {
                let grid = darner_fs::retain::parse_grid(&grid.join(" "))?;
                self.fs.retain(MAIN, Some(grid), None, self.now)?;
                Ok(String::new())
            }
            ["clean"] => {
                self.fs.store().clean(self.now, &mut |_| ())?;
                Ok(String::new())
            }
            ["destroy", path] => {
                let names: Vec<&[u8]> = path.split('/').map(str::as_bytes).collect();
                let done = self.fs.destroy(ROOT, &names, self.now, &mut |_| ())?;
                Ok(format!("{} {}", done.objects.len(), done.left.join("; ")).trim().into())
            }
            ["nothing-here" | "as-elsewhere", path] => {
                let names: Vec<&[u8]> = path.split('/').map(str::as_bytes).collect();
                let keep = words[0] == "as-elsewhere";
                let done = self.fs.keep_nothing(ROOT, &names, keep, self.now, &mut |_| ())?;
                let left: String =
                    done.left.iter().map(|ino| format!(" {}", self.fs.path_of(Node::Live(*ino)))).collect();
                Ok(format!("{}{left}", done.changed.len()))
            }
            ["reap"] => Ok(self.fs.reap_orphans(self.now)?.to_string()),
            _ if words[0].ends_with('x') => self.xattr(words),
            _ => match self.make(words)? {
                Some(answer) => Ok(answer),
                None => match self.change(words)? {
                    Some(answer) => Ok(answer),
                    None => self.query(words),
                },
            },
        }
    }

    fn remount(&mut self) -> Answer {
        self.fs.store().close().unwrap();
        self.fs = Fs::open(open_store(&self.disk)).unwrap().in_zone(TimeZone::UTC);
        Ok(String::new())
    }

    fn make(&mut self, words: &[&str]) -> Result<Option<String>, FsError> {
        let mode = |at: usize, usual: u32| words.get(at).map_or(usual, |mode| octal(mode));
        let reply = match *words {
            ["create", path, ..] => {
                let (dir, name) = self.place(path)?;
                self.run(Op::Create { dir, name, mode: mode(2, 0o666), exclusive: true })?
            }
            ["open-create", path, ..] => {
                let (dir, name) = self.place(path)?;
                self.run(Op::Create { dir, name, mode: mode(2, 0o666), exclusive: false })?
            }
            ["mkdir", path, ..] => {
                let (dir, name) = self.place(path)?;
                self.run(Op::MkDir { dir, name, mode: mode(2, 0o777) })?
            }
            ["mknod", path, kind, ref rest @ ..] => {
                let (dir, name) = self.place(path)?;
                let rdev = rest.first().map_or(0, |rdev| number(rdev) as u32);
                let kind = match kind {
                    "fifo" => libc::S_IFIFO,
                    "socket" => libc::S_IFSOCK,
                    "char" => libc::S_IFCHR,
                    "block" => libc::S_IFBLK,
                    "file" => libc::S_IFREG,
                    _ => libc::S_IFDIR,
                };
                self.run(Op::MkNod { dir, name, mode: kind | 0o666, rdev })?
            }
            ["symlink", target, path] => {
                let (dir, name) = self.place(path)?;
                self.run(Op::Symlink { dir, name, target: target.as_bytes() })?
            }
            ["tmpfile", held, dir, ..] => {
                let reply = self.run(Op::TmpFile { dir: self.node(dir)?, mode: mode(3, 0o666) })?;
                if let Reply::Entry(entry) = &reply {
                    self.held.insert(held.to_string(), entry.node);
                }
                reply
            }
            ["link", old, new] => {
                let (dir, name) = self.place(new)?;
                self.run(Op::Link { node: self.node(old)?, dir, name })?
            }
            _ => return Ok(None),
        };
        Ok(Some(match reply {
            Reply::Created(Created { new: false, .. }) => "there".into(),
            _ => String::new(),
        }))
    }

    fn change(&mut self, words: &[&str]) -> Result<Option<String>, FsError> {
        let set = |set: SetAttr, path: &str| self.done(Op::SetAttr { node: self.node(path)?, set });
        let fallocate = |path: &str, offset: &str, len: &str, mode| {
            let op = Op::Fallocate { node: self.node(path)?, offset: number(offset), len: number(len), mode };
            self.done(op)
        };
        Ok(Some(match *words {
            ["unlink", path] => {
                let (dir, name) = self.place(path)?;
                self.done(Op::Unlink { dir, name })?
            }
            ["rmdir", path] => {
                let (dir, name) = self.place(path)?;
                self.done(Op::RmDir { dir, name })?
            }
            ["rename", old, new, ref flags @ ..] => {
                let ((dir, name), (new_dir, new_name)) = (self.place(old)?, self.place(new)?);
                let mode = match flags.first() {
                    None => RenameMode::Replace,
                    Some(&"noreplace") => RenameMode::NoReplace,
                    Some(&"whiteout") => RenameMode::Whiteout,
                    Some(_) => RenameMode::Exchange,
                };
                self.done(Op::Rename { dir, name, new_dir, new_name, mode })?
            }
            ["write", path, data, ref rest @ ..] => self.write(path, Some(0), data, rest)?,
            ["append", path, data, ref rest @ ..] => self.write(path, None, data, rest)?,
            ["truncate", path, size] => set(SetAttr { size: Some(number(size)), ..SetAttr::default() }, path)?,
            ["chmod", path, mode] => set(SetAttr { mode: Some(octal(mode)), ..SetAttr::default() }, path)?,
            ["chown", path, uid, gid] => {
                let id = |text: &str| text.parse().ok();
                set(SetAttr { uid: id(uid), gid: id(gid), ..SetAttr::default() }, path)?
            }
            ["utime", path, atime, mtime] => {
                set(SetAttr { atime: set_time(atime), mtime: set_time(mtime), ..SetAttr::default() }, path)?
            }
            ["allocate", path, offset, len] => {
                fallocate(path, offset, len, FallocateMode::Allocate { keep_size: false })?
            }
            ["allocate-keep", path, offset, len] => {
                fallocate(path, offset, len, FallocateMode::Allocate { keep_size: true })?
            }
            ["punch", path, offset, len] => fallocate(path, offset, len, FallocateMode::PunchHole)?,
            ["zero", path, offset, len] => fallocate(path, offset, len, FallocateMode::ZeroRange { keep_size: false })?,
            ["zero-keep", path, offset, len] => {
                fallocate(path, offset, len, FallocateMode::ZeroRange { keep_size: true })?
            }
            ["collapse", path, offset, len] => fallocate(path, offset, len, FallocateMode::CollapseRange)?,
            ["insert", path, offset, len] => fallocate(path, offset, len, FallocateMode::InsertRange)?,
            ["copy", from, offset, to, to_offset, len] => {
                let (from, to) = (self.node(from)?, self.node(to)?);
                let (offset, to_offset, len) = (number(offset), number(to_offset), number(len));
                match self.run(Op::CopyRange { from, offset, to, to_offset, len })? {
                    Reply::Copied(n) => n.to_string(),
                    other => panic!("{other:?}"),
                }
            }
            ["label", name, path] => {
                let fileset = self.node(path)?.inode().fileset;
                self.done(Op::AddLabel { fileset, name, at: None })?
            }
            ["create-fileset", name] => self.done(Op::CreateFileset { name })?,
            ["remove-fileset", name, ref rest @ ..] => {
                self.done(Op::RemoveFileset { name, force: rest == ["force"] })?
            }
            ["rename-fileset", name, new_name] => self.done(Op::RenameFileset { name, new_name })?,
            ["limit", name, bytes, objects] => {
                let limits = Limits { bytes: number(bytes), objects: number(objects), history: 0 };
                self.done(Op::LimitFileset { name, limits })?
            }
            ["clone", path, name] => {
                let (of, at) = match self.node(path)? {
                    Node::AsOf(of, at) => (of, Some(at)),
                    node => (node.inode(), None),
                };
                self.done(Op::CloneFileset { of, at, name })?
            }
            ["label", name] => self.done(Op::AddLabel { fileset: MAIN, name, at: None })?,
            ["unlabel", name] => self.done(Op::RemoveLabel { fileset: MAIN, name })?,
            _ => return Ok(None),
        }))
    }

    fn write(&self, path: &str, offset: Option<u64>, data: &str, rest: &[&str]) -> Answer {
        let at = rest.iter().find_map(|word| word.strip_prefix('@'));
        let offset = at.map(number).or(offset);
        let data = match data.split_once('*') {
            Some((text, count)) => text.repeat(number(count) as usize),
            None => data.to_string(),
        };
        let kill_suidgid = rest.contains(&"kill");
        match self.run(Op::Write { node: self.node(path)?, offset, data: data.as_bytes(), kill_suidgid })? {
            Reply::Written(written) if written.len == data.len() && rest.contains(&"where") => {
                Ok(format!("{} {}", written.offset, written.size))
            }
            Reply::Written(_) => Ok(String::new()),
            other => panic!("{other:?}"),
        }
    }

    fn xattr(&self, words: &[&str]) -> Answer {
        let found = |reply| match reply {
            Reply::Found(Found::Size(size)) => size.to_string(),
            Reply::Found(Found::Bytes(bytes)) => {
                String::from_utf8_lossy(&bytes).trim_end_matches('\0').replace('\0', " ")
            }
            other => panic!("{other:?}"),
        };
        let room = |word: Option<&&str>| word.map_or(65536, |room| number(room) as usize);
        match *words {
            ["setx", path, name, value, ref rest @ ..] => {
                let how = SetXattr {
                    create: rest.contains(&"create"),
                    replace: rest.contains(&"replace"),
                    kill_sgid: rest.contains(&"kill"),
                };
                let value = if name.starts_with("system.") { acl(value) } else { value.into() };
                self.done(Op::SetXattr { node: self.node(path)?, name: name.as_bytes(), value: &value, how })
            }
            ["getx", path, name, ref rest @ ..] => {
                let op = Op::GetXattr { node: self.node(path)?, name: name.as_bytes(), room: room(rest.first()) };
                let reply = self.run(op)?;
                match reply {
                    Reply::Found(Found::Bytes(bytes)) if name.starts_with("system.") => Ok(acl_text(&bytes)),
                    reply => Ok(found(reply)),
                }
            }
            ["listx", path, ref rest @ ..] => {
                Ok(found(self.run(Op::ListXattr { node: self.node(path)?, room: room(rest.first()) })?))
            }
            ["rmx", path, name] => self.done(Op::RemoveXattr { node: self.node(path)?, name: name.as_bytes() }),
            _ => panic!("unknown command {words:?}"),
        }
    }

    fn query(&self, words: &[&str]) -> Answer {
        match *words {
            ["read", path] => self.read(path, 0, 1 << 20),
            ["read", path, offset, len] => self.read(path, number(offset), number(len) as usize),
            ["ls", path] => Ok(self.names(path, 1 << 20)?.join(" ")),
            ["find", path] => self.run(Op::GetAttr { node: self.node(path)? }).map(|_| "there".into()),
            ["stat", path] => {
                let attr = self.attr(path)?;
                Ok(format!("{:o} {}:{} links={} size={}", attr.mode, attr.uid, attr.gid, attr.nlink, attr.size))
            }
            ["mode", path] => Ok(format!("{:o}", self.attr(path)?.mode & 0o7777)),
            ["nlink", path] => Ok(self.attr(path)?.nlink.to_string()),
            ["size", path] => Ok(self.attr(path)?.size.to_string()),
            ["bytes", path] => Ok(self.attr(path)?.bytes.to_string()),
            ["times", path] => {
                let attr = self.attr(path)?;
                Ok(format!(
                    "a{} m{} c{} b{}",
                    seconds(attr.atime),
                    seconds(attr.mtime),
                    seconds(attr.ctime),
                    seconds(attr.btime)
                ))
            }
            ["same", a, b] => Ok((self.node(a)?.inode() == self.node(b)?.inode()).to_string()),
            ["readlink", path] => match self.run(Op::ReadLink { node: self.node(path)? })? {
                Reply::Bytes(bytes) => Ok(String::from_utf8(bytes).unwrap()),
                other => panic!("{other:?}"),
            },
            ["seek", what, path, offset] => {
                let what = if what == "data" { Seek::Data } else { Seek::Hole };
                match self.run(Op::Seek { node: self.node(path)?, offset: number(offset), what })? {
                    Reply::Offset(at) => Ok(at.to_string()),
                    other => panic!("{other:?}"),
                }
            }
            ["open", path, how] => self.done(Op::Open { node: self.node(path)?, write: how == "write" }),
            ["filesets"] => {
                let all = self.fs.filesets();
                let all = all.iter().map(|(f, count)| format!("{}:{}:{}", f.name, count.objects, count.live));
                Ok(all.collect::<Vec<_>>().join(" "))
            }
            ["labels", ref rest @ ..] => {
                let fileset = rest.first().map_or(Ok(MAIN), |path| self.node(path).map(|node| node.inode().fileset));
                let labels = self.fs.labels(fileset?)?;
                Ok(labels.iter().map(|l| format!("{}@{}", l.name, seconds(l.tid.into()))).collect::<Vec<_>>().join(" "))
            }
            ["log", path] => self.log(path, false),
            ["log", path, "coalesce"] => self.log(path, true),
            ["path", path] => Ok(self.fs.path_of(self.node(path)?)),
            _ => panic!("unknown command {words:?}"),
        }
    }

    fn log(&self, path: &str, coalesce: bool) -> Answer {
        let names: Vec<&[u8]> = path.split('/').filter(|name| !name.is_empty()).map(str::as_bytes).collect();
        let entries = self.fs.log(ROOT, &names, Tid::MAX, names.len(), coalesce)?;
        let text = entries.iter().map(|e| {
            let shown = if e.shown == e.tid { String::new() } else { format!("@{}", seconds(e.shown.into())) };
            format!("{}{shown}:{:?}:{}", seconds(e.tid.into()), e.what, e.attr.size)
        });
        Ok(text.collect::<Vec<_>>().join(" "))
    }

    fn read(&self, path: &str, offset: u64, len: usize) -> Answer {
        match self.run(Op::Read { node: self.node(path)?, offset, len })? {
            Reply::Bytes(bytes) => Ok(shown(&bytes)),
            other => panic!("{other:?}"),
        }
    }

    pub fn attr(&self, path: &str) -> Result<Attr, FsError> {
        self.fs.getattr(self.node(path)?)
    }

    /// Names in a directory (not the dots), sorted, listed with replies of at most `room` bytes.
    pub fn names(&self, path: &str, room: usize) -> Result<Vec<String>, FsError> {
        let dir = self.node(path)?;
        let (mut names, mut after) = (Vec::new(), 0);
        loop {
            let entries = self.fs.readdir(dir, after, room, 24, true, self.now)?;
            let Some(last) = entries.last() else { break };
            after = last.cookie;
            names.extend(entries.into_iter().map(|entry| String::from_utf8(entry.name).unwrap()));
        }
        names.retain(|name| name != "." && name != "..");
        names.sort();
        Ok(names)
    }

    /// Once all is closed, the store's counts are those of the live tree.
    pub fn check_counts(&self) {
        self.fs.reap_orphans(self.now).unwrap();
        let (mut objects, mut bytes) = (HashMap::new(), 0);
        let mut todo = vec![self.fs.root()];
        while let Some(node) = todo.pop() {
            let Node::Live(ino) = node else { continue };
            let attr = self.fs.getattr(node).unwrap();
            if objects.insert(ino, ()).is_some() {
                continue;
            }
            bytes += attr.bytes;
            if attr.is_dir() {
                let entries = self.fs.readdir(node, 2, usize::MAX, 24, false, self.now).unwrap();
                assert_eq!(attr.size, entries.len() as u64, "entries of {}", self.fs.path_of(node));
                let subdirs = entries.iter().filter(|entry| entry.d_type == libc::DT_DIR).count();
                assert_eq!(attr.nlink, 2 + subdirs as u32, "links of {}", self.fs.path_of(node));
                todo.extend(entries.iter().map(|entry| entry.node));
            }
        }
        let usage = self.fs.store().usage().unwrap();
        assert_eq!((usage.objects, usage.live), (objects.len() as u64, bytes), "objects and live bytes");
    }
}

/// Words; `'…'` keeps spaces.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = line.trim();
    while !rest.is_empty() {
        let (word, after) = match rest.strip_prefix('\'') {
            Some(quoted) => quoted.split_once('\'').expect("a closing quote"),
            None => rest.split_once(' ').unwrap_or((rest, "")),
        };
        words.push(word.to_string());
        rest = after.trim_start();
    }
    words
}

/// `12`, `4k`, `1m`, `max` (2^63-1).
fn number(text: &str) -> u64 {
    let scaled = |text: &str, by: u64| text.parse::<u64>().unwrap() * by;
    match text.as_bytes().last() {
        _ if text == "max" => i64::MAX as u64,
        Some(b'k') => scaled(&text[..text.len() - 1], 1 << 10),
        Some(b'm') => scaled(&text[..text.len() - 1], 1 << 20),
        _ => scaled(text, 1),
    }
}

fn octal(text: &str) -> u32 {
    u32::from_str_radix(text, 8).unwrap()
}

fn set_time(text: &str) -> Option<SetTime> {
    match text {
        "omit" => None,
        "now" => Some(SetTime::Now),
        _ => Some(SetTime::To(Time { secs: (START / SECOND) as i64 + text.parse::<i64>().unwrap(), nanos: 0 })),
    }
}

fn seconds(time: Time) -> i64 {
    time.secs - (START / SECOND) as i64
}

/// The tid of a command at `t` seconds.
pub fn tid(t: u64) -> Tid {
    Tid(START + t * SECOND)
}

/// Bytes with runs of eight or more shortened: `aa…` to `a*N`, zeroes as `0`.
fn shown(bytes: &[u8]) -> String {
    let mut out = String::new();
    for run in bytes.chunk_by(|a, b| a == b) {
        let byte = if run[0] == 0 { "0".into() } else { run[0].escape_ascii().to_string() };
        match run.len() {
            n if n >= 8 || run[0] == 0 => out += &format!("{byte}*{n} "),
            n => out += &byte.repeat(n),
        }
    }
    out.trim_end().to_string()
}

/// `u::rwx,u:5:rw,g::r,m::r,o::-` as the xattr's bytes.
pub fn acl(text: &str) -> Vec<u8> {
    let mut out = 2u32.to_le_bytes().to_vec();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let [tag, id, perm] = part.split(':').collect::<Vec<_>>()[..] else { panic!("{part}") };
        let tag: u16 = match (tag, id) {
            ("u", "") => 1,
            ("u", _) => 2,
            ("g", "") => 4,
            ("g", _) => 8,
            ("m", _) => 16,
            _ => 32,
        };
        let bit = |c: char| "xwr".find(c).map_or(0, |at| 1u16 << at);
        let perm: u16 = perm.chars().map(bit).sum();
        out.extend(tag.to_le_bytes());
        out.extend(perm.to_le_bytes());
        out.extend(id.parse().unwrap_or(u32::MAX).to_le_bytes());
    }
    out
}

fn acl_text(bytes: &[u8]) -> String {
    let entry = |e: &[u8]| {
        let tag = match e[0] {
            1 | 2 => "u",
            4 | 8 => "g",
            16 => "m",
            _ => "o",
        };
        let id = u32::from_le_bytes(e[4..8].try_into().unwrap());
        let id = if id == u32::MAX { String::new() } else { id.to_string() };
        let perm: String =
            ["r", "w", "x"].iter().zip([4, 2, 1]).filter(|(_, bit)| e[2] & bit != 0).map(|(c, _)| *c).collect();
        format!("{tag}:{id}:{perm}")
    };
    bytes[4..].chunks(8).map(entry).collect::<Vec<_>>().join(",")
}

fn errno_name(errno: i32) -> &'static str {
    match errno {
        libc::ENOENT => "ENOENT",
        libc::EEXIST => "EEXIST",
        libc::EROFS => "EROFS",
        libc::ENOTDIR => "ENOTDIR",
        libc::EISDIR => "EISDIR",
        libc::ENOTEMPTY => "ENOTEMPTY",
        libc::EINVAL => "EINVAL",
        libc::EPERM => "EPERM",
        libc::EACCES => "EACCES",
        libc::EBUSY => "EBUSY",
        libc::ESTALE => "ESTALE",
        libc::ENAMETOOLONG => "ENAMETOOLONG",
        libc::EFBIG => "EFBIG",
        libc::ENXIO => "ENXIO",
        libc::ENODATA => "ENODATA",
        libc::ERANGE => "ERANGE",
        libc::E2BIG => "E2BIG",
        libc::ENOSPC => "ENOSPC",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::ENODEV => "ENODEV",
        libc::ESPIPE => "ESPIPE",
        libc::EMLINK => "EMLINK",
        libc::EIO => "EIO",
        libc::EXDEV => "EXDEV",
        libc::EDQUOT => "EDQUOT",
        other => panic!("errno {other}"),
    }
}
