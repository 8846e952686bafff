//! Moments as people read them.

use darner_fs::Tid;
use jiff::{Timestamp, tz::TimeZone};

/// Local time of a tid, RFC 3339 with nanoseconds.
pub fn local(tid: Tid) -> String {
    match Timestamp::from_nanosecond(tid.0.into()) {
        Ok(t) => t.to_zoned(TimeZone::system()).strftime("%Y-%m-%dT%H:%M:%S.%9f%:z").to_string(),
        Err(_) => tid.to_string(),
    }
}
