//! The same bytes and choices in every run: nothing here depends on anything but a seed.

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone)]
pub struct Rng(u64);

impl Rng {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `n`; slightly uneven for huge `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// Bytes that no compressor shortens.
pub fn noise(seed: u64, bytes: &mut [u8]) {
    let mut rng = Rng::new(seed);
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&rng.next().to_le_bytes()[..chunk.len()]);
    }
}

const WORDS: [&str; 24] = [
    "let", "mut", "self", "index", "return", "segment", "value", "match", "if", "else", "for", "struct", "impl", "pub",
    "fn", "record", "key", "node", "while", "error", "state", "offset", "buffer", "length",
];
const MARKS: [&str; 8] = [" ", " ", " ", ".", "(", ") ", "_", ";\n    "];

/// Bytes that compress about as source code does.
pub fn text(seed: u64, bytes: &mut [u8]) {
    let mut rng = Rng::new(seed);
    let mut at = 0;
    while at < bytes.len() {
        let r = rng.next();
        for piece in [WORDS[(r % 24) as usize], MARKS[(r >> 32) as usize % 8]] {
            let n = piece.len().min(bytes.len() - at);
            bytes[at..at + n].copy_from_slice(&piece.as_bytes()[..n]);
            at += n;
        }
    }
}

/// Of a block, the first half noise, the second text.
pub fn mixed(seed: u64, bytes: &mut [u8]) {
    let (a, b) = bytes.split_at_mut(bytes.len() / 2);
    noise(seed, a);
    text(seed, b);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_text_is_text() {
        let (mut a, mut b) = ([0; 1001], [0; 1001]);
        mixed(7, &mut a);
        mixed(7, &mut b);
        assert_eq!(a, b);
        text(1, &mut a);
        assert!(a.is_ascii());
        let mut rng = Rng::new(1);
        assert!((0..100).all(|_| rng.below(10) < 10));
    }
}
