//! `darner create`

use crate::cli::Create;
use crate::error::Result;
use crate::place::{self, Make};

pub fn run(c: &Create) -> Result<()> {
    let make = Make { size: c.size, image: c.image, force: c.force, existing_is_fine: false, ..Make::default() };
    let place = place::create(&c.store, &make)?;
    super::print(&format!("made an empty store in {}\n", place.path.display()))
}
