//! `darner upgrade`

use std::time::{Duration, Instant};

use crate::cli::Upgrade;
use crate::control::{self, Request, Response};
use crate::error::{Context, Failure, Result};
use crate::mounts;
use crate::place::Place;

/// How long the next daemon may take.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn run(c: &Upgrade) -> Result<()> {
    let program = match &c.program {
        Some(path) => std::path::absolute(path)?,
        None => std::env::current_exe().cant(|| "find this program".into())?,
    };
    if !program.is_file() {
        return Err(Failure::new(format!("{} is no program", program.display())));
    }
    let place = mounts::store_of(&c.mnt)?;
    // (One that was given up answers nothing but this.)
    let before = match control::call(&place, &Request::Status) {
        Ok(Some(Response::Status(s))) => Some((s.daemon_pid, s.version)),
        _ => None,
    };
    match control::call(&place, &Request::Upgrade { program })? {
        Some(Response::Done | Response::Closing) => {}
        Some(_) => return Err(super::other_answer()),
        None => return Err(Failure::new(format!("{} is not mounted (no daemon has it open)", place.path.display()))),
    }
    let (pid, version) = wait_for_the_next(&place, before.as_ref().map(|(pid, _)| *pid))?;
    let was = before.map(|(pid, version)| format!("process {pid}, version {version}"));
    super::print(&format!("{} → process {pid}, version {version}\n", was.unwrap_or_else(|| "none".into())))
}

fn wait_for_the_next(place: &Place, before: Option<u32>) -> Result<(u32, String)> {
    let start = Instant::now();
    loop {
        match control::call(place, &Request::Status) {
            Ok(Some(Response::Status(s))) if Some(s.daemon_pid) != before => return Ok((s.daemon_pid, s.version)),
            outcome if start.elapsed() > PATIENCE => {
                outcome?;
                return Err(Failure::new("no other daemon has come; its log says why"));
            }
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
