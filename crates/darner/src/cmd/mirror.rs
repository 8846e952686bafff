//! `darner mirror`

use std::fmt::Write;
use std::fs::File;
use std::io::{BufReader, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use darner_fs::{Fs, Node, ROOT, Tid};
use darner_mirror::{Header, Puller, Which, export, import};
use darner_store::Store;
use darner_syslink::{Identity, Link};

use super::{daemon, human, printable, quoted};
use crate::cli::{Mirror, MirrorAction, Stay, SyncOf};
use crate::control::{self, FollowLine, MirrorLine, Request, Response};
use crate::error::{Context, Failure, Result};
use crate::far::{Far, Hitch, expecting};
use crate::frontend::now_ns;
use crate::making::{self, Make};
use crate::mirroring::{LEFT, PROMOTED};
use crate::place::{self, Place};
use crate::verifying::VerifyReport;
use crate::{mirroring, mounts, serving, whereabouts};

/// Seconds of difference between clocks that are worth telling.
const SKEW: f64 = 2.0;
/// How long to wait for a daemon that has a store and does not answer.
const PATIENCE: Duration = Duration::from_secs(5);

pub fn run(c: &Mirror) -> Result<()> {
    use MirrorAction as A;
    match &c.action {
        A::Add { mnt, name, target, limit } => {
            let (place, at) = mounts::spot_of(mnt)?;
            let target = mounts::absolute(target)?;
            control::must_call(&place, &Request::AddMirror { at, name: name.clone(), target: target.clone() })?;
            if limit.is_some() {
                pause(&Place::at(&target)?, false, *limit)?;
            }
            daemon::stay(&target)?;
            super::print(&format!(
                "{} is a mirror, and follows; to look at it: darner mount {} MNT\n",
                printable(&target),
                quoted(&target)
            ))
        }
        A::Follow { store, source, ticket, key, limit } => {
            follow(store, source.parse()?, ticket.as_deref(), key.as_deref(), *limit)
        }
        A::Return { store, promoted, ticket, key } => turn_back(store, promoted, ticket.as_deref(), key.as_deref()),
        A::Verify { mnt, name, data, dry_run, every, json } => {
            let mirror = Meant::by(mnt, name.as_deref())?;
            mirror.stay()?;
            if let Some(seconds) = *every {
                return control::must_call(&mirror.place, &Request::CompareEvery { seconds }).map(drop);
            }
            let request = Request::VerifyMirror { data: *data, mend: !dry_run };
            let Response::Verified(found) = super::call_showing_progress(&mirror.place, &request)? else {
                return Err(super::other_answer());
            };
            if *json {
                super::print_json(&*found)?
            } else {
                super::print(&compared(&found))?
            }
            match found.failed.is_empty() && found.mended == found.differing {
                true => Ok(()),
                false => Err(Failure::silent(1)),
            }
        }
        A::List { mnt, json } => {
            let place = mounts::store_of(mnt)?;
            let lines = match call(&place, &Request::Mirrors)? {
                Some(Response::Mirrors(lines)) => lines,
                Some(_) => return Err(super::other_answer()),
                None => vec![mirroring::line_of_stopped(&place)?.ok_or_else(|| control::nobody_has(&place))?],
            };
            if *json { super::print_json(&lines) } else { super::print(&table(&lines)) }
        }
        A::Sync(SyncOf { mnt, name, wait }) => {
            let mirror = Meant::by(mnt, name.as_deref())?;
            let request = Request::Follow { wait: *wait, source: mirror.source.clone() };
            // One that is paused and not mounted has no daemon, and needs none for this.
            let here = |fs: &Arc<Fs>| match fs.following().filter(|f| f.paused) {
                Some(f) => mirroring::pull_once(fs, &f, mirror.source.as_deref()).map(|()| Response::Done),
                None => Ok(Response::Closing),
            };
            match call_or_open(&mirror.place, &request, here)? {
                Response::Closing => {
                    mirror.stay()?;
                    control::must_call(&mirror.place, &request).map(drop)
                }
                _ => Ok(()),
            }
        }
        A::Pause { mnt, name } => pause(&Meant::by(mnt, name.as_deref())?.place, true, None),
        A::Resume { mnt, name, limit } => {
            let mirror = Meant::by(mnt, name.as_deref())?;
            pause(&mirror.place, false, *limit)?;
            mirror.stay()
        }
        A::Remove { mnt, name } => {
            let mirror = Meant::by(mnt, Some(name));
            control::must_call(&mounts::store_of(mnt)?, &Request::RemoveMirror { name: name.clone() })?;
            // (It may be gone, which may be why.)
            if let Err(e) = mirror.and_then(|mirror| pause(&mirror.place, true, None)) {
                eprintln!("darner: the mirror has no name here any more; it was not told: {e}");
            }
            Ok(())
        }
        A::Export { mnt, since, output } => write_stream(mnt, *since, output.as_deref()),
        A::Import { target, input } => read_stream(target, input.as_deref()),
        A::Promote { target } => promote(target),
    }
}

/// The mirror that a command is about.
struct Meant {
    place: Place,
    /// Where its source is, if it was named there.
    source: Option<PathBuf>,
}

impl Meant {
    /// By its name at its source, or (without one) by the store of the mirror itself.
    fn by(at: &Path, name: Option<&str>) -> Result<Meant> {
        let place = mounts::store_of(at)?;
        let Some(name) = name else { return Ok(Meant { place, source: None }) };
        match control::must_call(&place, &Request::MirrorAt { name: name.into() })? {
            Response::MirrorAt { target, source } => Ok(Meant { place: Place::at(&target)?, source: Some(source) }),
            _ => Err(super::other_answer()),
        }
    }

    /// Sees to it that it has a daemon, which knows where its source is.
    fn stay(&self) -> Result<()> {
        daemon::stay(&self.place.path)?;
        whereabouts::tell_source(&self.place, self.source.as_deref());
        Ok(())
    }
}

/// `darner stay`: the same, of a mirror that is at one of these places.
pub fn stay(c: &Stay) -> Result<()> {
    let place = whereabouts::find(&c.stores, c.uuid.map(u128::to_be_bytes).as_ref())?;
    Meant { place, source: c.source.clone() }.stay()
}

/// Calls the daemon of a store; `None` if there is none, nor one that is ending.
pub(super) fn call(place: &Place, request: &Request) -> Result<Option<Response>> {
    loop {
        match control::call(place, request)? {
            Some(Response::Closing) => std::thread::sleep(Duration::from_millis(20)),
            answer => return Ok(answer),
        }
    }
}

/// Opens a store that no daemon has.
pub(super) fn opened<T>(place: &Place, act: impl FnOnce(&Arc<Fs>) -> Result<T>) -> Result<T> {
    let (store, _held) = place.open(&[], &place::options(), &mut |_| ())?;
    let fs = Arc::new(Fs::open(store.clone())?);
    let outcome = act(&fs);
    drop(fs);
    store.close()?;
    outcome
}

/// Opens a store that whoever has it open is about to close.
fn opened_soon<T>(place: &Place, act: impl Fn(&Arc<Fs>) -> Result<T>) -> Result<T> {
    place::once_closed(PATIENCE, || opened(place, &act))
}

/// Has the daemon of a store do something; where there is none, opens the store and does it here.
fn call_or_open(place: &Place, request: &Request, here: impl Fn(&Arc<Fs>) -> Result<Response>) -> Result<Response> {
    let began = Instant::now();
    loop {
        if let Some(answer) = call(place, request)? {
            return Ok(answer);
        }
        match opened(place, &here) {
            // A daemon may be about to serve it, or to find that there is nothing to do.
            Err(e) if place::is_open(&e) && began.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(20)),
            outcome => return outcome,
        }
    }
}

fn pause(mirror: &Place, paused: bool, limit: Option<u64>) -> Result<()> {
    let here = |fs: &Arc<Fs>| {
        if let Some(limit) = limit {
            fs.limit_pulls(limit, now_ns())?;
        }
        fs.pause(paused, now_ns())?;
        Ok(Response::Done)
    };
    call_or_open(mirror, &Request::PauseMirror { paused, limit }, here).map(drop)
}

fn with_key(far: Far, key: Option<&str>) -> Result<Far> {
    let key = key.map(|key| key.parse().map_err(Failure::new)).transpose()?;
    Ok(Far { key: key.or(far.key), ..far })
}

/// Makes a store that follows one on another machine. One that does already learns another address of that.
fn follow(store: &Path, far: Far, ticket: Option<&str>, key: Option<&str>, limit: Option<u64>) -> Result<()> {
    let store = mounts::absolute(store)?;
    let far = with_key(far, key)?;
    let known = store.exists() && Place::at(&store)?.holds_store()?;
    if known && has_moved(&Place::at(&store)?, &far, ticket)? {
        return follows(&store, &far, limit);
    }
    let (far, ticket) = expecting(far, ticket, None)?;
    let identity = match known {
        true => opened(&Place::at(&store)?, |fs| {
            if fs.following().is_some() || fs.getattr(Node::Live(ROOT))?.size != 0 || fs.filesets().len() > 1 {
                return Err(Failure::new(format!("{} is a store already, and not an empty one", store.display())));
            }
            serving::identity(fs, now_ns())
        })?,
        false => Identity::generate(),
    };
    let name = far.fileset.clone().unwrap_or_else(|| "main".into());
    let with_ticket = ticket.is_some();
    let link = far.connect(&identity, ticket.map(|t| t.secret));
    let hitch = link.as_ref().err().map(|e| e.hitch);
    let looked = link.map_err(Failure::from).and_then(|link| {
        let looked = Puller::look(&link, Which::Named(&name), None);
        looked.map_err(|e| Failure::new(format!("{}: {name:?}: {e}", far.host)))
    });
    let make = |hash_key, born: u64| -> Result<Place> {
        let place = making::create(&store, &Make { hash_key, born_ns: Some(born), force: known, ..Make::default() })?;
        opened(&place, |fs| Ok(fs.set_identity(identity.to_bytes(), born)?))?;
        Ok(place)
    };
    let looked = match looked {
        Ok(looked) => looked,
        Err(e) => {
            // It is made where it must be this key that is let in the next time: it has been asked to be admitted, or has used a ticket up.
            let what_to_do = match hitch {
                None => "is admitted there: another FILESET can be named",
                Some(Hitch::Refused) if !with_ticket => {
                    "is not yet: `darner serve MNT --admit` there lets it in; then again"
                }
                Some(Hitch::Cut) if with_ticket => {
                    "may be admitted there by now: with --key instead of --ticket, again"
                }
                Some(_) => return Err(e),
            };
            if !known {
                make(None, now_ns())?;
            }
            let (at, key) = (store.display(), identity.fingerprint());
            return Err(Failure::new(format!("{e}\n{at} was made, and its key {key} {what_to_do}")));
        }
    };
    let born = looked.newest.0;
    let place = make(Some(looked.hash_key), born)?;
    opened(&place, |fs| Ok(fs.follow(looked.uuid, looked.fileset, &looked.name, &far.to_string(), born)?))?;
    follows(&store, &far, limit)
}

fn follows(store: &Path, far: &Far, limit: Option<u64>) -> Result<()> {
    if limit.is_some() {
        pause(&Place::at(store)?, false, limit)?;
    }
    daemon::stay(store)?;
    let (shown, store) = (printable(store), quoted(store));
    super::print(&format!("{shown} follows {far}; to look at it: darner mount {store} MNT\n"))
}

/// Has a mirror reach its source at another address; says whether the store is a mirror.
fn has_moved(mirror: &Place, far: &Far, ticket: Option<&str>) -> Result<bool> {
    let address = far.to_string();
    let here = |fs: &Arc<Fs>| match fs.following() {
        Some(_) => mirroring::follow_at(fs, &address, ticket).map(|()| Response::Done),
        None => Ok(Response::Closing),
    };
    let request = Request::FollowAt { address: address.clone(), ticket: ticket.map(String::from) };
    Ok(matches!(call_or_open(mirror, &request, here)?, Response::Done))
}

/// Has an old source follow the store that was its mirror. A daemon that is there to serve others makes way, and then goes on.
fn turn_back(store: &Path, promoted: &str, ticket: Option<&str>, key: Option<&str>) -> Result<()> {
    let place = Place::at(store)?;
    // (Where both were mixed up, this says so.)
    let near = match Far::is_meant(promoted) {
        true => None,
        false => Some(whereabouts::connect(&mounts::store_of(Path::new(promoted))?)?),
    };
    let had_daemon = call(&place, &Request::End)?.is_some();
    let outcome = turn_back_closed(&place, promoted, near, ticket, key);
    if outcome.is_err() && had_daemon {
        daemon::stay(&place.path)?;
    }
    super::print(&outcome?)
}

/// The same of a store that nobody has open; says what came of it.
fn turn_back_closed(
    place: &Place,
    promoted: &str,
    near: Option<Link>,
    ticket: Option<&str>,
    key: Option<&str>,
) -> Result<String> {
    let (link, origin) = match near {
        Some(link) => (link, None),
        None => {
            let (far, ticket) = expecting(with_key(promoted.parse()?, key)?, ticket, None)?;
            (
                opened_soon(place, |fs| {
                    Ok(far.connect(&serving::identity(fs, now_ns())?, ticket.as_ref().map(|t| t.secret))?)
                })?,
                Some(far.to_string()),
            )
        }
    };
    let looked = Puller::look(&link, Which::Named("main"), None).map_err(Failure::new)?;
    let at = looked.places.first().map(|path| path.to_string_lossy().into_owned());
    let origin = origin.or(at).ok_or_else(|| {
        Failure::new(format!("the daemon of {promoted} does not tell where it is: it is of another version"))
    })?;
    let was = looked.was.ok_or_else(|| Failure::new(format!("{promoted} is no mirror that was promoted")))?;
    let (at, alone, name) = opened_soon(place, |fs| {
        let name = free_name(fs, &format!("before-return-{}", now_ns() / 1_000_000_000));
        let (at, alone) = fs.turn_back(looked.uuid, &was, &origin, &name, now_ns())?;
        Ok((at, alone, name))
    })?;
    daemon::stay(&place.path)?;
    let store = printable(&place.path);
    let alone = alone.map_or("it had nothing besides".into(), |_| {
        format!("what it had become is the fileset {name}: darner mount --fileset {name} {store} MNT")
    });
    Ok(format!("{store} follows {origin}, from {at} on; {alone}\n"))
}

/// The name, or, where a fileset has it, that with a number.
fn free_name(fs: &Fs, name: &str) -> String {
    let taken = fs.filesets();
    let mut names = std::iter::once(name.to_string()).chain((2..).map(|n| format!("{name}-{n}")));
    names.find(|name| taken.iter().all(|(fileset, _)| fileset.name != *name)).expect("numbers do not end")
}

fn write_stream(mnt: &Path, since: u64, output: Option<&Path>) -> Result<()> {
    let (place, at) = mounts::spot_of(mnt)?;
    let name = match control::must_call(&place, &Request::FilesetAt { at })? {
        Response::Filesets(lines) => lines.into_iter().next().map(|line| line.name),
        _ => None,
    };
    let name = name.ok_or_else(super::other_answer)?;
    let link = whereabouts::connect(&place)?;
    let mut out: Box<dyn std::io::Write> = match output {
        // (Whoever may read a stream can read everything in it.)
        Some(path) => {
            let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path);
            Box::new(file.cant(|| format!("make {}", path.display()))?)
        }
        None if std::io::stdout().is_terminal() => {
            return Err(Failure::new("a stream is nothing for a terminal: use --output FILE, or a pipe"));
        }
        None if stdout_leads_nowhere() => {
            return Err(Failure::new("standard output is closed: use --output FILE, or a pipe"));
        }
        None => Box::new(std::io::stdout().lock()),
    };
    let done = export(&link, Which::Named(&name), Tid(since), mirroring::session(), &mut *out).map_err(Failure::new)?;
    eprintln!("darner: what changed in {name:?} after {} up to {}", done.since, done.at);
    Ok(())
}

/// Whether nobody reads what is printed: in the place of what was closed, every program has `/dev/null`, to read and to write.
fn stdout_leads_nowhere() -> bool {
    let is_null = |meta: std::fs::Metadata| meta.rdev() == libc::makedev(1, 3);
    let out = std::io::stdout().as_fd().try_clone_to_owned().map(File::from);
    // SAFETY: a plain system call.
    let flags = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFL) };
    flags & libc::O_ACCMODE == libc::O_RDWR && out.and_then(|out| out.metadata()).is_ok_and(is_null)
}

fn read_stream(target: &Path, input: Option<&Path>) -> Result<()> {
    let mut from: Box<dyn std::io::Read> = match input {
        Some(path) => Box::new(BufReader::new(File::open(path).cant(|| format!("open {}", path.display()))?)),
        None => Box::new(std::io::stdin().lock()),
    };
    let header = Header::read(&mut *from).map_err(Failure::new)?;
    let new = !target.exists();
    if new && header.since != Tid::ZERO {
        return Err(Failure::new(format!(
            "{} does not exist, and the stream has only what changed after {}: a mirror begins with one of all there is, of darner mirror \
             export without --since",
            target.display(),
            header.since
        )));
    }
    if new {
        let born_ns = Some(header.at.0);
        making::create(target, &Make { hash_key: Some(header.hash_key), born_ns, ..Make::default() })?;
    }
    let place = Place::at(target)?;
    // A daemon that is there to serve others makes way, and then goes on.
    let had_daemon = !new && call(&place, &Request::End)?.is_some();
    let outcome = place::once_closed(PATIENCE, || place.open(&[], &place::options(), &mut |_| ()))
        .and_then(|(store, _held)| import_into(target, &store, new, header, &mut *from));
    if had_daemon {
        daemon::stay(&place.path)?;
    }
    outcome
}

fn import_into(
    target: &Path,
    store: &Arc<Store>,
    new: bool,
    header: Header,
    from: &mut dyn std::io::Read,
) -> Result<()> {
    let fs = Fs::open(store.clone())?;
    if new {
        fs.follow(header.uuid, header.fileset, &header.name, "", header.at.0)?;
        // Whatever comes of the rest, the next stream finds a mirror.
        store.sync()?;
    }
    let outcome = import_all(target, &fs, header, from);
    // What of it was read stays, and need not be read again.
    store.close()?;
    outcome
}

/// Does what a stream says, and those that follow it.
fn import_all(target: &Path, fs: &Fs, first: Header, from: &mut dyn std::io::Read) -> Result<()> {
    let told = |e| Failure::new(format!("{}: {e}", target.display()));
    let mut next = Some(first);
    while let Some(header) = next {
        let more = import(fs, &header, from).map_err(told)?;
        let at = fs.following().map_or(header.at, |f| f.at);
        let news = if more { "" } else { " (which it did before)" };
        super::print(&format!("{} shows moment {at} of {:?}{news}\n", printable(target), header.name))?;
        next = Header::read_next(from).map_err(told)?;
    }
    Ok(())
}

fn promote(target: &Path) -> Result<()> {
    let place = mounts::store_of(target)?;
    let here = |fs: &Arc<Fs>| {
        let was = fs.promote(now_ns())?;
        Ok(Response::Following(FollowLine { at: was.at.0, origin: was.origin, ..FollowLine::default() }))
    };
    let Response::Following(line) = call_or_open(&place, &Request::Promote, here)? else {
        return Err(super::other_answer());
    };
    let of = if line.origin.is_empty() { String::new() } else { format!(" of {}", line.origin) };
    super::print(&format!("{} shows moment {:#x}{of}; mount it (anew) to write\n", printable(&place.path), line.at))
}

fn compared(r: &VerifyReport) -> String {
    let mut out = format!("as of {}: {} keys compared, {} differ", r.at, r.keys, r.differing);
    if r.differing > 0 {
        let _ = write!(out, ", {} of them mended", r.mended);
    }
    if r.source_damaged > 0 {
        let _ =
            write!(out, ", {} places were damaged at the source, {} of them healed", r.source_damaged, r.source_healed);
    }
    let _ = writeln!(out, "; {} versions proven to be found when they are asked for", r.proven_versions);
    for (what, lines) in [("differed", &r.differences), ("healed at the source", &r.healed), ("failed", &r.failed)] {
        for line in lines {
            let _ = writeln!(out, "    {what}: {line}");
        }
    }
    out
}

fn table(lines: &[MirrorLine]) -> String {
    let mut out = format!("{:<16} {:<12} {:>9} {:>10}  {:<26} store\n", "name", "state", "lag", "received", "shows");
    for line in lines {
        let lag = line.lag_seconds.map_or("-".into(), |s| format!("{s:.1} s"));
        let at = line.at.as_deref().unwrap_or(match line.is_known {
            _ if line.state == PROMOTED || line.state == LEFT => "-",
            true => "nothing yet",
            false => "not known",
        });
        let received = human(line.received_bytes);
        let name = if line.name.is_empty() { "(this store)" } else { &line.name };
        let _ = writeln!(
            out,
            "{name:<16} {:<12} {lag:>9} {received:>10}  {at:<26} {}",
            line.state,
            printable(&line.target)
        );
        let ahead = line.clock_ahead_seconds.filter(|ahead| ahead.abs() > SKEW);
        let ahead = ahead.map(|ahead| {
            let which = if ahead > 0.0 { "ahead of" } else { "behind" };
            format!("its source's is {:.0} s {which} its own: times of the past are the source's", ahead.abs())
        });
        let compared = line.compared.as_ref().map(|c| {
            let mended = if c.differing > 0 { format!(", {} of them mended", c.mended) } else { String::new() };
            format!("{}, as of {} ({}): {} keys, {} differed{mended}", c.ended, c.at, c.at_tid, c.keys, c.differing)
        });
        for (what, text) in [("clock", &ahead), ("compared", &compared)] {
            text.iter().for_each(|text| out.extend(["    ", what, ": ", text.as_str(), "\n"]));
        }
        for differed in line.compared.iter().flat_map(|c| &c.named) {
            let _ = writeln!(out, "        {differed}");
        }
        let own = |text: &Option<String>| text.clone().filter(|_| line.name.is_empty());
        let (source, moment) = (own(&line.source), own(&line.at_tid));
        for (what, text) in
            [("source", &source), ("moment", &moment), ("waits for", &line.waits_for), ("last error", &line.last_error)]
        {
            if let Some(text) = text {
                let _ = writeln!(out, "    {what}: {text}");
            }
        }
    }
    out
}
