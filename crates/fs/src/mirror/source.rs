//! The side that is followed: what changed, as a mirror is to have it.
//!
//! A mirror is the main fileset of a store: the root that is followed is its object 1. What it does not get: records of the
//! fileset itself (labels and retention: it has its own), names of other filesets in the root, and that something is keepless (what it keeps is its
//! own affair). Nothing here remembers anything of those who follow, but for [`Sent`], for as long as they are connected.

use std::collections::HashMap;

use darner_store::{CHUNK, Error as StoreError, Kind, ObjectId, Piece, Tid, What, split_tail};

use crate::attr::Attr;
use crate::codec::put_varint;
use crate::dirent::{Dirent, malformed};
use crate::error::{FsError, Result, refuse};
use crate::fs::Fs;
use crate::mirror::item::{Item, LOST, LZ4, RAW, put_chunk, put_shared, put_span};
use crate::mirror::{BOOKS, UPSTREAM_MAX, is_mirrored, tail_of};
use crate::node::{Inode, ROOT};

/// Keys looked up at a time: few at first, because a part holds few chunks of files.
const BATCH_FIRST: usize = 16;
const BATCH: usize = 512;
/// Places of which it is known that they were sent, at most.
const SENT_MAX: usize = 1 << 18;

/// Room for a part that is made at once.
const OUT_MAX: usize = 4 << 20;

/// What one who follows was sent in this pull: bytes that files share go once.
#[derive(Default)]
pub struct Sent {
    /// Where the last part ended: if the next one does not begin there, nothing is known to have arrived.
    end: Option<Vec<u8>>,
    places: HashMap<(u64, u64, u32, u64), (u64, u64)>,
}

impl Sent {
    /// Where the part begins that follows the last one; `None`: there was none, or it was the end.
    pub fn end(&self) -> Option<&[u8]> {
        self.end.as_deref()
    }
}

/// What of a fileset's changes is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The tails from here on (the mirror's).
    pub from: Vec<u8>,
    /// And to before this; empty: to the end.
    pub to: Vec<u8>,
    /// Changed since.
    pub since: Tid,
    /// As of this moment, which is pinned.
    pub at: Tid,
    /// About so many bytes.
    pub room: usize,
}

/// Changes, encoded, and where to go on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Items.
    pub items: Vec<u8>,
    /// The first tail that is not told; `None`: all is.
    pub next: Option<Vec<u8>>,
}

/// Tails that are translated alike.
pub(super) struct Stretch {
    pub(super) from: u64,
    pub(super) to: u64,
    /// The object here that is object `from` of the mirror.
    here: u64,
}

impl Stretch {
    /// A tail of the mirror, as it is here.
    pub(super) fn here(&self, tail: &[u8]) -> Vec<u8> {
        moved(tail, self.from, self.here)
    }

    /// A tail of ours, as the mirror has it.
    pub(super) fn there(&self, tail: &[u8]) -> Vec<u8> {
        moved(tail, self.here, self.from)
    }
}

/// How object numbers of a fileset become those of the mirror: its root and object 1 change places, so to speak.
pub(super) fn stretches(root: ObjectId) -> Vec<Stretch> {
    let same = |from, to| Stretch { from, to, here: from };
    match root {
        ObjectId(1) => vec![same(0, BOOKS.0)],
        ObjectId(root) => {
            vec![same(0, 1), Stretch { from: 1, to: 2, here: root }, same(2, root), same(root + 1, BOOKS.0)]
        }
    }
}

impl Fs {
    /// The newest moment that can be followed: consistent, and as new as can be.
    pub fn followable(&self) -> Tid {
        self.head().unwrap_or_else(|| self.store.tid())
    }

    /// What changed in a fileset.
    pub fn changes(&self, root: Inode, wanted: &Wanted, sent: &mut Sent) -> Result<Part> {
        // (Where this fails, nothing of it has arrived: then the next part knows of nothing.)
        if sent.end.take().as_ref() != Some(&wanted.from) {
            sent.places.clear();
        }
        let out = Vec::with_capacity(wanted.room.saturating_add(CHUNK as usize).min(OUT_MAX));
        let mut telling = Telling { room: wanted.room, out, ..Telling::new(self, root, wanted.at, sent)? };
        let first = split_object(&wanted.from);
        let mut next = None;
        for stretch in stretches(root.object).iter().filter(|s| s.to > first && s.from < s.to) {
            let (start, end) = (tail_of(stretch.from), tail_of(stretch.to));
            let from = wanted.from.as_slice().max(&start);
            let to = if wanted.to.is_empty() { &end[..] } else { wanted.to.as_slice().min(&end) };
            if from >= to {
                break;
            }
            next = telling.tell(stretch, from, to, wanted.since)?;
            if next.is_some() {
                break;
            }
            // More may follow, but a part that is full ends here.
            if telling.is_full() && (wanted.to.is_empty() || *to < wanted.to[..]) && stretch.to < BOOKS.0 {
                next = Some(end.to_vec());
                break;
            }
        }
        let mut items = telling.out;
        if wanted.from.is_empty() {
            Item::Opening(self.opening_of(wanted.at)?).encode(&mut items);
            let above = if root == ROOT { self.upstream_at(wanted.at)? } else { Vec::new() };
            above.into_iter().take(UPSTREAM_MAX).for_each(|up| Item::Above(up).encode(&mut items));
        }
        sent.end.clone_from(&next);
        Ok(Part { items, next })
    }
}

fn split_object(tail: &[u8]) -> u64 {
    tail.first_chunk().map_or(0, |object| u64::from_be_bytes(*object))
}

fn moved(tail: &[u8], from: u64, to: u64) -> Vec<u8> {
    match split_object(tail) == from && tail.len() >= 8 {
        true => [&to.to_be_bytes(), &tail[8..]].concat(),
        // Behind the stretch, which is one object.
        false if from != to => (to + 1).to_be_bytes().to_vec(),
        false => tail.to_vec(),
    }
}

/// What a mirror is told, as of a moment.
pub(super) struct Telling<'s> {
    fs: &'s Fs,
    pub(super) root: Inode,
    at: Tid,
    out: Vec<u8>,
    room: usize,
    sent: &'s mut Sent,
    /// The last object that was asked about, and whether it is there.
    alive: Option<(ObjectId, bool)>,
    /// Names in the root that a mirror does not get.
    others: usize,
}

impl<'s> Telling<'s> {
    pub(super) fn new(fs: &'s Fs, root: Inode, at: Tid, sent: &'s mut Sent) -> Result<Telling<'s>> {
        let lives = fs.live.read().get(root.fileset).map(|f| (f.root, f.base));
        match lives {
            Some((object, None)) if object == root.object => {}
            Some((_, Some(_))) => {
                return refuse(libc::EOPNOTSUPP, "a clone can't be mirrored: it shows what another fileset has");
            }
            _ => return refuse(libc::ESTALE, "the fileset has been removed"),
        }
        let others = fs.fileset_names(root, at)?.len();
        Ok(Telling { fs, root, at, out: Vec::new(), room: 0, sent, alive: None, others })
    }

    fn is_full(&self) -> bool {
        self.out.len() >= self.room
    }

    /// Tells what changed in a stretch; returns where to go on if that is not all.
    fn tell(&mut self, stretch: &Stretch, from: &[u8], to: &[u8], since: Tid) -> Result<Option<Vec<u8>>> {
        let there = |tail: &[u8]| stretch.there(tail);
        let (mut pos, end) = (stretch.here(from), stretch.here(to));
        let mut batch = BATCH_FIRST;
        loop {
            let delta = self.fs.store.delta(self.root.fileset, &pos, &end, since, self.at, batch)?;
            batch = BATCH.min(2 * batch);
            let mut next = delta.next;
            for change in delta.changes {
                if self.is_full() {
                    next = Some(change.tail);
                    break;
                }
                self.tell_one(change.tail, change.what, &there)?;
            }
            for (from, to) in delta.stated {
                let to = if to.is_empty() { end.clone() } else { to };
                let to = next.as_ref().map_or(to.clone(), |next| next.min(&to).clone());
                if from < to {
                    Item::Stated(there(&from), there(&to)).encode(&mut self.out);
                }
            }
            match next {
                None => return Ok(None),
                Some(next) if self.is_full() => return Ok(Some(there(&next))),
                Some(next) => pos = next,
            }
        }
    }

    /// Tells a change, if a mirror gets anything of it.
    fn tell_one(&mut self, tail: Vec<u8>, what: What, there: &dyn Fn(&[u8]) -> Vec<u8>) -> Result<()> {
        if let (Some((object, Kind::EXTENT, suffix)), What::Set(tid, value)) = (split_tail(&tail), &what) {
            let ino = Inode { object, ..self.root };
            if !is_mirrored(&tail) || !self.is_alive(ino, Kind::EXTENT, &what)? {
                return Ok(());
            }
            let chunk = suffix.try_into().map(u64::from_be_bytes);
            let chunk = chunk.map_err(|_| FsError::malformed(format!("object {ino} has a chunk without number")))?;
            return self.tell_chunk(object, split_object(&there(&tail)), chunk, *tid, value);
        }
        if let Some(item) = self.item(tail, what, there)? {
            item.encode(&mut self.out);
        }
        Ok(())
    }

    /// What a mirror gets of a change, but for bytes of files.
    pub(super) fn item(
        &mut self,
        tail: Vec<u8>,
        what: What,
        there: &dyn Fn(&[u8]) -> Vec<u8>,
    ) -> Result<Option<Item<'static>>> {
        let Some((object, kind, suffix)) = split_tail(&tail) else { return Ok(None) };
        let ino = Inode { object, ..self.root };
        if !is_mirrored(&tail) || !self.is_alive(ino, kind, &what)? {
            return Ok(None);
        }
        let to = there(&tail);
        Ok(Some(match what {
            What::Same => Item::Same(to),
            What::Deleted => Item::Deleted(to),
            What::Set(tid, value) => match kind {
                Kind::ATTR => Item::Set(to, tid, self.attr(ino, tid, &value)?),
                Kind::DIRENT => {
                    let found = Dirent::decode(&value, self.root.fileset).ok_or_else(|| malformed(ino, suffix, tid))?;
                    match found.ino.fileset == self.root.fileset {
                        true => Item::Set(to, tid, value.to_vec()),
                        false => Item::Deleted(to),
                    }
                }
                _ => Item::Set(to, tid, value.to_vec()),
            },
        }))
    }

    /// Whether a key's object is there as of the moment: of dead ones only the death is told.
    pub(super) fn is_alive(&mut self, ino: Inode, kind: Kind, what: &What) -> Result<bool> {
        if kind == Kind::ATTR {
            self.alive = Some((ino.object, !matches!(what, What::Deleted)));
            return Ok(true);
        }
        if self.alive.is_none_or(|(known, _)| known != ino.object) {
            self.alive = Some((ino.object, self.fs.attr_at(ino, self.at)?.is_some()));
        }
        Ok(self.alive.is_some_and(|(_, alive)| alive))
    }

    fn attr(&self, ino: Inode, tid: Tid, value: &[u8]) -> Result<Vec<u8>> {
        let attr = Attr::decode(value, tid)
            .ok_or_else(|| FsError::malformed(format!("the attributes of object {ino} are in no known form")))?;
        let mut told = attr;
        told.flags &= !(Attr::KEEPLESS | Attr::ONCE_KEEPLESS);
        if attr.parent == self.root.object {
            told.parent = ROOT.object;
        }
        if ino == self.root {
            told = told.without(self.others);
        }
        Ok(told.encode(tid))
    }

    /// Tells a chunk whole: what is stored is read to where it is sent from.
    fn tell_chunk(&mut self, object: ObjectId, to: u64, chunk: u64, tid: Tid, value: &[u8]) -> Result<()> {
        let pieces = self.fs.store.pieces_of(object, chunk, tid, value)?;
        let start = self.out.len();
        let told = self.tell_pieces(to, chunk, &pieces);
        if !matches!(told, Err(StoreError::Data { .. })) {
            return told.map_err(|e| self.fs.explain(crate::Node::AsOf(self.inode(object), self.at), e.into()));
        }
        // The rest can be told.
        self.out.truncate(start);
        let parts = self.fs.store.sound_and_damaged(&pieces)?;
        put_chunk(&mut self.out, to, chunk, parts.len());
        for (part, is_damaged) in parts {
            let range = range_of(&part);
            if !is_damaged {
                self.tell_piece(&part, &range)?;
                continue;
            }
            put_span(&mut self.out, &range, LOST);
            let path = self.fs.path_of(crate::Node::AsOf(self.inode(object), self.at));
            let (from, len) = (part.offset, part.len);
            tracing::error!(
                from,
                len,
                "{path}: damaged here, and nobody was found who has it: a mirror gets it as that"
            );
        }
        Ok(())
    }

    fn tell_pieces(&mut self, to: u64, chunk: u64, pieces: &[Piece]) -> darner_store::Result<()> {
        put_chunk(&mut self.out, to, chunk, pieces.len());
        for piece in pieces {
            let range = range_of(piece);
            if let Some((object, offset)) = piece.identity().and_then(|id| self.sent.places.get(&id)) {
                put_shared(&mut self.out, &range, *object, *offset);
                continue;
            }
            if let Some(id) = piece.identity().filter(|_| self.sent.places.len() < SENT_MAX) {
                self.sent.places.insert(id, (to, piece.offset));
            }
            let start = self.out.len();
            let mut told = self.tell_piece(piece, &range);
            // A mirror may have what is damaged here, perhaps the one that asks.
            if told.is_err() && self.fs.store.heal_pieces(self.root.fileset, std::slice::from_ref(piece))? {
                self.out.truncate(start);
                told = self.tell_piece(piece, &range);
            }
            told?;
        }
        Ok(())
    }

    fn tell_piece(&mut self, piece: &Piece, range: &std::ops::Range<u32>) -> darner_store::Result<()> {
        match piece.packed_len() {
            Some(n) => {
                put_span(&mut self.out, range, LZ4);
                put_varint(&mut self.out, n as u64);
                self.fs.store.read_packed(piece, &mut self.out)
            }
            None => {
                put_span(&mut self.out, range, RAW);
                self.fs.store.read_onto(piece, &mut self.out)
            }
        }
    }

    fn inode(&self, object: ObjectId) -> Inode {
        Inode { object, ..self.root }
    }
}

/// Where in its chunk a piece is.
fn range_of(piece: &Piece) -> std::ops::Range<u32> {
    let start = (piece.offset % CHUNK) as u32;
    start..start + piece.len as u32
}
