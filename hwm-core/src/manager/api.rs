//! What the manager is asked and what it answers.

use serde::{Deserialize, Serialize};

use crate::backend::ConsoleKind;
use crate::event::Event;
use crate::id::{NodeId, OperationId, ResourceId};
use crate::lifecycle::{Action, Status};
use crate::node::NodeBackend;
use crate::operation::OperationStatus;
use crate::resource::{Resource, Runtime};
use crate::secret::Secret;
use crate::snapshot::Snapshot;
use crate::store::{Counts, Cursor};
use crate::units::Timestamp;

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

/// Counters since the manager was built.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Operations that ended, by action and final status.
    pub operations: Vec<((Action, OperationStatus), u64)>,
    /// Calls to backends, by backend, method and whether they succeeded, with their total time in microseconds.
    pub backend_calls: Vec<((String, &'static str, bool), u64, u64)>,
    /// Commits to the store that succeeded.
    pub store_commits: u64,
    /// Operations that run at present.
    pub running: u64,
}
