//! What an operation says when it can't: an errno for programs and a sentence for people.
//!
//! A refusal (ENOENT, EEXIST, …) is a constant and costs nothing to make. Whatever the store reports becomes an errno
//! here and nowhere else: damaged bytes are EIO, with a sentence that names the file, the byte offset and the tid.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use darner_store::Error as StoreError;

/// Result of a filesystem operation.
pub type Result<T, E = FsError> = std::result::Result<T, E>;

/// Why an operation was refused or failed. Nothing of it became visible.
#[derive(Clone, Debug)]
pub struct FsError {
    errno: i32,
    sentence: Cow<'static, str>,
    cause: Option<Arc<StoreError>>,
}

impl FsError {
    /// A refusal.
    pub const fn new(errno: i32, sentence: &'static str) -> FsError {
        FsError { errno, sentence: Cow::Borrowed(sentence), cause: None }
    }

    /// A refusal that names something.
    pub(crate) fn told(errno: i32, sentence: impl Into<String>) -> FsError {
        FsError { errno, sentence: Cow::Owned(sentence.into()), cause: None }
    }

    /// A record whose value is not in the form it should have.
    pub(crate) fn malformed(what: impl Into<String>) -> FsError {
        FsError { errno: libc::EIO, sentence: Cow::Owned(what.into()), cause: None }
    }

    /// The errno for programs.
    pub fn errno(&self) -> i32 {
        self.errno
    }

    /// Whether there is no room for it.
    pub fn is_full(&self) -> bool {
        [libc::ENOSPC, libc::EDQUOT].contains(&self.errno())
    }

    /// What the store said, if it came from there.
    pub fn cause(&self) -> Option<&StoreError> {
        self.cause.as_deref()
    }

    /// What has to be fetched from a bucket first.
    pub fn cold(&self) -> Option<&darner_store::volume::Cold> {
        self.cause()?.cold()
    }

    /// The same, saying in which file it happened.
    pub(crate) fn in_file(mut self, path: &str) -> FsError {
        self.sentence = Cow::Owned(format!("{path}: {}", self.sentence));
        self
    }
}

impl fmt::Display for FsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for FsError {}

impl From<StoreError> for FsError {
    fn from(cause: StoreError) -> FsError {
        let errno = match &cause {
            StoreError::NoSpace { .. } => libc::ENOSPC,
            StoreError::Busy { .. } => libc::EBUSY,
            StoreError::TooLarge => libc::EFBIG,
            _ => libc::EIO,
        };
        FsError { errno, sentence: Cow::Owned(cause.to_string()), cause: Some(Arc::new(cause)) }
    }
}

/// Refuses with a constant sentence.
pub(crate) fn refuse<T>(errno: i32, sentence: &'static str) -> Result<T> {
    Err(FsError::new(errno, sentence))
}
