//! A real server of the S3 protocol, which is a process of its own: it can be stopped, killed and started again.

#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::common::{self, DARNER, World, eventually};

const SERVE: &str = "DARNER_TEST_BUCKET";
pub const KEY: [(&str, &str); 3] =
    [("AWS_ACCESS_KEY_ID", "an-access-key"), ("AWS_SECRET_ACCESS_KEY", "a-very-secret-key"), ("AWS_REGION", "here")];

/// A server, and the directory with its buckets.
pub struct Server {
    pub dir: PathBuf,
    pub port: u16,
    process: Child,
}

impl Server {
    pub fn new(dir: &Path) -> Server {
        let dir = dir.join("server");
        std::fs::create_dir_all(dir.join("bucket")).unwrap();
        let port = common::free_port();
        let process = Server::start(&dir, port);
        Server { dir, port, process }
    }

    fn start(dir: &Path, port: u16) -> Child {
        let mut server = Command::new(std::env::current_exe().unwrap());
        server
            .args(["--exact", "s3::serve", "--ignored", "--nocapture"])
            .env(SERVE, format!("{port} {}", dir.display()));
        let process = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        eventually("the server answers", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        process
    }

    pub fn signal(&self, signal: i32) {
        common::signal(self.process.id() as i32, signal);
    }

    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    pub fn restart(&mut self) {
        self.process = Server::start(&self.dir, self.port);
    }

    /// The objects with bytes of regions, the largest first.
    pub fn parts(&self) -> Vec<PathBuf> {
        let find =
            Command::new("find").arg(self.dir.join("bucket/some/where/r")).args(["-type", "f"]).output().unwrap();
        let mut all: Vec<PathBuf> = String::from_utf8(find.stdout).unwrap().lines().map(PathBuf::from).collect();
        all.sort_by_key(|path| std::cmp::Reverse(path.metadata().unwrap().len()));
        all
    }

    /// Files of objects.
    pub fn objects(&self) -> usize {
        let find = Command::new("find").arg(self.dir.join("bucket")).args(["-type", "f"]).output().unwrap();
        String::from_utf8(find.stdout).unwrap().lines().count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// No test: what [`Server`] runs.
#[test]
#[ignore]
fn serve() {
    let Ok(what) = std::env::var(SERVE) else { return };
    let (port, dir) = what.split_once(' ').unwrap();
    let service = {
        let mut builder = s3s::service::S3ServiceBuilder::new(s3s_fs::FileSystem::new(dir).unwrap());
        builder.set_auth(s3s::auth::SimpleAuth::from_single(KEY[0].1, KEY[1].1));
        builder.build()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port.parse().unwrap())).await.unwrap();
        let http = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            socket.set_nodelay(true).unwrap();
            let connection = http.serve_connection(hyper_util::rt::TokioIo::new(socket), service.clone()).into_owned();
            tokio::spawn(connection);
        }
    });
}

/// Runs a script in the world's directory that may reach a server at this port.
pub fn run(w: &World, port: u16, script: &str) -> Output {
    let mut command = Command::new("bash");
    command.args(["-euc", script]).current_dir(&w.dir).envs(KEY);
    command.env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}"));
    command.env("MNT", &w.mnt).env("DARNER", DARNER).env("DIR", &w.dir).env("DARNER_BUCKET_SECONDS", "3600");
    command.output().unwrap()
}

#[track_caller]
pub fn sh(w: &World, server: &Server, script: &str) -> String {
    let out = run(w, server.port, script);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{script}: {said}");
    String::from_utf8(out.stdout).unwrap().trim_end().to_owned()
}
