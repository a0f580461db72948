//! The rows of records, and the index of their texts.

use hwm_core::id::ResourceId;
use hwm_core::store::{StoreError, fold};
use rusqlite::{Connection, OptionalExtension, params};

use crate::error::failed;
use crate::group::ScopeNumbers;

/// What the columns of a stored record are.
#[derive(Debug)]
pub(crate) struct StoredRow {
    pub(crate) seq: i64,
    pub(crate) revision: u64,
    pub(crate) bucket: i64,
    pub(crate) phase: i64,
    pub(crate) backend: String,
    pub(crate) scopes: ScopeNumbers,
    pub(crate) created_at: i64,
    pub(crate) updated_at: i64,
    pub(crate) deleted_at: Option<i64>,
    pub(crate) name: String,
    pub(crate) description: Option<String>,
}

/// The columns of a record; none when it is not there.
pub(crate) fn find(db: &Connection, id: ResourceId) -> Result<Option<StoredRow>, StoreError> {
    let doing = "reading the columns of a record";
    let select = "SELECT seq, revision, bucket, phase, backend, in_org, in_group, of_user, of_agent, of_both, \
                  created_at, updated_at, deleted_at, name, description FROM records WHERE id = ?1";
    let mut select = db.prepare_cached(select).map_err(failed(doing))?;
    let row = select.query_row([id.as_u128().to_be_bytes()], |row| {
        Ok(StoredRow {
            seq: row.get(0)?,
            revision: row.get::<_, i64>(1)?.cast_unsigned(),
            bucket: row.get(2)?,
            phase: row.get(3)?,
            backend: row.get(4)?,
            scopes: [row.get(5)?, row.get(6)?, row.get(7)?, row.get(8)?, row.get(9)?],
            created_at: row.get(10)?,
            updated_at: row.get(11)?,
            deleted_at: row.get(12)?,
            name: row.get(13)?,
            description: row.get(14)?,
        })
    });
    row.optional().map_err(failed(doing))
}

/// Makes a row, and answers its number.
pub(crate) fn insert(
    db: &Connection,
    id: ResourceId,
    row: &StoredRow,
    sealed: Option<Vec<u8>>,
    body: &str,
) -> rusqlite::Result<i64> {
    let insert = "INSERT INTO records (id, revision, bucket, phase, backend, in_org, in_group, of_user, of_agent, \
                  of_both, created_at, updated_at, deleted_at, name, description, sealed, body) \
                  VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)";
    let [org, group, user, agent, both] = row.scopes;
    db.prepare_cached(insert)?.insert(params![
        id.as_u128().to_be_bytes(),
        row.revision.cast_signed(),
        row.bucket,
        row.phase,
        row.backend,
        org,
        group,
        user,
        agent,
        both,
        row.created_at,
        row.updated_at,
        row.deleted_at,
        row.name,
        row.description,
        sealed,
        body,
    ])
}

/// Most writes change little (a health tick, a step), and an index whose columns are named is written even
/// when they stay the same: so only what changed is named.
pub(crate) fn update(
    db: &Connection,
    old: &StoredRow,
    new: &StoredRow,
    sealed: Option<Vec<u8>>,
    body: &str,
) -> rusqlite::Result<()> {
    let revision = new.revision.cast_signed();
    let stays = old.bucket == new.bucket
        && old.phase == new.phase
        && old.backend == new.backend
        && old.scopes == new.scopes
        && old.created_at == new.created_at
        && old.deleted_at == new.deleted_at
        && old.name == new.name
        && old.description == new.description;
    if stays && old.updated_at == new.updated_at {
        let update = "UPDATE records SET revision = ?2, sealed = ?3, body = ?4 WHERE seq = ?1";
        db.prepare_cached(update)?
            .execute(params![old.seq, revision, sealed, body])?;
    } else if stays {
        let update =
            "UPDATE records SET revision = ?2, sealed = ?3, body = ?4, updated_at = ?5 WHERE seq = ?1";
        db.prepare_cached(update)?
            .execute(params![old.seq, revision, sealed, body, new.updated_at])?;
    } else {
        let update = "UPDATE records SET revision = ?2, bucket = ?3, phase = ?4, backend = ?5, in_org = ?6, \
                      in_group = ?7, of_user = ?8, of_agent = ?9, of_both = ?10, created_at = ?11, \
                      updated_at = ?12, deleted_at = ?13, name = ?14, description = ?15, sealed = ?16, body = ?17 \
                      WHERE seq = ?1";
        let [org, group, user, agent, both] = new.scopes;
        db.prepare_cached(update)?.execute(params![
            old.seq,
            revision,
            new.bucket,
            new.phase,
            new.backend,
            org,
            group,
            user,
            agent,
            both,
            new.created_at,
            new.updated_at,
            new.deleted_at,
            new.name,
            new.description,
            sealed,
            body,
        ])?;
    }
    Ok(())
}

/// Makes a record findable by its texts.
pub(crate) fn index_text(db: &Connection, seq: i64, row: &StoredRow) -> rusqlite::Result<()> {
    let insert = "INSERT INTO search (rowid, name, description) VALUES (?1, ?2, ?3)";
    let description = row.description.as_deref().map(fold);
    db.prepare_cached(insert)?
        .execute(params![seq, fold(&row.name), description])?;
    Ok(())
}

/// The reverse of [`index_text`].
pub(crate) fn forget_text(db: &Connection, seq: i64) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM search WHERE rowid = ?1")?
        .execute([seq])?;
    Ok(())
}
