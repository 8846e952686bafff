//! Records, segments, index, volumes: the store beneath Darner.
//!
//! Everything is a record `(fileset, object, kind, key, tid) → value or tombstone`, appended to segments; the
//! index is derived. The store knows no inode, path, socket, thread or wall clock.

mod error;
mod extent;
mod key;
mod store;
mod tid;

pub use error::{Error, Result};
pub use extent::{Hole, Piece};
pub use key::{FilesetId, Key, Kind, ObjectId};
pub use store::{Store, Tx, Usage, Value, Version};
pub use tid::Tid;
