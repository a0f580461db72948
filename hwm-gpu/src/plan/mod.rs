//! Chooses places for a request, given the cards as they were seen and what is claimed. Pure.

mod names;
mod profile;
mod refusal;

use hwm_core::accelerator::{Placement, PlacementKind, PlacementRefusal};
use hwm_core::config::{GpuRequest, ResourceType};
use hwm_core::error::Violation;
use hwm_core::id::{GpuUuid, ResourceId};
use hwm_core::ledger::{Claim, ClaimKey};

use crate::fleet::{Fleet, Place, Wanted};
use crate::geometry::{Geometry, Occupancy, Slot};
use crate::node::{CardState, MigMode, Node, Owner};
use crate::topology::{self, Location};

type Result<T> = std::result::Result<T, PlacementRefusal>;

/// Chooses places; see [`Accelerators::plan`](hwm_core::accelerator::Accelerators::plan).
pub(crate) fn plan(
    node: &Node,
    request: &GpuRequest,
    workload: ResourceType,
    held: &[Claim],
) -> Result<Vec<Placement>> {
    let cards: Vec<View<'_>> = node.cards.iter().map(|c| View::new(c, held)).collect();
    let plan = Plan {
        node,
        cards,
        workload,
    };
    match request {
        GpuRequest::None => Ok(Vec::new()),
        GpuRequest::Named(names) => plan.named(names),
        GpuRequest::Whole(count) => plan.whole(*count as usize),
        GpuRequest::Slice(profile) => plan.slice(profile),
    }
}

struct Plan<'a> {
    node: &'a Node,
    cards: Vec<View<'a>>,
    workload: ResourceType,
}

/// A card and who holds what of it.
struct View<'a> {
    card: &'a CardState,
    held: Vec<(&'a str, ResourceId)>,
    /// By claims and by what is on the card without one.
    taken: Occupancy,
    /// By what is on the card without a claim.
    unclaimed: Occupancy,
}

impl<'a> View<'a> {
    fn new(card: &'a CardState, claims: &'a [Claim]) -> Self {
        let mut held: Vec<(&str, ResourceId)> = claims
            .iter()
            .filter_map(|c| match &c.key {
                ClaimKey::Gpu(gpu, part) if gpu.as_str() == card.uuid => Some((part.as_str(), c.holder)),
                _ => None,
            })
            .collect();
        held.sort_unstable();
        let mut view = Self {
            card,
            held,
            taken: Occupancy::default(),
            unclaimed: Occupancy::default(),
        };
        if let Some(geometry) = &card.geometry {
            for (part, _) in &view.held {
                take_part(geometry, &mut view.taken, part);
            }
            for (more, _) in view.seen(geometry) {
                if view.taken.slots & more.slots != more.slots {
                    add(&mut view.taken, &more);
                    add(&mut view.unclaimed, &more);
                }
            }
        }
        view
    }

    /// What is on the card or in doubt, and what it is.
    fn seen(&self, geometry: &Geometry) -> Vec<(Occupancy, String)> {
        let instances = self.card.instances.iter().map(|i| {
            let what = match (i.owner, self.card.profile(i.slot)) {
                (Owner::Ours(owner), _) => format!("a slice of {owner} that is being removed"),
                (Owner::Adopted | Owner::Foreign, Some(p)) => {
                    format!(
                        "instance {} ({} at slot {}), which hwm did not make",
                        i.id, p.name, i.slot.start
                    )
                }
                (Owner::Adopted | Owner::Foreign, None) => {
                    format!("instance {}, which hwm did not make", i.id)
                }
            };
            (geometry.with(Occupancy::default(), i.slot), what)
        });
        instances.chain(self.card.doubtful.iter().cloned()).collect()
    }

    fn is_free(&self) -> bool {
        self.held.is_empty() && self.unclaimed == Occupancy::default() && self.card.instances.is_empty()
    }

    fn holders(&self) -> Vec<ResourceId> {
        let mut holders: Vec<ResourceId> = self.held.iter().map(|(_, h)| *h).collect();
        holders.sort_unstable();
        holders.dedup();
        holders
    }

    /// The parts that a slice claims: its slots, and the lowest free units of what it is limited by.
    fn parts(&self, geometry: &Geometry, slot: Slot) -> Vec<String> {
        let profile = &geometry.profiles()[slot.profile];
        let slots = (slot.start..slot.start + profile.size).map(|s| format!("slot-{s}"));
        let units = geometry.limits().iter().flat_map(|limit| {
            let names = (0..limit.total).map(|u| format!("{}-{u}", limit.name));
            let free = names.filter(|n| !self.held.iter().any(|(part, _)| part == n));
            free.take(limit.takes[slot.profile].into())
        });
        slots.chain(units).collect()
    }

    fn location(&self) -> Location {
        Location {
            address: self.card.address.clone(),
            path: self.card.path.clone(),
            numa: self.card.numa,
            nvlinks: self.card.nvlinks.clone(),
        }
    }

    fn whole(&self) -> Placement {
        Placement {
            card: GpuUuid::new(&*self.card.uuid),
            parts: self.card.parts.clone(),
            memory: self.card.memory,
            kind: PlacementKind::Whole,
            reason: None,
        }
    }
}

fn add(taken: &mut Occupancy, more: &Occupancy) {
    taken.slots |= more.slots;
    for (t, m) in taken.limits.iter_mut().zip(more.limits) {
        *t = t.saturating_add(m);
    }
}

fn take_part(geometry: &Geometry, taken: &mut Occupancy, part: &str) {
    let unit = part.rsplit_once('-');
    let slot = unit
        .filter(|(name, _)| *name == "slot")
        .and_then(|(_, n)| 1u32.checked_shl(n.parse().ok()?));
    let limit = unit.and_then(|(name, _)| geometry.limits().iter().position(|l| l.name == name));
    match (slot, limit) {
        (Some(bit), _) => taken.slots |= bit,
        (None, Some(limit)) => taken.limits[limit] = taken.limits[limit].saturating_add(1),
        // Claimed before it was known how the card is cut: all of it.
        (None, None) => taken.slots = u32::MAX,
    }
}

impl Plan<'_> {
    fn is_machine(&self) -> bool {
        self.workload == ResourceType::VirtualMachine
    }

    fn named(&self, names: &[String]) -> Result<Vec<Placement>> {
        let field = |i: usize| {
            if self.is_machine() {
                format!("gpuConfig.deviceIds[{i}]")
            } else {
                format!("gpuDeviceIds[{i}]")
            }
        };
        let mut violations = Vec::new();
        let mut found = Vec::new();
        for (i, name) in names.iter().enumerate() {
            match self.resolve(name) {
                Ok(device) if found.contains(&device) => {
                    violations.push(Violation::new(
                        field(i),
                        format!("{name} names a device that is named before"),
                    ));
                }
                Ok(device) => found.push(device),
                Err(message) => violations.push(Violation::new(field(i), message)),
            }
        }
        if !violations.is_empty() {
            return Err(PlacementRefusal::Invalid(violations));
        }
        found.into_iter().map(|device| self.place_named(device)).collect()
    }

    fn place_named(&self, device: names::Device) -> Result<Placement> {
        match device {
            names::Device::Card(at) => {
                let view = &self.cards[at];
                if let Some(why) = self.cannot_be_whole(view.card) {
                    return Err(PlacementRefusal::Unsupported(why));
                }
                if view.is_free() {
                    Ok(view.whole())
                } else {
                    Err(self.whole_is_taken(view))
                }
            }
            names::Device::Instance(at, instance) => {
                let view = &self.cards[at];
                if let Some(why) = view.card.unusable() {
                    return Err(PlacementRefusal::Unsupported(why));
                }
                let seen = &view.card.instances[instance];
                let (Some(geometry), Some(uuid)) = (&view.card.geometry, &seen.uuid) else {
                    return Err(PlacementRefusal::Unsupported(format!(
                        "the instance on {} is not whole",
                        view.card.label()
                    )));
                };
                let parts = view.parts(geometry, seen.slot);
                let mut holders: Vec<_> = view
                    .held
                    .iter()
                    .filter(|(p, _)| parts.iter().any(|own| own == p))
                    .map(|(_, h)| *h)
                    .collect();
                holders.sort_unstable();
                holders.dedup();
                if holders.is_empty() {
                    return Ok(Placement {
                        card: GpuUuid::new(&*view.card.uuid),
                        parts,
                        memory: Some(geometry.profiles()[seen.slot.profile].memory),
                        kind: PlacementKind::Existing { uuid: uuid.clone() },
                        reason: None,
                    });
                }
                Err(PlacementRefusal::Taken {
                    wanted: uuid.clone(),
                    holders,
                    remedy: "delete the holder, or ask for a slice by profile".to_owned(),
                })
            }
        }
    }

    /// Why a card can never be handed out whole to this kind of workload, as it is now.
    fn cannot_be_whole(&self, card: &CardState) -> Option<String> {
        if let Some(why) = card.unusable() {
            return Some(why);
        }
        if card.mig == MigMode::On {
            return Some(format!(
                "{} is in MIG mode, so it is handed out in slices: ask for a profile, or have the operator switch \
                 MIG off (`nvidia-smi -i {} -mig 0`)",
                card.label(),
                card.index
            ));
        }
        if self.is_machine() {
            if !self.node.iommu {
                return Some(
                    "this host has no IOMMU that is on, so no card can be passed through: enable it in the \
                     firmware and boot with intel_iommu=on or amd_iommu=on"
                        .to_owned(),
                );
            }
            return card.no_passthrough.clone();
        }
        if !card.visible && card.handed_to.is_none() {
            return Some(format!(
                "{} is on the driver {} and not on nvidia, so no container can use it",
                card.label(),
                card.driver.as_deref().unwrap_or("(none)")
            ));
        }
        None
    }

    fn whole(&self, count: usize) -> Result<Vec<Placement>> {
        let field = "gpuConfig.count";
        if count == 0 {
            return Err(PlacementRefusal::Invalid(vec![Violation::new(
                field,
                "must be at least 1",
            )]));
        }
        let able: Vec<&View<'_>> = self
            .cards
            .iter()
            .filter(|v| self.cannot_be_whole(v.card).is_none())
            .collect();
        if able.len() < count {
            let reasons: Vec<String> = self
                .cards
                .iter()
                .filter_map(|v| self.cannot_be_whole(v.card))
                .collect();
            if reasons.is_empty() {
                let message = format!(
                    "this node has {}, so it must be at most that",
                    count_of(able.len(), "GPU")
                );
                return Err(self
                    .no_cards()
                    .unwrap_or(PlacementRefusal::Invalid(vec![Violation::new(field, message)])));
            }
            return Err(PlacementRefusal::Unsupported(reasons.join("; ")));
        }
        let free: Vec<&View<'_>> = able.iter().copied().filter(|v| v.is_free()).collect();
        let locations: Vec<Location> = free.iter().map(|v| v.location()).collect();
        match topology::choose(&locations, count) {
            Some(chosen) => Ok(chosen.into_iter().map(|i| free[i].whole()).collect()),
            None => Err(self.too_few_whole(&able, free.len(), count)),
        }
    }

    fn slice(&self, wanted: &str) -> Result<Vec<Placement>> {
        let field = "gpuConfig.migProfile";
        if let Some(refusal) = self.no_cards() {
            return Err(refusal);
        }
        let asked = profile::Asked::parse(wanted).ok_or_else(|| {
            let message = format!(
                "\"{wanted}\" is no MIG profile; one looks like 1g.5gb, or 1g for the smallest memory"
            );
            PlacementRefusal::Invalid(vec![Violation::new(field, message)])
        })?;
        let mut offers: Vec<Offer> = Vec::new();
        for (at, view) in self.cards.iter().enumerate() {
            let Some(geometry) = &view.card.geometry else {
                continue;
            };
            if let Some((profile, fit)) = asked.find(geometry) {
                let switch = view.card.mig != MigMode::On;
                offers.push(Offer {
                    rank: (fit, switch),
                    card: at,
                    profile,
                });
            }
        }
        if offers.is_empty() {
            let message = profile::none_has_it(wanted, self.cards.iter().map(|v| v.card));
            return Err(PlacementRefusal::Invalid(vec![Violation::new(field, message)]));
        }
        let reasons: Vec<Option<String>> = offers
            .iter()
            .map(|o| self.cannot_be_cut(self.cards[o.card].card))
            .collect();
        if reasons.iter().all(Option::is_some) {
            let mut reasons: Vec<String> = reasons.into_iter().flatten().collect();
            reasons.dedup();
            return Err(PlacementRefusal::Unsupported(reasons.join("; ")));
        }
        let mut able: Vec<Offer> = offers
            .into_iter()
            .zip(reasons)
            .filter(|(_, why)| why.is_none())
            .map(|(offer, _)| offer)
            .collect();
        able.sort_by_key(|o| o.rank);
        let ranks = able.chunk_by(|a, b| a.rank == b.rank);
        for same in ranks {
            if let Some((view, slot)) = self.best(same) {
                let Some(geometry) = &view.card.geometry else {
                    continue;
                };
                let profile = &geometry.profiles()[slot.profile];
                return Ok(vec![Placement {
                    card: GpuUuid::new(&*view.card.uuid),
                    parts: view.parts(geometry, slot),
                    memory: Some(profile.memory),
                    kind: PlacementKind::Slice {
                        profile: profile.name.clone(),
                        start: slot.start.into(),
                        size: profile.size.into(),
                    },
                    reason: profile::explain(wanted, &profile.name),
                }]);
            }
        }
        Err(self.no_room(wanted, &able))
    }

    /// The best place among cards that are equally welcome.
    fn best(&self, offers: &[Offer]) -> Option<(&View<'_>, Slot)> {
        let mut fleet = Fleet::default();
        let mut cards = Vec::new();
        let mut wanted: Vec<Wanted> = Vec::new();
        for offer in offers {
            let view = &self.cards[offer.card];
            let Some(geometry) = &view.card.geometry else {
                continue;
            };
            // A card that is to be switched must be empty.
            if offer.rank.1 && !view.is_free() {
                continue;
            }
            let kind = Wanted {
                geometry: fleet.add_geometry(geometry.clone()),
                profile: offer.profile,
            };
            fleet.add_card(kind.geometry, view.taken);
            cards.push(view);
            if !wanted.contains(&kind) {
                wanted.push(kind);
            }
        }
        let Place { card, slot } = fleet.choose(&wanted)?;
        Some((cards[card], slot))
    }

    /// Why a card can never be cut for this kind of workload, as it is now.
    fn cannot_be_cut(&self, card: &CardState) -> Option<String> {
        if let Some(why) = card.unusable() {
            return Some(why);
        }
        if self.is_machine() && card.vgpu.is_none() {
            return Some(format!(
                "{} gives no slices to machines: a MIG slice has no PCI function, and this host has neither the vGPU \
                 host driver's virtual functions nor mediated devices",
                card.label()
            ));
        }
        if !card.visible {
            let driver = card.driver.as_deref().unwrap_or("(none)");
            return Some(format!(
                "{} is on the driver {driver}, so it cannot be cut",
                card.label()
            ));
        }
        match card.mig {
            MigMode::On => None,
            MigMode::Off { live: true } if self.node.may_switch => None,
            MigMode::Off { live: true } => Some(format!(
                "MIG is off on {}: the operator switches it on (`nvidia-smi -i {} -mig 1`) or lets hwm do it",
                card.label(),
                card.index
            )),
            MigMode::Off { live: false } => Some(format!(
                "MIG is off on {}, and switching it on needs a reset of the card: the operator runs \
                 `nvidia-smi -i {} -mig 1` and resets it while nothing uses it",
                card.label(),
                card.index
            )),
            MigMode::None => Some(format!("{} has no MIG", card.label())),
        }
    }

    fn no_cards(&self) -> Option<PlacementRefusal> {
        let why = || {
            self.node
                .reason
                .clone()
                .unwrap_or_else(|| "none was found".to_owned())
        };
        self.cards
            .is_empty()
            .then(|| PlacementRefusal::Unsupported(format!("this node has no GPU: {}", why())))
    }
}

/// A card that has a profile that would do.
struct Offer {
    /// How well it fits, then whether the card would have to be switched.
    rank: (profile::Fit, bool),
    /// Its place among the cards.
    card: usize,
    profile: usize,
}

fn count_of(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests;
