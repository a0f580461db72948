//! GET /resources/:id over 32 connections, beside the least that could do the same: a handler that checks the
//! same token and reads one row of SQLite, and a handler that only answers the same bytes.
//!
//! `HWM_BENCH_SECONDS` (default 2) is how long each server is asked in each of nine rounds. The servers take
//! turns within a round, so that what else the machine does falls on all of them; figures are medians.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hwm_benches::{Figure, admin_token, median, record};
use hwm_core::env::SystemEnvironment;
use hwm_core::lifecycle::Phase;
use hwm_core::manager::Manager;
use hwm_core::resource::Resource;
use hwm_core::store::{RecordWrite, Store, Transaction};
use hwm_core::testing::sim::{Sim, SimOptions};
use hwm_http::Options;
use hwm_http::auth::{Auth, Claims};
use hwm_store::{SealingKey, SqliteStore};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use rusqlite::{Connection, OpenFlags};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

type Error = Box<dyn std::error::Error + Send + Sync>;

const SECRET: &[u8] = b"thirty-two random bytes are good";
const RESOURCES: u64 = 1_000;
const CONNECTIONS: usize = 32;
const ROUNDS: usize = 9;

fn main() -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let seconds = std::env::var("HWM_BENCH_SECONDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(2.0);
    let time = Duration::from_secs_f64(seconds);
    for figure in runtime.block_on(measure(folder.path(), time))? {
        figure.print("http");
    }
    Ok(())
}

async fn measure(folder: &Path, time: Duration) -> Result<Vec<Figure>, Error> {
    let resources: Vec<Resource> = (0..RESOURCES * 2)
        .map(record)
        .filter(|record| record.phase != Phase::Deleted)
        .take(RESOURCES as usize)
        .map(|record| Resource::from(&record))
        .collect();
    let paths: Arc<[String]> = resources.iter().map(|r| format!("/resources/{}", r.id)).collect();
    let token = admin_token(SECRET)?;

    let whole = serve(hwm(folder).await?).await?;
    let least = serve(least(&folder.join("least.db"), &resources)?).await?;
    let bare = serve(bare(serde_json::to_string(&resources[0])?)).await?;

    let mut rates: [Vec<f64>; 3] = Default::default();
    for round in 0..=ROUNDS {
        for (server, rates) in [whole, least, bare].into_iter().zip(&mut rates) {
            let rate = ask(server, &paths, &token, time).await?;
            // The first round warms up.
            if round > 0 {
                rates.push(rate);
            }
        }
    }
    let ratio = |a: &[f64], b: &[f64]| {
        let mut ratios: Vec<f64> = a.iter().zip(b).map(|(a, b)| a / b).collect();
        median(&mut ratios)
    };
    let [whole, least, bare] = &rates;
    let (of_least, of_bare) = (ratio(whole, least), ratio(whole, bare));
    let figure = |name: &str, value: f64, beside, target| Figure {
        name: name.to_owned(),
        value,
        unit: "requests/s",
        beside,
        target,
    };
    eprintln!("medians of the rounds' ratios: {of_least:.3} of the least, {of_bare:.3} of bare");
    let [a, b, c] = rates.each_mut().map(|rates| median(rates));
    Ok(vec![
        figure(
            "GET /resources/:id, 32 connections",
            a,
            Some(("a handler with the same token check and one point read", b)),
            Some("at least 0.8"),
        ),
        figure(
            "GET /resources/:id, 32 connections, bare",
            a,
            Some(("a bare handler of the same bytes", c)),
            Some("aim 0.6"),
        ),
    ])
}

/// All of hwm: the router, the manager, the store.
async fn hwm(folder: &Path) -> Result<Router, Error> {
    let key = SealingKey::load_or_create(&folder.join("key"))?;
    let store = Arc::new(SqliteStore::open(&folder.join("hwm.db"), key)?);
    let records = (0..RESOURCES * 2).map(|n| RecordWrite {
        record: record(n),
        expected: None,
    });
    store
        .commit(Transaction {
            records: records.collect(),
            ..Transaction::default()
        })
        .await?;
    let sim = Sim::new(Arc::new(SystemEnvironment), SimOptions::default());
    let manager = Manager::builder(store, "node-0".into())
        .backend(sim.containers())
        .build()
        .await?;
    let options = Options {
        // One caller asks for all: how fast it may is not what is measured.
        caller_rate: None,
        address_rate: None,
        ..Options::new(Auth::hs256(SECRET)?)
    };
    Ok(hwm_http::router(manager, options))
}

/// What a minimal handler needs: the key, what to check, and where the rows are.
struct Least {
    key: DecodingKey,
    validation: Validation,
    database: PathBuf,
}

thread_local! {
    static CONNECTION: RefCell<Option<Connection>> = const { RefCell::new(None) };
}

fn least(database: &Path, resources: &[Resource]) -> Result<Router, Error> {
    let connection = Connection::open(database)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection
        .execute_batch("CREATE TABLE resource (id TEXT PRIMARY KEY, json TEXT) WITHOUT ROWID; BEGIN")?;
    for resource in resources {
        connection.execute(
            "INSERT INTO resource VALUES (?1, ?2)",
            (resource.id.to_string(), serde_json::to_string(resource)?),
        )?;
    }
    connection.execute_batch("COMMIT")?;
    let state = Arc::new(Least {
        key: DecodingKey::from_secret(SECRET),
        validation: Validation::new(Algorithm::HS256),
        database: database.to_owned(),
    });
    Ok(Router::new()
        .route("/resources/{id}", get(read_least))
        .with_state(state))
}

async fn read_least(
    State(least): State<Arc<Least>>,
    axum::extract::Path(id): axum::extract::Path<String>,
    headers: HeaderMap,
) -> Response {
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.strip_prefix("Bearer "))
        .unwrap_or_default();
    if jsonwebtoken::decode::<Claims>(token, &least.key, &least.validation).is_err() {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    match point_read(&least.database, &id) {
        Ok(json) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        Err(_) => StatusCode::NOT_FOUND.into_response(),
    }
}

fn point_read(database: &Path, id: &str) -> rusqlite::Result<String> {
    CONNECTION.with_borrow_mut(|connection| {
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(Connection::open_with_flags(
                database,
                OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
            )?),
        };
        connection
            .prepare_cached("SELECT json FROM resource WHERE id = ?1")?
            .query_row([id], |row| row.get(0))
    })
}

fn bare(json: String) -> Router {
    let json = axum::body::Bytes::from(json);
    let answer = move || {
        let json = json.clone();
        async move { ([(header::CONTENT_TYPE, "application/json")], json) }
    };
    Router::new().route("/resources/{id}", get(answer))
}

async fn serve(app: Router) -> Result<SocketAddr, Error> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        let service = app.into_make_service_with_connect_info::<SocketAddr>();
        axum::serve(listener, service).await
    });
    Ok(address)
}

/// Asks over all connections at once, and answers how many requests a second were answered.
async fn ask(server: SocketAddr, paths: &Arc<[String]>, token: &str, time: Duration) -> Result<f64, Error> {
    let over = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let clients: Vec<_> = (0..CONNECTIONS)
        .map(|n| {
            let (over, answered, paths) = (over.clone(), answered.clone(), paths.clone());
            let token = token.to_owned();
            tokio::spawn(async move { client(server, n, &paths, &token, &over, &answered).await })
        })
        .collect();
    tokio::time::sleep(time).await;
    let rate = answered.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64();
    over.store(true, Ordering::Relaxed);
    for client in clients {
        client.await??;
    }
    Ok(rate)
}

/// One connection: a request, its answer, the next. It knows no more of HTTP than these servers speak.
async fn client(
    server: SocketAddr,
    n: usize,
    paths: &[String],
    token: &str,
    over: &AtomicBool,
    answered: &AtomicU64,
) -> Result<(), Error> {
    let mut stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 16 << 10];
    let mut next = n * paths.len() / CONNECTIONS;
    while !over.load(Ordering::Relaxed) {
        let request = format!(
            "GET {} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n\r\n",
            paths[next % paths.len()]
        );
        next += 1;
        stream.write_all(request.as_bytes()).await?;
        let mut filled = 0;
        loop {
            let read = stream.read(&mut buffer[filled..]).await?;
            if read == 0 {
                return Err("the server hung up".into());
            }
            filled += read;
            if is_whole(&buffer[..filled])? {
                break;
            }
        }
        answered.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Whether this is all of an answer; an error when it is not a 200.
fn is_whole(answer: &[u8]) -> Result<bool, Error> {
    let Some(head) = answer.windows(4).position(|w| w == b"\r\n\r\n") else {
        return Ok(false);
    };
    let text = std::str::from_utf8(&answer[..head])?;
    if !text.starts_with("HTTP/1.1 200") {
        return Err(text.lines().next().unwrap_or_default().into());
    }
    let length = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .ok_or("no content-length")?;
    Ok(answer.len() == head + 4 + length.parse::<usize>()?)
}
