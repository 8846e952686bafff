//! When the store fails or refuses: the errno, the sentence, and that nothing happened.

mod common;

use std::sync::Arc;

use common::{START, World, new_disk, open_store};
use darner_fs::{Caller, Fs, Inode, Node, Op, ROOT, Sent, Tid, Wanted};
use darner_store::volume::sim::{Fault, SimDisk};
use darner_store::volume::{DirVolume, RawVolume, Volume};
use darner_store::{CreateOptions, OpenOptions, Store};

/// Every bit of a file's stored bytes matters: a flipped one is EIO with the path, the offset and the tid.
#[test]
fn damaged_data_is_eio_and_names_file_offset_and_tid() {
    let disk = new_disk();
    let fs = Fs::create(open_store(&disk), 0, 0, 0o755, START + 1).unwrap();
    let caller = Caller::default();
    let dir = fs.mkdir(&caller, START + 10, fs.root(), b"dir", 0o755).unwrap().node;
    let file = fs.create_file(&caller, START + 11, dir, b"file", 0o644, true).unwrap().entry.node;
    let mut rng = fastrand::Rng::with_seed(1);
    let text: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(10_000).collect();
    fs.write(START + 12, file, Some(0), &text, false).unwrap();
    let tid = fs.store().tid();
    fs.store().close().unwrap();
    drop(fs);
    let at = position(&disk, &text[5000..5100]);
    disk.flip(at, 3);

    let fs = Fs::open(open_store(&disk)).unwrap();
    let error = fs.read(file, 4900, 300).unwrap_err();
    assert_eq!(error.errno(), libc::EIO);
    let sentence = error.to_string();
    assert!(sentence.starts_with("/dir/file: "), "{sentence}");
    assert!(sentence.contains(&tid.to_string()) && sentence.contains("byte"), "{sentence}");
    let error = fs.run(&caller, START + 20, Op::Read { node: file, offset: 0, len: 10_000 }).unwrap_err();
    assert_eq!(error.to_string().matches("/dir/file").count(), 1, "{error}");
    assert_eq!(fs.read(file, 0, 4000).unwrap(), text[..4000], "what is not damaged can be read");
    disk.flip(at, 3);
    assert_eq!(fs.read(file, 0, 10_000).unwrap(), text);
}

/// Where bytes are on a disk.
fn position(disk: &SimDisk, bytes: &[u8]) -> u64 {
    use darner_store::volume::Disk;
    for page in disk.written_pages() {
        let mut buf = vec![0; 8192];
        disk.read_at(&mut buf, page).unwrap();
        if let Some(at) = buf.windows(bytes.len()).position(|window| window == bytes) {
            return page + at as u64;
        }
    }
    panic!("not on the disk");
}

/// What was read before the error counted as sent, and was left out the next time: the mirror had holes there.
#[test]
fn a_mirror_gets_nothing_of_a_part_that_an_error_ends_however_often_it_asks() {
    let disk = new_disk();
    let fs = Fs::create(open_store(&disk), 0, 0, 0o755, START + 1).unwrap();
    let caller = Caller::default();
    let file = fs.create_file(&caller, START + 11, fs.root(), b"file", 0o644, true).unwrap().entry.node;
    let mut rng = fastrand::Rng::with_seed(1);
    let text: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(1_000_000).collect();
    fs.write(START + 12, file, Some(0), &text, false).unwrap();
    fs.store().close().unwrap();
    drop(fs);
    let fs = Fs::open(open_store(&disk)).unwrap();
    let mut sent = Sent::default();
    let mut wanted = Wanted { from: Vec::new(), to: Vec::new(), since: Tid::ZERO, at: fs.store().tid(), room: 300_000 };
    let (mut bytes, mut errors) = (0, 0);
    loop {
        // Each part is refused in its midst, three times.
        for n in 1..=3 {
            let before = disk.operations();
            disk.fail_nth(n, Fault::Io);
            match fs.changes(ROOT, &wanted, &mut sent) {
                Err(e) => errors += usize::from(e.to_string().contains("/file")),
                // (What was in memory needed no disk.)
                Ok(_) => assert!(disk.operations() < before + n, "an operation failed, and nobody was told"),
            }
        }
        disk.fail_nth(1 << 40, Fault::Io);
        let part = fs.changes(ROOT, &wanted, &mut sent).unwrap();
        bytes += part.items.len();
        let Some(next) = part.next else { break };
        wanted.from = next;
    }
    assert!(errors > 3, "{errors}");
    assert!(bytes > text.len(), "{bytes}");
}

#[test]
fn a_full_directory_volume_refuses_to_grow_and_still_deletes() {
    let dir = tempfile::tempdir().unwrap();
    let volume = DirVolume::open(dir.path(), true);
    fill_and_empty(Arc::new(volume), 64 << 20);
}

#[test]
fn a_full_raw_volume_refuses_to_grow_and_still_deletes() {
    fill_and_empty(Arc::new(RawVolume::new(Arc::new(SimDisk::new(64 << 20)))), 0);
}

fn fill_and_empty(volume: Arc<dyn Volume>, size_limit: u64) {
    Store::create(&*volume, &CreateOptions { now_ns: START, size_limit, seed: Some([1; 32]), hash_key: None }).unwrap();
    let store = Arc::new(Store::open(volume, &OpenOptions::small()).unwrap());
    let fs = Fs::create(store, 0, 0, 0o755, START + 1).unwrap();
    let mut rng = fastrand::Rng::with_seed(1);
    let block: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(1 << 20).collect();
    let mut made = 0;
    let refused = loop {
        if let Err(error) = make_file(&fs, made, &block) {
            break error;
        }
        made += 1;
        fs.store().step().unwrap();
        assert!(made < 100, "the store is bounded");
    };
    assert_eq!(refused.errno(), libc::ENOSPC, "{refused}");
    assert!(made > 5);
    for n in 0..made {
        fs.unlink(START + (1 << 30) + n, fs.root(), format!("f{n}").as_bytes()).unwrap();
    }
    fs.reap_orphans(START + (1 << 31)).unwrap();
    fs.sync().unwrap();
}

fn make_file(fs: &Fs, n: u64, data: &[u8]) -> darner_fs::Result<()> {
    let (now, name) = (START + 10 + n * 10, format!("f{n}"));
    let made = fs.create_file(&Caller::default(), now, fs.root(), name.as_bytes(), 0o600, true)?;
    fs.write(now + 1, made.entry.node, Some(0), data, false)?;
    Ok(())
}

#[test]
fn a_store_open_for_reading_only_is_a_read_only_filesystem() {
    let disk = new_disk();
    let fs = Fs::create(open_store(&disk), 0, 0, 0o755, START + 1).unwrap();
    fs.create_file(&Caller::default(), START + 10, fs.root(), b"a", 0o644, true).unwrap();
    fs.store().close().unwrap();
    drop(fs);
    let volume = Arc::new(RawVolume::new(Arc::new(disk)));
    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    let fs = Fs::open(Arc::new(Store::open(volume, &options).unwrap())).unwrap();
    let file = fs.lookup(fs.root(), b"a", START + 20).unwrap().node;
    assert_eq!(fs.write(START + 20, file, None, b"x", false).unwrap_err().errno(), libc::EROFS);
    assert_eq!(fs.unlink(START + 20, fs.root(), b"a").unwrap_err().errno(), libc::EROFS);
    assert_eq!(fs.read(file, 0, 10).unwrap(), b"");
}

#[test]
fn what_fails_leaves_nothing_behind() {
    let mut world = World::new();
    world.line("create a");
    world.line("write a 'x*100'");
    let before = (world.fs.store().tid(), world.fs.getattr(world.node("a").unwrap()).unwrap());
    for command in [
        "create a => EEXIST",
        "rename a nowhere exchange => ENOENT",
        "collapse a 0 4096 => EINVAL",
        "setx a user.x y replace => ENODATA",
        "copy a 0 a 50 100 => EINVAL",
        "write a '' =>",
        "unlink b => ENOENT",
        "forget #none =>",
    ] {
        if command.starts_with("forget") {
            world.fs.forget(world.now, &[Inode::main(99)]).unwrap();
        } else {
            world.line(command);
        }
    }
    let stale = Node::Live(Inode::main(99));
    assert_eq!(world.fs.write(world.now, stale, None, b"x", false).unwrap_err().errno(), libc::ESTALE);
    let after = (world.fs.store().tid(), world.fs.getattr(world.node("a").unwrap()).unwrap());
    assert_eq!(after, before);
}
