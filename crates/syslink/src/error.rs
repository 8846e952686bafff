//! How a call or a link ends badly. docs/syslink.md §Errors has the numbers.

use crate::element::{ReadError, Tag};
use crate::message::Message;

/// Why a peer did not do what a command says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// It knows no such command.
    Unknown,
    /// The command lacks something, or has something wrong.
    BadRequest,
    /// It tried and failed; the sentence says how.
    Failed,
    /// The caller took the command back.
    Cancelled,
    /// The deadline passed before it was done.
    TooLate,
    /// It has too much to do.
    Busy,
    /// The service forgot to answer.
    Forgotten,
    /// The reply is larger than the caller accepts.
    TooLarge,
    /// What a protocol defines for itself (from 256).
    Other(u32),
}

const CODES: [(Code, u32); 8] = [
    (Code::Unknown, 1),
    (Code::BadRequest, 2),
    (Code::Failed, 3),
    (Code::Cancelled, 4),
    (Code::TooLate, 5),
    (Code::Busy, 6),
    (Code::Forgotten, 7),
    (Code::TooLarge, 8),
];

impl Code {
    pub(crate) fn number(self) -> u32 {
        match self {
            // 0 would say that all is well.
            Code::Other(n) => n.max(256),
            code => CODES.iter().find(|c| c.0 == code).map_or(3, |c| c.1),
        }
    }

    pub(crate) fn of(n: u32) -> Code {
        CODES.iter().find(|c| c.1 == n).map_or(Code::Other(n), |c| c.0)
    }
}

/// A peer's *no*.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Refusal {
    /// For programs.
    pub code: Code,
    /// For people.
    pub why: String,
}

impl Refusal {
    /// One.
    pub fn new(code: Code, why: impl Into<String>) -> Refusal {
        Refusal { code, why: why.into() }
    }
}

impl From<ReadError> for Refusal {
    fn from(e: ReadError) -> Self {
        Refusal::new(Code::BadRequest, e.to_string())
    }
}

/// Why a call was not answered with a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The peer said no.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// The link broke: the command may have been carried out, or not.
    #[error("the link broke: {0}")]
    Broken(Reason),
    /// The deadline passed; the peer was told to stop.
    #[error("no answer came in time")]
    TooLate,
    /// The caller took it back; the peer was told to stop.
    #[error("the call was cancelled")]
    Cancelled,
    /// As many calls or bytes are in flight as the peer accepts; nothing was sent.
    #[error("too much is in flight on this link")]
    Busy,
    /// The command is larger than the peer accepts; nothing was sent.
    #[error("the command is too large: {0}")]
    TooLarge(&'static str),
    /// A reply lacks what it should have.
    #[error("the reply makes no sense: {0}")]
    BadReply(#[from] ReadError),
}

/// Why a link ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// One side wanted it so.
    Closed,
    /// A message was not as docs/syslink.md says.
    Malformed,
    /// A message was lost.
    Gap,
    /// More was in flight than allowed.
    Flood,
    /// Nothing was heard for too long.
    Silent,
    /// A message or the handshake took too long.
    Slow,
    /// The peer may not be here.
    NotAdmitted,
    /// No common version.
    Version,
    /// The transport failed, or the peer died.
    Lost,
    /// A number that this version doesn't know.
    Other,
}

const WHYS: [(Why, u32, &str); 10] = [
    (Why::Closed, 1, "closed"),
    (Why::Malformed, 2, "malformed message"),
    (Why::Gap, 3, "lost message"),
    (Why::Flood, 4, "too much in flight"),
    (Why::Silent, 5, "silent peer"),
    (Why::Slow, 6, "too slow"),
    (Why::NotAdmitted, 7, "not admitted"),
    (Why::Version, 8, "no common version"),
    (Why::Lost, 9, "connection lost"),
    (Why::Other, 10, "other reason"),
];

/// Why a link ended, in words too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// For programs.
    pub why: Why,
    /// For people; may be empty.
    pub detail: String,
    /// Whether the peer said so.
    pub by_peer: bool,
}

/// Why no link came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody is there, or the transport failed before anything was said.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// One side did not want the other, or did not understand it.
    #[error("{0}")]
    Ended(Reason),
}

/// The only element of a refusal or a bye.
const SENTENCE: Tag = Tag(1);

/// Sentences longer than this are cut.
const SENTENCE_MAX: usize = 1000;

impl Reason {
    /// Ours.
    pub fn new(why: Why, detail: impl Into<String>) -> Reason {
        Reason { why, detail: detail.into(), by_peer: false }
    }

    pub(crate) fn lost(e: &std::io::Error) -> Reason {
        Reason::new(Why::Lost, e.to_string())
    }

    pub(crate) fn number(&self) -> u32 {
        WHYS.iter().find(|w| w.0 == self.why).map_or(10, |w| w.1)
    }

    pub(crate) fn of_peer(n: u32, detail: String) -> Reason {
        let why = WHYS.iter().find(|w| w.1 == n).map_or(Why::Other, |w| w.0);
        Reason { why, detail, by_peer: true }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(WHYS.iter().find(|w| w.0 == self.why).map_or("", |w| w.2))?;
        if self.by_peer {
            f.write_str(", says the peer")?;
        }
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        Ok(())
    }
}

/// The body of a refusal or a bye.
pub(crate) fn sentence(text: &str) -> Message {
    let mut end = text.len().min(SENTENCE_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut m = Message::new(Tag(0));
    m.text(SENTENCE, &text[..end]);
    m
}

/// What such a body says, in one [`plain`] line.
pub(crate) fn sentence_of(m: &Message) -> String {
    plain(m.root().text(SENTENCE).unwrap_or_default())
}

/// A text of somebody else's as one that may be printed within a line: what would end the line, move the cursor, colour or turn round
/// what follows is shown as its number.
pub fn plain(text: &str) -> String {
    let acts = |c: char| {
        c.is_control()
            || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{61c}')
    };
    text.chars().flat_map(|c| if acts(c) { c.escape_default().collect() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_of_others_are_one_line_and_move_no_cursor() {
        let forged = "no\r\n\u{1b}[2Kattachment /etc: runs\u{9b}m\u{202e}\0";
        let said = sentence_of(&Message::verified(sentence(forged).into_parts().0, vec![]));
        assert_eq!(said, r"no\r\n\u{1b}[2Kattachment /etc: runs\u{9b}m\u{202e}\u{0}");
        assert_eq!(plain("größer als 5 %: 日本"), "größer als 5 %: 日本");
    }
}
