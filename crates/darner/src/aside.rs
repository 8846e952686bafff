//! Jobs for a thread of their own, which most mounts never need: it is started with the first of them.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use parking_lot::Mutex;

/// Does jobs one after the other; its thread ends when it is dropped, and all are done.
pub struct Aside<T> {
    name: &'static str,
    work: Arc<dyn Fn(T) + Send + Sync>,
    jobs: Mutex<Option<Sender<T>>>,
}

impl<T: Send + 'static> Aside<T> {
    /// `name`: the thread's.
    pub fn new(name: &'static str, work: impl Fn(T) + Send + Sync + 'static) -> Aside<T> {
        Aside { name, work: Arc::new(work), jobs: Mutex::new(None) }
    }

    /// Starts the thread, if there is none: no job is lost for want of one then.
    pub fn start(&self) -> std::io::Result<Sender<T>> {
        let mut jobs = self.jobs.lock();
        if let Some(there) = &*jobs {
            return Ok(there.clone());
        }
        let ((sender, receiver), work) = (channel::<T>(), self.work.clone());
        thread::Builder::new().name(self.name.into()).spawn(move || receiver.into_iter().for_each(|job| work(job)))?;
        Ok(jobs.insert(sender).clone())
    }

    /// Has a job done; without a thread it is dropped.
    pub fn take(&self, job: T) {
        match self.start() {
            Ok(jobs) => {
                let _ = jobs.send(job);
            }
            Err(e) => tracing::error!("no thread {}: {e}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_no_thread_before_the_first_job_and_all_jobs_are_done_by_one() {
        let (done, outcome) = channel();
        let aside = Aside::new("aside-test", move |n: u32| done.send((n, thread::current().id())).unwrap());
        assert!(aside.jobs.lock().is_none());
        (0..3).for_each(|n| aside.take(n));
        drop(aside);
        let (jobs, threads): (Vec<_>, Vec<_>) = outcome.iter().unzip();
        assert_eq!(jobs, [0, 1, 2]);
        assert!(threads.iter().all(|id| *id == threads[0] && *id != thread::current().id()));
    }
}
