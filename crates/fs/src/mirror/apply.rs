//! The side that follows: what changed at the source is done here, in ordinary transactions.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::Ordering;

use darner_store::{CHUNK, Kind, ObjectId, Piece, Stored, Tails, Tid, Tx, split_tail};

use crate::attr::Attr;
use crate::change::SMALL;
use crate::dirent::{cookie, parse_dirent_suffix};
use crate::error::{FsError, Result};
use crate::fs::Fs;
use crate::mirror::item::{Bytes, Item, decode_all};
use crate::mirror::openings::UNKNOWN;
use crate::mirror::source::{Part, Wanted};
use crate::mirror::{BOOKS, Changed, Following, OBJECTS_APART, UPSTREAM_MAX, is_mirrored, put_books};
use crate::node::{Inode, MAIN, ROOT};

/// A transaction that has come to this is ended, and the next begun.
const TX_BYTES: usize = 1 << 20;
/// Records of a transaction at most.
const TX_ACTS: usize = 4096;
/// What objects have besides attributes.
const KINDS_OF_OBJECTS: [Kind; 4] = [Kind::TARGET, Kind::XATTR, Kind::DIRENT, Kind::EXTENT];
/// Keys looked at at a time.
const BATCH: usize = 4096;

/// What is to be done to a key.
pub(super) enum Act<'b> {
    Set(Tid, Vec<u8>),
    Delete,
    Chunk(Vec<crate::mirror::item::Span<'b>>),
}

impl Fs {
    /// Does what a part says that was asked for by `wanted`.
    pub fn apply(&self, wanted: &Wanted, part: &Part) -> Result<Changed> {
        let refused = || FsError::malformed("what the source sent is not in a known form");
        let mut f = self.following().ok_or(FsError::new(libc::EINVAL, "this is no mirror"))?;
        let end = part.next.as_deref().or(Some(&wanted.to[..]).filter(|to| !to.is_empty()));
        let ahead = |next: &Vec<u8>| *next > wanted.from && (wanted.to.is_empty() || *next < wanted.to);
        // (What is asked for up to the end, pulls that were cut may have left in several pieces.)
        let is_range = |w: &Wanted| w.from == wanted.from && (wanted.to.is_empty() || w.to == wanted.to);
        let is_next = f.wanted().is_some_and(|w| is_range(&w) && w.at == wanted.at && w.since >= wanted.since);
        if !is_next || !part.next.as_ref().is_none_or(ahead) {
            return Err(FsError::new(libc::EINVAL, "what the source sent is not what was asked for"));
        }
        let items = decode_all(&part.items).ok_or_else(refused)?;
        let (of_source, items): (Vec<_>, Vec<_>) = items.into_iter().partition(Item::is_of_source);
        if wanted.from.is_empty() {
            (f.opening, f.above) = (UNKNOWN, Vec::new());
            for item in of_source {
                match item {
                    Item::Opening(opening) => f.opening = opening,
                    Item::Above(up) if f.above.len() < UPSTREAM_MAX => f.above.push(up),
                    _ => {}
                }
            }
        }
        let mut acts = self.acts(items)?;
        // Of a stream that is read again, some was done before.
        acts.retain(|(tail, _)| *tail >= wanted.from);
        if !acts.iter().all(|(tail, _)| end.is_none_or(|end| &tail[..] < end)) {
            return Err(FsError::new(libc::EINVAL, "the source sent more than what was asked for"));
        }
        self.note_doing()?;
        self.forget_former(&acts, self.before(f.aim))?;
        let (mut changed, mut names) = (BTreeSet::new(), Vec::new());
        let mut acts = acts.into_iter().peekable();
        let early = self.before(f.aim);
        while acts.peek().is_some() {
            self.store.admit(TX_BYTES as u64 + SMALL)?;
            let _live = self.live.write();
            f.paused = self.following().is_some_and(|f| f.paused);
            let tx = self.store.begin(MAIN, early)?;
            let mut applying = Applying::new(self, tx);
            for _ in 0..TX_ACTS {
                let Some((tail, act)) = acts.next_if(|_| applying.tx.size() < TX_BYTES) else { break };
                if let Some((object, ..)) = split_tail(&tail) {
                    changed.insert(Inode { fileset: MAIN, object });
                }
                names.extend(name_in(&tail));
                applying.act(&tail, act)?;
            }
            match acts.peek() {
                Some((next, _)) => f.advance(Some(next)),
                None => f.advance(end),
            }
            put_books(&mut applying.tx, &f);
            applying.finish()?;
            *self.mirror.state.lock() = Some(f.clone());
        }
        if changed.is_empty() {
            // Nothing to write: where it was cut, it would look here again.
            let mut state = self.mirror.state.lock();
            if let Some(state) = state.as_mut().filter(|state| !state.promoted && state.target == f.target) {
                state.advance(end);
                (state.opening, state.above) = (f.opening, f.above);
            }
        }
        Ok(Changed { objects: changed.into_iter().collect(), names })
    }

    /// Ends a pull of which all is there: from now on that moment is shown. Returns its transaction here.
    pub fn finish_pull(&self) -> Result<Tid> {
        let mut f = self.following().ok_or(FsError::new(libc::EINVAL, "this is no mirror"))?;
        if f.wanted().is_some() {
            return crate::error::refuse(libc::EINVAL, "the pull is not over");
        }
        self.store.admit(SMALL)?;
        let _live = self.live.write();
        f.paused = self.following().is_some_and(|f| f.paused);
        let mut tx = self.store.begin(MAIN, f.aim.0)?;
        f.at = f.target;
        f.shown = tx.tid();
        put_books(&mut tx, &f);
        let tid = tx.commit()?;
        *self.mirror.state.lock() = Some(f);
        self.show(tid)?;
        Ok(tid)
    }

    /// What is to be done, in order of keys.
    pub(super) fn acts<'b>(&self, items: Vec<Item<'b>>) -> Result<Vec<(Vec<u8>, Act<'b>)>> {
        let mut acts = Vec::new();
        let mut told = BTreeSet::new();
        let mut stated = Vec::new();
        for item in items {
            match item {
                Item::Stated(from, to) => stated.push((from, to)),
                Item::Same(tail) => drop(told.insert(tail)),
                Item::Above(_) | Item::Opening(_) => {}
                Item::Set(tail, tid, value) => acts.push((tail, Act::Set(tid, value))),
                Item::Deleted(tail) => acts.push((tail, Act::Delete)),
                Item::Chunk(object, chunk, spans) => {
                    acts.push((chunk_tail(object, chunk), Act::Chunk(spans)));
                }
            }
        }
        told.extend(acts.iter().map(|(tail, _)| tail.clone()));
        for (from, to) in stated {
            let mut pos = Some(from);
            while let Some(from) = pos {
                let (own, next) = self.store.tails(MAIN, &from, &to, Tid::MAX, BATCH)?;
                let gone = own.into_iter().filter(|tail| is_mirrored(tail) && !told.contains(tail));
                acts.extend(gone.map(|tail| (tail, Act::Delete)));
                pos = next;
            }
        }
        acts.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(acts)
    }

    /// Deletes what the index has of objects of former lives whose numbers are given to others by `acts`: two mirrors that were promoted
    /// count on from the same number, and a store may follow one after the other. (That others are there is told by when they were made;
    /// numbers that were never given here have had no life. This is done before the others come to be: it may be cut anywhere.)
    pub(super) fn forget_former(&self, acts: &[(Vec<u8>, Act<'_>)], now_ns: u64) -> Result<()> {
        let (now, end) = (self.store.tid(), self.store.objects_end());
        let mut over = Vec::new();
        for (tail, act) in acts {
            let (Some((object, Kind::ATTR, _)), Act::Set(tid, value)) = (split_tail(tail), act) else { continue };
            let ino = Inode { fileset: MAIN, object };
            let is_another = |own: Attr| Attr::decode(value, *tid).is_some_and(|attr| attr.btime != own.btime);
            if object >= end || ino == ROOT || !self.attr_at(ino, Tid::MAX)?.is_none_or(is_another) {
                continue;
            }
            for kind in KINDS_OF_OBJECTS {
                self.each(ino, kind, &[], now, |suffix, _, _| {
                    over.push((object, kind, suffix.to_vec()));
                    std::ops::ControlFlow::Continue(())
                })?;
            }
        }
        for some in over.chunks(TX_ACTS) {
            self.store.admit(SMALL)?;
            let _live = self.live.write();
            let mut tx = self.store.begin(MAIN, now_ns)?;
            some.iter().for_each(|(object, kind, suffix)| tx.delete(*object, *kind, suffix));
            tx.commit()?;
        }
        Ok(())
    }

    /// Makes a mirror a filesystem that can be changed, as of the last whole pull, and with nothing of one under way. What its
    /// source was, it remembers. Returns the moment of the source that it is as of.
    pub fn promote(&self, now_ns: u64) -> Result<Following> {
        let Some(mut f) = self.following() else {
            return crate::error::refuse(libc::EINVAL, "this is no mirror, or one that was promoted already");
        };
        if f.at == Tid::ZERO {
            return crate::error::refuse(libc::EINVAL, "the mirror has nothing whole yet: its first pull is not over");
        }
        if !f.is_whole() {
            let shown = self.books_at(f.shown)?;
            (f.opening, f.above) = shown.map_or_else(Default::default, |shown| (shown.opening, shown.above));
            // Where this ends early, the next pull brings all of it anew. (What is in two pieces is not whole.)
            f.pieces = vec![(BOOKS.0.to_be_bytes().to_vec(), Tid(f.at.0 - 1)), (Vec::new(), f.at)];
            self.change_books(now_ns, |own| *own = f.clone())?;
            self.rewind(f.shown, now_ns)?;
        }
        self.store.admit(0)?;
        let live = self.live.write();
        let end = self.store.objects_end().0;
        self.store.raise_objects(ObjectId(end + OBJECTS_APART));
        let mut tx = self.store.begin(MAIN, now_ns)?;
        f.promoted = true;
        f.pieces = vec![(Vec::new(), f.at)];
        f.target = f.at;
        put_books(&mut tx, &f);
        tx.commit()?;
        *self.mirror.state.lock() = Some(f.clone());
        self.mirror.head.store(0, Ordering::Release);
        *self.mirror.pin.lock() = None;
        drop(live);
        self.load_orphans(MAIN)?;
        self.reap_orphans(now_ns)?;
        self.bring_in(now_ns)?;
        self.sync()?;
        Ok(f)
    }

    /// Makes everything again what it was as of a moment that is kept.
    pub(super) fn rewind(&self, to: Tid, now_ns: u64) -> Result<()> {
        self.note_doing()?;
        let mut pos = Some(Vec::new());
        let mut alive: Option<(ObjectId, bool)> = None;
        let now = self.store.tid();
        while let Some(from) = pos {
            // (It gives room back: what is gone back on needs no bytes of files, and is over then.)
            self.store.admit(0)?;
            let _live = self.live.write();
            let (tails, next) = self.touched_since(&from, to)?;
            let mut was = Vec::new();
            for tail in tails.iter().filter(|tail| is_mirrored(tail)) {
                let Some((object, kind, suffix)) = split_tail(tail) else { continue };
                let ino = Inode { fileset: MAIN, object };
                if alive.is_none_or(|(known, _)| known != object) {
                    alive = Some((object, self.attr_at(ino, to)?.is_some()));
                }
                if kind != Kind::ATTR && !alive.is_some_and(|(_, alive)| alive) {
                    continue;
                }
                if kind == Kind::ATTR && self.attr_at(ino, Tid::MAX)?.is_none() && self.attr_at(ino, to)?.is_some() {
                    // Of what is dead the index may have its other keys among what is over: they are written anew, and those that
                    // it got before it died are deleted each.
                    for (kind, at) in KINDS_OF_OBJECTS.into_iter().flat_map(|kind| [(kind, to), (kind, now)]) {
                        self.each(ino, kind, &[], at, |suffix, _, _| {
                            was.push((ino, kind, suffix.to_vec()));
                            std::ops::ControlFlow::Continue(())
                        })?;
                    }
                }
                was.push((ino, kind, suffix.to_vec()));
            }
            was.sort_by_key(|(ino, kind, suffix)| (*ino, *kind, suffix.clone()));
            was.dedup();
            for some in was.chunks(64) {
                let tx = self.store.begin(MAIN, now_ns)?;
                let mut applying = Applying::new(self, tx);
                for (ino, kind, suffix) in some {
                    applying.restore(*ino, *kind, suffix, to)?;
                }
                applying.finish()?;
            }
            pos = next;
        }
        Ok(())
    }

    /// Some tails from `from` on of what was set or deleted after a moment that is kept, and where to go on.
    pub(super) fn touched_since(&self, from: &[u8], at: Tid) -> Result<Tails> {
        let delta = self.store.delta(MAIN, from, &BOOKS.0.to_be_bytes(), at, Tid::MAX, 256)?;
        let mut tails: BTreeSet<Vec<u8>> =
            delta.changes.into_iter().filter(|c| c.what != darner_store::What::Same).map(|c| c.tail).collect();
        for (from, end) in delta.stated {
            // Of a stated range it is not told what was there, and is no more.
            let mut pos = Some(from);
            while let Some(from) = pos {
                let (some, next) = self.store.tails(MAIN, &from, &end, at, BATCH)?;
                for tail in some {
                    let key = split_tail(&tail)
                        .map(|(object, kind, suffix)| Inode { fileset: MAIN, object }.key(kind, suffix));
                    if let Some(key) = key
                        && self.store.get(&key, Tid::MAX)?.is_none()
                    {
                        tails.insert(tail);
                    }
                }
                pos = next;
            }
        }
        Ok((tails.into_iter().collect(), delta.next))
    }
}

/// The directory and the name that a tail is about, if it is.
pub(super) fn name_in(tail: &[u8]) -> Option<(Inode, Vec<u8>)> {
    let (object, _, suffix) = split_tail(tail).filter(|(_, kind, _)| *kind == Kind::DIRENT)?;
    Some((Inode { fileset: MAIN, object }, parse_dirent_suffix(suffix)?.1.to_vec()))
}

fn chunk_tail(object: u64, chunk: u64) -> Vec<u8> {
    [&object.to_be_bytes(), [Kind::EXTENT.0].as_slice(), &chunk.to_be_bytes()].concat()
}

/// A transaction of a pull.
pub(super) struct Applying<'f> {
    fs: &'f Fs,
    pub(super) tx: Tx<'f>,
    /// Attributes that it has changed.
    attrs: HashMap<ObjectId, Option<Attr>>,
    objects: i64,
    bytes: i64,
}

impl<'f> Applying<'f> {
    pub(super) fn new(fs: &'f Fs, tx: Tx<'f>) -> Applying<'f> {
        Applying { fs, tx, attrs: HashMap::new(), objects: 0, bytes: 0 }
    }

    pub(super) fn finish(mut self) -> Result<Tid> {
        self.tx.count(self.objects, self.bytes);
        Ok(self.tx.commit()?)
    }

    fn attr(&self, object: ObjectId) -> Result<Option<Attr>> {
        match self.attrs.get(&object) {
            Some(attr) => Ok(*attr),
            None => self.fs.attr_at(Inode { fileset: MAIN, object }, Tid::MAX),
        }
    }

    pub(super) fn act(&mut self, tail: &[u8], act: Act<'_>) -> Result<()> {
        let refused = || FsError::malformed("the source sent a record of a kind that mirrors don't have");
        let (object, kind, suffix) = split_tail(tail).filter(|_| is_mirrored(tail)).ok_or_else(refused)?;
        if kind == Kind::ATTR {
            return match act {
                Act::Set(tid, value) => {
                    let attr = Attr::decode(&value, tid).filter(|_| suffix.is_empty()).ok_or_else(refused)?;
                    self.set_attr(object, attr)
                }
                _ => self.kill(object),
            };
        }
        let there = self.attr(object)?.is_some();
        match (act, there) {
            (Act::Delete, false) => Ok(()),
            (_, false) => {
                Err(FsError::malformed(format!("the source sent a record of object {object}, which does not exist")))
            }
            (Act::Delete, true) => self.delete(object, kind, suffix),
            (Act::Set(_, value), true) if kind != Kind::EXTENT => {
                let known = |(hash, name): (u64, &[u8])| cookie(&self.fs.hash_key, name) == hash;
                if kind == Kind::DIRENT && !parse_dirent_suffix(suffix).is_some_and(known) {
                    return Err(FsError::malformed("the source orders its directories by another key than this store"));
                }
                self.tx.put(object, kind, suffix, &value);
                Ok(())
            }
            (Act::Chunk(spans), true) => {
                let chunk = suffix.try_into().map(u64::from_be_bytes).map_err(|_| refused())?;
                self.chunk(object, chunk * CHUNK, spans)
            }
            _ => Err(refused()),
        }
    }

    fn set_attr(&mut self, object: ObjectId, attr: Attr) -> Result<()> {
        let old = self.attr(object)?;
        self.objects += i64::from(old.is_none());
        self.bytes += attr.bytes as i64 - old.map_or(0, |old| old.bytes as i64);
        self.tx.put(object, Kind::ATTR, &[], &attr.encode(self.tx.tid()));
        // What has no name here, nobody has open: it goes when the mirror is promoted.
        match (old.is_some_and(|old| old.nlink == 0), attr.nlink == 0) {
            (false, true) => self.tx.put(ObjectId(0), Kind::ORPHAN, &object.0.to_be_bytes(), &[]),
            (true, false) => self.tx.delete(ObjectId(0), Kind::ORPHAN, &object.0.to_be_bytes()),
            _ => {}
        }
        self.attrs.insert(object, Some(attr));
        self.fs.store.raise_objects(ObjectId(object.0.saturating_add(1).min(1 << 44)));
        Ok(())
    }

    fn kill(&mut self, object: ObjectId) -> Result<()> {
        if let Some(old) = self.attr(object)? {
            self.objects -= 1;
            self.bytes -= old.bytes as i64;
            self.tx.delete(object, Kind::ATTR, &[]);
            if old.nlink == 0 {
                self.tx.delete(ObjectId(0), Kind::ORPHAN, &object.0.to_be_bytes());
            }
            self.attrs.insert(object, None);
        }
        Ok(())
    }

    fn delete(&mut self, object: ObjectId, kind: Kind, suffix: &[u8]) -> Result<()> {
        let key = Inode { fileset: MAIN, object }.key(kind, suffix);
        if self.fs.store.get(&key, Tid::MAX)?.is_none() {
            return Ok(());
        }
        match (kind, suffix.try_into().map(u64::from_be_bytes)) {
            (Kind::EXTENT, Ok(chunk)) => drop(self.tx.punch(object, chunk.saturating_mul(CHUNK), CHUNK)?),
            _ => self.tx.delete(object, kind, suffix),
        }
        Ok(())
    }

    fn chunk(&mut self, object: ObjectId, base: u64, spans: Vec<crate::mirror::item::Span<'_>>) -> Result<()> {
        for lost in spans.iter().filter(|s| matches!(s.bytes, Bytes::Here(Stored::Lost(_)))) {
            let (offset, len) = (base + u64::from(lost.range.start), lost.range.len() as u64);
            if self.tx.map(object, offset, len)?.iter().any(|p| p.is_data() && !p.is_lost()) {
                let path = self.fs.path_of(crate::Node::Live(Inode { fileset: MAIN, object }));
                return Err(FsError::malformed(format!(
                    "{path}: {len} bytes from {offset} on are damaged at the source, and nobody was found who has them; they do not replace \
                     what is here: restore the file there, or remove it"
                )));
            }
        }
        self.tx.punch(object, base, CHUNK)?;
        for span in spans {
            let (offset, len) = (base + u64::from(span.range.start), span.range.len() as u64);
            match span.bytes {
                Bytes::Here(stored) => drop(self.tx.write_stored(object, offset, len as u32, &stored)?),
                Bytes::Shared(of, from) => {
                    let pieces = self.tx.map(ObjectId(of), from, len)?;
                    // What is a hole here did not come: it must not become zeroes.
                    if pieces.iter().filter(|p| p.is_data()).map(|p| p.len).sum::<u64>() != len {
                        return Err(FsError::malformed(format!(
                            "object {object} is to share {len} bytes at {from} of object {of}, which have not been sent"
                        )));
                    }
                    self.tx.share(object, offset, &pieces)?;
                }
            }
        }
        Ok(())
    }

    /// Makes a key what it was.
    fn restore(&mut self, ino: Inode, kind: Kind, suffix: &[u8], to: Tid) -> Result<()> {
        let object = ino.object;
        match (kind, suffix.try_into().map(u64::from_be_bytes)) {
            (Kind::ATTR, _) => match self.fs.attr_at(ino, to)? {
                Some(attr) => self.set_attr(object, attr),
                None => self.kill(object),
            },
            (Kind::EXTENT, Ok(chunk)) => {
                let pieces = self.fs.store.map(MAIN, object, chunk * CHUNK, CHUNK, to)?;
                if !pieces.iter().any(Piece::is_data) {
                    // (To punch what the index has among what is over would change nothing.)
                    self.tx.delete(object, kind, suffix);
                    return Ok(());
                }
                self.tx.punch(object, chunk * CHUNK, CHUNK)?;
                self.tx.share(object, chunk * CHUNK, &pieces)?;
                Ok(())
            }
            _ => {
                match self.fs.store.get(&ino.key(kind, suffix), to)? {
                    Some(found) => self.tx.put(object, kind, suffix, &found.value),
                    None => self.tx.delete(object, kind, suffix),
                }
                Ok(())
            }
        }
    }
}
