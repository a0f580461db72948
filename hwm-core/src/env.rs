//! Time, identifiers, randomness and tasks, injected so that a seed replays a whole run.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use crate::id::{OperationId, ResourceId, SnapshotId};
use crate::units::Timestamp;

/// A boxed future that owns what it needs.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Where a manager gets time, randomness and tasks.
pub trait Environment: Send + Sync + 'static {
    /// The time of day.
    fn now(&self) -> Timestamp;

    /// Completes after `duration`.
    fn sleep(&self, duration: Duration) -> BoxFuture<()>;

    /// 128 random bits, good enough for tickets.
    fn random(&self) -> u128;

    /// Runs a task beside the caller. It is dropped when the runtime goes.
    fn spawn(&self, task: BoxFuture<()>);
}

/// Makes UUIDv7 ids out of an environment's time and randomness.
pub(crate) trait NewIds {
    fn new_uuid(&self) -> u128;

    fn new_resource_id(&self) -> ResourceId {
        ResourceId::from_u128(self.new_uuid())
    }

    fn new_operation_id(&self) -> OperationId {
        OperationId::from_u128(self.new_uuid())
    }

    fn new_snapshot_id(&self) -> SnapshotId {
        SnapshotId::from_u128(self.new_uuid())
    }
}

impl NewIds for dyn Environment {
    fn new_uuid(&self) -> u128 {
        let millis = u64::try_from(self.now().as_millis()).unwrap_or(0);
        let random = self.random().to_be_bytes();
        let mut bytes = [0; 10];
        bytes.copy_from_slice(&random[..10]);
        uuid::Builder::from_unix_timestamp_millis(millis, &bytes)
            .into_uuid()
            .as_u128()
    }
}

/// The real thing: the system's clock and randomness, and tokio's tasks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemEnvironment;

impl Environment for SystemEnvironment {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(jiff::Timestamp::now().as_millisecond())
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        Box::pin(tokio::time::sleep(duration))
    }

    fn random(&self) -> u128 {
        // A v4 UUID spends six bits on its form, so two of them make 128 random bits.
        let (a, b) = (uuid::Uuid::new_v4().as_u128(), uuid::Uuid::new_v4().as_u128());
        a ^ b.rotate_left(64)
    }

    fn spawn(&self, task: BoxFuture<()>) {
        tokio::spawn(task);
    }
}
