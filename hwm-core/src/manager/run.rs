//! The steps of each action, and their undoing.
//!
//! Every step is idempotent and keyed by the resource id, and its beginning is committed. An operation that
//! a crash interrupted is run again from its first step; one that was being undone goes on being undone.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Core;
use super::draft::{Draft, end};
use super::slot::Slot;
use crate::backend::{
    BackendError, BackendErrorKind, Call, Observed, ObservedState, ProgressSink, SnapshotReport,
    SnapshotSpec, StopOptions,
};
use crate::config::HealthCheck;
use crate::error::Error;
use crate::id::ResourceId;
use crate::lifecycle::{Action, Desired, Phase};
use crate::operation::{OperationError, OperationRecord, OperationStatus, Progress, Step};
use crate::resource::{Applied, Record};
use crate::snapshot::SnapshotState;
use crate::store::{CommitError, Release, StoreError};

/// How often an undoing that fails is tried again before the resource is reported stuck.
const UNDO_TRIES: u32 = 3;
/// The longest pause between two tries on a backend that is away.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The shortest pause between two health checks of what is coming up.
const FIRST_CHECK: Duration = Duration::from_millis(200);

/// Why an operation's steps stopped short.
pub(super) enum Fault {
    /// The operation cannot succeed.
    Failed { code: &'static str, message: String },
    /// The backend stayed away past the operation's deadline.
    Away { message: String },
    /// The store failed; what to do is as it was before.
    Store(StoreError),
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<CommitError> for Fault {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Store(error) => Self::Store(error),
            other => Self::Failed {
                code: "INTERNAL",
                message: other.to_string(),
            },
        }
    }
}

/// What the steps came to.
enum Outcome {
    /// It is up, or was and ended already.
    Up(Observed),
    Down,
    Gone,
    Updated,
    SnapshotTaken(SnapshotReport),
    SnapshotRestored {
        running: bool,
        seen: Option<Observed>,
    },
    SnapshotDeleted,
}

/// An operation being carried out.
struct Run<'a> {
    core: &'a Arc<Core>,
    slot: &'a Arc<Slot>,
    operation: OperationRecord,
}

impl Core {
    /// Carries out an operation to its end, or leaves it as it is when the manager stops.
    pub(super) async fn run(
        self: &Arc<Self>,
        operation: &OperationRecord,
        cancel: CancellationToken,
    ) -> Result<(), StoreError> {
        let Some(slot) = self.slot(&operation.backend) else {
            // Recovery never begins these; wait for a server that has the backend.
            self.stopping.cancelled().await;
            return Ok(());
        };
        let run = Run {
            core: self,
            slot,
            operation: operation.clone(),
        };
        let outcome = tokio::select! {
            biased;
            () = self.stopping.cancelled() => return Ok(()),
            outcome = run.carry_out(cancel) => outcome,
        };
        match outcome {
            Ok(()) => Ok(()),
            Err(Fault::Store(error)) => Err(error),
            Err(Fault::Failed { message, .. } | Fault::Away { message }) => {
                Err(StoreError::new("ending an operation", message))
            }
        }
    }
}

impl Run<'_> {
    async fn carry_out(&self, cancel: CancellationToken) -> Result<(), Fault> {
        let undoing = self.operation.progress.step == Step::Undo;
        if undoing || self.operation.cancel_requested {
            return self.undo_and_end(self.operation.error.clone()).await;
        }
        let outcome = tokio::select! {
            biased;
            () = cancel.cancelled() => return self.undo_and_end(None).await,
            outcome = self.perform() => outcome,
        };
        match outcome {
            Ok(outcome) => self.succeed(outcome).await,
            Err(Fault::Store(error)) => Err(Fault::Store(error)),
            Err(Fault::Failed { code, message }) => {
                self.undo_and_end(Some(OperationError {
                    code: code.to_owned(),
                    message,
                }))
                .await
            }
            Err(Fault::Away { message }) => {
                self.undo_and_end(Some(OperationError {
                    code: "BACKEND_UNAVAILABLE".to_owned(),
                    message,
                }))
                .await
            }
        }
    }

    async fn perform(&self) -> Result<Outcome, Fault> {
        match self.operation.action {
            Action::Create | Action::Start => Ok(Outcome::Up(self.bring_up().await?)),
            Action::Restart => {
                self.take_down().await?;
                Ok(Outcome::Up(self.bring_up().await?))
            }
            Action::Stop => {
                self.take_down().await?;
                Ok(Outcome::Down)
            }
            Action::Delete => {
                self.remove().await?;
                Ok(Outcome::Gone)
            }
            Action::Update => {
                self.update().await?;
                Ok(Outcome::Updated)
            }
            Action::SnapshotCreate => Ok(Outcome::SnapshotTaken(self.take_snapshot().await?)),
            Action::SnapshotRestore => self.restore_snapshot().await,
            Action::SnapshotDelete => {
                self.delete_snapshot().await?;
                Ok(Outcome::SnapshotDeleted)
            }
        }
    }

    // The steps.

    async fn bring_up(&self) -> Result<Observed, Fault> {
        let record = self.record().await?;
        if !record.allocation.gpus.is_empty() || !record.allocation.retired.is_empty() {
            self.enter(Step::PrepareDevices, "preparing GPUs").await?;
            self.prepare_devices(&record).await?;
        }
        let record = self.enter(Step::Create, "making the workload").await?;
        let workload = record.workload(self.operation.generation);
        let limit = self.core.settings.create_timeout;
        self.persist("create", limit, |call| {
            let workload = &workload;
            async move { self.slot.backend.create(&call, workload).await }
        })
        .await?;
        let record = self.enter(Step::Start, "starting it").await?;
        let limit = self.core.settings.change_timeout;
        let started = record.workload(self.operation.generation);
        self.persist("start", limit, |call| {
            let started = &started;
            async move { self.slot.backend.start(&call, started).await }
        })
        .await?;
        if let Some(check) = started.config.health_check() {
            self.keep_applied().await?;
            self.enter(Step::AwaitHealthy, "waiting until it is healthy")
                .await?;
            return self.await_healthy(&check).await;
        }
        self.see().await
    }

    async fn take_down(&self) -> Result<(), Fault> {
        self.enter(Step::Stop, "stopping it").await?;
        let arguments = &self.operation.arguments;
        let grace = arguments.grace_seconds.map(|s| Duration::from_secs(s.into()));
        let options = StopOptions {
            force: arguments.force,
            grace,
        };
        self.stop(options).await
    }

    async fn stop(&self, options: StopOptions) -> Result<(), Fault> {
        let grace = options.grace.unwrap_or(self.core.settings.stop_grace);
        let limit = self.core.settings.change_timeout + grace;
        let id = self.operation.resource;
        self.persist("stop", limit, |call| async move {
            self.slot.backend.stop(&call, id, options).await
        })
        .await
    }

    async fn remove(&self) -> Result<(), Fault> {
        self.enter(Step::Remove, "removing it").await?;
        self.remove_workload().await?;
        let record = self.record().await?;
        if !record.allocation.gpus.is_empty() || !record.allocation.retired.is_empty() {
            self.enter(Step::ReleaseDevices, "giving back GPUs").await?;
            self.release_devices(&record).await?;
        }
        Ok(())
    }

    async fn remove_workload(&self) -> Result<(), Fault> {
        let limit = self.core.settings.change_timeout;
        let id = self.operation.resource;
        self.persist("remove", limit, |call| async move {
            self.slot.backend.remove(&call, id).await
        })
        .await
    }

    async fn update(&self) -> Result<(), Fault> {
        let record = self.enter(Step::Update, "changing what runs").await?;
        let Some(live) = self.slot.backend.facets().live_update else {
            return Err(unsupported("changing what runs", self.slot));
        };
        let workload = record.workload(self.operation.generation);
        let limit = self.core.settings.change_timeout;
        self.persist("update", limit, |call| {
            let (live, workload) = (live.clone(), &workload);
            async move { live.update(&call, workload).await }
        })
        .await
    }

    async fn prepare_devices(&self, record: &Record) -> Result<(), Fault> {
        let Some(accelerators) = self.core.accelerators.clone() else {
            return Err(Fault::Failed {
                code: "UNSUPPORTED",
                message: "this server was started without GPUs".into(),
            });
        };
        let limit = self.core.settings.change_timeout;
        for placement in &record.allocation.retired {
            let accelerators = &accelerators;
            self.persist("release-device", limit, |call| async move {
                accelerators.release(&call, record.id, placement).await
            })
            .await?;
        }
        let mut grants = Vec::with_capacity(record.allocation.gpus.len());
        for placement in &record.allocation.gpus {
            let accelerators = &accelerators;
            let kind = record.config.resource_type();
            let grant = self
                .persist("prepare-device", limit, |call| async move {
                    accelerators.prepare(&call, record.id, placement, kind).await
                })
                .await?;
            grants.push(grant);
        }
        self.amend(|draft| {
            let allocation = &mut draft.record.allocation;
            allocation.grants.clone_from(&grants);
            let kept: Vec<_> = allocation.gpus.iter().flat_map(|p| p.keys()).collect();
            let retired = std::mem::take(&mut allocation.retired);
            let keys = retired
                .iter()
                .flat_map(|p| p.keys())
                .filter(|key| !kept.contains(key))
                .collect();
            draft.tx.release.push(Release {
                holder: draft.record.id,
                keys: Some(keys),
            });
        })
        .await?;
        Ok(())
    }

    async fn release_devices(&self, record: &Record) -> Result<(), Fault> {
        let Some(accelerators) = self.core.accelerators.clone() else {
            return Ok(());
        };
        let limit = self.core.settings.change_timeout;
        for placement in record.allocation.gpus.iter().chain(&record.allocation.retired) {
            let accelerators = &accelerators;
            self.persist("release-device", limit, |call| async move {
                accelerators.release(&call, record.id, placement).await
            })
            .await?;
        }
        Ok(())
    }

    async fn await_healthy(&self, check: &HealthCheck) -> Result<Observed, Fault> {
        let Some(health) = self.slot.backend.facets().health else {
            return Err(unsupported("health checks", self.slot));
        };
        let give_up = self.core.env.now() + check.deadline;
        let limit = self.core.settings.read_timeout;
        let mut pause = FIRST_CHECK.min(check.interval);
        loop {
            let seen = self.see().await?;
            if seen.state != ObservedState::Running {
                return Ok(seen);
            }
            let detail = match self
                .slot
                .call("health", limit, health.check(self.operation.resource, check))
                .await
            {
                Ok(report) if report.healthy => return Ok(seen),
                Ok(report) => report.detail,
                Err(error) => error.to_string(),
            };
            if self.core.env.now() >= give_up {
                return Err(Fault::Failed {
                    code: "TIMEOUT",
                    message: format!(
                        "{} did not answer 2xx within {} s: {detail}",
                        check.path,
                        check.deadline.as_secs()
                    ),
                });
            }
            self.core.env.sleep(pause).await;
            pause = (pause * 2).min(check.interval);
        }
    }

    async fn take_snapshot(&self) -> Result<SnapshotReport, Fault> {
        let record = self.enter(Step::Snapshot, "taking the snapshot").await?;
        let (facet, id) = self.snapshot_facet()?;
        let snapshots = self.core.store.snapshots(record.id).await?;
        let Some(snapshot) = snapshots.into_iter().find(|s| s.id == id) else {
            return Err(Fault::Failed {
                code: "NOT_FOUND",
                message: format!("snapshot {id} not found"),
            });
        };
        let spec = SnapshotSpec {
            id,
            name: snapshot.name,
            memory: snapshot.memory,
        };
        let workload = record.workload(self.operation.generation);
        self.persist("snapshot-create", self.core.settings.create_timeout, |call| {
            let (facet, workload, spec) = (facet.clone(), &workload, &spec);
            async move { facet.create(&call, workload, spec).await }
        })
        .await
    }

    async fn restore_snapshot(&self) -> Result<Outcome, Fault> {
        let record = self.enter(Step::Snapshot, "going back to the snapshot").await?;
        let (facet, id) = self.snapshot_facet()?;
        let workload = record.workload(self.operation.generation);
        let running = self
            .persist("snapshot-restore", self.core.settings.create_timeout, |call| {
                let (facet, workload) = (facet.clone(), &workload);
                async move { facet.restore(&call, workload, id).await }
            })
            .await?;
        let seen = self.observed().await?;
        Ok(Outcome::SnapshotRestored { running, seen })
    }

    async fn delete_snapshot(&self) -> Result<(), Fault> {
        self.enter(Step::Snapshot, "removing the snapshot").await?;
        let (facet, id) = self.snapshot_facet()?;
        let resource = self.operation.resource;
        self.persist("snapshot-delete", self.core.settings.create_timeout, |call| {
            let facet = facet.clone();
            async move { facet.delete(&call, resource, id).await }
        })
        .await
    }

    fn snapshot_facet(&self) -> Result<(Arc<dyn crate::backend::Snapshots>, crate::id::SnapshotId), Fault> {
        match (
            self.slot.backend.facets().snapshots,
            self.operation.arguments.snapshot,
        ) {
            (Some(facet), Some(id)) => Ok((facet, id)),
            _ => Err(unsupported("snapshots", self.slot)),
        }
    }

    // How it ends.

    async fn succeed(&self, outcome: Outcome) -> Result<(), Fault> {
        let now = self.core.env.now();
        let id = self.operation.resource;
        let record = self
            .amend(|draft| {
                self.mark_ended(draft, OperationStatus::Succeeded, None);
                let record = &mut draft.record;
                record.error_message = None;
                let phase = match &outcome {
                    Outcome::Up(seen) => {
                        record.applied = Some(applied(record, self.operation.generation));
                        record.runtime = Some(record.runtime_of(seen));
                        record.missed_health_checks = 0;
                        record.last_health_check = record
                            .config
                            .health_check()
                            .map(|_| now)
                            .or(record.last_health_check);
                        let obsolete = std::mem::take(&mut record.allocation.obsolete);
                        draft.tx.release.push(Release {
                            holder: id,
                            keys: Some(obsolete),
                        });
                        match &seen.state {
                            ObservedState::Running => Phase::Running,
                            ObservedState::Created => Phase::Stopped,
                            state if state.ended_clean() => Phase::Stopped,
                            ObservedState::Ended { exit_code, cause } => {
                                record.error_message = Some(ended_message(*exit_code, cause.as_deref()));
                                Phase::Error
                            }
                        }
                    }
                    Outcome::Down => {
                        if let Some(runtime) = &mut record.runtime {
                            runtime.stopped_at = Some(now);
                        }
                        Phase::Stopped
                    }
                    Outcome::Gone => {
                        record.deleted_at = record.deleted_at.or(Some(now));
                        record.runtime = None;
                        record.config.forget_secrets();
                        record.allocation = Default::default();
                        draft.tx.release.push(Release {
                            holder: id,
                            keys: None,
                        });
                        let event = super::draft::about(
                            record,
                            crate::event::EventType::ResourceDeleted,
                            now,
                            serde_json::json!({}),
                        );
                        draft.tx.events.push(event);
                        Phase::Deleted
                    }
                    Outcome::Updated => {
                        record.applied = Some(applied(record, self.operation.generation));
                        if let Some(runtime) = &mut record.runtime {
                            runtime.allocated_cpu = record.config.cpu().unwrap_or_default();
                            runtime.allocated_ram = record.config.ram().unwrap_or_default();
                        }
                        record.phase
                    }
                    Outcome::SnapshotTaken(_) | Outcome::SnapshotDeleted => record.phase,
                    Outcome::SnapshotRestored { running, seen } => {
                        if let Some(seen) = seen {
                            record.runtime = Some(record.runtime_of(seen));
                        }
                        record.desired = if *running {
                            Desired::Running
                        } else {
                            Desired::Stopped
                        };
                        if *running { Phase::Running } else { Phase::Stopped }
                    }
                };
                if record.phase != Phase::Deleting || phase == Phase::Deleted {
                    record.phase = phase;
                }
                if record.phase == Phase::Running {
                    self.core.exact_shares(&mut draft.tx, record);
                } else if !record.phase.takes_capacity() {
                    self.core.release_running(&mut draft.tx, id);
                }
            })
            .await?;
        self.end_snapshot(&outcome).await?;
        if let Some(record) = record {
            self.core.follow_up(&record);
        }
        Ok(())
    }

    async fn end_snapshot(&self, outcome: &Outcome) -> Result<(), Fault> {
        let (report, forget) = match outcome {
            Outcome::SnapshotTaken(report) => (Some(report), false),
            Outcome::SnapshotDeleted => (None, true),
            Outcome::Up(_)
            | Outcome::Down
            | Outcome::Gone
            | Outcome::Updated
            | Outcome::SnapshotRestored { .. } => return Ok(()),
        };
        let Some(id) = self.operation.arguments.snapshot else {
            return Ok(());
        };
        let mut transaction = crate::store::Transaction::default();
        if forget {
            transaction.forget_snapshots.push(id);
        }
        if let Some(report) = report {
            let all = self.core.store.snapshots(self.operation.resource).await?;
            transaction
                .snapshots
                .extend(all.into_iter().filter(|s| s.id == id).map(|mut snapshot| {
                    snapshot.state = SnapshotState::Ready;
                    snapshot.disk_size = report.disk_size;
                    snapshot.consistency = Some(report.consistency);
                    snapshot
                }));
        }
        Ok(self.core.commit(transaction).await?)
    }

    /// Takes back what was half-made, and ends the operation as failed, or as cancelled without an error.
    async fn undo_and_end(&self, error: Option<OperationError>) -> Result<(), Fault> {
        let mut error = error;
        let at = self.step_reached().await?;
        if at != Step::Accepted {
            let why = error.clone();
            self.amend(|draft| {
                if let Some(operation) = draft.operation_mut(self.operation.id) {
                    operation.error.clone_from(&why);
                    operation.cancel_requested |= why.is_none();
                    operation.progress.step = Step::Undo;
                    operation.progress.message = "taking back what was half-made".into();
                }
            })
            .await?;
            if let Err(stuck) = self.undo(at).await {
                let message = match stuck {
                    Fault::Failed { message, .. } | Fault::Away { message } => message,
                    Fault::Store(error) => return Err(Fault::Store(error)),
                };
                let error = error.get_or_insert_with(|| OperationError {
                    code: "BACKEND_FAILED".into(),
                    message: "it was cancelled".into(),
                });
                error.message = format!(
                    "{}; taking back what was half-made failed too: {message}",
                    error.message
                );
            }
        }
        let status = if error.is_some() {
            OperationStatus::Failed
        } else {
            OperationStatus::Cancelled
        };
        self.amend(|draft| {
            self.mark_ended(draft, status, error.clone());
            self.core
                .settle_unfinished(draft, &self.operation, error.as_ref());
        })
        .await?;
        Ok(())
    }

    /// The step in which the operation was before it began to be undone.
    async fn step_reached(&self) -> Result<Step, Fault> {
        let stored = self.core.store.operation(self.operation.id).await?;
        Ok(stored.map_or(Step::Accepted, |o| o.progress.step))
    }

    async fn undo(&self, at: Step) -> Result<(), Fault> {
        let record = self.record().await?;
        match self.operation.action {
            Action::Create | Action::Start | Action::Restart => {
                let cancelled_create = self.operation.action == Action::Create && self.is_cancelled().await?;
                let never_ran = record.applied.is_none()
                    && matches!(
                        at,
                        Step::Accepted | Step::PrepareDevices | Step::Create | Step::Undo
                    );
                if cancelled_create || never_ran {
                    self.undo_step(|| self.remove_workload()).await?;
                    self.undo_step(|| self.release_devices(&record)).await
                } else {
                    self.undo_step(|| {
                        self.stop(StopOptions {
                            force: true,
                            grace: None,
                        })
                    })
                    .await
                }
            }
            Action::SnapshotCreate => {
                let (facet, id) = self.snapshot_facet()?;
                let resource = self.operation.resource;
                let limit = self.core.settings.create_timeout;
                self.undo_step(|| {
                    self.persist("snapshot-delete", limit, |call| {
                        let facet = facet.clone();
                        async move { facet.delete(&call, resource, id).await }
                    })
                })
                .await
            }
            // What these began is only ever completed, by asking again.
            Action::Stop
            | Action::Update
            | Action::Delete
            | Action::SnapshotRestore
            | Action::SnapshotDelete => Ok(()),
        }
    }

    async fn is_cancelled(&self) -> Result<bool, Fault> {
        let stored = self.core.store.operation(self.operation.id).await?;
        Ok(stored.is_some_and(|o| o.cancel_requested))
    }

    async fn undo_step<F: Future<Output = Result<(), Fault>>>(
        &self,
        step: impl Fn() -> F,
    ) -> Result<(), Fault> {
        let mut tries = 0;
        loop {
            match step().await {
                Ok(()) => return Ok(()),
                Err(Fault::Store(error)) => return Err(Fault::Store(error)),
                Err(Fault::Away { .. }) => {
                    self.slot.wait_ready(LONGEST_PAUSE).await;
                    self.core.env.sleep(FIRST_CHECK).await;
                }
                Err(fault) => {
                    tries += 1;
                    if tries >= UNDO_TRIES {
                        return Err(fault);
                    }
                    self.core.env.sleep(FIRST_CHECK * tries).await;
                }
            }
        }
    }

    // What all of these use.

    async fn record(&self) -> Result<Record, Fault> {
        let id = self.operation.resource;
        self.core.store.record(id).await?.ok_or_else(|| Fault::Failed {
            code: "NOT_FOUND",
            message: format!("resource {id} not found"),
        })
    }

    /// Commits that a step begins, and answers the record as it then is.
    async fn enter(&self, step: Step, message: &str) -> Result<Record, Fault> {
        self.core.progress().remove(&self.operation.id);
        let now = self.core.env.now();
        let action = self.operation.action;
        let record = self
            .amend(|draft| {
                if let Some(operation) = draft.operation_mut(self.operation.id) {
                    operation.status = OperationStatus::Running;
                    operation.started_at = operation.started_at.or(Some(now));
                    operation.progress = Progress {
                        step,
                        message: message.to_owned(),
                        percent: None,
                    };
                }
                if draft.record.phase != Phase::Deleting {
                    draft.record.phase = action.phase_during(draft.record.phase);
                }
            })
            .await?;
        match record {
            Some(record) => Ok(record),
            None => self.record().await,
        }
    }

    async fn keep_applied(&self) -> Result<(), Fault> {
        let generation = self.operation.generation;
        self.amend(|draft| draft.record.applied = Some(applied(&draft.record, generation)))
            .await?;
        Ok(())
    }

    async fn amend(&self, mut change: impl FnMut(&mut Draft) + Send) -> Result<Option<Record>, Fault> {
        let amended = self
            .core
            .amend::<_, Fault>(self.operation.resource, |draft| {
                change(draft);
                Ok(Some(()))
            })
            .await?;
        Ok(amended.map(|(_, record)| record))
    }

    fn mark_ended(&self, draft: &mut Draft, status: OperationStatus, error: Option<OperationError>) {
        let now = self.core.env.now();
        if let Some(operation) = draft.operation_mut(self.operation.id) {
            end(operation, status, now);
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
    async fn observed(&self) -> Result<Option<Observed>, Fault> {
        let id = self.operation.resource;
        let limit = self.core.settings.read_timeout;
        let seen = self
            .persist("inspect", limit, |_| async move {
                self.slot.backend.inspect(&[id]).await
            })
            .await?;
        Ok(seen.into_iter().find(|o| o.id == id))
    }

    async fn see(&self) -> Result<Observed, Fault> {
        self.observed().await?.ok_or_else(|| Fault::Failed {
            code: "BACKEND_FAILED",
            message: format!(
                "{} has nothing of it although it was made; someone removed it",
                self.slot.name()
            ),
        })
    }

    /// Makes a changing call, again while the backend is away, until the operation's deadline.
    async fn persist<T, F>(
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

    fn progress_sink(&self) -> ProgressSink {
        let (core, id) = (Arc::downgrade(self.core), self.operation.id);
        ProgressSink::new(move |message, percent| {
            if let Some(core) = core.upgrade() {
                core.progress().insert(id, (message, percent));
            }
        })
    }
}

impl Core {
    /// Gives back what only a resource that is up needs.
    pub(super) fn release_running(&self, tx: &mut crate::store::Transaction, id: ResourceId) {
        let keys = vec![crate::ledger::ClaimKey::Cpu, crate::ledger::ClaimKey::Ram];
        tx.release.push(Release {
            holder: id,
            keys: Some(keys),
        });
    }

    /// Sets the shares of pools of a resource that is up to what its config needs now.
    fn exact_shares(&self, tx: &mut crate::store::Transaction, record: &Record) {
        let demand = crate::ledger::Demand::of(&record.config, str::to_owned);
        let shares = demand.lasting.iter().chain(&demand.running);
        tx.claim.extend(shares.map(|(pool, amount)| crate::ledger::Claim {
            node: self.node.clone(),
            key: pool.key(),
            holder: record.id,
            amount: *amount,
        }));
    }

    /// What becomes of a resource whose operation failed or was cancelled.
    fn settle_unfinished(
        &self,
        draft: &mut Draft,
        operation: &OperationRecord,
        error: Option<&OperationError>,
    ) {
        let record = &mut draft.record;
        let id = record.id;
        let phase = match (operation.action, error) {
            (Action::Create, None) => Phase::Queued,
            (Action::Start | Action::Restart, None) => Phase::Stopped,
            (Action::Create | Action::Start | Action::Restart | Action::Stop | Action::Delete, _) => {
                Phase::Failed
            }
            (
                Action::Update | Action::SnapshotCreate | Action::SnapshotRestore | Action::SnapshotDelete,
                _,
            ) => record.phase,
        };
        if record.phase != Phase::Deleting || operation.action == Action::Delete {
            record.phase = phase;
        }
        if let (Phase::Queued | Phase::Stopped, Desired::Running) = (record.phase, record.desired) {
            record.desired = Desired::Stopped;
        }
        if let (Some(error), Phase::Failed) = (error, record.phase) {
            record.error_message = Some(error.message.clone());
        }
        // A stop or a removal that failed may have left it running: it keeps what it holds.
        let may_run = matches!(operation.action, Action::Stop | Action::Delete);
        if !record.phase.takes_capacity() && !may_run {
            self.release_running(&mut draft.tx, id);
        }
    }
}

fn applied(record: &Record, generation: u64) -> Applied {
    let mut config = record.config.clone();
    config.forget_secrets();
    Applied { config, generation }
}

/// For people: how a workload ended.
pub(super) fn ended_message(exit_code: Option<i64>, cause: Option<&str>) -> String {
    match (exit_code, cause) {
        (Some(code), Some(cause)) => format!("it ended with exit code {code}: {cause}"),
        (Some(code), None) => format!("it ended with exit code {code}"),
        (None, Some(cause)) => format!("it ended: {cause}"),
        (None, None) => "it ended".to_owned(),
    }
}

fn failed(error: &BackendError) -> Fault {
    let code = match error.kind {
        BackendErrorKind::Unavailable => {
            return Fault::Away {
                message: error.to_string(),
            };
        }
        BackendErrorKind::Unsupported => "UNSUPPORTED",
        BackendErrorKind::Timeout => "TIMEOUT",
        BackendErrorKind::NotFound
        | BackendErrorKind::Invalid
        | BackendErrorKind::Conflict
        | BackendErrorKind::Denied
        | BackendErrorKind::NoSpace
        | BackendErrorKind::Superseded
        | BackendErrorKind::Failed => "BACKEND_FAILED",
    };
    Fault::Failed {
        code,
        message: error.to_string(),
    }
}

fn unsupported(what: &str, slot: &Slot) -> Fault {
    let error = Error::Unsupported {
        what: what.to_owned(),
        reason: format!("backend {} cannot do it", slot.name()),
    };
    Fault::Failed {
        code: error.code(),
        message: error.to_string(),
    }
}
