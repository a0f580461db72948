//! Operations, events, nodes, and answers to repeated requests.

use std::time::Duration;

use serde_json::Value;

use super::Scoped;
use crate::access::{Permission, Visibility};
use crate::backend::Stream;
use crate::error::Error;
use crate::id::{GpuUuid, NodeId, OperationId, ResourceId};
use crate::lifecycle::{Desired, Phase};
use crate::manager::api::{EventFilter, EventItem, Idempotency};
use crate::manager::draft::end;
use crate::manager::submit::remembered_key;
use crate::manager::{Core, Result};
use crate::node::Node;
use crate::operation::{Operation, OperationRecord, OperationStatus};
use crate::store::{OperationQuery, Remembered, Transaction};

impl Scoped {
    /// One operation, with its progress at this moment.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn operation(&self, id: OperationId) -> Result<Operation> {
        Ok(self
            .core
            .operation_view(&self.visible_operation(id, Permission::Read).await?))
    }

    /// A page of operations, newest first, and how many there are.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for a caller without any role.
    pub async fn operations(
        &self,
        resource: Option<ResourceId>,
        offset: u64,
        limit: u32,
    ) -> Result<(Vec<Operation>, u64)> {
        let visibility = self.view(Permission::Read, "listing operations")?;
        let query = OperationQuery {
            visibility,
            resource,
            unfinished: false,
            offset,
            limit,
        };
        let page = self.core.store.operations(query).await?;
        Ok((
            page.operations
                .iter()
                .map(|o| self.core.operation_view(o))
                .collect(),
            page.total,
        ))
    }

    /// Asks for an operation to be given up and undone. One that waits is cancelled at once.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Unsupported`] for one that runs and cannot be given up.
    pub async fn cancel(&self, id: OperationId) -> Result<Operation> {
        let operation = self.visible_operation(id, Permission::Write).await?;
        self.core.cancel(&operation).await
    }

    /// Waits until the operation has ended or `limit` is over, and answers it as it then is.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn wait(&self, id: OperationId, limit: Duration) -> Result<Operation> {
        self.visible_operation(id, Permission::Read).await?;
        self.core.wait(id, limit).await
    }

    /// Events that the caller may see: those after `after` (0 for all that are kept), or only new ones when
    /// none. Ends when the manager shuts down.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for a caller without any role.
    pub async fn events(&self, filter: EventFilter, after: Option<u64>) -> Result<Stream<EventItem>> {
        let visibility = self.view(Permission::Read, "watching events")?;
        Ok(self.core.clone().events(visibility, filter, after))
    }

    /// The nodes, each with its GPUs and what of it is claimed.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for a caller without any role.
    pub async fn nodes(&self) -> Result<Vec<Node>> {
        self.view(Permission::Read, "seeing nodes")?;
        Ok(vec![self.core.node_view(&self.principal).await?])
    }

    /// One node.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn node(&self, id: &NodeId) -> Result<Node> {
        let nodes = self.nodes().await?;
        nodes
            .into_iter()
            .find(|n| n.id == *id)
            .ok_or_else(|| Error::NotFound {
                what: format!("node {id}"),
            })
    }

    /// Has a quarantined GPU looked at again, and answers the node as it then is. `gpu` is a UUID or an
    /// index.
    ///
    /// # Errors
    /// [`Error::Forbidden`] without an owner role over everything, [`Error::NotFound`], [`Error::Backend`]
    /// when the card is still not well.
    pub async fn recover_gpu(&self, node: &NodeId, gpu: &GpuUuid) -> Result<Node> {
        self.node(node).await?;
        if self.principal.visibility(Permission::Administer) != Some(Visibility::All) {
            return Err(self.forbidden("recovering a GPU", "universe.owner"));
        }
        self.core.recover_gpu(gpu).await?;
        self.node(node).await
    }

    /// The answer that this caller was given under this key.
    ///
    /// # Errors
    /// [`Error::IdempotencyMismatch`] when it was for another request.
    pub async fn recall(&self, idempotency: &Idempotency) -> Result<Option<Value>> {
        self.core.recall(idempotency, &self.principal).await
    }

    /// Remembers an answer that no commit of the manager's own remembers.
    ///
    /// # Errors
    /// [`Error::IdempotencyMismatch`] when the key was taken meanwhile.
    pub async fn remember(&self, idempotency: Idempotency, answer: Value) -> Result<()> {
        let remember = Some(Remembered {
            key: remembered_key(&self.principal, &idempotency.key),
            fingerprint: idempotency.fingerprint,
            answer,
            time: self.core.env.now(),
        });
        Ok(self
            .core
            .commit(Transaction {
                remember,
                ..Transaction::default()
            })
            .await?)
    }

    async fn visible_operation(&self, id: OperationId, permission: Permission) -> Result<OperationRecord> {
        self.view(Permission::Read, "seeing operations")?;
        let not_found = || Error::NotFound {
            what: format!("operation {id}"),
        };
        let operation = self.core.store.operation(id).await?.ok_or_else(not_found)?;
        if !self.principal.may(Permission::Read, &operation.owner) {
            return Err(not_found());
        }
        if !self.principal.may(permission, &operation.owner) {
            return Err(self.forbidden("cancelling an operation", "member.editor"));
        }
        Ok(operation)
    }
}

impl Core {
    async fn cancel(&self, operation: &OperationRecord) -> Result<Operation> {
        let id = operation.id;
        let amended = self
            .amend::<_, Error>(operation.resource, |draft| {
                let now = self.env.now();
                let Some(found) = draft.operation_mut(id) else {
                    return Ok(None);
                };
                if found.status == OperationStatus::Pending {
                    end(found, OperationStatus::Cancelled, now);
                    found.progress.message = "cancelled before it began".to_owned();
                } else if found.action.is_cancellable() {
                    found.cancel_requested = true;
                } else {
                    return Err(Error::Unsupported {
                        what: "cancelling".to_owned(),
                        reason: format!("{} cannot be given up half-way", found.action),
                    });
                }
                let phase = draft.record.phase;
                if matches!(phase, Phase::Queued | Phase::Stopped) && !draft.comes_up() {
                    draft.record.desired = Desired::Stopped;
                }
                self.release_running(draft);
                Ok(Some(()))
            })
            .await?;
        if amended.is_some() {
            self.give_up(operation.resource, id);
        }
        let stored = self.store.operation(id).await?;
        Ok(self.operation_view(stored.as_ref().unwrap_or(operation)))
    }
}
