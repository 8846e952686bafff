//! Gathering: of files that were written here and there, and are read, the stray pieces are written anew together when there is time.
//!
//! What is written anew is a version of its chunk with the same bytes: nothing visible changes, no attribute either, and what it was
//! made of goes when the retention lets it. Invariant: between the look and the write nobody changed the chunk (its
//! version is compared under the lock), so no write is lost.

use darner_store::volume::without_waiting;
use darner_store::{CHUNK, Piece, STRETCH, Stretch, Tid, strays};

use crate::change::SMALL;
use crate::error::Result;
use crate::fs::Fs;
use crate::node::Inode;

/// What changed this lately (nanoseconds) may change again soon.
const RESTLESS: u64 = 5_000_000_000;
/// So many stretches are looked at for one that is ready.
const LOOKS: usize = 64;

/// A chunk as of a version.
struct Gathered {
    chunk: u64,
    version: Option<Tid>,
    pieces: Vec<Piece>,
    /// Stray pieces that follow one another: where they begin, and their bytes.
    runs: Vec<(u64, Vec<u8>)>,
}

impl Fs {
    /// Writes the stray pieces of a scattered stretch anew; says whether one was done with.
    pub fn gather(&self, now_ns: u64) -> Result<bool> {
        if self.head().is_some() {
            return Ok(false);
        }
        for _ in 0..LOOKS {
            let Some((stretch, seen)) = self.store.take_scattered() else { return Ok(false) };
            let usage = self.store.usage()?;
            // Where room is short, order is a luxury.
            if usage.free < usage.size / 8 {
                return Ok(true);
            }
            let mut chunks = self.chunks_of(stretch)?;
            let Some(newest) = chunks.iter().filter_map(|c| c.version).max() else { return Ok(true) };
            if newest.0.saturating_add(RESTLESS) <= now_ns {
                match without_waiting(|| self.read_strays(&mut chunks)) {
                    // In a bucket it may lie as it lies.
                    Err(e) if e.cold().is_some() => {}
                    read => {
                        read?;
                        self.write_anew(stretch, &chunks, now_ns)?;
                    }
                }
                return Ok(true);
            }
            // Else it is written again and again; the next who reads it will tell.
            if seen.is_none_or(|seen| seen == newest) {
                self.store.put_back_scattered(stretch, newest);
            }
        }
        Ok(false)
    }

    fn chunks_of(&self, (fileset, object, stretch): Stretch) -> Result<Vec<Gathered>> {
        let first = stretch * (STRETCH / CHUNK);
        let chunk = |chunk| {
            let version = self.store.chunk_tid(fileset, object, chunk)?;
            let pieces = self.store.map(fileset, object, chunk * CHUNK, CHUNK, Tid::MAX)?;
            Ok(Gathered { chunk, version, pieces, runs: Vec::new() })
        };
        (first..first + STRETCH / CHUNK).map(chunk).collect()
    }

    /// Reads what is to be written anew.
    fn read_strays(&self, chunks: &mut [Gathered]) -> Result<()> {
        let all: Vec<_> = chunks.iter().flat_map(|c| &c.pieces).cloned().collect();
        let strays = strays(&all);
        let mut rest = &strays[..];
        for c in chunks {
            let (of_it, after) = rest.split_at(c.pieces.len());
            rest = after;
            let mut i = 0;
            for run in of_it.chunk_by(|a, b| a == b) {
                let pieces = &c.pieces[i..i + run.len()];
                i += run.len();
                // (What a clone has of its base may lie as it lies.)
                if run[0] && c.version.is_some() {
                    let mut data = vec![0; pieces.iter().map(|p| p.len as usize).sum()];
                    self.store.read(pieces, &mut data)?;
                    c.runs.push((pieces[0].offset, data));
                }
            }
        }
        Ok(())
    }

    fn write_anew(&self, stretch: Stretch, chunks: &[Gathered], now_ns: u64) -> Result<()> {
        let (fileset, object, _) = stretch;
        let plan = self.plan(fileset, STRETCH + SMALL)?;
        // Nothing may be written to what has died meanwhile.
        if self.attr_at(Inode { fileset, object }, Tid::MAX)?.is_none() {
            return Ok(());
        }
        let mut unchanged = Vec::new();
        for c in chunks.iter().filter(|c| !c.runs.is_empty()) {
            if self.store.chunk_tid(fileset, object, c.chunk)? == c.version {
                unchanged.push(c);
            }
        }
        if unchanged.is_empty() {
            return Ok(());
        }
        let mut change = plan.begin(now_ns)?;
        for (offset, data) in unchanged.iter().flat_map(|c| &c.runs) {
            let grown = change.tx.write(object, *offset, data)?;
            assert_eq!(grown, 0, "the same bytes in the same places");
        }
        change.commit()?;
        Ok(())
    }
}
