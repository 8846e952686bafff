//! As-of names: `NAME@@WHEN`, `@@WHEN`, `@@`, and Samba's `@GMT-…`.
//!
//! These names mean something only where no entry has them literally. A name splits at the last `@@` that leaves a
//! WHEN, so NAME may itself contain `@@`. NAME is looked up in the directory *as it was then*: files deleted or
//! renamed since are found under the name they had. A moment is never later than the newest transaction, so what a
//! resolved one shows can't change.

use std::collections::HashMap;

use darner_store::{FilesetId, Tid};

use crate::change::Plan;
use crate::error::{FsError, Result};
use crate::fs::Fs;
use crate::lookup::Entry;
use crate::name::{NAME_MAX, is_dots};
use crate::node::{Inode, MAIN, Node};
use crate::when;

/// The virtual directory of a directory's points in time.
pub(crate) const POINTS: &[u8] = b"@@";
const SAMBA: &[u8] = b"@GMT-";

/// A moment that exists: after the filesystem's birth, not in the future.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    /// As of this tid: the moment asked for or, where that was given up, the newest one before it that is kept.
    pub tid: Tid,
    /// Whether the text will always mean this tid.
    pub steady: bool,
}

/// What relative times meant lately: `(asked at, tid)`.
pub(crate) type Recent = HashMap<String, (u64, Tid)>;

const RECENT_MAX: usize = 256;
const RECENT_NANOS: u64 = 1_000_000_000;

impl Plan<'_> {
    /// Refuses a name that is to be given, changed or taken away if it leads into the past.
    pub(crate) fn not_in_the_past(&self, dir: Inode, name: &[u8], now_ns: u64, refusal: FsError) -> Result<()> {
        match self.fs.lookup_past(dir, name, now_ns)? {
            Some(_) => Err(refusal),
            None => Ok(()),
        }
    }
}

/// Why a text names no moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoMoment {
    /// It is no WHEN.
    NotAWhen,
    /// It is before the filesystem's birth.
    BeforeBirth,
    /// It is in the future.
    InTheFuture,
    /// Neither this moment nor any before it is kept any more.
    GivenUp(Tid),
}

impl Fs {
    /// The tid that a WHEN means in a fileset (each has labels of its own); `None` if it is none, or a moment before the filesystem's birth or in the future.
    ///
    /// For up to a second a relative text means the same tid, so that the steps of one walk see one moment.
    pub fn resolve_when(&self, fileset: FilesetId, text: &str, now_ns: u64) -> Result<Option<Tid>> {
        Ok(self.moment(fileset, text, now_ns)?.map(|moment| moment.tid))
    }

    /// The same, and whether it will stay so.
    pub fn moment(&self, fileset: FilesetId, text: &str, now_ns: u64) -> Result<Option<Moment>> {
        Ok(self.moment_or_why(fileset, text, now_ns)?.ok())
    }

    /// The same, or why it is none.
    pub fn moment_or_why(
        &self,
        fileset: FilesetId,
        text: &str,
        now_ns: u64,
    ) -> Result<std::result::Result<Moment, NoMoment>> {
        let newest = self.store.tid();
        let Some(when) = when::parse(text, now_ns, &self.zone) else {
            let label = self.label_tid(fileset, text)?;
            return Ok(label.map(|tid| Moment { tid, steady: false }).ok_or(NoMoment::NotAWhen));
        };
        if text == "now" {
            let tid = self.head().filter(|_| fileset == MAIN).unwrap_or(newest);
            return Ok(Ok(Moment { tid, steady: false }));
        }
        let asked = if when.moves { self.lately(text, when.tid, now_ns) } else { when.tid };
        if asked < self.store.birth() {
            return Ok(Err(NoMoment::BeforeBirth));
        }
        if asked > newest.max(Tid(now_ns)) {
            return Ok(Err(NoMoment::InTheFuture));
        }
        // (What a mirror shows as of a moment behind its head, the next pull says.)
        let steady = !when.moves && (asked <= newest || fileset != MAIN || self.head().is_none());
        if steady && asked > newest {
            self.store.reach(asked);
        }
        let shown = self.shown(fileset, if steady { asked } else { asked.min(newest) })?;
        Ok(shown.map(|tid| Moment { tid, steady }).ok_or(NoMoment::GivenUp(asked)))
    }

    /// What a relative text meant when it was last asked, if that is less than a second ago.
    fn lately(&self, text: &str, tid: Tid, now_ns: u64) -> Tid {
        let mut recent = self.recent.lock();
        if let Some((asked, tid)) = recent.get(text)
            && now_ns.checked_sub(*asked).is_some_and(|ago| ago < RECENT_NANOS)
        {
            return *tid;
        }
        if recent.len() >= RECENT_MAX {
            recent.clear();
        }
        recent.insert(text.to_string(), (now_ns, tid));
        tid
    }

    /// What an as-of name leads to in directory `dir` (any moment of it); `None` if it is no such name or leads
    /// nowhere.
    pub(crate) fn lookup_past(&self, dir: Inode, name: &[u8], now_ns: u64) -> Result<Option<Entry>> {
        if !name.starts_with(SAMBA) && !name.windows(2).any(|pair| pair == POINTS) {
            return Ok(None);
        }
        if name == POINTS {
            let node = Node::Points(dir);
            return Ok(Some(Entry { node, attr: self.attr(node)?, steady: true }));
        }
        let (dir, base, moment) = match self.split(dir.fileset, name, now_ns)? {
            Some((base, moment)) => (dir, base, moment),
            None => match self.split_at_fileset(dir, name, now_ns)? {
                Some((root, moment)) => (root, &b""[..], moment),
                None => return Ok(None),
            },
        };
        let object = match base {
            b"" => Some(dir),
            _ if base.len() > NAME_MAX || is_dots(base) => None,
            _ => self.dirent(dir, base, moment.tid)?.map(|found| found.ino),
        };
        let Some(object) = object else { return Ok(None) };
        let node = self.found_beside(Node::AsOf(dir, moment.tid), object)?;
        let attr = self.attr_shown(object, node.at())?;
        Ok(attr.map(|attr| Entry { node, attr, steady: moment.steady }))
    }

    /// Name and moment of `NAME@@WHEN` (the name is empty for the directory itself).
    fn split<'n>(&self, fileset: FilesetId, name: &'n [u8], now_ns: u64) -> Result<Option<(&'n [u8], Moment)>> {
        for (base, text) in splits(name) {
            match self.moment_or_why(fileset, text, now_ns)? {
                Err(NoMoment::NotAWhen) => {}
                Err(_) => return Ok(None),
                Ok(moment) => return Ok(Some((base, moment))),
            }
        }
        Ok(None)
    }

    /// Root and moment of `NAME@@LABEL`, where NAME is a fileset's directory, which has labels of its own.
    fn split_at_fileset(&self, dir: Inode, name: &[u8], now_ns: u64) -> Result<Option<(Inode, Moment)>> {
        for (base, text) in splits(name).filter(|(base, _)| (1..=NAME_MAX).contains(&base.len()) && !is_dots(base)) {
            let root = self.dirent(dir, base, Tid::MAX)?.map(|found| found.ino);
            if let Some(root) = root.filter(|root| root.fileset != dir.fileset)
                && let Some(moment) = self.moment(root.fileset, text, now_ns)?
            {
                return Ok(Some((root, moment)));
            }
        }
        Ok(None)
    }
}

/// The ways to read a name as NAME and WHEN (the name is empty for the directory itself), the last mark first.
pub fn splits(name: &[u8]) -> impl Iterator<Item = (&[u8], &str)> {
    let marks = (0..name.len().saturating_sub(2)).rev().filter(|&at| &name[at..at + 2] == POINTS);
    let samba = name.starts_with(SAMBA).then_some((&b""[..], name));
    let splits = marks.map(|at| (&name[..at], &name[at + 2..])).chain(samba);
    splits.filter_map(|(base, text)| Some((base, std::str::from_utf8(text).ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_split_at_its_last_mark_first() {
        let all = |name| splits(name).collect::<Vec<_>>();
        assert_eq!(all(b"a@@b@@-1d"), [(&b"a@@b"[..], "-1d"), (b"a", "b@@-1d")]);
        assert_eq!(all(b"@@x"), [(&b""[..], "x")]);
        assert_eq!(all(b"x@@"), []);
        assert_eq!(all(b"@GMT-2026.11.22-09.30.15"), [(&b""[..], "@GMT-2026.11.22-09.30.15")]);
    }
}
