//! What the manager does about GPUs beyond handing them out: who is told what happens to them, and what a stopped resource keeps.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use hwm_core::Error;
use hwm_core::accelerator::GpuHealth;
use hwm_core::access::Principal;
use hwm_core::env::Environment;
use hwm_core::id::ResourceId;
use hwm_core::lifecycle::{Action, Status};
use hwm_core::manager::{EventFilter, EventItem, Manager, RequestOptions, Scoped, Settings};
use hwm_core::operation::{Arguments, Operation, OperationStatus};
use hwm_core::resource::Resource;
use hwm_core::store::memory::MemoryStore;
use hwm_core::testing::env::SimEnvironment;
use hwm_core::testing::sim::{Sim, SimOptions, parse_cards};
use hwm_core::validate::{self, Rules};
use serde_json::json;

struct House {
    sim: Sim,
    manager: Manager,
    admin: Scoped,
    hold: Option<Duration>,
    env: Arc<SimEnvironment>,
    store: MemoryStore,
}

impl House {
    async fn new(cards: &str, hold: Option<Duration>) -> Self {
        let env = Arc::new(SimEnvironment::new(1));
        let options = SimOptions {
            cards: parse_cards(cards).unwrap(),
            ..SimOptions::default()
        };
        let (sim, store) = (Sim::new(env.clone(), options), MemoryStore::new());
        let manager = start(&sim, &store, env.clone(), hold).await;
        let admin = manager.as_principal(Principal::admin("ada"));
        Self {
            sim,
            manager,
            admin,
            hold,
            env,
            store,
        }
    }

    async fn running(&self, card: &str) -> ResourceId {
        let accepted = self.create(card).await.unwrap();
        let ended = self
            .admin
            .wait(accepted.1, Duration::from_secs(3600))
            .await
            .unwrap();
        assert_eq!(ended.status, OperationStatus::Succeeded, "{ended:?}");
        accepted.0
    }

    async fn create(&self, card: &str) -> Result<(ResourceId, hwm_core::id::OperationId), Error> {
        let body = json!({ "name": "web", "resourceType": "application-container", "config": {
            "type": "application-container", "registry": "docker-hub", "imageName": "nginx", "gpuDeviceIds": [card],
        }});
        let request = validate::create_request(&body, &Rules::default()).unwrap();
        let accepted = self.admin.create(request, RequestOptions::default()).await?;
        Ok((accepted.resource.id, accepted.operation.unwrap()))
    }

    async fn act(&self, id: ResourceId, action: Action) -> Result<Operation, Error> {
        let accepted = self
            .admin
            .act(id, action, Arguments::default(), RequestOptions::default())
            .await?;
        self.admin
            .wait(accepted.operation.unwrap(), Duration::from_secs(3600))
            .await
    }

    async fn resource(&self, id: ResourceId) -> Resource {
        self.admin.get(id, false).await.unwrap().resource
    }

    async fn holder(&self) -> Option<ResourceId> {
        self.admin.nodes().await.unwrap()[0].gpus[0].resource_id
    }
}

async fn start(sim: &Sim, store: &MemoryStore, env: Arc<dyn Environment>, hold: Option<Duration>) -> Manager {
    let mut settings = Settings::default();
    settings.hold_gpus = hold;
    Manager::builder(Arc::new(store.clone()), "node-1".into())
        .backend(sim.containers())
        .accelerators(sim.accelerators())
        .environment(env)
        .settings(settings)
        .build()
        .await
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn who_has_a_gpu_is_told_what_happens_to_it_and_nobody_else() {
    let house = House::new("sim:a30*2", None).await;
    let (first, other) = (house.running("0").await, house.running("1").await);
    let told = async |id| {
        let filter = EventFilter {
            resource: Some(id),
            ..EventFilter::default()
        };
        let mut events = house.admin.events(filter, Some(0)).await.unwrap();
        let mut messages = Vec::new();
        while let Ok(Some(item)) = tokio::time::timeout(Duration::from_secs(2), events.next()).await {
            if let EventItem::Event(event) = item
                && event.kind.as_str() == "node.gpu"
            {
                messages.push(event.data["message"].as_str().unwrap().to_owned());
            }
        }
        messages
    };
    house.sim.gpu_event(0, false, "XID 13: graphics engine exception");
    assert_eq!(told(first).await, ["XID 13: graphics engine exception"]);
    assert_eq!(
        house.resource(first).await.status,
        Status::Running,
        "a note is no loss"
    );
    house.sim.gpu_event(0, true, "XID 79: GPU has fallen off the bus");
    assert_eq!(told(first).await.len(), 2);
    let lost = house.resource(first).await;
    assert_eq!(lost.status, Status::Error);
    assert!(lost.error_message.unwrap().contains("XID 79"));
    assert!(told(other).await.is_empty());
    assert_eq!(house.resource(other).await.status, Status::Running);
}

#[tokio::test(start_paused = true)]
async fn a_stopped_resource_keeps_its_gpus_for_as_long_as_it_is_told_to() {
    for (hold, kept_after, gone_after) in [
        (None, 86_400, None),
        (Some(60), 59, Some(62)),
        (Some(0), 0, Some(0)),
    ] {
        let house = House::new("sim:a30", hold.map(Duration::from_secs)).await;
        let id = house.running("0").await;
        house.act(id, Action::Stop).await.unwrap();
        if kept_after > 0 {
            tokio::time::sleep(Duration::from_secs(kept_after)).await;
            assert_eq!(house.holder().await, Some(id), "{hold:?}");
            assert_eq!(house.create("0").await.unwrap_err().code(), "GPU_CONFLICT");
        }
        let Some(gone_after) = gone_after else { continue };
        tokio::time::sleep(Duration::from_secs(gone_after - kept_after)).await;
        house.manager.settled().await;
        assert_eq!(house.holder().await, None, "{hold:?}");
        let stopped = house.resource(id).await;
        assert_eq!(stopped.status, Status::Stopped);
        assert!(stopped.runtime.unwrap().allocated_gpu.is_empty());
        assert!(
            house.sim.holdings().devices.is_empty(),
            "the device itself was taken back"
        );

        // Another has it: the start is refused by name, and goes through when it is free again.
        let other = house.running("0").await;
        let refused = house.act(id, Action::Start).await.unwrap_err();
        assert_eq!(refused.code(), "GPU_CONFLICT");
        assert!(refused.to_string().contains(&other.to_string()), "{refused}");
        house.act(other, Action::Delete).await.unwrap();
        assert_eq!(
            house.act(id, Action::Start).await.unwrap().status,
            OperationStatus::Succeeded
        );
        assert_eq!(house.holder().await, Some(id));
        assert_eq!(house.resource(id).await.runtime.unwrap().allocated_gpu.len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_that_waits_behind_the_stop_keeps_the_gpus() {
    let house = House::new("sim:a30", Some(Duration::ZERO)).await;
    let id = house.running("0").await;
    let ask = async |action| {
        let accepted = house
            .admin
            .act(id, action, Arguments::default(), RequestOptions::default())
            .await;
        accepted.unwrap().operation.unwrap()
    };
    let (_, started) = (ask(Action::Stop).await, ask(Action::Start).await);
    assert_eq!(house.create("0").await.unwrap_err().code(), "GPU_CONFLICT");
    let ended = house
        .admin
        .wait(started, Duration::from_secs(3600))
        .await
        .unwrap();
    assert_eq!(ended.status, OperationStatus::Succeeded, "{ended:?}");
    assert_eq!(house.holder().await, Some(id));
    assert_eq!(house.resource(id).await.status, Status::Running);
}

#[tokio::test(start_paused = true)]
async fn the_time_is_kept_over_a_restart_of_the_manager() {
    let house = House::new("sim:a30", Some(Duration::from_secs(600))).await;
    let id = house.running("0").await;
    house.act(id, Action::Stop).await.unwrap();
    house.manager.shutdown(Duration::from_secs(5)).await;
    let again = start(&house.sim, &house.store, house.env.clone(), house.hold).await;
    let admin = again.as_principal(Principal::admin("ada"));
    let holder = async || admin.nodes().await.unwrap()[0].gpus[0].resource_id;
    tokio::time::sleep(Duration::from_secs(500)).await;
    assert_eq!(holder().await, Some(id));
    tokio::time::sleep(Duration::from_secs(200)).await;
    again.settled().await;
    assert_eq!(holder().await, None);
}

#[tokio::test(start_paused = true)]
async fn what_others_made_is_shown_as_adoptable_and_a_sick_card_says_why() {
    let house = House::new("sim:a100-40gb+mig,a30", None).await;
    let uuid = house.sim.plant_instance(0, "3g.20gb", 4).unwrap();
    house.sim.gpu_event(1, true, "XID 48: double-bit ECC error");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let node = house.admin.nodes().await.unwrap().remove(0);
    let instance = &node.gpus[0].instances[0];
    assert_eq!((instance.uuid.as_ref(), instance.adoptable), (Some(&uuid), true));
    assert!(instance.resource_id.is_none() && instance.metrics.is_some());
    let sick = &node.gpus[1];
    assert_eq!(
        (sick.health, sick.health_reason.as_deref()),
        (GpuHealth::Quarantined, Some("XID 48: double-bit ECC error"))
    );
    // A recovery that fails says why, to whom may ask for it.
    house.sim.set_gpu_sick(1, true);
    let (node, card) = (node.id.clone(), sick.uuid.clone());
    let refused = house.admin.recover_gpu(&node, &card).await.unwrap_err();
    assert_eq!(refused.code(), "GPU_CONFLICT");
    assert!(refused.to_string().contains("still sick"), "{refused}");
    house.sim.set_gpu_sick(1, false);
    let node = house.admin.recover_gpu(&node, &card).await.unwrap();
    assert_eq!(
        (node.gpus[1].health, &node.gpus[1].health_reason),
        (GpuHealth::Ok, &None)
    );
}
