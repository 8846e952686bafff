//! Creating and opening a store. docs/format.md §Recovery.
//!
//! Opening: newest valid superblock → manifest → tables → replay of the log from the manifest's position. Replay stops at
//! the first frame that is not valid. If a later frame says that the missing one had been durable, it was not torn by a
//! crash but damaged since: then opening fails rather than lose synced data in silence.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex, RwLock};

use crate::assemble::{Reach, assemble};
use crate::collapse::Advance;
use crate::counts::{Count, Counts};
use crate::fileset::Filesets;
use crate::fold::Fold;
use crate::frame::{self, Body, Content, Record};
use crate::heal::heal;
use crate::index::levels::{Levels, Run, RunRef};
use crate::index::memtable::Memtable;
use crate::index::table::{BlockCache, BlockWeight, Table, TableRef};
use crate::log::{Log, Tail};
use crate::maintain::{LOG_MAX, State};
use crate::manifest::{Manifest, Position};
use crate::opening;
use crate::pack::{self, Packed};
use crate::readahead::Readahead;
use crate::reading::{VisitFrame, Window, data_is_valid, durable_beyond, each_frame, may_hold_frame};
use crate::rebuild::{IndexFrom, manifest_from_regions};
use crate::segment::{self, LIVE_UNKNOWN, Segment};
use crate::sieve::Lapses;
use crate::store::{Index, SEGMENT_MIN, Store};
use crate::superblock::{Superblock, VERSION};
use crate::volume::sim::SimDisk;
use crate::volume::{Buckets, Copies, RawVolume, Region, RegionRef, Tier, UNIT, Volume, VolumeEntry, Volumes};
use crate::workers::Workers;
use crate::{Error, FilesetId, Result, Shelter, Tid};

/// How a store is made.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    /// Wall clock, nanoseconds since 1970.
    pub now_ns: u64,
    /// Bytes that it may use of its volume; 0: all there are.
    pub size_limit: u64,
    /// Identity; `None` draws one (tests fix it).
    pub seed: Option<[u8; 32]>,
    /// The key of the directory hash, if it must be that of another store; `None` draws one.
    pub hash_key: Option<[u8; 16]>,
}

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Bytes of memory for index, cache and buffers (tables' filters and block lists come on top).
    pub memory: u64,
    /// Bytes that a table of the index has at most, about: with smaller ones a small store has what else only a large one has.
    pub table_size: usize,
    /// Changes nothing on the volume.
    pub read_only: bool,
    /// Where the index comes from.
    pub index: IndexFrom,
    /// Where to keep what is committed and not written yet, and where what the last process left of that may be. Not with
    /// `read_only`.
    pub shelter: Option<Shelter>,
    /// Whether to open where volumes are missing. What is on them only can't be read then; if the end of the log is, the store
    /// is opened for reading, as it was at the last checkpoint.
    pub degraded: bool,
    /// How buckets are reached. Opening does not wait for one; without this one counts as missing.
    pub buckets: Option<Buckets>,
    /// Who lends threads, where the index is derived anew and for scrubs.
    pub workers: Option<Arc<dyn Workers>>,
    /// Who counts clones where the index is derived anew; `None`: what the transactions say that are left.
    pub count_clone: Option<CountClone>,
    /// What others are told of this machine, where they find that it has their bucket.
    pub who: String,
    /// The number of this opening; `None` draws one (tests fix it).
    pub opening: Option<u64>,
}

/// Counts what a clone holds. Which of the objects that it shows of its base are of use in it, the filesystem only knows; it has to look,
/// since the transactions that said so may have been cleaned away. (It may also be asked for one that was removed, which holds nothing.)
pub type CountClone = fn(&Store, FilesetId) -> Result<Count>;

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions {
            memory: 256 << 20,
            table_size: 8 << 20,
            read_only: false,
            index: IndexFrom::default(),
            shelter: None,
            degraded: false,
            buckets: None,
            workers: None,
            count_clone: None,
            who: "another machine".into(),
            opening: None,
        }
    }
}

impl OpenOptions {
    /// For tests: as little memory as it can do with, and tables so small that a small store has many.
    pub fn small() -> OpenOptions {
        OpenOptions { memory: 16 << 20, table_size: 12 << 10, ..OpenOptions::default() }
    }

    pub(crate) fn reach(&self) -> Reach {
        Reach { buckets: self.buckets.clone(), memory: (self.memory / 4).max(8 << 20) }
    }
}

/// Smallest volume that makes sense.
pub const SIZE_MIN: u64 = 64 << 20;

impl Store {
    /// Makes an empty store on a volume; what was there is lost. The store is then opened like any other.
    pub fn create(volume: &dyn Volume, options: &CreateOptions) -> Result<()> {
        let (_, size) = volume.usage(options.size_limit)?;
        if size < SIZE_MIN {
            return Err(Error::NotAStore(format!(
                "{} has {size} bytes; a store needs {SIZE_MIN} at least",
                volume.name()
            )));
        }
        volume.numbered(0);
        volume.keep_only(&[], false)?;
        clear_supers(volume)?;
        let mut random = options.seed.unwrap_or_default();
        if options.seed.is_none() {
            getrandom::fill(&mut random).map_err(|e| Error::NotAStore(format!("no random numbers: {e}")))?;
        }
        let uuid: [u8; 16] = random[..16].try_into().expect("16");
        let birth = Tid(options.now_ns.max(1));
        let most = (size / 16).next_power_of_two();
        let segment = volume.create(1, most.clamp(8 << 20, 16 << 20))?;
        segment.write_at(&segment::header(&uuid, segment.place(), birth), 0)?;
        segment.flush()?;
        let manifest = Manifest {
            tid: birth,
            next_region: 3,
            next_object: 2,
            counts: Counts::default(),
            log: Position { region: 1, offset: segment::HEADER, chain: 0 },
            segments: vec![Segment::open(segment.place(), birth)],
            packs: vec![],
            live: vec![],
            history: vec![],
        };
        let bytes = manifest.encode(2);
        let mut sb = Superblock {
            generation: 0,
            attempt: 0,
            uuid,
            hash_key: options.hash_key.unwrap_or(random[16..].try_into().expect("16")),
            birth,
            manifest: RegionRef { id: 2, start: 0, size: 0, volume: 0, second: None },
            manifest_len: bytes.len() as u64,
            version: VERSION,
            copies: Copies::One,
            kept_twice: Default::default(),
            next_volume: 1,
            volumes: [entry(volume, 0, options.size_limit, Tier::Hot)].into_iter().collect(),
            roster: None,
            homes: vec![0],
            homes_since: 0,
            openings: Default::default(),
        };
        let region = volume.create(2, Manifest::room_with(sb.manifest_len, &sb))?;
        sb.manifest = region.place();
        Manifest::write(&*region, &bytes, &sb)?;
        region.flush()?;
        sb.write(volume, 0)
    }

    /// A new store in memory, for tests.
    pub fn in_memory() -> Store {
        let volume = Arc::new(RawVolume::new(Arc::new(SimDisk::new(16 << 30))));
        let options = CreateOptions { now_ns: 1, seed: Some([7; 32]), ..CreateOptions::default() };
        Store::create(&*volume, &options).expect("memory does not fail");
        Store::open(volume, &OpenOptions::default()).expect("memory does not fail")
    }

    /// Opens a store of one volume, as [`Store::open_volumes`].
    pub fn open(volume: Arc<dyn Volume>, options: &OpenOptions) -> Result<Store> {
        Store::open_volumes(&[volume], options)
    }

    /// Opens a store. After a crash this replays the tail of the log; no repair step is ever needed. `found`: the volume that
    /// was asked for, then what may be the store's others.
    pub fn open_volumes(found: &[Arc<dyn Volume>], options: &OpenOptions) -> Result<Store> {
        Store::open_telling(found, options, &mut |_| ())
    }

    /// As [`Store::open_volumes`]; where the index is derived anew, `each` is told how far that is (bytes of segments).
    pub fn open_telling(
        found: &[Arc<dyn Volume>],
        options: &OpenOptions,
        each: &mut dyn FnMut(Advance),
    ) -> Result<Store> {
        let mut open_from = |index| open_found(found, &OpenOptions { index, ..options.clone() }, each);
        let failed = match open_from(options.index) {
            Err(e) if options.index == IndexFrom::TablesOrSegments && (e.is_lost() || options.degraded) => e,
            outcome => return outcome,
        };
        // Tables are verified as they are read, and some of that is done before it is open.
        let failed = match &failed {
            Error::Corrupt { what: "table block" | "table entry", .. } => {
                tracing::warn!("the index can't be used, and is derived anew from the segments: {failed}");
                match open_from(IndexFrom::Segments) {
                    Err(e) => {
                        Error::Refused(format!("{failed}; and the index can't be derived anew from the segments: {e}"))
                    }
                    outcome => return outcome,
                }
            }
            _ => failed,
        };
        // Where a segment is damaged too, what is left of the tables is better than nothing.
        if let Ok(store) = open_from(IndexFrom::MarkedTables) {
            tracing::error!("what is damaged of the index can't be read, nor derived anew: {failed}");
            return Ok(store);
        }
        match options.degraded {
            true => open_from(IndexFrom::SegmentsBeforeDamage).map_err(|_| failed),
            false => Err(failed),
        }
    }
}

fn open_found(found: &[Arc<dyn Volume>], options: &OpenOptions, each: &mut dyn FnMut(Advance)) -> Result<Store> {
    let mut failed = None;
    let mut newest = None;
    for candidate in assemble(found, &options.reach())? {
        // The older superblock serves only where the newer one's manifest was never completed; its regions may
        // have been given back since, so it is tried in full before it is believed.
        match candidate.manifest(options.degraded) {
            Ok(manifest) => return open_with(candidate.volumes, options, candidate.superblock, manifest, each),
            // What could not be read now may be whole.
            Err(e @ (Error::Io { .. } | Error::Missing { .. })) if failed.is_none() && !e.is_lost() => {
                return Err(e);
            }
            Err(e) => {
                failed = failed.or(Some(e));
                newest = newest.or(Some(candidate));
            }
        }
    }
    let (lost, newest) = failed.zip(newest).expect("a candidate failed");
    match options.index {
        IndexFrom::Tables | IndexFrom::MarkedTables => Err(lost),
        _ => {
            let manifest = manifest_from_regions(&newest.volumes, &newest.superblock, lost)?;
            // It names no tables.
            let index = match options.index {
                IndexFrom::TablesOrSegments => IndexFrom::Segments,
                segments => segments,
            };
            let options = OpenOptions { index, ..options.clone() };
            open_with(newest.volumes, &options, newest.superblock, manifest, each)
        }
    }
}

/// An older store's superblock would win by its generation.
pub(crate) fn clear_supers(volume: &dyn Volume) -> Result<()> {
    for slot in 0..2 {
        let label = volume.read_label(slot)?.unwrap_or_default();
        if volume.read_super(slot)?.iter().chain(&label).any(|b| *b != 0) {
            return volume.wipe_super();
        }
    }
    Ok(())
}

/// The entry of a new volume.
pub(crate) fn entry(volume: &dyn Volume, number: u16, size_limit: u64, tier: Tier) -> VolumeEntry {
    VolumeEntry { size_limit, hint: volume.hint(), tier, ..VolumeEntry::new(number, volume.kind()) }
}

fn open_runs(volumes: &Volumes, runs: &[RunRef], marked: bool) -> Result<Vec<Run>> {
    let open_table = if marked { Table::open_marked } else { Table::open };
    let open = |t: &TableRef| Ok(Arc::new(open_table(volumes.open(t.region)?, t.len)?));
    let open_run = |run: &RunRef| {
        let tables = run.tables.iter().map(open).collect::<Result<_>>()?;
        Ok(Run { tables, above: run.above.as_slice().into() })
    };
    runs.iter().map(open_run).collect()
}

type Regions = HashMap<u64, Arc<dyn Region>>;

/// Opens the segments that the manifest names, and their packs: regions of their own, or parts of packs.
pub(crate) fn open_segments(
    volumes: &Volumes,
    uuid: &[u8; 16],
    m: &Manifest,
    degraded: bool,
) -> Result<(Regions, Vec<Arc<dyn Region>>)> {
    let mut regions = Regions::new();
    let mut packs = Vec::new();
    for at in &m.packs {
        let region = match volumes.open(*at) {
            Err(e) if e.is_lost() => {
                tracing::error!("a pack is gone, and all that is in it only: {e}");
                volumes.open_emptied(*at)?
            }
            region => region?,
        };
        packs.push(region.clone());
        let parts = match volumes.is_out_of_reach(*at) {
            true => None,
            false => match pack::read(&*region, uuid) {
                Err(e) if e.is_lost() => {
                    tracing::error!("what a pack holds can't be told: {e}");
                    None
                }
                parts => Some(parts?),
            },
        };
        let Some(parts) = parts else {
            for s in m.segments.iter().filter(|s| s.pack == Some(at.id)) {
                regions.insert(s.at.id, Arc::new(Packed::unread(region.clone(), s.at, *uuid)));
            }
            continue;
        };
        for part in parts {
            // Only those that the manifest says are here: others were packed anew since.
            if m.segments.iter().any(|s| s.at.id == part.number && s.pack == Some(at.id)) {
                regions.insert(part.number, Arc::new(Packed::new(region.clone(), part)));
            }
        }
    }
    for s in &m.segments {
        match s.pack {
            None => {
                let region = match volumes.open(s.at) {
                    // What the log ends in can't be done without, but to look.
                    Err(e) if e.is_lost() && s.at.id == m.log.region => match e {
                        Error::Corrupt { .. } if degraded => volumes.open_emptied(s.at)?,
                        Error::Corrupt { place, what, expected, found } => {
                            let found = format!("{found} (--degraded shows what is left)");
                            return Err(Error::Corrupt { place, what, expected, found });
                        }
                        _ if degraded => volumes.absent(s.at, "whose file is gone"),
                        e => return Err(e),
                    },
                    // One whose file is gone is as damaged as can be.
                    Err(e) if e.is_lost() => {
                        tracing::error!("a segment is gone, and all that is in it only: {e}");
                        volumes.open_emptied(s.at)?
                    }
                    region => region?,
                };
                regions.insert(s.at.id, region);
            }
            Some(_) if regions.contains_key(&s.at.id) => {}
            Some(id) => {
                return Err(Error::Corrupt {
                    place: format!("{}, region {id:x}", volumes.name()),
                    what: "pack",
                    expected: format!("what is left of segment {:x}", s.at.id),
                    found: "other segments".into(),
                });
            }
        }
    }
    Ok((regions, packs))
}

/// Opens the tables that the manifest names; `None` if the index is to be derived from the segments instead.
fn open_levels(volumes: &Volumes, options: &OpenOptions, m: &Manifest) -> Result<Option<Levels>> {
    if matches!(options.index, IndexFrom::Segments | IndexFrom::SegmentsBeforeDamage) {
        return Ok(None);
    }
    let open = |runs: &[RunRef]| open_runs(volumes, runs, options.index == IndexFrom::MarkedTables);
    let opened = open(&m.live).and_then(|live| Ok(Levels { live, history: open(&m.history)? }));
    match opened {
        Err(e) if options.index == IndexFrom::TablesOrSegments && e.is_lost() => {
            tracing::warn!("the index can't be used, and is derived anew from the segments: {e}");
            Ok(None)
        }
        opened => opened.map(Some),
    }
}

pub(crate) fn open_with(
    volumes: Volumes,
    options: &OpenOptions,
    sb: Superblock,
    mut m: Manifest,
    each: &mut dyn FnMut(Advance),
) -> Result<Store> {
    m.drop_places(&|number| volumes.is_outdated(number));
    let levels = open_levels(&volumes, options, &m)?;
    let derive = levels.is_none();
    if derive {
        // What is needed of them is found anew.
        m.segments.iter_mut().for_each(|s| (s.live, s.slack) = (LIVE_UNKNOWN, 0));
    }
    let levels = levels.unwrap_or_default();
    let (regions, packs) = open_segments(&volumes, &sb.uuid, &m, options.degraded)?;
    for s in m.segments.iter_mut().filter(|s| s.pack.is_none()) {
        s.at = regions[&s.at.id].place();
    }
    let is_open = m.segments.iter().any(|s| s.at.id == m.log.region && s.pack.is_none());
    let first = regions.get(&m.log.region).filter(|_| is_open).cloned().ok_or_else(|| Error::Corrupt {
        place: volumes.name(),
        what: "manifest",
        expected: format!("segment {:x} in its list", m.log.region),
        found: "it is not there".into(),
    })?;
    let tail = Tail::new(first, m.log, m.tid, m.counts.clone());
    let memory = options.memory.max(16 << 20);
    let read_only = options.read_only || options.index == IndexFrom::SegmentsBeforeDamage;
    let next_region = volumes.next_region();
    next_region.fetch_max(m.next_region, Ordering::Relaxed);
    let state = State {
        log: m.log,
        tid: m.tid,
        counts: m.counts.clone(),
        next_object: m.next_object,
        appended: 0,
        manifest: (sb.manifest_len > 0).then(|| sb.manifest.without(|number| volumes.is_outdated(number))),
        pending: None,
        doomed: Vec::new(),
        doomed_regions: Vec::new(),
        outdated: Vec::new(),
        pass: None,
        batch: None,
        written: None,
        lapses: Lapses::default(),
        grown: BTreeMap::new(),
        account: None,
        first_look: None,
        passes: 0,
        cleaned: HashMap::new(),
        damaged: HashSet::new(),
        forgotten: HashSet::new(),
        ghosts: Vec::new(),
        deriving: derive && !read_only,
    };
    let mut store = Store {
        birth: sb.birth,
        hash_key: sb.hash_key,
        uuid: sb.uuid,
        who: options.who.clone(),
        read_only,
        is_cut: false,
        opened: Tid::default(),
        degraded: options.degraded,
        rot_told: false.into(),
        log: Log::new(tail),
        index: RwLock::new(Index {
            active: Memtable::default(),
            frozen: None,
            levels: Arc::new(levels),
            filesets: Filesets::default(),
        }),
        cache: BlockCache::with_weighter(4096, memory / 2, BlockWeight),
        readahead: Readahead::default(),
        allowance: 0.into(),
        memory,
        table_size: options.table_size,
        regions: RwLock::new(regions),
        segments: Mutex::new(m.segments.clone()),
        packs: Mutex::new(packs),
        making_room: Mutex::default(),
        retention_changes: 0.into(),
        scattered: Mutex::default(),
        forgetting: Mutex::new(()),
        not_given_back: AtomicU64::new(0),
        wiping: false.into(),
        collapse_wanted: Mutex::new(false),
        retentions: RwLock::default(),
        retaining: Mutex::new(()),
        pins: Mutex::default(),
        clock: AtomicU64::new(0),
        spare: Mutex::new(None),
        next_region,
        next_object: AtomicU64::new(m.next_object),
        maintenance: Mutex::new(state),
        work: (Mutex::new(false), Condvar::new()),
        idle: false.into(),
        moving: Mutex::default(),
        pushing: Mutex::default(),
        reach: Mutex::default(),
        heat: Mutex::default(),
        workers: options.workers.clone(),
        elsewhere: Mutex::default(),
        volumes,
    };
    store.load_filesets()?;
    let known = store.keep_replayed();
    let shelter = options.shelter.as_ref().filter(|_| !read_only);
    let replayed = match derive {
        true => store.derive(&m, shelter, options, each)?,
        false => {
            store.replay(m.log, shelter, &mut |region, at, header, records| store.apply(region, at, header, records))?
        }
    };
    if replayed.is_cut && !options.read_only {
        // To write would be to deny what the missing volume has.
        tracing::warn!("the end of the log is damaged, or on a missing volume: the store is open for reading only");
        (store.read_only, store.is_cut) = (true, true);
    }
    store.kept_is_replayed(&known, derive)?;
    store.opened = store.log.tail().last;
    if !store.read_only {
        store.settle(replayed, shelter, derive, options.opening.map_or_else(opening::draw, Ok)?)?;
    }
    Ok(store)
}

/// Gets a transaction: its region, where in it, and what it says.
pub(crate) type VisitTransaction<'v> = dyn FnMut(u64, u64, &frame::Header, Vec<Record<'_>>) -> Result<()> + 'v;

/// What a replay found.
pub(crate) struct Replayed {
    frames: u64,
    /// Whether bytes follow the log's end that might be taken for frames.
    dirty_end: bool,
    /// A segment that a seal names, and that was never begun. Until a checkpoint the next open would look at it again.
    unbegun: Option<RegionRef>,
    /// Whether the log goes on where a volume is missing, or where it is damaged.
    pub(crate) is_cut: bool,
}

impl Store {
    /// Visits the transactions of the log from `at` on, to its end, and makes the tail begin there. Where the volume does not have the
    /// next frame, it may be in the shelter.
    pub(crate) fn replay(
        &self,
        at: Position,
        shelter: Option<&Shelter>,
        visit: &mut VisitTransaction<'_>,
    ) -> Result<Replayed> {
        let mut frames = 0;
        let mut at = at;
        // Up to where bytes of the region were taken from the shelter.
        let mut rescued = (0, 0);
        let mut rescue = |region: &Arc<dyn Region>, at: Position, last: Tid| -> Result<bool> {
            let Some(shelter) = shelter.filter(|_| rescued.0 != at.region || at.offset >= rescued.1) else {
                return Ok(false);
            };
            let end = self.rescue(shelter, region, at, last)?;
            rescued = (at.region, end.unwrap_or(at.offset));
            Ok(end.is_some())
        };
        loop {
            let region = self.regions.read().get(&at.region).cloned().expect("opened before");
            if region.is_absent() {
                return Ok(Replayed { frames, dirty_end: false, unbegun: None, is_cut: true });
            }
            self.verify_header(&*region)?;
            let mut window = self.log_window(&region, at.offset);
            let next = loop {
                window.fill_frame(at.offset)?;
                let bytes = window.bytes(at.offset);
                let last = self.log.tail().last;
                // Seals repeat the tid of the last transaction.
                let is_next = |f: &frame::Frame<'_>| {
                    f.header.chain == at.chain && (f.header.tid > last || matches!(f.content, Content::Seal(_)))
                };
                let frame = frame::parse(bytes, at.region, at.offset).filter(is_next);
                let torn = matches!(&frame, Some(frame::Frame { content: Content::Transaction(records), .. })
                    if !data_is_valid(&*region, bytes, at.offset, records));
                if (frame.is_none() || torn) && rescue(&region, at, last)? {
                    window = self.log_window(&region, at.offset);
                    continue;
                }
                let Some(frame) = frame else { break None };
                let end = at.offset + frame::shape(bytes).expect("just parsed").len as u64;
                if torn && durable_beyond(&region, end, last)?.is_none() {
                    break None;
                }
                let start = at.offset;
                at = Position { region: at.region, offset: end, chain: frame.crc };
                {
                    let mut t = self.log.tail();
                    (t.base, t.chain) = (at.offset, at.chain);
                }
                match frame.content {
                    Content::Seal(next) => {
                        frames += 1;
                        break Some(next);
                    }
                    Content::Transaction(records) => {
                        visit(at.region, start, &frame.header, records)?;
                        frames += 1;
                    }
                }
            };
            let Some(next) = next else {
                let last = self.log.tail().last;
                if let Some(seen) = durable_beyond(&region, at.offset, last)? {
                    if self.degraded {
                        return Ok(Replayed { frames, dirty_end: false, unbegun: None, is_cut: true });
                    }
                    return Err(Error::Corrupt {
                        place: format!("{}, region {:x} at byte {}", self.volumes.name(), at.region, at.offset),
                        what: "frame of the log",
                        expected: format!("transactions between {last} and {seen}, which were durable"),
                        found: "damaged bytes (--degraded shows the filesystem as it was before)".into(),
                    });
                }
                if region.is_cut() {
                    return Ok(Replayed { frames, dirty_end: false, unbegun: None, is_cut: true });
                }
                let dirty_end = may_hold_frame(&region, at.offset)?;
                return Ok(Replayed { frames, dirty_end, unbegun: None, is_cut: false });
            };
            let next = next.without(|number| self.volumes.is_outdated(number));
            let is_gone = || self.degraded && self.volumes.open(next).is_err_and(|e| e.is_lost());
            if !self.volumes.is_there(next.volume) || is_gone() {
                return Ok(Replayed { frames, dirty_end: false, unbegun: None, is_cut: true });
            }
            match self.follow(at, next, shelter)? {
                Some(next) => at = next,
                None => return Ok(Replayed { frames, dirty_end: false, unbegun: Some(next), is_cut: false }),
            }
        }
    }

    /// What was not flushed one copy may have and the other not.
    fn log_window(&self, region: &Arc<dyn Region>, at: u64) -> Window {
        match self.read_only {
            true => Window::new(region.clone(), at),
            false => Window::evening_out(region.clone(), at),
        }
    }

    /// Writes to the volume what a shelter has of the log from `at` on, if it has the next frame; returns where that ends.
    fn rescue(&self, shelter: &Shelter, region: &Arc<dyn Region>, at: Position, last: Tid) -> Result<Option<u64>> {
        let Some(left) = shelter.left_at(&self.uuid, at.region, at.offset) else { return Ok(None) };
        let (mut len, mut chain, mut last) = (0, at.chain, last);
        while let Some(frame) = frame::parse(&left[len..], at.region, at.offset + len as u64) {
            let bytes = &left[len..];
            let is_seal = matches!(frame.content, Content::Seal(_));
            let is_next = frame.header.chain == chain && (frame.header.tid > last || is_seal);
            let whole = match &frame.content {
                Content::Transaction(records) => data_is_valid(&**region, bytes, at.offset + len as u64, records),
                Content::Seal(_) => true,
            };
            if !is_next || !whole {
                break;
            }
            (chain, last) = (frame.crc, frame.header.tid);
            len += frame::shape(bytes).expect("just parsed").len;
            if is_seal {
                break;
            }
        }
        if len == 0 {
            return Ok(None);
        }
        region.write_at(&left[..len], at.offset)?;
        tracing::info!(bytes = len, tid = %last, "went on where the process before was killed");
        Ok(Some(at.offset + len as u64))
    }

    /// Visits the frames that are left of a segment which has been ended.
    pub(crate) fn each_frame(&self, s: &Segment, visit: &mut VisitFrame<'_>) -> Result<()> {
        let region = self.regions.read()[&s.at.id].clone();
        each_frame(&region, s, &self.volumes.name(), visit)
    }

    /// Goes to the segment that a seal names; `None`: its header was never written, so the log ends at the seal.
    fn follow(&self, sealed: Position, next: RegionRef, shelter: Option<&Shelter>) -> Result<Option<Position>> {
        let region = self.volumes.open(next)?;
        self.next_region.fetch_max(next.id + 1, Ordering::Relaxed);
        let last = self.log.tail().last;
        // Whatever the space held before may be in the header's place.
        let mut unwritten = segment::verify(&segment::read(&*region, &self.uuid)?, &self.uuid, next).is_err();
        let left = shelter.filter(|_| unwritten).and_then(|s| s.left_at(&self.uuid, next.id, 0));
        if let Some(header) = left.map(|bytes| &bytes[..segment::HEADER as usize])
            && segment::verify(header, &self.uuid, next).is_ok()
        {
            region.write_at(header, 0)?;
            unwritten = false;
        }
        if unwritten && durable_beyond(&region, segment::HEADER, last)?.is_none() {
            return Ok(None);
        }
        self.regions.write().insert(next.id, region.clone());
        let mut t = self.log.tail();
        let mut segments = self.segments.lock();
        if let Some(s) = segments.last_mut() {
            s.end = sealed.offset;
        }
        segments.push(Segment::open(region.place(), t.last));
        t.segment = region;
        t.base = segment::HEADER;
        t.chain = sealed.chain;
        Ok(Some(Position { region: next.id, offset: segment::HEADER, chain: sealed.chain }))
    }

    fn verify_header(&self, region: &dyn Region) -> Result<()> {
        let mut header = segment::read(region, &self.uuid)?;
        if !self.read_only {
            // Of one that was not flushed another copy may be without.
            let is_good = |bytes: &[u8]| segment::verify(bytes, &self.uuid, region.place()).is_ok();
            heal(region, &mut header, 0, &is_good)?;
        }
        match segment::verify(&header, &self.uuid, region.place()) {
            // A crash may have lost the header of a segment that holds nothing durable.
            Err(_) if header.iter().all(|b| *b == 0) => Ok(()),
            verdict => verdict.map(|_| ()),
        }
    }

    pub(crate) fn apply(&self, region: u64, at: u64, h: &frame::Header, records: Vec<Record>) -> Result<()> {
        let mut fold = Fold::new(h.fileset, h.tid);
        let mut counts = vec![(h.fileset, h.objects, h.live)];
        for r in records {
            if let Body::Fileset { objects, live } = r.body {
                counts.push((r.fileset, objects, live));
            }
            fold.record(self, region, at, &r)?;
        }
        self.next_object.fetch_max(h.next_object, Ordering::Relaxed);
        let mut t = self.log.tail();
        t.last = h.tid;
        for (fileset, objects, live) in counts {
            t.counts.add(fileset, objects, live);
        }
        self.insert(&mut t, region, h.tid, fold.finish());
        Ok(())
    }

    /// Makes the superblock durable on all its homes, and sees to it that none is anywhere else: nothing of the older one is given back
    /// before. A process that was killed may have left it in the page cache, or may not have come to all volumes.
    fn settle_superblock(&self, opening: u64) -> Result<()> {
        let sb = self.volumes.superblock();
        if sb.version == VERSION {
            self.volumes.rewrite_super()?;
        }
        self.volumes.begin(opening);
        let volumes = self.volumes.found_at(&sb);
        if sb.version != VERSION || sb.volumes != volumes {
            // To the other slot: a torn write leaves the one that was read.
            self.volumes.write_super(|sb| (sb.version, sb.volumes) = (VERSION, volumes))?;
        }
        // (The homes can be reached from each other.)
        let signed = self.volumes.post_signs();
        signed.unwrap_or_else(|e| tracing::warn!("a volume does not know where superblocks are: {e}"));
        Ok(())
    }

    /// Of segments that were ended, only what they used. A seal names the next one with all that was reserved for it, and so may a
    /// manifest; what they did not use may be a newer region's since, or that of an older one that was moved there.
    fn without_what_was_given_back(&self, all: &mut [RegionRef], is_sealed: bool) {
        let end = self.log.tail().end();
        let mut segments = self.segments.lock().clone();
        if let Some(last) = segments.last_mut().filter(|_| is_sealed) {
            last.end = end;
        }
        let ends: HashMap<u64, u64> =
            segments.iter().filter(|s| s.end != 0 && s.pack.is_none()).map(|s| (s.at.id, s.end)).collect();
        for at in all {
            at.size = ends.get(&at.id).map_or(at.size, |end| at.size.min(end.next_multiple_of(UNIT)));
        }
    }

    /// Makes the opened state durable before anything is written: what replay accepted must not be lost by a later crash. Where the
    /// process before was killed, it need not be: then all is as if this process had written it.
    fn settle(&self, replayed: Replayed, shelter: Option<&Shelter>, derived: bool, opening: u64) -> Result<()> {
        let end = self.log.tail().position();
        // Whoever wrote there was killed: nothing of it is lost or torn, and the log can go on in its place.
        let killed = |s: &Shelter| s.left_at(&self.uuid, end.region, end.offset).is_some();
        let stays = !replayed.dirty_end && replayed.unbegun.is_none() && !derived && !replayed.is_cut;
        let goes_on = shelter.is_some_and(killed) && stays;
        if let Some(shelter) = shelter {
            // All that was in it is on the volume now.
            self.log.tail().move_to(shelter.clone(), self.uuid);
        }
        let mut all: Vec<RegionRef> =
            self.regions_now(&self.maintenance.lock()).into_iter().map(|(_, at)| at).collect();
        self.without_what_was_given_back(&mut all, replayed.unbegun.is_some());
        all.extend(replayed.unbegun);
        // (Of a store that is just being taken over there is none yet.)
        let is_new = self.maintenance.lock().manifest.is_none();
        match is_new {
            true => self.volumes.begin(opening),
            false => self.settle_superblock(opening)?,
        }
        // What a forgetting had replaced, but not yet overwritten when the power failed, is among what is not named.
        self.volumes.keep_only(&all, self.is_forgetting()?)?;
        let is_back =
            self.volumes.superblock().volumes.iter().any(|e| e.away.is_some() && self.volumes.is_there(e.number));
        if replayed.frames == 0 && !replayed.dirty_end && !derived && !is_back {
            return if is_new { self.write_manifest_now() } else { Ok(()) };
        }
        // What was replayed, the segments before the last one too.
        let replayed_from = self.maintenance.lock().log.region;
        let passed: Vec<u64> = {
            let segments = self.segments.lock();
            segments.iter().map(|s| s.at.id).skip_while(|id| *id != replayed_from).collect()
        };
        let passed: Vec<Arc<dyn Region>> = passed.iter().map(|id| self.regions.read()[id].clone()).collect();
        if goes_on {
            // The next sync flushes it with the rest; whoever waits for the mount need not.
            self.log.flush_later(passed);
            // And upkeep flushes the index at once, so that the next process need not replay all of this again.
            self.log.tail().appended = LOG_MAX + 1;
            return Ok(());
        }
        for region in passed {
            region.flush()?;
        }
        let mut tail = self.log.tail();
        let end = tail.end();
        let segment = match self.create_segment(SEGMENT_MIN) {
            // Nothing behind its end can be taken for what comes next: it can go on in its place, and what gives room back with it.
            Err(Error::NoSpace { .. }) if stays && !is_back && !is_new && tail.room() >= SEGMENT_MIN => {
                tracing::warn!("there is no room for another segment: the log goes on in the one that there is");
                return Ok(());
            }
            created => created?,
        };
        let at = segment.place();
        tail.chain = 0;
        let header = segment::header(&self.uuid, at, tail.last);
        tail.switch(segment.clone(), header);
        self.regions.write().insert(at.id, segment);
        let mut segments = self.segments.lock();
        if let Some(s) = segments.last_mut() {
            s.end = end;
        }
        segments.push(Segment::open(at, tail.last));
        drop((segments, tail));
        self.checkpoint()?;
        replayed.unbegun.map_or(Ok(()), |at| self.volumes.remove(at))
    }
}
