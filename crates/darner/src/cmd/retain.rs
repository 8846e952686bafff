//! `darner retain`

use std::fmt::Write;
use std::path::Path;

use super::{human, printable};
use crate::cli::Retain;
use crate::control::{Request, Response, RetentionReport};
use crate::error::{Failure, Result};
use crate::mounts;

/// So many of the files that were left are named.
const LEFT_TOLD: usize = 20;

pub fn run(c: &Retain) -> Result<()> {
    let (place, at) = mounts::spot_of(&c.mnt)?;
    let grid = (!c.grid.is_empty()).then(|| c.grid.join(" "));
    let changes = grid.is_some() || c.when_full.is_some();
    if c.dry_run && grid.is_none() {
        return Err(Failure::new("--dry-run needs a grid"));
    }
    let nothing_here = (c.nothing_here || c.as_elsewhere).then_some(c.nothing_here);
    let when_full = c.when_full.clone();
    let request = Request::Retain { at, grid, when_full, dry_run: c.dry_run, nothing_here };
    let answer = super::call_showing_progress(&place, &request);
    let answer = match nothing_here {
        Some(_) => answer.map_err(|e| Failure::new(format!("{}: {e}", c.mnt.display())))?,
        None => answer?,
    };
    let Response::Retention(r) = answer else { return Err(super::other_answer()) };
    if c.json {
        return super::print_json(&r);
    }
    if nothing_here.is_some() {
        return super::print(&marked(&r));
    }
    let mut out = table(&r);
    let line = match (changes, c.dry_run) {
        (true, true) => format!(
            "would collapse {} versions and free about {}; nothing was changed\n",
            r.lapsed_versions,
            human(r.lapsed_bytes)
        ),
        (true, false) => format!(
            "{} versions, about {}, are given up and come back as the cleaner goes (`darner clean --wait` hurries it)\n",
            r.lapsed_versions,
            human(r.lapsed_bytes)
        ),
        (false, _) if r.grid == "forever" => {
            format!("everything is kept; a grid that many want: darner retain {} {}\n", c.mnt.display(), r.offered)
        }
        (false, _) => String::new(),
    };
    out.push_str(&line);
    super::print(&out)
}

fn marked(r: &RetentionReport) -> String {
    let mut out = format!("{} files and directories changed\n", r.marked);
    for path in r.left.iter().take(LEFT_TOLD) {
        let path = printable(Path::new(path));
        writeln!(out, "  left: {path} has names elsewhere, too, and keeps its history").expect("strings take all");
    }
    if r.left.len() > LEFT_TOLD {
        writeln!(out, "  and {} more (--json names all)", r.left.len() - LEFT_TOLD).expect("strings take all");
    }
    out
}

fn table(r: &RetentionReport) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| writeln!(out, "{name:<14} {value}").expect("strings take all");
    if r.nothing_here {
        line("here", "no history is kept of this directory, nor of what is in it".into());
    }
    line("fileset", r.fileset.clone());
    line("grid", r.grid.clone());
    line("when full", r.when_full.clone());
    line("exact since", r.horizon.clone().unwrap_or_else(|| "ever".into()));
    for s in &r.steps {
        let what = s.points.map_or("every commit".into(), |n| format!("{n} points"));
        line(&s.step, format!("{what}, {}", human(s.history_bytes)));
    }
    if r.pinned_bytes > 0 {
        line("labels", human(r.pinned_bytes));
    }
    line("history", human(r.history_bytes));
    out
}
