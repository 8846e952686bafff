//! `darner forget`: exit code 0 if nothing is left, 1 if some of it could not be reached.

use std::path::Path;

use parking_lot::Mutex;
use serde::Serialize;

use super::{Named, printable};
use crate::cli::Forget;
use crate::control::{self, Request, Response};
use crate::error::{Context, Failure, Result};
use crate::mounts;
use crate::place::Place;
use crate::supervisor::block_end_signals;

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    path: Named,
    objects: u64,
    lapsed: bool,
    left: &'a [String],
}

pub fn run(c: &Forget) -> Result<()> {
    tell_if_interrupted();
    let mut left = 0;
    for path in &c.paths {
        left += forget(c, path).map_err(|e| Failure::new(format!("{}: {e}", path.display())))?;
    }
    if left > 0 {
        return Err(Failure::new(format!("{left} things could not be reached (see above)")));
    }
    Ok(())
}

/// What is said if it is interrupted now.
static STATE: Mutex<String> = Mutex::new(String::new());

fn tell_if_interrupted() {
    *STATE.lock() = "nothing was changed".into();
    let signals = block_end_signals();
    std::thread::spawn(move || {
        let mut signal = 0;
        // SAFETY: a valid set, and room for the answer.
        unsafe { libc::sigwait(&signals, &mut signal) };
        eprintln!("darner: interrupted; {}", STATE.lock());
        std::process::exit(1);
    });
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
    let shown = printable(path);
    *STATE.lock() =
        format!("some of {shown} may be removed, and is in the past still; the same command again does all");
    // The ordinary way, so that the kernel knows.
    match std::fs::symlink_metadata(&target) {
        Ok(m) if m.is_dir() => std::fs::remove_dir_all(&target).cant(|| "remove it".into())?,
        Ok(_) => std::fs::remove_file(&target).cant(|| "remove it".into())?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).cant(|| "look at it".into()),
    }
    *STATE.lock() =
        format!("{shown} is removed, and its daemon goes on destroying it; the same command again waits for that");
    let answer = super::call_showing_progress(&place, &Request::Forget { at })?;
    *STATE.lock() = format!("{shown} is forgotten");
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
