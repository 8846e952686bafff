//! When what a flush finds superseded lapses: by that a collapse is due. docs/format.md §Retention.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::extent::Span;
use crate::index::Entry;
use crate::index::memtable::Found;
use crate::key::parse;
use crate::retain::{FOREVER, Retention};
use crate::sieve::{Lapses, OBJECT_END, kept_since, record_bytes, spans};
use crate::store::Store;
use crate::{FilesetId, Key, Kind, Result, Tid};

/// Notes when what is superseded lapses, while entries pass in table order.
pub(crate) struct Ageing {
    now_ns: u64,
    retention: Option<(FilesetId, Arc<Retention>)>,
    /// The entry before, and its spans if somebody asked.
    newer: Option<(Entry, Option<Vec<Span>>)>,
    object: Vec<u8>,
    /// Since when moments count for the object, once somebody asked.
    kept_since: Option<Tid>,
}

impl Ageing {
    pub fn new(now_ns: u64) -> Ageing {
        Ageing { now_ns, retention: None, newer: None, object: Vec::new(), kept_since: None }
    }

    /// `until`: when the entry was superseded, if it was.
    /// `grown` gets, by fileset, what becomes history.
    pub fn note(
        &mut self,
        store: &Store,
        e: &Entry,
        until: Option<Tid>,
        lapses: &mut Lapses,
        grown: &mut BTreeMap<FilesetId, u64>,
    ) -> Result<()> {
        let Some((fileset, ..)) = parse(&e.key) else { return Ok(()) };
        if self.retention.as_ref().is_none_or(|(f, _)| *f != fileset) {
            // A record that is in no known form must not keep a flush from being done: whoever looks at the past is told.
            self.retention = Some((fileset, store.retention(fileset).unwrap_or_default()));
        }
        if self.object != e.key[..OBJECT_END] {
            self.object = e.key[..OBJECT_END].to_vec();
            self.kept_since = None;
        }
        if e.key[OBJECT_END] == Kind::KEEPLESS.0 {
            self.kept_since.get_or_insert(kept_since(e.tid, e.value.as_deref()));
        }
        let newer = self.newer.take().filter(|(newer, _)| newer.key == e.key);
        let mut own = None;
        if let Some(until) = until.filter(|until| *until != Tid::MAX) {
            let when = self.expiry(store, e, until)?;
            let newer = newer.map_or(Vec::new(), |(e, known)| known.unwrap_or_else(|| spans(&e)));
            let own = own.insert(spans(e));
            let bytes = record_bytes(e) + bytes_only_in(own, &newer);
            lapses.add(when, self.now_ns, bytes);
            *grown.entry(fileset).or_default() += if when > self.now_ns { bytes } else { 0 };
        }
        self.newer = Some((e.clone(), own));
        Ok(())
    }

    fn expiry(&mut self, store: &Store, e: &Entry, until: Tid) -> Result<u64> {
        let since = match (self.kept_since, parse(&e.key)) {
            (Some(since), _) => since,
            (None, Some((fileset, object, ..))) if object.0 != 0 => {
                let found = store.find(&Key::new(fileset, object, Kind::KEEPLESS, &[]), Tid::MAX)?;
                let version = found.and_then(Found::into_version);
                version.map_or(Tid::ZERO, |v| kept_since(v.tid, Some(&v.value)))
            }
            _ => Tid::ZERO,
        };
        self.kept_since = Some(since);
        let retention = &self.retention.as_ref().expect("set before").1;
        Ok(match e.tid.max(since) {
            from if from >= until => self.now_ns,
            _ if retention.grid.keeps_all() => FOREVER,
            from => retention.expiry(from, until),
        })
    }
}

/// Bytes of a map's spans that lead to no extent that spans of the other one lead to about there.
fn bytes_only_in(spans: &[Span], other: &[Span]) -> u64 {
    let same = |a: &Span, b: &Span| (a.place.region, a.place.offset) == (b.place.region, b.place.offset);
    let mut rest = other;
    let mut sum = 0;
    for s in spans {
        let before = rest.iter().take_while(|o| o.end() <= s.at).count();
        rest = &rest[before..];
        if !rest.iter().take_while(|o| o.at < s.end()).any(|o| same(s, o)) {
            sum += u64::from(s.len);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::{self, ChunkMap, Place};

    #[test]
    fn bytes_that_only_one_map_has_are_those_that_the_other_one_leads_to_nowhere() {
        let mut rng = fastrand::Rng::with_seed(8);
        let block = extent::BLOCK as u32;
        let blocks = extent::CHUNK as u32 / block;
        let range = |rng: &mut fastrand::Rng| {
            let at = rng.u32(..blocks);
            (at * block, rng.u32(1..=(blocks - at).min(8)) * block)
        };
        let place = |n: u64, len: u32| Place {
            region: 1 + n % 3,
            offset: n * 1_000_000,
            stored: extent::raw_size(len as usize) as u32,
            extent_len: len,
            skip: 0,
            codec: extent::Codec::Raw,
            tid: Tid(1),
        };
        for _ in 0..500 {
            let mut map = ChunkMap::default();
            let mut n = 0;
            for _ in 0..rng.u32(1..12) {
                n += 1;
                let (at, len) = range(&mut rng);
                map.overlay(at, len, Some(place(n, len)));
            }
            let older = map.clone();
            for _ in 0..rng.u32(1..4) {
                n += 1;
                let (at, len) = range(&mut rng);
                map.overlay(at, len, rng.bool().then(|| place(n, len)));
            }
            let spans = |map: &ChunkMap| {
                let mut spans = Vec::new();
                ChunkMap::each_span(&map.encode(Tid(5)), Tid(5), |s| spans.push(s)).unwrap();
                spans
            };
            let (older, newer) = (spans(&older), spans(&map));
            let is_there = |s: &Span| {
                let meets = |o: &&Span| o.at < s.end() && s.at < o.end();
                newer.iter().filter(meets).any(|o| o.place.offset == s.place.offset)
            };
            let expected: u64 = older.iter().filter(|s| !is_there(s)).map(|s| u64::from(s.len)).sum();
            assert_eq!(bytes_only_in(&older, &newer), expected);
        }
    }
}
