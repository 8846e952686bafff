//! Plug-ins that are killed, hang, or want everything: only their own directory notices, and nothing stays behind.

mod common;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::attached::{attach, python, status, try_attach};
use common::{World, eventually, long};

/// That process, as soon as there is one.
fn pid(world: &World, dir: &str, who: &str) -> i32 {
    let mut pid = 0;
    eventually("there is a process", || {
        pid = status(world, dir)[who].as_i64().unwrap_or(0) as i32;
        pid > 0
    });
    pid
}

/// The child of the child … of a process: below the host of an attachment, its plug-in.
fn youngest(pid: i32) -> i32 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children = tasks.flat_map(|task| fs::read_to_string(task.path().join("children")));
    children.flat_map(|list| list.split(' ').find_map(|child| child.parse().ok())).next().map_or(pid, youngest)
}

fn signal(pid: i32, signal: i32) {
    // SAFETY: a plain system call.
    unsafe { libc::kill(pid, signal) };
}

/// A read that the kernel's cache does not answer.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path)?;
    let mut buffer = vec![0; 4096];
    let n = file.read_at(&mut buffer, 0)?;
    buffer.truncate(n);
    Ok(buffer)
}

/// How long each of the usual small things takes elsewhere in the mount, until told to stop.
fn elsewhere(world: &World, stop: &AtomicBool) -> Vec<Duration> {
    let dir = world.path("elsewhere");
    fs::create_dir_all(&dir).unwrap();
    let mut took = Vec::new();
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        let path = dir.join((n % 50).to_string());
        let start = Instant::now();
        fs::write(&path, n.to_string()).unwrap();
        fs::metadata(dir.join(format!("none{n}"))).unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), n.to_string());
        fs::remove_file(&path).unwrap();
        took.push(start.elapsed());
        n += 1;
        thread::sleep(Duration::from_millis(1));
    }
    took.sort();
    took
}

fn p99(took: &[Duration]) -> Duration {
    took[took.len() * 99 / 100]
}

/// Runs something while the rest of the mount is in use; says how that was.
fn beside(world: &World, during: impl FnOnce()) -> Vec<Duration> {
    let stop = AtomicBool::new(false);
    thread::scope(|s| {
        let rest = s.spawn(|| elsewhere(world, &stop));
        let stopping = Stop(&stop);
        during();
        drop(stopping);
        rest.join().unwrap()
    })
}

/// Stops the others, also when a check fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

const HELLO: &[u8] = b"Hello from a process of its own.\n";

#[test]
fn killed_again_and_again_a_plug_in_costs_nobody_an_answer_and_its_host_nothing() {
    let Some(world) = World::new() else { return };
    let file = attach(&world, "hi", &["hello"]).join("hello.txt");
    let host = pid(&world, "hi", "host_pid");
    let holds = || {
        let fds = fs::read_dir(format!("/proc/{host}/fd")).unwrap().count();
        let rss = fs::read_to_string(format!("/proc/{host}/statm")).unwrap();
        (fds, rss.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096)
    };
    let (kills, alone) = if long() { (1000, Duration::from_secs(30)) } else { (25, Duration::from_secs(1)) };
    let mut before = holds();
    // Three readers, and what files elsewhere take meanwhile; how long the longest of the readers' reads took.
    let under_readers = |during: &mut dyn FnMut()| {
        let (mut longest, stop) = (Duration::ZERO, AtomicBool::new(false));
        let took = beside(&world, || {
            thread::scope(|s| {
                let reader = || {
                    let mut longest = Duration::ZERO;
                    while !stop.load(Ordering::Relaxed) {
                        let start = Instant::now();
                        assert_eq!(read(&file).unwrap(), HELLO);
                        longest = longest.max(start.elapsed());
                    }
                    longest
                };
                let readers = [(); 3].map(|()| s.spawn(reader));
                let stopping = Stop(&stop);
                during();
                drop(stopping);
                longest = readers.into_iter().map(|r| r.join().unwrap()).max().unwrap();
            });
        });
        (took, longest)
    };
    // What a loop of kills takes by itself, without and with the kills.
    let mut rounds = |kill: bool| {
        under_readers(&mut || {
            let (mut killed, mut last, start) = (0, host, Instant::now());
            while if kill { killed < kills } else { start.elapsed() < alone } {
                let plugin = youngest(host);
                if kill && plugin != host && plugin != last {
                    signal(plugin, libc::SIGKILL);
                    (killed, last) = (killed + 1, plugin);
                }
                thread::sleep(Duration::from_millis(15 + killed % 7 * 5));
                if killed == 5 {
                    before = holds();
                }
            }
            pid(&world, "hi", "plugin_pid");
        })
    };
    let (calm, _) = rounds(false);
    let (took, longest) = rounds(true);
    eprintln!("{kills} kills: no read failed, the longest took {longest:?}");
    eprintln!(
        "elsewhere: p99 {:?} of {}, longest {:?}; without kills p99 {:?}",
        p99(&took),
        took.len(),
        took.last().unwrap(),
        p99(&calm)
    );
    assert!(status(&world, "hi")["restarts"].as_u64().unwrap() >= kills / 2);
    eventually("descriptors are given back", || holds().0 <= before.0 + 2);
    assert!(holds().1 <= before.1 + (4 << 20), "{before:?} {:?}", holds());
}

#[test]
fn one_that_hangs_costs_its_callers_the_deadline_and_nobody_else_anything() {
    let Some(world) = World::new() else { return };
    let file = attach(&world, "hi", &["--deadline=700ms", "hello"]).join("hello.txt");
    attach(&world, "other", &["hello"]);
    let took = beside(&world, || {
        // Known to the kernel: it looks a name up for one caller after the other.
        assert_eq!(read(&file).unwrap(), HELLO);
        signal(pid(&world, "hi", "plugin_pid"), libc::SIGSTOP);
        thread::scope(|s| {
            let hung: Vec<_> = (0..20)
                .map(|_| {
                    s.spawn(|| {
                        let start = Instant::now();
                        (read(&file).map_err(|e| e.raw_os_error().unwrap()), start.elapsed())
                    })
                })
                .collect();
            assert_eq!(read(&world.path("other/hello.txt")).unwrap(), HELLO);
            let outcomes: Vec<_> = hung.into_iter().map(|t| t.join().unwrap()).collect();
            assert!(outcomes.iter().any(|o| o.0 == Err(libc::ETIMEDOUT)));
            for (outcome, took) in outcomes {
                assert!(matches!(&outcome, Err(libc::ETIMEDOUT)) || outcome.as_deref() == Ok(HELLO), "{outcome:?}");
                assert!(took < Duration::from_secs(4), "{took:?}");
            }
        });
        // It was killed, and another one is there.
        assert_eq!(read(&file).unwrap(), HELLO);
    });
    let s = status(&world, "hi");
    assert_eq!(s["restarts"], 1);
    assert!(
        s["late_calls"].as_u64().unwrap() >= 1 && s["last_end"].as_str().unwrap().contains("did not answer in time")
    );
    assert!(p99(&took) < Duration::from_millis(200), "{took:?}");
}

#[test]
fn one_that_answers_but_stays_at_work_on_a_call_is_ended_whether_somebody_waits_or_not() {
    let Some(world) = World::new() else { return };
    let burn = r#"
import threading

class Link(Link):
    def messages(self):
        for kind, number, body in super().messages():
            if kind == COMMAND and struct.unpack_from("<H", body)[0] == 5:
                threading.Thread(target=self.burn).start()
            else:
                yield kind, number, body

    def burn(self):
        while True:
            pass
"#;
    let Some(program) = python(&world, burn) else { return };
    let at = attach(&world, "py", &["--deadline=1s", "--", &program]);
    let file = at.join("hello.txt");
    let mut missing = 0;
    // The whole time it answers others.
    let mut ended = |pid: i32, times: u64| {
        let begun = Instant::now();
        while status(&world, "py")["restarts"] != times {
            missing += 1;
            let outcome = fs::metadata(at.join(format!("none{missing}"))).unwrap_err().raw_os_error();
            assert_eq!(outcome, Some(libc::ENOENT));
            assert!(begun.elapsed() < Duration::from_secs(30), "it is still there");
            thread::sleep(Duration::from_millis(5));
        }
        eventually("its process is gone", || !Path::new(&format!("/proc/{pid}")).exists());
        let last = status(&world, "py")["last_end"].as_str().unwrap().to_string();
        assert!(last.contains("unanswered long after its deadline"), "{last}");
    };
    let burning = pid(&world, "py", "plugin_pid");
    thread::scope(|s| {
        let waits = s.spawn(|| read(&file).unwrap_err().raw_os_error());
        ended(burning, 1);
        assert_eq!(waits.join().unwrap(), Some(libc::ETIMEDOUT));
    });
    // Who asked has been killed, and nobody asks for anything else.
    let burning = pid(&world, "py", "plugin_pid");
    let mut reader = Command::new("dd")
        .arg(format!("if={}", file.display()))
        .arg("iflag=direct")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    thread::sleep(Duration::from_millis(300));
    reader.kill().unwrap();
    reader.wait().unwrap();
    eventually("it is ended", || !Path::new(&format!("/proc/{burning}")).exists());
    ended(burning, 2);
}

/// For a minute in the long form.
#[test]
fn one_that_is_stopped_for_long_is_waited_for_within_the_deadline_and_harms_nobody() {
    let Some(world) = World::new() else { return };
    let seconds = if long() { 60 } else { 2 };
    let patient = attach(&world, "patient", &["--deadline=120s", "hello"]).join("hello.txt");
    let strict = attach(&world, "strict", &["--deadline=700ms", "hello"]).join("hello.txt");
    let calm = beside(&world, || thread::sleep(Duration::from_secs(seconds.min(10))));
    let pids = ["patient", "strict"].map(|dir| pid(&world, dir, "plugin_pid"));
    let took = beside(&world, || {
        thread::scope(|s| {
            pids.iter().for_each(|pid| signal(*pid, libc::SIGSTOP));
            let waits: Vec<_> = (0..8).map(|_| s.spawn(|| read(&patient))).collect();
            let fails = s.spawn(|| read(&strict));
            thread::sleep(Duration::from_secs(seconds));
            assert!(waits.iter().all(|w| !w.is_finished()), "nobody answers for it");
            signal(pids[0], libc::SIGCONT);
            waits.into_iter().for_each(|w| assert_eq!(w.join().unwrap().unwrap(), HELLO));
            assert_eq!(fails.join().unwrap().map_err(|e| e.raw_os_error()), Err(Some(libc::ETIMEDOUT)));
        });
        assert_eq!(read(&strict).unwrap(), HELLO);
    });
    eprintln!("stopped for {seconds} s: elsewhere p99 {:?} of {}, calm {:?}", p99(&took), took.len(), p99(&calm));
    assert_eq!(
        (status(&world, "patient")["restarts"].as_u64(), status(&world, "strict")["restarts"].as_u64()),
        (Some(0), Some(1))
    );
    assert!(p99(&took) < 20 * p99(&calm) + Duration::from_millis(20), "{:?}", p99(&took));
}

#[test]
fn one_that_fails_again_and_again_is_given_up_and_what_is_asked_is_eio_at_once() {
    let Some(world) = World::new() else { return };
    let crash = "class Memory(Memory):\n    def read(self, c):\n        os.abort()";
    let Some(program) = python(&world, crash) else { return };
    let at = attach(&world, "py", &["--", &program]);
    let failed = || read(&at.join("hello.txt")).unwrap_err().raw_os_error() == Some(libc::EIO);
    assert!(failed());
    eventually("it is given up", || {
        assert!(failed());
        status(&world, "py")["state"].as_str().unwrap().contains("given up")
    });
    let start = Instant::now();
    assert!(failed() && start.elapsed() < Duration::from_millis(100));
    world.darner(&["detach", at.to_str().unwrap()]);
}

#[test]
fn bombs_go_off_in_their_own_room() {
    let Some(world) = World::new() else { return };
    let seconds = if long() { 20 } else { 2 };
    let bombs = [
        // Processes, as many as it can have.
        (
            "--processes=40",
            "def bomb():\n    while True:\n        try:\n            os.fork()\n        except OSError:\n            pass",
        ),
        (
            "--processes=1",
            "def bomb():\n    import threading\n    while True:\n        try:\n            threading.Thread(target=bomb).start()\n        except RuntimeError:\n            pass",
        ),
        (
            "--processes=1",
            "def bomb():\n    hoard = []\n    while True:\n        hoard.append(bytearray(b'x') * (1 << 24))",
        ),
    ];
    let calm = beside(&world, || thread::sleep(Duration::from_secs(seconds)));
    eprintln!("calm: p99 {:?} of {}", p99(&calm), calm.len());
    for (n, (option, bomb)) in bombs.into_iter().enumerate() {
        let fuse = format!("{bomb}\nclass Memory(Memory):\n    def read(self, c):\n        bomb()");
        let Some(program) = python(&world, &fuse) else { return };
        let at = attach(&world, "py", &[option, "--deadline=500ms", "--memory=256M", "--", &program]);
        let took = beside(&world, || {
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(seconds) {
                read(&at.join("hello.txt")).unwrap_err();
                thread::sleep(Duration::from_millis(20));
            }
        });
        eprintln!("bomb {n}: p99 {:?} of {}, longest {:?}", p99(&took), took.len(), took.last().unwrap());
        assert!(p99(&took) < 20 * p99(&calm) + Duration::from_millis(20), "bomb {n}");
        let host = pid(&world, "py", "host_pid");
        world.darner(&["detach", at.to_str().unwrap()]);
        eventually("nothing of it is left", || {
            processes(&program) == 0 && !PathBuf::from(format!("/proc/{host}")).exists()
        });
    }
}

/// Processes whose command line has this word.
fn processes(word: &str) -> usize {
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter(|p| fs::read(p.path().join("cmdline")).is_ok_and(|l| l.split(|b| *b == 0).any(|w| w == word.as_bytes())))
        .count()
}

/// What could be left behind.
#[derive(Debug)]
struct Held {
    /// On the whole machine, where others open files as well.
    files: usize,
    mounts: usize,
    processes: usize,
    /// Of the daemon around: descriptors, threads, bytes.
    fds: usize,
    threads: usize,
    memory: usize,
}

fn held(world: &World, daemon: i32, word: &str) -> Held {
    let open = fs::read_to_string("/proc/sys/fs/file-nr").unwrap();
    // Others on this machine mount, too.
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let mounts = table.lines().filter(|l| l.contains(world.dir.to_str().unwrap())).count();
    let of = |what: &str| fs::read_dir(format!("/proc/{daemon}/{what}")).unwrap().count();
    let pages = fs::read_to_string(format!("/proc/{daemon}/statm")).unwrap();
    Held {
        files: open.split_whitespace().next().unwrap().parse().unwrap(),
        mounts,
        processes: processes(word),
        fds: of("fd"),
        threads: of("task"),
        memory: pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096,
    }
}

#[test]
fn rounds_of_attaching_killing_and_detaching_leave_nothing_behind() {
    let Some(world) = World::new() else { return };
    let rounds = match std::env::var("DARNER_ROUNDS").ok().and_then(|n| n.parse().ok()) {
        Some(rounds) => rounds,
        None if long() => 10_000,
        None => 25,
    };
    let (daemon, directory) = (world.daemon_pid(), world.path("hi"));
    let word = directory.to_str().unwrap();
    let settled = || {
        eventually("its processes end", || processes(word) == 0);
        held(&world, daemon, word)
    };
    let mut before = None;
    let start = Instant::now();
    for round in 0..rounds {
        let at = attach(&world, "hi", &["hello"]);
        let who = ["plugin_pid", "host_pid", "supervisor_pid"][round % 3];
        signal(pid(&world, "hi", who), libc::SIGKILL);
        assert_eq!(fs::read(at.join("hello.txt")).unwrap(), HELLO);
        world.darner(&["detach", at.to_str().unwrap()]);
        if round == 5 {
            before = Some(settled());
        }
    }
    let (before, after) = (before.expect("more rounds than that"), settled());
    eprintln!("{rounds} rounds, {:?} each; {before:?}, then {after:?}", start.elapsed() / rounds as u32);
    assert_eq!((after.mounts, after.processes), (before.mounts, 0));
    eventually("descriptors are given back", || held(&world, daemon, word).files <= before.files + 500);
    eventually("the daemon has what it had", || {
        let now = held(&world, daemon, word);
        now.fds <= before.fds + 2 && now.threads <= before.threads + 2
    });
    assert!(after.memory <= before.memory + (16 << 20), "{before:?} {after:?}");
    drop(File::open(&directory).unwrap());
}

#[test]
fn one_that_does_not_answer_when_it_is_attached_is_gone_with_the_error() {
    let Some(world) = World::new() else { return };
    let hang = r#"
class Memory(Memory):
    def getattr(self, c):
        time.sleep(1000)
"#;
    let Some(program) = python(&world, hang) else { return };
    let why = try_attach(&world, "py", &["--deadline=300ms", "--writable", "--", &program]).unwrap_err();
    assert!(why.contains("just attached"), "{why}");
    assert_eq!(world.status()["attachments"].as_array().unwrap().len(), 0);
    assert_eq!(world.sh("ls py; mountpoint -q py || echo none"), "none");
    let hosts = format!("pgrep -f '[h]ost .*{}' || echo none", world.path("py").display());
    eventually("its processes end", || world.sh_outside(&hosts) == "none");
}

#[test]
fn what_a_plug_in_prints_neither_fills_nor_truncates_the_log() {
    let Some(world) = World::new() else { return };
    let chatty = r#"
class Memory(Memory):
    def start(self, c):
        os.write(2, b"first words\n")
        try:
            os.ftruncate(2, 0)
        except OSError:
            pass
        for n in range(300):
            os.write(2, b"chatter\n" * 8192)
        return super().start(c)
"#;
    let Some(program) = python(&world, chatty) else { return };
    attach(&world, "py", &["--", &program]);
    let log = || fs::read_to_string(world.dir.join("host.log")).unwrap();
    eventually("what was dropped is told", || log().contains(" bytes dropped"));
    let log = log();
    assert!(log.contains("plug-in: first words\n"), "{}", log.len());
    assert!(log.len() < 2_000_000, "{} bytes", log.len());
}
