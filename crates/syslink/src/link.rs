//! A link over a real transport: an engine, a wire, and whoever is at hand to run them.
//!
//! Waking a thread costs more than the work it wakes for, so none is handed a message that another could take itself:
//! who calls writes to the socket itself, and then reads from it itself until its reply is there. The link's own thread
//! reads when nobody waits, and runs the service. Invariants: who reads holds `inlet`. While a caller reads, the socket
//! is not armed in epoll, so that the link's thread sleeps on; who leaves without passing the reading on arms it again,
//! or, while the peer has never commanded and no other reply is due, leaves that to the link's thread for when calls have paused. Who reads never
//! blocks in a write: what the socket does not take stays in `outbox`, which [`Engine::waiting`] bounds, until epoll
//! (or a reading caller) finds it writable; or, while the link's thread is deaf, until who wrote it finds room. Where the
//! configuration says so, who reads polls before it sleeps ([`Pace`]), without any lock but `inlet`. A thread that is about to
//! take long over a command leaves the link to a new one. An unattended link has no thread: callers do all of it.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io::ErrorKind;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use darner_pace::Pace;
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::engine::{Action, CallId, Engine, Packet};
use crate::error::{CallError, Reason, Refusal, Why};
use crate::message::Message;
use crate::poll::{self, Bell, Epoll, GONE, now_ns};
use crate::service::{Awaited, Caller, Peer, Reply, Service, Sink};
use crate::wire::{Got, Inlet, Outlet, Wire};

/// How long a wire waits by itself.
const WAIT_MAX: u64 = 1_000_000_000;

/// After a call, the socket is armed again when no further one has come for this long; longer while many come.
const PATIENCE: u64 = 20_000_000;
const PATIENCE_MAX: u64 = 320_000_000;

const CONTROL: u64 = 0;
const BULK: u64 = 1;
const BELL: u64 = 2;

/// A link. The connecting side's ends with the last clone of it; an accepted one lasts until a side closes it.
#[derive(Clone)]
pub struct Link {
    shared: Arc<Shared>,
    _last: Option<Arc<CloseOnDrop>>,
}

struct CloseOnDrop(Arc<Shared>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        let reason = Reason::new(Why::Closed, "");
        self.0.close(reason.clone());
        if self.0.attendant.is_none() {
            let closed = self.0.state.lock().closed.clone();
            self.0.wind_up(&closed.unwrap_or(reason));
        }
    }
}

/// What the link's thread waits for, if it has one.
struct Attendant {
    epoll: Epoll,
    bell: Bell,
}

impl Attendant {
    fn new(wire: &Wire) -> std::io::Result<Attendant> {
        let (epoll, bell) = (Epoll::new()?, Bell::new()?);
        epoll.add(wire.control, CONTROL, libc::EPOLLIN)?;
        if let Some(fd) = wire.bulk {
            epoll.add(fd, BULK, libc::EPOLLRDHUP)?;
        }
        epoll.add(bell.fd(), BELL, libc::EPOLLIN)?;
        Ok(Attendant { epoll, bell })
    }
}

type Slot = Option<Result<Message, CallError>>;

/// Gets a reply that nobody waits for.
type Then = Box<dyn FnOnce(Result<Message, CallError>) + Send>;

struct State {
    engine: Engine,
    outbox: VecDeque<Packet>,
    /// Calls whose caller will come for the answer.
    slots: HashMap<CallId, (Slot, Option<Arc<Condvar>>)>,
    /// And calls of which whoever takes in the answer hands it on.
    thens: HashMap<CallId, Then>,
    /// Commands for the service.
    commands: VecDeque<(CallId, Message)>,
    cancelled: BTreeSet<CallId>,
    /// Callers that wait while another one reads.
    followers: Vec<Arc<Condvar>>,
    /// Those of them that wait for room.
    room_wanted: Vec<Arc<Condvar>>,
    /// The peer has let us in.
    greeted: bool,
    closed: Option<Reason>,
    armed: bool,
    bulk_armed: bool,
    /// The socket did not take all.
    stuck: bool,
    /// The peer takes nothing any more; what it said last may still be there to be read.
    mute: bool,
    /// When the link's thread looks again by itself.
    wakes_at: u64,
    /// The peer has never commanded: arming the socket again after a call can wait.
    lazy: bool,
    /// How often a caller has read, and how often when the link's thread last looked.
    turns: (u64, u64),
    /// How long the link's thread waits before it arms the socket.
    patience: u64,
    /// This side has called.
    calls: bool,
    /// The link's thread waits in the inlet, deaf to bell and epoll.
    deaf: bool,
}

pub(crate) struct Shared {
    me: Weak<Shared>,
    peer: Peer,
    service: Arc<dyn Service>,
    state: Mutex<State>,
    inlet: Mutex<Reading>,
    outlet: Mutex<Box<dyn Outlet>>,
    control: i32,
    bulk: Option<i32>,
    /// Messages may come past the descriptors.
    ring: bool,
    /// `None`: it is unattended.
    attendant: Option<Attendant>,
}

/// The right to read.
struct Reading {
    inlet: Box<dyn Inlet>,
    /// For who waits for a reply, and who for commands.
    replies: Pace,
    commands: Pace,
}

/// Until when a caller waits without asking whether it still shall; see [`Link::call_patiently`].
pub(crate) struct Patience<'a> {
    pub until: Option<u64>,
    slow: Option<&'a mut dyn FnMut() -> Option<Duration>>,
}

impl<'a> Patience<'a> {
    pub fn endless() -> Self {
        Patience { until: None, slow: None }
    }

    pub fn of(patience: Duration, slow: &'a mut dyn FnMut() -> Option<Duration>) -> Self {
        Patience { until: deadline(Some(patience)), slow: Some(slow) }
    }

    /// Asks when it is time to; false: the caller waits no longer.
    pub fn holds(&mut self) -> bool {
        let Some(slow) = self.slow.as_mut().filter(|_| self.until.is_some_and(|t| t <= now_ns())) else { return true };
        let more = slow();
        self.until = deadline(more);
        more.is_some()
    }
}

/// A call that is under way. Dropping it takes the command back.
pub struct Pending {
    shared: Arc<Shared>,
    call: CallId,
}

/// What a link is made of, when both sides have greeted; or, if it is unattended, not yet.
pub(crate) struct Opened {
    pub engine: Engine,
    pub wire: Wire,
    pub peer: Peer,
    pub service: Arc<dyn Service>,
}

impl Opened {
    /// Starts the link's thread.
    pub fn start(self) -> std::io::Result<Link> {
        let shared = self.shared(true)?;
        attend_elsewhere(&shared)?;
        Ok(Link { shared, _last: None })
    }

    /// Makes this thread the link's, until that is over.
    pub fn run(self) -> std::io::Result<()> {
        attend(self.shared(true)?);
        Ok(())
    }

    /// Leaves it without a thread.
    pub fn unattended(self) -> std::io::Result<Link> {
        let shared = self.shared(false)?;
        // (What is said first goes out with the first call.)
        shared.perform(&mut shared.state.lock());
        Ok(Link { shared, _last: None })
    }

    fn shared(self, attended: bool) -> std::io::Result<Arc<Shared>> {
        let Opened { engine, wire, peer, service } = self;
        let attendant = attended.then(|| Attendant::new(&wire)).transpose()?;
        let state = State {
            greeted: engine.is_open(),
            engine,
            outbox: VecDeque::new(),
            slots: HashMap::new(),
            thens: HashMap::new(),
            commands: VecDeque::new(),
            cancelled: BTreeSet::new(),
            followers: Vec::new(),
            room_wanted: Vec::new(),
            mute: false,
            closed: None,
            armed: attended,
            bulk_armed: false,
            stuck: false,
            wakes_at: 0,
            lazy: true,
            turns: (0, 0),
            patience: PATIENCE,
            calls: false,
            deaf: false,
        };
        Ok(Arc::new_cyclic(|me| Shared {
            me: me.clone(),
            peer,
            service,
            state: Mutex::new(state),
            inlet: Mutex::new(Reading {
                inlet: wire.inlet,
                replies: Pace::new(wire.poll),
                commands: Pace::new(wire.poll),
            }),
            outlet: Mutex::new(wire.outlet),
            control: wire.control,
            bulk: wire.bulk,
            ring: wire.ring,
            attendant,
        }))
    }
}

impl Link {
    /// Lets the link end with its last clone.
    pub(crate) fn owned(self) -> Link {
        Link { _last: Some(Arc::new(CloseOnDrop(self.shared.clone()))), ..self }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.shared.peer
    }

    /// Sends a command, waiting for room if the link is full, but not for the reply.
    pub fn start_call(&self, command: Message, timeout: Option<Duration>) -> Result<Pending, CallError> {
        let call = self.shared.begin(command, deadline(timeout), &mut Patience::endless(), None)?;
        self.shared.attend();
        Ok(Pending { shared: self.shared.clone(), call })
    }

    /// As [`Link::start_call`], but fails with [`CallError::Busy`] if the link is full.
    pub fn try_call(&self, command: Message, timeout: Option<Duration>) -> Result<Pending, CallError> {
        let until = deadline(timeout);
        let call = self.shared.try_begin(&mut self.shared.state.lock(), command, until, &mut None).map_err(|e| e.0)?;
        self.shared.flush();
        self.shared.attend();
        Ok(Pending { shared: self.shared.clone(), call })
    }

    /// Sends a command, waiting for room if the link is full; `then` gets the reply, or the error, on whatever thread takes that in.
    /// It holds up the link until it returns, and must not use it. Not for a link that nobody attends.
    pub fn call_then(
        &self,
        command: Message,
        timeout: Option<Duration>,
        then: impl FnOnce(Result<Message, CallError>) + Send + 'static,
    ) -> Result<(), CallError> {
        self.shared.begin(command, deadline(timeout), &mut Patience::endless(), Some(Box::new(then)))?;
        self.shared.attend();
        Ok(())
    }

    /// As [`Caller::call`]. If it takes longer than `patience`, `slow` is called, which says how much longer until it is
    /// called again; or `None`, which takes the command back ([`CallError::Cancelled`]). An error comes with the call, if
    /// the command was sent: see [`Link::owes`].
    pub fn call_patiently(
        &self,
        command: Message,
        timeout: Option<Duration>,
        patience: Duration,
        slow: &mut dyn FnMut() -> Option<Duration>,
    ) -> Result<Message, (CallError, Option<CallId>)> {
        let mut patience = Patience::of(patience, slow);
        let call = self.shared.begin(command, deadline(timeout), &mut patience, None).map_err(|e| (e, None))?;
        self.shared.wait_for(call, &mut patience).map_err(|e| (e, Some(call)))
    }

    /// Whether the peer has let us in: if not, it may have ended before it saw a command.
    pub fn is_greeted(&self) -> bool {
        self.shared.state.lock().greeted
    }

    /// Waits until the peer has let us in. If it takes longer than `patience`, `slow` is called, as in [`Link::call_patiently`].
    pub fn greet_patiently(
        &self,
        patience: Duration,
        slow: &mut dyn FnMut() -> Option<Duration>,
    ) -> Result<(), Reason> {
        let mut patience = Patience::of(patience, slow);
        let let_in = |s: &mut State| s.closed.clone().map(Err).or(s.greeted.then_some(Ok(())));
        let found = self.shared.wait_until(None, None, &mut patience, let_in);
        found.unwrap_or_else(|| Err(Reason::new(Why::Slow, "the peer does not greet")))
    }

    /// Whether the peer has not replied to a call yet: it may be at work on it, also when nobody waits any more.
    pub fn owes(&self, call: CallId) -> bool {
        self.shared.state.lock().engine.owes(call)
    }

    /// When the peer last replied to a call, be it too late, on the clock of [`now_ns`]; 0: never.
    pub fn replied_at(&self) -> u64 {
        self.shared.state.lock().engine.replied_at()
    }

    /// When the peer was last there for sure, on the clock of [`now_ns`]: now, where the kernel tells of its end; else when something
    /// came from it, which while calls are under way is at most [`crate::Config::quiet_ns`] ago.
    pub fn was_there(&self) -> u64 {
        self.shared.state.lock().engine.was_there(now_ns())
    }

    /// Ends it; what was not replied to is answered with [`CallError::Broken`] on both sides.
    pub fn close(&self) {
        self.shared.close(Reason::new(Why::Closed, ""));
    }

    /// Why it ended, if it did.
    pub fn closed(&self) -> Option<Reason> {
        self.shared.state.lock().closed.clone()
    }
}

impl Caller for Link {
    fn call(&self, command: Message, timeout: Option<Duration>) -> Result<Message, CallError> {
        self.shared.call(command, timeout)
    }

    fn start(&self, command: Message, timeout: Option<Duration>) -> Result<Box<dyn Awaited>, CallError> {
        Ok(Box::new(self.start_call(command, timeout)?))
    }
}

impl Awaited for Pending {
    fn wait(self: Box<Self>) -> Result<Message, CallError> {
        Pending::wait(*self)
    }
}

impl Pending {
    /// Waits for the answer.
    pub fn wait(self) -> Result<Message, CallError> {
        self.shared.wait_for(self.call, &mut Patience::endless())
    }

    /// Whether the answer is there, so that [`Pending::wait`] returns at once.
    pub fn is_done(&self) -> bool {
        self.shared.state.lock().slots.get(&self.call).is_none_or(|s| s.0.is_some())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.shared.give_up(self.call);
    }
}

fn deadline(timeout: Option<Duration>) -> Option<u64> {
    timeout.map(|t| now_ns().saturating_add(t.as_nanos().min(u64::MAX.into()) as u64))
}

impl Shared {
    fn call(&self, command: Message, timeout: Option<Duration>) -> Result<Message, CallError> {
        let mut patience = Patience::endless();
        let call = self.begin(command, deadline(timeout), &mut patience, None)?;
        self.wait_for(call, &mut patience)
    }

    fn try_begin(
        &self,
        state: &mut State,
        command: Message,
        until: Option<u64>,
        then: &mut Option<Then>,
    ) -> Result<CallId, (CallError, Option<Message>)> {
        if let Some(reason) = &state.closed {
            return Err((CallError::Broken(reason.clone()), None));
        }
        let call = state.engine.call(now_ns(), command, until)?;
        state.calls = true;
        match then.take() {
            Some(then) => drop(state.thens.insert(call, then)),
            None => drop(state.slots.insert(call, (None, None))),
        }
        self.perform(state);
        Ok(call)
    }

    /// Sends a command; waits for room.
    fn begin(
        &self,
        mut command: Message,
        until: Option<u64>,
        patience: &mut Patience<'_>,
        mut then: Option<Then>,
    ) -> Result<CallId, CallError> {
        let size = command.size();
        loop {
            let begun = self.try_begin(&mut self.state.lock(), command, until, &mut then);
            match begun {
                Ok(call) => {
                    self.flush();
                    return Ok(call);
                }
                Err((CallError::Busy, Some(back))) => command = back,
                Err((e, _)) => return Err(e),
            }
            let room = |s: &mut State| (s.closed.is_some() || s.engine.has_room(size)).then_some(());
            if self.wait_until(None, until, patience, room).is_none() {
                let too_late = until.is_some_and(|t| t <= now_ns());
                return Err(if too_late { CallError::TooLate } else { CallError::Cancelled });
            }
        }
    }

    fn wait_for(&self, call: CallId, patience: &mut Patience<'_>) -> Result<Message, CallError> {
        let done = |s: &mut State| match s.slots.get_mut(&call) {
            None => Some(Err(CallError::Cancelled)),
            Some(slot) => slot.0.take().inspect(|_| drop(s.slots.remove(&call))),
        };
        // (The engine has the deadline.)
        self.wait_until(Some(call), None, patience, done).unwrap_or_else(|| {
            self.give_up(call);
            Err(CallError::Cancelled)
        })
    }

    /// Reads, or waits for one who does, until something is so (`ready`), or `until`, or there is no more patience. `call`: what is waited for.
    fn wait_until<T>(
        &self,
        call: Option<CallId>,
        until: Option<u64>,
        patience: &mut Patience<'_>,
        mut ready: impl FnMut(&mut State) -> Option<T>,
    ) -> Option<T> {
        loop {
            let next = [until, patience.until].into_iter().flatten().min();
            let found = self.pump(next, call, &mut ready);
            if found.is_some() || until.is_some_and(|t| t <= now_ns()) || !patience.holds() {
                return found;
            }
        }
    }

    fn give_up(&self, call: CallId) {
        let mut state = self.state.lock();
        if state.slots.remove(&call).is_none() {
            return;
        }
        state.engine.cancel(call);
        self.perform(&mut state);
        drop(state);
        self.flush();
    }

    /// Makes the link's thread look at the deadline, and take in the reply, of a call that perhaps nobody waits for.
    fn attend(&self) {
        if self.attendant.is_none() {
            return;
        }
        let mut state = self.state.lock();
        if !state.armed && self.inlet.try_lock().is_some() {
            self.arm(&mut state, true);
        }
        if state.engine.next_timeout().is_some_and(|t| t < state.wakes_at) {
            self.ring_bell();
        }
    }

    /// Wakes the link's thread.
    fn ring_bell(&self) {
        if let Some(attendant) = &self.attendant {
            attendant.bell.ring();
        }
    }

    fn close(&self, reason: Reason) {
        let mut state = self.state.lock();
        state.engine.close(reason);
        self.perform(&mut state);
        drop(state);
        self.flush();
    }

    /// Reads, or waits for those who do, until `ready` has something, or the time has come.
    fn pump<T>(
        &self,
        until: Option<u64>,
        call: Option<CallId>,
        ready: &mut impl FnMut(&mut State) -> Option<T>,
    ) -> Option<T> {
        let mut state = self.state.lock();
        let found = loop {
            if let Some(t) = ready(&mut state) {
                break Some(t);
            }
            if until.is_some_and(|t| t <= now_ns()) {
                break None;
            }
            if let Some(mut reading) = self.inlet.try_lock().filter(|_| state.closed.is_none()) {
                state = self.lead(state, &mut reading, until);
                drop(reading);
                if self.attendant.is_none() && !state.commands.is_empty() {
                    drop(state);
                    // (None takes long here.)
                    self.serve();
                    state = self.state.lock();
                }
            } else {
                state = self.follow(state, until, call);
            }
        };
        self.pass_on(&mut state);
        found
    }

    /// Reads once, as the one who has the right to.
    fn lead<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        reading: &mut Reading,
        until: Option<u64>,
    ) -> MutexGuard<'a, State> {
        let Reading { inlet, replies, .. } = reading;
        inlet.wake();
        state.turns.0 += 1;
        if state.armed {
            self.arm(&mut state, false);
            if state.lazy {
                // The link's thread shall see to arming it again.
                self.ring_bell();
            }
        }
        if !state.outbox.is_empty() && !state.stuck {
            // Who waits has said all that there is to say: the hello, where a call can't go along with it.
            drop(state);
            self.flush();
            state = self.state.lock();
        }
        let stuck = state.stuck;
        let until = [until, state.engine.next_timeout(), inlet.late_at()].into_iter().flatten().min();
        drop(state);
        if stuck || inlet.has_more() || !self.poll(inlet, replies) {
            let asleep = Instant::now();
            let far = until.is_none_or(|t| t > now_ns() + WAIT_MAX);
            let wait = !stuck && far && inlet.can_wait();
            if !wait && !inlet.has_more() && inlet.sleep() {
                self.wait_for_events(inlet.wants_bulk(), stuck, until);
                inlet.wake();
            }
            let some = self.read(inlet, wait);
            replies.woke(asleep.elapsed());
            // (What was said before the end is taken in first.)
            if !some && !inlet.wants_bulk() && self.bulk.is_some_and(poll::is_gone) {
                self.lose(bulk_is_gone());
            }
        }
        self.flush();
        let state = self.state.lock();
        if !state.commands.is_empty() {
            self.ring_bell();
        }
        state
    }

    fn wait_for_events(&self, bulk: bool, stuck: bool, until: Option<u64>) {
        let control = (self.control, stuck);
        let outcome = match self.bulk {
            Some(fd) if bulk || stuck => poll::wait(&[control, (fd, stuck)], until),
            Some(fd) => poll::wait_or_gone(control, fd, until),
            None => poll::wait(&[control], until),
        };
        if let Err(e) = outcome {
            self.lose(Reason::lost(&e));
        }
    }

    /// Waits for one who reads.
    fn follow<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        until: Option<u64>,
        call: Option<CallId>,
    ) -> MutexGuard<'a, State> {
        let bell = Arc::new(Condvar::new());
        state.followers.push(bell.clone());
        match call.and_then(|call| state.slots.get_mut(&call)) {
            Some(slot) => slot.1 = Some(bell.clone()),
            None => state.room_wanted.push(bell.clone()),
        }
        match [until, state.engine.next_timeout()].into_iter().flatten().min() {
            Some(t) => drop(bell.wait_for(&mut state, Duration::from_nanos(t.saturating_sub(now_ns())))),
            None => bell.wait(&mut state),
        }
        state.followers.retain(|f| !Arc::ptr_eq(f, &bell));
        state.room_wanted.retain(|f| !Arc::ptr_eq(f, &bell));
        self.pass_time(&mut state);
        state
    }

    /// Leaves the reading to another caller that waits, or to the link's thread.
    fn pass_on(&self, state: &mut State) {
        match state.followers.last() {
            Some(next) => {
                next.notify_one();
            }
            None if self.attendant.is_some()
                && !state.armed
                && (!state.lazy || !state.thens.is_empty() || state.slots.values().any(|slot| slot.0.is_none())) =>
            {
                self.arm(state, true);
            }
            None => {}
        }
    }

    fn arm(&self, state: &mut State, armed: bool) {
        state.armed = armed;
        if armed && self.ring {
            // The link's thread says in the ring that it sleeps.
            self.ring_bell();
        }
        self.set_events(state);
    }

    fn set_events(&self, state: &mut State) {
        let Some(Attendant { epoll, .. }) = &self.attendant else { return };
        let write = if state.stuck { libc::EPOLLOUT } else { 0 };
        let read = |on: bool| if on { libc::EPOLLIN } else { 0 };
        let mut outcome = epoll.change(self.control, CONTROL, write | read(state.armed));
        if let Some(fd) = self.bulk {
            outcome =
                outcome.and(epoll.change(fd, BULK, libc::EPOLLRDHUP | write | read(state.armed && state.bulk_armed)));
        }
        if let Err(e) = outcome {
            state.engine.lost(Reason::lost(&e));
        }
    }

    fn pass_time(&self, state: &mut State) {
        if state.engine.next_timeout().is_some_and(|t| t <= now_ns()) {
            state.engine.tick(now_ns());
        }
        self.perform(state);
    }

    /// Polls for what comes, if that promises to pay; says whether something did.
    fn poll(&self, inlet: &mut Box<dyn Inlet>, pace: &mut Pace) -> bool {
        let got = pace.poll(|| match inlet.glance(&mut |bytes| self.state.lock().engine.announce(now_ns(), bytes)) {
            Ok(Got::Nothing) => None,
            got => Some(got),
        });
        let Some(got) = got else { return false };
        if self.take_in(inlet, got) {
            self.read(inlet, false);
        }
        true
    }

    /// Takes in everything that is here. Says whether there was something.
    fn read(&self, inlet: &mut Box<dyn Inlet>, mut wait: bool) -> bool {
        let mut some = false;
        loop {
            let got = self.receive(inlet, wait);
            wait = false;
            some |= matches!(got, Ok(Got::Message(_)));
            if !self.take_in(inlet, got) {
                return some;
            }
        }
    }

    fn receive(&self, inlet: &mut Box<dyn Inlet>, wait: bool) -> Result<Got, Reason> {
        inlet.receive(wait, &mut |bytes| self.state.lock().engine.announce(now_ns(), bytes))
    }

    /// Says whether there may be more.
    fn take_in(&self, inlet: &mut Box<dyn Inlet>, got: Result<Got, Reason>) -> bool {
        let mut state = self.state.lock();
        let mut more = false;
        match got {
            Ok(Got::Message((announced, bulk))) => {
                state.engine.arrive(now_ns(), announced, bulk);
                more = inlet.has_more();
            }
            Ok(Got::Nothing | Got::Ended) => {}
            Err(reason) if reason.why == Why::Lost => state.engine.lost(reason),
            Err(reason) => state.engine.close(reason),
        }
        if state.bulk_armed != inlet.wants_bulk() {
            state.bulk_armed = inlet.wants_bulk();
            self.set_events(&mut state);
        }
        self.pass_time(&mut state);
        more && state.closed.is_none()
    }

    fn lose(&self, reason: Reason) {
        let mut state = self.state.lock();
        state.engine.lost(reason);
        self.perform(&mut state);
    }

    /// Does what the engine wants, but for writing to the socket: see [`Shared::flush`].
    fn perform(&self, state: &mut State) {
        while let Some(action) = state.engine.action() {
            match action {
                Action::Send(_) if state.mute => {}
                Action::Send(packet) => {
                    state.outbox.push_back(packet);
                    state.engine.waiting(state.outbox.len());
                }
                Action::Deliver { call, message, .. } => {
                    state.lazy = false;
                    state.commands.push_back((call, message));
                }
                Action::Cancelled(call) => drop(state.cancelled.insert(call)),
                Action::Answer(call, answer) => self.answered(state, call, answer),
                Action::Closed(reason) => self.ended(state, reason),
                Action::Opened(_) => state.greeted = true,
                // (That was over before this link began.)
                Action::Admit(_) => {}
            }
        }
    }

    fn answered(&self, state: &mut State, call: CallId, answer: Result<Message, CallError>) {
        if let Some(then) = state.thens.remove(&call) {
            then(answer);
        } else if let Some(slot) = state.slots.get_mut(&call) {
            slot.0 = Some(answer);
            if let Some(waiter) = slot.1.take() {
                waiter.notify_one();
            }
        }
        wake(&state.room_wanted);
    }

    fn ended(&self, state: &mut State, reason: Reason) {
        state.closed = Some(reason);
        state.commands.clear();
        state.cancelled.clear();
        wake(&state.followers);
        self.ring_bell();
        if state.deaf {
            // SAFETY: a plain system call; the descriptor lives as long as the inlet.
            unsafe { libc::shutdown(self.control, libc::SHUT_RD) };
        }
    }

    /// Writes what is to be written, unless somebody is at it, who then does.
    fn flush(&self) {
        loop {
            let Some(mut outlet) = self.outlet.try_lock() else { return };
            let outcome = self.write_all(&mut **outlet);
            drop(outlet);
            let mut state = self.state.lock();
            match outcome {
                Err(e) => return self.cannot_write(&mut state, &e),
                Ok(stuck) if stuck != state.stuck => {
                    state.stuck = stuck;
                    self.set_events(&mut state);
                }
                Ok(_) => {}
            }
            if state.stuck && state.deaf {
                // The link's thread does not hear of it: whoever has something to say waits for room.
                drop(state);
                let _ = poll::wait_for_room(self.control, now_ns() + WAIT_MAX);
            } else if state.outbox.is_empty() || state.stuck {
                return;
            }
        }
    }

    fn cannot_write(&self, state: &mut State, e: &std::io::Error) {
        state.outbox.clear();
        state.mute = true;
        // If the peer is gone, reading tells it, and perhaps why.
        if !matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) {
            state.engine.lost(Reason::lost(e));
            self.perform(state);
        }
    }

    /// True: the socket takes no more.
    fn write_all(&self, outlet: &mut dyn Outlet) -> std::io::Result<bool> {
        if outlet.push()? {
            return Ok(true);
        }
        loop {
            let Some(packet) = self.state.lock().outbox.pop_front() else { return Ok(false) };
            if let Some(back) = outlet.send(packet)? {
                self.state.lock().outbox.push_front(back);
                return Ok(true);
            }
            if outlet.push()? {
                return Ok(true);
            }
        }
    }

    /// The link's thread, until it is over, or there is a command that takes long: it is returned.
    fn run(&self) -> Option<(Message, Reply)> {
        let Attendant { epoll, bell } = self.attendant.as_ref()?;
        loop {
            let until = self.plan();
            if !self.listen(until) {
                match epoll.wait(if self.may_sleep() { until } else { Some(0) }) {
                    Ok(ready) => self.look(ready, bell),
                    Err(e) => self.lose(Reason::lost(&e)),
                }
            }
            if let Some(long) = self.serve() {
                return Some(long);
            }
            let closed = self.state.lock().closed.clone();
            if let Some(reason) = closed {
                self.wind_up(&reason);
                return None;
            }
        }
    }

    /// While only the peer calls: waits in the inlet, which costs less than epoll. False: nothing came, or it can't be.
    fn listen(&self, until: Option<u64>) -> bool {
        let Some(mut reading) = self.inlet.try_lock() else { return false };
        let Reading { inlet, commands, .. } = &mut *reading;
        let far = until.is_none_or(|t| t > now_ns() + WAIT_MAX);
        let may = |state: &State| far && !state.calls && !state.stuck && state.closed.is_none();
        if !inlet.can_wait() || !may(&self.state.lock()) {
            return false;
        }
        let mut some = self.poll(inlet, commands);
        if !some {
            {
                let mut state = self.state.lock();
                if !may(&state) {
                    return false;
                }
                state.deaf = true;
            }
            let asleep = Instant::now();
            some = self.read(inlet, true);
            commands.woke(asleep.elapsed());
        }
        drop(reading);
        let mut state = self.state.lock();
        state.deaf = false;
        // A caller that came meanwhile waits for somebody to read.
        if let Some(next) = state.followers.last() {
            next.notify_one();
        }
        drop(state);
        self.flush();
        some
    }

    /// Whether nothing has come past the descriptors; what does from now on wakes us, unless a caller reads.
    fn may_sleep(&self) -> bool {
        !self.ring || self.inlet.try_lock().is_none_or(|mut r| !self.state.lock().armed || r.inlet.sleep())
    }

    fn plan(&self) -> Option<u64> {
        // What is here already, the descriptors know nothing of.
        let late = self.inlet.try_lock().and_then(|r| if r.inlet.has_more() { Some(0) } else { r.inlet.late_at() });
        let mut state = self.state.lock();
        let arm = (!state.armed).then(|| now_ns() + state.patience);
        let until = [late, state.engine.next_timeout(), arm].into_iter().flatten().min();
        state.wakes_at = until.unwrap_or(u64::MAX);
        until
    }

    fn look(&self, ready: u64, bell: &Bell) {
        if ready & 1 << BELL != 0 {
            bell.hush();
        }
        let mut free = false;
        if let Some(mut reading) = self.inlet.try_lock() {
            let inlet = &mut reading.inlet;
            inlet.wake();
            free = true;
            let late = inlet.late_at().is_some_and(|t| t <= now_ns());
            if ready & (1 << CONTROL | 1 << BULK) != 0 || late || inlet.has_more() {
                self.read(inlet, false);
            }
            // While nobody expects bulk nobody would notice by reading.
            if ready & 1 << (BULK + GONE) != 0 && !inlet.wants_bulk() {
                self.lose(bulk_is_gone());
            }
        } else {
            // A caller reads, and was not quick enough to say so.
            thread::yield_now();
        }
        let mut state = self.state.lock();
        // A caller may have come while the right to read was taken for a moment.
        if let Some(next) = state.followers.last() {
            next.notify_one();
        }
        if !state.armed && ready == 0 {
            self.arm_again(&mut state, free);
        }
        self.pass_time(&mut state);
        drop(state);
        self.flush();
    }

    fn arm_again(&self, state: &mut State, free: bool) {
        let (now, before) = state.turns;
        state.turns.1 = now;
        if free && now == before {
            state.patience = PATIENCE;
            self.arm(state, true);
        } else {
            state.patience = (state.patience * 2).min(PATIENCE_MAX);
        }
    }

    /// Answers what there is to answer, up to a command that takes long.
    fn serve(&self) -> Option<(Message, Reply)> {
        loop {
            let (call, command) = self.state.lock().commands.pop_front()?;
            let reply = Reply::new(self.me.upgrade()?, call);
            if self.attendant.is_some() && self.service.takes_long(&command) {
                return Some((command, reply));
            }
            self.service.call(&self.peer, command, reply);
        }
    }

    fn wind_up(&self, reason: &Reason) {
        self.flush();
        self.outlet.lock().end();
        self.service.closed(&self.peer, reason);
    }
}

/// Makes a new thread the link's.
fn attend_elsewhere(shared: &Arc<Shared>) -> std::io::Result<()> {
    let shared = shared.clone();
    thread::Builder::new().name("syslink".into()).spawn(move || attend(shared)).map(drop)
}

/// Makes this thread the link's, until the link is over, or there is a command that takes long: then it goes on with that, and a new
/// one is the link's. (The other way round the command would wait until a thread has been woken, on another CPU.)
fn attend(shared: Arc<Shared>) {
    let guard = CloseOnPanic(&shared);
    while let Some((command, reply)) = shared.run() {
        if attend_elsewhere(&shared).is_ok() {
            drop(guard);
            return shared.service.call(&shared.peer, command, reply);
        }
        // (There is no thread: the link has to wait.)
        shared.service.call(&shared.peer, command, reply);
    }
}

/// A service that panics must not leave a link that nobody runs.
struct CloseOnPanic<'a>(&'a Shared);

impl Drop for CloseOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.close(Reason::new(Why::Closed, ""));
        }
    }
}

fn bulk_is_gone() -> Reason {
    Reason::new(Why::Lost, "the bulk connection is gone")
}

fn wake(waiters: &[Arc<Condvar>]) {
    for w in waiters {
        w.notify_one();
    }
}

impl Caller for Shared {
    fn call(&self, command: Message, timeout: Option<Duration>) -> Result<Message, CallError> {
        Shared::call(self, command, timeout)
    }
}

impl Sink for Shared {
    fn answer(&self, call: CallId, reply: Result<Message, Refusal>) {
        let mut state = self.state.lock();
        state.cancelled.remove(&call);
        state.engine.reply(call, reply);
        self.perform(&mut state);
        drop(state);
        self.flush();
    }

    fn is_cancelled(&self, call: CallId) -> bool {
        let state = self.state.lock();
        state.closed.is_some() || state.cancelled.contains(&call)
    }
}
