//! Extended attributes: `user.`, `trusted.`, `security.`, and the ACLs of `system.`.
//!
//! docs/format.md §Extended attributes: key suffix: the name; value: the bytes. Limits are the kernel's: names to 255
//! bytes, values and lists to 64 KiB. An object without any ([`Attr::XATTRS`] clear) is known to have none without a
//! look.

use std::ops::ControlFlow;

use darner_store::{Kind, Tid};

use crate::acl::{self, Acl};
use crate::attr::Attr;
use crate::change::{Change, SMALL};
use crate::error::{FsError, Result, refuse};
use crate::fs::Fs;
use crate::name::NAME_MAX;
use crate::node::{Inode, Node};
use crate::op::Caller;
use crate::retain;

/// File capabilities, which a write takes away.
pub(crate) const CAPABILITY: &[u8] = b"security.capability";
/// What everything of the past has besides, unlisted: which moment it shows.
const AS_OF: &[u8] = b"user.darner.as-of";
/// How that ends where the past is empty because none is kept of it.
pub const NO_HISTORY: &str = "; no history is kept of it";
const TRUSTED: &[u8] = b"trusted.";
const VALUE_MAX: usize = 65536;
const LIST_MAX: usize = 65536;
const NONE: FsError = FsError::new(libc::ENODATA, "no such extended attribute");

/// How an attribute is to be set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SetXattr {
    /// EEXIST if it is there (XATTR_CREATE).
    pub create: bool,
    /// ENODATA if it isn't (XATTR_REPLACE).
    pub replace: bool,
    /// With an access ACL: the caller may not keep the set-group-id bit.
    pub kill_sgid: bool,
}

/// The answer to a question that says how much room there is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// No room was offered: this much is needed.
    Size(u32),
    /// The answer.
    Bytes(Vec<u8>),
}

impl Found {
    fn within(bytes: Vec<u8>, room: usize) -> Result<Found> {
        match room {
            0 => Ok(Found::Size(bytes.len() as u32)),
            _ if bytes.len() > room => refuse(libc::ERANGE, "the answer is longer than the buffer"),
            _ => Ok(Found::Bytes(bytes)),
        }
    }
}

impl Fs {
    /// An attribute's value; with `room` 0, its size.
    pub fn getxattr(&self, node: Node, name: &[u8], room: usize) -> Result<Found> {
        let _live = self.look(node)?;
        check_name(name)?;
        if let (AS_OF, Node::AsOf(ino, tid)) = (name, node) {
            let mut text = retain::describe(&*self.retention(ino.fileset)?, tid, &self.zone);
            if self.attr(node)?.flags & Attr::KEEPLESS != 0 {
                text += NO_HISTORY;
            }
            return Found::within(text.into_bytes(), room);
        }
        if self.attr(node)?.flags & flag(name) == 0 {
            return Err(NONE);
        }
        let key = node.inode().key(Kind::XATTR, name);
        let found = self.store.get(&key, node.at())?.ok_or(NONE)?;
        Found::within(found.value.to_vec(), room)
    }

    /// The names, each ended by a NUL; with `room` 0, their size. `trusted.` ones are shown to root only.
    pub fn listxattr(&self, caller: &Caller, node: Node, room: usize) -> Result<Found> {
        let _live = self.look(node)?;
        let mut list = Vec::new();
        if self.attr(node)?.flags & (Attr::XATTRS | Attr::ACL_ACCESS | Attr::ACL_DEFAULT) != 0 {
            list = self.xattr_names(node.inode(), node.at(), caller.uid == 0)?;
        }
        Found::within(list, room)
    }

    fn xattr_names(&self, ino: Inode, at: Tid, trusted: bool) -> Result<Vec<u8>> {
        let mut list = Vec::new();
        self.each(ino, Kind::XATTR, &[], at, |name, _, _| {
            if trusted || !name.starts_with(TRUSTED) {
                list.extend(name);
                list.push(0);
            }
            ControlFlow::Continue(())
        })?;
        Ok(list)
    }

    /// Sets an attribute. An access ACL changes the mode with it.
    pub fn setxattr(&self, now_ns: u64, node: Node, name: &[u8], value: &[u8], how: SetXattr) -> Result<()> {
        let ino = node.writable()?;
        check_name(name)?;
        if name == AS_OF {
            return refuse(
                libc::EPERM,
                "this extended attribute tells which moment of the past is shown, and can't be set",
            );
        }
        if value.len() > VALUE_MAX {
            return refuse(libc::E2BIG, "the value is longer than 64 KiB");
        }
        let mut plan = self.plan(ino.fileset, value.len() as u64 + SMALL)?;
        let attr = plan.attr(ino)?;
        check_place(&attr, name)?;
        let is_there = attr.flags & flag(name) != 0 && self.has_xattr(ino, name)?;
        match (is_there, how.create, how.replace) {
            (true, true, _) => return refuse(libc::EEXIST, "the extended attribute exists"),
            (false, _, true) => return Err(NONE),
            _ => {}
        }
        let list = if is_acl(name) { Acl::decode(value)? } else { None };
        if name == acl::DEFAULT && list.is_some() && !attr.is_dir() {
            return refuse(libc::EACCES, "only a directory has a default access control list");
        }
        if !is_acl(name) && !is_there {
            self.check_list(ino, &attr, name)?;
        }
        let mut change = plan.begin(now_ns)?;
        match name {
            acl::ACCESS => change.set_access_acl(ino, list, how.kill_sgid)?,
            acl::DEFAULT => change.set_default_acl(ino, list)?,
            _ => change.put_xattr(ino, name, value)?,
        }
        change.commit()?;
        Ok(())
    }

    /// Removes an attribute. ENODATA if it isn't there; an ACL that isn't there is none already, as everywhere.
    pub fn removexattr(&self, now_ns: u64, node: Node, name: &[u8]) -> Result<()> {
        let ino = node.writable()?;
        check_name(name)?;
        let mut plan = self.plan(ino.fileset, 0)?;
        if plan.attr(ino)?.flags & flag(name) == 0 || !self.has_xattr(ino, name)? {
            return if is_acl(name) { Ok(()) } else { Err(NONE) };
        }
        let mut change = plan.begin(now_ns)?;
        match name {
            acl::ACCESS => change.set_access_acl(ino, None, false)?,
            acl::DEFAULT => change.set_default_acl(ino, None)?,
            _ => {
                change.delete(ino, Kind::XATTR, name);
                let attr = change.edit(ino)?;
                if name == CAPABILITY {
                    attr.flags &= !Attr::CAPS;
                }
            }
        }
        change.commit()?;
        Ok(())
    }

    /// Whether another name fits the list.
    fn check_list(&self, ino: Inode, attr: &Attr, name: &[u8]) -> Result<()> {
        if attr.flags & Attr::XATTRS != 0 && self.xattr_names(ino, Tid::MAX, true)?.len() + name.len() + 1 > LIST_MAX {
            return refuse(libc::ENOSPC, "the names of extended attributes come to more than 64 KiB");
        }
        Ok(())
    }

    fn has_xattr(&self, ino: Inode, name: &[u8]) -> Result<bool> {
        Ok(self.store.get(&ino.key(Kind::XATTR, name), Tid::MAX)?.is_some())
    }
}

impl Change<'_> {
    fn put_xattr(&mut self, ino: Inode, name: &[u8], value: &[u8]) -> Result<()> {
        self.put(ino, Kind::XATTR, name, value);
        self.edit(ino)?.flags |= Attr::XATTRS | if name == CAPABILITY { Attr::CAPS } else { 0 };
        Ok(())
    }
}

/// The flag without which an object can't have the attribute.
fn flag(name: &[u8]) -> u32 {
    match name {
        acl::ACCESS => Attr::ACL_ACCESS,
        acl::DEFAULT => Attr::ACL_DEFAULT,
        CAPABILITY => Attr::CAPS,
        _ => Attr::XATTRS,
    }
}

fn is_acl(name: &[u8]) -> bool {
    name == acl::ACCESS || name == acl::DEFAULT
}

fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > NAME_MAX || name.is_empty() {
        return refuse(libc::ERANGE, "the name of an extended attribute has 1 to 255 bytes");
    }
    if is_acl(name) {
        return Ok(());
    }
    match [b"user.".as_slice(), TRUSTED, b"security."].iter().find_map(|space| name.strip_prefix(*space)) {
        None => refuse(libc::EOPNOTSUPP, "no such kind of extended attribute"),
        Some(b"") => refuse(libc::EINVAL, "the extended attribute has no name"),
        Some(_) => Ok(()),
    }
}

fn check_place(attr: &Attr, name: &[u8]) -> Result<()> {
    if name.starts_with(b"user.") && !attr.is_file() && !attr.is_dir() {
        return refuse(libc::EPERM, "only files and directories have user attributes");
    }
    if is_acl(name) && attr.is_symlink() {
        return refuse(libc::EOPNOTSUPP, "symbolic links have no access control list");
    }
    Ok(())
}
