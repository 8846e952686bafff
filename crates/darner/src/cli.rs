//! The command line: the one definition from which help, man pages and completions are made.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, FromArgMatches, Parser, Subcommand};

/// A filesystem that never forgets
///
/// Every write is kept. In a mounted directory, NAME@@WHEN is NAME as it was: notes.txt@@-10m, src@@yesterday,
/// @@2026-11-22T09:30/. WHEN is -10m, -1h30m, yesterday, a date, a date and time, a label, or 0x… (an exact transaction).
#[derive(Parser, Debug)]
#[command(name = "darner", version, max_term_width = 100)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What describes the arguments of a command.
type Describe = fn(clap::Command) -> clap::Command;

/// Commands of which many are given one after the other, by scripts: to describe all others costs more than most of these do.
const OFTEN: [(&[&str], Describe); 6] = [
    (&["mirror", "sync"], SyncOf::augment_args),
    (&["mirror"], Mirror::augment_args),
    (&["retain"], Retain::augment_args),
    (&["snapshot"], Snapshot::augment_args),
    (&["status"], Status::augment_args),
    (&["stay"], Stay::augment_args),
];

impl Cli {
    /// What the arguments say. Where they say nothing that makes sense, or ask for help, this does not return.
    pub fn of(args: Vec<OsString>) -> Cli {
        Cli::lean(&args)
            .unwrap_or_else(|| Cli::try_parse_from(&args).unwrap_or_else(|e| point_to_names(e, &args).exit()))
    }

    /// What they say, if it is one of [`OFTEN`], and correct.
    fn lean(args: &[OsString]) -> Option<Cli> {
        let given = args.get(1..)?;
        let (names, describe) = OFTEN
            .iter()
            .find(|(names, _)| given.len() >= names.len() && names.iter().zip(given).all(|(n, g)| g == n))?;
        let mut described = describe(clap::Command::new(*names.last()?));
        for name in names.iter().rev().skip(1).chain([&"darner"]) {
            described = clap::Command::new(*name).subcommand_required(true).subcommand(described);
        }
        Cli::from_arg_matches(&described.try_get_matches_from(args).ok()?).ok()
    }
}

/// Who writes a moment as an argument of its own, `-1h`, is told where it belongs, not that there is no option `-1`.
fn point_to_names(mut e: clap::Error, args: &[OsString]) -> clap::Error {
    let is_moment = |text: &&str| {
        text.starts_with('-') && darner_fs::when::parse(text, u64::MAX / 2, &jiff::tz::TimeZone::UTC).is_some()
    };
    let taken_for_option = match (e.kind(), e.get(ContextKind::InvalidArg)) {
        (ErrorKind::UnknownArgument, Some(ContextValue::String(option))) => option.clone(),
        _ => return e,
    };
    let mut texts = args.iter().filter_map(|a| a.to_str());
    if let Some(moment) = texts.find(|text| text.starts_with(&taken_for_option) && is_moment(text)) {
        let tip = format!("'{moment}' is a moment, which goes behind a name: NAME@@{moment}");
        e.insert(ContextKind::InvalidArg, ContextValue::String(moment.into()));
        e.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    e
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Make an empty store: a directory, an image file or a block device
    Create(Create),
    /// Mount a store on a directory
    Mount(Mount),
    /// End a mount; returns when everything is durable and the store can be mounted again
    Unmount(Unmount),
    /// What a store holds, who serves it, and how full it is
    Status(Status),
    /// The versions of a file or directory, deleted ones too
    Log(Log),
    /// What differs between two trees, of any two moments
    ///
    /// The exit code is 0 where nothing does, 1 where something does, and 2 where something could not be compared, such as what is mounted or
    /// attached in one of the trees.
    Diff(Diff),
    /// Bring back what PATH was at a moment
    Restore(Restore),
    /// Name a moment; list or remove such names
    Snapshot(Snapshot),
    /// The places that a store is on: list, add, empty, remove or resize them, while it is in use
    Volume(Volume),
    /// Filesystems of their own within a store: make, list, rename, limit or remove them
    Fileset(Fileset),
    /// Live copies that follow: make, list and command mirrors
    Mirror(Mirror),
    /// Let stores on other machines follow this one: where it listens, and who is admitted
    Serve(Serve),
    /// Make a fileset of what another one is, or was; nothing is copied
    Clone(CloneOf),
    /// What is kept of the past, and for how long: show or change it
    Retain(Retain),
    /// Give back the space of what is not kept any more, now
    Clean(Clean),
    /// Destroy every version of a file or tree, in all moments, labelled ones too
    Forget(Forget),
    /// Print the segments and records of a store that is not mounted
    Inspect(Inspect),
    /// Read and verify everything in a store that is not mounted; changes nothing
    Check(Check),
    /// Read and verify every byte of a mounted store, now; or show what the last scrub found
    Scrub(Scrub),
    /// Derive the index of a store that is not mounted anew from its segments
    Rebuild(Rebuild),
    /// Measure speed beside other filesystems on the same disk, or as a store grows
    Bench(Bench),
    /// Write the man pages to a directory
    #[command(hide = true)]
    Man(Man),
    /// Print completions for a shell
    Completions(Completions),
    /// Has another daemon go on with the mounts of a store, under whatever uses them: of a new version, or after it crashed again and again
    Upgrade(Upgrade),
    /// The supervisor behind `mount`
    #[command(hide = true)]
    Daemon(Mount),
    /// The process that it starts, which serves
    #[command(hide = true)]
    Worker(Mount),
    /// What that one starts for what it must not do itself
    #[command(hide = true)]
    Errands,
    /// Have a daemon for a store that has something to do without a mount
    #[command(hide = true)]
    Stay(Stay),
    /// Show a filesystem that is a process of its own in a directory: an image, an archive, or what a program makes up
    Attach(Attach),
    /// End that
    Detach(Detach),
    /// The supervisor behind `attach`
    #[command(hide = true)]
    Attachment(Attach),
    /// The process that it starts, which serves
    #[command(hide = true)]
    Host(Attach),
    /// The sandbox that a plug-in runs in
    #[command(hide = true)]
    Plugin(Plugin),
}

/// `darner create`
#[derive(Args, Debug)]
pub struct Create {
    /// A new or empty directory, an image file, or a block device
    pub store: PathBuf,
    /// Bytes that the store may use of each volume (10G, 500M, …); without it, all there are
    #[arg(long, value_parser = size)]
    pub size: Option<u64>,
    /// Make STORE, and each volume, an image file of --size bytes
    #[arg(long)]
    pub image: bool,
    /// Overwrite what is on the file or device
    #[arg(long)]
    pub force: bool,
    /// Write a partition table (GPT) to the device or image file, with one partition of our type, and make the volume in that
    #[arg(long)]
    pub gpt: bool,
    /// Another volume of the store, as STORE is the first (may be given several times)
    #[arg(long = "volume", value_name = "PATH")]
    pub volumes: Vec<PathBuf>,
    /// How many copies it keeps: 2 of everything, 2 of the index (as if nothing is said where there are two volumes), or 1
    #[arg(long, value_parser = ["1", "2", "index"])]
    pub copies: Option<String>,
}

/// `darner mount`
#[derive(Args, Debug, Clone)]
pub struct Mount {
    /// Make the store if it does not exist
    #[arg(long)]
    pub create: bool,
    /// Bytes that a created store may use (10G, 500M, …); without it, all there are
    #[arg(long, value_parser = size)]
    pub size: Option<u64>,
    /// Mount this fileset by itself
    #[arg(long, value_name = "NAME")]
    pub fileset: Option<String>,
    /// Mount the past: the tree as of WHEN, read-only
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    pub as_of: Option<String>,
    /// Change nothing
    #[arg(long)]
    pub read_only: bool,
    /// Mount with volumes missing: what has a copy elsewhere is all there, reading anything else that was on them fails
    #[arg(long)]
    pub degraded: bool,
    /// Stay in the foreground
    #[arg(long)]
    pub foreground: bool,
    /// Start no supervisor: the mount ends with the daemon, however that ends
    #[arg(long, hide = true)]
    pub no_supervisor: bool,
    /// Memory for index, cache and buffers
    #[arg(long, value_parser = size, default_value = "256M")]
    pub memory: u64,
    /// Serving threads
    #[arg(long, default_value_t = 4)]
    pub threads: usize,
    /// Microseconds to poll for the next request before sleeping; 0 saves power, 50 is several times faster
    #[arg(long, default_value_t = 50)]
    pub poll: u64,
    /// Write the daemon's log to this file (RUST_LOG chooses what)
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Of a daemon: mount nothing (whatever MNT is), for a store that has something to do without
    #[arg(long, hide = true)]
    pub without_mount: bool,
    /// Where s3://BUCKET/PREFIX has its open segment, index and what is read much here: a new or empty directory, or the one of before
    #[arg(long, value_name = "DIR")]
    pub local: Option<PathBuf>,
    /// Where a volume of the store is that has moved, or, of one that is made, another volume (may be given several times)
    #[arg(long = "volume", value_name = "PATH")]
    pub volumes: Vec<PathBuf>,
    /// How many copies a created store keeps: 2 of everything, 2 of the index (as if nothing is said where there are two volumes), or 1
    #[arg(long, value_parser = ["1", "2", "index"], requires = "create")]
    pub copies: Option<String>,
    /// Mount options as in fstab: ro, degraded, allow_other, nosuid, nodev, noexec, writeback, subtype=…, as_of=…, fileset=…, volume=…,
    /// create, size=…, copies=…, local=…
    #[arg(short, value_name = "OPTIONS", value_delimiter = ',')]
    pub options: Vec<String>,
    /// Nothing is printed but errors (mount(8) passes these)
    #[arg(short = 'v', hide = true)]
    pub verbose: bool,
    /// Filesystem type, as mount(8) passes it
    #[arg(short = 't', hide = true)]
    pub kind: Option<String>,
    /// The store; or s3://BUCKET/PREFIX: what has reached a bucket, which is taken over from the machine that put it there
    pub store: PathBuf,
    /// Where
    pub mountpoint: PathBuf,
}

/// `darner stay`
#[derive(Args, Debug)]
pub struct Stay {
    /// The store: where it may be
    #[arg(required = true)]
    pub stores: Vec<PathBuf>,
    /// Its uuid, in hexadecimal
    #[arg(long, value_parser = |text: &str| u128::from_str_radix(text, 16))]
    pub uuid: Option<u128>,
    /// Where what it follows is
    #[arg(long)]
    pub source: Option<PathBuf>,
}

/// `darner upgrade`
#[derive(Args, Debug)]
pub struct Upgrade {
    /// A mount of the store, or the store; or what is attached somewhere
    pub mnt: PathBuf,
    /// The program that goes on; without it, this one
    #[arg(long, value_name = "FILE")]
    pub program: Option<PathBuf>,
}

/// `darner attach`
///
/// The plug-in runs in a sandbox: without network, privileges or files, but for those that it is handed. Killed, hung or malicious,
/// it harms nothing but its own directory. Nothing is changed in it, or in the files, without --writable.
///
/// Plug-ins in this program: hello; archive FILE (tar, tar.gz, zip); iso9660 IMAGE; msdosfs IMAGE (FAT12, 16, 32). The file
/// may be one of the past, image.iso@@-1h, or a block device. docs/vfs.md tells how to write others.
#[derive(Args, Debug, Clone)]
pub struct Attach {
    /// Let it be changed, if the plug-in can, and the files too
    #[arg(long)]
    pub writable: bool,
    /// Hand over a file to PROGRAM, as a descriptor (may be given several times)
    #[arg(long = "file", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// How long it may take to answer a call; then that fails
    #[arg(long, value_parser = duration, default_value = "10s", value_name = "TIME")]
    pub deadline: std::time::Duration,
    /// Memory that it may have
    #[arg(long, value_parser = size, default_value = "512M")]
    pub memory: u64,
    /// Whether it may start processes: more than 1, and so many; threads count as well, of which it may have 64 more
    #[arg(long, default_value_t = 1)]
    pub processes: u32,
    /// Do not start it again when it has ended
    #[arg(long)]
    pub no_restart: bool,
    /// Write the log, and what the plug-in prints, to this file (RUST_LOG chooses what)
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Where: a directory; what is in it is hidden meanwhile
    pub directory: PathBuf,
    /// One of the plug-ins in this program
    #[arg(value_name = "PLUG-IN", required_unless_present = "program", conflicts_with_all = ["program", "files"])]
    pub plugin: Option<String>,
    /// What it shows
    #[arg(value_name = "FILE", conflicts_with = "program")]
    pub of: Option<PathBuf>,
    /// Another program, and its arguments
    #[arg(last = true, value_name = "PROGRAM")]
    pub program: Vec<std::ffi::OsString>,
}

/// `darner detach`
#[derive(Args, Debug)]
pub struct Detach {
    /// Detach now, end when nothing uses it any more
    #[arg(long)]
    pub lazy: bool,
    /// Where
    pub directory: PathBuf,
}

/// What a sandbox is started with.
#[derive(Args, Debug)]
pub struct Plugin {
    /// See [`Attach::memory`]
    #[arg(long)]
    pub memory: u64,
    /// See [`Attach::processes`]
    #[arg(long)]
    pub processes: u32,
    /// See [`Attach::writable`]
    #[arg(long)]
    pub writable: bool,
    /// See [`Attach::plugin`]
    #[arg(long)]
    pub name: Option<String>,
    /// See [`Attach::program`]
    #[arg(last = true)]
    pub program: Vec<std::ffi::OsString>,
}

/// `darner unmount`
#[derive(Args, Debug)]
pub struct Unmount {
    /// Detach now, end when nothing uses it any more
    #[arg(long)]
    pub lazy: bool,
    /// Where it is mounted
    pub mountpoint: PathBuf,
}

/// `darner status`
#[derive(Args, Debug)]
pub struct Status {
    /// A mount point, a path in a mount, a store, or what is attached somewhere
    pub mnt: PathBuf,
    /// What the history of each age costs (reads the whole index)
    #[arg(long)]
    pub by_time: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `darner log`
#[derive(Args, Debug)]
pub struct Log {
    /// A path in a mount; it need not exist any more
    pub path: PathBuf,
    /// Every write by itself, not runs of writes as one
    #[arg(long)]
    pub all: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `darner diff`
#[derive(Args, Debug)]
pub struct Diff {
    /// A tree or file, such as mnt@@-1d or mnt/@@yesterday/src
    pub a: PathBuf,
    /// Another, such as mnt
    pub b: PathBuf,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `darner restore`
#[derive(Args, Debug)]
pub struct Restore {
    /// PATH@@WHEN: what to bring back
    pub source: PathBuf,
    /// Put it there, under a new name, instead of in place
    #[arg(long, value_name = "DEST")]
    pub to: Option<PathBuf>,
}

/// `darner snapshot`
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Snapshot {
    /// List or remove
    #[command(subcommand)]
    pub action: Option<SnapshotAction>,
    /// A mount point
    #[arg(required = true)]
    pub mnt: Option<PathBuf>,
    /// The name
    #[arg(required = true)]
    pub label: Option<String>,
    /// Name this moment instead of now
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    pub at: Option<String>,
}

/// What else to do with labels.
#[derive(Subcommand, Debug)]
pub enum SnapshotAction {
    /// All labels
    List {
        /// A mount point
        mnt: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Forget a label; history stays
    Remove {
        /// A mount point
        mnt: PathBuf,
        /// The name
        label: String,
    },
}

/// `darner volume`
///
/// A store is on one volume or several: directories, image files, block devices, a bucket. What is on a volume can be moved to others
/// while the filesystem is in use, and any volume can leave, the first one too.
#[derive(Args, Debug)]
pub struct Volume {
    /// What to do
    #[command(subcommand)]
    pub action: VolumeAction,
}

/// What to do with volumes.
#[derive(Subcommand, Debug)]
pub enum VolumeAction {
    /// Add a new or empty directory, an image file, a block device, or s3://BUCKET/PREFIX
    ///
    /// How a bucket is reached the variables AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL, … say, when it is
    /// added, and when the store is mounted; a cloud machine's own role is asked for only with AWS_METADATA_ENDPOINT=http://169.254.169.254.
    /// Adding it again reaches it by what they say now. All that is sealed is put there as well, from
    /// time to time with what makes it a whole; where room gets short here, what was not read for longest stays there only.
    Add {
        /// A mount point
        mnt: PathBuf,
        /// Where
        path: PathBuf,
        /// Bytes that the store may use of it (10G, 500M, …); without it, all there are
        #[arg(long, value_parser = size)]
        size: Option<u64>,
        /// Make PATH an image file of --size bytes
        #[arg(long)]
        image: bool,
        /// Overwrite what is on the file or device
        #[arg(long)]
        force: bool,
        /// hot: for all that is new. cold: for what is not read much, when room gets short on the others; buckets always are
        #[arg(long, value_parser = ["hot", "cold"])]
        tier: Option<String>,
    },
    /// All volumes, and how full they are
    List {
        /// A mount point
        mnt: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Have all that is there now reach the bucket, from which it could be opened elsewhere; returns when it has
    Push {
        /// A mount point
        mnt: PathBuf,
    },
    /// Move one segment, pack or table, or all that is on a volume now
    Move {
        /// A mount point
        mnt: PathBuf,
        /// Its number, as inspect prints it
        #[arg(value_name = "SEGMENT", required_unless_present = "from", conflicts_with = "from")]
        segment: Option<String>,
        /// Everything that is on this volume now
        #[arg(long, value_name = "ID")]
        from: Option<u16>,
        /// Where to
        #[arg(long, value_name = "ID")]
        to: u16,
    },
    /// Empty a volume and let go of it; killed, that goes on at the next mount
    Remove {
        /// A mount point
        mnt: PathBuf,
        /// Its number
        id: u16,
        /// It is missing or has failed, and will not come back: what was on it only is lost
        #[arg(long)]
        lost: bool,
    },
    /// Keep two copies of everything, of one fileset, or of the index, on different volumes; without a number, tells how that is
    Copies {
        /// A mount point
        mnt: PathBuf,
        /// 2, 1, or index: of tables and manifests, so that with a volume missing the tree can be read
        #[arg(value_parser = ["1", "2", "index"])]
        copies: Option<String>,
        /// Only of this fileset (2), or no longer of it (1)
        #[arg(long, value_name = "NAME", requires = "copies")]
        fileset: Option<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Take back a volume whose beginning was overwritten (by mkfs or dd, say), by the label at its end; or a directory whose superblocks
    /// are gone, by its newest manifest. Not of a mounted store
    Reclaim {
        /// The device, image file or directory
        path: PathBuf,
        /// Of a directory: another volume of its store, which knows more
        #[arg(long, value_name = "VOLUME")]
        of: Option<PathBuf>,
        /// Also where it holds something else by now, which is destroyed
        #[arg(long)]
        force: bool,
    },
    /// Change how much of a directory may be used; make an image file longer or shorter; or empty the end of a device
    Resize {
        /// A mount point
        mnt: PathBuf,
        /// Its number
        id: u16,
        /// Bytes (10G, 500M, …), or none: all there are
        #[arg(value_parser = limit)]
        size: u64,
    },
}

/// `darner mirror`
///
/// A mirror is a store of its own that follows a fileset, mounted or not. Mount it (read-only) as any store to look at it. It has
/// its own volumes, retention and labels. A mirror is meant by a mount point of its source and its name there, or by its own store.
#[derive(Args, Debug)]
pub struct Mirror {
    /// What to do
    #[command(subcommand)]
    pub action: MirrorAction,
}

/// A moment, as commands print it: `0x…`; 0 is before all.
pub(crate) fn tid(text: &str) -> Result<u64, String> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).map_err(|e| e.to_string()),
        None if text == "0" => Ok(0),
        None => Err("a moment is 0x…".into()),
    }
}

/// Which mirror is to pull.
#[derive(Args, Debug)]
pub struct SyncOf {
    /// A mount point of the source, or the mirror's own store
    pub mnt: PathBuf,
    /// Its name at its source
    pub name: Option<String>,
    /// Return when it shows all that is there now
    #[arg(long)]
    pub wait: bool,
}

/// What to do with mirrors.
#[derive(Subcommand, Debug)]
pub enum MirrorAction {
    /// Make a store that follows the fileset that MNT is in
    Add {
        /// A path in the fileset
        mnt: PathBuf,
        /// The mirror's name here
        name: String,
        /// The new store: a directory that does not exist yet, or is empty; or a mirror whose source has another address now
        target: PathBuf,
        /// Bytes a second that it pulls at most (10M, …), or none
        #[arg(long, value_name = "BYTES", value_parser = limit)]
        limit: Option<u64>,
    },
    /// Make a store here that follows one on another machine, which `darner serve`s there
    Follow {
        /// The new store: a directory that does not exist yet, or is empty
        store: PathBuf,
        /// What it follows: darner://HOST:PORT, or one fileset of it: darner://HOST:PORT/FILESET
        source: String,
        /// What `darner serve MNT --ticket` printed there: lets this store in, and says whom to expect
        #[arg(long)]
        ticket: Option<String>,
        /// Instead: the fingerprint of the other store's key, where this store's is admitted
        #[arg(long, value_name = "FINGERPRINT", conflicts_with = "ticket")]
        key: Option<String>,
        /// Bytes a second that it pulls at most (10M, …), or none
        #[arg(long, value_name = "BYTES", value_parser = limit)]
        limit: Option<u64>,
    },
    /// The mirrors that were added here, or this mirror: how far they are, and what they wait for
    List {
        /// A mount point of the source, or a mirror's own store
        mnt: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Have one pull now; one that is paused pulls once, and stays paused
    Sync(SyncOf),
    /// Have one pull no more, until it is resumed: unless it is mounted, its store is then closed
    Pause {
        /// A mount point of the source, or the mirror's own store
        mnt: PathBuf,
        /// Its name at its source
        name: Option<String>,
    },
    /// Have one pull again
    Resume {
        /// A mount point of the source, or the mirror's own store
        mnt: PathBuf,
        /// Its name at its source
        name: Option<String>,
        /// Bytes a second that it pulls at most (10M, …), or none
        #[arg(long, value_name = "BYTES", value_parser = limit)]
        limit: Option<u64>,
    },
    /// Have an old source, whose mirror was promoted, follow that; what it has from after that is kept as a clone
    Return {
        /// The old source's store, which is not mounted
        store: PathBuf,
        /// The promoted store, which must be mounted or served: a path, or darner://HOST:PORT
        promoted: String,
        /// What `darner serve --ticket` printed there: lets this store in, and says whom to expect
        #[arg(long)]
        ticket: Option<String>,
        /// Instead: the fingerprint of the other store's key, where this store's is admitted
        #[arg(long, value_name = "FINGERPRINT", conflicts_with = "ticket")]
        key: Option<String>,
    },
    /// Compare one with its source, by digests, and have the source tell anew what differs; exit code 1 where something does still
    Verify {
        /// A mount point of the source, or the mirror's own store
        mnt: PathBuf,
        /// Its name at its source
        name: Option<String>,
        /// The bytes of files too, which both sides read
        #[arg(long)]
        data: bool,
        /// Change nothing
        #[arg(long)]
        dry_run: bool,
        /// Not now, but this often by itself, without bytes of files: 12h, 7d, or never [24h unless told otherwise]
        #[arg(long, value_name = "TIME", value_parser = interval, conflicts_with_all = ["data", "dry_run", "json"])]
        every: Option<u64>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Take a mirror's name away, and pause it; its store stays
    Remove {
        /// A mount point of the source
        mnt: PathBuf,
        /// Its name
        name: String,
    },
    /// Write what changed in a fileset to standard output or a file, for `mirror import` elsewhere
    Export {
        /// A path in the fileset
        mnt: PathBuf,
        /// Only what changed since this moment, which the mirror has (0x…, as import and list tell it)
        #[arg(long, value_parser = tid, default_value = "0")]
        since: u64,
        /// To this file instead of standard output
        #[arg(long)]
        output: Option<PathBuf>,
    },
    /// Bring a mirror's store, which is not mounted, up to what a stream says; makes the store if it does not exist
    Import {
        /// The mirror's store
        target: PathBuf,
        /// From this file instead of standard input
        #[arg(long)]
        input: Option<PathBuf>,
    },
    /// Make a mirror a filesystem of its own, with what it showed last; mount it anew to write
    Promote {
        /// The mirror's store, mounted or not
        target: PathBuf,
    },
}

/// `darner serve`
///
/// Without options, shows how others reach the store. It then has a daemon whether it is mounted or not. Nobody is admitted but those
/// whose keys are named, or who bring a ticket; they may read the whole store, unless --fileset says which part.
#[derive(Args, Debug)]
pub struct Serve {
    /// A mount point, or a store
    pub mnt: PathBuf,
    /// Listen here, from now on and after every start: ADDRESS:PORT (0.0.0.0 is every IPv4 address, `[::]` every address)
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// Listen no more
    #[arg(long, conflicts_with = "listen")]
    pub stop: bool,
    /// Print a ticket, which lets one other store in, once
    #[arg(long)]
    pub ticket: bool,
    /// How long a ticket is good for
    #[arg(long = "for", value_name = "SECONDS", default_value_t = 600)]
    pub seconds: u64,
    /// Admit the store with this key
    #[arg(long, value_name = "FINGERPRINT")]
    pub admit: Vec<String>,
    /// Admit it no more
    #[arg(long, value_name = "FINGERPRINT")]
    pub remove: Vec<String>,
    /// With --admit or --ticket: it may see this fileset, and no other (may be given several times)
    #[arg(long = "fileset", value_name = "NAME")]
    pub filesets: Vec<String>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `darner fileset`
///
/// A fileset appears as a directory in the root of the whole, and can be mounted by itself (mount --fileset). It has labels and
/// limits of its own; as-of names lead through it.
#[derive(Args, Debug)]
pub struct Fileset {
    /// What to do
    #[command(subcommand)]
    pub action: FilesetAction,
}

/// What to do with filesets.
#[derive(Subcommand, Debug)]
pub enum FilesetAction {
    /// Make an empty one, which appears as the directory NAME in the root of the whole
    Create {
        /// A mount point
        mnt: PathBuf,
        /// Its name
        name: String,
        /// Of what it has: 2, on different volumes, or as many as of everything
        #[arg(long, value_parser = ["1", "2"], default_value = "1")]
        copies: String,
    },
    /// All filesets, and what they hold
    List {
        /// A mount point
        mnt: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// End one; its past stays
    Remove {
        /// A mount point
        mnt: PathBuf,
        /// Its name
        name: String,
        /// Also if something is in it
        #[arg(long)]
        force: bool,
    },
    /// Give one another name
    Rename {
        /// A mount point
        mnt: PathBuf,
        /// Its name
        name: String,
        /// The new one
        new_name: String,
    },
    /// Limit what one may come to; without options, show limits and use
    Quota {
        /// A mount point
        mnt: PathBuf,
        /// Its name
        name: String,
        /// Live bytes of file data (10G, 500M, …), or none
        #[arg(long, value_parser = limit)]
        bytes: Option<u64>,
        /// Live files, directories and so on, or none
        #[arg(long, value_parser = limit)]
        objects: Option<u64>,
        /// Bytes of history, of which the oldest gives way then, or none
        #[arg(long, value_parser = limit)]
        history: Option<u64>,
        /// As JSON
        #[arg(long, conflicts_with_all = ["bytes", "objects", "history"])]
        json: bool,
    },
}

/// `darner clone`
#[derive(Args, Debug)]
pub struct CloneOf {
    /// MNT/NAME or MNT (the main fileset), and as of when: MNT/NAME@@-1h, MNT/@@yesterday
    pub source: PathBuf,
    /// The clone's name
    pub name: String,
}

/// `darner retain`
///
/// A grid is steps EVERY:HOW-LONG: `darner retain mnt all:1d 1h:1w 1d:forever` keeps every commit for a day, then one
/// moment an hour for a week, then one a day for ever. Units are s, m, h, d, w, M (30 days; between
/// points: 4 weeks), y (365 days; 52 weeks). What no step
/// keeps is given up; labels and clones keep their moments. `forever` keeps everything, `none` only the present, `default`
/// is the grid offered. Without a grid: shows the one in force, and what each step keeps and costs now.
///
/// `darner retain mnt/src/target --nothing-here` keeps no history of a directory (a build tree, a cache) and of what is made in
/// it, whatever the grid and labels; what there is of it is given up. Files that have names (hard links) outside of it, too, keep theirs.
#[derive(Args, Debug)]
pub struct Retain {
    /// A mount point, a fileset's directory in one, or a directory in that
    pub mnt: PathBuf,
    /// Steps, or forever, none, default
    pub grid: Vec<String>,
    /// Keep no history of this directory and all below it
    #[arg(long, conflicts_with_all = ["grid", "dry_run", "when_full", "as_elsewhere"])]
    pub nothing_here: bool,
    /// Keep history of it again, as of what is around it
    #[arg(long, conflicts_with_all = ["grid", "dry_run", "when_full"])]
    pub as_elsewhere: bool,
    /// Say what the grid would give up and free, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// On a full volume: keep history and refuse writes, or collapse the oldest
    #[arg(long, value_parser = ["keep", "collapse-oldest"])]
    pub when_full: Option<String>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `darner clean`
///
/// The cleaner runs by itself; this makes it begin at once and take all that gives any space back.
#[derive(Args, Debug)]
pub struct Clean {
    /// A mount point
    pub mnt: PathBuf,
    /// Return when it is done
    #[arg(long)]
    pub wait: bool,
    /// As JSON (with --wait)
    #[arg(long)]
    pub json: bool,
}

/// `darner forget`
///
/// Removes PATH if it exists, and destroys all versions that it, and everything that ever was below it, ever had. What is
/// given back is overwritten. It can't be undone.
#[derive(Args, Debug)]
pub struct Forget {
    /// Paths in a mount; they need not exist any more
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// As JSON, one object a path
    #[arg(long)]
    pub json: bool,
}

/// `darner inspect`
#[derive(Args, Debug)]
pub struct Inspect {
    /// The store
    pub store: PathBuf,
    /// Only this segment
    #[arg(long, value_name = "REGION")]
    pub segment: Option<String>,
    /// Records too, not only the structures around them
    #[arg(long)]
    pub records: bool,
    /// Where a volume of the store is that has moved (may be given several times)
    #[arg(long = "volume", value_name = "PATH")]
    pub volumes: Vec<PathBuf>,
    /// As JSON, one object a line
    #[arg(long)]
    pub json: bool,
}

/// `darner check`
#[derive(Args, Debug)]
pub struct Check {
    /// The store
    pub store: PathBuf,
    /// Where a volume of the store is that has moved (may be given several times)
    #[arg(long = "volume", value_name = "PATH")]
    pub volumes: Vec<PathBuf>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `darner scrub`
///
/// By itself, slowly, a mounted store is scrubbed every thirty days. What is damaged is told with the file it belongs to.
#[derive(Args, Debug)]
pub struct Scrub {
    /// The mount, or anything in it
    pub mnt: PathBuf,
    /// Show what the last scrub found, or has found so far
    #[arg(long, conflicts_with = "background")]
    pub report: bool,
    /// Return at once; --report tells how far it is
    #[arg(long)]
    pub background: bool,
    /// Read what is in the bucket, too: all of it is fetched
    #[arg(long, conflicts_with = "report")]
    pub bucket: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `darner rebuild`
///
/// A mount does the same by itself where the index is lost or damaged.
#[derive(Args, Debug)]
pub struct Rebuild {
    /// The store
    pub store: PathBuf,
    /// Where a volume of the store is that has moved (may be given several times)
    #[arg(long = "volume", value_name = "PATH")]
    pub volumes: Vec<PathBuf>,
    /// Memory for it: beyond that, it goes by way of the disk
    #[arg(long, value_parser = size, default_value = "256M")]
    pub memory: u64,
    /// 1: do one thing after the other; more: read ahead and write tables meanwhile [default: as many as there are cores]
    #[arg(long)]
    pub threads: Option<usize>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `darner bench`
///
/// Everything is set up in a directory of its own within --dir and removed at the end, also after an interrupt.
/// See docs/benchmarks.md.
#[derive(Args, Debug)]
pub struct Bench {
    /// A directory on the disk to be measured, with some 30 GB free (--quick: 10) [default: the current one]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// To compare with: btrfs, zfs-fuse, ext4 (the disk's own), darner+OPTION+…, or the path of another build of darner
    #[arg(long, value_delimiter = ',', default_value = "btrfs,zfs-fuse,ext4")]
    pub peers: Vec<String>,
    /// Only these workloads
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    pub only: Vec<String>,
    /// Timed rounds [default: 5; with --quick 2]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub rounds: Option<u64>,
    /// Small sizes: shows that it works, not how fast
    #[arg(long)]
    pub quick: bool,
    /// Instead: how speed changes with the number of files, and of versions of a file
    #[arg(
        long,
        value_name = "OF",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "both",
        conflicts_with_all = ["peers", "only", "rounds"]
    )]
    pub growth: Option<Growth>,
    /// Instead: time and space of a point in time after each of 1,000 small overwrites (--quick: 100), beside snapshots of
    /// Btrfs and zfs-fuse
    #[arg(long, conflicts_with_all = ["peers", "only", "growth"])]
    pub snapshots: bool,
    /// Instead: random overwrites for long on a volume that stays 85 % full, so that it is cleaned all the time, beside
    /// the same on one where nothing is ever cleaned
    #[arg(long, conflicts_with_all = ["peers", "only", "growth", "snapshots"])]
    pub steady: bool,
    /// Instead: a pull after 10 files of 10^4 and of 10^6 changed, beside restic, borg and btrfs send; how far a mirror is behind;
    /// and a first copy beside cp
    #[arg(long, conflicts_with_all = ["peers", "only", "growth", "snapshots", "steady"])]
    pub mirror: bool,
    /// With --growth: to 10^7 files and 10^6 versions
    #[arg(long, requires = "growth")]
    pub long: bool,
    /// Mount options for darner
    #[arg(short, value_name = "OPTIONS", value_delimiter = ',')]
    pub options: Vec<String>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// What `darner bench --growth` makes more of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Growth {
    /// Files
    Files,
    /// Versions of a file
    Versions,
    /// The one, then the other
    Both,
}

/// `darner man`
#[derive(Args, Debug)]
pub struct Man {
    /// Where the pages go
    pub directory: PathBuf,
}

/// `darner completions`
#[derive(Args, Debug)]
pub struct Completions {
    /// For which shell
    pub shell: clap_complete::Shell,
}

/// A limit as [`size`] reads it; 0 stands for `none`.
fn limit(text: &str) -> Result<u64, String> {
    match text {
        "none" => Ok(0),
        _ => size(text).and_then(|n| if n > 0 { Ok(n) } else { Err("use none for no limit".into()) }),
    }
}

/// `90s`, `12h`, `7d`, in seconds; 0 for `never`.
fn interval(text: &str) -> Result<u64, String> {
    if text == "never" {
        return Ok(0);
    }
    let bad = || "not a time: use 90s, 30m, 12h, 7d, or never".to_string();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(bad()),
    };
    let n: u64 = digits.parse().map_err(|_| bad())?;
    n.checked_mul(unit).filter(|n| *n > 0).ok_or_else(bad)
}

/// `10G`, `500M`, `4096`: bytes, with binary suffixes.
pub fn size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return Err("not a size: use a number with K, M, G, T or P".into()),
    };
    let n: u64 = digits.parse().map_err(|_| "not a size: use a number with K, M, G, T or P".to_string())?;
    n.checked_mul(1 << shift).filter(|n| *n < 1 << 62).ok_or_else(|| "too large".into())
}

/// `10s`, `500ms`, `2m`.
fn duration(text: &str) -> Result<std::time::Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let ms = match &text[digits.len()..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        _ => return Err("not a time: use a number with ms, s or m".into()),
    };
    let n: u64 = digits.parse().map_err(|_| "not a time: use a number with ms, s or m".to_string())?;
    match n.checked_mul(ms) {
        Some(n) if (1..=86_400_000).contains(&n) => Ok(std::time::Duration::from_millis(n)),
        _ => Err("between 1ms and a day".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("10G"), Ok(10 << 30));
        assert_eq!(size("2GiB"), Ok(2 << 30));
        assert_eq!(size("3mb"), Ok(3 << 20));
        assert!(size("x").is_err() && size("").is_err() && size("10Q").is_err() && size("99999999P").is_err());
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!(duration("250ms").map(|d| d.as_millis()), Ok(250));
        assert_eq!(duration("2m").map(|d| d.as_secs()), Ok(120));
        assert!(
            duration("0s").is_err()
                && duration("5").is_err()
                && duration("s").is_err()
                && duration("9999999m").is_err()
        );
    }

    #[test]
    fn an_interval_is_a_time_or_never() {
        assert_eq!((interval("never"), interval("90s"), interval("7d")), (Ok(0), Ok(90), Ok(604_800)));
        assert!(["0s", "h", "12", "12w", "99999999999999999999d"].iter().all(|text| interval(text).is_err()));
    }

    #[test]
    fn a_limit_is_a_size_or_none() {
        assert_eq!((limit("none"), limit("10G")), (Ok(0), Ok(10 << 30)));
        assert!(limit("0").is_err() && limit("no").is_err());
    }

    #[test]
    fn a_command_that_is_given_often_means_the_same_without_the_definition_of_all_others() {
        let lines = [
            "mirror sync --wait mnt backup",
            "mirror list /s --json",
            "retain mnt all:1d 1d:forever --dry-run",
            "snapshot mnt here",
            "snapshot list mnt",
            "status --by-time mnt",
            "stay /s",
        ];
        for line in lines {
            let args: Vec<OsString> = ["darner"].into_iter().chain(line.split(' ')).map(OsString::from).collect();
            let lean = Cli::lean(&args).unwrap_or_else(|| panic!("{line}"));
            assert_eq!(format!("{lean:?}"), format!("{:?}", Cli::parse_from(&args)));
        }
        assert!(OFTEN.iter().all(|(names, _)| lines.iter().any(|line| line.starts_with(&names.join(" ")))));
        for line in
            ["mirror", "mirror --help", "mirror sync", "mirror no", "status mnt --no", "help mirror", "log mnt/a"]
        {
            let args: Vec<OsString> = ["darner"].into_iter().chain(line.split(' ')).map(OsString::from).collect();
            assert!(Cli::lean(&args).is_none(), "{line}: all the definition is needed for what is to be said");
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn no_help_says_a_thing_twice() {
        fn check(command: &clap::Command) {
            let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
            let beginning = about.split(' ').take(4).collect::<Vec<_>>().join(" ");
            assert!(about.is_empty() || about.matches(&beginning).count() == 1, "{}: {about}", command.get_name());
            command.get_subcommands().for_each(check);
        }
        use clap::CommandFactory;
        check(&Cli::command());
    }
}
