//! Commands call the daemon over syslink: a request is a call, its answer the reply. If the daemon dies, the link answers, and
//! the request goes to the next one, or the user is told. While a request takes long, the daemon calls back to tell how far it is.

use std::os::fd::OwnedFd;
use std::os::unix::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use darner_syslink::engine::{Config, Hello};
use darner_syslink::unix::{self, Listener};
use darner_syslink::{
    CallError, Caller, Code, ConnectError, Limits, Link, Message, Peer, Refusal, Reply, Service, Tag, Who, Why,
};
use parking_lot::Mutex;

use super::value::{decode, encode};
use super::{Request, Response};
use crate::error::{Failure, Result};
use crate::place::Place;

/// What commands ask for.
const SERVICE: &str = "darner.control/1";
/// A request, its answer, and how far it is.
const REQUEST: Tag = Tag(1);
const ANSWER: Tag = Tag(2);
const PROGRESS: Tag = Tag(3);
/// Of what, in [`PROGRESS`].
const DONE: Tag = Tag(1);
const TOTAL: Tag = Tag(2);

/// A daemon that says nothing for so long has hung.
const PATIENCE: Duration = Duration::from_secs(120);
/// Nobody who asked is waited for longer than this.
const TELL_WITHIN: Duration = Duration::from_millis(200);
const TELL_EVERY: Duration = Duration::from_millis(100);
/// How long to wait for an address that another process is about to give up.
const IN_USE: Duration = Duration::from_secs(2);

fn config() -> Config {
    let bulk = 64 << 20;
    Config {
        limits: Limits { bulk, bytes: u64::from(bulk), ..Limits::default() },
        // (While the next daemon takes over, connections wait.)
        handshake_ns: PATIENCE.as_nanos() as u64,
        ..Config::default()
    }
}

/// Calls the daemon that has the store; `None` if there is none.
pub fn call(place: &Place, request: &Request) -> Result<Option<Response>> {
    call_with(place, request, &mut |_, _| ())
}

/// As [`call`]; `progress` gets what is done and what there is to do. A daemon that dies meanwhile is asked again, when it is back.
fn call_with(place: &Place, request: &Request, progress: &mut dyn FnMut(u64, u64)) -> Result<Option<Response>> {
    let mut asked = false;
    loop {
        match (call_once(place, request, progress)?, asked) {
            (Some(Some(response)), _) => return Ok(Some(response)),
            (Some(None), true) | (None, _) if !request.is_repeatable() => {
                return Err(Failure::new(
                    "the daemon ended before it answered: see whether it was done, and try again if not",
                ));
            }
            // It has ended in between.
            (Some(None), true) => return Ok(Some(Response::Closing)),
            (Some(None), false) => return Ok(None),
            (None, _) => asked = true,
        }
    }
}

/// What the thread that calls tells the one that waits.
enum Heard {
    Progress(u64, u64),
    Answer(std::result::Result<Message, CallError>),
}

/// Hears how far it is.
struct Hears(Mutex<Sender<Heard>>);

impl Service for Hears {
    fn call(&self, _: &Peer, command: Message, reply: Reply) {
        let root = command.root();
        match (root.tag(), root.uint(DONE), root.uint(TOTAL)) {
            (PROGRESS, Ok(done), Ok(total)) => {
                // (Who asked may have gone.)
                let _ = self.0.lock().send(Heard::Progress(done, total));
                reply.send(Message::new(ANSWER));
            }
            _ => reply.refuse(Refusal::new(Code::Unknown, "commands answer nothing but how far something is")),
        }
    }
}

/// Where a daemon is: nowhere, gone while it was greeted, or here.
enum Found {
    Nobody,
    Gone,
    Daemon(Link),
}

fn connect(place: &Place, own: &Arc<Hears>) -> Result<Found> {
    for address in place.sockets() {
        match unix::connect(&address, SERVICE, &config(), own.clone()) {
            Ok(link) => return Ok(Found::Daemon(link)),
            Err(ConnectError::Io(_)) => {}
            Err(ConnectError::Ended(reason)) if reason.why == Why::Lost => return Ok(Found::Gone),
            Err(ConnectError::Ended(reason)) if reason.why == Why::NotAdmitted => {
                return Err(Failure::new(reason.detail));
            }
            Err(e) => return Err(unreached(place, &e)),
        }
    }
    Ok(Found::Nobody)
}

fn unreached(place: &Place, why: &dyn std::fmt::Display) -> Failure {
    Failure::new(format!("can't reach the daemon of {}: {why}", place.path.display()))
}

/// `Some(None)`: there is no daemon; `None`: it went away before it answered.
fn call_once(place: &Place, request: &Request, progress: &mut dyn FnMut(u64, u64)) -> Result<Option<Option<Response>>> {
    let (tell, heard) = channel();
    let own = Arc::new(Hears(Mutex::new(tell.clone())));
    let link = match connect(place, &own)? {
        Found::Nobody => return Ok(Some(None)),
        Found::Gone => return Ok(None),
        Found::Daemon(link) => link,
    };
    // Anybody may take an abstract name: only root, we, and the store's owner are believed.
    let owner = std::fs::metadata(&place.path).ok().map(|meta| std::os::unix::fs::MetadataExt::uid(&meta));
    // SAFETY: this call can't fail.
    let known = [Some(0), Some(unsafe { libc::geteuid() }), owner];
    if let Some(uid) = uid_of(link.peer()).filter(|uid| !known.contains(&Some(*uid))) {
        return Err(Failure::new(format!("a process of user {uid} poses as the daemon of {}", place.path.display())));
    }
    let message = encode(REQUEST, request)?;
    let calling = link.clone();
    thread::Builder::new().name("call".into()).spawn(move || {
        let _ = tell.send(Heard::Answer(calling.call(message, None)));
    })?;
    let answer = loop {
        match heard.recv_timeout(PATIENCE) {
            Ok(Heard::Progress(done, total)) => progress(done, total),
            Ok(Heard::Answer(answer)) => break answer,
            Err(RecvTimeoutError::Timeout) => {
                link.close();
                return Err(unreached(place, &format!("it has said nothing for {} seconds", PATIENCE.as_secs())));
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
        }
    };
    let answer = match answer {
        Ok(message) => decode(&message)?,
        Err(CallError::Refused(no)) => return Err(Failure::new(no.why)),
        Err(CallError::Broken(reason)) if matches!(reason.why, Why::Lost | Why::Closed) => return Ok(None),
        Err(e) => return Err(unreached(place, &e)),
    };
    match answer {
        // Mounts can be taken away without it.
        Response::GivenUp(_) if matches!(request, Request::Unmount { .. }) => Ok(Some(None)),
        Response::GivenUp(why) => Err(Failure::new(why)),
        response => Ok(Some(Some(response))),
    }
}

/// As [`call`], where a daemon must be there.
pub fn must_call(place: &Place, request: &Request) -> Result<Response> {
    must_call_with(place, request, &mut |_, _| ())
}

/// As [`must_call`]; `progress` gets what is done and what there is to do.
pub fn must_call_with(place: &Place, request: &Request, progress: &mut dyn FnMut(u64, u64)) -> Result<Response> {
    match call_with(place, request, progress)? {
        Some(Response::Closing) | None => {
            Err(Failure::new(format!("{} is not mounted (no daemon has it open)", place.path.display())))
        }
        Some(response) => Ok(response),
    }
}

/// Tells whoever asked what is done, and what there is to do.
pub type Tell<'a> = dyn FnMut(u64, u64) + 'a;

/// Answers requests.
pub trait Answers: Clone + Send + Sync + 'static {
    /// Answers one; each has a thread of its own.
    fn answer(&self, request: Request, tell: &mut Tell<'_>) -> Result<Response>;

    /// The answer to a request that succeeded is on its way.
    fn answered(&self, _request: &Request) {}
}

struct Serves<A>(A);

impl<A: Answers> Service for Serves<A> {
    fn call(&self, _: &Peer, command: Message, reply: Reply) {
        let answers = self.0.clone();
        let spawned = thread::Builder::new().name("command".into()).spawn(move || serve(&answers, &command, reply));
        // (The reply is gone with it, which answers.)
        if let Err(e) = spawned {
            tracing::error!("can't serve a command: {e}");
        }
    }
}

fn serve(answers: &impl Answers, command: &Message, reply: Reply) {
    let request: Request = match command.tag() {
        REQUEST => match decode(command) {
            Ok(request) => request,
            Err(e) => return reply.refuse(Refusal::new(Code::BadRequest, e.to_string())),
        },
        other => return reply.refuse(Refusal::new(Code::Unknown, format!("no command {}", other.0))),
    };
    // Whoever asked may be gone; what was asked for is done all the same.
    let (mut listens, mut told) = (true, None::<Instant>);
    let caller = reply.caller();
    let mut tell = |done: u64, total: u64| {
        if told.is_some_and(|at| at.elapsed() < TELL_EVERY) {
            return;
        }
        told = Some(Instant::now());
        let mut far = Message::new(PROGRESS);
        far.uint(DONE, done).uint(TOTAL, total);
        listens = listens && caller.call(far, Some(TELL_WITHIN)).is_ok();
    };
    let outcome = answers.answer(request.clone(), &mut tell).and_then(|response| encode(ANSWER, &response));
    match outcome {
        Ok(message) => {
            reply.send(message);
            answers.answered(&request);
        }
        Err(e) => reply.refuse(Refusal::new(Code::Failed, e.to_string())),
    }
}

/// Listens at an address that another process, which ends, may have a moment longer.
pub(crate) fn when_free(bind: impl Fn() -> std::io::Result<Listener>) -> std::io::Result<Listener> {
    let start = Instant::now();
    loop {
        match bind() {
            Err(e) if e.raw_os_error() == Some(libc::EADDRINUSE) && start.elapsed() < IN_USE => {
                thread::sleep(Duration::from_millis(10));
            }
            outcome => return outcome,
        }
    }
}

/// Listens for commands at an address.
pub fn listen_at(address: &SocketAddr, answers: impl Answers) -> std::io::Result<Listener> {
    Listener::bind(address, config(), Arc::new(admit), Arc::new(Serves(answers)))
}

/// The same, at a socket at which another process did.
pub fn listen_over(socket: OwnedFd, answers: impl Answers) -> std::io::Result<Listener> {
    Listener::over(socket, config(), Arc::new(admit), Arc::new(Serves(answers)))
}

fn admit(who: &Who, hello: &Hello, _: u64) -> std::result::Result<(), String> {
    if hello.service != SERVICE {
        return Err(format!("there is no service {:?} here: is this command of another version?", hello.service));
    }
    match is_trusted(who) {
        true => Ok(()),
        false => Err("only root and the user who mounted may command this daemon".into()),
    }
}

/// Whether it is a process of root or of our own user.
pub(crate) fn is_trusted(who: &Who) -> bool {
    // SAFETY: this call can't fail.
    let own = unsafe { libc::geteuid() };
    matches!(who, Who::Process { uid, .. } if *uid == 0 || *uid == own)
}

fn uid_of(peer: &Peer) -> Option<u32> {
    match peer.who {
        Who::Process { uid, .. } => Some(uid),
        _ => None,
    }
}
