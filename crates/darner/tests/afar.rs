//! Mirrors on other machines: two daemons and TCP between them, through a proxy that cuts.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{World, eventually, free_port, rot};
use serde_json::Value;

/// Passes bytes on, and while it `cuts`, each connection only so many of them.
struct Proxy {
    port: u16,
    cuts: Arc<AtomicBool>,
}

impl Proxy {
    fn new(to: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, cuts) = (listener.local_addr().unwrap().port(), Arc::new(AtomicBool::new(false)));
        let cutting = cuts.clone();
        thread::spawn(move || {
            let mut rng = fastrand::Rng::with_seed(7);
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(("127.0.0.1", to)) else { continue };
                for (from, into) in [(&near, &far), (&far, &near)] {
                    let (from, into) = (from.try_clone().unwrap(), into.try_clone().unwrap());
                    let bits = rng.u32(12..22);
                    let (room, cutting) = (rng.usize(..1 << bits), cutting.clone());
                    thread::spawn(move || pass(from, into, room, &cutting));
                }
            }
        });
        Proxy { port, cuts }
    }
}

fn pass(mut from: TcpStream, mut into: TcpStream, mut room: usize, cuts: &AtomicBool) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        let cut = cuts.load(Ordering::Relaxed) && n > room;
        let n = if cut { room } else { n };
        if into.write_all(&buffer[..n]).is_err() || cut {
            break;
        }
        room = room.saturating_sub(n);
    }
    let _ = (from.shutdown(Shutdown::Both), into.shutdown(Shutdown::Both));
}

fn random(rng: &mut fastrand::Rng, len: usize) -> Vec<u8> {
    (0..len).map(|_| rng.u8(..)).collect()
}

/// A command's output, whether it succeeds or not.
fn said(args: &[&str]) -> (bool, String) {
    let out = Command::new("timeout").args(["60", common::DARNER]).args(args).output().unwrap();
    (out.status.success(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
}

#[track_caller]
fn refused(args: &[&str], because: &str) -> String {
    let (done, said) = said(args);
    assert!(!done && said.contains(because), "darner {args:?}: {said}");
    said
}

/// A source that listens.
struct Far {
    w: World,
    port: u16,
}

impl Far {
    fn new() -> Option<Far> {
        let far = Far { w: World::new()?, port: free_port() };
        far.serve(&["--listen", &format!("127.0.0.1:{}", far.port)]);
        Some(far)
    }

    fn serve(&self, more: &[&str]) -> String {
        let mut args = vec!["serve", self.w.store.to_str().unwrap()];
        args.extend(more);
        self.w.darner(&args).trim().to_string()
    }

    fn dir(&self, name: &str) -> String {
        self.w.dir.join(name).to_str().unwrap().to_string()
    }

    fn own_line(&self, store: &str) -> Value {
        let lines: Value = serde_json::from_str(&self.w.darner(&["mirror", "list", "--json", store])).unwrap();
        lines.as_array().unwrap().iter().find(|line| line["name"] == "").unwrap().clone()
    }

    fn kill(&self, store: &Path) {
        let status = self.w.darner(&["status", "--json", store.to_str().unwrap()]);
        let pid = serde_json::from_str::<Value>(&status).unwrap()["daemon_pid"].as_i64().unwrap() as i32;
        // SAFETY: a plain system call.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
    }
}

#[test]
fn a_store_on_another_machine_follows_over_links_that_are_cut_at_any_byte_and_daemons_that_are_killed() {
    let Some(f) = Far::new() else { return };
    let mut rng = fastrand::Rng::with_seed(1);
    fs::write(f.w.path("first"), random(&mut rng, 5 << 20)).unwrap();
    let proxy = Proxy::new(f.port);
    let ticket = f.serve(&["--ticket"]);
    let (store, copy) = (f.dir("far store"), PathBuf::from(f.dir("copy")));
    f.w.darner(&["mirror", "follow", &store, &format!("darner://localhost:{}", proxy.port), "--ticket", &ticket]);
    proxy.cuts.store(true, Ordering::Relaxed);
    fs::create_dir(&copy).unwrap();
    f.w.darner(&["mount", &store, copy.to_str().unwrap()]);
    for n in 0..6u8 {
        let now = random(&mut rng, 2 << 20);
        fs::write(f.w.path("changing"), &now).unwrap();
        fs::write(f.w.path(&format!("file {n}")), &now[..1000]).unwrap();
        match n % 3 {
            1 => f.kill(&f.w.store),
            2 => f.kill(Path::new(&store)),
            _ => {}
        }
        eventually("it is there", || {
            said(&["mirror", "sync", &store]);
            fs::read(copy.join("changing")).is_ok_and(|there| there == now)
        });
    }
    proxy.cuts.store(false, Ordering::Relaxed);
    f.w.darner(&["mirror", "sync", "--wait", &store]);
    // (What the kernel was not told of by a daemon that was killed, it learns a second later.)
    eventually("both are the same", || said(&["diff", f.w.mnt.to_str().unwrap(), copy.to_str().unwrap()]).0);
    let line = f.own_line(&store);
    assert_eq!(line["state"], "follows");
    assert!(line["lag_seconds"].as_f64().unwrap() < 2.0, "{line}");
    assert!(line["source"].as_str().unwrap().starts_with("darner://localhost:"));
    // Neither needs a mount.
    fs::write(f.w.path("last"), "words").unwrap();
    f.w.unmount();
    f.w.darner(&["unmount", copy.to_str().unwrap()]);
    f.w.darner(&["mirror", "sync", "--wait", &store]);
    f.w.darner(&["mirror", "promote", &store]);
    f.w.darner(&["check", &store]);
    f.w.darner(&["mount", &store, copy.to_str().unwrap()]);
    assert_eq!(fs::read(copy.join("last")).unwrap(), b"words");
    f.w.darner(&["unmount", copy.to_str().unwrap()]);
    assert!(f.serve(&["--stop"]).contains("listens    no"));
    f.w.darner(&["check", f.w.store.to_str().unwrap()]);
}

#[test]
fn who_is_no_darner_is_told_as_such_and_an_address_that_is_taken_leaves_the_one_before() {
    let Some(f) = Far::new() else { return };
    let web = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = web.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut client in web.incoming().flatten() {
            let _ = client.read(&mut [0; 4096]);
            let _ = client.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let url = format!("darner://127.0.0.1:{port}");
    refused(&["mirror", "follow", &f.dir("x"), &url, "--key", &"ab".repeat(32)], "what listens there is no darner");
    let taken = format!("127.0.0.1:{port}");
    refused(&["serve", f.w.mnt.to_str().unwrap(), "--listen", &taken], "can't listen at");
    let report: Value = serde_json::from_str(&f.serve(&["--json"])).unwrap();
    assert_eq!(report["listens"], true, "{report}");
    assert!(report["address"].as_str().unwrap().ends_with(&format!(":{}", f.port)), "{report}");
    // Its own port is not taken by others.
    for address in ["0.0.0.0", "127.0.0.2", "127.0.0.1"] {
        let at = format!("{address}:{}", f.port);
        let report: Value = serde_json::from_str(&f.serve(&["--listen", &at, "--json"])).unwrap();
        assert_eq!((&report["listens"], &report["address"]), (&true.into(), &at.into()));
    }
}

#[test]
fn nobody_is_admitted_but_by_key_or_ticket_and_that_lasts_until_it_is_taken_back() {
    let Some(f) = Far::new() else { return };
    let mnt = f.w.mnt.to_str().unwrap();
    f.w.darner(&["fileset", "create", mnt, "docs"]);
    fs::write(f.w.path("docs/a"), "one").unwrap();
    let own: Value = serde_json::from_str(&f.serve(&["--json"])).unwrap();
    assert_eq!((own["listens"].as_bool(), own["peers"].as_array().map(Vec::len)), (Some(true), Some(0)));
    let key = own["key"].as_str().unwrap();
    let (store, url) = (f.dir("far"), format!("darner://127.0.0.1:{}/docs", f.port));
    refused(&["mirror", "follow", &store, &url], "whom to expect");
    refused(&["mirror", "follow", &f.dir("x1"), &url, "--key", &"ab".repeat(32)], "does not have the key");
    let told = refused(&["mirror", "follow", &store, &url, "--key", key], "nobody here knows the key");
    let spent = f.serve(&["--ticket"]);
    let late = f.serve(&["--ticket", "--for", "0"]);
    refused(&["mirror", "follow", &f.dir("x2"), &url, "--ticket", &late], "expired");
    f.w.darner(&["mirror", "follow", &f.dir("second"), &url, "--ticket", &spent]);
    refused(&["mirror", "follow", &f.dir("x3"), &url, "--ticket", &spent], "used");
    let there = ["x1", "x2", "x3", "far"].map(|name| Path::new(&f.dir(name)).exists());
    assert_eq!(there, [false, false, false, true], "only what somebody there is to admit by its key was made");
    // By its key, which it keeps.
    let own_key = told.split("its key ").nth(1).unwrap().split(' ').next().unwrap();
    f.serve(&["--admit", own_key]);
    f.w.darner(&["mirror", "follow", &store, &url, "--key", key]);
    // (Once more is nothing new.)
    f.w.darner(&["mirror", "follow", &store, &url, "--key", key]);
    f.w.darner(&["mirror", "sync", "--wait", &store]);
    // Taken back, for a link that is open too.
    f.serve(&["--remove", own_key]);
    refused(&["mirror", "sync", "--wait", &store], "nobody here knows the key");
    assert_eq!(f.own_line(&store)["state"], "waits");
    // What is known outlives the daemon; `admit` too.
    f.serve(&["--admit", own_key]);
    f.w.unmount();
    f.kill(&f.w.store);
    f.w.mount();
    fs::write(f.w.path("docs/a"), "two").unwrap();
    f.w.darner(&["mirror", "sync", "--wait", &store]);
    f.w.darner(&["mirror", "sync", "--wait", &f.dir("second")]);
    let copy = PathBuf::from(f.dir("copy"));
    fs::create_dir(&copy).unwrap();
    f.w.darner(&["mount", &store, copy.to_str().unwrap()]);
    assert_eq!(fs::read(copy.join("a")).unwrap(), b"two");
    f.w.darner(&["unmount", copy.to_str().unwrap()]);
    let now: Value = serde_json::from_str(&f.serve(&["--json"])).unwrap();
    assert_eq!(now["peers"].as_array().unwrap().len(), 2);
    assert!(now["peers"].as_array().unwrap().iter().all(|p| p["asked_seconds_ago"].as_f64().is_some()));
    // Whoever follows learns that nobody listens, and finds those who listen again.
    f.serve(&["--stop"]);
    refused(&["mirror", "sync", "--wait", &store], "nobody listens there");
    f.serve(&["--listen", &format!("127.0.0.1:{}", f.port)]);
    fs::write(f.w.path("docs/a"), "three").unwrap();
    f.w.darner(&["mirror", "sync", "--wait", &store]);
    assert_eq!(f.own_line(&store)["state"], "follows");
    f.serve(&["--stop"]);
}

#[test]
fn a_source_gets_back_what_it_lost_from_those_who_follow_from_afar() {
    let Some(f) = Far::new() else { return };
    let mut rng = fastrand::Rng::with_seed(2);
    let victim = random(&mut rng, 300_000);
    fs::write(f.w.path("victim"), &victim).unwrap();
    let (store, url) = (f.dir("far"), format!("darner://127.0.0.1:{}", f.port));
    f.w.darner(&["mirror", "follow", &store, &url, "--ticket", &f.serve(&["--ticket"])]);
    f.w.darner(&["mirror", "sync", "--wait", &store]);
    f.w.unmount();
    f.serve(&["--stop"]);
    for at in [20_000, 100_000, 200_000] {
        rot(&f.w.store, &victim[at..at + 16]);
    }
    f.w.mount();
    f.serve(&["--listen", &format!("127.0.0.1:{}", f.port)]);
    f.w.darner(&["mirror", "sync", "--wait", &store]);
    let part = |at: usize| {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; 1000];
        fs::File::open(f.w.path("victim")).unwrap().read_exact_at(&mut bytes, at as u64).unwrap();
        bytes
    };
    // By reading it; by sending it, because its chunk has changed; by a scrub.
    assert!(part(20_000) == victim[20_000..21_000]);
    let changed = fs::OpenOptions::new().write(true).open(f.w.path("victim")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&changed, b"changed", 110_000).unwrap();
    drop(changed);
    f.w.darner(&["mirror", "sync", "--wait", &store]);
    assert!(part(100_000) == victim[100_000..101_000]);
    let report: Value = serde_json::from_str(&f.w.darner(&["scrub", "--json", f.w.mnt.to_str().unwrap()])).unwrap();
    assert_eq!((report["damaged"].as_u64(), report["healed"].as_u64()), (Some(0), Some(1)), "{report}");
    f.serve(&["--stop"]);
    f.w.darner(&["mirror", "pause", &store]);
    f.w.unmount();
    f.w.darner(&["check", f.w.store.to_str().unwrap()]);
    f.w.darner(&["check", &store]);
}

#[test]
fn who_is_admitted_for_a_fileset_follows_that_and_sees_no_other() {
    let Some(f) = Far::new() else { return };
    let mnt = f.w.mnt.to_str().unwrap();
    for name in ["docs", "secret"] {
        f.w.darner(&["fileset", "create", mnt, name]);
        fs::write(f.w.path(&format!("{name}/a")), name).unwrap();
    }
    let url = |fileset: &str| format!("darner://127.0.0.1:{}/{fileset}", f.port);
    refused(&["serve", "--ticket", "--fileset", "nothing", mnt], "no fileset");
    let ticket = f.serve(&["--ticket", "--fileset", "docs"]);
    let store = f.dir("far");
    let told = refused(&["mirror", "follow", &store, &url("secret"), "--ticket", &ticket], "no such fileset");
    let key: Value = serde_json::from_str(&f.serve(&["--json"])).unwrap();
    assert_eq!(key["peers"][0]["filesets"], serde_json::json!(["docs"]), "it is known by now: {told}");
    assert!(told.contains("\"secret\"") && told.contains("is admitted there"), "{told}");
    let (own, key) = (key["peers"][0]["key"].as_str().unwrap(), key["key"].as_str().unwrap());
    refused(&["mirror", "follow", &store, &url("main"), "--key", key], "no such fileset");
    f.w.darner(&["mirror", "follow", &store, &url("docs"), "--key", key]);
    f.w.darner(&["mirror", "sync", "--wait", &store]);
    f.w.darner(&["mirror", "verify", "--data", &store]);
    // It outlives the daemon, and can be widened and taken back.
    f.w.unmount();
    f.kill(&f.w.store);
    f.w.mount();
    fs::write(f.w.path("docs/a"), "two").unwrap();
    f.w.darner(&["mirror", "sync", "--wait", &store]);
    f.serve(&["--admit", own, "--fileset", "secret"]);
    let waits = || f.own_line(&store)["last_error"].as_str().is_some_and(|e| e.contains("no such fileset"));
    eventually("it is hidden", waits);
    f.serve(&["--admit", own]);
    f.w.darner(&["mirror", "sync", "--wait", &store]);
    f.w.darner(&["mirror", "pause", &store]);
    f.serve(&["--stop"]);
}

#[test]
fn who_waits_for_a_fileset_that_is_gone_or_not_for_its_key_is_told_within_seconds() {
    let Some(f) = Far::new() else { return };
    let mnt = f.w.mnt.to_str().unwrap();
    f.w.darner(&["fileset", "create", mnt, "docs"]);
    f.w.darner(&["fileset", "create", mnt, "other"]);
    let (store, url) = (f.dir("far"), format!("darner://127.0.0.1:{}/docs", f.port));
    f.w.darner(&["mirror", "follow", &store, &url, "--ticket", &f.serve(&["--ticket"])]);
    f.w.darner(&["mirror", "sync", "--wait", &store]);
    let served: Value = serde_json::from_str(&f.serve(&["--json"])).unwrap();
    let key = served["peers"][0]["key"].as_str().unwrap();
    let tells = || {
        let start = Instant::now();
        refused(
            &["mirror", "sync", "--wait", &store],
            "there is no such fileset (any more), or it is not for this key",
        );
        assert!(start.elapsed() < Duration::from_secs(12), "it took {:?}", start.elapsed());
    };
    f.serve(&["--admit", key, "--fileset", "other"]);
    tells();
    f.serve(&["--admit", key]);
    f.w.darner(&["mirror", "sync", "--wait", &store]);
    f.w.darner(&["fileset", "remove", mnt, "docs", "--force"]);
    tells();
    f.w.darner(&["mirror", "pause", &store]);
    f.serve(&["--stop"]);
}

#[test]
fn who_can_not_be_followed_is_told_with_what_to_do() {
    let Some(f) = Far::new() else { return };
    let url = format!("darner://127.0.0.1:{}", f.port);
    let other = "ab".repeat(32);
    let told = refused(&["mirror", "follow", &f.dir("other"), &url, "--key", &other], "does not have the key");
    assert!(told.contains(&other) && told.contains("darner serve MNT"), "{told}");
    let spent = f.serve(&["--ticket", "--for", "0"]);
    refused(&["mirror", "follow", &f.dir("late"), &url, "--ticket", &spent], "prints a new ticket");
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("darner://{nobody}");
    let told = refused(&["mirror", "follow", &f.dir("nobody"), &url, "--key", &other], "nobody listens there");
    assert!(told.contains(&nobody.to_string()) && told.contains("--listen"), "{told}");
    f.serve(&["--stop"]);
}

#[test]
fn a_store_that_finds_nobody_to_follow_leaves_nothing_behind_and_can_try_again() {
    let Some(f) = Far::new() else { return };
    fs::write(f.w.path("a"), "words").unwrap();
    let ticket = f.serve(&["--ticket"]);
    let url = |port: u16| format!("darner://127.0.0.1:{port}");
    let (new, empty) = (f.dir("new"), f.dir("empty"));
    fs::create_dir(&empty).unwrap();
    for store in [&new, &empty] {
        refused(&["mirror", "follow", store, &url(free_port()), "--ticket", &ticket], "nobody listens there");
    }
    assert!(!Path::new(&new).exists() && fs::read_dir(&empty).unwrap().next().is_none());
    // One that takes the connection and drops it has not seen the ticket.
    let rude = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = rude.local_addr().unwrap().port();
    thread::spawn(move || rude.incoming().for_each(drop));
    let told = refused(&["mirror", "follow", &new, &url(port), "--ticket", &ticket], "127.0.0.1");
    assert!(!told.contains("--key") && !Path::new(&new).exists(), "{told}");
    // A fileset that is not there is noticed when the ticket is used up: the store that it let in stays, and says so.
    let other = format!("{}/other", url(f.port));
    let told = refused(&["mirror", "follow", &empty, &other, "--ticket", &ticket], "no such fileset");
    assert!(told.contains("was made") && told.contains("another FILESET can be named"), "{told}");
    let own: Value = serde_json::from_str(&f.serve(&["--json"])).unwrap();
    f.w.darner(&["mirror", "follow", &empty, &url(f.port), "--key", own["key"].as_str().unwrap()]);
    f.w.darner(&["mirror", "follow", &new, &url(f.port), "--ticket", &f.serve(&["--ticket"])]);
    for store in [&new, &empty] {
        f.w.darner(&["mirror", "sync", "--wait", store]);
        f.w.darner(&["mirror", "pause", store]);
    }
    f.serve(&["--stop"]);
}

#[test]
fn who_waits_for_a_pull_is_told_soon_that_the_source_can_not_be_reached_and_it_follows_when_it_can() {
    let Some(f) = Far::new() else { return };
    let store = f.dir("far");
    let url = format!("darner://127.0.0.1:{}", f.port);
    f.w.darner(&["mirror", "follow", &store, &url, "--ticket", &f.serve(&["--ticket"])]);
    f.w.darner(&["mirror", "sync", "--wait", &store]);
    let tells = |why: &str, within: u64| {
        let start = Instant::now();
        refused(&["mirror", "sync", "--wait", &store], why);
        assert!(start.elapsed() < Duration::from_secs(within), "it took {:?} to say {why:?}", start.elapsed());
    };
    f.serve(&["--stop"]);
    f.w.unmount();
    tells("nobody listens there", 15);
    // One that takes connections, and says nothing.
    let silent = TcpListener::bind(("127.0.0.1", f.port)).unwrap();
    tells("nothing came from there", 30);
    assert_eq!(f.own_line(&store)["state"], "waits");
    drop(silent);
    f.w.mount();
    fs::write(f.w.path("a"), "words").unwrap();
    f.serve(&["--listen", &format!("127.0.0.1:{}", f.port)]);
    f.w.darner(&["mirror", "sync", "--wait", &store]);
    assert_eq!(f.own_line(&store)["state"], "follows");
    // One that was there, and is stopped.
    let local = f.dir("near");
    f.w.darner(&["mirror", "add", f.w.mnt.to_str().unwrap(), "near", &local]);
    f.w.darner(&["mirror", "sync", "--wait", f.w.mnt.to_str().unwrap(), "near"]);
    let pid = f.w.sh_outside("$DARNER status $MNT --json | grep daemon_pid | tr -dc 0-9");
    f.w.sh_outside(&format!("kill -STOP {pid}"));
    tells("it has not come so far", 40);
    assert_eq!(f.own_line(&store)["state"], "waits");
    refused(&["mirror", "sync", "--wait", &local], "it has not come so far");
    f.w.sh_outside(&format!("kill -CONT {pid}"));
    fs::write(f.w.path("a"), "more").unwrap();
    f.w.darner(&["mirror", "sync", "--wait", &store]);
    f.w.darner(&["mirror", "sync", "--wait", &local]);
    assert_eq!(f.own_line(&store)["state"], "follows");
    f.w.darner(&["mirror", "pause", &store]);
    f.serve(&["--stop"]);
}

#[test]
fn a_mirror_that_has_everything_asks_for_nothing_until_it_is_told_and_knows_how_long_the_source_has_been_silent() {
    let Some(f) = Far::new() else { return };
    let (store, url) = (f.dir("far"), format!("darner://127.0.0.1:{}", f.port));
    f.w.darner(&["mirror", "follow", &store, &url, "--ticket", &f.serve(&["--ticket"])]);
    f.w.darner(&["mirror", "sync", "--wait", &store]);
    let asked = || {
        let report: Value = serde_json::from_str(&f.serve(&["--json"])).unwrap();
        report["peers"][0]["asked_seconds_ago"].as_f64().unwrap()
    };
    let lag = || f.own_line(&store)["lag_seconds"].as_f64().unwrap();
    eventually("nothing is asked for", || asked() > 8.0);
    assert!(lag() < 7.0, "it knows that there is nothing new");
    let copy = PathBuf::from(f.dir("copy"));
    fs::create_dir(&copy).unwrap();
    f.w.darner(&["mount", &store, copy.to_str().unwrap()]);
    fs::write(f.w.path("new"), "words").unwrap();
    eventually("it is told of what is new", || fs::read(copy.join("new")).is_ok_and(|read| read == b"words"));
    f.w.darner(&["unmount", copy.to_str().unwrap()]);
    let pid = f.w.sh_outside("$DARNER status $MNT --json | grep daemon_pid | tr -dc 0-9");
    f.w.sh_outside(&format!("kill -STOP {pid}"));
    eventually("the source is known to be silent", || lag() > 7.0);
    eventually("it waits for the source", || f.own_line(&store)["state"] == "waits");
    f.w.sh_outside(&format!("kill -CONT {pid}"));
    eventually("it goes on", || f.own_line(&store)["state"] == "follows");
    let is_refused = || f.own_line(&store)["last_error"].as_str().is_some_and(|e| e.contains("nobody"));
    assert!(!is_refused());
    f.serve(&["--stop"]);
    eventually("it learns at once that nobody serves it any more", is_refused);
}

#[test]
fn a_mirror_learns_its_source_s_new_address_by_the_line_that_made_it_and_takes_nobody_else_for_it() {
    let Some(f) = Far::new() else { return };
    let store = f.dir("far");
    let url = |port: u16| format!("darner://127.0.0.1:{port}");
    f.w.darner(&["mirror", "follow", &store, &url(f.port), "--ticket", &f.serve(&["--ticket"])]);
    f.w.darner(&["mirror", "sync", "--wait", &store]);
    let moves = |words: &str| {
        let port = free_port();
        f.serve(&["--listen", &format!("127.0.0.1:{port}")]);
        fs::write(f.w.path("a"), words).unwrap();
        port
    };
    // Its daemon waits; the key is known.
    let port = moves("words");
    f.w.darner(&["mirror", "follow", &store, &url(port)]);
    f.w.darner(&["mirror", "sync", "--wait", &store]);
    let source = f.own_line(&store)["source"].as_str().unwrap().to_string();
    assert!(source.starts_with(&url(port)), "{source}");
    // Paused it has none; and it is to pull again.
    f.w.darner(&["mirror", "pause", &store]);
    let port = moves("other words");
    f.w.darner(&["mirror", "follow", &store, &url(port), "--ticket", &f.serve(&["--ticket"])]);
    f.w.darner(&["mirror", "sync", "--wait", &store]);
    // And mounted.
    let copy = PathBuf::from(f.dir("copy"));
    fs::create_dir(&copy).unwrap();
    f.w.darner(&["mount", &store, copy.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(copy.join("a")).unwrap(), "other words");
    let port = moves("more words");
    f.w.darner(&["mirror", "follow", &store, &url(port)]);
    f.w.darner(&["mirror", "sync", "--wait", &store]);
    eventually("it is there", || fs::read_to_string(copy.join("a")).is_ok_and(|there| there == "more words"));
    // Another store is none of its business.
    let other = Far::new().unwrap();
    let ticket = other.serve(&["--ticket"]);
    refused(&["mirror", "follow", &store, &url(other.port), "--ticket", &ticket], "of another store than what");
    refused(&["mirror", "follow", &store, &url(other.port)], "does not have the key");
    let nowhere = url(free_port());
    refused(&["mirror", "follow", &store, &nowhere], "nobody listens there");
    fs::write(f.w.path("a"), "last words").unwrap();
    f.w.darner(&["mirror", "sync", "--wait", &store]);
    f.w.darner(&["unmount", copy.to_str().unwrap()]);
    f.w.darner(&["mirror", "pause", &store]);
    f.serve(&["--stop"]);
    other.serve(&["--stop"]);
}

#[test]
fn an_old_source_that_serves_without_a_mount_returns_and_serves_again() {
    let Some(f) = Far::new() else { return };
    fs::write(f.w.path("a"), "words").unwrap();
    let (mnt, old, new) = (f.w.mnt.to_str().unwrap(), f.w.store.to_str().unwrap(), f.dir("new"));
    f.w.darner(&["mirror", "add", mnt, "copy", &new]);
    f.w.darner(&["mirror", "sync", "--wait", mnt, "copy"]);
    f.w.darner(&["mirror", "promote", &new]);
    let copy = PathBuf::from(f.dir("copy"));
    fs::create_dir(&copy).unwrap();
    f.w.darner(&["mount", &new, copy.to_str().unwrap()]);
    refused(&["mirror", "return", old, &new], &format!("is mounted at {mnt}: "));
    f.w.unmount();
    let serves = || serde_json::from_str::<Value>(&f.serve(&["--json"])).unwrap()["listens"] == true;
    // What fails leaves it as it was.
    let nobody = format!("darner://127.0.0.1:{}", free_port());
    refused(&["mirror", "return", old, &nobody, "--key", &"ab".repeat(32)], "nobody listens there");
    eventually("it serves as before", serves);
    f.w.darner(&["mirror", "return", old, &new]);
    eventually("it serves again", serves);
    fs::write(copy.join("a"), "more").unwrap();
    f.w.darner(&["mirror", "sync", "--wait", old]);
    f.w.mount();
    assert_eq!(fs::read(f.w.path("a")).unwrap(), b"more");
    f.serve(&["--stop"]);
    f.w.darner(&["mirror", "pause", old]);
    f.w.darner(&["unmount", copy.to_str().unwrap()]);
}

#[test]
fn an_old_source_follows_its_promoted_mirror_on_another_machine() {
    let Some(f) = Far::new() else { return };
    fs::write(f.w.path("both"), "one").unwrap();
    let (store, url) = (f.dir("far"), format!("darner://127.0.0.1:{}", f.port));
    f.w.darner(&["mirror", "follow", &store, &url, "--ticket", &f.serve(&["--ticket"])]);
    f.w.darner(&["mirror", "sync", "--wait", &store]);
    fs::write(f.w.path("alone"), "words").unwrap();
    f.w.unmount();
    f.serve(&["--stop"]);
    f.w.darner(&["mirror", "pause", &store]);
    f.w.darner(&["mirror", "promote", &store]);
    let (copy, port) = (PathBuf::from(f.dir("copy")), free_port());
    fs::create_dir(&copy).unwrap();
    f.w.darner(&["mount", &store, copy.to_str().unwrap()]);
    fs::write(copy.join("both"), "two").unwrap();
    f.w.darner(&["serve", &store, "--listen", &format!("127.0.0.1:{port}")]);
    let (old, url) = (f.w.store.to_str().unwrap(), format!("darner://127.0.0.1:{port}"));
    refused(&["mirror", "return", old, &url], "whom to expect");
    let ticket = f.w.darner(&["serve", &store, "--ticket"]);
    f.w.darner(&["mirror", "return", old, &url, "--ticket", ticket.trim()]);
    f.w.darner(&["mirror", "sync", "--wait", old]);
    f.w.mount();
    assert_eq!(fs::read(f.w.path("both")).unwrap(), b"two");
    fs::write(copy.join("both"), "three").unwrap();
    eventually("it follows", || fs::read(f.w.path("both")).is_ok_and(|both| both == b"three"));
    f.w.darner(&["mirror", "pause", old]);
    f.w.unmount();
    f.w.darner(&["check", old]);
    f.w.darner(&["serve", &store, "--stop"]);
    f.w.darner(&["unmount", copy.to_str().unwrap()]);
    f.w.darner(&["check", &store]);
}

#[test]
fn an_old_source_follows_the_promoted_mirror_of_its_mirror() {
    let Some(f) = Far::new() else { return };
    fs::write(f.w.path("both"), "one").unwrap();
    let (server, site) = (f.dir("server"), f.dir("site"));
    let listens = |store: &str| {
        let port = free_port();
        f.w.darner(&["serve", store, "--listen", &format!("127.0.0.1:{port}")]);
        let ticket = f.w.darner(&["serve", store, "--ticket"]).trim().to_string();
        (format!("darner://127.0.0.1:{port}"), ticket)
    };
    let url = format!("darner://127.0.0.1:{}", f.port);
    f.w.darner(&["mirror", "follow", &server, &url, "--ticket", &f.serve(&["--ticket"])]);
    f.w.darner(&["mirror", "sync", "--wait", &server]);
    let (url, ticket) = listens(&server);
    f.w.darner(&["mirror", "follow", &site, &url, "--ticket", &ticket]);
    f.w.darner(&["mirror", "sync", "--wait", &site]);
    f.w.darner(&["mirror", "pause", &site]);
    // The server has more than the second site when both are lost.
    fs::write(f.w.path("both"), "nearer").unwrap();
    f.w.darner(&["mirror", "sync", "--wait", &server]);
    fs::write(f.w.path("alone"), "words").unwrap();
    f.w.unmount();
    f.serve(&["--stop"]);
    f.w.darner(&["serve", &server, "--stop"]);
    f.w.darner(&["mirror", "pause", &server]);
    f.w.darner(&["mirror", "promote", &site]);
    let copy = PathBuf::from(f.dir("copy"));
    fs::create_dir(&copy).unwrap();
    f.w.darner(&["mount", &site, copy.to_str().unwrap()]);
    assert_eq!(fs::read(copy.join("both")).unwrap(), b"one");
    fs::write(copy.join("new"), "two").unwrap();
    let (old, (url, ticket)) = (f.w.store.to_str().unwrap(), listens(&site));
    let told = f.w.darner(&["mirror", "return", old, &url, "--ticket", &ticket]);
    let name = told.split([' ', ':']).find(|word| word.starts_with("before-return-")).unwrap().to_string();
    f.w.darner(&["mirror", "sync", "--wait", old]);
    f.w.mount();
    let names = |dir: &Path| {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!((names(&f.w.mnt), fs::read(f.w.path("both")).unwrap()), (names(&copy), b"one".to_vec()));
    let alone = PathBuf::from(f.dir("alone"));
    fs::create_dir(&alone).unwrap();
    f.w.darner(&["mount", "--fileset", &name, old, alone.to_str().unwrap()]);
    assert_eq!(
        (names(&alone), fs::read(alone.join("both")).unwrap()),
        (vec!["alone".into(), "both".into()], b"nearer".to_vec())
    );
    f.w.darner(&["unmount", alone.to_str().unwrap()]);
    // So does the one between, which is not told apart from any other old source.
    f.w.darner(&["mirror", "promote", &server]);
    let ticket = f.w.darner(&["serve", &site, "--ticket"]);
    f.w.darner(&["mirror", "return", &server, &url, "--ticket", ticket.trim()]);
    f.w.darner(&["mirror", "sync", "--wait", &server]);
    fs::write(copy.join("both"), "three").unwrap();
    eventually("it follows", || fs::read(f.w.path("both")).is_ok_and(|both| both == b"three"));
    for store in [old, &server] {
        f.w.darner(&["mirror", "pause", store]);
    }
    f.w.unmount();
    f.w.darner(&["serve", &site, "--stop"]);
    f.w.darner(&["unmount", copy.to_str().unwrap()]);
    for store in [old, &server, &site] {
        f.w.darner(&["check", store]);
    }
}
