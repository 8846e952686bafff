//! Transactions of the `sqlite3` program, durable each (synchronous=FULL, its default), in both journal modes.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::process::{Command, Stdio};

use super::data::Rng;
use super::stage::{Sample, Stage};

/// With a write-ahead log.
pub fn wal(s: &Stage) -> io::Result<Sample> {
    transactions(s, "wal", s.scale.wal_txns)
}

/// With a rollback journal that is deleted at each commit.
pub fn journal(s: &Stage) -> io::Result<Sample> {
    transactions(s, "delete", s.scale.journal_txns)
}

/// One insertion and one update of an older row per transaction.
fn transactions(s: &Stage, mode: &str, txns: u64) -> io::Result<Sample> {
    let program = s.kit.sqlite.as_ref().ok_or_else(|| io::Error::other("sqlite3 is not installed"))?;
    let name = |suffix: &str| s.dir.join(format!("{mode}.db{suffix}"));
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let _ = fs::remove_file(name(suffix));
    }
    let mut rng = Rng::new(s.round);
    let mut script = format!("PRAGMA journal_mode={mode}; PRAGMA synchronous=FULL;\n");
    script += "CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER, body TEXT);\n";
    for n in 1..=txns {
        let (old, a, b) = (rng.below(n) + 1, rng.next(), rng.next());
        let row = format!("{a:016x}{b:016x}").repeat(6);
        let update = format!("UPDATE t SET n = n + 1 WHERE id = {old};");
        writeln!(script, "BEGIN; INSERT INTO t VALUES ({n}, 0, '{row}'); {update} COMMIT;").expect("strings take all");
    }
    let script_path = s.kit.tar.with_file_name("script.sql");
    fs::write(&script_path, script)?;
    let (db, input) = (name(""), File::open(&script_path)?);
    s.time(txns, 0, || {
        let output = Command::new(program).arg("-bail").arg(db).stdin(input).stdout(Stdio::null()).output()?;
        if !output.status.success() {
            return Err(io::Error::other(format!("sqlite3: {}", String::from_utf8_lossy(&output.stderr).trim())));
        }
        Ok(())
    })
}
