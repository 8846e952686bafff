//! From any one volume to all others: it says which are the homes, their superblocks say which is the newest, and its roster has the rest.

use std::collections::HashSet;
use std::sync::Arc;

use crate::assemble::{Identity, identify, members};
use crate::volume::{Volume, VolumeEntry, VolumeKind};
use crate::{Error, Result};

/// Looks for a volume; gets what is said of it, what the newest superblock so far says besides, and what is said of the volume that was
/// asked for.
pub type Look<'l, T> = &'l mut dyn FnMut(&VolumeEntry, &Identity, Option<&VolumeEntry>) -> Option<(T, Arc<dyn Volume>)>;

/// A volume that was found, and what whoever looked knows of it.
pub struct Found<T> {
    /// That.
    pub what: T,
    /// The volume.
    pub volume: Arc<dyn Volume>,
    /// What it says of itself.
    pub identity: Identity,
}

/// Finds a store's volumes, as far as they can be found, but for the bucket. `first`: the one that was asked for; `others`: more of the
/// store's.
pub fn find<T>(
    first: (T, Arc<dyn Volume>),
    others: Vec<(T, Arc<dyn Volume>)>,
    look: Look<'_, T>,
) -> Result<Vec<Found<T>>> {
    let mut found = Vec::new();
    for (what, volume) in std::iter::once(first).chain(others) {
        let identity = identify(&*volume)?;
        if found.first().is_some_and(|f: &Found<T>| f.identity.uuid != identity.uuid) {
            return Err(Error::NotAStore(format!("{} is a volume of another store", volume.name())));
        }
        found.push(Found { what, volume, identity });
    }
    let mut numbers: HashSet<u16> = found.iter().map(|f| f.identity.number).collect();
    // Which superblock is the newest may change with each that is found.
    let mut newest = 0;
    let mut tried = HashSet::new();
    loop {
        newest = (0..found.len()).fold(newest, |best, i| {
            match found[i].identity.generation > found[best].identity.generation {
                true => i,
                false => best,
            }
        });
        let says = &found[newest].identity;
        let is_new = |e: &&VolumeEntry| {
            !numbers.contains(&e.number)
                && !tried.contains(&(says.generation, e.number))
                && says.homes.contains(&e.number)
        };
        let Some(entry) = says.volumes.iter().find(is_new).cloned() else { break };
        tried.insert((says.generation, entry.number));
        let own = &found[0].identity;
        let own = says.entry(own.number).or_else(|| own.entry(own.number));
        let there = look(&entry, says, own).and_then(|(what, volume)| Some((what, identify(&*volume).ok()?, volume)));
        if let Some((what, identity, volume)) = there.filter(|(_, id, _)| id.is(&says.uuid, &entry)) {
            numbers.insert(entry.number);
            found.push(Found { what, volume, identity });
        }
    }
    if found[newest].identity.names_all() {
        return Ok(found);
    }
    let volumes: Vec<Arc<dyn Volume>> = found.iter().map(|f| f.volume.clone()).collect();
    // (Why there is no table, the opening says.)
    let all = members(&volumes).unwrap_or_default();
    let own = all.iter().find(|e| e.number == found[0].identity.number);
    for entry in all.iter().filter(|e| !numbers.contains(&e.number) && e.kind != VolumeKind::Bucket) {
        let says = &found[newest].identity;
        let there = look(entry, says, own).and_then(|(what, volume)| Some((what, identify(&*volume).ok()?, volume)));
        if let Some((what, identity, volume)) = there.filter(|(_, id, _)| id.is(&says.uuid, entry)) {
            found.push(Found { what, volume, identity });
        }
    }
    Ok(found)
}
