//! Bodies of requests.

use std::collections::BTreeMap;

use hwm_core::config::{Config, ResourceType};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::tickets::TicketPurpose;

/// A resource to make.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewResource {
    /// A label; need not be unique.
    #[schema(min_length = 1, max_length = 100)]
    pub name: String,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 500)]
    pub description: Option<String>,
    /// The kind of workload; `config.type` is the same.
    pub resource_type: ResourceType,
    /// Where it is to run; may be left out where there is one node.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 253)]
    pub node_id: Option<String>,
    /// What is wanted.
    pub config: Config,
    /// Free for the client.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Whether it deploys by itself; true when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_start: Option<bool>,
}

/// A change (RFC 7396): objects merge, arrays replace, null removes. What cannot be changed may be sent as it
/// reads back.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResourceChange {
    /// A label.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 100, nullable = false)]
    pub name: Option<String>,
    /// For people; null removes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 500)]
    pub description: Option<String>,
    /// Free for the client; a null removes an entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, Option<String>>>,
    /// Fields of the config; `***` keeps a stored secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>, nullable = false)]
    pub config: Option<Value>,
    /// The state that is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub status: Option<DesiredStatus>,
}

/// A state that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DesiredStatus {
    /// It runs.
    Running,
    /// It does not run.
    Stopped,
}

/// How something is brought down.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StopOptions {
    /// At once, without asking it to end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force: Option<bool>,
    /// Seconds that it may take to end when asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 3600)]
    pub timeout_seconds: Option<u32>,
}

/// A snapshot to take.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewSnapshot {
    /// A label, on one line.
    #[schema(
        min_length = 1,
        max_length = 100,
        pattern = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f\u2028\u2029]*$"
    )]
    pub name: String,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 500, pattern = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]*$")]
    pub description: Option<String>,
    /// Whether memory is kept too; when absent, if it runs and the host can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<bool>,
}

/// A command to run to its end.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Command {
    /// For `/bin/sh -c`.
    #[schema(min_length = 1, pattern = r"^[^\x00]*$")]
    pub command: String,
    /// Where to run it; the container's default when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 4095, pattern = r"^/[^\x00]*$")]
    pub working_dir: Option<String>,
    /// Seconds that it may take before it is killed; 60 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 3600)]
    pub timeout_seconds: Option<u64>,
}

/// A ticket to make.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTicket {
    /// What it is to open.
    #[serde(rename = "for")]
    pub purpose: TicketPurpose,
}
