//! TLS 1.3 with a key on both sides, and a connection under it that never blocks. docs/syslink.md §TCP.

use std::io::{self, BufRead, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, Connection, DigitallySignedStruct, DistinguishedName, Error,
    ServerConfig, ServerConnection, SignatureScheme,
};

use crate::identity::{Fingerprint, Identity};
use crate::poll::{self, now_ns};
use crate::stream::Assembler;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Control,
    Bulk,
}

impl Purpose {
    /// Its name in ALPN.
    pub fn name(self) -> &'static [u8] {
        match self {
            Purpose::Control => b"darner-syslink/1",
            Purpose::Bulk => b"darner-syslink-bulk/1",
        }
    }
}

fn fingerprint(certificate: &CertificateDer<'_>) -> Result<Fingerprint, Error> {
    Ok(Fingerprint::of(&ParsedCertificate::try_from(certificate)?.subject_public_key_info()))
}

/// The other side has the private key of its certificate; and, if one is expected, of that one.
#[derive(Debug)]
struct HasItsKey {
    expected: Option<Fingerprint>,
    provider: Arc<CryptoProvider>,
}

impl HasItsKey {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let found = fingerprint(certificate)?;
        if self.expected.is_some_and(|e| e != found) {
            return Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure));
        }
        Ok(())
    }
}

/// What both sides' verifiers say of signatures.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("only TLS 1.3 is spoken here".into()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let known = &self.provider.signature_verification_algorithms;
            verify_tls13_signature(message, certificate, signature, known)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }
    };
}

impl ServerCertVerifier for HasItsKey {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(certificate).map(|()| ServerCertVerified::assertion())
    }

    signatures!();
}

impl ClientCertVerifier for HasItsKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(certificate).map(|()| ClientCertVerified::assertion())
    }

    signatures!();
}

fn own(identity: &Identity) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let key = PrivatePkcs8KeyDer::from(identity.to_bytes().to_vec());
    (vec![CertificateDer::from(identity.certificate().to_vec())], key.into())
}

/// Whether it failed because the other side does not have the key that is expected of it.
pub(crate) fn is_other_key(e: &io::Error) -> bool {
    let found = e.get_ref().and_then(|e| e.downcast_ref::<Error>());
    found == Some(&Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
}

/// Whether it failed because the other side speaks something else than TLS.
pub(crate) fn is_no_tls(e: &io::Error) -> bool {
    let found = e.get_ref().and_then(|e| e.downcast_ref::<Error>());
    matches!(found, Some(Error::InvalidMessage(_)))
}

fn other<E: std::error::Error + Send + Sync + 'static>(e: E) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, e)
}

/// For the side that accepts. Any key may shake hands: who is admitted is decided by the hello.
pub(crate) fn server(identity: &Identity) -> io::Result<Arc<ServerConfig>> {
    let provider = Arc::new(ring::default_provider());
    let verifier = HasItsKey { expected: None, provider: provider.clone() };
    let (certificates, key) = own(identity);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(other)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(certificates, key)
        .map_err(other)?;
    // No resumption, no early data: each handshake proves both keys, freshly.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.alpn_protocols = [Purpose::Control, Purpose::Bulk].map(|p| p.name().to_vec()).into();
    Ok(Arc::new(config))
}

/// For the side that connects.
pub(crate) fn client(identity: &Identity, server: Fingerprint, purpose: Purpose) -> io::Result<Arc<ClientConfig>> {
    let provider = Arc::new(ring::default_provider());
    let verifier = HasItsKey { expected: Some(server), provider: provider.clone() };
    let (certificates, key) = own(identity);
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(certificates, key)
        .map_err(other)?;
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_sni = false;
    config.alpn_protocols = vec![purpose.name().to_vec()];
    Ok(Arc::new(config))
}

/// A TLS connection over a socket that never blocks.
pub(crate) struct Channel {
    socket: TcpStream,
    tls: Mutex<Connection>,
}

/// What arrives of one connection; held by who reads.
pub(crate) struct Raw {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

/// Bytes read from a socket at once.
const RAW: usize = 64 << 10;

impl Default for Raw {
    fn default() -> Self {
        Raw { buffer: vec![0; RAW], start: 0, end: 0 }
    }
}

impl Channel {
    /// Shakes hands as the side that connects.
    pub fn connect(socket: TcpStream, config: Arc<ClientConfig>, until: u64) -> io::Result<Channel> {
        let name = ServerName::try_from("darner").map_err(other)?;
        let tls = ClientConnection::new(config, name).map_err(other)?;
        Channel::shake(socket, tls.into(), until)
    }

    /// Shakes hands as the side that accepts.
    pub fn accept(socket: TcpStream, config: Arc<ServerConfig>, until: u64) -> io::Result<Channel> {
        let tls = ServerConnection::new(config).map_err(other)?;
        Channel::shake(socket, tls.into(), until)
    }

    fn shake(mut socket: TcpStream, mut tls: Connection, until: u64) -> io::Result<Channel> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        tls.set_buffer_limit(None);
        loop {
            let stuck = push(&mut tls, &mut socket)?;
            if !tls.is_handshaking() && !stuck {
                return Ok(Channel { socket, tls: Mutex::new(tls) });
            }
            if now_ns() >= until {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the handshake took too long"));
            }
            poll::wait(&[(socket.as_raw_fd(), stuck)], Some(until))?;
            match tls.read_tls(&mut socket) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                Err(e) => return Err(e),
            }
            if let Err(e) = tls.process_new_packets() {
                // The alert that says why.
                let _ = push(&mut tls, &mut socket);
                return Err(other(e));
            }
        }
    }

    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Whose key was proven.
    pub fn peer(&self) -> io::Result<Fingerprint> {
        let tls = self.tls.lock();
        let certificate = tls.peer_certificates().and_then(|all| all.first());
        let certificate = certificate.ok_or_else(|| io::Error::other("the peer has no certificate"))?;
        fingerprint(certificate).map_err(other)
    }

    /// What it is for.
    pub fn purpose(&self) -> Option<Purpose> {
        let tls = self.tls.lock();
        [Purpose::Control, Purpose::Bulk].into_iter().find(|p| tls.alpn_protocol() == Some(p.name()))
    }

    /// Encrypts; [`Channel::push`] sends.
    pub fn write(&self, bytes: &[u8]) -> io::Result<()> {
        self.tls.lock().writer().write_all(bytes)
    }

    /// Sends what the socket takes; true: not all.
    pub fn push(&self) -> io::Result<bool> {
        push(&mut self.tls.lock(), &mut &self.socket)
    }

    pub fn end(&self) {
        let mut tls = self.tls.lock();
        tls.send_close_notify();
        let _ = push(&mut tls, &mut &self.socket);
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }

    /// Moves all that one read of the socket gives into `to`. `None`: nothing is there; false: the peer has ended.
    pub fn fill(&self, raw: &mut Raw, to: &mut Assembler, now: u64) -> io::Result<Option<bool>> {
        let got = raw.refill(&self.socket)?;
        let mut tls = self.tls.lock();
        // Something may be here since the handshake, of which the socket knows nothing.
        let mut moved = false;
        loop {
            raw.feed(&mut tls)?;
            match tls.reader().read(to.room(RAW)) {
                // What came before the end is taken in first.
                Ok(0) => return Ok(Some(moved)),
                Ok(n) => {
                    moved = true;
                    to.filled(n, now);
                }
                Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Err(e),
                Err(_) if raw.is_empty() => return Ok(if moved { Some(true) } else { got.map(|n| n > 0) }),
                Err(_) => {}
            }
        }
    }

    /// Appends up to `most` bytes; what the socket gives beyond them stays here. `None`: nothing is there.
    pub fn read(&self, raw: &mut Raw, to: &mut Vec<u8>, most: usize) -> io::Result<Option<usize>> {
        loop {
            {
                let mut tls = self.tls.lock();
                raw.feed(&mut tls)?;
                let mut reader = tls.reader();
                match reader.fill_buf() {
                    Ok(some) => {
                        let n = some.len().min(most);
                        // (All of them now: fewer come than are announced only where a peer goes away.)
                        to.reserve_exact(most);
                        to.extend_from_slice(&some[..n]);
                        reader.consume(n);
                        return Ok(Some(n));
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(e) => return Err(e),
                }
            }
            match raw.refill(&self.socket)? {
                None => return Ok(None),
                Some(0) => return Ok(Some(0)),
                Some(_) => {}
            }
        }
    }
}

fn push(tls: &mut Connection, socket: &mut impl Write) -> io::Result<bool> {
    while tls.wants_write() {
        match tls.write_tls(socket) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(false)
}

impl Raw {
    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Reads from the socket if all is used.
    fn refill(&mut self, mut socket: &TcpStream) -> io::Result<Option<usize>> {
        if !self.is_empty() {
            return Ok(Some(self.end - self.start));
        }
        match socket.read(&mut self.buffer) {
            Ok(n) => {
                (self.start, self.end) = (0, n);
                Ok(Some(n))
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Gives TLS as much as it takes before its plaintext is fetched.
    fn feed(&mut self, tls: &mut Connection) -> io::Result<()> {
        while !self.is_empty() && tls.wants_read() {
            self.start += tls.read_tls(&mut &self.buffer[self.start..self.end])?;
            tls.process_new_packets().map_err(other)?;
        }
        Ok(())
    }
}
