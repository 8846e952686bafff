//! Filesystems as processes of their own. docs/vfs.md has the tutorial and every byte.
//!
//! ```text
//!  kernel ── Front ── Host ── syslink + Arena ── serve ── impl Vfs
//!            └── a host process of the caller's ──┘        └─ the plug-in's process, in a sandbox
//! ```
//!
//! Who writes a filesystem implements [`Vfs`] and calls [`serve`]. Who shows one makes a [`Host`], which starts the
//! plug-in, again if need be, and gives it to a [`Front`], which answers the kernel. A plug-in is believed nothing: what it
//! sends is checked, what it does not answer in time is answered without it, and bytes come out of memory that it can't
//! take away.

mod arena;
mod front;
#[cfg(test)]
mod fuzz;
mod host;
mod listing;
mod protocol;
mod running;
mod sandbox;
mod serve;
mod vfs;

pub use arena::{Arena, SLOT};
pub use darner_syslink::ConnectError as ServeError;
pub use front::Front;
pub use host::{Health, Host, Launch, Launched, Options, Process};
pub use listing::Listing;
pub use sandbox::{Limits, enter, leave_a_cpu};
pub use serve::{ARENA, FILES, LINK, files, refuse, serve, serve_over};
pub use vfs::{Attr, Errno, Info, New, ROOT, Result, Space, Vfs, Wanted};
