//! tar: headers, long names and pax attributes are the crate's matter; here is only where the bytes of each file begin.

use std::fs::File;
use std::io::Read;

use darner_vfs::Attr;
use tar::{Entry, EntryType};

use super::tree::{Content, Dir, Tree};

type Result<T> = std::result::Result<T, String>;

/// What is to be read from the first byte to the last.
pub(super) fn read(from: impl Read) -> Result<Tree> {
    let mut archive = tar::Archive::new(from);
    gather(archive.entries().map_err(|e| e.to_string())?)
}

/// What contents can be skipped in.
pub(super) fn read_seekable(file: &File) -> Result<Tree> {
    let mut archive = tar::Archive::new(file);
    gather(archive.entries_with_seek().map_err(|e| e.to_string())?)
}

fn gather<'a, R: Read + 'a>(entries: impl Iterator<Item = std::io::Result<Entry<'a, R>>>) -> Result<Tree> {
    let mut tree = Tree::new();
    for (n, entry) in entries.enumerate() {
        let why = |e: std::io::Error| match n {
            0 => "this is no archive (tar, tar.gz, zip)".to_string(),
            n => format!("the archive is damaged in or behind its entry {n}: {e}"),
        };
        let mut entry = entry.map_err(why)?;
        add(&mut tree, &mut entry).map_err(why)?;
    }
    Ok(tree)
}

fn add<R: Read>(tree: &mut Tree, entry: &mut Entry<'_, R>) -> std::io::Result<()> {
    let path = entry.path_bytes().into_owned();
    let target = entry.link_name_bytes().map(|t| t.into_owned()).unwrap_or_default();
    let mtime = modified(entry)?;
    let header = entry.header();
    let (uid, gid) = (header.uid().unwrap_or(0) as u32, header.gid().unwrap_or(0) as u32);
    let attr = Attr { mode: header.mode()? & 0o7777, uid, gid, mtime, atime: mtime, ctime: mtime, ..Attr::default() };
    let with = |kind: u32, size: u64| Attr { mode: attr.mode | kind, size, ..attr };
    let device = || -> std::io::Result<u32> {
        let (major, minor) = (header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0));
        Ok((minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xfff00) << 12)
    };
    let special = |kind: u32| -> std::io::Result<Attr> { Ok(Attr { rdev: device()?, ..with(kind, 0) }) };
    match header.entry_type() {
        EntryType::Regular | EntryType::Continuous => {
            tree.add(&path, with(libc::S_IFREG, entry.size()), Content::Stored(entry.raw_file_position()));
        }
        EntryType::GNUSparse => {
            let content = Content::Unreadable("sparse files in archives can't be read");
            tree.add(&path, with(libc::S_IFREG, entry.size()), content);
        }
        EntryType::Directory => tree.add(&path, with(libc::S_IFDIR, 0), Content::Dir(Dir::default())),
        EntryType::Symlink => tree.add(&path, with(libc::S_IFLNK, target.len() as u64), Content::Link(target)),
        EntryType::Link => tree.link(&path, &target),
        EntryType::Fifo => tree.add(&path, with(libc::S_IFIFO, 0), Content::Nothing),
        EntryType::Char => tree.add(&path, special(libc::S_IFCHR)?, Content::Nothing),
        EntryType::Block => tree.add(&path, special(libc::S_IFBLK)?, Content::Nothing),
        _ => {}
    }
    Ok(())
}

/// Nanoseconds since 1970, from a pax attribute if there is one.
fn modified<R: Read>(entry: &mut Entry<'_, R>) -> std::io::Result<i64> {
    let pax = entry.pax_extensions()?.into_iter().flatten().flatten().find(|e| e.key_bytes() == b"mtime");
    let exact = pax.and_then(|e| {
        let (seconds, rest) = e.value().ok()?.split_once('.').unwrap_or((e.value().ok()?, ""));
        let nanos: i64 = format!("{rest:0<9}").get(..9)?.parse().ok()?;
        seconds.parse::<i64>().ok()?.checked_mul(1_000_000_000)?.checked_add(nanos)
    });
    let plain = || entry.header().mtime().map(|s| (s as i64).saturating_mul(1_000_000_000));
    exact.map_or_else(plain, Ok)
}
