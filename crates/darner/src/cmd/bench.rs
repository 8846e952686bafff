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
    if c.growth {
        let (text, json) = bench::growth(&dir, &bench::GrowthOptions { quick: c.quick, long: c.long, mount_options })?;
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
