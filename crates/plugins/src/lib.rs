//! The filesystems that come along, each a [`Vfs`](darner_vfs::Vfs) over the file that it was handed. They run in a sandbox,
//! and believe no byte of an image.

mod archive;
mod hello;
mod iso9660;
mod msdosfs;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};

use darner_vfs::{ServeError, refuse, serve};

pub use archive::Archive;
pub use hello::Hello;
pub use iso9660::Iso9660;
pub use msdosfs::Msdosfs;

/// Their names, and whether each shows a file.
pub const ALL: [(&str, bool); 4] = [("hello", false), ("archive", true), ("iso9660", true), ("msdosfs", true)];

/// Whether there is one of this name, and whether it shows a file.
pub fn find(name: &str) -> Option<bool> {
    ALL.iter().find(|(n, _)| *n == name).map(|(_, shows)| *shows)
}

/// Serves one in a process that was started for that. Why it can't, the host is told.
pub fn run(name: &str) -> Result<(), ServeError> {
    if name == "hello" {
        return serve(Hello);
    }
    match darner_vfs::files().map(|mut files| files.pop()) {
        Err(e) => refuse(&e.to_string()),
        Ok(None) => refuse("no file was handed over"),
        Ok(Some(file)) => show(name, file),
    }
}

/// Bytes of an image. (Of a block device, its metadata tells none.)
fn len_of(mut image: &File) -> io::Result<u64> {
    let meta = image.metadata()?;
    if meta.is_file() { Ok(meta.len()) } else { image.seek(SeekFrom::End(0)) }
}

fn show(name: &str, file: File) -> Result<(), ServeError> {
    match name {
        "archive" => Archive::open(file).map_or_else(|why| refuse(&why), serve),
        "msdosfs" => Msdosfs::open(file).map_or_else(|why| refuse(&why), serve),
        "iso9660" => Iso9660::open(file).map_or_else(|why| refuse(&why), serve),
        _ => refuse(&format!("there is no plug-in {name}")),
    }
}
