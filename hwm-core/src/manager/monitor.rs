//! What runs is looked after: health checks, and restarts of what ended by itself.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Core;
use super::submit::Refusal;
use crate::config::{HealthCheck, RestartPolicy};
use crate::id::ResourceId;
use crate::lifecycle::{Action, Desired, Phase};
use crate::operation::{Arguments, OperationStatus};
use crate::resource::Record;
use crate::store::StoreError;

/// What ended so shortly before its daemon went away, ended because of that.
pub(super) const FALLEN_WITH_DAEMON: Duration = Duration::from_secs(60);
/// Checks missed in a row that make a resource `error`.
const MISSES: u32 = 3;
/// The longest pause before a restart.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(60);
/// How long it must have run for the next restart to come soon again.
const RAN_LONG: Duration = Duration::from_secs(600);

impl Core {
    /// Begins what a resource needs in the phase that it is now in, and ends what it no longer needs.
    pub(super) fn follow_up(self: &Arc<Self>, record: &Record) {
        let id = record.id;
        match record.phase {
            Phase::Running => match record.config.health_check() {
                Some(check) => self.monitor(id, move |core, stop| async move {
                    core.watch_health(id, check, stop).await
                }),
                None => self.end_monitor(id),
            },
            Phase::Error | Phase::Stopped if record.desired == Desired::Running && restarts(record) => {
                let pause = back_off(record.restarts);
                let restarts = record.restarts;
                self.monitor(id, move |core, stop| async move {
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => {}
                        () = core.env.sleep(pause) => core.restart(id, restarts).await,
                    }
                });
            }
            Phase::Stopped if self.gpus_due_in(record).is_some() => {
                let due = self.gpus_due_in(record).unwrap_or_default();
                self.monitor(id, move |core, stop| async move {
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => {}
                        () = core.env.sleep(due) => core.give_up_gpus(id).await,
                    }
                });
            }
            Phase::Queued
            | Phase::Deploying
            | Phase::Restarting
            | Phase::Stopping
            | Phase::Stopped
            | Phase::Failed
            | Phase::Error
            | Phase::Deleting
            | Phase::Deleted => self.end_monitor(id),
        }
    }

    /// Runs one task for a resource, in place of the one that may run.
    fn monitor<F>(self: &Arc<Self>, id: ResourceId, task: impl FnOnce(Arc<Self>, CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = self.stopping.child_token();
        if let Some(before) = self.monitors().insert(id, stop.clone()) {
            before.cancel();
        }
        let work = task(self.clone(), stop.clone());
        let core = self.clone();
        self.spawn(async move {
            work.await;
            // Whoever replaced this task has cancelled its token.
            if !stop.is_cancelled() {
                core.monitors().remove(&id);
            }
        });
    }

    fn end_monitor(&self, id: ResourceId) {
        if let Some(stop) = self.monitors().remove(&id) {
            stop.cancel();
        }
    }

    async fn watch_health(self: Arc<Self>, id: ResourceId, check: HealthCheck, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.env.sleep(check.interval) => {}
            }
            match self.check_health(id, &check).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => tracing::error!(resource = %id, %error, "a health check cannot be recorded"),
            }
        }
    }

    /// Makes one check and records it. Answers whether to go on.
    async fn check_health(self: &Arc<Self>, id: ResourceId, check: &HealthCheck) -> Result<bool, StoreError> {
        let Some(record) = self.store.record(id).await? else {
            return Ok(false);
        };
        let Some(slot) = self.slot(&record.backend) else {
            return Ok(false);
        };
        if !matches!(record.phase, Phase::Running | Phase::Error)
            || record.config.health_check().as_ref() != Some(check)
        {
            return Ok(false);
        }
        let Some(facet) = slot.backend.facets().health else {
            return Ok(false);
        };
        let limit = self.settings.read_timeout;
        let miss = match slot.call("health", limit, facet.check(id, check)).await {
            Ok(report) if report.healthy => None,
            Ok(report) => Some(report.detail),
            // A backend that is away says nothing of the workload.
            Err(error) if error.is_retryable() => return Ok(true),
            Err(error) => Some(error.to_string()),
        };
        let amended = self
            .amend::<_, Refusal>(id, |draft| {
                let record = &mut draft.record;
                if !draft.operations.is_empty() || !matches!(record.phase, Phase::Running | Phase::Error) {
                    return Ok(None);
                }
                record.last_health_check = Some(self.env.now());
                draft.quiet = true;
                match &miss {
                    None => {
                        record.missed_health_checks = 0;
                        if record.phase == Phase::Error {
                            record.phase = Phase::Running;
                            record.error_message = None;
                            draft.quiet = false;
                        }
                    }
                    Some(detail) => {
                        record.missed_health_checks = record.missed_health_checks.saturating_add(1);
                        if record.missed_health_checks == MISSES {
                            record.phase = Phase::Error;
                            record.error_message = Some(format!(
                                "{} health checks in a row were missed: {detail}",
                                record.missed_health_checks
                            ));
                            draft.quiet = false;
                        }
                    }
                }
                Ok(Some(()))
            })
            .await;
        match amended {
            Ok(Some(((), record))) if record.phase == Phase::Error && restarts(&record) => {
                self.follow_up(&record);
                Ok(false)
            }
            Ok(_) => Ok(true),
            Err(Refusal::Error(crate::Error::Store(error))) => Err(error),
            Err(Refusal::Error(error)) => Err(StoreError::new("recording a health check", error.to_string())),
            Err(Refusal::Commit(error)) => {
                Err(StoreError::new("recording a health check", error.to_string()))
            }
        }
    }

    /// Restarts what ended by itself, unless something else happened to it meanwhile.
    async fn restart(self: &Arc<Self>, id: ResourceId, restarts_then: u32) {
        let submitted = self
            .submit_own(id, Action::Start, |record| {
                matches!(record.phase, Phase::Error | Phase::Stopped)
                    && record.desired == Desired::Running
                    && record.restarts == restarts_then
            })
            .await;
        if let Err(error) = submitted {
            tracing::error!(resource = %id, %error, "it cannot be restarted");
        }
    }

    /// Queues an operation of the manager's own, if `still` holds. What it needs and cannot have makes the
    /// resource `error`.
    pub(super) async fn submit_own(
        self: &Arc<Self>,
        id: ResourceId,
        action: Action,
        still: impl Fn(&Record) -> bool + Send + Sync,
    ) -> Result<(), StoreError> {
        let amended = self
            .amend::<_, Refusal>(id, |draft| {
                if !draft.operations.is_empty() || !still(&draft.record) {
                    return Ok(None);
                }
                let restarts = draft.record.restarts + 1;
                draft.record.generation += 1;
                draft.record.desired = action.desires().unwrap_or(draft.record.desired);
                let operation = self.new_operation(&draft.record, action, Arguments::default(), "hwm");
                draft.operations.push(operation);
                if action == Action::Start {
                    self.claim_running(&mut draft.tx, &draft.record);
                    draft.record.restarts = restarts;
                }
                Ok(Some(()))
            })
            .await;
        match amended {
            Ok(done) => {
                if done.is_some() {
                    self.kick(id);
                }
                Ok(())
            }
            Err(Refusal::Commit(crate::store::CommitError::Store(error))) => Err(error),
            Err(Refusal::Error(error)) => Err(StoreError::new("queueing a repair", error.to_string())),
            Err(Refusal::Commit(refused)) => {
                let error = self
                    .explain(refused, &crate::access::Principal::admin("hwm"))
                    .await;
                self.becomes(
                    id,
                    Phase::Error,
                    Some(format!("it should run and cannot: {error}")),
                    None,
                )
                .await
            }
        }
    }

    /// Records that a resource on which nothing runs went into another phase by itself.
    pub(super) async fn becomes(
        self: &Arc<Self>,
        id: ResourceId,
        phase: Phase,
        message: Option<String>,
        seen_at: Option<u64>,
    ) -> Result<(), StoreError> {
        let now = self.env.now();
        let mut outdated = false;
        let amended = self
            .amend::<_, StoreOnly>(id, |draft| {
                outdated = seen_at.is_some_and(|revision| revision != draft.record.revision);
                if outdated {
                    return Ok(None);
                }
                if draft
                    .operations
                    .iter()
                    .any(|o| o.status != OperationStatus::Pending)
                {
                    return Ok(None);
                }
                let record = &mut draft.record;
                if record.phase == phase && record.error_message == message {
                    return Ok(None);
                }
                let ran = record
                    .runtime
                    .as_ref()
                    .and_then(|r| r.started_at)
                    .map(|at| now.since(at));
                if ran.is_some_and(|ran| ran >= RAN_LONG) {
                    record.restarts = 0;
                }
                record.phase = phase;
                record.error_message.clone_from(&message);
                if let Some(runtime) = record.runtime.as_mut().filter(|_| phase != Phase::Running) {
                    runtime.stopped_at = Some(now);
                }
                if phase == Phase::Stopped && !restarts(record) {
                    record.desired = Desired::Stopped;
                }
                if phase == Phase::Running {
                    // It came up without being asked to: what it uses is counted, fits or not.
                    self.exact_shares(&mut draft.tx, &draft.record);
                }
                self.release_running(draft);
                Ok(Some(()))
            })
            .await
            .map_err(|StoreOnly(error)| error)?;
        if outdated {
            // What was seen is of another moment than what is recorded.
            self.look_again(id);
        }
        if let Some(((), record)) = amended {
            if matches!(phase, Phase::Error | Phase::Stopped) {
                let mut fallen = self.fallen();
                fallen.retain(|_, (at, _)| now.since(*at) < FALLEN_WITH_DAEMON);
                fallen.insert(id, (now, record.revision));
            }
            self.follow_up(&record);
        }
        Ok(())
    }
}

/// Any failure to commit, as a failure of the store.
pub(super) struct StoreOnly(pub(super) StoreError);

impl From<StoreError> for StoreOnly {
    fn from(error: StoreError) -> Self {
        Self(error)
    }
}

impl From<crate::store::CommitError> for StoreOnly {
    fn from(error: crate::store::CommitError) -> Self {
        match error {
            crate::store::CommitError::Store(error) => Self(error),
            other => Self(StoreError::new("recording what was seen", other.to_string())),
        }
    }
}

/// Whether its policy starts it again, given how it ended.
pub(super) fn restarts(record: &Record) -> bool {
    match record.config.restart_policy() {
        RestartPolicy::No => false,
        RestartPolicy::OnFailure => record.phase == Phase::Error,
        RestartPolicy::Always => true,
    }
}

/// 1, 2, 4 … 60 seconds.
fn back_off(restarts: u32) -> Duration {
    Duration::from_secs(1 << restarts.min(6)).min(LONGEST_BACK_OFF)
}
