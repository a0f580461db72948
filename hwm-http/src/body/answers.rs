//! Bodies of answers.

use hwm_core::backend::{ConsoleKind, LogLine};
use hwm_core::config::ResourceType;
use hwm_core::id::{OperationId, ResourceId, SnapshotId};
use hwm_core::lifecycle::Status;
use hwm_core::node::{Node, NodeBackend};
use hwm_core::operation::Operation;
use hwm_core::resource::Resource;
use hwm_core::snapshot::Snapshot;
use hwm_core::store::Counts;
use hwm_core::units::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A page of resources.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResourceList {
    /// The resources.
    pub data: Vec<Resource>,
    /// Which page this is.
    pub pagination: Pagination,
    /// Counts over all that the filters select, not this page alone.
    pub statistics: Statistics,
}

/// Which page of how many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pagination {
    /// The page, from 1.
    pub page: u64,
    /// How many a page holds.
    pub limit: u32,
    /// How many there are in all.
    pub total: u64,
    /// How many pages there are.
    pub total_pages: u64,
    /// What to give as `cursor` for the next page, at a cost that does not grow with depth.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

impl Pagination {
    /// The page of a list without cursors.
    pub fn new(page: u64, limit: u32, total: u64) -> Self {
        Self {
            page,
            limit,
            total,
            total_pages: total.div_ceil(u64::from(limit.max(1))),
            next_cursor: None,
        }
    }
}

/// Counts by status and type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Statistics {
    /// All.
    pub total: u64,
    /// By status.
    pub by_status: StatusCounts,
    /// By type.
    pub by_type: TypeCounts,
}

/// How many are in each status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct StatusCounts {
    pub queued: u64,
    pub deploying: u64,
    pub running: u64,
    pub stopping: u64,
    pub stopped: u64,
    pub failed: u64,
    pub error: u64,
}

/// How many there are of each type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct TypeCounts {
    pub virtual_machine: u64,
    pub application_container: u64,
    pub inference_container: u64,
}

impl Statistics {
    /// The counts of a list of so many.
    pub fn new(total: u64, counts: &Counts) -> Self {
        let status = |status: Status| counts.by_status.get(&status).copied().unwrap_or(0);
        let kind = |kind: ResourceType| counts.by_type.get(&kind).copied().unwrap_or(0);
        Self {
            total,
            by_status: StatusCounts {
                queued: status(Status::Queued),
                deploying: status(Status::Deploying),
                running: status(Status::Running),
                stopping: status(Status::Stopping),
                stopped: status(Status::Stopped),
                failed: status(Status::Failed),
                error: status(Status::Error),
            },
            by_type: TypeCounts {
                virtual_machine: kind(ResourceType::VirtualMachine),
                application_container: kind(ResourceType::ApplicationContainer),
                inference_container: kind(ResourceType::InferenceContainer),
            },
        }
    }
}

/// A removal that was accepted.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeletedAnswer {
    /// The resource.
    #[serde(rename = "_id")]
    pub id: ResourceId,
    /// When its removal was accepted.
    pub deleted_at: Timestamp,
    /// What removes it; null where nothing was left to do.
    #[schema(required = true)]
    pub operation_id: Option<OperationId>,
}

/// An action that was accepted.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ActionAnswer {
    /// True.
    pub success: bool,
    /// For people.
    pub message: String,
    /// The resource.
    pub resource_id: ResourceId,
    /// What was asked for.
    pub action: ActionWord,
    /// When it was accepted.
    pub timestamp: Timestamp,
    /// What carries it out; null where it was so already.
    #[schema(required = true)]
    pub operation_id: Option<OperationId>,
}

/// An action that a client asks for by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ActionWord {
    /// Bring up.
    Start,
    /// Bring down.
    Stop,
    /// Bring down and up.
    Restart,
}

/// Lines of a log.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LogList {
    /// The resource.
    pub resource_id: ResourceId,
    /// The lines, oldest first.
    pub logs: Vec<LogLine>,
}

/// An event of a stream (`text/event-stream`).
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StreamEvent {
    /// What the data is: `log`, `end` or `error` of a log; the type of an Event, or `reset`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub event: String,
    /// Where the stream is; to be sent back as Last-Event-ID.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// JSON: a LogLine of a log, an Event of the node.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(content_media_type = "application/json")]
    pub data: String,
    /// Milliseconds to wait before connecting again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub retry: Option<u64>,
}

/// The data of the last event of a log stream.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LogStreamEnd {
    /// Why it ended.
    pub reason: String,
}

/// A machine's console.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConsoleAnswer {
    /// The resource.
    pub resource_id: ResourceId,
    /// Which console.
    #[serde(rename = "type")]
    pub kind: ConsoleKind,
    /// Where the WebSocket is. It holds a ticket: good once, within a minute.
    pub url: String,
    /// The password of the screen; null where there is none.
    #[schema(required = true)]
    pub password: Option<String>,
    /// Until when the ticket is good.
    pub expires_at: Timestamp,
}

impl std::fmt::Debug for ConsoleAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsoleAnswer")
            .field("resource_id", &self.resource_id)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// A snapshot that is being taken.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SnapshotAnswer {
    /// True.
    pub success: bool,
    /// The snapshot.
    pub snapshot: Snapshot,
    /// What takes it.
    #[schema(required = true)]
    pub operation_id: Option<OperationId>,
}

/// The snapshots of a machine.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SnapshotList {
    /// The machine.
    pub resource_id: ResourceId,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<Snapshot>,
}

/// A restore or removal of a snapshot that was accepted.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SnapshotChanged {
    /// True.
    pub success: bool,
    /// For people.
    pub message: String,
    /// The machine.
    pub resource_id: ResourceId,
    /// The snapshot.
    pub snapshot_id: SnapshotId,
    /// When it was accepted.
    pub timestamp: Timestamp,
    /// What carries it out.
    #[schema(required = true)]
    pub operation_id: Option<OperationId>,
}

/// What a command did.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CommandOutput {
    /// The container.
    pub resource_id: ResourceId,
    /// The command.
    pub command: String,
    /// Where it ran; null for the container's default.
    #[schema(required = true)]
    pub working_dir: Option<String>,
    /// Both outputs in the order in which they came.
    pub output: String,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Exit code.
    pub exit_code: i64,
    /// Whether output was cut at the limit.
    pub truncated: bool,
    /// When it had ended.
    pub timestamp: Timestamp,
}

/// A ticket.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TicketAnswer {
    /// What to give as `?ticket=`; good once.
    pub ticket: String,
    /// Until when.
    pub expires_at: Timestamp,
}

impl std::fmt::Debug for TicketAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TicketAnswer")
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// A page of operations, newest first.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OperationList {
    /// The operations.
    pub data: Vec<Operation>,
    /// Which page this is.
    pub pagination: Pagination,
}

/// The nodes.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeList {
    /// The nodes.
    pub data: Vec<Node>,
}

/// That the server lives.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HealthAnswer {
    /// `ok`.
    pub status: Answered,
    /// The server's version.
    pub version: String,
    /// Now.
    pub timestamp: Timestamp,
}

/// The one word of a server that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Answered {
    /// It answers.
    Ok,
}

/// That the server can serve.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReadyAnswer {
    /// `ready`.
    pub status: ReadyWord,
    /// The backends.
    pub backends: Vec<NodeBackend>,
    /// Now.
    pub timestamp: Timestamp,
}

/// The one word of a server that can serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReadyWord {
    /// Everything that it needs answers.
    Ready,
}
