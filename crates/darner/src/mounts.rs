//! Which mounts the kernel has, from /proc/self/mountinfo, and which store is behind one.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use crate::error::{Context, Failure, Result};
use crate::place::Place;

/// One line of mountinfo.
#[derive(Clone, Debug)]
pub struct Mounted {
    /// Where.
    pub mountpoint: PathBuf,
    /// `fuse.darner`, …
    pub kind: String,
    /// The store, for ours.
    pub source: PathBuf,
}

/// All mounts, in the order they were made.
pub fn all() -> Result<Vec<Mounted>> {
    let text = std::fs::read("/proc/self/mountinfo").cant(|| "read /proc/self/mountinfo".into())?;
    Ok(text.split(|b| *b == b'\n').filter_map(parse).collect())
}

fn parse(line: &[u8]) -> Option<Mounted> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let dash = fields.iter().position(|f| *f == b"-")?;
    let path = |i: usize| Some(PathBuf::from(OsString::from_vec(unescape(fields.get(i)?))));
    Some(Mounted {
        mountpoint: path(4)?,
        kind: String::from_utf8_lossy(fields.get(dash + 1)?).into_owned(),
        source: path(dash + 2)?,
    })
}

/// Undoes `\040` and the like.
fn unescape(text: &[u8]) -> Vec<u8> {
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

/// The mount that a path is in, and the path within it.
pub fn containing(path: &Path) -> Result<(Mounted, PathBuf)> {
    let path = absolute(path)?;
    let mut found: Option<Mounted> = None;
    for m in all()? {
        let deeper = found.as_ref().is_none_or(|f| m.mountpoint.as_os_str().len() >= f.mountpoint.as_os_str().len());
        if deeper && path.starts_with(&m.mountpoint) {
            found = Some(m);
        }
    }
    let ours = found.filter(|m| m.kind == "fuse.darner" || m.kind == "fuse");
    let mount = ours.ok_or_else(|| Failure::new(format!("{} is not in a darner mount", path.display())))?;
    let within = path.strip_prefix(&mount.mountpoint).expect("it starts with it").to_owned();
    Ok((mount, within))
}

/// The store that a user means by a mount point, a path in a mount, or the store's own path.
pub fn store_of(path: &Path) -> Result<Place> {
    match containing(path) {
        Ok((mount, _)) => Place::at(&mount.source),
        Err(not_mounted) => match Place::at(path) {
            Ok(place) if place.holds_store()? => Ok(place),
            _ => Err(not_mounted),
        },
    }
}
