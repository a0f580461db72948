//! The contract between the manager and what runs workloads.
//!
//! # What a backend promises
//!
//! * **Identity.** Everything it makes carries the resource's id and the manager's owner label, so that
//!   [`Backend::owned`] finds it again after any crash. It never touches what does not carry both.
//! * **Idempotence.** Every method that changes something may be called again with the same arguments, at
//!   any time, also after a call whose outcome is unknown, and ends in the same state. Making what exists,
//!   stopping what is stopped and removing what is gone succeed.
//! * **Cancellation.** Any future may be dropped at any await. What was begun then may or may not happen;
//!   the manager calls again, or undoes.
//! * **Fencing.** A call with an older [`Call::generation`] than one already seen for that resource fails
//!   with [`BackendErrorKind::Superseded`] and changes nothing, so a late create cannot outlive its delete.
//! * **Truth.** [`Backend::inspect`] reports what is, not what was asked for. Gone is proved gone.
//! * **Errors.** [`BackendErrorKind`] says whether trying again can help. No secret is in an error.
//!
//! # What the manager promises
//!
//! At most one changing call per resource at a time. Every call has a deadline, after which its future is
//! dropped. `create` precedes `start`; `remove` may come at any time.
//!
//! Everything here serialises, so a backend on another node is just another `Backend`.

mod call;
mod error;
mod log;
mod observed;
mod session;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::config::{Config, HealthCheck, ResourceType};
use crate::id::{BackendName, ResourceId, SnapshotId};
use crate::metrics::Metrics;
use crate::secret::Secret;
use crate::snapshot::Consistency;
use crate::units::Bytes;

pub use call::{Call, ProgressSink, StopOptions, Workload};
pub use error::{BackendError, BackendErrorKind};
pub use log::{LogLevel, LogLine, LogQuery, LogStream};
pub use observed::{BackendEvent, BackendReport, BackendState, CheckReport, Observed, ObservedState};
pub use session::{
    ConsoleKind, ExecOutput, ExecRequest, ExecSession, Input, Output, Session, SessionPeer, TerminalSize,
};

/// A stream of items that owns what it needs. Dropping it ends what feeds it.
pub type Stream<T> = Pin<Box<dyn futures_util::Stream<Item = T> + Send>>;

/// What a backend's method answers.
pub type Result<T, E = BackendError> = std::result::Result<T, E>;

/// Runs workloads of one or more types. See the [module's contract](self).
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// What this is. Fixed for the backend's life.
    fn info(&self) -> BackendInfo;

    /// What it can do beyond the methods here, at present.
    fn facets(&self) -> Facets {
        Facets::default()
    }

    /// Asks whether it answers, and what the node has. Cheap; called every few seconds.
    async fn probe(&self) -> Result<BackendReport>;

    /// Looks at what only the node knows of a planned workload: links in a path, a foreign process on a
    /// port, whether it has what the config needs. Changes nothing.
    async fn check(&self, planned: &Workload) -> Result<CheckReport>;

    /// Makes the workload without starting it: image, disks, container or domain. What an earlier call
    /// left half-made is completed; what exists with another config is left for [`Backend::start`].
    async fn create(&self, call: &Call, workload: &Workload) -> Result<()>;

    /// Brings the workload up, with `workload` as it is now: ports and grants may have changed since
    /// `create`, and a config that changed is applied first, keeping the workload's disks.
    async fn start(&self, call: &Call, workload: &Workload) -> Result<()>;

    /// Brings the workload down. What does not exist is down.
    async fn stop(&self, call: &Call, id: ResourceId, options: StopOptions) -> Result<()>;

    /// Removes everything of the workload, and returns when it is proved gone. What a bind mount holds on
    /// the host stays.
    async fn remove(&self, call: &Call, id: ResourceId) -> Result<()>;

    /// What is of these workloads now. One that is not in the answer does not exist.
    async fn inspect(&self, ids: &[ResourceId]) -> Result<Vec<Observed>>;

    /// Everything that carries our owner label, known to the manager or not.
    async fn owned(&self) -> Result<Vec<Observed>>;

    /// Hints that a workload changed by itself; the manager then inspects it. The stream ends when the
    /// connection is lost; what happened in between is found by [`Backend::owned`].
    async fn events(&self) -> Result<Stream<BackendEvent>>;

    /// What the workload wrote. A workload that does not exist has no lines.
    async fn logs(&self, id: ResourceId, query: LogQuery) -> Result<Stream<Result<LogLine>>>;

    /// What these workloads use, in one pass. One that does not run is left out.
    async fn metrics(&self, ids: &[ResourceId]) -> Result<Vec<(ResourceId, Metrics)>>;
}

/// What a backend is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendInfo {
    /// Its name on the node, for example `docker`.
    pub name: BackendName,
    /// What it runs.
    pub types: Vec<ResourceType>,
}

/// What a backend can do beyond [`Backend`]'s methods. A facet may come and go, as a guest agent does.
#[derive(Clone, Default)]
pub struct Facets {
    /// Commands inside a workload.
    pub exec: Option<Arc<dyn Exec>>,
    /// Screens and serial consoles.
    pub console: Option<Arc<dyn Console>>,
    /// Snapshots.
    pub snapshots: Option<Arc<dyn Snapshots>>,
    /// Changes to what runs.
    pub live_update: Option<Arc<dyn LiveUpdate>>,
    /// Health checks over the workload's own network.
    pub health: Option<Arc<dyn Health>>,
}

impl fmt::Debug for Facets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Facets")
            .field("exec", &self.exec.is_some())
            .field("console", &self.console.is_some())
            .field("snapshots", &self.snapshots.is_some())
            .field("live_update", &self.live_update.is_some())
            .field("health", &self.health.is_some())
            .finish()
    }
}

/// Runs commands inside a workload that is up; in what is not, they fail with [`BackendErrorKind::NotRunning`].
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait Exec: Send + Sync + 'static {
    /// Runs `/bin/sh -c command` to its end. A command that outlives its timeout is killed, and the call
    /// fails with [`BackendErrorKind::Timeout`]. Output beyond the limit is cut and said to be.
    async fn run(&self, id: ResourceId, request: ExecRequest) -> Result<ExecOutput>;

    /// Opens an interactive session.
    async fn open(&self, id: ResourceId, request: ExecSession) -> Result<Session>;
}

/// Opens the screen or the serial console of a machine. One that is not up has neither:
/// [`BackendErrorKind::NotRunning`].
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait Console: Send + Sync + 'static {
    /// The password that the screen asks for, where it has one; another at each start of the machine.
    async fn password(&self, id: ResourceId, kind: ConsoleKind) -> Result<Option<Secret>>;

    /// Connects: raw RFB bytes for VNC, terminal bytes for serial. A serial session starts with the
    /// scrollback.
    async fn open(&self, id: ResourceId, kind: ConsoleKind) -> Result<Session>;
}

/// Takes, restores and removes snapshots.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait Snapshots: Send + Sync + 'static {
    /// Takes a snapshot, or completes one that was begun.
    async fn create(&self, call: &Call, workload: &Workload, spec: &SnapshotSpec) -> Result<SnapshotReport>;

    /// Goes back to a snapshot; the machine ends in the snapshot's state. Answers whether it then runs.
    async fn restore(&self, call: &Call, workload: &Workload, snapshot: SnapshotId) -> Result<bool>;

    /// Removes a snapshot. One that is gone succeeds.
    async fn delete(&self, call: &Call, id: ResourceId, snapshot: SnapshotId) -> Result<()>;

    /// The snapshots that there are.
    async fn list(&self, id: ResourceId) -> Result<Vec<SnapshotId>>;
}

/// Changes a workload while it runs.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait LiveUpdate: Send + Sync + 'static {
    /// Whether the change from one config to the other can be made while it runs. Pure.
    fn is_live(&self, from: &Config, to: &Config) -> bool;

    /// Makes the change.
    async fn update(&self, call: &Call, workload: &Workload) -> Result<()>;
}

/// Asks a workload whether it is healthy.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait Health: Send + Sync + 'static {
    /// Makes one request. An answer other than 2xx, or none, is unhealthy, not an error.
    async fn check(&self, id: ResourceId, check: &HealthCheck) -> Result<HealthReport>;
}

/// A snapshot to take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotSpec {
    /// Its id.
    pub id: SnapshotId,
    /// Its label.
    pub name: String,
    /// Whether memory is wanted; as the host can when absent.
    pub memory: Option<bool>,
}

/// A snapshot that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotReport {
    /// What it takes on disk, where that can be told.
    pub disk_size: Option<Bytes>,
    /// What it reached.
    pub consistency: Consistency,
}

/// What a health check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthReport {
    /// Whether it answered 2xx.
    pub healthy: bool,
    /// What it answered, or why it did not.
    pub detail: String,
}
