//! Receipts: which transaction a request led to, in memory that outlives the process.
//!
//! Whoever serves requests gives each of its threads a receipt, and carries a request out within [`Receipt::during`]. The
//! transaction that it leads to, if any, is put on the receipt just before it is committed, with the log locked. So a process that
//! finds the receipt knows: the request was carried out if its tid is not after the log's last one, and was not otherwise.

use std::cell::Cell;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Tid;

/// See the module. All zeroes is an empty one; it has a place of its own in a processor's cache.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Receipt {
    request: AtomicU64,
    /// 0 while the others are being changed.
    tid: AtomicU64,
    result: AtomicU64,
}

thread_local! {
    static CURRENT: Cell<(*const Receipt, u64)> = const { Cell::new((ptr::null(), 0)) };
}

impl Receipt {
    /// Does what a request asks for; its number is not used twice.
    pub fn during<T>(&self, request: u64, act: impl FnOnce() -> T) -> T {
        struct Reset;
        impl Drop for Reset {
            fn drop(&mut self) {
                CURRENT.set((ptr::null(), 0));
            }
        }
        CURRENT.set((self, request));
        let _reset = Reset;
        act()
    }

    /// The last request that led to a transaction, its tid, and what was to be remembered of its outcome.
    pub fn read(&self) -> Option<(u64, Tid, u64)> {
        let tid = Tid(self.tid.load(Ordering::Acquire));
        (tid.0 != 0).then(|| (self.request.load(Ordering::Relaxed), tid, self.result.load(Ordering::Relaxed)))
    }

    /// Makes it an empty one.
    pub fn clear(&self) {
        self.tid.store(0, Ordering::Release);
    }
}

pub(crate) fn sign(tid: Tid, result: u64) {
    let (receipt, request) = CURRENT.get();
    // SAFETY: set by `during`, which has not returned yet: its receipt is borrowed.
    let Some(receipt) = (unsafe { receipt.as_ref() }) else { return };
    receipt.tid.store(0, Ordering::Release);
    receipt.request.store(request, Ordering::Release);
    receipt.result.store(result, Ordering::Release);
    receipt.tid.store(tid.0, Ordering::Release);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FilesetId, Kind, ObjectId, Store};

    #[test]
    fn a_receipt_names_the_transaction_of_its_request_and_no_other() {
        let store = Store::in_memory();
        let receipt = Receipt::default();
        let commit = |signed: bool| {
            let mut tx = store.begin(FilesetId(1), 5).unwrap();
            tx.put(ObjectId(1), Kind::DIRENT, b"a", b"b");
            if signed {
                tx.sign(9);
            }
            tx.commit().unwrap()
        };
        commit(true);
        receipt.during(7, || ());
        assert_eq!(receipt.read(), None, "nothing was done");
        receipt.during(7, || commit(false));
        assert_eq!(receipt.read(), None, "what the store does for itself");
        let tid = receipt.during(8, || {
            drop(store.begin(FilesetId(1), 5).unwrap());
            commit(true)
        });
        commit(true);
        assert_eq!(receipt.read(), Some((8, tid, 9)));
        receipt.clear();
        assert_eq!(receipt.read(), None);
    }
}
