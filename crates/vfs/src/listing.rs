//! A page of a directory: entries in the form of the reply that carries them.

use darner_syslink::{Element, Message, ReadError};

use crate::protocol::{self as p, ENTRY};
use crate::vfs::Attr;

/// Entries of a page at most, and bytes, within what syslink's receivers accept by default.
const ENTRIES_MAX: usize = 300;
const BYTES_MAX: u64 = 56 << 10;

/// What [`Vfs::readdir`](crate::Vfs::readdir) fills in.
pub struct Listing {
    reply: Message,
    entries: usize,
    wanted: usize,
}

impl Listing {
    /// An empty one, for so many entries at most.
    pub fn new(wanted: usize) -> Listing {
        Listing { reply: Message::new(p::READDIR), entries: 0, wanted: wanted.clamp(1, ENTRIES_MAX) }
    }

    /// Adds an entry; `cookie` (at least 1, below 2^62) is where the next call goes on, so it must stay true while the directory changes.
    /// False: it is full, and this one was not taken.
    #[must_use]
    pub fn add(&mut self, name: &[u8], cookie: u64, attr: &Attr) -> bool {
        if self.entries >= self.wanted || self.reply.size() + name.len() as u64 + 256 > BYTES_MAX {
            return false;
        }
        self.entries += 1;
        self.reply.group(ENTRY, |m| {
            m.bytes(p::NAME, name).uint(p::COOKIE, cookie);
            p::put_attr(m, attr);
        });
        true
    }

    /// What was added: name, cookie, attributes.
    pub fn entries(&self) -> Vec<(Vec<u8>, u64, Attr)> {
        let read = |e: Element<'_>| -> Result<_, ReadError> {
            Ok((e.bytes(p::NAME)?.to_vec(), e.uint(p::COOKIE)?, p::attr(&e)?))
        };
        self.reply.root().all(ENTRY).map(|e| read(e).expect("as it was put in")).collect()
    }

    pub(crate) fn into_reply(self) -> Message {
        self.reply
    }
}
