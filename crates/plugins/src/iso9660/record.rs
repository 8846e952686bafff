//! Directory records: ECMA-119 §9.1.

use darner_vfs::{Errno, Result};

/// Bytes of a sector, and of a block: what differs from that is not read.
pub(super) const SECTOR: u64 = 2048;

/// Bytes before the name.
const HEAD: usize = 33;

#[derive(Clone, Debug)]
pub(super) struct Record {
    pub block: u32,
    pub len: u64,
    /// Nanoseconds since 1970.
    pub time: i64,
    pub is_dir: bool,
    /// The next record has more of the file.
    pub goes_on: bool,
    pub interleaved: bool,
    pub name: Vec<u8>,
}

impl Record {
    /// The one that `bytes` begin with.
    pub fn parse(bytes: &[u8]) -> Option<Record> {
        let len = usize::from(*bytes.first()?);
        let r = bytes.get(..len).filter(|r| r.len() > HEAD)?;
        let number = |at: usize| u32::from_le_bytes([r[at], r[at + 1], r[at + 2], r[at + 3]]);
        let name = r.get(HEAD..HEAD + usize::from(r[32]))?.to_vec();
        Some(Record {
            // Attributes of its own come first.
            block: number(2).checked_add(r[1].into())?,
            len: number(10).into(),
            time: date(&r[18..25]),
            is_dir: r[25] & 2 != 0,
            goes_on: r[25] & 0x80 != 0,
            interleaved: r[26] != 0,
            name,
        })
    }

    /// Where its bytes are in the image.
    pub fn place(&self) -> Result<u64> {
        if self.interleaved { Err(Errno(libc::EIO)) } else { Ok(u64::from(self.block) * SECTOR) }
    }

    pub fn is_dot(&self) -> bool {
        self.name == [0] || self.name == [1]
    }

    /// What follows the name in the record that `bytes` begin with.
    pub fn system_use<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        let from = HEAD + self.name.len() + (self.name.len() + 1) % 2;
        bytes.get(from..usize::from(bytes[0])).unwrap_or_default()
    }

    pub fn plain_name(&self) -> Vec<u8> {
        let name = self.name.split(|b| *b == b';').next().unwrap_or_default();
        name.strip_suffix(b".").unwrap_or(name).to_ascii_lowercase()
    }

    pub fn joliet_name(&self) -> Vec<u8> {
        let units: Vec<u16> = self.name.chunks_exact(2).map(|c| u16::from_be_bytes([c[0], c[1]])).collect();
        let name = String::from_utf16_lossy(&units);
        name.strip_suffix(";1").unwrap_or(&name).as_bytes().to_vec()
    }
}

/// Nanoseconds since 1970 of a date in the short form.
pub(crate) fn date(d: &[u8]) -> i64 {
    let [year, month, day, hour, minute, second] = [0, 1, 2, 3, 4, 5].map(|n| i64::from(d[n]));
    if month == 0 {
        return 0;
    }
    let zone = i64::from(d[6] as i8) * 15 * 60;
    (days(1900 + year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - zone) * 1_000_000_000
}

/// Nanoseconds since 1970 of a date in the long form: 16 digits and a zone.
pub(super) fn long_date(d: &[u8]) -> i64 {
    let digits =
        |from: usize, to: usize| d[from..to].iter().fold(0, |n: i64, b| n * 10 + i64::from(b.wrapping_sub(b'0') % 10));
    let (month, zone) = (digits(4, 6), i64::from(d[16] as i8) * 15 * 60);
    if month == 0 {
        return 0;
    }
    let seconds = digits(8, 10) * 3600 + digits(10, 12) * 60 + digits(12, 14) - zone;
    (days(digits(0, 4), month, digits(6, 8)) * 86_400 + seconds) * 1_000_000_000 + digits(14, 16) * 10_000_000
}

/// Days since 1970 in the Gregorian calendar.
fn days(year: i64, month: i64, day: i64) -> i64 {
    // Years that begin in March end with the leap day.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    y * 365 + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (m * 153 + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(&[70, 1, 1, 0, 0, 0, 0]), 0);
        assert_eq!(date(&[100, 2, 29, 12, 0, 0, 0]) / 1_000_000_000, 951_825_600);
        assert_eq!(date(&[126, 11, 28, 16, 0, 0, 4]) / 1_000_000_000, 1_795_878_000);
        assert_eq!(long_date(b"2026112816000050\x04"), 1_795_878_000_500_000_000);
        assert_eq!((date(&[0; 7]), long_date(&[b'0'; 17])), (0, 0));
    }
}
