//! Keys: what a record is about. docs/format.md §Keys.
//!
//! Encoded big-endian, so that byte order is `(fileset, object, kind, suffix)` order.

use std::fmt;

/// A filesystem of its own within the store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FilesetId(pub u32);

/// An object (inode) number: unique in the store, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(pub u64);

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What a record says about its object. The store gives meaning to some: [`Kind::ATTR`], whose tombstone means
/// that the whole object is dead, [`Kind::EXTENT`], whose records are byte ranges, [`Kind::FILESET`], the catalogue, and
/// [`Kind::KEEPLESS`], which comes first so that a collapse knows it before all else of the object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Kind(pub u8);

impl Kind {
    /// No history of the object is kept (suffix and value empty), or none from before this record (value: a byte 0).
    pub const KEEPLESS: Kind = Kind(0);
    /// Attributes (suffix empty).
    pub const ATTR: Kind = Kind(1);
    /// Target of a symbolic link (suffix empty).
    pub const TARGET: Kind = Kind(2);
    /// Extended attribute (suffix: its name).
    pub const XATTR: Kind = Kind(3);
    /// Directory entry (suffix: hash, then name).
    pub const DIRENT: Kind = Kind(4);
    /// File bytes (suffix in the index: chunk number, 8 bytes).
    pub const EXTENT: Kind = Kind(5);
    /// An unlinked object that may still be open (object 0; suffix: the object).
    pub const ORPHAN: Kind = Kind(6);
    /// A label on a tid (object 0; suffix: its name).
    pub const LABEL: Kind = Kind(7);
    /// The fileset's retention (object 0; suffix empty).
    pub const RETAIN: Kind = Kind(8);
    /// A fileset (fileset 0, object 0; suffix: its number, 4 bytes).
    pub const FILESET: Kind = Kind(9);
    /// An object whose every version is to be destroyed (object 0; suffix: the object; value: up to which tid).
    pub const FORGET: Kind = Kind(10);
    /// What a mirror follows and how far it has come (the last object there can be; suffix empty).
    pub const MIRROR: Kind = Kind(11);
    /// Who the store is among others, and whom it knows (fileset 0, object 0).
    pub const PEER: Kind = Kind(13);
    /// What the last scrub found (main fileset, object 0; suffix empty).
    pub const SCRUB: Kind = Kind(12);
}

/// Bytes before the suffix in an encoded key.
pub const KEY_HEAD: usize = 13;

/// An encoded key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Box<[u8]>);

impl Key {
    /// Encodes a key.
    pub fn new(fileset: FilesetId, object: ObjectId, kind: Kind, suffix: &[u8]) -> Key {
        let mut bytes = Vec::with_capacity(KEY_HEAD + suffix.len());
        bytes.extend_from_slice(&fileset.0.to_be_bytes());
        bytes.extend_from_slice(&object.0.to_be_bytes());
        bytes.push(kind.0);
        bytes.extend_from_slice(suffix);
        Key(bytes.into_boxed_slice())
    }

    /// The encoded form, owned.
    pub(crate) fn into_bytes(self) -> Box<[u8]> {
        self.0
    }

    /// Whose key it is.
    pub(crate) fn fileset(&self) -> FilesetId {
        FilesetId(u32::from_be_bytes(self.0[..4].try_into().expect("4 bytes")))
    }

    /// The encoded form.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The parts of an encoded key; `None` if it is too short to be one.
pub fn parse(key: &[u8]) -> Option<(FilesetId, ObjectId, Kind, &[u8])> {
    let (head, suffix) = key.split_at_checked(KEY_HEAD)?;
    let fileset = u32::from_be_bytes(head[..4].try_into().ok()?);
    let object = u64::from_be_bytes(head[4..12].try_into().ok()?);
    Some((FilesetId(fileset), ObjectId(object), Kind(head[12]), suffix))
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match parse(&self.0) {
            Some((fs, ob, kind, suffix)) => {
                write!(f, "{}/{}/{}/{}", fs.0, ob, kind.0, suffix.escape_ascii())
            }
            None => write!(f, "{}", self.0.escape_ascii()),
        }
    }
}
