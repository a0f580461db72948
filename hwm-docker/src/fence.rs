//! Keeps late calls out: one generation and one changing call at a time per resource.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use hwm_core::backend::{BackendError, BackendErrorKind, Result};
use hwm_core::id::ResourceId;

use crate::client::late;

/// How long a generation is remembered, at least, once nobody asks for the resource any more.
const MEMORY: Duration = Duration::from_secs(3600);
/// How many are remembered before old ones are looked for.
const CROWD: usize = 16_384;

/// The newest generation seen of each resource, and a gate for its changes.
#[derive(Default)]
pub(crate) struct Fence {
    seen: Mutex<HashMap<ResourceId, (u64, Instant)>>,
    gates: Mutex<HashMap<ResourceId, Weak<tokio::sync::Mutex<()>>>>,
}

impl Fence {
    /// Refuses a call that is older than one already seen.
    pub(crate) fn pass(&self, id: ResourceId, generation: u64, doing: &str) -> Result<()> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() > CROWD {
            seen.retain(|_, (_, at)| at.elapsed() < MEMORY);
        }
        let entry = seen.entry(id).or_insert((generation, Instant::now()));
        if generation < entry.0 {
            return Err(superseded(doing, generation, entry.0));
        }
        *entry = (generation, Instant::now());
        Ok(())
    }

    /// Runs a change after those before it, and once begun to its end even if the caller goes away: an
    /// outcome that lands after its caller left would otherwise outlive a removal.
    pub(crate) async fn through_gate<T: Send + 'static>(
        &self,
        id: ResourceId,
        limit: Duration,
        doing: &str,
        change: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let gate = self.gate(id);
        let wanted = Arc::new(());
        let still_wanted = Arc::downgrade(&wanted);
        let task = tokio::spawn(async move {
            let _guard = gate.lock_owned().await;
            // What has not begun when its caller leaves must not begin.
            if still_wanted.strong_count() == 0 {
                return None;
            }
            Some(change.await)
        });
        let outcome = tokio::time::timeout(limit, task).await;
        drop(wanted);
        match outcome {
            Ok(Ok(Some(result))) => result,
            Ok(Ok(None)) => Err(late(limit, doing)),
            Ok(Err(panicked)) => Err(BackendError::new(
                BackendErrorKind::Failed,
                doing,
                format!("it ended without an outcome: {panicked}"),
            )),
            Err(_) => Err(late(limit, doing)),
        }
    }

    fn gate(&self, id: ResourceId) -> Arc<tokio::sync::Mutex<()>> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        if gates.len() > CROWD {
            gates.retain(|_, gate| gate.strong_count() > 0);
        }
        if let Some(gate) = gates.get(&id).and_then(Weak::upgrade) {
            return gate;
        }
        let gate = Arc::new(tokio::sync::Mutex::new(()));
        gates.insert(id, Arc::downgrade(&gate));
        gate
    }
}

/// The answer to a call that a newer one overtook.
pub(crate) fn superseded(doing: &str, generation: u64, newer: u64) -> BackendError {
    BackendError::new(
        BackendErrorKind::Superseded,
        doing,
        format!("generation {generation} is older than {newer}, which was seen before"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    const ID: ResourceId = ResourceId::from_u128(1);

    #[test]
    fn an_older_generation_does_not_pass() {
        let fence = Fence::default();
        assert!(fence.pass(ID, 2, "x").is_ok());
        assert!(fence.pass(ID, 2, "x").is_ok());
        assert_eq!(
            fence.pass(ID, 1, "x").unwrap_err().kind,
            BackendErrorKind::Superseded
        );
        assert!(fence.pass(ResourceId::from_u128(2), 1, "x").is_ok());
        assert!(fence.pass(ID, 3, "x").is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_whose_caller_left_ends_before_the_next_one_begins() {
        let fence = Fence::default();
        let landed = Arc::new(AtomicBool::new(false));
        let late = {
            let landed = Arc::clone(&landed);
            async move {
                tokio::time::sleep(Duration::from_secs(3)).await;
                landed.store(true, Ordering::SeqCst);
                Ok(())
            }
        };
        let first = fence.through_gate(ID, Duration::from_secs(60), "create", late);
        assert!(tokio::time::timeout(Duration::from_secs(1), first).await.is_err());
        let second = {
            let landed = Arc::clone(&landed);
            async move { Ok(landed.load(Ordering::SeqCst)) }
        };
        let seen = fence
            .through_gate(ID, Duration::from_secs(60), "remove", second)
            .await;
        assert_eq!(seen, Ok(true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_that_waits_when_its_caller_leaves_never_begins() {
        let fence = Fence::default();
        let minute = Duration::from_secs(60);
        let slow = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            Ok(())
        };
        let begun = Arc::new(AtomicBool::new(false));
        let waiting = {
            let begun = Arc::clone(&begun);
            async move {
                begun.store(true, Ordering::SeqCst);
                Ok(())
            }
        };
        let first = fence.through_gate(ID, minute, "start", slow);
        let second = async {
            let second = fence.through_gate(ID, minute, "start", waiting);
            let _ = tokio::time::timeout(Duration::from_secs(1), second).await;
        };
        let (first, ()) = tokio::join!(first, second);
        first.unwrap();
        fence
            .through_gate(ID, minute, "remove", async { Ok(()) })
            .await
            .unwrap();
        assert!(!begun.load(Ordering::SeqCst));
    }
}
