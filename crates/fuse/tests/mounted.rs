//! The real kernel as the client. Each test mounts a filesystem in memory on a directory of its own.

mod common;

use std::{
    ffi::CString,
    fs::{self, File, Permissions},
    io::{Read, Write},
    os::{
        fd::AsRawFd,
        unix::{ffi::OsStrExt, fs::MetadataExt, fs::PermissionsExt},
    },
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use common::{Manners, MemFs, Mounted};
use darner_fuse::{Config, Ended, MountOptions, Operation, abi, mount, unmount};

const POLL: Duration = Duration::from_micros(50);

fn mounted(manners: Manners) -> Option<Mounted> {
    Mounted::try_new(manners, Config::default(), 2, POLL)
}

fn logged() -> Manners {
    Manners { log: true, ..Default::default() }
}

#[test]
fn files_live_as_std_fs_expects() {
    for always_block in [false, true] {
        let Some(it) = mounted(Manners { always_block, ..Default::default() }) else {
            return;
        };
        println!("negotiated: {}", it.session.negotiated());
        println!("offered: {}", abi::init::names(it.session.negotiated().offered));
        println!("in force: {}", abi::init::names(it.session.negotiated().flags));
        fs::create_dir(it.path("dir")).unwrap();
        let file = it.path("dir/file");
        fs::write(&file, "one").unwrap();
        File::options().append(true).open(&file).unwrap().write_all(b" two").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "one two");
        fs::rename(&file, it.path("moved")).unwrap();
        assert!(!file.exists());
        fs::hard_link(it.path("moved"), it.path("hard")).unwrap();
        std::os::unix::fs::symlink("moved", it.path("soft")).unwrap();
        assert_eq!(fs::read_link(it.path("soft")).unwrap(), Path::new("moved"));
        fs::set_permissions(it.path("moved"), Permissions::from_mode(0o600)).unwrap();
        assert_eq!(fs::metadata(it.path("hard")).unwrap().mode() & 0o7777, 0o600);
        let mut names: Vec<_> = fs::read_dir(&it.path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["dir", "hard", "moved", "soft"]);
        assert_eq!(fs::remove_dir(it.path("nothing")).unwrap_err().raw_os_error(), Some(libc::ENOENT));
        fs::remove_file(it.path("moved")).unwrap();
        fs::remove_dir(it.path("dir")).unwrap();
        assert_eq!(it.unmount(), Ended::Unmounted);
    }
}

#[test]
fn large_writes_arrive_whole_and_many_names_are_all_listed() {
    let Some(it) = mounted(Manners::default()) else {
        return;
    };
    let data: Vec<u8> = (0..5_000_001u32).map(|n| ((n * 7) >> 3) as u8).collect();
    fs::write(it.path("large"), &data).unwrap();
    let mut back = Vec::new();
    File::open(it.path("large")).unwrap().read_to_end(&mut back).unwrap();
    assert!(back == data);
    for n in 0..2000 {
        File::create(it.path(format!("name {n}"))).unwrap();
    }
    assert_eq!(fs::read_dir(&it.path).unwrap().count(), 2001);
}

#[test]
fn many_clients_at_once_find_their_own_bytes() {
    let Some(it) = mounted(Manners::default()) else {
        return;
    };
    thread::scope(|scope| {
        for client in 0..8 {
            let it = &it;
            scope.spawn(move || {
                for n in 0..200 {
                    let (path, text) = (it.path(format!("{client}-{n}")), format!("{client} wrote {n}"));
                    fs::write(&path, &text).unwrap();
                    assert_eq!(fs::read_to_string(&path).unwrap(), text);
                    fs::remove_file(&path).unwrap();
                }
            });
        }
    });
}

#[test]
fn xattrs_and_statfs_pass() {
    let Some(it) = mounted(Manners::default()) else {
        return;
    };
    let path = it.path("file");
    fs::write(&path, "x").unwrap();
    let (c_path, name) = (CString::new(path.as_os_str().as_bytes()).unwrap(), c"user.colour");
    let mut value = [0u8; 16];
    // SAFETY: NUL-terminated strings, and buffers with their lengths.
    unsafe {
        let set = libc::setxattr(c_path.as_ptr(), name.as_ptr(), b"green".as_ptr().cast(), 5, 0);
        assert_eq!(set, 0);
        let got = libc::getxattr(c_path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), 16);
        assert_eq!(&value[..got as usize], b"green");
        let small = libc::getxattr(c_path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), 2);
        assert_eq!((small, std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::ERANGE)));
        let list = libc::listxattr(c_path.as_ptr(), value.as_mut_ptr().cast(), 16);
        assert_eq!(&value[..list as usize], b"user.colour\0");
        let mut figures: libc::statfs = std::mem::zeroed();
        assert_eq!(libc::statfs(c_path.as_ptr(), &raw mut figures), 0);
        assert_eq!((figures.f_blocks, figures.f_namelen), (1000, 255));
    }
}

#[test]
fn the_mount_table_shows_source_and_type() {
    let Some(it) = mounted(Manners::default()) else {
        return;
    };
    let table = fs::read_to_string("/proc/mounts").unwrap();
    let line = table.lines().find(|line| line.contains(it.path.to_str().unwrap())).unwrap();
    assert!(line.starts_with("mem ") && line.split(' ').nth(2) == Some("fuse.darner"), "{line}");
    println!("{line}");
}

#[test]
fn a_slow_request_does_not_keep_others_waiting() {
    let Some(it) = mounted(Manners::default()) else {
        return;
    };
    // In directories of their own: the kernel serialises what changes one directory.
    fs::create_dir(it.path("a")).unwrap();
    it.fs.close_gate();
    let gated = it.path("a/gated");
    let slow = thread::spawn(move || fs::create_dir(gated));
    thread::sleep(Duration::from_millis(50));
    fs::write(it.path("quick"), "here").unwrap();
    assert!(!slow.is_finished());
    it.fs.open_gate();
    slow.join().unwrap().unwrap();
}

#[test]
fn a_successor_answers_what_its_predecessor_left_behind() {
    let Some(mut it) = mounted(logged()) else {
        return;
    };
    fs::write(it.path("before"), "kept").unwrap();
    // The kernel knows this file, so that the next request is SETATTR itself.
    fs::metadata(it.path("before")).unwrap();
    // The predecessor reads the request, answers nothing and goes: what the kernel sees when a worker is killed.
    let fd = it.session.duplicate().unwrap();
    let stopper = it.session.stopper();
    stopper.stop();
    thread::sleep(Duration::from_millis(50));
    let path = it.path("before");
    let client = thread::spawn(move || fs::set_permissions(path, Permissions::from_mode(0o600)));
    let mut request = vec![0u8; (1 << 20) + 8192];
    loop {
        // SAFETY: the buffer is ours for the call.
        let read = unsafe { libc::read(fd.as_raw_fd(), request.as_mut_ptr().cast(), request.len()) };
        if read > 0 {
            break;
        }
        thread::sleep(Duration::from_millis(1));
    }
    thread::sleep(Duration::from_millis(50));
    assert!(!client.is_finished());
    let fs = Arc::clone(&it.fs);
    fs.take_log();
    assert_eq!(it.replace_session(fs), Ended::Stopped);
    client.join().unwrap().unwrap();
    let log = it.fs.take_log();
    assert!(log.contains(&"SETATTR (resent)".to_string()), "{log:?}");
    println!("{log:?}");
    assert_eq!(fs::read_to_string(it.path("before")).unwrap(), "kept");
    assert_eq!(fs::metadata(it.path("before")).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(it.unmount(), Ended::Unmounted);
}

#[test]
fn a_stop_ends_a_sleeping_session_at_once_and_the_mount_waits() {
    let Some(mut it) = Mounted::try_new(Manners::default(), Config::default(), 3, Duration::ZERO) else {
        return;
    };
    thread::sleep(Duration::from_millis(20));
    let start = Instant::now();
    let fs = Arc::clone(&it.fs);
    assert_eq!(it.replace_session(fs), Ended::Stopped);
    assert!(start.elapsed() < Duration::from_millis(500));
    fs::write(it.path("after"), "x").unwrap();
}

#[test]
fn notifications_drop_what_the_kernel_caches() {
    let Some(it) = mounted(logged()) else { return };
    fs::write(it.path("file"), "x").unwrap();
    let asks = |op: &str| {
        it.fs.take_log();
        fs::metadata(it.path("file")).unwrap();
        it.fs.take_log().iter().any(|line| line.starts_with(op))
    };
    fs::metadata(it.path("file")).unwrap();
    let node = fs::metadata(it.path("file")).unwrap().ino();
    let notifier = it.session.notifier();
    assert!(!asks("LOOKUP") && !asks("STATX"));
    notifier.inval_inode(node, 0, 0).unwrap();
    assert!(asks("STATX"), "std asks for the birth time, so STATX it is, not GETATTR");
    notifier.inval_entry(1, b"file").unwrap();
    assert!(asks("LOOKUP"));
    notifier.expire_entry(1, b"file").unwrap();
    assert!(asks("LOOKUP"));
    assert!(!asks("LOOKUP"));
    notifier.inval_entry(1, b"unheard of").unwrap();
    notifier.delete(1, node, b"file").unwrap();
    it.fs.take_log();
}

#[test]
fn a_panic_in_the_handler_reaches_the_caller_of_run() {
    let Some(it) = mounted(Manners::default()) else {
        return;
    };
    // So that the kernel knows the root's attributes.
    fs::metadata(&it.path).unwrap();
    it.session.stopper().stop();
    thread::sleep(Duration::from_millis(20));
    let fd = it.session.duplicate().unwrap();
    let session = darner_fuse::Session::adopt(fd, *it.session.negotiated()).unwrap();
    let handler = |request: darner_fuse::Request<'_>, reply: darner_fuse::Reply<'_>, _: &darner_fuse::Ctx<'_>| {
        if let Operation::Mkdir { .. } = request.op {
            let _reply = reply;
            std::panic::resume_unwind(Box::new("the handler's bug"));
        }
        reply.error(libc::ENOENT);
    };
    let path = it.path("boom");
    let client = thread::spawn(move || fs::create_dir(path));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| session.run(3, POLL, &handler)));
    assert!(panicked.is_err());
    assert!(!client.is_finished(), "the request is left for a successor");
    // The lazy unmount at the end of the test ends the client's wait.
    unmount(&it.path, true).unwrap();
    drop((session, it));
    assert!(client.join().unwrap().is_err());
}

#[test]
fn mount_errors_say_what_to_do() {
    let why = |path: &Path| mount(path, &MountOptions::default()).unwrap_err().to_string();
    assert!(why(Path::new("/nonexistent/dir")).contains("create it first"));
    assert!(why(Path::new("/proc/version")).contains("not a directory"));
    let dir = tempfile::tempdir().unwrap();
    let error = unmount(dir.path(), false).unwrap_err().to_string();
    println!("{error}");
}

#[test]
fn unmounting_a_busy_mount_is_refused_and_lazily_granted() {
    let Some(it) = mounted(Manners::default()) else {
        return;
    };
    let open = File::create(it.path("held")).unwrap();
    assert!(unmount(&it.path, false).unwrap_err().to_string().contains("in use"));
    unmount(&it.path, true).unwrap();
    drop(open);
    let _fs: Arc<MemFs> = Arc::clone(&it.fs);
}
