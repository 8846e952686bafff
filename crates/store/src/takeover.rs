//! Opening a store from its bucket alone, on another machine or after the loss of this one's disks. docs/format.md §Bucket.
//!
//! Who takes it over begins the next epoch, which one only of several can; then the newest checkpoint is what the store is. It is put
//! once more under the new epoch, so that whoever comes next finds that one, whatever the old owner still does. The index comes to the
//! local volume, everything else stays in the bucket until it is needed. The local volume is a store once a superblock is on it, which is
//! the last to be written: interrupted before, it is all done anew.

use std::collections::HashMap;
use std::sync::Arc;

use crate::checkpoint::{Checkpoint, EPOCHS, begun_only, claim, epoch_name, put_ours};
use crate::collapse::Advance;
use crate::index::table::TableRef;
use crate::manifest::Position;
use crate::opening;
use crate::recover::{clear_supers, entry, open_with};
use crate::segment::{self, Segment};
use crate::store::{SEGMENT_MIN, Store};
use crate::superblock::{Superblock, VERSION};
use crate::volume::{BucketVolume, Copies, RegionRef, There, Tier, Volume, VolumeEntry, Volumes, list_all, number_of};
use crate::{Error, OpenOptions, Result, SIZE_MIN};

/// Bytes that are copied in one go.
const CHUNK: u64 = 4 << 20;
/// What claims of the same epoch by others are tried again.
const TRIES: usize = 5;

impl Store {
    /// Makes a store on an empty local volume of what has reached a bucket, and opens it. The one that put it there can put nothing more.
    /// `name`: of the bucket; `each` is told how much of the index has come.
    pub fn take_over(
        name: &str,
        local: Arc<dyn Volume>,
        options: &OpenOptions,
        each: &mut dyn FnMut(Advance),
    ) -> Result<Store> {
        let (_, size) = local.usage(0)?;
        if size < SIZE_MIN {
            return Err(Error::Refused(format!("{} has {size} bytes; it needs {SIZE_MIN} at least", local.name())));
        }
        let buckets = options.buckets.as_ref().ok_or_else(|| Error::Refused("buckets can't be reached here".into()))?;
        let probe = BucketVolume::new(buckets.0(name), 0, 0, [0; 16], 1 << 20);
        let (epoch, found) = begin_epoch(&probe, &options.who)?;
        let mut checkpoint = found;
        checkpoint.generation += 1;
        let name_of = Checkpoint::name(epoch, checkpoint.generation);
        if !put_ours(&probe, &name_of, &checkpoint.encode())? {
            return Err(Error::Refused(format!("{name} was taken over by somebody else just now")));
        }
        let bucket = VolumeEntry::of_bucket(checkpoint.number, name, epoch);
        let number = number_of(checkpoint.next_volume)?;
        local.numbered(number);
        clear_supers(&*local)?;
        local.keep_only(&[], false)?;
        let sb = Superblock {
            version: VERSION,
            generation: checkpoint.generation,
            attempt: 0,
            uuid: checkpoint.uuid,
            hash_key: checkpoint.hash_key,
            birth: checkpoint.birth,
            manifest: RegionRef { id: 0, start: 0, size: 0, volume: number, second: None },
            manifest_len: 0,
            copies: Copies::One,
            kept_twice: Default::default(),
            next_volume: u32::from(number) + 1,
            volumes: [bucket, entry(&*local, number, 0, Tier::Hot)].into_iter().collect(),
            roster: None,
            homes: vec![number],
            homes_since: 0,
            openings: Default::default(),
        };
        let there = HashMap::from([(number, There { volume: local.clone(), sign: 0 })]);
        let volumes = Volumes::new(&sb, &there, options.reach().bucket(&sb));
        let mut m = checkpoint.manifest;
        let total = m.live.iter().chain(&m.history).flat_map(|run| &run.tables).map(|t| t.len).sum();
        let mut done = 0;
        for t in m.live.iter_mut().chain(&mut m.history).flat_map(|run| &mut run.tables) {
            t.region = fetch_table(&volumes, &*local, t)?;
            done += t.len;
            each(Advance { done, total });
        }
        let open = local.create(m.next_region, 16 * SEGMENT_MIN)?;
        open.write_at(&segment::header(&sb.uuid, open.place(), m.tid), 0)?;
        open.flush()?;
        m.log = Position { region: m.next_region, offset: segment::HEADER, chain: 0 };
        m.segments.push(Segment::open(open.place(), m.tid));
        m.next_region += 1;
        open_with(volumes, options, sb, m, each)
    }
}

/// Begins the next epoch of a bucket; returns it, and what the store was at the end of the one before.
fn begin_epoch(bucket: &BucketVolume, who: &str) -> Result<(u32, Checkpoint)> {
    let objects = bucket.objects();
    let nothing = || Error::NotAStore(format!("{} holds no darner store that could be opened", objects.name()));
    for _ in 0..TRIES {
        let newest = list_all(objects, EPOCHS, "")?.pop().ok_or_else(nothing)?.0;
        let last = u32::from_str_radix(&newest[EPOCHS.len()..], 16).map_err(|_| nothing())?;
        // (Nobody is fenced for nothing.)
        let before = newest_sound(bucket, last)?.ok_or_else(|| begun_only(objects))?;
        let epoch = last.checked_add(1).ok_or_else(nothing)?;
        if put_ours(bucket, &epoch_name(epoch), &claim(&before.uuid, opening::draw()?, who))? {
            // What its owner has put meanwhile counts.
            let found = newest_sound(bucket, last)?.ok_or_else(nothing)?;
            return Ok((epoch, found));
        }
    }
    Err(Error::Refused(format!("others take {} over at the same time", objects.name())))
}

/// The newest checkpoint of an epoch. What older ones name may be deleted.
fn newest_sound(bucket: &BucketVolume, epoch: u32) -> Result<Option<Checkpoint>> {
    let Some(name) = Checkpoint::names(bucket, epoch)?.pop() else { return Ok(None) };
    let damaged = || {
        Error::Refused(format!(
            "{}, object {name}: the checkpoint is damaged, and without it nothing there can be opened: the store puts a new one once it is \
             mounted where its other volumes are; or a former version of the object is put there, where the bucket keeps such",
            bucket.objects().name()
        ))
    };
    Checkpoint::named(bucket, &name)?.ok_or_else(damaged).map(Some)
}

/// Copies a table to the local volume; returns where it is. (What is damaged is noticed when it is opened.)
fn fetch_table(volumes: &Volumes, local: &dyn Volume, t: &TableRef) -> Result<RegionRef> {
    let source = volumes.open(t.region)?;
    let target = local.create(t.region.id, t.len)?;
    let mut buf = vec![0; CHUNK.min(t.len) as usize];
    for at in (0..t.len).step_by(CHUNK as usize) {
        let n = CHUNK.min(t.len - at) as usize;
        source.read_at(&mut buf[..n], at)?;
        target.write_at(&buf[..n], at)?;
    }
    target.flush()?;
    Ok(target.place())
}
