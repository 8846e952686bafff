//! Scrubbing: every stored byte is read from the volume and verified, in steps, while the store is in use.
//! docs/format.md §Scrub.
//!
//! First the segments by number, then the tables, then manifest and superblocks, which are written anew where they are
//! damaged; at last, if that is asked for, what the bucket has of all that is compared with it. Between two steps segments may be
//! cleaned and moved: a step goes on where the one before ended, because offsets within a segment stay what they were. What is read
//! comes from the volume, not from the operating system's cache, as far as the volume can see to that.
//!
//! The open segment is left out; a scrub begins a new one first, so that all is read that was there when it began.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use crate::ahead;
use crate::codec::{Reader, is_sealed, put_varint};
use crate::extent::{self, BLOCK, CHUNK, Codec, Piece};
use crate::fileset::MAIN;
use crate::frame::{self, Body, Content, Record};
use crate::heal::{Elsewhere, Lost, Sides, heal, write_anew};
use crate::index::table::{Cursor, Table};
use crate::key::{Key, parse};
use crate::manifest::Manifest;
use crate::pack;
use crate::reading::{Window, damaged_blocks, each_copy, extent_is_valid, region_start};
use crate::segment::{self, Segment};
use crate::sieve::each_span;
use crate::store::{FRAME_MAX, Store};
use crate::volume::{Region, RegionRef};
use crate::workers::Job;
use crate::{Error, FilesetId, Kind, ObjectId, Result, Tid};

const VERSION: u8 = 2;
/// Damages that a report lists; of more it has the number.
pub const LISTED: usize = 1000;

/// How far a scrub is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubAt {
    phase: Phase,
    /// The region it is in, and from which byte on.
    pub(crate) region: u64,
    pub(crate) offset: u64,
}

/// What a scrub reads, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Segments,
    Tables,
    /// What is in the bucket, too.
    Copies,
}

impl ScrubAt {
    fn first(phase: Phase) -> ScrubAt {
        ScrubAt { phase, region: 0, offset: 0 }
    }

    fn segment(region: u64, offset: u64) -> ScrubAt {
        ScrubAt { phase: Phase::Segments, region, offset }
    }
}

/// What is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rot {
    /// Heads of a transaction, or a header: what it says is unknown.
    Frame,
    /// A block of the index, which is derived anew.
    Table,
    /// Bytes of a file.
    Data {
        /// Whose.
        fileset: FilesetId,
        /// Which file.
        object: ObjectId,
        /// From which byte of it on.
        offset: u64,
        /// How many at most.
        len: u64,
        /// The transaction that wrote them.
        tid: Tid,
    },
}

/// A damaged place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The region.
    pub region: u64,
    /// First byte in it.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// What they were.
    pub rot: Rot,
}

impl Damage {
    /// Takes up another one, if that goes on in the same file and the same region; says whether it did.
    fn takes_up(&mut self, next: &Damage) -> bool {
        let Rot::Data { fileset, object, offset, len, tid } = self.rot else { return false };
        let Rot::Data { offset: from, len: n, .. } = next.rot else { return false };
        let same = Rot::Data { fileset, object, offset: from, len: n, tid } == next.rot && self.region == next.region;
        if !same || from > offset + len || self.offset > next.offset {
            return false;
        }
        self.len = self.len.max(next.offset + next.len - self.offset);
        self.rot = Rot::Data { fileset, object, offset, len: len.max(from + n - offset), tid };
        true
    }
}

/// What a scrub has found, or is about to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// When it began, nanoseconds since 1970; 0: never.
    pub begun: u64,
    /// When it ended; 0: it is under way.
    pub ended: u64,
    /// Bytes read.
    pub bytes: u64,
    /// How far it is.
    pub at: ScrubAt,
    /// Whether what is in the bucket is read, too.
    pub bucket: bool,
    /// Damages, `LISTED` at most.
    pub damages: Vec<Damage>,
    /// How many more there are.
    pub more: u64,
    /// Damaged places that were written anew: of manifests, superblocks, maps of scattered regions, and what had a copy.
    pub healed: u64,
}

impl ScrubReport {
    fn add(&mut self, d: Damage) {
        match self.damages.len() < LISTED {
            true => self.damages.push(d),
            false => self.more += 1,
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        let ScrubAt { phase, region, offset } = self.at;
        for v in [self.begun, self.ended, self.bytes, phase as u64, region, offset, self.more, self.healed] {
            put_varint(&mut out, v);
        }
        put_varint(&mut out, self.bucket.into());
        put_varint(&mut out, self.damages.len() as u64);
        for d in &self.damages {
            for v in [d.region, d.offset, d.len] {
                put_varint(&mut out, v);
            }
            match d.rot {
                Rot::Frame => out.push(0),
                Rot::Table => out.push(1),
                Rot::Data { fileset, object, offset, len, tid } => {
                    out.push(2);
                    for v in [fileset.0.into(), object.0, offset, len, tid.0] {
                        put_varint(&mut out, v);
                    }
                }
            }
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<ScrubReport> {
        let mut r = Reader::new(bytes);
        let version = r.u8()?;
        if !(1..=VERSION).contains(&version) {
            return None;
        }
        let (begun, ended, bytes) = (r.varint()?, r.varint()?, r.varint()?);
        let phase = match r.varint()? {
            0 => Phase::Segments,
            1 => Phase::Tables,
            2 => Phase::Copies,
            _ => return None,
        };
        let at = ScrubAt { phase, region: r.varint()?, offset: r.varint()? };
        let (more, healed) = (r.varint()?, r.varint()?);
        let bucket = version > 1 && r.varint()? != 0;
        let mut damages = Vec::new();
        for _ in 0..r.varint()? {
            let (region, offset, len) = (r.varint()?, r.varint()?, r.varint()?);
            let rot = match r.u8()? {
                0 => Rot::Frame,
                1 => Rot::Table,
                2 => Rot::Data {
                    fileset: FilesetId(u32::try_from(r.varint()?).ok()?),
                    object: ObjectId(r.varint()?),
                    offset: r.varint()?,
                    len: r.varint()?,
                    tid: Tid(r.varint()?),
                },
                _ => return None,
            };
            damages.push(Damage { region, offset, len, rot });
        }
        r.is_empty().then_some(ScrubReport { begun, ended, bytes, at, bucket, damages, more, healed })
    }
}

impl Store {
    /// The last report that was kept; one that never began if there is none.
    pub fn scrub_report(&self) -> Result<ScrubReport> {
        let found = self.get(&Key::new(MAIN, ObjectId(0), Kind::SCRUB, &[]), Tid::MAX)?;
        Ok(found.and_then(|v| ScrubReport::decode(&v.value)).unwrap_or_default())
    }

    /// Keeps a report, so that it is known and gone on with after the next open.
    pub fn keep_scrub_report(&self, report: &ScrubReport, now_ns: u64) -> Result<()> {
        let mut tx = self.begin(MAIN, now_ns)?;
        tx.put(ObjectId(0), Kind::SCRUB, &[], &report.encode());
        tx.commit()?;
        self.sync().map(|_| ())
    }

    /// Bytes that a scrub reads, about; `bucket`: as [`ScrubReport::bucket`].
    pub fn scrub_total(&self, bucket: bool) -> u64 {
        let tables = self.index.read().levels.tables().map(|t| t.len()).sum::<u64>();
        let copies = if bucket { self.in_both().into_iter().map(|c| c.len).sum() } else { 0 };
        let cold = self.left_to_the_bucket(bucket);
        self.bytes_of_segments(&|container| !cold.contains(&container)) + tables + copies
    }

    /// Bytes that are in the bucket only, which a scrub passes over if it is not told to read them.
    pub fn cold_total(&self) -> u64 {
        let cold = self.cold_regions();
        self.bytes_of_segments(&|container| cold.contains(&container))
    }

    /// Of those that were ended, in the containers that are wanted.
    fn bytes_of_segments(&self, is_wanted: &dyn Fn(u64) -> bool) -> u64 {
        let open = self.log.tail().position().region;
        let regions = self.regions.read();
        let kept = |s: &Segment| match s.pack {
            Some(_) => regions[&s.at.id].bytes_kept(),
            None => s.end,
        };
        let is_read = |s: &&Segment| s.at.id != open && is_wanted(s.container());
        self.segments.lock().iter().filter(is_read).map(kept).sum()
    }

    /// What a scrub passes over.
    fn left_to_the_bucket(&self, bucket: bool) -> HashSet<u64> {
        if bucket { HashSet::new() } else { self.cold_regions() }
    }

    /// Begins a scrub of all there is now; `bucket`: as [`ScrubReport::bucket`].
    pub fn begin_scrub(&self, now_ns: u64, bucket: bool) -> Result<ScrubReport> {
        self.end_segment()?;
        self.write_all()?;
        self.trim_segments()?;
        Ok(ScrubReport { begun: now_ns.max(1), bucket, ..ScrubReport::default() })
    }

    /// Goes on with a scrub for about so many bytes; says whether there is more.
    pub fn step_scrub(&self, report: &mut ScrubReport, budget: u64) -> Result<bool> {
        let until = report.bytes + budget;
        while report.at.phase == Phase::Segments && report.bytes < until {
            let open = self.log.tail().position().region;
            let cold = self.left_to_the_bucket(report.bucket);
            let next = {
                let segments = self.segments.lock();
                let left = segments
                    .iter()
                    .filter(|s| s.at.id >= report.at.region && s.at.id != open && !cold.contains(&s.container()));
                left.min_by_key(|s| s.at.id).copied()
            };
            match next {
                Some(s) => {
                    match self.scrub_segment(&s, until, report) {
                        // Where what is left of it is, can't be told any more.
                        Err(Error::Corrupt { what, .. }) if what.starts_with("pack") => {
                            report.add(Damage { region: s.at.id, offset: 0, len: s.end, rot: Rot::Frame });
                            report.at = ScrubAt::segment(s.at.id + 1, 0);
                        }
                        outcome => outcome?,
                    }
                    // Who verifies it has no use for it: it stays there.
                    if let Some(bucket) = self.volumes.bucket().filter(|_| report.bucket) {
                        bucket.cool(s.container());
                    }
                }
                None => report.at = ScrubAt::first(Phase::Tables),
            }
        }
        while report.at.phase == Phase::Tables && report.bytes < until {
            let levels = self.index.read().levels.clone();
            let left = levels.tables().filter(|t| t.reference().region.id >= report.at.region);
            let Some(table) = left.min_by_key(|t| t.reference().region.id).cloned() else {
                report.healed += self.heal_heads()?;
                report.at = ScrubAt::first(Phase::Copies);
                break;
            };
            let id = table.reference().region.id;
            let region = table.region().clone();
            region.drop_cached(0, table.len());
            report.healed += heal_table(&table)?;
            report.bytes += table.len();
            report.at.region = id + 1;
            let mut outcome = Cursor::first(table.clone(), None);
            while let Ok(cursor) = &mut outcome {
                if cursor.key().is_none() {
                    break;
                }
                if let Err(e) = cursor.step() {
                    outcome = Err(e);
                }
            }
            match outcome {
                Err(Error::Corrupt { .. }) => {
                    report.add(Damage { region: id, offset: 0, len: table.len(), rot: Rot::Table });
                }
                outcome => drop(outcome?),
            }
        }
        if report.at.phase != Phase::Copies {
            return Ok(true);
        }
        while report.bucket && self.compare_some(report)? {
            if report.bytes >= until {
                return Ok(true);
            }
        }
        self.scrub_bucket(report)?;
        let frames: Vec<Damage> = report.damages.iter().filter(|d| d.rot == Rot::Frame).copied().collect();
        self.bytes_in(&frames)?.into_iter().for_each(|d| report.add(d));
        Ok(false)
    }

    /// What files have in damaged frames, as far as that is damaged too: the frames tell it no more, but the index does.
    pub(crate) fn bytes_in(&self, frames: &[Damage]) -> Result<Vec<Damage>> {
        if frames.is_empty() {
            return Ok(Vec::new());
        }
        // (Several versions of a chunk's map may have the same.)
        let mut found: BTreeMap<(FilesetId, ObjectId, Tid, u64), Piece> = BTreeMap::new();
        self.each_version(&mut self.maintenance.lock(), &|_| true, &mut |key, tid, value| {
            let Some((fileset, object, Kind::EXTENT, chunk)) = parse(key) else { return };
            let Ok(chunk) = chunk.try_into().map(u64::from_be_bytes) else { return };
            each_span(key, tid, value, |s| {
                let (at, n) = extent::needed(&s.place, s.len as usize);
                if frames
                    .iter()
                    .any(|d| d.region == s.place.region && at < d.offset + d.len && d.offset < at + n as u64)
                {
                    let offset = chunk.wrapping_mul(CHUNK).wrapping_add(s.at.into());
                    let piece = Piece { object: object.0, offset, len: s.len.into(), place: Some(s.place) };
                    found.insert((fileset, object, s.place.tid, offset), piece);
                }
            });
        })?;
        let cold: HashSet<u64> = {
            let cold = self.cold_regions();
            self.segments.lock().iter().filter(|s| cold.contains(&s.container())).map(|s| s.at.id).collect()
        };
        let mut damages: Vec<(usize, Damage)> = Vec::new();
        let mut of_file = (FilesetId(0), ObjectId(0), 0);
        for ((fileset, object, tid, offset), piece) in found {
            let Some(place) = piece.place else { continue };
            let mut out = vec![0; piece.len as usize];
            let read = match cold.contains(&place.region) {
                true => self.read_cold(&piece, &mut out),
                false => self.read_piece(None, &piece, &mut out),
            };
            match read {
                Err(Error::Data { .. } | Error::Corrupt { .. }) => {}
                read => {
                    read?;
                    continue;
                }
            }
            let rot = Rot::Data { fileset, object, offset, len: piece.len, tid };
            let d = Damage { region: place.region, offset: place.offset, len: place.stored.into(), rot };
            if !damages.last_mut().is_some_and(|(_, last)| last.takes_up(&d)) {
                let n = if (of_file.0, of_file.1) == (fileset, object) { of_file.2 + 1 } else { 0 };
                of_file = (fileset, object, n);
                damages.push((n, d));
            }
        }
        // (It may be as it was by the next time.)
        for (_, d) in damages.iter().filter(|(_, d)| cold.contains(&d.region)) {
            let region = self.regions.read().get(&d.region).cloned();
            region.inspect(|region| region.drop_cached(d.offset, d.len));
        }
        // The first of each file, then the second of each: a report that can't list all names all files.
        damages.sort_by_key(|(n, _)| *n);
        Ok(damages.into_iter().map(|(_, d)| d).collect())
    }

    /// Has what is gone from the bucket put anew, and tells what is lost.
    fn scrub_bucket(&self, report: &mut ScrubReport) -> Result<()> {
        let found = match self.find_gaps() {
            Err(e) if !report.bucket => {
                tracing::warn!("whether anything is gone from the bucket, can't be told: {e}");
                return Ok(());
            }
            found => found?,
        };
        report.healed += found.anew;
        // (Who reads what is there has met them.)
        let segments = if report.bucket { Vec::new() } else { self.segments.lock().clone() };
        let mut frames = BTreeSet::new();
        for gap in &found.lost {
            for s in segments.iter().filter(|s| s.container() == gap.region) {
                // (Of a pack all is looked at.)
                frames.insert((s.at.id, if s.pack.is_none() { (gap.offset, gap.len) } else { (0, s.end) }));
            }
        }
        for (region, (offset, len)) in frames {
            report.add(Damage { region, offset, len, rot: Rot::Frame });
        }
        Ok(())
    }

    /// Verifies both copies of the manifest and the newest superblock on every volume, and writes them anew where one is not as it
    /// was; returns how many were not.
    fn heal_heads(&self) -> Result<u64> {
        let mut state = self.maintenance.lock();
        let mut healed = 0;
        for pack in self.packs.lock().clone() {
            match pack::heal_heads(&*pack, &self.uuid) {
                // (That is in the report.)
                Err(Error::Corrupt { .. }) => {}
                n => healed += n?,
            }
        }
        for (_, at) in self.regions_now(&state) {
            healed += self.volumes.heal_places(at)?;
        }
        let sb = self.volumes.superblock();
        let region = self.volumes.open(state.manifest.unwrap_or(sb.manifest))?;
        region.drop_cached(0, sb.manifest.size);
        let mut manifest = 0;
        for copy in each_copy(&region) {
            manifest += u64::from(!Manifest::both_read(&*copy, sb.manifest_len)?);
        }
        let superblocks = self.volumes.without_super(&sb)?;
        if manifest + superblocks > 0 {
            tracing::error!(manifest, superblocks, "damaged: written anew");
            let levels = self.index.read().levels.clone();
            self.write_manifest(&mut state, &levels)?;
        }
        Ok(healed + manifest + superblocks)
    }

    /// Verifies frames and data of a segment from where the report is.
    fn scrub_segment(&self, s: &Segment, until: u64, report: &mut ScrubReport) -> Result<()> {
        // It may be another one by now, or gone: then the next step finds that.
        let Some(region) = self.regions.read().get(&s.at.id).cloned() else {
            report.at = ScrubAt::segment(s.at.id + 1, 0);
            return Ok(());
        };
        let goes_on = report.at.region == s.at.id && report.at.offset > 0;
        if !goes_on {
            report.at = ScrubAt::segment(s.at.id, segment::HEADER);
            if s.pack.is_none() {
                region.drop_cached(0, segment::HEADER);
                report.bytes += segment::HEADER;
                let is_good = |bytes: &[u8]| segment::verify(bytes, &self.uuid, s.at).is_ok();
                report.healed += heal(&*region, &mut [0; segment::HEADER as usize], 0, &is_good)?.unwrap_or(0);
                let is_good = || Ok(segment::verify(&segment::read(&*region, &self.uuid)?, &self.uuid, s.at).is_ok());
                if !is_good()? {
                    match self.header_from_bucket(&*region, s.at) && is_good()? {
                        true => report.healed += 1,
                        false => {
                            report.add(Damage { region: s.at.id, offset: 0, len: segment::HEADER, rot: Rot::Frame });
                        }
                    }
                }
            }
        }
        let mut at = region.next_kept(report.at.offset).max(region_start(&*region));
        // Where little is left, a window would be holes for the most part.
        if s.pack.is_some() {
            region.drop_cached(0, s.end);
        }
        let sides = Sides::of(&region, at, true)?;
        let left = (s.end - at.min(s.end)).min(until.saturating_sub(report.bytes));
        match (region.in_memory()?, &self.workers) {
            (Some(copy), _) => {
                at = self.scrub_frames(s, &region, Window::of_few(copy, at), sides, at, until, report)?
            }
            // Each waits for one of the volume and the processor only if the other is slower.
            (None, Some(workers)) if sides.is_none() && left >= ahead::WORTH => {
                let (ahead, reading) = ahead::ahead();
                let mut window = Some(Window::of_ahead(region.clone(), at, ahead));
                let mut outcome = Ok(at);
                // (The last frame may end later.)
                let left = (left + FRAME_MAX as u64).min(s.end - at);
                let read: Job<'_> = Box::new(|| reading.run(&*region, at, left));
                workers.beside(vec![read], &mut || {
                    let window = window.take().expect("it runs once");
                    outcome = self.scrub_frames(s, &region, window, None, at, until, report);
                });
                at = outcome?;
            }
            _ => {
                let window = Window::of_the_volume(region.clone(), at);
                at = self.scrub_frames(s, &region, window, sides, at, until, report)?;
            }
        }
        report.at = match at < s.end {
            true => ScrubAt::segment(s.at.id, at),
            false => ScrubAt::segment(s.at.id + 1, 0),
        };
        Ok(())
    }

    /// Verifies frames from byte `at` on; returns how far it came.
    #[allow(
        clippy::too_many_arguments,
        reason = "where the scrub is, and by what it reads: nothing of that outlives the call"
    )]
    fn scrub_frames(
        &self,
        s: &Segment,
        region: &Arc<dyn Region>,
        mut window: Window,
        mut sides: Option<Sides>,
        mut at: u64,
        until: u64,
        report: &mut ScrubReport,
    ) -> Result<u64> {
        while at < s.end && report.bytes < until {
            let evened;
            let bytes = match &mut sides {
                Some(sides) => {
                    let healed;
                    (evened, healed) = sides.even_out(at)?;
                    report.healed += healed;
                    &evened[..]
                }
                None => {
                    window.fill_frame(at)?;
                    window.bytes(at)
                }
            };
            let mended;
            let mut found = frame::parse(bytes, s.at.id, at).map(|f| (bytes, f));
            if found.is_none()
                && let Some((frame, healed)) = self.mend_with_bucket(region, at)
            {
                report.healed += healed;
                mended = frame;
                found = frame::parse(&mended, s.at.id, at).map(|f| (&mended[..], f));
            }
            let Some((bytes, f)) = found else {
                let next = next_frame(region, at, s.end)?;
                report.add(Damage { region: s.at.id, offset: at, len: next - at, rot: Rot::Frame });
                report.bytes += next - at;
                at = region.next_kept(next);
                continue;
            };
            let len = frame::shape(bytes).expect("just parsed").len;
            if let Content::Transaction(records) = &f.content {
                for r in records {
                    self.scrub_extent(&**region, &bytes[..len], at, f.header.tid, r, report);
                }
            }
            report.bytes += len as u64;
            at = region.next_kept(at + len as u64);
        }
        Ok(at)
    }
}

impl Store {
    /// Makes what is damaged of a frame here good from the bucket's copy, and there from the one here; returns it, and how many places
    /// were healed. Where the bucket is out of reach, it stays as it is.
    fn mend_with_bucket(&self, region: &Arc<dyn Region>, at: u64) -> Option<(Vec<u8>, u64)> {
        let there = self.also_in_bucket(region.place().id).filter(|_| self.reaches_bucket() && !self.is_fenced())?;
        let evened = Sides::and(region, there, at).even_out(at);
        let evened = evened.inspect_err(|e| tracing::warn!("what is damaged does not heal from the bucket: {e}"));
        evened.ok().filter(|(frame, _)| !frame.is_empty())
    }

    /// Whether it is worth waiting for the bucket: who scrubs may meet a thousand damaged places.
    fn reaches_bucket(&self) -> bool {
        self.volumes.bucket().is_some_and(|bucket| bucket.objects().trouble().is_none())
    }

    /// Writes the header of a segment anew as the bucket has it; says whether it does.
    fn header_from_bucket(&self, here: &dyn Region, at: RegionRef) -> bool {
        let mut bytes = [0; segment::HEADER as usize];
        let Some(there) = self.also_in_bucket(at.id).filter(|_| self.reaches_bucket()) else { return false };
        let is_good = there.read_at(&mut bytes, 0).is_ok() && segment::verify(&bytes, &self.uuid, at).is_ok();
        if is_good {
            write_anew(here, here, &bytes, 0);
        }
        is_good
    }
}

/// Where after a damaged frame the next one is; the segment's end if there is none.
pub(crate) fn next_frame(region: &Arc<dyn Region>, damaged: u64, end: u64) -> Result<u64> {
    let id = region.place().id;
    let mut window = Window::of_the_volume(region.clone(), damaged);
    let mut at = damaged + 8;
    loop {
        at = region.next_kept(at);
        if at >= end {
            return Ok(end);
        }
        window.fill_frame(at)?;
        if frame::shape(window.bytes(at)).is_some() && frame::parse(window.bytes(at), id, at).is_some() {
            return Ok(at);
        }
        at += 8;
    }
}

impl Store {
    /// From now on scrubs, and [`Store::heal_pieces`], ask there for what is damaged here.
    pub fn heal_from(&self, elsewhere: Arc<dyn Elsewhere>) {
        *self.elsewhere.lock() = Some(elsewhere);
    }

    /// Fetches from elsewhere what is damaged of the stored bytes of pieces of a fileset's object, and writes it anew; says whether there
    /// was anything like that. Waits for whoever is asked: not for those who answer others.
    pub fn heal_pieces(&self, fileset: FilesetId, pieces: &[Piece]) -> Result<bool> {
        let mut healed = false;
        for piece in pieces {
            let Some(place) = piece.place else { continue };
            let Some(region) = self.regions.read().get(&place.region).cloned() else { continue };
            let (at, n) = extent::needed(&place, piece.len as usize);
            let mut stored = vec![0; n];
            self.read_stored(None, place.region, at, true, &mut stored)?;
            let len = match place.codec {
                Codec::Raw => n - 4 * n.div_ceil(BLOCK + 4),
                Codec::Lz4 => place.extent_len as usize,
            };
            for part in damaged_blocks(&*region, at, &stored, place.codec, len) {
                let start = at + part.start as u64;
                // Of the extent, from where on; and what that is of the object.
                let (from, n) = match place.codec {
                    Codec::Raw => ((start - place.offset) / (BLOCK as u64 + 4) * BLOCK as u64, part.len() - 4),
                    Codec::Lz4 => (0, len),
                };
                let Some(offset) = (piece.offset + from).checked_sub(place.skip.into()) else { continue };
                let lost = Lost { fileset, object: ObjectId(piece.object), offset, len: n, tid: place.tid };
                healed |= self.fetch(&*region, start, &stored[part], place.codec, &lost);
            }
        }
        Ok(healed)
    }

    /// Has damaged stored bytes come from elsewhere; says whether they did.
    fn fetch(&self, region: &dyn Region, at: u64, damaged: &[u8], codec: Codec, lost: &Lost) -> bool {
        let elsewhere = self.elsewhere.lock().clone();
        elsewhere.is_some_and(|elsewhere| {
            let mut is_it = |plain: &[u8]| put_back(region, at, damaged, codec, plain);
            elsewhere.bytes(lost, &mut is_it)
        })
    }

    /// Verifies the stored bytes of a record.
    fn scrub_extent(
        &self,
        region: &dyn Region,
        frame: &[u8],
        at: u64,
        tid: Tid,
        r: &Record<'_>,
        report: &mut ScrubReport,
    ) {
        let Body::Extent { codec, stored, .. } = r.body else { return };
        let is_lost = extent::is_lost(codec, stored);
        for (damage, stored) in damaged_data(region, frame, at, tid, r) {
            let Rot::Data { fileset, object, offset, len, tid } = damage.rot else { continue };
            let lost = Lost { fileset, object, offset, len: len as usize, tid };
            let is_there = || {
                if !self.reaches_bucket() {
                    return false;
                }
                let mut stored = stored.to_vec();
                let n = if codec == Codec::Raw { stored.len().saturating_sub(4) } else { lost.len };
                let asked = self.heal_from_bucket(region, damage.offset, &mut stored, (codec, n));
                let asked = asked.inspect_err(|e| tracing::warn!("what is damaged does not heal from the bucket: {e}"));
                asked.is_ok() && extent_is_valid(region, damage.offset, &stored, codec, n)
            };
            match !is_lost && (is_there() || self.fetch(region, damage.offset, stored, codec, &lost)) {
                true => report.healed += 1,
                false => report.add(damage),
            }
        }
    }
}

/// What is damaged of a record's extent in the frame that begins at byte `at` of a region, and the stored bytes of it.
pub(crate) fn damaged_data<'b>(
    region: &'b dyn Region,
    frame: &'b [u8],
    at: u64,
    tid: Tid,
    r: &Record<'_>,
) -> impl Iterator<Item = (Damage, &'b [u8])> {
    let extent = match r.body {
        Body::Extent { offset, len, codec, data_at, stored } => Some((offset, len, codec, data_at, stored)),
        _ => None,
    };
    let (fileset, object) = (r.fileset, r.object);
    extent.into_iter().flat_map(move |(offset, len, codec, data_at, stored)| {
        let start = at + u64::from(data_at);
        let bytes = &frame[data_at as usize..(data_at + stored) as usize];
        let (whole, unit) = (u64::from(len), if codec == Codec::Raw { BLOCK as u64 } else { u64::from(len) });
        let lost = extent::is_lost(codec, stored) && region.next_kept(start) == start;
        let damaged = damaged_blocks(region, start, bytes, codec, len as usize).filter(move |_| !lost);
        damaged.chain(lost.then_some(0..bytes.len())).map(move |part| {
            let from = part.start as u64 / (BLOCK as u64 + 4) * BLOCK as u64;
            let len = unit.min(whole.saturating_sub(from));
            let rot = Rot::Data { fileset, object, offset: offset + from, len, tid };
            let at = start + part.start as u64;
            (Damage { region: region.place().id, offset: at, len: part.len() as u64, rot }, &bytes[part])
        })
    })
}

/// Writes what a damaged block holds, if it has the checksum that is stored with it; says whether it did.
fn put_back(region: &dyn Region, at: u64, damaged: &[u8], codec: Codec, plain: &[u8]) -> bool {
    let Some((_, crc)) = damaged.split_last_chunk::<4>() else { return false };
    let mut bytes = match codec {
        Codec::Raw => plain.to_vec(),
        Codec::Lz4 => lz4_flex::block::compress(plain),
    };
    bytes.extend_from_slice(crc);
    let is_it = bytes.len() == damaged.len() && is_sealed(&bytes, region.place().id, at);
    is_it && region.mend(&bytes, at).is_ok()
}

/// Makes all parts of a table good in all copies, as far as they are in any; returns how many places were damaged.
fn heal_table(table: &Table) -> Result<u64> {
    let region = table.region();
    let mut healed = 0;
    let parts = if region.copies().is_empty() { Vec::new() } else { table.parts() };
    for part in parts {
        let is_good = |bytes: &[u8]| is_sealed(bytes, region.place().id, part.start);
        let mut bytes = vec![0; (part.end - part.start) as usize];
        healed += heal(&**region, &mut bytes, part.start, &is_good)?.unwrap_or(0);
    }
    Ok(healed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_read_back_and_no_bytes_make_reading_one_panic() {
        let data = Rot::Data { fileset: FilesetId(3), object: ObjectId(9), offset: 1, len: 4096, tid: Tid(77) };
        let damage = |rot| Damage { region: 5, offset: 4096, len: 12, rot };
        let report = ScrubReport {
            begun: 1 << 60,
            ended: 0,
            bytes: 1 << 40,
            at: ScrubAt { phase: Phase::Copies, region: 7, offset: 9 },
            damages: vec![damage(Rot::Frame), damage(Rot::Table), damage(data)],
            more: 3,
            healed: 1,
            bucket: true,
        };
        let bytes = report.encode();
        assert_eq!(ScrubReport::decode(&bytes).as_ref(), Some(&report));
        // One of version 1 says nothing of buckets.
        let without = ScrubReport { bucket: false, ..report };
        let mut old = without.encode();
        let at = old.iter().zip(&bytes).position(|(a, b)| a != b).unwrap();
        old.remove(at);
        old[0] = 1;
        assert_eq!(ScrubReport::decode(&old), Some(without));
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..20_000 {
            let mut bytes = bytes.clone();
            let at = rng.usize(..bytes.len());
            bytes[at] = rng.u8(..);
            bytes.truncate(rng.usize(..=bytes.len()));
            ScrubReport::decode(&bytes);
        }
    }
}
