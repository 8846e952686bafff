//! Who waits for something new is told when there is something, and not before.

#[path = "../../fs/tests/common/mod.rs"]
mod common;

use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use common::{SECOND, START, open_store};
use darner_fs::{Caller as User, FilesetId, Fs, ROOT, Tid};
use darner_mirror::{Puller, Source};
use darner_syslink::{CallError, Code, Config, Link, Message, Peer, Refuse, Reply, Service, unix};

/// Serves one fileset only.
struct Within(Arc<Source>, [u32; 1]);

impl Service for Within {
    fn call(&self, peer: &Peer, command: Message, reply: Reply) {
        self.0.serve(peer, &command, reply, Some(&self.1));
    }
}

type Told = Receiver<Result<(), CallError>>;

fn wait(link: &Link, fileset: FilesetId, since: Tid) -> Told {
    let (tell, told) = channel();
    link.call_then(Puller::wait(fileset, since), None, move |answer| _ = tell.send(answer.map(drop))).unwrap();
    told
}

fn connected(service: Arc<dyn Service>) -> (Link, Link) {
    let mut fds = [0; 2];
    // SAFETY: an array of two; both descriptors are new and ours.
    let (ours, theirs) = unsafe {
        assert_eq!(libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr()), 0);
        (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]))
    };
    let everybody = |_: &_, _: &_, _| Ok(());
    let accepting = thread::spawn(move || unix::accept_over(theirs, &Config::default(), &everybody, service).unwrap());
    let link = unix::connect_over(ours, darner_mirror::SERVICE, &Config::default(), Arc::new(Refuse)).unwrap();
    (link, accepting.join().unwrap())
}

#[test]
fn who_waits_is_answered_when_there_is_something_new_and_not_before() {
    let (soon, not) = (Duration::from_secs(10), Duration::from_millis(50));
    let fs = Arc::new(Fs::create(open_store(&common::new_disk()), 0, 0, 0o755, START + 1).unwrap());
    let source = Arc::new(Source::new(fs.clone()));
    let telling = thread::spawn({
        let source = source.clone();
        move || source.tell_news()
    });
    let write = |n: u64| {
        let (now, name) = (START + n * SECOND, n.to_string());
        fs.mknod(&User::default(), now, fs.root(), name.as_bytes(), libc::S_IFREG | 0o644, 0).unwrap();
        source.changed(false);
    };
    let (link, _accepted) = connected(source.clone());
    let is_silent = |told: &Told| told.recv_timeout(not) == Err(RecvTimeoutError::Timeout);
    for n in 1..5 {
        let (one, other) = (wait(&link, ROOT.fileset, fs.followable()), wait(&link, ROOT.fileset, fs.followable()));
        source.changed(false);
        assert!(is_silent(&one) && is_silent(&other), "nothing is new");
        write(n);
        assert_eq!([one, other].map(|told| told.recv_timeout(soon)), [Ok(Ok(())), Ok(Ok(()))]);
    }
    let before = fs.followable();
    write(5);
    assert_eq!(wait(&link, ROOT.fileset, before).recv_timeout(soon), Ok(Ok(())), "something was new already");
    // (They find out where it is by looking.)
    let told = wait(&link, ROOT.fileset, fs.followable());
    source.changed(true);
    assert_eq!(told.recv_timeout(soon), Ok(Ok(())));
    // Who may see another fileset only is told nothing of this one.
    let (narrow, _accepted) = connected(Arc::new(Within(source.clone(), [7])));
    let told = wait(&narrow, ROOT.fileset, Tid::ZERO).recv_timeout(soon).unwrap();
    assert!(matches!(told, Err(CallError::Refused(no)) if no.code == Code::Other(257)), "there is no such fileset");
    // A link that ends takes nobody else along.
    // (Nobody is told to look at where it is any more.)
    thread::sleep(Duration::from_secs(2));
    let stays = wait(&link, ROOT.fileset, fs.followable());
    let (goes, accepted) = connected(source.clone());
    let gone = wait(&goes, ROOT.fileset, fs.followable());
    drop((goes, accepted));
    assert!(matches!(gone.recv_timeout(soon), Ok(Err(CallError::Broken(_)))));
    write(6);
    // (Here both are the same process: it is told that it is to ask anew.)
    assert!(stays.recv_timeout(soon).is_ok());
    source.end();
    telling.join().unwrap();
}
