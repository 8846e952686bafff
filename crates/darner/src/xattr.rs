//! Extended attributes of files, links themselves rather than what they lead to. Filesystems without any have none.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io::{Error, Result};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Names and values.
pub type Xattrs = BTreeMap<CString, Vec<u8>>;

fn c_path(path: &Path) -> Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Calls `get` with ever larger buffers until the answer fits.
fn sized(get: impl Fn(&mut [u8]) -> isize) -> Result<Vec<u8>> {
    let mut buf = vec![0; 256];
    loop {
        let n = get(&mut buf);
        if let Ok(n) = usize::try_from(n) {
            buf.truncate(n);
            return Ok(buf);
        }
        let e = Error::last_os_error();
        if e.raw_os_error() != Some(libc::ERANGE) || buf.len() > 1 << 20 {
            return Err(e);
        }
        buf.resize(buf.len() * 16, 0);
    }
}

/// One by name, if it is there.
pub fn get(path: &Path, name: &CStr) -> Option<Vec<u8>> {
    let path = c_path(path).ok()?;
    // SAFETY: path and name are NUL-terminated, the buffer as long as told.
    sized(|buf| unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) }).ok()
}

/// All that the caller may see.
pub fn all(path: &Path) -> Result<Xattrs> {
    let path = c_path(path)?;
    // SAFETY: the path is NUL-terminated, the buffer as long as told.
    let list = |buf: &mut [u8]| unsafe { libc::llistxattr(path.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) };
    // SAFETY: as above, and so is the name.
    let get = |name: &CStr, buf: &mut [u8]| unsafe {
        libc::lgetxattr(path.as_ptr(), name.as_ptr(), buf.as_mut_ptr().cast(), buf.len())
    };
    collect(list, get)
}

fn collect(list: impl Fn(&mut [u8]) -> isize, get: impl Fn(&CStr, &mut [u8]) -> isize) -> Result<Xattrs> {
    let names = match sized(list) {
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(Xattrs::new()),
        names => names?,
    };
    let mut found = Xattrs::new();
    for name in names.split_inclusive(|b| *b == 0) {
        let name = CStr::from_bytes_with_nul(name).map_err(Error::other)?;
        match sized(|buf| get(name, buf)) {
            // Removed since they were listed.
            Err(e) if e.raw_os_error() == Some(libc::ENODATA) => {}
            value => drop(found.insert(name.to_owned(), value?)),
        }
    }
    Ok(found)
}

/// Gives what a path leads to (links are followed) exactly these; what it inherited from its directory goes.
pub fn set_all(path: &Path, wanted: &Xattrs) -> Result<()> {
    let path = c_path(path)?;
    // SAFETY: the path is NUL-terminated, the buffer as long as told.
    let list = |buf: &mut [u8]| unsafe { libc::listxattr(path.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) };
    // SAFETY: as above, and so is the name.
    let get = |name: &CStr, buf: &mut [u8]| unsafe {
        libc::getxattr(path.as_ptr(), name.as_ptr(), buf.as_mut_ptr().cast(), buf.len())
    };
    let has = collect(list, get)?;
    for name in has.keys().filter(|name| !wanted.contains_key(*name)) {
        // SAFETY: both are NUL-terminated.
        if unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) } != 0 {
            return Err(Error::last_os_error());
        }
    }
    for (name, value) in wanted.iter().filter(|(name, value)| has.get(*name) != Some(value)) {
        // SAFETY: as above; the value is as long as told.
        if unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) } != 0 {
            return Err(Error::last_os_error());
        }
    }
    Ok(())
}
