//! What open, write, rename, xattr, … *mean*, on records.
//!
//! A filesystem ([`Fs`]) is what is in a [`darner_store::Store`]: a main fileset, and others that appear in its root. Each
//! operation is plain data ([`Op`])
//! with a plain answer ([`Reply`]); each change is one transaction with one tid, which is also its mtime and ctime.
//! Given
//! `(op, tid)` the outcome is determined. Absent on purpose: FUSE, sockets, threads, clocks. This is the only crate
//! that knows errno ([`FsError`]).

mod acl;
mod attr;
mod change;
mod check;
mod clone;
mod codec;
mod copy;
mod create;
mod dirent;
mod error;
mod fallocate;
mod file;
mod fileset;
mod forget;
mod fs;
mod gather;
mod keepless;
mod label;
mod log;
mod lookup;
mod mirror;
mod name;
mod node;
mod op;
mod orphan;
mod peer;
mod points;
mod readdir;
mod rename;
pub mod retain;
mod scrub;
mod setattr;
mod statfs;
mod unlink;
mod view;
pub mod when;
mod whereabouts;
mod xattr;

pub use attr::{Attr, Time};
pub use check::Checked;
pub use clone::count_clone;
pub use create::{Created, NAMELESS};
pub use dirent::{dirent_suffix, parse_dirent_suffix};
pub use error::{FsError, Result};
pub use fallocate::FallocateMode;
pub use file::{Seek, Written};
pub use fileset::{Fileset, Limits};
pub use forget::Destroyed;
pub use fs::Fs;
pub use keepless::Marked;
pub use label::Label;
pub use log::{LogEntry, What};
pub use lookup::Entry;
pub use mirror::{
    Changed, Damaged, Digest, Digesting, Digests, Following, Opening, Part, Sent, UNREADABLE, Upstream, Wanted, Was,
};
pub use name::NAME_MAX;
pub use node::{Inode, MAIN, Node, ROOT};
pub use op::{Caller, Op, Reply};
pub use peer::{Admitted, Compared};
pub use readdir::DirEntry;
pub use rename::RenameMode;
pub use setattr::{SetAttr, SetTime};
pub use statfs::StatFs;
pub use view::{Moment, NoMoment, splits};
pub use whereabouts::{NamedMirror, Whereabouts};
pub use xattr::{Found, NO_HISTORY, SetXattr};

pub use darner_store::{Count, FilesetId, ObjectId, Tid};
