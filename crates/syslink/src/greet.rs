//! Opening a link: both hellos, on a thread that may wait, against a deadline; and how many may be at it at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::engine::{Action, Engine, Hello};
use crate::error::{Reason, Why};
use crate::poll::{self, now_ns};
use crate::wire::{Got, Wire};

/// Strangers that are being looked at, at most: each costs a thread for as long as a handshake may take.
const STRANGERS_MAX: usize = 64;

/// The right to a thread of one's own.
#[derive(Clone)]
pub(crate) struct Places(Arc<AtomicUsize>);

/// It is given back when it is dropped.
pub(crate) struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Places {
    pub fn new() -> Places {
        Places(Arc::default())
    }

    /// Runs `work` on a thread, if there is a place; else drops it, and the connection with it. It may go on without the place.
    pub fn give(&self, work: impl FnOnce(Place) + Send + 'static) {
        let place = Place(self.0.clone());
        if self.0.fetch_add(1, Ordering::Relaxed) >= STRANGERS_MAX {
            return;
        }
        // Without a thread the place is given back as well.
        let _ = thread::Builder::new().name("syslink".into()).spawn(move || work(place));
    }
}

/// Decides about a hello; for the accepting side. `Ok` may hold what the bulk connection shall begin with.
pub(crate) type Judge<'a> = dyn FnMut(&Hello) -> Result<Option<[u8; 16]>, String> + 'a;

/// Returns what the peer said when the engine is open.
pub(crate) fn greet(engine: &mut Engine, wire: &mut Wire, until: u64, judge: &mut Judge<'_>) -> Result<Hello, Reason> {
    let mut heard = None;
    loop {
        while let Some(action) = engine.action() {
            match action {
                Action::Send(packet) => send(wire, packet, until)?,
                Action::Admit(hello) => {
                    match judge(&hello) {
                        Ok(token) => engine.admit(Ok(()), token),
                        Err(why) => engine.admit(Err(why), None),
                    }
                    heard = Some(hello);
                }
                Action::Opened(hello) => heard = Some(hello),
                Action::Closed(reason) => {
                    wire.outlet.end();
                    return Err(reason);
                }
                Action::Deliver { .. } | Action::Cancelled(_) | Action::Answer(..) => {}
            }
        }
        if let Some(hello) = heard.filter(|_| engine.is_open()) {
            return Ok(hello);
        }
        heard = None;
        hear(engine, wire, until);
    }
}

fn send(wire: &mut Wire, packet: crate::engine::Packet, until: u64) -> Result<(), Reason> {
    let lost = |e: std::io::Error| Reason::lost(&e);
    let mut back = wire.outlet.send(packet).map_err(lost)?;
    loop {
        let stuck = wire.outlet.push().map_err(lost)?;
        match back {
            None if !stuck => return Ok(()),
            Some(packet) if !stuck => back = wire.outlet.send(packet).map_err(lost)?,
            _ => {}
        }
        if now_ns() >= until {
            return Err(Reason::new(Why::Slow, "the peer does not read"));
        }
        poll::wait(&[(wire.control, true)], Some(until)).map_err(lost)?;
    }
}

fn hear(engine: &mut Engine, wire: &mut Wire, until: u64) {
    if !wire.inlet.has_more() {
        let _ = poll::wait(&[(wire.control, false)], Some(until));
    }
    match wire.inlet.receive(false, &mut |bytes| engine.announce(now_ns(), bytes)) {
        Ok(Got::Message((announced, bulk))) => engine.arrive(now_ns(), announced, bulk),
        Ok(Got::Nothing | Got::Ended) => {}
        Err(reason) if reason.why == Why::Lost => engine.lost(reason),
        Err(reason) => engine.close(reason),
    }
    engine.tick(now_ns());
}
