//! A store that is full most of the time, under anything at all, through the real program and the real kernel, against plain trees in
//! memory.
//!
//! One seed is one sequence of steps. Its volumes, directories and images, are small; what was overwritten is kept, for a while or for
//! ever; volumes come, go and change their sizes; daemons are killed, indexes made anew, labels made and removed, cleaners hurried. In
//! every order must hold: an operation that finds no room says so and changes nothing, but for a write, of which a beginning may be
//! there; deleting and making shorter always go on, and so do mounting, retaining, cleaning and removing labels; labels show for ever
//! what they did; a command that is refused says why; at the end, with nothing retained, there is room again, and the store is sound, with
//! its index and with a new one.
//!
//! 60 steps of one seed; with DARNER_LONG set 150 of each of 8. DARNER_TIGHT_SEED replays one seed.

mod common;
#[path = "common/tree.rs"]
mod tree;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use darner::xattr::{self, Xattrs};

use common::{World, each_seed, long, signal};
use fastrand::Rng;
use serde_json::Value;
use tree::{Op, Tree};

/// The least that a volume can have.
const SIZE: u64 = 64 << 20;
/// Volumes that there are at most.
const MOST: usize = 3;
/// Why a command may be refused.
const MAY_SAY: [&str; 4] = ["no space left", "more are needed", "are too few", "is the only one for what is new"];

struct Life {
    w: World,
    rng: Rng,
    tree: Tree,
    labels: Vec<(String, Tree)>,
    made: usize,
    /// What fills it, with what is in it; it is not in the tree.
    ballast: Vec<(String, Vec<u8>)>,
    /// All that ever was such a thing.
    ballasts: BTreeSet<String>,
    /// Operations that there was no room for.
    refused: usize,
}

impl Life {
    fn begin(seed: u64) -> Life {
        let w = World::unmounted().expect("it can mount");
        fs::create_dir(&w.mnt).unwrap();
        let mut rng = Rng::with_seed(seed);
        let image = if rng.bool() { "--image" } else { "" };
        let mut life = Life {
            w,
            rng,
            tree: Tree::default(),
            labels: Vec::new(),
            made: 0,
            ballast: Vec::new(),
            ballasts: BTreeSet::new(),
            refused: 0,
        };
        life.sh(&format!("$DARNER create {image} --size {SIZE} store"));
        life.mount();
        life.fill();
        life
    }

    /// Until there is no room; or some less.
    fn fill(&mut self) {
        self.made += 1;
        let name = format!("ballast{}", self.made);
        let file = File::create(self.w.mnt.join(&name));
        let Ok(file) = file.inspect_err(|e| assert_eq!(e.raw_os_error(), Some(libc::ENOSPC))) else { return };
        self.ballasts.insert(name.clone());
        let mut data = Vec::new();
        let most = if self.rng.bool() { usize::MAX } else { self.rng.usize(..40 << 20) };
        let mut piece = vec![0; 64 << 10];
        while data.len() < most {
            self.rng.fill(&mut piece);
            match file.write_at(&piece, data.len() as u64) {
                Ok(n) => data.extend_from_slice(&piece[..n]),
                Err(e) => {
                    assert_eq!(e.raw_os_error(), Some(libc::ENOSPC), "{e}");
                    break;
                }
            }
        }
        println!("    {} bytes of ballast", data.len());
        self.ballast.push((name, data));
    }

    /// Ballast goes, is made shorter, or has other bytes in its midst, which takes room.
    fn ease(&mut self) {
        if self.ballast.is_empty() {
            return;
        }
        let n = self.rng.usize(..self.ballast.len());
        let path = self.w.mnt.join(&self.ballast[n].0);
        match self.rng.u8(..3) {
            0 => {
                fs::remove_file(path).expect("that needs no room");
                self.ballast.swap_remove(n);
            }
            _ => {
                let data = &mut self.ballast[n].1;
                let len = self.rng.usize(..=data.len());
                let file = OpenOptions::new().write(true).open(path).unwrap();
                file.set_len(len as u64).expect("that needs no room");
                data.truncate(len);
            }
        }
    }

    #[track_caller]
    fn sh(&self, script: &str) -> String {
        println!("    {script}");
        self.w.sh_outside(script)
    }

    /// Says whether it was done; where it was not, it is for want of room.
    #[track_caller]
    fn may_be_refused(&self, script: &str) -> bool {
        if self.sh(&format!("{script} > out 2> said && echo done || true")) == "done" {
            return true;
        }
        let said = fs::read_to_string(self.w.dir.join("said")).unwrap();
        println!("    {said}");
        assert!(MAY_SAY.iter().any(|why| said.contains(why)), "{script}: {said}");
        false
    }

    fn mount(&self) {
        let by = self.volume_paths().into_iter().next().unwrap_or_else(|| "store".into());
        self.sh(&format!("$DARNER mount --log daemon.log {by} $MNT"));
    }

    /// Those that are there, whether or not they are the store's.
    fn volume_paths(&self) -> Vec<String> {
        let names = fs::read_dir(&self.w.dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut all: Vec<String> = names.filter(|n| n.starts_with("store") || n.starts_with("more")).collect();
        all.sort();
        all
    }

    fn volumes(&self) -> Vec<(u64, String)> {
        let list: Value = serde_json::from_str(&self.w.sh_outside("$DARNER volume list $MNT --json")).unwrap();
        let of = |v: &Value| (v["id"].as_u64().unwrap(), v["path"].as_str().unwrap().to_string());
        list.as_array().unwrap().iter().map(of).collect()
    }

    fn kill_both(&self) {
        File::open(&self.w.mnt).unwrap().sync_all().unwrap();
        self.w.kill();
    }

    fn act(&mut self, op: &Op) {
        match op.act(&self.w.mnt) {
            Ok(()) => self.tree.apply(op),
            Err(e) => {
                assert!(matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)), "{op}: {e}");
                self.refused += 1;
                self.after(op);
            }
        }
    }

    /// An operation found no room.
    fn after(&mut self, op: &Op) {
        let before =
            |name: &str| self.tree.files().into_iter().find(|(n, _)| *n == name).map(|(_, bytes)| bytes.clone());
        match op {
            Op::Unlink { .. } | Op::RemoveAll { .. } => panic!("{op} needs no room"),
            Op::Truncate { name, len } => {
                assert!(before(name).expect("it is a file").len() < *len, "{op} needs no room");
            }
            // A beginning of it may be there.
            Op::Write { name, at, data } => {
                let Ok(is) = fs::read(self.w.mnt.join(name)) else {
                    return assert!(before(name).is_none(), "{op}: {name} is gone");
                };
                let was = before(name).unwrap_or_default();
                let k = is.iter().skip(*at).zip(data).take_while(|(a, b)| a == b).count();
                let mut bytes = was.to_vec();
                if k > 0 {
                    bytes.resize(bytes.len().max(at + k), 0);
                    bytes[*at..at + k].copy_from_slice(&data[..k]);
                }
                assert!(bytes == is, "{op}: {name} had {} bytes, has {}, {k} of the new ones", was.len(), is.len());
                self.tree.apply(&Op::Write { name: name.clone(), at: *at, data: data[..k].to_vec() });
            }
            Op::Copy { from, data, name } => {
                let Ok(is) = fs::read(self.w.mnt.join(name)) else { return };
                assert!(data.starts_with(&is), "{op}: {name} has something else");
                let op = Op::Copy { from: from.clone(), data: Arc::new(is), name: name.clone() };
                self.tree.apply(&op);
            }
            // That is one operation for each: some may be as they are to be.
            Op::SetXattr { name, xattrs } => {
                let is = xattr::all(&self.w.mnt.join(name)).unwrap();
                let is: Xattrs = is.into_iter().filter(|(key, _)| key.to_bytes().starts_with(b"user.")).collect();
                let was = self.tree.xattrs(name);
                let all = was.iter().chain(xattrs);
                assert!(is.iter().all(|x| all.clone().any(|y| x == y)), "{op}: {name} has something else");
                self.tree.apply(&Op::SetXattr { name: name.clone(), xattrs: is });
            }
            _ => {}
        }
    }

    fn work(&mut self, operations: usize) {
        for _ in 0..operations {
            let others: Vec<(PathBuf, Arc<Vec<u8>>)> =
                self.tree.files().into_iter().map(|(name, bytes)| (self.w.mnt.join(name), bytes.clone())).collect();
            let op = self.tree.any_op(&mut self.rng, &others);
            self.act(&op);
        }
    }

    fn step(&mut self, n: usize) {
        let what = self.rng.u8(..48);
        println!("{n} {what}, {} refused", self.refused);
        match what {
            0..16 => {
                let operations = self.rng.usize(1..60);
                self.work(operations);
            }
            16..19 => {
                for _ in 0..self.rng.usize(1..6) {
                    if let Some(name) = self.rng.choice(self.tree.files()).map(|(name, _)| name.clone()) {
                        self.act(&Op::Unlink { name });
                    }
                }
            }
            19..21 => {
                self.made += 1;
                let label = format!("label{}", self.made);
                if self.may_be_refused(&format!("$DARNER snapshot $MNT {label}")) {
                    self.labels.push((label, self.tree.clone()));
                }
            }
            21..24 if !self.labels.is_empty() => {
                let n = self.rng.usize(..self.labels.len());
                let (label, _) = self.labels.remove(n);
                self.sh(&format!("$DARNER snapshot remove $MNT {label}"));
            }
            24..27 => {
                let grid = ["forever", "none", "all:1s"][self.rng.usize(..3)];
                let full = ["", "--when-full keep", "--when-full collapse-oldest"][self.rng.usize(..3)];
                self.sh(&format!("$DARNER retain $MNT {grid} {full}"));
            }
            27..29 => drop(self.sh("$DARNER clean --wait $MNT")),
            29..31 => signal(self.w.pids()[0], libc::SIGKILL),
            31 => {
                self.kill_both();
                self.mount();
            }
            32..34 => {
                let by = self.volumes().swap_remove(0).1;
                let command = ["true", "$DARNER check", "$DARNER rebuild"][self.rng.usize(..3)];
                self.sh(&format!("$DARNER unmount $MNT; {command} {by}"));
                self.mount();
            }
            34 if self.volumes().len() < MOST => {
                self.made += 1;
                let how = if self.rng.bool() { "--image" } else { "" };
                self.may_be_refused(&format!("$DARNER volume add $MNT more{} {how} --size {SIZE}", self.made));
            }
            35 => {
                let (id, path) = self.rng.choice(self.volumes()).expect("there is one");
                if self.volumes().len() > 1 && self.may_be_refused(&format!("$DARNER volume remove $MNT {id}")) {
                    self.sh(&format!("rm -r {path}"));
                }
            }
            36 => {
                let (id, _) = self.rng.choice(self.volumes()).expect("there is one");
                let size = SIZE + self.rng.u64(..SIZE / 2);
                self.may_be_refused(&format!("$DARNER volume resize $MNT {id} {size}"));
            }
            37 => drop(self.sh("$DARNER scrub $MNT")),
            38..42 => self.fill(),
            42..46 => self.ease(),
            _ => File::open(&self.w.mnt).unwrap().sync_all().unwrap(),
        }
    }

    fn compare(&mut self) {
        self.tree.must_be_at(&self.w.mnt, &self.ballasts);
        if let Some((label, tree)) = self.rng.choice(&self.labels) {
            tree.must_be_at(&self.w.mnt.join(format!("@@{label}")), &self.ballasts);
        }
        if let Some((name, data)) = self.rng.choice(&self.ballast) {
            assert!(fs::read(self.w.mnt.join(name)).unwrap() == *data, "{name} has other bytes");
        }
    }
}

fn live(seed: u64, steps: usize) {
    let mut life = Life::begin(seed);
    for n in 1..=steps {
        life.step(n);
        life.compare();
    }
    for (label, tree) in std::mem::take(&mut life.labels) {
        tree.must_be_at(&life.w.mnt.join(format!("@@{label}")), &life.ballasts);
        life.sh(&format!("$DARNER snapshot remove $MNT {label}"));
    }
    while !life.ballast.is_empty() {
        life.ease();
    }
    life.sh("$DARNER retain $MNT none; $DARNER clean --wait $MNT");
    fs::write(life.w.mnt.join("room"), vec![7; 8 << 20]).expect("there is room again");
    fs::remove_file(life.w.mnt.join("room")).unwrap();
    let by = life.volumes().swap_remove(0).1;
    life.sh(&format!("$DARNER unmount $MNT; for c in check rebuild check; do $DARNER $c {by}; done"));
    life.mount();
    life.compare();
    life.sh("$DARNER unmount $MNT");
    println!("seed {seed}: {} refused", life.refused);
}

#[test]
fn a_store_that_is_full_most_of_the_time_loses_nothing_and_gives_room_back() {
    each_seed("DARNER_TIGHT_SEED", 8, |seed| live(seed, if long() { 150 } else { 60 }));
}
