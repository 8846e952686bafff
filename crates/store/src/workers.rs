//! Threads that others lend the store, which has none of its own.

use std::fmt::Debug;

/// Something to be done beside something else.
pub type Job<'j> = Box<dyn FnOnce() + Send + 'j>;

/// Who lends threads.
pub trait Workers: Debug + Send + Sync {
    /// Runs each job on a thread of its own, all at the same time, while `here` runs once on this one; returns when all have ended. (They
    /// wait for one another: one after the other they would for ever.)
    fn beside(&self, jobs: Vec<Job<'_>>, here: &mut dyn FnMut());
}
