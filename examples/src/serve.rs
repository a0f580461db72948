//! From the flags to a server that listens, and to its end.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use axum_server::accept::NoDelayAcceptor;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use axum_server::{Handle, Server};
use hwm_core::env::SystemEnvironment;
use hwm_core::manager::{Manager, Settings};
use hwm_core::testing::sim::{Latency, SimOptions};
use hwm_http::{Cors, Options, Rate};
use hwm_store::{SealingKey, SqliteStore};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::datadir::DataDir;
use crate::demo;
use crate::failure::Failure;
use crate::flags::Serve;
use crate::memory;
use crate::token;
use crate::wiring::{self, Wiring};

/// How long answers under way may still take when the server is to end.
const ANSWERS: Duration = Duration::from_secs(3);
/// How long the manager may take to put down what it is doing.
const STEPS: Duration = Duration::from_secs(4);
/// The whole of it; a call that blocks does not hold up the end beyond this.
const END: Duration = Duration::from_secs(9);
/// How long a client may take to send the head of a request.
const HEADERS: Duration = Duration::from_secs(30);
/// More threads than that only cost memory: what takes long waits for daemons and disks.
const MOST_THREADS: usize = 8;

/// Serves until told to stop.
pub(crate) fn run(flags: Serve) -> Result<(), Failure> {
    let threads = std::thread::available_parallelism()
        .map_or(2, usize::from)
        .clamp(2, MOST_THREADS);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .map_err(system("cannot start threads"))?;
    let done = runtime.block_on(serve(flags));
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

async fn serve(flags: Serve) -> Result<(), Failure> {
    let stop = CancellationToken::new();
    // Before anything that takes time, so that a server that is still starting hears it too.
    on_signals(&stop)?;

    let data = DataDir::open(&flags.data_dir)?;
    let tls = tls(&flags).await?;
    let listener = listen(&flags.listen)?;
    let address = listener.local_addr().map_err(|source| Failure::Listen {
        address: flags.listen.clone(),
        source,
    })?;
    let accepted = token::accepted(&flags.keys, data.path())?;
    let node = data.node_id(flags.node_id.as_deref(), &SystemEnvironment)?;
    let key = SealingKey::load_or_create(&data.join("sealing-key"))?;
    let store = Arc::new(SqliteStore::open(&data.join("hwm.db"), key)?);
    let wiring = wiring::choose(&flags, &data, &node).await?;

    let options = Options {
        cors: cors(&flags.cors_origins),
        origins: flags.cors_origins.iter().filter(|o| *o != "*").cloned().collect(),
        caller_rate: (flags.caller_rate > 0).then_some(Rate {
            per_second: flags.caller_rate,
            burst: flags.caller_rate.saturating_mul(2),
        }),
        public_url: flags.public_url.clone(),
        tls: tls.is_some(),
        shutdown: stop.clone(),
        ..Options::new(accepted.auth)
    };
    let manager = build(&flags, node, store.clone(), wiring).await?;
    let app = hwm_http::router(manager.clone(), options);
    if let Some(token) = accepted.admin {
        // Not a trace: a token does not belong where logs are collected.
        say(&format!(
            "a shared secret was made; a token that may do everything, shown only now:\n{token}"
        ));
    }

    let handle = Handle::new();
    let ending = tokio::spawn(end(stop.clone(), handle.clone()));
    let service = app.into_make_service_with_connect_info::<SocketAddr>();
    let scheme = if tls.is_some() { "https" } else { "http" };
    memory::give_back();
    ready(&format!("listening on {scheme}://{address}"));
    let server = bounded(
        axum_server::from_tcp(listener)
            .map_err(system("cannot listen"))?
            .handle(handle),
    );
    let served = match tls {
        Some(tls) => {
            let acceptor = RustlsAcceptor::new(tls).acceptor(NoDelayAcceptor::new());
            server.acceptor(acceptor).serve(service).await
        }
        None => server.acceptor(NoDelayAcceptor::new()).serve(service).await,
    };
    ending.abort();
    manager.shutdown(STEPS).await;
    tracing::info!("ended; workloads go on, and operations with the next server");
    served.map_err(system("serving failed"))
}

async fn build(
    flags: &Serve,
    node: hwm_core::id::NodeId,
    store: Arc<SqliteStore>,
    wiring: Wiring,
) -> Result<Manager, Failure> {
    let mut builder = Manager::builder(store, node).rules(wiring.rules);
    if let Some(hostname) = wiring::hostname() {
        builder = builder.hostname(hostname);
    }
    for backend in wiring.backends {
        builder = builder.backend(backend);
    }
    if let Some(accelerators) = wiring.accelerators {
        builder = builder.accelerators(accelerators);
    }
    let mut settings = if flags.demo {
        demo::settings()
    } else {
        Settings::default()
    };
    settings.hold_gpus = flags.gpu_hold.0;
    builder = builder.settings(settings);
    match wiring.sim {
        Some(sim) if flags.demo => {
            demo::prepare(&sim);
            sim.set_latency(Latency::default());
            let manager = builder.build().await?;
            demo::fill(&manager).await?;
            sim.set_latency(SimOptions::lifelike().latency);
            Ok(manager)
        }
        _ => Ok(builder.build().await?),
    }
}

/// Closes connections that ask for nothing, or take for ever to ask.
fn bounded(mut server: Server<SocketAddr>) -> Server<SocketAddr> {
    server.http_builder().http1().header_read_timeout(HEADERS);
    server.first_request_timeout(HEADERS)
}

fn cors(origins: &[String]) -> Cors {
    match origins {
        [] => Cors::Off,
        all if all.iter().any(|o| o == "*") => Cors::Any,
        some => Cors::Origins(some.to_vec()),
    }
}

fn listen(text: &str) -> Result<TcpListener, Failure> {
    let failed = |source| Failure::Listen {
        address: text.to_owned(),
        source,
    };
    let addresses: Vec<SocketAddr> = text.to_socket_addrs().map_err(failed)?.collect();
    let listener = TcpListener::bind(addresses.as_slice()).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

async fn tls(flags: &Serve) -> Result<Option<RustlsConfig>, Failure> {
    let (Some(certificate), Some(key)) = (&flags.tls_cert, &flags.tls_key) else {
        return Ok(None);
    };
    // Another default may be there already; it serves as well.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let config = RustlsConfig::from_pem_file(certificate, key).await;
    config.map(Some).map_err(|source| Failure::Tls {
        certificate: certificate.clone(),
        key: key.clone(),
        source,
    })
}

/// Cancels `stop` at the first SIGTERM or SIGINT.
fn on_signals(stop: &CancellationToken) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate()).map_err(system("cannot hear signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("cannot hear signals"))?;
    let stop = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("told to stop");
        stop.cancel();
        std::thread::spawn(|| {
            std::thread::sleep(END);
            tracing::warn!("not everything could be put down in time; the next server takes it up");
            std::process::exit(0);
        });
    });
    Ok(())
}

async fn end(stop: CancellationToken, handle: Handle<SocketAddr>) {
    stop.cancelled().await;
    handle.graceful_shutdown(Some(ANSWERS));
}

/// The one line on standard output.
fn ready(line: &str) {
    let mut out = io::stdout().lock();
    // Whoever does not read it does not miss it.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn system(doing: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |source| Failure::System { doing, source }
}
