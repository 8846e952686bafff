//! Transaction ids: a hybrid logical clock in nanoseconds since 1970.
//!
//! Invariant: tids of one store strictly grow, and are never behind the wall clock that stamped them.

use std::fmt;

/// A transaction id; doubles as a moment (nanoseconds since 1970-01-01T00:00:00Z).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tid(pub u64);

impl Tid {
    /// Before every transaction.
    pub const ZERO: Tid = Tid(0);
    /// After every transaction: as of `MAX` is the live view.
    pub const MAX: Tid = Tid(u64::MAX);

    /// The next tid, given the wall clock in nanoseconds since 1970: the clock's, or one past `self` where the clock lags.
    pub fn next(self, now_ns: u64) -> Tid {
        Tid(now_ns.max(self.0 + 1))
    }
}

impl fmt::Debug for Tid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:x}", self.0)
    }
}

impl fmt::Display for Tid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:x}", self.0)
    }
}
