//! Which mounts the kernel has, from /proc/self/mountinfo, which store is behind one, and what a path in one means.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use darner_fs::{Tid, splits};

use crate::control::{self, Request, Response, Spot};
use crate::error::{Context, Failure, Result};
use crate::namespaces::Namespace;
use crate::place::{self, Place};
use crate::users;

/// Whoever has a directory locked for longer than this does not mount there.
const CLAIMED: Duration = Duration::from_secs(5);
/// Processes of other namespaces that are named.
const NAMED: usize = 5;

/// One line of mountinfo.
#[derive(Clone, Debug)]
pub struct Mounted {
    /// The kernel's number of it.
    pub id: u64,
    /// Major and minor number: the same for all mounts of one filesystem.
    pub device: String,
    /// What of the filesystem is mounted: `/`, or a directory of it for a bind mount.
    pub root: PathBuf,
    /// Where.
    pub mountpoint: PathBuf,
    /// `fuse.darner`, …
    pub kind: String,
    /// The store, for ours.
    pub source: PathBuf,
    /// Who mounted it, for those of FUSE.
    pub user: Option<u32>,
}

impl Mounted {
    /// Whether it is a store's. (Mounted without a subtype or with another one, its type is that of others' mounts, too.)
    pub fn is_ours(&self) -> bool {
        let of_a_store = || Place::at(&self.source).is_ok_and(|place| place.holds_store().unwrap_or(false));
        let is_fuse = self.kind == "fuse" || self.kind.starts_with("fuse.");
        self.kind == "fuse.darner" || is_fuse && self.source.is_absolute() && of_a_store()
    }
}

/// What is said of a mount whose processes were killed at once.
pub fn is_dead(mountpoint: &Path) -> String {
    let at = mountpoint.display();
    format!(
        "the mount on {at} is dead: its processes were killed. `darner unmount {at}` takes it away; then it can be mounted again"
    )
}

/// All mounts, in the order they were made.
pub fn all() -> Result<Vec<Mounted>> {
    table("/proc/self/mountinfo").cant(|| "read /proc/self/mountinfo".into())
}

fn table(path: &str) -> std::io::Result<Vec<Mounted>> {
    // (Its length is not known, and each read costs.)
    let mut text = Vec::with_capacity(16 << 10);
    File::open(path)?.read_to_end(&mut text)?;
    Ok(text.split(|b| *b == b'\n').filter_map(parse).collect())
}

/// Who keeps what is not mounted here in another mount namespace, as far as those can be looked at: a copy of a mount stays there
/// when ours is taken away.
pub fn kept_elsewhere(is_it: impl Fn(&Mounted) -> bool) -> Option<String> {
    let mut known = HashMap::from([(Namespace::Mount.of("self")?, false)]);
    let mut pids: Vec<u32> = users::processes().collect();
    pids.sort_unstable();
    pids.retain(|pid| {
        let has = || table(&format!("/proc/{pid}/mountinfo")).is_ok_and(|all| all.iter().any(&is_it));
        Namespace::Mount.of(pid).is_some_and(|space| *known.entry(space).or_insert_with(has))
    });
    let named: Vec<String> = pids.iter().take(NAMED).map(|pid| users::named(*pid)).collect();
    let (named, more) = (named.join(", "), if pids.len() > NAMED { " and others" } else { "" });
    (!pids.is_empty()).then(|| format!("another mount namespace still has it: that of {named}{more}"))
}

/// Refuses where something is mounted at an absolute path or below it: what is done to a tree must not go on in another filesystem, nor take
/// the mount away with its name.
pub fn refuse_within(path: &Path) -> Result<()> {
    match all()?.into_iter().find(|m| m.mountpoint.starts_with(path)) {
        Some(m) => Err(Failure::new(format!("{} is mounted there: unmount it first", m.mountpoint.display()))),
        None => Ok(()),
    }
}

/// Has a place to mount at for this process until that is dropped, unless such a mount is there. (Who may not open the directory
/// does without.)
pub fn claim(mountpoint: &Path, is_in_the_way: impl Fn(&Mounted) -> bool) -> Result<Option<File>> {
    let start = Instant::now();
    let dir = File::open(mountpoint).ok();
    let waits = |dir: &File| !place::try_lock(dir, true).unwrap_or(true) && start.elapsed() < CLAIMED;
    while dir.as_ref().is_some_and(waits) {
        std::thread::sleep(Duration::from_millis(5));
    }
    match all()?.iter().any(|m| m.mountpoint == mountpoint && is_in_the_way(m)) {
        true => Err(Failure::new(format!("{} has something mounted on it already", mountpoint.display()))),
        false => Ok(dir),
    }
}

/// What was mounted last at an absolute path.
pub fn last_at(mountpoint: &Path) -> Result<Option<Mounted>> {
    Ok(all()?.into_iter().rev().find(|m| m.mountpoint == mountpoint))
}

/// The same of FUSE.
pub fn fuse_at(mountpoint: &Path) -> Result<Option<Mounted>> {
    Ok(all()?.into_iter().rev().find(|m| m.mountpoint == mountpoint && m.kind.starts_with("fuse")))
}

fn parse(line: &[u8]) -> Option<Mounted> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let dash = fields.iter().position(|f| *f == b"-")?;
    let path = |i: usize| Some(PathBuf::from(OsString::from_vec(unescape(fields.get(i)?))));
    Some(Mounted {
        id: std::str::from_utf8(fields.first()?).ok()?.parse().ok()?,
        device: String::from_utf8_lossy(fields.get(2)?).into_owned(),
        root: path(3)?,
        mountpoint: path(4)?,
        kind: String::from_utf8_lossy(fields.get(dash + 1)?).into_owned(),
        source: path(dash + 2)?,
        user: fields.get(dash + 3).and_then(|options| user(options)),
    })
}

fn user(options: &[u8]) -> Option<u32> {
    let id = options.split(|b| *b == b',').find_map(|option| option.strip_prefix(b"user_id="))?;
    std::str::from_utf8(id).ok()?.parse().ok()
}

/// Undoes `\040` and the like.
pub(crate) fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut i = 0;
    while i < text.len() {
        let octal = text.get(i + 1..i + 4).filter(|_| text[i] == b'\\');
        let byte = octal.and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok());
        out.push(byte.unwrap_or(text[i]));
        i += if byte.is_some() { 4 } else { 1 };
    }
    out
}

/// An absolute path without `.` and `..`, symbolic links resolved as far as it exists: paths of the past may not exist now,
/// and nothing of the mount needs to answer.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(path).cant(|| format!("find {}", path.display()))?;
    let mut out = PathBuf::from("/");
    for c in path.components() {
        match c {
            Component::ParentDir => {
                out.pop();
            }
            Component::Normal(name) => {
                out.push(name);
                if let Ok(target) = std::fs::read_link(&out) {
                    out.pop();
                    out = absolute(&out.join(target))?;
                }
            }
            _ => {}
        }
    }
    Ok(out)
}

/// As [`absolute`], but for a symbolic link at the end, which is what is meant unless a slash is behind it.
pub fn itself(path: &Path) -> Result<PathBuf> {
    match (path.parent(), path.file_name()) {
        (Some(dir), Some(name)) if !ends_in_a_directory(path) => Ok(absolute(&Path::new(".").join(dir))?.join(name)),
        _ => absolute(path),
    }
}

/// Whether a path is written as that of a directory: `DIR/`, `DIR/.`
fn ends_in_a_directory(path: &Path) -> bool {
    let path = path.as_os_str().as_bytes();
    path.ends_with(b"/") || path.ends_with(b"/.")
}

/// The mount that a path leads into, and the path within it.
pub fn containing(path: &Path) -> Result<(Mounted, PathBuf)> {
    around(&absolute(path)?)
}

/// The same for an absolute path without symbolic links, but for one at its end.
pub fn around(path: &Path) -> Result<(Mounted, PathBuf)> {
    let mut found: Option<Mounted> = None;
    for m in all()? {
        let deeper = found.as_ref().is_none_or(|f| m.mountpoint.as_os_str().len() >= f.mountpoint.as_os_str().len());
        if deeper && path.starts_with(&m.mountpoint) {
            found = Some(m);
        }
    }
    let ours = found.filter(Mounted::is_ours);
    let mount = ours.ok_or_else(|| Failure::new(format!("{} is not in a darner mount", path.display())))?;
    let within = path.strip_prefix(&mount.mountpoint).expect("it starts with it").to_owned();
    Ok((mount, within))
}

/// Whether what is at a path is on a filesystem that is on a block device, so that it is in no mount of ours. No daemon is asked.
fn is_on_a_disk(path: &Path) -> bool {
    let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: all zeroes is a valid structure.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: a path that ends with a zero, and room for the answer.
    let rc = unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), libc::AT_STATX_DONT_SYNC, 0, &mut found) };
    rc == 0 && found.stx_dev_major != 0
}

/// The store that a user means by a mount point, a path in a mount, or the store's own path.
pub fn store_of(path: &Path) -> Result<Place> {
    // (To read the table of mounts costs more than most commands.)
    if is_on_a_disk(path)
        && let Ok(place) = Place::at(path)
        && place.holds_store()?
    {
        return Ok(place);
    }
    match containing(path) {
        Ok((mount, within)) => exists(&mount, &within).map(|()| Place::behind(&mount)),
        Err(not_mounted) => match Place::at(path) {
            Ok(place) if place.holds_store()? => Ok(place),
            _ => Err(not_mounted),
        },
    }
}

/// Whoever mistypes a name does not mean the mount that it would be in. (The mount point itself need not answer.)
fn exists(mount: &Mounted, within: &Path) -> Result<()> {
    let path = mount.mountpoint.join(within);
    let is_missing = || std::fs::symlink_metadata(&path).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound);
    match !within.as_os_str().is_empty() && is_missing() {
        true => Err(Failure::new(format!("{} does not exist", path.display()))),
        false => Ok(()),
    }
}

/// The store and what of it a user means by a path in a mount (without moments), or the store's own path.
pub fn spot_of(path: &Path) -> Result<(Place, Spot)> {
    find_spot(path, true)
}

/// The same of a path that need not exist now.
pub fn spot_then(path: &Path) -> Result<(Place, Spot)> {
    find_spot(path, false)
}

fn find_spot(path: &Path, must_exist: bool) -> Result<(Place, Spot)> {
    let Ok((mount, within)) = containing(path) else { return Ok((store_of(path)?, Spot::default())) };
    let at = spot(&mount, &within)?;
    if must_exist {
        exists(&mount, &within)?;
    }
    Ok((Place::behind(&mount), at))
}

/// A path within a mount as the daemon knows it, which has not made bind mounts.
pub fn spot(mount: &Mounted, within: &Path) -> Result<Spot> {
    let root = mount.root.strip_prefix("/").unwrap_or(&mount.root);
    let path = root.join(within).iter().map(|name| name.as_bytes().to_vec()).collect();
    let original = all()?.into_iter().find(|m| m.device == mount.device && m.root == Path::new("/"));
    Ok(Spot { mountpoint: original.map_or_else(|| mount.mountpoint.clone(), |m| m.mountpoint), path })
}

/// What a user means by a path that may lead into the past.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// A path that the kernel can follow. Moments are given as tids, so that a walk sees one moment however long it takes.
    pub path: PathBuf,
    /// For a path into the past: the same without its moments, and the last of them.
    pub past: Option<Past>,
}

/// The moment in a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Past {
    /// Where it is, or was, in the live tree.
    pub live: PathBuf,
    /// The directory of the live tree whose past it is in.
    pub dir: PathBuf,
    /// As of when.
    pub tid: Tid,
    /// The tid that was asked for, where that is not kept, and `tid` is what it was rounded to.
    pub rounded: Option<Tid>,
}

/// Finds out what a path means. `MNT@@WHEN` beside a mount point can't be a name in that directory, which is not ours: it
/// stands for `MNT/@@WHEN`. Nor has a symbolic link outside a past: it stands for what it leads to in a mount, without WHEN too.
/// An error for a WHEN that is no moment of the mount's filesystem.
pub fn locate(path: &Path) -> Result<Located> {
    let whole = std::path::absolute(path).cant(|| format!("find {}", path.display()))?;
    let whole = name_the_directory_itself(&whole);
    let (mut out, mut live, mut at) = (PathBuf::new(), PathBuf::new(), None);
    let mut into = None;
    let mut components = whole.components().peekable();
    while let Some(c) = components.next() {
        let name = c.as_os_str().as_bytes();
        // `@@` lists moments; the next name is one of them, without marks.
        let listed = name == MARK && components.peek().is_some();
        let texts: Vec<(&[u8], &str)> = match listed {
            true => components.next().into_iter().filter_map(|c| Some((&b""[..], c.as_os_str().to_str()?))).collect(),
            false => splits(name).collect(),
        };
        if !listed && (texts.is_empty() || is_literal(&out.join(c))) {
            out.push(c);
            live.push(c);
            continue;
        }
        match moment(&live, &texts)? {
            Some(Moment { base, dir, tid: found, rounded }) => {
                let mut name = base.clone();
                name.push(format!("@@{found}"));
                out = dir.clone().unwrap_or(out).join(name);
                live = dir.unwrap_or(live);
                if base.is_empty() {
                    // What the directory's name leads to, as the kernel has it.
                    live = absolute(&live)?;
                }
                into.get_or_insert_with(|| live.clone());
                if !base.is_empty() {
                    live.push(base);
                }
                at = Some((found, rounded));
            }
            None => {
                out.push(c);
                live.push(c);
            }
        }
    }
    let Some((tid, rounded)) = at else {
        let path = match leads_into_a_mount(&out) {
            Some(target) => target,
            None if ends_in_a_directory(path) && out.is_symlink() => absolute(&out)?,
            None => out,
        };
        return Ok(Located { path, past: None });
    };
    let mut dir = into.unwrap_or_default();
    if std::fs::symlink_metadata(&out).is_err()
        && let Some((root, path)) = from_the_root(&live, tid)
    {
        (dir, out) = (root, path);
    }
    Ok(Located { path: out, past: Some(Past { live, dir, tid, rounded }) })
}

/// What had a live path then, if the directories that it is in are gone, or others now; and the directory whose past that is in.
fn from_the_root(live: &Path, tid: Tid) -> Option<(PathBuf, PathBuf)> {
    let (mount, within) = containing(live).ok()?;
    let path = mount.mountpoint.join(format!("@@{tid}")).join(within);
    std::fs::symlink_metadata(&path).is_ok().then_some((mount.mountpoint, path))
}

/// What a symbolic link outside of all mounts leads to in one.
fn leads_into_a_mount(link: &Path) -> Option<PathBuf> {
    let target = absolute(link).ok().filter(|_| link.is_symlink())?;
    (containing(link.parent()?).is_err() && containing(&target).is_ok()).then_some(target)
}

/// `DIR/.@@WHEN` means what `DIR@@WHEN` does; of a symbolic link, what `LINK/@@WHEN` does.
fn name_the_directory_itself(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for c in path.components() {
        match c.as_os_str().as_bytes().strip_prefix(b".").filter(|rest| is_only_a_moment(rest)) {
            Some(rest) if out.is_symlink() => out.push(OsStr::from_bytes(rest)),
            Some(rest) if out.file_name().is_some() => {
                let mut name = out.file_name().unwrap_or_default().to_os_string();
                name.push(OsStr::from_bytes(rest));
                out.set_file_name(name);
            }
            _ => out.push(c),
        }
    }
    out
}

const MARK: &[u8] = b"@@";

/// Whether there is one mark in a name, at its beginning, and something behind it.
fn is_only_a_moment(name: &[u8]) -> bool {
    let when = name.strip_prefix(MARK).unwrap_or_default();
    !when.is_empty() && !when.windows(MARK.len()).any(|pair| pair == MARK)
}

/// Whether a name is there by itself, not by leading into the past (whose inode numbers have bit 63).
fn is_literal(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|m| m.ino() >> 63 == 0)
}

/// What a name that names a moment means.
struct Moment {
    /// What is before the mark.
    base: OsString,
    /// The directory in which to look, if that is another one (a mount point, or where a link from outside leads).
    dir: Option<PathBuf>,
    tid: Tid,
    rounded: Option<Tid>,
}

/// The first reading of a name in directory `dir` that names a moment. `None` where no darner mount can be asked.
fn moment(dir: &Path, texts: &[(&[u8], &str)]) -> Result<Option<Moment>> {
    let mut refused = None;
    for (base, when) in texts {
        let (when, base) = (*when, OsStr::from_bytes(base));
        let asked = when.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok()).map(Tid);
        let rounded = |tid: Tid| asked.filter(|asked| *asked != tid);
        let target = leads_into_a_mount(&dir.join(base));
        let led = target.as_deref().and_then(|target| Some((target.parent()?, target.file_name()?)));
        let (dir, base) = led.unwrap_or((dir, base));
        let beside = dir.join(base);
        // (A link in a mount is itself what had a past.)
        let is_link = beside.is_symlink();
        let root = containing(&beside).ok().filter(|(_, within)| within.as_os_str().is_empty() && !is_link);
        let Some((mount, within)) = root.clone().or_else(|| containing(dir).ok()) else { continue };
        let store = Place::behind(&mount);
        let resolve = |within: &Path, must: bool| -> Result<Option<Tid>> {
            let at = spot(&mount, within)?;
            match control::must_call(&store, &Request::Resolve { at, when: when.into(), must })? {
                Response::Tid(tid) => Ok(tid.map(Tid)),
                _ => Ok(None),
            }
        };
        if let Some(tid) = resolve(&within, false)? {
            let (place, base) = match root {
                Some((m, _)) => (Some(m.mountpoint), OsStr::new("")),
                None => (led.map(|(dir, _)| dir.to_owned()), base),
            };
            return Ok(Some(Moment { base: base.to_owned(), dir: place, tid, rounded: rounded(tid) }));
        }
        // A fileset's directory has labels of its own.
        if let (None, Ok((_, below))) = (&root, containing(&beside))
            && beside.is_dir()
            && !is_link
            && let Some(tid) = resolve(&below, false)?
        {
            return Ok(Some(Moment { base: OsString::new(), dir: Some(beside), tid, rounded: rounded(tid) }));
        }
        refused = refused.or_else(|| resolve(&within, true).err());
    }
    refused.map_or(Ok(None), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_without_marks_or_without_a_mount_stays_as_it_is() {
        let path = PathBuf::from("/no/such/file@@-1d");
        assert_eq!(locate(&path).unwrap(), Located { path, past: None });
        let named = |path: &str| name_the_directory_itself(Path::new(path)).to_str().map(str::to_owned);
        assert_eq!(named("/a/.@@-1d/b").as_deref(), Some("/a@@-1d/b"));
        assert_eq!(named("/a/.@@@GMT-2026.11.22-09.30.15").as_deref(), Some("/a@@@GMT-2026.11.22-09.30.15"));
        for of_a_file in ["/a/.@@@@-1d", "/a/@@-1d/.@@", "/a/.@@b@@-1d"] {
            assert_eq!(named(of_a_file).as_deref(), Some(of_a_file));
        }
        let path = PathBuf::from("/usr/bin");
        assert_eq!(locate(&path).unwrap(), Located { path, past: None });
    }

    #[test]
    fn a_mount_of_another_program_is_not_taken_for_a_stores() {
        let dir = tempfile::tempdir().unwrap();
        let mount =
            |kind: &str, source: &str| parse(format!("36 35 0:9 / /mnt rw - {kind} {source} rw").as_bytes()).unwrap();
        let source = dir.path().to_str().unwrap();
        assert!(mount("fuse.darner", source).is_ours() && !mount("fuse.sshfs", source).is_ours());
        assert!(!mount("fuse", source).is_ours() && !mount("fuse", ".").is_ours());
        let options = darner_store::CreateOptions::default();
        darner_store::Store::create(&darner_store::volume::DirVolume::open(dir.path(), true), &options).unwrap();
        assert!(mount("fuse", source).is_ours() && !mount("tmpfs", source).is_ours());
        assert!(mount("fuse.of-mine", source).is_ours() && !mount("fuseblk", source).is_ours());
    }

    #[test]
    fn the_mount_tables_escapes_are_undone() {
        let line = br"36 35 98:0 / /a\040b\134 rw - fuse.darner /s\011t rw";
        let m = parse(line).unwrap();
        assert_eq!((m.mountpoint, m.source), (PathBuf::from("/a b\\"), PathBuf::from("/s\tt")));
        assert!(parse(b"").is_none() && parse(b"1 2 3 - x").is_none());
    }
}
