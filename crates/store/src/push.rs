//! What has been sealed goes to the bucket too; and from time to time a *checkpoint* says which regions there are a whole: an exact
//! prefix of the history, which can be opened from the bucket alone (`takeover.rs`). docs/format.md §Bucket.
//!
//! Invariants: a checkpoint is put when all that it names is there. An object is deleted only if neither the newest checkpoint nor
//! anything here names it, and if after that checkpoint was put nobody had taken the store over: so whoever takes it over after that
//! finds that checkpoint or a newer one, whole. Before an opening puts or deletes anything it begins an epoch: of two copies of a store only
//! one can. Nothing here holds a lock that others wait for while it waits for the bucket.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::checkpoint::{
    CHECKPOINTS, Checkpoint, Claimed, EPOCHS, begun_only, claim, epoch_name, is_a_copy, is_claimed, put_ours,
};
use crate::index::levels::Levels;
use crate::maintain::{Progress, State};
use crate::manifest::Manifest;
use crate::segment;
use crate::store::{SEGMENT_MIN, Store};
use crate::volume::{
    BucketVolume, Buckets, Kept, PART, REGIONS, Region, RegionRef, VolumeEntry, list_all, number_of, of_part,
    part_name, part_names, store_below,
};
use crate::{Error, Result, Tid};

/// Parts that are put at a time.
const PARALLEL: u64 = 4;
/// With so much that is new, a checkpoint is due in any case.
const DUE: u64 = 64 << 20;
/// Without anything new but what upkeep has changed, one is due so many times more seldom.
const SELDOM: u64 = 12;
/// Who needs room waits so long for something to get there.
const PATIENCE: Duration = Duration::from_secs(20);
/// Names in one request to delete.
const BATCH: usize = 1000;

/// How a store's bucket is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BucketState {
    /// The number of its volume.
    pub number: u16,
    /// All up to here could be opened from there alone.
    pub reached: Option<Tid>,
    /// Whether that is known: it could be asked since the open.
    pub known: bool,
    /// Bytes that are on their way there.
    pub left: u64,
    /// Bytes that are nowhere else.
    pub cold: u64,
    /// Bytes that were fetched since the open.
    pub fetched: u64,
    /// Why it can't be reached.
    pub trouble: Option<String>,
    /// Why the last step of what was to get there failed.
    pub failed: Option<String>,
    /// Who has taken the store over: nothing is put there any more.
    pub fenced: Option<String>,
}

/// What the bucket has, and what it is to have.
#[derive(Default)]
pub(crate) struct Reached {
    /// Whether it was looked at since the open.
    known: bool,
    fenced: Option<String>,
    /// Why the last step failed.
    failed: Option<String>,
    /// Whether this opening has taken it.
    owned: bool,
    /// Of the newest checkpoint: up to where, its generation, when it was put (by callers' clocks), and how much had been appended.
    tid: Option<Tid>,
    generation: u64,
    at: u64,
    appended: u64,
    /// The generation of the last one that was tried to be put.
    tried: u64,
    /// Checkpoints that the next one replaces.
    old: Vec<String>,
    /// Whether objects that nothing names were looked for since the open.
    swept: bool,
    /// Somebody wants a checkpoint.
    wanted: bool,
    /// Somebody goes on with it by himself; bytes that were put since the open.
    attended: bool,
    put: u64,
    left: u64,
}

impl Reached {
    /// The object of the newest checkpoint, if there is one.
    pub fn newest(&self) -> Option<String> {
        self.old.last().filter(|_| self.tid.is_some()).cloned()
    }

    /// Has another checkpoint put, though nothing is new.
    pub fn begin_anew(&mut self) {
        (self.tid, self.swept, self.wanted) = (None, false, true);
    }
}

/// Regions on their way.
pub(crate) struct Push {
    /// What is to be said once they are there; `None`: nothing.
    manifest: Option<(Manifest, u64)>,
    /// Keeps tables.
    _levels: Arc<Levels>,
    todo: VecDeque<Item>,
    appended: u64,
}

pub(crate) struct Item {
    region: Arc<dyn Region>,
    id: u64,
    len: u64,
    /// Bytes that are there.
    put: u64,
}

impl Store {
    /// How the bucket is, if there is one.
    pub fn bucket(&self) -> Option<BucketState> {
        let bucket = self.volumes.bucket()?;
        let cold = {
            let state = self.maintenance.lock();
            let all = self.regions_now(&state).into_iter().map(|(_, at)| at);
            all.filter(|at| self.volumes.is_cold(*at)).map(|at| at.size).sum()
        };
        let reach = self.reach.lock();
        Some(BucketState {
            number: bucket.number(),
            reached: reach.tid,
            known: reach.known,
            left: reach.left,
            cold,
            fetched: bucket.fetched().1,
            trouble: bucket.objects().trouble(),
            failed: reach.failed.clone(),
            fenced: reach.fenced.clone(),
        })
    }

    /// Whether somebody else is known to have taken the store over: what is in the bucket is his, and may go any time.
    pub(crate) fn is_fenced(&self) -> bool {
        self.reach.lock().fenced.is_some()
    }

    /// Has a checkpoint put to the bucket as soon as can be.
    pub fn want_push(&self) {
        self.reach.lock().wanted = true;
    }

    /// Whether somebody calls [`Store::step_push`] again and again: then who needs room waits for that rather than fail.
    pub fn attend_push(&self, attended: bool) {
        self.reach.lock().attended = attended;
    }

    /// Whether room may come by what reaches the bucket.
    pub fn may_gain_room(&self) -> bool {
        let Some(bucket) = self.volumes.bucket() else { return false };
        let reach = self.reach.lock();
        reach.attended && reach.fenced.is_none() && bucket.objects().trouble().is_none()
    }

    /// Waits until something more can give way; says whether it can. Not as long as nothing gets there.
    pub(crate) fn outwait_push(&self) -> bool {
        let Some(bucket) = self.volumes.bucket() else { return false };
        let (regions, mut put, mut since) = (bucket.kept().len(), self.reach.lock().put, Instant::now());
        self.want_push();
        while since.elapsed() < PATIENCE && self.may_gain_room() {
            std::thread::sleep(Duration::from_millis(10));
            if bucket.kept().len() > regions {
                return true;
            }
            let now = self.reach.lock().put;
            if now != put {
                (put, since) = (now, Instant::now());
            }
        }
        false
    }

    /// Goes on with what the bucket is to have: puts what has been sealed, and a checkpoint of it every `every_ns` where something has
    /// changed, and deletes what nothing names any more. Waits for the bucket, holding up nobody else.
    pub fn step_push(&self, now_ns: u64, every_ns: u64) -> Result<Progress> {
        let outcome = self.push_on(now_ns, every_ns);
        let mut reach = self.reach.lock();
        reach.failed = outcome.as_ref().err().map(Error::to_string);
        // What somebody wanted is tried again.
        reach.wanted |= outcome.is_err();
        outcome
    }

    fn push_on(&self, now_ns: u64, every_ns: u64) -> Result<Progress> {
        let mut pushing = self.pushing.lock();
        let Some(bucket) = self.volumes.bucket().filter(|b| !self.read_only && self.volumes.takes(b.number())) else {
            *pushing = None;
            return Ok(Progress::Idle);
        };
        if !self.learn(&bucket)? {
            *pushing = None;
            return Ok(Progress::Idle);
        }
        if pushing.is_none() && self.push_is_due(now_ns, every_ns) {
            if !self.own(&bucket)? {
                return Ok(Progress::Idle);
            }
            *pushing = self.begin_push(&bucket)?;
        }
        let Some(push) = pushing.as_mut() else {
            // (Whether it is back, is to be known though nobody needs it.)
            if bucket.objects().trouble().is_some() && !self.is_ours(&bucket)? {
                return Ok(Progress::Idle);
            }
            return self.sweep(&bucket);
        };
        if self.put_some(&bucket, push)? {
            return Ok(Progress::Worked);
        }
        let push = pushing.take().expect("it is there");
        if let Some((manifest, generation)) = push.manifest {
            self.put_checkpoint(&bucket, manifest, generation, now_ns, push.appended)?;
        }
        Ok(Progress::Worked)
    }

    /// Looks at what the bucket has; says whether it still is this store's to put something there.
    pub(crate) fn learn(&self, bucket: &BucketVolume) -> Result<bool> {
        {
            let reach = self.reach.lock();
            if reach.known {
                return Ok(reach.fenced.is_none());
            }
        }
        if !self.is_ours(bucket)? {
            self.reach.lock().known = true;
            return Ok(false);
        }
        let names = Checkpoint::names(bucket, bucket.epoch())?;
        let sb = self.volumes.superblock();
        let mut newest = None;
        let mut is_past = true;
        if let Some(name) = names.last() {
            newest = Checkpoint::named(bucket, name)?;
            is_past = match &newest {
                Some(c) if c.uuid != self.uuid => true,
                Some(c) => c.generation <= sb.generation && sb.openings.agree(c.opening, c.generation),
                None => Checkpoint::damaged_is_past(bucket, name, &sb)?,
            };
            if newest.is_none() && is_past {
                let bucket = bucket.objects().name();
                tracing::warn!("{bucket}, object {name}: the checkpoint is damaged, and a new one is put");
                self.want_push();
            }
        }
        if !is_past {
            self.fence(bucket, "what it became later, or another copy of it".into());
            self.reach.lock().known = true;
            return Ok(false);
        }
        let mut reach = self.reach.lock();
        if let Some(c) = newest.filter(|c| c.uuid == self.uuid) {
            c.kept().into_iter().for_each(|(id, kept)| bucket.note(id, kept));
            (reach.tid, reach.generation) = (Some(c.manifest.tid), c.generation);
        }
        (reach.known, reach.old) = (true, names);
        Ok(true)
    }

    /// Whether nobody has taken the store over.
    fn is_ours(&self, bucket: &BucketVolume) -> Result<bool> {
        let Some(newer) = Claimed::after(bucket.objects(), bucket.epoch())? else { return Ok(true) };
        if newer.is_of(&self.uuid, &self.volumes.superblock().openings) {
            self.note_epoch(bucket, newer.epoch)?;
            return Ok(true);
        }
        self.fence(bucket, newer.who);
        Ok(false)
    }

    fn fence(&self, bucket: &BucketVolume, who: String) {
        let mut reach = self.reach.lock();
        if reach.fenced.is_none() {
            tracing::error!(
                "{} was taken over by {who}: nothing of what is written here goes there any more",
                bucket.objects().name()
            );
        }
        (reach.fenced, reach.left) = (Some(who), 0);
    }

    /// Takes the bucket for this opening, before anything is put or deleted there; says whether it has it.
    pub(crate) fn own(&self, bucket: &BucketVolume) -> Result<bool> {
        if !self.learn(bucket)? || self.reach.lock().owned {
            return Ok(self.reach.lock().fenced.is_none());
        }
        let sb = self.volumes.superblock();
        let opening = sb.openings.last();
        if sb.openings.at(sb.generation) != opening {
            // Who comes after this one is killed must know the claim for his own.
            self.volumes.write_super(|_| ())?;
        }
        let next = bucket.epoch().checked_add(1).ok_or_else(|| Error::Refused("there are no more epochs".into()))?;
        if put_ours(bucket, &epoch_name(next), &self.claim())? {
            self.note_epoch(bucket, next)?;
        }
        // (Others may have been quicker, and gone on from there.)
        if !self.is_ours(bucket)? {
            return Ok(false);
        }
        let all = list_all(bucket.objects(), EPOCHS, "")?.into_iter().map(|(name, _)| name);
        let former: Vec<String> = all.filter(|name| *name < epoch_name(next)).collect();
        bucket.objects().delete(&former)?;
        self.reach.lock().owned = true;
        Ok(true)
    }

    /// What this opening says where it begins an epoch.
    fn claim(&self) -> Vec<u8> {
        claim(&self.uuid, self.volumes.superblock().openings.last().unwrap_or_default(), &self.who)
    }

    /// What is put from now on is of this epoch; durable on return.
    fn note_epoch(&self, bucket: &BucketVolume, epoch: u32) -> Result<()> {
        self.volumes.write_super(|sb| {
            if let Some(entry) = sb.entry(bucket.number()).cloned() {
                sb.volumes.put(VolumeEntry { epoch, ..entry });
            }
        })?;
        bucket.begin(epoch);
        Ok(())
    }

    fn push_is_due(&self, now_ns: u64, every_ns: u64) -> bool {
        let (tid, appended) = {
            let tail = self.log.tail();
            (tail.last, tail.appended)
        };
        let generation = self.volumes.superblock().generation;
        let mut reach = self.reach.lock();
        if reach.at == 0 {
            reach.at = now_ns;
        }
        let waited = now_ns.saturating_sub(reach.at);
        let is_new = reach.tid != Some(tid);
        std::mem::take(&mut reach.wanted)
            || is_new && (waited >= every_ns || appended.saturating_sub(reach.appended) >= DUE)
            || generation != reach.generation && waited >= every_ns.saturating_mul(SELDOM)
    }

    /// Ends the open segment, and takes note of all there is at that moment.
    fn begin_push(&self, bucket: &BucketVolume) -> Result<Option<Push>> {
        let mut state = self.maintenance.lock();
        if state.deriving || self.wiping.load(Ordering::Relaxed) {
            return Ok(None);
        }
        if self.index.read().frozen.is_some() {
            self.flush_locked(&mut state)?;
        }
        let is_whole = match self.seal_and_flush(&mut state) {
            // What has been sealed before goes there all the same, and may then give way.
            Err(Error::NoSpace { .. }) => false,
            outcome => outcome.map(|()| true)?,
        };
        let levels = self.index.read().levels.clone();
        let (put, tried) = {
            let reach = self.reach.lock();
            (reach.tid.map(|_| reach.generation), reach.tried)
        };
        if put == Some(self.volumes.superblock().generation) {
            return match self.reach.lock().tid == Some(state.tid) {
                true => Ok(None),
                false => Err(is_a_copy(bucket)),
            };
        }
        if tried == self.volumes.superblock().generation {
            // Whether that one was put, nobody knows.
            self.write_manifest(&mut state, &levels)?;
        }
        let generation = self.volumes.superblock().generation;
        let appended = state.appended;
        let mut manifest = self.manifest_of(&state, &levels, self.named());
        manifest.segments.pop();
        let todo = self.items(&manifest, &levels, bucket);
        drop(state);
        let push = Push { manifest: is_whole.then_some((manifest, generation)), _levels: levels, todo, appended };
        self.reach.lock().left = push.left();
        Ok(Some(push))
    }

    /// A checkpoint behind which the log has nothing.
    fn seal_and_flush(&self, state: &mut State) -> Result<()> {
        let mut tail = self.log.tail();
        tail.check()?;
        if tail.end() > segment::HEADER {
            self.next_segment(&mut tail, SEGMENT_MIN)?;
        }
        self.flush_from(state, tail)
    }

    /// What of a manifest the bucket does not have.
    fn items(&self, m: &Manifest, levels: &Levels, bucket: &BucketVolume) -> VecDeque<Item> {
        let regions = self.regions.read();
        let item = |region: &Arc<dyn Region>, len| Item { id: region.place().id, region: region.clone(), len, put: 0 };
        let own = m.segments.iter().filter(|s| s.pack.is_none()).map(|s| item(&regions[&s.at.id], s.end));
        let packs: Vec<Item> = self.packs.lock().iter().map(|p| item(p, p.place().size)).collect();
        let tables = levels.tables().map(|t| item(t.region(), t.len()));
        own.chain(packs).chain(tables).filter(|item| bucket.place_of(item.id).is_none()).collect()
    }

    /// Puts some parts; says whether there were any.
    fn put_some(&self, bucket: &BucketVolume, push: &mut Push) -> Result<bool> {
        while push.todo.front().is_some_and(|item| bucket.place_of(item.id).is_some()) {
            push.todo.pop_front();
        }
        let Some(item) = push.todo.front_mut() else { return Ok(false) };
        let mut objects = Vec::new();
        let mut at = item.put;
        while objects.len() < PARALLEL as usize && (at < item.len || item.len == 0 && objects.is_empty()) {
            let mut bytes = vec![0; PART.min(item.len - at) as usize];
            item.region.read_at(&mut bytes, at)?;
            objects.push((part_name(item.id, bucket.epoch(), at / PART), bytes));
            at += PART;
        }
        bucket.objects().put(objects)?;
        self.reach.lock().put += at.min(item.len) - item.put;
        item.put = at.min(item.len);
        if item.put == item.len {
            bucket.note(item.id, Kept { epoch: bucket.epoch(), len: item.len });
            push.todo.pop_front();
        }
        self.reach.lock().left = push.left();
        Ok(true)
    }

    /// Puts one region that is not there yet before all others; says whether it is there now.
    pub(crate) fn put_first(&self, bucket: &BucketVolume, region: Arc<dyn Region>, len: u64) -> Result<bool> {
        let id = region.place().id;
        let mut pushing = self.pushing.lock();
        let levels = || self.index.read().levels.clone();
        let push = pushing.get_or_insert_with(|| Push {
            manifest: None,
            _levels: levels(),
            todo: VecDeque::new(),
            appended: 0,
        });
        if push.todo.front().is_none_or(|first| first.id != id) {
            push.todo.push_front(Item { region, id, len, put: 0 });
        }
        self.put_some(bucket, push)?;
        // (What nobody goes on with must not keep tables.)
        pushing.take_if(|push| push.todo.is_empty() && push.manifest.is_none());
        Ok(bucket.place_of(id).is_some())
    }

    /// Puts the checkpoint of regions that are all there, and deletes what it makes superfluous.
    fn put_checkpoint(
        &self,
        bucket: &BucketVolume,
        mut manifest: Manifest,
        generation: u64,
        now_ns: u64,
        appended: u64,
    ) -> Result<()> {
        let kept = bucket.kept();
        if manifest.regions().any(|at| !kept.contains_key(&at.id)) {
            return Err(Error::Refused("some of what was put was given up meanwhile: it is put again".into()));
        }
        manifest.place(&|at: RegionRef| kept.get(&at.id).map_or(at, |k| bucket.place(at.id, *k)));
        manifest.log.region = 0;
        let sb = self.volumes.superblock();
        let checkpoint = Checkpoint {
            uuid: self.uuid,
            hash_key: self.hash_key,
            birth: self.birth,
            number: bucket.number(),
            next_volume: sb.next_volume,
            generation,
            opening: sb.openings.at(generation),
            manifest,
        };
        if !self.is_ours(bucket)? {
            return Ok(());
        }
        // (Somebody may have deleted what says so: without it nothing there can be opened.)
        if !is_claimed(bucket.objects(), bucket.epoch(), &self.uuid)?
            && !put_ours(bucket, &epoch_name(bucket.epoch()), &self.claim())?
        {
            return Err(is_a_copy(bucket));
        }
        let name = Checkpoint::name(bucket.epoch(), generation);
        self.reach.lock().tried = generation;
        if !put_ours(bucket, &name, &checkpoint.encode())? {
            return Err(is_a_copy(bucket));
        }
        let old = {
            let mut reach = self.reach.lock();
            (reach.tid, reach.generation) = (Some(checkpoint.manifest.tid), generation);
            (reach.at, reach.appended) = (now_ns, appended);
            let old = std::mem::take(&mut reach.old);
            reach.old.push(name.clone());
            old
        };
        if !self.is_ours(bucket)? {
            return Ok(());
        }
        let mut gone: Vec<String> = old.into_iter().filter(|other| *other != name).collect();
        gone.extend(self.give_up_unnamed(bucket, &checkpoint.kept()).into_iter().flat_map(|(id, k)| part_names(id, k)));
        let outcome = gone.chunks(BATCH).try_for_each(|names| bucket.objects().delete(names));
        if outcome.is_err() {
            // They are found by looking.
            self.reach.lock().swept = false;
        }
        outcome
    }

    /// What neither a checkpoint that names `named` nor anything here needs: nobody can rely on it any more.
    fn give_up_unnamed(&self, bucket: &BucketVolume, named: &HashMap<u64, Kept>) -> Vec<(u64, Kept)> {
        let state = self.maintenance.lock();
        let mut here: HashSet<u64> = self.regions_now(&state).into_iter().map(|(_, at)| at.id).collect();
        // (Of what has come back somebody may still read.)
        here.extend(state.waiting().map(|at| at.id));
        let unnamed: Vec<(u64, Kept)> =
            bucket.kept().into_iter().filter(|(id, _)| !named.contains_key(id) && !here.contains(id)).collect();
        unnamed.iter().for_each(|(id, _)| bucket.drop_note(*id));
        unnamed
    }

    /// Deletes objects that nothing names: a crash leaves such.
    fn sweep(&self, bucket: &BucketVolume) -> Result<Progress> {
        {
            let reach = self.reach.lock();
            // (Before there is a checkpoint, nothing tells what may be needed.)
            if reach.swept || !reach.owned || reach.tid.is_none() {
                return Ok(Progress::Idle);
            }
        }
        let mut gone = {
            // All but the newest checkpoint: a crash came before they were deleted.
            let mut reach = self.reach.lock();
            let newest = reach.old.pop();
            std::mem::replace(&mut reach.old, newest.into_iter().collect())
        };
        for (name, _) in list_all(bucket.objects(), REGIONS, "")? {
            let is_needed = |(id, epoch)| bucket.kept().get(&id).is_some_and(|kept| kept.epoch == epoch);
            if !of_part(&name).is_some_and(is_needed) {
                gone.push(name);
            }
        }
        if !self.is_ours(bucket)? {
            return Ok(Progress::Idle);
        }
        gone.chunks(BATCH).try_for_each(|names| bucket.objects().delete(names))?;
        self.reach.lock().swept = true;
        Ok(Progress::Worked)
    }

    /// Makes an empty place in a bucket part of the store. Returns its number.
    pub fn add_bucket(&self, name: &str, options: &crate::OpenOptions) -> Result<u16> {
        self.must_be_writable()?;
        let _one_at_a_time = self.moving.lock();
        let _nothing_on_its_way = self.pushing.lock();
        let mut sb = self.volumes.superblock();
        if let Some(there) = self.volumes.bucket() {
            return Err(Error::Refused(format!("the store has a bucket, {}: remove it first", there.objects().name())));
        }
        let number = number_of(sb.next_volume)?;
        let entry = VolumeEntry::of_bucket(number, name, 1);
        sb.volumes.put(entry.clone());
        let unreachable = || Error::Refused("buckets can't be reached here".into());
        let bucket = options.reach().bucket(&sb).ok_or_else(unreachable)?;
        must_be_apart(&bucket, options.buckets.as_ref().ok_or_else(unreachable)?)?;
        let owned = self.claim_first(&bucket)?;
        self.volumes.join_bucket(&entry, bucket, |sb| {
            sb.next_volume += 1;
            sb.volumes.put(entry.clone());
        })?;
        *self.reach.lock() = Reached { wanted: true, owned, ..Reached::default() };
        Ok(number)
    }

    /// Begins the first epoch; says whether it is of this opening.
    fn claim_first(&self, bucket: &BucketVolume) -> Result<bool> {
        let objects = bucket.objects();
        if list_all(objects, CHECKPOINTS, "")?.is_empty() {
            if put_ours(bucket, &epoch_name(1), &self.claim())? {
                return Ok(true);
            }
            // A try of ours that was interrupted.
            let others = !list_all(objects, EPOCHS, &epoch_name(1))?.is_empty();
            if !others && objects.get(&epoch_name(1), None)?.starts_with(&self.uuid) {
                return Ok(false);
            }
            return Err(begun_only(objects));
        }
        Err(Error::Refused(format!("{0} holds a store already: darner mount {0} opens it", objects.name())))
    }

    /// Deletes all that is in a bucket that is no volume any more, if it is this store's.
    pub(crate) fn clear_bucket(&self, bucket: &BucketVolume) -> Result<()> {
        *self.pushing.lock() = None;
        if !self.own(bucket)? {
            return Ok(());
        }
        // First what can be opened; last what says whose it is.
        for prefix in [CHECKPOINTS, REGIONS, EPOCHS] {
            let all = list_all(bucket.objects(), prefix, "")?.into_iter().map(|(name, _)| name);
            all.collect::<Vec<_>>().chunks(BATCH).try_for_each(|names| bucket.objects().delete(names))?;
        }
        *self.reach.lock() = Reached::default();
        Ok(())
    }
}

/// Refuses a prefix that lies within another store's, or has one directly below it.
fn must_be_apart(bucket: &BucketVolume, buckets: &Buckets) -> Result<()> {
    let name = bucket.objects().name();
    let above = |name: &str| name.rsplit_once('/').map(|(above, _)| above.to_owned()).filter(|n| n.contains("://"));
    for above in std::iter::successors(above(&name), |name| above(name)) {
        match list_all(&*buckets.0(&above), EPOCHS, "") {
            Ok(begun) if begun.is_empty() => {}
            Ok(_) => {
                return Err(Error::Refused(format!(
                    "{name} lies within {above}, where another store is: name another prefix"
                )));
            }
            // (Whoever may look only at his own prefix has it.)
            Err(e) => tracing::warn!("whether a store is at {above}, can't be told: {e}"),
        }
    }
    match store_below(bucket.objects())? {
        Some(below) => {
            Err(Error::Refused(format!("within {name} another store is, {name}/{below}: name another prefix")))
        }
        None => Ok(()),
    }
}

impl Push {
    fn left(&self) -> u64 {
        self.todo.iter().map(|item| item.len - item.put).sum()
    }
}
