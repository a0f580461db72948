//! How an operation ends: succeeded, or undone in reverse and failed or cancelled.

use std::future::Future;

use super::{FIRST_CHECK, Fault, LONGEST_PAUSE, Outcome, Run, UNDO_TRIES, ended_message};
use crate::backend::{ObservedState, StopOptions};
use crate::event::EventType;
use crate::id::SnapshotId;
use crate::lifecycle::{Action, Desired, Phase};
use crate::manager::Core;
use crate::manager::draft::{self, Draft};
use crate::operation::{OperationError, OperationRecord, OperationStatus, Step};
use crate::snapshot::{Snapshot, SnapshotState};
use crate::store::Release;

/// What becomes of a snapshot with the end of an operation.
enum SnapshotAfter {
    Is(Snapshot),
    Gone(SnapshotId),
}

impl Run<'_> {
    pub(super) async fn succeed(&self, outcome: Outcome) -> Result<(), Fault> {
        let now = self.core.env.now();
        let id = self.operation.resource;
        let snapshot = self.snapshot_after(&outcome).await?;
        let record = self
            .amend(|draft| {
                self.mark_ended(draft, OperationStatus::Succeeded, None);
                match &snapshot {
                    Some(SnapshotAfter::Is(snapshot)) => draft.tx.snapshots.push(snapshot.clone()),
                    Some(SnapshotAfter::Gone(id)) => draft.tx.forget_snapshots.push(*id),
                    None => {}
                }
                let record = &mut draft.record;
                record.error_message = None;
                let phase = match &outcome {
                    Outcome::Up(seen, applied) => {
                        record.applied = Some(applied.clone());
                        record.runtime = Some(seen.runtime(record));
                        record.missed_health_checks = 0;
                        record.last_health_check = record
                            .config
                            .health_check()
                            .map(|_| now)
                            .or(record.last_health_check);
                        // A change that came meanwhile still needs what this start uses.
                        if !record.restart_required() {
                            let obsolete = std::mem::take(&mut record.allocation.obsolete);
                            draft.tx.release.push(Release {
                                holder: id,
                                keys: Some(obsolete),
                            });
                        }
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
                    Outcome::Down { .. } => {
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
                        let event =
                            draft::about(record, EventType::ResourceDeleted, now, serde_json::json!({}));
                        draft.tx.events.push(event);
                        Phase::Deleted
                    }
                    Outcome::Updated(applied) => {
                        record.applied = Some(applied.clone());
                        if let Some(runtime) = &mut record.runtime {
                            runtime.allocated_cpu = record.config.cpu().unwrap_or_default();
                            runtime.allocated_ram = record.config.ram().unwrap_or_default();
                        }
                        record.phase
                    }
                    Outcome::SnapshotTaken(_) | Outcome::SnapshotDeleted => record.phase,
                    Outcome::SnapshotRestored { running, seen } => {
                        if let Some(seen) = seen {
                            record.runtime = Some(seen.runtime(record));
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
                let without_gpus = matches!(outcome, Outcome::Down { without_gpus: true });
                if record.phase == Phase::Running && !record.restart_required() {
                    self.core.exact_shares(&mut draft.tx, record);
                }
                self.core.release_running(draft);
                if without_gpus {
                    self.core.without_gpus(draft);
                }
            })
            .await?;
        if let Some(record) = record {
            self.core.follow_up(&record);
        }
        Ok(())
    }

    /// What becomes of the snapshot that the operation was about.
    async fn snapshot_after(&self, outcome: &Outcome) -> Result<Option<SnapshotAfter>, Fault> {
        let Some(id) = self.operation.arguments.snapshot else {
            return Ok(None);
        };
        match outcome {
            Outcome::SnapshotDeleted => Ok(Some(SnapshotAfter::Gone(id))),
            Outcome::SnapshotTaken(report) => {
                let all = self.core.store.snapshots(self.operation.resource).await?;
                let taken = all.into_iter().find(|s| s.id == id);
                Ok(taken.map(|snapshot| {
                    SnapshotAfter::Is(Snapshot {
                        state: SnapshotState::Ready,
                        disk_size: report.disk_size,
                        consistency: Some(report.consistency),
                        ..snapshot
                    })
                }))
            }
            Outcome::Up(..)
            | Outcome::Down { .. }
            | Outcome::Gone
            | Outcome::Updated(_)
            | Outcome::SnapshotRestored { .. } => Ok(None),
        }
    }

    /// Takes back what was half-made, and ends the operation as failed, or as cancelled without an error.
    pub(super) async fn undo_and_end(&self, error: Option<OperationError>) -> Result<(), Fault> {
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
                    Fault::Store(_) | Fault::Overtaken => return Err(stuck),
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
        let doubtful = self.doubtful_snapshot().await?;
        self.amend(|draft| {
            self.mark_ended(draft, status, error.clone());
            draft.tx.snapshots.extend(doubtful.clone());
            self.core
                .settle_unfinished(draft, &self.operation, error.as_ref());
        })
        .await?;
        Ok(())
    }

    /// The snapshot whose removal did not end well: it may be there, or not, or in part.
    async fn doubtful_snapshot(&self) -> Result<Option<Snapshot>, Fault> {
        if self.operation.action != Action::SnapshotDelete {
            return Ok(None);
        }
        let all = self.core.store.snapshots(self.operation.resource).await?;
        let found = all
            .into_iter()
            .find(|s| Some(s.id) == self.operation.arguments.snapshot);
        Ok(found.map(|snapshot| Snapshot {
            state: SnapshotState::Failed,
            ..snapshot
        }))
    }

    /// The step in which the operation was before it began to be undone.
    pub(super) async fn step_reached(&self) -> Result<Step, Fault> {
        let stored = self.core.store.operation(self.operation.id).await?;
        Ok(stored.map_or(Step::Accepted, |o| o.progress.step))
    }

    pub(super) async fn undo(&self, at: Step) -> Result<(), Fault> {
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

    pub(super) async fn is_cancelled(&self) -> Result<bool, Fault> {
        let stored = self.core.store.operation(self.operation.id).await?;
        Ok(stored.is_some_and(|o| o.cancel_requested))
    }

    pub(super) async fn undo_step<F: Future<Output = Result<(), Fault>>>(
        &self,
        step: impl Fn() -> F,
    ) -> Result<(), Fault> {
        let mut tries = 0;
        loop {
            match step().await {
                Ok(()) => return Ok(()),
                Err(fault @ (Fault::Store(_) | Fault::Overtaken)) => return Err(fault),
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
}

impl Core {
    /// What becomes of a resource whose operation failed or was cancelled.
    fn settle_unfinished(
        &self,
        draft: &mut Draft,
        operation: &OperationRecord,
        error: Option<&OperationError>,
    ) {
        let comes_up = draft.comes_up();
        let record = &mut draft.record;
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
        if matches!(record.phase, Phase::Queued | Phase::Stopped)
            && record.desired == Desired::Running
            && !comes_up
        {
            record.desired = Desired::Stopped;
        }
        if let (Some(error), Phase::Failed) = (error, record.phase) {
            record.error_message = Some(error.message.clone());
        }
        // A stop or a removal that failed may have left it running: it keeps what it holds.
        let may_run = matches!(operation.action, Action::Stop | Action::Delete);
        if !may_run {
            self.release_running(draft);
        }
    }
}
