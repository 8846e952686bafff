//! A process that asked for the kernel's cache to be dropped can be killed, even while the kernel waits for a request that only
//! this process would have answered. (Waiting itself, it could not: that is why another one does.)

mod common;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use darner::errand::{Errands, Invalidator};
use darner::keeper;
use darner_fuse::{Attr, Config, DeferredReply, Entry, MountOptions, Notifier, Operation, Session};
use parking_lot::Mutex;

const FD: &str = "DARNER_TEST_FD";
const DIRECTLY: &str = "DARNER_TEST_DIRECTLY";
const SIZE: u64 = 4096;
/// What the page has: as long as it is held back, and from then on.
const OLD: u8 = 7;
const NEW: u8 = 8;

/// The process to be killed: it asks for the bytes of node 2 to be dropped, and does nothing else.
#[test]
fn a_process_that_asks() {
    let Some(fd) = keeper::inherited(FD) else { return };
    match std::env::var_os(DIRECTLY) {
        Some(_) => Notifier::over(fd).inval_inode(2, 0, 0).unwrap(),
        None => Invalidator::new(&Errands::with(common::DARNER.into()), fd.into(), false).inval_inodes(&[2]),
    }
}

fn ask(fd: &OwnedFd, directly: bool) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "a_process_that_asks", "--nocapture", "--test-threads=1"]);
    if directly {
        command.env(DIRECTLY, "1");
    }
    keeper::pass(&mut command, FD, fd);
    command.process_group(0).spawn().unwrap()
}

fn ends_within(child: &mut Child, limit: Duration) -> bool {
    let start = Instant::now();
    while start.elapsed() < limit {
        if child.try_wait().unwrap().is_some() {
            return true;
        }
        thread::sleep(Duration::from_millis(10));
    }
    false
}

/// One file of one page, whose reading waits until it is let go on. What was asked for while it is being read is not seen by
/// anybody afterwards.
#[test]
fn who_waits_for_an_invalidation_can_be_killed() {
    if !common::can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let fd = darner_fuse::mount(dir.path(), &MountOptions::default()).unwrap();
    let session = Session::init(fd, Config::default()).unwrap();
    let duplicate = session.duplicate().unwrap();
    let held: Arc<Mutex<Option<DeferredReply>>> = Arc::default();
    let hold = Arc::new(AtomicBool::new(true));
    let (holding, shall_hold) = (held.clone(), hold.clone());
    let server = thread::spawn(move || {
        let valid = Duration::from_secs(1000);
        let attr = |ino: u64| {
            let mode = if ino == 1 { libc::S_IFDIR | 0o755 } else { libc::S_IFREG | 0o644 };
            Attr { ino, mode, nlink: 1, size: SIZE, blksize: 4096, ..Attr::default() }
        };
        let handler =
            |request: darner_fuse::Request<'_>, reply: darner_fuse::Reply<'_>, _: &darner_fuse::Ctx<'_>| match request
                .op
            {
                Operation::Lookup { name: b"file" } => reply.entry(&Entry {
                    nodeid: 2,
                    entry_valid: valid,
                    attr_valid: valid,
                    attr: attr(2),
                    ..Entry::default()
                }),
                Operation::Getattr { .. } => reply.attr(&attr(request.nodeid), valid),
                Operation::Read { .. } if shall_hold.load(Ordering::SeqCst) => *holding.lock() = Some(reply.defer()),
                Operation::Read { .. } => reply.data(&[NEW; SIZE as usize]),
                // (So is an open: what the kernel has of the file stays.)
                _ => reply.error(libc::ENOSYS),
            };
        session.run(2, Duration::ZERO, &handler)
    });
    let path = dir.path().join("file");
    let notifier = Notifier::over(duplicate.try_clone().unwrap());
    for directly in [false, true] {
        hold.store(true, Ordering::SeqCst);
        let file = Arc::new(File::open(&path).unwrap());
        let read = |file: &File| {
            let mut found = [0; SIZE as usize];
            file.read_exact_at(&mut found, 0).unwrap();
            found
        };
        let reading = file.clone();
        let reader = thread::spawn(move || read(&reading));
        common::eventually("the page is being read", || held.lock().is_some());
        let mut child = ask(&duplicate, directly);
        assert!(!ends_within(&mut child, Duration::from_millis(500)), "it waits for the page");
        child.kill().unwrap();
        // If the kernel learns to give up waiting, errands are not needed any more.
        assert_eq!(ends_within(&mut child, Duration::from_secs(1)), !directly, "directly: {directly}");
        hold.store(false, Ordering::SeqCst);
        held.lock().take().unwrap().answer(|reply| reply.data(&[OLD; SIZE as usize]));
        // Dropped before its reader has seen it, the page is read once more.
        let found = reader.join().unwrap();
        assert!([[OLD; SIZE as usize], [NEW; SIZE as usize]].contains(&found));
        assert!(ends_within(&mut child, Duration::from_secs(5)), "the wait is over");
        common::eventually("the old page is dropped", || read(&file) == [NEW; SIZE as usize]);
        // (So that the next round finds nothing of it.)
        notifier.inval_inode(2, 0, 0).unwrap();
    }
    darner_fuse::unmount(dir.path(), true).unwrap();
    server.join().unwrap().unwrap();
}
