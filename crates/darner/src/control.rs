//! What commands ask of the daemon that has a store open, and what it answers. How that travels: `control/talk.rs`,
//! docs/syslink.md §Control.

mod talk;
mod value;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::keeper::FailedUpgrade;

pub use talk::{Answers, Tell, call, listen_over, must_call, must_call_with, nobody_has};
pub(crate) use talk::{At, Callee, LETS_IN, Listener, POLLS, Reached, call_at, is_trusted, reach, when_free};

/// What of a store a command is about: a path in one of the daemon's mounts.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Spot {
    /// Of the mount; empty: the whole.
    pub mountpoint: PathBuf,
    /// Components of the path, as bytes, without moments. It need not exist.
    pub path: Vec<Vec<u8>>,
}

impl Spot {
    /// The path's components.
    pub fn names(&self) -> Vec<&[u8]> {
        self.path.iter().map(Vec::as_slice).collect()
    }
}

/// What a command asks for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "kebab-case")]
pub enum Request {
    /// Another mount.
    Mount(MountRequest),
    /// End a mount; answered when it is gone, and the store with it if it was the last.
    Unmount {
        /// Where.
        mountpoint: PathBuf,
        /// Detach although it is in use.
        lazy: bool,
    },
    /// Make way for a daemon of this program, which goes on where this one is.
    Upgrade {
        /// Its path.
        program: PathBuf,
    },
    /// See [`Status`].
    Status,
    /// Of the host of an attachment: how it is.
    Attachment,
    /// Make everything durable.
    Sync,
    /// Versions of a path.
    Log {
        /// Which.
        at: Spot,
        /// Up to this tid.
        to: Option<u64>,
        /// How many names of the path are meant as they are now; those behind them are meant as of `to`.
        #[serde(default)]
        present: usize,
        /// Consecutive writes as one.
        coalesce: bool,
    },
    /// Label the newest or a past moment of a fileset.
    AddLabel {
        /// Where in it.
        at: Spot,
        /// Its name.
        name: String,
        /// WHEN; `None`: now, or as of when the mount is.
        when: Option<String>,
    },
    /// Forget a label.
    RemoveLabel {
        /// Where in its fileset.
        at: Spot,
        /// Its name.
        name: String,
    },
    /// All labels of a fileset.
    Labels {
        /// Where in it.
        at: Spot,
    },
    /// What tid a WHEN means in a fileset.
    Resolve {
        /// Where in it.
        at: Spot,
        /// WHEN.
        when: String,
        /// Whether it is an error, with the reason, that it means none.
        #[serde(default)]
        must: bool,
    },
    /// What is kept of a fileset's past; changes it where a grid or what to do when full is given.
    Retain {
        /// Where in it.
        at: Spot,
        /// Steps.
        grid: Option<String>,
        /// `keep` or `collapse-oldest`.
        when_full: Option<String>,
        /// Only tell what the grid would give up.
        dry_run: bool,
        /// Whether to keep no history of the directory and all below it (true), or some as elsewhere (false).
        nothing_here: Option<bool>,
    },
    /// Collapse and clean.
    Clean {
        /// Answer when it is done.
        wait: bool,
    },
    /// Read and verify every byte.
    Scrub {
        /// Answer when it is done.
        wait: bool,
        /// What is in the bucket, too.
        #[serde(default)]
        bucket: bool,
    },
    /// What the last scrub found.
    ScrubReport,
    /// Whether every version of a path may be destroyed, for all that clones need of it.
    MayForget {
        /// Which.
        at: Spot,
    },
    /// What there is at and below a path of which no history is kept.
    Keepless {
        /// Which.
        at: Spot,
    },
    /// Destroy every version of a path, which must not exist any more.
    Forget {
        /// Which.
        at: Spot,
    },
    /// What is needed for what; reads the whole index.
    Usage,
    /// All volumes.
    Volumes,
    /// Add one.
    AddVolume {
        /// Absolute.
        path: PathBuf,
        /// Bytes that may be used of it; of an image file, its size.
        size: Option<u64>,
        /// Make an image file rather than a directory.
        image: bool,
        /// Whatever is there.
        force: bool,
        /// For what is not read much.
        #[serde(default)]
        cold: bool,
    },
    /// Make an empty place in a bucket a volume; of one that is one already, reach it anew.
    AddBucket {
        /// `s3://…`.
        name: String,
        /// How it is reached.
        variables: std::collections::BTreeMap<String, String>,
    },
    /// Have all that is there now reach the bucket.
    Push,
    /// Move a region, or all that is on a volume now.
    MoveSegments {
        /// Which, unless all.
        region: Option<u64>,
        /// From where, if all.
        from: Option<u16>,
        /// Where to.
        to: u16,
    },
    /// Empty one and let go of it.
    RemoveVolume {
        /// Its number.
        id: u16,
    },
    /// Give one up that is missing or has failed.
    LoseVolume {
        /// Its number.
        id: u16,
    },
    /// Have two copies of more or less, or tell of what there are.
    Copies {
        /// `1`, `2` or `index`.
        copies: Option<String>,
        /// Of what this fileset has, `1` or `2`, not of everything.
        #[serde(default)]
        fileset: Option<String>,
    },
    /// Change how much may be used of one.
    ResizeVolume {
        /// Its number.
        id: u16,
        /// Bytes; 0: all there is.
        size: u64,
    },
    /// The mirrors that have names here, and how they are.
    Mirrors,
    /// Where the mirror of that name is; it is not asked how it is.
    MirrorAt {
        /// Its name here.
        name: String,
    },
    /// Make a store, which does not exist yet, that follows a fileset.
    AddMirror {
        /// Where in the fileset.
        at: Spot,
        /// The mirror's name here.
        name: String,
        /// The new store. Absolute.
        target: PathBuf,
    },
    /// Take a mirror's name away.
    RemoveMirror {
        /// The name.
        name: String,
    },
    /// To a mirror: where on another machine its source is now. Answered when it was met there.
    FollowAt {
        /// Its address, with or without a key.
        address: String,
        /// A ticket that lets this store in there.
        ticket: Option<String>,
    },
    /// To a mirror: where its source is now.
    SourceIsAt {
        /// The path of a volume. Absolute.
        path: PathBuf,
    },
    /// Close the store, whatever else there is to do without a mount; answered when it is closed. Refused while something is mounted.
    End,
    /// How this store follows another one.
    Following,
    /// Pull now.
    Follow {
        /// Answer when all that the source has now is shown, or it is known why not.
        wait: bool,
        /// As in [`Request::SourceIsAt`].
        #[serde(default)]
        source: Option<PathBuf>,
    },
    /// Pull no more for now, or again.
    PauseMirror {
        /// Which.
        paused: bool,
        /// Bytes a second at most from now on; 0: no limit.
        limit: Option<u64>,
    },
    /// Compare this mirror with its source.
    VerifyMirror {
        /// The bytes of files too.
        data: bool,
        /// Make what differs the same.
        mend: bool,
    },
    /// How often this mirror compares itself with its source by itself.
    CompareEvery {
        /// Seconds; 0: never.
        seconds: u64,
    },
    /// Make this mirror a filesystem of its own.
    Promote,
    /// How others reach this store, with changes of that.
    Serve {
        /// From now on at this address.
        listen: Option<String>,
        /// Not any more.
        stop: bool,
        /// Fingerprints of those who may follow.
        admit: Vec<String>,
        /// Those who may not any more.
        remove: Vec<String>,
        /// What those who are admitted, or bring the ticket, may see, by name; none: everything.
        #[serde(default)]
        filesets: Vec<String>,
        /// Issue a ticket that is good for so long.
        ticket_seconds: Option<u64>,
    },
    /// The fileset that a path is in.
    FilesetAt {
        /// The path.
        at: Spot,
    },
    /// All filesets.
    Filesets,
    /// Make one.
    CreateFileset {
        /// Its name.
        name: String,
        /// Owner of its root.
        uid: u32,
        /// Group of its root.
        gid: u32,
    },
    /// Make one of what another is, or was.
    CloneFileset {
        /// The other one.
        of: Spot,
        /// As of when; `None`: now.
        tid: Option<u64>,
        /// Its name.
        name: String,
    },
    /// End one.
    RemoveFileset {
        /// Its name.
        name: String,
        /// Whatever it holds.
        force: bool,
    },
    /// Name one anew.
    RenameFileset {
        /// Its name.
        name: String,
        /// The new one.
        new_name: String,
    },
    /// Set limits; `None` leaves one as it is, 0 takes it away.
    LimitFileset {
        /// Its name.
        name: String,
        /// Live bytes.
        bytes: Option<u64>,
        /// Live objects.
        objects: Option<u64>,
        /// Bytes of history.
        history: Option<u64>,
    },
}

impl Request {
    /// Whether that is no wonder.
    fn takes_long(&self) -> bool {
        matches!(
            self,
            Request::Clean { .. }
                | Request::Scrub { .. }
                | Request::Retain { .. }
                | Request::Usage
                | Request::Forget { .. }
                | Request::AddVolume { .. }
                | Request::AddBucket { .. }
                | Request::Push
                | Request::MoveSegments { .. }
                | Request::RemoveVolume { .. }
                | Request::LoseVolume { .. }
                | Request::Copies { .. }
                | Request::ResizeVolume { .. }
                | Request::AddMirror { .. }
                | Request::FollowAt { .. }
                | Request::Follow { .. }
                | Request::VerifyMirror { .. }
                | Request::Promote
        )
    }

    /// Whether to do it twice is to do it once.
    fn is_repeatable(&self) -> bool {
        !matches!(
            self,
            Request::AddLabel { .. }
                | Request::RemoveLabel { .. }
                | Request::CreateFileset { .. }
                | Request::CloneFileset { .. }
                | Request::RemoveFileset { .. }
                | Request::RenameFileset { .. }
                | Request::AddVolume { .. }
                | Request::AddBucket { .. }
                | Request::RemoveVolume { .. }
                | Request::LoseVolume { .. }
                | Request::AddMirror { .. }
                | Request::RemoveMirror { .. }
                | Request::Promote
                | Request::Serve { .. }
        )
    }
}

/// A mount to be made.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct MountRequest {
    /// Absolute.
    pub mountpoint: PathBuf,
    /// This fileset by itself.
    #[serde(default)]
    pub fileset: Option<String>,
    /// WHEN, for a mount of the past.
    pub as_of: Option<String>,
    /// Change nothing through it.
    pub read_only: bool,
    /// `None`: root yes, others no.
    pub allow_other: Option<bool>,
    /// `None`: `darner`.
    pub subtype: Option<String>,
    /// Kernel mount flags.
    pub nosuid: bool,
    /// Kernel mount flags.
    pub nodev: bool,
    /// Kernel mount flags.
    pub noexec: bool,
    /// The kernel gathers writes (faster, coarser history).
    pub writeback: bool,
    /// Serving threads.
    pub threads: usize,
    /// Microseconds of polling before sleep.
    pub poll_us: u64,
    /// The mount namespace in which it is to be seen, by the kernel's number.
    #[serde(default)]
    pub seen_in: Option<u64>,
}

/// A version of a path.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LogLine {
    /// Its transaction, `0x…`.
    pub tid: String,
    /// `PATH@@SHOWN` shows it: its transaction or, where that moment is not kept, the first one since that is.
    pub shown: String,
    /// When, RFC 3339, local.
    pub when: String,
    /// What happened.
    pub what: String,
    /// Inode number.
    pub inode: u64,
    /// Bytes afterwards.
    pub size: u64,
}

/// A label.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LabelLine {
    /// Its name.
    pub label: String,
    /// The moment it names, `0x…`.
    pub tid: String,
    /// The same, RFC 3339, local.
    pub when: String,
}

/// A mirror, as its source's `darner mirror list` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MirrorLine {
    /// Its name here; empty: this store, which is one itself.
    pub name: String,
    /// The path of its store.
    pub target: PathBuf,
    /// Where what it follows is.
    pub source: Option<String>,
    /// `follows`, `pulls`, `waits`, `paused`, `promoted`, `left behind`, `stopped`, or `missing`: its store is not where it was.
    pub state: String,
    /// Whether it is known what it shows: if so, and `at` is none, nothing yet.
    #[serde(default)]
    pub is_known: bool,
    /// The source's moment that it shows, `0x…`.
    pub at_tid: Option<String>,
    /// The same, RFC 3339, local.
    pub at: Option<String>,
    /// Seconds that it is behind: the age of the oldest change here that it does not show.
    pub lag_seconds: Option<f64>,
    /// Bytes that it was sent since its daemon started.
    pub received_bytes: u64,
    /// How long the last pull took that brought something.
    #[serde(default)]
    pub pull_seconds: Option<f64>,
    /// What it waits for.
    pub waits_for: Option<String>,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// Seconds that its source's clock is ahead of its own (or, negative, behind).
    #[serde(default)]
    pub clock_ahead_seconds: Option<f64>,
    /// What comparing it with its source found last.
    #[serde(default)]
    pub compared: Option<ComparedLine>,
}

/// What comparing a mirror with its source found last.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ComparedLine {
    /// When it ended, RFC 3339, local.
    pub ended: String,
    /// The moment of the source that the end of it was as of, `0x…`.
    pub at_tid: String,
    /// The same, RFC 3339, local.
    pub at: String,
    /// Keys that were compared.
    pub keys: u64,
    /// Places that differed.
    pub differing: u64,
    /// How many of them are the same now.
    pub mended: u64,
    /// What differed, by path, and what could not be compared or mended; the first ones.
    pub named: Vec<String>,
}

/// How a store follows another one.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct FollowLine {
    /// Where that is.
    pub origin: String,
    /// See [`MirrorLine::state`].
    pub state: String,
    /// The source's moment that is shown.
    pub at: u64,
    /// Bytes that came since the daemon started.
    pub received_bytes: u64,
    /// How long the last pull took that brought something.
    #[serde(default)]
    pub pull_seconds: Option<f64>,
    /// What it waits for.
    pub waits_for: Option<String>,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// When all that the source had was here, by this machine's clock (ns since 1970); 0: not yet.
    pub up_to_date: u64,
    /// It waits for room in its own store.
    #[serde(default)]
    pub is_full: bool,
    /// Seconds that the source's clock is ahead of this one's.
    #[serde(default)]
    pub clock_ahead_seconds: Option<f64>,
    /// What comparing found last.
    #[serde(default)]
    pub compared: Option<ComparedLine>,
}

/// A fileset.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FilesetLine {
    /// Its name.
    pub name: String,
    /// Its number.
    pub number: u32,
    /// Inode number of its root.
    pub inode: u64,
    /// The transaction that made it, `0x…`.
    pub created_tid: String,
    /// When, RFC 3339, local.
    pub created: String,
    /// Of a clone: the fileset it was made of (its number, if it has no name any more).
    pub base: Option<String>,
    /// As of when, `0x…`.
    pub base_tid: Option<String>,
    /// How many copies there are to be of what it has.
    #[serde(default)]
    pub copies: u32,
    /// Live objects.
    pub objects: u64,
    /// Live bytes of file data.
    pub live_bytes: u64,
    /// Most live objects; 0: no limit.
    pub limit_objects: u64,
    /// Most live bytes; 0: no limit.
    pub limit_bytes: u64,
    /// Most bytes of history; 0: no limit.
    pub limit_history_bytes: u64,
}

/// A mount of a store.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MountLine {
    /// Where.
    pub mountpoint: PathBuf,
    /// Of which fileset, for one by itself.
    pub fileset: Option<String>,
    /// As of when, for one of the past.
    pub as_of: Option<String>,
    /// The same, RFC 3339, local.
    pub as_of_time: Option<String>,
    /// Whether it changes nothing.
    pub read_only: bool,
}

/// A step of a retention grid.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepLine {
    /// As people write it.
    pub step: String,
    /// Points that it keeps now; `null`: every commit.
    pub points: Option<u64>,
    /// Bytes of history that it is the first step to keep.
    pub history_bytes: u64,
}

/// What is kept of a fileset's past.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RetentionReport {
    /// The name of the fileset.
    pub fileset: String,
    /// The grid, or the one proposed.
    pub grid: String,
    /// One to start with.
    pub offered: String,
    /// `keep` or `collapse-oldest`.
    pub when_full: String,
    /// Since when every commit is visible, `0x…`.
    pub horizon_tid: String,
    /// The same, RFC 3339, local; `null`: since ever.
    pub horizon: Option<String>,
    /// Its steps.
    pub steps: Vec<StepLine>,
    /// Bytes of history that only labels, clones and mounts keep.
    pub pinned_bytes: u64,
    /// Bytes of history that stay.
    pub history_bytes: u64,
    /// Versions that the grid does not keep (any more).
    pub lapsed_versions: u64,
    /// Bytes that come back with them, about.
    pub lapsed_bytes: u64,
    /// Whether no history is kept of what is at the path asked about.
    pub nothing_here: bool,
    /// Objects of which that was changed.
    pub marked: u64,
    /// Paths of those of which it was not, since they have names elsewhere.
    #[serde(default)]
    pub left: Vec<String>,
}

/// What is kept of a fileset's past, in short.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RetentionLine {
    /// The fileset.
    pub fileset: String,
    /// Its grid.
    pub grid: String,
    /// `keep` or `collapse-oldest`.
    pub when_full: String,
    /// Since when every commit is visible; `null`: since ever.
    pub horizon: Option<String>,
    /// Whether it is the main one.
    pub main: bool,
}

/// History of some age.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgeLine {
    /// `hour`, `day`, …: written within the last one, but before the line above.
    pub age: String,
    /// Bytes that only the past needs.
    pub history_bytes: u64,
}

/// What is needed for what.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Usage {
    /// Records and file data of the live trees.
    pub live_bytes: u64,
    /// What only the past needs.
    pub history_bytes: u64,
    /// Versions in the index.
    pub versions: u64,
    /// What nobody needs, but is not collapsed yet.
    pub lapsed_bytes: u64,
    /// Versions of it.
    pub lapsed_versions: u64,
    /// The history by age.
    pub by_age: Vec<AgeLine>,
}

/// A volume of a store.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VolumeLine {
    /// Its number.
    pub id: u32,
    /// Where.
    pub path: String,
    /// `directory`; `raw`: an image file or block device; or `bucket`.
    pub kind: String,
    /// Bytes there are; of a bucket, those in use.
    pub size_bytes: u64,
    /// Bytes in use.
    pub used_bytes: u64,
    /// Bytes that are not in use.
    pub free_bytes: u64,
    /// `active`; `leaving`: it is being emptied; `missing`; `failed`: it is not used any more; of a bucket `unreachable`, or `fenced`:
    /// another machine has taken the store over.
    pub state: String,
    /// `hot`: what is new goes there; or `cold`.
    #[serde(default)]
    pub tier: String,
    /// How a bucket is.
    #[serde(default)]
    pub bucket: Option<BucketLine>,
}

/// What is in a bucket.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BucketLine {
    /// The tid up to which everything could be opened from there alone.
    pub reached: Option<String>,
    /// Whether that is known: the bucket could be asked since the store was opened.
    #[serde(default)]
    pub known: bool,
    /// The same as a time, RFC 3339, local.
    pub reached_when: Option<String>,
    /// Bytes on their way there.
    pub left_bytes: u64,
    /// Bytes that are nowhere else.
    pub only_there_bytes: u64,
    /// Bytes that were fetched since the store was opened.
    pub fetched_bytes: u64,
    /// Why it can't be reached, or nothing more gets there, or who has taken the store over.
    pub trouble: Option<String>,
}

/// How the copies of a store are.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CopyLine {
    /// Of what there are to be two: `1` nothing, `index`, `2` everything.
    pub copies: String,
    /// Filesets that are kept twice besides.
    #[serde(default)]
    pub filesets: Vec<String>,
    /// Bytes of which there is one copy, and are to be two.
    pub lacking_bytes: u64,
    /// Damaged places healed from the other copy since the store was opened.
    pub healed: u64,
}

/// What `status` tells.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The store.
    pub store: PathBuf,
    /// Its identity, hexadecimal.
    pub uuid: String,
    /// Newest transaction, `0x…`.
    pub tid: String,
    /// Newest transaction that survives a power failure.
    pub durable_tid: String,
    /// When it was made, RFC 3339, local.
    pub created: String,
    /// Bytes there are; of a bucket, those in use.
    pub size_bytes: u64,
    /// Bytes in use.
    pub used_bytes: u64,
    /// What live files hold: before compression, and each what it shares with others.
    pub live_bytes: u64,
    /// Of those in use, what only the past needs, as it was found last.
    pub history_bytes: u64,
    /// Of those in use, what nobody needs: it comes back as the cleaner goes.
    pub dead_bytes: u64,
    /// Bytes that can still be written.
    pub free_bytes: u64,
    /// Live files, directories and so on.
    pub objects: u64,
    /// The daemon.
    pub daemon_pid: u32,
    /// When that process began, RFC 3339, local; one of an older version does not tell.
    #[serde(default)]
    pub started: Option<String>,
    /// Its version.
    pub version: String,
    /// The program that it was started from; one of an older version does not tell.
    #[serde(default)]
    pub program: Option<PathBuf>,
    /// The last upgrade, if it came to nothing.
    #[serde(default)]
    pub failed_upgrade: Option<FailedUpgrade>,
    /// The process that starts another one if it dies.
    #[serde(default)]
    pub supervisor_pid: Option<u32>,
    /// How often that was.
    #[serde(default)]
    pub restarts: u32,
    /// The longest that nobody served then, milliseconds.
    #[serde(default)]
    pub longest_pause_ms: u64,
    /// Resident memory of the daemon, bytes.
    pub resident_bytes: u64,
    /// Volumes.
    pub volumes: Vec<VolumeLine>,
    /// Copies.
    #[serde(default)]
    pub copies: CopyLine,
    /// Mounts.
    pub mounts: Vec<MountLine>,
    /// What is kept of each fileset's past.
    pub retention: Vec<RetentionLine>,
    /// What somebody should look at.
    pub warnings: Vec<String>,
}

/// What a scrub found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ScrubLine {
    /// When it began, RFC 3339, local.
    pub begun: Option<String>,
    /// When it ended.
    pub ended: Option<String>,
    /// Bytes read.
    pub bytes: u64,
    /// Bytes that a scrub reads, about.
    pub total_bytes: u64,
    /// Bytes that are in the bucket only, and are not read.
    #[serde(default)]
    pub left_to_the_bucket: u64,
    /// Damaged places.
    pub damaged: u64,
    /// Manifests and superblocks that were damaged, and are written anew.
    pub healed: u64,
    /// The damaged places, as far as they are listed.
    pub damages: Vec<DamageLine>,
}

/// A damaged place.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DamageLine {
    /// What it is.
    pub what: String,
    /// Which file, if it is one's.
    pub path: Option<String>,
    /// Whether the live file has these bytes.
    pub live: bool,
    /// From which byte of the file on.
    pub offset: Option<u64>,
    /// How many bytes.
    pub len: Option<u64>,
    /// The transaction that wrote them.
    pub tid: Option<String>,
    /// The region, hexadecimal.
    pub region: String,
    /// From which byte of the region on.
    pub region_offset: u64,
    /// How many bytes of it.
    pub region_len: u64,
}

/// What the daemon answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// Done.
    Done,
    /// Answer to [`Request::Unmount`].
    Unmounted {
        /// Where the store is closed: the processes that are about to end.
        ending: Vec<u32>,
        /// Why the last writes may be lost, if they may.
        #[serde(default)]
        lost: Option<String>,
    },
    /// The daemon is on its way out: try again.
    Closing,
    /// It crashed again and again, and nobody starts it any more, as this says.
    GivenUp(String),
    /// Answer to [`Request::Status`].
    Status(Box<Status>),
    /// Answer to [`Request::Keepless`]: paths below, as bytes; without what is in those.
    Keepless(Vec<Vec<u8>>),
    /// Answer to [`Request::Attachment`].
    Attachment(Box<crate::attachments::Attachment>),
    /// Answer to [`Request::Log`].
    Log(Vec<LogLine>),
    /// Answer to [`Request::Labels`] and [`Request::AddLabel`].
    Labels(Vec<LabelLine>),
    /// Answer to [`Request::Filesets`] and those that make or change one.
    Filesets(Vec<FilesetLine>),
    /// Answer to [`Request::Mirrors`].
    Mirrors(Vec<MirrorLine>),
    /// Answer to [`Request::MirrorAt`].
    MirrorAt {
        /// The path of its store.
        target: PathBuf,
        /// That of the store that it follows.
        source: PathBuf,
    },
    /// Answer to [`Request::Following`] and what changes that.
    Following(FollowLine),
    /// Answer to [`Request::VerifyMirror`].
    Verified(Box<crate::verifying::VerifyReport>),
    /// Answer to [`Request::Serve`].
    Serving(Box<crate::serving::ServeReport>),
    /// Answer to [`Request::Resolve`].
    Tid(Option<u64>),
    /// Answer to [`Request::Retain`].
    Retention(RetentionReport),
    /// Answer to [`Request::Clean`].
    Cleaned {
        /// Bytes in use before.
        before: u64,
        /// And since.
        after: u64,
        /// Bytes copied.
        copied: u64,
    },
    /// Answer to [`Request::Scrub`] and [`Request::ScrubReport`].
    Scrub(Box<ScrubLine>),
    /// Answer to [`Request::Forget`].
    Forgotten {
        /// Objects destroyed.
        objects: u64,
        /// No moment showed it any more: whatever had lapsed was overwritten.
        lapsed: bool,
        /// What could not be reached.
        left: Vec<String>,
    },
    /// Answer to [`Request::Volumes`] and those that change one.
    Volumes(Vec<VolumeLine>),
    /// Answer to [`Request::Copies`].
    Copies(CopyLine),
    /// Answer to [`Request::MoveSegments`].
    Moved {
        /// Regions moved.
        regions: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// Answer to [`Request::Usage`].
    Usage(Usage),
}
