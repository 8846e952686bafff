//! Threads for services that take their time: a service in a pool may block, and call back as it likes.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use parking_lot::Mutex;

use crate::error::Reason;
use crate::message::Message;
use crate::service::{Peer, Reply, Service};

type Job = (Peer, Message, Reply);

/// A service whose calls run on a few threads of their own. What waits is bounded by the links' limits. The threads end
/// when the pool is dropped and what it holds is done.
pub struct Pool<S> {
    service: Arc<S>,
    jobs: Mutex<Sender<Job>>,
}

impl<S: Service + 'static> Pool<S> {
    /// Starts `threads` threads, named `name`.
    pub fn new(threads: usize, name: &str, service: S) -> std::io::Result<Pool<S>> {
        let service = Arc::new(service);
        let (jobs, queue) = channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..threads.max(1) {
            let (service, queue) = (service.clone(), queue.clone());
            thread::Builder::new().name(name.into()).spawn(move || work(&*service, &queue))?;
        }
        Ok(Pool { service, jobs: Mutex::new(jobs) })
    }
}

fn work(service: &dyn Service, queue: &Mutex<Receiver<Job>>) {
    loop {
        let next = queue.lock().recv();
        let Ok((peer, command, reply)) = next else { return };
        service.call(&peer, command, reply);
    }
}

impl<S: Service> Service for Pool<S> {
    fn call(&self, peer: &Peer, command: Message, reply: Reply) {
        // Without threads the reply is dropped, which answers.
        let _ = self.jobs.lock().send((peer.clone(), command, reply));
    }

    fn closed(&self, peer: &Peer, reason: &Reason) {
        self.service.closed(peer, reason);
    }
}
