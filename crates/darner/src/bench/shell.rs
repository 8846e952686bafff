//! Running other programs.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Failure, Result};

/// Runs a program to its end and returns what it printed; if it fails, its complaint is the error.
pub fn run<I: IntoIterator<Item: AsRef<OsStr>>>(program: impl AsRef<OsStr>, args: I) -> Result<String> {
    let program = program.as_ref();
    let name = Path::new(program).file_name().unwrap_or(program).to_string_lossy().into_owned();
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.map_err(|e| Failure::new(format!("can't run {name}: {e}")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::new(format!("{name} failed ({}): {}", output.status, said.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Where a program is, on PATH or where administrators' programs are.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from));
    dirs.map(|d| d.join(program)).find(|p| p.is_file())
}

/// `Err` with a line for the user where a program is missing.
pub fn need(program: &str, package: &str) -> Result<PathBuf> {
    find(program).ok_or_else(|| Failure::new(format!("{program} is not installed (Debian: {package})")))
}

/// Whether we are root.
pub fn is_root() -> bool {
    // SAFETY: can't fail.
    unsafe { libc::geteuid() == 0 }
}
