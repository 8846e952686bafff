//! Mirrors over syslink: [`Source`] answers those who follow, [`Puller`] follows, [`Memory`] answers the source. docs/mirror.md has the protocol.
//!
//! What changed, and what is done with it, is `darner_fs`'s; this crate carries it. Nothing here knows threads, sockets or
//! where a store is. The source remembers of those who follow what they were sent in the pull under way, and forgets it
//! when they are silent.

mod parts;
mod places;
mod protocol;
mod pull;
mod service;
mod stream;
mod verify;

pub use places::Places;
pub use protocol::SERVICE;
pub use pull::{Failure, Looked, Pulled, Puller, ROOM_WANTED, Which};
pub use service::{Memory, Source};
pub use stream::{Header, export, import};
pub use verify::{Verified, Walk, ask_for_bytes};
