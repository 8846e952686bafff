//! `darner status`

use std::fmt::Write;
use std::path::Path;

use darner_syslink::plain;

use super::{human, printable};
use crate::attachments::{self, Attachment, Meant};
use crate::cli;
use crate::control::{self, Request, Response, Status, Usage};
use crate::error::{Failure, Result};

pub fn run(c: &cli::Status) -> Result<()> {
    let place = match attachments::meant(&c.mnt)? {
        Meant::Store(place) => place,
        Meant::Attachment(directory) => return of_attachments(c, &directory),
    };
    let Response::Status(s) = control::must_call(&place, &Request::Status)? else {
        return Err(super::other_answer());
    };
    let usage = match c.by_time {
        true => match control::must_call(&place, &Request::Usage)? {
            Response::Usage(u) => Some(u),
            _ => return Err(super::other_answer()),
        },
        false => None,
    };
    let attached = attachments(&s)?;
    if c.json {
        let mut all = serde_json::to_value(&s)?;
        all["attachments"] = serde_json::to_value(&attached)?;
        if let Some(u) = &usage {
            all["usage"] = serde_json::to_value(u)?;
        }
        return super::print_json(&all);
    }
    let attached: String = attached.iter().map(attachment).collect();
    super::print(&(table(&s) + &attached + &usage.as_ref().map(by_time).unwrap_or_default()))
}

/// Of an attachment by itself, and those within.
fn of_attachments(c: &cli::Status, directory: &Path) -> Result<()> {
    if c.by_time {
        return Err(Failure::new(format!("{} is an attachment, whose history is its own matter", directory.display())));
    }
    let all = attachments::below(directory)?;
    match c.json {
        true => super::print_json(&serde_json::json!({ "attachments": all })),
        false => super::print(&all.iter().map(attachment).collect::<String>()),
    }
}

/// Of all mounts of the store.
fn attachments(s: &Status) -> Result<Vec<Attachment>> {
    let below = s.mounts.iter().map(|m| attachments::below(&m.mountpoint));
    Ok(below.collect::<Result<Vec<_>>>()?.concat())
}

fn attachment(a: &Attachment) -> String {
    let how = if a.read_only { "read-only" } else { "writable" };
    // (A host may be another user's.)
    let directory = plain(&a.directory.to_string_lossy());
    let mut out = format!("{:<12} {directory} ({}, {how}): {}", "attachment", plain(&a.name), plain(&a.state));
    if let Some(pid) = a.plugin_pid {
        write!(out, ", process {pid}").expect("strings take all");
    }
    if a.restarts > 0 {
        let last = plain(a.last_end.as_deref().unwrap_or_default());
        write!(out, "; {} restarts, the last time: {last}", a.restarts).expect("strings take all");
    }
    if a.late_calls > 0 {
        write!(out, "; {} calls without an answer in time", a.late_calls).expect("strings take all");
    }
    out.push('\n');
    for lack in &a.sandbox_lacks {
        writeln!(out, "{:<12} its sandbox is incomplete: {}", "warning", plain(lack)).expect("strings take all");
    }
    out
}

fn table(s: &Status) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| writeln!(out, "{name:<12} {value}").expect("strings take all");
    line("store", printable(&s.store));
    line("made", s.created.clone());
    line("newest", s.tid.clone());
    line("durable", s.durable_tid.clone());
    line("size", human(s.size_bytes));
    line(
        "used",
        format!(
            "{} (history {}, waste {}); files hold {}",
            human(s.used_bytes),
            human(s.history_bytes),
            human(s.dead_bytes),
            human(s.live_bytes)
        ),
    );
    line("free", human(s.free_bytes));
    line("objects", s.objects.to_string());
    line("daemon", format!("process {}, version {}, {} resident", s.daemon_pid, s.version, human(s.resident_bytes)));
    match s.supervisor_pid {
        Some(pid) if s.restarts > 0 => {
            line(
                "supervisor",
                format!("process {pid}; {} restarts, longest pause {} ms", s.restarts, s.longest_pause_ms),
            );
        }
        Some(pid) => line("supervisor", format!("process {pid}")),
        None => line("supervisor", "none: the mounts end with the daemon".into()),
    }
    for v in &s.volumes {
        line(
            "volume",
            format!("{}: {}, {} of {}", v.id, printable(Path::new(&v.path)), human(v.used_bytes), human(v.size_bytes)),
        );
    }
    if !["1", ""].contains(&&*s.copies.copies) || !s.copies.filesets.is_empty() {
        line("copies", super::volume::copies_text(&s.copies).trim_end().to_string());
    }
    for m in &s.mounts {
        let how = match (&m.as_of, m.read_only) {
            (Some(tid), _) => format!("as of {tid}, {}", m.as_of_time.as_deref().unwrap_or_default()),
            (None, true) => "read-only".into(),
            (None, false) => "live".into(),
        };
        let of = m.fileset.as_ref().map(|name| format!("fileset {name}, ")).unwrap_or_default();
        line("mount", format!("{} ({of}{how})", printable(&m.mountpoint)));
    }
    for r in &s.retention {
        let name = if r.main { String::new() } else { format!("{}: ", r.fileset) };
        let exact = r.horizon.as_ref().map(|h| format!(", exact since {h}")).unwrap_or_default();
        let full = if r.when_full == "keep" { "" } else { ", the oldest gives way when full" };
        line("keeps", format!("{name}{}{exact}{full}", r.grid));
    }
    for w in &s.warnings {
        line("warning", w.clone());
    }
    out
}

fn by_time(u: &Usage) -> String {
    let mut out = String::new();
    let mut line =
        |name: &str, bytes: u64| writeln!(out, "  {name:<10} {:>12}", human(bytes)).expect("strings take all");
    line("live", u.live_bytes);
    for a in &u.by_age {
        line(&a.age, a.history_bytes);
    }
    line("lapsed", u.lapsed_bytes);
    format!("needed, history by the age of what was superseded:\n{out}")
}
