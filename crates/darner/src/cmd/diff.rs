//! `darner diff`: walks two trees by ordinary system calls, whatever they are: live, past, or of another filesystem.
//!
//! Equal size, mtime and ctime mean equal contents and attributes: then nothing is read. A directory's mtime is told only where
//! no entry that came or went tells the same. Other filesystems mounted in a tree are not entered: what is in them counts as not
//! compared.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Display;
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use serde::Serialize;

use super::{Named, printable};
use crate::cli::Diff;
use crate::error::{Context, Failure, Result};
use crate::{mounts, xattr};

/// Exit code where a comparison failed: scripts must not take that for "the same".
const FAILED: u8 = 2;

#[derive(Serialize)]
struct Line {
    /// `+` only in B, `-` only in A, `M` in both but different.
    change: char,
    #[serde(flatten)]
    path: Named,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    what: Vec<String>,
}

pub fn run(c: &Diff) -> Result<()> {
    let differ = compare(c).map_err(|e| Failure::found(FAILED, e))?;
    if differ { Err(Failure::silent(1)) } else { Ok(()) }
}

/// Prints what differs and says whether anything does.
fn compare(c: &Diff) -> Result<bool> {
    let (a, b) = (mounts::locate(&c.a)?.path, mounts::locate(&c.b)?.path);
    let look = |path: &Path, typed: &Path| fs::symlink_metadata(path).cant(|| format!("look at {}", typed.display()));
    let (in_a, in_b) = (look(&a, &c.a)?, look(&b, &c.b)?);
    let mut walk = Walk {
        top: if in_a.is_dir() || in_b.is_dir() { ".".into() } else { c.b.clone() },
        devices: (in_a.dev(), in_b.dev()),
        a,
        b,
        json: c.json.then(Vec::new),
        differ: false,
        failed: 0,
        bar: super::spinner("compared"),
    };
    walk.both(&PathBuf::new(), &in_a, &in_b)?;
    walk.bar.finish_and_clear();
    if let Some(lines) = &walk.json {
        super::print_json(lines)?;
    }
    match walk.failed {
        0 => Ok(walk.differ),
        n => Err(Failure::new(format!("{n} of the paths could not be compared"))),
    }
}

struct Walk {
    /// How the two paths themselves are shown.
    top: PathBuf,
    a: PathBuf,
    b: PathBuf,
    devices: (u64, u64),
    json: Option<Vec<Line>>,
    differ: bool,
    failed: u64,
    bar: ProgressBar,
}

impl Walk {
    fn tell(&mut self, change: char, at: &Path, what: Vec<String>) -> Result<()> {
        self.differ = true;
        let shown = if at.as_os_str().is_empty() { &self.top } else { at };
        match &mut self.json {
            Some(lines) => {
                lines.push(Line { change, path: Named::of(shown), what });
                Ok(())
            }
            None => {
                let gap = if what.is_empty() { "" } else { "  " };
                let line = format!("{change} {}{gap}{}\n", printable(shown), what.join(", "));
                self.bar.suspend(|| super::print(&line))
            }
        }
    }

    /// Goes on where one path can't be compared; the end will say so.
    fn complain(&mut self, at: &Path, why: &dyn Display) {
        self.failed += 1;
        self.bar.suspend(|| eprintln!("darner: can't compare {}: {why}", printable(at)));
    }

    fn pass_over(&mut self, at: &Path) {
        self.complain(at, &"another filesystem is mounted there");
    }

    fn both(&mut self, at: &Path, a: &Metadata, b: &Metadata) -> Result<()> {
        self.bar.inc(1);
        if is_another(a, self.devices.0) || is_another(b, self.devices.1) {
            self.pass_over(at);
            return Ok(());
        }
        if kind(a) != kind(b) {
            self.tell('M', at, vec![format!("type {} → {}", kind(a), kind(b))])?;
            self.below(at, a.is_dir(), b.is_dir())?;
            return Ok(());
        }
        let what = match self.differences(at, a, b) {
            Ok(what) => what,
            Err(e) => {
                self.complain(at, &e);
                return Ok(());
            }
        };
        if !a.is_dir() {
            return if what.is_empty() { Ok(()) } else { self.tell('M', at, what) };
        }
        if !what.is_empty() {
            self.tell('M', at, what)?;
        }
        let came_or_went = self.below(at, true, true)?;
        if !came_or_went && times(a).0 != times(b).0 {
            self.tell('M', at, vec!["mtime".into()])?;
        }
        Ok(())
    }

    /// Compares the entries of a directory that is in A, in B, or in both. Says whether any is in one only.
    fn below(&mut self, at: &Path, in_a: bool, in_b: bool) -> Result<bool> {
        let (dir_a, dir_b) = (self.a.join(at), self.b.join(at));
        let names = |dir: &Path, there: bool| if there { entries(dir) } else { Ok(BTreeSet::new()) };
        let (names_a, names_b) = match (names(&dir_a, in_a), names(&dir_b, in_b)) {
            (Ok(a), Ok(b)) => (a, b),
            (Err(e), _) | (_, Err(e)) => {
                self.complain(at, &e);
                return Ok(false);
            }
        };
        let mut came_or_went = false;
        for name in names_a.union(&names_b) {
            let path = at.join(name);
            let look = |there: bool, dir: &Path| if there { present(&dir.join(name)) } else { Ok(None) };
            match (look(names_a.contains(name), &dir_a), look(names_b.contains(name), &dir_b)) {
                (Ok(Some(a)), Ok(Some(b))) => self.both(&path, &a, &b)?,
                (Ok(Some(a)), Ok(None)) => {
                    came_or_went = true;
                    self.one('-', &path, &a)?;
                }
                (Ok(None), Ok(Some(b))) => {
                    came_or_went = true;
                    self.one('+', &path, &b)?;
                }
                (Ok(None), Ok(None)) => {}
                (Err(e), _) | (_, Err(e)) => self.complain(&path, &e),
            }
        }
        Ok(came_or_went)
    }

    /// Tells of something that is on one side only, and of all below it.
    fn one(&mut self, change: char, at: &Path, m: &Metadata) -> Result<()> {
        self.bar.inc(1);
        self.tell(change, at, Vec::new())?;
        let (device, in_a, in_b) = match change {
            '-' => (self.devices.0, true, false),
            _ => (self.devices.1, false, true),
        };
        if is_another(m, device) {
            self.pass_over(at);
        } else if m.is_dir() {
            self.below(at, in_a, in_b)?;
        }
        Ok(())
    }

    /// What differs between two things of one kind; of a directory, but for its entries and mtime.
    fn differences(&self, at: &Path, a: &Metadata, b: &Metadata) -> std::io::Result<Vec<String>> {
        let mut what = Vec::new();
        if a.mode() != b.mode() {
            what.push(format!("mode {:04o} → {:04o}", a.mode() & 0o7777, b.mode() & 0o7777));
        }
        if (a.uid(), a.gid()) != (b.uid(), b.gid()) {
            what.push(format!("owner {}:{} → {}:{}", a.uid(), a.gid(), b.uid(), b.gid()));
        }
        if (a.file_type().is_block_device() || a.file_type().is_char_device()) && a.rdev() != b.rdev() {
            what.push("device".into());
        }
        if times(a) == times(b) && (a.is_dir() || a.len() == b.len()) {
            return Ok(what);
        }
        let (path_a, path_b) = (join(&self.a, at), join(&self.b, at));
        if a.is_symlink() && fs::read_link(&path_a)? != fs::read_link(&path_b)? {
            what.push("target".into());
        }
        if a.is_file() && a.len() != b.len() {
            what.push(format!("size {} → {}", a.len(), b.len()));
        } else if a.is_file() && !same_bytes(&path_a, &path_b)? {
            what.push("content".into());
        }
        if !a.is_dir() && times(a).0 != times(b).0 {
            what.push("mtime".into());
        }
        let (xattrs_a, xattrs_b) = (xattr::all(&path_a)?, xattr::all(&path_b)?);
        let names: BTreeSet<_> = xattrs_a.keys().chain(xattrs_b.keys()).collect();
        let differing = names.into_iter().filter(|name| xattrs_a.get(*name) != xattrs_b.get(*name));
        what.extend(differing.map(|name| format!("xattr {}", name.to_bytes().escape_ascii())));
        Ok(what)
    }
}

/// A path below a top; the top itself without a slash behind, for it may be a file.
fn join(top: &Path, at: &Path) -> PathBuf {
    if at.as_os_str().is_empty() { top.to_owned() } else { top.join(at) }
}

type Stamp = (i64, i64);

/// mtime and ctime.
fn times(m: &Metadata) -> (Stamp, Stamp) {
    ((m.mtime(), m.mtime_nsec()), (m.ctime(), m.ctime_nsec()))
}

/// Whether a directory is of another filesystem than the tree that it is in.
fn is_another(m: &Metadata, device: u64) -> bool {
    m.is_dir() && m.dev() != device
}

fn kind(m: &Metadata) -> &'static str {
    let t = m.file_type();
    match () {
        () if t.is_file() => "file",
        () if t.is_dir() => "directory",
        () if t.is_symlink() => "symlink",
        () if t.is_fifo() => "fifo",
        () if t.is_socket() => "socket",
        () if t.is_block_device() => "block device",
        () => "character device",
    }
}

fn entries(dir: &Path) -> std::io::Result<BTreeSet<OsString>> {
    fs::read_dir(dir)?.map(|e| Ok(e?.file_name())).collect()
}

/// What is at a path; `None` for nothing: in a live tree it may have gone since it was listed.
fn present(path: &Path) -> std::io::Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

fn same_bytes(a: &Path, b: &Path) -> std::io::Result<bool> {
    let (mut a, mut b) = (File::open(a)?, File::open(b)?);
    let (mut buf_a, mut buf_b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let (n, m) = (fill(&mut a, &mut buf_a)?, fill(&mut b, &mut buf_b)?);
        if n != m || buf_a[..n] != buf_b[..m] {
            return Ok(false);
        }
        if n == 0 {
            return Ok(true);
        }
    }
}

fn fill(file: &mut File, buf: &mut [u8]) -> std::io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read(&mut buf[done..]) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}
