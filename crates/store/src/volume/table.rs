//! The table of a store's volumes, of which every volume has a copy. docs/format.md §Superblock.

use crate::codec::{Reader, put_bytes, put_varint};

/// What a volume is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeKind {
    /// A directory of files.
    Directory,
    /// An image file or block device.
    Raw,
}

/// What a store knows of one of its volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeEntry {
    /// Its number, never given to another.
    pub number: u16,
    /// What it is made of.
    pub kind: VolumeKind,
    /// It is being emptied: nothing new goes there.
    pub leaving: bool,
    /// Bytes that the store may use of it; 0: all there are.
    pub size_limit: u64,
    /// Where it was last (see [`super::Volume::hint`]).
    pub hint: Vec<u8>,
}

impl VolumeEntry {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.number.into());
        out.push(match self.kind {
            VolumeKind::Directory => 0,
            VolumeKind::Raw => 1,
        });
        out.push(self.leaving.into());
        put_varint(out, self.size_limit);
        put_bytes(out, &self.hint);
    }

    pub(crate) fn get(r: &mut Reader) -> Option<VolumeEntry> {
        let number = u16::try_from(r.varint()?).ok()?;
        let kind = match r.take(1)?[0] {
            0 => VolumeKind::Directory,
            1 => VolumeKind::Raw,
            _ => return None,
        };
        let leaving = match r.take(1)?[0] {
            0 => false,
            1 => true,
            _ => return None,
        };
        Some(VolumeEntry { number, kind, leaving, size_limit: r.varint()?, hint: r.bytes()?.to_vec() })
    }

    /// What users call it.
    pub fn name(&self) -> String {
        match self.hint.is_empty() {
            true => format!("volume {}", self.number),
            false => String::from_utf8_lossy(&self.hint).into_owned(),
        }
    }
}
