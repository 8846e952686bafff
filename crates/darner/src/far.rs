//! Addresses of stores on other machines: `darner://HOST:PORT/FILESET#KEY`.

use std::fmt;
use std::io::ErrorKind;
use std::net::ToSocketAddrs;
use std::str::FromStr;
use std::sync::Arc;

use darner_mirror::SERVICE;
use darner_syslink::tcp::{self, Remote};
use darner_syslink::{CallError, Config, ConnectError, Fingerprint, Identity, Link, Refuse, Service, Ticket, Why};

use crate::error::{Context, Failure, Result};

/// The port where none is named.
pub const PORT: u16 = 7437;
const SCHEME: &str = "darner://";
/// A source that owes an answer and says nothing for so long is asked whether it lives, and given up after twice that. Nanoseconds.
const QUIET: u64 = 5_000_000_000;

/// A store on another machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Far {
    /// Its name or address, and the port.
    pub host: String,
    /// The name of a fileset, where one is meant.
    pub fileset: Option<String>,
    /// The key that it proves to have.
    pub key: Option<Fingerprint>,
}

/// What keeps us from a source. The later ones promise more of another attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hitch {
    /// Nobody is there, or somebody else.
    Nobody,
    /// Whoever is there says nothing.
    Silent,
    /// It answered, and does not let us in.
    Refused,
    /// The connection was cut before anything was said: it may come about the next time.
    Dropped,
    /// The same, later: what was said may have been heard.
    Cut,
}

/// Why no link came about.
#[derive(Debug)]
pub struct Unreached {
    /// For people.
    pub failure: Failure,
    /// And for us.
    pub hitch: Hitch,
}

impl Unreached {
    /// Neither by this way nor by that.
    pub fn and(self, other: Unreached) -> Unreached {
        let failure = Failure::new(format!("{}; {}", self.failure, other.failure));
        Unreached { failure, hitch: self.hitch.max(other.hitch) }
    }
}

impl From<Failure> for Unreached {
    fn from(failure: Failure) -> Unreached {
        Unreached { failure, hitch: Hitch::Nobody }
    }
}

impl From<Unreached> for Failure {
    fn from(e: Unreached) -> Failure {
        e.failure
    }
}

/// Of links to sources: of one that says nothing, the kernel tells late, or never (a machine that sleeps, a process that was stopped).
pub(crate) fn config() -> Config {
    Config { quiet_ns: Some(QUIET), ..Config::default() }
}

impl Hitch {
    /// What ended a pull that may go on.
    pub fn of_call(e: &CallError) -> Hitch {
        match e {
            CallError::Broken(reason) if reason.why == Why::Silent => Hitch::Silent,
            _ => Hitch::Cut,
        }
    }

    /// What an attempt to connect met.
    pub fn of(e: &ConnectError) -> Hitch {
        match e {
            ConnectError::Io(e) => match e.kind() {
                ErrorKind::TimedOut | ErrorKind::WouldBlock => Hitch::Silent,
                ErrorKind::ConnectionReset
                | ErrorKind::ConnectionAborted
                | ErrorKind::BrokenPipe
                | ErrorKind::UnexpectedEof => Hitch::Dropped,
                _ => Hitch::Nobody,
            },
            ConnectError::Ended(reason) => match reason.why {
                Why::NotAdmitted | Why::Version => Hitch::Refused,
                Why::Slow | Why::Silent => Hitch::Silent,
                _ => Hitch::Cut,
            },
        }
    }
}

/// Completes an address by whom to expect there, and reads a ticket. Without anything else, whoever has `known`.
pub(crate) fn expecting(
    mut far: Far,
    ticket: Option<&str>,
    known: Option<Fingerprint>,
) -> Result<(Far, Option<Ticket>)> {
    let ticket = ticket.map(|t| t.trim().parse::<Ticket>().map_err(Failure::new)).transpose()?;
    far.key = ticket.as_ref().map(|t| t.issuer).or(far.key).or(known);
    match far.key {
        Some(_) => Ok((far, ticket)),
        None => Err(Failure::new(
            "whom to expect there? Use --ticket (`darner serve MNT --ticket` there prints one), or --key",
        )),
    }
}

/// Completes an address by the port.
pub fn with_port(address: &str) -> Result<String> {
    match address.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => match port.parse::<u16>() {
            Ok(_) => Ok(address.into()),
            Err(_) => {
                Err(Failure::new(format!("{port:?} in {address} is no port: that is a number up to {}", u16::MAX)))
            }
        },
        // (The colons are those of IPv6.)
        Some(_) if !address.starts_with('[') => Ok(format!("[{address}]:{PORT}")),
        _ => Ok(format!("{address}:{PORT}")),
    }
}

impl Far {
    /// Whether a text means a store on another machine.
    pub fn is_meant(text: &str) -> bool {
        text.starts_with(SCHEME)
    }

    /// Connects to whoever has the key. `ticket`: what lets us in, where we are not known yet.
    pub fn connect(&self, identity: &Identity, ticket: Option<[u8; 32]>) -> std::result::Result<Link, Unreached> {
        self.connect_with(identity, ticket, Arc::new(Refuse))
    }

    /// The same; `own` answers what is asked from there.
    pub fn connect_with(
        &self,
        identity: &Identity,
        ticket: Option<[u8; 32]>,
        own: Arc<dyn Service>,
    ) -> std::result::Result<Link, Unreached> {
        let key = self.key.ok_or_else(|| Failure::new(format!("{self}: it is not known which key it has")))?;
        let mut failed = None;
        for addr in self.host.to_socket_addrs().cant(|| format!("find {}", self.host))? {
            let remote = Remote { addr, key, ticket };
            match tcp::connect(&remote, identity, SERVICE, &config(), own.clone()) {
                Ok(link) => return Ok(link),
                Err(e) => failed = Some(e),
            }
        }
        let hitch = failed.as_ref().map_or(Hitch::Nobody, Hitch::of);
        let why = failed.map_or("it has no address".into(), |e| self.explained(&e));
        Err(Unreached { failure: Failure::new(format!("{}: {why}", self.host)), hitch })
    }

    /// What went wrong, and what to do.
    fn explained(&self, e: &ConnectError) -> String {
        match e {
            ConnectError::Io(e) if e.kind() == ErrorKind::ConnectionRefused => {
                format!("{e}: nobody listens there (`darner serve MNT --listen ADDRESS:PORT` on that machine)")
            }
            ConnectError::Io(e) if e.kind() == ErrorKind::TimedOut => {
                format!(
                    "{e}: nothing came from there (is it on, is it this port, does a firewall drop what is sent there?)"
                )
            }
            ConnectError::Io(e) if tcp::is_other_key(e) => {
                let key = self.key.map_or("no key".into(), |key| key.to_string());
                format!("who answers there does not have the key {key} (`darner serve MNT` there tells which it has)")
            }
            ConnectError::Io(e) if tcp::is_something_else(e) => {
                "what listens there is no darner (`darner serve MNT` there tells the address and port)".into()
            }
            ConnectError::Ended(why) if why.why == Why::NotAdmitted => {
                format!("{e} (`darner serve MNT --ticket` there prints a new ticket)")
            }
            _ => e.to_string(),
        }
    }
}

impl fmt::Display for Far {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.host)?;
        if let Some(fileset) = &self.fileset {
            write!(f, "/{fileset}")?;
        }
        if let Some(key) = &self.key {
            write!(f, "#{key}")?;
        }
        Ok(())
    }
}

impl FromStr for Far {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Far> {
        let bad = || Failure::new(format!("{text:?} is no darner://HOST:PORT/FILESET"));
        let rest = text.strip_prefix(SCHEME).ok_or_else(bad)?;
        let (rest, key) = match rest.rsplit_once('#') {
            Some((rest, key)) => (rest, Some(key.parse().map_err(Failure::new)?)),
            None => (rest, None),
        };
        let (host, fileset) = rest.split_once('/').unwrap_or((rest, ""));
        if host.is_empty() || host.starts_with(':') {
            return Err(bad());
        }
        let fileset = (!fileset.is_empty()).then(|| fileset.to_string());
        Ok(Far { host: with_port(host)?, fileset, key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_comes_back_and_gets_a_port_where_it_has_none() {
        let key = "ab".repeat(32);
        for text in [format!("darner://laptop:99/home#{key}"), "darner://[::1]:7437".into()] {
            assert_eq!(text.parse::<Far>().unwrap().to_string(), text);
        }
        for (text, host) in [
            ("darner://laptop", "laptop:7437"),
            ("darner://laptop/", "laptop:7437"),
            ("darner://10.0.0.1/home", "10.0.0.1:7437"),
            ("darner://fe80::1", "[fe80::1]:7437"),
            ("darner://[fe80::1]", "[fe80::1]:7437"),
        ] {
            assert_eq!(text.parse::<Far>().unwrap().host, host, "{text}");
        }
        for text in ["laptop", "darner://", "darner:///home", "darner://:7/home", "darner://a#b"] {
            assert!(text.parse::<Far>().is_err(), "{text}");
        }
        for (address, port) in [("127.0.0.1:99999", "99999"), ("[::1]:no", "no"), ("laptop:", "")] {
            let said = with_port(address).unwrap_err().to_string();
            assert!(said.starts_with(&format!("{port:?} in {address} is no port")), "{said}");
        }
    }
}
