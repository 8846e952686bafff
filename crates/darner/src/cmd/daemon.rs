//! The hidden commands behind `darner mount`: `daemon`, the supervisor, and `worker`, which it starts.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use darner_store::OpenOptions;

use super::mount::{arguments, settle};
use crate::cli::Mount;
use crate::control::{self, MountRequest, Request, Response};
use crate::error::{Context, Failure, Result};
use crate::place::{self, Place};
use crate::syslog::Syslog;
use crate::{daemon, keeper, supervisor, workers};

/// The descriptor on which a worker that is started for a mount tells how that went; its number is in this variable.
pub const READY: &str = "DARNER_READY_FD";

/// How long to wait for a daemon that is closing the store.
const PATIENCE: Duration = Duration::from_secs(60);

/// The supervisor.
pub fn supervise(c: &Mount) -> Result<()> {
    // (It keeps the locks of all volumes.)
    place::allow_many_files();
    supervised(keeper::STORE, c.log.as_deref())
}

/// Supervises a process in a role, which has this one's arguments. Whoever started this one is told by that when it is ready.
pub fn supervised(role: keeper::Role, log: Option<&Path>) -> Result<()> {
    let ready = keeper::inherited(READY);
    if let Err(e) = start_log(log) {
        if let Some(pipe) = ready {
            let _ = File::from(pipe).write_all(e.to_string().as_bytes());
        }
        return Err(e);
    }
    ended(supervisor::run(role, std::env::args_os().skip(2).collect(), ready)?)
}

/// The same, in this process.
pub fn in_foreground(c: &Mount, place: &Place, request: &MountRequest) -> Result<()> {
    start_log(c.log.as_deref())?;
    if c.no_supervisor {
        return serve(c, request, &|| ());
    }
    place::allow_many_files();
    ended(supervisor::run(keeper::STORE, arguments(c, place, request), None)?)
}

/// (Why it failed, the worker has said.)
pub fn ended(code: i32) -> Result<()> {
    match code {
        0 => Ok(()),
        code => Err(Failure::silent(u8::try_from(code).unwrap_or(1))),
    }
}

/// The worker.
pub fn work(c: Mount) -> Result<()> {
    let log = c.log.clone();
    reporting(log.as_deref(), |ready| {
        let (c, request) = settle(c)?;
        let request = MountRequest { mountpoint: c.mountpoint.clone(), ..request };
        serve(&c, &request, ready)
    })
}

/// Does the work of a process that was started by [`start`], which it tells when it is ready, or why it will not be.
pub fn reporting(log: Option<&Path>, work: impl FnOnce(&dyn Fn()) -> Result<()>) -> Result<()> {
    let report = keeper::inherited(READY).map(File::from);
    let told = std::cell::Cell::new(false);
    let tell = |text: &str| {
        if let Some(mut pipe) = report.as_ref().filter(|_| !told.get()) {
            let _ = pipe.write_all(text.as_bytes());
        }
    };
    let ready = || {
        tell("ready");
        told.set(true);
        if let Some(pipe) = &report {
            // The reader is to see its end.
            close_by_replacing(pipe);
        }
    };
    let outcome = start_log(log).and_then(|()| work(&ready));
    if let Err(e) = &outcome {
        match told.get() || report.is_none() {
            true => tracing::error!("{e}"),
            false => tell(&e.to_string()),
        }
    }
    outcome
}

/// Starts this program in the background under a hidden name, and waits until it is ready or says why not.
pub fn start(command: &str, arguments: &[OsString]) -> Result<()> {
    let (mut reader, writer) = std::io::pipe()?;
    let mut child = keeper::start(&keeper::program()?, command, arguments, |daemon| {
        keeper::pass(daemon, READY, &writer);
        daemon.stderr(Stdio::null());
    })?;
    drop(writer);
    let mut report = String::new();
    reader.read_to_string(&mut report)?;
    match report.strip_prefix("ready") {
        Some(_) => Ok(()),
        None => {
            let status = child.wait()?;
            let why = report.trim();
            Err(Failure::new(if why.is_empty() {
                format!("the daemon ended without a word ({status})")
            } else {
                why.into()
            }))
        }
    }
}

/// Has the daemon of a store do something that a new one does from its start: `start` starts one, if there is none. Says whether
/// it did.
pub fn ask_or_start(place: &Place, request: &Request, start: &dyn Fn() -> Result<()>) -> Result<bool> {
    let began = Instant::now();
    let mut looked = false;
    loop {
        match control::call(place, request)? {
            Some(Response::Closing) if began.elapsed() > place::KEPT && !looked => {
                looked = true;
                place.refuse_if_kept_elsewhere()?;
            }
            Some(Response::Closing) => {}
            Some(_) => return Ok(false),
            None => match start() {
                Err(e) if place::is_open(&e) && began.elapsed() < PATIENCE => {
                    // Its daemon may be closing it, or another command started one just now.
                    let closing = matches!(control::call(place, &Request::Status), Ok(Some(Response::Closing)));
                    if !closing && began.elapsed() > Duration::from_secs(3) {
                        return Err(e);
                    }
                }
                Err(e) => return Err(e),
                Ok(()) => return Ok(true),
            },
        }
        if began.elapsed() > PATIENCE {
            return Err(Failure::new(format!("the daemon of {} does not finish closing it", place.path.display())));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sees to it that a store that has something to do without a mount has a daemon.
pub fn stay(store: &Path) -> Result<()> {
    let place = Place::at(store)?;
    let arguments = ["--without-mount".into(), place.path.clone().into(), place.path.clone().into()];
    ask_or_start(&place, &Request::Status, &|| start("daemon", &arguments)).map(drop)
}

fn close_by_replacing(pipe: &File) {
    use std::os::fd::AsRawFd;
    let Ok(null) = File::options().write(true).open("/dev/null") else { return };
    let null = OwnedFd::from(null);
    // SAFETY: redirects our own descriptor.
    unsafe { libc::dup3(null.as_raw_fd(), pipe.as_raw_fd(), libc::O_CLOEXEC) };
}

fn serve(c: &Mount, request: &MountRequest, ready: &dyn Fn()) -> Result<()> {
    let options = OpenOptions {
        memory: c.memory,
        read_only: c.read_only,
        degraded: c.degraded,
        workers: workers::of(workers::cores()),
        ..place::options()
    };
    let first = (!c.without_mount).then_some(request);
    daemon::run(|| Place::at(&c.store), &c.volumes, &options, first, ready)
}

/// Whether a descriptor leads to `/dev/null`.
fn is_null(fd: &impl AsFd) -> bool {
    let meta = fd.as_fd().try_clone_to_owned().map(File::from).and_then(|file| file.metadata());
    meta.is_ok_and(|meta| meta.file_type().is_char_device() && meta.rdev() == libc::makedev(1, 3))
}

pub fn start_log(path: Option<&Path>) -> Result<()> {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,object_store=warn"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
    match path {
        Some(path) => {
            // (It has names of files.)
            let file = File::options().create(true).append(true).mode(0o600).open(path);
            log.with_writer(std::sync::Mutex::new(file.cant(|| format!("open the log {}", path.display()))?)).init();
        }
        // In the background: what nobody would see goes to the system's log.
        None if is_null(&std::io::stderr()) => match Syslog::find() {
            Some(syslog) => log.without_time().with_level(false).with_writer(syslog).init(),
            None => log.with_writer(std::io::stderr).init(),
        },
        None => log.with_writer(std::io::stderr).init(),
    }
    Ok(())
}
