//! The connection to libvirt. This folder alone names `virt`, because every call blocks: calls run on threads of
//! their own, each with a deadline, and a caller never waits for a daemon that hangs.
//!
//! ```text
//!   caller ──run()──► queue ──► worker threads ──► Host ──► libvirtd
//!                     long work: a thread each        ▲
//!   events ◄────────── libvirt's event loop ──────────┘  (keep-alive ends a connection that hangs)
//! ```
//!
//! A caller that goes away (its future is dropped) leaves a call that has not begun unmade; one that has begun
//! ends by itself, and what it holds (`Hold`) is let go only then, so that the next call on the same machine
//! does not overtake it.

mod error;
mod ffi;
mod host;
mod stream;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc as std_mpsc;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use hwm_core::backend::{BackendError, BackendErrorKind};
use tokio::sync::{broadcast, oneshot, watch};

pub(crate) use error::{Fault, FaultKind};
pub(crate) use host::{DomainState, DomainStats, Host, StateReason};
pub(crate) use stream::{ConsoleStream, Source};

/// How many calls may be under way at once; more wait.
const WORKERS: usize = 8;
/// How often libvirtd is asked whether it lives, and how often in vain, before the connection is given up.
const KEEPALIVE: (i32, u32) = (5, 3);

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
        /// Whether its guest agent came or went.
        agent: bool,
    },
    /// The connection is lost.
    Lost,
}

/// A handle to the connection; clones are the same connection.
#[derive(Clone)]
pub(crate) struct Connection {
    shared: Arc<Shared>,
    queue: std_mpsc::Sender<Job>,
}

struct Shared {
    uri: String,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    events: broadcast::Sender<ConnectionEvent>,
}

enum State {
    Closed,
    Opening,
    Open(Arc<Host>),
}

struct Job {
    work: Box<dyn FnOnce() + Send>,
    deadline: Instant,
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
    /// A connection that opens when it is first needed, and again after it was lost.
    pub(crate) fn new(uri: &str) -> Self {
        start_event_loop();
        let (queue, jobs) = std_mpsc::channel::<Job>();
        let jobs = Arc::new(Mutex::new(jobs));
        for i in 0..WORKERS {
            let jobs = jobs.clone();
            let worker = move || {
                loop {
                    let job = lock(&jobs).recv();
                    match job {
                        Ok(job) if Instant::now() < job.deadline => {
                            let _ = catch_unwind(AssertUnwindSafe(job.work));
                        }
                        Ok(_) => {}
                        Err(_) => break,
                    }
                }
            };
            if let Err(error) = thread::Builder::new().name(format!("libvirt-{i}")).spawn(worker) {
                tracing::error!(%error, "a thread for libvirt's calls cannot be started");
            }
        }
        Self {
            shared: Arc::new(Shared {
                uri: uri.to_owned(),
                state: Mutex::new(State::Closed),
                changed: watch::Sender::new(0),
                events: broadcast::Sender::new(1024),
            }),
            queue,
        }
    }

    /// What happens from now on. A receiver that lags has to look for itself.
    pub(crate) fn events(&self) -> broadcast::Receiver<ConnectionEvent> {
        self.shared.events.subscribe()
    }

    /// Runs a short call on a worker thread.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        doing: &str,
        limit: Duration,
        hold: Hold,
        work: impl FnOnce(&Host) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, BackendError> {
        self.dispatch(doing, limit, hold, work, |queue, job| queue.send(job).is_ok())
            .await
    }

    /// Runs a call that may take long (a transfer, a snapshot) on a thread of its own.
    pub(crate) async fn run_long<T: Send + 'static>(
        &self,
        doing: &str,
        limit: Duration,
        hold: Hold,
        work: impl FnOnce(&Host) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, BackendError> {
        let start = |_: &std_mpsc::Sender<Job>, job: Job| {
            thread::Builder::new()
                .name("libvirt-long".into())
                .spawn(move || {
                    let _ = catch_unwind(AssertUnwindSafe(job.work));
                })
                .is_ok()
        };
        self.dispatch(doing, limit, hold, work, start).await
    }

    async fn dispatch<T: Send + 'static>(
        &self,
        doing: &str,
        limit: Duration,
        hold: Hold,
        work: impl FnOnce(&Host) -> Result<T, Fault> + Send + 'static,
        start: impl FnOnce(&std_mpsc::Sender<Job>, Job) -> bool,
    ) -> Result<T, BackendError> {
        let deadline = Instant::now() + limit;
        let host = self.host(doing, deadline).await?;
        let (answer, answered) = oneshot::channel();
        let shared = self.shared.clone();
        let job = Job {
            deadline,
            work: Box::new(move || {
                let _hold = hold;
                if answer.is_closed() {
                    return;
                }
                let result = work(&host);
                if matches!(&result, Err(fault) if fault.kind == FaultKind::Gone) || !host.is_alive() {
                    shared.lost(&host);
                }
                let _ = answer.send(result);
            }),
        };
        let failed = |kind, message: &str| BackendError::new(kind, doing, message);
        if !start(&self.queue, job) {
            return Err(failed(BackendErrorKind::Failed, "no thread could be started"));
        }
        match tokio::time::timeout_at(deadline.into(), answered).await {
            Ok(Ok(result)) => result.map_err(|fault| fault.into_backend(doing)),
            Ok(Err(_)) => Err(failed(BackendErrorKind::Failed, "the call broke off")),
            Err(_) => Err(failed(
                BackendErrorKind::Timeout,
                &format!("libvirt did not answer within {} s", limit.as_secs_f32().ceil()),
            )),
        }
    }

    /// The open connection; opens it where it is not. One thread opens for all who wait.
    async fn host(&self, doing: &str, deadline: Instant) -> Result<Arc<Host>, BackendError> {
        let mut changed = self.shared.changed.subscribe();
        let mut outcome = None;
        loop {
            let open = {
                let mut state = lock(&self.shared.state);
                match &*state {
                    State::Open(host) => return Ok(host.clone()),
                    State::Opening => None,
                    State::Closed => {
                        if let Some(Err(fault)) = outcome.take() {
                            let fault: Fault = fault;
                            return Err(BackendError::new(
                                BackendErrorKind::Unavailable,
                                doing,
                                format!("libvirt does not answer: {}", fault.message),
                            ));
                        }
                        *state = State::Opening;
                        Some(())
                    }
                }
            };
            let away = |message: &str| BackendError::new(BackendErrorKind::Unavailable, doing, message);
            if open.is_some() {
                let (tell, told) = oneshot::channel();
                self.open(tell);
                match tokio::time::timeout_at(deadline.into(), told).await {
                    Ok(result) => outcome = result.ok(),
                    Err(_) => return Err(away("libvirt accepts no connection in time")),
                }
            } else if tokio::time::timeout_at(deadline.into(), changed.changed())
                .await
                .is_err()
            {
                return Err(away("libvirt accepts no connection in time"));
            } else if matches!(&*lock(&self.shared.state), State::Closed) && outcome.is_none() {
                return Err(away("libvirt does not answer"));
            }
        }
    }

    fn open(&self, tell: oneshot::Sender<Result<(), Fault>>) {
        let shared = self.shared.clone();
        let open = move || {
            let result = catch_unwind(AssertUnwindSafe(|| {
                Host::open(&shared.uri, KEEPALIVE, shared.clone())
            }))
            .unwrap_or_else(|_| Err(Fault::other("opening the connection broke off")));
            let result = {
                let mut state = lock(&shared.state);
                match result {
                    Ok(host) => {
                        *state = State::Open(Arc::new(host));
                        Ok(())
                    }
                    Err(fault) => {
                        *state = State::Closed;
                        Err(fault)
                    }
                }
            };
            shared.changed.send_modify(|n| *n += 1);
            let _ = tell.send(result);
        };
        if let Err(error) = thread::Builder::new().name("libvirt-open".into()).spawn(open) {
            tracing::error!(%error, "a thread to open the connection cannot be started");
            *lock(&self.shared.state) = State::Closed;
            self.shared.changed.send_modify(|n| *n += 1);
        }
    }
}

impl Shared {
    /// Gives up a connection, if it is still the one in use.
    fn lost(&self, host: &Host) {
        let gone = {
            let mut state = lock(&self.state);
            match &*state {
                State::Open(open) if std::ptr::eq(&**open, host) => {
                    std::mem::replace(&mut *state, State::Closed)
                }
                State::Open(_) | State::Opening | State::Closed => return,
            }
        };
        let _ = self.events.send(ConnectionEvent::Lost);
        self.changed.send_modify(|n| *n += 1);
        drop(gone);
    }

    /// The connection's own word that it ended. Said on the event loop, which must not close it.
    fn ended(self: &Arc<Self>) {
        let shared = self.clone();
        let _ = thread::Builder::new()
            .name("libvirt-close".into())
            .spawn(move || {
                let host = match &*lock(&shared.state) {
                    State::Open(host) if !host.is_alive() => Some(host.clone()),
                    State::Open(_) | State::Opening | State::Closed => None,
                };
                if let Some(host) = host {
                    shared.lost(&host);
                }
            });
    }
}
