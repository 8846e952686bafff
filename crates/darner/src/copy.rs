//! Copying a tree faithfully by ordinary system calls: contents (shared where the filesystem can, holes kept), hard links
//! within the tree, owner, mode, times, xattrs, ACLs, symbolic links, special files.
//!
//! A directory gets its mode, xattrs and times after its entries: a default ACL would be inherited by them, a read-only mode
//! would shut them out, and each of them would touch the mtime.

use std::collections::HashMap;
use std::ffi::{CString, OsStr, OsString};
use std::fmt::Display;
use std::fs::{self, File, Metadata};
use std::io::{Error, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use crate::error::{Context, Failure, Result};
use crate::xattr;

/// An open directory. What is done in it by name is done there, whoever renames what meanwhile: root restores in directories whose
/// owners could else put a link to anywhere in the place of what is being made.
pub struct Dir {
    file: File,
    path: PathBuf,
}

impl Dir {
    /// Whatever is at a path.
    pub fn open(path: &Path) -> Result<Dir> {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        Dir::of(fs::OpenOptions::new().read(true).custom_flags(flags).open(path), path.to_owned())
    }

    /// The directory at a path without links, for as long as that is so.
    pub fn itself(path: &Path) -> Result<Dir> {
        let dir = Dir::open(path)?;
        match fs::read_link(fd_path(&dir.file)).is_ok_and(|is| is == path) {
            true => Ok(dir),
            false => Err(meddled(&path.display())),
        }
    }

    fn of(opened: std::io::Result<File>, path: PathBuf) -> Result<Dir> {
        let file = opened.cant(|| format!("open {}", path.display()))?;
        Ok(Dir { file, path })
    }

    /// A directory in it.
    pub fn within(&self, name: &OsStr) -> Result<Dir> {
        let flags = libc::O_NOFOLLOW | libc::O_DIRECTORY;
        Dir::of(fs::OpenOptions::new().read(true).custom_flags(flags).open(self.at(name)), self.shown(name))
    }

    /// The directory in which a path below this one ends, and the name there.
    pub fn beneath<'p>(&self, path: &'p Path) -> Result<(Dir, &'p OsStr)> {
        let name = path.file_name().ok_or_else(|| Failure::new(format!("{} has no name", path.display())))?;
        let file = self.file.try_clone().cant(|| format!("open {}", self.path.display()))?;
        let mut dir = Dir { file, path: self.path.clone() };
        for part in path.parent().into_iter().flat_map(Path::iter) {
            dir = dir.within(part)?;
        }
        Ok((dir, name))
    }

    /// What system calls that follow no links find a name in it by.
    pub fn at(&self, name: &OsStr) -> PathBuf {
        fd_path(&self.file).join(name)
    }

    /// What users call a name in it.
    pub fn shown(&self, name: &OsStr) -> PathBuf {
        self.path.join(name)
    }

    fn names(&self) -> Result<Vec<OsString>> {
        let listed = fs::read_dir(fd_path(&self.file)).and_then(|all| all.map(|e| Ok(e?.file_name())).collect());
        listed.cant(|| format!("list {}", self.path.display()))
    }
}

/// A path to what is open, and to nothing else.
fn fd_path(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Copies one tree.
pub struct Copier<'a> {
    /// Told of every object; an error stops the copy.
    pub progress: &'a dyn Fn(u64) -> Result<()>,
    /// Files of several names, by (device, inode): the first copy, and the same of that.
    links: HashMap<(u64, u64), (PathBuf, (u64, u64))>,
}

/// Most bytes that one system call is asked to copy, so that progress shows.
const STEP: u64 = 64 << 20;

impl<'a> Copier<'a> {
    /// A copier that tells `progress` of the bytes that each step copied.
    pub fn new(progress: &'a dyn Fn(u64) -> Result<()>) -> Copier<'a> {
        Copier { progress, links: HashMap::new() }
    }

    /// Copies `from` to a name in a directory, where nothing is. On `Err`, what was made so far is there: see [`remove`].
    pub fn copy(&mut self, from: &Path, dir: &Dir, name: &OsStr) -> Result<()> {
        let meta = fs::symlink_metadata(from).cant(|| format!("look at {}", from.display()))?;
        (self.progress)(0)?;
        let (kind, to) = (meta.file_type(), dir.at(name));
        let shown = dir.shown(name);
        let shown = shown.display();
        let first = self.links.get(&(meta.dev(), meta.ino()));
        if let Some((first, id)) = first {
            fs::hard_link(first, &to).cant(|| format!("link {shown}"))?;
            let linked = fs::symlink_metadata(&to).cant(|| format!("look at {shown}"))?;
            return if (linked.dev(), linked.ino()) == *id { Ok(()) } else { Err(meddled(&shown)) };
        }
        let made = if kind.is_dir() {
            self.directory(from, dir, name)?
        } else if kind.is_file() {
            self.file(from, &to, &shown, &meta)?
        } else {
            if kind.is_symlink() {
                let target = fs::read_link(from).cant(|| format!("read the link {}", from.display()))?;
                symlink(target, &to).cant(|| format!("make the link {shown}"))?;
            } else {
                special(&to, &meta).cant(|| format!("make the special file {shown}"))?;
            }
            let flags = libc::O_PATH | libc::O_NOFOLLOW;
            fs::OpenOptions::new().read(true).custom_flags(flags).open(&to).cant(|| format!("open {shown}"))?
        };
        let is = made.metadata().cant(|| format!("look at {shown}"))?;
        // (Some filesystems say of everything that it is one user's. What is the owner's may become his.)
        // SAFETY: the call can't fail.
        let owners = [unsafe { libc::geteuid() }, meta.uid()];
        if is.mode() & libc::S_IFMT != meta.mode() & libc::S_IFMT || !owners.contains(&is.uid()) {
            return Err(meddled(&shown));
        }
        if !kind.is_dir() && meta.nlink() > 1 {
            self.links.insert((meta.dev(), meta.ino()), (dir.shown(name), (is.dev(), is.ino())));
        }
        attributes(from, (&made, &is), &shown, &meta)
    }

    fn directory(&mut self, from: &Path, dir: &Dir, name: &OsStr) -> Result<File> {
        let made = fs::DirBuilder::new().mode(0o700).create(dir.at(name));
        made.cant(|| format!("make {}", dir.shown(name).display()))?;
        let to = dir.within(name)?;
        for entry in fs::read_dir(from).cant(|| format!("list {}", from.display()))? {
            let name = entry.cant(|| format!("list {}", from.display()))?.file_name();
            self.copy(&from.join(&name), &to, &name)?;
        }
        Ok(to.file)
    }

    fn file(&mut self, from: &Path, to: &Path, shown: &dyn Display, meta: &Metadata) -> Result<File> {
        let mut source = File::open(from).cant(|| format!("open {}", from.display()))?;
        let target = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
        let mut target = target.cant(|| format!("make {shown}"))?;
        target.set_len(meta.len()).cant(|| format!("make {shown} {} bytes long", meta.len()))?;
        let mut at = 0;
        while let Some((start, end)) = next_data(&source, at, meta.len()) {
            at = start;
            while at < end {
                let n = copy_range(&mut source, &mut target, at, (end - at).min(STEP))
                    .cant(|| format!("copy {} at byte {at}", from.display()))?;
                if n == 0 {
                    break;
                }
                at += n;
                (self.progress)(n)?;
            }
            at = end;
        }
        Ok(target)
    }
}

fn meddled(shown: &dyn Display) -> Failure {
    Failure::new(format!("somebody else has put something in the place of {shown} meanwhile"))
}

/// The next run of data at or after `at`, within the first `len` bytes; all of it, where the filesystem can't tell.
fn next_data(file: &File, at: u64, len: u64) -> Option<(u64, u64)> {
    let seek = |from: u64, what: i32| {
        // SAFETY: a plain system call on an open descriptor.
        let found = unsafe { libc::lseek64(file.as_raw_fd(), from as i64, what) };
        u64::try_from(found).map_err(|_| Error::last_os_error())
    };
    if at >= len {
        return None;
    }
    match seek(at, libc::SEEK_DATA) {
        Ok(start) if start >= len => None,
        Ok(start) => Some((start, seek(start, libc::SEEK_HOLE).map_or(len, |end| end.min(len)))),
        Err(e) if e.raw_os_error() == Some(libc::ENXIO) => None,
        Err(_) => Some((at, len)),
    }
}

/// Copies up to `len` bytes at the same offset, sharing them where the kernel can. 0: the source ends.
fn copy_range(source: &mut File, target: &mut File, at: u64, len: u64) -> std::io::Result<u64> {
    let (mut off_in, mut off_out) = (at as i64, at as i64);
    // SAFETY: both descriptors are open, the offsets valid for the call.
    let n = unsafe {
        libc::copy_file_range(source.as_raw_fd(), &mut off_in, target.as_raw_fd(), &mut off_out, len as usize, 0)
    };
    if n > 0 {
        return Ok(n as u64);
    }
    if n < 0 {
        let e = Error::last_os_error();
        let elsewhere = [libc::EXDEV, libc::EINVAL, libc::EOPNOTSUPP, libc::ENOSYS];
        if !e.raw_os_error().is_some_and(|e| elsewhere.contains(&e)) {
            return Err(e);
        }
    }
    let mut buf = vec![0; len.min(1 << 20) as usize];
    source.seek(SeekFrom::Start(at))?;
    let n = source.read(&mut buf)?;
    target.seek(SeekFrom::Start(at))?;
    target.write_all(&buf[..n])?;
    Ok(n as u64)
}

fn special(to: &Path, meta: &Metadata) -> std::io::Result<()> {
    let to = CString::new(to.as_os_str().as_bytes())?;
    // SAFETY: the path is NUL-terminated.
    match unsafe { libc::mknod(to.as_ptr(), meta.mode() & libc::S_IFMT | 0o600, meta.rdev()) } {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}

/// Owner first (a chown drops set-id bits and capabilities), then xattrs (a read-only mode would refuse them), mode, times.
fn attributes(from: &Path, made: (&File, &Metadata), shown: &dyn Display, meta: &Metadata) -> Result<()> {
    let (to, is) = (fd_path(made.0), made.1);
    if (is.uid(), is.gid()) != (meta.uid(), meta.gid()) {
        chown(&to, Some(meta.uid()), Some(meta.gid()))
            .cant(|| format!("give {shown} to its owner {}:{}", meta.uid(), meta.gid()))?;
    }
    let xattrs = xattr::all(from).cant(|| format!("read the extended attributes of {}", from.display()))?;
    xattr::set_all(&to, &xattrs).cant(|| format!("set the extended attributes of {shown}"))?;
    if !meta.is_symlink() {
        let mode = fs::Permissions::from_mode(meta.mode() & 0o7777);
        fs::set_permissions(&to, mode).cant(|| format!("set the mode of {shown}"))?;
    }
    set_times(&to, meta).cant(|| format!("set the times of {shown}"))
}

fn set_times(to: &Path, meta: &Metadata) -> std::io::Result<()> {
    let to = CString::new(to.as_os_str().as_bytes())?;
    let time = |secs: i64, nanos: i64| libc::timespec { tv_sec: secs, tv_nsec: nanos };
    let times = [time(meta.atime(), meta.atime_nsec()), time(meta.mtime(), meta.mtime_nsec())];
    // SAFETY: the path is NUL-terminated, the array has two elements.
    match unsafe { libc::utimensat(libc::AT_FDCWD, to.as_ptr(), times.as_ptr(), 0) } {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}

/// Removes whatever has a name in a directory, read-only directories too, but enters no other filesystem. Nothing there is fine.
pub fn remove(dir: &Dir, name: &OsStr) -> Result<()> {
    match fs::symlink_metadata(dir.at(name)) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        found => remove_within(dir, name, found.cant(|| format!("look at {}", dir.shown(name).display()))?.dev()),
    }
}

fn remove_within(dir: &Dir, name: &OsStr, device: u64) -> Result<()> {
    let (path, shown) = (dir.at(name), dir.shown(name));
    let meta = fs::symlink_metadata(&path).cant(|| format!("look at {}", shown.display()))?;
    if meta.dev() != device {
        return Err(Failure::new(format!("something is mounted on {}", shown.display())));
    }
    if !meta.is_dir() {
        return fs::remove_file(path).cant(|| format!("remove {}", shown.display()));
    }
    if meta.mode() & 0o700 != 0o700 {
        // Who may not change it is told by what follows. (It may be unreadable to its owner, who opens it for this only.)
        let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_DIRECTORY;
        let found = fs::OpenOptions::new().read(true).custom_flags(flags).open(&path);
        let _ = found.and_then(|f| fs::set_permissions(fd_path(&f), fs::Permissions::from_mode(0o700)));
    }
    let inner = dir.within(name)?;
    for name in inner.names()? {
        remove_within(&inner, &name, device)?;
    }
    fs::remove_dir(path).cant(|| format!("remove {}", shown.display()))
}

/// Puts `new` in the place of `old` in one step; what was there is at `new` afterwards. With nothing at `old`, a rename.
/// Returns whether something was replaced.
pub fn swap(dir: &Dir, new: &OsStr, old: &OsStr) -> Result<bool> {
    let what = || format!("put the restored copy in the place of {}", dir.shown(old).display());
    match rename(dir, new, old, libc::RENAME_EXCHANGE) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            rename(dir, new, old, libc::RENAME_NOREPLACE).map(|()| false).cant(what)
        }
        Err(e) => Err(e).cant(what),
    }
}

fn rename(dir: &Dir, new: &OsStr, old: &OsStr, flags: libc::c_uint) -> std::io::Result<()> {
    let (from, to) = (CString::new(new.as_bytes())?, CString::new(old.as_bytes())?);
    let fd = dir.file.as_raw_fd();
    // SAFETY: both names are NUL-terminated, the descriptor is open.
    match unsafe { libc::renameat2(fd, from.as_ptr(), fd, to.as_ptr(), flags) } {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}

/// Gives a finished copy its name, where nothing may be yet.
pub fn settle(dir: &Dir, new: &OsStr, name: &OsStr) -> Result<()> {
    let shown = dir.shown(name);
    if fs::symlink_metadata(dir.at(name)).is_ok() {
        return Err(Failure::new(format!("{} exists already", shown.display())));
    }
    fs::rename(dir.at(new), dir.at(name)).cant(|| format!("rename the copy to {}", shown.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Root that restored in a directory of somebody else's gave modes to, and made files in, what that one had put a link to meanwhile.
    #[test]
    fn a_link_put_in_the_place_of_what_is_being_copied_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["from", "victims", "there"] {
            fs::create_dir(at(name)).unwrap();
        }
        for name in ["from/a", "from/b", "victim"] {
            fs::write(at(name), "some bytes").unwrap();
        }
        fs::set_permissions(at("from/a"), fs::Permissions::from_mode(0o4777)).unwrap();
        fs::set_permissions(at("victim"), fs::Permissions::from_mode(0o600)).unwrap();
        let there = Dir::open(&at("there")).unwrap();
        for (from, to, bytes) in [("from/a", "victim", 10), ("from", "victims", 0)] {
            let name = OsString::from(format!("of-{to}"));
            let target = there.at(&name);
            let swapped = std::cell::Cell::new(false);
            let meddle = |n: u64| {
                if n == bytes && !swapped.get() && fs::symlink_metadata(&target).is_ok() {
                    fs::rename(&target, at("away")).unwrap();
                    symlink(at(to), &target).unwrap();
                    swapped.set(true);
                }
                Ok(())
            };
            Copier::new(&meddle).copy(&at(from), &there, &name).unwrap();
            assert!(swapped.get());
            let away = OsStr::new("away");
            let around = Dir::open(dir.path()).unwrap();
            assert_eq!(fs::symlink_metadata(at("away")).unwrap().is_dir(), from == "from");
            remove(&around, away).unwrap();
            assert!(fs::symlink_metadata(at("away")).is_err());
        }
        assert_eq!(fs::metadata(at("victim")).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(at("victims")).unwrap().count(), 0);
        // Nor where it is removed.
        remove(&there, OsStr::new("of-victim")).unwrap();
        assert!(at("victim").exists());
        // What was made is what was made.
        symlink(at("victim"), at("link")).unwrap();
        assert!(Dir::open(dir.path()).unwrap().within(OsStr::new("link")).is_err());
        symlink(at("victims"), at("dir")).unwrap();
        assert!(Dir::open(dir.path()).unwrap().within(OsStr::new("dir")).is_err());
        let real = fs::canonicalize(dir.path()).unwrap();
        assert!(Dir::itself(&real.join("victims")).is_ok());
        assert!(Dir::itself(&real.join("dir")).is_err());
    }
}
