//! ZFS over FUSE (Debian's zfs-fuse): a peer with the same handicap.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::shell;
use super::system::{Room, System, unmount};
use crate::error::{Context, Failure, Result};

/// See the module.
pub struct ZfsFuse {
    /// `None`: it was running before us, and goes on.
    daemon: Option<Child>,
    pool: String,
    /// The directory of the pool's file, where import looks for it.
    shelf: PathBuf,
    dir: PathBuf,
    made: bool,
}

impl ZfsFuse {
    /// Starts the daemon where none runs, and makes a pool on a file.
    pub fn set_up(room: &Room, bytes: u64) -> Result<ZfsFuse> {
        let program = shell::need("zfs-fuse", "zfs-fuse")?;
        shell::need("zpool", "zfs-fuse")?;
        if !shell::is_root() {
            return Err(Failure::new("only root can start it"));
        }
        let mut zfs = ZfsFuse {
            daemon: None,
            pool: format!("darnerbench{}", std::process::id()),
            shelf: room.dir("zfs-files")?,
            dir: room.dir("zfs")?,
            made: false,
        };
        if zpool(&["list"]).is_err() {
            zfs.daemon = Some(start(&program)?);
        }
        let image = room.image("zfs-files/image", bytes)?;
        let (image, dir) = (image.display().to_string(), zfs.dir.display().to_string());
        zpool(&["create", "-f", "-m", &dir, &zfs.pool, &image])?;
        zfs.made = true;
        shell::run("zfs", ["set", "atime=off", &zfs.pool])?;
        Ok(zfs)
    }
}

impl ZfsFuse {
    /// What the pool is called.
    pub fn pool(&self) -> &str {
        &self.pool
    }

    /// Just after use the pool may still be busy for a moment.
    fn destroy(&self) {
        for attempt in 0..50 {
            match zpool(&["destroy", "-f", &self.pool]) {
                Ok(_) => return,
                Err(e) if attempt == 49 => eprintln!("darner: {e}"),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
        unmount(&self.dir);
    }
}

fn zpool(args: &[&str]) -> Result<String> {
    shell::run("zpool", args)
}

fn start(program: &Path) -> Result<Child> {
    let mut command = Command::new(program);
    command.args(["--no-daemon", "--no-kstat-mount"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // A group of its own: an interrupt at the terminal is for us, who take it down in order.
    let mut child = command.process_group(0).spawn().cant(|| "start zfs-fuse".into())?;
    let begin = Instant::now();
    while zpool(&["list"]).is_err() {
        if let Some(status) = child.try_wait()? {
            return Err(Failure::new(format!("zfs-fuse ended at once ({status})")));
        }
        if begin.elapsed() > Duration::from_secs(15) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(Failure::new("zfs-fuse does not answer"));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(child)
}

impl System for ZfsFuse {
    fn name(&self) -> &str {
        "zfs-fuse"
    }

    fn about(&self) -> String {
        "defaults, atime=off, pool on a filled file on the same disk".into()
    }

    fn dir(&self) -> &Path {
        &self.dir
    }

    fn remount(&mut self) -> Result<()> {
        zpool(&["export", &self.pool])?;
        zpool(&["import", "-d", &self.shelf.display().to_string(), &self.pool]).map(drop)
    }

    fn daemon(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }
}

impl Drop for ZfsFuse {
    fn drop(&mut self) {
        if self.made {
            self.destroy();
        }
        if let Some(child) = &mut self.daemon {
            // SAFETY: a plain system call; the child is ours and not yet waited for.
            unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
            let begin = Instant::now();
            while matches!(child.try_wait(), Ok(None)) && begin.elapsed() < Duration::from_secs(10) {
                std::thread::sleep(Duration::from_millis(50));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.shelf);
    }
}
