//! Limits on history: the oldest gives way; and what a removed fileset leaves.

mod common;

use common::{SECOND, START, World};
use darner_fs::{FilesetId, Limits, MAIN, Tid};
use darner_store::{Grid, Progress};

const MOST: u64 = 4 << 20;

/// What the daemon's upkeep does.
fn keep_up(world: &World, now: u64) {
    let store = world.fs.store();
    store.checkpoint().unwrap();
    while store.step().unwrap() == Progress::Worked {}
    loop {
        world.fs.limit_history(now).unwrap();
        if store.step_clean(now).unwrap() == Progress::Idle {
            return;
        }
    }
}

fn history(world: &World, fileset: FilesetId, now: u64) -> u64 {
    world.fs.store().account(now, None).unwrap().by_fileset.get(&fileset).copied().unwrap_or(0)
}

fn limited(fileset: &str) -> World {
    let mut world = World::new();
    for line in ["t=1 create-fileset home", "t=2 create home/a", "t=3 create b"] {
        world.line(line);
    }
    let limits = Limits { history: MOST, ..Limits::default() };
    world.fs.limit_fileset(world.now, fileset, limits).unwrap();
    world
}

/// Writes 100 KiB in both filesets, with the clock in hand.
fn write(world: &World, rng: &mut fastrand::Rng, now: u64) {
    let mut data = vec![0; 100 << 10];
    for path in ["home/a", "b"] {
        rng.fill(&mut data);
        world.fs.write(now, world.node(path).unwrap(), Some(0), &data, false).unwrap();
    }
}

#[test]
fn history_beyond_its_limit_gives_way_from_its_old_end() {
    let mut world = limited("home");
    let home = world.node("home/a").unwrap().inode().fileset;
    let mut rng = fastrand::Rng::with_seed(1);
    let mut now = START + 10 * SECOND;
    for round in 0..300 {
        now += 10 * SECOND;
        write(&world, &mut rng, now);
        if round == 3 {
            world.now = now;
            world.line("label pinned home");
        }
        keep_up(&world, now);
        let (held, yielded) = (history(&world, home, now), world.fs.retention(home).unwrap().horizon());
        assert!(round < 10 || held <= MOST + MOST / 8, "round {round}: {held} bytes of history");
        assert!(yielded.0 < now - 200 * SECOND, "what is young stays: {yielded} at {now}");
    }
    assert!(history(&world, home, now) > MOST / 2, "no more is given up than has to be");
    assert!(history(&world, MAIN, now) > 29 << 20, "others have limits of their own");
    let retention = world.fs.retention(home).unwrap();
    let first = Tid(START + 25 * SECOND);
    assert_eq!((retention.round(first), world.fs.retention(MAIN).unwrap().round(first)), (None, Some(first)));
    world.now = now;
    world.line("ls home/@@pinned => a");
    world.line("remount");
    world.line("ls home/@@pinned => a");
    let moments = world.fs.store().tid().0 - retention.horizon().0;
    assert!(moments > 300 * SECOND, "some thirty versions are left");
    assert_eq!(world.fs.check().unwrap().findings, Vec::<String>::new());
}

#[test]
fn what_labels_and_clones_hold_stays_though_it_is_beyond_the_limit() {
    let mut world = limited("home");
    let home = world.node("home/a").unwrap().inode().fileset;
    let mut rng = fastrand::Rng::with_seed(2);
    let mut now = START + 100 * SECOND;
    for n in 0..60 {
        now += 10 * SECOND;
        write(&world, &mut rng, now);
        world.now = now;
        match n % 2 {
            0 => world.line(&format!("label l{n} home")),
            _ => world.line(&format!("clone home c{n}")),
        }
        keep_up(&world, now);
    }
    now += 100 * SECOND;
    keep_up(&world, now);
    let before = world.fs.store().tid();
    assert!(history(&world, home, now) > 55 * (100 << 10));
    for n in 0..20 {
        keep_up(&world, now + n * SECOND);
    }
    assert_eq!(world.fs.store().tid(), before, "what can't be helped is not tried again and again");
    for n in (0..60).step_by(2) {
        world.line(&format!("ls home/@@l{n} => a"));
        world.line(&format!("ls c{} => a", n + 1));
    }
}

#[test]
fn the_main_fileset_has_such_a_limit_too() {
    let world = limited("main");
    let mut rng = fastrand::Rng::with_seed(3);
    let mut now = START + 10 * SECOND;
    for _ in 0..100 {
        now += 10 * SECOND;
        write(&world, &mut rng, now);
        keep_up(&world, now);
    }
    assert!(history(&world, MAIN, now) <= MOST + MOST / 8);
    assert!(world.fs.retention(MAIN).unwrap().horizon() > Tid(START + 100 * SECOND));
}

#[test]
fn what_a_removed_fileset_does_not_keep_gives_its_space_back() {
    let mut world = limited("main");
    let home = world.node("home/a").unwrap();
    let mut rng = fastrand::Rng::with_seed(4);
    let mut data = vec![0; 1 << 20];
    for n in 0..40 {
        rng.fill(&mut data);
        world.fs.write(world.now, home, Some(n << 20), &data, false).unwrap();
    }
    let grid = darner_fs::retain::parse_grid("all:1h").unwrap();
    world.fs.retain(home.inode().fileset, Some(grid), None, world.now).unwrap();
    world.line("t=100 remove-fileset home force");
    keep_up(&world, START + 200 * SECOND);
    assert!(world.fs.store().usage().unwrap().used > 40 << 20, "it is kept for an hour");
    world.line("ls home@@2026-11-22T00:01 => a");
    keep_up(&world, START + 4000 * SECOND);
    // (The cleaner lets 8 MiB of waste be.)
    assert!(world.fs.store().usage().unwrap().used < 16 << 20, "{:?}", world.fs.store().usage());
    world.line("t=4001 ls home@@2026-11-22T00:01 => ENOENT");
}

/// Old versions of other files were given up for the sake of bytes that cost nothing.
#[test]
fn what_is_shared_counts_once_and_as_the_presents_if_that_has_it() {
    let mut world = limited("main");
    let mut rng = fastrand::Rng::with_seed(4);
    let mut now = START + 10 * SECOND;
    let mut data = vec![0; 100 << 10];
    for n in 0..30 {
        rng.fill(&mut data);
        world.fs.write(now, world.node("b").unwrap(), Some(n * (100 << 10)), &data, false).unwrap();
    }
    for word in ["old", "new"] {
        now += SECOND;
        world.now = now;
        world.line(&format!("write home/a '{word}'"));
    }
    for n in 0..6 {
        now += 10 * SECOND;
        world.now = now;
        world.line("create x");
        world.line(&format!("copy b 0 x 0 {0} => {0}", 30 * (100 << 10)));
        world.line(&format!("hold b{n} b"));
        if n % 2 == 0 {
            world.line("unlink b");
        }
        world.line("rename x b");
        world.line(&format!("forget #b{n}"));
        keep_up(&world, now);
        let account = world.fs.store().account(now, None).unwrap();
        assert!(account.history < 100 << 10 && account.live.abs_diff(3 << 20) < 200 << 10, "{account:?}");
        assert!(account.yielding.values().flat_map(|y| y.values()).sum::<u64>() < 100 << 10, "{account:?}");
    }
    assert_eq!(world.fs.retention(MAIN).unwrap().horizon(), Tid::ZERO, "nothing was given up");
    // In the past it counts once, too, and so it does when that lapses.
    for line in ["hold b b", "unlink b", "forget #b"] {
        world.line(line);
    }
    keep_up(&world, now);
    let held = history(&world, MAIN, now);
    assert!(held.abs_diff(3 << 20) < 200 << 10, "{held}");
    now += 100 * SECOND;
    let none = world.fs.retention(MAIN).unwrap().with_grid(Grid::default()).advanced(Tid(now));
    let lapsed = world.fs.store().account(now, Some((MAIN, &none))).unwrap().lapsed;
    assert!(lapsed.abs_diff(3 << 20) < 200 << 10, "{lapsed}");
}
