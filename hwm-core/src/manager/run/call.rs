//! What all steps use: calls that outlast an absent backend, and commits of how far the operation is.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use super::{FIRST_CHECK, Fault, LONGEST_PAUSE, Run};
use crate::backend::{BackendError, Call, Observed, ProgressSink, Workload};
use crate::error::Error;
use crate::lifecycle::Phase;
use crate::manager::draft::{self, Draft};
use crate::manager::slot::Slot;
use crate::operation::{OperationError, OperationStatus, Progress, Step};
use crate::resource::{Applied, Record};

impl Run<'_> {
    pub(super) async fn record(&self) -> Result<Record, Fault> {
        let id = self.operation.resource;
        self.core.store.record(id).await?.ok_or_else(|| Fault::Failed {
            code: "NOT_FOUND",
            message: format!("resource {id} not found"),
        })
    }

    /// Commits that a step begins, and answers the record as it then is; fails when the operation was ended
    /// before it began.
    pub(super) async fn enter(&self, step: Step, message: &str) -> Result<Record, Fault> {
        self.core.progress().remove(&self.operation.id);
        let now = self.core.env.now();
        let action = self.operation.action;
        let entered = self
            .core
            .amend::<_, Fault>(self.operation.resource, |draft| {
                let Some(operation) = draft.operation_mut(self.operation.id) else {
                    return Err(Fault::Overtaken);
                };
                operation.status = OperationStatus::Running;
                operation.started_at = operation.started_at.or(Some(now));
                operation.progress = Progress {
                    step,
                    message: message.to_owned(),
                    percent: None,
                };
                if draft.record.phase != Phase::Deleting {
                    draft.record.phase = action.phase_during(draft.record.phase);
                }
                Ok(Some(()))
            })
            .await?;
        match entered {
            Some(((), record)) => Ok(record),
            None => self.record().await,
        }
    }

    pub(super) async fn keep_applied(&self, applied: &Applied) -> Result<(), Fault> {
        self.amend(|draft| draft.record.applied = Some(applied.clone()))
            .await?;
        Ok(())
    }

    pub(super) async fn amend(
        &self,
        mut change: impl FnMut(&mut Draft) + Send,
    ) -> Result<Option<Record>, Fault> {
        let amended = self
            .core
            .amend::<_, Fault>(self.operation.resource, |draft| {
                change(draft);
                Ok(Some(()))
            })
            .await?;
        Ok(amended.map(|(_, record)| record))
    }

    pub(super) fn mark_ended(
        &self,
        draft: &mut Draft,
        status: OperationStatus,
        error: Option<OperationError>,
    ) {
        let now = self.core.env.now();
        if let Some(operation) = draft.operation_mut(self.operation.id) {
            draft::end(operation, status, now);
            operation.started_at = operation.started_at.or(Some(now));
            operation.progress.percent = None;
            operation.progress.message = match &error {
                Some(error) => error.message.clone(),
                None if status == OperationStatus::Succeeded => "done".to_owned(),
                None => "cancelled".to_owned(),
            };
            if status == OperationStatus::Succeeded {
                operation.progress.step = Step::Done;
            }
            operation.error = error;
        }
    }

    /// What the backend has of the workload; none when it has nothing.
    pub(super) async fn observed(&self) -> Result<Option<Observed>, Fault> {
        let id = self.operation.resource;
        let limit = self.core.settings.read_timeout;
        let seen = self
            .persist("inspect", limit, |_| async move {
                self.slot.backend.inspect(&[id]).await
            })
            .await?;
        Ok(seen.into_iter().find(|o| o.id == id))
    }

    pub(super) async fn see(&self) -> Result<Observed, Fault> {
        self.observed().await?.ok_or_else(|| Fault::Failed {
            code: "BACKEND_FAILED",
            message: format!(
                "{} has nothing of it although it was made; someone removed it",
                self.slot.name()
            ),
        })
    }

    /// Makes a changing call, again while the backend is away, until the operation's deadline.
    pub(super) async fn persist<T, F>(
        &self,
        method: &'static str,
        limit: Duration,
        call: impl Fn(Call) -> F,
    ) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, BackendError>>,
    {
        let mut pause = FIRST_CHECK;
        loop {
            let arguments = Call {
                operation: Some(self.operation.id),
                generation: self.operation.generation,
                timeout: limit,
                progress: self.progress_sink(),
            };
            let error = match self.slot.change(method, limit, call(arguments)).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if !error.is_retryable() || self.core.env.now() >= self.operation.deadline {
                return Err(failed(&error));
            }
            self.progress_sink().report(
                format!("waiting for {}: {}", self.slot.name(), error.message),
                None,
            );
            self.core.env.sleep(pause).await;
            self.slot.wait_ready(LONGEST_PAUSE).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    pub(super) fn progress_sink(&self) -> ProgressSink {
        let (core, id) = (Arc::downgrade(self.core), self.operation.id);
        ProgressSink::new(move |message, percent| {
            if let Some(core) = core.upgrade() {
                core.progress().insert(id, (message, percent));
            }
        })
    }
}

pub(super) fn applied(workload: &Workload) -> Applied {
    let mut config = workload.config.clone();
    config.forget_secrets();
    Applied {
        config,
        generation: workload.generation,
    }
}

fn failed(error: &BackendError) -> Fault {
    let message = error.to_string();
    if error.is_retryable() {
        return Fault::Away { message };
    }
    Fault::Failed {
        code: error.kind.code(),
        message,
    }
}

pub(super) fn unsupported(what: &str, slot: &Slot) -> Fault {
    let error = Error::Unsupported {
        what: what.to_owned(),
        reason: format!("backend {} cannot do it", slot.name()),
    };
    Fault::Failed {
        code: error.code(),
        message: error.to_string(),
    }
}
