//! A Bloom filter over a table's keys (Kirsch & Mitzenmacher 2006: two hashes make all). docs/format.md §Filter.

use crate::codec::hash_key;

const BITS_PER_KEY: usize = 10;
const PROBES: u32 = 6;

/// The filter of some keys' hashes.
pub fn build(hashes: &[u64]) -> Vec<u8> {
    let bits = (hashes.len() * BITS_PER_KEY).max(64).next_multiple_of(8);
    let mut filter = vec![0; bits / 8];
    for &h in hashes {
        for bit in probes(h, bits as u64) {
            filter[(bit / 8) as usize] |= 1 << (bit % 8);
        }
    }
    filter
}

/// Whether the key may be among them (false: surely not).
pub fn may_contain(filter: &[u8], key: &[u8]) -> bool {
    let bits = filter.len() as u64 * 8;
    bits == 0 || probes(hash_key(key), bits).all(|bit| filter[(bit / 8) as usize] & (1 << (bit % 8)) != 0)
}

fn probes(hash: u64, bits: u64) -> impl Iterator<Item = u64> {
    let step = hash.rotate_left(32) | 1;
    (0..PROBES).map(move |i| hash.wrapping_add(step.wrapping_mul(i.into())) % bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_found_and_few_others_are() {
        let keys: Vec<[u8; 8]> = (0..10_000u64).map(|i| i.to_be_bytes()).collect();
        let filter = build(&keys.iter().map(|k| hash_key(k)).collect::<Vec<_>>());
        assert!(keys.iter().all(|k| may_contain(&filter, k)));
        let wrong = (10_000..110_000u64).filter(|i| may_contain(&filter, &i.to_be_bytes())).count();
        assert!(wrong < 2_000, "{wrong} of 100000 false positives");
    }
}
