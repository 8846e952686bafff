//! Who this store is among others, where others reach it, and who they may be. docs/format.md §Peers.
//!
//! All of it is in the store, nothing beside it: a volume that moves to another machine is the same peer there.

use std::ops::ControlFlow;

use darner_store::{CATALOGUE, FilesetId, Kind, ObjectId, Tid};

use crate::change::SMALL;
use crate::codec::{Reader, put_bytes, put_varint};
use crate::error::{FsError, Result, refuse};
use crate::fs::Fs;
use crate::node::{Inode, MAIN};

const IDENTITY: u8 = 0;
const ADDRESS: u8 = 1;
const ADMITTED: u8 = 2;
const LIMIT: u8 = 3;
const COMPARED: u8 = 4;
const COMPARE_EVERY: u8 = 5;
/// Where the store is that this one follows, and (with a name) where a mirror is: `whereabouts.rs`.
pub(crate) const SOURCE_AT: u8 = 6;
pub(crate) const MIRROR_AT: u8 = 7;
/// By which openings what was done, as former versions noted it, and now: `mirror/openings.rs`.
pub(crate) const OPENINGS: u8 = 8;
pub(crate) const OPENING: u8 = 9;
const COMPARED_VERSION: u8 = 1;
/// Seconds between comparisons where nothing else was said.
const COMPARE_EVERY_DEFAULT: u64 = 24 * 3600;

/// Names of keys: how many bytes they have.
const FINGERPRINT: usize = 32;

/// What comparing a mirror with its source found last.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Compared {
    /// When it ended, by this machine's clock (ns since 1970); 0: never.
    pub ended: u64,
    /// The moment of the source that the end of it was as of.
    pub at: Tid,
    /// Keys compared.
    pub keys: u64,
    /// Places that differed.
    pub differing: u64,
    /// Of these, how many are the same now.
    pub mended: u64,
    /// What differed, and what could not be compared or mended, for people: the first ones.
    pub named: Vec<String>,
}

impl Compared {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![COMPARED_VERSION];
        for n in [self.ended, self.at.0, self.keys, self.differing, self.mended, self.named.len() as u64] {
            put_varint(&mut out, n);
        }
        self.named.iter().for_each(|name| put_bytes(&mut out, name.as_bytes()));
        out
    }

    fn decode(value: &[u8]) -> Option<Compared> {
        let mut from = Reader(value);
        if from.byte()? != COMPARED_VERSION {
            return None;
        }
        let (ended, at) = (from.varint()?, Tid(from.varint()?));
        let (keys, differing, mended) = (from.varint()?, from.varint()?, from.varint()?);
        let mut named = Vec::new();
        for _ in 0..from.varint()? {
            named.push(from.text()?);
        }
        from.end()?;
        Some(Compared { ended, at, keys, differing, mended, named })
    }
}

/// A peer that may follow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Admitted {
    /// The name of its key.
    pub fingerprint: [u8; FINGERPRINT],
    /// Since when.
    pub since: Tid,
    /// The filesets that it may see; none: all.
    pub filesets: Vec<FilesetId>,
}

impl Fs {
    /// The store's private key, in the form in which it was set.
    pub fn identity(&self) -> Result<Option<Vec<u8>>> {
        self.peer_record(&[IDENTITY])
    }

    /// Sets it.
    pub fn set_identity(&self, key: &[u8], now_ns: u64) -> Result<()> {
        self.put_peer(&[IDENTITY], Some(key), now_ns)
    }

    /// Where the store's daemon listens for others, if it does.
    pub fn listens_at(&self) -> Result<Option<String>> {
        let found = self.peer_record(&[ADDRESS])?;
        Ok(found.map(|address| String::from_utf8_lossy(&address).into_owned()))
    }

    /// Has it listen there from the next start on, or not any more.
    pub fn listen_at(&self, address: Option<&str>, now_ns: u64) -> Result<()> {
        if address.is_none() && self.listens_at()?.is_none() {
            return Ok(());
        }
        self.put_peer(&[ADDRESS], address.map(str::as_bytes), now_ns)
    }

    /// Those who may follow.
    pub fn admitted(&self) -> Result<Vec<Admitted>> {
        let (mut all, mut damaged) = (Vec::new(), false);
        self.each(Inode::meta(CATALOGUE), Kind::PEER, &[ADMITTED], Tid::MAX, |suffix, since, value| {
            let Some(fingerprint) = suffix.strip_prefix(&[ADMITTED]) else { return ControlFlow::Break(()) };
            // (One that can't be understood must not come to mean all.)
            match (fingerprint.try_into(), decode_filesets(value)) {
                (Ok(fingerprint), Some(filesets)) => all.push(Admitted { fingerprint, since, filesets }),
                _ => damaged = true,
            }
            ControlFlow::Continue(())
        })?;
        match damaged {
            true => Err(FsError::malformed("the record of a peer that is admitted is in no known form")),
            false => Ok(all),
        }
    }

    /// Lets one follow from now on: these filesets, or (none) all.
    pub fn admit(&self, fingerprint: &[u8; FINGERPRINT], filesets: &[FilesetId], now_ns: u64) -> Result<()> {
        let suffix = [&[ADMITTED], &fingerprint[..]].concat();
        let mut value = Vec::new();
        filesets.iter().for_each(|id| put_varint(&mut value, id.0.into()));
        match self.peer_record(&suffix)? {
            Some(known) if known == value => Ok(()),
            _ => self.put_peer(&suffix, Some(&value), now_ns),
        }
    }

    /// Lets it follow no more. ENOENT if it was not admitted.
    pub fn admit_no_more(&self, fingerprint: &[u8; FINGERPRINT], now_ns: u64) -> Result<()> {
        let suffix = [&[ADMITTED], &fingerprint[..]].concat();
        match self.peer_record(&suffix)? {
            Some(_) => self.put_peer(&suffix, None, now_ns),
            None => refuse(libc::ENOENT, "this key is not admitted"),
        }
    }

    /// Bytes a second that this mirror pulls at most; 0: as many as there are.
    pub fn pull_limit(&self) -> Result<u64> {
        let Some(value) = self.peer_record(&[LIMIT])? else { return Ok(0) };
        Reader(&value).varint().ok_or_else(|| FsError::malformed("the limit of pulls is in no known form"))
    }

    /// Sets that.
    pub fn limit_pulls(&self, bytes_a_second: u64, now_ns: u64) -> Result<()> {
        let mut value = Vec::new();
        put_varint(&mut value, bytes_a_second);
        self.put_peer(&[LIMIT], Some(&value), now_ns)
    }

    /// What this mirror's last comparison with its source found.
    pub fn compared(&self) -> Result<Compared> {
        let Some(value) = self.peer_record(&[COMPARED])? else { return Ok(Compared::default()) };
        Compared::decode(&value).ok_or_else(|| FsError::malformed("what a comparison found is in no known form"))
    }

    /// Keeps that.
    pub fn set_compared(&self, found: &Compared, now_ns: u64) -> Result<()> {
        self.put_peer(&[COMPARED], Some(&found.encode()), now_ns)
    }

    /// Seconds after which this mirror compares itself with its source again; 0: never by itself.
    pub fn compares_every(&self) -> Result<u64> {
        let Some(value) = self.peer_record(&[COMPARE_EVERY])? else { return Ok(COMPARE_EVERY_DEFAULT) };
        Reader(&value).varint().ok_or_else(|| FsError::malformed("how often to compare is in no known form"))
    }

    /// Sets that.
    pub fn compare_every(&self, seconds: u64, now_ns: u64) -> Result<()> {
        let mut value = Vec::new();
        put_varint(&mut value, seconds);
        self.put_peer(&[COMPARE_EVERY], Some(&value), now_ns)
    }

    pub(crate) fn peer_record(&self, suffix: &[u8]) -> Result<Option<Vec<u8>>> {
        let found = self.store.get(&Inode::meta(CATALOGUE).key(Kind::PEER, suffix), Tid::MAX)?;
        Ok(found.map(|found| found.value.to_vec()))
    }

    pub(crate) fn put_peer(&self, suffix: &[u8], value: Option<&[u8]>, now_ns: u64) -> Result<()> {
        self.plan_own(MAIN, SMALL)?.begin(now_ns)?.commit_catalogue(
            |tx| {
                tx.turn(CATALOGUE, 0, 0);
                match value {
                    Some(value) => tx.put(ObjectId(0), Kind::PEER, suffix, value),
                    None => tx.delete(ObjectId(0), Kind::PEER, suffix),
                }
            },
            |_| (),
        )?;
        Ok(())
    }
}

fn decode_filesets(value: &[u8]) -> Option<Vec<FilesetId>> {
    let (mut from, mut all) = (Reader(value), Vec::new());
    while from.end().is_none() {
        all.push(FilesetId(from.varint32()?));
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_comparison_found_comes_back_and_no_bytes_make_decoding_panic() {
        let named = vec!["/a: attributes".into(), "/b: bytes from 0 on".into()];
        let found = Compared { ended: 1 << 60, at: Tid(77), keys: 1 << 40, differing: 2, mended: 1, named };
        assert_eq!(Compared::decode(&found.encode()), Some(found.clone()));
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..100_000 {
            let mut bytes = found.encode();
            let at = rng.usize(..bytes.len());
            bytes[at] = rng.u8(..);
            bytes.truncate(rng.usize(..=bytes.len()));
            Compared::decode(&bytes);
        }
    }
}
