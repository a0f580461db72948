//! Changes to a resource's record and config.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Asking, Refusal, require_revision};
use crate::access::Principal;
use crate::config::Config;
use crate::error::Error;
use crate::event::EventType;
use crate::id::{OperationId, ResourceId};
use crate::ledger::{ClaimKey, Demand};
use crate::lifecycle::{Action, Desired, Phase};
use crate::manager::api::Accepted;
use crate::manager::claims::ClaimPlan;
use crate::manager::draft::{Draft, about};
use crate::manager::{Core, RETRIES, Result};
use crate::operation::Arguments;
use crate::resource::{Record, Resource};
use crate::store::Release;
use crate::validate;

impl Core {
    /// Applies a merge patch.
    pub(in crate::manager) async fn update(
        self: &Arc<Self>,
        id: ResourceId,
        body: &Value,
        asking: Asking<'_>,
    ) -> Result<Accepted> {
        self.once(asking, self.try_update(id, body, asking)).await
    }

    async fn try_update(
        self: &Arc<Self>,
        id: ResourceId,
        body: &Value,
        asking: Asking<'_>,
    ) -> Result<Accepted> {
        let mut attempt = 0;
        loop {
            attempt += 1;
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
                    let kind = EventType::ResourceUpdated;
                    let event = about(&draft.record, kind, self.env.now(), json!({}));
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
                Ok(None) if attempt >= RETRIES => return Err(Error::PreconditionFailed { resource: id }),
                Ok(None) => {}
                Err(Refusal::Error(error)) => return Err(error),
                Err(Refusal::Commit(error)) => return Err(self.explain(error, asking.principal).await),
            }
        }
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
        let mut record = before.clone();
        record.config = config.clone();
        self.plan_claims(slot, &mut record, keep, attempt, principal)
            .await
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
            let before = Demand::of(&old, str::to_owned);
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
        let demand = Demand::of(&old, str::to_owned);
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
}
