//! The manager as one caller may use it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::api::{
    Accepted, ConsoleAccess, EventFilter, EventItem, Idempotency, PlanReport, RequestOptions, ResourcePage,
    ResourceStatus, Versioned,
};
use super::slot::Slot;
use super::submit::{Asking, remembered_key};
use super::{Core, Result};
use crate::access::{Permission, Principal, Visibility};
use crate::backend::{ConsoleKind, ExecOutput, ExecRequest, ExecSession, LogLine, LogQuery, Session, Stream};
use crate::env::NewIds;
use crate::error::{Error, Violation};
use crate::id::{GpuUuid, NodeId, OperationId, ResourceId, SnapshotId};
use crate::lifecycle::{Action, Phase};
use crate::metrics::ResourceMetrics;
use crate::node::Node;
use crate::operation::{Arguments, Operation, OperationRecord, OperationStatus};
use crate::resource::{Record, Resource};
use crate::snapshot::{Snapshot, SnapshotRequest, SnapshotState};
use crate::store::{ListQuery, OperationQuery, Remembered, Transaction};
use crate::validate::CreateRequest;

/// The manager as one caller may use it. What the caller may not see does not exist for it:
/// [`Error::NotFound`]. What it may see but not do is [`Error::Forbidden`].
///
/// Every future may be dropped at any await. A request whose future was dropped may or may not have been
/// accepted; with an [`Idempotency`] key it can be repeated.
#[derive(Clone)]
pub struct Scoped {
    core: Arc<Core>,
    principal: Principal,
}

impl fmt::Debug for Scoped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scoped")
            .field("principal", &self.principal)
            .finish_non_exhaustive()
    }
}

impl Scoped {
    pub(super) fn new(core: Arc<Core>, principal: Principal) -> Self {
        Self { core, principal }
    }

    /// Whose view this is.
    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    // Resources.

    /// Accepts a new resource, which then deploys by itself unless `auto_start` is off.
    ///
    /// # Errors
    /// [`Error::Validation`] for what only the node can find, [`Error::Conflict`] for what others hold,
    /// [`Error::Unsupported`], [`Error::BackendUnavailable`]. Nothing is made or held then.
    pub async fn create(&self, request: CreateRequest, options: RequestOptions) -> Result<Accepted> {
        self.may_create()?;
        self.accepting()?;
        self.core.create(request, self.asking(&options)).await
    }

    /// What a create would do; reserves nothing.
    ///
    /// # Errors
    /// As [`Scoped::create`].
    pub async fn plan(&self, request: CreateRequest) -> Result<PlanReport> {
        self.may_create()?;
        self.core.plan(request, &self.principal).await
    }

    /// One resource. A deleted one is there only for an owner role that asks for it.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn get(&self, id: ResourceId, include_deleted: bool) -> Result<Versioned> {
        let record = if include_deleted {
            let record = self
                .core
                .store
                .record(id)
                .await?
                .ok_or_else(|| Error::resource_not_found(id))?;
            self.require(&record, Permission::Administer, "seeing deleted resources")?;
            record
        } else {
            self.visible(id).await?
        };
        Ok(Versioned {
            resource: Resource::from(&record),
            revision: record.revision,
        })
    }

    /// A page of resources. The query's visibility is replaced by the caller's own.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for a caller without any role, or who asks for deleted ones without an owner role.
    pub async fn list(&self, mut query: ListQuery) -> Result<ResourcePage> {
        let permission = if query.include_deleted {
            Permission::Administer
        } else {
            Permission::Read
        };
        query.visibility = self.view(permission, "listing these resources")?;
        let page = self.core.store.list(query).await?;
        Ok(ResourcePage {
            resources: page.records.iter().map(Resource::from).collect(),
            total: page.total,
            counts: page.counts,
            next: page.next,
        })
    }

    /// Applies a merge patch (RFC 7396) over name, description, metadata and config; `status` asks for
    /// "running" or "stopped". A config change that cannot be made live waits for the next start.
    ///
    /// # Errors
    /// As [`Scoped::create`], and [`Error::InvalidState`], [`Error::PreconditionFailed`].
    pub async fn update(&self, id: ResourceId, patch: Value, options: RequestOptions) -> Result<Accepted> {
        self.writable(id, "changing it").await?;
        self.accepting()?;
        self.core.update(id, &patch, self.asking(&options)).await
    }

    /// Removes the workload, its disks and its claims. The record stays as deleted.
    ///
    /// # Errors
    /// [`Error::PreconditionFailed`], [`Error::BackendUnavailable`].
    pub async fn delete(&self, id: ResourceId, options: RequestOptions) -> Result<Accepted> {
        self.act(id, Action::Delete, Arguments::default(), options).await
    }

    /// Starts, stops, restarts or deletes. Other actions have methods of their own.
    ///
    /// # Errors
    /// [`Error::InvalidState`], [`Error::TooManyOperations`], [`Error::Conflict`] where CPU or memory is
    /// taken, [`Error::PreconditionFailed`], [`Error::BackendUnavailable`].
    pub async fn act(
        &self,
        id: ResourceId,
        action: Action,
        arguments: Arguments,
        options: RequestOptions,
    ) -> Result<Accepted> {
        self.writable(id, action.as_str()).await?;
        self.accepting()?;
        match action {
            Action::Start | Action::Stop | Action::Restart | Action::Delete => {
                self.core
                    .act(id, action, arguments, None, self.asking(&options))
                    .await
            }
            Action::Create
            | Action::Update
            | Action::SnapshotCreate
            | Action::SnapshotRestore
            | Action::SnapshotDelete => Err(Error::Unsupported {
                what: format!("the action {action} by this call"),
                reason: "it has a call of its own".to_owned(),
            }),
        }
    }

    // What runs.

    /// What is of a resource now, as its backend says.
    ///
    /// # Errors
    /// [`Error::BackendUnavailable`] rather than a remembered answer.
    pub async fn status(&self, id: ResourceId) -> Result<ResourceStatus> {
        let record = self.visible(id).await?;
        self.core.status(&record).await
    }

    /// What the workload wrote. Dropping the stream ends it on the backend.
    ///
    /// # Errors
    /// [`Error::BackendUnavailable`].
    pub async fn logs(&self, id: ResourceId, query: LogQuery) -> Result<Stream<Result<LogLine>>> {
        let record = self.visible(id).await?;
        let slot = self.core.slot_of(&record)?.clone();
        let limit = self.core.settings.read_timeout;
        let lines = slot
            .call("logs", limit, slot.backend.logs(id, query))
            .await
            .map_err(|e| slot.error(e))?;
        Ok(Box::pin(futures_util::StreamExt::map(lines, move |line| {
            line.map_err(|e| slot.error(e))
        })))
    }

    /// What the workload uses now.
    ///
    /// # Errors
    /// [`Error::BackendUnavailable`]. What does not run has figures that are null.
    pub async fn metrics(&self, id: ResourceId) -> Result<ResourceMetrics> {
        let record = self.visible(id).await?;
        self.core.metrics(&record).await
    }

    /// Checks that the caller may open a console, and answers its password.
    ///
    /// # Errors
    /// [`Error::Unsupported`], [`Error::InvalidState`] for what is not up.
    pub async fn console(&self, id: ResourceId, kind: ConsoleKind) -> Result<ConsoleAccess> {
        let (slot, facet) = self.console_facet(id).await?;
        let limit = self.core.settings.read_timeout;
        let password = slot
            .call("console", limit, facet.password(id, kind))
            .await
            .map_err(|e| slot.error(e))?;
        Ok(ConsoleAccess { kind, password })
    }

    /// Connects to a console. Dropping the session ends it.
    ///
    /// # Errors
    /// As [`Scoped::console`].
    pub async fn open_console(&self, id: ResourceId, kind: ConsoleKind) -> Result<Session> {
        let (slot, facet) = self.console_facet(id).await?;
        let limit = self.core.settings.read_timeout;
        slot.call("open-console", limit, facet.open(id, kind))
            .await
            .map_err(|e| slot.error(e))
    }

    /// Runs a command to its end. A command that ends non-zero is no error.
    ///
    /// # Errors
    /// [`Error::Unsupported`], [`Error::InvalidState`] for what is not up, [`Error::Timeout`].
    pub async fn exec(&self, id: ResourceId, request: ExecRequest) -> Result<ExecOutput> {
        let (slot, facet) = self.exec_facet(id).await?;
        let given = request.timeout;
        // The backend kills the command at its own timeout; this only bounds a backend that does not.
        let limit = given + self.core.settings.read_timeout;
        slot.call("exec", limit, facet.run(id, request))
            .await
            .map_err(|error| match error.kind {
                crate::backend::BackendErrorKind::Timeout => Error::Timeout {
                    what: "the command".to_owned(),
                    limit: given,
                },
                _ => slot.error(error),
            })
    }

    /// Opens an interactive session. Dropping it ends the command.
    ///
    /// # Errors
    /// As [`Scoped::exec`].
    pub async fn open_exec(&self, id: ResourceId, request: ExecSession) -> Result<Session> {
        let (slot, facet) = self.exec_facet(id).await?;
        let limit = self.core.settings.read_timeout;
        slot.call("open-exec", limit, facet.open(id, request))
            .await
            .map_err(|e| slot.error(e))
    }

    // Snapshots.

    /// Takes a snapshot of a machine.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for what is no machine, [`Error::InvalidState`].
    pub async fn create_snapshot(
        &self,
        id: ResourceId,
        request: SnapshotRequest,
        options: RequestOptions,
    ) -> Result<Accepted> {
        let record = self.writable(id, "taking snapshots of it").await?;
        self.snapshots_of(&record)?;
        self.accepting()?;
        let snapshot = Snapshot {
            id: self.core.env.new_snapshot_id(),
            resource_id: id,
            name: request.name,
            description: request.description,
            created_at: self.core.env.now(),
            disk_size: None,
            state: SnapshotState::Creating,
            consistency: None,
            memory: request.memory,
        };
        let arguments = Arguments {
            snapshot: Some(snapshot.id),
            ..Arguments::default()
        };
        self.core
            .act(
                id,
                Action::SnapshotCreate,
                arguments,
                Some(snapshot),
                self.asking(&options),
            )
            .await
    }

    /// The snapshots of a machine, oldest first.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for what is no machine.
    pub async fn snapshots(&self, id: ResourceId) -> Result<Vec<Snapshot>> {
        let record = self.visible(id).await?;
        self.snapshots_of(&record)?;
        Ok(self.core.store.snapshots(id).await?)
    }

    /// Goes back to a snapshot; the machine ends in the snapshot's state.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::InvalidState`].
    pub async fn restore_snapshot(
        &self,
        id: ResourceId,
        snapshot: SnapshotId,
        options: RequestOptions,
    ) -> Result<Accepted> {
        self.on_snapshot(id, snapshot, Action::SnapshotRestore, options)
            .await
    }

    /// Removes a snapshot.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::InvalidState`].
    pub async fn delete_snapshot(
        &self,
        id: ResourceId,
        snapshot: SnapshotId,
        options: RequestOptions,
    ) -> Result<Accepted> {
        self.on_snapshot(id, snapshot, Action::SnapshotDelete, options)
            .await
    }

    async fn on_snapshot(
        &self,
        id: ResourceId,
        snapshot: SnapshotId,
        action: Action,
        options: RequestOptions,
    ) -> Result<Accepted> {
        let record = self.writable(id, action.as_str()).await?;
        self.snapshots_of(&record)?;
        self.accepting()?;
        let all = self.core.store.snapshots(id).await?;
        let found = all.into_iter().find(|s| s.id == snapshot);
        let found = found.ok_or_else(|| Error::NotFound {
            what: format!("snapshot {snapshot}"),
        })?;
        if action == Action::SnapshotRestore && found.state != SnapshotState::Ready {
            return Err(Error::InvalidState {
                action: action.as_str(),
                phase: record.phase,
                reason: "the snapshot is not ready; wait until it is",
            });
        }
        let arguments = Arguments {
            snapshot: Some(snapshot),
            ..Arguments::default()
        };
        self.core
            .act(id, action, arguments, Some(found), self.asking(&options))
            .await
    }

    // Operations, events, nodes.

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

    // Idempotency of requests that the store does not see.

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

    // Who may.

    fn asking<'a>(&'a self, options: &'a RequestOptions) -> Asking<'a> {
        Asking {
            principal: &self.principal,
            options,
        }
    }

    fn accepting(&self) -> Result<()> {
        if self.core.stopping.is_cancelled() {
            Err(Error::ShuttingDown)
        } else {
            Ok(())
        }
    }

    fn forbidden(&self, action: &str, needs: &str) -> Error {
        Error::Forbidden {
            action: action.to_owned(),
            reason: format!("it needs a role such as {needs}"),
        }
    }

    fn may_create(&self) -> Result<()> {
        if self.principal.may(Permission::Write, &self.principal.owner) {
            return Ok(());
        }
        Err(self.forbidden(
            "creating a resource",
            "member.editor, with the ids of that scope in the token",
        ))
    }

    fn view(&self, permission: Permission, action: &str) -> Result<Visibility> {
        let needs = if permission == Permission::Administer {
            "member.owner"
        } else {
            "member.viewer"
        };
        self.principal
            .visibility(permission)
            .ok_or_else(|| self.forbidden(action, needs))
    }

    /// A resource that the caller may see; of a deleted one there is nothing to see.
    async fn visible(&self, id: ResourceId) -> Result<Record> {
        self.view(Permission::Read, "seeing resources")?;
        match self.core.store.record(id).await? {
            Some(record)
                if record.phase != Phase::Deleted && self.principal.may(Permission::Read, &record.owner) =>
            {
                Ok(record)
            }
            _ => Err(Error::resource_not_found(id)),
        }
    }

    async fn writable(&self, id: ResourceId, action: &str) -> Result<Record> {
        let record = self.visible(id).await?;
        self.require(&record, Permission::Write, action)?;
        Ok(record)
    }

    fn require(&self, record: &Record, permission: Permission, action: &str) -> Result<()> {
        if self.principal.may(permission, &record.owner) {
            return Ok(());
        }
        if !self.principal.may(Permission::Read, &record.owner) {
            return Err(Error::resource_not_found(record.id));
        }
        let needs = if permission == Permission::Administer {
            "member.owner"
        } else {
            "member.editor"
        };
        Err(self.forbidden(action, needs))
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

    async fn up(&self, id: ResourceId, what: &str, doing: &'static str) -> Result<(Record, Arc<Slot>)> {
        let record = self.writable(id, what).await?;
        let slot = self.core.slot_of(&record)?.clone();
        match record.phase {
            Phase::Running | Phase::Error | Phase::Deploying | Phase::Restarting | Phase::Stopping => {
                Ok((record, slot))
            }
            Phase::Queued | Phase::Stopped | Phase::Failed | Phase::Deleting | Phase::Deleted => {
                Err(Error::InvalidState {
                    action: doing,
                    phase: record.phase,
                    reason: "it does not run; start it first",
                })
            }
        }
    }

    async fn exec_facet(&self, id: ResourceId) -> Result<(Arc<Slot>, Arc<dyn crate::backend::Exec>)> {
        let (record, slot) = self.up(id, "running commands in it", "run commands in").await?;
        let facet = slot.backend.facets().exec;
        let facet = facet.ok_or_else(|| unsupported("commands", &record))?;
        Ok((slot, facet))
    }

    async fn console_facet(&self, id: ResourceId) -> Result<(Arc<Slot>, Arc<dyn crate::backend::Console>)> {
        let record = self.writable(id, "opening its console").await?;
        let facet = self.core.slot_of(&record)?.backend.facets().console;
        let facet = facet.ok_or_else(|| unsupported("a console", &record))?;
        let (_, slot) = self.up(id, "opening its console", "open the console of").await?;
        Ok((slot, facet))
    }

    fn snapshots_of(&self, record: &Record) -> Result<()> {
        let facet = self.core.slot_of(record)?.backend.facets().snapshots;
        facet.map(|_| ()).ok_or_else(|| unsupported("snapshots", record))
    }
}

fn unsupported(what: &str, record: &Record) -> Error {
    Error::Unsupported {
        what: format!("{what} for {}", record.config.resource_type()),
        reason: format!("backend {} does not offer it", record.backend),
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
                    super::draft::end(found, OperationStatus::Cancelled, now);
                    found.progress.message = "cancelled before it began".to_owned();
                } else if found.action.is_cancellable() {
                    found.cancel_requested = true;
                } else {
                    let violation =
                        Violation::new("", format!("{} cannot be given up half-way", found.action));
                    return Err(Error::Unsupported {
                        what: "cancelling".to_owned(),
                        reason: violation.message,
                    });
                }
                let cancelled_create = found.action == Action::Create && found.status.is_final();
                if cancelled_create {
                    let holder = draft.record.id;
                    self.release_running(&mut draft.tx, holder);
                    draft.record.desired = crate::lifecycle::Desired::Stopped;
                }
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
