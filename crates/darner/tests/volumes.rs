//! Volumes that come, are emptied and go while the filesystem is mounted, through the real program and the real kernel.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::{DARNER, Loops, World, eventually, has, is_in_use};
use darner::making::{self, Make};
use darner::place::{self, Place};
use serde_json::Value;

fn volumes(w: &World) -> Vec<Value> {
    serde_json::from_str::<Value>(&w.sh_outside("$DARNER volume list $MNT --json")).unwrap().as_array().unwrap().clone()
}

fn ids(w: &World) -> Vec<u64> {
    volumes(w).iter().map(|v| v["id"].as_u64().unwrap()).collect()
}

#[track_caller]
fn refused(w: &World, script: &str, why: &str) {
    let out =
        Command::new("bash").args(["-c", script]).current_dir(&w.dir).env("MNT", &w.mnt).env("DARNER", DARNER).output();
    let out = out.unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && said.contains(why), "{script}: {said}");
}

#[test]
fn every_volume_is_swapped_for_another_under_a_write_load_and_nothing_changes() {
    let Some(w) = World::new() else { return };
    w.sh("mkdir old; for i in $(seq 1 40); do head -c 700K /dev/urandom > old/$i; done; md5sum old/* > $DIR/old; cp -r old new");
    let then = w.sh_outside("$DARNER status $MNT --json | grep -m1 '\"tid\"' | cut -d'\"' -f4");
    w.sh("for i in $(seq 1 20); do head -c 300K /dev/urandom > old/$i; done; rm old/3*; sync -f .");
    let load = "mkdir load; i=0; while ! test -e $DIR/stop; do i=$((i+1)); head -c 200K /dev/urandom > load/$((i%50)); \
                md5sum load/$((i%50)) > /dev/null; mv load/$((i%50)) load/m$((i%70)); done; echo $i > $DIR/rounds";
    let mut command = Command::new("bash");
    command.args(["-euc", load]).current_dir(&w.mnt).env("DIR", &w.dir).stderr(Stdio::inherit());
    let mut load = command.spawn().unwrap();
    for round in 1..=3u64 {
        let how = if round == 2 { "--image --size 600M" } else { "" };
        w.sh_outside(&format!("$DARNER volume add $MNT store-{round} {how}"));
        let said = w.sh_outside(&format!("$DARNER volume remove $MNT {}", round - 1));
        assert!(said.contains("no volume any more"), "{said}");
        assert_eq!(ids(&w), [round]);
        let before = if round == 1 { "store".into() } else { format!("store-{}", round - 1) };
        // What has left is of no use to anybody, and in nobody's way.
        w.sh_outside(&format!("test ! -d {before} || test -z \"$(ls {before})\"; rm -r {before}"));
        w.sh(&format!("md5sum -c --quiet <(sed 's, old, old@@{then},' $DIR/old)"));
    }
    fs::write(w.dir.join("stop"), b"").unwrap();
    assert!(load.wait().unwrap().success());
    println!("{} rounds of load", w.sh_outside("cat rounds"));
    w.sh("find . -type f -exec md5sum {} + | sort > $DIR/now");
    w.sh_outside("$DARNER unmount $MNT; $DARNER check store-3; $DARNER mount store-3 $MNT");
    w.sh("find . -type f -exec md5sum {} + | sort | cmp - $DIR/now");
    w.sh(&format!("md5sum -c --quiet <(sed 's, old, old@@{then},' $DIR/old)"));
    w.unmount();
}

#[test]
fn a_store_is_made_on_several_volumes_with_two_copies_of_all() {
    let Some(w) = World::new() else { return };
    w.sh_outside("$DARNER unmount $MNT; rm -r store");
    refused(&w, "$DARNER create store --copies 2", "two copies need two volumes");
    refused(&w, "$DARNER create store --volume b --volume store --copies 2", "store is named twice");
    refused(&w, "mkdir full; touch full/file; $DARNER create store --volume b --volume full", "full is not empty");
    w.sh_outside("test ! -e store; test ! -e b");
    w.sh_outside("$DARNER create store --image --size 200M --volume b --volume c --copies 2");
    w.sh_outside("test -f store; test -f b; test -f c; $DARNER mount store $MNT");
    let said = w.sh_outside("$DARNER volume copies $MNT");
    assert_eq!(said.trim(), "two copies of everything");
    w.sh("head -c 5M /dev/urandom > f; md5sum f > $DIR/sum; sync f");
    w.sh_outside("$DARNER unmount $MNT; rm store; $DARNER mount --degraded b $MNT");
    w.sh("md5sum -c --quiet $DIR/sum");
    w.sh_outside("$DARNER unmount $MNT; rm b c");
    // And where a mount makes it.
    w.sh_outside("$DARNER mount --create --volume e --copies index d $MNT");
    assert_eq!(ids(&w), [0, 1]);
    assert!(w.sh_outside("$DARNER volume copies $MNT").contains("two copies of the index"));
    w.sh_outside("$DARNER unmount $MNT; $DARNER mount --create --volume e -ocopies=2 d $MNT");
    assert!(w.sh_outside("$DARNER volume copies $MNT").contains("two copies of the index"), "it was there");
    w.unmount();
}

#[test]
fn a_volume_that_a_mount_names_more_than_once_is_one() {
    let Some(w) = World::new() else { return };
    w.sh_outside("$DARNER volume add $MNT b; $DARNER unmount $MNT; mv b c");
    w.sh_outside("$DARNER mount --volume c --volume store --volume ./c c $MNT; $DARNER unmount $MNT");
    w.sh_outside("$DARNER check store");
}

#[test]
fn with_a_second_volume_the_tree_is_there_without_either_and_can_be_written_to() {
    let Some(w) = World::new() else { return };
    let said = w.sh_outside("$DARNER volume add $MNT other");
    assert!(said.ends_with("two copies of the index, one of all else"), "{said}");
    assert!(w.sh_outside("$DARNER volume copies $MNT --json").contains("\"copies\": \"index\""));
    let copies = || w.sh_outside("$DARNER volume copies $MNT");
    assert!(copies().contains("two copies of the index"), "{}", copies());
    // (Where something goes is up to chance: until there is some on both.)
    let list = || serde_json::from_str::<Value>(&w.sh_outside("$DARNER volume list --json $MNT")).unwrap();
    let have_some = || list().as_array().unwrap().iter().all(|v| v["used_bytes"].as_u64() > Some(40 << 20));
    let files = (1..20).map(|n| n * 40).find(|files| {
        w.sh(&format!(
            "mkdir -p d; for i in $(seq {} {files}); do head -c 1M /dev/urandom > d/$i; done; sync",
            files - 39
        ));
        have_some()
    });
    let files = files.expect("both volumes are written to");
    w.sh("md5sum d/* > $DIR/sums");
    let has_all = format!("test $(ls d | wc -l) = {files}");
    w.sh_outside("$DARNER unmount $MNT");
    for (gone, left) in [("other", "store"), ("store", "other")] {
        refused(&w, &format!("mv {gone} away; $DARNER mount {left} $MNT"), "is missing");
        let told = w.sh_outside(&format!("$DARNER mount --degraded {left} $MNT 2>&1"));
        assert!(told.contains("are on it only"), "{told}");
        w.sh(&format!("{has_all}; test $(find d -size 2048 | wc -l) = {files}; mkdir without; rmdir without"));
        let failed = w.sh("md5sum -c --quiet $DIR/sums 2>&1 | grep -c 'FAILED open or read' || true");
        assert!((1..files).contains(&failed.trim().parse::<u32>().unwrap()), "{failed}");
        w.sh(&format!("echo {left} > without-{gone}"));
        w.sh_outside(&format!("$DARNER unmount $MNT; mv away {gone}; $DARNER mount {left} $MNT"));
        w.sh("md5sum -c --quiet $DIR/sums");
        w.sh(&format!("test $(cat without-{gone}) = {left}"));
        eventually("the index has two copies again", || !copies().contains("one yet"));
        w.sh_outside("$DARNER unmount $MNT");
    }
    // What was written last may be on a missing one only: then the rest can be read.
    w.sh_outside("$DARNER mount store $MNT");
    w.sh("for i in $(seq 8); do head -c 3M /dev/urandom > last-$i; sync; done");
    w.sh_outside(
        "kill -9 $($DARNER status $MNT --json | jq '.supervisor_pid, .daemon_pid'); umount -l $MNT; mv other away",
    );
    w.sh_outside("$DARNER mount --degraded store $MNT 2> told || { cat told; false; }");
    w.sh(&has_all);
    w.sh_outside("$DARNER unmount $MNT; mv away other; mv store away; $DARNER mount --degraded other $MNT 2>> told");
    w.sh(&has_all);
    let told = w.sh_outside("cat told");
    assert!(told.contains("what was written last is damaged, or on a missing volume"), "{told}");
    w.sh_outside("$DARNER unmount $MNT; mv away store; $DARNER mount store $MNT");
    w.sh("md5sum -c --quiet $DIR/sums; test $(ls last-* | wc -l) = 8");
    // With one volume there is one copy.
    w.sh_outside("$DARNER volume remove $MNT 0");
    eventually("there is one copy", || copies().trim() == "one copy of everything");
    w.sh("md5sum -c --quiet $DIR/sums");
    w.unmount();
    w.sh_outside("$DARNER check other");
}

#[test]
fn a_volume_whose_beginning_was_overwritten_is_taken_back_by_the_label_at_its_end() {
    let Some(w) = World::new() else { return };
    w.sh_outside("$DARNER volume add $MNT image --image --size 300M; $DARNER volume move $MNT --from 0 --to 1");
    w.sh("for i in $(seq 1 30); do head -c 1M /dev/urandom > $i; done; md5sum * > $DIR/sums; sync -f .");
    w.sh_outside("$DARNER unmount $MNT; dd if=/dev/zero of=image bs=1M count=1 conv=notrunc status=none");
    refused(&w, "$DARNER mount store $MNT", "its beginning was overwritten: darner volume reclaim");
    refused(&w, "$DARNER mount image $MNT", "its beginning was overwritten: darner volume reclaim");
    refused(&w, "$DARNER create image", "whose beginning was overwritten");
    // (The signature of ext4.)
    w.sh_outside("printf '\\x53\\xef' | dd of=image bs=1 seek=1080 conv=notrunc status=none");
    refused(&w, "$DARNER volume reclaim image", "holds an ext2, ext3 or ext4 filesystem now; --force");
    w.sh_outside("$DARNER volume reclaim image --force; $DARNER mount image $MNT");
    refused(&w, "$DARNER volume reclaim image", "already open");
    w.sh("md5sum -c --quiet $DIR/sums");
    w.sh_outside("$DARNER scrub $MNT | grep 'nothing is damaged'; $DARNER unmount $MNT");
    refused(&w, "$DARNER volume reclaim image", "is as it should be");
}

#[test]
fn a_partition_table_of_our_own_is_made_and_device_and_partition_lead_to_the_store() {
    let Some(w) = World::new() else { return };
    w.sh_outside("$DARNER unmount $MNT; rm -r store");
    refused(&w, "mkdir d; $DARNER create d --gpt", "only a device or an image file");
    w.sh_outside("$DARNER create image --gpt --image --size 300M; $DARNER mount image $MNT");
    w.sh("head -c 5M /dev/urandom > f; md5sum f > $DIR/sum");
    refused(&w, "$DARNER volume resize $MNT 0 400M", "as large as its device or partition");
    w.sh_outside("$DARNER unmount $MNT; $DARNER check image");
    refused(&w, "$DARNER create image --gpt", "holds a store already");
    // What others have on it is not overwritten.
    w.sh_outside(
        "truncate -s 100M other; printf 'EFI PART' | dd of=other bs=1 seek=$((104857600-512)) conv=notrunc status=none",
    );
    refused(&w, "$DARNER create other --gpt", "holds a partition table; --force");
    w.sh_outside("$DARNER create other --gpt --force; $DARNER check other; rm other");
    if has("sfdisk") {
        assert!(w.sh_outside("sfdisk --dump image").to_lowercase().contains(darner::partition::TYPE));
    }
    // The partition is found by the kernel as well, where it may have one.
    let script = "loop=$(losetup --find --show --partscan image) && echo $loop && test -b ${loop}p1";
    let out = Command::new("bash").args(["-c", script]).current_dir(&w.dir).output().unwrap();
    let device = String::from_utf8(out.stdout).unwrap().trim().to_string();
    let by = if out.status.success() { vec!["", "p1"] } else { vec![""] };
    for part in by.into_iter().filter(|_| !device.is_empty()) {
        w.sh_outside(&format!("$DARNER mount {device}{part} $MNT"));
        w.sh("md5sum -c --quiet $DIR/sum");
        w.sh_outside("$DARNER unmount $MNT");
    }
    if !device.is_empty() {
        w.sh_outside(&format!("losetup --detach {device}"));
    }
    w.sh_outside("$DARNER mount image $MNT");
    w.sh("md5sum -c --quiet $DIR/sum");
    w.unmount();
}

#[test]
fn an_image_becomes_shorter_under_a_load_and_a_kill() {
    let Some(w) = World::new() else { return };
    w.sh_outside("$DARNER volume add $MNT image --image --size 900M; $DARNER volume remove $MNT 0");
    // What comes first makes way again, so that something is at the end.
    w.sh("head -c 250M /dev/urandom > first; for i in $(seq 1 60); do head -c 1M /dev/urandom > $i; done; md5sum ? ?? > $DIR/sums; sync -f .");
    refused(&w, "$DARNER volume resize $MNT 1 100M", "too few");
    w.sh_outside("$DARNER forget $MNT/first; $DARNER clean --wait $MNT");
    let load = "i=0; while ! test -e $DIR/stop; do i=$((i+1)); head -c 200K /dev/urandom > load; mv load loaded; done";
    let mut command = Command::new("bash");
    command.args(["-euc", load]).current_dir(&w.mnt).env("DIR", &w.dir).stderr(Stdio::inherit());
    let mut load = command.spawn().unwrap();
    let resize = "$DARNER volume resize $MNT 1 400M";
    let mut first = Command::new("bash");
    first.args(["-c", resize]).current_dir(&w.dir).env("MNT", &w.mnt).env("DARNER", DARNER);
    let mut first = first.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    w.sh_outside("kill -9 $($DARNER status $MNT --json | grep daemon_pid | tr -dc 0-9)");
    let _ = first.wait();
    w.sh_outside(resize);
    fs::write(w.dir.join("stop"), b"").unwrap();
    assert!(load.wait().unwrap().success());
    assert_eq!(fs::metadata(w.dir.join("image")).unwrap().len(), 400 << 20);
    w.sh("md5sum -c --quiet $DIR/sums");
    w.sh_outside("$DARNER volume resize $MNT 1 500M; $DARNER unmount $MNT; $DARNER check image");
    assert_eq!(fs::metadata(w.dir.join("image")).unwrap().len(), 500 << 20);
    w.sh_outside("$DARNER mount image $MNT");
    w.sh("md5sum -c --quiet $DIR/sums");
    w.unmount();
}

#[test]
fn any_volume_leads_to_the_others_wherever_they_have_moved() {
    let Some(w) = World::new() else { return };
    w.sh("for i in $(seq 1 30); do head -c 1M /dev/urandom > $i; done; md5sum * > $DIR/sums");
    w.sh_outside("$DARNER volume add $MNT store-1 --size 500M; $DARNER volume move $MNT --from 0 --to 1");
    let listed = volumes(&w);
    assert!(listed[1]["used_bytes"].as_u64() > Some(30 << 20), "{listed:?}");
    assert_eq!((&listed[1]["size_bytes"], &listed[1]["state"]), (&Value::from(500 << 20), &Value::from("active")));
    // While it is mounted each of them is busy, and leads to the daemon.
    let uuid = |path: &str| w.sh_outside(&format!("$DARNER status {path} --json | grep uuid"));
    assert_eq!(uuid("store"), uuid("store-1"));
    refused(&w, "$DARNER check store-1", "already open");
    w.sh_outside("$DARNER unmount $MNT; $DARNER mount store-1 $MNT");
    w.sh("md5sum -c --quiet $DIR/sums");
    w.sh_outside("$DARNER unmount $MNT; mv store-1 elsewhere");
    refused(&w, "$DARNER mount store $MNT", "store-1, is missing");
    refused(&w, "$DARNER mount store $MNT", "regions are on it");
    w.sh_outside("$DARNER check store --volume elsewhere; $DARNER mount --volume elsewhere store $MNT");
    w.sh("md5sum -c --quiet $DIR/sums");
    // From then on it is found there; and where all have moved together.
    w.sh_outside(
        "$DARNER unmount $MNT; $DARNER check store; mkdir new; mv store elsewhere new; $DARNER mount new/store $MNT",
    );
    w.sh("md5sum -c --quiet $DIR/sums");
    w.unmount();
    // A copy of one by itself is not taken for part of the original.
    w.sh_outside("mkdir copy; cp -r new/store new/elsewhere copy; $DARNER mount copy/store $MNT");
    assert!(volumes(&w).iter().all(|v| v["path"].as_str().unwrap().contains("/copy/")), "{:?}", volumes(&w));
    w.sh_outside("$DARNER unmount $MNT; $DARNER create other; rm -r new/elsewhere; mv other new/elsewhere");
    refused(&w, "$DARNER mount new/store $MNT", "is missing");
    refused(&w, "$DARNER mount --volume new/elsewhere new/store $MNT", "of another store");
}

#[test]
fn a_directory_whose_superblocks_are_gone_is_taken_back_by_its_newest_manifest_or_by_another_volume() {
    let Some(w) = World::new() else { return };
    w.sh("mkdir d; for i in $(seq 1 20); do head -c 300K /dev/urandom > d/$i; done; md5sum d/* > $DIR/sums; $DARNER snapshot . L; rm d/1; sync d");
    let is_as_it_was = || {
        w.sh("cd @@L; md5sum -c --quiet $DIR/sums; cd ..; test ! -e d/1; echo more >> more; sync more");
        w.sh_outside("$DARNER unmount $MNT; $DARNER check store");
    };
    // Deleted, emptied, or damaged; after a kill, too.
    for how in [
        "rm store/super.*",
        "for i in 0 1; do : > store/super.$i; done",
        "printf x | tee store/super.0 > store/super.1",
    ] {
        w.kill();
        w.detach();
        w.sh_outside(how);
        refused(&w, "$DARNER mount store $MNT", "darner volume reclaim");
        w.sh_outside("$DARNER volume reclaim store; $DARNER mount store $MNT");
        is_as_it_was();
        w.sh_outside(&format!("{how}; $DARNER rebuild store; $DARNER mount store $MNT"));
        w.sh("echo more >> more; sync more");
    }
    refused(&w, "$DARNER volume reclaim store", "already open");
    w.sh_outside("$DARNER unmount $MNT; $DARNER mount store $MNT; test $(wc -l < $MNT/more) = 6");
    refused(&w, "mkdir empty; $DARNER volume reclaim empty", "no manifest is here");
    // Of two either is had back, also where it has no manifest.
    w.sh_outside("$DARNER volume add $MNT second");
    w.sh("echo more >> more; sync more");
    for one in ["second", "store"] {
        let other = if one == "store" { "second" } else { "store" };
        w.sh_outside(&format!("$DARNER unmount $MNT; rm {one}/super.*"));
        refused(
            &w,
            &format!("$DARNER mount {other} $MNT"),
            &format!("{one} was a volume, and has no valid superblock: darner volume reclaim"),
        );
        w.sh_outside(&format!("$DARNER volume reclaim {one} --of {other}; $DARNER mount {one} $MNT"));
        w.sh("cd @@L; md5sum -c --quiet $DIR/sums");
    }
    w.sh_outside("$DARNER unmount $MNT; $DARNER check store; $DARNER create strange; rm second/super.*");
    refused(&w, "$DARNER volume reclaim second --of strange", "another store");
}

#[test]
fn a_copy_of_a_store_never_has_a_volume_of_the_original() {
    let Some(w) = World::unmounted() else { return };
    fs::create_dir(&w.mnt).unwrap();
    for image in ["--image", ""] {
        w.sh_outside(&format!(
            "mkdir base; cd base; $DARNER create s {image} --size 200M --volume b; cd ..; $DARNER mount base/s $MNT"
        ));
        w.sh("for i in $(seq 1 20); do head -c 300K /dev/urandom > $i; done; md5sum * > $DIR/sums");
        w.sh_outside("$DARNER unmount $MNT; cp -a base copy; $DARNER mount copy/s $MNT");
        assert!(volumes(&w).iter().all(|v| v["path"].as_str().unwrap().contains("/copy/")), "{:?}", volumes(&w));
        w.sh("md5sum -c --quiet $DIR/sums; rm *");
        w.sh_outside("$DARNER unmount $MNT; $DARNER mount base/b $MNT");
        w.sh("md5sum -c --quiet $DIR/sums");
        w.sh_outside("$DARNER unmount $MNT; cp -a base half; rm -r half/b");
        refused(&w, "$DARNER mount half/s $MNT", "base/b is there, but so is the store that this one is a copy of");
        // Moved together they are found; one that moved alone finds the others.
        w.sh_outside("mv base moved; $DARNER mount moved/s $MNT");
        w.sh("md5sum -c --quiet $DIR/sums");
        w.sh_outside("$DARNER unmount $MNT; mv moved/s alone; $DARNER mount alone $MNT");
        w.sh("md5sum -c --quiet $DIR/sums");
        w.sh_outside("$DARNER unmount $MNT; rm -r moved copy half alone");
    }
}

#[test]
fn a_copy_of_one_volume_takes_no_other_of_the_original_however_often_it_was_mounted_without() {
    let Some(w) = World::unmounted() else { return };
    fs::create_dir(&w.mnt).unwrap();
    for image in ["--image", ""] {
        w.sh_outside(&format!(
            "mkdir o cp; $DARNER create o/a {image} --size 200M --volume o/b --copies 2; $DARNER mount o/a $MNT"
        ));
        w.sh("echo original > x");
        w.sh_outside("$DARNER unmount $MNT; cp -a o/b cp/b");
        let sums = "cd o; find . -type f ! -name 'held*' | sort | xargs md5sum";
        let before = w.sh_outside(sums);
        for n in 0..3 {
            refused(
                &w,
                "$DARNER mount cp/b $MNT",
                "o/a is there, but so is the store that this one is a copy of, with ",
            );
            refused(&w, "$DARNER mount cp/b $MNT", "/o/b, and it is that one's");
            w.sh_outside("$DARNER mount --degraded cp/b $MNT");
            w.sh(&format!("echo {n} >> x"));
            w.sh_outside("$DARNER unmount $MNT");
        }
        assert_eq!(w.sh_outside(sums), before);
        w.sh_outside("$DARNER mount o/b $MNT");
        assert_eq!(w.sh("cat x"), "original");
        w.sh_outside("$DARNER unmount $MNT; rm -r o cp");
    }
}

#[test]
fn a_hundred_volumes_are_made_found_from_any_one_and_lead_to_the_daemon_and_homes_leave() {
    let Some(w) = World::new() else { return };
    w.sh_outside("$DARNER unmount $MNT; rm -r store; mkdir v");
    w.sh_outside("$DARNER create store $(for i in $(seq 1 99); do echo --volume v/$i; done); $DARNER mount v/77 $MNT");
    assert_eq!(ids(&w), (0..100).collect::<Vec<u64>>());
    w.sh("for i in $(seq 1 40); do head -c 1M /dev/urandom > $i; done; md5sum * > $DIR/sums; sync -f .");
    // Any of them leads to the daemon, homes or not.
    let uuid = |path: &str| w.sh_outside(&format!("$DARNER status {path} --json | grep uuid"));
    assert!(["v/77", "v/3", "v/50", "v/99"].into_iter().all(|path| uuid(path) == uuid("store")));
    refused(&w, "$DARNER mount v/60 other", "mnt");
    refused(&w, "$DARNER check v/60", "already open");
    refused(&w, "$DARNER volume add $MNT v/60", "already");
    w.sh_outside("$DARNER volume add $MNT v/100; for i in 0 1 99; do $DARNER volume remove $MNT $i; done");
    assert_eq!(ids(&w), (2..=100).filter(|i| *i != 99).collect::<Vec<u64>>());
    assert!(["v/77", "v/3", "v/50", "v/100"].into_iter().all(|path| uuid(path) == uuid("v/2")));
    w.sh("md5sum -c --quiet $DIR/sums");
    w.kill();
    w.sh_outside("rm -r store; $DARNER mount v/100 $MNT");
    w.sh("md5sum -c --quiet $DIR/sums");
    // All that has moved together is found where it is now.
    w.sh_outside("$DARNER unmount $MNT; mv v elsewhere; $DARNER check elsewhere/50; mv elsewhere/70 70");
    refused(&w, "$DARNER mount elsewhere/30 $MNT", "volume 70 of the store, last at");
    w.sh_outside("$DARNER mount elsewhere/30 --volume 70 $MNT");
    w.sh("md5sum -c --quiet $DIR/sums");
    // Without its homes nothing can be told of a store.
    w.sh_outside("$DARNER unmount $MNT; mkdir homes; mv elsewhere/[2-9] homes");
    refused(&w, "$DARNER mount --degraded elsewhere/30 $MNT", "none of them is there");
    let some = "$DARNER mount --degraded elsewhere/30 --volume homes/8 --volume homes/9 $MNT";
    refused(&w, some, "the table of volumes is on");
    w.sh_outside("$DARNER mount elsewhere/30 $(for i in homes/*; do echo --volume $i; done) --volume 70 $MNT");
    w.sh("md5sum -c --quiet $DIR/sums");
    w.unmount();
}

#[test]
fn a_killed_daemon_goes_on_emptying_a_volume_at_the_next_mount() {
    let Some(w) = World::new() else { return };
    w.sh("for i in $(seq 1 120); do head -c 1M /dev/urandom > $i; done; md5sum * > $DIR/sums; sync -f .");
    w.sh_outside("$DARNER volume add $MNT store-1");
    for _ in 0..3 {
        let mut command = Command::new(DARNER);
        command.args(["volume", "remove"]).arg(&w.mnt).arg("0").stderr(Stdio::null()).stdout(Stdio::null());
        let mut removing = command.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(15));
        w.kill_all();
        w.detach();
        removing.wait().unwrap();
        w.sh_outside("$DARNER mount store $MNT 2>/dev/null || $DARNER mount store-1 $MNT");
        w.sh("md5sum -c --quiet $DIR/sums");
    }
    w.sh_outside("$DARNER volume list $MNT --json | grep -q '\"id\": 0' && $DARNER volume remove $MNT 0 || true");
    eventually("the volume is let go of", || ids(&w) == [1]);
    w.sh("md5sum -c --quiet $DIR/sums");
    w.sh_outside("$DARNER unmount $MNT; $DARNER check store-1; $DARNER mount store-1 $MNT");
    w.sh("md5sum -c --quiet $DIR/sums");
    w.unmount();
}

#[test]
fn what_can_not_be_a_volume_and_what_can_not_leave_is_refused_with_a_reason() {
    let Some(w) = World::new() else { return };
    refused(&w, "$DARNER volume add $MNT /nowhere/at/all", "can't find /nowhere/at/all: No such file");
    w.sh("head -c 100M /dev/urandom > data; sync -f .");
    refused(&w, "$DARNER volume remove $MNT 0", "the only one");
    refused(&w, "$DARNER volume remove $MNT 7", "no volume 7");
    refused(&w, "$DARNER volume move $MNT --from 0 --to 3", "no volume 3");
    refused(&w, "$DARNER volume add $MNT store", "a volume of the store already");
    refused(&w, "$DARNER volume add $MNT $MNT/inside", "a mount of the store itself");
    refused(&w, "mkdir full; touch full/file; $DARNER volume add $MNT full", "is not empty");
    refused(&w, "$DARNER create other; $DARNER volume add $MNT other", "holds a store already");
    refused(&w, "truncate -s 10M small; $DARNER volume add $MNT small", "at least");
    refused(
        &w,
        "truncate -s 80M img; echo ext | dd of=img bs=1 seek=1080 conv=notrunc; $DARNER volume add $MNT img",
        "--force",
    );
    w.sh_outside("$DARNER volume add $MNT img --force");
    assert_eq!(ids(&w), [0, 1]);
    refused(&w, "$DARNER volume resize $MNT 1 10M", "is the least for a volume");
    refused(&w, "$DARNER volume resize $MNT 0 70M", "are in use");
    w.sh_outside("$DARNER volume resize $MNT 0 400M");
    let listed = volumes(&w);
    assert_eq!((&listed[0]["size_bytes"], &listed[1]["size_bytes"]), (&Value::from(400 << 20), &Value::from(80 << 20)));
    // 100 MB are more than 80.
    refused(&w, "$DARNER volume remove $MNT 0", "more are needed");
    w.sh_outside("$DARNER volume resize $MNT 1 300M; $DARNER volume remove $MNT 0");
    assert_eq!(ids(&w), [1]);
    w.sh_outside("$DARNER volume add $MNT store-2");
    refused(&w, "$DARNER volume move $MNT ffffff --to 2", "there is no segment");
    w.sh_outside("$DARNER unmount $MNT");
    let found = w.sh_outside("$DARNER inspect img --json | grep '\"segment\"' | grep '\"volume\":\"1\"' | grep -o '\"region\":\"[0-9a-f]*' | head -1");
    let region = found.rsplit('"').next().unwrap().to_string();
    w.sh_outside(&format!("$DARNER mount img $MNT; $DARNER volume move $MNT {region} --to 2; $DARNER unmount $MNT"));
    w.sh_outside(&format!("$DARNER inspect store-2 --json | grep '\"segment\"' | grep '\"region\":\"{region}\"' | grep -q '\"volume\":\"2\"'"));
    w.sh_outside("$DARNER check img; $DARNER check store-2");
}

/// The command said that it was not there, when it was there no more.
#[test]
fn a_volume_that_is_lost_is_taken_away() {
    let Some(w) = World::new() else { return };
    w.sh_outside("$DARNER volume add $MNT other; $DARNER volume copies $MNT 2");
    w.sh("seq 100000 > f; sync f");
    w.sh_outside("$DARNER unmount $MNT; rm -r store; $DARNER mount other $MNT --degraded");
    refused(&w, "$DARNER volume remove $MNT 0", "have one copy of everything");
    w.sh_outside("$DARNER volume copies $MNT 1");
    let said = w.sh_outside("$DARNER volume remove $MNT 0");
    assert!(said.contains("no volume any more"), "{said}");
    assert_eq!(ids(&w), [1]);
    w.sh_outside("$DARNER unmount $MNT; $DARNER check other; $DARNER mount other $MNT");
    w.sh("seq 100000 | cmp - f");
    w.unmount();
}

/// Directories of one filesystem share its room, but not their limits: a volume was emptied until the other one was full.
#[test]
fn what_the_limits_of_the_others_can_not_hold_does_not_begin_to_move() {
    let Some(w) = World::new() else { return };
    w.sh("head -c 120M /dev/urandom > f; sync f");
    w.sh_outside("$DARNER volume add $MNT small --size 100M");
    refused(&w, "$DARNER volume remove $MNT 0", "more are needed");
    refused(&w, "$DARNER volume move $MNT --from 0 --to 1", "more are needed");
    assert!(volumes(&w).iter().all(|v| v["state"] == "active"), "{:?}", volumes(&w));
    w.sh_outside("$DARNER volume resize $MNT 1 400M; $DARNER volume remove $MNT 0");
    assert_eq!(ids(&w), [1]);
    w.unmount();
}

#[test]
fn every_volume_is_swapped_for_another_under_fsx_and_git_and_all_is_bit_identical_history_included() {
    if !has("git") || !has("fsx") {
        return;
    }
    let Some(w) = World::new() else { return };
    // A history of its own: a repository that grows, seen as of each commit.
    w.sh("git init -q repo; cd repo; git config user.email a@b; git config user.name n; git config gc.auto 0; \
          for i in $(seq 8); do mkdir -p d$i; for j in $(seq 20); do head -c 9000 /dev/urandom > d$i/f$j; done; git add -A; git commit -qm $i; \
          $DARNER status $MNT --json | grep -m1 '\"tid\"' | cut -d'\"' -f4 >> $DIR/moments; done; git gc -q");
    let look = "while read t; do (cd repo@@$t; find . -type f | sort | xargs md5sum | md5sum); done < $DIR/moments";
    let before = w.sh(look);
    let background = |script: &str| {
        let mut command = Command::new("bash");
        command.args(["-euc", script]).current_dir(&w.mnt).env("DIR", &w.dir).stderr(Stdio::inherit());
        command.spawn().unwrap()
    };
    let mut git = background(
        "cd repo; i=0; while ! test -e $DIR/stop; do i=$((i+1)); head -c 50K /dev/urandom > new$((i%30)); git add -A; git commit -qm n$i; \
         if [ $((i%20)) = 0 ]; then git repack -qad; fi; git checkout -q HEAD~1; git checkout -q -; done; echo $i > $DIR/commits; git fsck --full 2>&1",
    );
    let operations = if common::long() { 100_000 } else { 8_000 };
    let mut fsx = background(&format!(
        "n=0; while ! test -e $DIR/stop; do n=$((n+1)); fsx -S $n -N {operations} -P $DIR fsx > $DIR/fsx.out 2>&1 || \
         {{ tail -40 $DIR/fsx.out >&2; exit 1; }}; done; echo $n > $DIR/runs"
    ));
    for round in 1..=3u64 {
        let how = if round == 2 { "--image --size 900M" } else { "" };
        w.sh_outside(&format!("$DARNER volume add $MNT store-{round} {how}"));
        let said = w.sh_outside(&format!("$DARNER volume remove $MNT {}", round - 1));
        assert!(said.contains("no volume any more"), "{said}");
        assert_eq!(ids(&w), [round]);
        assert_eq!(w.sh(look), before);
    }
    fs::write(w.dir.join("stop"), b"").unwrap();
    assert!(git.wait().unwrap().success() && fsx.wait().unwrap().success());
    println!("{} commits, {} runs of fsx", w.sh_outside("cat commits"), w.sh_outside("cat runs"));
    w.sh("find . -type f -exec md5sum {} + | sort > $DIR/now");
    w.sh_outside("$DARNER unmount $MNT; $DARNER check store-3; $DARNER mount store-3 $MNT");
    w.sh("find . -type f -exec md5sum {} + | sort | cmp - $DIR/now; cd repo; git fsck --full");
    assert_eq!(w.sh(look), before);
    w.unmount();
}

#[test]
fn a_disk_that_is_lost_under_load_and_a_killed_daemon_cost_nothing_with_two_copies_and_rot_heals() {
    let Some(w) = World::new() else { return };
    let files = "for i in $(seq 1 30); do head -c 700K /dev/urandom > $i; done; md5sum [0-9]* > $DIR/sums; sync -f .";
    w.sh(files);
    refused(&w, "$DARNER volume copies $MNT 2", "two volumes");
    let said = w.sh_outside("$DARNER volume add $MNT disk-1 --image --size 500M; $DARNER volume copies $MNT 2");
    assert!(said.ends_with("two copies of everything"), "{said}");
    refused(&w, "$DARNER volume remove $MNT 1", "two copies have no place");
    w.sh("head -c 3M /dev/urandom > synced; sync synced; md5sum synced >> $DIR/sums");
    // The daemon is killed, and goes on; then it ends, and one disk is gone.
    w.sh_outside("kill -9 $($DARNER status $MNT --json | grep daemon_pid | tr -dc 0-9)");
    w.sh("md5sum -c --quiet $DIR/sums; echo more > later; sync later");
    w.sh_outside("$DARNER unmount $MNT; mv disk-1 away");
    refused(&w, "$DARNER mount store $MNT", "disk-1, is missing");
    w.sh_outside("$DARNER mount --degraded store $MNT");
    w.sh("md5sum -c --quiet $DIR/sums; rm 1 2; sed -i '/ [12]$/d' $DIR/sums; echo most > later; sync later");
    assert_eq!(volumes(&w)[1]["state"], "missing");
    for (from, to) in [(1, 0), (0, 1)] {
        refused(&w, &format!("$DARNER volume move $MNT --from {from} --to {to}"), "volume 1 is not there");
    }
    refused(&w, "$DARNER volume remove $MNT 1", "remove it with --lost");
    let told = w.sh_outside("$DARNER status $MNT");
    assert!(told.contains("is missing: what is on it has copies elsewhere"), "{told}");
    w.sh_outside("kill -9 $($DARNER status $MNT --json | grep daemon_pid | tr -dc 0-9)");
    w.sh("md5sum -c --quiet $DIR/sums; test $(cat later) = most");
    // It is back, older than the other.
    w.sh_outside("$DARNER unmount $MNT; mv away disk-1; $DARNER mount disk-1 $MNT");
    w.sh("md5sum -c --quiet $DIR/sums; test $(cat later) = most");
    let copies = || w.sh_outside("$DARNER volume copies $MNT");
    eventually("everything has two copies again", || copies().ends_with("everything"));
    // The first disk rots, from end to end.
    w.sh_outside(
        "$DARNER unmount $MNT; for f in store/region-*; do for at in 9 300 5000 70007 200003 900001; do \
         test $(stat -c %s $f) -lt $at || printf '\\x55\\xaa' | dd of=$f bs=1 seek=$at conv=notrunc status=none; done; done",
    );
    w.sh_outside("$DARNER mount store $MNT");
    w.sh("md5sum -c --quiet $DIR/sums");
    let found: Value = serde_json::from_str(&w.sh_outside("$DARNER scrub $MNT --json")).unwrap();
    assert_eq!(found["damaged"], 0, "{found}");
    let healed = w.sh_outside("$DARNER volume copies $MNT");
    assert!(healed.contains("places healed"), "{healed}");
    // And now the other one is lost for good.
    w.sh_outside("$DARNER unmount $MNT; rm disk-1; $DARNER mount -o degraded store $MNT");
    let said = w.sh_outside("$DARNER volume remove $MNT 1 --lost; $DARNER volume add $MNT disk-2");
    assert!(said.contains("nothing is lost"), "{said}");
    eventually("everything has two copies once more", || copies().ends_with("everything"));
    w.sh_outside("$DARNER unmount $MNT; $DARNER check store; rm -r store; $DARNER mount --degraded disk-2 $MNT");
    w.sh("md5sum -c --quiet $DIR/sums; test $(cat later) = most");
    w.unmount();
}

#[test]
fn a_fileset_that_is_kept_twice_is_whole_when_a_disk_is_lost() {
    let Some(w) = World::new() else { return };
    refused(&w, "$DARNER fileset create $MNT papers --copies 2", "is not made: two copies need two volumes");
    refused(&w, "$DARNER volume copies $MNT 2 --fileset papers", "no fileset of this name");
    w.sh_outside("$DARNER volume add $MNT disk-1 --image --size 800M; $DARNER fileset create $MNT papers --copies 2");
    refused(&w, "$DARNER volume copies $MNT index --fileset papers", "1 or 2 copies");
    let list = || -> Value { serde_json::from_str(&w.sh_outside("$DARNER fileset list $MNT --json")).unwrap() };
    let copies = || list().as_array().unwrap().iter().map(|line| line["copies"].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!(copies(), [1, 2]);
    w.sh("head -c 1M /dev/urandom > still; head -c 90M /dev/urandom > films");
    w.sh("cd papers; for i in $(seq 20); do head -c 300K /dev/urandom > $i; done; cp ../still .; md5sum * > $DIR/sums; sync -f .");
    let said = w.sh_outside("$DARNER volume copies $MNT");
    assert!(said.starts_with("two copies of the index and of papers, one of all else"), "{said}");
    let used = || volumes(&w).iter().map(|v| v["used_bytes"].as_u64().unwrap()).sum::<u64>();
    w.sh_outside("$DARNER clean $MNT --wait");
    eventually("films have one copy", || used() < 160 << 20);
    // (What papers share with others gets its second copy soon after.)
    eventually("papers have two", || !w.sh_outside("$DARNER volume copies $MNT").contains("one yet"));
    // The daemon is killed, goes on, and one disk is gone: either.
    w.sh_outside("kill -9 $($DARNER status $MNT --json | grep daemon_pid | tr -dc 0-9)");
    w.sh("cd papers; md5sum -c --quiet $DIR/sums; echo last > last; sync last; md5sum last >> $DIR/sums");
    w.sh_outside("$DARNER unmount $MNT");
    for (lost, left) in [("disk-1", "store"), ("store", "disk-1")] {
        w.sh_outside(&format!("mkdir others; cp -r store disk-1 others; mv {lost} away"));
        w.sh_outside(&format!("$DARNER mount --degraded {left} $MNT"));
        w.sh("cd papers; md5sum -c --quiet $DIR/sums; echo new > new; test $(cat new) = new; rm new");
        w.sh_outside("$DARNER unmount $MNT; rm -rf store disk-1 away; mv others/* .; rmdir others");
    }
    w.sh_outside("$DARNER mount store $MNT; $DARNER volume copies $MNT 1 --fileset papers");
    assert_eq!(copies(), [1, 1]);
    w.sh("cd papers; md5sum -c --quiet $DIR/sums");
    w.sh_outside("$DARNER volume copies $MNT 2 --fileset papers; $DARNER fileset remove $MNT papers --force");
    assert!(w.sh_outside("$DARNER volume copies $MNT").starts_with("two copies of the index, one of all else"));
    w.unmount();
    w.sh_outside("$DARNER check store");
}

#[test]
fn devices_are_found_by_what_is_on_them_under_whatever_name_they_have() {
    let Some(w) = World::new() else { return };
    let attach = |image: &str| w.sh_outside(&format!("losetup -f --show {image} 2>/dev/null || true"));
    w.sh_outside("truncate -s 200M one two three");
    let (one, two) = (attach("one"), attach("two"));
    if one.is_empty() || two.is_empty() {
        println!("SKIPPED: no loop devices");
        return;
    }
    w.sh("head -c 3M /dev/urandom > a; md5sum a > $DIR/sums");
    w.sh_outside(&format!(
        "$DARNER volume add $MNT {one}; $DARNER volume add $MNT {two}; $DARNER volume remove $MNT 0"
    ));
    w.sh_outside("$DARNER unmount $MNT");
    // The other way round, and something else between.
    w.sh_outside(&format!("losetup -d {one}; losetup -d {two}"));
    let (other, first) = (attach("three"), attach("two"));
    let second = attach("one");
    w.sh_outside(&format!("$DARNER mount {first} $MNT"));
    w.sh("md5sum -c --quiet $DIR/sums");
    let paths: Vec<String> = volumes(&w).iter().map(|v| v["path"].as_str().unwrap().into()).collect();
    assert_eq!(paths, [second.clone(), first.clone()]);
    w.unmount();
    w.sh_outside(&format!("losetup -d {first}; losetup -d {second}; losetup -d {other}"));
}

#[test]
fn what_was_made_can_be_opened_at_once_whatever_processes_are_started_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let done = AtomicBool::new(false);
    // Until each process has become `true`, it has all that is open here.
    let start = || {
        let mut command = Command::new("true");
        // SAFETY: nothing is done there; it makes the start a fork, as that of a daemon is.
        unsafe { command.pre_exec(|| Ok(())) }.status().unwrap()
    };
    let load = || {
        while !done.load(Ordering::Relaxed) {
            assert!(start().success());
        }
    };
    thread::scope(|scope| {
        (0..2).for_each(|_| drop(scope.spawn(load)));
        let is_free = |place: Place| File::open(&place.path).is_ok_and(|file| place::try_lock(&file, true).unwrap());
        let made = |n: u32| making::create(&dir.path().join(n.to_string()), &Make::default());
        let free = (0..25).filter(|n| made(*n).is_ok_and(is_free)).count();
        done.store(true, Ordering::Relaxed);
        assert_eq!(free, 25);
    });
}

#[test]
fn a_loop_device_of_a_file_in_a_mount_of_the_store_is_no_volume_of_it() {
    let Some(w) = World::new() else { return };
    w.sh("truncate -s 100M raw");
    let Some(loops) = Loops::of(&w, "$MNT/raw", &[""]) else { return };
    refused(&w, &format!("$DARNER volume add $MNT {}", loops.0[0]), "a mount of the store itself");
    drop(loops);
    w.sh_outside("$DARNER volume add $MNT beside; $DARNER unmount $MNT");
}

const KILL: &str = "kill -9 $($DARNER status $MNT --json | grep daemon_pid | tr -dc 0-9)";

#[test]
fn a_device_of_a_store_is_in_use_to_everybody_across_kills_and_upgrades_and_free_afterwards() {
    let Some(w) = World::new() else { return };
    w.sh_outside("truncate -s 200M one two");
    let (Some(one), Some(two)) = (Loops::of(&w, "one", &[""]), Loops::of(&w, "two", &[""])) else { return };
    let (one, two) = (&one.0[0], &two.0[0]);
    w.sh_outside(&format!(
        "$DARNER volume add $MNT {one}; $DARNER volume add $MNT {two}; $DARNER volume remove $MNT 0"
    ));
    assert!(is_in_use(one) && is_in_use(two));
    w.sh_outside(KILL);
    assert!(is_in_use(one) && is_in_use(two));
    w.sh("echo words > a");
    w.sh_outside("$DARNER upgrade $MNT");
    assert!(is_in_use(one) && is_in_use(two));
    refused(&w, &format!("$DARNER create --force {one}"), "is already open in process");
    w.sh_outside("$DARNER volume remove $MNT 1");
    assert!(!is_in_use(one) && is_in_use(two));
    w.kill_all();
    // (The last of their threads may close it.)
    eventually("it is free", || !is_in_use(two));
    w.detach();
    w.sh_outside(&format!("$DARNER mount {two} $MNT"));
    assert!(is_in_use(two));
    w.sh_outside("grep words $MNT/a; $DARNER unmount $MNT");
    assert!(!is_in_use(two));
}

#[test]
fn what_is_in_use_whole_or_in_part_or_by_another_node_is_no_store_s_to_take_whatever_is_forced() {
    let Some(w) = World::unmounted() else { return };
    w.sh_outside("mkdir $MNT; truncate -s 200M image; $DARNER create --gpt image");
    let Some(loops) = Loops::of(&w, "image", &["--partscan"]) else { return };
    let disk = &loops.0[0];
    w.sh_outside(&format!("mknod node b $(stat -c '%Hr %Lr' {disk}); $DARNER mount {disk} $MNT; echo words > $MNT/a"));
    // (Where the kernel made no partition, the store is on the device, by the bytes.)
    refused(&w, &format!("$DARNER create --force --gpt {disk}"), "is already open in process");
    for way in ["node", "image", disk] {
        refused(&w, &format!("$DARNER create --force {way}"), "is already open in process");
        refused(&w, &format!("$DARNER volume add $MNT {way} --force"), "");
    }
    w.sh_outside("$DARNER scrub $MNT; grep words $MNT/a; $DARNER unmount $MNT");
    // Somebody else has it, of whom nothing is known but that.
    let other = File::options().read(true).custom_flags(libc::O_EXCL).open(disk).unwrap();
    refused(&w, &format!("$DARNER mount {disk} $MNT"), "is in use: something else has it");
    w.sh_outside(&format!("$DARNER check {disk}"));
    drop(other);
    if has("mkfs.ext4") {
        w.sh_outside(&format!("mkfs.ext4 -q -F {disk}; mount {disk} $MNT"));
        let mounted = &format!("is mounted on {}", w.mnt.display());
        for way in [disk, "image", "--gpt image", "--image --size 100M image"] {
            refused(&w, &format!("$DARNER create --force {way}"), mounted);
        }
        w.sh_outside(
            "test $(stat -c %s image) = $((200 << 20)); ! dd if=image bs=512 skip=1 count=1 | grep -q 'EFI PART'",
        );
        w.sh_outside("$DARNER create other; mkdir elsewhere; $DARNER mount other elsewhere");
        refused(&w, "$DARNER volume add elsewhere image --force", mounted);
        w.sh_outside("$DARNER unmount elsewhere; umount $MNT");
    }
    w.sh_outside(&format!("$DARNER create --force {disk}; rm node"));
}

#[test]
fn an_image_is_open_once_by_its_path_or_by_a_loop_device_and_parts_of_it_as_often_as_they_are_apart() {
    let Some(w) = World::unmounted() else { return };
    w.sh_outside("mkdir $MNT other; truncate -s 400M image");
    let half = "--sizelimit 200M";
    let options = ["", "", half, "--offset 200M", "--offset 100M --sizelimit 200M"];
    let Some(loops) = Loops::of(&w, "image", &options) else { return };
    let [all, again, first, second, middle] = &loops.0[..] else { panic!("{:?}", loops.0) };
    w.sh_outside("$DARNER create image; $DARNER mount image $MNT; echo words > $MNT/a");
    let as_the_image = &format!("as {}", w.dir.join("image").display());
    refused(&w, &format!("$DARNER mount {all} other"), as_the_image);
    w.sh_outside(&format!("$DARNER unmount $MNT; $DARNER mount {all} $MNT; grep words $MNT/a"));
    let way = &format!(", as {all}");
    for other in ["image", again] {
        refused(&w, &format!("$DARNER mount {other} other"), way);
    }
    w.sh_outside(KILL);
    refused(&w, "$DARNER create --force image", way);
    w.sh_outside("grep words $MNT/a; $DARNER upgrade $MNT");
    refused(&w, &format!("$DARNER create --force {second}"), way);
    refused(&w, "$DARNER volume add $MNT image --force", way);
    w.sh_outside("grep words $MNT/a; $DARNER unmount $MNT");
    // Those who only read are in nobody's way but that of those who write.
    w.sh_outside(&format!("$DARNER mount --read-only image $MNT; $DARNER check {all}"));
    refused(&w, &format!("$DARNER mount {all} other"), as_the_image);
    w.sh_outside(&format!(
        "$DARNER unmount $MNT; $DARNER create --force {first}; $DARNER create --force {second}; $DARNER mount {first} $MNT"
    ));
    w.sh_outside(&format!("$DARNER mount {second} other"));
    refused(&w, &format!("$DARNER create --force {middle}"), "is already open in process");
    w.sh_outside("$DARNER unmount other; $DARNER unmount $MNT");
}
