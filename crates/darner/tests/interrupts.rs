//! Signals for programs that wait for a plug-in: death is not waited for, and all other signals wait.

mod common;

use std::ffi::CString;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::attached::{attach, python, status};
use common::{World, eventually};

/// Far more than death may take, and far less than the deadline of the calls.
const SOON: Duration = Duration::from_secs(5);

fn signal(pid: u32, signal: i32) {
    // SAFETY: a plain system call.
    assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
}

/// Long enough for most to get to where they wait; who does not dies all the same.
const ON_THE_WAY: Duration = Duration::from_millis(500);

/// As a shell starts it for who sits at a terminal.
fn start(program: &str, args: &[&str]) -> Child {
    let mut command = Command::new(program);
    command.args(args).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: plain system calls between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGINT, libc::SIG_DFL);
            Ok(())
        })
    };
    command.spawn().unwrap()
}

/// Ends all by a signal; how long the last one took.
fn end(mut waiting: Vec<Child>, by: i32) -> Duration {
    let begun = Instant::now();
    waiting.iter().for_each(|child| signal(child.id(), by));
    for child in &mut waiting {
        assert_eq!(child.wait().unwrap().signal(), Some(by));
    }
    begun.elapsed()
}

#[test]
fn who_waits_for_a_plug_in_that_hangs_can_be_killed() {
    let Some(world) = World::new() else { return };
    let Some(program) = python(&world, "") else { return };
    let at = attach(&world, "py", &["--deadline=60s", "--writable", "--", &program]);
    let path = |name: &str| at.join(name).to_str().unwrap().to_string();
    let file = path("hello.txt");
    std::fs::write(path("there"), "x").unwrap();
    let plugin = status(&world, "py")["plugin_pid"].as_u64().unwrap() as u32;
    signal(plugin, libc::SIGSTOP);
    let source = format!("if={file}");
    for by in [libc::SIGKILL, libc::SIGINT, libc::SIGTERM, libc::SIGKILL] {
        // More than the host has threads, and in the end more than there is room for in its memory and on its link.
        // (dd catches Ctrl-C.)
        let reader = |n| match by {
            libc::SIGINT => start("stat", &[&path(&format!("unknown{n}"))]),
            _ => start("dd", &["iflag=direct", &source]),
        };
        let mut waiting: Vec<Child> = (0..20).map(reader).collect();
        waiting.extend([
            start("cat", &[&file]),
            start("stat", &[&path("unknown")]),
            start("ls", &["-l", &path("")]),
            start("truncate", &["-s", "7", &path("there")]),
        ]);
        thread::sleep(ON_THE_WAY);
        let took = end(waiting, by);
        eprintln!("signal {by}: the last one took {took:?}");
        assert!(took < SOON, "{took:?}");
    }
    signal(plugin, libc::SIGCONT);
    assert_eq!(std::fs::read(&file).unwrap(), b"Hello from Python.\n");
    let s = status(&world, "py");
    assert_eq!((s["restarts"].as_u64(), s["late_calls"].as_u64()), (Some(0), Some(0)), "nothing was too late");
}

#[test]
fn who_was_interrupted_before_can_still_be_killed() {
    let Some(world) = World::new() else { return };
    if !Path::new("/usr/bin/python3").exists() {
        return eprintln!("SKIPPED: needs /usr/bin/python3");
    }
    let file = attach(&world, "hi", &["--deadline=60s", "hello"]).join("hello.txt");
    let plugin = status(&world, "hi")["plugin_pid"].as_u64().unwrap() as u32;
    let program = "import os, signal, sys\n\
        signal.signal(signal.SIGALRM, lambda *_: None)\n\
        signal.signal(signal.SIGINT, lambda *_: None)\n\
        signal.setitimer(signal.ITIMER_REAL, .01, .01)\n\
        open(sys.argv[2], 'w').close()\n\
        os.stat(sys.argv[1])";
    signal(plugin, libc::SIGSTOP);
    let ready = world.dir.join("ready");
    let mut child = start("python3", &["-c", program, file.to_str().unwrap(), ready.to_str().unwrap()]);
    eventually("it is ready", || ready.exists());
    thread::sleep(ON_THE_WAY);
    signal(child.id(), libc::SIGINT);
    thread::sleep(ON_THE_WAY);
    assert!(child.try_wait().unwrap().is_none(), "a signal that it catches does not end the call");
    assert!(end(vec![child], libc::SIGKILL) < SOON);
    signal(plugin, libc::SIGCONT);
}

#[test]
fn who_waits_in_a_process_namespace_of_its_own_can_be_killed_too() {
    let Some(world) = World::new() else { return };
    let file = attach(&world, "hi", &["--deadline=60s", "hello"]).join("hello.txt");
    let plugin = status(&world, "hi")["plugin_pid"].as_u64().unwrap() as u32;
    signal(plugin, libc::SIGSTOP);
    let source = format!("if={}", file.display());
    // As root, or in a user namespace as well. Its first process dies with all in it, the one that waits among them.
    let mut inside = start(
        "unshare",
        &["--user", "--map-root-user", "--pid", "--fork", "--kill-child", "dd", "iflag=direct", &source],
    );
    thread::sleep(ON_THE_WAY);
    if let Some(status) = inside.try_wait().unwrap() {
        signal(plugin, libc::SIGCONT);
        return eprintln!("SKIPPED: no namespaces here ({status})");
    }
    let begun = Instant::now();
    assert!(end(vec![inside], libc::SIGKILL) < SOON);
    eventually("who waited is gone", || running(&source) == 0);
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    signal(plugin, libc::SIGCONT);
}

/// Processes with this argument.
fn running(argument: &str) -> usize {
    let lines =
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(|p| std::fs::read(p.path().join("cmdline")).ok());
    lines.filter(|line| line.split(|b| *b == 0).any(|word| word == argument.as_bytes())).count()
}

extern "C" fn nothing(_: libc::c_int) {}

/// The system call's result, which has to be no error at the first try.
#[track_caller]
fn at_once(result: isize) -> isize {
    assert!(result >= 0, "{}", io::Error::last_os_error());
    result
}

#[test]
fn a_program_that_catches_signals_all_the_time_sees_nothing_of_them_however_slow_the_plug_in() {
    let Some(world) = World::new() else { return };
    let slow = "for name in ['lookup', 'getattr', 'read', 'write', 'create', 'unlink', 'rename', 'readdir', 'setattr']:\n\
        \x20   def made(was):\n\
        \x20       def slowly(self, c):\n\
        \x20           time.sleep(.12 if random.random() < .05 else .002)\n\
        \x20           return was(self, c)\n\
        \x20       return slowly\n\
        \x20   setattr(Memory, name, made(getattr(Memory, name)))";
    let Some(program) = python(&world, slow) else { return };
    let at = attach(&world, "py", &["--writable", "--", &program]);
    // SAFETY: a handler that does nothing, without SA_RESTART, for a signal that nothing else here uses.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()), 0);
    }
    let name = |n: u32| CString::new(at.join(format!("f{n}")).to_str().unwrap()).unwrap();
    let work = |n: u32| {
        let (path, other) = (name(n), name(n + 1000));
        let bytes = vec![n as u8; 5000];
        let mut back = vec![0; 6000];
        // SAFETY: valid strings and buffers of those lengths; the descriptor is this call's.
        unsafe {
            let how =
                libc::O_CREAT | libc::O_EXCL | libc::O_RDWR | if n.is_multiple_of(2) { libc::O_DIRECT } else { 0 };
            let fd = at_once(libc::open(path.as_ptr(), how, 0o600) as isize) as i32;
            assert_eq!(at_once(libc::pwrite(fd, bytes.as_ptr().cast(), 5000, 0)), 5000);
            assert_eq!(at_once(libc::pread(fd, back.as_mut_ptr().cast(), 6000, 0)), 5000);
            assert_eq!(back[..5000], bytes);
            at_once(libc::ftruncate(fd, 10) as isize);
            at_once(libc::rename(path.as_ptr(), other.as_ptr()) as isize);
            at_once(libc::access(other.as_ptr(), libc::R_OK) as isize);
            at_once(libc::unlink(other.as_ptr()) as isize);
            at_once(libc::close(fd) as isize);
        }
    };
    let thread = AtomicI32::new(0);
    std::thread::scope(|s| {
        let worker = s.spawn(|| {
            // SAFETY: a plain system call.
            thread.store(unsafe { libc::gettid() }, Ordering::Relaxed);
            (0..30).for_each(work);
        });
        while !worker.is_finished() {
            // SAFETY: a plain system call; without such a thread it fails.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread.load(Ordering::Relaxed), libc::SIGUSR1) };
            std::thread::sleep(Duration::from_micros(300));
        }
    });
    assert_eq!(std::fs::read_dir(&at).unwrap().count(), 1, "the file that is always there");
}
