//! `darner attach`, and the hidden `attachment` and `host` behind it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::daemon;
use crate::attachments::{self, KIND};
use crate::cli::Attach;
use crate::error::{Context, Failure, Result};
use crate::{keeper, mounts};

pub fn run(c: Attach) -> Result<()> {
    if let Some(name) = &c.plugin {
        let known = || darner_plugins::ALL.map(|(name, _)| name).join(", ");
        match (darner_plugins::find(name), &c.of) {
            (None, _) => {
                return Err(Failure::new(format!(
                    "there is no plug-in {name}, only {}; for a program: -- PROGRAM",
                    known()
                )));
            }
            (Some(true), None) => return Err(Failure::new(format!("what is {name} to show? Name a file"))),
            (Some(false), Some(_)) => return Err(Failure::new(format!("{name} shows no file"))),
            _ => {}
        }
    }
    let directory = mounts::absolute(&c.directory)?;
    let taken = mounts::all()?.into_iter().any(|m| m.kind == KIND && m.mountpoint == directory);
    if taken {
        return Err(Failure::new(format!("{} has something attached already", directory.display())));
    }
    let c = Attach { directory, ..c };
    daemon::start(keeper::ATTACHMENT.supervisor, &arguments(&c)?)?;
    if let Err(e) = std::fs::metadata(&c.directory).cant(|| format!("look at {}, just attached", c.directory.display()))
    {
        if let Err(stays) = attachments::take_back(&c.directory) {
            eprintln!("darner: WARNING: it stays attached: {stays}");
        }
        return Err(e);
    }
    for a in attachments::below(&c.directory)?.into_iter().filter(|a| a.directory == c.directory) {
        for lack in &a.sandbox_lacks {
            eprintln!("darner: WARNING: the sandbox is incomplete: {lack}");
        }
    }
    Ok(())
}

/// The supervisor.
pub fn supervise(c: &Attach) -> Result<()> {
    daemon::supervised(keeper::ATTACHMENT, c.log.as_deref())
}

/// The process that serves.
pub fn host(c: &Attach) -> Result<()> {
    daemon::reporting(c.log.as_deref(), |ready| attachments::run(c, ready))
}

/// The same for processes that run elsewhere.
fn arguments(c: &Attach) -> Result<Vec<OsString>> {
    let absolute = |path: &Path| std::path::absolute(path).cant(|| format!("find {}", path.display()));
    let mut args: Vec<OsString> = vec![format!("--deadline={}ms", c.deadline.as_millis()).into()];
    args.push(format!("--memory={}", c.memory).into());
    args.push(format!("--processes={}", c.processes).into());
    args.extend(c.writable.then(|| "--writable".into()));
    args.extend(c.no_restart.then(|| "--no-restart".into()));
    for (name, path) in c.files.iter().map(|f| ("--file", f)).chain(c.log.iter().map(|l| ("--log", l))) {
        args.extend([name.into(), absolute(path)?.into()]);
    }
    args.push(c.directory.clone().into());
    args.extend(c.plugin.as_ref().map(OsString::from));
    if let Some(of) = &c.of {
        args.push(absolute(of)?.into());
    }
    if let Some((program, rest)) = c.program.split_first() {
        args.extend(["--".into(), find(program)?.into()]);
        args.extend(rest.iter().cloned());
    }
    Ok(args)
}

/// The program that a shell would start.
fn find(program: &OsString) -> Result<PathBuf> {
    let path = Path::new(program);
    if path.components().count() > 1 {
        return path.canonicalize().cant(|| format!("find {}", path.display()));
    }
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&dirs).map(|dir| dir.join(path)).find(|p| p.is_file());
    found.ok_or_else(|| Failure::new(format!("there is no program {} in PATH", path.display())))
}
