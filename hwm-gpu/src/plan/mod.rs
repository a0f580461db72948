//! Chooses places for a request, given the cards as they were seen and what is claimed. Pure.

mod names;
mod profile;
mod refusal;
mod slice;
mod view;

use hwm_core::accelerator::{Placement, PlacementKind, PlacementRefusal};
use hwm_core::config::{GpuRequest, ResourceType};
use hwm_core::error::Violation;
use hwm_core::id::GpuUuid;
use hwm_core::ledger::Claim;

use self::view::View;
use crate::node::{CardState, MigMode, Node};
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

fn count_of(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests;
