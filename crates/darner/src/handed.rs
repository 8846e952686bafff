//! The files that are handed over to a plug-in.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::attachments;
use crate::claims::{self, Use};
use crate::cli::Attach;
use crate::error::{Context, Failure, Result};
use crate::keeper::{Items, Keeper};
use crate::place::{holder, try_lock};

/// What the name of a file that is kept begins with.
const FILE: &str = "file ";

/// One of them, as `darner status` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handed {
    /// Its name when it was opened.
    pub path: PathBuf,
    /// The filesystem that it is in.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
}

/// Opens them, once: what they name may change meanwhile. The lock of one that is written, or is an image of a plug-in that comes along, which
/// takes it for unchanging, is that of the open file: held by all who have the descriptor, and so until the last process of the attachment ends.
pub fn open(c: &Attach, keeper: &Keeper, items: &mut Items) -> Result<(Vec<File>, Vec<Handed>)> {
    let mut all = (Vec::new(), Vec::new());
    for (n, path) in c.files.iter().chain(&c.of).enumerate() {
        let key = format!("{FILE}{n}");
        let is_image = n >= c.files.len();
        let (file, handed) = match items.remove(&key) {
            Some(item) => {
                let handed = serde_json::from_str(&item.text).unwrap_or_default();
                (File::from(item.fd), handed)
            }
            None => {
                // (Then the kernel keeps a device from mkfs and mounts, and from stores by another node.)
                let only_we = if c.writable && claims::is_device(path) { libc::O_EXCL } else { 0 };
                let file = File::options().read(true).write(c.writable).custom_flags(only_we).open(path);
                if c.writable {
                    refuse_if_in_use(path, file.as_ref().is_err_and(claims::is_busy))?;
                }
                let file = file.cant(|| format!("open {}", path.display()))?;
                if c.writable || is_image {
                    lock(&file, path, c.writable)?;
                }
                let meta = file.metadata()?;
                let handed = Handed { path: path.clone(), device: meta.dev(), inode: meta.ino() };
                keeper.keep(&key, &serde_json::to_string(&handed)?, &file)?;
                (file, handed)
            }
        };
        all.0.push(file);
        all.1.push(handed);
    }
    Ok(all)
}

/// What others have is not handed over to be written. `is_busy`: to the kernel it is.
fn refuse_if_in_use(path: &Path, is_busy: bool) -> Result<()> {
    match claims::used(path) {
        Some(Use::Open(what) | Use::Other(what)) => Err(claims::in_use(path, &what)),
        None if is_busy => Err(claims::in_use(path, claims::ITSELF)),
        None => Ok(()),
    }
}

fn lock(file: &File, path: &Path, writable: bool) -> Result<()> {
    match try_lock(file, writable) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::new(format!("{} is in use by {}", path.display(), user_of(file)))),
        Err(e) => {
            tracing::warn!("{} can't be locked; see to it that nobody else writes to it: {e}", path.display());
            Ok(())
        }
    }
}

/// Who has the lock of a file.
fn user_of(file: &File) -> String {
    let Ok(meta) = file.metadata() else { return "somebody else".into() };
    let is_it = |f: &Handed| (f.device, f.inode) == (meta.dev(), meta.ino());
    let attached = attachments::below(Path::new("/")).unwrap_or_default();
    match attached.iter().find(|a| a.files.iter().any(is_it)) {
        Some(a) => {
            format!("what is attached to {}: detach that first", darner_syslink::plain(&a.directory.to_string_lossy()))
        }
        None => holder(&meta).unwrap_or_else(|| "another process, which has locked it".into()),
    }
}
