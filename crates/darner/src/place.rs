//! Where a store is: directories, image files or block devices, one for each volume; and who may have it open.
//!
//! One store is open in one process: the locks are on the directories and files themselves (flock), so they end with their holder.
//! From any one volume the others are found: where they were last; where they are now if all have moved together; where
//! the user says; devices under whatever name they have now, by what is written on them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::hash::Hasher;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use darner_store::volume::{DirVolume, Disk, FileDisk, Part, RawVolume, Volume, VolumeEntry, VolumeKind};
use darner_store::{Advance, Identity, OpenOptions, Store, identify};

use parking_lot::Mutex;
use rustc_hash::FxHasher;

use crate::claims::{self, Claims, Use};
use crate::error::{Context, Failure, Result};
use crate::mounts::{self, Mounted};
use crate::namespaces::Namespace;
use crate::{partition, reclaim, s3, users};

/// After this long, an unmounted store that is not closed may be kept by another mount namespace.
pub const KEPT: Duration = Duration::from_secs(3);

/// A store's place: that of one of its volumes.
#[derive(Clone, Debug)]
pub struct Place {
    /// Absolute.
    pub path: PathBuf,
    is_dir: bool,
    /// The bytes of our partition, where that is no device of its own.
    part: Option<Range<u64>>,
    /// Where the daemon listens at a mount of the store: it is found by that too, when the volume has left.
    mount: Option<SocketAddr>,
    /// Who mounted it there.
    user: Option<u32>,
}

/// A volume of a store, found.
pub struct Found {
    /// Where.
    pub place: Place,
    /// Its number.
    pub number: u16,
    volume: Arc<dyn Volume>,
}

/// The volumes of a store, that which was asked for first.
pub type Volumes = Vec<Arc<dyn Volume>>;

/// A volume that this process has for itself, or that nobody changes while it reads.
pub struct Held {
    /// Where.
    pub place: Place,
    /// Its number.
    pub number: u16,
    /// Ends with it.
    pub lock: Lock,
}

/// That this process alone has a volume, or that nobody writes to it.
pub struct Lock {
    /// On what it is on.
    pub file: File,
    /// On its bytes.
    pub claims: Claims,
}

impl Lock {
    /// Ends it at once. Closing alone would leave it to processes that are being started, until they close what they inherit.
    pub fn end(&mut self) {
        self.claims.end();
        unlock(&self.file);
    }
}

impl Place {
    /// An existing directory, file or device.
    pub fn at(path: &Path) -> Result<Place> {
        let path = fs::canonicalize(path).cant(|| format!("find the store {}", path.display()))?;
        let meta = fs::metadata(&path).cant(|| format!("look at {}", path.display()))?;
        let kind = meta.file_type();
        if !(kind.is_dir() || kind.is_file() || kind.is_block_device()) {
            return Err(Failure::new(format!("{} is no directory, image file or block device", path.display())));
        }
        let part = if kind.is_dir() { None } else { partition::find(&path) };
        let device = part.clone().filter(|_| kind.is_block_device()).and_then(|p| partition::node(&path, p.start));
        match device {
            // Whoever names the one means the other: there is one lock.
            Some(path) => Ok(Place::whole_at(path)),
            None => Ok(Place { is_dir: kind.is_dir(), path, part, mount: None, user: None }),
        }
    }

    /// All of an image or a device, also if it has partitions.
    pub fn whole(path: &Path) -> Result<Place> {
        Ok(Place::whole_at(fs::canonicalize(path)?))
    }

    fn whole_at(path: PathBuf) -> Place {
        Place { path, is_dir: false, part: None, mount: None, user: None }
    }

    /// The store that is mounted there, even if the volume that the mount is named by has left it.
    pub fn behind(mount: &Mounted) -> Place {
        let place = Place::at(&mount.source);
        let gone = || Place::whole_at(mount.source.clone());
        Place { mount: mount_socket(mount).ok(), user: mount.user, ..place.unwrap_or_else(|_| gone()) }
    }

    /// Its volume.
    pub fn volume(&self, write: bool) -> Result<Arc<dyn Volume>> {
        if self.is_dir {
            return Ok(Arc::new(DirVolume::open(&self.path, write)));
        }
        let disk = FileDisk::open(&self.path, write).cant(|| format!("open {}", self.path.display()))?;
        let disk: Arc<dyn Disk> = Arc::new(disk);
        Ok(Arc::new(RawVolume::new(match &self.part {
            Some(part) => Arc::new(Part::new(disk, part.clone())),
            None => disk,
        })))
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.is_dir
    }

    /// Whether it can be read, and is a volume of a store.
    pub fn is_volume(&self) -> bool {
        self.volume(false).is_ok_and(|volume| identify(&*volume).is_ok())
    }

    /// Finds the store's volumes, this one first, as far as they can be found. `others`: where some may be, too.
    pub fn find(&self, others: &[PathBuf], write: bool) -> Result<Vec<Found>> {
        let there = |place: Place| place.volume(write).map(|volume| (place, volume));
        let mut named = vec![self.path.clone()];
        let mut places = others.iter().map(|path| Place::at(path)).collect::<Result<Vec<Place>>>()?;
        // (One that is named twice is one volume.)
        places.retain(|place| {
            !named.contains(&place.path) && {
                named.push(place.path.clone());
                true
            }
        });
        let others = places.into_iter().map(there).collect::<Result<_>>()?;
        let first = there(self.clone())?;
        let found = darner_store::find(first, others, &mut |entry, says, own| self.look_for(entry, says, own, write))?;
        Ok(found.into_iter().map(|f| Found { place: f.what, number: f.identity.number, volume: f.volume }).collect())
    }

    /// Looks for a volume where it may be. `own`: what the store says of this one.
    fn look_for(
        &self,
        entry: &VolumeEntry,
        store: &Identity,
        own: Option<&VolumeEntry>,
        write: bool,
    ) -> Option<(Place, Arc<dyn Volume>)> {
        let was = last_place(entry);
        let from = own.map(last_place).filter(|from| from.is_absolute() && *from != self.path);
        // Where all were moved, or copied, together.
        let beside = from.map(|from| along(&self.path, &from, &was));
        let at = |path: PathBuf| {
            let place = Place::at(&path).ok()?;
            let volume = place.volume(write).ok()?;
            identify(&*volume).is_ok_and(|id| id.is(&store.uuid, entry)).then_some((place, volume))
        };
        // A device may have another name by now.
        let devices = || if entry.kind == VolumeKind::Raw { devices() } else { Vec::new() };
        // What is in the old places is the original's where this is a copy of that, by what this one says or, once it has been opened
        // here without the others, by what those say.
        let is_copy = |says: Option<&VolumeEntry>| says.is_some_and(|e| self.original(store.uuid, e).is_some());
        let is_free = |(_, volume): &(Place, Arc<dyn Volume>)| {
            let id = identify(&**volume).ok();
            !is_copy(id.as_ref().zip(own).and_then(|(id, own)| id.entry(own.number)))
        };
        let elsewhere = || std::iter::once(was.clone()).chain(devices()).find_map(|path| at(path).filter(is_free));
        beside.and_then(at).or_else(|| if is_copy(own) { None } else { elsewhere() })
    }

    /// Where the original is, if this is a copy of it: another volume of the same store and number, at the place that `says` has for it.
    pub fn original(&self, store: [u8; 16], says: &VolumeEntry) -> Option<PathBuf> {
        let it = last_place(says);
        let id = |path: &Path| fs::metadata(path).ok().map(|meta| file_id(&meta));
        let place = Place::at(&it).ok().filter(|place| it.is_absolute() && id(&place.path) != id(&self.path))?;
        is_volume_at(&place.path, store, says.number).then_some(it)
    }

    /// Opens the store; it is this process's as long as the locks last. `others`: as for [`Place::find`]. `each` is told how far
    /// it is, where the index is derived anew.
    pub fn open(
        &self,
        others: &[PathBuf],
        options: &OpenOptions,
        each: &mut dyn FnMut(Advance),
    ) -> Result<(Arc<Store>, Vec<Held>)> {
        let (volumes, held) = self.hold(others, !options.read_only)?;
        let store = Store::open_telling(&volumes, options, each).map_err(|e| reclaim::overwritten(e, &volumes))?;
        Ok((Arc::new(store), held))
    }

    /// Locks the store's volumes, this one first, as far as they can be found.
    pub fn hold(&self, others: &[PathBuf], write: bool) -> Result<(Volumes, Vec<Held>)> {
        allow_many_files();
        // Whoever has it open holds all; without this one's lock nothing that is read can be relied on.
        let mut first = Some(self.lock(write)?);
        let found = self.find(others, write)?;
        let hold = |f: &Found| {
            let lock = first.take().map_or_else(|| f.place.lock(write), Ok)?;
            Ok(Held { place: f.place.clone(), number: f.number, lock })
        };
        let held = found.iter().map(hold).collect::<Result<Vec<Held>>>()?;
        Ok((found.into_iter().map(|f| f.volume).collect(), held))
    }

    /// Whether a store is there.
    pub fn holds_store(&self) -> Result<bool> {
        let volume = self.volume(false)?;
        for slot in 0..2 {
            if volume.read_super(slot)?.iter().any(|b| *b != 0) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes the store for this process, or says who has it.
    pub fn lock(&self, exclusive: bool) -> Result<Lock> {
        let began = Instant::now();
        let busy = |holder| Failure::new(darner_store::Error::Busy { store: self.path.display().to_string(), holder });
        if let Some(lock) = inherited(&self.path, exclusive) {
            return Ok(lock);
        }
        while let Some(file) = self.locked(exclusive)? {
            if let Some(lock) = self.claimed(file, exclusive) {
                return Ok(lock);
            }
            match claims::used(&self.path) {
                Some(Use::Open(who)) => return Err(busy(Some(who))),
                Some(Use::Other(what)) => return Err(claims::in_use(&self.path, &what)),
                None if began.elapsed() < claims::LINGERS => std::thread::sleep(Duration::from_millis(20)),
                None => return Err(claims::in_use(&self.path, claims::ITSELF)),
            }
        }
        let holder = self.holder().map(|who| self.kept_elsewhere().map_or(who.clone(), |why| format!("{who}: {why}")));
        Err(busy(holder))
    }

    /// Who has it open, for people.
    pub fn holder(&self) -> Option<String> {
        fs::metadata(&self.path).ok().and_then(|meta| holder(&meta))
    }

    /// Which of the processes that have it open may be why nobody answers, for people.
    pub fn who_keeps_waiting(&self) -> Option<String> {
        let meta = fs::metadata(&self.path).ok()?;
        let wanted = lock_of(&meta);
        let mut holders = users::processes().filter(|pid| holds(*pid, &wanted).unwrap_or(false));
        match holders.find(|pid| users::is_stopped(*pid)) {
            Some(pid) => Some(format!("{}, which is stopped: kill -CONT {pid} has it go on", users::named(pid))),
            None => holder(&meta),
        }
    }

    /// Who has it open where commands do not reach it from here, and how they do.
    pub fn open_beyond_reach(&self) -> Option<String> {
        let pid = fs::metadata(&self.path).ok().and_then(|meta| holding(&meta))??;
        let (here, there) = (Namespace::Network.of("self")?, Namespace::Network.of(pid)?);
        let who = format!("{} is open, but {}", self.path.display(), users::named(pid));
        (here != there).then(|| Namespace::Network.is_another(&who, pid, "is reached from there only", "…"))
    }

    /// The same; `None`: somebody has it, and nobody is looked for.
    pub fn lock_if_free(&self, exclusive: bool) -> Result<Option<Lock>> {
        if let Some(lock) = inherited(&self.path, exclusive) {
            return Ok(Some(lock));
        }
        Ok(self.locked(exclusive)?.and_then(|file| self.claimed(file, exclusive)))
    }

    /// What it is on, locked, but not claimed.
    fn locked(&self, exclusive: bool) -> Result<Option<File>> {
        let file = File::open(&self.path).cant(|| format!("open {}", self.path.display()))?;
        let is_ours = try_lock(&file, exclusive).cant(|| format!("lock {}", self.path.display()))?;
        Ok(is_ours.then_some(file))
    }

    fn claimed(&self, file: File, exclusive: bool) -> Option<Lock> {
        let mut lock = Lock { file, claims: Claims::default() };
        if lock.claims.complete(&self.path, exclusive) {
            return Some(lock);
        }
        lock.end();
        None
    }

    /// The addresses at which the daemon that has the store may listen. (The volume is only read where nobody answers at the first ones.)
    pub fn sockets(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        let homes = std::iter::once_with(|| self.homes()).flatten();
        self.mount.clone().into_iter().chain(self.socket().ok()).chain(homes.filter_map(|place| place.socket().ok()))
    }

    /// Why it stays open though it is mounted nowhere here, as [`mounts::kept_elsewhere`] tells.
    pub fn kept_elsewhere(&self) -> Option<String> {
        let is_it = |m: &Mounted| m.kind.starts_with("fuse") && m.source == self.path;
        let is_here = mounts::all().is_ok_and(|all| all.iter().any(is_it));
        if is_here { None } else { mounts::kept_elsewhere(is_it) }
    }

    /// Who waits for it to be closed is told where that can't be.
    pub fn refuse_if_kept_elsewhere(&self) -> Result<()> {
        let refused = |why| Err(Failure::new(format!("{} stays open: {why}", self.path.display())));
        self.kept_elsewhere().map_or(Ok(()), refused)
    }

    /// As whose process its daemon may run: that of who owns it, or of who mounted it.
    pub fn owners(&self) -> Vec<u32> {
        fs::metadata(&self.path).ok().map(|meta| meta.uid()).into_iter().chain(self.user).collect()
    }

    /// Where the volumes are of which this one says that the store's superblocks are there, if it has none.
    fn homes(&self) -> Vec<Place> {
        let volume = self.volume(false).ok();
        let says = volume.and_then(|volume| identify(&*volume).ok()).filter(|id| !id.homes.contains(&id.number));
        let Some(says) = says else { return Vec::new() };
        let home = |number: &u16| self.look_for(says.entry(*number)?, &says, says.entry(says.number), false);
        says.homes.iter().filter_map(home).map(|(place, _)| place).collect()
    }

    /// The address at which the daemon that has the volume listens; the kernel forgets it with the daemon.
    pub fn socket(&self) -> Result<SocketAddr> {
        let (a, b) = file_id(&fs::metadata(&self.path)?);
        Ok(SocketAddr::from_abstract_name(format!("darner/{a:x}/{b:x}"))?)
    }
}

/// Has this process, and those it starts, keep as many files open as it may: each volume takes some.
pub fn allow_many_files() {
    // SAFETY: zeroes are a valid rlimit; the calls fill and read it.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 && limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = limit.rlim_max;
            // (Where that is not allowed, it shows when there are too many.)
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

/// How many files this process may have open, and how many it may open yet; `None` where that can't be told.
pub fn files_left() -> Option<(u64, u64)> {
    let open = match fs::read_dir("/proc/self/fd") {
        Ok(open) => open.count() as u64,
        Err(e) if e.raw_os_error() == Some(libc::EMFILE) => u64::MAX,
        Err(_) => return None,
    };
    // SAFETY: zeroes are a valid rlimit, which the call fills.
    let (most, known) = unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        let known = libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0;
        (limit.rlim_cur, known)
    };
    known.then_some((most, most.saturating_sub(open)))
}

/// Locks an open file, as flock(2) does; `false`: somebody else has it.
pub fn try_lock(file: &File, exclusive: bool) -> std::io::Result<bool> {
    let how = if exclusive { libc::LOCK_EX } else { libc::LOCK_SH };
    // SAFETY: a plain system call on an open descriptor.
    if unsafe { libc::flock(file.as_raw_fd(), how | libc::LOCK_NB) } == 0 {
        return Ok(true);
    }
    let error = std::io::Error::last_os_error();
    if error.kind() == std::io::ErrorKind::WouldBlock { Ok(false) } else { Err(error) }
}

fn unlock(file: &File) {
    // SAFETY: a plain system call on an open descriptor.
    unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_UN) };
}

/// Who holds the lock of a file, for people.
pub fn holder(meta: &fs::Metadata) -> Option<String> {
    Some(holding(meta)?.map_or_else(|| "another process".into(), users::named))
}

/// Whether somebody holds the lock of a file; who, as far as the kernel tells.
fn holding(meta: &fs::Metadata) -> Option<Option<u32>> {
    let wanted = lock_of(meta);
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let line = locks.lines().find(|l| l.contains("FLOCK") && l.split_whitespace().any(|w| w == wanted))?;
    // That names who locked it first, who may have handed it on and ended.
    let first = line.split_whitespace().nth(4).and_then(|pid| pid.parse().ok());
    let holds = |pid: &u32| holds(*pid, &wanted);
    let has_it = first.filter(|pid| holds(pid).unwrap_or(true));
    Some(has_it.or_else(|| users::processes().filter(|pid| holds(pid).unwrap_or(false)).max()))
}

/// How the kernel tells the lock of a file from others, by device and inode.
fn lock_of(meta: &fs::Metadata) -> String {
    let dev = meta.dev();
    format!("{:02x}:{:02x}:{}", libc::major(dev), libc::minor(dev), meta.ino())
}

/// Whether a process has a file open with a lock, told by device and inode; `None` where it may not be looked at.
fn holds(pid: u32, wanted: &str) -> Option<bool> {
    match fs::read_dir(format!("/proc/{pid}/fdinfo")) {
        Ok(open) => Some(open.flatten().any(|info| {
            let info = fs::read_to_string(info.path()).unwrap_or_default();
            info.lines().any(|l| l.contains("FLOCK") && l.split_whitespace().any(|w| w == wanted))
        })),
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => None,
        Err(_) => Some(false),
    }
}

/// Does something with a store that whoever has it open is about to close; gives up after `patience`.
pub fn once_closed<T>(patience: Duration, act: impl Fn() -> Result<T>) -> Result<T> {
    let began = Instant::now();
    loop {
        match act() {
            Err(e) if is_open(&e) && began.elapsed() < patience => std::thread::sleep(Duration::from_millis(20)),
            outcome => return outcome,
        }
    }
}

/// Whether an error is that somebody has the store open.
pub fn is_open(e: &Failure) -> bool {
    e.to_string().contains("is already open")
}

/// Options that reach buckets too, and know what is in a store.
pub fn options() -> OpenOptions {
    OpenOptions {
        buckets: Some(s3::buckets()),
        count_clone: Some(darner_fs::count_clone),
        who: crate::buckets::who(),
        ..OpenOptions::default()
    }
}

/// Whether a store here is that of a bucket, and nobody has taken it over since.
pub fn must_have_bucket(place: &Place, name: &str) -> Result<()> {
    let id = identify(&*place.volume(false)?)?;
    // (A volume names the bucket, however many others there are.)
    let entry = id.volumes.iter().find(|e| e.kind == VolumeKind::Bucket && e.name() == name);
    let path = place.path.display();
    let entry =
        entry.ok_or_else(|| Failure::new(format!("{path} holds a store that has nothing to do with {name}")))?;
    // (Out of reach, it can be mounted.)
    match darner_store::taken_over(&*s3::buckets().0(name), entry.epoch, &id.uuid, &id.openings) {
        Ok(Some(who)) => Err(Failure::new(format!(
            "{name} was taken over by {who} since {path} was used: name another directory to take it over from there; what {path} alone has \
             can still be mounted as darner mount {path} MNT"
        ))),
        _ => Ok(()),
    }
}

/// The block devices and partitions that the kernel knows, by their names in `/dev`.
pub fn devices() -> Vec<PathBuf> {
    let listed = fs::read_to_string("/proc/partitions").unwrap_or_default();
    let name = |line: &str| line.split_whitespace().nth(3).map(|name| Path::new("/dev").join(name));
    listed.lines().skip(2).filter_map(name).collect()
}

/// Locks that another process held for this one, by what is locked.
static INHERITED: Mutex<BTreeMap<(u64, u64), Lock>> = Mutex::new(BTreeMap::new());

/// From now on this lock is ours, to be had as any.
pub fn inherit(lock: Lock) {
    if let Ok(meta) = lock.file.metadata() {
        INHERITED.lock().insert(file_id(&meta), lock);
    }
}

/// Where a locked volume is that was at a path: there, or where it has been moved to. `None`: only the lock leads to it, as where
/// something else is mounted over it.
pub fn path_now(lock: &File, path: &Path) -> Option<PathBuf> {
    let moved = fs::read_link(format!("/proc/self/fd/{}", lock.as_raw_fd()));
    let it = lock.metadata().map(|meta| file_id(&meta)).ok()?;
    std::iter::once(path.to_owned()).chain(moved).find(|p| fs::metadata(p).is_ok_and(|there| file_id(&there) == it))
}

/// What tells a volume's file or directory from others; of a device whose node is made anew, the same.
pub fn file_id(meta: &fs::Metadata) -> (u64, u64) {
    if meta.file_type().is_block_device() { (0, meta.rdev()) } else { (meta.dev(), meta.ino()) }
}

fn inherited(path: &Path, exclusive: bool) -> Option<Lock> {
    let mut locks = INHERITED.lock();
    let wanted = fs::metadata(path).ok().filter(|_| !locks.is_empty())?;
    let mut lock = locks.remove(&file_id(&wanted))?;
    // (One of an earlier version handed on the lock alone.)
    if !lock.claims.complete(path, exclusive) {
        tracing::error!("{} is in use by something else, too: what either writes may be lost", path.display());
    }
    Some(lock)
}

/// Where a volume was last, as its store says.
fn last_place(entry: &VolumeEntry) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(&entry.hint))
}

/// Whether a volume of a store is at a path.
pub fn is_volume_at(path: &Path, uuid: [u8; 16], number: u16) -> bool {
    let identity = Place::at(path).and_then(|place| Ok(identify(&*place.volume(false)?)?));
    identity.is_ok_and(|id| (id.uuid, id.number) == (uuid, number))
}

/// Where `other` is if it has moved along with what was at `from` and is at `to` now; all absolute. By names alone: an image has no `..`.
fn along(to: &Path, from: &Path, other: &Path) -> PathBuf {
    let common = other.components().zip(from.components()).take_while(|(a, b)| a == b).count();
    let mut at = to.to_path_buf();
    for _ in from.components().skip(common) {
        at.pop();
    }
    at.extend(other.components().skip(common));
    at
}

/// The address at which the daemon behind a mount listens: by the kernel's number of it, and by what the kernel was told is
/// mounted. The number alone may be another store's mount by the time a daemon whose mount has ended stops listening.
pub fn mount_socket(mount: &Mounted) -> Result<SocketAddr> {
    let mut source = FxHasher::default();
    source.write(mount.source.as_os_str().as_bytes());
    Ok(SocketAddr::from_abstract_name(format!("darner/mount/{}/{:016x}", mount.device, source.finish()))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_a_process_handed_on_and_ended_is_that_of_who_has_it_now() {
        let file = tempfile::tempfile().unwrap();
        // SAFETY: the child makes system calls only.
        let child = unsafe {
            match libc::fork() {
                0 => libc::_exit(libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB)),
                child => child,
            }
        };
        let mut status = 0;
        // SAFETY: our own child.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!(status, 0);
        let me = users::named(std::process::id());
        assert_eq!(holder(&file.metadata().unwrap()), Some(me));
        unlock(&file);
        assert_eq!(holder(&file.metadata().unwrap()), None);
    }

    #[test]
    fn a_lock_that_was_handed_on_without_claims_gets_them_if_nobody_else_has_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        fs::write(&path, b"bytes").unwrap();
        let place = Place::at(&path).unwrap();
        let hand_on = |lock: &Lock| {
            let file = lock.file.try_clone().unwrap();
            inherit(Lock { file, claims: Claims::default() });
            place.lock(true).unwrap()
        };
        let first = place.lock(true).unwrap();
        assert!(first.claims.file.is_some());
        // (The first one's claim is still there.)
        assert!(hand_on(&first).claims.file.is_none());
        let Lock { file, claims } = first;
        drop(claims);
        let mut next = hand_on(&Lock { file, claims: Claims::default() });
        assert!(next.claims.file.is_some());
        assert!(place.lock_if_free(true).unwrap().is_none());
        next.end();
        assert!(place.lock_if_free(true).unwrap().is_some());
    }

    #[test]
    fn a_mount_that_got_the_number_of_one_that_has_ended_does_not_lead_to_its_daemon() {
        let mount = |source: &str| Mounted {
            id: 36,
            device: "0:52".into(),
            root: "/".into(),
            mountpoint: "/mnt".into(),
            kind: "fuse.darner".into(),
            source: source.into(),
            user: None,
        };
        let names = |source: &str| -> Vec<Vec<u8>> {
            let place = Place::behind(&mount(source));
            place.sockets().map(|s| s.as_abstract_name().expect("it has one").to_vec()).collect()
        };
        assert_eq!(names("/no/such/store").len(), 1);
        assert_eq!(names("/no/such/store"), names("/no/such/store"));
        assert_ne!(names("/no/such/store"), names("/no/such/other"));
    }
}
