//! Workloads on a real source tree: what this machine's Rust packages unpacked to, or else text made to resemble them.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::data::{self, Rng};
use super::shell;
use super::stage::{Sample, Stage, go_on};
use super::system::Room;
use crate::error::{Context, Result};

/// A tar file made once, in the room.
pub struct Tar {
    /// The file.
    pub path: PathBuf,
    /// Files within.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Where they come from.
    pub origin: String,
}

/// Packs up at most `limit` files of this machine's Rust packages.
pub fn make_tar(room: &Room, limit: usize) -> Result<Tar> {
    let staging = room.dir("tree-files")?;
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let source = home.map(|h| h.join("registry/src")).filter(|s| s.is_dir());
    let mut found = Vec::new();
    if let Some(source) = &source {
        collect(source, limit, &mut found).cant(|| format!("read {}", source.display()))?;
    }
    let (base, origin) = match source {
        Some(source) if found.len() >= limit / 2 => {
            let origin = format!("Rust packages from {}", source.display());
            (source, origin)
        }
        _ => {
            found = generate(&staging, limit)?;
            (staging.clone(), "generated text, as ~/.cargo/registry/src holds too little".into())
        }
    };
    let list = room.path().join("tree.list");
    let names: Vec<&[u8]> = found.iter().map(|p| relative(p, &base)).collect();
    fs::write(&list, names.join(&0)).cant(|| "write the list of files".into())?;
    let path = room.path().join("tree.tar");
    let args = [
        "-cf".as_ref(),
        path.as_os_str(),
        "-C".as_ref(),
        base.as_os_str(),
        "--null".as_ref(),
        "-T".as_ref(),
        list.as_os_str(),
    ];
    shell::run("tar", args)?;
    let bytes = found.iter().filter_map(|p| fs::metadata(p).ok()).map(|m| m.len()).sum();
    fs::remove_dir_all(staging).cant(|| "remove what was packed up".into())?;
    Ok(Tar { path, files: found.len() as u64, bytes, origin })
}

fn relative<'a>(path: &'a Path, base: &Path) -> &'a [u8] {
    use std::os::unix::ffi::OsStrExt;
    path.strip_prefix(base).unwrap_or(path).as_os_str().as_bytes()
}

/// Regular files in the order of their names, so that all runs on a machine take the same.
fn collect(dir: &Path, limit: usize, found: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut entries: Vec<_> = fs::read_dir(dir)?.collect::<io::Result<_>>()?;
    entries.sort_by_key(|e| e.file_name());
    for entry in entries {
        if found.len() >= limit {
            break;
        }
        let kind = entry.file_type()?;
        if kind.is_dir() {
            collect(&entry.path(), limit, found)?;
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    Ok(())
}

fn generate(dir: &Path, files: usize) -> Result<Vec<PathBuf>> {
    let mut rng = Rng::new(5);
    let mut made = Vec::new();
    for n in 0..files {
        let folder = dir.join(format!("package{:03}/src/part{}", n / 50, n / 10 % 5));
        fs::create_dir_all(&folder).cant(|| format!("make {}", folder.display()))?;
        // Most are short, few are long.
        let mut content = vec![0; 200 << rng.below(10)];
        data::text(n as u64, &mut content);
        let path = folder.join(format!("file{n:05}.rs"));
        fs::write(&path, content).cant(|| format!("write {}", path.display()))?;
        made.push(path);
    }
    Ok(made)
}

fn root(s: &Stage) -> PathBuf {
    s.dir.join("tree")
}

/// The `tar` program unpacks it; the archive itself is in memory.
pub fn untar(s: &Stage) -> io::Result<Sample> {
    let root = root(s);
    let _ = fs::remove_dir_all(&root);
    fs::create_dir(&root)?;
    io::copy(&mut File::open(&s.kit.tar)?, &mut io::sink())?;
    s.time(s.kit.tar_files, 0, || {
        let args = ["-xf".as_ref(), s.kit.tar.as_os_str(), "-C".as_ref(), root.as_os_str()];
        shell::run("tar", args).map(drop).map_err(io::Error::other)
    })
}

/// As C programs do: without asking for the birth time, as `read_to_end` does (over FUSE another request).
fn read(path: &Path, buf: &mut Vec<u8>) -> io::Result<()> {
    let mut file = File::open(path)?;
    buf.clear();
    loop {
        let filled = buf.len();
        buf.resize(filled + (32 << 10), 0);
        let n = file.read(&mut buf[filled..])?;
        buf.truncate(filled + n);
        if n == 0 {
            return Ok(());
        }
    }
}

/// Reads every file and looks for a word; no `grep` program, so that only the filesystem is measured.
fn search(dir: &Path, buf: &mut Vec<u8>, files: &mut u64, hits: &mut u64) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            search(&entry.path(), buf, files, hits)?;
            continue;
        }
        read(&entry.path(), buf)?;
        *files += 1;
        *hits += buf.split(|b| *b == b'\n').filter(|line| line.starts_with(b"pub fn ")).count() as u64;
        go_on()?;
    }
    Ok(())
}

fn search_all(s: &Stage) -> io::Result<()> {
    let (mut files, mut hits) = (0, 0);
    search(&root(s), &mut Vec::new(), &mut files, &mut hits)?;
    std::hint::black_box(hits);
    if files != s.kit.tar_files {
        return Err(io::Error::other(format!("{files} files instead of {}", s.kit.tar_files)));
    }
    Ok(())
}

/// Walks the tree and reads all.
pub fn grep(s: &Stage) -> io::Result<Sample> {
    s.time(s.kit.tar_files, 0, || search_all(s))
}

/// The same again.
pub fn grep_again(s: &Stage) -> io::Result<Sample> {
    search_all(s)?;
    grep(s)
}

/// Removes the tree.
pub fn remove(s: &Stage) -> io::Result<Sample> {
    s.time(s.kit.tar_files, 0, || fs::remove_dir_all(root(s)))
}
