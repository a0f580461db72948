//! The steps of each action, and their undoing.
//!
//! Every step is idempotent and keyed by the resource id, and its beginning is committed. An operation that
//! a crash interrupted is run again from its first step; one that was being undone goes on being undone.

mod call;
mod end;
mod steps;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Core;
use super::slot::Slot;
use crate::backend::{Observed, SnapshotReport};
use crate::lifecycle::{Action, Phase};
use crate::operation::{OperationError, OperationRecord, Step};
use crate::resource::Applied;
use crate::store::{CommitError, StoreError};

/// How often an undoing that fails is tried again before the resource is reported stuck.
const UNDO_TRIES: u32 = 3;
/// The longest pause between two tries on a backend that is away.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The shortest pause between two health checks of what is coming up.
const FIRST_CHECK: Duration = Duration::from_millis(200);

/// Why an operation's steps stopped short.
pub(super) enum Fault {
    /// The operation cannot succeed.
    Failed { code: &'static str, message: String },
    /// The backend stayed away past the operation's deadline.
    Away { message: String },
    /// The store failed; what to do is as it was before.
    Store(StoreError),
    /// The operation was ended before it began: another overtook it, or it was cancelled.
    Overtaken,
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<CommitError> for Fault {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Store(error) => Self::Store(error),
            other => Self::Failed {
                code: "INTERNAL",
                message: other.to_string(),
            },
        }
    }
}

/// What the steps came to.
enum Outcome {
    /// It is up, or was and ended already; and what the backend was given.
    Up(Observed, Applied),
    Down {
        /// Whether its GPUs were taken back.
        without_gpus: bool,
    },
    Gone,
    Updated(Applied),
    SnapshotTaken(SnapshotReport),
    SnapshotRestored {
        running: bool,
        seen: Option<Observed>,
    },
    SnapshotDeleted,
}

/// An operation being carried out.
struct Run<'a> {
    core: &'a Arc<Core>,
    slot: &'a Arc<Slot>,
    operation: OperationRecord,
}

impl Core {
    /// Carries out an operation to its end, or leaves it as it is when the manager stops.
    pub(super) async fn run(
        self: &Arc<Self>,
        operation: &OperationRecord,
        cancel: CancellationToken,
    ) -> Result<(), StoreError> {
        let Some(slot) = self.slot(&operation.backend) else {
            // Recovery never begins these; wait for a server that has the backend.
            self.stopping.cancelled().await;
            return Ok(());
        };
        let run = Run {
            core: self,
            slot,
            operation: operation.clone(),
        };
        let outcome = tokio::select! {
            biased;
            () = self.stopping.cancelled() => return Ok(()),
            outcome = run.carry_out(cancel) => outcome,
        };
        match outcome {
            Ok(()) => Ok(()),
            Err(Fault::Overtaken) => Ok(()),
            Err(Fault::Store(error)) => Err(error),
            Err(Fault::Failed { message, .. } | Fault::Away { message }) => {
                Err(StoreError::new("ending an operation", message))
            }
        }
    }
}

impl Run<'_> {
    async fn carry_out(&self, cancel: CancellationToken) -> Result<(), Fault> {
        let undoing = self.operation.progress.step == Step::Undo;
        if undoing || self.operation.cancel_requested {
            return self.undo_and_end(self.operation.error.clone()).await;
        }
        let outcome = tokio::select! {
            biased;
            () = cancel.cancelled() => return self.undo_and_end(None).await,
            outcome = self.perform() => outcome,
        };
        match outcome {
            Ok(outcome) => self.succeed(outcome).await,
            Err(fault @ (Fault::Store(_) | Fault::Overtaken)) => Err(fault),
            Err(Fault::Failed { code, message }) => {
                self.undo_and_end(Some(OperationError {
                    code: code.to_owned(),
                    message,
                }))
                .await
            }
            Err(Fault::Away { message }) => {
                self.undo_and_end(Some(OperationError {
                    code: "BACKEND_UNAVAILABLE".to_owned(),
                    message,
                }))
                .await
            }
        }
    }

    async fn perform(&self) -> Result<Outcome, Fault> {
        match self.operation.action {
            Action::Create | Action::Start => self.bring_up().await,
            Action::Restart => {
                self.take_down().await?;
                self.bring_up().await
            }
            Action::Stop => {
                let was_down = self.record().await?.phase == Phase::Stopped;
                self.take_down().await?;
                let without_gpus = self.give_back_gpus(was_down).await?;
                Ok(Outcome::Down { without_gpus })
            }
            Action::Delete => {
                self.remove().await?;
                Ok(Outcome::Gone)
            }
            Action::Update => Ok(Outcome::Updated(self.update().await?)),
            Action::SnapshotCreate => Ok(Outcome::SnapshotTaken(self.take_snapshot().await?)),
            Action::SnapshotRestore => self.restore_snapshot().await,
            Action::SnapshotDelete => {
                self.delete_snapshot().await?;
                Ok(Outcome::SnapshotDeleted)
            }
        }
    }
}

/// For people: how a workload ended.
pub(super) fn ended_message(exit_code: Option<i64>, cause: Option<&str>) -> String {
    match (exit_code, cause) {
        (Some(code), Some(cause)) => format!("it ended with exit code {code}: {cause}"),
        (Some(code), None) => format!("it ended with exit code {code}"),
        (None, Some(cause)) => format!("it ended: {cause}"),
        (None, None) => "it ended".to_owned(),
    }
}
