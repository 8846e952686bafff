//! `darner upgrade`

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::attachments::{self, Attachment, Meant};
use crate::cli::Upgrade;
use crate::control::{self, Request, Response, Status};
use crate::error::{Context, Failure, Result};
use crate::keeper::FailedUpgrade;

/// How long the next process may take.
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
    let place = match attachments::meant(&c.mnt)? {
        Meant::Store(place) => place,
        Meant::Attachment(directory) => return upgrade_attachments(&directory, &program),
    };
    let ask = || -> Result<Option<Status>> {
        match control::call(&place, &Request::Status)? {
            Some(Response::Status(s)) => Ok(Some(*s)),
            _ => Ok(None),
        }
    };
    // (One that was given up answers nothing but this.)
    let before = ask().ok().flatten().map(|s| Server::of_store(&s));
    match control::call(&place, &Request::Upgrade { program: program.clone() })? {
        Some(Response::Done | Response::Closing) => {}
        Some(_) => return Err(super::other_answer()),
        None => return Err(control::nobody_has(&place)),
    }
    let now = wait_for_the_next("daemon", &program, before.as_ref(), &|| Ok(ask()?.map(|s| Server::of_store(&s))))?;
    super::print(&format!("{}, {}\n", change(before.as_ref(), &now), program.display()))?;
    let status = ask()?.ok_or_else(|| control::nobody_has(&place))?;
    status.mounts.iter().map(|m| upgrade_attachments(&m.mountpoint, &program)).fold(Ok(()), Result::and)
}

/// All at a directory and below it are tried; the first failure is told.
fn upgrade_attachments(directory: &Path, program: &Path) -> Result<()> {
    let mut outcome = Ok(());
    for a in attachments::below(directory)? {
        match upgrade_attachment(&a, program) {
            Ok(line) => super::print(&format!("{}: {line}\n", a.directory.display()))?,
            Err(e) => outcome = outcome.and(Err(e)),
        }
    }
    outcome
}

fn upgrade_attachment(a: &Attachment, program: &Path) -> Result<String> {
    // (The same holds: of one that was given up nothing is known.)
    let before = (a.host_pid != 0).then(|| Server::of_attachment(a));
    attachments::replace(&a.directory, program)?;
    let what = format!("host of {}", a.directory.display());
    let ask = || attachments::at(&a.directory).map(|a| Some(Server::of_attachment(&a)));
    let now = wait_for_the_next(&what, program, before.as_ref(), &ask)?;
    Ok(change(before.as_ref(), &now))
}

/// Who serves, by their own word.
struct Server {
    pid: u32,
    started: Option<String>,
    version: String,
    program: Option<PathBuf>,
    failed: Option<FailedUpgrade>,
}

impl Server {
    fn of_store(s: &Status) -> Server {
        Server {
            pid: s.daemon_pid,
            started: s.started.clone(),
            version: s.version.clone(),
            program: s.program.clone(),
            failed: s.failed_upgrade.clone(),
        }
    }

    fn of_attachment(a: &Attachment) -> Server {
        Server {
            pid: a.host_pid,
            started: a.started.clone(),
            version: a.version.clone(),
            program: a.program.clone(),
            failed: a.failed_upgrade.clone(),
        }
    }

    /// (Numbers of processes come again.)
    fn is(&self, other: &Server) -> bool {
        self.pid == other.pid && self.started == other.started
    }
}

fn change(before: Option<&Server>, now: &Server) -> String {
    let of = |s: &Server| format!("process {}, version {}", s.pid, s.version);
    format!("{} → {}", before.map_or("none".into(), of), of(now))
}

/// Who serves then, which must be of this program.
fn wait_for_the_next(
    what: &str,
    program: &Path,
    before: Option<&Server>,
    ask: &dyn Fn() -> Result<Option<Server>>,
) -> Result<Server> {
    let start = Instant::now();
    loop {
        match ask() {
            Ok(Some(s)) if before.is_none_or(|before| !s.is(before)) => {
                // (An older version does not tell.)
                if s.program.as_ref().is_none_or(|now| now == program) {
                    return Ok(s);
                }
                let failed = s.failed.as_ref().filter(|failed| failed.program == program);
                if failed.is_some() || start.elapsed() > DOUBT {
                    let why = failed.map_or("its log says why", |failed| &failed.why);
                    return Err(did_not_serve(what, program, why, &s));
                }
            }
            outcome if start.elapsed() > PATIENCE => {
                outcome?;
                return Err(Failure::new(format!("no other {what} has come; its log says why")));
            }
            _ => {}
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn did_not_serve(what: &str, program: &Path, why: &str, now: &Server) -> Failure {
    let old = now.program.as_deref().unwrap_or(Path::new("the program before"));
    let serves = format!("{} serves again (process {}, version {})", old.display(), now.pid, now.version);
    Failure::new(format!("{} did not come to serve as the {what}: {why}; {serves}", program.display()))
}
