//! What of an index's versions a collapse keeps, drops, and notes on the way. docs/format.md §Retention.
//!
//! Versions come in key order, all of a key together and an object's ATTR before its other keys: so it is known until when
//! each was visible.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::clean::Batch;
use crate::extent::{self, Place, Span};
use crate::fileset::CATALOGUE;
use crate::forget::Forgotten;
use crate::index::Entry;
use crate::index::ghost::Ghost;
use crate::key::{KEY_HEAD, parse};
use crate::retain::{FOREVER, Retention};
use crate::segment::Starts;
use crate::sharing::{By, Sharing};
use crate::{FilesetId, Kind, Result, Tid};

/// A record's share of what is around it in a segment, about.
const RECORD_COST: u64 = 24;
/// Where an object's part of a key ends.
pub(crate) const OBJECT_END: usize = KEY_HEAD - 1;

/// What may be seen of the past, by fileset.
#[derive(Clone, Default)]
pub(crate) struct Keep {
    /// With the moment at which the fileset was removed, if it was.
    pub retentions: HashMap<FilesetId, (Arc<Retention>, Option<Tid>)>,
    /// Filesets whose tombstones hide what shows through.
    pub clones: BTreeSet<FilesetId>,
    pub forgotten: Forgotten,
    /// Moments that are part of what some clone is now, and besides of what a removed one was whose past can be looked at; ascending.
    pub cloned: [BTreeMap<FilesetId, Vec<Tid>>; 2],
    /// For the account.
    pub starts: Starts,
    pub now_ns: u64,
}

/// Bytes and versions, by when they lapse.
#[derive(Clone, Default, Debug)]
pub(crate) struct Lapses(BTreeMap<u64, (u64, u64)>);

impl Lapses {
    /// Adds others.
    pub fn join(&mut self, others: Lapses) {
        for (when, (bytes, versions)) in others.0 {
            let slot = self.0.entry(when).or_default();
            slot.0 += bytes;
            slot.1 += versions;
        }
    }

    /// Whether nothing ever lapses.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a version of so many bytes that is visible until `when`, as known at `now`.
    pub fn add(&mut self, when: u64, now: u64, bytes: u64) {
        if when == FOREVER {
            return;
        }
        // Coarsely, the more so the farther away: an eighth of the distance.
        let unit = (when.saturating_sub(now).max(1_000_000_000).next_power_of_two() / 8).max(1);
        let slot = self.0.entry(when.div_ceil(unit).saturating_mul(unit)).or_default();
        slot.0 += bytes;
        slot.1 += 1;
    }

    /// (bytes, versions) that have lapsed.
    pub fn lapsed(&self, now: u64) -> (u64, u64) {
        self.0.range(..=now).fold((0, 0), |sum, (_, n)| (sum.0 + n.0, sum.1 + n.1))
    }
}

/// What of the store is needed for what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Bytes of records and file data that the live trees need.
    pub live: u64,
    /// Bytes that only the visible past needs.
    pub history: u64,
    /// Versions that stay.
    pub versions: u64,
    /// Of the versions there are, those that no visible moment sees.
    pub lapsed_versions: u64,
    /// Their records' bytes, and (as far as it was asked for) the file data that only they need.
    pub lapsed: u64,
    /// The history by the hour, day, … in which it was written: for each of [`AGES`] the bytes not in one before.
    pub by_age: [u64; AGES.len()],
    /// The same by fileset: (versions, bytes).
    pub lapsed_by_fileset: BTreeMap<FilesetId, (u64, u64)>,
    /// As `history`, by fileset.
    pub by_fileset: BTreeMap<FilesetId, u64>,
    /// As `history`, by fileset and the step of its grid that keeps it (the first that does, in the order of the grid; last:
    /// labels and other pins).
    pub by_step: BTreeMap<FilesetId, Vec<u64>>,
    /// Of what no label or other pin holds, by fileset: bytes by the tid until which (coarsely) they were the present.
    pub yielding: BTreeMap<FilesetId, BTreeMap<u64, u64>>,
}

/// What in an account a version of the past counts for.
#[derive(Clone)]
pub(crate) struct Past {
    fileset: FilesetId,
    /// Which of [`AGES`].
    age: usize,
    /// Until when it was the present.
    pub until: Tid,
    /// The step of how many that keeps it.
    step: Option<(usize, usize)>,
    /// The same as `until`, coarsely, if no pin holds it.
    yields: Option<u64>,
}

impl Account {
    pub(crate) fn add_history(&mut self, past: &Past, bytes: u64) {
        self.history += bytes;
        *self.by_fileset.entry(past.fileset).or_default() += bytes;
        self.by_age[past.age] += bytes;
        if let Some((step, steps)) = past.step {
            self.by_step.entry(past.fileset).or_insert_with(|| vec![0; steps])[step] += bytes;
        }
        if let Some(until) = past.yields {
            *self.yielding.entry(past.fileset).or_default().entry(until).or_default() += bytes;
        }
    }

    pub(crate) fn add_lapsed(&mut self, fileset: FilesetId, versions: u64, bytes: u64) {
        self.lapsed_versions += versions;
        self.lapsed += bytes;
        let of = self.lapsed_by_fileset.entry(fileset).or_default();
        *of = (of.0 + versions, of.1 + bytes);
    }
}

/// Ages in nanoseconds up to which history is counted together.
pub const AGES: [u64; 7] = [
    3_600_000_000_000,
    86_400_000_000_000,
    7 * 86_400_000_000_000,
    31 * 86_400_000_000_000,
    92 * 86_400_000_000_000,
    366 * 86_400_000_000_000,
    u64::MAX,
];

/// As [`Account`], and what the cleaner works by.
#[derive(Default)]
pub(crate) struct Tally {
    pub account: Account,
    /// Bytes of each segment that somebody needs, about.
    pub segments: FxHashMap<u64, u64>,
    pub lapses: Lapses,
    /// Segments that hold what is to be forgotten.
    pub forgotten: HashSet<u64>,
    /// What is to be cleaned next.
    pub batch: Option<Batch>,
}

impl Tally {
    fn add_to_segment(&mut self, segment: u64, bytes: u64) {
        *self.segments.entry(segment).or_default() += bytes;
    }
}

/// Where an entry goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    Live,
    History,
}

/// Tells what stays while entries pass in table order, and keeps the account.
pub(crate) struct Sieve<'k> {
    keep: &'k Keep,
    pub tally: Tally,
    object: Vec<u8>,
    fileset: FilesetId,
    /// `None`: nothing of the object stays.
    retention: Option<Arc<Retention>>,
    /// When the object died.
    dead: Option<Tid>,
    /// Moments before this don't count for it: it is keepless, or was until then.
    kept_since: Tid,
    kept_since_known: bool,
    /// When it was said to be keepless or not to be, newest first.
    said: Vec<(Tid, bool)>,
    /// Whether it is the fileset itself: only its newest records mean anything.
    meta: bool,
    /// Whether something shows through it.
    is_clone: bool,
    key: Vec<u8>,
    /// Since when a newer version of the key is there.
    until: Tid,
    newest: bool,
    /// Tombstones of the key, newest first, that stay if something older does.
    tombstones: Vec<Entry>,
    /// Blocks of stored extents that versions of the key need so far.
    blocks: FxHashMap<(u64, u64), u32>,
    /// The same, of dropped versions, and what is shared: for who asks what they come to.
    lapsed: Option<FxHashMap<(u64, u64), (Place, u32)>>,
    sharing: Option<Sharing>,
    /// What is left of dropped tombstones.
    pub ghosts: Vec<Ghost>,
}

impl<'k> Sieve<'k> {
    pub fn new(keep: &'k Keep, tally: Tally) -> Sieve<'k> {
        Sieve {
            keep,
            tally,
            object: Vec::new(),
            fileset: FilesetId(0),
            retention: None,
            dead: None,
            kept_since: Tid::ZERO,
            kept_since_known: false,
            said: Vec::new(),
            meta: false,
            is_clone: false,
            key: Vec::new(),
            until: Tid::MAX,
            newest: true,
            tombstones: Vec::new(),
            blocks: FxHashMap::default(),
            lapsed: None,
            sharing: None,
            ghosts: Vec::new(),
        }
    }

    /// One for an account alone: it tells the bytes of what lapsed, too, and finds what is shared, or counts that once.
    pub fn telling(keep: &'k Keep, sharing: Sharing) -> Sieve<'k> {
        let lapsed = Some(FxHashMap::default());
        Sieve { lapsed, sharing: Some(sharing), ..Sieve::new(keep, Tally::default()) }
    }

    /// Whether an entry begins another object than the one before.
    pub fn is_between_objects(&self, next: &Entry) -> bool {
        self.object != next.key[..OBJECT_END.min(next.key.len())]
    }

    fn begin_object(&mut self, key: &[u8]) {
        self.end_key();
        self.object = key[..OBJECT_END.min(key.len())].to_vec();
        self.dead = None;
        (self.kept_since, self.kept_since_known) = (Tid::ZERO, false);
        self.said.clear();
        let Some((fileset, object, ..)) = parse(key) else {
            self.retention = None;
            return;
        };
        self.fileset = fileset;
        self.meta = object.0 == 0 && fileset != CATALOGUE;
        let forgotten = self.keep.forgotten.has_object(fileset, object);
        let known = self.keep.retentions.get(&fileset).filter(|_| !forgotten);
        self.retention = known.map(|(retention, _)| retention.clone());
        self.dead = known.and_then(|(_, removed)| *removed);
        self.is_clone = !self.meta && self.keep.clones.contains(&fileset);
    }

    /// Takes note of a KEEPLESS record: the newest that is no tombstone (that one goes with the object) counts.
    fn note_keepless(&mut self, e: &Entry) {
        if e.key.len() != KEY_HEAD || e.key[OBJECT_END] != Kind::KEEPLESS.0 {
            return;
        }
        self.said.push((e.tid, e.value.as_ref().is_none_or(|value| value.is_empty())));
        if self.kept_since_known {
            return;
        }
        self.kept_since = kept_since(e.tid, e.value.as_deref());
        self.kept_since_known = e.value.is_some();
    }

    /// Whether some moment that counts for the object lies in `tid .. until`.
    fn sees(&self, retention: &Retention, tid: Tid, until: Tid) -> bool {
        retention.sees(tid.max(self.kept_since), until) || self.kept_since > tid && self.is_cloned(tid, until)
    }

    /// Whether a clone shows what was visible in `tid .. until`. The past of a removed one does not show what was keepless
    /// then; what became so later it does.
    fn is_cloned(&self, tid: Tid, until: Tid) -> bool {
        let [now, once] = &self.keep.cloned;
        let within = |moments: &BTreeMap<FilesetId, Vec<Tid>>, shows: &dyn Fn(Tid) -> bool| {
            moments.get(&self.fileset).is_some_and(|moments| {
                let first = moments.partition_point(|at| *at < tid);
                moments[first..].iter().take_while(|at| **at < until).any(|at| shows(*at))
            })
        };
        let was_keepless =
            |at: Tid| self.said.iter().find(|(tid, _)| *tid <= at).is_some_and(|(_, keepless)| *keepless);
        within(now, &|_| true) || within(once, &|at| !was_keepless(at))
    }

    fn begin_key(&mut self, key: &[u8]) {
        self.end_key();
        self.key.clear();
        self.key.extend_from_slice(key);
        self.until = Tid::MAX;
        self.newest = true;
        self.blocks.clear();
    }

    fn end_key(&mut self) {
        for e in std::mem::take(&mut self.tombstones) {
            self.count_lapsed(1, record_bytes(&e));
            self.ghosts.push(Ghost::of(&e.key, e.tid));
        }
        let Some(lapsed) = self.lapsed.as_mut().filter(|lapsed| !lapsed.is_empty()) else { return };
        let mut bytes = 0;
        for (at, (place, blocks)) in lapsed.drain() {
            let known = self.blocks.get(&at).copied();
            let blocks = blocks & !known.unwrap_or(0);
            if let Some(sharing) = &mut self.sharing {
                if known.is_none() {
                    sharing.meet(at);
                }
                if sharing.take(&place, blocks, &By::Lapsed(self.fileset)) {
                    continue;
                }
            }
            bytes += block_bytes(&place, blocks);
        }
        self.count_lapsed(0, bytes);
    }

    fn count_lapsed(&mut self, versions: u64, bytes: u64) {
        self.tally.account.add_lapsed(self.fileset, versions, bytes);
    }

    /// Passes an entry; `out` gets what stays, in order.
    pub fn pass(&mut self, e: Entry, out: &mut dyn FnMut(Entry, Fate) -> Result<()>) -> Result<()> {
        if self.is_between_objects(&e) {
            self.begin_object(&e.key);
        }
        if *self.key != *e.key {
            self.begin_key(&e.key);
        }
        self.note_keepless(&e);
        let newest = std::mem::replace(&mut self.newest, false);
        let dies = if self.dead.is_some_and(|dead| dead > e.tid) { self.dead } else { None };
        let until = self.until.min(dies.unwrap_or(Tid::MAX));
        self.until = e.tid;
        let Some(retention) = self.retention.clone().filter(|_| !self.keep.forgotten.has_key(&e.key, e.tid)) else {
            self.tally.forgotten.insert(self.keep.starts.segment_of(e.tid));
            self.tally.forgotten.extend(spans(&e).iter().map(|s| s.place.region));
            if e.value.is_none() && self.keep.retentions.contains_key(&self.fileset) {
                self.ghosts.push(Ghost::of(&e.key, e.tid));
            }
            self.drop_entry(&e);
            return Ok(());
        };
        if e.value.is_none() {
            if e.key.len() == KEY_HEAD && e.key[OBJECT_END] == Kind::ATTR.0 && newest {
                self.dead = Some(e.tid.min(self.dead.unwrap_or(Tid::MAX)));
            }
            let seen = newest || !self.meta && self.sees(&retention, e.tid, until);
            return match seen {
                false => {
                    self.drop_entry(&e);
                    Ok(())
                }
                true if self.is_clone => self.keep_tombstone(e, if newest { Fate::Live } else { Fate::History }, out),
                true => {
                    self.tombstones.push(e);
                    Ok(())
                }
            };
        }
        let live = newest && (dies.is_none() || self.meta);
        if !live && (self.meta || !self.sees(&retention, e.tid, until)) {
            self.drop_entry(&e);
            return Ok(());
        }
        if !live {
            let from = e.tid.max(self.kept_since);
            let when = if from < until { retention.expiry(from, until) } else { FOREVER };
            let past = self.seen(&retention, &e, until);
            let bytes = self.needs(&e, &By::Past(&past));
            self.tally.lapses.add(when, self.keep.now_ns, bytes);
            self.count_history(&past, bytes);
        } else {
            let bytes = self.needs(&e, &By::Live);
            self.tally.account.live += bytes;
            self.tally.account.versions += 1;
        }
        for t in std::mem::take(&mut self.tombstones) {
            self.keep_tombstone(t, Fate::History, out)?;
        }
        out(e, if live { Fate::Live } else { Fate::History })
    }

    /// What a version counts for that some moment of the past sees.
    fn seen(&self, retention: &Retention, e: &Entry, until: Tid) -> Past {
        let step = retention.step_that_sees(e.tid, until, Tid(self.keep.now_ns));
        let unit = (self.keep.now_ns.saturating_sub(until.0).max(1).next_power_of_two() / 16).max(1);
        let yields = (!retention.is_pinned(e.tid, until)).then(|| until.0.div_ceil(unit).saturating_mul(unit));
        Past { until, step: Some((step, retention.grid.steps.len() + 1)), yields, ..self.past(e) }
    }

    fn past(&self, e: &Entry) -> Past {
        let age = self.keep.now_ns.saturating_sub(e.tid.0);
        let age = AGES.iter().position(|a| age <= *a).unwrap_or(AGES.len() - 1);
        Past { fileset: self.fileset, age, until: e.tid, step: None, yields: None }
    }

    fn keep_tombstone(&mut self, e: Entry, fate: Fate, out: &mut dyn FnMut(Entry, Fate) -> Result<()>) -> Result<()> {
        let bytes = record_bytes(&e);
        self.note_version(&e, bytes);
        self.count_history(&self.past(&e), bytes);
        out(e, fate)
    }

    /// What is said once all entries have passed.
    pub fn finish(mut self) -> Tally {
        self.end_key();
        self.tally
    }

    /// The same, of one for an account; and what was found to be shared, or is to be counted still.
    pub fn account(mut self) -> (Account, Option<Sharing>) {
        self.end_key();
        (self.tally.account, self.sharing)
    }

    /// Nothing more of the last key comes.
    pub fn end(&mut self) {
        self.end_key();
    }

    fn count_history(&mut self, past: &Past, bytes: u64) {
        self.tally.account.versions += 1;
        self.tally.account.add_history(past, bytes);
    }

    fn drop_entry(&mut self, e: &Entry) {
        self.count_lapsed(1, record_bytes(e));
        let Some(lapsed) = &mut self.lapsed else { return };
        each_span(&e.key, e.tid, e.value.as_deref(), |s| {
            lapsed.entry((s.place.region, s.place.offset)).or_insert((s.place, 0)).1 |= blocks_of(&s);
        });
    }

    /// A version of so many bytes stays.
    fn note_version(&mut self, e: &Entry, bytes: u64) {
        self.tally.add_to_segment(self.keep.starts.segment_of(e.tid), bytes);
        if let Some(batch) = &mut self.tally.batch {
            batch.needed.note_version(&e.key, e.tid);
        }
    }

    /// Bytes that an entry needs beyond what newer versions of its key do, and what is told apart as shared.
    fn needs(&mut self, e: &Entry, by: &By<'_>) -> u64 {
        let mut sum = record_bytes(e);
        self.note_version(e, sum);
        each_span(&e.key, e.tid, e.value.as_deref(), |s| {
            let blocks = blocks_of(&s);
            let at = (s.place.region, s.place.offset);
            let known = self.blocks.entry(at).or_default();
            let (is_first, more) = (*known == 0, blocks & !*known);
            *known |= blocks;
            if let Some(sharing) = &mut self.sharing {
                if is_first {
                    sharing.meet(at);
                }
                if sharing.take(&s.place, more, by) {
                    return;
                }
            }
            let bytes = block_bytes(&s.place, more);
            self.tally.add_to_segment(s.place.region, bytes);
            if let Some(batch) = &mut self.tally.batch {
                batch.needed.note_span(&s);
            }
            sum += bytes;
        });
        sum
    }
}

/// Since when moments count for an object, by its KEEPLESS record ([`Tid::MAX`]: none does).
pub fn kept_since(tid: Tid, value: Option<&[u8]>) -> Tid {
    match value {
        Some([_, ..]) => tid,
        _ => Tid::MAX,
    }
}

/// What an entry's record takes in a segment, about.
pub(crate) fn record_bytes(e: &Entry) -> u64 {
    let extent = e.key.get(OBJECT_END) == Some(&Kind::EXTENT.0);
    // An extent's record is small, whatever its chunk's map has come to.
    let value = if extent { 0 } else { e.value.as_ref().map_or(0, |v| v.len()) };
    RECORD_COST + (e.key.len() - OBJECT_END.min(e.key.len()) + value) as u64
}

/// As [`each_span`], as a list.
pub(crate) fn spans(e: &Entry) -> Vec<Span> {
    let mut spans = Vec::new();
    each_span(&e.key, e.tid, e.value.as_deref(), |s| spans.push(s));
    spans
}

/// Visits the spans of a version that is a chunk map (of one in no known form, those before what is not known: whoever
/// reads it will say so).
pub(crate) fn each_span(key: &[u8], tid: Tid, value: Option<&[u8]>, visit: impl FnMut(Span)) {
    if let Some(map) = value.filter(|_| key.get(OBJECT_END) == Some(&Kind::EXTENT.0)) {
        extent::ChunkMap::each_span(map, tid, visit);
    }
}

/// Which blocks of its stored extent a span needs, as bits.
pub(crate) fn blocks_of(s: &Span) -> u32 {
    let (first, last) = extent::blocks_needed(&s.place, s.len as usize);
    (u32::MAX >> (32 - (last - first))) << first
}

/// Bytes of some blocks of a stored extent.
pub(crate) fn block_bytes(place: &Place, blocks: u32) -> u64 {
    match place.codec {
        extent::Codec::Lz4 => u64::from(place.stored) * u64::from(blocks & 1),
        extent::Codec::Raw => u64::from(blocks.count_ones()) * (extent::BLOCK as u64 + 4).min(place.stored.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lapses_at_the_same_moment_is_added_up() {
        let (mut one, mut other) = (Lapses::default(), Lapses::default());
        one.add(5_000_000_000, 0, 100);
        other.add(5_000_000_000, 0, 30);
        other.add(5_000_000_000, 0, 3);
        one.join(other);
        assert_eq!(one.lapsed(4_000_000_000), (0, 0));
        assert_eq!(one.lapsed(6_000_000_000), (133, 3));
    }
}
