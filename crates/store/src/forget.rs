//! Forgetting on purpose: every version of some objects and names is destroyed, whatever the retention says.
//! docs/format.md §Forgetting.
//!
//! What is to go is written down first (FORGET records), so that a crash in between is made good by the next attempt; a
//! collapse drops it from the index, labelled moments included; then every segment that holds any of it, or any waste that
//! might be of it, is cleaned, and what is given back is overwritten with zeroes before. Versions that an earlier collapse
//! dropped are in no index, and nobody knows whose they were: all segments are searched for such, and cleaned of all of them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::codec::{Reader, hash_key, put_varint};
use crate::collapse::Advance;
use crate::key::parse;
use crate::store::Store;
use crate::volume::RegionRef;
use crate::{Error, FilesetId, Key, Kind, ObjectId, Result, Tid, Tx};

/// Records in one transaction.
const BATCH: usize = 4096;
/// How long to wait for those who still read what is to be overwritten.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is to be forgotten, by fileset.
#[derive(Clone, Debug, Default)]
pub(crate) struct Forgotten {
    objects: HashSet<(FilesetId, ObjectId)>,
    /// Hashes of single keys, each with the newest tid of which it holds: a name may have been given anew since.
    keys: HashMap<u64, Tid>,
}

impl Forgotten {
    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.keys.is_empty()
    }

    /// Whether an object is.
    pub fn has_object(&self, fileset: FilesetId, object: ObjectId) -> bool {
        self.objects.contains(&(fileset, object))
    }

    /// Whether a version of a key is by itself.
    pub fn has_key(&self, key: &[u8], tid: Tid) -> bool {
        !self.keys.is_empty() && self.keys.get(&hash_key(key)).is_some_and(|newest| tid <= *newest)
    }

    /// Adds what a FORGET record's suffix says: an object, or the object and the hash of one of its keys.
    fn note(&mut self, fileset: FilesetId, suffix: &[u8], newest: Tid) {
        let number = |bytes: &[u8]| bytes.try_into().map(u64::from_be_bytes);
        match suffix.split_at_checked(8) {
            Some((object, [])) => drop(number(object).map(|n| self.objects.insert((fileset, ObjectId(n))))),
            Some((_, hash)) => drop(number(hash).map(|h| {
                let known = self.keys.entry(h).or_default();
                *known = newest.max(*known);
            })),
            None => {}
        }
    }
}

impl Store {
    /// All that is to be forgotten and may still be there in part.
    pub(crate) fn forgotten(&self) -> Result<Forgotten> {
        let mut all = Forgotten::default();
        for (fileset, _) in self.filesets() {
            for (suffix, newest) in self.forget_records(fileset)? {
                all.note(fileset, &suffix, newest);
            }
        }
        Ok(all)
    }

    /// Whether something was to be forgotten, and that was not brought to its end.
    pub fn is_forgetting(&self) -> Result<bool> {
        Ok(!self.forgotten()?.is_empty())
    }

    /// Suffixes, and the newest tid of which each holds.
    fn forget_records(&self, fileset: FilesetId) -> Result<Vec<(Vec<u8>, Tid)>> {
        let mut versions = self.all_versions(&Key::new(fileset, ObjectId(0), Kind::FORGET, &[]))?;
        versions.dedup_by(|older, newer| older.key == newer.key);
        let live = versions.iter().filter_map(|e| {
            let newest = Reader::new(e.value.as_ref()?).varint().map_or(e.tid, Tid);
            parse(&e.key).map(|(.., suffix)| (suffix.to_vec(), newest))
        });
        Ok(live.collect())
    }

    /// Destroys every version of some objects and of some single keys (names that led to them), in all moments up to
    /// `newest`, and goes on with what was not brought to its end. The caller has made sure that nothing visible led to them
    /// then, and that no clone shows them. Whatever else no moment shows any more goes with them. On return the bytes are
    /// overwritten and gone from the volume, but for what other objects share. `each` is told how far it is.
    pub fn forget(
        &self,
        objects: &[(FilesetId, ObjectId)],
        keys: &[Key],
        newest: Tid,
        now_ns: u64,
        each: &mut dyn FnMut(Advance),
    ) -> Result<()> {
        let mut value = Vec::new();
        put_varint(&mut value, newest.0);
        let mut suffixes: BTreeMap<FilesetId, Vec<Vec<u8>>> = BTreeMap::new();
        for (fileset, object) in objects {
            suffixes.entry(*fileset).or_default().push(object.0.to_be_bytes().to_vec());
        }
        for key in keys {
            let Some((fileset, object, ..)) = parse(key.as_bytes()) else { continue };
            let suffix = [object.0.to_be_bytes(), hash_key(key.as_bytes()).to_be_bytes()].concat();
            suffixes.entry(fileset).or_default().push(suffix);
        }
        let _one = self.forgetting.lock();
        for (fileset, suffixes) in suffixes {
            self.change_forget_records(fileset, &suffixes, now_ns, |tx, suffix| {
                tx.put(ObjectId(0), Kind::FORGET, suffix, &value);
            })?;
        }
        self.sync()?;
        let before = self.not_given_back.load(Ordering::Relaxed);
        self.wiping.store(true, Ordering::Relaxed);
        let cleaned = || {
            let outcome = self.clean_remains().and_then(|()| self.outlast_readers());
            outcome.map_err(|e| if matches!(e, Error::Io { .. }) { Error::Remains(Box::new(e)) } else { e })
        };
        let outcome = self.clean(now_ns, each).and_then(|_| cleaned());
        self.wiping.store(false, Ordering::Relaxed);
        let failed = self.not_given_back.load(Ordering::Relaxed) - before;
        let left = outcome? + self.maintenance.lock().forgotten.len() + failed as usize;
        if left > 0 {
            return Err(Error::Unreached { left });
        }
        // The cleaner may have moved it before, and given back where it was.
        self.volumes.wipe_given_back()?;
        // What is in the bucket goes with the next checkpoint.
        self.want_push();
        for (fileset, _) in self.filesets() {
            let done: Vec<_> = self.forget_records(fileset)?.into_iter().map(|(suffix, _)| suffix).collect();
            self.change_forget_records(fileset, &done, now_ns, |tx, suffix| {
                tx.delete(ObjectId(0), Kind::FORGET, suffix);
            })?;
        }
        self.sync()?;
        Ok(())
    }

    /// What somebody still reads is given back only after him: waits for that. Returns how many regions are left all the same.
    fn outlast_readers(&self) -> Result<usize> {
        let start = Instant::now();
        loop {
            if let Some(mut pushing) = self.pushing.try_lock() {
                // What is on its way to the bucket keeps what it is made of: it begins anew.
                *pushing = None;
            }
            let mut state = self.maintenance.lock();
            self.bury(&mut state)?;
            let left = state.doomed.len() + state.doomed_regions.len();
            drop(state);
            if left == 0 || start.elapsed() > PATIENCE {
                return Ok(left);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn change_forget_records(
        &self,
        fileset: FilesetId,
        suffixes: &[Vec<u8>],
        now_ns: u64,
        change: impl Fn(&mut Tx<'_>, &[u8]),
    ) -> Result<()> {
        for batch in suffixes.chunks(BATCH) {
            let mut tx = self.begin(fileset, now_ns)?;
            batch.iter().for_each(|suffix| change(&mut tx, suffix));
            tx.commit()?;
        }
        Ok(())
    }

    /// Gives a region back; while something is being forgotten, overwritten.
    pub(crate) fn give_back(&self, at: RegionRef) -> Result<()> {
        if self.wiping.load(Ordering::Relaxed) && !self.volumes.is_cold(at) {
            self.wipe(at)?;
        }
        self.volumes.remove(at)
    }

    fn wipe(&self, at: RegionRef) -> Result<()> {
        let region = match self.volumes.open(at) {
            // It is gone already.
            Err(Error::Io { .. }) => return Ok(()),
            opened => opened?,
        };
        crate::volume::wipe(at.size, |zeroes, from| region.write_at(zeroes, from))?;
        region.flush()
    }
}
