//! Looking a name up in a directory: live, as of a moment, or among the points in time.

use parking_lot::RwLockReadGuard;

use crate::attr::Attr;
use crate::error::{Result, refuse};
use crate::fileset::Catalogue;
use crate::fs::{Fs, above};
use crate::name::NAME_MAX;
use crate::node::{Inode, Node};

/// Where a name leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The node.
    pub node: Node,
    /// Its attributes.
    pub attr: Attr,
    /// False: the name means another moment soon (`…@@-10m`), or what it leads to in the past may be gone from there at any time; it may
    /// be cached for a second at most. (That a name with `@@` leads nowhere holds no longer either.)
    pub steady: bool,
}

/// Whether a directory shows what it leads to for as long as its own moment is kept. In the past, what no history is kept of goes when it is
/// removed, and a fileset keeps moments of its own.
pub(crate) fn stays(dir: Node, node: Node, attr: &Attr) -> bool {
    let is_own = dir.inode().fileset == node.inode().fileset && attr.flags & Attr::KEEPLESS == 0;
    is_own || !matches!(dir, Node::AsOf(..))
}

impl Fs {
    /// Keeps changes away while the live tree is looked at; the past needs no lock, but must still be kept.
    pub(crate) fn look(&self, node: Node) -> Result<Option<RwLockReadGuard<'_, Catalogue>>> {
        self.check_kept(node)?;
        Ok((!matches!(node, Node::AsOf(..))).then(|| self.live.read()))
    }

    pub(crate) fn entry(&self, node: Node) -> Result<Entry> {
        Ok(Entry { node, attr: self.attr(node)?, steady: true })
    }

    /// Looks up `name`, which may be `.` and `..` (as NFS does with a handle: ESTALE if the object is no more), an
    /// entry, or an as-of name.
    pub fn lookup(&self, dir: Node, name: &[u8], now_ns: u64) -> Result<Entry> {
        let _live = self.look(dir)?;
        match name {
            b"." => return self.entry(dir),
            b".." => return self.entry(self.parent(dir)?),
            _ => {}
        }
        if let Node::Points(object) = dir {
            return self.lookup_point(object, name, now_ns);
        }
        if name.len() <= NAME_MAX
            && let Some(found) = self.dirent(dir.inode(), name, dir.at())?
        {
            let node = self.found_beside(dir, found.ino)?;
            return match (dir, self.attr_shown(node.inode(), node.at())?) {
                (_, Some(attr)) => Ok(Entry { node, attr, steady: stays(dir, node, &attr) }),
                (Node::AsOf(..), None) => refuse(libc::ENOENT, "nothing is kept of it"),
                _ => refuse(libc::ESTALE, "the file does not exist any more"),
            };
        }
        match self.lookup_past(dir.inode(), name, now_ns)? {
            Some(entry) => Ok(entry),
            None if name.len() > NAME_MAX => refuse(libc::ENAMETOOLONG, "the name is longer than 255 bytes"),
            None => refuse(libc::ENOENT, "no such file or directory"),
        }
    }

    /// What `..` means: the parent at the same moment.
    pub(crate) fn parent(&self, node: Node) -> Result<Node> {
        match node {
            Node::Points(object) => Ok(Node::Live(object)),
            _ => Ok(node.beside(above(node.inode(), self.attr(node)?.parent))),
        }
    }

    /// Any WHEN is a name among the points in time.
    fn lookup_point(&self, object: Inode, name: &[u8], now_ns: u64) -> Result<Entry> {
        if let Ok(text) = std::str::from_utf8(name)
            && let Some(moment) = self.moment(object.fileset, text, now_ns)?
            && let Some(attr) = self.attr_shown(object, moment.tid)?
        {
            return Ok(Entry { node: Node::AsOf(object, moment.tid), attr, steady: moment.steady });
        }
        refuse(libc::ENOENT, "no such moment")
    }
}
