//! Collapsing: versions that no visible moment sees leave the index. docs/format.md §Retention.
//!
//! A *pass* goes through all runs in key order, in steps that end between objects. Each step writes the survivors of its
//! range to new runs and clips the old ones to what comes after it, so space comes back on the way and a crash in between
//! leaves a valid index; the next pass begins anew. Because a pass sees all versions of a key together and an object's
//! ATTR before its other keys, it knows until when each version was visible.
//!
//! Invariants: a pass uses a retention that is durable; what it drops is invisible by it and by every later one. A
//! tombstone stays while an older version of its key does. Whatever is in no table (memtable) is newer and untouched.
//!
//! Of a *keepless* object (it has a KEEPLESS record, which comes first of its keys) only the newest versions count, whatever the
//! grid and the labels say, and those that a clone shows as part of what it is now.
//!
//! Tried and dropped: dropping versions in ordinary merges (a merge of some runs can't know until when a version was
//! visible, nor what a tombstone still hides).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use parking_lot::MutexGuard;
use rustc_hash::FxHashMap;

use crate::clean::{Batch, Effort};
use crate::extent::{self, Place, Span};
use crate::fileset::CATALOGUE;
use crate::forget::Forgotten;
use crate::index::Entry;
use crate::index::ghost::Ghost;
use crate::index::levels::{Levels, Run};
use crate::index::memtable::Found;
use crate::index::merge::{Merged, run_source};
use crate::key::{KEY_HEAD, parse};
use crate::maintain::{RunWriter, State, ghosts_of};
use crate::retain::{FOREVER, Retention};
use crate::segment::Starts;
use crate::store::Store;
use crate::{FilesetId, Key, Kind, Result, Tid};

/// Bytes of tables that one step writes, about.
const STEP: u64 = 16 << 20;
/// A record's share of what is around it in a segment, about.
const RECORD_COST: u64 = 24;
/// Where an object's part of a key ends.
const OBJECT_END: usize = KEY_HEAD - 1;

/// What may be seen of the past, by fileset.
#[derive(Clone, Default)]
pub(crate) struct Keep {
    /// With the moment at which the fileset was removed, if it was.
    retentions: HashMap<FilesetId, (Arc<Retention>, Option<Tid>)>,
    /// Filesets whose tombstones hide what shows through.
    clones: BTreeSet<FilesetId>,
    forgotten: Forgotten,
    /// Moments that are part of what some clone is now, and of what a removed one was, ascending.
    cloned: [BTreeMap<FilesetId, Vec<Tid>>; 2],
    /// For the account.
    pub starts: Starts,
    now_ns: u64,
}

/// Bytes and versions, by when they lapse.
#[derive(Clone, Default, Debug)]
pub(crate) struct Lapses(BTreeMap<u64, (u64, u64)>);

impl Lapses {
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
    /// Their records' bytes, and the file data that only they need.
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
            ghosts: Vec::new(),
        }
    }

    /// Whether an entry begins another object than the one before.
    pub fn is_between_objects(&self, next: &Entry) -> bool {
        self.object != next.key[..OBJECT_END.min(next.key.len())]
    }

    fn begin_object(&mut self, key: &[u8]) {
        self.lapse_tombstones();
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
        self.key.clear();
        self.key.extend_from_slice(key);
        self.until = Tid::MAX;
        self.newest = true;
        self.lapse_tombstones();
        self.blocks.clear();
    }

    fn lapse_tombstones(&mut self) {
        for e in std::mem::take(&mut self.tombstones) {
            self.count_lapsed(record_bytes(&e));
            self.ghosts.push(Ghost::of(&e.key, e.tid));
        }
    }

    fn count_lapsed(&mut self, bytes: u64) {
        let account = &mut self.tally.account;
        account.lapsed_versions += 1;
        account.lapsed += bytes;
        let of = account.lapsed_by_fileset.entry(self.fileset).or_default();
        *of = (of.0 + 1, of.1 + bytes);
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
            let bytes = self.needs(&e);
            self.tally.lapses.add(when, self.keep.now_ns, bytes);
            self.count_history(&e, bytes);
            self.count_seen(&retention, &e, until, bytes);
        } else {
            let bytes = self.needs(&e);
            self.tally.account.live += bytes;
            self.tally.account.versions += 1;
        }
        for t in std::mem::take(&mut self.tombstones) {
            self.keep_tombstone(t, Fate::History, out)?;
        }
        out(e, if live { Fate::Live } else { Fate::History })
    }

    fn count_seen(&mut self, retention: &Retention, e: &Entry, until: Tid, bytes: u64) {
        let account = &mut self.tally.account;
        let steps = account.by_step.entry(self.fileset).or_insert_with(|| vec![0; retention.grid.steps.len() + 1]);
        steps[retention.step_that_sees(e.tid, until, Tid(self.keep.now_ns))] += bytes;
        if !retention.is_pinned(e.tid, until) {
            let yielding = account.yielding.entry(self.fileset).or_default();
            let unit = (self.keep.now_ns.saturating_sub(until.0).max(1).next_power_of_two() / 16).max(1);
            *yielding.entry(until.0.div_ceil(unit).saturating_mul(unit)).or_default() += bytes;
        }
    }

    fn keep_tombstone(&mut self, e: Entry, fate: Fate, out: &mut dyn FnMut(Entry, Fate) -> Result<()>) -> Result<()> {
        let bytes = record_bytes(&e);
        self.note_version(&e, bytes);
        self.count_history(&e, bytes);
        out(e, fate)
    }

    /// What is said once all entries have passed.
    pub fn finish(mut self) -> Tally {
        self.lapse_tombstones();
        self.tally
    }

    /// Nothing more of the last key comes.
    pub fn end(&mut self) {
        self.lapse_tombstones();
    }

    fn count_history(&mut self, e: &Entry, bytes: u64) {
        let account = &mut self.tally.account;
        account.versions += 1;
        account.history += bytes;
        *account.by_fileset.entry(self.fileset).or_default() += bytes;
        let age = self.keep.now_ns.saturating_sub(e.tid.0);
        account.by_age[AGES.iter().position(|a| age <= *a).unwrap_or(AGES.len() - 1)] += bytes;
    }

    fn drop_entry(&mut self, e: &Entry) {
        let mut bytes = record_bytes(e);
        each_span(&e.key, e.tid, e.value.as_deref(), |s| {
            let known = self.blocks.get(&(s.place.region, s.place.offset)).copied().unwrap_or(0);
            bytes += block_bytes(&s.place, blocks_of(&s) & !known);
        });
        self.count_lapsed(bytes);
    }

    /// A version of so many bytes stays.
    fn note_version(&mut self, e: &Entry, bytes: u64) {
        self.tally.add_to_segment(self.keep.starts.segment_of(e.tid), bytes);
        if let Some(batch) = &mut self.tally.batch {
            batch.needed.note_version(&e.key, e.tid);
        }
    }

    /// Bytes that an entry needs beyond what newer versions of its key do.
    fn needs(&mut self, e: &Entry) -> u64 {
        let mut sum = record_bytes(e);
        self.note_version(e, sum);
        each_span(&e.key, e.tid, e.value.as_deref(), |s| {
            let blocks = blocks_of(&s);
            let known = self.blocks.entry((s.place.region, s.place.offset)).or_default();
            let bytes = block_bytes(&s.place, blocks & !*known);
            *known |= blocks;
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
fn record_bytes(e: &Entry) -> u64 {
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
fn block_bytes(place: &Place, blocks: u32) -> u64 {
    match place.codec {
        extent::Codec::Lz4 => u64::from(place.stored) * u64::from(blocks & 1),
        extent::Codec::Raw => u64::from(blocks.count_ones()) * (extent::BLOCK as u64 + 4).min(place.stored.into()),
    }
}

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

/// A pass under way.
pub(crate) struct Pass {
    keep: Keep,
    /// What of the runs is still to be gone through.
    live: Vec<Run>,
    history: Vec<Run>,
    /// What it has made.
    made: [Run; 2],
    /// The segment that was written to when it began: from there on it does not see all that is needed.
    newest: u64,
    tally: Tally,
    read: u64,
    total: u64,
}

impl Pass {
    /// How many runs are part of it.
    fn runs(&self) -> usize {
        self.live.iter().chain(&self.history).chain(&self.made).filter(|r| !r.tables.is_empty()).count()
    }

    /// Whether a run is part of it.
    pub fn has(&self, run: &Run) -> bool {
        self.live.iter().chain(&self.history).chain(&self.made).any(|r| r.is(run))
    }
}

/// How far the cleaner is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Advance {
    /// Bytes done.
    pub done: u64,
    /// Bytes there are to do.
    pub total: u64,
}

impl Store {
    /// What may be seen of the past now. `instead`: as if a fileset had this retention.
    pub(crate) fn keep(&self, now_ns: u64, instead: Option<(FilesetId, &Retention)>) -> Result<Keep> {
        let mut keep = Keep { now_ns, ..Keep::default() };
        let filesets = self.index.read().filesets.clone();
        keep.clones = filesets.clones();
        for (moments, removed) in keep.cloned.iter_mut().zip([false, true]) {
            for (base, at) in filesets.shown_by(removed) {
                moments.entry(base).or_default().push(at);
            }
        }
        for (fileset, removed) in self.filesets() {
            let mut retention = self.retention(fileset)?;
            if let Some((_, other)) = instead.filter(|(f, _)| *f == fileset) {
                retention = Arc::new(other.clone());
            }
            keep.retentions.insert(fileset, (retention, removed));
        }
        keep.forgotten = self.forgotten()?;
        keep.starts = Starts::of(&self.segments.lock());
        Ok(keep)
    }

    /// What is needed for what, as if a fileset had another retention, if one is given. Changes nothing but for a
    /// checkpoint; reads the whole index.
    pub fn account(&self, now_ns: u64, instead: Option<(FilesetId, &Retention)>) -> Result<Account> {
        if !self.read_only {
            self.checkpoint()?;
        }
        let keep = self.keep(now_ns, instead)?;
        let levels = self.index.read().levels.clone();
        let mut merged = Merged::new(levels.live.iter().chain(&levels.history).map(run_source).collect())?;
        let mut sieve = Sieve::new(&keep, Tally::default());
        while let Some(e) = merged.next()? {
            sieve.pass(e, &mut |_, _| Ok(()))?;
            sieve.ghosts.clear();
        }
        Ok(sieve.finish().account)
    }

    /// Gives up, durably, what the filesets' grids don't keep at `now_ns`. Nothing is dropped yet.
    pub(crate) fn advance_retentions(&self, now_ns: u64) -> Result<()> {
        let mut changed = false;
        for (fileset, _) in self.filesets() {
            let before = self.retention(fileset)?;
            if !before.grid.keeps_all() {
                changed |= self.retain(fileset, now_ns, |r| r.advanced(Tid(now_ns)))? != before;
            }
        }
        if changed {
            self.sync()?;
        }
        Ok(())
    }

    /// Begins a pass over all there is, the memtable included.
    pub(crate) fn begin_pass(&self, state: &mut State, now_ns: u64) -> Result<()> {
        self.end_copy(state)?;
        self.flush_locked(state)?;
        let keep = self.keep(now_ns, None)?;
        // A label or a fileset that was taken away must not be back after a crash when what it kept is gone.
        self.sync()?;
        let levels = self.index.read().levels.clone();
        let total = levels.tables().map(|t| t.entries()).sum();
        let (live, history) = (levels.live.clone(), levels.history.clone());
        state.lapses = Lapses::default();
        state.grown.clear();
        state.passes += 1;
        // What it is to find changes what pays. What is chosen now needs no look of its own: the pass finds what is needed.
        state.batch = None;
        let tally = Tally { batch: self.next_batch(state, Effort::Steady)?, ..Tally::default() };
        let (newest, made) = (state.log.region, Default::default());
        state.pass = Some(Pass { keep, live, history, made, newest, tally, read: 0, total });
        Ok(())
    }

    /// Does a whole pass; `each` is told how far it is, while others get on.
    pub(crate) fn whole_pass(
        &self,
        state: &mut MutexGuard<'_, State>,
        now_ns: u64,
        each: &mut dyn FnMut(Advance),
    ) -> Result<()> {
        self.begin_pass(state, now_ns)?;
        while let Some(advance) = self.step_pass(state)? {
            // Whoever is told may take his time: nobody else waits for that.
            MutexGuard::unlocked_fair(state, || each(advance));
        }
        Ok(())
    }

    /// Does a step of the pass under way; says how far it is, `None` once it is over.
    pub(crate) fn step_pass(&self, state: &mut State) -> Result<Option<Advance>> {
        let Some(mut pass) = state.pass.take() else { return Ok(None) };
        let outcome = self.collapse_range(state, &mut pass);
        match outcome {
            Ok(true) => {
                let advance = Advance { done: pass.read, total: pass.total };
                state.pass = Some(pass);
                Ok(Some(advance))
            }
            Ok(false) => {
                self.end_pass(state, pass);
                Ok(None)
            }
            // The next one begins anew, after a while: what failed may fail again, and the cleaner has other work.
            Err(e) => {
                state.look_later(self.clock());
                Err(e)
            }
        }
    }

    fn end_pass(&self, state: &mut State, pass: Pass) {
        let Tally { account, segments, mut lapses, batch, .. } = pass.tally;
        tracing::debug!(
            versions = account.versions,
            lapsed = account.lapsed_versions,
            lapsed_kib = account.lapsed >> 10,
            "a pass has ended"
        );
        for s in self.segments.lock().iter_mut().take_while(|s| s.at.id != pass.newest) {
            s.live = segments.get(&s.at.id).copied().unwrap_or(0).min(s.end);
        }
        lapses.0.extend(std::mem::take(&mut state.lapses).0);
        state.lapses = lapses;
        state.account = Some(account);
        state.batch = batch;
    }

    /// Collapses the next range; false at the end.
    fn collapse_range(&self, state: &mut State, pass: &mut Pass) -> Result<bool> {
        let sources = pass.live.iter().chain(&pass.history).map(run_source).collect();
        let mut merged = Merged::new(sources)?;
        let mut ghosts = ghosts_of(pass.live.iter().chain(&pass.history)).into_iter().peekable();
        let mut sieve = Sieve::new(&pass.keep, std::mem::take(&mut pass.tally));
        let mut made = Vec::new();
        let mut outputs = [(); 2].map(|()| RunWriter::new(self.table_size));
        let (mut written, mut read) = (0, 0u64);
        let mut last: Vec<u8> = Vec::new();
        let mut with_attr: Vec<u8> = Vec::new();
        let mut more = false;
        let outcome = (|| {
            while let Some(e) = merged.next()? {
                if written >= STEP && sieve.is_between_objects(&e) {
                    more = true;
                    break;
                }
                read += 1;
                if read.is_multiple_of(4096) && self.flush_is_due(state) {
                    // One object may take long.
                    self.flush_locked(state)?;
                }
                last.clear();
                last.extend_from_slice(&e.key);
                if state.deriving && self.is_left_over(&mut with_attr, &e) {
                    continue;
                }
                while let Some(g) = ghosts.next_if(|g| *g.from <= *e.key) {
                    outputs[0].ghost(g);
                }
                written += (e.key.len() + 16) as u64;
                sieve.pass(e, &mut |e, fate| {
                    written += e.value.as_ref().map_or(0, |v| v.len()) as u64;
                    outputs[usize::from(fate == Fate::History)].add(self, &e, &mut made)
                })?;
                sieve.ghosts.drain(..).for_each(|g| outputs[0].ghost(g));
            }
            sieve.end();
            sieve.ghosts.drain(..).for_each(|g| outputs[0].ghost(g));
            if !more {
                ghosts.by_ref().for_each(|g| outputs[0].ghost(g));
            }
            let [live, history] = outputs;
            Ok([live.finish(self, &mut made)?, history.finish(self, &mut made)?])
        })();
        let runs = match outcome {
            Ok(runs) => runs,
            Err(e) => {
                made.into_iter().for_each(|at| drop(self.volumes.remove(at)));
                return Err(e);
            }
        };
        let mut tally = sieve.finish();
        self.replace_range(state, pass, runs, &last)?;
        // At once: should the pass be cut short, the next one does not meet any more what this step dropped.
        let forgotten = std::mem::take(&mut tally.forgotten);
        let segments = self.segments.lock();
        state.forgotten.extend(segments.iter().map(|s| s.at.id).filter(|id| forgotten.contains(id)));
        drop(segments);
        pass.tally = tally;
        pass.read += read;
        Ok(more)
    }

    /// Puts what a step made in the place of all up to `last`.
    fn replace_range(&self, state: &mut State, pass: &mut Pass, runs: [Option<Run>; 2], last: &[u8]) -> Result<()> {
        let mut next = Levels::clone(&self.index.read().levels);
        let count = |levels: &Levels| levels.live.len() + levels.history.len();
        let before = count(&next);
        next.live.retain(|r| !pass.has(r));
        next.history.retain(|r| !pass.has(r));
        assert_eq!(before - count(&next), pass.runs(), "nobody else replaces the runs of a pass");
        let clip = |runs: &[Run]| -> Vec<Run> {
            runs.iter().map(|r| r.above(last)).filter(|r| !r.tables.is_empty()).collect()
        };
        let (live, history) = (clip(&pass.live), clip(&pass.history));
        // What was cleaned on the way (for a gap) may still hold what this step drops.
        state.passes += 1;
        let mut made = pass.made.clone();
        for (made, run) in made.iter_mut().zip(runs) {
            made.tables.extend(run.into_iter().flat_map(|r| r.tables));
        }
        next.live.extend(live.iter().cloned());
        next.history.extend(history.iter().cloned());
        next.live.extend(Some(made[0].clone()).filter(|r| !r.tables.is_empty()));
        next.history.extend(Some(made[1].clone()).filter(|r| !r.tables.is_empty()));
        let kept: HashSet<*const _> = live.iter().chain(&history).flat_map(|r| &r.tables).map(Arc::as_ptr).collect();
        self.commit_levels(state, next, false)?;
        let before = pass.live.iter().chain(&pass.history).flat_map(|r| &r.tables);
        state.doomed.extend(before.filter(|t| !kept.contains(&Arc::as_ptr(t))).cloned());
        (pass.live, pass.history, pass.made) = (live, history, made);
        self.bury(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::ChunkMap;

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
