//! Checkpoints and epochs: what of a store can be opened from its bucket alone, and whose it is. docs/format.md §Bucket.

use std::collections::HashMap;

use crate::codec::{Reader, crc_at, is_sealed, put_bytes, put_varint};
use crate::manifest::Manifest;
use crate::opening::Openings;
use crate::superblock::Superblock;
use crate::volume::{Bucket, BucketVolume, Kept, list_all};
use crate::{Error, Result, Tid};

pub(crate) const CHECKPOINTS: &str = "c/";
pub(crate) const EPOCHS: &str = "e/";
const MAGIC: &[u8; 8] = b"DARNCKP2";
/// The same without the opening: of format versions 6 to 8.
const FORMER: &[u8; 8] = b"DARNCKP1";
/// So many bytes of who has an epoch are told.
const WHO_MAX: usize = 256;

/// A checkpoint, as it is in the bucket.
pub(crate) struct Checkpoint {
    pub uuid: [u8; 16],
    pub hash_key: [u8; 16],
    pub birth: Tid,
    /// The number that the bucket has, and the number that the next volume gets.
    pub number: u16,
    pub next_volume: u32,
    /// Of the superblock.
    pub generation: u64,
    /// Who has put it.
    pub opening: Option<u64>,
    /// Without the open segment; all places are in the bucket.
    pub manifest: Manifest,
}

impl Checkpoint {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&self.uuid);
        out.extend_from_slice(&self.hash_key);
        out.extend_from_slice(&self.birth.0.to_le_bytes());
        for v in [self.number.into(), self.next_volume.into(), self.generation] {
            put_varint(&mut out, v);
        }
        out.extend_from_slice(&self.opening.unwrap_or_default().to_le_bytes());
        put_bytes(&mut out, &self.manifest.encode(0));
        let crc = crc_at(0, 0, &out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    pub fn decode(bytes: &[u8]) -> Option<Checkpoint> {
        let body = is_sealed(bytes, 0, 0).then(|| &bytes[..bytes.len() - 4])?;
        let mut r = Reader::new(body);
        let magic = r.take(8)?;
        if magic != MAGIC && magic != FORMER {
            return None;
        }
        let (uuid, hash_key) = (r.take(16)?.try_into().ok()?, r.take(16)?.try_into().ok()?);
        let birth = Tid(r.u64()?);
        let (number, next_volume) = (u16::try_from(r.varint()?).ok()?, u32::try_from(r.varint()?).ok()?);
        let generation = r.varint()?;
        let opening = if magic == MAGIC { Some(r.u64()?) } else { None };
        let manifest = Manifest::of_bytes(r.bytes()?, 0)?;
        r.is_empty().then_some(Checkpoint { uuid, hash_key, birth, number, next_volume, generation, opening, manifest })
    }

    pub fn name(epoch: u32, generation: u64) -> String {
        format!("{CHECKPOINTS}{epoch:08x}.{generation:016x}")
    }

    /// Epoch and generation of the one that an object is.
    fn of_name(name: &str) -> Option<(u32, u64)> {
        let (epoch, generation) = name.strip_prefix(CHECKPOINTS)?.split_once('.')?;
        Some((u32::from_str_radix(epoch, 16).ok()?, u64::from_str_radix(generation, 16).ok()?))
    }

    /// The names of those that were put under this epoch or an earlier one, ascending.
    pub fn names(bucket: &BucketVolume, epoch: u32) -> Result<Vec<String>> {
        let all = list_all(bucket.objects(), CHECKPOINTS, "")?.into_iter().map(|(name, _)| name);
        Ok(all.filter(|name| Checkpoint::of_name(name).is_some_and(|(e, _)| e <= epoch)).collect())
    }

    /// The one of a name; `None`: it is damaged.
    pub fn named(bucket: &BucketVolume, name: &str) -> Result<Option<Checkpoint>> {
        Ok(Checkpoint::decode(&bucket.objects().get(name, None)?))
    }

    /// Whether one that is damaged was of this store, as it is here or was: by its name, and by who has begun its epoch.
    pub fn damaged_is_past(bucket: &BucketVolume, name: &str, sb: &Superblock) -> Result<bool> {
        let Some((epoch, generation)) = Checkpoint::of_name(name) else { return Ok(true) };
        // (Who began a later epoch has looked at it before.)
        if epoch < bucket.epoch() {
            return Ok(true);
        }
        let claimed = match Claimed::of(bucket.objects(), epoch) {
            Err(e) if e.is_lost() => Err(Error::Refused(format!(
                "{}, object {name}: the checkpoint is damaged, and {}, which says who has put it, is gone: delete it, if nobody else has the store",
                bucket.objects().name(),
                epoch_name(epoch)
            ))),
            claimed => claimed,
        }?;
        let is_past = generation <= sb.generation && sb.openings.agree(Some(claimed.opening), generation);
        Ok(claimed.uuid != sb.uuid || is_past)
    }

    /// The regions that it names.
    pub fn kept(&self) -> HashMap<u64, Kept> {
        self.manifest.regions().map(|at| (at.id, Kept { epoch: at.start as u32, len: at.size })).collect()
    }
}

/// The object that says who has an epoch.
pub(crate) fn epoch_name(epoch: u32) -> String {
    format!("{EPOCHS}{epoch:08x}")
}

/// What it says: whose store, the number that an opening of it has drawn, and who it is.
pub(crate) fn claim(uuid: &[u8; 16], opening: u64, who: &str) -> Vec<u8> {
    [&uuid[..], &opening.to_le_bytes()[..], &[0; 8], who.as_bytes()].concat()
}

/// Puts an object that must be new; says whether it is ours, also where the answer to an earlier try was lost.
pub(crate) fn put_ours(bucket: &BucketVolume, name: &str, bytes: &[u8]) -> Result<bool> {
    Ok(bucket.objects().put_new(name, bytes.to_vec())? || bucket.objects().get(name, None)? == bytes)
}

/// Of a bucket that a store was to go to, none of which has got there.
pub(crate) fn begun_only(bucket: &dyn Bucket) -> Error {
    let by = Claimed::after(bucket, 0).ok().flatten().map_or(String::new(), |c| format!(" by {}", c.who));
    Error::Refused(format!(
        "{} was begun{by} for a store, and nothing that could be opened has got there: if that store is no more, delete the objects \
         that are there, else name another prefix",
        bucket.name()
    ))
}

pub(crate) fn is_a_copy(bucket: &BucketVolume) -> Error {
    Error::Refused(format!(
        "{} has a checkpoint that is not of this store as it is here: this is a copy, or older than what is there, and puts nothing",
        bucket.objects().name()
    ))
}

/// Whether an epoch is there that a store has begun: this is its bucket then.
pub(crate) fn is_claimed(bucket: &dyn Bucket, epoch: u32, uuid: &[u8; 16]) -> Result<bool> {
    match bucket.get(&epoch_name(epoch), None) {
        Err(e) if e.is_lost() => Ok(false),
        said => Ok(said?.starts_with(uuid)),
    }
}

/// Who has begun the last of the epochs after one.
pub(crate) struct Claimed {
    pub epoch: u32,
    uuid: Vec<u8>,
    opening: u64,
    pub who: String,
}

impl Claimed {
    pub fn after(bucket: &dyn Bucket, epoch: u32) -> Result<Option<Claimed>> {
        let Some((name, _)) = list_all(bucket, EPOCHS, &epoch_name(epoch))?.pop() else { return Ok(None) };
        Claimed::of(bucket, u32::from_str_radix(&name[EPOCHS.len()..], 16).unwrap_or(u32::MAX)).map(Some)
    }

    /// Who has begun an epoch.
    fn of(bucket: &dyn Bucket, epoch: u32) -> Result<Claimed> {
        let said = bucket.get(&epoch_name(epoch), None)?;
        let number = said.get(16..24).map_or(0, |b| u64::from_le_bytes(b.try_into().expect("8")));
        Ok(Claimed {
            epoch,
            uuid: said.get(..16).unwrap_or_default().into(),
            opening: number,
            who: printable(said.get(32..).unwrap_or_default()),
        })
    }

    /// Whether it was a store itself: one that was killed before it took note of that.
    pub fn is_of(&self, uuid: &[u8; 16], openings: &Openings) -> bool {
        self.uuid == uuid && openings.has(self.opening)
    }
}

/// Text in a line; anything else is escaped.
fn printable(bytes: &[u8]) -> String {
    let bytes = &bytes[..bytes.len().min(WHO_MAX)];
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains(char::is_control) => text.into(),
        _ => bytes.escape_ascii().to_string(),
    }
}

/// Who has taken a store over after this epoch, if somebody has; `uuid` and `openings`: of the store that had that epoch.
pub fn taken_over(bucket: &dyn Bucket, epoch: u32, uuid: &[u8; 16], openings: &Openings) -> Result<Option<String>> {
    Ok(Claimed::after(bucket, epoch)?.filter(|c| !c.is_of(uuid, openings)).map(|c| c.who))
}
