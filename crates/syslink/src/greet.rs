//! Opening a link: both hellos, on a thread that may wait, against a deadline; and how many may be at it at once.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use darner_pace::Pace;
use parking_lot::Mutex;

use crate::engine::{Action, Engine, Hello};
use crate::error::{Reason, Why};
use crate::poll::{self, now_ns};
use crate::wire::{Got, Wire};

/// Strangers that are being looked at, at most: each costs a thread for as long as a handshake may take.
const STRANGERS_MAX: usize = 64;

/// Those who are being looked at, in the order in which they came, and how many came.
type Strangers = Arc<Mutex<(Vec<Stranger>, u64)>>;

struct Stranger {
    number: u64,
    /// To show it out.
    connection: OwnedFd,
    from: Option<IpAddr>,
    has_spoken: bool,
}

/// The right to a thread of one's own.
#[derive(Default)]
pub(crate) struct Places(Strangers);

/// It is given back when it is dropped.
pub(crate) struct Place {
    strangers: Strangers,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.strangers.lock().0.retain(|s| s.number != self.number);
    }
}

impl Place {
    /// Waits until whoever has the place says something; says whether it did.
    pub fn hears(&self, connection: &impl AsRawFd, until: u64) -> bool {
        let spoke = poll::wait(&[(connection.as_raw_fd(), false)], Some(until)).unwrap_or(false);
        if let Some(s) = self.strangers.lock().0.iter_mut().find(|s| s.number == self.number) {
            s.has_spoken = spoke;
        }
        spoke
    }
}

impl Places {
    /// Runs `work` on a thread. If there are too many, somebody else is shown out: whoever came last may well be a friend.
    pub fn give<S: AsFd + Send + 'static>(
        &self,
        socket: S,
        from: Option<IpAddr>,
        work: impl FnOnce(S, Place) + Send + 'static,
    ) {
        let Ok(place) = self.take(&socket, from) else { return };
        // Without a thread the place is given back as well.
        let _ = thread::Builder::new().name("syslink".into()).spawn(move || work(socket, place));
    }

    /// A place for somebody for whom there is a thread.
    pub fn take(&self, socket: &impl AsFd, from: Option<IpAddr>) -> std::io::Result<Place> {
        let connection = socket.as_fd().try_clone_to_owned()?;
        let (strangers, number) = &mut *self.0.lock();
        if strangers.len() >= STRANGERS_MAX {
            show_one_out(strangers);
        }
        *number += 1;
        strangers.push(Stranger { number: *number, connection, from, has_spoken: false });
        Ok(Place { strangers: self.0.clone(), number: *number })
    }
}

/// One that has said nothing rather than another; of these, one from where most are from; of these, the oldest. Its thread notices.
fn show_one_out(strangers: &mut Vec<Stranger>) {
    let from_there = |s: &Stranger| strangers.iter().filter(|other| other.from == s.from).count();
    let all = strangers.iter().enumerate();
    let Some((n, _)) = all.max_by_key(|(n, s)| (!s.has_spoken, from_there(s), Reverse(*n))) else { return };
    let shown = strangers.remove(n);
    // SAFETY: a plain system call; the descriptor is ours.
    unsafe { libc::shutdown(shown.connection.as_raw_fd(), libc::SHUT_RDWR) };
}

/// Decides about a hello; for the accepting side. `Ok` may hold what the bulk connection shall begin with.
pub(crate) type Judge<'a> = dyn FnMut(&Hello) -> Result<Option<[u8; 16]>, String> + 'a;

/// Returns what the peer said when the engine is open.
pub(crate) fn greet(engine: &mut Engine, wire: &mut Wire, until: u64, judge: &mut Judge<'_>) -> Result<Hello, Reason> {
    let mut heard = None;
    let mut pace = Pace::new(wire.poll);
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
        hear(engine, wire, &mut pace, until);
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

fn hear(engine: &mut Engine, wire: &mut Wire, pace: &mut Pace, until: u64) {
    let mut receive = || match wire.inlet.receive(false, &mut |bytes| engine.announce(now_ns(), bytes)) {
        Ok(Got::Nothing) => None,
        got => Some(got),
    };
    let got = receive().or_else(|| pace.poll(&mut receive)).or_else(|| {
        let _ = poll::wait(&[(wire.control, false)], Some(until));
        receive()
    });
    match got.unwrap_or(Ok(Got::Nothing)) {
        Ok(Got::Message((announced, bulk))) => engine.arrive(now_ns(), announced, bulk),
        Ok(Got::Nothing | Got::Ended) => {}
        Err(reason) if reason.why == Why::Lost => engine.lost(reason),
        Err(reason) => engine.close(reason),
    }
    engine.tick(now_ns());
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn who_has_said_nothing_goes_first_then_who_is_from_where_most_are_then_who_came_first() {
        let mut numbers = 0;
        let mut stranger = |from: u8, has_spoken| {
            numbers += 1;
            let connection = UnixStream::pair().unwrap().0.into();
            Stranger { number: numbers, connection, from: Some([10, 0, 0, from].into()), has_spoken }
        };
        let mut all = vec![
            stranger(1, true),
            stranger(2, true),
            stranger(1, false),
            stranger(2, false),
            stranger(2, true),
            stranger(2, false),
        ];
        let mut went = Vec::new();
        while !all.is_empty() {
            let before: Vec<u64> = all.iter().map(|s| s.number).collect();
            show_one_out(&mut all);
            went.extend(before.into_iter().filter(|number| all.iter().all(|s| s.number != *number)));
        }
        assert_eq!(went, [4, 6, 3, 2, 1, 5]);
    }
}
