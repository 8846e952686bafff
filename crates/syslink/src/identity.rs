//! Who a peer is: the holder of an Ed25519 key. Its certificate is made from the key alone, signed by itself, and says
//! nothing else; its name is the SHA-256 of the public key. docs/syslink.md §Identity.

use std::fmt;
use std::str::FromStr;

use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair};

/// SHA-256 of a public key (its SubjectPublicKeyInfo): the name of a peer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    pub(crate) fn of(public_key_info: &[u8]) -> Fingerprint {
        Fingerprint(sha256(public_key_info))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no {0}")]
pub struct ParseError(pub(crate) &'static str);

impl FromStr for Fingerprint {
    type Err = ParseError;

    fn from_str(s: &str) -> Result<Self, ParseError> {
        from_hex(s).map(Fingerprint).ok_or(ParseError("fingerprint (64 hexadecimal digits)"))
    }
}

/// A key pair. Whoever has its bytes is this peer: keep them where only their owner reads.
#[derive(Clone)]
pub struct Identity {
    private: Vec<u8>,
    certificate: Vec<u8>,
    fingerprint: Fingerprint,
}

impl Identity {
    /// A new one.
    pub fn generate() -> Identity {
        let private = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("the system has randomness");
        Identity::from_bytes(private.as_ref()).expect("a key that was just made")
    }

    /// From [`Identity::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Identity, ParseError> {
        let key = Ed25519KeyPair::from_pkcs8(bytes).map_err(|_| ParseError("Ed25519 key (PKCS #8, version 2)"))?;
        let info = public_key_info(key.public_key().as_ref());
        let fingerprint = Fingerprint::of(&info);
        Ok(Identity { private: bytes.to_vec(), certificate: certificate(&key, &info), fingerprint })
    }

    /// The private key, PKCS #8 version 2 (DER).
    pub fn to_bytes(&self) -> &[u8] {
        &self.private
    }

    /// The certificate (DER).
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// Its name.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.fingerprint)
    }
}

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;

/// A DER value of at most 255 bytes.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let value = parts.concat();
    let mut out = vec![tag];
    match u8::try_from(value.len()).expect("a short certificate") {
        n @ ..0x80 => out.push(n),
        n => out.extend([0x81, n]),
    }
    out.extend(value);
    out
}

/// AlgorithmIdentifier of Ed25519 (RFC 8410): 1.3.101.112, no parameters.
fn algorithm() -> Vec<u8> {
    der(SEQUENCE, &[&der(0x06, &[&[0x2b, 0x65, 0x70]])])
}

fn bits(bytes: &[u8]) -> Vec<u8> {
    der(BIT_STRING, &[&[0], bytes])
}

fn public_key_info(key: &[u8]) -> Vec<u8> {
    der(SEQUENCE, &[&algorithm(), &bits(key)])
}

/// X.509 version 3, for all times, from and to `CN=darner` (RFC 5280). A hundred fixed bytes, a key and a signature
/// are less than a library that can make any other one.
fn certificate(key: &Ed25519KeyPair, info: &[u8]) -> Vec<u8> {
    let common_name = der(SEQUENCE, &[&der(0x06, &[&[0x55, 0x04, 0x03]]), &der(0x0c, &[b"darner"])]);
    let name = der(SEQUENCE, &[&der(0x31, &[&common_name])]);
    let validity = der(SEQUENCE, &[&der(0x17, &[b"700101000000Z"]), &der(0x18, &[b"99991231235959Z"])]);
    let version = der(0xa0, &[&der(INTEGER, &[&[2]])]);
    let serial = der(INTEGER, &[&[1]]);
    let signed = der(SEQUENCE, &[&version, &serial, &algorithm(), &name, &validity, &name, info]);
    let signature = bits(key.sign(&signed).as_ref());
    // The whole is longer than 255 bytes.
    let value = [signed, algorithm(), signature].concat();
    let len = (value.len() as u16).to_be_bytes();
    if value.len() < 256 { der(SEQUENCE, &[&value]) } else { [&[SEQUENCE, 0x82, len[0], len[1]], &value[..]].concat() }
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the system has randomness");
    bytes
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub(crate) fn from_hex<const N: usize>(s: &str) -> Option<[u8; N]> {
    if s.len() != 2 * N || !s.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut out = [0; N];
    for (n, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&s[2 * n..2 * n + 2], 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_comes_back_from_its_bytes_with_the_same_name_and_certificate() {
        let a = Identity::generate();
        let b = Identity::from_bytes(a.to_bytes()).unwrap();
        assert_eq!((a.fingerprint(), a.certificate()), (b.fingerprint(), b.certificate()));
        assert_eq!(a.fingerprint().to_string().parse(), Ok(a.fingerprint()));
        assert_ne!(a.fingerprint(), Identity::generate().fingerprint());
        assert!(Identity::from_bytes(&a.to_bytes()[1..]).is_err());
        assert!("xyz".parse::<Fingerprint>().is_err());
    }
}
