//! `darner detach`

use crate::attachments;
use crate::cli::Detach;
use crate::error::Result;
use crate::mounts;

pub fn run(c: &Detach) -> Result<()> {
    attachments::detach(&mounts::absolute(&c.directory)?, c.lazy)
}
