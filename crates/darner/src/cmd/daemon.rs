//! The hidden commands behind `darner mount`: `daemon`, the supervisor, and `worker`, which it starts.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use darner_store::OpenOptions;

use super::mount::{arguments, settle};
use crate::cli::Mount;
use crate::control::MountRequest;
use crate::error::{Context, Failure, Result};
use crate::place::Place;
use crate::{daemon, keeper, supervisor};

/// The descriptor on which a worker that is started for a mount tells how that went; its number is in this variable.
pub const READY: &str = "DARNER_READY_FD";

/// The supervisor.
pub fn supervise(c: &Mount) -> Result<()> {
    let ready = keeper::inherited(READY);
    start_log(c)?;
    ended(supervisor::run(std::env::args_os().skip(2).collect(), ready)?)
}

/// The same, in this process.
pub fn in_foreground(c: &Mount, place: &Place, request: &MountRequest) -> Result<()> {
    if c.no_supervisor {
        start_log(c)?;
        return serve(c, request, || ());
    }
    start_log(c)?;
    ended(supervisor::run(arguments(c, place, request), None)?)
}

/// (Why it failed, the worker has said.)
fn ended(code: i32) -> Result<()> {
    match code {
        0 => Ok(()),
        code => Err(Failure::silent(u8::try_from(code).unwrap_or(1))),
    }
}

/// The worker.
pub fn work(c: Mount) -> Result<()> {
    let report = keeper::inherited(READY).map(File::from);
    start_log(&c)?;
    let (c, request) = settle(c)?;
    let request = MountRequest { mountpoint: c.mountpoint.clone(), ..request };
    let told = std::cell::Cell::new(false);
    let tell = |text: &str| {
        if let Some(mut pipe) = report.as_ref().filter(|_| !told.get()) {
            let _ = pipe.write_all(text.as_bytes());
        }
    };
    let outcome = serve(&c, &request, || {
        tell("ready");
        told.set(true);
        if let Some(pipe) = &report {
            // The reader is to see its end.
            close_by_replacing(pipe);
        }
    });
    if let Err(e) = &outcome {
        match told.get() || report.is_none() {
            true => tracing::error!("{e}"),
            false => tell(&e.to_string()),
        }
    }
    outcome
}

fn close_by_replacing(pipe: &File) {
    use std::os::fd::AsRawFd;
    let Ok(null) = File::options().write(true).open("/dev/null") else { return };
    let null = OwnedFd::from(null);
    // SAFETY: redirects our own descriptor.
    unsafe { libc::dup3(null.as_raw_fd(), pipe.as_raw_fd(), libc::O_CLOEXEC) };
}

fn serve(c: &Mount, request: &MountRequest, ready: impl FnOnce()) -> Result<()> {
    let options = OpenOptions { memory: c.memory, read_only: c.read_only, ..OpenOptions::default() };
    daemon::run(|| Place::at(&c.store), &c.volumes, &options, request, ready)
}

fn start_log(c: &Mount) -> Result<()> {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
    match &c.log {
        Some(path) => {
            let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
            log.with_writer(std::sync::Mutex::new(file.cant(|| format!("open the log {}", path.display()))?)).init();
        }
        None => log.with_writer(std::io::stderr).init(),
    }
    Ok(())
}
