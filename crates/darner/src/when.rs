//! Moments as people read them.

use darner_fs::Tid;
use jiff::{Timestamp, tz::TimeZone};

/// Local time of a tid, RFC 3339 with nanoseconds.
pub fn local(tid: Tid) -> String {
    let Ok(ns) = i128::from(tid.0).try_into() else { return tid.to_string() };
    match Timestamp::from_nanosecond(ns) {
        Ok(t) => t.to_zoned(TimeZone::system()).strftime("%Y-%m-%dT%H:%M:%S.%9f%:z").to_string(),
        Err(_) => tid.to_string(),
    }
}
