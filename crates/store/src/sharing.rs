//! Stored extents that versions of several keys need (copies that share, restores): in an account they count once, as live if a live
//! version needs them.
//!
//! Which these are is known only when all versions have passed, so an account that finds some goes through the versions once more.

use rustc_hash::FxHashMap;

use crate::FilesetId;
use crate::codec::mix;
use crate::extent::Place;
use crate::sieve::{Account, Past, block_bytes};

/// A stored extent by region and first byte.
pub(crate) type Extent = (u64, u64);

/// So many are told apart from others at most; more count with each key.
const MOST: usize = 1 << 20;
/// Bits of the sketch for each version, and all of them at least and at most.
const BITS: u64 = 16;
const BITS_MIN: u64 = 1 << 16;
const BITS_MAX: u64 = 1 << 28;

/// See the module.
pub(crate) struct Sharing {
    /// Of each extent that was met a bit. (Two may have the same: then one is taken for shared, which changes no sum.)
    sketch: Vec<u64>,
    shared: FxHashMap<Extent, Needed>,
}

/// Which blocks of a shared extent are needed, and by what.
#[derive(Default)]
struct Needed {
    place: Option<Place>,
    live: u32,
    history: u32,
    lapsed: u32,
    /// Of the versions in the past that need it, the one that stays longest.
    past: Option<Past>,
    lapsed_of: Option<FilesetId>,
}

/// What needs an extent.
pub(crate) enum By<'p> {
    Live,
    Past(&'p Past),
    /// A version that lapsed, of that fileset.
    Lapsed(FilesetId),
}

impl Sharing {
    /// For finding them among extents of so many versions.
    pub fn find(versions: u64) -> Sharing {
        let bits = (versions * BITS).next_power_of_two().clamp(BITS_MIN, BITS_MAX);
        Sharing { sketch: vec![0; bits as usize / 64], shared: FxHashMap::default() }
    }

    /// For counting, once they are found; `None` if there are none.
    pub fn found(self) -> Option<Sharing> {
        (!self.shared.is_empty()).then_some(Sharing { sketch: Vec::new(), ..self })
    }

    /// A key needs an extent, or did.
    pub fn meet(&mut self, extent: Extent) {
        if self.sketch.is_empty() {
            return;
        }
        let bit = mix(mix(extent.0) ^ extent.1) as usize % (self.sketch.len() * 64);
        let (word, bit) = (&mut self.sketch[bit / 64], 1 << (bit % 64));
        if *word & bit != 0 && self.shared.len() < MOST {
            self.shared.entry(extent).or_default();
        }
        *word |= bit;
    }

    /// Takes note of needed blocks, if the extent is one of those that count once; says whether it is.
    pub fn take(&mut self, place: &Place, blocks: u32, by: &By<'_>) -> bool {
        if !self.sketch.is_empty() {
            return false;
        }
        let Some(needed) = self.shared.get_mut(&(place.region, place.offset)) else { return false };
        needed.place = Some(*place);
        match by {
            By::Live => needed.live |= blocks,
            By::Past(past) => {
                needed.history |= blocks;
                if needed.past.as_ref().is_none_or(|known| known.until < past.until) {
                    needed.past = Some((*past).clone());
                }
            }
            By::Lapsed(fileset) => {
                needed.lapsed |= blocks;
                needed.lapsed_of = Some(*fileset);
            }
        }
        true
    }

    /// Adds what they come to.
    pub fn count(self, account: &mut Account) {
        for needed in self.shared.into_values() {
            let Some(place) = needed.place else { continue };
            account.live += block_bytes(&place, needed.live);
            if let Some(past) = &needed.past {
                account.add_history(past, block_bytes(&place, needed.history & !needed.live));
            }
            if let Some(fileset) = needed.lapsed_of {
                account.add_lapsed(fileset, 0, block_bytes(&place, needed.lapsed & !needed.history & !needed.live));
            }
        }
    }
}
