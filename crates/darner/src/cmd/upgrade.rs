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
/// How long one of another program is not yet taken for the outcome: it may have been started just before.
const DOUBT: Duration = Duration::from_secs(2);

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
        None => return Err(control::nobody_has(&place)),
    }
    let status = wait_for_the_next(&place, &program, before.as_ref().map(|(pid, _)| *pid))?;
    let was = before.map_or_else(|| "none".into(), |(pid, version)| format!("process {pid}, version {version}"));
    let now = format!("process {}, version {}, {}", status.daemon_pid, status.version, program.display());
    super::print(&format!("{was} → {now}\n"))?;
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

/// The daemon that serves then, which must be of this program.
fn wait_for_the_next(place: &Place, program: &Path, before: Option<u32>) -> Result<Status> {
    let start = Instant::now();
    loop {
        match control::call(place, &Request::Status) {
            Ok(Some(Response::Status(s))) if Some(s.daemon_pid) != before => {
                // (An older version does not tell.)
                if s.program.as_ref().is_none_or(|now| now == program) {
                    return Ok(*s);
                }
                let failed = s.failed_upgrade.as_ref().filter(|failed| failed.program == program);
                if failed.is_some() || start.elapsed() > DOUBT {
                    let why = failed.map_or("its log says why", |failed| &failed.why);
                    return Err(did_not_serve(program, why, &s));
                }
            }
            outcome if start.elapsed() > PATIENCE => {
                outcome?;
                return Err(Failure::new("no other daemon has come; its log says why"));
            }
            _ => {}
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn did_not_serve(program: &Path, why: &str, now: &Status) -> Failure {
    let old = now.program.as_deref().unwrap_or(Path::new("the program before"));
    let serves = format!("{} serves again (process {}, version {})", old.display(), now.daemon_pid, now.version);
    Failure::new(format!("{} did not come to serve: {why}; {serves}", program.display()))
}
