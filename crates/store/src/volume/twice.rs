//! A region of which there are two copies, on two volumes. docs/format.md §Copies.
//!
//! What is written goes to both. Where one volume fails, the other goes on alone: the one that failed is not used any more,
//! and before a flush returns, a superblock says so, or what it has might be taken for the truth later.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::set::Inner;
use super::{Region, RegionRef};
use crate::{Error, Result};

/// Whether a volume has failed since the store was opened.
#[derive(Default)]
pub struct Health(AtomicBool);

impl Health {
    pub fn has_failed(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// From now on it is not written to, and what has a copy elsewhere is not read from it.
    pub fn fail(&self, volume: &str, e: &Error) {
        if !self.0.swap(true, Ordering::AcqRel) {
            tracing::error!("{volume} has failed, and is not used any more until the next mount: {e}");
        }
    }
}

/// A copy of a region, and how its volume is.
pub struct Side {
    pub region: Arc<dyn Region>,
    pub health: Arc<Health>,
}

/// See the module.
pub struct Twice {
    sides: [Side; 2],
    at: RegionRef,
    volumes: Arc<Inner>,
}

impl Twice {
    pub fn new(sides: [Side; 2], volumes: Arc<Inner>) -> Twice {
        let [one, other] = [0, 1].map(|i| sides[i].region.place());
        let at = RegionRef { size: one.size.max(other.size), ..one.and(Some(other)) };
        Twice { sides, at, volumes }
    }

    fn sound(&self) -> impl Iterator<Item = &Side> {
        self.sides.iter().filter(|s| !s.health.has_failed())
    }

    /// Does it on both; one of them is enough.
    fn both(&self, action: impl Fn(&dyn Region) -> Result<()>) -> Result<()> {
        let outcomes: Vec<(&Side, Result<()>)> = self.sound().map(|side| (side, action(&*side.region))).collect();
        let is_done = outcomes.iter().any(|(_, outcome)| outcome.is_ok());
        for (side, outcome) in outcomes {
            match outcome {
                Err(e) if is_done => {
                    side.health.fail(&self.volumes.name_of(side.region.place().volume), &e);
                }
                outcome => outcome?,
            }
        }
        match is_done {
            true => Ok(()),
            false => Err(self.failed()),
        }
    }

    fn failed(&self) -> Error {
        Error::Io {
            place: format!("both volumes of region {:x}", self.at.id),
            action: "use",
            source: Arc::new(std::io::ErrorKind::NotConnected.into()),
        }
    }
}

impl Region for Twice {
    fn place(&self) -> RegionRef {
        self.at
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut outcome = Err(self.failed());
        for side in self.sound() {
            outcome = side.region.read_at(buf, offset);
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.both(|region| region.write_at(bytes, offset))
    }

    fn flush(&self) -> Result<()> {
        self.both(|region| region.flush())?;
        if self.sound().count() < self.sides.len() {
            self.volumes.note_failures()?;
        }
        Ok(())
    }

    fn copies(&self) -> Vec<Arc<dyn Region>> {
        let sound: Vec<_> = self.sound().map(|side| side.region.clone()).collect();
        if sound.len() > 1 { sound } else { Vec::new() }
    }

    fn note_healed(&self) {
        self.volumes.note_healed();
    }

    fn write_back(&self, offset: u64, len: u64) {
        self.sound().for_each(|side| side.region.write_back(offset, len));
    }

    fn will_need(&self, offset: u64, len: u64) {
        if let Some(side) = self.sound().next() {
            side.region.will_need(offset, len);
        }
    }

    fn drop_cached(&self, offset: u64, len: u64) {
        self.sound().for_each(|side| side.region.drop_cached(offset, len));
    }

    fn gains_from_zeroes_ahead(&self) -> bool {
        self.sides.iter().any(|side| side.region.gains_from_zeroes_ahead())
    }
}

/// A region whose only volume is missing, or that is gone.
pub struct Absent {
    pub at: RegionRef,
    /// What its volume is called, and why it is not there.
    pub volume: String,
}

impl Absent {
    fn error<T>(&self, action: &'static str) -> Result<T> {
        Err(Error::Io {
            place: format!("region {:x}, on {}", self.at.id, self.volume),
            action,
            source: Arc::new(std::io::ErrorKind::NotConnected.into()),
        })
    }
}

impl Region for Absent {
    fn place(&self) -> RegionRef {
        self.at
    }

    fn is_absent(&self) -> bool {
        true
    }

    fn read_at(&self, _: &mut [u8], _: u64) -> Result<()> {
        self.error("read")
    }

    fn write_at(&self, _: &[u8], _: u64) -> Result<()> {
        self.error("write")
    }

    fn flush(&self) -> Result<()> {
        self.error("flush")
    }
}
