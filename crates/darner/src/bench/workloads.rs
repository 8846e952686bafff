//! The table of workloads.

use std::io;

use super::stage::{Sample, Stage};
use super::{files, sqlite, streams, tree};

/// One line of the report.
pub struct Workload {
    /// For `--only`, and the line's head.
    pub name: &'static str,
    /// One sentence.
    pub what: &'static str,
    /// Caches are emptied before: a new mount, and the kernel's.
    pub cold: bool,
    /// The kernel's caches answer nearly all of it, whatever the filesystem.
    pub cached: bool,
    /// What must have run before.
    pub needs: &'static [&'static str],
    /// The work.
    pub run: fn(&Stage) -> io::Result<Sample>,
}

const fn workload(
    name: &'static str,
    needs: &'static [&'static str],
    what: &'static str,
    run: fn(&Stage) -> io::Result<Sample>,
) -> Workload {
    Workload { name, what, cold: false, cached: false, needs, run }
}

const fn cold(w: Workload) -> Workload {
    Workload { cold: true, ..w }
}

const fn cached(w: Workload) -> Workload {
    Workload { cached: true, ..w }
}

const LARGE: &[&str] = &["seq-write"];
const SMALL: &[&str] = &["small-create"];
const TREE: &[&str] = &["untar"];

/// In the order in which they run.
pub const ALL: &[Workload] = &[
    workload("seq-write", &[], "a new large file in 1 MiB writes, and fsync", streams::seq_write),
    cold(workload("seq-read", LARGE, "that file in 1 MiB reads", streams::seq_read)),
    cold(workload("rand-read", LARGE, "4 KiB reads anywhere in it, without readahead", streams::rand_read)),
    workload("rand-write", LARGE, "4 KiB buffered writes anywhere in it, and one fsync", streams::rand_write),
    workload("append-fsync", &[], "4 KiB appended, then fsync, each", streams::append_fsync),
    workload("overwrite-fsync", LARGE, "4 KiB anywhere in the large file, then fsync, each", streams::overwrite_fsync),
    workload("mmap-write", &[], "a byte in random pages of a mapped file, and one msync", streams::mmap_write),
    cold(workload("mmap-read", &["mmap-write"], "a byte of every page of a mapped file", streams::mmap_read)),
    workload("small-create", &[], "files of 4 KiB, 100 to a directory", files::create),
    cold(workload("stat-cold", SMALL, "stat by path in random order", files::stat)),
    cached(workload("stat-warm", SMALL, "the same again", files::stat_again)),
    cold(workload("readdir-cold", SMALL, "names of all the directories", files::list)),
    cached(workload("readdir-warm", SMALL, "the same again", files::list_again)),
    workload("rename", SMALL, "each file to another directory, and back", files::rename),
    workload("unlink", SMALL, "each file", files::unlink),
    workload("untar", &[], "tar unpacks a source tree", tree::untar),
    cold(workload("grep-cold", TREE, "every file of it read and searched", tree::grep)),
    cached(workload("grep-warm", TREE, "the same again", tree::grep_again)),
    workload("rm-tree", TREE, "the tree removed", tree::remove),
    workload("sqlite-wal", &[], "transactions of sqlite3 with a write-ahead log", sqlite::wal),
    workload("sqlite-journal", &[], "transactions of sqlite3 with a rollback journal", sqlite::journal),
];

/// Those named and what they need, each with whether it was named; none named: all. `Err`: a name that is none.
pub fn select(names: &[String]) -> Result<Vec<(&'static Workload, bool)>, String> {
    if let Some(unknown) = names.iter().find(|n| ALL.iter().all(|w| w.name != **n)) {
        let known: Vec<&str> = ALL.iter().map(|w| w.name).collect();
        return Err(format!("no workload is named {unknown}; there are {}", known.join(", ")));
    }
    let named = |w: &Workload| names.is_empty() || names.iter().any(|n| n == w.name);
    let needed = |w: &Workload| ALL.iter().any(|o| named(o) && o.needs.contains(&w.name));
    Ok(ALL.iter().filter(|w| named(w) || needed(w)).map(|w| (w, named(w))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_workload_needs_runs_before_it_and_needs_nothing_itself() {
        for (i, w) in ALL.iter().enumerate() {
            for need in w.needs {
                assert!(ALL[..i].iter().any(|before| before.name == *need && before.needs.is_empty()), "{}", w.name);
            }
        }
        let picked = select(&["grep-warm".into()]).expect("it exists");
        assert_eq!(
            picked.iter().map(|(w, named)| (w.name, *named)).collect::<Vec<_>>(),
            [("untar", false), ("grep-warm", true)]
        );
        assert!(select(&["nonsense".into()]).is_err());
    }
}
