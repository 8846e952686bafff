//! A service to call, and links to it.
#![allow(dead_code)]

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use darner_syslink::engine::Hello;
use darner_syslink::{Code, Config, Link, Message, Peer, Refusal, Reply, Service, Tag, Who, unix};

/// Answered with itself.
pub const ECHO: Tag = Tag(1);
/// Answered when it is cancelled.
pub const HOLD: Tag = Tag(2);
/// Not answered by the service.
pub const FORGET: Tag = Tag(3);
/// Answered with so many bytes.
pub const LARGE_REPLY: Tag = Tag(4);
/// In an echo: the caller is called first.
pub const CALL_BACK: Tag = Tag(9);

pub struct Echo;

impl Service for Echo {
    fn call(&self, _: &Peer, mut command: Message, reply: Reply) {
        match command.tag() {
            ECHO => {
                if command.root().find(CALL_BACK).is_some() {
                    let answer = reply.caller().call(echo(3, &[]), long()).expect("an echo from the caller");
                    assert_eq!(answer.root().uint(Tag(1)), Ok(3));
                }
                reply.finish(echoed(&mut command));
            }
            HOLD => drop(thread::spawn(move || {
                while !reply.is_cancelled() {
                    thread::sleep(Duration::from_millis(1));
                }
                reply.refuse(Refusal::new(Code::Cancelled, ""));
            })),
            FORGET => {}
            LARGE_REPLY => {
                let len = command.root().number(Tag(1)).expect("a length");
                reply.send(Message::new(ECHO).bytes(Tag(2), &vec![0; len]).clone());
            }
            _ => reply.refuse(Refusal::new(Code::Unknown, "no such command")),
        }
    }
}

fn echoed(command: &mut Message) -> Result<Message, Refusal> {
    let n = command.root().uint(Tag(1))?;
    let names: Vec<Tag> = command.root().children().filter(|e| e.as_bulk().is_ok()).map(|e| e.tag()).collect();
    let buffers: Vec<Vec<u8>> = names.into_iter().map(|tag| command.take_buffer(tag)).collect::<Result<_, _>>()?;
    Ok(echo(n, &buffers))
}

pub fn echo(n: u64, buffers: &[Vec<u8>]) -> Message {
    let mut m = Message::new(ECHO);
    m.uint(Tag(1), n);
    for (n, b) in (100..).zip(buffers) {
        m.attach(Tag(n), b.clone());
    }
    m
}

/// Longer than anything here may take.
pub fn long() -> Option<Duration> {
    Some(Duration::from_secs(20))
}

pub fn address() -> SocketAddr {
    static N: AtomicU64 = AtomicU64::new(0);
    let name = format!("syslink-test-{}-{}", std::process::id(), N.fetch_add(1, Ordering::Relaxed));
    SocketAddr::from_abstract_name(name).unwrap()
}

pub fn everybody(_: &Who, _: &Hello, _: u64) -> Result<(), String> {
    Ok(())
}

pub fn unix_pair(config: Config) -> (Link, unix::Listener) {
    let addr = address();
    let listener = unix::Listener::bind(&addr, config.clone(), Arc::new(everybody), Arc::new(Echo)).unwrap();
    (unix::connect(&addr, "test", &config, Arc::new(Echo)).unwrap(), listener)
}
