//! One resource's operations, one after the other. Lanes of different resources run side by side.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Core;
use crate::id::{OperationId, ResourceId};

/// How long to wait before a store that failed is asked again.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// A task that works off the operations of one resource. It goes when none is left.
#[derive(Default)]
pub(super) struct Lane {
    /// Whether an operation may have come since the store was last asked.
    dirty: bool,
    /// Whether the backend said meanwhile that the workload changed by itself.
    look_again: bool,
    /// The operation that runs, and how to give it up.
    current: Option<(OperationId, CancellationToken)>,
}

impl Core {
    /// Makes sure that the operations of a resource are worked off.
    pub(super) fn kick(self: &Arc<Self>, id: ResourceId) {
        if self.stopping.is_cancelled() {
            return;
        }
        let mut lanes = self.lanes();
        if let Some(lane) = lanes.get_mut(&id) {
            lane.dirty = true;
            return;
        }
        lanes.insert(id, Lane::default());
        drop(lanes);
        let core = self.clone();
        self.spawn(async move { core.drive(id).await });
    }

    /// Does `work` on a resource before its next operation; not at all when operations run or wait.
    pub(super) fn between(self: &Arc<Self>, id: ResourceId, work: impl Future<Output = ()> + Send + 'static) {
        if self.stopping.is_cancelled() {
            return;
        }
        let mut lanes = self.lanes();
        if lanes.contains_key(&id) {
            return;
        }
        lanes.insert(id, Lane::default());
        drop(lanes);
        let core = self.clone();
        self.spawn(async move {
            let stopping = core.stopping.clone();
            tokio::select! {
                biased;
                () = stopping.cancelled() => {}
                () = work => {}
            }
            core.drive(id).await;
        });
    }

    /// Gives up the operation of a resource that runs, if it is this one.
    pub(super) fn give_up(&self, id: ResourceId, operation: OperationId) {
        if let Some(Lane {
            current: Some((running, cancel)),
            ..
        }) = self.lanes().get(&id)
            && *running == operation
        {
            cancel.cancel();
        }
    }

    /// Whether operations of the resource run or wait. If so, the lane looks at the workload when it is done.
    pub(super) fn is_busy(&self, id: ResourceId) -> bool {
        match self.lanes().get_mut(&id) {
            Some(lane) => {
                lane.look_again = true;
                true
            }
            None => false,
        }
    }

    async fn drive(self: Arc<Self>, id: ResourceId) {
        while !self.stopping.is_cancelled() {
            match self.unfinished(id).await {
                Ok(operations) => match operations.first() {
                    Some(operation) => {
                        let cancel = CancellationToken::new();
                        if let Some(lane) = self.lanes().get_mut(&id) {
                            lane.current = Some((operation.id, cancel.clone()));
                        }
                        self.counters.operation_began();
                        let ended = self.run(operation, cancel).await;
                        self.counters.operation_left();
                        if let Err(error) = ended {
                            tracing::error!(resource = %id, operation = %operation.id, %error, "store failed");
                            self.env.sleep(STORE_PAUSE).await;
                        }
                    }
                    None => match self.leave(id) {
                        Left::Stay => {}
                        Left::Gone => return,
                        Left::LookAgain => return self.look(id).await,
                    },
                },
                Err(error) => {
                    tracing::error!(resource = %id, %error, "operations cannot be read");
                    self.env.sleep(STORE_PAUSE).await;
                }
            }
        }
        self.lanes().remove(&id);
    }

    fn leave(&self, id: ResourceId) -> Left {
        let mut lanes = self.lanes();
        let Some(lane) = lanes.get_mut(&id) else {
            return Left::Gone;
        };
        lane.current = None;
        if std::mem::take(&mut lane.dirty) {
            return Left::Stay;
        }
        let look_again = lane.look_again;
        lanes.remove(&id);
        if look_again { Left::LookAgain } else { Left::Gone }
    }
}

enum Left {
    Stay,
    Gone,
    LookAgain,
}
