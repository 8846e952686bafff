//! Damaged and lost bytes of a store, through the real program and the real kernel.

mod common;

use common::World;

const LOSE_INDEX: &str = "for f in store/region-*; do if grep -q DARNTBL $f; then rm $f; fi; done";

#[test]
fn a_store_whose_index_is_lost_is_mounted_as_if_nothing_had_happened() {
    let Some(w) = World::new() else { return };
    w.sh("mkdir d; for i in $(seq 300); do echo $i > d/$i; done; seq 10000 > many; $DARNER snapshot $MNT before");
    w.sh("rm d/1??; seq 20000 > many; $DARNER retain $MNT all:1d >/dev/null");
    let seen = "find . @@before/ | sort; cat @@before/d/150 many @@before/many; $DARNER log many";
    let before = w.sh(seen);
    w.unmount();
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
