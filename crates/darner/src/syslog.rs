//! The system's log, for daemons in the background that were not told of a file: one datagram a line to `/dev/log`, as syslog(3)
//! sends them; journald and the like take it from there. Where nobody listens, lines are lost.

use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// Where the system's logger listens.
const PATH: &str = "/dev/log";
/// Daemons, as syslog counts facilities.
const DAEMONS: u8 = 3 << 3;

/// See the module.
pub struct Syslog {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Syslog {
    /// The system's; `None` if there is none.
    pub fn find() -> Option<Syslog> {
        Syslog::at(PATH.into())
    }

    fn at(path: PathBuf) -> Option<Syslog> {
        let socket = UnixDatagram::unbound().ok().filter(|s| s.set_nonblocking(true).is_ok())?;
        path.exists().then_some(Syslog { socket, path })
    }

    fn line(&self, severity: u8) -> Line<'_> {
        let head = format!("<{}>darner[{}]: ", DAEMONS | severity, std::process::id());
        Line { log: self, text: head.into_bytes() }
    }
}

impl<'a> MakeWriter<'a> for Syslog {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        self.line(6)
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Line<'a> {
        self.line(match *meta.level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            _ => 7,
        })
    }
}

/// A line that is sent when it is dropped.
pub struct Line<'a> {
    log: &'a Syslog,
    text: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        // (Not connected: the logger may be started anew. A log must never hold up what it tells of.)
        let _ = self.log.socket.send_to(self.text.trim_ascii_end(), &self.log.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_is_one_datagram_with_its_severity_and_nobody_there_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert!(Syslog::at(path.clone()).is_none());
        let logger = UnixDatagram::bind(&path).unwrap();
        let log = Syslog::at(path.clone()).unwrap();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).without_time().with_level(false).with_writer(log);
        tracing::subscriber::with_default(subscriber.finish(), || {
            tracing::warn!(n = 7, "careful");
            tracing::error!("broken");
        });
        let mut bytes = [0; 1000];
        let mut next = || {
            let n = logger.recv(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes[..n]).into_owned()
        };
        let (first, second) = (next(), next());
        assert!(first.starts_with("<28>darner[") && first.contains("careful") && first.ends_with("n=7"), "{first}");
        assert!(second.starts_with("<27>darner[") && second.ends_with("broken"), "{second}");
        let log = Syslog::at(path.clone()).unwrap();
        drop(logger);
        std::fs::remove_file(path).unwrap();
        writeln!(log.line(6), "nobody hears it").unwrap();
    }
}
