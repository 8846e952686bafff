//! Copying a tree faithfully by ordinary system calls: contents (shared where the filesystem can, holes kept), hard links
//! within the tree, owner, mode, times, xattrs, ACLs, symbolic links, special files.
//!
//! A directory gets its mode, xattrs and times after its entries: a default ACL would be inherited by them, a read-only mode
//! would shut them out, and each of them would touch the mtime.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{self, File, Metadata};
use std::io::{Error, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use crate::error::{Context, Failure, Result};
use crate::xattr;

/// Copies one tree.
pub struct Copier<'a> {
    /// Told of every object; an error stops the copy.
    pub progress: &'a dyn Fn(u64) -> Result<()>,
    /// Files of several names, by (device, inode): their first copy.
    links: HashMap<(u64, u64), PathBuf>,
}

/// Most bytes that one system call is asked to copy, so that progress shows.
const STEP: u64 = 64 << 20;

impl<'a> Copier<'a> {
    /// A copier that tells `progress` of the bytes that each step copied.
    pub fn new(progress: &'a dyn Fn(u64) -> Result<()>) -> Copier<'a> {
        Copier { progress, links: HashMap::new() }
    }

    /// Copies `from` to `to`, where nothing is. On `Err`, what was made so far is at `to`: see [`remove`].
    pub fn copy(&mut self, from: &Path, to: &Path) -> Result<()> {
        let meta = fs::symlink_metadata(from).cant(|| format!("look at {}", from.display()))?;
        (self.progress)(0)?;
        let kind = meta.file_type();
        if !kind.is_dir() && meta.nlink() > 1 {
            if let Some(first) = self.links.get(&(meta.dev(), meta.ino())) {
                return fs::hard_link(first, to).cant(|| format!("link {}", to.display()));
            }
            self.links.insert((meta.dev(), meta.ino()), to.to_owned());
        }
        if kind.is_dir() {
            self.directory(from, to)?;
        } else if kind.is_file() {
            self.file(from, to, &meta)?;
        } else if kind.is_symlink() {
            let target = fs::read_link(from).cant(|| format!("read the link {}", from.display()))?;
            symlink(target, to).cant(|| format!("make the link {}", to.display()))?;
        } else {
            special(to, &meta).cant(|| format!("make the special file {}", to.display()))?;
        }
        attributes(from, to, &meta)
    }

    fn directory(&mut self, from: &Path, to: &Path) -> Result<()> {
        fs::DirBuilder::new().mode(0o700).create(to).cant(|| format!("make {}", to.display()))?;
        for entry in fs::read_dir(from).cant(|| format!("list {}", from.display()))? {
            let name = entry.cant(|| format!("list {}", from.display()))?.file_name();
            self.copy(&from.join(&name), &to.join(&name))?;
        }
        Ok(())
    }

    fn file(&mut self, from: &Path, to: &Path, meta: &Metadata) -> Result<()> {
        let mut source = File::open(from).cant(|| format!("open {}", from.display()))?;
        let target = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
        let mut target = target.cant(|| format!("make {}", to.display()))?;
        target.set_len(meta.len()).cant(|| format!("make {} {} bytes long", to.display(), meta.len()))?;
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
        Ok(())
    }
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
fn attributes(from: &Path, to: &Path, meta: &Metadata) -> Result<()> {
    let made = fs::symlink_metadata(to).cant(|| format!("look at {}", to.display()))?;
    if (made.uid(), made.gid()) != (meta.uid(), meta.gid()) {
        lchown(to, Some(meta.uid()), Some(meta.gid()))
            .cant(|| format!("give {} to its owner {}:{}", to.display(), meta.uid(), meta.gid()))?;
    }
    let xattrs = xattr::all(from).cant(|| format!("read the extended attributes of {}", from.display()))?;
    xattr::set_all(to, &xattrs).cant(|| format!("set the extended attributes of {}", to.display()))?;
    if !meta.is_symlink() {
        let mode = fs::Permissions::from_mode(meta.mode() & 0o7777);
        fs::set_permissions(to, mode).cant(|| format!("set the mode of {}", to.display()))?;
    }
    set_times(to, meta).cant(|| format!("set the times of {}", to.display()))
}

fn set_times(to: &Path, meta: &Metadata) -> std::io::Result<()> {
    let to = CString::new(to.as_os_str().as_bytes())?;
    let time = |secs: i64, nanos: i64| libc::timespec { tv_sec: secs, tv_nsec: nanos };
    let times = [time(meta.atime(), meta.atime_nsec()), time(meta.mtime(), meta.mtime_nsec())];
    // SAFETY: the path is NUL-terminated, the array has two elements.
    match unsafe { libc::utimensat(libc::AT_FDCWD, to.as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW) } {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}

/// Removes whatever is at a path, read-only directories too, but enters no other filesystem. Nothing there is fine.
pub fn remove(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        found => remove_within(path, found.cant(|| format!("look at {}", path.display()))?.dev()),
    }
}

fn remove_within(path: &Path, device: u64) -> Result<()> {
    let meta = fs::symlink_metadata(path).cant(|| format!("look at {}", path.display()))?;
    if meta.dev() != device {
        return Err(Failure::new(format!("something is mounted on {}", path.display())));
    }
    if !meta.is_dir() {
        return fs::remove_file(path).cant(|| format!("remove {}", path.display()));
    }
    if meta.mode() & 0o700 != 0o700 {
        // Who may not change it is told by what follows.
        let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o700));
    }
    for entry in fs::read_dir(path).cant(|| format!("list {}", path.display()))? {
        remove_within(&entry.cant(|| format!("list {}", path.display()))?.path(), device)?;
    }
    fs::remove_dir(path).cant(|| format!("remove {}", path.display()))
}

/// Puts `new` in the place of `old` in one step; what was there is at `new` afterwards. With nothing at `old`, a rename.
/// Returns whether something was replaced.
pub fn swap(new: &Path, old: &Path) -> Result<bool> {
    let (from, to) = (CString::new(new.as_os_str().as_bytes()), CString::new(old.as_os_str().as_bytes()));
    let (Ok(from), Ok(to)) = (from, to) else { return Err(Failure::new("a path holds a NUL")) };
    let rename = |flags: libc::c_uint| {
        // SAFETY: both paths are NUL-terminated.
        let rc = unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) };
        if rc == 0 { Ok(()) } else { Err(Error::last_os_error()) }
    };
    let what = || format!("put the restored copy in the place of {}", old.display());
    match rename(libc::RENAME_EXCHANGE) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::NotFound => rename(libc::RENAME_NOREPLACE).map(|()| false).cant(what),
        Err(e) => Err(e).cant(what),
    }
}

/// Gives a finished copy its name, where nothing may be yet.
pub fn settle(new: &Path, name: &Path) -> Result<()> {
    let exists = fs::symlink_metadata(name).is_ok();
    if exists {
        return Err(Failure::new(format!("{} exists already", name.display())));
    }
    fs::rename(new, name).cant(|| format!("rename the copy to {}", name.display()))
}
