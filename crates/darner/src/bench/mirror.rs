//! What a mirror costs: a pull after ten files of many have changed, beside backup programs and `btrfs send`; how far behind
//! it is under a load of small writes; and a first copy beside `cp`.
//!
//! Before each pull the source is cleaned and mounted anew, so that its daemon has nothing of the index in memory; the peers'
//! trees and caches stay warm. The mirror is mounted and paused; a pull is timed from the start of `darner mirror sync --wait` to its
//! end: that process is in it. `btrfs send` goes to a file, without a receiver, and once with its snapshot (and the sync that this needs), once without;
//! beside that stands `darner mirror export`, which does the same. And once more it goes to `btrfs receive`, with the sync that makes it durable, which
//! is what a pull does.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::btrfs::Btrfs;
use super::darner::Darner;
use super::data;
use super::report::median;
use super::shell;
use super::stage::{self, go_on, note};
use super::system::{Room, System, unmount};
use crate::error::{Context, Failure, Result};

const FILE_BYTES: usize = 1000;
const PER_DIR: u64 = 1000;
/// With so many files, those that look at each take minutes: they take part in the first round only.
const MANY: u64 = 1_000_000;
/// Files that change before a pull.
const CHANGED: u64 = 10;
/// How often the writer writes, and the reader reads, where lag is measured.
const WRITES_EVERY: Duration = Duration::from_millis(10);
const READS_EVERY: Duration = Duration::from_millis(20);

/// How much.
pub struct Options {
    /// A hundredth, to see that it works.
    pub quick: bool,
    /// How often.
    pub rounds: u64,
    /// Mount options for darner, joined by `+`.
    pub mount_options: String,
}

/// A store that follows, and what is mounted of it; dropping it ends its daemon.
struct Copy {
    program: PathBuf,
    store: PathBuf,
    mnt: Option<PathBuf>,
}

impl Copy {
    fn command(&self, args: &[&str], of: &Path) -> Result<String> {
        shell::run(&self.program, args.iter().map(OsStr::new).chain([of.as_os_str()]))
    }

    fn mount(&mut self, room: &Room) -> Result<()> {
        let mnt = room.dir("copy")?;
        shell::run(&self.program, ["mount".as_ref(), self.store.as_os_str(), mnt.as_os_str()])?;
        self.mnt = Some(mnt);
        Ok(())
    }

    /// Bytes that were sent, how long the last pull took, and the moment that it shows.
    fn state(&self) -> Result<(f64, f64, String)> {
        let lines: Value = serde_json::from_str(&self.command(&["mirror", "list", "--json"], &self.store)?)?;
        let own = lines.as_array().and_then(|lines| lines.iter().find(|line| line["name"] == ""));
        let state = own.and_then(|line| {
            let numbers = (line["received_bytes"].as_f64()?, line["pull_seconds"].as_f64()?);
            Some((numbers.0, numbers.1, line["at_tid"].as_str()?.to_owned()))
        });
        state.ok_or_else(|| Failure::new("mirror list tells no bytes, no time, or no moment"))
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if let Some(mnt) = &self.mnt
            && let Err(e) = self.command(&["unmount"], mnt)
        {
            eprintln!("darner: {e}");
            unmount(mnt);
        }
        if let Err(e) = self.command(&["mirror", "pause"], &self.store) {
            eprintln!("darner: {e}");
        }
        let _ = fs::remove_dir_all(&self.store);
    }
}

fn program() -> Result<PathBuf> {
    std::env::current_exe().cant(|| "find this program".into())
}

/// Gives a store a mirror beside it.
fn add(source: &Darner, room: &Room, name: &str) -> Result<Copy> {
    let copy = Copy { program: program()?, store: room.path().join(name), mnt: None };
    let (dir, store) = (source.dir().as_os_str(), copy.store.as_os_str());
    source.command(&["mirror".as_ref(), "add".as_ref(), dir, name.as_ref(), store])?;
    Ok(copy)
}

/// One that is pulled from.
struct Pulled {
    seconds: f64,
    /// Of a stream of the same changes to a file.
    exported: f64,
    /// Without the two processes.
    itself: f64,
    read: f64,
    received: f64,
}

/// Backup programs that take the same tree.
struct Peers {
    tree: PathBuf,
    restic: Option<PathBuf>,
    borg: Option<PathBuf>,
    repositories: PathBuf,
    btrfs: Option<Sender>,
}

/// A Btrfs with the tree in a subvolume, and a snapshot of it.
struct Sender {
    btrfs: Btrfs,
    program: PathBuf,
    stream: PathBuf,
    /// The newest snapshot.
    last: u64,
}

impl Sender {
    fn set_up(room: &Room, files: u64) -> Result<Sender> {
        let program = shell::need("btrfs", "btrfs-progs")?;
        let bytes = (1 << 30) + files * 7_000;
        let sender =
            Sender { program, btrfs: Btrfs::set_up(room, bytes)?, stream: room.path().join("stream"), last: 0 };
        sender.run(&["subvolume".as_ref(), "create".as_ref(), sender.live().as_os_str()])?;
        make_tree(&sender.live(), files)?;
        sender.snapshot(0)?;
        let (from, to) = (sender.at(0), sender.received());
        fs::create_dir(&to)?;
        sender.send_to(&to, &[from.as_os_str()])?;
        Ok(sender)
    }

    /// Where what is sent is received.
    fn received(&self) -> PathBuf {
        self.btrfs.dir().join("received")
    }

    /// Sends to somebody who receives there.
    fn send_to(&self, to: &Path, args: &[&OsStr]) -> Result<()> {
        let script = r#"to="$1"; shift; "$0" -q send "$@" | "$0" -q receive "$to" && "$0" filesystem sync "$to""#;
        let head = ["-c".as_ref(), script.as_ref(), self.program.as_os_str(), to.as_os_str()];
        shell::run("sh", head.into_iter().chain(args.iter().copied())).map(drop)
    }

    fn live(&self) -> PathBuf {
        self.btrfs.dir().join("live")
    }

    fn at(&self, n: u64) -> PathBuf {
        self.btrfs.dir().join(format!("snapshot-{n}"))
    }

    fn run(&self, args: &[&OsStr]) -> Result<String> {
        shell::run(&self.program, args)
    }

    fn snapshot(&self, n: u64) -> Result<()> {
        let (from, to) = (self.live(), self.at(n));
        self.run(&["subvolume".as_ref(), "snapshot".as_ref(), "-r".as_ref(), from.as_os_str(), to.as_os_str()])?;
        Ok(stage::write_out(self.btrfs.dir())?)
    }

    /// Seconds that sending took, the snapshot for it, and sending with somebody who receives.
    fn send(&mut self) -> Result<[f64; 3]> {
        let (old, new) = (self.at(self.last), self.at(self.last + 1));
        let snapshot = from_idle(|| self.snapshot(self.last + 1))?;
        self.last += 1;
        let (old, new, out) = (old.as_os_str(), new.as_os_str(), self.stream.as_os_str());
        let args = ["-q".as_ref(), "send".as_ref(), "-p".as_ref(), old, "-f".as_ref(), out, new];
        let seconds = from_idle(|| self.run(&args))?;
        let received = from_idle(|| self.send_to(&self.received(), &["-p".as_ref(), old, new]))?;
        self.run(&["-q".as_ref(), "subvolume".as_ref(), "delete".as_ref(), old])?;
        fs::remove_file(&self.stream)?;
        Ok([seconds, snapshot, received])
    }
}

fn path(root: &Path, n: u64) -> PathBuf {
    root.join(format!("d{:05}/f{n:08}", n / PER_DIR))
}

fn make_tree(root: &Path, files: u64) -> Result<()> {
    let mut content = [0; FILE_BYTES];
    data::text(files, &mut content);
    for n in 0..files {
        let path = path(root, n);
        if n % PER_DIR == 0 {
            fs::create_dir(path.parent().expect("it has one"))?;
        }
        content[..8].copy_from_slice(&n.to_le_bytes());
        fs::write(path, content)?;
        go_on()?;
    }
    Ok(stage::write_out(root)?)
}

/// Overwrites files from all over the tree, other ones in each round.
fn change(root: &Path, files: u64, round: u64) -> Result<()> {
    let mut content = [0; FILE_BYTES];
    data::text(round + 1, &mut content);
    for i in 0..CHANGED {
        fs::write(path(root, (i * (files / CHANGED) + round) % files), content)?;
    }
    Ok(stage::write_out(root)?)
}

impl Peers {
    fn set_up(room: &Room, files: u64, skipped: &mut Vec<String>) -> Result<Peers> {
        let tree = room.dir("tree")?;
        let repositories = room.dir("repositories")?;
        let mut have = |program: &str| {
            let found = shell::find(program);
            if found.is_none() {
                skipped.push(format!("{program} is not installed"));
            }
            found
        };
        let (restic, borg) = (have("restic"), have("borg"));
        let mut peers = Peers { tree, restic, borg, repositories, btrfs: None };
        match Sender::set_up(room, files) {
            Ok(sender) => peers.btrfs = Some(sender),
            Err(e) if stage::interrupted() => return Err(e),
            Err(e) => skipped.push(format!("btrfs: {e}")),
        }
        make_tree(&peers.tree, files)?;
        peers.restic(&["init"])?;
        peers.borg(&["init", "--encryption=none"], None)?;
        note(&format!("first backups of {files} files"));
        peers.backup_restic()?;
        peers.backup_borg("first")?;
        Ok(peers)
    }

    fn restic(&self, args: &[&str]) -> Result<()> {
        let Some(program) = &self.restic else { return Ok(()) };
        let repository = self.repositories.join("restic");
        let password = self.repositories.join("password");
        fs::write(&password, "password")?;
        let head = ["-q".as_ref(), "--repo".as_ref(), repository.as_os_str(), "--password-file".as_ref()];
        let cache = [password.as_os_str(), "--cache-dir".as_ref(), self.repositories.as_os_str()];
        shell::run(program, head.into_iter().chain(cache).chain(args.iter().map(OsStr::new))).map(drop)
    }

    fn borg(&self, args: &[&str], archive: Option<&str>) -> Result<()> {
        let Some(program) = &self.borg else { return Ok(()) };
        let mut at = self.repositories.join("borg").into_os_string();
        at.push(archive.map(|name| format!("::{name}")).unwrap_or_default());
        let tree = archive.map(|_| self.tree.as_os_str());
        // Its caches and keys are not to be left in somebody's home.
        let home = format!("BORG_BASE_DIR={}", self.repositories.display());
        let env = [home.as_ref(), "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes".as_ref(), program.as_os_str()];
        shell::run("env", env.into_iter().chain(args.iter().map(OsStr::new)).chain([at.as_os_str()]).chain(tree))
            .map(drop)
    }

    fn backup_restic(&self) -> Result<Option<f64>> {
        let Some(_) = &self.restic else { return Ok(None) };
        from_idle(|| self.restic(&["backup", &self.tree.to_string_lossy()])).map(Some)
    }

    fn backup_borg(&self, archive: &str) -> Result<Option<f64>> {
        let Some(_) = &self.borg else { return Ok(None) };
        from_idle(|| self.borg(&["create"], Some(archive))).map(Some)
    }
}

/// In the order of the report.
const SYSTEMS: [&str; 7] = [
    "darner",
    "restic",
    "borg",
    "btrfs send -p",
    "  with its snapshot",
    "  with btrfs receive",
    "darner mirror export",
];
/// Of these, so many take turns.
const TURNS: usize = 4;

/// What pulls from a tree of so many files cost.
struct Tree {
    files: u64,
    first_seconds: f64,
    pulls: Vec<Pulled>,
    /// Seconds by system and round.
    seconds: [Vec<f64>; 7],
    skipped: Vec<String>,
}

fn pulls(dir: &Path, o: &Options, files: u64) -> Result<Tree> {
    let room = Room::new(dir)?;
    let mut tree = Tree { files, first_seconds: 0.0, pulls: vec![], seconds: Default::default(), skipped: vec![] };
    note(&format!("making trees of {files} files"));
    let mut source = Darner::set_up("source", None, &o.mount_options, &room)?;
    source.command(&["retain".as_ref(), source.dir().as_os_str(), "none".as_ref()])?;
    make_tree(source.dir(), files)?;
    let start = Instant::now();
    let mut copy = add(&source, &room, "mirror")?;
    copy.command(&["mirror", "sync", "--wait"], &copy.store)?;
    tree.first_seconds = start.elapsed().as_secs_f64();
    copy.mount(&room)?;
    let mut peers = Peers::set_up(&room, files, &mut tree.skipped)?;
    for round in 0..o.rounds {
        change(&peers.tree, files, round)?;
        for turn in 0..TURNS {
            let which = (turn + round as usize) % TURNS;
            let seconds = match which {
                1 | 2 if files >= MANY && round > 0 => None,
                0 => {
                    let pulled = pull(&mut source, &copy, files, round)?;
                    let seconds = pulled.seconds;
                    tree.seconds[TURNS + 2].push(pulled.exported);
                    tree.pulls.push(pulled);
                    Some(seconds)
                }
                1 => peers.backup_restic()?,
                2 => peers.backup_borg(&format!("round-{round}"))?,
                _ => match &mut peers.btrfs {
                    Some(sender) => {
                        change(&sender.live(), files, round)?;
                        let [sent, snapshot, received] = sender.send()?;
                        tree.seconds[TURNS].push(sent + snapshot);
                        tree.seconds[TURNS + 1].push(received);
                        Some(sent)
                    }
                    None => None,
                },
            };
            if let Some(seconds) = seconds {
                note(&format!("{files} files, round {}: {:<14} {seconds:.4} s", round + 1, SYSTEMS[which]));
                tree.seconds[which].push(seconds);
            }
            go_on()?;
        }
    }
    Ok(tree)
}

fn pull(source: &mut Darner, copy: &Copy, files: u64, round: u64) -> Result<Pulled> {
    copy.command(&["mirror", "pause"], &copy.store)?;
    let (before, _, since) = copy.state()?;
    change(source.dir(), files, round)?;
    source.command(&["clean".as_ref(), "--wait".as_ref(), source.dir().as_os_str()])?;
    let exported = {
        source.remount()?;
        let (mnt, out) = (source.dir().to_path_buf(), copy.store.with_extension("stream"));
        let args = ["mirror".as_ref(), "export".as_ref(), "--since".as_ref(), OsStr::new(&since), mnt.as_os_str()];
        let args = [&args[..], &["--output".as_ref(), out.as_os_str()]].concat();
        let seconds = from_idle(|| source.command(&args))?;
        fs::remove_file(out)?;
        seconds
    };
    source.remount()?;
    let mut read = 0.0;
    let seconds = from_idle(|| {
        read = bytes_read(source)?;
        copy.command(&["mirror", "sync", "--wait"], &copy.store)
    })?;
    let read = bytes_read(source)? - read;
    let mnt = copy.mnt.as_ref().ok_or_else(|| Failure::new("the mirror is not mounted"))?;
    let (there, due) = (fs::read(path(mnt, round % files))?, fs::read(path(source.dir(), round % files))?);
    let (received, itself, _) = copy.state()?;
    match there == due {
        true => Ok(Pulled { seconds, exported, itself, read, received: received - before }),
        false => Err(Failure::new("the mirror does not show what its source has")),
    }
}

/// Seconds that something takes. A daemon has done by then what it does after opening; and whoever it is begins on a machine that was
/// idle, which makes all of this several times slower than right behind other work.
fn from_idle<T>(run: impl FnOnce() -> Result<T>) -> Result<f64> {
    thread::sleep(Duration::from_millis(500));
    let start = Instant::now();
    run()?;
    Ok(start.elapsed().as_secs_f64())
}

/// Bytes that the daemon has read by system calls.
fn bytes_read(darner: &Darner) -> Result<f64> {
    let pid = darner.daemon().unwrap_or_default();
    let io = fs::read_to_string(format!("/proc/{pid}/io")).cant(|| format!("ask what process {pid} read"))?;
    let found = io.lines().find_map(|l| l.strip_prefix("rchar: ")?.parse().ok());
    found.ok_or_else(|| Failure::new("/proc/PID/io tells no rchar"))
}

fn clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

/// Seconds that a mirror was behind, ascending, while small files were written.
fn lag(dir: &Path, o: &Options) -> Result<Vec<f64>> {
    note("lag under small writes");
    let room = Room::new(dir)?;
    let source = Darner::set_up("source", None, &o.mount_options, &room)?;
    let mut copy = add(&source, &room, "mirror")?;
    copy.mount(&room)?;
    let (root, over) = (source.dir().to_path_buf(), AtomicBool::new(false));
    write_time(&root)?;
    fs::write(root.join("name 1"), "")?;
    copy.command(&["mirror", "sync", "--wait"], &copy.store)?;
    let reads = if o.quick { 100 } else { 1000 };
    let mnt = copy.mnt.clone().unwrap_or_default();
    let mut lags = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for n in 1.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                write_time(&root)?;
                fs::rename(root.join(format!("name {n}")), root.join(format!("name {}", n + 1)))?;
                thread::sleep(WRITES_EVERY);
            }
            Ok::<_, io::Error>(())
        });
        let read = read_lags(&mnt.join("time"), reads);
        over.store(true, Ordering::Relaxed);
        writer.join().map_err(|_| Failure::new("the writer panicked"))??;
        read
    })?;
    lags.sort_by(f64::total_cmp);
    Ok(lags)
}

fn write_time(root: &Path) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(root.join("time"))?;
    file.write_all_at(&clock().to_le_bytes(), 0)
}

fn read_lags(path: &Path, reads: u64) -> Result<Vec<f64>> {
    let mut lags = Vec::new();
    for _ in 0..reads {
        thread::sleep(READS_EVERY);
        let there = fs::read(path)?;
        let then = there.try_into().map(u64::from_le_bytes);
        let then = then.map_err(|_| Failure::new("the mirror shows half a write"))?;
        lags.push(clock().saturating_sub(then) as f64 / 1e9);
        go_on()?;
    }
    Ok(lags)
}

/// Who makes the first copy.
const WAYS: [&str; 3] = ["mirror add", "mirror follow, TLS", "cp -a, sync"];

/// Seconds by way and round, for so many bytes.
fn first_copy(dir: &Path, o: &Options) -> Result<(u64, [Vec<f64>; 3])> {
    let bytes = if o.quick { 128 << 20 } else { 1 << 30 };
    note(&format!("first copy of {} MiB", bytes >> 20));
    let room = Room::new(dir)?;
    let mut noise = vec![0; bytes as usize];
    data::noise(1, &mut noise);
    let plain = room.path().join("plain");
    fs::write(&plain, &noise)?;
    let source = Darner::set_up("source", None, &o.mount_options, &room)?;
    fs::write(source.dir().join("file"), &noise)?;
    drop(noise);
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let serve = |args: &[&str]| {
        let args = args.iter().map(OsStr::new);
        shell::run(program()?, ["serve".as_ref(), source.dir().as_os_str()].into_iter().chain(args))
    };
    serve(&["--listen", &format!("127.0.0.1:{port}")])?;
    let mut seconds: [Vec<f64>; 3] = Default::default();
    let outcome = (0..o.rounds).try_for_each(|round| {
        for turn in 0..WAYS.len() {
            // What was written before is not to be this one's burden.
            // SAFETY: can't fail.
            unsafe { libc::sync() };
            let which = (turn + round as usize) % WAYS.len();
            let took = match which {
                0 => {
                    let start = Instant::now();
                    copied(&add(&source, &room, &format!("mirror-{round}"))?, start)?
                }
                1 => {
                    let ticket = serve(&["--ticket"])?;
                    let copy = Copy { program: program()?, store: room.path().join("far"), mnt: None };
                    let url = format!("darner://127.0.0.1:{port}");
                    let start = Instant::now();
                    let args = ["mirror", "follow"].map(OsStr::new).into_iter().chain([copy.store.as_os_str()]);
                    shell::run(program()?, args.chain([url.as_ref(), "--ticket".as_ref(), ticket.trim().as_ref()]))?;
                    copied(&copy, start)?
                }
                _ => {
                    let start = Instant::now();
                    let copy = room.path().join("plain copy");
                    shell::run("cp", ["-a".as_ref(), "--reflink=never".as_ref(), plain.as_os_str(), copy.as_os_str()])?;
                    File::open(&copy)?.sync_all()?;
                    let took = start.elapsed().as_secs_f64();
                    fs::remove_file(&copy)?;
                    took
                }
            };
            note(&format!("round {}: {:<20} {took:.2} s", round + 1, WAYS[which]));
            seconds[which].push(took);
            go_on()?;
        }
        Ok(())
    });
    // (It would go on without a mount.)
    serve(&["--stop"])?;
    outcome.map(|()| (bytes, seconds))
}

/// Seconds from the start until a copy is whole and durable: a mirror that pauses and is not mounted closes its store.
fn copied(copy: &Copy, start: Instant) -> Result<f64> {
    copy.command(&["mirror", "sync", "--wait"], &copy.store)?;
    copy.command(&["mirror", "pause"], &copy.store)?;
    Ok(start.elapsed().as_secs_f64())
}

/// Runs it; returns text and JSON.
pub fn mirror(dir: &Path, o: &Options) -> Result<(String, Value)> {
    let sizes: [u64; 2] = if o.quick { [1_000, 4_000] } else { [10_000, 1_000_000] };
    let (bytes, first) = first_copy(dir, o)?;
    let lags = lag(dir, o)?;
    let trees = sizes.iter().map(|files| pulls(dir, o, *files)).collect::<Result<Vec<_>>>()?;
    Ok(report(bytes, &first, &lags, &trees))
}

/// The median of the rounds' ratios.
fn ratio(of: &[f64], to: &[f64]) -> Option<f64> {
    median(of.iter().zip(to).map(|(a, b)| a / b))
}

fn report(bytes: u64, first: &[Vec<f64>; 3], lags: &[f64], trees: &[Tree]) -> (String, Value) {
    let mut text = String::new();
    let mid = |values: &[f64]| median(values.iter().copied());
    let show = |v: Option<f64>, digits: usize| v.map_or("-".into(), |v| format!("{v:.digits$}"));
    let _ = writeln!(
        text,
        "first copy of {} MiB of noise, durable\n{:<22}{:>10}{:>10}{:>12}",
        bytes >> 20,
        "",
        "s",
        "MB/s",
        "× cp's speed"
    );
    for (way, seconds) in WAYS.iter().zip(first) {
        let rate = mid(seconds).map(|s| bytes as f64 / 1e6 / s);
        let _ = writeln!(
            text,
            "{way:<22}{:>10}{:>10}{:>12}",
            show(mid(seconds), 2),
            show(rate, 0),
            show(ratio(&first[2], seconds), 2)
        );
    }
    let at = |share: f64| lags.get((lags.len() as f64 * share) as usize).or(lags.last()).copied();
    let (p50, p99, most) = (at(0.5), at(0.99), lags.last().copied());
    let _ = writeln!(
        text,
        "\nlag while a file is written and another renamed every 10 ms: median {} s, p99 {} s, longest {} s ({} reads)",
        show(p50, 3),
        show(p99, 3),
        show(most, 3),
        lags.len()
    );
    let mut lines = Vec::new();
    for t in trees {
        let of = |what: fn(&Pulled) -> f64| median(t.pulls.iter().map(what));
        let (read, received, itself) = (of(|p| p.read), of(|p| p.received), of(|p| p.itself));
        let _ = writeln!(text, "\n{CHANGED} of {} files changed; first copy {:.1} s", t.files, t.first_seconds);
        t.skipped.iter().for_each(|why| text.extend(["without ", why, "\n"]));
        let _ = writeln!(text, "{:<22}{:>10}{:>14}", "", "s", "× darner");
        for (name, seconds) in SYSTEMS.iter().zip(&t.seconds) {
            let times = ratio(seconds, &t.seconds[0]);
            let _ = writeln!(text, "{name:<22}{:>10}{:>14}", show(mid(seconds), 4), show(times, 2));
        }
        let (sent, exported) = (&t.seconds[3], &t.seconds[TURNS + 2]);
        let _ = writeln!(text, "btrfs send -p by darner mirror export: {}", show(ratio(sent, exported), 2));
        let kib = |v: Option<f64>| show(v.map(|v| v / 1024.0), 0);
        // (Nobody runs a command for those of a mirror that follows.)
        let alone: Vec<f64> = t.pulls.iter().map(|p| p.itself).collect();
        let _ = writeln!(
            text,
            "the pull itself, durable, took {} s (btrfs send -p: {} × that); the source's daemon read {} KiB, {} KiB were sent",
            show(itself, 4),
            show(ratio(sent, &alone), 2),
            kib(read),
            kib(received)
        );
        let seconds: serde_json::Map<String, Value> =
            SYSTEMS.iter().zip(&t.seconds).map(|(name, s)| (name.to_string(), json!(s))).collect();
        lines.push(json!({ "files": t.files, "first_copy_seconds": t.first_seconds, "seconds": seconds,
            "pull_seconds": t.pulls.iter().map(|p| p.itself).collect::<Vec<_>>(),
            "bytes_read": t.pulls.iter().map(|p| p.read).collect::<Vec<_>>(),
            "bytes_sent": t.pulls.iter().map(|p| p.received).collect::<Vec<_>>(), "skipped": t.skipped }));
    }
    if let [small, large] = trees {
        let of = |t: &Tree, what: fn(&Pulled) -> f64| median(t.pulls.iter().map(what)).unwrap_or(f64::NAN);
        let (time, read) =
            (of(large, |p| p.itself) / of(small, |p| p.itself), of(large, |p| p.read) / of(small, |p| p.read));
        let _ = writeln!(
            text,
            "\n{} files against {}: {time:.2} × the time, {read:.2} × the bytes read",
            large.files, small.files
        );
    }
    let ways: serde_json::Map<String, Value> =
        WAYS.iter().zip(first).map(|(name, s)| (name.to_string(), json!(s))).collect();
    let json = json!({ "first_copy": { "bytes": bytes, "seconds": ways },
        "lag_seconds": { "p50": p50, "p99": p99, "longest": most }, "trees": lines });
    (text, json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_tells_ratios_of_the_same_round_and_what_more_files_cost() {
        let tree = |files, seconds: f64| Tree {
            files,
            first_seconds: 1.0,
            pulls: vec![Pulled {
                seconds,
                exported: seconds / 2.0,
                itself: seconds,
                read: 2048.0 * seconds,
                received: 1024.0,
            }],
            seconds: [seconds, 30.0, 0.0, seconds * 3.0, seconds * 4.0, seconds * 9.0, seconds / 2.0]
                .map(|s| if s == 0.0 { vec![] } else { vec![s] }),
            skipped: vec!["borg is not installed".into()],
        };
        let first = [vec![2.0, 4.0], vec![4.0, 4.0], vec![1.0, 2.0]];
        let (text, json) = report(1 << 20, &first, &[0.1, 0.2, 0.3], &[tree(10, 1.0), tree(100, 2.0)]);
        for part in
            ["0.50", "without borg", "15.00", "export: 6.00", "-p: 3.00 ×", "2.00 × the time, 2.00 × the bytes read"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(json["trees"][1]["bytes_read"], json!([4096.0]));
    }
}
