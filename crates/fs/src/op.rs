//! Operations and replies as plain data, and the one place that takes the former to the latter.

use darner_store::{FilesetId, Tid};

use crate::attr::Attr;
use crate::create::Created;
use crate::error::Result;
use crate::fallocate::FallocateMode;
use crate::file::{Seek, Written};
use crate::fileset::{Fileset, Limits};
use crate::fs::Fs;
use crate::label::Label;
use crate::lookup::Entry;
use crate::node::{Inode, Node};
use crate::readdir::DirEntry;
use crate::rename::RenameMode;
use crate::setattr::SetAttr;
use crate::statfs::StatFs;
use crate::xattr::{Found, SetXattr};

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Process.
    pub pid: u32,
    /// Permission bits that new objects don't get (0 where somebody has taken them off already).
    pub umask: u32,
}

/// An operation. What each means is told at the method of [`Fs`] with its name (`Create`: [`Fs::create_file`],
/// `Open`: [`Fs::open_node`]).
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum Op<'a> {
    Lookup { dir: Node, name: &'a [u8] },
    GetAttr { node: Node },
    SetAttr { node: Node, set: SetAttr },
    ReadLink { node: Node },
    MkNod { dir: Node, name: &'a [u8], mode: u32, rdev: u32 },
    MkDir { dir: Node, name: &'a [u8], mode: u32 },
    Symlink { dir: Node, name: &'a [u8], target: &'a [u8] },
    Create { dir: Node, name: &'a [u8], mode: u32, exclusive: bool },
    TmpFile { dir: Node, mode: u32 },
    Link { node: Node, dir: Node, name: &'a [u8] },
    Unlink { dir: Node, name: &'a [u8] },
    RmDir { dir: Node, name: &'a [u8] },
    Rename { dir: Node, name: &'a [u8], new_dir: Node, new_name: &'a [u8], mode: RenameMode },
    Open { node: Node, write: bool },
    Read { node: Node, offset: u64, len: usize },
    Write { node: Node, offset: Option<u64>, data: &'a [u8], kill_suidgid: bool },
    Fallocate { node: Node, offset: u64, len: u64, mode: FallocateMode },
    Seek { node: Node, offset: u64, what: Seek },
    CopyRange { from: Node, offset: u64, to: Node, to_offset: u64, len: u64 },
    GetXattr { node: Node, name: &'a [u8], room: usize },
    ListXattr { node: Node, room: usize },
    SetXattr { node: Node, name: &'a [u8], value: &'a [u8], how: SetXattr },
    RemoveXattr { node: Node, name: &'a [u8] },
    ReadDir { dir: Node, after: u64, room: usize, head: usize, plus: bool },
    Forget { objects: &'a [Inode] },
    AddLabel { fileset: FilesetId, name: &'a str, at: Option<Tid> },
    RemoveLabel { fileset: FilesetId, name: &'a str },
    CreateFileset { name: &'a str },
    CloneFileset { of: Inode, at: Option<Tid>, name: &'a str },
    RemoveFileset { name: &'a str, force: bool },
    RenameFileset { name: &'a str, new_name: &'a str },
    LimitFileset { name: &'a str, limits: Limits },
    StatFs { node: Node },
    Sync,
}

/// The answer to an [`Op`] that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Reply {
    Done,
    Entry(Entry),
    Attr(Attr),
    Created(Created),
    Bytes(Vec<u8>),
    Written(Written),
    Offset(u64),
    Copied(u64),
    Found(Found),
    Entries(Vec<DirEntry>),
    Label(Label),
    Fileset(Fileset),
    StatFs(StatFs),
    Synced(Tid),
}

impl Op<'_> {
    /// The node that an error is about.
    fn subject(&self) -> Option<Node> {
        match *self {
            Op::Lookup { dir, .. } | Op::MkNod { dir, .. } | Op::MkDir { dir, .. } | Op::Symlink { dir, .. } => {
                Some(dir)
            }
            Op::Create { dir, .. } | Op::TmpFile { dir, .. } | Op::Unlink { dir, .. } | Op::RmDir { dir, .. } => {
                Some(dir)
            }
            Op::Rename { dir, .. } | Op::ReadDir { dir, .. } => Some(dir),
            Op::GetAttr { node } | Op::SetAttr { node, .. } | Op::ReadLink { node } | Op::Link { node, .. } => {
                Some(node)
            }
            Op::Open { node, .. } | Op::Write { node, .. } | Op::Fallocate { node, .. } | Op::Seek { node, .. } => {
                Some(node)
            }
            Op::GetXattr { node, .. } | Op::ListXattr { node, .. } => Some(node),
            Op::SetXattr { node, .. } | Op::RemoveXattr { node, .. } => Some(node),
            Op::CopyRange { from, .. } => Some(from),
            // Reading explains its own errors.
            Op::Read { .. } => None,
            Op::CreateFileset { .. } | Op::CloneFileset { .. } | Op::RemoveFileset { .. } => None,
            Op::RenameFileset { .. } | Op::LimitFileset { .. } => None,
            Op::Forget { .. } | Op::AddLabel { .. } | Op::RemoveLabel { .. } | Op::StatFs { .. } | Op::Sync => None,
        }
    }
}

impl Fs {
    /// Does one operation. A change is one transaction, begun at `now_ns` or just after the newest one.
    pub fn run(&self, caller: &Caller, now_ns: u64, op: Op<'_>) -> Result<Reply> {
        let reply = self.dispatch(caller, now_ns, op).map_err(|error| match op.subject() {
            Some(node) => self.explain(node, error),
            None => error,
        })?;
        // What was looked at may have been given up meanwhile: then it was a mixture.
        op.subject().map_or(Ok(()), |node| self.check_kept(node))?;
        Ok(reply)
    }

    fn dispatch(&self, caller: &Caller, now: u64, op: Op<'_>) -> Result<Reply> {
        Ok(match op {
            Op::Lookup { dir, name } => Reply::Entry(self.lookup(dir, name, now)?),
            Op::GetAttr { node } => Reply::Attr(self.getattr(node)?),
            Op::SetAttr { node, set } => Reply::Attr(self.setattr(now, node, &set)?),
            Op::ReadLink { node } => Reply::Bytes(self.readlink(node)?),
            Op::MkNod { dir, name, mode, rdev } => Reply::Entry(self.mknod(caller, now, dir, name, mode, rdev)?),
            Op::MkDir { dir, name, mode } => Reply::Entry(self.mkdir(caller, now, dir, name, mode)?),
            Op::Symlink { dir, name, target } => Reply::Entry(self.symlink(caller, now, dir, name, target)?),
            Op::Create { dir, name, mode, exclusive } => {
                Reply::Created(self.create_file(caller, now, dir, name, mode, exclusive)?)
            }
            Op::TmpFile { dir, mode } => Reply::Entry(self.tmpfile(caller, now, dir, mode)?),
            Op::Link { node, dir, name } => Reply::Entry(self.link(now, node, dir, name)?),
            Op::Unlink { dir, name } => done(self.unlink(now, dir, name)?),
            Op::RmDir { dir, name } => done(self.rmdir(now, dir, name)?),
            Op::Rename { dir, name, new_dir, new_name, mode } => {
                done(self.rename(caller, now, (dir, name), (new_dir, new_name), mode)?)
            }
            Op::Open { node, write } => Reply::Attr(self.open_node(node, write)?),
            Op::Read { node, offset, len } => Reply::Bytes(self.read(node, offset, len)?),
            Op::Write { node, offset, data, kill_suidgid } => {
                Reply::Written(self.write(now, node, offset, data, kill_suidgid)?)
            }
            Op::Fallocate { node, offset, len, mode } => done(self.fallocate(now, node, offset, len, mode)?),
            Op::Seek { node, offset, what } => Reply::Offset(self.seek(node, offset, what)?),
            Op::CopyRange { from, offset, to, to_offset, len } => {
                Reply::Copied(self.copy_range(now, from, offset, to, to_offset, len)?)
            }
            Op::GetXattr { node, name, room } => Reply::Found(self.getxattr(node, name, room)?),
            Op::ListXattr { node, room } => Reply::Found(self.listxattr(caller, node, room)?),
            Op::SetXattr { node, name, value, how } => done(self.setxattr(now, node, name, value, how)?),
            Op::RemoveXattr { node, name } => done(self.removexattr(now, node, name)?),
            Op::ReadDir { dir, after, room, head, plus } => {
                Reply::Entries(self.readdir(dir, after, room, head, plus, now)?)
            }
            Op::Forget { objects } => done(self.forget(now, objects)?),
            Op::AddLabel { fileset, name, at } => Reply::Label(self.add_label(fileset, name, at, now)?),
            Op::RemoveLabel { fileset, name } => done(self.remove_label(fileset, name, now)?),
            Op::CreateFileset { name } => Reply::Fileset(self.create_fileset(caller, now, name)?),
            Op::CloneFileset { of, at, name } => Reply::Fileset(self.clone_fileset(now, of, at, name)?),
            Op::RemoveFileset { name, force } => Reply::Fileset(self.remove_fileset(now, name, force)?),
            Op::RenameFileset { name, new_name } => Reply::Fileset(self.rename_fileset(now, name, new_name)?),
            Op::LimitFileset { name, limits } => Reply::Fileset(self.limit_fileset(now, name, limits)?),
            Op::StatFs { node } => Reply::StatFs(self.statfs(node)?),
            Op::Sync => Reply::Synced(self.sync()?),
        })
    }
}

fn done(_: ()) -> Reply {
    Reply::Done
}
