//! New resources, and what a create would do.

use std::sync::Arc;

use super::Asking;
use crate::access::Principal;
use crate::error::{Error, Violation};
use crate::id::ResourceId;
use crate::ledger::ClaimKey;
use crate::lifecycle::{Action, Desired, Phase};
use crate::manager::api::{Accepted, PlanReport};
use crate::manager::draft::Draft;
use crate::manager::slot::Slot;
use crate::manager::{Core, RETRIES, Result};
use crate::operation::{Arguments, Step};
use crate::resource::{Allocation, Record, Resource};
use crate::store::CommitError;
use crate::validate::CreateRequest;

impl Core {
    /// Accepts a new resource.
    pub(in crate::manager) async fn create(
        self: &Arc<Self>,
        request: CreateRequest,
        asking: Asking<'_>,
    ) -> Result<Accepted> {
        self.once(asking, self.try_create(request, asking)).await
    }

    async fn try_create(self: &Arc<Self>, request: CreateRequest, asking: Asking<'_>) -> Result<Accepted> {
        let slot = self.slot_for(request.config.resource_type())?.clone();
        self.require_here(&request)?;
        slot.require_ready().await?;
        let id = self.ids.resource();
        let mut record = self.new_record(id, &slot, request, asking.principal);
        let auto_start = record.desired == Desired::Running;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let plan = self
                .plan_claims(&slot, &mut record, None, attempt, asking.principal)
                .await?;
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
                Err(
                    error @ CommitError::Held {
                        key: ClaimKey::Port(..) | ClaimKey::Gpu(..),
                        ..
                    },
                ) if attempt < RETRIES && plan.was_chosen() => {
                    tracing::debug!(%error, "another was faster; choosing again");
                }
                Err(error) => return Err(self.explain(error, asking.principal).await),
            }
        }
    }

    /// What a create would do.
    pub(in crate::manager) async fn plan(
        &self,
        request: CreateRequest,
        principal: &Principal,
    ) -> Result<PlanReport> {
        let slot = self.slot_for(request.config.resource_type())?;
        self.require_here(&request)?;
        slot.require_ready().await?;
        let id = self.ids.resource();
        let mut record = self.new_record(id, slot, request, principal);
        let plan = self.plan_claims(slot, &mut record, None, 1, principal).await?;
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
                .map(crate::accelerator::Placement::describe)
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
}
