//! The superblock: who the store is and where its manifest lies. docs/format.md §Superblock.
//!
//! Two slots, written in turn (generation modulo 2), each checksummed: a torn write leaves the other one valid.

use crate::codec::{Reader, crc_at};
use crate::volume::{RegionRef, SUPER_SIZE, Volume};
use crate::{Error, Result, Tid};

const MAGIC: &[u8; 8] = b"DARNER\r\n";
/// The version of the whole format, as it is written.
pub const VERSION: u32 = 3;
/// The oldest version that can be read; opening for writing makes it the newest.
const VERSION_MIN: u32 = 1;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Grows by one with every write of a superblock.
    pub generation: u64,
    /// The store's identity.
    pub uuid: [u8; 16],
    /// Key of the directory hash.
    pub hash_key: [u8; 16],
    /// When the store was made.
    pub birth: Tid,
    /// Bytes that the store may use of its volume; 0: all there are.
    pub size_limit: u64,
    /// The manifest's region.
    pub manifest: RegionRef,
    /// The manifest's bytes.
    pub manifest_len: u64,
}

impl Superblock {
    fn encode(&self) -> [u8; SUPER_SIZE] {
        let mut out = Vec::with_capacity(SUPER_SIZE);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&self.uuid);
        out.extend_from_slice(&self.hash_key);
        let m = &self.manifest;
        for v in [self.birth.0, self.size_limit, m.id, m.start, m.size, self.manifest_len] {
            out.extend_from_slice(&v.to_le_bytes());
        }
        out.resize(SUPER_SIZE - 4, 0);
        let crc = crc_at(0, 0, &out);
        out.extend_from_slice(&crc.to_le_bytes());
        out.try_into().expect("its size")
    }

    fn decode(bytes: &[u8; SUPER_SIZE]) -> Option<Result<Superblock, u32>> {
        let (body, crc) = bytes.split_at(SUPER_SIZE - 4);
        if crc_at(0, 0, body).to_le_bytes() != crc {
            return None;
        }
        let mut r = Reader::new(body);
        if r.take(8)? != MAGIC {
            return None;
        }
        let version = r.u32()?;
        if !(VERSION_MIN..=VERSION).contains(&version) {
            return Some(Err(version));
        }
        r.take(4)?;
        let generation = r.u64()?;
        let uuid = r.take(16)?.try_into().ok()?;
        let hash_key = r.take(16)?.try_into().ok()?;
        let (birth, size_limit) = (Tid(r.u64()?), r.u64()?);
        let manifest = RegionRef { id: r.u64()?, start: r.u64()?, size: r.u64()? };
        let manifest_len = r.u64()?;
        Some(Ok(Superblock { generation, uuid, hash_key, birth, size_limit, manifest, manifest_len }))
    }

    /// Writes it to its slot; durable on return.
    pub fn write(&self, volume: &dyn Volume) -> Result<()> {
        volume.write_super((self.generation % 2) as usize, &self.encode())
    }

    /// The valid superblocks of a volume, newest first; an error that says why if there is none.
    pub fn read(volume: &dyn Volume) -> Result<Vec<Superblock>> {
        let mut found = Vec::new();
        for slot in 0..2 {
            match Superblock::decode(&volume.read_super(slot)?) {
                Some(Ok(sb)) => found.push(sb),
                Some(Err(version)) => {
                    return Err(Error::NotAStore(format!(
                        "{} has format version {version}; this darner reads versions {VERSION_MIN} to {VERSION}: use a newer one",
                        volume.name()
                    )));
                }
                None => {}
            }
        }
        found.sort_by_key(|sb| std::cmp::Reverse(sb.generation));
        if found.is_empty() {
            return Err(Error::NotAStore(format!("{} holds no darner store (no valid superblock)", volume.name())));
        }
        Ok(found)
    }
}
