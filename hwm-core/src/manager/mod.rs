//! The manager: the one handle through which everything happens.
//!
//! ```text
//! caller ─▶ Scoped (what this caller may) ─▶ submit: validate ─ check ─ admit ─ claim ─┐
//!                                                                                      ▼
//!   answer ◀────────────────────────────────────────────────── one store transaction (record,
//!                                                              claims, operation, event)
//!                                                                                      │
//!   lane of the resource: one operation after the other ◀──────────────────────────────┘
//!     run: each step idempotent, its beginning committed ─▶ Accelerators, Backend
//!     end: committed with the new phase; or undone in reverse
//! ```
//!
//! | file | one job |
//! |---|---|
//! | `builder` | wiring and settings |
//! | `scoped` | what one caller may see and ask |
//! | `submit` | a request becomes a committed operation |
//! | `claims` | plans what to claim, explains what cannot be had |
//! | `draft` | a change before it is committed |
//! | `lane` | one resource's operations in order |
//! | `run` | the steps of each action, and their undoing |
//! | `reconcile` | what the backends see against what is recorded; recovery at the start |
//! | `monitor` | health checks and restarts of what runs |
//! | `view` | status, nodes, events |
//! | `slot` | a backend: away or ready, bounded, with deadlines |

mod api;
mod builder;
mod claims;
mod counters;
mod draft;
mod gpus;
mod lane;
mod monitor;
mod reconcile;
mod run;
mod scoped;
mod slot;
mod submit;
mod view;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use api::{
    Accepted, ConsoleAccess, Counters, EventFilter, EventItem, Health, Idempotency, PlanReport, Readiness,
    RequestOptions, ResourcePage, ResourceStatus, Versioned,
};
pub use builder::{Builder, Settings};
pub use scoped::Scoped;

use crate::accelerator::Accelerators;
use crate::access::{Principal, Visibility};
use crate::backend::BackendState;
use crate::config::ResourceType;
use crate::env::{Environment, Ids};
use crate::error::Error;
use crate::id::{BackendName, NodeId, OperationId, ResourceId};
use crate::ledger::ClaimKey;
use crate::operation::OperationRecord;
use crate::resource::Record;
use crate::store::{ClaimFilter, CommitError, OperationQuery, Store, StoreError, Transaction};
use crate::units::Timestamp;
use crate::validate::Rules;
use counters::CounterSet;
use draft::Draft;
use slot::Slot;

/// What a call to the manager answers.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A cheap handle to the manager; clones are the same manager. It works as long as its runtime does, also
/// when every handle is gone.
#[derive(Clone)]
pub struct Manager {
    core: Arc<Core>,
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager")
            .field("node", &self.core.node)
            .finish_non_exhaustive()
    }
}

impl Manager {
    /// Begins to put together the manager of a node, with its records in `store`.
    pub fn builder(store: Arc<dyn Store>, node: NodeId) -> Builder {
        Builder::new(store, node)
    }

    /// The same manager, seen and used as `principal` may.
    pub fn as_principal(&self, principal: impl Into<Arc<Principal>>) -> Scoped {
        Scoped::new(self.core.clone(), principal.into())
    }

    /// The node's id.
    pub fn node_id(&self) -> &NodeId {
        &self.core.node
    }

    /// What the operator allows in configs.
    pub fn rules(&self) -> &Rules {
        &self.core.rules
    }

    /// Whether it can serve: the store answers, and every backend is ready.
    pub async fn readiness(&self) -> Readiness {
        let backends: Vec<_> = self.core.slots.iter().map(|s| s.view()).collect();
        let stored = self.core.store.note("readiness").await.is_ok();
        let ready = stored && !self.core.stopping.is_cancelled();
        Readiness {
            ready: ready && backends.iter().all(|b| b.state == BackendState::Ready),
            backends,
        }
    }

    /// Stops accepting, leaves what runs where it is in the journal, and returns when nothing of the
    /// manager is under way, or after `limit`. Workloads go on; the next manager goes on with operations.
    pub async fn shutdown(&self, limit: Duration) {
        self.core.stopping.cancel();
        self.core.tasks.close();
        tokio::select! {
            biased;
            () = self.core.tasks.wait() => {}
            () = self.core.env.sleep(limit) => {}
        }
    }

    /// Counters since the manager was built, for metrics.
    pub fn counters(&self) -> Counters {
        self.core.counters.read()
    }

    /// How many claims of each kind are held on the node.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn claim_counts(&self) -> Result<Vec<(String, u64)>> {
        let mut counts = std::collections::BTreeMap::new();
        for claim in self.core.store.claims(&self.core.node, ClaimFilter::All).await? {
            let kind = match claim.key {
                ClaimKey::Port(..) => "port",
                ClaimKey::Address(..) => "address",
                ClaimKey::Gpu(..) => "gpu",
                ClaimKey::Volume(_) => "volume",
                ClaimKey::Cpu => "cpu",
                ClaimKey::Ram => "ram",
                ClaimKey::Disk => "disk",
            };
            *counts.entry(kind.to_owned()).or_insert(0) += 1;
        }
        Ok(counts.into_iter().collect())
    }

    /// The node's GPUs with what they do, for metrics. No holder is named.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn gpus(&self) -> Result<Vec<crate::node::NodeGpu>> {
        self.core.gpu_views(None).await
    }

    /// Completes when no operation runs or waits. For tests: new ones may come right after.
    pub async fn settled(&self) {
        while !self.core.lanes().is_empty() {
            self.core.env.sleep(Duration::from_millis(1)).await;
        }
    }

    /// Compares everything with the backends now rather than at the next interval.
    pub async fn resync(&self) {
        for slot in &self.core.slots {
            slot.probe().await;
            if slot.is_ready() {
                self.core.resync(slot).await;
            }
        }
    }
}

/// Everything that the manager's parts share.
struct Core {
    env: Arc<dyn Environment>,
    ids: Ids,
    store: Arc<dyn Store>,
    node: NodeId,
    hostname: String,
    slots: Vec<Arc<Slot>>,
    accelerators: Option<Arc<dyn Accelerators>>,
    rules: Rules,
    settings: Settings,
    counters: Arc<CounterSet>,
    lanes: Mutex<HashMap<ResourceId, lane::Lane>>,
    monitors: Mutex<HashMap<ResourceId, CancellationToken>>,
    /// What ended by itself lately, when, and at which revision: a daemon that is being shut down ends its
    /// workloads before it goes.
    fallen: Mutex<HashMap<ResourceId, (Timestamp, u64)>>,
    /// How far running operations are, between two commits.
    progress: Mutex<HashMap<OperationId, (String, Option<u8>)>>,
    stopping: CancellationToken,
    newest: watch::Sender<u64>,
    ended: broadcast::Sender<OperationId>,
    tasks: TaskTracker,
}

/// How often a change is tried again when another came first.
const RETRIES: u32 = 64;

impl Core {
    fn lanes(&self) -> MutexGuard<'_, HashMap<ResourceId, lane::Lane>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn monitors(&self) -> MutexGuard<'_, HashMap<ResourceId, CancellationToken>> {
        self.monitors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fallen(&self) -> MutexGuard<'_, HashMap<ResourceId, (Timestamp, u64)>> {
        self.fallen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn progress(&self) -> MutexGuard<'_, HashMap<OperationId, (String, Option<u8>)>> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a task of the manager, which shutdown waits for.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.env.spawn(Box::pin(self.tasks.track_future(task)));
    }

    fn slot(&self, name: &BackendName) -> Option<&Arc<Slot>> {
        self.slots.iter().find(|s| s.name() == name)
    }

    fn slot_for(&self, kind: ResourceType) -> Result<&Arc<Slot>> {
        self.slots
            .iter()
            .find(|s| s.info.types.contains(&kind))
            .ok_or_else(|| Error::Unsupported {
                what: kind.to_string(),
                reason: format!(
                    "node {} has no backend for it; start one and name it to the server",
                    self.node
                ),
            })
    }

    fn slot_of(&self, record: &Record) -> Result<&Arc<Slot>> {
        self.slot(&record.backend).ok_or_else(|| Error::Unsupported {
            what: format!("resource {}", record.id),
            reason: format!(
                "it runs on backend {}, which this server was started without",
                record.backend
            ),
        })
    }

    async fn commit(&self, transaction: Transaction) -> Result<(), CommitError> {
        let events = self.store.commit(transaction).await?;
        self.counters.commit();
        if let Some(last) = events.last() {
            let id = last.id;
            self.newest
                .send_if_modified(|newest| std::mem::replace(newest, id.max(*newest)) < id);
        }
        Ok(())
    }

    /// Commits a finished draft, and tells those who wait for its operations.
    async fn commit_draft(&self, draft: Draft) -> Result<Record, CommitError> {
        let (transaction, record, ended) = draft.finish(self.env.now());
        self.commit(transaction).await?;
        for operation in ended {
            self.progress().remove(&operation.id);
            self.counters.operation_ended(operation.action, operation.status);
            // Nobody may be waiting.
            let _ = self.ended.send(operation.id);
        }
        Ok(record)
    }

    /// Reads a resource and its unfinished operations, has `change` work on them, and commits; again when
    /// another change came first. `change` answers none when there is nothing to do.
    async fn amend<T, E>(
        &self,
        id: ResourceId,
        mut change: impl FnMut(&mut Draft) -> Result<Option<T>, E> + Send,
    ) -> Result<Option<(T, Record)>, E>
    where
        E: From<StoreError> + From<CommitError>,
    {
        for _ in 0..RETRIES {
            let Some(record) = self.store.record(id).await? else {
                return Ok(None);
            };
            let operations = self.unfinished(id).await?;
            let mut draft = Draft::of(record, operations);
            let Some(answer) = change(&mut draft)? else {
                return Ok(None);
            };
            match self.commit_draft(draft).await {
                Ok(record) => return Ok(Some((answer, record))),
                Err(CommitError::Stale { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(CommitError::Stale { id }.into())
    }

    /// The operations of a resource that are not final, oldest first.
    async fn unfinished(&self, id: ResourceId) -> Result<Vec<OperationRecord>, StoreError> {
        let query = OperationQuery {
            visibility: Visibility::All,
            resource: Some(id),
            unfinished: true,
            offset: 0,
            limit: u32::try_from(self.settings.queue_limit)
                .unwrap_or(u32::MAX)
                .saturating_add(8),
        };
        Ok(self.store.operations(query).await?.operations)
    }
}

impl From<CommitError> for Error {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Stale { id } => Self::PreconditionFailed { resource: id },
            CommitError::Remembered => Self::IdempotencyMismatch,
            CommitError::Held { key, holder } => {
                Self::Conflict(Box::new(crate::ledger::held(&key, holder, "another resource")))
            }
            CommitError::Exceeded {
                pool,
                requested,
                used,
                limit,
            } => Self::Conflict(Box::new(crate::ledger::exceeded(pool, requested, used, limit))),
            CommitError::Store(error) => Self::Store(error),
        }
    }
}
