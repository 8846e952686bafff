//! `darner bench`

use std::path::PathBuf;

use crate::bench;
use crate::cli::Bench;
use crate::error::{Failure, Result};

pub fn run(c: &Bench) -> Result<()> {
    bench::catch_interrupts();
    // Not the default for temporary files: /tmp may be memory.
    let dir = c.dir.clone().unwrap_or_else(|| PathBuf::from("."));
    let mount_options = c.options.join("+");
    let quick = c.quick;
    let other = if let Some(of) = c.growth {
        let options = bench::GrowthOptions { of, quick, long: c.long, mount_options: mount_options.clone() };
        Some(bench::growth(&dir, &options)?)
    } else if c.snapshots {
        let rounds = c.rounds.unwrap_or(if quick { 1 } else { 3 });
        let options = bench::SnapshotOptions { quick, rounds, mount_options: mount_options.clone() };
        Some(bench::snapshots(&dir, &options)?)
    } else if c.mirror {
        let rounds = c.rounds.unwrap_or(if quick { 1 } else { 3 });
        let options = bench::MirrorOptions { quick, rounds, mount_options: mount_options.clone() };
        Some(bench::mirror(&dir, &options)?)
    } else if c.steady {
        let rounds = c.rounds.unwrap_or(if quick { 4 } else { 10 });
        let options = bench::SteadyOptions { quick, rounds, mount_options: mount_options.clone() };
        Some(bench::steady(&dir, &options)?)
    } else {
        None
    };
    if let Some((text, json)) = other {
        return if c.json { super::print_json(&json) } else { super::print(&text) };
    }
    let rounds = c.rounds.unwrap_or(if c.quick { 2 } else { 5 });
    let options =
        bench::Options { peers: c.peers.clone(), only: c.only.clone(), rounds, quick: c.quick, mount_options };
    let (text, json, fine) = bench::compare(&dir, &options)?;
    if c.json {
        super::print_json(&json)?;
    } else {
        super::print(&text)?;
    }
    if fine { Ok(()) } else { Err(Failure::new("not all workloads succeeded on darner")) }
}
