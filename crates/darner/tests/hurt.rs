//! A store with two copies of everything, one of whose volumes at a time is hurt, under anything at all, through the real program and the
//! real kernel, against plain trees in memory.
//!
//! One seed is one sequence of steps. Volumes are directories and images. Bytes of one rot, while it is in use or not; it is taken away,
//! while the store is mounted or not, comes back as it was, rots elsewhere, or never comes back; daemons are killed, the index is lost,
//! grids and cleaners go on. Until it was healed, or taken up again with all copies, or let go of, nothing happens to another volume.
//! In every order must hold: everything reads as it must, and can be written; labels show for ever what they did; every command succeeds;
//! a scrub, once all volumes are there, finds nothing that does not heal; at the end the store is sound, with its index and with a new one.
//!
//! 40 steps of one seed; with DARNER_LONG set 120 of each of 8. DARNER_HURT_SEED replays one seed.

mod common;
#[path = "common/tree.rs"]
mod tree;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

use common::{World, each_seed, eventually, long, signal};
use fastrand::Rng;
use serde_json::Value;
use tree::Tree;

/// Volumes that there are at most and at least.
const MOST: usize = 4;
const LEAST: usize = 2;
const IMAGE: &str = "300M";

struct Life {
    w: World,
    rng: Rng,
    tree: Tree,
    labels: Vec<(String, Tree)>,
    made: usize,
    /// Those of the store, by what they are called.
    volumes: Vec<String>,
    /// Of which bytes may be damaged, or which is not there, or not up to date.
    hurt: Option<String>,
    /// It is not where it was.
    is_away: bool,
}

impl Life {
    fn begin(seed: u64) -> Life {
        let w = World::unmounted().expect("it can mount");
        fs::create_dir(&w.mnt).unwrap();
        let (rng, tree) = (Rng::with_seed(seed), Tree::default());
        let mut life =
            Life { w, rng, tree, labels: Vec::new(), made: 0, volumes: Vec::new(), hurt: None, is_away: false };
        life.sh("$DARNER create v0 --volume v1 --copies 2");
        life.volumes = vec!["v0".into(), "v1".into()];
        life.mount();
        life.add_volume();
        life
    }

    #[track_caller]
    fn sh(&self, script: &str) -> String {
        println!("    {script}");
        self.w.sh_outside(script)
    }

    fn there(&self) -> Vec<String> {
        self.volumes.iter().filter(|v| !self.is_away || self.hurt.as_ref() != Some(*v)).cloned().collect()
    }

    /// By any of the volumes that are there, the hurt one too; what it says is to be done, is done.
    fn mount(&mut self) {
        let there = self.there();
        let mut how = if self.is_away { "--degraded".to_string() } else { String::new() };
        let mut done = BTreeSet::new();
        loop {
            let by = self.rng.choice(&there).expect("there are two at least");
            let mount = format!("$DARNER mount {how} --log daemon.log {by} $MNT");
            if self.sh(&format!("{mount} 2> said && echo mounted || true")) == "mounted" {
                return;
            }
            let said = fs::read_to_string(self.w.dir.join("said")).unwrap();
            let advice =
                said.split_once("darner volume reclaim ").and_then(|(_, rest)| rest.split_once(" takes it back"));
            if let Some((advice, _)) = advice {
                assert!(done.insert(advice.to_string()), "{said}");
                let reclaim = format!("$DARNER volume reclaim {advice} > out 2> said && echo done || true");
                if self.sh(&reclaim) != "done" {
                    // Nothing there tells what it was.
                    let said = fs::read_to_string(self.w.dir.join("said")).unwrap();
                    assert!(said.contains("--of names another volume of its store"), "{said}");
                    let of = there.iter().find(|v| Some(*v) != self.hurt.as_ref()).expect("there are two at least");
                    self.reclaim_of(advice, of);
                }
            } else if said.contains("is that volume as it was at another time") && !how.contains("--degraded") {
                // (Its superblocks were made anew of what it had; it is brought up to date later.)
                how += " --degraded";
            } else if said.contains("--volume says where it is now") && !how.contains("--volume") {
                // (It may have been seen where it was meanwhile.)
                there.iter().for_each(|v| how += &format!(" --volume {v}"));
            } else {
                // Nothing of an image tells what it is.
                let is_it = Some(by) == self.hurt.as_ref() && said.contains("no valid superblock");
                assert!(is_it && done.insert(by.clone()), "{said}");
            }
        }
    }

    fn reclaim_of(&self, path: &str, of: &str) {
        let reclaim = |path: &str| {
            let script = format!("$DARNER volume reclaim {path} --of {of} > out 2> said && echo done || true");
            self.sh(&script) == "done"
        };
        if !reclaim(path) {
            // It was seen where it was meanwhile.
            let said = fs::read_to_string(self.w.dir.join("said")).unwrap();
            assert!(said.contains("put it back where it was"), "{said}");
            self.sh(&format!("mv {path} {path}.away"));
            assert!(reclaim(&format!("{path}.away")), "{}", fs::read_to_string(self.w.dir.join("said")).unwrap());
            self.sh(&format!("mv {path}.away {path}"));
        }
    }

    fn add_volume(&mut self) {
        self.made += 1;
        let name = format!("v{}", self.made + 10);
        let how = if self.rng.bool() { format!("--image --size {IMAGE}") } else { String::new() };
        self.sh(&format!("$DARNER volume add $MNT {name} {how}"));
        self.volumes.push(name);
    }

    /// (number, what it is called, state) of each.
    fn list(&self) -> Vec<(u64, String, String)> {
        let list: Value = serde_json::from_str(&self.w.sh_outside("$DARNER volume list $MNT --json")).unwrap();
        let name = |path: &Value| path.as_str().unwrap().rsplit('/').next().unwrap().replace(".away", "");
        let of = |v: &Value| (v["id"].as_u64().unwrap(), name(&v["path"]), v["state"].as_str().unwrap().to_string());
        list.as_array().unwrap().iter().map(of).collect()
    }

    fn remove_volume(&mut self, name: &str) {
        let id = self.list().into_iter().find(|(_, n, _)| n == name).expect("it is one of the store's").0;
        self.sh(&format!("$DARNER volume remove $MNT {id}"));
        self.volumes.retain(|v| v != name);
    }

    fn kill_both(&self) {
        File::open(&self.w.mnt).unwrap().sync_all().unwrap();
        self.w.kill();
    }

    fn close(&self) {
        self.sh("$DARNER unmount $MNT");
    }

    fn work(&mut self, operations: usize) {
        for _ in 0..operations {
            let op = self.tree.any_op(&mut self.rng, &[]);
            op.act(&self.w.mnt).unwrap_or_else(|e| panic!("{op}: {e}"));
            self.tree.apply(&op);
        }
        if self.rng.bool() {
            File::open(&self.w.mnt).unwrap().sync_all().unwrap();
        }
    }

    /// The volume that something bad may happen to.
    fn victim(&mut self) -> String {
        if self.hurt.is_none() {
            self.hurt = self.rng.choice(&self.volumes).cloned();
        }
        self.hurt.clone().expect("there are some")
    }

    /// Where its files are, if it is an image itself.
    fn files(&self, name: &str) -> Vec<std::path::PathBuf> {
        let path = self.w.dir.join(if self.is_away { format!("{name}.away") } else { name.to_string() });
        match fs::read_dir(&path) {
            Ok(entries) => {
                let mut all: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
                all.sort();
                all
            }
            Err(_) => vec![path],
        }
    }

    /// Bytes of the victim change.
    fn rot(&mut self) {
        let victim = self.victim();
        let files = self.files(&victim);
        let mut flips = 0;
        let mut told = Vec::new();
        for _ in 0..self.rng.usize(1..30) {
            let Some(path) = self.rng.choice(&files) else { break };
            // (It may be gone by now.)
            let Ok(file) = OpenOptions::new().read(true).write(true).open(path) else { continue };
            let len = file.metadata().unwrap().len();
            if len == 0 {
                continue;
            }
            // What is in an image is at its beginning, most of all.
            let within = if self.rng.bool() { len } else { len.min(16 << 20) };
            let at = self.rng.u64(..within);
            let mut byte = [0];
            if file.read_at(&mut byte, at).unwrap() == 1 {
                byte[0] ^= 1 << self.rng.u8(..8);
                file.write_all_at(&byte, at).unwrap();
                flips += 1;
                told.push((path.file_name().unwrap().to_owned(), at));
            }
        }
        println!("    {flips} bytes of {victim} rot: {told:?}");
    }

    fn take_away(&mut self) {
        let victim = self.victim();
        if !self.is_away {
            self.sh(&format!("mv {victim} {victim}.away"));
            self.is_away = true;
        }
    }

    fn bring_back(&mut self) {
        if let (true, Some(victim)) = (self.is_away, self.hurt.clone()) {
            self.sh(&format!("mv {victim}.away {victim}"));
            self.is_away = false;
        }
    }

    /// All volumes are there, with two copies of everything, and nothing of them is damaged.
    fn heal(&mut self) {
        if self.hurt.is_none() {
            return;
        }
        if self.is_away && self.rng.u8(..3) == 0 && self.volumes.len() > LEAST {
            let lost = self.hurt.take().expect("it is away");
            // (A mount that has it open does not know that it is lost.)
            self.close();
            self.mount_without(&lost);
            self.remove_volume(&lost);
            self.sh(&format!("rm -r {lost}.away"));
            self.is_away = false;
        } else {
            self.close();
            self.bring_back();
            self.mount();
        }
        let is_active = || self.list().iter().all(|(_, _, state)| state == "active");
        let lacking = || {
            let copies: Value = serde_json::from_str(&self.w.sh_outside("$DARNER volume copies $MNT --json")).unwrap();
            copies["lacking_bytes"].as_u64().unwrap()
        };
        eventually("all has two copies again", || is_active() && lacking() == 0);
        self.sh("$DARNER scrub $MNT");
        self.hurt = None;
    }

    fn mount_without(&mut self, lost: &str) {
        let others: Vec<String> = self.volumes.iter().filter(|v| *v != lost).cloned().collect();
        let by = self.rng.choice(others).expect("there are two at least");
        self.sh(&format!("$DARNER mount --degraded --log daemon.log {by} $MNT"));
    }

    fn step(&mut self, n: usize) {
        let what = self.rng.u8(..40);
        println!("{n} {what}, of {:?} hurt: {:?}{}", self.volumes, self.hurt, if self.is_away { ", away" } else { "" });
        match what {
            0..10 => {
                let operations = self.rng.usize(1..40);
                self.work(operations);
            }
            10..13 => {
                self.made += 1;
                let label = format!("label{}", self.made);
                self.sh(&format!("$DARNER snapshot $MNT {label}"));
                self.labels.push((label, self.tree.clone()));
            }
            13..18 => self.rot(),
            18..20 => {
                self.close();
                self.rot();
                self.mount();
            }
            20..22 => self.take_away(),
            22..24 => {
                if self.rng.bool() {
                    self.close()
                } else {
                    self.kill_both()
                }
                self.take_away();
                self.mount();
            }
            24..27 => self.heal(),
            27 => {
                self.close();
                self.bring_back();
                self.mount();
            }
            28 if self.volumes.len() < MOST => self.add_volume(),
            29 if self.hurt.is_none() && self.volumes.len() > LEAST => {
                let name = self.rng.choice(&self.volumes).cloned().expect("there are some");
                self.remove_volume(&name);
            }
            30..32 => signal(self.w.pids()[0], libc::SIGKILL),
            32 => {
                self.kill_both();
                self.mount();
            }
            33 => {
                self.close();
                let by = self.rng.choice(self.there()).expect("there are two at least");
                if self.hurt.is_none() {
                    self.sh(&format!("$DARNER check {by}; $DARNER rebuild {by}"));
                }
                self.mount();
            }
            34..36 => drop(self.sh("$DARNER clean --wait $MNT")),
            36 => {
                let grid = ["forever", "none", "all:1s"][self.rng.usize(..3)];
                self.sh(&format!("$DARNER retain $MNT {grid}"));
            }
            37 if !self.is_away => drop(self.sh("$DARNER scrub $MNT")),
            _ => {
                self.close();
                self.mount();
            }
        }
    }

    fn compare(&mut self) {
        let nothing = BTreeSet::new();
        self.tree.must_be_at(&self.w.mnt, &nothing);
        if let Some((label, tree)) = self.rng.choice(&self.labels) {
            tree.must_be_at(&self.w.mnt.join(format!("@@{label}")), &nothing);
        }
    }
}

fn live(seed: u64, steps: usize) {
    let mut life = Life::begin(seed);
    for n in 1..=steps {
        life.step(n);
        life.compare();
    }
    life.heal();
    for (label, tree) in &life.labels {
        tree.must_be_at(&life.w.mnt.join(format!("@@{label}")), &BTreeSet::new());
    }
    let by = life.volumes[0].clone();
    life.sh(&format!("$DARNER unmount $MNT; for c in check rebuild check; do $DARNER $c {by}; done"));
    life.mount();
    life.compare();
    life.close();
    // (The daemons have told what was damaged.)
    life.w.forgive_errors();
    println!("seed {seed}: {} labels", life.labels.len());
}

#[test]
fn with_two_copies_nothing_that_happens_to_one_volume_at_a_time_costs_anything() {
    each_seed("DARNER_HURT_SEED", 8, |seed| live(seed, if long() { 120 } else { 40 }));
}
