//! Directory entries: their keys, values and cookies. docs/format.md §Directory entries.
//!
//! Key suffix: the name's hash (8 bytes, big-endian), then the name. Value: d_type (1 byte), object (varint), and, where
//! it is the root of another fileset, that one's number (varint). The
//! hash (SipHash-1-3 keyed per store, 63 bits, never 0, 1 or 2) is also the cookie with which a listing goes on: it
//! stays valid whatever is added or removed meanwhile. 1 and 2 are the cookies of `.` and `..`.

use std::ops::ControlFlow;

use darner_store::{FilesetId, Kind, ObjectId, Tid};
use siphasher::sip::SipHasher13;

use crate::codec::{Reader, put_varint};
use crate::error::{FsError, Result, refuse};
use crate::fs::Fs;
use crate::node::Inode;

/// What a name leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Dirent {
    pub(crate) ino: Inode,
    pub(crate) d_type: u8,
}

impl Dirent {
    pub(crate) fn is_dir(&self) -> bool {
        self.d_type == libc::DT_DIR
    }

    /// Refuses to let an entry of `dir` go if it is another fileset: that is for `darner fileset`.
    pub(crate) fn check_not_fileset(&self, dir: Inode) -> Result<()> {
        match self.ino.fileset == dir.fileset {
            true => Ok(()),
            false => refuse(libc::EBUSY, "the name is a fileset"),
        }
    }

    /// The value of an entry of a directory of fileset `of`.
    pub(crate) fn encode(&self, of: FilesetId) -> Vec<u8> {
        let mut out = Vec::with_capacity(11);
        out.push(self.d_type);
        put_varint(&mut out, self.ino.object.0);
        if self.ino.fileset != of {
            put_varint(&mut out, self.ino.fileset.0.into());
        }
        out
    }

    /// The entry in a value of a directory of fileset `of`; `None` if it isn't one.
    pub(crate) fn decode(value: &[u8], of: FilesetId) -> Option<Dirent> {
        let mut from = Reader(value);
        let d_type = from.byte()?;
        let object = ObjectId(from.varint()?);
        let fileset = if from.end().is_some() { of } else { FilesetId(from.varint32()?) };
        from.end()?;
        Some(Dirent { ino: Inode { fileset, object }, d_type })
    }
}

/// A name's cookie: its hash under the store's key.
pub(crate) fn cookie(hash_key: &[u8; 16], name: &[u8]) -> u64 {
    let hash = SipHasher13::new_with_key(hash_key).hash(name) & (u64::MAX >> 1);
    if hash <= 2 { hash + 3 } else { hash }
}

/// The key suffix of a name's DIRENT record.
pub fn dirent_suffix(hash_key: &[u8; 16], name: &[u8]) -> Vec<u8> {
    let mut suffix = Vec::with_capacity(8 + name.len());
    suffix.extend(cookie(hash_key, name).to_be_bytes());
    suffix.extend(name);
    suffix
}

/// Cookie and name in a DIRENT record's key suffix; `None` if it is too short.
pub fn parse_dirent_suffix(suffix: &[u8]) -> Option<(u64, &[u8])> {
    let (hash, name) = suffix.split_first_chunk()?;
    Some((u64::from_be_bytes(*hash), name))
}

impl Fs {
    pub(crate) fn suffix(&self, name: &[u8]) -> Vec<u8> {
        dirent_suffix(&self.hash_key, name)
    }

    /// What `name` leads to in directory `dir` as of `at` (in the past: nothing, where no history is kept).
    pub(crate) fn dirent(&self, dir: Inode, name: &[u8], at: Tid) -> Result<Option<Dirent>> {
        if self.is_left_out(dir, at)? {
            return Ok(None);
        }
        let key = dir.key(Kind::DIRENT, &self.suffix(name));
        let Some(found) = self.store.get(&key, at)? else { return Ok(None) };
        Dirent::decode(&found.value, dir.fileset).map(Some).ok_or_else(|| malformed(dir, name, found.tid))
    }

    /// The name under which `dir` has `ino` as of `at`. Reads the whole directory: for messages only.
    pub(crate) fn name_in(&self, dir: Inode, ino: Inode, at: Tid) -> Result<Option<Vec<u8>>> {
        let mut name = None;
        self.store.scan(dir.fileset, dir.object, Kind::DIRENT, &[], at, &mut |suffix, _, value| match (
            parse_dirent_suffix(suffix),
            Dirent::decode(value, dir.fileset),
        ) {
            (Some((_, found)), Some(entry)) if entry.ino == ino => {
                name = Some(found.to_vec());
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        })?;
        Ok(name)
    }
}

pub(crate) fn malformed(dir: Inode, name: &[u8], tid: Tid) -> FsError {
    FsError::malformed(format!(
        "the entry {} of directory {dir}, written at tid {tid}, is in no known form",
        name.escape_ascii()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_one_on_disk() {
        // SipHash-1-3 of "" under key 00..0f; if this changes, every directory ever written is lost.
        let key: [u8; 16] = std::array::from_fn(|i| i as u8);
        assert_eq!(cookie(&key, b""), 0xabac_0158_050f_c4dc & (u64::MAX >> 1));
    }

    #[test]
    fn entries_come_back_and_no_bytes_make_decoding_panic() {
        let of = FilesetId(1);
        let entry = Dirent { ino: Inode { fileset: of, object: ObjectId(u64::MAX) }, d_type: libc::DT_DIR };
        let bytes = entry.encode(of);
        assert_eq!(Dirent::decode(&bytes, of), Some(entry));
        for cut in 0..bytes.len() {
            assert_eq!(Dirent::decode(&bytes[..cut], of), None);
        }
        let root = Dirent { ino: Inode { fileset: FilesetId(300), object: ObjectId(9) }, d_type: libc::DT_DIR };
        assert_eq!(Dirent::decode(&root.encode(of), of), Some(root));
        assert_eq!(Dirent::decode(&[4, 9, 0xff], of), None);
        assert_eq!(parse_dirent_suffix(&[0; 7]), None);
    }
}
