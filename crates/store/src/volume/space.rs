//! Which bytes of a raw volume belong to which region.
//!
//! Invariant: ranges never overlap. After a crash a manifest, or the seal before it, may name a segment by the size that it had before
//! it was trimmed, and what it gave back then may be another region's by now. While the log is replayed, all that anybody could
//! have belongs to somebody; once the segments' ends are known, the claims are made anew, without what was given back.

use std::collections::BTreeMap;
use std::ops::Range;

/// See the module.
#[derive(Default)]
pub struct Space {
    /// First byte → (end, region).
    used: BTreeMap<u64, (u64, u64)>,
    sum: u64,
}

impl Space {
    /// Gives `range` to a region, but for what belongs to one with a higher number.
    pub fn claim(&mut self, range: Range<u64>, region: u64) {
        let mut at = range.start;
        for (part, owner) in self.within(&range) {
            if owner > region {
                self.insert(at..part.start, region);
                at = part.end;
            } else {
                self.cut(part, owner);
            }
        }
        self.insert(at..range.end, region);
    }

    /// What of `range` belongs to a region.
    pub fn owned(&self, range: &Range<u64>, region: u64) -> Vec<Range<u64>> {
        self.within(range).into_iter().filter(|(_, owner)| *owner == region).map(|(part, _)| part).collect()
    }

    /// Gives back what of `range` belongs to a region.
    pub fn release(&mut self, range: &Range<u64>, region: u64) {
        for part in self.owned(range, region) {
            self.cut(part, region);
        }
    }

    /// What belongs to regions, in order.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> {
        self.used.iter().map(|(start, (end, _))| *start..*end)
    }

    /// The last byte that belongs to one, and one more.
    pub fn end(&self) -> u64 {
        self.used.last_key_value().map_or(0, |(_, (end, _))| *end)
    }

    /// Bytes that belong to regions.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// Those of them from byte `at` on.
    pub fn sum_behind(&self, at: u64) -> u64 {
        let behind = self.used.iter().rev().take_while(|(_, (end, _))| *end > at);
        behind.map(|(start, (end, _))| end - at.max(*start)).sum()
    }

    /// What belongs to none, from `first` to `end`, in order.
    pub fn gaps(&self, first: u64, end: u64) -> impl Iterator<Item = Range<u64>> {
        let mut at = first;
        self.ranges().chain(std::iter::once(end..u64::MAX)).filter_map(move |used| {
            let gap = at..used.start.min(end);
            at = at.max(used.end);
            (!gap.is_empty()).then_some(gap)
        })
    }

    fn insert(&mut self, range: Range<u64>, region: u64) {
        if !range.is_empty() {
            self.sum += range.end - range.start;
            self.used.insert(range.start, (range.end, region));
        }
    }

    fn within(&self, range: &Range<u64>) -> Vec<(Range<u64>, u64)> {
        let before = self.used.range(..range.start).next_back();
        let all = before.into_iter().chain(self.used.range(range.clone()));
        let part = |(start, (end, owner)): (&u64, &(u64, u64))| {
            let part = range.start.max(*start)..range.end.min(*end);
            (!part.is_empty()).then_some((part, *owner))
        };
        all.filter_map(part).collect()
    }

    /// Takes `part` out of the one range that it lies in.
    fn cut(&mut self, part: Range<u64>, owner: u64) {
        let (&start, &(end, _)) = self.used.range(..=part.start).next_back().expect("it lies in one");
        self.used.remove(&start);
        self.sum -= end - start;
        self.insert(start..part.start, owner);
        self.insert(part.end..end, owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_as_a_plain_array_of_owners() {
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..200 {
            let mut space = Space::default();
            let mut model = [0u64; 64];
            for region in 1..40 {
                let from = rng.u64(..63);
                let range = from..rng.u64(from + 1..=64);
                let of = rng.u64(1..=region);
                let mut owned: Vec<u64> = Vec::new();
                for at in range.clone() {
                    match region % 3 {
                        0 if model[at as usize] == of => {
                            owned.push(at);
                            model[at as usize] = 0;
                        }
                        0 => {}
                        1 => model[at as usize] = region,
                        _ => model[at as usize] = model[at as usize].max(of),
                    }
                }
                match region % 3 {
                    0 => {
                        assert_eq!(space.owned(&range, of).into_iter().flatten().collect::<Vec<_>>(), owned);
                        space.release(&range, of);
                    }
                    1 => space.claim(range, region),
                    _ => space.claim(range, of),
                }
                let free: Vec<u64> = (0..64).filter(|at| model[*at as usize] == 0).collect();
                assert_eq!(space.gaps(0, 64).flatten().collect::<Vec<_>>(), free);
                assert_eq!(space.sum(), 64 - free.len() as u64);
            }
        }
    }
}
