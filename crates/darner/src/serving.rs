//! What the daemon does to be reached from other machines: it listens, and admits those whose keys are known here or who bring a
//! ticket. Where it listens and whom it knows is in the store (docs/format.md §Peers); tickets end with the process.

use std::collections::HashMap;
use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use darner_fs::{FilesetId, Fs};
use darner_mirror::{SERVICE, Source};
use darner_syslink::engine::Hello;
use darner_syslink::{
    Admission, Code, Config, Fingerprint, Identity, Known, Message, Peer, Pool, Reason, Refusal, Reply, Scope, Service,
    Who, now_ns as clock, tcp,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::control::{Request, Response};
use crate::daemon::Daemon;
use crate::error::{Context, Failure, Result};
use crate::frontend::now_ns;
use crate::when::local;

/// How often to try to listen where that failed: another process may still have the port, or the network is not there yet.
const RETRY: Duration = Duration::from_millis(500);
/// How often to see whether that is so.
const LOOK: Duration = Duration::from_secs(5);
/// Threads that answer.
const THREADS: usize = 2;
/// How long a ticket is good for at most.
const TICKET_MAX: u64 = 7 * 24 * 3600;

/// How a store is reached from other machines.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServeReport {
    /// The fingerprint of its own key.
    pub key: String,
    /// Where it is to listen.
    pub address: Option<String>,
    /// Whether it does.
    pub listens: bool,
    /// Why it does not.
    pub failed: Option<String>,
    /// Those who may follow.
    pub peers: Vec<PeerLine>,
    /// A ticket that was asked for.
    pub ticket: Option<String>,
}

/// One who may follow.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerLine {
    /// The fingerprint of its key.
    pub key: String,
    /// The filesets that it may see; none: all.
    #[serde(default)]
    pub filesets: Vec<String>,
    /// Since when it may, RFC 3339, local.
    pub admitted: String,
    /// When it asked for something last, since the daemon listens.
    pub asked_seconds_ago: Option<f64>,
}

pub(crate) type Followed = Arc<Pool<Arc<Source>>>;

/// Who is at the door.
#[derive(Default)]
pub(crate) struct Door {
    /// It is to be open, mounted or not.
    serves: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    address: Option<String>,
    open: Option<Open>,
    /// Why it is not.
    failed: Option<String>,
}

struct Open {
    listener: tcp::Listener,
    known: Arc<Known>,
    seen: Arc<Seen>,
    identity: Identity,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.seen.over.store(true, Ordering::Relaxed);
    }
}

/// When each peer asked last.
#[derive(Default)]
struct Seen {
    when: Mutex<HashMap<Fingerprint, Instant>>,
    /// Nobody is served any more: links outlive the listener.
    over: AtomicBool,
}

/// Answers those who are known, as long as they are, of what they may see.
struct Guarded {
    source: Arc<Source>,
    known: Arc<Known>,
    seen: Arc<Seen>,
}

impl Service for Guarded {
    fn call(&self, peer: &Peer, command: Message, reply: Reply) {
        let Who::Key(key) = &peer.who else { return };
        let no = |why: &str| Refusal::new(Code::Failed, why);
        match self.known.scope(key) {
            _ if self.seen.over.load(Ordering::Relaxed) => reply.refuse(no("nobody is served there any more")),
            Some(scope) => {
                self.seen.when.lock().insert(*key, Instant::now());
                self.source.serve(peer, &command, reply, scope.as_deref());
            }
            None => reply.refuse(no("this key is not admitted any more")),
        }
    }

    fn closed(&self, peer: &Peer, reason: &Reason) {
        self.source.closed(peer, reason);
    }
}

/// What may be seen, as syslink keeps it.
fn scope(filesets: &[FilesetId]) -> Scope {
    (!filesets.is_empty()).then(|| filesets.iter().map(|id| id.0).collect())
}

/// The store's key; it gets one, if it has none yet.
pub(crate) fn identity(fs: &Fs, now_ns: u64) -> Result<Identity> {
    match fs.identity()? {
        Some(bytes) => Identity::from_bytes(&bytes).map_err(|e| Failure::new(format!("the store's own key: {e}"))),
        None => {
            let made = Identity::generate();
            fs.set_identity(made.to_bytes(), now_ns)?;
            fs.sync()?;
            Ok(made)
        }
    }
}

fn port(address: &str) -> Option<&str> {
    address.rsplit(':').next()
}

fn open(fs: &Arc<Fs>, source: &Arc<Source>, address: &str) -> Result<Open> {
    let identity = identity(fs, now_ns())?;
    let addr = address.to_socket_addrs().cant(|| format!("find {address}"))?.next();
    let addr = addr.ok_or_else(|| Failure::new(format!("{address} is no address")))?;
    let keeps = fs.clone();
    let joined = move |key: &Fingerprint, scope: &Scope| {
        let filesets: Vec<FilesetId> = scope.iter().flat_map(|ids| ids.iter().map(|id| FilesetId(*id))).collect();
        let kept = keeps.admit(&key.0, &filesets, now_ns()).and_then(|()| keeps.sync());
        match kept {
            Ok(_) => tracing::info!(%key, "joined by ticket"),
            Err(e) => tracing::error!(%key, "joined by ticket, until this daemon ends: {e}"),
        }
    };
    let known = fs.admitted()?.into_iter().map(|a| (Fingerprint(a.fingerprint), scope(&a.filesets)));
    let known = Arc::new(Known::new(known, joined));
    let seen = Arc::new(Seen::default());
    let asks = known.clone();
    let admission = move |who: &Who, hello: &Hello, now: u64| {
        if hello.service != SERVICE {
            return Err(format!("there is no service {:?} here", hello.service));
        }
        asks.admit(who, hello, now)
    };
    let guarded = Guarded { source: source.clone(), known: known.clone(), seen: seen.clone() };
    let guarded = Pool::new(THREADS, "afar", guarded).cant(|| "start threads".into())?;
    let listener = tcp::Listener::bind(addr, &identity, Config::default(), Arc::new(admission), Arc::new(guarded));
    let listener = listener.cant(|| format!("listen at {address}"))?;
    tracing::info!(address = %listener.addr(), key = %identity.fingerprint(), "others may follow");
    Ok(Open { listener, known, seen, identity })
}

impl Daemon {
    /// Whether others are served from here, mounted or not.
    pub(crate) fn serves(&self) -> bool {
        self.door.serves.load(Ordering::Relaxed)
    }

    /// Learns from the store whether that is so.
    pub(crate) fn learn_whether_to_serve(&self) -> Result<()> {
        let address = self.fs.listens_at()?;
        self.door.serves.store(address.is_some(), Ordering::Relaxed);
        self.door.state.lock().address = address;
        Ok(())
    }

    /// Listens, as soon and as long as it is to.
    pub(crate) fn keep_the_door(&self) {
        while !self.is_closing() {
            let waits = {
                let mut state = self.door.state.lock();
                if let (Some(address), None) = (state.address.clone(), &state.open) {
                    match open(&self.fs, &self.source, &address) {
                        Ok(open) => (state.open, state.failed) = (Some(open), None),
                        Err(e) => {
                            if state.failed.is_none() {
                                tracing::warn!("nobody can follow from afar: {e}");
                            }
                            state.failed = Some(e.to_string());
                        }
                    }
                }
                state.address.is_some() && state.open.is_none()
            };
            self.pause(if waits { RETRY } else { LOOK });
        }
        self.door.state.lock().open = None;
    }

    /// Serves the request.
    pub(crate) fn serve_others(&self, request: Request) -> Result<Response> {
        let Request::Serve { listen, stop, admit, remove, filesets, ticket_seconds } = request else {
            return Err(Failure::new("this daemon does not know the request: it is of another version"));
        };
        if self.store().is_read_only() {
            return Err(Failure::new("the store is open for reading only"));
        }
        let key = |text: &String| text.parse::<Fingerprint>().map_err(|e| Failure::new(format!("{text:?}: {e}")));
        let (admit, remove) =
            (admit.iter().map(key).collect::<Result<Vec<_>>>()?, remove.iter().map(key).collect::<Result<Vec<_>>>()?);
        let filesets = filesets.iter().map(|name| self.fileset_to_serve(name)).collect::<Result<Vec<_>>>()?;
        let report = {
            let mut state = self.door.state.lock();
            if let Some(address) = listen.filter(|address| state.address.as_ref() != Some(address)) {
                let mut opened = open(&self.fs, &self.source, &address);
                let before = state.address.clone().filter(|before| opened.is_err() && port(before) == port(&address));
                if let Some(before) = before {
                    // It may be our own, at another address, that is in its way.
                    state.open = None;
                    opened = open(&self.fs, &self.source, &address);
                    if opened.is_err() {
                        state.open = open(&self.fs, &self.source, &before).ok();
                    }
                }
                state.open = Some(opened?);
                self.fs.listen_at(Some(&address), now_ns())?;
                (state.address, state.failed) = (Some(address), None);
                self.door.serves.store(true, Ordering::Relaxed);
            }
            for key in &admit {
                self.fs.admit(&key.0, &filesets, now_ns())?;
                state.open.iter().for_each(|open| open.known.add(*key, scope(&filesets)));
            }
            for key in &remove {
                self.fs.admit_no_more(&key.0, now_ns())?;
                state.open.iter().for_each(|open| open.known.remove(key));
            }
            if stop {
                self.fs.listen_at(None, now_ns())?;
                *state = State::default();
                self.door.serves.store(false, Ordering::Relaxed);
            }
            self.fs.sync()?;
            let ticket = ticket_seconds.map(|seconds| {
                let open = state.open.as_ref();
                let open = open.ok_or_else(|| {
                    let why = state.failed.clone().unwrap_or_else(|| "give it --listen ADDR:PORT".into());
                    Failure::new(format!("a ticket is of no use while nobody listens: {why}"))
                })?;
                let lifetime = Duration::from_secs(seconds.min(TICKET_MAX));
                let tickets = open.known.tickets();
                let ticket = tickets.issue(open.identity.fingerprint(), lifetime, clock(), scope(&filesets));
                Ok::<_, Failure>(ticket.to_string())
            });
            self.tell_door(&state, ticket.transpose()?)?
        };
        self.end_if_over();
        Ok(Response::Serving(Box::new(report)))
    }

    fn fileset_to_serve(&self, name: &str) -> Result<FilesetId> {
        let found = self.fs.filesets().into_iter().find(|(f, _)| f.name == name);
        found.map(|(f, _)| f.id).ok_or_else(|| Failure::new(format!("there is no fileset {name:?} here")))
    }

    pub(crate) fn name_of(&self, id: FilesetId) -> String {
        let found = self.fs.filesets().into_iter().find(|(f, _)| f.id == id);
        found.map_or_else(|| format!("number {}, which is gone", id.0), |(f, _)| f.name)
    }

    fn tell_door(&self, state: &State, ticket: Option<String>) -> Result<ServeReport> {
        let seen = state.open.as_ref().map(|open| open.seen.when.lock().clone()).unwrap_or_default();
        let peers = self.fs.admitted()?.into_iter().map(|a| {
            let key = Fingerprint(a.fingerprint);
            let seconds = seen.get(&key).map(|at| at.elapsed().as_secs_f64());
            let filesets = a.filesets.iter().map(|id| self.name_of(*id)).collect();
            PeerLine { key: key.to_string(), filesets, admitted: local(a.since), asked_seconds_ago: seconds }
        });
        Ok(ServeReport {
            key: identity(&self.fs, now_ns())?.fingerprint().to_string(),
            address: state.open.as_ref().map(|open| open.listener.addr().to_string()).or(state.address.clone()),
            listens: state.open.is_some(),
            failed: state.failed.clone(),
            peers: peers.collect(),
            ticket,
        })
    }
}
