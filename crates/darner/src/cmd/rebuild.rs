//! `darner rebuild`

use std::time::Instant;

use darner_store::{IndexFrom, OpenOptions};

use super::{human, progress_bar};
use crate::cli::Rebuild;
use crate::error::Result;
use crate::place::{self, Place};
use crate::{reclaim, workers};

pub fn run(c: &Rebuild) -> Result<()> {
    let place = Place::at(&c.store)?;
    // (Where that is no use either, opening says why.)
    if place.is_dir() && !place.is_volume() && reclaim::reclaim(&c.store, None, false).is_ok() {
        eprintln!(
            "darner: {} had no valid superblock: what its newest manifest says was put there",
            place.path.display()
        );
    }
    let workers = workers::of(c.threads.unwrap_or_else(workers::cores));
    let options = OpenOptions { memory: c.memory, index: IndexFrom::Segments, workers, ..place::options() };
    let bar = progress_bar("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} eta {eta}");
    let start = Instant::now();
    let mut read = 0;
    let (store, _held) = place.open(&c.volumes, &options, &mut |a| {
        bar.set_length(a.total);
        bar.set_position(a.done);
        read = a.done;
    })?;
    bar.finish_and_clear();
    let took = start.elapsed();
    let (versions, index) = store.index_size();
    store.close()?;
    if c.json {
        return super::print_json(&serde_json::json!({
            "segment_bytes": read,
            "versions": versions,
            "index_bytes": index,
            "seconds": took.as_secs_f64(),
        }));
    }
    super::print(&format!(
        "read {} of segments in {:.1} s: {versions} versions, {} of index\n",
        human(read),
        took.as_secs_f64(),
        human(index)
    ))
}
