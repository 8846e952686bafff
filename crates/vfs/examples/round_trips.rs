//! What a plug-in costs: the same filesystem, of one file, answered by the process that has the mount, and by a plug-in (without
//! a sandbox) behind it. As root: `cargo run --release -p darner-vfs --example round_trips [ROUNDS [busy|large]]`, `busy`: while both CPUs have something
//! else to do; `large`: large reads only. docs/vfs.md §Measured has the outcome.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use darner_fuse::{
    self as fuse, Config, Ctx, Handler, MountOptions, Operation, Reply, Request, Session, mount, unmount,
};
use darner_vfs::*;

const SIZE: u64 = 256 << 20;
const PLUG_IN: &str = "measure-plug-in";

/// One file, `data`: the bytes of another.
struct One(File);

impl Vfs for One {
    fn info(&self) -> Info {
        Info { name: "one".into(), writable: false, valid: Duration::from_secs(3600) }
    }

    fn lookup(&self, _: u64, name: &[u8]) -> Result<Attr> {
        if name == b"data" { self.getattr(2) } else { Err(Errno(libc::ENOENT)) }
    }

    fn getattr(&self, node: u64) -> Result<Attr> {
        match node {
            ROOT => Ok(Attr { node, mode: libc::S_IFDIR | 0o755, ..Attr::default() }),
            _ => Ok(Attr { node, mode: libc::S_IFREG | 0o644, size: SIZE, ..Attr::default() }),
        }
    }

    fn readdir(&self, _: u64, _: u64, _: &mut Listing) -> Result<()> {
        Ok(())
    }

    fn read(&self, _: u64, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        Ok(self.0.read_at(buffer, offset)?)
    }
}

/// The same without a plug-in.
struct Direct(One);

const LONG: Duration = Duration::from_secs(3600);

fn shown(a: &Attr) -> fuse::Attr {
    fuse::Attr { ino: a.node, size: a.size, mode: a.mode, nlink: 1, blksize: 64 << 10, ..fuse::Attr::default() }
}

thread_local! {
    static BUFFER: std::cell::RefCell<Vec<u8>> = std::cell::RefCell::new(vec![0; SLOT]);
}

impl Handler for Direct {
    fn handle(&self, request: Request<'_>, reply: Reply<'_>, _: &Ctx<'_>) {
        match request.op {
            Operation::Lookup { name } => match self.0.lookup(request.nodeid, name) {
                Ok(a) => reply.entry(&fuse::Entry {
                    nodeid: a.node,
                    generation: 0,
                    entry_valid: LONG,
                    attr_valid: LONG,
                    attr: shown(&a),
                }),
                Err(e) => reply.error(e.0),
            },
            Operation::Getattr { .. } => reply.attr(&shown(&self.0.getattr(request.nodeid).expect("it exists")), LONG),
            Operation::Statfs => reply.statfs(&fuse::Statfs { bsize: 4096, namelen: 255, ..fuse::Statfs::default() }),
            Operation::Read { offset, size, .. } => {
                BUFFER.with_borrow_mut(|b| match self.0.read(request.nodeid, offset, &mut b[..size as usize]) {
                    Ok(n) => reply.data(&b[..n]),
                    Err(e) => reply.error(e.0),
                })
            }
            Operation::Forget { .. } | Operation::BatchForget(_) | Operation::Interrupt { .. } => {}
            _ => reply.error(libc::ENOSYS),
        }
    }
}

/// This program again, as the plug-in.
struct Again(File);

struct Running(Child);

impl Launch for Again {
    fn launch(&self) -> std::result::Result<Launched, (bool, String)> {
        let mut fds = [0; 2];
        // SAFETY: an array of two; both descriptors are new and ours.
        let (ours, theirs) = unsafe {
            assert_eq!(
                libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr()),
                0
            );
            (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]))
        };
        let arena = Arena::new(24).map_err(|e| (false, e.to_string()))?;
        let passed = [(LINK, theirs.as_raw_fd()), (ARENA, arena.as_fd().as_raw_fd()), (FILES, self.0.as_raw_fd())];
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.arg(PLUG_IN).envs(passed.map(|(name, fd)| (name, fd.to_string())));
        // SAFETY: plain system calls between fork and exec.
        unsafe {
            command.pre_exec(move || {
                passed.iter().for_each(|(_, fd)| assert_eq!(libc::fcntl(*fd, libc::F_SETFD, 0), 0));
                Ok(())
            })
        };
        let child = command.spawn().map_err(|e| (false, e.to_string()))?;
        Ok(Launched { socket: ours, arena, process: Box::new(Running(child)), program: None })
    }
}

impl Process for Running {
    fn id(&self) -> u32 {
        self.0.id()
    }

    fn end(&mut self) -> (bool, String) {
        let _ = self.0.kill();
        (false, format!("{:?}", self.0.wait()))
    }
}

/// Serves a mount for as long as `during` runs.
fn mounted<T>(at: &Path, handler: impl Handler + Sync, during: impl FnOnce() -> T) -> T {
    let options = MountOptions { max_read: SLOT as u32, read_only: true, ..MountOptions::default() };
    let fd = mount(at, &options).expect("mount");
    let session = Session::init(fd, Config::default()).expect("handshake");
    fuse::set_readahead(at, 4 << 20).expect("readahead");
    thread::scope(|s| {
        let serving = s.spawn(|| session.run(8, Duration::from_micros(50), &handler));
        let found = during();
        unmount(at, false).expect("unmount");
        serving.join().expect("no panic").expect("served");
        found
    })
}

/// Round trips of each kind and thread.
const TRIPS: usize = 2000;

/// What one thread asks again and again; the kernel remembers none of it.
#[derive(Clone, Copy)]
enum Ask {
    Statfs,
    Getattr,
    Lookup,
    Read,
}

const ASKS: [(Ask, &str); 4] =
    [(Ask::Statfs, "statfs"), (Ask::Getattr, "getattr"), (Ask::Lookup, "look-up"), (Ask::Read, "4 KiB read")];

/// Microseconds of a round trip, while so many threads make them.
fn round_trip(at: &Path, ask: Ask, threads: usize) -> f64 {
    static NAMES: AtomicUsize = AtomicUsize::new(0);
    let path = |name: &str| CString::new(at.join(name).as_os_str().as_bytes()).expect("a path");
    let begun = Instant::now();
    thread::scope(|s| {
        for _ in 0..threads {
            s.spawn(|| {
                let (root, data) = (path(""), path("data"));
                let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(at.join("data"));
                let file = file.expect("data");
                let mut buffer = vec![0u8; 8192];
                let from = buffer.as_ptr().align_offset(4096);
                for n in 0..TRIPS {
                    // SAFETY: all zeroes is a valid structure; the pointers are valid.
                    unsafe {
                        match ask {
                            Ask::Statfs => assert_eq!(libc::statvfs(root.as_ptr(), &mut std::mem::zeroed()), 0),
                            Ask::Getattr => {
                                let (flags, mut found) = (libc::AT_STATX_FORCE_SYNC, std::mem::zeroed());
                                let mask = libc::STATX_SIZE;
                                assert_eq!(libc::statx(libc::AT_FDCWD, data.as_ptr(), flags, mask, &mut found), 0);
                            }
                            Ask::Lookup => {
                                let name = path(&NAMES.fetch_add(1, Ordering::Relaxed).to_string());
                                assert_eq!(libc::access(name.as_ptr(), libc::F_OK), -1);
                            }
                            Ask::Read => {
                                let offset = (n as u64 * 7919 % (SIZE >> 12)) << 12;
                                assert_eq!(file.read_at(&mut buffer[from..from + 4096], offset).expect("read"), 4096);
                            }
                        }
                    }
                }
            });
        }
    });
    begun.elapsed().as_secs_f64() * 1e6 / TRIPS as f64
}

/// Share of a CPU that this process and its children take while nobody asks anything.
fn idle() -> f64 {
    let own = std::process::id().to_string();
    let ticks = || -> f64 {
        let of = |entry: std::fs::DirEntry| -> Option<f64> {
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
            let ours = fields[1] == own || entry.file_name() == *own;
            ours.then_some(fields[11].parse::<f64>().ok()? + fields[12].parse::<f64>().ok()?)
        };
        std::fs::read_dir("/proc").expect("proc").flatten().filter_map(of).sum()
    };
    thread::sleep(Duration::from_millis(100));
    let before = ticks();
    thread::sleep(Duration::from_secs(3));
    // (A tick is 10 ms.)
    (ticks() - before) / 100.0 / 3.0
}

/// GB/s of reads of 1 MiB.
fn large_reads(at: &Path, direct: bool) -> f64 {
    std::fs::write("/proc/sys/vm/drop_caches", "1").expect("root");
    let flags = if direct { libc::O_DIRECT } else { 0 };
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(at.join("data")).expect("data");
    let mut buffer = vec![0u8; (1 << 20) + 4096];
    let from = buffer.as_ptr().align_offset(4096);
    let begun = Instant::now();
    let mut all = 0;
    while all < SIZE {
        all += file.read(&mut buffer[from..from + (1 << 20)]).expect("read") as u64;
    }
    SIZE as f64 / begun.elapsed().as_secs_f64() / 1e9
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn main() {
    let argument = std::env::args().nth(1);
    if argument.as_deref() == Some(PLUG_IN) {
        let file = files().expect("the file").remove(0);
        return serve(One(file)).expect("started by a host");
    }
    let rounds = argument.and_then(|n| n.parse().ok()).unwrap_or(15);
    let mode = std::env::args().nth(2);
    let busy = mode.as_deref() == Some("busy");
    let dir = tempfile::tempdir().expect("a directory");
    // In memory, so that nothing waits for a disk.
    let mut data = tempfile::tempfile_in("/dev/shm").expect("a file");
    (0..SIZE >> 20).for_each(|n| data.write_all(&vec![n as u8; 1 << 20]).expect("room"));
    let cases: Vec<(String, Case<'_>)> = cases(dir.path(), mode.as_deref() == Some("large"));
    let mut found: Vec<Vec<(f64, f64)>> = vec![Vec::new(); cases.len()];
    let over = AtomicBool::new(false);
    thread::scope(|s| {
        // Both CPUs have something else to do.
        let work = || {
            while !over.load(Ordering::Relaxed) {
                std::hint::spin_loop()
            }
        };
        (0..if busy { 2 } else { 0 }).for_each(|_| drop(s.spawn(work)));
        for _ in 0..rounds {
            let all = || cases.iter().map(|(_, case)| case()).collect::<Vec<f64>>();
            let direct = mounted(dir.path(), Direct(One(data.try_clone().expect("file"))), all);
            let host = Host::start(Again(data.try_clone().expect("file")), Options::default()).expect("it starts");
            let plugin = mounted(dir.path(), Front::new(host, true), all);
            found.iter_mut().zip(direct.into_iter().zip(plugin)).for_each(|(all, pair)| all.push(pair));
        }
        over.store(true, Ordering::Relaxed);
    });
    for ((name, _), all) in cases.iter().zip(&found) {
        let of = |pick: fn(&(f64, f64)) -> f64| median(all.iter().map(pick).collect());
        println!("{name:<36} alone {:>6.2}  plug-in {:>6.2}  ratio {:.2}", of(|p| p.0), of(|p| p.1), of(|p| p.1 / p.0));
    }
    let host = Host::start(Again(data), Options::default()).expect("it starts");
    let idle = mounted(dir.path(), Front::new(host, true), || {
        round_trip(dir.path(), Ask::Statfs, 1);
        idle()
    });
    println!("idle: {:.1} % of a CPU", idle * 100.0);
}

type Case<'a> = Box<dyn Fn() -> f64 + 'a>;

fn cases(at: &Path, large_only: bool) -> Vec<(String, Case<'_>)> {
    let mut all: Vec<(String, Case<'_>)> = Vec::new();
    for threads in [1, 2].into_iter().filter(|_| !large_only) {
        for (ask, name) in ASKS {
            all.push((format!("{name}, {threads} threads, µs"), Box::new(move || round_trip(at, ask, threads))));
        }
    }
    for (direct, name) in [(true, "direct"), (false, "cached")] {
        all.push((format!("1 MiB reads, {name}, GB/s"), Box::new(move || large_reads(at, direct))));
    }
    all
}
