//! Waiting: poll, epoll, an event descriptor, a clock that only runs forward.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Nanoseconds of a clock that only runs forward: the one by which tickets end.
pub fn now_ns() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid pointer; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// Milliseconds until `at`, rounded up, for the kernel; `None`: for ever.
fn millis(at: Option<u64>) -> i32 {
    let left = |t: u64| t.saturating_sub(now_ns()).div_ceil(1_000_000).min(i32::MAX as u64) as i32;
    at.map_or(-1, left)
}

pub(crate) fn check(rc: libc::c_int) -> io::Result<libc::c_int> {
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(rc) }
}

/// Waits until a descriptor can be read (or written, where `true`), or the time has come. Says whether one can.
pub(crate) fn wait(fds: &[(RawFd, bool)], until: Option<u64>) -> io::Result<bool> {
    let events = |write: bool| if write { libc::POLLIN | libc::POLLOUT } else { libc::POLLIN };
    let one = |(fd, write): &(RawFd, bool)| libc::pollfd { fd: *fd, events: events(*write), revents: 0 };
    let mut polled = [libc::pollfd { fd: -1, events: 0, revents: 0 }; 2];
    let n = fds.len().min(polled.len());
    for (p, f) in polled.iter_mut().zip(fds) {
        *p = one(f);
    }
    wait_for(&mut polled[..n], until)
}

/// The same of one, or until the connection of another is gone.
pub(crate) fn wait_or_gone((fd, write): (RawFd, bool), other: RawFd, until: Option<u64>) -> io::Result<bool> {
    let events = if write { libc::POLLIN | libc::POLLOUT } else { libc::POLLIN };
    let first = libc::pollfd { fd, events, revents: 0 };
    wait_for(&mut [first, libc::pollfd { fd: other, events: libc::POLLRDHUP, revents: 0 }], until)
}

fn wait_for(polled: &mut [libc::pollfd], until: Option<u64>) -> io::Result<bool> {
    // SAFETY: so many structures are there.
    match check(unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, millis(until)) }) {
        Ok(n) => Ok(n > 0),
        Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(false),
        Err(e) => Err(e),
    }
}

/// Whether the other side of a connection has ended it.
pub(crate) fn is_gone(fd: RawFd) -> bool {
    let mut polled = libc::pollfd { fd, events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: one structure is there.
    unsafe { libc::poll(&mut polled, 1, 0) > 0 }
}

/// Waits until one of two descriptors can be read; says whether the second one can.
pub(crate) fn wait_for_either(first: RawFd, second: RawFd) -> io::Result<bool> {
    let mut polled = [first, second].map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    // SAFETY: two structures are there.
    check(unsafe { libc::poll(polled.as_mut_ptr(), 2, -1) })?;
    Ok(polled[1].revents != 0)
}

/// Waits until a descriptor can be written.
pub(crate) fn wait_for_room(fd: RawFd, until: u64) -> io::Result<()> {
    let mut polled = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    // SAFETY: one structure is there.
    check(unsafe { libc::poll(&mut polled, 1, millis(Some(until))) }).map(drop)
}

/// An epoll instance; each descriptor is known by a number.
pub(crate) struct Epoll(OwnedFd);

impl Epoll {
    pub fn new() -> io::Result<Epoll> {
        // SAFETY: a plain system call; the descriptor is ours.
        unsafe { Ok(Epoll(OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?))) }
    }

    fn control(&self, op: libc::c_int, fd: RawFd, number: u64, events: u32) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: number };
        // SAFETY: a valid pointer.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), op, fd, &mut event) }).map(drop)
    }

    pub fn add(&self, fd: RawFd, number: u64, events: i32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, number, events as u32)
    }

    pub fn change(&self, fd: RawFd, number: u64, events: i32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, number, events as u32)
    }

    /// The numbers of those that are ready, as bits; of those whose connection is gone, [`GONE`] bits higher as well.
    pub fn wait(&self, until: Option<u64>) -> io::Result<u64> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 4];
        let (fd, at, max) = (self.0.as_raw_fd(), events.as_mut_ptr(), events.len() as i32);
        // SAFETY: the array has as many elements as said.
        match check(unsafe { libc::epoll_wait(fd, at, max, millis(until)) }) {
            Ok(n) => Ok(events[..n as usize].iter().fold(0, |bits, e| bits | bits_of(e))),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(e) => Err(e),
        }
    }
}

/// See [`Epoll::wait`].
pub(crate) const GONE: u64 = 8;

fn bits_of(e: &libc::epoll_event) -> u64 {
    let gone = e.events & (libc::EPOLLHUP | libc::EPOLLERR | libc::EPOLLRDHUP) as u32 != 0;
    1 << e.u64 | u64::from(gone) << (e.u64 + GONE)
}

/// Wakes who waits in epoll.
pub(crate) struct Bell(OwnedFd);

impl Bell {
    pub fn new() -> io::Result<Bell> {
        // SAFETY: a plain system call; the descriptor is ours.
        unsafe { Ok(Bell(OwnedFd::from_raw_fd(check(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))?))) }
    }

    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    pub fn ring(&self) {
        // SAFETY: 8 valid bytes. It fails only when it is rung already.
        unsafe { libc::write(self.fd(), (&raw const ONE).cast(), 8) };
    }

    pub fn hush(&self) {
        let mut count = 0u64;
        // SAFETY: 8 valid bytes. It fails only when it is quiet already.
        unsafe { libc::read(self.fd(), (&raw mut count).cast(), 8) };
    }
}

static ONE: u64 = 1;
