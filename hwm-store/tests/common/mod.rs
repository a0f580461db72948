//! What the tests share.

use std::collections::BTreeMap;

use hwm_core::access::Owner;
use hwm_core::config::{
    Config, ContainerConfig, NetworkMode, PullPolicy, Registry, RegistryAuth, RestartPolicy,
};
use hwm_core::id::ResourceId;
use hwm_core::lifecycle::{Desired, Phase};
use hwm_core::resource::{Allocation, Record};
use hwm_core::secret::Secret;
use hwm_core::units::Timestamp;

/// Numbers that a seed repeats (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// How often to do what is done `n` times in every run: `HWM_TEST_TIMES` times that.
pub(crate) fn times(n: u64) -> u64 {
    n * std::env::var("HWM_TEST_TIMES").map_or(1, |times| times.parse().expect("HWM_TEST_TIMES is a number"))
}

/// A queued container with a secret, `canary-` and its number.
pub(crate) fn record(n: u64) -> Record {
    let at = Timestamp::from_millis(1_790_000_000_000 + n as i64);
    Record {
        id: ResourceId::from_u128(u128::from(n)),
        name: format!("resource {n}"),
        description: Some("of a test".to_owned()),
        metadata: BTreeMap::new(),
        node: "node".into(),
        backend: "docker".into(),
        owner: Owner {
            org_id: "org".to_owned(),
            group_id: "group".to_owned(),
            user_id: "user".to_owned(),
            agent_id: String::new(),
            app_id: String::new(),
        },
        created_by: "user".to_owned(),
        updated_by: "user".to_owned(),
        created_at: at,
        updated_at: at,
        deleted_at: None,
        config: Config::Container(ContainerConfig {
            registry: Registry::DockerHub,
            image_name: "nginx".to_owned(),
            image_tag: "latest".to_owned(),
            registry_auth: Some(RegistryAuth {
                username: Some("robot".to_owned()),
                password: Some(Secret::new(format!("canary-{n}"))),
                token: None,
            }),
            container_ports: Vec::new(),
            cpu_cores: None,
            ram_limit: None,
            gpu_device_ids: Vec::new(),
            volumes: Vec::new(),
            environment: BTreeMap::new(),
            network_mode: NetworkMode::Bridge,
            gpu_config: None,
            pull_policy: PullPolicy::Missing,
            command: None,
            args: None,
            shm_size_mb: None,
            restart_policy: RestartPolicy::No,
        }),
        applied: None,
        phase: Phase::Queued,
        desired: Desired::Running,
        generation: 1,
        revision: 1,
        allocation: Allocation::default(),
        runtime: None,
        last_health_check: None,
        missed_health_checks: 0,
        restarts: 0,
        error_message: None,
    }
}
