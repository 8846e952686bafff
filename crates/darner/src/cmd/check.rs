//! `darner check`: exit code 0 sound, 1 damaged, as for other failures.

use std::sync::Arc;

use darner_fs::Fs;
use darner_store::{Error, IndexFrom, LISTED, OpenOptions, Store};

use super::{human, progress_bar};
use crate::cli::Check;
use crate::error::{Failure, Result};
use crate::place::{self, Place};
use crate::scrub::damage_line;

pub fn run(c: &Check) -> Result<()> {
    let place = Place::at(&c.store)?;
    let (volumes, _held) = place.hold(&c.volumes, false)?;
    let open = |index| {
        Store::open_volumes(&volumes, &OpenOptions { read_only: true, index, ..place::options() }).map(Arc::new)
    };
    let mut lost = None;
    let store = match open(IndexFrom::Tables) {
        Err(e @ (Error::Corrupt { .. } | Error::Io { .. })) => {
            lost = Some(format!(
                "the index can't be used: {e}; the next mount derives it anew from the segments, or darner rebuild does"
            ));
            match open(IndexFrom::Segments) {
                // A segment is damaged as well: the verdict says where.
                Err(e @ (Error::Corrupt { .. } | Error::Io { .. })) => open(IndexFrom::MarkedTables).map_err(|_| e)?,
                opened => opened?,
            }
        }
        opened => opened?,
    };
    let bar = progress_bar("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} eta {eta}");
    let mut report = store.check(&mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let fs = Fs::open(store)?;
    let names = fs.check()?;
    report.findings.extend(names.findings);
    report.findings.extend(lost);
    if report.mendable > 0 {
        report.findings.push(format!(
            "{} places are damaged in one of two copies: reading them, or darner scrub, writes them anew from the other",
            report.mendable
        ));
    }
    let damages: Vec<_> = report.damages.iter().take(LISTED).map(|d| damage_line(&fs, d)).collect();
    let found = report.findings.len() + report.damages.len();
    let sound = found == 0;
    if c.json {
        super::print_json(&serde_json::json!({
            "sound": sound,
            "segments": report.segments,
            "transactions": report.transactions,
            "records": report.records,
            "tables": report.tables,
            "versions": report.versions,
            "bytes": report.bytes,
            "objects": names.objects,
            "damaged": report.damages.len(),
            "damages": damages,
            "findings": report.findings,
        }))?;
    } else {
        for d in &damages {
            super::print(&super::scrub::damage(d))?;
        }
        if report.damages.len() > damages.len() {
            super::print(&format!("and {} more\n", report.damages.len() - damages.len()))?;
        }
        for f in &report.findings {
            super::print(&format!("{f}\n"))?;
        }
        super::print(&format!(
            "read {}: {} transactions with {} records in {} segments, {} versions in {} tables, {} objects in the live tree\n",
            human(report.bytes),
            report.transactions,
            report.records,
            report.segments,
            report.versions,
            report.tables,
            names.objects,
        ))?;
    }
    if sound { Ok(()) } else { Err(Failure::new(format!("{} is damaged: {found} findings", place.path.display()))) }
}
