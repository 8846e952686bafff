//! The `darner` command and daemon: thin edges around the store, the filesystem and FUSE. Decides nothing.

pub mod bench;
pub mod cli;
pub mod cmd;
pub mod control;
pub mod copy;
pub mod daemon;
pub mod errand;
pub mod error;
mod filesets;
pub mod frontend;
pub mod keeper;
pub mod listing;
pub mod memory;
mod mirroring;
mod mounting;
pub mod mounts;
pub mod nodes;
pub mod place;
mod reaper;
pub mod receipts;
mod retention;
mod scrub;
mod supervisor;
mod systemd;
mod volumes;
pub mod when;
pub mod xattr;
