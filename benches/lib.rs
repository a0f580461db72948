//! What the benches share: made-up records, and how figures are told.
//!
//! Each bench ends with its figures as lines of JSON on standard output, all else goes to standard error:
//! `cargo bench -p hwm-benches --bench store 2>/dev/null | grep '^{'`.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Duration;

use hwm_core::access::Owner;
use hwm_core::config::{
    Config, ContainerConfig, NetworkMode, PortRequest, Protocol, PullPolicy, Registry, RegistryAuth,
    RestartPolicy,
};
use hwm_core::id::ResourceId;
use hwm_core::lifecycle::{Desired, Phase};
use hwm_core::resource::{Allocation, Record};
use hwm_core::secret::Secret;
use hwm_core::store::{CommitError, RecordWrite, Store, Transaction};
use hwm_core::units::{Bytes, Cores, Timestamp};
use hwm_http::auth::{AuthError, Claims, sign_hs256};

/// A figure, and what it is measured against.
#[derive(Debug, Clone)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
    /// What it is beside: a ceiling, a peer, or the same on less data.
    pub beside: Option<(&'static str, f64)>,
    /// What it must reach, in words.
    pub target: Option<&'static str>,
}

impl Figure {
    /// A duration, in microseconds.
    pub fn micros(name: impl Into<String>, value: Duration) -> Self {
        Self {
            name: name.into(),
            value: value.as_secs_f64() * 1e6,
            unit: "µs",
            beside: None,
            target: None,
        }
    }

    /// Prints it as one line of JSON.
    #[allow(clippy::print_stdout)]
    pub fn print(&self, bench: &str) {
        let beside = self.beside.map(|(name, value)| {
            serde_json::json!({ "name": name, "value": round(value), "ratio": round(self.value / value) })
        });
        let line = serde_json::json!({
            "bench": bench,
            "name": self.name,
            "value": round(self.value),
            "unit": self.unit,
            "beside": beside,
            "target": self.target,
        });
        println!("{line}");
    }
}

fn round(value: f64) -> f64 {
    let digits = if value.abs() < 100.0 { 100.0 } else { 1.0 };
    (value * digits).round() / digits
}

/// A token with which everything may be done.
///
/// # Errors
/// When `secret` is too short.
pub fn admin_token(secret: &[u8]) -> Result<String, AuthError> {
    sign_hs256(
        secret,
        &Claims {
            sub: "ann".into(),
            username: "ann".into(),
            status: "active".into(),
            roles: vec!["universe.owner".into()],
            org_id: "org-0".into(),
            group_id: "group-0".into(),
            user_id: "user-0".into(),
            exp: 4_000_000_000,
            ..Claims::default()
        },
    )
}

/// The middle of some values.
pub fn median<T: PartialOrd + Copy + Default>(values: &mut [T]) -> T {
    values.sort_unstable_by(|a, b| a.partial_cmp(b).unwrap_or(Ordering::Equal));
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Puts the first so many records into a store, some hundreds at a time.
///
/// # Errors
/// When the store fails.
pub async fn fill(store: &dyn Store, rows: u64, made: impl Fn(u64) -> Record) -> Result<(), CommitError> {
    const AT_ONCE: usize = 500;
    for first in (0..rows).step_by(AT_ONCE) {
        let records = (first..rows).take(AT_ONCE).map(|n| RecordWrite {
            record: made(n),
            expected: None,
        });
        let records = records.collect();
        store
            .commit(Transaction {
                records,
                ..Transaction::default()
            })
            .await?;
    }
    Ok(())
}

/// The `n`th record of a large installation: 10 organizations of which the first has half of all, mostly
/// running containers on one node.
pub fn record(n: u64) -> Record {
    let org = if n.is_multiple_of(2) { 0 } else { 1 + n / 2 % 9 };
    let phase = match n / 3 % 100 {
        0..60 => Phase::Running,
        60..85 => Phase::Stopped,
        85..95 => Phase::Deleted,
        95..97 => Phase::Deploying,
        97..99 => Phase::Failed,
        _ => Phase::Error,
    };
    let at = Timestamp::from_millis(1_790_000_000_000 + n as i64 * 7);
    Record {
        id: ResourceId::from_u128(
            u128::from(at.as_millis().cast_unsigned()) << 80 | 0x7 << 76 | u128::from(n),
        ),
        name: format!(
            "service-{}-{n}",
            ["web", "db", "cache", "queue", "infer"][n as usize / 7 % 5]
        ),
        description: Some(format!("made for the bench, number {n}")),
        metadata: BTreeMap::from([("team".to_owned(), format!("team-{}", n % 40))]),
        node: "node-0".into(),
        backend: "docker".into(),
        owner: Owner {
            org_id: format!("org-{org}"),
            group_id: format!("group-{}", n % 20 / 4),
            user_id: format!("user-{}", n % 100),
            agent_id: String::new(),
            app_id: "portal".to_owned(),
        },
        created_by: "user".to_owned(),
        updated_by: "user".to_owned(),
        created_at: at,
        updated_at: Timestamp::from_millis(at.as_millis() + n as i64 * 7919 % 1_000_000),
        deleted_at: (phase == Phase::Deleted).then_some(at),
        config: Config::Container(container(n)),
        applied: None,
        phase,
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

fn container(n: u64) -> ContainerConfig {
    ContainerConfig {
        registry: Registry::DockerHub,
        image_name: "library/nginx".to_owned(),
        image_tag: "1.29".to_owned(),
        registry_auth: n.is_multiple_of(4).then(|| RegistryAuth {
            username: Some("robot".to_owned()),
            password: Some(Secret::new("a password")),
            token: None,
        }),
        container_ports: vec![PortRequest {
            container_port: 80,
            host_port: None,
            protocol: Protocol::Tcp,
        }],
        cpu_cores: Some(Cores::from_f64(0.5)),
        ram_limit: Some(Bytes::from_gb(0.25)),
        gpu_device_ids: Vec::new(),
        volumes: Vec::new(),
        environment: BTreeMap::from([
            ("MODE".to_owned(), "production".to_owned()),
            ("REGION".to_owned(), "eu-central".to_owned()),
        ]),
        network_mode: NetworkMode::Bridge,
        gpu_config: None,
        pull_policy: PullPolicy::Missing,
        command: None,
        args: None,
        shm_size_mb: None,
        restart_policy: RestartPolicy::No,
    }
}
