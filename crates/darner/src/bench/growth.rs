//! How speed changes as a store grows: with the number of files, and with the number of versions of one file.
//!
//! Each step makes the store larger, then kills the daemon while it has unwritten work, times the next mount, and measures
//! on that new mount, with the kernel's caches emptied.

use std::ffi::CString;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::darner::Darner;
use super::data::{self, Rng};
use super::stage::{self, go_on, note};
use super::system::{self, Room, System};
use crate::cli::Growth;
use crate::error::{Context, Failure, Result};

const PAGE: u64 = 4096;
const FILE_BYTES: u64 = 16 << 20;
/// Of what a peer is on.
const PEER_BYTES: u64 = 1 << 30;
const PER_DIR: u64 = 1000;
/// Coprime to all steps: multiples of it visit every file once.
const STRIDE: u64 = 618_033;

const SETTLES: Duration = Duration::from_secs(10);
/// Besides, against a file beside it that was never overwritten.
const LIVE_BESIDE: [&str; 3] = ["live: read, × never overwritten", "live: 4 KiB, × the same", "live: stat, × the same"];
const SETTLED_BESIDE: [&str; 3] =
    ["later: read, × never overwritten", "later: 4 KiB, × the same", "later: stat, × the same"];
const ROUNDS: u64 = 5;
const LIVE: [&str; 4] = ["live: first read, MB/s", "live: read, MB/s", "live: 4 KiB read/s", "live: stat/s"];
const SETTLED: [&str; 4] = ["later: first read, MB/s", "later: read, MB/s", "later: 4 KiB read/s", "later: stat/s"];
const OLDEST: [&str; 4] = ["oldest: first read, MB/s", "oldest: read, MB/s", "oldest: 4 KiB read/s", "oldest: stat/s"];
const MIDWAY: [&str; 4] = ["midway: first read, MB/s", "midway: read, MB/s", "midway: 4 KiB read/s", "midway: stat/s"];

/// How far.
pub struct Options {
    /// Of what.
    pub of: Growth,
    /// A thousandth of the way, to see that it works.
    pub quick: bool,
    /// 10^7 files, 10^6 versions.
    pub long: bool,
    /// Mount options for darner, joined by `+`.
    pub mount_options: String,
}

/// One measured quantity at each step.
struct Row {
    what: String,
    values: Vec<f64>,
}

/// One table.
struct Table {
    what: &'static str,
    steps: Vec<u64>,
    rows: Vec<Row>,
}

/// Runs the tables, each in a store of its own; returns text and JSON.
pub fn growth(dir: &Path, o: &Options) -> Result<(String, Value)> {
    let room = Room::new(dir)?;
    let cold = stage::drop_caches();
    let mut tables = Vec::new();
    if o.of != Growth::Versions {
        tables.push(files(&room, o)?);
    }
    if o.of != Growth::Files {
        tables.push(versions(&room, o)?);
        tables.push(scattered(&room, o)?);
    }
    let mut text = String::new();
    if !cold {
        text += "NOT COLD: only root can empty the kernel's caches; what is read may come from there\n";
    }
    for t in &tables {
        text += &t.text();
    }
    Ok((text, json!({ "caches_dropped": cold, "tables": tables.iter().map(Table::json).collect::<Vec<_>>() })))
}

fn files(room: &Room, o: &Options) -> Result<Table> {
    let steps: &[u64] = match o {
        Options { quick: true, .. } => &[1_000, 4_000],
        Options { long: true, .. } => &[10_000, 100_000, 1_000_000, 10_000_000],
        _ => &[10_000, 100_000, 1_000_000],
    };
    let mut darner = Darner::set_up("growth-files", None, &o.mount_options, room)?;
    let mut table = Table::new("files of 200 bytes, 1000 to a directory", steps);
    let mut made = 0;
    for &step in steps {
        note(&format!("growing to {step} files"));
        // What is timed is the last stretch, with the step's size behind it.
        let stretch = (step / 2).min(5_000);
        make_files(darner.dir(), made, step - stretch)?;
        let create = timed(stretch, || make_files(darner.dir(), step - stretch, step))?;
        made = step;
        table.enter("create/s", create);
        crash_and_mount(&mut darner, &mut table)?;
        let dir = darner.dir().to_path_buf();
        // Three sets of files that have none in common, each from all over the tree.
        let n = (step / 3).min(5_000);
        let file = |i: u64| file_path(&dir, i * STRIDE % step);
        for (what, from) in [("lookup/s, first after mount", 0), ("lookup/s, further ones", n)] {
            table.enter(what, timed_each(n, |i| stat(&file(from + i)))?);
        }
        stage::drop_caches();
        table.enter("open+read/s, 200 bytes", timed_each(n, |i| fs::read(file(2 * n + i)).map(drop))?);
        enter_status(&darner, &mut table)?;
    }
    Ok(table)
}

fn file_path(root: &Path, n: u64) -> PathBuf {
    root.join(format!("d{:05}/f{n:08}", n / PER_DIR))
}

fn make_files(root: &Path, from: u64, to: u64) -> io::Result<()> {
    let mut content = [0; 200];
    data::text(from, &mut content);
    for n in from..to {
        let path = file_path(root, n);
        if n % PER_DIR == 0 {
            fs::create_dir(path.parent().expect("it has one"))?;
        }
        content[..8].copy_from_slice(&n.to_le_bytes());
        fs::write(path, content)?;
        go_on()?;
    }
    Ok(())
}

fn versions(room: &Room, o: &Options) -> Result<Table> {
    let steps: &[u64] = match o {
        Options { quick: true, .. } => &[1, 1_000],
        Options { long: true, .. } => &[1, 1_000, 10_000, 100_000, 1_000_000],
        _ => &[1, 1_000, 10_000, 100_000],
    };
    let mut darner = Darner::set_up("growth-versions", None, &o.mount_options, room)?;
    let mut table = Table::new("overwrites of 4 KiB in a file of 16 MiB", steps);
    let path = darner.dir().join("file");
    let beside = make_pair(&path)?;
    let oldest = tid(&darner)?;
    let mut made = 0;
    for &step in steps {
        note(&format!("growing to {step} overwrites"));
        let half = (made + step) / 2;
        overwrite(&path, made, half, |_| Ok(()))?;
        let middle = tid(&darner)?;
        table.enter("write/s", timed(step - half, || overwrite(&path, half, step, |_| Ok(())))?);
        made = step;
        crash_and_mount(&mut darner, &mut table)?;
        let then = |tid: &str| path.with_file_name(format!("file@@{tid}"));
        measure_reads(&path, Some((&beside, LIVE_BESIDE)), &mut table, LIVE)?;
        for (path, names) in [(then(&oldest), OLDEST), (then(&middle), MIDWAY)] {
            measure_reads(&path, None, &mut table, names)?;
        }
        // What was read in pieces is gathered, once it is left alone for a while (docs/decisions/16).
        thread::sleep(SETTLES);
        measure_reads(&path, Some((&beside, SETTLED_BESIDE)), &mut table, SETTLED)?;
        enter_status(&darner, &mut table)?;
    }
    Ok(table)
}

/// How much order counts, for us and others: a file right after it was overwritten here and there, each time with an fsync.
fn scattered(room: &Room, o: &Options) -> Result<Table> {
    let steps: &[u64] = if o.quick { &[1_000] } else { &[1_000, 10_000] };
    let mut table = Table::new("overwrites of 4 KiB in a file of 16 MiB, an fsync each; read right after", steps);
    let ours = format!("darner+{}", o.mount_options);
    for (name, how) in [("darner", &*ours), ("btrfs", "btrfs"), ("zfs-fuse", "zfs-fuse")] {
        note(&format!("scattering a file of {name}"));
        let system = match system::set_up(how, room, PEER_BYTES) {
            Ok(system) => system,
            Err(e) => {
                note(&format!("{name} can't be had: {e}"));
                continue;
            }
        };
        let path = system.dir().join("file");
        let beside = make_pair(&path)?;
        let mut made = 0;
        for &step in steps {
            let each = |file: &File| file.sync_data();
            let rate = timed(step - made, || overwrite(&path, made, step, each))?;
            made = step;
            // SAFETY: a plain system call.
            unsafe { libc::sync() };
            let reads = in_turns(&path, Some(&beside))?;
            table.enter(&format!("{name}: overwritten/s"), rate);
            table.enter(&format!("{name}: read, MB/s"), reads.best[0]);
            table.enter(&format!("{name}: read, × never overwritten"), reads.ratios[0]);
            table.enter(&format!("{name}: 4 KiB read/s"), reads.best[1]);
            table.enter(&format!("{name}: 4 KiB, × the same"), reads.ratios[1]);
        }
    }
    Ok(table)
}

/// A file, and another one beside it, of the same kind of blocks as what will overwrite them.
fn make_pair(path: &Path) -> Result<PathBuf> {
    let mut bytes = vec![0; FILE_BYTES as usize];
    (1..).zip(bytes.chunks_mut(PAGE as usize)).for_each(|(n, page)| data::mixed(n, page));
    let beside = path.with_file_name("beside");
    for path in [path, &beside] {
        fs::write(path, &bytes).cant(|| format!("write {}", path.display()))?;
        File::open(path)?.sync_all()?;
    }
    Ok(beside)
}

fn overwrite(path: &Path, from: u64, to: u64, each: impl Fn(&File) -> io::Result<()>) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    let (mut rng, mut block) = (Rng::new(from), vec![0; PAGE as usize]);
    data::mixed(from, &mut block);
    for n in from..to {
        block[..8].copy_from_slice(&n.to_le_bytes());
        file.write_all_at(&block, rng.below(FILE_BYTES / PAGE) * PAGE)?;
        each(&file)?;
        go_on()?;
    }
    Ok(())
}

fn measure_reads(
    path: &Path,
    beside: Option<(&Path, [&'static str; 3])>,
    table: &mut Table,
    names: [&'static str; 4],
) -> Result<()> {
    let reads = in_turns(path, beside.map(|(path, _)| path))?;
    table.enter(names[0], reads.first);
    names[1..].iter().zip(reads.best).for_each(|(name, value)| table.enter(name, value));
    let names = beside.into_iter().flat_map(|(_, names)| names);
    names.zip(reads.ratios).for_each(|(name, value)| table.enter(name, value));
    Ok(())
}

/// Rates of reading the whole, parts, and attributes.
struct Reads {
    /// Of the whole, the first time.
    first: f64,
    best: [f64; 3],
    /// Medians of what it is to the other file; empty without one.
    ratios: Vec<f64>,
}

/// Reads the whole, parts, and attributes. All but the first read are the best of some rounds: what is sought is the store's
/// share, not that of the machine's other work. Beside another file, with which it takes turns: the median of the ratios.
fn in_turns(path: &Path, beside: Option<&Path>) -> Result<Reads> {
    let mut first = 0.0;
    let (mut best, mut ratios) = ([0.0f64; 3], [const { Vec::new() }; 3]);
    for round in 0..ROUNDS {
        let other = beside.map(|path| rates(path, round)).transpose()?;
        let rates = rates(path, round)?;
        if round == 0 {
            first = rates[0];
        }
        for i in 0..3 {
            best[i] = best[i].max(rates[i]);
            ratios[i].extend(other.map(|other| rates[i] / other[i]));
        }
    }
    let median = |mut all: Vec<f64>| {
        all.sort_unstable_by(f64::total_cmp);
        all.get(all.len() / 2).copied()
    };
    Ok(Reads { first, best, ratios: ratios.into_iter().filter_map(median).collect() })
}

/// Of a file whose pages the kernel does not have: MB/s, 4 KiB reads/s, stat/s.
fn rates(path: &Path, seed: u64) -> Result<[f64; 3]> {
    let whole = read_whole(path)?;
    stage::drop_caches();
    let file = File::open(path)?;
    // SAFETY: a plain system call on an open descriptor.
    unsafe { libc::posix_fadvise(std::os::fd::AsRawFd::as_raw_fd(&file), 0, 0, libc::POSIX_FADV_RANDOM) };
    let (mut rng, mut page) = (Rng::new(seed), vec![0; PAGE as usize]);
    let read = |_| file.read_exact_at(&mut page, rng.below(FILE_BYTES / PAGE) * PAGE);
    Ok([whole, timed_each(2_000, read)?, timed_each(2_000, |_| stat(path))?])
}

/// Reads all of the file, the kernel's caches being empty; MB/s.
fn read_whole(path: &Path) -> Result<f64> {
    stage::drop_caches();
    let mut whole = Vec::with_capacity(FILE_BYTES as usize);
    let start = Instant::now();
    io::Read::read_to_end(&mut File::open(path).cant(|| format!("open {}", path.display()))?, &mut whole)?;
    let rate = whole.len() as f64 / 1e6 / start.elapsed().as_secs_f64();
    if whole.len() as u64 != FILE_BYTES {
        return Err(Failure::new(format!("{} has {} bytes instead of {FILE_BYTES}", path.display(), whole.len())));
    }
    Ok(rate)
}

/// Asks the filesystem itself each time, whatever the kernel knows.
fn stat(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut answer = std::mem::MaybeUninit::<libc::statx>::uninit();
    let (flags, mask) = (libc::AT_STATX_FORCE_SYNC, libc::STATX_BASIC_STATS);
    // SAFETY: a C string and room for the answer.
    if unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, mask, answer.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Adds unsynced work, kills the daemon in the midst of it, and times the next mount.
fn crash_and_mount(darner: &mut Darner, table: &mut Table) -> Result<()> {
    let busy = darner.dir().join("busy");
    for n in 0..500u64 {
        fs::write(busy.with_extension((n % 10).to_string()), n.to_le_bytes())?;
    }
    darner.crash()?;
    stage::drop_caches();
    let took = darner.mount()?;
    table.enter("mount after kill -9, ms", took.as_secs_f64() * 1e3);
    Ok(())
}

fn enter_status(darner: &Darner, table: &mut Table) -> Result<()> {
    let status = darner.status()?;
    let mib = |name: &str| status[name].as_u64().unwrap_or(0) as f64 / f64::from(1 << 20);
    table.enter("daemon resident, MiB", mib("resident_bytes"));
    table.enter("store used, MiB", mib("used_bytes"));
    Ok(())
}

fn tid(darner: &Darner) -> Result<String> {
    let status = darner.status()?;
    Ok(status["tid"].as_str().ok_or_else(|| Failure::new("status tells no tid"))?.to_string())
}

/// Operations per second.
fn timed(ops: u64, work: impl FnOnce() -> io::Result<()>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(ops as f64 / start.elapsed().as_secs_f64().max(1e-9))
}

fn timed_each(ops: u64, mut work: impl FnMut(u64) -> io::Result<()>) -> Result<f64> {
    timed(ops, || {
        for i in 0..ops {
            work(i)?;
            go_on()?;
        }
        Ok(())
    })
}

impl Table {
    fn new(what: &'static str, steps: &[u64]) -> Table {
        Table { what, steps: steps.to_vec(), rows: Vec::new() }
    }

    fn enter(&mut self, what: &str, value: f64) {
        match self.rows.iter_mut().find(|r| r.what == what) {
            Some(row) => row.values.push(value),
            None => self.rows.push(Row { what: what.into(), values: vec![value] }),
        }
    }

    /// Each value, and in parentheses its change against the first.
    fn text(&self) -> String {
        let mut out = format!("\n{}\n{:<32}", self.what, "");
        for step in &self.steps {
            write!(out, "{step:>20}").expect("strings take all");
        }
        for row in &self.rows {
            write!(out, "\n{:<32}", row.what).expect("strings take all");
            for value in &row.values {
                let change = (value / row.values[0].max(1e-9) - 1.0) * 100.0;
                let digits = if row.what.contains('×') { 2 } else { 0 };
                write!(out, "{:>20}", format!("{value:.digits$} ({change:+.0} %)")).expect("strings take all");
            }
        }
        out + "\n"
    }

    fn json(&self) -> Value {
        let rows: serde_json::Map<String, Value> =
            self.rows.iter().map(|r| (r.what.clone(), json!(r.values))).collect();
        json!({ "what": self.what, "steps": self.steps, "rows": rows })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_tells_the_change_against_the_first_step() {
        let mut table = Table::new("files", &[10, 100]);
        table.enter("create/s", 200.0);
        table.enter("create/s", 150.0);
        assert!(table.text().contains("150 (-25 %)"));
        assert_eq!(table.json()["rows"]["create/s"], json!([200.0, 150.0]));
    }
}
