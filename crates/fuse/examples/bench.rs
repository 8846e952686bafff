//! Operations per second of one client against a filesystem in memory, with and without polling:
//! `cargo run --release -p darner-fuse --example bench [hogs]`, where `hogs` threads burn CPU beside.

#[path = "../tests/common/mod.rs"]
mod common;

use std::{
    fs::{self, File},
    hint::black_box,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use common::{Manners, Mounted};
use darner_fuse::Config;

const FILES: usize = 4000;

/// Best of five: operations per second.
fn best(mut round: impl FnMut(usize) -> usize) -> f64 {
    let rate = |n| {
        let start = Instant::now();
        round(n) as f64 / start.elapsed().as_secs_f64()
    };
    (0..5).map(rate).fold(0.0, f64::max)
}

fn cpu_seconds() -> f64 {
    // SAFETY: rusage is plain data, filled in by the call.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

fn measure(threads: usize, poll: Duration, always_block: bool, hogged: &AtomicU64) {
    let uncached = Manners { valid: Duration::ZERO, always_block, ..Default::default() };
    let cached = Manners { always_block, ..Default::default() };
    let (before, burned) = ((Instant::now(), cpu_seconds()), hogged.load(Ordering::Relaxed));
    let Some(it) = Mounted::try_new(cached, Config::default(), threads, poll) else {
        return;
    };
    let create = best(|round| {
        let dir = it.path(format!("{round}"));
        fs::create_dir(&dir).unwrap();
        for n in 0..FILES {
            File::create(dir.join(n.to_string())).unwrap();
        }
        FILES
    });
    let unlink = best(|round| {
        let dir = it.path(format!("{round}"));
        for n in 0..FILES {
            fs::remove_file(dir.join(n.to_string())).unwrap();
        }
        FILES
    });
    drop(it);
    let Some(it) = Mounted::try_new(uncached, Config::default(), threads, poll) else {
        return;
    };
    File::create(it.path("file")).unwrap();
    let path = it.path("file");
    let stat = best(|_| {
        for _ in 0..FILES {
            fs::metadata(&path).unwrap();
        }
        FILES
    });
    drop(it);
    let (wall, cpu) = (before.0.elapsed().as_secs_f64(), cpu_seconds() - before.1);
    let hogs = (hogged.load(Ordering::Relaxed) - burned) as f64 / wall / 1e6;
    println!(
        "threads {threads} poll {:>3} us{}: create+close {create:>8.0}/s  unlink {unlink:>8.0}/s  \
         stat uncached (LOOKUP+STATX) {stat:>8.0}/s  cpu {:.2}  hogs {hogs:.1} M/s",
        poll.as_micros(),
        if always_block { " always blocking" } else { "" },
        cpu / wall,
    );
}

fn main() {
    let hogs = std::env::args().nth(1).map_or(0, |arg| arg.parse().expect("a number"));
    let (stop, hogged) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..hogs {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    (0..10_000u64).for_each(|n| _ = black_box(n));
                    hogged.fetch_add(10_000, Ordering::Relaxed);
                }
            });
        }
        let polls = [0, 50, 200].map(Duration::from_micros);
        for threads in [1, 2, 4] {
            polls.iter().for_each(|&poll| measure(threads, poll, false, &hogged));
        }
        polls.iter().for_each(|&poll| measure(2, poll, true, &hogged));
        stop.store(true, Ordering::Relaxed);
    });
}
