//! `darner upgrade`

use std::path::Path;
use std::time::{Duration, Instant};

use crate::attachments;
use crate::cli::Upgrade;
use crate::control::{self, Request, Response, Status};
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
    match control::call(&place, &Request::Upgrade { program: program.clone() })? {
        Some(Response::Done | Response::Closing) => {}
        Some(_) => return Err(super::other_answer()),
        None => return Err(Failure::new(format!("{} is not mounted (no daemon has it open)", place.path.display()))),
    }
    let status = wait_for_the_next(&place, before.as_ref().map(|(pid, _)| *pid))?;
    let was = before.map_or_else(|| "none".into(), |(pid, version)| format!("process {pid}, version {version}"));
    super::print(&format!("{was} → process {}, version {}\n", status.daemon_pid, status.version))?;
    go_on_with_attachments(&status, &program)
}

/// All of them are tried; the first failure is told.
fn go_on_with_attachments(status: &Status, program: &Path) -> Result<()> {
    let mut outcome = Ok(());
    for m in &status.mounts {
        for a in attachments::below(&m.mountpoint)? {
            match attachments::upgrade(&a.directory, program) {
                Ok(now) => {
                    let was = if a.host_pid == 0 { "none".into() } else { format!("process {}", a.host_pid) };
                    let line = format!("{was} → process {}, version {}", now.host_pid, now.version);
                    super::print(&format!("{}: {line}\n", a.directory.display()))?;
                }
                Err(e) => outcome = outcome.and(Err(e)),
            }
        }
    }
    outcome
}

fn wait_for_the_next(place: &Place, before: Option<u32>) -> Result<Status> {
    let start = Instant::now();
    loop {
        match control::call(place, &Request::Status) {
            Ok(Some(Response::Status(s))) if Some(s.daemon_pid) != before => return Ok(*s),
            outcome if start.elapsed() > PATIENCE => {
                outcome?;
                return Err(Failure::new("no other daemon has come; its log says why"));
            }
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
