//! Holes of live files: bytes that were stored through a mapping, or with `writeback` written, may be in the kernel's cache only, and
//! it does not write them before it asks for holes. So before a hole is told, what is cached of it is written. That takes a thread of
//! its own: it waits for requests that those who serve answer.
//!
//! What was written is dropped from the cache, too, and a mapping brings it back by a READ only. So as long as nothing of the file is
//! asked for, that need not be done again ([`Uncached`]).

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use darner_fs::{Fs, Node, Seek};
use darner_fuse::Reply;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use crate::mortal::MortalReply;

/// Has the kernel write what it has cached of a node's bytes, and drop it; returns when that is done, and whether it is.
pub type WriteBack = Arc<dyn Fn(u64, Range<u64>) -> bool + Send + Sync>;

/// The kernel asks for whole pages.
const PAGE: u64 = 4096;
/// Of so many nodes it is remembered at most what is not cached of them.
const NODES_MAX: usize = 1024;

/// What the kernel has cached of a mount.
pub struct KernelCache {
    /// Has it doubt what it has of a node, without waiting for that: where an append did not go where it thought, or what it has of a
    /// directory may not last.
    pub stale: Box<dyn Fn(u64) + Send + Sync>,
    pub write_back: WriteBack,
    /// Whether the kernel may have bytes beyond the end that is known here.
    pub beyond_the_end: bool,
}

/// Bytes of nodes that the kernel has not cached. (With `writeback` it caches what is written without a word: nothing is known then.)
#[derive(Default)]
pub struct Uncached {
    /// There are some.
    any: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    by_node: FxHashMap<u64, Known>,
    last: u64,
}

struct Known {
    bytes: Range<u64>,
    /// Which dropping it was.
    turn: u64,
    is_done: bool,
}

impl Uncached {
    fn has(&self, node: u64, bytes: &Range<u64>) -> bool {
        let state = self.state.lock();
        let known = state.by_node.get(&node).filter(|known| known.is_done);
        known.is_some_and(|known| known.bytes.start <= bytes.start && bytes.end <= known.bytes.end)
    }

    /// `hole` is about to be dropped from the cache: returns what is to be dropped with it, and which time that is. Where nothing was
    /// asked for since the last time, it is twice as much: whoever looks for all holes waits for a few times only.
    fn begin(&self, node: u64, hole: Range<u64>) -> (Range<u64>, u64) {
        let mut state = self.state.lock();
        self.any.store(true, Ordering::SeqCst);
        if state.by_node.len() >= NODES_MAX {
            state.by_node.clear();
        }
        state.last += 1;
        let turn = state.last;
        let before = state.by_node.get(&node).map_or(0, |known| known.bytes.end - known.bytes.start);
        let bytes = hole.start..hole.end.max(hole.start.saturating_add(before.saturating_mul(2)));
        state.by_node.insert(node, Known { bytes: bytes.clone(), turn, is_done: false });
        (bytes, turn)
    }

    /// It was dropped.
    fn done(&self, node: u64, turn: u64) {
        if let Some(known) = self.state.lock().by_node.get_mut(&node).filter(|known| known.turn == turn) {
            known.is_done = true;
        }
    }

    /// The kernel asks for bytes of a node, and may have them cached from now on. (To be told before that is answered: what it asked for
    /// before `begin` is locked there until the answer, and dropped after that.)
    pub fn asked(&self, node: u64, bytes: Range<u64>) {
        if !self.any.load(Ordering::SeqCst) {
            return;
        }
        let mut state = self.state.lock();
        let bytes = bytes.start / PAGE * PAGE..bytes.end.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX);
        let overlap = |known: &Known| known.bytes.start < bytes.end && bytes.start < known.bytes.end;
        if state.by_node.get(&node).is_some_and(overlap) {
            state.by_node.remove(&node);
            self.any.store(!state.by_node.is_empty(), Ordering::SeqCst);
        }
    }

    /// The kernel changes a node: pages at its end may reach beyond it.
    pub fn changed(&self, node: u64) {
        self.asked(node, 0..u64::MAX);
    }
}

/// What is sought.
#[derive(Clone, Copy)]
pub struct Sought {
    /// The kernel's number of the node.
    pub id: u64,
    pub node: Node,
    pub offset: u64,
    pub what: Seek,
}

/// Answers; `hole`: what the answer takes for a hole now.
pub fn answer(
    fs: &Arc<Fs>,
    sought: Sought,
    hole: Range<u64>,
    kernel: &KernelCache,
    uncached: &Arc<Uncached>,
    pid: u32,
    reply: Reply<'_>,
) {
    if uncached.has(sought.id, &hole) {
        return say(fs, &sought, reply);
    }
    let (fs, write_back, reply) = (fs.clone(), kernel.write_back.clone(), MortalReply::new(pid, reply));
    let uncached = (!kernel.beyond_the_end).then(|| uncached.clone());
    let work = move || {
        if let Some(uncached) = uncached {
            let (bytes, turn) = uncached.begin(sought.id, hole);
            if write_back(sought.id, bytes) {
                uncached.done(sought.id, turn);
            }
        } else {
            write_back(sought.id, hole);
        }
        reply.answer(|reply| say(&fs, &sought, reply));
    };
    if let Err(e) = thread::Builder::new().name("seek".into()).spawn(work) {
        // (What was to be done is dropped, which answers EIO.)
        tracing::error!("no thread for a search for holes: {e}");
    }
}

/// Answers by what has been written.
pub fn say(fs: &Fs, sought: &Sought, reply: Reply<'_>) {
    match fs.seek(sought.node, sought.offset, sought.what) {
        Ok(at) => reply.lseek(at),
        Err(e) => reply.error(e.errno()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Drops a hole.
    fn drop_from_cache(uncached: &Uncached, node: u64, hole: Range<u64>) -> Range<u64> {
        let (bytes, turn) = uncached.begin(node, hole);
        uncached.done(node, turn);
        bytes
    }

    #[test]
    fn what_was_dropped_from_the_cache_is_not_there_until_it_is_asked_for() {
        let uncached = Uncached::default();
        assert!(!uncached.has(1, &(8192..16384)));
        drop_from_cache(&uncached, 1, 8192..16384);
        assert!(uncached.has(1, &(8192..16384)) && uncached.has(1, &(9000..9001)));
        assert!(!uncached.has(1, &(8192..16385)) && !uncached.has(2, &(8192..16384)));
        // Other bytes, another node; then a byte of the last page.
        uncached.asked(1, 0..8192);
        uncached.asked(1, 16384..1 << 20);
        uncached.asked(2, 0..1 << 20);
        assert!(uncached.has(1, &(8192..16384)));
        uncached.asked(1, 16383..16384);
        assert!(!uncached.has(1, &(8192..16384)));
        drop_from_cache(&uncached, 1, 8192..16384);
        uncached.changed(1);
        assert!(!uncached.has(1, &(8192..16384)));
        // Pages are dropped and asked for as a whole.
        drop_from_cache(&uncached, 1, 5000..u64::MAX);
        uncached.asked(1, 4096..4097);
        assert!(!uncached.has(1, &(5000..6000)));
    }

    #[test]
    fn what_is_asked_for_while_it_is_dropped_may_be_cached() {
        let uncached = Uncached::default();
        let (_, turn) = uncached.begin(1, 0..4096);
        assert!(!uncached.has(1, &(0..4096)));
        uncached.asked(1, 0..4096);
        uncached.done(1, turn);
        assert!(!uncached.has(1, &(0..4096)));
        // Of two at once the later one counts.
        let (_, first) = uncached.begin(1, 0..4096);
        uncached.begin(1, 8192..12288);
        uncached.done(1, first);
        assert!(!uncached.has(1, &(0..4096)) && !uncached.has(1, &(8192..12288)));
    }

    #[test]
    fn a_search_for_all_holes_of_a_file_has_them_dropped_in_a_few_turns() {
        let uncached = Uncached::default();
        let holes = (0..100_000u64).map(|n| n * 8192 + 8..(n + 1) * 8192);
        let turns = holes.filter(|hole| {
            let is_known = uncached.has(1, hole);
            if !is_known {
                drop_from_cache(&uncached, 1, hole.clone());
            }
            !is_known
        });
        assert!(turns.count() < 20);
    }
}
