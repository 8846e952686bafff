//! `darner bench`: how fast, beside other filesystems on the same disk, and how speed changes as a store grows.
//!
//! Workloads are plain functions over a directory; they know nothing of the filesystem behind it. Systems are interleaved:
//! in each round each workload runs on every system in turn, first on another one each round, so that what else the
//! machine does hits all alike; what counts is the median of the rounds' ratios, not a time. An extra first round runs on
//! darner only, untimed, with counters attached: requests, bytes, wake-ups and CPU time per operation.
//!
//! Everything that is set up (mounts, loop devices, pools, daemons, files) has an owner that takes it down when dropped;
//! an interrupt only sets a flag, at which the running workload ends with an error.

mod btrfs;
mod compare;
mod darner;
mod data;
mod files;
mod growth;
mod mirror;
mod plain;
mod probe;
mod report;
mod shell;
mod snapshots;
mod sqlite;
mod stage;
mod steady;
mod streams;
mod system;
mod tree;
mod workloads;
mod zfs;

pub use compare::{Options, compare};
pub use growth::{Options as GrowthOptions, growth};
pub use mirror::{Options as MirrorOptions, mirror};
pub use snapshots::{Options as SnapshotOptions, snapshots};
pub use stage::catch_interrupts;
pub use steady::{Options as SteadyOptions, steady};
