//! `darner unmount`

use crate::cli::Unmount;
use crate::control::{self, Request};
use crate::error::{Failure, Result};
use crate::mounts;
use crate::place::Place;

pub fn run(c: &Unmount) -> Result<()> {
    let mountpoint = mounts::absolute(&c.mountpoint)?;
    let mounted = mounts::all()?.into_iter().rev().find(|m| m.mountpoint == mountpoint && m.kind.starts_with("fuse"));
    let mounted = mounted.ok_or_else(|| Failure::new(format!("{} is not mounted", mountpoint.display())))?;
    let request = Request::Unmount { mountpoint: mountpoint.clone(), lazy: c.lazy };
    if let Ok(place) = Place::at(&mounted.source)
        && control::call(&place, &request)?.is_some()
    {
        return Ok(());
    }
    // Its daemon is gone; the mount is what is left.
    Ok(darner_fuse::unmount(&mountpoint, c.lazy)?)
}
