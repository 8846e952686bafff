//! System use areas: entries of two letters, a length and a version, which may go on elsewhere (SUSP), and those of Rock Ridge
//! among them (RRIP).

use darner_vfs::{Errno, Result};

use super::record::{SECTOR, date, long_date};

/// Parts of an area elsewhere, at most: beyond, it is damage or a circle.
const PARTS_MAX: usize = 64;
/// Of a name, and of a link's target.
const NAME_MAX: usize = 255;
const TARGET_MAX: usize = 4095;

/// What Rock Ridge tells of a file.
#[derive(Clone, Debug, Default)]
pub(super) struct Extra {
    pub name: Vec<u8>,
    pub mode: Option<u32>,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub target: Vec<u8>,
    pub atime: Option<i64>,
    pub mtime: Option<i64>,
    pub ctime: Option<i64>,
    /// The block of the directory that belongs here.
    pub child: Option<u32>,
    /// This directory belongs elsewhere.
    pub moved: bool,
    /// The next part of the target continues the last one.
    pub joins: bool,
}

/// Whether the area of the root's first record begins as it must; what is to be skipped in all others.
pub(super) fn begins(area: &[u8]) -> Option<usize> {
    (area.len() >= 7 && area[..2] == *b"SP" && area[4..6] == [0xbe, 0xef]).then(|| area[6].into())
}

fn number(e: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(e.get(at..at + 4)?.try_into().ok()?))
}

impl Extra {
    /// `bytes` fetches what goes on elsewhere in the image.
    pub fn read(area: &[u8], bytes: impl Fn(u64, usize) -> Result<Vec<u8>>) -> Result<Extra> {
        let mut extra = Extra::default();
        let mut area = area.to_vec();
        for _ in 0..PARTS_MAX {
            let Some((at, len)) = extra.take(&area)? else { return Ok(extra) };
            area = bytes(at, len)?;
        }
        Err(Errno(libc::EIO))
    }

    /// Takes the entries of one part; says where it goes on.
    fn take(&mut self, area: &[u8]) -> Result<Option<(u64, usize)>> {
        let (mut rest, mut next) = (area, None);
        while rest.len() >= 4 {
            let len = usize::from(rest[2]);
            let Some(entry) = rest.get(..len).filter(|e| e.len() >= 4) else { break };
            rest = &rest[len..];
            match &entry[..2] {
                b"ST" => break,
                b"CE" => {
                    let place = number(entry, 4).zip(number(entry, 12)).zip(number(entry, 20));
                    let ((block, offset), len) = place.ok_or(Errno(libc::EIO))?;
                    next = Some((u64::from(block) * SECTOR + u64::from(offset), (len as usize).min(SECTOR as usize)));
                }
                _ => self.entry(entry).ok_or(Errno(libc::EIO))?,
            }
        }
        Ok(next)
    }

    /// `None`: it is too short, or too long.
    fn entry(&mut self, e: &[u8]) -> Option<()> {
        match &e[..2] {
            b"PX" => {
                (self.mode, self.nlink) = (Some(number(e, 4)?), number(e, 12)?);
                (self.uid, self.gid) = (number(e, 20)?, number(e, 28)?);
            }
            b"PN" => {
                // As old systems, or as the kernel's own encoding, have it.
                let (high, low) = (number(e, 4)?, number(e, 12)?);
                let (major, minor) = if high == 0 { (low >> 8, low & 0xff) } else { (high, low) };
                self.rdev = (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xfff00) << 12;
            }
            // (Bits 1 and 2: `.` and `..`.)
            b"NM" if e.get(4)? & 6 == 0 => {
                self.name.extend_from_slice(&e[5..]);
                return (self.name.len() <= NAME_MAX).then_some(());
            }
            b"SL" => return self.link(e.get(5..)?),
            b"TF" => self.times(*e.get(4)?, e.get(5..)?)?,
            b"CL" => self.child = Some(number(e, 4)?),
            b"RE" => self.moved = true,
            _ => {}
        }
        Some(())
    }

    /// Parts of a symbolic link's target.
    fn link(&mut self, mut parts: &[u8]) -> Option<()> {
        while let [flags, len, ..] = *parts {
            let text = parts.get(2..2 + usize::from(len))?;
            parts = &parts[2 + usize::from(len)..];
            let text: &[u8] = match flags & 0xe {
                2 => b".",
                4 => b"..",
                8 => b"",
                _ => text,
            };
            if !self.joins && !self.target.is_empty() && self.target != b"/" {
                self.target.push(b'/');
            }
            match flags & 8 {
                0 => self.target.extend_from_slice(text),
                _ => self.target = b"/".to_vec(),
            }
            self.joins = flags & 1 != 0;
            if self.target.len() > TARGET_MAX {
                return None;
            }
        }
        Some(())
    }

    fn times(&mut self, which: u8, mut rest: &[u8]) -> Option<()> {
        let len = if which & 0x80 != 0 { 17 } else { 7 };
        let read = if which & 0x80 != 0 { long_date } else { date };
        for bit in 0..7 {
            if which & 1 << bit == 0 {
                continue;
            }
            let time = Some(read(rest.get(..len)?));
            rest = &rest[len..];
            match bit {
                1 => self.mtime = time,
                2 => self.atime = time,
                3 => self.ctime = time,
                _ => {}
            }
        }
        Some(())
    }
}
