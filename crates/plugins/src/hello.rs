//! The smallest filesystem: a directory with one file. docs/vfs.md explains it line by line.

use std::time::Duration;

use darner_vfs::{Attr, Errno, Info, Listing, ROOT, Result, Vfs};

const FILE: u64 = 2;
const TEXT: &[u8] = b"Hello from a process of its own.\n";

/// See the module.
pub struct Hello;

impl Vfs for Hello {
    fn info(&self) -> Info {
        Info { name: "hello".into(), writable: false, valid: Duration::from_secs(3600) }
    }

    fn lookup(&self, dir: u64, name: &[u8]) -> Result<Attr> {
        match (dir, name) {
            (ROOT, b"hello.txt") => self.getattr(FILE),
            (ROOT, _) => Err(Errno(libc::ENOENT)),
            _ => Err(Errno(libc::ENOTDIR)),
        }
    }

    fn getattr(&self, node: u64) -> Result<Attr> {
        match node {
            ROOT => Ok(Attr { node, mode: libc::S_IFDIR | 0o755, nlink: 2, ..Attr::default() }),
            FILE => Ok(Attr { node, mode: libc::S_IFREG | 0o644, size: TEXT.len() as u64, ..Attr::default() }),
            _ => Err(Errno(libc::ESTALE)),
        }
    }

    fn readdir(&self, dir: u64, after: u64, listing: &mut Listing) -> Result<()> {
        if dir != ROOT {
            return Err(Errno(libc::ENOTDIR));
        }
        // One entry, whose cookie is 1; whoever has it comes with 1 the next time.
        if after < 1 {
            let _full = !listing.add(b"hello.txt", 1, &self.getattr(FILE)?);
        }
        Ok(())
    }

    fn read(&self, node: u64, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        if node != FILE {
            return Err(Errno(libc::EISDIR));
        }
        let rest = TEXT.get(offset as usize..).unwrap_or_default();
        let n = rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
}
