//! What the daemon does about filesets: which one a path of a command is in, commands that make and change them, and telling
//! the kernel, which believes that only it changes the main root.

use darner_fs::{Caller, Fileset, FilesetId, Inode, Limits, MAIN, ROOT, Tid};
use darner_store::volume::Copies;

use crate::control::{FilesetLine, Request, Spot};
use crate::daemon::Daemon;
use crate::error::{Failure, Result};
use crate::frontend::now_ns;
use crate::when::local;

/// The kernel's id of the main root, in mounts of the whole.
const ROOT_ID: u64 = 1;

impl Daemon {
    /// What is at the top of the mount that a spot is in.
    pub(crate) fn root_of(&self, spot: &Spot) -> Inode {
        self.state.lock().mounts.get(&spot.mountpoint).map_or(ROOT, |mount| mount.root)
    }

    /// As of when the mount is that a spot is in, if it is one of the past.
    pub(crate) fn as_of(&self, spot: &Spot) -> Option<String> {
        self.state.lock().mounts.get(&spot.mountpoint)?.line.as_of.clone()
    }

    /// The fileset that a spot is in.
    pub(crate) fn fileset_of(&self, spot: &Spot) -> Result<FilesetId> {
        Ok(self.fs.fileset_at(self.root_of(spot), &spot.names())?)
    }

    /// Serves the requests about filesets, and answers with those that it is about.
    pub(crate) fn serve_filesets(&self, request: Request) -> Result<Vec<FilesetLine>> {
        let _none_is_mounted = self.mounting.lock();
        let now = now_ns();
        // The names in the main root that lead elsewhere then.
        let mut names = Vec::new();
        let changed = match request {
            Request::CreateFileset { name, uid, gid } => {
                names.push(name.clone());
                let caller = Caller { uid, gid, ..Caller::default() };
                self.fs.create_fileset(&caller, now, &name)?
            }
            Request::CloneFileset { of, tid, name } => {
                names.push(name.clone());
                // (Of a mount of the past, what it shows.)
                let tid = match tid {
                    Some(tid) => Some(Tid(tid)),
                    None => self.as_of(&of).map(|when| self.moment(self.fileset_of(&of)?, &when)).transpose()?,
                };
                self.fs.clone_fileset(now, self.fileset_at(&of, tid.unwrap_or(Tid::MAX))?, tid, &name)?
            }
            Request::RemoveFileset { name, force } => {
                names.push(name.clone());
                self.remove(&name, force)?
            }
            Request::RenameFileset { name, new_name } => {
                names.extend([name.clone(), new_name.clone()]);
                let renamed = self.fs.rename_fileset(now, &name, &new_name)?;
                self.rename_mounts(&renamed);
                renamed
            }
            Request::LimitFileset { name, bytes, objects, history } => {
                let held = self.fs.filesets().into_iter().find(|(fileset, _)| fileset.name == name);
                let had = held.map_or(Limits::default(), |(fileset, _)| fileset.limits);
                let limits = Limits {
                    bytes: bytes.unwrap_or(had.bytes),
                    objects: objects.unwrap_or(had.objects),
                    history: history.unwrap_or(had.history),
                };
                self.fs.limit_fileset(now, &name, limits)?
            }
            Request::FilesetAt { at } => {
                let id = self.fileset_of(&at)?;
                return Ok(self.lines().into_iter().filter(|line| line.number == id.0).collect());
            }
            _ => return Ok(self.lines()),
        };
        self.tell_kernels(&names);
        self.fs.sync()?;
        Ok(self.lines().into_iter().filter(|line| line.number == changed.id.0).collect())
    }

    fn remove(&self, name: &str, force: bool) -> Result<Fileset> {
        let root = self.fs.fileset_named(name, Tid::MAX)?;
        let mounted = self.state.lock();
        if let Some(mount) = mounted.mounts.values().find(|mount| mount.live && mount.root == root && root != ROOT) {
            let at = mount.line.mountpoint.display();
            return Err(Failure::new(format!("it is mounted on {at} by itself: unmount that first")));
        }
        drop(mounted);
        let removed = self.fs.remove_fileset(now_ns(), name, force)?;
        if let Err(e) = self.store().keep_twice(removed.id, false) {
            tracing::warn!("fileset {name:?} is removed, and still kept twice: {e}");
        }
        Ok(removed)
    }

    /// The root of the fileset at a spot as of a moment.
    fn fileset_at(&self, spot: &Spot, at: Tid) -> Result<Inode> {
        match (self.root_of(spot), &spot.path[..]) {
            (root, []) => Ok(root),
            (ROOT, [name]) => match std::str::from_utf8(name) {
                Ok(name) => Ok(self.fs.fileset_called(name, at)?),
                Err(_) => Ok(self.fs.fileset_below(name, at)?),
            },
            _ => Err(Failure::new("only a whole fileset can be cloned: MNT/NAME@@WHEN, or MNT@@WHEN for the main one")),
        }
    }

    /// Names in the main root came, went or lead elsewhere. (To those that do not, nothing is said: what is mounted beneath a
    /// name goes with it. A look-up that is under way has the root locked, and each name is dropped only after it.)
    fn tell_kernels(&self, names: &[String]) {
        let state = self.state.lock();
        let of_the_whole = state.mounts.values().filter(|mount| mount.live && mount.root == ROOT);
        let invalidators: Vec<_> = of_the_whole.map(|mount| mount.invalidator.clone()).collect();
        // The kernel may wait for requests meanwhile.
        drop(state);
        for invalidator in invalidators.iter().filter(|_| !names.is_empty()) {
            invalidator.inval_inodes(&[ROOT_ID]);
            names.iter().for_each(|name| invalidator.inval_entry(ROOT_ID, name.as_bytes()));
        }
    }

    fn rename_mounts(&self, renamed: &Fileset) {
        let mut state = self.state.lock();
        for mount in state.mounts.values_mut().filter(|mount| mount.root == renamed.inode()) {
            mount.line.fileset = Some(renamed.name.clone());
        }
    }

    fn lines(&self) -> Vec<FilesetLine> {
        let all = self.fs.filesets();
        let name = |id: FilesetId| {
            let found = all.iter().find(|(fileset, _)| fileset.id == id);
            found.map_or_else(|| format!("{}", id.0), |(fileset, _)| fileset.name.clone())
        };
        let kept_twice = self.store().kept_twice();
        let all_twice = self.store().wanted_copies() == Copies::Two;
        let line = |(fileset, count): &(Fileset, darner_fs::Count)| FilesetLine {
            copies: 1 + u32::from(all_twice || kept_twice.contains(&fileset.id)),
            name: fileset.name.clone(),
            number: fileset.id.0,
            inode: fileset.inode().number(),
            created_tid: fileset.created.to_string(),
            created: local(if fileset.id == MAIN { self.store().birth() } else { fileset.created }),
            base: fileset.base.map(|(base, _)| name(base)),
            base_tid: fileset.base.map(|(_, tid)| tid.to_string()),
            objects: count.objects,
            live_bytes: count.live,
            limit_objects: fileset.limits.objects,
            limit_bytes: fileset.limits.bytes,
            limit_history_bytes: fileset.limits.history,
        };
        all.iter().map(line).collect()
    }
}
