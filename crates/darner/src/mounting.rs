//! Making mounts, and going on with those of a process that was killed or made way: without a handshake, from what was kept of
//! them, after which the kernel sends again what it had got no answer to.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use darner_fs::{FilesetId, Inode, Node, ROOT, Tid};
use darner_fuse::{Config, MountOptions, Session, abi};
use darner_store::Pin;
use serde::{Deserialize, Serialize};

use crate::aside::Aside;
use crate::control::{MountLine, MountRequest};
use crate::daemon::{Daemon, Mount, State};
use crate::errand::Invalidator;
use crate::error::{Failure, Result};
use crate::frontend::{Frontend, nameless};
use crate::keeper::{self, Items};
use crate::mounts;
use crate::nodes::Nodes;
use crate::place;
use crate::receipts::{MountMemory, Receipts, THREADS_MAX};
use crate::seek::KernelCache;
use crate::supervisor::MOUNT;
use crate::when::local;

/// The kernel's readahead for a mount, bytes.
const READAHEAD: u32 = 1 << 20;
/// So many descriptors further mounts leave to segments, tables, volumes and commands; of a larger limit, an eighth.
const DESCRIPTORS_LEFT: u64 = 128;
/// What the name of a mount's memory begins with.
const MEMORY: &str = "memory ";

/// What the next process is to know of a mount.
#[derive(Clone, Serialize, Deserialize)]
struct Kept {
    request: MountRequest,
    /// What it shows: the number of an inode, and as of which tid.
    root: u64,
    as_of: Option<u64>,
    source: PathBuf,
    /// Whether another mount may change what it shows.
    shared: bool,
    read_only: bool,
    /// The outcome of the handshake.
    negotiated: String,
    /// The moments of other filesets that it keeps.
    #[serde(default)]
    beside: Vec<(u32, u64)>,
}

impl Kept {
    /// The moments that it keeps.
    fn moments(&self) -> impl Iterator<Item = (FilesetId, Tid)> {
        let own = self.as_of.map(|tid| (Inode::from_number(self.root).fileset, Tid(tid)));
        own.into_iter().chain(self.beside.iter().map(|(fileset, tid)| (FilesetId(*fileset), Tid(*tid))))
    }
}

impl Daemon {
    /// Mounts, and returns when the mount answers.
    pub(crate) fn mount(self: &Arc<Daemon>, m: &MountRequest) -> Result<()> {
        let (root, as_of) = self.root_for(m)?;
        let live = as_of.is_none();
        let follows = live && root == ROOT && self.fs.head().is_some();
        let read_only = m.read_only || !live || follows || self.store().is_read_only();
        let shared = {
            let state = self.state.lock();
            // (Nobody could have known that it can only be read.)
            if live && !m.read_only && !follows && !self.store().is_cut() {
                self.may_write(&state, root)?;
            }
            // Nothing but the one writable mount of a fileset changes its live tree.
            live && read_only && !self.store().is_read_only()
        };
        let top = as_of.map_or(Node::Live(root), |tid| Node::AsOf(root, tid));
        self.fs.getattr(top)?;
        self.refuse_without_descriptors()?;
        let source = self.path();
        if self.volumes.lock().iter().any(|v| v.place().path.starts_with(&m.mountpoint)) {
            return Err(Failure::new("the store and the mount point must not lie within each other"));
        }
        let mut options = MountOptions {
            source: source.display().to_string(),
            subtype: Some(m.subtype.clone().unwrap_or_else(|| "darner".into())),
            read_only,
            nosuid: m.nosuid,
            nodev: m.nodev,
            noexec: m.noexec,
            ..MountOptions::default()
        };
        options.allow_other = m.allow_other.unwrap_or(options.allow_other);
        let pins = self.fs.pin_all(top)?;
        let beside = pins.iter().skip(1).map(Pin::moment).map(|(fileset, tid)| (fileset.0, tid.0)).collect();
        let memory = MountMemory::new()?;
        let claimed = mounts::claim(&m.mountpoint, |there| there.kind.starts_with("fuse"))?;
        let fd = darner_fuse::mount(&m.mountpoint, &options)?;
        drop(claimed);
        let (request, as_of, negotiated) = (m.clone(), as_of.map(|tid| tid.0), String::new());
        let kept = Kept { request, root: root.number(), as_of, source, shared, read_only, negotiated, beside };
        self.take_up(kept, fd, pins, &memory).inspect_err(|_| self.give_up(&m.mountpoint))
    }

    /// Serves what was just mounted.
    fn take_up(self: &Arc<Daemon>, mut kept: Kept, fd: OwnedFd, pins: Vec<Pin>, memory: &MountMemory) -> Result<()> {
        let mountpoint = &kept.request.mountpoint;
        let mut config = Config::default();
        if kept.request.writeback && !kept.read_only {
            config = config.with(abi::init::WRITEBACK_CACHE);
        }
        if kept.read_only {
            // (Each serving thread has room for the largest write.)
            config.max_write = 4096;
        }
        if kept.shared {
            config = config.without(abi::init::EXPLICIT_INVAL_DATA).with(abi::init::AUTO_INVAL_DATA);
        }
        let session = Session::init(fd, config)?;
        tracing::info!(mountpoint = %mountpoint.display(), negotiated = %session.negotiated(), "mounted");
        kept.negotiated = session.negotiated().to_string();
        self.keep(&kept, &session, memory)?;
        let receipts = Receipts::new(memory, Tid::ZERO);
        let nodes = self.nodes_of(&kept, memory);
        self.serve_mount(session, &kept, pins, nodes, receipts)?;
        // SAFETY: this call can't fail.
        if unsafe { libc::geteuid() } == 0
            && let Err(e) = darner_fuse::set_readahead(&kept.request.mountpoint, READAHEAD)
        {
            tracing::debug!("readahead stays as it is: {e}");
        }
        Ok(())
    }

    /// From now on the mount outlives this process, if the kernel can send requests again.
    fn keep(&self, kept: &Kept, session: &Session, memory: &MountMemory) -> Result<()> {
        if session.negotiated().flags & abi::init::HAS_RESEND == 0 {
            tracing::warn!("this kernel (before 6.9) sends no request again: the mount ends with this process");
            return Ok(());
        }
        let at = kept.request.mountpoint.display();
        self.keeper.keep(&format!("{MEMORY}{at}"), "", memory.shared())?;
        self.keeper.keep(&format!("{MOUNT}{at}"), &serde_json::to_string(kept)?, &session.duplicate()?)
    }

    /// Ends a mount that nobody serves.
    fn give_up(&self, mountpoint: &Path) {
        self.state.lock().mounts.remove(mountpoint);
        self.let_go(mountpoint);
        if let Err(e) = darner_fuse::unmount(mountpoint, true) {
            tracing::warn!("{e}");
        }
    }

    fn let_go(&self, mountpoint: &Path) {
        let at = mountpoint.display();
        self.keeper.drop(&format!("{MOUNT}{at}"));
        self.keeper.drop(&format!("{MEMORY}{at}"));
    }

    /// Goes on with the mounts that a process before this had. Those with which that fails are ended.
    pub(crate) fn go_on(self: &Arc<Daemon>, mut items: Items) -> Result<()> {
        // What is newer has not been committed by that process.
        let last = self.store().tid();
        let mut unanswered = Vec::new();
        // What each keeps must be kept before any of them answers: who writes may need the room.
        let mounts: Vec<_> = keeper::take(&mut items, MOUNT)
            .into_iter()
            .map(|(name, item)| {
                let kept = serde_json::from_str::<Kept>(&item.text).map_err(Failure::from);
                let moments = kept.iter().flat_map(Kept::moments);
                let pins: Vec<Pin> = moments.map(|moment| self.fs.hold(moment)).collect();
                (name, item.fd, kept, pins)
            })
            .collect();
        for (name, fd, kept, pins) in mounts {
            let memory = items.remove(&format!("{MEMORY}{name}")).map(|item| item.fd);
            if let Err(e) = kept.and_then(|kept| self.adopt(&kept, pins, fd, memory, last, &mut unanswered)) {
                tracing::error!("the mount {name} ends: {e}");
                self.give_up(Path::new(&name));
            }
        }
        // Whom a forgotten file was reported to may not have come to see to it. (One that was made without a name and not
        // answered is known to the kernel only then.)
        let orphans = self.fs.orphans();
        self.reaper.look_at(orphans.into_iter().filter(|ino| !unanswered.contains(ino)));
        tracing::info!(tid = %last, mounts = self.state.lock().mounts.len(), "goes on");
        Ok(())
    }

    fn adopt(
        self: &Arc<Daemon>,
        kept: &Kept,
        pins: Vec<Pin>,
        fd: OwnedFd,
        memory: Option<OwnedFd>,
        last: Tid,
        unanswered: &mut Vec<Inode>,
    ) -> Result<()> {
        let session = Session::adopt(fd, kept.negotiated.parse()?)?;
        let memory = memory.map(MountMemory::adopt).transpose()?.flatten();
        let memory = memory.ok_or_else(|| Failure::new("what was remembered of it is of another version"))?;
        let receipts = Receipts::new(&memory, last);
        unanswered.extend(receipts.results().into_iter().filter_map(nameless));
        // Before anything is read: what is read after that has not been read by this process before.
        session.resend()?;
        let nodes = self.nodes_of(kept, &memory).taken_over();
        self.serve_mount(session, kept, pins, nodes, receipts)
    }

    fn nodes_of(&self, kept: &Kept, memory: &MountMemory) -> Nodes {
        let (root, as_of) = (Inode::from_number(kept.root), kept.as_of.map(Tid));
        let follows = as_of.is_none() && root == ROOT && self.fs.head().is_some();
        Nodes::new(root, as_of, memory).following(follows.then(|| self.fs.clone()))
    }

    fn serve_mount(
        self: &Arc<Daemon>,
        session: Session,
        kept: &Kept,
        pins: Vec<Pin>,
        nodes: Nodes,
        receipts: Receipts,
    ) -> Result<()> {
        let (m, root, as_of) = (&kept.request, Inode::from_number(kept.root), kept.as_of.map(Tid));
        let invalidator = Invalidator::new(
            &self.errands,
            session.shared(),
            session.negotiated().flags & abi::init::HAS_EXPIRE_ONLY != 0,
        );
        let for_stale = invalidator.clone();
        // Not from a serving thread: invalidation may wait for requests that only those can answer.
        let stale = Aside::new("invalidator", move |id| for_stale.inval_inodes(&[id]));
        if !kept.read_only {
            stale.start()?;
        }
        let for_holes = invalidator.clone();
        let kernel = KernelCache {
            stale: Box::new(move |id| stale.take(id)),
            write_back: Arc::new(move |id, bytes| for_holes.write_back(id, bytes)),
            beyond_the_end: m.writeback,
        };
        let nodes = Arc::new(nodes);
        let frontend = Frontend::new(
            self.fs.clone(),
            nodes.clone(),
            receipts,
            self.reaper.clone(),
            kept.shared,
            kept.read_only,
            kernel,
        );
        let line = MountLine {
            mountpoint: m.mountpoint.clone(),
            fileset: m.fileset.as_ref().filter(|_| root != ROOT).map(|asked| self.called(root, asked)),
            as_of: as_of.map(|t| t.to_string()),
            as_of_time: as_of.map(local),
            read_only: kept.read_only,
        };
        let listener = self.listen_at(&m.mountpoint);
        let listener = listener.inspect_err(|e| tracing::warn!("only volumes lead commands here: {e}")).ok();
        let (live, source) = (as_of.is_none(), kept.source.clone());
        let mount = Mount { line, live, root, invalidator, nodes, source, listener, ended: false, _pins: pins };
        self.state.lock().mounts.insert(m.mountpoint.clone(), mount);
        let (daemon, mountpoint) = (self.clone(), m.mountpoint.clone());
        let (threads, poll) = (m.threads.clamp(2, THREADS_MAX), Duration::from_micros(m.poll_us));
        let (tell, told) = channel();
        let serving = thread::Builder::new().name("serve".into()).spawn(move || {
            let ended = session.run_then(threads, poll, &frontend, || {
                let _ = tell.send(());
            });
            drop(tell);
            match &ended {
                Ok(_) => tracing::info!(mountpoint = %mountpoint.display(), "unmounted"),
                Err(e) => tracing::error!(mountpoint = %mountpoint.display(), "serving ended: {e}"),
            }
            if let Some(mount) = daemon.state.lock().mounts.get_mut(&mountpoint) {
                mount.ended = true;
            }
            if !daemon.store().is_read_only()
                && let Err(e) = daemon.fs.sync()
            {
                let lost = crate::daemon::lost(&e, daemon.store().durable());
                tracing::error!("{lost}");
                daemon.state.lock().lost = Some(lost);
            }
            daemon.state.lock().mounts.remove(&mountpoint);
            // What only this mount had open can go. (If it was the last one, the next to open the store does it.)
            daemon.reaper.look_at(daemon.fs.orphans());
            daemon.let_go(&mountpoint);
            daemon.changed.notify_all();
            ended
        })?;
        if told.recv().is_ok() {
            return Ok(());
        }
        let ended = serving.join().map_err(|_| Failure::new("a serving thread panicked"))?;
        ended.map(drop).map_err(Failure::from)
    }

    /// The name of a fileset by now; `asked`, by which it was mounted, if it is gone.
    fn called(&self, root: Inode, asked: &str) -> String {
        let found = self.fs.filesets().into_iter().find(|(fileset, _)| fileset.id == root.fileset);
        found.map_or_else(|| asked.into(), |(fileset, _)| fileset.name)
    }

    /// What a mount is to show: below which root, and as of when.
    pub(crate) fn root_for(&self, m: &MountRequest) -> Result<(Inode, Option<Tid>)> {
        let named = |name: &str, at: Tid| {
            self.fs.fileset_called(name, at).map_err(|e| Failure::new(format!("fileset {name:?}: {e}")))
        };
        let root = |at: Tid| m.fileset.as_deref().map_or(Ok(ROOT), |name| named(name, at));
        let Some(when) = &m.as_of else { return Ok((root(Tid::MAX)?, None)) };
        // (One that is gone has no labels.)
        let labels = root(Tid::MAX).unwrap_or(ROOT).fileset;
        let tid = self.moment(labels, when)?;
        Ok((root(tid)?, Some(tid)))
    }

    /// Refuses a further mount where it would take what the others need.
    fn refuse_without_descriptors(&self) -> Result<()> {
        let is_further = !self.state.lock().mounts.is_empty();
        match place::files_left().filter(|_| is_further) {
            Some((most, left)) if left < DESCRIPTORS_LEFT.max(most / 8) => Err(Failure::new(format!(
                "the daemon may open {left} more files of {most} (limit: ulimit -n, as it is started), which are kept for what is \
                 written and for commands: unmount another mount first"
            ))),
            _ => Ok(()),
        }
    }

    /// Whether a mount that is in the way has been taken away already, and only we have not seen the end of it.
    pub(crate) fn one_is_leaving(&self, m: &MountRequest) -> Result<bool> {
        let table = mounts::all()?;
        let state = self.state.lock();
        let there = |at: &Path, o: &Mount| table.iter().any(|t| t.mountpoint == at && t.source == o.source);
        let in_the_way = |at: &Path, o: &Mount| at == m.mountpoint || (!m.read_only && o.writes());
        Ok(state.mounts.iter().any(|(at, o)| in_the_way(at, o) && !there(at, o)))
    }

    /// Whether a writable mount of what is below a root may be added. What a mount's kernel has cached is true as long as
    /// nobody changes it elsewhere.
    fn may_write(&self, state: &State, root: Inode) -> Result<()> {
        let path = self.path();
        let path = path.display();
        if self.store().is_read_only() {
            return Err(Failure::new(format!(
                "{path} is mounted read-only; unmount that before it is mounted writable"
            )));
        }
        let Some(other) = state.mounts.values().find(|o| o.writes() && o.shows(root)) else { return Ok(()) };
        let at = other.line.mountpoint.display();
        Err(Failure::new(match &other.line.fileset {
            _ if other.root == root => {
                format!("{path} is mounted on {at} already; further mounts of it need --read-only or --as-of")
            }
            Some(name) => format!(
                "the fileset {name} of {path} is mounted on {at} by itself: beside it, the whole needs --read-only or --as-of"
            ),
            None => format!(
                "the whole of {path} is mounted on {at} already: beside it, a fileset by itself needs --read-only or \
                 --as-of (or bind-mount its directory: mount --bind)"
            ),
        }))
    }
}
