//! Whether all is in the bucket that should be, by the names and lengths of its objects. docs/format.md §Bucket.

use std::collections::HashMap;

use crate::Result;
use crate::checkpoint::{Checkpoint, is_claimed};
use crate::store::Store;
use crate::volume::{BucketVolume, PART, REGIONS, list_all, part_names};

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

impl Store {
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
