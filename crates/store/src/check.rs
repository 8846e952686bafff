//! Reading and verifying everything. Changes nothing.
//!
//! Segments: header, every frame's checksum and chain, every extent's checksum. Tables: every block, order, counts, and
//! that each chunk map's places lie in segments there are. What is found is named and the rest is still read.

use std::collections::HashMap;
use std::sync::Arc;

use crate::extent::{self, BLOCK, ChunkMap, Span};
use crate::frame::{self, Content};
use crate::index::table::{Cursor, Table};
use crate::key::{KEY_HEAD, parse};
use crate::reading::{Window, each_copy, region_start};
use crate::scrub::{Damage, Rot, damaged_data, next_frame};
use crate::segment::{self, Segment};
use crate::store::Store;
use crate::volume::Region;
use crate::{Kind, Result, Tid};

/// What a check read and found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Segments read.
    pub segments: u64,
    /// Transactions in them.
    pub transactions: u64,
    /// Records in those.
    pub records: u64,
    /// Tables read.
    pub tables: u64,
    /// Versions in them.
    pub versions: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Bytes of files that are damaged, in all copies that there are.
    pub damages: Vec<Damage>,
    /// Places of files' bytes that are damaged in one of two copies, and will be written anew from the other.
    pub mendable: u64,
    /// One sentence for each other thing that is not as it should be.
    pub findings: Vec<String>,
    /// Places without a valid frame.
    frames: Vec<Damage>,
}

impl Report {
    fn add(&mut self, other: Report) {
        self.segments += other.segments;
        self.transactions += other.transactions;
        self.records += other.records;
        self.bytes += other.bytes;
        self.damages.extend(other.damages);
        self.mendable += other.mendable;
        self.findings.extend(other.findings);
        self.frames.extend(other.frames);
    }

    /// All that is not as it should be.
    pub fn all(&self) -> Vec<String> {
        let damages = self.damages.iter().map(|d| format!("{d:?}"));
        let mendable =
            (self.mendable > 0).then(|| format!("{} places are damaged in one of two copies", self.mendable));
        self.findings.iter().cloned().chain(damages).chain(mendable).collect()
    }
}

impl Store {
    /// Reads and verifies segments and tables. `progress` gets (bytes done, bytes there are).
    pub fn check(&self, progress: &mut dyn FnMut(u64, u64)) -> Report {
        let segments = self.segments.lock().clone();
        let levels = self.index.read().levels.clone();
        let end = self.log.tail().position();
        let ends: HashMap<u64, u64> =
            segments.iter().map(|s| (s.at.id, if s.at.id == end.region { end.offset } else { s.end })).collect();
        let kept =
            |s: &Segment| if s.pack.is_some() { self.regions.read()[&s.at.id].bytes_kept() } else { ends[&s.at.id] };
        let total = segments.iter().map(kept).sum::<u64>() + levels.tables().map(|t| t.len()).sum::<u64>();
        let mut report = Report::default();
        let mut sealed = None;
        for s in &segments {
            // Segments in between may have been cleaned away.
            let chain = sealed.filter(|(_, next)| *next == s.at.id).map(|(crc, _)| crc);
            let region = self.regions.read()[&s.at.id].clone();
            // Each copy is verified, the one with fewer findings is counted.
            let mut all: Vec<(Report, Option<(u32, u64)>)> = Vec::new();
            for copy in each_copy(&region) {
                let mut of_copy = Report::default();
                let next = self.check_segment(&copy, s, ends[&s.at.id], chain, &mut of_copy).unwrap_or_else(|e| {
                    of_copy.findings.push(e.to_string());
                    of_copy.frames.push(Damage { region: s.at.id, offset: 0, len: s.end, rot: Rot::Frame });
                    None
                });
                all.push((of_copy, next));
            }
            all.sort_by_key(|(of_copy, _)| of_copy.findings.len());
            let mut copies = all.into_iter();
            let (mut best, next) = copies.next().expect("a region has one copy at least");
            sealed = next;
            for (of_copy, _) in copies {
                let damages = best.damages.len() + of_copy.damages.len();
                best.damages.retain(|d| of_copy.damages.contains(d));
                best.mendable += (damages - 2 * best.damages.len()) as u64;
                match best.findings.is_empty() {
                    true => best.mendable += of_copy.findings.len() as u64,
                    false => best.findings.extend(of_copy.findings),
                }
            }
            report.add(best);
            progress(report.bytes, total);
        }
        match self.bytes_in(&report.frames) {
            Ok(damages) => report.damages.extend(damages),
            Err(e) => report.findings.push(e.to_string()),
        }
        for run in levels.live.iter().chain(&levels.history) {
            for t in &run.tables {
                if let Err(e) = self.check_table(t, &run.above, &ends, &mut report) {
                    report.findings.push(e.to_string());
                }
                report.tables += 1;
                report.bytes += t.len();
                progress(report.bytes, total);
            }
        }
        match self.volumes.without_super(&self.volumes.superblock()) {
            Ok(0) => {}
            Ok(n) => report.findings.push(format!(
                "{n} copies of the superblock, or of what labels volumes, are damaged: a scrub of the mounted store writes them anew"
            )),
            Err(e) => report.findings.push(e.to_string()),
        }
        report
    }

    /// Returns the seal's checksum and the segment that it leads to.
    fn check_segment(
        &self,
        region: &Arc<dyn Region>,
        s: &Segment,
        end: u64,
        mut chain: Option<u32>,
        report: &mut Report,
    ) -> Result<Option<(u32, u64)>> {
        // What is left of a cleaned one has its pack's header instead, which was verified when it was opened.
        let packed = s.pack.is_some();
        if !packed {
            let header = segment::read(&**region, &self.uuid)?;
            if let Err(e) = segment::verify(&header, &self.uuid, s.at) {
                report.findings.push(e.to_string());
            }
            report.bytes += segment::HEADER;
        }
        report.segments += 1;
        let mut window = Window::new(region.clone(), segment::HEADER);
        let mut at = region_start(&**region);
        let mut last = Tid::ZERO;
        let mut sealed = None;
        let bad = |report: &mut Report, at: u64, what: &str| {
            report.findings.push(format!("region {:x} at byte {at}: {what}", s.at.id));
        };
        while at < end {
            window.fill_frame(at)?;
            let bytes = window.bytes(at);
            let Some(f) = frame::parse(bytes, s.at.id, at) else {
                let next = next_frame(region, at, end)?;
                bad(report, at, &format!("no valid frame before byte {next}"));
                report.frames.push(Damage { region: s.at.id, offset: at, len: next - at, rot: Rot::Frame });
                report.bytes += next - at;
                (chain, sealed) = (None, None);
                at = region.next_kept(next);
                continue;
            };
            // The chain starts anew (at 0) in the segment after a crash.
            let continues =
                packed || chain.is_none_or(|c| f.header.chain == c || at == segment::HEADER && f.header.chain == 0);
            if !continues {
                bad(report, at, "the frame does not continue the one before it");
            }
            chain = Some(f.crc);
            if let Content::Seal(next) = &f.content {
                sealed = Some((f.crc, next.id));
            }
            if let Content::Transaction(records) = &f.content {
                if f.header.tid <= last {
                    bad(report, at, &format!("tid {} comes after {last}", f.header.tid));
                }
                last = f.header.tid;
                for r in records {
                    let damaged = damaged_data(&**region, bytes, at, f.header.tid, r);
                    report.damages.extend(damaged.map(|(damage, _)| damage));
                }
                report.transactions += 1;
                report.records += records.len() as u64;
            }
            let len = frame::shape(bytes).expect("just parsed").len as u64;
            report.bytes += len;
            at = region.next_kept(at + len);
        }
        Ok(sealed)
    }
}

impl Store {
    /// `above`: entries up to this key don't count any more, and need not lead anywhere.
    fn check_table(
        &self,
        table: &Arc<Table>,
        above: &[u8],
        ends: &HashMap<u64, u64>,
        report: &mut Report,
    ) -> Result<()> {
        let id = table.reference().region.id;
        let mut cursor = Cursor::first(table.clone(), None)?;
        let mut last: Option<(Vec<u8>, Tid)> = None;
        let mut n = 0u64;
        while let Some(key) = cursor.key() {
            let tid = cursor.tid();
            let in_order = last.as_ref().is_none_or(|(k, t)| k.as_slice() < key || k.as_slice() == key && *t > tid);
            if !in_order || tid < table.tids().0 || tid > table.tids().1 {
                report.findings.push(format!("region {id:x}: entry {n} (tid {tid}) is out of order"));
            }
            match parse(key) {
                Some((_, object, Kind::EXTENT, _)) if key > above => {
                    let map = cursor.value().map_or(Some(ChunkMap::default()), |v| ChunkMap::decode(&v, tid));
                    let fits = map.is_some_and(|m| {
                        m.spans.iter().all(|s| {
                            let end = s.place.offset.saturating_add(s.place.stored.into());
                            ends.get(&s.place.region).is_some_and(|&e| end <= e) && self.is_kept(s)
                        })
                    });
                    if !fits {
                        report
                            .findings
                            .push(format!("region {id:x}: a chunk map of object {object} (tid {tid}) leads nowhere"));
                    }
                }
                Some(_) => {}
                None => {
                    report.findings.push(format!("region {id:x}: a key of {} bytes (less than {KEY_HEAD})", key.len()))
                }
            }
            last = Some((key.to_vec(), tid));
            n += 1;
            cursor.step()?;
        }
        report.versions += n;
        if n != table.entries() {
            report.findings.push(format!("region {id:x}: {n} entries where its footer says {}", table.entries()));
        }
        Ok(())
    }

    /// Whether all blocks that a span needs are still in its segment.
    pub(crate) fn is_kept(&self, s: &Span) -> bool {
        let (at, n) = extent::needed(&s.place, s.len as usize);
        let regions = self.regions.read();
        let kept = |byte: u64| regions.get(&s.place.region).is_some_and(|r| r.next_kept(byte) == byte);
        (at..at + n as u64).step_by(BLOCK + 4).all(kept) && kept(at + n as u64 - 1)
    }
}
