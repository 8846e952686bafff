//! What a process needs of the one that served the mount before it: which requests had been carried out, and what the kernel's
//! node ids of the past mean. It is in memory that outlives the process, one piece for each mount.
//!
//! Each serving thread has a [`Receipt`]. A request that the kernel sends again and that is on one of those that were found is
//! answered and not carried out again. Those that were found stay where they are, and threads use others: the process may be
//! killed again before the answer. (Whether an answer had been given the process can't know; so the oldest are used again at last.)

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use darner_fs::Tid;
use darner_store::Receipt;
use parking_lot::Mutex;

use crate::memory::SharedMemory;

/// So many receipts there are: those of the last hundred processes or so.
const RECEIPTS: usize = 512;
/// Threads that may serve one mount.
pub const THREADS_MAX: usize = 64;
/// Views there can be (`nodes.rs`).
pub const VIEWS: usize = 1 << 18;

const RECEIPTS_AT: usize = 4096;
const VIEWS_AT: usize = RECEIPTS_AT + RECEIPTS * size_of::<Receipt>();
const LEN: usize = VIEWS_AT + VIEWS * size_of::<SharedView>();

/// A view, as `nodes.rs` has it.
#[repr(C)]
#[derive(Default)]
pub struct SharedView {
    /// Lookups; 0: it is free, and the rest means nothing.
    pub lookups: AtomicU64,
    /// See there.
    pub tid: AtomicU64,
    /// The number of the inode that was named with the moment.
    pub object: AtomicU64,
    /// The directory's view and kind.
    pub from: AtomicU64,
}

/// The memory of a mount.
#[derive(Clone)]
pub struct MountMemory(Arc<SharedMemory>);

impl MountMemory {
    /// A new mount's.
    pub fn new() -> io::Result<MountMemory> {
        Ok(MountMemory(Arc::new(SharedMemory::new(c"darner-mount", LEN)?)))
    }

    /// That of an earlier process; `None` if that was of another kind.
    pub fn adopt(fd: std::os::fd::OwnedFd) -> io::Result<Option<MountMemory>> {
        Ok(SharedMemory::adopt(fd, LEN)?.map(|m| MountMemory(Arc::new(m))))
    }

    /// For whoever is to hold it.
    pub fn shared(&self) -> &SharedMemory {
        &self.0
    }

    /// How many views were ever in use.
    pub fn views_used(&self) -> &AtomicU64 {
        // SAFETY: an atomic.
        unsafe { self.0.at(0) }
    }

    /// A view, below [`VIEWS`].
    pub fn view(&self, number: usize) -> &SharedView {
        assert!(number < VIEWS);
        // SAFETY: made of atomics.
        unsafe { self.0.at(VIEWS_AT + number * size_of::<SharedView>()) }
    }

    fn receipt(&self, number: usize) -> &Receipt {
        // SAFETY: made of atomics; zeroes are an empty one.
        unsafe { self.0.at(RECEIPTS_AT + number * size_of::<Receipt>()) }
    }
}

/// The receipts of a mount.
pub struct Receipts {
    memory: MountMemory,
    /// Each thread's.
    own: Vec<usize>,
    /// What was found: request to its place and result.
    found: Mutex<HashMap<u64, (usize, u64)>>,
    /// Requests sent again that are being answered, and whether none will come any more.
    in_hand: AtomicUsize,
    settled: AtomicBool,
}

impl Receipts {
    /// `last`: the newest transaction there is, before any new one.
    pub fn new(memory: &MountMemory, last: Tid) -> Receipts {
        let mut by_age = Vec::with_capacity(RECEIPTS);
        let mut found = HashMap::new();
        for n in 0..RECEIPTS {
            let receipt = memory.receipt(n);
            match receipt.read() {
                Some((request, tid, result)) if tid <= last => {
                    found.insert(request, (n, result));
                    by_age.push((tid, n));
                }
                _ => {
                    receipt.clear();
                    by_age.push((Tid::ZERO, n));
                }
            }
        }
        by_age.sort_unstable();
        let own: Vec<usize> = by_age.into_iter().take(THREADS_MAX).map(|(_, n)| n).collect();
        found.retain(|_, (n, _)| !own.contains(n));
        own.iter().for_each(|n| memory.receipt(*n).clear());
        let settled = found.is_empty().into();
        Receipts { memory: memory.clone(), own, found: Mutex::new(found), in_hand: 0.into(), settled }
    }

    /// A thread's own.
    pub fn of(&self, thread: usize) -> &Receipt {
        self.memory.receipt(self.own[thread])
    }

    /// What was remembered of a request that an earlier process carried out.
    pub fn outcome(&self, request: u64) -> Option<u64> {
        self.found.lock().get(&request).map(|(_, result)| *result)
    }

    /// What was remembered of those that were found and not answered.
    pub fn results(&self) -> Vec<u64> {
        self.found.lock().values().map(|(_, result)| *result).collect()
    }

    /// A request that the kernel sends again is being answered, until `answer` returns. (By then no other thread may have read
    /// anything, or it has begun already.)
    pub fn again<T>(&self, answer: impl FnOnce() -> T) -> T {
        self.in_hand.fetch_add(1, Ordering::SeqCst);
        let answered = answer();
        self.in_hand.fetch_sub(1, Ordering::SeqCst);
        answered
    }

    /// A request came that had not been sent before; all that are sent again come first. True once: when all those are answered.
    pub fn settles(&self) -> bool {
        !self.settled.load(Ordering::Relaxed)
            && self.in_hand.load(Ordering::SeqCst) == 0
            && !self.settled.swap(true, Ordering::SeqCst)
    }

    /// It has been answered.
    pub fn answered(&self, request: u64) {
        if let Some((n, _)) = self.found.lock().remove(&request) {
            self.memory.receipt(n).clear();
        }
    }
}

impl SharedView {
    /// What it says: tid, object, from.
    pub fn read(&self) -> (u64, u64, u64) {
        let load = |a: &AtomicU64| a.load(Ordering::Relaxed);
        (load(&self.tid), load(&self.object), load(&self.from))
    }

    /// Fills in one that is free.
    pub fn write(&self, tid: u64, object: u64, from: u64) {
        for (to, value) in [(&self.tid, tid), (&self.object, object), (&self.from, from)] {
            to.store(value, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_committed_is_found_by_every_later_process_until_it_is_answered() {
        let memory = MountMemory::new().unwrap();
        let first = Receipts::new(&memory, Tid(0));
        let store = darner_store::Store::in_memory();
        let act = |receipts: &Receipts, thread: usize, request: u64| {
            receipts.of(thread).during(request, || {
                let mut tx = store.begin(darner_fs::FilesetId(1), 5).unwrap();
                tx.put(darner_store::ObjectId(1), darner_store::Kind::DIRENT, b"a", b"b");
                tx.sign(request * 10);
                tx.commit().unwrap()
            })
        };
        act(&first, 0, 1);
        let committed = act(&first, 1, 2);
        let never = act(&first, 2, 3);
        assert!(never > committed);
        // As if the last one had not come to be committed.
        let second = Receipts::new(&memory, committed);
        assert_eq!([1, 2, 3].map(|r| second.outcome(r)), [Some(10), Some(20), None]);
        let last = act(&second, 0, 4);
        second.answered(1);
        let third = Receipts::new(&memory, last);
        assert_eq!([1, 2, 3, 4].map(|r| third.outcome(r)), [None, Some(20), None, Some(40)]);
        drop(third);
        // Whoever killed it so often: there is room.
        for n in 0..3000 {
            let later = Receipts::new(&memory, store.tid());
            act(&later, n % 4, 100 + n as u64);
        }
        let at_last = Receipts::new(&memory, store.tid());
        assert_eq!(at_last.outcome(3099), Some(30990));
        assert_eq!(at_last.outcome(2), None);
    }
}
