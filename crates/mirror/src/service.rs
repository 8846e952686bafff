//! The side that is followed.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use darner_fs::{
    Damaged, Digesting, FilesetId, Fs, FsError, Inode, MAIN, Node, ObjectId, Part, ROOT, Sent, Tid, Wanted,
};
use darner_store::Pin;
use darner_syslink::{Caller, Code, Element, Message, Peer, Reason, Refusal, Reply, Service, Tag, Who};
use parking_lot::{Condvar, Mutex};

use crate::places::{self, Places};
use crate::protocol::{
    AT, ATTEMPT, AWAY, DATA, DIGEST, END, FILESET, FOUND, FROM, HAS, HASH_KEY, ITEMS, LEN, LOOK, MAX, NAME, NEVER_BEEN,
    NEWEST, NEXT, NO_FILESET, NO_NEXT, NOT_KEPT, NOW, OBJECT, OBJECTS, OFFSET, OPENING, OPENINGS, OPENINGS_SINCE,
    OTHER_PAST, POINT, PROVE, PULL, READ, ROOM, RUN, SESSION, SINCE, TID, TO, UUID, VERSIONS, WAIT, WAS, WAS_SHOWN,
    encode_openings,
};

/// Who is silent for so long has to begin his pull anew (where he was cut).
const PATIENCE: Duration = Duration::from_secs(120);
/// Pulls under way at a time.
const SESSIONS_MAX: usize = 64;
/// Moments between that are offered at most.
const POINTS: u64 = 64;
/// Bytes of a part at most; the last item may go beyond that.
const ROOM_MAX: u64 = 2 << 20;
/// Bytes of a tail.
const TAIL_MAX: usize = 1 << 10;

/// Pulls under way, by whose they are and the number that he drew.
type Sessions = HashMap<(Who, u64), Arc<Mutex<Session>>>;

/// Answers those who follow filesets of a filesystem.
pub struct Source {
    fs: Arc<Fs>,
    sessions: Mutex<Sessions>,
    /// Those who looked lately, and the way to them.
    followers: Mutex<Vec<Follower>>,
    /// Those who wait for something new.
    waiting: Mutex<Waiting>,
    /// There may be something for them.
    news: Condvar,
    /// What time it is here (ns since 1970), for those who want to know how their clock differs.
    clock: Option<fn() -> u64>,
    /// Where it is, for those on this machine. (Whoever knows that has this.)
    places: OnceLock<Weak<dyn Places>>,
}

/// Who looked before that would have asked to be told by now.
const JUST_NOW: Duration = Duration::from_secs(2);
/// Those who wait at most: others are refused, and look from time to time.
const WAITING_MAX: usize = 4096;

#[derive(Default)]
struct Waiting {
    all: Vec<Waiter>,
    /// It is to be seen who of them is to be answered;
    due: bool,
    /// that is, all.
    all_due: bool,
    /// When that was so last: who asks right after may have looked before.
    all_since: Option<Instant>,
    over: bool,
}

/// Who is to be told when there is something newer than `since`.
struct Waiter {
    peer: Peer,
    since: Tid,
    reply: Reply,
}

struct Follower {
    peer: Peer,
    fileset: FilesetId,
    /// (The link has this service, which must not keep the link.)
    caller: Weak<dyn Caller>,
    looked: Instant,
}

/// Answers what a source asks those who follow it: what they remember of it.
pub struct Memory {
    fs: Arc<Fs>,
}

impl Memory {
    /// Of a mirror.
    pub fn new(fs: Arc<Fs>) -> Memory {
        Memory { fs }
    }
}

impl Service for Memory {
    fn call(&self, _: &Peer, command: Message, reply: Reply) {
        reply.finish(match (command.tag(), self.fs.following()) {
            // Nothing else that may be here is the source's affair.
            (READ, Some(_)) if command.root().uint(FILESET) == Ok(MAIN.0.into()) => remembered(&self.fs, &command),
            _ => Err(Refusal::new(Code::Unknown, "a mirror is asked for bytes of what it follows, and nothing else")),
        });
    }
}

/// Followers that are remembered, at most.
const FOLLOWERS_MAX: usize = 64;

struct Session {
    root: Inode,
    at: Tid,
    sent: Sent,
    /// Keeps the moment while it is pulled.
    _pin: Option<Pin>,
    used: Instant,
    /// What is there as of that moment is compared: it ends when it is told to.
    compares: bool,
}

fn no_fileset() -> Refusal {
    Refusal::new(Code::Other(NO_FILESET), "there is no such fileset (any more), or it is not for this key")
}

fn no_next() -> Refusal {
    Refusal::new(Code::Other(NO_NEXT), "nothing is left to follow")
}

fn root_of(fs: &Fs, fileset: FilesetId) -> Result<Inode, Refusal> {
    fs.filesets().into_iter().map(|(f, _)| f.inode()).find(|root| root.fileset == fileset).ok_or_else(no_fileset)
}

fn failed(e: &FsError) -> Refusal {
    Refusal::new(Code::Failed, e.to_string())
}

fn tail(asked: &Element<'_>, tag: Tag) -> Result<Vec<u8>, Refusal> {
    match asked.bytes(tag)? {
        tail if tail.len() <= TAIL_MAX => Ok(tail.to_vec()),
        _ => Err(Refusal::new(Code::BadRequest, "no key is so long")),
    }
}

impl Source {
    /// For the filesets of `fs`.
    pub fn new(fs: Arc<Fs>) -> Source {
        Source {
            fs,
            sessions: Mutex::default(),
            followers: Mutex::default(),
            waiting: Mutex::default(),
            news: Condvar::new(),
            clock: None,
            places: OnceLock::new(),
        }
    }

    /// Tells the time as well.
    pub fn with_clock(self, clock: fn() -> u64) -> Source {
        Source { clock: Some(clock), ..self }
    }

    /// From now on tells those on this machine who look where it is, and `places` where they are; once only.
    pub fn tell_places(&self, places: Weak<dyn Places>) {
        let _ = self.places.set(places);
    }

    /// Ways to those who follow a fileset, and are there: they may have what is lost here ([`crate::ask_for_bytes`], of their fileset [`MAIN`]).
    pub fn followers(&self, of: FilesetId) -> Vec<Arc<dyn Caller>> {
        let followers = self.followers.lock();
        let follows = |f: &&Follower| f.fileset == of && f.looked.elapsed() < PATIENCE;
        followers.iter().filter(follows).filter_map(|f| f.caller.upgrade()).collect()
    }

    fn note_follower(&self, peer: &Peer, fileset: FilesetId, reply: &Reply) {
        let mut followers = self.followers.lock();
        followers.retain(|f| f.peer != *peer && f.looked.elapsed() < PATIENCE);
        followers.truncate(FOLLOWERS_MAX - 1);
        let caller = Arc::downgrade(&reply.caller());
        followers.push(Follower { peer: peer.clone(), fileset, caller, looked: Instant::now() });
    }

    /// To be called when something may have changed, or its places (then with `all`), so that those who wait look.
    pub fn changed(&self, all: bool) {
        let mut waiting = self.waiting.lock();
        if all {
            waiting.all_since = Some(Instant::now());
        }
        if !waiting.all.is_empty() {
            (waiting.due, waiting.all_due) = (true, waiting.all_due || all);
            self.news.notify_one();
        }
    }

    /// Answers those who wait, on a thread that may be held up by their links, until [`Source::end`].
    pub fn tell_news(&self) {
        let mut waiting = self.waiting.lock();
        loop {
            self.news.wait_while(&mut waiting, |w| !w.due && !w.over);
            if waiting.over {
                return;
            }
            waiting.due = false;
            let (all, newest) = (std::mem::take(&mut waiting.all_due), self.fs.followable());
            let is_due = |w: &mut Waiter| all || w.since < newest || w.reply.is_cancelled();
            let due: Vec<Waiter> = waiting.all.extract_if(.., is_due).collect();
            drop(waiting);
            due.into_iter().for_each(|w| w.reply.send(Message::new(WAIT)));
            waiting = self.waiting.lock();
        }
    }

    /// Ends [`Source::tell_news`].
    pub fn end(&self) {
        self.waiting.lock().over = true;
        self.news.notify_one();
    }

    fn wait(&self, peer: &Peer, command: &Message, reply: Reply) {
        let since = match command.root().uint(SINCE) {
            Ok(since) => Tid(since),
            Err(e) => return reply.refuse(e.into()),
        };
        let mut waiting = self.waiting.lock();
        if waiting.all.len() >= WAITING_MAX {
            drop(waiting);
            return reply.refuse(Refusal::new(Code::Busy, "too many wait for something new"));
        }
        if waiting.all_since.is_some_and(|then| then.elapsed() < JUST_NOW) {
            drop(waiting);
            return reply.send(Message::new(WAIT));
        }
        waiting.all.push(Waiter { peer: peer.clone(), since, reply });
        // (There may be something already; and who waited before may have gone.)
        waiting.due = true;
        self.news.notify_one();
    }

    /// Answers a command of somebody in this process.
    pub fn answer(&self, command: &Message) -> Result<Message, Refusal> {
        self.answer_to(&Who::Memory, command, None)
    }

    /// Answers a command. `within`: to whom there are no other filesets than these; `None`: all.
    pub fn answer_to(&self, who: &Who, command: &Message, within: Option<&[u32]>) -> Result<Message, Refusal> {
        if let Some(within) = within {
            self.check_within(command, within)?;
        }
        match command.tag() {
            LOOK => self.look(who, command),
            PULL => self.pull(who, command),
            END => {
                self.sessions.lock().remove(&(who.clone(), command.root().uint(SESSION)?));
                Ok(Message::new(END))
            }
            DIGEST => self.digest(who, command),
            READ => remembered(&self.fs, command),
            PROVE => self.prove(within.is_none()),
            tag => Err(Refusal::new(Code::Unknown, format!("there is no command {}", tag.0))),
        }
    }

    /// As [`Service::call`], with what the peer may see.
    pub fn serve(&self, peer: &Peer, command: &Message, reply: Reply, within: Option<&[u32]>) {
        if command.tag() == WAIT {
            return match within.map_or(Ok(()), |within| self.check_within(command, within)) {
                Ok(()) => self.wait(peer, command, reply),
                Err(no) => reply.refuse(no),
            };
        }
        let answer = self.answer_to(&peer.who, command, within);
        // (Whoever asks by a name may only want to know.)
        if command.tag() == LOOK
            && answer.is_ok()
            && let Ok(fileset) = command.root().number(FILESET)
        {
            self.note_follower(peer, FilesetId(fileset), &reply);
        }
        reply.finish(answer);
    }

    fn check_within(&self, command: &Message, within: &[u32]) -> Result<(), Refusal> {
        let asked = command.root();
        let named =
            |name: &str| self.fs.filesets().into_iter().find(|(f, _)| f.name == name).map(|(f, _)| f.id.0.into());
        let fileset = match (command.tag(), asked.uint_opt(FILESET)?) {
            (LOOK, None) => asked.text_opt(NAME)?.and_then(named),
            (LOOK | PULL | DIGEST | READ | WAIT, fileset) => fileset,
            _ => return Ok(()),
        };
        match fileset.is_some_and(|fileset: u64| within.iter().any(|id| u64::from(*id) == fileset)) {
            true => Ok(()),
            false => Err(no_fileset()),
        }
    }

    fn look(&self, who: &Who, command: &Message) -> Result<Message, Refusal> {
        let asked = command.root();
        let since = asked.uint_opt(SINCE)?.map(Tid);
        // Who follows it knows its number: it may have another name by now.
        let (number, name) = (asked.uint_opt(FILESET)?, asked.text_opt(NAME)?);
        let is_it = |f: &darner_fs::Fileset| match number {
            Some(number) => u64::from(f.id.0) == number,
            None => Some(f.name.as_str()) == name,
        };
        let found = self.fs.filesets().into_iter().map(|(f, _)| f).find(is_it);
        let found = found.ok_or_else(no_fileset)?;
        let root = found.inode();
        let store = self.fs.store();
        let has = asked.uint_opt(HAS)?.zip(asked.uint_opt(OPENING)?);
        if let Some((at, opening)) = has
            && !self.fs.has_been(Tid(at), opening).map_err(|e| failed(&e))?
        {
            return Err(Refusal::new(Code::Other(NEVER_BEEN), OTHER_PAST));
        }
        // (Without room for that, nobody is told of which opening it is.)
        self.fs.note_opening().unwrap_or_else(|e| {
            tracing::warn!("those who follow can't be told which opening of the store this is: {e}")
        });
        // What a power failure could take back must not be followed.
        if store.durable() < store.tid() && !store.is_read_only() {
            self.fs.sync().map_err(|e| failed(&e))?;
        }
        let newest = self.fs.followable().min(store.durable());
        let mut reply = Message::new(LOOK);
        if let Some(places) = self.places.get().and_then(Weak::upgrade).filter(|_| places::is_here(who)) {
            let at = places::told(&asked)?;
            if !at.is_empty() {
                places.follower(asked.array(UUID)?, at);
            }
            places::tell(&mut reply, &places.own());
        }
        reply.bytes(UUID, &store.uuid()).uint(FILESET, root.fileset.0.into()).text(NAME, &found.name);
        reply.uint(NEWEST, newest.0).bytes(HASH_KEY, &store.hash_key()).uint(OBJECTS, store.objects_end().0);
        if let Some(clock) = self.clock {
            reply.uint(NOW, clock());
        }
        if let Some(was) = self.fs.was().map_err(|e| failed(&e))?.filter(|_| root == ROOT) {
            reply.uint(WAS_SHOWN, was.shown.0);
            for up in was.of {
                reply.group(WAS, |of| {
                    of.bytes(UUID, &up.source).uint(FILESET, up.fileset.0.into());
                    of.uint(AT, up.at.0).uint(OPENING, up.opening);
                });
            }
        }
        if let Some(since) = asked.uint_opt(OPENINGS_SINCE)? {
            let openings = self.fs.openings(Tid(since), newest).map_err(|e| failed(&e))?;
            reply.attach(OPENINGS, encode_openings(&openings));
        }
        if let Some(since) = since.filter(|since| *since < newest) {
            let mut between = false;
            let mut last = since;
            let step = (newest.0 - since.0) / POINTS;
            for n in (1..POINTS).filter(|_| newest.0 - since.0 > AWAY) {
                let at = Tid(since.0 + n * step);
                match self.fs.shown(root.fileset, at).map_err(|e| failed(&e))? {
                    Some(kept) if kept > last => {
                        reply.uint(POINT, kept.0);
                        (last, between) = (kept, true);
                    }
                    _ => {}
                }
            }
            if let Some(session) = asked.uint_opt(SESSION)?.filter(|_| !between) {
                let wanted = Wanted {
                    from: Vec::new(),
                    to: Vec::new(),
                    since,
                    at: newest,
                    room: asked.uint(ROOM)?.min(ROOM_MAX) as usize,
                };
                // (Who gets none asks for it, and is told why not.)
                if let Ok(part) = self.part(&(who.clone(), session), root.fileset, true, wanted) {
                    tell_part(&mut reply, part);
                }
            }
        }
        Ok(reply)
    }

    /// The session for a moment; `begins`: if there is none, one is begun.
    fn session(
        &self,
        id: &(Who, u64),
        fileset: FilesetId,
        at: Tid,
        begins: bool,
    ) -> Result<Arc<Mutex<Session>>, Refusal> {
        let mut sessions = self.sessions.lock();
        sessions.retain(|_, s| s.try_lock().is_none_or(|s| s.used.elapsed() < PATIENCE));
        if let Some(found) = sessions.get(id) {
            // One pull at a time: whoever asks for another moment has begun another.
            if found.try_lock().is_some_and(|s| (s.root.fileset, s.at) == (fileset, at)) {
                return Ok(found.clone());
            }
        }
        if !begins {
            return Err(no_next());
        }
        if sessions.len() >= SESSIONS_MAX && !sessions.contains_key(id) {
            return Err(Refusal::new(Code::Busy, "too many mirrors pull at the same time"));
        }
        let root = root_of(&self.fs, fileset)?;
        if at > self.fs.followable() {
            return Err(Refusal::new(Code::Other(NOT_KEPT), "this moment has not been yet"));
        }
        let pin = self.fs.pin(Node::AsOf(root, at));
        let pin = pin.map_err(|e| Refusal::new(Code::Other(NOT_KEPT), e.to_string()))?;
        let session = Session { root, at, sent: Sent::default(), _pin: pin, used: Instant::now(), compares: false };
        let session = Arc::new(Mutex::new(session));
        sessions.insert(id.clone(), session.clone());
        Ok(session)
    }

    fn digest(&self, who: &Who, command: &Message) -> Result<Message, Refusal> {
        let asked = command.root();
        let digesting = Digesting {
            from: tail(&asked, FROM)?,
            to: tail(&asked, TO)?,
            at: Tid(asked.uint(AT)?),
            run: asked.uint(RUN)?,
            max: asked.uint(MAX)?,
            data: asked.uint(DATA)? != 0,
        };
        let id = (who.clone(), asked.uint(SESSION)?);
        let session = self.session(&id, FilesetId(asked.number(FILESET)?), digesting.at, true)?;
        let mut session = session.lock();
        session.compares = true;
        let mut damaged = Damaged::default();
        let found = self.fs.digests(session.root, &digesting, Some(&mut damaged)).map_err(|e| failed(&e))?;
        session.used = Instant::now();
        let mut reply = Message::new(DIGEST);
        for what in &damaged.healed {
            reply.text(FOUND, what);
        }
        reply.attach(ITEMS, found.encode());
        Ok(reply)
    }

    /// `all`: whoever asks may see the keys of all filesets.
    fn prove(&self, all: bool) -> Result<Message, Refusal> {
        let (versions, wrong) = self.fs.store().prove_newest().map_err(|e| failed(&e.into()))?;
        let mut reply = Message::new(PROVE);
        reply.uint(VERSIONS, versions);
        match all {
            true => {
                for what in &wrong {
                    reply.text(FOUND, what);
                }
            }
            false if wrong.is_empty() => {}
            false => {
                reply.text(FOUND, &format!("{} blocks of its index claim to be older than they are", wrong.len()));
            }
        }
        Ok(reply)
    }

    fn pull(&self, who: &Who, command: &Message) -> Result<Message, Refusal> {
        let asked = command.root();
        let from = asked.find(FROM).map(|_| tail(&asked, FROM)).transpose()?;
        let (to, since, at) = (tail(&asked, TO)?, Tid(asked.uint(SINCE)?), Tid(asked.uint(AT)?));
        let room = asked.uint(ROOM)?.min(ROOM_MAX) as usize;
        let id = (who.clone(), asked.uint(SESSION)?);
        let begins = from.is_some();
        let wanted = Wanted { from: from.unwrap_or_default(), to, since, at, room };
        let part = self.part(&id, FilesetId(asked.number(FILESET)?), begins, wanted)?;
        let mut reply = Message::new(PULL);
        tell_part(&mut reply, part);
        Ok(reply)
    }

    /// What changed, and from where on that is. Unless it `begins`, it goes on where the part before ended.
    fn part(
        &self,
        id: &(Who, u64),
        fileset: FilesetId,
        begins: bool,
        wanted: Wanted,
    ) -> Result<(Vec<u8>, Part), Refusal> {
        let session = self.session(id, fileset, wanted.at, begins)?;
        let mut session = session.lock();
        session.used = Instant::now();
        let root = session.root;
        let from = match begins {
            true => wanted.from,
            false => session.sent.end().map(<[u8]>::to_vec).ok_or_else(no_next)?,
        };
        let wanted = Wanted { from, ..wanted };
        let part = self.fs.changes(root, &wanted, &mut session.sent).map_err(|e| failed(&e))?;
        if part.next.is_none() && wanted.to.is_empty() && !session.compares {
            // (Should this answer be lost, it is asked for anew.)
            drop(session);
            self.sessions.lock().remove(id);
        }
        Ok((wanted.from, part))
    }
}

fn tell_part(reply: &mut Message, (from, part): (Vec<u8>, Part)) {
    reply.bytes(FROM, &from);
    if let Some(next) = &part.next {
        reply.bytes(NEXT, next);
    }
    reply.attach(ITEMS, part.items);
}

/// Bytes of the past or present that somebody has lost.
fn remembered(fs: &Fs, command: &Message) -> Result<Message, Refusal> {
    let asked = command.root();
    let fileset = FilesetId(asked.number(FILESET)?);
    let root = root_of(fs, fileset)?;
    let (object, offset, len) = (ObjectId(asked.uint(OBJECT)?), asked.uint(OFFSET)?, asked.uint(LEN)?);
    if len > ROOM_MAX || offset.checked_add(len).is_none() {
        return Err(Refusal::new(Code::BadRequest, "no extent is so long"));
    }
    let (tid, attempt) = (Tid(asked.uint(TID)?), asked.uint(ATTEMPT)?);
    let bytes = fs.remembered(root, object, offset..offset + len, tid, attempt).map_err(|e| failed(&e))?;
    let mut reply = Message::new(READ);
    if let Some(bytes) = bytes {
        reply.attach(ITEMS, bytes);
    }
    Ok(reply)
}

impl Service for Source {
    fn call(&self, peer: &Peer, command: Message, reply: Reply) {
        self.serve(peer, &command, reply, None);
    }

    fn closed(&self, peer: &Peer, _: &Reason) {
        self.followers.lock().retain(|f| f.peer != *peer);
        // (Of another link of theirs, it is asked for anew.)
        let gone: Vec<Waiter> = self.waiting.lock().all.extract_if(.., |w| w.peer == *peer).collect();
        drop(gone);
    }
}
