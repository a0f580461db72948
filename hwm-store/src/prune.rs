//! Drops what is old, a little at a time, so that commits do not wait long.

use hwm_core::store::{PruneLimits, StoreError};
use rusqlite::{Connection, Row, params};

use crate::columns::{OPERATIONS, phase_number};
use crate::error::failed;
use crate::group::{Group, meta, set_meta};
use crate::rows::forget_text;

/// The most rows of a table that go at once.
const AT_ONCE: u64 = 500;

/// What one round has dropped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pruned {
    /// How many rows.
    pub(crate) gone: u64,
    /// Whether there may be more.
    pub(crate) more: bool,
}

/// Drops some of what is older than the limits.
pub(crate) fn some(group: &mut Group<'_>, limits: &PruneLimits) -> Result<Pruned, StoreError> {
    let doing = "pruning";
    let parts = [
        operations(group, limits.operations.as_millis()).map_err(failed(doing))?,
        events(group.db(), limits.events.as_millis()).map_err(failed(doing))?,
        remembered(group.db(), limits.remembered.as_millis()).map_err(failed(doing))?,
        records(group, limits.deleted.as_millis()).map_err(failed(doing))?,
    ];
    Ok(Pruned {
        gone: parts.iter().sum(),
        more: parts.iter().any(|gone| *gone >= AT_ONCE),
    })
}

type Scopes = [Option<i64>; 5];

fn scopes(row: &Row<'_>, first: usize) -> rusqlite::Result<Scopes> {
    let mut scopes = [None; 5];
    for (i, scope) in scopes.iter_mut().enumerate() {
        *scope = row.get(first + i)?;
    }
    Ok(scopes)
}

fn operations(group: &mut Group<'_>, before: i64) -> rusqlite::Result<u64> {
    let select = "SELECT seq, in_org, in_group, of_user, of_agent, of_both FROM operations \
                  WHERE finished_at < ?1 LIMIT ?2";
    let mut select = group.db().prepare_cached(select)?;
    let rows = select.query_map(params![before, AT_ONCE as i64], |row| {
        Ok((row.get(0)?, scopes(row, 1)?))
    })?;
    let rows: Vec<(i64, Scopes)> = rows.collect::<rusqlite::Result<_>>()?;
    for (seq, scopes) in &rows {
        group
            .db()
            .prepare_cached("DELETE FROM operations WHERE seq = ?1")?
            .execute([seq])?;
        group.uncount(scopes, OPERATIONS);
    }
    Ok(rows.len() as u64)
}

fn events(db: &Connection, before: i64) -> rusqlite::Result<u64> {
    let mut select = db.prepare_cached("SELECT id FROM events WHERE time < ?1 LIMIT ?2")?;
    let rows = select.query_map(params![before, AT_ONCE as i64], |row| row.get(0))?;
    let ids: Vec<i64> = rows.collect::<rusqlite::Result<_>>()?;
    for id in &ids {
        db.prepare_cached("DELETE FROM events WHERE id = ?1")?
            .execute([id])?;
    }
    if let Some(newest) = ids.iter().max() {
        let newest = newest.cast_unsigned().max(meta(db, "newest_dropped_event")?);
        set_meta(db, "newest_dropped_event", newest)?;
    }
    Ok(ids.len() as u64)
}

fn remembered(db: &Connection, before: i64) -> rusqlite::Result<u64> {
    let delete = "DELETE FROM remembered WHERE key IN (SELECT key FROM remembered WHERE time < ?1 LIMIT ?2)";
    Ok(db
        .prepare_cached(delete)?
        .execute(params![before, AT_ONCE as i64])? as u64)
}

/// Records whose removal is over; one that is still being removed stays, however old.
fn records(group: &mut Group<'_>, before: i64) -> rusqlite::Result<u64> {
    let select = "SELECT seq, id, bucket, in_org, in_group, of_user, of_agent, of_both FROM records \
                  WHERE deleted_at < ?1 AND phase = ?2 LIMIT ?3";
    let mut select = group.db().prepare_cached(select)?;
    let deleted = phase_number(hwm_core::lifecycle::Phase::Deleted);
    let rows = select.query_map(params![before, deleted, AT_ONCE as i64], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?, scopes(row, 3)?))
    })?;
    let rows: Vec<(i64, [u8; 16], i64, Scopes)> = rows.collect::<rusqlite::Result<_>>()?;
    for (seq, id, bucket, scopes) in &rows {
        let db = group.db();
        db.prepare_cached("DELETE FROM records WHERE seq = ?1")?
            .execute([seq])?;
        db.prepare_cached("DELETE FROM snapshots WHERE resource = ?1")?
            .execute([id])?;
        forget_text(db, *seq)?;
        group.uncount(scopes, *bucket);
    }
    Ok(rows.len() as u64)
}
