//! Ends files that have no name when nobody has them open any more. OPEN and RELEASE are declined, so the kernel's word for that
//! is that it forgets the node; whether it still holds one (it may forget a part, or have learnt of it anew) it is asked, and so
//! is every other live mount. Nothing of this need be remembered when the process is killed: the next one asks about all of them.

use std::collections::BTreeSet;
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
                let free = self.free_of(all.into_iter().collect());
                if let Err(e) = self.fs.forget(now_ns(), &free) {
                    tracing::warn!("{} files without a name stay until the next mount: {e}", free.len());
                }
            }
            self.reaper.looked();
        }
    }

    /// Those of some objects that no kernel holds; none without a live mount (the next to open the store ends them).
    fn free_of(&self, mut objects: Vec<Inode>) -> Vec<Inode> {
        let mounts: Vec<_> = {
            let state = self.state.lock();
            let live = state.mounts.values().filter(|m| m.live);
            live.map(|m| (m.invalidator.clone(), m.nodes.clone())).collect()
        };
        if mounts.is_empty() {
            objects.clear();
        }
        for (invalidator, nodes) in mounts {
            let ids: Vec<u64> = objects.iter().map(|ino| nodes.id(*ino)).collect();
            let mut held = invalidator.holds(&ids).into_iter();
            objects.retain(|_| !held.next().unwrap_or(true));
        }
        objects
    }
}
