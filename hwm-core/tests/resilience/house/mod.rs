//! A node whose manager can be killed: a simulated world, a store, and one life of the manager after the
//! other; and the oracle that compares what is recorded with what is there.

pub(crate) mod oracle;
pub(crate) mod seeds;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use hwm_core::access::{Principal, Visibility};
use hwm_core::env::Environment;
use hwm_core::id::ResourceId;
use hwm_core::manager::{Manager, Scoped};
use hwm_core::store::memory::MemoryStore;
use hwm_core::store::{OperationQuery, Store};
use hwm_core::testing::backend_suite::samples;
use hwm_core::testing::env::{Incarnation, SimEnvironment};
use hwm_core::testing::faults::Faults;
use hwm_core::testing::sim::{Daemon, Sim, SimOptions, parse_cards};
use hwm_core::validate::{self, CreateRequest, Rules};

/// Runs `test` on a runtime of its own whose time is virtual.
pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.expect("a runtime").block_on(test)
}

/// What outlives a manager.
pub(crate) struct World {
    pub(crate) env: Arc<SimEnvironment>,
    pub(crate) sim: Sim,
    pub(crate) store: MemoryStore,
}

/// The manager from its start to its end.
pub(crate) struct Life {
    pub(crate) incarnation: Incarnation,
    pub(crate) faults: Faults,
    pub(crate) manager: Manager,
    pub(crate) admin: Scoped,
    store: MemoryStore,
    dead: CancellationToken,
}

pub(crate) const NODE: &str = "node-1";

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        Self::with(seed, SimOptions::default())
    }

    pub(crate) fn with(seed: u64, options: SimOptions) -> Self {
        let env = Arc::new(SimEnvironment::new(seed));
        let options = SimOptions {
            cards: parse_cards("sim:a100-40gb+mig,a30*2").expect("cards"),
            ..options
        };
        let sim = Sim::new(env.clone(), options);
        for n in 0..3 {
            let id = ResourceId::from_u128(0xf00 + n);
            sim.plant_foreign("another-hwm", Daemon::Containers, &samples::container(id, &[]));
            sim.plant_foreign(
                "another-hwm",
                Daemon::Machines,
                &samples::machine(id, "debian-12"),
            );
        }
        Self {
            env,
            sim,
            store: MemoryStore::new(),
        }
    }

    /// Starts a manager. Faults are counted from here on; none is planned.
    pub(crate) async fn begin(&self) -> Life {
        let faults = Faults::new(self.env.clone());
        self.begin_with(faults)
            .await
            .expect("a manager without faults starts")
    }

    /// Starts a manager with these faults. None when it died of them.
    pub(crate) async fn begin_with(&self, faults: Faults) -> Option<Life> {
        let incarnation = self.env.incarnation();
        let dead = CancellationToken::new();
        let (life, died) = (incarnation.clone(), dead.clone());
        faults.on_crash(move || {
            life.crash();
            died.cancel();
        });
        let building = Manager::builder(faults.store(Arc::new(self.store.clone())), NODE.into())
            .backend(faults.backend(self.sim.containers()))
            .backend(faults.backend(self.sim.machines()))
            .accelerators(faults.accelerators(self.sim.accelerators()))
            .environment(Arc::new(incarnation.clone()))
            .rules(rules())
            .build();
        let manager = unless(&dead, incarnation.within(building))
            .await?
            .expect("the store answers");
        let admin = manager.as_principal(Principal::admin("ada"));
        Some(Life {
            incarnation,
            faults,
            manager,
            admin,
            store: self.store.clone(),
            dead,
        })
    }

    /// Starts a manager without faults, lets it finish what there is to do, and ends it.
    pub(crate) async fn recover(&self) {
        let life = self.begin().await;
        life.converge().await;
        life.kill();
    }
}

async fn unless<T>(dead: &CancellationToken, future: impl Future<Output = T>) -> Option<T> {
    match select(Box::pin(dead.cancelled()), Box::pin(future)).await {
        Either::Left(_) => None,
        Either::Right((value, _)) => Some(value),
    }
}

impl Life {
    /// Does something as a client of this manager. None when the manager died meanwhile.
    pub(crate) async fn attempt<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        unless(&self.dead, self.incarnation.within(work)).await
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.is_cancelled()
    }

    /// Kills it, as SIGKILL does.
    pub(crate) fn kill(&self) {
        self.incarnation.crash();
        self.dead.cancel();
    }

    /// Waits until no operation waits or runs.
    pub(crate) async fn finish(&self) {
        let query = OperationQuery {
            visibility: Visibility::All,
            resource: None,
            unfinished: true,
            offset: 0,
            limit: 1,
        };
        // Time is virtual: looking rarely is what saves time.
        let mut pause = Duration::from_millis(5);
        while self
            .store
            .operations(query.clone())
            .await
            .is_ok_and(|page| page.total > 0)
        {
            self.incarnation.sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(60));
        }
        self.manager.settled().await;
    }

    /// Waits until nothing is left to do. Answers whether it lived to see that.
    pub(crate) async fn converge(&self) -> bool {
        let work = async {
            for _ in 0..3 {
                self.finish().await;
                self.manager.resync().await;
            }
            self.finish().await;
        };
        let limit = self.incarnation.sleep(Duration::from_secs(48 * 3600));
        let limited = async {
            match select(Box::pin(work), limit).await {
                Either::Left(_) => true,
                Either::Right(_) => false,
            }
        };
        match self.attempt(limited).await {
            None => false,
            Some(ended) => {
                assert!(ended, "operations are still under way after two days");
                true
            }
        }
    }
}

/// What kind of workload a test is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A container with a chosen and an open port and limits.
    Container,
    /// A container with a MIG slice and a writable folder.
    Slice,
    /// A machine with a static address and a card.
    Machine,
    /// An inference container with a whole card that the node chooses, and a health check.
    Inference,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Container, Self::Slice, Self::Machine, Self::Inference];

    pub(crate) fn resource_type(self) -> &'static str {
        match self {
            Self::Container | Self::Slice => "application-container",
            Self::Machine => "virtual-machine",
            Self::Inference => "inference-container",
        }
    }

    pub(crate) fn config(self) -> Value {
        match self {
            Self::Container => json!({
                "type": "application-container", "registry": "docker-hub", "imageName": "nginx",
                "containerPorts": [{ "containerPort": 80 }, { "containerPort": 443, "hostPort": 8443 }],
                "cpuCores": 2, "ramLimit": 1,
            }),
            Self::Slice => json!({
                "type": "application-container", "registry": "docker-hub", "imageName": "cuda",
                "gpuConfig": { "enabled": true, "mode": "mig", "migProfile": "2g.10gb" },
                "volumes": [{ "hostPath": "/srv/hwm/volumes/a", "containerPath": "/data" }],
            }),
            Self::Machine => json!({
                "type": "virtual-machine", "osImage": "debian-12", "vcpus": 2, "ramMB": 2048, "diskGB": 20,
                "gpuConfig": { "enabled": true, "mode": "passthrough", "deviceIds": ["1"] },
                "networkConfig": {
                    "mode": "bridge-vlan", "ipMode": "static", "ipAddress": "192.168.7.10",
                    "netmask": "255.255.255.0", "gateway": "192.168.7.1", "vlanId": 7,
                },
            }),
            Self::Inference => json!({
                "type": "inference-container", "modelId": "m", "modelPath": "/srv/hwm/models/m",
                "dockerImage": "infer:1", "containerPort": 8000, "cpuCores": 1,
                "gpuConfig": { "enabled": true, "mode": "whole" },
            }),
        }
    }

    /// A change of the config that can be made while it runs, as a merge patch.
    pub(crate) fn live_change(self) -> Value {
        match self {
            Self::Container | Self::Slice | Self::Inference => {
                json!({ "config": { "cpuCores": 3, "ramLimit": 2 } })
            }
            Self::Machine => json!({ "config": { "vcpus": 4, "ramMB": 4096 } }),
        }
    }

    /// A change of the config that can be made while it is down: of its GPUs, where it has any.
    pub(crate) fn change_at_rest(self) -> Value {
        match self {
            Self::Slice => json!({ "config": {
                "gpuConfig": { "enabled": true, "mode": "mig", "migProfile": "3g.20gb" },
            } }),
            Self::Machine => json!({ "config": {
                "gpuConfig": { "enabled": true, "mode": "passthrough", "deviceIds": ["2"] },
            } }),
            Self::Container | Self::Inference => self.later_change(),
        }
    }

    /// A change of the config that waits for the next start; it moves claims where it can.
    pub(crate) fn later_change(self) -> Value {
        match self {
            Self::Container => json!({ "config": {
                "containerPorts": [{ "containerPort": 80 }, { "containerPort": 443, "hostPort": 9443 }],
            } }),
            Self::Slice => json!({ "config": {
                "volumes": [{ "hostPath": "/srv/hwm/volumes/b", "containerPath": "/data" }],
            } }),
            Self::Machine => json!({ "config": { "networkConfig": { "ipAddress": "192.168.7.11" } } }),
            Self::Inference => json!({ "config": { "environment": { "A": "b" } } }),
        }
    }
}

pub(crate) fn rules() -> Rules {
    Rules {
        volume_roots: vec!["/srv/hwm/volumes".into()],
        model_roots: vec!["/srv/hwm/models".into()],
        ..Rules::default()
    }
}

/// What a client sends to make a workload.
pub(crate) fn request(name: &str, kind: &str, config: Value, auto_start: bool) -> CreateRequest {
    let body = json!({ "name": name, "resourceType": kind, "config": config, "autoStart": auto_start });
    match validate::create_request(&body, &rules()) {
        Ok(request) => request,
        Err(violations) => panic!("{body}: {violations:?}"),
    }
}
