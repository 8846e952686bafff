//! One file per command.

mod attach;
mod bench;
mod check;
mod clean;
mod clone;
mod create;
pub(crate) mod daemon;
mod detach;
mod diff;
mod fileset;
mod forget;
mod inspect;
mod log;
mod manual;
mod mirror;
mod mount;
mod plugin;
mod rebuild;
mod restore;
mod retain;
mod scrub;
mod serve;
mod snapshot;
mod status;
mod unmount;
mod upgrade;
mod volume;

use std::io::{IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use crate::cli::{Cli, Command};
use crate::control::{self, Request, Response};
use crate::error::{Context, Failure, Result};
use crate::place::Place;

/// Runs the command line; errors go to stderr, the exit code to scripts: 0 done, 1 failed, 2 wrong usage (`diff`:
/// 0 the same, 1 different, 2 failed).
pub fn main() -> ExitCode {
    // A file that would be larger than may be is an error to be told (EFBIG), not the end.
    // SAFETY: a plain system call, before there is any other thread.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let cli = Cli::of(arguments());
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let message = e.to_string();
            if !message.is_empty() {
                eprintln!("darner: {}", harmless(&message));
            }
            ExitCode::from(e.code())
        }
    }
}

/// mount(8) calls `mount.fuse.darner STORE MNT -o …`, mount.fuse(8) calls `darner STORE MNT -o …`: both mean `mount`.
fn arguments() -> Vec<std::ffi::OsString> {
    let mut args: Vec<_> = std::env::args_os().collect();
    let name = args.first().map(|a| std::path::Path::new(a).file_name().unwrap_or_default().to_os_string());
    let as_helper = name.is_some_and(|n| n.to_string_lossy().starts_with("mount."));
    let is_command = |a: &std::ffi::OsString| {
        use clap::CommandFactory;
        let a = a.to_string_lossy();
        a.starts_with('-') || a == "help" || Cli::command().get_subcommands().any(|c| c.get_name() == a)
    };
    let as_program = args.len() >= 4 && args.iter().any(|a| a == "-o") && !is_command(&args[1]);
    if as_helper || as_program {
        args.insert(1, "mount".into());
    }
    args
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Create(c) => create::run(&c),
        Command::Mount(c) => mount::run(c),
        Command::Daemon(c) => daemon::supervise(&c),
        Command::Worker(c) => daemon::work(c),
        Command::Errands => crate::errand::serve(),
        Command::Stay(c) => mirror::stay(&c),
        Command::Attach(c) => attach::run(c),
        Command::Attachment(c) => attach::supervise(&c),
        Command::Host(c) => attach::host(&c),
        Command::Plugin(c) => plugin::run(c),
        Command::Detach(c) => detach::run(&c),
        Command::Unmount(c) => unmount::run(&c),
        Command::Upgrade(c) => upgrade::run(&c),
        Command::Status(c) => status::run(&c),
        Command::Log(c) => log::run(&c),
        Command::Snapshot(c) => snapshot::run(&c),
        Command::Volume(c) => volume::run(&c),
        Command::Fileset(c) => fileset::run(&c),
        Command::Mirror(c) => mirror::run(&c),
        Command::Serve(c) => serve::run(&c),
        Command::Clone(c) => clone::run(&c),
        Command::Bench(c) => bench::run(&c),
        Command::Man(c) => manual::pages(&c),
        Command::Completions(c) => manual::completions(&c),
        Command::Diff(c) => diff::run(&c),
        Command::Restore(c) => restore::run(&c),
        Command::Inspect(c) => inspect::run(&c),
        Command::Check(c) => check::run(&c),
        Command::Scrub(c) => scrub::run(&c),
        Command::Rebuild(c) => rebuild::run(&c),
        Command::Retain(c) => retain::run(&c),
        Command::Clean(c) => clean::run(&c),
        Command::Forget(c) => forget::run(&c),
    }
}

/// Prints lines; a reader that went away (`| head`) is no error.
pub(crate) fn print(text: &str) -> Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.cant(|| "write to standard output".into()),
    }
}

/// A path on a line of its own: one with control characters, broken UTF-8 or backslashes is escaped.
pub(crate) fn printable(path: &Path) -> String {
    match path.to_str() {
        Some(text) if !text.contains(|c: char| c.is_control() || c == '\\') => text.to_string(),
        _ => path.as_os_str().as_bytes().escape_ascii().to_string(),
    }
}

/// A path in JSON: as it is or, where it is no UTF-8, escaped.
#[derive(serde::Serialize)]
pub(crate) struct Named {
    path: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    escaped: bool,
}

impl Named {
    pub(crate) fn of(path: &Path) -> Named {
        let text = path.to_str();
        Named { path: text.map_or_else(|| printable(path), str::to_owned), escaped: text.is_none() }
    }
}

/// A path as a shell takes it back.
pub(crate) fn quoted(path: &Path) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+,:@%".contains(c);
    match path.to_str() {
        Some(text) if text.chars().all(is_plain) => text.into(),
        Some(text) if !text.contains(char::is_control) => format!("'{}'", text.replace('\'', r"'\''")),
        _ => format!("$'{}'", path.as_os_str().as_bytes().escape_ascii()),
    }
}

/// A message with the names in it that a terminal would take for commands escaped.
fn harmless(message: &str) -> String {
    let escape = |c: char| match c {
        c if c.is_control() && c != '\n' => c.escape_default().to_string(),
        c => c.to_string(),
    };
    message.chars().map(escape).collect()
}

/// Shows on a terminal that long work goes on; elsewhere nothing.
pub(crate) fn spinner(what: &'static str) -> indicatif::ProgressBar {
    let bar = indicatif::ProgressBar::new_spinner();
    let style = indicatif::ProgressStyle::with_template("{spinner} {prefix} {human_pos} {msg} ({elapsed})");
    bar.set_style(style.expect("the template is well-formed"));
    bar.set_prefix(what);
    bar.enable_steady_tick(std::time::Duration::from_millis(200));
    bar
}

/// Shows on a terminal how far long work is; elsewhere nothing. `template`: as `indicatif` has it.
pub(crate) fn progress_bar(template: &str) -> indicatif::ProgressBar {
    if !std::io::stderr().is_terminal() {
        return indicatif::ProgressBar::hidden();
    }
    let style = indicatif::ProgressStyle::with_template(template);
    indicatif::ProgressBar::new(0).with_style(style.expect("the template is well-formed"))
}

/// Calls the daemon that has a store for what may take long, and shows how far it is.
pub(crate) fn call_showing_progress(place: &Place, request: &Request) -> Result<Response> {
    let bar = progress_bar("{bar:40} {percent}% eta {eta} ({elapsed})");
    let answer = control::must_call_with(place, request, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    answer
}

/// The daemon, of another version perhaps, answered what was not asked.
pub(crate) fn other_answer() -> Failure {
    Failure::new("the daemon gave an answer of another kind")
}

/// The number of a region, as inspect prints it.
pub(crate) fn region_number(text: &str) -> Result<u64> {
    let id = u64::from_str_radix(text.trim_start_matches("0x"), 16);
    id.map_err(|_| Failure::new(format!("{text:?} is no region number (hexadecimal)")))
}

/// Prints a value as JSON.
pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Bytes as people read them.
pub(crate) fn human(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_quoted_only_where_a_shell_would_take_it_for_something_else() {
        let plain = "/tmp/.tmpAb/a-b_c,d+e@@0x18";
        assert_eq!(quoted(Path::new(plain)), plain);
        for name in
            ["a b", "it's", "$HOME", "*", "line\nbreak", "\u{1b}[31mred\\", "ünï", "tab\t'\"", "\u{9b}1m", "\u{2028}"]
        {
            let line = format!("printf %s {}", quoted(Path::new(name)));
            assert!(!line.contains(char::is_control), "{line:?}");
            let said = std::process::Command::new("bash").args(["-c", &line]).output().expect("bash is there");
            assert_eq!(said.stdout, name.as_bytes(), "{line}");
        }
        let broken = std::ffi::OsStr::from_bytes(b"\xff1");
        assert_eq!(quoted(Path::new(broken)), r"$'\xff1'");
    }

    #[test]
    fn a_message_with_a_strange_name_commands_no_terminal() {
        assert_eq!(harmless("a\u{1b}[2J …\nb"), "a\\u{1b}[2J …\nb");
    }
}
