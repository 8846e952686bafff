//! Reading a region in order while what was read is worked on: a lent thread is a few pieces ahead.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use crate::Result;
use crate::reading::Buf;
use crate::store::FRAME_MAX;
use crate::volume::{PAGE, Region};

/// Bytes that are read at a time.
const PIECE: usize = 2 << 20;
/// So many pieces: one that is worked on, one that is read, and one in between.
const PIECES: usize = 3;
/// With less to read a thread is not worth it.
pub(crate) const WORTH: u64 = 4 << 20;

/// A piece: from which byte of the region on, and what is there.
type Piece = (u64, Buf);

/// The end at which the pieces arrive.
pub(crate) struct Ahead {
    full: Receiver<Result<Piece>>,
    free: Sender<Buf>,
}

/// The end at which they are read.
pub(crate) struct Reading {
    full: SyncSender<Result<Piece>>,
    free: Receiver<Buf>,
}

/// Both ends. The second one ends when the first one is dropped.
pub(crate) fn ahead() -> (Ahead, Reading) {
    let ((full, arrives), (free, comes_back)) = (sync_channel(PIECES), channel());
    (0..PIECES).for_each(|_| free.send(Buf::with_head(FRAME_MAX)).expect("we have the other end"));
    (Ahead { full: arrives, free }, Reading { full, free: comes_back })
}

impl Ahead {
    /// The next piece; `None` after the last one.
    pub fn next(&mut self) -> Result<Option<Piece>> {
        self.full.recv().ok().transpose()
    }

    /// Takes back the memory of one that is done with.
    pub fn give_back(&mut self, buf: Buf) {
        // (Where nothing more is read, it is not wanted.)
        let _ = self.free.send(buf);
    }
}

impl Reading {
    /// Reads from byte `from` on so many bytes that were not dropped, and some more for both ends to be at whole pages, past the caches.
    pub fn run(self, region: &dyn Region, from: u64, mut left: u64) {
        let size = region.place().size;
        let mut at = from - from % PAGE as u64;
        left += from - at;
        while at < size
            && left > 0
            && let Ok(mut buf) = self.free.recv()
        {
            let n = (PIECE as u64).min(size - at);
            left = left.saturating_sub(region.kept_within(at, n));
            buf.clear();
            let read = region.read_fresh(buf.grow(n as usize), at);
            let failed = read.is_err();
            if self.full.send(read.map(|()| (at, buf))).is_err() || failed {
                break;
            }
            at += n;
        }
    }
}
