//! `darner scrub`: exit code 0 if all is as it was written, 1 if something is damaged, as for other failures.

use super::human;
use crate::cli::Scrub;
use crate::control::{self, DamageLine, Request, Response, ScrubLine};
use crate::error::{Failure, Result};
use crate::mounts;

pub fn run(c: &Scrub) -> Result<()> {
    let place = mounts::store_of(&c.mnt)?;
    let answer = match c.report {
        true => control::must_call(&place, &Request::ScrubReport)?,
        false => super::call_showing_progress(&place, &Request::Scrub { wait: !c.background, bucket: c.bucket })?,
    };
    let report = match answer {
        Response::Done => return Ok(()),
        Response::Scrub(report) => report,
        _ => return Err(super::other_answer()),
    };
    match c.json {
        true => super::print_json(&report)?,
        false => super::print(&text(&report))?,
    }
    match report.damaged {
        0 => Ok(()),
        n => Err(Failure::new(format!("{n} places are damaged"))),
    }
}

fn text(r: &ScrubLine) -> String {
    let mut out = match (&r.begun, &r.ended) {
        (None, _) => "never scrubbed\n".to_string(),
        (Some(begun), None) => {
            format!("under way since {begun}: {} of {} read\n", human(r.bytes), human(r.total_bytes))
        }
        (Some(begun), Some(ended)) => format!("from {begun} to {ended}: {} read\n", human(r.bytes)),
    };
    r.damages.iter().for_each(|d| out.push_str(&damage(d)));
    if r.damaged > r.damages.len() as u64 {
        out.push_str(&format!("and {} more\n", r.damaged - r.damages.len() as u64));
    }
    if r.healed > 0 {
        out.push_str(&format!("{} places were damaged and are written anew\n", r.healed));
    }
    if r.begun.is_some() && r.damaged == 0 {
        out.push_str("nothing is damaged\n");
    }
    if r.begun.is_some() && r.left_to_the_bucket > 0 {
        let bytes = human(r.left_to_the_bucket);
        out.push_str(&format!("{bytes} are in the bucket only, and were not read: --bucket reads them, too\n"));
    }
    out
}

/// One line.
pub(super) fn damage(d: &DamageLine) -> String {
    let at = format!("region {}, byte {}, {} bytes", d.region, d.region_offset, d.region_len);
    match (&d.path, d.offset, d.len, &d.tid) {
        (Some(path), Some(offset), Some(len), Some(tid)) => {
            format!("{path}: bytes {offset} to {} as written by {tid} ({at})\n", offset + len)
        }
        _ => format!("{} ({at})\n", d.what),
    }
}
