//! Every command as users and scripts meet it: the real program, a real mount, exit codes and messages.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// A directory with `store` mounted on `mnt`; unmounted, lazily if need be, whatever happens to the test.
struct Mounted {
    dir: TempDir,
}

/// What a command did.
struct Done {
    code: i32,
    out: String,
    err: String,
}

fn darner(dir: &Path, args: &[&str]) -> Done {
    let Output { status, stdout, stderr } =
        Command::new(env!("CARGO_BIN_EXE_darner")).args(args).current_dir(dir).output().expect("darner starts");
    let text = |bytes| String::from_utf8(bytes).expect("messages are UTF-8");
    Done { code: status.code().unwrap_or(-1), out: text(stdout), err: text(stderr) }
}

/// Says loudly why a test that needs a mount does nothing.
fn can_mount() -> bool {
    // SAFETY: this call can't fail.
    let able = Path::new("/dev/fuse").exists() && unsafe { libc::geteuid() } == 0;
    if !able {
        eprintln!("SKIPPED: this test mounts, which needs /dev/fuse and root");
    }
    able
}

impl Mounted {
    /// `None` where nothing can be mounted.
    fn new() -> Option<Mounted> {
        can_mount().then(|| {
            let m = Mounted { dir: tempfile::tempdir().expect("a directory") };
            m.ok(&["mount", "--create", "store", "mnt"]);
            m
        })
    }

    fn run(&self, args: &[&str]) -> Done {
        darner(self.dir.path(), args)
    }

    /// Runs a command that must succeed; returns what it printed.
    fn ok(&self, args: &[&str]) -> String {
        let done = self.run(args);
        assert_eq!((done.code, done.err.as_str()), (0, ""), "darner {}", args.join(" "));
        done.out
    }

    /// Runs a command that must fail with this code and a message that holds `word`.
    fn fails(&self, code: i32, word: &str, args: &[&str]) {
        let done = self.run(args);
        let told = done.err.contains(word) && done.err.lines().count() <= if code == 1 { 1 } else { 9 };
        assert!(done.code == code && told, "darner {}: {} {:?}", args.join(" "), done.code, done.err);
    }

    fn json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ok(args)).expect("JSON")
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        fs::write(self.at(path), text).expect(path);
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.at(path)).expect(path)
    }

    /// What `diff` prints, which must find something.
    fn diff(&self, a: &str, b: &str) -> String {
        let done = self.run(&["diff", a, b]);
        assert_eq!((done.code, done.err.as_str()), (1, ""), "{a} {b}");
        done.out
    }

    fn same(&self, a: &str, b: &str) {
        assert_eq!(self.ok(&["diff", a, b]), "", "{a} and {b}");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for mnt in ["mnt/tree/deep", "past", "mnt"] {
            if self.run(&["unmount", mnt]).code != 0 {
                self.run(&["unmount", "--lazy", mnt]);
            }
        }
    }
}

#[test]
fn what_was_written_is_there_after_an_unmount_and_another_mount() {
    let Some(m) = Mounted::new() else { return };
    m.write("mnt/a", "one");
    m.ok(&["unmount", "mnt"]);
    assert!(!m.at("mnt/a").exists());
    m.ok(&["mount", "store", "mnt"]);
    assert_eq!(m.read("mnt/a"), "one");
    m.ok(&["mount", "--create", "store", "past", "--read-only"]);
    assert_eq!(m.read("past/a"), "one");
    assert!(fs::write(m.at("past/a"), "two").is_err());
}

#[test]
fn status_tells_scripts_what_they_rely_on() {
    let Some(m) = Mounted::new() else { return };
    m.write("mnt/a", "one");
    for path in ["mnt", "mnt/a", "store"] {
        let s = m.json(&["status", "--json", path]);
        assert!(s["tid"].as_str().is_some_and(|t| t.starts_with("0x")));
        for field in ["size_bytes", "used_bytes", "history_bytes", "free_bytes", "daemon_pid"] {
            assert!(s[field].is_u64(), "{field}");
        }
        let pid = s["daemon_pid"].as_u64().expect("a number");
        assert!(Path::new(&format!("/proc/{pid}")).exists());
        let volume = &s["volumes"][0];
        let store = m.at("store").canonicalize().expect("it exists");
        assert_eq!((volume["id"].as_u64(), volume["path"].as_str()), (Some(0), store.to_str()));
    }
    assert!(m.ok(&["status", "mnt"]).contains("(live)"));
}

#[test]
fn labels_are_added_listed_and_removed() {
    let Some(m) = Mounted::new() else { return };
    m.write("mnt/a", "one");
    m.ok(&["snapshot", "mnt", "first"]);
    m.write("mnt/a", "two");
    m.ok(&["snapshot", "mnt", "second"]);
    m.ok(&["snapshot", "mnt", "again", "--at", "first"]);
    assert_eq!((m.read("mnt/a@@first"), m.read("mnt/@@second/a")), ("one".into(), "two".into()));
    let labels = m.json(&["snapshot", "list", "mnt", "--json"]);
    let names: Vec<_> = labels.as_array().expect("a list").iter().map(|l| l["label"].as_str()).collect();
    assert_eq!(names, [Some("again"), Some("first"), Some("second")]);
    m.fails(1, "\"first\"", &["snapshot", "mnt", "first"]);
    m.ok(&["snapshot", "remove", "mnt", "first"]);
    m.fails(1, "\"first\"", &["snapshot", "remove", "mnt", "first"]);
    assert!(!m.ok(&["snapshot", "list", "mnt"]).contains("first"));
}

#[test]
fn the_log_tells_the_versions_of_a_path_up_to_a_moment() {
    let Some(m) = Mounted::new() else { return };
    m.write("mnt/a", "one");
    m.ok(&["snapshot", "mnt", "first"]);
    m.write("mnt/a", "twotwo");
    fs::remove_file(m.at("mnt/a")).expect("it is there");
    let all = m.json(&["log", "--json", "mnt/a"]);
    let what: Vec<_> = all.as_array().expect("a list").iter().map(|l| l["what"].as_str().unwrap_or("")).collect();
    assert_eq!((what.first(), what.last()), (Some(&"created"), Some(&"removed")));
    for more in [&["--all"][..], &[]] {
        let until = m.json(&[&["log", "--json", "mnt/a@@first"], more].concat());
        assert_eq!(until.as_array().and_then(|l| l.last()).map(|l| &l["size"]), Some(&3.into()), "{more:?}");
    }
    // (Writes that follow one another soon are one, but not what a label shows.)
    let sizes: Vec<_> = all.as_array().into_iter().flatten().map(|l| l["size"].as_u64().unwrap_or(0)).collect();
    assert!(sizes.contains(&3) && sizes.contains(&6), "{all}");
    assert!(m.ok(&["log", "mnt"]).contains("created"));
    m.fails(1, "mnt/b: ", &["log", "mnt/b"]);
}

/// Found by a review: the path within the bind mount was taken for one from the root.
#[test]
fn the_log_through_a_bind_mount_is_of_the_file_that_is_there() {
    let Some(m) = Mounted::new() else { return };
    fs::create_dir(m.at("mnt/sub")).expect("new");
    m.write("mnt/f", "at the top");
    m.write("mnt/sub/f", "below");
    fs::create_dir(m.at("bound")).expect("new");
    let mount =
        |args: &[&std::ffi::OsStr]| std::process::Command::new(args[0]).args(&args[1..]).status().expect("there");
    let (sub, bound) = (m.at("mnt/sub"), m.at("bound"));
    if !mount(&["mount".as_ref(), "--bind".as_ref(), sub.as_ref(), bound.as_ref()]).success() {
        eprintln!("SKIPPED: bind mounts need root");
        return;
    }
    let through = m.json(&["log", "--json", "bound/f"]);
    mount(&["umount".as_ref(), bound.as_ref()]);
    assert_eq!(through, m.json(&["log", "--json", "mnt/sub/f"]));
}

/// A tree with one of everything.
fn grow(m: &Mounted, top: &str) {
    let at = |name: &str| m.at(top).join(name);
    fs::create_dir_all(at("deep/er")).expect("new");
    fs::write(at("file"), "bytes").expect("new");
    fs::hard_link(at("file"), at("deep/twin")).expect("new");
    symlink("../file", at("deep/link")).expect("new");
    let sparse = fs::File::create(at("sparse")).expect("new");
    std::os::unix::fs::FileExt::write_at(&sparse, b"island", 3 << 20).expect("room");
    sparse.set_len(20 << 20).expect("room");
    let fifo = std::ffi::CString::new(at("fifo").to_str().expect("UTF-8")).expect("no NUL");
    // SAFETY: the path is NUL-terminated.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o640) }, 0);
    std::os::unix::fs::chown(at("file"), Some(1234), Some(56)).expect("we are root");
    fs::set_permissions(at("file"), fs::Permissions::from_mode(0o4711)).expect("ours");
    let file = std::ffi::CString::new(at("file").to_str().expect("UTF-8")).expect("no NUL");
    // SAFETY: all pointers are valid, the length is the value's.
    let rc = unsafe { libc::setxattr(file.as_ptr(), c"user.colour".as_ptr(), b"red".as_ptr().cast(), 3, 0) };
    assert_eq!(rc, 0);
    fs::set_permissions(at("deep/er"), fs::Permissions::from_mode(0o555)).expect("ours");
}

#[test]
fn diff_tells_what_came_went_and_changed_and_its_exit_code_can_be_trusted() {
    let Some(m) = Mounted::new() else { return };
    grow(&m, "mnt/tree");
    m.ok(&["snapshot", "mnt", "before"]);
    m.same("mnt@@before", "mnt");
    m.same("mnt/tree/@@before", "mnt/tree");
    m.write("mnt/tree/new", "");
    fs::remove_dir_all(m.at("mnt/tree/deep")).expect("it is there");
    m.write("mnt/tree/deep", "a file now");
    fs::set_permissions(m.at("mnt/tree/fifo"), fs::Permissions::from_mode(0o600)).expect("ours");
    m.write("mnt/tree/file", "BYTES");
    let told = m.diff("mnt@@before", "mnt");
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(
        lines,
        [
            "M tree/deep  type directory → file",
            "- tree/deep/er",
            "- tree/deep/link",
            "- tree/deep/twin",
            "M tree/fifo  mode 0640 → 0600",
            "M tree/file  content, mtime",
            "+ tree/new",
        ]
    );
    let json = m.run(&["diff", "--json", "mnt@@before", "mnt"]);
    let changes: serde_json::Value = serde_json::from_str(&json.out).expect("JSON");
    assert_eq!((json.code, &changes[6]["change"], &changes[6]["path"]), (1, &"+".into(), &"tree/new".into()));
    m.fails(2, "no/such", &["diff", "mnt", "no/such"]);
    m.fails(2, "\"nonsense\"", &["diff", "mnt@@nonsense", "mnt"]);
    m.fails(2, "required", &["diff", "mnt"]);
}

#[test]
fn files_of_different_sizes_differ_whatever_their_times() {
    let dir = tempfile::tempdir().expect("a directory");
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let stamp = |path: &Path| fs::metadata(path).map(|m| (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec())).ok();
    let at_once = |_| {
        fs::write(&a, "one").expect("new");
        fs::write(&b, "three").expect("new");
        stamp(&a) == stamp(&b)
    };
    assert!((0..1000).any(at_once), "some two are written within one tick of the clock");
    let done = darner(dir.path(), &["diff", "a", "b"]);
    assert_eq!((done.code, done.out.as_str()), (1, "M b  size 3 → 5\n"), "{}", done.err);
}

#[test]
fn what_is_mounted_in_a_tree_is_named_as_not_compared() {
    let Some(m) = Mounted::new() else { return };
    fs::create_dir_all(m.at("mnt/tree/deep")).expect("new");
    m.ok(&["snapshot", "mnt", "before"]);
    m.ok(&["mount", "--create", "other", "mnt/tree/deep"]);
    m.write("mnt/tree/deep/file", "");
    m.write("mnt/tree/new", "");
    let done = m.run(&["diff", "mnt/tree@@before", "mnt/tree"]);
    assert_eq!((done.code, done.out.as_str()), (2, "+ new\n"), "{}", done.err);
    assert!(done.err.contains("can't compare deep: another filesystem is mounted there"), "{}", done.err);
    let done = m.run(&["diff", "store", "mnt"]);
    assert!(done.code == 2 && done.err.contains("can't compare tree/deep: another"), "{}", done.err);
    m.same("mnt/tree/deep", "mnt/tree/deep");
}

#[test]
fn a_name_that_is_no_utf_8_is_told_apart_from_one_that_looks_like_it_escaped() {
    let Some(m) = Mounted::new() else { return };
    m.ok(&["snapshot", "mnt", "before"]);
    m.write(r"mnt/\xff", "");
    fs::write(m.at("mnt").join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"\xff")), "")
        .expect("new");
    assert_eq!(m.diff("mnt@@before", "mnt"), "+ \\\\xff\n+ \\xff\n");
    let told: serde_json::Value =
        serde_json::from_str(&m.run(&["diff", "--json", "mnt@@before", "mnt"]).out).expect("JSON");
    let line = |n: usize| (told[n]["path"].as_str(), told[n]["escaped"].as_bool());
    assert_eq!([line(0), line(1)], [(Some(r"\xff"), None), (Some(r"\xff"), Some(true))], "{told}");
}

#[test]
fn a_tree_is_restored_in_place_whole_and_that_can_be_undone() {
    let Some(m) = Mounted::new() else { return };
    grow(&m, "mnt/tree");
    m.ok(&["snapshot", "mnt", "before"]);
    fs::remove_dir_all(m.at("mnt/tree/deep")).expect("it is there");
    m.write("mnt/tree/file", "other");
    m.ok(&["snapshot", "mnt", "after"]);
    let told = m.ok(&["restore", "mnt/tree@@before"]);
    m.same("mnt/tree@@before", "mnt/tree");
    let meta = |path: &str| fs::symlink_metadata(m.at(path)).expect(path);
    assert_eq!(meta("mnt/tree/file").ino(), meta("mnt/tree/deep/twin").ino());
    assert!(meta("mnt/tree/sparse").blocks() < 1000, "holes stay holes");
    assert!(meta("mnt/tree/fifo").file_type().is_fifo());
    assert_eq!(fs::read_dir(m.at("mnt")).expect("it is there").count(), 1, "nothing else is left");
    let undo = told.lines().last().and_then(|l| l.strip_prefix("undo: darner restore ")).expect("how to undo it");
    m.ok(&["restore", undo]);
    m.same("mnt/tree@@after", "mnt/tree");
}

#[test]
fn a_strange_name_is_restored_and_the_line_that_undoes_it_can_be_given_to_a_shell() {
    let Some(m) = Mounted::new() else { return };
    for (label, name) in [("first", "it's a \u{1b}[31m\nname"), ("second", "the dog's")] {
        let path = format!("mnt/{name}");
        m.write(&path, "one");
        m.ok(&["snapshot", "mnt", label]);
        m.write(&path, "two");
        let told = m.ok(&["restore", &format!("{path}@@{label}")]);
        assert_eq!((m.read(&path).as_str(), told.lines().count()), ("one", 2), "{told:?}");
        let undo = told.lines().last().and_then(|l| l.strip_prefix("undo: darner ")).expect("how to undo it");
        let line = format!("{} {undo}", env!("CARGO_BIN_EXE_darner"));
        assert!(Command::new("bash").args(["-c", &line]).output().expect("bash is there").status.success(), "{line}");
        assert_eq!(m.read(&path), "two");
        let forgotten = m.ok(&["forget", &path]);
        let failed = m.run(&["log", &path]).err;
        assert!(![told, forgotten, failed].concat().contains('\u{1b}'));
    }
}

#[test]
fn a_file_of_which_the_name_begins_as_a_moment_would_is_restored() {
    let Some(m) = Mounted::new() else { return };
    m.write("mnt/.@@", "one");
    m.ok(&["snapshot", "mnt", "before"]);
    for path in ["mnt/.@@@@before", "mnt/@@before/.@@"] {
        m.write("mnt/.@@", "two");
        m.diff(path, "mnt/.@@");
        m.ok(&["restore", path]);
        assert_eq!(m.read("mnt/.@@"), "one", "{path}");
    }
}

#[test]
fn where_the_name_of_a_mount_point_would_command_a_terminal_status_escapes_it() {
    let Some(m) = Mounted::new() else { return };
    let strange = "a\u{1b}[31m\nb";
    fs::create_dir(m.at(strange)).expect("new");
    m.ok(&["mount", "--read-only", "store", strange]);
    let told = m.ok(&["status", "mnt"]);
    m.ok(&["unmount", strange]);
    assert!(told.contains(r"a\x1b[31m\nb (read-only)"), "{told}");
}

#[test]
fn what_is_gone_comes_back_and_copies_can_go_elsewhere() {
    let Some(m) = Mounted::new() else { return };
    grow(&m, "mnt/tree");
    m.ok(&["snapshot", "mnt", "before"]);
    fs::remove_dir_all(m.at("mnt/tree")).expect("it is there");
    m.fails(1, "does not exist any more", &["restore", "mnt/tree/deep@@before"]);
    m.ok(&["restore", "mnt/tree@@before"]);
    m.same("mnt@@before/tree", "mnt/tree");
    m.ok(&["restore", "mnt/tree/file@@before", "--to", "mnt/copy"]);
    m.same("mnt/tree/file@@before", "mnt/copy");
    m.ok(&["restore", "mnt@@before", "--to", "outside"]);
    m.same("mnt@@before", "outside");
}

/// `mnt/sub/z`, links to it within the mount and outside, and the label `before` from before `z` and `mnt/in` changed.
fn with_links(m: &Mounted) {
    fs::create_dir(m.at("mnt/sub")).expect("new");
    m.write("mnt/sub/z", "one");
    let link = |target: &str, at: &str| symlink(target, m.at(at)).expect("new");
    link("sub", "mnt/in");
    link("nowhere", "mnt/dangling");
    link("mnt/sub", "outside");
    link("mnt", "top");
    link("mnt/sub/z", "file");
    m.ok(&["snapshot", "mnt", "before"]);
    m.write("mnt/sub/z", "other");
}

/// Found by a user: the link was replaced by a directory, and nothing was restored.
#[test]
fn a_restore_through_a_link_is_of_what_it_leads_to_and_else_of_the_link_itself() {
    let Some(m) = Mounted::new() else { return };
    with_links(&m);
    let links = |m: &Mounted| {
        let link = |at: &str| fs::read_link(m.at(at)).expect("it is a link");
        ["mnt/in", "outside", "top", "file"].map(link)
    };
    let were = links(&m);
    for path in
        ["outside/@@", "outside/.@@", "outside@@", "mnt/in/@@", "mnt/in/.@@", "top/in/@@", "file@@", "outside/z@@"]
    {
        m.write("mnt/sub/z", "other");
        let told = m.ok(&["restore", &format!("{path}before")]);
        assert_eq!((m.read("mnt/sub/z").as_str(), links(&m)), ("one", were.clone()), "{path}");
        let undo = told.lines().last().and_then(|l| l.strip_prefix("undo: darner restore ")).expect("how to undo it");
        m.ok(&["restore", undo]);
        assert_eq!(m.read("mnt/sub/z"), "other", "{path}");
    }
    m.fails(1, "mount point", &["restore", "top@@before"]);
    fs::remove_file(m.at("mnt/in")).expect("it is there");
    symlink("/", m.at("mnt/in")).expect("new");
    m.ok(&["restore", "mnt/in@@before"]);
    assert_eq!((m.read("mnt/sub/z").as_str(), links(&m)), ("other", were));
}

#[test]
fn the_log_of_a_link_is_its_own_and_forgetting_it_leaves_what_it_leads_to() {
    let Some(m) = Mounted::new() else { return };
    with_links(&m);
    let log = |path: &str| m.json(&["log", "--json", path]);
    let own = log("mnt/in");
    assert_eq!((own[0]["size"].as_u64(), own.as_array().map(Vec::len)), (Some(3), Some(1)), "{own}");
    assert_eq!(log("mnt/in@@before"), own);
    assert_eq!(log("mnt/dangling")[0]["size"], 7);
    for path in ["mnt/in/", "mnt/in/.", "outside", "outside/"] {
        assert_eq!(log(path), log("mnt/sub"), "{path}");
    }
    assert_eq!(log("file"), log("mnt/sub/z"));
    m.ok(&["forget", "mnt/in"]);
    assert!(fs::symlink_metadata(m.at("mnt/in")).is_err());
    assert_eq!(m.read("mnt/sub@@before/z"), "one");
    m.fails(1, "is not in a darner mount", &["forget", "file"]);
    assert_eq!((m.read("file").as_str(), m.read("mnt/sub/z@@before").as_str()), ("other", "one"));
}

#[test]
fn both_sides_of_a_diff_are_what_a_link_leads_to_or_both_are_the_link() {
    let Some(m) = Mounted::new() else { return };
    with_links(&m);
    let z = "M z  size 3 → 5, mtime\n";
    for (a, b) in [("outside", "outside"), ("outside/", "outside/"), ("mnt/in/", "mnt/in/"), ("mnt/sub", "outside")] {
        assert_eq!(m.diff(&format!("{a}@@before"), b), z, "{a} {b}");
    }
    for b in ["top", "top/", "mnt"] {
        assert_eq!(m.diff("top@@before", b), "M sub/z  size 3 → 5, mtime\n");
    }
    assert_eq!(m.diff("file@@before", "file"), "M file  size 3 → 5, mtime\n");
    m.same("mnt/in@@before", "mnt/in");
    fs::remove_file(m.at("mnt/in")).expect("it is there");
    symlink("elsewhere", m.at("mnt/in")).expect("new");
    assert_eq!(m.diff("mnt/in@@before", "mnt/in"), "M mnt/in  target, mtime\n");
}

#[test]
fn a_restore_that_fails_leaves_nothing_behind() {
    let Some(m) = Mounted::new() else { return };
    grow(&m, "mnt/tree");
    m.ok(&["snapshot", "mnt", "before"]);
    m.write("mnt/tree/file", "other");
    m.ok(&["mount", "--create", "--size", "100M", "small", "past"]);
    let big = fs::File::create(m.at("mnt/big")).expect("new");
    let noise: Vec<u8> = (0..1 << 20).map(|_| fastrand::u8(..)).collect();
    (0..100).for_each(|i| std::os::unix::fs::FileExt::write_all_at(&big, &noise, i << 20).expect("room"));
    m.fails(1, "No space left", &["restore", "mnt@@now", "--to", "past/copy"]);
    assert_eq!(fs::read_dir(m.at("past")).expect("it is there").count(), 0);
    m.fails(1, "exists already", &["restore", "mnt/tree@@before", "--to", "mnt/big"]);
    m.fails(1, "mount point", &["restore", "mnt@@before"]);
    m.fails(1, "as of when", &["restore", "mnt/tree"]);
    m.fails(1, "did not exist", &["restore", "mnt/big@@before"]);
    m.ok(&["unmount", "past"]);
    // (The small one is full, and keeps everything.)
    m.ok(&["mount", "--create", "--size", "100M", "another", "mnt/tree/deep"]);
    m.write("mnt/tree/deep/other", "of another filesystem");
    m.fails(1, "unmount it first", &["restore", "mnt/tree@@before"]);
    assert_eq!(m.read("mnt/tree/deep/other"), "of another filesystem");
    m.ok(&["unmount", "mnt/tree/deep"]);
    assert_eq!(m.read("mnt/tree/file"), "other");
}

#[test]
fn the_past_can_be_mounted_beside_the_present() {
    let Some(m) = Mounted::new() else { return };
    grow(&m, "mnt/tree");
    m.ok(&["snapshot", "mnt", "before"]);
    m.write("mnt/tree/file", "other");
    fs::create_dir(m.at("past")).expect("new");
    m.ok(&["mount", "--as-of", "before", "store", "past"]);
    m.same("past", "mnt@@before");
    assert!(fs::write(m.at("past/new"), "").is_err());
    for path in ["past/tree/file@@before", "past/tree/file", "past/tree/file@@now"] {
        m.fails(1, "is of the past", &["restore", path]);
    }
    m.ok(&["snapshot", "past", "again"]);
    m.ok(&["snapshot", "mnt/tree@@before", "once-more"]);
    let labels = m.json(&["snapshot", "list", "mnt", "--json"]);
    let tid = |name: &str| labels.as_array().and_then(|all| all.iter().find(|l| l["label"] == name)).map(|l| &l["tid"]);
    assert!(tid("before").is_some() && tid("again") == tid("before") && tid("once-more") == tid("before"), "{labels}");
    assert_eq!(m.json(&["status", "--json", "past"])["mounts"].as_array().map(Vec::len), Some(2));
}

#[test]
fn mistakes_are_told_in_one_line_and_leave_nothing_mounted() {
    let Some(m) = Mounted::new() else { return };
    fs::create_dir(m.at("empty")).expect("new");
    fs::create_dir(m.at("dir")).expect("new");
    m.fails(1, "can't find the store nowhere", &["mount", "nowhere", "dir"]);
    m.fails(1, "holds no darner store", &["mount", "empty", "dir"]);
    m.fails(1, "is mounted on", &["mount", "store", "dir"]);
    m.fails(1, "mounted on it already", &["mount", "store", "mnt"]);
    m.fails(1, "no moment of this filesystem", &["mount", "--as-of", "1999-01-01", "store", "dir"]);
    m.fails(
        1,
        "can't open the log /nowhere/log: No such",
        &["mount", "--log", "/nowhere/log", "another", "dir", "--create"],
    );
    m.fails(1, "can't open the log /nowhere/log: No such", &["attach", "dir", "hello", "--log", "/nowhere/log"]);
    m.fails(1, "mount option nonsense", &["mount", "-o", "nonsense", "store", "dir"]);
    m.fails(1, "as-of=-1d: unknown (is as_of meant?)", &["mount", "-o", "as-of=-1d", "store", "dir"]);
    m.fails(1, "is not mounted", &["unmount", "dir"]);
    m.fails(1, "is not in a darner mount", &["status", "dir"]);
    m.fails(1, "is already open in process", &["create", "store"]);
    m.fails(1, "is not empty", &["create", "."]);
    m.fails(1, "a store needs", &["mount", "--create", "--size", "1M", "tiny", "dir"]);
    assert!(!m.at("tiny").exists());
    m.fails(2, "not a size", &["mount", "--create", "--size", "10Q", "q", "dir"]);
    m.ok(&["unmount", "mnt"]);
    m.fails(1, "missing", &["mount", "store", "missing"]);
    m.fails(1, "is not mounted", &["status", "store"]);
    let mounts = fs::read_to_string("/proc/self/mounts").expect("it is there");
    assert!(!mounts.contains(m.dir.path().to_str().expect("UTF-8")), "something stayed mounted");
    m.ok(&["mount", "store", "mnt"]);
}

#[test]
fn why_a_text_is_no_moment_is_told() {
    let Some(m) = Mounted::new() else { return };
    m.write("mnt/f", "one");
    m.ok(&["snapshot", "mnt", "before"]);
    let then = m.json(&["snapshot", "list", "mnt", "--json"])[0]["tid"].as_str().expect("a tid").to_string();
    m.ok(&["snapshot", "remove", "mnt", "before"]);
    m.write("mnt/f", "two");
    m.ok(&["retain", "mnt", "none"]);
    m.ok(&["clean", "mnt", "--wait"]);
    let given_up =
        format!("{then}\" is no moment of this filesystem: it is not kept any more; the oldest that is, is 0x");
    for (when, why) in [
        ("nonsense", "it is no time, label or tid"),
        ("1999-01-01", "it is before the filesystem was made, "),
        ("2999-01-01", "it lies in the future"),
        (&then, &given_up),
    ] {
        for args in [&["restore", &format!("mnt/f@@{when}")][..], &["snapshot", "mnt", "label", "--at", when]] {
            m.fails(1, why, args);
        }
    }
}

#[test]
fn an_image_file_is_a_store_too() {
    if !can_mount() {
        return;
    }
    let m = Mounted { dir: tempfile::tempdir().expect("a directory") };
    m.fails(1, "--size", &["create", "--image", "disk"]);
    m.ok(&["create", "--image", "--size", "100M", "disk"]);
    m.fails(1, "holds a store already", &["create", "disk"]);
    fs::write(m.at("noise"), vec![7; 2 << 20]).expect("new");
    m.fails(1, "holds something (its first MiB is not empty)", &["create", "noise"]);
    fs::create_dir(m.at("mnt")).expect("new");
    m.ok(&["mount", "disk", "mnt"]);
    m.write("mnt/a", "one");
    m.ok(&["unmount", "mnt"]);
    // What is at its end is looked at, too.
    m.ok(&["check", "disk"]);
    let image = fs::OpenOptions::new().write(true).open(m.at("disk")).expect("it is there");
    std::os::unix::fs::FileExt::write_all_at(&image, &vec![0; 1 << 20], 99 << 20).expect("written");
    let checked = m.run(&["check", "disk"]);
    assert!(
        checked.code == 1 && checked.out.contains("1 copies of the superblock"),
        "{} {:?}",
        checked.code,
        checked.out
    );
    m.ok(&["mount", "disk", "mnt"]);
    assert_eq!(m.read("mnt/a"), "one");
}

/// Ends the daemon and its supervisor, so that neither starts the other again, and mounts again.
fn kill_daemon(m: &Mounted) {
    let status = m.json(&["status", "--json", "mnt"]);
    for signal in [libc::SIGSTOP, libc::SIGKILL] {
        for name in ["daemon_pid", "supervisor_pid"] {
            let pid = status[name].as_u64().expect("a number");
            // SAFETY: a plain system call; the processes are our own.
            assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
        }
    }
    let dead = || fs::metadata(m.at("mnt")).is_err_and(|e| e.raw_os_error() == Some(libc::ENOTCONN));
    for _ in 0..500 {
        if dead() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(dead(), "a dead mount says so");
    m.ok(&["unmount", "mnt"]);
    m.ok(&["mount", "store", "mnt"]);
}

#[test]
fn a_killed_daemon_loses_nothing_that_was_synced() {
    let Some(m) = Mounted::new() else { return };
    m.write("mnt/early", "not synced, but long ago");
    std::thread::sleep(std::time::Duration::from_millis(500));
    m.write("mnt/synced", "synced");
    fs::File::open(m.at("mnt/synced")).and_then(|f| f.sync_all()).expect("it syncs");
    m.write("mnt/late", "perhaps");
    kill_daemon(&m);
    assert_eq!((m.read("mnt/early").as_str(), m.read("mnt/synced").as_str()), ("not synced, but long ago", "synced"));
}

#[test]
fn a_full_store_says_so_and_deleting_still_works() {
    if !can_mount() {
        return;
    }
    let m = Mounted { dir: tempfile::tempdir().expect("a directory") };
    m.ok(&["mount", "--create", "--size", "100M", "store", "mnt"]);
    let noise: Vec<u8> = (0..1 << 20).map(|_| fastrand::u8(..)).collect();
    let full = (0..200).find_map(|i| fs::write(m.at(&format!("mnt/{i}")), &noise).err());
    assert_eq!(full.and_then(|e| e.raw_os_error()), Some(libc::ENOSPC));
    for i in 0..20 {
        fs::remove_file(m.at(&format!("mnt/{i}"))).expect("deleting works");
    }
    m.ok(&["unmount", "mnt"]);
    m.ok(&["mount", "store", "mnt"]);
    assert!(!m.at("mnt/0").exists() && m.at("mnt/20").exists());
}

#[test]
fn man_pages_and_completions_cover_every_command() {
    let dir = tempfile::tempdir().expect("a directory");
    assert_eq!(darner(dir.path(), &["man", "pages"]).code, 0);
    let bash = darner(dir.path(), &["completions", "bash"]).out;
    for command in ["create", "mount", "unmount", "status", "log", "diff", "restore", "snapshot", "inspect", "check"] {
        assert!(dir.path().join(format!("pages/darner-{command}.1")).exists(), "{command}");
        assert!(bash.contains(command));
    }
    assert_eq!(darner(dir.path(), &["completions", "nosuchshell"]).code, 2);
    assert_eq!(darner(dir.path(), &["--version"]).code, 0);
}

#[test]
fn a_reader_that_went_away_is_no_error_and_a_full_standard_output_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let completions = |to: fs::File| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_darner"));
        let done =
            command.args(["completions", "bash"]).current_dir(dir.path()).stdout(to).output().expect("it starts");
        (done.status.code(), String::from_utf8(done.stderr).expect("UTF-8"))
    };
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    assert_eq!(completions(fs::File::from(std::os::fd::OwnedFd::from(writer))), (Some(0), String::new()));
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("it is there");
    let told = "darner: can't write to standard output: No space left on device (os error 28)\n";
    assert_eq!(completions(full), (Some(1), told.into()));
}

#[test]
fn who_writes_a_moment_as_an_argument_is_told_that_it_goes_behind_a_name() {
    let dir = tempfile::tempdir().unwrap();
    for args in [&["diff", "mnt", "-1m"][..], &["restore", "mnt/f", "-1h30m"], &["snapshot", "mnt", "-1h"]] {
        let done = darner(dir.path(), args);
        assert_eq!(done.code, 2);
        assert!(done.err.contains(&format!("NAME@@{}", args[2])), "{}", done.err);
    }
    let done = darner(dir.path(), &["diff", "mnt", "-x"]);
    assert!(done.code == 2 && !done.err.contains("@@"), "{}", done.err);
}
