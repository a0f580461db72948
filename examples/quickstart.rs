//! The manager in thirty lines: a container on Docker where it answers, else on the simulated host.
//!
//! ```text
//! cargo run --example quickstart
//! ```
#![expect(clippy::print_stdout, reason = "it is for people")]

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use hwm_core::access::Principal;
use hwm_core::backend::{Backend, LogQuery};
use hwm_core::env::SystemEnvironment;
use hwm_core::manager::{Manager, RequestOptions};
use hwm_core::store::memory::MemoryStore;
use hwm_core::testing::sim::{Sim, SimOptions};
use hwm_core::validate;
use hwm_docker::{DockerBackend, DockerOptions};
use serde_json::json;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let docker = DockerBackend::new(DockerOptions::new("quickstart", std::env::temp_dir()))?;
    let backend: Arc<dyn Backend> = match docker.probe().await {
        Ok(_) => Arc::new(docker),
        Err(_) => Sim::new(Arc::new(SystemEnvironment), SimOptions::lifelike()).containers(),
    };
    let store = Arc::new(MemoryStore::new());
    let manager = Manager::builder(store, "quickstart".into())
        .backend(backend)
        .build()
        .await?;
    let me = manager.as_principal(Principal::admin("me"));

    let body = json!({
        "name": "hello",
        "resourceType": "application-container",
        "config": {
            "type": "application-container",
            "registry": "docker-hub",
            "imageName": "busybox",
            "command": ["sh", "-c", "echo hello from hwm; sleep 60"],
        },
    });
    let request = validate::create_request(&body, manager.rules()).map_err(hwm_core::Error::Validation)?;
    let made = me.create(request, RequestOptions::default()).await?;
    let operation = made.operation.ok_or("it was not to be deployed")?;
    let ended = me.wait(operation, Duration::from_secs(120)).await?;
    println!(
        "{} is {:?}: {}",
        made.resource.id, ended.status, ended.progress.message
    );

    let mut log = me.logs(made.resource.id, LogQuery::default()).await?;
    while let Some(line) = log.next().await {
        println!("it says: {}", line?.message);
    }
    let removal = me.delete(made.resource.id, RequestOptions::default()).await?;
    me.wait(
        removal.operation.ok_or("it was gone already")?,
        Duration::from_secs(30),
    )
    .await?;
    manager.shutdown(Duration::from_secs(5)).await;
    Ok(())
}
