//! How the manager behaves, on the simulator and the store in memory.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use hwm_core::Error;
use hwm_core::access::Principal;
use hwm_core::backend::LogQuery;
use hwm_core::env::Environment;
use hwm_core::id::ResourceId;
use hwm_core::lifecycle::{Action, Status};
use hwm_core::manager::{
    Accepted, EventFilter, EventItem, Idempotency, Manager, RequestOptions, Scoped, Settings,
};
use hwm_core::operation::{Arguments, Operation, OperationStatus};
use hwm_core::store::memory::MemoryStore;
use hwm_core::testing::env::SimEnvironment;
use hwm_core::testing::sim::{Sim, SimOptions, parse_cards};
use hwm_core::validate::{self, CreateRequest, Rules};

use futures_util::StreamExt;
use serde_json::{Value, json};

struct House {
    sim: Sim,
    store: MemoryStore,
    env: Arc<SimEnvironment>,
    manager: Manager,
    admin: Scoped,
}

async fn house() -> House {
    house_with(SimOptions {
        cards: parse_cards("sim:a30*1").unwrap(),
        ..SimOptions::default()
    })
    .await
}

async fn house_with(options: SimOptions) -> House {
    let env = Arc::new(SimEnvironment::new(1));
    let sim = Sim::new(env.clone(), options);
    let store = MemoryStore::new();
    let manager = start(&sim, &store, env.clone()).await;
    let admin = manager.as_principal(Principal::admin("ada"));
    House {
        sim,
        store,
        env,
        manager,
        admin,
    }
}

async fn start(sim: &Sim, store: &MemoryStore, env: Arc<dyn Environment>) -> Manager {
    Manager::builder(Arc::new(store.clone()), "node-1".into())
        .backend(sim.containers())
        .backend(sim.machines())
        .accelerators(sim.accelerators())
        .environment(env)
        .build()
        .await
        .unwrap()
}

fn request(extra: Value) -> CreateRequest {
    let mut config = json!({
        "type": "application-container", "registry": "docker-hub", "imageName": "nginx",
        "containerPorts": [{ "containerPort": 80 }], "cpuCores": 1, "ramLimit": 1,
    });
    for (key, value) in extra.as_object().unwrap() {
        config[key] = value.clone();
    }
    let body = json!({ "name": "web", "resourceType": "application-container", "config": config });
    let rules = Rules {
        volume_roots: vec!["/srv/v".into()],
        ..Rules::default()
    };
    validate::create_request(&body, &rules).unwrap()
}

impl House {
    async fn create(&self, extra: Value) -> Accepted {
        self.admin
            .create(request(extra), RequestOptions::default())
            .await
            .unwrap()
    }

    async fn running(&self, extra: Value) -> ResourceId {
        let accepted = self.create(extra).await;
        let ended = self.end(&accepted).await;
        assert_eq!(ended.status, OperationStatus::Succeeded, "{ended:?}");
        accepted.resource.id
    }

    async fn end(&self, accepted: &Accepted) -> Operation {
        self.admin
            .wait(accepted.operation.unwrap(), Duration::from_secs(3600))
            .await
            .unwrap()
    }

    async fn act(&self, id: ResourceId, action: Action) -> Operation {
        let accepted = self
            .admin
            .act(id, action, Arguments::default(), RequestOptions::default())
            .await
            .unwrap();
        self.end(&accepted).await
    }

    async fn status(&self, id: ResourceId) -> Status {
        self.admin.get(id, false).await.unwrap().resource.status
    }
}

#[tokio::test(start_paused = true)]
async fn a_container_is_created_and_runs() {
    let house = house().await;
    let accepted = house.create(json!({})).await;
    assert_eq!(accepted.resource.status, Status::Queued);
    let ended = house.end(&accepted).await;
    assert_eq!(ended.status, OperationStatus::Succeeded);
    let resource = house
        .admin
        .get(accepted.resource.id, false)
        .await
        .unwrap()
        .resource;
    assert_eq!(resource.status, Status::Running);
    let runtime = resource.runtime.unwrap();
    assert!(runtime.endpoint.is_some());
    assert_eq!(
        house.admin.status(accepted.resource.id).await.unwrap().status,
        Status::Running
    );
    assert!(house.sim.breaches().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_life_cycle_leaves_nothing() {
    let house = house().await;
    let id = house.running(json!({})).await;
    for (action, status) in [
        (Action::Stop, Status::Stopped),
        (Action::Start, Status::Running),
        (Action::Restart, Status::Running),
    ] {
        assert_eq!(
            house.act(id, action).await.status,
            OperationStatus::Succeeded,
            "{action}"
        );
        assert_eq!(house.status(id).await, status, "{action}");
    }
    assert_eq!(
        house.act(id, Action::Delete).await.status,
        OperationStatus::Succeeded
    );
    assert!(matches!(
        house.admin.get(id, false).await,
        Err(Error::NotFound { .. })
    ));
    assert!(
        house
            .admin
            .get(id, true)
            .await
            .unwrap()
            .resource
            .deleted_at
            .is_some()
    );
    assert_eq!(house.manager.claim_counts().await.unwrap(), []);
    assert!(house.sim.holdings().holders().is_empty());
    assert!(house.sim.breaches().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_port_conflict_names_its_holder() {
    let house = house().await;
    let ports = json!({ "containerPorts": [{ "containerPort": 80, "hostPort": 8080 }] });
    let id = house.running(ports.clone()).await;
    let error = house
        .admin
        .create(request(ports), RequestOptions::default())
        .await
        .unwrap_err();
    assert_eq!(error.code(), "PORT_CONFLICT");
    assert!(error.to_string().contains(&id.to_string()), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_the_caller_may_not_see_stays_unnamed() {
    let house = house().await;
    let ports = json!({ "containerPorts": [{ "containerPort": 80, "hostPort": 8080 }] });
    let id = house.running(ports.clone()).await;
    let stranger = Principal {
        owner: hwm_core::access::Owner {
            org_id: "o".into(),
            ..Default::default()
        },
        roles: vec!["organization.editor".parse().unwrap()],
        ..Principal::default()
    };
    let stranger = house.manager.as_principal(stranger);
    let error = stranger
        .create(request(ports), RequestOptions::default())
        .await
        .unwrap_err();
    assert_eq!(error.code(), "PORT_CONFLICT");
    assert!(!error.to_string().contains(&id.to_string()), "{error}");
    assert!(matches!(
        stranger.get(id, false).await,
        Err(Error::NotFound { .. })
    ));
}

#[tokio::test(start_paused = true)]
async fn a_container_that_dies_is_in_error_with_its_last_words() {
    let house = house().await;
    let id = house.running(json!({})).await;
    house.sim.kill_workload(id, 3);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let resource = house.admin.get(id, false).await.unwrap().resource;
    assert_eq!(resource.status, Status::Error);
    assert!(resource.error_message.unwrap().contains("exit code 3"));
    assert_eq!(
        house.act(id, Action::Start).await.status,
        OperationStatus::Succeeded
    );
    assert_eq!(house.status(id).await, Status::Running);
}

#[tokio::test(start_paused = true)]
async fn a_restart_policy_brings_it_back_with_back_off() {
    let house = house().await;
    let id = house.running(json!({ "restartPolicy": "on-failure" })).await;
    for _ in 0..3 {
        house.sim.kill_workload(id, 3);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(house.status(id).await, Status::Error);
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(house.status(id).await, Status::Running);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_removed_behind_our_back_comes_back() {
    let house = house().await;
    let id = house.running(json!({})).await;
    house.sim.remove_behind_back(id);
    tokio::time::sleep(Duration::from_secs(90)).await;
    assert_eq!(house.status(id).await, Status::Running);
    assert!(house.sim.holdings().holders().contains(&id));
}

#[tokio::test(start_paused = true)]
async fn what_was_started_behind_our_back_is_stopped() {
    let house = house().await;
    let id = house.running(json!({})).await;
    house.act(id, Action::Stop).await;
    house.sim.start_behind_back(id);
    tokio::time::sleep(Duration::from_secs(90)).await;
    assert_eq!(house.status(id).await, Status::Stopped);
    assert!(house.sim.holdings().running.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_operation_waits_for_a_backend_that_is_away() {
    let house = house().await;
    let id = house.running(json!({})).await;
    house.sim.set_away(true);
    let refused = house
        .admin
        .act(id, Action::Stop, Arguments::default(), RequestOptions::default());
    let accepted = match refused.await {
        Ok(accepted) => accepted,
        Err(error) => {
            assert_eq!(error.code(), "BACKEND_UNAVAILABLE");
            return;
        }
    };
    tokio::time::sleep(Duration::from_secs(60)).await;
    house.sim.set_away(false);
    assert_eq!(house.end(&accepted).await.status, OperationStatus::Succeeded);
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_restarted_gets_its_workloads_back() {
    let house = house().await;
    let id = house.running(json!({})).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    house.sim.reboot_host();
    tokio::time::sleep(Duration::from_secs(90)).await;
    let resource = house.admin.get(id, false).await.unwrap().resource;
    assert_eq!(resource.status, Status::Running, "{resource:?}");
    assert_eq!(house.admin.status(id).await.unwrap().status, Status::Running);
}

#[tokio::test(start_paused = true)]
async fn the_same_key_has_one_effect() {
    let house = house().await;
    let options = |fingerprint: &str| RequestOptions {
        idempotency: Some(Idempotency {
            key: "k".into(),
            fingerprint: fingerprint.into(),
        }),
        ..RequestOptions::default()
    };
    let first = house
        .admin
        .create(request(json!({})), options("a"))
        .await
        .unwrap();
    let again = house
        .admin
        .create(request(json!({})), options("a"))
        .await
        .unwrap();
    assert_eq!(first, again);
    let other = house
        .admin
        .create(request(json!({})), options("b"))
        .await
        .unwrap_err();
    assert_eq!(other.code(), "IDEMPOTENCY_MISMATCH");
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_create_goes_back_to_queued_and_leaves_nothing() {
    let options = SimOptions::lifelike();
    let house = house_with(options).await;
    let accepted = house.create(json!({})).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    house.admin.cancel(accepted.operation.unwrap()).await.unwrap();
    assert_eq!(house.end(&accepted).await.status, OperationStatus::Cancelled);
    assert_eq!(house.status(accepted.resource.id).await, Status::Queued);
    assert!(house.sim.holdings().holders().is_empty());
    let ended = house.act(accepted.resource.id, Action::Start).await;
    assert_eq!(ended.status, OperationStatus::Succeeded);
}

#[tokio::test(start_paused = true)]
async fn delete_overtakes_a_create() {
    let options = SimOptions::lifelike();
    let house = house_with(options).await;
    let accepted = house.create(json!({})).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(
        house.act(accepted.resource.id, Action::Delete).await.status,
        OperationStatus::Succeeded
    );
    assert_eq!(house.end(&accepted).await.status, OperationStatus::Cancelled);
    assert!(house.sim.holdings().holders().is_empty());
    assert_eq!(house.manager.claim_counts().await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn the_next_manager_goes_on_where_the_last_one_was() {
    let options = SimOptions::lifelike();
    let house = house_with(options).await;
    let accepted = house.create(json!({})).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    house.manager.shutdown(Duration::from_secs(5)).await;
    assert_ne!(house.status(accepted.resource.id).await, Status::Running);
    let next = start(&house.sim, &house.store, house.env.clone()).await;
    let admin = next.as_principal(Principal::admin("ada"));
    let ended = admin
        .wait(accepted.operation.unwrap(), Duration::from_secs(60))
        .await
        .unwrap();
    assert_eq!(ended.status, OperationStatus::Succeeded);
}

#[tokio::test(start_paused = true)]
async fn memory_changes_live_and_ports_at_the_next_start() {
    let house = house().await;
    let id = house.running(json!({})).await;
    let patch = json!({ "config": { "ramLimit": 2 } });
    let accepted = house
        .admin
        .update(id, patch, RequestOptions::default())
        .await
        .unwrap();
    assert_eq!(house.end(&accepted).await.status, OperationStatus::Succeeded);
    let resource = house.admin.get(id, false).await.unwrap().resource;
    assert!(!resource.restart_required);
    let patch = json!({ "config": { "containerPorts": [{ "containerPort": 80, "hostPort": 9090 }] } });
    let accepted = house
        .admin
        .update(id, patch, RequestOptions::default())
        .await
        .unwrap();
    assert!(accepted.resource.restart_required);
    house.act(id, Action::Restart).await;
    let resource = house.admin.get(id, false).await.unwrap().resource;
    assert!(!resource.restart_required);
    assert!(resource.runtime.unwrap().endpoint.unwrap().ends_with(":9090"));
    let claims = house.manager.claim_counts().await.unwrap();
    assert!(claims.contains(&("port".to_owned(), 1)), "{claims:?}");
}

#[tokio::test(start_paused = true)]
async fn a_gpu_has_one_holder() {
    let house = house().await;
    let gpus = json!({ "gpuDeviceIds": ["0"] });
    let id = house.running(gpus.clone()).await;
    let runtime = house
        .admin
        .get(id, false)
        .await
        .unwrap()
        .resource
        .runtime
        .unwrap();
    assert_eq!(runtime.allocated_gpu.len(), 1);
    let error = house
        .admin
        .create(request(gpus), RequestOptions::default())
        .await
        .unwrap_err();
    assert_eq!(error.code(), "GPU_CONFLICT");
    assert!(error.to_string().contains(&id.to_string()), "{error}");
    let nodes = house.admin.nodes().await.unwrap();
    assert_eq!(nodes[0].gpus[0].resource_id, Some(id));
    house.act(id, Action::Delete).await;
    assert!(house.sim.holdings().holders().is_empty());
}

#[tokio::test(start_paused = true)]
async fn capacity_is_refused_before_anything_is_made() {
    let house = house().await;
    let error = house
        .admin
        .create(request(json!({ "ramLimit": 4096 })), RequestOptions::default())
        .await;
    assert_eq!(error.unwrap_err().code(), "INSUFFICIENT_CAPACITY");
    assert_eq!(house.manager.claim_counts().await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn events_tell_the_whole_story_and_replay() {
    let house = house().await;
    let id = house.running(json!({})).await;
    let filter = EventFilter {
        resource: Some(id),
        ..EventFilter::default()
    };
    let replay: Vec<EventItem> = house
        .admin
        .events(filter, Some(0))
        .await
        .unwrap()
        .take(4)
        .collect()
        .await;
    let kinds: Vec<&str> = replay
        .iter()
        .map(|item| match item {
            EventItem::Event(event) => event.kind.as_str(),
            EventItem::Reset(_) => "reset",
        })
        .collect();
    assert_eq!(kinds[0], "resource.created");
    assert!(kinds.contains(&"resource.status"), "{kinds:?}");
}

#[tokio::test(start_paused = true)]
async fn a_failed_create_says_why_and_leaves_nothing_half_made() {
    let house = house().await;
    house.sim.break_image(
        "nginx:latest",
        hwm_core::backend::BackendErrorKind::NotFound,
        "no such image",
    );
    let accepted = house.create(json!({})).await;
    let ended = house.end(&accepted).await;
    assert_eq!(ended.status, OperationStatus::Failed, "{ended:?}");
    let resource = house
        .admin
        .get(accepted.resource.id, false)
        .await
        .unwrap()
        .resource;
    assert_eq!(resource.status, Status::Failed);
    assert!(resource.error_message.unwrap().contains("no such image"));
    assert!(house.sim.holdings().holders().is_empty());
}

#[tokio::test(start_paused = true)]
async fn logs_can_be_read() {
    let house = house().await;
    let id = house.running(json!({})).await;
    let lines: Vec<_> = house
        .admin
        .logs(id, LogQuery::default())
        .await
        .unwrap()
        .collect()
        .await;
    assert!(lines.iter().all(Result::is_ok));
}

#[tokio::test(start_paused = true)]
async fn a_folder_is_written_to_by_one_resource_nested_ones_included() {
    let house = house().await;
    let volume = |path: &str, read_only: bool| json!({ "volumes": [{ "hostPath": path, "containerPath": "/data", "readOnly": read_only }] });
    let id = house.running(volume("/srv/v/a/b", false)).await;
    for path in ["/srv/v/a", "/srv/v/a/b", "/srv/v/a/b/c"] {
        let refused = house
            .admin
            .create(request(volume(path, false)), RequestOptions::default())
            .await
            .unwrap_err();
        assert_eq!(refused.code(), "VOLUME_CONFLICT", "{path}");
        assert!(refused.to_string().contains(&id.to_string()), "{refused}");
        house.running(volume(path, true)).await;
    }
    house.running(volume("/srv/v/a/bc", false)).await;
}

#[tokio::test]
async fn settings_that_no_manager_can_work_by_are_refused() {
    let changes: [fn(&mut Settings); 5] = [
        |s| s.queue_limit = 0,
        |s| s.parallel_calls = 0,
        |s| s.cpu_overcommit = f64::NAN,
        |s| s.cpu_overcommit = 0.0,
        |s| s.port_range = RangeInclusive::new(2, 1),
    ];
    for change in changes {
        let mut settings = Settings::default();
        change(&mut settings);
        let built = Manager::builder(Arc::new(MemoryStore::new()), "node-1".into())
            .settings(settings.clone())
            .build()
            .await;
        assert!(matches!(built, Err(Error::Unsupported { .. })), "{settings:?}");
    }
}
