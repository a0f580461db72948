//! A backend as the manager keeps it: whether it answers, how much of it is used, and calls with a deadline.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};

use super::counters::CounterSet;
use crate::backend::{Backend, BackendError, BackendErrorKind, BackendInfo, BackendReport, BackendState};
use crate::env::Environment;
use crate::error::Error;
use crate::id::BackendName;
use crate::ledger::Capacity;
use crate::node::NodeBackend;
use crate::units::Timestamp;

/// How long a backend may take to say that it is there.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) struct Slot {
    pub(super) info: BackendInfo,
    pub(super) backend: Arc<dyn Backend>,
    env: Arc<dyn Environment>,
    counters: Arc<CounterSet>,
    /// Bounds the changing calls under way, so that one backend never takes all of the manager.
    permits: Semaphore,
    state: Mutex<Seen>,
    ready: watch::Sender<bool>,
}

struct Seen {
    state: BackendState,
    reason: Option<String>,
    report: Option<BackendReport>,
    away_since: Option<Timestamp>,
}

impl Slot {
    pub(super) fn new(
        backend: Arc<dyn Backend>,
        env: Arc<dyn Environment>,
        counters: Arc<CounterSet>,
        parallel: usize,
    ) -> Self {
        Self {
            info: backend.info(),
            backend,
            env,
            counters,
            permits: Semaphore::new(parallel),
            state: Mutex::new(Seen {
                state: BackendState::Unknown,
                reason: None,
                report: None,
                away_since: None,
            }),
            ready: watch::Sender::new(false),
        }
    }

    pub(super) fn name(&self) -> &BackendName {
        &self.info.name
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn view(&self) -> NodeBackend {
        let seen = self.seen();
        NodeBackend {
            name: self.info.name.clone(),
            state: seen.state,
            version: seen.report.as_ref().map(|r| r.version.clone()),
            reason: seen.reason.clone(),
        }
    }

    pub(super) fn capacity(&self) -> Capacity {
        self.seen()
            .report
            .as_ref()
            .map(|r| r.capacity)
            .unwrap_or_default()
    }

    pub(super) fn report(&self) -> Option<BackendReport> {
        self.seen().report.clone()
    }

    /// When it went away last.
    pub(super) fn away_since(&self) -> Option<Timestamp> {
        self.seen().away_since
    }

    pub(super) fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// Asks the backend whether it is there.
    pub(super) async fn probe(&self) {
        let result = self.call("probe", PROBE_TIMEOUT, self.backend.probe()).await;
        let mut seen = self.seen();
        let (state, reason) = match result {
            Ok(report) => {
                seen.report = Some(report);
                (BackendState::Ready, None)
            }
            Err(error) => (BackendState::Away, Some(error.message)),
        };
        if seen.state != state && state == BackendState::Away {
            seen.away_since = Some(self.env.now());
        }
        seen.state = state;
        seen.reason = reason;
        drop(seen);
        self.ready.send_replace(state == BackendState::Ready);
    }

    fn lost(&self, error: &BackendError) {
        let mut seen = self.seen();
        if seen.state != BackendState::Away {
            seen.away_since = Some(self.env.now());
        }
        seen.state = BackendState::Away;
        seen.reason = Some(error.message.clone());
        drop(seen);
        self.ready.send_replace(false);
    }

    /// Fails when the backend is away, asking it first when it was not asked yet.
    pub(super) async fn require_ready(&self) -> Result<(), Error> {
        if self.seen().state == BackendState::Unknown {
            self.probe().await;
        }
        if self.is_ready() {
            return Ok(());
        }
        Err(Error::BackendUnavailable {
            backend: self.info.name.clone(),
            reason: self
                .seen()
                .reason
                .clone()
                .unwrap_or_else(|| "it did not answer yet".to_owned()),
            retry_after: Duration::from_secs(5),
        })
    }

    /// Completes when the backend answers, or after `limit`.
    pub(super) async fn wait_ready(&self, limit: Duration) {
        let mut ready = self.ready.subscribe();
        tokio::select! {
            biased;
            _ = ready.wait_for(|ready| *ready) => {}
            () = self.env.sleep(limit) => {}
        }
    }

    /// Completes when the backend is away.
    pub(super) async fn wait_away(&self) {
        let mut ready = self.ready.subscribe();
        // The sender lives as long as the slot, so this waits for the value and nothing else.
        let _ = ready.wait_for(|ready| !*ready).await;
    }

    /// Makes a call that asks. Its future is dropped after `limit`.
    pub(super) async fn call<T>(
        &self,
        method: &'static str,
        limit: Duration,
        call: impl Future<Output = Result<T, BackendError>>,
    ) -> Result<T, BackendError> {
        let begun = self.env.now();
        let result = tokio::select! {
            biased;
            result = call => result,
            () = self.env.sleep(limit) => Err(BackendError::new(
                // A backend that does not say either that it is there is hung: that passes.
                if self.is_ready() { BackendErrorKind::Timeout } else { BackendErrorKind::Unavailable },
                format!("{method} on {}", self.info.name),
                format!("no answer within {} s", limit.as_secs()),
            )),
        };
        self.counters.backend_call(
            &self.info.name,
            method,
            result.is_ok(),
            self.env.now().since(begun),
        );
        if let Err(error) = &result
            && error.kind == BackendErrorKind::Unavailable
        {
            self.lost(error);
        }
        result
    }

    /// Makes a call that changes something: the same, with a bound on how many are under way.
    pub(super) async fn change<T>(
        &self,
        method: &'static str,
        limit: Duration,
        call: impl Future<Output = Result<T, BackendError>>,
    ) -> Result<T, BackendError> {
        let permit = self.permits.acquire().await;
        let result = self.call(method, limit, call).await;
        drop(permit);
        result
    }

    /// An error of a call that asks, in the manager's words.
    pub(super) fn error(&self, error: BackendError) -> Error {
        Error::from_backend(&self.info.name, error)
    }
}
