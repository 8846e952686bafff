//! Buckets of the S3 protocol, for the store. Each call ends within a bounded time; while a bucket can't be reached, calls fail at once but
//! for one a second, so that nobody waits for what will not come.
//!
//! How a bucket is reached the usual variables say (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION,
//! AWS_ENDPOINT_URL, …). They are in memory only, and what outlives the daemon keeps them for the next one.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};

use darner_store::volume::{Bucket, Buckets};
use darner_store::{Error, Result};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::client::ClientOptions;
use object_store::path::Path;
use object_store::{
    BackoffConfig, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, RetryConfig,
};
use parking_lot::Mutex;

use crate::error::Failure;
use crate::keeper::{Items, Keeper};
use crate::memory;

/// How long to wait for an answer without much in it.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long for what carries several MiB there: so much as a slow line needs.
const PATIENCE_TO_PUT: Duration = Duration::from_secs(120);
const CONNECT: Duration = Duration::from_secs(3);
/// What a server is too busy for, or a connection was cut amid, is tried again for so long, with pauses that grow up to so long: together
/// less than [`PATIENCE`], so that what the server says is told.
const RETRY: Duration = Duration::from_secs(4);
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// While a bucket can't be reached, it is tried so often.
const PROBE: Duration = Duration::from_secs(1);
/// How often who waits looks whether he should.
const LOOK: Duration = Duration::from_millis(100);
/// Names in one answer, about.
const PAGE: usize = 1000;
/// What the variables are kept as.
const KEPT: &str = "bucket";

/// The thread that waits for buckets: where it panics, calls fail.
pub const THREAD: &str = "buckets";

const NO_CREDENTIALS: &str = "there are no credentials for it: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_WEB_IDENTITY_TOKEN_FILE \
     and AWS_ROLE_ARN, or AWS_CONTAINER_CREDENTIALS_RELATIVE_URI; with AWS_METADATA_ENDPOINT=http://169.254.169.254 a cloud machine's own \
     role is asked for";

/// What the names of buckets begin with.
pub const SCHEME: &str = "s3://";

/// Variables by name.
pub type Variables = BTreeMap<String, String>;

/// This process ends: nobody waits any more.
static OVER: AtomicBool = AtomicBool::new(false);

/// Has all calls fail from now on, those under way too.
pub fn give_up() {
    OVER.store(true, Ordering::Relaxed);
}

static VARIABLES: Mutex<Option<(u64, Variables)>> = Mutex::new(None);

/// Those of this process that say how buckets are reached.
pub fn variables() -> Variables {
    std::env::vars().filter(|(name, _)| name.starts_with("AWS_")).collect()
}

/// From now on buckets are reached so.
pub fn reach_by(variables: Variables) {
    let mut now = VARIABLES.lock();
    let n = now.as_ref().map_or(0, |(n, _)| *n) + 1;
    *now = Some((n, variables));
}

fn reached_by() -> (u64, Variables) {
    VARIABLES.lock().get_or_insert_with(|| (0, variables())).clone()
}

/// What is wrong with how buckets would be reached by these, if anything is.
pub fn must_be_fine(variables: &Variables) -> crate::error::Result<()> {
    connect("bucket", variables.clone()).map(drop).map_err(Failure::new)
}

/// Has the variables outlive this process.
pub fn keep(keeper: &Keeper) -> crate::error::Result<()> {
    let mut file = memory::file(c"darner-bucket")?;
    file.write_all(&serde_json::to_vec(&reached_by().1)?)?;
    keeper.keep(KEPT, "", &file)
}

/// Goes on with those of the process before, if it had any.
pub fn go_on(items: &mut Items) -> crate::error::Result<()> {
    let Some(item) = items.remove(KEPT) else { return Ok(()) };
    let mut file = std::fs::File::from(item.fd);
    let mut text = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut text)?;
    reach_by(serde_json::from_slice(&text)?);
    Ok(())
}

/// Buckets, as the store opens them.
pub fn buckets() -> Buckets {
    Buckets(Arc::new(|name| Arc::new(S3::new(name))))
}

/// `s3://BUCKET/PREFIX` without a slash at the end, or what is wrong with it.
pub fn name(text: &str) -> crate::error::Result<String> {
    let name = text.trim_end_matches('/');
    let (bucket, prefix) = split(name);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let is_fine = !bucket.is_empty()
        && bucket.chars().all(is_plain)
        && prefix.split('/').all(|part| part.chars().all(is_plain) && (!part.is_empty() || prefix.is_empty()));
    match is_fine && text.starts_with(SCHEME) {
        true => Ok(name.into()),
        false => Err(Failure::new(format!(
            "{text} is no s3://BUCKET/PREFIX of letters, digits, full stops, hyphens and underscores"
        ))),
    }
}

fn split(name: &str) -> (&str, &str) {
    let rest = name.strip_prefix(SCHEME).unwrap_or(name);
    rest.split_once('/').unwrap_or((rest, ""))
}

/// See the module.
struct S3 {
    name: String,
    /// By which variables it was made, and it.
    client: Mutex<Option<(u64, Arc<AmazonS3>)>>,
    health: Mutex<Health>,
}

#[derive(Default)]
struct Health {
    trouble: Option<String>,
    /// Not before then again.
    next: Option<Instant>,
}

impl S3 {
    fn new(name: &str) -> S3 {
        S3 { name: name.into(), client: Mutex::default(), health: Mutex::default() }
    }

    fn client(&self) -> Result<Arc<AmazonS3>, String> {
        let (n, variables) = reached_by();
        let mut client = self.client.lock();
        if let Some((made, client)) = client.as_ref().filter(|(made, _)| *made == n) {
            let _ = made;
            return Ok(client.clone());
        }
        let made = Arc::new(connect(split(&self.name).0, variables)?);
        *client = Some((n, made.clone()));
        Ok(made)
    }

    fn path(&self, name: &str) -> Path {
        match split(&self.name).1 {
            "" => Path::from(name),
            prefix => Path::from(format!("{prefix}/{name}")),
        }
    }

    /// The name of an object without the prefix.
    fn own<'p>(&self, path: &'p Path) -> Option<&'p str> {
        match split(&self.name).1 {
            "" => Some(path.as_ref()),
            prefix => path.as_ref().strip_prefix(prefix)?.strip_prefix('/'),
        }
    }

    /// Does something there, within a time.
    fn call<T, F>(
        &self,
        action: &'static str,
        what: &str,
        patience: Duration,
        f: impl FnOnce(Arc<AmazonS3>) -> F,
    ) -> Result<T, Failed>
    where
        T: Send + 'static,
        F: Future<Output = object_store::Result<T>> + Send + 'static,
    {
        let failed = |source: std::io::Error| {
            let place = if what.is_empty() { self.name.clone() } else { format!("{}, object {what}", self.name) };
            Error::Io { place, action, source: Arc::new(source) }
        };
        {
            let mut health = self.health.lock();
            if let Some(why) = health.trouble.clone() {
                if health.next.is_some_and(|at| at > Instant::now()) {
                    return Err(Failed::Other(failed(std::io::Error::new(ErrorKind::TimedOut, why))));
                }
                health.next = Some(Instant::now() + PROBE);
            }
        }
        let outcome = self.client().map_err(|e| std::io::Error::new(ErrorKind::InvalidInput, e)).and_then(|client| {
            let (tell, told) = mpsc::sync_channel(1);
            let work = f(client);
            let task = runtime()?.spawn(async move {
                let _ = tell.send(work.await);
            });
            let start = Instant::now();
            while start.elapsed() < patience && !OVER.load(Ordering::Relaxed) {
                match told.recv_timeout(LOOK) {
                    Ok(outcome) => return Ok(outcome),
                    Err(mpsc::RecvTimeoutError::Timeout) => {}
                    Err(mpsc::RecvTimeoutError::Disconnected) => {
                        return Err(std::io::Error::other("it can't be asked so (the log has more)"));
                    }
                }
            }
            task.abort();
            Err(std::io::Error::new(ErrorKind::TimedOut, format!("no answer within {} s", patience.as_secs())))
        });
        use object_store::Error as E;
        let outcome = match outcome {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(E::AlreadyExists { .. } | E::Precondition { .. })) => Err(Failed::Exists),
            Ok(Err(E::NotFound { .. })) => {
                self.is_well();
                return Err(Failed::Other(failed(ErrorKind::NotFound.into())));
            }
            Ok(Err(e)) => Err(Failed::Other(failed(std::io::Error::other(told(&e))))),
            Err(e) => Err(Failed::Other(failed(e))),
        };
        match &outcome {
            Ok(_) | Err(Failed::Exists) => self.is_well(),
            Err(Failed::Other(e)) => self.is_ill(e),
        }
        outcome
    }

    fn is_well(&self) {
        let mut health = self.health.lock();
        if health.trouble.take().is_some() {
            tracing::info!("{} can be reached again", self.name);
        }
    }

    fn is_ill(&self, e: &Error) {
        let mut health = self.health.lock();
        health.next = Some(Instant::now() + PROBE);
        let why = match e {
            Error::Io { source, .. } => source.to_string(),
            e => e.to_string(),
        };
        if health.trouble.is_none() {
            tracing::warn!("{} can't be reached: {why}", self.name);
            health.trouble = Some(why);
        }
    }
}

/// The error and its causes, each once, in one line.
fn told(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(e) = cause {
        let more = e.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = e.source();
    }
    plain(&text)
}

/// A line of text; of what a server says in XML, the message.
fn plain(text: &str) -> String {
    let (before, xml) = text.split_at(text.find('<').unwrap_or(text.len()));
    let message = xml.split_once("<Message>").and_then(|(_, rest)| rest.split_once("</Message>"));
    let words = before.split_whitespace().chain(message.map_or("", |(message, _)| message).split_whitespace());
    words.collect::<Vec<_>>().join(" ").trim_end_matches(':').to_owned()
}

enum Failed {
    /// There is one of that name.
    Exists,
    Other(Error),
}

impl From<Failed> for Error {
    fn from(f: Failed) -> Error {
        match f {
            Failed::Exists => Error::Refused("there is an object of that name".into()),
            Failed::Other(e) => e,
        }
    }
}

impl Bucket for S3 {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn put(&self, objects: Vec<(String, Vec<u8>)>) -> Result<()> {
        let what = objects.first().map_or(String::new(), |(name, _)| name.clone());
        let all: Vec<(Path, PutPayload)> =
            objects.into_iter().map(|(name, bytes)| (self.path(&name), bytes.into())).collect();
        self.call("put", &what, PATIENCE_TO_PUT, |client| async move {
            let mut tasks = Vec::new();
            for (path, bytes) in all {
                let client = client.clone();
                tasks.push(tokio::spawn(async move { client.put(&path, bytes).await.map(drop) }));
            }
            for task in tasks {
                task.await??;
            }
            Ok(())
        })?;
        Ok(())
    }

    fn put_new(&self, name: &str, bytes: Vec<u8>) -> Result<bool> {
        let path = self.path(name);
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let outcome = self.call("put", name, PATIENCE_TO_PUT, |client| async move {
            client.put_opts(&path, bytes.into(), options).await.map(drop)
        });
        match outcome {
            Ok(()) => Ok(true),
            Err(Failed::Exists) => Ok(false),
            Err(Failed::Other(e)) => Err(e),
        }
    }

    fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Vec<u8>> {
        let path = self.path(name);
        let start = range.as_ref().map(|range| range.start);
        let options = GetOptions { range: range.map(GetRange::Bounded), ..GetOptions::default() };
        let bytes = self.call("get", name, PATIENCE, |client| async move {
            let e = match client.get_opts(&path, options).await {
                Ok(found) => return found.bytes().await,
                Err(e) => e,
            };
            // An object that ends before the range is an error to the server: 416.
            let Some(start) = start.filter(|_| told(&e).contains("416")) else { return Err(e) };
            let is_shorter = client.head(&path).await.is_ok_and(|object| object.size <= start);
            if is_shorter { Ok(Default::default()) } else { Err(e) }
        })?;
        Ok(bytes.into())
    }

    fn list(&self, prefix: &str, after: &str) -> Result<Vec<(String, u64)>> {
        let (within, after) = (self.path(prefix), (!after.is_empty()).then(|| self.path(after)));
        let found = self.call("list", prefix, PATIENCE, |client| async move {
            use futures_util::{StreamExt, TryStreamExt};
            let stream = match &after {
                Some(after) => client.list_with_offset(Some(&within), after),
                None => client.list(Some(&within)),
            };
            stream.take(PAGE).try_collect::<Vec<_>>().await
        })?;
        let mut all: Vec<(String, u64)> =
            found.iter().filter_map(|o| Some((self.own(&o.location)?.to_owned(), o.size))).collect();
        all.sort();
        Ok(all)
    }

    fn delete(&self, names: &[String]) -> Result<()> {
        let paths: Vec<object_store::Result<Path>> = names.iter().map(|name| Ok(self.path(name))).collect();
        let what = names.first().map_or("", String::as_str).to_owned();
        self.call("delete", &what, PATIENCE_TO_PUT, |client| async move {
            use futures_util::{StreamExt, stream};
            let mut outcomes = client.delete_stream(stream::iter(paths).boxed());
            while let Some(outcome) = outcomes.next().await {
                match outcome {
                    Err(object_store::Error::NotFound { .. }) => {}
                    outcome => drop(outcome?),
                }
            }
            Ok(())
        })?;
        Ok(())
    }

    fn trouble(&self) -> Option<String> {
        self.health.lock().trouble.clone()
    }
}

fn connect(bucket: &str, variables: Variables) -> Result<AmazonS3, String> {
    // (Somebody else may have chosen one: the same.)
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = ClientOptions::new().with_timeout(PATIENCE_TO_PUT).with_connect_timeout(CONNECT);
    let backoff = BackoffConfig { max_backoff: RETRY_PAUSE, ..BackoffConfig::default() };
    let retry = RetryConfig { backoff, max_retries: 100, retry_timeout: RETRY };
    let mut builder = AmazonS3Builder::new().with_client_options(http).with_retry(retry);
    for (name, value) in variables.into_iter().filter(|(_, value)| !value.is_empty()) {
        if name.starts_with("AWS_ENDPOINT") {
            let is_address = |url: &url::Url| matches!(url.scheme(), "http" | "https") && url.has_host();
            if !url::Url::parse(&value).is_ok_and(|url| is_address(&url)) {
                return Err(format!("{name} is {value:?}, where http://HOST:PORT or https://HOST is expected"));
            }
        }
        if let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
            if value.starts_with("http://") && name.starts_with("AWS_ENDPOINT") {
                // Whoever names such an address wants it.
                builder = builder.with_allow_http(true);
            }
            builder = builder.with_config(key, value);
        }
    }
    if !has_credentials(&builder) {
        return Err(NO_CREDENTIALS.into());
    }
    builder.with_bucket_name(bucket).build().map_err(|e| told(&e))
}

/// Whether it is known who we are there, or whom to ask: by itself nobody is asked.
fn has_credentials(builder: &AmazonS3Builder) -> bool {
    use AmazonS3ConfigKey as K;
    let ways: [&[K]; 6] = [
        &[K::AccessKeyId],
        &[K::SecretAccessKey],
        &[K::WebIdentityTokenFile, K::RoleArn],
        &[K::ContainerCredentialsRelativeUri],
        &[K::ContainerCredentialsFullUri, K::ContainerAuthorizationTokenFile],
        &[K::MetadataEndpoint],
    ];
    let is_anonymous = builder.get_config_value(&K::SkipSignature).as_deref() == Some("true");
    is_anonymous || ways.iter().any(|way| way.iter().all(|key| builder.get_config_value(key).is_some()))
}

/// What does the waiting: one thread for all buckets.
fn runtime() -> std::io::Result<&'static tokio::runtime::Handle> {
    static HANDLE: OnceLock<tokio::runtime::Handle> = OnceLock::new();
    static STARTING: Mutex<()> = Mutex::new(());
    let _one = STARTING.lock();
    if HANDLE.get().is_none() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        std::thread::Builder::new()
            .name(THREAD.into())
            .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
        let _ = HANDLE.set(handle);
    }
    Ok(HANDLE.get().expect("just made"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_buckets_are_taken_apart_or_refused() {
        assert_eq!(name("s3://bucket/a/b/").unwrap(), "s3://bucket/a/b");
        assert_eq!(split("s3://bucket/a/b"), ("bucket", "a/b"));
        assert_eq!(split(&name("s3://bucket").unwrap()), ("bucket", ""));
        for wrong in ["s3://", "s3:///a", "s3://b//a", "s3://b/a b", "/tmp/b", "s3://b/ä"] {
            assert!(name(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn without_credentials_nobody_is_asked_for_them_unless_it_is_said_whom() {
        let connected = |names: &[&str]| {
            let some = |name: &&str| (name.to_string(), "http://127.0.0.1:9/some".to_string());
            connect("bucket", names.iter().map(some).collect()).map(drop)
        };
        for names in [&[][..], &["AWS_REGION"], &["AWS_ROLE_ARN"], &["AWS_CONTAINER_CREDENTIALS_FULL_URI"]] {
            assert_eq!(connected(names), Err(NO_CREDENTIALS.to_string()), "{names:?}");
        }
        for names in [
            &["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"][..],
            &["AWS_METADATA_ENDPOINT"],
            &["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"],
            &["AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"],
        ] {
            assert_eq!(connected(names), Ok(()), "{names:?}");
        }
        assert!(connected(&["AWS_ACCESS_KEY_ID"]).is_err_and(|why| why != NO_CREDENTIALS));
    }

    #[test]
    fn a_server_that_is_busy_or_cuts_connections_is_asked_again_for_some_seconds() {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = asked.clone();
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let mut socket = socket.unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    match socket.read(&mut byte) {
                        Ok(1) => request.push(byte[0]),
                        _ => break,
                    }
                }
                let answer = match count.fetch_add(1, Ordering::Relaxed) {
                    0 | 5 => "",
                    1 | 6 => "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n",
                    2 => "HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n",
                    7 => {
                        "HTTP/1.1 200 OK\r\nlast-modified: Mon, 30 Nov 2026 00:00:00 GMT\r\netag: \"a\"\r\ncontent-length: 5\r\n"
                    }
                    _ => "HTTP/1.1 503 Slow Down\r\ncontent-length: 0\r\n",
                };
                let body = if answer.contains("200 OK") { "bytes" } else { "" };
                let whole = format!("{answer}connection: close\r\n\r\n{body}");
                let _ = socket.write_all(if answer.is_empty() { b"" } else { whole.as_bytes() });
            }
        });
        let some = |(name, value): (&str, &str)| (name.to_string(), value.to_string());
        let endpoint = format!("http://127.0.0.1:{port}");
        let variables = [("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b"), ("AWS_ENDPOINT_URL", &endpoint)];
        let s3 = S3::new("s3://bucket/some");
        *s3.client.lock() = Some((reached_by().0, Arc::new(connect("bucket", variables.map(some).into()).unwrap())));
        assert_eq!(s3.get("r/some", None).unwrap(), b"bytes");
        assert_eq!((asked.load(Ordering::Relaxed), s3.trouble()), (8, None));
        // But not for long, and then it is told what it said.
        let start = Instant::now();
        let said = s3.get("r/some", None).unwrap_err().to_string();
        assert!(said.contains("503"), "{said}");
        assert!(start.elapsed() > RETRY && start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    }

    #[test]
    fn what_a_server_says_is_told_in_one_line() {
        let xml = "<?xml version=\"1.0\"?>\n<Error>\n<Code>No</Code><Message>The key\nis wrong</Message></Error>";
        assert_eq!(plain(&format!("403 Forbidden: {xml}")), "403 Forbidden: The key is wrong");
        assert_eq!(plain("502 Bad Gateway: <!DOCTYPE html>\n<p>no</p>"), "502 Bad Gateway");
        assert_eq!(plain("Connection refused"), "Connection refused");
    }
}
