//! Commands call the daemon over syslink: a request is a call, its answer the reply. If the daemon dies, the link answers, and
//! the request goes to the next one, or the user is told. While a request takes long, the daemon calls back to tell how far it is.

use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use darner_syslink::engine::{Config, Hello};
use darner_syslink::unix;
use darner_syslink::{
    CallError, Code, ConnectError, Limits, Link, Message, Peer, Reason, Refusal, Reply, Service, Tag, Who, Why,
};
use parking_lot::Mutex;

use super::value::{decode, encode};
use super::{Request, Response};
use crate::error::{Context, Failure, Result};
use crate::keeper::Keeper;
use crate::mounts;
use crate::place::Place;
use crate::supervisor::LISTENER;

/// What commands ask for.
const SERVICE: &str = "darner.control/1";
/// A request, its answer, and how far it is.
const REQUEST: Tag = Tag(1);
const ANSWER: Tag = Tag(2);
const PROGRESS: Tag = Tag(3);
/// Of what, in [`PROGRESS`].
const DONE: Tag = Tag(1);
const TOTAL: Tag = Tag(2);

/// Whoever waits for longer says for whom.
const SLOW: Duration = Duration::from_secs(3);
/// A daemon that says nothing for so long has hung.
const PATIENCE: Duration = Duration::from_secs(120);
/// A daemon in whose place so many wait to be let in for so long is none.
pub(crate) const LETS_IN: Duration = Duration::from_secs(10);
const AT_ONCE: Duration = Duration::from_millis(1);
/// One that went away while it was greeted is followed by the next one, or nobody.
const BEFORE_THE_NEXT: Duration = Duration::from_millis(5);
/// Whoever waits for an answer does not sleep for so long: to be woken takes as long, on a machine that is idle.
pub(crate) const POLLS: Duration = Duration::from_micros(200);
/// Nobody who asked is waited for longer than this.
const TELL_WITHIN: Duration = Duration::from_millis(200);
const TELL_EVERY: Duration = Duration::from_millis(100);
/// How long to wait for an address that another process is about to give up.
const IN_USE: Duration = Duration::from_secs(2);

fn config(patience: Duration) -> Config {
    let bulk = 64 << 20;
    Config {
        limits: Limits { bulk, bytes: u64::from(bulk), ..Limits::default() },
        // (While the next daemon takes over, connections wait.)
        handshake_ns: patience.as_nanos() as u64,
        ..Config::default()
    }
}

/// Who is called.
pub(crate) struct Callee<'a> {
    /// Where it may listen.
    pub at: At<'a>,
    /// For people.
    pub what: String,
    /// As whose process it may run, beside root's and ours.
    pub owners: Vec<u32>,
    /// One that says nothing for so long has hung.
    pub patience: Duration,
}

/// Where somebody may listen.
pub(crate) enum At<'a> {
    Socket(SocketAddr),
    /// As the daemon of a store does.
    Store(&'a Place),
}

impl At<'_> {
    fn addresses(&self) -> Box<dyn Iterator<Item = SocketAddr> + '_> {
        match self {
            At::Socket(socket) => Box::new(std::iter::once(socket.clone())),
            At::Store(place) => Box::new(place.sockets()),
        }
    }
}

impl Callee<'_> {
    /// The daemon of a store.
    fn daemon(place: &Place) -> Callee<'_> {
        let what = format!("the daemon of {}", place.path.display());
        Callee { at: At::Store(place), what, owners: place.owners(), patience: PATIENCE }
    }

    /// Says for which process the command waits, once.
    fn is_waited_for(&self) {
        static SAID: AtomicBool = AtomicBool::new(false);
        if let At::Store(place) = self.at
            && !SAID.swap(true, Ordering::Relaxed)
        {
            let who = place.who_keeps_waiting().map_or(String::new(), |who| format!(", {who}"));
            eprintln!("darner: waits for {}{who}", self.what);
        }
    }

    /// Nobody listens here: an error where somebody does elsewhere.
    fn must_be_nowhere(&self) -> Result<()> {
        let elsewhere = match self.at {
            At::Store(place) => place.open_beyond_reach(),
            At::Socket(_) => None,
        };
        elsewhere.map_or(Ok(()), |why| Err(Failure::new(why)))
    }
}

/// Calls the daemon that has the store; `None` if there is none.
pub fn call(place: &Place, request: &Request) -> Result<Option<Response>> {
    call_with(&Callee::daemon(place), request, &mut |_, _| ())
}

/// Calls whomever; `None` if nobody is there.
pub(crate) fn call_at(callee: &Callee<'_>, request: &Request) -> Result<Option<Response>> {
    call_with(callee, request, &mut |_, _| ())
}

/// As [`call`]; `progress` gets what is done and what there is to do. One that dies meanwhile is asked again, when it is back.
fn call_with(callee: &Callee<'_>, request: &Request, progress: &mut dyn FnMut(u64, u64)) -> Result<Option<Response>> {
    let (mut asked, began) = (false, Instant::now());
    loop {
        match call_once(callee, request, progress)? {
            Outcome::Answered(response) => return Ok(Some(*response)),
            // It has ended in between.
            Outcome::Nobody if asked => return Ok(Some(Response::Closing)),
            Outcome::Nobody => return callee.must_be_nowhere().map(|()| None),
            Outcome::NotAsked if began.elapsed() > LETS_IN => {
                return Err(unreached(callee, &"it hangs up on whoever connects"));
            }
            // (It may be that nobody is there, or the next one.)
            Outcome::NotAsked => thread::sleep(BEFORE_THE_NEXT),
            Outcome::Died if !request.is_repeatable() => {
                return Err(Failure::new(
                    "the daemon ended before it answered: see whether it was done, and try again if not",
                ));
            }
            Outcome::Died => asked = true,
        }
    }
}

/// What came of asking once.
enum Outcome {
    Answered(Box<Response>),
    /// There is no daemon.
    Nobody,
    /// It went away while it was greeted.
    NotAsked,
    /// It went away before it answered.
    Died,
}

/// Hears how far it is: the newest that nobody has looked at.
#[derive(Default)]
struct Hears(Mutex<Option<(u64, u64)>>);

impl Service for Hears {
    fn call(&self, _: &Peer, command: Message, reply: Reply) {
        let root = command.root();
        match (root.tag(), root.uint(DONE), root.uint(TOTAL)) {
            (PROGRESS, Ok(done), Ok(total)) => {
                *self.0.lock() = Some((done, total));
                reply.send(Message::new(ANSWER));
            }
            _ => reply.refuse(Refusal::new(Code::Unknown, "commands answer nothing but how far something is")),
        }
    }
}

/// The link to whoever listens there, which is not greeted yet.
fn connect(callee: &Callee<'_>, own: &Arc<Hears>) -> Result<Option<Link>> {
    let mut missed = None;
    // (Where strangers see to it that nobody gets in, the daemon is found at its other addresses first.)
    for patience in [AT_ONCE, LETS_IN] {
        let mut is_full = false;
        for address in callee.at.addresses() {
            let socket = match reach(&address, patience, &callee.what, &callee.owners) {
                Reached::Socket(socket) => socket,
                Reached::Nobody => continue,
                Reached::Full(e) => {
                    (is_full, missed) = (true, missed.or(Some(e)));
                    continue;
                }
                Reached::Stranger(e) => {
                    missed = missed.or(Some(e));
                    continue;
                }
            };
            let config = Config { poll_ns: POLLS.as_nanos() as u64, ..config(callee.patience) };
            let link = unix::connect_over_unattended(socket, SERVICE, &config, own.clone());
            return link.map(Some).cant(|| format!("speak to {}", callee.what));
        }
        if !is_full {
            break;
        }
    }
    missed.map_or(Ok(None), Err)
}

/// What is at an address.
pub(crate) enum Reached {
    /// A process that may be believed listens: connected to it, which has been told nothing yet.
    Socket(OwnedFd),
    Nobody,
    /// A process that may not.
    Stranger(Failure),
    /// As many wait to be let in as may.
    Full(Failure),
}

/// Connects to who listens in the place of `what`. Anybody may take an abstract name: one whose process is not root's, ours or one of
/// `owners`' is not spoken to.
pub(crate) fn reach(address: &SocketAddr, patience: Duration, what: &str, owners: &[u32]) -> Reached {
    match unix::reach(address, patience) {
        Ok((socket, who)) if is_trusted(&who) => Reached::Socket(socket),
        Ok((socket, Who::Process { uid, .. })) if owners.contains(&uid) => Reached::Socket(socket),
        Ok((_, Who::Process { pid, uid, .. })) => {
            Reached::Stranger(Failure::new(format!("process {pid} of user {uid} listens in the place of {what}")))
        }
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
            Reached::Full(Failure::new(format!("who listens in the place of {what} lets nobody in")))
        }
        Ok(_) | Err(_) => Reached::Nobody,
    }
}

fn unreached(callee: &Callee<'_>, why: &dyn std::fmt::Display) -> Failure {
    Failure::new(format!("can't reach {}: {why}", callee.what))
}

fn call_once(callee: &Callee<'_>, request: &Request, progress: &mut dyn FnMut(u64, u64)) -> Result<Outcome> {
    let own = Arc::new(Hears::default());
    let Some(link) = connect(callee, &own)? else { return Ok(Outcome::Nobody) };
    let message = encode(REQUEST, request)?;
    let not_greeted = |reason: Reason| match reason.why {
        Why::Lost => Ok(Outcome::NotAsked),
        Why::NotAdmitted => Err(Failure::new(reason.detail)),
        _ => Err(unreached(callee, &ConnectError::Ended(reason))),
    };
    // (What must not be done twice is not said before it is certain who hears it.)
    if !request.is_repeatable() {
        let greeted = link.greet_patiently(SLOW, &mut || {
            callee.is_waited_for();
            Some(callee.patience)
        });
        if let Err(reason) = greeted {
            return not_greeted(reason);
        }
    }
    let mut heard_at = Instant::now();
    let answer = link.call_patiently(message, None, TELL_EVERY, &mut || {
        if let Some((done, total)) = own.0.lock().take() {
            progress(done, total);
            heard_at = Instant::now();
        } else if heard_at.elapsed() > SLOW && !(request.takes_long() && link.is_greeted()) {
            callee.is_waited_for();
        }
        (heard_at.elapsed() < callee.patience).then_some(TELL_EVERY)
    });
    let answer = match answer {
        Ok(message) => decode(&message)?,
        Err((CallError::Refused(no), _)) => return Err(Failure::new(no.why)),
        Err((CallError::Broken(reason), _)) if !link.is_greeted() => return not_greeted(reason),
        Err((CallError::Broken(why), _)) if matches!(why.why, Why::Lost | Why::Closed) => return Ok(Outcome::Died),
        Err((CallError::Cancelled, _)) => {
            let silent = format!("it has said nothing for {} seconds", callee.patience.as_secs());
            return Err(unreached(callee, &silent));
        }
        Err((e, _)) => return Err(unreached(callee, &e)),
    };
    match answer {
        // Mounts can be taken away without it.
        Response::GivenUp(_) if matches!(request, Request::Unmount { .. }) => Ok(Outcome::Nobody),
        Response::GivenUp(why) => Err(Failure::new(why)),
        response => Ok(Outcome::Answered(Box::new(response))),
    }
}

/// As [`call`], where a daemon must be there.
pub fn must_call(place: &Place, request: &Request) -> Result<Response> {
    must_call_with(place, request, &mut |_, _| ())
}

/// As [`must_call`]; `progress` gets what is done and what there is to do.
pub fn must_call_with(place: &Place, request: &Request, progress: &mut dyn FnMut(u64, u64)) -> Result<Response> {
    match call_with(&Callee::daemon(place), request, progress)? {
        Some(Response::Closing) | None => Err(nobody_has(place)),
        Some(response) => Ok(response),
    }
}

/// No daemon has the store open.
pub fn nobody_has(place: &Place) -> Failure {
    let dead =
        mounts::all().ok().and_then(|all| all.into_iter().find(|m| m.is_ours() && Place::behind(m).path == place.path));
    let path = place.path.display();
    Failure::new(match (dead, place.holder()) {
        (Some(mount), _) => mounts::is_dead(&mount.mountpoint),
        (None, Some(who)) => format!("{path} is not mounted; {who} has it open"),
        (None, None) => format!("{path} is not mounted (no daemon has it open)"),
    })
}

/// Tells whoever asked what is done, and what there is to do.
pub type Tell<'a> = dyn FnMut(u64, u64) + 'a;

/// Answers requests.
pub trait Answers: Clone + Send + Sync + 'static {
    /// Answers one, on a thread of its own: it may take its time.
    fn answer(&self, request: Request, tell: &mut Tell<'_>) -> Result<Response>;

    /// The answer to a request that succeeded is on its way.
    fn answered(&self, _request: &Request) {}
}

struct Serves<A>(A);

impl<A: Answers> Service for Serves<A> {
    fn call(&self, _: &Peer, command: Message, reply: Reply) {
        serve(&self.0, &command, reply);
    }

    fn takes_long(&self, _: &Message) -> bool {
        true
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
pub(crate) fn when_free(
    address: &SocketAddr,
    bind: impl Fn() -> std::io::Result<unix::Listener>,
) -> Result<unix::Listener> {
    let start = Instant::now();
    loop {
        match bind() {
            Err(e) if e.raw_os_error() == Some(libc::EADDRINUSE) && start.elapsed() < IN_USE => {
                thread::sleep(Duration::from_millis(10));
            }
            Err(e) => {
                return Err(match reach(address, AT_ONCE, "this daemon", &[]) {
                    Reached::Stranger(who) => who,
                    _ => e.into(),
                });
            }
            Ok(listener) => return Ok(listener),
        }
    }
}

/// Accepts commands at an address until it is dropped. If this process dies, who asks waits for the next one.
pub(crate) struct Listener {
    _listener: unix::Listener,
    keeper: Keeper,
    key: String,
}

impl Listener {
    /// `kept`: the socket of the process before, under its address' name.
    pub fn new(
        keeper: &Keeper,
        kept: impl FnOnce(&str) -> Option<OwnedFd>,
        address: &SocketAddr,
        answers: impl Answers,
    ) -> Result<Listener> {
        let name = String::from_utf8_lossy(address.as_abstract_name().unwrap_or_default()).into_owned();
        let key = format!("{LISTENER}{name}");
        let over = |socket| {
            listen_over(socket, answers.clone()).inspect_err(|e| {
                // One of another version's.
                tracing::warn!("the socket of the process before is of no use: {e}");
                keeper.drop(&key);
            })
        };
        let listener = match kept(&name).map(over) {
            Some(Ok(listener)) => listener,
            _ => when_free(address, || listen_at(address, answers.clone())).cant(|| "listen for commands".into())?,
        };
        keeper.keep(&key, "", listener.socket())?;
        Ok(Listener { _listener: listener, keeper: keeper.clone(), key })
    }

    /// Where that is.
    pub fn address(&self) -> Option<SocketAddr> {
        SocketAddr::from_abstract_name(self.key.strip_prefix(LISTENER)?).ok()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.keeper.drop(&self.key);
    }
}

fn listen_at(address: &SocketAddr, answers: impl Answers) -> std::io::Result<unix::Listener> {
    unix::Listener::bind(address, config(PATIENCE), Arc::new(admit), Arc::new(Serves(answers)))
}

/// Listens at a socket at which another process did.
pub fn listen_over(socket: OwnedFd, answers: impl Answers) -> std::io::Result<unix::Listener> {
    unix::Listener::over(socket, config(PATIENCE), Arc::new(admit), Arc::new(Serves(answers)))
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
