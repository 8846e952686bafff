//! Filesets and clones through the real program and the real kernel: commands, mounts, and what the kernel has cached.

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;

use common::{LOSE_INDEX, World, rename, signal};
use serde_json::{Value, json};

fn filesets(w: &World) -> Vec<Value> {
    serde_json::from_str(&w.sh("$DARNER fileset list $MNT --json")).unwrap()
}

fn names(w: &World) -> Vec<String> {
    filesets(w).iter().map(|line| line["name"].as_str().unwrap().to_string()).collect()
}

/// What a command that fails says.
#[track_caller]
fn refused(w: &World, script: &str) -> String {
    let out = w.try_sh(script);
    assert!(!out.status.success(), "{script}");
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[test]
fn commands_make_list_rename_and_remove_filesets_and_the_kernel_notices() {
    let Some(w) = World::new() else { return };
    // Its absence, and the listing, are in the kernel's caches.
    assert!(!w.path("home").exists());
    assert_eq!(w.sh("ls"), "");
    w.sh("$DARNER fileset create $MNT home; echo one > home/f; mkdir -p home/a/b; echo deep > home/a/b/c");
    assert_eq!(w.sh("ls; cat home/f home/a/b/c; stat -c %a home"), "home\none\ndeep\n755");
    assert_eq!(names(&w), ["main", "home"]);
    let home = &filesets(&w)[1];
    assert_eq!((home["objects"].as_u64(), home["live_bytes"].as_u64()), (Some(5), Some(9)));
    assert_eq!(home["inode"].as_u64(), Some(fs::metadata(w.path("home")).unwrap().ino()));
    w.sh("$DARNER fileset rename $MNT home house");
    assert_eq!(w.sh("ls; cat house/f; test ! -e home"), "house\none");
    assert!(refused(&w, "$DARNER fileset create $MNT house").contains("there is a fileset of this name"));
    assert!(refused(&w, "$DARNER fileset create $MNT a/b").contains("contain"));
    assert!(refused(&w, "$DARNER fileset remove $MNT none").contains("no fileset of this name"));
    assert!(refused(&w, "$DARNER fileset remove $MNT house").contains("not empty"));
    assert!(refused(&w, "$DARNER fileset remove $MNT main --force").contains("main"));
    let then = w.now();
    w.sh("$DARNER fileset remove $MNT house --force");
    assert_eq!(w.sh(&format!("ls; test ! -e house; cat house@@{then}/f @@{then}/house/a/b/c")), "one\ndeep");
    w.sh("$DARNER fileset create $MNT house; ls house; $DARNER fileset remove $MNT house");
    w.remount();
    assert_eq!(names(&w), ["main"]);
    assert_eq!(w.sh(&format!("ls; cat house@@{then}/f")), "one");
}

#[test]
fn a_mount_of_a_fileset_is_listed_under_the_name_that_it_has_now_whoever_serves_it() {
    let Some(w) = World::new() else { return };
    w.sh("$DARNER fileset create $MNT first; echo one > first/f");
    let then = w.now();
    let past = w.mount_at("past", &["--fileset", "first", "--as-of", &then]).unwrap();
    w.unmount();
    let own = w.mount_at("own", &["--fileset", "first"]).unwrap();
    w.darner(&["fileset", "rename", own.to_str().unwrap(), "first", "second"]);
    let status = || -> Value { serde_json::from_str(&w.darner(&["status", "--json", own.to_str().unwrap()])).unwrap() };
    let listed = || {
        let all = status()["mounts"].as_array().unwrap().clone();
        let name = |at: &std::path::Path| {
            all.iter().find(|m| m["mountpoint"].as_str() == at.to_str()).unwrap()["fileset"].clone()
        };
        (name(&own), name(&past))
    };
    assert_eq!(listed(), (json!("second"), json!("second")));
    common::signal(status()["daemon_pid"].as_i64().unwrap() as i32, libc::SIGKILL);
    assert_eq!(fs::read_to_string(own.join("f")).unwrap(), "one\n");
    assert_eq!(listed(), (json!("second"), json!("second")));
}

#[test]
fn a_name_in_a_mount_that_does_not_exist_is_not_taken_for_the_mount() {
    let Some(w) = World::new() else { return };
    w.sh("mkdir home; $DARNER snapshot home kept");
    let then = w.now();
    for command in [
        "snapshot $MNT/hoem before",
        "snapshot list $MNT/hoem",
        "fileset create $MNT/hoem x",
        "fileset list $MNT/hoem",
        "clean $MNT/hoem",
        "status $MNT/hoem",
        "retain $MNT/hoem",
        "retain $MNT/hoem none",
        "volume list $MNT/hoem",
        "mirror add $MNT/hoem copy $DIR/copy",
    ] {
        let said = refused(&w, &format!("$DARNER {command}"));
        assert!(said.contains("hoem does not exist"), "{command}: {said}");
    }
    assert_eq!(names(&w), ["main"]);
    // What was removed since has a past, all the same.
    w.sh("rmdir home");
    assert!(refused(&w, "$DARNER snapshot home before").contains("does not exist"));
    w.sh(&format!("$DARNER snapshot home@@{then} again; $DARNER log home; $DARNER restore home@@again; ls -d home"));
}

#[test]
fn to_programs_a_fileset_is_a_directory_that_stays_where_it_is() {
    let Some(w) = World::new() else { return };
    w.sh("$DARNER fileset create $MNT home; $DARNER fileset create $MNT other; mkdir d; echo x > f; echo y > home/g");
    let errno = |from: &str, to: &str| rename(&w.path(from), &w.path(to), 0).unwrap_err();
    assert_eq!(
        (errno("home", "h"), errno("d", "other"), errno("f", "home/f")),
        (libc::EBUSY, libc::EBUSY, libc::EXDEV)
    );
    assert_eq!(fs::remove_dir(w.path("other")).unwrap_err().raw_os_error(), Some(libc::EBUSY));
    assert_eq!(fs::hard_link(w.path("f"), w.path("home/f")).unwrap_err().raw_os_error(), Some(libc::EXDEV));
    // mv falls back to copying, cp shares.
    assert_eq!(w.sh("mv f home/f; cat home/f; ls; cd home; cat ../home/g; cd ..; pwd -P"), {
        format!("x\nd\nhome\nother\ny\n{}", w.mnt.display())
    });
    w.sh("head -c 3M /dev/urandom > big; cp big home/big; cmp big home/big; rm big; cat home/big > /dev/null");
    assert_eq!(w.sh("find . | sort | head -4"), ".\n./d\n./home\n./home/big");
    assert!(w.sh("find . -printf '%i\\n' | sort | uniq -d").is_empty(), "inode numbers are unique");
    w.remount();
    assert_eq!(w.sh("cat home/g home/f; stat -c %s home/big; rm -r home/*; ls home"), "y\nx\n3145728");
    w.sh("$DARNER fileset remove $MNT home");
}

#[test]
fn a_quota_is_shown_set_and_kept() {
    let Some(w) = World::new() else { return };
    w.sh("$DARNER fileset create $MNT home; $DARNER fileset quota $MNT home --bytes 1M --objects 4 --history 5G");
    assert_eq!(
        w.sh("$DARNER fileset quota $MNT home"),
        "bytes    0 B of 1.0 MiB\nobjects  1 of 4\nhistory  limit 5.0 GiB (darner retain tells how much there is)"
    );
    assert!(w.sh("$DARNER fileset quota $MNT home --json").contains("\"limit_objects\": 4"));
    assert_eq!(
        w.sh("df --output=size,avail -B1 home | tail -1").split_whitespace().collect::<Vec<_>>(),
        ["1048576"; 2]
    );
    assert_eq!(w.sh("df --output=itotal,iavail home | tail -1").split_whitespace().collect::<Vec<_>>(), ["4", "3"]);
    assert!(refused(&w, "head -c 2M /dev/zero > home/f").contains("Disk quota exceeded"));
    w.sh("truncate -s 0 home/f; head -c 900K /dev/urandom > home/f; touch home/g home/h");
    assert!(refused(&w, "touch home/i").contains("Disk quota exceeded"));
    w.sh("touch outside; rm home/g; touch home/i; head -c 2M /dev/zero > outside");
    w.remount();
    assert!(refused(&w, "head -c 300K /dev/urandom >> home/f").contains("Disk quota exceeded"));
    assert!(refused(&w, "cp --reflink=never outside home/i").contains("Disk quota exceeded"));
    w.sh("$DARNER fileset quota $MNT home --bytes none; cp outside home/i");
    assert!(w.sh("$DARNER fileset list $MNT").contains("at most 4 objects  history at most 5.0 GiB"));
    assert!(refused(&w, "touch home/j").contains("Disk quota exceeded"));
    w.sh("$DARNER fileset quota $MNT home --objects none; touch home/j");
    // What is mounted in it does not notice.
    w.sh("mkdir home/m; mount -t tmpfs none home/m; $DARNER fileset quota $MNT home --history none; mountpoint -q home/m; umount home/m");
    assert!(refused(&w, "$DARNER fileset quota $MNT none --bytes 5").contains("no fileset of this name"));
}

#[test]
fn a_fileset_is_mounted_by_itself_and_written_through_one_mount() {
    let Some(w) = World::new() else { return };
    w.sh("$DARNER fileset create $MNT home; echo one > home/f; mkdir home/d; $DARNER fileset create $MNT other");
    // Beside the whole only for reading.
    let said = w.mount_at("own", &["--fileset", "home"]).unwrap_err();
    assert!(said.contains("the whole") && said.contains("--read-only"), "{said}");
    let own = w.mount_at("own", &["--fileset", "home", "--read-only"]).unwrap();
    assert_eq!(fs::read_to_string(own.join("f")).unwrap(), "one\n");
    w.sh("echo two > home/d/g");
    common::eventually("the change is seen", || own.join("d/g").exists());
    assert!(refused(&w, "$DARNER fileset remove $MNT home --force").contains("by itself"));
    w.darner(&["unmount", own.to_str().unwrap()]);
    w.unmount();
    // By itself for writing; then another one, but not the whole.
    let own = w.mount_at("own", &["-o", "fileset=home"]).unwrap();
    fs::write(own.join("new"), "new").unwrap();
    let other = w.mount_at("other", &["--fileset", "other"]).unwrap();
    fs::write(other.join("o"), "o").unwrap();
    let said = w.mount_at("mnt", &[]).unwrap_err();
    assert!(said.contains("by itself"), "{said}");
    let again = w.mount_at("again", &["--fileset", "home"]).unwrap_err();
    assert!(again.contains("already"), "{again}");
    assert!(w.mount_at("none", &["--fileset", "none"]).unwrap_err().contains("no fileset of this name"));
    w.mount_at("mnt", &["--read-only"]).unwrap();
    assert_eq!(w.sh("cat home/new other/o"), "newo");
    let status = w.sh("$DARNER status $DIR/store");
    assert!(status.contains("(fileset home, live)"), "{status}");
    // What a mount of its own has: `..` that ends, as-of names, labels, orphans, the log.
    let own_path = own.display();
    assert_eq!(
        w.sh(&format!("cd {own_path}; cat f; ls -a | head -2; ls ..")),
        "one\n.\n..\nagain\ndaemon.log\nmnt\nnone\nother\nown\nstore"
    );
    let then = w.now();
    w.sh(&format!("cd {own_path}; exec 5< f; rm f; cat <&5; cat f@@{then} @@{then}/f; $DARNER log f | grep removed"));
    w.sh(&format!(
        "$DARNER snapshot {own_path} here; cat {own_path}/new@@here; $DARNER snapshot list {own_path} | grep here"
    ));
    assert_eq!(w.sh("$DARNER snapshot list $MNT"), "");
    assert_eq!(w.sh("$DARNER snapshot list $MNT/home | wc -l; cat home/d/g@@here"), "1\ntwo");
    assert!(refused(&w, "cat other/o@@here").contains("No such file"));
    w.darner(&["unmount", own.to_str().unwrap()]);
    let past = w.mount_at("past", &["--fileset", "home", "--as-of", &then]).unwrap();
    assert_eq!(fs::read_to_string(past.join("f")).unwrap(), "one\n");
    assert!(w.mount_at("none", &["--fileset", "home", "--as-of", "2020-01-01"]).is_err());
}

#[test]
fn a_clone_shares_all_and_goes_its_own_way() {
    let Some(w) = World::new() else { return };
    w.sh("$DARNER fileset create $MNT home; head -c 5M /dev/urandom > home/big; mkdir home/d; echo one > home/d/f; ln home/d/f home/l");
    let then = w.now();
    w.sh("sleep 0.01; echo two > home/d/f; rm home/big; echo main > f");
    let used = |w: &World| w.status()["used_bytes"].as_u64().unwrap();
    let before = used(&w);
    assert!(!w.path("copy").exists());
    w.sh(&format!("$DARNER clone $MNT/home@@{then} copy"));
    assert_eq!(w.sh("ls; ls copy; cat copy/d/f copy/l; stat -c '%s %h' copy/big copy/l"), {
        "copy\nf\nhome\nbig\nd\nl\none\none\n5242880 1\n4 2"
    });
    assert!(used(&w) - before < 64 << 10, "nothing is copied");
    assert_eq!(
        w.sh(&format!("cmp copy/big home@@{then}/big; diff -r copy home@@{then}; $DARNER diff home@@{then} copy")),
        ""
    );
    assert!(w.sh("find . -type f -links 1 -printf '%i\\n' | sort | uniq -d").is_empty(), "inode numbers are unique");
    assert_ne!(fs::metadata(w.path("copy/l")).unwrap().ino(), fs::metadata(w.path("home/l")).unwrap().ino());
    w.sh("printf X | dd of=copy/big bs=1 seek=3000000 conv=notrunc status=none; mv copy/d/f copy/moved; rm copy/l");
    w.remount();
    assert_eq!(
        w.sh("cat copy/moved home/d/f home/l; ls copy copy/d"),
        "one\ntwo\ntwo\ncopy:\nbig\nd\nmoved\n\ncopy/d:"
    );
    assert_eq!(
        w.sh(&format!("cmp copy/big home@@{then}/big | wc -l || true; cmp -n 3000000 copy/big home@@{then}/big")),
        "1"
    );
    assert!(refused(&w, &format!("ls copy@@{then}")).contains("No such file"));
    assert!(refused(&w, "$DARNER fileset remove $MNT home --force").contains("\"copy\" is a clone of it"));
    // The main one, now and then; the others stay out of it.
    w.sh(&format!("$DARNER clone $MNT now; $DARNER clone $MNT/@@{then} early; $DARNER clone $MNT@@{then} early2; ls now | grep -x f"));
    assert_eq!(w.sh("ls now; ls early early2; $DARNER fileset list $MNT | grep -c clone"), "f\nearly:\n\nearly2:\n4");
    // By a label of its own.
    w.sh("$DARNER snapshot $MNT/home of-home; $DARNER clone $MNT/home@@of-home labelled");
    assert_eq!(w.sh("ls labelled/d; ls home@@of-home/d"), w.sh("ls home/d; ls home/d"));
    assert!(refused(&w, "$DARNER clone $MNT/home/d x").contains("only a whole fileset"));
    assert!(refused(&w, "$DARNER clone $MNT/home f").contains("exists"));
    // A removed one comes back as a clone of its past.
    w.sh("for f in now early early2 labelled copy; do $DARNER fileset remove $MNT $f --force; done; $DARNER fileset remove $MNT home --force");
    w.sh(&format!("$DARNER clone $MNT/home@@{then} home; cat home/d/f; stat -c %s home/big | grep 5242880"));
    w.unmount();
    w.sh_outside("$DARNER check $DIR/store");
}

#[test]
fn a_renamed_fileset_has_its_moments_and_labels_under_its_new_name() {
    let Some(w) = World::new() else { return };
    w.sh("$DARNER fileset create $MNT old; echo 1 > old/f; $DARNER snapshot old only; sleep 0.1");
    let then = w.now();
    w.sh("sleep 0.1; echo 2 > old/f; $DARNER fileset rename $MNT old new");
    for (n, past) in [format!("new/@@{then}"), "new/@@only".into(), "new@@only".into()].iter().enumerate() {
        w.sh(&format!("$DARNER clone {past} c{n}; test $(cat c{n}/f) = 1"));
    }
    for when in [then.as_str(), "only"] {
        w.sh_outside(&format!(
            "mkdir -p past; $DARNER mount --fileset new --as-of {when} store past; test $(cat past/f) = 1; $DARNER unmount past"
        ));
    }
    // Of one that is gone the name is the one that it had.
    w.sh(&format!("for f in c0 c1 c2 new; do $DARNER fileset remove $MNT $f --force; done; $DARNER clone $MNT/old@@{then} back; test $(cat back/f) = 1"));
}

#[test]
fn what_no_moment_leads_to_of_a_removed_fileset_is_given_up_and_forgotten() {
    let Some(w) = World::new() else { return };
    w.sh("$DARNER retain $MNT none; $DARNER fileset create $MNT gone");
    w.sh("head -c 5M /dev/urandom > gone/big; echo secret-of-one > gone/s; $DARNER snapshot gone label");
    w.sh("$DARNER fileset remove $MNT gone --force; $DARNER clean $MNT --wait");
    let used = || w.sh("$DARNER status $MNT --json | jq .used_bytes").trim().parse::<u64>().unwrap();
    assert!(used() < 2 << 20, "{}", used());
    // As long as there are moments that show it, it is there.
    w.sh("$DARNER retain $MNT forever; $DARNER fileset create $MNT kept; echo secret-of-two > kept/s; $DARNER fileset remove $MNT kept --force");
    w.sh("$DARNER clean $MNT --wait");
    let said = w.sh("$DARNER forget kept");
    assert!(said.contains("are destroyed"), "{said}");
    w.unmount();
    w.sh_outside("if grep -rlE 'secret-of-(one|two)' store; then exit 1; fi; $DARNER check store");
}

/// It was held for ever.
#[test]
fn what_a_removed_clone_showed_is_given_up_once_no_moment_leads_there() {
    let Some(w) = World::new() else { return };
    let used = || -> u64 {
        w.sh("$DARNER clean $MNT --wait >/dev/null; $DARNER status $MNT --json | jq .used_bytes")
            .trim()
            .parse()
            .unwrap()
    };
    w.sh("$DARNER fileset create $MNT home; head -c 5M /dev/urandom > home/a; sha256sum < home/a > ../sum");
    // A clone of a clone, of which only the first one is removed, shows it still.
    w.sh(
        "$DARNER clone home one; $DARNER clone one two; rm home/a; $DARNER retain home none; $DARNER retain $MNT none",
    );
    w.sh("$DARNER fileset remove $MNT two --force; $DARNER clean $MNT --wait; sha256sum < one/a | cmp - ../sum");
    // As long as there is a moment of the whole that leads there, the past of a removed one shows it.
    w.sh("$DARNER snapshot $MNT before; $DARNER fileset remove $MNT one --force");
    let kept = used();
    assert!(kept > 5 << 20, "{kept}");
    w.sh("sha256sum < @@before/one/a | cmp - ../sum");
    w.remount();
    w.sh("sha256sum < @@before/one/a | cmp - ../sum; $DARNER snapshot remove $MNT before");
    let left = used();
    assert!(left < 2 << 20, "{left}");
    w.unmount();
    w.sh_outside("$DARNER check store");
}

#[test]
fn what_is_not_forgotten_for_the_sake_of_a_clone_is_not_removed_either() {
    let Some(w) = World::new() else { return };
    w.sh("$DARNER fileset create $MNT fs; echo words > fs/q; mkdir fs/d; echo words > fs/d/q; $DARNER clone fs copy");
    for (path, why) in [("fs/q", "is a clone that shows it"), ("fs/d", "a clone"), ("copy/q", "came with the clone")] {
        let said = refused(&w, &format!("$DARNER forget {path}"));
        assert!(said.contains(why), "{said}");
    }
    assert_eq!(w.sh("cat fs/q fs/d/q copy/q copy/d/q | sort -u"), "words");
}

#[test]
fn nothing_is_lost_when_the_daemon_is_killed_after_a_clone_was_changed() {
    let Some(w) = World::new() else { return };
    w.sh("$DARNER fileset create $MNT home; head -c 300K /dev/urandom > home/f; cp home/f saved; $DARNER clone $MNT/home copy");
    w.sh("printf changed | dd of=copy/f bs=1 seek=100000 conv=notrunc,fsync status=none");
    w.kill();
    w.mount();
    assert_eq!(w.sh("cmp home/f saved; dd if=copy/f bs=1 skip=100000 count=7 status=none; cmp -n 100000 copy/f saved; cmp -i 100007 copy/f saved"), "changed");
    w.unmount();
    w.sh_outside("$DARNER check $DIR/store");
}

#[test]
fn commands_know_the_fileset_of_a_path_through_a_bind_mount_too() {
    let Some(w) = World::new() else { return };
    w.sh("$DARNER fileset create $MNT home; mkdir home/d; echo one > home/d/f");
    w.sh("mkdir $DIR/bound; mount --bind $MNT/home/d $DIR/bound; $DARNER snapshot $DIR/bound before; echo two > $DIR/bound/f");
    assert_eq!(w.sh("cat $DIR/bound/f@@before; cat home/d@@before/f; $DARNER log $DIR/bound/f | wc -l"), "one\none\n3");
    assert_eq!(
        w.sh("$DARNER snapshot list $MNT; ls home/@@ home/d/@@ | grep -c before; ls @@ | grep -c before || true"),
        "2\n0"
    );
    assert_eq!(w.sh("$DARNER diff $DIR/bound@@before $DIR/bound || true"), "M f  content, mtime");
    w.sh("umount $DIR/bound");
}

#[test]
fn restore_knows_what_a_fileset_is() {
    let Some(w) = World::new() else { return };
    w.sh("$DARNER fileset create $MNT home; echo one > home/f");
    let then = w.now();
    w.sh("echo two > home/f");
    assert!(refused(&w, &format!("$DARNER restore home@@{then}")).contains("is a fileset"));
    w.sh(&format!("$DARNER restore home/f@@{then}; $DARNER restore home@@{then} --to old"));
    assert_eq!(w.sh("cat home/f old/f; ls"), "one\none\nhome\nold");
}

#[test]
fn the_count_of_a_clone_is_right_after_cleaning_and_an_index_made_anew() {
    let Some(w) = World::new() else { return };
    w.sh("$DARNER fileset create $MNT home; for i in 1 2 3 4 5; do head -c 300000 /dev/urandom > home/f$i; done
        $DARNER clone $MNT/home copy; rm copy/f1; echo new > copy/g
        for i in 1 2 3 4 5 6 7 8 9; do head -c 100000 /dev/urandom > copy/t$i; done; sync
        for i in 1 2 3 4 5 6 7 8 9; do rm copy/t$i; done
        for i in 1 2 3 4 5 6 7 8; do head -c 3000000 /dev/urandom > waste; done; rm waste
        for f in $MNT $MNT/home $MNT/copy; do $DARNER retain $f none; done; $DARNER clean $MNT --wait");
    w.unmount();
    let store = w.store.to_str().unwrap();
    w.darner(&["rebuild", store]);
    assert_eq!(w.darner(&["check", store]).lines().count(), 1);
}

#[test]
fn what_is_not_in_a_clone_is_not_counted_by_an_index_made_anew() {
    let Some(w) = World::new() else { return };
    // At the moment of the first clone a file is open without a name; of what is keepless, the second has nothing.
    w.sh("$DARNER fileset create $MNT home; mkdir home/cache; $DARNER retain home/cache --nothing-here
        for f in open f g cache/a cache/b; do head -c 300000 /dev/urandom > home/$f; done
        exec 3< home/open; rm home/open; $DARNER snapshot home before; $DARNER clone $MNT/home copy; exec 3<&-
        $DARNER clone $MNT/home/@@before older; echo new > copy/new; rm older/f
        for i in 1 2 3 4 5 6 7 8; do head -c 3000000 /dev/urandom > waste; done; rm waste
        for f in $MNT home copy older; do $DARNER retain $f none; done; $DARNER clean $MNT --wait");
    let counted = |line: &Value| ["name", "objects", "live_bytes"].map(|field| line[field].clone());
    let counts = || filesets(&w).iter().map(counted).collect::<Vec<_>>();
    let before = counts();
    let clones = [("copy", 7, 1_200_004), ("older", 3, 300_000)];
    assert_eq!(before[2..], clones.map(|(name, objects, bytes)| [json!(name), json!(objects), json!(bytes)]));
    w.unmount();
    for (lose, anew, options) in [
        ("true", "$DARNER rebuild store", &["--create"][..]),
        (LOSE_INDEX, "true", &["--read-only"]),
        ("true", "true", &["--create"]),
    ] {
        w.sh_outside(lose);
        w.sh_outside(anew);
        w.mount_at("mnt", options).unwrap();
        assert_eq!(counts(), before, "{lose}; {anew}; mount {options:?}");
        w.unmount();
    }
    w.sh_outside("$DARNER check store");
}

#[test]
fn what_is_mounted_within_a_mount_stays_whatever_becomes_of_filesets_and_is_never_forgotten() {
    let Some(w) = World::new() else { return };
    // SAFETY: this call can't fail.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("SKIPPED: only root mounts a tmpfs");
        return;
    }
    w.sh("$DARNER fileset create $MNT home; mkdir -p a/b home/m; echo 1 > a/f");
    for at in ["a/b", "home/m"] {
        w.sh(&format!("mount -t tmpfs none {at}; echo mine > {at}/file"));
    }
    let both = || assert_eq!(w.sh("mountpoint -q a/b; mountpoint -q home/m; cat a/b/file home/m/file"), "mine\nmine");
    w.sh("$DARNER fileset create $MNT one; $DARNER fileset rename $MNT one two; $DARNER clone $MNT/home copy");
    both();
    w.sh("$DARNER fileset remove --force $MNT two; $DARNER fileset remove --force $MNT copy");
    both();
    let is_mounted = |said: String, at: &str| assert!(said.contains(&format!("{at} is mounted there")), "{said}");
    is_mounted(refused(&w, "$DARNER fileset rename $MNT home other"), "home/m");
    is_mounted(refused(&w, "$DARNER fileset remove --force $MNT home"), "home/m");
    is_mounted(refused(&w, "$DARNER forget a"), "a/b");
    both();
    assert_eq!(w.sh("cat a/f; umount a/b; umount home/m; ls a/b home/m"), "1\na/b:\n\nhome/m:");
    w.sh("$DARNER forget a; $DARNER fileset rename $MNT home other; ls other");
}

#[test]
fn a_mount_of_the_whole_past_keeps_what_it_shows_of_all_filesets_and_is_what_clones_of_it_are() {
    let Some(w) = World::new() else { return };
    w.sh("$DARNER fileset create $MNT home; echo november > f; echo november > home/f; echo gone > home/g; sleep 0.1");
    let then = w.now();
    w.sh("sleep 0.1; echo december > f; echo december > home/f; rm home/g");
    let past = w.mount_at("past", &["--as-of", &then]).unwrap();
    w.sh("$DARNER retain $MNT none; $DARNER retain home none; $DARNER clean --wait $MNT");
    let shows = |w: &World| w.sh(&format!("cd {}; cat f home/f home/g", past.display()));
    assert_eq!(shows(&w), "november\nnovember\ngone");
    signal(w.status()["daemon_pid"].as_i64().unwrap() as i32, libc::SIGKILL);
    w.sh("echo 1 > new; $DARNER clean --wait $MNT; echo 2 > /proc/sys/vm/drop_caches");
    assert_eq!(shows(&w), "november\nnovember\ngone");
    let clones = format!("$DARNER clone {0} one; $DARNER clone {0}/home two; cat one/f two/f two/g", past.display());
    assert_eq!(w.sh(&clones), "november\nnovember\ngone");
    w.darner(&["unmount", past.to_str().unwrap()]);
    w.sh("$DARNER fileset remove $MNT one --force; $DARNER fileset remove $MNT two --force; $DARNER clean --wait $MNT");
    assert!(refused(&w, &format!("cat home@@{then}/g")).contains("No such file"));
}

#[test]
fn the_log_of_a_path_in_the_past_follows_links_and_names_as_they_were() {
    let Some(w) = World::new() else { return };
    w.sh("mkdir t e; echo 'e: some text' > e/a; echo 1 > t/a; echo 22 > t/a; echo n > t/b; ln -s t k; sleep 0.05; $DARNER snapshot . L");
    w.sh("rm -r t k; ln -s e t; mkdir k; echo other > k/a");
    let log = |path: &str| {
        let lines: serde_json::Value =
            serde_json::from_str(&w.sh(&format!("$DARNER log --json --all {path}"))).unwrap();
        let inodes: Vec<u64> = lines.as_array().unwrap().iter().map(|l| l["inode"].as_u64().unwrap()).collect();
        (lines.as_array().unwrap().last().unwrap()["size"].as_u64().unwrap(), inodes)
    };
    let (size, then) = log("@@L/t/a");
    assert!(size == 3 && then.iter().all(|ino| *ino == then[0]), "{size} {then:?}");
    for same in ["t@@L/a", "@@L/k/a"] {
        assert_eq!(log(same), (3, then.clone()), "{same}");
    }
    assert_eq!((log("@@L/t/b").0, log("@@L/e/a").0, log("k/a").0), (2, 13, 6));
}
