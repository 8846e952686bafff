//! FAT12, FAT16 and FAT32 with long names, by the crate `fatfs`, to read and write.
//!
//! FAT has no numbers for files. A node's is made of where its directory entry is, its name and when it was made (so that what
//! comes to lie there later has another). A file that is renamed keeps its number as long as this process lives; where a number
//! leads that an earlier process gave out, is found out by looking at all there is, once. Times are UTC. Owners and permissions are not kept: all belongs to whom the image does. A write is in the image when
//! it is answered; after `sync` (and when it is detached) the image is as if it had been unmounted.

mod disk;
mod volume;

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use darner_vfs::{Attr, Errno, Info, Listing, New, ROOT, Result, Space, Vfs, Wanted};
use parking_lot::{Mutex, MutexGuard};

use volume::{Found, Volume};

/// What users are shown as that a sandbox does not know.
const UNKNOWN: u32 = 65534;
const SIZE_MAX: u64 = u32::MAX as u64;
/// Directories within each other: more is damage.
const DEPTH_MAX: usize = 256;
/// Directories that are yet to be looked at, at most.
const DIRS_MAX: usize = 1 << 20;
/// The bits of a number that do not tell where an entry is.
const NUMBERS: u64 = (1 << 30) - 1;
/// Zeroes that are written at once.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

struct Node {
    parent: u64,
    name: String,
    attr: Attr,
    /// It lies where its number says; else it was renamed.
    lies_there: bool,
}

struct State {
    volume: Volume,
    nodes: HashMap<u64, Node>,
    /// By directory and name in capitals.
    numbers: HashMap<(u64, String), u64>,
    owner: (u32, u32),
    /// All there is was looked at.
    walked: bool,
}

/// An image.
pub struct Msdosfs {
    state: Mutex<State>,
    writable: bool,
    title: String,
}

impl Msdosfs {
    /// Looks for a filesystem in it. Whether it can be written to, its descriptor says.
    pub fn open(image: File) -> std::result::Result<Msdosfs, String> {
        let meta = image.metadata().map_err(|e| e.to_string())?;
        // SAFETY: a plain system call.
        let writable = unsafe { libc::fcntl(image.as_raw_fd(), libc::F_GETFL) } & libc::O_ACCMODE == libc::O_RDWR;
        let image = image.try_clone().map_err(|e| e.to_string())?;
        let volume = Volume::open(image).map_err(|e| format!("this is no FAT filesystem: {e}"))?;
        let title = volume.title();
        let known = |id: u32| if id == UNKNOWN { 0 } else { id };
        let owner = (known(meta.uid()), known(meta.gid()));
        let (nodes, numbers) = (HashMap::new(), HashMap::new());
        let mut state = State { volume, nodes, numbers, owner, walked: false };
        let attr = state.attr(ROOT, &Found { is_dir: true, ..Found::default() });
        state.nodes.insert(ROOT, Node { parent: ROOT, name: String::new(), attr, lies_there: true });
        Ok(Msdosfs { state: Mutex::new(state), writable, title })
    }
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64)
}

fn text(name: &[u8]) -> Result<&str> {
    std::str::from_utf8(name).map_err(|_| Errno(libc::EINVAL))
}

impl State {
    fn node(&self, number: u64) -> Result<&Node> {
        self.nodes.get(&number).ok_or(Errno(libc::ESTALE))
    }

    /// Sees to it that a node is known, if it exists.
    fn recall(&mut self, number: u64) -> Result<()> {
        if self.nodes.contains_key(&number) || self.walked {
            return Ok(());
        }
        self.walked = true;
        let mut dirs = vec![(ROOT, String::new())];
        while let Some((dir, path)) = dirs.pop() {
            for found in self.volume.list(&path)? {
                let below = if path.is_empty() { found.name.clone() } else { format!("{path}/{}", found.name) };
                let is_dir = found.is_dir;
                if let Some(attr) = self.know(dir, found).filter(|_| is_dir && dirs.len() < DIRS_MAX) {
                    dirs.push((attr.node, below));
                }
            }
        }
        Ok(())
    }

    fn path(&self, number: u64) -> Result<String> {
        let (mut names, mut at) = (Vec::new(), number);
        while at != ROOT {
            let node = self.node(at)?;
            names.push(node.name.as_str());
            at = node.parent;
            if names.len() > DEPTH_MAX {
                return Err(Errno(libc::ELOOP));
            }
        }
        names.reverse();
        Ok(names.join("/"))
    }

    fn path_in(&self, dir: u64, name: &str) -> Result<String> {
        let dir = self.dir(dir)?;
        Ok(if dir.is_empty() { name.into() } else { format!("{dir}/{name}") })
    }

    /// The path of a directory.
    fn dir(&self, number: u64) -> Result<String> {
        match self.node(number)?.attr.mode & libc::S_IFMT {
            libc::S_IFDIR => self.path(number),
            _ => Err(Errno(libc::ENOTDIR)),
        }
    }

    fn file(&self, number: u64) -> Result<(String, u64)> {
        let node = self.node(number)?;
        match node.attr.mode & libc::S_IFMT {
            libc::S_IFREG => Ok((self.path(number)?, node.attr.size)),
            _ => Err(Errno(libc::EISDIR)),
        }
    }

    fn attr(&self, node: u64, found: &Found) -> Attr {
        let mode = match (found.is_dir, found.read_only) {
            (true, _) => libc::S_IFDIR | 0o755,
            (false, true) => libc::S_IFREG | 0o555,
            (false, false) => libc::S_IFREG | 0o755,
        };
        let (mtime, atime, ctime) = (found.modified, found.modified, found.modified);
        Attr {
            node,
            mode,
            size: found.size,
            nlink: 1,
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            atime,
            mtime,
            ctime,
        }
    }

    /// The node of what was found, which gets a number if it has none. `None`: it is a known one in another place, so that the image
    /// is damaged: a directory leads to what is above it, or two share their clusters.
    fn know(&mut self, dir: u64, found: Found) -> Option<Attr> {
        let key = (dir, found.name.to_uppercase());
        let number = match self.numbers.get(&key) {
            Some(number) => *number,
            None => {
                let mut number = found.number;
                // What lay there has another name by now, and keeps its number.
                while self.nodes.get(&number).is_some_and(|node| !node.lies_there) {
                    number = if number & NUMBERS == NUMBERS { number - NUMBERS } else { number + 1 };
                }
                if self.nodes.contains_key(&number) {
                    return None;
                }
                self.numbers.insert(key, number);
                number
            }
        };
        let attr = self.attr(number, &found);
        let lies_there = number == found.number;
        self.nodes.insert(number, Node { parent: dir, name: found.name, attr, lies_there });
        Some(attr)
    }

    fn forget(&mut self, dir: u64, name: &str) {
        if let Some(number) = self.numbers.remove(&(dir, name.to_uppercase())) {
            self.nodes.remove(&number);
            self.volume.close(number);
        }
    }

    fn find(&mut self, dir: u64, name: &[u8]) -> Result<Attr> {
        let path = self.dir(dir)?;
        let name = text(name).map_err(|_| Errno(libc::ENOENT))?;
        let found = self.volume.find(&path, name)?.ok_or(Errno(libc::ENOENT))?;
        self.know(dir, found).ok_or(Errno(libc::EIO))
    }

    fn changed(&mut self, number: u64, size: u64, mtime: i64) {
        if let Some(node) = self.nodes.get_mut(&number) {
            (node.attr.size, node.attr.mtime, node.attr.ctime) = (size, mtime, mtime);
        }
    }

    /// Makes a file longer.
    fn extend(&mut self, number: u64, path: &str, from: u64, to: u64) -> Result<()> {
        let mut at = from;
        while at < to {
            let n = ((to - at) as usize).min(ZEROES.len());
            self.volume.write(number, path, at, &ZEROES[..n])?;
            at += n as u64;
        }
        Ok(())
    }
}

impl Vfs for Msdosfs {
    fn info(&self) -> Info {
        // Not for long: a name in other letters is the same file.
        Info { name: format!("msdosfs ({})", self.title), writable: self.writable, valid: Duration::from_secs(1) }
    }

    fn lookup(&self, dir: u64, name: &[u8]) -> Result<Attr> {
        self.state_of(dir)?.find(dir, name)
    }

    fn getattr(&self, node: u64) -> Result<Attr> {
        Ok(self.state_of(node)?.node(node)?.attr)
    }

    fn readdir(&self, dir: u64, after: u64, listing: &mut Listing) -> Result<()> {
        let mut state = self.state_of(dir)?;
        let path = state.dir(dir)?;
        let found = state.volume.list(&path)?;
        // In the order of their numbers: so it stays, whatever comes and goes.
        let mut all: Vec<(Attr, String)> = Vec::new();
        for f in found {
            let name = f.name.clone();
            all.extend(state.know(dir, f).map(|attr| (attr, name)));
        }
        all.sort_by_key(|(attr, _)| attr.node);
        for (attr, name) in all.iter().filter(|(attr, _)| attr.node > after) {
            if !listing.add(name.as_bytes(), attr.node, attr) {
                break;
            }
        }
        Ok(())
    }

    fn read(&self, node: u64, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let mut state = self.state_of(node)?;
        let (path, size) = state.file(node)?;
        let n = buffer.len().min(size.saturating_sub(offset) as usize);
        state.volume.read(node, &path, offset, &mut buffer[..n])?;
        Ok(n)
    }

    fn statfs(&self) -> Result<Space> {
        self.state.lock().volume.space()
    }

    fn create(&self, dir: u64, name: &[u8], new: &New<'_>) -> Result<Attr> {
        let mut state = self.state_of(dir)?;
        let name = text(name)?;
        let path = state.path_in(dir, name)?;
        let parent = state.dir(dir)?;
        if state.volume.find(&parent, name)?.is_some() {
            return Err(Errno(libc::EEXIST));
        }
        match new.mode & libc::S_IFMT {
            libc::S_IFREG => state.volume.create_file(&path)?,
            libc::S_IFDIR => state.volume.create_dir(&path)?,
            _ => return Err(Errno(libc::EPERM)),
        }
        state.find(dir, name.as_bytes())
    }

    fn write(&self, node: u64, offset: u64, data: &[u8]) -> Result<()> {
        let mut state = self.state_of(node)?;
        let (path, size) = state.file(node)?;
        let end = offset + data.len() as u64;
        if end > SIZE_MAX {
            return Err(Errno(libc::EFBIG));
        }
        state.extend(node, &path, size, offset)?;
        state.volume.write(node, &path, offset, data)?;
        state.changed(node, size.max(end), now());
        Ok(())
    }

    fn setattr(&self, node: u64, wanted: &Wanted) -> Result<Attr> {
        let mut state = self.state_of(node)?;
        if let Some(to) = wanted.size {
            let (path, size) = state.file(node)?;
            match to {
                to if to > SIZE_MAX => return Err(Errno(libc::EFBIG)),
                to if to > size => state.extend(node, &path, size, to)?,
                to => state.volume.truncate(node, &path, to)?,
            }
            state.changed(node, to, now());
        }
        if let Some(mtime) = wanted.mtime
            && let Ok((path, size)) = state.file(node)
        {
            let kept = state.volume.set_modified(node, &path, mtime)?;
            state.changed(node, size, kept);
        }
        Ok(state.node(node)?.attr)
    }

    fn unlink(&self, dir: u64, name: &[u8]) -> Result<()> {
        self.remove(dir, name, false)
    }

    fn rmdir(&self, dir: u64, name: &[u8]) -> Result<()> {
        self.remove(dir, name, true)
    }

    fn rename(&self, dir: u64, name: &[u8], new_dir: u64, new_name: &[u8], keep: bool) -> Result<()> {
        let what = self.state_of(dir)?.find(dir, name)?;
        let there = match self.state_of(new_dir)?.find(new_dir, new_name) {
            Err(Errno(libc::ENOENT)) => None,
            other => Some(other?).filter(|t| t.node != what.node),
        };
        let is_dir = |a: &Attr| a.mode & libc::S_IFMT == libc::S_IFDIR;
        let mut state = self.state.lock();
        let (old, mut new) = (state.node(what.node)?.name.clone(), text(new_name)?.to_string());
        if let Some(there) = there {
            new = state.node(there.node)?.name.clone();
            let path = state.path_in(new_dir, &new)?;
            match (keep, is_dir(&what), is_dir(&there)) {
                (true, ..) => return Err(Errno(libc::EEXIST)),
                (_, false, true) => return Err(Errno(libc::EISDIR)),
                (_, true, false) => return Err(Errno(libc::ENOTDIR)),
                (_, true, true) if !state.volume.list(&path)?.is_empty() => return Err(Errno(libc::ENOTEMPTY)),
                _ => {}
            }
        }
        let (from, to) = (state.path_in(dir, &old)?, state.path_in(new_dir, &new)?);
        state.volume.rename(&from, &to, is_dir(&what) && dir != new_dir)?;
        if there.is_some() {
            state.forget(new_dir, &new);
        }
        state.numbers.remove(&(dir, old.to_uppercase()));
        state.numbers.insert((new_dir, new.to_uppercase()), what.node);
        if let Some(node) = state.nodes.get_mut(&what.node) {
            (node.parent, node.name, node.lies_there) = (new_dir, new, false);
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        if self.writable { self.state.lock().volume.sync() } else { Ok(()) }
    }
}

impl Msdosfs {
    /// To work with a node.
    fn state_of(&self, node: u64) -> Result<MutexGuard<'_, State>> {
        let mut state = self.state.lock();
        state.recall(node)?;
        Ok(state)
    }

    fn remove(&self, dir: u64, name: &[u8], is_dir: bool) -> Result<()> {
        let mut state = self.state_of(dir)?;
        let found = state.find(dir, name)?;
        match (found.mode & libc::S_IFMT == libc::S_IFDIR, is_dir) {
            (true, false) => return Err(Errno(libc::EISDIR)),
            (false, true) => return Err(Errno(libc::ENOTDIR)),
            _ => {}
        }
        let name = state.node(found.node)?.name.clone();
        let path = state.path_in(dir, &name)?;
        state.volume.close(found.node);
        state.volume.remove(&path)?;
        state.forget(dir, &name);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
