//! Who holds what, and how much of each pool is claimed.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::{NodeId, ResourceId};
use crate::ledger::{Claim, ClaimKey, Pool, PoolLimit};
use crate::store::{ClaimFilter, CommitError, Release};

type Slot = (NodeId, ClaimKey, ResourceId);

#[derive(Debug, Default)]
pub(super) struct Shares {
    amounts: BTreeMap<Slot, u64>,
    held: BTreeMap<ResourceId, BTreeSet<(NodeId, ClaimKey)>>,
    used: BTreeMap<(NodeId, Pool), u128>,
}

impl Shares {
    /// Gives back and takes; leaves everything as it was when it refuses.
    pub(super) fn change(
        &mut self,
        release: &[Release],
        claim: &[Claim],
        limits: &[PoolLimit],
    ) -> Result<(), CommitError> {
        if release.is_empty() && claim.is_empty() {
            return Ok(());
        }
        let mut undo = Vec::new();
        let judged = self.try_change(release, claim, limits, &mut undo);
        if judged.is_err() {
            while let Some((slot, before)) = undo.pop() {
                self.set(slot, before);
            }
        }
        judged
    }

    fn try_change(
        &mut self,
        release: &[Release],
        claim: &[Claim],
        limits: &[PoolLimit],
        undo: &mut Vec<(Slot, Option<u64>)>,
    ) -> Result<(), CommitError> {
        let mut before = BTreeMap::new();
        let mut set = |shares: &mut Self, slot: Slot, amount: Option<u64>| {
            if let Some(pool) = slot.1.pool() {
                let used = shares.used_of(&slot.0, pool);
                before.entry((slot.0.clone(), pool)).or_insert(used);
            }
            let old = shares.set(slot.clone(), amount);
            undo.push((slot, old));
        };
        for release in release {
            let held = self.held.get(&release.holder).into_iter().flatten();
            let given_back: Vec<_> = held
                .filter(|(_, key)| release.keys.as_ref().is_none_or(|keys| keys.contains(key)))
                .cloned()
                .collect();
            for (node, key) in given_back {
                set(self, (node, key, release.holder), None);
            }
        }
        for claim in claim {
            if let Some(holder) = self.other_holder(claim) {
                return Err(CommitError::Held {
                    key: claim.key.clone(),
                    holder,
                });
            }
            let slot = (claim.node.clone(), claim.key.clone(), claim.holder);
            set(self, slot, Some(claim.amount));
        }
        for ((node, pool), before) in before {
            let after = self.used_of(&node, pool);
            let limits = limits.iter().filter(|l| l.pool == pool);
            // What a number cannot count is not there to be had.
            let limit = limits.map(|l| l.limit).min().unwrap_or(u64::MAX);
            if after > before && after > u128::from(limit) {
                return Err(CommitError::Exceeded {
                    pool,
                    requested: u64::try_from(after - before).unwrap_or(u64::MAX),
                    used: u64::try_from(before).unwrap_or(u64::MAX),
                    limit,
                });
            }
        }
        Ok(())
    }

    fn other_holder(&self, claim: &Claim) -> Option<ResourceId> {
        if claim.key.pool().is_some() {
            return None;
        }
        self.of_key(&claim.node, &claim.key)
            .map(|(slot, _)| slot.2)
            .find(|holder| *holder != claim.holder)
    }

    fn used_of(&self, node: &NodeId, pool: Pool) -> u128 {
        self.used.get(&(node.clone(), pool)).copied().unwrap_or(0)
    }

    /// Sets how much is held in a slot, and answers how much was.
    fn set(&mut self, slot: Slot, amount: Option<u64>) -> Option<u64> {
        let (node, key, holder) = slot.clone();
        let old = match amount {
            Some(amount) => self.amounts.insert(slot, amount),
            None => self.amounts.remove(&slot),
        };
        if let Some(pool) = key.pool() {
            let used = self.used.entry((node.clone(), pool)).or_default();
            *used = *used + u128::from(amount.unwrap_or(0)) - u128::from(old.unwrap_or(0));
        }
        if amount.is_some() {
            self.held.entry(holder).or_default().insert((node, key));
        } else if let Some(held) = self.held.get_mut(&holder) {
            held.remove(&(node, key));
            if held.is_empty() {
                self.held.remove(&holder);
            }
        }
        old
    }

    fn of_key(&self, node: &NodeId, key: &ClaimKey) -> impl Iterator<Item = (&Slot, &u64)> {
        let first = (node.clone(), key.clone(), ResourceId::from_u128(0));
        let last = (node.clone(), key.clone(), ResourceId::from_u128(u128::MAX));
        self.amounts.range(first..=last)
    }

    pub(super) fn of_node(&self, node: &NodeId, filter: &ClaimFilter) -> Vec<Claim> {
        let claim = |((node, key, holder), amount): (&Slot, &u64)| Claim {
            node: node.clone(),
            key: key.clone(),
            holder: *holder,
            amount: *amount,
        };
        let all = || self.amounts.iter().filter(|((n, _, _), _)| n == node).map(claim);
        match filter {
            ClaimFilter::All => all().collect(),
            ClaimFilter::Prefix(prefix) => all().filter(|c| c.key.to_string().starts_with(prefix)).collect(),
            ClaimFilter::Holder(holder) => {
                let held = self.held.get(holder).into_iter().flatten();
                held.filter(|(n, _)| n == node)
                    .filter_map(|(n, key)| self.amounts.get_key_value(&(n.clone(), key.clone(), *holder)))
                    .map(claim)
                    .collect()
            }
            ClaimFilter::Keys(keys) => {
                let keys: BTreeSet<&ClaimKey> = keys.iter().collect();
                keys.into_iter()
                    .flat_map(|key| self.of_key(node, key))
                    .map(claim)
                    .collect()
            }
        }
    }

    pub(super) fn pools(&self, node: &NodeId) -> BTreeMap<Pool, u64> {
        Pool::ALL
            .into_iter()
            .map(|pool| (pool, u64::try_from(self.used_of(node, pool)).unwrap_or(u64::MAX)))
            .collect()
    }
}
