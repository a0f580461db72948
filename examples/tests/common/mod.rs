//! A server as a child process, and a client for it.
#![allow(dead_code, reason = "each test program uses a part of it")]

pub(crate) mod churn;
pub(crate) mod daemons;

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::Value;

/// The program under test, with an environment that says nothing to it.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hwm-server"));
    for (name, _) in std::env::vars() {
        if name.starts_with("HWM_") || name == "DOCKER_HOST" || name == "JWT_SECRET" {
            command.env_remove(name);
        }
    }
    command
}

/// Runs the program to its end. Answers its status, standard output and standard error.
pub(crate) fn run(command: &mut Command) -> (ExitStatus, String, String) {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status, text(output.stdout), text(output.stderr))
}

/// A server that listens; killed when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) url: String,
    stderr: Arc<Mutex<String>>,
    stdout: Arc<Mutex<String>>,
}

impl Server {
    /// Starts one on a free port, and waits until it says that it listens.
    pub(crate) fn start(data_dir: &Path, arguments: &[&str]) -> Self {
        let mut command = program();
        command
            .args(["--listen", "127.0.0.1:0", "--data-dir"])
            .arg(data_dir)
            .args(arguments);
        Self::spawn(&mut command)
    }

    pub(crate) fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = Arc::new(Mutex::new(String::new()));
        let (mut source, sink) = (child.stderr.take().unwrap(), stderr.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = source.read(&mut buffer) {
                sink.lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        });
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        let Some(url) = line.trim_end().strip_prefix("listening on ") else {
            let status = child.wait().unwrap();
            std::thread::sleep(Duration::from_millis(100));
            panic!(
                "it did not start ({status}), said {line:?} and {}",
                stderr.lock().unwrap()
            );
        };
        let stdout = Arc::new(Mutex::new(line.clone()));
        let sink = stdout.clone();
        std::thread::spawn(move || {
            let mut rest = String::new();
            while let Ok(1..) = out.read_line(&mut rest) {
                sink.lock().unwrap().push_str(&std::mem::take(&mut rest));
            }
        });
        Self {
            url: url.to_owned(),
            child,
            stderr,
            stdout,
        }
    }

    /// What it wrote to standard error so far.
    pub(crate) fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    /// What it wrote to standard output so far.
    pub(crate) fn stdout(&self) -> String {
        self.stdout.lock().unwrap().clone()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGTERM or another signal, by its name.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-s", name, &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Waits for its end. Panics when that takes longer.
    pub(crate) fn ended(&mut self, limit: Duration) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < limit, "it does not end: {}", self.stderr());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it as a crash does.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// A client with a token that may do everything.
    pub(crate) fn client(&self, data_dir: &Path) -> Client {
        Client::new(&self.url, &token(data_dir, &["--role", "universe.owner"]))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("what the server said:\n{}", self.stderr());
        }
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A token as the program prints it.
pub(crate) fn token(data_dir: &Path, arguments: &[&str]) -> String {
    let mut command = program();
    command
        .arg("token")
        .args(arguments)
        .arg("--data-dir")
        .arg(data_dir);
    let (status, out, err) = run(&mut command);
    assert!(status.success(), "{err}");
    out.trim_end().to_owned()
}

/// Speaks to a server.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    url: String,
    token: String,
}

impl Client {
    pub(crate) fn new(url: &str, token: &str) -> Self {
        let http = reqwest::Client::builder()
            .timeout(Duration::from_secs(60))
            .no_proxy()
            .build();
        Self {
            http: http.unwrap(),
            url: url.to_owned(),
            token: token.to_owned(),
        }
    }

    /// The same caller at another address.
    pub(crate) fn at(&self, url: &str) -> Self {
        Self {
            url: url.to_owned(),
            ..self.clone()
        }
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.url))
            .bearer_auth(&self.token)
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let (status, body) = answer(self.request(Method::GET, path)).await.unwrap();
        assert_eq!(status, StatusCode::OK, "GET {path}: {body}");
        body
    }

    /// Sends and waits for the operation; answers the status and the body.
    pub(crate) async fn act(&self, method: Method, path: &str, body: Option<&Value>) -> (StatusCode, Value) {
        let mut request = self.request(method, path).header("prefer", "wait=30");
        if let Some(body) = body {
            request = request.json(body);
        }
        answer(request).await.unwrap()
    }

    /// All resources, in the order in which they were made.
    pub(crate) async fn resources(&self) -> Vec<Value> {
        let mut all = Vec::new();
        for page in 1.. {
            let path = format!("/resources?limit=200&sortOrder=asc&page={page}");
            let body = self.get(&path).await;
            all.extend(body["data"].as_array().unwrap().iter().cloned());
            if all.len() as u64 >= body["pagination"]["total"].as_u64().unwrap() {
                break;
            }
        }
        all
    }
}

/// Sends; answers the status and the body, `null` when that is no JSON.
pub(crate) async fn answer(request: reqwest::RequestBuilder) -> reqwest::Result<(StatusCode, Value)> {
    let response = request.send().await?;
    let status = response.status();
    let body = response.bytes().await?;
    Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
}

/// Waits until something is so. Panics when that takes longer than `limit`.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, limit: Duration, mut so: impl FnMut() -> F) {
    let begun = Instant::now();
    while !so().await {
        assert!(
            begun.elapsed() < limit,
            "not within {} s: {what}",
            limit.as_secs()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A folder for one test, removed afterwards, and the data directory in it.
pub(crate) fn data_dir() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    (folder, data)
}
