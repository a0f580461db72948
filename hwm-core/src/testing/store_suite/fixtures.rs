//! Records and what goes with them, made up from small numbers.

use std::collections::BTreeMap;

use crate::access::{Owner, Visibility};
use crate::config::{
    CloudInit, Config, ContainerConfig, InferenceConfig, IpMode, MachineConfig, NetworkConfig, NetworkKind,
    NetworkMode, PullPolicy, Registry, RegistryAuth, ResourceType, RestartPolicy,
};
use crate::event::{EventType, NewEvent};
use crate::id::{BackendName, NodeId, OperationId, ResourceId, SnapshotId};
use crate::ledger::{Claim, ClaimKey};
use crate::lifecycle::{Action, Desired, Phase};
use crate::operation::{Arguments, OperationRecord, OperationStatus, Progress, Step};
use crate::resource::{Allocation, Record, Runtime};
use crate::secret::Secret;
use crate::snapshot::{Snapshot, SnapshotState};
use crate::store::{ListQuery, OperationQuery, RecordWrite, Remembered, Store, Transaction};
use crate::units::{Bytes, Cores, Timestamp};

/// Numbers that a seed repeats (splitmix64).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(super) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_millis(1_790_000_000_000 + seconds * 1000)
}

pub(super) fn resource(n: u64) -> ResourceId {
    ResourceId::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + u128::from(n))
}

pub(super) fn node(n: u64) -> NodeId {
    NodeId::new(format!("node-{n}"))
}

pub(super) fn owner(ids: [&str; 4]) -> Owner {
    let [org_id, group_id, user_id, agent_id] = ids.map(str::to_owned);
    Owner {
        org_id,
        group_id,
        user_id,
        agent_id,
        app_id: "app".to_owned(),
    }
}

pub(super) fn config(kind: ResourceType) -> Config {
    match kind {
        ResourceType::VirtualMachine => Config::Machine(MachineConfig {
            os_image: "debian-12".to_owned(),
            vcpus: 2,
            ram: Bytes::from_mb(2048),
            disk: Bytes::from_whole_gb(20),
            gpu_config: None,
            network_config: NetworkConfig {
                mode: NetworkKind::BridgeVlan,
                ip_mode: IpMode::Dhcp,
                ip_address: None,
                netmask: None,
                gateway: None,
                vlan_id: Some(100),
                dns: vec![[9, 9, 9, 9].into()],
            },
            cloud_init: Some(CloudInit {
                hostname: Some("box".to_owned()),
                password: Some(Secret::new("machine-canary")),
                ..CloudInit::default()
            }),
        }),
        ResourceType::ApplicationContainer => Config::Container(ContainerConfig {
            registry: Registry::Private,
            image_name: "registry.example:5000/app".to_owned(),
            image_tag: "1.2".to_owned(),
            registry_auth: Some(RegistryAuth {
                username: Some("robot".to_owned()),
                password: Some(Secret::new("container-canary")),
                token: Some(Secret::new("token-canary \u{1f511} \"\\")),
            }),
            container_ports: Vec::new(),
            cpu_cores: Some(Cores::from_f64(0.5)),
            ram_limit: Some(Bytes::from_gb(0.25)),
            gpu_device_ids: Vec::new(),
            volumes: Vec::new(),
            environment: BTreeMap::from([("KEY".to_owned(), "a\nb".to_owned())]),
            network_mode: NetworkMode::Bridge,
            gpu_config: None,
            pull_policy: PullPolicy::Missing,
            command: None,
            args: Some(vec!["--verbose".to_owned()]),
            shm_size_mb: None,
            restart_policy: RestartPolicy::No,
        }),
        ResourceType::InferenceContainer => Config::Inference(InferenceConfig {
            model_id: "m".to_owned(),
            model_path: "s3://models/m".to_owned(),
            docker_image: "vllm/vllm-openai:latest".to_owned(),
            container_port: 8000,
            gpu_device_ids: vec!["0".to_owned()],
            gpu_config: None,
            gpu_memory_limit: None,
            cpu_cores: None,
            ram_limit: None,
            environment: BTreeMap::new(),
            command: None,
            args: None,
            shm_size_mb: Some(64),
            restart_policy: RestartPolicy::OnFailure,
            pull_policy: PullPolicy::Missing,
            registry_auth: None,
            health_check_path: "/health".to_owned(),
            health_check_interval_seconds: 10,
            health_check_deadline_seconds: 600,
        }),
    }
}

/// The `n`th record: an application container, queued, at revision 1.
pub(super) fn record(n: u64) -> Record {
    Record {
        id: resource(n),
        name: format!("resource {n}"),
        description: None,
        metadata: BTreeMap::from([("tier".to_owned(), "gold".to_owned())]),
        node: node(0),
        backend: BackendName::new("docker"),
        owner: owner(["org", "group", "user", "agent"]),
        created_by: "user".to_owned(),
        updated_by: "user".to_owned(),
        created_at: at(n as i64),
        updated_at: at(n as i64),
        deleted_at: None,
        config: config(ResourceType::ApplicationContainer),
        applied: None,
        phase: Phase::Queued,
        desired: Desired::Running,
        generation: 1,
        revision: 1,
        allocation: Allocation::default(),
        runtime: Some(Runtime {
            id: "c0ffee".to_owned(),
            endpoint: Some("127.0.0.1:8080".to_owned()),
            allocated_gpu: Vec::new(),
            allocated_cpu: Cores::from_f64(0.5),
            allocated_ram: Bytes::from_mb(256),
            started_at: Some(at(1)),
            stopped_at: None,
        }),
        last_health_check: None,
        missed_health_checks: 0,
        restarts: 0,
        error_message: None,
    }
}

/// As [`record`], with everything that lists look at drawn from few values, so that many are equal.
pub(super) fn drawn_record(random: &mut Random, n: u64) -> Record {
    let mut record = record(n);
    let of = |random: &mut Random, ids: [&'static str; 3]| *random.pick(&ids);
    record.owner = owner([
        of(random, ["", "o1", "o2"]),
        of(random, ["", "g1", "g2"]),
        of(random, ["", "u1", "u2"]),
        of(random, ["", "a1", "a2"]),
    ]);
    record.config = config(*random.pick(&ResourceType::ALL));
    record.phase = *random.pick(&Phase::ALL);
    record.deleted_at = (record.phase == Phase::Deleted).then(|| at(5));
    record.node = node(random.below(3));
    record.backend = BackendName::new(*random.pick(&["docker", "libvirt"]));
    record.name =
        (*random.pick(&["web", "Web", "db", "äpfel", "Ärger 100%", "a_b", "日本語", "x"])).to_owned();
    record.description = match random.below(4) {
        0 => Some("Front END of the shop".to_owned()),
        1 => Some("it's \"quoted\" web".to_owned()),
        _ => None,
    };
    record.created_at = at(random.below(12) as i64);
    record.updated_at = at(random.below(40) as i64);
    record
}

pub(super) fn create(record: Record) -> RecordWrite {
    RecordWrite {
        record,
        expected: None,
    }
}

pub(super) fn claim(key: ClaimKey, holder: u64, amount: u64) -> Claim {
    Claim {
        node: node(0),
        key,
        holder: resource(holder),
        amount,
    }
}

pub(super) fn operation(n: u64, of: u64, status: OperationStatus) -> OperationRecord {
    OperationRecord {
        id: OperationId::from_u128(u128::from(n)),
        resource: resource(of),
        backend: BackendName::new("docker"),
        owner: owner(["org", "group", "user", "agent"]),
        action: Action::Start,
        arguments: Arguments::default(),
        generation: 1,
        status,
        cancel_requested: false,
        progress: Progress {
            step: Step::Accepted,
            message: "accepted".to_owned(),
            percent: None,
        },
        error: None,
        requested_by: "user".to_owned(),
        created_at: at(0),
        started_at: None,
        finished_at: status.is_final().then(|| at(10)),
        deadline: at(600),
    }
}

pub(super) fn event(n: i64) -> NewEvent {
    NewEvent {
        kind: EventType::ResourceStatus,
        time: at(n),
        resource: Some(resource(1)),
        resource_type: Some(ResourceType::ApplicationContainer),
        owner: Some(owner(["org", "group", "user", "agent"])),
        operation: None,
        data: serde_json::json!({ "n": n, "text": "\u{0}'\"" }),
    }
}

pub(super) fn snapshot(n: u64, of: u64, seconds: i64) -> Snapshot {
    Snapshot {
        id: SnapshotId::from_u128(u128::from(n)),
        resource_id: resource(of),
        name: format!("snapshot {n}"),
        description: None,
        created_at: at(seconds),
        disk_size: Some(Bytes::from_whole_gb(3)),
        state: SnapshotState::Creating,
        consistency: None,
        memory: Some(true),
    }
}

pub(super) fn remembered(key: &str, seconds: i64) -> Remembered {
    Remembered {
        key: key.to_owned(),
        fingerprint: "digest".to_owned(),
        answer: serde_json::json!({ "revision": 1 }),
        time: at(seconds),
    }
}

pub(super) async fn commit(store: &impl Store, transaction: Transaction) {
    let refused = store.commit(transaction).await.err();
    assert_eq!(
        refused, None,
        "a transaction that nothing stands against is committed"
    );
}

/// Everything that a store shows, event numbers aside.
#[derive(Debug, PartialEq)]
pub(super) struct Dump {
    records: Vec<Record>,
    listed: crate::store::Counts,
    claims: Vec<Vec<Claim>>,
    pools: Vec<BTreeMap<crate::ledger::Pool, u64>>,
    operations: Vec<OperationRecord>,
    unfinished: Vec<OperationRecord>,
    events: Vec<NewEvent>,
    snapshots: Vec<Vec<Snapshot>>,
    remembered: Vec<Option<Remembered>>,
    notes: Vec<Option<String>>,
}

/// Reads all of a store whose resources are numbered below `resources`, with the nodes, keys and notes that
/// these fixtures use.
pub(super) async fn dump(store: &impl Store, resources: u64) -> Dump {
    const READS: &str = "a store that is well can be read";
    let mut records = Vec::new();
    let mut snapshots = Vec::new();
    for n in 0..resources {
        records.extend(store.record(resource(n)).await.expect(READS));
        snapshots.push(store.snapshots(resource(n)).await.expect(READS));
    }
    let query = ListQuery {
        include_deleted: true,
        limit: 1,
        ..ListQuery::default()
    };
    let listed = nonzero(store.list(query).await.expect(READS).counts);
    let (mut claims, mut pools) = (Vec::new(), Vec::new());
    for n in 0..3 {
        let all = store.claims(&node(n), crate::store::ClaimFilter::All).await;
        claims.push(all.expect(READS));
        pools.push(store.pools(&node(n)).await.expect(READS));
    }
    let mut operations = Vec::new();
    for unfinished in [false, true] {
        let query = OperationQuery {
            visibility: Visibility::All,
            resource: None,
            unfinished,
            offset: 0,
            limit: 10_000,
        };
        operations.push(store.operations(query).await.expect(READS).operations);
    }
    let unfinished = operations.pop().unwrap_or_default();
    let events = crate::store::EventQuery {
        after: 0,
        limit: 10_000,
    };
    let events = store.events(events).await.expect(READS).events;
    let (mut answers, mut notes) = (Vec::new(), Vec::new());
    for key in ["k0", "k1", "k2"] {
        answers.push(store.remembered(key).await.expect(READS));
        notes.push(store.note(key).await.expect(READS));
    }
    Dump {
        records,
        listed,
        claims,
        pools,
        operations: operations.pop().unwrap_or_default(),
        unfinished,
        events: events.into_iter().map(|e| e.event).collect(),
        snapshots,
        remembered: answers,
        notes,
    }
}

/// The counts without what is 0, which may be left out.
pub(super) fn nonzero(mut counts: crate::store::Counts) -> crate::store::Counts {
    counts.by_status.retain(|_, n| *n > 0);
    counts.by_type.retain(|_, n| *n > 0);
    counts
}
