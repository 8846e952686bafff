//! Reads of what is in a bucket only: each waits in a thread of its own, so that those that serve go on with what is here.
//! Who is killed does not wait for the bucket.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use darner_fs::{Fs, Node};
use darner_fuse::Ctx;
use darner_store::volume::without_waiting;

use crate::mortal::MortalReply;

/// Threads at most; who comes when there are as many waits in the one that serves.
const MOST: usize = 64;
/// What was fetched may have given way to other things before it was read: then it is fetched again, so many times.
const TRIES: usize = 16;

static WAITING: AtomicUsize = AtomicUsize::new(0);

/// Answers a read once what it needs has come, or with EIO if it does not.
pub fn read(fs: &Arc<Fs>, node: Node, offset: u64, size: usize, reply: MortalReply, ctx: &Ctx<'_>) {
    if WAITING.fetch_add(1, Ordering::Relaxed) >= MOST {
        ctx.will_block();
        answer(fs, node, offset, size, reply);
        WAITING.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    let fs = fs.clone();
    let work = move || {
        answer(&fs, node, offset, size, reply);
        WAITING.fetch_sub(1, Ordering::Relaxed);
    };
    if let Err(e) = thread::Builder::new().name("cold-read".into()).spawn(work) {
        // (What was to be done is dropped, which answers EIO.)
        tracing::error!("no thread for a read: {e}");
        WAITING.fetch_sub(1, Ordering::Relaxed);
    }
}

fn answer(fs: &Fs, node: Node, offset: u64, size: usize, reply: MortalReply) {
    let mut buf = vec![0; size];
    for _ in 0..TRIES {
        let outcome = match without_waiting(|| fs.read_unexplained(node, offset, &mut buf)) {
            Ok(n) => return reply.answer(|reply| reply.data(&buf[..n])),
            Err(e) => e,
        };
        let Some(cold) = outcome.cold() else { return reply.answer(|reply| reply.error(outcome.errno())) };
        if let Err(e) = cold.fetch() {
            tracing::debug!("{cold:?}: {e}");
            break;
        }
        if reply.is_over() {
            return;
        }
    }
    reply.answer(|reply| reply.error(libc::EIO));
}
