//! A mount outlives its daemon: it is killed at random moments under programs of every kind, and none of them sees more than a
//! pause. 80 kills and more; 2,500 with DARNER_LONG set. The world's watchdog kills everything if a test hangs.

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::{World, c_string, eventually, has, long};

fn kill(pid: i32) {
    // SAFETY: a plain system call.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

/// Kills the worker at random moments, so often or until the load is done; `n` is how often that was.
fn kill_again_and_again(w: &World, seed: u64, kills: u32, done: &AtomicBool, n: &AtomicU32) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut last = 0;
    while n.load(Ordering::SeqCst) < kills && !done.load(Ordering::SeqCst) {
        let pid = w.daemon_pid();
        // Sometimes while it is still taking over.
        let most = if rng.u8(0..4) == 0 { 3_000 } else { 150_000 };
        thread::sleep(Duration::from_micros(rng.u64(0..most)));
        if pid != last {
            kill(pid);
            last = pid;
            n.fetch_add(1, Ordering::SeqCst);
        }
    }
}

type Work = fn(&mut Load<'_>);

/// One program's work in a directory of its own, step by step; a step takes few system calls.
struct Load<'a> {
    dir: PathBuf,
    rng: fastrand::Rng,
    stop: &'a AtomicBool,
    calls: &'a AtomicU64,
    slowest: &'a AtomicU64,
}

impl Load<'_> {
    /// A system call, which must succeed.
    #[track_caller]
    fn call<T>(&self, what: &str, call: impl FnOnce() -> io::Result<T>) -> T {
        let start = Instant::now();
        let outcome = call();
        self.slowest.fetch_max(start.elapsed().as_micros() as u64, Ordering::Relaxed);
        self.calls.fetch_add(1, Ordering::Relaxed);
        outcome.unwrap_or_else(|e| panic!("{what}: {e}"))
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::SeqCst)
    }
}

/// Anything that is done twice, or not at all, is an error to the next call here.
fn names(l: &mut Load<'_>) {
    let at = |name: &str| l.dir.join(name);
    let (a, b, c, d) = (at("a"), at("b"), at("c"), at("d"));
    let mut n = 0u64;
    while l.goes_on() {
        l.call("mkdir", || fs::create_dir(&a));
        let inside = a.join(format!("f{n}"));
        l.call("create", || OpenOptions::new().write(true).create_new(true).open(&inside));
        l.call("rename", || fs::rename(&inside, &b));
        l.call("link", || fs::hard_link(&b, &c));
        assert_eq!(l.call("stat", || fs::metadata(&b)).nlink(), 2);
        l.call("rename over", || fs::rename(&c, a.join("g")));
        l.call("symlink", || std::os::unix::fs::symlink("b", &c));
        l.call("exchange", || common::rename(&b, &c, libc::RENAME_EXCHANGE).map_err(io::Error::from_raw_os_error));
        assert_eq!(l.call("readlink", || fs::read_link(&b)), Path::new("b"));
        l.call("rename dir", || fs::rename(&a, &d));
        assert_eq!(l.call("list", || fs::read_dir(&d)).count(), 1);
        l.call("unlink", || fs::remove_file(d.join("g")));
        assert_eq!(l.call("stat", || fs::metadata(&c)).nlink(), 1);
        l.call("unlink", || fs::remove_file(&b));
        l.call("unlink", || fs::remove_file(&c));
        l.call("rmdir", || fs::remove_dir(&d));
        assert_eq!(l.call("list", || fs::read_dir(&l.dir)).count(), 0, "round {n}");
        n += 1;
    }
}

/// Records are appended; each is there once, in order.
fn appends(l: &mut Load<'_>) {
    let path = l.dir.join("log");
    let mut log = l.call("create", || OpenOptions::new().append(true).create(true).open(&path));
    let mut n = 0u64;
    while l.goes_on() {
        let len = l.call("append", || log.write(&n.to_be_bytes()));
        assert_eq!(len, 8);
        n += 1;
        if n.is_multiple_of(500) {
            l.call("fsync", || log.sync_all());
            check_log(&l.call("read", || fs::read(&path)), n);
        }
    }
    check_log(&l.call("read", || fs::read(&path)), n);
}

fn check_log(found: &[u8], n: u64) {
    assert_eq!(found.len() as u64, n * 8, "records");
    for (i, record) in found.chunks(8).enumerate() {
        assert_eq!(record, (i as u64).to_be_bytes(), "record {i}");
    }
}

/// A file's bytes are what was written, by write, truncate, hole, copy and through a mapping.
fn bytes(l: &mut Load<'_>) {
    const LEN: usize = 512 << 10;
    let file = l.call("create", || {
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(l.dir.join("bytes"))
    });
    l.call("size", || file.set_len(LEN as u64));
    // SAFETY: a new mapping of an open file, which keeps its size while it is used.
    let map = unsafe {
        let map = libc::mmap(
            std::ptr::null_mut(),
            LEN,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        assert_ne!(map, libc::MAP_FAILED);
        std::slice::from_raw_parts_mut(map.cast::<u8>(), LEN)
    };
    let mut model = vec![0u8; LEN];
    while l.goes_on() {
        let at = l.rng.usize(..LEN);
        let len = if l.rng.bool() { l.rng.usize(..300) } else { l.rng.usize(..200_000) }.min(LEN - at);
        let byte = l.rng.u8(..);
        match l.rng.u8(..12) {
            0..=4 => {
                let data: Vec<u8> = (0..len).map(|i| byte.wrapping_add((i / 7) as u8)).collect();
                l.call("write", || file.write_all_at(&data, at as u64));
                model[at..at + len].copy_from_slice(&data);
            }
            5 => {
                l.call("punch", || {
                    let how = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                    // SAFETY: a plain system call.
                    let rc = unsafe { libc::fallocate(file.as_raw_fd(), how, at as i64, len.max(1) as i64) };
                    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
                });
                model[at..at + len.max(1)].fill(0);
            }
            6 => {
                let half = len.min(LEN / 2 - 1);
                let (from, to) = (l.rng.usize(..LEN / 2 - half), LEN / 2 + l.rng.usize(..LEN / 2 - half));
                let n = l.call("copy", || {
                    let (mut a, mut b) = (from as i64, to as i64);
                    // SAFETY: pointers to locals.
                    let n = unsafe {
                        libc::copy_file_range(file.as_raw_fd(), &raw mut a, file.as_raw_fd(), &raw mut b, half, 0)
                    };
                    if n >= 0 { Ok(n as usize) } else { Err(io::Error::last_os_error()) }
                });
                model.copy_within(from..from + n, to);
            }
            7 => {
                map[at..at + len].fill(byte);
                model[at..at + len].fill(byte);
            }
            8 => {
                assert!(map[at..at + len] == model[at..at + len], "mapped bytes at {at}");
            }
            9 => l.call("fsync", || file.sync_data()),
            _ => {
                let mut found = vec![0; len];
                l.call("read", || file.read_exact_at(&mut found, at as u64));
                assert!(found == model[at..at + len], "bytes at {at}");
            }
        }
    }
    assert!(map[..] == model[..]);
    // SAFETY: our own mapping.
    unsafe { libc::munmap(map.as_mut_ptr().cast(), LEN) };
    assert!(l.call("read", || fs::read(l.dir.join("bytes"))) == model);
}

/// Files without a name stay as long as they are open, and get one if asked for.
fn nameless(l: &mut Load<'_>) {
    let path = l.dir.join("x");
    let mut open: Vec<(File, Vec<u8>)> = Vec::new();
    let mut n = 0u64;
    while l.goes_on() {
        let content = n.to_be_bytes().repeat(l.rng.usize(1..2000));
        let file = if n.is_multiple_of(3) {
            let made = l.call("tmpfile", || {
                OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).open(&l.dir)
            });
            l.call("write", || made.write_all_at(&content, 0));
            made
        } else {
            let made = l.call("create", || OpenOptions::new().read(true).write(true).create_new(true).open(&path));
            l.call("write", || made.write_all_at(&content, 0));
            l.call("unlink", || fs::remove_file(&path));
            made
        };
        open.push((file, content));
        if open.len() > 6 {
            let (file, content) = open.swap_remove(l.rng.usize(..open.len()));
            let mut found = vec![0; content.len() + 1];
            let len = l.call("read", || file.read_at(&mut found, 0));
            assert!(found[..len] == content, "a file without a name");
            if l.rng.bool() {
                let name = c_string(&path);
                let old = c_string(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())));
                let linked = l.call("fstat", || file.metadata()).nlink() == 0
                    && n.is_multiple_of(3)
                    // SAFETY: NUL-terminated strings that outlive the call.
                    && unsafe {
                        libc::linkat(libc::AT_FDCWD, old.as_ptr(), libc::AT_FDCWD, name.as_ptr(), libc::AT_SYMLINK_FOLLOW)
                    } == 0;
                if linked {
                    assert!(l.call("read", || fs::read(&path)) == content);
                    l.call("unlink", || fs::remove_file(&path));
                }
            }
        }
        n += 1;
    }
}

/// A directory is listed in many steps, each name once; and extended attributes are made that must not be there yet.
fn lists(l: &mut Load<'_>) {
    for n in 0..1500 {
        l.call("create", || File::create(l.dir.join(format!("a rather long name so that few fit a request {n}"))));
    }
    let path = c_string(&l.dir);
    let (name, value) = (c"user.x", b"value");
    while l.goes_on() {
        let mut seen = std::collections::HashSet::new();
        for entry in l.call("opendir", || fs::read_dir(&l.dir)) {
            assert!(seen.insert(l.call("readdir", || entry).file_name()), "a name twice");
            if seen.len().is_multiple_of(200) {
                thread::sleep(Duration::from_millis(2));
            }
        }
        assert_eq!(seen.len(), 1500);
        l.call("setxattr", || {
            // SAFETY: NUL-terminated strings and a buffer of that length.
            let rc =
                unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), 5, libc::XATTR_CREATE) };
            if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
        });
        l.call("removexattr", || {
            // SAFETY: NUL-terminated strings.
            let rc = unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) };
            if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
        });
    }
}

/// Two hold a lock in turn around a count that both change: flock the one pair, OFD locks the other.
fn locks(l: &mut Load<'_>) {
    let this: &Load<'_> = l;
    let totals = [AtomicU64::new(0), AtomicU64::new(0)];
    let paths = ["flock", "ofd"].map(|name| this.dir.join(name));
    paths.iter().for_each(|path| this.call("create", || fs::write(path, 0u64.to_be_bytes())));
    thread::scope(|scope| {
        for pair in [0, 1, 0, 1] {
            let (path, total) = (&paths[pair], &totals[pair]);
            scope.spawn(move || {
                let file = this.call("open", || OpenOptions::new().read(true).write(true).open(path));
                while this.goes_on() {
                    // (To wait for a lock takes as long as the other has it.)
                    lock(&file, pair == 0, true).unwrap();
                    let mut count = [0; 8];
                    this.call("read", || file.read_exact_at(&mut count, 0));
                    let count = u64::from_be_bytes(count) + 1;
                    this.call("write", || file.write_all_at(&count.to_be_bytes(), 0));
                    assert_eq!(total.fetch_add(1, Ordering::SeqCst) + 1, count, "somebody else had the lock too");
                    lock(&file, pair == 0, false).unwrap();
                }
            });
        }
    });
}

fn lock(file: &File, whole: bool, on: bool) -> io::Result<()> {
    // SAFETY: plain system calls; flock is plain data.
    let rc = unsafe {
        if whole {
            libc::flock(file.as_raw_fd(), if on { libc::LOCK_EX } else { libc::LOCK_UN })
        } else {
            let mut range: libc::flock = std::mem::zeroed();
            (range.l_type, range.l_whence) =
                (if on { libc::F_WRLCK } else { libc::F_UNLCK } as i16, libc::SEEK_SET as i16);
            (range.l_start, range.l_len) = (4, 2);
            libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLKW, &raw const range)
        }
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Two processes hold a classic (POSIX) lock in turn around a count that both change.
fn process_locks(l: &mut Load<'_>) {
    const SCRIPT: &str = "
import fcntl, os, sys
path, stop = sys.argv[1:]
fd = os.open(path, os.O_RDWR)
rounds = 0
while not os.path.exists(stop):
    fcntl.lockf(fd, fcntl.LOCK_EX, 8, 0)
    count = int.from_bytes(os.pread(fd, 8, 0), 'big')
    os.pwrite(fd, (count + 1).to_bytes(8, 'big'), 0)
    fcntl.lockf(fd, fcntl.LOCK_UN, 8, 0)
    rounds += 1
print(rounds)
";
    if !has("python3") {
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    let (path, stop) = (l.dir.join("count"), outside.path().join("stop"));
    l.call("create", || fs::write(&path, 0u64.to_be_bytes()));
    let start = || {
        let mut command = std::process::Command::new("python3");
        command.args(["-c", SCRIPT]).arg(&path).arg(&stop).stdout(std::process::Stdio::piped()).spawn().unwrap()
    };
    let children = [start(), start()];
    while l.goes_on() {
        thread::sleep(Duration::from_millis(20));
    }
    fs::write(&stop, "").unwrap();
    let rounds = children.map(|child| {
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{out:?}");
        String::from_utf8(out.stdout).unwrap().trim().parse::<u64>().unwrap()
    });
    let count = u64::from_be_bytes(l.call("read", || fs::read(&path)).try_into().unwrap());
    assert_eq!(count, rounds.iter().sum::<u64>(), "both had the lock at once");
    l.calls.fetch_add(count * 4, Ordering::Relaxed);
}

/// Files of the past stay open and go on showing the same, by whatever way they were reached.
fn past(l: &mut Load<'_>) {
    let path = l.dir.join("f");
    l.call("write", || fs::write(&path, "then"));
    thread::sleep(Duration::from_millis(50));
    let then = format!("@@{}", jiff_now());
    thread::sleep(Duration::from_millis(50));
    l.call("write", || fs::write(&path, "now"));
    let mut open = Vec::new();
    while l.goes_on() {
        let file = l.call("open", || File::open(l.dir.join(format!("f{then}"))));
        open.push(file);
        open.push(l.call("open", || File::open(l.dir.join(&then).join("f"))));
        if open.len() > 8 {
            open.drain(..3);
        }
        for file in &open {
            let mut text = String::new();
            let mut buf = [0; 16];
            let n = l.call("read", || file.read_at(&mut buf, 0));
            (&buf[..n]).read_to_string(&mut text).unwrap();
            assert_eq!(text, "then");
            // SAFETY: a plain system call: nothing of it stays cached.
            unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        }
        assert_eq!(l.call("read", || fs::read(&path)), b"now");
    }
}

/// The moment, as a name takes it.
fn jiff_now() -> String {
    let out = std::process::Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%S.%NZ"]).output().unwrap();
    String::from_utf8(out.stdout).unwrap().trim().into()
}

#[test]
fn killed_again_and_again_under_every_kind_of_work_nobody_sees_more_than_a_pause() {
    let kinds: [(&str, &[&str], u32); 3] = [("2", &[], 30), ("4", &[], 20), ("4", &["-o", "writeback"], 20)];
    for (threads, options, kills) in kinds {
        let Some(w) = World::unmounted() else { return };
        if !options.is_empty() {
            w.darner(&["create", "--image", "--size", "3G", w.store.to_str().unwrap()]);
        }
        let options = [&["--create", "--threads", threads], options].concat();
        w.mount_at("mnt", &options).unwrap();
        let kills = if long() { 500 } else { kills };
        let (stop, calls, slowest) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        let works: [(&str, Work); 8] = [
            ("names", names),
            ("appends", appends),
            ("bytes", bytes),
            ("nameless", nameless),
            ("lists", lists),
            ("locks", locks),
            ("process locks", process_locks),
            ("past", past),
        ];
        let failed = Arc::new(Mutex::new(Vec::new()));
        let done = AtomicU32::new(0);
        thread::scope(|scope| {
            for (n, (name, work)) in works.iter().enumerate() {
                let dir = w.path(name);
                fs::create_dir(&dir).unwrap();
                let rng = fastrand::Rng::with_seed(n as u64);
                let mut load = Load { dir, rng, stop: &stop, calls: &calls, slowest: &slowest };
                let failed = failed.clone();
                scope.spawn(move || {
                    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&mut load)));
                    if outcome.is_err() {
                        failed.lock().unwrap().push(*name);
                        load.stop.store(true, Ordering::SeqCst);
                    }
                });
            }
            thread::sleep(Duration::from_millis(300));
            // (The others end if this fails, too.)
            let _end = StopOnDrop(&stop);
            kill_again_and_again(&w, 7, kills, &stop, &done);
        });
        assert!(failed.lock().unwrap().is_empty(), "{:?}", failed.lock().unwrap());
        let done = done.into_inner();
        assert_eq!(done, kills);
        let s = w.status();
        println!(
            "{options:?}: {done} kills, {} system calls, slowest {} ms; longest pause {} ms; {} answered again",
            calls.load(Ordering::Relaxed),
            slowest.load(Ordering::Relaxed) / 1000,
            s["longest_pause_ms"],
            w.log().matches("answers what was done before").count(),
        );
        // What had no name and was open is gone, all of it.
        let counts = u64::from(has("python3"));
        let names = 8 + 1 + 1 + 1500 + 2 + counts + 1;
        eventually("files without a name go in the end", || w.objects() == names + 1);
        w.unmount();
        assert_eq!(w.darner(&["check", w.store.to_str().unwrap()]).lines().count(), 1);
    }
}

#[test]
fn programs_run_on_while_the_daemon_is_killed_again_and_again() {
    let (threads, least): (&[&str], u32) = if long() { (&["1", "2"], 500) } else { (&["1"], 10) };
    for threads in threads {
        let Some(w) = World::unmounted() else { return };
        w.mount_at("mnt", &["--create", "--threads", threads]).unwrap();
        let (done, kills) = (AtomicBool::new(false), AtomicU32::new(0));
        let (mut rounds, start) = (0, Instant::now());
        thread::scope(|scope| {
            scope.spawn(|| kill_again_and_again(&w, 11, u32::MAX, &done, &kills));
            let stop = StopOnDrop(&done);
            while rounds == 0 || kills.load(Ordering::SeqCst) < least {
                run_programs(&w, rounds);
                rounds += 1;
            }
            drop(stop);
        });
        println!(
            "{threads} threads: {} kills in {:?} under {rounds} rounds of programs, none of which failed; longest pause {} ms; {} answered again",
            kills.load(Ordering::SeqCst),
            start.elapsed(),
            w.status()["longest_pause_ms"],
            w.log().matches("answers what was done before").count(),
        );
        assert!(kills.into_inner() >= least);
        w.unmount();
        assert_eq!(w.darner(&["check", w.store.to_str().unwrap()]).lines().count(), 1);
    }
}

/// Programs that check themselves what they get, in a new directory.
fn run_programs(w: &World, round: u32) {
    let sh = |script: &str| w.sh(&format!("mkdir -p round{round}; cd round{round}; {script}"));
    if has("sqlite3") {
        sh("sqlite3 t.db 'pragma journal_mode=wal; create table t(a integer primary key, b text);' > /dev/null
            for p in 1 2; do (for i in $(seq 60); do
                sqlite3 -cmd '.timeout 60000' t.db \"begin immediate; insert into t(b) values (hex(randomblob(500))); insert into t(b) values('$p $i'); commit\"
            done) & done; wait
            test $(sqlite3 t.db 'select count(*) from t') = 240
            sqlite3 t.db 'pragma integrity_check' | grep -qx ok");
    }
    if has("git") {
        sh("export GIT_CONFIG_NOSYSTEM=1 HOME=$DIR; git config --global user.email a@b; git config --global user.name a
            mkdir origin; cd origin; git init -q .
            for i in $(seq 300); do mkdir -p d$((i % 17)); seq $i $((i * 7)) > d$((i % 17))/f$i; done
            git add -A; git commit -qm all; cd ..
            for i in 1 2 3; do git clone -q --no-hardlinks origin clone$i; (cd clone$i; git fsck --full --strict 2> /dev/null; test -z \"$(git status --porcelain)\"); done
            diff -r --exclude=.git origin clone2");
    }
    if has("pjdfstest") && Path::new("/etc/passwd").exists() && w.try_sh("id tests").status.success() {
        sh("printf '[features]\\nposix_fallocate = {}\\nrename_ctime = {}\\nutime_now = {}\\nutimensat = {}\\nstat_st_birthtime = {}\\n' > $DIR/pjd.toml
            printf '[settings]\\nnaptime = 0.01\\nallow_remount = false\\n[dummy_auth]\\n' >> $DIR/pjd.toml
            printf 'entries = [[\"nobody\", \"%s\"], [\"tests\", \"tests\"]]\\n' $(id -gn nobody) >> $DIR/pjd.toml
            chmod 755 . ..; mkdir pjd; for i in 1 2; do
                pjdfstest -c $DIR/pjd.toml -p pjd -s /dev/shm > $DIR/pjd.out 2>&1 || { grep -A3 FAILED $DIR/pjd.out; tail -3 $DIR/pjd.out; exit 1; }
            done; grep Summary $DIR/pjd.out");
    }
    if has("fsx") {
        let operations = if long() { 20_000 } else { 6_000 };
        sh(&format!(
            "for s in 1 2 3; do fsx -S $s -N {operations} -P $DIR fsx$s > $DIR/fsx.out 2>&1 || {{ tail -50 $DIR/fsx.out; exit 1; }}; done"
        ));
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Appends to and reads files until told to stop; returns how many system calls that were.
fn light_load(dir: &Path, stop: &AtomicBool) -> u64 {
    let (calls, slowest) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for (n, work) in [names as Work, appends, nameless].into_iter().enumerate() {
            let dir = dir.join(format!("light{n}"));
            fs::create_dir_all(&dir).unwrap();
            let rng = fastrand::Rng::with_seed(n as u64);
            let mut load = Load { dir, rng, stop, calls: &calls, slowest: &slowest };
            scope.spawn(move || {
                let _stop = StopOnDrop(load.stop);
                work(&mut load);
            });
        }
    });
    calls.into_inner()
}

#[test]
fn the_supervisor_may_be_killed_too_and_then_the_daemon() {
    let Some(w) = World::new() else { return };
    let stop = AtomicBool::new(false);
    let restarts = thread::scope(|scope| {
        let load = scope.spawn(|| light_load(&w.mnt, &stop));
        let end = StopOnDrop(&stop);
        let rounds = if long() { 100 } else { 6 };
        for round in 0..rounds {
            let (daemon, supervisor) = (w.daemon_pid(), w.supervisor_pid());
            kill(supervisor);
            eventually("another supervisor comes", || w.supervisor_pid() != supervisor);
            assert_eq!(w.daemon_pid(), daemon, "the daemon goes on");
            // (The new one is told of everything first.)
            thread::sleep(Duration::from_millis(100));
            kill(daemon);
            eventually("another daemon comes", || w.daemon_pid() != daemon);
            assert_eq!(w.status()["restarts"], round + 1, "the count goes on");
        }
        drop(end);
        assert!(load.join().unwrap() > 1000);
        rounds
    });
    assert_eq!(w.status()["restarts"], restarts);
    let (daemon, supervisor) = (w.daemon_pid(), w.supervisor_pid());
    w.unmount();
    let gone = |pid: i32| !Path::new(&format!("/proc/{pid}/exe")).exists();
    eventually("both end with the mount", || gone(daemon) && gone(supervisor));
}

#[test]
fn the_daemon_is_replaced_by_another_program_under_load() {
    let Some(w) = World::new() else { return };
    let other = w.dir.join("darner-new");
    fs::copy(common::DARNER, &other).unwrap();
    let stop = AtomicBool::new(false);
    let runs = |program: &Path| fs::read_link(format!("/proc/{}/exe", w.daemon_pid())).unwrap() == program;
    thread::scope(|scope| {
        let load = scope.spawn(|| light_load(&w.mnt, &stop));
        let end = StopOnDrop(&stop);
        let mnt = w.mnt.to_str().unwrap();
        for _ in 0..if long() { 50 } else { 3 } {
            let said = w.darner(&["upgrade", mnt, "--program", other.to_str().unwrap()]);
            assert!(runs(&other) && said.trim_end().ends_with(other.to_str().unwrap()), "{said}");
            w.darner(&["upgrade", mnt]);
            assert!(runs(Path::new(common::DARNER)));
        }
        // One that can't even start: the one before goes on.
        let said = fails_to_upgrade(&w, &script(&w, "bad", "exit 3"));
        assert!(said.contains("exit status: 3"), "{said}");
        assert!(runs(Path::new(common::DARNER)));
        drop(end);
        assert!(load.join().unwrap() > 1000);
    });
    w.unmount();
}

/// A program in a file of its own.
fn script(w: &World, name: &str, text: &str) -> PathBuf {
    let path = w.dir.join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    path
}

/// `darner upgrade` to a program that is none; returns what it said of that.
#[track_caller]
fn fails_to_upgrade(w: &World, program: &Path) -> String {
    let before = w.daemon_pid();
    let mut command = std::process::Command::new(common::DARNER);
    let out = command.arg("upgrade").arg(&w.mnt).arg("--program").arg(program).output().unwrap();
    let said = String::from_utf8(out.stderr).unwrap();
    assert_eq!((out.status.code(), out.stdout.len()), (Some(1), 0), "{said}");
    let now = w.daemon_pid();
    assert_ne!(now, before);
    let serves = format!("{} serves again (process {now},", common::DARNER);
    assert!(said.contains(program.to_str().unwrap()) && said.contains(&serves), "{said}");
    said
}

#[test]
fn an_upgrade_to_what_does_not_come_to_serve_says_so_and_why() {
    let Some(w) = World::new() else { return };
    let cut = w.dir.join("cut");
    fs::write(&cut, &fs::read(common::DARNER).unwrap()[..4096]).unwrap();
    let said = fails_to_upgrade(&w, &cut);
    assert!(said.contains("can't start"), "not executable: {said}");
    fs::set_permissions(&cut, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fails_to_upgrade(&w, &cut);
    for (name, says) in [("true", "exit status: 0"), ("false", "exit status: 1")] {
        let said = fails_to_upgrade(&w, &Path::new("/bin").join(name));
        assert!(said.contains(says), "{said}");
    }
    // One that runs, but says nothing, is killed with what it started.
    let pids = w.dir.join("pids");
    let sleeper = script(&w, "sleeper", &format!("sleep 1000 & echo $$ $! > {}; wait", pids.display()));
    thread::scope(|scope| {
        let asked = scope.spawn(|| {
            eventually("it runs", || fs::read_to_string(&pids).is_ok_and(|pids| pids.ends_with('\n')));
            // Who asks meanwhile waits, and is answered.
            fs::create_dir(w.path("meanwhile")).unwrap();
            w.darner(&["status", w.mnt.to_str().unwrap()])
        });
        let said = fails_to_upgrade(&w, &sleeper);
        assert!(said.contains("said nothing for"), "{said}");
        asked.join().unwrap();
    });
    for pid in fs::read_to_string(&pids).unwrap().split_whitespace() {
        eventually("nothing of it is left", || {
            fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().is_empty()
        });
    }
    // An upgrade that succeeds is not told of those before.
    let said = w.darner(&["upgrade", w.mnt.to_str().unwrap()]);
    assert!(said.trim_end().ends_with(common::DARNER), "{said}");
    w.unmount();
    w.forgive_errors();
}

#[test]
fn an_upgrade_to_what_asks_for_what_is_kept_and_then_stands_still_is_taken_back() {
    let Some(w) = World::new() else { return };
    if !Path::new("/usr/bin/python3").exists() {
        return eprintln!("SKIPPED: needs /usr/bin/python3");
    }
    let hangs = "import os, socket, time\nsocket.socket(fileno=int(os.environ['DARNER_KEEPER_FD'])).send(b'\"list\"')";
    let program =
        script(&w, "hangs", &format!("exec /usr/bin/python3 -c \"$(cat <<'E'\n{hangs}\ntime.sleep(1000)\nE\n)\""));
    let said = fails_to_upgrade(&w, &program);
    assert!(said.contains("stood still for 10 seconds"), "{said}");
    // One that takes longer, but runs, may.
    if !long() {
        return w.forgive_errors();
    }
    let slow = format!("{hangs}\nfor n in range(130):\n    time.sleep(.1)");
    let program = script(&w, "slow", &format!("exec /usr/bin/python3 -c \"$(cat <<'E'\n{slow}\nE\n)\""));
    let said = fails_to_upgrade(&w, &program);
    assert!(said.contains("exit status: 0"), "{said}");
    w.unmount();
    w.forgive_errors();
}

#[test]
fn the_longest_pause_counts_the_last_one_whole_with_starts_that_failed() {
    let Some(w) = World::new() else { return };
    let own = w.dir.join("darner-own");
    fs::copy(common::DARNER, &own).unwrap();
    w.darner(&["upgrade", w.mnt.to_str().unwrap(), "--program", own.to_str().unwrap()]);
    let pause = || w.status()["longest_pause_ms"].as_u64().unwrap();
    let before = pause();
    assert!(before > 0, "that of the upgrade, which has just ended");
    // Long enough for two starts to fail.
    let away = Duration::from_millis(before + 500);
    let whole = w.dir.join("darner-whole");
    fs::rename(&own, &whole).unwrap();
    fs::write(&own, "#!/bin/sh\nexit 3\n").unwrap();
    fs::set_permissions(&own, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let start = Instant::now();
    kill(w.daemon_pid());
    thread::sleep(away);
    fs::rename(&whole, &own).unwrap();
    fs::create_dir(w.path("new")).unwrap();
    let (pause, took) = (pause(), start.elapsed().as_millis() as u64);
    // (It begins when the supervisor sees the end, a little later.)
    assert!(pause > before + 200 && pause <= took, "{pause} ms, of {away:?} to {took} ms");
    w.unmount();
    w.forgive_errors();
}

#[test]
fn a_daemon_whose_program_is_gone_is_followed_by_one_of_what_its_supervisor_runs_and_either_may_be_killed() {
    let Some(w) = World::unmounted() else { return };
    let own = w.dir.join("darner-own");
    fs::copy(common::DARNER, &own).unwrap();
    fs::create_dir(&w.mnt).unwrap();
    let mount = |program: &Path| {
        let out = std::process::Command::new(program).args(["mount", "--create"]).arg(&w.store).arg(&w.mnt).output();
        assert!(out.is_ok_and(|out| out.status.success()));
    };
    mount(&own);
    fs::write(w.path("file"), "text").unwrap();
    fs::remove_file(&own).unwrap();
    for round in 1..=3 {
        let (daemon, supervisor) = (w.daemon_pid(), w.supervisor_pid());
        kill(daemon);
        eventually("another daemon comes", || w.daemon_pid() != daemon);
        fs::create_dir(w.path(&format!("round {round}"))).unwrap();
        thread::sleep(Duration::from_millis(100));
        kill(supervisor);
        eventually("another supervisor comes", || w.supervisor_pid() != supervisor);
        thread::sleep(Duration::from_millis(100));
    }
    // What comes to be there is started the next time.
    fs::copy(common::DARNER, &own).unwrap();
    let daemon = w.daemon_pid();
    kill(daemon);
    eventually("another daemon comes", || w.daemon_pid() != daemon);
    assert_eq!(fs::read(w.path("file")).unwrap(), b"text");
    let runs = || fs::read_link(format!("/proc/{}/exe", w.daemon_pid())).unwrap();
    eventually("it runs what is there", || runs() == own);
}

#[test]
fn a_daemon_that_crashes_at_every_start_is_given_up_and_can_be_taken_up_again() {
    let Some(w) = World::new() else { return };
    let own = w.dir.join("darner-own");
    fs::copy(common::DARNER, &own).unwrap();
    w.darner(&["upgrade", w.mnt.to_str().unwrap(), "--program", own.to_str().unwrap()]);
    let open = OpenOptions::new().read(true).write(true).create_new(true).open(w.path("open")).unwrap();
    open.write_all_at(b"before", 0).unwrap();
    fs::remove_file(w.path("open")).unwrap();
    let whole = w.dir.join("darner-whole");
    fs::rename(&own, &whole).unwrap();
    fs::write(&own, "#!/bin/sh\nexit 3\n").unwrap();
    fs::set_permissions(&own, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    kill(w.daemon_pid());
    // Whoever waits is told in the end, and nobody waits after that.
    let start = Instant::now();
    let said = fs::create_dir(w.path("new")).unwrap_err();
    assert_eq!(said.raw_os_error(), Some(libc::EIO));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    let start = Instant::now();
    assert_eq!(open.write_all_at(b"x", 0).unwrap_err().raw_os_error(), Some(libc::EIO));
    assert!(start.elapsed() < Duration::from_secs(1));
    let out = std::process::Command::new(common::DARNER).arg("status").arg(&w.store).output().unwrap();
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    let names = [format!("the daemon of {} ", w.mnt.display()), format!("`darner upgrade {}`", w.mnt.display())];
    assert!(!out.status.success() && text.contains("given up") && names.iter().all(|n| text.contains(n)), "{text}");
    assert!(w.log().contains("given up"));
    // Nobody else gets hold of the store meanwhile.
    let out = std::process::Command::new(common::DARNER).args(["check"]).arg(&w.store).output().unwrap();
    assert!(!out.status.success(), "{out:?}");
    w.darner(&["upgrade", w.mnt.to_str().unwrap(), "--program", whole.to_str().unwrap()]);
    let mut found = [0; 6];
    open.read_exact_at(&mut found, 0).unwrap();
    assert_eq!(&found, b"before");
    fs::create_dir(w.path("new")).unwrap();
    // Given up once more, it is taken away like any. (Of what was not synced that may cost the last moment.)
    File::open(w.path("new")).unwrap().sync_all().unwrap();
    drop(open);
    fs::remove_file(&whole).unwrap();
    fs::copy(&own, &whole).unwrap();
    let (daemon, supervisor) = (w.daemon_pid(), w.supervisor_pid());
    kill(daemon);
    assert_eq!(fs::create_dir(w.path("again")).unwrap_err().raw_os_error(), Some(libc::EIO));
    w.unmount();
    eventually("the supervisor ends", || !Path::new(&format!("/proc/{supervisor}/exe")).exists());
    w.mount();
    assert!(w.path("new").is_dir() && !w.path("again").exists());
    w.unmount();
    w.forgive_errors();
}

/// A process in systemd's place: it starts the service, keeps what that stores, and passes it to the next one.
struct FakeSystemd {
    socket: std::os::unix::net::UnixDatagram,
    path: PathBuf,
    stored: Vec<(String, std::os::fd::OwnedFd)>,
}

impl FakeSystemd {
    fn new(dir: &Path) -> FakeSystemd {
        let path = dir.join("notify");
        let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        FakeSystemd { socket, path, stored: Vec::new() }
    }

    fn start(&mut self, w: &World) -> std::process::Child {
        use std::os::unix::process::CommandExt;
        let names: Vec<&str> = self.stored.iter().map(|(name, _)| name.as_str()).collect();
        let log = w.dir.join("daemon.log");
        let mut command = std::process::Command::new("sh");
        command.args([
            "-c",
            "export LISTEN_PID=$$; exec \"$@\"",
            "sh",
            common::DARNER,
            "mount",
            "--create",
            "--foreground",
        ]);
        command.arg("--log").arg(log).arg(&w.store).arg(&w.mnt).env("NOTIFY_SOCKET", &self.path);
        command.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        let fds: Vec<i32> = self.stored.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
        // SAFETY: only system calls between fork and exec. (The numbers that are passed are above those in use.)
        unsafe {
            command.pre_exec(move || {
                let high: Vec<i32> = fds.iter().map(|fd| libc::fcntl(*fd, libc::F_DUPFD, 500)).collect();
                high.iter().enumerate().for_each(|(n, fd)| assert!(libc::dup2(*fd, 3 + n as i32) >= 0));
                high.iter().for_each(|fd| assert_eq!(libc::close(*fd), 0));
                Ok(())
            });
        }
        command.spawn().unwrap()
    }

    /// Heeds what the service says until it is ready.
    fn until_ready(&mut self) {
        loop {
            let (text, fd) = self.receive();
            let name = text.lines().find_map(|l| l.strip_prefix("FDNAME=")).unwrap_or_default().to_string();
            match (text.lines().next().unwrap(), fd) {
                ("FDSTORE=1", Some(fd)) => self.stored.push((name, fd)),
                ("FDSTOREREMOVE=1", None) => self.stored.retain(|(n, _)| *n != name),
                ("READY=1", None) => return,
                other => panic!("{other:?}"),
            }
        }
    }

    fn receive(&self) -> (String, Option<std::os::fd::OwnedFd>) {
        use std::os::fd::FromRawFd;
        let mut bytes = [0u8; 4096];
        let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        let mut control = [0u64; 8];
        // SAFETY: plain data, pointers to locals with their lengths; a descriptor that comes along is ours.
        unsafe {
            let mut message: libc::msghdr = std::mem::zeroed();
            (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
            (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), size_of_val(&control));
            let n = libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC);
            assert!(n > 0, "{}", io::Error::last_os_error());
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            let fd = (!header.is_null())
                .then(|| std::os::fd::OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<i32>().read_unaligned()));
            (String::from_utf8_lossy(&bytes[..n as usize]).into_owned(), fd)
        }
    }
}

#[test]
fn with_systemds_descriptor_store_supervisor_and_daemon_may_be_killed_at_once() {
    let Some(w) = World::unmounted() else { return };
    fs::create_dir(&w.mnt).unwrap();
    let mut systemd = FakeSystemd::new(&w.dir);
    let mut service = systemd.start(&w);
    systemd.until_ready();
    for round in 0..3 {
        let open = OpenOptions::new().read(true).write(true).create_new(true).open(w.path("open")).unwrap();
        open.write_all_at(format!("round {round}").as_bytes(), 0).unwrap();
        fs::remove_file(w.path("open")).unwrap();
        fs::create_dir(w.path(&format!("d{round}"))).unwrap();
        w.kill_all();
        service.wait().unwrap();
        service = systemd.start(&w);
        systemd.until_ready();
        let mut found = [0; 7];
        open.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(found, *format!("round {round}").as_bytes());
        assert!(w.path(&format!("d{round}")).is_dir(), "what was not written yet");
    }
    // Stopped as a service is, it unmounts.
    // SAFETY: a plain system call.
    unsafe { libc::kill(service.id() as i32, libc::SIGTERM) };
    assert!(service.wait().unwrap().success());
    eventually("nothing is mounted", || fs::read_dir(&w.mnt).is_ok_and(|mut d| d.next().is_none()));
}
