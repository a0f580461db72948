//! The connections to libvirt. This folder alone names `virt`, because every call blocks: calls run on threads of
//! their own, each with a deadline, and a caller never waits for a daemon that hangs.
//!
//! ```text
//!   caller ──run()──► a thread with a connection to itself ──► libvirtd
//!   events ◄────────── a connection that only listens, with keep-alive ◄──┘
//! ```
//!
//! No two threads ever call on one connection: libvirt's client before 10.4 can crash then (CVE-2024-4418), also
//! where the second is its own keep-alive. So only the listening connection has keep-alive; when that finds libvirtd
//! hung or gone, calls that hang are left behind with their connections, and new calls open new ones.
//!
//! A caller that goes away (its future is dropped) leaves a call that has not begun unmade; one that has begun
//! ends by itself, and what it holds (`Hold`) is let go only then, so that the next call on the same machine
//! does not overtake it.

mod domains;
mod error;
mod ffi;
mod host;
mod stream;
mod volumes;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use hwm_core::backend::{BackendError, BackendErrorKind};
use tokio::sync::{Semaphore, broadcast, oneshot, watch};

pub(crate) use error::{Fault, FaultKind};
pub(crate) use host::{DomainState, DomainStats, Host, StateReason};
pub(crate) use stream::{ConsoleStream, Source};

/// How many calls may be under way at once; more wait.
const AT_ONCE: usize = 16;
/// How many connections are kept for later calls.
const KEPT: usize = 8;
/// How often libvirtd is asked whether it lives, and how often in vain, before it is given up.
const KEEPALIVE: (i32, u32) = (5, 3);
/// How often a connection that cannot listen tries again, when there are calls.
const LISTEN_AGAIN: Duration = Duration::from_secs(2);

/// Something to let go of when a call has really ended.
pub(crate) type Hold = Option<Arc<dyn Any + Send + Sync>>;

/// What happened on the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ConnectionEvent {
    /// A domain of this name began, ended or changed.
    Domain {
        /// Its name.
        name: String,
        /// Whether its definition may be another one.
        redefined: bool,
    },
    /// The connection is lost.
    Lost,
}

/// A handle to libvirt; clones share its connections.
#[derive(Clone)]
pub(crate) struct Connection {
    shared: Arc<Shared>,
}

struct Shared {
    uri: String,
    calls: Mutex<Arc<Calls>>,
    listening: Mutex<Listening>,
    changed: watch::Sender<u64>,
    events: broadcast::Sender<ConnectionEvent>,
}

/// The connections for calls, until libvirtd is lost.
struct Calls {
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Host>>,
}

impl Default for Calls {
    fn default() -> Self {
        Self {
            permits: Arc::new(Semaphore::new(AT_ONCE)),
            idle: Mutex::default(),
        }
    }
}

/// The connection that listens.
enum Listening {
    /// Not open; since when, and why.
    Closed(Option<(Instant, Fault)>),
    Opening,
    Open(Arc<Host>),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// libvirt's event loop, once for the process and for as long as it lives: keep-alive and events need it.
fn start_event_loop() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        virt::error::clear_error_callback();
        if let Err(error) = virt::event::event_register_default_impl() {
            tracing::error!(%error, "libvirt's event loop cannot be registered");
            return;
        }
        let started = thread::Builder::new().name("libvirt-events".into()).spawn(|| {
            loop {
                if let Err(error) = virt::event::event_run_default_impl() {
                    tracing::warn!(%error, "libvirt's event loop");
                    thread::sleep(Duration::from_millis(100));
                }
            }
        });
        if let Err(error) = started {
            tracing::error!(%error, "libvirt's event loop cannot be started");
        }
    });
}

impl Connection {
    /// Connects when it is first needed, and again after it was lost.
    pub(crate) fn new(uri: &str) -> Self {
        start_event_loop();
        Self {
            shared: Arc::new(Shared {
                uri: uri.to_owned(),
                calls: Mutex::default(),
                listening: Mutex::new(Listening::Closed(None)),
                changed: watch::Sender::new(0),
                events: broadcast::Sender::new(1024),
            }),
        }
    }

    /// What happens from now on. A receiver that lags has to look for itself.
    pub(crate) fn events(&self) -> broadcast::Receiver<ConnectionEvent> {
        self.shared.events.subscribe()
    }

    /// Whether events come at present.
    pub(crate) fn is_listening(&self) -> bool {
        matches!(&*lock(&self.shared.listening), Listening::Open(_))
    }

    /// Runs a call.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        doing: &str,
        limit: Duration,
        hold: Hold,
        work: impl FnOnce(&Host) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, BackendError> {
        let calls = lock(&self.shared.calls).clone();
        let uri = self.shared.uri.clone();
        let deadline = Instant::now() + limit;
        self.listen_in_passing();
        let permit = tokio::time::timeout_at(deadline.into(), calls.permits.clone().acquire_owned())
            .await
            .map_err(|_| too_late(doing, limit))?;
        on_thread(doing, limit, deadline, move |wanted| {
            let _permits = (permit, hold);
            if !wanted() {
                return Err(Fault::other("nobody waits for it"));
            }
            let kept = lock(&calls.idle).pop();
            let host = match kept.filter(Host::is_alive) {
                Some(host) => host,
                None => Host::open(&uri)?,
            };
            let result = work(&host);
            if host.is_alive() && !matches!(&result, Err(fault) if fault.kind == FaultKind::Gone) {
                let mut idle = lock(&calls.idle);
                if idle.len() < KEPT {
                    idle.push(host);
                }
            }
            result
        })
        .await
    }

    /// Runs a call that keeps its connection for what it answers.
    pub(crate) async fn run_owned<T: Send + 'static>(
        &self,
        doing: &str,
        limit: Duration,
        work: impl FnOnce(Host) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, BackendError> {
        let uri = self.shared.uri.clone();
        on_thread(doing, limit, Instant::now() + limit, move |_| {
            work(Host::open(&uri)?)
        })
        .await
    }

    /// Makes sure that events come.
    pub(crate) async fn listen(&self, doing: &str, limit: Duration) -> Result<(), BackendError> {
        let deadline = Instant::now() + limit;
        let mut changed = self.shared.changed.subscribe();
        let mut tried = false;
        loop {
            {
                let mut listening = lock(&self.shared.listening);
                match &*listening {
                    Listening::Open(_) => return Ok(()),
                    Listening::Opening => {}
                    Listening::Closed(Some((_, fault))) if tried => {
                        return Err(fault.clone().into_backend(doing));
                    }
                    Listening::Closed(_) => {
                        *listening = Listening::Opening;
                        self.shared.open_listening();
                    }
                }
            }
            tried = true;
            if tokio::time::timeout_at(deadline.into(), changed.changed())
                .await
                .is_err()
            {
                return Err(too_late(doing, limit));
            }
        }
    }

    /// Opens the listening connection beside a call, where it is not open and was not tried just now.
    fn listen_in_passing(&self) {
        let mut listening = lock(&self.shared.listening);
        match &*listening {
            Listening::Open(_) | Listening::Opening => {}
            Listening::Closed(Some((since, _))) if since.elapsed() < LISTEN_AGAIN => {}
            Listening::Closed(_) => {
                *listening = Listening::Opening;
                self.shared.open_listening();
            }
        }
    }
}

fn too_late(doing: &str, limit: Duration) -> BackendError {
    BackendError::new(
        BackendErrorKind::Timeout,
        doing,
        format!("libvirt did not answer within {} s", limit.as_secs_f32().ceil()),
    )
}

/// Runs `work` on a thread of its own; it may ask whether its caller still waits.
async fn on_thread<T: Send + 'static>(
    doing: &str,
    limit: Duration,
    deadline: Instant,
    work: impl FnOnce(&dyn Fn() -> bool) -> Result<T, Fault> + Send + 'static,
) -> Result<T, BackendError> {
    let (answer, answered) = oneshot::channel();
    let job = move || {
        let worked = catch_unwind(AssertUnwindSafe(|| work(&|| !answer.is_closed())));
        let result = worked.unwrap_or_else(|_| Err(Fault::other("the call broke off")));
        let _ = answer.send(result);
    };
    thread::Builder::new()
        .name("libvirt-call".into())
        .spawn(job)
        .map_err(|e| BackendError::new(BackendErrorKind::Failed, doing, e.to_string()))?;
    match tokio::time::timeout_at(deadline.into(), answered).await {
        Ok(Ok(result)) => result.map_err(|fault| fault.into_backend(doing)),
        Ok(Err(_)) => Err(BackendError::new(
            BackendErrorKind::Failed,
            doing,
            "the call broke off",
        )),
        Err(_) => Err(too_late(doing, limit)),
    }
}

impl Shared {
    /// Opens the listening connection on a thread of its own.
    fn open_listening(self: &Arc<Self>) {
        let shared = self.clone();
        let open = move || {
            let opened = catch_unwind(AssertUnwindSafe(|| {
                Host::listen(&shared.uri, KEEPALIVE, shared.clone())
            }));
            let opened = opened.unwrap_or_else(|_| Err(Fault::other("opening the connection broke off")));
            *lock(&shared.listening) = match opened {
                Ok(host) => Listening::Open(Arc::new(host)),
                Err(fault) => Listening::Closed(Some((Instant::now(), fault))),
            };
            shared.changed.send_modify(|n| *n += 1);
        };
        if let Err(error) = thread::Builder::new().name("libvirt-listen".into()).spawn(open) {
            tracing::error!(%error, "a thread cannot be started");
        }
    }

    /// The listening connection ended. This is said on the event loop, which must not close it itself.
    fn ended(self: &Arc<Self>) {
        let shared = self.clone();
        let close = move || {
            // It is said while it opens, too.
            let gone = {
                let mut listening = lock(&shared.listening);
                match &*listening {
                    Listening::Open(host) if !host.is_alive() => {
                        let fault = Fault::new(FaultKind::Gone, "the connection to libvirt was lost");
                        std::mem::replace(&mut *listening, Listening::Closed(Some((Instant::now(), fault))))
                    }
                    Listening::Open(_) | Listening::Opening | Listening::Closed(_) => return,
                }
            };
            // Calls that hang stay with their connections.
            *lock(&shared.calls) = Arc::default();
            let _ = shared.events.send(ConnectionEvent::Lost);
            shared.changed.send_modify(|n| *n += 1);
            drop(gone);
        };
        let _ = thread::Builder::new().name("libvirt-close".into()).spawn(close);
    }
}
