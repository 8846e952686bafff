//! `darner restore`: builds a copy of what was beside what is, then swaps them in one rename: one transaction, which can be
//! undone like any other. A failure or an interrupt before that removes the copy and changes nothing.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use darner_fs::NO_HISTORY;
use darner_fs::retain::parse_grid;
use darner_store::Grid;

use super::{human, printable, quoted};
use crate::cli::Restore;
use crate::control::{self, Request, Response, Status};
use crate::copy::{self, Copier, Dir};
use crate::error::{Failure, Result};
use crate::mirroring::PROMOTED;
use crate::mounts::{self, Located, Mounted, Past};
use crate::place::Place;
use crate::when::local;
use crate::xattr;

pub fn run(c: &Restore) -> Result<()> {
    let source = mounts::locate(&c.source)?;
    if fs::symlink_metadata(&source.path).is_err_and(|e| e.kind() == ErrorKind::NotFound) {
        return Err(Failure::new(match &source.past {
            Some(past) => format!("{} did not exist at {}", past.live.display(), local(past.tid)),
            None => format!("{} does not exist", c.source.display()),
        }));
    }
    if let Some(Past { live, tid, rounded: Some(asked), .. }) = &source.past {
        return Err(Failure::new(format!(
            "{asked} is not kept; the last moment before it that is, is {tid}, {}: darner restore {}",
            local(*tid),
            quoted(&at(live, &tid.to_string()))
        )));
    }
    let shown = xattr::get(&source.path, c"user.darner.as-of");
    if shown.is_some_and(|text| text.ends_with(NO_HISTORY.as_bytes())) {
        return Err(Failure::new(format!(
            "no history is kept of {}: there is nothing to restore it from",
            c.source.display()
        )));
    }
    match &c.to {
        Some(dest) => restore_to(&source, dest),
        None => restore_in_place(&source, c),
    }
}

fn restore_to(source: &Located, dest: &Path) -> Result<()> {
    if fs::symlink_metadata(dest).is_ok() {
        return Err(Failure::new(format!(
            "{} exists already; --to wants a new name (without --to, what is there is replaced)",
            dest.display()
        )));
    }
    let dest = mounts::absolute(dest)?;
    let (dir, name) = parted(&dest)?;
    let copy = Copy::make(&source.path, Dir::open(dir)?)?;
    copy::settle(&copy.dir, &copy.name, name)?;
    copy.keep();
    super::print(&format!("restored to {}\n", printable(&dest)))
}

fn restore_in_place(source: &Located, c: &Restore) -> Result<()> {
    let live = source.past.as_ref().map_or(&source.path, |past| &past.live);
    if let Ok((mount, _)) = mounts::containing(live) {
        may_be_changed(&mount)?;
    }
    let Some(past) = &source.past else {
        return Err(Failure::new(format!("say as of when to restore {0}, as in {0}@@-10m", c.source.display())));
    };
    let target = mounts::itself(&past.live)?;
    let (mount, within) = mounts::around(&target)?;
    if within.as_os_str().is_empty() {
        return Err(Failure::new(format!(
            "{} is a mount point, which can't be replaced: restore what is in it, or use --to",
            target.display()
        )));
    }
    if super::fileset::is_root(&target) {
        return Err(Failure::new(format!(
            "{} is a fileset, which can't be replaced: restore what is in it, use --to, or make a clone of it",
            target.display()
        )));
    }
    must_be_there(target.parent().unwrap_or(&target))?;
    mounts::refuse_within(&target)?;
    let stays = what_stays(&mount, &within, &source.path, &target)?;
    let (dir, name) = parted(&target)?;
    let copy = Copy::make(&source.path, Dir::itself(dir)?)?;
    let before = newest(&mount);
    let replaced = copy::swap(&copy.dir, &copy.name, name)?;
    copy.keep();
    for path in &stays {
        let moved = || {
            let (from, old) = copy.dir.within(&copy.name)?.beneath(path)?;
            let (to, new) = copy.dir.within(name)?.beneath(path)?;
            Ok::<_, Failure>(fs::rename(from.at(old), to.at(new))?)
        };
        moved().map_err(|e| {
            let (from, to) = (copy.dir.shown(&copy.name).join(path), target.join(path));
            let (from, to) = (printable(&from), printable(&to));
            Failure::new(format!("the rest is restored, but {to}, of which no history is kept, is {from} now: {e}"))
        })?;
    }
    let mut message = format!("restored {} as of {}\n", printable(&target), local(past.tid));
    if let (true, Some(tid)) = (replaced, before) {
        if !keeps_every_commit(&mount, &target) {
            message += "what was there before is kept only until the cleaner comes by, since the grid does not keep every commit; until then:\n";
        }
        message += &format!("undo: darner restore {}\n", quoted(&at(&target, &tid)));
    }
    super::print(&message)?;
    if replaced {
        let left = |e| {
            let old = copy.dir.shown(&copy.name);
            Failure::new(format!("it is restored, but what it replaced stays as {}: {e}", old.display()))
        };
        copy::remove(&copy.dir, &copy.name).map_err(left)?;
    }
    Ok(())
}

/// Refuses to restore in a directory that is gone, or that can't be looked at.
fn must_be_there(dir: &Path) -> Result<()> {
    match fs::metadata(dir) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Err(Failure::new(format!("can't look at {}: {e}", dir.display())))
        }
        _ => Err(Failure::new(format!("{} does not exist any more: restore that first, or use --to", dir.display()))),
    }
}

/// What no history is kept of in what is to be replaced: paths below it. That stays as it is, since it could be had back from nowhere. An
/// error where it can't.
fn what_stays(mount: &Mounted, within: &Path, from: &Path, target: &Path) -> Result<Vec<PathBuf>> {
    let at = mounts::spot(mount, within)?;
    let Response::Keepless(paths) = control::must_call(&Place::behind(mount), &Request::Keepless { at })? else {
        return Err(super::other_answer());
    };
    let paths: Vec<PathBuf> = paths.into_iter().map(|path| PathBuf::from(OsString::from_vec(path))).collect();
    for path in &paths {
        let (now, then) = (target.join(path), from.join(path));
        let shown = printable(&now);
        if path.as_os_str().is_empty() {
            return Err(Failure::new(format!(
                "no history is kept of {shown}: there is nothing to restore it from, and what is there would be lost for good"
            )));
        }
        let is_empty = |dir: &Path| fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none());
        let fits = match fs::symlink_metadata(&then) {
            Ok(m) => m.is_dir() && is_empty(&then) && now.is_dir(),
            Err(_) => then.parent().is_some_and(|dir| fs::symlink_metadata(dir).is_ok_and(|m| m.is_dir())),
        };
        if !fits {
            return Err(Failure::new(format!(
                "no history is kept of {shown}, which would be lost for good, since what is to be restored has no place for it: move it away \
                 first, or use --to"
            )));
        }
    }
    Ok(paths)
}

/// The directory in which something is, or will be, and its name there.
fn parted(path: &Path) -> Result<(&Path, &OsStr)> {
    let parts = path.parent().zip(path.file_name());
    parts.ok_or_else(|| Failure::new("the root directory can't be replaced"))
}

/// `PATH@@WHEN`.
fn at(path: &Path, when: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!("@@{when}"));
    name.into()
}

/// Whether the grid of what is at a path keeps every commit for a while; for the message only.
fn keeps_every_commit(mount: &Mounted, target: &Path) -> bool {
    let all = |grid: &Grid| grid.steps.iter().any(|step| step.every == 0);
    let known = || {
        let place = Place::behind(mount);
        let within = target.strip_prefix(&mount.mountpoint).ok()?;
        let Response::Filesets(lines) =
            control::must_call(&place, &Request::FilesetAt { at: mounts::spot(mount, within).ok()? }).ok()?
        else {
            return None;
        };
        let fileset = lines.into_iter().next()?.name;
        let line = status(mount)?.retention.into_iter().find(|line| line.fileset == fileset)?;
        parse_grid(&line.grid).ok()
    };
    known().is_none_or(|grid| all(&grid))
}

/// The newest transaction, for the message only.
fn newest(mount: &Mounted) -> Option<String> {
    status(mount).map(|s| s.tid)
}

/// Refuses where a mount is of the past, a mirror's, or read-only.
fn may_be_changed(mount: &Mounted) -> Result<()> {
    let at = mounts::spot(mount, Path::new(""))?.mountpoint;
    let lines = status(mount).map(|s| s.mounts).unwrap_or_default();
    let Some(line) = lines.into_iter().find(|line| line.mountpoint == at) else { return Ok(()) };
    let is_mirror = || {
        let asked = control::call(&Place::behind(mount), &Request::Following);
        matches!(asked, Ok(Some(Response::Following(f))) if f.state != PROMOTED)
    };
    let what = match line.as_of_time {
        Some(when) => format!("is of the past, as of {when},"),
        None if line.fileset.is_none() && is_mirror() => "is a mirror's, which changes only with its source,".into(),
        None if line.read_only => "is read-only".into(),
        None => return Ok(()),
    };
    Err(Failure::new(format!(
        "the mount on {} {what} and can't be changed: restore in one that can, or use --to",
        mount.mountpoint.display()
    )))
}

fn status(mount: &Mounted) -> Option<Box<Status>> {
    match control::must_call(&Place::behind(mount), &Request::Status) {
        Ok(Response::Status(s)) => Some(s),
        _ => None,
    }
}

/// A copy under a name of its own, which goes with this value unless it is kept.
struct Copy {
    dir: Dir,
    name: OsString,
    keep: Cell<bool>,
}

impl Copy {
    fn make(from: &Path, dir: Dir) -> Result<Copy> {
        let mut names = (0..).map(|n| OsString::from(format!(".darner-restore-{}-{n}", std::process::id())));
        let name = names.find(|name| fs::symlink_metadata(dir.at(name)).is_err()).expect("numbers don't end");
        let copy = Copy { dir, name, keep: Cell::new(false) };
        let bar = super::spinner("restored");
        let bytes = Cell::new(0);
        heed_interrupts();
        let progress = |n: u64| {
            if INTERRUPTED.load(Ordering::Relaxed) {
                return Err(Failure::new("interrupted; nothing was changed"));
            }
            bytes.set(bytes.get() + n);
            bar.inc(u64::from(n == 0));
            bar.set_message(format!("files, {}", human(bytes.get())));
            Ok(())
        };
        let made = Copier::new(&progress).copy(from, &copy.dir, &copy.name);
        bar.finish_and_clear();
        made.map(|()| copy)
    }

    /// It has another name now, or is no longer ours to remove unasked.
    fn keep(&self) {
        self.keep.set(true);
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if !self.keep.get()
            && let Err(e) = copy::remove(&self.dir, &self.name)
        {
            eprintln!("darner: the unfinished copy {} stays: {e}", self.dir.shown(&self.name).display());
        }
    }
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note_interrupt(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Turns the usual signals into an error of the copy, so that it cleans up after itself.
fn heed_interrupts() {
    let note: extern "C" fn(libc::c_int) = note_interrupt;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only stores to an atomic.
        unsafe { libc::signal(signal, note as libc::sighandler_t) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_can_not_be_looked_at_is_not_said_to_be_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("file"), "").unwrap();
        std::os::unix::fs::symlink("loop", path("loop")).unwrap();
        let said = |name: &str| must_be_there(&path(name)).map_err(|e| e.to_string());
        assert_eq!(said("."), Ok(()));
        for gone in ["gone", "file", "file/below"] {
            assert!(said(gone).unwrap_err().contains("does not exist any more"), "{gone}");
        }
        let said = said("loop").unwrap_err();
        assert!(said.starts_with("can't look at ") && !said.contains("exist"), "{said}");
    }
}
