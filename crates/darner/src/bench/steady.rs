//! What cleaning costs those who write: random overwrites on a volume that stays nearly full, beside the same on one that
//! is so large that nothing is ever cleaned.
//!
//! The two take turns, and whoever is not in turn is stopped (SIGSTOP): else one would clean while the other is measured,
//! which would flatter the first and burden the second. What the daemon wrote is `wchar` of /proc/PID/io, what it handed
//! to write(2): its answers to the kernel are in it too, 24 bytes for each write. Tried and dropped: `write_bytes`, which
//! counts a whole large folio for each write into it, and the disk's own counters, which are everybody's.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::darner::Darner;
use super::data::{self, Rng};
use super::report::median;
use super::stage::{go_on, note};
use super::system::{Room, System};
use crate::error::{Context, Failure, Result};

const PAGE: u64 = 4096;
/// How full the small volume is, in percent, as `df` says it (without its reserve, as of any filesystem that has one).
const FULL: u64 = 85;
const FILES: u64 = 8;
/// Pages read back at the end.
const CHECKED: u64 = 5_000;
/// A write refused so often is given up.
const REFUSED_MAX: u64 = 1_000;

/// How much.
pub struct Options {
    /// A smaller volume, for less long.
    pub quick: bool,
    /// Into how many turns the load is cut.
    pub rounds: u64,
    /// Mount options for darner, joined by `+`.
    pub mount_options: String,
}

impl Options {
    /// Bytes of the volume, and how many times that is written.
    fn load(&self) -> (u64, u64) {
        if self.quick { (1 << 30, 2) } else { (2 << 30, 10) }
    }
}

/// A volume under load.
struct Loaded {
    /// Before the mount that they are on.
    files: Vec<File>,
    darner: Darner,
    /// How often each page was written.
    written: Vec<u32>,
    rng: Rng,
    turns: Vec<Turn>,
}

/// What was measured in a turn.
struct Turn {
    bytes: u64,
    seconds: f64,
    /// Bytes that the daemon wrote meanwhile.
    stored: u64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
    /// Times that a write was refused with ENOSPC and tried again.
    refused: u64,
}

impl Turn {
    fn rate(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.seconds
    }
}

/// A process that does nothing until this is dropped.
struct Stopped(i32);

impl Stopped {
    fn new(pid: Option<u32>) -> Result<Stopped> {
        let pid = pid.and_then(|p| i32::try_from(p).ok()).ok_or_else(|| Failure::new("no daemon to stop"))?;
        signal(pid, libc::SIGSTOP)?;
        Ok(Stopped(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if let Err(e) = signal(self.0, libc::SIGCONT) {
            eprintln!("darner: {e}");
        }
    }
}

fn signal(pid: i32, signal: libc::c_int) -> Result<()> {
    // SAFETY: a plain system call; `status` named this process as the one that serves our store.
    if unsafe { libc::kill(pid, signal) } != 0 {
        return Err(std::io::Error::last_os_error())
            .cant(|| format!("send signal {signal} to the daemon, process {pid}"));
    }
    Ok(())
}

/// Runs it; returns text and JSON.
pub fn steady(dir: &Path, o: &Options) -> Result<(String, Value)> {
    let room = Room::new(dir)?;
    let (size, times) = o.load();
    let per_turn = size * times / o.rounds / PAGE;
    let mut cleaned = Loaded::set_up("cleaned", o, &room, size, "none")?;
    let pages = cleaned.fill(u64::MAX)?;
    // Room for all that is ever written, and its index.
    let mut kept = Loaded::set_up("kept", o, &room, size * (times + 2) * 2, "forever")?;
    kept.fill(pages)?;
    for round in 0..=o.rounds {
        // First until the cleaner is in its stride.
        let pages = if round == 0 { size / 2 / PAGE } else { per_turn };
        for turn in 0..2 {
            let (on, off) = if (round + turn) % 2 == 0 { (&mut cleaned, &kept) } else { (&mut kept, &cleaned) };
            let stopped = Stopped::new(off.darner.daemon())?;
            let measured = on.turn(pages)?;
            drop(stopped);
            let name = on.darner.name();
            note(&format!(
                "round {round}: {name:<8} {:.0} MB/s, {:.2} bytes written per byte, p50 {:.0}, p99 {:.0}, p99.9 {:.0}, max {:.0} µs, refused {}",
                measured.rate(),
                measured.stored as f64 / measured.bytes as f64,
                measured.p50_us,
                measured.p99_us,
                measured.p999_us,
                measured.max_us,
                measured.refused
            ));
            if round > 0 {
                on.turns.push(measured);
            }
        }
    }
    let checked = [cleaned.check()?, kept.check()?];
    report(o, &cleaned, &kept, checked)
}

impl Loaded {
    fn set_up(name: &str, o: &Options, room: &Room, size: u64, grid: &str) -> Result<Loaded> {
        let darner = Darner::set_up_on_image(name, &o.mount_options, room, size)?;
        darner.command(&["retain".as_ref(), darner.dir().as_os_str(), grid.as_ref()])?;
        let files = (0..FILES).map(|n| {
            let path = darner.dir().join(format!("file{n}"));
            OpenOptions::new().read(true).write(true).create_new(true).open(path)
        });
        let files = files.collect::<std::io::Result<_>>()?;
        Ok(Loaded { files, darner, written: Vec::new(), rng: Rng::new(1), turns: Vec::new() })
    }

    /// Writes so many pages, or until the volume is [`FULL`]; returns how many.
    fn fill(&mut self, most: u64) -> Result<u64> {
        const AT_ONCE: u64 = 256;
        note(&format!("filling the volume {}", self.darner.name()));
        let mut bytes = vec![0; (AT_ONCE * PAGE) as usize];
        let mut pages = 0;
        while pages < most && !self.is_full()? {
            // The pages of all files take turns.
            for n in 0..FILES {
                for i in 0..AT_ONCE {
                    content(pages + i * FILES + n, 0, &mut bytes[(i * PAGE) as usize..][..PAGE as usize]);
                }
                let (file, at) = self.place(pages + n);
                file.write_all_at(&bytes, at)?;
                go_on()?;
            }
            pages += AT_ONCE * FILES;
        }
        for file in &self.files {
            file.sync_all()?;
        }
        self.written = vec![0; pages as usize];
        Ok(pages)
    }

    /// Whether `df` would say so: of what it can hold (its reserve left out), so much is in use.
    fn is_full(&self) -> Result<bool> {
        let status = self.darner.status()?;
        let bytes = |name: &str| status[name].as_u64().ok_or_else(|| Failure::new(format!("status tells no {name}")));
        let used = bytes("used_bytes")?;
        Ok(used * 100 >= (used + bytes("free_bytes")?) * FULL)
    }

    fn place(&self, page: u64) -> (&File, u64) {
        (&self.files[(page % FILES) as usize], page / FILES * PAGE)
    }

    /// Writes so many pages.
    fn turn(&mut self, pages: u64) -> Result<Turn> {
        let mut each = Vec::with_capacity(pages as usize);
        let mut bytes = vec![0; PAGE as usize];
        let mut refused = 0;
        let before = self.stored()?;
        let start = Instant::now();
        for _ in 0..pages {
            let page = self.rng.below(self.written.len() as u64);
            self.written[page as usize] += 1;
            content(page, self.written[page as usize], &mut bytes);
            let (file, at) = self.place(page);
            let begin = Instant::now();
            refused += write(file, &bytes, at).cant(|| format!("write to the volume {}", self.darner.name()))?;
            each.push(begin.elapsed().as_nanos().min(u128::from(u32::MAX)) as u32);
            go_on()?;
        }
        let seconds = start.elapsed().as_secs_f64();
        let stored = self.stored()? - before;
        each.sort_unstable();
        let share = |of_thousand: usize| f64::from(each[(each.len() * of_thousand / 1000).min(each.len() - 1)]) / 1e3;
        Ok(Turn {
            bytes: pages * PAGE,
            seconds,
            stored,
            p50_us: share(500),
            p99_us: share(990),
            p999_us: share(999),
            max_us: share(1000),
            refused,
        })
    }

    fn stored(&self) -> Result<u64> {
        let path = format!("/proc/{}/io", self.darner.daemon().unwrap_or(0));
        let text = std::fs::read_to_string(&path).cant(|| format!("read {path}"))?;
        let count = text.lines().find_map(|l| l.strip_prefix("wchar: ")?.parse().ok());
        count.ok_or_else(|| Failure::new(format!("{path} tells no wchar")))
    }

    /// Reads some pages back, with a fresh mount's caches; returns how many.
    fn check(&mut self) -> Result<u64> {
        self.files.clear();
        self.darner.remount()?;
        for n in 0..FILES {
            self.files.push(File::open(self.darner.dir().join(format!("file{n}")))?);
        }
        let (mut found, mut expected) = (vec![0; PAGE as usize], vec![0; PAGE as usize]);
        for _ in 0..CHECKED {
            let page = self.rng.below(self.written.len() as u64);
            content(page, self.written[page as usize], &mut expected);
            let (file, at) = self.place(page);
            file.read_exact_at(&mut found, at)?;
            if found != expected {
                return Err(Failure::new(format!("{}: page {page} reads back wrong", self.darner.name())));
            }
            go_on()?;
        }
        Ok(CHECKED)
    }

    fn over_turns(&self, what: impl Fn(&Turn) -> f64) -> f64 {
        median(self.turns.iter().map(what)).unwrap_or(0.0)
    }

    fn amplification(&self) -> f64 {
        let sum = |f: fn(&Turn) -> u64| self.turns.iter().map(f).sum::<u64>() as f64;
        sum(|t| t.stored) / sum(|t| t.bytes)
    }
}

/// Writes, if need be again and again; returns how often that was refused for want of space.
fn write(file: &File, bytes: &[u8], at: u64) -> std::io::Result<u64> {
    let mut refused = 0;
    loop {
        match file.write_all_at(bytes, at) {
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && refused < REFUSED_MAX => refused += 1,
            outcome => return outcome.map(|()| refused),
        }
        go_on()?;
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn content(page: u64, version: u32, bytes: &mut [u8]) {
    data::noise(page << 32 | u64::from(version), bytes);
}

fn report(o: &Options, cleaned: &Loaded, kept: &Loaded, checked: [u64; 2]) -> Result<(String, Value)> {
    let (size, times) = o.load();
    let of_both = |what: fn(&Turn) -> f64| {
        let ratios = cleaned.turns.iter().zip(&kept.turns).map(|(c, k)| what(c) / what(k));
        (cleaned.over_turns(what), kept.over_turns(what), median(ratios).unwrap_or(0.0))
    };
    let lines: [(&str, (f64, f64, f64)); 5] = [
        ("throughput, MB/s", of_both(Turn::rate)),
        ("p50, µs", of_both(|t| t.p50_us)),
        ("p99, µs", of_both(|t| t.p99_us)),
        ("p99.9, µs", of_both(|t| t.p999_us)),
        ("longest, µs", of_both(|t| t.max_us)),
    ];
    let status = [cleaned.darner.status()?, kept.darner.status()?];
    let mib = |of: usize, name: &str| status[of][name].as_u64().unwrap_or(0) >> 20;
    let mut text = format!(
        "{} MiB, filled to {FULL} % (`df`) with {} MiB in {FILES} files, {} times overwritten by 4 KiB at random places; {} rounds\n\n",
        size >> 20,
        (cleaned.written.len() as u64 * PAGE) >> 20,
        times,
        o.rounds
    );
    writeln!(text, "{:<24}{:>12}{:>16}{:>10}", "", "cleaned", "never cleaned", "×").expect("strings take all");
    for (what, (c, k, ratio)) in lines {
        writeln!(text, "{what:<24}{c:>12.1}{k:>16.1}{ratio:>10.2}").expect("strings take all");
    }
    let (c, k) = (cleaned.amplification(), kept.amplification());
    writeln!(text, "{:<24}{c:>12.2}{k:>16.2}{:>10.2}", "write amplification", c / k).expect("strings take all");
    let refused = |of: &Loaded| of.turns.iter().map(|t| t.refused).sum::<u64>();
    let (c_refused, k_refused) = (refused(cleaned), refused(kept));
    writeln!(text, "{:<24}{c_refused:>12}{k_refused:>16}", "refused (ENOSPC)").expect("strings take all");
    let used = [mib(0, "used_bytes"), mib(1, "used_bytes")];
    writeln!(text, "{:<24}{:>12}{:>16}", "used at the end, MiB", used[0], used[1]).expect("strings take all");
    writeln!(text, "\n{} pages of each read back right, after a remount", checked[0]).expect("strings take all");
    let json = json!({
        "size_bytes": size, "times": times, "rounds": o.rounds, "pages_checked": checked,
        "lines": lines.iter().map(|(what, (c, k, ratio))| json!({ "what": what, "cleaned": c, "kept": k, "ratio": ratio })).collect::<Vec<_>>(),
        "write_amplification": { "cleaned": c, "kept": k },
        "used_bytes": { "cleaned": status[0]["used_bytes"], "kept": status[1]["used_bytes"] },
        "turns": { "cleaned": turns(cleaned), "kept": turns(kept) },
    });
    Ok((text, json))
}

fn turns(of: &Loaded) -> Vec<Value> {
    let turn = |t: &Turn| {
        json!({
            "mb_per_second": t.rate(), "stored_bytes": t.stored, "bytes": t.bytes,
            "p50_us": t.p50_us, "p99_us": t.p99_us, "p999_us": t.p999_us, "max_us": t.max_us,
            "refused": t.refused,
        })
    };
    of.turns.iter().map(turn).collect()
}
