//! Two machines, played by two ends of the loopback: who gets in, and who does not.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::{Echo, HOLD, echo, long};
use darner_syslink::tcp::{Listener, Remote, connect};
use darner_syslink::{
    Admission, Answering, CallError, Caller, Config, ConnectError, Identity, Known, Link, Message, Nobody, Peer, Tag,
    Who, Why,
};

const SECOND: u64 = 1_000_000_000;

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn listen(identity: &Identity, admission: Arc<dyn Admission>) -> Listener {
    let config = Config { handshake_ns: SECOND / 2, ..Config::default() };
    Listener::bind(any(), identity, config, admission, Arc::new(Echo)).unwrap()
}

fn go(remote: &Remote, me: &Identity) -> Result<Link, ConnectError> {
    connect(remote, me, "test", &Config::default(), Arc::new(Echo))
}

/// Two who know each other.
struct Friends {
    me: Identity,
    listener: Listener,
    remote: Remote,
}

fn friends() -> Friends {
    let (me, host) = (Identity::generate(), Identity::generate());
    let listener = listen(&host, Arc::new(Known::new([(me.fingerprint(), None)], |_, _| ())));
    let remote = Remote { addr: listener.addr(), key: host.fingerprint(), ticket: None };
    Friends { me, listener, remote }
}

#[test]
fn who_is_known_calls_and_is_called_with_bulk_both_ways() {
    let f = friends();
    let link = go(&f.remote, &f.me).unwrap();
    assert_eq!(link.peer().who, Who::Key(f.remote.key));
    for lengths in [&[][..], &[0], &[1], &[128 << 10], &[128 << 10, 0, 5, 1 << 20]] {
        let buffers: Vec<Vec<u8>> = lengths.iter().map(|n| (0..*n).map(|i| i as u8).collect()).collect();
        let mut m = echo(1, &buffers);
        m.uint(common::CALL_BACK, 1);
        assert_eq!(link.call(m, long()).unwrap().bulk(), buffers);
    }
}

#[test]
fn full_sockets_in_both_directions_do_not_lock_up() {
    let f = friends();
    let link = go(&f.remote, &f.me).unwrap();
    thread::scope(|s| {
        for n in 0..12 {
            let link = &link;
            s.spawn(move || {
                for i in 0..20 {
                    let bulk = if i % 2 == 0 { vec![vec![n as u8; 1 << 20]] } else { vec![] };
                    let reply = link.call(echo(n, &bulk), long()).unwrap();
                    assert_eq!((reply.root().uint(Tag(1)), reply.bulk() == bulk), (Ok(n), true));
                }
            });
        }
    });
}

#[test]
fn deadlines_and_closing_work_as_on_any_link() {
    let f = friends();
    let link = go(&f.remote, &f.me).unwrap();
    assert_eq!(link.call(Message::new(HOLD), Some(Duration::from_millis(50))), Err(CallError::TooLate));
    let pending = link.start_call(Message::new(HOLD), None).unwrap();
    link.close();
    assert!(matches!(pending.wait(), Err(CallError::Broken(r)) if r.why == Why::Closed));
}

#[test]
fn nobody_gets_in_by_default_nor_with_another_key() {
    let (me, host) = (Identity::generate(), Identity::generate());
    let listener = listen(&host, Arc::new(Nobody));
    let remote = Remote { addr: listener.addr(), key: host.fingerprint(), ticket: None };
    assert!(matches!(go(&remote, &me), Err(ConnectError::Ended(r)) if r.why == Why::NotAdmitted && r.by_peer));
    let f = friends();
    assert!(matches!(go(&f.remote, &me), Err(ConnectError::Ended(r)) if r.why == Why::NotAdmitted));
}

#[test]
fn a_host_with_another_key_than_expected_is_not_spoken_to() {
    let f = friends();
    let remote = Remote { key: Identity::generate().fingerprint(), ..f.remote.clone() };
    assert!(matches!(go(&remote, &f.me), Err(ConnectError::Io(_))));
    go(&f.remote, &f.me).unwrap();
}

#[test]
fn a_ticket_lets_in_once_and_its_bearer_is_known_from_then_on() {
    let host = Identity::generate();
    let joined = Arc::new(Mutex::new(Vec::new()));
    let known = {
        let joined = joined.clone();
        Arc::new(Known::new([], move |key, _| joined.lock().unwrap().push(*key)))
    };
    let listener = listen(&host, known.clone());
    // The clock is the kernel's: what is issued at time 0 has expired.
    let expired = known.tickets().issue(host.fingerprint(), Duration::from_nanos(1), 0, None);
    let good = known.tickets().issue(host.fingerprint(), Duration::from_secs(1 << 30), 0, None);
    let (me, other) = (Identity::generate(), Identity::generate());
    let outcome = |ticket: &_, who: &_| match go(&Remote::with_ticket(listener.addr(), ticket), who) {
        Ok(link) => link.call(echo(1, &[]), long()).map(drop).map_err(|e| e.to_string()),
        Err(e) => Err(e.to_string()),
    };
    assert!(outcome(&expired, &me).unwrap_err().contains("ticket"));
    assert_eq!(outcome(&good, &me), Ok(()));
    assert!(outcome(&good, &other).unwrap_err().contains("used"));
    assert_eq!(*joined.lock().unwrap(), [me.fingerprint()]);
    go(&Remote { addr: listener.addr(), key: host.fingerprint(), ticket: None }, &me).unwrap();
}

#[test]
fn garbage_and_silence_at_the_door_are_shown_out_in_time_and_hinder_nobody() {
    let f = friends();
    let connection = || TcpStream::connect(f.listener.addr()).unwrap();
    let silent: Vec<TcpStream> = (0..20).map(|_| connection()).collect();
    let mut garbage = connection();
    garbage.write_all(&[0x55; 5000]).unwrap();
    let mut dribbling = connection();
    let start = Instant::now();
    go(&f.remote, &f.me).unwrap().call(echo(1, &[]), long()).unwrap();
    // The beginning of a real TLS record, byte by byte.
    for byte in [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3].iter().chain([0; 40].iter()) {
        if dribbling.write_all(&[*byte]).is_err() {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    for mut stream in silent.into_iter().chain([garbage, dribbling]) {
        stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        let mut rest = [0; 100];
        let ended = loop {
            match stream.read(&mut rest) {
                Ok(0) => break true,
                Ok(_) => {}
                Err(e) => break e.kind() == std::io::ErrorKind::ConnectionReset,
            }
        };
        assert!(ended, "a connection is kept that never said anything");
    }
    assert!(start.elapsed() < Duration::from_secs(4));
    go(&f.remote, &f.me).unwrap().call(echo(1, &[]), long()).unwrap();
}

/// Sixty-four that were silent kept everybody else out, for as long as they came again.
#[test]
fn strangers_who_say_nothing_keep_nobody_out_however_many_they_are() {
    let (me, host) = (Identity::generate(), Identity::generate());
    let known = Arc::new(Known::new([(me.fingerprint(), None)], |_, _| ()));
    let listener = Listener::bind(any(), &host, Config::default(), known, Arc::new(Echo)).unwrap();
    let remote = Remote { addr: listener.addr(), key: host.fingerprint(), ticket: None };
    let link = go(&remote, &me).unwrap();
    let mut silent = Vec::new();
    let start = Instant::now();
    for _ in 0..5 {
        silent.extend((0..100).map(|_| TcpStream::connect(listener.addr()).unwrap()));
        go(&remote, &me).unwrap().call(echo(1, &[]), long()).unwrap();
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    // The oldest were shown out, and whoever is in is no stranger.
    silent[0].set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    assert!(matches!(silent[0].read(&mut [0]), Ok(0)));
    link.call(echo(1, &[]), long()).unwrap();
}

/// Its thread had it for a little longer.
#[test]
fn a_listener_that_is_dropped_leaves_its_port_at_once_to_another_address_too() {
    let (me, host) = (Identity::generate(), Identity::generate());
    let mut listener = listen(&host, Arc::new(common::everybody));
    let port = listener.addr().port();
    let mut links = Vec::new();
    for n in 0..60 {
        let (at, addr) = [("0.0.0.0", "127.0.0.1"), ("127.0.0.2", "127.0.0.2"), ("127.0.0.1", "127.0.0.1")][n % 3];
        drop(listener);
        let at = format!("{at}:{port}").parse().unwrap();
        listener = Listener::bind(at, &host, Config::default(), Arc::new(common::everybody), Arc::new(Echo)).unwrap();
        if n % 10 < 3 {
            let addr = format!("{addr}:{port}").parse().unwrap();
            links.push(go(&Remote { addr, key: host.fingerprint(), ticket: None }, &me).unwrap());
        }
    }
    // Who is in stays.
    links.iter().for_each(|link| drop(link.call(echo(1, &[]), long()).unwrap()));
}

/// Passes connections on, and records what the connecting side says.
fn tap(to: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<Vec<u8>>>>) {
    let listener = TcpListener::bind(any()).unwrap();
    let (addr, tapes) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let all = tapes.clone();
    thread::spawn(move || {
        for n in 0.. {
            let (mut from, mut onward) = (listener.accept().unwrap().0, TcpStream::connect(to).unwrap());
            all.lock().unwrap().push(Vec::new());
            let (mut back, mut answers, all) = (from.try_clone().unwrap(), onward.try_clone().unwrap(), all.clone());
            thread::spawn(move || std::io::copy(&mut answers, &mut back));
            thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(len @ 1..) = from.read(&mut bytes) {
                    all.lock().unwrap()[n].extend_from_slice(&bytes[..len]);
                    onward.write_all(&bytes[..len]).unwrap();
                }
                let _ = onward.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    (addr, tapes)
}

#[test]
fn a_recorded_conversation_played_again_reaches_no_service() {
    let (me, host, calls) = (Identity::generate(), Identity::generate(), Arc::new(AtomicU64::new(0)));
    let counted = calls.clone();
    let service = Arc::new(Answering(move |_: &Peer, m: Message| {
        counted.fetch_add(1, Ordering::SeqCst);
        Ok(m)
    }));
    let config = Config { handshake_ns: SECOND / 2, ..Config::default() };
    let admission = Arc::new(Known::new([(me.fingerprint(), None)], |_, _| ()));
    let listener = Listener::bind(any(), &host, config, admission, service).unwrap();
    let (addr, tapes) = tap(listener.addr());
    let link = go(&Remote { addr, key: host.fingerprint(), ticket: None }, &me).unwrap();
    link.call(echo(1, &[vec![1; 1000]]), long()).unwrap();
    drop(link);
    let tapes = tapes.lock().unwrap().clone();
    assert!(tapes.len() == 2 && tapes.iter().all(|t| t.len() > 500), "both connections are on tape");
    for tape in tapes {
        let mut again = TcpStream::connect(listener.addr()).unwrap();
        let _ = again.write_all(&tape);
        again.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        let ended = again.read_to_end(&mut Vec::new());
        assert!(!matches!(ended, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock), "it is kept");
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}
