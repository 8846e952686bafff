//! Answers for which somebody may wait long: who is killed meanwhile waits no longer.
//!
//! The kernel keeps a process that has been killed until its request is answered. What is done for it goes on, and comes to
//! nothing or is of use to others.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use darner_fuse::{DeferredReply, Reply};
use parking_lot::Mutex;

/// How often to look.
const EVERY: Duration = Duration::from_millis(100);

/// Those whose answers are under way; while there are any, a thread looks at them.
static WAITING: Mutex<Vec<Arc<Waiting>>> = Mutex::new(Vec::new());

struct Waiting {
    pid: u32,
    /// `None`: answered.
    reply: Mutex<Option<DeferredReply>>,
}

/// A duty to answer that ends with who asked. Dropped, it answers EIO.
pub struct MortalReply(Arc<Waiting>);

impl MortalReply {
    /// `pid`: who asked, of the request.
    pub fn new(pid: u32, reply: Reply<'_>) -> MortalReply {
        let waiting = Arc::new(Waiting { pid, reply: Mutex::new(Some(reply.defer())) });
        let mut all = WAITING.lock();
        all.push(waiting.clone());
        if all.len() == 1
            && let Err(e) = thread::Builder::new().name("who-waits".into()).spawn(look)
        {
            // (They wait as long as it takes.)
            tracing::error!("no thread to see who waits for a read: {e}");
            all.clear();
        }
        MortalReply(waiting)
    }

    /// Whether nobody waits any more.
    pub fn is_over(&self) -> bool {
        self.0.reply.lock().is_none()
    }

    /// Answers, if somebody still waits.
    pub fn answer(self, how: impl FnOnce(Reply<'_>)) {
        if let Some(reply) = self.0.reply.lock().take() {
            reply.answer(how);
        }
    }
}

impl Drop for MortalReply {
    fn drop(&mut self) {
        drop(self.0.reply.lock().take());
    }
}

fn look() {
    loop {
        thread::sleep(EVERY);
        let mut all = WAITING.lock();
        all.retain(|one| {
            let mut reply = one.reply.lock();
            if reply.is_some()
                && darner_fuse::is_dying(one.pid)
                && let Some(reply) = reply.take()
            {
                reply.answer(|reply| reply.error(libc::EINTR));
            }
            reply.is_some()
        });
        if all.is_empty() {
            return;
        }
    }
}
