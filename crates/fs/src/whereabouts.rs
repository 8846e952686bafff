//! Where stores of this machine are that follow each other. They tell each other so, and keep what they were told: any volume of
//! either may leave, that by which the other one knew it too. docs/format.md §Peers.
//!
//! A uuid alone says nothing of where: copies of a store have the same one, and each is a store of its own. So a store has moved only where
//! it is known by now by one of its former paths, or is at none of them any more.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use darner_store::{CATALOGUE, Kind, ObjectId, Tid};

use crate::change::SMALL;
use crate::codec::{Reader, put_bytes, put_varint};
use crate::error::{Result, refuse};
use crate::fs::Fs;
use crate::node::{Inode, MAIN};
use crate::peer::{MIRROR_AT, SOURCE_AT};

const VERSION: u8 = 1;
/// Stores of which it is remembered what they said, at most.
const SETTLED_MAX: usize = 10_000;

/// Where those who follow said last that they are, by their uuids, as long as there is nothing to be kept of it: each says so with every
/// look, several times a second.
pub(crate) type Settled = HashMap<[u8; 16], Vec<PathBuf>>;

/// Where another store is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whereabouts {
    /// Its uuid.
    pub store: [u8; 16],
    /// Paths of volumes of it, each of which leads to it.
    pub at: Vec<PathBuf>,
    /// If it is a source: the paths by which it knows this store.
    pub knows: Vec<PathBuf>,
}

impl Whereabouts {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend_from_slice(&self.store);
        for paths in [&self.at, &self.knows] {
            put_varint(&mut out, paths.len() as u64);
            paths.iter().for_each(|path| put_bytes(&mut out, path.as_os_str().as_bytes()));
        }
        out
    }

    fn decode(value: &[u8]) -> Option<Whereabouts> {
        let mut from = Reader(value);
        if from.byte()? != VERSION {
            return None;
        }
        let store = from.take(16)?.try_into().ok()?;
        let mut paths = || {
            let mut paths = Vec::new();
            for _ in 0..from.varint()? {
                paths.push(PathBuf::from(OsStr::from_bytes(from.bytes()?)));
            }
            Some(paths)
        };
        let (at, knows) = (paths()?, paths()?);
        from.end()?;
        Some(Whereabouts { store, at, knows })
    }
}

/// A mirror that was given a name here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedMirror {
    /// The name.
    pub name: String,
    /// Where its store was made.
    pub target: PathBuf,
    /// Where it said it is; none: it has said nothing yet.
    pub known: Option<Whereabouts>,
}

impl NamedMirror {
    /// Its store's uuid, if that is known.
    pub fn store(&self) -> Option<[u8; 16]> {
        self.known.as_ref().map(|known| known.store)
    }

    /// Where its store may be, the likeliest first.
    pub fn places(&self) -> Vec<PathBuf> {
        let mut all = self.known.as_ref().map(|known| known.at.clone()).unwrap_or_default();
        if !all.contains(&self.target) {
            all.push(self.target.clone());
        }
        all
    }
}

impl Fs {
    /// Where the store is that this one follows, as it said itself; none: it has said nothing yet.
    pub fn source_at(&self) -> Result<Option<Whereabouts>> {
        let Some(f) = self.following() else { return Ok(None) };
        let found = self.peer_record(&[SOURCE_AT])?;
        // (What is of another version is learned anew.)
        Ok(found.and_then(|value| Whereabouts::decode(&value)).filter(|known| known.store == f.source))
    }

    /// The source says that it is at these paths, and knows this store by those; that is kept, if it is new.
    pub fn keep_source_at(&self, at: &[PathBuf], knows: &[PathBuf], now_ns: u64) -> Result<()> {
        let Some(f) = self.following() else { return Ok(()) };
        let told = Whereabouts { store: f.source, at: at.to_vec(), knows: knows.to_vec() };
        match self.source_at()? {
            Some(known) if known == told => Ok(()),
            _ => self.put_peer(&[SOURCE_AT], Some(&told.encode()), now_ns),
        }
    }

    /// The mirrors that were given a name here.
    pub fn mirrors(&self) -> Result<Vec<NamedMirror>> {
        let mut all = Vec::new();
        self.each(Inode::meta(CATALOGUE), Kind::MIRROR, &[], Tid::MAX, |name, _, target| {
            let target = PathBuf::from(OsStr::from_bytes(target));
            all.push(NamedMirror { name: String::from_utf8_lossy(name).into_owned(), target, known: None });
            ControlFlow::Continue(())
        })?;
        for mirror in &mut all {
            let found = self.peer_record(&place_key(&mirror.name))?;
            mirror.known = found.and_then(|value| Whereabouts::decode(&value));
        }
        Ok(all)
    }

    /// Gives a mirror a name here, or (`None`) takes that away. What it has, it keeps.
    pub fn name_mirror(&self, name: &str, target: Option<&Path>, now_ns: u64) -> Result<()> {
        if name.is_empty() || name.len() > 128 || name.contains(['/', '@']) || name.contains(char::is_control) {
            return refuse(libc::EINVAL, "a mirror's name has 1 to 128 bytes, without / and @");
        }
        let plan = self.plan_own(MAIN, SMALL)?;
        match (target, self.mirrors()?.iter().any(|mirror| mirror.name == name)) {
            (Some(_), true) => return refuse(libc::EEXIST, "there is a mirror of this name"),
            (None, false) => return refuse(libc::ENOENT, "there is no mirror of this name"),
            _ => {}
        }
        let is_placed = self.peer_record(&place_key(name))?.is_some();
        plan.begin(now_ns)?.commit_catalogue(
            |tx| {
                tx.turn(CATALOGUE, 0, 0);
                match target {
                    Some(target) => tx.put(ObjectId(0), Kind::MIRROR, name.as_bytes(), target.as_os_str().as_bytes()),
                    None => tx.delete(ObjectId(0), Kind::MIRROR, name.as_bytes()),
                }
                if is_placed {
                    tx.delete(ObjectId(0), Kind::PEER, &place_key(name));
                }
            },
            |_| (),
        )?;
        self.mirror.settled.lock().clear();
        Ok(())
    }

    /// A store that follows this one says that it is at these paths. If it has a name here, that is kept: where it is known at one of
    /// them, or is at none of the paths that are known of it (as `is_there` tells). Else it is a copy of the mirror.
    pub fn keep_mirror_at(
        &self,
        store: [u8; 16],
        at: &[PathBuf],
        is_there: &dyn Fn(&Path) -> bool,
        now_ns: u64,
    ) -> Result<()> {
        if self.mirror.settled.lock().get(&store).is_some_and(|said| said == at) {
            return Ok(());
        }
        let is_it = |mirror: &NamedMirror| match &mirror.known {
            Some(known) => known.store == store,
            None => at.contains(&mirror.target),
        };
        if let Some(mirror) = self.mirrors()?.into_iter().find(is_it) {
            let before = mirror.known.map_or_else(|| vec![mirror.target], |known| known.at);
            let is_same = at.iter().any(|path| before.contains(path)) || !before.iter().any(|path| is_there(path));
            if !is_same || at.is_empty() {
                return Ok(());
            }
            self.place_mirror(&mirror.name, &Whereabouts { store, at: at.to_vec(), knows: Vec::new() }, now_ns)?;
        }
        let mut settled = self.mirror.settled.lock();
        if settled.len() >= SETTLED_MAX {
            settled.clear();
        }
        settled.insert(store, at.to_vec());
        Ok(())
    }

    /// Keeps where the mirror of a name is, if that is new.
    pub fn place_mirror(&self, name: &str, at: &Whereabouts, now_ns: u64) -> Result<()> {
        let (key, value) = (place_key(name), at.encode());
        match self.peer_record(&key)?.as_ref() == Some(&value) {
            true => Ok(()),
            false => self.put_peer(&key, Some(&value), now_ns),
        }
    }
}

fn place_key(name: &str) -> Vec<u8> {
    [&[MIRROR_AT], name.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(all: &[&str]) -> Vec<PathBuf> {
        all.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn whereabouts_come_back_and_no_bytes_make_decoding_panic() {
        let there = Whereabouts { store: [7; 16], at: paths(&["/a", "/b\u{fc}"]), knows: paths(&["/c"]) };
        assert_eq!(Whereabouts::decode(&there.encode()), Some(there.clone()));
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..100_000 {
            let mut bytes = there.encode();
            let at = rng.usize(..bytes.len());
            bytes[at] = rng.u8(..);
            bytes.truncate(rng.usize(..=bytes.len()));
            Whereabouts::decode(&bytes);
        }
    }
}
