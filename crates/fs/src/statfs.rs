//! How full the filesystem is.

use crate::error::Result;
use crate::fs::Fs;
use crate::name::NAME_MAX;

/// The answer to statfs(2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StatFs {
    /// Bytes per block.
    pub block: u32,
    /// Blocks there are.
    pub blocks: u64,
    /// Blocks free, and as many available to everybody.
    pub free: u64,
    /// Objects there could be.
    pub files: u64,
    /// Objects that could still be made.
    pub files_free: u64,
    /// Longest name.
    pub name_max: u32,
}

const BLOCK: u64 = 4096;
/// About what a small file costs, for a guess at how many fit.
const FILE_COST: u64 = 512;

impl Fs {
    /// How full the filesystem is.
    pub fn statfs(&self) -> Result<StatFs> {
        let usage = self.store.usage()?;
        let files_free = usage.free / FILE_COST;
        Ok(StatFs {
            block: BLOCK as u32,
            blocks: usage.size / BLOCK,
            free: usage.free / BLOCK,
            files: usage.objects + files_free,
            files_free,
            name_max: NAME_MAX as u32,
        })
    }
}
