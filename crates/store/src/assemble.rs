//! Which volumes a store has, and which of those that were found belong to it. docs/format.md §Volumes.
//!
//! The newest superblock on any of them says. A volume whose own is older by one has missed the last write, and is brought
//! up to date by the open; one that is further behind is a copy from another time, and refused, like one of another store.

use std::collections::HashMap;
use std::sync::Arc;

use crate::manifest::Manifest;
use crate::superblock::{OnVolume, Superblock};
use crate::volume::{BucketVolume, Buckets, RegionRef, Volume, VolumeEntry, VolumeKind, Volumes};
use crate::{Error, Result};

/// What a volume says of its store.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The store.
    pub uuid: [u8; 16],
    /// The volume's number in it.
    pub number: u16,
    /// How new that is: the highest counts.
    pub generation: u64,
    /// All volumes that the store has.
    pub volumes: Vec<VolumeEntry>,
}

/// What a volume says of its store; an error that says why if it is of none.
pub fn identify(volume: &dyn Volume) -> Result<Identity> {
    Ok(identity(Superblock::read(volume)?.swap_remove(0)))
}

/// What a volume's label says, whatever has become of its beginning; `None` if it has none.
pub fn identify_by_label(volume: &dyn Volume) -> Result<Option<Identity>> {
    Ok(Superblock::read_label(volume)?.into_iter().next().map(identity))
}

fn identity(OnVolume { number, superblock: sb }: OnVolume) -> Identity {
    Identity { uuid: sb.uuid, number, generation: sb.generation, volumes: sb.volumes }
}

/// Writes the beginning of a volume anew from the label at its end; durable on return. What else was overwritten is damaged, and
/// noticed as that.
pub fn reclaim(volume: &dyn Volume) -> Result<Identity> {
    if let Ok(id) = identify(volume) {
        return Err(Error::Refused(format!(
            "{} is volume {} of a store, and its beginning is as it should be",
            volume.name(),
            id.number
        )));
    }
    let label = identify_by_label(volume)?;
    let label = label
        .ok_or_else(|| Error::NotAStore(format!("{} has no label of a darner store at its end", volume.name())))?;
    for slot in 0..2 {
        volume.write_super(slot, &volume.read_label(slot)?.unwrap_or_default())?;
    }
    Ok(label)
}

/// A superblock that may be the store's, and its volumes.
pub(crate) struct Candidate {
    pub superblock: Superblock,
    pub volumes: Volumes,
    pub missing: Vec<VolumeEntry>,
}

/// The superblocks on these volumes, newest first, as the first of them has to do with them. Volumes of other stores are of
/// no account, but for the first.
pub(crate) fn assemble(found: &[Arc<dyn Volume>], reach: &Reach) -> Result<Vec<Candidate>> {
    let (first, others) = found.split_first().expect("a store is opened by a volume");
    let mut known = vec![(first.clone(), Superblock::read(&**first)?)];
    let uuid = known[0].1[0].superblock.uuid;
    for volume in others {
        match Superblock::read(&**volume) {
            Ok(supers) if supers[0].superblock.uuid == uuid => known.push((volume.clone(), supers)),
            Ok(_) | Err(Error::NotAStore(_)) => {}
            Err(e) => return Err(e),
        }
    }
    let mut all: Vec<Superblock> = known.iter().flat_map(|(_, s)| s.iter().map(|s| s.superblock.clone())).collect();
    let rank = |sb: &Superblock| std::cmp::Reverse((sb.generation, sb.attempt));
    all.sort_by_key(rank);
    all.dedup_by_key(|sb| rank(sb));
    let newest = all[0].clone();
    let own = &known[0].1[0];
    if newest.entry(own.number).is_none() {
        return Err(Error::NotAStore(format!(
            "{} was volume {} of a store that has left it: the store's volumes are {}",
            first.name(),
            own.number,
            names(&newest)
        )));
    }
    let mut candidates = vec![candidate(newest, &known, reach)?];
    // What the older ones need may be gone.
    let newest = &all[0];
    let is_away = |sb: &Superblock, number| sb.entry(number).is_some_and(|e| e.away.is_some());
    // And one that knows nothing of a volume that was left behind would take what that has for the present.
    let knows = |sb: &Superblock| newest.volumes.iter().all(|e| e.away.is_none() || is_away(sb, e.number));
    let older = all.iter().skip(1).filter(|sb| sb.generation + 1 >= newest.generation && knows(sb));
    candidates.extend(older.filter_map(|sb| candidate(sb.clone(), &known, reach).ok()));
    Ok(candidates)
}

/// How the store's bucket is reached, and how much memory there is for what is read of it.
pub(crate) struct Reach {
    pub buckets: Option<Buckets>,
    pub memory: u64,
}

impl Reach {
    /// The bucket of a superblock. Nothing is asked of it.
    pub fn bucket(&self, sb: &Superblock) -> Option<Arc<BucketVolume>> {
        let entry = sb.volumes.iter().find(|e| e.kind == VolumeKind::Bucket)?;
        let bucket = self.buckets.as_ref()?.0(&entry.name());
        Some(Arc::new(BucketVolume::new(bucket, entry.number, entry.epoch, self.memory)))
    }
}

fn candidate(sb: Superblock, known: &[(Arc<dyn Volume>, Vec<OnVolume>)], reach: &Reach) -> Result<Candidate> {
    let mut there: HashMap<u16, Arc<dyn Volume>> = HashMap::new();
    for entry in &sb.volumes {
        let claims = known.iter().filter(|(_, s)| s[0].number == entry.number);
        // (The first one where two say the same.)
        let Some((volume, supers)) = claims.rev().max_by_key(|(_, s)| s[0].superblock.generation) else { continue };
        let generation = supers[0].superblock.generation;
        let missed_all = entry.away.is_some_and(|since| generation <= since + 1);
        if generation + 1 < sb.generation && !missed_all {
            return Err(Error::NotAStore(format!(
                "{} is volume {} of this store as it was at another time (generation {generation}; the store is at {}): it can't \
                 be used any more",
                volume.name(),
                entry.number,
                sb.generation
            )));
        }
        let theirs = &supers[0].superblock;
        if let Some(other) = entry.away.and_then(|since| went_on_without(theirs, since, &sb)) {
            return Err(Error::NotAStore(format!(
                "{} and volume {} were both written to while the other was missing: both can't hold. Mount with one of them out of reach (with \
                 --degraded); then remove the other as lost, and add it anew",
                volume.name(),
                other.number,
            )));
        }
        there.insert(entry.number, volume.clone());
    }
    let volumes = Volumes::new(&sb, &there, reach.bucket(&sb));
    let missing = sb.volumes.iter().filter(|e| !volumes.is_there(e.number)).cloned().collect();
    Ok(Candidate { volumes, superblock: sb, missing })
}

/// A volume that the superblock of one that was away `since` a generation has left behind, and that was not in fact.
fn went_on_without<'s>(theirs: &'s Superblock, since: u64, newest: &Superblock) -> Option<&'s VolumeEntry> {
    let left = |e: &&VolumeEntry| e.away.is_some_and(|at| at >= since);
    theirs.volumes.iter().filter(left).find(|e| newest.entry(e.number).is_none_or(|n| n.away != e.away))
}

fn names(sb: &Superblock) -> String {
    let names: Vec<String> = sb.volumes.iter().map(|v| format!("{} ({})", v.number, v.name())).collect();
    names.join(", ")
}

impl Candidate {
    /// Reads the manifest, if no volume is missing, or that is fine.
    pub fn manifest(&self, degraded: bool) -> Result<Manifest> {
        let manifest = self.read_manifest();
        match self.missing.first() {
            None => manifest,
            Some(_) if degraded => manifest,
            Some(first) => Err(self.is_missing(first, manifest.ok().as_ref())),
        }
    }

    /// Reads the manifest, if the volume that it is on is there.
    pub fn read_manifest(&self) -> Result<Manifest> {
        let at = self.superblock.manifest.without(|number| self.volumes.is_outdated(number));
        let region = self.volumes.open(at)?;
        Manifest::read(&*region, self.superblock.manifest_len)
    }

    fn is_missing(&self, entry: &VolumeEntry, manifest: Option<&Manifest>) -> Error {
        let affected = manifest.map_or("what is on it can't be told without it".into(), |m| {
            let all: Vec<RegionRef> = m.regions().collect();
            let there = all.iter().filter(|at| at.volume == entry.number && at.second.is_none());
            let (n, bytes) = there.fold((0, 0), |(n, bytes), at| (n + 1, bytes + at.size));
            format!("{n} of the {} regions are on it only, {bytes} bytes", all.len())
        });
        Error::Missing { number: entry.number, place: entry.name(), affected }
    }
}
