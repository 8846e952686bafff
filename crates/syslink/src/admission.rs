//! Who may be here: nobody, unless somebody said so.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::engine::Hello;
use crate::identity::{Fingerprint, ParseError, from_hex, random, sha256, to_hex};
use crate::service::Who;

/// Decides whether a peer may be here. By then it has proven who it is, and nothing else of it was looked at.
pub trait Admission: Send + Sync {
    /// `Err` has the sentence that the peer is told. `now_ns` is a clock that only runs forward.
    fn admit(&self, who: &Who, hello: &Hello, now_ns: u64) -> Result<(), String>;
}

/// Nobody.
pub struct Nobody;

impl Admission for Nobody {
    fn admit(&self, who: &Who, _: &Hello, _: u64) -> Result<(), String> {
        Err(stranger(who))
    }
}

fn stranger(who: &Who) -> String {
    match who {
        Who::Key(fingerprint) => format!("nobody here knows the key {fingerprint}"),
        Who::Process { uid, .. } => format!("user {uid} may not command this process"),
        Who::Memory => "nobody is admitted".into(),
    }
}

impl<F: Fn(&Who, &Hello, u64) -> Result<(), String> + Send + Sync> Admission for F {
    fn admit(&self, who: &Who, hello: &Hello, now_ns: u64) -> Result<(), String> {
        self(who, hello, now_ns)
    }
}

/// What a key may see, as numbers of the service's own; `None`: everything.
pub type Scope = Option<Arc<[u32]>>;

type Joined = dyn Fn(&Fingerprint, &Scope) + Send + Sync;

/// Those whose keys are known, and those who bring a ticket, who are known from then on.
pub struct Known {
    keys: Mutex<HashMap<Fingerprint, Scope>>,
    tickets: Tickets,
    joined: Box<Joined>,
}

impl Known {
    /// `joined` is told of everybody who joins by ticket, before that peer is let in: to keep it for the next start.
    pub fn new(
        keys: impl IntoIterator<Item = (Fingerprint, Scope)>,
        joined: impl Fn(&Fingerprint, &Scope) + Send + Sync + 'static,
    ) -> Known {
        Known { keys: Mutex::new(keys.into_iter().collect()), tickets: Tickets::default(), joined: Box::new(joined) }
    }

    /// To issue tickets.
    pub fn tickets(&self) -> &Tickets {
        &self.tickets
    }

    /// What a key that is let in may see; `None`: it is not.
    pub fn scope(&self, key: &Fingerprint) -> Option<Scope> {
        self.keys.lock().get(key).cloned()
    }

    /// Lets a key in from now on, to see so much.
    pub fn add(&self, key: Fingerprint, scope: Scope) {
        self.keys.lock().insert(key, scope);
    }

    /// And not any more; links that are open stay.
    pub fn remove(&self, key: &Fingerprint) {
        self.keys.lock().remove(key);
    }
}

impl Admission for Known {
    fn admit(&self, who: &Who, hello: &Hello, now_ns: u64) -> Result<(), String> {
        let Who::Key(key) = who else { return Err(stranger(who)) };
        if self.keys.lock().contains_key(key) {
            return Ok(());
        }
        let secret = hello.ticket.as_ref().ok_or_else(|| stranger(who))?;
        let scope = self.tickets.redeem(secret, now_ns)?;
        (self.joined)(key, &scope);
        self.add(*key, scope);
        Ok(())
    }
}

/// Lets its bearer in, once, for a short while; and tells the bearer whom to expect.
#[derive(Clone, PartialEq, Eq)]
pub struct Ticket {
    /// The key of the one who issued it.
    pub issuer: Fingerprint,
    /// What is shown at the door.
    pub secret: [u8; 32],
}

const PREFIX: &str = "darner-ticket-";

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}{}", self.issuer, to_hex(&self.secret))
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the secret: this ends up in logs.
        write!(f, "Ticket(of {})", self.issuer)
    }
}

impl FromStr for Ticket {
    type Err = ParseError;

    fn from_str(s: &str) -> Result<Self, ParseError> {
        let both: [u8; 64] = s.strip_prefix(PREFIX).and_then(from_hex).ok_or(ParseError("join ticket"))?;
        let half = |n: usize| both[32 * n..][..32].try_into().expect("32 bytes");
        Ok(Ticket { issuer: Fingerprint(half(0)), secret: half(1) })
    }
}

/// Tickets that were issued here and not used: hash of the secret (so that looking one up tells nothing by the time it
/// takes) → when it ends, and what its bearer may see. They end with the process too.
#[derive(Default)]
pub struct Tickets(Mutex<HashMap<[u8; 32], (u64, Scope)>>);

impl Tickets {
    /// One for somebody who may come within `lifetime` and doubts of no one but `issuer`, this side's key.
    pub fn issue(&self, issuer: Fingerprint, lifetime: Duration, now_ns: u64, scope: Scope) -> Ticket {
        let ticket = Ticket { issuer, secret: random() };
        let ends = now_ns.saturating_add(lifetime.as_nanos() as u64);
        let mut all = self.0.lock();
        all.retain(|_, (ends, _)| *ends > now_ns);
        all.insert(sha256(&ticket.secret), (ends, scope));
        ticket
    }

    /// Uses one up; returns what its bearer may see.
    pub fn redeem(&self, secret: &[u8; 32], now_ns: u64) -> Result<Scope, String> {
        let (ends, scope) = self.0.lock().remove(&sha256(secret)).ok_or("this ticket was never issued, or is used")?;
        if ends <= now_ns {
            return Err("this ticket has expired".into());
        }
        Ok(scope)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(ticket: Option<&Ticket>) -> Hello {
        Hello { ticket: ticket.map(|t| t.secret), ..Hello::default() }
    }

    #[test]
    fn a_ticket_lets_one_in_once_and_only_in_time() {
        let known = Known::new([], |_, _| ());
        let key = |n| Who::Key(Fingerprint([n; 32]));
        let scope: Scope = Some(Arc::from([7]));
        let issue =
            || known.tickets().issue(Fingerprint([0; 32]), Duration::from_nanos(100), 1000, Some(Arc::from([7])));
        let (first, second) = (issue(), issue());
        assert_eq!(first.to_string().parse(), Ok(first.clone()));
        assert!(known.admit(&key(1), &hello(None), 1001).is_err());
        assert_eq!(known.admit(&key(1), &hello(Some(&first)), 1099), Ok(()));
        assert!(known.admit(&key(2), &hello(Some(&first)), 1099).unwrap_err().contains("used"));
        assert_eq!(known.admit(&key(1), &hello(None), 2000), Ok(()), "known from then on");
        assert_eq!((known.scope(&Fingerprint([1; 32])), known.scope(&Fingerprint([2; 32]))), (Some(scope), None));
        assert!(known.admit(&key(2), &hello(Some(&second)), 1100).unwrap_err().contains("expired"));
        known.remove(&Fingerprint([1; 32]));
        assert!(known.admit(&key(1), &hello(None), 2000).is_err());
        assert!(Nobody.admit(&key(1), &hello(Some(&second)), 0).is_err());
    }
}
