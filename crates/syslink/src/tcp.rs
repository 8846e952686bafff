//! Links between machines: two TLS connections a peer, one for messages and one for bulk, so that a small command does
//! not wait behind a large buffer. Peers prove their keys; who is admitted, an [`Admission`] says. There is no mode
//! without. docs/syslink.md §TCP.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender as Hand, channel};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use rustls::ServerConfig;

use crate::admission::{Admission, Ticket};
use crate::engine::{Announced, Config, Engine, Hello, Packet};
use crate::error::{ConnectError, Reason, Why};
use crate::greet::{Place, Places, greet};
use crate::identity::{Fingerprint, Identity, random};
use crate::link::{Link, Opened};
use crate::poll::{self, check, now_ns};
use crate::service::{Peer, Service, Who};
use crate::stream::Assembler;
use crate::tls::{self, Channel, Purpose, Raw};
use crate::unix::is_passing;
use crate::wire::{Announce, Got, Inlet, Outlet, Wire};

/// How to reach a peer.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Its key; another one is not spoken to.
    pub key: Fingerprint,
    /// The secret of a ticket it issued, if it does not know our key yet.
    pub ticket: Option<[u8; 32]>,
}

/// Whether connecting failed because who answers does not have [`Remote::key`].
pub fn is_other_key(e: &io::Error) -> bool {
    tls::is_other_key(e)
}

/// Whether connecting failed because who answers is something else.
pub fn is_something_else(e: &io::Error) -> bool {
    tls::is_no_tls(e)
}

impl Remote {
    /// To join with a ticket.
    pub fn with_ticket(addr: SocketAddr, ticket: &Ticket) -> Remote {
        Remote { addr, key: ticket.issuer, ticket: Some(ticket.secret) }
    }
}

/// Connects to the service of that name (with its protocol's version).
pub fn connect(
    remote: &Remote,
    identity: &Identity,
    service: &str,
    config: &Config,
    own: Arc<dyn Service>,
) -> Result<Link, ConnectError> {
    let until = now_ns() + config.handshake_ns;
    let control = Arc::new(dial(remote, identity, Purpose::Control, until)?);
    let hello = Hello { service: service.into(), ticket: remote.ticket, ..Hello::default() };
    let mut engine = Engine::connect(config.clone(), hello, now_ns());
    let mut wire = half(control.clone());
    let theirs = greet(&mut engine, &mut wire, until, &mut |_| Ok(None)).map_err(ConnectError::Ended)?;
    let bulk = dial_bulk(remote, identity, &theirs, until).map_err(|e| ConnectError::Ended(Reason::lost(&e)))?;
    let peer = Peer { who: Who::Key(remote.key), service: service.into() };
    let wire = join(wire, control, (bulk, Raw::default()), config);
    Ok(Opened { engine, wire, peer, service: own }.start()?.owned())
}

/// The second connection; the ticket, if there was one, is used up by now.
fn dial_bulk(remote: &Remote, identity: &Identity, theirs: &Hello, until: u64) -> io::Result<Channel> {
    let token = theirs.bulk_token.ok_or_else(|| io::Error::other("the peer wants no bulk connection"))?;
    let bulk = dial(remote, identity, Purpose::Bulk, until)?;
    bulk.write(&token)?;
    while bulk.push()? {
        poll::wait(&[(bulk.fd(), true)], Some(until))?;
    }
    Ok(bulk)
}

fn dial(remote: &Remote, identity: &Identity, purpose: Purpose, until: u64) -> io::Result<Channel> {
    let left = Duration::from_nanos(until.saturating_sub(now_ns()).max(1));
    let socket = TcpStream::connect_timeout(&remote.addr, left)?;
    prepare(&socket)?;
    Channel::connect(socket, tls::client(identity, remote.key, purpose)?, until)
}

/// Makes the kernel notice a machine or a network that is gone, within half a minute.
fn prepare(socket: &TcpStream) -> io::Result<()> {
    let options = [
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 15),
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 5),
        (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 3),
        (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 30_000),
    ];
    for (level, name, value) in options {
        let (at, len) = ((&raw const value).cast(), size_of::<libc::c_int>() as libc::socklen_t);
        // SAFETY: the pointer is to an int, and so says the length.
        check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, at, len) })?;
    }
    Ok(())
}

/// Listens until it is dropped.
pub struct Listener {
    addr: SocketAddr,
    socket: Arc<TcpListener>,
}

/// Bytes of what tells which link a bulk connection is for.
const TOKEN: usize = 16;

/// Links that wait for their bulk connection: by token, whose, and where to give it.
type Expected = Mutex<HashMap<[u8; TOKEN], (Fingerprint, Hand<(Channel, Raw)>)>>;

/// How often to look whether a peer whose bulk connection is awaited is still there.
const LOOK_EVERY: Duration = Duration::from_millis(50);

struct House {
    tls: Arc<ServerConfig>,
    config: Config,
    admission: Arc<dyn Admission>,
    service: Arc<dyn Service>,
    expected: Expected,
}

impl Listener {
    /// Accepts who is admitted, and gives their commands to `service`. Links last until a side closes them.
    pub fn bind(
        addr: SocketAddr,
        identity: &Identity,
        config: Config,
        admission: Arc<dyn Admission>,
        service: Arc<dyn Service>,
    ) -> io::Result<Listener> {
        let socket = Arc::new(TcpListener::bind(addr)?);
        let addr = socket.local_addr()?;
        let tls = tls::server(identity)?;
        let house = Arc::new(House { tls, config, admission, service, expected: Mutex::default() });
        let listener = socket.clone();
        thread::Builder::new().name("syslink-accept".into()).spawn(move || {
            let places = Places::default();
            loop {
                match listener.accept() {
                    Ok((socket, from)) => {
                        let house = house.clone();
                        places.give(socket, Some(from.ip()), move |socket, place| drop(house.welcome(socket, &place)));
                    }
                    Err(e) if is_passing(&e) => {}
                    Err(_) => return,
                }
            }
        })?;
        Ok(Listener { addr, socket })
    }

    /// Where.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // SAFETY: a plain system call. It ends the accept of the thread, and the port is free at once.
        unsafe { libc::shutdown(self.socket.as_raw_fd(), libc::SHUT_RDWR) };
    }
}

impl House {
    fn welcome(&self, socket: TcpStream, place: &Place) -> Result<(), ConnectError> {
        let until = now_ns() + self.config.handshake_ns;
        prepare(&socket)?;
        if !place.hears(&socket, until) {
            return Ok(());
        }
        let channel = Channel::accept(socket, self.tls.clone(), until)?;
        match channel.purpose() {
            Some(Purpose::Control) => self.control(channel, until),
            Some(Purpose::Bulk) => Ok(self.bulk(channel, until)?),
            None => {
                channel.end();
                Ok(())
            }
        }
    }

    fn control(&self, connection: Channel, until: u64) -> Result<(), ConnectError> {
        let (key, control) = (connection.peer()?, Arc::new(connection));
        let mut peer = Peer { who: Who::Key(key), service: String::new() };
        let mut engine = Engine::accept(self.config.clone(), Hello::default(), now_ns());
        let mut wire = half(control.clone());
        let token: [u8; TOKEN] = random();
        let (hand, arrives) = channel();
        let greeted = greet(&mut engine, &mut wire, until, &mut |hello| {
            peer.service = hello.service.clone();
            self.admission.admit(&peer.who, hello, now_ns())?;
            self.expected.lock().insert(token, (key, hand.clone()));
            Ok(Some(token))
        });
        let bulk = greeted.map(|_| {
            loop {
                let left = Duration::from_nanos(until.saturating_sub(now_ns()));
                match arrives.recv_timeout(left.min(LOOK_EVERY)) {
                    Err(RecvTimeoutError::Timeout) if !left.is_zero() && !poll::is_gone(control.fd()) => {}
                    outcome => break outcome,
                }
            }
        });
        self.expected.lock().remove(&token);
        let Ok(bulk) = bulk.map_err(ConnectError::Ended)? else {
            control.end();
            return Err(ConnectError::Ended(Reason::new(Why::Slow, "no bulk connection came in time")));
        };
        let wire = join(wire, control, bulk, &self.config);
        Opened { engine, wire, peer, service: self.service.clone() }.start()?;
        Ok(())
    }

    /// Gives the connection to the link whose token it brings.
    fn bulk(&self, channel: Channel, until: u64) -> io::Result<()> {
        let (mut token, mut raw) = (Vec::new(), Raw::default());
        while token.len() < TOKEN && now_ns() < until {
            let left = TOKEN - token.len();
            match channel.read(&mut raw, &mut token, left)? {
                Some(0) => return Ok(()),
                Some(_) => {}
                None => drop(poll::wait(&[(channel.fd(), false)], Some(until))?),
            }
        }
        let key = channel.peer()?;
        let waiting = self.expected.lock().remove(token.as_slice());
        if let Some((_, hand)) = waiting.filter(|(expected, _)| *expected == key) {
            // If it gave up meanwhile, so do we.
            let _ = hand.send((channel, raw));
        }
        Ok(())
    }
}

/// A wire for the hellos, which have no bulk.
fn half(control: Arc<Channel>) -> Wire {
    let fd = control.fd();
    let outlet = Sender { control: control.clone(), bulk: None, queue: VecDeque::new(), at: 0 };
    let inlet = Receiver::new(control, None, &Config::default());
    Wire {
        outlet: Box::new(outlet),
        inlet: Box::new(inlet),
        control: fd,
        bulk: None,
        poll: Duration::ZERO,
        ring: false,
    }
}

/// The wire for all that follows.
fn join(half: Wire, control: Arc<Channel>, (bulk, raw): (Channel, Raw), config: &Config) -> Wire {
    let fd = bulk.fd();
    let bulk = Arc::new(bulk);
    let outlet = Sender { control: control.clone(), bulk: Some(bulk.clone()), queue: VecDeque::new(), at: 0 };
    let mut inlet = Receiver::new(control, Some(bulk), config);
    // What came right behind the hello, and behind the token.
    (inlet.assembler, inlet.bulk_raw) = (half.inlet.leftover(), raw);
    Wire { outlet: Box::new(outlet), inlet: Box::new(inlet), bulk: Some(fd), ..half }
}

struct Sender {
    control: Arc<Channel>,
    bulk: Option<Arc<Channel>>,
    /// Bulk that is not encrypted yet, and where in the first of it we are.
    queue: VecDeque<Vec<u8>>,
    at: usize,
}

/// Bulk that is encrypted at once: what a socket takes in one go, about.
const PORTION: usize = 128 << 10;

impl Sender {
    fn push_bulk(&mut self) -> io::Result<bool> {
        let Some(bulk) = &self.bulk else { return Ok(false) };
        loop {
            if bulk.push()? {
                return Ok(true);
            }
            let Some(first) = self.queue.front() else { return Ok(false) };
            let end = first.len().min(self.at + PORTION);
            bulk.write(&first[self.at..end])?;
            self.at = end;
            if end == first.len() {
                self.queue.pop_front();
                self.at = 0;
            }
        }
    }
}

impl Outlet for Sender {
    fn send(&mut self, packet: Packet) -> io::Result<Option<Packet>> {
        self.control.write(&packet.bytes)?;
        self.queue.extend(packet.bulk.into_iter().filter(|b| !b.is_empty()));
        Ok(None)
    }

    fn push(&mut self) -> io::Result<bool> {
        let control = self.control.push()?;
        Ok(self.push_bulk()? | control)
    }

    fn end(&mut self) {
        self.control.end();
        if let Some(bulk) = &self.bulk {
            bulk.end();
        }
    }
}

/// A message whose bulk is on its way.
struct Waiting {
    announced: Announced,
    bulk: Vec<Vec<u8>>,
    /// The buffer that is being filled.
    buffer: usize,
}

struct Receiver {
    control: Arc<Channel>,
    bulk: Option<Arc<Channel>>,
    config: Config,
    assembler: Assembler,
    control_raw: Raw,
    bulk_raw: Raw,
    waiting: VecDeque<Waiting>,
    /// Since when the first of them is the first.
    waits_since: u64,
    bulk_is_dry: bool,
    /// Nothing was read yet: something may be here since the handshake.
    fresh: bool,
}

/// Messages that wait for their bulk at most; both sides' calls in flight are fewer.
const WAITING_MAX: usize = 256;

impl Waiting {
    fn new(announced: Announced) -> Waiting {
        // Not yet of their length: a peer that announces much and sends nothing shall cost nothing.
        let bulk = announced.bulks().iter().map(|_| Vec::new()).collect();
        Waiting { announced, bulk, buffer: 0 }
    }

    /// Where the next bytes go, and how many; `None`: all is here.
    fn room(&mut self) -> Option<(&mut Vec<u8>, usize)> {
        let left = |n: usize| self.announced.bulks().get(n).map(|len| *len as usize - self.bulk[n].len());
        while left(self.buffer) == Some(0) {
            self.buffer += 1;
        }
        let left = left(self.buffer)?;
        Some((&mut self.bulk[self.buffer], left))
    }
}

impl Receiver {
    fn new(control: Arc<Channel>, bulk: Option<Arc<Channel>>, config: &Config) -> Receiver {
        Receiver {
            control,
            bulk,
            config: config.clone(),
            assembler: Assembler::default(),
            control_raw: Raw::default(),
            bulk_raw: Raw::default(),
            waiting: VecDeque::new(),
            waits_since: 0,
            bulk_is_dry: false,
            fresh: true,
        }
    }

    fn next(&mut self, now: u64, announce: &mut Announce<'_>) -> Result<Option<Got>, Reason> {
        while let Some(bytes) = self.assembler.next(&self.config.limits)? {
            let Some(announced) = announce(bytes) else { return Ok(Some(Got::Ended)) };
            if announced.bulks().iter().all(|n| *n == 0) {
                let bulk = announced.bulks().iter().map(|_| Vec::new()).collect();
                return Ok(Some(Got::Message((announced, bulk))));
            }
            if self.waiting.is_empty() {
                self.waits_since = now;
            }
            if self.waiting.len() >= WAITING_MAX.max(2 * self.config.limits.calls as usize) {
                return Err(Reason::new(Why::Flood, "too many messages wait for their bulk"));
            }
            self.waiting.push_back(Waiting::new(announced));
        }
        Ok(None)
    }

    /// Reads bulk for the first message that waits for some.
    fn next_bulk(&mut self, now: u64) -> io::Result<Option<Got>> {
        let (Some(first), Some(bulk)) = (self.waiting.front_mut(), &self.bulk) else { return Ok(None) };
        while let Some((buffer, left)) = first.room() {
            match bulk.read(&mut self.bulk_raw, buffer, left)? {
                Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(_) => {}
                None => {
                    self.bulk_is_dry = true;
                    return Ok(None);
                }
            }
        }
        (self.waits_since, self.bulk_is_dry) = (now, false);
        Ok(self.waiting.pop_front().map(|w| Got::Message((w.announced, w.bulk))))
    }
}

impl Inlet for Receiver {
    fn receive(&mut self, _wait: bool, announce: &mut Announce<'_>) -> Result<Got, Reason> {
        let now = now_ns();
        let lost = |e: io::Error| Reason::lost(&e);
        self.fresh = false;
        loop {
            if let Some(got) = self.next(now, announce)? {
                return Ok(got);
            }
            if let Some(got) = self.next_bulk(now).map_err(lost)? {
                return Ok(got);
            }
            let late = self.late_at().is_some_and(|t| t <= now);
            match self.control.fill(&mut self.control_raw, &mut self.assembler, now).map_err(lost)? {
                Some(true) => {}
                Some(false) => return Err(Reason::new(Why::Lost, "the peer is gone")),
                None if late => return Err(slow()),
                None => return Ok(Got::Nothing),
            }
        }
    }

    fn has_more(&self) -> bool {
        let bulk = !self.waiting.is_empty() && !self.bulk_is_dry;
        self.fresh || bulk || self.assembler.has_next(&self.config.limits)
    }

    fn wants_bulk(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn late_at(&self) -> Option<u64> {
        let message = self.assembler.since().map(|t| t.saturating_add(self.config.message_ns));
        let bulk = (!self.waiting.is_empty()).then(|| self.waits_since.saturating_add(self.config.bulk_ns));
        [message, bulk].into_iter().flatten().min()
    }

    fn leftover(self: Box<Self>) -> Assembler {
        self.assembler
    }
}

fn slow() -> Reason {
    Reason::new(Why::Slow, "a message was not whole in time")
}

#[cfg(test)]
#[path = "tcp_tests.rs"]
mod tests;
