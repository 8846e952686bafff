//! `darner log`

use std::fmt::Write;
use std::path::Path;

use super::human;
use crate::cli::Log;
use crate::control::{self, LogLine, Request, Response};
use crate::error::{Failure, Result};
use crate::mounts::{self, Located, Past};
use crate::place::Place;

pub fn run(c: &Log) -> Result<()> {
    let lines = versions(c)?;
    if c.json {
        return super::print_json(&lines);
    }
    let mut out = String::new();
    for l in &lines {
        writeln!(out, "{}  {:<18}  {:>10}  {:<14} inode {}", l.when, l.shown, human(l.size), l.what, l.inode)
            .expect("strings take all");
    }
    super::print(&out)
}

/// The versions of a path; of `PATH@@WHEN`, those up to that moment of what it led to then.
fn versions(c: &Log) -> Result<Vec<LogLine>> {
    let literally = ask(&c.path, None, !c.all);
    if literally.is_ok() {
        return literally;
    }
    let Ok(Located { path, past: Some(_) }) = mounts::locate(&c.path) else { return literally };
    // Links on the way are followed as they were then.
    let Located { path, past } = mounts::locate(&mounts::itself(&path)?)?;
    ask(past.as_ref().map_or(&path, |past| &past.live), past.as_ref(), !c.all)
}

fn ask(path: &Path, past: Option<&Past>, coalesce: bool) -> Result<Vec<LogLine>> {
    let (mount, within) = match past {
        Some(_) => mounts::around(path)?,
        // (A link outside of all mounts has no versions: what it leads to is meant.)
        None => mounts::around(&mounts::itself(path)?).or_else(|_| mounts::containing(path))?,
    };
    let place = Place::behind(&mount);
    let at = mounts::spot(&mount, &within)?;
    let dir = past.and_then(|past| past.dir.strip_prefix(&mount.mountpoint).ok());
    let behind = dir.map_or(0, |dir| within.components().count().saturating_sub(dir.components().count()));
    let present = at.path.len().saturating_sub(behind);
    let request = Request::Log { at, to: past.map(|past| past.tid.0), present, coalesce };
    match control::must_call(&place, &request) {
        Ok(Response::Log(lines)) => Ok(lines),
        Ok(_) => Err(super::other_answer()),
        Err(e) => Err(Failure::new(format!("{}: {e}", path.display()))),
    }
}
