//! The side that follows.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use darner_fs::{Changed, FilesetId, Following, Fs, FsError, ObjectId, Opening, Part, Tid, Upstream, Wanted, Was};
use darner_syslink::{CallError, Caller, Code, Message, ReadError};

use crate::parts::{Parts, taken};
use crate::places;
use crate::protocol::{
    AT, AWAY, FILESET, HAS, HASH_KEY, ITEMS, LOOK, NAME, NEWEST, NOT_KEPT, NOW, OBJECTS, OPENING, OPENINGS, POINT,
    ROOM, SESSION, SINCE, UUID, WAIT, WAS, WAS_SHOWN, decode_openings,
};

/// How long one answer may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// Bytes asked for at a time. (With the last item, which may go beyond, it is less than what links use memory again for.)
pub const ROOM_WANTED: u64 = 940 << 10;
/// Parts that are under way at a time, besides the one that is being done.
pub(crate) const AHEAD: usize = 3;

/// Why a pull did not come to its end. What was pulled stays, and the next one goes on there.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The source did not answer, or said no.
    #[error("{0}")]
    Source(#[from] CallError),
    /// What it said makes no sense.
    #[error("the source's answer makes no sense: {0}")]
    Answer(String),
    /// It can't be done here.
    #[error("{0}")]
    Here(#[from] FsError),
    /// What it follows is elsewhere.
    #[error("{0}")]
    Other(String),
}

impl Failure {
    /// Whether the source does not keep the moment (any more): then a pull leads to one that it does.
    pub fn is_not_kept(&self) -> bool {
        matches!(self, Failure::Source(CallError::Refused(no)) if no.code == Code::Other(NOT_KEPT))
    }

    /// Whether there is no room here.
    pub fn is_full(&self) -> bool {
        matches!(self, Failure::Here(e) if e.is_full())
    }

    /// Whether trying again soon may help.
    pub fn is_passing(&self) -> bool {
        match self {
            Failure::Source(CallError::Refused(no)) => {
                matches!(no.code, Code::Busy | Code::Failed | Code::Cancelled | Code::TooLate)
            }
            Failure::Source(_) | Failure::Here(_) => true,
            Failure::Answer(_) | Failure::Other(_) => false,
        }
    }
}

impl From<ReadError> for Failure {
    fn from(e: ReadError) -> Failure {
        Failure::Answer(e.to_string())
    }
}

/// Which fileset of a source.
#[derive(Clone, Copy, Debug)]
pub enum Which<'a> {
    /// By its name.
    Named(&'a str),
    /// By its number, whatever its name is by now.
    Number(FilesetId),
}

/// What a source says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Looked {
    /// The store.
    pub uuid: [u8; 16],
    /// The fileset.
    pub fileset: FilesetId,
    /// Its name.
    pub name: String,
    /// The newest moment that can be had.
    pub newest: Tid,
    /// The key by which it orders directories: a mirror must have the same.
    pub hash_key: [u8; 16],
    /// The number that its next object gets.
    pub objects: ObjectId,
    /// Moments before it that are kept.
    pub points: Vec<Tid>,
    /// What it followed, if it was promoted.
    pub was: Option<Was>,
    /// Its clock, nanoseconds since 1970.
    pub now: Option<u64>,
    /// The first part of what changed, where it came along.
    pub first: Option<Part>,
    /// Paths at which the store is, if it is on this machine.
    pub places: Vec<PathBuf>,
    /// By which openings its moments came to be, if that was asked for.
    pub openings: Option<Vec<Opening>>,
}

/// What a pull did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pulled {
    /// The source's moment that is shown now.
    pub at: Tid,
    /// What changed here.
    pub changed: Changed,
    /// Bytes that came.
    pub bytes: u64,
    /// Moments that were made whole.
    pub moments: u64,
    /// Whether all is there that the source had when it was asked.
    pub complete: bool,
    /// The source's clock (ns since 1970), if it told, and when it did.
    pub clock: Option<(u64, Instant)>,
}

/// What a mirror does about where it is, and where its source is.
struct Whereabouts {
    own: Vec<PathBuf>,
    told: Told,
}

/// Gets the paths at which a source is.
type Told = Box<dyn Fn(&[PathBuf]) + Send + Sync>;

/// Follows a fileset over a link.
pub struct Puller {
    pub(crate) fs: Arc<Fs>,
    pub(crate) source: Arc<dyn Caller>,
    pub(crate) session: u64,
    pub(crate) room: u64,
    /// Parts that are asked for before those before them are done.
    pub(crate) ahead: usize,
    /// Called after each part, with its bytes; may wait (a limit of bandwidth), or say that it is enough for now.
    pub(crate) between: Box<dyn Fn(u64) -> bool + Send + Sync>,
    places: Option<Whereabouts>,
}

impl Puller {
    /// For a mirror `fs`; `session`: a number that no other puller of the source has.
    pub fn new(fs: Arc<Fs>, source: Arc<dyn Caller>, session: u64) -> Puller {
        Puller { fs, source, session, room: ROOM_WANTED, ahead: AHEAD, between: Box::new(|_| true), places: None }
    }

    /// Asks for so much at a time.
    pub fn with_room(self, room: u64) -> Puller {
        Puller { room, ..self }
    }

    /// Asks for so many parts before those before them are done.
    pub fn with_ahead(self, ahead: usize) -> Puller {
        Puller { ahead, ..self }
    }

    /// Calls this after each part, with the bytes of it: false ends the pull there.
    pub fn with_pause(self, between: Box<dyn Fn(u64) -> bool + Send + Sync>) -> Puller {
        Puller { between, ..self }
    }

    /// Tells a source on this machine that the mirror is reached at `own`; `told` gets the paths at which the source is.
    pub fn with_places(self, own: Vec<PathBuf>, told: Told) -> Puller {
        Puller { places: Some(Whereabouts { own, told }), ..self }
    }

    /// Asks what there is.
    pub fn look(source: &dyn Caller, which: Which<'_>, since: Option<Tid>) -> Result<Looked, Failure> {
        Puller::ask(source, question(which, since))
    }

    /// What asks a source to answer as soon as there is something newer in the fileset than `since`, with no fields. A source of before that
    /// does not know the command.
    pub fn wait(fileset: FilesetId, since: Tid) -> Message {
        let mut ask = Message::new(WAIT);
        ask.uint(FILESET, fileset.0.into()).uint(SINCE, since.0);
        ask
    }

    /// Looks, and pulls nothing: each side knows then where the other one is.
    pub fn meet(&self) -> Result<(), Failure> {
        let Some(f) = self.fs.following() else { return Err(Failure::Other("this is no mirror".into())) };
        self.look_at_source(&f, None, None).map(drop)
    }

    /// Looks at what is followed; refuses what that is not. `begin`: the session and the room of a pull from `since` on, whose first part is
    /// to come along.
    fn look_at_source(&self, f: &Following, since: Option<Tid>, begin: Option<(u64, u64)>) -> Result<Looked, Failure> {
        let mut ask = question(Which::Number(f.fileset), since);
        let (at, opening) = f.newest();
        ask.uint(HAS, at.0).uint(OPENING, opening);
        if let Some((session, room)) = begin {
            ask.uint(SESSION, session).uint(ROOM, room);
        }
        if let Some(places) = &self.places {
            ask.bytes(UUID, &self.fs.store().uuid());
            places::tell(&mut ask, &places.own);
        }
        let looked = Puller::ask(&*self.source, ask)?;
        if (looked.uuid, looked.fileset) != (f.source, f.fileset) {
            let of = if looked.uuid == f.source { "another fileset of the same name" } else { "another store" };
            return Err(Failure::Other(format!(
                "this is a mirror of {:?} of a store, but what answers is {of}",
                f.name
            )));
        }
        if let Some(places) = self.places.as_ref().filter(|_| !looked.places.is_empty()) {
            (places.told)(&looked.places);
        }
        Ok(looked)
    }

    pub(crate) fn ask(source: &dyn Caller, ask: Message) -> Result<Looked, Failure> {
        let begins = ask.root().find(SESSION).is_some();
        let reply = source.call(ask, Some(PATIENCE))?;
        let told = reply.root();
        let begins = begins && told.find(ITEMS).is_some();
        let points = told.all(POINT).map(|e| e.as_uint().map(Tid)).collect::<Result<Vec<_>, _>>()?;
        let of = told.all(WAS).map(|up| {
            Ok::<_, ReadError>(Upstream {
                source: up.array(UUID)?,
                fileset: FilesetId(up.number(FILESET)?),
                at: Tid(up.uint(AT)?),
                opening: up.uint_opt(OPENING)?.unwrap_or(0),
            })
        });
        let of = of.collect::<Result<Vec<_>, _>>()?;
        let was = told.uint_opt(WAS_SHOWN)?.map(|shown| Was { shown: Tid(shown), of });
        let openings = told.find(OPENINGS).map(|_| {
            decode_openings(reply.buffer(OPENINGS)?)
                .ok_or_else(|| Failure::Answer("its openings are in no known form".into()))
        });
        let openings = openings.transpose()?;
        let looked = Looked {
            was,
            uuid: told.array(UUID)?,
            fileset: FilesetId(told.number(FILESET)?),
            name: told.text(NAME)?.to_string(),
            newest: Tid(told.uint(NEWEST)?),
            hash_key: told.array(HASH_KEY)?,
            objects: ObjectId(told.uint(OBJECTS)?),
            points,
            now: told.uint_opt(NOW)?,
            first: None,
            places: places::told(&told)?,
            openings,
        };
        let first = begins.then(|| taken(reply)).transpose()?;
        Ok(Looked { first: first.filter(|(from, _)| from.is_empty()).map(|(_, part)| part), ..looked })
    }

    /// Brings the mirror up to the source, as it is now.
    pub fn pull(&self) -> Result<Pulled, Failure> {
        let Some(f) = self.fs.following() else { return Err(Failure::Other("this is no mirror".into())) };
        let since = Some(f.at).filter(|at| *at != Tid::ZERO);
        let begin = Some((self.session, self.room)).filter(|_| since.is_some() && f.is_whole());
        let looked = self.look_at_source(&f, since, begin)?;
        if looked.hash_key != self.fs.store().hash_key() {
            return Err(Failure::Other("the source orders its directories by another key than this store".into()));
        }
        let clock = looked.now.map(|now| (now, Instant::now()));
        let mut done = Pulled { at: f.at, clock, ..Pulled::default() };
        if looked.newest <= f.at && f.is_whole() {
            return Ok(Pulled { complete: true, ..done });
        }
        let away = looked.newest.0.saturating_sub(f.at.0) > AWAY;
        // (It is since what was there when it was asked for.)
        let first = looked.first.filter(|_| !away || looked.points.is_empty());
        for point in looked.points.into_iter().filter(|p| away && *p > f.at.max(f.target) && *p < looked.newest) {
            match self.pull_to(f.fileset, point, None, looked.objects, &mut done) {
                // It was given up meanwhile: then the next one.
                Err(Failure::Source(CallError::Refused(no))) if no.code == Code::Other(NOT_KEPT) => {}
                Ok(true) => {}
                Ok(false) => return Ok(done),
                Err(e) => return Err(e),
            }
        }
        done.complete = self.pull_to(f.fileset, looked.newest, first, looked.objects, &mut done)?;
        Ok(done)
    }

    /// As [`Puller::pull`], for somebody who waits: what is shown is durable when it returns. `meanwhile` is called before, when
    /// it is shown.
    pub fn pull_durably(&self, meanwhile: &mut dyn FnMut(&Pulled)) -> Result<Pulled, Failure> {
        let done = self.pull()?;
        meanwhile(&done);
        // (Also where there was nothing to pull: what came before may not be durable yet.)
        self.fs.sync()?;
        Ok(done)
    }

    /// Says whether it got there. `objects`: numbers from there on are new.
    fn pull_to(
        &self,
        fileset: FilesetId,
        to: Tid,
        mut first: Option<Part>,
        objects: ObjectId,
        done: &mut Pulled,
    ) -> Result<bool, Failure> {
        let mut f = self.fs.begin_pull(to)?;
        while let Some(wanted) = f.wanted() {
            let wanted = Wanted { room: self.room as usize, ..wanted };
            let parts = Parts::new(&*self.source, self.session, fileset, wanted, self.ahead);
            let mut parts = parts.with_first(first.take());
            while let Some((wanted, part)) = parts.next()? {
                let bytes = part.items.len() as u64;
                done.changed.extend(self.fs.apply(&wanted, &part)?);
                done.bytes += bytes;
                f = self.fs.following().ok_or_else(|| Failure::Other("it was promoted meanwhile".into()))?;
                if !(self.between)(bytes) {
                    return Ok(false);
                }
            }
        }
        // (What came was to be told apart by its numbers from what had been here.)
        self.fs.store().raise_objects(ObjectId(objects.0.min(1 << 44)));
        self.fs.finish_pull()?;
        done.at = to;
        done.moments += 1;
        Ok(true)
    }
}

pub(crate) fn question(which: Which<'_>, since: Option<Tid>) -> Message {
    let mut ask = Message::new(LOOK);
    match which {
        Which::Named(name) => ask.text(NAME, name),
        Which::Number(fileset) => ask.uint(FILESET, fileset.0.into()),
    };
    if let Some(since) = since {
        ask.uint(SINCE, since.0);
    }
    ask
}
