//! Commands and tags. docs/mirror.md §Protocol.

use darner_fs::{Opening, Tid};
use darner_syslink::Tag;

/// The service's name, with the version of the protocol.
pub const SERVICE: &str = "darner.mirror/1";

/// Of a mirror that was away for longer than this (nanoseconds) the moments between are pulled one after the other.
pub(crate) const AWAY: u64 = 60_000_000_000;

/// Asks what there is to be followed: a fileset's name, and optionally since when.
pub(crate) const LOOK: Tag = Tag(1);
/// Asks for a part of what changed.
pub(crate) const PULL: Tag = Tag(2);
/// Says that a pull is over.
pub(crate) const END: Tag = Tag(3);
/// Asks for digests of what a mirror is to have.
pub(crate) const DIGEST: Tag = Tag(4);
/// Asks for bytes that were lost.
pub(crate) const READ: Tag = Tag(5);
/// Asks whether changes can be found, which is proven.
pub(crate) const PROVE: Tag = Tag(6);
/// Asks to be answered when there is something newer than what the mirror has.
pub(crate) const WAIT: Tag = Tag(7);

/// The moment asked for is not kept (any more): look again.
pub(crate) const NOT_KEPT: u32 = 256;
/// There is no such fileset, or it can't be followed.
pub(crate) const NO_FILESET: u32 = 257;
/// The session has no part that came before the one that is asked for, or that was the last.
pub(crate) const NO_NEXT: u32 = 258;
/// What the mirror has has never been here: this is an older copy of its source.
pub(crate) const NEVER_BEEN: u32 = 259;
/// What that is for people.
pub(crate) const OTHER_PAST: &str = "the mirror has what never was here: an older copy of its source was put back; promote the mirror (darner \
                                     mirror promote), or make a new one";

pub(crate) const NAME: Tag = Tag(1);
pub(crate) const UUID: Tag = Tag(2);
pub(crate) const FILESET: Tag = Tag(3);
pub(crate) const NEWEST: Tag = Tag(4);
pub(crate) const HASH_KEY: Tag = Tag(5);
pub(crate) const OBJECTS: Tag = Tag(6);
/// Repeated: moments between that are kept, ascending.
pub(crate) const POINT: Tag = Tag(7);
pub(crate) const SINCE: Tag = Tag(8);

pub(crate) const SESSION: Tag = Tag(10);
pub(crate) const FROM: Tag = Tag(11);
pub(crate) const TO: Tag = Tag(12);
pub(crate) const AT: Tag = Tag(13);
pub(crate) const ROOM: Tag = Tag(14);
pub(crate) const ITEMS: Tag = Tag(15);
pub(crate) const NEXT: Tag = Tag(16);

pub(crate) const RUN: Tag = Tag(17);
pub(crate) const MAX: Tag = Tag(18);
pub(crate) const DATA: Tag = Tag(19);
pub(crate) const OBJECT: Tag = Tag(20);
pub(crate) const OFFSET: Tag = Tag(21);
pub(crate) const LEN: Tag = Tag(22);
pub(crate) const TID: Tag = Tag(23);
pub(crate) const ATTEMPT: Tag = Tag(24);
pub(crate) const VERSIONS: Tag = Tag(25);
/// Repeated: sentences.
pub(crate) const FOUND: Tag = Tag(26);
/// Of a promoted mirror, the transaction that has the same as what it followed had ([`WAS`]).
pub(crate) const WAS_SHOWN: Tag = Tag(30);
pub(crate) const NOW: Tag = Tag(31);
/// Repeated: paths at which the store of whoever says so is reached.
pub(crate) const PLACE: Tag = Tag(32);
/// Repeated: whom a promoted mirror followed, nearest first: a group of [`UUID`], [`FILESET`], [`AT`], [`OPENING`].
pub(crate) const WAS: Tag = Tag(33);
/// The newest moment of which the mirror has anything, and by which opening of its source that came to be.
pub(crate) const HAS: Tag = Tag(34);
pub(crate) const OPENING: Tag = Tag(35);
/// Asks by which openings all moments since one came to be ...
pub(crate) const OPENINGS_SINCE: Tag = Tag(36);
/// ... and tells: [`encode_openings`].
pub(crate) const OPENINGS: Tag = Tag(37);

pub(crate) fn encode_openings(all: &[Opening]) -> Vec<u8> {
    all.iter().flat_map(|o| [o.id.to_le_bytes(), o.after.0.to_le_bytes()]).flatten().collect()
}

pub(crate) fn decode_openings(bytes: &[u8]) -> Option<Vec<Opening>> {
    let (all, rest) = bytes.as_chunks::<16>();
    let decode = |one: &[u8; 16]| {
        let one = u128::from_le_bytes(*one);
        Opening { id: one as u64, after: Tid((one >> 64) as u64) }
    };
    rest.is_empty().then(|| all.iter().map(decode).collect())
}
