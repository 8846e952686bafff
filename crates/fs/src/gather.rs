//! Gathering: files that were written here and there, and are read, are written anew in one piece when there is time.
//!
//! A chunk written anew is a version of it with the same bytes: nothing visible changes, no attribute either, and what it was
//! made of goes when the retention lets it. Invariant: between the look and the write nobody changed the chunk (its
//! version is compared under the lock), so no write is lost.

use darner_store::volume::without_waiting;
use darner_store::{CHUNK, Chunk, Tid};

use crate::change::SMALL;
use crate::error::Result;
use crate::fs::Fs;
use crate::node::Inode;

/// Chunks in one transaction.
const BATCH: usize = 8;
/// What changed this lately (nanoseconds) may change again soon.
const RESTLESS: u64 = 5_000_000_000;

/// The bytes of a chunk as of a version.
struct Gathered {
    chunk: Chunk,
    version: Tid,
    /// Runs of data: where, and the bytes.
    runs: Vec<(u64, Vec<u8>)>,
}

impl Fs {
    /// Writes some scattered chunks anew; says whether any were done with.
    pub fn gather(&self, now_ns: u64) -> Result<bool> {
        if self.head().is_some() {
            return Ok(false);
        }
        let chunks = self.store.take_scattered(BATCH);
        if chunks.is_empty() {
            return Ok(false);
        }
        let usage = self.store.usage()?;
        // Where room is short, order is a luxury.
        if usage.free < usage.size / 8 {
            return Ok(true);
        }
        let (mut gathered, mut waiting) = (Vec::new(), 0);
        let taken = chunks.len();
        for (chunk, seen) in chunks {
            let Some(version) = self.store.chunk_tid(chunk)? else { continue };
            if version.0.saturating_add(RESTLESS) <= now_ns {
                match without_waiting(|| self.runs_of(chunk)) {
                    // In a bucket it may lie as it lies.
                    Err(e) if e.cold().is_some() => {}
                    runs => gathered.push(Gathered { chunk, version, runs: runs? }),
                }
            } else if seen.is_none_or(|seen| seen == version) {
                self.store.put_back_scattered(chunk, version);
                waiting += 1;
            }
            // Else it is written again and again; the next who reads it will tell.
        }
        if let Some(first) = gathered.first() {
            self.write_anew(first.chunk, &gathered, now_ns)?;
        }
        Ok(waiting < taken)
    }

    fn runs_of(&self, (fileset, object, chunk): Chunk) -> Result<Vec<(u64, Vec<u8>)>> {
        let pieces = self.store.map(fileset, object, chunk * CHUNK, CHUNK, Tid::MAX)?;
        let mut runs = Vec::new();
        for run in pieces.split(|p| !p.is_data()).filter(|run| !run.is_empty()) {
            let mut data = vec![0; run.iter().map(|p| p.len as usize).sum()];
            self.store.read(run, &mut data)?;
            runs.push((run[0].offset, data));
        }
        Ok(runs)
    }

    fn write_anew(&self, (fileset, object, _): Chunk, gathered: &[Gathered], now_ns: u64) -> Result<()> {
        let plan = self.plan(fileset, BATCH as u64 * CHUNK + SMALL)?;
        // Nothing may be written to what has died meanwhile.
        if self.attr_at(Inode { fileset, object }, Tid::MAX)?.is_none() {
            return Ok(());
        }
        let mut unchanged = Vec::new();
        for g in gathered {
            if self.store.chunk_tid(g.chunk)? == Some(g.version) {
                unchanged.push(g);
            }
        }
        if unchanged.is_empty() {
            return Ok(());
        }
        let mut change = plan.begin(now_ns)?;
        for (offset, data) in unchanged.iter().flat_map(|g| &g.runs) {
            let grown = change.tx.write(object, *offset, data)?;
            assert_eq!(grown, 0, "the same bytes in the same places");
        }
        change.commit()?;
        Ok(())
    }
}
