//! Man pages and completions, made from the command line's definition.

use clap::CommandFactory;

use crate::cli::{Cli, Completions, Man};
use crate::error::{Context, Result};

pub fn pages(c: &Man) -> Result<()> {
    std::fs::create_dir_all(&c.directory).cant(|| format!("make {}", c.directory.display()))?;
    clap_mangen::generate_to(Cli::command(), &c.directory).cant(|| format!("write to {}", c.directory.display()))
}

pub fn completions(c: &Completions) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(c.shell, &mut Cli::command(), "darner", &mut text);
    super::print(&String::from_utf8_lossy(&text))
}
