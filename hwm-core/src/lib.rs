//! Host workload manager: what a resource is, what may happen to it, and the manager that makes it happen.
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
