//! Makes any backend, store or accelerators fail, hang, wait, repeat or die at a chosen call, before or
//! after its effect.
//!
//! Every call passes two points: one before its effect, one after it. Run once to count them, then once
//! for each:
//!
//! ```
//! use std::sync::Arc;
//! use hwm_core::env::SystemEnvironment;
//! use hwm_core::store::{Store, Transaction, memory::MemoryStore};
//! use hwm_core::testing::faults::{Fault, Faults};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let faults = Faults::new(Arc::new(SystemEnvironment));
//! let store = faults.store(Arc::new(MemoryStore::new()));
//! store.commit(Transaction::default()).await.unwrap();
//! assert_eq!(faults.points().len(), 2);
//!
//! faults.reset();
//! faults.at(1, Fault::Fail);
//! assert!(store.commit(Transaction::default()).await.is_err(), "it happened, and nobody is told");
//! # }
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, pending};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use crate::accelerator::{
    AcceleratorEvent, Accelerators, DeviceGrant, Inventory, Placement, PlacementRefusal,
};
use crate::backend::{
    Backend, BackendError, BackendErrorKind, BackendEvent, BackendInfo, BackendReport, Call, CheckReport,
    Facets, LiveUpdate, LogLine, LogQuery, Observed, Result, SnapshotReport, SnapshotSpec, Snapshots,
    StopOptions, Stream, Workload,
};
use crate::config::{Config, GpuRequest, ResourceType};
use crate::env::Environment;
use crate::event::StoredEvent;
use crate::id::{BackendName, GpuUuid, NodeId, OperationId, ResourceId, SnapshotId};
use crate::ledger::{Claim, Pool};
use crate::lifecycle::Phase;
use crate::metrics::{GpuMetrics, Metrics};
use crate::operation::OperationRecord;
use crate::resource::Record;
use crate::snapshot::Snapshot;
use crate::store::{
    ClaimFilter, CommitError, EventPage, EventQuery, ListPage, ListQuery, OperationPage, OperationQuery,
    PruneLimits, Remembered, Store, StoreError, Transaction,
};

/// On which side of a call's effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Edge {
    /// Nothing has happened.
    Before,
    /// It has happened, and the caller does not know.
    After,
}

/// A place at which something can go wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// Whose call it is, for example `sim-containers` or `store`.
    pub of: String,
    /// The method.
    pub method: &'static str,
    /// On which side of its effect.
    pub edge: Edge,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let edge = match self.edge {
            Edge::Before => "before",
            Edge::After => "after",
        };
        write!(f, "{edge} {} {}", self.of, self.method)
    }
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The call fails for good.
    Fail,
    /// The call fails as one of a backend that is away; of a store it just fails.
    Away,
    /// The call never answers.
    Hang,
    /// The call waits so long, then goes on.
    Delay(Duration),
    /// The call is made twice; before its effect only.
    Repeat,
    /// The process dies: what [`Faults::on_crash`] was given is called, and the call never answers.
    Crash,
}

type Decide = dyn FnMut(u64, &Point) -> Option<Fault> + Send;
type Crash = dyn Fn() + Send + Sync;

/// Decides what goes wrong where. Clones decide together, and count together.
///
/// Only calls that change something are counted; what only asks is left alone unless
/// [`Faults::of_reads_too`] says otherwise.
#[derive(Clone)]
pub struct Faults {
    env: Arc<dyn Environment>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    points: Vec<Point>,
    planned: BTreeMap<u64, Fault>,
    decide: Option<Box<Decide>>,
    crash: Option<Arc<Crash>>,
    reads: bool,
    off: bool,
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults")
            .field("planned", &self.state().planned)
            .finish_non_exhaustive()
    }
}

impl Faults {
    /// None as yet. Delays pass in the time of `env`.
    pub fn new(env: Arc<dyn Environment>) -> Self {
        Self {
            env,
            state: Arc::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets `fault` happen at the point of this number, counted from 0.
    pub fn at(&self, point: u64, fault: Fault) {
        self.state().planned.insert(point, fault);
    }

    /// Lets `decide` choose at every point where nothing else is planned.
    pub fn decide(&self, decide: impl FnMut(u64, &Point) -> Option<Fault> + Send + 'static) {
        self.state().decide = Some(Box::new(decide));
    }

    /// What a crash does beyond leaving the call without an answer: kill what else belongs to the process.
    pub fn on_crash(&self, crash: impl Fn() + Send + Sync + 'static) {
        self.state().crash = Some(Arc::new(crash));
    }

    /// Counts calls that change nothing too.
    pub fn of_reads_too(&self, reads: bool) {
        self.state().reads = reads;
    }

    /// Whether calls pass without being counted.
    pub fn off(&self, off: bool) {
        self.state().off = off;
    }

    /// The points that were passed since the beginning, or since the last reset.
    pub fn points(&self) -> Vec<Point> {
        self.state().points.clone()
    }

    /// Counts from 0 again, and forgets what was planned; deciding goes on.
    pub fn reset(&self) {
        let mut state = self.state();
        state.points.clear();
        state.planned.clear();
    }

    /// The backend, with these faults.
    pub fn backend(&self, inner: Arc<dyn Backend>) -> Arc<dyn Backend> {
        let of = inner.info().name.to_string();
        Arc::new(self.wrap(inner, of))
    }

    /// The accelerators, with these faults.
    pub fn accelerators(&self, inner: Arc<dyn Accelerators>) -> Arc<dyn Accelerators> {
        Arc::new(self.wrap(inner, "accelerators".to_owned()))
    }

    /// The store, with these faults.
    pub fn store(&self, inner: Arc<dyn Store>) -> Arc<dyn Store> {
        Arc::new(self.wrap(inner, "store".to_owned()))
    }

    fn wrap<T: ?Sized>(&self, inner: Arc<T>, of: String) -> Faulty<T> {
        Faulty {
            inner,
            of,
            faults: self.clone(),
        }
    }

    fn fault(&self, point: Point) -> Option<(Fault, Option<Arc<Crash>>)> {
        let mut state = self.state();
        if state.off {
            return None;
        }
        let number = state.points.len() as u64;
        let planned = state.planned.get(&number).copied();
        let fault = planned.or_else(|| state.decide.as_mut().and_then(|decide| decide(number, &point)));
        state.points.push(point);
        fault.map(|fault| (fault, state.crash.clone()))
    }
}

/// A backend, a store or accelerators in which calls go wrong. Made by [`Faults`].
pub struct Faulty<T: ?Sized> {
    inner: Arc<T>,
    of: String,
    faults: Faults,
}

impl<T: ?Sized> fmt::Debug for Faulty<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty")
            .field("of", &self.of)
            .finish_non_exhaustive()
    }
}

/// What a fault makes of a call.
enum Turn<E> {
    GoOn,
    Again,
    Err(E),
}

trait Failure {
    fn failed(fault: Fault, point: &Point) -> Self;
}

impl Failure for BackendError {
    fn failed(fault: Fault, point: &Point) -> Self {
        let kind = match fault {
            Fault::Away => BackendErrorKind::Unavailable,
            Fault::Fail | Fault::Hang | Fault::Delay(_) | Fault::Repeat | Fault::Crash => {
                BackendErrorKind::Failed
            }
        };
        Self::new(kind, point.to_string(), "a fault was planned here")
    }
}

impl Failure for StoreError {
    fn failed(_: Fault, point: &Point) -> Self {
        Self::new(point.to_string(), "a fault was planned here")
    }
}

impl Failure for CommitError {
    fn failed(fault: Fault, point: &Point) -> Self {
        Self::Store(StoreError::failed(fault, point))
    }
}

impl<T: ?Sized> Faulty<T> {
    async fn reach<E: Failure>(&self, method: &'static str, edge: Edge) -> Turn<E> {
        let point = Point {
            of: self.of.clone(),
            method,
            edge,
        };
        let Some((fault, crash)) = self.faults.fault(point.clone()) else {
            return Turn::GoOn;
        };
        match fault {
            Fault::Fail | Fault::Away => Turn::Err(E::failed(fault, &point)),
            Fault::Hang => pending().await,
            Fault::Delay(duration) => {
                self.faults.env.sleep(duration).await;
                Turn::GoOn
            }
            Fault::Repeat => Turn::Again,
            Fault::Crash => {
                if let Some(crash) = crash {
                    crash();
                }
                pending().await
            }
        }
    }

    /// A call that changes something.
    async fn change<V, E, F>(&self, method: &'static str, call: impl Fn() -> F + Send) -> Result<V, E>
    where
        E: Failure,
        F: Future<Output = Result<V, E>> + Send,
    {
        match self.reach(method, Edge::Before).await {
            Turn::GoOn => {}
            Turn::Again => {
                // The second answer is the one that is given.
                let _ = call().await;
            }
            Turn::Err(error) => return Err(error),
        }
        let answer = call().await;
        match self.reach(method, Edge::After).await {
            Turn::GoOn | Turn::Again => answer,
            Turn::Err(error) => Err(error),
        }
    }

    /// A call that asks.
    async fn read<V, E, F>(&self, method: &'static str, call: impl Fn() -> F + Send) -> Result<V, E>
    where
        E: Failure,
        F: Future<Output = Result<V, E>> + Send,
    {
        let counted = self.faults.state().reads;
        if counted {
            self.change(method, call).await
        } else {
            call().await
        }
    }
}

#[async_trait]
impl Backend for Faulty<dyn Backend> {
    fn info(&self) -> BackendInfo {
        self.inner.info()
    }

    fn facets(&self) -> Facets {
        let facets = self.inner.facets();
        let snapshots = facets.snapshots.map(|inner| {
            let faulty: Arc<dyn Snapshots> = Arc::new(self.faults.wrap(inner, self.of.clone()));
            faulty
        });
        let live_update = facets.live_update.map(|inner| {
            let faulty: Arc<dyn LiveUpdate> = Arc::new(self.faults.wrap(inner, self.of.clone()));
            faulty
        });
        Facets {
            snapshots,
            live_update,
            ..facets
        }
    }

    async fn probe(&self) -> Result<BackendReport> {
        self.read("probe", || self.inner.probe()).await
    }

    async fn check(&self, planned: &Workload) -> Result<CheckReport> {
        self.read("check", || self.inner.check(planned)).await
    }

    async fn create(&self, call: &Call, workload: &Workload) -> Result<()> {
        self.change("create", || self.inner.create(call, workload)).await
    }

    async fn start(&self, call: &Call, workload: &Workload) -> Result<()> {
        self.change("start", || self.inner.start(call, workload)).await
    }

    async fn stop(&self, call: &Call, id: ResourceId, options: StopOptions) -> Result<()> {
        self.change("stop", || self.inner.stop(call, id, options)).await
    }

    async fn remove(&self, call: &Call, id: ResourceId) -> Result<()> {
        self.change("remove", || self.inner.remove(call, id)).await
    }

    async fn inspect(&self, ids: &[ResourceId]) -> Result<Vec<Observed>> {
        self.read("inspect", || self.inner.inspect(ids)).await
    }

    async fn owned(&self) -> Result<Vec<Observed>> {
        self.read("owned", || self.inner.owned()).await
    }

    async fn events(&self) -> Result<Stream<BackendEvent>> {
        self.read("events", || self.inner.events()).await
    }

    async fn logs(&self, id: ResourceId, query: LogQuery) -> Result<Stream<Result<LogLine>>> {
        self.read("logs", || self.inner.logs(id, query.clone())).await
    }

    async fn metrics(&self, ids: &[ResourceId]) -> Result<Vec<(ResourceId, Metrics)>> {
        self.read("metrics", || self.inner.metrics(ids)).await
    }
}

#[async_trait]
impl Snapshots for Faulty<dyn Snapshots> {
    async fn create(&self, call: &Call, workload: &Workload, spec: &SnapshotSpec) -> Result<SnapshotReport> {
        self.change("snapshot-create", || self.inner.create(call, workload, spec))
            .await
    }

    async fn restore(&self, call: &Call, workload: &Workload, snapshot: SnapshotId) -> Result<bool> {
        self.change("snapshot-restore", || {
            self.inner.restore(call, workload, snapshot)
        })
        .await
    }

    async fn delete(&self, call: &Call, id: ResourceId, snapshot: SnapshotId) -> Result<()> {
        self.change("snapshot-delete", || self.inner.delete(call, id, snapshot))
            .await
    }

    async fn list(&self, id: ResourceId) -> Result<Vec<SnapshotId>> {
        self.read("snapshot-list", || self.inner.list(id)).await
    }
}

#[async_trait]
impl LiveUpdate for Faulty<dyn LiveUpdate> {
    fn is_live(&self, from: &Config, to: &Config) -> bool {
        self.inner.is_live(from, to)
    }

    async fn update(&self, call: &Call, workload: &Workload) -> Result<()> {
        self.change("update", || self.inner.update(call, workload)).await
    }
}

#[async_trait]
impl Accelerators for Faulty<dyn Accelerators> {
    fn inventory(&self) -> Inventory {
        self.inner.inventory()
    }

    fn plan(
        &self,
        request: &GpuRequest,
        workload: ResourceType,
        held: &[Claim],
    ) -> std::result::Result<Vec<Placement>, PlacementRefusal> {
        self.inner.plan(request, workload, held)
    }

    async fn prepare(
        &self,
        call: &Call,
        owner: ResourceId,
        placement: &Placement,
        to: ResourceType,
    ) -> Result<DeviceGrant> {
        self.change("prepare", || self.inner.prepare(call, owner, placement, to))
            .await
    }

    async fn release(&self, call: &Call, owner: ResourceId, placement: &Placement) -> Result<()> {
        self.change("release", || self.inner.release(call, owner, placement))
            .await
    }

    async fn events(&self) -> Result<Stream<AcceleratorEvent>> {
        self.read("events", || self.inner.events()).await
    }

    async fn metrics(&self, uuids: &[String]) -> Result<Vec<GpuMetrics>> {
        self.read("metrics", || self.inner.metrics(uuids)).await
    }

    async fn recover(&self, card: &GpuUuid) -> Result<()> {
        self.change("recover", || self.inner.recover(card)).await
    }
}

#[async_trait]
impl Store for Faulty<dyn Store> {
    async fn commit(&self, transaction: Transaction) -> Result<Vec<StoredEvent>, CommitError> {
        match self.reach("commit", Edge::Before).await {
            // A commit is not repeated: the same transaction twice is another request.
            Turn::GoOn | Turn::Again => {}
            Turn::Err(error) => return Err(error),
        }
        let answer = self.inner.commit(transaction).await;
        match self.reach("commit", Edge::After).await {
            Turn::GoOn | Turn::Again => answer,
            Turn::Err(error) => Err(error),
        }
    }

    async fn record(&self, id: ResourceId) -> Result<Option<Record>, StoreError> {
        self.read("record", || self.inner.record(id)).await
    }

    async fn list(&self, query: ListQuery) -> Result<ListPage, StoreError> {
        self.read("list", || self.inner.list(query.clone())).await
    }

    async fn ids_in_phases(
        &self,
        backend: &BackendName,
        phases: &[Phase],
        after: Option<ResourceId>,
        limit: usize,
    ) -> Result<Vec<ResourceId>, StoreError> {
        self.read("ids", || self.inner.ids_in_phases(backend, phases, after, limit))
            .await
    }

    async fn claims(&self, node: &NodeId, filter: ClaimFilter) -> Result<Vec<Claim>, StoreError> {
        self.read("claims", || self.inner.claims(node, filter.clone()))
            .await
    }

    async fn pools(&self, node: &NodeId) -> Result<BTreeMap<Pool, u64>, StoreError> {
        self.read("pools", || self.inner.pools(node)).await
    }

    async fn operation(&self, id: OperationId) -> Result<Option<OperationRecord>, StoreError> {
        self.read("operation", || self.inner.operation(id)).await
    }

    async fn operations(&self, query: OperationQuery) -> Result<OperationPage, StoreError> {
        self.read("operations", || self.inner.operations(query.clone()))
            .await
    }

    async fn events(&self, query: EventQuery) -> Result<EventPage, StoreError> {
        self.read("events", || self.inner.events(query.clone())).await
    }

    async fn snapshots(&self, resource: ResourceId) -> Result<Vec<Snapshot>, StoreError> {
        self.read("snapshots", || self.inner.snapshots(resource)).await
    }

    async fn remembered(&self, key: &str) -> Result<Option<Remembered>, StoreError> {
        self.read("remembered", || self.inner.remembered(key)).await
    }

    async fn note(&self, name: &str) -> Result<Option<String>, StoreError> {
        self.read("note", || self.inner.note(name)).await
    }

    async fn prune(&self, limits: PruneLimits) -> Result<u64, StoreError> {
        self.change("prune", || self.inner.prune(limits)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;
    use crate::testing::backend_suite::samples;
    use crate::testing::env::SimEnvironment;
    use crate::testing::sim::{Sim, SimOptions};

    fn node() -> (Sim, Faults) {
        let env = Arc::new(SimEnvironment::new(1));
        (Sim::new(env.clone(), SimOptions::default()), Faults::new(env))
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_fails_before_or_after_its_effect() {
        for (point, there) in [(0, false), (1, true)] {
            let (sim, faults) = node();
            let backend = faults.backend(sim.containers());
            let workload = samples::container(ResourceId::from_u128(1), &[]);
            let call = Call::new(1, Duration::from_secs(1));
            faults.at(point, Fault::Fail);
            assert!(backend.create(&call, &workload).await.is_err());
            assert_eq!(sim.look(workload.id).is_some(), there);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_crash_calls_the_hook_and_never_answers() {
        let (sim, faults) = node();
        let backend = faults.backend(sim.containers());
        let (tell, told) = std::sync::mpsc::channel();
        faults.on_crash(move || tell.send(()).unwrap());
        faults.at(0, Fault::Crash);
        let call = Call::new(1, Duration::from_secs(1));
        let remove = backend.remove(&call, ResourceId::from_u128(1));
        assert!(
            tokio::time::timeout(Duration::from_secs(3600), remove)
                .await
                .is_err()
        );
        assert!(told.try_recv().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn points_are_counted_over_all_that_is_wrapped_and_reads_are_not() {
        let (sim, faults) = node();
        let (backend, store) = (
            faults.backend(sim.containers()),
            faults.store(Arc::new(MemoryStore::new())),
        );
        let call = Call::new(1, Duration::from_secs(1));
        backend.probe().await.unwrap();
        backend.remove(&call, ResourceId::from_u128(1)).await.unwrap();
        store.commit(Transaction::default()).await.unwrap();
        let points: Vec<String> = faults.points().iter().map(Point::to_string).collect();
        let expected = [
            "before sim-containers remove",
            "after sim-containers remove",
            "before store commit",
            "after store commit",
        ];
        assert_eq!(points, expected);
    }
}
