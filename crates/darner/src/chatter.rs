//! What a plug-in prints, as lines of its host's log: as many as a log can take.

use std::io::{self, PipeReader, Read};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

/// Longest line, bytes.
const LINE_MAX: usize = 1 << 10;
/// Bytes in a second.
const PER_SECOND: usize = 64 << 10;
const SECOND: Duration = Duration::from_secs(1);

/// Logs what comes, until nobody can write there any more.
pub fn log(mut from: PipeReader) -> io::Result<()> {
    thread::Builder::new().name("chatter".into()).spawn(move || {
        let mut chatter = Chatter::new(Instant::now());
        let mut say = |line: &str| tracing::info!("plug-in: {line}");
        let mut buffer = vec![0; 64 << 10];
        loop {
            // What was dropped is told when its second is over, also if nothing follows.
            if chatter.dropped > 0 && !is_readable(&from, SECOND) {
                chatter.take(&[], Instant::now(), &mut say);
            }
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => {
                    if !chatter.take(&buffer[..n], Instant::now(), &mut say) {
                        // It can wait, and others need the CPU.
                        thread::sleep(Duration::from_millis(1));
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        chatter.end(&mut say);
    })?;
    Ok(())
}

/// Whether there is something to read, or the end, within that time.
fn is_readable(from: &PipeReader, time: Duration) -> bool {
    let mut wait = libc::pollfd { fd: from.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd.
    unsafe { libc::poll(&mut wait, 1, time.as_millis() as i32 + 1) != 0 }
}

struct Chatter {
    line: Vec<u8>,
    since: Instant,
    left: usize,
    dropped: u64,
}

impl Chatter {
    fn new(now: Instant) -> Chatter {
        Chatter { line: Vec::new(), since: now, left: PER_SECOND, dropped: 0 }
    }

    /// Says whether there is still room in this second.
    fn take(&mut self, bytes: &[u8], now: Instant, say: &mut impl FnMut(&str)) -> bool {
        if now.duration_since(self.since) >= SECOND {
            (self.since, self.left) = (now, PER_SECOND);
            self.tell(say);
        }
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            let (text, ends) = match piece.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (piece, false),
            };
            let n = text.len().min(LINE_MAX - self.line.len());
            self.line.extend_from_slice(&text[..n]);
            self.dropped += (text.len() - n) as u64;
            if ends {
                self.finish(say);
            }
        }
        self.left > 0
    }

    fn finish(&mut self, say: &mut impl FnMut(&str)) {
        let line = std::mem::take(&mut self.line);
        // (Empty ones are lines of the log, too.)
        let size = line.len() + 64;
        if size > self.left {
            (self.left, self.dropped) = (0, self.dropped + line.len() as u64 + 1);
            return;
        }
        self.left -= size;
        say(&darner_syslink::plain(&String::from_utf8_lossy(&line)));
    }

    fn tell(&mut self, say: &mut impl FnMut(&str)) {
        if self.dropped > 0 {
            say(&format!("… {} bytes dropped", self.dropped));
            self.dropped = 0;
        }
    }

    fn end(&mut self, say: &mut impl FnMut(&str)) {
        if !self.line.is_empty() {
            self.finish(say);
        }
        self.tell(say);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_and_those_beyond_what_a_second_takes_are_counted() {
        let (start, mut said) = (Instant::now(), Vec::new());
        let mut chatter = Chatter::new(start);
        let mut say = |line: &str| said.push(line.to_string());
        assert!(chatter.take(b"one\ntw", start, &mut say));
        assert!(chatter.take(b"o\x1b\n", start, &mut say));
        let long = [b"x".repeat(5000), b"\n".to_vec()].concat();
        assert!(chatter.take(&long, start, &mut say));
        assert!(!chatter.take(&b"more\n".repeat(100_000), start, &mut say));
        assert!(chatter.take(b"later\nlast", start + SECOND, &mut say));
        chatter.end(&mut say);
        let more = said.iter().filter(|line| *line == "more").count();
        assert_eq!(said[..3], ["one".to_string(), "two\\u{1b}".into(), "x".repeat(LINE_MAX)]);
        let dropped = 5000 - LINE_MAX + 5 * (100_000 - more);
        assert_eq!(said[3 + more..], [format!("… {dropped} bytes dropped"), "later".into(), "last".into()]);
        assert!((500..PER_SECOND / 64).contains(&more), "{more}");
    }
}
