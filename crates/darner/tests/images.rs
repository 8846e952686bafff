//! Images that are seldom seen: CD images with directories too deep and files too large for one record, FAT images that are damaged.

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use common::attached::{attach, status, try_attach};
use common::{World, long};

#[test]
fn directories_that_were_moved_because_they_were_too_deep_are_where_they_were() {
    let Some(world) = World::new() else { return };
    if !common::has("xorriso") {
        return;
    }
    world.sh_outside(
        "for at in tree/1/2/3/4/5/6/7/8/9/10/11/12 tree/1/2/3/4/5/6/7/8/other/a/b tree/a/b/c/d/e/f/g/h/i; do
           mkdir -p $at; seq 2000 > $at/numbers; echo $at > $at/path; ln -s ../.. $at/up; chmod 705 $at; done
         echo shallow > tree/1/2/3/shallow; mkdir -p tree/1/2/3/4/5/6/7/8/9/empty
         xorriso -as mkisofs -quiet -R -rr_reloc_dir rr_moved -o mnt/deep.iso tree 2>/dev/null; grep -qa RR_MOVED mnt/deep.iso",
    );
    attach(&world, "cd", &["iso9660", world.path("deep.iso").to_str().unwrap()]);
    let tree = |dir: &str| {
        world.sh_outside(&format!(
            "cd {dir}; find . -mindepth 1 -path ./rr_moved -prune -o -printf '%P %y %m %l\\n' | sort; find . -type f | sort | xargs md5sum"
        ))
    };
    assert_eq!(tree("mnt/cd"), tree("tree"));
    assert_eq!(world.sh_outside("ls mnt/cd/rr_moved 2>/dev/null || true"), "", "what was moved is shown once");
    world.darner(&["detach", world.path("cd").to_str().unwrap()]);
}

#[test]
fn a_file_of_more_than_4_gib_in_several_extents_is_whole() {
    if !long() {
        eprintln!("SKIPPED: an image of 4.3 GiB is for the long form");
        return;
    }
    let Some(world) = World::new() else { return };
    if !common::has("xorriso") {
        return;
    }
    world.sh_outside("mkdir tree; truncate -s 4400000001 tree/large; seq 100000 > tree/before; seq 200000 > tree/next");
    let file = fs::OpenOptions::new().write(true).open(world.dir.join("tree/large")).unwrap();
    // Around where extents end, and at the end.
    for at in [0, (4 << 30) - 4096, (4 << 30) - 2048, 4 << 30, 4_400_000_001 - 10] {
        file.write_all_at(format!("at {at}").as_bytes(), at - at % 7 * u64::from(at > 0)).unwrap();
    }
    drop(file);
    world.sh_outside("xorriso -as mkisofs -quiet -iso-level 3 -R -o large.iso tree 2>/dev/null");
    attach(&world, "cd", &["iso9660", world.dir.join("large.iso").to_str().unwrap()]);
    world.sh_outside("diff -r tree mnt/cd; stat -c '%n %s' tree/* | sed s,tree,mnt/cd, > sizes; stat -c '%n %s' mnt/cd/* | cmp - sizes");
    world.darner(&["detach", world.path("cd").to_str().unwrap()]);
}

#[test]
fn damaged_fat_images_cost_errors_bounded_time_and_bounded_memory() {
    let Some(world) = World::new() else { return };
    if !["mkfs.fat", "mcopy"].iter().all(|p| common::has(p)) {
        return;
    }
    world.sh_outside(
        "mkdir -p in/sub/deeper in/many; seq 20000 > in/numbers; head -c 70000 /dev/urandom > in/sub/random
         for n in $(seq 60); do echo $n > in/many/file-$n; done; echo deep > in/sub/deeper/file
         mkfs.fat -F 16 -s 1 -C sound.img 4096 >/dev/null; MTOOLS_SKIP_CHECK=1 mcopy -s -i sound.img in/* ::",
    );
    let sound = fs::read(world.dir.join("sound.img")).unwrap();
    let image = world.dir.join("bad.img");
    let (mut shown, mut refused) = (0, 0);
    for seed in 0..if long() { 300 } else { 8 } {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut bad = sound.clone();
        for _ in 0..random.usize(2..40) {
            let at = match random.u8(..8) {
                0 => random.usize(..512),
                1..=4 => random.usize(512..40_000),
                _ => random.usize(..80_000),
            };
            bad[at..at + 2].copy_from_slice(&random.u16(..500).to_le_bytes());
        }
        fs::write(&image, bad).unwrap();
        let start = Instant::now();
        let options = ["--writable", "--deadline=3s", "--memory=128M", "msdosfs", image.to_str().unwrap()];
        match try_attach(&world, "fat", &options) {
            Err(why) => {
                refused += 1;
                assert!(why.contains("FAT"), "seed {seed}: {why}");
                continue;
            }
            Ok(_) => shown += 1,
        }
        world.sh_outside(
            "cd mnt/fat; (find . | head -n 500 | tee found; df .; find . -type f | head -n 100 | xargs -d '\\n' cat
              echo new > new; mv new many/file-3; mv many moved; rm -rf sub; cat moved/*; sync -f .) >/dev/null 2>&1 || true",
        );
        let s = status(&world, "fat");
        assert_eq!((s["state"].as_str(), s["restarts"].as_u64()), (Some("runs"), Some(0)), "seed {seed}: {s}");
        let pid = s["plugin_pid"].as_u64().unwrap();
        let memory = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let peak = memory.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap().trim().trim_end_matches(" kB");
        assert!(peak.parse::<u64>().unwrap() < 100_000, "seed {seed}: {peak} kB");
        world.darner(&["detach", world.path("fat").to_str().unwrap()]);
        assert!(start.elapsed() < Duration::from_secs(60), "seed {seed}: {:?}", start.elapsed());
    }
    eprintln!("{shown} were shown, {refused} refused");
    assert!(shown > 0);
}
