//! What a backend says of itself and of its workloads.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::ResourceId;
use crate::ledger::Capacity;
use crate::refusal::Violation;
use crate::resource::{Record, Runtime};
use crate::units::Timestamp;

/// Whether a backend answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum BackendState {
    /// It answers.
    Ready,
    /// It does not answer.
    Away,
    /// It was not asked yet.
    Unknown,
}

/// What a backend says of itself and its node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BackendReport {
    /// Its version.
    pub version: String,
    /// What the node has.
    pub capacity: Capacity,
    /// Changes when the workloads went down with the daemon or the host, so that what should run is
    /// started again; none where that cannot be told.
    pub epoch: Option<String>,
    /// Whether it simulates.
    pub simulated: bool,
}

/// What only the node knows of a planned workload.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CheckReport {
    /// What stands against it, with field paths that begin with `config.`.
    pub violations: Vec<Violation>,
    /// Host paths of the config, and what they are after links are resolved.
    pub resolved_paths: BTreeMap<String, String>,
}

/// What is of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// The resource whose id it carries.
    pub id: ResourceId,
    /// Container id or domain UUID.
    pub runtime_id: String,
    /// What it is doing.
    pub state: ObservedState,
    /// When it came up last.
    pub started_at: Option<Timestamp>,
    /// When it ended last.
    pub ended_at: Option<Timestamp>,
    /// Where it answers, `host:port`.
    pub endpoint: Option<String>,
    /// The generation that it was made from.
    pub generation: Option<u64>,
}

impl Observed {
    /// What runs for `record`, as it was seen.
    pub fn runtime(&self, record: &Record) -> Runtime {
        Runtime {
            id: self.runtime_id.clone(),
            endpoint: self.endpoint.clone(),
            allocated_gpu: record.allocation.grants.iter().map(|g| g.uuid.clone()).collect(),
            allocated_cpu: record.config.cpu().unwrap_or_default(),
            allocated_ram: record.config.ram().unwrap_or_default(),
            started_at: self.started_at,
            stopped_at: self.ended_at,
        }
    }
}

/// What a workload is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ObservedState {
    /// Made and not running, and it has not run since.
    Created,
    /// Running.
    Running,
    /// It ended, by itself or because it was told to.
    Ended {
        /// Exit code; none where there is none, as for a machine that was shut down or crashed.
        exit_code: Option<i64>,
        /// Why, where it did not end well: its last words, a crash, no memory left.
        cause: Option<String>,
    },
}

impl ObservedState {
    /// Whether it ended well: exit code zero, or without code and without cause.
    pub fn ended_clean(&self) -> bool {
        matches!(
            self,
            Self::Ended {
                exit_code: Some(0),
                ..
            } | Self::Ended {
                exit_code: None,
                cause: None
            }
        )
    }
}

/// A hint that a workload changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendEvent {
    /// The resource whose id it carries.
    pub id: ResourceId,
}
