//! `darner unmount`

use std::path::Path;
use std::time::{Duration, Instant};

use crate::attachments::{self, Attachment};
use crate::cli::Unmount;
use crate::control::{self, Request, Response};
use crate::error::{Failure, Result};
use crate::place::{KEPT, Place};
use crate::supervisor::ends_within;
use crate::{mounts, users};

/// As long as `mount` waits for the same.
const PATIENCE: Duration = Duration::from_secs(60);
/// For processes of which nobody needs anything any more.
const LET_GO: Duration = Duration::from_secs(5);

pub fn run(c: &Unmount) -> Result<()> {
    let mountpoint = mounts::absolute(&c.mountpoint)?;
    let mounted = mounts::last_at(&mountpoint)?;
    let mounted = mounted.ok_or_else(|| Failure::new(format!("{} is not mounted", mountpoint.display())))?;
    if !mounted.is_ours() && mounted.kind != attachments::KIND {
        let (at, kind) = (mountpoint.display(), mounted.kind);
        return Err(Failure::new(format!("{at} is not a darner mount but one of type {kind}: `umount` is for that")));
    }
    let place = Place::behind(&mounted);
    if let Some(why) = place.open_beyond_reach().filter(|_| mounted.kind != attachments::KIND) {
        return Err(Failure::new(why));
    }
    // What is attached to directories in it goes first, the innermost before the others: all of it or, if the mount is in use,
    // nothing.
    let attached = attachments::below(&mountpoint)?;
    if !c.lazy && !attached.is_empty() {
        must_be_free(&mountpoint, &attached)?;
    }
    for a in attached.into_iter().rev() {
        attachments::detach(&a.directory, c.lazy)?;
    }
    if mounted.kind == attachments::KIND {
        // It was one of them.
        return Ok(());
    }
    let request = Request::Unmount { mountpoint: mountpoint.clone(), lazy: c.lazy };
    match control::call(&place, &request).map_err(|e| who_uses(&mountpoint, e))? {
        Some(Response::Closing) => wait_until_closed(&place)?,
        Some(Response::Unmounted { ending, lost }) => {
            // They may have what the store is on open a moment longer, and then that can't be unmounted.
            for pid in ending {
                ends_within(pid, LET_GO);
            }
            return match lost {
                Some(lost) => Err(Failure::new(format!("{} is unmounted, but {lost}", mountpoint.display()))),
                None => Ok(()),
            };
        }
        Some(_) => return Ok(()),
        None => {}
    }
    // Its daemon is gone; the mount may be left.
    match mounts::all()?.iter().any(|m| m.id == mounted.id) {
        true => darner_fuse::unmount(&mountpoint, c.lazy).map_err(|e| who_uses(&mountpoint, e.into())),
        false => wait_until_closed(&place),
    }
}

/// Looks for what would keep the mount or something attached to it from being taken away, other than attachments. (What it does not
/// see is told by the kernel, then.)
fn must_be_free(mountpoint: &Path, attached: &[Attachment]) -> Result<()> {
    let mut processes = Vec::new();
    for a in attached {
        // (The processes of one that does not answer are not known.)
        let Some(supervisor) = a.supervisor_pid else { return Ok(()) };
        processes.extend([a.host_pid, supervisor]);
    }
    match user(mountpoint, &processes)? {
        Some(who) => Err(is_in_use(mountpoint, &who)),
        None => Ok(()),
    }
}

/// That a mount is in use is told with who uses it, where that is seen.
fn who_uses(mountpoint: &Path, e: Failure) -> Failure {
    let is_busy = e.to_string().contains("it is in use");
    let who = if is_busy { user(mountpoint, &[]).ok().flatten() } else { None };
    who.map_or(e, |who| is_in_use(mountpoint, &who))
}

fn is_in_use(mountpoint: &Path, who: &str) -> Failure {
    Failure::new(format!("{} is in use: {who}; unmount lazily to detach it now", mountpoint.display()))
}

/// Who or what uses a mount, other than attachments and their processes.
fn user(mountpoint: &Path, processes: &[u32]) -> Result<Option<String>> {
    let mut here = mounts::all()?;
    here.retain(|m| m.mountpoint.starts_with(mountpoint));
    let other = here.iter().find(|m| m.mountpoint != mountpoint && m.kind != attachments::KIND);
    let other = other.map(|other| format!("something is mounted on {}", other.mountpoint.display()));
    let has = |user: users::User| format!("process {} ({}) has {}", user.pid, user.name, user.path.display());
    let process = || users::user(&here, processes).map(has);
    Ok(other.or_else(process).or_else(|| users::kernel_has(mountpoint)))
}

/// The mount went another way just before; its daemon is about to give the store back.
fn wait_until_closed(place: &Place) -> Result<()> {
    let start = Instant::now();
    let mut looked = false;
    while !matches!(place.lock_if_free(true), Ok(Some(_))) {
        if start.elapsed() > KEPT && !std::mem::replace(&mut looked, true) {
            place.refuse_if_kept_elsewhere()?;
        }
        if start.elapsed() > PATIENCE {
            return Err(Failure::new(format!("the daemon of {} does not finish closing it", place.path.display())));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
