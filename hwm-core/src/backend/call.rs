//! What comes with a call, and what it is about.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::device::DeviceGrant;
use crate::id::{OperationId, ResourceId};
use crate::ledger::PortBinding;
use crate::resource::Record;

/// What comes with every call that changes something.
#[derive(Clone)]
pub struct Call {
    /// The operation that it is part of; none for repairs.
    pub operation: Option<OperationId>,
    /// The resource's generation; older ones are refused.
    pub generation: u64,
    /// How long it may take. The manager drops the future after that.
    pub timeout: Duration,
    /// Where to say how far it is.
    pub progress: ProgressSink,
}

impl Call {
    /// A call outside any operation.
    pub fn new(generation: u64, timeout: Duration) -> Self {
        Self {
            operation: None,
            generation,
            timeout,
            progress: ProgressSink::default(),
        }
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("operation", &self.operation)
            .field("generation", &self.generation)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

type TakeProgress = dyn Fn(String, Option<u8>) + Send + Sync;

/// Takes reports of how far a call is. Never blocks; reports may be dropped.
#[derive(Clone, Default)]
pub struct ProgressSink(Option<Arc<TakeProgress>>);

impl ProgressSink {
    /// Hands every report to `take`.
    pub fn new(take: impl Fn(String, Option<u8>) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(take)))
    }

    /// Reports: for people, and in percent of the call where that can be told.
    pub fn report(&self, message: impl Into<String>, percent: Option<u8>) {
        if let Some(take) = &self.0 {
            take(message.into(), percent.map(|p| p.min(100)));
        }
    }
}

/// A workload as a backend is to make it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    /// The resource.
    pub id: ResourceId,
    /// Its label, for people who look at the backend.
    pub name: String,
    /// The generation of the resource that this is.
    pub generation: u64,
    /// What is wanted, with its secrets.
    pub config: Config,
    /// The node's ports that lead to it.
    pub ports: Vec<PortBinding>,
    /// The devices prepared for it.
    pub grants: Vec<DeviceGrant>,
}

impl Workload {
    /// What `record` wants, under the generation of the operation that makes it.
    pub fn of(record: &Record, generation: u64) -> Self {
        Self {
            id: record.id,
            name: record.name.clone(),
            generation,
            config: record.config.clone(),
            ports: record.allocation.ports.clone(),
            grants: record.allocation.grants.clone(),
        }
    }
}

/// How a workload is brought down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StopOptions {
    /// At once, without asking it to end.
    pub force: bool,
    /// How long it may take to end when asked; the backend's default when absent.
    pub grace: Option<Duration>,
}
