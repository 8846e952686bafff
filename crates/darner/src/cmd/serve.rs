//! `darner serve`

use std::fmt::Write;

use super::{daemon, mirror};
use crate::cli::Serve;
use crate::control::{self, Request, Response};
use crate::error::Result;
use crate::far;
use crate::frontend::now_ns;
use crate::mounts;
use crate::serving::ServeReport;

pub fn run(c: &Serve) -> Result<()> {
    let place = mounts::store_of(&c.mnt)?;
    let listen = c.listen.as_deref().map(far::with_port).transpose()?;
    let request = Request::Serve {
        listen: listen.clone(),
        stop: c.stop,
        admit: c.admit.clone(),
        remove: c.remove.clone(),
        filesets: c.filesets.clone(),
        ticket_seconds: c.ticket.then_some(c.seconds),
    };
    let answer = match (mirror::call(&place, &request)?, &listen) {
        (None, Some(address)) => {
            mirror::opened(&place, |fs| Ok(fs.listen_at(Some(address), now_ns())?))?;
            daemon::stay(&place.path)?;
            control::must_call(&place, &request)?
        }
        (None, None) => control::must_call(&place, &request)?,
        (Some(answer), _) => answer,
    };
    let Response::Serving(report) = answer else { return Err(super::other_answer()) };
    if c.json {
        return super::print_json(&*report);
    }
    // (To be put into a variable.)
    match &report.ticket {
        Some(ticket) => super::print(&format!("{ticket}\n")),
        None => super::print(&table(&report)),
    }
}

fn table(r: &ServeReport) -> String {
    let mut out = String::new();
    let listens = match (&r.address, r.listens, &r.failed) {
        (None, ..) => "no: darner serve MNT --listen ADDRESS:PORT".into(),
        (Some(at), true, _) => format!("at {at}"),
        (Some(at), false, Some(why)) => format!("not at {at} yet: {why}"),
        (Some(at), false, None) => format!("not at {at} yet"),
    };
    let _ = writeln!(out, "{:<10} {listens}\n{:<10} {}", "listens", "key", r.key);
    for peer in &r.peers {
        let asked = peer.asked_seconds_ago.map_or("not seen since the start".into(), |s| format!("asked {s:.0} s ago"));
        let what =
            if peer.filesets.is_empty() { String::new() } else { format!(", to {} only", peer.filesets.join(", ")) };
        let _ = writeln!(out, "{:<10} {} since {}{what}, {asked}", "admits", peer.key, peer.admitted);
    }
    if r.peers.is_empty() {
        let _ = writeln!(out, "{:<10} nobody: --ticket, or --admit", "admits");
    }
    out
}
