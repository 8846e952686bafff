//! What a link needs of a transport: two halves that never block.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use crate::engine::{Announced, Packet};
use crate::error::Reason;
use crate::stream::Assembler;

/// The sending half.
pub(crate) trait Outlet: Send {
    /// Puts a packet on its way, after those before. Gives it back if there is no room.
    fn send(&mut self, packet: Packet) -> io::Result<Option<Packet>>;

    /// Pushes on what is on its way; true: there is no room for all of it yet.
    fn push(&mut self) -> io::Result<bool> {
        Ok(false)
    }

    /// Ends the connection, both ways.
    fn end(&mut self);
}

/// A message that is here with all its bulk.
pub(crate) type Received = (Announced, Vec<Vec<u8>>);

/// Asks the engine about a message: [`crate::Engine::announce`].
pub(crate) type Announce<'a> = dyn FnMut(Vec<u8>) -> Option<Announced> + 'a;

/// What an attempt to receive came to.
pub(crate) enum Got {
    /// Something that is whole.
    Message(Received),
    /// There is no more at present.
    Nothing,
    /// The engine ended the link.
    Ended,
}

/// The receiving half. Who holds it has the right to read.
pub(crate) trait Inlet: Send {
    /// Takes in what is there. If `wait`, it may wait a second for something.
    fn receive(&mut self, wait: bool, announce: &mut Announce<'_>) -> Result<Got, Reason>;

    /// Whether it can wait by itself, which saves a system call.
    fn can_wait(&self) -> bool {
        false
    }

    /// Takes in what can be had without asking the kernel.
    fn glance(&mut self, announce: &mut Announce<'_>) -> Result<Got, Reason> {
        self.receive(false, announce)
    }

    /// To be called before waiting for the descriptors. False: there is something already.
    fn sleep(&mut self) -> bool {
        true
    }

    /// Not any more: see [`Inlet::sleep`].
    fn wake(&mut self) {}

    /// Whether [`Inlet::receive`] may have more although the descriptors are silent.
    fn has_more(&self) -> bool {
        false
    }

    /// Whether it waits for bulk.
    fn wants_bulk(&self) -> bool {
        false
    }

    /// What is read, but no whole message yet.
    fn leftover(self: Box<Self>) -> Assembler {
        Assembler::default()
    }

    /// When what is here in part is late.
    fn late_at(&self) -> Option<u64> {
        None
    }
}

/// Both halves and the descriptors to wait for.
pub(crate) struct Wire {
    pub outlet: Box<dyn Outlet>,
    pub inlet: Box<dyn Inlet>,
    /// Of what carries messages.
    pub control: RawFd,
    /// Of what carries bulk, if that is another.
    pub bulk: Option<RawFd>,
    /// How long who waits polls before it sleeps.
    pub poll: Duration,
    /// Messages may come past the descriptors: see [`Inlet::sleep`].
    pub ring: bool,
}
