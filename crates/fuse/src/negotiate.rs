//! The handshake as pure arithmetic: what the kernel offers, what we wish, what results.
//!
//! Invariants: the result never holds a flag that wasn't offered; it is plain data, from which a later process can take
//! the descriptor over without a handshake ([`Session::adopt`](crate::Session::adopt)).

use std::{fmt, str::FromStr};

use crate::{
    Error,
    abi::{self, init},
    request::Dialect,
};

/// What a server wishes for.
///
/// Left out of the default on purpose: ATOMIC_O_TRUNC (it makes the kernel send OPEN again), AUTO_INVAL_DATA (invalidation
/// is explicit), POSIX_LOCKS and FLOCK_LOCKS (the kernel's own locks serve one machine), WRITEBACK_CACHE (the kernel
/// would own size and mtime).
#[derive(Clone, Debug)]
pub struct Config {
    /// [`abi::init`] bits; only those that the kernel offers are taken.
    pub flags: u64,
    /// Largest write, bytes.
    pub max_write: u32,
    /// Largest read, bytes.
    pub max_read: u32,
    /// Readahead, bytes; the kernel's own limit (`read_ahead_kb` of the mount) holds as well.
    pub max_readahead: u32,
    /// Asynchronous requests (readahead, direct I/O, FORGET) under way at a time.
    pub max_background: u16,
    /// From how many of them on the mount counts as congested.
    pub congestion_threshold: u16,
    /// Granularity of timestamps, ns.
    pub time_gran: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            flags: init::ASYNC_READ
                | init::BIG_WRITES
                | init::EXPORT_SUPPORT
                | init::DONT_MASK
                | init::DO_READDIRPLUS
                | init::READDIRPLUS_AUTO
                | init::ASYNC_DIO
                | init::PARALLEL_DIROPS
                | init::NO_OPEN_SUPPORT
                | init::NO_OPENDIR_SUPPORT
                | init::HANDLE_KILLPRIV_V2
                | init::POSIX_ACL
                | init::CACHE_SYMLINKS
                | init::EXPLICIT_INVAL_DATA
                | init::MAX_PAGES
                | init::INIT_EXT
                | init::SETXATTR_EXT
                | init::DIRECT_IO_ALLOW_MMAP
                | init::HAS_EXPIRE_ONLY
                | init::HAS_RESEND,
            max_write: 1 << 20,
            max_read: 1 << 20,
            max_readahead: 1 << 20,
            max_background: 64,
            congestion_threshold: 48,
            time_gran: 1,
        }
    }
}

impl Config {
    /// Wishes for more [`abi::init`] flags.
    pub fn with(mut self, flags: u64) -> Self {
        self.flags |= flags;
        self
    }

    /// Wishes for fewer.
    pub fn without(mut self, flags: u64) -> Self {
        self.flags &= !flags;
        self
    }
}

/// What kernel and server agreed on. As text (`Display`, `FromStr`): `major=7 minor=45 offered=0x… …`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // see `Config`
pub struct Negotiated {
    pub major: u32,
    /// The smaller of the kernel's and ours.
    pub minor: u32,
    /// [`abi::init`] bits that the kernel offered.
    pub offered: u64,
    /// [`abi::init`] bits in force.
    pub flags: u64,
    pub max_write: u32,
    pub max_readahead: u32,
    pub max_background: u32,
    pub congestion_threshold: u32,
    /// Pages of a request; the kernel may have cut it down to `/proc/sys/fs/fuse/max_pages_limit`.
    pub max_pages: u32,
    pub time_gran: u32,
}

impl Negotiated {
    /// Whether all of these [`abi::init`] flags are in force.
    pub fn has(&self, flags: u64) -> bool {
        self.flags & flags == flags
    }

    /// How requests of this session are to be read.
    pub fn dialect(&self) -> Dialect {
        Dialect { setxattr_ext: self.has(init::SETXATTR_EXT) }
    }

    /// Agrees on the intersection. `major` has to be 7.
    pub(crate) fn agree(
        config: &Config,
        major: u32,
        minor: u32,
        max_readahead: u32,
        offered: u64,
    ) -> Result<Self, Error> {
        if major != abi::MAJOR || minor < abi::MINOR_MIN {
            return Err(Error::Version { major, minor });
        }
        let mut flags = config.flags & offered;
        if flags & init::INIT_EXT == 0 {
            flags &= u64::from(u32::MAX);
        }
        let wished = config.max_write.max(4096);
        let max_write = if flags & init::MAX_PAGES == 0 { wished.min(32 * 4096) } else { wished };
        let largest = max_write.max(config.max_read);
        Ok(Self {
            major,
            minor: minor.min(abi::MINOR),
            offered,
            flags,
            max_write,
            max_readahead: config.max_readahead.min(max_readahead),
            max_background: config.max_background.into(),
            congestion_threshold: config.congestion_threshold.into(),
            // One more than the bytes need: a direct write seldom starts on a page.
            max_pages: if flags & init::MAX_PAGES == 0 { 32 } else { (largest.div_ceil(4096) + 1).min(0xffff) },
            time_gran: config.time_gran,
        })
    }

    pub(crate) fn to_wire(self) -> abi::InitOut {
        abi::InitOut {
            major: self.major,
            minor: self.minor,
            max_readahead: self.max_readahead,
            flags: self.flags as u32,
            max_background: self.max_background as u16,
            congestion_threshold: self.congestion_threshold as u16,
            max_write: self.max_write,
            time_gran: self.time_gran,
            max_pages: self.max_pages as u16,
            flags2: (self.flags >> 32) as u32,
            ..Default::default()
        }
    }
}

impl fmt::Display for Negotiated {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { major, minor, offered, flags, max_write, max_readahead, .. } = self;
        let Self { max_background, congestion_threshold, max_pages, time_gran, .. } = self;
        write!(out, "major={major} minor={minor} offered={offered:#x} flags={flags:#x} max_write={max_write} ")?;
        write!(out, "max_readahead={max_readahead} max_background={max_background} ")?;
        write!(out, "congestion_threshold={congestion_threshold} max_pages={max_pages} time_gran={time_gran}")
    }
}

impl FromStr for Negotiated {
    type Err = Error;

    /// Fields not named are 0; names not known are an error.
    fn from_str(text: &str) -> Result<Self, Error> {
        let mut new = Self::default();
        for word in text.split_whitespace() {
            let wrong = || Error::Negotiated { what: word.to_string() };
            let (name, value) = word.split_once('=').ok_or_else(wrong)?;
            let wide = match value.strip_prefix("0x") {
                Some(hex) => u64::from_str_radix(hex, 16),
                None => value.parse(),
            };
            let wide = wide.map_err(|_| wrong())?;
            let narrow = u32::try_from(wide).map_err(|_| wrong());
            match name {
                "major" => new.major = narrow?,
                "minor" => new.minor = narrow?,
                "offered" => new.offered = wide,
                "flags" => new.flags = wide,
                "max_write" => new.max_write = narrow?,
                "max_readahead" => new.max_readahead = narrow?,
                "max_background" => new.max_background = narrow?,
                "congestion_threshold" => new.congestion_threshold = narrow?,
                "max_pages" => new.max_pages = narrow?,
                "time_gran" => new.time_gran = narrow?,
                _ => return Err(wrong()),
            }
        }
        if new.major != abi::MAJOR || new.max_write == 0 {
            return Err(Error::Negotiated { what: text.to_string() });
        }
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_offered_is_taken() {
        let offered = init::ASYNC_READ | init::MAX_PAGES | init::HAS_RESEND | init::ATOMIC_O_TRUNC;
        let got = Negotiated::agree(&Config::default(), 7, 99, 4096, offered).unwrap();
        assert_eq!(got.flags, init::ASYNC_READ | init::MAX_PAGES, "no upper half without INIT_EXT");
        assert_eq!((got.minor, got.max_readahead, got.max_pages), (abi::MINOR, 4096, 257));
        let got = Negotiated::agree(&Config::default(), 7, 31, 4096, init::ASYNC_READ).unwrap();
        assert_eq!((got.minor, got.max_write), (31, 128 << 10));
        assert!(Negotiated::agree(&Config::default(), 7, 30, 0, u64::MAX).is_err());
    }

    #[test]
    fn a_mount_that_is_only_read_has_no_room_for_writes_and_reads_as_much_at_a_time() {
        let config = Config { max_write: 4096, ..Config::default() };
        let got = Negotiated::agree(&config, 7, 45, 4096, init::MAX_PAGES).unwrap();
        assert_eq!((got.max_write, got.max_pages), (4096, 257));
    }

    #[test]
    fn it_survives_as_text() {
        let got = Negotiated::agree(&Config::default(), 7, 45, 1 << 20, u64::MAX).unwrap();
        assert_eq!(got.to_string().parse::<Negotiated>().unwrap(), got);
        assert!("major=7 max_write=4096 colour=blue".parse::<Negotiated>().is_err());
        assert!("".parse::<Negotiated>().is_err());
    }
}
