//! Peers that misbehave below what the public interface can do.

use super::*;
use crate::element::Tag;
use crate::header::{HEADER, Head, Kind};
use crate::message::Message;
use crate::service::{Answering, Caller};

const SECOND: u64 = 1_000_000_000;

struct Inn {
    listener: Listener,
    key: Fingerprint,
    reasons: std::sync::mpsc::Receiver<Reason>,
}

/// Echoes, and tells how links end.
struct Witness(Mutex<Hand<Reason>>);

impl Service for Witness {
    fn call(&self, _: &Peer, command: Message, reply: crate::Reply) {
        reply.send(command);
    }

    fn closed(&self, _: &Peer, reason: &Reason) {
        let _ = self.0.lock().send(reason.clone());
    }
}

fn inn() -> Inn {
    let identity = Identity::generate();
    let (tell, reasons) = channel();
    let config = Config { message_ns: SECOND / 4, bulk_ns: SECOND / 4, ..Config::default() };
    let everybody = |_: &Who, _: &Hello, _: u64| Ok(());
    let service = Arc::new(Witness(Mutex::new(tell)));
    let any = "127.0.0.1:0".parse().unwrap();
    let listener = Listener::bind(any, &identity, config, Arc::new(everybody), service).unwrap();
    Inn { listener, key: identity.fingerprint(), reasons }
}

impl Inn {
    fn remote(&self) -> Remote {
        Remote { addr: self.listener.addr(), key: self.key, ticket: None }
    }

    fn still_works(&self) {
        let quiet = Arc::new(Answering(|_: &Peer, m| Ok(m)));
        let link = connect(&self.remote(), &Identity::generate(), "t", &Config::default(), quiet).unwrap();
        let reply = link.call(Message::new(Tag(5)).attach(Tag(1), vec![1; 300_000]).clone(), None).unwrap();
        assert_eq!(reply.buffer(Tag(1)).unwrap().len(), 300_000);
    }

    /// An admitted peer that goes on by hand.
    fn intruder(&self) -> (Arc<Channel>, Channel) {
        let (me, until) = (Identity::generate(), now_ns() + 5 * SECOND);
        let control = Arc::new(dial(&self.remote(), &me, Purpose::Control, until).unwrap());
        let mut engine = Engine::connect(Config::default(), Hello::default(), now_ns());
        let hello = greet(&mut engine, &mut half(control.clone()), until, &mut |_| Ok(None)).unwrap();
        let bulk = dial(&self.remote(), &me, Purpose::Bulk, until).unwrap();
        bulk.write(&hello.bulk_token.unwrap()).unwrap();
        assert!(!bulk.push().unwrap());
        (control, bulk)
    }

    fn ended(&self) -> Why {
        self.reasons.recv_timeout(Duration::from_secs(5)).expect("the link ends").why
    }
}

fn command(seq: u64, bulks: Vec<u32>) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes.extend_from_slice(Message::new(Tag(1)).body());
    Head { bulks, ..Head::new(Kind::Command, seq) }.seal(&mut bytes);
    bytes
}

fn say(channel: &Channel, bytes: &[u8]) {
    channel.write(bytes).unwrap();
    let _ = channel.push();
}

#[test]
fn a_message_that_stops_in_its_middle_ends_the_link_in_time() {
    let inn = inn();
    let (control, _bulk) = inn.intruder();
    say(&control, &command(2, vec![])[..20]);
    assert_eq!(inn.ended(), Why::Slow);
    inn.still_works();
}

#[test]
fn bulk_that_is_announced_and_does_not_come_ends_the_link_in_time() {
    let inn = inn();
    let (control, bulk) = inn.intruder();
    say(&control, &command(2, vec![4 << 20]));
    say(&bulk, &[0; 1000]);
    assert_eq!(inn.ended(), Why::Slow);
    inn.still_works();
}

#[test]
fn garbage_lies_and_floods_of_an_admitted_peer_end_its_link_and_no_other() {
    let inn = inn();
    let hello = {
        let mut bytes = vec![0; HEADER];
        bytes.extend_from_slice(Hello::default().message().body());
        Head::new(Kind::Hello, 2).seal(&mut bytes);
        bytes
    };
    let mut old = command(2, vec![]);
    old[2] = 9;
    let reply = {
        let mut bytes = command(2, vec![]);
        (bytes[3], bytes[16]) = (Kind::Reply as u8, 200);
        bytes
    };
    let flood: Vec<u8> = (2..40).flat_map(|seq| command(seq, vec![4 << 20])).collect();
    let cases = [
        (b"GET / HTTP/1.1\r\n\r\n, and so on".to_vec(), Why::Malformed),
        (command(2, vec![5 << 20]), Why::Malformed),
        (command(9, vec![]), Why::Gap),
        (hello, Why::Malformed),
        (old, Why::Version),
        (reply, Why::Malformed),
        (flood, Why::Flood),
    ];
    for (bytes, expected) in cases {
        let (control, _bulk) = inn.intruder();
        say(&control, &bytes);
        assert_eq!(inn.ended(), expected);
    }
    inn.still_works();
}

#[test]
fn a_bulk_connection_that_breaks_ends_the_link() {
    let inn = inn();
    let (_control, bulk) = inn.intruder();
    thread::sleep(Duration::from_millis(50));
    bulk.end();
    drop(bulk);
    assert_eq!(inn.ended(), Why::Lost);
}

#[test]
fn the_bulk_token_of_one_peer_is_of_no_use_to_another() {
    let inn = inn();
    let (me, until) = (Identity::generate(), now_ns() + 5 * SECOND);
    let control = Arc::new(dial(&inn.remote(), &me, Purpose::Control, until).unwrap());
    let mut engine = Engine::connect(Config::default(), Hello::default(), now_ns());
    let hello = greet(&mut engine, &mut half(control), until, &mut |_| Ok(None)).unwrap();
    let thief = dial(&inn.remote(), &Identity::generate(), Purpose::Bulk, until).unwrap();
    say(&thief, &hello.bulk_token.unwrap());
    poll::wait(&[(thief.fd(), false)], Some(until)).unwrap();
    assert_eq!(thief.read(&mut Raw::default(), &mut Vec::new(), 1).unwrap_or(Some(0)), Some(0));
}

/// The bulk connection is made, and cut on its way: the side that connects believes in a link, the other one never sees it.
#[test]
fn a_bulk_connection_that_is_cut_before_it_is_known_ends_a_call_at_once() {
    let inn = inn();
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    let remote = Remote { addr: proxy.local_addr().unwrap(), ..inn.remote() };
    let to = inn.listener.addr();
    let pass = |mut from: TcpStream, mut into: TcpStream| thread::spawn(move || io::copy(&mut from, &mut into));
    let passing = thread::spawn(move || {
        let near = proxy.accept().unwrap().0;
        let far = TcpStream::connect(to).unwrap();
        pass(near.try_clone().unwrap(), far.try_clone().unwrap());
        pass(far, near);
        // Of the second one the handshake gets through, and the token does not.
        let (mut near, mut far) = (proxy.accept().unwrap().0, TcpStream::connect(to).unwrap());
        let back = pass(far.try_clone().unwrap(), near.try_clone().unwrap());
        let (mut buffer, mut records) = (vec![0; 64 << 10], 0);
        loop {
            let n = io::Read::read(&mut near, &mut buffer).unwrap();
            // Its first flight, and its answer to the other side's; then comes the token.
            records += 1;
            if n == 0 || records == 3 {
                break;
            }
            io::Write::write_all(&mut far, &buffer[..n]).unwrap();
        }
        let _ = near.shutdown(std::net::Shutdown::Both);
        let _ = far.shutdown(std::net::Shutdown::Both);
        drop(back);
    });
    let start = std::time::Instant::now();
    let quiet = Arc::new(Answering(|_: &Peer, m| Ok(m)));
    // (The token may have come along with what is before it: then there is a link, and nothing to see.)
    if let Ok(link) = connect(&remote, &Identity::generate(), "t", &Config::default(), quiet) {
        let _ = link.call(Message::new(Tag(5)), None);
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    drop(passing);
    inn.still_works();
}

#[test]
fn who_goes_between_the_hello_and_the_bulk_connection_is_not_waited_for() {
    let inn = inn();
    let (me, until) = (Identity::generate(), now_ns() + 5 * SECOND);
    let control = Arc::new(dial(&inn.remote(), &me, Purpose::Control, until).unwrap());
    let mut engine = Engine::connect(Config::default(), Hello::default(), now_ns());
    let hello = greet(&mut engine, &mut half(control.clone()), until, &mut |_| Ok(None)).unwrap();
    control.end();
    drop(control);
    thread::sleep(4 * LOOK_EVERY);
    // Nobody is there any more who could be given it.
    let late = dial(&inn.remote(), &me, Purpose::Bulk, until).unwrap();
    say(&late, &hello.bulk_token.unwrap());
    poll::wait(&[(late.fd(), false)], Some(until)).unwrap();
    assert_eq!(late.read(&mut Raw::default(), &mut Vec::new(), 1).unwrap_or(Some(0)), Some(0));
    inn.still_works();
}
