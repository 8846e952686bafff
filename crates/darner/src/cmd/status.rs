//! `darner status`

use std::fmt::Write;

use super::human;
use crate::cli;
use crate::control::{self, Request, Response, Status};
use crate::error::{Failure, Result};
use crate::mounts;

pub fn run(c: &cli::Status) -> Result<()> {
    let place = mounts::store_of(&c.mnt)?;
    let Response::Status(s) = control::must_call(&place, &Request::Status)? else {
        return Err(Failure::new("the daemon gave an answer of another kind"));
    };
    if c.json { super::print_json(&s) } else { super::print(&table(&s)) }
}

fn table(s: &Status) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| writeln!(out, "{name:<12} {value}").expect("strings take all");
    line("store", s.store.display().to_string());
    line("made", s.created.clone());
    line("newest", s.tid.clone());
    line("durable", s.durable_tid.clone());
    line("size", human(s.size_bytes));
    line(
        "used",
        format!("{} (live {}, history and index {})", human(s.used_bytes), human(s.live_bytes), human(s.history_bytes)),
    );
    line("free", human(s.free_bytes));
    line("objects", s.objects.to_string());
    line("daemon", format!("process {}, version {}, {} resident", s.daemon_pid, s.version, human(s.resident_bytes)));
    for v in &s.volumes {
        line("volume", format!("{}: {}, {} of {}", v.id, v.path, human(v.used_bytes), human(v.size_bytes)));
    }
    for m in &s.mounts {
        let how = match (&m.as_of, m.read_only) {
            (Some(tid), _) => format!("as of {tid}"),
            (None, true) => "read-only".into(),
            (None, false) => "live".into(),
        };
        let of = m.fileset.as_ref().map(|name| format!("fileset {name}, ")).unwrap_or_default();
        line("mount", format!("{} ({of}{how})", m.mountpoint.display()));
    }
    out
}
