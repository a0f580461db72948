//! Lists of records.
//!
//! A scope keeps its records in buckets (node, type, status, deleted or not), each bucket sorted four ways
//! by an index. A filter selects some of the buckets; a page is the beginning of the merge of their sorted
//! runs, so it costs what the page and the number of buckets cost, however many records there are. The
//! buckets that have any records, and how many, come from `counts`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashSet};

use hwm_core::id::ResourceId;
use hwm_core::lifecycle::Status;
use hwm_core::resource::Record;
use hwm_core::store::{Counts, Cursor, ListPage, ListQuery, Position, SortBy, SortOrder, StoreError, fold};
use rusqlite::{Connection, params_from_iter, types::Value};

use crate::columns::{Bucket, Column, Scopes, find_node};
use crate::error::{failed, unreadable};
use crate::reads;
use crate::recent::{AsOf, Recent};
use crate::search;

type Result<T, E = StoreError> = std::result::Result<T, E>;

const DOING: &str = "listing resources";

/// The page that a query asks for, all of it as of one moment.
pub(crate) fn page(db: &Connection, recent: &Recent, query: &ListQuery) -> Result<ListPage> {
    let as_of = recent.now();
    let snapshot = db.unchecked_transaction().map_err(failed(DOING))?;
    let page = select(&snapshot, recent, as_of, query)?;
    snapshot.finish().map_err(failed(DOING))?;
    Ok(page)
}

fn select(db: &Connection, recent: &Recent, as_of: AsOf, query: &ListQuery) -> Result<ListPage> {
    let scopes = Scopes::of(db, &query.visibility).map_err(failed(DOING))?;
    let buckets = matching_buckets(db, query, &scopes).map_err(failed(DOING))?;
    let needle = query
        .search
        .as_deref()
        .map(fold)
        .filter(|needle| !needle.is_empty());
    let (counted, best) = match needle {
        None => {
            let mut best = Best::of(query, &scopes, buckets.values().sum());
            if let Some(best) = &mut best {
                merge(db, query, &scopes, &buckets, best)?;
            }
            (buckets, best)
        }
        Some(needle) => {
            let found = search::matches(db, query.sort_by, &scopes, &buckets, &needle)?;
            let mut best = Best::of(query, &scopes, found.counts.values().sum());
            if let Some(best) = &mut best {
                for place in found.places {
                    best.offer(place);
                }
            }
            (found.counts, best)
        }
    };
    let (places, has_more) = best.map(Best::into_page).unwrap_or_default();
    let mut records = Vec::with_capacity(places.len());
    for place in &places {
        records.push(read(db, recent, as_of, place)?);
    }
    let last = records.last().filter(|_| has_more);
    Ok(ListPage {
        next: last.map(|record| query.sort_by.cursor(record)),
        records,
        total: counted.values().sum::<i64>().cast_unsigned(),
        counts: counts(&counted),
    })
}

/// The buckets that the filter selects, with how many records the scopes have in each.
fn matching_buckets(
    db: &Connection,
    query: &ListQuery,
    scopes: &Scopes,
) -> rusqlite::Result<BTreeMap<i64, i64>> {
    let node = match &query.node {
        None => None,
        Some(name) => match find_node(db, name.as_str())? {
            Some(node) => Some(node),
            None => return Ok(BTreeMap::new()),
        },
    };
    let mut buckets = scopes.counts(db)?;
    buckets.retain(|number, n| {
        *n > 0
            && Bucket::from_number(*number).is_some_and(|b| {
                node.is_none_or(|node| node == b.node)
                    && (query.types.is_empty() || query.types.contains(&b.kind))
                    && query.status.is_none_or(|s| s == b.status)
                    && (query.include_deleted || !b.deleted)
            })
    });
    Ok(buckets)
}

fn counts(buckets: &BTreeMap<i64, i64>) -> Counts {
    let mut counts = Counts::default();
    for (number, n) in buckets {
        if let Some(bucket) = Bucket::from_number(*number) {
            *counts.by_status.entry(bucket.status).or_default() += n.cast_unsigned();
            *counts.by_type.entry(bucket.kind).or_default() += n.cast_unsigned();
        }
    }
    counts
}

fn read(db: &Connection, recent: &Recent, as_of: AsOf, place: &Place) -> Result<Record> {
    let select = "SELECT body, sealed FROM records WHERE seq = ?1";
    let mut select = db.prepare_cached(select).map_err(failed(DOING))?;
    let mut rows = select.query([place.seq]).map_err(failed(DOING))?;
    let row = rows.next().map_err(failed(DOING))?;
    let row = row.ok_or_else(|| unreadable("a resource", "an index names a row that is not there"))?;
    let id = ResourceId::from_u128(u128::from_be_bytes(place.id));
    Ok(reads::decoded(row, recent, as_of, id)?.record.clone())
}

/// What a list is sorted by, as it compares.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Number(i64),
    Text(String),
}

/// Where a record stands in a sorted list, and its row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) key: Key,
    pub(crate) id: [u8; 16],
    pub(crate) seq: i64,
}

fn place_of(cursor: &Cursor, sort: SortBy) -> Option<(Key, [u8; 16])> {
    let key = match sort {
        SortBy::CreatedAt | SortBy::UpdatedAt => Key::Number(cursor.key.parse().ok()?),
        SortBy::Name => Key::Text(cursor.key.clone()),
        SortBy::Status => Key::Text(Status::parse(&cursor.key)?.as_str().to_owned()),
    };
    Some((key, cursor.id.as_u128().to_be_bytes()))
}

/// Offers the records of every run, each until one can no longer be on the page.
fn merge(
    db: &Connection,
    query: &ListQuery,
    scopes: &Scopes,
    buckets: &BTreeMap<i64, i64>,
    best: &mut Best,
) -> Result<()> {
    if query.sort_by != SortBy::Status {
        let all: Vec<i64> = buckets.keys().copied().collect();
        return offer_runs(db, query, scopes, &all, None, best).map_err(failed(DOING));
    }
    let mut statuses = Status::ALL;
    statuses.sort_by_key(|s| s.as_str());
    if query.order == SortOrder::Desc {
        statuses.reverse();
    }
    for status in statuses {
        let is_of_status = |n: &&i64| Bucket::from_number(**n).is_some_and(|b| b.status == status);
        let of_status: Vec<i64> = buckets.keys().filter(is_of_status).copied().collect();
        offer_runs(db, query, scopes, &of_status, Some(status), best).map_err(failed(DOING))?;
        if best.is_full() {
            break;
        }
    }
    Ok(())
}

/// Offers what is in these buckets, which are of one status when the list is sorted by it.
fn offer_runs(
    db: &Connection,
    query: &ListQuery,
    scopes: &Scopes,
    buckets: &[i64],
    status: Option<Status>,
    best: &mut Best,
) -> rusqlite::Result<()> {
    // A run of another status than the cursor's lies wholly before or after the cursor.
    let start = best.after.clone().filter(|(key, _)| match (key, status) {
        (Key::Text(word), Some(status)) => word == status.as_str(),
        _ => true,
    });
    for (column, scope) in &scopes.any_of {
        let mut select = db.prepare_cached(&run(*column, query.sort_by, query.order, start.is_some()))?;
        for bucket in buckets {
            let mut values: Vec<Value> = Vec::with_capacity(4);
            values.extend(column.names().map(|_| Value::Integer(*scope)));
            values.push(Value::Integer(*bucket));
            if let Some((key, id)) = &start {
                values.extend(match key {
                    Key::Number(number) => Some(Value::Integer(*number)),
                    Key::Text(text) => status.is_none().then(|| Value::Text(text.clone())),
                });
                values.push(Value::Blob(id.to_vec()));
            }
            let mut rows = select.query(params_from_iter(values))?;
            while let Some(row) = rows.next()? {
                let key = match (query.sort_by, status) {
                    (SortBy::CreatedAt | SortBy::UpdatedAt, _) => Key::Number(row.get(2)?),
                    (SortBy::Name | SortBy::Status, None) => Key::Text(row.get(2)?),
                    (SortBy::Name | SortBy::Status, Some(status)) => Key::Text(status.as_str().to_owned()),
                };
                if !best.offer(Place {
                    key,
                    id: row.get(1)?,
                    seq: row.get(0)?,
                }) {
                    break;
                }
            }
        }
    }
    Ok(())
}

/// The statement that walks a bucket of a scope in order.
fn run(column: Column, sort: SortBy, order: SortOrder, after: bool) -> String {
    let (direction, past) = match order {
        SortOrder::Asc => ("ASC", ">"),
        SortOrder::Desc => ("DESC", "<"),
    };
    let (key, index) = match sort {
        SortBy::CreatedAt => (Some("created_at"), "created"),
        SortBy::UpdatedAt => (Some("updated_at"), "updated"),
        SortBy::Name => (Some("name"), "name"),
        SortBy::Status => (None, "status"),
    };
    let (scope, word) = match column.names() {
        Some((column, word)) => (format!("{column} = ? AND "), word),
        None => (String::new(), "all"),
    };
    let (also, start, by) = match key {
        Some(key) => (
            format!(", {key}"),
            format!(" AND ({key}, id) {past} (?, ?)"),
            format!("{key} {direction}, id {direction}"),
        ),
        None => (
            String::new(),
            format!(" AND id {past} ?"),
            format!("id {direction}"),
        ),
    };
    let start = if after { start } else { String::new() };
    format!(
        "SELECT seq, id{also} FROM records INDEXED BY records_{word}_{index} \
         WHERE {scope}bucket = ?{start} ORDER BY {by}"
    )
}

/// Keeps the first so many places of those that are offered.
struct Best {
    skip: usize,
    limit: usize,
    keep: usize,
    order: SortOrder,
    after: Option<(Key, [u8; 16])>,
    /// The last of those that are kept is on top of one of these.
    ascending: BinaryHeap<Place>,
    descending: BinaryHeap<Reverse<Place>>,
    /// The rows that are kept, where one may be offered twice.
    seen: Option<HashSet<i64>>,
}

impl Best {
    /// None when the page is empty for sure.
    fn of(query: &ListQuery, scopes: &Scopes, total: i64) -> Option<Self> {
        let (skip, after) = match &query.position {
            Position::Offset(offset) => (*offset, None),
            Position::After(cursor) => (0, Some(place_of(cursor, query.sort_by)?)),
        };
        if skip >= total.cast_unsigned() || query.limit == 0 {
            return None;
        }
        // One more than the page tells whether there is a next one.
        let keep = skip
            .saturating_add(u64::from(query.limit) + 1)
            .min(total.cast_unsigned());
        let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Some(Self {
            skip: number(skip),
            limit: number(query.limit.into()),
            keep: number(keep),
            order: query.order,
            after,
            ascending: BinaryHeap::new(),
            descending: BinaryHeap::new(),
            seen: (scopes.any_of.len() > 1).then(HashSet::new),
        })
    }

    fn is_full(&self) -> bool {
        self.ascending.len() + self.descending.len() >= self.keep
    }

    /// Answers false when it is past the page, and with it all that is sorted after it.
    fn offer(&mut self, place: Place) -> bool {
        let is_past = self.after.as_ref().is_none_or(|(key, id)| match self.order {
            SortOrder::Asc => (&place.key, &place.id) > (key, id),
            SortOrder::Desc => (&place.key, &place.id) < (key, id),
        });
        if !is_past || self.seen.as_ref().is_some_and(|seen| seen.contains(&place.seq)) {
            return true;
        }
        let is_full = self.is_full();
        let is_better = match self.order {
            SortOrder::Asc => self.ascending.peek().is_some_and(|last| place < *last),
            SortOrder::Desc => self.descending.peek().is_some_and(|last| place > last.0),
        };
        if is_full && !is_better {
            return false;
        }
        if let Some(seen) = &mut self.seen {
            seen.insert(place.seq);
        }
        let dropped = match self.order {
            SortOrder::Asc => {
                self.ascending.push(place);
                if is_full { self.ascending.pop() } else { None }
            }
            SortOrder::Desc => {
                self.descending.push(Reverse(place));
                if is_full {
                    self.descending.pop().map(|last| last.0)
                } else {
                    None
                }
            }
        };
        if let (Some(seen), Some(dropped)) = (&mut self.seen, dropped) {
            seen.remove(&dropped.seq);
        }
        true
    }

    /// The page, and whether there is more after it.
    fn into_page(self) -> (Vec<Place>, bool) {
        let places = match self.order {
            SortOrder::Asc => self.ascending.into_sorted_vec(),
            SortOrder::Desc => self
                .descending
                .into_sorted_vec()
                .into_iter()
                .map(|r| r.0)
                .collect(),
        };
        let has_more = places.len() > self.skip.saturating_add(self.limit);
        (
            places.into_iter().skip(self.skip).take(self.limit).collect(),
            has_more,
        )
    }
}
