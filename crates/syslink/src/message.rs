//! Messages: one group of elements, and bulk buffers beside it. Built in place, behind the room for the header, so
//! that sending copies nothing.

use crate::element::{BULK, BYTES, Element, GROUP, HEAD, INT, ReadError, TEXT, Tag, UINT};
use crate::header::{HEADER, Limits};

/// What is sent: its root group's tag says which command or reply it is.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// Room for the header, then the root element.
    bytes: Vec<u8>,
    bulk: Vec<Vec<u8>>,
}

impl Message {
    /// An empty group.
    pub fn new(tag: Tag) -> Message {
        let mut bytes = Vec::with_capacity(HEADER + 96);
        bytes.resize(HEADER, 0);
        head(&mut bytes, tag, GROUP, 0);
        Message { bytes, bulk: Vec::new() }
    }

    /// What arrived; `bytes` (header and body) are verified.
    pub(crate) fn verified(bytes: Vec<u8>, bulk: Vec<Vec<u8>>) -> Message {
        Message { bytes, bulk }
    }

    pub(crate) fn into_parts(self) -> (Vec<u8>, Vec<Vec<u8>>) {
        (self.bytes, self.bulk)
    }

    pub(crate) fn body(&self) -> &[u8] {
        &self.bytes[HEADER..]
    }

    /// Bytes that it counts for in flight: elements and bulk.
    pub fn size(&self) -> u64 {
        self.body().len() as u64 + self.bulk.iter().map(|b| b.len() as u64).sum::<u64>()
    }

    /// The root.
    pub fn root(&self) -> Element<'_> {
        Element::first(self.body()).expect("built or verified: begins with an element")
    }

    /// Which command or reply this is.
    pub fn tag(&self) -> Tag {
        self.root().tag()
    }

    /// Its bulk buffers.
    pub fn bulk(&self) -> &[Vec<u8>] {
        &self.bulk
    }

    /// The bulk buffer that the element `tag` in the root names.
    pub fn buffer(&self, tag: Tag) -> Result<&[u8], ReadError> {
        self.bulk.get(self.root().bulk(tag)?).map(Vec::as_slice).ok_or(ReadError::Range(tag))
    }

    /// Takes that buffer out, leaving an empty one.
    pub fn take_buffer(&mut self, tag: Tag) -> Result<Vec<u8>, ReadError> {
        let n = self.root().bulk(tag)?;
        self.bulk.get_mut(n).map(std::mem::take).ok_or(ReadError::Range(tag))
    }

    fn put(&mut self, tag: Tag, kind: u8, value: &[u8]) -> &mut Message {
        head(&mut self.bytes, tag, kind, value.len());
        self.bytes.extend_from_slice(value);
        self.close(HEADER)
    }

    /// Makes the length of the group at `at` reach to the end.
    fn close(&mut self, at: usize) -> &mut Message {
        let len = (self.bytes.len() - at - HEAD) as u32;
        self.bytes[at + 4..at + 8].copy_from_slice(&len.to_le_bytes());
        self
    }

    /// Adds an unsigned number.
    pub fn uint(&mut self, tag: Tag, v: u64) -> &mut Message {
        self.put(tag, UINT, &v.to_le_bytes())
    }

    /// Adds a signed number.
    pub fn int(&mut self, tag: Tag, v: i64) -> &mut Message {
        self.put(tag, INT, &v.to_le_bytes())
    }

    /// Adds bytes.
    pub fn bytes(&mut self, tag: Tag, v: &[u8]) -> &mut Message {
        self.put(tag, BYTES, v)
    }

    /// Adds text.
    pub fn text(&mut self, tag: Tag, v: &str) -> &mut Message {
        self.put(tag, TEXT, v.as_bytes())
    }

    /// Adds a bulk buffer and the element that names it.
    pub fn attach(&mut self, tag: Tag, buffer: Vec<u8>) -> &mut Message {
        self.bulk.push(buffer);
        let n = self.bulk.len() as u32 - 1;
        self.put(tag, BULK, &n.to_le_bytes())
    }

    /// Adds a message, which has no bulk itself, as a bulk buffer: as large as that may be.
    pub fn enclose(&mut self, tag: Tag, inner: &Message) -> &mut Message {
        self.attach(tag, inner.body().to_vec())
    }

    /// The message that is enclosed in the root under this tag, if one is. It is verified only now: `limits` are for it.
    pub fn enclosed(&self, tag: Tag, limits: &Limits) -> Result<Option<Message>, ReadError> {
        if self.root().find(tag).is_none() {
            return Ok(None);
        }
        let body = self.buffer(tag)?;
        crate::element::verify(body, 0, limits).map_err(|_| ReadError::Range(tag))?;
        let mut bytes = vec![0; HEADER];
        bytes.extend_from_slice(body);
        Ok(Some(Message::verified(bytes, Vec::new())))
    }

    /// Adds a group with what `fill` puts in it.
    pub fn group(&mut self, tag: Tag, fill: impl FnOnce(&mut Message)) -> &mut Message {
        let at = self.bytes.len();
        head(&mut self.bytes, tag, GROUP, 0);
        fill(self);
        self.close(at).close(HEADER)
    }
}

fn head(out: &mut Vec<u8>, tag: Tag, kind: u8, len: usize) {
    out.extend_from_slice(&tag.0.to_le_bytes());
    out.extend_from_slice(&[kind, 0]);
    out.extend_from_slice(&(len as u32).to_le_bytes());
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.root())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_enclosed_comes_out_verified_or_not_at_all() {
        let mut inner = Message::new(Tag(1));
        inner.text(Tag(2), "inside");
        let mut outer = Message::new(Tag(3));
        outer.enclose(Tag(4), &inner).attach(Tag(5), b"no element".to_vec());
        let limits = Limits::default();
        assert_eq!(outer.enclosed(Tag(4), &limits), Ok(Some(inner)));
        assert_eq!(outer.enclosed(Tag(5), &limits), Err(ReadError::Range(Tag(5))));
        assert_eq!(outer.enclosed(Tag(6), &limits), Ok(None));
        assert_eq!(outer.enclosed(Tag(4), &Limits { elements: 1, ..limits }), Err(ReadError::Range(Tag(4))));
    }

    #[test]
    fn what_was_put_in_is_read_back_and_nothing_else() {
        let mut m = Message::new(Tag(7));
        m.uint(Tag(1), 5).int(Tag(2), -5).text(Tag(3), "ä").bytes(Tag(4), b"xyz").attach(Tag(5), vec![9; 10]);
        m.group(Tag(6), |g| {
            g.group(Tag(1), |g| {
                g.uint(Tag(8), 8);
            });
            g.uint(Tag(9), 9);
        });
        let root = m.root();
        assert_eq!((m.tag(), root.uint(Tag(1)), root.int(Tag(2))), (Tag(7), Ok(5), Ok(-5)));
        assert_eq!(
            (root.text(Tag(3)), root.bytes(Tag(4)), m.buffer(Tag(5))),
            (Ok("ä"), Ok(&b"xyz"[..]), Ok(&[9; 10][..]))
        );
        let group = root.group(Tag(6)).unwrap();
        assert_eq!((group.group(Tag(1)).unwrap().uint(Tag(8)), group.uint(Tag(9))), (Ok(8), Ok(9)));
        assert_eq!(root.uint(Tag(99)), Err(ReadError::Missing(Tag(99))));
        assert_eq!(root.uint(Tag(3)), Err(ReadError::Type(Tag(3))));
        assert_eq!(root.number::<u8>(Tag(1)), Ok(5));
        assert_eq!(root.array::<2>(Tag(4)), Err(ReadError::Range(Tag(4))));
        assert_eq!(root.children().count(), 6);
        crate::element::verify(m.body(), 1, &crate::Limits::default()).unwrap();
        assert!(crate::element::verify(m.body(), 0, &crate::Limits::default()).is_err());
    }
}
