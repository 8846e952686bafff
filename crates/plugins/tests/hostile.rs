//! Images and archives whose bytes are damaged: errors, wrong names, missing files; never a panic, a tree without an end, or more
//! bytes than there can be.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use darner_plugins::{Archive, Iso9660, Msdosfs};
use darner_vfs::{Attr, Listing, New, ROOT, Vfs, Wanted};

fn has(program: &str) -> bool {
    let found =
        Command::new("sh").args(["-c", &format!("command -v {program}")]).output().is_ok_and(|o| o.status.success());
    if !found {
        eprintln!("SKIPPED: damaged images of {program}, which is not there");
    }
    found
}

fn sh(dir: &Path, script: &str) {
    let out = Command::new("bash").args(["-euc", script]).current_dir(dir).output().unwrap();
    assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Nodes that are looked at: a damaged directory may lead to itself.
const NODES_MAX: usize = 300;

/// Looks at everything, as far as it goes; how many files could be read to their end.
fn walk(fs: &dyn Vfs) -> usize {
    let (mut dirs, mut seen, mut whole) = (vec![ROOT], 0, 0);
    let mut buffer = vec![0; 64 << 10];
    while let Some(dir) = dirs.pop() {
        let mut after = 0;
        for _ in 0..20 {
            let mut listing = Listing::new(200);
            let entries = match fs.readdir(dir, after, &mut listing) {
                Ok(()) => listing.entries(),
                Err(_) => break,
            };
            let Some(last) = entries.last() else { break };
            assert!(last.1 > after, "cookies grow");
            after = last.1;
            for (name, _, attr) in entries {
                seen += 1;
                if seen > NODES_MAX {
                    return whole;
                }
                let _ = (fs.lookup(dir, &name), fs.getattr(attr.node), fs.readlink(attr.node));
                match attr.mode & libc::S_IFMT {
                    libc::S_IFDIR => dirs.push(attr.node),
                    _ => whole += usize::from(read(fs, &attr, &mut buffer)),
                }
            }
        }
    }
    whole
}

fn read(fs: &dyn Vfs, attr: &Attr, buffer: &mut [u8]) -> bool {
    let tail = attr.size.saturating_sub(1000);
    let from_the_end = fs.read(attr.node, tail, buffer);
    for n in 0..8 {
        match fs.read(attr.node, n * buffer.len() as u64, buffer) {
            Ok(0) => return from_the_end.is_ok(),
            Ok(len) => assert!(len <= buffer.len()),
            Err(_) => return false,
        }
    }
    from_the_end.is_ok()
}

/// Changes what can be changed, as far as that goes.
fn alter(fs: &dyn Vfs, random: &mut fastrand::Rng) {
    let mut listing = Listing::new(30);
    let _ = fs.readdir(ROOT, 0, &mut listing);
    let entries = listing.entries();
    let dirs: Vec<u64> =
        entries.iter().filter(|e| e.2.mode & libc::S_IFMT == libc::S_IFDIR).map(|e| e.2.node).collect();
    for n in 0..12 {
        let dir = if dirs.is_empty() || random.bool() { ROOT } else { dirs[random.usize(..dirs.len())] };
        let new = New { mode: if n % 3 == 0 { libc::S_IFDIR } else { libc::S_IFREG }, ..New::default() };
        let name = format!("something new, {n}");
        if let Ok(made) = fs.create(dir, name.as_bytes(), &new) {
            let _ = fs.write(made.node, random.u64(..20_000), &vec![1; random.usize(..10_000)]);
        }
        let Some((old, _, attr)) = entries.get(random.usize(..entries.len().max(1))) else { continue };
        let size = Some(random.u64(..30_000));
        let _ = match random.u8(..6) {
            0 => fs.unlink(ROOT, old),
            1 => fs.rmdir(ROOT, old),
            2 => fs.rename(ROOT, old, dir, name.as_bytes(), false),
            3 => fs.setattr(attr.node, &Wanted { size, mtime: Some(1 << 60), ..Wanted::default() }).map(drop),
            4 => fs.statfs().and_then(|_| fs.sync()),
            _ => fs.write(attr.node, random.u64(..attr.size.clamp(1, 100_000)), &[2; 3000]),
        };
    }
}

/// Damages a file in many ways; `open` makes a filesystem of each.
fn damage(original: &Path, open: impl Fn(File) -> Option<Box<dyn Vfs>>, edges: usize, seeds: u64) {
    let bytes = std::fs::read(original).unwrap();
    let intact = walk(&*open(File::open(original).unwrap()).expect("it is intact"));
    assert!(intact >= 8, "{intact} files are read");
    let seeds = if std::env::var_os("DARNER_LONG").is_some() { seeds * 60 } else { seeds };
    let mut refused = 0;
    for seed in 0..seeds {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut bad = bytes.clone();
        for _ in 0..random.usize(1..8) {
            // Mostly where the structures are.
            let (from, to) = match random.u8(..4) {
                0 => (0, bad.len()),
                1 => (bad.len().saturating_sub(edges), bad.len()),
                _ => (0, edges.min(bad.len())),
            };
            let at = random.usize(from..to);
            match random.u8(..4) {
                0 => bad[at] = random.u8(..),
                1 => bad[at] ^= 1 << random.u8(..8),
                2 => bad[at] = [0, 1, 0x7f, 0x80, 0xff][random.usize(..5)],
                _ => {
                    let end = (at + 4).min(bad.len());
                    bad[at..end].fill(random.u8(..));
                }
            }
        }
        if random.u8(..10) == 0 {
            bad.truncate(random.usize(..bad.len()));
        }
        let file = tempfile::tempfile().unwrap();
        file.set_len(bad.len() as u64).unwrap();
        for (n, block) in bad.chunks(4096).enumerate().filter(|(_, block)| block.iter().any(|b| *b != 0)) {
            file.write_all_at(block, n as u64 * 4096).unwrap();
        }
        let begun = Instant::now();
        match open(file) {
            Some(fs) => {
                walk(&*fs);
                alter(&*fs, &mut random);
                walk(&*fs);
            }
            None => refused += 1,
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "seed {seed}");
    }
    assert!(refused < seeds, "some can be looked at nevertheless");
}

fn tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    sh(
        dir.path(),
        "mkdir -p in/a/b/c; for n in $(seq 12); do seq $n$n > in/a/file-$n; done; seq 9000 > in/a/b/long; ln -s ../a in/a/b/link
         head -c 3000 /dev/urandom > in/a/b/c/random; ln -s $(printf 'x/%.0s' $(seq 150)) in/longlink; ln in/a/file-1 in/hard",
    );
    dir
}

#[test]
fn damaged_cd_images_are_errors_and_never_a_panic() {
    if !has("xorriso") {
        return;
    }
    let dir = tree();
    for options in ["-R", "-J --norock"] {
        sh(dir.path(), &format!("rm -f x.iso; xorriso -as mkisofs -quiet {options} -no-pad -o x.iso in 2>/dev/null"));
        let open = |file| Iso9660::open(file).ok().map(|fs| Box::new(fs) as Box<dyn Vfs>);
        // Descriptors begin at 32 KiB; directories follow.
        damage(&dir.path().join("x.iso"), open, 80 << 10, 300);
    }
}

#[test]
fn damaged_archives_are_errors_and_never_a_panic() {
    let dir = tree();
    let open = |file| Archive::open(file).ok().map(|fs| Box::new(fs) as Box<dyn Vfs>);
    let mut kinds = vec![("x.tar", "tar --format=pax -cf x.tar -C in ."), ("x.tar.gz", "tar -czf x.tar.gz -C in .")];
    if has("zip") {
        kinds.push(("x.zip", "cd in; zip -qry ../x.zip ."));
    }
    for (name, command) in kinds {
        sh(dir.path(), command);
        damage(&dir.path().join(name), open, 4 << 10, 300);
    }
}

#[test]
fn damaged_fat_images_are_errors_and_never_a_panic_nor_a_walk_without_an_end() {
    if !has("mkfs.fat") || !has("mcopy") {
        return;
    }
    let dir = tree();
    for (bits, kib, edges, seeds) in [(12, 1024, 20 << 10, 80), (16, 4096, 60 << 10, 60), (32, 34_000, 600 << 10, 15)] {
        sh(
            dir.path(),
            &format!(
                "rm -f x.img in/a/b/link in/longlink; mkfs.fat -F {bits} -s 1 -C x.img {kib} >/dev/null
                 MTOOLS_SKIP_CHECK=1 mcopy -s -i x.img in/* ::"
            ),
        );
        let open = |file| Msdosfs::open(file).ok().map(|fs| Box::new(fs) as Box<dyn Vfs>);
        damage(&dir.path().join("x.img"), open, edges, seeds);
    }
}
