//! Decoders of the store: the first byte says which.
#![no_main]

use darner_store::fuzz;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((which, bytes)) = input.split_first() else { return };
    match which % 6 {
        0 => fuzz::chunk_map(bytes),
        1 => fuzz::a_frame(bytes.to_vec()),
        2 => fuzz::manifest(bytes.to_vec()),
        3 => fuzz::superblock(bytes),
        4 => fuzz::table(bytes.to_vec()),
        _ => fuzz::values(bytes),
    }
});
