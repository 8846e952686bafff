//! How full the filesystem is: a fileset with limits, as far as those.

use crate::error::Result;
use crate::fileset::Limits;
use crate::fs::Fs;
use crate::name::NAME_MAX;
use crate::node::Node;

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
    /// How full the store is or, if that is nearer, the node's fileset.
    pub fn statfs(&self, node: Node) -> Result<StatFs> {
        let usage = self.store.usage()?;
        let fileset = node.inode().fileset;
        let limits = self.live.read().get(fileset).map_or(Limits::default(), |fileset| fileset.limits);
        let held = self.store.counted(fileset);
        let (mut size, mut free) = (usage.size, usage.free);
        if limits.bytes != 0 {
            free = free.min(limits.bytes.saturating_sub(held.live));
            size = size.min(limits.bytes);
        }
        let (mut objects, mut files_free) = (usage.objects, free / FILE_COST);
        if limits.bytes != 0 || limits.objects != 0 {
            objects = held.objects;
        }
        if limits.objects != 0 {
            files_free = files_free.min(limits.objects.saturating_sub(held.objects));
        }
        Ok(StatFs {
            block: BLOCK as u32,
            blocks: size / BLOCK,
            free: free / BLOCK,
            files: objects + files_free,
            files_free,
            name_max: NAME_MAX as u32,
        })
    }
}
