//! Who this store is among others, where others reach it, and who they may be. docs/format.md §Peers.
//!
//! All of it is in the store, nothing beside it: a volume that moves to another machine is the same peer there.

use std::ops::ControlFlow;

use darner_store::{CATALOGUE, Kind, ObjectId, Tid};

use crate::change::SMALL;
use crate::codec::{Reader, put_varint};
use crate::error::{FsError, Result, refuse};
use crate::fs::Fs;
use crate::node::{Inode, MAIN};

const IDENTITY: u8 = 0;
const ADDRESS: u8 = 1;
const ADMITTED: u8 = 2;
const LIMIT: u8 = 3;

/// Names of keys: how many bytes they have.
const FINGERPRINT: usize = 32;

/// A peer that may follow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Admitted {
    /// The name of its key.
    pub fingerprint: [u8; FINGERPRINT],
    /// Since when.
    pub since: Tid,
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
        self.each(Inode::meta(CATALOGUE), Kind::PEER, &[ADMITTED], Tid::MAX, |suffix, since, _| {
            match suffix.strip_prefix(&[ADMITTED]).map(<[u8; FINGERPRINT]>::try_from) {
                Some(Ok(fingerprint)) => all.push(Admitted { fingerprint, since }),
                Some(Err(_)) => damaged = true,
                None => return ControlFlow::Break(()),
            }
            ControlFlow::Continue(())
        })?;
        match damaged {
            true => Err(FsError::malformed("the record of a peer that is admitted is in no known form")),
            false => Ok(all),
        }
    }

    /// Lets one follow, or (false) not any more. ENOENT if it was not admitted.
    pub fn admit(&self, fingerprint: &[u8; FINGERPRINT], may: bool, now_ns: u64) -> Result<()> {
        let suffix = [&[ADMITTED], &fingerprint[..]].concat();
        match (self.peer_record(&suffix)?.is_some(), may) {
            (true, true) => Ok(()),
            (false, false) => refuse(libc::ENOENT, "this key is not admitted"),
            _ => self.put_peer(&suffix, may.then_some(&[]), now_ns),
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

    fn peer_record(&self, suffix: &[u8]) -> Result<Option<Vec<u8>>> {
        let found = self.store.get(&Inode::meta(CATALOGUE).key(Kind::PEER, suffix), Tid::MAX)?;
        Ok(found.map(|found| found.value.to_vec()))
    }

    fn put_peer(&self, suffix: &[u8], value: Option<&[u8]>, now_ns: u64) -> Result<()> {
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
