//! Mirrors: a store whose main fileset follows a fileset of another store. docs/format.md §Mirrors.
//!
//! A *pull* brings it from one moment of its source to a later one, in many transactions; how far it has come is in its own
//! record, with each of them. Where a pull was cut, the next one goes on, to a newer moment: what is behind the cut changed
//! since the last whole pull, what is before it since the one that was cut. So a record has *pieces*: ranges of keys, and
//! the moment of the source that each is as of. A pull is whole when there is one piece.
//!
//! What a mirror shows is always as of a whole pull: its head ([`Fs::head`]), and its past, which rounds down to them. The
//! transactions of a pull come right before the moment they are for, so that retained points don't fall between them.
//!
//! Invariants: while it follows, nobody else changes the fileset's objects; the head is pinned.

mod apply;
mod back;
mod item;
mod openings;
mod source;
mod verify;

use std::sync::atomic::{AtomicU64, Ordering};

use darner_store::{FilesetId, Kind, ObjectId, Pin, Tid, split_tail};

pub use back::Was;
pub use openings::Opening;
pub use source::{Part, Sent, Wanted};
pub use verify::{Damaged, Digest, Digesting, Digests, UNREADABLE};

use crate::change::SMALL;
use crate::codec::{Reader, put_bytes, put_varint};
use crate::error::{FsError, Result, refuse};
use crate::fs::Fs;
use crate::node::{Inode, MAIN, ROOT};
use crate::whereabouts::Settled;

/// The object whose MIRROR record says how far a mirror has come. No file has its number.
pub(crate) const BOOKS: ObjectId = ObjectId(u64::MAX);
const VERSION: u8 = 2;
/// Transactions of a pull are this much older than its moment at the most.
const WINDOW: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;
/// Numbers of objects left out when a mirror becomes a source: its old source may have given them since.
const OBJECTS_APART: u64 = 1 << 20;
/// Most pieces that a record has: cuts beyond make it begin anew further ahead.
const PIECES_MAX: u64 = 1000;
/// Stores further up of which a mirror knows, at most.
const UPSTREAM_MAX: usize = 16;

/// Names that are told of a change, at most.
const NAMES_MAX: usize = 10_000;

/// What a pull changed here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Objects.
    pub objects: Vec<Inode>,
    /// Names in directories, some ten thousand at most.
    pub names: Vec<(Inode, Vec<u8>)>,
}

impl Changed {
    /// Takes in what else has changed.
    pub fn extend(&mut self, more: Changed) {
        self.objects.extend(more.objects);
        let room = NAMES_MAX.saturating_sub(self.names.len());
        self.names.extend(more.names.into_iter().take(room));
    }
}

/// The tail with which an object's keys begin.
pub(crate) fn tail_of(object: u64) -> [u8; 8] {
    object.to_be_bytes()
}

/// Whether a key is part of what is followed: not labels and the like.
fn is_mirrored(tail: &[u8]) -> bool {
    split_tail(tail).is_some_and(|(object, kind, _)| match object {
        ObjectId(0) | BOOKS => false,
        _ => matches!(kind, Kind::ATTR | Kind::TARGET | Kind::XATTR | Kind::DIRENT | Kind::EXTENT),
    })
}

/// A store that is followed, directly or by way of others, and how far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// The store.
    pub source: [u8; 16],
    /// The fileset of it.
    pub fileset: FilesetId,
    /// The moment of it that the one who follows has.
    pub at: Tid,
    /// By which opening of it that came to be; 0: it is not known.
    pub opening: u64,
}

impl Upstream {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.source);
        put_varint(out, self.fileset.0.into());
        put_varint(out, self.at.0);
        out.extend_from_slice(&self.opening.to_le_bytes());
    }

    fn decode(from: &mut Reader<'_>) -> Option<Upstream> {
        Some(Upstream {
            source: from.take(16)?.try_into().ok()?,
            fileset: FilesetId(from.varint32()?),
            at: Tid(from.varint()?),
            opening: u64::from_le_bytes(from.take(8)?.try_into().ok()?),
        })
    }
}

/// What a mirror follows, and how far it has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Following {
    /// The store that it follows.
    pub source: [u8; 16],
    /// The fileset of it.
    pub fileset: FilesetId,
    /// Its name when it was last heard of.
    pub name: String,
    /// Where that store was reached when it was first followed: the path of a volume ([`Fs::source_at`] has where it is by now).
    pub origin: String,
    /// It follows no more, since it was promoted.
    pub promoted: bool,
    /// It is not to pull for now.
    pub paused: bool,
    /// The source's moment that is shown; zero: none yet.
    pub at: Tid,
    /// The transaction here that made that whole.
    pub shown: Tid,
    /// The moment of the pull under way.
    pub target: Tid,
    /// The tid here that it is to end with.
    aim: Tid,
    /// Ends of ranges of tails, ascending, the last one empty; and the moments that they are as of.
    pieces: Vec<(Vec<u8>, Tid)>,
    /// By which opening of the source the newest moment of it came to be of which anything is here; 0: it is not known.
    opening: u64,
    /// What the source follows in its turn, nearest first, as of that moment.
    above: Vec<Upstream>,
}

impl Following {
    /// Whether no pull is under way.
    pub fn is_whole(&self) -> bool {
        matches!(self.pieces.as_slice(), [(_, since)] if *since == self.at)
    }

    /// All whose changes come here, from the source on.
    fn upstream(&self) -> Vec<Upstream> {
        let source = Upstream { source: self.source, fileset: self.fileset, at: self.at, opening: self.opening };
        std::iter::once(source).chain(self.above.iter().copied()).collect()
    }

    /// The newest moment of the source of which anything is here, and by which opening of that it came to be.
    pub fn newest(&self) -> (Tid, u64) {
        (self.pieces.iter().map(|(_, since)| *since).max().unwrap_or_default(), self.opening)
    }

    /// What is to be asked for next, but for how much at a time.
    pub fn wanted(&self) -> Option<Wanted> {
        let mut from = &Vec::new();
        for (end, since) in &self.pieces {
            if *since < self.target {
                return Some(Wanted { from: from.clone(), to: end.clone(), since: *since, at: self.target, room: 0 });
            }
            from = end;
        }
        None
    }

    /// All from where something is wanted up to `end` is there (`None`: all there is).
    fn advance(&mut self, end: Option<&[u8]>) {
        let Some(i) = self.pieces.iter().position(|(_, since)| *since < self.target) else { return };
        let is_there = |piece: &[u8]| end.is_none_or(|end| !piece.is_empty() && piece <= end);
        let there = self.pieces[i..].iter().take_while(|(piece, _)| is_there(piece)).count();
        self.pieces.splice(i..i + there, [(end.unwrap_or_default().to_vec(), self.target)]);
        let mut joined: Vec<(Vec<u8>, Tid)> = Vec::new();
        for (end, since) in self.pieces.drain(..) {
            match joined.last_mut().filter(|last| last.1 == since) {
                Some(last) => last.0 = end,
                None => joined.push((end, since)),
            }
        }
        self.pieces = joined;
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION, u8::from(self.promoted) | u8::from(self.paused) << 1];
        out.extend_from_slice(&self.source);
        put_varint(&mut out, self.fileset.0.into());
        put_bytes(&mut out, self.name.as_bytes());
        put_bytes(&mut out, self.origin.as_bytes());
        for n in [self.at.0, self.shown.0, self.target.0, self.aim.0, self.pieces.len() as u64] {
            put_varint(&mut out, n);
        }
        for (end, since) in &self.pieces {
            put_bytes(&mut out, end);
            put_varint(&mut out, since.0);
        }
        out.extend_from_slice(&self.opening.to_le_bytes());
        put_varint(&mut out, self.above.len() as u64);
        self.above.iter().for_each(|up| up.encode(&mut out));
        out
    }

    fn decode(value: &[u8], tid: Tid) -> Option<Following> {
        let mut from = Reader(value);
        let version = from.byte().filter(|version| (1..=VERSION).contains(version))?;
        let flags = from.byte().filter(|flags| *flags < 4)?;
        let (promoted, paused) = (flags & 1 != 0, flags & 2 != 0);
        let source = from.take(16)?.try_into().ok()?;
        let fileset = FilesetId(from.varint32()?);
        let (name, origin) = (from.text()?, from.text()?);
        let (at, shown, target, aim) =
            (Tid(from.varint()?), Tid(from.varint()?), Tid(from.varint()?), Tid(from.varint()?));
        let n = from.varint()?;
        let mut pieces = Vec::new();
        for _ in 0..n.min(PIECES_MAX) {
            pieces.push((from.bytes()?.to_vec(), Tid(from.varint()?)));
        }
        let (opening, n) = match version {
            1 => (openings::UNKNOWN, 0),
            _ => (u64::from_le_bytes(from.take(8)?.try_into().ok()?), from.varint()?),
        };
        let above = (0..n.min(PIECES_MAX)).map(|_| Upstream::decode(&mut from)).collect::<Option<_>>()?;
        from.end()?;
        let mut found = Following {
            source,
            fileset,
            name,
            origin,
            promoted,
            paused,
            at,
            shown,
            target,
            aim,
            pieces,
            opening,
            above,
        };
        if found.is_whole() {
            found.shown = tid;
        }
        found.pieces.last().is_some_and(|(end, _)| end.is_empty()).then_some(found)
    }
}

/// What a filesystem knows of being a mirror.
#[derive(Default)]
pub(crate) struct Mirror {
    /// Whether it is one, or was.
    ever: std::sync::atomic::AtomicBool,
    state: parking_lot::Mutex<Option<Following>>,
    /// As of when the live tree is shown; zero: as it is.
    head: AtomicU64,
    /// What that was before.
    before: AtomicU64,
    pin: parking_lot::Mutex<Option<Pin>>,
    pub(crate) settled: parking_lot::Mutex<Settled>,
    /// The store's last transaction when it was opened.
    opened: AtomicU64,
    /// Whether there is a record of this opening.
    is_noted: parking_lot::Mutex<bool>,
    /// Whether there is to be one before anything is done.
    is_due: std::sync::atomic::AtomicBool,
}

impl Fs {
    /// What the main fileset follows, if it is a mirror.
    pub fn following(&self) -> Option<Following> {
        self.mirror.state.lock().clone().filter(|f| !f.promoted)
    }

    /// As of when a mirror shows what it has: a whole pull. `None`: it is none, and shows the newest there is.
    pub fn head(&self) -> Option<Tid> {
        match self.mirror.head.load(Ordering::Acquire) {
            0 => None,
            tid => Some(Tid(tid)),
        }
    }

    /// Makes an empty store's main fileset a mirror.
    pub fn follow(&self, source: [u8; 16], fileset: FilesetId, name: &str, origin: &str, now_ns: u64) -> Result<()> {
        if self.following().is_some_and(|f| (f.source, f.fileset) == (source, fileset)) {
            return Ok(());
        }
        let plan = self.plan(MAIN, SMALL)?;
        let empty = self.attr_at(ROOT, Tid::MAX)?.is_some_and(|root| root.size == 0) && plan.live.all().count() == 1;
        if !empty {
            return refuse(libc::ENOTEMPTY, "only an empty store can become a mirror");
        }
        let mut change = plan.begin(now_ns)?;
        let shown = change.tx.tid();
        let found = Following {
            source,
            fileset,
            name: name.into(),
            origin: origin.into(),
            promoted: false,
            paused: false,
            at: Tid::ZERO,
            shown,
            target: Tid::ZERO,
            aim: Tid::ZERO,
            pieces: vec![(Vec::new(), Tid::ZERO)],
            opening: openings::UNKNOWN,
            above: Vec::new(),
        };
        put_books(&mut change.tx, &found);
        let tid = change.commit()?;
        self.mirror.ever.store(true, Ordering::Release);
        *self.mirror.state.lock() = Some(found);
        self.show(tid)
    }

    /// The clock for what is changed here: of a mirror, whose past has the times of its source, never ahead of what it has.
    pub(crate) fn dated(&self, now_ns: u64) -> u64 {
        if self.head().is_some() { now_ns.min(self.store.tid().0) } else { now_ns }
    }

    /// Has a mirror pull or not, until told otherwise.
    pub fn pause(&self, paused: bool, now_ns: u64) -> Result<()> {
        self.change_books(now_ns, |f| f.paused = paused)
    }

    /// Has a mirror pull, from what it follows, at another place.
    pub fn follow_at(&self, origin: &str, now_ns: u64) -> Result<()> {
        self.change_books(now_ns, |f| (f.origin, f.paused) = (origin.into(), false))
    }

    fn change_books(&self, now_ns: u64, change: impl FnOnce(&mut Following)) -> Result<()> {
        self.store.admit(0)?;
        let _live = self.live.write();
        let mut state = self.mirror.state.lock();
        let Some(f) = state.as_mut().filter(|f| !f.promoted) else {
            return refuse(libc::EINVAL, "this is no mirror");
        };
        // (A pull is done under the same lock, so that what is written here is as far as it is.)
        let mut tx = self.store.begin(MAIN, self.dated(now_ns))?;
        change(f);
        let whole = f.is_whole();
        put_books(&mut tx, f);
        let tid = tx.commit()?;
        if whole {
            f.shown = tid;
            drop(state);
            self.show(tid)?;
        }
        Ok(())
    }

    /// Whether a tid is, or was just now, what [`Fs::head`] says.
    pub fn is_head(&self, tid: Tid) -> bool {
        [&self.mirror.head, &self.mirror.before].iter().any(|head| head.load(Ordering::Acquire) == tid.0)
    }

    /// Begins a pull to a moment of the source, or goes on with one towards it.
    pub fn begin_pull(&self, to: Tid) -> Result<Following> {
        let mut state = self.mirror.state.lock();
        let Some(f) = state.as_mut().filter(|f| !f.promoted) else {
            return refuse(libc::EINVAL, "this is no mirror");
        };
        if to < f.target {
            return Err(FsError::told(
                libc::ESTALE,
                format!("the source is at {to}, before {}, which it was at once: it lost its newest changes", f.target),
            ));
        }
        if f.pieces.len() as u64 >= PIECES_MAX {
            // Further back than needed, for some.
            let least = f.pieces.iter().map(|(_, since)| *since).min().unwrap_or_default();
            f.pieces = vec![(Vec::new(), least)];
        }
        if f.target != to {
            f.target = to;
            f.aim = to.max(Tid(self.store.tid().0.saturating_add(2 * WINDOW)));
        }
        Ok(f.clone())
    }

    /// The clock for the transactions of a pull before its last.
    fn before(&self, aim: Tid) -> u64 {
        let start = aim.0.saturating_sub(WINDOW);
        let second = aim.0 / SECOND * SECOND;
        if (start..aim.0).contains(&second) { second + 1 } else { start }
    }

    /// Shows what there is as of a tid, and keeps that.
    fn show(&self, tid: Tid) -> Result<()> {
        let pin = self.store.pin(MAIN, tid)?;
        if pin.is_none() {
            return refuse(libc::EIO, "what was just written is not kept");
        }
        let before = self.mirror.head.swap(tid.0, Ordering::AcqRel);
        self.mirror.before.store(before, Ordering::Release);
        *self.mirror.pin.lock() = pin;
        Ok(())
    }

    /// Reads what the store says of being a mirror.
    pub(crate) fn load_mirror(&self) -> Result<()> {
        self.load_openings();
        let Some(found) = self.books_at(Tid::MAX)? else { return Ok(()) };
        self.mirror.ever.store(true, Ordering::Release);
        if !found.promoted {
            // Whole: nothing has changed since but its own labels and the like. Else what is shown was pinned until now.
            let head = if found.is_whole() { self.store.tid() } else { found.shown };
            *self.mirror.pin.lock() = Some(self.store.hold(MAIN, head));
            self.mirror.head.store(head.0, Ordering::Release);
        }
        *self.mirror.state.lock() = Some(found);
        Ok(())
    }

    fn books_at(&self, at: Tid) -> Result<Option<Following>> {
        let key = Inode { fileset: MAIN, object: BOOKS }.key(Kind::MIRROR, &[]);
        let Some(found) = self.store.get(&key, at)? else { return Ok(None) };
        match Following::decode(&found.value, found.tid) {
            Some(f) => Ok(Some(f)),
            None => Err(FsError::malformed(format!(
                "the mirror's record, written at tid {}, is in no known form",
                found.tid
            ))),
        }
    }

    /// Whom the main fileset followed as of a moment that is whole, nearest first.
    pub(super) fn upstream_at(&self, at: Tid) -> Result<Vec<Upstream>> {
        if !self.mirror.ever.load(Ordering::Acquire) {
            return Ok(Vec::new());
        }
        let found = self.books_at(at)?.filter(|f| !f.promoted && f.is_whole());
        Ok(found.map_or(Vec::new(), |f| f.upstream()))
    }

    /// Of a moment that is kept, the one that is shown: not amid a pull.
    pub(crate) fn whole(&self, fileset: FilesetId, mut at: Tid) -> Result<Option<Tid>> {
        if fileset != MAIN || !self.mirror.ever.load(Ordering::Acquire) {
            return Ok(Some(at));
        }
        loop {
            match self.books_at(at)? {
                Some(f) if !f.promoted && !f.is_whole() => match self.store.retention(fileset)?.round(f.shown) {
                    Some(before) if before < at => at = before,
                    _ => return Ok(None),
                },
                _ => return Ok(Some(at)),
            }
        }
    }

    /// A moment not before `at` that is not amid a pull, about the first; `None` if there is none yet.
    pub(crate) fn whole_since(&self, fileset: FilesetId, mut at: Tid) -> Result<Option<Tid>> {
        if fileset != MAIN || !self.mirror.ever.load(Ordering::Acquire) {
            return Ok(Some(at));
        }
        let (newest, mut step) = (self.store.tid(), 1);
        while at <= newest {
            match self.books_at(at)? {
                // What it aims at is when it is whole, unless it was given up for another one, or took longer.
                Some(f) if !f.promoted && !f.is_whole() => at = f.aim.max(Tid(at.0 + step)),
                _ => return Ok(Some(at)),
            }
            step *= 2;
        }
        Ok(None)
    }

    /// Refuses changes of a mirror but those of its own.
    pub(crate) fn check_not_following(&self, fileset: FilesetId) -> Result<()> {
        match fileset == MAIN && self.head().is_some() {
            true => refuse(libc::EROFS, "it is a mirror, and changes only with its source (darner mirror promote)"),
            false => Ok(()),
        }
    }
}

fn put_books(tx: &mut darner_store::Tx<'_>, f: &Following) {
    tx.put(BOOKS, Kind::MIRROR, &[], &f.encode());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn following() -> Following {
        Following {
            source: [7; 16],
            fileset: FilesetId(3),
            name: "häuser".into(),
            origin: "/store".into(),
            promoted: false,
            paused: true,
            at: Tid(100),
            shown: Tid(120),
            target: Tid(300),
            aim: Tid(301),
            pieces: vec![(vec![5; 9], Tid(300)), (vec![7; 9], Tid(200)), (vec![], Tid(100))],
            opening: 5,
            above: vec![Upstream { source: [8; 16], fileset: MAIN, at: Tid(90), opening: 6 }],
        }
    }

    #[test]
    fn a_record_comes_back_and_no_bytes_make_decoding_panic() {
        let bytes = following().encode();
        assert_eq!(Following::decode(&bytes, Tid(999)), Some(following()));
        // Version 1 ended before what is above.
        let old = [&[1], &bytes[1..bytes.len() - 35]].concat();
        assert_eq!(Following::decode(&old, Tid(999)), Some(Following { opening: 0, above: Vec::new(), ..following() }));
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..100_000 {
            let mut bytes = bytes.clone();
            let at = rng.usize(..bytes.len());
            bytes[at] = rng.u8(..);
            bytes.truncate(rng.usize(..=bytes.len()));
            Following::decode(&bytes, Tid(999));
        }
    }

    #[test]
    fn a_pull_that_was_cut_twice_asks_for_each_range_since_it_was_last_there() {
        let mut f = following();
        let next = f.wanted().unwrap();
        assert_eq!((next.from, next.to, next.since, next.at), (vec![5; 9], vec![7; 9], Tid(200), Tid(300)));
        f.advance(Some(&[6; 9]));
        assert_eq!(f.pieces[..2], [(vec![6; 9], Tid(300)), (vec![7; 9], Tid(200))]);
        f.target = Tid(400);
        let next = f.wanted().unwrap();
        assert_eq!((next.from, next.to, next.since), (vec![], vec![6; 9], Tid(300)));
        let mut ranges = 0;
        while let Some(w) = f.wanted() {
            let part = [&w.from[..], &[1]].concat();
            let end = if ranges % 2 == 0 { &part } else { &w.to };
            f.advance(Some(&end[..]).filter(|end| !end.is_empty()));
            ranges += 1;
        }
        assert_eq!((ranges, &f.pieces), (6, &vec![(vec![], Tid(400))]));
        // What is told to beyond where one was cut.
        let mut f = Following { target: Tid(400), ..following() };
        f.advance(Some(&[6; 9]));
        assert_eq!(f.pieces, [(vec![6; 9], Tid(400)), (vec![7; 9], Tid(200)), (vec![], Tid(100))]);
        f.advance(Some(&[8; 9]));
        assert_eq!(f.pieces, [(vec![8; 9], Tid(400)), (vec![], Tid(100))]);
        f.advance(None);
        assert_eq!(f.pieces, [(vec![], Tid(400))]);
    }
}
