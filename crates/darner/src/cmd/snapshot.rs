//! `darner snapshot`

use std::fmt::Write;

use crate::cli::{Snapshot, SnapshotAction};
use crate::control::{self, LabelLine, Request, Response};
use crate::error::{Failure, Result};
use crate::mounts;

pub fn run(c: &Snapshot) -> Result<()> {
    let mnt = match (&c.action, &c.mnt) {
        (Some(SnapshotAction::List { mnt, .. } | SnapshotAction::Remove { mnt, .. }), _) | (None, Some(mnt)) => mnt,
        (None, None) => return Err(Failure::new("a mount point and a label are needed")),
    };
    // (What is shown is labelled, also where that is the past.)
    let shown = if c.action.is_none() { mounts::locate(mnt)?.past } else { None };
    let (place, at) = match &shown {
        Some(past) => mounts::spot_then(&past.live)?,
        None => mounts::spot_of(mnt)?,
    };
    let request = match (&c.action, &c.label) {
        (Some(SnapshotAction::List { .. }), _) => Request::Labels { at },
        (Some(SnapshotAction::Remove { label, .. }), _) => Request::RemoveLabel { at, name: label.clone() },
        (None, Some(label)) => {
            let when = c.at.clone().or(shown.map(|past| past.tid.to_string()));
            Request::AddLabel { at, name: label.clone(), when }
        }
        (None, None) => return Err(Failure::new("a mount point and a label are needed")),
    };
    let about = |e: Failure| match &request {
        Request::AddLabel { name, .. } | Request::RemoveLabel { name, .. } => {
            Failure::new(format!("label {name:?}: {e}"))
        }
        _ => e,
    };
    let labels = match control::must_call(&place, &request).map_err(about)? {
        Response::Labels(labels) => labels,
        Response::Done => return Ok(()),
        _ => return Err(super::other_answer()),
    };
    match &c.action {
        Some(SnapshotAction::List { json: true, .. }) => super::print_json(&labels),
        _ => super::print(&table(&labels)),
    }
}

fn table(labels: &[LabelLine]) -> String {
    let mut out = String::new();
    for l in labels {
        writeln!(out, "{}  {:<18}  {}", l.when, l.tid, l.label).expect("strings take all");
    }
    out
}
