//! Claims: judged in memory against what is stored, then written as differences.

use std::collections::BTreeMap;

use hwm_core::id::{NodeId, ResourceId};
use hwm_core::ledger::{Claim, ClaimKey, Pool};
use hwm_core::store::{ClaimFilter, CommitError, StoreError, Transaction};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::error::{failed, unreadable};

type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Who holds how much of a key of a node.
type Slot = (NodeId, ClaimKey, ResourceId);

/// What a transaction changes of the claims.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// How much was held in a slot before, and how much is after.
    slots: BTreeMap<Slot, (Option<u64>, Option<u64>)>,
    /// How much is used of each pool after.
    pools: BTreeMap<(NodeId, Pool), u64>,
}

/// What the transaction changes, if nothing stands against it. Writes nothing.
pub(crate) fn judge(db: &Connection, transaction: &Transaction) -> Result<Changes, CommitError> {
    let mut changes = Changes::default();
    for release in &transaction.release {
        for (slot, amount) in held_by(db, release.holder)? {
            if release.keys.as_ref().is_none_or(|keys| keys.contains(&slot.1)) {
                changes.slots.entry(slot).or_insert((Some(amount), None)).1 = None;
            }
        }
    }
    for claim in &transaction.claim {
        if claim.key.pool().is_none()
            && let Some(holder) = changes.other_holder(db, claim)?
        {
            return Err(CommitError::Held {
                key: claim.key.clone(),
                holder,
            });
        }
        let slot = (claim.node.clone(), claim.key.clone(), claim.holder);
        match changes.slots.get_mut(&slot) {
            Some((_, after)) => *after = Some(claim.amount),
            None => {
                let before = amount_in(db, &slot).map_err(failed("reading a claim"))?;
                changes.slots.insert(slot, (before, Some(claim.amount)));
            }
        }
    }
    changes.judge_pools(db, transaction)?;
    Ok(changes)
}

impl Changes {
    /// Who, other than the claimant, has an exclusive key.
    fn other_holder(&self, db: &Connection, claim: &Claim) -> Result<Option<ResourceId>> {
        let first = (claim.node.clone(), claim.key.clone(), ResourceId::from_u128(0));
        let last = (
            claim.node.clone(),
            claim.key.clone(),
            ResourceId::from_u128(u128::MAX),
        );
        for ((_, _, holder), (_, after)) in self.slots.range(first..=last) {
            if after.is_some() && *holder != claim.holder {
                return Ok(Some(*holder));
            }
        }
        let doing = "looking for the holder of a claim";
        let select = "SELECT holder FROM claims WHERE node = ?1 AND key = ?2";
        let mut select = db.prepare_cached(select).map_err(failed(doing))?;
        let stored = select
            .query_row(params![claim.node.as_str(), claim.key.to_string()], holder_of)
            .optional()
            .map_err(failed(doing))?;
        Ok(stored.filter(|holder| {
            let slot = (claim.node.clone(), claim.key.clone(), *holder);
            *holder != claim.holder && !self.slots.contains_key(&slot)
        }))
    }

    fn judge_pools(&mut self, db: &Connection, transaction: &Transaction) -> Result<(), CommitError> {
        let mut changed: BTreeMap<(NodeId, Pool), i128> = BTreeMap::new();
        for ((node, key, _), (before, after)) in &self.slots {
            if let Some(pool) = key.pool() {
                let change = i128::from(after.unwrap_or(0)) - i128::from(before.unwrap_or(0));
                *changed.entry((node.clone(), pool)).or_default() += change;
            }
        }
        for ((node, pool), change) in changed {
            let before = used(db, &node, pool).map_err(failed("reading a pool"))?;
            let after = i128::from(before) + change;
            let limits = transaction.limits.iter().filter(|l| l.pool == pool);
            // What a number cannot count is not there to be had.
            let limit = limits.map(|l| l.limit).min().unwrap_or(u64::MAX);
            if change > 0 && after > i128::from(limit) {
                let requested = u64::try_from(change).unwrap_or(u64::MAX);
                return Err(CommitError::Exceeded {
                    pool,
                    requested,
                    used: before,
                    limit,
                });
            }
            if change != 0 {
                let after = u64::try_from(after).map_err(|_| {
                    let message = "more is given back than is claimed: the file is damaged, restore a backup";
                    StoreError::new(format!("adding up {pool:?} of node {node}"), message)
                })?;
                self.pools.insert((node, pool), after);
            }
        }
        Ok(())
    }

    /// Writes what differs.
    pub(crate) fn write(&self, db: &Connection) -> rusqlite::Result<()> {
        let differing = || self.slots.iter().filter(|(_, (before, after))| before != after);
        // What is given back goes first: a key may have a new holder.
        for ((node, key, holder), (_, after)) in differing() {
            if after.is_none() {
                let delete = "DELETE FROM claims WHERE node = ?1 AND key = ?2 AND share = ?3 AND holder = ?4";
                let id = holder.as_u128().to_be_bytes();
                let slot = params![node.as_str(), key.to_string(), share(key, &id), id];
                db.prepare_cached(delete)?.execute(slot)?;
            }
        }
        for ((node, key, holder), (before, after)) in differing() {
            let Some(amount) = after else { continue };
            // A key that has another holder after all is refused by the table.
            let write = match before {
                None => "INSERT INTO claims (node, key, share, holder, amount) VALUES (?1, ?2, ?3, ?4, ?5)",
                Some(_) => {
                    "UPDATE claims SET amount = ?5 WHERE node = ?1 AND key = ?2 AND share = ?3 AND holder = ?4"
                }
            };
            let id = holder.as_u128().to_be_bytes();
            let row = params![
                node.as_str(),
                key.to_string(),
                share(key, &id),
                id,
                amount.cast_signed()
            ];
            db.prepare_cached(write)?.execute(row)?;
        }
        for ((node, pool), used) in &self.pools {
            let write =
                "INSERT INTO pools VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET used = excluded.used";
            let row = params![node.as_str(), pool.key().to_string(), used.cast_signed()];
            db.prepare_cached(write)?.execute(row)?;
        }
        Ok(())
    }
}

/// What tells the holders of a key apart: nothing where there is one.
fn share<'a>(key: &ClaimKey, holder: &'a [u8; 16]) -> &'a [u8] {
    if key.pool().is_some() { holder } else { &[] }
}

fn holder_of(row: &Row<'_>) -> rusqlite::Result<ResourceId> {
    row.get(0)
        .map(|bytes| ResourceId::from_u128(u128::from_be_bytes(bytes)))
}

fn amount_in(db: &Connection, (node, key, holder): &Slot) -> rusqlite::Result<Option<u64>> {
    let select = "SELECT amount FROM claims WHERE node = ?1 AND key = ?2 AND share = ?3 AND holder = ?4";
    let id = holder.as_u128().to_be_bytes();
    let slot = params![node.as_str(), key.to_string(), share(key, &id), id];
    let amount: Option<i64> = db
        .prepare_cached(select)?
        .query_row(slot, |row| row.get(0))
        .optional()?;
    Ok(amount.map(i64::cast_unsigned))
}

fn held_by(db: &Connection, holder: ResourceId) -> Result<Vec<(Slot, u64)>> {
    let doing = "reading the claims of a holder";
    let select = "SELECT node, key, amount FROM claims WHERE holder = ?1";
    let mut select = db.prepare_cached(select).map_err(failed(doing))?;
    let rows = select.query_map([holder.as_u128().to_be_bytes()], |row| {
        Ok((
            row.get::<_, String>(0)?,
            row.get::<_, String>(1)?,
            row.get::<_, i64>(2)?,
        ))
    });
    let mut held = Vec::new();
    for row in rows.map_err(failed(doing))? {
        let (node, key, amount) = row.map_err(failed(doing))?;
        held.push(((NodeId::new(node), parse(&key)?, holder), amount.cast_unsigned()));
    }
    Ok(held)
}

fn parse(key: &str) -> Result<ClaimKey> {
    key.parse().map_err(|e| unreadable("a claim", e))
}

fn used(db: &Connection, node: &NodeId, pool: Pool) -> rusqlite::Result<u64> {
    let select = "SELECT used FROM pools WHERE node = ?1 AND key = ?2";
    let of = [node.as_str(), &pool.key().to_string()];
    let used: Option<i64> = db
        .prepare_cached(select)?
        .query_row(of, |row| row.get(0))
        .optional()?;
    Ok(used.unwrap_or(0).cast_unsigned())
}

/// How much of each pool is claimed.
pub(crate) fn pools(db: &Connection, node: &NodeId) -> Result<BTreeMap<Pool, u64>> {
    let used = |pool| used(db, node, pool).map(|used| (pool, used));
    Pool::ALL
        .into_iter()
        .map(used)
        .collect::<rusqlite::Result<_>>()
        .map_err(failed("reading the pools of a node"))
}

/// The claims that a filter selects, sorted.
pub(crate) fn select(db: &Connection, node: &NodeId, filter: &ClaimFilter) -> Result<Vec<Claim>> {
    let mut found = match filter {
        ClaimFilter::All => from_key(db, node, "", |_| true)?,
        ClaimFilter::Prefix(prefix) => from_key(db, node, prefix, |key| key.starts_with(prefix))?,
        ClaimFilter::Holder(holder) => {
            let held = held_by(db, *holder)?.into_iter();
            let held = held.map(|((node, key, holder), amount)| Claim {
                node,
                key,
                holder,
                amount,
            });
            held.filter(|claim| claim.node == *node).collect()
        }
        ClaimFilter::Keys(keys) => {
            let mut found = Vec::new();
            for key in keys {
                let spelling = key.to_string();
                found.extend(from_key(db, node, &spelling, |key| key == spelling)?);
            }
            found
        }
    };
    found.sort();
    found.dedup();
    Ok(found)
}

/// The claims of the first keys at or after `first` that `wanted` holds for.
fn from_key(
    db: &Connection,
    node: &NodeId,
    first: &str,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<Claim>> {
    let doing = "reading the claims of a node";
    let select = "SELECT key, holder, amount FROM claims WHERE node = ?1 AND key >= ?2 ORDER BY key, share";
    let mut select = db.prepare_cached(select).map_err(failed(doing))?;
    let mut rows = select.query([node.as_str(), first]).map_err(failed(doing))?;
    let mut found = Vec::new();
    while let Some(row) = rows.next().map_err(failed(doing))? {
        let key: String = row.get(0).map_err(failed(doing))?;
        if !wanted(&key) {
            break;
        }
        let holder = u128::from_be_bytes(row.get(1).map_err(failed(doing))?);
        let amount: i64 = row.get(2).map_err(failed(doing))?;
        found.push(Claim {
            node: node.clone(),
            key: parse(&key)?,
            holder: ResourceId::from_u128(holder),
            amount: amount.cast_unsigned(),
        });
    }
    Ok(found)
}
