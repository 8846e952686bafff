//! Mounting and unmounting: as root by mount(2), as an ordinary user through fusermount3 (package *fuse3*), which hands
//! the descriptor back over a socket (`fusermount.rs`).
//!
//! On `Ok` the mount exists, and its first access waits until somebody serves it.

use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, ErrorKind},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use crate::{Error, fusermount};

const DEVICE: &str = "/dev/fuse";

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// What `/proc/mounts` shows as the source.
    pub source: String,
    /// `Some("x")`: type `fuse.x` in `/proc/mounts`; `None` or empty: `fuse`.
    pub subtype: Option<String>,
    /// Other users than the one who mounts may enter. Ordinary users need `user_allow_other` in /etc/fuse.conf.
    pub allow_other: bool,
    /// The kernel checks permissions, from the attributes it is given.
    pub default_permissions: bool,
    /// `ro`.
    pub read_only: bool,
    /// No suid bits; fusermount3 always sets it.
    pub nosuid: bool,
    /// No devices; fusermount3 always sets it.
    pub nodev: bool,
    /// No programs.
    pub noexec: bool,
    /// No access times.
    pub noatime: bool,
    /// Largest read, bytes; 0: as the handshake says.
    pub max_read: u32,
    /// Further options of the kernel's fuse, such as `blksize=…`.
    pub extra: Vec<String>,
}

impl Default for MountOptions {
    /// `allow_other` for root only, `default_permissions`, and nothing restricted.
    fn default() -> Self {
        Self {
            source: "fuse".into(),
            subtype: None,
            allow_other: is_root(),
            default_permissions: true,
            read_only: false,
            nosuid: false,
            nodev: false,
            noexec: false,
            noatime: false,
            max_read: 0,
            extra: Vec::new(),
        }
    }
}

impl MountOptions {
    pub(crate) fn subtype(&self) -> Option<&str> {
        self.subtype.as_deref().filter(|subtype| !subtype.is_empty())
    }

    /// Options of the filesystem itself, as both ways of mounting take them.
    pub(crate) fn common(&self) -> Vec<String> {
        let flag = |on: bool, name: &str| on.then(|| name.to_string());
        let mut options = Vec::new();
        options.extend(flag(self.allow_other, "allow_other"));
        options.extend(flag(self.default_permissions, "default_permissions"));
        options.extend((self.max_read > 0).then(|| format!("max_read={}", self.max_read)));
        options.extend(self.extra.iter().cloned());
        options
    }

    /// Options that mount(2) takes as flags: name, flag, whether wanted.
    pub(crate) fn flags(&self) -> [(&'static str, libc::c_ulong, bool); 5] {
        [
            ("ro", libc::MS_RDONLY, self.read_only),
            ("nosuid", libc::MS_NOSUID, self.nosuid),
            ("nodev", libc::MS_NODEV, self.nodev),
            ("noexec", libc::MS_NOEXEC, self.noexec),
            ("noatime", libc::MS_NOATIME, self.noatime),
        ]
    }

    fn flag_bits(&self) -> libc::c_ulong {
        let flags = self.flags();
        let wanted = flags.iter().filter(|(_, _, on)| *on);
        wanted.fold(0, |all, (_, flag, _)| all | flag)
    }
}

/// Mounts on a directory and returns the descriptor for [`Session::init`](crate::Session::init).
///
/// On `Err` nothing stays mounted.
pub fn mount(mountpoint: &Path, options: &MountOptions) -> Result<OwnedFd, Error> {
    let mount = || {
        let mountpoint = check_mountpoint(mountpoint)?;
        if is_root() { mount_directly(&mountpoint, options) } else { fusermount::mount(&mountpoint, options) }
    };
    mount().map_err(|why| Error::Mount { mountpoint: mountpoint.into(), why })
}

/// Unmounts. `lazy` takes the mount out of the tree at once and ends it when its last user is gone; otherwise EBUSY is
/// an error. Ordinary users may unmount what they mounted.
pub fn unmount(mountpoint: &Path, lazy: bool) -> Result<(), Error> {
    let result = if is_root() { unmount_directly(mountpoint, lazy) } else { fusermount::unmount(mountpoint, lazy) };
    result.map_err(|why| Error::Unmount { mountpoint: mountpoint.into(), why })
}

/// Changes the flags of a mount (`ro`, `nosuid`, …) to those of `options`; the rest stays as it was mounted. Root only.
pub fn remount(mountpoint: &Path, options: &MountOptions) -> Result<(), Error> {
    let remount = || {
        let path = c_string(mountpoint.as_os_str().as_bytes())?;
        let flags = options.flag_bits() | libc::MS_REMOUNT;
        // SAFETY: a NUL-terminated string that outlives the call; the others are not looked at.
        let result = unsafe { libc::mount(std::ptr::null(), path.as_ptr(), std::ptr::null(), flags, std::ptr::null()) };
        match result {
            0 => Ok(()),
            _ => Err(format!("remount: {}", io::Error::last_os_error())),
        }
    };
    remount().map_err(|why| Error::Mount { mountpoint: mountpoint.into(), why })
}

/// Lets the kernel read ahead up to `bytes` on this mount; root only.
///
/// The handshake can only lower the 128 KiB that the kernel offers. This raises it, and needs no request to be served.
pub fn set_readahead(mountpoint: &Path, bytes: u32) -> io::Result<()> {
    let mountpoint = mountpoint.as_os_str().as_bytes();
    let table = fs::read("/proc/self/mountinfo")?;
    // 36 35 0:53 / /mnt rw,… - fuse.x source rw,…: the third field is the device, the fifth the place.
    let device = table.rsplit(|&byte| byte == b'\n').find_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ');
        let device = fields.nth(2)?;
        (unescape(fields.nth(1)?) == mountpoint).then(|| String::from_utf8_lossy(device))
    });
    let device = device.ok_or_else(|| io::Error::new(ErrorKind::NotFound, "nothing is mounted there"))?;
    fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), (bytes >> 10).to_string())
}

/// Undoes the mount table's `\040` and the like.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal = tail.get(..3).filter(|_| *first == b'\\');
        let code = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        plain.push(code.unwrap_or(*first));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    plain
}

fn is_root() -> bool {
    // SAFETY: always succeeds.
    unsafe { libc::geteuid() == 0 }
}

fn check_mountpoint(path: &Path) -> Result<PathBuf, String> {
    let explain = |error: io::Error| match error.raw_os_error() {
        Some(libc::ENOENT) => "the directory does not exist; create it first".to_string(),
        Some(libc::ENOTCONN) => format!("a dead FUSE mount is in the way; remove it by `umount -l {}`", path.display()),
        _ => error.to_string(),
    };
    let path = path.canonicalize().map_err(explain)?;
    match fs::metadata(&path).map_err(explain)?.is_dir() {
        true => Ok(path),
        false => Err("it is not a directory".into()),
    }
}

fn c_string(text: impl Into<Vec<u8>>) -> Result<CString, String> {
    CString::new(text).map_err(|_| "NUL in a path or option".into())
}

fn mount_directly(mountpoint: &Path, options: &MountOptions) -> Result<OwnedFd, String> {
    let device = File::options().read(true).write(true).open(DEVICE).map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            format!("{DEVICE} is missing; load the module by `modprobe fuse`")
        }
        _ if error.raw_os_error() == Some(libc::ENODEV) => "the kernel has no FUSE; `modprobe fuse`".into(),
        _ => format!("{DEVICE}: {error}"),
    })?;
    let fd = OwnedFd::from(device);
    let (user, group) = unsafe { (libc::getuid(), libc::getgid()) }; // SAFETY: always succeed.
    let mut data = vec![format!("fd={},rootmode=40000,user_id={user},group_id={group}", fd.as_raw_fd())];
    data.extend(options.common());
    let kind = options.subtype().map_or("fuse".into(), |subtype| format!("fuse.{subtype}"));
    let flags = options.flag_bits();
    let (source, target) = (c_string(&*options.source)?, c_string(mountpoint.as_os_str().as_bytes())?);
    let (kind, data) = (c_string(kind)?, c_string(data.join(","))?);
    // SAFETY: four NUL-terminated strings that outlive the call.
    let result = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()) };
    match result {
        0 => Ok(fd),
        _ => Err(explain_mount(&io::Error::last_os_error(), &data)),
    }
}

fn explain_mount(error: &io::Error, data: &CString) -> String {
    match error.raw_os_error() {
        Some(libc::EBUSY) => "it is in use by another mount".into(),
        Some(libc::ENODEV) => "the kernel has no FUSE; `modprobe fuse`".into(),
        Some(libc::EPERM) => {
            format!("mount(2): {error}; root here lacks CAP_SYS_ADMIN (a container?)")
        }
        Some(libc::EINVAL) => format!("the kernel refuses the options {data:?}"),
        _ => format!("mount(2): {error}"),
    }
}

fn unmount_directly(mountpoint: &Path, lazy: bool) -> Result<(), String> {
    let path = c_string(mountpoint.as_os_str().as_bytes())?;
    let flags = libc::UMOUNT_NOFOLLOW | if lazy { libc::MNT_DETACH } else { 0 };
    // SAFETY: a NUL-terminated string that outlives the call.
    if unsafe { libc::umount2(path.as_ptr(), flags) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(match error.raw_os_error() {
        Some(libc::EBUSY) => "it is in use (`fuser -vm` shows by whom); unmount lazily to detach it now".into(),
        Some(libc::EINVAL) => "nothing is mounted there".into(),
        Some(libc::ENOENT) => "the directory does not exist".into(),
        _ => format!("umount2(2): {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_tables_escapes_are_undone() {
        assert_eq!(unescape(br"/a\040b\134c\"), br"/a b\c\");
    }

    #[test]
    fn an_empty_subtype_is_none() {
        let options = MountOptions { subtype: Some(String::new()), ..Default::default() };
        assert_eq!(options.subtype(), None);
    }
}
