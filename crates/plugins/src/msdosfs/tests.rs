use std::cell::Cell;
use std::io::{self, Error};
use std::os::unix::fs::FileExt;

use super::*;

thread_local! {
    /// How many writes this thread's image takes yet.
    static WRITES: Cell<usize> = const { Cell::new(usize::MAX) };
}

pub(super) fn may_write() -> io::Result<()> {
    match WRITES.get() {
        0 => Err(Error::from_raw_os_error(libc::EIO)),
        n => {
            WRITES.set(n - 1);
            Ok(())
        }
    }
}

fn image(len: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(len).unwrap();
    fatfs::format_volume(&file, fatfs::FormatVolumeOptions::new()).unwrap();
    file
}

fn make(fs: &Msdosfs, dir: u64, name: &str, data: &[u8]) -> u64 {
    let node = fs.create(dir, name.as_bytes(), &New { mode: libc::S_IFREG, ..New::default() }).unwrap().node;
    fs.write(node, 0, data).unwrap();
    node
}

fn contents(fs: &Msdosfs, dir: u64, name: &str) -> Option<Vec<u8>> {
    let attr = fs.lookup(dir, name.as_bytes()).ok()?;
    let mut buffer = vec![0; attr.size as usize];
    assert_eq!(fs.read(attr.node, 0, &mut buffer), Ok(buffer.len()));
    Some(buffer)
}

/// Fails the n-th write of a rename, for all n, which is what a kill before it leaves; `over`: something has the new name.
fn killed_at_every_write(over: bool) {
    let (old, new) = (vec![b'o'; 5000], vec![b'n'; 7000]);
    for n in 0.. {
        let file = image(1 << 20);
        let fs = Msdosfs::open(file.try_clone().unwrap()).unwrap();
        let dir = fs.create(ROOT, b"a directory", &New { mode: libc::S_IFDIR, ..New::default() }).unwrap().node;
        make(&fs, ROOT, "the name before", &new);
        if over {
            make(&fs, dir, "the name after", &old);
        }
        WRITES.set(n);
        let outcome = fs.rename(ROOT, b"the name before", dir, b"the name after", false);
        std::mem::forget(fs);
        WRITES.set(usize::MAX);
        let fs = Msdosfs::open(file).unwrap();
        let dir = fs.lookup(ROOT, b"a directory").unwrap().node;
        let (before, after) = (contents(&fs, ROOT, "the name before"), contents(&fs, dir, "the name after"));
        assert!(before.as_ref() == Some(&new) || after.as_ref() == Some(&new), "write {n}: what was renamed is there");
        if over {
            assert!(
                after.as_ref() == Some(&old) || after.as_ref() == Some(&new),
                "write {n}: the name has one of both"
            );
        }
        if outcome.is_ok() {
            assert!(n > 3 && before.is_none() && after == Some(new));
            return;
        }
    }
}

#[test]
fn a_rename_that_is_killed_at_any_write_loses_neither() {
    killed_at_every_write(false);
}

#[test]
fn a_rename_over_a_file_that_is_killed_at_any_write_leaves_the_name_with_one_of_both() {
    killed_at_every_write(true);
}

#[test]
fn what_is_removed_and_killed_at_any_write_leaves_no_name_for_clusters_that_are_free() {
    for n in 0.. {
        let file = image(1 << 20);
        let fs = Msdosfs::open(file.try_clone().unwrap()).unwrap();
        make(&fs, ROOT, "a file", &vec![b'f'; 9000]);
        fs.create(ROOT, b"a directory", &New { mode: libc::S_IFDIR, ..New::default() }).unwrap();
        WRITES.set(n);
        let outcome = fs.unlink(ROOT, b"a file").and_then(|()| fs.rmdir(ROOT, b"a directory"));
        std::mem::forget(fs);
        WRITES.set(usize::MAX);
        let fs = Msdosfs::open(file).unwrap();
        // Whatever is free is used now.
        let other = vec![b'x'; 600_000];
        make(&fs, ROOT, "another", &other);
        if let Some(found) = contents(&fs, ROOT, "a file") {
            assert!(found.is_empty() || found == vec![b'f'; 9000], "write {n}");
        }
        let left = fs.lookup(ROOT, b"a directory");
        if let Some(attr) = left.ok().filter(|a| a.mode & libc::S_IFMT == libc::S_IFDIR) {
            let mut listing = Listing::new(10);
            fs.readdir(attr.node, 0, &mut listing).unwrap();
            assert_eq!(listing.entries(), [], "write {n}");
        }
        assert_eq!(contents(&fs, ROOT, "another"), Some(other));
        if outcome.is_ok() {
            assert_eq!(fs.lookup(ROOT, b"a file"), Err(Errno(libc::ENOENT)));
            assert_eq!(fs.lookup(ROOT, b"a directory"), Err(Errno(libc::ENOENT)));
            return;
        }
    }
}

#[test]
fn renamed_files_keep_their_numbers_and_new_ones_in_their_place_get_others() {
    let fs = Msdosfs::open(image(1 << 20)).unwrap();
    let a = make(&fs, ROOT, "a", b"first");
    fs.rename(ROOT, b"a", ROOT, b"b", false).unwrap();
    let again = make(&fs, ROOT, "a", b"second");
    assert_ne!(a, again);
    assert_eq!((fs.lookup(ROOT, b"b").unwrap().node, contents(&fs, ROOT, "b")), (a, Some(b"first".to_vec())));
    fs.rename(ROOT, b"a", ROOT, b"b", false).unwrap();
    assert_eq!((fs.lookup(ROOT, b"b").unwrap().node, contents(&fs, ROOT, "b")), (again, Some(b"second".to_vec())));
    assert_eq!((fs.getattr(a), fs.lookup(ROOT, b"a")), (Err(Errno(libc::ESTALE)), Err(Errno(libc::ENOENT))));
    assert_eq!(fs.rename(ROOT, b"b", ROOT, b"b", false), Ok(()));
}

#[test]
fn directories_replace_empty_ones_only_and_know_where_they_are() {
    let fs = Msdosfs::open(image(1 << 20)).unwrap();
    let dir =
        |at, name: &str| fs.create(at, name.as_bytes(), &New { mode: libc::S_IFDIR, ..New::default() }).unwrap().node;
    let (above, moved) = (dir(ROOT, "above"), dir(ROOT, "moved"));
    make(&fs, moved, "file", b"in it");
    let full = dir(above, "there");
    make(&fs, full, "x", b"");
    assert_eq!(fs.rename(ROOT, b"moved", above, b"there", false), Err(Errno(libc::ENOTEMPTY)));
    fs.unlink(full, b"x").unwrap();
    assert_eq!(fs.rename(ROOT, b"moved", above, b"there", true), Err(Errno(libc::EEXIST)));
    fs.rename(ROOT, b"moved", above, b"there", false).unwrap();
    assert_eq!(contents(&fs, fs.lookup(above, b"there").unwrap().node, "file"), Some(b"in it".to_vec()));
    assert_eq!(fs.lookup(ROOT, b"moved"), Err(Errno(libc::ENOENT)));
}

#[test]
fn directories_that_lead_to_themselves_and_chains_without_an_end_are_errors() {
    let file = image(1 << 20);
    let fs = Msdosfs::open(file.try_clone().unwrap()).unwrap();
    let dir = fs.create(ROOT, b"loop", &New { mode: libc::S_IFDIR, ..New::default() }).unwrap().node;
    let inner = fs.create(dir, b"inner", &New { mode: libc::S_IFDIR, ..New::default() }).unwrap().node;
    make(&fs, inner, "file", &vec![b'x'; 50_000]);
    // Its first cluster is full.
    for n in 0..40 {
        make(&fs, dir, &n.to_string(), b"");
    }
    fs.sync().unwrap();
    drop(fs);
    let mut bytes = vec![0; 1 << 20];
    file.read_exact_at(&mut bytes, 0).unwrap();
    // The inner directory is the outer one; and the first FAT's chains go round in a circle.
    let entry = |name: &[u8]| bytes.windows(11).position(|w| w == name).unwrap();
    let (outer, inner) = (entry(b"LOOP       "), entry(b"INNER      "));
    let cluster = bytes[outer + 26..outer + 28].to_vec();
    file.write_all_at(&cluster, inner as u64 + 26).unwrap();
    let fs = Msdosfs::open(file.try_clone().unwrap()).unwrap();
    let outer = fs.lookup(ROOT, b"loop").unwrap().node;
    let inner = fs.lookup(outer, b"inner").unwrap().node;
    assert_eq!(fs.lookup(inner, b"inner"), Err(Errno(libc::EIO)));
    assert_eq!(fs.lookup(outer, b"7").map(|a| a.mode & libc::S_IFMT), Ok(libc::S_IFREG));
    assert_eq!(fs.lookup(inner, b"7"), Err(Errno(libc::EIO)));
    drop(fs);
    // Twelve bits each: cluster n follows on cluster n, for all of them.
    let mut fat = Vec::new();
    for n in (0..800u32).step_by(2) {
        fat.extend_from_slice(&(n | (n + 1) << 12).to_le_bytes()[..3]);
    }
    file.write_all_at(&fat[3..], 512 + 3).unwrap();
    let fs = Msdosfs::open(file).unwrap();
    let outer = fs.lookup(ROOT, b"loop").unwrap().node;
    assert_eq!(fs.lookup(outer, b"none"), Err(Errno(libc::EIO)));
    assert!(fs.create(outer, &[b'n'; 200], &New { mode: libc::S_IFREG, ..New::default() }).is_err());
}
