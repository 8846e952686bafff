//! Whether a mirror has what its source has, found without sending it: both sides digest what a mirror is to have, as of a
//! moment that they have in common, and ranges of keys whose digests differ are digested again in smaller pieces.
//!
//! The side that is followed says where each piece ends, so that both speak of the same. Places and tids, which differ, are left out: a
//! file is its attributes and which of its bytes there are, and if asked for, those bytes.

use std::hash::Hasher;
use std::ops::Range;

use darner_store::{CHUNK, Error as StoreError, Kind, ObjectId, Tid, What, split_tail};
use siphasher::sip128::{Hasher128, SipHasher13};

use crate::attr::Attr;
use crate::codec::{Reader, put_bytes, put_varint};
use crate::error::{FsError, Result, refuse};
use crate::fs::Fs;
use crate::mirror::apply::{Applying, name_in};
use crate::mirror::item::{Item, decode_all};
use crate::mirror::source::{Part, Sent, Telling, Wanted, stretches};
use crate::mirror::{Changed, is_mirrored, put_books, tail_of};
use crate::node::{Inode, MAIN, Node, ROOT};

/// Keys looked up at a time.
const BATCH: usize = 512;
/// Digests of an answer at most.
const DIGESTS_MAX: u64 = 1024;
/// Damaged keys of an answer at most: having them healed takes its time.
const DAMAGED_MAX: u64 = 8;
/// Characters of the name of what was damaged.
const NAME_MAX: usize = 1000;
/// The hash of keys of which one can't be read where they are digested: nobody's are the same.
pub const UNREADABLE: u128 = u128::MAX;

/// What is to be digested of a fileset, as a mirror is to have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digesting {
    /// Tails (of the mirror) from here on.
    pub from: Vec<u8>,
    /// And to before this; empty: to the end.
    pub to: Vec<u8>,
    /// As of this moment, which is pinned.
    pub at: Tid,
    /// So many keys to a digest.
    pub run: u64,
    /// So many digests at most.
    pub max: u64,
    /// The bytes of files too, which are read.
    pub data: bool,
}

/// What some keys say, in short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// It is of the tails from the end of the one before on to before this one (empty: the end).
    pub end: Vec<u8>,
    /// How many there are.
    pub keys: u64,
    /// A hash of them all.
    pub hash: u128,
}

/// Digests of a range, or of its beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    /// In order.
    pub digests: Vec<Digest>,
    /// Whether more follows.
    pub more: bool,
}

/// What was found damaged while digesting.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Damaged {
    /// What is healed by now, by path.
    pub healed: Vec<String>,
    /// Keys whose digest is [`UNREADABLE`].
    unreadable: u64,
}

impl Damaged {
    fn is_enough(&self) -> bool {
        self.healed.len() as u64 + self.unreadable >= DAMAGED_MAX
    }
}

impl Digests {
    /// As it is sent.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![u8::from(self.more)];
        put_varint(&mut out, self.digests.len() as u64);
        for d in &self.digests {
            put_bytes(&mut out, &d.end);
            put_varint(&mut out, d.keys);
            out.extend_from_slice(&d.hash.to_le_bytes());
        }
        out
    }

    /// From [`Digests::encode`]; `None` for what is none.
    pub fn decode(bytes: &[u8]) -> Option<Digests> {
        let mut from = Reader(bytes);
        let more = from.byte().filter(|more| *more < 2)? == 1;
        let n = from.varint().filter(|n| *n <= DIGESTS_MAX)?;
        let mut digests = Vec::new();
        for _ in 0..n {
            let end = from.bytes()?.to_vec();
            let keys = from.varint()?;
            let hash = u128::from_le_bytes(from.take(16)?.try_into().ok()?);
            digests.push(Digest { end, keys, hash });
        }
        from.end()?;
        Some(Digests { digests, more })
    }
}

/// Takes in keys, one after the other.
struct Taking {
    hash_key: [u8; 16],
    hasher: SipHasher13,
    keys: u64,
    unreadable: bool,
}

impl Taking {
    fn new(hash_key: [u8; 16]) -> Taking {
        Taking { hash_key, hasher: SipHasher13::new_with_key(&hash_key), keys: 0, unreadable: false }
    }

    fn key(&mut self, tail: &[u8], says: &[u8]) {
        for part in [tail, says] {
            self.hasher.write_u64(part.len() as u64);
            self.hasher.write(part);
        }
        self.keys += 1;
    }

    fn finish(&mut self, end: Vec<u8>) -> Digest {
        let done = std::mem::replace(self, Taking::new(self.hash_key));
        let hash = if done.unreadable { UNREADABLE } else { done.hasher.finish128().as_u128() };
        Digest { end, keys: done.keys, hash }
    }
}

impl Fs {
    /// Digests what a mirror of a fileset is to have. `damaged`: what is damaged is healed from those who follow, or else told; `None`: it
    /// ends this.
    pub fn digests(&self, root: Inode, asked: &Digesting, mut damaged: Option<&mut Damaged>) -> Result<Digests> {
        let (mut sent, run) = (Sent::default(), asked.run.max(1));
        let mut telling = Telling::new(self, root, asked.at, &mut sent)?;
        let mut taking = Taking::new(self.hash_key);
        let mut out = Digests::default();
        let first = asked.from.first_chunk().map_or(0, |object| u64::from_be_bytes(*object));
        for stretch in stretches(root.object).iter().filter(|s| s.to > first && s.from < s.to) {
            let (start, end) = (tail_of(stretch.from), tail_of(stretch.to));
            let from = asked.from.as_slice().max(&start);
            let to = if asked.to.is_empty() { &end[..] } else { asked.to.as_slice().min(&end) };
            let mut pos = Some(stretch.here(from)).filter(|_| from < to);
            let end = stretch.here(to);
            while let Some(from) = pos {
                let delta = self.store.delta(root.fileset, &from, &end, Tid::ZERO, asked.at, BATCH)?;
                for change in delta.changes {
                    let tail = stretch.there(&change.tail);
                    match self.says(&mut telling, change, asked.data, damaged.as_deref_mut()) {
                        Ok(Some(says)) => taking.key(&tail, &says),
                        Ok(None) => continue,
                        Err(e) => {
                            let damaged = damaged.as_deref_mut().filter(|_| is_damage(&e)).ok_or(e)?;
                            damaged.unreadable += 1;
                            taking.unreadable = true;
                            taking.keys += 1;
                        }
                    }
                    if taking.keys == run || damaged.as_ref().is_some_and(|damaged| damaged.is_enough()) {
                        let end = [&tail[..], &[0]].concat();
                        // (Ranges within others end right behind their last key.)
                        let is_all = end == asked.to;
                        out.digests.push(taking.finish(end));
                        let is_enough = damaged.as_ref().is_some_and(|damaged| damaged.is_enough());
                        if is_all || is_enough || out.digests.len() as u64 >= asked.max.clamp(1, DIGESTS_MAX) {
                            out.more = !is_all;
                            return Ok(out);
                        }
                    }
                }
                pos = delta.next;
            }
        }
        out.digests.push(taking.finish(asked.to.clone()));
        Ok(out)
    }

    /// What a key says to a mirror, without places and tids; `None`: nothing.
    fn says(
        &self,
        telling: &mut Telling<'_>,
        change: darner_store::Change,
        data: bool,
        damaged: Option<&mut Damaged>,
    ) -> Result<Option<Vec<u8>>> {
        let Some((object, kind, suffix)) = split_tail(&change.tail) else { return Ok(None) };
        let What::Set(tid, value) = &change.what else { return Ok(None) };
        if kind == Kind::EXTENT && is_mirrored(&change.tail) {
            let ino = Inode { object, ..telling.root };
            let Ok(chunk) = suffix.try_into().map(u64::from_be_bytes) else { return Ok(None) };
            if !telling.is_alive(ino, kind, &change.what)? {
                return Ok(None);
            }
            return self.chunk_says(ino, chunk, (*tid, value), data, damaged);
        }
        Ok(match telling.item(change.tail, change.what, &|tail: &[u8]| tail.to_vec())? {
            Some(Item::Set(_, tid, value)) if kind == Kind::ATTR => {
                Attr::decode(&value, tid).map(|attr| attr.encode(Tid::ZERO))
            }
            Some(Item::Set(_, _, value)) => Some(value),
            _ => None,
        })
    }

    /// Which bytes of a chunk there are (neighbours as one, however they are stored), and what they are.
    fn chunk_says(
        &self,
        ino: Inode,
        chunk: u64,
        (tid, value): (Tid, &[u8]),
        data: bool,
        mut damaged: Option<&mut Damaged>,
    ) -> Result<Option<Vec<u8>>> {
        let pieces = self.store.pieces_of(ino.object, chunk, tid, value)?;
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let mut bytes = Vec::new();
        for piece in &pieces {
            match ranges.last_mut().filter(|last| last.1 == piece.offset) {
                Some(last) => last.1 += piece.len,
                None => ranges.push((piece.offset, piece.offset + piece.len)),
            }
            if data {
                let start = bytes.len();
                bytes.resize(start + piece.len as usize, 0);
                let piece = std::slice::from_ref(piece);
                let mut read = self.store.read(piece, &mut bytes[start..]);
                // Whoever compares may have what is damaged here.
                if let (Err(StoreError::Data { .. }), Some(damaged)) = (&read, damaged.as_deref_mut())
                    && self.store.heal_pieces(ino.fileset, piece)?
                {
                    read = self.store.read(piece, &mut bytes[start..]);
                    if read.is_ok() {
                        let path: String = self.path_of(Node::Live(ino)).chars().take(NAME_MAX).collect();
                        damaged.healed.push(format!("{path}: bytes from {} on", piece[0].offset));
                    }
                }
                read.map_err(|e| self.explain(Node::AsOf(ino, tid), e.into()))?;
            }
        }
        let mut says = Vec::new();
        for (from, to) in &ranges {
            put_varint(&mut says, from - chunk.saturating_mul(CHUNK));
            put_varint(&mut says, to - from);
        }
        says.extend(bytes);
        Ok((!ranges.is_empty()).then_some(says))
    }

    /// Makes the keys of a range what a part says, which has all of them that the source has, as of the moment that is shown here.
    /// What is shown then is as of the same moment of the source.
    pub fn mend(&self, wanted: &Wanted, part: &Part) -> Result<Changed> {
        let refused = || FsError::malformed("what the source sent is not in a known form");
        let mut items = decode_all(&part.items).ok_or_else(refused)?;
        let end = part.next.clone().unwrap_or_else(|| wanted.to.clone());
        items.retain(|item| !matches!(item, Item::Stated(..)));
        items.insert(0, Item::Stated(wanted.from.clone(), end));
        let acts = self.acts(items)?;
        let mut f = self.following().ok_or(FsError::new(libc::EINVAL, "this is no mirror"))?;
        if !f.is_whole() || f.at != wanted.at {
            return refuse(libc::EAGAIN, "it shows another moment by now");
        }
        self.note_doing()?;
        self.forget_former(&acts, self.store.tid().0)?;
        self.store.admit(part.items.len() as u64 + (1 << 20))?;
        let _live = self.live.write();
        f.paused = self.following().is_some_and(|f| f.paused);
        let tx = self.store.begin(MAIN, self.store.tid().0)?;
        let mut applying = Applying::new(self, tx);
        let mut changed = Changed::default();
        for (tail, act) in acts {
            changed.names.extend(name_in(&tail));
            changed.objects.extend(split_tail(&tail).map(|(object, ..)| Inode { fileset: MAIN, object }));
            applying.act(&tail, act)?;
        }
        f.shown = applying.tx.tid();
        put_books(&mut applying.tx, &f);
        let tid = applying.finish()?;
        *self.mirror.state.lock() = Some(f);
        self.show(tid)?;
        Ok(changed)
    }

    /// What a tail is about, for people: a path, and what of it. `None`: nothing that is mirrored.
    pub fn name_of_tail(&self, tail: &[u8]) -> Option<String> {
        let (object, kind, suffix) = split_tail(tail).filter(|_| is_mirrored(tail))?;
        // (Of what is dead, keys may be left.)
        self.attr_at(Inode { fileset: MAIN, object }, Tid::MAX).ok()??;
        let path = self.path_of(Node::Live(Inode { fileset: MAIN, object }));
        let what = match kind {
            Kind::ATTR => "attributes".into(),
            Kind::TARGET => "target".into(),
            Kind::XATTR => format!("attribute {}", String::from_utf8_lossy(suffix)),
            Kind::DIRENT => format!("name {}", String::from_utf8_lossy(suffix.get(8..).unwrap_or_default())),
            Kind::EXTENT => {
                let chunk = suffix.try_into().map(u64::from_be_bytes).unwrap_or_default();
                format!("bytes from {} on", chunk.saturating_mul(CHUNK))
            }
            _ => format!("kind {}", kind.0),
        };
        Some(format!("{path}: {what}"))
    }

    /// The bytes of an object of the fileset that is followed (numbered as the mirror does) as some transactions had them that came
    /// soon after a moment, and as they are: for who has lost them. `n`: which attempt; `None`: there are no more.
    pub fn remembered(
        &self,
        root: Inode,
        object: ObjectId,
        range: Range<u64>,
        tid: Tid,
        n: u64,
    ) -> Result<Option<Vec<u8>>> {
        let object = if object == ROOT.object { root.object } else { object };
        let ino = Inode { object, ..root };
        // A pull's transactions come up to a millisecond before the moment that they are for.
        let after = Tid(tid.0.saturating_sub(2_000_000));
        let mut moments = vec![Tid::MAX, tid];
        let chunk = (range.start / CHUNK).to_be_bytes();
        self.store.versions(ino.fileset, object, Kind::EXTENT, &chunk, &mut |_, version, _| {
            if version >= after {
                moments.push(version);
            }
            std::ops::ControlFlow::Continue(())
        })?;
        moments[2..].sort();
        let Some(at) = usize::try_from(n).ok().and_then(|n| moments.get(n)) else { return Ok(None) };
        let len = range.end.saturating_sub(range.start);
        let pieces = self.store.map(ino.fileset, object, range.start, len, *at)?;
        let mut bytes = vec![0; len as usize];
        self.store.read(&pieces, &mut bytes)?;
        Ok(Some(bytes))
    }

    /// The moment of the source that a transaction of a pull is from.
    pub fn pulled_from(&self, tid: Tid) -> Option<Tid> {
        self.books_at(tid).ok().flatten().map(|f| if f.target > f.at { f.target } else { f.at })
    }
}

fn is_damage(e: &FsError) -> bool {
    matches!(e.cause(), Some(StoreError::Data { .. } | StoreError::Corrupt { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_come_back_and_no_bytes_make_decoding_panic() {
        let digest = |n: u8| Digest { end: vec![n; 9], keys: n.into(), hash: u128::from(n) << 100 | 7 };
        let all = Digests { digests: (0..5).map(digest).collect(), more: true };
        assert_eq!(Digests::decode(&all.encode()), Some(all.clone()));
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..100_000 {
            let mut bytes = all.encode();
            let at = rng.usize(..bytes.len());
            bytes[at] = rng.u8(..);
            bytes.truncate(rng.usize(..=bytes.len()));
            Digests::decode(&bytes);
        }
    }
}
