//! `darner detach`

use crate::attachments;
use crate::cli::Detach;
use crate::error::{Failure, Result};
use crate::mounts;

pub fn run(c: &Detach) -> Result<()> {
    let directory = mounts::absolute(&c.directory)?;
    let within = attachments::below(&directory)?.pop().filter(|a| a.directory != directory);
    match within {
        Some(a) if !c.lazy => Err(Failure::new(format!(
            "{} is in use: something is attached to {}; detach that first",
            directory.display(),
            a.directory.display()
        ))),
        _ => attachments::detach(&directory, c.lazy),
    }
}
