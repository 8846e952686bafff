//! What can go wrong outside a request: mounting, unmounting and the handshake. Each message says what was being done
//! and, where we know it, what to do about it.

use std::{io, path::PathBuf};

/// A failure of mounting, unmounting or taking up a session.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The mount didn't come about; nothing is left mounted.
    #[error("can't mount on {}: {why}", mountpoint.display())]
    Mount {
        /// Where.
        mountpoint: PathBuf,
        /// The reason, and the remedy if there is one.
        why: String,
    },
    /// The filesystem is still mounted.
    #[error("can't unmount {}: {why}", mountpoint.display())]
    Unmount {
        /// Where.
        mountpoint: PathBuf,
        /// The reason, and the remedy if there is one.
        why: String,
    },
    /// The kernel speaks a protocol that we don't.
    #[error("the kernel speaks FUSE {major}.{minor}; at least 7.31 (Linux 5.4) is needed")]
    Version {
        /// Major protocol version offered.
        major: u32,
        /// Minor protocol version offered.
        minor: u32,
    },
    /// The first message wasn't the one that starts a session.
    #[error("expected INIT from /dev/fuse, found {found}; a descriptor already in use is taken over by Session::adopt")]
    NoInit {
        /// What came instead.
        found: String,
    },
    /// Text that should describe a negotiated session doesn't.
    #[error("not a description of a negotiated FUSE session: {what}")]
    Negotiated {
        /// The offending part.
        what: String,
    },
    /// A system call failed.
    #[error("{doing}: {source}")]
    Io {
        /// What we were doing.
        doing: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`: notes what was being done.
    pub(crate) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}
