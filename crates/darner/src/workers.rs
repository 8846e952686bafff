//! Threads lent to the store, which has none.

use std::sync::Arc;
use std::thread;

use darner_store::{Job, Workers};

#[derive(Debug)]
struct Threads;

impl Workers for Threads {
    fn beside(&self, jobs: Vec<Job<'_>>, here: &mut dyn FnMut()) {
        thread::scope(|scope| {
            jobs.into_iter().for_each(|job| drop(scope.spawn(job)));
            here();
        });
    }
}

/// Threads, where there are `cores` to run several at a time.
pub(crate) fn of(cores: usize) -> Option<Arc<dyn Workers>> {
    (cores > 1).then(|| Arc::new(Threads) as _)
}

/// How many there are.
pub(crate) fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}
