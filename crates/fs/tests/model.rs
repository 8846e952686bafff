//! The filesystem against a plain model that keeps a whole tree per fileset and tid (`common/harness.rs`).
//!
//! Random operations, on filesets and clones that come and go, go to both; errno and effect must agree. After each, the live tree and randomly chosen earlier
//! trees, looked at as of their tids, must equal the model's. `DARNER_MODEL_OPS` sets how many operations (twice as
//! many as-of comparisons), which are shared among lives of some thousands each (comparing takes longer the more a tree holds)
//! and among the machine's cores; `DARNER_MODEL_SEED` replays one life. The store is re-opened now and then through a
//! closure, which may lose the newest transactions: the model then goes back to the tid that the store has.

mod common;
#[path = "common/harness.rs"]
mod harness;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use common::{new_disk, open_anew, open_store};
use darner_fs::Fs;
use darner_store::Store;
use harness::Harness;

/// Operations of a life, at most.
const LIFE: u64 = 3000;

#[test]
fn any_operations_leave_what_the_model_says_now_and_at_every_earlier_moment() {
    let ops: u64 = std::env::var("DARNER_MODEL_OPS").map_or(3000, |ops| ops.parse().expect("a number"));
    let seeds: Vec<u64> = match std::env::var("DARNER_MODEL_SEED") {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => [1, 2].into_iter().chain((2..ops.div_ceil(LIFE).max(3)).map(|_| fastrand::u64(..))).collect(),
    };
    let share = ops / seeds.len() as u64;
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let total = AtomicU64::new(0);
    let left = Mutex::new(seeds.into_iter());
    let live = || {
        while let Some(seed) = { left.lock().unwrap().next() } {
            let compared = match std::panic::catch_unwind(|| live_through(seed, share)) {
                Ok(compared) => compared,
                Err(panic) => {
                    eprintln!("failed with DARNER_MODEL_SEED={seed} DARNER_MODEL_OPS={share}");
                    std::panic::resume_unwind(panic);
                }
            };
            let total = total.fetch_add(compared, Ordering::Relaxed) + compared;
            println!("seed {seed}: {compared} as-of trees compared, {total} in all");
        }
    };
    std::thread::scope(|scope| {
        (0..cores).for_each(|_| drop(scope.spawn(live)));
    });
}

/// How many trees of the past were compared.
fn live_through(seed: u64, ops: u64) -> u64 {
    let disk = new_disk();
    let mut turn = 0;
    let mut reopen = |store: Arc<Store>| {
        turn += 1;
        match turn % 4 {
            0 => store.close().unwrap(),
            1 => store.sync().map(drop).unwrap(),
            // Killed: what is in memory only is lost.
            2 => {}
            // Killed with everything written, and the index made anew from the segments by one who only looks.
            _ => {
                store.sync().unwrap();
                let anew = open_anew(&disk);
                assert_eq!(anew.check().unwrap().findings, Vec::<String>::new());
                let before = Fs::open(store.clone()).unwrap().check().unwrap();
                assert_eq!(anew.check().unwrap(), before);
            }
        }
        drop(store);
        open_store(&disk)
    };
    let mut harness = Harness::new(seed, open_store(&disk), &mut reopen);
    harness.run(ops);
    harness.compared
}
