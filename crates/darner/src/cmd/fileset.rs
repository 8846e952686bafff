//! `darner fileset`

use std::fmt::Write;
use std::path::Path;

use super::human;
use crate::cli::{Fileset, FilesetAction};
use crate::control::{self, FilesetLine, Request, Response};
use crate::error::{Failure, Result};
use crate::mounts;
use crate::place::Place;

pub fn run(c: &Fileset) -> Result<()> {
    use FilesetAction as A;
    match &c.action {
        A::List { mnt, json } => {
            let lines = all(&mounts::store_of(mnt)?)?;
            if *json { super::print_json(&lines) } else { super::print(&table(&lines)) }
        }
        A::Create { mnt, name, copies } => {
            // SAFETY: these calls can't fail.
            let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
            change(mnt, name, Request::CreateFileset { name: name.clone(), uid, gid })?;
            if copies == "1" {
                return Ok(());
            }
            let twice = Request::Copies { copies: Some(copies.clone()), fileset: Some(name.clone()) };
            super::volume::ask(mnt, twice).map(drop).or_else(|e| {
                change(mnt, name, Request::RemoveFileset { name: name.clone(), force: false })?;
                Err(Failure::new(format!("fileset {name:?} is not made: {e}")))
            })
        }
        A::Remove { mnt, name, force } => {
            refuse_within(mnt, name)?;
            change(mnt, name, Request::RemoveFileset { name: name.clone(), force: *force }).map(drop)
        }
        A::Rename { mnt, name, new_name } => {
            refuse_within(mnt, name)?;
            let request = Request::RenameFileset { name: name.clone(), new_name: new_name.clone() };
            change(mnt, name, request).map(drop)
        }
        A::Quota { mnt, name, bytes: None, objects: None, history: None, json } => show_quota(mnt, name, *json),
        A::Quota { mnt, name, bytes, objects, history, .. } => {
            let (bytes, objects, history) = (*bytes, *objects, *history);
            change(mnt, name, Request::LimitFileset { name: name.clone(), bytes, objects, history }).map(drop)
        }
    }
}

/// When its name goes, the kernel takes away what is mounted in it.
fn refuse_within(mnt: &Path, name: &str) -> Result<()> {
    mounts::refuse_within(&mounts::itself(mnt)?.join(name)).map_err(|e| Failure::new(format!("fileset {name:?}: {e}")))
}

/// Has the daemon change a fileset, and says which one if it can't.
fn change(mnt: &Path, name: &str, request: Request) -> Result<Vec<FilesetLine>> {
    ask(&mounts::store_of(mnt)?, &request).map_err(|e| Failure::new(format!("fileset {name:?}: {e}")))
}

/// Calls the daemon about filesets.
pub(super) fn ask(place: &Place, request: &Request) -> Result<Vec<FilesetLine>> {
    match control::must_call(place, request)? {
        Response::Filesets(lines) => Ok(lines),
        _ => Err(super::other_answer()),
    }
}

fn all(place: &Place) -> Result<Vec<FilesetLine>> {
    ask(place, &Request::Filesets)
}

/// Whether a path in a mount, as [`mounts::around`] takes it, is the root of a fileset below the root of the whole.
pub(super) fn is_root(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let Ok((mount, _)) = mounts::around(path) else { return false };
    let Ok(found) = std::fs::symlink_metadata(path) else { return false };
    let lines = all(&Place::behind(&mount));
    lines.is_ok_and(|lines| lines.iter().any(|line| line.inode == found.ino()))
}

fn show_quota(mnt: &Path, name: &str, json: bool) -> Result<()> {
    let lines = all(&mounts::store_of(mnt)?)?;
    let found = lines.iter().find(|line| line.name == name);
    let line = found.ok_or_else(|| Failure::new(format!("fileset {name:?}: there is no fileset of this name")))?;
    if json {
        return super::print_json(line);
    }
    let mut out = String::new();
    writeln!(out, "bytes    {} of {}", human(line.live_bytes), limit(line.limit_bytes, human))
        .expect("strings take all");
    let objects = limit(line.limit_objects, |n| n.to_string());
    writeln!(out, "objects  {} of {objects}", line.objects).expect("strings take all");
    writeln!(out, "history  limit {} (darner retain tells how much there is)", limit(line.limit_history_bytes, human))
        .expect("strings take all");
    super::print(&out)
}

fn limit(limit: u64, show: impl Fn(u64) -> String) -> String {
    if limit == 0 { "none".into() } else { show(limit) }
}

fn table(lines: &[FilesetLine]) -> String {
    let mut out = String::new();
    let widest = lines.iter().map(|line| line.name.chars().count()).max().unwrap_or(0);
    for line in lines {
        let mut text = format!("{:<widest$}  {:>10}  {:>8} objects", line.name, human(line.live_bytes), line.objects);
        if let (Some(base), Some(tid)) = (&line.base, &line.base_tid) {
            write!(text, "  clone of {base}@@{tid}").expect("strings take all");
        }
        if line.copies > 1 {
            write!(text, "  {} copies", line.copies).expect("strings take all");
        }
        if line.limit_bytes != 0 {
            write!(text, "  at most {}", human(line.limit_bytes)).expect("strings take all");
        }
        if line.limit_objects != 0 {
            write!(text, "  at most {} objects", line.limit_objects).expect("strings take all");
        }
        if line.limit_history_bytes != 0 {
            write!(text, "  history at most {}", human(line.limit_history_bytes)).expect("strings take all");
        }
        writeln!(out, "{text}").expect("strings take all");
    }
    out
}
