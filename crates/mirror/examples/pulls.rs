//! What a pull costs: N small files, a first copy, and then ten changed files, after the index was merged and with nothing of it
//! in memory. `cargo run --release -p darner-mirror --example pulls -- DIR N…`

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use darner_fs::{Caller, Fs, Node, ROOT};
use darner_mirror::{Puller, Source};
use darner_store::volume::DirVolume;
use darner_store::{CreateOptions, OpenOptions, Progress, Store};
use darner_syslink::Refuse;
use darner_syslink::sim::{Pair, Side};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

const PER_DIR: u64 = 1000;

fn now_ns() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

fn open(path: &Path, hash_key: Option<[u8; 16]>) -> Outcome<Arc<Fs>> {
    let new = !path.exists();
    if new {
        std::fs::create_dir_all(path)?;
    }
    let volume = Arc::new(DirVolume::open(path, true));
    if new {
        Store::create(&*volume, &CreateOptions { now_ns: now_ns(), hash_key, ..CreateOptions::default() })?;
    }
    let store = Arc::new(Store::open(volume, &OpenOptions::default())?);
    Ok(Arc::new(if new { Fs::create(store, 0, 0, 0o755, now_ns())? } else { Fs::open(store)? }))
}

/// Bytes that this process has read by system calls.
fn bytes_read() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    io.lines().find_map(|l| l.strip_prefix("rchar: ")?.parse().ok()).unwrap_or(0)
}

fn settle(fs: &Fs) -> Outcome {
    while fs.store().step()? == Progress::Worked {}
    Ok(())
}

fn pull(source: &Arc<Fs>, mirror: &Arc<Fs>) -> Outcome<u64> {
    let pair = Pair::perfect(Arc::new(Refuse), Arc::new(Source::new(source.clone())));
    Ok(Puller::new(mirror.clone(), pair.caller(Side::A), 1).pull()?.bytes)
}

fn measure(dir: &Path, n: u64) -> Outcome {
    let (a, b) = (dir.join("source"), dir.join("mirror"));
    let fs = open(&a, None)?;
    let caller = Caller::default();
    let data: Vec<u8> = (0..1000u32).map(|i| (i * i % 251) as u8).collect();
    let mut top = Node::Live(ROOT);
    for i in 0..n {
        if i % PER_DIR == 0 {
            top = fs.mkdir(&caller, now_ns(), fs.root(), format!("dir {}", i / PER_DIR).as_bytes(), 0o755)?.node;
            settle(&fs)?;
        }
        let made = fs.mknod(&caller, now_ns(), top, format!("file {i}").as_bytes(), libc_regular(), 0)?;
        fs.write(now_ns(), made.node, Some(0), &data, false)?;
    }
    let mirror = open(&b, Some(fs.store().hash_key()))?;
    mirror.follow(fs.store().uuid(), ROOT.fileset, "main", "", now_ns())?;
    let start = Instant::now();
    let bytes = pull(&fs, &mirror)?;
    let first = start.elapsed();
    println!(
        "{n} files: first copy {:.1} s, {:.1} MiB on the wire, {:.0} files/s",
        first.as_secs_f64(),
        bytes as f64 / 1048576.0,
        n as f64 / first.as_secs_f64()
    );
    mirror.store().close()?;
    // Nothing of the past, so that all is collapsed into one run.
    fs.retain(darner_fs::MAIN, Some(darner_store::Grid::default()), None, now_ns())?;
    fs.store().close()?;
    drop((mirror, fs));
    for round in 0..3u64 {
        let fs = open(&a, None)?;
        let step = (n / 10).max(1);
        for i in 0..10 {
            let path = i * step + round;
            let dir = fs.lookup(fs.root(), format!("dir {}", path / PER_DIR).as_bytes(), now_ns())?;
            let file = fs.lookup(dir.node, format!("file {path}").as_bytes(), now_ns())?;
            fs.write(now_ns(), file.node, Some(0), format!("changed {round}").as_bytes(), false)?;
        }
        // As late as can be: all in one run, and nothing in memory.
        fs.store().clean(now_ns(), &mut |_| ())?;
        fs.store().close()?;
        drop(fs);
        let (again, mirror) = (open(&a, None)?, open(&b, None)?);
        let (before, start) = (bytes_read(), Instant::now());
        let bytes = pull(&again, &mirror)?;
        println!(
            "{n} files, 10 changed: {:.1} ms, {} KiB read (both sides), {} bytes on the wire",
            start.elapsed().as_secs_f64() * 1000.0,
            (bytes_read() - before) >> 10,
            bytes
        );
        mirror.store().close()?;
        again.store().close()?;
    }
    Ok(())
}

/// `S_IFREG | 0644`.
fn libc_regular() -> u32 {
    0o100_644
}

fn main() -> Outcome {
    let mut args = std::env::args().skip(1);
    let dir = std::path::PathBuf::from(args.next().ok_or("DIR N…")?);
    for n in args {
        let n: u64 = n.parse()?;
        let at = dir.join(n.to_string());
        measure(&at, n)?;
        std::fs::remove_dir_all(&at)?;
    }
    Ok(())
}
