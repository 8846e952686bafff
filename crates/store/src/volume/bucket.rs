//! A bucket as a volume: a place of regions that are never written again, each a few objects. docs/format.md §Bucket.
//!
//! Invariants: an object is put once and never changed, but for what was damaged in it, so that putting it again is harmless; what is put under an epoch is that
//! of the store that has the epoch; opening, giving back and superblocks need no network. What is read is kept in a bounded cache.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::io::ErrorKind;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};

use super::{Region, RegionRef, SLOT_SIZE, Volume, VolumeKind};
use crate::checkpoint::{EPOCHS, is_claimed};
use crate::{Error, Result};

/// Bytes of the objects of a region, but for the last one.
pub const PART: u64 = 8 << 20;
/// What the cache keeps, and the least that is fetched.
const BLOCK: u64 = 256 << 10;
/// Where reads go on where others ended, so much is fetched at a time.
const STREAM: u64 = 4 << 20;

/// Objects below a prefix of a bucket. Names are of letters, digits, `.` and `/`. Every call ends within a bounded time, with an error
/// ([`Error::Io`]) if it must.
pub trait Bucket: Send + Sync {
    /// What users call it.
    fn name(&self) -> String;
    /// Puts objects; durable on return.
    fn put(&self, objects: Vec<(String, Vec<u8>)>) -> Result<()>;
    /// Puts an object if there is none of that name, which one of several who try at the same time can; says whether it did.
    fn put_new(&self, name: &str, bytes: Vec<u8>) -> Result<bool>;
    /// Bytes of an object; without a range, all. Of a range those that the object has, which may be none;
    /// [`std::io::ErrorKind::NotFound`] where there is no such object.
    fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Vec<u8>>;
    /// Objects whose names begin with `prefix`, ascending, from the first one after `after` on: names and bytes. Perhaps not all,
    /// but one at least, if there is one.
    fn list(&self, prefix: &str, after: &str) -> Result<Vec<(String, u64)>>;
    /// Deletes objects; those that are not there are of no account.
    fn delete(&self, names: &[String]) -> Result<()>;
    /// Why it can't be reached at the moment, if that is so.
    fn trouble(&self) -> Option<String> {
        None
    }
}

/// All objects that a store has put whose names begin with a prefix, from the first one after `after` on.
pub(crate) fn list_all(bucket: &dyn Bucket, prefix: &str, after: &str) -> Result<Vec<(String, u64)>> {
    let mut all = Vec::new();
    let mut after = after.to_owned();
    loop {
        let more = bucket.list(prefix, &after)?;
        let Some((last, _)) = more.last() else { return Ok(all) };
        after.clone_from(last);
        all.extend(more.into_iter().filter(|(name, _)| is_own(name)));
    }
}

/// Whether an object has a name that stores give: others are somebody else's.
fn is_own(name: &str) -> bool {
    let Some((kind, rest)) = name.split_once('/') else { return false };
    let shape: String = rest.chars().map(|c| if matches!(c, '0'..='9' | 'a'..='f') { '0' } else { c }).collect();
    let shapes = [("c", "00000000.0000000000000000"), ("e", "00000000"), ("r", "0000000000000000.00000000/0000")];
    shapes.contains(&(kind, &*shape))
}

/// A store that lies directly below the prefix of a bucket.
pub(crate) fn store_below(bucket: &dyn Bucket) -> Result<Option<String>> {
    let mut after = String::new();
    loop {
        let more = bucket.list("", &after)?;
        let Some((last, _)) = more.last() else { return Ok(None) };
        let Some((dir, _)) = more.iter().find_map(|(name, _)| name.split_once('/')) else {
            after.clone_from(last);
            continue;
        };
        let begun = bucket.list(&format!("{dir}/{EPOCHS}"), "")?;
        if begun.iter().any(|(name, _)| is_own(&name[dir.len() + 1..])) {
            return Ok(Some(dir.to_owned()));
        }
        // (What comes after all names that go on with a slash.)
        after = format!("{dir}0");
    }
}

/// Makes a bucket of the name that a volume has.
pub type OpenBucket = dyn Fn(&str) -> Arc<dyn Bucket> + Send + Sync;

/// How buckets are reached.
#[derive(Clone)]
pub struct Buckets(pub Arc<OpenBucket>);

impl fmt::Debug for Buckets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Buckets")
    }
}

thread_local! {
    static WAITS: Cell<bool> = const { Cell::new(true) };
}

/// Runs `f`, in which nothing waits for a bucket: what would have to fails with [`Error::Cold`].
pub fn without_waiting<T>(f: impl FnOnce() -> T) -> T {
    struct Back(bool);
    impl Drop for Back {
        fn drop(&mut self) {
            WAITS.set(self.0);
        }
    }
    let _back = Back(WAITS.replace(false));
    f()
}

/// Whether the caller may have to wait.
pub(crate) fn may_wait() -> bool {
    WAITS.get()
}

/// Bytes that are in a bucket, and not here.
#[derive(Clone)]
pub struct Cold {
    volume: Arc<BucketVolume>,
    at: RegionRef,
    offset: u64,
    len: u64,
}

impl Cold {
    /// Waits until they are in the cache.
    pub fn fetch(&self) -> Result<()> {
        self.volume.each_block(self.at, self.offset, self.len, true, &mut |_, _| ())
    }
}

impl fmt::Debug for Cold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bytes {} to {} of region {:x}", self.offset, self.offset + self.len, self.at.id)
    }
}

/// A region that is whole in a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Of the store that put it.
    pub epoch: u32,
    pub len: u64,
}

/// Region, epoch, block.
type BlockKey = (u64, u32, u32);

#[derive(Clone)]
struct BlockWeight;

impl Weighter<BlockKey, Arc<[u8]>> for BlockWeight {
    fn weight(&self, _: &BlockKey, block: &Arc<[u8]>) -> u64 {
        block.len() as u64 + 64
    }
}

/// See the module.
pub struct BucketVolume {
    bucket: Arc<dyn Bucket>,
    number: AtomicU16,
    epoch: AtomicU32,
    /// The store's uuid.
    store: [u8; 16],
    blocks: Cache<BlockKey, Arc<[u8]>, BlockWeight>,
    /// Blocks that are being fetched: region, first and last.
    flights: Mutex<Vec<(u64, Range<u64>)>>,
    landed: Condvar,
    /// What is there, as far as it is known.
    kept: Mutex<HashMap<u64, Kept>>,
    /// Bytes that were fetched of regions since the open.
    fetched: Mutex<HashMap<u64, u64>>,
    all_fetched: AtomicU64,
    /// Objects are mended one at a time.
    mending: Mutex<()>,
}

impl BucketVolume {
    /// `epoch`: that of this store, and `store` its uuid; `memory`: bytes for the cache.
    pub fn new(bucket: Arc<dyn Bucket>, number: u16, epoch: u32, store: [u8; 16], memory: u64) -> BucketVolume {
        BucketVolume {
            bucket,
            number: number.into(),
            epoch: epoch.into(),
            store,
            blocks: cache(memory),
            flights: Mutex::default(),
            landed: Condvar::new(),
            kept: Mutex::default(),
            fetched: Mutex::default(),
            all_fetched: 0.into(),
            mending: Mutex::default(),
        }
    }

    /// The objects themselves.
    pub fn objects(&self) -> &dyn Bucket {
        &*self.bucket
    }

    /// Its number in the store.
    pub fn number(&self) -> u16 {
        self.number.load(Ordering::Relaxed)
    }

    /// Under which epoch this store puts what it puts.
    pub fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// This store puts what it puts under another epoch from now on.
    pub(crate) fn begin(&self, epoch: u32) {
        self.epoch.store(epoch, Ordering::Relaxed);
    }

    /// Takes note that a region is whole there.
    pub(crate) fn note(&self, id: u64, kept: Kept) {
        self.kept.lock().insert(id, kept);
    }

    /// Takes note that a region is there no more, or soon.
    pub(crate) fn drop_note(&self, id: u64) {
        self.kept.lock().remove(&id);
    }

    /// What is known to be there.
    pub(crate) fn kept(&self) -> HashMap<u64, Kept> {
        self.kept.lock().clone()
    }

    /// The place of a region there, if it is whole there.
    pub(crate) fn place_of(&self, id: u64) -> Option<RegionRef> {
        self.kept.lock().get(&id).map(|kept| self.place(id, *kept))
    }

    pub(crate) fn place(&self, id: u64, kept: Kept) -> RegionRef {
        RegionRef { id, start: kept.epoch.into(), size: kept.len, volume: self.number(), second: None }
    }

    /// Bytes that were fetched since the open, of a region and of all.
    pub(crate) fn fetched(&self) -> (HashMap<u64, u64>, u64) {
        (self.fetched.lock().clone(), self.all_fetched.load(Ordering::Relaxed))
    }

    /// Has what was fetched of a region forgotten.
    pub(crate) fn cool(&self, id: u64) {
        self.fetched.lock().remove(&id);
    }

    /// Visits the blocks that some bytes are in, each with the offset of its first; those that are not here are fetched, or if the caller
    /// does not wait, it fails.
    fn each_block(
        self: &Arc<BucketVolume>,
        at: RegionRef,
        offset: u64,
        len: u64,
        waits: bool,
        visit: &mut dyn FnMut(u64, &[u8]),
    ) -> Result<()> {
        let end = (offset + len).min(at.size);
        let mut block = offset / BLOCK;
        while block * BLOCK < end {
            match self.blocks.get(&key(at, block)) {
                Some(bytes) => {
                    visit(block * BLOCK, &bytes);
                    block += 1;
                }
                None if waits => self.fetch(at, block, end.div_ceil(BLOCK), visit).map(|next| block = next)?,
                None => return Err(Error::Cold(Cold { volume: self.clone(), at, offset, len })),
            }
        }
        Ok(())
    }

    /// Fetches blocks from this one on, as far as they are in one object and not here; returns the first that was not visited.
    fn fetch(&self, at: RegionRef, from: u64, to: u64, visit: &mut dyn FnMut(u64, &[u8])) -> Result<u64> {
        let part = from * BLOCK / PART;
        let last = (((part + 1) * PART).min(at.size)).div_ceil(BLOCK);
        let goes_on = from > 0 && self.blocks.get(&key(at, from - 1)).is_some();
        let wanted = if goes_on { to.max(from + STREAM / BLOCK) } else { to }.min(last);
        let missing = (from..wanted).take_while(|b| self.blocks.get(&key(at, *b)).is_none()).count() as u64;
        let mut flight = from..from + missing.max(1);
        {
            let mut flights = self.flights.lock();
            let overlaps = |f: &(u64, Range<u64>)| f.0 == at.id && f.1.start < flight.end && flight.start < f.1.end;
            if flights.iter().any(|f| overlaps(f) && f.1.contains(&from)) {
                // Somebody else fetches it: once he is done, it is here, or it is for us to try.
                self.landed.wait(&mut flights);
                return Ok(from);
            }
            let next = flights.iter().filter(|f| overlaps(f)).map(|f| f.1.start).min();
            flight.end = next.map_or(flight.end, |start| start.min(flight.end));
            flights.push((at.id, flight.clone()));
        }
        let bytes = flight.start * BLOCK..(flight.end * BLOCK).min(at.size);
        let got = self.get(at, bytes.clone());
        if let Ok(got) = &got {
            for (i, chunk) in got.chunks(BLOCK as usize).enumerate() {
                self.blocks.insert(key(at, flight.start + i as u64), chunk.into());
            }
        }
        self.flights.lock().retain(|f| *f != (at.id, flight.clone()));
        self.landed.notify_all();
        let got = got?;
        *self.fetched.lock().entry(at.id).or_default() += got.len() as u64;
        self.all_fetched.fetch_add(got.len() as u64, Ordering::Relaxed);
        let mut next = flight.start;
        for chunk in got.chunks(BLOCK as usize).take((to.saturating_sub(flight.start)) as usize) {
            visit(next * BLOCK, chunk);
            next += 1;
        }
        Ok(next)
    }

    /// Puts the objects that some bytes are in anew, with these.
    fn mend(&self, at: RegionRef, bytes: &[u8], offset: u64) -> Result<()> {
        let _one = self.mending.lock();
        for range in in_objects(offset..offset + bytes.len() as u64) {
            let part = range.start / PART;
            let mut whole = self.get(at, part * PART..((part + 1) * PART).min(at.size))?;
            let from = (range.start - part * PART) as usize;
            let bytes = &bytes[(range.start - offset) as usize..(range.end - offset) as usize];
            whole[from..from + bytes.len()].copy_from_slice(bytes);
            self.bucket.put(vec![(part_name(at.id, at.start as u32, part), whole)])?;
            self.forget(at, range);
        }
        Ok(())
    }

    /// Has these bytes fetched anew by whoever reads them next.
    fn forget(&self, at: RegionRef, bytes: Range<u64>) {
        for block in bytes.start / BLOCK..bytes.end.min(at.size).div_ceil(BLOCK) {
            self.blocks.remove(&key(at, block));
        }
    }

    /// Bytes of a region that are in one object. What the object has lost reads as zeroes, as if it had been overwritten: then it is as
    /// damaged as can be, and no more than that is.
    fn get(&self, at: RegionRef, bytes: Range<u64>) -> Result<Vec<u8>> {
        let part = bytes.start / PART;
        let name = part_name(at.id, at.start as u32, part);
        let len = (bytes.end - bytes.start) as usize;
        let mut got = match self.bucket.get(&name, Some(bytes.start - part * PART..bytes.end - part * PART)) {
            // (Elsewhere nothing of this store is, and nothing of it is lost.)
            Err(e) if e.is_lost() && is_claimed(&*self.bucket, self.epoch(), &self.store)? => Vec::new(),
            got => got?,
        };
        if got.len() < len {
            let (bucket, n) = (self.bucket.name(), len - got.len());
            tracing::warn!(
                "{bucket}, object {name}: {n} of the {len} bytes from byte {} on are gone",
                bytes.start % PART
            );
        }
        got.resize(len, 0);
        Ok(got)
    }
}

/// What is fetched ahead must stay until it is read: that takes few shards, and room for what was not read twice.
fn cache(memory: u64) -> Cache<BlockKey, Arc<[u8]>, BlockWeight> {
    let mut options = OptionsBuilder::new();
    options.estimated_items_capacity((memory / BLOCK) as usize + 1).weight_capacity(memory);
    let options = options.shards(1).hot_allocation(0.5).build().expect("both capacities are given");
    Cache::with_options(options, BlockWeight, DefaultHashBuilder::default(), DefaultLifecycle::default())
}

fn key(at: RegionRef, block: u64) -> BlockKey {
    (at.id, at.start as u32, block as u32)
}

/// What the objects of regions are called.
pub(crate) const REGIONS: &str = "r/";

/// The object with a part of a region.
pub(crate) fn part_name(id: u64, epoch: u32, part: u64) -> String {
    format!("{REGIONS}{id:016x}.{epoch:08x}/{part:04x}")
}

/// Bytes of a region, by the objects that they are in.
fn in_objects(bytes: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let parts = bytes.start / PART..bytes.end.div_ceil(PART);
    parts.map(move |part| bytes.start.max(part * PART)..bytes.end.min((part + 1) * PART)).filter(|r| !r.is_empty())
}

/// The names of all parts of a region.
pub(crate) fn part_names(id: u64, kept: Kept) -> impl Iterator<Item = String> {
    (0..kept.len.div_ceil(PART).max(1)).map(move |part| part_name(id, kept.epoch, part))
}

/// The region and epoch that an object is a part of.
pub(crate) fn of_part(name: &str) -> Option<(u64, u32)> {
    let (id, rest) = name.strip_prefix(REGIONS)?.split_once('.')?;
    let (epoch, _) = rest.split_once('/')?;
    Some((u64::from_str_radix(id, 16).ok()?, u32::from_str_radix(epoch, 16).ok()?))
}

impl Volume for Arc<BucketVolume> {
    fn name(&self) -> String {
        self.bucket.name()
    }

    fn kind(&self) -> VolumeKind {
        VolumeKind::Bucket
    }

    fn numbered(&self, number: u16) {
        self.number.store(number, Ordering::Relaxed);
    }

    fn read_super(&self, _: usize) -> Result<Vec<u8>> {
        Ok(vec![0; SLOT_SIZE])
    }

    /// It has none: a store opens without its bucket.
    fn write_super(&self, _: usize, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn wipe_super(&self) -> Result<()> {
        Ok(())
    }

    fn create(&self, _: u64, _: u64) -> Result<Arc<dyn Region>> {
        Err(Error::Refused(format!("{} takes regions only whole", self.name())))
    }

    fn open(&self, at: RegionRef) -> Result<Arc<dyn Region>> {
        Ok(Arc::new(BucketRegion { volume: Arc::clone(self), at }))
    }

    fn shrink(&self, at: RegionRef, size: u64) -> Result<RegionRef> {
        Ok(RegionRef { size: size.min(at.size), ..at })
    }

    /// Objects are deleted when nothing that may be opened names them (`push.rs`).
    fn remove(&self, _: RegionRef) -> Result<()> {
        Ok(())
    }

    fn keep_only(&self, regions: &[RegionRef], _: bool) -> Result<()> {
        regions.iter().for_each(|at| self.note(at.id, Kept { epoch: at.start as u32, len: at.size }));
        Ok(())
    }

    fn usage(&self, _: u64) -> Result<(u64, u64)> {
        let used = self.kept.lock().values().map(|kept| kept.len).sum();
        Ok((used, used))
    }
}

struct BucketRegion {
    volume: Arc<BucketVolume>,
    at: RegionRef,
}

impl BucketRegion {
    fn not_writable(&self) -> Result<()> {
        Err(Error::Io {
            place: format!("{}, region {:x}", self.volume.name(), self.at.id),
            action: "write",
            source: Arc::new(ErrorKind::ReadOnlyFilesystem.into()),
        })
    }
}

impl Region for BucketRegion {
    fn place(&self) -> RegionRef {
        self.at
    }

    /// Fetched, and not kept: whoever wants it from the bucket itself wants it once.
    fn read_fresh(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let have = self.at.size.saturating_sub(offset).min(buf.len() as u64);
        buf[have as usize..].fill(0);
        for range in in_objects(offset..offset + have) {
            let bytes = &mut buf[(range.start - offset) as usize..(range.end - offset) as usize];
            bytes.copy_from_slice(&self.volume.get(self.at, range)?);
        }
        Ok(())
    }

    /// Beyond its bytes a region reads as zeroes, as anywhere.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let have = self.at.size.saturating_sub(offset).min(buf.len() as u64);
        buf[have as usize..].fill(0);
        self.volume.each_block(self.at, offset, have, may_wait(), &mut |start, block| {
            let from = start.max(offset);
            let to = (start + block.len() as u64).min(offset + have);
            if from < to {
                let bytes = &block[(from - start) as usize..(to - start) as usize];
                buf[(from - offset) as usize..(to - offset) as usize].copy_from_slice(bytes);
            }
        })
    }

    fn write_at(&self, _: &[u8], _: u64) -> Result<()> {
        self.not_writable()
    }

    fn flush(&self) -> Result<()> {
        self.not_writable()
    }

    fn mend(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.volume.mend(self.at, bytes, offset)
    }

    fn drop_cached(&self, offset: u64, len: u64) {
        self.volume.forget(self.at, offset..offset + len);
    }
}
