//! `darner log`

use std::fmt::Write;
use std::path::Path;

use super::human;
use crate::cli::Log;
use crate::control::{self, LogLine, Request, Response};
use crate::error::{Failure, Result};
use crate::mounts;
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

/// The versions of a path; of `PATH@@WHEN`, those up to that moment.
fn versions(c: &Log) -> Result<Vec<LogLine>> {
    let literally = ask(&c.path, None, !c.all);
    let Ok(located) = mounts::locate(&c.path) else { return literally };
    let (Err(_), Some(past)) = (&literally, located.past) else { return literally };
    ask(&past.live, Some(past.tid.0), !c.all)
}

fn ask(path: &Path, to: Option<u64>, coalesce: bool) -> Result<Vec<LogLine>> {
    // (A link outside of all mounts has no versions: what it leads to is meant.)
    let (mount, within) = mounts::around(&mounts::itself(path)?).or_else(|_| mounts::containing(path))?;
    let place = Place::behind(&mount);
    match control::must_call(&place, &Request::Log { at: mounts::spot(&mount, &within)?, to, coalesce }) {
        Ok(Response::Log(lines)) => Ok(lines),
        Ok(_) => Err(super::other_answer()),
        Err(e) => Err(Failure::new(format!("{}: {e}", path.display()))),
    }
}
