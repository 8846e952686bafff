//! Volumes whose beginning something has overwritten: told by the label at their end, and taken back on request.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use darner_store::volume::Volume;
use darner_store::{Identity, identify, identify_by_label, was_volume};

use crate::error::{Context, Failure, Result};
use crate::place::{Place, devices, is_volume_at};

/// Takes a volume back whose beginning something has overwritten, by the label at its end; a directory without superblocks by what its
/// newest manifest says, or another volume of the store, `of`.
pub fn reclaim(path: &Path, of: Option<&Path>, force: bool) -> Result<Identity> {
    let place = Place::at(path)?;
    let path = place.path.display();
    let _lock = place.lock(true)?;
    if place.is_dir() {
        let of = of.map(|of| Place::at(of)?.volume(false)).transpose()?;
        return Ok(darner_store::reclaim(&*place.volume(true)?, of.as_deref())?);
    }
    let file = File::open(&place.path).cant(|| format!("open {path}"))?;
    let mut beginning = vec![0; 128 << 10];
    let n = file.read_at(&mut beginning, 0).cant(|| format!("read {path}"))?;
    beginning.truncate(n);
    let volume = place.volume(true)?;
    // (Not to speak of what is there where there is nothing to take back.)
    if let (Some(what), false, Ok(Some(_))) = (filesystem(&beginning), force, identify_by_label(&*volume)) {
        return Err(Failure::new(format!("{path} holds {what} now; --force destroys that")));
    }
    Ok(darner_store::reclaim(&*volume, None)?)
}

/// What has its signature at the beginning of a device.
fn filesystem(beginning: &[u8]) -> Option<&'static str> {
    let known: [(usize, &[u8], &str); 8] = [
        (1080, &[0x53, 0xef], "an ext2, ext3 or ext4 filesystem"),
        (0, b"XFSB", "an XFS filesystem"),
        (65600, b"_BHRfS_M", "a Btrfs filesystem"),
        (0, b"LUKS", "an encrypted volume"),
        (512, b"EFI PART", "a partition table"),
        (536, b"LVM2 001", "a physical volume of LVM"),
        (4086, b"SWAPSPACE2", "a swap area"),
        (510, &[0x55, 0xaa], "a partition table or a FAT filesystem"),
    ];
    let is_there = |(at, magic, _): &(usize, &[u8], &str)| beginning.get(*at..).is_some_and(|b| b.starts_with(magic));
    known.into_iter().find(is_there).map(|(.., what)| what)
}

/// Of a missing volume: whether it is where it was, but an original's, or there or on another device but for its beginning.
pub fn overwritten(e: darner_store::Error, found: &[Arc<dyn Volume>]) -> Failure {
    let darner_store::Error::Missing { number, place, affected } = &e else { return Failure::new(&e) };
    let Some(uuid) = found.iter().find_map(|v| identify(&**v).ok()).map(|id| id.uuid) else { return Failure::new(&e) };
    let was_it = |path: &PathBuf| {
        // (One that is as it was at another time has its beginning.)
        let volume = Place::at(path).and_then(|p| p.volume(false)).ok().filter(|v| identify(&**v).is_err());
        let label = volume.and_then(|v| identify_by_label(&*v).ok().flatten());
        label.is_some_and(|id| id.uuid == uuid && id.number == *number)
    };
    let is_there = is_volume_at(Path::new(place), uuid, *number) && !affected.contains(place.as_str());
    if let Some(original) = original_of(&*found[0], Path::new(place)).filter(|_| is_there) {
        return Failure::new(format!(
            "{e}. {place} is there, but so is the store that this one is a copy of, with {}, and it is that one's: --volume {place} takes it \
             for this one all the same",
            original.display()
        ));
    }
    let there = Place::at(Path::new(place)).ok().and_then(|p| p.volume(false).ok());
    if there.is_some_and(|v| identify(&*v).is_err() && was_volume(&*v).unwrap_or(false)) {
        let of = found[0].name();
        return Failure::new(format!(
            "{e}. {place} was a volume, and has no valid superblock: darner volume reclaim {place} --of {of} takes it back"
        ));
    }
    match std::iter::once(PathBuf::from(place)).chain(devices()).find(was_it) {
        Some(path) => {
            let path = path.display();
            Failure::new(format!(
                "{e}. {path} was that volume, as the label at its end says, and its beginning was overwritten: darner volume reclaim \
                 {path} takes it back"
            ))
        }
        None => Failure::new(&e),
    }
}

/// Where the volume is of which this one is a copy, by what it says or another one of the store, at `other`.
fn original_of(copy: &dyn Volume, other: &Path) -> Option<PathBuf> {
    let place = Place::at(Path::new(&copy.name())).ok()?;
    let own = identify(copy).ok()?;
    let other = identify(&*Place::at(other).ok()?.volume(false).ok()?).ok()?;
    [&own, &other].into_iter().filter_map(|id| id.entry(own.number)).find_map(|says| place.original(own.uuid, says))
}
