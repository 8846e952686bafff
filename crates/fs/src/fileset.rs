//! Filesets: filesystems with a root and a past of their own in one store. docs/format.md §Filesets.
//!
//! The catalogue lists them (records of fileset 0); the main one is always there. A fileset's root appears as a directory
//! in the main root, by an entry that names the fileset: so an as-of view of the whole goes through it like through any
//! directory. The entry and the catalogue's record are written in one transaction, and only here: to everybody else a
//! fileset's root is busy. A clone (`clone.rs`) is a fileset with a base.
//!
//! Of a store whose main fileset follows another one, the main root is that one's: filesets from before are *apart*, in the
//! catalogue only, and reached by their names, until the store is promoted.
//!
//! The catalogue in memory is under the lock of the live tree: whoever plans a change sees the limits and filesets that
//! hold until it is done.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use darner_store::{CATALOGUE, Count, FilesetId, Kind, Lineage, ObjectId, Tid, Tx};

use crate::attr::{Attr, Time};
use crate::change::{Change, Plan, SMALL};
use crate::codec::{Reader, put_varint};
use crate::dirent::Dirent;
use crate::error::{FsError, Result, refuse};
use crate::fs::Fs;
use crate::name;
use crate::node::{FILESETS_MAX, Inode, MAIN, ROOT};
use crate::op::Caller;

/// The name of the fileset that is always there.
pub(crate) const MAIN_NAME: &str = "main";
/// The record that counts the numbers given.
const COUNTER: FilesetId = FilesetId(0);
const COUNTER_VERSION: u8 = 1;
const META: ObjectId = ObjectId(0);

/// What a fileset may come to; 0: no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// Live bytes of file data.
    pub bytes: u64,
    /// Live objects.
    pub objects: u64,
    /// Bytes of history.
    pub history: u64,
}

/// A fileset as catalogued.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fileset {
    /// Its number; never reused.
    pub id: FilesetId,
    /// Its name in the main root.
    pub name: String,
    /// Its root directory.
    pub root: ObjectId,
    /// The transaction that made it.
    pub created: Tid,
    /// Of a clone: the fileset that it shows where it has nothing of its own, as of a tid.
    pub base: Option<(FilesetId, Tid)>,
    /// What it may come to.
    pub limits: Limits,
}

impl Fileset {
    fn main() -> Fileset {
        Fileset {
            id: MAIN,
            name: MAIN_NAME.into(),
            root: ROOT.object,
            created: Tid::ZERO,
            base: None,
            limits: Limits::default(),
        }
    }

    /// Its root.
    pub fn inode(&self) -> Inode {
        Inode { fileset: self.id, object: self.root }
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        Lineage { created: self.created, base: self.base }.encode(&mut out);
        put_varint(&mut out, self.name.len() as u64);
        out.extend(self.name.as_bytes());
        for n in [self.root.0, self.limits.bytes, self.limits.objects, self.limits.history] {
            put_varint(&mut out, n);
        }
        out
    }

    pub(crate) fn decode(id: FilesetId, value: &[u8]) -> Option<Fileset> {
        let (lineage, rest) = Lineage::decode(value)?;
        let mut from = Reader(rest);
        let name = from.text()?;
        let root = ObjectId(from.varint()?);
        let limits = Limits { bytes: from.varint()?, objects: from.varint()?, history: from.varint()? };
        from.end()?;
        Some(Fileset { id, name, root, created: lineage.created, base: lineage.base, limits })
    }
}

/// The filesets that there are.
pub(crate) struct Catalogue {
    all: BTreeMap<FilesetId, Fileset>,
    next: FilesetId,
    /// Counts what `keepless.rs` marked, for those who looked before they had the lock.
    pub(crate) marked: u64,
}

impl Default for Catalogue {
    fn default() -> Catalogue {
        Catalogue { all: BTreeMap::from([(MAIN, Fileset::main())]), next: FilesetId(MAIN.0 + 1), marked: 0 }
    }
}

impl Catalogue {
    pub(crate) fn all(&self) -> impl Iterator<Item = &Fileset> {
        self.all.values()
    }

    pub(crate) fn get(&self, id: FilesetId) -> Option<&Fileset> {
        self.all.get(&id)
    }

    fn named(&self, name: &str) -> Result<&Fileset> {
        match self.all().find(|fileset| fileset.name == name) {
            Some(fileset) => Ok(fileset),
            None => refuse(libc::ENOENT, "there is no fileset of this name"),
        }
    }

    /// One that can be removed and given another name.
    fn named_not_main(&self, name: &str) -> Result<&Fileset> {
        match self.named(name)? {
            main if main.id == MAIN => refuse(libc::EBUSY, "the main fileset stays, under this name"),
            fileset => Ok(fileset),
        }
    }

    pub(crate) fn insert(&mut self, fileset: Fileset) {
        self.next = self.next.max(FilesetId(fileset.id.0 + 1));
        self.all.insert(fileset.id, fileset);
    }

    /// The number for a new one.
    pub(crate) fn fresh(&self) -> Result<FilesetId> {
        match self.next.0 < FILESETS_MAX {
            true => Ok(self.next),
            false => refuse(libc::ENOSPC, "all numbers for filesets have been given"),
        }
    }
}

/// Sets the catalogue's record of a fileset; the transaction goes on in the catalogue.
pub(crate) fn put_record(tx: &mut Tx<'_>, fileset: &Fileset) {
    tx.turn(CATALOGUE, 0, 0);
    tx.put(META, Kind::FILESET, &fileset.id.0.to_be_bytes(), &fileset.encode());
}

/// Sets the catalogue's records of a new fileset; the transaction goes on in the catalogue.
pub(crate) fn put_new_record(tx: &mut Tx<'_>, fileset: &Fileset) {
    put_record(tx, fileset);
    let mut counter = vec![COUNTER_VERSION];
    put_varint(&mut counter, u64::from(fileset.id.0) + 1);
    tx.put(META, Kind::FILESET, &COUNTER.0.to_be_bytes(), &counter);
}

/// The attributes of a fileset's root: an empty directory that is its own parent.
pub(crate) fn root_attr(root: ObjectId, uid: u32, gid: u32, mode: u32, time: Time) -> Attr {
    Attr {
        mode: libc::S_IFDIR | (mode & 0o7777),
        uid,
        gid,
        nlink: 2,
        size: 0,
        bytes: 0,
        rdev: 0,
        parent: root,
        flags: 0,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
    }
}

impl Fs {
    /// The filesets, the main one first, each with what it holds.
    pub fn filesets(&self) -> Vec<(Fileset, Count)> {
        let live = self.live.read();
        live.all().map(|fileset| (fileset.clone(), self.store.counted(fileset.id))).collect()
    }

    /// The root of the fileset that had a name at a moment ([`Tid::MAX`]: now).
    pub fn fileset_named(&self, name: &str, at: Tid) -> Result<Inode> {
        if name == MAIN_NAME {
            return Ok(ROOT);
        }
        match self.fileset_below(name.as_bytes(), at) {
            Err(e) if e.errno() == libc::ENOENT => {
                let apart = self.filesets_at(at)?.into_iter().find(|f| f.name == name);
                apart.map(|f| f.inode()).ok_or(e)
            }
            found => found,
        }
    }

    /// The root of the fileset that has a name now, if there was one of it at a moment; else of the one that had the name then.
    pub fn fileset_called(&self, name: &str, at: Tid) -> Result<Inode> {
        match self.fileset_named(name, Tid::MAX) {
            Ok(root) if self.root_at(root, at).is_ok() => Ok(root),
            _ => self.fileset_named(name, at),
        }
    }

    /// Whether a fileset has no directory in the main root, since that follows another store.
    pub(crate) fn is_apart(&self, fileset: &Fileset) -> Result<bool> {
        let found = self.dirent(ROOT, fileset.name.as_bytes(), Tid::MAX)?;
        Ok(fileset.id != MAIN && found.is_none_or(|found| found.ino != fileset.inode()))
    }

    /// The root of the fileset that a name in the main root led to at a moment.
    pub fn fileset_below(&self, name: &[u8], at: Tid) -> Result<Inode> {
        match self.dirent(ROOT, name, at)?.filter(|found| found.ino.fileset != MAIN) {
            Some(found) => Ok(found.ino),
            None => refuse(libc::ENOENT, "there is no fileset of this name"),
        }
    }

    /// The names (as key suffixes) by which a root led to other filesets as of a moment.
    pub(crate) fn fileset_names(&self, root: Inode, at: Tid) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        if root != ROOT {
            return Ok(names);
        }
        for fileset in self.filesets_at(at)? {
            let found = self.dirent(ROOT, fileset.name.as_bytes(), at)?;
            if found.is_some_and(|found| found.ino.fileset != MAIN) {
                names.push(self.suffix(fileset.name.as_bytes()));
            }
        }
        Ok(names)
    }

    /// The fileset that a live path (names from a fileset's root down, which need not all exist) is in.
    pub fn fileset_at(&self, root: Inode, path: &[&[u8]]) -> Result<FilesetId> {
        let first = path.first().filter(|_| root == ROOT);
        let found = first.map(|name| self.dirent(ROOT, name, Tid::MAX)).transpose()?.flatten();
        Ok(found.map_or(root.fileset, |found| found.ino.fileset))
    }

    /// Makes an empty fileset. EEXIST if the main root has the name.
    pub fn create_fileset(&self, caller: &Caller, now_ns: u64, name: &str) -> Result<Fileset> {
        let mut plan = self.plan(MAIN, SMALL)?;
        plan.check_fileset_name(name, now_ns)?;
        let id = plan.live.fresh()?;
        let root = self.store.new_object();
        let mut change = plan.begin(now_ns)?;
        let tid = change.tx.tid();
        let limits = Limits::default();
        let fileset = Fileset { id, name: name.into(), root, created: tid, base: None, limits };
        let attr = root_attr(root, caller.uid, caller.gid, 0o755, change.time);
        change.show(&fileset)?;
        change.commit_catalogue(
            |tx| {
                put_new_record(tx, &fileset);
                tx.turn(id, 1, 0);
                tx.put(root, Kind::ATTR, &[], &attr.encode(tid));
            },
            |live| live.insert(fileset.clone()),
        )?;
        Ok(fileset)
    }

    /// Ends a fileset: nothing of it is live any more; its past stays, as far as its grid keeps it. ENOTEMPTY if it has
    /// anything in it, unless `force`; EBUSY while a clone shows it.
    pub fn remove_fileset(&self, now_ns: u64, name: &str, force: bool) -> Result<Fileset> {
        let (plan, apart) = self.plan_named(name, 0)?;
        let fileset = plan.live.named_not_main(name)?.clone();
        if let Some(clone) = plan.live.all().find(|clone| clone.base.is_some_and(|(base, _)| base == fileset.id)) {
            return Err(FsError::told(libc::EBUSY, format!("the fileset {:?} is a clone of it", clone.name)));
        }
        if !force && self.attr_at(fileset.inode(), Tid::MAX)?.is_some_and(|root| root.size != 0) {
            return refuse(libc::ENOTEMPTY, "the fileset is not empty");
        }
        let count = self.store.counted(fileset.id);
        let mut change = plan.begin(now_ns)?;
        if !apart {
            change.delete_name(ROOT, name.as_bytes());
            change.mend_dir(ROOT, -1, -1)?;
        }
        change.commit_catalogue(
            |tx| {
                tx.turn(CATALOGUE, 0, 0);
                tx.delete(META, Kind::FILESET, &fileset.id.0.to_be_bytes());
                tx.turn(fileset.id, -(count.objects as i64), -(count.live as i64));
            },
            |live| drop(live.all.remove(&fileset.id)),
        )?;
        self.orphans.lock().retain(|orphan| orphan.fileset != fileset.id);
        if !self.store.retention(fileset.id)?.grid.keeps_all() {
            // All of it has become history at once, which nobody noted.
            self.store.want_collapse();
        }
        Ok(fileset)
    }

    /// Gives a fileset another name.
    pub fn rename_fileset(&self, now_ns: u64, name: &str, new_name: &str) -> Result<Fileset> {
        let (mut plan, apart) = self.plan_named(name, SMALL)?;
        let fileset = plan.live.named_not_main(name)?.clone();
        plan.check_fileset_name(new_name, now_ns)?;
        let fileset = Fileset { name: new_name.into(), ..fileset };
        let mut change = plan.begin(now_ns)?;
        if !apart {
            change.delete_name(ROOT, name.as_bytes());
            change.put_name(ROOT, new_name.as_bytes(), entry(&fileset));
            change.mend_dir(ROOT, 0, 0)?;
        }
        change.commit_catalogue(|tx| put_record(tx, &fileset), |live| live.insert(fileset.clone()))?;
        Ok(fileset)
    }

    /// A change of a fileset's entry in the catalogue, and whether that is all there is of its name.
    fn plan_named(&self, name: &str, grows: u64) -> Result<(Plan<'_>, bool)> {
        let plan = self.plan_own(MAIN, grows)?;
        let apart = self.is_apart(plan.live.named_not_main(name)?)?;
        if !apart {
            self.check_not_following(MAIN)?;
        }
        Ok((plan, apart))
    }

    /// Gives filesets that are apart their directories, where their names are free.
    pub(crate) fn bring_in(&self, now_ns: u64) -> Result<()> {
        for (fileset, _) in self.filesets() {
            let mut plan = self.plan(MAIN, SMALL)?;
            plan.dir(ROOT)?;
            if fileset.id != MAIN && self.dirent(ROOT, fileset.name.as_bytes(), Tid::MAX)?.is_none() {
                let mut change = plan.begin(now_ns)?;
                change.show(&fileset)?;
                change.commit()?;
            }
        }
        Ok(())
    }

    /// Sets what a fileset may come to. What it holds already stays, whatever the limits.
    pub fn limit_fileset(&self, now_ns: u64, name: &str, limits: Limits) -> Result<Fileset> {
        let plan = self.plan(MAIN, SMALL)?;
        let fileset = Fileset { limits, ..plan.live.named(name)?.clone() };
        let change = plan.begin(now_ns)?;
        change.commit_catalogue(|tx| put_record(tx, &fileset), |live| live.insert(fileset.clone()))?;
        Ok(fileset)
    }

    /// Has filesets keep to the limits of their history; the store's next steps do what is due.
    pub fn limit_history(&self, now_ns: u64) -> Result<()> {
        let limited = |fileset: &Fileset| Some((fileset.id, fileset.limits.history)).filter(|(_, most)| *most != 0);
        let limits: Vec<_> = self.live.read().all().filter_map(limited).collect();
        Ok(self.store.limit_history(&limits, now_ns)?)
    }

    /// Reads the catalogue.
    pub(crate) fn load_filesets(&self) -> Result<()> {
        let mut live = self.live.write();
        for fileset in self.filesets_at(Tid::MAX)? {
            live.insert(fileset);
        }
        let counter = Inode::meta(CATALOGUE).key(Kind::FILESET, &COUNTER.0.to_be_bytes());
        if let Some(found) = self.store.get(&counter, Tid::MAX)? {
            let next = decode_counter(&found.value)
                .ok_or_else(|| FsError::malformed("the counter of filesets is in no known form"))?;
            live.next = live.next.max(next);
        }
        Ok(())
    }

    /// The catalogued filesets as of a moment.
    pub(crate) fn filesets_at(&self, at: Tid) -> Result<Vec<Fileset>> {
        let mut all = Vec::new();
        let from = MAIN.0.to_be_bytes();
        self.each(Inode::meta(CATALOGUE), Kind::FILESET, &from, at, |suffix, tid, value| {
            let id = suffix.try_into().ok().map(|bytes| FilesetId(u32::from_be_bytes(bytes)));
            all.push(id.and_then(|id| Fileset::decode(id, value)).ok_or(tid));
            ControlFlow::Continue(())
        })?;
        let known = all.into_iter().collect::<std::result::Result<Vec<Fileset>, Tid>>();
        known
            .map_err(|tid| FsError::malformed(format!("a fileset's record, written at tid {tid}, is in no known form")))
    }
}

impl Plan<'_> {
    /// Checks a name that a fileset is to have.
    pub(crate) fn check_fileset_name(&mut self, name: &str, now_ns: u64) -> Result<()> {
        name::check(name.as_bytes(), libc::EINVAL)?;
        if name.contains("@@") || name.contains(char::is_control) {
            return refuse(libc::EINVAL, "a fileset's name can't contain @@ or control characters");
        }
        if name == MAIN_NAME {
            return refuse(libc::EEXIST, "the main fileset has this name");
        }
        if self.live.all().any(|fileset| fileset.name == name) {
            return refuse(libc::EEXIST, "there is a fileset of this name");
        }
        self.dir(ROOT)?;
        self.check_free(ROOT, name.as_bytes(), now_ns, FsError::new(libc::EEXIST, "the name exists"))
    }
}

impl Change<'_> {
    /// Gives a new fileset its name in the main root.
    pub(crate) fn show(&mut self, fileset: &Fileset) -> Result<()> {
        self.put_name(ROOT, fileset.name.as_bytes(), entry(fileset));
        self.mend_dir(ROOT, 1, 1)
    }

    /// Refuses to go beyond the fileset's limits. What shrinks it is never refused.
    pub(crate) fn check_limits(&self, objects: i64, bytes: i64) -> Result<()> {
        let Some(Fileset { limits, .. }) = self.live.get(self.fileset) else { return Ok(()) };
        if *limits == Limits::default() {
            return Ok(());
        }
        let exceeds =
            |held: u64, more: i64, limit: u64| limit != 0 && more > 0 && held.saturating_add_signed(more) > limit;
        let held = self.tx.counted();
        if exceeds(held.objects, objects, limits.objects) {
            return refuse(libc::EDQUOT, "the fileset may have no more objects");
        }
        match exceeds(held.live, bytes, limits.bytes) {
            true => refuse(libc::EDQUOT, "the fileset may have no more bytes"),
            false => Ok(()),
        }
    }
}

fn entry(fileset: &Fileset) -> Dirent {
    Dirent { ino: fileset.inode(), d_type: libc::DT_DIR }
}

fn decode_counter(value: &[u8]) -> Option<FilesetId> {
    let mut from = Reader(value);
    if from.byte()? != COUNTER_VERSION {
        return None;
    }
    let next = FilesetId(from.varint32()?);
    from.end()?;
    Some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_and_no_bytes_make_decoding_panic() {
        let limits = Limits { bytes: 10 << 30, objects: 0, history: 7 };
        for base in [None, Some((FilesetId(3), Tid(44)))] {
            let fileset = Fileset {
                id: FilesetId(9),
                name: "häuser".into(),
                root: ObjectId(77),
                created: Tid(1 << 60),
                base,
                limits,
            };
            let bytes = fileset.encode();
            assert_eq!(Fileset::decode(fileset.id, &bytes).as_ref(), Some(&fileset));
            for cut in 0..bytes.len() {
                assert_eq!(Fileset::decode(fileset.id, &bytes[..cut]), None);
            }
            let mut rng = fastrand::Rng::with_seed(1);
            for _ in 0..10_000 {
                let mut bytes = bytes.clone();
                let at = rng.usize(..bytes.len());
                bytes[at] = rng.u8(..);
                Fileset::decode(fileset.id, &bytes);
            }
        }
        assert_eq!(decode_counter(&[1, 5]), Some(FilesetId(5)));
        assert_eq!(decode_counter(&[1, 0xff, 0xff, 0xff, 0xff, 0xff]), None);
    }
}
