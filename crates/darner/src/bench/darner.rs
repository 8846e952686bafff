//! Ourselves, through the front door: the program's own `mount`, `status` and `unmount`, a directory as the volume.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::shell;
use super::system::{Room, System};
use crate::error::{Context, Failure, Result};

/// See the module.
pub struct Darner {
    name: String,
    program: PathBuf,
    options: Vec<String>,
    store: PathBuf,
    mnt: PathBuf,
    pid: u32,
    /// What its volume is.
    volume: &'static str,
}

impl Darner {
    /// Makes a store and mounts it. `program`: another build; `options`: mount options, joined by `+`.
    pub fn set_up(name: &str, program: Option<&Path>, options: &str, room: &Room) -> Result<Darner> {
        let mut darner = Darner::prepare(name, program, options, room)?;
        darner.mount()?;
        Ok(darner)
    }

    /// As [`Darner::set_up`], on an image file of so many bytes, sparse.
    pub fn set_up_on_image(name: &str, options: &str, room: &Room, bytes: u64) -> Result<Darner> {
        let mut darner = Darner::prepare(name, None, options, room)?;
        darner.volume = "an image file";
        let size = bytes.to_string();
        darner.command(&[
            "create".as_ref(),
            "--image".as_ref(),
            "--size".as_ref(),
            size.as_ref(),
            darner.store.as_ref(),
        ])?;
        darner.mount()?;
        Ok(darner)
    }

    fn prepare(name: &str, program: Option<&Path>, options: &str, room: &Room) -> Result<Darner> {
        let program = match program {
            Some(path) => std::fs::canonicalize(path).cant(|| format!("find {}", path.display()))?,
            None => std::env::current_exe().cant(|| "find this program".into())?,
        };
        let place = room.dir(name)?;
        Ok(Darner {
            name: name.into(),
            program,
            options: options.split('+').filter(|o| !o.is_empty()).map(String::from).collect(),
            store: place.join("store"),
            mnt: place.join("mnt"),
            pid: 0,
            volume: "a directory",
        })
    }

    /// Runs one of the program's commands and returns what it says.
    pub fn command(&self, args: &[&OsStr]) -> Result<String> {
        shell::run(&self.program, args)
    }

    /// Mounts, and returns how long that took.
    pub fn mount(&mut self) -> Result<Duration> {
        let mut args: Vec<OsString> = vec!["mount".into(), "--create".into()];
        args.extend(self.options.iter().map(|o| format!("-o{o}").into()));
        args.extend([self.store.clone().into(), self.mnt.clone().into()]);
        let start = Instant::now();
        shell::run(&self.program, args)?;
        let took = start.elapsed();
        let pid = self.status()?["daemon_pid"].as_u64();
        self.pid = pid.ok_or_else(|| Failure::new("status tells no daemon_pid"))? as u32;
        Ok(took)
    }

    /// What `darner status --json` says.
    pub fn status(&self) -> Result<Value> {
        let text = shell::run(&self.program, ["status".as_ref(), "--json".as_ref(), self.mnt.as_os_str()])?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Ends the mount, everything durable.
    pub fn unmount(&self) -> Result<()> {
        shell::run(&self.program, ["unmount".as_ref(), self.mnt.as_os_str()]).map(drop)
    }

    /// Kills the daemon without warning and clears the dead mount away.
    pub fn crash(&mut self) -> Result<()> {
        let pid = i32::try_from(self.pid).map_err(|_| Failure::new("no daemon to kill"))?;
        // SAFETY: a plain system call; `status` named this process as the one that serves our store.
        if unsafe { libc::kill(pid, libc::SIGKILL) } != 0 {
            return Err(std::io::Error::last_os_error()).cant(|| format!("kill the daemon, process {pid}"));
        }
        let gone =
            || !Path::new(&format!("/proc/{pid}/fd")).exists() || std::fs::read_dir(format!("/proc/{pid}/fd")).is_err();
        let start = Instant::now();
        while !gone() && start.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(1));
        }
        darner_fuse::unmount(&self.mnt, true)?;
        Ok(())
    }
}

impl System for Darner {
    fn name(&self) -> &str {
        &self.name
    }

    fn about(&self) -> String {
        let options = if self.options.is_empty() { "defaults".into() } else { self.options.join(",") };
        format!("{}, {options}, {} on the same disk as the volume", self.program.display(), self.volume)
    }

    fn dir(&self) -> &Path {
        &self.mnt
    }

    fn remount(&mut self) -> Result<()> {
        // A daemon that died is reported by the workload that saw it; the next ones get a fresh one.
        if let Err(e) = self.unmount() {
            eprintln!("unmounting {}: {e}", self.name);
            let _ = darner_fuse::unmount(&self.mnt, true);
        }
        let mounted = self.mount();
        if let Err(e) = &mounted {
            eprintln!("mounting {}: {e}; once more", self.name);
            std::thread::sleep(Duration::from_secs(1));
            return self.mount().map(drop);
        }
        mounted.map(drop)
    }

    fn daemon(&self) -> Option<u32> {
        Some(self.pid)
    }
}

impl Drop for Darner {
    fn drop(&mut self) {
        if let Err(e) = self.unmount() {
            eprintln!("darner: {e}");
            let _ = darner_fuse::unmount(&self.mnt, true);
        }
        if let Some(place) = self.store.parent().filter(|_| !self.is_mounted()) {
            let _ = std::fs::remove_dir_all(place);
        }
    }
}
