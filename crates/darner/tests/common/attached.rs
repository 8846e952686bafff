//! Attaching plug-ins, and one in Python that can be made to misbehave.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use super::World;

/// Attaches to a new directory of the mount.
#[track_caller]
pub fn attach(world: &World, dir: &str, args: &[&str]) -> PathBuf {
    try_attach(world, dir, args).unwrap()
}

pub fn try_attach(world: &World, dir: &str, args: &[&str]) -> Result<PathBuf, String> {
    let at = world.path(dir);
    let _ = std::fs::create_dir(&at);
    let log = world.dir.join("host.log");
    let (options, what) =
        args.split_at(args.iter().position(|a| *a == "--" || !a.starts_with('-')).unwrap_or(args.len()));
    let mut command = Command::new("timeout");
    command.args(["60", super::DARNER, "attach", "--log"]).arg(log).args(options).arg(&at).args(what);
    let out = command.output().unwrap();
    match out.status.success() {
        true => Ok(at),
        false => Err(String::from_utf8_lossy(&out.stderr).into_owned()),
    }
}

pub fn status(world: &World, dir: &str) -> Value {
    let at = world.path(dir);
    let all = world.status()["attachments"].clone();
    let all = all.as_array().unwrap().clone();
    all.into_iter().find(|a| a["directory"] == at.to_str().unwrap()).expect("it is listed")
}

/// The plug-in in Python, with `more` before it begins.
pub fn python(world: &World, more: &str) -> Option<String> {
    if !PathBuf::from("/usr/bin/python3").exists() {
        eprintln!("SKIPPED: {} needs /usr/bin/python3", std::thread::current().name().unwrap_or("a test"));
        return None;
    }
    let text = include_str!("../plugin.py").replace("if __name__ ==", &format!("{more}\n\nif __name__ =="));
    let path = world.dir.join(format!("plugin-{}.py", fastrand::u32(..)));
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    Some(path.to_str().unwrap().to_string())
}
