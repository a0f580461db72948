//! What needs a process of its own: being killed, and being another user.
//!
//! Without the harness, so that this file can run itself as the child.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hwm_core::config::Protocol;
use hwm_core::event::{EventType, NewEvent};
use hwm_core::id::ResourceId;
use hwm_core::ledger::{Claim, ClaimKey, Pool};
use hwm_core::store::{ClaimFilter, EventQuery, ListQuery, RecordWrite, Store, Transaction};
use hwm_core::units::Timestamp;
use hwm_store::{OpenError, SealingKey, SqliteStore};

mod common;

const CALLERS: u64 = 8;
const KILLS: u64 = 30;

fn main() {
    match std::env::var("HWM_STORE_CHILD") {
        Ok(child) => {
            let path = std::env::args().nth(1).unwrap();
            match child.as_str() {
                "commit" => commit_for_ever(Path::new(&path)),
                "open" => open_and_tell(Path::new(&path)),
                other => panic!("no child is called {other}"),
            }
        }
        Err(_) => {
            what_was_acknowledged_survives_a_kill();
            println!("what_was_acknowledged_survives_a_kill ... ok");
            a_file_that_may_not_be_written_is_refused();
            println!("a_file_that_may_not_be_written_is_refused ... ok");
        }
    }
}

fn open(path: &Path) -> Result<SqliteStore, OpenError> {
    SqliteStore::open(path, SealingKey::from_bytes([7; 32]))
}

fn child(kind: &str, path: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .arg(path)
        .env("HWM_STORE_CHILD", kind)
        .stdout(Stdio::piped());
    command
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap()
        .block_on(future)
}

fn note(caller: u64) -> String {
    format!("caller-{caller}")
}

fn id(caller: u64, n: u64) -> ResourceId {
    ResourceId::from_u128(u128::from(caller) << 64 | u128::from(n))
}

/// How many transactions of a caller are in the store.
async fn committed(store: &SqliteStore, caller: u64) -> u64 {
    store
        .note(&note(caller))
        .await
        .unwrap()
        .map_or(0, |n| n.parse().unwrap())
}

/// The `n`th transaction of a caller, from 1: a record, claims, an event, and the count.
fn transaction(caller: u64, n: u64) -> Transaction {
    let mut record = common::record(0);
    record.id = id(caller, n);
    let claim = |key, amount| Claim {
        node: record.node.clone(),
        key,
        holder: record.id,
        amount,
    };
    let port = ClaimKey::Port(Protocol::Udp, u16::try_from(caller * 8_000 + n).unwrap());
    Transaction {
        claim: vec![claim(port, 1), claim(ClaimKey::Ram, 10)],
        events: vec![NewEvent {
            kind: EventType::ResourceCreated,
            time: Timestamp::from_millis(0),
            resource: Some(record.id),
            resource_type: None,
            owner: None,
            operation: None,
            data: serde_json::json!({ "text": "x".repeat(200) }),
        }],
        notes: vec![(note(caller), n.to_string())],
        records: vec![RecordWrite {
            record,
            expected: None,
        }],
        ..Transaction::default()
    }
}

/// Says `caller n` once the nth transaction of a caller is acknowledged.
fn commit_for_ever(path: &Path) {
    block_on(async {
        let store = open(path).unwrap();
        let callers = (0..CALLERS).map(|caller| {
            let store = store.clone();
            tokio::spawn(async move {
                let first = committed(&store, caller).await + 1;
                for n in first.. {
                    store.commit(transaction(caller, n)).await.unwrap();
                    let line = format!("{caller} {n}\n");
                    std::io::stdout().write_all(line.as_bytes()).unwrap();
                    std::io::stdout().flush().unwrap();
                }
            })
        });
        for caller in callers.collect::<Vec<_>>() {
            caller.await.unwrap();
        }
    });
}

fn what_was_acknowledged_survives_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hwm.db");
    let mut acknowledged = [0; CALLERS as usize];
    let mut random = common::Random(std::process::id().into());
    for kill in 0..common::times(KILLS) {
        let mut child = child("commit", &path).spawn().unwrap();
        let output = child.stdout.take().unwrap();
        let reader = std::thread::spawn(move || {
            let lines = BufReader::new(output).split(b'\n').map_while(Result::ok);
            // A line that the kill has cut off was acknowledged, but tells nothing.
            let read = |line: Vec<u8>| -> Option<(usize, u64)> {
                let line = String::from_utf8(line).ok()?;
                let (caller, n) = line.split_once(' ')?;
                Some((caller.parse().ok()?, n.parse().ok()?))
            };
            lines.filter_map(read).collect::<Vec<_>>()
        });
        std::thread::sleep(Duration::from_millis(10 + random.below(250)));
        child.kill().unwrap();
        child.wait().unwrap();
        for (caller, n) in reader.join().unwrap() {
            acknowledged[caller] = n.max(acknowledged[caller]);
        }
        block_on(check(&path, &acknowledged, kill));
    }
    assert!(
        acknowledged.iter().sum::<u64>() > KILLS,
        "the children have done something: {acknowledged:?}"
    );
}

async fn check(path: &Path, acknowledged: &[u64], kill: u64) {
    let store = open(path).unwrap();
    assert_eq!(store.check().await, Ok(()), "kill {kill}");
    let mut total = 0;
    for (caller, acknowledged) in (0..).zip(acknowledged) {
        let n = committed(&store, caller).await;
        assert!(
            n >= *acknowledged,
            "kill {kill}: caller {caller} was told {acknowledged}, there are {n}"
        );
        for n in [1, n / 2, n].into_iter().filter(|k| (1..=n).contains(k)) {
            assert!(
                store.record(id(caller, n)).await.unwrap().is_some(),
                "kill {kill}: {caller} {n}"
            );
        }
        assert!(
            store.record(id(caller, n + 1)).await.unwrap().is_none(),
            "a transaction is whole"
        );
        total += n;
    }
    let page = store
        .list(ListQuery {
            search: Some("resource".into()),
            ..ListQuery::default()
        })
        .await
        .unwrap();
    assert_eq!(page.total, total, "kill {kill}: the index of texts");
    let page = store.list(ListQuery::default()).await.unwrap();
    assert_eq!(page.total, total, "kill {kill}: the counts");
    let node = common::record(0).node;
    let claims = store.claims(&node, ClaimFilter::All).await.unwrap();
    assert_eq!(claims.len() as u64, 2 * total, "kill {kill}: the claims");
    assert_eq!(
        store.pools(&node).await.unwrap()[&Pool::Ram],
        10 * total,
        "kill {kill}: the pool"
    );
    let events = store
        .events(EventQuery {
            after: 0,
            limit: u32::MAX,
        })
        .await
        .unwrap();
    assert_eq!(events.events.len() as u64, total, "kill {kill}: the events");
    assert_eq!(events.newest, total, "kill {kill}: the newest event");
}

fn open_and_tell(path: &Path) {
    match open(path) {
        Ok(_) => println!("opened"),
        Err(error) => println!("{error}"),
    }
}

/// As a user who may read the file and its folder and write neither.
fn a_file_that_may_not_be_written_is_refused() {
    const NOBODY: u32 = 65_534;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hwm.db");
    drop(open(&path).unwrap());
    let mode = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    mode(&path, 0o444);
    mode(folder.path(), 0o555);
    let mut command = child("open", &path);
    let is_root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    if is_root {
        // Root may write to everything, and its own program may lie where others cannot see it.
        let program = folder.path().join("program");
        std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        mode(&program, 0o555);
        command = Command::new(program);
        command
            .arg(&path)
            .env("HWM_STORE_CHILD", "open")
            .uid(NOBODY)
            .gid(NOBODY);
    }
    let began = Instant::now();
    let output = command.output().unwrap();
    mode(folder.path(), 0o755);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        said.contains("is read-only: give its owner write access"),
        "{said}{output:?}"
    );
    assert!(began.elapsed() < Duration::from_secs(5), "it is refused at once");
}
