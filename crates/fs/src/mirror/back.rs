//! The return of an old source: its mirror was promoted, and went on; it follows that now, from the moment that they have in common.
//! What it has from after that is kept as a clone, which is apart (`fileset.rs`): the root is the other side's from then on.

use darner_store::Tid;

use crate::change::SMALL;
use crate::error::{FsError, Result, refuse};
use crate::fileset::Fileset;
use crate::fs::Fs;
use crate::mirror::{Following, Upstream, put_books};
use crate::node::{MAIN, ROOT};

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
    /// again what it was at the moment that they have in common; what it is now is kept as the fileset `name`. Returns that moment, and the
    /// fileset. Nothing may be mounted.
    pub fn turn_back(
        &self,
        other: [u8; 16],
        was: &Was,
        origin: &str,
        name: &str,
        now_ns: u64,
    ) -> Result<(Tid, Fileset)> {
        if self.following().is_some() {
            return refuse(libc::EINVAL, "this store follows another one already");
        }
        let uuid = self.store.uuid();
        let Some(Upstream { fileset, at, .. }) = was.of.iter().find(|up| up.source == uuid).copied() else {
            return refuse(
                libc::EINVAL,
                "the other store was a mirror, but neither of this one nor of a mirror of it: make a new mirror of it in another place, \
                 and what this one had alone can be copied from here",
            );
        };
        // (Every mirror has the main fileset of the one before it, but the first.)
        if self.shown(MAIN, at)? != Some(at) {
            return Err(FsError::told(
                libc::ESTALE,
                format!("the moment {at}, which both had, is not kept here any more: make a new mirror"),
            ));
        }
        let mut others = false;
        for fileset in self.filesets_at(at)? {
            let found = self.dirent(ROOT, fileset.name.as_bytes(), at)?;
            others |= found.is_some_and(|found| found.ino.fileset != MAIN);
        }
        if fileset != MAIN || others {
            return refuse(
                libc::EOPNOTSUPP,
                "only a store that had no other filesets then can follow its mirror: make a new mirror",
            );
        }
        // (Those made since lose their names in the root, as this one does.)
        let alone = self.clone_fileset(now_ns, ROOT, None, name)?;
        self.rewind(at, now_ns)?;
        self.store.admit(SMALL)?;
        let live = self.live.write();
        let mut tx = self.store.begin(MAIN, now_ns)?;
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
}
