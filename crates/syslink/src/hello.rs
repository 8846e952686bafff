//! The first message each way: versions, limits, which service, and what lets a stranger in. docs/syslink.md §Hello.

use crate::element::{Element, ReadError, Tag};
use crate::error::{Reason, Why};
use crate::header::{Limits, VERSION};
use crate::message::Message;

const HELLO: Tag = Tag(1);
const VERSION_MIN: Tag = Tag(1);
const VERSION_MAX: Tag = Tag(2);
const SERVICE: Tag = Tag(3);
const LIMITS: Tag = Tag(4);
const TICKET: Tag = Tag(5);
const BULK_TOKEN: Tag = Tag(6);
const RING: Tag = Tag(7);

/// What one side says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Hello {
    /// What the connecting side wants to talk to, with the version of that protocol: `darner.control/1`.
    pub service: String,
    /// What it accepts.
    pub limits: Limits,
    /// The secret of a join ticket.
    pub ticket: Option<[u8; 32]>,
    /// What the connecting side shall begin its bulk connection with.
    pub bulk_token: Option<[u8; 16]>,
    /// It has memory in which messages can wait; both must.
    pub ring: bool,
}

impl Hello {
    pub(crate) fn message(&self) -> Message {
        let mut m = Message::new(HELLO);
        m.uint(VERSION_MIN, VERSION.into()).uint(VERSION_MAX, VERSION.into()).text(SERVICE, &self.service);
        m.group(LIMITS, |m| put_limits(m, &self.limits));
        if let Some(secret) = &self.ticket {
            m.bytes(TICKET, secret);
        }
        if let Some(token) = &self.bulk_token {
            m.bytes(BULK_TOKEN, token);
        }
        if self.ring {
            m.uint(RING, 1);
        }
        m
    }

    pub(crate) fn read(m: &Message) -> Result<Hello, Reason> {
        let root = m.root();
        let versions = root.uint(VERSION_MIN).and_then(|min| Ok(min..=root.uint(VERSION_MAX)?));
        if !versions.map_err(malformed)?.contains(&VERSION.into()) {
            return Err(Reason::new(Why::Version, format!("only version {VERSION} is spoken here")));
        }
        Hello::parse(&root).map_err(malformed)
    }

    fn parse(root: &Element<'_>) -> Result<Hello, ReadError> {
        Ok(Hello {
            service: root.text(SERVICE)?.into(),
            limits: limits(&root.group(LIMITS)?)?,
            ticket: root.find(TICKET).map(|_| root.array(TICKET)).transpose()?,
            bulk_token: root.find(BULK_TOKEN).map(|_| root.array(BULK_TOKEN)).transpose()?,
            ring: root.uint_opt(RING)?.unwrap_or(0) != 0,
        })
    }
}

fn malformed(e: ReadError) -> Reason {
    Reason::new(Why::Malformed, format!("hello: {e}"))
}

fn put_limits(m: &mut Message, l: &Limits) {
    let fields = [l.message, l.depth, l.elements, l.bulks, l.bulk, l.calls];
    for (n, v) in (1..).zip(fields) {
        m.uint(Tag(n), v.into());
    }
    m.uint(Tag(7), l.bytes);
}

fn limits(e: &Element<'_>) -> Result<Limits, ReadError> {
    let limits = Limits {
        message: e.number(Tag(1))?,
        depth: e.number(Tag(2))?,
        elements: e.number(Tag(3))?,
        bulks: e.number::<u16>(Tag(4))?.into(),
        bulk: e.number(Tag(5))?,
        calls: e.number(Tag(6))?,
        bytes: e.uint(Tag(7))?,
    };
    limits.suffice().then_some(limits).ok_or(ReadError::Range(LIMITS))
}
