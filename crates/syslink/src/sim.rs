//! A link in memory whose two ends run on the caller's thread, on simulated time, from a seed: what happens is a
//! function of seed, faults and calls. For tests of protocols: cut, lose, double, damage or delay any message.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::engine::{Action, Announced, CallId, Config, Counts, Engine, Hello, Packet};
use crate::error::{CallError, Reason, Refusal, Why};
use crate::message::Message;
use crate::service::{Caller, Peer, Reply, Service, Sink, Who};

/// One of the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that connects.
    A = 0,
    /// The one that accepts.
    B = 1,
}

impl Side {
    /// The other one.
    pub fn other(self) -> Side {
        if self == Side::A { Side::B } else { Side::A }
    }
}

/// What goes wrong. Chances are in a thousand messages.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// The link breaks instead of carrying this message, counted from 0 in both directions together.
    pub cut_at: Option<u64>,
    /// Is lost.
    pub lose: u32,
    /// Comes twice.
    pub double: u32,
    /// Has a byte changed.
    pub damage: u32,
    /// Nanoseconds that a message is under way at most.
    pub delay_ns: u64,
}

struct End {
    engine: Engine,
    service: Arc<dyn Service>,
    peer: Peer,
    /// On the way to here, with the time of arrival.
    inbox: VecDeque<(u64, Packet)>,
    /// Here but for the bulk, which comes later.
    awaiting: VecDeque<(u64, Announced, Vec<Vec<u8>>)>,
    answers: BTreeMap<CallId, Result<Message, CallError>>,
    cancelled: BTreeSet<CallId>,
    closed: Option<Reason>,
}

struct World {
    now: u64,
    random: u64,
    faults: Faults,
    carried: u64,
    ends: [End; 2],
}

/// Something that the driver must do without holding the world.
enum Outside {
    Deliver(Arc<dyn Service>, Peer, CallId, Message),
    Closed(Arc<dyn Service>, Peer, Reason),
}

/// Both ends.
#[derive(Clone)]
pub struct Pair(Arc<Mutex<World>>);

impl Pair {
    /// A pair that is being opened; `a` answers what B commands, `b` what A commands.
    pub fn new(seed: u64, faults: Faults, config: &Config, a: Arc<dyn Service>, b: Arc<dyn Service>) -> Pair {
        let hello = || Hello { service: "simulated".into(), ..Hello::default() };
        let engines = [Engine::connect(config.clone(), hello(), 0), Engine::accept(config.clone(), hello(), 0)];
        let mut services = [a, b].into_iter();
        let ends = engines.map(|engine| End {
            engine,
            service: services.next().expect("two services for two ends"),
            peer: Peer { who: Who::Memory, service: "simulated".into() },
            inbox: VecDeque::new(),
            awaiting: VecDeque::new(),
            answers: BTreeMap::new(),
            cancelled: BTreeSet::new(),
            closed: None,
        });
        let pair = Pair(Arc::new(Mutex::new(World { now: 0, random: seed, faults, carried: 0, ends })));
        pair.perform();
        pair
    }

    /// A pair without faults.
    pub fn perfect(a: Arc<dyn Service>, b: Arc<dyn Service>) -> Pair {
        Pair::new(0, Faults::default(), &Config::default(), a, b)
    }

    /// To call from one side.
    pub fn caller(&self, side: Side) -> Arc<dyn Caller> {
        Arc::new(Handle { pair: self.clone(), side })
    }

    /// Sends a command without waiting. Its answer comes to [`Pair::answer`], once.
    pub fn start(&self, side: Side, command: Message, timeout: Option<Duration>) -> Result<CallId, CallError> {
        let outcome = {
            let mut world = self.0.lock();
            let now = world.now;
            let deadline = timeout.map(|t| now.saturating_add(t.as_nanos() as u64));
            world.ends[side as usize].engine.call(now, command, deadline)
        };
        self.perform();
        outcome.map_err(|e| e.0)
    }

    /// Takes the answer of a call, if it is there.
    pub fn answer(&self, side: Side, call: CallId) -> Option<Result<Message, CallError>> {
        self.0.lock().ends[side as usize].answers.remove(&call)
    }

    /// Takes a call back.
    pub fn cancel(&self, side: Side, call: CallId) {
        self.0.lock().ends[side as usize].engine.cancel(call);
        self.perform();
    }

    /// Breaks the link.
    pub fn cut(&self) {
        self.0.lock().cut();
        self.perform();
    }

    /// Closes the link at one side.
    pub fn close(&self, side: Side) {
        self.0.lock().ends[side as usize].engine.close(Reason::new(Why::Closed, ""));
        self.perform();
    }

    /// Why it ended at this side, if it did.
    pub fn closed(&self, side: Side) -> Option<Reason> {
        self.0.lock().ends[side as usize].closed.clone()
    }

    /// Whether calls can be made at this side.
    pub fn is_open(&self, side: Side) -> bool {
        self.0.lock().ends[side as usize].engine.is_open()
    }

    /// Calls and commands that this side remembers.
    pub fn pending(&self, side: Side) -> (usize, usize) {
        self.0.lock().ends[side as usize].engine.pending()
    }

    /// What this side dropped.
    pub fn counts(&self, side: Side) -> Counts {
        self.0.lock().ends[side as usize].engine.counts()
    }

    /// Messages carried so far.
    pub fn carried(&self) -> u64 {
        self.0.lock().carried
    }

    /// Nanoseconds since the start.
    pub fn now_ns(&self) -> u64 {
        self.0.lock().now
    }

    /// Lets the next thing happen; false: nothing will.
    pub fn step(&self) -> bool {
        let happened = self.0.lock().step();
        self.perform();
        happened
    }

    /// Lets everything happen that will.
    pub fn settle(&self) {
        while self.step() {}
    }

    fn perform(&self) {
        loop {
            let (side, outside) = {
                let mut world = self.0.lock();
                let Some(next) = world.next_outside() else { return };
                next
            };
            match outside {
                Outside::Deliver(service, peer, call, message) => {
                    let sink = Arc::new(Handle { pair: self.clone(), side });
                    service.call(&peer, message, Reply::new(sink, call));
                }
                Outside::Closed(service, peer, reason) => service.closed(&peer, &reason),
            }
        }
    }
}

impl World {
    /// SplitMix64 (Steele et al. 2014).
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn chance(&mut self, in_a_thousand: u32) -> bool {
        in_a_thousand > 0 && self.random() % 1000 < u64::from(in_a_thousand)
    }

    fn later(&mut self) -> u64 {
        let delay = self.random() % (self.faults.delay_ns + 1);
        self.now + delay
    }

    fn cut(&mut self) {
        for end in &mut self.ends {
            end.inbox.clear();
            end.awaiting.clear();
            end.engine.lost(Reason::new(Why::Lost, "cut"));
        }
    }

    fn carry(&mut self, from: Side, mut packet: Packet) {
        let n = self.carried;
        self.carried += 1;
        if self.faults.cut_at == Some(n) {
            return self.cut();
        }
        if self.chance(self.faults.lose) {
            return;
        }
        if self.chance(self.faults.damage) {
            let at = self.random() as usize % packet.bytes.len();
            packet.bytes[at] ^= 1 << (self.random() % 8);
        }
        let times = if self.chance(self.faults.double) { 2 } else { 1 };
        for _ in 0..times {
            let at = self.later();
            let to = &mut self.ends[from.other() as usize];
            let at = to.inbox.back().map_or(at, |last| at.max(last.0));
            if to.closed.is_none() {
                to.inbox.push_back((at, packet.clone()));
            }
        }
    }

    /// Does what the engines want, up to something that needs the world unlocked.
    fn next_outside(&mut self) -> Option<(Side, Outside)> {
        for side in [Side::A, Side::B] {
            while let Some(action) = self.ends[side as usize].engine.action() {
                if let Some(outside) = self.act(side, action) {
                    return Some((side, outside));
                }
            }
        }
        // A cut on the way may have given the first end something to do.
        let busy = self.ends[0].engine.next_action_is_due();
        if busy { self.next_outside() } else { None }
    }

    fn act(&mut self, side: Side, action: Action) -> Option<Outside> {
        let end = &mut self.ends[side as usize];
        match action {
            Action::Send(packet) => self.carry(side, packet),
            Action::Admit(_) => end.engine.admit(Ok(()), None),
            Action::Opened(_) => {}
            Action::Answer(call, answer) => {
                let again = end.answers.insert(call, answer);
                assert!(again.is_none(), "{call:?} was answered twice");
            }
            Action::Cancelled(call) => {
                end.cancelled.insert(call);
            }
            Action::Deliver { call, message, .. } => {
                return Some(Outside::Deliver(end.service.clone(), end.peer.clone(), call, message));
            }
            Action::Closed(reason) => {
                end.inbox.clear();
                end.awaiting.clear();
                end.closed = Some(reason.clone());
                return Some(Outside::Closed(end.service.clone(), end.peer.clone(), reason));
            }
        }
        None
    }

    /// The next event: when, at which end, and which of its three kinds.
    fn next_event(&self) -> Option<(u64, usize, u8)> {
        let of_end = |n: usize, end: &End| {
            let arrival = end.inbox.front().map(|e| (e.0, n, 0));
            let bulk = end.awaiting.front().map(|e| (e.0, n, 1));
            let timer = end.engine.next_timeout().map(|t| (t, n, 2));
            [arrival, bulk, timer].into_iter().flatten().min()
        };
        self.ends.iter().enumerate().filter_map(|(n, end)| of_end(n, end)).min()
    }

    fn step(&mut self) -> bool {
        let Some((at, n, kind)) = self.next_event() else { return false };
        self.now = self.now.max(at);
        let (now, later) = (self.now, self.later());
        let end = &mut self.ends[n];
        match kind {
            0 => end.take_in(now, later),
            1 => {
                let (_, announced, bulk) = end.awaiting.pop_front().expect("an event of this kind");
                end.engine.arrive(now, announced, bulk);
            }
            _ => end.engine.tick(now),
        }
        true
    }
}

impl End {
    fn take_in(&mut self, now: u64, bulk_at: u64) {
        let (_, packet) = self.inbox.pop_front().expect("an event of this kind");
        let Some(announced) = self.engine.announce(now, packet.bytes) else { return };
        if announced.bulks().is_empty() {
            return self.engine.arrive(now, announced, Vec::new());
        }
        let lengths: Vec<u32> = packet.bulk.iter().map(|b| b.len() as u32).collect();
        if lengths != announced.bulks() {
            return self.engine.lost(Reason::new(Why::Lost, "a damaged table"));
        }
        let at = self.awaiting.back().map_or(bulk_at, |last| bulk_at.max(last.0));
        self.awaiting.push_back((at, announced, packet.bulk));
    }
}

struct Handle {
    pair: Pair,
    side: Side,
}

impl Caller for Handle {
    fn call(&self, command: Message, timeout: Option<Duration>) -> Result<Message, CallError> {
        while !self.pair.is_open(self.side) && self.pair.closed(self.side).is_none() && self.pair.step() {}
        let call = self.pair.start(self.side, command, timeout)?;
        loop {
            if let Some(answer) = self.pair.answer(self.side, call) {
                return answer;
            }
            if !self.pair.step() {
                // A message was lost and nothing will tell, or the service keeps the reply for ever.
                self.pair.cut();
            }
        }
    }
}

impl Sink for Handle {
    fn answer(&self, call: CallId, reply: Result<Message, Refusal>) {
        {
            let end = &mut self.pair.0.lock().ends[self.side as usize];
            end.cancelled.remove(&call);
            end.engine.reply(call, reply);
        }
        self.pair.perform();
    }

    fn is_cancelled(&self, call: CallId) -> bool {
        let end = &self.pair.0.lock().ends[self.side as usize];
        end.closed.is_some() || end.cancelled.contains(&call)
    }
}
