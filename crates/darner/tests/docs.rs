//! What the documents name exists: files, headings, commands, tests.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).expect(path)
}

fn headings() -> HashSet<String> {
    read("docs/format.md").lines().filter_map(|l| Some(l.strip_prefix("## ")?.to_string())).collect()
}

/// All Rust sources: (path, text).
fn sources() -> Vec<(PathBuf, String)> {
    fn walk(dir: &Path, out: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).expect("UTF-8");
                out.push((path, text));
            }
        }
    }
    let mut out = Vec::new();
    walk(&root().join("crates"), &mut out);
    out
}

/// What stands between backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Lines of shell in fenced blocks.
fn shell(text: &str) -> Vec<&str> {
    let blocks = text.split("```").skip(1).step_by(2).filter_map(|b| b.strip_prefix("sh\n"));
    blocks.flat_map(str::lines).filter(|l| !l.is_empty() && !l.starts_with('#')).collect()
}

#[test]
fn the_table_of_nouns_names_files_headings_and_commands_that_exist() {
    let headings = headings();
    let architecture = read("ARCHITECTURE.md");
    let rows: Vec<&str> = architecture.lines().filter(|l| l.contains("| docs/format.md §")).collect();
    assert!(rows.len() >= 8, "the table is there");
    let cli = darner::cli::Cli::command();
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let command = quoted(cells[0]).next().expect("a command");
        assert!(cli.find_subcommand(command).is_some(), "{command}");
        for file in cells[1..4].iter().flat_map(|c| quoted(c)) {
            assert!(root().join(file).is_file(), "{file}");
        }
        let heading = cells[4].strip_prefix("docs/format.md §").expect("a heading");
        assert!(headings.contains(heading), "{heading}");
    }
}

#[test]
fn files_that_the_code_map_names_exist() {
    let architecture = read("ARCHITECTURE.md");
    let mut at = String::new();
    for line in architecture.lines() {
        if let Some(title) = line.strip_prefix("### ") {
            at = format!("{}/src", title.split(':').next().expect("a crate"));
        } else if line.starts_with("## ") {
            at.clear();
        }
        for name in quoted(line).filter(|n| !at.is_empty() && n.ends_with(".rs")) {
            let dirs = ["", "index", "volume", "archive", "iso9660", "msdosfs"];
            assert!(dirs.iter().any(|d| root().join(&at).join(d).join(name).is_file()), "{at}: {name}");
        }
    }
}

#[test]
fn sections_of_the_format_that_the_code_refers_to_exist() {
    let headings = headings();
    for (path, text) in sources() {
        for reference in text.split("docs/format.md §").skip(1) {
            let known = headings.iter().any(|h| reference.starts_with(h.as_str()));
            assert!(known || path.ends_with("docs.rs"), "{}: §{:.30}", path.display(), reference);
        }
    }
}

#[test]
fn tests_that_the_semantics_name_exist() {
    let functions: HashSet<String> = sources()
        .iter()
        .flat_map(|(_, text)| {
            text.split("fn ").skip(1).filter_map(|f| f.split('(').next()).map(String::from).collect::<Vec<_>>()
        })
        .collect();
    let semantics = read("docs/semantics.md");
    let named: Vec<&str> = quoted(&semantics)
        .filter(|q| q.len() > 30 && q.chars().all(|c| c == '_' || c.is_ascii_alphanumeric()))
        .collect();
    assert!(named.len() > 20, "promises name their tests");
    for test in named {
        assert!(functions.contains(test), "{test}");
    }
}

#[test]
fn what_the_readme_tells_people_to_type_exists() {
    let (readme, ci) = (read("README.md"), read(".ci/run"));
    let blocks = shell(&readme);
    assert_eq!(blocks[0], "cargo run --release -- mount --create ./store ./mnt");
    assert_eq!(blocks[1], "cargo test --release --workspace");
    assert!(ci.contains(blocks[1]));
    let cli = darner::cli::Cli::command();
    for line in blocks.iter().filter_map(|l| l.strip_prefix("darner ")) {
        let command = line.split_whitespace().next().expect("a command");
        assert!(cli.find_subcommand(command).is_some(), "darner {command}");
    }
    for line in blocks.iter().filter(|l| l.starts_with("bash ")) {
        let script = line.split_whitespace().nth(1).expect("a script");
        assert!(root().join(script).is_file(), "{script}");
    }
}
