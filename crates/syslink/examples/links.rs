//! What a call costs over each kind of link, against a plain socket of the same kind in the same run: the median of the
//! ratios of interleaved chunks, so that what else the machine does meanwhile strikes both.
//!
//! `cargo run --release -p darner-syslink --example links`

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use darner_syslink::sim::{Pair, Side};
use darner_syslink::{Answering, Caller, Config, Identity, Known, Message, Peer, Refuse, Service, Tag, Who, tcp, unix};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, ServerConfig, ServerConnection, SignatureScheme, Stream,
};

const SMALL: usize = 64;
const LARGE: usize = 128 << 10;
const ROUNDS: usize = 60;

/// Sends these bytes, fresh from somewhere, and returns when a small answer is in.
type Exchange = Box<dyn FnMut(Vec<u8>)>;

fn service() -> Arc<dyn Service> {
    Arc::new(Answering(|_: &Peer, _: Message| Ok(Message::new(Tag(1)))))
}

fn over(caller: Arc<dyn Caller>) -> Exchange {
    Box::new(move |bytes| {
        let mut m = Message::new(Tag(1));
        match bytes.len() {
            SMALL => m.bytes(Tag(1), &bytes),
            _ => m.attach(Tag(1), bytes),
        };
        caller.call(m, None).expect("an answer");
    })
}

fn seqpacket() -> Exchange {
    let mut fds = [0; 2];
    let kind = libc::SOCK_SEQPACKET;
    // SAFETY: room for two descriptors, which are ours.
    let [a, b] = unsafe {
        assert_eq!(libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()), 0);
        fds.map(|fd| OwnedFd::from_raw_fd(fd))
    };
    let receive =
        |fd: &OwnedFd, to: &mut [u8]| unsafe { libc::recv(fd.as_raw_fd(), to.as_mut_ptr().cast(), to.len(), 0) };
    let send = |fd: &OwnedFd, from: &[u8]| unsafe { libc::send(fd.as_raw_fd(), from.as_ptr().cast(), from.len(), 0) };
    thread::spawn(move || {
        let mut buffer = vec![0; LARGE];
        while receive(&b, &mut buffer) > 0 {
            send(&b, &[0; SMALL]);
        }
    });
    Box::new(move |bytes| {
        assert_eq!(send(&a, &bytes), bytes.len() as isize);
        assert_eq!(receive(&a, &mut [0; SMALL]), SMALL as isize);
    })
}

/// Serves a plain protocol: 4 bytes of length, so many bytes; 64 bytes back.
fn answer(mut stream: impl Read + Write) {
    let mut buffer = vec![0; LARGE];
    loop {
        let mut len = [0; 4];
        if stream.read_exact(&mut len).is_err() {
            return;
        }
        stream.read_exact(&mut buffer[..u32::from_le_bytes(len) as usize]).unwrap();
        stream.write_all(&[0; SMALL]).unwrap();
    }
}

fn ask(mut stream: impl Read + Write + 'static) -> Exchange {
    let mut frame = Vec::new();
    Box::new(move |bytes| {
        frame.clear();
        frame.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        frame.extend_from_slice(&bytes);
        stream.write_all(&frame).unwrap();
        stream.read_exact(&mut [0; SMALL]).unwrap();
    })
}

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let b = listener.accept().unwrap().0;
    a.set_nodelay(true).unwrap();
    b.set_nodelay(true).unwrap();
    (a, b)
}

fn plain_tcp() -> Exchange {
    let (a, b) = tcp_pair();
    thread::spawn(move || answer(b));
    ask(a)
}

/// The same cipher without any proof: only its cost matters here.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A type that owns what `rustls::Stream` borrows.
struct Tls<C>(C, TcpStream);

macro_rules! stream {
    ($connection:ty) => {
        impl Read for Tls<$connection> {
            fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
                Stream::new(&mut self.0, &mut self.1).read(to)
            }
        }

        impl Write for Tls<$connection> {
            fn write(&mut self, from: &[u8]) -> std::io::Result<usize> {
                Stream::new(&mut self.0, &mut self.1).write(from)
            }

            fn flush(&mut self) -> std::io::Result<()> {
                Stream::new(&mut self.0, &mut self.1).flush()
            }
        }
    };
}

stream!(ClientConnection);
stream!(ServerConnection);

/// Both ends of a TLS connection, before their handshake.
fn tls_pair() -> (Tls<ClientConnection>, Tls<ServerConnection>) {
    let identity = Identity::generate();
    let provider = Arc::new(ring::default_provider());
    let versions = [&rustls::version::TLS13];
    let certificates = vec![CertificateDer::from(identity.certificate().to_vec())];
    let key = PrivatePkcs8KeyDer::from(identity.to_bytes().to_vec()).into();
    let server = ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(&versions).unwrap();
    let server = server.with_no_client_auth().with_single_cert(certificates, key).unwrap();
    let client = ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(&versions).unwrap();
    let client = client.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider))).with_no_client_auth();
    let (a, b) = tcp_pair();
    let server = ServerConnection::new(Arc::new(server)).unwrap();
    (Tls(ClientConnection::new(Arc::new(client), "x".try_into().unwrap()).unwrap(), a), Tls(server, b))
}

fn plain_tls() -> Exchange {
    let (client, server) = tls_pair();
    thread::spawn(move || answer(server));
    ask(client)
}

/// Bytes a second through a plain TLS connection in one direction, from memory and into nothing.
fn plain_stream() -> f64 {
    const TOTAL: usize = 1 << 30;
    let (mut client, mut server) = tls_pair();
    let start = Instant::now();
    let reader = thread::spawn(move || {
        let (mut buffer, mut left) = (vec![0; LARGE], TOTAL);
        while left > 0 {
            left -= server.read(&mut buffer).unwrap();
        }
        server.write_all(&[0]).unwrap();
    });
    let bytes = vec![7; LARGE];
    (0..TOTAL / LARGE).for_each(|_| client.write_all(&bytes).unwrap());
    client.read_exact(&mut [0]).unwrap();
    reader.join().unwrap();
    TOTAL as f64 / start.elapsed().as_secs_f64()
}

fn unix_link() -> Exchange {
    let addr = SocketAddr::from_abstract_name(format!("syslink-measure-{}", std::process::id())).unwrap();
    let all = |_: &Who, _: &darner_syslink::engine::Hello, _: u64| Ok(());
    let listener = unix::Listener::bind(&addr, Config::default(), Arc::new(all), service()).unwrap();
    let link = unix::connect(&addr, "measure", &Config::default(), Arc::new(Refuse)).unwrap();
    drop(listener);
    over(Arc::new(link))
}

fn tcp_link() -> Exchange {
    let (a, b) = (Identity::generate(), Identity::generate());
    let known = Arc::new(Known::new([(a.fingerprint(), None)], |_, _| ()));
    let any = "127.0.0.1:0".parse().unwrap();
    let listener = tcp::Listener::bind(any, &b, Config::default(), known, service()).unwrap();
    let remote = tcp::Remote { addr: listener.addr(), key: b.fingerprint(), ticket: None };
    over(Arc::new(tcp::connect(&remote, &a, "measure", &Config::default(), Arc::new(Refuse)).unwrap()))
}

/// Microseconds for one exchange.
fn chunk(exchange: &mut Exchange, bytes: &[u8]) -> f64 {
    let n = if bytes.len() == SMALL { 300 } else { 60 };
    let start = Instant::now();
    (0..n).for_each(|_| exchange(bytes.to_vec()));
    start.elapsed().as_secs_f64() * 1e6 / f64::from(n)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn compare(name: &str, mut plain: Exchange, mut link: Exchange) {
    for (what, len) in [("64 bytes", SMALL), ("128 KiB", LARGE)] {
        let bytes = vec![7; len];
        let (mut plains, mut links, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        (0..3).for_each(|_| _ = (chunk(&mut plain, &bytes), chunk(&mut link, &bytes)));
        for _ in 0..ROUNDS {
            let (p, l) = (chunk(&mut plain, &bytes), chunk(&mut link, &bytes));
            plains.push(p);
            links.push(l);
            ratios.push(l / p);
        }
        let (p, l, r) = (median(&mut plains), median(&mut links), median(&mut ratios));
        println!("| {name} | {what} | {p:.1} µs | {l:.1} µs | {r:.2} |");
    }
}

fn main() {
    println!("| link against | what | plain | link | ratio |\n|---|---|---|---|---|");
    compare("unix / SOCK_SEQPACKET", seqpacket(), unix_link());
    compare("TCP / TLS socket", plain_tls(), tcp_link());
    compare("TCP / unencrypted TCP socket", plain_tcp(), tcp_link());
    let mut streams: Vec<f64> = (0..5).map(|_| plain_stream() / 1e6).collect();
    println!("a stream over a plain TLS socket: {:.0} MB/s", median(&mut streams));
    let mut memory = over(Pair::perfect(Arc::new(Refuse), service()).caller(Side::A));
    println!("in memory: 64 bytes {:.2} µs", chunk(&mut memory, &[7; SMALL]));
}
