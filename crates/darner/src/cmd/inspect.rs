//! `darner inspect`

use std::fmt::Write;

use darner_store::inspect::{Item, Wanted, inspect};

use crate::cli::Inspect;
use crate::error::Result;
use crate::place::Place;

pub fn run(c: &Inspect) -> Result<()> {
    let place = Place::at(&c.store)?;
    let (volumes, _held) = place.hold(&c.volumes, false)?;
    let segment = c.segment.as_deref().map(super::region_number).transpose()?;
    let wanted = Wanted { segment, records: c.records };
    let mut failed = Ok(());
    inspect(&volumes, &wanted, &mut |item| {
        if failed.is_ok() {
            failed = super::print(&if c.json { json(&item) } else { text(&item) });
        }
    })?;
    failed
}

fn text(item: &Item) -> String {
    let indent = match item.structure {
        "frame" | "seal" | "segment end" => "  ",
        "record" => "    ",
        _ => "",
    };
    let mut out = format!("{indent}{} ({})", item.structure, item.place);
    for (name, value) in &item.fields {
        write!(out, " {name}={value}").expect("strings take all");
    }
    out.push('\n');
    out
}

fn json(item: &Item) -> String {
    let mut map = serde_json::Map::new();
    map.insert("structure".into(), item.structure.into());
    map.insert("place".into(), item.place.clone().into());
    map.extend(item.fields.iter().map(|(name, value)| ((*name).into(), value.clone().into())));
    format!("{}\n", serde_json::Value::Object(map))
}
