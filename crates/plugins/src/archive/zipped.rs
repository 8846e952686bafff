//! zip: the central directory is the crate's matter; members are stored, or deflated.

use std::fs::File;
use std::io::{BufReader, Read};

use darner_vfs::Attr;
use zip::{CompressionMethod, ZipArchive};

use super::inflate::Inflated;
use super::tree::{Content, Dir, Tree};

/// What a symbolic link may hold.
const TARGET_MAX: u64 = 4095;

/// Reads what is in it.
pub(super) fn read(file: &File) -> Result<Tree, String> {
    let again = file.try_clone().map_err(|e| e.to_string())?;
    let mut archive = ZipArchive::new(BufReader::new(again)).map_err(|e| e.to_string())?;
    let mut tree = Tree::new();
    for n in 0..archive.len() {
        let member = archive.by_index_raw(n).map_err(|e| format!("entry {n} is damaged: {e}"))?;
        let (size, packed, start, sum) = (member.size(), member.compressed_size(), member.data_start(), member.crc32());
        let content = match member.compression() {
            _ if member.encrypted() => Content::Unreadable("encrypted files in archives can't be read"),
            CompressionMethod::Stored => Content::Stored(start),
            CompressionMethod::DEFLATE => Content::Deflated(start, packed, sum),
            _ => Content::Unreadable("files compressed this way can't be read"),
        };
        let mtime = modified(&member);
        let permissions = member.unix_mode().unwrap_or(if member.is_dir() { 0o755 } else { 0o644 }) & 0o7777;
        let attr =
            |kind: u32| Attr { mode: kind | permissions, size, mtime, atime: mtime, ctime: mtime, ..Attr::default() };
        if member.is_dir() {
            tree.add(member.name_raw(), Attr { size: 0, ..attr(libc::S_IFDIR) }, Content::Dir(Dir::default()));
        } else if member.is_symlink() {
            let target = target(&content, file, size);
            tree.add(
                member.name_raw(),
                attr(libc::S_IFLNK),
                target.map_or(Content::Unreadable("a link"), Content::Link),
            );
        } else {
            tree.add(member.name_raw(), attr(libc::S_IFREG), content);
        }
    }
    Ok(tree)
}

fn target(content: &Content, file: &File, size: u64) -> Option<Vec<u8>> {
    let mut target = vec![0; usize::try_from(size).ok().filter(|_| size <= TARGET_MAX)?];
    match content {
        Content::Stored(at) => std::os::unix::fs::FileExt::read_exact_at(file, &mut target, *at).ok()?,
        Content::Deflated(at, len, sum) => {
            Inflated::raw(file.try_clone().ok()?, *at, *len, *sum).read_exact_at(&mut target, 0).ok()?;
        }
        _ => return None,
    }
    Some(target)
}

/// Nanoseconds since 1970. (Without an exact time there is one in whoever's time zone; it is taken for UTC.)
fn modified<R: Read>(member: &zip::read::ZipFile<'_, R>) -> i64 {
    let exact = member.extra_data_fields().find_map(|f| match f {
        zip::ExtraField::ExtendedTimestamp(t) => t.mod_time(),
        _ => None,
    });
    if let Some(seconds) = exact {
        return i64::from(seconds as i32) * 1_000_000_000;
    }
    member.last_modified().map_or(0, |t| {
        let (year, d) = (t.year().clamp(1980, 2107) - 1900, [t.month(), t.day(), t.hour(), t.minute(), t.second()]);
        crate::iso9660::date(&[year as u8, d[0], d[1], d[2], d[3], d[4], 0])
    })
}
