//! Free text: records whose folded name or description has a text in it.
//!
//! Three characters and more are found by an index of trigrams, at a cost that grows with what is found.
//! Fewer make no trigram; then every record of the scope is looked at.

use std::collections::BTreeMap;

use hwm_core::lifecycle::Status;
use hwm_core::store::{SortBy, StoreError, fold};
use rusqlite::{Connection, params_from_iter, types::Value};

use crate::columns::{Bucket, Scopes};
use crate::error::failed;
use crate::list::{Key, Place};

/// What a search has found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// How many in each bucket.
    pub(crate) counts: BTreeMap<i64, i64>,
    /// Where they stand in the list, in no order.
    pub(crate) places: Vec<Place>,
}

/// The records of these scopes and buckets that have `needle`, which is folded, in name or description.
pub(crate) fn matches(
    db: &Connection,
    sort: SortBy,
    scopes: &Scopes,
    buckets: &BTreeMap<i64, i64>,
    needle: &str,
) -> Result<Found, StoreError> {
    if buckets.is_empty() {
        return Ok(Found::default());
    }
    find(db, sort, scopes, buckets, needle).map_err(failed("searching resources"))
}

fn find(
    db: &Connection,
    sort: SortBy,
    scopes: &Scopes,
    buckets: &BTreeMap<i64, i64>,
    needle: &str,
) -> rusqlite::Result<Found> {
    let mut values: Vec<Value> = Vec::new();
    let has_trigrams = needle.chars().nth(2).is_some() && !needle.contains('\0');
    let source = if has_trigrams {
        values.push(Value::Text(all_trigrams(needle)));
        "search CROSS JOIN records ON records.seq = search.rowid WHERE search MATCH ? AND"
    } else {
        "records WHERE"
    };
    let mut in_scope = Vec::new();
    for (column, scope) in &scopes.any_of {
        if let Some((column, _)) = column.names() {
            in_scope.push(format!("{column} = ?"));
            values.push(Value::Integer(*scope));
        }
    }
    let in_scope = if in_scope.is_empty() {
        "1".to_owned()
    } else {
        in_scope.join(" OR ")
    };
    let key = match sort {
        SortBy::CreatedAt => "records.created_at",
        SortBy::UpdatedAt => "records.updated_at",
        SortBy::Name => "records.name",
        SortBy::Status => "records.bucket",
    };
    let select = format!(
        "SELECT records.seq, records.id, records.bucket, {key}, records.name, records.description \
         FROM {source} ({in_scope})"
    );
    let mut select = db.prepare_cached(&select)?;
    let mut rows = select.query(params_from_iter(values))?;
    let mut found = Found::default();
    while let Some(row) = rows.next()? {
        let bucket: i64 = row.get(2)?;
        if !buckets.contains_key(&bucket)
            || !has(
                row.get_ref(4)?.as_str_or_null()?,
                row.get_ref(5)?.as_str_or_null()?,
                needle,
            )
        {
            continue;
        }
        *found.counts.entry(bucket).or_default() += 1;
        let key = match sort {
            SortBy::CreatedAt | SortBy::UpdatedAt => Key::Number(row.get(3)?),
            SortBy::Name => Key::Text(row.get(3)?),
            SortBy::Status => {
                let status = Bucket::from_number(bucket).map_or("", |b| Status::as_str(b.status));
                Key::Text(status.to_owned())
            }
        };
        found.places.push(Place {
            key,
            id: row.get(1)?,
            seq: row.get(0)?,
        });
    }
    Ok(found)
}

/// What has the trigrams of a text may have the text; more than a few tell nothing new.
fn all_trigrams(needle: &str) -> String {
    const MOST: usize = 24;
    let characters: Vec<char> = needle.chars().collect();
    let quoted = |trigram: &[char]| {
        let trigram: String = trigram.iter().collect();
        format!("\"{}\"", trigram.replace('"', "\"\""))
    };
    let trigrams: Vec<String> = characters.windows(3).take(MOST).map(quoted).collect();
    trigrams.join(" AND ")
}

fn has(name: Option<&str>, description: Option<&str>, needle: &str) -> bool {
    [name, description]
        .into_iter()
        .flatten()
        .any(|text| fold(text).contains(needle))
}
