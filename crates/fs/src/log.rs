//! The versions of a path: what happened to the objects that had this name, its deletions included.
//!
//! The way to the last name goes through what is there now or, where nothing is, through what was there last. The
//! name's own records then tell which object had it when; each object's ATTR records, what happened to it meanwhile
//! (every change of an object, its data included, writes one).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::ControlFlow;
use std::sync::Arc;

use darner_store::{FilesetId, Kind, Retention, Tid};

use crate::attr::{Attr, Time};
use crate::dirent::Dirent;
use crate::error::{Result, refuse};
use crate::fs::Fs;
use crate::node::Inode;

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// The object was made under this name.
    Created,
    /// Its data changed (a directory: its entries).
    Written,
    /// Its attributes changed (mode, owner, times, xattrs, links).
    Attributes,
    /// It was given this name in place of another.
    RenamedHere,
    /// It was given this name beside another.
    Linked,
    /// It was given another name in place of this.
    RenamedAway,
    /// This name was removed; the object may have others.
    Removed,
    /// Another object took the name.
    Replaced,
}

/// A version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogEntry {
    /// When; on a mirror, when the pull that brought it was whole.
    pub tid: Tid,
    /// `NAME@@0x<shown>` shows it (unless it lost the name then): when or, where that moment was given up or (of a clone) is from
    /// before there was the fileset, the first one since that is kept.
    pub shown: Tid,
    /// What happened.
    pub what: What,
    /// To which object.
    pub ino: Inode,
    /// The object's attributes since.
    pub attr: Attr,
}

/// A stretch of time in which a name led to one object.
pub(crate) struct Tenure {
    pub ino: Inode,
    from: Tid,
    /// When it ended; `None`: it lasts.
    until: Option<Tid>,
    /// Whether the past shows nothing of it.
    only_now: bool,
    /// Whether it began, or ended, with that of a directory around it.
    came: bool,
    left: bool,
}

impl Tenure {
    fn of_root(ino: Inode) -> Tenure {
        Tenure { ino, from: Tid::ZERO, until: None, only_now: false, came: false, left: false }
    }

    /// As it was seen then: if it had begun, and lasted, its end is not known.
    fn seen_at(self, then: Tid) -> Option<Tenure> {
        let lasted = self.until.is_none_or(|until| until > then);
        let (until, left) = if lasted { (None, false) } else { (self.until, self.left) };
        (self.from <= then).then_some(Tenure { until, left, ..self })
    }

    /// If the past of what has the name now is meant: whether this is that.
    fn of_now(self, to: Tid) -> Option<Tenure> {
        (to == Tid::MAX || self.until.is_none()).then_some(self)
    }

    /// What of it lies within that of a directory, in which it is. (Of one that is there now all can be looked at by its path, wherever it
    /// was then: DIR/NAME@@WHEN.)
    fn within(self, dir: &Tenure) -> Option<Tenure> {
        let came = dir.until.is_some() && dir.from > self.from;
        let left = dir.until.is_some_and(|end| self.until.is_none_or(|until| end < until));
        let (from, until) = (if came { dir.from } else { self.from }, if left { dir.until } else { self.until });
        until.is_none_or(|until| from < until).then_some(Tenure { from, until, came, left, ..self })
    }
}

/// Writes that follow one another within this are one run.
const RUN_NANOS: u64 = 1_000_000_000;

impl Fs {
    /// The versions of the objects at a path (names from `root` down), oldest first; of its directories too, all that ever
    /// had their names are looked into, for the time that they had them. Only those up to `to`; which objects are meant, the first
    /// `present` names say as they are now, those behind them as they were then. With `coalesce`, of writes that
    /// follow one another within a second only the last is told, and the last before a label. ENOENT if nothing ever had this name.
    pub fn log(&self, root: Inode, path: &[&[u8]], to: Tid, present: usize, coalesce: bool) -> Result<Vec<LogEntry>> {
        let mut log = self.whole_log(root, path, to, present)?;
        for e in &mut log {
            e.tid = self.whole_since(e.ino.fileset, e.tid)?.unwrap_or(e.tid);
        }
        log.retain(|e| e.tid <= to);
        if coalesce {
            self.coalesce(&mut log)?;
        }
        Ok(log)
    }

    fn whole_log(&self, root: Inode, path: &[&[u8]], to: Tid, present: usize) -> Result<Vec<LogEntry>> {
        let Some((name, dirs)) = path.split_last() else {
            return self.tell(&[Tenure::of_root(root)]);
        };
        let meant = |n: usize, t: Tenure| if n >= present { t.seen_at(to) } else { t.of_now(to) };
        let mut within = vec![Tenure::of_root(root)];
        for (n, name) in dirs.iter().enumerate() {
            let mut next = Vec::new();
            for dir in &within {
                next.extend(self.tenures_below(dir, name)?);
            }
            next = next.into_iter().filter_map(|dir| meant(n, dir)).collect();
            // (What is there now is looked into as a whole.)
            let now: Vec<Inode> = next.iter().filter(|dir| dir.until.is_none()).map(|dir| dir.ino).collect();
            next.retain(|dir| dir.until.is_none() || !now.contains(&dir.ino));
            within = next;
        }
        let mut tenures = Vec::new();
        for dir in &within {
            let mut all = self.tenures_below(dir, name)?;
            if self.kept_since(dir.ino)? == Tid::MAX {
                all.retain(|tenure| tenure.until.is_none());
                all.iter_mut().for_each(|tenure| tenure.only_now = true);
            }
            tenures.extend(all.into_iter().filter_map(|tenure| meant(dirs.len(), tenure)));
        }
        tenures.sort_by_key(|t| t.from);
        if tenures.is_empty() {
            return refuse(libc::ENOENT, "nothing ever had this name");
        }
        self.tell(&tenures)
    }

    /// Which objects had a name in a directory, within the time of that, oldest first.
    fn tenures_below(&self, dir: &Tenure, name: &[u8]) -> Result<Vec<Tenure>> {
        Ok(self.tenures(dir.ino, name)?.into_iter().filter_map(|tenure| tenure.within(dir)).collect())
    }

    /// Which objects had a name in any of these directories, oldest first.
    pub(crate) fn tenures_in(&self, dirs: &[Inode], name: &[u8]) -> Result<Vec<Tenure>> {
        let mut all = Vec::new();
        for dir in dirs {
            all.extend(self.tenures(*dir, name)?);
        }
        all.sort_by_key(|t| t.from);
        Ok(all)
    }

    /// Which objects had a name and when, oldest first.
    fn tenures(&self, dir: Inode, name: &[u8]) -> Result<Vec<Tenure>> {
        let suffix = self.suffix(name);
        let mut changes = Vec::new();
        self.store.versions(dir.fileset, dir.object, Kind::DIRENT, &suffix, &mut |found, tid, value| {
            if found == suffix {
                changes.push((tid, value.and_then(|value| Dirent::decode(value, dir.fileset))));
            }
            ControlFlow::Continue(())
        })?;
        changes.reverse();
        let mut tenures: Vec<Tenure> = Vec::new();
        for (tid, found) in changes {
            if let Some(last) = tenures.last_mut() {
                last.until = last.until.or(Some(tid));
            }
            tenures.extend(found.map(|entry| Tenure { from: tid, ..Tenure::of_root(entry.ino) }));
        }
        Ok(tenures)
    }

    fn tell(&self, tenures: &[Tenure]) -> Result<Vec<LogEntry>> {
        let mut log = Vec::new();
        for (nth, tenure) in tenures.iter().enumerate() {
            let kept_since = self.kept_since(tenure.ino)?;
            if tenure.only_now || kept_since == Tid::MAX {
                log.extend(self.present(tenure)?);
                continue;
            }
            let mut attrs = self.attr_versions(tenure.ino)?;
            let later = tenure.until.map_or(attrs.len(), |until| attrs.partition_point(|(tid, _)| *tid < until));
            let end = attrs.split_off(later);
            let replaced = tenures.get(nth + 1).is_some_and(|next| Some(next.from) == tenure.until);
            let mut before = None;
            if tenure.came {
                // As it was then, it came here with a directory.
                let later = attrs.split_off(attrs.partition_point(|(tid, _)| *tid <= tenure.from));
                before = attrs.pop().map(|(_, attr)| attr);
                attrs = before.map(|attr| (tenure.from, attr)).into_iter().chain(later).collect();
            }
            let retention = self.retention(tenure.ino.fileset)?;
            let shown_since = kept_since.max(self.store.made(tenure.ino.fileset));
            let ends: Vec<Tid> =
                attrs.iter().skip(1).map(|(tid, _)| *tid).chain([tenure.until.unwrap_or(Tid::MAX)]).collect();
            for ((tid, attr), until) in attrs.into_iter().zip(ends) {
                if tid >= tenure.from
                    && let Some(shown) =
                        self.first_shown(tenure.ino.fileset, &retention, tid.max(shown_since), until)?
                {
                    log.push(LogEntry {
                        tid,
                        shown,
                        what: what(before.as_ref(), &attr, tid, tenure.from),
                        ino: tenure.ino,
                        attr,
                    });
                }
                before = Some(attr);
            }
            if let (Some(tid), Some(before)) = (tenure.until, before) {
                let after = end.first().filter(|(at, _)| *at == tid).map(|(_, attr)| *attr);
                let what = match after {
                    _ if tenure.left && self.live.read().get(tenure.ino.fileset).is_some() => What::RenamedAway,
                    Some(after) if after.nlink == before.nlink => What::RenamedAway,
                    _ if replaced => What::Replaced,
                    _ => What::Removed,
                };
                let shown = self.first_shown(tenure.ino.fileset, &retention, tid, Tid::MAX)?.unwrap_or(tid);
                log.push(LogEntry { tid, shown, what, ino: tenure.ino, attr: after.unwrap_or(before) });
            }
        }
        // (Several directories may have had the same path, in turn.)
        log.sort_by_key(|e| e.tid);
        Ok(log)
    }

    /// The first moment not before `tid` that is kept.
    pub fn first_kept_since(&self, fileset: FilesetId, tid: Tid) -> Result<Option<Tid>> {
        self.first_shown(fileset, &*self.retention(fileset)?, tid, Tid::MAX)
    }

    /// The first moment in `tid .. until` that is kept, and on a mirror not amid a pull.
    fn first_shown(&self, of: FilesetId, retention: &Retention, tid: Tid, until: Tid) -> Result<Option<Tid>> {
        let mut from = tid;
        while let Some(seen) = retention.first_seen(from, until) {
            match self.whole_since(of, seen)? {
                Some(whole) if whole == seen => return Ok(Some(seen)),
                Some(whole) => from = whole,
                None => break,
            }
        }
        Ok(None)
    }

    /// Of writes that follow one another soon, leaves the last one; and those that a label shows.
    fn coalesce(&self, log: &mut Vec<LogEntry>) -> Result<()> {
        let mut pinned: BTreeMap<FilesetId, Arc<Retention>> = BTreeMap::new();
        for e in log.iter() {
            if let Entry::Vacant(of) = pinned.entry(e.ino.fileset) {
                of.insert(self.retention(e.ino.fileset)?);
            }
        }
        log.dedup_by(|later, earlier| {
            let same = later.what == What::Written && earlier.what == What::Written && later.ino == earlier.ino;
            let soon = later.tid.0 - earlier.tid.0 <= RUN_NANOS;
            let one = same && soon && !pinned[&later.ino.fileset].is_pinned(earlier.tid, later.tid);
            if one {
                *earlier = *later;
            }
            one
        });
        Ok(())
    }

    /// The one version that there is of what has no history.
    fn present(&self, tenure: &Tenure) -> Result<Option<LogEntry>> {
        let key = tenure.ino.key(Kind::ATTR, &[]);
        let (Some(found), None) = (self.store.get(&key, Tid::MAX)?, tenure.until) else { return Ok(None) };
        let (tid, attr) = (found.tid, Attr::decode(&found.value, found.tid));
        let what = |attr: &Attr| if attr.btime == Time::from(tid) { What::Created } else { What::Written };
        Ok(attr.map(|attr| LogEntry { tid, shown: tid, what: what(&attr), ino: tenure.ino, attr }))
    }

    /// All versions of an object's attributes, oldest first.
    pub(crate) fn attr_versions(&self, ino: Inode) -> Result<Vec<(Tid, Attr)>> {
        let mut versions = Vec::new();
        self.store.versions(ino.fileset, ino.object, Kind::ATTR, &[], &mut |_, tid, value| {
            versions.extend(value.and_then(|value| Attr::decode(value, tid)).map(|attr| (tid, attr)));
            ControlFlow::Continue(())
        })?;
        versions.reverse();
        Ok(versions)
    }
}

/// What a version of an object's attributes shows to have happened at `tid`, when it has had the name since `since`.
fn what(before: Option<&Attr>, attr: &Attr, tid: Tid, since: Tid) -> What {
    match before {
        None => What::Created,
        Some(before) if tid == since && attr.nlink > before.nlink => What::Linked,
        Some(_) if tid == since => What::RenamedHere,
        Some(before) if attr.size != before.size || attr.bytes != before.bytes => What::Written,
        // A write sets both to the same (which on a mirror is not when it came there).
        Some(before) if attr.mtime != before.mtime && attr.mtime == attr.ctime && same_but_times(before, attr) => {
            What::Written
        }
        Some(_) => What::Attributes,
    }
}

fn same_but_times(a: &Attr, b: &Attr) -> bool {
    (a.mode, a.uid, a.gid, a.flags) == (b.mode, b.uid, b.gid, b.flags)
}
