//! The few encodings that every structure on disk is made of: little-endian integers, LEB128 varints, seeded CRC-32C.
//!
//! Decoding never panics: a [`Reader`] answers `None` past its end. docs/format.md §Conventions.

/// Appends a varint (LEB128, at most 10 bytes).
pub fn put_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

/// Appends a signed number as a zigzag varint.
pub fn put_signed(out: &mut Vec<u8>, v: i64) {
    put_varint(out, ((v << 1) ^ (v >> 63)) as u64);
}

/// Appends bytes with their length before them.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads what the `put_*` functions wrote.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes }
    }

    /// What is not yet read.
    pub fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    /// Whether all is read.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The next `n` bytes.
    pub fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.bytes.split_at_checked(n)?;
        self.bytes = rest;
        Some(head)
    }

    /// One byte.
    pub fn u8(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    /// A little-endian u32.
    pub fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    /// A little-endian u64.
    pub fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    /// A varint.
    #[inline]
    pub fn varint(&mut self) -> Option<u64> {
        // Eight bytes at a time where there are as many: maps of chunks are full of numbers of four to six.
        if let Some(word) = self.bytes.first_chunk().map(|eight| u64::from_le_bytes(*eight))
            && let ends = !word & 0x8080_8080_8080_8080
            && ends != 0
        {
            let bits = ends.trailing_zeros() + 1;
            self.bytes = &self.bytes[bits as usize / 8..];
            let sevens = word & u64::MAX >> (64 - bits) & 0x7f7f_7f7f_7f7f_7f7f;
            let join = |v: u64, low: u64, by: u32| v & low | (v & !low) >> by;
            let twice = join(sevens, 0x007f_007f_007f_007f, 1);
            return Some(join(join(twice, 0x3fff_0000_3fff, 2), 0x0fff_ffff, 4));
        }
        self.long_varint()
    }

    /// One byte by byte.
    fn long_varint(&mut self) -> Option<u64> {
        let mut v = 0u64;
        for shift in (0..70).step_by(7) {
            let b = self.u8()?;
            if shift == 63 && b > 1 {
                return None;
            }
            v |= u64::from(b & 0x7f) << shift;
            if b & 0x80 == 0 {
                return Some(v);
            }
        }
        None
    }

    /// A zigzag varint.
    pub fn signed(&mut self) -> Option<i64> {
        let v = self.varint()?;
        Some((v >> 1) as i64 ^ -((v & 1) as i64))
    }

    /// Bytes behind their length.
    pub fn bytes(&mut self) -> Option<&'a [u8]> {
        let n = usize::try_from(self.varint()?).ok()?;
        self.take(n)
    }
}

/// A 64-bit finaliser (the constants of SplitMix64, Steele et al. 2014).
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// CRC-32C of bytes that belong at `offset` of region `region`: the place is part of the sum, so that bytes
/// that are intact but elsewhere (a misdirected or lost write) do not pass.
pub fn crc_at(region: u64, offset: u64, bytes: &[u8]) -> u32 {
    let seed = mix(region.rotate_left(40) ^ offset) as u32;
    crc32c::crc32c_append(seed, bytes)
}

/// Whether the last four bytes are the [`crc_at`] of those before.
pub fn is_sealed(bytes: &[u8], region: u64, offset: u64) -> bool {
    let parts = bytes.split_last_chunk::<4>();
    parts.is_some_and(|(body, crc)| crc_at(region, offset, body).to_le_bytes() == *crc)
}

/// 64-bit hash of a key for filters; part of the format.
pub fn hash_key(key: &[u8]) -> u64 {
    let mut h = 0x9e37_79b9_7f4a_7c15 ^ key.len() as u64;
    let mut words = key.chunks_exact(8);
    for w in &mut words {
        h = mix(h ^ u64::from_le_bytes(w.try_into().expect("8 bytes")));
    }
    let mut last = [0; 8];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    mix(h ^ u64::from_le_bytes(last)).wrapping_add(h)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_as_they_were_put() {
        let mut out = Vec::new();
        let values = [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX - 1, u64::MAX];
        for v in values {
            put_varint(&mut out, v);
            put_signed(&mut out, v as i64);
        }
        let mut r = Reader::new(&out);
        for v in values {
            assert_eq!(r.varint(), Some(v));
            assert_eq!(r.signed(), Some(v as i64));
        }
        assert!(r.is_empty());
        assert_eq!(r.varint(), None);
    }

    #[test]
    fn a_varint_is_the_same_read_at_once_and_byte_by_byte() {
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..100_000 {
            let bytes: Vec<u8> = (0..rng.usize(..14)).map(|_| rng.u8(..) | if rng.bool() { 0x80 } else { 0 }).collect();
            let (mut at_once, mut by_bytes) = (Reader::new(&bytes), Reader::new(&bytes));
            let found = at_once.varint();
            assert_eq!(found, by_bytes.long_varint(), "{bytes:x?}");
            assert!(found.is_none() || at_once.rest() == by_bytes.rest(), "{bytes:x?}");
        }
    }

    #[test]
    fn a_varint_of_more_than_64_bits_is_refused() {
        assert_eq!(Reader::new(&[0xff; 10]).varint(), None);
        assert_eq!(Reader::new(&[0xff; 3]).varint(), None);
    }
}
