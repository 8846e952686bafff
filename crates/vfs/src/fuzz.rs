//! A plug-in whose answers are damaged on their way, from a seed: the host answers every call in time, with what the plug-in said,
//! something that could be true, or an error; and goes on.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use darner_syslink::RING;
use parking_lot::Mutex;

use crate::serve::serve_with;
use crate::*;

struct Few;

const DATA: &[u8] = b"what is in all files here";

impl Vfs for Few {
    fn info(&self) -> Info {
        Info { name: "few".into(), writable: true, valid: Duration::from_secs(1) }
    }

    fn lookup(&self, _: u64, name: &[u8]) -> Result<Attr> {
        let n = std::str::from_utf8(name).ok().and_then(|n| n.parse().ok());
        n.map_or(Err(Errno(libc::ENOENT)), |n: u64| self.getattr(n))
    }

    fn getattr(&self, node: u64) -> Result<Attr> {
        let kind = if node == ROOT { libc::S_IFDIR } else { libc::S_IFREG };
        Ok(Attr { node, mode: kind | 0o644, size: DATA.len() as u64, mtime: -5, ..Attr::default() })
    }

    fn readdir(&self, _: u64, after: u64, listing: &mut Listing) -> Result<()> {
        for n in (after + 2..500).take_while(|n| *n > 0) {
            if !listing.add(n.to_string().as_bytes(), n - 1, &self.getattr(n)?) {
                break;
            }
        }
        Ok(())
    }

    fn read(&self, _: u64, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let rest = DATA.get(offset as usize..).unwrap_or_default();
        let n = rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn readlink(&self, _: u64) -> Result<Vec<u8>> {
        Ok(b"elsewhere".to_vec())
    }

    fn write(&self, _: u64, _: u64, data: &[u8]) -> Result<()> {
        if data == DATA { Ok(()) } else { Err(Errno(libc::EINVAL)) }
    }
}

fn pair() -> (OwnedFd, OwnedFd) {
    let mut fds = [0; 2];
    // SAFETY: an array of two; both descriptors are new and ours.
    unsafe {
        assert_eq!(libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr()), 0);
        (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]))
    }
}

/// Starts it in threads, with somebody in between who damages one answer in `every`.
struct Between {
    seed: AtomicU64,
    every: u64,
    /// The plug-in knows of the ring, in which somebody scribbles as often.
    ring: bool,
}

struct Threads {
    sockets: [OwnedFd; 2],
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Launch for Between {
    fn launch(&self) -> std::result::Result<Launched, (bool, String)> {
        let ((ours, to_host), (to_plugin, theirs)) = (pair(), pair());
        let arena = Arena::new(4).map_err(|e| (false, e.to_string()))?;
        let for_plugin = arena.as_fd().try_clone_to_owned().unwrap();
        let (ring, every) = (self.ring, self.every);
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        if ring && every > 0 {
            let (memory, stop) = (File::from(for_plugin.try_clone().unwrap()), stop.clone());
            let seed = self.seed.load(Ordering::Relaxed);
            threads.push(thread::spawn(move || scribble(&memory, seed, &stop)));
        }
        threads.push(thread::spawn(move || drop(serve_with(theirs, for_plugin, ring, Few))));
        let sockets = [to_host.try_clone().unwrap(), to_plugin.try_clone().unwrap()];
        let (host, plugin_side) = (to_host.try_clone().unwrap(), to_plugin.try_clone().unwrap());
        let there = thread::spawn(move || relay(&host, &plugin_side, &mut |_| ()));
        let mut random = fastrand::Rng::with_seed(self.seed.fetch_add(1, Ordering::Relaxed));
        threads.push(there);
        threads.push(thread::spawn(move || {
            relay(&to_plugin, &to_host, &mut |packet| {
                if every > 0 && random.u64(..every) == 0 {
                    damage(packet, &mut random);
                }
            })
        }));
        Ok(Launched { socket: ours, arena, process: Box::new(Threads { sockets, stop, threads }), program: None })
    }
}

/// Writes to the ring what should not be there, now and then.
fn scribble(memory: &File, seed: u64, stop: &AtomicBool) {
    let mut random = fastrand::Rng::with_seed(seed);
    let ring = memory.metadata().unwrap().len() - RING as u64;
    while !stop.load(Ordering::Relaxed) {
        // Mostly places, and what begins messages.
        let at = match random.u8(..4) {
            0 => random.u64(..RING as u64 - 8),
            1 => random.u64(..3) * 64,
            2 => RING as u64 / 2 + random.u64(..3) * 64,
            _ => RING as u64 / 2 * random.u64(..2) + 4096 + random.u64(..4000),
        };
        let odd = [0, 1, 44, 1 << 15, 1 << 31, u64::MAX, random.u64(..)];
        memory.write_all_at(&odd[random.usize(..odd.len())].to_le_bytes(), ring + at).unwrap();
        thread::sleep(Duration::from_micros(random.u64(..3000)));
    }
}

fn relay(from: &OwnedFd, to: &OwnedFd, change: &mut dyn FnMut(&mut Vec<u8>)) {
    let mut buffer = vec![0; 1 << 17];
    loop {
        // SAFETY: a valid buffer.
        let n = unsafe { libc::recv(from.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        if n <= 0 {
            break;
        }
        let mut packet = buffer[..n as usize].to_vec();
        change(&mut packet);
        // SAFETY: a valid buffer.
        unsafe { libc::send(to.as_raw_fd(), packet.as_ptr().cast(), packet.len(), libc::MSG_NOSIGNAL) };
    }
    hang_up([from, to]);
}

fn hang_up<const N: usize>(sockets: [&OwnedFd; N]) {
    for socket in sockets {
        // SAFETY: a plain system call.
        unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_RDWR) };
    }
}

fn damage(packet: &mut Vec<u8>, random: &mut fastrand::Rng) {
    match random.u8(..8) {
        0 => packet.truncate(random.usize(..packet.len())),
        1 => packet.extend((0..random.usize(..100)).map(|_| random.u8(..))),
        2 => packet.iter_mut().for_each(|b| *b = random.u8(..)),
        // A number somewhere becomes another, as numbers that matter are.
        3..=5 if packet.len() > 56 => {
            let at = random.usize(40..packet.len() - 8);
            let odd = [0, 1, 2, 255, 1 << 31, 1 << 62, u64::MAX];
            packet[at..at + 8].copy_from_slice(&odd[random.usize(..odd.len())].to_le_bytes());
        }
        _ => {
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..packet.len());
                packet[at] ^= 1 << random.u8(..8);
            }
        }
    }
}

impl Process for Threads {
    fn id(&self) -> u32 {
        1
    }

    fn end(&mut self) -> (bool, String) {
        hang_up(self.sockets.each_ref());
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|t| t.join().unwrap());
        (true, "its threads ended".into())
    }
}

const DEADLINE: Duration = Duration::from_millis(150);

/// Makes one call; an error may be any, an answer must be a possible one.
fn once(host: &Host, random: &mut fastrand::Rng) -> std::result::Result<(), Errno> {
    let wanted = &mut || true;
    let node = random.u64(2..500);
    let possible =
        |a: Attr| assert!(a.node > 0 && a.node < 1 << 62 && a.size <= i64::MAX as u64 && a.nlink > 0, "{a:?}");
    match random.u8(..6) {
        0 => host.ask(true, wanted, |p, t| p.lookup(ROOT, node.to_string().as_bytes(), t)).map(possible),
        1 => host.ask(true, wanted, |p, t| p.getattr(node, t)).map(|a| {
            assert_eq!(a.node, node);
            possible(a);
        }),
        2 => host.ask(true, wanted, |p, t| p.readdir(ROOT, node, 400, t)).map(|all| {
            for e in all {
                assert!(!e.name.contains(&b'/') && !e.name.is_empty() && (1..1 << 62).contains(&e.cookie));
                possible(e.attr);
            }
        }),
        3 => host
            .ask(true, wanted, |p, t| p.read(node, 0, 4096, t))
            .map(|(slot, n)| assert!(n <= 4096 && slot.bytes(n).len() == n)),
        4 => host.ask(true, wanted, |p, t| p.readlink(node, t)).map(|t| assert!(!t.is_empty() && t.len() < 4096)),
        _ => host.ask(true, wanted, |p, t| p.write(node, 0, DATA, t)),
    }
}

#[test]
fn damaged_answers_cost_nothing_but_errors_and_the_host_goes_on() {
    damaged(false);
}

#[test]
fn a_ring_that_somebody_scribbles_in_costs_nothing_but_errors_and_the_host_goes_on() {
    damaged(true);
}

fn damaged(ring: bool) {
    let (seeds, calls) = if std::env::var_os("DARNER_LONG").is_some() { (3000, 60) } else { (60, 40) };
    let (mut good, mut bad) = (0, 0);
    for seed in 0..seeds {
        let launch = Between { seed: AtomicU64::new(seed * 1000), every: 10, ring };
        let options = Options { deadline: DEADLINE, start_every: Duration::ZERO, ..Options::default() };
        let Ok(host) = Host::start(launch, options) else {
            bad += 1;
            continue;
        };
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..calls {
            let start = Instant::now();
            match once(&host, &mut random) {
                Ok(()) => good += 1,
                Err(_) => bad += 1,
            }
            assert!(start.elapsed() < DEADLINE * 4, "seed {seed}: {:?}", start.elapsed());
        }
    }
    assert!(good > bad && bad > 0, "{good} calls were answered, {bad} failed");
}

/// Starts it, and again after a number of starts that somebody ended.
struct Killed {
    starts: AtomicU64,
    first: Mutex<Option<OwnedFd>>,
}

impl Launch for Arc<Killed> {
    fn launch(&self) -> std::result::Result<Launched, (bool, String)> {
        let launched = Between { seed: AtomicU64::new(0), every: 0, ring: false }.launch()?;
        match self.starts.fetch_add(1, Ordering::Relaxed) {
            0 => *self.first.lock() = Some(launched.socket.try_clone().unwrap()),
            1..=20 => return Err((true, "somebody killed it".into())),
            _ => {}
        }
        Ok(launched)
    }
}

#[test]
fn one_that_is_killed_while_it_starts_again_has_not_failed() {
    let launch = Arc::new(Killed { starts: AtomicU64::new(0), first: Mutex::new(None) });
    let options = Options { start_every: Duration::from_millis(1), ..Options::default() };
    let host = Host::start(launch.clone(), options).unwrap();
    let ended = launch.first.lock().take().unwrap();
    hang_up([&ended]);
    assert_eq!(host.ask(true, &mut || true, |p, t| p.getattr(7, t)).unwrap().node, 7);
    assert_eq!(launch.starts.load(Ordering::Relaxed), 22);
    assert_eq!((host.health().state.as_str(), host.health().restarts), ("runs", 21));
}

#[test]
fn undamaged_answers_are_all_what_the_plug_in_says_with_a_ring_and_without() {
    undamaged(true);
    undamaged(false);
}

fn undamaged(ring: bool) {
    let host = Host::start(Between { seed: AtomicU64::new(0), every: 0, ring }, Options::default()).unwrap();
    assert_eq!((host.info().name.as_str(), host.health().state.as_str()), ("few", "runs"));
    let host = Arc::new(host);
    thread::scope(|s| {
        for seed in 0..4 {
            let host = &host;
            s.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed);
                (0..500).for_each(|_| once(host, &mut random).unwrap());
            });
        }
    });
    let wanted = &mut || true;
    let mut names = Vec::new();
    loop {
        let after = names.last().map_or(0, |(_, cookie)| *cookie);
        let page = host.ask(true, wanted, |p, t| p.readdir(ROOT, after, 1000, t)).unwrap();
        if page.is_empty() {
            break;
        }
        names.extend(page.into_iter().map(|e| (e.name, e.cookie)));
    }
    assert_eq!(names.len(), 498);
    let found = host.ask(true, wanted, |p, t| p.read(7, 5, 4, t)).map(|(slot, n)| slot.bytes(n).to_vec());
    assert_eq!(found.unwrap(), DATA[5..9]);
    assert_eq!(host.ask(true, wanted, |p, t| p.getattr(7, t)).unwrap().mtime, -5);
    let mode = Wanted { mode: Some(0o600), ..Wanted::default() };
    assert_eq!(host.ask(true, wanted, |p, t| p.setattr(7, &mode, t)).unwrap_err(), Errno(libc::EROFS));
    assert_eq!((host.health().restarts, host.health().late), (0, 0));
}
