//! Elements: what messages are made of. An element has a tag, a type and a value, which may be further elements.
//!
//! `verify` runs on everything that arrives before anybody else sees it; from then on reading can't fail for the
//! form of the bytes, only because a protocol's element is missing or of another type. docs/syslink.md §Elements.

use crate::header::Limits;

/// What an element means to its protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(pub u16);

/// Bytes before a value: tag u16, type u8, zero u8, length u32.
pub(crate) const HEAD: usize = 8;

pub(crate) const GROUP: u8 = 0;
pub(crate) const UINT: u8 = 1;
pub(crate) const INT: u8 = 2;
pub(crate) const BYTES: u8 = 3;
pub(crate) const TEXT: u8 = 4;
pub(crate) const BULK: u8 = 5;

/// Why a protocol can't use a message that is well-formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// It is not there.
    #[error("element {} is missing", .0.0)]
    Missing(Tag),
    /// It has another type.
    #[error("element {} is of another type", .0.0)]
    Type(Tag),
    /// Its value is not one of those allowed.
    #[error("element {} has a value out of range", .0.0)]
    Range(Tag),
}

/// An element of a verified message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Element<'a> {
    tag: Tag,
    kind: u8,
    value: &'a [u8],
}

/// Splits the first element off.
fn split(bytes: &[u8]) -> Option<(Element<'_>, &[u8])> {
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    let tag = Tag(u16::from_le_bytes([head[0], head[1]]));
    let len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
    let (value, rest) = rest.split_at_checked(len)?;
    (head[3] == 0).then_some((Element { tag, kind: head[2], value }, rest))
}

impl<'a> Element<'a> {
    /// The element that `bytes` begin with.
    pub(crate) fn first(bytes: &'a [u8]) -> Option<Element<'a>> {
        Some(split(bytes)?.0)
    }

    /// Its tag.
    pub fn tag(&self) -> Tag {
        self.tag
    }

    /// What is in it, in order; nothing if it is no group.
    pub fn children(&self) -> impl Iterator<Item = Element<'a>> + use<'a> {
        let mut rest = if self.kind == GROUP { self.value } else { &[] };
        std::iter::from_fn(move || {
            let (element, after) = split(rest)?;
            rest = after;
            Some(element)
        })
    }

    /// All with this tag, in order.
    pub fn all(&self, tag: Tag) -> impl Iterator<Item = Element<'a>> + use<'a> {
        self.children().filter(move |e| e.tag == tag)
    }

    /// The first with this tag, whatever its type.
    pub fn find(&self, tag: Tag) -> Option<Element<'a>> {
        self.all(tag).next()
    }

    fn need(&self, tag: Tag) -> Result<Element<'a>, ReadError> {
        self.find(tag).ok_or(ReadError::Missing(tag))
    }

    fn typed(&self, kind: u8) -> Result<&'a [u8], ReadError> {
        (self.kind == kind).then_some(self.value).ok_or(ReadError::Type(self.tag))
    }

    fn word(&self, kind: u8) -> Result<u64, ReadError> {
        let bytes = self.typed(kind)?.try_into().map_err(|_| ReadError::Type(self.tag))?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Itself as an unsigned number.
    pub fn as_uint(&self) -> Result<u64, ReadError> {
        self.word(UINT)
    }

    /// Itself as a signed number.
    pub fn as_int(&self) -> Result<i64, ReadError> {
        Ok(self.word(INT)? as i64)
    }

    /// Itself as bytes.
    pub fn as_bytes(&self) -> Result<&'a [u8], ReadError> {
        self.typed(BYTES)
    }

    /// Itself as text.
    pub fn as_text(&self) -> Result<&'a str, ReadError> {
        std::str::from_utf8(self.typed(TEXT)?).map_err(|_| ReadError::Type(self.tag))
    }

    /// Itself as the number of a bulk buffer of its message.
    pub fn as_bulk(&self) -> Result<usize, ReadError> {
        let bytes = self.typed(BULK)?.try_into().map_err(|_| ReadError::Type(self.tag))?;
        Ok(u32::from_le_bytes(bytes) as usize)
    }

    /// An unsigned number in it.
    pub fn uint(&self, tag: Tag) -> Result<u64, ReadError> {
        self.need(tag)?.as_uint()
    }

    /// An unsigned number in it that must fit.
    pub fn number<T: TryFrom<u64>>(&self, tag: Tag) -> Result<T, ReadError> {
        T::try_from(self.uint(tag)?).map_err(|_| ReadError::Range(tag))
    }

    /// An unsigned number in it, if it is there.
    pub fn uint_opt(&self, tag: Tag) -> Result<Option<u64>, ReadError> {
        self.find(tag).map(|e| e.as_uint()).transpose()
    }

    /// A signed number in it.
    pub fn int(&self, tag: Tag) -> Result<i64, ReadError> {
        self.need(tag)?.as_int()
    }

    /// Bytes in it.
    pub fn bytes(&self, tag: Tag) -> Result<&'a [u8], ReadError> {
        self.need(tag)?.as_bytes()
    }

    /// Bytes in it, as many as the array has.
    pub fn array<const N: usize>(&self, tag: Tag) -> Result<[u8; N], ReadError> {
        self.bytes(tag)?.try_into().map_err(|_| ReadError::Range(tag))
    }

    /// Bytes in it, if they are there.
    pub fn bytes_opt(&self, tag: Tag) -> Result<Option<&'a [u8]>, ReadError> {
        self.find(tag).map(|e| e.as_bytes()).transpose()
    }

    /// Text in it.
    pub fn text(&self, tag: Tag) -> Result<&'a str, ReadError> {
        self.need(tag)?.as_text()
    }

    /// Text in it, if it is there.
    pub fn text_opt(&self, tag: Tag) -> Result<Option<&'a str>, ReadError> {
        self.find(tag).map(|e| e.as_text()).transpose()
    }

    /// The number of a bulk buffer in it.
    pub fn bulk(&self, tag: Tag) -> Result<usize, ReadError> {
        self.need(tag)?.as_bulk()
    }

    /// A group in it.
    pub fn group(&self, tag: Tag) -> Result<Element<'a>, ReadError> {
        let group = self.need(tag)?;
        group.typed(GROUP).map(|_| group)
    }
}

impl std::fmt::Debug for Element<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:", self.tag.0)?;
        match self.kind {
            GROUP => f.debug_list().entries(self.children()).finish(),
            UINT => write!(f, "{:?}", self.as_uint()),
            INT => write!(f, "{:?}", self.as_int()),
            TEXT => write!(f, "{:?}", self.as_text()),
            BULK => write!(f, "bulk {:?}", self.as_bulk()),
            _ => write!(f, "{} bytes", self.value.len()),
        }
    }
}

/// Whether `body` is exactly one group, and everything in it is as docs/syslink.md says; else what is wrong.
pub(crate) fn verify(body: &[u8], bulks: usize, limits: &Limits) -> Result<(), &'static str> {
    let (root, rest) = split(body).ok_or("an element is longer than what holds it")?;
    if root.kind != GROUP || !rest.is_empty() {
        return Err("a body is not one group");
    }
    // What is left of each group that is open. No recursion: the depth is the peer's choice.
    let mut open = vec![root.value];
    let mut elements = 1;
    while let Some(rest) = open.last_mut() {
        if rest.is_empty() {
            open.pop();
            continue;
        }
        let (element, after) = split(rest).ok_or("an element is longer than what holds it")?;
        *rest = after;
        elements += 1;
        if elements > limits.elements {
            return Err("too many elements");
        }
        value(&element, bulks)?;
        if element.kind == GROUP {
            if open.len() >= limits.depth as usize {
                return Err("elements are nested too deeply");
            }
            open.push(element.value);
        }
    }
    Ok(())
}

fn value(e: &Element<'_>, bulks: usize) -> Result<(), &'static str> {
    match e.kind {
        GROUP | BYTES => Ok(()),
        UINT | INT if e.value.len() == 8 => Ok(()),
        UINT | INT => Err("a number is not of 8 bytes"),
        TEXT if std::str::from_utf8(e.value).is_ok() => Ok(()),
        TEXT => Err("text is not UTF-8"),
        BULK if e.as_bulk().is_ok_and(|n| n < bulks) => Ok(()),
        BULK => Err("an element names a bulk buffer that is not there"),
        _ => Err("an element is of an unknown type"),
    }
}
