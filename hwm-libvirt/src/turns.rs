//! Who may act on which machine when.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use hwm_core::backend::{BackendError, BackendErrorKind, Call, Result};
use hwm_core::id::ResourceId;
use tokio::sync::OwnedMutexGuard;

use crate::backend::{Inner, lock};
use crate::connection::Hold;

/// How many removed machines keep their generation, against creates that come late.
const REMEMBERED: usize = 4096;

/// Who acts on which machine, and the newest generation seen of each.
#[derive(Default)]
pub(crate) struct Turns {
    machines: HashMap<ResourceId, Arc<tokio::sync::Mutex<u64>>>,
    removed: VecDeque<ResourceId>,
}

/// The right to change a machine; let go when the last call made under it has ended.
pub(crate) type Turn = Arc<OwnedMutexGuard<u64>>;

pub(crate) fn hold(turn: &Turn) -> Hold {
    Some(turn.clone())
}

impl Inner {
    /// Waits until nobody else changes the machine, and refuses what comes late.
    pub(crate) async fn turn(&self, call: &Call, id: ResourceId, doing: &str) -> Result<Turn> {
        let machine = lock(&self.turns).machines.entry(id).or_default().clone();
        let busy = || {
            BackendError::new(
                BackendErrorKind::Timeout,
                doing,
                "an earlier call on the machine has not ended",
            )
        };
        let mut newest = tokio::time::timeout(call.timeout, machine.lock_owned())
            .await
            .map_err(|_| busy())?;
        if call.generation < *newest {
            let late = "a newer generation of the machine was seen";
            return Err(BackendError::new(BackendErrorKind::Superseded, doing, late));
        }
        *newest = call.generation;
        Ok(Arc::new(newest))
    }

    pub(crate) fn forget_turn(&self, id: ResourceId) {
        let mut turns = lock(&self.turns);
        turns.removed.push_back(id);
        if turns.removed.len() > REMEMBERED
            && let Some(oldest) = turns.removed.pop_front()
            && !turns.removed.contains(&oldest)
        {
            turns.machines.remove(&oldest);
        }
    }
}
