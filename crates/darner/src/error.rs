//! What a command tells its user, and the exit code scripts see.

/// An error of a command: one clear message.
#[derive(Debug)]
pub struct Failure {
    message: String,
    code: u8,
}

/// Result of a command.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// Something went wrong: exit code 1.
    pub fn new(message: impl std::fmt::Display) -> Failure {
        Failure { message: message.to_string(), code: 1 }
    }

    /// Nothing went wrong, but scripts are to see this exit code (`diff` found differences).
    pub fn silent(code: u8) -> Failure {
        Failure { message: String::new(), code }
    }

    /// `check` and `diff` found something: exit code `code`.
    pub fn found(code: u8, message: impl std::fmt::Display) -> Failure {
        Failure { message: message.to_string(), code }
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        self.code
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

macro_rules! from {
    ($($t:ty),*) => {$(
        impl From<$t> for Failure {
            fn from(e: $t) -> Failure {
                Failure::new(e)
            }
        }
    )*};
}
from!(darner_store::Error, darner_fs::FsError, darner_fuse::Error, serde_json::Error);

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Failure {
        // What only says that something ran out: what it is, and by what it is limited.
        let what = match e.raw_os_error() {
            Some(libc::EAGAIN) => "no more threads can be started (limits of processes and memory: ulimit -u, -v)",
            Some(libc::ENOMEM) => "there is no more memory (limit: ulimit -v)",
            Some(libc::EMFILE) => "no more files can be opened (limit: ulimit -n)",
            Some(libc::EFBIG) => {
                "a file would be larger than may be (limit: ulimit -f, or the filesystem that it is on)"
            }
            _ => return Failure::new(e),
        };
        Failure::new(what)
    }
}

/// Says what was being done when an I/O error came.
pub trait Context<T> {
    /// `what` completes "can't …".
    fn cant(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: std::fmt::Display> Context<T> for std::result::Result<T, E> {
    fn cant(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Failure::new(format!("can't {}: {e}", what())))
    }
}
