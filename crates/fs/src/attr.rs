//! Attributes of an object, and how they are kept in its ATTR record.
//!
//! Invariants: a directory's `size` is its number of entries and its `nlink` is 2 + its subdirectories; `bytes` is
//! what the store says the object's data comes to; `flags` never lack a bit whose xattr exists (so that a clear bit
//! saves the look-up). Implements docs/format.md §Attributes. Every change sets ctime to its transaction's tid, so
//! ctime is normally not stored.

use darner_store::{ObjectId, Tid};

use crate::codec::{Reader, put_signed, put_varint};
use crate::error::{Result, refuse};

/// A moment as POSIX has it: any `i64` of seconds since 1970, and nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Time {
    /// Seconds since 1970-01-01T00:00:00Z; negative before.
    pub secs: i64,
    /// Nanoseconds, below 10^9.
    pub nanos: u32,
}

const NANOS: u64 = 1_000_000_000;

impl From<Tid> for Time {
    fn from(tid: Tid) -> Time {
        Time { secs: (tid.0 / NANOS) as i64, nanos: (tid.0 % NANOS) as u32 }
    }
}

/// What `stat` tells, and a little more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attr {
    /// Type and permission bits, as `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names (files), or 2 + subdirectories. 0: unlinked, kept while somebody has it open.
    pub nlink: u32,
    /// Bytes; of a directory: entries.
    pub size: u64,
    /// Bytes that hold data (holes don't).
    pub bytes: u64,
    /// Device number of a device file, as the kernel's 32-bit encoding.
    pub rdev: u32,
    /// Of a directory: what `..` means. Of others: where their newest name was given (for messages).
    pub parent: ObjectId,
    /// See [`Attr::XATTRS`] and the others.
    pub flags: u32,
    /// Last access as set (reading does not change it).
    pub atime: Time,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of anything.
    pub ctime: Time,
    /// Creation.
    pub btime: Time,
}

const VERSION: u8 = 1;
const CTIME_IS_TID: u8 = 1;
const MTIME_IS_CTIME: u8 = 2;
const ATIME_IS_CTIME: u8 = 4;
const BTIME_IS_CTIME: u8 = 8;

impl Attr {
    /// Flag: may have extended attributes (other than ACLs).
    pub const XATTRS: u32 = 1;
    /// Flag: has an access ACL beyond its mode.
    pub const ACL_ACCESS: u32 = 2;
    /// Flag: has a default ACL (directories).
    pub const ACL_DEFAULT: u32 = 4;
    /// Flag: has `security.capability`, which a write must remove.
    pub const CAPS: u32 = 8;
    /// Flag: no history is kept of it, nor of what is made in it (`keepless.rs`).
    pub const KEEPLESS: u32 = 16;
    /// Flag: was [`Attr::KEEPLESS`] once.
    pub const ONCE_KEEPLESS: u32 = 32;

    /// The `S_IFMT` bits.
    pub fn file_type(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    /// The type as directory entries have it (`DT_DIR`, …).
    pub fn d_type(&self) -> u8 {
        (self.file_type() >> 12) as u8
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.file_type() == libc::S_IFDIR
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.file_type() == libc::S_IFREG
    }

    /// Whether it is a symbolic link.
    pub fn is_symlink(&self) -> bool {
        self.file_type() == libc::S_IFLNK
    }

    /// Refuses what has no data: EISDIR, EINVAL.
    pub(crate) fn check_file(&self) -> Result<()> {
        match self.file_type() {
            libc::S_IFREG => Ok(()),
            libc::S_IFDIR => refuse(libc::EISDIR, "a directory has no data"),
            _ => refuse(libc::EINVAL, "not a regular file"),
        }
    }

    /// The same of a directory that has so many subdirectories less.
    pub(crate) fn without(self, subdirectories: usize) -> Attr {
        Attr {
            size: self.size.saturating_sub(subdirectories as u64),
            nlink: self.nlink.saturating_sub(subdirectories as u32),
            ..self
        }
    }

    /// `st_blocks`: 512-byte units of data.
    pub fn blocks(&self) -> u64 {
        self.bytes.div_ceil(512)
    }

    /// The record's value, when written by transaction `tid`.
    pub fn encode(&self, tid: Tid) -> Vec<u8> {
        let mut same = 0;
        let mut differing = [None; 4];
        let times = [
            (CTIME_IS_TID, self.ctime, Time::from(tid)),
            (MTIME_IS_CTIME, self.mtime, self.ctime),
            (ATIME_IS_CTIME, self.atime, self.ctime),
            (BTIME_IS_CTIME, self.btime, self.ctime),
        ];
        for (slot, (bit, time, usual)) in differing.iter_mut().zip(times) {
            if time == usual {
                same |= bit;
            } else {
                *slot = Some(time);
            }
        }
        let mut out = Vec::with_capacity(64);
        out.extend([VERSION, same]);
        for n in [self.mode, self.uid, self.gid, self.nlink, self.flags, self.rdev] {
            put_varint(&mut out, n.into());
        }
        for n in [self.size, self.bytes, self.parent.0] {
            put_varint(&mut out, n);
        }
        for time in differing.into_iter().flatten() {
            put_signed(&mut out, time.secs);
            put_varint(&mut out, time.nanos.into());
        }
        out
    }

    /// The attributes in a value that transaction `tid` wrote; `None` if it isn't one.
    pub fn decode(value: &[u8], tid: Tid) -> Option<Attr> {
        let mut from = Reader(value);
        if from.byte()? != VERSION {
            return None;
        }
        let same = from.byte()?;
        if same > 15 {
            return None;
        }
        let (mode, uid, gid) = (from.varint32()?, from.varint32()?, from.varint32()?);
        let (nlink, flags, rdev) = (from.varint32()?, from.varint32()?, from.varint32()?);
        let (size, bytes, parent) = (from.varint()?, from.varint()?, ObjectId(from.varint()?));
        let mut time = |bit: u8, usual: Time| {
            if same & bit != 0 { Some(usual) } else { decode_time(&mut from) }
        };
        let ctime = time(CTIME_IS_TID, tid.into())?;
        let mtime = time(MTIME_IS_CTIME, ctime)?;
        let atime = time(ATIME_IS_CTIME, ctime)?;
        let btime = time(BTIME_IS_CTIME, ctime)?;
        from.end()?;
        Some(Attr { mode, uid, gid, nlink, size, bytes, rdev, parent, flags, atime, mtime, ctime, btime })
    }
}

fn decode_time(from: &mut Reader<'_>) -> Option<Time> {
    let secs = from.signed()?;
    let nanos = from.varint32()?;
    (u64::from(nanos) < NANOS).then_some(Time { secs, nanos })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Attr {
        let time = Time { secs: 1_790_000_000, nanos: 123_456_789 };
        Attr {
            mode: libc::S_IFREG | 0o644,
            uid: 1000,
            gid: u32::MAX - 1,
            nlink: 1,
            size: i64::MAX as u64,
            bytes: 4096,
            rdev: 0,
            parent: ObjectId(77),
            flags: Attr::XATTRS,
            atime: Time { secs: -5_000_000_000, nanos: 1 },
            mtime: Time { secs: i64::MAX, nanos: 999_999_999 },
            ctime: time,
            btime: time,
        }
    }

    #[test]
    fn attributes_come_back_with_dates_before_1970_and_far_ahead() {
        let attr = sample();
        for tid in [Tid(1_790_000_000_123_456_789), Tid(5)] {
            assert_eq!(Attr::decode(&attr.encode(tid), tid), Some(attr));
        }
    }

    #[test]
    fn times_equal_to_the_tid_cost_nothing() {
        let tid = Tid(1_790_000_000_123_456_789);
        let now = Time::from(tid);
        let fresh =
            Attr { size: 0, bytes: 0, gid: 1000, flags: 0, atime: now, mtime: now, ctime: now, btime: now, ..sample() };
        assert!(fresh.encode(tid).len() <= 20, "{}", fresh.encode(tid).len());
    }

    #[test]
    fn no_bytes_make_decoding_panic() {
        let good = sample().encode(Tid(9));
        for cut in 0..good.len() {
            assert_eq!(Attr::decode(&good[..cut], Tid(9)), None);
        }
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..100_000 {
            let mut bytes = good.clone();
            let at = rng.usize(..bytes.len());
            bytes[at] = rng.u8(..);
            bytes.truncate(rng.usize(..=bytes.len()));
            Attr::decode(&bytes, Tid(9));
        }
    }
}
