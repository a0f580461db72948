//! Time, identifiers, randomness and tasks, injected so that a seed replays a whole run.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
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

/// Makes UUIDv7 ids out of an environment's time and randomness. Each sorts after the one before, also within a
/// millisecond and when the clock is set back (RFC 9562, section 6.2, method 2).
pub(crate) struct Ids {
    env: Arc<dyn Environment>,
    /// The last one, without the bits of its form.
    last: Mutex<u128>,
}

impl Ids {
    /// The bits of a UUIDv7 that are not form: 48 of time, 12 and 62 of randomness.
    const RANDOM_BITS: u32 = 12 + 62;

    pub(crate) fn new(env: Arc<dyn Environment>) -> Self {
        Self {
            env,
            last: Mutex::new(0),
        }
    }

    pub(crate) fn resource(&self) -> ResourceId {
        ResourceId::from_u128(self.next())
    }

    pub(crate) fn operation(&self) -> OperationId {
        OperationId::from_u128(self.next())
    }

    pub(crate) fn snapshot(&self) -> SnapshotId {
        SnapshotId::from_u128(self.next())
    }

    fn next(&self) -> u128 {
        let millis = u128::try_from(self.env.now().as_millis()).unwrap_or(0);
        let random = self.env.random();
        let fresh = millis << Self::RANDOM_BITS | random >> (128 - Self::RANDOM_BITS);
        let mut last = self.last.lock().unwrap_or_else(|e| e.into_inner());
        // A step that cannot be guessed, so that an id tells little of the next.
        let step = 1 + u128::from(random as u32);
        *last = if fresh > *last { fresh } else { *last + step };
        formed(*last)
    }
}

/// Puts the version and the variant of a UUIDv7 between the bits.
fn formed(bits: u128) -> u128 {
    let (time, high, low) = (
        bits >> Ids::RANDOM_BITS,
        bits >> 62 & 0xFFF,
        bits & ((1 << 62) - 1),
    );
    time << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use proptest::prelude::*;

    use super::*;

    /// A clock that is set by hand.
    struct Clock(AtomicI64);

    impl Environment for Clock {
        fn now(&self) -> Timestamp {
            Timestamp::from_millis(self.0.load(Ordering::Relaxed))
        }
        fn sleep(&self, _: Duration) -> BoxFuture<()> {
            Box::pin(std::future::pending())
        }
        fn random(&self) -> u128 {
            SystemEnvironment.random()
        }
        fn spawn(&self, _: BoxFuture<()>) {}
    }

    proptest! {
        #[test]
        fn ids_sort_by_creation_whatever_the_clock_does(times in prop::collection::vec(0i64..1 << 47, 1..50)) {
            let clock = Arc::new(Clock(AtomicI64::new(0)));
            let ids = Ids::new(clock.clone());
            let mut last = 0;
            for time in times {
                clock.0.store(time, Ordering::Relaxed);
                for _ in 0..3 {
                    let id = ids.next();
                    prop_assert!(id > last);
                    prop_assert_eq!(uuid::Uuid::from_u128(id).get_version_num(), 7);
                    prop_assert_eq!(uuid::Uuid::from_u128(id).get_variant(), uuid::Variant::RFC4122);
                    last = id;
                }
            }
        }
    }

    #[test]
    fn an_id_holds_the_time_of_its_creation() {
        let ids = Ids::new(Arc::new(Clock(AtomicI64::new(1_790_000_000_123))));
        let id = uuid::Uuid::from_u128(ids.next());
        let time = id.get_timestamp().map(|time| time.to_unix());
        assert_eq!(time, Some((1_790_000_000, 123_000_000)));
    }
}
