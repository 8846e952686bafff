//! What can go wrong in a store, told apart by whose fault it is.

use crate::Tid;

/// Result of a store operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the store. Ours are assertions; these are the disk's and the world's.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Bytes on a volume are not what was written there.
    #[error("{place}: {what} is damaged (expected {expected}, found {found})")]
    Corrupt {
        /// Volume object and byte offset.
        place: String,
        /// Which structure of docs/format.md.
        what: &'static str,
        /// What its checksum or field should be.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A piece of file data that failed its checksum; named so that it can be healed or restored.
    #[error("object {object} at byte {offset} written at tid {tid}: {source}")]
    Data {
        /// The object the data belongs to.
        object: u64,
        /// Byte offset in the object.
        offset: u64,
        /// The transaction that wrote it.
        tid: Tid,
        /// The checksum failure.
        source: Box<Error>,
    },
    /// The volume failed an operation.
    #[error("{place}: {action} failed: {source}{}", limit(source))]
    Io {
        /// Volume object and byte offset.
        place: String,
        /// read, write, flush, create, remove.
        action: &'static str,
        /// The system's error.
        source: std::sync::Arc<std::io::Error>,
    },
    /// No room is left on the volumes.
    #[error(
        "no space left: {used} of the {size} bytes that the store can have are in use, and the rest is kept for deleting, cleaning and the like (where it is in a directory or an image, what that disk has left counts)"
    )]
    NoSpace {
        /// Bytes in use.
        used: u64,
        /// Bytes there are.
        size: u64,
    },
    /// Somebody else has the store open.
    #[error("{store} is already open{}", holder.as_ref().map(|h| format!(" in {h}")).unwrap_or_default())]
    Busy {
        /// The store.
        store: String,
        /// Who holds it, if known.
        holder: Option<String>,
    },
    /// This is no store, or one that this version can't read.
    #[error("{0}")]
    NotAStore(String),
    /// A volume of the store was not found.
    #[error(
        "volume {number} of the store, last at {place}, is missing ({affected}); --volume says where it is now, --degraded mounts without it"
    )]
    Missing {
        /// Its number.
        number: u16,
        /// Where it was.
        place: String,
        /// What is on it.
        affected: String,
    },
    /// What was asked for can't be done, for a reason that is said.
    #[error("{0}")]
    Refused(String),
    /// One transaction is larger than a frame may be.
    #[error("the operation is too large for one transaction")]
    TooLarge,
    /// Some segments could not be rewritten without what is to be forgotten.
    #[error(
        "{left} segments that hold some of it could not be rewritten (too little space, or damage): it will be tried again at the next mount"
    )]
    Unreached {
        /// Segments.
        left: usize,
    },
    /// What is to be forgotten is in no moment any more, and something that holds some of it can't be reached.
    #[error("some of its bytes are still stored, and are destroyed once that can be: {0}")]
    Remains(Box<Error>),
    /// What was asked for is in a bucket, and whoever asked does not wait.
    #[error("{0:?} are in a bucket")]
    Cold(crate::volume::Cold),
    /// An earlier write to the log failed; nothing more is accepted, so that nothing synced is lost.
    #[error("the store stopped accepting writes after: {0}")]
    Stopped(Box<Error>),
}

/// What an error of the system does not say: which limit it was.
fn limit(error: &std::io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EMFILE) => " (limit of files that are open: ulimit -n)",
        Some(libc::EFBIG) => " (limit of a file's size: ulimit -f, or the filesystem's below)",
        _ => "",
    }
}

impl Error {
    /// Whether what was asked for is not there, or not what was written: asking again is no use.
    pub(crate) fn is_lost(&self) -> bool {
        match self {
            Error::Corrupt { .. } => true,
            Error::Io { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
            _ => false,
        }
    }

    /// What has to be fetched from a bucket first.
    pub fn cold(&self) -> Option<&crate::volume::Cold> {
        match self {
            Error::Cold(cold) => Some(cold),
            _ => None,
        }
    }
}
