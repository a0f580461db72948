//! Host workload manager: what a resource is, what may happen to it, and the manager that makes it happen.
//!
//! This crate knows no Docker, no libvirt, no NVIDIA, no HTTP and no SQL: it has the records and rules, the
//! [`Manager`](manager::Manager), and the traits that the other crates implement.
//!
//! # Embed it
//!
//! A manager needs a [`Store`](store::Store) and a [`Backend`](backend::Backend). Here they are the memory
//! store and the simulated host; `hwm-store` and `hwm-docker` have the real ones, and nothing else changes.
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//! use hwm_core::access::Principal;
//! use hwm_core::env::SystemEnvironment;
//! use hwm_core::lifecycle::Status;
//! use hwm_core::manager::{Manager, RequestOptions};
//! use hwm_core::store::memory::MemoryStore;
//! use hwm_core::testing::sim::{Sim, SimOptions};
//! use hwm_core::validate;
//! use serde_json::json;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let sim = Sim::new(Arc::new(SystemEnvironment), SimOptions::default());
//! let manager = Manager::builder(Arc::new(MemoryStore::new()), "node-1".into())
//!     .backend(sim.containers())
//!     .build()
//!     .await?;
//!
//! // Every request is somebody's: what a principal may not see does not exist for it.
//! let me = manager.as_principal(Principal::admin("me"));
//! let body = json!({
//!     "name": "web",
//!     "resourceType": "application-container",
//!     "config": {
//!         "type": "application-container",
//!         "registry": "docker-hub",
//!         "imageName": "nginx",
//!         "containerPorts": [{ "containerPort": 80 }],
//!     },
//! });
//! let request = validate::create_request(&body, manager.rules()).map_err(hwm_core::Error::Validation)?;
//! // Accepted means committed: it is carried out, whatever happens to this process.
//! let accepted = me.create(request, RequestOptions::default()).await?;
//! if let Some(operation) = accepted.operation {
//!     me.wait(operation, Duration::from_secs(60)).await?;
//! }
//! let web = me.get(accepted.resource.id, false).await?.resource;
//! assert_eq!(web.status, Status::Running);
//! # manager.shutdown(Duration::from_secs(1)).await;
//! # Ok(())
//! # }
//! ```
//!
//! `hwm-http` makes the same manager a REST API. [`manager`] tells how a request becomes an operation,
//! [`lifecycle`] draws the states.
//!
//! # Write a backend
//!
//! [`backend`] opens with the contract: identity, idempotence, cancellation, fencing, truth. Implement
//! [`Backend`](backend::Backend), add the [`Facets`](backend::Facets) that you have, and let the conformance
//! suite (feature `testing`) judge it. The whole test of a backend of containers:
//!
//! ```
//! use std::sync::Arc;
//! use hwm_core::testing::backend_suite::{self, Fixture, samples};
//! # use hwm_core::{env::SystemEnvironment, testing::sim::{Sim, SimOptions}};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! # let yours = Sim::new(Arc::new(SystemEnvironment), SimOptions::default()).containers();
//! let fixture = Fixture::new(yours, |id| samples::container(id, &["sleep", "infinity"]))
//!     .script(|id, script| samples::container(id, &["sh", "-c", script]));
//! let report = backend_suite::run(&fixture).await;
//! assert!(report.broken.is_empty(), "{report}");
//! # }
//! ```
//!
//! A store has a suite too, `testing::store_suite`. `examples/custom_backend.rs` is a whole backend in one
//! file.
//!
//! # Test what you build on it
//!
//! * Feature `testing`: the simulated host `testing::sim`, whose time, failures and crashes your test
//!   controls; `testing::faults`, which fails any call before or after its effect; `testing::env`, in which a
//!   seed replays a whole run.
//! * Feature `mock`: mockall mocks of every trait, for tests that say what is asked and what is answered
//!   (`examples/mock_testing.rs`).
//!
//! ```
//! # use std::sync::Arc;
//! # use std::time::Duration;
//! # use hwm_core::access::Principal;
//! # use hwm_core::backend::BackendErrorKind;
//! # use hwm_core::env::SystemEnvironment;
//! # use hwm_core::manager::{Manager, RequestOptions};
//! # use hwm_core::operation::OperationStatus;
//! # use hwm_core::store::memory::MemoryStore;
//! # use hwm_core::testing::sim::{Sim, SimOptions};
//! # use hwm_core::validate;
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let sim = Sim::new(Arc::new(SystemEnvironment), SimOptions::default());
//! # let store = Arc::new(MemoryStore::new());
//! # let manager = Manager::builder(store, "node-1".into()).backend(sim.containers()).build().await?;
//! # let me = manager.as_principal(Principal::admin("me"));
//! # let body = serde_json::json!({
//! #     "name": "web",
//! #     "resourceType": "application-container",
//! #     "config": { "type": "application-container", "registry": "docker-hub", "imageName": "nginx" },
//! # });
//! # let request = validate::create_request(&body, manager.rules()).map_err(hwm_core::Error::Validation)?;
//! // What does your code do when the disk is full?
//! sim.set_full(true);
//! let accepted = me.create(request, RequestOptions::default()).await?;
//! let ended = me.wait(accepted.operation.unwrap(), Duration::from_secs(60)).await?;
//! assert_eq!(ended.status, OperationStatus::Failed);
//! assert!(ended.error.unwrap().message.contains("no space left"));
//! assert!(sim.holdings().containers.is_empty(), "what was half-made was taken back");
//! # manager.shutdown(Duration::from_secs(1)).await;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod accelerator;
pub mod access;
pub mod backend;
pub mod config;
pub mod device;
pub mod env;
pub mod error;
pub mod event;
pub mod id;
pub mod ledger;
pub mod lifecycle;
pub mod manager;
pub mod metrics;
pub mod node;
pub mod operation;
pub mod refusal;
pub mod resource;
pub mod secret;
pub mod snapshot;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
pub mod units;
pub mod validate;

pub use error::Error;
