//! The one channel by which everything in Darner talks. docs/syslink.md has the bytes.
//!
//! A command gets exactly one reply: the peer's or, if the link breaks, the link layer's own. Either side may command.
//! [`Engine`] is the protocol as a state machine without I/O, threads or clock; [`Link`] drives one over a socket
//! ([`unix`], [`tcp`]), [`sim::Pair`] drives two in memory, from a seed. It knows nothing of files or stores.

pub mod admission;
pub mod element;
pub mod engine;
mod error;

#[cfg(test)]
mod fuzz;
mod greet;
mod header;
mod hello;
pub mod identity;
mod link;
mod memfd;
mod message;
mod poll;
mod pool;
mod ring;
mod service;
pub mod sim;
mod stream;
pub mod tcp;
mod tls;
pub mod unix;
mod wire;

pub use admission::{Admission, Known, Nobody, Scope, Ticket, Tickets};
pub use element::{Element, ReadError, Tag};
pub use engine::{CallId, Config, Engine};
pub use error::{CallError, Code, ConnectError, Reason, Refusal, Why, plain};
pub use header::Limits;
pub use identity::{Fingerprint, Identity};
pub use link::{Link, Pending};
pub use message::Message;
pub use poll::now_ns;
pub use pool::Pool;
pub use ring::RING;
pub use service::{Answering, Awaited, Caller, Peer, Refuse, Reply, Service, Who};
