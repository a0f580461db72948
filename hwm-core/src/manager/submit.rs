//! A request becomes a committed operation: validate, check, admit, claim, one transaction.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::api::{Accepted, Idempotency, PlanReport, RequestOptions};
use super::claims::ClaimPlan;
use super::draft::{Draft, end};
use super::slot::Slot;
use super::{Core, RETRIES, Result};
use crate::access::Principal;
use crate::backend::Workload;
use crate::config::Config;
use crate::env::NewIds;
use crate::error::{Error, Violation};
use crate::id::{OperationId, ResourceId};
use crate::ledger::ClaimKey;
use crate::lifecycle::{Action, Admission, Desired, Phase, admit};
use crate::operation::{Arguments, OperationRecord, OperationStatus, Progress, Step};
use crate::resource::{Allocation, Record, Resource};
use crate::snapshot::Snapshot;
use crate::store::{CommitError, Release, Remembered, StoreError};
use crate::validate::{self, CreateRequest};

/// Who asks, and on what terms.
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
    /// Accepts a new resource.
    pub(super) async fn create(
        self: &Arc<Self>,
        request: CreateRequest,
        asking: Asking<'_>,
    ) -> Result<Accepted> {
        if let Some(accepted) = self
            .recalled(asking.options.idempotency.as_ref(), asking.principal)
            .await?
        {
            return Ok(accepted);
        }
        let slot = self.slot_for(request.config.resource_type())?.clone();
        self.require_here(&request)?;
        slot.require_ready().await?;
        let id = self.env.new_resource_id();
        let mut record = self.new_record(id, &slot, request, asking.principal);
        let auto_start = record.desired == Desired::Running;
        let mut resolved = None;
        for attempt in 0..u32::try_from(RETRIES).unwrap_or(u32::MAX) {
            let nothing = BTreeMap::new();
            let plan = self
                .plan_claims(
                    id,
                    &record.config,
                    resolved.as_ref().unwrap_or(&nothing),
                    None,
                    attempt,
                )
                .await;
            let mut plan = match plan {
                Ok(plan) => plan,
                Err(error) => return Err(self.name_holders(error, asking.principal).await),
            };
            record.allocation = plan.allocation.clone();
            if resolved.is_none() {
                let paths = self.check(&slot, &record.workload(record.generation)).await?;
                plan.demand = crate::ledger::Demand::of(&record.config, |p| {
                    paths.get(p).cloned().unwrap_or_else(|| p.to_owned())
                });
                resolved = Some(paths);
            }
            let mut draft = Draft::new(record.clone());
            if auto_start {
                draft.operations.push(self.new_operation(
                    &record,
                    Action::Create,
                    Arguments::default(),
                    &asking.principal.subject,
                ));
            }
            draft.tx.claim = plan.claims(self, id, auto_start);
            draft.tx.limits = self.limits();
            let accepted = Accepted {
                resource: Resource::from(&record),
                revision: record.revision,
                operation: draft.operations.first().map(|o| o.id),
                snapshot: None,
                time: record.created_at,
            };
            draft.tx.remember = self.remembering(&asking, &accepted)?;
            match self.commit_draft(draft).await {
                Ok(_) => {
                    self.kick(id);
                    return Ok(accepted);
                }
                Err(CommitError::Held {
                    key: ClaimKey::Port(..) | ClaimKey::Gpu(..),
                    ..
                }) if plan.chose_ports() || !plan.allocation.gpus.is_empty() => {}
                Err(CommitError::Remembered) => {
                    if let Some(accepted) = self
                        .recalled(asking.options.idempotency.as_ref(), asking.principal)
                        .await?
                    {
                        return Ok(accepted);
                    }
                }
                Err(error) => return Err(self.explain(error, asking.principal).await),
            }
            if attempt > 2 && plan.allocation.gpus.is_empty() && !plan.chose_ports() {
                break;
            }
        }
        Err(self.lost_every_race())
    }

    fn lost_every_race(&self) -> Error {
        Error::BackendUnavailable {
            backend: "ledger".into(),
            reason: "others were faster every time".into(),
            retry_after: std::time::Duration::from_secs(1),
        }
    }

    /// What a create would do.
    pub(super) async fn plan(&self, request: CreateRequest, principal: &Principal) -> Result<PlanReport> {
        let slot = self.slot_for(request.config.resource_type())?;
        self.require_here(&request)?;
        slot.require_ready().await?;
        let id = self.env.new_resource_id();
        let mut record = self.new_record(id, slot, request, principal);
        let plan = match self
            .plan_claims(id, &record.config, &BTreeMap::new(), None, 0)
            .await
        {
            Ok(plan) => plan,
            Err(error) => return Err(self.name_holders(error, principal).await),
        };
        record.allocation = plan.allocation.clone();
        let resolved = self.check(slot, &record.workload(record.generation)).await?;
        let demand = crate::ledger::Demand::of(&record.config, |p| {
            resolved.get(p).cloned().unwrap_or_else(|| p.to_owned())
        });
        let plan = ClaimPlan { demand, ..plan };
        let claims = plan.claims(self, id, true);
        self.would_fit(&claims, principal).await?;
        let mut steps = vec![Step::Create, Step::Start];
        if !plan.allocation.gpus.is_empty() {
            steps.insert(0, Step::PrepareDevices);
        }
        if record.config.health_check().is_some() {
            steps.push(Step::AwaitHealthy);
        }
        Ok(PlanReport {
            node_id: self.node.clone(),
            claims: claims
                .iter()
                .map(|c| {
                    c.key
                        .pool()
                        .map_or_else(|| c.key.describe(), |pool| pool.amount(c.amount))
                })
                .collect(),
            ports: plan
                .allocation
                .ports
                .iter()
                .map(|p| format!("{} → {}/{}", p.host_port, p.container_port, p.protocol.as_str()))
                .collect(),
            gpus: plan
                .allocation
                .gpus
                .iter()
                .map(|p| format!("{}: {}", p.card, p.parts.join(", ")))
                .collect(),
            config: record.config,
            steps,
        })
    }

    fn require_here(&self, request: &CreateRequest) -> Result<()> {
        match &request.node {
            Some(node) if *node != self.node => Err(Error::Validation(vec![Violation::new(
                "nodeId",
                format!("there is no node {node}; leave it out, or name {}", self.node),
            )])),
            _ => Ok(()),
        }
    }

    fn new_record(
        &self,
        id: ResourceId,
        slot: &Slot,
        request: CreateRequest,
        principal: &Principal,
    ) -> Record {
        let now = self.env.now();
        Record {
            id,
            name: request.name,
            description: request.description,
            metadata: request.metadata,
            node: self.node.clone(),
            backend: slot.name().clone(),
            owner: principal.owner.clone(),
            created_by: principal.subject.clone(),
            updated_by: principal.subject.clone(),
            created_at: now,
            updated_at: now,
            deleted_at: None,
            config: request.config,
            applied: None,
            phase: Phase::Queued,
            desired: if request.auto_start {
                Desired::Running
            } else {
                Desired::Stopped
            },
            generation: 1,
            revision: 1,
            allocation: Allocation::default(),
            runtime: None,
            last_health_check: None,
            missed_health_checks: 0,
            restarts: 0,
            error_message: None,
        }
    }

    /// Asks the backend what only the node knows; answers paths after links are resolved.
    pub(super) async fn check(&self, slot: &Slot, workload: &Workload) -> Result<BTreeMap<String, String>> {
        let report = slot
            .call("check", self.settings.read_timeout, slot.backend.check(workload))
            .await
            .map_err(|error| slot.error(error))?;
        if report.violations.is_empty() {
            Ok(report.resolved_paths)
        } else {
            Err(Error::Validation(report.violations))
        }
    }

    pub(super) fn new_operation(
        &self,
        record: &Record,
        action: Action,
        arguments: Arguments,
        by: &str,
    ) -> OperationRecord {
        let now = self.env.now();
        OperationRecord {
            id: self.env.new_operation_id(),
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
        if let Some(accepted) = self
            .recalled(asking.options.idempotency.as_ref(), asking.principal)
            .await?
        {
            return Ok(accepted);
        }
        let record = self.existing(id).await?;
        let slot = self.slot_of(&record)?;
        slot.require_ready().await?;
        let amended = self
            .amend::<_, Refusal>(id, |draft| {
                require_revision(&draft.record, asking.options.if_match)?;
                let queued = self.enqueue(draft, action, arguments.clone(), &asking.principal.subject)?;
                draft.by = Some(asking.principal.subject.clone());
                draft
                    .tx
                    .snapshots
                    .extend(snapshot.clone().filter(|_| action == Action::SnapshotCreate));
                let mut after = Resource::from(&draft.record);
                after.updated_by.clone_from(&asking.principal.subject);
                after.updated_at = self.env.now();
                let accepted = Accepted {
                    resource: after,
                    revision: draft.record.revision + 1,
                    operation: Some(queued.operation),
                    snapshot: snapshot.clone(),
                    time: self.env.now(),
                };
                draft.tx.remember = self.remembering(&asking, &accepted)?;
                Ok(Some((accepted, queued.cancel)))
            })
            .await;
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
            Err(Refusal::Commit(CommitError::Remembered)) => self
                .recalled(asking.options.idempotency.as_ref(), asking.principal)
                .await?
                .ok_or(Error::IdempotencyMismatch),
            Err(Refusal::Commit(error)) => Err(self.explain(error, asking.principal).await),
        }
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
                phase = if operation.action == Action::Create {
                    Phase::Queued
                } else {
                    Phase::Stopped
                };
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
        Ok(queued)
    }

    /// What an admitted action changes at once: claims for what comes up, the phase of what goes.
    fn prepare(&self, draft: &mut Draft, action: Action) {
        match action {
            Action::Create | Action::Start | Action::Restart | Action::SnapshotRestore => {
                self.claim_running(draft);
                draft.record.restarts = 0;
            }
            Action::Delete => {
                draft.record.phase = Phase::Deleting;
                draft.record.deleted_at = Some(self.env.now());
            }
            Action::Stop | Action::Update | Action::SnapshotCreate | Action::SnapshotDelete => {}
        }
    }

    /// Claims what only a resource that is up needs.
    pub(super) fn claim_running(&self, draft: &mut Draft) {
        let demand = crate::ledger::Demand::of(&draft.record.config, str::to_owned);
        draft
            .tx
            .claim
            .extend(demand.running.iter().map(|(pool, amount)| crate::ledger::Claim {
                node: self.node.clone(),
                key: pool.key(),
                holder: draft.record.id,
                amount: *amount,
            }));
        draft.tx.limits = self.limits();
    }

    /// Applies a merge patch.
    pub(super) async fn update(
        self: &Arc<Self>,
        id: ResourceId,
        body: &Value,
        asking: Asking<'_>,
    ) -> Result<Accepted> {
        if let Some(accepted) = self
            .recalled(asking.options.idempotency.as_ref(), asking.principal)
            .await?
        {
            return Ok(accepted);
        }
        for attempt in 0..u32::try_from(RETRIES).unwrap_or(u32::MAX) {
            let before = self.existing(id).await?;
            require_revision(&before, asking.options.if_match)?;
            let patch = validate::patch(&before, body, &self.rules).map_err(Error::Validation)?;
            let config = patch.config.clone().filter(|c| *c != before.config);
            let change = match &config {
                Some(config) => Some(
                    self.plan_change(&before, config, attempt, asking.principal)
                        .await?,
                ),
                None => None,
            };
            if patch.status.is_some() {
                self.slot_of(&before)?.require_ready().await?;
            }
            let amended = self
                .amend::<_, Refusal>(id, |draft| {
                    if draft.record.revision != before.revision {
                        return Ok(None);
                    }
                    let record = &mut draft.record;
                    if let Some(name) = &patch.name {
                        record.name.clone_from(name);
                    }
                    if let Some(description) = &patch.description {
                        record.description.clone_from(description);
                    }
                    if let Some(metadata) = &patch.metadata {
                        record.metadata.clone_from(metadata);
                    }
                    draft.by = Some(asking.principal.subject.clone());
                    let mut operation = None;
                    let mut cancel = None;
                    if let (Some(config), Some(plan)) = (&config, &change) {
                        operation = self.change_config(draft, config, plan, &asking.principal.subject)?;
                    }
                    if let Some(status) = patch.status {
                        let action = if status == Desired::Running {
                            Action::Start
                        } else {
                            Action::Stop
                        };
                        let queued =
                            self.enqueue(draft, action, Arguments::default(), &asking.principal.subject)?;
                        operation = Some(queued.operation);
                        cancel = queued.cancel;
                    }
                    let kind = crate::event::EventType::ResourceUpdated;
                    let event =
                        super::draft::about(&draft.record, kind, self.env.now(), serde_json::json!({}));
                    draft.tx.events.push(event);
                    let mut after = Resource::from(&draft.record);
                    after.updated_by.clone_from(&asking.principal.subject);
                    after.updated_at = self.env.now();
                    let accepted = Accepted {
                        resource: after,
                        revision: draft.record.revision + 1,
                        operation,
                        snapshot: None,
                        time: self.env.now(),
                    };
                    draft.tx.remember = self.remembering(&asking, &accepted)?;
                    Ok(Some((accepted, cancel)))
                })
                .await;
            match amended {
                Ok(Some(((accepted, cancel), _))) => {
                    if let Some(running) = cancel {
                        self.give_up(id, running);
                    }
                    self.kick(id);
                    return Ok(accepted);
                }
                Ok(None) => {}
                Err(Refusal::Error(error)) => return Err(error),
                Err(Refusal::Commit(error)) => return Err(self.explain(error, asking.principal).await),
            }
        }
        Err(self.lost_every_race())
    }

    /// What a changed config needs, once the backend has looked at it.
    async fn plan_change(
        &self,
        before: &Record,
        config: &Config,
        attempt: u32,
        principal: &Principal,
    ) -> Result<ClaimPlan> {
        if before.phase.takes_capacity() && before.config.gpu_request() != config.gpu_request() {
            return Err(Error::InvalidState {
                action: Action::Update.as_str(),
                phase: before.phase,
                reason: "its GPUs cannot change while it is up; stop it first",
            });
        }
        let slot = self.slot_of(before)?;
        slot.require_ready().await?;
        let keep = Some((&before.config, &before.allocation));
        let planned = match self
            .plan_claims(before.id, config, &BTreeMap::new(), keep, attempt)
            .await
        {
            Ok(plan) => plan,
            Err(error) => return Err(self.name_holders(error, principal).await),
        };
        let mut record = before.clone();
        record.config = config.clone();
        record.allocation = planned.allocation.clone();
        let resolved = self.check(slot, &record.workload(before.generation)).await?;
        let demand = crate::ledger::Demand::of(config, |p| {
            resolved.get(p).cloned().unwrap_or_else(|| p.to_owned())
        });
        Ok(ClaimPlan { demand, ..planned })
    }

    /// Puts a new config into a draft: claims what it needs beside what still runs, and queues the live
    /// change where the backend can make it.
    fn change_config(
        &self,
        draft: &mut Draft,
        config: &Config,
        plan: &ClaimPlan,
        by: &str,
    ) -> Result<Option<OperationId>> {
        let up = draft.record.phase.takes_capacity();
        let old = std::mem::replace(&mut draft.record.config, config.clone());
        let mut claims = plan.claims(self, draft.record.id, up);
        if up {
            // Until the next start both the old and the new config have what they need.
            let before = crate::ledger::Demand::of(&old, str::to_owned);
            for claim in &mut claims {
                let held = before
                    .lasting
                    .iter()
                    .chain(&before.running)
                    .find(|(p, _)| p.key() == claim.key);
                claim.amount = claim.amount.max(held.map_or(0, |(_, amount)| *amount));
            }
        }
        let kept: Vec<&ClaimKey> = claims.iter().map(|c| &c.key).collect();
        let before = std::mem::replace(&mut draft.record.allocation, plan.allocation.clone());
        let demand = crate::ledger::Demand::of(&old, str::to_owned);
        let mut obsolete = before.obsolete.clone();
        obsolete.extend(
            demand
                .exclusive
                .into_iter()
                .chain(before.ports.iter().map(|p| p.key())),
        );
        obsolete.retain(|key| !kept.contains(&key));
        if up {
            draft.record.allocation.obsolete = obsolete;
        } else {
            draft.tx.release.push(Release {
                holder: draft.record.id,
                keys: Some(obsolete),
            });
        }
        draft.tx.claim = claims;
        draft.tx.limits = self.limits();
        draft.record.generation += 1;
        let slot = self.slot_of(&draft.record)?;
        let live = slot.backend.facets().live_update;
        let applied = draft.record.applied.as_ref().map(|a| a.config.clone());
        let can_be_live = match (&live, &applied) {
            (Some(live), Some(applied)) => live.is_live(applied, config),
            _ => false,
        };
        if draft.record.phase == Phase::Running && can_be_live {
            let queued = self.enqueue(draft, Action::Update, Arguments::default(), by)?;
            return Ok(Some(queued.operation));
        }
        Ok(None)
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
