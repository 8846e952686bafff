//! What this kernel asks, and doesn't: `cargo run -p darner-fuse --example kernel_facts`.

#[path = "../tests/common/mod.rs"]
mod common;

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    time::Duration,
};

use common::{Manners, Mounted};
use darner_fuse::{Config, abi};

fn show(it: &Mounted, what: &str, does: impl FnOnce(&Mounted)) {
    it.fs.take_log();
    does(it);
    println!("  {what}: {}", it.fs.take_log().join(", "));
}

fn small_file(it: &Mounted, name: &str) {
    let mut file = File::create(it.path(name)).unwrap();
    file.write_all(b"12345").unwrap();
}

fn tour(title: &str, manners: Manners, config: Config) {
    println!("{title}");
    let manners = Manners { log: true, ..manners };
    let Some(it) = Mounted::try_new(manners, config, 1, Duration::ZERO) else {
        return;
    };
    let it = &it;
    small_file(it, "first");
    fs::read(it.path("first")).unwrap();
    show(it, "create+write+close", |it| small_file(it, "a"));
    show(it, "open, write, close of it", |it| {
        File::options().write(true).open(it.path("a")).unwrap().write_all(b"x").unwrap();
    });
    show(it, "create, write x3, stat, write, close", |it| {
        let mut file = File::create(it.path("b")).unwrap();
        for _ in 0..3 {
            file.write_all(b"12345").unwrap();
        }
        file.metadata().unwrap();
        file.write_all(b"12345").unwrap();
    });
    show(it, "stat with btime (std)", |it| _ = fs::metadata(it.path("b")).unwrap());
    show(it, "stat with btime again", |it| _ = fs::metadata(it.path("b")).unwrap());
    show(it, "open+read+close", |it| drop(fs::read(it.path("b")).unwrap()));
    show(it, "again", |it| drop(fs::read(it.path("b")).unwrap()));
    show(it, "readdir", |it| _ = fs::read_dir(&it.path).unwrap().count());
    show(it, "readdir again", |it| _ = fs::read_dir(&it.path).unwrap().count());
    show(it, "rename", |it| fs::rename(it.path("a"), it.path("c")).unwrap());
    show(it, "unlink", |it| fs::remove_file(it.path("c")).unwrap());
    show(it, "O_TMPFILE, write, read, close", |it| {
        let tmp = File::options().read(true).write(true).custom_flags(libc::O_TMPFILE).open(&it.path);
        let mut tmp = tmp.unwrap();
        tmp.write_all(b"x").unwrap();
        tmp.read_to_end(&mut Vec::new()).unwrap();
    });
    show(it, "syncfs, sync", |it| {
        let dir = File::open(&it.path).unwrap();
        // SAFETY: a descriptor that we hold.
        unsafe {
            libc::syncfs(dir.as_raw_fd());
            libc::sync();
        }
    });
    show(it, "fsync of a new file", |it| File::create(it.path("d")).unwrap().sync_all().unwrap());
}

fn main() {
    tour("OPEN, FLUSH declined (no_open):", Manners::default(), Config::default());
    tour("OPEN served:", Manners { no_open: false, ..Default::default() }, Config::default());
    let direct =
        Manners { create_flags: abi::fopen::DIRECT_IO | abi::fopen::PARALLEL_DIRECT_WRITES, ..Default::default() };
    tour("no_open, CREATE answered with DIRECT_IO:", direct, Config::default());
    let writeback = Config::default().with(abi::init::WRITEBACK_CACHE);
    tour("no_open, writeback cache:", Manners::default(), writeback);
    tour("no_open, without STATX:", Manners { statx: false, ..Default::default() }, Config::default());
}
