//! Whether whoever lists directories will ask for the attributes next.
//!
//! READDIRPLUS may bring them along (`ls -l`, `grep -r`: one request instead of one per name), but making an inode in the kernel for each
//! name costs several times the name itself (`ls`, `find -name`). The kernel asks for them with each directory's first
//! listing, knowing nothing of the others. So a listing now and then goes without, and what is looked up after it
//! tells for the next ones.

use parking_lot::Mutex;

/// Every so many listings one goes without attributes, to see.
const TRIAL: u32 = 16;
/// Look-ups after a listing that mean its attributes were wanted.
const ENOUGH: u32 = 2;
const SCORE_MAX: i32 = 4;

/// See the module.
#[derive(Default)]
pub struct Listing {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Above 0: give attributes.
    score: i32,
    listings: u32,
    /// The last directory listed without attributes, until it told what it had to.
    trial: Option<u64>,
    looked_up: u32,
}

impl Listing {
    /// A listing of directory `dir` begins or (`goes_on`) continues: whether to give attributes.
    pub fn wants_attributes(&self, dir: u64, goes_on: bool) -> bool {
        let mut s = self.state.lock();
        if goes_on {
            return s.trial != Some(dir) && s.score > 0;
        }
        if s.trial.take().is_some() && s.looked_up < ENOUGH {
            s.score = (s.score - 1).max(-SCORE_MAX);
        }
        s.listings = s.listings.wrapping_add(1);
        if s.score > 0 && !s.listings.is_multiple_of(TRIAL) {
            return true;
        }
        (s.trial, s.looked_up) = (Some(dir), 0);
        false
    }

    /// A name in directory `dir` was looked up.
    pub fn looked_up(&self, dir: u64) {
        let mut s = self.state.lock();
        if s.trial != Some(dir) {
            return;
        }
        s.looked_up += 1;
        if s.looked_up == ENOUGH {
            s.score = (s.score + 2).clamp(1, SCORE_MAX);
            s.trial = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_learns_from_what_follows_and_changes_its_mind() {
        let listing = Listing::default();
        let mut given = 0;
        for dir in 0..100 {
            given += u32::from(listing.wants_attributes(dir, false));
        }
        assert_eq!(given, 0, "nobody asked");
        for dir in 0..100 {
            if listing.wants_attributes(dir, false) {
                given += 1;
            } else {
                (0..5).for_each(|_| listing.looked_up(dir));
            }
        }
        assert!(given > 90, "after the first they are given: {given}");
        for dir in 0..200 {
            listing.wants_attributes(dir, false);
        }
        assert!(!listing.wants_attributes(7, false), "then nobody asked any more");
    }
}
