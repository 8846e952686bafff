//! A bucket as a volume, through the real program, the real kernel, and a real server of the S3 protocol, which is a process of its own:
//! stopped, killed and started again while the filesystem is in use.

mod common;
#[path = "common/s3.rs"]
mod s3;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{World, eventually};
use s3::{Server, run, sh};
use serde_json::Value;

fn bucket(w: &World) -> Value {
    let all = w.sh_outside("$DARNER volume list $MNT --json");
    let all: Value = serde_json::from_str(&all).unwrap();
    all.as_array().unwrap().iter().find(|v| v["kind"] == "bucket").expect("there is one").clone()
}

/// Files, of which all but the last few are in a bucket only.
fn with_cold(w: &World, server: &Server) -> u64 {
    sh(w, server, "$DARNER mount --create --log daemon.log store $MNT; $DARNER volume add $MNT s3://bucket/some/where");
    w.sh("mkdir a; for i in $(seq 1 24); do head -c 1M /dev/urandom > a/$i; done; md5sum a/* > $DIR/sums; sync -f .");
    let id = bucket(w)["id"].as_u64().unwrap();
    w.sh_outside(&format!("$DARNER volume push $MNT; $DARNER volume move $MNT --from 0 --to {id}"));
    w.sh("for i in 1 2 3; do head -c 1M /dev/urandom > hot$i; done; md5sum hot* > $DIR/hot; sync hot*");
    let b = bucket(w);
    assert!(b["bucket"]["only_there_bytes"].as_u64().unwrap() > 24 << 20, "{b}");
    id
}

#[test]
fn what_is_in_a_bucket_reads_as_it_did_and_comes_back_when_the_bucket_leaves() {
    let Some(w) = World::unmounted() else { return };
    std::fs::create_dir(&w.mnt).unwrap();
    let server = Server::new(&w.dir);
    let id = with_cold(&w, &server);
    let local = w.sh_outside("du -sm --apparent-size store | cut -f1").parse::<u64>().unwrap();
    // A scrub says what it leaves to the bucket, and reads that too if it is told to; it stays there.
    let scrub = |args: &str| -> Value {
        serde_json::from_str(&w.sh_outside(&format!("$DARNER scrub $MNT {args} --json"))).unwrap()
    };
    let (without, with) = (scrub(""), scrub("--bucket"));
    assert!(without["left_to_the_bucket"].as_u64().unwrap() > 24 << 20, "{without}");
    assert_eq!((&with["left_to_the_bucket"], &with["damaged"]), (&Value::from(0), &Value::from(0)), "{with}");
    assert!(with["bytes"].as_u64().unwrap() > without["bytes"].as_u64().unwrap() + (24 << 20), "{without} {with}");
    assert!(w.sh_outside("$DARNER scrub $MNT").contains("in the bucket only, and were not read: --bucket"));
    assert!(bucket(&w)["bucket"]["only_there_bytes"].as_u64().unwrap() > 24 << 20);
    // Whoever looks at the past sees what is in the bucket too.
    let then = w.sh_outside("$DARNER status $MNT --json | grep -m1 '\"tid\"' | cut -d'\"' -f4");
    w.sh("rm a/1; echo other > a/2");
    w.sh(&format!("md5sum -c --quiet <(sed 's, a, a@@{then},' $DIR/sums)"));
    // The daemon is killed; the next one reaches the bucket as this one did, though nothing of how is on any disk.
    w.sh_outside("kill -9 $($DARNER status $MNT --json | grep daemon_pid | tr -dc 0-9)");
    w.sh(&format!("echo 3 > /proc/sys/vm/drop_caches; md5sum -c --quiet <(sed 's, a, a@@{then},' $DIR/sums)"));
    w.sh_outside("sync -f $MNT; ! grep -rqa a-very-secret-key store; ! grep -rqa an-access-key store server");
    w.sh_outside("$DARNER unmount $MNT");
    sh(&w, &server, "$DARNER mount --log daemon.log store $MNT");
    w.sh(&format!("md5sum -c --quiet $DIR/hot; md5sum -c --quiet <(sed 's, a, a@@{then},' $DIR/sums)"));
    let refused = run(
        &w,
        server.port,
        "$DARNER create other; mkdir m; $DARNER mount other m; $DARNER volume add m s3://bucket/some/where",
    );
    assert!(String::from_utf8_lossy(&refused.stderr).contains("holds a store already"), "{refused:?}");
    w.sh_outside("$DARNER unmount m");
    assert!(server.objects() > 0);
    w.sh_outside(&format!("$DARNER volume remove $MNT {id}"));
    assert_eq!(server.objects(), 0);
    drop(server);
    w.sh_outside("$DARNER unmount $MNT; $DARNER check store; $DARNER mount store $MNT");
    w.sh(&format!("md5sum -c --quiet $DIR/hot; md5sum -c --quiet <(sed 's, a, a@@{then},' $DIR/sums)"));
    let back = w.sh_outside("du -sm --apparent-size store | cut -f1").parse::<u64>().unwrap();
    assert!(back >= local + 20, "{local} MiB, then {back}");
    w.unmount();
}

#[test]
fn a_lost_machine_s_store_is_opened_elsewhere_from_its_bucket_and_the_old_one_is_fenced() {
    let Some(w) = World::unmounted() else { return };
    std::fs::create_dir(&w.mnt).unwrap();
    let server = Server::new(&w.dir);
    with_cold(&w, &server);
    w.sh("$DARNER snapshot . before; echo new > a/1; rm a/2; sync -f .");
    w.sh_outside("$DARNER volume push $MNT");
    w.sh("echo too late > late; sync late");
    // The machine is lost.
    w.kill();
    sh(
        &w,
        &server,
        "mv store lost; mkdir elsewhere; $DARNER mount --log daemon.log --local here s3://bucket/some/where elsewhere",
    );
    w.sh_outside(
        "cd elsewhere; md5sum -c --quiet <(sed 's, a, a@@before,' $DIR/sums); md5sum -c --quiet $DIR/hot; test $(cat a/1) = new; \
         test ! -e a/2; test ! -e late; echo more > more; sync -f .; $DARNER volume push .",
    );
    // It comes back, and finds that it was taken over; that harms nobody.
    sh(&w, &server, "$DARNER mount --log old.log lost $MNT");
    w.sh("grep -q late late; echo old > old; sync -f .");
    let said = run(&w, server.port, "$DARNER volume push $MNT");
    assert!(String::from_utf8_lossy(&said.stderr).contains("was taken over by"), "{said:?}");
    assert_eq!(bucket(&w)["state"], "fenced");
    let status = w.sh_outside("$DARNER status $MNT");
    assert!(status.contains("taken over by"), "{status}");
    w.sh_outside("$DARNER unmount $MNT; $DARNER unmount elsewhere");
    // The new place is mounted by either name; the old one only as what it is.
    sh(
        &w,
        &server,
        "$DARNER mount --local here s3://bucket/some/where elsewhere; grep -q more elsewhere/more; $DARNER unmount elsewhere",
    );
    let refused = run(&w, server.port, "$DARNER mount --local lost s3://bucket/some/where elsewhere");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("was taken over by"), "{refused:?}");
    // And once more.
    sh(&w, &server, "$DARNER mount --local third s3://bucket/some/where elsewhere");
    w.sh_outside("cd elsewhere; md5sum -c --quiet $DIR/hot; md5sum -c --quiet <(sed 's, a, a@@before,' $DIR/sums); grep -q more more");
    w.sh_outside("$DARNER unmount elsewhere; cd $DIR");
}

#[test]
fn a_copy_of_a_store_beside_it_leaves_the_bucket_alone() {
    let Some(w) = World::unmounted() else { return };
    std::fs::create_dir(&w.mnt).unwrap();
    let server = Server::new(&w.dir);
    with_cold(&w, &server);
    w.sh_outside("$DARNER volume push $MNT; $DARNER unmount $MNT; cp -a store copy; mkdir beside");
    sh(&w, &server, "$DARNER mount --log daemon.log store $MNT; $DARNER mount --log copy.log copy beside");
    w.sh("head -c 9M /dev/urandom > new; sync -f .; md5sum new > $DIR/new; $DARNER volume push .");
    w.sh_outside("head -c 9M /dev/urandom > beside/other; sync -f beside");
    // It is told at once, where it is asked for, and what the copy has here it goes on with.
    let said = run(&w, server.port, "timeout 20 $DARNER volume push beside");
    assert!(String::from_utf8_lossy(&said.stderr).contains("was taken over by"), "{said:?}");
    let status = w.sh_outside("$DARNER status beside; $DARNER volume list beside; cat beside/other > /dev/null");
    assert_eq!(status.matches("taken over by").count(), 2, "{status}");
    // An older state of it, put in its place, is as much of a copy.
    w.sh_outside("$DARNER unmount $MNT; $DARNER unmount beside; mv store newer; cp -a copy store");
    sh(&w, &server, "$DARNER mount --log old.log store $MNT; echo more > $MNT/more; sync -f $MNT");
    let said = run(&w, server.port, "timeout 20 $DARNER volume push $MNT");
    assert!(String::from_utf8_lossy(&said.stderr).contains("was taken over by"), "{said:?}");
    w.unmount();
    sh(&w, &server, "$DARNER mount --local there s3://bucket/some/where $MNT");
    w.sh("md5sum -c --quiet $DIR/new $DIR/sums; md5sum -c --quiet $DIR/hot; test ! -e other; test ! -e more");
    w.unmount();
}

#[test]
fn a_bucket_that_hangs_or_dies_fails_reads_of_what_is_there_only_and_heals() {
    let Some(w) = World::unmounted() else { return };
    std::fs::create_dir(&w.mnt).unwrap();
    let mut server = Server::new(&w.dir);
    let id = with_cold(&w, &server);
    for round in 0..2 {
        // (What was read may be in a cache, or have come back.)
        w.sh_outside(&format!("$DARNER volume move $MNT --from 0 --to {id}; $DARNER unmount $MNT"));
        sh(&w, &server, "$DARNER mount --log daemon.log store $MNT");
        w.sh("for i in 1 2 3; do head -c 1M /dev/urandom > hot$i; done; md5sum hot* > $DIR/hot");
        match round {
            0 => server.signal(libc::SIGSTOP),
            _ => server.kill(),
        }
        // Many wait for the bucket; what is here goes on.
        let cold: Vec<Child> = (1..=24)
            .map(|i| {
                let mut read = Command::new("timeout");
                read.args(["60", "cat"]).arg(w.path(&format!("a/{i}")));
                read.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
            })
            .collect();
        let mut longest = Duration::ZERO;
        let start = Instant::now();
        for i in 0..200 {
            let began = Instant::now();
            std::fs::write(w.path("written"), format!("{i}")).unwrap();
            std::fs::File::open(w.path("written")).unwrap().sync_all().unwrap();
            std::fs::metadata(w.path(&format!("no-{round}-{i}"))).unwrap_err();
            longest = longest.max(began.elapsed());
            std::thread::sleep(Duration::from_millis(5));
        }
        println!("round {round}: 200 writes with fsync in {:?}, the longest {longest:?}", start.elapsed());
        assert!(longest < Duration::from_secs(3), "{longest:?}");
        for mut read in cold {
            assert!(!read.wait().unwrap().success(), "it was answered");
        }
        println!("reads of what is in the bucket failed after {:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
        assert_eq!(bucket(&w)["state"], "unreachable");
        // Mounting needs none.
        w.sh_outside("$DARNER unmount $MNT");
        sh(&w, &server, "timeout 10 $DARNER mount --log daemon.log store $MNT");
        w.sh("md5sum -c --quiet $DIR/hot; ls a | wc -l | grep -qx 24");
        match round {
            0 => server.signal(libc::SIGCONT),
            _ => server.restart(),
        }
        eventually("the bucket is reached again", || std::fs::read(w.path("a/3")).is_ok());
        w.sh("md5sum -c --quiet $DIR/sums $DIR/hot");
        w.sh_outside("$DARNER volume push $MNT");
        assert_eq!(bucket(&w)["state"], "active");
    }
    w.unmount();
}

#[test]
fn an_object_that_is_gone_or_shorter_fails_only_reads_of_what_was_in_it_and_the_rest_can_leave() {
    let Some(w) = World::unmounted() else { return };
    std::fs::create_dir(&w.mnt).unwrap();
    let mut server = Server::new(&w.dir);
    let id = with_cold(&w, &server);
    w.sh_outside("$DARNER unmount $MNT");
    let parts = server.parts();
    assert!(parts.len() > 2, "{parts:?}");
    std::fs::remove_file(&parts[0]).unwrap();
    let shorter = std::fs::File::options().write(true).open(&parts[1]).unwrap();
    shorter.set_len(parts[1].metadata().unwrap().len() / 2).unwrap();
    sh(&w, &server, "$DARNER mount --log daemon.log store $MNT");
    let failed = || {
        w.sh("echo 3 > /proc/sys/vm/drop_caches; md5sum -c $DIR/sums 2> $DIR/said | grep -v 'OK$' | cut -d: -f1 | sort || true")
    };
    let lost = failed();
    // Of objects of 8 MiB, one and a half.
    assert!((12..=16).contains(&lost.lines().count()), "{lost}");
    assert_eq!(failed(), lost, "no others");
    assert_eq!(bucket(&w)["state"], "active");
    assert!(!w.log().contains("can't be reached"));
    // A scrub names them, and nothing else.
    let named = |args: &str| {
        w.sh_outside(&format!(
            "($DARNER scrub $MNT {args} --json || true) | jq -r '.damages[].path // empty' | cut -c2- | sort -u"
        ))
    };
    assert_eq!(named("--bucket"), lost);
    assert_eq!(named("--report"), lost);
    // The bucket leaves as soon as it can be reached. (What was read may have come back.)
    w.sh_outside(&format!("$DARNER volume move $MNT --from 0 --to {id}"));
    server.kill();
    w.sh_outside(&format!("! $DARNER volume remove $MNT {id} 2> said; grep -q 'it goes on when that can be' said"));
    w.sh_outside("! $DARNER volume push $MNT 2> said; grep -q 'is leaving' said");
    server.restart();
    eventually("the bucket has left", || {
        run(&w, server.port, &format!("$DARNER volume remove $MNT {id}"));
        server.objects() == 0
    });
    assert_eq!(failed(), lost);
    w.forgive_errors();
    w.unmount();
    w.forgive_errors();
}

#[test]
fn what_is_forgotten_while_the_bucket_is_away_leaves_it_when_it_is_back_which_is_known_without_a_read() {
    let Some(w) = World::unmounted() else { return };
    std::fs::create_dir(&w.mnt).unwrap();
    let mut server = Server::new(&w.dir);
    with_cold(&w, &server);
    w.sh_outside("$DARNER volume push $MNT; $DARNER unmount $MNT");
    sh(&w, &server, "$DARNER mount --log daemon.log store $MNT");
    let secret = std::fs::read(w.path("a/7")).unwrap()[4096 + 100..][..200].to_vec();
    let is_there = |server: &Server| {
        server.parts().iter().any(|part| std::fs::read(part).is_ok_and(|b| b.windows(200).any(|w| w == secret)))
    };
    assert!(is_there(&server));
    server.kill();
    let said = run(&w, server.port, "timeout 60 $DARNER forget $MNT/a/7");
    let told = String::from_utf8_lossy(&said.stdout).into_owned();
    assert_eq!(said.status.code(), Some(1), "{said:?}");
    assert!(
        told.contains("destroyed, in every moment") && told.contains("some of its bytes are still stored"),
        "{told}"
    );
    w.sh("test ! -e a/7");
    assert_eq!(bucket(&w)["state"], "unreachable");
    server.restart();
    eventually("the bucket is known to be back", || bucket(&w)["state"] == "active");
    eventually("its bytes leave the bucket", || {
        w.sh_outside("$DARNER volume push $MNT");
        !is_there(&server)
    });
    // Also where nothing is to be done there.
    server.kill();
    let said = run(&w, server.port, "timeout 60 $DARNER volume push $MNT");
    assert_eq!(said.status.code(), Some(1), "{said:?}");
    assert_eq!(bucket(&w)["state"], "unreachable");
    server.restart();
    eventually("the bucket is known to be back", || bucket(&w)["state"] == "active");
    w.unmount();
}

#[test]
fn volume_push_puts_anew_what_is_gone_from_the_bucket_and_fails_where_it_is_nowhere_else() {
    let Some(w) = World::unmounted() else { return };
    std::fs::create_dir(&w.mnt).unwrap();
    let server = Server::new(&w.dir);
    sh(
        &w,
        &server,
        "$DARNER mount --create --log daemon.log store $MNT; $DARNER volume add $MNT s3://bucket/some/where",
    );
    w.sh(
        "for i in 1 2 3; do head -c 9M /dev/urandom > $i; done; md5sum * > $DIR/sums; sync -f .; $DARNER volume push .",
    );
    let away = "rm -r server/bucket/some/where/r/*1.*";
    let shorter = "find server/bucket/some/where/r -size +1M -exec truncate -s 99 {} +";
    for gone in [away, shorter, "rm -r server/bucket/some/where/?"] {
        w.sh_outside(&format!("{gone}; $DARNER volume push $MNT"));
        w.sh_outside(&format!("{gone}; $DARNER scrub $MNT; $DARNER volume push $MNT"));
        // (What stays of the disk of a machine that is lost.)
        w.sh_outside("cp -a server/bucket/some server/bucket/other; mkdir there");
        sh(&w, &server, "$DARNER mount --local here s3://bucket/other/where there");
        w.sh_outside(
            "(cd there; md5sum -c --quiet $DIR/sums); $DARNER unmount there; rm -r here there server/bucket/other",
        );
    }
    let id = bucket(&w)["id"].as_u64().unwrap();
    w.sh_outside(&format!("$DARNER volume move $MNT --from 0 --to {id}; {shorter}"));
    let said = run(&w, server.port, "timeout 60 $DARNER volume push $MNT");
    assert_eq!(said.status.code(), Some(1), "{said:?}");
    assert!(
        String::from_utf8_lossy(&said.stderr).contains("objects of what is in the bucket only are gone"),
        "{said:?}"
    );
    let scrub = run(&w, server.port, "$DARNER scrub $MNT");
    assert!(String::from_utf8_lossy(&scrub.stdout).contains(": bytes "), "{scrub:?}");
    // (What is gone may be met once more while it is unmounted.)
    w.forgive_errors();
    w.unmount();
}

#[test]
fn why_nothing_more_reaches_the_bucket_is_said_by_push_which_ends_and_by_status() {
    let Some(w) = World::unmounted() else { return };
    std::fs::create_dir(&w.mnt).unwrap();
    let server = Server::new(&w.dir);
    with_cold(&w, &server);
    w.sh_outside("$DARNER volume push $MNT; $DARNER unmount $MNT; truncate -s 100 server/bucket/some/where/c/*; mv server/bucket/some/where/e was");
    sh(&w, &server, "$DARNER mount --log daemon.log store $MNT");
    for refused in ["timeout 40 $DARNER volume push $MNT", "timeout 40 $DARNER volume move $MNT --from 0 --to 1"] {
        let said = run(&w, server.port, refused);
        assert_eq!(said.status.code(), Some(1), "{said:?}");
        assert!(String::from_utf8_lossy(&said.stderr).contains("the checkpoint is damaged"), "{said:?}");
    }
    let status = w.sh_outside("$DARNER status $MNT; $DARNER volume list $MNT");
    assert_eq!(status.matches("the checkpoint is damaged").count(), 2, "{status}");
    // It heals by itself, once it can.
    w.sh_outside("mv was server/bucket/some/where/e; timeout 40 $DARNER volume push $MNT");
    let status = w.sh_outside("$DARNER status $MNT; $DARNER volume list $MNT");
    assert!(!status.contains("damaged"), "{status}");
    w.unmount();
    sh(&w, &server, "$DARNER mount --local there s3://bucket/some/where $MNT");
    w.sh("md5sum -c --quiet $DIR/sums $DIR/hot");
    w.unmount();
}

#[test]
fn who_waits_for_a_bucket_that_hangs_can_be_killed() {
    let Some(w) = World::unmounted() else { return };
    std::fs::create_dir(&w.mnt).unwrap();
    let server = Server::new(&w.dir);
    let id = with_cold(&w, &server);
    w.sh_outside(&format!("$DARNER volume move $MNT --from 0 --to {id}; $DARNER unmount $MNT"));
    sh(&w, &server, "$DARNER mount --log daemon.log store $MNT");
    server.signal(libc::SIGSTOP);
    let read = |i: usize| {
        let mut read = Command::new("dd");
        read.args(i.is_multiple_of(2).then_some("iflag=direct"))
            .arg(format!("if={}", w.path(&format!("a/{i}")).display()));
        read.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let mut reads: Vec<Child> = (1..=12).map(read).collect();
    // Who does not wait yet dies all the same; the bucket is given up after five seconds.
    std::thread::sleep(Duration::from_millis(500));
    let start = Instant::now();
    reads.iter_mut().for_each(|read| read.kill().unwrap());
    for read in &mut reads {
        assert_eq!(read.wait().unwrap().signal(), Some(libc::SIGKILL));
    }
    println!("killed, the last one was gone after {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    server.signal(libc::SIGCONT);
    eventually("the bucket is reached again", || std::fs::read(w.path("a/3")).is_ok());
    w.sh("md5sum -c --quiet $DIR/sums");
    w.unmount();
}

#[test]
fn a_filesystem_is_larger_than_its_disk() {
    let Some(w) = World::unmounted() else { return };
    std::fs::create_dir(&w.mnt).unwrap();
    let server = Server::new(&w.dir);
    sh(
        &w,
        &server,
        "$DARNER mount --create --size 256M --log daemon.log store $MNT; $DARNER volume add $MNT s3://bucket/larger",
    );
    w.sh("for i in $(seq 1 45); do head -c 10M /dev/urandom | tee $i | md5sum | sed \"s, -, $i,\" >> $DIR/sums; done; sync -f .");
    let only = bucket(&w)["bucket"]["only_there_bytes"].as_u64().unwrap();
    assert!(only > 200 << 20, "{only}");
    let local = w.sh_outside("du -sm store | cut -f1").parse::<u64>().unwrap();
    assert!(local <= 256, "{local} MiB");
    w.sh("md5sum -c --quiet $DIR/sums");
    // What is read again and again is here.
    let fetched = || bucket(&w)["bucket"]["fetched_bytes"].as_u64().unwrap();
    let read = || w.sh("for i in 1 2 3; do dd if=$i of=/dev/null bs=1M iflag=direct status=none; done");
    read();
    eventually("what is hot comes back", || {
        let before = fetched();
        read();
        fetched() == before
    });
    w.unmount();
}

/// Types what README says, on several machines: each is a directory, with a /srv and a port of its own.
struct Machines<'w> {
    w: &'w World,
    server: &'w Server,
    ports: [(&'static str, u16); 2],
    ticket: String,
}

impl Machines<'_> {
    fn type_in(&mut self, machine: &str, line: &str) {
        let mut typed = line.replace("/srv/", "./srv-").replace("TICKET", &self.ticket);
        for (name, port) in self.ports {
            let own = if name == machine { "0.0.0.0:7437" } else { "" };
            for at in [own, &format!("{name}:7437")].into_iter().filter(|at| !at.is_empty()) {
                typed = typed.replace(at, &format!("127.0.0.1:{port}"));
            }
        }
        let said = sh(self.w, self.server, &format!("darner() {{ $DARNER \"$@\"; }}; cd {machine}; {typed}"));
        if let Some(ticket) = said.lines().find(|l| l.starts_with("darner-ticket-")) {
            self.ticket = ticket.to_owned();
        }
    }

    /// The lines of README that are for a machine, in their order.
    fn follow(&mut self, machine: &str, lines: &[(String, String)]) {
        let own: Vec<_> = lines.iter().filter(|(on, _)| on == machine).map(|(_, line)| line.clone()).collect();
        assert!(!own.is_empty(), "README has nothing for {machine}");
        own.iter().for_each(|line| self.type_in(machine, line));
    }
}

/// What README has in its block of shell after some words: machine and line.
fn readme(after: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md")).unwrap();
    let (_, rest) = text.split_once(after).unwrap_or_else(|| panic!("README says no more {after:?}"));
    let block = rest.split("```").nth(1).unwrap().strip_prefix("sh\n").unwrap();
    let machines = [
        ("laptop", "on the laptop"),
        ("server", "on the server"),
        ("second", "at the second site"),
        ("new", "anywhere"),
    ];
    let line = |line: &str| {
        let (typed, on) = line.split_once(" # ").unwrap_or_else(|| panic!("{line:?} does not say where"));
        let on = machines.iter().find(|(_, said)| on.starts_with(said)).unwrap_or_else(|| panic!("where is {on:?}?"));
        (on.0.to_owned(), typed.trim_end().to_owned())
    };
    block.lines().map(line).collect()
}

#[test]
fn from_a_laptop_to_a_server_a_bucket_and_a_second_site_and_the_days_the_disk_dies_and_the_house_burns_down() {
    let Some(w) = World::unmounted() else { return };
    let server = Server::new(&w.dir.join("s3"));
    let recipe = readme("From a laptop to a server at home");
    assert_eq!(recipe.len(), 5, "it is a recipe of five lines");
    let the_day = readme("The day the laptop's disk dies");
    w.sh_outside("mkdir laptop server second new; mkdir laptop/mnt; $DARNER mount --create laptop/store laptop/mnt");
    w.sh_outside(
        "cd laptop/mnt; mkdir src; for i in $(seq 30); do seq $i 2000 > src/$i; done; ln src/1 link; sync -f .",
    );
    let ports = [("laptop", common::free_port()), ("server", common::free_port())];
    let mut m = Machines { w: &w, server: &server, ports, ticket: String::new() };
    for (machine, line) in recipe {
        m.type_in(&machine, &line);
    }
    let sync = "$DARNER mirror sync --wait server/srv-laptop; $DARNER mirror sync --wait second/srv-laptop";
    let before = w.sh_outside(&format!("{sync}; date -u +%FT%T.%NZ"));
    w.sh_outside("cd laptop/mnt; seq 7 > src/7; rm src/8; md5sum src/* > $DIR/sums; sync -f .");
    w.sh_outside(&format!("{sync}; $DARNER volume push server/srv-laptop"));
    let goes_on = |files: &str| {
        w.sh_outside(&format!(
            "cd {files}; md5sum -c --quiet $DIR/sums; test ! -e src/8; test $(stat -c %h link) = 2; seq 8 2000 | cmp src@@{before}/8; \
             echo more > more; sync -f .; cd ..; $DARNER unmount files"
        ));
    };
    // The laptop's disk dies.
    w.sh_outside("cd laptop; $DARNER serve mnt --stop; $DARNER unmount mnt; rm -r store");
    // The house burns down.
    w.sh_outside("cd server; $DARNER serve srv-laptop --stop; $DARNER mirror pause srv-laptop; rm -r srv-laptop");
    m.follow("new", &the_day);
    goes_on("new/files");
    // The second site does what the server would have done.
    let on_the_server: Vec<_> = the_day.iter().filter(|(on, _)| on == "server").cloned().collect();
    on_the_server.iter().for_each(|(_, line)| m.type_in("second", line));
    goes_on("second/files");
}
