//! Deriving the index from the segments alone: when it is lost or rotten, or somebody asks. docs/format.md §Rebuild.
//!
//! The log is skimmed to its end first, so that all segments are known (and nothing is put where one of them is); then every
//! transaction of every segment is applied, oldest first. What comes of it goes to tables on the way, in bounded memory, and one
//! manifest at the very end makes it the index. A crash before leaves things as they were: the next open begins anew. Where there
//! are workers, one reads ahead and another writes tables, with the same outcome.
//!
//! The manifest, which names the segments, has a copy of its own. Where both are lost, volumes that know their regions
//! (directories) are asked; on others it can't be told which segments are of the present, and nothing is guessed.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, mpsc};

use crate::codec::Reader;
use crate::collapse::Advance;
use crate::counts::Counts;
use crate::extent::ChunkMap;
use crate::fileset::MAIN;
use crate::frame::{self, Content};
use crate::index::Entry;
use crate::index::ghost::Ghost;
use crate::index::merge::{Merged, Source, run_source};
use crate::key::{KEY_HEAD, parse};
use crate::maintain::Pending;
use crate::manifest::{Manifest, Position};
use crate::pack::{self, Packed, Part};
use crate::reading::{Window, durable_beyond, each_frame};
use crate::recover::Replayed;
use crate::segment::{self, Segment};
use crate::sieve::spans;
use crate::store::Store;
use crate::superblock::Superblock;
use crate::volume::{Region, RegionRef, Volumes};
use crate::workers::Workers;
use crate::{CountClone, Error, FilesetId, Kind, ObjectId, OpenOptions, Result, Shelter, Tid};

/// Where an open gets the index from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IndexFrom {
    /// From the tables, or not at all.
    Tables,
    /// From the tables; where one is lost or rotten, from the segments.
    #[default]
    TablesOrSegments,
    /// From the segments.
    Segments,
    /// From the segments up to the first that is damaged: the store is as it was before, and open for reading only. (All of the index is
    /// in memory.)
    SegmentsBeforeDamage,
    /// From the tables, also those that are marked because a block of theirs is rotten: reads that need it fail.
    MarkedTables,
}

impl Store {
    /// Derives the index; `each` is told how far it is.
    pub(crate) fn derive(
        &self,
        m: &Manifest,
        shelter: Option<&Shelter>,
        options: &OpenOptions,
        each: &mut dyn FnMut(Advance),
    ) -> Result<Replayed> {
        let mut replayed = self.replay(m.log, shelter, &mut |_, _, h, _| {
            self.log.tail().last = h.tid;
            Ok(())
        })?;
        // What is applied is in no table yet, all of it.
        self.maintenance.lock().tid = Tid::ZERO;
        let mut room = Room { old: self.old_tables(m), for_merges: true };
        let end = {
            let mut t = self.log.tail();
            (t.last, t.counts) = (self.birth, Counts::default());
            t.end()
        };
        let mut segments = self.segments.lock().clone();
        segments.last_mut().expect("the log has one").end = end;
        match options.workers.as_deref() {
            _ if options.index == IndexFrom::SegmentsBeforeDamage => {
                if let Err(e) = self.apply_all(&segments, &mut room, each) {
                    let last = self.log.tail().last;
                    if last == self.birth {
                        return Err(e);
                    }
                    tracing::error!("the store is shown as it was at {last}: {e}");
                }
                replayed.is_cut = true;
            }
            None => self.apply_all(&segments, &mut room, each)?,
            Some(workers) => self.apply_all_beside(&segments, &mut room, workers, each)?,
        }
        self.drop_lapsed()?;
        self.recount(options.count_clone)?;
        let mut state = self.maintenance.lock();
        (state.deriving, state.log) = (false, m.log);
        if !self.packs.lock().is_empty() {
            // What a collapse had dropped nobody knows any more: it may have been anything.
            let last = self.log.tail().last;
            let mut all: Vec<FilesetId> = self.filesets().into_iter().map(|(fileset, _)| fileset).collect();
            all.sort_unstable();
            state.ghosts = all.into_iter().map(|fileset| Ghost::of_fileset(fileset, last)).collect();
        }
        Ok(replayed)
    }

    /// (versions, bytes) of the index's tables.
    pub fn index_size(&self) -> (u64, u64) {
        let levels = self.index.read().levels.clone();
        levels.tables().fold((0, 0), |(n, bytes), t| (n + t.entries(), bytes + t.len()))
    }

    /// The tables that the manifest names, as far as they are there; nobody is given their place as long as there is other room.
    fn old_tables(&self, m: &Manifest) -> Vec<RegionRef> {
        let all = m.live.iter().chain(&m.history).flat_map(|run| run.tables.iter().map(|t| t.region));
        all.filter(|at| !self.read_only && self.volumes.open(*at).is_ok()).collect()
    }

    /// Segments that were not cleaned tell of versions again that a collapse had dropped; what those lead to may be gone.
    fn drop_lapsed(&self) -> Result<()> {
        let mut state = self.maintenance.lock();
        if !state.deriving || self.packs.lock().is_empty() {
            return Ok(());
        }
        let last = self.log.tail().last;
        match self.whole_pass(&mut state, last.0, &mut |_| ()) {
            // Nothing sees them meanwhile.
            Err(Error::NoSpace { .. }) => self.want_collapse(),
            outcome => outcome?,
        }
        Ok(())
    }

    /// Whether an entry is a chunk map of an object that is no more, and is told only by extents that others share some of.
    /// `with_attr`: the last object seen that has attributes (they come first).
    pub(crate) fn is_left_over(&self, with_attr: &mut Vec<u8>, e: &Entry) -> bool {
        let Some((_, _, kind, _)) = parse(&e.key) else { return false };
        let object = &e.key[..KEY_HEAD - 1];
        if kind == Kind::ATTR {
            with_attr.clear();
            with_attr.extend_from_slice(object);
        }
        kind == Kind::EXTENT && object != with_attr.as_slice() && !spans(e).iter().all(|s| self.is_kept(s))
    }

    /// Applies the transactions of these segments.
    fn apply_all(&self, segments: &[Segment], room: &mut Room, each: &mut dyn FnMut(Advance)) -> Result<()> {
        let total = segments.iter().map(|s| s.end).sum();
        let mut done = 0;
        for s in segments {
            self.each_frame(s, &mut |at, _, frame| {
                if let Content::Transaction(records) = frame.content {
                    self.apply(s.at.id, at, &frame.header, records)?;
                    if self.is_much_in_memory() {
                        self.freeze_derived();
                        self.spill(room)?;
                    }
                }
                Ok(())
            })?;
            done += s.end;
            each(Advance { done, total });
        }
        Ok(())
    }

    /// The same, while one worker reads what comes next and another writes tables of what was applied before. What comes of it is
    /// the same: transactions are applied in their order, tables written of the same ones, one after the other.
    fn apply_all_beside(
        &self,
        segments: &[Segment],
        room: &mut Room,
        workers: &dyn Workers,
        each: &mut dyn FnMut(Advance),
    ) -> Result<()> {
        let total = segments.iter().map(|s| s.end).sum();
        let (portions, to_apply) = mpsc::sync_channel::<Result<Portion>>(PORTIONS);
        let (frozen, to_write) = mpsc::sync_channel::<()>(0);
        let (written, outcomes) = mpsc::channel::<Result<()>>();
        let read = move || {
            let outcome = segments.iter().try_for_each(|s| self.read_portions(s, &portions));
            if let Err(Some(e)) = outcome {
                // (Nobody is there any more where applying failed.)
                let _ = portions.send(Err(e));
            }
        };
        let write = move || {
            while to_write.recv().is_ok() && written.send(self.spill(room)).is_ok() {}
        };
        let mut outcome = Ok(());
        let mut ends = Some((to_apply, frozen));
        workers.beside(vec![Box::new(read), Box::new(write)], &mut || {
            // They end where nobody waits for them any more.
            let (to_apply, frozen) = ends.take().expect("it is called once");
            outcome = self.apply_portions(&to_apply, &frozen, &outcomes, total, each);
        });
        outcome
    }

    fn apply_portions(
        &self,
        portions: &mpsc::Receiver<Result<Portion>>,
        frozen: &mpsc::SyncSender<()>,
        written: &mpsc::Receiver<Result<()>>,
        total: u64,
        each: &mut dyn FnMut(Advance),
    ) -> Result<()> {
        let (mut done, mut is_writing) = (0, false);
        let wait = |is_writing: bool| if is_writing { written.recv().unwrap_or(Ok(())) } else { Ok(()) };
        while let Ok(portion) = portions.recv() {
            let portion = portion?;
            for (at, bytes) in portion.frames() {
                let frame = frame::parse(bytes, portion.region, at).expect("the reader found it whole");
                let Content::Transaction(records) = frame.content else { continue };
                self.apply(portion.region, at, &frame.header, records)?;
                if self.is_much_in_memory() {
                    wait(is_writing)?;
                    self.freeze_derived();
                    is_writing = frozen.send(()).is_ok();
                }
            }
            done += portion.advance;
            each(Advance { done, total });
        }
        wait(is_writing)
    }

    /// Reads a segment's frames, many at a time; `Err(None)` where nobody takes them.
    fn read_portions(
        &self,
        s: &Segment,
        to: &mpsc::SyncSender<Result<Portion>>,
    ) -> std::result::Result<(), Option<Error>> {
        let new = || Portion { region: s.at.id, starts: Vec::new(), bytes: Vec::new(), advance: 0 };
        let mut portion = new();
        let mut gone = false;
        self.each_frame(s, &mut |at, bytes, _| {
            if portion.bytes.len() + bytes.len() > PORTION && !gone {
                gone = to.send(Ok(std::mem::replace(&mut portion, new()))).is_err();
                portion.bytes.reserve(PORTION);
            }
            portion.starts.push((at, portion.bytes.len()));
            portion.bytes.extend_from_slice(bytes);
            Ok(())
        })?;
        portion.advance = s.end;
        match gone || to.send(Ok(portion)).is_err() {
            true => Err(None),
            false => Ok(()),
        }
    }

    fn is_much_in_memory(&self) -> bool {
        !self.read_only && self.index.read().active.bytes() as u64 > self.memory / DERIVED
    }

    /// What is in memory is to become tables; what comes later is not among it. (What was frozen before is in tables by now.)
    fn freeze_derived(&self) {
        let mut state = self.maintenance.lock();
        let tail = self.log.tail();
        let (log, tid, counts, appended) = (tail.position(), tail.last, tail.counts.clone(), tail.appended);
        state.pending = Some(Pending { log, tid, counts, appended, next_object: self.next_object() });
        let mut index = self.index.write();
        assert!(index.frozen.is_none(), "it was written");
        index.frozen = Some(Arc::new(std::mem::take(&mut index.active)));
    }

    /// Writes tables of what was frozen. Where there is no room, the old ones make some.
    fn spill(&self, room: &mut Room) -> Result<()> {
        let mut state = self.maintenance.lock();
        match self.flush_locked(&mut state) {
            Err(Error::NoSpace { .. }) => {
                room.old.drain(..).try_for_each(|at| self.volumes.remove(at))?;
                self.flush_locked(&mut state)?;
            }
            outcome => outcome?,
        }
        while room.for_merges {
            match self.step_merge(&mut state) {
                // Then later, when the cleaner has made some.
                Err(Error::NoSpace { .. }) => room.for_merges = false,
                Ok(false) => break,
                outcome => drop(outcome?),
            }
        }
        Ok(())
    }

    /// Counts what transactions that were cleaned away no longer tell.
    fn recount(&self, count_clone: Option<CountClone>) -> Result<()> {
        if self.packs.lock().is_empty() && self.retention(MAIN)?.keeps_all() {
            return Ok(());
        }
        let mut counts = self.count_records()?;
        // What a clone shows of its base is in no record of its own.
        let filesets = self.index.read().filesets.clone();
        for clone in filesets.clones().into_iter().filter(|clone| filesets.is_there(*clone, Tid::MAX)) {
            let found = match count_clone {
                Some(count) => count(self, clone)?,
                None => self.log.tail().counts.get(clone),
            };
            counts.set(clone, found);
        }
        self.log.tail().counts = counts;
        Ok(())
    }

    /// What filesets that are there have records of.
    fn count_records(&self) -> Result<Counts> {
        let index = self.index.read();
        let runs = index.levels.live.iter().chain(&index.levels.history);
        let of_memory = index.memtables().map(|m| -> Source<'_> { Box::new(m.entries().map(Ok)) });
        let sources: Vec<Source<'_>> = of_memory.chain(runs.map(|r| -> Source<'_> { run_source(r) })).collect();
        let mut merged = Merged::new(sources)?;
        let mut counts = Counts::default();
        let mut last: Vec<u8> = Vec::new();
        // An object's ATTR comes before its data.
        let mut alive: Option<(FilesetId, ObjectId)> = None;
        while let Some(e) = merged.next()? {
            // Newest first.
            if *e.key == *last {
                continue;
            }
            last.clear();
            last.extend_from_slice(&e.key);
            let Some(value) = e.value else { continue };
            match parse(&e.key).filter(|(fileset, ..)| index.filesets.is_there(*fileset, Tid::MAX)) {
                Some((fileset, object, Kind::ATTR, _)) => {
                    alive = Some((fileset, object));
                    counts.add(fileset, 1, 0);
                }
                Some((fileset, object, Kind::EXTENT, _)) if alive == Some((fileset, object)) => {
                    counts.add(fileset, 0, ChunkMap::decode(&value, e.tid).unwrap_or_default().data_len());
                }
                _ => {}
            }
        }
        Ok(counts)
    }
}

/// What is applied becomes tables when it is this share (1/n) of the memory. As much may be on its way to tables, and the cache
/// holds little meanwhile.
const DERIVED: u64 = 4;

/// Bytes that are read ahead at a time, and how many times so many.
const PORTION: usize = 4 << 20;
const PORTIONS: usize = 4;

/// Some frames of a segment.
struct Portion {
    region: u64,
    /// Where each is in the region, and where in `bytes` it begins.
    starts: Vec<(u64, usize)>,
    bytes: Vec<u8>,
    /// Bytes of segments that are done with it.
    advance: u64,
}

impl Portion {
    fn frames(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.starts.iter().map(|(at, from)| (*at, &self.bytes[*from..]))
    }
}

/// Where tables go while there is little room.
struct Room {
    /// The tables that there were before.
    old: Vec<RegionRef>,
    /// Whether there was enough for every merge.
    for_merges: bool,
}

/// What was found of a segment: of itself, or what is left of it in a pack.
struct Remains {
    pack: Option<RegionRef>,
    region: Arc<dyn Region>,
    segment: Segment,
}

/// A manifest made of the segments and packs that the volumes say they have, none of whose tables count.
pub(crate) fn manifest_from_regions(volumes: &Volumes, sb: &Superblock, lost: Error) -> Result<Manifest> {
    let Some(regions) = volumes.list()? else { return Err(lost) };
    tracing::warn!(
        "the segments are looked for in {} regions, because the list of them is lost: {lost}",
        regions.len()
    );
    // The lost manifest's number is given to nobody, or what gets it would go when that is given back.
    let next_region = regions.iter().map(|at| at.id).fold(sb.manifest.id, u64::max) + 1;
    // Newest first: what is left in a pack is newer than what it was made of.
    let mut found: HashMap<u64, Vec<Remains>> = HashMap::new();
    let mut by_id = regions;
    by_id.sort_by_key(|at| std::cmp::Reverse(at.id));
    for at in by_id {
        let region = volumes.open(at)?;
        if let Some(segment) = as_segment(&region, &sb.uuid)? {
            found.entry(at.id).or_default().push(Remains { pack: None, region, segment });
            continue;
        }
        let parts = match pack::read(&*region, &sb.uuid) {
            // A table, or a manifest; or a pack that a crash left unfinished.
            Err(Error::Corrupt { .. }) => continue,
            parts => parts?,
        };
        for part in parts {
            let segment = of_part(&part, at.id);
            let of = found.entry(part.number).or_default();
            let packed = Arc::new(Packed::new(region.clone(), part));
            of.push(Remains { pack: Some(at), region: packed, segment });
        }
    }
    let mut segments = Vec::new();
    let mut packs: BTreeMap<u64, RegionRef> = BTreeMap::new();
    for (number, all) in found {
        // One that a crash left unfinished is of no account.
        let is_whole = |r: &Remains| each_frame(&r.region, &r.segment, &volumes.name(), &mut |_, _, _| Ok(())).is_ok();
        let whole = all.into_iter().find(|r| r.pack.is_none() || is_whole(r));
        let Some(r) = whole else {
            return Err(Error::Corrupt {
                place: format!("{}, region {number:x}", volumes.name()),
                what: "pack",
                expected: "whole frames".into(),
                found: "damaged bytes".into(),
            });
        };
        packs.extend(r.pack.map(|at| (at.id, at)));
        segments.push(r.segment);
    }
    segments.sort_by_key(|s| (s.after, s.at.id));
    let newest = segments.iter().rposition(|s| s.pack.is_none());
    let Some(newest) = newest else { return Err(lost) };
    // A segment begun later than all others, of which only a pack is left, can't be: the open one is never cleaned.
    let (log, tid) = (segments[newest].at, segments[newest].after);
    for s in &mut segments[..newest] {
        if s.pack.is_none() {
            s.end = end_of(&volumes.open(s.at)?)?;
        }
    }
    let region = volumes.open(log)?;
    let mut window = Window::new(region, segment::HEADER);
    window.fill_frame(segment::HEADER)?;
    let first = frame::parse(window.bytes(segment::HEADER), log.id, segment::HEADER);
    Ok(Manifest {
        tid,
        next_region,
        next_object: 2,
        counts: Counts::default(),
        log: Position { region: log.id, offset: segment::HEADER, chain: first.map_or(0, |f| f.header.chain) },
        segments: segments[..=newest].to_vec(),
        packs: packs.into_values().collect(),
        live: Vec::new(),
        history: Vec::new(),
    })
}

/// The segment that a region is, if it is one.
fn as_segment(region: &Arc<dyn Region>, store: &[u8; 16]) -> Result<Option<Segment>> {
    let header = segment::read(&**region, store)?;
    let Ok(after) = segment::verify(&header, store, region.place()) else { return Ok(None) };
    // How much was reserved for it, in case it is the one that is open.
    let reserved = Reader::new(&header[32..]).u64().unwrap_or(0);
    let at = RegionRef { size: reserved.max(region.place().size), ..region.place() };
    Ok(Some(Segment::open(at, after)))
}

fn of_part(part: &Part, pack: u64) -> Segment {
    let at = RegionRef { id: part.number, start: 0, size: part.end, volume: 0, second: None };
    Segment { end: part.end, pack: Some(pack), ..Segment::open(at, part.after) }
}

/// Where the last frame of a segment ends that nothing is appended to any more.
fn end_of(region: &Arc<dyn Region>) -> Result<u64> {
    let id = region.place().id;
    let mut window = Window::new(region.clone(), segment::HEADER);
    let (mut at, mut last) = (segment::HEADER, Tid::ZERO);
    loop {
        window.fill_frame(at)?;
        let bytes = window.bytes(at);
        let Some(frame) = frame::parse(bytes, id, at) else { break };
        at += frame::shape(bytes).expect("just parsed").len as u64;
        last = frame.header.tid;
        if matches!(frame.content, Content::Seal(_)) {
            return Ok(at);
        }
    }
    match durable_beyond(region, at, last)? {
        None => Ok(at),
        Some(seen) => Err(Error::Corrupt {
            place: format!("region {id:x} at byte {at}"),
            what: "frame of the log",
            expected: format!("transactions between {last} and {seen}, which were durable"),
            found: "damaged bytes".into(),
        }),
    }
}
