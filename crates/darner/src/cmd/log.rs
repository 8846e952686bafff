//! `darner log`

use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;

use super::human;
use crate::cli::Log;
use crate::control::{self, Request, Response};
use crate::error::{Failure, Result};
use crate::mounts;
use crate::place::Place;

pub fn run(c: &Log) -> Result<()> {
    let (mount, within) = mounts::containing(&c.path)?;
    let path = within.iter().map(|name| name.as_bytes().to_vec()).collect();
    let place = Place::at(&mount.source)?;
    let Response::Log(lines) = control::must_call(&place, &Request::Log { path, coalesce: !c.all })? else {
        return Err(Failure::new("the daemon gave an answer of another kind"));
    };
    if c.json {
        return super::print_json(&lines);
    }
    let mut out = String::new();
    for l in &lines {
        writeln!(out, "{}  {:<18}  {:>10}  {:<14} inode {}", l.when, l.tid, human(l.size), l.what, l.inode)
            .expect("strings take all");
    }
    super::print(&out)
}
