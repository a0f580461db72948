//! Counts what the manager does, for metrics.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::api::Counters;
use crate::id::BackendName;
use crate::lifecycle::Action;
use crate::operation::OperationStatus;

#[derive(Default)]
pub(super) struct CounterSet(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    operations: BTreeMap<(Action, &'static str), (OperationStatus, u64)>,
    calls: BTreeMap<(BackendName, &'static str, bool), (u64, u64)>,
    commits: u64,
    running: u64,
}

impl CounterSet {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn commit(&self) {
        self.inner().commits += 1;
    }

    pub(super) fn backend_call(&self, backend: &BackendName, method: &'static str, ok: bool, took: Duration) {
        let mut inner = self.inner();
        let (count, micros) = inner.calls.entry((backend.clone(), method, ok)).or_default();
        *count += 1;
        *micros += u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    }

    pub(super) fn operation_began(&self) {
        self.inner().running += 1;
    }

    pub(super) fn operation_left(&self) {
        let mut inner = self.inner();
        inner.running = inner.running.saturating_sub(1);
    }

    pub(super) fn operation_ended(&self, action: Action, status: OperationStatus) {
        let word = match status {
            OperationStatus::Pending => "pending",
            OperationStatus::Running => "running",
            OperationStatus::Succeeded => "succeeded",
            OperationStatus::Failed => "failed",
            OperationStatus::Cancelled => "cancelled",
        };
        self.inner()
            .operations
            .entry((action, word))
            .or_insert((status, 0))
            .1 += 1;
    }

    pub(super) fn read(&self) -> Counters {
        let inner = self.inner();
        Counters {
            operations: inner
                .operations
                .iter()
                .map(|((action, _), (status, n))| ((*action, *status), *n))
                .collect(),
            backend_calls: inner
                .calls
                .iter()
                .map(|((backend, method, ok), (n, micros))| {
                    ((backend.to_string(), *method, *ok), *n, *micros)
                })
                .collect(),
            store_commits: inner.commits,
            running: inner.running,
        }
    }
}
