//! Digests of ranges of keys, by which a mirror and its source are compared.

mod common;

use common::World;
use darner_fs::{Digesting, ROOT};

/// A range that lies within another ends right behind its last key: `mirror verify` took the empty digest behind that for nonsense,
/// in every filesystem of more than 64 keys.
#[test]
fn digests_end_where_their_range_does_whatever_they_are_cut_into() {
    let mut w = World::new();
    for n in 0..40 {
        w.line(&format!("create f{n}"));
        w.line(&format!("write f{n} 'one'"));
    }
    let at = w.fs.store().tid();
    let ask = |from: &[u8], to: &[u8], run: u64, max: u64| {
        let asked = Digesting { from: from.into(), to: to.into(), at, run, max, data: true };
        w.fs.digests(ROOT, &asked, None).unwrap()
    };
    let single = ask(&[], &[], 1, 1000).digests;
    assert!(single.len() > 80, "{}", single.len());
    assert_eq!(single.last().unwrap().keys, 0, "the end");
    for last in [0, 1, 7, 63, 64, 80] {
        let to = &single[last].end;
        for (run, max) in [(1, 1000), (1, 3), (2, 2), (3, 1000), (64, 1), (last as u64 + 1, 1), (1000, 1000)] {
            let (mut from, mut keys, mut parts) = (Vec::new(), 0, 0);
            loop {
                let told = ask(&from, to, run, max);
                for d in told.digests {
                    assert!(d.end > from && d.end <= *to && d.keys > 0, "to key {last}, by {run}");
                    (from, keys, parts) = (d.end, keys + d.keys, parts + 1);
                }
                if !told.more {
                    break;
                }
            }
            assert_eq!((&from, keys), (to, last as u64 + 1));
            assert_eq!(parts, (last as u64 + 1).div_ceil(run));
        }
    }
}
