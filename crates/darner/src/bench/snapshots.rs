//! What a point in time costs: a file is overwritten in small pieces, with a point after each.
//!
//! Here a point is there anyway, with each commit; a label besides gives it a name. The peers take a read-only snapshot
//! each, by their own programs. Space is each filesystem's own account of what is in use, of metadata that Btrfs keeps
//! twice only once.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::btrfs::Btrfs;
use super::darner::Darner;
use super::data::{self, Rng};
use super::report::median;
use super::shell;
use super::stage::{self, go_on, note};
use super::system::{Room, System};
use super::zfs::ZfsFuse;
use crate::error::{Context, Failure, Result};

const PAGE: u64 = 4096;
const FILE_BYTES: u64 = 10 << 20;
/// Points looked at in the end.
const CHECKED: usize = 10;
/// Bytes of the peers' images.
const IMAGE: u64 = 4 << 30;

/// How much.
pub struct Options {
    /// A tenth.
    pub quick: bool,
    /// How often, each time on fresh filesystems.
    pub rounds: u64,
    /// Mount options for darner, joined by `+`.
    pub mount_options: String,
}

/// A filesystem that has points in time.
trait Points {
    /// The directory that they are of.
    fn live(&self) -> PathBuf;
    /// Makes one.
    fn point(&mut self, n: u64) -> Result<()>;
    /// What leads to it, if it was made just now.
    fn handle(&self, n: u64) -> Result<String>;
    /// A file of [`live`](Points::live) as it was then.
    fn read(&mut self, handle: &str) -> Result<Vec<u8>>;
    /// Bytes in use.
    fn used(&self) -> Result<u64>;
}

struct EachCommit(Darner);

impl Points for EachCommit {
    fn live(&self) -> PathBuf {
        self.0.dir().to_path_buf()
    }

    fn point(&mut self, _: u64) -> Result<()> {
        Ok(())
    }

    fn handle(&self, _: u64) -> Result<String> {
        Ok(self.0.status()?["tid"].as_str().ok_or_else(|| Failure::new("status tells no tid"))?.into())
    }

    fn read(&mut self, handle: &str) -> Result<Vec<u8>> {
        Ok(fs::read(self.live().join(format!("file@@{handle}")))?)
    }

    fn used(&self) -> Result<u64> {
        self.0.status()?["used_bytes"].as_u64().ok_or_else(|| Failure::new("status tells no used_bytes"))
    }
}

struct Labels(EachCommit);

impl Points for Labels {
    fn live(&self) -> PathBuf {
        self.0.live()
    }

    fn point(&mut self, n: u64) -> Result<()> {
        let (dir, label) = (self.live(), self.handle(n)?);
        self.0.0.command(&["snapshot".as_ref(), dir.as_os_str(), label.as_ref()]).map(drop)
    }

    fn handle(&self, n: u64) -> Result<String> {
        Ok(format!("point-{n}"))
    }

    fn read(&mut self, handle: &str) -> Result<Vec<u8>> {
        self.0.read(handle)
    }

    fn used(&self) -> Result<u64> {
        self.0.used()
    }
}

struct BtrfsSnapshots {
    btrfs: Btrfs,
    program: PathBuf,
}

impl BtrfsSnapshots {
    fn set_up(room: &Room) -> Result<BtrfsSnapshots> {
        let made = BtrfsSnapshots { program: shell::need("btrfs", "btrfs-progs")?, btrfs: Btrfs::set_up(room, IMAGE)? };
        made.run(&["subvolume".as_ref(), "create".as_ref(), made.live().as_os_str()])?;
        Ok(made)
    }

    fn run(&self, args: &[&OsStr]) -> Result<String> {
        shell::run(&self.program, args)
    }
}

impl Points for BtrfsSnapshots {
    fn live(&self) -> PathBuf {
        self.btrfs.dir().join("live")
    }

    fn point(&mut self, n: u64) -> Result<()> {
        let (from, to) = (self.live(), self.btrfs.dir().join(self.handle(n)?));
        self.run(&["subvolume".as_ref(), "snapshot".as_ref(), "-r".as_ref(), from.as_os_str(), to.as_os_str()])
            .map(drop)
    }

    fn handle(&self, n: u64) -> Result<String> {
        Ok(format!("point-{n}"))
    }

    fn read(&mut self, handle: &str) -> Result<Vec<u8>> {
        Ok(fs::read(self.btrfs.dir().join(handle).join("file"))?)
    }

    fn used(&self) -> Result<u64> {
        let text = self.run(&["filesystem".as_ref(), "df".as_ref(), "-b".as_ref(), self.btrfs.dir().as_os_str()])?;
        let lines = text.lines().filter(|l| !l.starts_with("GlobalReserve"));
        let used: Option<u64> = lines.map(|l| l.split_once("used=")?.1.trim().parse::<u64>().ok()).sum();
        used.filter(|n| *n > 0).ok_or_else(|| Failure::new("btrfs filesystem df tells no used="))
    }
}

struct ZfsSnapshots {
    zfs: ZfsFuse,
    /// Where a clone of a snapshot is mounted to be read.
    look: PathBuf,
}

impl Points for ZfsSnapshots {
    fn live(&self) -> PathBuf {
        self.zfs.dir().to_path_buf()
    }

    fn point(&mut self, n: u64) -> Result<()> {
        shell::run("zfs", ["snapshot", &self.handle(n)?]).map(drop)
    }

    fn handle(&self, n: u64) -> Result<String> {
        Ok(format!("{}@point-{n}", self.zfs.pool()))
    }

    fn read(&mut self, handle: &str) -> Result<Vec<u8>> {
        let clone = format!("{}/look", self.zfs.pool());
        let at = format!("mountpoint={}", self.look.display());
        shell::run("zfs", ["clone", "-o", &at, handle, &clone])?;
        let found = fs::read(self.look.join("file"));
        // Just after use it may still be busy for a moment.
        for _ in 0..50 {
            if shell::run("zfs", ["destroy", &clone]).is_ok() {
                return Ok(found?);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Err(Failure::new(format!("{clone} stays busy")))
    }

    fn used(&self) -> Result<u64> {
        let text = shell::run("zfs", ["get", "-Hp", "-o", "value", "used", self.zfs.pool()])?;
        text.trim().parse().map_err(|_| Failure::new(format!("zfs get used says {text:?}")))
    }
}

/// In the order of the report. The first two are ours.
const SYSTEMS: [&str; 4] = ["darner", "darner, labels", "btrfs", "zfs-fuse"];
const OURS: usize = 2;

fn set_up(which: usize, o: &Options, room: &Room) -> Result<Box<dyn Points>> {
    let ours = |name| Ok::<_, Failure>(EachCommit(Darner::set_up(name, None, &o.mount_options, room)?));
    Ok(match which {
        0 => Box::new(ours("darner")?),
        1 => Box::new(Labels(ours("darner-labels")?)),
        2 => Box::new(BtrfsSnapshots::set_up(room)?),
        _ => Box::new(ZfsSnapshots { zfs: ZfsFuse::set_up(room, IMAGE)?, look: room.dir("zfs-look")? }),
    })
}

/// What was measured.
#[derive(Clone, Copy)]
struct Cost {
    seconds: f64,
    bytes: f64,
}

/// Runs it; returns text and JSON.
pub fn snapshots(dir: &Path, o: &Options) -> Result<(String, Value)> {
    let points = if o.quick { 100 } else { 1_000 };
    let mut costs: Vec<Vec<Cost>> = vec![Vec::new(); SYSTEMS.len()];
    let mut skipped: BTreeMap<&str, String> = BTreeMap::new();
    for round in 0..o.rounds {
        for turn in 0..SYSTEMS.len() {
            let which = (turn + round as usize) % SYSTEMS.len();
            let name = SYSTEMS[which];
            // A room for each: what one has made does not stay beside the next.
            let room = Room::new(dir)?;
            match set_up(which, o, &room).and_then(|mut s| measure(&mut *s, points, round)) {
                Ok(cost) => {
                    note(&format!(
                        "round {}: {name:<16} {:.2} s, {:.2} MiB",
                        round + 1,
                        cost.seconds,
                        cost.bytes / f64::from(1 << 20)
                    ));
                    costs[which].push(cost);
                }
                Err(e) if which < OURS || stage::interrupted() => return Err(e),
                Err(e) => {
                    note(&format!("without {name}: {e}"));
                    skipped.insert(name, e.to_string());
                }
            }
        }
    }
    Ok(report(points, o.rounds, &costs, &skipped))
}

/// Overwrites and makes points, and looks at some of them.
fn measure(s: &mut dyn Points, points: u64, round: u64) -> Result<Cost> {
    let path = s.live().join("file");
    let mut model = vec![0; FILE_BYTES as usize];
    data::noise(round, &mut model);
    fs::write(&path, &model).cant(|| format!("write {}", path.display()))?;
    let file = OpenOptions::new().write(true).open(&path)?;
    file.sync_all()?;
    s.point(0)?;
    stage::write_out(&s.live())?;
    let before = s.used()?;
    let mut rng = Rng::new(round + 1);
    let picked: Vec<u64> = (0..CHECKED).map(|_| 1 + rng.below(points)).collect();
    let mut then: Vec<(String, Vec<u8>)> = Vec::new();
    let mut took = Duration::ZERO;
    for n in 1..=points {
        let at = rng.below(FILE_BYTES / PAGE) * PAGE;
        let bytes = &mut model[at as usize..][..PAGE as usize];
        data::noise(rng.next(), bytes);
        let start = Instant::now();
        file.write_all_at(bytes, at)?;
        file.sync_all()?;
        s.point(n)?;
        took += start.elapsed();
        if picked.contains(&n) {
            then.push((s.handle(n)?, model.clone()));
        }
        go_on()?;
    }
    drop(file);
    stage::write_out(&s.live())?;
    let after = s.used()?;
    for (handle, expected) in &then {
        if s.read(handle)? != *expected {
            return Err(Failure::new(format!("{handle} does not read back as it was")));
        }
    }
    if fs::read(&path)? != model {
        return Err(Failure::new("the file does not read back as it is"));
    }
    Ok(Cost { seconds: took.as_secs_f64(), bytes: after.saturating_sub(before) as f64 })
}

/// The median of the rounds' ratios of a system's cost to that of the better peer.
fn ratio(costs: &[Vec<Cost>], which: usize, what: fn(&Cost) -> f64) -> Option<f64> {
    let better = |round: usize| costs[OURS..].iter().filter_map(|c| c.get(round).map(what)).min_by(f64::total_cmp);
    median(costs[which].iter().enumerate().filter_map(|(round, c)| Some(what(c) / better(round)?)))
}

fn report(points: u64, rounds: u64, costs: &[Vec<Cost>], skipped: &BTreeMap<&str, String>) -> (String, Value) {
    let mut text = format!(
        "{points} overwrites of 4 KiB at random places of a file of 10 MiB, each with fsync and a point; {rounds} rounds\n"
    );
    for (name, why) in skipped {
        writeln!(text, "without {name}: {why}").expect("strings take all");
    }
    writeln!(
        text,
        "\n{:<20}{:>10}{:>12}{:>12}{:>16}{:>16}",
        "", "s", "ms each", "MiB", "time × better", "space × better"
    )
    .expect("strings take all");
    let mut lines = Vec::new();
    for (which, name) in SYSTEMS.iter().enumerate().filter(|(i, _)| !costs[*i].is_empty()) {
        let middle = |what: fn(&Cost) -> f64| median(costs[which].iter().map(what)).unwrap_or(0.0);
        let (seconds, bytes) = (middle(|c| c.seconds), middle(|c| c.bytes));
        let (time, space) = (ratio(costs, which, |c| c.seconds), ratio(costs, which, |c| c.bytes));
        let show = |r: Option<f64>| r.map_or("".into(), |r| format!("{r:.3}"));
        let (ms, mib) = (seconds * 1e3 / points as f64, bytes / f64::from(1 << 20));
        writeln!(text, "{name:<20}{seconds:>10.3}{ms:>12.3}{mib:>12.2}{:>16}{:>16}", show(time), show(space))
            .expect("strings take all");
        let rounds: Vec<_> = costs[which].iter().map(|c| json!({ "seconds": c.seconds, "bytes": c.bytes })).collect();
        lines.push(json!({
            "system": name, "seconds": seconds, "bytes": bytes, "time_ratio": time, "space_ratio": space, "rounds": rounds,
        }));
    }
    writeln!(text, "\n{CHECKED} random points of each were read back and are right").expect("strings take all");
    (text, json!({ "points": points, "points_checked": CHECKED, "skipped": skipped, "lines": lines }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_to_the_better_peer_of_the_same_round() {
        let cost = |seconds| Cost { seconds, bytes: 1.0 };
        let costs = [vec![cost(1.0), cost(2.0)], vec![], vec![cost(4.0), cost(9.0)], vec![cost(5.0), cost(8.0)]];
        assert_eq!(ratio(&costs, 0, |c| c.seconds), Some(0.25));
        assert_eq!(ratio(&costs, 1, |c| c.seconds), None);
    }
}
