//! What flows from a fileset to its mirrors, as bytes. docs/format.md §Mirror stream.
//!
//! Nothing of it is believed: what doesn't decode, or doesn't fit, is refused, and bytes of files are verified.

use std::ops::Range;

use darner_store::{CHUNK, Stored, Tid};

use crate::codec::{Reader, put_bytes, put_varint};
use crate::mirror::Upstream;

/// Most bytes of a key's tail or a value.
const VALUE_MAX: usize = 1 << 20;
const STATED: u8 = 1;
const SET: u8 = 2;
const DELETED: u8 = 3;
const SAME: u8 = 4;
const BYTES: u8 = 5;
const ABOVE: u8 = 6;
const OPENING: u8 = 7;
/// Forms of a span's bytes.
pub(crate) const RAW: u8 = 0;
pub(crate) const LZ4: u8 = 1;
const SHARED: u8 = 2;
pub(crate) const LOST: u8 = 3;

/// A piece of what changed. Tails are those of the mirror: its root is object 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item<'b> {
    /// All keys in this range are told, changed or not (an empty end: to the end).
    Stated(Vec<u8>, Vec<u8>),
    /// A key has this value, written by the source's transaction.
    Set(Vec<u8>, Tid, Vec<u8>),
    Deleted(Vec<u8>),
    /// There, and unchanged.
    Same(Vec<u8>),
    /// A chunk of a file, whole: object, chunk, and its data.
    Chunk(u64, u64, Vec<Span<'b>>),
    /// What the source follows itself.
    Above(Upstream),
    /// By which opening of the source the moment came to be.
    Opening(u64),
}

/// Bytes `range` of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Span<'b> {
    pub range: Range<u32>,
    pub bytes: Bytes<'b>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Bytes<'b> {
    Here(Stored<'b>),
    /// They are those of another object at this offset, which came before.
    Shared(u64, u64),
}

impl<'b> Item<'b> {
    /// Whether it is about the source, and no key.
    pub(crate) fn is_of_source(&self) -> bool {
        matches!(self, Item::Above(_) | Item::Opening(_))
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Item::Stated(from, to) => {
                out.push(STATED);
                put_bytes(out, from);
                put_bytes(out, to);
            }
            Item::Set(tail, tid, value) => {
                out.push(SET);
                put_bytes(out, tail);
                put_varint(out, tid.0);
                put_bytes(out, value);
            }
            Item::Deleted(tail) => {
                out.push(DELETED);
                put_bytes(out, tail);
            }
            Item::Same(tail) => {
                out.push(SAME);
                put_bytes(out, tail);
            }
            Item::Chunk(object, chunk, spans) => {
                put_chunk(out, *object, *chunk, spans.len());
                spans.iter().for_each(|s| s.encode(out));
            }
            Item::Above(up) => {
                out.push(ABOVE);
                up.encode(out);
            }
            Item::Opening(opening) => {
                out.push(OPENING);
                out.extend_from_slice(&opening.to_le_bytes());
            }
        }
    }

    fn decode(from: &mut Reader<'b>) -> Option<Item<'b>> {
        let kind = from.byte()?;
        Some(match kind {
            STATED => Item::Stated(take_bytes(from)?, take_bytes(from)?),
            SET => Item::Set(take_bytes(from)?, Tid(from.varint()?), take_bytes(from)?),
            DELETED => Item::Deleted(take_bytes(from)?),
            SAME => Item::Same(take_bytes(from)?),
            BYTES => {
                let (object, chunk, n) = (from.varint()?, from.varint()?, from.varint()?);
                // A chunk that is within what a file can be.
                chunk.checked_add(1)?.checked_mul(CHUNK).filter(|end| *end <= i64::MAX as u64 + CHUNK)?;
                let mut spans = Vec::new();
                let mut end = 0;
                for _ in 0..n {
                    let span = Span::decode(from)?;
                    if span.range.start < end {
                        return None;
                    }
                    end = span.range.end;
                    spans.push(span);
                }
                Item::Chunk(object, chunk, spans)
            }
            ABOVE => Item::Above(Upstream::decode(from)?),
            OPENING => Item::Opening(u64::from_le_bytes(from.take(8)?.try_into().ok()?)),
            _ => return None,
        })
    }
}

impl<'b> Span<'b> {
    fn encode(&self, out: &mut Vec<u8>) {
        match &self.bytes {
            Bytes::Here(Stored::Raw(data)) => {
                put_span(out, &self.range, RAW);
                out.extend_from_slice(data);
            }
            Bytes::Here(Stored::Lz4(packed, _)) => {
                put_span(out, &self.range, LZ4);
                put_bytes(out, packed);
            }
            Bytes::Here(Stored::Lost(_)) => put_span(out, &self.range, LOST),
            Bytes::Shared(object, offset) => put_shared(out, &self.range, *object, *offset),
        }
    }

    fn decode(from: &mut Reader<'b>) -> Option<Span<'b>> {
        let (start, len) = (from.varint32()?, from.varint32()?);
        let end = start.checked_add(len).filter(|end| len > 0 && u64::from(*end) <= CHUNK)?;
        let form = from.byte()?;
        let bytes = match form {
            RAW => Bytes::Here(Stored::Raw(from.take(len as usize)?)),
            LZ4 => Bytes::Here(Stored::Lz4(take_slice(from)?, len)),
            SHARED => Bytes::Shared(from.varint()?, from.varint()?),
            LOST => Bytes::Here(Stored::Lost(len)),
            _ => return None,
        };
        if let Bytes::Here(stored) = &bytes {
            stored.verified_len()?;
        }
        Some(Span { range: start..end, bytes })
    }
}

/// Begins a chunk; so many spans follow.
pub(crate) fn put_chunk(out: &mut Vec<u8>, object: u64, chunk: u64, spans: usize) {
    out.push(BYTES);
    for n in [object, chunk, spans as u64] {
        put_varint(out, n);
    }
}

/// Begins a span; its bytes follow, those of a block with their number before them.
pub(crate) fn put_span(out: &mut Vec<u8>, range: &Range<u32>, form: u8) {
    put_varint(out, range.start.into());
    put_varint(out, range.len() as u64);
    out.push(form);
}

pub(crate) fn put_shared(out: &mut Vec<u8>, range: &Range<u32>, object: u64, offset: u64) {
    put_span(out, range, SHARED);
    put_varint(out, object);
    put_varint(out, offset);
}

fn take_slice<'b>(from: &mut Reader<'b>) -> Option<&'b [u8]> {
    from.bytes().filter(|bytes| bytes.len() <= VALUE_MAX)
}

fn take_bytes(from: &mut Reader<'_>) -> Option<Vec<u8>> {
    take_slice(from).map(<[u8]>::to_vec)
}

/// All items of a part; `None` if it isn't one.
pub(crate) fn decode_all(part: &[u8]) -> Option<Vec<Item<'_>>> {
    let mut from = Reader(part);
    let mut items = Vec::new();
    while from.end().is_none() {
        items.push(Item::decode(&mut from)?);
    }
    Some(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(packed: &[u8]) -> Vec<Item<'_>> {
        vec![
            Item::Stated(vec![0; 9], Vec::new()),
            Item::Set(b"12345678\x04hashnamename".to_vec(), Tid(1 << 60), b"value".to_vec()),
            Item::Deleted(b"12345678\x01".to_vec()),
            Item::Same(b"12345678\x02".to_vec()),
            Item::Above(Upstream {
                source: [9; 16],
                fileset: darner_store::FilesetId(1),
                at: Tid(1 << 60),
                opening: 3,
            }),
            Item::Opening(4),
            Item::Chunk(
                77,
                3,
                vec![
                    Span { range: 0..3, bytes: Bytes::Here(Stored::Raw(b"abc")) },
                    Span { range: 3..5003, bytes: Bytes::Here(Stored::Lz4(packed, 5000)) },
                    Span { range: 5003..9000, bytes: Bytes::Here(Stored::Lost(3997)) },
                    Span { range: 60_000..65_536, bytes: Bytes::Shared(76, 1 << 40) },
                ],
            ),
        ]
    }

    /// One literal byte, one match of offset 1 for the rest but five, five literals.
    fn lz4_block(data: &[u8]) -> Vec<u8> {
        let mut left = data.len() - 1 - 5 - 4 - 15;
        let mut out = vec![0x1f, data[0], 1, 0];
        while left >= 255 {
            out.push(255);
            left -= 255;
        }
        out.push(left as u8);
        out.push(0x50);
        out.extend_from_slice(&data[..5]);
        out
    }

    #[test]
    fn items_come_back_and_hostile_bytes_are_refused_without_a_panic() {
        let (mut bytes, packed) = (Vec::new(), lz4_block(&[7; 5000]));
        sample(&packed).iter().for_each(|item| item.encode(&mut bytes));
        assert_eq!(decode_all(&bytes), Some(sample(&packed)));
        let mut rng = fastrand::Rng::with_seed(1);
        let mut refused = 0;
        for _ in 0..200_000 {
            let mut bytes = bytes.clone();
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(..bytes.len());
                bytes[at] = rng.u8(..);
            }
            bytes.truncate(rng.usize(..=bytes.len()));
            refused += usize::from(decode_all(&bytes).is_none());
        }
        assert!(refused > 100_000, "{refused}");
    }
}
