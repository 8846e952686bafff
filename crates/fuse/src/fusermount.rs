//! Mounting as an ordinary user: fusermount3 is setuid root, mounts, and sends the descriptor over the socket whose
//! number is in `_FUSE_COMMFD`. Errors are sentences for the user: what it said, and the remedy.

use std::{
    io::{self, ErrorKind, Read},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::Path,
    process::{Command, Stdio},
};

use crate::mount::MountOptions;

const HELPER: &str = "fusermount3";

/// fusermount3 mounts, and sends the descriptor over the socket that `_FUSE_COMMFD` names.
pub(crate) fn mount(mountpoint: &Path, options: &MountOptions) -> Result<OwnedFd, String> {
    let (ours, theirs) = UnixStream::pair().map_err(|error| format!("socketpair: {error}"))?;
    let escape = |text: &str| text.replace('\\', "\\\\").replace(',', "\\,");
    let mut list = vec![format!("fsname={}", escape(&options.source))];
    list.extend(options.subtype().map(|subtype| format!("subtype={}", escape(subtype))));
    list.extend(options.flags().iter().filter(|(_, _, on)| *on).map(|(name, ..)| name.to_string()));
    list.extend(options.common());
    let mut command = Command::new(HELPER);
    command.arg("-o").arg(list.join(",")).arg("--").arg(mountpoint);
    let inherited = theirs.as_raw_fd();
    command.env("_FUSE_COMMFD", inherited.to_string());
    // SAFETY: fcntl is async-signal-safe; the descriptor is open until after the spawn.
    unsafe {
        command.pre_exec(move || match libc::fcntl(inherited, libc::F_SETFD, 0) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    let said = run_helper(command, || drop(theirs));
    match (receive_fd(&ours), said) {
        (Ok(Some(fd)), Ok(())) => Ok(fd),
        (_, Err(why)) => Err(why),
        (Ok(None), Ok(())) => Err(format!("{HELPER} ended without handing over a descriptor")),
        (Err(error), Ok(())) => Err(format!("no descriptor from {HELPER}: {error}")),
    }
}

/// Unmounts what its user mounted.
pub(crate) fn unmount(mountpoint: &Path, lazy: bool) -> Result<(), String> {
    let mut command = Command::new(HELPER);
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(mountpoint);
    run_helper(command, || ())
}

fn run_helper(mut command: Command, spawned: impl FnOnce()) -> Result<(), String> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            format!("{HELPER} is missing; install the package fuse3 (or mount as root)")
        }
        _ => format!("{HELPER}: {error}"),
    })?;
    spawned();
    let mut said = String::new();
    // Unreadable words are no reason to fail: the exit status decides.
    let _ = child.stderr.take().map(|mut pipe| pipe.read_to_string(&mut said));
    let status = child.wait().map_err(|error| format!("{HELPER}: {error}"))?;
    match status.success() {
        true => Ok(()),
        false => Err(explain_helper(said.trim())),
    }
}

fn explain_helper(said: &str) -> String {
    let hint = match said {
        _ if said.contains("busy") => "; it is in use: unmount lazily to detach it now",
        _ if said.contains("user_allow_other") => "; or mount without allow_other",
        _ if said.contains("access mountpoint") => {
            "; if it lies in an ordinary user's mount, that must be made with -o allow_other"
        }
        _ if said.contains("/dev/fuse: Permission denied") => "; who may open it its mode says",
        _ if said.contains("/dev/fuse") => "; is the module loaded (`modprobe fuse`)?",
        _ => "",
    };
    match said {
        "" => format!("{HELPER} failed without a word"),
        _ => format!("{said}{hint}"),
    }
}

/// Receives one descriptor; `None` at the end of the stream.
fn receive_fd(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = 0u8;
    let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let mut control = [0u64; 8];
    // SAFETY: msghdr is plain data, for which zero is valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: all pointers lead to locals with the lengths given.
    let read = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    if read <= 0 {
        return if read == 0 { Ok(None) } else { Err(io::Error::last_os_error()) };
    }
    // SAFETY: the kernel filled the control buffer in; CMSG_* stay inside it. The descriptor is new and ours.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if header.is_null() || (*header).cmsg_level != libc::SOL_SOCKET || (*header).cmsg_type != libc::SCM_RIGHTS {
            return Ok(None);
        }
        let fd = libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned();
        Ok(Some(OwnedFd::from_raw_fd(fd)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fusermount3_says_reaches_the_user_with_a_hint() {
        let said = "fusermount3: option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf";
        assert!(explain_helper(said).starts_with(said));
        assert!(explain_helper(said).ends_with("mount without allow_other"));
        let said = "fusermount3: failed to open /dev/fuse: Permission denied";
        assert!(!explain_helper(said).contains("modprobe"));
    }
}
