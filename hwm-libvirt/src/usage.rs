//! What the file systems of guests hold, as their agents say. Agents may be slow or hang, so nobody waits for one:
//! they are asked in passing, one after the other, and what they said last is told.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hwm_core::id::ResourceId;

use crate::agent;
use crate::backend::{Inner, lock};

/// How old an answer may be before the agent is asked again, and how long one that did not answer is left alone.
const AGAIN: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(300));
/// How old an answer may be and still be told.
const TOLD: Duration = Duration::from_secs(120);

/// When an agent was asked last, and the bytes in use that it named.
type Answer = (Instant, Option<u64>);

#[derive(Default)]
pub(crate) struct Usage {
    answers: Mutex<HashMap<ResourceId, Answer>>,
    is_asking: AtomicBool,
}

impl Usage {
    /// The bytes in use, where that is known.
    pub(crate) fn of(&self, id: ResourceId) -> Option<u64> {
        let (at, bytes) = lock(&self.answers).get(&id).copied()?;
        bytes.filter(|_| at.elapsed() < TOLD)
    }

    pub(crate) fn forget(&self, id: ResourceId) {
        lock(&self.answers).remove(&id);
    }

    fn is_due(&self, id: ResourceId) -> bool {
        match lock(&self.answers).get(&id) {
            Some((at, Some(_))) => at.elapsed() >= AGAIN.0,
            Some((at, None)) => at.elapsed() >= AGAIN.1,
            None => true,
        }
    }
}

/// Asks the agents of machines that run, where it is time to and nobody does.
pub(crate) fn ask(inner: &Arc<Inner>, ids: impl Iterator<Item = ResourceId>) {
    let usage = &inner.observations.usage;
    let due: Vec<ResourceId> = ids.filter(|id| usage.is_due(*id)).collect();
    if due.is_empty() || usage.is_asking.swap(true, Ordering::AcqRel) {
        return;
    }
    let inner = inner.clone();
    tokio::spawn(async move {
        for id in due {
            let asked = inner.ask("asking for a guest's file systems", move |host| {
                Ok(agent::used_bytes(host, id))
            });
            let bytes = asked.await.ok().flatten();
            lock(&inner.observations.usage.answers).insert(id, (Instant::now(), bytes));
        }
        inner.observations.usage.is_asking.store(false, Ordering::Release);
    });
}
