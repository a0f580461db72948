//! How a service tests its own code without a host: mocks of hwm's traits (feature `mock` of hwm-core).
//!
//! The service is [`publish`]: it deploys a web site and answers where it is. Its tests say what the backend
//! is asked and what it answers; the manager between the two is the real one.
//!
//! ```text
//! cargo test --example mock_testing
//! ```
#![expect(clippy::print_stdout, reason = "it is for people")]

use std::sync::Arc;
use std::time::Duration;

use hwm_core::access::Principal;
use hwm_core::env::SystemEnvironment;
use hwm_core::manager::{Manager, RequestOptions, Scoped};
use hwm_core::store::memory::MemoryStore;
use hwm_core::testing::sim::{Sim, SimOptions};
use hwm_core::validate::{Rules, create_request};
use serde_json::json;

/// Why a site is not there.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The manager refused.
    #[error("the host refused")]
    Refused(#[from] hwm_core::Error),
    /// The host tried and failed, with its words.
    #[error("the site cannot be deployed: {0}")]
    Failed(String),
    /// It takes longer than a visitor would wait.
    #[error("the site is still being deployed")]
    Late,
}

/// Deploys a site and answers its address.
pub async fn publish(host: &Scoped, name: &str) -> Result<String, PublishError> {
    let body = json!({
        "name": name,
        "resourceType": "application-container",
        "config": {
            "type": "application-container",
            "registry": "docker-hub",
            "imageName": "nginx",
            "containerPorts": [{ "containerPort": 80 }],
        },
    });
    let request = create_request(&body, &Rules::default()).map_err(hwm_core::Error::Validation)?;
    let made = host.create(request, RequestOptions::default()).await?;
    let Some(operation) = made.operation else {
        return Err(PublishError::Late);
    };
    let ended = host.wait(operation, Duration::from_secs(60)).await?;
    if let Some(error) = ended.error {
        return Err(PublishError::Failed(error.message));
    }
    let site = host.get(made.resource.id, false).await?.resource;
    match site.runtime.and_then(|r| r.endpoint) {
        Some(endpoint) => Ok(format!("http://{endpoint}/")),
        None => Err(PublishError::Late),
    }
}

#[tokio::main]
async fn main() -> Result<(), PublishError> {
    let sim = Sim::new(Arc::new(SystemEnvironment), SimOptions::lifelike());
    let store = Arc::new(MemoryStore::new());
    let manager = Manager::builder(store, "simulated".into())
        .backend(sim.containers())
        .build()
        .await?;
    let address = publish(&manager.as_principal(Principal::admin("me")), "shop").await?;
    println!("the shop would be at {address}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use hwm_core::backend::{
        BackendError, BackendErrorKind, BackendInfo, BackendReport, CheckReport, Facets, MockBackend,
        Observed, ObservedState,
    };
    use hwm_core::config::ResourceType;
    use hwm_core::id::ResourceId;
    use hwm_core::ledger::Capacity;
    use hwm_core::units::{Bytes, Cores};

    use super::*;

    /// A host that answers and has nothing on it; a test adds what it expects.
    fn quiet_host() -> MockBackend {
        let mut backend = MockBackend::new();
        backend.expect_info().return_const(BackendInfo {
            name: "mock".into(),
            types: vec![ResourceType::ApplicationContainer],
        });
        backend.expect_facets().returning(Facets::default);
        backend.expect_probe().returning(|| {
            Ok(BackendReport {
                capacity: Capacity {
                    cpu: Cores::whole(4),
                    ram: Bytes::from_whole_gb(8),
                    disk: Bytes::from_whole_gb(100),
                },
                ..BackendReport::default()
            })
        });
        backend.expect_check().returning(|_| Ok(CheckReport::default()));
        backend.expect_owned().returning(|| Ok(Vec::new()));
        backend
            .expect_events()
            .returning(|| Ok(Box::pin(futures_util::stream::pending())));
        backend
    }

    fn running(id: ResourceId) -> Observed {
        Observed {
            id,
            runtime_id: "c0ffee".to_owned(),
            state: ObservedState::Running,
            started_at: None,
            ended_at: None,
            endpoint: Some("192.0.2.7:30000".to_owned()),
            generation: None,
        }
    }

    async fn host(backend: MockBackend) -> Scoped {
        let store = Arc::new(MemoryStore::new());
        let manager = Manager::builder(store, "test".into())
            .backend(Arc::new(backend))
            .build()
            .await
            .unwrap();
        manager.as_principal(Principal::admin("test"))
    }

    #[tokio::test]
    async fn a_published_site_answers_where_the_backend_put_it() {
        let mut backend = quiet_host();
        backend
            .expect_create()
            .withf(|_, workload| workload.name == "shop" && workload.ports[0].container_port == 80)
            .times(1)
            .returning(|_, _| Ok(()));
        backend.expect_start().times(1).returning(|_, _| Ok(()));
        backend
            .expect_inspect()
            .returning(|ids| Ok(ids.iter().map(|id| running(*id)).collect()));

        let address = publish(&host(backend).await, "shop").await.unwrap();
        assert_eq!(address, "http://192.0.2.7:30000/");
    }

    #[tokio::test]
    async fn a_full_disk_is_told_and_what_was_begun_is_taken_back() {
        let mut backend = quiet_host();
        backend.expect_create().times(1).returning(|_, _| {
            Err(BackendError::new(
                BackendErrorKind::NoSpace,
                "pulling image nginx",
                "no space left on device",
            ))
        });
        backend.expect_start().never();
        backend.expect_remove().times(1).returning(|_, _| Ok(()));
        backend.expect_inspect().returning(|_| Ok(Vec::new()));

        let refused = publish(&host(backend).await, "shop").await.unwrap_err();
        let told = "the site cannot be deployed: pulling image nginx: no space left on device";
        assert_eq!(refused.to_string(), told);
    }
}
