//! Records, segments, index, volumes: the store beneath Darner.
//!
//! Everything is a record `(fileset, object, kind, key, tid) → value or tombstone`, appended to segments; the
//! index is derived. The store knows no inode, path, socket, thread or wall clock. docs/format.md has the bytes.

mod assemble;
mod buffer;
mod check;
mod checkpoint;
mod clean;
mod clone;
mod codec;
mod collapse;
mod copies;
mod copying;
mod counts;
mod delta;
mod error;
mod extent;
mod fileset;
mod fold;
mod forget;
mod frame;
mod full;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod heal;
mod index;
pub mod inspect;
mod key;
mod log;
mod maintain;
mod manifest;
mod mark;
mod moving;
mod pack;
mod push;
mod quota;
mod readahead;
mod reading;
mod rebuild;
mod receipt;
mod recover;
#[cfg(test)]
mod regressions;
mod remains;
pub mod retain;
mod scatter;
mod scrub;
mod segment;
mod shelter;
mod store;
mod superblock;
mod takeover;
mod tid;
mod tier;
mod tx;
pub mod volume;
mod volumes;
mod workers;

pub use assemble::{Identity, identify, identify_by_label, reclaim};
pub use check::Report;
pub use checkpoint::taken_over;
pub use clean::{Cleaned, Effort};
pub use collapse::{AGES, Account, Advance, kept_since};
pub use copies::CopyState;
pub use counts::Count;
pub use delta::{Change, Delta, Tails, What, split_tail};
pub use error::{Error, Result};
pub use extent::{CHUNK, Piece, Stored};
pub use fileset::{CATALOGUE, Lineage};
pub use heal::Elsewhere;
pub use key::{FilesetId, Key, Kind, ObjectId};
pub use maintain::Progress;
pub use moving::Move;
pub use push::BucketState;
pub use rebuild::IndexFrom;
pub use receipt::Receipt;
pub use recover::{CreateOptions, OpenOptions, SIZE_MIN};
pub use retain::{Grid, Pin, Retention, Step, WhenFull};
pub use scatter::Chunk;
pub use scrub::{Damage, Rot, ScrubAt, ScrubReport};
pub use shelter::{Memory, Shelter};
pub use store::{Store, Usage, Value, Version, VisitValue, VisitVersion};
pub use tid::Tid;
pub use tx::Tx;
pub use volumes::VolumeUsage;
pub use workers::{Job, Workers};
