//! Printing what is on a volume, with the field names of docs/format.md. Needs no valid store: what can't be read is said.

use std::collections::HashMap;
use std::sync::Arc;

use crate::assemble::{Reach, assemble};
use crate::frame::{self, Body, Content, Record};
use crate::index::levels::RunRef;
use crate::index::table::Table;
use crate::manifest::Manifest;
use crate::pack::{self, Packed};
use crate::reading::{Window, region_start};
use crate::segment;
use crate::superblock::{OnVolume, Superblock};
use crate::volume::{Region, RegionRef, Volume, VolumeEntry, Volumes};
use crate::{Result, Tid, key};

/// A structure on a volume.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its name in docs/format.md.
    pub structure: &'static str,
    /// Where it is.
    pub place: String,
    /// Field names and values.
    pub fields: Vec<(&'static str, String)>,
}

/// What to show.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Only this segment.
    pub segment: Option<u64>,
    /// Records and their data too.
    pub records: bool,
}

type Visit<'v> = &'v mut dyn FnMut(Item);

/// Visits superblocks, volumes, manifest, segments with their frames, and tables. `found`: as for [`crate::Store::open_volumes`].
pub fn inspect(found: &[Arc<dyn Volume>], wanted: &Wanted, visit: Visit<'_>) -> Result<()> {
    let store = assemble(found, &Reach { buckets: None, memory: 0 })?.swap_remove(0);
    let (sb, volumes) = (&store.superblock, &store.volumes);
    for volume in found {
        Superblock::read(&**volume).unwrap_or_default().iter().for_each(|on| visit(superblock(&volume.name(), on)));
    }
    for entry in sb.volumes.iter() {
        visit(volume_item(entry, store.missing.iter().any(|m| m.number == entry.number)));
    }
    let manifest = store.read_manifest()?;
    visit(manifest_item(sb.manifest, &manifest));
    let packed = packs(volumes, sb, &manifest, visit);
    let mut segments: Vec<RegionRef> = manifest.segments.iter().map(|s| s.at).collect();
    let mut i = 0;
    while let Some(at) = segments.get(i).copied() {
        i += 1;
        let in_pack = manifest.segments.get(i - 1).and_then(|s| s.pack);
        let region = match (packed.get(&at.id), in_pack) {
            (Some(region), _) => Ok(region.clone()),
            (None, Some(pack)) => {
                visit(broken("segment", at.id, &format!("its remains are not in pack {pack:x}")));
                continue;
            }
            (None, None) => volumes.open(at),
        };
        // Segments newer than the manifest are found by the seal of the one before.
        let next = region.and_then(|region| match wanted.segment {
            Some(id) if id != at.id => walk(region, &mut |_, _| ()),
            _ => show_segment(region, sb, at, in_pack, wanted, visit),
        });
        match next {
            Ok(Some(next)) if segments.iter().all(|s| s.id != next.id) => segments.push(next),
            Ok(_) => {}
            Err(e) => visit(broken("segment", at.id, &e.to_string())),
        }
    }
    for (family, runs) in [("live", &manifest.live), ("history", &manifest.history)] {
        for (run, tables) in runs.iter().enumerate() {
            for t in &tables.tables {
                let opened = volumes.open(t.region).and_then(|r| Table::open(r, t.len));
                match opened {
                    Ok(table) => visit(table_item(family, run, &table)),
                    Err(e) => visit(broken("table", t.region.id, &e.to_string())),
                }
            }
        }
    }
    Ok(())
}

fn broken(structure: &'static str, region: u64, error: &str) -> Item {
    Item { structure, place: format!("region {region:x}"), fields: vec![("error", error.into())] }
}

fn superblock(volume: &str, on: &OnVolume) -> Item {
    let sb = &on.superblock;
    let hex = |b: &[u8]| b.iter().map(|b| format!("{b:02x}")).collect::<String>();
    Item {
        structure: "superblock",
        place: format!("{volume}, slot {}", sb.generation % 2),
        fields: vec![
            ("version", sb.version.to_string()),
            ("volume", on.number.to_string()),
            ("generation", sb.generation.to_string()),
            ("uuid", hex(&sb.uuid)),
            ("hash_key", hex(&sb.hash_key)),
            ("birth", sb.birth.to_string()),
            ("manifest", format!("{:x}", sb.manifest.id)),
            ("manifest_volume", sb.manifest.volume.to_string()),
            ("manifest_len", sb.manifest_len.to_string()),
            ("next_volume", sb.next_volume.to_string()),
            ("volumes", sb.volumes.len().to_string()),
            ("roster", sb.roster.as_ref().map_or_else(String::new, |r| format!("{:x}", r.at.id))),
            ("homes", sb.homes.iter().map(u16::to_string).collect::<Vec<_>>().join(" ")),
        ],
    }
}

fn volume_item(e: &VolumeEntry, is_missing: bool) -> Item {
    Item {
        structure: "volume",
        place: format!("volume {}", e.number),
        fields: vec![
            ("hint", String::from_utf8_lossy(&e.hint).into_owned()),
            ("kind", format!("{:?}", e.kind).to_lowercase()),
            ("size_limit", e.size_limit.to_string()),
            ("leaving", e.leaving.to_string()),
            ("found", (!is_missing).to_string()),
        ],
    }
}

fn manifest_item(at: RegionRef, m: &Manifest) -> Item {
    let runs = |runs: &[RunRef]| runs.iter().map(|r| r.tables.len().to_string()).collect::<Vec<_>>().join("+");
    Item {
        structure: "manifest",
        place: format!("region {:x}", at.id),
        fields: vec![
            ("tid", m.tid.to_string()),
            ("next_region", format!("{:x}", m.next_region)),
            ("next_object", m.next_object.to_string()),
            ("objects", m.counts.total().objects.to_string()),
            ("live_bytes", m.counts.total().live.to_string()),
            ("log", format!("region {:x} at byte {}", m.log.region, m.log.offset)),
            ("segments", m.segments.len().to_string()),
            ("packs", m.packs.len().to_string()),
            ("live", runs(&m.live)),
            ("history", runs(&m.history)),
        ],
    }
}

fn table_item(family: &str, run: usize, t: &Table) -> Item {
    let (low, high) = t.tids();
    Item {
        structure: "table",
        place: format!("region {:x}", t.reference().region.id),
        fields: vec![
            ("family", family.into()),
            ("run", run.to_string()),
            ("bytes", t.len().to_string()),
            ("entries", t.entries().to_string()),
            ("tid_min", low.to_string()),
            ("tid_max", high.to_string()),
            ("volume", t.reference().region.volume.to_string()),
            ("resident_bytes", t.resident_bytes().to_string()),
        ],
    }
}

/// Shows the packs; returns what is left of segments, by their numbers.
fn packs(volumes: &Volumes, sb: &Superblock, m: &Manifest, visit: Visit<'_>) -> HashMap<u64, Arc<dyn Region>> {
    let mut packed: HashMap<u64, Arc<dyn Region>> = HashMap::new();
    for at in &m.packs {
        let found = volumes.open(*at).and_then(|region| Ok((pack::read(&*region, &sb.uuid)?, region)));
        let (parts, region) = match found {
            Ok(found) => found,
            Err(e) => {
                visit(broken("pack", at.id, &e.to_string()));
                continue;
            }
        };
        let fields = vec![
            ("region", format!("{:x}", at.id)),
            ("volume", at.volume.to_string()),
            ("start", at.start.to_string()),
            ("size", at.size.to_string()),
            ("parts", parts.len().to_string()),
        ];
        visit(Item { structure: "pack", place: format!("region {:x}", at.id), fields });
        for part in parts {
            if m.segments.iter().any(|s| s.at.id == part.number && s.pack == Some(at.id)) {
                packed.insert(part.number, Arc::new(Packed::new(region.clone(), part)));
            }
        }
    }
    packed
}

fn show_segment(
    region: Arc<dyn Region>,
    sb: &Superblock,
    at: RegionRef,
    in_pack: Option<u64>,
    wanted: &Wanted,
    visit: Visit<'_>,
) -> Result<Option<RegionRef>> {
    let mut fields =
        vec![("region", format!("{:x}", at.id)), ("start", at.start.to_string()), ("size", at.size.to_string())];
    if in_pack.is_none() {
        fields.push(("volume", at.volume.to_string()));
    }
    match in_pack {
        Some(pack) => {
            fields.extend([("pack", format!("{pack:x}")), ("kept", region.bytes_kept().to_string())]);
        }
        None => match segment::verify(&segment::read(&*region, &sb.uuid)?, &sb.uuid, at) {
            Ok(after) => fields.push(("after", after.to_string())),
            Err(e) => fields.push(("error", e.to_string())),
        },
    }
    visit(Item { structure: "segment", place: format!("region {:x}", at.id), fields });
    let mut frames = 0u64;
    let mut tids: Option<(Tid, Tid)> = None;
    let mut end = segment::HEADER;
    let next = walk(region.clone(), &mut |offset, bytes| {
        let Some(f) = frame::parse(bytes, at.id, offset) else { return };
        frames += 1;
        end = offset + frame::shape(bytes).map_or(0, |s| s.len as u64);
        if let Content::Transaction(_) = f.content {
            tids = Some((tids.map_or(f.header.tid, |t| t.0), f.header.tid));
        }
        if wanted.records {
            show_frame(&*region, offset, bytes, &f, visit);
        }
    })?;
    let mut fields = vec![("frames", frames.to_string()), ("end", end.to_string())];
    if let Some((low, high)) = tids {
        fields.extend([("tid_min", low.to_string()), ("tid_max", high.to_string())]);
    }
    if let Some(next) = next {
        fields.push(("next", format!("{:x}", next.id)));
    }
    visit(Item { structure: "segment end", place: format!("region {:x}", at.id), fields });
    Ok(next)
}

/// Calls `each` with every valid frame from the start on; returns the seal's successor.
fn walk(region: Arc<dyn Region>, each: &mut dyn FnMut(u64, &[u8])) -> Result<Option<RegionRef>> {
    let id = region.place().id;
    let mut window = Window::new(region.clone(), segment::HEADER);
    let mut offset = region_start(&*region);
    loop {
        window.fill_frame(offset)?;
        let bytes = window.bytes(offset);
        let Some(f) = frame::parse(bytes, id, offset) else { return Ok(None) };
        each(offset, bytes);
        if let Content::Seal(next) = f.content {
            return Ok(Some(next));
        }
        offset = region.next_kept(offset + frame::shape(bytes).expect("just parsed").len as u64);
    }
}

fn show_frame(region: &dyn Region, offset: u64, bytes: &[u8], f: &frame::Frame<'_>, visit: Visit<'_>) {
    let h = &f.header;
    let place = format!("region {:x} at byte {offset}", region.place().id);
    let mut fields = vec![
        ("tid", h.tid.to_string()),
        ("fileset", h.fileset.0.to_string()),
        ("crc", format!("{:08x}", f.crc)),
        ("chain", format!("{:08x}", h.chain)),
        ("durable", h.durable.to_string()),
        ("next_object", h.next_object.to_string()),
    ];
    match &f.content {
        Content::Seal(next) => {
            fields.push(("next", format!("{:x}", next.id)));
            visit(Item { structure: "seal", place, fields });
        }
        Content::Transaction(records) => {
            fields.extend([("objects", h.objects.to_string()), ("live", h.live.to_string())]);
            visit(Item { structure: "frame", place, fields });
            for r in records {
                visit(record(region, offset, bytes, r));
            }
        }
    }
}

fn record(region: &dyn Region, at: u64, frame: &[u8], r: &Record<'_>) -> Item {
    let text = |b: &[u8]| b.escape_ascii().to_string();
    let mut fields = vec![("object", r.object.to_string()), ("kind", kind_name(r.kind).to_string())];
    match &r.body {
        // (A private key is nobody's business.)
        Body::Put { suffix: suffix @ [0], .. } if r.kind == key::Kind::PEER => {
            fields.extend([("what", "put".into()), ("suffix", text(suffix))]);
        }
        Body::Put { suffix, value } => {
            fields.extend([("what", "put".into()), ("suffix", text(suffix)), ("value", text(value))]);
        }
        Body::Tombstone { suffix } => fields.extend([("what", "tombstone".into()), ("suffix", text(suffix))]),
        Body::Extent { offset, len, codec, data_at, stored } => {
            let data = &frame[*data_at as usize..(*data_at + *stored) as usize];
            let valid = crate::reading::extent_is_valid(region, at + u64::from(*data_at), data, *codec, *len as usize);
            fields.extend([
                ("what", "extent".into()),
                ("offset", offset.to_string()),
                ("len", len.to_string()),
                ("codec", format!("{codec:?}").to_lowercase()),
                ("data_at", data_at.to_string()),
                ("stored", stored.to_string()),
                ("data", if valid { "valid".into() } else { "damaged".into() }),
            ]);
        }
        Body::Hole { offset, len } => {
            fields.extend([("what", "hole".into()), ("offset", offset.to_string()), ("len", len.to_string())]);
        }
        // (Of no object.)
        Body::Fileset { objects, live } => {
            fields = vec![
                ("what", "fileset".into()),
                ("fileset", r.fileset.0.to_string()),
                ("objects", objects.to_string()),
                ("live", live.to_string()),
            ];
        }
        Body::Shared { offset, len, place } => fields.extend([
            ("what", "shared".into()),
            ("offset", offset.to_string()),
            ("len", len.to_string()),
            ("region", format!("{:x}", place.region)),
            ("place", place.offset.to_string()),
            ("skip", place.skip.to_string()),
        ]),
    }
    Item { structure: "record", place: format!("region {:x} at byte {at}", region.place().id), fields }
}

fn kind_name(kind: key::Kind) -> String {
    let names = [
        "keepless", "attr", "target", "xattr", "dirent", "extent", "orphan", "label", "retain", "fileset", "forget",
        "mirror", "scrub", "peer",
    ];
    match names.get(usize::from(kind.0)) {
        Some(name) => (*name).into(),
        None => kind.0.to_string(),
    }
}
