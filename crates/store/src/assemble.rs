//! Which volumes a store has, and which of those that were found belong to it. docs/format.md §Volumes.
//!
//! The newest superblock on any of them says. A home whose own is older by one has missed the last write, and is brought
//! up to date by the open; one that is further behind is a copy from another time, and counts as missing. A sign that is
//! newer than all superblocks says that the newest is on homes that are missing: then nothing is opened. One that another
//! copy of the store has written is not of this one, however new.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::manifest::Manifest;
use crate::opening::Openings;
use crate::superblock::{OnVolume, Superblock};
use crate::volume::{
    BucketVolume, Buckets, LEFT_BEHIND, RegionRef, There, Volume, VolumeEntry, VolumeKind, Volumes, read_roster,
};
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
    /// The volumes that it names, itself among them, ascending by number. In a store of many these are not all: [`members`] has them.
    pub volumes: Vec<VolumeEntry>,
    /// Those of them that have superblocks: from there the others are found.
    pub homes: Vec<u16>,
    /// Who has written to it.
    pub openings: Openings,
    names_all: bool,
}

impl Identity {
    /// What it says of a volume.
    pub fn entry(&self, number: u16) -> Option<&VolumeEntry> {
        self.volumes.binary_search_by_key(&number, |e| e.number).ok().map(|i| &self.volumes[i])
    }

    /// Whether the volumes that it names are all that there are.
    pub fn names_all(&self) -> bool {
        self.names_all
    }

    /// Whether this is what a store means by the volume of that number.
    pub fn is(&self, uuid: &[u8; 16], entry: &VolumeEntry) -> bool {
        let mark = self.entry(self.number).map(|own| own.mark);
        (self.uuid, self.number, mark) == (*uuid, entry.number, Some(entry.mark))
    }
}

/// All volumes of the store that these are of, ascending by number; an error if none of them has its superblock. The first is of the store.
pub fn members(found: &[Arc<dyn Volume>]) -> Result<Vec<VolumeEntry>> {
    let known = known(found)?;
    let mut newest = ranked(&known)?.swap_remove(0);
    complete(&mut newest, &known)?;
    Ok(newest.volumes.iter().cloned().collect())
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
    let volumes = sb.volumes.iter().cloned().collect();
    let names_all = sb.roster.is_none();
    let (generation, openings) = (sb.generation, sb.openings);
    Identity { uuid: sb.uuid, number, generation, volumes, homes: sb.homes, openings, names_all }
}

/// Writes the beginning of a volume anew from the label at its end; durable on return. What else was overwritten is damaged, and
/// noticed as that. A directory has its superblocks from another volume of its store (`of`), or from behind its newest manifest.
pub fn reclaim(volume: &dyn Volume, of: Option<&dyn Volume>) -> Result<Identity> {
    if let Ok(id) = identify(volume) {
        return Err(Error::Refused(format!(
            "{} is volume {} of a store, and its beginning is as it should be",
            volume.name(),
            id.number
        )));
    }
    if volume.kind() == VolumeKind::Directory {
        return reclaim_directory(volume, of);
    }
    let label = identify_by_label(volume)?;
    let label = label
        .ok_or_else(|| Error::NotAStore(format!("{} has no label of a darner store at its end", volume.name())))?;
    for slot in 0..2 {
        volume.write_super(slot, &volume.read_label(slot)?.unwrap_or_default())?;
    }
    Ok(label)
}

fn reclaim_directory(volume: &dyn Volume, of: Option<&dyn Volume>) -> Result<Identity> {
    let refused = |why: &str| Error::Refused(format!("{}: {why}", volume.name()));
    let mut own: Option<Superblock> = None;
    for at in volume.list()?.unwrap_or_default() {
        let region = volume.open(at)?;
        let found = Manifest::superblock(&*region, VolumeKind::Directory)?;
        let found = found.filter(|sb| Manifest::read(&*region, sb.manifest_len).is_ok());
        own = found.into_iter().chain(own).max_by_key(|sb| (sb.generation, sb.attempt));
    }
    let other = of.map(|of| Superblock::read(of).map(|mut found| found.swap_remove(0).superblock)).transpose()?;
    if let (Some(own), Some(other)) = (&own, &other)
        && own.uuid != other.uuid
    {
        return Err(refused("its regions are of another store"));
    }
    let Some(sb) = other.or(own.clone()) else {
        return Err(refused("no manifest is here that would tell what it was; --of names another volume of its store"));
    };
    // Which of them it is: where it was, or where its manifest is.
    let is_here = |e: &&VolumeEntry| e.kind == VolumeKind::Directory && e.hint == volume.hint();
    let only = |sb: &Superblock| sb.manifest.second.is_none().then_some(sb.manifest.volume);
    let number = sb.volumes.iter().find(is_here).map(|e| e.number).or_else(|| own.as_ref().and_then(only));
    let number = number.filter(|n| sb.entry(*n).is_some());
    let number = number.ok_or_else(|| {
        refused("which of its store's volumes it was can't be told: put it back where it was, or name another one with --of")
    })?;
    match sb.is_home(number) {
        true => [0, 1].into_iter().try_for_each(|slot| volume.write_super(slot, &sb.encode(number)))?,
        false => sb.write_sign(volume, number)?,
    }
    identify(volume)
}

/// A superblock that may be the store's, and its volumes.
pub(crate) struct Candidate {
    pub superblock: Superblock,
    pub volumes: Volumes,
    pub missing: Vec<VolumeEntry>,
    /// Of those that count as missing, what is there instead: their number, and a sentence.
    pub instead: Vec<(u16, String)>,
    /// Those that are one superblock behind.
    behind: Vec<u16>,
}

/// A volume and what is on it, newest first.
type Known = (Arc<dyn Volume>, Vec<OnVolume>);

/// The first of these, and those of the same store that can be read.
fn known(found: &[Arc<dyn Volume>]) -> Result<Vec<Known>> {
    let (first, others) = found.split_first().expect("a store is opened by a volume");
    let mut known = vec![(first.clone(), Superblock::read(&**first)?)];
    let uuid = known[0].1[0].superblock.uuid;
    for volume in others {
        match Superblock::read(&**volume) {
            Ok(supers) if supers[0].superblock.uuid == uuid => known.push((volume.clone(), supers)),
            Ok(_) | Err(Error::NotAStore(_)) => {}
            Err(e) => tracing::error!("{} counts as missing: {e}", volume.name()),
        }
    }
    Ok(known)
}

/// The superblocks that count, newest first; an error if a sign says that there are newer ones.
fn ranked(known: &[Known]) -> Result<Vec<Superblock>> {
    let rank = |sb: &Superblock| std::cmp::Reverse((sb.generation, sb.attempt));
    let counts = |on: &&OnVolume| on.superblock.is_home(on.number);
    let mut all: Vec<Superblock> =
        known.iter().flat_map(|(_, s)| s.iter().filter(counts).map(|s| s.superblock.clone())).collect();
    all.sort_by_key(rank);
    all.dedup_by_key(|sb| rank(sb));
    let signs = known.iter().filter_map(|(_, s)| s.first().filter(|on| !counts(on)));
    let newest = signs.max_by_key(|on| on.superblock.generation).map(|on| &on.superblock);
    if let Some(sign) = newest.filter(|sign| all.first().is_none_or(|sb| sb.generation < sign.generation)) {
        return Err(Error::NotAStore(format!(
            "what the store is now is on its volumes {}, and none of them is there: without one of them nothing can be opened",
            names(sign.homes.iter().filter_map(|n| sign.entry(*n)))
        )));
    }
    Ok(all)
}

/// Gets the table of all volumes, where a superblock has not all of it.
fn complete(sb: &mut Superblock, known: &[Known]) -> Result<()> {
    let Some(roster) = sb.roster.clone() else { return Ok(()) };
    let mut outcome = Err(Error::NotAStore(format!(
        "the table of volumes is on {}, and can't be read there: without it nothing can be opened",
        names(roster.at.places().filter_map(|at| sb.entry(at.volume)))
    )));
    for at in roster.at.places() {
        let is_it = |(_, s): &&Known| s[0].number == at.volume;
        for (volume, _) in known.iter().filter(is_it) {
            match volume.open(at).and_then(|region| read_roster(&*region, &roster, sb.version)) {
                Ok(table) => {
                    sb.complete(table);
                    return Ok(());
                }
                Err(e) => outcome = Err(e),
            }
        }
    }
    outcome
}

/// The superblocks on these volumes, newest first, as the first of them has to do with them. Volumes of other stores are of
/// no account, but for the first.
pub(crate) fn assemble(found: &[Arc<dyn Volume>], reach: &Reach) -> Result<Vec<Candidate>> {
    let known = known(found)?;
    let mut all = ranked(&known)?;
    complete(&mut all[0], &known)?;
    let newest = &all[0];
    must_be_of_one_copy(newest, &known)?;
    let own = &known[0].1[0];
    let own_mark = own.superblock.entry(own.number).map(|e| e.mark);
    if newest.entry(own.number).is_none_or(|e| Some(e.mark) != own_mark) {
        return Err(Error::NotAStore(format!(
            "{} was volume {} of a store that has left it: the store's volumes are {}",
            found[0].name(),
            own.number,
            names(newest.volumes.iter())
        )));
    }
    let first = candidate(newest.clone(), &known, reach, &[])?;
    let stale = first.stale();
    if !stale.is_empty() {
        return Ok(vec![candidate(newest.clone(), &known, reach, &stale)?]);
    }
    let mut candidates = vec![first];
    // What the older ones need may be gone.
    let is_away = |sb: &Superblock, number| sb.entry(number).is_some_and(|e| e.away.is_some());
    // And one that knows nothing of a volume that was left behind would take what that has for the present.
    let knows = |sb: &Superblock| newest.volumes.iter().all(|e| e.away.is_none() || is_away(sb, e.number));
    let may_serve = |sb: &&Superblock| sb.generation + 1 >= newest.generation && newest.knows(sb);
    for older in all.iter().skip(1).filter(may_serve) {
        let mut older = older.clone();
        if complete(&mut older, &known).is_ok() && knows(&older) {
            candidates.extend(candidate(older, &known, reach, &[]).ok());
        }
    }
    Ok(candidates)
}

/// Two of one generation of which neither knows the other: which of them the store is, only its owner can tell.
fn must_be_of_one_copy(newest: &Superblock, known: &[Known]) -> Result<()> {
    let is_newest = |sb: &Superblock| (sb.generation, sb.attempt) == (newest.generation, newest.attempt);
    let of = |knows: bool| {
        let found = |(_, s): &&Known| is_newest(&s[0].superblock) && newest.knows(&s[0].superblock) == knows;
        known.iter().find(found).map(|(volume, _)| volume.name())
    };
    match (of(true), of(false)) {
        (Some(one), Some(other)) => Err(Error::NotAStore(format!(
            "{one} and {other} were both written to, each without the other (are they of two copies of the store?): both can't hold. Mount with \
             one of them out of reach (with --degraded); then remove the other as lost, and add it anew"
        ))),
        _ => Ok(()),
    }
}

/// How the store's bucket is reached, and how much memory there is for what is read of it.
pub(crate) struct Reach {
    pub buckets: Option<Buckets>,
    pub memory: u64,
}

impl Reach {
    /// The bucket of a superblock. Nothing is asked of it.
    pub fn bucket(&self, sb: &Superblock) -> Option<Arc<BucketVolume>> {
        let entry = sb.bucket()?;
        let bucket = self.buckets.as_ref()?.0(&entry.name());
        Some(Arc::new(BucketVolume::new(bucket, entry.number, entry.epoch, sb.uuid, self.memory)))
    }
}

/// `stale`: volumes that are not what they should be.
fn candidate(sb: Superblock, known: &[Known], reach: &Reach, stale: &[u16]) -> Result<Candidate> {
    let mut claims: HashMap<u16, &Known> = HashMap::new();
    // (The first one where two say the same.)
    for claim in known.iter().rev() {
        let on = &claim.1[0];
        let mark = on.superblock.entry(on.number).map(|e| e.mark);
        let is_one = sb.entry(on.number).is_some_and(|e| Some(e.mark) == mark);
        let other = claims.get(&on.number).map(|(_, s)| s[0].superblock.generation);
        if is_one && other.is_none_or(|other| on.superblock.generation >= other) {
            claims.insert(on.number, claim);
        }
    }
    let mut there: HashMap<u16, There> = HashMap::new();
    let (mut instead, mut behind) = (Vec::new(), Vec::new());
    for entry in sb.volumes.iter() {
        let Some((volume, supers)) = claims.get(&entry.number) else { continue };
        let theirs = &supers[0].superblock;
        let generation = theirs.generation;
        // (It may have got superblocks again, before it was up to date, and failed once more: they say that it is away.)
        let is_told = |on: &OnVolume| on.superblock.entry(entry.number).is_some_and(|own| own.away == entry.away);
        let was_back = entry.away.is_some() && supers.iter().any(is_told);
        let missed_all = was_back || entry.away.is_some_and(|since| generation <= since + 1);
        // (A sign may be of any time.)
        let counts = theirs.is_home(entry.number);
        let went_on = entry.away.and_then(|since| went_on_without(theirs, entry.number, since, &sb));
        let should_be_as_new = counts && sb.is_home(entry.number) && !missed_all;
        // (What came to one that was then left behind, others may have written otherwise.)
        let missed_last =
            was_back || entry.away.is_some_and(|since| generation == since + 1) && theirs.attempt < LEFT_BEHIND;
        if !missed_last && !sb.knows(theirs) && went_on.is_none() {
            let (name, now) = (volume.name(), sb.generation);
            let what = format!(
                "{name} is that volume in another copy of the store, which went on to generation {generation}; this one is at {now}; "
            );
            instead.push((entry.number, what));
            continue;
        }
        if should_be_as_new && generation + 1 == sb.generation {
            behind.push(entry.number);
        }
        if should_be_as_new && generation + 1 < sb.generation || stale.contains(&entry.number) {
            // A copy of it, or what a backup had of it. Opened without, the store leaves it behind, and may have it back.
            let what = format!(
                "{} is that volume as it was at another time, generation {generation}, the store is at {}; ",
                volume.name(),
                sb.generation
            );
            instead.push((entry.number, what));
            continue;
        }
        if let Some(other) = went_on {
            return Err(Error::NotAStore(format!(
                "{} and {other} were both written to while the other was missing: both can't hold. Mount with one of them out of reach (with \
                 --degraded); then remove the other as lost, and add it anew",
                volume.name(),
            )));
        }
        let sign = if counts { 0 } else { generation };
        there.insert(entry.number, There { volume: volume.clone(), sign });
    }
    let volumes = Volumes::new(&sb, &there, reach.bucket(&sb));
    let missing = sb.volumes.iter().filter(|e| !volumes.is_there(e.number)).cloned().collect();
    Ok(Candidate { volumes, superblock: sb, missing, instead, behind })
}

/// Whom the superblock of one that was away `since` a generation has left behind, and that was not in fact.
fn went_on_without(theirs: &Superblock, number: u16, since: u64, newest: &Superblock) -> Option<String> {
    let left = |e: &&VolumeEntry| e.away.is_some_and(|at| at >= since);
    let other = theirs.volumes.iter().filter(left).find(|e| newest.entry(e.number).is_none_or(|n| n.away != e.away));
    if let Some(other) = other {
        return Some(format!("volume {}", other.number));
    }
    // Whom it has left behind may be in a table that is out of reach by now.
    let is_of_many = theirs.roster.is_some() || newest.roster.is_some();
    let knows = theirs.entry(number).is_some_and(|own| own.away == Some(since));
    let is_later = theirs.generation > since + 1 || theirs.generation > since && theirs.attempt >= LEFT_BEHIND;
    (is_of_many && is_later && !knows).then(|| "volumes that are here".into())
}

/// So many volumes are named at most.
const NAMED: usize = 10;

fn names<'e>(entries: impl Iterator<Item = &'e VolumeEntry>) -> String {
    let mut names: Vec<String> = entries.map(|v| format!("{} ({})", v.number, v.name())).collect();
    let more = names.len().saturating_sub(NAMED);
    names.truncate(NAMED);
    match more {
        0 => names.join(", "),
        _ => format!("{} and {more} more", names.join(", ")),
    }
}

impl Candidate {
    /// Volumes one superblock behind that are so because they are of another time, and not because a write of that ended amid it: what a
    /// superblock names was on all of them before it was written.
    fn stale(&self) -> Vec<u16> {
        if self.behind.is_empty() {
            return Vec::new();
        }
        match self.read_manifest() {
            Ok(manifest) => self.behind.iter().copied().filter(|number| self.lacks_some(*number, &manifest)).collect(),
            Err(e) if e.is_lost() => self.behind.clone(),
            Err(_) => Vec::new(),
        }
    }

    /// Whether a volume has not got all that a manifest says is there.
    fn lacks_some(&self, number: u16, manifest: &Manifest) -> bool {
        let Ok(Some(list)) = self.volumes.list_of(number) else { return false };
        let there: HashSet<u64> = list.iter().map(|at| at.id).collect();
        manifest.regions().any(|at| at.on(number).is_some() && !there.contains(&at.id))
    }

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
        let instead = self.instead.iter().find(|(number, _)| *number == entry.number).map_or("", |(_, what)| what);
        Error::Missing { number: entry.number, place: entry.name(), affected: format!("{instead}{affected}") }
    }
}
