//! What the tests and examples share: a filesystem in memory, mounted.
#![allow(dead_code)] // each uses its part

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use darner_fuse::*;

mod memfs;

pub use memfs::{Manners, MemFs};

/// A mounted [`MemFs`]; unmounts when dropped.
pub struct Mounted {
    pub fs: Arc<MemFs>,
    pub session: Arc<Session>,
    pub path: PathBuf,
    serving: Option<JoinHandle<io::Result<Ended>>>,
    _dir: tempfile::TempDir,
}

impl Mounted {
    /// `None`, loudly, if this machine can't.
    pub fn try_new(manners: Manners, config: Config, threads: usize, poll: Duration) -> Option<Self> {
        // An ordinary user needn't be able to open it: fusermount3 does.
        // SAFETY: always succeeds.
        let root = unsafe { libc::geteuid() == 0 };
        if root && File::options().read(true).write(true).open("/dev/fuse").is_err() {
            eprintln!(
                "
*** SKIPPED: /dev/fuse is missing or not ours to open ***
"
            );
            return None;
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let options = MountOptions { source: "mem".into(), subtype: Some("darner".into()), ..Default::default() };
        let fd = match mount(dir.path(), &options) {
            Ok(fd) => fd,
            Err(error) => {
                eprintln!("\n*** SKIPPED: {error} ***\n");
                return None;
            }
        };
        let session = Arc::new(Session::init(fd, config).expect("handshake"));
        let fs = Arc::new(MemFs::new(manners));
        let path = dir.path().canonicalize().expect("path");
        let serving = Some(serve(&session, &fs, threads, poll));
        Some(Self { fs, session, path, serving, _dir: dir })
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Stops serving, without unmounting, and leaves it to a new session on the same mount.
    pub fn replace_session(&mut self, fs: Arc<MemFs>) -> Ended {
        let old = Arc::clone(&self.session);
        let fd = old.duplicate().expect("duplicate");
        let negotiated = old.negotiated().to_string().parse().expect("as text");
        old.stopper().stop();
        let ended = self.serving.take().expect("serving").join().expect("no panic").expect("no error");
        self.session = Arc::new(Session::adopt(fd, negotiated).expect("adopt"));
        self.session.resend().expect("resend");
        self.serving = Some(serve(&self.session, &fs, 2, Duration::ZERO));
        self.fs = fs;
        ended
    }

    /// Unmounts and returns how serving ended.
    pub fn unmount(mut self) -> Ended {
        unmount(&self.path, false).expect("unmount");
        self.serving.take().expect("serving").join().expect("no panic").expect("no error")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(serving) = self.serving.take() {
            let _ = unmount(&self.path, true);
            let _ = serving.join();
        }
    }
}

fn serve(session: &Arc<Session>, fs: &Arc<MemFs>, threads: usize, poll: Duration) -> JoinHandle<io::Result<Ended>> {
    let (session, fs) = (Arc::clone(session), Arc::clone(fs));
    std::thread::spawn(move || session.run(threads, poll, &*fs))
}
