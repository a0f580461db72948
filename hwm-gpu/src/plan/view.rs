//! A card as a plan sees it: what of it is taken, and by whom.

use hwm_core::accelerator::{Placement, PlacementKind};
use hwm_core::id::{GpuUuid, ResourceId};
use hwm_core::ledger::{Claim, ClaimKey};

use crate::geometry::{Geometry, Occupancy, Slot};
use crate::node::{CardState, Owner};
use crate::topology::Location;

/// A card and who holds what of it.
pub(super) struct View<'a> {
    pub(super) card: &'a CardState,
    pub(super) held: Vec<(&'a str, ResourceId)>,
    /// By claims and by what is on the card without one.
    pub(super) taken: Occupancy,
    /// By what is on the card without a claim.
    pub(super) unclaimed: Occupancy,
}

impl<'a> View<'a> {
    pub(super) fn new(card: &'a CardState, claims: &'a [Claim]) -> Self {
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
    pub(super) fn seen(&self, geometry: &Geometry) -> Vec<(Occupancy, String)> {
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

    pub(super) fn is_free(&self) -> bool {
        self.held.is_empty() && self.unclaimed == Occupancy::default() && self.card.instances.is_empty()
    }

    pub(super) fn holders(&self) -> Vec<ResourceId> {
        let mut holders: Vec<ResourceId> = self.held.iter().map(|(_, h)| *h).collect();
        holders.sort_unstable();
        holders.dedup();
        holders
    }

    /// The parts that a slice claims: its slots, and the lowest free units of what it is limited by.
    pub(super) fn parts(&self, geometry: &Geometry, slot: Slot) -> Vec<String> {
        let profile = &geometry.profiles()[slot.profile];
        let slots = (slot.start..slot.start + profile.size).map(|s| format!("slot-{s}"));
        let units = geometry.limits().iter().flat_map(|limit| {
            let names = (0..limit.total).map(|u| format!("{}-{u}", limit.name));
            let free = names.filter(|n| !self.held.iter().any(|(part, _)| part == n));
            free.take(limit.takes[slot.profile].into())
        });
        slots.chain(units).collect()
    }

    pub(super) fn location(&self) -> Location {
        Location {
            address: self.card.address.clone(),
            path: self.card.path.clone(),
            numa: self.card.numa,
            nvlinks: self.card.nvlinks.clone(),
        }
    }

    pub(super) fn whole(&self) -> Placement {
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
