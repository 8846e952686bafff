//! The FUSE kernel protocol, and nothing else: bytes from `/dev/fuse` become [`Request`]s, [`Reply`]s become bytes.
//!
//! This crate knows no inode, path or store. It decides nothing: what an operation means is the [`Handler`]'s matter.
//!
//! ```text
//!  mount ──► fd ──► Session::init / Session::adopt ──► Session::run(threads, poll, handler)
//!                            │                                 │ leader reads, decodes, calls
//!                        Notifier                    Handler::handle(Request, Reply, Ctx)
//! ```
//!
//! Written from the kernel's interface (`include/uapi/linux/fuse.h`, 7.45); the oldest kernel served is 7.31 (Linux 5.4).

#[cfg(not(target_os = "linux"))]
compile_error!("darner-fuse speaks to Linux's /dev/fuse");

pub mod abi;
mod awake;
mod buffer;
mod caller;
mod decode;
mod dir;
mod error;
mod fusermount;
mod mount;
mod negotiate;
mod notify;
mod operation;
mod refuse;
mod reply;
mod request;
mod serve;
mod session;
mod token;
mod types;

pub use caller::is_dying;
pub use dir::DirBuffer;
pub use error::Error;
pub use mount::{MountOptions, mount, remount, set_readahead, unmount};
pub use negotiate::{Config, Negotiated};
pub use notify::Notifier;
pub use operation::{Forgets, Ioctl, Operation, SetTime, Setattr};
pub use refuse::{refuse_all, resend};
pub use reply::{DeferredReply, Reply};
pub use request::{Dialect, Malformed, Request};
pub use serve::{Ctx, Ended, Handler};
pub use session::{Session, Stopper};
pub use types::{Attr, Entry, FileLock, Opened, Statfs, Statx, Time};
