//! The manager: the one handle through which everything happens.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::access::Principal;
use crate::backend::{
    BackendState, ConsoleKind, ExecOutput, ExecRequest, ExecSession, LogLine, LogQuery, Session, Stream,
};
use crate::error::Error;
use crate::event::Event;
use crate::id::{GpuUuid, NodeId, OperationId, ResourceId, SnapshotId};
use crate::lifecycle::{Action, Status};
use crate::metrics::ResourceMetrics;
use crate::node::{Node, NodeBackend};
use crate::operation::{Arguments, Operation};
use crate::resource::{Resource, Runtime};
use crate::secret::Secret;
use crate::snapshot::{Snapshot, SnapshotRequest};
use crate::store::{Counts, Cursor, ListQuery};
use crate::units::Timestamp;
use crate::validate::CreateRequest;

/// What a call to the manager answers.
pub type Result<T> = std::result::Result<T, Error>;

/// What may come with a request that changes something.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestOptions {
    /// The revision that the resource must have (If-Match).
    pub if_match: Option<u64>,
    /// A key under which the same request has one effect.
    pub idempotency: Option<Idempotency>,
}

/// A key under which the same request has one effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// The caller's key; it is kept apart from other callers' keys.
    pub key: String,
    /// A digest of method, path and body.
    pub fingerprint: String,
}

/// A request that was accepted and committed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Accepted {
    /// The resource as it then was.
    pub resource: Resource,
    /// Its revision.
    pub revision: u64,
    /// The operation that carries it out; none where nothing needs doing.
    pub operation: Option<OperationId>,
    /// The snapshot, for requests about one.
    pub snapshot: Option<Snapshot>,
    /// When it was accepted.
    pub time: Timestamp,
}

/// A resource and its revision.
#[derive(Debug, Clone, PartialEq)]
pub struct Versioned {
    /// The resource.
    pub resource: Resource,
    /// Moves with every accepted change and every change of status.
    pub revision: u64,
}

/// A page of resources.
#[derive(Debug, Clone, PartialEq)]
pub struct ResourcePage {
    /// The resources.
    pub resources: Vec<Resource>,
    /// How many the query selects in all.
    pub total: u64,
    /// The counts over all of them.
    pub counts: Counts,
    /// Where the next page begins.
    pub next: Option<Cursor>,
}

/// What a create would do (dry run).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PlanReport {
    /// Where it would run.
    pub node_id: NodeId,
    /// The config with every default filled in.
    pub config: crate::config::Config,
    /// What it would claim, in words.
    pub claims: Vec<String>,
    /// The ports of the node that would lead to it, `host → container/protocol`.
    pub ports: Vec<String>,
    /// The places on GPUs that it would get, in words.
    pub gpus: Vec<String>,
    /// The steps that would be taken.
    pub steps: Vec<crate::operation::Step>,
}

/// What is of a resource now, as the backend says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ResourceStatus {
    /// The resource.
    pub resource_id: ResourceId,
    /// The state.
    pub status: Status,
    /// What runs.
    pub runtime: Option<Runtime>,
    /// `healthy`, `unhealthy`, `starting`, or `unknown` where nothing is checked.
    pub health: Health,
    /// When its health was looked at last.
    pub last_health_check: Option<Timestamp>,
    /// How long it has been up; null when it is not.
    pub uptime_seconds: Option<u64>,
    /// Why it is failed or in error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
}

/// Whether a workload is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Health {
    /// Its health check answers.
    Healthy,
    /// Its health check does not answer.
    Unhealthy,
    /// It is coming up.
    Starting,
    /// Nothing is checked.
    Unknown,
}

/// Which events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// About this resource.
    pub resource: Option<ResourceId>,
    /// About resources of this type.
    pub resource_type: Option<crate::config::ResourceType>,
}

/// What an event stream brings.
#[derive(Debug, Clone, PartialEq)]
pub enum EventItem {
    /// Events were missed: list again. Carries the newest number.
    Reset(u64),
    /// An event.
    Event(Event),
}

/// Whether the manager can serve.
#[derive(Debug, Clone, PartialEq)]
pub struct Readiness {
    /// Whether the store answers and every backend is ready.
    pub ready: bool,
    /// The backends.
    pub backends: Vec<NodeBackend>,
}

/// How a machine's console is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleAccess {
    /// Which one.
    pub kind: ConsoleKind,
    /// The screen's password.
    pub password: Option<Secret>,
}

/// A cheap handle to the manager; clones are the same manager.
#[derive(Clone)]
pub struct Manager {}

impl Manager {
    /// The same manager, seen and used as `principal` may.
    pub fn as_principal(&self, principal: Principal) -> Scoped {
        Scoped {
            manager: self.clone(),
            principal,
        }
    }
    /// The node's id.
    pub fn node_id(&self) -> &NodeId {
        unimplemented!()
    }
    /// Whether it can serve.
    pub async fn readiness(&self) -> Readiness {
        let _ = BackendState::Ready;
        unimplemented!()
    }
    /// Stops accepting, checkpoints what runs, and returns within `limit`. Workloads go on.
    pub async fn shutdown(&self, _limit: Duration) {
        unimplemented!()
    }
    /// Counters since the manager was built, for metrics.
    pub fn counters(&self) -> Counters {
        unimplemented!()
    }
    /// What of each pool is claimed, and how many claims of each kind there are.
    pub async fn claim_counts(&self) -> Result<Vec<(String, u64)>> {
        unimplemented!()
    }
}

/// Counters since the manager was built.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Operations that ended, by action and final status.
    pub operations: Vec<((Action, crate::operation::OperationStatus), u64)>,
    /// Calls to backends, by backend, method and whether they succeeded, with their total time in microseconds.
    pub backend_calls: Vec<((String, &'static str, bool), u64, u64)>,
    /// Commits to the store that succeeded.
    pub store_commits: u64,
    /// Operations that run at present.
    pub running: u64,
}

/// The manager as one caller may use it. What the caller may not see does not exist.
#[derive(Clone)]
pub struct Scoped {
    #[allow(dead_code)]
    manager: Manager,
    #[allow(dead_code)]
    principal: Principal,
}

#[allow(unused_variables, missing_docs)]
impl Scoped {
    pub async fn create(&self, request: CreateRequest, options: RequestOptions) -> Result<Accepted> {
        unimplemented!()
    }
    pub async fn plan(&self, request: CreateRequest) -> Result<PlanReport> {
        unimplemented!()
    }
    pub async fn get(&self, id: ResourceId, include_deleted: bool) -> Result<Versioned> {
        unimplemented!()
    }
    /// `query.visibility` is replaced by the caller's own.
    pub async fn list(&self, query: ListQuery) -> Result<ResourcePage> {
        unimplemented!()
    }
    /// A merge patch (RFC 7396) over name, description, metadata, config, or `status`.
    pub async fn update(&self, id: ResourceId, patch: Value, options: RequestOptions) -> Result<Accepted> {
        unimplemented!()
    }
    pub async fn delete(&self, id: ResourceId, options: RequestOptions) -> Result<Accepted> {
        unimplemented!()
    }
    /// Start, stop or restart.
    pub async fn act(
        &self,
        id: ResourceId,
        action: Action,
        arguments: Arguments,
        options: RequestOptions,
    ) -> Result<Accepted> {
        unimplemented!()
    }
    pub async fn status(&self, id: ResourceId) -> Result<ResourceStatus> {
        unimplemented!()
    }
    pub async fn logs(&self, id: ResourceId, query: LogQuery) -> Result<Stream<Result<LogLine>>> {
        unimplemented!()
    }
    pub async fn metrics(&self, id: ResourceId) -> Result<ResourceMetrics> {
        unimplemented!()
    }
    /// Checks that the caller may open it and that it is up.
    pub async fn console(&self, id: ResourceId, kind: ConsoleKind) -> Result<ConsoleAccess> {
        unimplemented!()
    }
    pub async fn open_console(&self, id: ResourceId, kind: ConsoleKind) -> Result<Session> {
        unimplemented!()
    }
    pub async fn exec(&self, id: ResourceId, request: ExecRequest) -> Result<ExecOutput> {
        unimplemented!()
    }
    pub async fn open_exec(&self, id: ResourceId, request: ExecSession) -> Result<Session> {
        unimplemented!()
    }
    pub async fn create_snapshot(
        &self,
        id: ResourceId,
        request: SnapshotRequest,
        options: RequestOptions,
    ) -> Result<Accepted> {
        unimplemented!()
    }
    pub async fn snapshots(&self, id: ResourceId) -> Result<Vec<Snapshot>> {
        unimplemented!()
    }
    pub async fn restore_snapshot(
        &self,
        id: ResourceId,
        snapshot: SnapshotId,
        options: RequestOptions,
    ) -> Result<Accepted> {
        unimplemented!()
    }
    pub async fn delete_snapshot(
        &self,
        id: ResourceId,
        snapshot: SnapshotId,
        options: RequestOptions,
    ) -> Result<Accepted> {
        unimplemented!()
    }
    pub async fn operation(&self, id: OperationId) -> Result<Operation> {
        unimplemented!()
    }
    pub async fn operations(
        &self,
        resource: Option<ResourceId>,
        offset: u64,
        limit: u32,
    ) -> Result<(Vec<Operation>, u64)> {
        unimplemented!()
    }
    pub async fn cancel(&self, id: OperationId) -> Result<Operation> {
        unimplemented!()
    }
    /// Waits until the operation has ended or `limit` is over, and answers it as it then is.
    pub async fn wait(&self, id: OperationId, limit: Duration) -> Result<Operation> {
        unimplemented!()
    }
    /// Events after `after` (all that is kept when 0, only new ones when none). Ends at shutdown.
    pub async fn events(&self, filter: EventFilter, after: Option<u64>) -> Result<Stream<EventItem>> {
        unimplemented!()
    }
    pub async fn nodes(&self) -> Result<Vec<Node>> {
        unimplemented!()
    }
    pub async fn node(&self, id: &NodeId) -> Result<Node> {
        unimplemented!()
    }
    pub async fn recover_gpu(&self, node: &NodeId, gpu: &GpuUuid) -> Result<Node> {
        unimplemented!()
    }
    /// The answer remembered for this caller and key; an error when the fingerprint differs.
    pub async fn recall(&self, idempotency: &Idempotency) -> Result<Option<Value>> {
        unimplemented!()
    }
    /// Remembers an answer that no commit of the manager's own remembers (exec, tickets).
    pub async fn remember(&self, idempotency: Idempotency, answer: Value) -> Result<()> {
        unimplemented!()
    }
}
