//! `darner clone`

use super::{fileset, printable};
use crate::cli::CloneOf;
use crate::control::Request;
use crate::error::{Failure, Result};
use crate::mounts;

pub fn run(c: &CloneOf) -> Result<()> {
    let located = mounts::locate(&c.source)?;
    let (path, tid) = match &located.past {
        Some(past) => (&past.live, Some(past.tid.0)),
        None => (&located.path, None),
    };
    let (place, of) = mounts::spot_then(path)?;
    let request = Request::CloneFileset { of, tid, name: c.name.clone() };
    let made = fileset::ask(&place, &request);
    made.map_err(|e| Failure::new(format!("{} as {:?}: {e}", printable(&c.source), c.name))).map(drop)
}
