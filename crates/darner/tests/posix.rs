//! What programs expect of a filesystem, through the real kernel.

mod common;

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};

use common::{World, c_string, eventually, has, in_child, long, rename, seek, sys};

fn opened(path: &std::path::Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|n| (n as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3] ^ seed).collect()
}

#[test]
fn an_unlinked_file_works_until_it_is_closed_and_then_gives_its_place_back() {
    let Some(w) = World::new() else { return };
    let before = w.objects();
    let file = opened(&w.path("f"));
    file.write_all_at(b"one", 0).unwrap();
    fs::remove_file(w.path("f")).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.write_all_at(&pattern(1 << 20, 1), 3).unwrap();
    file.sync_all().unwrap();
    file.set_len((1 << 20) + 1).unwrap();
    let mut back = Vec::new();
    (&file).read_to_end(&mut back).unwrap();
    assert!(back[..3] == *b"one" && back[3..] == pattern(1 << 20, 1)[..(1 << 20) - 2]);
    drop(file);
    eventually("the object is gone", || w.objects() == before);
}

#[test]
fn a_file_unlinked_while_a_read_only_mount_has_it_open_stays_readable_there() {
    let Some(w) = World::new() else { return };
    let other = w.mount_at("other", &["--read-only"]).unwrap();
    fs::write(w.path("f"), pattern(300_000, 2)).unwrap();
    let open = File::open(other.join("f")).unwrap();
    fs::remove_file(w.path("f")).unwrap();
    w.sh("sync -f . ; echo 2 > /proc/sys/vm/drop_caches");
    let mut back = vec![0; 300_000];
    open.read_exact_at(&mut back, 0).unwrap();
    assert!(back == pattern(300_000, 2));
}

#[test]
fn a_nameless_file_vanishes_unless_it_gets_a_name() {
    let Some(w) = World::new() else { return };
    let before = w.objects();
    let nameless =
        || OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).mode(0o640).open(&w.mnt).unwrap();
    drop(nameless());
    eventually("the nameless file is gone", || w.objects() == before);
    let kept = nameless();
    (&kept).write_all(b"kept").unwrap();
    let link = |name: &str| {
        let from = c_string(format!("/proc/self/fd/{}", kept.as_raw_fd()).as_ref());
        let to = c_string(&w.path(name));
        // SAFETY: NUL-terminated strings that outlive the call.
        sys(i64::from(unsafe {
            libc::linkat(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), libc::AT_SYMLINK_FOLLOW)
        }))
    };
    link("name").unwrap();
    drop(kept);
    w.remount();
    assert_eq!(fs::read(w.path("name")).unwrap(), b"kept");
    assert_eq!(fs::metadata(w.path("name")).unwrap().mode() & 0o7777, 0o640);
    // With O_EXCL it can't get a name.
    let never = OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE | libc::O_EXCL).open(&w.mnt).unwrap();
    let from = c_string(format!("/proc/self/fd/{}", never.as_raw_fd()).as_ref());
    let to = c_string(&w.path("never"));
    // SAFETY: NUL-terminated strings that outlive the call.
    let linked =
        unsafe { libc::linkat(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), libc::AT_SYMLINK_FOLLOW) };
    assert_eq!(sys(i64::from(linked)), Err(libc::ENOENT));
}

#[test]
fn what_is_written_through_a_shared_map_is_read_by_others_and_survives() {
    let Some(w) = World::new() else { return };
    let file = opened(&w.path("f"));
    let len = 256 << 10;
    file.set_len(len as u64).unwrap();
    let data = pattern(len, 3);
    // SAFETY: a fresh mapping of `len` bytes of an open file, written within its bounds and unmapped once.
    unsafe {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let map = libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED, file.as_raw_fd(), 0);
        assert_ne!(map, libc::MAP_FAILED);
        std::ptr::copy_nonoverlapping(data.as_ptr(), map.cast(), len);
        assert_eq!(libc::msync(map, len, libc::MS_SYNC), 0);
        // A write of the other kind is seen in the map.
        file.write_all_at(b"other", 4090).unwrap();
        assert_eq!(std::slice::from_raw_parts(map.cast::<u8>().add(4090), 5), b"other");
        // The last store is not synced by hand.
        *map.cast::<u8>() = 77;
        libc::munmap(map, len);
    }
    let mut wanted = data;
    wanted[4090..4095].copy_from_slice(b"other");
    wanted[0] = 77;
    assert!(fs::read(w.path("f")).unwrap() == wanted);
    drop(file);
    w.remount();
    assert!(fs::read(w.path("f")).unwrap() == wanted);
}

#[test]
fn four_processes_that_append_lose_no_line() {
    let Some(w) = World::new() else { return };
    w.sh("for p in 1 2 3 4; do (for i in $(seq 500); do echo $p $i filler filler filler; done >> log) & done; wait");
    assert_eq!(w.sh("wc -l < log"), "2000");
    assert_eq!(w.sh("sort -u log | wc -l"), "2000");
    // Each process's own lines are in order.
    assert_eq!(w.sh("for p in 1 2 3 4; do awk -v p=$p '$1 == p && $2 != ++n {print}' log; done"), "");
    assert_eq!(w.sh("stat -c %s log"), w.sh("cat log | wc -c"));
}

#[test]
fn locks_of_every_kind_keep_others_out() {
    let Some(w) = World::new() else { return };
    let path = w.path("f");
    fs::write(&path, [0; 100]).unwrap();
    let (a, b) = (opened(&path), opened(&path));
    let range = |kind: i32, start: i64, len: i64| libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: len,
        l_pid: 0,
    };
    // SAFETY: plain system calls on open descriptors and a lock description that outlives them.
    let lock = |f: &File, how: i32, l: libc::flock| sys(i64::from(unsafe { libc::fcntl(f.as_raw_fd(), how, &l) }));
    let flock = |f: &File, how: i32| sys(i64::from(unsafe { libc::flock(f.as_raw_fd(), how) }));

    flock(&a, libc::LOCK_EX).unwrap();
    assert_eq!(flock(&b, libc::LOCK_SH | libc::LOCK_NB), Err(libc::EWOULDBLOCK));
    flock(&a, libc::LOCK_UN).unwrap();
    flock(&b, libc::LOCK_SH | libc::LOCK_NB).unwrap();
    flock(&b, libc::LOCK_UN).unwrap();

    lock(&a, libc::F_OFD_SETLK, range(libc::F_WRLCK, 10, 10)).unwrap();
    assert_eq!(lock(&b, libc::F_OFD_SETLK, range(libc::F_RDLCK, 19, 1)), Err(libc::EAGAIN));
    lock(&b, libc::F_OFD_SETLK, range(libc::F_WRLCK, 20, 5)).unwrap();
    lock(&a, libc::F_OFD_SETLK, range(libc::F_UNLCK, 0, 0)).unwrap();
    lock(&b, libc::F_OFD_SETLK, range(libc::F_UNLCK, 0, 0)).unwrap();

    lock(&a, libc::F_SETLK, range(libc::F_WRLCK, 0, 50)).unwrap();
    let inside = in_child(|| lock(&b, libc::F_SETLK, range(libc::F_WRLCK, 49, 1)).err().unwrap_or(0));
    assert_eq!(inside, libc::EAGAIN);
    assert_eq!(in_child(|| lock(&b, libc::F_SETLK, range(libc::F_WRLCK, 50, 1)).err().unwrap_or(0)), 0);
    // A blocked lock holds no thread of the daemon: others work, and the lock comes when it is free.
    let waiting = std::thread::spawn({
        let b = b.try_clone().unwrap();
        move || {
            in_child(|| {
                let l = libc::flock { l_type: libc::F_WRLCK as i16, l_whence: 0, l_start: 0, l_len: 1, l_pid: 0 };
                // SAFETY: as above.
                sys(i64::from(unsafe { libc::fcntl(b.as_raw_fd(), libc::F_SETLKW, &l) })).err().unwrap_or(0)
            })
        }
    });
    for n in 0..20 {
        fs::write(w.path(&format!("other{n}")), "x").unwrap();
    }
    lock(&a, libc::F_SETLK, range(libc::F_UNLCK, 0, 0)).unwrap();
    assert_eq!(waiting.join().unwrap(), 0);
}

#[test]
fn direct_io_and_the_page_cache_agree() {
    let Some(w) = World::new() else { return };
    let path = w.path("f");
    let data = pattern(1 << 20, 4);
    let direct = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(libc::O_DIRECT)
        .open(&path)
        .unwrap();
    // FUSE asks for no alignment; aligned memory is what real programs bring.
    let layout = std::alloc::Layout::from_size_align(1 << 20, 4096).unwrap();
    // SAFETY: allocated with this layout, used as this many bytes, freed once.
    unsafe {
        let p = std::alloc::alloc_zeroed(layout);
        let buf = std::slice::from_raw_parts_mut(p, 1 << 20);
        buf.copy_from_slice(&data);
        direct.write_all_at(buf, 0).unwrap();
        assert!(fs::read(&path).unwrap() == data);
        opened(&path).write_all_at(b"buffered", 8192).unwrap();
        buf.fill(0);
        direct.read_exact_at(buf, 0).unwrap();
        assert_eq!(&buf[8192..8200], b"buffered");
        buf[..4096].fill(9);
        direct.write_all_at(&buf[..4096], 4096).unwrap();
        std::alloc::dealloc(p, layout);
    }
    let back = fs::read(&path).unwrap();
    assert!(back[4096..8192].iter().all(|b| *b == 9) && back[..4096] == data[..4096]);
    assert_eq!(back.len(), 1 << 20);
}

#[test]
fn a_sparse_file_reaches_to_the_last_offset_there_is() {
    let Some(w) = World::new() else { return };
    let file = opened(&w.path("f"));
    let last = i64::MAX as u64 - 1;
    file.write_all_at(b"!", last).unwrap();
    assert_eq!(file.metadata().unwrap().len(), i64::MAX as u64);
    assert!(file.metadata().unwrap().blocks() < 100);
    let mut byte = [0];
    file.read_exact_at(&mut byte, last).unwrap();
    assert_eq!(&byte, b"!");
    file.read_exact_at(&mut byte, last - 1).unwrap();
    assert_eq!(byte, [0]);
    file.set_len(5).unwrap();
    assert_eq!(fs::read(w.path("f")).unwrap(), [0; 5]);
}

#[test]
fn holes_are_found_where_they_are() {
    let Some(w) = World::new() else { return };
    let file = opened(&w.path("f"));
    let mib = 1 << 20;
    file.write_all_at(&pattern(mib, 5), 4 * mib as u64).unwrap();
    file.set_len(8 * mib as u64).unwrap();
    let m = mib as i64;
    assert_eq!(seek(&file, 0, libc::SEEK_DATA), Ok(4 * m));
    assert_eq!(seek(&file, 0, libc::SEEK_HOLE), Ok(0));
    assert_eq!(seek(&file, 4 * m + 7, libc::SEEK_DATA), Ok(4 * m + 7));
    assert_eq!(seek(&file, 4 * m, libc::SEEK_HOLE), Ok(5 * m));
    assert_eq!(seek(&file, 5 * m, libc::SEEK_DATA), Err(libc::ENXIO));
    assert_eq!(seek(&file, 8 * m, libc::SEEK_HOLE), Err(libc::ENXIO));
    // SAFETY: a plain system call.
    let punched = unsafe {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        libc::fallocate(file.as_raw_fd(), mode, 4 * m + 65536, 65536)
    };
    assert_eq!(punched, 0);
    assert_eq!(seek(&file, 4 * m, libc::SEEK_HOLE), Ok(4 * m + 65536));
    assert_eq!(seek(&file, 4 * m + 65536, libc::SEEK_DATA), Ok(4 * m + 131_072));
    w.sh("cp --sparse=auto f g; cmp f g; test $(stat -c %b g) -le $(stat -c %b f)");
}

#[test]
fn what_is_in_the_cache_only_is_never_told_as_a_hole() {
    for options in [&["--create"][..], &["--create", "-o", "writeback"]] {
        let Some(w) = World::unmounted() else { return };
        w.mount_at("mnt", options).unwrap();
        let len = 1 << 20;
        let file = opened(&w.path("mapped"));
        file.set_len(len as u64).unwrap();
        let data = pattern(len, 9);
        let page = 128 << 10;
        // SAFETY: a fresh mapping of `len` bytes of an open file, written within its bounds and unmapped once.
        unsafe {
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            let map = libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED, file.as_raw_fd(), 0);
            assert_ne!(map, libc::MAP_FAILED);
            let store = |at: usize, n: usize| {
                std::ptr::copy_nonoverlapping(data.as_ptr().add(at), map.cast::<u8>().add(at), n);
            };
            store(page, 4096);
            assert_eq!(seek(&file, 0, libc::SEEK_DATA), Ok(page as i64));
            store(page + 4096, 4096);
            assert_eq!(seek(&file, page as i64, libc::SEEK_HOLE), Ok(page as i64 + 8192));
            store(0, len);
            assert_eq!(seek(&file, 0, libc::SEEK_DATA), Ok(0));
            assert_eq!(seek(&file, 0, libc::SEEK_HOLE), Ok(len as i64));
            // Again and again, and never written by hand.
            for i in 0..20 {
                w.sh("truncate -s 0 mapped; truncate -s 1M mapped");
                store(i * 4096, len - i * 4096);
                match i % 2 {
                    0 => w.sh("cp mapped copied; cmp mapped copied"),
                    _ => w.sh("tar -Scf - mapped | tar -xOf - | cmp - mapped"),
                };
            }
            // Where it had been looked for in vain before, in pages that had been read and in others.
            for at in [5, 77, 200] {
                w.sh("truncate -s 0 mapped; truncate -s 1M mapped");
                for read in [false, true] {
                    assert!(!read || map.cast::<u8>().add(at * 4096).read_volatile() == 0);
                    assert_eq!([0, 4096].map(|from| seek(&file, from, libc::SEEK_DATA)), [Err(libc::ENXIO); 2]);
                }
                store(at * 4096, 1);
                assert_eq!(seek(&file, 0, libc::SEEK_DATA), Ok(at as i64 * 4096));
                assert_eq!(seek(&file, at as i64 * 4096, libc::SEEK_HOLE), Ok(at as i64 * 4096 + 4096));
            }
            libc::munmap(map, len);
        }
        // Written, and with `writeback` not sent yet, also beyond the end that was known.
        let file = opened(&w.path("written"));
        file.write_all_at(b"first", 0).unwrap();
        file.sync_all().unwrap();
        file.write_all_at(&pattern(len, 4), 4 << 20).unwrap();
        w.sh("tar -Scf - written | tar -xOf - | cmp - written; cp written copied; cmp written copied; test $(stat -c %s copied) = 5242880");
        let file = opened(&w.path("new"));
        file.write_all_at(&pattern(len, 6), 0).unwrap();
        w.sh("tar -Scf - new | tar -xOf - | cmp - new");
        let file = opened(&w.path("written"));
        assert_eq!(seek(&file, 1 << 20, libc::SEEK_DATA), Ok(4 << 20));
    }
}

#[test]
fn names_of_255_bytes_work_and_longer_ones_are_refused() {
    let Some(w) = World::new() else { return };
    let name = "n".repeat(255);
    fs::write(w.path(&name), "x").unwrap();
    assert_eq!(fs::read_dir(&w.mnt).unwrap().next().unwrap().unwrap().file_name(), name.as_str());
    let longer = fs::write(w.path(&format!("{name}n")), "x").unwrap_err();
    assert_eq!(longer.raw_os_error(), Some(libc::ENAMETOOLONG));
    // Its past is found all the same.
    let then = w.now();
    fs::write(w.path(&name), "later").unwrap();
    assert_eq!(fs::read(w.path(&format!("{name}@@{then}"))).unwrap(), b"x");
    // Bytes that are no text are a name like any other.
    w.sh(r"touch $'\xff\xfe\n'; ls | wc -l; rm $'\xff\xfe\n'");
}

#[test]
fn readdir_under_churn_lists_each_untouched_name_exactly_once() {
    let Some(w) = World::new() else { return };
    let dir = w.path("d");
    fs::create_dir(&dir).unwrap();
    for n in 0..2000 {
        fs::write(dir.join(format!("keep{n}")), "").unwrap();
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut rng = fastrand::Rng::with_seed(1);
            while !stop.load(Ordering::Relaxed) {
                let (a, b) = (rng.u32(..500), rng.u32(..500));
                let _ = fs::write(dir.join(format!("churn{a}")), "");
                let _ = fs::rename(dir.join(format!("churn{a}")), dir.join(format!("churn{b}")));
                let _ = fs::remove_file(dir.join(format!("churn{}", rng.u32(..500))));
            }
        });
        for _ in 0..30 {
            let mut seen: HashMap<String, u32> = HashMap::new();
            for entry in fs::read_dir(&dir).unwrap() {
                *seen.entry(entry.unwrap().file_name().into_string().unwrap()).or_default() += 1;
            }
            let kept: Vec<_> = seen.iter().filter(|(n, _)| n.starts_with("keep")).collect();
            let odd: Vec<_> = kept.iter().filter(|(_, times)| **times != 1).collect();
            if kept.len() != 2000 || !odd.is_empty() {
                stop.store(true, Ordering::Relaxed);
                panic!("{} names listed, oddly: {odd:?}", kept.len());
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_large_directory_is_made_listed_and_removed() {
    let Some(w) = World::new() else { return };
    let n = if long() { 100_000 } else { 10_000 };
    let dir = w.path("d");
    fs::create_dir(&dir).unwrap();
    for i in 0..n {
        File::create(dir.join(format!("file number {i}"))).unwrap();
    }
    w.remount();
    assert_eq!(fs::read_dir(&dir).unwrap().count(), n);
    let then = w.now();
    // The way `rm -r` goes: names are removed while they are listed.
    fs::remove_dir_all(&dir).unwrap();
    assert_eq!(fs::read_dir(w.path(&format!("d@@{then}"))).unwrap().count(), n);
}

#[test]
fn extended_attributes_and_acls_through_the_usual_tools() {
    if !(has("setfattr") && has("setfacl")) {
        return;
    }
    let Some(w) = World::new() else { return };
    w.sh("touch f; setfattr -n user.colour -v green f; setfattr -n trusted.t -v 1 f; setfattr -n user.empty f");
    let attrs = w.sh("getfattr -d -m - f");
    assert!(
        attrs.contains("user.colour=\"green\"") && attrs.contains("trusted.t=\"1\"") && attrs.contains("user.empty")
    );
    w.sh("setfattr -n user.big -v $(head -c 20000 /dev/urandom | base64 -w0) f");
    w.sh("setfattr -x user.colour f; ! getfattr -n user.colour f 2>/dev/null");

    // A default ACL is inherited and takes the place of the umask.
    w.sh("mkdir d; setfacl -m d:u:nobody:rwx,d:g::r-x,d:o::- d; umask 077; touch d/f; mkdir d/sub");
    let file = w.sh("getfacl -cE d/f");
    assert!(file.contains("user:nobody:rwx") && file.contains("mask::rw-") && file.contains("other::---"), "{file}");
    let sub = w.sh("getfacl -cE d/sub");
    assert!(sub.contains("default:user:nobody:rwx") && sub.contains("user:nobody:rwx"), "{sub}");
    assert_eq!(w.sh("stat -c %a d/f"), "660");
    // It is enforced, chmod changes the mask, and it survives.
    w.sh("chmod 711 d; echo secret > d/f; setpriv --reuid nobody --clear-groups cat d/f");
    w.sh("chmod 600 d/f; ! setpriv --reuid nobody --clear-groups cat d/f 2>/dev/null");
    w.remount();
    assert!(w.sh("getfacl -cE d/f").contains("mask::---"));
    w.sh("setfacl -b d/f; test $(stat -c %a d/f) = 600; setfacl -k d; ! getfacl -cE d | grep -q default");
    w.sh("cp -a d e; diff <(getfacl -cE d/sub) <(getfacl -cE e/sub)");
}

#[test]
fn renames_flags_are_kept() {
    let Some(w) = World::new() else { return };
    fs::write(w.path("a"), "a").unwrap();
    fs::write(w.path("b"), "b").unwrap();
    fs::create_dir(w.path("d")).unwrap();
    fs::write(w.path("d/in"), "in").unwrap();
    assert_eq!(rename(&w.path("a"), &w.path("b"), libc::RENAME_NOREPLACE), Err(libc::EEXIST));
    assert_eq!(rename(&w.path("a"), &w.path("c"), libc::RENAME_NOREPLACE), Ok(0));
    assert_eq!(rename(&w.path("c"), &w.path("d"), libc::RENAME_EXCHANGE), Ok(0));
    assert_eq!(fs::read(w.path("d")).unwrap(), b"a");
    assert_eq!(fs::read(w.path("c/in")).unwrap(), b"in");
    assert_eq!(rename(&w.path("c"), &w.path("none"), libc::RENAME_EXCHANGE), Err(libc::ENOENT));
    assert_eq!(rename(&w.path("c"), &w.path("c/x"), 0), Err(libc::EINVAL));
    let whiteout = rename(&w.path("d"), &w.path("w"), libc::RENAME_WHITEOUT);
    assert!(whiteout == Ok(0) || whiteout == Err(libc::EINVAL), "{whiteout:?}");
}

#[test]
fn set_id_bits_go_when_somebody_else_writes_and_the_sticky_bit_protects() {
    if !has("setpriv") {
        return;
    }
    let Some(w) = World::new() else { return };
    w.sh("chmod 755 .; touch f g h; chmod 6777 f g h");
    let nobody = "setpriv --reuid nobody --regid nogroup --clear-groups";
    w.sh(&format!("{nobody} sh -c 'echo x >> f'; {nobody} truncate -s 9 g; {nobody} fallocate -l 99 h"));
    assert_eq!(w.sh("stat -c %a f g h"), "777\n777\n777");
    // Root may keep them.
    w.sh("chmod 6755 f; echo x >> f; test $(stat -c %a f) = 6755; chown daemon f; test $(stat -c %a f) = 755");
    w.sh("mkdir -m 1777 s; touch s/of-root");
    w.sh(&format!("! {nobody} rm -f s/of-root 2>/dev/null; {nobody} touch s/mine; {nobody} rm s/mine"));
    w.sh(&format!("! {nobody} mv s/of-root s/x 2>/dev/null; ! {nobody} chmod 700 g 2>/dev/null"));
}

#[test]
fn file_handles_survive_a_remount() {
    let Some(w) = World::new() else { return };
    w.sh("mkdir -p d/e; echo here > d/e/f; echo gone > gone");
    let (f, gone) = (handle(&w.path("d/e/f")), handle(&w.path("gone")));
    fs::remove_file(w.path("gone")).unwrap();
    w.remount();
    let root = File::open(&w.mnt).unwrap();
    let mut text = String::new();
    open_handle(&root, &f).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "here\n");
    assert_eq!(open_handle(&root, &gone).map(|_| ()), Err(libc::ESTALE));
}

#[test]
fn a_handle_of_the_past_is_stale_after_a_remount_and_leads_to_no_other_moment() {
    let Some(w) = World::new() else { return };
    w.sh("echo one > f; $DARNER snapshot $MNT l1; echo two > f; $DARNER snapshot $MNT l2");
    let past = handle(&w.path("@@l1/f"));
    let read = |root: &File| {
        let mut text = String::new();
        open_handle(root, &past).map(|mut f| f.read_to_string(&mut text).map(|_| text).unwrap())
    };
    assert_eq!(read(&File::open(&w.mnt).unwrap()), Ok("one\n".into()));
    w.remount();
    let _other = File::open(w.path("@@l2/f")).unwrap();
    assert_eq!(read(&File::open(&w.mnt).unwrap()), Err(libc::ESTALE));
}

/// `struct file_handle` with its bytes.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    data: [u8; 128],
}

fn handle(path: &std::path::Path) -> Handle {
    let mut handle = Handle { bytes: 128, kind: 0, data: [0; 128] };
    let (path, mut mount) = (c_string(path), 0i32);
    // SAFETY: valid pointers; the kernel writes at most the 128 bytes it is told of.
    let done = unsafe {
        libc::syscall(libc::SYS_name_to_handle_at, libc::AT_FDCWD, path.as_ptr(), &raw mut handle, &raw mut mount, 0)
    };
    sys(done).unwrap();
    handle
}

fn open_handle(root: &File, handle: &Handle) -> Result<File, i32> {
    // SAFETY: a valid handle; the descriptor is new and ours.
    unsafe {
        let fd = libc::syscall(libc::SYS_open_by_handle_at, root.as_raw_fd(), &raw const *handle, libc::O_RDONLY);
        sys(fd).map(|fd| File::from_raw_fd(fd as i32))
    }
}

/// As containers have it.
#[test]
fn overlayfs_takes_a_mount_as_its_upper_layer() {
    let Some(w) = World::new() else { return };
    w.sh(
        "mkdir lower upper work $DIR/merged; echo one > lower/a; echo two > lower/b; mkdir lower/d; echo x > lower/d/x",
    );
    let mount = "mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work $DIR/merged";
    if !w.sh("grep overlay /proc/filesystems || true").contains("overlay") || w.sh("id -u") != "0" {
        return println!("SKIPPED: needs overlayfs and root");
    }
    w.sh(mount);
    let script = "set -e; cd $DIR/merged; mv a c; rm -r d; mkdir d; echo y > d/y; echo more >> b; rm b; ln c e; cat c e; ls d; ls";
    let said = w.try_sh(script);
    w.sh("umount $DIR/merged");
    assert_eq!(String::from_utf8_lossy(&said.stdout), "one\none\ny\nc\nd\ne\n", "{said:?}");
    assert_eq!(w.sh("test -c upper/a && test -c upper/b; stat -c %t:%T upper/a upper/b; cat lower/a"), "0:0\n0:0\none");
}
