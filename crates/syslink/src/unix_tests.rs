//! Peers that misbehave below what the public interface can do: packets and descriptors by hand.

use std::fs::File;
use std::sync::mpsc::{Receiver as Told, Sender as Tell, channel};
use std::time::Duration;

use parking_lot::Mutex;

use super::*;
use crate::element::Tag;
use crate::header::{HEADER, Head, Kind};
use crate::message::Message;
use crate::service::{Caller, Refuse, Reply};

#[test]
fn who_listens_is_known_before_anything_is_said_and_who_lets_nobody_in_is_not_waited_for_for_long() {
    let addr = SocketAddr::from_abstract_name(format!("syslink-silent-{}", std::process::id())).unwrap();
    let (listens, (raw, len)) = (seqpacket().unwrap(), raw_address(&addr).unwrap());
    check(unsafe { libc::bind(listens.as_raw_fd(), (&raw const raw).cast(), len) }).unwrap();
    check(unsafe { libc::listen(listens.as_raw_fd(), 0) }).unwrap();
    let (_waits, who) = reach(&addr, Duration::from_secs(5)).unwrap();
    let me = unsafe { libc::geteuid() };
    assert!(matches!(who, Who::Process { pid, uid, .. } if uid == me && pid == std::process::id() as i32));
    // There is room for one.
    let no = reach(&addr, Duration::from_millis(30)).unwrap_err();
    assert_eq!(no.kind(), io::ErrorKind::WouldBlock);
}

/// Echoes, and tells how links end.
struct Witness(Mutex<Tell<Reason>>);

impl Service for Witness {
    fn call(&self, _: &Peer, command: Message, reply: Reply) {
        reply.send(command);
    }

    fn closed(&self, _: &Peer, reason: &Reason) {
        let _ = self.0.lock().send(reason.clone());
    }
}

struct Inn {
    addr: SocketAddr,
    reasons: Told<Reason>,
    _listener: Listener,
}

fn inn(name: &str) -> Inn {
    let addr = SocketAddr::from_abstract_name(format!("syslink-{name}-{}", std::process::id())).unwrap();
    let (tell, reasons) = channel();
    let everybody = |_: &Who, _: &Hello, _: u64| Ok(());
    let service = Arc::new(Witness(Mutex::new(tell)));
    let listener = Listener::bind(&addr, Config::default(), Arc::new(everybody), service).unwrap();
    Inn { addr, reasons, _listener: listener }
}

impl Inn {
    /// A socket over which the hellos went.
    fn intruder(&self) -> OwnedFd {
        let socket = seqpacket().unwrap();
        let (raw, len) = raw_address(&self.addr).unwrap();
        check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const raw).cast(), len) }).unwrap();
        let mut engine = Engine::connect(Config::default(), Hello::default(), now_ns());
        let mut wire = wire(socket.try_clone().unwrap().into(), &Config::default(), true).unwrap().0;
        greet(&mut engine, &mut wire, now_ns() + 5_000_000_000, &mut |_| Ok(None)).unwrap();
        socket
    }

    fn ended(&self) -> Why {
        self.reasons.recv_timeout(Duration::from_secs(5)).expect("the link ends").why
    }

    fn still_works(&self) {
        let link = connect(&self.addr, "t", &Config::default(), Arc::new(Refuse)).unwrap();
        let m = Message::new(Tag(5)).attach(Tag(1), vec![1; 300_000]).clone();
        assert_eq!(link.call(m, None).unwrap().buffer(Tag(1)).unwrap().len(), 300_000);
    }
}

fn command(seq: u64, bulks: Vec<u32>) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes.extend_from_slice(Message::new(Tag(1)).body());
    Head { bulks, ..Head::new(Kind::Command, seq) }.seal(&mut bytes);
    bytes
}

fn memory(len: u64, seals: i32) -> File {
    let fd = unsafe { libc::memfd_create(c"hostile".as_ptr(), libc::MFD_ALLOW_SEALING) };
    let file = unsafe { File::from_raw_fd(check(fd).unwrap()) };
    file.set_len(len).unwrap();
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) }).unwrap();
    file
}

#[test]
fn bulk_that_is_not_sealed_shared_memory_of_its_length_ends_the_link() {
    let inn = inn("bulk");
    let (pipe, _other) = std::io::pipe().unwrap();
    let not_sealed = memory(1000, 0);
    let short = memory(999, libc::F_SEAL_SHRINK);
    let file = File::open("/proc/self/exe").unwrap();
    let fds = [pipe.as_raw_fd(), not_sealed.as_raw_fd(), short.as_raw_fd(), file.as_raw_fd()];
    for fd in fds {
        let socket = inn.intruder();
        send(&socket, &command(2, vec![1000]), Some(fd)).unwrap();
        assert_eq!(inn.ended(), Why::Malformed);
    }
    inn.still_works();
}

#[test]
fn descriptors_that_nobody_announced_end_the_link_and_are_closed() {
    let inn = inn("fds");
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let sealed = memory(1000, libc::F_SEAL_SHRINK);
    let before = count();
    for _ in 0..200 {
        let socket = inn.intruder();
        send(&socket, &command(2, vec![]), Some(sealed.as_raw_fd())).unwrap();
        assert_eq!(inn.ended(), Why::Malformed);
    }
    let socket = inn.intruder();
    send(&socket, &command(2, vec![1000]), None).unwrap();
    assert_eq!(inn.ended(), Why::Malformed);
    drop(socket);
    std::thread::sleep(Duration::from_millis(100));
    // Other tests of this process have some open, too.
    assert!(count() < before + 100, "descriptors are kept");
    inn.still_works();
}

#[test]
fn packets_that_are_no_messages_or_too_long_end_the_link() {
    let inn = inn("packets");
    let long = {
        let mut bytes = command(2, vec![]);
        bytes.resize(100_000, 0);
        bytes
    };
    for bytes in [b"hello".to_vec(), command(2, vec![])[..33].to_vec(), long] {
        let socket = inn.intruder();
        send(&socket, &bytes, None).unwrap();
        assert_eq!(inn.ended(), Why::Malformed);
    }
    inn.still_works();
}

#[test]
fn a_peer_that_reads_nothing_and_asks_on_is_left_before_what_waits_for_it_grows() {
    let inn = inn("deaf");
    for kind in [Kind::Ping, Kind::Command] {
        let socket = inn.intruder();
        let reason = (2..).find_map(|seq| {
            let mut bytes = vec![0; HEADER];
            if kind == Kind::Command {
                bytes.extend_from_slice(Message::new(Tag(1)).body());
            }
            Head::new(kind, seq).seal(&mut bytes);
            while send(&socket, &bytes, None).is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock) {
                std::thread::yield_now();
            }
            assert!(seq < 1_000_000, "what waits for it grows");
            inn.reasons.try_recv().ok()
        });
        assert_eq!(reason.unwrap().why, Why::Flood, "{kind:?}");
    }
    inn.still_works();
}

#[test]
fn who_reads_may_ping_as_often_as_it_likes() {
    let inn = inn("pings");
    let socket = inn.intruder();
    for seq in 2..5000 {
        let mut bytes = vec![0; HEADER];
        Head::new(Kind::Ping, seq).seal(&mut bytes);
        send(&socket, &bytes, None).unwrap();
        let mut pong = [0u8; HEADER];
        // SAFETY: a valid buffer.
        let n = unsafe { libc::recv(socket.as_raw_fd(), pong.as_mut_ptr().cast(), pong.len(), 0) };
        assert_eq!((n, pong[3]), (HEADER as isize, Kind::Pong as u8));
    }
}
