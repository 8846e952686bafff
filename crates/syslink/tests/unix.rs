//! Real sockets between threads of this process: what the simulation can't show.

mod common;

use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use common::{ECHO, Echo, HOLD, echo, long, unix_pair};
use darner_syslink::{
    Answering, CallError, Caller, Code, Config, Limits, Message, Nobody, Peer, Pool, Tag, Who, Why, now_ns, unix,
};

#[test]
fn a_call_is_answered_and_the_kernel_says_who_asked() {
    let (link, _listener) = unix_pair(Config::default());
    assert_eq!(link.call(echo(5, &[]), None).unwrap().root().uint(Tag(1)), Ok(5));
    let me = unsafe { libc::geteuid() };
    assert!(matches!(link.peer().who, Who::Process { pid, uid, .. } if uid == me && pid == std::process::id() as i32));
}

#[test]
fn a_socket_pair_carries_a_link_and_who_is_patient_is_asked_whether_to_wait_on() {
    let (ours, theirs) = seqpacket_pair();
    let serving =
        thread::spawn(move || unix::accept_over(theirs, &Config::default(), &common::everybody, Arc::new(Echo)));
    let link = unix::connect_over(ours, "test", &Config::default(), Arc::new(Echo)).unwrap();
    let theirs = serving.join().unwrap().unwrap();
    let slow = AtomicUsize::new(0);
    let mut told = || {
        let times = slow.fetch_add(1, Ordering::Relaxed);
        [Some(Duration::from_secs(5)), Some(Duration::from_millis(1)), None][times.min(2)]
    };
    let reply = link.call_patiently(echo(5, &[]), long(), Duration::from_secs(5), &mut told).unwrap();
    assert_eq!((reply.root().uint(Tag(1)), slow.load(Ordering::Relaxed)), (Ok(5), 0));
    let (late, patience) = (Some(Duration::from_millis(60)), Duration::from_millis(1));
    let hold = link.call_patiently(Message::new(HOLD), late, patience, &mut told);
    let (error, call) = hold.unwrap_err();
    assert_eq!((error, slow.load(Ordering::Relaxed)), (CallError::TooLate, 1));
    assert!(link.owes(call.unwrap()) && link.replied_at() > 0, "nobody waits, but it is not replied to");
    let hold = link.call_patiently(Message::new(HOLD), long(), patience, &mut told);
    let (error, call) = hold.unwrap_err();
    assert_eq!((error, slow.load(Ordering::Relaxed)), (CallError::Cancelled, 3));
    assert!(link.owes(call.unwrap()));
    drop(theirs);
    let after = link.call_patiently(echo(5, &[]), long(), patience, &mut told);
    assert!(matches!(after, Err((CallError::Broken(_), _))), "an accepted link ends with its last clone");
}

fn seqpacket_pair() -> (OwnedFd, OwnedFd) {
    let mut fds = [0; 2];
    // SAFETY: an array of two; both descriptors are new and ours.
    unsafe {
        assert_eq!(libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr()), 0);
        (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]))
    }
}

#[test]
fn bulk_comes_back_as_it_went() {
    let (link, _listener) = unix_pair(Config::default());
    for lengths in [&[0][..], &[1], &[128 << 10], &[128 << 10, 0, 5, 1 << 20], &[0, 0]] {
        let buffers: Vec<Vec<u8>> = lengths.iter().map(|n| (0..*n).map(|i| i as u8).collect()).collect();
        let reply = link.call(echo(1, &buffers), long()).unwrap();
        assert_eq!(reply.bulk(), buffers);
    }
}

#[test]
fn many_callers_share_a_link_in_both_directions() {
    let (link, _listener) = unix_pair(Config::default());
    let answered = AtomicUsize::new(0);
    thread::scope(|s| {
        for n in 0..8 {
            let (link, answered) = (&link, &answered);
            s.spawn(move || {
                for i in 0..300 {
                    let bulk = if i % 10 == 0 { vec![vec![n as u8; 200_000]] } else { vec![] };
                    // Every third is answered only after a call back.
                    let mut m = echo(n * 1000 + i, &bulk);
                    if i % 3 == 0 {
                        m.uint(common::CALL_BACK, 1);
                    }
                    let reply = link.call(m, long()).unwrap();
                    assert_eq!((reply.root().uint(Tag(1)), reply.bulk()), (Ok(n * 1000 + i), &bulk[..]));
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(answered.load(Ordering::Relaxed), 2400);
}

#[test]
fn a_reply_that_nobody_waits_for_is_handed_on_as_soon_as_it_is_there_and_so_is_every_error() {
    let (link, _listener) = unix_pair(Config::default());
    let (tell, told) = channel();
    let (left, patience) = (Duration::from_millis(150), Duration::from_secs(5));
    let then = |tell: &Sender<_>| {
        let tell = tell.clone();
        move |answer: Result<Message, CallError>| tell.send(answer.map(|m| m.root().uint(Tag(1)))).unwrap()
    };
    // (Others call meanwhile, or nobody does.)
    for calls in [0, 3] {
        for n in 0..20 {
            link.call_then(echo(n, &[]), None, then(&tell)).unwrap();
            (0..calls).for_each(|_| drop(link.call(echo(1, &[]), long()).unwrap()));
            assert_eq!(told.recv_timeout(patience).unwrap(), Ok(Ok(n)));
        }
    }
    let begun = Instant::now();
    link.call_then(Message::new(HOLD), Some(left), then(&tell)).unwrap();
    assert_eq!(told.recv_timeout(patience).unwrap(), Err(CallError::TooLate));
    assert!(begun.elapsed() >= left);
    assert!(now_ns().saturating_sub(link.was_there()) < 1_000_000_000);
    link.call_then(Message::new(HOLD), None, then(&tell)).unwrap();
    link.close();
    assert!(matches!(told.recv_timeout(patience).unwrap(), Err(CallError::Broken(_))));
    assert!(matches!(link.call_then(echo(1, &[]), None, then(&tell)), Err(CallError::Broken(_))));
}

#[test]
fn a_full_link_makes_callers_wait_and_those_who_try_are_told() {
    let limits = Limits { calls: 4, ..Limits::default() };
    let (link, _listener) = unix_pair(Config { limits, ..Config::default() });
    let held: Vec<_> = (0..4).map(|_| link.start_call(Message::new(HOLD), None).unwrap()).collect();
    assert_eq!(link.try_call(echo(1, &[]), None).err(), Some(CallError::Busy));
    assert_eq!(link.call(echo(1, &[]), Some(Duration::from_millis(30))), Err(CallError::TooLate));
    thread::scope(|s| {
        let waiting = s.spawn(|| link.call(echo(7, &[]), long()));
        thread::sleep(Duration::from_millis(30));
        // Holding ends when it is cancelled.
        drop(held);
        assert_eq!(waiting.join().unwrap().unwrap().root().uint(Tag(1)), Ok(7));
    });
}

#[test]
fn replies_that_the_socket_does_not_take_at_once_come_nevertheless() {
    let addr = common::address();
    // Replies from other threads while the link's own waits for commands.
    let pool = Pool::new(2, "test-pool", Echo).unwrap();
    let _listener =
        unix::Listener::bind(&addr, Config::default(), Arc::new(common::everybody), Arc::new(pool)).unwrap();
    let link = unix::connect(&addr, "test", &Config::default(), Arc::new(Echo)).unwrap();
    let start = Instant::now();
    for _ in 0..5 {
        // More than a socket holds, in both directions.
        let buffers = vec![vec![1; 4000]; 10];
        let calls: Vec<_> = (0..64).map(|n| link.start_call(echo(n, &buffers), None).unwrap()).collect();
        for (n, call) in (0..).zip(calls) {
            assert_eq!(call.wait().unwrap().root().uint(Tag(1)), Ok(n));
        }
        let mut m = Message::new(common::LARGE_REPLY);
        m.uint(Tag(1), 60_000);
        let calls: Vec<_> = (0..64).map(|_| link.start_call(m.clone(), None).unwrap()).collect();
        thread::sleep(Duration::from_millis(20));
        for call in calls {
            assert_eq!(call.wait().unwrap().root().bytes(Tag(2)).unwrap().len(), 60_000);
        }
    }
    assert!(start.elapsed() < Duration::from_secs(3), "something waited for a timer: {:?}", start.elapsed());
}

#[test]
fn a_side_that_has_only_served_calls_and_is_closed_at_once() {
    let (tell, told) = std::sync::mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let addr = common::address();
    let service = Answering(move |_: &Peer, m: Message| Ok(m));
    let keep = Answering(move |_: &Peer, m: Message| {
        tell.lock().unwrap().send(m.tag()).unwrap();
        Ok(m)
    });
    let _listener =
        unix::Listener::bind(&addr, Config::default(), Arc::new(common::everybody), Arc::new(service)).unwrap();
    let link = unix::connect(&addr, "test", &Config::default(), Arc::new(keep)).unwrap();
    for _ in 0..3 {
        link.call(echo(1, &[]), long()).unwrap();
        // Time for the link's threads to settle, in each of their ways of waiting.
        thread::sleep(Duration::from_millis(1200));
    }
    let start = Instant::now();
    link.close();
    assert!(link.closed().is_some() && start.elapsed() < Duration::from_millis(500));
    assert!(told.try_recv().is_err());
}

#[test]
fn deadlines_pass_whoever_waits_and_late_replies_do_no_harm() {
    let (link, _listener) = unix_pair(Config::default());
    let start = Instant::now();
    assert_eq!(link.call(Message::new(HOLD), Some(Duration::from_millis(50))), Err(CallError::TooLate));
    assert!(start.elapsed() < Duration::from_secs(2));
    let pending = link.start_call(Message::new(HOLD), Some(Duration::from_millis(50))).unwrap();
    while !pending.is_done() {
        assert!(start.elapsed() < Duration::from_secs(5), "nobody looked at the deadline");
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(pending.wait(), Err(CallError::TooLate));
    link.call(echo(1, &[]), long()).unwrap();
}

#[test]
fn when_a_side_closes_every_call_is_answered() {
    let (link, _listener) = unix_pair(Config::default());
    let held: Vec<_> = (0..10).map(|_| link.start_call(Message::new(HOLD), None).unwrap()).collect();
    link.close();
    for call in held {
        assert!(matches!(call.wait(), Err(CallError::Broken(reason)) if reason.why == Why::Closed));
    }
    assert!(matches!(link.call(echo(1, &[]), None), Err(CallError::Broken(_))));
}

#[test]
fn a_service_that_forgets_or_refuses_answers_nevertheless() {
    let (link, _listener) = unix_pair(Config::default());
    let refused = |tag| match link.call(Message::new(tag), long()) {
        Err(CallError::Refused(no)) => no.code,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(common::FORGET), Code::Forgotten);
    assert_eq!(refused(ECHO), Code::BadRequest);
    assert_eq!(refused(Tag(99)), Code::Unknown);
    let huge = Message::new(ECHO).bytes(Tag(2), &[0; 100_000]).clone();
    assert!(matches!(link.call(huge, None), Err(CallError::TooLarge(_))));
    link.call(echo(1, &[]), long()).unwrap();
}

#[test]
fn who_is_not_admitted_is_told_so() {
    let addr = common::address();
    let _listener = unix::Listener::bind(&addr, Config::default(), Arc::new(Nobody), Arc::new(Echo)).unwrap();
    let error = unix::connect(&addr, "test", &Config::default(), Arc::new(Echo)).err().unwrap().to_string();
    assert!(error.contains("not admitted") && error.contains("user 0"), "{error}");
}

/// Tells when its link is over.
struct Tells(std::sync::Mutex<std::sync::mpsc::Sender<()>>);

impl darner_syslink::Service for Tells {
    fn call(&self, peer: &Peer, command: Message, reply: darner_syslink::Reply) {
        Echo.call(peer, command, reply);
    }

    fn closed(&self, _: &Peer, _: &darner_syslink::Reason) {
        let _ = self.0.lock().unwrap().send(());
    }
}

#[test]
fn callers_of_an_unattended_link_do_all_that_its_thread_would() {
    let addr = common::address();
    let told = |tells: std::sync::mpsc::Receiver<()>| tells.recv_timeout(long().unwrap());
    let (theirs, theirs_told) = std::sync::mpsc::channel();
    let service = Arc::new(Tells(theirs.into()));
    let admission = Arc::new(common::everybody);
    let listener = unix::Listener::bind(&addr, Config::default(), admission, service).unwrap();
    let (ours, ours_told) = std::sync::mpsc::channel();
    let (socket, _) = unix::reach(&addr, long().unwrap()).unwrap();
    let own = Arc::new(Tells(ours.into()));
    let link = unix::connect_over_unattended(socket, "test", &Config::default(), own).unwrap();
    assert!(!link.is_greeted());
    // It is called back while it waits, by threads that read in turn, with bulk in between.
    thread::scope(|s| {
        for n in 0..4 {
            let link = &link;
            s.spawn(move || {
                for i in 0..200 {
                    let bulk = if i % 10 == 0 { vec![vec![n as u8; 200_000]] } else { vec![] };
                    let mut command = echo(n, &bulk);
                    if i % 3 == 0 {
                        command.uint(common::CALL_BACK, 1);
                    }
                    let reply = link.call(command, long()).unwrap();
                    assert_eq!((reply.root().uint(Tag(1)), reply.bulk()), (Ok(n), &bulk[..]));
                }
            });
        }
    });
    let late = link.call(Message::new(HOLD), Some(Duration::from_millis(30)));
    assert_eq!(late.unwrap_err(), CallError::TooLate);
    let waits = link.start_call(echo(7, &[]), long()).unwrap();
    assert_eq!(link.call(echo(8, &[]), long()).unwrap().root().uint(Tag(1)), Ok(8));
    assert_eq!(waits.wait().unwrap().root().uint(Tag(1)), Ok(7));
    assert!(link.is_greeted());
    drop(link);
    assert_eq!((told(theirs_told), told(ours_told)), (Ok(()), Ok(())), "both sides learn that it is over");
    drop(listener);
}

#[test]
fn nobody_listening_is_an_io_error() {
    let outcome = unix::connect(&common::address(), "test", &Config::default(), Arc::new(Echo));
    assert!(matches!(outcome, Err(darner_syslink::ConnectError::Io(_))));
}

/// A service whose first command ends when a second one comes.
#[derive(Default)]
struct Meeting(std::sync::Mutex<Option<std::sync::mpsc::Sender<thread::ThreadId>>>);

impl darner_syslink::Service for Meeting {
    fn call(&self, _: &Peer, command: Message, reply: darner_syslink::Reply) {
        let mut waits = self.0.lock().unwrap();
        if let Some(waits) = waits.take() {
            waits.send(thread::current().id()).unwrap();
        } else {
            let (tell, told) = std::sync::mpsc::channel();
            *waits = Some(tell);
            drop(waits);
            // It calls back meanwhile, as it likes.
            let n = reply.caller().call(echo(3, &[]), long()).unwrap().root().uint(Tag(1));
            let other = told.recv_timeout(long().unwrap()).unwrap();
            assert!(n == Ok(3) && other != thread::current().id());
        }
        reply.send(command);
    }

    fn takes_long(&self, _: &Message) -> bool {
        true
    }
}

#[test]
fn while_a_thread_is_long_over_a_command_another_one_is_the_links() {
    let addr = common::address();
    let service = Arc::<Meeting>::default();
    let listener = unix::Listener::bind(&addr, Config::default(), Arc::new(common::everybody), service).unwrap();
    let link = unix::connect(&addr, "test", &Config::default(), Arc::new(Echo)).unwrap();
    for n in 0..20 {
        let calls = [2 * n, 2 * n + 1].map(|n| (n, link.start_call(echo(n, &[]), long()).unwrap()));
        for (n, call) in calls {
            assert_eq!(call.wait().unwrap().root().uint(Tag(1)), Ok(n));
        }
    }
    let held = link.start_call(echo(9, &[]), long()).unwrap();
    // A listener's address is free when it is gone, whoever is still in.
    drop(listener);
    let again = || {
        let service = Arc::<Meeting>::default();
        unix::Listener::bind(&addr, Config::default(), Arc::new(common::everybody), service)
    };
    let start = Instant::now();
    while again().is_err() {
        assert!(start.elapsed() < Duration::from_secs(5));
        thread::sleep(Duration::from_millis(1));
    }
    link.call(echo(10, &[]), long()).unwrap();
    assert_eq!(held.wait().unwrap().root().uint(Tag(1)), Ok(9));
}

#[test]
fn a_command_that_goes_along_with_a_hello_is_answered_if_the_hello_is() {
    let addr = common::address();
    let served = Arc::new(AtomicUsize::new(0));
    let counts = {
        let served = served.clone();
        Answering(move |_: &Peer, m: Message| {
            served.fetch_add(1, Ordering::Relaxed);
            Ok(m)
        })
    };
    let only_one = |_: &Who, hello: &darner_syslink::engine::Hello, _: u64| match &*hello.service {
        "test" => Ok(()),
        _ => Err("it is not here".into()),
    };
    let _listener = unix::Listener::bind(&addr, Config::default(), Arc::new(only_one), Arc::new(counts)).unwrap();
    let to = |service| {
        let (socket, _) = unix::reach(&addr, long().unwrap()).unwrap();
        unix::connect_over_unattended(socket, service, &Config::default(), Arc::new(Echo)).unwrap()
    };
    let link = to("test");
    assert_eq!(link.call(echo(1, &[]), long()).unwrap().root().uint(Tag(1)), Ok(1));
    assert!(link.is_greeted());
    // What no stranger may send waits for the peer's hello.
    let large = [vec![7; 100_000]];
    let is_at_once = || {
        let mut slow = 0;
        let answer = to("test").call_patiently(echo(2, &large), long(), Duration::from_millis(100), &mut || {
            slow += 1;
            Some(Duration::from_millis(100))
        });
        assert_eq!(answer.unwrap().bulk(), large);
        slow == 0
    };
    assert!((0..20).any(|_| is_at_once()), "our own is not said before we have waited for something else");
    let heard = served.load(Ordering::Relaxed);
    let link = to("another");
    match link.call(echo(3, &[]), long()) {
        Err(CallError::Broken(reason)) => {
            assert_eq!((reason.why, &*reason.detail), (Why::NotAdmitted, "it is not here"))
        }
        other => panic!("{other:?}"),
    }
    assert!(!link.is_greeted());
    let link = to("another");
    let refused = link.greet_patiently(long().unwrap(), &mut || None).unwrap_err();
    assert_eq!((refused.why, served.load(Ordering::Relaxed)), (Why::NotAdmitted, heard), "nobody heard the others");
    // And a peer that says nothing is waited for as long as one likes.
    let silent = common::address();
    let socket = silent_socket(&silent);
    let (ours, _) = unix::reach(&silent, long().unwrap()).unwrap();
    let link = unix::connect_over_unattended(ours, "test", &Config::default(), Arc::new(Echo)).unwrap();
    let mut asked = 0;
    let slow = link.greet_patiently(Duration::from_millis(1), &mut || {
        asked += 1;
        (asked < 3).then_some(Duration::from_millis(1))
    });
    assert_eq!((slow.unwrap_err().why, asked), (Why::Slow, 3));
    drop(socket);
}

/// Listens, and lets nobody in.
fn silent_socket(at: &std::os::unix::net::SocketAddr) -> OwnedFd {
    use std::os::linux::net::SocketAddrExt;
    let name = at.as_abstract_name().unwrap();
    // SAFETY: all zeroes is an address; the descriptor is new and ours.
    unsafe {
        let mut raw: libc::sockaddr_un = std::mem::zeroed();
        raw.sun_family = libc::AF_UNIX as _;
        for (to, from) in raw.sun_path[1..].iter_mut().zip(name) {
            *to = *from as _;
        }
        let socket = OwnedFd::from_raw_fd(libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0));
        let len = (size_of::<libc::sa_family_t>() + 1 + name.len()) as u32;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
        assert_eq!((libc::bind(fd, (&raw const raw).cast(), len), libc::listen(fd, 1)), (0, 0));
        socket
    }
}
