//! A store in memory, for tests and for services that keep nothing: it promises all that a
//! [`Store`] does but durability.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::{
    ClaimFilter, CommitError, Counts, Cursor, EventPage, EventQuery, ListPage, ListQuery, OperationPage,
    OperationQuery, Position, PruneLimits, RecordWrite, Remembered, Result, SortBy, SortOrder, Store,
    Transaction,
};
use crate::event::StoredEvent;
use crate::id::{BackendName, NodeId, OperationId, ResourceId, SnapshotId};
use crate::ledger::{Claim, Pool};
use crate::lifecycle::Phase;
use crate::operation::OperationRecord;
use crate::resource::Record;
use crate::snapshot::Snapshot;

use self::shares::Shares;

mod shares;

/// Keeps records in memory. Clones are the same store, so it outlives the manager that used it.
///
/// Equal calls in equal order give equal answers. Lists cost what they look through.
///
/// ```
/// use hwm_core::store::{Store, Transaction, memory::MemoryStore};
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let store = MemoryStore::new();
/// let note = ("boot".to_owned(), "1".to_owned());
/// store.commit(Transaction { notes: vec![note], ..Transaction::default() }).await?;
/// assert_eq!(store.clone().note("boot").await?.as_deref(), Some("1"));
/// # Ok::<(), hwm_core::store::CommitError>(())
/// # }).unwrap();
/// ```
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock panics half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct State {
    records: BTreeMap<ResourceId, Record>,
    shares: Shares,
    operations: Operations,
    events: Vec<StoredEvent>,
    newest_event: u64,
    newest_dropped_event: u64,
    snapshots: BTreeMap<SnapshotId, Snapshot>,
    remembered: BTreeMap<String, Remembered>,
    notes: BTreeMap<String, String>,
}

/// Operations by the order of their first commit.
#[derive(Debug, Default)]
struct Operations {
    all: BTreeMap<u64, OperationRecord>,
    order: BTreeMap<OperationId, u64>,
    unfinished: BTreeSet<u64>,
    of_resource: BTreeMap<ResourceId, BTreeSet<u64>>,
    newest: u64,
}

impl Operations {
    fn write(&mut self, operation: OperationRecord) {
        let order = *self.order.entry(operation.id).or_insert_with(|| {
            self.newest += 1;
            self.newest
        });
        if operation.status.is_final() {
            self.unfinished.remove(&order);
        } else {
            self.unfinished.insert(order);
        }
        self.of_resource
            .entry(operation.resource)
            .or_default()
            .insert(order);
        self.all.insert(order, operation);
    }

    fn remove(&mut self, order: u64) {
        let Some(operation) = self.all.remove(&order) else {
            return;
        };
        self.order.remove(&operation.id);
        self.unfinished.remove(&order);
        if let Some(of_resource) = self.of_resource.get_mut(&operation.resource) {
            of_resource.remove(&order);
            if of_resource.is_empty() {
                self.of_resource.remove(&operation.resource);
            }
        }
    }

    /// Oldest first.
    fn selected(&self, query: &OperationQuery) -> Vec<&OperationRecord> {
        let selects = |o: &OperationRecord| {
            query.visibility.includes(&o.owner)
                && query.resource.is_none_or(|r| r == o.resource)
                && !(query.unfinished && o.status.is_final())
        };
        let some = match query.resource {
            Some(resource) => Some(self.of_resource.get(&resource)),
            None if query.unfinished => Some(Some(&self.unfinished)),
            None => None,
        };
        match some {
            None => self.all.values().filter(|o| selects(o)).collect(),
            Some(orders) => orders
                .into_iter()
                .flatten()
                .filter_map(|order| self.all.get(order))
                .filter(|o| selects(o))
                .collect(),
        }
    }
}

impl State {
    fn commit(&mut self, transaction: Transaction) -> Result<Vec<StoredEvent>, CommitError> {
        let Transaction {
            records,
            operations,
            release,
            claim,
            limits,
            snapshots,
            forget_snapshots,
            events,
            remember,
            notes,
        } = transaction;

        // All that can be refused is judged before anything else changes.
        if remember
            .as_ref()
            .is_some_and(|r| self.remembered.contains_key(&r.key))
        {
            return Err(CommitError::Remembered);
        }
        self.judge_revisions(&records)?;
        self.shares.change(&release, &claim, &limits)?;

        for write in records {
            let mut record = write.record;
            if let Some(applied) = &mut record.applied {
                applied.config.forget_secrets();
            }
            if record.phase == Phase::Deleted {
                record.config.forget_secrets();
            }
            self.records.insert(record.id, record);
        }
        for operation in operations {
            self.operations.write(operation);
        }
        for snapshot in snapshots {
            self.snapshots.insert(snapshot.id, snapshot);
        }
        for id in forget_snapshots {
            self.snapshots.remove(&id);
        }
        self.remembered.extend(remember.map(|r| (r.key.clone(), r)));
        self.notes.extend(notes);
        let mut stored = Vec::with_capacity(events.len());
        for event in events {
            self.newest_event += 1;
            stored.push(StoredEvent {
                id: self.newest_event,
                event,
            });
        }
        self.events.extend(stored.iter().cloned());
        Ok(stored)
    }

    /// A record that is written twice is judged the second time by what the first leaves.
    fn judge_revisions(&self, writes: &[RecordWrite]) -> Result<(), CommitError> {
        for (i, write) in writes.iter().enumerate() {
            let id = write.record.id;
            let earlier = writes.iter().take(i).rev().find(|w| w.record.id == id);
            let found = match earlier {
                Some(earlier) => Some(earlier.record.revision),
                None => self.records.get(&id).map(|r| r.revision),
            };
            if found != write.expected {
                return Err(CommitError::Stale { id });
            }
        }
        Ok(())
    }

    fn list(&self, query: &ListQuery) -> ListPage {
        let mut selected: Vec<&Record> = self.records.values().filter(|r| query.selects(r)).collect();
        let mut counts = Counts::default();
        for record in &selected {
            *counts.by_status.entry(record.status()).or_default() += 1;
            *counts.by_type.entry(record.config.resource_type()).or_default() += 1;
        }
        let total = selected.len() as u64;

        selected.sort_by(|a, b| sort_key(query.sort_by, a).cmp(&sort_key(query.sort_by, b)));
        if query.order == SortOrder::Desc {
            selected.reverse();
        }
        let start = match &query.position {
            Position::Offset(offset) => usize::try_from(*offset).unwrap_or(usize::MAX),
            Position::After(cursor) => {
                selected.partition_point(|r| !is_after(query.sort_by, query.order, cursor, r))
            }
        };
        let end = start.saturating_add(query.limit as usize).min(selected.len());
        let page = selected.get(start..end).unwrap_or_default();
        let is_last = end >= selected.len();
        let next = page.last().filter(|_| !is_last).map(|r| query.sort_by.cursor(r));
        let records = page
            .iter()
            .map(|&record| {
                let mut record = record.clone();
                record.config.forget_secrets();
                record
            })
            .collect();
        ListPage {
            records,
            total,
            counts,
            next,
        }
    }

    fn prune(&mut self, limits: PruneLimits) -> u64 {
        let finished: Vec<u64> = self
            .operations
            .all
            .iter()
            .filter(|(_, o)| o.status.is_final() && o.finished_at.unwrap_or(o.created_at) < limits.operations)
            .map(|(order, _)| *order)
            .collect();
        for order in &finished {
            self.operations.remove(*order);
        }
        let mut gone = finished.len();

        let newest_dropped = self.events.iter().rev().find(|e| e.event.time < limits.events);
        let newest_dropped = newest_dropped.map_or(0, |e| e.id);
        self.newest_dropped_event = self.newest_dropped_event.max(newest_dropped);
        gone += retain(&mut self.events, |e| e.event.time >= limits.events);

        let before = self.remembered.len();
        self.remembered.retain(|_, r| r.time >= limits.remembered);
        gone += before - self.remembered.len();

        let is_over =
            |r: &Record| r.phase == Phase::Deleted && r.deleted_at.is_some_and(|at| at < limits.deleted);
        let over: BTreeSet<ResourceId> = self
            .records
            .values()
            .filter(|r| is_over(r))
            .map(|r| r.id)
            .collect();
        self.records.retain(|id, _| !over.contains(id));
        self.snapshots.retain(|_, s| !over.contains(&s.resource_id));
        gone += over.len();
        gone as u64
    }
}

fn retain<T>(all: &mut Vec<T>, keep: impl FnMut(&T) -> bool) -> usize {
    let before = all.len();
    all.retain(keep);
    before - all.len()
}

/// What a list is sorted by, as it compares: a number or a text, then the id.
type SortKey<'a> = (i64, &'a str, ResourceId);

fn sort_key(sort: SortBy, record: &Record) -> SortKey<'_> {
    match sort {
        SortBy::CreatedAt => (record.created_at.as_millis(), "", record.id),
        SortBy::UpdatedAt => (record.updated_at.as_millis(), "", record.id),
        SortBy::Name => (0, &record.name, record.id),
        SortBy::Status => (0, record.status().as_str(), record.id),
    }
}

fn is_after(sort: SortBy, order: SortOrder, cursor: &Cursor, record: &Record) -> bool {
    let named = match sort {
        SortBy::CreatedAt | SortBy::UpdatedAt => match cursor.key.parse() {
            Ok(millis) => (millis, "", cursor.id),
            Err(_) => return false,
        },
        SortBy::Name => (0, cursor.key.as_str(), cursor.id),
        SortBy::Status if !sort.fits(cursor) => return false,
        SortBy::Status => (0, cursor.key.as_str(), cursor.id),
    };
    let key = sort_key(sort, record);
    match order {
        SortOrder::Asc => key > named,
        SortOrder::Desc => key < named,
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn commit(&self, transaction: Transaction) -> Result<Vec<StoredEvent>, CommitError> {
        self.state().commit(transaction)
    }

    async fn record(&self, id: ResourceId) -> Result<Option<Record>> {
        Ok(self.state().records.get(&id).cloned())
    }

    async fn list(&self, query: ListQuery) -> Result<ListPage> {
        Ok(self.state().list(&query))
    }

    async fn ids_in_phases(
        &self,
        backend: &BackendName,
        phases: &[Phase],
        after: Option<ResourceId>,
        limit: usize,
    ) -> Result<Vec<ResourceId>> {
        let state = self.state();
        let of_backend = state
            .records
            .values()
            .filter(|r| r.backend == *backend && phases.contains(&r.phase));
        Ok(of_backend
            .map(|r| r.id)
            .filter(|id| after.is_none_or(|after| *id > after))
            .take(limit)
            .collect())
    }

    async fn claims(&self, node: &NodeId, filter: ClaimFilter) -> Result<Vec<Claim>> {
        Ok(self.state().shares.of_node(node, &filter))
    }

    async fn pools(&self, node: &NodeId) -> Result<BTreeMap<Pool, u64>> {
        Ok(self.state().shares.pools(node))
    }

    async fn operation(&self, id: OperationId) -> Result<Option<OperationRecord>> {
        let state = self.state();
        let order = state.operations.order.get(&id);
        Ok(order.and_then(|order| state.operations.all.get(order)).cloned())
    }

    async fn operations(&self, query: OperationQuery) -> Result<OperationPage> {
        let state = self.state();
        let mut selected = state.operations.selected(&query);
        if query.resource.is_none() || !query.unfinished {
            selected.reverse();
        }
        let total = selected.len() as u64;
        let offset = usize::try_from(query.offset).unwrap_or(usize::MAX);
        let page = selected.into_iter().skip(offset).take(query.limit as usize);
        Ok(OperationPage {
            operations: page.cloned().collect(),
            total,
        })
    }

    async fn events(&self, query: EventQuery) -> Result<EventPage> {
        let state = self.state();
        let first = state.events.partition_point(|e| e.id <= query.after);
        let events = state.events.iter().skip(first).take(query.limit as usize);
        Ok(EventPage {
            events: events.cloned().collect(),
            gap: query.after < state.newest_dropped_event,
            newest: state.newest_event,
        })
    }

    async fn snapshots(&self, resource: ResourceId) -> Result<Vec<Snapshot>> {
        let state = self.state();
        let of_resource = state.snapshots.values().filter(|s| s.resource_id == resource);
        let mut found: Vec<Snapshot> = of_resource.cloned().collect();
        found.sort_by_key(|s| (s.created_at, s.id));
        Ok(found)
    }

    async fn remembered(&self, key: &str) -> Result<Option<Remembered>> {
        Ok(self.state().remembered.get(key).cloned())
    }

    async fn note(&self, name: &str) -> Result<Option<String>> {
        Ok(self.state().notes.get(name).cloned())
    }

    async fn prune(&self, limits: PruneLimits) -> Result<u64> {
        Ok(self.state().prune(limits))
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;
    use crate::testing::store_suite;

    #[tokio::test]
    async fn it_keeps_what_a_store_promises() {
        store_suite::run(async || MemoryStore::new()).await;
    }
}
