//! A store with a bucket, under anything at all, through the real program, the real kernel and a real server, against plain trees in memory.
//!
//! One seed is one sequence of steps: files change; what is sealed goes to the bucket and comes back, by command and for want of room;
//! the server stops for a while, is killed, and hangs up amid what it says; daemons are killed, with or without their supervisors; the
//! index is lost; and now and then the machine is lost, and another one opens what has reached the bucket. In every order must hold:
//! while the server is there, everything reads as it must, and every command succeeds; while it is not, what is written stays, and
//! nothing but reads of what is in the bucket only fails; labels show for ever what they did; at the end the store is sound, with its index and
//! with a new one.
//!
//! 50 steps of one seed; with DARNER_LONG set 120 of each of 8. DARNER_COLD_SEED replays one seed.

mod common;
#[path = "common/s3.rs"]
mod s3;
#[path = "common/tree.rs"]
mod tree;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use common::{World, each_seed, long, signal};
use fastrand::Rng;
use s3::{Server, run};
use serde_json::Value;
use tree::Tree;

const URL: &str = "s3://bucket/some/where";
/// Bytes of the local volume: what is read little has to go.
const SIZE: &str = "80M";

/// Between the store and its server: of so many connections in a thousand, it hangs up after some bytes.
struct Proxy {
    port: u16,
    cuts: Arc<AtomicU32>,
}

impl Proxy {
    fn new(to: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, cuts) = (listener.local_addr().unwrap().port(), Arc::new(AtomicU32::new(0)));
        let share = cuts.clone();
        thread::spawn(move || {
            let mut rng = Rng::with_seed(1);
            for from in listener.incoming().flatten() {
                let Ok(into) = TcpStream::connect(("127.0.0.1", to)) else { continue };
                let is_cut = rng.u32(..1000) < share.load(Ordering::Relaxed);
                let room = if is_cut { rng.usize(..200_000) } else { usize::MAX };
                let back = (into.try_clone().unwrap(), from.try_clone().unwrap());
                thread::spawn(move || pass(from, into, room));
                thread::spawn(move || pass(back.0, back.1, room));
            }
        });
        Proxy { port, cuts }
    }
}

fn pass(mut from: TcpStream, mut into: TcpStream, mut room: usize) {
    let mut bytes = [0; 16 << 10];
    while let Ok(n) = from.read(&mut bytes) {
        let some = n.min(room);
        room -= some;
        if n == 0 || into.write_all(&bytes[..some]).is_err() || room == 0 {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), into.shutdown(Shutdown::Both));
}

struct Life {
    w: World,
    server: Server,
    proxy: Proxy,
    rng: Rng,
    tree: Tree,
    labels: Vec<(String, Tree)>,
    made: usize,
    /// The store's own directory on this machine.
    local: PathBuf,
}

fn text(path: &Path) -> &str {
    path.to_str().expect("ours are")
}

impl Life {
    fn begin(seed: u64) -> Life {
        let w = World::unmounted().expect("it can mount");
        fs::create_dir(&w.mnt).unwrap();
        let server = Server::new(&w.dir);
        let proxy = Proxy::new(server.port);
        let local = w.dir.join("store");
        let (rng, tree) = (Rng::with_seed(seed), Tree::default());
        let life = Life { w, server, proxy, rng, tree, labels: Vec::new(), made: 0, local };
        life.sh(&format!("$DARNER create --size {SIZE} {}", text(&life.local)));
        life.mount();
        life.sh(&format!("$DARNER volume add $MNT {URL}"));
        life
    }

    /// A script that may reach the server, by way of the proxy.
    #[track_caller]
    fn sh(&self, script: &str) -> String {
        println!("    {script}");
        let out = run(&self.w, self.proxy.port, &format!("set -o pipefail; {script}"));
        let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "{script}: {said}");
        String::from_utf8(out.stdout).unwrap()
    }

    fn mount(&self) {
        self.sh(&format!("$DARNER mount --log daemon.log {} $MNT", text(&self.local)));
    }

    fn work(&mut self, operations: usize) {
        for _ in 0..operations {
            let op = self.tree.any_op(&mut self.rng, &[]);
            op.act(&self.w.mnt).unwrap_or_else(|e| panic!("{op}: {e}"));
            self.tree.apply(&op);
        }
    }

    fn label(&mut self) {
        self.made += 1;
        let label = format!("label{}", self.made);
        self.sh(&format!("$DARNER snapshot $MNT {label}"));
        self.labels.push((label, self.tree.clone()));
    }

    fn volumes(&self) -> (u64, u64) {
        let list = self.sh("$DARNER volume list $MNT --json");
        let list: Value = serde_json::from_str(&list).unwrap();
        let id = |is_bucket| {
            let found = list.as_array().unwrap().iter().find(|v| (v["kind"] == "bucket") == is_bucket);
            found.unwrap_or_else(|| panic!("{list}"))["id"].as_u64().unwrap()
        };
        (id(false), id(true))
    }

    /// What has reached the bucket is all that is left.
    fn lose_the_machine(&mut self) {
        self.sh("$DARNER volume push $MNT");
        if self.rng.bool() {
            self.w.kill();
        } else {
            self.sh("$DARNER unmount $MNT");
        }
        self.sh(&format!("rm -r {}", text(&self.local)));
        self.made += 1;
        self.local = self.w.dir.join(format!("store{}", self.made));
        self.sh(&format!("$DARNER mount --log daemon.log --local {} {URL} $MNT", text(&self.local)));
    }

    /// The server does not answer, or is not there, while files are made.
    fn take_the_server_away(&mut self) {
        let is_killed = self.rng.bool();
        if is_killed {
            self.server.kill();
        } else {
            self.server.signal(libc::SIGSTOP);
        }
        // (What is only in the bucket can't be read now, nor changed in part.)
        for _ in 0..self.rng.usize(1..10) {
            self.made += 1;
            let name = format!("made{}", self.made);
            let data = vec![self.rng.u8(..); self.rng.usize(1..100_000)];
            let op = tree::Op::Write { name, at: 0, data };
            op.act(&self.w.mnt).unwrap_or_else(|e| panic!("{op}: {e}"));
            self.tree.apply(&op);
        }
        thread::sleep(Duration::from_millis(self.rng.u64(..1000)));
        if is_killed {
            self.server.restart();
        } else {
            self.server.signal(libc::SIGCONT);
        }
    }

    fn step(&mut self, n: usize) {
        match self.rng.u8(..36) {
            0..12 => {
                println!("{n} Work");
                let operations = self.rng.usize(1..40);
                self.work(operations);
            }
            12..15 => self.say(n, "Label").label(),
            15..18 => drop(self.say(n, "Push").sh("$DARNER volume push $MNT")),
            18..21 => {
                let (here, bucket) = self.say(n, "There").volumes();
                self.sh(&format!("$DARNER volume move $MNT --from {here} --to {bucket}"));
            }
            21 => {
                let (here, bucket) = self.say(n, "Back").volumes();
                self.sh(&format!("$DARNER volume move $MNT --from {bucket} --to {here}"));
            }
            22..24 => drop(self.say(n, "Clean").sh("$DARNER clean --wait $MNT")),
            24 => drop(self.say(n, "Scrub").sh("$DARNER scrub --bucket $MNT")),
            25..28 => signal(self.say(n, "Kill").w.pids()[0], libc::SIGKILL),
            28 => {
                self.say(n, "KillBoth");
                File::open(&self.w.mnt).unwrap().sync_all().unwrap();
                self.w.kill();
                self.mount();
            }
            29..31 => {
                let command = ["true", "$DARNER check", "$DARNER rebuild"][self.rng.usize(..3)];
                let script = format!("$DARNER unmount $MNT; {command} {}", text(&self.local));
                self.say(n, "Remount").sh(&script);
                self.mount();
            }
            31 => self.say(n, "LoseTheMachine").lose_the_machine(),
            32..34 => self.say(n, "TakeTheServerAway").take_the_server_away(),
            _ => {
                let grid = ["forever", "none", "all:1s"][self.rng.usize(..3)];
                self.say(n, "Retain").sh(&format!("$DARNER retain $MNT {grid}"));
            }
        }
    }

    fn say(&mut self, n: usize, what: &str) -> &mut Life {
        println!("{n} {what}");
        self
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
        let cuts = if life.rng.u8(..4) == 0 { 200 } else { 0 };
        life.proxy.cuts.store(cuts, Ordering::Relaxed);
        life.step(n);
        life.compare();
    }
    life.proxy.cuts.store(0, Ordering::Relaxed);
    for (label, tree) in &life.labels {
        tree.must_be_at(&life.w.mnt.join(format!("@@{label}")), &BTreeSet::new());
    }
    let local = text(&life.local);
    life.sh(&format!("$DARNER unmount $MNT; for c in check rebuild check; do $DARNER $c {local}; done"));
    life.mount();
    life.compare();
    life.sh("$DARNER unmount $MNT");
    println!("seed {seed}: {} labels", life.labels.len());
}

#[test]
fn whatever_happens_to_a_bucket_and_its_store_nothing_is_lost() {
    each_seed("DARNER_COLD_SEED", 8, |seed| live(seed, if long() { 120 } else { 50 }));
}
