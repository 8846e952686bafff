//! Threads for services that take their time: a service in a pool may block, and call back as it likes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;

use parking_lot::{Condvar, Mutex};

use crate::error::Reason;
use crate::message::Message;
use crate::service::{Peer, Reply, Service};

type Job = (Peer, Message, Reply);

#[derive(Default)]
struct Queue {
    /// And whether the pool is there that adds to them.
    jobs: Mutex<(VecDeque<Job>, bool)>,
    more: Condvar,
}

/// A service whose calls run on a few threads of their own. What waits is bounded by the links' limits. The threads end
/// when the pool is dropped and what it holds is done.
pub struct Pool<S> {
    service: Arc<S>,
    queue: Arc<Queue>,
}

impl<S: Service + 'static> Pool<S> {
    /// Starts `threads` threads, named `name`.
    pub fn new(threads: usize, name: &str, service: S) -> std::io::Result<Pool<S>> {
        let pool = Pool { service: Arc::new(service), queue: Arc::default() };
        pool.queue.jobs.lock().1 = true;
        for _ in 0..threads.max(1) {
            let (service, queue) = (pool.service.clone(), pool.queue.clone());
            thread::Builder::new().name(name.into()).spawn(move || work(&*service, &queue))?;
        }
        Ok(pool)
    }
}

fn work(service: &dyn Service, queue: &Queue) {
    let mut jobs = queue.jobs.lock();
    loop {
        match jobs.0.pop_front() {
            Some((peer, command, reply)) => {
                drop(jobs);
                service.call(&peer, command, reply);
                jobs = queue.jobs.lock();
            }
            None if jobs.1 => queue.more.wait(&mut jobs),
            None => return,
        }
    }
}

impl<S> Drop for Pool<S> {
    fn drop(&mut self) {
        self.queue.jobs.lock().1 = false;
        self.queue.more.notify_all();
    }
}

impl<S: Service> Service for Pool<S> {
    fn call(&self, peer: &Peer, command: Message, reply: Reply) {
        self.queue.jobs.lock().0.push_back((peer.clone(), command, reply));
        self.queue.more.notify_one();
    }

    fn closed(&self, peer: &Peer, reason: &Reason) {
        self.service.closed(peer, reason);
    }
}
