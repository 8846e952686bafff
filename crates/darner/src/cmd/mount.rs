//! `darner mount`: asks the daemon that has the store, or starts one.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use darner_fuse::MountOptions;

use crate::cli::{self, Mount, size};
use crate::control::{self, MirrorLine, MountRequest, Request, Response};
use crate::error::{Context, Failure, Result};
use crate::making::{self, Make};
use crate::mirroring::{LEFT, PROMOTED};
use crate::namespaces::Namespace;
use crate::place::{self, Place};
use crate::volumes::copies_of_new;
use crate::{keeper, mounts, s3, supervisor, systemd, xattr};

use super::daemon;

pub fn run(c: Mount) -> Result<()> {
    if c.options.iter().any(|o| o == "remount") {
        return remount(&c);
    }
    let (mut c, request) = settle(c)?;
    if let Some(name) = c.store.to_str().filter(|s| s.starts_with(s3::SCHEME)) {
        c.store = from_bucket(&s3::name(name)?, &c)?;
    }
    if c.foreground && systemd::has_passed() {
        // (Whoever looks at the mount point now waits for us.)
        let mountpoint = std::path::absolute(&c.mountpoint)?;
        return daemon::in_foreground(&c, &Place::at(&c.store)?, &MountRequest { mountpoint, ..request });
    }
    let place = if c.create {
        let make = Make {
            size: c.size,
            existing_is_fine: true,
            beside: c.volumes.clone(),
            copies: copies_of_new(c.copies.as_deref(), &c.volumes)?,
            ..Make::default()
        };
        let place = making::create(&c.store, &make)?;
        if !c.mountpoint.exists() {
            std::fs::create_dir(&c.mountpoint).cant(|| format!("make {}", c.mountpoint.display()))?;
        }
        place
    } else {
        Place::at(&c.store)?
    };
    let mountpoint = mounts::absolute(&c.mountpoint)?;
    for path in [&place.path, &mountpoint] {
        if path.to_str().is_none() {
            let path = super::printable(path);
            return Err(Failure::new(format!(
                "the path {path} is not UTF-8: neither stores nor mount points can be there"
            )));
        }
    }
    // The daemon would wait for itself.
    if place.path.starts_with(&mountpoint) || mountpoint.starts_with(&place.path) {
        return Err(Failure::new("the store and the mount point must not lie within each other"));
    }
    if let Some(m) = mounts::fuse_at(&mountpoint)? {
        let is_dead = m.is_ours() && matches!(control::call(&Place::behind(&m), &Request::Status), Ok(None));
        return Err(Failure::new(match is_dead {
            true => mounts::is_dead(&mountpoint),
            false => format!("{} has something mounted on it already", mountpoint.display()),
        }));
    }
    if c.foreground {
        // Whoever sees the mount may end it: this process must know by then what that means.
        supervisor::block_end_signals();
    }
    let request = MountRequest { mountpoint, seen_in: Namespace::Mount.of("self"), ..request };
    let start = || match c.foreground {
        true => daemon::in_foreground(&c, &place, &request),
        false => start_daemon(&c, &place, &request),
    };
    let started = daemon::ask_or_start(&place, &Request::Mount(request.clone()), &start)?;
    if started && c.foreground {
        return Ok(());
    }
    answers(&request)?;
    if started {
        tell_of_promoted(&place);
        tell_of_state(&place, c.degraded);
    }
    // Another daemon has the store already, and the mount as well now.
    if c.foreground { stay(&place, &request.mountpoint) } else { Ok(()) }
}

/// Returns when a mount that another process serves is gone; told to end, has it taken away.
fn stay(place: &Place, mountpoint: &Path) -> Result<()> {
    let signals = supervisor::block_end_signals();
    // SAFETY: a valid set; the descriptor is ours.
    let told = unsafe { keeper::own(libc::signalfd(-1, &signals, libc::SFD_CLOEXEC)) };
    let told = told.ok_or_else(std::io::Error::last_os_error)?;
    let table = File::open("/proc/self/mountinfo")?;
    systemd::Store::find().0.ready();
    while mounts::fuse_at(mountpoint)?.is_some() {
        let poll = |fd, events| libc::pollfd { fd, events, revents: 0 };
        // The kernel marks changes of the table so.
        let mut polled = [poll(table.as_raw_fd(), libc::POLLPRI), poll(told.as_raw_fd(), libc::POLLIN)];
        // SAFETY: two structures are there.
        if unsafe { libc::poll(polled.as_mut_ptr(), 2, -1) } < 0 {
            let e = std::io::Error::last_os_error();
            if e.kind() != std::io::ErrorKind::Interrupted {
                return Err(e.into());
            }
        }
        if polled[1].revents != 0 {
            let request = Request::Unmount { mountpoint: mountpoint.to_path_buf(), lazy: true };
            return control::must_call(place, &request).map(drop);
        }
    }
    Ok(())
}

/// Where the store of a bucket is here: if it is not yet, it is taken over.
fn from_bucket(name: &str, c: &Mount) -> Result<std::path::PathBuf> {
    let local = c.local.clone().ok_or_else(|| {
        Failure::new(
            "--local DIR says where its open segment, its index, and what is read much are to be on this machine",
        )
    })?;
    let local = std::path::absolute(&local)?;
    if local.exists() && Place::at(&local)?.is_volume() {
        place::must_have_bucket(&Place::at(&local)?, name)?;
        return Ok(local);
    }
    if c.read_only || c.as_of.is_some() {
        return Err(Failure::new(format!(
            "to look into {name} is to take it over: the machine that uses it can put nothing more there. That is not done for \
             --read-only or --as-of; mount it without first"
        )));
    }
    s3::must_be_fine(&s3::variables())?;
    let bar = super::progress_bar("{bar:40} {percent}% eta {eta} ({elapsed})");
    making::take_over(name, &local, c.memory, &mut |a| {
        bar.set_length(a.total);
        bar.set_position(a.done);
    })?;
    bar.finish_and_clear();
    eprintln!("darner: taken over from the machine that put it there, which can put nothing more into {name}");
    Ok(local)
}

/// What is dated wrong stays so; and who mounts without some volumes is told what that costs.
fn tell_of_state(place: &Place, degraded: bool) {
    let Ok(Some(Response::Status(status))) = control::call(place, &Request::Status) else { return };
    if degraded {
        status.warnings.iter().for_each(|warning| eprintln!("darner: {warning}"));
        return;
    }
    let newest = cli::tid(&status.tid).ok();
    if let Some(warning) = newest.and_then(|tid| crate::daemon::clock_warning(darner_fs::Tid(tid))) {
        eprintln!("darner: {warning}");
    }
}

/// While this store was away, its mirror may have become what is used.
fn tell_of_promoted(place: &Place) {
    let Ok(Some(Response::Mirrors(lines))) = control::call(place, &Request::Mirrors) else { return };
    for MirrorLine { name, target, state, .. } in &lines {
        let (store, mirror) = (place.path.display(), target.display());
        match state.as_str() {
            PROMOTED => eprintln!(
                "darner: its mirror {name} was promoted, and goes its own way: what is written here is not there. To follow it instead: \
                 unmount, then darner mirror return {store} {mirror}"
            ),
            LEFT => eprintln!(
                "darner: its mirror {name} was what is used before this store was, and does not follow it yet: \
                 darner mirror return {mirror} {store}"
            ),
            _ => {}
        }
    }
}

/// `mount -o remount,ro MNT`: mount(8) passes all options in force together with the new ones.
fn remount(c: &Mount) -> Result<()> {
    let on = |name: &str| c.options.iter().any(|o| o == name);
    let options = MountOptions {
        read_only: c.read_only || on("ro"),
        nosuid: on("nosuid"),
        nodev: on("nodev"),
        noexec: on("noexec"),
        noatime: on("noatime"),
        ..MountOptions::default()
    };
    Ok(darner_fuse::remount(&mounts::absolute(&c.mountpoint)?, &options)?)
}

fn answers(request: &MountRequest) -> Result<()> {
    let mountpoint = &request.mountpoint;
    if mounts::fuse_at(mountpoint)?.is_none() {
        return Err(Failure::new(format!("{} was said to be mounted, but is not", mountpoint.display())));
    }
    std::fs::metadata(mountpoint).cant(|| format!("look at {}, just mounted", mountpoint.display()))?;
    // A moment between two that are kept is shown as the earlier one: whoever asked for it should know.
    let shown = request.as_of.as_ref().and_then(|_| xattr::get(mountpoint, c"user.darner.as-of"));
    let shown = shown.map(|s| String::from_utf8_lossy(&s).into_owned());
    if let Some(shown) = shown.filter(|s| s.contains("retained point")) {
        eprintln!("darner: {} shows {shown}", mountpoint.display());
    }
    Ok(())
}

/// The options that are looked through for what an unknown one may have meant.
const OPTIONS: [&str; 20] = [
    "ro",
    "rw",
    "degraded",
    "allow_other",
    "subtype",
    "nosuid",
    "nodev",
    "noexec",
    "writeback",
    "fileset",
    "volume",
    "as_of",
    "create",
    "local",
    "copies",
    "size",
    "memory",
    "threads",
    "poll",
    "noatime",
];

/// The option that differs from `name` in the fewest letters, if those are fewer than half.
fn nearest(name: &str) -> Option<&'static str> {
    let near = OPTIONS.into_iter().min_by_key(|option| distance(option, name))?;
    (distance(near, name) * 2 < near.len().max(name.len())).then_some(near)
}

/// How many letters are to be changed, added or left away to make one of the other.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut before = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let same = before + usize::from(x != y);
            before = row[j + 1];
            row[j + 1] = same.min(before + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// Folds `-o` options into the others.
pub(crate) fn settle(mut c: Mount) -> Result<(Mount, MountRequest)> {
    let mut r = MountRequest { threads: c.threads, poll_us: c.poll, ..MountRequest::default() };
    for option in std::mem::take(&mut c.options) {
        let (name, value) = option.split_once('=').unwrap_or((&option, ""));
        let bad = |why: String| Failure::new(format!("mount option {option}: {why}"));
        match name {
            "ro" => c.read_only = true,
            "degraded" => c.degraded = true,
            "allow_other" => r.allow_other = Some(true),
            "subtype" => r.subtype = Some(value.to_string()),
            "nosuid" => r.nosuid = true,
            "nodev" => r.nodev = true,
            "noexec" => r.noexec = true,
            "writeback" => r.writeback = true,
            "fileset" => c.fileset = Some(value.to_string()),
            "volume" => c.volumes.push(value.into()),
            "as_of" => c.as_of = Some(value.to_string()),
            "create" => c.create = true,
            "local" => c.local = Some(value.into()),
            "copies" => c.copies = Some(value.to_string()),
            "size" => c.size = Some(size(value).map_err(bad)?),
            "memory" => c.memory = size(value).map_err(bad)?,
            "threads" => r.threads = value.parse().map_err(|e| bad(format!("{e}")))?,
            "poll" => r.poll_us = value.parse().map_err(|e| bad(format!("{e}")))?,
            "rw"
            | "suid"
            | "dev"
            | "exec"
            | "default_permissions"
            | "noatime"
            | "relatime"
            | "atime"
            | "nodiratime"
            | "auto"
            | "noauto"
            | "user"
            | "nouser"
            | "users"
            | "owner"
            | "_netdev"
            | "nofail"
            | "defaults"
            | "sync"
            | "async"
            | "diratime"
            | "strictatime"
            | "lazytime"
            | "dirsync"
            | "" => {}
            _ if name.starts_with("x-") || name.starts_with("comment") => {}
            _ => {
                let hint = nearest(name).map(|near| format!(" (is {near} meant?)"));
                return Err(bad(format!("unknown{}", hint.unwrap_or_default())));
            }
        }
    }
    r.as_of = c.as_of.clone();
    r.fileset = c.fileset.clone();
    r.read_only = c.read_only;
    Ok((c, r))
}

/// Starts a daemon in the background and waits until it has mounted or says why not.
fn start_daemon(c: &Mount, place: &Place, request: &MountRequest) -> Result<()> {
    daemon::start(if c.no_supervisor { "worker" } else { "daemon" }, &arguments(c, place, request))
}

/// The arguments of the daemon.
pub(crate) fn arguments(c: &Mount, place: &Place, r: &MountRequest) -> Vec<std::ffi::OsString> {
    let mut args: Vec<std::ffi::OsString> = vec![format!("--memory={}", c.memory).into()];
    args.push(format!("--threads={}", r.threads).into());
    args.push(format!("--poll={}", r.poll_us).into());
    args.extend(c.as_of.as_ref().map(|w| format!("--as-of={w}").into()));
    args.extend(c.fileset.as_ref().map(|name| format!("--fileset={name}").into()));
    args.extend(c.read_only.then(|| "--read-only".into()));
    args.extend(c.degraded.then(|| "--degraded".into()));
    for volume in &c.volumes {
        args.push("--volume".into());
        args.push(std::path::absolute(volume).unwrap_or_else(|_| volume.clone()).into());
    }
    if let Some(log) = &c.log {
        args.push("--log".into());
        args.push(std::path::absolute(log).unwrap_or_else(|_| log.clone()).into());
    }
    let flags = [
        (r.allow_other == Some(true), "allow_other"),
        (r.nosuid, "nosuid"),
        (r.nodev, "nodev"),
        (r.noexec, "noexec"),
        (r.writeback, "writeback"),
    ];
    for (_, name) in flags.into_iter().filter(|(on, _)| *on) {
        args.push(format!("-o{name}").into());
    }
    args.extend(r.subtype.as_ref().map(|s| format!("-osubtype={s}").into()));
    args.extend([place.path.clone().into(), r.mountpoint.clone().into()]);
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_mount_option_is_answered_with_the_nearest() {
        let hints =
            ["as-of", "as_off", "read", "filesets", "allow-other", "thread", "nonsense", "", "r\u{fc}"].map(nearest);
        let known = [Some("as_of"), Some("as_of"), None, Some("fileset"), Some("allow_other"), Some("threads"), None];
        assert_eq!((&hints[..7], hints[7]), (&known[..], None));
    }
}
