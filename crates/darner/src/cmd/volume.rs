//! `darner volume`

use std::fmt::Write;
use std::path::Path;

use super::{call_showing_progress, human, other_answer, region_number};
use crate::cli::{Volume, VolumeAction};
use crate::control::{BucketLine, CopyLine, Request, Response, VolumeLine};
use crate::error::{Context, Failure, Result};
use crate::{mounts, reclaim, s3};

pub fn run(c: &Volume) -> Result<()> {
    use VolumeAction as A;
    match &c.action {
        A::List { mnt, json } => match ask(mnt, Request::Volumes)? {
            Response::Volumes(lines) if *json => super::print_json(&lines),
            Response::Volumes(lines) => super::print(&table(&lines)),
            _ => Err(other_answer()),
        },
        A::Add { mnt, path, tier, .. } if path.to_str().is_some_and(|p| p.starts_with(s3::SCHEME)) => {
            let name = s3::name(&path.to_string_lossy())?;
            if tier.as_deref() == Some("hot") {
                return Err(Failure::new("what is new can't go to a bucket: only what is never written again"));
            }
            s3::must_be_fine(&s3::variables())?;
            lines(&ask(mnt, Request::AddBucket { name, variables: s3::variables() })?)
        }
        A::Push { mnt } => lines(&ask(mnt, Request::Push)?),
        A::Add { mnt, path, size, image, force, tier } => {
            let cold = tier.as_deref() == Some("cold");
            let path = std::path::absolute(path).cant(|| format!("find {}", path.display()))?;
            match ask(mnt, Request::AddVolume { path, size: *size, image: *image, force: *force, cold })? {
                Response::Volumes(lines) => super::print(&table(&lines))?,
                _ => return Err(other_answer()),
            }
            // (A second one may have brought that about.)
            copies(mnt, None, None, false)
        }
        A::Move { mnt, segment, from, to } => {
            let region = segment.as_deref().map(region_number).transpose()?;
            moved(&ask(mnt, Request::MoveSegments { region, from: *from, to: *to })?, &format!("to volume {to}"))
        }
        A::Remove { mnt, id, lost: true } => match ask(mnt, Request::LoseVolume { id: *id })? {
            Response::Moved { regions: 0, .. } => super::print("nothing is lost; it is no volume any more\n"),
            Response::Moved { regions, bytes } => {
                super::print(&format!("{} in {regions} regions are lost; it is no volume any more\n", human(bytes)))
            }
            _ => Err(other_answer()),
        },
        A::Copies { mnt, copies: wanted, fileset, json } => copies(mnt, wanted.clone(), fileset.clone(), *json),
        A::Remove { mnt, id, lost: false } => {
            moved(&ask(mnt, Request::RemoveVolume { id: *id })?, "to the others; it is no volume any more")?;
            // Whoever mounts by the one that has left has to name another.
            match ask(mnt, Request::Volumes)? {
                Response::Volumes(lines) => {
                    let more = match lines.len().saturating_sub(NAMED) {
                        0 => String::new(),
                        more => format!("and {more} more\n"),
                    };
                    super::print(&format!("the store is on:\n{}{more}", table(&lines[..lines.len().min(NAMED)])))
                }
                _ => Err(other_answer()),
            }
        }
        A::Reclaim { path, of, force } => {
            let id = reclaim::reclaim(path, of.as_deref(), *force)?;
            let at = path.display();
            super::print(&format!(
                "{at} is volume {} of its store again; what else was overwritten, or is gone, is damaged: mount it, and darner scrub tells\n",
                id.number
            ))
        }
        A::Resize { mnt, id, size } => match ask(mnt, Request::ResizeVolume { id: *id, size: *size })? {
            Response::Volumes(lines) => super::print(&table(&lines)),
            _ => Err(other_answer()),
        },
    }
}

fn lines(answer: &Response) -> Result<()> {
    match answer {
        Response::Volumes(lines) => super::print(&table(lines)),
        _ => Err(other_answer()),
    }
}

pub(super) fn ask(mnt: &Path, request: Request) -> Result<Response> {
    call_showing_progress(&mounts::store_of(mnt)?, &request)
}

fn moved(answer: &Response, to: &str) -> Result<()> {
    match answer {
        Response::Moved { regions, bytes } => {
            super::print(&format!("moved {} in {regions} regions {to}\n", human(*bytes)))
        }
        _ => Err(other_answer()),
    }
}

fn copies(mnt: &Path, copies: Option<String>, fileset: Option<String>, json: bool) -> Result<()> {
    match ask(mnt, Request::Copies { copies, fileset })? {
        Response::Copies(line) if json => super::print_json(&line),
        Response::Copies(line) => super::print(&copies_text(&line)),
        _ => Err(other_answer()),
    }
}

pub(super) fn copies_text(line: &CopyLine) -> String {
    let of = match (line.copies.as_str(), &line.filesets[..]) {
        ("1", []) => "one copy of everything".into(),
        ("index", []) => "two copies of the index, one of all else".into(),
        ("1" | "index", names) => format!("two copies of the index and of {}, one of all else", names.join(", ")),
        _ => "two copies of everything".to_string(),
    };
    let lacking = match line.lacking_bytes {
        0 => String::new(),
        bytes => format!("; {} have one yet", human(bytes)),
    };
    let healed = if line.healed > 0 { format!("; {} places healed", line.healed) } else { String::new() };
    format!("{of}{lacking}{healed}\n")
}

fn table(lines: &[VolumeLine]) -> String {
    let mut out = String::new();
    let widest = lines.iter().map(|line| line.path.chars().count()).max().unwrap_or(0);
    for v in lines {
        let state = if v.state == "active" { String::new() } else { format!("  {}", v.state) };
        let tier = if v.tier == "cold" && v.bucket.is_none() { "  cold" } else { "" };
        let (used, size) = (human(v.used_bytes), human(v.size_bytes));
        let size = match &v.bucket {
            None => format!("of {size:>10}"),
            Some(b) => of_bucket(b),
        };
        writeln!(out, "{:>5}  {:<widest$}  {:<9}  {used:>10} {size}{tier}{state}", v.id, v.path, v.kind)
            .expect("strings take all");
    }
    out
}

/// So many volumes are named where one would do.
const NAMED: usize = 20;

/// How far what is in a bucket goes, and what is nowhere else.
fn of_bucket(b: &BucketLine) -> String {
    let reached = match &b.reached_when {
        Some(when) => format!("all up to {when}"),
        None if b.known => "nothing to be opened yet".into(),
        None => "not asked yet how far it is".into(),
    };
    let only =
        if b.only_there_bytes > 0 { format!(", {} only there", human(b.only_there_bytes)) } else { String::new() };
    let left = if b.left_bytes > 0 { format!(", {} on their way", human(b.left_bytes)) } else { String::new() };
    let why = b.trouble.as_ref().map_or(String::new(), |why| format!(" ({why})"));
    format!("{reached}{only}{left}{why}")
}
