//! Messages out of a stream of bytes.

use crate::error::Reason;
use crate::header::{Limits, length};

/// Collects bytes until a message is whole.
#[derive(Default)]
pub(crate) struct Assembler {
    buffer: Vec<u8>,
    /// What is in `buffer` and not yet taken.
    start: usize,
    end: usize,
    /// When the first byte of what is not whole came.
    since: Option<u64>,
    filled_at: u64,
}

impl Assembler {
    /// Where to put at least `n` further bytes.
    pub fn room(&mut self, n: usize) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.buffer.len() - self.end < n {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            let needed = (self.end + n).max(self.buffer.len());
            self.buffer.resize(needed, 0);
        }
        &mut self.buffer[self.end..]
    }

    /// So many were put there.
    pub fn filled(&mut self, n: usize, now: u64) {
        self.end += n;
        self.filled_at = now;
        if n > 0 {
            self.since.get_or_insert(now);
        }
    }

    /// Takes the next whole message out.
    pub fn next(&mut self, limits: &Limits) -> Result<Option<Vec<u8>>, Reason> {
        let have = &self.buffer[self.start..self.end];
        let Some(len) = length(have, limits)?.filter(|len| *len <= have.len()) else { return Ok(None) };
        let message = have[..len].to_vec();
        self.start += len;
        // The next one is not late because this one was.
        self.since = (self.start < self.end).then_some(self.filled_at);
        Ok(Some(message))
    }

    /// Whether [`Assembler::next`] has something to say.
    pub fn has_next(&self, limits: &Limits) -> bool {
        let have = &self.buffer[self.start..self.end];
        length(have, limits).map_or(true, |len| len.is_some_and(|len| len <= have.len()))
    }

    /// Since when a message is here in part.
    pub fn since(&self) -> Option<u64> {
        self.since
    }
}
