//! Snapshots of machines.

use super::{Scoped, unsupported};
use crate::error::Error;
use crate::id::{ResourceId, SnapshotId};
use crate::lifecycle::Action;
use crate::manager::Result;
use crate::manager::api::{Accepted, RequestOptions};
use crate::operation::Arguments;
use crate::resource::Record;
use crate::snapshot::{Snapshot, SnapshotRequest, SnapshotState};

impl Scoped {
    /// Takes a snapshot of a machine.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for what is no machine, [`Error::InvalidState`].
    pub async fn create_snapshot(
        &self,
        id: ResourceId,
        request: SnapshotRequest,
        options: RequestOptions,
    ) -> Result<Accepted> {
        let record = self.writable(id, "taking snapshots of it").await?;
        self.snapshots_of(&record)?;
        self.accepting()?;
        let snapshot = Snapshot {
            id: self.core.ids.snapshot(),
            resource_id: id,
            name: request.name,
            description: request.description,
            created_at: self.core.env.now(),
            disk_size: None,
            state: SnapshotState::Creating,
            consistency: None,
            memory: request.memory,
        };
        let arguments = Arguments {
            snapshot: Some(snapshot.id),
            ..Arguments::default()
        };
        self.core
            .act(
                id,
                Action::SnapshotCreate,
                arguments,
                Some(snapshot),
                self.asking(&options),
            )
            .await
    }

    /// The snapshots of a machine, oldest first.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for what is no machine.
    pub async fn snapshots(&self, id: ResourceId) -> Result<Vec<Snapshot>> {
        let record = self.visible(id).await?;
        self.snapshots_of(&record)?;
        Ok(self.core.store.snapshots(id).await?)
    }

    /// Goes back to a snapshot; the machine ends in the snapshot's state.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::InvalidState`].
    pub async fn restore_snapshot(
        &self,
        id: ResourceId,
        snapshot: SnapshotId,
        options: RequestOptions,
    ) -> Result<Accepted> {
        self.on_snapshot(id, snapshot, Action::SnapshotRestore, options)
            .await
    }

    /// Removes a snapshot.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::InvalidState`].
    pub async fn delete_snapshot(
        &self,
        id: ResourceId,
        snapshot: SnapshotId,
        options: RequestOptions,
    ) -> Result<Accepted> {
        self.on_snapshot(id, snapshot, Action::SnapshotDelete, options)
            .await
    }

    async fn on_snapshot(
        &self,
        id: ResourceId,
        snapshot: SnapshotId,
        action: Action,
        options: RequestOptions,
    ) -> Result<Accepted> {
        let record = self.writable(id, action.as_str()).await?;
        self.snapshots_of(&record)?;
        self.accepting()?;
        let all = self.core.store.snapshots(id).await?;
        let found = all.into_iter().find(|s| s.id == snapshot);
        let found = found.ok_or_else(|| Error::NotFound {
            what: format!("snapshot {snapshot}"),
        })?;
        if action == Action::SnapshotRestore && found.state != SnapshotState::Ready {
            return Err(Error::InvalidState {
                action: action.as_str(),
                phase: record.phase,
                reason: "the snapshot is not ready; wait until it is",
            });
        }
        let arguments = Arguments {
            snapshot: Some(snapshot),
            ..Arguments::default()
        };
        self.core
            .act(id, action, arguments, Some(found), self.asking(&options))
            .await
    }

    fn snapshots_of(&self, record: &Record) -> Result<()> {
        let facet = self.core.slot_of(record)?.backend.facets().snapshots;
        facet.map(|_| ()).ok_or_else(|| unsupported("snapshots", record))
    }
}
