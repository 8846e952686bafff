//! Reads that meet damage wait for the other side of a mirror, on a thread of their own: those who serve requests go on.

use std::sync::Arc;

use darner_fs::{Fs, Node};

use crate::aside::Aside;
use crate::mortal::MortalReply;

/// A read that could not be answered.
struct Wounded {
    node: Node,
    offset: u64,
    size: usize,
    reply: MortalReply,
}

/// Heals what reads of a mount find damaged, and answers them; ends when it is dropped, and all are answered.
pub struct Healer(Aside<Wounded>);

impl Healer {
    /// For the mounts of a filesystem.
    pub fn new(fs: Arc<Fs>) -> Healer {
        Healer(Aside::new("healer", move |job| heal(&fs, job)))
    }

    /// Sees to a read that failed because of damage.
    pub fn take(&self, node: Node, offset: u64, size: usize, reply: MortalReply) {
        // (Without its thread the reply is dropped, which answers.)
        self.0.take(Wounded { node, offset, size, reply });
    }
}

fn heal(fs: &Fs, job: Wounded) {
    let Wounded { node, offset, size, reply } = job;
    if reply.is_over() {
        return;
    }
    match fs.heal(node, offset, size) {
        Ok(true) => tracing::warn!(inode = node.inode().number(), offset, "damaged: healed from the other side"),
        Ok(false) => {}
        Err(e) => tracing::warn!(inode = node.inode().number(), offset, "damaged, and not healed: {e}"),
    }
    let mut data = vec![0; size];
    match fs.read_into(node, offset, &mut data) {
        Ok(n) => reply.answer(|reply| reply.data(&data[..n])),
        Err(e) => reply.answer(|reply| reply.error(e.errno())),
    }
}
