//! The server at rest: its memory, and how soon it is ready, with nothing and with many stored resources.
//!
//! Needs the server, `cargo build --release -p hwm-examples --example server`. With `HWM_TEST_DOCKER_HOST` it runs on that
//! engine. `HWM_BENCH_RESOURCES` (default 100000) is how many the full store has.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hwm_benches::{Figure, fill, record};
use hwm_core::id::NodeId;
use hwm_core::lifecycle::{Desired, Phase};
use hwm_core::resource::Record;
use hwm_store::{SealingKey, SqliteStore};

type Error = Box<dyn std::error::Error>;

const NODE: &str = "bench";
/// How long the server is left alone before its memory is read.
const REST: Duration = Duration::from_secs(20);

fn main() -> Result<(), Error> {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let rows = std::env::var("HWM_BENCH_RESOURCES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(100_000);
    let empty = look(&folder.path().join("empty"))?;
    let full = folder.path().join("full");
    store(&full, rows)?;
    let full = look(&full)?;

    let mb = |kb: u64| kb as f64 / 1024.0;
    let figures = [
        Figure {
            name: "server at rest, resident".to_owned(),
            value: mb(empty.resident_kb),
            unit: "MB",
            beside: None,
            target: Some("at most 25"),
        },
        Figure {
            name: format!("server at rest, more with {rows} resources"),
            value: mb(full.resident_kb) - mb(empty.resident_kb),
            unit: "MB",
            beside: None,
            target: Some("at most 10"),
        },
        Figure {
            name: format!("from start to listening, {rows} resources"),
            value: full.ready.as_secs_f64() * 1e3,
            unit: "ms",
            beside: Some(("with none", empty.ready.as_secs_f64() * 1e3)),
            target: Some("at most 1000"),
        },
    ];
    for figure in figures {
        figure.print("rest");
    }
    Ok(())
}

/// Fills a data directory as an earlier server would have left it.
fn store(data: &Path, rows: u64) -> Result<(), Error> {
    std::fs::create_dir_all(data)?;
    let key = SealingKey::load_or_create(&data.join("sealing-key"))?;
    let store = SqliteStore::open(&data.join("hwm.db"), key)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(fill(&store, rows, never_started))?;
    Ok(())
}

/// A resource that was left queued: the engine has nothing of it, and nothing is to be done.
fn never_started(n: u64) -> Record {
    Record {
        node: NodeId::new(NODE),
        phase: Phase::Queued,
        desired: Desired::Stopped,
        deleted_at: None,
        ..record(n)
    }
}

struct Look {
    ready: Duration,
    resident_kb: u64,
}

/// Starts the server on a data directory, waits until it listens, and reads its memory when it has come to rest.
fn look(data: &Path) -> Result<Look, Error> {
    let mut command = Command::new(server()?);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("HWM_")) {
        command.env_remove(name);
    }
    match std::env::var("HWM_TEST_DOCKER_HOST") {
        Ok(host) => command.args(["--containers", "docker", "--docker-host", &host]),
        Err(_) => command.args(["--containers", "none"]),
    };
    command.args([
        "--gpus",
        "none",
        "--listen",
        "127.0.0.1:0",
        "--node-id",
        NODE,
        "--data-dir",
    ]);
    let begun = Instant::now();
    let child = command
        .arg(data)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut server = Running(child);
    let out = server.0.stdout.take().ok_or("no standard output")?;
    let mut line = String::new();
    BufReader::new(out).read_line(&mut line)?;
    let ready = begun.elapsed();
    if !line.starts_with("listening on ") {
        return Err(format!("it does not start: {line:?}").into());
    }
    std::thread::sleep(REST);
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.0.id()))?;
    let resident_kb = status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmRSS:")?
                .trim()
                .strip_suffix(" kB")?
                .parse()
                .ok()
        })
        .ok_or("no VmRSS")?;
    Ok(Look { ready, resident_kb })
}

/// Ended when it is no longer looked at.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The server beside this bench: `target/release/examples/server`.
fn server() -> Result<PathBuf, Error> {
    let here = std::env::current_exe()?;
    let server = here
        .ancestors()
        .nth(2)
        .ok_or("no target folder")?
        .join("examples/server");
    if server.exists() {
        Ok(server)
    } else {
        Err("build the server first: cargo build --release -p hwm-examples --example server".into())
    }
}
