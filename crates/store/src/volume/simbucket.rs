//! The simulator's bucket: objects in memory, in the machine of simulated disks, whose events and failing operations it shares.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::Bucket;
use super::sim::{Machine, SimDisk};
use crate::{Error, Result};

type Objects = BTreeMap<String, Arc<[u8]>>;

#[derive(Clone)]
enum Change {
    Put(String, Arc<[u8]>),
    Delete(String),
}

#[derive(Default)]
struct State {
    objects: Objects,
    /// What there was when recording began, and what changed since, and when.
    before: Option<Objects>,
    changes: Vec<(u64, Change)>,
    /// What rotten objects were.
    sound: Objects,
}

/// A bucket in memory. Clones share it.
#[derive(Clone)]
pub struct SimBucket {
    machine: Arc<Machine>,
    state: Arc<Mutex<State>>,
    unreachable: Arc<AtomicBool>,
}

impl SimBucket {
    /// An empty one in the machine of a disk.
    pub fn beside(disk: &SimDisk) -> SimBucket {
        SimBucket { machine: disk.machine(), state: Arc::default(), unreachable: Arc::default() }
    }

    /// As it was once `n` events of the machine were issued, in the machine of another disk.
    pub fn crashed(&self, n: usize, disk: &SimDisk) -> SimBucket {
        let state = self.state.lock();
        let mut objects = state.before.clone().unwrap_or_default();
        for (_, change) in state.changes.iter().take_while(|(at, _)| *at < n as u64) {
            match change.clone() {
                Change::Put(name, bytes) => drop(objects.insert(name, bytes)),
                Change::Delete(name) => drop(objects.remove(&name)),
            }
        }
        let state = State { objects, ..State::default() };
        SimBucket { state: Arc::new(Mutex::new(state)), ..SimBucket::beside(disk) }
    }

    /// The same objects, in the machine of another disk.
    pub fn fork(&self, disk: &SimDisk) -> SimBucket {
        let state = State { objects: self.state.lock().objects.clone(), ..State::default() };
        SimBucket { state: Arc::new(Mutex::new(state)), ..SimBucket::beside(disk) }
    }

    /// Whether it can be reached.
    pub fn set_reachable(&self, reachable: bool) {
        self.unreachable.store(!reachable, Ordering::SeqCst);
    }

    /// Flips bits of a byte of an object.
    pub fn flip(&self, name: &str, at: usize, bits: u8) {
        let mut state = self.state.lock();
        let bytes = state.objects.get_mut(name).expect("it is there");
        let sound = bytes.clone();
        Arc::make_mut(bytes)[at] ^= bits;
        state.sound.entry(name.into()).or_insert(sound);
    }

    /// Has the end of an object be gone.
    pub fn shorten(&self, name: &str, len: usize) {
        let mut state = self.state.lock();
        let bytes = state.objects.get_mut(name).expect("it is there");
        let sound = std::mem::replace(bytes, bytes[..len].into());
        state.sound.entry(name.into()).or_insert(sound);
    }

    /// Has an object be gone.
    pub fn lose(&self, name: &str) {
        let mut state = self.state.lock();
        state.objects.remove(name).expect("it is there");
        state.sound.remove(name);
    }

    /// Names and bytes.
    pub fn objects(&self) -> BTreeMap<String, Arc<[u8]>> {
        self.state.lock().objects.clone()
    }

    fn operate(&self, action: &'static str) -> Result<()> {
        let failed = |kind: ErrorKind| Error::Io { place: self.name(), action, source: Arc::new(kind.into()) };
        if self.unreachable.load(Ordering::SeqCst) {
            return Err(failed(ErrorKind::TimedOut));
        }
        self.machine.operate().map_err(|e| failed(e.kind()))
    }

    fn change(&self, state: &mut State, change: Change) {
        if let Some(at) = self.machine.event() {
            if state.before.is_none() {
                state.before = Some(state.objects.clone());
            }
            state.changes.push((at, change.clone()));
        }
        match change {
            Change::Put(name, bytes) => drop(state.objects.insert(name, bytes)),
            Change::Delete(name) => drop(state.objects.remove(&name)),
        }
    }
}

impl Bucket for SimBucket {
    fn name(&self) -> String {
        "s3://simulated".into()
    }

    fn put(&self, objects: Vec<(String, Vec<u8>)>) -> Result<()> {
        for (name, bytes) in objects {
            self.operate("put")?;
            let mut state = self.state.lock();
            // What was damaged may be put as it was.
            let there = state.sound.remove(&name).or_else(|| state.objects.get(&name).cloned());
            assert!(there.is_none_or(|there| *there == *bytes), "{name} was put with other bytes");
            self.change(&mut state, Change::Put(name, bytes.into()));
        }
        Ok(())
    }

    fn put_new(&self, name: &str, bytes: Vec<u8>) -> Result<bool> {
        let outcome = self.operate("put");
        let mut state = self.state.lock();
        // What failed may have come to pass all the same.
        let is_new = !state.objects.contains_key(name);
        let lost = matches!(&outcome, Err(Error::Io { source, .. }) if source.kind() != ErrorKind::TimedOut);
        if is_new && (outcome.is_ok() || lost) {
            self.change(&mut state, Change::Put(name.into(), bytes.into()));
        }
        outcome.map(|()| is_new)
    }

    fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Vec<u8>> {
        self.operate("get")?;
        let found = self.state.lock().objects.get(name).cloned();
        let missing = || Error::Io {
            place: format!("{}, object {name}", self.name()),
            action: "get",
            source: Arc::new(ErrorKind::NotFound.into()),
        };
        let bytes = found.ok_or_else(missing)?;
        let range = range.unwrap_or(0..bytes.len() as u64);
        let end = (range.end as usize).min(bytes.len());
        Ok(bytes[(range.start as usize).min(end)..end].to_vec())
    }

    fn list(&self, prefix: &str, after: &str) -> Result<Vec<(String, u64)>> {
        self.operate("list")?;
        let state = self.state.lock();
        let within = state.objects.iter().filter(|(name, _)| name.starts_with(prefix) && name.as_str() > after);
        // Few at a time, so that going on is tested too.
        Ok(within.take(7).map(|(name, bytes)| (name.clone(), bytes.len() as u64)).collect())
    }

    fn delete(&self, names: &[String]) -> Result<()> {
        for name in names {
            self.operate("delete")?;
            let mut state = self.state.lock();
            if state.objects.contains_key(name) {
                self.change(&mut state, Change::Delete(name.clone()));
            }
        }
        Ok(())
    }
}
