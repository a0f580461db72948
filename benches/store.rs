//! The SQLite store: reads at a thousand and at a million resources, and durable creates beside what the
//! disk does with one row a commit.
//!
//! `HWM_BENCH_ROWS` (default 1000000) is how many the large store has. The argument `creates` or `reads` runs
//! one part.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use criterion::Criterion;
use futures_util::future::join_all;
use hwm_benches::{Figure, fill, median, record};
use hwm_core::access::Visibility;
use hwm_core::config::{Protocol, ResourceType};
use hwm_core::event::{EventType, NewEvent};
use hwm_core::id::OperationId;
use hwm_core::ledger::{Claim, ClaimKey, Pool, PoolLimit};
use hwm_core::lifecycle::{Action, Phase, Status};
use hwm_core::operation::{Arguments, OperationRecord, OperationStatus, Progress, Step};
use hwm_core::store::{ListQuery, Position, RecordWrite, SortBy, SortOrder, Store, Transaction};
use hwm_store::{SealingKey, SqliteStore};
use tokio::runtime::Runtime;

type Error = Box<dyn std::error::Error>;

const SMALL: u64 = 1_000;
const CALLERS: u64 = 64;

fn main() -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().build()?;
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let rows = std::env::var("HWM_BENCH_ROWS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(1_000_000);

    // `cargo bench` gives flags of its own.
    let only = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let wanted = |part: &str| only.as_deref().is_none_or(|only| only == part);

    let mut figures = Vec::new();
    if wanted("creates") {
        figures.extend(creates(&runtime, folder.path())?);
    }
    if wanted("reads") {
        figures.extend(reads(&runtime, folder.path(), rows)?);
    }
    for figure in figures {
        figure.print("store");
    }
    Ok(())
}

fn reads(runtime: &Runtime, folder: &Path, rows: u64) -> Result<Vec<Figure>, Error> {
    let small = filled(runtime, &folder.join("small.db"), SMALL)?;
    let began = Instant::now();
    let large = filled(runtime, &folder.join("large.db"), rows)?;
    let mut figures = vec![Figure {
        name: format!("fill a store, {rows} resources"),
        value: rows as f64 / began.elapsed().as_secs_f64(),
        unit: "resources/s",
        beside: None,
        target: None,
    }];
    let mut criterion = Criterion::default()
        .sample_size(50)
        .measurement_time(Duration::from_secs(2))
        .warm_up_time(Duration::from_millis(500));
    figures.extend(lists(&mut criterion, runtime, &small, &large, rows)?);
    figures.extend(points(
        &mut criterion,
        runtime,
        &folder.join("small.db"),
        &small,
        &large,
        rows,
    )?);
    Ok(figures)
}

fn open(path: &Path) -> Result<SqliteStore, Error> {
    Ok(SqliteStore::open(path, SealingKey::from_bytes([7; 32]))?)
}

/// A store with so many resources.
fn filled(runtime: &Runtime, path: &Path, rows: u64) -> Result<SqliteStore, Error> {
    let store = open(path)?;
    runtime.block_on(fill(&store, rows, record))?;
    Ok(store)
}

fn write(record: hwm_core::resource::Record, expected: Option<u64>) -> RecordWrite {
    RecordWrite { record, expected }
}

/// Queries as clients ask them, by name.
fn queries(rows: u64) -> Vec<(&'static str, ListQuery)> {
    let all = ListQuery::default();
    let containers = vec![
        ResourceType::ApplicationContainer,
        ResourceType::InferenceContainer,
    ];
    let org_id = "org-0".to_owned();
    let middle = record(rows / 2);
    vec![
        ("all, newest first", all.clone()),
        (
            "running containers by name",
            ListQuery {
                types: containers.clone(),
                status: Some(Status::Running),
                sort_by: SortBy::Name,
                order: SortOrder::Asc,
                ..all.clone()
            },
        ),
        (
            "failed ones of an organization, by change",
            ListQuery {
                visibility: Visibility::Organization {
                    org_id: org_id.clone(),
                },
                status: Some(Status::Failed),
                sort_by: SortBy::UpdatedAt,
                ..all.clone()
            },
        ),
        (
            "containers of a member",
            ListQuery {
                visibility: Visibility::Member {
                    org_id,
                    group_id: "group-0".to_owned(),
                    user_id: "user-0".to_owned(),
                    agent_id: "agent".to_owned(),
                },
                types: containers,
                ..all.clone()
            },
        ),
        (
            "those of a node by status, deleted ones too",
            ListQuery {
                node: Some("node-0".into()),
                sort_by: SortBy::Status,
                include_deleted: true,
                ..all.clone()
            },
        ),
        (
            "running ones by cursor, half-way",
            ListQuery {
                status: Some(Status::Running),
                position: Position::After(SortBy::CreatedAt.cursor(&middle)),
                ..all
            },
        ),
    ]
}

/// The median time of a call, by criterion's samples.
fn measure<T, F: Future<Output = T>>(
    criterion: &mut Criterion,
    runtime: &Runtime,
    name: &str,
    call: impl Fn() -> F,
) -> Duration {
    let mut samples = Vec::new();
    criterion.bench_function(name, |bencher| {
        bencher.iter_custom(|iterations| {
            runtime.block_on(async {
                let began = Instant::now();
                for _ in 0..iterations {
                    std::hint::black_box(call().await);
                }
                let took = began.elapsed();
                samples.push(took / u32::try_from(iterations).unwrap_or(u32::MAX));
                took
            })
        });
    });
    median(&mut samples)
}

fn lists(
    criterion: &mut Criterion,
    runtime: &Runtime,
    small: &SqliteStore,
    large: &SqliteStore,
    rows: u64,
) -> Result<Vec<Figure>, Error> {
    let mut figures = Vec::new();
    for ((name, at_small), (_, at_large)) in queries(SMALL).into_iter().zip(queries(rows)) {
        let page = runtime.block_on(large.list(at_large.clone()))?;
        assert_eq!(page.records.len(), 10, "{name} fills its page");
        let on_small = measure(criterion, runtime, &format!("{name}, 1000"), || {
            small.list(at_small.clone())
        });
        let on_large = measure(criterion, runtime, &format!("{name}, {rows}"), || {
            large.list(at_large.clone())
        });
        figures.push(Figure {
            beside: Some(("the same at 1000", on_small.as_secs_f64() * 1e6)),
            target: Some("at most 2 ×"),
            ..Figure::micros(format!("list {name}, {rows}"), on_large)
        });
    }
    let search = ListQuery {
        search: Some(format!("NUMBER {}", rows - 12)),
        ..ListQuery::default()
    };
    let found = measure(criterion, runtime, &format!("search, {rows}"), || {
        large.list(search.clone())
    });
    figures.push(Figure::micros(format!("search for a rare text, {rows}"), found));
    Ok(figures)
}

fn points(
    criterion: &mut Criterion,
    runtime: &Runtime,
    path: &Path,
    small: &SqliteStore,
    large: &SqliteStore,
    rows: u64,
) -> Result<Vec<Figure>, Error> {
    let ids: Vec<_> = (0..1_000).map(|n| record(n).id).collect();
    let turn = AtomicU64::new(0);
    let next = || turn.fetch_add(1, Ordering::Relaxed) as usize % ids.len();
    let db = rusqlite::Connection::open(path)?;
    let mut select = db.prepare("SELECT body FROM records WHERE id = ?1")?;
    let mut samples = Vec::new();
    for _ in 0..50 {
        let began = Instant::now();
        for _ in 0..1_000 {
            let id = ids[next()].as_u128().to_be_bytes();
            std::hint::black_box(select.query_row([id], |row| row.get::<_, String>(0))?);
        }
        samples.push(began.elapsed() / 1_000);
    }
    let bare = median(&mut samples).as_secs_f64() * 1e6;
    let body = serde_json::to_string(&record(1))?;
    let mut samples = Vec::new();
    for _ in 0..50 {
        let began = Instant::now();
        for _ in 0..1_000 {
            std::hint::black_box(serde_json::from_str::<hwm_core::resource::Record>(&body)?);
        }
        samples.push(began.elapsed() / 1_000);
    }
    let decoded = Figure::micros("a record out of its JSON", median(&mut samples));
    let on_small = measure(criterion, runtime, "record, 1000", || small.record(ids[next()]));
    let spread: Vec<_> = (0..1_000).map(|n| record(n * (rows / 1_000)).id).collect();
    let on_large = measure(criterion, runtime, &format!("record, {rows}"), || {
        large.record(spread[next()])
    });
    Ok(vec![
        decoded,
        Figure {
            beside: Some(("the row read by SQLite alone", bare)),
            ..Figure::micros("record, 1000", on_small)
        },
        Figure {
            beside: Some(("the same at 1000", on_small.as_secs_f64() * 1e6)),
            ..Figure::micros(format!("record, {rows}"), on_large)
        },
    ])
}

/// What the manager commits when it accepts a create.
fn create(n: u64) -> Transaction {
    let mut record = record(n);
    record.phase = Phase::Queued;
    record.deleted_at = None;
    let claim = |key, amount| Claim {
        node: record.node.clone(),
        key,
        holder: record.id,
        amount,
    };
    let port = ClaimKey::Port(Protocol::Tcp, 1_024 + (n % 60_000) as u16);
    Transaction {
        claim: vec![
            claim(port, 1),
            claim(ClaimKey::Cpu, 500_000_000),
            claim(ClaimKey::Ram, 1 << 28),
        ],
        limits: Pool::ALL
            .map(|pool| PoolLimit {
                pool,
                limit: u64::MAX >> 1,
            })
            .to_vec(),
        operations: vec![OperationRecord {
            id: OperationId::from_u128(record.id.as_u128()),
            resource: record.id,
            backend: record.backend.clone(),
            owner: record.owner.clone(),
            action: Action::Create,
            arguments: Arguments::default(),
            generation: 1,
            status: OperationStatus::Pending,
            cancel_requested: false,
            progress: Progress {
                step: Step::Accepted,
                message: "accepted".to_owned(),
                percent: None,
            },
            error: None,
            requested_by: "user".to_owned(),
            created_at: record.created_at,
            started_at: None,
            finished_at: None,
            deadline: record.created_at,
        }],
        events: vec![NewEvent {
            kind: EventType::ResourceCreated,
            time: record.created_at,
            resource: Some(record.id),
            resource_type: Some(ResourceType::ApplicationContainer),
            owner: Some(record.owner.clone()),
            operation: Some(OperationId::from_u128(record.id.as_u128())),
            data: serde_json::json!({ "status": "queued" }),
        }],
        records: vec![write(record, None)],
        ..Transaction::default()
    }
}

fn creates(runtime: &Runtime, folder: &Path) -> Result<Vec<Figure>, Error> {
    const CREATES: u64 = 40_000;
    let single = single_row_commits(&folder.join("single.db"))?;
    let store = open(&folder.join("creates.db"))?;
    let next = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    runtime.block_on(async {
        let callers = (0..CALLERS).map(|_| {
            let (store, next) = (store.clone(), next.clone());
            tokio::spawn(async move {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= CREATES {
                        return Ok::<(), hwm_core::store::CommitError>(());
                    }
                    store.commit(create(n)).await?;
                }
            })
        });
        for caller in join_all(callers).await {
            caller??;
        }
        Ok::<(), Error>(())
    })?;
    let per_second = CREATES as f64 / began.elapsed().as_secs_f64();
    let statistics = store.statistics();
    Ok(vec![
        Figure {
            name: format!("creates per fsync, {CALLERS} callers"),
            value: statistics.commits as f64 / statistics.groups as f64,
            unit: "creates/fsync",
            beside: None,
            target: Some("at least 8"),
        },
        Figure {
            name: format!("durable creates, {CALLERS} callers"),
            value: per_second,
            unit: "creates/s",
            beside: Some(("one row a commit, SQLite alone", single)),
            target: Some("aim: 3 ×"),
        },
    ])
}

/// What SQLite does alone: one row, one commit, one fsync.
fn single_row_commits(path: &Path) -> Result<f64, Error> {
    const ROWS: u32 = 3_000;
    let db = rusqlite::Connection::open(path)?;
    db.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT)",
    )?;
    let body = serde_json::to_string(&record(1))?;
    let mut insert = db.prepare("INSERT INTO t (body) VALUES (?1)")?;
    let began = Instant::now();
    for _ in 0..ROWS {
        insert.execute([&body])?;
    }
    Ok(f64::from(ROWS) / began.elapsed().as_secs_f64())
}
