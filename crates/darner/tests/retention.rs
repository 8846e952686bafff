//! What is kept of the past, cleaning and forgetting, through the real program and the real kernel.

mod common;

use std::ffi::CStr;
use std::fs;
use std::path::Path;
use std::time::Duration;

use common::{World, eventually, signal};
use serde_json::Value;

fn xattr(path: &Path, name: &CStr) -> String {
    let path = common::c_string(path);
    let mut buf = vec![0; 1000];
    // SAFETY: path and name are NUL-terminated, the buffer as long as told.
    let n = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) };
    assert!(n >= 0, "{}", std::io::Error::last_os_error());
    buf.truncate(n as usize);
    String::from_utf8(buf).unwrap()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_grid_is_shown_tried_and_set_and_its_space_comes_back() {
    let Some(w) = World::new() else { return };
    w.sh("for i in 1 2 3 4; do head -c 10M /dev/urandom > big; done; echo kept > notes");
    let shown = json(&w.sh("$DARNER retain $MNT --json"));
    assert_eq!((shown["grid"].as_str(), shown["horizon"].as_str()), (Some("forever"), None));
    assert!(shown["history_bytes"].as_u64() > Some(29 << 20), "{shown}");
    let tried = json(&w.sh("$DARNER retain $MNT none --dry-run --json"));
    assert!(tried["lapsed_bytes"].as_u64() > Some(29 << 20), "{tried}");
    assert_eq!(json(&w.sh("$DARNER retain $MNT --json"))["grid"], "forever", "a try changes nothing");
    assert!(w.sh("$DARNER retain $MNT").contains("a grid that many want: darner retain"));
    let then = w.now();
    w.sh("echo later > notes");
    let before = w.status()["used_bytes"].as_u64().unwrap();
    w.sh("$DARNER retain $MNT all:1h 1d:forever");
    assert_eq!(w.sh(&format!("cat notes@@{then}")), "kept");
    w.sh("$DARNER retain $MNT none");
    eventually("space comes back by itself", || w.status()["used_bytes"].as_u64().unwrap() < before / 2);
    let cleaned = json(&w.sh("$DARNER clean $MNT --wait --json"));
    assert!(cleaned["used_bytes"].as_u64() < Some(14 << 20), "{cleaned}");
    assert_eq!(w.sh(&format!("cat notes; test ! -e notes@@{then} && echo gone")), "later\ngone");
    let status = w.status();
    assert!(status["retention"][0]["grid"] == "none" && status["retention"][0]["horizon"].is_string(), "{status}");
    assert!(w.sh("$DARNER status --by-time $MNT").contains("older"));
    for wrong in ["1h", "xyz:1d", "--dry-run", "--when-full maybe all:1d"] {
        assert!(!w.try_sh(&format!("$DARNER retain $MNT {wrong}")).status.success(), "{wrong}");
    }
    // A directory has none of its own.
    w.sh("mkdir cache; $DARNER retain $MNT forever");
    let wrong = w.try_sh("$DARNER retain cache none");
    assert!(!wrong.status.success(), "{wrong:?}");
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("a directory of the fileset \"main\""), "{wrong:?}");
    assert_eq!(json(&w.sh("$DARNER retain cache --json"))["grid"], "forever");
    w.sh("cd cache && ! $DARNER retain . none && $DARNER retain $MNT none");
    w.remount();
    assert_eq!(w.status()["retention"][0]["grid"], "none");
    w.unmount();
    w.sh_outside("$DARNER check store");
}

#[test]
fn what_a_grid_would_free_is_counted_once_however_many_versions_had_it() {
    let Some(w) = World::new() else { return };
    // Each write makes a version that has all before it, too.
    w.sh("dd if=/dev/urandom of=a bs=4k count=512 status=none; dd if=/dev/urandom of=b bs=4k count=512 status=none; rm a");
    let tried = || json(&w.sh("$DARNER retain $MNT none --dry-run --json"));
    // (The kernel has it a moment longer.)
    eventually("it is gone", || tried()["lapsed_bytes"].as_u64() >= Some(2 << 20));
    let (lapsed, versions) = (tried()["lapsed_bytes"].as_u64().unwrap(), tried()["lapsed_versions"].as_u64().unwrap());
    assert!(versions > 1000 && lapsed < 3 << 20, "{}", tried());
    let before = w.status()["used_bytes"].as_u64().unwrap();
    w.sh("$DARNER retain $MNT none; $DARNER clean --wait $MNT");
    let freed = before - w.status()["used_bytes"].as_u64().unwrap();
    assert!(freed.abs_diff(lapsed) < 1 << 20, "{freed} bytes were freed, {lapsed} were promised");
}

#[test]
fn a_mount_of_the_past_keeps_what_it_shows_and_says_where_it_rounded_to() {
    let Some(w) = World::new() else { return };
    w.sh("echo one > a");
    let then = w.now();
    w.sh("echo two > a; rm a; echo three > b");
    w.mount_at("past", &["--as-of", &then]).unwrap();
    w.sh("$DARNER retain $MNT none; $DARNER clean $MNT --wait");
    assert_eq!(w.sh_outside("cat past/a; ls past"), "one\na");
    // The grid would have given that moment up: the next daemon keeps it, too.
    for _ in 0..2 {
        signal(w.daemon_pid(), libc::SIGKILL);
        assert_eq!(w.sh_outside("cat past/a"), "one");
        w.sh("$DARNER clean $MNT --wait");
        assert_eq!(w.sh_outside("cat past/a; ls past"), "one\na");
    }
    let shown = xattr(&w.dir.join("past"), c"user.darner.as-of");
    assert!(shown.starts_with(&then) && shown.contains("retained point"), "{shown}");
    w.sh_outside("$DARNER snapshot mnt label; $DARNER unmount past");
    w.sh("$DARNER clean $MNT --wait");
    let refused = w.mount_at("past", &["--as-of", &then]).unwrap_err();
    assert!(refused.contains("it is not kept any more; the oldest that is, is 0x"), "{refused}");
    w.sh("echo four > b; $DARNER clean $MNT --wait; echo five > b; $DARNER clean $MNT --wait");
    let between = w.now();
    w.sh("echo six > b; $DARNER clean $MNT --wait");
    let said = w.sh_outside(&format!("mkdir -p again; $DARNER mount --as-of {between} store again 2>&1; cat again/b"));
    assert!(said.contains("retained point") && said.ends_with("three"), "{said}");
    w.sh_outside("$DARNER unmount again");
}

#[test]
fn an_interrupted_forget_says_what_the_state_is_and_the_next_one_does_all() {
    let Some(w) = World::new() else { return };
    w.sh("mkdir d; for i in $(seq 3000); do echo $i > d/$i; done; $DARNER snapshot $MNT l");
    let said = w.sh("$DARNER forget d 2>$DIR/said & while [ $(ls d 2>/dev/null | wc -l) = 3000 ]; do :; done
         kill -TERM $!; wait $! && exit 9; cat $DIR/said");
    match said.contains("interrupted; some of d may be removed") {
        true => assert_eq!(w.sh("ls @@l/d | wc -l"), "3000"),
        false => assert!(said.contains("interrupted; d is removed, and its daemon goes on"), "{said}"),
    }
    w.sh("$DARNER forget d; ! test -e d; ! test -e @@l/d");
}

#[test]
fn what_is_forgotten_is_gone_from_what_the_kernel_has_cached_too() {
    let Some(w) = World::new() else { return };
    w.sh("mkdir d; echo password > d/secret; echo harmless > d/other; $DARNER snapshot $MNT pinned");
    let then = w.now();
    let past = format!("d/secret@@{then}");
    assert_eq!(w.sh(&format!("cat {past} @@pinned/d/secret d@@{then}/secret")), "password\npassword\npassword");
    w.sh("echo 'another password' > d/secret; cp d/secret elsewhere");
    let said = w.sh("$DARNER forget d/secret --json");
    assert_eq!(json(&said)["left"], json("[]"), "{said}");
    for path in [past.as_str(), "@@pinned/d/secret", &format!("d@@{then}/secret"), "d/secret"] {
        assert!(fs::read(w.path(path)).is_err(), "{path}");
    }
    assert_eq!(
        w.sh(&format!("cat @@pinned/d/other elsewhere; ls d d@@{then}")),
        "harmless\nanother password\nd:\nother\n\nd@@".to_string() + &then + ":\nother"
    );
    assert!(!w.try_sh("$DARNER log d/secret").status.success());
    w.unmount();
    assert_eq!(w.sh_outside("grep -rl 'password' store | wc -l"), "1", "the copy elsewhere is in one segment");
    w.sh_outside("if grep -rl \"$(printf 'password\\n')\" store | xargs grep -c '^password' ; then exit 1; fi; true");
    w.sh_outside("$DARNER check store");
}

#[test]
fn what_is_removed_right_before_is_cleaned_too() {
    let Some(w) = World::new() else { return };
    w.sh("$DARNER retain $MNT none");
    for _ in 0..5 {
        w.sh("head -c 20M /dev/urandom > big; sync");
        let said = w.sh("rm big; $DARNER clean $MNT --wait --json");
        assert!(json(&said)["used_bytes"].as_u64() < Some(4 << 20), "{said}");
    }
    // What is open is waited for for a moment only.
    let said =
        w.sh("head -c 20M /dev/urandom > big; exec 7<big; rm big; $DARNER clean $MNT --wait --json; cat <&7 | wc -c");
    assert!(said.ends_with("20971520"), "{said}");
}

#[test]
fn a_list_of_moments_is_as_it_is_now_however_often_it_was_listed() {
    let Some(w) = World::new() else { return };
    w.sh("echo one > f; ls @@ > $DIR/before; $DARNER snapshot $MNT first");
    for label in ["first", "second", "third"] {
        w.sh(&format!("$DARNER snapshot $MNT {label} 2>/dev/null || true; ls @@ | grep -x {label}"));
    }
    w.sh("echo two > f; $DARNER snapshot remove $MNT second; ls @@ > $DIR/after; if grep -x second $DIR/after; then exit 1; fi");
    w.sh("$DARNER retain $MNT none; $DARNER clean $MNT --wait; ls -l @@ > $DIR/list; if grep '?' $DIR/list; then exit 1; fi; ls @@ | grep third");
}

#[test]
fn a_restore_keeps_what_no_history_is_kept_of() {
    let Some(w) = World::new() else { return };
    w.sh("mkdir -p p/target p/src; echo code > p/src/a.c; $DARNER snapshot $MNT then");
    w.sh("$DARNER retain p/target --nothing-here; echo precious > p/target/out; echo code2 > p/src/a.c");
    let said = w.sh("$DARNER restore p@@then");
    assert_eq!(w.sh("cat p/src/a.c p/target/out"), "code\nprecious");
    assert!(w.sh("$DARNER retain p/target").contains("no history"), "{}", w.sh("$DARNER retain p/target"));
    let undo = said.lines().find_map(|line| line.strip_prefix("undo: darner ")).unwrap();
    w.sh(&format!("$DARNER {undo}"));
    assert_eq!(w.sh("cat p/src/a.c p/target/out; ls -A . p"), "code2\nprecious\n.:\np\n\np:\nsrc\ntarget");
    // Where it has no place, or is what is to be restored, nothing is done.
    let refused = |script: &str, why: &str| {
        let out = w.try_sh(script);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && said.contains(why), "{said}");
    };
    refused("$DARNER restore p/target@@then", "no history is kept of");
    w.sh("mkdir -p p/new; $DARNER retain p/new --nothing-here; mkdir p/new/deep; mkdir -p p/deep/er; $DARNER retain p/deep/er --nothing-here; echo x > p/deep/er/f");
    refused("$DARNER restore p@@then", "p/deep/er, which would be lost for good");
    assert_eq!(w.sh("cat p/src/a.c p/target/out p/deep/er/f; ls -A"), "code2\nprecious\nx\np");
    w.sh("mv p/target elsewhere");
    for restore in ["$DARNER restore p/target@@then", "$DARNER restore p/target@@then --to copy"] {
        refused(restore, "no history is kept of");
    }
    assert_eq!(w.sh("cat elsewhere/out; ls -A . p"), "precious\n.:\nelsewhere\np\n\np:\ndeep\nnew\nsrc");
}

#[test]
fn a_restore_says_where_its_undo_does_not_last_and_restores_no_other_moment_than_the_exact_one_that_it_is_told() {
    let Some(w) = World::new() else { return };
    w.sh("echo v1 > f; $DARNER snapshot $MNT first; echo v2 > f");
    let said = w.sh("$DARNER restore f@@first");
    assert!(!said.contains("cleaner"), "{said}");
    w.sh("echo v2 > f; $DARNER retain $MNT 1h:1d");
    let said = w.sh("$DARNER restore f@@first");
    assert!(said.contains("only until the cleaner comes by"), "{said}");
    let undo = said.lines().find_map(|line| line.strip_prefix("undo: darner ")).unwrap();
    w.sh("touch other; $DARNER clean $MNT --wait");
    let out = w.try_sh(&format!("$DARNER {undo}"));
    let refused = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && refused.contains("is not kept"), "{refused}");
    assert_eq!(w.sh("cat f"), "v1");
    // It says how to have the moment that there is.
    let instead = refused.trim().rsplit_once("darner restore ").unwrap().1;
    w.sh(&format!("rm f; $DARNER restore {instead}; cat f"));
}

#[test]
fn what_was_listed_of_the_past_goes_from_there_with_what_no_history_is_kept_of() {
    let Some(w) = World::new() else { return };
    w.sh("mkdir -p p/target q/target; echo o > p/target/o; echo c > p/c");
    w.sh("$DARNER retain p/target --nothing-here; $DARNER snapshot $MNT then");
    // The kernel keeps listings of the past, and looks at this one with and without attributes.
    assert_eq!(w.sh("ls p@@then; ls -la p@@then > /dev/null; ls q@@then; ls @@then/q"), "c\ntarget\ntarget\ntarget");
    w.sh("$DARNER retain q/target --nothing-here; ls q@@then; rm -r p/target; mv q/target elsewhere; rmdir elsewhere");
    common::eventually("it is not listed any more", || {
        w.sh("ls p@@then q@@then @@then/q") == "@@then/q:\n\np@@then:\nc\n\nq@@then:"
    });
    w.sh("cp -a p@@then $DIR/copy; tar cf /dev/null @@then; $DARNER restore p@@then; ls p");
    // So it is with a fileset that keeps less than what is around it.
    w.sh("$DARNER fileset create $MNT F; echo 1 > F/f; $DARNER snapshot $MNT later; ls -la @@later > /dev/null; ls @@later | grep F");
    w.sh("$DARNER retain $MNT/F none; echo 2 > F/f; $DARNER clean --wait $MNT; $DARNER clean --wait $MNT");
    common::eventually("it is not listed either", || !w.sh("ls @@later").contains('F'));
    w.sh("tar cf /dev/null @@later; ls -la @@later; $DARNER restore $MNT@@later --to $DIR/whole");
}

#[test]
fn a_full_volume_lets_go_of_what_is_deleted_once_it_is_told_so() {
    let Some(w) = World::unmounted() else { return };
    w.mount_at("mnt", &["--create", "--size", "192M"]).unwrap();
    w.sh("for i in $(seq 1 400); do head -c 1M /dev/urandom > f$i || { rm -f f$i; break; }; done 2>/dev/null; ls | wc -l");
    let refused = w.try_sh("head -c 8M /dev/urandom > more");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("No space left"), "it is full");
    assert!(w.sh("$DARNER status $MNT").contains("warning"));
    w.sh("rm -f *; ls");
    w.sh("$DARNER retain $MNT none; $DARNER clean $MNT --wait");
    w.sh("for i in $(seq 1 60); do head -c 1M /dev/urandom > g$i; done; md5sum g* > $DIR/sums; md5sum -c --quiet $DIR/sums");
    w.remount();
    w.sh("md5sum -c --quiet $DIR/sums");
    w.sh("$DARNER retain $MNT forever --when-full collapse-oldest");
    w.sh("for i in $(seq 1 300); do head -c 1M /dev/urandom > same; done; md5sum -c --quiet $DIR/sums");
    w.unmount();
    w.sh_outside("$DARNER check store");
}

#[test]
fn status_tells_what_history_costs_where_files_are_compressed_and_shared_too() {
    let Some(w) = World::new() else { return };
    w.sh("(yes 'some text that is compressible' || true) | head -c 60M > text; head -c 10M /dev/urandom > r; cp r s; cp r t");
    let before = w.status()["history_bytes"].as_u64().unwrap();
    w.sh("head -c 16M /dev/urandom > u; rm u; sync .");
    let told = |w: &World| w.status()["history_bytes"].as_u64().unwrap();
    eventually("what was removed is history", || told(&w) > 16 << 20);
    let (status, retained) = (told(&w), json(&w.sh("$DARNER retain $MNT --json"))["history_bytes"].as_u64().unwrap());
    assert!(
        before < 2 << 20 && status < 20 << 20 && status.abs_diff(retained) < 1 << 20,
        "{before} {status} {retained}"
    );
    w.sh("$DARNER retain $MNT none; $DARNER clean --wait $MNT");
    eventually("what is not kept costs nothing", || told(&w) < 1 << 20);
}

#[test]
fn nothing_is_lost_while_the_cleaner_works_and_the_daemon_is_killed() {
    let Some(w) = World::new() else { return };
    w.sh("$DARNER retain $MNT all:1s 2s:10s; mkdir tree; for i in $(seq 1 200); do head -c $((i * 500)) /dev/urandom > tree/$i; done");
    w.sh("cd tree; md5sum * > $DIR/sums; sync .");
    let rounds = if common::long() { 30 } else { 4 };
    for round in 0..rounds {
        let script = "for i in $(seq 1 150); do head -c 200K /dev/urandom > hot$((i % 7)); echo $i > n; done; \
                      (cd tree; md5sum -c --quiet $DIR/sums)";
        w.sh(script);
        if round % 2 == 0 {
            w.sh("$DARNER clean $MNT");
            std::thread::sleep(Duration::from_millis(37 * (round + 1)));
        }
        w.kill();
        w.mount();
        w.sh("(cd tree; md5sum -c --quiet $DIR/sums); test -s n");
    }
    w.sh("$DARNER clean $MNT --wait; (cd tree; md5sum -c --quiet $DIR/sums)");
    w.unmount();
    w.sh_outside("$DARNER check store");
}

#[test]
fn a_build_tree_that_is_told_so_costs_no_history() {
    let Some(w) = World::new() else { return };
    w.sh("mkdir -p src/target/release/deps; echo 'fn main' > src/main.rs; head -c 2M /dev/urandom > src/target/old");
    w.sh("$DARNER snapshot $MNT before");
    assert!(w.sh("ls src@@before/target") == "old\nrelease", "it is kept until somebody says otherwise");
    assert_eq!(w.sh("$DARNER retain src/target --nothing-here"), "4 files and directories changed");
    assert!(w.sh("$DARNER retain src/target").starts_with("here"));
    assert_eq!(json(&w.sh("$DARNER retain src/target --json"))["nothing_here"], true);
    assert_eq!(json(&w.sh("$DARNER retain src --json"))["nothing_here"], false);
    // The kernel had looked at it before.
    assert_eq!(
        w.sh("ls src@@before; ls src@@before/target; test ! -e src@@before/target/old && echo gone"),
        "main.rs\ntarget\ngone"
    );
    w.sh(
        "mkdir src/cache; echo precious > src/notes; ln src/notes src/cache/notes; ln src/cache/notes src/cache/again",
    );
    w.sh("$DARNER snapshot $MNT linked; echo changed > src/notes");
    let said = w.sh("$DARNER retain src/cache --nothing-here");
    assert!(said.starts_with("1 files and directories changed\n  left: /src/") && said.contains(" keeps its history"));
    assert_eq!(w.sh("cat src/notes@@linked; ls src/cache@@linked; rm -r src/cache"), "precious");
    let build = "for i in $(seq 1 40); do head -c 500K /dev/urandom > src/target/release/deps/tmp$i; \
                 mv src/target/release/deps/tmp$i src/target/release/deps/lib$i.rlib; echo $i > src/target/.fingerprint; done; \
                 rm -f src/target/release/deps/lib*7.rlib; echo \"fn main // $RANDOM\" > src/main.rs";
    for _ in 0..6 {
        w.sh(build);
    }
    let account = json(&w.sh("$DARNER retain $MNT --json"));
    assert!(account["lapsed_bytes"].as_u64() > Some(80 << 20) || w.status()["used_bytes"].as_u64() < Some(60 << 20));
    assert!(account["history_bytes"].as_u64() < Some(1 << 20), "{account}");
    let cleaned = json(&w.sh("$DARNER clean $MNT --wait --json"));
    assert!(cleaned["used_bytes"].as_u64() < Some(28 << 20), "of 120 MiB 20 are there: {cleaned}");
    assert_eq!(w.sh("$DARNER log src/target/release/deps/lib1.rlib --json | grep -c tid").parse::<u32>().unwrap(), 1);
    assert_eq!(
        w.sh("ls @@before/src/target; ls src/target/release/deps | wc -l; $DARNER log src/main.rs | wc -l > $DIR/n"),
        "36"
    );
    w.sh("$DARNER clone $MNT@@before then");
    assert_eq!(w.sh("ls then/src then/src/target"), "then/src:\nmain.rs\ntarget\n\nthen/src/target:");
    for (path, why) in [("src/main.rs", ": not a directory"), ("src/nowhere", " does not exist")] {
        let said = w.try_sh(&format!("$DARNER retain {path} --nothing-here"));
        assert!(!said.status.success() && String::from_utf8_lossy(&said.stderr).contains(&format!("{path}{why}")));
    }
    assert!(!w.try_sh("$DARNER retain $MNT --nothing-here").status.success());
    w.sh("$DARNER retain src/target --as-elsewhere");
    let then = w.now();
    w.sh("echo later > src/target/.fingerprint");
    assert_eq!(w.sh(&format!("cat src/target/.fingerprint@@{then}")), "40");
    w.remount();
    assert_eq!(w.sh(&format!("cat src/target/.fingerprint@@{then}; ls src@@before/target")), "40");
    w.unmount();
    w.sh_outside("$DARNER check store");
}
