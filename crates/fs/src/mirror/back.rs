//! The return of an old source: its mirror was promoted, and went on; it follows that now, from the moment that they have in common.
//! What it has from after that is kept as a clone. That and its other filesets are apart (`fileset.rs`): the root is the other side's from then on.

use darner_store::{Kind, Tid, split_tail};

use crate::attr::{Attr, Time};
use crate::change::SMALL;
use crate::dirent::Dirent;
use crate::error::{FsError, Result, refuse};
use crate::fileset::Fileset;
use crate::fs::Fs;
use crate::mirror::openings::UNKNOWN;
use crate::mirror::{Following, Upstream, is_mirrored, put_books};
use crate::node::{Inode, MAIN, ROOT};

/// What a promoted mirror was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Was {
    /// Its own transaction that has the same as those below.
    pub shown: Tid,
    /// The store that it followed, that which this one followed, and so on: it has what each was at that moment.
    pub of: Vec<Upstream>,
}

impl Fs {
    /// What this store followed, if it is a mirror that was promoted.
    pub fn was(&self) -> Result<Option<Was>> {
        let found = self.books_at(Tid::MAX)?.filter(|f| f.promoted);
        Ok(found.map(|f| Was { shown: f.shown, of: f.upstream() }))
    }

    /// Has this store follow the one that was its mirror, or its mirror's: `other` (reached at `origin`), of which `was` tells. Everything is
    /// again what it was at the moment that they have in common; what it is now, if it is anything else, is kept as the fileset `name`.
    /// Returns that moment, and that fileset. Nothing may be mounted.
    pub fn turn_back(
        &self,
        other: [u8; 16],
        was: &Was,
        origin: &str,
        name: &str,
        now_ns: u64,
    ) -> Result<(Tid, Option<Fileset>)> {
        if self.following().is_some() {
            return refuse(libc::EINVAL, "this store follows another one already");
        }
        let uuid = self.store.uuid();
        let Some(Upstream { fileset, at, opening, .. }) = was.of.iter().find(|up| up.source == uuid).copied() else {
            return refuse(
                libc::EINVAL,
                "the other store was a mirror, but neither of this one nor of a mirror of it: make a new mirror of it in another place, \
                 and what this one had alone can be copied from here",
            );
        };
        if !self.has_been(at, opening)? {
            return Err(FsError::told(
                libc::ESTALE,
                format!(
                    "the moment {at}, which the other has, has never been here: this is an older copy of what it followed"
                ),
            ));
        }
        // (Every mirror has the main fileset of the one before it, but the first.)
        if self.shown(MAIN, at)? != Some(at) {
            return Err(FsError::told(
                libc::ESTALE,
                format!("the moment {at}, which both had, is not kept here any more: make a new mirror"),
            ));
        }
        if fileset != MAIN {
            return refuse(
                libc::EOPNOTSUPP,
                "the other store was a mirror of one fileset of this one, not of the whole: make a new mirror of it in another place",
            );
        }
        let alone = match self.has_more_than(at)? {
            true => Some(self.clone_fileset(now_ns, ROOT, None, name)?),
            false => None,
        };
        self.rewind(at, now_ns)?;
        self.store.admit(SMALL)?;
        let live = self.live.write();
        let mut tx = self.store.begin(MAIN, now_ns)?;
        // The names of other filesets were not followed. (Those made since lost theirs as everything did.)
        let away = self.fileset_names(ROOT, at)?;
        if let Some(root) = self.attr_at(ROOT, Tid::MAX)?.filter(|_| !away.is_empty()) {
            away.iter().for_each(|suffix| tx.delete(ROOT.object, Kind::DIRENT, suffix));
            tx.put(ROOT.object, Kind::ATTR, &[], &root.without(away.len()).encode(tx.tid()));
        }
        let found = Following {
            source: other,
            fileset: MAIN,
            name: "main".into(),
            origin: origin.into(),
            promoted: false,
            paused: false,
            at: was.shown,
            shown: tx.tid(),
            target: was.shown,
            aim: Tid::ZERO,
            pieces: vec![(Vec::new(), was.shown)],
            opening: UNKNOWN,
            above: Vec::new(),
        };
        put_books(&mut tx, &found);
        let tid = tx.commit()?;
        self.mirror.ever.store(true, std::sync::atomic::Ordering::Release);
        *self.mirror.state.lock() = Some(found);
        drop(live);
        self.show(tid)?;
        self.sync()?;
        Ok((at, alone))
    }

    /// Whether this store was promoted when it had followed `other`, of which `was` tells that it was promoted before that.
    pub fn went_on_after(&self, other: [u8; 16], was: &Was) -> Result<bool> {
        let own = self.was()?;
        Ok(own.is_some_and(|own| own.of.iter().any(|up| up.source == other && up.at >= was.shown)))
    }

    /// Whether the main fileset is anything else than it was as of a moment that is kept, as far as a mirror has it.
    fn has_more_than(&self, at: Tid) -> Result<bool> {
        let mut pos = Some(Vec::new());
        while let Some(from) = pos {
            let (tails, next) = self.touched_since(&from, at)?;
            for tail in tails.iter().filter(|tail| is_mirrored(tail)) {
                if self.is_another_than(tail, at)? {
                    return Ok(true);
                }
            }
            pos = next;
        }
        Ok(false)
    }

    fn is_another_than(&self, tail: &[u8], at: Tid) -> Result<bool> {
        let Some((object, kind, suffix)) = split_tail(tail) else { return Ok(false) };
        let ino = Inode { fileset: MAIN, object };
        let (Some(then), Some(now)) = (self.attr_at(ino, at)?, self.attr_at(ino, Tid::MAX)?) else {
            let there = |at| Ok::<bool, FsError>(self.attr_at(ino, at)?.is_some());
            return Ok(there(at)? != there(Tid::MAX)?);
        };
        // Filesets come and go in the root, which a mirror does not have.
        let own = |attr: Attr| match ino == ROOT {
            true => Attr { size: 0, nlink: 0, mtime: Time::from(at), ctime: Time::from(at), ..attr },
            false => attr,
        };
        let found = |at| self.store.get(&ino.key(kind, suffix), at);
        Ok(match kind {
            Kind::ATTR => own(then) != own(now),
            Kind::DIRENT => {
                let leads = |value: &[u8]| Dirent::decode(value, MAIN).filter(|found| found.ino.fileset == MAIN);
                let (then, now) = (found(at)?, found(Tid::MAX)?);
                then.and_then(|then| leads(&then.value)) != now.and_then(|now| leads(&now.value))
            }
            _ => found(at)?.map(|then| then.tid) != found(Tid::MAX)?.map(|now| now.tid),
        })
    }
}
