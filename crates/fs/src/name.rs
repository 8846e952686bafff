//! Names in directories: which ones may be given.

use crate::error::{Result, refuse};

/// Longest name, in bytes.
pub const NAME_MAX: usize = 255;

/// Whether it is `.` or `..`.
pub(crate) fn is_dots(name: &[u8]) -> bool {
    name == b"." || name == b".."
}

/// Checks a name that is to be given or taken away; `dots` is the errno for `.` and `..`.
pub(crate) fn check(name: &[u8], dots: i32) -> Result<()> {
    if name.len() > NAME_MAX {
        return refuse(libc::ENAMETOOLONG, "the name is longer than 255 bytes");
    }
    if name.is_empty() {
        return refuse(libc::ENOENT, "the name is empty");
    }
    if name.contains(&b'/') || name.contains(&0) {
        return refuse(libc::EINVAL, "a name can't contain / or NUL");
    }
    if is_dots(name) {
        return refuse(dots, "`.` and `..` can't be made, renamed or removed");
    }
    Ok(())
}
