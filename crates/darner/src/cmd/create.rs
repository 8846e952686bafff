//! `darner create`

use crate::cli::Create;
use crate::error::Result;
use crate::making::{self, Make};
use crate::volumes::copies_of_new;

pub fn run(c: &Create) -> Result<()> {
    let make = Make {
        size: c.size,
        image: c.image,
        force: c.force,
        gpt: c.gpt,
        beside: c.volumes.clone(),
        copies: copies_of_new(c.copies.as_deref(), &c.volumes)?,
        ..Make::default()
    };
    let place = making::create(&c.store, &make)?;
    super::print(&format!("made an empty store in {}\n", place.path.display()))
}
