//! Runs the workloads on all systems in turn, and collects.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::darner::Darner;
use super::probe::{Probe, Tracing};
use super::report::{Head, Line, Report};
use super::stage::{self, Kit, Sample, Scale, Stage, note};
use super::system::{Room, System, set_up};
use super::workloads::{self, Workload};
use super::{plain, shell, tree};
use crate::error::{Failure, Result};

/// What to compare.
pub struct Options {
    /// Peers' names, as system.rs reads them.
    pub peers: Vec<String>,
    /// Workloads' names; none: all.
    pub only: Vec<String>,
    /// Timed rounds.
    pub rounds: u64,
    /// Small sizes.
    pub quick: bool,
    /// Mount options for darner, joined by `+`.
    pub mount_options: String,
}

/// Sets everything up in `dir`, runs, takes everything down, and returns the report as text and as JSON, and whether all
/// of darner's own workloads succeeded.
pub fn compare(dir: &Path, o: &Options) -> Result<(String, serde_json::Value, bool)> {
    let selected = workloads::select(&o.only).map_err(Failure::new)?;
    let scale = if o.quick { Scale::QUICK } else { Scale::FULL };
    let room = Room::new(dir)?;
    let _tracing = Tracing::new();
    let tar = tree::make_tar(&room, scale.tree_files)?;
    let sqlite = shell::find("sqlite3");
    let mut skipped = BTreeMap::new();
    if sqlite.is_none() {
        skipped.insert("sqlite-wal, sqlite-journal".into(), "sqlite3 is not installed".into());
    }
    let selected: Vec<_> =
        selected.into_iter().filter(|(w, _)| sqlite.is_some() || !w.name.starts_with("sqlite")).collect();
    let image = 3 * scale.file_bytes + (3 << 30);
    let mut systems: Vec<Box<dyn System>> = vec![Box::new(Darner::set_up("darner", None, &o.mount_options, &room)?)];
    for peer in &o.peers {
        note(&format!("setting up {peer}"));
        match set_up(peer, &room, image) {
            Ok(system) => systems.push(system),
            Err(e) if stage::interrupted() => return Err(e),
            Err(e) => {
                note(&format!("without {peer}: {e}"));
                skipped.insert(peer.clone(), e.to_string());
            }
        }
    }
    let head = Head {
        machine: machine(room.path()),
        data: vec![
            "large and mapped files: half incompressible, half text, by turns of 512 KiB (2 KiB where 4 KiB are written)".into(),
            "small files: 4 KiB of text each".into(),
            format!("tree: {} files, {}, {}", tar.files, crate::cmd::human(tar.bytes), tar.origin),
        ],
        systems: systems.iter().map(|s| (s.name().to_string(), s.about())).collect(),
        skipped,
        rounds: o.rounds,
        cold: stage::drop_caches(),
        scale,
    };
    let kit = Kit { tar: tar.path, tar_files: tar.files, sqlite };
    let mut lines: Vec<Line> =
        selected.iter().filter(|(_, named)| *named).map(|(w, _)| Line::new(w, systems.len())).collect();
    let mut run = Run { scale, kit, lines: &mut lines };
    for round in 0..=o.rounds {
        let start = Instant::now();
        for (workload, _) in &selected {
            // Round 0 is for the counters.
            let first = if round == 0 { 0 } else { round as usize % systems.len() };
            let count = if round == 0 { 1 } else { systems.len() };
            for turn in 0..count {
                let which = (first + turn) % systems.len();
                run.one(round, workload, which, &mut *systems[which])?;
            }
        }
        note(&format!("round {round} took {:.0} s", start.elapsed().as_secs_f64()));
    }
    let report = Report { head, lines };
    let fine = report.lines.iter().all(|l| l.errors[0].is_none());
    Ok((report.text(), report.json(), fine))
}

struct Run<'a> {
    scale: Scale,
    kit: Kit,
    lines: &'a mut [Line],
}

impl Run<'_> {
    /// Only an interrupt ends the whole; other errors are entered into the report.
    fn one(&mut self, round: u64, w: &'static Workload, which: usize, system: &mut dyn System) -> Result<()> {
        let outcome = self.attempt(round, w, system);
        if stage::interrupted() {
            return Err(Failure::new("interrupted"));
        }
        let line = self.lines.iter_mut().find(|l| l.workload.name == w.name);
        match outcome {
            Ok(sample) => {
                let p50 = sample.p50_us.map_or(String::new(), |us| format!(" (p50 {us:.0} µs)"));
                let rate = super::report::rate(sample.bytes > 0, sample.rate());
                note(&format!("round {round}: {:<15} {:<10} {rate}{p50}", w.name, system.name()));
                if let Some(line) = line {
                    line.enter(round, which, sample);
                }
            }
            Err(e) => {
                note(&format!("round {round}: {:<15} {:<10} FAILED: {e}", w.name, system.name()));
                if let Some(line) = line {
                    line.errors[which] = Some(e.to_string());
                }
            }
        }
        Ok(())
    }

    fn attempt(&self, round: u64, w: &Workload, system: &mut dyn System) -> Result<Sample> {
        if w.cold || !system.is_mounted() {
            system.remount()?;
        }
        if !system.is_mounted() {
            return Err(Failure::new("it is not mounted"));
        }
        if w.cold {
            stage::drop_caches();
            // What is looked up on the way to the mount is not what is measured.
            std::fs::metadata(system.dir())?;
        }
        let probe = if round == 0 { system.daemon().map(|pid| Probe::new(pid, &self.kit.tar)) } else { None };
        let stage = Stage { dir: system.dir(), scale: &self.scale, kit: &self.kit, round, probe: probe.as_ref() };
        Ok((w.run)(&stage)?)
    }
}

fn machine(place: &Path) -> String {
    let read = |p: &str| std::fs::read_to_string(p).unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = read("/proc/meminfo").split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok()).unwrap_or(0);
    format!(
        "Linux {}, {cpus} CPUs, {} of memory, on {} ({})",
        read("/proc/sys/kernel/osrelease").trim(),
        crate::cmd::human(memory * 1024),
        place.parent().map_or_else(PathBuf::new, Path::to_path_buf).display(),
        plain::kind_of(place)
    )
}
