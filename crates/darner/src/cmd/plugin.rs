//! The hidden `plugin`: the process that a plug-in runs in.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::attachments::Report;
use crate::cli::Plugin;
use crate::error::{Context, Failure, Result};

pub fn run(c: Plugin) -> Result<()> {
    report(&Report { pid: Some(std::process::id()), lacks: Vec::new() })?;
    match (&c.name, c.program.split_first()) {
        (Some(name), _) => darner_plugins::run(name).map_err(Failure::new),
        (None, Some((program, args))) => {
            Err(Command::new(program).args(args).exec()).cant(|| format!("start {program:?}"))
        }
        (None, None) => Err(Failure::new("no plug-in")),
    }
}

/// Tells the host, and closes the pipe to it.
fn report(report: &Report) -> Result<()> {
    let text = serde_json::to_string(report)?;
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush())?;
    let null = std::fs::File::options().write(true).open("/dev/null")?;
    // SAFETY: redirects our own descriptor.
    unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&null), 1) };
    Ok(())
}
