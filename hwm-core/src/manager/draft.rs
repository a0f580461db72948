//! A change to a resource before it is committed: record, operations, claims and events, all or nothing.

use serde_json::json;

use crate::access::Owner;
use crate::event::{EventType, NewEvent};
use crate::id::OperationId;
use crate::lifecycle::{Action, Phase};
use crate::operation::{OperationRecord, OperationStatus};
use crate::resource::Record;
use crate::store::{RecordWrite, Transaction};
use crate::units::Timestamp;

/// What was read, and what is to become of it.
pub(super) struct Draft {
    before: Option<Record>,
    operations_before: Vec<OperationRecord>,
    /// The record as it is to be.
    pub(super) record: Record,
    /// The operations that are not final, oldest first; new ones are added at the end.
    pub(super) operations: Vec<OperationRecord>,
    /// Claims, snapshots, notes and events beyond those that follow from the rest.
    pub(super) tx: Transaction,
    /// Who changes it, where a client does.
    pub(super) by: Option<String>,
    /// Whether the revision stays, as it does for health ticks.
    pub(super) quiet: bool,
}

impl Draft {
    pub(super) fn new(record: Record) -> Self {
        Self {
            before: None,
            operations_before: Vec::new(),
            record,
            operations: Vec::new(),
            tx: Transaction::default(),
            by: None,
            quiet: false,
        }
    }

    pub(super) fn of(record: Record, operations: Vec<OperationRecord>) -> Self {
        Self {
            before: Some(record.clone()),
            operations_before: operations.clone(),
            operations,
            ..Self::new(record)
        }
    }

    pub(super) fn operation_mut(&mut self, id: OperationId) -> Option<&mut OperationRecord> {
        self.operations.iter_mut().find(|o| o.id == id)
    }

    /// Whether an operation that waits or runs brings the resource up. It has claimed what that needs.
    pub(super) fn comes_up(&self) -> bool {
        self.operations
            .iter()
            .any(|o| !o.status.is_final() && o.action.brings_up())
    }

    /// The transaction, and the record as it will be. Events follow from what differs.
    pub(super) fn finish(mut self, now: Timestamp) -> (Transaction, Record, Vec<OperationRecord>) {
        let record = &mut self.record;
        if let Some(by) = self.by {
            record.updated_by = by;
            record.updated_at = now;
        }
        let mut events = Vec::new();
        match &self.before {
            None => events.push(about(
                record,
                EventType::ResourceCreated,
                now,
                json!({ "name": record.name }),
            )),
            Some(before) => {
                if !self.quiet {
                    record.revision = before.revision + 1;
                }
                if before.status() != record.status() && record.phase != Phase::Deleted {
                    record.updated_at = now;
                    events.push(about(
                        record,
                        EventType::ResourceStatus,
                        now,
                        json!({
                            "status": record.status(),
                            "previous": before.status(),
                            "errorMessage": record.error_message,
                        }),
                    ));
                }
            }
        }
        let mut ended = Vec::new();
        for operation in &self.operations {
            let before = self.operations_before.iter().find(|o| o.id == operation.id);
            if before == Some(operation) {
                continue;
            }
            let kind = if operation.status.is_final() {
                EventType::OperationFinished
            } else {
                EventType::OperationProgress
            };
            if operation.status.is_final() {
                ended.push(operation.clone());
                if operation.action == Action::SnapshotCreate
                    && operation.status != OperationStatus::Succeeded
                {
                    self.tx.forget_snapshots.extend(operation.arguments.snapshot);
                }
            }
            events.push(operation_event(operation, kind, record, now));
            self.tx.operations.push(operation.clone());
        }
        events.append(&mut self.tx.events);
        self.tx.events = events;
        let expected = self.before.map(|b| b.revision);
        self.tx.records.push(RecordWrite {
            record: self.record.clone(),
            expected,
        });
        (self.tx, self.record, ended)
    }
}

/// An event about a resource.
pub(super) fn about(record: &Record, kind: EventType, time: Timestamp, data: serde_json::Value) -> NewEvent {
    NewEvent {
        kind,
        time,
        resource: Some(record.id),
        resource_type: Some(record.config.resource_type()),
        owner: Some(record.owner.clone()),
        operation: None,
        data,
    }
}

/// An event about an operation.
pub(super) fn operation_event(
    operation: &OperationRecord,
    kind: EventType,
    record: &Record,
    time: Timestamp,
) -> NewEvent {
    let data = json!({
        "action": operation.action,
        "status": operation.status,
        "progress": operation.progress,
        "error": operation.error,
    });
    NewEvent {
        operation: Some(operation.id),
        ..about(record, kind, time, data)
    }
}

/// An event about the node; everyone may see it.
pub(super) fn node_event(kind: EventType, time: Timestamp, data: serde_json::Value) -> NewEvent {
    NewEvent {
        kind,
        time,
        resource: None,
        resource_type: None,
        owner: None::<Owner>,
        operation: None,
        data,
    }
}

/// Marks an operation as ended.
pub(super) fn end(operation: &mut OperationRecord, status: OperationStatus, now: Timestamp) {
    operation.status = status;
    operation.finished_at = Some(now);
}
