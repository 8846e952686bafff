//! What stays of a segment when it is cleaned: frames with the records and blocks that are still needed.
//! docs/format.md §Pack.

use std::collections::BTreeSet;

use crate::extent::{BLOCK, CHUNK, Codec, Place, Span};
use crate::forget::Forgotten;
use crate::frame::{self, Body, Content, Record};
use crate::index::memtable::Found;
use crate::index::scan;
use crate::key::KEY_HEAD;
use crate::maintain::State;
use crate::mark::Needed;
use crate::pack::Writer;
use crate::segment::Segment;
use crate::sieve::spans;
use crate::store::Store;
use crate::{Error, FilesetId, Key, Kind, ObjectId, Result, Tid};

/// What a tombstone takes in a segment, about.
const TOMBSTONE: u64 = 32;

/// A frame to be copied.
pub(crate) struct Source<'f> {
    bytes: &'f [u8],
    at: u64,
    region: u64,
    pub frame: &'f frame::Frame<'f>,
    pub records: &'f [Record<'f>],
}

impl Source<'_> {
    fn heads_at(&self) -> usize {
        frame::shape(self.bytes).expect("it is a frame").heads_at()
    }
}

impl Store {
    /// Adds what is needed of a segment to a pack; returns the bytes of tombstones that stay for the segments' sake only.
    pub(crate) fn copy_segment(
        &self,
        state: &mut State,
        w: &mut Writer,
        s: &Segment,
        needed: &Needed,
        drop_tombstones: bool,
    ) -> Result<u64> {
        w.begin(s);
        let mut stuck = 0;
        let mut since_look = 0;
        self.each_transaction(s, &mut |frame| {
            stuck += self.copy_frame(w, frame, needed, drop_tombstones)?;
            since_look += frame.bytes.len();
            if since_look > 4 << 20 {
                since_look = 0;
                if self.flush_is_due(state) {
                    self.flush_locked(state)?;
                }
            }
            Ok(())
        })?;
        Ok(stuck)
    }

    /// Visits the transactions that are left of a segment.
    pub(crate) fn each_transaction(&self, s: &Segment, visit: &mut dyn FnMut(&Source<'_>) -> Result<()>) -> Result<()> {
        self.each_frame(s, &mut |at, bytes, frame| match &frame.content {
            Content::Transaction(records) => visit(&Source { bytes, at, region: s.at.id, frame: &frame, records }),
            Content::Seal(_) => Ok(()),
        })
    }

    /// Adds what is needed of a frame; returns the bytes of tombstones that stay although no index has them.
    fn copy_frame(&self, w: &mut Writer, f: &Source<'_>, needed: &Needed, drop_tombstones: bool) -> Result<u64> {
        let mut stuck = 0;
        let mut kept: Vec<&Record> = Vec::new();
        let mut data: Vec<(usize, usize)> = Vec::new();
        let (mut all, mut any) = (true, false);
        let h = &f.frame.header;
        let indexed = |r: &Record, suffix: &[u8]| {
            let key = Key::new(r.fileset, r.object, r.kind, suffix);
            needed.has(key.as_bytes(), h.tid)
        };
        for r in f.records {
            // What others share of it stays, without a record of whose it was.
            let is_forgotten = !needed.forgotten.is_empty() && is_forgotten(&needed.forgotten, r, h.tid);
            let stays = match &r.body {
                // It says whose the records behind it are.
                Body::Fileset { .. } => {
                    kept.push(r);
                    continue;
                }
                Body::Extent { .. } => self.extent_stays(f, r, needed, &mut data),
                _ if is_forgotten => false,
                Body::Put { suffix, .. } => indexed(r, suffix),
                Body::Tombstone { suffix } if indexed(r, suffix) => true,
                // An extent that it hides may have stayed for the sake of other bytes, or of another object.
                Body::Hole { .. } if self.has_object(r.fileset, r.object)? => true,
                Body::Tombstone { .. } | Body::Hole { .. } => {
                    stuck += if drop_tombstones { 0 } else { TOMBSTONE };
                    !drop_tombstones
                }
                Body::Shared { offset, place, .. } => self.is_shared(r.fileset, r.object, *offset, place)?,
            };
            any |= stays;
            match stays {
                true => kept.push(r),
                false => all = false,
            }
        }
        if !any {
            return Ok(0);
        }
        // (What an earlier cleaning dropped lies between the data that is left, of no record any more.)
        let whole = frame::HEADER + data.iter().map(|(from, to)| to - from).sum::<usize>() == f.heads_at();
        if all && whole {
            w.add(f.at, f.bytes);
            return Ok(stuck);
        }
        let (header, heads, heads_at) = frame::rewrite(f.bytes, f.region, f.at, h, &kept);
        w.add(f.at, &header);
        data.sort_unstable();
        for (from, to) in data {
            w.add(f.at + from as u64, &f.bytes[from..to]);
        }
        w.add(f.at + heads_at as u64, &heads);
        Ok(stuck)
    }

    /// Whether any of an extent's bytes are needed; notes which.
    fn extent_stays(&self, f: &Source<'_>, r: &Record<'_>, needed: &Needed, data: &mut Vec<(usize, usize)>) -> bool {
        let Body::Extent { data_at, stored, codec, .. } = r.body else { return false };
        let blocks = needed.blocks.get(&(f.region, f.at + u64::from(data_at))).copied().unwrap_or(0);
        let region = &self.regions.read()[&f.region];
        // (What an earlier cleaning dropped reads as zeroes, and only a version that no moment shows leads there.)
        let is_there = |from: usize| region.next_kept(f.at + from as u64) == f.at + from as u64;
        block_ranges(data_at as usize, stored as usize, codec, blocks, &is_there, data) > 0
    }

    /// Whether no index has what a record made, so that no moment shows it.
    pub(crate) fn has_lapsed(&self, r: &Record<'_>, tid: Tid) -> Result<bool> {
        let key = match r.body {
            Body::Put { suffix, .. } => Key::new(r.fileset, r.object, r.kind, suffix),
            Body::Extent { offset, .. } => Key::new(r.fileset, r.object, Kind::EXTENT, &(offset / CHUNK).to_be_bytes()),
            _ => return Ok(false),
        };
        Ok(!matches!(self.find(&key, tid)?, Some(Found::Version(found, _)) if found == tid))
    }

    /// The objects that by some record in the segments have or had a key of a kind with this suffix, whether or not any
    /// moment still shows it. Reads all segments.
    pub fn ever_had(&self, kind: Kind, suffix: &[u8]) -> Result<BTreeSet<(FilesetId, ObjectId)>> {
        self.end_segment()?;
        let mut found = BTreeSet::new();
        // Nothing is cleaned away meanwhile.
        let _state = self.maintenance.lock();
        let segments = self.segments.lock().clone();
        for s in segments.iter().rev().skip(1) {
            let searched = self.each_transaction(s, &mut |frame| {
                let puts = frame.records.iter().filter(|r| r.kind == kind);
                found.extend(
                    puts.filter(|r| matches!(r.body, Body::Put { suffix: s, .. } if s == suffix))
                        .map(|r| (r.fileset, r.object)),
                );
                Ok(())
            });
            match searched {
                Err(e @ Error::Corrupt { .. }) => tracing::error!("not searched: {e}"),
                searched => searched?,
            }
        }
        Ok(found)
    }

    /// Whether the index has any version of anything of an object.
    pub fn has_object(&self, fileset: FilesetId, object: ObjectId) -> Result<bool> {
        let key = Key::new(fileset, object, Kind(0), &[]);
        let index = self.index.read();
        let layers: Vec<_> = index.memtables().collect();
        scan::any(&layers, &index.levels, &self.cache, &key.as_bytes()[..KEY_HEAD - 1])
    }

    /// Whether any version of a file still leads to an extent that was shared with it.
    fn is_shared(&self, fileset: FilesetId, object: ObjectId, offset: u64, place: &Place) -> Result<bool> {
        let chunk = (offset / CHUNK).to_be_bytes();
        let versions = self.all_versions(&Key::new(fileset, object, Kind::EXTENT, &chunk))?;
        let leads_there = |s: &Span| s.place.region == place.region && s.place.offset == place.offset;
        Ok(versions.iter().any(|e| spans(e).iter().any(leads_there)))
    }
}

/// Appends the ranges of the frame that some blocks of a stored extent take; returns their bytes.
fn block_ranges(
    data_at: usize,
    stored: usize,
    codec: Codec,
    blocks: u32,
    is_there: &dyn Fn(usize) -> bool,
    out: &mut Vec<(usize, usize)>,
) -> usize {
    let step = if codec == Codec::Raw { BLOCK + 4 } else { stored.max(1) };
    let mut sum = 0;
    for i in (0..stored.div_ceil(step)).filter(|i| blocks & 1 << i != 0) {
        let (from, to) = (data_at + i * step, data_at + ((i + 1) * step).min(stored));
        if !is_there(from) {
            continue;
        }
        sum += to - from;
        match out.last_mut() {
            Some(last) if last.1 == from => last.1 = to,
            _ => out.push((from, to)),
        }
    }
    sum
}

/// Whether a record, of the transaction `tid`, is to be destroyed.
pub(crate) fn is_forgotten(forgotten: &Forgotten, r: &Record<'_>, tid: Tid) -> bool {
    let key = |suffix: &[u8]| Key::new(r.fileset, r.object, r.kind, suffix);
    forgotten.has_object(r.fileset, r.object)
        || matches!(r.body, Body::Put { suffix, .. } | Body::Tombstone { suffix }
            if forgotten.has_key(key(suffix).as_bytes(), tid))
}
