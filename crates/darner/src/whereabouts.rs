//! How a mirror and its source find each other, on one machine: the mirror's daemon connects to that of the source, which listens beside
//! each of its own sockets for those of its user and root.
//!
//! Each tells the other with every look by which paths it is reached, so that any of its volumes may leave. Who was away meanwhile is told
//! where the source is by those who know: the source, when it is mounted, and commands that are given both.

use std::collections::HashMap;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use darner_fs::{Following, Fs, NamedMirror};
use darner_mirror::{Places, Puller, SERVICE};
use darner_store::identify;
use darner_syslink::engine::Hello;
use darner_syslink::{Config, Link, Refuse, Service, Who, unix};
use parking_lot::Mutex;

use crate::control::{self, POLLS, Reached, Request};
use crate::daemon::Daemon;
use crate::error::{Context, Failure, Result};
use crate::far::{Far, Hitch, Unreached};
use crate::frontend::now_ns;
use crate::mirroring::NEXT_STREAM;
use crate::place::Place;
use crate::{keeper, serving};

/// Where mirrors are listened for, by the names of the sockets; `None`: that failed.
pub(crate) type Doors = Mutex<HashMap<Vec<u8>, Option<unix::Listener>>>;

/// Where those who follow connect.
fn address(of: &SocketAddr) -> Result<SocketAddr> {
    let name = of.as_abstract_name().unwrap_or_default();
    Ok(SocketAddr::from_abstract_name([name, b"/mirror"].concat())?)
}

fn admit(who: &Who, hello: &Hello, _: u64) -> std::result::Result<(), String> {
    if hello.service != SERVICE {
        return Err(format!("there is no service {:?} here", hello.service));
    }
    match control::is_trusted(who) {
        true => Ok(()),
        false => Err("only root and the user who mounted may follow".into()),
    }
}

impl Places for Daemon {
    fn own(&self) -> Vec<PathBuf> {
        self.store().homes_at()
    }

    fn follower(&self, store: [u8; 16], at: Vec<PathBuf>) {
        if self.store().is_read_only() {
            return;
        }
        if let Err(e) = self.fs.keep_mirror_at(store, &at, &|path| is_at(path, &store), now_ns()) {
            tracing::warn!("where a mirror is by now is not kept: {e}");
        }
    }
}

impl Daemon {
    /// Lets others follow wherever commands are taken, and nowhere else.
    pub(crate) fn listen_for_mirrors(&self) {
        let mut doors = self.doors.lock();
        if self.is_closing() {
            return;
        }
        let volumes: Vec<SocketAddr> = self.volumes.lock().iter().filter_map(|m| m.listens_at()).collect();
        let mounts: Vec<SocketAddr> = self.state.lock().mounts.values().filter_map(|m| m.listens_at()).collect();
        let wanted: HashMap<Vec<u8>, SocketAddr> = volumes
            .into_iter()
            .chain(mounts)
            .map(|socket| (socket.as_abstract_name().unwrap_or_default().to_vec(), socket))
            .collect();
        doors.retain(|name, _| wanted.contains_key(name));
        for (name, socket) in wanted {
            doors.entry(name).or_insert_with(|| self.door_at(&socket).inspect_err(|e| tracing::error!("{e}")).ok());
        }
    }

    fn door_at(&self, socket: &SocketAddr) -> Result<unix::Listener> {
        let at = address(socket)?;
        // (The process before this may have it a moment longer.)
        let bind = || unix::Listener::bind(&at, Config::default(), Arc::new(admit), self.followed.clone());
        control::when_free(&at, bind).cant(|| "listen for mirrors".into())
    }

    /// Has the mirrors that have names here follow, without waiting for them.
    pub(crate) fn start_followers(&self) {
        let mirrors = self.fs.mirrors().unwrap_or_else(|e| {
            tracing::error!("the mirrors are not started: {e}");
            Vec::new()
        });
        if mirrors.is_empty() || self.store().is_read_only() {
            return;
        }
        let source = self.path();
        // Each by a process of its own: whatever a mirror's place does to those who look at it, it does not hold us up.
        let started = thread::Builder::new().name("followers".into()).spawn(move || {
            for mirror in mirrors {
                let name = mirror.name.clone();
                match started(&mirror, &source) {
                    Ok(out) if out.status.success() => tracing::info!(name, "the mirror follows"),
                    Ok(out) => tracing::warn!(name, "the mirror: {}", String::from_utf8_lossy(&out.stderr).trim()),
                    Err(e) => tracing::warn!(name, "the mirror: {e}"),
                }
            }
        });
        if let Err(e) = started {
            tracing::error!("the mirrors are not started: {e}");
        }
    }
}

/// Runs `darner stay`.
fn started(mirror: &NamedMirror, source: &Path) -> Result<std::process::Output> {
    let mut command = std::process::Command::new(keeper::program()?);
    command.arg("stay").arg("--source").arg(source);
    if let Some(uuid) = mirror.store() {
        command.arg("--uuid").arg(format!("{:032x}", u128::from_be_bytes(uuid)));
    }
    command.arg("--").args(mirror.places()).output().cant(|| "start it".into())
}

/// Tells the daemon of a mirror, if it has one, where its source is.
pub(crate) fn tell_source(mirror: &Place, source: Option<&Path>) {
    if let Some(path) = source {
        // (One of another version does not know the request, nor does one that is ending need it.)
        let _ = control::call(mirror, &Request::SourceIsAt { path: path.to_owned() });
    }
}

/// The uuid of the store of which a volume is there.
fn store_at(place: &Place) -> Result<[u8; 16]> {
    Ok(identify(&*place.volume(false)?)?.uuid)
}

/// Whether a volume of that store is there.
fn is_at(path: &Path, store: &[u8; 16]) -> bool {
    Place::at(path).and_then(|place| store_at(&place)).is_ok_and(|found| found == *store)
}

/// Finds the store of that uuid, which is at one of these places; without a uuid, whatever is at the first.
pub(crate) fn find(places: &[PathBuf], uuid: Option<&[u8; 16]>) -> Result<Place> {
    let mut why = Vec::new();
    for path in places {
        let found = Place::at(path).and_then(|place| match uuid {
            Some(uuid) if store_at(&place)? != *uuid => Err(is_another(path)),
            _ => Ok(place),
        });
        match found {
            Ok(place) => return Ok(place),
            Err(e) => why.push(e.to_string()),
        }
    }
    Err(Failure::new(format!("its store is not where it was: {}", why.join("; "))))
}

fn is_another(path: &Path) -> Failure {
    Failure::new(format!("{} is a volume of another store", path.display()))
}

/// Has a pull of what is on this machine tell where the mirror is, and keep where the source is.
pub(crate) fn telling(puller: Puller, fs: &Arc<Fs>, f: &Following) -> Puller {
    if Far::is_meant(&f.origin) {
        return puller;
    }
    let own = fs.store().homes_at();
    let (fs, knows) = (fs.clone(), own.clone());
    let told = move |at: &[PathBuf]| {
        if let Err(e) = fs.keep_source_at(at, &knows, now_ns()) {
            tracing::warn!("where the source is by now is not kept: {e}");
        }
    };
    puller.with_places(own, Box::new(told))
}

/// Where a mirror's source is, for people.
pub(crate) fn origin(fs: &Fs, f: &Following) -> String {
    let known = if Far::is_meant(&f.origin) { None } else { fs.source_at().ok().flatten() };
    let first = known.and_then(|known| known.at.into_iter().next());
    first.map_or_else(|| f.origin.clone(), |path| path.to_string_lossy().into_owned())
}

/// Refuses where a mirror is fed by streams.
pub(crate) fn has_origin(origin: &str) -> Result<()> {
    match origin.is_empty() {
        true => Err(Failure::new(format!("it was made by `darner mirror import`: it gets on by {NEXT_STREAM}"))),
        false => Ok(()),
    }
}

/// Connects a mirror to its source, whose questions `own` answers. `hint`: where that is, as somebody else says. What is there may be a copy
/// of the source, so that it counts only where the source is at no path that is known of it.
pub(crate) fn connect_to(
    fs: &Arc<Fs>,
    f: &Following,
    hint: Option<&Path>,
    own: Arc<dyn Service>,
) -> std::result::Result<Link, Unreached> {
    if Far::is_meant(&f.origin) {
        return f.origin.parse::<Far>()?.connect_with(&serving::identity(fs, now_ns())?, None, own);
    }
    has_origin(&f.origin)?;
    let mut known = fs.source_at().map_err(Failure::from)?.map(|known| known.at).unwrap_or_default();
    let origin = PathBuf::from(&f.origin);
    if !known.contains(&origin) {
        known.push(origin);
    }
    let mut unreached: Option<Unreached> = None;
    let mut connect = |path: &Path| match connect_at(path, &f.source, own.clone()) {
        Ok(link) => Some(link),
        Err(e) => {
            unreached = Some(match unreached.take() {
                Some(before) => before.and(e),
                None => e,
            });
            None
        }
    };
    let by_known = known.iter().find_map(|path| connect(path));
    let by_hint = || {
        let hint = hint.filter(|hint| !known.iter().any(|path| path == hint || is_at(path, &f.source)))?;
        connect(hint)
    };
    match by_known.or_else(by_hint) {
        Some(link) => Ok(link),
        None => Err(unreached.expect("the origin was tried")),
    }
}

/// Connects to the daemon of a store at a path, unless another one is there.
fn connect_at(path: &Path, store: &[u8; 16], own: Arc<dyn Service>) -> std::result::Result<Link, Unreached> {
    let place = Place::at(path)?;
    match store_at(&place) {
        Ok(found) if found != *store => Err(is_another(path).into()),
        // (A daemon may well have it open though what is there can't be read.)
        _ => connect_with(&place, own),
    }
}

/// Connects to the daemon that has a store open, to follow it.
pub(crate) fn connect(place: &Place) -> Result<Link> {
    Ok(connect_with(place, Arc::new(Refuse))?)
}

/// The same; `own` answers what that daemon asks.
fn connect_with(place: &Place, own: Arc<dyn Service>) -> std::result::Result<Link, Unreached> {
    let what = format!("the daemon of {}", place.path.display());
    let (mut failed, mut stranger) = (None, None);
    for socket in place.sockets() {
        let socket = match control::reach(&address(&socket)?, control::LETS_IN, &what, &[]) {
            Reached::Socket(socket) => socket,
            Reached::Nobody => continue,
            Reached::Stranger(e) | Reached::Full(e) => {
                stranger = stranger.or(Some(e));
                continue;
            }
        };
        let config = Config { poll_ns: POLLS.as_nanos() as u64, ..crate::far::config() };
        match unix::connect_over(socket, SERVICE, &config, own.clone()) {
            Ok(link) => return Ok(link),
            Err(e) => failed = Some(e),
        }
    }
    // Where somebody has the store, its daemon is about to answer.
    let is_open = || place.holder().is_some();
    let hitch = failed.as_ref().map_or(Hitch::Nobody, Hitch::of);
    let hitch = if hitch == Hitch::Nobody && is_open() { Hitch::Cut } else { hitch };
    let why = stranger.map(|e| e.to_string()).or(failed.map(|e| e.to_string())).or_else(|| place.open_beyond_reach());
    let why = why.map_or(String::new(), |why| format!(" ({why})"));
    let failure = Failure::new(format!("{} is not mounted, or does not answer{why}", place.path.display()));
    Err(Unreached { failure, hitch })
}
