//! The store: its interface, and how a read finds its way. Writing is in `tx.rs`, upkeep in `maintain.rs`, opening in
//! `recover.rs`.
//!
//! Locks, in the order they are taken: moving, maintenance, log io, log tail, index. None is held while a caller's code runs.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, RwLock};

use crate::counts::Count;
use crate::extent::{CHUNK, ChunkMap, Piece, push_piece};
use crate::fileset::{Filesets, MAIN};
use crate::fold::Fold;
use crate::frame;
use crate::full::Fruitless;
use crate::index::Entry;
use crate::index::levels::Levels;
use crate::index::memtable::{Found, Memtable};
use crate::index::scan::{self, Range};
use crate::index::table::BlockCache;
use crate::key::KEY_HEAD;
use crate::log::{Log, Tail};
use crate::readahead::Readahead;
use crate::retain::{Pins, Retention};
use crate::segment::{self, Segment};
use crate::tx::Tx;
use crate::volume::{Copies, For, Region, RegionRef, Volumes};
use crate::{Error, FilesetId, Key, Kind, ObjectId, Result, Tid};

/// Bytes of a record, shared with the index's memory.
pub type Value = Arc<[u8]>;

/// Gets suffix, tid and value of each record found; ends the visit by breaking.
pub type VisitValue<'v> = dyn FnMut(&[u8], Tid, &[u8]) -> ControlFlow<()> + 'v;
/// As [`VisitValue`]; a tombstone's value is `None`.
pub type VisitVersion<'v> = dyn FnMut(&[u8], Tid, Option<&[u8]>) -> ControlFlow<()> + 'v;

/// A record as found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The transaction that wrote it.
    pub tid: Tid,
    /// Its value.
    pub value: Value,
}

/// How full the store is, in bytes but for `objects`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// What there is.
    pub size: u64,
    /// In use: segments and index.
    pub used: u64,
    /// Free for new data (`size − used − reserve`).
    pub free: u64,
    /// What the live trees hold, as counted by [`Tx::count`].
    pub live: u64,
    /// Live objects, as counted by [`Tx::count`].
    pub objects: u64,
}

impl Usage {
    /// Whether those who write will soon wait for the cleaner.
    pub(crate) fn is_short(&self) -> bool {
        self.free < self.size / 16
    }
}

/// The layers of the index.
pub(crate) struct Index {
    pub active: Memtable,
    /// Being flushed.
    pub frozen: Option<Arc<Memtable>>,
    pub levels: Arc<Levels>,
    /// What the catalogue's records in the layers above say.
    pub filesets: Filesets,
}

impl Index {
    /// What is in memory only, newest first.
    pub fn memtables(&self) -> impl Iterator<Item = &Memtable> {
        [Some(&self.active), self.frozen.as_deref()].into_iter().flatten()
    }
}

/// A store, open. Reads run in parallel; one [`Tx`] at a time.
pub struct Store {
    pub(crate) volumes: Volumes,
    pub(crate) birth: Tid,
    pub(crate) hash_key: [u8; 16],
    pub(crate) uuid: [u8; 16],
    pub(crate) read_only: bool,
    /// What others are told of this machine.
    pub(crate) who: String,
    /// Whether that is because the end of the log is missing.
    pub(crate) is_cut: bool,
    /// The last transaction that there was when it was opened.
    pub(crate) opened: Tid,
    /// Whether it is better than nothing to be opened so.
    pub(crate) degraded: bool,
    /// Whether the next open was told of rot in the index, and nobody here knows yet.
    pub(crate) rot_told: AtomicBool,
    pub(crate) log: Log,
    pub(crate) index: RwLock<Index>,
    pub(crate) cache: BlockCache,
    pub(crate) readahead: Readahead,
    /// Bytes that may still be written before free space is looked at.
    pub(crate) allowance: AtomicI64,
    pub(crate) memory: u64,
    pub(crate) table_size: usize,
    /// Open segments.
    pub(crate) regions: RwLock<HashMap<u64, Arc<dyn Region>>>,
    pub(crate) segments: Mutex<Vec<Segment>>,
    /// Regions with the remains of cleaned segments.
    pub(crate) packs: Mutex<Vec<Arc<dyn Region>>>,
    /// Retentions as they are now, of filesets that were asked about.
    pub(crate) retentions: RwLock<HashMap<FilesetId, Arc<Retention>>>,
    /// Held while moments are given up, or made sure of.
    pub(crate) retaining: Mutex<()>,
    pub(crate) pins: Mutex<Pins>,
    /// Held by whoever makes room on a full volume; the last time that there was none to be made.
    pub(crate) making_room: Mutex<Fruitless>,
    /// How often a retention or label has changed since the open.
    pub(crate) retention_changes: AtomicU64,
    pub(crate) scattered: Mutex<crate::scatter::Scattered>,
    /// The region that is being copied to another volume.
    pub(crate) moving: Mutex<crate::moving::Moving>,
    /// What is on its way to the bucket, and how that is.
    pub(crate) pushing: Mutex<Option<crate::push::Push>>,
    pub(crate) reach: Mutex<crate::push::Reached>,
    pub(crate) heat: Mutex<crate::tier::Heat>,
    /// Who lends threads.
    pub(crate) workers: Option<Arc<dyn crate::workers::Workers>>,
    /// Whom to ask for what is damaged here.
    pub(crate) elsewhere: Mutex<Option<Arc<dyn crate::heal::Elsewhere>>>,
    /// Held while something is forgotten: one at a time.
    pub(crate) forgetting: Mutex<()>,
    /// Regions that could not be given back.
    pub(crate) not_given_back: AtomicU64,
    /// Whether what is given back is overwritten.
    pub(crate) wiping: std::sync::atomic::AtomicBool,
    /// Somebody waits for a collapse.
    pub(crate) collapse_wanted: Mutex<bool>,
    /// The latest time that a caller told.
    pub(crate) clock: AtomicU64,
    pub(crate) spare: Mutex<Option<Arc<dyn Region>>>,
    pub(crate) next_region: Arc<AtomicU64>,
    pub(crate) next_object: AtomicU64,
    pub(crate) maintenance: Mutex<crate::maintain::State>,
    pub(crate) work: (Mutex<bool>, Condvar),
    /// Whether the writer sleeps until something is committed.
    pub(crate) idle: std::sync::atomic::AtomicBool,
}

/// Bytes of the largest frame.
pub(crate) const FRAME_MAX: usize = 2 << 20;
/// Bytes of the smallest segment.
pub(crate) const SEGMENT_MIN: u64 = 256 << 10;
/// On a full volume a segment with this much room left is still used.
const SMALL_ROOM: u64 = 64 << 10;
/// Bytes that may be written before free space is looked at again.
const ALLOWANCE: u64 = 32 << 20;
/// Room that a segment keeps for its seal.
pub(crate) const SEAL_ROOM: u64 = 4096;

impl Store {
    /// The newest committed tid.
    pub fn tid(&self) -> Tid {
        self.log.tail().last
    }

    /// When the store was made: every transaction is newer.
    pub fn birth(&self) -> Tid {
        self.birth
    }

    /// All up to this tid survives a power failure.
    pub fn durable(&self) -> Tid {
        self.log.durable()
    }

    /// 16 random bytes, chosen at creation, for keyed hashes.
    pub fn hash_key(&self) -> [u8; 16] {
        self.hash_key
    }

    /// The store's identity.
    pub fn uuid(&self) -> [u8; 16] {
        self.uuid
    }

    /// Whether it was opened for reading only.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Why nothing is accepted any more, if a write to the log failed.
    pub fn stopped(&self) -> Option<Error> {
        self.log.tail().check().err()
    }

    /// Whether it is open for reading only because the end of its log is damaged, or on a missing volume.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// A fresh object number, never handed out before; the first one is 2 (1 is the first root).
    pub fn new_object(&self) -> ObjectId {
        ObjectId(self.next_object.fetch_add(1, Ordering::Relaxed))
    }

    /// The latest time that a caller told, nanoseconds since 1970.
    pub(crate) fn clock(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }

    pub(crate) fn next_object(&self) -> u64 {
        self.next_object.load(Ordering::Relaxed)
    }

    /// Waits, with no lock held, until there is memory for another operation's data, and fails if `bytes` more would eat
    /// into the reserve that deletions need. Call it before [`Store::begin`] for whatever grows the store.
    pub fn admit(&self, bytes: u64) -> Result<()> {
        self.log.admit()?;
        // Upkeep that lags behind gets its writers' help, so memory stays bounded.
        while self.index.read().active.bytes() as u64 > 3 * self.memtable_max() {
            self.step()?;
        }
        let wanted = bytes as i64;
        if self.allowance.fetch_sub(wanted, Ordering::Relaxed) >= wanted {
            return Ok(());
        }
        // Looking costs system calls: some is allowed at a time.
        let mut u = self.usage()?;
        if u.free < bytes {
            if !self.make_room(bytes)? {
                return Err(Error::NoSpace { used: u.used, size: u.size });
            }
            u = self.usage()?;
        }
        self.allowance.store((u.free / 2).min(ALLOWANCE) as i64 - wanted, Ordering::Relaxed);
        Ok(())
    }

    /// Starts a transaction at `max(newest + 1, now_ns)`. Waits for a running one to end.
    pub fn begin(&self, fileset: FilesetId, now_ns: u64) -> Result<Tx<'_>> {
        self.begin_for(fileset, now_ns, None)
    }

    /// As [`Store::begin`], where so many file bytes and little else are to be written: what has room for no more is used
    /// to the end then, which keeps small volumes whole.
    pub fn begin_for(&self, fileset: FilesetId, now_ns: u64, bytes: Option<u64>) -> Result<Tx<'_>> {
        if self.read_only {
            return Err(Error::NotAStore(format!("{} is open for reading only", self.volumes.name())));
        }
        self.clock.fetch_max(now_ns, Ordering::Relaxed);
        let mut tail = self.log.tail();
        while tail.is_crowded() {
            drop(tail);
            self.log.write_out()?;
            tail = self.log.tail();
        }
        tail.check()?;
        let size = tail.segment.place().size;
        let (wanted, least) = match bytes {
            // With checksums, and the first and last chunk written anew.
            Some(n) if n > SMALL_ROOM => (n + n / 256 + 4 * CHUNK, n + n / 256 + 5 * CHUNK),
            Some(_) => (2 * SMALL_ROOM, SEGMENT_MIN),
            None => (2 * FRAME_MAX as u64, 2 * FRAME_MAX as u64 + 2 * SEAL_ROOM),
        };
        if tail.room() < wanted {
            let mut outcome = self.next_segment(&mut tail, least);
            if bytes.is_none() && tail.room() < (size / 8).max(2 * SMALL_ROOM) && outcome.is_err() {
                outcome = self.next_segment(&mut tail, SEGMENT_MIN);
            }
            match outcome {
                // What is left of this one still serves small transactions, such as deletions.
                Err(Error::NoSpace { .. }) if tail.room() >= SMALL_ROOM => {}
                outcome => outcome?,
            }
        }
        let tid = tail.last.max(tail.reached).next(now_ns);
        Ok(Tx::new(self, tail, fileset, tid))
    }

    /// Has no transaction to come be at a moment or before it, though none may have been since: what is there as of it stays.
    pub fn reach(&self, moment: Tid) {
        let mut tail = self.log.tail();
        tail.reached = tail.reached.max(moment);
    }

    /// Whether no transaction to come is at a moment or before it.
    pub fn has_reached(&self, moment: Tid) -> bool {
        let tail = self.log.tail();
        moment <= tail.last.max(tail.reached)
    }

    /// Seals the open segment and goes on in a new one, of `least` bytes at least.
    pub(crate) fn next_segment(&self, tail: &mut Tail, least: u64) -> Result<()> {
        let spare = self.spare.lock().take_if(|r| r.place().size >= least && self.volumes.accept(r.place()));
        let region = match spare {
            Some(r) => r,
            None => self.create_segment(least)?,
        };
        let at = region.place();
        let old = tail.segment.place().id;
        let h = frame::Header {
            tid: tail.last,
            fileset: FilesetId(0),
            chain: tail.chain,
            durable: self.durable(),
            next_object: self.next_object(),
            objects: 0,
            live: 0,
        };
        tail.chain = frame::seal(&mut tail.buf, old, tail.base, &h, at);
        let end = tail.end();
        tail.switch(region.clone(), segment::header(&self.uuid, at, tail.last));
        self.regions.write().insert(at.id, region);
        let mut segments = self.segments.lock();
        if let Some(s) = segments.last_mut() {
            s.end = end;
        }
        segments.push(Segment::open(at, tail.last));
        Ok(())
    }

    /// A region of `least` bytes at least for the next segment: larger on larger stores, so that their number stays moderate.
    pub(crate) fn create_segment(&self, least: u64) -> Result<Arc<dyn Region>> {
        let (used, size) = self.volume_usage()?;
        // Small enough that the reserve has room for what is left of several while they are cleaned.
        let most = (size / 256).next_power_of_two().clamp(8 << 20, 1 << 30);
        let mut len = (used / 32).next_power_of_two().clamp(16 << 20, 1 << 30).min(most);
        let mut strict = true;
        loop {
            let id = self.next_region.fetch_add(1, Ordering::Relaxed);
            match self.volumes.create(id, len, For::Log, strict) {
                // On a full volume a small one will do, and where only one volume has room, one copy.
                Err(Error::NoSpace { .. }) if len > least => len = (len / 2).max(least),
                Err(Error::NoSpace { .. }) if std::mem::take(&mut strict) => {}
                outcome => return outcome,
            }
        }
    }

    /// (bytes in use, bytes there are) of all volumes.
    pub(crate) fn volume_usage(&self) -> Result<(u64, u64)> {
        self.volumes.usage()
    }

    /// A region for a pack.
    pub(crate) fn create_pack(&self, size: u64, twice: bool) -> Result<Arc<dyn Region>> {
        let id = self.next_region.fetch_add(1, Ordering::Relaxed);
        self.volumes.create(id, size, For::Kept { twice }, false)
    }

    /// Adds a transaction's entries to the index; it is in `region`.
    pub(crate) fn insert(&self, tail: &mut Tail, region: u64, tid: Tid, entries: Vec<(Key, Option<Value>)>) {
        self.mark_kept(tail, region, tid, &entries);
        let mut index = self.index.write();
        for (key, value) in entries {
            index.filesets.note(&key, tid, value.as_ref());
            index.active.put(key, tid, value);
        }
    }

    /// The newest version of `key` with tid ≤ `at` ([`Tid::MAX`]: the live one); `None` if there is none or it is a tombstone.
    /// In a clone, what it has no version of is what its base has.
    pub fn get(&self, key: &Key, at: Tid) -> Result<Option<Version>> {
        match key.fileset() <= MAIN {
            true => Ok(self.find(key, at)?.and_then(Found::into_version)),
            false => self.get_through(key, at),
        }
    }

    /// As [`Store::get`], of the key itself; a tombstone is a version.
    pub(crate) fn find(&self, key: &Key, at: Tid) -> Result<Option<Found>> {
        let mut newer = false;
        let levels = {
            let index = self.index.read();
            for layer in index.memtables() {
                match layer.get(key, at) {
                    Some(Found::OnlyNewer) => newer = true,
                    Some(found) => return Ok(Some(found)),
                    None => {}
                }
            }
            index.levels.clone()
        };
        levels.get(key.as_bytes(), at, newer, &self.cache)
    }

    /// Visits what an object has of one kind as of `at`, in suffix order from the first suffix ≥ `from`: `(suffix, tid, value)`.
    pub fn scan(
        &self,
        fileset: FilesetId,
        object: ObjectId,
        kind: Kind,
        from: &[u8],
        at: Tid,
        visit: &mut VisitValue<'_>,
    ) -> Result<()> {
        if fileset > MAIN {
            return self.scan_through(fileset, object, kind, from, at, visit);
        }
        let prefix = Key::new(fileset, object, kind, &[]);
        let mut next = Some(Key::new(fileset, object, kind, from).as_bytes().to_vec());
        // Batches: the index is not locked while the caller looks at one.
        let mut limit = 32;
        while let Some(from) = next.take() {
            let items;
            let range = Range { prefix: prefix.as_bytes(), from: &from, at, tombstones: false, limit };
            (items, next) = self.scan_batch(range)?;
            limit = 256;
            for (key, tid, value) in items {
                let Some(value) = value else { continue };
                if visit(&key[KEY_HEAD..], tid, &value).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    pub(crate) fn scan_batch(&self, range: Range<'_>) -> Result<(Vec<scan::Item>, Option<Vec<u8>>)> {
        let index = self.index.read();
        let layers: Vec<&Memtable> = index.memtables().collect();
        scan::scan(&layers, &index.levels, &self.cache, range)
    }

    /// Visits every version (tombstones: `None`) of an object's keys of one kind whose suffix starts with `prefix`, by
    /// suffix, newest first within one.
    pub fn versions(
        &self,
        fileset: FilesetId,
        object: ObjectId,
        kind: Kind,
        prefix: &[u8],
        visit: &mut VisitVersion<'_>,
    ) -> Result<()> {
        for e in self.versions_through(fileset, object, kind, prefix)? {
            if visit(&e.key[KEY_HEAD..], e.tid, e.value.as_deref()).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Every version of the keys that start with `prefix`, by key, newest first.
    pub(crate) fn all_versions(&self, prefix: &Key) -> Result<Vec<Entry>> {
        let index = self.index.read();
        let layers: Vec<&Memtable> = index.memtables().collect();
        scan::versions(&layers, &index.levels, &self.cache, prefix.as_bytes())
    }

    pub(crate) fn decode_map(&self, object: u64, chunk: u64, tid: Tid, value: &[u8]) -> Result<ChunkMap> {
        ChunkMap::decode(value, tid).ok_or_else(|| Error::Corrupt {
            place: format!("object {object}, chunk {chunk}, tid {tid}"),
            what: "chunk map",
            expected: "spans".into(),
            found: "bytes that are none".into(),
        })
    }

    pub(crate) fn chunk_map(&self, fileset: FilesetId, object: ObjectId, chunk: u64, at: Tid) -> Result<ChunkMap> {
        let key = Key::new(fileset, object, Kind::EXTENT, &chunk.to_be_bytes());
        match self.get(&key, at)? {
            Some(v) => self.decode_map(object.0, chunk, v.tid, &v.value),
            None => Ok(ChunkMap::default()),
        }
    }

    pub(crate) fn has_chunk(&self, fileset: FilesetId, object: ObjectId, chunk: u64) -> Result<bool> {
        Ok(self.get(&Key::new(fileset, object, Kind::EXTENT, &chunk.to_be_bytes()), Tid::MAX)?.is_some())
    }

    /// Live chunks of an object in `first..last` that have data.
    pub(crate) fn chunks_with_data(
        &self,
        fileset: FilesetId,
        object: ObjectId,
        first: u64,
        last: u64,
    ) -> Result<Vec<u64>> {
        let mut chunks = Vec::new();
        self.scan(
            fileset,
            object,
            Kind::EXTENT,
            &first.to_be_bytes(),
            Tid::MAX,
            &mut |suffix, _, _| match chunk_number(suffix).filter(|&c| c < last) {
                Some(c) => {
                    chunks.push(c);
                    ControlFlow::Continue(())
                }
                None => ControlFlow::Break(()),
            },
        )?;
        Ok(chunks)
    }

    /// What bytes `offset .. offset+len` of an object are made of as of `at`: data pieces and holes, in order, without
    /// gaps. No data is read.
    pub fn map(&self, fileset: FilesetId, object: ObjectId, offset: u64, len: u64, at: Tid) -> Result<Vec<Piece>> {
        self.map_with(None, fileset, object, offset, len, at)
    }

    pub(crate) fn map_with(
        &self,
        fold: Option<&Fold>,
        fileset: FilesetId,
        object: ObjectId,
        offset: u64,
        len: u64,
        at: Tid,
    ) -> Result<Vec<Piece>> {
        let end = offset.saturating_add(len);
        let (first, last) = (offset / CHUNK, end.div_ceil(CHUNK));
        let mut maps: std::collections::BTreeMap<u64, ChunkMap> = std::collections::BTreeMap::new();
        if last - first <= 2 {
            for c in first..last {
                maps.insert(c, self.chunk_map(fileset, object, c, at)?);
            }
        } else {
            let mut failed = Ok(());
            self.scan(fileset, object, Kind::EXTENT, &first.to_be_bytes(), at, &mut |suffix, tid, value| {
                let Some(c) = chunk_number(suffix).filter(|&c| c < last) else { return ControlFlow::Break(()) };
                match self.decode_map(object.0, c, tid, value) {
                    Ok(map) => {
                        maps.insert(c, map);
                        ControlFlow::Continue(())
                    }
                    Err(e) => {
                        failed = Err(e);
                        ControlFlow::Break(())
                    }
                }
            })?;
            failed?;
        }
        if let Some(fold) = fold {
            fold.changed_in(object, first, last).for_each(|(c, map)| {
                maps.insert(c, map.clone());
            });
        }
        let mut out = Vec::new();
        let mut done = offset;
        let hole = |from: u64, to: u64| Piece { object: object.0, offset: from, len: to - from, place: None };
        for (c, map) in maps {
            let base = c * CHUNK;
            let (from, to) = (offset.max(base), end.min(base.saturating_add(CHUNK)));
            if done < from {
                push_piece(&mut out, hole(done, from));
            }
            map.pieces(object.0, base, (from - base) as u32, (to - base) as u32, &mut out);
            done = to;
        }
        if done < end {
            push_piece(&mut out, hole(done, end));
        }
        Ok(out)
    }

    /// Start of the first byte ≥ `offset` that is data, and where that run of data ends; `None`: no data from there on.
    /// Holes are not visited.
    pub fn next_data(&self, fileset: FilesetId, object: ObjectId, offset: u64, at: Tid) -> Result<Option<(u64, u64)>> {
        let mut run: Option<(u64, u64)> = None;
        let mut failed = Ok(());
        let first = offset / CHUNK;
        self.scan(fileset, object, Kind::EXTENT, &first.to_be_bytes(), at, &mut |suffix, tid, value| {
            let Some(c) = chunk_number(suffix) else { return ControlFlow::Continue(()) };
            let map = match self.decode_map(object.0, c, tid, value) {
                Ok(map) => map,
                Err(e) => {
                    failed = Err(e);
                    return ControlFlow::Break(());
                }
            };
            for s in &map.spans {
                let (from, to) = (c * CHUNK + u64::from(s.at), c * CHUNK + u64::from(s.at) + u64::from(s.len));
                match &mut run {
                    _ if to <= offset => {}
                    None => run = Some((from.max(offset), to)),
                    Some((_, end)) if *end == from => *end = to,
                    Some(_) => return ControlFlow::Break(()),
                }
            }
            ControlFlow::Continue(())
        })?;
        failed.map(|()| run)
    }

    /// Returns once all that is committed now is durable; those that wait at the same time share one flush.
    pub fn sync(&self) -> Result<Tid> {
        self.tell_opening()?;
        self.log.sync()
    }

    /// Before anybody is told that something new is durable, what a volume was before this opening is made too old to be taken for it.
    pub(crate) fn tell_opening(&self) -> Result<()> {
        match self.volumes.is_opening_untold() && self.log.tail().last != self.opened {
            true => self.volumes.tell_opening(),
            false => Ok(()),
        }
    }

    pub(crate) fn no_space(&self) -> Error {
        let (used, size) = self.volume_usage().unwrap_or_default();
        Error::NoSpace { used, size }
    }

    /// How full it is.
    pub fn usage(&self) -> Result<Usage> {
        let (reserved, size) = self.volume_usage()?;
        // What has two copies counts twice, unless everything has.
        let all_twice = self.volumes.wanted().copies == Copies::Two;
        let times = |at: RegionRef| if all_twice { 1 } else { at.places().count() as u64 };
        let (room, unused, live, objects) = {
            let t = self.log.tail();
            let total = t.counts.total();
            (t.room(), t.room() * times(t.segment.place()), total.live, total.objects)
        };
        let spare = self.spare.lock().as_ref().map_or(0, |r| r.place().size * times(r.place()));
        let used = reserved.saturating_sub(unused + spare);
        let reserve = reserve_of(size);
        let free = size.saturating_sub(reserved + reserve) + room.saturating_sub(4 * FRAME_MAX as u64);
        Ok(Usage { size, used, free, live, objects })
    }

    /// What users can't have.
    pub(crate) fn reserve(&self) -> Result<u64> {
        Ok(reserve_of(self.volume_usage()?.1))
    }

    /// What a fileset's live tree holds, as counted by [`Tx::count`].
    pub fn counted(&self, fileset: FilesetId) -> Count {
        self.log.tail().counts.get(fileset)
    }

    /// Wakes whoever waits in [`Store::wait_for_work`].
    pub fn wake(&self) {
        *self.work.0.lock() = true;
        self.work.1.notify_all();
    }

    /// Waits until something is committed after `seen` (then returns its tid) or buffers are full, at most for `most`.
    pub fn wait_for_work(&self, seen: Tid, most: Duration) -> Tid {
        let mut due = self.work.0.lock();
        self.idle.store(true, Ordering::SeqCst);
        let last = self.tid();
        if last == seen && !*due {
            self.work.1.wait_for(&mut due, most);
        }
        self.idle.store(false, Ordering::SeqCst);
        *due = false;
        self.tid()
    }

    /// Waits until a buffer is full, at most for `most`; says whether one may be. (Commits do not end it.)
    pub fn wait_for_full(&self, most: Duration) -> bool {
        let mut due = self.work.0.lock();
        if !*due {
            self.work.1.wait_for(&mut due, most);
        }
        std::mem::take(&mut *due)
    }

    /// Called after each commit: the first one after a pause wakes the writer.
    pub(crate) fn committed(&self, full: bool) {
        if full || self.idle.load(Ordering::Relaxed) && self.idle.swap(false, Ordering::SeqCst) {
            self.wake();
        }
    }

    /// To be called when nothing was committed for a while: gives back memory that was used to write fast.
    pub fn cool(&self) {
        self.log.tail().cool();
    }

    /// Writes full buffers of the log to the volume.
    pub fn write_out(&self) -> Result<()> {
        self.log.write_out()
    }

    /// Hands everything committed to the volume, so that it survives this process (not yet a power failure).
    pub fn write_all(&self) -> Result<()> {
        self.log.write_all()
    }
}

/// At least so much is for what gives room back.
pub(crate) const RESERVE_MIN: u64 = 24 << 20;

/// Deletions, the index, its merges and the cleaner must go on when users can write no more.
pub(crate) fn reserve_of(size: u64) -> u64 {
    (size / 64).clamp(RESERVE_MIN, 1 << 30)
}

fn chunk_number(suffix: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(suffix.try_into().ok()?))
}
