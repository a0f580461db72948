//! A request becomes a committed operation: validate, check, admit, claim, one transaction.

mod create;
mod update;

use std::future::Future;
use std::sync::Arc;

use serde_json::Value;

use super::api::{Accepted, Idempotency, RequestOptions};
use super::draft::{Draft, end};
use super::{Core, RETRIES, Result};
use crate::accelerator::Placement;
use crate::access::Principal;
use crate::error::Error;
use crate::id::{OperationId, ResourceId};
use crate::ledger::ClaimKey;
use crate::lifecycle::{Action, Admission, Phase, admit};
use crate::operation::{Arguments, OperationRecord, OperationStatus, Progress, Step};
use crate::resource::{Record, Resource};
use crate::snapshot::Snapshot;
use crate::store::{CommitError, Remembered, StoreError};

/// Who asks, and on what terms.
#[derive(Clone, Copy)]
pub(super) struct Asking<'a> {
    pub(super) principal: &'a Principal,
    pub(super) options: &'a RequestOptions,
}

/// A refusal inside a commit that is tried again.
pub(super) enum Refusal {
    Error(Error),
    Commit(CommitError),
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::Error(Error::Store(error))
    }
}

impl From<CommitError> for Refusal {
    fn from(error: CommitError) -> Self {
        Self::Commit(error)
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl Core {
    pub(super) fn new_operation(
        &self,
        record: &Record,
        action: Action,
        arguments: Arguments,
        by: &str,
    ) -> OperationRecord {
        let now = self.env.now();
        OperationRecord {
            id: self.ids.operation(),
            resource: record.id,
            backend: record.backend.clone(),
            owner: record.owner.clone(),
            action,
            arguments,
            generation: record.generation,
            status: OperationStatus::Pending,
            cancel_requested: false,
            progress: Progress {
                step: Step::Accepted,
                message: "accepted".to_owned(),
                percent: None,
            },
            error: None,
            requested_by: by.to_owned(),
            created_at: now,
            started_at: None,
            finished_at: None,
            deadline: now + self.settings.operation_deadline,
        }
    }

    /// Accepts an action on a resource that the caller was found to be allowed.
    pub(super) async fn act(
        self: &Arc<Self>,
        id: ResourceId,
        action: Action,
        arguments: Arguments,
        snapshot: Option<Snapshot>,
        asking: Asking<'_>,
    ) -> Result<Accepted> {
        self.once(asking, self.try_act(id, action, arguments, snapshot, asking))
            .await
    }

    /// Carries out a request, unless the same one was accepted before, or while this one failed for it.
    async fn once(
        &self,
        asking: Asking<'_>,
        attempt: impl Future<Output = Result<Accepted>> + Send,
    ) -> Result<Accepted> {
        let idempotency = asking.options.idempotency.as_ref();
        if let Some(accepted) = self.recalled(idempotency, asking.principal).await? {
            return Ok(accepted);
        }
        match attempt.await {
            Ok(accepted) => Ok(accepted),
            Err(error) => match self.recalled(idempotency, asking.principal).await? {
                Some(accepted) => Ok(accepted),
                None => Err(error),
            },
        }
    }

    async fn try_act(
        self: &Arc<Self>,
        id: ResourceId,
        action: Action,
        arguments: Arguments,
        snapshot: Option<Snapshot>,
        asking: Asking<'_>,
    ) -> Result<Accepted> {
        let record = self.existing(id).await?;
        let slot = self.slot_of(&record)?;
        slot.require_ready().await?;
        let mut tries = 0;
        let amended = loop {
            let regained = match action.brings_up() {
                true => self.regained(&record).await,
                false => Ok(None),
            };
            let regained = match regained {
                Ok(regained) => regained,
                Err(error) => return Err(self.name_holders(error, asking.principal).await),
            };
            let amended = self
                .try_enqueue(
                    id,
                    action,
                    &arguments,
                    snapshot.as_ref(),
                    regained.as_deref(),
                    asking,
                )
                .await;
            tries += 1;
            let lost = matches!(
                &amended,
                Err(Refusal::Commit(CommitError::Held {
                    key: ClaimKey::Gpu(..),
                    ..
                }))
            );
            if !lost || regained.is_none() || tries == RETRIES {
                break amended;
            }
        };
        match amended {
            Ok(Some(((accepted, cancel), _))) => {
                if let Some(running) = cancel {
                    self.give_up(id, running);
                }
                self.kick(id);
                Ok(accepted)
            }
            Ok(None) => Err(Error::resource_not_found(id)),
            Err(Refusal::Error(error)) => Err(error),
            Err(Refusal::Commit(error)) => Err(self.explain(error, asking.principal).await),
        }
    }

    /// Queues an action, with the places on GPUs that it regains.
    async fn try_enqueue(
        self: &Arc<Self>,
        id: ResourceId,
        action: Action,
        arguments: &Arguments,
        snapshot: Option<&Snapshot>,
        regained: Option<&[Placement]>,
        asking: Asking<'_>,
    ) -> std::result::Result<Option<((Accepted, Option<OperationId>), Record)>, Refusal> {
        self.amend::<_, Refusal>(id, |draft| {
            require_revision(&draft.record, asking.options.if_match)?;
            if let Some(places) = regained {
                self.regain(draft, places);
            }
            let queued = self.enqueue(draft, action, arguments.clone(), &asking.principal.subject)?;
            draft.by = Some(asking.principal.subject.clone());
            draft
                .tx
                .snapshots
                .extend(snapshot.cloned().filter(|_| action == Action::SnapshotCreate));
            let mut after = Resource::from(&draft.record);
            after.updated_by.clone_from(&asking.principal.subject);
            after.updated_at = self.env.now();
            let accepted = Accepted {
                resource: after,
                revision: draft.record.revision + 1,
                operation: Some(queued.operation),
                snapshot: snapshot.cloned(),
                time: self.env.now(),
            };
            draft.tx.remember = self.remembering(&asking, &accepted)?;
            Ok(Some((accepted, queued.cancel)))
        })
        .await
    }

    /// Judges an action after everything that is queued, and queues it. Stop and delete cancel what has not
    /// begun, and what runs where that can be given up.
    pub(super) fn enqueue(
        &self,
        draft: &mut Draft,
        action: Action,
        arguments: Arguments,
        by: &str,
    ) -> Result<Queued> {
        let now = self.env.now();
        let overtakes = action.overtakes();
        let mut phase = draft.record.phase;
        let mut cancel = None;
        for operation in &mut draft.operations {
            if overtakes && operation.action.is_cancellable() && !operation.cancel_requested {
                match operation.status {
                    OperationStatus::Running => {
                        operation.cancel_requested = true;
                        cancel = Some(operation.id);
                    }
                    _ => {
                        end(operation, OperationStatus::Cancelled, now);
                        operation.progress.message = format!("overtaken by {action}");
                        continue;
                    }
                }
                // It may be too late to give it up: whatever it comes to is brought down.
                phase = operation.action.phase_during(phase);
            } else if overtakes && operation.status == OperationStatus::Pending && action == Action::Delete {
                end(operation, OperationStatus::Cancelled, now);
                operation.progress.message = format!("overtaken by {action}");
            } else {
                phase = operation.action.phase_after(phase);
            }
        }
        let deletes = draft
            .operations
            .iter()
            .find(|o| o.action == Action::Delete && !o.status.is_final());
        if let (Action::Delete, Some(running)) = (action, deletes) {
            return Ok(Queued {
                operation: running.id,
                cancel: None,
            });
        }
        // What is marked as being deleted and has no removal under way: the removal failed or is done.
        if phase == Phase::Deleting && deletes.is_none() && action == Action::Delete {
            phase = Phase::Failed;
        }
        let admission = admit(phase, action);
        if let Admission::Refuse(reason) = admission {
            return Err(Error::InvalidState {
                action: action.as_str(),
                phase,
                reason,
            });
        }
        let waiting = draft.operations.iter().filter(|o| !o.status.is_final()).count();
        if waiting >= self.settings.queue_limit && !overtakes {
            return Err(Error::TooManyOperations {
                resource: draft.record.id,
                limit: self.settings.queue_limit,
            });
        }
        if let Some(desired) = action.desires() {
            draft.record.desired = desired;
        }
        draft.record.generation += 1;
        let mut operation = self.new_operation(&draft.record, action, arguments, by);
        let queued = Queued {
            operation: operation.id,
            cancel,
        };
        match admission {
            Admission::AlreadyThere => {
                end(&mut operation, OperationStatus::Succeeded, now);
                operation.progress = Progress {
                    step: Step::Done,
                    message: "it was so already".into(),
                    percent: None,
                };
            }
            Admission::Run | Admission::Refuse(_) => self.prepare(draft, action),
        }
        draft.operations.push(operation);
        // What was overtaken before it began no longer needs what it claimed.
        self.release_running(draft);
        Ok(queued)
    }

    /// What an admitted action changes at once: claims for what comes up, the phase of what goes.
    fn prepare(&self, draft: &mut Draft, action: Action) {
        match action {
            Action::Create | Action::Start | Action::Restart | Action::SnapshotRestore => {
                self.claim_running(&mut draft.tx, &draft.record);
                draft.record.restarts = 0;
            }
            Action::Delete => {
                draft.record.phase = Phase::Deleting;
                draft.record.deleted_at = Some(self.env.now());
            }
            Action::Stop | Action::Update | Action::SnapshotCreate | Action::SnapshotDelete => {}
        }
    }

    /// The record of a resource that is not deleted.
    pub(super) async fn existing(&self, id: ResourceId) -> Result<Record> {
        match self.store.record(id).await? {
            Some(record) if record.phase != Phase::Deleted => Ok(record),
            _ => Err(Error::resource_not_found(id)),
        }
    }

    fn remembering(&self, asking: &Asking<'_>, accepted: &Accepted) -> Result<Option<Remembered>> {
        let Some(idempotency) = &asking.options.idempotency else {
            return Ok(None);
        };
        let answer = serde_json::to_value(accepted)
            .map_err(|error| StoreError::new("remembering an answer", error.to_string()))?;
        Ok(Some(Remembered {
            key: remembered_key(asking.principal, &idempotency.key),
            fingerprint: idempotency.fingerprint.clone(),
            answer,
            time: self.env.now(),
        }))
    }

    /// The answer that the same request got before.
    async fn recalled(
        &self,
        idempotency: Option<&Idempotency>,
        principal: &Principal,
    ) -> Result<Option<Accepted>> {
        let Some(idempotency) = idempotency else {
            return Ok(None);
        };
        let Some(answer) = self.recall(idempotency, principal).await? else {
            return Ok(None);
        };
        let accepted = serde_json::from_value(answer)
            .map_err(|error| StoreError::new("reading a remembered answer", error.to_string()))?;
        Ok(Some(accepted))
    }

    /// Any answer that was remembered for this caller and key.
    pub(super) async fn recall(
        &self,
        idempotency: &Idempotency,
        principal: &Principal,
    ) -> Result<Option<Value>> {
        match self
            .store
            .remembered(&remembered_key(principal, &idempotency.key))
            .await?
        {
            Some(found) if found.fingerprint == idempotency.fingerprint => Ok(Some(found.answer)),
            Some(_) => Err(Error::IdempotencyMismatch),
            None => Ok(None),
        }
    }
}

/// An operation that was queued, and one that runs and is to be given up for it.
pub(super) struct Queued {
    pub(super) operation: OperationId,
    pub(super) cancel: Option<OperationId>,
}

/// Callers' keys are kept apart. The lengths in front keep two pairs from making the same text.
pub(super) fn remembered_key(principal: &Principal, key: &str) -> String {
    let owner = &principal.owner;
    format!(
        "{}:{}|{}:{}|{key}",
        owner.org_id.len(),
        owner.org_id,
        principal.subject.len(),
        principal.subject
    )
}

fn require_revision(record: &Record, if_match: Option<u64>) -> Result<()> {
    match if_match {
        Some(revision) if revision != record.revision => {
            Err(Error::PreconditionFailed { resource: record.id })
        }
        _ => Ok(()),
    }
}
