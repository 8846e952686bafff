//! Retention as people write it, and what of the past is visible. The rules are the store's (`darner_store::retain`).
//!
//! A grid is steps `EVERY:HOW-LONG`: `all:2d 1h:1w 1d:forever`. A day is 24 hours, a week 7 days; how long a month lasts is 30
//! days, a year 365; points lie at multiples of EVERY in UTC, those of weeks on Mondays, and a month between points is four weeks, a
//! year 52: so those of a coarser grid are among those that a finer one has left.

use std::sync::Arc;

use darner_store::{FilesetId, Grid, Pin, Retention, Step, Tid, WhenFull, retain::FOREVER};

use jiff::tz::TimeZone;

use crate::error::{FsError, Result, refuse};
use crate::fs::Fs;
use crate::node::{MAIN, Node, ROOT};
use crate::when;

const SECOND: u64 = 1_000_000_000;
/// Units of how long points stay, seconds. Largest first, so that text uses the largest unit that fits.
const UNITS: [(char, u64); 7] =
    [('y', 365 * 86400), ('M', 30 * 86400), ('w', 7 * 86400), ('d', 86400), ('h', 3600), ('m', 60), ('s', 1)];
/// Units of what is between points.
const SPACES: [(char, u64); 7] =
    [('y', 364 * 86400), ('M', 28 * 86400), ('w', 7 * 86400), ('d', 86400), ('h', 3600), ('m', 60), ('s', 1)];

/// The grid offered to those who want one.
pub const OFFERED: &str = "all:1d 30s:1h 1m:1d 1h:1w 1d:1M 1w:forever";

/// What is said of a moment that was given up.
const GIVEN_UP: FsError = FsError::new(libc::ESTALE, "this moment is not kept any more");

/// Reads a grid: steps, or one of `forever`, `none` and `default`.
pub fn parse_grid(text: &str) -> Result<Grid> {
    match text.trim() {
        "forever" => return Ok(Grid::forever()),
        "none" => return Ok(Grid::default()),
        "default" => return parse_grid(OFFERED),
        _ => {}
    }
    let is = "a grid is steps like all:2d 1h:1w 1d:forever (every so often : for so long; units s m h d w M y), or forever, none, default";
    let steps: Result<Vec<Step>, &str> = text.split_whitespace().map(|text| step(text).ok_or(text)).collect();
    match steps {
        Ok(steps) if !steps.is_empty() => Ok(Grid { steps }),
        Ok(_) => refuse(libc::EINVAL, is),
        Err(wrong) => Err(FsError::told(libc::EINVAL, format!("{wrong:?} is no step of a grid: {is}"))),
    }
}

fn step(text: &str) -> Option<Step> {
    let (every, lasts) = text.split_once(':')?;
    let every = if every == "all" { 0 } else { duration(every, &SPACES)? };
    let lasts = if lasts == "forever" { FOREVER } else { duration(lasts, &UNITS)? };
    Some(Step { every, lasts })
}

/// `90s`, `1d`: nanoseconds, at least a second.
fn duration(text: &str, units: &[(char, u64)]) -> Option<u64> {
    let unit = text.chars().last()?;
    let (_, secs) = units.iter().find(|(u, _)| *u == unit)?;
    let n: u64 = text[..text.len() - unit.len_utf8()].parse().ok()?;
    n.checked_mul(*secs)?.checked_mul(SECOND).filter(|ns| (1..FOREVER).contains(ns))
}

/// A grid as people write it.
pub fn grid_text(grid: &Grid) -> String {
    if grid.steps.is_empty() {
        return "none".into();
    }
    if *grid == Grid::forever() {
        return "forever".into();
    }
    let steps: Vec<String> = grid.steps.iter().map(step_text).collect();
    steps.join(" ")
}

/// A step as people write it.
pub fn step_text(s: &Step) -> String {
    let every = if s.every == 0 { "all".into() } else { duration_text(s.every, &SPACES) };
    let lasts = if s.lasts == FOREVER { "forever".into() } else { duration_text(s.lasts, &UNITS) };
    format!("{every}:{lasts}")
}

fn duration_text(ns: u64, units: &[(char, u64)]) -> String {
    let secs = ns / SECOND;
    let (unit, n) = units.iter().find(|(_, n)| secs.is_multiple_of(*n)).copied().unwrap_or(('s', 1));
    format!("{}{unit}", secs / n)
}

/// Which moment something as of `tid` shows, and whether it is an exact one.
pub(crate) fn describe(retention: &Retention, tid: Tid, zone: &TimeZone) -> String {
    let name = when::name(tid, zone).unwrap_or_default();
    let how = match tid >= retention.horizon() {
        true => "exact",
        false => "a retained point: what is asked for between it and the next one rounds down to it",
    };
    format!("{tid} {name} ({how})")
}

impl Fs {
    /// What is kept of a fileset's past.
    pub fn retention(&self, fileset: FilesetId) -> Result<Arc<Retention>> {
        Ok(self.store.retention(fileset)?)
    }

    /// Changes what is kept from now on. Nothing is given up before the cleaner comes by.
    pub fn retain(
        &self,
        fileset: FilesetId,
        grid: Option<Grid>,
        when_full: Option<WhenFull>,
        now_ns: u64,
    ) -> Result<Arc<Retention>> {
        Ok(self.store.retain(fileset, now_ns, |r| {
            let mut next = r.with_grid(grid.unwrap_or_else(|| r.grid.clone()));
            next.when_full = when_full.unwrap_or(r.when_full);
            next
        })?)
    }

    /// The moment that is shown when `at` is asked for: the newest one not after it that is kept, and can be looked at.
    pub fn shown(&self, fileset: FilesetId, at: Tid) -> Result<Option<Tid>> {
        match self.store.retention(fileset)?.round(at) {
            Some(kept) => self.whole(fileset, kept),
            None => Ok(None),
        }
    }

    /// Fails for what is as of a moment that was given up since it was looked up: its records may be gone in part.
    pub(crate) fn check_kept(&self, node: Node) -> Result<()> {
        match node {
            Node::AsOf(ino, tid) if self.shown(ino.fileset, tid)? != Some(tid) => Err(GIVEN_UP),
            _ => Ok(()),
        }
    }

    /// A node of another object found in a node's directory: at the same moment, or where that belongs to another fileset,
    /// at the moment that one keeps.
    pub(crate) fn found_beside(&self, node: Node, ino: crate::Inode) -> Result<Node> {
        match self.kept_beside(node, ino)? {
            Some(found) => Ok(found),
            None => refuse(libc::ENOENT, "nothing of the fileset is kept from so long ago"),
        }
    }

    /// The same; `None` if that one keeps none.
    pub(crate) fn kept_beside(&self, node: Node, ino: crate::Inode) -> Result<Option<Node>> {
        match node.beside(ino) {
            Node::AsOf(ino, tid) if ino.fileset != node.inode().fileset => {
                Ok(self.shown(ino.fileset, tid)?.map(|shown| Node::AsOf(ino, shown)))
            }
            beside => Ok(Some(beside)),
        }
    }

    /// Keeps what a node of the past shows while the pin lives; `None` for the present.
    pub fn pin(&self, node: Node) -> Result<Option<Pin>> {
        match node {
            Node::AsOf(ino, tid) => self.store.pin(ino.fileset, tid)?.map(Some).ok_or(GIVEN_UP),
            _ => Ok(None),
        }
    }

    /// Keeps what is seen from a node of the past while the pins live: with its own moment, if it is the main root, those of the other
    /// filesets to which that leads. None for the present.
    pub fn pin_all(&self, node: Node) -> Result<Vec<Pin>> {
        let mut pins: Vec<Pin> = self.pin(node)?.into_iter().collect();
        let Node::AsOf(ROOT, tid) = node else { return Ok(pins) };
        // (What is of removed ones, the main one's pin keeps.)
        for (other, _) in self.filesets().into_iter().filter(|(f, _)| f.id != MAIN) {
            // What is given up in between is looked for again.
            while let Some(shown) = self.shown(other.id, tid)? {
                if let Some(pin) = self.store.pin(other.id, shown)? {
                    pins.push(pin);
                    break;
                }
            }
        }
        Ok(pins)
    }

    /// As [`Fs::pin`], for what the process before this one had pinned until it ended; before anything can be given up.
    pub fn hold(&self, (fileset, tid): (FilesetId, Tid)) -> Pin {
        self.store.hold(fileset, tid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_are_read_as_people_write_them_and_written_so_again() {
        for text in ["all:2d 1h:1w 1d:forever", "30s:1h 1m:1d 1h:1w 1d:1M 1w:forever", "forever", "none", "90s:2y"] {
            assert_eq!(grid_text(&parse_grid(text).unwrap()), text);
        }
        assert_eq!(parse_grid("all:forever").unwrap(), Grid::forever());
        assert_eq!(grid_text(&parse_grid("4w:1M 52w:1y 30d:30d").unwrap()), "1M:1M 1y:1y 30d:1M");
        assert_eq!(grid_text(&parse_grid("default").unwrap()), OFFERED);
        for text in ["", "1h", "1h:", ":1h", "0s:1h", "1x:1h", "1h:-1d", "all", "99999999999y:1h", "1é:1h"] {
            assert!(parse_grid(text).is_err(), "{text}");
        }
        let said = parse_grid("all:1d 1h:1q 1d:forever").unwrap_err().to_string();
        assert!(said.starts_with("\"1h:1q\" is no step"), "{said}");
    }

    #[test]
    fn of_weekly_points_a_monthly_grid_keeps_those_of_every_fourth_week_and_says_how_many() {
        let day = 86_400 * SECOND;
        let now = Tid(20_000 * day + 12_345);
        let weekly = Retention::default().with_grid(parse_grid("all:1w 1w:forever").unwrap()).advanced(now);
        let left = |grid: &str| {
            let after = weekly.with_grid(parse_grid(grid).unwrap()).advanced(Tid(now.0 + day));
            after.grid.steps.iter().find(|s| s.every > 0).unwrap().points_kept(&after, Tid(now.0 - 400 * day), now)
        };
        assert_eq!(left("all:1w 1w:forever"), 57);
        assert_eq!(left("all:1w 1M:forever"), 15);
        assert!((1..=2).contains(&left("all:1w 1y:forever")));
        // Few days that are a multiple of thirty are Mondays.
        assert!((1..=2).contains(&left("all:1w 30d:forever")), "{}", left("all:1w 30d:forever"));
    }
}
