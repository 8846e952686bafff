//! Rot in the index of a mounted store: the next daemon derives it anew, and what people are told until then.

use std::time::Duration;

use crate::cmd::quoted;
use crate::daemon::Daemon;
use crate::error::Result;
use crate::keeper;

/// Programs may wait for so long without anybody having been asked.
const AT_ONCE: Duration = Duration::from_secs(30);

impl Daemon {
    /// A table of the index was found to be damaged, and the next open knows. Where that takes little time, another daemon begins now.
    pub(crate) fn heal_index(&self) -> Result<()> {
        let Some(time) = self.store().index_rot()?.and_then(|rot| rot.derive) else { return Ok(()) };
        if time > AT_ONCE || !self.keeper.is_there() || self.is_closing() {
            return Ok(());
        }
        self.fs.sync()?;
        tracing::warn!("another daemon derives the index anew; programs wait some {} s for it", time.as_secs());
        match self.keeper.next(keeper::program()?)? {}
    }

    /// What `status` says of it.
    pub(crate) fn rot_warning(&self) -> Result<Option<String>> {
        let Some(rot) = self.store().index_rot()? else { return Ok(None) };
        let what =
            format!("the index is damaged (tables: {}), and what needs that part of it fails with EIO", rot.tables);
        let path = quoted(&self.path());
        let to_do = match rot.derive {
            Some(time) if self.keeper.is_there() => format!(
                "`darner upgrade {path}` derives it anew from the segments, while programs wait (some {} s); so does the next mount",
                time.as_secs()
            ),
            Some(_) => "the next mount derives it anew from the segments".into(),
            None if self.store().is_read_only() => "a mount that may write derives it anew from the segments".into(),
            None => format!("`darner check {path}` tells what else is damaged or missing"),
        };
        Ok(Some(format!("{what}; {to_do}")))
    }
}
