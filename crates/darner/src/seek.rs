//! Holes of live files: bytes that were stored through a mapping, or with `writeback` written, may be in the kernel's cache only, and
//! it does not write them before it asks for holes. So before a hole is told, what is cached of it is written. That takes a thread of
//! its own: it waits for requests that those who serve answer.

use std::ops::Range;
use std::sync::Arc;
use std::thread;

use darner_fs::{Fs, Node, Seek};
use darner_fuse::Reply;

use crate::mortal::MortalReply;

/// Has the kernel write what it has cached of a node's bytes, and returns when that is done.
pub type WriteBack = Arc<dyn Fn(u64, Range<u64>) + Send + Sync>;

/// What the kernel has cached of a mount.
pub struct KernelCache {
    /// Has it doubt what it has of a node, without waiting for that: where an append did not go where it thought, or what it has of a
    /// directory may not last.
    pub stale: Box<dyn Fn(u64) + Send + Sync>,
    pub write_back: WriteBack,
    /// Whether the kernel may have bytes beyond the end that is known here.
    pub beyond_the_end: bool,
}

/// What is sought.
#[derive(Clone, Copy)]
pub struct Sought {
    /// The kernel's number of the node.
    pub id: u64,
    pub node: Node,
    pub offset: u64,
    pub what: Seek,
}

/// Answers; `hole`: what the answer takes for a hole now.
pub fn answer(fs: &Arc<Fs>, sought: Sought, hole: Range<u64>, write_back: &WriteBack, reply: MortalReply) {
    let (fs, write_back) = (fs.clone(), write_back.clone());
    let work = move || {
        write_back(sought.id, hole);
        reply.answer(|reply| say(&fs, &sought, reply));
    };
    if let Err(e) = thread::Builder::new().name("seek".into()).spawn(work) {
        // (What was to be done is dropped, which answers EIO.)
        tracing::error!("no thread for a search for holes: {e}");
    }
}

/// Answers by what has been written.
pub fn say(fs: &Fs, sought: &Sought, reply: Reply<'_>) {
    match fs.seek(sought.node, sought.offset, sought.what) {
        Ok(at) => reply.lseek(at),
        Err(e) => reply.error(e.errno()),
    }
}
