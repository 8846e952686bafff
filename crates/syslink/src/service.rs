//! Who answers commands, and the token by which each is answered exactly once.

use std::sync::Arc;
use std::time::Duration;

use crate::engine::CallId;
use crate::error::{CallError, Code, Reason, Refusal};
use crate::identity::Fingerprint;
use crate::message::Message;

/// Who is at the other end, as far as it is proven.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// The same process.
    Memory,
    /// A local process, by the kernel's word.
    Process {
        /// Its number when it connected.
        pid: i32,
        /// Its user.
        uid: u32,
        /// Its group.
        gid: u32,
    },
    /// Who has this key.
    Key(Fingerprint),
}

/// The other end of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who.
    pub who: Who,
    /// The service that the connecting side asked for.
    pub service: String,
}

/// Answers the commands of peers.
///
/// `call` runs on the link's own thread, the only one that takes in what the peer sends while nobody waits for a reply.
/// So it returns soon: what takes long says so, takes `reply` along to another thread, or the service is put into a
/// [`crate::Pool`]. It may call back over the same link only commands that the peer answers without calling back in
/// turn, and it holds no lock that somebody holds while waiting for a reply over this link.
pub trait Service: Send + Sync {
    /// Answers a command, now or later; if `reply` is dropped, the caller gets [`Code::Forgotten`].
    fn call(&self, peer: &Peer, command: Message, reply: Reply);

    /// Whether [`Service::call`] may block over this command, and call back as it likes: then another thread is the link's meanwhile.
    fn takes_long(&self, _command: &Message) -> bool {
        false
    }

    /// The link is over. Replies that are still owed have no effect.
    fn closed(&self, _peer: &Peer, _reason: &Reason) {}
}

impl<S: Service + ?Sized> Service for Arc<S> {
    fn call(&self, peer: &Peer, command: Message, reply: Reply) {
        (**self).call(peer, command, reply);
    }

    fn takes_long(&self, command: &Message) -> bool {
        (**self).takes_long(command)
    }

    fn closed(&self, peer: &Peer, reason: &Reason) {
        (**self).closed(peer, reason);
    }
}

/// Makes calls.
pub trait Caller: Send + Sync {
    /// Sends a command and waits for its one reply. While the link is full it waits for room, within the timeout.
    fn call(&self, command: Message, timeout: Option<Duration>) -> Result<Message, CallError>;

    /// Sends a command whose reply is waited for later. (Where nothing goes on by itself, it is there at once.)
    fn start(&self, command: Message, timeout: Option<Duration>) -> Result<Box<dyn Awaited>, CallError> {
        Ok(Box::new(self.call(command, timeout)))
    }
}

/// A call that is under way. Dropping it takes the command back.
pub trait Awaited {
    /// Waits for the reply.
    fn wait(self: Box<Self>) -> Result<Message, CallError>;
}

impl Awaited for Result<Message, CallError> {
    fn wait(self: Box<Self>) -> Result<Message, CallError> {
        *self
    }
}

pub(crate) trait Sink: Caller {
    fn answer(&self, call: CallId, reply: Result<Message, Refusal>);
    fn is_cancelled(&self, call: CallId) -> bool;
}

/// The duty to answer one command.
pub struct Reply {
    sink: Arc<dyn Sink>,
    call: CallId,
    answered: bool,
}

impl Reply {
    pub(crate) fn new(sink: Arc<dyn Sink>, call: CallId) -> Reply {
        Reply { sink, call, answered: false }
    }

    /// Answers.
    pub fn send(self, reply: Message) {
        self.finish(Ok(reply));
    }

    /// Says no.
    pub fn refuse(self, no: Refusal) {
        self.finish(Err(no));
    }

    /// Answers, or says no.
    pub fn finish(mut self, reply: Result<Message, Refusal>) {
        self.answered = true;
        self.sink.answer(self.call, reply);
    }

    /// Whether nobody waits for the answer any more. It is still due.
    pub fn is_cancelled(&self) -> bool {
        self.sink.is_cancelled(self.call)
    }

    /// To command the side that waits.
    pub fn caller(&self) -> Arc<dyn Caller> {
        self.sink.clone()
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.answered {
            self.sink.answer(self.call, Err(Refusal::new(Code::Forgotten, "the service did not answer")));
        }
    }
}

/// A service that answers nothing: for those who only call.
pub struct Refuse;

impl Service for Refuse {
    fn call(&self, _: &Peer, command: Message, reply: Reply) {
        reply.refuse(Refusal::new(Code::Unknown, format!("nobody here answers command {}", command.tag().0)));
    }
}

/// A service made of a function that answers at once.
pub struct Answering<F>(pub F);

impl<F: Fn(&Peer, Message) -> Result<Message, Refusal> + Send + Sync> Service for Answering<F> {
    fn call(&self, peer: &Peer, command: Message, reply: Reply) {
        reply.finish((self.0)(peer, command));
    }
}
