//! The leader's token: only its holder reads the device.
//!
//! One reader at a time means: no herd of threads woken for one request, and a quick request is answered by the thread
//! that read it, without a hand-over. A leader about to block gives the token away first.
//!
//! Invariants: at most one holder; once finished, nobody becomes the holder any more.

use parking_lot::{Condvar, Mutex};

#[derive(Default)]
struct State {
    held: bool,
    finished: bool,
}

#[derive(Default)]
pub(crate) struct Token {
    state: Mutex<State>,
    free: Condvar,
}

impl Token {
    /// Waits to become the leader; `false`: the session is over.
    pub(crate) fn acquire(&self) -> bool {
        let mut state = self.state.lock();
        self.free.wait_while(&mut state, |state| state.held && !state.finished);
        state.held |= !state.finished;
        !state.finished
    }

    /// Gives it to one of those who wait, or to the next that comes.
    pub(crate) fn release(&self) {
        self.state.lock().held = false;
        self.free.notify_one();
    }

    /// Sends everybody home.
    pub(crate) fn finish(&self) {
        self.state.lock().finished = true;
        self.free.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_leads_until_it_gives_way_and_all_go_home_at_the_end() {
        let token = Token::default();
        assert!(token.acquire());
        std::thread::scope(|scope| {
            let second = scope.spawn(|| token.acquire() && !token.acquire());
            token.release();
            while !token.state.lock().held {
                std::thread::yield_now();
            }
            token.finish();
            assert!(second.join().unwrap());
        });
        assert!(!token.acquire());
    }
}
