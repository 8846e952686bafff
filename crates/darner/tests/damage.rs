//! Damaged and lost bytes of a store, through the real program and the real kernel.

mod common;

use common::{LOSE_INDEX, World, eventually};
use serde_json::Value;

#[test]
fn a_store_whose_index_is_lost_is_mounted_as_if_nothing_had_happened() {
    let Some(w) = World::new() else { return };
    w.sh("mkdir d; for i in $(seq 300); do echo $i > d/$i; done; seq 10000 > many; $DARNER snapshot $MNT before");
    w.sh("rm d/1??; seq 20000 > many; $DARNER retain $MNT all:1d >/dev/null");
    let seen = "find . @@before/ | sort; cat @@before/d/150 many @@before/many; $DARNER log many";
    let before = w.sh(seen);
    w.unmount();
    // Any part of it: what is read before the mount answers, and what is not.
    w.sh_outside(
        "mkdir other; for f in $(cd store; find . -name 'region-*' -size -900k); do for at in 20 300; do
        rm -rf rotten; cp -r store rotten; printf '\\252' | dd of=rotten/$f bs=1 seek=$at conv=notrunc status=none
        $DARNER mount rotten other; test $(cat other/many other/@@before/many | wc -l) = 30000; $DARNER unmount other
        done; done",
    );
    w.sh_outside(LOSE_INDEX);
    let out = w.sh_outside("$DARNER check store && exit 9; true");
    assert!(out.contains("the index can't be used"), "{out}");
    w.mount();
    assert_eq!(w.sh(seen), before);
    assert!(w.log().contains("derived anew"), "{}", w.log());
    w.unmount();
    w.sh_outside("$DARNER check store");
    // Asked for, it is the same.
    w.sh_outside("$DARNER rebuild store; $DARNER rebuild store --json | grep '\"versions\"'; $DARNER check store");
    w.mount();
    assert_eq!(w.sh(seen), before);
}

#[test]
fn a_damaged_index_is_derived_anew_while_the_store_stays_mounted() {
    let Some(w) = World::new() else { return };
    w.sh("mkdir d; for i in $(seq 4000); do echo $i > d/a-file-of-the-many-$i; done");
    let seen = "ls -l --time-style=full-iso d | sort";
    let before = w.sh(seen);
    w.unmount();
    // In the middle of a table: the mount does not read it.
    w.sh_outside(
        "t=$(ls -S $(grep -l DARNTBL2 store/region-*) | head -1)
        printf '\\252' | dd of=$t bs=1 seek=$(($(stat -c %s $t) * 2 / 5)) conv=notrunc status=none",
    );
    w.mount();
    w.forgive_errors();
    let daemon = w.daemon_pid();
    assert!(!w.log().contains("is derived anew from the segments"), "{}", w.log());
    assert!(!w.try_sh(seen).status.success(), "nothing reads what is damaged");
    eventually("the index is derived anew", || w.log().contains("is derived anew from the segments"));
    eventually("another daemon serves", || w.try_sh(seen).status.success());
    assert_eq!(w.sh(seen), before);
    assert_ne!(w.daemon_pid(), daemon);
    assert!(!w.sh("$DARNER status $MNT").contains("damaged"));
    w.unmount();
    w.sh_outside("$DARNER check store");
}

#[test]
fn a_scrub_names_the_file_whose_bytes_are_damaged() {
    let Some(w) = World::new() else { return };
    let json = |text: &str| -> Value { serde_json::from_str(text).unwrap() };
    assert!(w.sh("$DARNER scrub --report $MNT").contains("never"));
    w.sh(
        "mkdir d; head -c 300000 /dev/urandom > d/victim; head -c 300000 /dev/urandom > d/other; cp d/victim ../before",
    );
    let clean = json(&w.sh("$DARNER scrub $MNT --json"));
    assert_eq!((&clean["damaged"], &clean["damages"]), (&json("0"), &json("[]")));
    assert!(clean["bytes"].as_u64().unwrap() > 600_000, "{clean}");
    w.unmount();
    // A bit of its third block is flipped where it is stored.
    let block = std::fs::read(w.path("../before")).unwrap()[8192..8208].to_vec();
    common::rot(&w.path("../store"), &block);
    let checked = w.sh_outside("$DARNER check store || test $? = 1");
    assert!(checked.contains("/d/victim: bytes 8192 to 12288 as written by 0x"), "{checked}");
    w.mount();
    let out = w.try_sh("$DARNER scrub $MNT");
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("/d/victim: bytes 8192 to 12288 as written by 0x"), "{said}");
    // It stays known, and the rest reads.
    w.remount();
    let out = w.try_sh("$DARNER scrub $MNT --report --json");
    let report = json(&String::from_utf8_lossy(&out.stdout));
    assert_eq!((&report["damaged"], &report["damages"][0]["path"]), (&json("1"), &json("\"/d/victim\"")));
    assert_eq!(report["damages"][0]["live"], json("true"));
    assert!(w.sh("$DARNER status $MNT").contains("1 damaged places"));
    assert!(!w.try_sh("cat d/victim > /dev/null").status.success());
    w.sh("cat d/other > /dev/null; dd if=d/victim bs=4096 count=2 status=none | cmp -n 8192 - ../before");
    // Once it has been written anew, the past alone is damaged.
    w.sh("cp ../before d/victim; $DARNER scrub $MNT --background");
    eventually("the scrub in the background ends", || {
        let out = w.try_sh("$DARNER scrub $MNT --report --json");
        let r = json(&String::from_utf8_lossy(&out.stdout));
        r["begun"] != report["begun"] && r["ended"] != json("null") && r["damages"][0]["live"] == json("false")
    });
    assert!(w.log().contains("/d/victim"), "{}", w.log());
    w.forgive_errors();
}
