//! The hidden `plugin`: makes a sandbox, in which a plug-in runs.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use darner_vfs::{Limits, enter};

use crate::attachments::Told;
use crate::cli::Plugin;
use crate::error::{Context, Failure, Result};

pub fn run(c: Plugin) -> Result<()> {
    let host = report()?;
    let told = confined(&c, &host);
    // (What was started would have closed it.)
    if let Err(e) = &told {
        tell(&host, &Told::Failed(e.to_string()));
    }
    drop(host);
    let name = told?;
    darner_plugins::run(&name).map_err(Failure::new)
}

/// Confines this process, and starts the program in its place; or returns the name of the plug-in that is in this one.
fn confined(c: &Plugin, host: &File) -> Result<String> {
    let limits = Limits { memory: c.memory, processes: c.processes };
    let program = c.program.first().map(Path::new);
    let lacks = enter(&limits, program, |pid| tell(host, &Told::Pid(pid))).cant(|| "make a sandbox".into())?;
    tell(host, &Told::Lacks(lacks));
    match (&c.name, c.program.split_first()) {
        (Some(name), _) => Ok(name.clone()),
        (None, None) => Err(Failure::new("no plug-in was named")),
        (None, Some((program, arguments))) => {
            let why = Command::new(program).args(arguments).exec();
            let hint = match why.kind() {
                io::ErrorKind::PermissionDenied => {
                    " (plug-ins run as nobody if root attaches them, and read system directories only)"
                }
                _ => "",
            };
            Err(Failure::new(format!("can't start {}: {why}{hint}", Path::new(program).display())))
        }
    }
}

/// Standard output is the way to the host until the plug-in begins, and then leads nowhere.
fn report() -> Result<File> {
    let host = File::from(std::os::fd::AsFd::as_fd(&io::stdout()).try_clone_to_owned()?);
    let null = File::options().read(true).write(true).open("/dev/null")?;
    // SAFETY: redirects our own descriptor.
    unsafe { libc::dup2(null.as_raw_fd(), 1) };
    Ok(host)
}

/// If the host does not hear it, it has ended.
fn tell(mut host: &File, told: &Told) {
    let _ = serde_json::to_string(told).map(|text| host.write_all(format!("{text}\n").as_bytes()));
}
