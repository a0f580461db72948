//! Plans what a resource claims, and explains what cannot be had.

use std::collections::BTreeMap;

use super::Core;
use super::draft::Draft;
use super::slot::Slot;
use crate::accelerator::{Placement, PlacementRefusal};
use crate::access::{Permission, Principal};
use crate::backend::Workload;
use crate::config::{Config, GpuRequest};
use crate::error::{Conflict, ConflictKind, Error, Holder, Violation};
use crate::id::ResourceId;
use crate::ledger::{self, Claim, ClaimKey, Demand, Pool, PoolLimit, PortBinding, port_candidates};
use crate::resource::{Allocation, Record};
use crate::store::{ClaimFilter, CommitError, Release, StoreError, Transaction};

/// What is to be claimed for a resource, and what was chosen for it.
pub(super) struct ClaimPlan {
    pub(super) demand: Demand,
    pub(super) allocation: Allocation,
}

impl ClaimPlan {
    /// The claims, without those that only what is up needs unless `running`.
    pub(super) fn claims(&self, core: &Core, holder: ResourceId, running: bool) -> Vec<Claim> {
        let claim = |key: ClaimKey, amount| Claim {
            node: core.node.clone(),
            key,
            holder,
            amount,
        };
        let ports = self.allocation.ports.iter().map(PortBinding::key);
        let gpus = self.allocation.gpus.iter().flat_map(Placement::keys);
        let mut exclusive: Vec<ClaimKey> = self
            .demand
            .exclusive
            .iter()
            .cloned()
            .chain(ports)
            .chain(gpus)
            .collect();
        exclusive.sort();
        exclusive.dedup();
        let running = if running {
            self.demand.running.as_slice()
        } else {
            &[]
        };
        let shares = self.demand.lasting.iter().chain(running);
        exclusive
            .into_iter()
            .map(|key| claim(key, 1))
            .chain(shares.map(|(pool, amount)| claim(pool.key(), *amount)))
            .collect()
    }

    /// Whether another try may choose other ports or places.
    pub(super) fn was_chosen(&self) -> bool {
        !self.demand.open_ports.is_empty() || !self.allocation.gpus.is_empty()
    }
}

impl Core {
    /// Plans what a record's config needs, chooses free ports and places on GPUs into its allocation, and has
    /// the backend look at the result. What `keep` holds is kept where the config still asks for the same.
    pub(super) async fn plan_claims(
        &self,
        slot: &Slot,
        record: &mut Record,
        keep: Option<(&Config, &Allocation)>,
        attempt: u32,
        caller: &Principal,
    ) -> Result<ClaimPlan, Error> {
        let planned = async {
            record.allocation = self.allocate(record.id, &record.config, keep, attempt).await?;
            let workload = Workload::of(record, record.generation);
            let resolved = self.check(slot, &workload).await?;
            let demand = Demand::of(&record.config, |path| {
                resolved.get(path).cloned().unwrap_or_else(|| path.to_owned())
            });
            self.refuse_nested_volumes(record.id, &demand).await?;
            Ok(ClaimPlan {
                demand,
                allocation: record.allocation.clone(),
            })
        };
        match planned.await {
            Ok(plan) => Ok(plan),
            Err(error) => Err(self.name_holders(error, caller).await),
        }
    }

    async fn allocate(
        &self,
        holder: ResourceId,
        config: &Config,
        keep: Option<(&Config, &Allocation)>,
        attempt: u32,
    ) -> Result<Allocation, Error> {
        let ports = self
            .choose_ports(holder, config, keep.map(|k| k.1), attempt)
            .await?;
        let mut allocation = Allocation {
            ports,
            ..Allocation::default()
        };
        match keep {
            Some((before, kept)) if before.gpu_request() == config.gpu_request() => {
                allocation.gpus.clone_from(&kept.gpus);
                allocation.grants.clone_from(&kept.grants);
                allocation.retired.clone_from(&kept.retired);
            }
            _ => {
                allocation.gpus = self.choose_gpus(holder, config).await?;
                if let Some((_, kept)) = keep {
                    allocation.retired = kept.retired.iter().chain(&kept.gpus).cloned().collect();
                }
            }
        }
        Ok(allocation)
    }

    /// Asks the backend what only the node knows; answers paths after links are resolved.
    async fn check(&self, slot: &Slot, workload: &Workload) -> Result<BTreeMap<String, String>, Error> {
        let report = slot
            .call("check", self.settings.read_timeout, slot.backend.check(workload))
            .await
            .map_err(|error| slot.error(error))?;
        if report.violations.is_empty() {
            Ok(report.resolved_paths)
        } else {
            Err(Error::Validation(report.violations))
        }
    }

    /// Refuses a folder that is written to by another resource further up or down the same path. The same
    /// folder is refused by its claim.
    async fn refuse_nested_volumes(&self, holder: ResourceId, demand: &Demand) -> Result<(), Error> {
        for key in &demand.exclusive {
            let ClaimKey::Volume(path) = key else { continue };
            let above = std::path::Path::new(path).ancestors().skip(1);
            let above = above
                .map(|p| ClaimKey::Volume(p.to_string_lossy().into_owned()))
                .collect();
            let below = ClaimKey::Volume(format!("{path}/")).to_string();
            let mut claims = self.store.claims(&self.node, ClaimFilter::Keys(above)).await?;
            claims.extend(self.store.claims(&self.node, ClaimFilter::Prefix(below)).await?);
            if let Some(claim) = claims.into_iter().find(|claim| claim.holder != holder) {
                let mut conflict = ledger::held(&claim.key, claim.holder, "");
                conflict.wanted = key.describe();
                return Err(Error::Conflict(Box::new(conflict)));
            }
        }
        Ok(())
    }

    async fn choose_ports(
        &self,
        holder: ResourceId,
        config: &Config,
        kept: Option<&Allocation>,
        attempt: u32,
    ) -> Result<Vec<PortBinding>, Error> {
        let mut chosen: Vec<PortBinding> = Vec::new();
        let seed =
            holder.as_u128() ^ u128::from(attempt).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
        for request in config.port_requests() {
            let same = |b: &&PortBinding| {
                b.container_port == request.container_port && b.protocol == request.protocol
            };
            let port = match (request.host_port, kept.and_then(|k| k.ports.iter().find(same))) {
                (Some(port), _) => port,
                (None, Some(binding)) => binding.host_port,
                (None, None) => {
                    let mut free = None;
                    for port in port_candidates(self.settings.port_range.clone(), seed) {
                        let key = ClaimKey::Port(request.protocol, port);
                        let wanted_elsewhere = chosen.iter().any(|b| b.key() == key)
                            || config
                                .port_requests()
                                .iter()
                                .any(|r| r.protocol == request.protocol && r.host_port == Some(port));
                        if !wanted_elsewhere
                            && self
                                .store
                                .claims(&self.node, ClaimFilter::Keys(vec![key]))
                                .await?
                                .is_empty()
                        {
                            free = Some(port);
                            break;
                        }
                    }
                    free.ok_or_else(|| self.no_free_port())?
                }
            };
            chosen.push(PortBinding::new(&request, port));
        }
        Ok(chosen)
    }

    fn no_free_port(&self) -> Error {
        let range = &self.settings.port_range;
        Error::Conflict(Box::new(Conflict {
            kind: ConflictKind::Port,
            wanted: format!("a free host port in {}..{}", range.start(), range.end()),
            holders: Vec::new(),
            remedy:
                "delete other resources, name a hostPort outside that range, or have the operator widen it"
                    .into(),
        }))
    }

    pub(super) async fn choose_gpus(
        &self,
        holder: ResourceId,
        config: &Config,
    ) -> Result<Vec<Placement>, Error> {
        let request = config.gpu_request();
        if request == GpuRequest::None {
            return Ok(Vec::new());
        }
        let Some(accelerators) = &self.accelerators else {
            return Err(Error::Unsupported {
                what: "a GPU".into(),
                reason: format!("node {} was started without GPUs", self.node),
            });
        };
        let mut held = self
            .store
            .claims(&self.node, ClaimFilter::Prefix("gpu/".into()))
            .await?;
        held.retain(|claim| claim.holder != holder);
        let placements = match accelerators.plan(&request, config.resource_type(), &held) {
            Ok(placements) => placements,
            Err(PlacementRefusal::Invalid(violations)) => {
                return Err(Error::Validation(
                    violations
                        .into_iter()
                        .map(|v| Violation::new(format!("config.{}", v.field), v.message))
                        .collect(),
                ));
            }
            Err(PlacementRefusal::Unsupported(reason)) => {
                return Err(Error::Unsupported {
                    what: "this use of a GPU".into(),
                    reason,
                });
            }
            Err(PlacementRefusal::Taken {
                wanted,
                holders,
                remedy,
            }) => {
                let holders = holders
                    .into_iter()
                    .map(|id| Holder {
                        resource_id: id,
                        name: String::new(),
                        holds: "a GPU".to_owned(),
                    })
                    .collect();
                return Err(Error::Conflict(Box::new(Conflict {
                    kind: ConflictKind::Gpu,
                    wanted,
                    holders,
                    remedy,
                })));
            }
        };
        check_gpu_memory(config, &placements)?;
        Ok(placements)
    }

    /// Claims what only a resource that is up needs.
    pub(super) fn claim_running(&self, tx: &mut Transaction, record: &Record) {
        let demand = Demand::of(&record.config, str::to_owned);
        tx.claim.extend(self.shares(record.id, &demand.running));
        tx.limits = self.limits();
    }

    /// Gives back CPU and memory, unless the resource is up or an operation that waits brings it up.
    pub(super) fn release_running(&self, draft: &mut Draft) {
        if draft.record.phase.takes_capacity() || draft.comes_up() {
            return;
        }
        draft.tx.release.push(Release {
            holder: draft.record.id,
            keys: Some(vec![ClaimKey::Cpu, ClaimKey::Ram]),
        });
    }

    /// Sets the shares of pools of a resource that is up to what its config needs now.
    pub(super) fn exact_shares(&self, tx: &mut Transaction, record: &Record) {
        let demand = Demand::of(&record.config, str::to_owned);
        tx.claim.extend(self.shares(record.id, &demand.lasting));
        tx.claim.extend(self.shares(record.id, &demand.running));
    }

    fn shares(&self, holder: ResourceId, shares: &[(Pool, u64)]) -> impl Iterator<Item = Claim> {
        let node = self.node.clone();
        shares.iter().map(move |(pool, amount)| Claim {
            node: node.clone(),
            key: pool.key(),
            holder,
            amount: *amount,
        })
    }

    /// The limits of the node's pools.
    pub(super) fn limits(&self) -> Vec<PoolLimit> {
        let capacity = self
            .slots
            .iter()
            .map(|s| s.capacity())
            .fold(Default::default(), crate::ledger::Capacity::max);
        capacity.limits(self.settings.cpu_overcommit)
    }

    /// Fails as a commit of these claims would, for a dry run.
    pub(super) async fn would_fit(&self, claims: &[Claim], caller: &Principal) -> Result<(), Error> {
        let exclusive: Vec<_> = claims
            .iter()
            .filter(|c| c.key.pool().is_none())
            .map(|c| c.key.clone())
            .collect();
        if let Some(held) = self
            .store
            .claims(&self.node, ClaimFilter::Keys(exclusive))
            .await?
            .into_iter()
            .next()
        {
            let refusal = CommitError::Held {
                key: held.key,
                holder: held.holder,
            };
            return Err(self.explain(refusal, caller).await);
        }
        let used = self.store.pools(&self.node).await?;
        for PoolLimit { pool, limit } in self.limits() {
            let used = used.get(&pool).copied().unwrap_or(0);
            let requested: u64 = claims
                .iter()
                .filter(|c| c.key.pool() == Some(pool))
                .map(|c| c.amount)
                .sum();
            if requested > 0 && used.saturating_add(requested) > limit {
                return Err(self
                    .explain(
                        CommitError::Exceeded {
                            pool,
                            requested,
                            used,
                            limit,
                        },
                        caller,
                    )
                    .await);
            }
        }
        Ok(())
    }

    /// Turns a refused commit into an error that names the holders that `caller` may see.
    pub(super) async fn explain(&self, error: CommitError, caller: &Principal) -> Error {
        let conflict = match error {
            CommitError::Held { key, holder } => ledger::held(&key, holder, ""),
            CommitError::Exceeded {
                pool,
                requested,
                used,
                limit,
            } => {
                let mut conflict = ledger::exceeded(pool, requested, used, limit);
                match self.largest_holders(pool).await {
                    Ok(holders) => conflict.holders = holders,
                    Err(error) => return Error::Store(error),
                }
                conflict
            }
            other => return other.into(),
        };
        self.name_holders(Error::Conflict(Box::new(conflict)), caller)
            .await
    }

    /// Fills in the names of a conflict's holders, and leaves out those that `caller` may not see.
    pub(super) async fn name_holders(&self, error: Error, caller: &Principal) -> Error {
        let Error::Conflict(mut conflict) = error else {
            return error;
        };
        let mut named = Vec::new();
        for holder in std::mem::take(&mut conflict.holders) {
            match self.store.record(holder.resource_id).await {
                Ok(Some(record)) if caller.may(Permission::Read, &record.owner) => {
                    named.push(Holder {
                        name: record.name,
                        ..holder
                    });
                }
                Ok(_) => {}
                Err(error) => return Error::Store(error),
            }
        }
        conflict.holders = named;
        Error::Conflict(conflict)
    }

    async fn largest_holders(&self, pool: Pool) -> Result<Vec<Holder>, StoreError> {
        const MOST: usize = 5;
        let mut claims = self
            .store
            .claims(&self.node, ClaimFilter::Keys(vec![pool.key()]))
            .await?;
        claims.sort_by_key(|claim| std::cmp::Reverse(claim.amount));
        claims.truncate(MOST);
        Ok(claims
            .into_iter()
            .map(|claim| Holder {
                resource_id: claim.holder,
                name: String::new(),
                holds: pool.amount(claim.amount),
            })
            .collect())
    }
}

fn check_gpu_memory(config: &Config, placements: &[Placement]) -> Result<(), Error> {
    let Config::Inference(inference) = config else {
        return Ok(());
    };
    let (Some(wanted), Some(there)) = (
        inference.gpu_memory_limit,
        placements.iter().filter_map(|p| p.memory).min(),
    ) else {
        return Ok(());
    };
    if wanted <= there.as_mb() {
        return Ok(());
    }
    Err(Error::Validation(vec![Violation::new(
        "config.gpuMemoryLimit",
        format!("must be at most {} MB, the memory of the device", there.as_mb()),
    )]))
}
