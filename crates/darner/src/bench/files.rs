//! Workloads on many small files, 100 to a directory, each 4 KiB of text.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::data::{self, Rng};
use super::stage::{Sample, Stage, go_on};

const PER_DIR: u64 = 100;

fn root(s: &Stage) -> PathBuf {
    s.dir.join("small")
}

fn path(root: &Path, n: u64) -> PathBuf {
    root.join(format!("d{:04}/f{n:06}", n / PER_DIR))
}

/// Creates, writes and closes each; the directories exist.
pub fn create(s: &Stage) -> io::Result<Sample> {
    let root = root(s);
    let _ = fs::remove_dir_all(&root);
    for d in 0..s.scale.small_files.div_ceil(PER_DIR) {
        fs::create_dir_all(root.join(format!("d{d:04}")))?;
    }
    let mut content = [0; 4096];
    data::text(s.round, &mut content);
    s.time(s.scale.small_files, 0, || {
        for n in 0..s.scale.small_files {
            content[..8].copy_from_slice(&n.to_le_bytes());
            fs::write(path(&root, n), content)?;
            go_on()?;
        }
        Ok(())
    })
}

/// All paths, shuffled.
fn paths(s: &Stage) -> io::Result<Vec<CString>> {
    let (root, mut rng) = (root(s), Rng::new(s.round));
    let mut paths = (0..s.scale.small_files)
        .map(|n| Ok(CString::new(path(&root, n).into_os_string().into_encoded_bytes())?))
        .collect::<io::Result<Vec<_>>>()?;
    for i in (1..paths.len()).rev() {
        paths.swap(i, rng.below(i as u64 + 1) as usize);
    }
    Ok(paths)
}

/// stat(2) and not `fs::metadata`, which asks for the birth time too: over FUSE a second request for each file.
fn stat_all(paths: &[CString]) -> io::Result<()> {
    for path in paths {
        let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
        // SAFETY: a C string and room for the answer.
        if unsafe { libc::stat(path.as_ptr(), stat.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        go_on()?;
    }
    Ok(())
}

/// stat(2) by path, in random order.
pub fn stat(s: &Stage) -> io::Result<Sample> {
    let paths = paths(s)?;
    s.time(s.scale.small_files, 0, || stat_all(&paths))
}

/// The same again.
pub fn stat_again(s: &Stage) -> io::Result<Sample> {
    stat_all(&paths(s)?)?;
    stat(s)
}

fn list_all(s: &Stage) -> io::Result<()> {
    let mut found = 0;
    for dir in fs::read_dir(root(s))? {
        for entry in fs::read_dir(dir?.path())? {
            std::hint::black_box(entry?.file_name());
            found += 1;
        }
        go_on()?;
    }
    if found != s.scale.small_files {
        return Err(io::Error::other(format!("{found} names instead of {}", s.scale.small_files)));
    }
    Ok(())
}

/// Names and inode numbers of all directories.
pub fn list(s: &Stage) -> io::Result<Sample> {
    s.time(s.scale.small_files, 0, || list_all(s))
}

/// The same again.
pub fn list_again(s: &Stage) -> io::Result<Sample> {
    list_all(s)?;
    list(s)
}

/// Renames each to another name in another directory, and back.
pub fn rename(s: &Stage) -> io::Result<Sample> {
    let root = root(s);
    let dirs = s.scale.small_files.div_ceil(PER_DIR);
    s.time(2 * s.scale.small_files, 0, || {
        for n in 0..s.scale.small_files {
            let there = root.join(format!("d{:04}/moved{n:06}", (n + 37) % dirs));
            fs::rename(path(&root, n), there)?;
            go_on()?;
        }
        for n in 0..s.scale.small_files {
            let there = root.join(format!("d{:04}/moved{n:06}", (n + 37) % dirs));
            fs::rename(there, path(&root, n))?;
            go_on()?;
        }
        Ok(())
    })
}

/// unlink(2) by path, in order of creation.
pub fn unlink(s: &Stage) -> io::Result<Sample> {
    let root = root(s);
    s.time(s.scale.small_files, 0, || {
        for n in 0..s.scale.small_files {
            fs::remove_file(path(&root, n))?;
            go_on()?;
        }
        Ok(())
    })
}
