//! Links between processes of a machine: SOCK_SEQPACKET, one message a packet, bulk in shared memory beside it. Who
//! the peer is, the kernel says (SO_PEERCRED). docs/syslink.md §Unix.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

use crate::admission::Admission;
use crate::engine::{Config, Engine, Hello, Packet};
use crate::error::{ConnectError, Reason, Why};
use crate::greet::{Places, greet};
use crate::header;
use crate::link::{Link, Opened};
use crate::memfd::{self, Shared, Stock};
use crate::poll::{self, Bell, check, now_ns};
use crate::ring::{self, Reader, Writer};
use crate::service::{Peer, Service, Who};
use crate::wire::{Announce, Got, Inlet, Outlet, Wire};

/// Connections that are waiting to be accepted at most.
const BACKLOG: i32 = 128;

/// Connects to the service of that name (with its protocol's version), whoever listens: where that is not certain,
/// [`reach`] tells it before anything is said.
pub fn connect(addr: &SocketAddr, service: &str, config: &Config, own: Arc<dyn Service>) -> Result<Link, ConnectError> {
    connect_over(reach(addr, Duration::from_nanos(config.handshake_ns))?.0, service, config, own)
}

/// Connects, and says nothing yet; with whose process it is that listens. Where as many wait as may, for so long at most
/// ([`io::ErrorKind::WouldBlock`]).
pub fn reach(addr: &SocketAddr, patience: Duration) -> io::Result<(OwnedFd, Who)> {
    let socket = seqpacket()?;
    let (raw, len) = raw_address(addr)?;
    set_time(&socket, libc::SO_SNDTIMEO, patience)?;
    // SAFETY: `raw` is an address of `len` bytes.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const raw).cast(), len) })?;
    set_time(&socket, libc::SO_SNDTIMEO, Duration::ZERO)?;
    let who = peer_of(&socket)?;
    Ok((socket, who))
}

/// What a link between two processes runs over.
pub struct Ends {
    /// An end of a socket pair.
    pub socket: OwnedFd,
    /// Memory that both have, and from where on: [`crate::RING`] bytes, all zero, that can't go away.
    pub ring: Option<(OwnedFd, u64)>,
}

impl From<OwnedFd> for Ends {
    fn from(socket: OwnedFd) -> Ends {
        Ends { socket, ring: None }
    }
}

/// As [`connect`], over a socket that was [`reach`]ed, or an end of a pair of this kind whose other end has [`accept_over`].
pub fn connect_over(
    ends: impl Into<Ends>,
    service: &str,
    config: &Config,
    own: Arc<dyn Service>,
) -> Result<Link, ConnectError> {
    let ends = ends.into();
    let peer = Peer { who: peer_of(&ends.socket)?, service: service.into() };
    let hello = Hello { service: service.into(), ring: ends.ring.is_some(), ..Hello::default() };
    let mut engine = Engine::connect(config.clone(), hello, now_ns());
    let (mut wire, rings) = wire(ends, config, true)?;
    let until = now_ns() + config.handshake_ns;
    let theirs = greet(&mut engine, &mut wire, until, &mut |_| Ok(None)).map_err(ConnectError::Ended)?;
    wire.ring &= theirs.ring;
    rings.store(wire.ring, Ordering::Relaxed);
    Ok(Opened { engine, wire, peer, service: own }.start()?.owned())
}

/// As [`connect_over`], without a thread for the link, which costs more than a call, and without waiting for the peer's hello: for those
/// who call and go. The first call goes along with our hello; [`Link::greet_patiently`] waits before it. While nobody waits for a reply, `own`
/// answers nothing, and nobody notices that the peer is gone.
pub fn connect_over_unattended(
    socket: OwnedFd,
    service: &str,
    config: &Config,
    own: Arc<dyn Service>,
) -> io::Result<Link> {
    let peer = Peer { who: peer_of(&socket)?, service: service.into() };
    let hello = Hello { service: service.into(), ..Hello::default() };
    let engine = Engine::connect(config.clone(), hello, now_ns());
    let (wire, _) = wire(socket.into(), config, true)?;
    Ok(Opened { engine, wire, peer, service: own }.unattended()?.owned())
}

/// Accepts who has the other end of a socket pair of this kind, as [`Listener`] does. The link ends with its last clone.
pub fn accept_over(
    ends: impl Into<Ends>,
    config: &Config,
    admission: &dyn Admission,
    service: Arc<dyn Service>,
) -> Result<Link, ConnectError> {
    Ok(welcome(ends.into(), config, admission, service)?.start()?.owned())
}

/// Listens until it is dropped.
pub struct Listener {
    socket: Arc<OwnedFd>,
    stop: Arc<Bell>,
    /// Others go on listening at the same socket.
    stays: bool,
}

impl Listener {
    /// Accepts who is admitted, and gives their commands to `service`. Links last until a side closes them.
    pub fn bind(
        addr: &SocketAddr,
        config: Config,
        admission: Arc<dyn Admission>,
        service: Arc<dyn Service>,
    ) -> io::Result<Listener> {
        let socket = Arc::new(seqpacket()?);
        let (raw, len) = raw_address(addr)?;
        // SAFETY: `raw` is an address of `len` bytes.
        check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const raw).cast(), len) })?;
        // SAFETY: a plain system call.
        check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
        Listener::start(socket, config, admission, service)
    }

    /// Goes on listening at a socket of another process's ([`Listener::socket`]), and answers who waits there.
    pub fn over(
        socket: OwnedFd,
        config: Config,
        admission: Arc<dyn Admission>,
        service: Arc<dyn Service>,
    ) -> io::Result<Listener> {
        let (mut kind, mut len) = (0, size_of::<libc::c_int>() as libc::socklen_t);
        let (at, fd) = ((&raw mut kind).cast(), socket.as_raw_fd());
        // SAFETY: the pointers are valid for the call, `len` is the buffer's size.
        check(unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_TYPE, at, &mut len) })?;
        if kind != libc::SOCK_SEQPACKET {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a socket of another kind"));
        }
        Listener::start(Arc::new(socket), config, admission, service)
    }

    /// The socket, for somebody else to go on with.
    pub fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Leaves the socket to those who have it too: connections wait there for them.
    pub fn leave(mut self) {
        self.stays = true;
    }

    fn start(
        socket: Arc<OwnedFd>,
        config: Config,
        admission: Arc<dyn Admission>,
        service: Arc<dyn Service>,
    ) -> io::Result<Listener> {
        // (Who has it too may take a connection first.)
        // SAFETY: a plain system call.
        check(unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) })?;
        let stop = Arc::new(Bell::new()?);
        let places = Places::default();
        let house = Arc::new(House { config, admission, service, places });
        Door { socket: socket.clone(), stop: stop.clone(), house }.watch_elsewhere()?;
        Ok(Listener { socket, stop, stays: false })
    }
}

/// What whoever lets others in has.
#[derive(Clone)]
struct Door {
    socket: Arc<OwnedFd>,
    stop: Arc<Bell>,
    house: Arc<House>,
}

/// What there is for those who are let in.
struct House {
    config: Config,
    admission: Arc<dyn Admission>,
    service: Arc<dyn Service>,
    places: Places,
}

impl Door {
    /// Has a new thread let people in.
    fn watch_elsewhere(self) -> io::Result<()> {
        thread::Builder::new().name("syslink-accept".into()).spawn(move || self.watch()).map(drop)
    }

    /// Waits for somebody, and is this one's thread from then on; a new one waits for the next. (The other way round whoever
    /// came would wait until a thread has been woken, on another CPU.)
    fn watch(self) {
        loop {
            let waited = poll::wait_for_either(self.socket.as_raw_fd(), self.stop.fd());
            match waited.and_then(|stop| if stop { Ok(None) } else { accept(&self.socket).map(Some) }) {
                Ok(None) => return,
                // (Without a thread more, nobody is let in.)
                Ok(Some(peer)) if self.clone().watch_elsewhere().is_ok() => {
                    // (The address is free once nobody watches, whoever is still here.)
                    let house = self.house.clone();
                    drop(self);
                    return house.let_in(peer);
                }
                Ok(Some(_)) => thread::sleep(Duration::from_millis(50)),
                Err(e) if is_passing(&e) => {}
                Err(_) => return,
            }
        }
    }
}

impl House {
    fn let_in(&self, peer: OwnedFd) {
        let Ok(place) = self.places.take(&peer, None) else { return };
        if !place.hears(&peer, now_ns() + self.config.handshake_ns) {
            return;
        }
        let welcomed = welcome(peer.into(), &self.config, &*self.admission, self.service.clone());
        drop(place);
        // (Who is not welcome was told so, and nobody else is to be.)
        let _ = welcomed.and_then(|link| Ok(link.run()?));
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.ring();
        if !self.stays {
            // SAFETY: a plain system call. Whoever else has the socket shall not have people wait there.
            unsafe { libc::shutdown(self.socket.as_raw_fd(), libc::SHUT_RDWR) };
        }
    }
}

/// Whether accepting may work the next time.
pub(crate) fn is_passing(e: &io::Error) -> bool {
    match e.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS) => {
            thread::sleep(Duration::from_millis(50));
            true
        }
        Some(libc::EINTR | libc::EAGAIN | libc::ECONNABORTED | libc::EPROTO | libc::EPERM) => true,
        _ => false,
    }
}

fn welcome(
    ends: Ends,
    config: &Config,
    admission: &dyn Admission,
    service: Arc<dyn Service>,
) -> Result<Opened, ConnectError> {
    let mut peer = Peer { who: peer_of(&ends.socket)?, service: String::new() };
    let hello = Hello { ring: ends.ring.is_some(), ..Hello::default() };
    let mut engine = Engine::accept(config.clone(), hello, now_ns());
    let (mut wire, rings) = wire(ends, config, false)?;
    let theirs = greet(&mut engine, &mut wire, now_ns() + config.handshake_ns, &mut |hello| {
        peer.service = hello.service.clone();
        admission.admit(&peer.who, hello, now_ns()).map(|()| None)
    })
    .map_err(ConnectError::Ended)?;
    wire.ring &= theirs.ring;
    rings.store(wire.ring, Ordering::Relaxed);
    Ok(Opened { engine, wire, peer, service })
}

fn seqpacket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: a plain system call; the descriptor is ours.
    unsafe { Ok(OwnedFd::from_raw_fd(check(libc::socket(libc::AF_UNIX, kind, 0))?)) }
}

fn accept(socket: &OwnedFd) -> io::Result<OwnedFd> {
    let none = std::ptr::null_mut::<libc::sockaddr>();
    // SAFETY: no address is asked for; the descriptor is ours.
    unsafe {
        let fd = libc::accept4(socket.as_raw_fd(), none, std::ptr::null_mut(), libc::SOCK_CLOEXEC);
        Ok(OwnedFd::from_raw_fd(check(fd)?))
    }
}

fn raw_address(addr: &SocketAddr) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    // SAFETY: all zeroes is a valid address structure.
    let mut raw: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    raw.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let (skip, name) = match (addr.as_abstract_name(), addr.as_pathname()) {
        (Some(name), _) => (1, name),
        (None, Some(path)) => (0, path.as_os_str().as_bytes()),
        (None, None) => return Err(io::Error::new(io::ErrorKind::InvalidInput, "an address without a name")),
    };
    if skip + name.len() >= raw.sun_path.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a name too long for a socket"));
    }
    for (to, from) in raw.sun_path[skip..].iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    let end = std::mem::offset_of!(libc::sockaddr_un, sun_path) + skip + name.len();
    Ok((raw, end as libc::socklen_t))
}

/// Who is at the other end.
fn peer_of(socket: &OwnedFd) -> io::Result<Who> {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    let (at, fd) = ((&raw mut peer).cast(), socket.as_raw_fd());
    // SAFETY: the pointers are valid for the call, `len` is the buffer's size.
    check(unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, at, &mut len) })?;
    Ok(Who::Process { pid: peer.pid, uid: peer.uid, gid: peer.gid })
}

/// Sets how long a socket waits for something; zero: for ever.
fn set_time(socket: &OwnedFd, option: libc::c_int, time: Duration) -> io::Result<()> {
    let time = libc::timeval { tv_sec: time.as_secs() as libc::time_t, tv_usec: time.subsec_micros().into() };
    let (at, len) = ((&raw const time).cast(), size_of::<libc::timeval>() as libc::socklen_t);
    // SAFETY: the pointer is to what the length says.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, at, len) })?;
    Ok(())
}

/// And whether the ring is used, which the hellos tell.
fn wire(ends: Ends, config: &Config, connects: bool) -> io::Result<(Wire, Arc<AtomicBool>)> {
    let socket = Arc::new(ends.socket);
    let control = socket.as_raw_fd();
    set_time(&socket, libc::SO_RCVTIMEO, Duration::from_secs(1))?;
    // One byte more than is accepted, so that what is longer is noticed.
    let stock = Arc::new(Mutex::new(Stock::default()));
    let buffer = vec![0; config.limits.message as usize + 1];
    let rings = Arc::new(AtomicBool::new(false));
    let ring = ends.ring.map(|(fd, offset)| ring::open(&fd, offset, connects)).transpose()?;
    let has_ring = ring.is_some();
    let (writer, reader) = ring.map(|(w, r)| ((w, rings.clone()), (r, rings.clone()))).unzip();
    let received = Received { most: config.limits.message as usize, next: 1, ring: None, packet: None };
    let (socket_in, stock_in) = (socket.clone(), stock.clone());
    let inlet = Receiver { socket: socket_in, stock: stock_in, buffer, ring: reader, received, was_reset: false };
    let inlet = Box::new(inlet);
    let poll = Duration::from_nanos(config.poll_ns);
    let outlet = Box::new(Sender { socket, stock, ring: writer });
    Ok((Wire { outlet, inlet, control, bulk: None, poll, ring: has_ring }, rings))
}

struct Sender {
    socket: Arc<OwnedFd>,
    stock: Arc<Mutex<Stock>>,
    /// And whether it is used.
    ring: Option<(Writer, Arc<AtomicBool>)>,
}

/// A packet that is no message: there is one in the ring.
const BELL: &[u8] = &[0];

/// Room for one descriptor beside a packet.
#[repr(align(8))]
struct Beside([u8; 64]);

/// Descriptors that the kernel may give us at most; more than the one that is allowed, so that they can be closed.
const FDS_MAX: usize = 8;

fn beside_len(fds: usize) -> usize {
    // SAFETY: arithmetic.
    unsafe { libc::CMSG_SPACE((fds * size_of::<RawFd>()) as u32) as usize }
}

impl Outlet for Sender {
    fn send(&mut self, packet: Packet) -> io::Result<Option<Packet>> {
        let len: usize = packet.bulk.iter().map(Vec::len).sum();
        if let Some((ring, _)) = self.ring.as_mut().filter(|(_, used)| len == 0 && used.load(Ordering::Relaxed))
            && ring.put(&packet.bytes)
        {
            return match if ring.is_to_wake() { send(&self.socket, BELL, None) } else { Ok(()) } {
                // (A full socket wakes as well.)
                Err(e) if e.kind() != io::ErrorKind::WouldBlock => Err(e),
                _ => Ok(None),
            };
        }
        let shared = match len {
            0 => None,
            _ => Some(self.stock.lock().filled(&packet.bulk)?),
        };
        let outcome = send(&self.socket, &packet.bytes, shared.as_ref().map(Shared::fd));
        if let Some(shared) = shared {
            // What was not sent can be used again at once.
            let seq = outcome.as_ref().map_or(0, |()| header::seq(&packet.bytes));
            self.stock.lock().sent(seq, shared, len);
        }
        match outcome {
            Ok(()) => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(Some(packet)),
            Err(e) => Err(e),
        }
    }

    fn end(&mut self) {
        // SAFETY: a plain system call.
        unsafe { libc::shutdown(self.socket.as_raw_fd(), libc::SHUT_RDWR) };
    }
}

fn send(socket: &OwnedFd, bytes: &[u8], fd: Option<RawFd>) -> io::Result<()> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    let Some(fd) = fd else {
        // SAFETY: the buffer is valid.
        let n = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
        return if n < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    };
    let mut beside = Beside([0; 64]);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: all zeroes is a valid header; the pointers outlive the call; there is room for one descriptor.
    let n = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = beside.0.as_mut_ptr().cast();
        message.msg_controllen = beside_len(1) as _;
        let head = libc::CMSG_FIRSTHDR(&message);
        (*head).cmsg_level = libc::SOL_SOCKET;
        (*head).cmsg_type = libc::SCM_RIGHTS;
        (*head).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as _;
        libc::CMSG_DATA(head).cast::<RawFd>().write_unaligned(fd);
        libc::sendmsg(socket.as_raw_fd(), &message, flags)
    };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

struct Receiver {
    socket: Arc<OwnedFd>,
    stock: Arc<Mutex<Stock>>,
    buffer: Vec<u8>,
    /// And whether it is used.
    ring: Option<(Reader, Arc<AtomicBool>)>,
    received: Received,
    was_reset: bool,
}

/// A message and the descriptors beside it.
type Parcel = (Vec<u8>, Vec<OwnedFd>);

/// What has come by ring and by socket. Whichever has the next number is next: what did not fit into the ring came by the
/// socket.
struct Received {
    /// Bytes of a message at most.
    most: usize,
    /// The number of the next message.
    next: u64,
    ring: Option<Vec<u8>>,
    packet: Option<Parcel>,
}

impl Received {
    fn is_next(&self, bytes: &[u8]) -> bool {
        bytes.len() < header::HEADER || header::seq(bytes) <= self.next
    }

    /// Whether the next message is here.
    fn has_next(&self) -> bool {
        let packet = self.packet.as_ref().is_some_and(|(bytes, _)| self.is_next(bytes));
        packet || self.ring.as_ref().is_some_and(|bytes| self.is_next(bytes))
    }

    /// The next message, if it is here.
    fn take(&mut self) -> Option<Parcel> {
        let taken = match &self.ring {
            Some(bytes) if self.is_next(bytes) => (self.ring.take()?, Vec::new()),
            _ if self.has_next() => self.packet.take()?,
            _ => return None,
        };
        if taken.0.len() >= header::HEADER {
            self.next = header::seq(&taken.0).saturating_add(1).max(self.next);
        }
        Some(taken)
    }
}

impl Receiver {
    /// One packet: its length and what descriptors came along, which are ours to close.
    fn packet(&mut self, wait: bool) -> io::Result<Option<(usize, Vec<OwnedFd>)>> {
        let mut beside = Beside([0; 64]);
        let mut part = libc::iovec { iov_base: self.buffer.as_mut_ptr().cast(), iov_len: self.buffer.len() };
        // SAFETY: all zeroes is a valid header; the pointers outlive the call.
        let (n, message) = unsafe {
            let mut message: libc::msghdr = std::mem::zeroed();
            message.msg_iov = &mut part;
            message.msg_iovlen = 1;
            message.msg_control = beside.0.as_mut_ptr().cast();
            message.msg_controllen = beside_len(FDS_MAX) as _;
            let flags = if wait { libc::MSG_CMSG_CLOEXEC } else { libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC };
            (libc::recvmsg(self.socket.as_raw_fd(), &mut message, flags), message)
        };
        match n {
            n if n >= 0 => Ok(Some((n as usize, descriptors(&message)))),
            _ => match io::Error::last_os_error() {
                e if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
                // The peer left without having read all: that is told once, and before what it said last.
                e if e.kind() == io::ErrorKind::ConnectionReset && !self.was_reset => {
                    self.was_reset = true;
                    self.packet(wait)
                }
                e => Err(e),
            },
        }
    }
}

/// Takes over what the kernel gave.
fn descriptors(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the kernel has filled the header in; each descriptor in it is new and ours.
    unsafe {
        let mut head = libc::CMSG_FIRSTHDR(message);
        while !head.is_null() {
            if (*head).cmsg_level == libc::SOL_SOCKET && (*head).cmsg_type == libc::SCM_RIGHTS {
                let len = (*head).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(head).cast::<RawFd>();
                fds.extend((0..len / size_of::<RawFd>()).map(|n| OwnedFd::from_raw_fd(data.add(n).read_unaligned())));
            }
            head = libc::CMSG_NXTHDR(message, head);
        }
    }
    fds
}

impl Receiver {
    fn reader(&mut self) -> Option<&mut Reader> {
        self.ring.as_mut().filter(|(_, used)| used.load(Ordering::Relaxed)).map(|(reader, _)| reader)
    }

    fn look_into_the_ring(&mut self) -> Result<(), Reason> {
        if self.received.ring.is_none() {
            let most = self.received.most;
            self.received.ring = self.reader().map_or(Ok(None), |reader| reader.take(most))?;
        }
        Ok(())
    }

    /// The next message and its descriptors. `None`: there is none.
    fn next(&mut self, wait: bool) -> Result<Option<Parcel>, Reason> {
        loop {
            self.look_into_the_ring()?;
            if let Some(next) = self.received.take() {
                return Ok(Some(next));
            }
            // What was sent before a packet is in the ring by now: what is missing never comes, as the engine will say.
            if let Some(packet) = self.received.packet.take() {
                return Ok(Some(packet));
            }
            if wait && !self.sleep() {
                continue;
            }
            let packet = self.packet(wait);
            self.wake();
            match packet.map_err(|e| Reason::lost(&e))? {
                Some((0, _)) => {
                    // The last words before its end.
                    self.look_into_the_ring()?;
                    return self.received.take().map(Some).ok_or(Reason::new(Why::Lost, "the peer is gone"));
                }
                Some((n, fds)) if self.buffer[..n] == *BELL && fds.is_empty() && self.reader().is_some() => {
                    self.look_into_the_ring()?;
                    return Ok(self.received.take());
                }
                Some((n, fds)) => self.received.packet = Some((self.buffer[..n].to_vec(), fds)),
                None => return Ok(None),
            }
        }
    }

    fn taken(&mut self, bytes: Vec<u8>, mut fds: Vec<OwnedFd>, announce: &mut Announce<'_>) -> Result<Got, Reason> {
        let malformed = |what: &str| Reason::new(Why::Malformed, what);
        let Some(announced) = announce(bytes) else { return Ok(Got::Ended) };
        self.stock.lock().seen(announced.seen());
        let wants = announced.bulks().iter().any(|n| *n > 0);
        let bulk = match (wants, fds.pop(), fds.is_empty()) {
            (false, None, _) => announced.bulks().iter().map(|_| Vec::new()).collect(),
            (true, Some(fd), true) => memfd::copy_out(fd, announced.bulks())?,
            _ => return Err(malformed("other descriptors came along than the message says")),
        };
        Ok(Got::Message((announced, bulk)))
    }
}

impl Inlet for Receiver {
    fn can_wait(&self) -> bool {
        true
    }

    fn receive(&mut self, wait: bool, announce: &mut Announce<'_>) -> Result<Got, Reason> {
        match self.next(wait)? {
            Some((bytes, fds)) => self.taken(bytes, fds, announce),
            None => Ok(Got::Nothing),
        }
    }

    fn glance(&mut self, announce: &mut Announce<'_>) -> Result<Got, Reason> {
        if self.reader().is_none() {
            return self.receive(false, announce);
        }
        self.look_into_the_ring()?;
        match self.received.take() {
            Some((bytes, fds)) => self.taken(bytes, fds, announce),
            None => Ok(Got::Nothing),
        }
    }

    fn sleep(&mut self) -> bool {
        // (While one is here that is not the next, that comes by the socket.)
        self.received.ring.is_some() || self.reader().is_none_or(|reader| reader.sleep())
    }

    fn wake(&mut self) {
        if let Some(reader) = self.reader() {
            reader.wake();
        }
    }

    fn has_more(&self) -> bool {
        let waits = |(reader, used): &(Reader, Arc<AtomicBool>)| used.load(Ordering::Relaxed) && reader.has();
        self.received.has_next() || self.received.ring.is_none() && self.ring.as_ref().is_some_and(waits)
    }
}

#[cfg(test)]
#[path = "unix_tests.rs"]
mod tests;
