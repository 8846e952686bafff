//! systemd's descriptor store, where the supervisor is a service with `FileDescriptorStoreMax`: then even the death of supervisor and
//! daemon at once ends no mount, because the service that is started again gets everything back (sd_notify(3), sd_listen_fds(3)).
//!
//! What is kept is stored under a number, `N`: its descriptor, and (`N-name`) memory with its name and text.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::error::Result;
use crate::keeper::{self, Item, Items};
use crate::memory;

const NAME: &str = "-name";
/// The first of the descriptors that systemd passes.
const FIRST: RawFd = 3;

/// Whether this process was given what an earlier one stored.
pub fn has_passed() -> bool {
    number("LISTEN_PID") == Some(std::process::id()) && number("LISTEN_FDS").is_some_and(|n| n > 0)
}

fn number(variable: &str) -> Option<u32> {
    std::env::var(variable).ok()?.parse().ok()
}

/// The way to systemd, if it started us.
pub struct Store {
    to: Option<(UnixDatagram, SocketAddr)>,
    numbers: BTreeMap<String, u64>,
    next: u64,
    ready: bool,
}

impl Store {
    /// Finds it, and what it has for us.
    pub fn find() -> (Store, Items) {
        let mut store = Store { to: notify_socket().ok().flatten(), numbers: BTreeMap::new(), next: 0, ready: false };
        let mut fds: BTreeMap<String, OwnedFd> = passed();
        let mut items = Items::new();
        let numbers: Vec<u64> = fds.keys().filter_map(|name| name.parse().ok()).collect();
        for n in numbers {
            let (Some(fd), Some(name)) = (fds.remove(&format!("{n}")), fds.remove(&format!("{n}{NAME}"))) else {
                continue;
            };
            match read_name(name) {
                Ok((key, text)) => {
                    store.numbers.insert(key.clone(), n);
                    store.next = store.next.max(n + 1);
                    items.insert(key, Item { text, fd });
                }
                Err(e) => tracing::warn!("a stored descriptor has no name: {e}"),
            }
        }
        (store, items)
    }

    /// Has it keep this as well.
    pub fn keep(&mut self, key: &str, item: &Item) {
        if self.to.is_none() {
            return;
        }
        let n = self.next;
        self.next += 1;
        let stored = write_name(key, &item.text).and_then(|name| {
            self.say(&format!("FDSTORE=1\nFDNAME={n}{NAME}"), Some(name.as_fd()))?;
            self.say(&format!("FDSTORE=1\nFDNAME={n}"), Some(item.fd.as_fd()))
        });
        match stored {
            Ok(()) => {
                // Only now: it is to be there at any moment.
                self.drop(key);
                self.numbers.insert(key.into(), n);
            }
            Err(e) => tracing::warn!("systemd does not keep {key}: {e}"),
        }
    }

    /// Has it let go of it.
    pub fn drop(&mut self, key: &str) {
        let Some(n) = self.numbers.remove(key) else { return };
        for name in [format!("{n}{NAME}"), format!("{n}")] {
            if let Err(e) = self.say(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None) {
                tracing::warn!("systemd: {e}");
            }
        }
    }

    /// All is served.
    pub fn ready(&mut self) {
        if !std::mem::replace(&mut self.ready, true)
            && let Err(e) = self.say("READY=1", None)
        {
            tracing::warn!("systemd: {e}");
        }
    }

    fn say(&self, text: &str, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        match &self.to {
            Some((socket, address)) => keeper::send_bytes(socket, text.as_bytes(), fd, Some(address)),
            None => Ok(()),
        }
    }
}

fn notify_socket() -> io::Result<Option<(UnixDatagram, SocketAddr)>> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(None) };
    let address = match path.to_str().and_then(|p| p.strip_prefix('@')) {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&path)?,
    };
    Ok(Some((UnixDatagram::unbound()?, address)))
}

/// The descriptors that were passed to this process, by name.
fn passed() -> BTreeMap<String, OwnedFd> {
    if number("LISTEN_PID") != Some(std::process::id()) {
        return BTreeMap::new();
    }
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let count = number("LISTEN_FDS").unwrap_or(0) as usize;
    let own = |(n, name): (usize, &str)| {
        // SAFETY: systemd made these for us alone.
        let fd = unsafe { keeper::own(FIRST + n as RawFd) }?;
        Some((name.to_string(), fd))
    };
    names.split(':').take(count).enumerate().filter_map(own).collect()
}

fn write_name(key: &str, text: &str) -> Result<File> {
    let mut file = memory::file(c"darner-name")?;
    file.write_all(&serde_json::to_vec(&(key, text))?)?;
    Ok(file)
}

fn read_name(fd: OwnedFd) -> Result<(String, String)> {
    let mut file = File::from(fd);
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// An address as the kernel takes it.
pub fn raw_address(address: &SocketAddr) -> (libc::sockaddr_un, libc::socklen_t) {
    use std::os::unix::ffi::OsStrExt;
    // SAFETY: plain data, for which zero is valid.
    let mut raw: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    raw.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let (skip, name) = match address.as_abstract_name() {
        Some(name) => (1, name),
        None => (0, address.as_pathname().map(|p| p.as_os_str().as_bytes()).unwrap_or_default()),
    };
    for (to, from) in raw.sun_path[skip..].iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    let len = std::mem::offset_of!(libc::sockaddr_un, sun_path) + skip + name.len() + usize::from(skip == 0);
    (raw, len.min(size_of::<libc::sockaddr_un>()) as libc::socklen_t)
}
