//! What a plug-in costs: the same filesystem, of one file, answered by the process that has the mount, and by a plug-in (without
//! a sandbox) behind it. As root: `cargo run --release -p darner-vfs --example measure [ROUNDS]`. docs/vfs.md §Measured has the outcome.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
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
    fn launch(&self) -> std::result::Result<Launched, String> {
        let mut fds = [0; 2];
        // SAFETY: an array of two; both descriptors are new and ours.
        let (ours, theirs) = unsafe {
            assert_eq!(
                libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr()),
                0
            );
            (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]))
        };
        let arena = Arena::new(24).map_err(|e| e.to_string())?;
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
        let child = command.spawn().map_err(|e| e.to_string())?;
        Ok(Launched { socket: ours, arena, process: Box::new(Running(child)) })
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
    fuse::set_readahead(at, 1 << 20).expect("readahead");
    thread::scope(|s| {
        let serving = s.spawn(|| session.run(8, Duration::from_micros(50), &handler));
        let found = during();
        unmount(at, false).expect("unmount");
        serving.join().expect("no panic").expect("served");
        found
    })
}

/// Microseconds of a round trip.
fn round_trip(at: &Path) -> f64 {
    let path = std::ffi::CString::new(at.as_os_str().as_bytes()).expect("a path");
    let begun = Instant::now();
    for _ in 0..5000 {
        // SAFETY: all zeroes is a valid structure; the pointers are valid.
        unsafe { assert_eq!(libc::statvfs(path.as_ptr(), &mut std::mem::zeroed()), 0) };
    }
    begun.elapsed().as_secs_f64() * 1e6 / 5000.0
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
    let dir = tempfile::tempdir().expect("a directory");
    // In memory, so that nothing waits for a disk.
    let mut data = tempfile::tempfile_in("/dev/shm").expect("a file");
    (0..SIZE >> 20).for_each(|n| data.write_all(&vec![n as u8; 1 << 20]).expect("room"));
    let mut found: [Vec<(f64, f64)>; 3] = Default::default();
    for _ in 0..rounds {
        let all = || [round_trip(dir.path()), large_reads(dir.path(), true), large_reads(dir.path(), false)];
        let direct = mounted(dir.path(), Direct(One(data.try_clone().expect("file"))), all);
        let host = Host::start(Again(data.try_clone().expect("file")), Options::default()).expect("it starts");
        let plugin = mounted(dir.path(), Front::new(host, true), all);
        found.iter_mut().zip(direct.into_iter().zip(plugin)).for_each(|(all, pair)| all.push(pair));
    }
    for (name, all) in ["round trip, µs", "1 MiB reads, direct, GB/s", "1 MiB reads, cached, GB/s"].iter().zip(&found)
    {
        let of = |pick: fn(&(f64, f64)) -> f64| median(all.iter().map(pick).collect());
        println!("{name:<28} alone {:>6.2}  plug-in {:>6.2}  ratio {:.2}", of(|p| p.0), of(|p| p.1), of(|p| p.1 / p.0));
    }
}
