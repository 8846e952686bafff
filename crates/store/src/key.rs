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

/// Bytes of a key. All but long ones need no memory of their own: allocating it took more time than all else that is done
/// to a key on its way into a table.
#[derive(Clone)]
pub(crate) enum KeyBytes {
    Short(u8, [u8; SHORT]),
    Long(Box<[u8]>),
}

/// Names of 17 bytes fit.
const SHORT: usize = 38;

impl KeyBytes {
    /// Those of several pieces.
    fn of(pieces: &[&[u8]]) -> KeyBytes {
        let len: usize = pieces.iter().map(|p| p.len()).sum();
        if len > SHORT {
            return KeyBytes::Long(pieces.concat().into());
        }
        let (mut bytes, mut at) = ([0; SHORT], 0);
        for piece in pieces {
            bytes[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
        }
        KeyBytes::Short(len as u8, bytes)
    }

    /// Bytes of memory beside itself.
    pub fn allocated(&self) -> usize {
        match self {
            KeyBytes::Short(..) => 0,
            KeyBytes::Long(bytes) => bytes.len(),
        }
    }
}

impl std::ops::Deref for KeyBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            KeyBytes::Short(len, bytes) => &bytes[..usize::from(*len)],
            KeyBytes::Long(bytes) => bytes,
        }
    }
}

impl From<&[u8]> for KeyBytes {
    fn from(bytes: &[u8]) -> KeyBytes {
        KeyBytes::of(&[bytes])
    }
}

impl std::borrow::Borrow<[u8]> for KeyBytes {
    fn borrow(&self) -> &[u8] {
        self
    }
}

impl PartialEq for KeyBytes {
    fn eq(&self, other: &KeyBytes) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for KeyBytes {}

impl PartialOrd for KeyBytes {
    fn partial_cmp(&self, other: &KeyBytes) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for KeyBytes {
    /// That of the bytes. (Behind short ones are zeroes, so that they are compared eight at a time; then the shorter is first.)
    fn cmp(&self, other: &KeyBytes) -> std::cmp::Ordering {
        let (KeyBytes::Short(len, bytes), KeyBytes::Short(other_len, other_bytes)) = (self, other) else {
            return (**self).cmp(&**other);
        };
        let word = |bytes: &[u8; SHORT], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        for at in [0, 8, 16, 24, SHORT - 8] {
            let (a, b) = (word(bytes, at), word(other_bytes, at));
            if a != b {
                return a.cmp(&b);
            }
        }
        len.cmp(other_len)
    }
}

impl std::hash::Hash for KeyBytes {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl fmt::Debug for KeyBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// An encoded key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(KeyBytes);

impl Key {
    /// Encodes a key.
    pub fn new(fileset: FilesetId, object: ObjectId, kind: Kind, suffix: &[u8]) -> Key {
        Key(KeyBytes::of(&[&fileset.0.to_be_bytes(), &object.0.to_be_bytes(), &[kind.0], suffix]))
    }

    /// The encoded form, owned.
    pub(crate) fn into_bytes(self) -> KeyBytes {
        self.0
    }

    /// The same, borrowed.
    pub(crate) fn bytes(&self) -> &KeyBytes {
        &self.0
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_in_the_order_of_their_bytes_whatever_their_length() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut one = || -> Vec<u8> {
            let len = [0, 1, 7, 8, 13, 21, 37, 38, 39, 60][rng.usize(..10)];
            (0..len).map(|_| [0, 0, 1, 255][rng.usize(..4)]).collect()
        };
        let all: Vec<Vec<u8>> = (0..600).map(|_| one()).collect();
        for a in &all {
            for b in &all {
                let (x, y) = (KeyBytes::from(&a[..]), KeyBytes::from(&b[..]));
                assert_eq!((x.cmp(&y), x == y, &*x), (a.cmp(b), a == b, &a[..]), "{a:?} {b:?}");
            }
        }
    }
}
