//! Ordered scans: for each key of a range, the newest version with tid ≤ T over all layers.

use std::sync::Arc;

use super::levels::{Levels, Run};
use super::memtable::Memtable;
use super::table::{BlockCache, Cursor};
use crate::store::Value;
use crate::{Result, Tid};

/// A cursor over a run.
struct RunCursor<'c> {
    run: &'c Run,
    cache: &'c BlockCache,
    table: usize,
    cursor: Option<Cursor<'c>>,
}

impl<'c> RunCursor<'c> {
    fn seek(run: &'c Run, key: &[u8], at: Tid, cache: &'c BlockCache) -> Result<RunCursor<'c>> {
        let clipped = run.clip(key);
        let (key, at) = clipped.as_ref().map_or((key, at), |k| (k, Tid::MAX));
        let mut c = RunCursor { run, cache, table: run.table_for(key), cursor: None };
        // The versions of one key may go on in the next table, and those wanted begin in a later one.
        while let Some(t) = run.tables.get(c.table) {
            let cursor = Cursor::seek(t.clone(), key, at, Some(cache))?;
            if cursor.key().is_some() {
                c.cursor = Some(cursor);
                break;
            }
            c.table += 1;
        }
        Ok(c)
    }

    /// Moves to the next table at the end of one.
    fn settle(&mut self) -> Result<()> {
        while self.cursor.as_ref().is_some_and(|c| c.key().is_none()) {
            self.table += 1;
            self.cursor = match self.run.tables.get(self.table) {
                Some(t) => Some(Cursor::first(t.clone(), Some(self.cache))?),
                None => None,
            };
        }
        Ok(())
    }

    fn key(&self) -> Option<&[u8]> {
        self.cursor.as_ref()?.key()
    }

    fn step(&mut self) -> Result<()> {
        if let Some(c) = &mut self.cursor {
            c.step()?;
        }
        self.settle()
    }

    /// Considers the versions of `key` here, and goes past them.
    fn take(&mut self, key: &[u8], at: Tid, best: &mut Best) -> Result<()> {
        let mut steps = 0;
        while self.key() == Some(key) {
            let c = self.cursor.as_ref().expect("it has a key");
            if c.tid() <= at {
                best.offer(c.tid(), || c.value());
            }
            steps += 1;
            if steps > 8 {
                // A key with many versions: jump to the wanted one, then over the rest.
                return self.jump(key, at, best);
            }
            self.step()?;
        }
        Ok(())
    }

    fn jump(&mut self, key: &[u8], at: Tid, best: &mut Best) -> Result<()> {
        let wanted = RunCursor::seek(self.run, key, at, self.cache)?;
        if let Some(c) = wanted.cursor.as_ref().filter(|c| c.key() == Some(key)) {
            best.offer(c.tid(), || c.value());
        }
        let mut after = key.to_vec();
        after.push(0);
        *self = RunCursor::seek(self.run, &after, Tid::MAX, self.cache)?;
        Ok(())
    }
}

#[derive(Default)]
struct Best(Option<(Tid, Option<Value>)>);

impl Best {
    fn offer(&mut self, tid: Tid, value: impl FnOnce() -> Option<Value>) {
        if self.0.as_ref().is_none_or(|(best, _)| *best < tid) {
            self.0 = Some((tid, value()));
        }
    }
}

/// A key found by a scan.
pub type Item = (Vec<u8>, Tid, Option<Value>);

/// What to scan.
#[derive(Clone, Copy)]
pub struct Range<'a> {
    /// What keys start with.
    pub prefix: &'a [u8],
    /// The first of them.
    pub from: &'a [u8],
    pub at: Tid,
    /// Whether tombstones (`None`) are wanted.
    pub tombstones: bool,
    /// Most items at a time.
    pub limit: usize,
}

/// The keys of a range with their newest version ≤ `at`, as many as it says.
/// The second value is the key to go on from, `None` if the range is exhausted.
pub fn scan(
    memtables: &[&Memtable],
    levels: &Arc<Levels>,
    cache: &BlockCache,
    range: Range<'_>,
) -> Result<(Vec<Item>, Option<Vec<u8>>)> {
    let Range { prefix, from, at, tombstones, limit } = range;
    let history = if at == Tid::MAX { &[][..] } else { &levels.history[..] };
    let mut runs = Vec::with_capacity(levels.live.len() + history.len());
    for run in levels.live.iter().chain(history) {
        runs.push(RunCursor::seek(run, from, Tid::MAX, cache)?);
    }
    let mut mems: Vec<_> = memtables.iter().map(|m| m.range(std::ops::Bound::Included(from)).peekable()).collect();
    let mut items = Vec::new();
    loop {
        let in_runs = runs.iter().filter_map(RunCursor::key).min();
        let in_mems = mems.iter_mut().filter_map(|m| m.peek().map(|(k, _)| *k)).min();
        let next = match (in_runs, in_mems) {
            (Some(a), Some(b)) => a.min(b),
            (Some(k), None) | (None, Some(k)) => k,
            (None, None) => return Ok((items, None)),
        };
        if !next.starts_with(prefix) {
            return Ok((items, None));
        }
        let key = next.to_vec();
        if items.len() >= limit {
            return Ok((items, Some(key)));
        }
        let mut best = Best::default();
        for m in &mut mems {
            if let Some((_, slot)) = m.next_if(|(k, _)| *k == key.as_slice())
                && let Some((tid, value)) = slot.at(at)
            {
                best.offer(tid, || value.cloned());
            }
        }
        for run in &mut runs {
            run.take(&key, at, &mut best)?;
        }
        if let Some((tid, value)) = best.0.filter(|(_, value)| tombstones || value.is_some()) {
            items.push((key, tid, value));
        }
    }
}

/// Whether there is any key that starts with `prefix`.
pub fn any(memtables: &[&Memtable], levels: &Arc<Levels>, cache: &BlockCache, prefix: &[u8]) -> Result<bool> {
    let begins = |key: &[u8]| key.starts_with(prefix);
    let mut first = memtables.iter().filter_map(|m| m.range(std::ops::Bound::Included(prefix)).next());
    if first.any(|(key, _)| begins(key)) {
        return Ok(true);
    }
    for run in levels.live.iter().chain(&levels.history) {
        if RunCursor::seek(run, prefix, Tid::MAX, cache)?.key().is_some_and(begins) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Every version (tombstones too) of the keys that start with `prefix`, by key, newest first.
pub fn versions(
    memtables: &[&Memtable],
    levels: &Arc<Levels>,
    cache: &BlockCache,
    prefix: &[u8],
) -> Result<Vec<super::Entry>> {
    let mut out = Vec::new();
    for m in memtables {
        for (key, slot) in m.range(std::ops::Bound::Included(prefix)) {
            if !key.starts_with(prefix) {
                break;
            }
            out.extend(slot.versions().map(|(tid, value)| super::Entry {
                key: key.into(),
                tid,
                value: value.cloned(),
            }));
        }
    }
    for run in levels.live.iter().chain(&levels.history) {
        let mut c = RunCursor::seek(run, prefix, Tid::MAX, cache)?;
        while c.key().is_some_and(|k| k.starts_with(prefix)) {
            out.extend(c.cursor.as_ref().and_then(Cursor::entry));
            c.step()?;
        }
    }
    out.sort_by(super::Entry::order);
    Ok(out)
}
