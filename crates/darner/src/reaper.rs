//! Ends files that have no name when nobody has them open any more. OPEN and RELEASE are declined, so the kernel's word for that
//! is that it forgets the node; whether it still holds one (it may forget a part, or have learnt of it anew) it is asked, and so
//! is every other live mount. Nothing of this need be remembered when the process is killed: the next one asks about all of them.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use darner_fs::Inode;
use parking_lot::{Condvar, Mutex};

use crate::daemon::Daemon;
use crate::frontend::now_ns;

/// So long more of them are waited for, to end them in one transaction.
const GATHER: Duration = Duration::from_millis(20);

/// How long whoever needs the room waits for it at most.
const PATIENCE: Duration = Duration::from_secs(1);

/// Those that somebody should look at.
#[derive(Default)]
pub struct Reaper {
    state: Mutex<State>,
    work: Condvar,
    done: Condvar,
}

#[derive(Default)]
struct State {
    pending: BTreeSet<Inode>,
    /// How often somebody began to look, and had looked.
    begun: u64,
    done: u64,
    /// Somebody waits.
    hurry: bool,
}

impl Reaper {
    /// These have no name, and may not be open any more.
    pub fn look_at(&self, orphans: impl IntoIterator<Item = Inode>) {
        let mut s = self.state.lock();
        let idle = s.pending.is_empty();
        s.pending.extend(orphans);
        if idle && !s.pending.is_empty() {
            self.work.notify_one();
        }
    }

    /// Has those that are known looked at now, and waits for that; `false` if there are none.
    pub fn finish(&self) -> bool {
        let mut s = self.state.lock();
        if s.pending.is_empty() && s.begun == s.done {
            return false;
        }
        let wanted = s.begun + u64::from(!s.pending.is_empty());
        s.hurry = true;
        self.work.notify_one();
        let start = Instant::now();
        while s.done < wanted && start.elapsed() < PATIENCE {
            self.done.wait_for(&mut s, PATIENCE);
        }
        true
    }

    /// Wakes the one who waits for work.
    pub fn wake(&self) {
        let _state = self.state.lock();
        self.work.notify_one();
    }

    /// Waits for work, and takes it.
    fn next(&self) -> BTreeSet<Inode> {
        let mut s = self.state.lock();
        if s.pending.is_empty() {
            self.work.wait_for(&mut s, Duration::from_secs(1));
        }
        if !s.pending.is_empty() && !s.hurry {
            // (Woken by whoever is in a hurry.)
            self.work.wait_for(&mut s, GATHER);
        }
        s.hurry = false;
        s.begun += 1;
        std::mem::take(&mut s.pending)
    }

    fn looked(&self) {
        let mut s = self.state.lock();
        s.done = s.begun;
        self.done.notify_all();
    }
}

impl Daemon {
    /// Does the reaper's work until the daemon ends.
    pub(crate) fn reap(&self) {
        while !self.is_closing() {
            let all = self.reaper.next();
            if !all.is_empty() && !self.store().is_read_only() {
                let free: Vec<Inode> = all.into_iter().filter(|ino| self.is_free(*ino)).collect();
                if let Err(e) = self.fs.forget(now_ns(), &free) {
                    tracing::warn!("{} files without a name stay until the next mount: {e}", free.len());
                }
            }
            self.reaper.looked();
        }
    }

    /// Whether no kernel holds an object; never so without a live mount (the next to open the store ends it).
    fn is_free(&self, ino: Inode) -> bool {
        let mounts: Vec<_> = {
            let state = self.state.lock();
            let live = state.mounts.values().filter(|m| m.live);
            live.map(|m| (m.notifier.clone(), m.nodes.id(ino))).collect()
        };
        !mounts.is_empty() && mounts.iter().all(|(notifier, id)| !holds(notifier.holds(*id)))
    }
}

/// A mount that has ended holds nothing; where it can't be told, something is held.
fn holds(answer: io::Result<bool>) -> bool {
    let gone = |e: &io::Error| matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ENOTCONN | libc::ECONNABORTED));
    answer.unwrap_or_else(|e| !gone(&e))
}
