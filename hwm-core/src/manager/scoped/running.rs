//! What runs: status, logs, metrics, consoles, commands.

use std::sync::Arc;

use futures_util::StreamExt;

use super::{Scoped, unsupported};
use crate::backend::{
    BackendError, BackendErrorKind, Console, ConsoleKind, Exec, ExecOutput, ExecRequest, ExecSession,
    LogLine, LogQuery, Session, Stream,
};
use crate::error::Error;
use crate::id::ResourceId;
use crate::lifecycle::Phase;
use crate::manager::Result;
use crate::manager::api::{ConsoleAccess, ResourceStatus};
use crate::manager::slot::Slot;
use crate::metrics::ResourceMetrics;
use crate::resource::Record;

impl Scoped {
    /// What is of a resource now, as its backend says.
    ///
    /// # Errors
    /// [`Error::BackendUnavailable`] rather than a remembered answer.
    pub async fn status(&self, id: ResourceId) -> Result<ResourceStatus> {
        let record = self.visible(id).await?;
        self.core.status(&record).await
    }

    /// What the workload wrote. Dropping the stream ends it on the backend.
    ///
    /// # Errors
    /// [`Error::BackendUnavailable`].
    pub async fn logs(&self, id: ResourceId, query: LogQuery) -> Result<Stream<Result<LogLine>>> {
        let record = self.visible(id).await?;
        let slot = self.core.slot_of(&record)?.clone();
        let limit = self.core.settings.read_timeout;
        let lines = slot
            .call("logs", limit, slot.backend.logs(id, query))
            .await
            .map_err(|e| slot.error(e))?;
        Ok(Box::pin(lines.map(move |line| line.map_err(|e| slot.error(e)))))
    }

    /// What the workload uses now.
    ///
    /// # Errors
    /// [`Error::BackendUnavailable`]. What does not run has figures that are null.
    pub async fn metrics(&self, id: ResourceId) -> Result<ResourceMetrics> {
        let record = self.visible(id).await?;
        self.core.metrics(&record).await
    }

    /// Checks that the caller may open a console, and answers its password.
    ///
    /// # Errors
    /// [`Error::Unsupported`], [`Error::InvalidState`] for what is not up.
    pub async fn console(&self, id: ResourceId, kind: ConsoleKind) -> Result<ConsoleAccess> {
        let (phase, slot, facet) = self.console_facet(id).await?;
        let limit = self.core.settings.read_timeout;
        let password = slot
            .call("console", limit, facet.password(id, kind))
            .await
            .map_err(|e| not_up_yet(&slot, e, phase, CONSOLE))?;
        Ok(ConsoleAccess { kind, password })
    }

    /// Connects to a console. Dropping the session ends it.
    ///
    /// # Errors
    /// As [`Scoped::console`].
    pub async fn open_console(&self, id: ResourceId, kind: ConsoleKind) -> Result<Session> {
        let (phase, slot, facet) = self.console_facet(id).await?;
        let limit = self.core.settings.read_timeout;
        slot.call("open-console", limit, facet.open(id, kind))
            .await
            .map_err(|e| not_up_yet(&slot, e, phase, CONSOLE))
    }

    /// Runs a command to its end. A command that ends non-zero is no error.
    ///
    /// # Errors
    /// [`Error::Unsupported`], [`Error::InvalidState`] for what is not up, [`Error::Timeout`].
    pub async fn exec(&self, id: ResourceId, request: ExecRequest) -> Result<ExecOutput> {
        let (phase, slot, facet) = self.exec_facet(id).await?;
        let given = request.timeout;
        // The backend kills the command at its own timeout; this only bounds a backend that does not.
        let limit = given + self.core.settings.read_timeout;
        slot.call("exec", limit, facet.run(id, request))
            .await
            .map_err(|error| match error.kind {
                BackendErrorKind::Timeout => Error::Timeout {
                    what: "the command".to_owned(),
                    limit: given,
                },
                _ => not_up_yet(&slot, error, phase, COMMANDS),
            })
    }

    /// Opens an interactive session. Dropping it ends the command.
    ///
    /// # Errors
    /// As [`Scoped::exec`].
    pub async fn open_exec(&self, id: ResourceId, request: ExecSession) -> Result<Session> {
        let (phase, slot, facet) = self.exec_facet(id).await?;
        let limit = self.core.settings.read_timeout;
        slot.call("open-exec", limit, facet.open(id, request))
            .await
            .map_err(|e| not_up_yet(&slot, e, phase, COMMANDS))
    }

    async fn exec_facet(&self, id: ResourceId) -> Result<(Phase, Arc<Slot>, Arc<dyn Exec>)> {
        let record = self.writable(id, "running commands in it").await?;
        let slot = self.core.slot_of(&record)?.clone();
        let facet = slot.backend.facets().exec;
        let facet = facet.ok_or_else(|| unsupported("commands", &record))?;
        up(&record, COMMANDS)?;
        Ok((record.phase, slot, facet))
    }

    async fn console_facet(&self, id: ResourceId) -> Result<(Phase, Arc<Slot>, Arc<dyn Console>)> {
        let record = self.writable(id, "opening its console").await?;
        let slot = self.core.slot_of(&record)?.clone();
        let facet = slot.backend.facets().console;
        let facet = facet.ok_or_else(|| unsupported("a console", &record))?;
        up(&record, CONSOLE)?;
        Ok((record.phase, slot, facet))
    }
}

const COMMANDS: &str = "run commands in";
const CONSOLE: &str = "open the console of";

/// What the backend does not have yet, or no longer, is not up.
fn not_up_yet(slot: &Slot, error: BackendError, phase: Phase, doing: &'static str) -> Error {
    match error.kind {
        BackendErrorKind::NotFound | BackendErrorKind::NotRunning => Error::InvalidState {
            action: doing,
            phase,
            reason: "the backend does not have it, or it does not run; wait until it runs",
        },
        _ => slot.error(error),
    }
}

/// Refuses what does not run. What the backend cannot do at all is said before this.
fn up(record: &Record, doing: &'static str) -> Result<()> {
    match record.phase {
        Phase::Running | Phase::Error | Phase::Deploying | Phase::Restarting | Phase::Stopping => Ok(()),
        Phase::Queued | Phase::Stopped | Phase::Failed | Phase::Deleting | Phase::Deleted => {
            Err(Error::InvalidState {
                action: doing,
                phase: record.phase,
                reason: "it does not run; start it first",
            })
        }
    }
}
