//! Filesystems that are processes of their own, in directories of a mount: the real program, the real kernel.

mod common;

use std::path::PathBuf;
use std::process::Command;

use common::attached::{attach, python, status, try_attach};
use common::{DARNER, World, eventually, long, signal};

#[test]
fn a_plug_in_is_attached_read_listed_and_detached() {
    let Some(world) = World::new() else { return };
    world.sh("mkdir hi; echo hidden > hi/before");
    attach(&world, "hi", &["hello"]);
    assert_eq!(world.sh("ls hi; cat hi/hello.txt"), "hello.txt\nHello from a process of its own.");
    assert!(!world.try_sh("cat hi/none").status.success());
    assert!(!world.try_sh("echo x > hi/new").status.success());
    assert_eq!(world.sh("stat -c %s hi/hello.txt; cat < hi/hello.txt | wc -c; stat -f -c %l hi"), "33\n33\n255");
    let s = status(&world, "hi");
    assert_eq!((s["state"].as_str(), s["name"].as_str()), (Some("runs"), Some("hello")));
    assert!(world.darner(&["status", world.mnt.to_str().unwrap()]).contains("(hello, read-only): runs"));
    let again = try_attach(&world, "hi", &["hello"]).unwrap_err();
    assert!(again.contains("attached already"), "{again}");
    world.darner(&["detach", world.path("hi").to_str().unwrap()]);
    assert_eq!(world.sh("cat hi/before"), "hidden");
    assert_eq!(world.status()["attachments"].as_array().unwrap().len(), 0);
    let pid = s["host_pid"].as_i64().unwrap();
    eventually("the host ends", || !PathBuf::from(format!("/proc/{pid}")).exists());
}

#[test]
fn of_several_who_attach_in_one_directory_at_once_one_does() {
    let Some(world) = World::new() else { return };
    for n in 0..3 {
        let script = format!(
            "mkdir $MNT/{n}; for i in 1 2 3 4; do ($DARNER attach $MNT/{n} hello 2> /dev/null && echo attached) & done; wait
            grep -c \" $MNT/{n} \" /proc/mounts"
        );
        assert_eq!(world.sh_outside(&script), "attached\n1");
    }
}

#[test]
fn unmounting_takes_along_what_is_attached() {
    let Some(world) = World::new() else { return };
    attach(&world, "a", &["hello"]);
    attach(&world, "b", &["hello"]);
    let hosts: Vec<i64> = ["a", "b"].map(|d| status(&world, d)["host_pid"].as_i64().unwrap()).into();
    world.remount();
    assert_eq!(world.sh("ls a b"), "a:\n\nb:");
    for pid in hosts {
        assert!(!PathBuf::from(format!("/proc/{pid}")).exists());
    }
}

#[test]
fn unmounting_an_attachment_detaches_it_and_what_is_in_it() {
    let Some(world) = World::new() else { return };
    let Some(program) = python(&world, "") else { return };
    let at = attach(&world, "py", &["--writable", "--", &program]);
    let inner = attach(&world, "py/inner", &["hello"]);
    let (at, inner) = (at.to_str().unwrap(), inner.to_str().unwrap());
    let refused = Command::new(DARNER).args(["detach", at]).output().unwrap();
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && why.contains("in use: something is attached to") && why.contains(inner),
        "{why}"
    );
    world.darner(&["unmount", at]);
    assert_eq!(world.status()["attachments"].as_array().unwrap().len(), 0);
    assert_eq!(world.sh("ls py"), "");
}

#[test]
fn what_can_not_be_shown_is_named_with_the_reason() {
    let Some(world) = World::new() else { return };
    let file = world.path("text");
    std::fs::write(&file, "no image").unwrap();
    for plugin in ["iso9660", "msdosfs", "archive"] {
        let why = try_attach(&world, "at", &[plugin, file.to_str().unwrap()]).unwrap_err();
        assert!(why.starts_with(&format!("darner: {plugin} can't show {}: ", file.display())), "{why}");
        assert_eq!(why.lines().count(), 1, "{why}");
    }
}

/// In the long form only: it compiles.
#[test]
fn the_lines_of_the_tutorial_make_a_filesystem_of_ones_own() {
    if !long() {
        return;
    }
    let Some(world) = World::new() else { return };
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let page = std::fs::read_to_string(format!("{root}/docs/vfs.md")).unwrap();
    let lines = page.split("```sh\n").nth(1).unwrap().split("```").next().unwrap();
    let lines = lines.replace("darner attach", "$DARNER attach").replace("darner detach", "$DARNER detach");
    let found = world.sh_outside(&format!("cd $DIR; ln -s {root} darner; export CARGO_NET_OFFLINE=true; {lines}"));
    assert!(found.ends_with("Hello from a process of its own."), "{found}");
}

#[test]
fn unmounting_waits_for_whoever_has_the_image_of_an_attachment() {
    let Some(world) = World::new() else { return };
    world.sh("mkdir tree; echo x > tree/f; tar -cf it.tar tree");
    attach(&world, "here", &["archive", world.path("it.tar").to_str().unwrap()]);
    // It ends later than the host, and has the image until then.
    let supervisor = status(&world, "here")["supervisor_pid"].as_i64().unwrap() as i32;
    signal(supervisor, libc::SIGSTOP);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            eventually("it is detached", || !world.path("here/tree").exists());
            std::thread::sleep(std::time::Duration::from_millis(300));
            signal(supervisor, libc::SIGCONT);
        });
        world.unmount();
    });
}

#[test]
fn a_mount_in_use_keeps_its_attachments_and_says_who_uses_it() {
    let Some(world) = World::new() else { return };
    attach(&world, "a", &["hello"]);
    attach(&world, "b", &["hello"]);
    std::fs::write(world.path("file"), "").unwrap();
    for name in ["file", "a/hello.txt"] {
        let open = std::fs::File::open(world.path(name)).unwrap();
        let out = Command::new(common::DARNER).arg("unmount").arg(&world.mnt).output().unwrap();
        let said = String::from_utf8(out.stderr).unwrap();
        assert!(!out.status.success(), "{name}");
        for word in ["is in use", &format!("process {} ", std::process::id()), world.path(name).to_str().unwrap()] {
            assert!(said.contains(word), "{said}");
        }
        assert_eq!(world.status()["attachments"].as_array().unwrap().len(), 2);
        drop(open);
    }
    world.unmount();
}

#[test]
fn killed_the_host_is_followed_by_another_and_the_plug_in_too() {
    let Some(world) = World::new() else { return };
    let at = attach(&world, "hi", &["hello"]);
    let mut file = std::fs::File::open(at.join("hello.txt")).unwrap();
    for (round, who) in ["plugin_pid", "host_pid", "plugin_pid", "supervisor_pid", "host_pid"].into_iter().enumerate() {
        let before = status(&world, "hi")[who].as_i64().unwrap();
        // SAFETY: a plain system call.
        unsafe { libc::kill(before as i32, libc::SIGKILL) };
        world.sh("echo 3 > /proc/sys/vm/drop_caches; cat hi/hello.txt; ls hi");
        let mut text = String::new();
        std::io::Seek::rewind(&mut file).unwrap();
        std::io::Read::read_to_string(&mut file, &mut text).unwrap();
        assert_eq!(text, "Hello from a process of its own.\n", "round {round}");
        eventually("there is another one", || status(&world, "hi")[who].as_i64().is_some_and(|pid| pid != before));
    }
    world.kill_all();
    world.detach();
}

/// A tree with what filesystems stumble over, in `$DIR/tree`.
fn make_tree(world: &World) {
    world.sh_outside(
        r"mkdir -p tree/sub/empty tree/many tree/a/b/c/d/e/f/g/h/i/j; cd tree
        echo one > one.txt; : > nothing; head -c 3000000 /dev/urandom > large.bin; seq 100000 > text
        echo deep > a/b/c/d/e/f/g/h/i/j/deep.txt; seq 1 900 | (cd many; while read n; do echo $n > file-$n; done)
        echo x > 'with space, and ünïcode.txt'; n=$(printf 'long%.0s' $(seq 40)); echo l > $n.txt
        ln -s ../one.txt sub/link; ln -s $(printf 'up/%.0s' $(seq 200))end sub/longlink; ln one.txt sub/hard
        chmod 750 sub; chmod 4711 one.txt; chown 1234:5678 text; mkfifo sub/fifo; touch -d '1999-12-31 23:59:59 UTC' sub/old",
    );
}

/// What `find` tells of all files in a directory, as far as `what` says.
fn tree_of(world: &World, dir: &str, what: &str) -> String {
    world.sh_outside(&format!(
        "cd {dir}; find . -mindepth 1 -printf '%P {what}\\n' | sort; find . -type f | sort | xargs -d '\\n' md5sum"
    ))
}

const ALL: &str = "%y %m %U %G %s %l %T@";
/// Directories have other sizes elsewhere.
fn files_only(listing: &str) -> String {
    listing
        .lines()
        .map(|l| if l.contains(" d ") { l.split(" d ").next().unwrap() } else { l })
        .collect::<Vec<_>>()
        .join("\n")
}

/// Times to the second.
fn coarse(listing: &str) -> String {
    listing
        .lines()
        .map(|l| l.rsplit_once('.').map_or(l, |(cut, rest)| if rest.len() == 10 { cut } else { l }))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn cd_images_show_the_tree_that_xorriso_put_in_rock_ridge_or_joliet_also_as_of_then() {
    let Some(world) = World::new() else { return };
    if !common::has("xorriso") {
        return;
    }
    make_tree(&world);
    let out = "-quiet -o mnt/image.iso";
    world.sh_outside(&format!("xorriso -as mkisofs -R -J -joliet-long {out} tree 2>/dev/null"));
    attach(&world, "rr", &["iso9660", world.path("image.iso").to_str().unwrap()]);
    assert_eq!(status(&world, "rr")["name"].as_str().unwrap(), "iso9660 ISOIMAGE (Rock Ridge)");
    let (expected, found) = (tree_of(&world, "tree", ALL), tree_of(&world, "mnt/rr", ALL));
    assert_eq!(coarse(&files_only(&found)), coarse(&files_only(&expected)));
    // Another image takes its place; what is attached, and what was, stay what they are.
    let then = world.now();
    world.sh_outside(&format!("rm mnt/image.iso; rm -f tree/sub/fifo tree/sub/*link; xorriso -as mkisofs -J -joliet-long {out} tree 2>/dev/null"));
    world.sh_outside("cmp mnt/rr/large.bin tree/large.bin; cat mnt/rr/sub/link");
    attach(&world, "past", &["iso9660", world.path(&format!("image.iso@@{then}")).to_str().unwrap()]);
    assert_eq!(tree_of(&world, "mnt/past", ALL), found);
    // xorriso puts Rock Ridge in always; without it Joliet counts.
    world.sh_outside("xorriso -as mkisofs -quiet -J -joliet-long --norock -o mnt/joliet.iso tree 2>/dev/null");
    attach(&world, "joliet", &["iso9660", world.path("joliet.iso").to_str().unwrap()]);
    assert_eq!(status(&world, "joliet")["name"].as_str().unwrap(), "iso9660 ISOIMAGE (Joliet)");
    let names = |dir: &str| world.sh_outside(&format!("cd {dir}; find . | sort | cut -c1-60; find . -type f | wc -l"));
    assert_eq!(names("mnt/joliet"), names("tree"));
    world
        .sh_outside("for f in one.txt large.bin text a/b/c/d/e/f/g/h/i/j/deep.txt; do cmp tree/$f mnt/joliet/$f; done");
    for image in ["past", "rr", "joliet"] {
        world.darner(&["detach", world.path(image).to_str().unwrap()]);
    }
}

#[test]
fn archives_show_the_tree_that_tar_and_zip_put_in() {
    let Some(world) = World::new() else { return };
    if !common::has("zip") {
        return;
    }
    make_tree(&world);
    let expected = files_only(&tree_of(&world, "tree", ALL));
    for (name, command) in [
        ("pax.tar", "tar --format=pax -C tree -cf mnt/pax.tar ."),
        ("gnu.tar", "tar --format=gnu -C tree -cf mnt/gnu.tar ."),
        ("it.tar.gz", "tar --format=pax -C tree -czf mnt/it.tar.gz ."),
        ("it.zip", "rm tree/sub/fifo; cd tree; zip -qry ../mnt/it.zip ."),
    ] {
        world.sh_outside(command);
        attach(&world, "here", &["archive", world.path(name).to_str().unwrap()]);
        let found = files_only(&tree_of(&world, "mnt/here", ALL));
        match name {
            "pax.tar" | "it.tar.gz" => assert_eq!(found, expected, "{name}"),
            "gnu.tar" => assert_eq!(coarse(&found), coarse(&expected), "{name}"),
            _ => {
                let what = "%y %m %s %l";
                let (found, expected) = (tree_of(&world, "mnt/here", what), tree_of(&world, "tree", what));
                assert_eq!(files_only(&found), files_only(&expected));
                world.sh_outside("test $(stat -c %Y mnt/here/sub/old) = $(stat -c %Y tree/sub/old)");
            }
        }
        world.darner(&["detach", world.path("here").to_str().unwrap()]);
    }
    std::fs::write(
        world.path("none"),
        b"this is neither of them, and long enough to be a header of something: no".repeat(20),
    )
    .unwrap();
    for kind in ["archive", "iso9660"] {
        let why = try_attach(&world, "here", &[kind, world.path("none").to_str().unwrap()]).unwrap_err();
        assert!(why.contains("this is no "), "{why}");
    }
}

#[test]
fn a_plug_in_in_python_written_from_the_documents_alone_reads_writes_and_renames() {
    let Some(world) = World::new() else { return };
    let Some(program) = python(&world, "") else { return };
    attach(&world, "py", &["--writable", "--", &program]);
    assert_eq!(status(&world, "py")["sandbox_lacks"].as_array().unwrap().len(), 0);
    world.sh(
        "cd py; cat hello.txt; mkdir -p a/b; seq 300000 > a/numbers; cp a/numbers a/b/copy; cmp a/numbers a/b/copy",
    );
    assert_eq!(world.sh("cat py/hello.txt; stat -c '%s %U' py/a/numbers"), "Hello from Python.\n1988895 root");
    world.sh(
        "cd py; ln -s a/numbers link; test $(readlink link) = a/numbers; cmp link a/numbers; mv a/b/copy moved; echo more >> moved
        test $(tail -n 1 moved) = more; truncate -s 10 moved; test $(stat -c %s moved) = 10; chmod 600 moved; chown 5:6 moved
        test $(stat -c %a,%u,%g moved) = 600,5,6; touch -d 2001-02-03 moved; test $(date -r moved +%Y) = 2001; sync -f .
        ! rmdir a 2>/dev/null; rm -r a; test ! -e a; for n in $(seq 500); do : > f$n; done; test $(ls | wc -l) = 503; rm f*
        mv -n moved hello.txt; test -e moved; mv -f moved hello.txt; test $(stat -c %s hello.txt) = 10",
    );
    world.sh("! ln py/hello.txt py/hard 2>/dev/null; df py >/dev/null");
    world.darner(&["detach", world.path("py").to_str().unwrap()]);
}

#[test]
fn a_plug_in_reaches_nothing_but_what_it_was_handed() {
    let Some(world) = World::new() else { return };
    // What it finds out is what its file says.
    let probe = r#"
import ctypes, threading
libc = ctypes.CDLL(None, use_errno=True)
def outcome(what):
    try:
        what()
        return "done"
    except OSError as e:
        return errno.errorcode[e.errno]
    except RuntimeError as e:
        return str(e)
def call(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)
def thread():
    t = threading.Thread(target=lambda: None); t.start(); t.join()
probes = {
    "read a secret": lambda: open("SECRET").read(), "list it": lambda: os.listdir("DIR"), "write": lambda: open("DIR/new", "w"),
    "read passwords": lambda: open("/etc/passwd"), "look at others": lambda: open("/proc/1/cmdline"),
    "tcp": lambda: socket.socket(), "unix": lambda: socket.socket(socket.AF_UNIX), "pair": lambda: socket.socketpair(),
    "fork": os.fork, "memfd": lambda: os.memfd_create("x"), "mount": lambda: call("mount", b"x", b"/tmp", b"tmpfs", 0, None),
    "unshare": lambda: call("unshare", 0x10000000), "signal": lambda: os.kill(HOST, 0), "root": lambda: os.setuid(0),
    "outlive": lambda: call("prctl", 1, 0, 0, 0, 0), "shm": lambda: call("shmget", 0, 4096, 0o1600),
    "start": lambda: os.execv("/bin/true-not", ["x"]), "handed": lambda: os.pread(int(os.environ["DARNER_FILE_FDS"]), 5, 0),
    "overwrite": lambda: os.pwrite(int(os.environ["DARNER_FILE_FDS"]), b"x", 0), "thread": thread,
    "all CPUs": lambda: os.sched_setaffinity(0, range(os.cpu_count())),
}
class Memory(Memory):
    def __init__(self, arena):
        super().__init__(arena)
        found = "".join(f"{name}: {outcome(what)}\n" for name, what in probes.items())
        found += f"processes: {os.getpid() == 1}\nvariables: {'SECRET' in os.environ}\n"
        self.make(self.nodes[1], b"found", stat.S_IFREG | 0o644).data += found.encode()
"#;
    let secret = world.dir.join("secret");
    std::fs::write(&secret, "a secret").unwrap();
    let probe = probe
        .replace("SECRET\")", &format!("{}\")", secret.display()))
        .replace("\"DIR", &format!("\"{}", world.dir.display()));
    let probe = probe.replace("HOST", &std::process::id().to_string());
    let Some(program) = python(&world, &probe) else { return };
    let expected = "read a secret: EACCES\nlist it: EACCES\nwrite: EACCES\nread passwords: EACCES\nlook at others: EACCES\ntcp: EPERM
unix: EPERM\npair: EPERM\nfork: EPERM\nmemfd: EPERM\nmount: EPERM\nunshare: EPERM\nsignal: ESRCH\nroot: EINVAL
outlive: EPERM\nshm: EPERM\nstart: ENOENT\nhanded: done\noverwrite: EBADF\nthread: done\nall CPUs: EPERM\nprocesses: True\nvariables: False";
    attach(&world, "py", &[&format!("--file={}", secret.display()), "--", &program]);
    assert_eq!(world.sh("cat py/found"), expected.replace("\n\n", "\n"));
    let pid = status(&world, "py")["plugin_pid"].as_i64().unwrap();
    let proc = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| proc.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim().to_string();
    assert_eq!(field("CapEff:"), "0000000000000000");
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1".into(), "2".into()));
    assert!(field("Uid:").starts_with("65534"), "root's plug-ins run as nobody");
    let cpus = |mask: &str| mask.replace(',', "").chars().map(|c| c.to_digit(16).unwrap().count_ones()).sum::<u32>();
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let all = cpus(own.lines().find_map(|l| l.strip_prefix("Cpus_allowed:")).unwrap().trim());
    assert_eq!(cpus(&field("Cpus_allowed:")), (all - 1).max(1), "it leaves one to others");
}

#[test]
fn an_ordinary_user_has_the_whole_sandbox_too_and_a_program_that_does_not_start_is_told() {
    let Some(world) = World::new() else { return };
    if !common::has("setpriv") {
        return;
    }
    let program = world.dir.join("darner");
    std::fs::copy(common::DARNER, &program).unwrap();
    let sandbox = |what: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "12345", "--regid", "12345", "--clear-groups"]).arg(&program);
        let out = command.args(["plugin", "--memory=536870912", "--processes=1", "--", what]).output().unwrap();
        String::from_utf8(out.stdout).unwrap()
    };
    assert!(sandbox("/usr/bin/true").contains("{\"lacks\":[]}"), "{}", sandbox("/usr/bin/true"));
    let secret = world.dir.join("secret");
    std::fs::write(&secret, "#!/bin/sh").unwrap();
    assert!(sandbox(secret.to_str().unwrap()).contains("can't start"));
    let why = try_attach(&world, "x", &["--", secret.to_str().unwrap()]).unwrap_err();
    assert!(why.contains("can't start") && why.contains("nobody"), "{why}");
    let why = try_attach(&world, "x", &["--", "/usr/bin/true"]).unwrap_err();
    for part in ["no plug-in answers", "/usr/bin/true may be no plug-in", "exit status: 0"] {
        assert!(why.contains(part), "{why}");
    }
    assert_eq!(world.sh("ls x; mountpoint -q x || echo none"), "none");
}

#[test]
fn fat_images_are_read_and_written_and_mtools_and_fsck_agree() {
    let Some(world) = World::new() else { return };
    if !["mkfs.fat", "fsck.fat", "mcopy"].iter().all(|p| common::has(p)) {
        return;
    }
    let mtools = "export MTOOLS_SKIP_CHECK=1 TZ=UTC;";
    world.sh_outside(
        "mkdir -p in/sub/deeper in/many; seq 200000 > in/numbers; head -c 700000 /dev/urandom > in/sub/random; : > in/none
        echo long > 'in/a long name, with spaces and ü.txt'; echo s > in/SHORT.TXT; for n in $(seq 120); do echo $n > in/many/f$n; done",
    );
    for (bits, size) in [(12, "4M"), (16, "40M"), (32, "80M")] {
        let image = world.path(&format!("fat{bits}.img"));
        let image = image.to_str().unwrap();
        world.sh_outside(&format!(
            "truncate -s {size} {image}; mkfs.fat -F {bits} {image} >/dev/null; {mtools} mcopy -s -i {image} in/* ::"
        ));
        // What mtools put in.
        attach(&world, "fat", &["msdosfs", image]);
        assert_eq!(status(&world, "fat")["name"], format!("msdosfs (FAT{bits})"));
        world.sh_outside(
            "diff -r in mnt/fat; cat 'mnt/fat/A LONG NAME, with spaces and ü.TXT' mnt/fat/short.txt > /dev/null",
        );
        assert!(!world.try_sh("echo x > fat/numbers").status.success(), "read-only unless told otherwise");
        world.darner(&["detach", world.path("fat").to_str().unwrap()]);
        // What we put in, beside a plain directory that has the same done to it.
        attach(&world, "fat", &["--writable", "msdosfs", image]);
        world.sh_outside("rm -rf same; cp -a in same");
        for at in ["same", "mnt/fat"] {
            world.sh_outside(&format!(
                "cd {at}; mkdir -p new/dir; cp numbers new/dir/copy; mv sub/random new/moved; mv sub/deeper new/; mv new renamed
                echo appended >> renamed/dir/copy; truncate -s 1000 numbers; truncate -s 5000 none; rm many/f1*; mv many/f2 many/f3
                dd if=/dev/zero of=holes bs=1 count=3 seek=100000 status=none; mv SHORT.TXT q; mv q short.txt; echo o > x; mv -f x many/f4
                mkdir gone; rmdir gone; touch -d '2020-02-02 02:02:02 UTC' renamed/moved; test $(stat -c %Y renamed/moved) = 1580608922
                ! mkdir many 2>/dev/null; ! rmdir renamed 2>/dev/null; ! ln -s x y 2>/dev/null || rm y; test $(find . | wc -l) -gt 60"
            ));
        }
        world.sh_outside("diff -r same mnt/fat; sync -f mnt/fat; diff -r same mnt/fat");
        world.darner(&["detach", world.path("fat").to_str().unwrap()]);
        world.sh_outside(&format!("fsck.fat -n {image} >fsck.log 2>&1 || {{ cat fsck.log; exit 1; }}; rm -rf out; mkdir out; {mtools} mcopy -s -i {image} :: out; diff -r same out"));
    }
}

#[test]
fn what_a_killed_fat_plug_in_has_written_is_there() {
    let Some(world) = World::new() else { return };
    if !common::has("mkfs.fat") || !common::has("fsck.fat") {
        return;
    }
    let image = world.path("fat.img");
    world.sh_outside(&format!("truncate -s 40M {0}; mkfs.fat {0} >/dev/null", image.display()));
    let at = attach(&world, "fat", &["--writable", "msdosfs", image.to_str().unwrap()]);
    for n in 0..8 {
        let text = format!("{n}").repeat(20_000 * (n + 1));
        std::fs::write(at.join(n.to_string()), &text).unwrap();
        let pid = status(&world, "fat")["plugin_pid"].as_i64().unwrap();
        // SAFETY: a plain system call.
        unsafe { libc::kill(pid as i32, libc::SIGKILL) };
        assert_eq!(std::fs::read_to_string(at.join(n.to_string())).unwrap(), text);
        assert_eq!(std::fs::read_dir(&at).unwrap().count(), n + 1);
    }
    world.darner(&["detach", at.to_str().unwrap()]);
    world.sh_outside(&format!("fsck.fat -n {} || test $? = 1", image.display()));
}

#[test]
fn an_image_that_is_attached_writable_is_not_attached_a_second_time() {
    let Some(world) = World::new() else { return };
    if !common::has("mkfs.fat") {
        return;
    }
    let image = world.path("fat.img");
    world.sh_outside(&format!("truncate -s 4M {0}; mkfs.fat {0} >/dev/null", image.display()));
    let image = image.to_str().unwrap();
    let at = attach(&world, "fat", &["--writable", "msdosfs", image]);
    let refused = |args: &[&str]| {
        let why = try_attach(&world, "again", args).unwrap_err();
        assert!(why.contains(&format!("{image} is in use by what is attached to {}", at.display())), "{why}");
    };
    for who in ["host_pid", "supervisor_pid", "plugin_pid", "host_pid"] {
        let before = status(&world, "fat")[who].as_i64().unwrap();
        common::signal(before as i32, libc::SIGKILL);
        eventually("there is another one", || status(&world, "fat")[who].as_i64().is_some_and(|pid| pid != before));
        refused(&["--writable", "msdosfs", image]);
    }
    refused(&["msdosfs", image]);
    refused(&["--writable", &format!("--file={image}"), "--", "/usr/bin/true"]);
    world.darner(&["detach", at.to_str().unwrap()]);
    // To be read, twice; but not written meanwhile.
    attach(&world, "fat", &["msdosfs", image]);
    let second = attach(&world, "second", &["msdosfs", image]);
    refused(&["--writable", "msdosfs", image]);
    world.darner(&["detach", at.to_str().unwrap()]);
    world.darner(&["detach", second.to_str().unwrap()]);
    // Somebody else.
    let why = world.sh_outside(&format!(
        "exec 9<{image}; flock 9; $DARNER attach --writable mnt/again msdosfs {image} 2>&1 && exit 1; exec 9>&-; true"
    ));
    assert!(why.contains(&format!("{image} is in use by process ")), "{why}");
    attach(&world, "again", &["--writable", "msdosfs", image]);
}

#[test]
fn a_device_is_attached_as_an_image_is_and_in_use_while_it_may_be_written() {
    let Some(world) = World::new() else { return };
    if !common::has("mkfs.fat") {
        return;
    }
    world.sh_outside("truncate -s 40M stick; mkfs.fat -F 16 stick >/dev/null");
    let Some(loops) = common::Loops::of(&world, "stick", &["", ""]) else { return };
    let [device, again] = &loops.0[..] else { panic!("{:?}", loops.0) };
    let image = world.dir.join("stick");
    let image = image.to_str().unwrap();
    let at = attach(&world, "stick", &["--writable", "msdosfs", device]);
    world.sh_outside("echo words > mnt/stick/a; test $(stat -f -c %b mnt/stick) -gt 1000");
    assert!(common::is_in_use(device));
    for way in [&**device, again, image] {
        try_attach(&world, "again", &["--writable", "msdosfs", way]).unwrap_err();
    }
    // It stays so whoever is killed.
    common::signal(status(&world, "stick")["host_pid"].as_i64().unwrap() as i32, libc::SIGKILL);
    world.sh_outside("grep words mnt/stick/a; echo more >> mnt/stick/a");
    assert!(common::is_in_use(device));
    world.darner(&["detach", at.to_str().unwrap()]);
    assert!(!common::is_in_use(device));
    let at = attach(&world, "stick", &["msdosfs", again]);
    world.sh_outside("test \"$(cat mnt/stick/a)\" = \"$(printf 'words\\nmore')\"");
    assert!(!common::is_in_use(again));
    world.darner(&["detach", at.to_str().unwrap()]);
    if common::has("mkfs.ext4") {
        world.sh_outside(&format!("mkfs.ext4 -q -F {device}; mkdir ext4; mount {device} ext4"));
        for way in [&**device, again, image] {
            let why = try_attach(&world, "again", &["--writable", "msdosfs", way]).unwrap_err();
            assert!(why.contains("is in use: ") && why.contains("is mounted on"), "{why}");
        }
        world.sh_outside("umount ext4");
    }
}

#[test]
fn what_a_plug_in_says_of_itself_forges_no_lines() {
    let Some(world) = World::new() else { return };
    let forged = r#"
class Memory(Memory):
    def start(self, c):
        return element(12, TEXT, b"good\nwarning      all is lost\x1b[2J")
"#;
    let Some(program) = python(&world, forged) else { return };
    attach(&world, "py", &["--", &program]);
    let shown = world.darner(&["status", world.mnt.to_str().unwrap()]);
    assert!(shown.contains(r"(good\nwarning      all is lost\u{1b}[2J, read-only): runs"), "{shown}");
    let log = std::fs::read_to_string(world.dir.join("host.log")).unwrap();
    assert!(!shown.contains('\x1b') && !log.contains('\x1b'), "{log}");
    let refuse = r#"
class Memory(Memory):
    def start(self, c):
        raise Refused(1)
real_group = group
def group(tag, *parts):
    return real_group(0, element(1, TEXT, b"no\ndarner: all is lost\x1b[2J")) if tag == 0 else real_group(tag, *parts)
"#;
    let Some(program) = python(&world, refuse) else { return };
    let why = try_attach(&world, "no", &["--", &program]).unwrap_err();
    assert_eq!(why.trim_end(), r"darner: no\ndarner: all is lost\u{1b}[2J");
}
