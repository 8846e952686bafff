//! Limits on history: where a fileset's comes to more than it may, the oldest gives way.
//!
//! How much there is was counted by the last collapse, and what became history since is noted as runs are merged. A fileset
//! that seems to be over its limit has a collapse begun, which counts anew; one that is over it by a fresh count is counted once more,
//! because a collapse counts what is shared with each that shares it. If it is over it then, it has its
//! floor raised (`retain.rs`) so far that an eighth of the limit is free again, and the next collapse drops what is below.
//! What labels, clones and mounts hold stays, and may be more than the limit.

use crate::full::floor;
use crate::maintain::State;
use crate::store::Store;
use crate::{FilesetId, Result, Tid};

impl Store {
    /// Sees to it that filesets keep to the bytes of history that they may come to. Returns at once; [`Store::step_clean`]
    /// does what is due then. `now_ns`: the wall clock.
    pub fn limit_history(&self, limits: &[(FilesetId, u64)], now_ns: u64) -> Result<()> {
        if self.read_only || limits.is_empty() || *self.collapse_wanted.lock() {
            return Ok(());
        }
        let mut state = self.maintenance.lock();
        if state.pass.is_some() {
            return Ok(());
        }
        if state.account.is_none() {
            if state.first_look_is_due(now_ns) {
                self.want_collapse();
            }
            return Ok(());
        }
        let all = |state: &State| -> Vec<_> {
            limits.iter().filter_map(|(f, most)| Some((*f, excess(state, *f, *most)?))).collect()
        };
        let mut due = all(&state);
        if due.iter().any(|(_, excess)| matches!(excess, Excess::Fresh { floor: Some(_) })) {
            drop(state);
            let exact = self.account(now_ns, None)?;
            state = self.maintenance.lock();
            if let Some(account) = &mut state.account {
                (account.by_fileset, account.yielding) = (exact.by_fileset, exact.yielding);
                state.grown.clear();
            }
            due = all(&state);
        }
        drop(state);
        for (fileset, excess) in due {
            if let Excess::Fresh { floor: Some(floor) } = excess {
                tracing::info!(fileset = fileset.0, floor = %Tid(floor), "history goes beyond its limit: the oldest is given up");
                self.retain(fileset, now_ns, |r| r.raised(Tid(floor)))?;
                self.sync()?;
            }
            if !matches!(excess, Excess::Fresh { floor: None }) {
                self.want_collapse();
            }
        }
        Ok(())
    }
}

/// More history than there may be.
enum Excess {
    /// So it seems.
    Stale,
    /// By a count that is good enough; up to where it must go, if any may.
    Fresh { floor: Option<u64> },
}

fn excess(state: &State, fileset: FilesetId, most: u64) -> Option<Excess> {
    let account = state.account.as_ref()?;
    let grown = state.grown.get(&fileset).copied().unwrap_or(0);
    let history = account.by_fileset.get(&fileset).copied().unwrap_or(0) + grown;
    if history <= most {
        return None;
    }
    if grown > most / 16 {
        return Some(Excess::Stale);
    }
    let wanted = history - (most - most / 8);
    Some(Excess::Fresh { floor: account.yielding.get(&fileset).and_then(|yielding| floor(yielding, wanted)) })
}
