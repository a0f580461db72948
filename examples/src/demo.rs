//! The ten demo resources, on simulated backends.

use std::time::Duration;

use hwm_core::Error;
use hwm_core::access::{Owner, Principal};
use hwm_core::backend::{BackendError, BackendErrorKind};
use hwm_core::error::Violation;
use hwm_core::lifecycle::{Action, Status};
use hwm_core::manager::{Manager, RequestOptions, Scoped, Settings};
use hwm_core::operation::Arguments;
use hwm_core::store::ListQuery;
use hwm_core::testing::sim::{Fate, Sim};
use hwm_core::validate;
use serde_json::{Value, json};

/// The cards of the demo, unless others are asked for: one to pass through, one to slice.
pub(crate) const CARDS: &str = "sim:a100-40gb,a100-40gb+mig";

/// How long one of them may take to come up or down.
const LONG: Duration = Duration::from_secs(30);

const FAILED: &str = "Demo Elasticsearch Cluster";
const DEPLOYING: &str = "Demo Debian ML Workstation";

/// Settings under which a deployment may be under way for as long as the demo lasts.
pub(crate) fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.create_timeout = Duration::from_secs(10 * 365 * 24 * 3600);
    settings
}

/// Lets the node treat the demo resources as the demo wants. Call it before the manager is built.
pub(crate) fn prepare(sim: &Sim) {
    let out_of_memory = BackendError::new(BackendErrorKind::Failed, "", "Out of memory on node");
    sim.set_fate(FAILED, Some(Fate::Fails(out_of_memory)));
    let writing = Fate::Held {
        message: "writing debian-12 to the disk".to_owned(),
        percent: Some(40),
    };
    sim.set_fate(DEPLOYING, Some(writing));
}

/// Makes those of the ten that are not there, each in its status. What cannot be had on this node is said
/// and left out.
pub(crate) async fn fill(manager: &Manager) -> Result<(), Error> {
    let principal = Principal {
        owner: Owner {
            org_id: "demo-org".to_owned(),
            group_id: "demo-group".to_owned(),
            user_id: "demo-user".to_owned(),
            ..Owner::default()
        },
        ..Principal::admin("demo-user")
    };
    let scoped = manager.as_principal(principal);
    let mut made = 0;
    for demo in resources() {
        if is_there(&scoped, demo.name).await? {
            continue;
        }
        match make(manager, &scoped, &demo).await {
            Ok(()) => made += 1,
            Err(Error::Validation(violations)) => refuse(demo.name, &violations),
            Err(error @ (Error::Conflict(_) | Error::Unsupported { .. })) => {
                tracing::warn!("demo: \"{}\" is left out: {error}", demo.name);
            }
            Err(error) => return Err(error),
        }
    }
    tracing::info!("demo: made {made} of the ten resources; the others were there or are left out");
    Ok(())
}

fn refuse(name: &str, violations: &[Violation]) {
    let all: Vec<String> = violations.iter().map(ToString::to_string).collect();
    tracing::warn!("demo: \"{name}\" is left out: {}", all.join("; "));
}

async fn is_there(scoped: &Scoped, name: &str) -> Result<bool, Error> {
    let query = ListQuery {
        search: Some(name.to_owned()),
        limit: 200,
        ..ListQuery::default()
    };
    let page = scoped.list(query).await?;
    Ok(page.resources.iter().any(|r| r.name == name))
}

async fn make(manager: &Manager, scoped: &Scoped, demo: &Demo) -> Result<(), Error> {
    let body = json!({
        "name": demo.name,
        "description": demo.description,
        "resourceType": demo.config["type"],
        "config": demo.config,
        "metadata": { "demo": "true" },
        "autoStart": demo.status != Status::Queued,
    });
    let request = validate::create_request(&body, manager.rules()).map_err(Error::Validation)?;
    let accepted = scoped.create(request, RequestOptions::default()).await?;
    let id = accepted.resource.id;
    // Ids and lists tell one millisecond from the next.
    tokio::time::sleep(Duration::from_millis(2)).await;
    if let (Some(operation), false) = (accepted.operation, demo.status == Status::Deploying) {
        scoped.wait(operation, LONG).await?;
    }
    if demo.status == Status::Stopped {
        let stopping = scoped
            .act(id, Action::Stop, Arguments::default(), RequestOptions::default())
            .await?;
        if let Some(operation) = stopping.operation {
            scoped.wait(operation, LONG).await?;
        }
    }
    Ok(())
}

struct Demo {
    name: &'static str,
    description: &'static str,
    status: Status,
    config: Value,
}

fn resources() -> Vec<Demo> {
    let mut all = machines();
    all.extend(containers());
    all
}

fn machines() -> Vec<Demo> {
    let none = json!(null);
    vec![
        Demo {
            name: "Demo Ubuntu GPU Server",
            description: "Ubuntu 22.04 with a whole GPU",
            status: Status::Running,
            config: machine(
                "ubuntu-22.04",
                (16, 65_536, 500),
                &fixed("192.168.100.10"),
                &json!({ "enabled": true, "mode": "passthrough", "deviceIds": ["GPU-0"] }),
            ),
        },
        Demo {
            name: "Demo Windows Server 2022",
            description: "Windows Server for line-of-business software",
            status: Status::Stopped,
            config: machine("windows-server-2022", (8, 32_768, 250), &dynamic(), &none),
        },
        Demo {
            name: "Demo CentOS Dev Environment",
            description: "CentOS for development",
            status: Status::Running,
            config: machine("centos-8", (4, 8192, 100), &fixed("192.168.100.20"), &none),
        },
        Demo {
            name: DEPLOYING,
            description: "Debian with a slice of a GPU",
            status: Status::Deploying,
            config: machine(
                "debian-12",
                (8, 32_768, 200),
                &fixed("192.168.100.30"),
                &json!({ "enabled": true, "mode": "mig", "migProfile": "2g.10gb" }),
            ),
        },
        Demo {
            name: "Demo Ubuntu Test VM",
            description: "Ubuntu for tests, not deployed yet",
            status: Status::Queued,
            config: machine("ubuntu-20.04", (2, 4096, 50), &dynamic(), &none),
        },
    ]
}

fn machine(os_image: &str, (vcpus, ram_mb, disk_gb): (u32, u32, u32), network: &Value, gpu: &Value) -> Value {
    json!({
        "type": "virtual-machine",
        "osImage": os_image,
        "vcpus": vcpus,
        "ramMB": ram_mb,
        "diskGB": disk_gb,
        "gpuConfig": gpu,
        "networkConfig": network,
    })
}

fn fixed(address: &str) -> Value {
    json!({
        "mode": "bridge-vlan",
        "ipMode": "static",
        "ipAddress": address,
        "netmask": "255.255.255.0",
        "gateway": "192.168.100.1",
        "vlanId": 100,
    })
}

fn dynamic() -> Value {
    json!({ "mode": "bridge-vlan", "ipMode": "dhcp" })
}

fn containers() -> Vec<Demo> {
    vec![
        Demo {
            name: "Demo PostgreSQL Database",
            description: "PostgreSQL 16",
            status: Status::Running,
            config: container("postgres", "16-alpine", (2.0, 4.0), &[(5432, 5432)]),
        },
        Demo {
            name: "Demo Redis Cache",
            description: "Redis 7",
            status: Status::Running,
            config: container("redis", "7-alpine", (1.0, 2.0), &[(6379, 6379)]),
        },
        Demo {
            name: "Demo Nginx Web Server",
            description: "nginx for HTTP and HTTPS",
            status: Status::Running,
            config: container("nginx", "alpine", (0.5, 0.5), &[(80, 8080), (443, 8443)]),
        },
        Demo {
            name: "Demo MongoDB Instance",
            description: "MongoDB 7",
            status: Status::Stopped,
            config: container("mongo", "7", (2.0, 4.0), &[(27_017, 27_017)]),
        },
        Demo {
            name: FAILED,
            description: "Elasticsearch, larger than the node could bear",
            status: Status::Failed,
            config: container("elasticsearch", "8.11.0", (4.0, 16.0), &[(9200, 9200)]),
        },
    ]
}

fn container(image: &str, tag: &str, (cores, gb): (f64, f64), ports: &[(u16, u16)]) -> Value {
    let ports: Vec<Value> = ports
        .iter()
        .map(|(inside, outside)| json!({ "containerPort": inside, "hostPort": outside }))
        .collect();
    json!({
        "type": "application-container",
        "registry": "docker-hub",
        "imageName": image,
        "imageTag": tag,
        "containerPorts": ports,
        "cpuCores": cores,
        "ramLimit": gb,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hwm_core::env::SystemEnvironment;
    use hwm_core::id::NodeId;
    use hwm_core::manager::ResourcePage;
    use hwm_core::store::Store;
    use hwm_core::store::memory::MemoryStore;
    use hwm_core::testing::sim::{SimOptions, parse_cards};

    use super::*;

    async fn start(store: Arc<dyn Store>) -> Manager {
        let cards = parse_cards(CARDS).unwrap();
        let sim = Sim::new(
            Arc::new(SystemEnvironment),
            SimOptions {
                cards,
                ..SimOptions::default()
            },
        );
        prepare(&sim);
        let manager = Manager::builder(store, NodeId::new("demo"))
            .backend(sim.containers())
            .backend(sim.machines())
            .accelerators(sim.accelerators())
            .settings(settings())
            .build()
            .await
            .unwrap();
        fill(&manager).await.unwrap();
        manager
    }

    async fn all(manager: &Manager) -> ResourcePage {
        let query = ListQuery {
            limit: 200,
            ..ListQuery::default()
        };
        manager
            .as_principal(Principal::admin("t"))
            .list(query)
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn the_ten_are_in_the_statuses_that_the_contract_lists_and_stay_so_at_the_next_start() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let first = start(store.clone()).await;
        let page = all(&first).await;
        assert_eq!(page.total, 10);
        let wanted: Vec<(&str, Status)> = resources().iter().map(|d| (d.name, d.status)).collect();
        let found: Vec<(&str, Status)> = page
            .resources
            .iter()
            .rev()
            .map(|r| (r.name.as_str(), r.status))
            .collect();
        assert_eq!(found, wanted);
        let failed = page.resources.iter().find(|r| r.name == FAILED).unwrap();
        assert_eq!(failed.error_message.as_deref(), Some("Out of memory on node"));
        first.shutdown(Duration::from_secs(5)).await;

        let second = start(store).await;
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        loop {
            let page = all(&second).await;
            assert_eq!(page.total, 10);
            let now: Vec<(&str, Status)> = page
                .resources
                .iter()
                .rev()
                .map(|r| (r.name.as_str(), r.status))
                .collect();
            // What ran comes up again on a node that forgot it.
            if now == wanted && are_up(&second, &page).await {
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "{now:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        second.shutdown(Duration::from_secs(5)).await;
    }

    /// Whether the node has everything that is said to run.
    async fn are_up(manager: &Manager, page: &ResourcePage) -> bool {
        let scoped = manager.as_principal(Principal::admin("t"));
        for resource in page.resources.iter().filter(|r| r.status == Status::Running) {
            let status = scoped.status(resource.id).await.unwrap();
            if status.status != Status::Running || status.uptime_seconds.is_none() {
                return false;
            }
        }
        true
    }
}
