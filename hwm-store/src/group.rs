//! Transactions that are committed together: one write to the disk for all of them.
//!
//! Each is judged before it writes anything, so that one that is refused leaves nothing in the group. One
//! that fails for another reason (no space, a damaged page) spoils the group, which is then rolled back and
//! tried one by one by the [writer](crate::writer).

use std::collections::HashMap;

use hwm_core::access::Owner;
use hwm_core::event::{NewEvent, StoredEvent};
use hwm_core::id::SnapshotId;
use hwm_core::lifecycle::Phase;
use hwm_core::operation::OperationRecord;
use hwm_core::resource::Record;
use hwm_core::snapshot::Snapshot;
use hwm_core::store::{CommitError, RecordWrite, Remembered, StoreError, Transaction};
use rusqlite::{Connection, OptionalExtension, params};

use crate::claims;
use crate::columns::{Bucket, EVERYTHING, OPERATIONS, find_node, phase_number, scope_names};
use crate::error::failed;
use crate::rows::{self, StoredRow};
use crate::seal::SealingKey;

type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Numbers of nodes and scopes that are known to be in the file.
#[derive(Debug, Default)]
pub(crate) struct Known {
    nodes: HashMap<String, i64>,
    scopes: HashMap<Owner, ScopeNumbers>,
}

impl Known {
    /// Keeps it small: what is forgotten is looked up again.
    fn trim(&mut self) {
        const MOST: usize = 4096;
        if self.scopes.len() > MOST {
            self.scopes.clear();
        }
        if self.nodes.len() > MOST {
            self.nodes.clear();
        }
    }
}

/// A group that is being written.
pub(crate) struct Group<'a> {
    db: &'a Connection,
    key: &'a SealingKey,
    known: &'a mut Known,
    newest_event: u64,
    had_event: u64,
    changes: HashMap<(i64, i64), i64>,
}

/// The numbers of the scopes of an owner, in the order of [`scope_names`].
pub(crate) type ScopeNumbers = [Option<i64>; 5];

impl<'a> Group<'a> {
    /// Begins a group; the caller has begun a transaction of the database.
    pub(crate) fn begin(db: &'a Connection, key: &'a SealingKey, known: &'a mut Known) -> Result<Self> {
        known.trim();
        let newest = meta(db, "newest_event").map_err(failed("reading the newest event"))?;
        Ok(Self {
            db,
            key,
            known,
            newest_event: newest,
            had_event: newest,
            changes: HashMap::new(),
        })
    }

    /// Writes what the whole group has added up. The caller commits.
    pub(crate) fn finish(self) -> Result<()> {
        let doing = "writing the counts of a group";
        let insert = "INSERT INTO counts VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET n = n + excluded.n";
        let mut insert = self.db.prepare_cached(insert).map_err(failed(doing))?;
        for ((scope, bucket), change) in self.changes {
            if change != 0 {
                insert
                    .execute(params![scope, bucket, change])
                    .map_err(failed(doing))?;
            }
        }
        if self.newest_event != self.had_event {
            set_meta(self.db, "newest_event", self.newest_event).map_err(failed(doing))?;
        }
        Ok(())
    }

    /// Writes one transaction, or refuses it and leaves the group as it was. After a
    /// [`CommitError::Store`] the group must be rolled back.
    pub(crate) fn apply(&mut self, transaction: &Transaction) -> Result<Vec<StoredEvent>, CommitError> {
        if let Some(answer) = &transaction.remember
            && self.is_remembered(&answer.key)?
        {
            return Err(CommitError::Remembered);
        }
        let rows = self.judge_revisions(&transaction.records)?;
        let shares = claims::judge(self.db, transaction)?;

        for (i, (write, row)) in transaction.records.iter().zip(rows).enumerate() {
            let id = write.record.id;
            let is_again = transaction.records.iter().take(i).any(|w| w.record.id == id);
            let row = if is_again { rows::find(self.db, id)? } else { row };
            self.write_record(&write.record, row)?;
        }
        shares.write(self.db).map_err(failed("writing claims"))?;
        for operation in &transaction.operations {
            self.write_operation(operation)?;
        }
        for snapshot in &transaction.snapshots {
            self.write_snapshot(snapshot)?;
        }
        for id in &transaction.forget_snapshots {
            self.forget_snapshot(*id)
                .map_err(failed("forgetting a snapshot"))?;
        }
        if let Some(answer) = &transaction.remember {
            self.remember(answer)?;
        }
        for (name, value) in &transaction.notes {
            self.write_note(name, value).map_err(failed("writing a note"))?;
        }
        let mut stored = Vec::with_capacity(transaction.events.len());
        for event in &transaction.events {
            stored.push(self.write_event(event)?);
        }
        Ok(stored)
    }

    fn is_remembered(&self, key: &str) -> Result<bool> {
        let doing = "looking for a remembered answer";
        let mut select = self
            .db
            .prepare_cached("SELECT 1 FROM remembered WHERE key = ?1")
            .map_err(failed(doing))?;
        select.exists([key]).map_err(failed(doing))
    }

    /// The rows of the records to write, if all are at the revisions that are expected.
    fn judge_revisions(&self, writes: &[RecordWrite]) -> Result<Vec<Option<StoredRow>>, CommitError> {
        let mut rows = Vec::with_capacity(writes.len());
        for (i, write) in writes.iter().enumerate() {
            let id = write.record.id;
            let row = rows::find(self.db, id)?;
            let earlier = writes.iter().take(i).rev().find(|w| w.record.id == id);
            let found = match earlier {
                Some(earlier) => Some(earlier.record.revision),
                None => row.as_ref().map(|r| r.revision),
            };
            if found != write.expected {
                return Err(CommitError::Stale { id });
            }
            rows.push(row);
        }
        Ok(rows)
    }

    fn write_record(&mut self, record: &Record, old: Option<StoredRow>) -> Result<()> {
        let doing = format!("writing resource {}", record.id);
        let wrong = || failed(&doing);
        let body = serde_json::to_string(record).map_err(|e| StoreError::new(&doing, e.to_string()))?;
        let sealed = match record.phase {
            Phase::Deleted => None,
            Phase::Queued
            | Phase::Deploying
            | Phase::Running
            | Phase::Restarting
            | Phase::Stopping
            | Phase::Stopped
            | Phase::Failed
            | Phase::Error
            | Phase::Deleting => self.key.seal_config(record.id, &record.config)?,
        };
        let node = self.node(record.node.as_str()).map_err(wrong())?;
        let new = StoredRow {
            seq: old.as_ref().map_or(0, |old| old.seq),
            revision: record.revision,
            bucket: Bucket::of(record, node).number(),
            phase: phase_number(record.phase),
            backend: record.backend.as_str().to_owned(),
            scopes: self.scopes(&record.owner).map_err(wrong())?,
            created_at: record.created_at.as_millis(),
            updated_at: record.updated_at.as_millis(),
            deleted_at: record.deleted_at.map(|t| t.as_millis()),
            name: record.name.clone(),
            description: record.description.clone(),
        };
        let Some(old) = old else {
            let seq = rows::insert(self.db, record.id, &new, sealed, &body).map_err(wrong())?;
            self.count(&new.scopes, new.bucket, 1);
            return rows::index_text(self.db, seq, &new).map_err(wrong());
        };
        rows::update(self.db, &old, &new, sealed, &body).map_err(wrong())?;
        self.count(&old.scopes, old.bucket, -1);
        self.count(&new.scopes, new.bucket, 1);
        if (&old.name, &old.description) != (&new.name, &new.description) {
            rows::forget_text(self.db, old.seq).map_err(wrong())?;
            rows::index_text(self.db, old.seq, &new).map_err(wrong())?;
        }
        Ok(())
    }

    fn write_operation(&mut self, operation: &OperationRecord) -> Result<()> {
        let doing = format!("writing operation {}", operation.id);
        let wrong = || failed(&doing);
        let body = serde_json::to_string(operation).map_err(|e| StoreError::new(&doing, e.to_string()))?;
        let ended = operation.finished_at.unwrap_or(operation.created_at).as_millis();
        let finished_at = operation.status.is_final().then_some(ended);
        let id = operation.id.as_u128().to_be_bytes();
        let update = "UPDATE operations SET body = ?2, finished_at = ?3 WHERE id = ?1";
        let mut update = self.db.prepare_cached(update).map_err(wrong())?;
        if update.execute(params![id, body, finished_at]).map_err(wrong())? > 0 {
            return Ok(());
        }
        let scopes = self.scopes(&operation.owner).map_err(wrong())?;
        let insert = "INSERT INTO operations \
                      (id, resource, finished_at, in_org, in_group, of_user, of_agent, of_both, body) \
                      VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
        let mut insert = self.db.prepare_cached(insert).map_err(wrong())?;
        let resource = operation.resource.as_u128().to_be_bytes();
        let [org, group, user, agent, both] = scopes;
        let row = params![id, resource, finished_at, org, group, user, agent, both, body];
        insert.execute(row).map_err(wrong())?;
        self.count(&scopes, OPERATIONS, 1);
        Ok(())
    }

    fn write_snapshot(&self, snapshot: &Snapshot) -> Result<()> {
        let doing = format!("writing snapshot {}", snapshot.id);
        let body = serde_json::to_string(snapshot).map_err(|e| StoreError::new(&doing, e.to_string()))?;
        let write = "INSERT OR REPLACE INTO snapshots VALUES (?1, ?2, ?3, ?4)";
        let mut write = self.db.prepare_cached(write).map_err(failed(&doing))?;
        let id = snapshot.id.as_u128().to_be_bytes();
        let resource = snapshot.resource_id.as_u128().to_be_bytes();
        let row = params![id, resource, snapshot.created_at.as_millis(), body];
        write.execute(row).map_err(failed(&doing))?;
        Ok(())
    }

    fn forget_snapshot(&self, id: SnapshotId) -> rusqlite::Result<()> {
        let mut delete = self.db.prepare_cached("DELETE FROM snapshots WHERE id = ?1")?;
        delete.execute([id.as_u128().to_be_bytes()])?;
        Ok(())
    }

    fn remember(&self, answer: &Remembered) -> Result<()> {
        let doing = "remembering an answer";
        let body = serde_json::to_string(answer).map_err(|e| StoreError::new(doing, e.to_string()))?;
        let insert = "INSERT INTO remembered VALUES (?1, ?2, ?3)";
        let mut insert = self.db.prepare_cached(insert).map_err(failed(doing))?;
        insert
            .execute(params![answer.key, answer.time.as_millis(), body])
            .map_err(failed(doing))?;
        Ok(())
    }

    fn write_note(&self, name: &str, value: &str) -> rusqlite::Result<()> {
        let write = "INSERT INTO notes VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = excluded.value";
        self.db.prepare_cached(write)?.execute([name, value])?;
        Ok(())
    }

    fn write_event(&mut self, event: &NewEvent) -> Result<StoredEvent> {
        let doing = "writing an event";
        let body = serde_json::to_string(event).map_err(|e| StoreError::new(doing, e.to_string()))?;
        let id = self.newest_event + 1;
        let insert = "INSERT INTO events VALUES (?1, ?2, ?3)";
        let mut insert = self.db.prepare_cached(insert).map_err(failed(doing))?;
        let row = params![id.cast_signed(), event.time.as_millis(), body];
        insert.execute(row).map_err(failed(doing))?;
        self.newest_event = id;
        Ok(StoredEvent {
            id,
            event: event.clone(),
        })
    }

    /// Adds to the counts of every scope that something is in.
    fn count(&mut self, scopes: &ScopeNumbers, bucket: i64, change: i64) {
        for scope in scopes.iter().flatten().copied().chain([EVERYTHING]) {
            *self.changes.entry((scope, bucket)).or_default() += change;
        }
    }

    /// Takes a pruned record or operation out of the counts.
    pub(crate) fn uncount(&mut self, scopes: &ScopeNumbers, bucket: i64) {
        self.count(scopes, bucket, -1);
    }

    pub(crate) fn db(&self) -> &'a Connection {
        self.db
    }

    fn node(&mut self, name: &str) -> rusqlite::Result<i64> {
        if let Some(id) = self.known.nodes.get(name) {
            return Ok(*id);
        }
        let id = match find_node(self.db, name)? {
            Some(id) => id,
            None => self
                .db
                .prepare_cached("INSERT INTO nodes (name) VALUES (?1)")?
                .insert([name])?,
        };
        self.known.nodes.insert(name.to_owned(), id);
        Ok(id)
    }

    fn scopes(&mut self, owner: &Owner) -> rusqlite::Result<ScopeNumbers> {
        if let Some(numbers) = self.known.scopes.get(owner) {
            return Ok(*numbers);
        }
        let mut numbers = [None; 5];
        for (number, name) in numbers.iter_mut().zip(scope_names(owner)) {
            let Some(name) = name else { continue };
            let insert = "INSERT INTO scopes (name) VALUES (?1) ON CONFLICT DO NOTHING";
            self.db.prepare_cached(insert)?.execute([&name])?;
            let mut select = self.db.prepare_cached("SELECT id FROM scopes WHERE name = ?1")?;
            *number = Some(select.query_row([&name], |row| row.get(0))?);
        }
        self.known.scopes.insert(owner.clone(), numbers);
        Ok(numbers)
    }
}

/// A number that belongs to the file; 0 before it is set.
pub(crate) fn meta(db: &Connection, name: &str) -> rusqlite::Result<u64> {
    let mut select = db.prepare_cached("SELECT value FROM meta WHERE name = ?1")?;
    let value: Option<i64> = select.query_row([name], |row| row.get(0)).optional()?;
    Ok(value.unwrap_or(0).cast_unsigned())
}

pub(crate) fn set_meta(db: &Connection, name: &str, value: u64) -> rusqlite::Result<()> {
    let write = "INSERT INTO meta VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = excluded.value";
    db.prepare_cached(write)?
        .execute(params![name, value.cast_signed()])?;
    Ok(())
}
