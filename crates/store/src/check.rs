//! Reading and verifying everything. Changes nothing.
//!
//! Segments: header, every frame's checksum and chain, every extent's checksum. Tables: every block, order, counts, and
//! that each chunk map's places lie in segments there are. What is found is named and the rest is still read.

use std::collections::HashMap;
use std::sync::Arc;

use crate::extent::ChunkMap;
use crate::frame::{self, Content};
use crate::index::table::{Cursor, Table};
use crate::key::{KEY_HEAD, parse};
use crate::recover::{Window, data_is_valid};
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
    /// One sentence for each thing that is not as it should be.
    pub findings: Vec<String>,
}

impl Store {
    /// Reads and verifies segments and tables. `progress` gets (bytes done, bytes there are).
    pub fn check(&self, progress: &mut dyn FnMut(u64, u64)) -> Report {
        let segments = self.segments.lock().clone();
        let levels = self.index.read().levels.clone();
        let end = self.log.tail().position();
        let ends: HashMap<u64, u64> =
            segments.iter().map(|s| (s.at.id, if s.at.id == end.region { end.offset } else { s.end })).collect();
        let total = ends.values().sum::<u64>() + levels.tables().map(|t| t.len()).sum::<u64>();
        let mut report = Report::default();
        let mut chain = None;
        for s in &segments {
            let found = self.check_segment(s, ends[&s.at.id], chain, &mut report);
            chain = match found {
                Ok(next) => next,
                Err(e) => {
                    report.findings.push(e.to_string());
                    None
                }
            };
            progress(report.bytes, total);
        }
        for t in levels.tables() {
            if let Err(e) = check_table(t, &ends, &mut report) {
                report.findings.push(e.to_string());
            }
            report.tables += 1;
            report.bytes += t.len();
            progress(report.bytes, total);
        }
        report
    }

    /// Returns the last frame's checksum.
    fn check_segment(&self, s: &Segment, end: u64, mut chain: Option<u32>, report: &mut Report) -> Result<Option<u32>> {
        let region: Arc<dyn Region> = self.regions.read()[&s.at.id].clone();
        segment::verify(&segment::read(&*region)?, &self.uuid, s.at)?;
        report.segments += 1;
        report.bytes += segment::HEADER;
        let mut window = Window::new(region, segment::HEADER);
        let mut at = segment::HEADER;
        let mut last = Tid::ZERO;
        let bad = |report: &mut Report, at: u64, what: &str| {
            report.findings.push(format!("region {:x} at byte {at}: {what}", s.at.id));
        };
        while at < end {
            window.fill_frame(at)?;
            let bytes = window.bytes(at);
            let Some(f) = frame::parse(bytes, s.at.id, at) else {
                bad(report, at, &format!("no valid frame before the segment's end at {end}"));
                return Ok(None);
            };
            // The chain starts anew (at 0) in the segment after a crash.
            let continues = chain.is_none_or(|c| f.header.chain == c || at == segment::HEADER && f.header.chain == 0);
            if !continues {
                bad(report, at, "the frame does not continue the one before it");
            }
            chain = Some(f.crc);
            if let Content::Transaction(records) = &f.content {
                if f.header.tid <= last {
                    bad(report, at, &format!("tid {} comes after {last}", f.header.tid));
                }
                last = f.header.tid;
                if !data_is_valid(s.at.id, bytes, at, records) {
                    bad(report, at, &format!("file data of transaction {} is damaged", f.header.tid));
                }
                report.transactions += 1;
                report.records += records.len() as u64;
            }
            let len = frame::shape(bytes).expect("just parsed").len as u64;
            report.bytes += len;
            at += len;
        }
        Ok(chain)
    }
}

fn check_table(table: &Arc<Table>, ends: &HashMap<u64, u64>, report: &mut Report) -> Result<()> {
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
            Some((_, object, Kind::EXTENT, _)) => {
                let map = cursor.value().map_or(Some(ChunkMap::default()), |v| ChunkMap::decode(&v, tid));
                let fits = map.is_some_and(|m| {
                    m.spans.iter().all(|s| {
                        let end = s.place.offset.saturating_add(s.place.stored.into());
                        ends.get(&s.place.region).is_some_and(|&e| end <= e)
                    })
                });
                if !fits {
                    report
                        .findings
                        .push(format!("region {id:x}: a chunk map of object {object} (tid {tid}) leads nowhere"));
                }
            }
            Some(_) => {}
            None => report.findings.push(format!("region {id:x}: a key of {} bytes (less than {KEY_HEAD})", key.len())),
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
