//! The virtual directory `@@`: points in time offered for browsing.
//!
//! Labels, the whole hours of the last day, the midnights of the last 31 days, and the minute in which the directory was
//! made, once it is over: those at which the directory existed; of those that were given up, the retained points that they
//! round down to. Every name listed is a WHEN that means the moment listed. All but labels begin alike, with date, hour and
//! minute, which is as much as Samba's `shadow:format` reads.

use std::collections::HashSet;

use darner_store::Tid;
use jiff::ToSpan;

use crate::attr::{Attr, Time};
use crate::error::Result;
use crate::fs::Fs;
use crate::node::Inode;
use crate::view::Moment;
use crate::when;

const HOURS: i64 = 24;
const DAYS: i64 = 31;
const MINUTE: u64 = 60_000_000_000;

impl Fs {
    /// The points of a directory, each name with its tid.
    pub fn points(&self, object: Inode, now_ns: u64) -> Result<Vec<(String, Tid)>> {
        let mut points: Vec<(String, Tid)> =
            self.labels(object.fileset)?.into_iter().map(|label| (label.name, label.tid)).collect();
        let mut seen = HashSet::new();
        let horizon = self.retention(object.fileset)?.horizon();
        for name in self.midnights(now_ns).into_iter().chain(self.hours(now_ns)).chain(self.birth_of(object, now_ns)?) {
            let Some(Moment { tid, .. }) = self.moment(object.fileset, &name, now_ns)? else { continue };
            // What was rounded down is called what it is.
            let name = Some(name).filter(|_| tid >= horizon).or_else(|| when::name(tid, &self.zone));
            points.extend(name.filter(|_| seen.insert(tid)).map(|name| (name, tid)));
        }
        let mut there = Vec::new();
        for (name, tid) in points {
            if self.attr_shown(object, tid)?.is_some() {
                there.push((name, tid));
            }
        }
        Ok(there)
    }

    fn midnights(&self, now_ns: u64) -> Vec<String> {
        let Some(now) = when::local(now_ns, &self.zone) else { return Vec::new() };
        let days = (0..DAYS).filter_map(|days| now.date().checked_sub(days.days()).ok());
        let midnights = days.filter_map(|date| date.to_zoned(self.zone.clone()).ok());
        midnights.filter_map(|midnight| when::name(when::tid_of(midnight.timestamp()), &self.zone)).collect()
    }

    fn hours(&self, now_ns: u64) -> Vec<String> {
        let Some(now) = when::local(now_ns, &self.zone) else { return Vec::new() };
        let Ok(hour) = now.with().minute(0).second(0).subsec_nanosecond(0).build() else { return Vec::new() };
        let hours = (0..HOURS).filter_map(|hours| hour.checked_sub(hours.hours()).ok());
        hours.filter_map(|hour| when::name(when::tid_of(hour.timestamp()), &self.zone)).collect()
    }

    fn birth_of(&self, object: Inode, now_ns: u64) -> Result<Option<String>> {
        let Some(attr) = self.attr_at(object, Tid::MAX)? else { return Ok(None) };
        let nanos = (attr.btime.secs as u64).saturating_mul(1_000_000_000).saturating_add(attr.btime.nanos.into());
        let over = nanos.div_ceil(MINUTE).saturating_mul(MINUTE);
        Ok(when::name(Tid(if over <= now_ns { over } else { nanos }), &self.zone))
    }

    /// Attributes of the virtual directory.
    pub(crate) fn points_attr(&self, object: Inode) -> Attr {
        let birth = Time::from(self.store.birth());
        Attr {
            mode: libc::S_IFDIR | 0o555,
            uid: 0,
            gid: 0,
            nlink: 2,
            size: 0,
            bytes: 0,
            rdev: 0,
            parent: object.object,
            flags: 0,
            atime: birth,
            mtime: birth,
            ctime: birth,
            btime: birth,
        }
    }
}
