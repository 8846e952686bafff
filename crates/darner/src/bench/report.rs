//! From samples to medians of ratios, a table, and JSON.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};

use super::probe::{Counts, Disk};
use super::stage::{Sample, Scale};
use super::workloads::Workload;

/// What was run, on what.
pub struct Head {
    /// Kernel, CPUs, memory, disk.
    pub machine: String,
    /// What the files hold.
    pub data: Vec<String>,
    /// Names and descriptions; darner is the first.
    pub systems: Vec<(String, String)>,
    /// What is missing, and why.
    pub skipped: BTreeMap<String, String>,
    /// Timed rounds.
    pub rounds: u64,
    /// The kernel's caches could be emptied.
    pub cold: bool,
    /// Sizes.
    pub scale: Scale,
}

/// A workload's samples.
pub struct Line {
    /// Which.
    pub workload: &'static Workload,
    /// By system, by round.
    samples: Vec<BTreeMap<u64, Sample>>,
    /// By system.
    pub errors: Vec<Option<String>>,
    /// From darner's counted round.
    counted: Option<Sample>,
}

/// All.
pub struct Report {
    /// About the run.
    pub head: Head,
    /// In order.
    pub lines: Vec<Line>,
}

impl Line {
    /// An empty one.
    pub fn new(workload: &'static Workload, systems: usize) -> Line {
        Line { workload, samples: vec![BTreeMap::new(); systems], errors: vec![None; systems], counted: None }
    }

    /// Enters a sample; round 0 is the counted one.
    pub fn enter(&mut self, round: u64, system: usize, sample: Sample) {
        if round == 0 {
            self.counted = Some(sample);
        } else {
            self.samples[system].insert(round, sample);
        }
    }

    fn in_bytes(&self) -> bool {
        self.counted.iter().chain(self.samples.iter().flat_map(BTreeMap::values)).any(|s| s.bytes > 0)
    }

    fn rate(&self, system: usize) -> Option<f64> {
        median(self.samples[system].values().map(Sample::rate))
    }

    fn p50(&self, system: usize) -> Option<f64> {
        median(self.samples[system].values().filter_map(|s| s.p50_us))
    }

    /// The median of the rounds' ratios of darner's rate to this system's.
    fn ratio(&self, system: usize) -> Option<f64> {
        let pairs = self.samples[0].iter().filter_map(|(round, ours)| Some((ours, self.samples[system].get(round)?)));
        median(pairs.map(|(ours, theirs)| ours.rate() / theirs.rate()))
    }
}

/// The middle one.
pub fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let n = values.len();
    if n == 0 {
        return None;
    }
    Some(if n % 2 == 1 { values[n / 2] } else { (values[n / 2 - 1] * values[n / 2]).sqrt() })
}

fn geometric_mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let logs: Vec<f64> = values.map(f64::ln).collect();
    (!logs.is_empty()).then(|| (logs.iter().sum::<f64>() / logs.len() as f64).exp())
}

/// A rate as people read it.
pub fn rate(in_bytes: bool, per_second: f64) -> String {
    if in_bytes { format!("{:.0} MB/s", per_second / 1e6) } else { format!("{}/s", short(per_second)) }
}

/// Three digits or so.
fn short(n: f64) -> String {
    match n {
        n if n >= 1e7 => format!("{:.0}M", n / 1e6),
        n if n >= 1e6 => format!("{:.1}M", n / 1e6),
        n if n >= 1e5 => format!("{:.0}k", n / 1e3),
        n if n >= 1e4 => format!("{:.1}k", n / 1e3),
        n if n >= 100.0 => format!("{n:.0}"),
        n if n >= 10.0 => format!("{n:.1}"),
        n => format!("{n:.2}"),
    }
}

impl Report {
    fn peers(&self) -> std::ops::Range<usize> {
        1..self.head.systems.len()
    }

    fn mean(&self, system: usize) -> Option<f64> {
        geometric_mean(self.lines.iter().filter_map(|l| l.ratio(system)))
    }

    /// For the terminal.
    pub fn text(&self) -> String {
        let mut out = String::new();
        self.write_text(&mut out).expect("strings take all");
        out
    }

    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        let h = &self.head;
        writeln!(out, "{}", h.machine)?;
        for (name, about) in &h.systems {
            writeln!(out, "{name}: {about}")?;
        }
        for line in &h.data {
            writeln!(out, "{line}")?;
        }
        for (what, why) in &h.skipped {
            writeln!(out, "NOT MEASURED: {what}: {why}")?;
        }
        if !h.cold {
            writeln!(
                out,
                "NOT COLD: only root can empty the kernel's caches; darner is mounted anew, others keep theirs"
            )?;
        }
        writeln!(out, "{} rounds; × is the median of the rounds' ratios: above 1, darner is faster\n", h.rounds)?;
        self.write_rates(out)?;
        writeln!(
            out,
            "\n* answered by the kernel's caches, mostly. What darner did per operation, in a round of its own:\n"
        )?;
        self.write_counts(out)?;
        for line in &self.lines {
            for (system, error) in line.errors.iter().enumerate() {
                if let Some(error) = error {
                    writeln!(out, "FAILED: {} on {}: {error}", line.workload.name, h.systems[system].0)?;
                }
            }
        }
        Ok(())
    }

    fn write_rates(&self, out: &mut String) -> std::fmt::Result {
        write!(out, "{:<17}{:>12}", "", self.head.systems[0].0)?;
        for peer in self.peers() {
            write!(out, "{:>19}{:>8}", self.head.systems[peer].0, "×")?;
        }
        writeln!(out, "   median time of one, µs")?;
        for line in &self.lines {
            let star = if line.workload.cached { "*" } else { "" };
            write!(out, "{:<17}{:>12}", format!("{}{star}", line.workload.name), self.cell(line, 0))?;
            for peer in self.peers() {
                write!(out, "{:>19}{:>8}", self.cell(line, peer), number(line.ratio(peer)))?;
            }
            let p50: Vec<String> = (0..self.head.systems.len()).filter_map(|s| line.p50(s)).map(short).collect();
            writeln!(out, "   {}", p50.join(" / "))?;
        }
        write!(out, "{:<29}", "geometric mean")?;
        for peer in self.peers() {
            write!(out, "{:>19}{:>8}", "", number(self.mean(peer)))?;
        }
        writeln!(out)
    }

    fn cell(&self, line: &Line, system: usize) -> String {
        match (line.rate(system), &line.errors[system]) {
            (Some(r), None) => rate(line.in_bytes(), r),
            (Some(r), Some(_)) => format!("{} !", rate(line.in_bytes(), r)),
            (None, Some(_)) => "failed".into(),
            (None, None) => "-".into(),
        }
    }

    fn write_counts(&self, out: &mut String) -> std::fmt::Result {
        let columns = "requests  sleeps   CPU µs   disk: writes  flushes  B written   B read   requests by kind";
        writeln!(out, "{:<17} {columns}", "")?;
        for line in &self.lines {
            let Some((sample, c)) = line.counted.as_ref().and_then(|s| Some((s, s.counts.as_ref()?))) else {
                continue;
            };
            let per = |n: f64| short(n / sample.ops.max(1) as f64);
            let total = c.requests.as_ref().map(|r| r.iter().map(|(_, n)| n).sum::<u64>() as f64);
            let disk = |field: fn(&Disk) -> u64| c.disk.as_ref().map_or("?".into(), |d| per(field(d) as f64));
            writeln!(
                out,
                "{:<17}{:>9}{:>8}{:>9}{:>15}{:>9}{:>11}{:>9}   {}",
                line.workload.name,
                total.map_or("?".into(), per),
                per(c.sleeps as f64),
                per(c.cpu_seconds * 1e6),
                disk(|d| d.writes),
                disk(|d| d.flushes),
                disk(|d| d.write_bytes),
                disk(|d| d.read_bytes),
                kinds(c, sample.ops)
            )?;
        }
        Ok(())
    }

    /// Everything, each round too.
    pub fn json(&self) -> Value {
        let h = &self.head;
        let named = |f: &dyn Fn(usize) -> Value| -> Value {
            self.head
                .systems
                .iter()
                .enumerate()
                .map(|(i, (name, _))| (name.clone(), f(i)))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        let lines: Vec<Value> = self
            .lines
            .iter()
            .map(|l| {
                json!({
                    "workload": l.workload.name,
                    "what": l.workload.what,
                    "cold": l.workload.cold,
                    "kernel_cached": l.workload.cached,
                    "unit": if l.in_bytes() { "bytes/s" } else { "ops/s" },
                    "median": named(&|i| json!(l.rate(i))),
                    "rounds": named(&|i| json!(l.samples[i].values().map(Sample::rate).collect::<Vec<_>>())),
                    "seconds": named(&|i| json!(median(l.samples[i].values().map(|s| s.seconds)))),
                    "p50_us": named(&|i| json!(l.p50(i))),
                    "ratio": named(&|i| json!(l.ratio(i))),
                    "errors": named(&|i| json!(l.errors[i])),
                    "ops": l.counted.as_ref().map(|s| s.ops),
                    "darner_counts": l.counted.as_ref().map(|s| &s.counts),
                })
            })
            .collect();
        json!({
            "machine": h.machine,
            "systems": h.systems.iter().cloned().collect::<BTreeMap<_, _>>(),
            "data": h.data,
            "skipped": h.skipped,
            "rounds": h.rounds,
            "caches_dropped": h.cold,
            "scale": h.scale,
            "workloads": lines,
            "geometric_mean": named(&|i| json!(self.mean(i))),
        })
    }
}

fn number(n: Option<f64>) -> String {
    n.map_or("-".into(), |n| format!("{n:.2}"))
}

/// The five most frequent.
fn kinds(c: &Counts, ops: u64) -> String {
    let Some(requests) = &c.requests else {
        return String::new();
    };
    let shown = requests.iter().take(5).map(|(name, n)| format!("{name} {}", short(*n as f64 / ops.max(1) as f64)));
    shown.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_means_of_ratios_treat_twice_and_half_alike() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([2.0, 0.5].into_iter()), Some(1.0));
        assert_eq!(median(std::iter::empty()), None);
        let mean = geometric_mean([4.0, 0.25, 1.0].into_iter()).expect("three values");
        assert!((mean - 1.0).abs() < 1e-9);
    }

    #[test]
    fn only_rounds_in_which_both_ran_make_a_ratio() {
        let mut line = Line::new(&super::super::workloads::ALL[0], 2);
        let sample = |seconds| Sample { ops: 10, seconds, ..Sample::default() };
        line.enter(1, 0, sample(1.0));
        line.enter(2, 0, sample(1.0));
        line.enter(2, 1, sample(2.0));
        assert_eq!(line.ratio(1), Some(2.0));
    }
}
