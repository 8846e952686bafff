//! Where the two stores are: over links within a machine each side says by which paths it is reached, with every look. docs/mirror.md §Places.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use darner_syslink::{Element, Message, ReadError, Who};

use crate::protocol::PLACE;

/// Paths that are told at most; of a store of more volumes these lead to it as well.
const PLACES_MAX: usize = 8;
/// Bytes of a path at most: others are not told, nor heard.
const PLACE_MAX: usize = 4096;

/// What a source does about where it is, and where those are that follow it.
pub trait Places: Send + Sync {
    /// Paths at which it is reached.
    fn own(&self) -> Vec<PathBuf>;

    /// The store with that uuid follows, and says that it is reached at these paths, of which there are some.
    fn follower(&self, store: [u8; 16], at: Vec<PathBuf>);
}

/// Whether paths mean the same to somebody as here.
pub(crate) fn is_here(who: &Who) -> bool {
    !matches!(who, Who::Key(_))
}

pub(crate) fn tell(message: &mut Message, at: &[PathBuf]) {
    for path in at.iter().filter(|path| is_path(path)).take(PLACES_MAX) {
        message.bytes(PLACE, path.as_os_str().as_bytes());
    }
}

/// What was told; what is no absolute path, or one too many, is left out.
pub(crate) fn told(by: &Element<'_>) -> Result<Vec<PathBuf>, ReadError> {
    let mut all = Vec::new();
    for element in by.all(PLACE) {
        let path = PathBuf::from(OsStr::from_bytes(element.as_bytes()?));
        if is_path(&path) && all.len() < PLACES_MAX {
            all.push(path);
        }
    }
    Ok(all)
}

fn is_path(path: &std::path::Path) -> bool {
    path.is_absolute() && path.as_os_str().len() <= PLACE_MAX && !path.as_os_str().as_bytes().contains(&0)
}
