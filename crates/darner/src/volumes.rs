//! What the daemon does about volumes: adds, empties, resizes them and moves what is on them, and goes on with that after a
//! crash. And where it listens: at every volume, so that each leads to it, and at every mount, whichever volumes have left.

use std::fs::File;
use std::os::unix::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use darner_store::volume::{Copies, Tier, VolumeKind};
use darner_store::{BucketState, Move, Progress, Tid, VolumeUsage};

use crate::claims::{self, Claims};
use crate::control::{CopyLine, Listener, Request, Response, Tell, VolumeLine};
use crate::daemon::Daemon;
use crate::error::{Failure, Result};
use crate::keeper::{self, Items, Keeper};
use crate::making::{self, Make};
use crate::mounts;
use crate::partition;
use crate::place::{self, Held, Lock, Place};
use crate::supervisor::LISTENER;

/// Bytes that are moved in one go.
const BUDGET: u64 = 16 << 20;
/// How often to count what is left.
const COUNT_EVERY: Duration = Duration::from_millis(250);
/// When to try again to empty a volume where that failed.
const RETRY: Duration = Duration::from_secs(20);
/// For so many times as long as a step took nothing is moved, where somebody else wrote meanwhile.
const IDLE: u32 = 2;
/// Loop devices, each of a file on another one's, that are looked behind.
const LOOPS_MAX: usize = 8;
/// How long to wait for readers of what has moved.
const READERS: Duration = Duration::from_millis(10);

/// A volume that the daemon has for itself. It listens at those that the others lead to.
pub(crate) struct Member {
    held: Held,
    keeper: Keeper,
    listener: Option<Listener>,
}

impl Member {
    /// `listen`: whether the daemon is to listen there, home or not.
    pub fn new(daemon: &Arc<Daemon>, held: Held, listen: bool) -> Result<Member> {
        let listener = match listen || daemon.store().homes().contains(&held.number) {
            true => Some(daemon.listener(&held.place.socket()?)?),
            false => None,
        };
        let keeper = daemon.keeper.clone();
        let Lock { file, claims } = &held.lock;
        let kept = [(LOCK, Some(file)), (DEVICE, claims.device.as_ref()), (LOCKED, claims.file.as_ref())];
        let path = held.place.path.to_string_lossy();
        for (kind, file) in kept.into_iter().filter_map(|(kind, file)| Some((kind, file?))) {
            keeper.keep(&lock_key(kind, &held), &path, file)?;
        }
        Ok(Member { held, keeper, listener })
    }

    pub fn place(&self) -> &Place {
        &self.held.place
    }

    /// Where commands are taken there, if they are.
    pub fn listens_at(&self) -> Option<SocketAddr> {
        self.listener.as_ref().and_then(Listener::address)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // (Whoever keeps the lock for us has it a moment longer.)
        self.held.lock.end();
        for kind in [LOCK, LOCKED, DEVICE] {
            self.keeper.drop(&lock_key(kind, &self.held));
        }
        claims::wait_until_free(&self.held.place.path);
    }
}

/// What names of locks that are kept begin with.
const LOCK: &str = "lock ";
/// The same of claims that go with them: of devices, and of files' bytes.
const DEVICE: &str = "device ";
const LOCKED: &str = "locked ";

fn lock_key(kind: &str, held: &Held) -> String {
    format!("{kind}{}", held.number)
}

/// The locks that were kept, with where they were.
pub(crate) fn take_locks(items: &mut Items) -> Vec<(PathBuf, Lock)> {
    let locks = keeper::take(items, LOCK).into_iter().map(|(number, item)| {
        let mut claimed = |kind| items.remove(&format!("{kind}{number}")).map(|item| File::from(item.fd));
        let claims = Claims { device: claimed(DEVICE), file: claimed(LOCKED) };
        (item.text.into(), Lock { file: item.fd.into(), claims })
    });
    locks.collect()
}

impl Daemon {
    /// Whoever asked at an address that has no volume or mount any more is to see that nobody answers.
    pub(crate) fn close_what_nobody_listens_at(&self) {
        for (name, _listener) in self.listeners.lock().drain() {
            self.keeper.drop(&format!("{LISTENER}{name}"));
        }
    }

    /// Listens at a mount, whichever volume it is named by.
    pub(crate) fn listen_at(self: &Arc<Daemon>, mountpoint: &Path) -> Result<Listener> {
        let mount = mounts::all()?.into_iter().rev().find(|m| m.mountpoint == mountpoint);
        let mount = mount.ok_or_else(|| Failure::new(format!("{} is not mounted", mountpoint.display())))?;
        self.listener(&place::mount_socket(&mount)?)
    }

    /// Listens at the volumes that others lead to, as far as it does not yet.
    pub(crate) fn listen_at_homes(self: &Arc<Daemon>) {
        let homes = self.store().homes();
        let mut volumes = self.volumes.lock();
        for member in volumes.iter_mut().filter(|m| m.listener.is_none() && homes.contains(&m.held.number)) {
            match member.held.place.socket().and_then(|address| self.listener(&address)) {
                Ok(listener) => member.listener = Some(listener),
                Err(e) => tracing::warn!("volume {} does not lead commands here: {e}", member.held.number),
            }
        }
        drop(volumes);
        self.listen_for_mirrors();
    }

    fn listener(self: &Arc<Daemon>, address: &SocketAddr) -> Result<Listener> {
        Listener::new(&self.keeper, |name| self.listeners.lock().remove(name), address, self.clone())
    }

    /// Serves the requests about volumes.
    pub(crate) fn serve_volumes(self: &Arc<Daemon>, request: Request, tell: &mut Tell<'_>) -> Result<Response> {
        if matches!(request, Request::Volumes) {
            return Ok(Response::Volumes(self.volume_lines()?));
        }
        if matches!(request, Request::Copies { copies: None, .. }) {
            return Ok(Response::Copies(self.copy_line()));
        }
        let _one_at_a_time = self.moving.lock();
        let changed = match request {
            Request::AddVolume { path, size, image, force, cold } => {
                let tier = if cold { Tier::Cold } else { Tier::Hot };
                let may_keep_twice = self.store().could_keep_twice();
                let make = Make { size, image, force, existing_is_fine: false, ..Make::default() };
                let number = self.add_volume(&path, tier, &make)?;
                if !may_keep_twice && self.store().could_keep_twice() {
                    self.keep_index_twice(tell);
                }
                number
            }
            Request::AddBucket { name, variables } => self.add_bucket(&name, variables)?,
            Request::Push => return self.push(tell),
            Request::MoveSegments { region, from, to } => return self.move_segments(region, from, to, tell),
            Request::RemoveVolume { id } => return self.remove_volume(id, tell),
            Request::LoseVolume { id } => {
                let (regions, bytes) = self.store().lose_volume(id)?;
                self.let_go_of_volumes()?;
                return Ok(Response::Moved { regions, bytes });
            }
            Request::Copies { copies: Some(copies), fileset } => {
                return self.set_copies(&copies, fileset.as_deref(), tell);
            }
            Request::ResizeVolume { id, size } => {
                self.resize_volume(id, size, tell)?;
                id
            }
            _ => return Err(Failure::new("this daemon does not know the request: it is of another version")),
        };
        self.tell_places();
        let bucket = self.store().bucket();
        let lines = self.store().volume(changed)?.map(|v| line(&v, bucket.as_ref()));
        Ok(Response::Volumes(lines.into_iter().collect()))
    }

    pub(crate) fn volume_lines(&self) -> Result<Vec<VolumeLine>> {
        let bucket = self.store().bucket();
        Ok(self.store().volumes()?.iter().map(|v| line(v, bucket.as_ref())).collect())
    }

    /// What a path leads to, or will; refuses what lies within the store's own mounts, be it by way of loop devices: whoever waits for
    /// either would wait for the other.
    pub(crate) fn outside(&self, path: &Path) -> Result<PathBuf> {
        let mountpoints: Vec<PathBuf> = self.state.lock().mounts.keys().cloned().collect();
        let real = making::to_be(path)?;
        let mut files = std::iter::successors(Some(real.clone()), |file| partition::behind(file)).take(LOOPS_MAX);
        match files.find_map(|file| mountpoints.iter().find(|at| file.starts_with(at))) {
            Some(at) => {
                let (path, at) = (path.display(), at.display());
                Err(Failure::new(format!("{path} is within {at}, a mount of the store itself")))
            }
            None => Ok(real),
        }
    }

    fn add_volume(self: &Arc<Daemon>, path: &Path, tier: Tier, make: &Make) -> Result<u16> {
        let real = self.outside(path)?;
        if self.volumes.lock().iter().any(|m| m.place().path == real) {
            return Err(Failure::new(format!("{} is a volume of the store already", path.display())));
        }
        making::prepare(path, make, |path, make, exists| {
            let place = Place::at(path)?;
            let (lock, size_limit) = place.take(make, exists)?;
            let number = self.store().add_volume_for(place.volume(true)?, size_limit, tier)?;
            let member = Member::new(self, Held { place, number, lock }, false);
            match member {
                Ok(member) => self.volumes.lock().push(member),
                Err(e) => tracing::warn!("volume {number} is there, but does not lead commands here: {e}"),
            }
            self.listen_for_mirrors();
            Ok(number)
        })
    }

    fn move_segments(&self, region: Option<u64>, from: Option<u16>, to: u16, tell: &mut Tell<'_>) -> Result<Response> {
        let store = self.store();
        let wanted = match (region, from) {
            (Some(id), _) => store.region_to(id, to)?,
            (None, Some(from)) => store.all_on(from, Some(to)),
            (None, None) => return Err(Failure::new("neither a segment nor a volume is given")),
        };
        for id in [wanted.from, to] {
            let volume = store.volume(id)?.ok_or_else(|| Failure::new(format!("there is no volume {id}")))?;
            if volume.missing {
                return Err(Failure::new(format!("volume {id} is not there")));
            }
        }
        if wanted.from == to {
            return Err(Failure::new(format!("it is on volume {to} already")));
        }
        let (regions, bytes) = store.must_fit(&wanted)?;
        let left = || store.left_to_move(&wanted);
        self.drive(&left, tell, &|| store.step_move(&wanted, BUDGET), &|| left().0 == 0)
            .map_err(|e| Failure::new(format!("not all could be moved to volume {to}: {e}")))?;
        Ok(Response::Moved { regions, bytes })
    }

    fn remove_volume(&self, id: u16, tell: &mut Tell<'_>) -> Result<Response> {
        let store = self.store();
        let wanted = Move::emptying(id);
        let (regions, bytes) = store.left_to_move(&wanted);
        store.leave_volume(id).map_err(|e| match store.volume(id) {
            Ok(Some(v)) if v.missing => Failure::new(format!("{e}; or, if it is lost for good, remove it with --lost")),
            _ => e.into(),
        })?;
        let is_gone = || !store.has_volume(id);
        let outcome = self.drive(&|| store.left_to_move(&wanted), tell, &|| store.step_leave(BUDGET), &is_gone);
        self.let_go_of_volumes()?;
        outcome.map_err(|e| {
            Failure::new(format!(
                "volume {id} is not empty yet, and nothing new goes there; it goes on when that can be: {e}"
            ))
        })?;
        Ok(Response::Moved { regions, bytes })
    }

    /// Has so many copies of everything, or of a fileset, and returns when they are there.
    fn set_copies(&self, copies: &str, fileset: Option<&str>, tell: &mut Tell<'_>) -> Result<Response> {
        let wanted = copies_named(copies)?;
        let store = self.store();
        match (fileset, wanted) {
            (None, wanted) => store.set_copies(wanted)?,
            (Some(_), Copies::Index) => {
                return Err(Failure::new("a fileset has 1 or 2 copies: the index is the whole store's"));
            }
            (Some(name), wanted) => {
                let root = self.fs.fileset_named(name, Tid::MAX)?;
                store.keep_twice(root.fileset, wanted == Copies::Two)?;
            }
        }
        let left = || store.left_to_copy();
        self.drive(&left, tell, &|| store.step_copies(BUDGET), &|| left().0 == 0).map_err(|e| {
            Failure::new(format!("not everything has its copies yet; it goes on when that can be: {e}"))
        })?;
        Ok(Response::Copies(self.copy_line()))
    }

    /// With a second volume, the index is kept on both, so that either can be read without the other. (Whoever wants it once says so.)
    fn keep_index_twice(&self, tell: &mut Tell<'_>) {
        if self.store().wanted_copies() != Copies::One {
            return;
        }
        match self.set_copies(copies_name(Copies::Index), None, tell) {
            Ok(_) => tracing::info!("the index is kept on two volumes from now on"),
            Err(e) => tracing::warn!("the index is not kept on two volumes yet: {e}"),
        }
    }

    /// How the copies are.
    pub(crate) fn copy_line(&self) -> CopyLine {
        let state = self.store().copies();
        let kept_twice = self.store().kept_twice();
        let all = self.fs.filesets().into_iter().map(|(fileset, _)| fileset);
        let filesets = all.filter(|fileset| kept_twice.contains(&fileset.id)).map(|fileset| fileset.name).collect();
        let copies = copies_name(state.wanted).into();
        CopyLine { copies, filesets, lacking_bytes: state.lacking, healed: state.healed }
    }

    /// What somebody should know of volumes and copies.
    pub(crate) fn volume_warnings(&self) -> Result<Vec<String>> {
        let mut all = Vec::new();
        for v in self.store().volumes()?.iter().filter(|v| v.missing || v.failed) {
            let (regions, bytes) = self.store().only_on(v.entry.number);
            let only = match regions {
                0 => "what is on it has copies elsewhere".into(),
                _ => format!("{} MiB in {regions} regions are on it only", bytes >> 20),
            };
            let how = if v.missing { "is missing" } else { "has failed, and is not used until the next mount" };
            all.push(format!("volume {} ({}) {how}: {only}", v.entry.number, v.entry.name()));
        }
        all.extend(self.bucket_warnings());
        if self.store().is_cut() {
            let newest = crate::when::local(self.store().tid());
            all.push(format!("what was written last is damaged, or on a missing volume only: this is the filesystem as of {newest}, to be read"));
        }
        let lacking = self.store().copies().lacking;
        if lacking > 0 {
            all.push(format!("{} MiB have one copy only, and are to have two", lacking.div_ceil(1 << 20)));
        }
        Ok(all)
    }

    /// Goes on making copies, unless a command does; says whether there was anything to do.
    pub(crate) fn go_on_copying(&self) -> Result<bool> {
        let Some(_one_at_a_time) = self.moving.try_lock() else { return Ok(false) };
        if self.leave_not_before.lock().is_some_and(|at| at > Instant::now()) {
            return Ok(false);
        }
        match self.store().step_copies(BUDGET) {
            Ok(progress) => Ok(progress == Progress::Worked),
            Err(e) => {
                tracing::warn!("copies that are missing can't be made now: {e}");
                *self.leave_not_before.lock() = Some(Instant::now() + RETRY);
                Ok(false)
            }
        }
    }

    /// Moves until there is nothing left; those who use the filesystem keep most of the time.
    pub(crate) fn drive(
        &self,
        left: &dyn Fn() -> (u64, u64),
        tell: &mut Tell<'_>,
        step: &dyn Fn() -> darner_store::Result<Progress>,
        is_done: &dyn Fn() -> bool,
    ) -> Result<()> {
        let (_, total) = left();
        let mut counted = Instant::now();
        while !self.is_closing() {
            let (start, seen) = (Instant::now(), self.store().tid());
            match step()? {
                Progress::Idle if is_done() => return Ok(()),
                Progress::Idle => thread::sleep(READERS),
                Progress::Worked if self.store().tid() != seen => thread::sleep(IDLE * start.elapsed()),
                Progress::Worked => {}
            }
            if counted.elapsed() > COUNT_EVERY {
                let (_, left) = left();
                tell(total.saturating_sub(left), total);
                counted = Instant::now();
            }
        }
        Err(Failure::new("the filesystem was unmounted meanwhile"))
    }

    /// Goes on emptying what is leaving, the bucket or others, unless a command does; says whether there was anything to do.
    pub(crate) fn go_on_leaving(&self, bucket: bool) -> Result<bool> {
        let Some(_one_at_a_time) = self.moving.try_lock() else { return Ok(false) };
        let number = self.store().bucket().map(|b| b.number);
        let is_due = self.store().leaving().is_some_and(|m| (Some(m.from) == number) == bucket);
        if !is_due || self.leave_not_before.lock().is_some_and(|at| at > Instant::now()) {
            return Ok(false);
        }
        match self.store().step_leave(BUDGET) {
            Ok(progress) => {
                self.let_go_of_volumes()?;
                Ok(progress == Progress::Worked)
            }
            // The cleaner may make the room.
            Err(e) => {
                tracing::warn!("a volume that is to leave can't be emptied now: {e}");
                *self.leave_not_before.lock() = Some(Instant::now() + RETRY);
                Ok(false)
            }
        }
    }

    /// What has left the store may be anybody's.
    fn let_go_of_volumes(&self) -> Result<()> {
        let store = self.store();
        let mut volumes = self.volumes.lock();
        let before = volumes.len();
        volumes.retain(|m| store.has_volume(m.held.number));
        let have_left = volumes.len() < before;
        drop(volumes);
        if have_left {
            self.listen_for_mirrors();
            self.tell_places();
            // (Who is not there at the moment would look for it where it was.)
            self.start_followers();
        }
        Ok(())
    }

    /// The source of a mirror, and the mirrors of a source, are to know where this store is by now.
    fn tell_places(&self) {
        self.follows.wake(false);
        self.source.changed(true);
    }

    fn resize_volume(&self, id: u16, size: u64, tell: &mut Tell<'_>) -> Result<()> {
        let store = self.store();
        store.resize_volume(id, size)?;
        let left = || store.left_to_cut(id);
        self.drive(&left, tell, &|| store.step_cut(BUDGET), &|| store.too_long() != Some(id))
            .map_err(|e| Failure::new(format!("volume {id} is not so short yet; it goes on when that can be: {e}")))
    }

    /// Goes on with making volumes shorter, unless a command does; says whether there was anything to do.
    pub(crate) fn go_on_cutting(&self) -> Result<bool> {
        let Some(_one_at_a_time) = self.moving.try_lock() else { return Ok(false) };
        if self.store().too_long().is_none() || self.leave_not_before.lock().is_some_and(|at| at > Instant::now()) {
            return Ok(false);
        }
        match self.store().step_cut(BUDGET) {
            Ok(progress) => Ok(progress == Progress::Worked),
            Err(e) => {
                tracing::warn!("a volume can't be made shorter now: {e}");
                *self.leave_not_before.lock() = Some(Instant::now() + RETRY);
                Ok(false)
            }
        }
    }
}

const ALL_COPIES: [Copies; 3] = [Copies::One, Copies::Index, Copies::Two];

/// What people call so.
pub(crate) fn copies_named(name: &str) -> Result<Copies> {
    let found = ALL_COPIES.into_iter().find(|c| copies_name(*c) == name);
    found.ok_or_else(|| Failure::new(format!("{name} is neither 1, 2 nor index")))
}

/// Of what a store keeps two copies that is made on so many others besides its first volume. Where nothing is said, of what makes it
/// readable with any one of them missing.
pub(crate) fn copies_of_new(name: Option<&str>, others: &[PathBuf]) -> Result<Copies> {
    match name {
        Some(name) => copies_named(name),
        None if others.is_empty() => Ok(Copies::One),
        None => Ok(Copies::Index),
    }
}

fn copies_name(copies: Copies) -> &'static str {
    match copies {
        Copies::One => "1",
        Copies::Index => "index",
        Copies::Two => "2",
    }
}

fn line(v: &VolumeUsage, bucket: Option<&BucketState>) -> VolumeLine {
    let bucket = bucket.filter(|b| b.number == v.entry.number);
    let kind = match v.entry.kind {
        VolumeKind::Directory => "directory",
        VolumeKind::Raw => "raw",
        VolumeKind::Bucket => "bucket",
    };
    VolumeLine {
        id: v.entry.number.into(),
        path: v.entry.name(),
        kind: kind.into(),
        size_bytes: v.size,
        used_bytes: v.used,
        free_bytes: v.size.saturating_sub(v.used),
        state: match v {
            VolumeUsage { missing: true, .. } => "missing",
            VolumeUsage { failed: true, .. } => "failed",
            VolumeUsage { entry, .. } if entry.leaving => "leaving",
            _ if bucket.is_some_and(|b| b.fenced.is_some()) => "fenced",
            _ if bucket.is_some_and(|b| b.trouble.is_some()) => "unreachable",
            _ => "active",
        }
        .into(),
        tier: if v.entry.tier == Tier::Cold { "cold" } else { "hot" }.into(),
        bucket: bucket.map(crate::buckets::line),
    }
}
