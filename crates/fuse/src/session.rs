//! A mount's connection: the descriptor of /dev/fuse, and what was agreed on it.
//!
//! A session begins by the handshake ([`Session::init`]) or, when another process held it and died or steps down, by
//! [`Session::adopt`]: the kernel keeps the unanswered requests for as long as *somebody* holds the descriptor.

use std::{
    fmt,
    io::{self, IoSlice},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use zerocopy::IntoBytes;

use crate::{
    Error, Operation, Request,
    abi::{self, OutHeader, opcode},
    negotiate::{Config, Negotiated},
    notify::Notifier,
    reply::write_message,
    request::Dialect,
    serve::{self, Ended, Handler},
};

/// A live connection to the kernel. Dropping it closes our descriptor; the mount dies with its last duplicate.
#[derive(Debug)]
pub struct Session {
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) stop: Arc<Stop>,
    negotiated: Negotiated,
}

/// Ends a [`Session::run`] from outside; the mount lives on.
#[derive(Clone, Debug)]
pub struct Stopper(Arc<Stop>);

impl Stopper {
    /// No further request is read; those already read are answered. Doesn't wait.
    pub fn stop(&self) {
        self.0.set();
    }
}

/// A flag that can also be slept on.
pub(crate) struct Stop {
    flag: AtomicBool,
    event: OwnedFd,
}

impl Session {
    /// Answers the kernel's INIT, the first message on a fresh descriptor; waits for it.
    pub fn init(fd: OwnedFd, config: Config) -> Result<Self, Error> {
        set_nonblocking(&fd).map_err(Error::io("preparing /dev/fuse"))?;
        let mut buffer = vec![0u64; 64 << 7];
        let negotiated = loop {
            let read = read_blocking(&fd, buffer.as_mut_bytes()).map_err(Error::io("reading INIT from /dev/fuse"))?;
            if let Some(negotiated) = handshake(&fd, &config, &buffer.as_bytes()[..read])? {
                break negotiated;
            }
        };
        tracing::debug!(%negotiated, flags = abi::init::names(negotiated.flags), "FUSE session");
        Self::adopt(fd, negotiated)
    }

    /// Takes over a descriptor on which the handshake was done, by whomever. Usually followed by [`resend`](Self::resend).
    pub fn adopt(fd: OwnedFd, negotiated: Negotiated) -> Result<Self, Error> {
        set_nonblocking(&fd).map_err(Error::io("preparing /dev/fuse"))?;
        let stop = Arc::new(Stop::new().map_err(Error::io("making an eventfd"))?);
        Ok(Self { fd: Arc::new(fd), stop, negotiated })
    }

    /// What was agreed; give it to whoever is to adopt the descriptor.
    pub fn negotiated(&self) -> &Negotiated {
        &self.negotiated
    }

    /// A duplicate of the descriptor: who holds it keeps the mount alive.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// The descriptor itself: who holds it keeps the mount alive.
    pub fn shared(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.fd)
    }

    /// See [`Notifier::resend`].
    pub fn resend(&self) -> io::Result<()> {
        self.notifier().resend()
    }

    /// For invalidation, from threads that don't serve.
    pub fn notifier(&self) -> Notifier {
        Notifier::new(Arc::clone(&self.fd))
    }

    /// For ending [`run`](Self::run) without unmounting. A session that was stopped stays so.
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.stop))
    }

    /// Serves requests with `threads` threads, this one among them, until the unmount or [`Stopper::stop`]; returns when all of them
    /// are done.
    ///
    /// `poll` is how long the reading thread polls before it sleeps, and whether CPUs are kept from halting while requests
    /// come in: 50 µs serve a machine with CPUs to spare; 0 does neither. If the handler panics, serving stops, the request stays unanswered (for a successor's resend) and
    /// the panic goes on in the caller.
    pub fn run(&self, threads: usize, poll: Duration, handler: &(impl Handler + Sync)) -> io::Result<Ended> {
        self.run_then(threads, poll, handler, || ())
    }

    /// As [`run`](Self::run); calls `started` once all threads and their memory are there. An error before that is of those.
    pub fn run_then(
        &self,
        threads: usize,
        poll: Duration,
        handler: &(impl Handler + Sync),
        started: impl FnOnce(),
    ) -> io::Result<Ended> {
        serve::run(self, threads, poll, handler, started)
    }
}

/// `None`: the kernel's major version is newer; it will ask again with ours.
fn handshake(fd: &OwnedFd, config: &Config, bytes: &[u8]) -> Result<Option<Negotiated>, Error> {
    let request = Request::decode(bytes, Dialect::default()).map_err(|bad| Error::NoInit { found: bad.to_string() })?;
    let Operation::Init { major, minor, max_readahead, flags } = request.op else {
        return Err(Error::NoInit { found: opcode::name(request.opcode).to_string() });
    };
    let newer = major > abi::MAJOR;
    let agreed = match newer {
        true => Ok(Negotiated { major: abi::MAJOR, minor: abi::MINOR, ..Default::default() }),
        false => Negotiated::agree(config, major, minor, max_readahead, flags),
    };
    let body = agreed.as_ref().map(|agreed| agreed.to_wire()).ok();
    let body = body.as_ref().map_or(&[][..], |body| body.as_bytes());
    let error = if agreed.is_ok() { 0 } else { -libc::EPROTO };
    let header = OutHeader { len: (size_of::<OutHeader>() + body.len()) as u32, error, unique: request.raw_unique() };
    write_message(fd, &[IoSlice::new(header.as_bytes()), IoSlice::new(body)]).map_err(Error::io("answering INIT"))?;
    agreed.map(|agreed| (!newer).then_some(agreed))
}

impl Stop {
    fn new() -> io::Result<Self> {
        // SAFETY: no memory is involved.
        let event = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: the descriptor is new and ours.
        Ok(Self { flag: AtomicBool::new(false), event: unsafe { OwnedFd::from_raw_fd(event) } })
    }

    pub(crate) fn set(&self) {
        self.flag.store(true, Ordering::Release);
        let one = 1u64;
        // SAFETY: writes 8 bytes from a local. Failure is impossible short of 2^64 stops.
        unsafe { libc::write(self.event.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    pub(crate) fn is_set(&self) -> bool {
        self.flag.load(Ordering::Acquire)
    }
}

impl fmt::Debug for Stop {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Stop({})", self.is_set())
    }
}

/// Non-blocking read.
pub(crate) fn read(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is ours for the call.
    let read = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// Sleeps until the descriptor has something, its mount is gone, or the stop is set; `false`: for as long as `most`.
pub(crate) fn sleep(fd: &OwnedFd, stop: Option<&Stop>, most: Option<Duration>) -> io::Result<bool> {
    let wait = |fd: &OwnedFd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let mut waits = [wait(fd), stop.map_or(libc::pollfd { fd: -1, events: 0, revents: 0 }, |stop| wait(&stop.event))];
    // SAFETY: two pollfds, ours for the call.
    match check(unsafe { libc::poll(waits.as_mut_ptr(), 2, most.map_or(-1, |m| m.as_millis() as i32)) }) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        Ok(0) => Ok(false),
        _ => Ok(true),
    }
}

fn read_blocking(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match read(fd, buffer) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR | libc::ENOENT)) => {
                sleep(fd, None, None)?;
            }
            result => return result,
        }
    }
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: fcntl on a descriptor that we hold.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    // SAFETY: as above.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) }).map(drop)
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
