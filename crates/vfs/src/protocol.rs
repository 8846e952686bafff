//! Commands and tags: docs/vfs.md §Commands.

use darner_syslink::{Code, Config, Element, Message, ReadError, Refusal, Tag};

use crate::vfs::{Attr, Errno, Info, Space, Wanted};

/// What the host asks for in its hello.
pub(crate) const SERVICE: &str = "darner.vfs/1";

/// Both sides poll for 200 µs, which is about what moving 1 MiB takes: waking somebody takes longer than most calls do.
pub(crate) fn link_config() -> Config {
    Config { poll_ns: 200_000, ..Config::default() }
}

pub(crate) const START: Tag = Tag(1);
pub(crate) const LOOKUP: Tag = Tag(2);
pub(crate) const GETATTR: Tag = Tag(3);
pub(crate) const READDIR: Tag = Tag(4);
pub(crate) const READ: Tag = Tag(5);
pub(crate) const READLINK: Tag = Tag(6);
pub(crate) const STATFS: Tag = Tag(7);
pub(crate) const CREATE: Tag = Tag(8);
pub(crate) const WRITE: Tag = Tag(9);
pub(crate) const SETATTR: Tag = Tag(10);
pub(crate) const UNLINK: Tag = Tag(11);
pub(crate) const RMDIR: Tag = Tag(12);
pub(crate) const RENAME: Tag = Tag(13);
pub(crate) const SYNC: Tag = Tag(14);

/// Of commands.
pub(crate) const NODE: Tag = Tag(1);
pub(crate) const NAME: Tag = Tag(2);
pub(crate) const OFFSET: Tag = Tag(3);
pub(crate) const LEN: Tag = Tag(4);
pub(crate) const PLACE: Tag = Tag(5);
pub(crate) const COOKIE: Tag = Tag(6);
pub(crate) const NEW_DIR: Tag = Tag(7);
pub(crate) const NEW_NAME: Tag = Tag(8);
pub(crate) const KEEP: Tag = Tag(9);
pub(crate) const TARGET: Tag = Tag(10);

/// Of replies.
pub(crate) const ENTRY: Tag = Tag(11);
pub(crate) const TITLE: Tag = Tag(12);
pub(crate) const WRITABLE: Tag = Tag(13);
pub(crate) const VALID_MS: Tag = Tag(14);

/// Of attributes, in entries, replies and commands.
const NUMBER: Tag = Tag(20);
const MODE: Tag = Tag(21);
const SIZE: Tag = Tag(22);
const NLINK: Tag = Tag(23);
const UID: Tag = Tag(24);
const GID: Tag = Tag(25);
const RDEV: Tag = Tag(26);
const ATIME: Tag = Tag(27);
const MTIME: Tag = Tag(28);
const CTIME: Tag = Tag(29);

/// Of space.
const BLOCK: Tag = Tag(30);
const BLOCKS: Tag = Tag(31);
const FREE: Tag = Tag(32);
const FILES: Tag = Tag(33);
const FILES_FREE: Tag = Tag(34);
const NAME_MAX: Tag = Tag(35);

type Read<T> = Result<T, ReadError>;

/// What is 0 is left out.
fn put(m: &mut Message, tag: Tag, v: u64) {
    if v != 0 {
        m.uint(tag, v);
    }
}

fn get<T: TryFrom<u64> + Default>(e: &Element<'_>, tag: Tag) -> Read<T> {
    if e.find(tag).is_none() { Ok(T::default()) } else { e.number(tag) }
}

fn time(e: &Element<'_>, tag: Tag) -> Read<Option<i64>> {
    e.find(tag).map(|e| e.as_int()).transpose()
}

fn number<T: TryFrom<u64>>(e: &Element<'_>, tag: Tag) -> Read<Option<T>> {
    e.find(tag).map(|_| e.number(tag)).transpose()
}

pub(crate) fn put_attr(m: &mut Message, a: &Attr) {
    m.uint(NUMBER, a.node).uint(MODE, a.mode.into());
    put(m, SIZE, a.size);
    for (tag, v) in [(NLINK, a.nlink), (UID, a.uid), (GID, a.gid), (RDEV, a.rdev)] {
        put(m, tag, v.into());
    }
    for (tag, v) in [(ATIME, a.atime), (MTIME, a.mtime), (CTIME, a.ctime)] {
        if v != 0 {
            m.int(tag, v);
        }
    }
}

pub(crate) fn attr(e: &Element<'_>) -> Read<Attr> {
    Ok(Attr {
        node: e.uint(NUMBER)?,
        mode: e.number(MODE)?,
        size: get(e, SIZE)?,
        nlink: get(e, NLINK)?,
        uid: get(e, UID)?,
        gid: get(e, GID)?,
        rdev: get(e, RDEV)?,
        atime: time(e, ATIME)?.unwrap_or_default(),
        mtime: time(e, MTIME)?.unwrap_or_default(),
        ctime: time(e, CTIME)?.unwrap_or_default(),
    })
}

pub(crate) fn put_wanted(m: &mut Message, w: &Wanted) {
    for (tag, v) in [(MODE, w.mode), (UID, w.uid), (GID, w.gid)] {
        if let Some(v) = v {
            m.uint(tag, v.into());
        }
    }
    if let Some(size) = w.size {
        m.uint(SIZE, size);
    }
    for (tag, v) in [(ATIME, w.atime), (MTIME, w.mtime)] {
        if let Some(v) = v {
            m.int(tag, v);
        }
    }
}

pub(crate) fn wanted(e: &Element<'_>) -> Read<Wanted> {
    Ok(Wanted {
        mode: number(e, MODE)?,
        uid: number(e, UID)?,
        gid: number(e, GID)?,
        size: number(e, SIZE)?,
        atime: time(e, ATIME)?,
        mtime: time(e, MTIME)?,
    })
}

pub(crate) fn put_info(m: &mut Message, i: &Info) {
    m.text(TITLE, &i.name);
    put(m, WRITABLE, i.writable.into());
    put(m, VALID_MS, i.valid.as_millis() as u64);
}

pub(crate) fn info(e: &Element<'_>) -> Read<Info> {
    Ok(Info {
        name: darner_syslink::plain(e.text(TITLE)?),
        writable: get::<u64>(e, WRITABLE)? != 0,
        valid: std::time::Duration::from_millis(get::<u32>(e, VALID_MS)?.into()),
    })
}

pub(crate) fn put_space(m: &mut Message, s: &Space) {
    put(m, BLOCK, s.block.into());
    for (tag, v) in [(BLOCKS, s.blocks), (FREE, s.free), (FILES, s.files), (FILES_FREE, s.files_free)] {
        put(m, tag, v);
    }
    put(m, NAME_MAX, s.name_max.into());
}

pub(crate) fn space(e: &Element<'_>) -> Read<Space> {
    Ok(Space {
        block: get(e, BLOCK)?,
        blocks: get(e, BLOCKS)?,
        free: get(e, FREE)?,
        files: get(e, FILES)?,
        files_free: get(e, FILES_FREE)?,
        name_max: get(e, NAME_MAX)?,
    })
}

/// Error codes of the protocol are 256 and the errno.
const ERRNO: u32 = 256;
const ERRNO_MAX: u32 = 200;

impl From<Errno> for Refusal {
    fn from(e: Errno) -> Refusal {
        Refusal::new(Code::Other(ERRNO + e.0.clamp(1, ERRNO_MAX as i32) as u32), "")
    }
}

/// What a refusal means to who asked the kernel.
pub(crate) fn errno(no: &Refusal) -> Errno {
    Errno(match no.code {
        Code::Other(n) if (ERRNO + 1..=ERRNO + ERRNO_MAX).contains(&n) => (n - ERRNO) as i32,
        Code::Unknown => libc::ENOSYS,
        Code::TooLate => libc::ETIMEDOUT,
        _ => libc::EIO,
    })
}
