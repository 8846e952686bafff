//! The filesystems that come along, each a [`Vfs`](darner_vfs::Vfs) over the files that it was handed. They run in a sandbox,
//! and believe no byte of an image.

mod hello;

use std::fs::File;

use darner_vfs::refuse;

pub use hello::Hello;

/// Their names, and whether each shows a file.
pub const ALL: [(&str, bool); 1] = [("hello", false)];

/// Whether there is one of this name, and whether it shows a file.
pub fn find(name: &str) -> Option<bool> {
    ALL.iter().find(|(n, _)| *n == name).map(|(_, shows)| *shows)
}

/// Serves one in a process that was started for that. Why it can't, the host is told.
pub fn run(name: &str, writable: bool) -> Result<(), String> {
    let served = match (name, darner_vfs::files()) {
        ("hello", _) => darner_vfs::serve(Hello),
        (_, Err(e)) => refuse(&e.to_string()),
        (_, Ok(files)) => show(name, files, writable),
    };
    served.map_err(|e| e.to_string())
}

fn show(name: &str, files: Vec<File>, _writable: bool) -> Result<(), darner_vfs::ServeError> {
    refuse(&format!("there is no plug-in {name} for {} files", files.len()))
}
