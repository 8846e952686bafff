//! Archives as read-only trees: tar, tar.gz, zip. The table of contents is read once, when it is attached; contents are unpacked as
//! they are read, from anywhere (`inflate.rs`), never to a disk.

mod inflate;
mod tarball;
mod tree;
mod zipped;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use darner_vfs::{Attr, Errno, Info, Listing, Result, Space, Vfs};

use parking_lot::Mutex;

use inflate::Inflated;
use tree::{Content, Tree};

const MEMBERS_MAX: usize = 16;

/// An archive.
pub struct Archive {
    kind: &'static str,
    tree: Tree,
    file: File,
    /// What a compressed tar is, unpacked.
    inflated: Option<Inflated>,
    /// Compressed members that were read last, by node.
    members: Mutex<Vec<(u64, Arc<Inflated>)>>,
}

impl Archive {
    /// Reads the table of contents.
    pub fn open(file: File) -> std::result::Result<Archive, String> {
        let mut magic = [0; 4];
        let n = file.read_at(&mut magic, 0).map_err(|e| e.to_string())?;
        match &magic[..n] {
            [0x1f, 0x8b, ..] => {
                let inflated =
                    Inflated::gzip(file.try_clone().map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
                let tree = tarball::read(inflated.reader())?;
                Ok(Archive { kind: "tar.gz", tree, file, inflated: Some(inflated), members: Mutex::default() })
            }
            b"PK\x03\x04" | b"PK\x05\x06" => {
                let tree = zipped::read(&file)?;
                Ok(Archive { kind: "zip", tree, file, inflated: None, members: Mutex::default() })
            }
            _ => Ok(Archive {
                kind: "tar",
                tree: tarball::read_seekable(&file)?,
                file,
                inflated: None,
                members: Mutex::default(),
            }),
        }
    }
}

impl Archive {
    fn member(&self, node: u64, open: impl FnOnce() -> Result<Inflated>) -> Result<Arc<Inflated>> {
        let mut members = self.members.lock();
        let found = members.iter().position(|(n, _)| *n == node).map(|n| members.remove(n));
        let found = found.map_or_else(|| open().map(|i| (node, Arc::new(i))), Ok)?;
        if members.len() >= MEMBERS_MAX {
            members.remove(0);
        }
        members.push(found.clone());
        Ok(found.1)
    }
}

impl Vfs for Archive {
    fn info(&self) -> Info {
        Info { name: format!("archive ({})", self.kind), writable: false, valid: Duration::from_secs(24 * 3600) }
    }

    fn lookup(&self, dir: u64, name: &[u8]) -> Result<Attr> {
        let child = self.tree.dir(dir)?.get(name).ok_or(Errno(libc::ENOENT))?;
        self.getattr(child)
    }

    fn getattr(&self, node: u64) -> Result<Attr> {
        Ok(self.tree.get(node)?.attr)
    }

    fn readdir(&self, dir: u64, after: u64, listing: &mut Listing) -> Result<()> {
        for (cookie, name, child) in self.tree.dir(dir)?.after(after) {
            if !listing.add(name, cookie, &self.getattr(child)?) {
                break;
            }
        }
        Ok(())
    }

    fn read(&self, node: u64, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let node = self.tree.get(node)?;
        let rest = node.attr.size.saturating_sub(offset);
        let n = buffer.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
        let buffer = &mut buffer[..n];
        match &node.content {
            Content::Dir(_) => return Err(Errno(libc::EISDIR)),
            Content::Stored(at) => match &self.inflated {
                Some(inflated) => inflated.read_exact_at(buffer, at + offset)?,
                None => self.file.read_exact_at(buffer, at + offset)?,
            },
            Content::Deflated(at, len, sum) => {
                self.member(node.attr.node, || Ok(Inflated::raw(self.file.try_clone()?, *at, *len, *sum)))?
                    .read_exact_at(buffer, offset)?;
            }
            Content::Link(_) | Content::Nothing => return Err(Errno(libc::EINVAL)),
            Content::Unreadable(why) => {
                eprintln!("{why}");
                return Err(Errno(libc::EOPNOTSUPP));
            }
        }
        Ok(n)
    }

    fn readlink(&self, node: u64) -> Result<Vec<u8>> {
        match &self.tree.get(node)?.content {
            Content::Link(target) => Ok(target.clone()),
            _ => Err(Errno(libc::EINVAL)),
        }
    }

    fn statfs(&self) -> Result<Space> {
        let blocks = crate::len_of(&self.file)?.div_ceil(4096);
        Ok(Space { block: 4096, blocks, files: self.tree.len(), name_max: 255, ..Space::default() })
    }
}
