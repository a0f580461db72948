//! What is done to a workload, from which state, and what may be true in the end.

use std::sync::Mutex;
use std::time::Duration;

use hwm_core::id::{ResourceId, SnapshotId};
use hwm_core::lifecycle::{Action, Phase};
use hwm_core::manager::{Accepted, RequestOptions};
use hwm_core::operation::{Arguments, OperationStatus};
use hwm_core::snapshot::SnapshotRequest;

use crate::house::oracle;
use crate::house::{Kind, Life, World, request};

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    Create,
    Start,
    Stop,
    ForcedStop,
    Restart,
    LiveUpdate,
    LaterUpdate,
    RestartAfterUpdate,
    UpdateAtRest,
    StartAfterUpdate,
    DeleteRunning,
    DeleteStopped,
    TakeSnapshot,
    RestoreSnapshot,
    DeleteSnapshot,
    DeleteWithSnapshot,
    CancelCreate,
    DeleteDuringCreate,
    StopDuringCreate,
}

impl Act {
    pub(crate) const OF_ALL: [Self; 15] = [
        Self::Create,
        Self::Start,
        Self::Stop,
        Self::ForcedStop,
        Self::Restart,
        Self::LiveUpdate,
        Self::LaterUpdate,
        Self::RestartAfterUpdate,
        Self::UpdateAtRest,
        Self::StartAfterUpdate,
        Self::DeleteRunning,
        Self::DeleteStopped,
        Self::CancelCreate,
        Self::DeleteDuringCreate,
        Self::StopDuringCreate,
    ];
    pub(crate) const OF_MACHINES: [Self; 4] = [
        Self::TakeSnapshot,
        Self::RestoreSnapshot,
        Self::DeleteSnapshot,
        Self::DeleteWithSnapshot,
    ];

    pub(crate) fn all_of(kind: Kind) -> impl Iterator<Item = Self> {
        let more: &[Self] = if kind == Kind::Machine {
            &Self::OF_MACHINES
        } else {
            &[]
        };
        Self::OF_ALL.into_iter().chain(more.iter().copied())
    }
}

/// What there is before the act.
pub(crate) struct Before {
    id: Option<ResourceId>,
    snapshot: Option<SnapshotId>,
    bystander: ResourceId,
    bystander_runs: Option<hwm_core::backend::Observed>,
}

/// What the client was told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    accepted: Mutex<Vec<Accepted>>,
    ended: Mutex<Vec<OperationStatus>>,
}

impl Told {
    fn accept(&self, accepted: &Accepted) {
        self.accepted.lock().unwrap().push(accepted.clone());
    }

    fn count(&self) -> usize {
        self.accepted.lock().unwrap().len()
    }
}

/// Waits for the end, looking again now and then: a commit that failed may have happened.
async fn end(life: &Life, accepted: &Accepted) -> OperationStatus {
    let Some(operation) = accepted.operation else {
        return OperationStatus::Succeeded;
    };
    loop {
        match life.admin.wait(operation, Duration::from_secs(60)).await {
            Ok(seen) if !seen.status.is_final() => {}
            Ok(seen) => return seen.status,
            Err(error) => panic!("an accepted operation is gone: {error}"),
        }
    }
}

async fn create(life: &Life, kind: Kind) -> Accepted {
    let request = request("w", kind.resource_type(), kind.config(), true);
    life.admin
        .create(request, RequestOptions::default())
        .await
        .unwrap()
}

/// Brings the world to where the act begins.
pub(crate) async fn prepare(world: &World, kind: Kind, act: Act) -> Before {
    let life = world.begin().await;
    let bystander = serde_json::json!({
        "type": "application-container", "registry": "docker-hub", "imageName": "redis",
        "containerPorts": [{ "containerPort": 6379 }], "cpuCores": 1, "ramLimit": 1,
    });
    let request = request("bystander", "application-container", bystander, true);
    let other = life
        .admin
        .create(request, RequestOptions::default())
        .await
        .unwrap();
    assert_eq!(end(&life, &other).await, OperationStatus::Succeeded);
    let mut before = Before {
        id: None,
        snapshot: None,
        bystander: other.resource.id,
        bystander_runs: world.sim.look(other.resource.id),
    };
    let fresh = [
        Act::Create,
        Act::CancelCreate,
        Act::DeleteDuringCreate,
        Act::StopDuringCreate,
    ];
    if !fresh.contains(&act) {
        let made = create(&life, kind).await;
        assert_eq!(end(&life, &made).await, OperationStatus::Succeeded, "{kind:?}");
        let id = made.resource.id;
        before.id = Some(id);
        if [Act::RestoreSnapshot, Act::DeleteSnapshot, Act::DeleteWithSnapshot].contains(&act) {
            let wanted = SnapshotRequest {
                name: "s".into(),
                ..SnapshotRequest::default()
            };
            let taken = life
                .admin
                .create_snapshot(id, wanted, RequestOptions::default())
                .await
                .unwrap();
            assert_eq!(end(&life, &taken).await, OperationStatus::Succeeded);
            before.snapshot = taken.snapshot.map(|s| s.id);
        }
        let rests = [
            Act::Start,
            Act::DeleteStopped,
            Act::UpdateAtRest,
            Act::StartAfterUpdate,
        ];
        if rests.contains(&act) {
            perform_action(&life, id, Action::Stop, false, &Told::default()).await;
        }
        let change = match act {
            Act::RestartAfterUpdate => Some(kind.later_change()),
            Act::StartAfterUpdate => Some(kind.change_at_rest()),
            _ => None,
        };
        if let Some(change) = change {
            let changed = life
                .admin
                .update(id, change, RequestOptions::default())
                .await
                .unwrap();
            end(&life, &changed).await;
        }
    }
    assert!(life.converge().await);
    life.kill();
    assert_eq!(
        oracle::complaints(world).await,
        [""; 0],
        "before {act:?} of {kind:?}"
    );
    before
}

async fn perform_action(life: &Life, id: ResourceId, action: Action, force: bool, told: &Told) {
    let arguments = Arguments {
        force,
        ..Arguments::default()
    };
    let asked = life
        .admin
        .act(id, action, arguments, RequestOptions::default())
        .await;
    note(life, told, asked).await;
}

/// Notes an answer, and waits for the end. Refusals count as not accepted: the store may have failed.
async fn note(life: &Life, told: &Told, asked: hwm_core::manager::Result<Accepted>) -> Option<Accepted> {
    let accepted = asked.ok()?;
    told.accept(&accepted);
    let status = end(life, &accepted).await;
    told.ended.lock().unwrap().push(status);
    Some(accepted)
}

/// Does it, as a client that waits for the end.
pub(crate) async fn perform(life: &Life, kind: Kind, act: Act, before: &Before, told: &Told) {
    let options = RequestOptions::default;
    let id = before.id.unwrap_or(before.bystander);
    match act {
        Act::Create => {
            let wanted = request("w", kind.resource_type(), kind.config(), true);
            let asked = life.admin.create(wanted, options()).await;
            note(life, told, asked).await;
        }
        Act::Start | Act::StartAfterUpdate => perform_action(life, id, Action::Start, false, told).await,
        Act::Stop => perform_action(life, id, Action::Stop, false, told).await,
        Act::ForcedStop => perform_action(life, id, Action::Stop, true, told).await,
        Act::Restart | Act::RestartAfterUpdate => {
            perform_action(life, id, Action::Restart, false, told).await
        }
        Act::LiveUpdate => {
            let asked = life.admin.update(id, kind.live_change(), options()).await;
            note(life, told, asked).await;
        }
        Act::LaterUpdate => {
            let asked = life.admin.update(id, kind.later_change(), options()).await;
            note(life, told, asked).await;
        }
        Act::UpdateAtRest => {
            let asked = life.admin.update(id, kind.change_at_rest(), options()).await;
            note(life, told, asked).await;
        }
        Act::DeleteRunning | Act::DeleteStopped | Act::DeleteWithSnapshot => {
            let asked = life.admin.delete(id, options()).await;
            note(life, told, asked).await;
        }
        Act::TakeSnapshot => {
            let wanted = SnapshotRequest {
                name: "s".into(),
                ..SnapshotRequest::default()
            };
            let asked = life.admin.create_snapshot(id, wanted, options()).await;
            note(life, told, asked).await;
        }
        Act::RestoreSnapshot | Act::DeleteSnapshot => {
            let Some(snapshot) = before.snapshot else {
                panic!("there is a snapshot")
            };
            let asked = if act == Act::RestoreSnapshot {
                life.admin.restore_snapshot(id, snapshot, options()).await
            } else {
                life.admin.delete_snapshot(id, snapshot, options()).await
            };
            note(life, told, asked).await;
        }
        Act::CancelCreate | Act::DeleteDuringCreate | Act::StopDuringCreate => {
            let wanted = request("w", kind.resource_type(), kind.config(), true);
            let Ok(made) = life.admin.create(wanted, options()).await else {
                return;
            };
            told.accept(&made);
            hwm_core::env::Environment::sleep(&life.incarnation, Duration::from_millis(15)).await;
            let id = made.resource.id;
            match act {
                Act::CancelCreate => {
                    let Some(operation) = made.operation else {
                        panic!("a create has an operation")
                    };
                    if life.admin.cancel(operation).await.is_ok() {
                        told.accept(&made);
                    }
                    end(life, &made).await;
                }
                Act::DeleteDuringCreate => {
                    let asked = life.admin.delete(id, options()).await;
                    note(life, told, asked).await;
                }
                _ => perform_action(life, id, Action::Stop, false, told).await,
            }
        }
    }
}

/// What is wrong after the next manager has converged.
pub(crate) async fn verdict(
    world: &World,
    act: Act,
    before: &Before,
    told: &Told,
    failed: bool,
) -> Vec<String> {
    let mut wrong = oracle::complaints(world).await;
    if world.sim.look(before.bystander) != before.bystander_runs {
        wrong.push("a bystander was touched".into());
    }
    let records = oracle::records(world).await;
    let ours: Vec<_> = records.values().filter(|r| r.id != before.bystander).collect();
    let acknowledged = told.count();
    if ours.len() > 1 {
        wrong.push(format!("one was asked for, and there are {}", ours.len()));
    }
    let Some(record) = ours.first() else {
        if acknowledged > 0 || before.id.is_some() {
            wrong.push("what was acknowledged is gone".into());
        }
        return wrong;
    };
    let done = acknowledged > 0;
    use Phase::{Deleted, Failed, Queued, Running, Stopped};
    let allowed: &[Phase] = match (act, done) {
        (Act::Create, _) => &[Running],
        (Act::Start | Act::StartAfterUpdate, true) => &[Running],
        (Act::Start | Act::StartAfterUpdate, false) => &[Running, Stopped],
        (Act::Stop | Act::ForcedStop, true) => &[Stopped],
        (Act::Stop | Act::ForcedStop, false) => &[Running, Stopped],
        (Act::Restart | Act::RestartAfterUpdate | Act::LiveUpdate | Act::LaterUpdate, _) => &[Running],
        (Act::DeleteRunning | Act::DeleteWithSnapshot, true) | (Act::DeleteStopped, true) => &[Deleted],
        (Act::DeleteRunning | Act::DeleteWithSnapshot, false) => &[Running, Deleted],
        (Act::DeleteStopped, false) => &[Stopped, Deleted],
        (Act::UpdateAtRest, _) => &[Stopped],
        (Act::TakeSnapshot | Act::DeleteSnapshot, _) => &[Running],
        (Act::RestoreSnapshot, true) => &[Running, Stopped],
        (Act::RestoreSnapshot, false) => &[Running, Stopped],
        (Act::CancelCreate, _) => &[Queued, Running],
        (Act::DeleteDuringCreate, _) if acknowledged == 2 => &[Deleted],
        (Act::DeleteDuringCreate, _) => &[Running, Deleted],
        (Act::StopDuringCreate, _) if acknowledged == 2 => &[Stopped, Queued],
        (Act::StopDuringCreate, _) => &[Running, Stopped, Queued],
    };
    let is_allowed = allowed.contains(&record.phase)
        || failed && [Failed, Stopped, Queued, Running].contains(&record.phase);
    if !is_allowed {
        wrong.push(format!(
            "acknowledged {acknowledged} times, it is {} ({:?}); allowed are {allowed:?}",
            record.phase, record.error_message
        ));
    }
    let stored = hwm_core::store::Store::snapshots(&world.store, record.id)
        .await
        .unwrap();
    if act == Act::TakeSnapshot && done && !failed && stored.len() != 1 {
        wrong.push(format!(
            "a snapshot was acknowledged, and there are {}",
            stored.len()
        ));
    }
    if act == Act::DeleteSnapshot && done && !failed && !stored.is_empty() {
        wrong.push("the removal of a snapshot was acknowledged, and it is there".into());
    }
    wrong
}
