//! The protocol as a state machine: what arrived, what is wanted and what time it is go in; [`Action`]s come out.
//!
//! Invariants: every call that was accepted has exactly one [`Action::Answer`]; every command that was delivered has at
//! most one reply on the wire, and exactly one if the link stays; a message's number is its predecessor's plus one, or
//! it is dropped (seen before) or ends the link (one was lost). A call that its caller gave up keeps its place until
//! the peer's reply is in, so that both sides always agree about how much is in flight. docs/syslink.md §Calls.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::element;
use crate::error::{CallError, Code, Reason, Refusal, Why, sentence, sentence_of};
use crate::header::{HEADER, Head, Kind, Limits, VERSION};
pub use crate::hello::Hello;
use crate::message::Message;

/// A command's number, given by the side that sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// How an engine behaves.
#[derive(Clone, Debug)]
pub struct Config {
    /// What is accepted from the peer.
    pub limits: Limits,
    /// The hello must be through by then, nanoseconds.
    pub handshake_ns: u64,
    /// A message that has begun must be whole after this, and its bulk after [`Config::bulk_ns`] more, nanoseconds.
    pub message_ns: u64,
    /// See [`Config::message_ns`].
    pub bulk_ns: u64,
    /// With calls in flight: silence after which the peer is asked whether it lives, and after which it is given up.
    /// `None` where the transport tells.
    pub quiet_ns: Option<u64>,
    /// Between processes: for how long who waits for a message polls before it sleeps, if that pays, nanoseconds. For links
    /// that carry many small calls one after the other.
    pub poll_ns: u64,
}

const SECOND: u64 = 1_000_000_000;

impl Default for Config {
    fn default() -> Self {
        Config {
            limits: Limits::default(),
            handshake_ns: 10 * SECOND,
            message_ns: 10 * SECOND,
            bulk_ns: 60 * SECOND,
            quiet_ns: None,
            poll_ns: 0,
        }
    }
}

/// A message on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Header, body, table.
    pub bytes: Vec<u8>,
    /// The buffers.
    pub bulk: Vec<Vec<u8>>,
}

/// What the driver shall do, in this order.
#[derive(Debug)]
pub enum Action {
    /// Send it.
    Send(Packet),
    /// Decide whether the peer may be here: [`Engine::admit`].
    Admit(Hello),
    /// Calls may be made.
    Opened(Hello),
    /// Give a command to the service; its reply goes to [`Engine::reply`].
    Deliver {
        /// Which.
        call: CallId,
        /// What.
        message: Message,
        /// When the caller stops waiting.
        deadline_ns: Option<u64>,
    },
    /// The caller of a delivered command does not want its reply any more.
    Cancelled(CallId),
    /// The one answer to [`Engine::call`].
    Answer(CallId, Result<Message, CallError>),
    /// Over; nothing follows.
    Closed(Reason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The connecting side has said hello, or the accepting one waits for it.
    Greeting,
    /// The driver decides.
    Admitting,
    Open,
    Closed,
}

struct Outgoing {
    bytes: u64,
    deadline: Option<u64>,
    /// Answered here already: what comes is only counted.
    abandoned: bool,
    /// Its reply is here but for the bulk.
    replied: bool,
}

struct Incoming {
    bytes: u64,
    delivered: bool,
}

/// What was seen and dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Replies to calls that were given up, or second replies.
    pub late: u64,
    /// Messages that came twice.
    pub duplicate: u64,
}

/// A message that is here but for its bulk; see [`Engine::announce`].
#[derive(Debug)]
pub struct Announced {
    head: Head,
    bytes: Vec<u8>,
    discard: bool,
}

impl Announced {
    /// The last of our messages that the peer has taken in, bulk and all.
    pub(crate) fn seen(&self) -> u64 {
        self.head.seen
    }

    /// Lengths of the bulk buffers that belong to it.
    pub fn bulks(&self) -> &[u32] {
        &self.head.bulks
    }
}

/// See the module.
pub struct Engine {
    accepts: bool,
    config: Config,
    hello: Hello,
    state: State,
    /// What the peer takes, and this version can send.
    send_limits: Limits,
    next_seq: u64,
    last_seen: u64,
    /// The last message that is here with its bulk.
    taken_in: u64,
    calls: BTreeMap<CallId, Outgoing>,
    calls_bytes: u64,
    /// The most of them that there were at once.
    calls_most: usize,
    serving: BTreeMap<CallId, Incoming>,
    serving_bytes: u64,
    deadlines: BTreeSet<(u64, CallId)>,
    greet_by: u64,
    heard: u64,
    replied: u64,
    pinged: bool,
    actions: VecDeque<Action>,
    counts: Counts,
}

impl Engine {
    /// The side that connects: says hello at once.
    pub fn connect(config: Config, hello: Hello, now: u64) -> Engine {
        let mut engine = Engine::new(false, config, hello, now);
        engine.greet();
        engine
    }

    /// The side that accepts.
    pub fn accept(config: Config, hello: Hello, now: u64) -> Engine {
        Engine::new(true, config, hello, now)
    }

    fn new(accepts: bool, config: Config, mut hello: Hello, now: u64) -> Engine {
        hello.limits = config.limits;
        Engine {
            accepts,
            hello,
            state: State::Greeting,
            send_limits: Limits::of_strangers(),
            next_seq: 1,
            last_seen: 0,
            taken_in: 0,
            calls: BTreeMap::new(),
            calls_bytes: 0,
            calls_most: 0,
            serving: BTreeMap::new(),
            serving_bytes: 0,
            deadlines: BTreeSet::new(),
            greet_by: now.saturating_add(config.handshake_ns),
            heard: now,
            replied: 0,
            pinged: false,
            actions: VecDeque::new(),
            counts: Counts::default(),
            config,
        }
    }

    /// What to do next.
    pub fn action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Whether [`Engine::action`] has one.
    pub(crate) fn next_action_is_due(&self) -> bool {
        !self.actions.is_empty()
    }

    /// Whether calls can be made.
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Whether it is over.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Messages that were dropped.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Calls and commands that are remembered: none when all is answered.
    pub fn pending(&self) -> (usize, usize) {
        (self.calls.len(), self.serving.len())
    }

    /// Whether the peer's reply to a call is not here yet, wanted or not.
    pub(crate) fn owes(&self, call: CallId) -> bool {
        self.calls.contains_key(&call)
    }

    /// When the last reply came that was owed; 0: none did.
    pub(crate) fn replied_at(&self) -> u64 {
        self.replied
    }

    /// When the peer was last there for sure: see [`crate::Link::was_there`].
    pub(crate) fn was_there(&self, now: u64) -> u64 {
        if self.config.quiet_ns.is_some() || self.is_closed() { self.heard } else { now }
    }

    /// As many messages may wait at once until the peer takes them, if it keeps the rules: ours to it and their cancellations, replies to
    /// what it may have in flight, and a few others.
    fn waiting_max(&self) -> usize {
        2 * self.calls_most + self.config.limits.calls as usize + 8
    }

    /// So many messages wait to be sent: ends the link if the peer does not take what it asks for.
    pub(crate) fn waiting(&mut self, n: usize) {
        if n > self.waiting_max() {
            self.close(Reason::new(Why::Flood, format!("{n} messages wait until they are read")));
        }
    }

    /// What is accepted from the peer at the moment.
    pub fn accepted(&self) -> Limits {
        match self.state {
            State::Greeting => Limits::of_strangers(),
            _ => self.config.limits,
        }
    }

    fn send(&mut self, kind: Kind, call: u64, arg: u32, message: Option<Message>) -> CallId {
        let seq = self.next_seq;
        self.next_seq += 1;
        let (mut bytes, bulk) = message.map_or_else(|| (vec![0; HEADER], Vec::new()), Message::into_parts);
        let bulks = bulk.iter().map(|b| b.len() as u32).collect();
        Head { call, arg, bulks, seen: self.taken_in, ..Head::new(kind, seq) }.seal(&mut bytes);
        self.actions.push_back(Action::Send(Packet { bytes, bulk }));
        CallId(seq)
    }

    fn greet(&mut self) {
        let hello = self.hello.message();
        self.send(Kind::Hello, 0, 0, Some(hello));
    }

    /// Whether the peer takes this.
    fn fits(&self, m: &Message) -> Result<(), &'static str> {
        let limits = &self.send_limits;
        if HEADER + m.body().len() + 4 * m.bulk().len() > limits.message as usize {
            return Err("too many bytes of elements");
        }
        if m.bulk().len() > limits.bulks as usize {
            return Err("too many bulk buffers");
        }
        if m.bulk().iter().map(|b| b.len() as u64).sum::<u64>() > u64::from(limits.bulk) {
            return Err("too many bytes of bulk");
        }
        element::verify(m.body(), m.bulk().len(), limits)
    }

    /// Whether a command of this size would be accepted now, as far as the flow goes.
    pub fn has_room(&self, size: u64) -> bool {
        let fits = self.calls_bytes.saturating_add(size) <= self.send_limits.bytes;
        self.is_open() && self.calls.len() < self.send_limits.calls as usize && (fits || self.calls.is_empty())
    }

    /// Sends a command. On `Ok`, one [`Action::Answer`] will follow; on `Err`, nothing was sent and none will; the
    /// message comes back where trying again later may help.
    pub fn call(
        &mut self,
        now: u64,
        m: Message,
        deadline: Option<u64>,
    ) -> Result<CallId, (CallError, Option<Message>)> {
        match self.state {
            State::Open => {}
            // The first one may go along with the hello, if any peer would take it.
            State::Greeting if !self.accepts && self.calls.is_empty() && self.fits(&m).is_ok() => {}
            State::Closed => return Err((CallError::Broken(Reason::new(Why::Closed, "")), None)),
            _ => return Err((CallError::Busy, Some(m))),
        }
        if let Err(what) = self.fits(&m) {
            return Err((CallError::TooLarge(what), None));
        }
        if deadline.is_some_and(|d| d <= now) {
            return Err((CallError::TooLate, None));
        }
        if self.is_open() && !self.has_room(m.size()) {
            return Err((CallError::Busy, Some(m)));
        }
        if self.calls.is_empty() {
            self.heard = now;
        }
        let bytes = m.size();
        // Rounded up: 0 means that there is none.
        let left = deadline.map_or(0, |d| (d - now).div_ceil(1_000_000).min(u32::MAX.into()) as u32);
        let call = self.send(Kind::Command, 0, left, Some(m));
        self.calls.insert(call, Outgoing { bytes, deadline, abandoned: false, replied: false });
        self.calls_bytes += bytes;
        self.calls_most = self.calls_most.max(self.calls.len());
        self.deadlines.extend(deadline.map(|d| (d, call)));
        Ok(call)
    }

    /// Takes a command back: it is answered with [`CallError::Cancelled`] unless it is answered already.
    pub fn cancel(&mut self, call: CallId) {
        self.abandon(call, CallError::Cancelled);
    }

    fn abandon(&mut self, call: CallId, error: CallError) {
        let Some(out) = self.calls.get_mut(&call).filter(|c| !c.abandoned) else { return };
        out.abandoned = true;
        if let Some(d) = out.deadline {
            self.deadlines.remove(&(d, call));
        }
        self.actions.push_back(Action::Answer(call, Err(error)));
        self.send(Kind::Cancel, call.0, 0, None);
    }

    /// Answers a command. Without effect if the link is closed, or it is answered.
    pub fn reply(&mut self, call: CallId, reply: Result<Message, Refusal>) {
        let Some(incoming) = self.serving.remove(&call) else { return };
        self.serving_bytes -= incoming.bytes;
        let reply = reply.and_then(|m| match self.fits(&m) {
            Ok(()) => Ok(m),
            Err(what) => Err(Refusal::new(Code::TooLarge, what)),
        });
        match reply {
            Ok(m) => self.send(Kind::Reply, call.0, 0, Some(m)),
            Err(no) => self.send(Kind::Reply, call.0, no.code.number(), Some(sentence(&no.why))),
        };
    }

    /// The verdict on [`Action::Admit`].
    pub fn admit(&mut self, verdict: Result<(), String>, bulk_token: Option<[u8; 16]>) {
        if self.state != State::Admitting {
            return;
        }
        if let Err(why) = verdict {
            return self.close(Reason::new(Why::NotAdmitted, why));
        }
        self.hello.bulk_token = bulk_token;
        self.greet();
        self.state = State::Open;
    }

    /// Takes a whole message but for its bulk. `None`: it ended the link.
    pub fn announce(&mut self, now: u64, bytes: Vec<u8>) -> Option<Announced> {
        if self.is_closed() {
            return None;
        }
        (self.heard, self.pinged) = (now, false);
        match self.judge(bytes) {
            Ok(announced) => Some(announced),
            Err(reason) => {
                self.close(reason);
                None
            }
        }
    }

    fn judge(&mut self, bytes: Vec<u8>) -> Result<Announced, Reason> {
        let head = Head::parse(&bytes, &self.accepted())?;
        if head.version != VERSION {
            return Err(Reason::new(Why::Version, format!("a message of version {}", head.version)));
        }
        if head.seq <= self.last_seen {
            self.counts.duplicate += 1;
            return Ok(Announced { head, bytes, discard: true });
        }
        if head.seq != self.last_seen + 1 {
            return Err(Reason::new(Why::Gap, format!("{} came after {}", head.seq, self.last_seen)));
        }
        self.last_seen = head.seq;
        self.in_its_place(head.kind)?;
        let discard = match head.kind {
            Kind::Command => self.expect_command(&head, bytes.len())?,
            Kind::Reply => self.expect_reply(&head)?,
            _ => false,
        };
        Ok(Announced { head, bytes, discard })
    }

    fn in_its_place(&self, kind: Kind) -> Result<(), Reason> {
        let hello_is_due = self.state == State::Greeting;
        if kind == Kind::Bye || (kind == Kind::Hello) == hello_is_due {
            return Ok(());
        }
        let what = if hello_is_due { "it does not say hello" } else { "it says hello twice" };
        Err(Reason::new(Why::Malformed, what))
    }

    fn expect_command(&mut self, head: &Head, len: usize) -> Result<bool, Reason> {
        let limits = &self.config.limits;
        let bytes = head.bulk_len() + (head.end - HEADER) as u64;
        let too_much = self.serving_bytes + bytes > limits.bytes && !self.serving.is_empty();
        if self.serving.len() >= limits.calls as usize || too_much {
            let n = self.serving.len();
            return Err(Reason::new(Why::Flood, format!("{n} commands were in flight when one of {len} bytes came")));
        }
        self.serving.insert(CallId(head.seq), Incoming { bytes, delivered: false });
        self.serving_bytes += bytes;
        Ok(false)
    }

    fn expect_reply(&mut self, head: &Head) -> Result<bool, Reason> {
        if head.call >= self.next_seq {
            return Err(Reason::new(Why::Malformed, "a reply to what was never asked"));
        }
        match self.calls.get_mut(&CallId(head.call)) {
            Some(out) if !out.replied => {
                out.replied = true;
                self.replied = self.heard;
                Ok(false)
            }
            _ => {
                self.counts.late += 1;
                Ok(true)
            }
        }
    }

    /// Takes an announced message with its bulk, whose lengths are as announced.
    pub fn arrive(&mut self, now: u64, announced: Announced, bulk: Vec<Vec<u8>>) {
        let Announced { head, mut bytes, discard } = announced;
        self.taken_in = self.taken_in.max(head.seq);
        if discard || self.is_closed() {
            return;
        }
        self.heard = now;
        bytes.truncate(head.end);
        match head.kind {
            Kind::Hello => self.greeted(Message::verified(bytes, bulk)),
            Kind::Command => self.commanded(now, &head, Message::verified(bytes, bulk)),
            Kind::Reply => self.replied(&head, Message::verified(bytes, bulk)),
            Kind::Cancel => self.taken_back(CallId(head.call)),
            Kind::Bye => {
                let detail = sentence_of(&Message::verified(bytes, bulk));
                self.finish(Reason::of_peer(head.arg, detail));
            }
            Kind::Ping => {
                self.send(Kind::Pong, 0, 0, None);
            }
            Kind::Pong => {}
        }
    }

    fn greeted(&mut self, m: Message) {
        let hello = match Hello::read(&m) {
            Ok(hello) => hello,
            Err(reason) => return self.close(reason),
        };
        self.send_limits = hello.limits;
        if self.accepts {
            self.state = State::Admitting;
            self.actions.push_back(Action::Admit(hello));
        } else {
            self.state = State::Open;
            self.actions.push_back(Action::Opened(hello));
        }
    }

    fn commanded(&mut self, now: u64, head: &Head, message: Message) {
        let call = CallId(head.seq);
        let Some(incoming) = self.serving.get_mut(&call) else { return };
        incoming.delivered = true;
        let deadline_ns = (head.arg > 0).then(|| now.saturating_add(u64::from(head.arg) * 1_000_000));
        self.actions.push_back(Action::Deliver { call, message, deadline_ns });
    }

    fn replied(&mut self, head: &Head, message: Message) {
        let call = CallId(head.call);
        let Some(out) = self.calls.remove(&call) else { return };
        self.calls_bytes -= out.bytes;
        if let Some(d) = out.deadline {
            self.deadlines.remove(&(d, call));
        }
        if out.abandoned {
            self.counts.late += 1;
            return;
        }
        let answer = match head.arg {
            0 => Ok(message),
            code => Err(CallError::Refused(Refusal::new(Code::of(code), sentence_of(&message)))),
        };
        self.actions.push_back(Action::Answer(call, answer));
    }

    fn taken_back(&mut self, call: CallId) {
        if self.serving.get(&call).is_some_and(|i| i.delivered) {
            self.actions.push_back(Action::Cancelled(call));
        }
    }

    /// When [`Engine::tick`] has something to do.
    pub fn next_timeout(&self) -> Option<u64> {
        let first = self.deadlines.first().map(|d| d.0);
        let greeting = matches!(self.state, State::Greeting | State::Admitting).then_some(self.greet_by);
        [first, greeting, self.quiet_until()].into_iter().flatten().min()
    }

    fn quiet_until(&self) -> Option<u64> {
        let quiet = self.config.quiet_ns.filter(|_| self.is_open() && !self.calls.is_empty())?;
        Some(self.heard.saturating_add(if self.pinged { quiet * 2 } else { quiet }))
    }

    /// Lets time pass.
    pub fn tick(&mut self, now: u64) {
        while let Some((_, call)) = self.deadlines.first().copied().filter(|d| d.0 <= now) {
            self.abandon(call, CallError::TooLate);
        }
        if matches!(self.state, State::Greeting | State::Admitting) && now >= self.greet_by {
            self.close(Reason::new(Why::Slow, "no hello came in time"));
        }
        if self.quiet_until().is_none_or(|t| now < t) {
            return;
        }
        if self.pinged {
            return self.close(Reason::new(Why::Silent, ""));
        }
        self.pinged = true;
        self.send(Kind::Ping, 0, 0, None);
    }

    /// Ends the link and tells the peer.
    pub fn close(&mut self, reason: Reason) {
        if self.is_closed() {
            return;
        }
        self.send(Kind::Bye, 0, reason.number(), Some(sentence(&reason.detail)));
        self.finish(reason);
    }

    /// The link is gone.
    pub fn lost(&mut self, reason: Reason) {
        self.finish(reason);
    }

    /// Answers everything.
    fn finish(&mut self, reason: Reason) {
        if self.is_closed() {
            return;
        }
        self.state = State::Closed;
        self.serving.clear();
        self.deadlines.clear();
        for (call, out) in std::mem::take(&mut self.calls) {
            if !out.abandoned {
                self.actions.push_back(Action::Answer(call, Err(CallError::Broken(reason.clone()))));
            }
        }
        (self.calls_bytes, self.serving_bytes) = (0, 0);
        self.actions.push_back(Action::Closed(reason));
    }
}
