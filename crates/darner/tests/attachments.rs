//! Filesystems that are processes of their own, in directories of a mount: the real program, the real kernel.

mod common;

use std::path::PathBuf;
use std::process::Command;

use common::{World, eventually};
use serde_json::Value;

/// Attaches to a new directory of the mount.
#[track_caller]
fn attach(world: &World, dir: &str, args: &[&str]) -> PathBuf {
    try_attach(world, dir, args).unwrap()
}

fn try_attach(world: &World, dir: &str, args: &[&str]) -> Result<PathBuf, String> {
    let at = world.path(dir);
    let _ = std::fs::create_dir(&at);
    let log = world.dir.join("host.log");
    let (options, what) =
        args.split_at(args.iter().position(|a| *a == "--" || !a.starts_with('-')).unwrap_or(args.len()));
    let mut command = Command::new("timeout");
    command.args(["60", common::DARNER, "attach", "--log"]).arg(log).args(options).arg(&at).args(what);
    let out = command.output().unwrap();
    match out.status.success() {
        true => Ok(at),
        false => Err(String::from_utf8_lossy(&out.stderr).into_owned()),
    }
}

fn status(world: &World, dir: &str) -> Value {
    let at = world.path(dir);
    let all = world.status()["attachments"].clone();
    let all = all.as_array().unwrap().clone();
    all.into_iter().find(|a| a["directory"] == at.to_str().unwrap()).expect("it is listed")
}

#[test]
fn a_plug_in_is_attached_read_listed_and_detached() {
    let Some(world) = World::new() else { return };
    world.sh("mkdir hi; echo hidden > hi/before");
    attach(&world, "hi", &["hello"]);
    assert_eq!(world.sh("ls hi; cat hi/hello.txt"), "hello.txt\nHello from a process of its own.");
    assert!(!world.try_sh("cat hi/none").status.success());
    assert!(!world.try_sh("echo x > hi/new").status.success());
    assert_eq!(world.sh("stat -c %s hi/hello.txt; cat < hi/hello.txt | wc -c; stat -f -c %l hi"), "33\n33\n255");
    let s = status(&world, "hi");
    assert_eq!((s["state"].as_str(), s["name"].as_str()), (Some("runs"), Some("hello")));
    assert!(world.darner(&["status", world.mnt.to_str().unwrap()]).contains("(hello, read-only): runs"));
    let again = try_attach(&world, "hi", &["hello"]).unwrap_err();
    assert!(again.contains("attached already"), "{again}");
    world.darner(&["detach", world.path("hi").to_str().unwrap()]);
    assert_eq!(world.sh("cat hi/before"), "hidden");
    assert_eq!(world.status()["attachments"].as_array().unwrap().len(), 0);
    let pid = s["host_pid"].as_i64().unwrap();
    eventually("the host ends", || !PathBuf::from(format!("/proc/{pid}")).exists());
}

#[test]
fn unmounting_takes_along_what_is_attached() {
    let Some(world) = World::new() else { return };
    attach(&world, "a", &["hello"]);
    attach(&world, "b", &["hello"]);
    let hosts: Vec<i64> = ["a", "b"].map(|d| status(&world, d)["host_pid"].as_i64().unwrap()).into();
    world.remount();
    assert_eq!(world.sh("ls a b"), "a:\n\nb:");
    for pid in hosts {
        assert!(!PathBuf::from(format!("/proc/{pid}")).exists());
    }
}

#[test]
fn killed_the_host_is_followed_by_another_and_the_plug_in_too() {
    let Some(world) = World::new() else { return };
    let at = attach(&world, "hi", &["hello"]);
    let mut file = std::fs::File::open(at.join("hello.txt")).unwrap();
    for (round, who) in ["plugin_pid", "host_pid", "plugin_pid", "supervisor_pid", "host_pid"].into_iter().enumerate() {
        let before = status(&world, "hi")[who].as_i64().unwrap();
        // SAFETY: a plain system call.
        unsafe { libc::kill(before as i32, libc::SIGKILL) };
        world.sh("echo 3 > /proc/sys/vm/drop_caches; cat hi/hello.txt; ls hi");
        let mut text = String::new();
        std::io::Seek::rewind(&mut file).unwrap();
        std::io::Read::read_to_string(&mut file, &mut text).unwrap();
        assert_eq!(text, "Hello from a process of its own.\n", "round {round}");
        eventually("there is another one", || status(&world, "hi")[who].as_i64().is_some_and(|pid| pid != before));
    }
    world.kill_all();
    world.detach();
}
