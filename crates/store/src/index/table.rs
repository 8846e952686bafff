//! A table: an immutable sorted file of versions. docs/format.md §Table.
//!
//! Blocks of about [`BLOCK_TARGET`] bytes (LZ4 where it helps, checksum behind), a Bloom filter over the keys, a list
//! of the blocks, the ghosts, and a footer at the very end. All but the blocks stays in memory while the table is open.
//!
//! The list says of each block its highest tid, so that whoever looks for what changed skips what did not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use quick_cache::{Weighter, sync::Cache};

use super::ghost::{self, Ghost};
use super::{Entry, bloom};
use crate::codec::{Reader, crc_at, hash_key, is_sealed, put_bytes, put_varint};
use crate::heal::read_good;
use crate::store::Value;
use crate::volume::{Region, RegionRef};
use crate::{Error, Result, Tid};

const BLOCK_TARGET: usize = 8 << 10;
/// Most blocks that in a row are not tried to be packed.
const PAUSE_MAX: u32 = 7;
/// Most ghosts for each block.
const GHOSTS: usize = 4;
const MAGIC: &[u8; 8] = b"DARNTBL2";
/// As versions 1 to 3 of the format wrote it: without the blocks' highest tids, and without ghosts.
const MAGIC_1: &[u8; 8] = b"DARNTBL1";
/// Bytes of the footer.
pub const FOOTER: usize = 72;

/// Decoded blocks by (region, offset).
pub type BlockCache = Cache<(u64, u64), Arc<[u8]>, BlockWeight>;

/// Counts a cached block by its bytes.
#[derive(Clone)]
pub struct BlockWeight;

impl Weighter<(u64, u64), Arc<[u8]>> for BlockWeight {
    fn weight(&self, _: &(u64, u64), block: &Arc<[u8]>) -> u64 {
        block.len() as u64 + 64
    }
}

/// A table as the manifest names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableRef {
    pub region: RegionRef,
    /// Bytes from the start of the region to the end of the footer.
    pub len: u64,
}

/// Builds one table in memory.
pub struct Builder {
    region: u64,
    out: Vec<u8>,
    block: Vec<u8>,
    last_key: Vec<u8>,
    blocks: Vec<u8>,
    n_blocks: u64,
    hashes: Vec<u64>,
    entries: u64,
    tids: (Tid, Tid),
    /// Highest tid of each block.
    newest: Vec<Tid>,
    ghosts: Vec<Ghost>,
    /// How many ghosts there were when the block began.
    ghosts_before: usize,
    /// Blocks that are not tried to be packed, because the last ones were in vain, and how many of those there are from now on.
    untried: u32,
    pause: u32,
}

impl Builder {
    /// A builder for the table that will be region `region`.
    pub fn new(region: u64) -> Builder {
        Builder {
            region,
            out: Vec::new(),
            block: Vec::new(),
            last_key: Vec::new(),
            blocks: Vec::new(),
            n_blocks: 0,
            hashes: Vec::new(),
            entries: 0,
            tids: (Tid::MAX, Tid::ZERO),
            newest: Vec::new(),
            ghosts: Vec::new(),
            ghosts_before: 0,
            untried: 0,
            pause: 0,
        }
    }

    /// Notes what was dropped about here. Some become one, so that they never come to more than the blocks.
    pub fn ghost(&mut self, g: Ghost) {
        let many = self.ghosts.len() - self.ghosts_before >= GHOSTS;
        match self.ghosts.last_mut() {
            Some(last) if many => last.join(&g),
            _ => self.ghosts.push(g),
        }
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.out.len() + self.block.len()
    }

    /// Adds an entry; they come in table order.
    pub fn add(&mut self, e: &Entry) {
        if self.entries == 0 || *self.last_key != *e.key {
            self.hashes.push(hash_key(&e.key));
        }
        let mut shared = 0;
        if self.block.is_empty() {
            put_varint(&mut self.blocks, self.out.len() as u64);
            put_bytes(&mut self.blocks, &e.key);
            self.blocks.extend_from_slice(&e.tid.0.to_le_bytes());
            self.n_blocks += 1;
            self.newest.push(e.tid);
        } else {
            shared = self.last_key.iter().zip(&*e.key).take_while(|(a, b)| a == b).count();
        }
        put_varint(&mut self.block, shared as u64);
        put_bytes(&mut self.block, &e.key[shared..]);
        self.block.extend_from_slice(&e.tid.0.to_le_bytes());
        match &e.value {
            None => put_varint(&mut self.block, 0),
            Some(v) => {
                put_varint(&mut self.block, v.len() as u64 + 1);
                self.block.extend_from_slice(v);
            }
        }
        self.last_key.clear();
        self.last_key.extend_from_slice(&e.key);
        self.entries += 1;
        self.tids = (self.tids.0.min(e.tid), self.tids.1.max(e.tid));
        if let Some(newest) = self.newest.last_mut() {
            *newest = e.tid.max(*newest);
        }
        if self.block.len() >= BLOCK_TARGET {
            self.end_block();
        }
    }

    fn end_block(&mut self) {
        if self.block.is_empty() {
            return;
        }
        let start = self.out.len();
        match self.pack() {
            Some(packed) => {
                self.out.push(1);
                put_varint(&mut self.out, self.block.len() as u64);
                self.out.extend_from_slice(&packed);
            }
            None => {
                self.out.push(0);
                self.out.extend_from_slice(&self.block);
            }
        }
        self.seal(start);
        put_varint(&mut self.blocks, (self.out.len() - start) as u64);
        self.block.clear();
        self.ghosts_before = self.ghosts.len();
    }

    /// The block packed, if that pays. What is next to one that it did not pay for is mostly like it (chunk maps of files that
    /// were written at random): the more in a row, the more seldom it is tried.
    fn pack(&mut self) -> Option<Vec<u8>> {
        if self.untried > 0 {
            self.untried -= 1;
            return None;
        }
        let packed = lz4_flex::block::compress(&self.block);
        let pays = packed.len() + packed.len() / 8 < self.block.len();
        self.pause = if pays { 0 } else { (2 * self.pause + 1).min(PAUSE_MAX) };
        self.untried = self.pause;
        pays.then_some(packed)
    }

    /// Puts the checksum of what was written since `start` behind it.
    fn seal(&mut self, start: usize) {
        let crc = crc_at(self.region, start as u64, &self.out[start..]);
        self.out.extend_from_slice(&crc.to_le_bytes());
    }

    /// The table's bytes; `None` if nothing was added. One of ghosts alone has no blocks.
    pub fn finish(mut self) -> Option<Vec<u8>> {
        if self.entries == 0 && self.ghosts.is_empty() {
            return None;
        }
        self.end_block();
        self.ghosts.sort();
        if let Some(last) = self.ghosts.last().filter(|g| g.from > self.last_key) {
            // A run is clipped by whole tables: this one must not go before what it says of later keys.
            self.last_key.clone_from(&last.from);
        }
        let filter_at = self.out.len();
        self.out.extend_from_slice(&bloom::build(&self.hashes));
        self.seal(filter_at);
        let list_at = self.out.len();
        put_varint(&mut self.out, self.n_blocks);
        self.out.extend_from_slice(&self.blocks);
        put_bytes(&mut self.out, &self.last_key);
        for newest in &self.newest {
            put_varint(&mut self.out, self.tids.1.0 - newest.0);
        }
        self.seal(list_at);
        let ghosts_at = self.out.len();
        ghost::encode(&self.ghosts, &mut self.out);
        self.seal(ghosts_at);
        let footer_at = self.out.len();
        self.out.extend_from_slice(MAGIC);
        for v in [filter_at as u64, list_at as u64, footer_at as u64, self.entries, self.tids.0.0, self.tids.1.0] {
            self.out.extend_from_slice(&v.to_le_bytes());
        }
        self.out.extend_from_slice(&(ghosts_at as u64).to_le_bytes());
        self.out.extend_from_slice(&[0; 4]);
        self.seal(footer_at);
        Some(self.out)
    }
}

struct BlockRef {
    offset: u64,
    len: u32,
    first_key: Box<[u8]>,
    first_tid: Tid,
    newest: Tid,
}

/// An open table.
pub struct Table {
    region: Arc<dyn Region>,
    len: u64,
    blocks: Vec<BlockRef>,
    filter: Vec<u8>,
    last_key: Vec<u8>,
    entries: u64,
    tids: (Tid, Tid),
    ghosts: Vec<Ghost>,
    /// Where filter, block list, ghosts and footer begin, and where that ends.
    marks: Vec<u64>,
    rot: AtomicU8,
    /// Whether it is durable: the first manifest that names it sees to that.
    durable: AtomicBool,
}

/// Of a table's rot: none known, seen, told to the next open, and told to this one, which could not help it.
const SEEN: u8 = 1;
const TOLD: u8 = 2;
const MARKED: u8 = 3;

impl Table {
    /// Opens a table, verifying footer, filter and block list.
    pub fn open(region: Arc<dyn Region>, len: u64) -> Result<Table> {
        Table::open_as(region, len, false)
    }

    /// The same, also where a block is known to be rotten ([`Table::tell_of_rot`]).
    pub fn open_marked(region: Arc<dyn Region>, len: u64) -> Result<Table> {
        Table::open_as(region, len, true)
    }

    fn open_as(region: Arc<dyn Region>, len: u64, marked: bool) -> Result<Table> {
        let id = region.place().id;
        let corrupt = |what| Error::Corrupt {
            place: format!("region {id:x}"),
            what,
            expected: "a table".into(),
            found: format!("{len} bytes that are none"),
        };
        let footer_at = len.checked_sub(FOOTER as u64).ok_or_else(|| corrupt("table footer"))?;
        let (footer, rot) = match read_sealed(&*region, footer_at, len, "table footer") {
            Err(e) if marked => (read_marked(&*region, footer_at).ok_or(e)?, MARKED),
            footer => (footer?, 0),
        };
        let mut r = Reader::new(&footer);
        let first = match r.take(8) {
            Some(magic) if magic == MAGIC => false,
            Some(magic) if magic == MAGIC_1 => true,
            _ => return Err(corrupt("table footer")),
        };
        let mut number = || r.u64().ok_or_else(|| corrupt("table footer"));
        let (filter_at, list_at, end) = (number()?, number()?, number()?);
        let (entries, tids) = (number()?, (Tid(number()?), Tid(number()?)));
        let ghosts_at = number()?;
        let list_end = if first { end } else { ghosts_at };
        if !(filter_at < list_at && list_at < list_end && list_end <= end && end == footer_at) {
            return Err(corrupt("table footer"));
        }
        let filter = read_sealed(&*region, filter_at, list_at, "table filter")?;
        let list = read_sealed(&*region, list_at, list_end, "table block list")?;
        let (blocks, last_key) =
            parse_blocks(&list, filter_at, tids.1, first).ok_or_else(|| corrupt("table block list"))?;
        let ghosts = match first {
            true => Vec::new(),
            false => {
                let stored = read_sealed(&*region, ghosts_at, end, "table ghosts")?;
                ghost::decode(&stored).ok_or_else(|| corrupt("table ghosts"))?
            }
        };
        if blocks.is_empty() && ghosts.is_empty() {
            return Err(corrupt("table block list"));
        }
        let mut marks = vec![filter_at, list_at, list_end, end, len];
        marks.dedup();
        let (rot, durable) = (rot.into(), AtomicBool::new(true));
        Ok(Table { region, len, blocks, filter, last_key, entries, tids, ghosts, marks, rot, durable })
    }

    /// Opens one that was just written, and not flushed.
    pub fn written(region: Arc<dyn Region>, len: u64) -> Result<Table> {
        Ok(Table { durable: AtomicBool::new(false), ..Table::open(region, len)? })
    }

    pub fn is_durable(&self) -> bool {
        self.durable.load(Ordering::Acquire)
    }

    /// Its region was flushed.
    pub fn note_durable(&self) {
        self.durable.store(true, Ordering::Release);
    }

    /// Where a block was found to be rotten, the footer is made invalid (nothing reads it as long as the table is open), so that
    /// the next open derives the index anew. Says whether that was done now.
    pub fn tell_of_rot(&self) -> Result<bool> {
        if self.rot.compare_exchange(SEEN, TOLD, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return Ok(false);
        }
        self.region.write_at(&[0; MAGIC.len()], self.len - FOOTER as u64)?;
        self.region.flush()?;
        Ok(true)
    }

    /// Whether a block of it is known to be rotten.
    pub fn is_rotten(&self) -> bool {
        self.rot.load(Ordering::Relaxed) != 0
    }

    /// Whether that was known when it was opened ([`Table::open_marked`]).
    pub fn was_marked(&self) -> bool {
        self.rot.load(Ordering::Relaxed) == MARKED
    }

    /// The parts that have a checksum each.
    pub fn parts(&self) -> Vec<std::ops::Range<u64>> {
        let blocks = self.blocks.iter().map(|b| b.offset..b.offset + u64::from(b.len));
        blocks.chain(self.marks.windows(2).map(|m| m[0]..m[1])).collect()
    }

    /// What was dropped and would have been here.
    pub fn ghosts(&self) -> &[Ghost] {
        &self.ghosts
    }

    /// Where its bytes are.
    pub fn region(&self) -> &Arc<dyn Region> {
        &self.region
    }

    /// How the manifest names it.
    pub fn reference(&self) -> TableRef {
        TableRef { region: self.region.place(), len: self.len }
    }

    /// Number of versions.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// The first version that is newer than its block, or the table, says of itself: whoever asks what changed would miss it. Reads
    /// all; also returns how many there are.
    pub fn first_hidden(self: &Arc<Table>) -> Result<(u64, Option<Entry>)> {
        let (mut cursor, mut n) = (Cursor::first(self.clone(), None)?, 0);
        while cursor.key().is_some() {
            if cursor.tid > self.blocks[cursor.next_block - 1].newest || cursor.tid > self.tids.1 {
                return Ok((n, cursor.entry()));
            }
            n += 1;
            cursor.step()?;
        }
        Ok((n, None))
    }

    /// Lowest and highest tid.
    pub fn tids(&self) -> (Tid, Tid) {
        self.tids
    }

    /// Bytes on the volume.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The last key.
    /// The least key that it has, if it has any.
    pub fn first_key(&self) -> &[u8] {
        self.blocks.first().map_or(&self.last_key, |b| &b.first_key)
    }

    /// The greatest one.
    pub fn last_key(&self) -> &[u8] {
        &self.last_key
    }

    /// Bytes of memory for filter and block list.
    pub fn resident_bytes(&self) -> usize {
        let list: usize = self.blocks.iter().map(|b| b.first_key.len() + std::mem::size_of::<BlockRef>()).sum();
        let ghosts: usize = self.ghosts.iter().map(Ghost::bytes).sum();
        list + self.filter.len() + ghosts
    }

    /// Whether the key may be here.
    pub fn may_contain(&self, key: &[u8]) -> bool {
        bloom::may_contain(&self.filter, key)
    }

    /// The first entry at or after (key, tid ≤ at) is in this block or is the first of the next.
    fn block_for(&self, key: &[u8], at: Tid) -> usize {
        let n = self.blocks.partition_point(|b| match (*b.first_key).cmp(key) {
            std::cmp::Ordering::Less => true,
            std::cmp::Ordering::Equal => b.first_tid >= at,
            std::cmp::Ordering::Greater => false,
        });
        n.saturating_sub(1)
    }

    fn block(&self, i: usize, cache: Option<&BlockCache>) -> Result<Arc<[u8]>> {
        let b = &self.blocks[i];
        let id = (self.region.place().id, b.offset);
        if let Some(found) = cache.and_then(|c| c.get(&id)) {
            return Ok(found);
        }
        let block = self.read_block(b).inspect_err(|e| {
            if let Error::Corrupt { .. } = e {
                let _ = self.rot.compare_exchange(0, SEEN, Ordering::Relaxed, Ordering::Relaxed);
            }
        })?;
        if let Some(cache) = cache {
            cache.insert(id, block.clone());
        }
        Ok(block)
    }

    fn read_block(&self, b: &BlockRef) -> Result<Arc<[u8]>> {
        let stored = read_sealed(&*self.region, b.offset, b.offset + u64::from(b.len), "table block")?;
        unpack(&stored).ok_or_else(|| Error::Corrupt {
            place: format!("region {:x} at byte {}", self.region.place().id, b.offset),
            what: "table block",
            expected: "LZ4 or plain entries".into(),
            found: "neither".into(),
        })
    }
}

fn unpack(stored: &[u8]) -> Option<Arc<[u8]>> {
    let mut r = Reader::new(stored);
    match r.u8()? {
        0 => Some(r.rest().into()),
        1 => {
            let n = usize::try_from(r.varint()?).ok().filter(|&n| n <= 64 << 20)?;
            let block = lz4_flex::block::decompress(r.rest(), n).ok()?;
            Some(block.into())
        }
        _ => None,
    }
}

/// A footer whose magic was overwritten.
fn read_marked(region: &dyn Region, at: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; FOOTER];
    region.read_at(&mut bytes, at).ok()?;
    let is_marked = bytes[..MAGIC.len()].iter().all(|b| *b == 0);
    [MAGIC, MAGIC_1].into_iter().filter(|_| is_marked).find_map(|magic| {
        bytes[..MAGIC.len()].copy_from_slice(magic);
        is_sealed(&bytes, region.place().id, at).then(|| bytes[..FOOTER - 4].to_vec())
    })
}

fn read_sealed(region: &dyn Region, from: u64, to: u64, what: &'static str) -> Result<Vec<u8>> {
    let place = || format!("region {:x} at byte {from}", region.place().id);
    let len = to.checked_sub(from).filter(|&n| (4..=region.place().size).contains(&n));
    let Some(len) = len else {
        let found = format!("{from}..{to}");
        return Err(Error::Corrupt { place: place(), what, expected: "a range".into(), found });
    };
    let mut buf = vec![0; len as usize];
    read_good(region, &mut buf, from, &|bytes| is_sealed(bytes, region.place().id, from))?;
    let body = buf.len() - 4;
    let expected = u32::from_le_bytes(buf[body..].try_into().expect("4 bytes"));
    buf.truncate(body);
    let found = crc_at(region.place().id, from, &buf);
    if found == expected {
        return Ok(buf);
    }
    let (expected, found) = (format!("crc {expected:08x}"), format!("crc {found:08x}"));
    Err(Error::Corrupt { place: place(), what, expected, found })
}

/// `highest`: that of all; in the `first` form blocks don't tell theirs.
fn parse_blocks(list: &[u8], end: u64, highest: Tid, first: bool) -> Option<(Vec<BlockRef>, Vec<u8>)> {
    let mut r = Reader::new(list);
    let n = r.varint()?;
    let mut blocks = Vec::new();
    for _ in 0..n {
        let offset = r.varint()?;
        let first_key = r.bytes()?.into();
        let first_tid = Tid(r.u64()?);
        let len = u32::try_from(r.varint()?).ok()?;
        offset.checked_add(len.into()).filter(|&e| e <= end)?;
        blocks.push(BlockRef { offset, len, first_key, first_tid, newest: highest });
    }
    let last_key = r.bytes()?.to_vec();
    if !first {
        for block in &mut blocks {
            block.newest = Tid(highest.0.checked_sub(r.varint()?)?);
        }
    }
    r.is_empty().then_some((blocks, last_key))
}

/// Walks those entries of a table that are newer than a tid, in order, and reads no block without one.
pub struct Newer<'c> {
    cursor: Cursor<'c>,
    since: Tid,
}

impl<'c> Newer<'c> {
    /// At the first one that is not before `key`.
    pub fn seek(table: Arc<Table>, key: &[u8], since: Tid, cache: &'c BlockCache) -> Result<Newer<'c>> {
        let mut cursor = Cursor::over(table, Some(cache));
        cursor.next_block = cursor.table.block_for(key, Tid::MAX);
        let mut newer = Newer { cursor, since };
        newer.step()?;
        while newer.key().is_some_and(|k| k < key) {
            newer.step()?;
        }
        Ok(newer)
    }

    /// Goes to the next one.
    pub fn step(&mut self) -> Result<()> {
        loop {
            let c = &mut self.cursor;
            if c.at >= c.block.len() {
                let rest = &c.table.blocks[c.next_block..];
                let skipped = rest.iter().take_while(|b| b.newest <= self.since).count();
                c.next_block += skipped;
            }
            c.step()?;
            if !c.valid || c.tid > self.since {
                return Ok(());
            }
        }
    }

    /// The current key, `None` at the end.
    pub fn key(&self) -> Option<&[u8]> {
        self.cursor.key()
    }

    /// The current entry's tid and value.
    pub fn version(&self) -> (Tid, Option<Value>) {
        (self.cursor.tid(), self.cursor.value())
    }
}

/// Walks a table's entries in order.
pub struct Cursor<'c> {
    table: Arc<Table>,
    cache: Option<&'c BlockCache>,
    next_block: usize,
    block: Arc<[u8]>,
    at: usize,
    key: Vec<u8>,
    tid: Tid,
    value: Option<std::ops::Range<usize>>,
    valid: bool,
}

impl<'c> Cursor<'c> {
    /// At the first entry of the table.
    pub fn first(table: Arc<Table>, cache: Option<&'c BlockCache>) -> Result<Cursor<'c>> {
        let mut c = Cursor::over(table, cache);
        c.step()?;
        Ok(c)
    }

    /// At the first entry that is not before (key, at).
    pub fn seek(table: Arc<Table>, key: &[u8], at: Tid, cache: Option<&'c BlockCache>) -> Result<Cursor<'c>> {
        let mut c = Cursor::over(table, cache);
        c.next_block = c.table.block_for(key, at);
        c.step()?;
        while c.valid && c.is_before(key, at) {
            c.step()?;
        }
        Ok(c)
    }

    fn over(table: Arc<Table>, cache: Option<&'c BlockCache>) -> Cursor<'c> {
        let block = Arc::from([].as_slice());
        Cursor { table, cache, next_block: 0, block, at: 0, key: Vec::new(), tid: Tid::ZERO, value: None, valid: false }
    }

    fn is_before(&self, key: &[u8], at: Tid) -> bool {
        match self.key.as_slice().cmp(key) {
            std::cmp::Ordering::Less => true,
            std::cmp::Ordering::Equal => self.tid > at,
            std::cmp::Ordering::Greater => false,
        }
    }

    /// Goes to the next entry; afterwards [`Cursor::key`] is `None` at the end.
    pub fn step(&mut self) -> Result<()> {
        if self.at >= self.block.len() {
            if self.next_block >= self.table.blocks.len() {
                self.valid = false;
                return Ok(());
            }
            self.block = self.table.block(self.next_block, self.cache)?;
            self.next_block += 1;
            self.at = 0;
            self.key.clear();
        }
        self.valid = true;
        self.decode().ok_or_else(|| Error::Corrupt {
            place: format!("region {:x}, block {}", self.table.region.place().id, self.next_block - 1),
            what: "table entry",
            expected: "an entry".into(),
            found: "bytes that are none".into(),
        })
    }

    fn decode(&mut self) -> Option<()> {
        let mut r = Reader::new(&self.block[self.at..]);
        let shared = usize::try_from(r.varint()?).ok().filter(|&n| n <= self.key.len())?;
        let suffix = r.bytes()?;
        let tid = Tid(r.u64()?);
        let value = match r.varint()? {
            0 => None,
            n => {
                let n = usize::try_from(n - 1).ok()?;
                let start = self.block.len() - r.rest().len();
                r.take(n)?;
                Some(start..start + n)
            }
        };
        self.key.truncate(shared);
        self.key.extend_from_slice(suffix);
        self.at = self.block.len() - r.rest().len();
        (self.tid, self.value) = (tid, value);
        Some(())
    }

    /// The current key, `None` at the end.
    pub fn key(&self) -> Option<&[u8]> {
        self.valid.then_some(&self.key)
    }

    /// The current tid.
    pub fn tid(&self) -> Tid {
        self.tid
    }

    /// As [`Cursor::value`], not copied.
    pub fn bytes(&self) -> Option<&[u8]> {
        self.value.clone().map(|range| &self.block[range])
    }

    /// The current value; `None`: a tombstone.
    pub fn value(&self) -> Option<Value> {
        self.bytes().map(Value::from)
    }

    /// The current entry, copied.
    pub fn entry(&self) -> Option<Entry> {
        self.valid.then(|| Entry { key: self.key[..].into(), tid: self.tid, value: self.value() })
    }
}

/// Makes the checksums of filter, block list, ghosts and footer right, where the footer leads to them, and that of a block that is
/// the only one.
#[cfg(any(test, fuzzing))]
pub fn reseal(bytes: &mut [u8], region: u64) {
    let Some(footer) = bytes.len().checked_sub(FOOTER) else { return };
    let number = |bytes: &[u8], i: usize| {
        u64::from_le_bytes(bytes[footer + 8 + 8 * i..footer + 16 + 8 * i].try_into().expect("8 bytes")) as usize
    };
    let (filter, list, ghosts) = (number(bytes, 0), number(bytes, 1), number(bytes, 6));
    let block = if filter <= BLOCK_TARGET { (0, filter) } else { (0, 0) };
    for (from, to) in [block, (filter, list), (list, ghosts), (ghosts, footer), (footer, bytes.len())] {
        if from < to && to - from >= 4 && to <= bytes.len() {
            let crc = crc_at(region, from as u64, &bytes[from..to - 4]);
            bytes[to - 4..to].copy_from_slice(&crc.to_le_bytes());
        }
    }
}
