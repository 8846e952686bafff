//! `darner clean`

use super::{human, progress_bar};
use crate::cli::Clean;
use crate::control::{self, Request, Response};
use crate::error::{Failure, Result};
use crate::mounts;

pub fn run(c: &Clean) -> Result<()> {
    let place = mounts::store_of(&c.mnt)?;
    let bar = progress_bar();
    let answer = control::must_call_with(&place, &Request::Clean { wait: c.wait }, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    match answer? {
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
        _ => Err(Failure::new("the daemon gave an answer of another kind")),
    }
}
