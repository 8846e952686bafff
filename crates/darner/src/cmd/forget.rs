//! `darner forget`: exit code 0 if nothing is left, 1 if some of it could not be reached.

use std::path::Path;

use serde::Serialize;

use super::{Named, printable};
use crate::cli::Forget;
use crate::control::{self, Request, Response};
use crate::error::{Context, Failure, Result};
use crate::mounts;
use crate::place::Place;

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    path: Named,
    objects: u64,
    lapsed: bool,
    left: &'a [String],
}

pub fn run(c: &Forget) -> Result<()> {
    let mut left = 0;
    for path in &c.paths {
        left += forget(c, path).map_err(|e| Failure::new(format!("{}: {e}", path.display())))?;
    }
    if left > 0 {
        return Err(Failure::new(format!("{left} things could not be reached (see above)")));
    }
    Ok(())
}

/// Removes what is there and destroys its past; returns how many things could not be reached.
fn forget(c: &Forget, path: &Path) -> Result<usize> {
    // (Of a symbolic link, not what it leads to.)
    let target = mounts::itself(path)?;
    let (mount, within) = mounts::around(&target)?;
    let (place, at) = (Place::behind(&mount), mounts::spot(&mount, &within)?);
    if at.path.is_empty() {
        return Err(Failure::new("a fileset is not forgotten but removed (darner fileset remove)"));
    }
    // What is refused must not be removed for it.
    mounts::refuse_within(&target)?;
    control::must_call(&place, &Request::MayForget { at: at.clone() })?;
    // The ordinary way, so that the kernel knows.
    match std::fs::symlink_metadata(&target) {
        Ok(m) if m.is_dir() => std::fs::remove_dir_all(&target).cant(|| "remove it".into())?,
        Ok(_) => std::fs::remove_file(&target).cant(|| "remove it".into())?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).cant(|| "look at it".into()),
    }
    let answer = super::call_showing_progress(&place, &Request::Forget { at })?;
    let Response::Forgotten { objects, lapsed, left } = answer else { return Err(super::other_answer()) };
    if c.json {
        super::print_json(&Line { path: Named::of(path), objects, lapsed, left: &left })?;
        return Ok(left.len());
    }
    let what = match lapsed {
        true => "no moment showed it any more; it is overwritten, with all else that had lapsed".into(),
        false => format!("{objects} objects and their names are destroyed, in every moment"),
    };
    let mut out = format!("{}: {what}\n", printable(path));
    for l in &left {
        out.push_str(&format!("  not reached: {}\n", printable(Path::new(l))));
    }
    out.push_str(
        "  beyond reach: copies elsewhere (mirrors, backups), bytes shared with other files (cp shares), and what the disk \
         itself may keep of blocks freed earlier\n",
    );
    super::print(&out)?;
    Ok(left.len())
}
