//! `darner unmount`

use std::time::{Duration, Instant};

use crate::attachments;
use crate::cli::Unmount;
use crate::control::{self, Request, Response};
use crate::error::{Failure, Result};
use crate::mounts;
use crate::place::Place;

/// As long as `mount` waits for the same.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn run(c: &Unmount) -> Result<()> {
    let mountpoint = mounts::absolute(&c.mountpoint)?;
    let mounted = mounts::all()?.into_iter().rev().find(|m| m.mountpoint == mountpoint && m.kind.starts_with("fuse"));
    let mounted = mounted.ok_or_else(|| Failure::new(format!("{} is not mounted", mountpoint.display())))?;
    // What is attached to directories in it goes first, the innermost before the others.
    for a in attachments::below(&mountpoint)?.into_iter().rev() {
        attachments::detach(&a.directory, c.lazy)?;
    }
    let request = Request::Unmount { mountpoint: mountpoint.clone(), lazy: c.lazy };
    let place = Place::behind(&mounted);
    match control::call(&place, &request)? {
        Some(Response::Closing) => return wait_until_closed(&place),
        Some(_) => return Ok(()),
        None => {}
    }
    // Its daemon is gone; the mount is what is left.
    Ok(darner_fuse::unmount(&mountpoint, c.lazy)?)
}

/// The mount went another way just before; its daemon is about to give the store back.
fn wait_until_closed(place: &Place) -> Result<()> {
    let start = Instant::now();
    while place.lock(true).is_err() {
        if start.elapsed() > PATIENCE {
            return Err(Failure::new(format!("the daemon of {} does not finish closing it", place.path.display())));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
