//! Whether all is in the bucket that should be: by the names and lengths of its objects, and, where a scrub is told to read them, by
//! their bytes. docs/format.md §Bucket.

use std::collections::HashMap;
use std::sync::Arc;

use crate::Result;
use crate::checkpoint::{Checkpoint, is_claimed};
use crate::copying::{What, is_as_written};
use crate::scrub::ScrubReport;
use crate::store::Store;
use crate::volume::{BucketVolume, For, Kept, PART, REGIONS, Region, RegionRef, list_all, part_names};

/// What is gone from the bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gaps {
    /// Regions that are here too, and something of which is put anew.
    pub anew: u64,
    /// Whether a checkpoint is to be put: what is there could not be opened elsewhere as it was.
    pub is_wanting: bool,
    /// What is nowhere else, by objects.
    pub lost: Vec<Gap>,
}

/// Bytes of a region that are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The region.
    pub region: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// A region that is here and in the bucket.
pub(crate) struct Both {
    here: Arc<dyn Region>,
    kept: Kept,
    /// Bytes that it has.
    pub len: u64,
}

impl Store {
    /// What is here and in the bucket, as far as that is known.
    pub(crate) fn in_both(&self) -> Vec<Both> {
        let Some(bucket) = self.volumes.bucket() else { return Vec::new() };
        let mut kept = bucket.kept();
        let mut all: Vec<Arc<dyn Region>> = {
            let regions = self.regions.read();
            let segments = self.segments.lock();
            segments.iter().filter(|s| s.pack.is_none()).filter_map(|s| regions.get(&s.at.id)).cloned().collect()
        };
        all.extend(self.packs.lock().iter().cloned());
        let levels = self.index.read().levels.clone();
        all.extend(levels.tables().map(|t| t.region().clone()));
        all.retain(|region| !self.volumes.is_out_of_reach(region.place()));
        let of = |here: Arc<dyn Region>| {
            let kept = kept.remove(&here.place().id)?;
            Some(Both { here, kept, len: kept.len })
        };
        all.into_iter().filter_map(of).collect()
    }

    fn what_is(&self, region: u64) -> What {
        let levels = self.index.read().levels.clone();
        match levels.tables().find(|t| t.reference().region.id == region) {
            Some(table) => What::Table(table.parts()),
            None if self.packs.lock().iter().any(|p| p.place().id == region) => What::Pack,
            None => What::Segment,
        }
    }

    /// Compares some bytes of what is here with what the bucket has, from where a scrub is; says whether there is more. What is sound here,
    /// and something else there, is put anew.
    pub(crate) fn compare_some(&self, report: &mut ScrubReport) -> Result<bool> {
        let Some(bucket) = self.volumes.bucket().filter(|b| !self.read_only && self.volumes.takes(b.number())) else {
            return Ok(false);
        };
        {
            let _pushing = self.pushing.lock();
            if !self.learn(&bucket)? {
                return Ok(false);
            }
        }
        let left = self.in_both().into_iter().filter(|c| c.here.place().id >= report.at.region);
        let Some(c) = left.min_by_key(|c| c.here.place().id) else { return Ok(false) };
        let id = c.here.place().id;
        let from = if report.at.region == id { report.at.offset } else { 0 };
        let n = PART.min(c.len.saturating_sub(from)) as usize;
        let (mut here, mut there) = (vec![0; n], vec![0; n]);
        c.here.read_at(&mut here, from)?;
        self.volumes.open(bucket.place(id, c.kept))?.read_fresh(&mut there, from)?;
        report.bytes += n as u64;
        (report.at.region, report.at.offset) = match here == there && from + (n as u64) < c.len {
            true => (id, from + n as u64),
            false => (id + 1, 0),
        };
        if here != there && is_as_written(&self.what_is(id), &c.here, c.len, &self.uuid)? {
            let mut pushing = self.pushing.lock();
            let state = self.maintenance.lock();
            // (It may be gone meanwhile, was put anew, or is there only.)
            let is_here = |(_, at): &(For, RegionRef)| at.id == id && !self.volumes.is_out_of_reach(*at);
            if bucket.kept().get(&id) == Some(&c.kept) && self.regions_now(&state).iter().any(is_here) {
                tracing::warn!("{}: region {id:x} is damaged there, and is put anew", bucket.objects().name());
                report.healed += 1;
                bucket.drop_note(id);
                *pushing = None;
                self.reach.lock().begin_anew();
            }
        }
        Ok(true)
    }

    /// Looks for what is gone from the bucket. [`Store::step_push`] puts anew what is here.
    pub fn find_gaps(&self) -> Result<Gaps> {
        // Nobody puts or deletes anything meanwhile, nor relies, further down, on what is known to be there.
        let mut pushing = self.pushing.lock();
        let Some(bucket) = self.volumes.bucket().filter(|b| !self.read_only && self.volumes.takes(b.number())) else {
            return Ok(Gaps::default());
        };
        if !self.learn(&bucket)? {
            return Ok(Gaps::default());
        }
        let lens: HashMap<String, u64> = list_all(bucket.objects(), REGIONS, "")?.into_iter().collect();
        let is_claimed = is_claimed(bucket.objects(), bucket.epoch(), &self.uuid)?;
        let mut found = Gaps { is_wanting: !is_claimed || !self.has_checkpoint(&bucket)?, ..Gaps::default() };
        // Those that there are, and whether they can be read here.
        let state = self.maintenance.lock();
        let all = self.regions_now(&state).into_iter();
        let now: HashMap<u64, bool> = all.map(|(_, at)| (at.id, !self.volumes.is_out_of_reach(at))).collect();
        for (id, kept) in bucket.kept() {
            let parts = (0..).step_by(PART as usize).zip(part_names(id, kept));
            let gaps: Vec<Gap> = parts
                .filter_map(|(at, name)| {
                    let (len, there) = (PART.min(kept.len - at), lens.get(&name).copied());
                    let gone = there.is_none_or(|there| there < len);
                    gone.then(|| Gap { region: id, offset: at + there.unwrap_or(0), len: len - there.unwrap_or(0) })
                })
                .collect();
            if gaps.is_empty() {
                continue;
            }
            match now.get(&id) {
                // (Elsewhere nothing of this store is, and nothing of it is lost.)
                Some(false) => found.lost.extend(gaps.into_iter().filter(|_| is_claimed)),
                is_here => {
                    found.is_wanting = true;
                    found.anew += u64::from(is_here.is_some());
                    bucket.drop_note(id);
                }
            }
        }
        drop(state);
        if found.is_wanting {
            let (name, anew) = (bucket.objects().name(), found.anew);
            tracing::warn!("{name}: objects are gone, {anew} regions and a checkpoint are put anew");
            *pushing = None;
            self.reach.lock().begin_anew();
        }
        Ok(found)
    }

    /// Whether the newest checkpoint is there as it was put. (Without one, one is to come anyway.)
    fn has_checkpoint(&self, bucket: &BucketVolume) -> Result<bool> {
        let Some(newest) = self.reach.lock().newest() else { return Ok(true) };
        match Checkpoint::names(bucket, bucket.epoch())?.contains(&newest) {
            true => Ok(Checkpoint::named(bucket, &newest)?.is_some()),
            false => Ok(false),
        }
    }
}
