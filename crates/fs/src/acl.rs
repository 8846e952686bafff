//! POSIX access control lists, in the form of the `system.posix_acl_*` xattrs, and how they and the mode follow each
//! other.
//!
//! The kernel checks permissions by them; here they are validated, kept in step with the mode, and inherited. The
//! rules are those of Linux (fs/posix_acl.c): an access ACL that says no more than the mode is not kept; the mode's
//! group bits are the mask where there is one.

use darner_store::{Kind, Tid};

use crate::attr::Attr;
use crate::change::Change;
use crate::error::{FsError, Result, refuse};
use crate::fs::Fs;
use crate::node::Inode;

/// The xattr of the ACL that governs access.
pub(crate) const ACCESS: &[u8] = b"system.posix_acl_access";
/// The xattr of the ACL that new files in a directory inherit.
pub(crate) const DEFAULT: &[u8] = b"system.posix_acl_default";

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
const NO_ID: u32 = u32::MAX;
const VERSION: u32 = 2;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Ace {
    tag: u16,
    perm: u16,
    id: u32,
}

/// A valid list: owner, users, group, groups, mask (if there are users or groups), others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Acl(Vec<Ace>);

impl Acl {
    /// Reads the xattr's form; `None` is an empty list, which stands for no list.
    pub(crate) fn decode(value: &[u8]) -> Result<Option<Acl>> {
        const BAD: FsError = FsError::new(libc::EINVAL, "not a valid access control list");
        let (version, entries) = value.split_first_chunk::<4>().ok_or(BAD)?;
        if u32::from_le_bytes(*version) != VERSION {
            return refuse(libc::EOPNOTSUPP, "unknown version of access control lists");
        }
        let (entries, rest) = entries.as_chunks::<8>();
        if !rest.is_empty() {
            return Err(BAD);
        }
        let acl = Acl(entries.iter().map(Ace::decode).collect());
        match acl.0.is_empty() {
            true => Ok(None),
            false => acl.is_valid().then_some(Some(acl)).ok_or(BAD),
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for ace in &self.0 {
            out.extend(ace.tag.to_le_bytes());
            out.extend(ace.perm.to_le_bytes());
            out.extend(ace.id.to_le_bytes());
        }
        out
    }

    fn is_valid(&self) -> bool {
        let mut expected = USER_OBJ;
        let mut needs_mask = false;
        for ace in &self.0 {
            expected = match (ace.tag, expected) {
                _ if ace.perm > 7 => return false,
                (USER_OBJ, USER_OBJ) => USER,
                (USER, USER) | (GROUP, GROUP) if ace.id != NO_ID => {
                    needs_mask = true;
                    expected
                }
                (GROUP_OBJ, USER) => GROUP,
                (MASK, GROUP) => OTHER,
                (OTHER, OTHER) => 0,
                (OTHER, GROUP) if !needs_mask => 0,
                _ => return false,
            };
        }
        expected == 0
    }

    /// Whether it says no more than permission bits can.
    pub(crate) fn is_plain(&self) -> bool {
        self.0.len() == 3
    }

    fn perm(&mut self, tag: u16) -> Option<&mut u16> {
        self.0.iter_mut().find(|ace| ace.tag == tag).map(|ace| &mut ace.perm)
    }

    /// The entry that the mode's group bits stand for.
    fn group_class(&mut self) -> Option<&mut u16> {
        let tag = if self.perm(MASK).is_some() { MASK } else { GROUP_OBJ };
        self.perm(tag)
    }

    /// The permission bits it comes to.
    pub(crate) fn permissions(&mut self) -> u32 {
        let bits = |perm: Option<&mut u16>| perm.map_or(0, |perm| u32::from(*perm));
        bits(self.perm(USER_OBJ)) << 6 | bits(self.group_class()) << 3 | bits(self.perm(OTHER))
    }

    /// Follows a chmod.
    pub(crate) fn set_permissions(&mut self, mode: u32) {
        self.narrow(mode, |perm, bits| *perm = bits);
    }

    /// What a file made with `mode` gets from this default ACL; returns the file's permission bits.
    pub(crate) fn inherit(&mut self, mode: u32) -> u32 {
        self.narrow(mode, |perm, bits| *perm &= bits);
        self.permissions() & mode & 0o777
    }

    fn narrow(&mut self, mode: u32, apply: impl Fn(&mut u16, u16)) {
        let bits = |shift: u32| (mode >> shift & 7) as u16;
        if let Some(perm) = self.perm(USER_OBJ) {
            apply(perm, bits(6));
        }
        if let Some(perm) = self.group_class() {
            apply(perm, bits(3));
        }
        if let Some(perm) = self.perm(OTHER) {
            apply(perm, bits(0));
        }
    }
}

impl Ace {
    fn decode(bytes: &[u8; 8]) -> Ace {
        let [t0, t1, p0, p1, id @ ..] = *bytes;
        let tag = u16::from_le_bytes([t0, t1]);
        let id = if tag == USER || tag == GROUP { u32::from_le_bytes(id) } else { NO_ID };
        Ace { tag, perm: u16::from_le_bytes([p0, p1]), id }
    }
}

impl Fs {
    /// An object's stored ACL.
    pub(crate) fn acl(&self, ino: Inode, name: &[u8], at: Tid) -> Result<Option<Acl>> {
        match self.store.get(&ino.key(Kind::XATTR, name), at)? {
            Some(found) => Acl::decode(&found.value),
            None => Ok(None),
        }
    }
}

impl Change<'_> {
    /// Sets or (with `None`) removes the ACL that governs access, and the mode with it. `kill_sgid`: the caller may
    /// not keep it.
    pub(crate) fn set_access_acl(&mut self, ino: Inode, acl: Option<Acl>, kill_sgid: bool) -> Result<()> {
        let had = self.attr(ino)?.flags & Attr::ACL_ACCESS != 0;
        let attr = self.edit(ino)?;
        attr.flags &= !Attr::ACL_ACCESS;
        if let Some(mut acl) = acl {
            attr.mode = attr.mode & !0o777 | acl.permissions();
            if kill_sgid {
                attr.mode &= !libc::S_ISGID;
            }
            if !acl.is_plain() {
                attr.flags |= Attr::ACL_ACCESS;
                self.put(ino, Kind::XATTR, ACCESS, &acl.encode());
                return Ok(());
            }
        }
        if had {
            self.delete(ino, Kind::XATTR, ACCESS);
        }
        Ok(())
    }

    /// Sets or removes the ACL that new files in a directory inherit.
    pub(crate) fn set_default_acl(&mut self, ino: Inode, acl: Option<Acl>) -> Result<()> {
        let attr = self.attr(ino)?;
        match acl {
            Some(acl) => {
                self.edit(ino)?.flags |= Attr::ACL_DEFAULT;
                self.put(ino, Kind::XATTR, DEFAULT, &acl.encode());
            }
            None => {
                self.edit(ino)?.flags &= !Attr::ACL_DEFAULT;
                if attr.flags & Attr::ACL_DEFAULT != 0 {
                    self.delete(ino, Kind::XATTR, DEFAULT);
                }
            }
        }
        Ok(())
    }

    /// Lets the ACL follow a chmod.
    pub(crate) fn chmod_acl(&mut self, ino: Inode, mode: u32) -> Result<()> {
        if self.attr(ino)?.flags & Attr::ACL_ACCESS != 0
            && let Some(mut acl) = self.fs.acl(ino, ACCESS, Tid::MAX)?
        {
            acl.set_permissions(mode);
            self.put(ino, Kind::XATTR, ACCESS, &acl.encode());
        }
        Ok(())
    }

    /// Gives a new object what its directory's default ACL says; returns its mode and flags. Without one, the umask
    /// applies.
    pub(crate) fn inherit_acl(
        &mut self,
        ino: Inode,
        dir: Inode,
        dir_flags: u32,
        mode: u32,
        umask: u32,
    ) -> Result<(u32, u32)> {
        let default = match dir_flags & Attr::ACL_DEFAULT {
            0 => None,
            _ => self.fs.acl(dir, DEFAULT, Tid::MAX)?,
        };
        let Some(default) = default else { return Ok((mode & !(umask & 0o777), 0)) };
        let mut flags = 0;
        let mut access = default.clone();
        let permissions = access.inherit(mode);
        if !access.is_plain() {
            flags |= Attr::ACL_ACCESS;
            self.put(ino, Kind::XATTR, ACCESS, &access.encode());
        }
        if mode & libc::S_IFMT == libc::S_IFDIR {
            flags |= Attr::ACL_DEFAULT;
            self.put(ino, Kind::XATTR, DEFAULT, &default.encode());
        }
        Ok((mode & !0o777 | permissions, flags))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `u::rwx u:5:rw g::r m::r o::-`
    fn acl(text: &str) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for part in text.split_whitespace() {
            let [tag, id, perm] = part.split(':').collect::<Vec<_>>()[..] else { panic!("{part}") };
            let tag = match (tag, id) {
                ("u", "") => USER_OBJ,
                ("u", _) => USER,
                ("g", "") => GROUP_OBJ,
                ("g", _) => GROUP,
                ("m", _) => MASK,
                _ => OTHER,
            };
            let perm: u16 = perm
                .chars()
                .map(|c| match c {
                    'r' => 4,
                    'w' => 2,
                    'x' => 1,
                    _ => 0,
                })
                .sum();
            out.extend(tag.to_le_bytes());
            out.extend(perm.to_le_bytes());
            out.extend(id.parse().unwrap_or(NO_ID).to_le_bytes());
        }
        out
    }

    fn decoded(text: &str) -> Acl {
        Acl::decode(&acl(text)).unwrap().unwrap()
    }

    #[test]
    fn lists_in_another_order_or_without_their_mask_are_refused() {
        for good in [
            "u::rwx g::rx o::",
            "u::rwx u:5:rw g::r m::r o::",
            "u::rwx g::r g:5:r g:6:r m::r o::r",
            "u::rwx g::r m::r o::r",
        ] {
            assert_eq!(decoded(good).encode(), acl(good), "{good}");
        }
        for bad in [
            "u::rwx",
            "u::rwx o::",
            "g::r u::r o::",
            "u::rwx u:5:r g::r o::",
            "u::rwx g::r o:: m::r",
            "u::r u::r g::r o::",
            "u:: g:: o:: o::",
        ] {
            assert_eq!(Acl::decode(&acl(bad)).unwrap_err().errno(), libc::EINVAL, "{bad}");
        }
        assert_eq!(Acl::decode(&acl("")).unwrap(), None);
        assert_eq!(Acl::decode(&[2, 0, 0]).unwrap_err().errno(), libc::EINVAL);
        assert_eq!(Acl::decode(&[3, 0, 0, 0]).unwrap_err().errno(), libc::EOPNOTSUPP);
        assert_eq!(Acl::decode(&[2, 0, 0, 0, 1]).unwrap_err().errno(), libc::EINVAL);
    }

    #[test]
    fn the_group_bits_of_a_mode_are_the_mask() {
        assert_eq!(decoded("u::rwx g::rx o::x").permissions(), 0o751);
        assert_eq!(decoded("u::rwx u:5:rw g::rx m::r o::x").permissions(), 0o741);
        let mut acl = decoded("u::rwx u:5:rw g::rx m::r o::x");
        acl.set_permissions(0o620);
        assert_eq!(acl, decoded("u::rw u:5:rw g::rx m::w o::"));
    }

    #[test]
    fn a_new_file_gets_no_more_than_its_mode_asks_for() {
        let mut acl = decoded("u::rwx u:5:rwx g::rx m::rwx o::rx");
        assert_eq!(acl.inherit(0o640), 0o640);
        assert_eq!(acl, decoded("u::rw u:5:rwx g::rx m::r o::"));
        let mut acl = decoded("u::rwx g::rx o::");
        assert_eq!(acl.inherit(0o666), 0o640);
        assert!(acl.is_plain());
    }
}
