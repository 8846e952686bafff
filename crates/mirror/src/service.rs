//! The side that is followed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use darner_fs::{Digesting, FilesetId, Fs, FsError, Inode, Node, ObjectId, ROOT, Sent, Tid, Wanted};
use darner_store::Pin;
use darner_syslink::{Code, Element, Message, Peer, Refusal, Reply, Service, Tag};
use parking_lot::Mutex;

use crate::protocol::{
    AT, ATTEMPT, DATA, DIGEST, END, FILESET, FOUND, FROM, HASH_KEY, ITEMS, LEN, LOOK, MAX, NAME, NEWEST, NEXT,
    NO_FILESET, NO_NEXT, NOT_KEPT, OBJECT, OBJECTS, OFFSET, POINT, PROVE, PULL, READ, ROOM, RUN, SESSION, SINCE, TID,
    TO, UUID, VERSIONS, WAS_AT, WAS_FILESET, WAS_SHOWN, WAS_SOURCE,
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

/// Answers those who follow filesets of a filesystem.
pub struct Source {
    fs: Arc<Fs>,
    sessions: Mutex<HashMap<u64, Arc<Mutex<Session>>>>,
}

struct Session {
    root: Inode,
    at: Tid,
    sent: Sent,
    /// Keeps the moment while it is pulled.
    _pin: Option<Pin>,
    used: Instant,
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
        Source { fs, sessions: Mutex::default() }
    }

    /// Answers a command.
    pub fn answer(&self, command: &Message) -> Result<Message, Refusal> {
        match command.tag() {
            LOOK => self.look(command),
            PULL => self.pull(command),
            END => {
                self.sessions.lock().remove(&command.root().uint(SESSION)?);
                Ok(Message::new(END))
            }
            DIGEST => self.digest(command),
            READ => self.read(command),
            PROVE => self.prove(),
            tag => Err(Refusal::new(Code::Unknown, format!("there is no command {}", tag.0))),
        }
    }

    fn look(&self, command: &Message) -> Result<Message, Refusal> {
        let asked = command.root();
        let since = asked.uint_opt(SINCE)?.map(Tid);
        // Who follows it knows its number: it may have another name by now.
        let (number, name) = (asked.uint_opt(FILESET)?, asked.text_opt(NAME)?);
        let is_it = |f: &darner_fs::Fileset| match number {
            Some(number) => u64::from(f.id.0) == number,
            None => Some(f.name.as_str()) == name,
        };
        let found = self.fs.filesets().into_iter().map(|(f, _)| f).find(is_it);
        let found =
            found.ok_or_else(|| Refusal::new(Code::Other(NO_FILESET), "there is no such fileset (any more)"))?;
        let root = found.inode();
        let store = self.fs.store();
        // What a power failure could take back must not be followed.
        if store.durable() < store.tid() && !store.is_read_only() {
            self.fs.sync().map_err(|e| failed(&e))?;
        }
        let newest = self.fs.followable().min(store.durable());
        let mut reply = Message::new(LOOK);
        reply.bytes(UUID, &store.uuid()).uint(FILESET, root.fileset.0.into()).text(NAME, &found.name);
        reply.uint(NEWEST, newest.0).bytes(HASH_KEY, &store.hash_key()).uint(OBJECTS, store.objects_end().0);
        if let Some(was) = self.fs.was().map_err(|e| failed(&e))?.filter(|_| root == ROOT) {
            reply.bytes(WAS_SOURCE, &was.source).uint(WAS_FILESET, was.fileset.0.into());
            reply.uint(WAS_AT, was.at.0).uint(WAS_SHOWN, was.shown.0);
        }
        if let Some(since) = since.filter(|since| *since < newest) {
            let mut last = since;
            let step = (newest.0 - since.0) / POINTS;
            for n in 1..POINTS {
                let at = Tid(since.0 + n * step);
                match self.fs.shown(root.fileset, at).map_err(|e| failed(&e))? {
                    Some(kept) if kept > last => {
                        reply.uint(POINT, kept.0);
                        last = kept;
                    }
                    _ => {}
                }
            }
        }
        Ok(reply)
    }

    fn session(&self, id: u64, fileset: FilesetId, at: Tid) -> Result<Arc<Mutex<Session>>, Refusal> {
        let mut sessions = self.sessions.lock();
        sessions.retain(|_, s| s.try_lock().is_none_or(|s| s.used.elapsed() < PATIENCE));
        if let Some(found) = sessions.get(&id) {
            // One pull at a time: whoever asks for another moment has begun another.
            if found.try_lock().is_some_and(|s| (s.root.fileset, s.at) == (fileset, at)) {
                return Ok(found.clone());
            }
        }
        if sessions.len() >= SESSIONS_MAX && !sessions.contains_key(&id) {
            return Err(Refusal::new(Code::Busy, "too many mirrors pull at the same time"));
        }
        let known = self.fs.filesets().into_iter().map(|(f, _)| f.inode()).find(|root| root.fileset == fileset);
        let root = known.ok_or_else(|| Refusal::new(Code::Other(NO_FILESET), "the fileset has been removed"))?;
        if at > self.fs.followable() {
            return Err(Refusal::new(Code::Other(NOT_KEPT), "this moment has not been yet"));
        }
        let pin = self.fs.pin(Node::AsOf(root, at));
        let pin = pin.map_err(|e| Refusal::new(Code::Other(NOT_KEPT), e.to_string()))?;
        let session = Session { root, at, sent: Sent::default(), _pin: pin, used: Instant::now() };
        let session = Arc::new(Mutex::new(session));
        sessions.insert(id, session.clone());
        Ok(session)
    }

    fn digest(&self, command: &Message) -> Result<Message, Refusal> {
        let asked = command.root();
        let digesting = Digesting {
            from: tail(&asked, FROM)?,
            to: tail(&asked, TO)?,
            at: Tid(asked.uint(AT)?),
            run: asked.uint(RUN)?,
            max: asked.uint(MAX)?,
            data: asked.uint(DATA)? != 0,
        };
        let session = self.session(asked.uint(SESSION)?, FilesetId(asked.number(FILESET)?), digesting.at)?;
        let mut session = session.lock();
        let found = self.fs.digests(session.root, &digesting).map_err(|e| failed(&e))?;
        session.used = Instant::now();
        let mut reply = Message::new(DIGEST);
        reply.attach(ITEMS, found.encode());
        Ok(reply)
    }

    fn read(&self, command: &Message) -> Result<Message, Refusal> {
        let asked = command.root();
        let fileset = FilesetId(asked.number(FILESET)?);
        let root = self.fs.filesets().into_iter().map(|(f, _)| f.inode()).find(|root| root.fileset == fileset);
        let root = root.ok_or_else(|| Refusal::new(Code::Other(NO_FILESET), "there is no such fileset (any more)"))?;
        let (object, offset, len) = (ObjectId(asked.uint(OBJECT)?), asked.uint(OFFSET)?, asked.uint(LEN)?);
        if len > ROOM_MAX || offset.checked_add(len).is_none() {
            return Err(Refusal::new(Code::BadRequest, "no extent is so long"));
        }
        let (tid, attempt) = (Tid(asked.uint(TID)?), asked.uint(ATTEMPT)?);
        let bytes = self.fs.remembered(root, object, offset..offset + len, tid, attempt).map_err(|e| failed(&e))?;
        let mut reply = Message::new(READ);
        if let Some(bytes) = bytes {
            reply.attach(ITEMS, bytes);
        }
        Ok(reply)
    }

    fn prove(&self) -> Result<Message, Refusal> {
        let (versions, wrong) = self.fs.store().prove_newest().map_err(|e| failed(&e.into()))?;
        let mut reply = Message::new(PROVE);
        reply.uint(VERSIONS, versions);
        for what in &wrong {
            reply.text(FOUND, what);
        }
        Ok(reply)
    }

    fn pull(&self, command: &Message) -> Result<Message, Refusal> {
        let asked = command.root();
        let from = asked.find(FROM).map(|_| tail(&asked, FROM)).transpose()?;
        let (to, since, at) = (tail(&asked, TO)?, Tid(asked.uint(SINCE)?), Tid(asked.uint(AT)?));
        let room = asked.uint(ROOM)?.min(ROOM_MAX) as usize;
        let session = self.session(asked.uint(SESSION)?, FilesetId(asked.number(FILESET)?), at)?;
        let mut session = session.lock();
        session.used = Instant::now();
        let root = session.root;
        let next = || session.sent.end().map(<[u8]>::to_vec);
        let from = from.or_else(next).ok_or_else(|| Refusal::new(Code::Other(NO_NEXT), "nothing is left to follow"))?;
        let wanted = Wanted { from, to, since, at, room };
        let part = self.fs.changes(root, &wanted, &mut session.sent).map_err(|e| failed(&e))?;
        let mut reply = Message::new(PULL);
        reply.bytes(FROM, &wanted.from);
        if let Some(next) = &part.next {
            reply.bytes(NEXT, next);
        }
        reply.attach(ITEMS, part.items);
        Ok(reply)
    }
}

impl Service for Source {
    fn call(&self, _: &Peer, command: Message, reply: Reply) {
        reply.finish(self.answer(&command));
    }
}
