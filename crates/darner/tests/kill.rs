//! `kill -9` of the daemon and its supervisor under load: what was synced is there, the rest is an exact prefix of what was done, and the past of
//! earlier rounds is what it was. 20 rounds; 100 with DARNER_LONG set.

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{World, long};

/// Everything in a directory: name to contents, target or nothing.
type Listing = BTreeMap<String, Vec<u8>>;

/// The n-th operation of a writer: one transaction each. `Ok(true)`: everything up to it is now synced.
fn act(dir: &Path, log: &File, n: u64) -> io::Result<bool> {
    let at = |kind: &str, n: u64| dir.join(format!("{kind}{n}"));
    match n % 6 {
        0 => fs::create_dir(at("d", n)),
        1 => std::os::unix::fs::symlink(format!("to {n}"), at("s", n)),
        2 => fs::rename(at("d", n - 2), at("e", n - 2)),
        3 => log.write_all_at(&n.to_be_bytes(), n / 6 * 8),
        4 if n > 40 => fs::remove_file(at("s", n - 39)),
        4 => fs::create_dir(at("x", n)),
        _ => {
            if n % 4 == 1 {
                log.sync_all()?;
            }
            return Ok(n % 4 == 1);
        }
    }?;
    Ok(false)
}

/// What `act` leaves after n operations.
fn model(n: u64) -> Listing {
    let mut all = Listing::from([("log".into(), Vec::new())]);
    for n in 0..n {
        match n % 6 {
            0 => drop(all.insert(format!("d{n}"), Vec::new())),
            1 => drop(all.insert(format!("s{n}"), format!("to {n}").into_bytes())),
            2 => {
                all.remove(&format!("d{}", n - 2));
                all.insert(format!("e{}", n - 2), Vec::new());
            }
            3 => all.get_mut("log").unwrap().extend(n.to_be_bytes()),
            4 if n > 40 => drop(all.remove(&format!("s{}", n - 39))),
            4 => drop(all.insert(format!("x{n}"), Vec::new())),
            _ => {}
        }
    }
    all
}

fn listing(dir: &Path) -> Listing {
    let mut all = Listing::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        let value = match () {
            () if kind.is_file() => fs::read(entry.path()).unwrap(),
            () if kind.is_symlink() => fs::read_link(entry.path()).unwrap().into_os_string().into_encoded_bytes(),
            () => Vec::new(),
        };
        all.insert(entry.file_name().into_string().unwrap(), value);
    }
    all
}

#[derive(Default)]
struct Writer {
    /// Operations begun.
    begun: AtomicU64,
    /// Operations known to be durable.
    synced: AtomicU64,
}

impl Writer {
    fn run(&self, dir: &Path, log: &File) {
        for n in 0.. {
            self.begun.store(n + 1, Ordering::SeqCst);
            match act(dir, log, n) {
                Ok(true) => self.synced.store(n + 1, Ordering::SeqCst),
                Ok(false) => {}
                Err(e) => {
                    let dead = [libc::ENOTCONN, libc::ECONNABORTED, libc::EIO, libc::EINTR];
                    assert!(e.raw_os_error().is_some_and(|e| dead.contains(&e)), "operation {n}: {e}");
                    return;
                }
            }
        }
    }

    fn check(&self, round: usize, found: &Listing) {
        let (synced, begun) = (self.synced.load(Ordering::SeqCst), self.begun.load(Ordering::SeqCst));
        let is_prefix = (synced..=begun).rev().any(|n| model(n) == *found);
        if !is_prefix {
            let (least, most) = (model(synced), model(begun));
            let lost: Vec<_> = least.keys().filter(|k| !found.contains_key(*k) && most.contains_key(*k)).collect();
            let odd: Vec<_> = found.keys().filter(|k| !least.contains_key(*k) && !most.contains_key(*k)).collect();
            panic!(
                "round {round}: no prefix of {begun} operations ({synced} synced) is what is there: lost {lost:?}, odd {odd:?}"
            );
        }
    }
}

#[test]
fn killed_at_any_moment_it_keeps_what_was_synced_and_a_prefix_of_the_rest() {
    let Some(w) = World::new() else { return };
    let mut rng = fastrand::Rng::with_seed(3);
    let mut remembered: Vec<(String, String, Listing)> = Vec::new();
    let mut slowest = Duration::ZERO;
    let mut operations = 0;
    for round in 0..if long() { 100 } else { 20 } {
        let writers: Vec<Writer> = (0..2).map(|_| Writer::default()).collect();
        let dirs: Vec<_> = (0..2).map(|n| w.path(&format!("round{round}-{n}"))).collect();
        let logs: Vec<File> = dirs
            .iter()
            .map(|d| {
                fs::create_dir(d).unwrap();
                File::create(d.join("log")).unwrap()
            })
            .collect();
        logs[0].sync_all().unwrap();
        thread::scope(|scope| {
            for ((writer, dir), log) in writers.iter().zip(&dirs).zip(&logs) {
                scope.spawn(move || writer.run(dir, log));
            }
            // Bulk data beside them.
            scope.spawn(|| {
                let block = vec![round as u8; 300_000];
                let Ok(bulk) = File::create(w.path("bulk")) else { return };
                (0..).take_while(|n| bulk.write_all_at(&block, n % 50 * 300_000).is_ok()).count();
            });
            thread::sleep(Duration::from_micros(rng.u64(100..250_000)));
            w.kill_all();
        });
        drop(logs);
        w.detach();
        let start = Instant::now();
        w.mount();
        slowest = slowest.max(start.elapsed());
        for (writer, dir) in writers.iter().zip(&dirs) {
            writer.check(round, &listing(dir));
            operations += writer.begun.load(Ordering::SeqCst);
        }
        for (then, dir, wanted) in remembered.iter().rev().take(5) {
            assert!(
                listing(&w.path(&format!("@@{then}/{dir}"))) == *wanted,
                "round {round}: {dir} as of {then} changed"
            );
        }
        remembered.push((w.now(), format!("round{round}-0"), listing(&dirs[0])));
        fs::remove_dir_all(&dirs[0]).unwrap();
    }
    println!("{operations} operations; slowest mount after a kill: {slowest:?}");
    assert!(slowest < Duration::from_secs(3));
    // What the first rounds left is still to be seen.
    for (then, dir, wanted) in &remembered {
        assert!(listing(&w.path(&format!("@@{then}/{dir}"))) == *wanted, "{dir} as of {then} changed");
    }
    w.unmount();
}
