//! What a workload gets: a directory, sizes, and a stopwatch.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::probe::{Counts, Probe};

/// How much of everything.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Scale {
    /// The large file.
    pub file_bytes: u64,
    /// The file that is mapped.
    pub map_bytes: u64,
    /// Reads, buffered writes and page touches at random places.
    pub random_ops: u64,
    /// Writes with an fsync each.
    pub sync_ops: u64,
    /// Small files, 100 to a directory.
    pub small_files: u64,
    /// Files of the source tree, at most.
    pub tree_files: usize,
    /// Transactions with a write-ahead log.
    pub wal_txns: u64,
    /// Transactions with a rollback journal.
    pub journal_txns: u64,
}

impl Scale {
    /// For numbers to be believed.
    pub const FULL: Scale = Scale {
        file_bytes: 1 << 30,
        map_bytes: 256 << 20,
        random_ops: 20_000,
        sync_ops: 1_000,
        small_files: 10_000,
        tree_files: 5_000,
        wal_txns: 2_000,
        journal_txns: 400,
    };
    /// To see that it works.
    pub const QUICK: Scale = Scale {
        file_bytes: 128 << 20,
        map_bytes: 32 << 20,
        random_ops: 4_000,
        sync_ops: 200,
        small_files: 2_000,
        tree_files: 1_000,
        wal_txns: 400,
        journal_txns: 100,
    };
}

/// What was made once, before all rounds.
pub struct Kit {
    /// A tar of a source tree.
    pub tar: PathBuf,
    /// Its number of files.
    pub tar_files: u64,
    /// The command.
    pub sqlite: Option<PathBuf>,
}

/// See the module.
pub struct Stage<'a> {
    /// Where to work.
    pub dir: &'a Path,
    /// How much.
    pub scale: &'a Scale,
    /// What was prepared.
    pub kit: &'a Kit,
    /// The round; to be part of the seed of anything random.
    pub round: u64,
    /// The process to count, in the round that is not timed.
    pub probe: Option<&'a Probe>,
}

/// One measurement.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Operations.
    pub ops: u64,
    /// Bytes, where the rate is to be one of bytes.
    pub bytes: u64,
    /// Time of all.
    pub seconds: f64,
    /// Median time of one, where each was taken.
    pub p50_us: Option<f64>,
    /// What the serving process did meanwhile.
    pub counts: Option<Counts>,
}

/// Tells whoever waits how it goes.
pub fn note(text: &str) {
    eprintln!("{text}");
}

impl Sample {
    /// Bytes or operations per second.
    pub fn rate(&self) -> f64 {
        let amount = if self.bytes > 0 { self.bytes } else { self.ops };
        amount as f64 / self.seconds.max(1e-9)
    }
}

impl Stage<'_> {
    /// Times `work`: so many operations, of so many bytes altogether (0: a rate of bytes would say nothing).
    ///
    /// What was prepared is on disk before the clock starts: it is not to be this workload's burden.
    pub fn time(&self, ops: u64, bytes: u64, work: impl FnOnce() -> io::Result<()>) -> io::Result<Sample> {
        write_out(self.dir)?;
        let counting = self.probe.map(|p| p.start(self.dir));
        let start = Instant::now();
        work()?;
        let seconds = start.elapsed().as_secs_f64();
        let counts = counting.map(|c| c.stop());
        go_on()?;
        Ok(Sample { ops, bytes, seconds, p50_us: None, counts })
    }

    /// Times `ops` operations and each of them.
    pub fn time_each(&self, ops: u64, mut work: impl FnMut(u64) -> io::Result<()>) -> io::Result<Sample> {
        let mut each = Vec::with_capacity(ops as usize);
        let sample = self.time(ops, 0, || {
            for n in 0..ops {
                let start = Instant::now();
                work(n)?;
                each.push(start.elapsed());
                go_on()?;
            }
            Ok(())
        })?;
        each.sort_unstable();
        let p50_us = each.get(each.len() / 2).map(|d: &Duration| d.as_secs_f64() * 1e6);
        Ok(Sample { p50_us, ..sample })
    }
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From here on an interrupt or a polite request to end makes workloads fail instead of ending the process.
pub fn catch_interrupts() {
    extern "C" fn note(_: libc::c_int) {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only stores to an atomic.
        unsafe { libc::signal(signal, note as *const () as libc::sighandler_t) };
    }
}

/// An error once the user wants an end; called inside every long loop.
pub fn go_on() -> io::Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        return Err(io::Error::other("interrupted"));
    }
    Ok(())
}

/// Whether the user wants an end.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Writes a filesystem out.
pub fn write_out(dir: &Path) -> io::Result<()> {
    let dir = File::open(dir)?;
    // SAFETY: a plain system call on an open descriptor.
    if unsafe { libc::syncfs(dir.as_raw_fd()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Writes everything out and, as root, empties the kernel's caches; returns whether it could.
pub fn drop_caches() -> bool {
    // SAFETY: can't fail.
    unsafe { libc::sync() };
    std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}
