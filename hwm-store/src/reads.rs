//! Reads other than lists of records and claims.

use std::sync::Arc;

use hwm_core::id::{BackendName, OperationId, ResourceId};
use hwm_core::lifecycle::Phase;
use hwm_core::operation::OperationRecord;
use hwm_core::resource::Record;
use hwm_core::snapshot::Snapshot;
use hwm_core::store::{EventPage, EventQuery, OperationPage, OperationQuery, Remembered, StoreError};
use rusqlite::{Connection, OptionalExtension, Params, params};
use serde::de::DeserializeOwned;

use hwm_core::event::{NewEvent, StoredEvent};

use crate::columns::{Column, OPERATIONS, Scopes, phase_number};
use crate::error::{failed, unreadable};
use crate::group::meta;
use crate::readers::Readers;
use crate::recent::{AsOf, Recent, Row};
use crate::seal::SealingKey;

type Result<T, E = StoreError> = std::result::Result<T, E>;

/// One body, read.
fn one<T: DeserializeOwned>(
    db: &Connection,
    what: &str,
    select: &str,
    params: impl Params,
) -> Result<Option<T>> {
    let doing = format!("reading {what}");
    let mut select = db.prepare_cached(select).map_err(failed(&doing))?;
    let body: Option<String> = select
        .query_row(params, |row| row.get(0))
        .optional()
        .map_err(failed(&doing))?;
    body.map(|body| serde_json::from_str(&body))
        .transpose()
        .map_err(|e| unreadable(what, e))
}

/// Bodies, read.
fn many<T: DeserializeOwned>(
    db: &Connection,
    what: &str,
    select: &str,
    params: impl Params,
) -> Result<Vec<T>> {
    let doing = format!("reading {what}");
    let mut select = db.prepare_cached(select).map_err(failed(&doing))?;
    let rows = select
        .query_map(params, |row| row.get::<_, String>(0))
        .map_err(failed(&doing))?;
    let read = |body: rusqlite::Result<String>| {
        serde_json::from_str(&body.map_err(failed(&doing))?).map_err(|e| unreadable(what, e))
    };
    rows.map(read).collect()
}

/// One record, with its secrets.
pub(crate) fn record(
    readers: &Readers,
    recent: &Recent,
    key: &SealingKey,
    id: ResourceId,
) -> Result<Option<Record>> {
    let row = match recent.get(id) {
        Some(row) => Some(row),
        None => {
            let as_of = recent.now();
            readers.here(|db| row(db, recent, as_of, id))?
        }
    };
    let Some(row) = row else { return Ok(None) };
    let mut record = row.record.clone();
    if let Some(sealed) = &row.sealed {
        key.unseal_config(id, sealed, &mut record.config)?;
    }
    Ok(Some(record))
}

fn row(db: &Connection, recent: &Recent, as_of: AsOf, id: ResourceId) -> Result<Option<Arc<Row>>> {
    let doing = "reading a resource";
    let select = "SELECT body, sealed FROM records WHERE id = ?1";
    let mut select = db.prepare_cached(select).map_err(failed(doing))?;
    let mut rows = select
        .query([id.as_u128().to_be_bytes()])
        .map_err(failed(doing))?;
    let row = rows.next().map_err(failed(doing))?;
    row.map(|row| decoded(row, recent, as_of, id)).transpose()
}

/// What a row holds whose columns are `body` and `sealed`.
pub(crate) fn decoded(
    row: &rusqlite::Row<'_>,
    recent: &Recent,
    as_of: AsOf,
    id: ResourceId,
) -> Result<Arc<Row>> {
    let doing = "reading a resource";
    let body = row.get_ref(0).map_err(failed(doing))?;
    let body = body.as_str().map_err(|e| unreadable("a resource", e))?;
    let sealed = row.get_ref(1).map_err(failed(doing))?;
    let sealed = sealed
        .as_blob_or_null()
        .map_err(|e| unreadable("the secrets of a resource", e))?;
    recent.keep(as_of, id, body, sealed)
}

pub(crate) fn ids_in_phases(
    db: &Connection,
    backend: &BackendName,
    phases: &[Phase],
    after: Option<ResourceId>,
    limit: usize,
) -> Result<Vec<ResourceId>> {
    let select = "SELECT id FROM records INDEXED BY records_phase WHERE backend = ?1 AND phase = ?2 AND id > ?3 \
                  ORDER BY id LIMIT ?4";
    let doing = "listing the resources of a backend";
    let mut select = db.prepare_cached(select).map_err(failed(doing))?;
    // Every blob is greater than the empty one.
    let after = after.map_or(Vec::new(), |id| id.as_u128().to_be_bytes().to_vec());
    let most = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut ids = std::collections::BTreeSet::new();
    for phase in phases {
        let params = params![backend.as_str(), phase_number(*phase), after, most];
        let rows = select
            .query_map(params, |row| row.get(0))
            .map_err(failed(doing))?;
        for row in rows {
            ids.insert(ResourceId::from_u128(u128::from_be_bytes(
                row.map_err(failed(doing))?,
            )));
        }
    }
    Ok(ids.into_iter().take(limit).collect())
}

pub(crate) fn operation(db: &Connection, id: OperationId) -> Result<Option<OperationRecord>> {
    let select = "SELECT body FROM operations WHERE id = ?1";
    one(db, "an operation", select, [id.as_u128().to_be_bytes()])
}

pub(crate) fn operations(db: &Connection, query: &OperationQuery) -> Result<OperationPage> {
    let doing = "listing operations";
    let snapshot = db.unchecked_transaction().map_err(failed(doing))?;
    let scopes = Scopes::of(&snapshot, &query.visibility).map_err(failed(doing))?;
    let found = if query.resource.is_none() && !query.unfinished {
        newest_operations(&snapshot, query, &scopes)
    } else {
        few_operations(&snapshot, query, &scopes)
    };
    let (seqs, total) = found.map_err(failed(doing))?;
    let mut operations = Vec::with_capacity(seqs.len());
    for seq in seqs {
        let select = "SELECT body FROM operations WHERE seq = ?1";
        operations.extend(one(&snapshot, "an operation", select, [seq])?);
    }
    snapshot.finish().map_err(failed(doing))?;
    Ok(OperationPage { operations, total })
}

/// A page of all that the scopes have, by their indexes; how many there are is kept.
fn newest_operations(
    db: &Connection,
    query: &OperationQuery,
    scopes: &Scopes,
) -> rusqlite::Result<(Vec<i64>, u64)> {
    let total = scopes
        .counts(db)?
        .get(&OPERATIONS)
        .copied()
        .unwrap_or(0)
        .cast_unsigned();
    if query.offset >= total {
        return Ok((Vec::new(), total));
    }
    let keep = query.offset.saturating_add(query.limit.into()).min(total);
    let mut seqs = Vec::new();
    for (column, scope) in &scopes.any_of {
        let (select, scope) = match column.names() {
            None => (
                "SELECT seq FROM operations ORDER BY seq DESC LIMIT ?1".to_owned(),
                None,
            ),
            Some((name, word)) => (
                format!(
                    "SELECT seq FROM operations INDEXED BY operations_{word} \
                     WHERE {name} = ?2 ORDER BY seq DESC LIMIT ?1"
                ),
                Some(scope),
            ),
        };
        let mut select = db.prepare_cached(&select)?;
        let mut add = |row: &rusqlite::Row<'_>| row.get(0).map(|seq: i64| seqs.push(seq));
        let keep = keep.cast_signed();
        match scope {
            None => select
                .query_map([keep], &mut add)?
                .collect::<rusqlite::Result<()>>()?,
            Some(scope) => select
                .query_map([keep, *scope], &mut add)?
                .collect::<rusqlite::Result<()>>()?,
        }
    }
    seqs.sort_unstable_by(|a, b| b.cmp(a));
    // One may be in two of the scopes.
    seqs.dedup();
    Ok((page(seqs, query), total))
}

/// Those of one resource, or those that are not final: few enough to look at all.
fn few_operations(
    db: &Connection,
    query: &OperationQuery,
    scopes: &Scopes,
) -> rusqlite::Result<(Vec<i64>, u64)> {
    const COLUMNS: &str = "SELECT seq, in_org, in_group, of_user, of_agent FROM operations INDEXED BY";
    let select = match (query.resource, query.unfinished) {
        (Some(_), true) => "operations_unfinished WHERE finished_at IS NULL AND resource = ?1",
        (Some(_), false) => "operations_resource WHERE resource = ?1",
        (None, _) => "operations_unfinished WHERE finished_at IS NULL",
    };
    let mut select = db.prepare_cached(&format!("{COLUMNS} {select}"))?;
    let mut rows = match query.resource {
        Some(resource) => select.query([resource.as_u128().to_be_bytes()])?,
        None => select.query([])?,
    };
    let mut seqs: Vec<i64> = Vec::new();
    while let Some(row) = rows.next()? {
        let mut is_seen = false;
        for (column, scope) in &scopes.any_of {
            let column = match column {
                Column::All => None,
                Column::Org => Some(1),
                Column::Group => Some(2),
                Column::User => Some(3),
                Column::Agent => Some(4),
            };
            is_seen |= match column {
                None => true,
                Some(column) => row.get::<_, Option<i64>>(column)? == Some(*scope),
            };
        }
        if is_seen {
            seqs.push(row.get(0)?);
        }
    }
    seqs.sort_unstable();
    if query.resource.is_none() || !query.unfinished {
        seqs.reverse();
    }
    let total = seqs.len() as u64;
    Ok((page(seqs, query), total))
}

fn page(seqs: Vec<i64>, query: &OperationQuery) -> Vec<i64> {
    let offset = usize::try_from(query.offset).unwrap_or(usize::MAX);
    seqs.into_iter().skip(offset).take(query.limit as usize).collect()
}

pub(crate) fn events(db: &Connection, query: EventQuery) -> Result<EventPage> {
    let doing = "reading events";
    let snapshot = db.unchecked_transaction().map_err(failed(doing))?;
    let newest = meta(&snapshot, "newest_event").map_err(failed(doing))?;
    let newest_dropped = meta(&snapshot, "newest_dropped_event").map_err(failed(doing))?;
    let mut events = Vec::new();
    if query.after < newest {
        let select = "SELECT id, body FROM events WHERE id > ?1 ORDER BY id LIMIT ?2";
        let mut select = snapshot.prepare_cached(select).map_err(failed(doing))?;
        let rows = select.query_map(params![query.after.cast_signed(), query.limit], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
        });
        for row in rows.map_err(failed(doing))? {
            let (id, body) = row.map_err(failed(doing))?;
            let event: NewEvent = serde_json::from_str(&body).map_err(|e| unreadable("an event", e))?;
            events.push(StoredEvent {
                id: id.cast_unsigned(),
                event,
            });
        }
    }
    snapshot.finish().map_err(failed(doing))?;
    Ok(EventPage {
        events,
        gap: query.after < newest_dropped,
        newest,
    })
}

pub(crate) fn snapshots(db: &Connection, resource: ResourceId) -> Result<Vec<Snapshot>> {
    let select = "SELECT body FROM snapshots WHERE resource = ?1 ORDER BY created_at, id";
    many(
        db,
        "the snapshots of a machine",
        select,
        [resource.as_u128().to_be_bytes()],
    )
}

pub(crate) fn remembered(db: &Connection, key: &str) -> Result<Option<Remembered>> {
    one(
        db,
        "a remembered answer",
        "SELECT body FROM remembered WHERE key = ?1",
        [key],
    )
}

pub(crate) fn note(db: &Connection, name: &str) -> Result<Option<String>> {
    let doing = "reading a note";
    let mut select = db
        .prepare_cached("SELECT value FROM notes WHERE name = ?1")
        .map_err(failed(doing))?;
    select
        .query_row([name], |row| row.get(0))
        .optional()
        .map_err(failed(doing))
}
