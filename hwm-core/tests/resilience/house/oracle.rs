//! Compares the store with the world, when nothing is under way.

use std::collections::{BTreeMap, BTreeSet};

use hwm_core::access::Visibility;
use hwm_core::backend::ObservedState;
use hwm_core::event::StoredEvent;
use hwm_core::id::{NodeId, OperationId, ResourceId};
use hwm_core::ledger::{ClaimKey, Demand, Pool};
use hwm_core::lifecycle::Phase;
use hwm_core::resource::Record;
use hwm_core::snapshot::{Snapshot, SnapshotState};
use hwm_core::store::{ClaimFilter, EventQuery, ListQuery, OperationQuery, Position, Store};

use super::{NODE, World};

/// Everything that is wrong; empty when all is well.
pub(crate) async fn complaints(world: &World) -> Vec<String> {
    let mut wrong: Vec<String> = Vec::new();
    wrong.extend(
        world
            .sim
            .breaches()
            .into_iter()
            .map(|b| format!("the manager broke its contract: {b}")),
    );
    let foreign = world.sim.changed_foreign();
    wrong.extend(
        foreign
            .into_iter()
            .map(|f| format!("what is not ours was changed: {f}")),
    );
    let copies = world.sim.copies().into_iter().filter(|(_, n)| *n > 1);
    wrong.extend(copies.map(|(id, n)| format!("{id} is there {n} times")));
    let records = records(world).await;
    for operation in unfinished(world).await {
        wrong.push(format!("operation {operation} is not finished"));
    }
    let held = holdings(world).await;
    for record in records.values() {
        wrong.extend(
            of_record(world, record)
                .await
                .into_iter()
                .map(|w| format!("{} {}: {w}", record.id, record.phase)),
        );
        wrong.extend(of_claims(record, held.get(&record.id)));
    }
    let holdings = world.sim.holdings();
    let known = |id: &ResourceId| records.get(id).is_some_and(|r| r.phase != Phase::Deleted);
    for id in holdings.holders() {
        if !known(&id) {
            wrong.push(format!("{id} is on the node and is no resource"));
        }
    }
    for (id, device) in &holdings.devices {
        let gpus = records.get(id).map(|r| &r.allocation);
        let has_place = gpus.is_some_and(|a| !a.gpus.is_empty() || !a.retired.is_empty());
        if !has_place {
            wrong.push(format!(
                "device {device} is prepared for {id}, which has no place on a GPU"
            ));
        }
    }
    for id in held.keys().filter(|id| !known(id)) {
        wrong.push(format!("{id} holds claims and is no resource"));
    }
    wrong.extend(of_pools(world, &held).await);
    wrong
}

/// Every record, deleted ones included.
pub(crate) async fn records(world: &World) -> BTreeMap<ResourceId, Record> {
    let mut records = BTreeMap::new();
    loop {
        let query = ListQuery {
            include_deleted: true,
            limit: 200,
            position: Position::Offset(records.len() as u64),
            ..ListQuery::default()
        };
        let page = world.store.list(query).await.expect("the store answers");
        if page.records.is_empty() {
            return records;
        }
        records.extend(page.records.into_iter().map(|r| (r.id, r)));
    }
}

/// What was recorded to have happened, for people who look for the cause of a complaint.
pub(crate) async fn history(world: &World) -> Vec<String> {
    let query = EventQuery {
        after: 0,
        limit: 1000,
    };
    let page = world.store.events(query).await.expect("the store answers");
    let of_resources = page.events.iter().filter(|e| e.event.resource.is_some());
    let line = |e: &StoredEvent| {
        let event = &e.event;
        format!(
            "    {} {:?} {:?} {:?} {}",
            event.time.as_millis(),
            event.resource,
            event.kind,
            event.operation,
            event.data
        )
    };
    of_resources.map(line).collect()
}

async fn unfinished(world: &World) -> Vec<OperationId> {
    let query = OperationQuery {
        visibility: Visibility::All,
        resource: None,
        unfinished: true,
        offset: 0,
        limit: 1000,
    };
    let page = world.store.operations(query).await.expect("the store answers");
    page.operations.into_iter().map(|o| o.id).collect()
}

type Held = BTreeMap<ResourceId, BTreeMap<ClaimKey, u64>>;

async fn holdings(world: &World) -> Held {
    let claims = world
        .store
        .claims(&NodeId::new(NODE), ClaimFilter::All)
        .await
        .expect("the store answers");
    let mut held = Held::new();
    let mut exclusive = BTreeSet::new();
    for claim in claims {
        let is_shared = claim.key.pool().is_some();
        assert!(
            is_shared || exclusive.insert(claim.key.clone()),
            "{} has two holders",
            claim.key
        );
        held.entry(claim.holder)
            .or_default()
            .insert(claim.key, claim.amount);
    }
    held
}

async fn of_record(world: &World, record: &Record) -> Vec<String> {
    let mut wrong = Vec::new();
    let seen = world.sim.look(record.id);
    let is_up = seen.as_ref().is_some_and(|s| s.state == ObservedState::Running);
    match record.phase {
        Phase::Deploying | Phase::Restarting | Phase::Stopping | Phase::Deleting => {
            wrong.push("it is stuck".to_owned());
        }
        Phase::Running => {
            if !is_up {
                wrong.push(format!("it does not run: {seen:?}"));
            }
            if record.runtime.is_none() {
                wrong.push("it has no runtime".to_owned());
            }
        }
        Phase::Queued | Phase::Stopped | Phase::Failed | Phase::Error => {
            if is_up {
                wrong.push("it runs".to_owned());
            }
        }
        Phase::Deleted => {
            if seen.is_some() {
                wrong.push(format!("it is there: {seen:?}"));
            }
        }
    }
    if record.phase == Phase::Queued && seen.is_some() {
        wrong.push(format!("it was never deployed and is there: {seen:?}"));
    }
    if let Some(given) = world.sim.given(record.id) {
        if given.generation > record.generation {
            wrong.push(format!(
                "it was made from generation {}, and is at {}",
                given.generation, record.generation
            ));
        }
        if record.phase == Phase::Running && !record.restart_required() {
            if given.config != record.config {
                wrong.push(format!("it runs with another config: {:?}", given.config));
            }
            if given.ports != record.allocation.ports || given.grants != record.allocation.grants {
                wrong.push(format!(
                    "it runs with other ports or devices: {:?} {:?}",
                    given.ports, given.grants
                ));
            }
            if record.allocation.gpus.len() != given.grants.len() {
                wrong.push(format!(
                    "it has {} places and {} devices",
                    record.allocation.gpus.len(),
                    given.grants.len()
                ));
            }
        }
    }
    wrong.extend(of_snapshots(world, record).await);
    wrong
}

async fn of_snapshots(world: &World, record: &Record) -> Vec<String> {
    let mut wrong = Vec::new();
    let stored = world.store.snapshots(record.id).await.expect("the store answers");
    let there: BTreeSet<_> = world
        .sim
        .holdings()
        .snapshots
        .into_iter()
        .filter(|(id, _)| *id == record.id)
        .collect();
    let recorded: BTreeSet<_> = stored.iter().map(|s| (s.resource_id, s.id)).collect();
    // What could not be removed may be there or not, and is said to be so.
    let is_doubtful = |s: &&Snapshot| s.state == SnapshotState::Failed || record.phase == Phase::Failed;
    let doubtful: BTreeSet<_> = stored
        .iter()
        .filter(is_doubtful)
        .map(|s| (s.resource_id, s.id))
        .collect();
    let missing = recorded.difference(&there).any(|s| !doubtful.contains(s));
    if record.phase != Phase::Deleted && (missing || !there.is_subset(&recorded)) {
        wrong.push(format!(
            "its snapshots are {there:?}, and recorded are {recorded:?}"
        ));
    }
    for snapshot in &stored {
        if !matches!(snapshot.state, SnapshotState::Ready | SnapshotState::Failed) {
            wrong.push(format!(
                "snapshot {} is stuck as {:?}",
                snapshot.id, snapshot.state
            ));
        }
    }
    wrong
}

fn of_claims(record: &Record, held: Option<&BTreeMap<ClaimKey, u64>>) -> Vec<String> {
    let mut wrong = Vec::new();
    let nothing = BTreeMap::new();
    let held = held.unwrap_or(&nothing);
    let mut wanted: BTreeSet<ClaimKey> = BTreeSet::new();
    if record.phase != Phase::Deleted {
        let demand = Demand::of(&record.config, str::to_owned);
        wanted.extend(demand.exclusive);
        wanted.extend(record.allocation.ports.iter().map(|p| p.key()));
        let places = record.allocation.gpus.iter().chain(&record.allocation.retired);
        wanted.extend(places.flat_map(|p| p.keys()));
        wanted.extend(record.allocation.obsolete.iter().cloned());
        let lasting: BTreeMap<ClaimKey, u64> = demand.lasting.iter().map(|(p, n)| (p.key(), *n)).collect();
        for (key, amount) in &lasting {
            if held.get(key).is_none_or(|h| h < amount) {
                wrong.push(format!("holds {:?} of {key} and needs {amount}", held.get(key)));
            }
        }
        for (pool, amount) in &demand.running {
            let has = held.get(&pool.key()).copied();
            let wants = record.phase.takes_capacity().then_some(*amount);
            let is_exact = has == wants;
            let may_have_more = record.restart_required() && wants.is_some() && has > wants;
            if !is_exact && !may_have_more {
                wrong.push(format!("holds {has:?} of {pool:?} and should {wants:?}"));
            }
        }
    }
    let exclusive: BTreeSet<ClaimKey> = held.keys().filter(|k| k.pool().is_none()).cloned().collect();
    if exclusive != wanted {
        let lost: Vec<_> = wanted.difference(&exclusive).collect();
        let leaked: Vec<_> = exclusive.difference(&wanted).collect();
        wrong.push(format!("lost {lost:?}, leaked {leaked:?}"));
    }
    if record.phase == Phase::Deleted && !held.is_empty() {
        wrong.push(format!("holds {held:?}"));
    }
    wrong
        .into_iter()
        .map(|w| format!("{} {}: {w}", record.id, record.phase))
        .collect()
}

async fn of_pools(world: &World, held: &Held) -> Vec<String> {
    let pools = world
        .store
        .pools(&NodeId::new(NODE))
        .await
        .expect("the store answers");
    let mut wrong = Vec::new();
    for pool in Pool::ALL {
        let sum: u64 = held.values().filter_map(|h| h.get(&pool.key())).sum();
        let kept = pools.get(&pool).copied().unwrap_or(0);
        if sum != kept {
            wrong.push(format!("{pool:?} is counted as {kept}, and the claims are {sum}"));
        }
    }
    wrong
}
