//! When to ask the volume for more than was read: for streams, and for small reads that crowd in one part of the log.
//!
//! Files that were written together lie together in the log, so reading a tree for the first time is many small reads in
//! a few zones, in no order. Reads that are scattered over many zones (a database) get no readahead.

use std::collections::VecDeque;

use parking_lot::Mutex;

use crate::volume::Region;

/// Reads are counted by zone.
const ZONE: u64 = 8 << 20;
/// Of the last [`RECENT`] small reads, so many in one zone are a crowd.
const CROWD: usize = 6;
const RECENT: usize = 64;
/// A crowd gets this much around each of its reads.
const WINDOW: u64 = 1 << 20;
/// A stream gets this much ahead.
const STREAM: u64 = 4 << 20;
const STREAMS: usize = 8;

/// See the module.
#[derive(Default)]
pub struct Readahead {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Where streams went so far, and up to where they were asked for: (region, end, asked).
    streams: VecDeque<(u64, u64, u64)>,
    /// Zones of recent small reads.
    zones: VecDeque<(u64, u64)>,
    /// Windows asked for lately.
    windows: VecDeque<(u64, u64)>,
}

impl Readahead {
    /// Notes that these bytes are about to be read from the volume, and asks for more where that seems wise.
    pub fn note(&self, region: &dyn Region, at: u64, len: u64) {
        let id = region.place().id;
        let wanted = self.state.lock().wanted(id, at, len);
        if let Some((from, n)) = wanted {
            let size = region.place().size;
            region.will_need(from, n.min(size.saturating_sub(from)));
        }
    }
}

impl State {
    fn wanted(&mut self, region: u64, at: u64, len: u64) -> Option<(u64, u64)> {
        let end = at + len;
        let near = |s: &(u64, u64, u64)| s.0 == region && at >= s.1 && at - s.1 <= 64 << 10;
        if let Some(i) = self.streams.iter().position(near) {
            let (_, _, asked) = self.streams.remove(i).expect("it is there");
            // Half of it is still ahead: not yet.
            let due = asked.saturating_sub(end) < STREAM / 2;
            let to = if due { end + STREAM } else { asked };
            self.streams.push_front((region, end, to));
            return due.then(|| (asked.max(end), to - asked.max(end)));
        }
        self.streams.push_front((region, end, end));
        self.streams.truncate(STREAMS);
        if len >= WINDOW {
            return None;
        }
        let zone = (region, at / ZONE);
        self.zones.push_front(zone);
        self.zones.truncate(RECENT);
        let window = (region, at / WINDOW);
        let crowded = self.zones.iter().filter(|z| **z == zone).count() >= CROWD;
        if !crowded || self.windows.contains(&window) {
            return None;
        }
        self.windows.push_front(window);
        self.windows.truncate(RECENT);
        Some((window.1 * WINDOW, WINDOW))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_and_crowds_are_read_ahead_and_scattered_reads_are_not() {
        let mut s = State::default();
        assert_eq!(s.wanted(1, 0, 1 << 20), None);
        assert_eq!(s.wanted(1, 1 << 20, 1 << 20), Some((2 << 20, STREAM)));
        assert_eq!(s.wanted(1, 2 << 20, 1 << 20), None, "enough is under way");
        let mut s = State::default();
        let crowd = (0..40u64).filter(|i| s.wanted(1, (i * 7919 * 4096) % ZONE, 4096).is_some()).count();
        assert!((4..=8).contains(&crowd), "{crowd} windows of one zone");
        let mut s = State::default();
        let scattered = (0..1000u64).filter(|i| s.wanted(1, crate::codec::mix(*i) % (1 << 33), 4096).is_some()).count();
        assert!(scattered < 10, "{scattered} of 1000");
    }
}
