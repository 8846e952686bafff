//! Stores that follow one another, take turns and come back, in any order, through the real program and the real kernel, against plain
//! trees in memory.
//!
//! One seed is one sequence of steps. Mirrors are on this machine, behind TCP, or fed by streams in files; mirrors have mirrors;
//! daemons and their supervisors are killed, volumes come and go, mirrors are paused, promoted, and old sources return to them, or to
//! their mirrors. In every order must hold: a source shows what was done to it; a mirror shows after a pull what its source does, and its
//! labels show for ever what they did; who is promoted shows a state of its source since the last pull; who returns shows what the
//! promoted one does, and a clone has what it had alone, if that was anything; digests of both sides are equal; at the end all stores are
//! sound, with their indexes and with new ones.
//!
//! 60 steps of one seed; with DARNER_LONG set 150 of each of 8. DARNER_TURNS_SEED replays one seed.

mod common;
#[path = "common/tree.rs"]
mod tree;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::{DARNER, World, each_seed, free_port, long, names_expire, signal};
use fastrand::Rng;
use serde_json::Value;
use tree::Tree;

const GRIDS: [&str; 4] = ["forever", "none", "all:1s", "1s:5s 5s:1m"];
/// Stores that there are at most.
const SITES: usize = 4;

/// How a store follows another one.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Path,
    Tcp,
    Stream,
}

struct Site {
    name: String,
    /// One of its volumes.
    store: PathBuf,
    mnt: PathBuf,
    /// What it shows; of a mirror, what it did after the last pull that was waited for.
    tree: Tree,
    follows: Option<(usize, Way)>,
    is_paused: bool,
    /// Labels, what they show, and after which step they were made.
    labels: Vec<(String, Tree, usize)>,
    /// Whom it followed when it was promoted, and whom those did, and after which step all had the same.
    was: Vec<usize>,
    common: usize,
    /// What it showed when it was promoted.
    promoted: Tree,
    /// Where it listens.
    port: Option<u16>,
    /// It may have given up any moment.
    is_thinned: bool,
}

struct Life {
    w: World,
    rng: Rng,
    sites: Vec<Site>,
    /// Names of clones that returning made.
    clones: BTreeSet<String>,
    made: usize,
    step: usize,
}

fn text(path: &Path) -> &str {
    path.to_str().expect("ours are")
}

impl Life {
    fn begin(seed: u64) -> Life {
        let w = World::unmounted().expect("it can mount");
        let mut life =
            Life { w, rng: Rng::with_seed(seed), sites: Vec::new(), clones: BTreeSet::new(), made: 0, step: 0 };
        life.add_site(Tree::default(), None);
        life.darner(&["create", text(&life.sites[0].store)]);
        life.mount(0);
        life
    }

    #[track_caller]
    fn darner(&self, args: &[&str]) -> String {
        println!("    darner {}", args.join(" "));
        self.w.darner(args)
    }

    fn new_name(&mut self, kind: &str) -> String {
        self.made += 1;
        format!("{kind}{}", self.made)
    }

    fn add_site(&mut self, tree: Tree, follows: Option<(usize, Way)>) {
        let name = self.new_name("site");
        self.sites.push(Site {
            store: self.w.dir.join(&name),
            mnt: self.w.dir.join(format!("{name}-mnt")),
            name,
            tree,
            follows,
            is_paused: false,
            labels: Vec::new(),
            was: Vec::new(),
            common: 0,
            promoted: Tree::default(),
            port: None,
            is_thinned: false,
        });
    }

    fn any(&mut self, fits: impl Fn(&Site) -> bool) -> Option<usize> {
        let fitting: Vec<usize> = (0..self.sites.len()).filter(|n| fits(&self.sites[*n])).collect();
        self.rng.choice(fitting)
    }

    fn mount(&self, n: usize) {
        let site = &self.sites[n];
        fs::create_dir_all(&site.mnt).unwrap();
        let log = self.w.dir.join("daemon.log");
        self.darner(&["mount", "--log", text(&log), text(&site.store), text(&site.mnt)]);
    }

    fn unmount(&self, n: usize) {
        self.darner(&["unmount", text(&self.sites[n].mnt)]);
    }

    fn work(&mut self, n: usize, operations: usize) -> Vec<Tree> {
        let mut states = Vec::new();
        for _ in 0..operations {
            let site = &mut self.sites[n];
            let op = site.tree.any_op(&mut self.rng, &[]);
            op.act(&site.mnt).unwrap_or_else(|e| panic!("{op} in {}: {e}", site.mnt.display()));
            site.tree.apply(&op);
            states.push(site.tree.clone());
        }
        states
    }

    /// The one that everything of a mirror comes from, first, and it last.
    fn chain(&self, n: usize) -> Vec<usize> {
        let mut chain = vec![n];
        while let Some((of, _)) = self.sites[chain[0]].follows {
            chain.insert(0, of);
        }
        chain
    }

    /// Has a mirror, and those that it follows by way of, pull; they show then what the source does.
    fn sync(&mut self, n: usize) {
        for pair in self.chain(n).windows(2) {
            let (of, mirror) = (pair[0], pair[1]);
            match self.sites[mirror].follows.expect("it is one").1 {
                Way::Stream => self.stream(of, mirror),
                _ => drop(self.darner(&["mirror", "sync", "--wait", text(&self.sites[mirror].store)])),
            }
            self.sites[mirror].tree = self.sites[of].tree.clone();
            self.sites[mirror].common = self.step;
            self.compare(mirror);
        }
    }

    fn own_line(&self, n: usize) -> Value {
        let lines = self.w.darner(&["mirror", "list", "--json", text(&self.sites[n].store)]);
        let lines: Value = serde_json::from_str(&lines).unwrap();
        lines.as_array().unwrap().iter().find(|line| line["name"] == "").unwrap().clone()
    }

    fn stream(&mut self, of: usize, mirror: usize) {
        let is_new = !self.sites[mirror].store.exists();
        let since = match is_new {
            true => "0".to_string(),
            false => self.own_line(mirror)["at_tid"].as_str().unwrap().to_string(),
        };
        let file = self.w.dir.join("stream");
        // (One that is of more than is asked for is as good.)
        let since = if self.rng.u8(..4) == 0 { "0" } else { &since };
        self.darner(&["mirror", "export", text(&self.sites[of].mnt), "--since", since, "--output", text(&file)]);
        if !is_new {
            self.unmount(mirror);
        }
        self.darner(&["mirror", "import", text(&self.sites[mirror].store), "--input", text(&file)]);
        self.mount(mirror);
        fs::remove_file(file).unwrap();
    }

    /// Somewhere to listen; what lets one in.
    fn ticket(&mut self, n: usize) -> (String, String) {
        let mnt = self.sites[n].mnt.clone();
        let port = match self.sites[n].port {
            Some(port) => port,
            None => {
                let port = free_port();
                self.darner(&["serve", text(&mnt), "--listen", &format!("127.0.0.1:{port}")]);
                *self.sites[n].port.insert(port)
            }
        };
        let ticket = self.darner(&["serve", text(&mnt), "--ticket"]);
        (format!("darner://127.0.0.1:{port}"), ticket.trim().to_string())
    }

    fn add_mirror(&mut self) {
        if self.sites.len() >= SITES {
            return;
        }
        let of = self.rng.usize(..self.sites.len());
        let way = [Way::Path, Way::Path, Way::Tcp, Way::Stream][self.rng.usize(..4)];
        self.add_site(Tree::default(), Some((of, way)));
        let n = self.sites.len() - 1;
        let (name, store) = (self.sites[n].name.clone(), self.sites[n].store.clone());
        match way {
            Way::Path => drop(self.darner(&["mirror", "add", text(&self.sites[of].mnt), &name, text(&store)])),
            Way::Tcp => {
                let (url, ticket) = self.ticket(of);
                self.darner(&["mirror", "follow", text(&store), &url, "--ticket", &ticket]);
            }
            Way::Stream => return self.sync(n),
        }
        self.mount(n);
        self.sync(n);
    }

    fn label(&mut self) {
        let n = self.rng.usize(..self.sites.len());
        self.sync(n);
        let label = self.new_name("label");
        self.darner(&["snapshot", text(&self.sites[n].mnt), &label]);
        let (site, step) = (&mut self.sites[n], self.step);
        site.labels.push((label, site.tree.clone(), step));
    }

    fn retain(&mut self) {
        let n = self.rng.usize(..self.sites.len());
        let grid = GRIDS[self.rng.usize(..GRIDS.len())];
        let mnt = self.sites[n].mnt.clone();
        let mut args = vec!["retain", text(&mnt)];
        args.extend(grid.split(' '));
        self.darner(&args);
        self.sites[n].is_thinned |= grid != "forever";
    }

    fn kill(&mut self, both: bool) {
        let n = self.rng.usize(..self.sites.len());
        let site = &self.sites[n];
        println!("    {} is killed", site.name);
        if both && site.follows.is_none() {
            File::open(&site.mnt).unwrap().sync_all().unwrap();
        }
        let status: Value = serde_json::from_str(&self.w.darner(&["status", "--json", text(&site.mnt)])).unwrap();
        let pid = |which: &str| status[which].as_i64().unwrap() as i32;
        if both {
            signal(pid("supervisor_pid"), libc::SIGKILL);
        }
        signal(pid("daemon_pid"), libc::SIGKILL);
        if both {
            self.w.sh_outside(&format!("until umount -l {} 2>/dev/null; do sleep 0.05; done", text(&site.mnt)));
            self.mount(n);
        }
    }

    fn pause(&mut self) {
        let Some(n) = self.any(|site| matches!(site.follows, Some((_, Way::Path | Way::Tcp)))) else { return };
        let site = &mut self.sites[n];
        site.is_paused = !site.is_paused;
        let command = if site.is_paused { "pause" } else { "resume" };
        let store = site.store.clone();
        self.darner(&["mirror", command, text(&store)]);
    }

    fn promote(&mut self) {
        let Some(n) = self.any(|site| site.follows.is_some()) else { return };
        self.sync(n);
        let of = self.chain(n)[0];
        let mut states = vec![self.sites[n].tree.clone()];
        if self.rng.bool() {
            states.extend(self.work(of, 10));
        }
        self.darner(&["mirror", "promote", text(&self.sites[n].store)]);
        self.unmount(n);
        self.mount(n);
        let chain = self.chain(n);
        let clones = &self.clones;
        let site = &mut self.sites[n];
        let shown = states.into_iter().rev().find(|tree| tree.is_at(&site.mnt, clones));
        site.tree = shown.unwrap_or_else(|| panic!("{} is nothing that its source was", site.name));
        site.promoted = site.tree.clone();
        (site.was, site.follows, site.is_paused) = (chain[..chain.len() - 1].to_vec(), None, false);
    }

    /// An old source follows the one that was promoted.
    fn turn_back(&mut self) {
        let is_source: Vec<bool> = self.sites.iter().map(|site| site.follows.is_none()).collect();
        let can = |site: &Site| site.follows.is_none() && site.was.iter().any(|of| is_source[*of]);
        let Some(n) = self.any(can) else { return };
        let old = *self.sites[n].was.iter().find(|of| is_source[**of]).expect("one is");
        let common = self.sites[n].common;
        self.unmount(old);
        let store = self.sites[old].store.clone();
        let way = if self.rng.bool() { Way::Path } else { Way::Tcp };
        let mut args = vec!["mirror".to_string(), "return".into(), text(&store).into()];
        match way {
            Way::Tcp => {
                let (url, ticket) = self.ticket(n);
                args.extend([url, "--ticket".into(), ticket]);
            }
            _ => args.push(text(&self.sites[n].store).into()),
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        println!("    darner {}", args.join(" "));
        let out = Command::new("timeout").args(["60", DARNER]).args(&args).output().unwrap();
        let (told, why) = (String::from_utf8_lossy(&out.stdout).into_owned(), String::from_utf8_lossy(&out.stderr));
        if why.contains("not kept here any more") && self.sites[old].is_thinned {
            println!("    {}", why.trim());
            return self.mount(old);
        }
        assert!(out.status.success(), "darner {args:?}: {why}");
        let alone = self.sites[old].tree.clone();
        self.sites[old].follows = Some((n, way));
        self.sites[old].labels.retain(|(_, _, made)| *made < common);
        // Whom it had followed itself counts no more.
        (self.sites[old].was, self.sites[n].was) = (Vec::new(), Vec::new());
        self.mount(old);
        self.sync(old);
        if let Some(clone) = told.split([' ', ':', '\n']).find(|word| word.starts_with("before-return-")) {
            println!("    {clone} is what it had alone");
            self.clones.insert(clone.into());
            let at = self.w.dir.join("clone");
            fs::create_dir_all(&at).unwrap();
            self.darner(&["mount", "--fileset", clone, text(&store), text(&at)]);
            alone.must_be_at(&at, &self.clones);
            self.darner(&["unmount", text(&at)]);
        } else {
            self.sites[n].promoted.must_be(&alone);
        }
    }

    fn verify(&mut self) {
        let compares = |site: &Site| matches!(site.follows, Some((_, Way::Path | Way::Tcp))) && !site.is_paused;
        let Some(n) = self.any(compares) else { return };
        self.sync(n);
        let mut args = vec!["mirror", "verify", text(&self.sites[n].store), "--dry-run"];
        if self.rng.bool() {
            args.push("--data");
        }
        self.darner(&args);
    }

    fn volumes(&self, n: usize) -> Vec<Value> {
        let list = self.w.darner(&["volume", "list", text(&self.sites[n].mnt), "--json"]);
        serde_json::from_str::<Value>(&list).unwrap().as_array().unwrap().clone()
    }

    /// Another volume takes the place of one.
    fn swap_volumes(&mut self) {
        let n = self.rng.usize(..self.sites.len());
        let path = self.w.dir.join(self.made.to_string());
        self.made += 1;
        let mnt = self.sites[n].mnt.clone();
        self.darner(&["volume", "add", text(&mnt), text(&path)]);
        // (Each side hears where the other is with a pull.)
        let followers: Vec<usize> =
            (0..self.sites.len()).filter(|m| *m == n || self.sites[*m].follows == Some((n, Way::Path))).collect();
        followers.into_iter().for_each(|m| self.sync(m));
        let volumes = self.volumes(n);
        let goes = self.rng.choice(&volumes).unwrap()["id"].to_string();
        self.darner(&["volume", "remove", text(&mnt), &goes]);
        self.sites[n].store = self.volumes(n)[0]["path"].as_str().unwrap().into();
    }

    fn any_step(&mut self) {
        match self.rng.u8(..42) {
            0..14 => {
                let n = self.any(|site| site.follows.is_none()).expect("there is a source");
                println!("{} Work in {}", self.step, self.sites[n].name);
                let operations = self.rng.usize(1..30);
                self.work(n, operations);
            }
            14..17 => self.say("Label").label(),
            17..21 => self.say("AddMirror").add_mirror(),
            21..25 => {
                let n = self.rng.usize(..self.sites.len());
                self.say("Sync").sync(n);
            }
            25..28 => self.say("Kill").kill(false),
            28 => self.say("KillBoth").kill(true),
            29 => {
                let n = self.rng.usize(..self.sites.len());
                self.say("Remount").unmount(n);
                self.mount(n);
            }
            30..32 => self.say("Pause").pause(),
            32..34 => self.say("Promote").promote(),
            34..37 => self.say("Return").turn_back(),
            37 => self.say("Verify").verify(),
            38 => self.say("Volumes").swap_volumes(),
            39 => self.say("Retain").retain(),
            _ => {
                let n = self.rng.usize(..self.sites.len());
                let mnt = self.sites[n].mnt.clone();
                self.say("Clean").darner(&["clean", text(&mnt), "--wait"]);
            }
        }
    }

    fn say(&mut self, what: &str) -> &mut Life {
        println!("{} {what}", self.step);
        self
    }

    #[track_caller]
    fn compare(&self, n: usize) {
        let site = &self.sites[n];
        // (Names in a mount that follows may be up to a second old.)
        let until = Instant::now() + Duration::from_secs(2);
        let is_old = || site.follows.is_some() && !names_expire() && !site.tree.is_at(&site.mnt, &self.clones);
        while Instant::now() < until && is_old() {
            thread::sleep(Duration::from_millis(100));
        }
        site.tree.must_be_at(&site.mnt, &self.clones);
    }

    fn compare_all(&mut self) {
        for n in 0..self.sites.len() {
            if self.sites[n].follows.is_none() {
                self.compare(n);
            }
            let site = &self.sites[n];
            if let Some((label, tree, _)) = self.rng.choice(&site.labels) {
                tree.must_be_at(&site.mnt.join(format!("@@{label}")), &self.clones);
            }
        }
    }

    fn end(&mut self) {
        for n in 0..self.sites.len() {
            self.sync(n);
            let site = &self.sites[n];
            for (label, tree, _) in &site.labels {
                tree.must_be_at(&site.mnt.join(format!("@@{label}")), &self.clones);
            }
        }
        for n in 0..self.sites.len() {
            let site = &self.sites[n];
            if site.port.is_some() {
                self.darner(&["serve", text(&site.mnt), "--stop"]);
            }
            if matches!(site.follows, Some((_, Way::Path | Way::Tcp))) {
                self.darner(&["mirror", "pause", text(&site.store)]);
            }
            self.unmount(n);
            for command in ["check", "rebuild", "check"] {
                self.darner(&[command, text(&site.store)]);
            }
            self.mount(n);
            self.compare(n);
            self.unmount(n);
        }
    }
}

fn live(seed: u64, steps: usize) {
    let mut life = Life::begin(seed);
    for step in 1..=steps {
        life.step = step;
        life.any_step();
        life.compare_all();
    }
    life.end();
    println!("seed {seed}: {} stores", life.sites.len());
}

#[test]
fn stores_that_follow_and_take_turns_in_any_order_lose_nothing() {
    each_seed("DARNER_TURNS_SEED", 8, |seed| live(seed, if long() { 150 } else { 60 }));
}
