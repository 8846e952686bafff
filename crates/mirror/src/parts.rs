//! The parts of what changed, one after the other, several of them under way: the source makes the next ones, and they travel,
//! while one is done here.
//!
//! Where a part begins is known only from the one before it. So those ahead are asked for as *what follows*, and say
//! themselves where they begin.

use std::collections::{BTreeMap, VecDeque};

use darner_fs::{FilesetId, Part, Wanted};
use darner_syslink::{Awaited, CallError, Caller, Code, Message};

use crate::protocol::{AT, FILESET, FROM, ITEMS, NEXT, NO_NEXT, PULL, ROOM, SESSION, SINCE, TO};
use crate::pull::{Failure, PATIENCE};

/// See the module.
pub(crate) struct Parts<'s> {
    source: &'s dyn Caller,
    session: u64,
    fileset: FilesetId,
    /// What is left.
    wanted: Option<Wanted>,
    ahead: usize,
    under_way: VecDeque<Box<dyn Awaited>>,
    /// Those that came before their turn, by where they begin.
    early: BTreeMap<Vec<u8>, Part>,
}

impl<'s> Parts<'s> {
    pub fn new(source: &'s dyn Caller, session: u64, fileset: FilesetId, wanted: Wanted, ahead: usize) -> Parts<'s> {
        let (under_way, early) = (VecDeque::new(), BTreeMap::new());
        Parts { source, session, fileset, wanted: Some(wanted), ahead, under_way, early }
    }

    /// The first of them is here already.
    pub fn with_first(mut self, first: Option<Part>) -> Parts<'s> {
        self.early.extend(first.map(|part| (Vec::new(), part)));
        self
    }

    /// The next part, with what it is the answer to; `None`: that was all.
    pub fn next(&mut self) -> Result<Option<(Wanted, Part)>, Failure> {
        let Some(wanted) = self.wanted.take() else { return Ok(None) };
        let part = loop {
            if let Some(part) = self.early.remove(&wanted.from) {
                break part;
            }
            let asked = self.under_way.pop_front();
            let explicit = asked.is_none();
            let asked = match asked {
                Some(asked) => asked,
                None => self.ask(&wanted, Some(&wanted.from))?,
            };
            match asked.wait().map_err(Failure::from).and_then(taken) {
                Ok((from, part)) if from == wanted.from => break part,
                Ok((from, part)) if !explicit && from > wanted.from && self.early.len() <= self.ahead => {
                    self.early.insert(from, part);
                }
                Ok(_) => return Err(Failure::Answer("a part that was not asked for".into())),
                // (It may have forgotten us: then it is asked by name.)
                Err(e) if !explicit && is_no_next(&e) => {}
                Err(e) => return Err(e),
            }
        };
        if let Some(next) = part.next.clone() {
            if next <= wanted.from {
                return Err(Failure::Answer("it goes backwards".into()));
            }
            let wanted = Wanted { from: next, ..wanted.clone() };
            while self.under_way.len() + self.early.len() < self.ahead {
                let asked = self.ask(&wanted, None)?;
                self.under_way.push_back(asked);
            }
            self.wanted = Some(wanted);
        }
        Ok(Some((wanted, part)))
    }

    fn ask(&self, wanted: &Wanted, from: Option<&[u8]>) -> Result<Box<dyn Awaited>, Failure> {
        let mut ask = Message::new(PULL);
        ask.uint(SESSION, self.session).uint(FILESET, self.fileset.0.into());
        if let Some(from) = from {
            ask.bytes(FROM, from);
        }
        ask.bytes(TO, &wanted.to).uint(SINCE, wanted.since.0).uint(AT, wanted.at.0).uint(ROOM, wanted.room as u64);
        Ok(self.source.start(ask, Some(PATIENCE))?)
    }
}

pub(crate) fn taken(mut reply: Message) -> Result<(Vec<u8>, Part), Failure> {
    let from = reply.root().bytes(FROM)?.to_vec();
    let next = reply.root().bytes_opt(NEXT)?.map(<[u8]>::to_vec);
    Ok((from, Part { items: reply.take_buffer(ITEMS)?, next }))
}

fn is_no_next(e: &Failure) -> bool {
    matches!(e, Failure::Source(CallError::Refused(no)) if no.code == Code::Other(NO_NEXT))
}
