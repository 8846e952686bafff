//! Everything at once, through the real program and the real kernel, against plain trees in memory: files change in filesets and clones,
//! volumes come and go, there are copies, mirrors, grids, cleaning, scrubs, upgrades, lost indexes, and kills beside all of that.
//!
//! One seed is one sequence of steps: decks of all kinds of steps, shuffled. Daemons are killed and cleaners run beside, so how far a
//! command had come by then is different each time; later steps go on from what is there. In every order must hold: each operation on
//! files succeeds once and for all; after each step all live trees are what they must be, and so is what is looked at of the past that
//! the retention keeps (labels; any moment, as long as everything is kept); a command succeeds unless its daemon was killed, or it says
//! one of [`MAY_SAY`]; files without a name keep their bytes while they are open; mirrors equal their sources; at the end the
//! store is sound, with its index and with one made anew. There is always room: ENOSPC is a failure.
//!
//! One deck of one seed; with DARNER_LONG set 4 of each of 16. DARNER_EVERYTHING_SEED replays one seed.

mod common;
#[path = "common/tree.rs"]
mod tree;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use common::{DARNER, World, each_seed, long, signal};
use fastrand::Rng;
use serde_json::Value;
use tree::{Op, Tree};

/// What can happen, and how often in a deck.
const DECK: &[(Step, usize)] = &[
    (Step::Work, 8),
    (Step::Label, 4),
    (Step::Moment, 4),
    (Step::Unlabel, 1),
    (Step::Restore, 4),
    (Step::Hold, 2),
    (Step::Kill, 2),
    (Step::KillBoth, 1),
    (Step::Remount, 1),
    (Step::Check, 1),
    (Step::Rebuild, 1),
    (Step::LoseIndex, 1),
    (Step::Upgrade, 1),
    (Step::AddVolume, 3),
    (Step::RemoveVolume, 2),
    (Step::MoveSegments, 2),
    (Step::Copies, 2),
    (Step::CopiesOfFileset, 1),
    (Step::MakeFileset, 2),
    (Step::Clone, 2),
    (Step::RemoveFileset, 1),
    (Step::Retain, 2),
    (Step::Clean, 2),
    (Step::Scrub, 1),
    (Step::AddMirror, 1),
    (Step::SyncMirrors, 1),
    (Step::KillMirror, 1),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Work,
    Label,
    Moment,
    Unlabel,
    Restore,
    Hold,
    Kill,
    KillBoth,
    Remount,
    Check,
    Rebuild,
    LoseIndex,
    Upgrade,
    AddVolume,
    RemoveVolume,
    MoveSegments,
    Copies,
    CopiesOfFileset,
    MakeFileset,
    Clone,
    RemoveFileset,
    Retain,
    Clean,
    Scrub,
    AddMirror,
    SyncMirrors,
    KillMirror,
}

const GRIDS: [&str; 5] = ["all:1s", "forever", "none", "1s:5s 5s:1m", "all:5s 2s:forever"];
/// Filesets besides the main one, volumes and mirrors that there are at most.
const FILESETS: usize = 5;
const VOLUMES: usize = 6;
const MIRRORS: usize = 2;
/// Why a command about volumes may be refused.
const MAY_SAY: [&str; 5] = [
    "is the only one for what is new",
    "two copies have no place",
    "two copies need two volumes",
    "has the other copy of region",
    // What a kill had interrupted has gone on meanwhile.
    "there is no volume",
];

/// A moment that is remembered.
struct Moment {
    /// As it is written after `@@`.
    name: String,
    is_label: bool,
    tree: Tree,
}

struct Fileset {
    /// Of the main one: nothing.
    name: String,
    tree: Tree,
    moments: Vec<Moment>,
    /// Whether everything of it has been kept since [`Moment`]s that are no labels.
    keeps_all: bool,
    base: Option<String>,
    mirror: Option<PathBuf>,
}

impl Fileset {
    fn new(name: &str, tree: Tree, base: Option<&str>) -> Fileset {
        let (name, base) = (name.into(), base.map(str::to_string));
        Fileset { name, tree, moments: Vec::new(), keeps_all: true, base, mirror: None }
    }
}

struct Life {
    w: World,
    rng: Rng,
    filesets: Vec<Fileset>,
    /// Names that directories of filesets in the main root ever had.
    names: BTreeSet<String>,
    /// Open files without a name, with what is in them.
    held: Vec<(File, Arc<Vec<u8>>)>,
    made: usize,
    operations: u64,
    compared: u64,
    kills: u32,
}

impl Life {
    fn begin(seed: u64) -> Option<Life> {
        Some(Life {
            w: World::new()?,
            rng: Rng::with_seed(seed),
            filesets: vec![Fileset::new("", Tree::default(), None)],
            names: BTreeSet::new(),
            held: Vec::new(),
            made: 0,
            operations: 0,
            compared: 0,
            kills: 0,
        })
    }

    /// Where a fileset is.
    fn root(&self, n: usize) -> PathBuf {
        self.w.mnt.join(&self.filesets[n].name)
    }

    fn any(&mut self, fits: impl Fn(&Fileset) -> bool) -> Option<usize> {
        let fitting: Vec<usize> = (0..self.filesets.len()).filter(|n| fits(&self.filesets[*n])).collect();
        self.rng.choice(fitting)
    }

    fn new_name(&mut self, kind: &str) -> String {
        self.made += 1;
        format!("{kind}{}", self.made)
    }

    /// A command that must succeed; returns what it printed.
    #[track_caller]
    fn darner(&self, args: &[&str]) -> String {
        println!("    darner {}", args.join(" "));
        self.w.darner(args)
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.w.darner(&["status", "--json", text(&self.w.mnt)])).unwrap()
    }

    /// Those that are not about to leave.
    fn volumes(&self) -> Vec<Value> {
        let list = self.w.darner(&["volume", "list", text(&self.w.mnt), "--json"]);
        let mut volumes = serde_json::from_str::<Value>(&list).unwrap().as_array().unwrap().clone();
        volumes.retain(|volume| volume["state"] == "active");
        volumes
    }

    fn any_volume(&mut self) -> String {
        let volumes = self.volumes();
        volumes[self.rng.usize(..volumes.len())]["id"].to_string()
    }

    fn work(&mut self, operations: usize) {
        for _ in 0..operations {
            let n = self.rng.usize(..self.filesets.len());
            let root = self.root(n);
            let others = self.copyable();
            let fileset = &mut self.filesets[n];
            let op = fileset.tree.any_op(&mut self.rng, &others);
            op.act(&root).unwrap_or_else(|e| panic!("{op} in {}: {e}", root.display()));
            fileset.tree.apply(&op);
            self.operations += 1;
        }
    }

    /// Some files of the present and the past.
    fn copyable(&mut self) -> Vec<(PathBuf, Arc<Vec<u8>>)> {
        let n = self.rng.usize(..self.filesets.len());
        let (root, fileset) = (self.root(n), &self.filesets[n]);
        let (root, tree) = match self.rng.choice(&fileset.moments).filter(|_| self.rng.bool()) {
            Some(moment) => (root.join(format!("@@{}", moment.name)), &moment.tree),
            None => (root, &fileset.tree),
        };
        tree.files().into_iter().map(|(name, bytes)| (root.join(name), bytes.clone())).collect()
    }

    /// Runs a command while files change and, perhaps, the daemon is killed.
    fn beside(&mut self, args: &[&str]) {
        let child = spawn(args);
        let operations = self.rng.usize(5..30);
        let kill_at = if self.rng.u8(..3) == 0 { self.rng.usize(..operations) } else { operations };
        println!("    darner {}, beside {operations} operations, killed at {kill_at}", args.join(" "));
        self.work(kill_at);
        let is_killed = kill_at < operations;
        if is_killed {
            self.kill();
        }
        self.work(operations - kill_at);
        let out = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        let may = is_killed || MAY_SAY.iter().any(|why| said.contains(why));
        assert!(out.status.success() || may, "darner {args:?}: {said}");
    }

    fn kill(&mut self) {
        let pid = self.status()["daemon_pid"].as_i64().unwrap();
        signal(pid as i32, libc::SIGKILL);
        self.kills += 1;
    }

    fn step(&mut self, step: Step) {
        let mnt = self.w.mnt.clone();
        let mnt = text(&mnt);
        match step {
            Step::Work => {
                let operations = self.rng.usize(10..60);
                self.work(operations);
            }
            Step::Label => self.remember(true),
            Step::Moment => self.remember(false),
            Step::Unlabel => self.unlabel(),
            Step::Restore => self.restore(),
            Step::Hold => self.hold(),
            Step::Kill => self.kill(),
            Step::KillBoth => self.kill_both(),
            Step::Remount => self.remount(""),
            Step::Check => self.remount("check"),
            Step::Rebuild => self.remount("rebuild"),
            Step::LoseIndex => self.remount("lose"),
            Step::Upgrade => drop(self.darner(&["upgrade", mnt])),
            Step::AddVolume => self.add_volume(),
            Step::RemoveVolume => self.remove_volume(),
            Step::MoveSegments => {
                let (from, to) = (self.any_volume(), self.any_volume());
                if from != to {
                    self.beside(&["volume", "move", mnt, "--from", &from, "--to", &to]);
                }
            }
            Step::Copies => {
                self.have_two_volumes();
                let copies = ["1", "2", "2", "index"][self.rng.usize(..4)];
                self.beside(&["volume", "copies", mnt, copies]);
            }
            Step::CopiesOfFileset => {
                self.have_two_volumes();
                if let Some(n) = self.any(|fileset| !fileset.name.is_empty()) {
                    let (copies, name) = (["1", "2"][self.rng.usize(..2)], self.filesets[n].name.clone());
                    self.beside(&["volume", "copies", mnt, copies, "--fileset", &name]);
                }
            }
            Step::MakeFileset => self.make_fileset(),
            Step::Clone => self.clone_fileset(),
            Step::RemoveFileset => self.remove_fileset(),
            Step::Retain => {
                let n = self.rng.usize(..self.filesets.len());
                self.retain(n);
            }
            Step::Clean => self.beside(&["clean", mnt, "--wait"]),
            Step::Scrub => self.beside(&["scrub", mnt]),
            Step::AddMirror => self.add_mirror(),
            Step::SyncMirrors => self.sync_mirrors(),
            Step::KillMirror => self.kill_mirror(),
        }
    }

    fn remember(&mut self, is_label: bool) {
        let label = self.new_name("label");
        // (Where a grid rounds, other moments are for `past.rs` of the filesystem.)
        let Some(n) = self.any(|fileset| is_label || fileset.keeps_all) else { return self.remember(true) };
        let name = match is_label {
            true => {
                self.darner(&["snapshot", text(&self.root(n)), &label]);
                label
            }
            false => self.status()["tid"].as_str().unwrap().to_string(),
        };
        let tree = self.filesets[n].tree.clone();
        self.filesets[n].moments.push(Moment { name, is_label, tree });
    }

    fn unlabel(&mut self) {
        let is_label = |moment: &Moment| moment.is_label;
        let Some(n) = self.any(|fileset| fileset.moments.iter().any(is_label)) else { return };
        let at = self.filesets[n].moments.iter().position(is_label).expect("it has one");
        let moment = self.filesets[n].moments.remove(at);
        self.darner(&["snapshot", "remove", text(&self.root(n)), &moment.name]);
    }

    /// Brings back something of a moment, in place or under a new name, perhaps while the daemon is killed.
    fn restore(&mut self) {
        let Some(n) = self.any(|fileset| !fileset.moments.is_empty()) else { return };
        let root = self.root(n);
        let fileset = &self.filesets[n];
        let moment = self.rng.choice(&fileset.moments).expect("it has some");
        let Some(name) = moment.tree.any_name(&mut self.rng) else { return };
        // (What has the directory's name now may be another one.)
        let from = root.join(format!("@@{}", moment.name)).join(&name);
        let from = text(&from);
        let then = moment.tree.clone();
        let in_place = fileset.tree.has_dir_of(&name) && self.rng.bool();
        let to = if in_place { name.clone() } else { self.new_name("restored") };
        let dest = root.join(&to);
        let mut args = vec!["restore", from];
        if !in_place {
            args.extend(["--to", text(&dest)]);
        }
        println!("    darner {}", args.join(" "));
        let child = spawn(&args);
        let is_killed = self.rng.u8(..3) == 0;
        if is_killed {
            self.kill();
        }
        let out = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success() || is_killed, "darner {args:?}: {said}");
        // (Where it fails, all is as it was.)
        if out.status.success() {
            self.filesets[n].tree.restore(&name, &then, &to);
        }
    }

    /// Opens a file and takes its name away.
    fn hold(&mut self) {
        let n = self.rng.usize(..self.filesets.len());
        let root = self.root(n);
        let tree = &mut self.filesets[n].tree;
        let Some((name, bytes)) =
            self.rng.choice(tree.single_files()).map(|(name, bytes)| (name.clone(), bytes.clone()))
        else {
            return;
        };
        self.held.push((File::open(root.join(&name)).unwrap(), bytes));
        let op = Op::Unlink { name };
        op.act(&root).unwrap();
        tree.apply(&op);
    }

    fn kill_both(&mut self) {
        self.let_go();
        // Whatever it is called for: all that was done before is durable then.
        File::open(&self.w.mnt).unwrap().sync_all().unwrap();
        self.w.kill();
        self.kills += 2;
        self.mount();
    }

    fn remount(&mut self, what: &str) {
        self.unmount();
        let store = text(&self.w.store).to_string();
        match what {
            "" => {}
            "lose" => self.lose_index(),
            command => drop(self.darner(&[command, &store])),
        }
        self.mount();
    }

    /// Closes all files, and chooses a volume by which to mount again: any leads to all.
    fn let_go(&mut self) {
        self.held.clear();
        let volumes = self.volumes();
        self.w.store = volumes[self.rng.usize(..volumes.len())]["path"].as_str().unwrap().into();
    }

    fn unmount(&mut self) {
        self.let_go();
        self.darner(&["unmount", text(&self.w.mnt)]);
        let log = self.w.log();
        let is_bad = |line: &&str| line.contains(" ERROR ") || line.contains("panicked");
        // (That of an index whose copies were both taken away, too.)
        let bad: Vec<&str> = log.lines().filter(is_bad).filter(|line| !line.contains("one copy is left")).collect();
        assert!(bad.is_empty(), "the daemon complained: {bad:?}");
        self.w.forgive_errors();
    }

    fn mount(&self) {
        self.w.mount_at("mnt", &[]).unwrap();
    }

    /// Takes the tables from all volumes that are directories.
    fn lose_index(&self) {
        self.w.sh_outside("for f in store*/region-*; do if tail -c 72 $f | grep -q ^DARNTBL; then rm $f; fi; done");
    }

    fn add_volume(&mut self) {
        if self.volumes().len() >= VOLUMES {
            return self.remove_volume();
        }
        let name = self.new_name("store");
        let path = self.w.dir.join(name);
        let mut args = vec!["volume", "add", text(&self.w.mnt), text(&path)];
        match self.rng.u8(..4) {
            0..2 => args.extend(["--image", "--size", "8G"]),
            2 => args.extend(["--tier", "cold"]),
            _ => {}
        }
        self.darner(&args);
    }

    fn have_two_volumes(&mut self) {
        if self.volumes().len() < 2 {
            self.add_volume();
        }
    }

    fn remove_volume(&mut self) {
        self.have_two_volumes();
        let (mnt, id) = (self.w.mnt.clone(), self.any_volume());
        self.beside(&["volume", "remove", text(&mnt), &id]);
    }

    fn make_fileset(&mut self) {
        if self.filesets.len() > FILESETS {
            return self.remove_fileset();
        }
        let name = self.new_name("fileset");
        self.names.insert(name.clone());
        self.darner(&["fileset", "create", text(&self.w.mnt), &name]);
        self.filesets.push(Fileset::new(&name, Tree::default(), None));
    }

    fn clone_fileset(&mut self) {
        if self.filesets.len() > FILESETS {
            return self.remove_fileset();
        }
        let n = self.rng.usize(..self.filesets.len());
        let (mut of, fileset) = (self.root(n), &self.filesets[n]);
        let mut tree = &fileset.tree;
        if let Some(moment) = self.rng.choice(&fileset.moments).filter(|_| self.rng.bool()) {
            (of, tree) = (of.join(format!("@@{}", moment.name)), &moment.tree);
        }
        let (tree, base) = (tree.clone(), fileset.name.clone());
        let name = self.new_name("clone");
        self.names.insert(name.clone());
        self.darner(&["clone", text(&of), &name]);
        self.filesets.push(Fileset::new(&name, tree, Some(&base)));
    }

    fn remove_fileset(&mut self) {
        let bases: BTreeSet<String> = self.filesets.iter().filter_map(|fileset| fileset.base.clone()).collect();
        let goes = |f: &Fileset| !f.name.is_empty() && !bases.contains(&f.name) && f.mirror.is_none();
        if let Some(n) = self.any(goes) {
            // (What is open of it is stale then.)
            self.held.clear();
            let name = self.filesets.remove(n).name;
            self.darner(&["fileset", "remove", text(&self.w.mnt), &name, "--force"]);
        }
    }

    fn retain(&mut self, n: usize) {
        let grid = GRIDS[self.rng.usize(..GRIDS.len())];
        let root = self.root(n);
        let mut args = vec!["retain", text(&root)];
        args.extend(grid.split(' '));
        self.darner(&args);
        let fileset = &mut self.filesets[n];
        fileset.keeps_all = grid == "forever";
        if !fileset.keeps_all {
            fileset.moments.retain(|moment| moment.is_label);
        }
    }

    fn add_mirror(&mut self) {
        if self.filesets.iter().filter(|fileset| fileset.mirror.is_some()).count() >= MIRRORS {
            return self.sync_mirrors();
        }
        let name = self.new_name("mirror");
        let store = self.w.dir.join(&name);
        if let Some(n) = self.any(|fileset| fileset.mirror.is_none() && fileset.base.is_none()) {
            self.darner(&["mirror", "add", text(&self.root(n)), &name, text(&store)]);
            self.filesets[n].mirror = Some(store);
        }
    }

    /// Has mirrors pull, and compares them.
    fn sync_mirrors(&mut self) {
        if self.filesets.iter().all(|fileset| fileset.mirror.is_none()) {
            return self.add_mirror();
        }
        for (n, fileset) in self.filesets.iter().enumerate() {
            let Some(store) = &fileset.mirror else { continue };
            let name = text(Path::new(store.file_name().expect("it has one")));
            self.darner(&["mirror", "sync", text(&self.root(n)), name, "--wait"]);
            let copy = self.w.dir.join("copy");
            fs::create_dir_all(&copy).unwrap();
            self.darner(&["mount", "--read-only", text(store), text(&copy)]);
            fileset.tree.must_be_at(&copy, &self.names);
            self.darner(&["unmount", text(&copy)]);
        }
    }

    /// A mirror's daemon, or also its supervisor.
    fn kill_mirror(&mut self) {
        let Some(n) = self.any(|fileset| fileset.mirror.is_some()) else { return self.add_mirror() };
        let store = self.filesets[n].mirror.clone().expect("it has one");
        let status: Value = serde_json::from_str(&self.w.darner(&["status", "--json", text(&store)])).unwrap();
        let which = ["daemon_pid", "supervisor_pid"];
        for pid in &which[..self.rng.usize(1..=2)] {
            signal(status[*pid].as_i64().unwrap() as i32, libc::SIGKILL);
            self.kills += 1;
        }
        if self.rng.bool() {
            self.sync_mirrors();
        }
    }

    fn compare_live(&mut self) {
        for (n, fileset) in self.filesets.iter().enumerate() {
            fileset.tree.must_be_at(&self.root(n), &self.names);
            self.compared += 1;
        }
        for (file, bytes) in &self.held {
            let mut found = vec![0; bytes.len() + 1];
            let len = file.read_at(&mut found, 0).unwrap();
            assert_eq!(tree::first_difference(&found[..len], bytes), None, "a file without a name");
        }
    }

    /// `most`: of so many remembered moments.
    fn compare_past(&mut self, most: usize) {
        let mut all: Vec<(usize, &Moment)> = Vec::new();
        for (n, fileset) in self.filesets.iter().enumerate() {
            all.extend(fileset.moments.iter().map(|moment| (n, moment)));
        }
        self.rng.shuffle(&mut all);
        for (n, moment) in all.into_iter().take(most) {
            let root = self.root(n).join(format!("@@{}", moment.name));
            moment.tree.must_be_at(&root, &self.names);
            self.compared += 1;
        }
    }

    /// The store and the mirrors are sound and show all that they must, with the index and one made anew.
    fn end(&mut self) {
        self.compare_past(usize::MAX);
        self.sync_mirrors();
        let mirrors: Vec<(PathBuf, PathBuf)> =
            (0..self.filesets.len()).filter_map(|n| Some((self.root(n), self.filesets[n].mirror.clone()?))).collect();
        for (root, store) in mirrors {
            let name = text(Path::new(store.file_name().expect("it has one"))).to_string();
            self.darner(&["mirror", "verify", text(&root), &name, "--data", "--dry-run"]);
            // Then nobody has it open.
            self.darner(&["mirror", "pause", text(&root), &name]);
            self.darner(&["check", text(&store)]);
        }
        self.unmount();
        for command in ["check", "rebuild", "check"] {
            self.darner(&[command, text(&self.w.store)]);
        }
        self.mount();
        self.compare_live();
        self.compare_past(usize::MAX);
        self.unmount();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("ours are")
}

fn spawn(args: &[&str]) -> Child {
    let mut command = Command::new("timeout");
    command.args(["100", DARNER]).args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn live(seed: u64, decks: usize) {
    let mut life = Life::begin(seed).expect("it can mount");
    let start = Instant::now();
    for _ in 0..decks {
        let mut deck: Vec<Step> = DECK.iter().flat_map(|(step, n)| std::iter::repeat_n(*step, *n)).collect();
        life.rng.shuffle(&mut deck);
        for step in deck {
            println!("{:7.2} {step:?}", start.elapsed().as_secs_f64());
            life.step(step);
            life.compare_live();
            life.compare_past(2);
        }
    }
    life.end();
    println!(
        "seed {seed}: {} operations, {} trees compared, {} kills, {:.1} s",
        life.operations,
        life.compared,
        life.kills,
        start.elapsed().as_secs_f64()
    );
}

#[test]
fn whatever_happens_beside_whatever_every_tree_is_what_it_must_be() {
    each_seed("DARNER_EVERYTHING_SEED", 16, |seed| live(seed, if long() { 4 } else { 1 }));
}
