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

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::config::{Config, HealthCheck, ResourceType};
use crate::device::DeviceGrant;
use crate::id::{BackendName, OperationId, ResourceId, SnapshotId};
use crate::ledger::{Capacity, PortBinding};
use crate::metrics::Metrics;
use crate::refusal::Violation;
use crate::resource::{Record, Runtime};
use crate::secret::Secret;
use crate::snapshot::Consistency;
use crate::units::{Bytes, Timestamp};

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

/// What comes with every call that changes something.
#[derive(Clone)]
pub struct Call {
    /// The operation that it is part of; none for repairs.
    pub operation: Option<OperationId>,
    /// The resource's generation; older ones are refused.
    pub generation: u64,
    /// How long it may take. The manager drops the future after that.
    pub timeout: Duration,
    /// Where to say how far it is.
    pub progress: ProgressSink,
}

impl Call {
    /// A call outside any operation.
    pub fn new(generation: u64, timeout: Duration) -> Self {
        Self {
            operation: None,
            generation,
            timeout,
            progress: ProgressSink::default(),
        }
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("operation", &self.operation)
            .field("generation", &self.generation)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

type TakeProgress = dyn Fn(String, Option<u8>) + Send + Sync;

/// Takes reports of how far a call is. Never blocks; reports may be dropped.
#[derive(Clone, Default)]
pub struct ProgressSink(Option<Arc<TakeProgress>>);

impl ProgressSink {
    /// Hands every report to `take`.
    pub fn new(take: impl Fn(String, Option<u8>) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(take)))
    }

    /// Reports: for people, and in percent of the call where that can be told.
    pub fn report(&self, message: impl Into<String>, percent: Option<u8>) {
        if let Some(take) = &self.0 {
            take(message.into(), percent.map(|p| p.min(100)));
        }
    }
}

/// A workload as a backend is to make it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    /// The resource.
    pub id: ResourceId,
    /// Its label, for people who look at the backend.
    pub name: String,
    /// The generation of the resource that this is.
    pub generation: u64,
    /// What is wanted, with its secrets.
    pub config: Config,
    /// The node's ports that lead to it.
    pub ports: Vec<PortBinding>,
    /// The devices prepared for it.
    pub grants: Vec<DeviceGrant>,
}

impl Workload {
    /// What `record` wants, under the generation of the operation that makes it.
    pub fn of(record: &Record, generation: u64) -> Self {
        Self {
            id: record.id,
            name: record.name.clone(),
            generation,
            config: record.config.clone(),
            ports: record.allocation.ports.clone(),
            grants: record.allocation.grants.clone(),
        }
    }
}

/// How a workload is brought down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StopOptions {
    /// At once, without asking it to end.
    pub force: bool,
    /// How long it may take to end when asked; the backend's default when absent.
    pub grace: Option<Duration>,
}

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

/// Which lines of a log.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogQuery {
    /// Only the last so many.
    pub tail: Option<u32>,
    /// Only from this moment on.
    pub since: Option<Timestamp>,
    /// Only before this moment.
    pub until: Option<Timestamp>,
    /// Whether to go on with what comes.
    pub follow: bool,
}

/// Where a line of a log came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// The serial console.
    Console,
    /// hwm or the backend.
    System,
}

/// How serious a line of a log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum LogLevel {
    /// The usual.
    Info,
    /// Worth a look; what came on standard error.
    Warn,
    /// Something failed.
    Error,
}

/// A line of a log, without its line end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LogLine {
    /// When it was written.
    pub timestamp: Timestamp,
    /// Where it came from.
    pub stream: LogStream,
    /// How serious it is.
    pub level: LogLevel,
    /// The line; bytes that are no UTF-8 are replaced.
    pub message: String,
}

/// A command to run to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// For `/bin/sh -c`.
    pub command: String,
    /// Where to run it; the workload's default when absent.
    pub working_dir: Option<String>,
    /// How long it may take before it is killed.
    pub timeout: Duration,
    /// How many bytes of each of the two outputs are kept.
    pub output_limit: usize,
}

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ExecOutput {
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
}

/// A command to run with someone at the other end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSession {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Whether it gets a terminal; then all output is standard output.
    pub tty: bool,
    /// The terminal's size at first.
    pub size: Option<TerminalSize>,
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// Which console of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ConsoleKind {
    /// The screen.
    #[default]
    Vnc,
    /// The serial line.
    Serial,
}

/// What goes into a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// Bytes.
    Data(Vec<u8>),
    /// No more bytes will come; output goes on.
    Close,
    /// The terminal has another size.
    Resize(TerminalSize),
}

/// What comes out of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// Bytes of standard output, of a terminal or of a console.
    Stdout(Vec<u8>),
    /// Bytes of standard error.
    Stderr(Vec<u8>),
    /// The command ended; the last frame.
    Exit(i64),
}

/// Two bounded channels of frames: who does not read, stops the other side from writing. Dropping the
/// session ends it on the backend too.
#[derive(Debug)]
pub struct Session {
    /// Frames towards the workload.
    pub input: mpsc::Sender<Input>,
    /// Frames from the workload; the channel closes when it is over.
    pub output: mpsc::Receiver<Result<Output>>,
}

/// The two ends that a backend keeps of a [`Session`].
#[derive(Debug)]
pub struct SessionPeer {
    /// Frames from the client; `None` when it has gone.
    pub input: mpsc::Receiver<Input>,
    /// Frames to the client; an error when it has gone.
    pub output: mpsc::Sender<Result<Output>>,
}

impl Session {
    /// How many frames may be under way in each direction.
    pub const CREDIT: usize = 32;

    /// A session and the peer that serves it.
    pub fn pair() -> (Self, SessionPeer) {
        let (to_backend, input) = mpsc::channel(Self::CREDIT);
        let (output, from_backend) = mpsc::channel(Self::CREDIT);
        (
            Self {
                input: to_backend,
                output: from_backend,
            },
            SessionPeer { input, output },
        )
    }
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

/// What kind of failure a backend met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum BackendErrorKind {
    /// It does not answer. Trying again helps when it is back.
    Unavailable,
    /// There is no such workload, image, snapshot or file.
    NotFound,
    /// The workload does not run, so it has no console and takes no commands.
    NotRunning,
    /// It refuses the config: trying again does not help.
    Invalid,
    /// Something that is not ours is in the way: a name, a port.
    Conflict,
    /// It may not: wrong credentials, no permission.
    Denied,
    /// This host cannot do that.
    Unsupported,
    /// No space is left.
    NoSpace,
    /// It took too long.
    Timeout,
    /// A newer generation was seen.
    Superseded,
    /// Anything else that failed.
    Failed,
}

impl BackendErrorKind {
    /// The contract's stable word for it.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Unavailable => "BACKEND_UNAVAILABLE",
            Self::NotRunning => "INVALID_STATE",
            Self::Unsupported => "UNSUPPORTED",
            Self::Timeout => "TIMEOUT",
            Self::NotFound
            | Self::Invalid
            | Self::Conflict
            | Self::Denied
            | Self::NoSpace
            | Self::Superseded
            | Self::Failed => "BACKEND_FAILED",
        }
    }
}

/// A failure of a backend. Its text holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{doing}{}{message}", if doing.is_empty() { "" } else { ": " })]
pub struct BackendError {
    /// What kind.
    pub kind: BackendErrorKind,
    /// What was being done, to what, for example `pulling image nginx:alpine`; empty where the message says it.
    pub doing: String,
    /// What went wrong, and the way out where one is known.
    pub message: String,
}

impl BackendError {
    /// A failure.
    pub fn new(kind: BackendErrorKind, doing: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            kind,
            doing: doing.into(),
            message: message.into(),
        }
    }

    /// Whether the same call can succeed later without anyone changing the request.
    pub const fn is_retryable(&self) -> bool {
        match self.kind {
            BackendErrorKind::Unavailable => true,
            BackendErrorKind::NotFound
            | BackendErrorKind::NotRunning
            | BackendErrorKind::Invalid
            | BackendErrorKind::Conflict
            | BackendErrorKind::Denied
            | BackendErrorKind::Unsupported
            | BackendErrorKind::NoSpace
            | BackendErrorKind::Timeout
            | BackendErrorKind::Superseded
            | BackendErrorKind::Failed => false,
        }
    }
}
