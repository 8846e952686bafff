//! `darner clean`

use super::human;
use crate::cli::Clean;
use crate::control::{Request, Response};
use crate::error::Result;
use crate::mounts;

pub fn run(c: &Clean) -> Result<()> {
    let place = mounts::store_of(&c.mnt)?;
    match super::call_showing_progress(&place, &Request::Clean { wait: c.wait })? {
        Response::Done => Ok(()),
        Response::Cleaned { before, after, copied } if c.json => super::print_json(&serde_json::json!({
            "used_bytes_before": before,
            "used_bytes": after,
            "copied_bytes": copied,
        })),
        Response::Cleaned { before, after, copied } => super::print(&format!(
            "in use: {} before, {} now ({} copied to free the rest)\n",
            human(before),
            human(after),
            human(copied)
        )),
        _ => Err(super::other_answer()),
    }
}
