//! The serving loop: leader and followers.
//!
//! One of the threads, the leader, holds the token, reads the device and handles what it read *itself, keeping the token*:
//! a quick request costs no hand-over and no wake-up. A handler about to block calls [`Ctx::will_block`]; another thread
//! then leads, and this one queues up for the token when it is done.
//!
//! ```text
//!   acquire token ─► read ─► decode ─► handle ──┬── still leader ──► read …
//!        ▲             │ nothing: poll, sleep   └── gave it away ──┐
//!        └─────────────────────────────────────────────────────────┘
//! ```
//!
//! Invariants: a request that was read is handled, also after a stop; each thread has one buffer, and nothing is
//! allocated per request.

use std::{
    cell::Cell,
    io,
    panic::resume_unwind,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use darner_pace::Pace;

use crate::{
    Reply, Request,
    abi::opcode,
    awake::Awake,
    buffer::Buffer,
    request::Malformed,
    session::{Session, read, sleep},
    token::Token,
};

/// A filesystem's front end.
pub trait Handler {
    /// Carries the request out and answers it, or defers the answer.
    ///
    /// While this runs, no other request is read unless [`Ctx::will_block`] was called. A panic ends the session.
    fn handle(&self, request: Request<'_>, reply: Reply<'_>, ctx: &Ctx<'_>);
}

impl<F: Fn(Request<'_>, Reply<'_>, &Ctx<'_>)> Handler for F {
    fn handle(&self, request: Request<'_>, reply: Reply<'_>, ctx: &Ctx<'_>) {
        self(request, reply, ctx)
    }
}

/// Why serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The mount is gone.
    Unmounted,
    /// [`Stopper::stop`](crate::Stopper::stop); the mount waits for a successor.
    Stopped,
}

/// What a handler can tell the thread that runs it.
pub struct Ctx<'a> {
    token: &'a Token,
    leads: Cell<bool>,
    thread: usize,
}

impl Ctx<'_> {
    /// To be called before anything slow (a disk read, a flush, a wait): another thread reads requests meanwhile.
    /// Calling it again does nothing. With one thread, nobody is there to take over.
    pub fn will_block(&self) {
        if self.leads.replace(false) {
            self.token.release();
        }
    }

    /// Which of the serving threads this is, from 0; for buffers by thread.
    pub fn thread(&self) -> usize {
        self.thread
    }
}

/// One serving thread.
struct Server<'a, H> {
    session: &'a Session,
    handler: &'a H,
    token: &'a Token,
    buffer: Buffer,
    pace: Pace,
    awake: &'a Awake,
    thread: usize,
}

/// What the leader's read brought.
enum Received {
    Message(usize),
    Ended(Ended),
}

pub(crate) fn run<H: Handler + Sync>(
    session: &Session,
    threads: usize,
    poll: Duration,
    handler: &H,
    started: impl FnOnce(),
) -> io::Result<Ended> {
    let token = Token::default();
    let awake = Awake::new(!poll.is_zero());
    let max_write = session.negotiated().max_write;
    let server = |thread| {
        let (buffer, pace) = (Buffer::new(max_write)?, Pace::new(poll));
        Ok(Server { session, handler, token: &token, buffer, pace, awake: &awake, thread })
    };
    let mut servers = (0..threads.max(1)).map(server).collect::<io::Result<Vec<_>>>()?;
    thread::scope(|scope| {
        let mut spawned = Vec::new();
        for server in servers.drain(1..) {
            let builder = thread::Builder::new().name(format!("fuse-{}", server.thread));
            // (Those that are there may be waiting for requests.)
            spawned.push(builder.spawn_scoped(scope, || server.serve()).inspect_err(|_| session.stop.set())?);
        }
        started();
        let mut outcomes: Vec<_> = servers.into_iter().map(Server::serve).collect();
        outcomes.extend(spawned.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))));
        let mut result = Ok(None);
        for outcome in outcomes {
            match outcome {
                Ok(Some(ended)) => result = result.and(Ok(Some(ended))),
                Ok(None) => {}
                Err(error) => result = Err(error),
            }
        }
        Ok(result?.expect("one thread saw the end"))
    })
}

/// Sends the other threads home when this one ends, be it by panic.
struct FinishOnDrop<'a>(&'a Token);

impl Drop for FinishOnDrop<'_> {
    fn drop(&mut self) {
        self.0.finish();
    }
}

impl<H: Handler> Server<'_, H> {
    /// `Some` in the thread that was told the end.
    fn serve(mut self) -> io::Result<Option<Ended>> {
        let _finish = FinishOnDrop(self.token);
        while self.token.acquire() {
            let ctx = Ctx { token: self.token, leads: Cell::new(true), thread: self.thread };
            while ctx.leads.get() {
                match self.receive()? {
                    Received::Message(len) => {
                        self.awake.touch();
                        self.dispatch(len, &ctx);
                    }
                    Received::Ended(ended) => return Ok(Some(ended)),
                }
            }
        }
        Ok(None)
    }

    fn dispatch(&mut self, len: usize, ctx: &Ctx<'_>) {
        let fd = &self.session.fd;
        match Request::decode(&self.buffer.space()[..len], self.session.negotiated().dialect()) {
            Ok(request) if request.opcode == opcode::INIT => {
                tracing::error!("INIT on a FUSE session that was adopted as initialised; refused");
                Reply::new(fd, request.raw_unique(), request.opcode).error(libc::EIO);
            }
            Ok(request) => {
                let reply = Reply::new(fd, request.raw_unique(), request.opcode);
                self.handler.handle(request, reply, ctx);
            }
            Err(malformed) => refuse(fd, &malformed),
        }
    }

    /// Waits for a message: tries, polls if that has been paying, sleeps.
    fn receive(&mut self) -> io::Result<Received> {
        loop {
            if self.session.stop.is_set() {
                return Ok(Received::Ended(Ended::Stopped));
            }
            if let Some(received) = try_receive(self.session, &mut self.buffer)? {
                return Ok(received);
            }
            let Server { session, buffer, pace, .. } = self;
            if let Some(received) = pace.poll(|| try_receive(session, buffer).transpose()) {
                return received;
            }
            let asleep = Instant::now();
            if !sleep(&self.session.fd, Some(&self.session.stop), self.awake.patience())? {
                self.awake.rest();
            }
            self.pace.woke(asleep.elapsed());
        }
    }
}

fn try_receive(session: &Session, buffer: &mut Buffer) -> io::Result<Option<Received>> {
    match read(&session.fd, buffer.space()) {
        Ok(len) => Ok(Some(Received::Message(len))),
        Err(error) => match error.raw_os_error() {
            // ENOENT: the request was interrupted while it was being read.
            Some(libc::EAGAIN | libc::EINTR | libc::ENOENT) => Ok(None),
            Some(libc::ENODEV | libc::ECONNABORTED) => Ok(Some(Received::Ended(Ended::Unmounted))),
            _ => Err(error),
        },
    }
}

fn refuse(fd: &Arc<std::os::fd::OwnedFd>, malformed: &Malformed) {
    tracing::error!(%malformed, "the kernel sent what we can't read");
    if let Some(unique) = malformed.unique {
        Reply::new(fd, unique, malformed.opcode).error(libc::EIO);
    }
}
